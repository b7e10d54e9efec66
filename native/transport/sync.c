#include "transport/sync.h"

#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/bus.h"
#include "transport/keeper.h"
#include "transport/names.h"
#include "transport/record.h"

/* How often another's claim is looked at again before it is let fail: it lasts as long as a few stores. */
#define CLAIM_LOOKS 200
/* How often a claim is looked at that fits no decision, before it is taken for none. */
#define STRANGE_LOOKS 100000
/* How often the open ends of a pipe are counted again, because one was opened meanwhile. */
#define END_LOOKS 16

/* ---- geometry ---------------------------------------------------------------------------------------------- */

struct plan {
    uint64_t line, watchers, others, entries, content, bytes;
};

static struct plan plan(const struct shm_sync_config *config, uint32_t place_words)
{
    uint64_t set_bytes = shm_round_up(sizeof(struct shm_set) + (uint64_t)place_words * 8, 128);
    struct plan p = {.line = sizeof(struct shm_sync)};
    p.watchers = p.line + set_bytes;
    p.others = p.watchers + set_bytes;
    p.entries = p.others + set_bytes;
    p.content = shm_round_up(p.entries + (uint64_t)config->entries * sizeof(shm_word), 128);
    p.bytes = p.content + config->bytes;
    return p;
}

static bool is_possible(const struct shm_sync_config *config)
{
    bool has_entries = config->kind == SHM_SYNC_RWLOCK || config->kind == SHM_SYNC_PIPE;
    bool has_bytes = config->kind == SHM_SYNC_PIPE;
    return config->kind >= SHM_SYNC_EVENT && config->kind < SHM_SYNC_KINDS &&
           config->max <= SHM_SYNC_MAX_VALUE && (config->kind != SHM_SYNC_BARRIER || config->max >= 1) &&
           config->initial <= (config->kind == SHM_SYNC_SEMAPHORE ? config->max : 1) &&
           config->entries <= SHM_SYNC_MAX_ENTRIES && has_entries == (config->entries > 0) &&
           has_bytes == (config->bytes > 0) && config->bytes <= SHM_PIPE_MAX_BYTES &&
           (config->bytes & (config->bytes - 1)) == 0;
}

/* Point into the object that lies in `block`, after its measures were checked against the block: 0 or CORRUPTED. */
static int view_block(struct shm_sync_view *view, const struct shm_segment *segment, uint32_t block)
{
    unsigned char *base = segment->base + shm_block_offset(segment, block);
    struct shm_sync *sync = (struct shm_sync *)base;
    struct shm_sync_config config = {.kind = SHM_ONCE(sync->kind),
                                     .flags = SHM_ONCE(sync->flags),
                                     .max = SHM_ONCE(sync->max),
                                     .entries = SHM_ONCE(sync->entries),
                                     .bytes = SHM_ONCE(sync->bytes)};
    struct plan p = plan(&config, segment->place_words);
    if (!is_possible(&config) || SHM_ONCE(sync->place_words) != segment->place_words ||
        p.bytes > shm_block_class_bytes(block))
        return SHM_CORRUPTED;
    view->sync = sync;
    view->block = block;
    view->config = config;
    view->place_words = segment->place_words;
    view->line = (struct shm_set *)(base + p.line);
    view->watchers = (struct shm_set *)(base + p.watchers);
    view->others = (struct shm_set *)(base + p.others);
    view->entries = (_Atomic shm_word *)(base + p.entries);
    view->bytes = base + p.content;
    return 0;
}

/* ---- life -------------------------------------------------------------------------------------------------- */

