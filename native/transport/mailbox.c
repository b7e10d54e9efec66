#include "transport/mailbox.h"

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/cell.h"
#include "transport/names.h"
#include "transport/notice.h"
#include "transport/port.h"
#include "transport/record.h"

/* How long a poll may wait for another receiver's copy to end. */
#define BUSY_LIMIT_NS UINT64_C(50000)
/* A spinning sender waits for this much room, and looks again after so many pauses. */
#define ROOM_WANTED 64
#define ROOM_PAUSES 20
/* A sender that was woken naps so often and so long while this many are queued. The kernel adds some 50 us to each. */
#define NAP_NS 20000
#define NAPS_MAX 4
#define NAP_QUEUED 512
/* After this long a receive that cannot end believes it: who spins for a message of his has taken it by then. */
#define STARVE_GRACE_NS UINT64_C(5000000)
/* How often draining a closed mailbox looks again while a receiver has the right. */
#define DRAIN_LOOKS 100

static int view_box(struct shm_thread *self, struct shm_box *box, uint32_t index, uint64_t count,
                    shm_lease_index lease, uint32_t block)
{
    *box = (struct shm_box){.index = index, .count = count, .lease = lease};
    if (shm_box_at(self->segment, index)->kind == SHM_BOX_ACTOR)
        box->owner =
            shm_box_at(self->segment, index)->owner; /* the others are served by whoever has them open */
    return shm_ring_view(box, self->segment, block);
}

int shm_box_make(struct shm_thread *self, struct shm_box *box, uint32_t kind, uint32_t capacity,
                 uint32_t body_bytes, shm_member_id owner)
{
    struct shm_segment *segment = self->segment;
    if (capacity == 0 || capacity > SHM_MAX_SLOTS || body_bytes < 8 || body_bytes > 65536)
        return SHM_INVALID;
    if (kind == SHM_BOX_PORT && (body_bytes = shm_ring_port_body(body_bytes)) > 65536)
        return SHM_INVALID;
    struct shm_making made;
    int status = shm_record_begin(self, &made, shm_ring_bytes(capacity, body_bytes, segment->place_words));
    if (status)
        return status;
    struct shm_ring *ring = (struct shm_ring *)made.bytes;
    shm_ring_format(ring, capacity, body_bytes, segment->place_words);
    ring->is_port = kind == SHM_BOX_PORT;

    SHM_KILL_POINT(box_make);
    status = shm_record_claim(self, &made, kind, 0, owner ? owner : shm_member_id_self(self->member),
                              &ring->box, &ring->box_count);
    if (status)
        return status;
    struct shm_box_record *record = shm_box_at(segment, made.index);
    ring->lost_before = (uint32_t)atomic_load(&record->lost);
    atomic_store(&record->lost, ring->lost_before); /* positions begin anew */
    status = view_box(self, box, made.index, made.count, made.lease, made.block);
    SHM_KILL_POINT(box_open);
    shm_record_open(self, &made);
    return status;
}

void shm_box_fix_length(struct shm_box *box, uint32_t message_bytes)
{
    box->ring->message_bytes = box->message_bytes = message_bytes;
}

int shm_box_open(struct shm_thread *self, struct shm_box *box, uint32_t index, uint64_t count)
{
    shm_lease_index lease;
    uint32_t block;
    int status = shm_block_pin(self, index, count, 0, &lease, &block);
    if (status)
        return status;
    status = view_box(self, box, index, count, lease, block);
    if (status)
        shm_lease_release(self, lease);
    return status;
}

bool shm_box_open_to_mend(struct shm_thread *self, struct shm_box *box, uint32_t index, uint64_t count)
{
    return shm_record_opened_to_mend(self, shm_box_open(self, box, index, count));
}

void shm_box_release(struct shm_thread *self, struct shm_box *box)
{
    if (box->ring)
        shm_lease_release(self, box->lease);
    box->ring = NULL;
}

bool shm_box_is_closed(const struct shm_box *box)
{
    return atomic_load(&box->ring->closed) != 0;
}

bool shm_box_is_dead(const struct shm_segment *segment, const struct shm_box *box)
{
    return box->owner && !shm_member_lives(segment, box->owner);
}

bool shm_box_is_open(const struct shm_segment *segment, uint32_t index, uint64_t count)
{
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index))
        return false;
    shm_word word = atomic_load(&shm_box_at(segment, index)->word);
    return shm_word_count(word) == (count & SHM_COUNT_MASK) && shm_word_state(word) == SHM_BOX_OPEN;
}

