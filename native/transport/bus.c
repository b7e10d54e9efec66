#include "transport/bus.h"

#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/names.h"
#include "transport/record.h"

/* How long a poll may wait for another's publishing to end, and how long one waits for what a stopped one has locked. */
#define BUSY_LIMIT_NS UINT64_C(50000)
#define STUCK_PAUSE_NS UINT64_C(1000000)
#define MS_NS UINT64_C(1000000)
#define BLAMED_MS_MASK ((UINT64_C(1) << 40) - 1)

/* What a step of a receive says when it has moved on, or somebody else has: look again. */
enum { LOOK_AGAIN = 1 };

/* ---- geometry ---------------------------------------------------------------------------------------------- */

struct plan {
    uint64_t readers_set, writers_set, frames, readers, bytes;
};

static struct plan plan(const struct shm_bus_config *config, uint32_t place_words)
{
    uint64_t set_bytes = shm_round_up(sizeof(struct shm_set) + (uint64_t)place_words * 8, 128);
    struct plan p = {.readers_set = sizeof(struct shm_bus)};
    p.writers_set = p.readers_set + set_bytes;
    p.frames = p.writers_set + set_bytes;
    p.readers = p.frames + (uint64_t)config->frames * sizeof(struct shm_frame);
    p.bytes = p.readers + (uint64_t)config->readers * sizeof(struct shm_bus_reader);
    return p;
}

static bool is_possible(const struct shm_bus_config *config)
{
    return config->frames >= 1 && config->frames <= SHM_BUS_MAX_FRAMES && config->readers >= 1 &&
           config->readers <= SHM_BUS_MAX_READERS && config->consume_after <= SHM_BUS_MAX_READERS;
}

/* Point into the bus that lies in `block`, after its measures were checked against the block: 0 or CORRUPTED. */
static int view_block(struct shm_bus_view *view, const struct shm_segment *segment, uint32_t block)
{
    unsigned char *base = segment->base + shm_block_offset(segment, block);
    struct shm_bus *bus = (struct shm_bus *)base;
    struct shm_bus_config config = {.frames = SHM_ONCE(bus->frames),
                                    .readers = SHM_ONCE(bus->readers),
                                    .consume_after = SHM_ONCE(bus->consume_after),
                                    .frame_bytes = SHM_ONCE(bus->frame_bytes),
                                    .max_age_ns = SHM_ONCE(bus->max_age_ns)};
    struct plan p = plan(&config, segment->place_words);
    if (!is_possible(&config) || SHM_ONCE(bus->place_words) != segment->place_words ||
        p.bytes > shm_block_class_bytes(block))
        return SHM_CORRUPTED;
    view->bus = bus;
    view->block = block;
    view->config = config;
    view->place_words = segment->place_words;
    view->frames = (struct shm_frame *)(base + p.frames);
    view->readers = (struct shm_bus_reader *)(base + p.readers);
    view->waiting_readers = (struct shm_set *)(base + p.readers_set);
    view->waiting_writers = (struct shm_set *)(base + p.writers_set);
    return 0;
}

/* ---- life -------------------------------------------------------------------------------------------------- */

int shm_bus_make(struct shm_thread *self, struct shm_bus_view *view, const struct shm_bus_config *config)
{
    struct shm_segment *segment = self->segment;
    if (!is_possible(config))
        return SHM_INVALID;
    uint64_t bytes = plan(config, segment->place_words).bytes;
    struct shm_making made;
    int status = shm_record_begin(self, &made, bytes);
    if (status)
        return status;
    struct shm_bus *bus = (struct shm_bus *)made.bytes;
    memset(bus, 0, bytes); /* a block's bytes are whatever its last user left */
    bus->frames = config->frames;
    bus->readers = config->readers;
    bus->consume_after = config->consume_after;
    bus->frame_bytes = config->frame_bytes;
    bus->max_age_ns = config->max_age_ns;
    bus->place_words = segment->place_words;

    SHM_KILL_POINT(bus_make);
    status = shm_record_claim(self, &made, SHM_BOX_BUS, SHM_BLOCK_BUS, shm_member_id_self(self->member),
                              &bus->box, &bus->box_count);
    if (status)
        return status;
    *view = (struct shm_bus_view){.index = made.index, .count = made.count, .lease = made.lease};
    status = view_block(view, segment, made.block);
    SHM_KILL_POINT(bus_open);
    shm_record_open(self, &made);
    return status;
}