int shm_sync_make(struct shm_thread *self, struct shm_sync_view *view, const struct shm_sync_config *config)
{
    struct shm_segment *segment = self->segment;
    if (!is_possible(config))
        return SHM_INVALID;
    struct plan p = plan(config, segment->place_words);
    struct shm_making made;
    int status = shm_record_begin(self, &made, p.bytes);
    if (status)
        return status;
    struct shm_sync *sync = (struct shm_sync *)made.bytes;
    memset(sync, 0, p.content); /* a block's bytes are whatever its last user left */
    sync->kind = config->kind;
    sync->flags = config->flags;
    sync->max = config->max;
    sync->entries = config->entries;
    sync->bytes = config->bytes;
    sync->place_words = segment->place_words;
    bool is_set = config->kind == SHM_SYNC_EVENT && config->initial;
    uint64_t value = config->kind == SHM_SYNC_SEMAPHORE ? config->initial : 0;
    atomic_store(&sync->word, shm_sync_word(0, value, is_set ? SHM_SYNC_SET : SHM_SYNC_FREE));

    SHM_KILL_POINT(sync_make);
    status = shm_record_claim(self, &made, SHM_BOX_SYNC, SHM_BLOCK_SYNC, shm_member_id_self(self->member),
                              &sync->box, &sync->box_count);
    if (status)
        return status;
    *view = (struct shm_sync_view){.index = made.index, .count = made.count, .lease = made.lease};
    status = view_block(view, segment, made.block);
    SHM_KILL_POINT(sync_open);
    shm_record_open(self, &made);
    return status;
}

int shm_sync_open(struct shm_thread *self, struct shm_sync_view *view, uint32_t index, uint64_t count)
{
    shm_lease_index lease;
    uint32_t block;
    int status = shm_block_pin(self, index, count, SHM_BLOCK_SYNC, &lease, &block);
    if (status)
        return status;
    *view = (struct shm_sync_view){.index = index, .count = count, .lease = lease};
    status = view_block(view, self->segment, block);
    if (status)
        shm_lease_release(self, lease);
    return status;
}

bool shm_sync_open_to_mend(struct shm_thread *self, struct shm_sync_view *view, uint32_t index,
                           uint64_t count)
{
    return shm_record_opened_to_mend(self, shm_sync_open(self, view, index, count));
}

void shm_sync_release(struct shm_thread *self, struct shm_sync_view *view)
{
    if (view->sync)
        shm_lease_release(self, view->lease);
    view->sync = NULL;
}

/* ---- who is woken ------------------------------------------------------------------------------------------ */

/* Whoever waits for many passes the baton himself, see shm_sync_pass. */
static bool never(const struct shm_box *none)
{
    (void)none;
    return false;
}

static struct shm_waitable waitable(const struct shm_sync_view *view, struct shm_set *set, bool in_line)
{
    return (struct shm_waitable){.kind = SHM_WAIT_MANY,
                                 .object = view->index,
                                 .set = set,
                                 .words = view->place_words,
                                 .is_true = never,
                                 .in_line = in_line};
}

struct shm_waitable shm_sync_line(struct shm_sync_view *view)
{
    return waitable(view, view->line, true);
}

struct shm_waitable shm_sync_watchers(struct shm_sync_view *view)
{
    return waitable(view, view->watchers, false);
}

struct shm_waitable shm_sync_others(struct shm_sync_view *view)
{
    return waitable(view, view->others, true);
}

/* Is it for one who waits, or for all of them? */
static bool is_for_all(const struct shm_sync_view *view)
{
    return (view->config.kind == SHM_SYNC_EVENT && !(view->config.flags & SHM_SYNC_AUTO)) ||
           view->config.kind == SHM_SYNC_BARRIER;
}

void shm_sync_wake(struct shm_thread *self, struct shm_sync_view *view)
{
    struct shm_waitable line = shm_sync_line(view), watchers = shm_sync_watchers(view);
    if (!shm_set_empty(view->line)) {
        if (is_for_all(view))
            shm_wake_all(self, &line);
        else
            shm_wake_set(self, &line, 0);
    }
    if (!shm_set_empty(view->watchers))
        shm_wake_all(self, &watchers);
}

void shm_sync_pass(struct shm_thread *self, struct shm_sync_view *view)
{
    if ((!shm_set_empty(view->line) || !shm_set_empty(view->watchers)) &&
        shm_sync_is_available(self, view, shm_sync_peek(self, view)))
        shm_sync_wake(self, view);
}