bool shm_box_tell(struct shm_thread *self, uint32_t index, uint64_t count)
{
    struct shm_box box;
    if (!shm_index_ok(self->segment, SHM_TABLE_BOXES, index) ||
        !shm_box_open_to_mend(self, &box, index, count))
        return false;
    shm_ring_tell(self, &box);
    shm_box_release(self, &box);
    return true;
}

int shm_box_keep(struct shm_thread *self, struct shm_box *box)
{
    shm_lease_index lease;
    int status = shm_block_hold(self, box->block, &lease);
    if (status)
        return status;
    struct shm_box_record *record = shm_box_at(self->segment, box->index);
    atomic_store(&record->birth, shm_lease_birth(self->segment, lease));
    atomic_store(&record->lease, lease + 1); /* a death before the next line releases it with our leases */
    shm_lease_fly(self, lease);
    return 0;
}

int shm_box_persist(struct shm_thread *self, struct shm_box *box)
{
    int status = shm_box_keep(self, box);
    if (status == 0)
        shm_box_at(self->segment, box->index)->kind = SHM_BOX_PERSISTENT;
    return status;
}

void shm_box_unpersist(struct shm_thread *self, struct shm_box *box)
{
    struct shm_box_record *record = shm_box_at(self->segment, box->index);
    shm_lease_drop(self, &record->lease, atomic_load(&record->birth));
}

/* Take what is left and let it go: it is lost with its receiver, which is counted. */
static void drain(struct shm_thread *self, struct shm_box *box)
{
    struct shm_message message;
    uint64_t looked = 0;
    struct shm_filter all = SHM_FILTER_NONE;
    self->loses = true;
    /* Nothing is accepted any more but what was on its way: twice what it holds is more than there can be. */
    uint64_t most = 2 * ((uint64_t)box->mask + 1) + shm_pool_ready(self->segment, SHM_TABLE_NOTICES);
    for (int busy = 0; busy < DRAIN_LOOKS && most; most--) {
        int status = shm_ring_receive(self, box, &all, &message, &looked);
        if (status == SHM_BUSY) {
            busy++; /* a receiver takes one, or was stopped there: then the rest is his */
            shm_clock_sleep(10000);
            continue;
        }
        if (status == SHM_CORRUPTED)
            busy++; /* a message that is none; or the ring is none, and so it stays */
        else if (status != 0)
            break;
        if (status == 0 && message.lease)
            shm_lease_recycle(self, message.lease - 1);
        if (status == 0 && message.call)
            shm_call_fail(self, message.call);
    }
    self->loses = false;
}

void shm_box_drain_closed(struct shm_thread *self, struct shm_box *box)
{
    if (shm_box_is_closed(box))
        drain(self, box);
}

uint64_t shm_box_undelivered(const struct shm_segment *segment)
{
    uint64_t lost = 0;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BOXES); i++)
        lost += (uint32_t)atomic_load(&shm_box_at(segment, i)->lost);
    return lost;
}

uint64_t shm_box_close(struct shm_thread *self, struct shm_box *box)
{
    struct shm_box_record *record = shm_box_at(self->segment, box->index);
    shm_word word = atomic_load(&record->word);
    if (shm_word_count(word) == box->count && shm_word_state(word) == SHM_BOX_OPEN)
        atomic_compare_exchange_strong(&record->word, &word,
                                       shm_word_make(box->count, shm_word_owner(word), SHM_BOX_CLOSED));
    atomic_exchange(&box->ring->closed, 1);
    drain(self, box);
    struct shm_waitable senders = shm_ring_senders(box), receivers = shm_ring_receivers(box);
    shm_wake_all(self, &senders);
    shm_wake_all(self, &receivers);
    struct shm_waitable watchers = shm_ring_watchers(box);
    shm_wake_all(self, &watchers);
    return (uint32_t)atomic_load(&record->lost) - box->ring->lost_before;
}

void shm_box_say_receives(struct shm_thread *self, struct shm_box *box)
{
    SHM_KILL_POINT(box_receives);
    atomic_store(&shm_lease_at(self->segment, box->lease)->receives, 1);
}