int shm_bus_open(struct shm_thread *self, struct shm_bus_view *view, uint32_t index, uint64_t count)
{
    shm_lease_index lease;
    uint32_t block;
    int status = shm_block_pin(self, index, count, SHM_BLOCK_BUS, &lease, &block);
    if (status)
        return status;
    *view = (struct shm_bus_view){.index = index, .count = count, .lease = lease};
    status = view_block(view, self->segment, block);
    if (status)
        shm_lease_release(self, lease);
    return status;
}

bool shm_bus_open_to_mend(struct shm_thread *self, struct shm_bus_view *view, uint32_t index, uint64_t count)
{
    return shm_record_opened_to_mend(self, shm_bus_open(self, view, index, count));
}

void shm_bus_release(struct shm_thread *self, struct shm_bus_view *view)
{
    if (view->bus)
        shm_lease_release(self, view->lease);
    view->bus = NULL;
}

bool shm_bus_is_closed(const struct shm_bus_view *view)
{
    return shm_word_state(atomic_load(&view->bus->gate)) == SHM_GATE_CLOSED;
}

uint32_t shm_bus_count_readers(const struct shm_bus_view *view)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < view->config.readers; i++)
        count += shm_word_state(atomic_load(&view->readers[i].word)) != SHM_READER_FREE;
    return count;
}

/* A frame is for every reader, and each writer looks for himself: all are woken, and no baton is passed. */
static bool passes_baton(const struct shm_box *none)
{
    (void)none;
    return false;
}

struct shm_waitable shm_bus_readers(struct shm_bus_view *view)
{
    return (struct shm_waitable){.kind = SHM_WAIT_FRAME,
                                 .object = view->index,
                                 .set = view->waiting_readers,
                                 .words = view->place_words,
                                 .is_true = passes_baton};
}

struct shm_waitable shm_bus_writers(struct shm_bus_view *view)
{
    return (struct shm_waitable){.kind = SHM_WAIT_PUBLISH,
                                 .object = view->index,
                                 .set = view->waiting_writers,
                                 .words = view->place_words,
                                 .is_true = passes_baton};
}

static void wake_readers(struct shm_thread *self, struct shm_bus_view *view)
{
    struct shm_waitable readers = shm_bus_readers(view);
    if (!shm_set_empty(readers.set))
        shm_wake_all(self, &readers);
}

static void wake_writers(struct shm_thread *self, struct shm_bus_view *view)
{
    struct shm_waitable writers = shm_bus_writers(view);
    if (!shm_set_empty(writers.set))
        shm_wake_all(self, &writers);
}

/* The gate is CLOSING by us, or by a dead one: it closes if the record is closed, and opens again if it is not. */
static void end_closing(struct shm_thread *self, struct shm_bus_view *view, shm_word closing)
{
    shm_word record = atomic_load(&shm_box_at(self->segment, view->index)->word);
    bool closed = shm_word_count(record) == view->count && shm_word_state(record) == SHM_BOX_CLOSED;
    atomic_compare_exchange_strong(
        &view->bus->gate, &closing,
        shm_word_next(closing, SHM_NOBODY, closed ? SHM_GATE_CLOSED : SHM_GATE_OPEN));
}

int shm_bus_destroy(struct shm_thread *self, struct shm_bus_view *view)
{
    shm_word gate = atomic_load(&view->bus->gate);
    shm_word closing = shm_word_next(gate, self->slot, SHM_GATE_CLOSING);
    if (shm_word_state(gate) == SHM_GATE_CLOSED)
        return SHM_CLOSED;
    if (shm_word_state(gate) != SHM_GATE_OPEN)
        return SHM_BUSY;
    SHM_KILL_POINT(bus_closing);
    if (!atomic_compare_exchange_strong(&view->bus->gate, &gate, closing)) /* B4 */
        return SHM_BUSY;
    bool has_readers = shm_bus_count_readers(view) > 0;
    if (!has_readers) {
        struct shm_box_record *record = shm_box_at(self->segment, view->index);
        shm_word word = atomic_load(&record->word);
        SHM_KILL_POINT(bus_close);
        if (shm_word_count(word) == view->count && shm_word_state(word) == SHM_BOX_OPEN)
            atomic_compare_exchange_strong(&record->word, &word,
                                           shm_word_make(view->count, shm_word_owner(word), SHM_BOX_CLOSED));
        SHM_KILL_POINT(bus_closed);
    }
    end_closing(self, view, closing);
    wake_readers(self, view);
    wake_writers(self, view);
    return has_readers ? SHM_BUSY : 0;
}