/* ---- claims ------------------------------------------------------------------------------------------------ */

#define DECISION_MARK (UINT64_C(3) << 62)

static uint64_t claim_gen(uint64_t word)
{
    return word >> 42;
}

static uint32_t claim_place(uint64_t word)
{
    return (uint32_t)(word >> 24) & (SHM_SYNC_MAX_PLACES - 1);
}

/* What a claimed word was before: whoever may claim it finds it available. */
static uint64_t claim_old(const struct shm_sync_view *view, uint64_t word)
{
    uint64_t value = word >> 4 & SHM_SYNC_MAX_VALUE;
    uint32_t state = SHM_SYNC_FREE;
    if (view->config.kind == SHM_SYNC_EVENT)
        state = SHM_SYNC_SET;
    else if (view->config.kind == SHM_SYNC_MUTEX && value)
        state = SHM_SYNC_ABANDONED;
    return shm_sync_word(claim_gen(word), view->config.kind == SHM_SYNC_SEMAPHORE ? value : 0, state);
}

uint64_t shm_sync_claim(const struct shm_thread *self, uint64_t decision, uint64_t word)
{
    uint64_t value = (word & 0xF) == SHM_SYNC_ABANDONED ? 1 : shm_sync_value(word) & SHM_SYNC_MAX_VALUE;
    return decision >> 4 << 42 | (uint64_t)self->place << 24 | value << 4 | SHM_SYNC_CLAIMED;
}

static _Atomic uint64_t *decision_at(const struct shm_segment *segment, uint32_t place)
{
    return &shm_place_at(segment, place)->items[1].ticket;
}

/* The decision that a claimed word is of; NONE: the word is not the object's any more, or is none. */
static uint64_t decision_of(const struct shm_thread *self, uint64_t word)
{
    uint32_t place = claim_place(word);
    if (!shm_index_ok(self->segment, SHM_TABLE_PLACES, place))
        return SHM_DECISION_NONE;
    uint64_t decision = atomic_load(decision_at(self->segment, place));
    return (decision & DECISION_MARK) == DECISION_MARK && (decision >> 4 & 0x3FFFFF) == claim_gen(word)
               ? decision
               : SHM_DECISION_NONE;
}

uint64_t shm_sync_taken(const struct shm_sync_view *view, uint64_t word, uint64_t held)
{
    switch (view->config.kind) {
    case SHM_SYNC_EVENT:
        return view->config.flags & SHM_SYNC_AUTO ? shm_sync_next(word, 0, SHM_SYNC_FREE)
                                                  : shm_sync_next(word, 0, SHM_SYNC_SET);
    case SHM_SYNC_MUTEX:
        return shm_sync_next(word, held, SHM_SYNC_HELD);
    default:
        return shm_sync_next(word, shm_sync_value(word) - 1, SHM_SYNC_FREE);
    }
}

/* Put in the place of a claimed word what was decided, whoever does it. */
static void finish(const struct shm_thread *self, struct shm_sync_view *view, uint64_t word,
                   uint64_t decision)
{
    uint64_t new = claim_old(view, word);
    uint32_t place = claim_place(word);
    if ((decision & 0xF) == SHM_DECISION_TAKEN) {
        uint32_t slot = shm_word_owner(atomic_load(&shm_place_at(self->segment, place)->owner));
        new = shm_sync_taken(view, new, (uint64_t)place << 16 | slot);
    }
    SHM_KILL_POINT(sync_finish);
    atomic_compare_exchange_strong(&view->sync->word, &word, new);
}

static uint64_t fail(const struct shm_thread *self, uint32_t place, uint64_t decision)
{
    uint64_t failed = (decision & ~UINT64_C(0xF)) | SHM_DECISION_FAILED;
    if ((decision & 0xF) != SHM_DECISION_UNDECIDED)
        return decision;
    SHM_KILL_POINT(sync_fail);
    return atomic_compare_exchange_strong(decision_at(self->segment, place), &decision, failed) ? failed
                                                                                                : decision;
}

