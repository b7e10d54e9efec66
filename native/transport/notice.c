#include "transport/notice.h"

#include <string.h>

#include "base/killpoint.h"
#include "base/status.h"

static inline uint64_t number_of(shm_word word, uint32_t index)
{
    return shm_notice_number(shm_word_count(word), index);
}

/* The notice of this number, or NULL. */
static struct shm_notice *find(const struct shm_segment *segment, uint64_t number, uint32_t *index)
{
    *index = (uint32_t)(number & 0xFFFFF) - 1;
    return shm_index_ok(segment, SHM_TABLE_NOTICES, *index) ? shm_notice_at(segment, *index) : NULL;
}

/* The notice has fired: its mailbox should look. Said again by whoever finds it fired, for its firer may have died. */
static bool tell_watcher(struct shm_thread *self, const struct shm_notice *notice, bool back)
{
    return shm_box_tell(self, atomic_load(back ? &notice->back_box : &notice->box),
                        atomic_load(back ? &notice->back_life : &notice->life));
}

/* Keep how the target ended, as far as it is known. */
static void keep_cause(const struct shm_segment *segment, struct shm_notice *notice, shm_word armed,
                       shm_member_id target)
{
    uint64_t generation = shm_word_count(armed);
    uint64_t cause = generation << 20, undelivered = generation << 32;
    atomic_compare_exchange_strong(&notice->undelivered, &undelivered,
                                   undelivered | shm_member_undelivered(segment, target));
    atomic_compare_exchange_strong(&notice->cause, &cause,
                                   cause | (shm_member_cause(segment, target) & 0xFFFFF));
}

/* The member `target` has ended; of a link with `back`, its maker has, and the other end is told. `own`: the mailbox, if it
 * is the watcher who finds its target dead, and has it open. */
static void fire(struct shm_thread *self, struct shm_notice *notice, shm_word armed, shm_member_id target,
                 bool back, struct shm_box *own)
{
    SHM_KILL_POINT(notice_cause);
    if (shm_word_state(armed) == SHM_NOTICE_ARMED)
        keep_cause(self->segment, notice, armed, target);
    SHM_KILL_POINT(notice_fire);
    shm_word fired = shm_word_make(shm_word_count(armed), shm_word_owner(armed), SHM_NOTICE_FIRED);
    if (back)
        fired = shm_word_make(shm_word_count(armed), atomic_load(&notice->target) & 0xFFFF, SHM_NOTICE_BACK);
    if (!atomic_compare_exchange_strong(&notice->word, &armed, fired) && armed != fired)
        return;
    SHM_KILL_POINT(notice_fired);
    if (own)
        shm_ring_tell(self, own);
    else
        tell_watcher(self, notice, back);
}

static bool clear(struct shm_notice *notice, shm_word word)
{
    return atomic_compare_exchange_strong(&notice->word, &word,
                                          shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_NOTICE_FREE));
}

/* Claim a word and say where it will be received: its index, or an error. */
static int64_t make(struct shm_thread *self, uint32_t kind, const struct shm_box *box, shm_member_id target,
                    struct shm_notice **made, shm_word *word)
{
    int64_t index = shm_pool_claim(self->segment, SHM_TABLE_NOTICES, self->slot, SHM_NOTICE_MAKING);
    if (index < 0)
        return index;
    struct shm_notice *notice = *made = shm_notice_at(self->segment, (uint32_t)index);
    *word = atomic_load(&notice->word);
    atomic_store(&notice->target, target);
    atomic_store(&notice->box, box->index);
    atomic_store(&notice->life, box->count);
    atomic_store(&notice->kind, kind);
    atomic_store(&notice->maker, 0);
    atomic_store(&notice->cause, shm_word_count(*word) << 20);
    atomic_store(&notice->undelivered, shm_word_count(*word) << 32);
    return index;
}

/* ---- monitors ---------------------------------------------------------------------------------------------- */