/* ---- publishing -------------------------------------------------------------------------------------------- */

struct publishing {
    struct shm_bus_view *view;
    struct shm_wait *wait; /* its deadline follows the patience of who is waited for */
    shm_lease_index lease;
    uint32_t head_bytes;
    uint64_t len_bytes;
    uint64_t deadline_ns;
};

/* By the bus's own rules: nobody gets it any more. */
static bool is_gone(const struct shm_bus_view *view, const struct shm_frame *frame, uint64_t position)
{
    uint64_t taken = atomic_load(&frame->taken), age = view->config.max_age_ns;
    if (view->config.consume_after && shm_word_count(taken) == (position & SHM_COUNT_MASK) &&
        shm_word_owner(taken) >= view->config.consume_after)
        return true;
    return age && shm_clock_ns() - atomic_load(&frame->stamp_ns) > age;
}

/* Does position `p` end a frame that somebody may still get? */
static bool ends_a_frame(const struct shm_bus_view *view, uint64_t p)
{
    uint64_t frames = view->config.frames;
    return p >= frames && !is_gone(view, &view->frames[p % frames], p - frames);
}

static bool is_in_the_way(const struct shm_bus_reader *reader, uint64_t oldest)
{
    return shm_word_state(atomic_load(&reader->word)) == SHM_READER_BLOCKS &&
           atomic_load(&reader->cursor) <= oldest;
}

/* Since when a writer waits for this reader at its cursor, in milliseconds: since now, unless it is written there. */
static uint64_t blame(struct shm_bus_reader *reader, uint64_t now_ms)
{
    uint64_t at = (atomic_load(&reader->cursor) & 0xFFFFFF) << 40, seen = atomic_load(&reader->blamed);
    if ((seen & ~BLAMED_MS_MASK) == at && seen & BLAMED_MS_MASK)
        return seen & BLAMED_MS_MASK;
    atomic_compare_exchange_strong(&reader->blamed, &seen, at | (now_ms & BLAMED_MS_MASK));
    return now_ms;
}

/* Is there a reader whose patience has not ended and that has not read the frame which position `p` would end? Those
 * that were waited for long enough are late from now on. *until: when this changes by itself; *slot: who it is. */
static bool must_wait(struct shm_bus_view *view, uint64_t p, uint64_t *until, uint32_t *slot)
{
    bool found = false;
    *until = SHM_FOREVER;
    if (!ends_a_frame(view, p))
        return false;
    if (view->config.max_age_ns)
        *until = atomic_load(&view->frames[p % view->config.frames].stamp_ns) + view->config.max_age_ns + 1;
    for (uint32_t i = 0; i < view->config.readers; i++) {
        struct shm_bus_reader *reader = &view->readers[i];
        if (!is_in_the_way(reader, p - view->config.frames))
            continue;
        shm_word word = atomic_load(&reader->word);
        uint64_t now_ms = shm_clock_ns() / MS_NS, since = blame(reader, now_ms);
        uint64_t patience_ns = atomic_load(&reader->patience_ns);
        if (patience_ns > SHM_BUS_MAX_PATIENCE_NS)
            patience_ns = SHM_BUS_MAX_PATIENCE_NS;
        uint64_t limit = since + patience_ns / MS_NS + 2; /* never early */
        if (now_ms < limit) {
            found = true;
            *slot = shm_word_owner(word);
            *until = limit * MS_NS < *until ? limit * MS_NS : *until;
        } else if (shm_word_state(word) == SHM_READER_BLOCKS) {
            SHM_KILL_POINT(bus_late);
            atomic_compare_exchange_strong(
                &reader->word, &word,
                shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_READER_LATE));
        }
    }
    return found;
}