uint64_t shm_sync_decide(struct shm_thread *self)
{
    uint64_t gen = atomic_fetch_add(&self->segment->header->next_turn, 1) + 1;
    uint64_t decision = DECISION_MARK | (gen << 4 & ~DECISION_MARK) | SHM_DECISION_UNDECIDED;
    SHM_KILL_POINT(sync_decide);
    atomic_store(decision_at(self->segment, self->place), decision);
    return decision;
}

bool shm_sync_conclude(struct shm_thread *self, uint64_t decision, bool take)
{
    uint64_t taken = (decision & ~UINT64_C(0xF)) | SHM_DECISION_TAKEN;
    if (!take) {
        fail(self, self->place, decision);
        return false;
    }
    SHM_KILL_POINT(sync_taken);
    return atomic_compare_exchange_strong(decision_at(self->segment, self->place), &decision, taken);
}

uint64_t shm_sync_peek(const struct shm_thread *self, const struct shm_sync_view *view)
{
    for (uint32_t n = 0;; n++) {
        uint64_t word = atomic_load(&view->sync->word);
        if ((word & 0xF) != SHM_SYNC_CLAIMED)
            return word;
        uint64_t decision = decision_of(self, word);
        if (decision == SHM_DECISION_NONE && n < STRANGE_LOOKS)
            continue; /* it has changed meanwhile */
        uint64_t old = claim_old(view, word);
        return (decision & 0xF) == SHM_DECISION_TAKEN ? shm_sync_taken(view, old, 0) : old;
    }
}

uint64_t shm_sync_settle(struct shm_thread *self, struct shm_sync_view *view)
{
    for (uint32_t n = 0;; n++) {
        uint64_t word = atomic_load(&view->sync->word);
        if ((word & 0xF) != SHM_SYNC_CLAIMED)
            return word;
        uint64_t decision = decision_of(self, word);
        if (decision == SHM_DECISION_NONE) {
            if (n < STRANGE_LOOKS)
                continue;
            atomic_compare_exchange_strong(&view->sync->word, &word, claim_old(view, word)); /* it is none */
        } else if ((decision & 0xF) == SHM_DECISION_UNDECIDED && n < CLAIM_LOOKS) {
            shm_clock_relax();
        } else {
            decision = fail(self, claim_place(word), decision);
            if (decision_of(self, word) == decision)
                finish(self, view, word, decision);
        }
    }
}

/* ---- taking ------------------------------------------------------------------------------------------------ */