/* A hold that changes hands meanwhile may be counted or not. */
uint32_t shm_box_receivers(const struct shm_segment *segment, const struct shm_box *box)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_LEASES); i++) {
        const struct shm_lease *lease = shm_lease_at(segment, i);
        if (!atomic_load_explicit(&lease->receives, memory_order_relaxed))
            continue;
        shm_word word = atomic_load(&lease->word);
        count += shm_word_state(word) == SHM_LEASE_HELD && shm_lease_block(segment, i) == box->block &&
                 atomic_load(&lease->receives);
    }
    return count;
}

int shm_box_try_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message)
{
    /* Who was told of a death is told it again, though the mailbox is not closed yet. */
    if (shm_box_is_dead(self->segment, box))
        return SHM_PEER_DEAD;
    if (box->envelope_at && shm_port_is_orphaned(self->segment, box))
        return SHM_CLOSED;
    int status = shm_ring_send(self, box, message, true);
    /* Published while the mailbox was being closed: whoever closed it may have drained it before. */
    if (status == 0)
        shm_box_drain_closed(self, box);
    return status;
}

/* The block of a mailbox goes: its messages' blocks, and the record. The block is locked by us, or by a dead one. */
void shm_box_drop(struct shm_thread *self, uint32_t index, uint32_t block)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index))
        return;
    struct shm_ring *ring = (struct shm_ring *)(segment->base + shm_block_offset(segment, block));
    shm_ring_drop_messages(self, block, shm_call_fail);
    shm_name_drop_box(self, index, ring->box_count);
    shm_notice_drop_box(self, index, ring->box_count);
    struct shm_box_record *record = shm_box_at(segment, index);
    shm_word word = atomic_load(&record->word);
    if (shm_word_count(word) == ring->box_count && atomic_load(&record->place_of_ring) == (uint64_t)block + 1)
        atomic_compare_exchange_strong(&record->word, &word,
                                       shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_BOX_FREE));
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

struct sending {
    struct shm_box *box;
    const struct shm_message *message;
    struct shm_waitable *line;
    uint64_t deadline_ns;
    bool impatient;     /* there was room for a whole slice, and the first in line did not take it */
    uint64_t delivered; /* when it was last looked at */
    uint64_t idle_tail; /* tail and what was delivered at the end of the last slice */
    uint64_t idle_delivered;
};

/* First in line; or there is room for the whole line, and for us, who may not have entered it yet; or the first has been
 * stopped, it seems. */
static bool is_our_turn(struct shm_thread *self, const struct sending *s)
{
    return s->impatient || shm_set_empty(s->box->senders) || shm_set_is_first(self, s->line, self->place) ||
           shm_ring_has_room_for_line(s->box, shm_set_has(s->box->senders, self->place) ? 0 : 1);
}

/* Who was woken for the first free slot would fill it and sleep again, a switch for each message. While the receiver has
 * enough to go on with, let it make room for many. */
static void nap_while_room_grows(struct shm_thread *self, const struct sending *s)
{
    if (shm_word_state(atomic_load(&self->at->word)) != SHM_PLACE_NOTIFIED)
        return;
    const struct shm_ring *ring = s->box->ring;
    for (int i = 0; i < NAPS_MAX; i++) {
        uint64_t delivered = atomic_load(&ring->delivered);
        if (atomic_load(&ring->tail) - delivered < NAP_QUEUED || shm_clock_ns() + NAP_NS > s->deadline_ns)
            return;
        shm_clock_sleep(NAP_NS);
        if (atomic_load(&ring->delivered) == delivered)
            return;
    }
}

static int attempt_send(struct shm_thread *self, void *context)
{
    struct sending *s = context;
    if (atomic_load(&s->box->released))
        return SHM_CLOSED;
    nap_while_room_grows(self, s);
    if (!is_our_turn(self, s) && !atomic_load(&s->box->ring->closed))
        return SHM_FULL;
    int status = shm_ring_send(self, s->box, s->message, false);
    if (status == 0)
        shm_ring_grant_turns(self);
    return status;
}

/* The first in line may be stopped: then he is passed over, by one message in each slice of those behind him. */
static int after_slice(struct shm_thread *self, void *context)
{
    struct sending *s = context;
    const struct shm_ring *ring = s->box->ring;
    uint64_t tail = atomic_load(&ring->tail), delivered = atomic_load(&ring->delivered);
    s->impatient = shm_ring_writable(s->box) && tail == s->idle_tail && delivered == s->idle_delivered;
    s->idle_tail = tail;
    s->idle_delivered = delivered;
    return shm_ring_check(self, s->box);
}

/* Room for a few, so that sender and receiver do not pass one cache line to and fro for each message; or any room,
 * when the receiver pauses. */
