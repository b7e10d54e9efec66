#include "transport/offer.h"

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/look.h"

/* How often another thread of the same side is waited for, that takes something. */
enum { TAKE_LOOKS = 1000 };
#define TAKE_PAUSE_NS UINT64_C(10000)

/* Is this record a queue of offers from the one to the other, 0: from anybody? Its word, or 0. */
static shm_word is_queue(const struct shm_segment *segment, uint32_t index, shm_member_id sender,
                         shm_member_id receiver)
{
    const struct shm_box_record *record = shm_box_at(segment, index);
    shm_word word = atomic_load(&record->word);
    bool fits = shm_word_state(word) == SHM_BOX_OPEN && record->kind == SHM_BOX_OFFERS &&
                atomic_load(&record->reader) == receiver && (!sender || record->owner == sender);
    return fits && atomic_load(&record->word) == word ? word : 0;
}

/* Open the queue of the pair: 0, EMPTY: there is none, BUSY, LIMIT, NO_MEMORY. */
static int open_queue(struct shm_thread *self, shm_member_id sender, shm_member_id receiver,
                      struct shm_box *box)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_BOXES); i++) {
        shm_word word = is_queue(self->segment, i, sender, receiver);
        if (!word)
            continue;
        int status = shm_box_open(self, box, i, shm_word_count(word));
        if (status != SHM_NOT_FOUND)
            return status;
    }
    return SHM_EMPTY;
}

/* The queue is nobody's any more: what is in it is lost, and it goes with the last who has it open. */
static void end_queue(struct shm_thread *self, struct shm_box *box)
{
    struct shm_box_record *record = shm_box_at(self->segment, box->index);
    shm_box_close(self, box);
    SHM_KILL_POINT(offer_drop);
    shm_lease_drop(self, &record->lease, atomic_load(&record->birth));
}

static int make_queue(struct shm_thread *self, shm_member_id receiver, struct shm_box *box)
{
    int status = shm_box_make(self, box, SHM_BOX_OFFERS, SHM_OFFER_SLOTS, SHM_OFFER_BODY_BYTES, 0);
    if (status)
        return status;
    SHM_KILL_POINT(offer_keep);
    status = shm_box_keep(self, box);
    if (status) {
        shm_box_release(self, box);
        return status;
    }
    struct shm_box_record *record = shm_box_at(self->segment, box->index);
    SHM_KILL_POINT(offer_name);
    atomic_exchange(&record->reader, receiver); /* then his life: a reaper marks him, then reads this */
    SHM_KILL_POINT(offer_check);
    if (shm_member_lives(self->segment, receiver))
        return 0;
    end_queue(self, box);
    shm_box_release(self, box);
    return SHM_PEER_DEAD;
}

int shm_offer_send(struct shm_thread *self, struct shm_box *to, const struct shm_message *message)
{
    struct shm_box box;
    shm_member_id me = shm_member_id_self(self->member), receiver = to->owner;
    if (!shm_member_lives(self->segment, receiver))
        return SHM_PEER_DEAD;
    int status = open_queue(self, me, receiver, &box);
    if (status == SHM_EMPTY)
        status = make_queue(self, receiver, &box);
    if (status)
        return status;
    status = shm_box_try_send(self, &box, message);
    shm_box_release(self, &box);
    if (status == 0) {
        SHM_KILL_POINT(offer_tell);
        status = shm_box_notify(self, to, SHM_BIT_OFFER);
        if (status)
            status = 0; /* accepted, and lost with its receiver */
    }
    return status == SHM_CLOSED ? SHM_PEER_DEAD : status;
}

/* Take the oldest of the queue. *left: more is there. */
static int take(struct shm_thread *self, shm_member_id sender, shm_member_id receiver,
                struct shm_message *message, bool *left)
{
    struct shm_box box;
    struct shm_filter all = SHM_FILTER_NONE;
    uint64_t looked = 0;
    int status = open_queue(self, sender, receiver, &box);
    if (status)
        return status;
    status = shm_ring_receive(self, &box, &all, message, &looked);
    for (int n = 0; status == SHM_BUSY && n < TAKE_LOOKS; n++) {
        shm_clock_sleep(TAKE_PAUSE_NS);
        status = shm_ring_receive(self, &box, &all, message, &looked);
    }
    *left = status == 0 && shm_ring_count(&box) > 0;
    shm_box_release(self, &box);
    return status == SHM_CLOSED ? SHM_EMPTY : status;
}

int shm_offer_pull(struct shm_thread *self, struct shm_box *own, shm_member_id sender,
                   struct shm_message *message)
{
    bool left = false;
    int status = take(self, sender, shm_member_id_self(self->member), message, &left);
    if (left) {
        SHM_KILL_POINT(offer_again);
        shm_ring_notify(self, own, SHM_BIT_OFFER);
    }
    return status == SHM_EMPTY && !shm_member_lives(self->segment, sender) ? SHM_PEER_DEAD : status;
}

int shm_offer_recall(struct shm_thread *self, shm_member_id receiver, struct shm_message *message)
{
    bool left;
    int status = take(self, shm_member_id_self(self->member), receiver, message, &left);
    return status == SHM_EMPTY && !shm_member_lives(self->segment, receiver) ? SHM_PEER_DEAD : status;
}

int64_t shm_offer_count(struct shm_thread *self, shm_member_id sender, shm_member_id receiver)
{
    struct shm_box box;
    int status = open_queue(self, sender, receiver, &box);
    if (status)
        return status == SHM_EMPTY ? 0 : status;
    int64_t count = (int64_t)shm_ring_count(&box);
    shm_box_release(self, &box);
    return count;
}

uint32_t shm_offer_senders(const struct shm_thread *self, shm_member_id *senders, uint32_t room)
{
    const struct shm_segment *segment = self->segment;
    shm_member_id me = shm_member_id_self(self->member);
    uint32_t found = 0;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BOXES) && found < room; i++) {
        const struct shm_ring *ring = is_queue(segment, i, 0, me) ? shm_look_ring(segment, i) : NULL;
        if (ring && shm_look_depth(ring))
            senders[found++] = shm_box_at(segment, i)->owner;
    }
    return found;
}

void shm_offer_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    shm_member_id id = shm_member_id_of(word, victim);
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BOXES); i++) {
        struct shm_box_record *record = shm_box_at(segment, i);
        struct shm_box box;
        shm_word seen = atomic_load(&record->word);
        uint32_t state = shm_word_state(seen);
        if ((state != SHM_BOX_OPEN && state != SHM_BOX_CLOSED) || record->kind != SHM_BOX_OFFERS ||
            (record->owner != id && atomic_load(&record->reader) != id) ||
            !shm_still_dying(segment, victim, word) ||
            !shm_box_open_to_mend(self, &box, i, shm_word_count(seen)))
            continue;
        end_queue(self, &box);
        shm_box_release(self, &box);
    }
}