bool shm_sync_is_mine(const struct shm_thread *self, uint64_t word)
{
    uint32_t place = shm_sync_place(word);
    return (word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == self->slot &&
           (place == self->place || (shm_index_ok(self->segment, SHM_TABLE_PLACES, place) &&
                                     shm_place_at(self->segment, place)->thread == self->at->thread));
}

bool shm_sync_end_has_gone(const struct shm_sync_view *view, uint32_t what)
{
    if (!(atomic_load(&view->sync->had) >> what & 1)) /* first: its entry was there before it */
        return false;
    for (int n = 0; n < END_LOOKS; n++) {
        uint64_t joins = atomic_load(&view->sync->joins);
        for (uint32_t i = 0; i < view->config.entries; i++)
            if (shm_word_state(atomic_load(&view->entries[i])) == what)
                return false;
        if (atomic_load(&view->sync->joins) == joins) /* Y3 */
            return true;
    }
    return false; /* those who came will leave, and wake us then */
}

/* Bytes to read, or the end of the stream. */
static bool is_readable(const struct shm_sync_view *view)
{
    return atomic_load(&view->sync->written) != atomic_load(&view->sync->read) ||
           shm_sync_end_has_gone(view, SHM_ENTRY_WRITER);
}

bool shm_sync_is_available(const struct shm_thread *self, const struct shm_sync_view *view, uint64_t word)
{
    switch (view->config.kind) {
    case SHM_SYNC_EVENT:
        return (word & 0xF) == SHM_SYNC_SET;
    case SHM_SYNC_MUTEX:
        return (word & 0xF) == SHM_SYNC_FREE || (word & 0xF) == SHM_SYNC_ABANDONED ||
               (view->config.flags & SHM_SYNC_RECURSIVE && shm_sync_is_mine(self, word));
    case SHM_SYNC_RWLOCK:
        return (word & 0xF) == SHM_SYNC_FREE;
    case SHM_SYNC_BARRIER:
        return false;
    case SHM_SYNC_PIPE:
        return is_readable(view);
    default:
        return (word & 0xF) == SHM_SYNC_FREE && shm_sync_value(word) > 0;
    }
}

int shm_sync_take(struct shm_thread *self, struct shm_sync_view *view, bool *abandoned)
{
    for (;;) {
        uint64_t word = shm_sync_settle(self, view);
        *abandoned = false;
        if (!shm_sync_is_available(self, view, word))
            return SHM_EMPTY;
        if (view->config.kind == SHM_SYNC_PIPE)
            return 0;
        if (view->config.kind == SHM_SYNC_MUTEX && (word & 0xF) == SHM_SYNC_HELD) {
            atomic_fetch_add(&view->sync->depth, 1);
            return 0;
        }
        *abandoned = (word & 0xF) == SHM_SYNC_ABANDONED;
        uint64_t taken = shm_sync_taken(view, word, shm_sync_held(self));
        if (view->config.kind == SHM_SYNC_EVENT && (taken & 0xF) == SHM_SYNC_SET)
            return 0; /* it stays as it is */
        SHM_KILL_POINT(sync_take);
        if (!atomic_compare_exchange_strong(&view->sync->word, &word, taken))
            continue;
        if (view->config.kind == SHM_SYNC_MUTEX) {
            self->holds = true;
            atomic_store(&view->sync->depth, 1);
        }
        return 0;
    }
}

/* ---- changing ---------------------------------------------------------------------------------------------- */

void shm_event_set(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word;
    do {
        word = shm_sync_settle(self, view);
        if ((word & 0xF) == SHM_SYNC_SET)
            break;
        SHM_KILL_POINT(sync_change);
    } while (!atomic_compare_exchange_strong(&view->sync->word, &word,
                                             shm_sync_next(word, 0, SHM_SYNC_SET))); /* Y1 */
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
}

void shm_event_reset(struct shm_thread *self, struct shm_sync_view *view)
{
    for (;;) {
        uint64_t word = shm_sync_settle(self, view);
        if ((word & 0xF) != SHM_SYNC_SET ||
            atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, 0, SHM_SYNC_FREE)))
            return;
    }
}

int shm_mutex_unlock(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = shm_sync_settle(self, view);
    if ((word & 0xF) != SHM_SYNC_HELD ||
        !(view->config.flags & SHM_SYNC_ANYONE || shm_sync_is_mine(self, word)))
        return SHM_REFUSED;
    if (view->config.flags & SHM_SYNC_RECURSIVE && atomic_load(&view->sync->depth) > 1) {
        atomic_fetch_sub(&view->sync->depth, 1);
        return 0;
    }
    SHM_KILL_POINT(sync_change);
    if (!atomic_compare_exchange_strong(&view->sync->word, &word,
                                        shm_sync_next(word, 0, SHM_SYNC_FREE))) /* Y1 */
        return SHM_REFUSED;
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
    return 0;
}

int shm_mutex_adopt(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = shm_sync_settle(self, view);
    if (view->config.kind != SHM_SYNC_MUTEX || (word & 0xF) != SHM_SYNC_HELD ||
        shm_sync_slot(word) != self->slot)
        return SHM_REFUSED;
    self->holds = true; /* first: a thread that ends abandons what it has */
    SHM_KILL_POINT(sync_adopt);
    return atomic_compare_exchange_strong(&view->sync->word, &word,
                                          shm_sync_next(word, shm_sync_held(self), SHM_SYNC_HELD))
               ? 0
               : SHM_REFUSED;
}