int64_t shm_notice_arm(struct shm_thread *self, struct shm_box *box, shm_member_id target)
{
    struct shm_notice *notice;
    shm_word word;
    SHM_KILL_POINT(notice_arm);
    int64_t index = make(self, SHM_KIND_EXIT, box, target, &notice, &word);
    if (index < 0)
        return index;
    shm_word armed = shm_word_make(shm_word_count(word), self->slot, SHM_NOTICE_ARMED);
    atomic_exchange(&notice->word, armed);
    if (!shm_member_lives(self->segment, target))
        fire(self, notice, armed, target, false, box);
    return (int64_t)number_of(word, (uint32_t)index);
}

bool shm_notice_disarm(struct shm_thread *self, uint64_t number)
{
    uint32_t index;
    struct shm_notice *notice = find(self->segment, number, &index);
    if (!notice)
        return false;
    shm_word word = atomic_load(&notice->word);
    while (number_of(word, index) == number && shm_word_owner(word) == self->slot &&
           shm_word_state(word) >= SHM_NOTICE_ARMED)
        if (atomic_compare_exchange_strong(&notice->word, &word,
                                           shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_NOTICE_FREE)))
            return true;
    return false;
}

/* ---- links ------------------------------------------------------------------------------------------------- */

/* Does the notice link these two, whoever made it? Read between two looks at its word. */
static bool links(const struct shm_notice *notice, shm_member_id one, shm_member_id other)
{
    shm_member_id maker = atomic_load(&notice->maker), target = atomic_load(&notice->target);
    return atomic_load(&notice->kind) == SHM_KIND_EXIT &&
           ((maker == one && target == other) || (maker == other && target == one));
}

/* Another link of the two, TENTATIVE or ARMED; its word. */
static struct shm_notice *find_link(const struct shm_segment *segment, uint32_t mine, shm_member_id one,
                                    shm_member_id other, uint32_t *index, shm_word *word)
{
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(segment, i);
        *word = atomic_load(&notice->word);
        uint32_t state = shm_word_state(*word);
        if (i == mine || (state != SHM_NOTICE_TENTATIVE && state != SHM_NOTICE_ARMED) ||
            !links(notice, one, other))
            continue;
        if (atomic_load(&notice->word) != *word) {
            i--; /* it changed while we read it */
            continue;
        }
        *index = i;
        return notice;
    }
    return NULL;
}

/* It is no link any more, and its maker's to free. */
static void put_back(struct shm_notice *notice, shm_word tentative)
{
    SHM_KILL_POINT(link_back);
    atomic_compare_exchange_strong(
        &notice->word, &tentative,
        shm_word_make(shm_word_count(tentative), shm_word_owner(tentative), SHM_NOTICE_MAKING));
}

/* Of the TENTATIVE links of two the first becomes theirs, and the others are put back: whoever looks does that for all,
 * whose makers may have stopped or died. Are they linked now, as far as we see? If not, look again. */
static bool settle(struct shm_thread *self, uint32_t index, shm_word tentative, shm_member_id one,
                   shm_member_id other)
{
    struct shm_notice *first = shm_notice_at(self->segment, index), *rival;
    shm_word seen;
    uint32_t at;
    while ((rival = find_link(self->segment, index, one, other, &at, &seen))) {
        if (shm_word_state(seen) == SHM_NOTICE_ARMED) {
            put_back(first, tentative);
            return true;
        }
        if (at > index) {
            put_back(rival, seen);
            continue;
        }
        put_back(first, tentative);
        first = rival;
        index = at;
        tentative = seen;
    }
    SHM_KILL_POINT(link_ready);
    shm_word armed = shm_word_make(shm_word_count(tentative), shm_word_owner(tentative), SHM_NOTICE_ARMED);
    if (atomic_compare_exchange_strong(&first->word, &tentative, armed))
        return true;
    return shm_word_count(tentative) == shm_word_count(armed) &&
           shm_word_state(tentative) >= SHM_NOTICE_ARMED;
}