/* The same, without doing anything. */
static bool has_room(const struct shm_bus_view *view)
{
    uint64_t p = atomic_load(&view->bus->tail);
    if (!ends_a_frame(view, p))
        return true;
    for (uint32_t i = 0; i < view->config.readers; i++)
        if (is_in_the_way(&view->readers[i], p - view->config.frames))
            return false;
    return true;
}

/* May position p be written here? Over the frame of the lap before, or over what was left by one who died. */
static bool may_hold(const struct shm_bus_view *view, shm_word word, uint64_t p)
{
    uint32_t state = shm_word_state(word);
    if (state == SHM_FRAME_FREE)
        return word == 0 && p < view->config.frames;
    if (shm_word_count(word) == (p & SHM_COUNT_MASK))
        return state == SHM_FRAME_CLAIMED || state == SHM_FRAME_READY;
    return state == SHM_FRAME_READY && p >= view->config.frames &&
           shm_word_count(word) == ((p - view->config.frames) & SHM_COUNT_MASK);
}

/* Under the right: the oldest frame goes, and the block is frame p. Every step may be the last: what is not below
 * tail does not count, and the next who has the right begins anew with what the frame refers to. */
static int place(struct shm_thread *self, const struct publishing *publishing, uint64_t p)
{
    struct shm_bus_view *view = publishing->view;
    struct shm_frame *frame = &view->frames[p % view->config.frames];
    if (!may_hold(view, atomic_load(&frame->word), p))
        return SHM_CORRUPTED;
    SHM_KILL_POINT(bus_claim);
    atomic_exchange(&frame->word, shm_word_make(p, self->slot, SHM_FRAME_CLAIMED)); /* B2 */
    SHM_KILL_POINT(bus_evict);
    shm_lease_drop_warm(self, &frame->lease, atomic_load(&frame->birth));
    SHM_KILL_POINT(bus_refer);
    atomic_store(&frame->birth, shm_lease_birth(self->segment, publishing->lease));
    atomic_store(&frame->lease, publishing->lease + 1);
    atomic_store(&frame->head_bytes, publishing->head_bytes);
    atomic_store(&frame->len_bytes, publishing->len_bytes);
    atomic_store(&frame->taken, shm_word_make(p, 0, 0));
    atomic_store(&frame->stamp_ns, shm_clock_ns());
    SHM_KILL_POINT(bus_fly);
    shm_lease_fly(self, publishing->lease);
    SHM_KILL_POINT(bus_ready);
    atomic_store(&frame->word, shm_word_make(p, SHM_NOBODY, SHM_FRAME_READY));
    SHM_KILL_POINT(bus_publish);
    atomic_exchange(&view->bus->tail, p + 1); /* B1, W1 */
    SHM_KILL_POINT(bus_published);
    wake_readers(self, view);
    return 0;
}

static int attempt_publish(struct shm_thread *self, void *context)
{
    struct publishing *publishing = context;
    struct shm_bus_view *view = publishing->view;
    struct shm_wait *wait = publishing->wait;
    uint64_t until;
    if (atomic_load(&view->released) || shm_bus_is_closed(view))
        return SHM_CLOSED;
    wait->deadline_ns = publishing->deadline_ns;
    if (must_wait(view, atomic_load(&view->bus->tail), &until, &wait->peer)) {
        wait->deadline_ns = until < publishing->deadline_ns ? until : publishing->deadline_ns;
        return SHM_FULL;
    }
    shm_word right = atomic_load(&view->bus->right);
    wait->peer = shm_word_owner(right);
    if (shm_word_state(right) != SHM_PUBLISH_FREE)
        return SHM_BUSY;
    shm_word held = shm_word_next(right, self->slot, SHM_PUBLISH_HELD);
    SHM_KILL_POINT(bus_right);
    if (!atomic_compare_exchange_strong(&view->bus->right, &right, held))
        return SHM_BUSY;
    uint64_t p = atomic_load(&view->bus->tail);
    int status = shm_bus_is_closed(view) ? SHM_CLOSED : SHM_FULL;
    if (status == SHM_FULL && !must_wait(view, p, &until, &wait->peer))
        status = place(self, publishing, p);
    else if (until < publishing->deadline_ns)
        wait->deadline_ns = until;
    SHM_KILL_POINT(bus_release);
    atomic_exchange(&view->bus->right, shm_word_next(held, SHM_NOBODY, SHM_PUBLISH_FREE)); /* W1 */
    SHM_KILL_POINT(bus_released);
    wake_writers(self, view);
    return status;
}