int shm_semaphore_release(struct shm_thread *self, struct shm_sync_view *view, uint32_t n, uint32_t *previous)
{
    uint64_t word;
    do {
        word = shm_sync_settle(self, view);
        *previous = (uint32_t)shm_sync_value(word);
        if (n > view->config.max || *previous > view->config.max - n)
            return SHM_LIMIT;
        SHM_KILL_POINT(sync_change);
    } while (!atomic_compare_exchange_strong(
        &view->sync->word, &word, shm_sync_next(word, (uint64_t)*previous + n, SHM_SYNC_FREE))); /* Y1 */
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
    return 0;
}

/* ---- the end ----------------------------------------------------------------------------------------------- */

void shm_sync_drop(struct shm_thread *self, uint32_t index, uint32_t block)
{
    struct shm_segment *segment = self->segment;
    struct shm_sync_view view = {0};
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index) || view_block(&view, segment, block))
        return;
    uint64_t count = SHM_ONCE(view.sync->box_count);
    shm_name_drop_box(self, index, count);
    struct shm_box_record *record = shm_box_at(segment, index);
    shm_word word = atomic_load(&record->word);
    if (shm_word_count(word) == count && atomic_load(&record->place_of_ring) == (uint64_t)block + 1)
        atomic_compare_exchange_strong(&record->word, &word, shm_word_make(count, SHM_NOBODY, SHM_BOX_FREE));
}

/* The next open object from record *index on. */
static bool next_object(struct shm_thread *self, struct shm_sync_view *view, uint32_t *index)
{
    for (; *index < shm_pool_ready(self->segment, SHM_TABLE_BOXES); ++*index) {
        struct shm_box_record *record = shm_box_at(self->segment, *index);
        shm_word word = atomic_load(&record->word);
        if (shm_word_state(word) >= SHM_BOX_OPEN && record->kind == SHM_BOX_SYNC &&
            shm_sync_open_to_mend(self, view, *index, shm_word_count(word))) {
            ++*index;
            return true;
        }
    }
    return false;
}

/* The word, HELD, when its holder is gone. A barrier that its acting party leaves is broken in the same round: those who
 * wait take the next count for its opening. */
static uint64_t abandoned(const struct shm_sync_view *view, uint64_t word)
{
    if (view->config.kind == SHM_SYNC_BARRIER)
        return shm_sync_word(word >> 38, 0, SHM_SYNC_ABANDONED);
    return shm_sync_next(word, 0, view->config.kind == SHM_SYNC_RWLOCK ? SHM_SYNC_FREE : SHM_SYNC_ABANDONED);
}

void shm_sync_give_back(struct shm_thread *self, struct shm_sync_view *view, bool was_abandoned)
{
    uint64_t word = shm_sync_settle(self, view);
    uint32_t previous;
    switch (view->config.kind) {
    case SHM_SYNC_EVENT:
        if (view->config.flags & SHM_SYNC_AUTO)
            shm_event_set(self, view);
        break;
    case SHM_SYNC_SEMAPHORE:
        shm_semaphore_release(self, view, 1, &previous);
        break;
    case SHM_SYNC_MUTEX:
        if (!shm_sync_is_mine(self, word))
            break; /* a lock that another has released */
        if (!was_abandoned) {
            shm_mutex_unlock(self, view);
            break;
        }
        SHM_KILL_POINT(sync_change);
        if (atomic_compare_exchange_strong(&view->sync->word, &word, abandoned(view, word))) {
            SHM_KILL_POINT(sync_changed);
            shm_sync_wake(self, view);
        }
    }
}