static bool ready_to_send(struct shm_thread *self, void *context)
{
    struct sending *s = context;
    struct shm_ring *ring = s->box->ring;
    if (!shm_ring_writable(s->box) || !is_our_turn(self, s))
        return false;
    uint64_t delivered = atomic_load(&ring->delivered);
    uint64_t room = s->box->capacity - (atomic_load(&ring->tail) - delivered);
    bool pauses = delivered == s->delivered;
    s->delivered = delivered;
    if (room >= ROOM_WANTED || room >= s->box->capacity / 4 || pauses)
        return true;
    for (int i = 0; i < ROOM_PAUSES; i++)
        shm_clock_relax();
    return false;
}

/* The line is shorter: there may be room now for those who stand in none. */
static void pass_to_watchers(struct shm_thread *self, void *context)
{
    const struct sending *s = context;
    struct shm_waitable watchers = shm_ring_watchers(s->box);
    if (!shm_set_empty(s->box->watchers) && shm_ring_has_room(s->box))
        shm_wake_all(self, &watchers);
}

/* A mailbox that is closed because its owner died says so. */
static int closed_or_dead(struct shm_thread *self, const struct shm_box *box)
{
    return shm_box_is_dead(self->segment, box) ? SHM_PEER_DEAD : SHM_CLOSED;
}

int shm_box_notify(struct shm_thread *self, struct shm_box *box, uint64_t bits)
{
    if (shm_box_is_dead(self->segment, box))
        return SHM_PEER_DEAD;
    int status = shm_ring_notify(self, box, bits);
    return status == SHM_CLOSED ? closed_or_dead(self, box) : status;
}

int shm_box_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message,
                 uint64_t deadline_ns)
{
    int status = shm_box_try_send(self, box, message);
    if (status == SHM_FULL && deadline_ns) {
        struct shm_waitable line = shm_ring_senders(box);
        struct sending sending = {.box = box,
                                  .message = message,
                                  .line = &line,
                                  .deadline_ns = deadline_ns,
                                  .idle_tail = UINT64_MAX};
        struct shm_wait wait = {.waitables = &line,
                                .count = 1,
                                .deadline_ns = deadline_ns,
                                .attempt = attempt_send,
                                .ready = ready_to_send,
                                .slice = after_slice,
                                .context = &sending,
                                .pass = pass_to_watchers,
                                .peer = box->owner & 0xFFFF};
        status = shm_wait(self, &wait);
        if (status == 0)
            shm_box_drain_closed(self, box);
    }
    return status == SHM_CLOSED ? closed_or_dead(self, box) : status;
}

struct receiving {
    struct shm_box *box;
    const struct shm_filter *filter;
    struct shm_message *message;
    uint64_t looked;
    bool waits; /* no poll: it may starve */
};

static int attempt_receive(struct shm_thread *self, void *context)
{
    struct receiving *r = context;
    if (atomic_load(&r->box->released))
        return SHM_CLOSED;
    int status = shm_ring_receive(self, r->box, r->filter, r->message, &r->looked);
    return status == SHM_EMPTY && r->waits && shm_ring_starves(self, r->box, r->filter, r->looked)
               ? SHM_STARVED
               : status;
}

static bool ready_to_receive(struct shm_thread *self, void *context)
{
    struct receiving *r = context;
    return shm_ring_readable(self, r->box, r->filter, r->looked);
}

static int check_receive(struct shm_thread *self, void *context)
{
    struct receiving *r = context;
    int status = shm_ring_check(self, r->box);
    if (shm_ring_is_full(r->box)) {
        /* The callers of requests that were declined may have left: these go, and make room. */
        r->looked = 0;
        atomic_store(&self->at->looked, 0);
    }
    if (status == 0 && shm_ring_starves(self, r->box, r->filter, r->looked))
        status = SHM_STARVED; /* since the last of the others has gone */
    if (status == 0 && shm_ring_has_letter(self, r->box))
        atomic_fetch_add(&r->box->ring->notices, 1); /* who answered found no way to tell it */
    return status;
}