static bool ready_to_publish(struct shm_thread *self, void *context)
{
    const struct publishing *publishing = context;
    const struct shm_bus_view *view = publishing->view;
    (void)self;
    return shm_word_state(atomic_load(&view->bus->right)) == SHM_PUBLISH_FREE && has_room(view);
}

/* Whoever holds the right is somebody: else nobody will ever give it back. */
static int check_right(struct shm_thread *self, void *context)
{
    const struct publishing *publishing = context;
    const struct shm_bus *bus = publishing->view->bus;
    shm_word right = atomic_load(&bus->right);
    if (shm_word_state(right) != SHM_PUBLISH_FREE &&
        (shm_word_state(right) != SHM_PUBLISH_HELD ||
         shm_slot_is_empty(self->segment, shm_word_owner(right))) &&
        atomic_load(&bus->right) == right)
        return SHM_CORRUPTED;
    return 0;
}

int shm_bus_publish(struct shm_thread *self, struct shm_bus_view *view, shm_lease_index lease,
                    uint32_t head_bytes, uint64_t len_bytes, uint64_t deadline_ns)
{
    uint32_t block;
    if (head_bytes > len_bytes || !shm_lease_find(self->segment, lease, len_bytes, &block))
        return SHM_INVALID;
    if (len_bytes - head_bytes > view->config.frame_bytes)
        return SHM_TOO_LARGE;
    struct shm_waitable line = shm_bus_writers(view);
    struct shm_wait wait = {.waitables = &line,
                            .count = 1,
                            .attempt = attempt_publish,
                            .ready = ready_to_publish,
                            .slice = check_right};
    struct publishing publishing = {.view = view,
                                    .wait = &wait,
                                    .lease = lease,
                                    .head_bytes = head_bytes,
                                    .len_bytes = len_bytes,
                                    .deadline_ns = deadline_ns};
    wait.context = &publishing;
    int status = attempt_publish(self, &publishing);
    if (deadline_ns == 0) {
        uint64_t until = shm_clock_ns() + BUSY_LIMIT_NS;
        while (status == SHM_BUSY && shm_clock_ns() < until)
            status = attempt_publish(self, &publishing);
        return status == SHM_BUSY ? SHM_FULL : status;
    }
    /* The wait also ends when the patience of a reader does, which makes room. */
    while (status == SHM_FULL || status == SHM_BUSY ||
           (status == SHM_TIMEOUT && shm_clock_ns() < deadline_ns))
        status = shm_wait(self, &wait);
    return status;
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

int shm_bus_subscribe(struct shm_thread *self, struct shm_bus_view *view, uint64_t patience_ns,
                      struct shm_subscription *subscription, uint64_t deadline_ns)
{
    struct shm_bus *bus = view->bus;
    *subscription = (struct shm_subscription){0};
    for (;;) {
        struct shm_bus_reader *reader = NULL;
        shm_word mine = 0;
        for (uint32_t i = 0; i < view->config.readers && !reader; i++) {
            shm_word word = atomic_load(&view->readers[i].word);
            mine = shm_word_next(word, self->slot, SHM_READER_JOINING);
            if (shm_word_state(word) != SHM_READER_FREE)
                continue;
            SHM_KILL_POINT(bus_join);
            if (atomic_compare_exchange_strong(&view->readers[i].word, &word, mine)) {
                reader = &view->readers[i];
                subscription->index = i;
            }
        }
        if (!reader)
            return shm_bus_is_closed(view) ? SHM_CLOSED : SHM_LIMIT;
        SHM_KILL_POINT(bus_joined);
        atomic_store(&reader->patience_ns, patience_ns);
        atomic_store(&reader->blamed, 0);
        atomic_store(&reader->cursor, atomic_load(&bus->tail));
        uint32_t state = patience_ns ? SHM_READER_BLOCKS : SHM_READER_LOSES;
        atomic_exchange(&reader->word, shm_word_make(shm_word_count(mine), self->slot, state)); /* B4 */
        SHM_KILL_POINT(bus_look);
        /* From here on writers wait for us. What was published before is not ours, and nor is what a writer ends
         * that had looked before: it publishes at this tail, at least. */
        atomic_store(&reader->cursor, atomic_load(&bus->tail));
        uint32_t gate = shm_word_state(atomic_load(&bus->gate));
        atomic_store(&subscription->count, shm_word_count(mine));
        if (gate == SHM_GATE_OPEN)
            return 0;
        shm_bus_unsubscribe(self, view, subscription);
        if (gate == SHM_GATE_CLOSED)
            return SHM_CLOSED;
        if (gate != SHM_GATE_CLOSING)
            return SHM_CORRUPTED;
        if (shm_clock_ns() >= deadline_ns)
            return SHM_TIMEOUT;
        shm_clock_sleep(STUCK_PAUSE_NS);
    }
}

/* The word of this subscription's reader; false: it has left. */
static bool is_reading(const struct shm_thread *self, const struct shm_subscription *subscription,
                       const struct shm_bus_reader *reader, shm_word *word)
{
    uint64_t count = atomic_load(&subscription->count);
    *word = atomic_load(&reader->word);
    return count && shm_word_count(*word) == count && shm_word_owner(*word) == self->slot &&
           shm_word_state(*word) >= SHM_READER_LOSES;
}

void shm_bus_unsubscribe(struct shm_thread *self, struct shm_bus_view *view,
                         struct shm_subscription *subscription)
{
    struct shm_bus_reader *reader = &view->readers[subscription->index];
    shm_word word;
    while (is_reading(self, subscription, reader, &word)) {
        SHM_KILL_POINT(bus_leave);
        if (atomic_compare_exchange_strong(&reader->word, &word,
                                           shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_READER_FREE)))
            break; /* else a writer has made us late meanwhile */
    }
    atomic_store(&subscription->count, 0);
    SHM_KILL_POINT(bus_left);
    wake_writers(self, view);
    wake_readers(self, view); /* other threads of ours that wait with this subscription */
}