void shm_sync_abandon(struct shm_thread *self)
{
    struct shm_sync_view view;
    bool failed = self->mending_failed;
    for (uint32_t i = 0; next_object(self, &view, &i);) {
        uint64_t word = atomic_load(&view.sync->word);
        if ((word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == self->slot &&
            shm_sync_place(word) == self->place && !(view.config.flags & SHM_SYNC_ANYONE) &&
            atomic_compare_exchange_strong(&view.sync->word, &word, abandoned(&view, word)))
            shm_sync_wake(self, &view);
        shm_sync_release(self, &view);
    }
    self->mending_failed = failed;
    self->holds = false;
}

/* A claim of the victim's fails, unless it was carried out. */
static void reap_claim(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying)
{
    uint64_t word = atomic_load(&view->sync->word);
    if ((word & 0xF) != SHM_SYNC_CLAIMED)
        return;
    uint32_t place = claim_place(word);
    uint64_t decision = decision_of(self, word);
    if (decision == SHM_DECISION_NONE ||
        shm_word_owner(atomic_load(&shm_place_at(self->segment, place)->owner)) != victim ||
        !shm_still_dying(self->segment, victim, dying))
        return;
    decision = fail(self, place, decision);
    if (decision_of(self, word) == decision)
        finish(self, view, word, decision);
}

static void reap_word(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying)
{
    uint64_t word = atomic_load(&view->sync->word);
    if ((word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == victim &&
        shm_still_dying(self->segment, victim, dying))
        atomic_compare_exchange_strong(&view->sync->word, &word, abandoned(view, word));
}

static void reap_entries(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying)
{
    for (uint32_t i = 0; i < view->config.entries; i++) {
        shm_word seen = atomic_load(&view->entries[i]);
        if (shm_word_state(seen) != SHM_ENTRY_FREE && shm_word_owner(seen) == victim &&
            shm_still_dying(self->segment, victim, dying))
            atomic_compare_exchange_strong(&view->entries[i], &seen,
                                           shm_word_next(seen, SHM_NOBODY, SHM_ENTRY_FREE));
    }
}

static void reap_rights(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying)
{
    _Atomic shm_word *rights[] = {&view->sync->write_right, &view->sync->read_right};
    for (int i = 0; i < 2; i++) {
        shm_word seen = atomic_load(rights[i]);
        if (shm_word_state(seen) && shm_word_owner(seen) == victim &&
            shm_still_dying(self->segment, victim, dying))
            atomic_compare_exchange_strong(rights[i], &seen, shm_word_next(seen, SHM_NOBODY, 0));
    }
}

/* Is there a place of the victim in the set? It leaves, unless it is only looked at. All words are looked at, for it may
 * have died before it set the summary's bit. */
static bool find_in_set(struct shm_thread *self, const struct shm_waitable *set, uint32_t victim,
                        shm_word dying, bool leaves)
{
    bool found = false;
    for (uint32_t w = 0; w < set->words; w++)
        for (uint64_t bits = atomic_load(&set->set->words[w]); bits; bits &= bits - 1) {
            uint32_t place = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (!shm_index_ok(self->segment, SHM_TABLE_PLACES, place))
                continue;
            shm_word owner = atomic_load(&shm_place_at(self->segment, place)->owner);
            if (shm_word_owner(owner) != victim || shm_word_state(owner) == 0 ||
                !shm_still_dying(self->segment, victim, dying))
                continue;
            SHM_KILL_POINT(reap_line);
            if (leaves)
                shm_reap_leave(self, place, owner, set);
            found = true;
        }
    return found;
}

static void reap_set(struct shm_thread *self, const struct shm_waitable *set, uint32_t victim, shm_word dying)
{
    find_in_set(self, set, victim, dying, true);
}

/* A party has died that was counted, perhaps, and is not in line, or no more. Before it leaves the sets: a reaper that dies
 * here must leave it to be found. */
static void reap_party(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying)
{
    struct shm_waitable line = shm_sync_line(view), others = shm_sync_others(view);
    if (!find_in_set(self, &line, victim, dying, false) && !find_in_set(self, &others, victim, dying, false))
        return;
    uint64_t word = atomic_load(&view->sync->word);
    while (shm_still_dying(self->segment, victim, dying) && (word & 0xF) == SHM_SYNC_FREE &&
           shm_sync_value(word) > 0 &&
           !atomic_compare_exchange_strong(&view->sync->word, &word,
                                           shm_sync_word(word >> 38, 0, SHM_SYNC_ABANDONED)))
        ; /* another party has come or gone */
}

static void reap_object(struct shm_thread *self, struct shm_sync_view *view, uint32_t victim, shm_word dying,
                        bool waits)
{
    struct shm_waitable line = shm_sync_line(view), watchers = shm_sync_watchers(view),
                        others = shm_sync_others(view);
    reap_claim(self, view, victim, dying);
    reap_word(self, view, victim, dying);
    reap_entries(self, view, victim, dying);
    reap_rights(self, view, victim, dying);
    if (view->config.kind == SHM_SYNC_BARRIER)
        reap_party(self, view, victim, dying);
    if (waits) {
        reap_set(self, &line, victim, dying);
        reap_set(self, &watchers, victim, dying);
    }
    if (waits ||
        view->config.kind == SHM_SYNC_CONDITION || /* it may have died in a signal handler, its place IDLE */
        view->config.kind == SHM_SYNC_BARRIER)     /* or counted, and not in line */
        reap_set(self, &others, victim, dying);
    uint64_t word = atomic_load(&view->sync->word);
    uint64_t left = view->config.kind == SHM_SYNC_CONDITION ? shm_set_count(view->others, others.words) : 0;
    if (view->config.kind == SHM_SYNC_CONDITION && shm_sync_value(word) > left)
        atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, left, SHM_SYNC_FREE));
    /* Whoever the victim was about to wake: it may have died between a change and its wake. */
    shm_sync_wake(self, view);
    if (!shm_set_empty(view->others))
        shm_wake_all(self, &others);
}

