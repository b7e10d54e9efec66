#include "transport/notice.h"

#include "base/killpoint.h"
#include "base/status.h"

static inline uint64_t number_of(shm_word word, uint32_t index)
{
    return shm_notice_number(shm_word_count(word), index);
}

/* A notice of this mailbox has fired: it should look. */
static void tell(struct shm_thread *self, struct shm_box *box)
{
    atomic_fetch_add(&box->ring->notices, 1);
    struct shm_waitable receivers = shm_ring_receivers(box);
    shm_wake_all(self,
                 &receivers); /* one of them may decline it, and the next has seen all messages already */
}

/* Said again by whoever finds it fired, for its firer may have died. */
static void tell_watcher(struct shm_thread *self, const struct shm_notice *notice)
{
    struct shm_segment *segment = self->segment;
    uint32_t index = atomic_load(&notice->box);
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index))
        return;
    struct shm_box box;
    if (!shm_box_open_to_mend(self, &box, index,
                              shm_word_count(atomic_load(&shm_box_at(segment, index)->word))))
        return;
    tell(self, &box);
    shm_box_release(self, &box);
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

/* `own`: the mailbox, if it is the watcher who finds its target dead, and has it open. */
static void fire(struct shm_thread *self, struct shm_notice *notice, shm_word armed, shm_member_id target,
                 struct shm_box *own)
{
    SHM_KILL_POINT(notice_cause);
    if (shm_word_state(armed) == SHM_NOTICE_ARMED)
        keep_cause(self->segment, notice, armed, target);
    SHM_KILL_POINT(notice_fire);
    shm_word fired = shm_word_make(shm_word_count(armed), shm_word_owner(armed), SHM_NOTICE_FIRED);
    if (!atomic_compare_exchange_strong(&notice->word, &armed, fired) && armed != fired)
        return;
    SHM_KILL_POINT(notice_fired);
    if (own)
        tell(self, own);
    else
        tell_watcher(self, notice);
}

int64_t shm_notice_arm(struct shm_thread *self, struct shm_box *box, shm_member_id target)
{
    SHM_KILL_POINT(notice_arm);
    int64_t index = shm_pool_claim(self->segment, SHM_TABLE_NOTICES, self->slot, SHM_NOTICE_MAKING);
    if (index < 0)
        return index;
    struct shm_notice *notice = shm_notice_at(self->segment, (uint32_t)index);
    shm_word word = atomic_load(&notice->word);
    atomic_store(&notice->target, target);
    atomic_store(&notice->box, box->index);
    notice->kind = SHM_KIND_EXIT;
    atomic_store(&notice->cause, shm_word_count(word) << 20);
    atomic_store(&notice->undelivered, shm_word_count(word) << 32);
    shm_word armed = shm_word_make(shm_word_count(word), self->slot, SHM_NOTICE_ARMED);
    atomic_exchange(&notice->word, armed);
    if (!shm_member_lives(self->segment, target))
        fire(self, notice, armed, target, box);
    return (int64_t)number_of(word, (uint32_t)index);
}

bool shm_notice_disarm(struct shm_thread *self, uint64_t number)
{
    uint32_t index = (uint32_t)(number & 0xFFFFF) - 1;
    if (!shm_index_ok(self->segment, SHM_TABLE_NOTICES, index))
        return false;
    struct shm_notice *notice = shm_notice_at(self->segment, index);
    shm_word word = atomic_load(&notice->word);
    while (number_of(word, index) == number && shm_word_owner(word) == self->slot &&
           shm_word_state(word) >= SHM_NOTICE_ARMED)
        if (atomic_compare_exchange_strong(&notice->word, &word,
                                           shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_NOTICE_FREE)))
            return true;
    return false;
}

void shm_notice_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    shm_member_id id = shm_member_id_of(word, victim);
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(segment, i);
        shm_word seen = atomic_load(&notice->word); /* before the target: the generation decides */
        uint32_t state = shm_word_state(seen);
        if (state == SHM_NOTICE_FREE || !shm_still_dying(segment, victim, word))
            continue;
        if (shm_word_owner(seen) == victim)
            atomic_compare_exchange_strong(&notice->word, &seen,
                                           shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_NOTICE_FREE));
        else if (state >= SHM_NOTICE_ARMED && atomic_load(&notice->target) == id)
            fire(self, notice, seen, id, NULL);
    }
}