/* The cursor has moved: whoever waits for this reader may go on. */
static void has_moved(struct shm_thread *self, struct shm_bus_view *view, struct shm_bus_reader *reader,
                      bool received)
{
    SHM_KILL_POINT(bus_taken);
    shm_word word = atomic_load(&reader->word);
    if (received && shm_word_state(word) == SHM_READER_LATE)
        atomic_compare_exchange_strong(
            &reader->word, &word,
            shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_READER_BLOCKS));
    if (shm_word_state(word) != SHM_READER_LOSES)
        wake_writers(self, view);
}

/* Move past what cannot be had any more, and count it once: whoever moves the cursor does. */
static int pass_over(struct shm_thread *self, struct shm_bus_view *view, struct shm_bus_reader *reader,
                     uint64_t from, uint64_t to, _Atomic uint64_t *counter)
{
    uint64_t passed = to - from;
    SHM_KILL_POINT(bus_take);
    if (atomic_compare_exchange_strong(&reader->cursor, &from, to)) {
        atomic_fetch_add(counter, passed);
        has_moved(self, view, reader, false);
    }
    return LOOK_AGAIN;
}

/* One more reader has the frame of this position; false: as many as may have had it already. */
static bool count_taker(struct shm_frame *frame, uint64_t position, uint32_t limit)
{
    uint64_t taken = atomic_load(&frame->taken);
    SHM_KILL_POINT(bus_count);
    for (;;) {
        if (shm_word_count(taken) != (position & SHM_COUNT_MASK))
            return true; /* it has ended meanwhile, and nobody else can have it */
        if (shm_word_owner(taken) >= limit)
            return false;
        if (atomic_compare_exchange_weak(&frame->taken, &taken,
                                         shm_word_make(position, shm_word_owner(taken) + 1, 0)))
            return true;
    }
}

struct reading {
    struct shm_bus_view *view;
    struct shm_subscription *subscription;
    uint64_t room_bytes;
    struct shm_taken *taken;
    bool stuck; /* the block is locked by one who was stopped there */
};