int shm_box_receive(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                    struct shm_message *message, uint64_t deadline_ns)
{
    struct receiving receiving = {
        .box = box, .filter = filter, .message = message, .waits = deadline_ns != 0};
    int status = attempt_receive(self, &receiving);
    if (status == SHM_EMPTY && deadline_ns == 0)
        return SHM_EMPTY;
    struct shm_waitable waitable = shm_ring_receivers(box);
    struct shm_wait wait = {.waitables = &waitable,
                            .count = 1,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_receive,
                            .ready = ready_to_receive,
                            .slice = check_receive,
                            .context = &receiving,
                            .filtered = !shm_filter_is_open(filter)};
    if (status == SHM_BUSY && deadline_ns == 0) {
        uint64_t until = shm_clock_ns() + BUSY_LIMIT_NS;
        while (status == SHM_BUSY && shm_clock_ns() < until)
            status = attempt_receive(self, &receiving);
        return status == SHM_BUSY ? SHM_EMPTY : status;
    }
    if (status == SHM_EMPTY || status == SHM_BUSY)
        status = shm_wait(self, &wait);
    while (status == SHM_STARVED) {
        shm_clock_sleep(STARVE_GRACE_NS);
        status = attempt_receive(self, &receiving);
        if (status == SHM_STARVED)
            return status;
        if (status == SHM_EMPTY || status == SHM_BUSY)
            status = shm_wait(self, &wait);
    }
    return status;
}

struct receiving_any {
    struct shm_box **boxes;
    uint32_t count, *which;
    const struct shm_filter *filter;
    struct shm_message *message;
};

static int attempt_any(struct shm_thread *self, void *context)
{
    struct receiving_any *r = context;
    int status = SHM_EMPTY;
    for (uint32_t i = 0; i < r->count; i++) {
        uint64_t looked = 0;
        if (atomic_load(&r->boxes[i]->released))
            return SHM_CLOSED;
        int one = shm_ring_receive(self, r->boxes[i], r->filter, r->message, &looked);
        *r->which = i;
        if (one != SHM_EMPTY && one != SHM_BUSY)
            return one;
        if (one == SHM_BUSY)
            status = SHM_BUSY;
    }
    return status;
}

static bool ready_any(struct shm_thread *self, void *context)
{
    struct receiving_any *r = context;
    for (uint32_t i = 0; i < r->count; i++)
        if (shm_ring_readable(self, r->boxes[i], r->filter, 0))
            return true;
    return false;
}

static int check_any(struct shm_thread *self, void *context)
{
    struct receiving_any *r = context;
    int status = 0;
    for (uint32_t i = 0; i < r->count && status == 0; i++)
        status = shm_ring_check(self, r->boxes[i]);
    return status;
}

int shm_box_receive_any(struct shm_thread *self, struct shm_box **boxes, uint32_t count,
                        struct shm_message *message, uint32_t *which, uint64_t deadline_ns)
{
    struct shm_filter all = SHM_FILTER_NONE;
    struct shm_waitable waitables[SHM_PLACE_ITEMS];
    if (count == 0 || count > SHM_PLACE_ITEMS)
        return SHM_INVALID;
    for (uint32_t i = 0; i < count; i++)
        waitables[i] = shm_ring_receivers(boxes[i]);
    struct receiving_any any = {
        .boxes = boxes, .count = count, .which = which, .filter = &all, .message = message};
    struct shm_wait wait = {.waitables = waitables,
                            .count = count,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_any,
                            .ready = ready_any,
                            .slice = check_any,
                            .context = &any};
    return shm_wait(self, &wait);
}

/* ---- reap -------------------------------------------------------------------------------------------------- */

void shm_box_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BOXES); i++) {
        struct shm_box_record *record = shm_box_at(segment, i);
        shm_word seen = atomic_load(&record->word);
        uint32_t state = shm_word_state(seen);
        if (state == SHM_BOX_FREE || shm_word_owner(seen) != victim ||
            !shm_still_dying(segment, victim, word))
            continue;
        if (state == SHM_BOX_MAKING) {
            /* Nobody has opened it; its block goes with the victim's leases, and finds the record gone. */
            atomic_compare_exchange_strong(&record->word, &seen,
                                           shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_BOX_FREE));
            continue;
        }
        if (record->kind != SHM_BOX_ACTOR || record->owner != shm_member_id_of(word, victim))
            continue; /* lives until its last holder closes; or is of an earlier life, closed and held by others */
        struct shm_box box;
        if (shm_box_open_to_mend(self, &box, i, shm_word_count(seen))) {
            uint64_t left = shm_box_close(self, &box), life = shm_word_count(word) & 0xFFFFFFFF;
            if (left)
                atomic_store(&shm_member_at(segment, victim)->undelivered, life << 32 | (left & 0xFFFFFFFF));
            shm_box_release(self, &box);
        }
    }
}