int shm_notice_link(struct shm_thread *self, struct shm_box *box, shm_member_id other, uint32_t other_box,
                    uint64_t other_life)
{
    shm_member_id me = shm_member_id_self(self->member);
    for (;;) {
        struct shm_notice *notice;
        shm_word making;
        SHM_KILL_POINT(notice_arm);
        int64_t index = make(self, SHM_KIND_EXIT, box, other, &notice, &making);
        if (index < 0)
            return (int)index;
        atomic_store(&notice->maker, me);
        atomic_store(&notice->back_box, other_box);
        atomic_store(&notice->back_life, other_life);
        SHM_KILL_POINT(link_tentative);
        shm_word tentative = shm_word_make(shm_word_count(making), self->slot, SHM_NOTICE_TENTATIVE);
        atomic_exchange(&notice->word, tentative);
        bool linked = settle(self, (uint32_t)index, tentative, me, other);
        shm_word word = atomic_load(&notice->word);
        if (word != making) { /* ours was the first, and may have ended since */
            if (shm_word_state(word) == SHM_NOTICE_ARMED && shm_word_count(word) == shm_word_count(making) &&
                !shm_member_lives(self->segment, other))
                fire(self, notice, word, other, false, box);
            return 0;
        }
        SHM_KILL_POINT(link_again);
        clear(notice, making);
        if (linked)
            return SHM_REFUSED;
    }
}

bool shm_notice_unlink(struct shm_thread *self, shm_member_id other)
{
    shm_member_id me = shm_member_id_self(self->member);
    bool found = false;
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(self->segment, i);
        for (;;) {
            shm_word word = atomic_load(&notice->word);
            if (shm_word_state(word) < SHM_NOTICE_ARMED || !links(notice, me, other))
                break;
            if (clear(notice, word)) {
                found = true;
                break;
            }
        }
    }
    return found;
}

/* ---- timers ------------------------------------------------------------------------------------------------ */

int64_t shm_notice_set(struct shm_thread *self, const struct shm_box *box, const struct shm_message *message,
                       uint64_t period_ns)
{
    struct shm_notice *notice;
    shm_word word;
    if (message->lease || message->len_bytes > SHM_NOTICE_INLINE)
        return SHM_TOO_LARGE;
    SHM_KILL_POINT(timer_arm);
    int64_t index = make(self, SHM_KIND_TIMER, box, shm_member_id_self(self->member), &notice, &word);
    if (index < 0)
        return index;
    uint64_t words[SHM_NOTICE_INLINE / 8] = {0};
    memcpy(words, message->body, message->len_bytes);
    atomic_store(&notice->header, message->header);
    atomic_store(&notice->period_ns, period_ns);
    atomic_store(&notice->format, message->format);
    atomic_store(&notice->len_bytes, message->len_bytes);
    for (uint32_t i = 0; i < (message->len_bytes + 7) / 8; i++)
        atomic_store_explicit(&notice->body[i], words[i], memory_order_release);
    atomic_exchange(&notice->word, shm_word_make(shm_word_count(word), self->slot, SHM_NOTICE_ARMED));
    return (int64_t)number_of(word, (uint32_t)index);
}