/* The frame at the cursor, whose word is `ready`: hold its block, then see that it is still the frame's. */
static int take(struct shm_thread *self, const struct reading *r, struct shm_bus_reader *reader,
                struct shm_frame *frame, uint64_t cursor, shm_word ready)
{
    struct shm_bus_view *view = r->view;
    struct shm_taken taken = {.position = cursor,
                              .len_bytes = atomic_load(&frame->len_bytes),
                              .head_bytes = atomic_load(&frame->head_bytes),
                              .stamp_ns = atomic_load(&frame->stamp_ns)};
    uint32_t lease = atomic_load(&frame->lease), block = 0;
    bool sound = lease && shm_index_ok(self->segment, SHM_TABLE_LEASES, lease - 1) &&
                 shm_lease_find(self->segment, lease - 1, taken.len_bytes, &block) &&
                 taken.head_bytes <= taken.len_bytes;
    SHM_KILL_POINT(bus_hold);
    int status = sound ? shm_block_hold(self, block, &taken.lease) : SHM_CORRUPTED;
    if (atomic_load(&frame->word) != ready) { /* B2 */
        if (status == 0)
            shm_lease_release(self, taken.lease);
        return LOOK_AGAIN;
    }
    if (status)
        return status == SHM_NOT_FOUND ? SHM_CORRUPTED : status;
    if (taken.len_bytes - taken.head_bytes > r->room_bytes) {
        *r->taken = taken;
        shm_lease_release(self, taken.lease);
        return SHM_TOO_LARGE;
    }
    SHM_KILL_POINT(bus_take);
    if (!atomic_compare_exchange_strong(&reader->cursor, &cursor, cursor + 1)) { /* B3 */
        shm_lease_release(self, taken.lease);
        return LOOK_AGAIN; /* another thread of ours has taken it */
    }
    has_moved(self, view, reader, true);
    bool counted =
        !view->config.consume_after || count_taker(frame, taken.position, view->config.consume_after);
    if (view->config.consume_after) {
        SHM_KILL_POINT(bus_counted);
        wake_writers(self, view); /* nobody is waited for who has not read it */
    }
    if (!counted) {
        shm_lease_release(self, taken.lease);
        atomic_fetch_add(&r->subscription->skipped, 1);
        return LOOK_AGAIN;
    }
    *r->taken = taken;
    return 0;
}

static int look(struct shm_thread *self, const struct reading *r)
{
    struct shm_bus_view *view = r->view;
    struct shm_bus_reader *reader = &view->readers[r->subscription->index];
    uint64_t frames = view->config.frames;
    shm_word word;
    if (!is_reading(self, r->subscription, reader, &word))
        return SHM_CLOSED;
    uint64_t cursor = atomic_load(&reader->cursor), tail = atomic_load(&view->bus->tail); /* B1 */
    if (cursor == tail)
        return shm_bus_is_closed(view) ? SHM_CLOSED : SHM_EMPTY;
    if (cursor > tail)
        return SHM_CORRUPTED;
    if (tail - cursor > frames)
        return pass_over(self, view, reader, cursor, tail - frames, &r->subscription->missed);
    struct shm_frame *frame = &view->frames[cursor % frames];
    shm_word seen = atomic_load(&frame->word);
    if (seen != shm_word_make(cursor, SHM_NOBODY, SHM_FRAME_READY)) {
        if (shm_word_count(seen) == ((cursor + frames) & SHM_COUNT_MASK)) /* being written over, perhaps */
            return pass_over(self, view, reader, cursor, cursor + 1, &r->subscription->missed);
        return atomic_load(&view->bus->tail) != tail || atomic_load(&reader->cursor) != cursor
                   ? LOOK_AGAIN
                   : SHM_CORRUPTED;
    }
    if (is_gone(view, frame, cursor)) {
        if (atomic_load(&frame->word) != seen)
            return LOOK_AGAIN;
        return pass_over(self, view, reader, cursor, cursor + 1, &r->subscription->skipped);
    }
    return take(self, r, reader, frame, cursor, seen);
}

static int attempt_receive(struct shm_thread *self, void *context)
{
    struct reading *r = context;
    int status = LOOK_AGAIN;
    r->stuck = false;
    if (atomic_load(&r->view->released))
        return SHM_CLOSED;
    /* What was there when we came, and then only what is published meanwhile. */
    for (uint32_t looks = 2 * r->view->config.frames + 16; status == LOOK_AGAIN && looks; looks--)
        status = look(self, r);
    r->stuck = status == SHM_BUSY || status == LOOK_AGAIN;
    return r->stuck ? SHM_REFUSED : status; /* which ends a wait: nobody posts when that ends */
}