/* Does a thread of the victim wait for many? */
static bool waits_for_many(const struct shm_thread *self, uint32_t victim)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        if (shm_word_owner(atomic_load(&place->owner)) == victim && place != self->at &&
            shm_word_state(atomic_load(&place->word)) != SHM_PLACE_IDLE && atomic_load(&place->items_count) &&
            atomic_load(&place->items[0].kind) == SHM_WAIT_MANY)
            return true;
    }
    return false;
}

static void reap_watchers(struct shm_thread *self, uint32_t index, uint32_t kind, uint64_t count,
                          uint32_t victim, shm_word dying)
{
    struct shm_box box;
    struct shm_bus_view bus;
    if (kind == SHM_BOX_BUS) {
        if (!shm_bus_open_to_mend(self, &bus, index, count))
            return;
        struct shm_waitable readers = shm_bus_readers(&bus);
        reap_set(self, &readers, victim, dying);
        shm_bus_release(self, &bus);
    } else if (shm_box_open_to_mend(self, &box, index, count)) {
        struct shm_waitable watchers = shm_ring_watchers(&box);
        reap_set(self, &watchers, victim, dying);
        shm_box_release(self, &box);
    }
}

void shm_sync_reap(struct shm_thread *self, uint32_t victim, shm_word dying)
{
    bool waits = waits_for_many(self, victim);
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_BOXES); i++) {
        struct shm_box_record *record = shm_box_at(self->segment, i);
        shm_word seen = atomic_load(&record->word);
        struct shm_sync_view view;
        if (shm_word_state(seen) < SHM_BOX_OPEN)
            continue;
        if (record->kind != SHM_BOX_SYNC) {
            if (waits && (record->kind == SHM_BOX_BUS || shm_box_has_ring(record)))
                reap_watchers(self, i, record->kind, shm_word_count(seen), victim, dying);
            continue;
        }
        if (!shm_sync_open_to_mend(self, &view, i, shm_word_count(seen)))
            continue;
        reap_object(self, &view, victim, dying, waits);
        shm_sync_release(self, &view);
    }
}