int shm_notice_tick(struct shm_thread *self, uint64_t number, uint64_t due_ns)
{
    uint32_t index;
    struct shm_notice *notice = find(self->segment, number, &index);
    if (!notice)
        return SHM_NOT_FOUND;
    for (;;) {
        shm_word word = atomic_load(&notice->word);
        uint32_t state = shm_word_state(word);
        if (number_of(word, index) != number || shm_word_owner(word) != self->slot ||
            state < SHM_NOTICE_ARMED)
            return SHM_NOT_FOUND;
        uint32_t box = atomic_load(&notice->box);
        uint64_t life = atomic_load(&notice->life);
        if (!shm_box_is_open(self->segment, box,
                             life)) { /* before or after it fired: one of us sees the other */
            clear(notice, word);
            continue;
        }
        if (state == SHM_NOTICE_FIRED) /* told again: the last time it may have failed */
            return shm_box_tell(self, box, life) || !shm_box_is_open(self->segment, box, life) ? 0 : SHM_BUSY;
        atomic_store(&notice->due_ns, due_ns);
        SHM_KILL_POINT(timer_fire);
        atomic_compare_exchange_strong(&notice->word, &word,
                                       shm_word_make(shm_word_count(word), self->slot, SHM_NOTICE_FIRED));
        SHM_KILL_POINT(timer_fired);
    }
}

bool shm_notice_is_set(const struct shm_member *member, uint64_t number)
{
    uint32_t index;
    const struct shm_notice *notice = find(member->segment, number, &index);
    shm_word word = notice ? atomic_load(&notice->word) : 0;
    return notice && number_of(word, index) == number && shm_word_owner(word) == member->slot &&
           shm_word_state(word) >= SHM_NOTICE_ARMED;
}

void shm_notice_drop_box(struct shm_thread *self, uint32_t index, uint64_t count)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(self->segment, i);
        shm_word word = atomic_load(&notice->word);
        if (shm_word_state(word) == SHM_NOTICE_FIRED && atomic_load(&notice->kind) == SHM_KIND_TIMER &&
            atomic_load(&notice->box) == index && atomic_load(&notice->life) == count)
            clear(notice, word);
    }
}

/* The setter of this tick has ended: it is on its way like a message, while its mailbox is open. */
static void orphan(struct shm_thread *self, struct shm_notice *notice, shm_word seen)
{
    uint32_t box = atomic_load(&notice->box);
    uint64_t life = atomic_load(&notice->life);
    shm_word left = shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_NOTICE_FIRED);
    if (seen != left && !atomic_compare_exchange_strong(&notice->word, &seen, left))
        return;
    tell_watcher(self, notice, false);
    if (!shm_box_is_open(self->segment, box, life))
        clear(notice, left);
}

/* ---- reap -------------------------------------------------------------------------------------------------- */

/* The victim's part in one notice; true when its word is to be read again. */
static bool mend(struct shm_thread *self, struct shm_notice *notice, shm_word seen, uint32_t victim,
                 shm_member_id id)
{
    uint32_t state = shm_word_state(seen);
    shm_member_id maker = atomic_load(&notice->maker), target = atomic_load(&notice->target);
    bool is_tick = state == SHM_NOTICE_FIRED && atomic_load(&notice->kind) == SHM_KIND_TIMER;
    if (is_tick && target == id) {
        orphan(self, notice, seen);
    } else if (shm_word_owner(seen) == victim && state == SHM_NOTICE_ARMED && maker == id &&
               shm_member_lives(self->segment, target)) {
        fire(self, notice, seen, id, true, NULL);
    } else if (shm_word_owner(seen) == victim) {
        clear(notice, seen);
    } else if (state == SHM_NOTICE_BACK && maker == id) {
        fire(self, notice, seen, id, true, NULL); /* who fired it may have died before he told */
    } else if (state >= SHM_NOTICE_ARMED && target == id) {
        fire(self, notice, seen, id, false, NULL);
    } else {
        return false;
    }
    shm_word now = atomic_load(&notice->word);
    return now != seen && shm_word_count(now) == shm_word_count(seen) && shm_word_owner(now) == victim;
}

void shm_notice_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    shm_member_id id = shm_member_id_of(word, victim);
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(segment, i);
        shm_word seen; /* before the target: the generation decides */
        do
            seen = atomic_load(&notice->word);
        while (shm_word_state(seen) != SHM_NOTICE_FREE && shm_still_dying(segment, victim, word) &&
               mend(self, notice, seen, victim, id));
    }
}