static bool ready_to_receive(struct shm_thread *self, void *context)
{
    const struct reading *r = context;
    const struct shm_bus_reader *reader = &r->view->readers[r->subscription->index];
    shm_word word;
    return !is_reading(self, r->subscription, reader, &word) ||
           atomic_load(&reader->cursor) != atomic_load(&r->view->bus->tail);
}

int shm_bus_receive(struct shm_thread *self, struct shm_bus_view *view, struct shm_subscription *subscription,
                    uint64_t room_bytes, struct shm_taken *taken, uint64_t deadline_ns)
{
    struct reading reading = {
        .view = view, .subscription = subscription, .room_bytes = room_bytes, .taken = taken};
    struct shm_waitable waitable = shm_bus_readers(view);
    struct shm_wait wait = {.waitables = &waitable,
                            .count = 1,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_receive,
                            .ready = ready_to_receive,
                            .context = &reading};
    for (;;) {
        int status = shm_wait(self, &wait);
        if (!reading.stuck || status != SHM_REFUSED)
            return status;
        if (deadline_ns == 0)
            return SHM_EMPTY;
        if (shm_clock_ns() >= deadline_ns)
            return SHM_TIMEOUT;
        if (self->interrupted && self->interrupted(self))
            return SHM_INTERRUPTED;
        shm_clock_sleep(STUCK_PAUSE_NS);
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------- */

void shm_bus_drop(struct shm_thread *self, uint32_t index, uint32_t block)
{
    struct shm_segment *segment = self->segment;
    struct shm_bus_view view = {0};
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index) || view_block(&view, segment, block))
        return;
    for (uint32_t i = 0; i < view.config.frames; i++)
        shm_lease_drop(self, &view.frames[i].lease, atomic_load(&view.frames[i].birth));
    uint64_t count = SHM_ONCE(view.bus->box_count);
    shm_name_drop_box(self, index, count);
    struct shm_box_record *record = shm_box_at(segment, index);
    shm_word word = atomic_load(&record->word);
    if (shm_word_count(word) == count && atomic_load(&record->place_of_ring) == (uint64_t)block + 1)
        atomic_compare_exchange_strong(&record->word, &word, shm_word_make(count, SHM_NOBODY, SHM_BOX_FREE));
}

static void reap_one(struct shm_thread *self, struct shm_bus_view *view, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    shm_word right = atomic_load(&view->bus->right), gate = atomic_load(&view->bus->gate);
    if (shm_word_state(right) == SHM_PUBLISH_HELD && shm_word_owner(right) == victim &&
        shm_still_dying(segment, victim, word))
        atomic_compare_exchange_strong(&view->bus->right, &right,
                                       shm_word_next(right, SHM_NOBODY, SHM_PUBLISH_FREE));
    if (shm_word_state(gate) == SHM_GATE_CLOSING && shm_word_owner(gate) == victim &&
        shm_still_dying(segment, victim, word))
        end_closing(self, view, gate);
    for (uint32_t i = 0; i < view->config.readers; i++) {
        struct shm_bus_reader *reader = &view->readers[i];
        shm_word seen = atomic_load(&reader->word);
        /* A writer may make it late between the two: once, for then it waits for it no more. */
        for (int n = 0; n < 2 && shm_word_state(seen) != SHM_READER_FREE && shm_word_owner(seen) == victim &&
                        shm_still_dying(segment, victim, word);
             n++)
            if (atomic_compare_exchange_strong(
                    &reader->word, &seen, shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_READER_FREE)))
                break;
    }
    /* Whoever the victim was about to wake: it may have died between making something true and waking. */
    wake_readers(self, view);
    wake_writers(self, view);
}

void shm_bus_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_BOXES); i++) {
        struct shm_box_record *record = shm_box_at(self->segment, i);
        shm_word seen = atomic_load(&record->word);
        struct shm_bus_view view;
        if (shm_word_state(seen) < SHM_BOX_OPEN || record->kind != SHM_BOX_BUS ||
            !shm_bus_open_to_mend(self, &view, i, shm_word_count(seen)))
            continue;
        reap_one(self, &view, victim, word);
        shm_bus_release(self, &view);
    }
}
