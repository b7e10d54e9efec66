#include "transport/ring.h"

#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/port.h"

/* How often a count is taken again because messages were delivered meanwhile. */
enum { COUNT_LOOKS = 8 };
/* How often a look for what matches is made again while others receive. */
enum { MATCH_LOOKS = 100 };
/* Turns a sender gets after it has waited in line, before it queues behind others again. */
enum { TURNS = 64 };
/* They are granted again for so long: a switch to the next in line costs the time of a hundred messages. */
#define TURN_NS 200000

/* ---- geometry ---------------------------------------------------------------------------------------------- */

static uint32_t slots_for(uint32_t capacity)
{
    uint32_t slots = SHM_MIN_SLOTS;
    while (slots < capacity)
        slots *= 2;
    return slots;
}

static uint32_t stride_for(uint32_t body_bytes)
{
    return (uint32_t)shm_round_up(sizeof(struct shm_slot) + body_bytes, SHM_LINE);
}

static uint64_t plan(struct shm_ring *ring, uint32_t capacity, uint32_t body_bytes, uint32_t place_words)
{
    uint64_t set_bytes = shm_round_up(sizeof(struct shm_set) + (uint64_t)place_words * 8, 128);
    ring->capacity = capacity;
    ring->slots = slots_for(capacity);
    ring->body_bytes = body_bytes;
    ring->slot_bytes = stride_for(body_bytes);
    ring->place_words = place_words;
    ring->receivers_offset = sizeof(struct shm_ring);
    ring->senders_offset = ring->receivers_offset + set_bytes;
    ring->watchers_offset = ring->senders_offset + set_bytes;
    ring->slots_offset = shm_round_up(ring->watchers_offset + set_bytes, 128);
    ring->asides_offset = ring->slots_offset + (uint64_t)ring->slots * ring->slot_bytes;
    ring->bodies_offset =
        shm_round_up(ring->asides_offset + (uint64_t)capacity * sizeof(struct shm_aside), 128);
    return ring->bodies_offset + (uint64_t)capacity * ring->slot_bytes;
}

uint64_t shm_ring_bytes(uint32_t capacity, uint32_t body_bytes, uint32_t place_words)
{
    struct shm_ring ring;
    return plan(&ring, capacity, body_bytes, place_words);
}

void shm_ring_format(struct shm_ring *ring, uint32_t capacity, uint32_t body_bytes, uint32_t place_words)
{
    struct shm_ring measures;
    uint64_t bytes = plan(&measures, capacity, body_bytes, place_words);
    /* A block's bytes are whatever its last user left. */
    memset(ring, 0, measures.slots_offset);
    memset((unsigned char *)ring + measures.asides_offset, 0,
           measures.bodies_offset - measures.asides_offset);
    for (uint32_t i = 0; i < measures.slots; i++)
        memset((unsigned char *)ring + measures.slots_offset + (uint64_t)i * measures.slot_bytes, 0,
               sizeof(struct shm_slot));
    plan(ring, capacity, body_bytes, place_words);
    (void)bytes;
}

int shm_ring_view(struct shm_box *box, const struct shm_segment *segment, uint32_t block)
{
    struct shm_ring expected, *ring = (struct shm_ring *)(segment->base + shm_block_offset(segment, block));
    uint32_t capacity = SHM_ONCE(ring->capacity), body_bytes = SHM_ONCE(ring->body_bytes);
    if (capacity == 0 || capacity > SHM_MAX_SLOTS || body_bytes > 65536 ||
        ring->place_words != segment->place_words ||
        plan(&expected, capacity, body_bytes, segment->place_words) > shm_block_class_bytes(block) ||
        expected.slots != ring->slots)
        return SHM_CORRUPTED;
    unsigned char *base = (unsigned char *)ring;
    box->ring = ring;
    box->block = block;
    box->place_words = segment->place_words;
    box->capacity = capacity;
    box->mask = expected.slots - 1;
    box->shift = (uint32_t)__builtin_ctz(expected.slots);
    box->slot_bytes = expected.slot_bytes;
    box->body_bytes = body_bytes;
    box->message_bytes = SHM_ONCE(ring->message_bytes);
    if (SHM_ONCE(ring->is_port)) {
        if (body_bytes % 8 || body_bytes < sizeof(struct shm_envelope))
            return SHM_CORRUPTED;
        box->body_bytes = body_bytes - (uint32_t)sizeof(struct shm_envelope);
        box->envelope_at = (uint32_t)sizeof(struct shm_slot) + box->body_bytes;
    }
    box->slots = base + expected.slots_offset;
    box->asides = (struct shm_aside *)(base + expected.asides_offset);
    box->bodies = base + expected.bodies_offset;
    box->receivers = (struct shm_set *)(base + expected.receivers_offset);
    box->senders = (struct shm_set *)(base + expected.senders_offset);
    box->watchers = (struct shm_set *)(base + expected.watchers_offset);
    atomic_store(&box->delivered_seen, atomic_load(&ring->delivered));
    return 0;
}

static inline struct shm_slot *slot_at(const struct shm_box *box, uint64_t position)
{
    return (struct shm_slot *)(box->slots + (position & box->mask) * box->slot_bytes);
}

static inline struct shm_slot *body_at(const struct shm_box *box, uint32_t entry)
{
    return (struct shm_slot *)(box->bodies + (uint64_t)entry * box->slot_bytes);
}

static inline struct shm_envelope *envelope_of(const struct shm_box *box, struct shm_slot *slot)
{
    return (struct shm_envelope *)((unsigned char *)slot + box->envelope_at);
}

/* How far the slot's lap is ahead of the lap of `position`. */
static inline int64_t lap_ahead(const struct shm_box *box, shm_word word, uint64_t position)
{
    return shm_count_difference(shm_word_count(word), position >> box->shift);
}

static inline shm_word slot_word(const struct shm_box *box, uint64_t position, uint32_t owner, uint32_t state)
{
    return shm_word_make((position >> box->shift) + (state == SHM_SLOT_FREE), owner, state);
}

/* What state_at() says of a slot that holds nothing of this lap. */
enum { SLOT_OF_ANOTHER_LAP = 16 };

/* The state of the slot of this position, if it is in this lap. */
static inline uint32_t state_at(const struct shm_box *box, uint64_t position)
{
    shm_word word = atomic_load_explicit(&slot_at(box, position)->word, memory_order_acquire);
    return lap_ahead(box, word, position) == 0 ? shm_word_state(word) : SLOT_OF_ANOTHER_LAP;
}

/* Is there at head what whoever has the right acts on? A message, a claim that became nothing; or what cannot be: then
 * he says so. Without the right a head that another has just moved looks like that too. */
static inline bool is_to_be_seen(uint32_t state)
{
    return state != SHM_SLOT_FREE && state != SHM_SLOT_CLAIMED;
}

/* Something a receiver might act on. */
static bool may_receive(const struct shm_box *box)
{
    const struct shm_ring *ring = box->ring;
    uint32_t state = state_at(box, atomic_load(&ring->head));
    return is_to_be_seen(state) || atomic_load(&ring->aside_first) ||
           atomic_load(&ring->notices) != ring->notices_seen || atomic_load(&ring->closed) ||
           shm_word_state(atomic_load(&ring->right)) == SHM_RIGHT_UNSWEPT;
}

/* Something a sender might act on. */
static bool may_send(const struct shm_box *box)
{
    const struct shm_ring *ring = box->ring;
    return atomic_load(&ring->tail) - atomic_load(&ring->delivered) < box->capacity ||
           atomic_load(&ring->closed) || shm_word_state(atomic_load(&ring->right)) == SHM_RIGHT_UNSWEPT;
}

struct shm_waitable shm_ring_receivers(struct shm_box *box)
{
    return (struct shm_waitable){.kind = SHM_WAIT_RECEIVE,
                                 .object = box->index,
                                 .set = box->receivers,
                                 .words = box->place_words,
                                 .box = box,
                                 .is_true = may_receive};
}

struct shm_waitable shm_ring_senders(struct shm_box *box)
{
    return (struct shm_waitable){.kind = SHM_WAIT_SEND,
                                 .object = box->index,
                                 .set = box->senders,
                                 .words = box->place_words,
                                 .box = box,
                                 .is_true = may_send,
                                 .in_line = true,
                                 .woken = &box->woken};
}

static bool never(const struct shm_box *box)
{
    (void)box;
    return false;
}

struct shm_waitable shm_ring_watchers(struct shm_box *box)
{
    return (struct shm_waitable){.kind = SHM_WAIT_MANY,
                                 .object = box->index,
                                 .set = box->watchers,
                                 .words = box->place_words,
                                 .is_true = never};
}

static void wake_watchers(struct shm_thread *self, struct shm_box *box)
{
    struct shm_waitable watchers = shm_ring_watchers(box);
    if (!shm_set_empty(box->watchers))
        shm_wake_all(self, &watchers);
}

uint64_t shm_ring_help_tail(const struct shm_box *box)
{
    uint64_t tail = atomic_load(&box->ring->tail);
    /* What was claimed when we came lies within one round; what was claimed since, its claimers help past. */
    for (uint64_t n = 0; n <= 2 * (uint64_t)box->mask; n++) {
        shm_word word = atomic_load(&slot_at(box, tail)->word);
        int64_t ahead = lap_ahead(box, word, tail);
        if (ahead < 0 || (ahead == 0 && shm_word_state(word) == SHM_SLOT_FREE))
            return tail;
        if (atomic_compare_exchange_strong(&box->ring->tail, &tail, tail + 1))
            tail++;
    }
    return tail;
}

int shm_ring_check(const struct shm_thread *self, const struct shm_box *box)
{
    const struct shm_ring *ring = box->ring;
    uint64_t tail = atomic_load(&ring->tail), delivered = atomic_load(&ring->delivered),
             head = atomic_load(&ring->head);
    shm_word word = atomic_load(&slot_at(box, tail)->word);
    uint64_t tail_now = atomic_load(&ring->tail);
    /* All three only grow. No claim is more than `capacity` ahead of what is delivered; who claims position p has
     * seen the tail there, so that head, and what is delivered, are at most one ahead of the tail. */
    if ((int64_t)(tail - delivered) > (int64_t)box->capacity || (int64_t)(delivered - tail_now) > 1 ||
        (int64_t)(head - tail_now) > 1 || (int64_t)(tail - head) > (int64_t)box->mask + 1)
        return SHM_CORRUPTED;
    /* What was taken from this slot in the lap before was taken before head went on. */
    if ((int64_t)(head - (tail - box->mask - 1)) > 0 && lap_ahead(box, word, tail) < 0)
        return SHM_CORRUPTED;
    shm_word right = atomic_load(&ring->right);
    if (shm_word_state(right) == SHM_RIGHT_HELD && shm_slot_is_empty(self->segment, shm_word_owner(right)) &&
        atomic_load(&ring->right) == right)
        return SHM_CORRUPTED;
    return 0;
}

uint64_t shm_ring_count(const struct shm_box *box)
{
    uint64_t delivered = atomic_load(&box->ring->delivered), tail, again;
    for (int looks = 0;; delivered = again) {
        tail = shm_ring_help_tail(box);
        again = atomic_load(&box->ring->delivered);
        if (again == delivered || ++looks == COUNT_LOOKS)
            break; /* the same before and after: both were true at once; else it is too low, never too high */
    }
    uint64_t count = tail > again ? tail - again : 0;
    return count < box->capacity ? count : box->capacity;
}

/* ---- the take right ---------------------------------------------------------------------------------------- */

/* Wake whom a change of head, right or count may concern: W1, after the exchange that made it. */
static void wake_after_release(struct shm_thread *self, struct shm_box *box, bool everybody)
{
    if (!shm_set_empty(box->receivers) && (everybody || may_receive(box))) {
        struct shm_waitable receivers = shm_ring_receivers(box);
        receivers.has_looked = !everybody;
        shm_wake_set(self, &receivers, everybody ? 0 : shm_ring_help_tail(box));
    }
    wake_watchers(self, box);
    if (box->envelope_at && (everybody || may_receive(box)))
        shm_port_wake(self, box);
    if (!shm_set_empty(box->senders) && (everybody || may_send(box))) {
        struct shm_waitable senders = shm_ring_senders(box);
        shm_wake_set(self, &senders, 0);
    }
}

/* A dead holder left the list, the head and the count as they were at some step: mend them from what is linked. 0, or
 * CORRUPTED: the list or the slots are none. */
static int sweep(struct shm_box *box)
{
    struct shm_ring *ring = box->ring;
    uint32_t linked = 0, last = 0;
    for (uint64_t e = 0; e < box->capacity; e++)
        atomic_store_explicit(&box->asides[e].used, 0, memory_order_relaxed);
    for (uint32_t e = atomic_load(&ring->aside_first); e; e = atomic_load(&box->asides[e - 1].next)) {
        if (e > box->capacity || linked >= box->capacity)
            return SHM_CORRUPTED;
        struct shm_aside *aside = &box->asides[e - 1];
        uint64_t position = SHM_ONCE(aside->position);
        struct shm_slot *slot = slot_at(box, position);
        SHM_KILL_POINT(right_sweep);
        if (lap_ahead(box, atomic_load(&slot->word), position) == 0)
            atomic_store(&slot->word, slot_word(box, position, SHM_NOBODY, SHM_SLOT_FREE));
        atomic_store_explicit(&aside->used, 1, memory_order_relaxed);
        last = e;
        linked++;
    }
    ring->aside_last = last;
    ring->aside_count = linked;
    ring->aside_free = 0;
    uint64_t head = atomic_load(&ring->head), first = head;
    while (lap_ahead(box, atomic_load(&slot_at(box, head)->word), head) > 0)
        if (++head - first > box->mask)
            return SHM_CORRUPTED;
    SHM_KILL_POINT(right_sweep_head);
    atomic_store(&ring->head, head);
    SHM_KILL_POINT(right_sweep_count);
    atomic_store(&ring->delivered, head - linked);
    return 0;
}

static void release_right(struct shm_thread *self, struct shm_box *box, uint32_t state);

/* 0, or BUSY: another has it; or CORRUPTED: it cannot be swept, and is as before. */
static int take_right(struct shm_thread *self, struct shm_box *box)
{
    shm_word word = atomic_load_explicit(&box->ring->right, memory_order_relaxed);
    if (shm_word_state(word) == SHM_RIGHT_HELD)
        return SHM_BUSY;
    SHM_KILL_POINT(right_flight);
    shm_flight_push(self, SHM_FLIGHT_RIGHT, box->index, 0, 0);
    SHM_KILL_POINT(right_take);
    if (!atomic_compare_exchange_strong(&box->ring->right, &word,
                                        shm_word_next(word, self->slot, SHM_RIGHT_HELD))) {
        shm_flight_pop(self);
        return SHM_BUSY;
    }
    if (shm_word_state(word) == SHM_RIGHT_UNSWEPT && sweep(box)) {
        release_right(self, box, SHM_RIGHT_UNSWEPT);
        return SHM_CORRUPTED;
    }
    return 0;
}

static void release_right(struct shm_thread *self, struct shm_box *box, uint32_t state)
{
    shm_word word = atomic_load_explicit(&box->ring->right, memory_order_relaxed);
    SHM_KILL_POINT(right_release);
    atomic_exchange(&box->ring->right, shm_word_next(word, SHM_NOBODY, state));
    SHM_KILL_POINT(right_released);
    wake_after_release(self, box, false);
    shm_flight_pop(self);
}

/* ---- sending ----------------------------------------------------------------------------------------------- */

static bool has_room(const struct shm_box *box, uint64_t position)
{
    return position - atomic_load_explicit(&box->ring->delivered, memory_order_acquire) < box->capacity;
}

/* Others wait for room: we queue behind them, unless there is room for all, or it is still our turn. */
static bool must_queue(struct shm_thread *self, struct shm_box *box)
{
    return !shm_set_empty(box->senders) && self->turns == 0 && !shm_ring_has_room_for_line(box, 1);
}

bool shm_ring_has_room_for_line(const struct shm_box *box, uint32_t more)
{
    uint64_t used = atomic_load(&box->ring->tail) - atomic_load(&box->ring->delivered);
    return used + shm_set_count(box->senders, box->place_words) + more <= box->capacity;
}

bool shm_ring_has_room(const struct shm_box *box)
{
    return shm_ring_has_room_for_line(box, 1) || atomic_load(&box->ring->closed) ||
           shm_word_state(atomic_load(&box->ring->right)) == SHM_RIGHT_UNSWEPT;
}

/* The slot is claimed: fill and publish it. */
static void fill(struct shm_thread *self, struct shm_box *box, uint64_t position,
                 const struct shm_message *message)
{
    struct shm_slot *slot = slot_at(box, position);
    SHM_KILL_POINT(send_copy);
    slot->header = message->header;
    slot->sender = shm_member_id_self(self->member);
    slot->call = message->call;
    slot->len_bytes = message->len_bytes;
    slot->format = message->format;
    slot->flags = (uint16_t)(message->flags | message->priority << SHM_PRIORITY_SHIFT);
    atomic_store_explicit(&slot->lease, message->lease, memory_order_relaxed);
    slot->birth = message->lease ? shm_lease_birth(self->segment, message->lease - 1) : 0;
    slot->seq = position;
    slot->deadline_ns = message->deadline_ns;
    if (message->lease == 0)
        memcpy(slot->body, message->body, message->len_bytes);
    if (box->envelope_at) {
        struct shm_envelope *envelope = envelope_of(box, slot);
        envelope->arrived_ns = shm_clock_ns();
        envelope->source = message->source;
        envelope->group = message->group;
        envelope->annex_bytes = message->annex ? message->annex_bytes + 1 : 0;
        if (message->annex)
            memcpy(envelope->annex, message->annex, message->annex_bytes);
    }
    SHM_KILL_POINT(send_publish);
    atomic_exchange(&slot->word, slot_word(box, position, SHM_NOBODY, SHM_SLOT_READY)); /* S1, W1 */
}

/* A mailbox that looks full because its right's holder died: sweep it, for the next receiver may never come. 0: look
 * again; FULL: it is; CORRUPTED. */
static int sweep_for_room(struct shm_thread *self, struct shm_box *box)
{
    int status = SHM_BUSY;
    if (shm_word_state(atomic_load(&box->ring->right)) == SHM_RIGHT_UNSWEPT)
        status = take_right(self, box);
    if (status == 0)
        release_right(self, box, SHM_RIGHT_FREE);
    return status == SHM_BUSY ? shm_ring_check(self, box) ? SHM_CORRUPTED : SHM_FULL : status;
}

int shm_ring_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message,
                  bool behind)
{
    struct shm_ring *ring = box->ring;
    int status = SHM_FULL;
    if (message->annex && (message->annex_bytes > SHM_ANNEX_BYTES || !box->envelope_at))
        return SHM_INVALID;
    if (box->message_bytes &&
        (message->len_bytes != box->message_bytes || message->format != SHM_FORMAT_BYTES))
        return SHM_INVALID;
    if (message->lease == 0 && message->len_bytes > box->body_bytes)
        return SHM_TOO_LARGE;
    if (behind && must_queue(self, box))
        return SHM_FULL;

    SHM_KILL_POINT(send_flight);
    struct shm_flight *flight =
        shm_flight_push(self, SHM_FLIGHT_CLAIMING, box->index, UINT64_MAX, message->lease);
    if (message->lease) {
        atomic_store_explicit(&flight->lease_word, shm_lease_word_in_flight(self, message->lease - 1),
                              memory_order_release);
        shm_lease_fly(self, message->lease - 1);
    }
    for (;;) {
        if (atomic_load_explicit(&ring->closed, memory_order_relaxed)) {
            status = SHM_CLOSED;
            break;
        }
        uint64_t tail = atomic_load(&ring->tail);
        struct shm_slot *slot = slot_at(box, tail);
        shm_word word = atomic_load_explicit(&slot->word, memory_order_acquire);
        int64_t ahead = lap_ahead(box, word, tail);
        if (ahead > 0 || (ahead == 0 && shm_word_state(word) != SHM_SLOT_FREE)) {
            /* Nobody claims a slot's next lap before the tail has been there: it is free by then, at most. */
            if (ahead > 1 && atomic_load(&ring->tail) == tail) {
                status = SHM_CORRUPTED;
                break;
            }
            atomic_compare_exchange_strong(&ring->tail, &tail, tail + 1); /* help */
            continue;
        }
        bool room = ahead == 0 &&
                    tail - atomic_load_explicit(&box->delivered_seen, memory_order_relaxed) < box->capacity;
        if (ahead == 0 && !room) {
            atomic_store_explicit(&box->delivered_seen,
                                  atomic_load_explicit(&ring->delivered, memory_order_acquire),
                                  memory_order_relaxed);
            room = has_room(box, tail);
        }
        if (!room) {
            if (atomic_load(&ring->tail) != tail)
                continue;
            status = sweep_for_room(self, box);
            if (status == 0)
                continue;
            break;
        }
        atomic_store_explicit(&flight->position, tail, memory_order_release);
        SHM_KILL_POINT(send_claim);
        if (!atomic_compare_exchange_strong(
                &slot->word, &word,
                shm_word_make(shm_word_count(word), self->slot, SHM_SLOT_CLAIMED))) /* S2 */
            continue;
        SHM_KILL_POINT(send_claimed);
        atomic_store_explicit(&flight->op, SHM_FLIGHT_CLAIMED, memory_order_release);
        SHM_KILL_POINT(send_tail);
        uint64_t expected = tail;
        atomic_compare_exchange_strong(&ring->tail, &expected, tail + 1);
        fill(self, box, tail, message);
        SHM_KILL_POINT(send_published);
        if (!shm_set_empty(box->receivers)) {
            struct shm_waitable receivers = shm_ring_receivers(box);
            shm_wake_set(self, &receivers, tail + 1);
        }
        wake_watchers(self, box);
        if (box->envelope_at) {
            SHM_KILL_POINT(port_wake);
            shm_port_wake(self, box);
        }
        if (self->turns && !shm_set_empty(box->senders) && --self->turns == 0 &&
            shm_clock_ns() - self->turns_ns < TURN_NS)
            self->turns = TURNS;
        SHM_KILL_POINT(send_done);
        shm_flight_pop(self);
        return 0;
    }
    if (message->lease)
        shm_lease_return(self, message->lease - 1);
    shm_flight_pop(self);
    return status;
}

bool shm_ring_writable(const struct shm_box *box)
{
    return may_send(box);
}

void shm_ring_grant_turns(struct shm_thread *self)
{
    self->turns = TURNS;
    self->turns_ns = shm_clock_ns();
}

/* ---- receiving --------------------------------------------------------------------------------------------- */

static inline bool matches(const struct shm_filter *filter, uint64_t header, shm_member_id sender)
{
    for (; filter; filter = filter->other)
        if (shm_filter_fits(filter, header, sender))
            return true;
    return false;
}

/* Is a message of these flags, which matches, one of those that the receive is for? */
static inline bool is_raw_enough(const struct shm_filter *filter, uint64_t header, uint32_t flags)
{
    return !filter->raw || (flags & ~(SHM_FLAG_MEETING | SHM_PRIORITY_BITS)) == 0 ||
           (header & SHM_TAG_MASK) == SHM_TAG_ORDER;
}

bool shm_call_take(struct shm_thread *self, shm_call_id call)
{
    if (call == 0)
        return true;
    uint32_t index = (uint32_t)(call >> 44);
    if (!shm_call_is_pending(self->segment, call))
        return false;
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    for (;;) {
        shm_word word = atomic_load(&cell->word);
        if (shm_word_count(word) != (call & SHM_COUNT_MASK) || !shm_cell_is_open(word))
            return false;
        if (shm_word_owner(word) == self->slot)
            break;
        SHM_KILL_POINT(take_call);
        if (atomic_compare_exchange_strong(
                &cell->word, &word, shm_word_make(call & SHM_COUNT_MASK, self->slot, shm_word_state(word))))
            break;
    }
    shm_cell_served(self, cell, call & SHM_COUNT_MASK);
    return true;
}

/* Is the message, which somebody still wants to be received, too large for the receiver? Says how large. */
static bool does_not_fit(struct shm_thread *self, const struct shm_filter *filter,
                         const struct shm_slot *slot, struct shm_message *message)
{
    uint32_t len_bytes = SHM_ONCE(slot->len_bytes);
    if (filter->too_large == 0 || len_bytes < filter->too_large ||
        (slot->call && !shm_call_is_pending(self->segment, slot->call)))
        return false;
    *message = (struct shm_message){.len_bytes = len_bytes};
    return true;
}

static inline uint32_t priority_of(const struct shm_slot *slot)
{
    return (SHM_ONCE(slot->flags) & SHM_PRIORITY_BITS) >> SHM_PRIORITY_SHIFT;
}

/* Copy a message out, or take its block over; the flight word of the right tells which, should we die. `keeps`: it
 * stays where it is, and its block is held once more. */
static int copy_out(struct shm_thread *self, struct shm_box *box, struct shm_slot *slot, uint64_t position,
                    struct shm_message *message, bool keeps)
{
    uint32_t lease = atomic_load_explicit(&slot->lease, memory_order_relaxed);
    *message = (struct shm_message){.header = slot->header,
                                    .sender = slot->sender,
                                    .call = slot->call,
                                    .len_bytes = SHM_ONCE(slot->len_bytes),
                                    .format = slot->format,
                                    .flags = (uint16_t)(slot->flags & ~SHM_PRIORITY_BITS),
                                    .priority = priority_of(slot),
                                    .position = position,
                                    .lease = lease,
                                    .deadline_ns = slot->deadline_ns};
    if (box->envelope_at) {
        const struct shm_envelope *envelope = envelope_of(box, slot);
        uint32_t annex_bytes = SHM_ONCE(envelope->annex_bytes);
        message->source = envelope->source;
        message->group = envelope->group;
        if (annex_bytes > SHM_ANNEX_BYTES + 1)
            return SHM_CORRUPTED;
        if (annex_bytes) {
            message->annex = memcpy(self->annex, envelope->annex, SHM_ANNEX_BYTES);
            message->annex_bytes = annex_bytes - 1;
        }
    }
    if (lease == 0) {
        if (message->len_bytes > box->body_bytes)
            return SHM_CORRUPTED;
        memcpy(self->scratch, slot->body, message->len_bytes);
        message->body = self->scratch;
        return 0;
    }
    uint32_t block;
    if (!shm_index_ok(self->segment, SHM_TABLE_LEASES, lease - 1) ||
        !shm_lease_find(self->segment, lease - 1, message->len_bytes, &block))
        return SHM_CORRUPTED;
    if (keeps) {
        shm_lease_index held;
        SHM_KILL_POINT(keep_lease);
        int status = shm_block_hold(self, block, &held);
        message->lease = status ? 0 : held + 1;
        message->body = self->segment->view + shm_block_offset(self->segment, block);
        return status;
    }
    struct shm_flight *flight = &self->at->flights[self->depth - 1];
    shm_word seen = atomic_load(&shm_lease_at(self->segment, lease - 1)->word);
    atomic_store_explicit(&flight->position, position, memory_order_relaxed);
    atomic_store_explicit(&flight->lease_word, shm_word_next(seen, self->slot, SHM_LEASE_HELD),
                          memory_order_relaxed);
    atomic_store_explicit(&flight->lease, lease, memory_order_release);
    SHM_KILL_POINT(take_lease);
    if (!shm_lease_land(self, lease - 1))
        return SHM_CORRUPTED;
    message->body = self->segment->view + shm_block_offset(self->segment, block);
    return 0;
}

static void taken(struct shm_thread *self)
{
    atomic_store_explicit(&self->at->flights[self->depth - 1].lease, 0, memory_order_release);
}

static void count_delivered(struct shm_ring *ring)
{
    SHM_KILL_POINT(take_count);
    atomic_store_explicit(&ring->delivered, atomic_load_explicit(&ring->delivered, memory_order_relaxed) + 1,
                          memory_order_release);
}

/* The slot at head is done with: the commit of a take. */
static void free_head(struct shm_box *box, uint64_t head)
{
    SHM_KILL_POINT(take_commit);
    atomic_store_explicit(&slot_at(box, head)->word, slot_word(box, head, SHM_NOBODY, SHM_SLOT_FREE),
                          memory_order_release); /* S2 */
    SHM_KILL_POINT(take_head);
    atomic_store_explicit(&box->ring->head, head + 1, memory_order_release);
}

/* The message at this position is lost with its receiver. For who alone may take it, before it goes: whoever has to
 * do it again, because he died, finds the position counted. */
static void count_lost(struct shm_thread *self, uint32_t index, uint64_t position, uint16_t flags)
{
    if (flags & SHM_FLAG_OWN)
        return;
    _Atomic uint64_t *lost = &shm_box_at(self->segment, index)->lost;
    uint64_t seen = atomic_load(lost), mark = (position + 1) & 0xFFFFFFFF;
    SHM_KILL_POINT(take_lost);
    if (seen >> 32 != mark)
        atomic_store(lost, mark << 32 | ((seen + 1) & 0xFFFFFFFF));
}

/* A message that nobody will take any more goes, with its block. */
static void drop_slot(struct shm_thread *self, struct shm_slot *slot)
{
    shm_lease_drop(self, &slot->lease, slot->birth);
}

static uint32_t free_aside(struct shm_box *box)
{
    struct shm_ring *ring = box->ring;
    for (uint32_t n = 0; n < box->capacity; n++) {
        uint32_t e = (uint32_t)((ring->aside_free + (uint64_t)n) % box->capacity);
        if (!atomic_load_explicit(&box->asides[e].used, memory_order_relaxed)) {
            ring->aside_free = e + 1;
            return e;
        }
    }
    return UINT32_MAX; /* cannot be: undelivered messages are at most `capacity`, entries too */
}

/* Move the message at head to the set-aside list: link it, then free its slot. */
static int set_aside(struct shm_box *box, uint64_t head)
{
    struct shm_ring *ring = box->ring;
    struct shm_slot *slot = slot_at(box, head);
    uint32_t e = free_aside(box);
    if (e == UINT32_MAX)
        return SHM_CORRUPTED;
    struct shm_aside *aside = &box->asides[e];
    uint32_t len_bytes = SHM_ONCE(slot->len_bytes), last = SHM_ONCE(ring->aside_last);
    uint32_t inline_bytes = len_bytes <= box->body_bytes && !atomic_load(&slot->lease) ? len_bytes : 0;
    if (last > box->capacity)
        return SHM_CORRUPTED;
    /* All but the word, which senders that come too early still try to claim. */
    memcpy((char *)body_at(box, e) + sizeof slot->word, (char *)slot + sizeof slot->word,
           sizeof(struct shm_slot) - sizeof slot->word + inline_bytes);
    if (box->envelope_at)
        *envelope_of(box, body_at(box, e)) = *envelope_of(box, slot);
    aside->position = head;
    aside->header = slot->header;
    aside->sender = slot->sender;
    atomic_store_explicit(&aside->next, 0, memory_order_relaxed);
    atomic_store_explicit(&aside->used, 1, memory_order_relaxed);
    SHM_KILL_POINT(aside_link);
    if (last)
        atomic_store_explicit(&box->asides[last - 1].next, e + 1, memory_order_release);
    else
        atomic_store_explicit(&ring->aside_first, e + 1, memory_order_release);
    ring->aside_last = e + 1;
    ring->aside_count++;
    SHM_KILL_POINT(aside_free);
    atomic_store_explicit(&slot->word, slot_word(box, head, SHM_NOBODY, SHM_SLOT_FREE), memory_order_release);
    SHM_KILL_POINT(take_head);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    return 0;
}

static void unlink_aside(struct shm_box *box, uint32_t previous, uint32_t entry)
{
    struct shm_ring *ring = box->ring;
    uint32_t next = atomic_load_explicit(&box->asides[entry - 1].next, memory_order_relaxed);
    SHM_KILL_POINT(aside_unlink);
    if (previous)
        atomic_store_explicit(&box->asides[previous - 1].next, next, memory_order_release);
    else
        atomic_store_explicit(&ring->aside_first, next, memory_order_release);
    if (ring->aside_last == entry)
        ring->aside_last = previous;
    ring->aside_count--;
    atomic_store_explicit(&box->asides[entry - 1].used, 0, memory_order_relaxed);
    ring->aside_free = entry - 1;
    count_delivered(ring);
}

/* The order to stop, found by a receive that is for users' messages: it stays for who serves the mailbox. */
static inline bool is_left_order(const struct shm_filter *filter, uint64_t header)
{
    return filter->raw && (header & SHM_TAG_MASK) == SHM_TAG_ORDER;
}

/* Is there still a message of `target`, who is dead, that the filter matches, set aside or in the ring? The tail is
 * helped first, past claims of others that stand before it. */
static bool has_older(struct shm_box *box, const struct shm_filter *filter, shm_member_id target)
{
    uint64_t tail = shm_ring_help_tail(box);
    uint32_t seen = 0;
    for (uint32_t e = atomic_load(&box->ring->aside_first); e && e <= box->capacity && seen++ < box->capacity;
         e = atomic_load(&box->asides[e - 1].next))
        if (box->asides[e - 1].sender == target && matches(filter, box->asides[e - 1].header, target) &&
            is_raw_enough(filter, box->asides[e - 1].header, body_at(box, e - 1)->flags))
            return true;
    uint64_t at = atomic_load(&box->ring->head);
    for (uint64_t n = 0; n <= box->mask && at < tail; n++, at++) {
        struct shm_slot *slot = slot_at(box, at);
        if (state_at(box, at) == SHM_SLOT_READY && slot->sender == target &&
            matches(filter, slot->header, target) && is_raw_enough(filter, slot->header, slot->flags))
            return true;
    }
    return false;
}

/* What is received without a slot: ends of those who are watched, ticks of timers, answers to letters, bits. */
enum { TOLD_KINDS = 1 << SHM_KIND_EXIT | 1 << SHM_KIND_TIMER | 1 << SHM_KIND_REPLY | 1 << SHM_KIND_NOTIFY };

static inline bool may_match_told(const struct shm_filter *filter)
{
    uint32_t kinds = 0;
    for (; filter; filter = filter->other)
        kinds |= filter->kinds;
    return kinds & TOLD_KINDS;
}

static inline bool wants_bits(const struct shm_filter *filter)
{
    for (; filter; filter = filter->other)
        if (shm_filter_takes_bits(filter))
            return true;
    return false;
}

/* What a notice says in this mailbox once it is `state`, FIRED or BACK, and `owner`'s. False: it is for another. */
static bool says(const struct shm_thread *self, const struct shm_box *box, const struct shm_notice *notice,
                 uint32_t state, uint32_t owner, uint64_t *header, shm_member_id *sender)
{
    bool back = state == SHM_NOTICE_BACK;
    *sender = atomic_load(back ? &notice->maker : &notice->target);
    *header = shm_header_make(SHM_KIND_EXIT, 0);
    if (atomic_load(back ? &notice->back_box : &notice->box) != box->index ||
        atomic_load(back ? &notice->back_life : &notice->life) != box->count)
        return false;
    if (atomic_load(&notice->kind) != SHM_KIND_TIMER)
        return owner == self->slot && (!back || *sender);
    *header = shm_header_make(SHM_KIND_TIMER, atomic_load(&notice->header));
    return true;
}

static inline bool has_fired(shm_word word)
{
    return shm_word_state(word) == SHM_NOTICE_FIRED || shm_word_state(word) == SHM_NOTICE_BACK;
}

/* Is this the mailbox in which this member gets the answers to its letters? */
static inline bool is_own(const struct shm_thread *self, const struct shm_box *box)
{
    return box->owner == shm_member_id_self(self->member) &&
           atomic_load(&self->member->record->box) == box->index + 1;
}

static uint64_t letter_header(const struct shm_cell *cell)
{
    return shm_header_make(SHM_KIND_REPLY, atomic_load(&cell->tag));
}

/* Who has answered; of a request that anybody could take, and that failed, who had taken it; 0: nobody. */
static shm_member_id letter_sender(const struct shm_cell *cell)
{
    uint64_t count = shm_word_count(atomic_load(&cell->word));
    if (cell->replier || atomic_load(&cell->served_by) >> 20 != count)
        return cell->replier;
    return atomic_load(&cell->server);
}

bool shm_ring_has_letter(const struct shm_thread *self, const struct shm_box *box)
{
    const struct shm_member *member = self->member;
    if (atomic_load(&member->letters) == 0 || !is_own(self, box))
        return false;
    for (uint32_t i = 0; i < member->chunks_count; i++)
        if (atomic_load(&shm_chunk_at(self->segment, member->chunks[i])->answered))
            return true;
    return false;
}

/* The cell of an answered letter that the filter matches, and its word; NULL: none. *left: others are there. */
static struct shm_cell *find_letter(const struct shm_thread *self, const struct shm_box *box,
                                    const struct shm_filter *filter, uint32_t *index, bool *left)
{
    const struct shm_member *member = self->member;
    if (atomic_load(&member->letters) == 0 || !is_own(self, box))
        return NULL;
    for (uint32_t i = 0; i < member->chunks_count; i++) {
        struct shm_chunk *chunk = shm_chunk_at(self->segment, member->chunks[i]);
        for (uint64_t bits = atomic_load(&chunk->answered); bits; bits &= bits - 1) {
            uint32_t at = (uint32_t)__builtin_ctzll(bits);
            struct shm_cell *cell = &chunk->cells[at];
            if (!(atomic_load(&cell->flags) & SHM_CELL_LETTER) || !shm_cell_is_done(atomic_load(&cell->word)))
                continue; /* taken before, and told again by a reaper */
            if (matches(filter, letter_header(cell), letter_sender(cell))) {
                *index = member->chunks[i] * SHM_CHUNK_CELLS + at;
                return cell;
            }
            *left = true;
        }
    }
    return NULL;
}

/* Is there still a tick of `target`, who is dead, that the filter matches? */
static bool has_older_tick(const struct shm_thread *self, const struct shm_box *box,
                           const struct shm_filter *filter, shm_member_id target)
{
    uint64_t header;
    shm_member_id sender;
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        const struct shm_notice *notice = shm_notice_at(self->segment, i);
        shm_word word = atomic_load(&notice->word);
        if (shm_word_state(word) == SHM_NOTICE_FIRED && atomic_load(&notice->kind) == SHM_KIND_TIMER &&
            says(self, box, notice, SHM_NOTICE_FIRED, shm_word_owner(word), &header, &sender) &&
            sender == target && matches(filter, header, sender))
            return true;
    }
    return false;
}

/* The cell of a letter that `target`, who is dead, has answered and the filter matches; its bit may not be set yet. */
static struct shm_cell *find_older_letter(const struct shm_thread *self, const struct shm_box *box,
                                          const struct shm_filter *filter, shm_member_id target,
                                          uint32_t *index)
{
    const struct shm_member *member = self->member;
    if (self->loses || atomic_load(&member->letters) == 0 || !is_own(self, box))
        return NULL;
    for (uint32_t i = 0; i < member->chunks_count * SHM_CHUNK_CELLS; i++) {
        *index = member->chunks[i / SHM_CHUNK_CELLS] * SHM_CHUNK_CELLS + i % SHM_CHUNK_CELLS;
        struct shm_cell *cell = shm_cell_at(self->segment, *index);
        if ((atomic_load(&cell->flags) & SHM_CELL_LETTER) && shm_cell_is_done(atomic_load(&cell->word)) &&
            letter_sender(cell) == target && matches(filter, letter_header(cell), target))
            return cell;
    }
    return NULL;
}

/* Has something come without a slot that the filter matches? Loads only. */
static bool has_notice(const struct shm_thread *self, const struct shm_box *box,
                       const struct shm_filter *filter)
{
    const struct shm_ring *ring = box->ring;
    uint64_t header;
    shm_member_id sender;
    uint32_t index;
    bool left;
    if (atomic_load(&ring->notices) == atomic_load(&ring->notices_seen) || !may_match_told(filter))
        return false;
    if (atomic_load(&ring->bits) && wants_bits(filter))
        return true;
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        const struct shm_notice *notice = shm_notice_at(self->segment, i);
        shm_word word = atomic_load(&notice->word);
        if (has_fired(word) &&
            says(self, box, notice, shm_word_state(word), shm_word_owner(word), &header, &sender) &&
            matches(filter, header, sender))
            return true;
    }
    return find_letter(self, box, filter, &index, &left) != NULL;
}

/* Take the tick that is due first. Its body is copied before the commit; its bytes do not change while it lives. */
static bool take_tick(struct shm_thread *self, struct shm_notice *notice, shm_word word,
                      struct shm_message *message)
{
    uint32_t len_bytes = atomic_load(&notice->len_bytes);
    uint64_t *words = self->scratch;
    if (len_bytes > SHM_NOTICE_INLINE)
        len_bytes = 0;
    *message = (struct shm_message){.header = shm_header_make(SHM_KIND_TIMER, atomic_load(&notice->header)),
                                    .sender = atomic_load(&notice->target),
                                    .len_bytes = len_bytes,
                                    .format = (uint16_t)atomic_load(&notice->format),
                                    .body = self->scratch};
    for (uint32_t i = 0; i < (len_bytes + 7) / 8; i++)
        words[i] = atomic_load_explicit(&notice->body[i], memory_order_acquire);
    bool again = atomic_load(&notice->period_ns) && shm_word_owner(word) != SHM_NOBODY;
    shm_word next = shm_word_make(shm_word_count(word), again ? shm_word_owner(word) : SHM_NOBODY,
                                  again ? SHM_NOTICE_ARMED : SHM_NOTICE_FREE);
    SHM_KILL_POINT(timer_take);
    return atomic_compare_exchange_strong(&notice->word, &word, next);
}

/* Take the answer to a letter: its cell is this thread's to read and free, whoever tells of it again. */
static bool take_letter(struct shm_thread *self, struct shm_cell *cell, uint32_t index,
                        struct shm_message *message)
{
    struct shm_chunk *chunk = shm_chunk_at(self->segment, index / SHM_CHUNK_CELLS);
    atomic_fetch_and(&chunk->answered, ~(UINT64_C(1) << index % SHM_CHUNK_CELLS));
    if (!(atomic_fetch_and(&cell->flags, ~(uint32_t)SHM_CELL_LETTER) & SHM_CELL_LETTER))
        return false;
    atomic_fetch_sub(&self->member->letters, 1);
    *message =
        (struct shm_message){.header = letter_header(cell),
                             .sender = letter_sender(cell),
                             .told = SHM_TOLD_REPLY,
                             .letter = (uint64_t)index << 44 | shm_word_count(atomic_load(&cell->word)),
                             .body = self->scratch};
    return true;
}

/* Take the bits that are set; whoever sets some later tells of them later. *left: they are not for this receive. */
static bool take_bits(struct shm_ring *ring, const struct shm_filter *filter, struct shm_message *message,
                      bool *left)
{
    if (atomic_load(&ring->bits) == 0)
        return false;
    if (!wants_bits(filter)) {
        *left = true;
        return false;
    }
    SHM_KILL_POINT(notify_take);
    uint64_t bits = atomic_exchange(&ring->bits, 0);
    *message = (struct shm_message){
        .header = shm_header_make(SHM_KIND_NOTIFY, 0), .told = SHM_TOLD_BITS, .notice = bits, .body = ""};
    return true;
}

/* The bits that are set, else the first end of one of whom nothing is left, else the tick that is due first, else an answer.
 * The cells are read before the slots. */
static int take_notice(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                       struct shm_message *message)
{
    struct shm_ring *ring = box->ring;
    uint64_t fired = atomic_load(&ring->notices), header, due = UINT64_MAX;
    if (fired == atomic_load(&ring->notices_seen) || !may_match_told(filter))
        return SHM_EMPTY;
    bool left = false;
    if (take_bits(ring, filter, message, &left))
        return 0;
    struct shm_notice *tick = NULL;
    shm_word tick_word = 0;
    struct shm_cell *letter = NULL;
    uint32_t index;
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        struct shm_notice *notice = shm_notice_at(self->segment, i);
        shm_word word = atomic_load(&notice->word);
        shm_member_id target;
        if (!has_fired(word) ||
            !says(self, box, notice, shm_word_state(word), shm_word_owner(word), &header, &target))
            continue;
        if (header >> 61 == SHM_KIND_TIMER) {
            uint64_t its = atomic_load(&notice->due_ns);
            if (!matches(filter, header, target)) {
                left = true;
            } else if (its < due) {
                due = its;
                tick = notice;
                tick_word = word;
            }
            continue;
        }
        if (!matches(filter, header, target) || has_older(box, filter, target) ||
            has_older_tick(self, box, filter, target) ||
            (letter = find_older_letter(self, box, filter, target, &index))) {
            left = true;
            continue;
        }
        *message = (struct shm_message){.header = header,
                                        .sender = target,
                                        .told = atomic_load(&notice->maker) ? SHM_TOLD_LINK : SHM_TOLD_EXIT,
                                        .notice = shm_notice_number(shm_word_count(word), i),
                                        .cause = atomic_load(&notice->cause) & 0xFFFFF,
                                        .undelivered = (uint32_t)atomic_load(&notice->undelivered),
                                        .body = self->scratch};
        if (atomic_compare_exchange_strong(&notice->word, &word,
                                           shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_NOTICE_FREE)))
            return 0;
    }
    if (tick && filter->too_large && atomic_load(&tick->len_bytes) >= filter->too_large) {
        *message = (struct shm_message){.len_bytes = atomic_load(&tick->len_bytes)};
        return SHM_TOO_SMALL;
    }
    if (tick && take_tick(self, tick, tick_word, message))
        return 0;
    if (!letter && !self->loses)
        letter = find_letter(self, box, filter, &index, &left);
    if (letter && take_letter(self, letter, index, message))
        return 0;
    if (!left && !tick && !letter)
        atomic_store(&ring->notices_seen, fired);
    return SHM_EMPTY;
}

int shm_ring_notify(struct shm_thread *self, struct shm_box *box, uint64_t bits)
{
    struct shm_ring *ring = box->ring;
    if (atomic_load(&ring->closed))
        return SHM_CLOSED;
    shm_flight_push(self, SHM_FLIGHT_NOTIFY, box->index, 0, 0);
    SHM_KILL_POINT(notify_set);
    atomic_fetch_or(&ring->bits, bits);
    SHM_KILL_POINT(notify_tell);
    /* Also when they were set: whoever has set them may have been stopped before this. */
    shm_ring_tell(self, box);
    shm_flight_pop(self);
    return atomic_load(&ring->closed) ? SHM_CLOSED : 0;
}

void shm_ring_tell(struct shm_thread *self, struct shm_box *box)
{
    atomic_fetch_add(&box->ring->notices, 1);
    struct shm_waitable receivers = shm_ring_receivers(box);
    shm_wake_all(self,
                 &receivers); /* one of them may decline it, and the next has seen all messages already */
    wake_watchers(self, box);
    if (box->envelope_at)
        shm_port_wake(self, box);
}

/* ---- starving ---------------------------------------------------------------------------------------------- */

static bool waits_for_bits(const struct shm_filter *filter)
{
    for (; filter; filter = filter->other)
        if (filter->kinds == 1u << SHM_KIND_NOTIFY && shm_filter_takes_bits(filter))
            return true;
    return false;
}

/* Could something that needs no slot end this receive? What is armed, open, or has come. */
static bool may_be_told(const struct shm_thread *self, const struct shm_box *box,
                        const struct shm_filter *filter)
{
    bool told_only = true;
    for (const struct shm_filter *f = filter; f; f = f->other)
        told_only &= (f->kinds & ~(uint32_t)(1 << SHM_KIND_EXIT | 1 << SHM_KIND_TIMER)) == 0;
    if (told_only || (!filter->raw && wants_bits(filter)) || waits_for_bits(filter))
        return true; /* a full mailbox does not hold up what it waits for */
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NOTICES); i++) {
        const struct shm_notice *notice = shm_notice_at(self->segment, i);
        uint64_t header;
        shm_member_id sender;
        shm_word word = atomic_load(&notice->word);
        if (shm_word_state(word) < SHM_NOTICE_TENTATIVE)
            continue;
        bool fits = says(self, box, notice, SHM_NOTICE_FIRED, shm_word_owner(word), &header, &sender) &&
                    matches(filter, header, sender);
        uint32_t target = atomic_load(&notice->target) & 0xFFFF;
        if (fits || (says(self, box, notice, SHM_NOTICE_BACK, target, &header, &sender) &&
                     matches(filter, header, sender)))
            return true;
    }
    const struct shm_member *member = self->member;
    if (atomic_load(&member->letters) == 0 || !is_own(self, box))
        return false;
    for (uint32_t i = 0; i < member->chunks_count; i++)
        for (uint32_t at = 0; at < SHM_CHUNK_CELLS; at++) {
            const struct shm_cell *cell = &shm_chunk_at(self->segment, member->chunks[i])->cells[at];
            if (shm_word_state(atomic_load(&cell->word)) == SHM_CELL_FREE ||
                !(atomic_load(&cell->flags) & SHM_CELL_LETTER))
                continue;
            shm_member_id sender = cell->replier; /* 0: of a mailbox that anybody may serve */
            for (const struct shm_filter *f = filter; f; f = f->other)
                if (shm_filter_fits(f, letter_header(cell), sender ? sender : f->sender))
                    return true;
        }
    return false;
}

/* Has every other receive on the mailbox declined all below `tail`, and does it sleep? */
static bool others_have_declined(const struct shm_thread *self, const struct shm_box *box, uint64_t tail)
{
    for (uint32_t w = 0; w < box->place_words; w++)
        for (uint64_t bits = atomic_load(&box->receivers->words[w]); bits; bits &= bits - 1) {
            uint32_t index = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (index == self->place || !shm_index_ok(self->segment, SHM_TABLE_PLACES, index))
                continue;
            const struct shm_place *place = shm_place_at(self->segment, index);
            uint64_t looked = atomic_load(&place->looked);
            if (looked == 0 || shm_count_difference(looked - 1, tail) < 0 ||
                shm_word_state(atomic_load(&place->word)) != SHM_PLACE_ARMED)
                return false;
        }
    return true;
}

bool shm_ring_is_awaited(const struct shm_thread *self, const struct shm_box *box)
{
    return !others_have_declined(self, box, atomic_load(&box->ring->tail));
}

bool shm_ring_is_full(const struct shm_box *box)
{
    return atomic_load(&box->ring->tail) - atomic_load(&box->ring->delivered) >= box->capacity;
}

bool shm_ring_starves(struct shm_thread *self, const struct shm_box *box, const struct shm_filter *filter,
                      uint64_t looked)
{
    const struct shm_ring *ring = box->ring;
    uint64_t delivered = atomic_load(&ring->delivered), tail = atomic_load(&ring->tail);
    if (tail - delivered < box->capacity || looked < tail || shm_filter_is_open(filter))
        return false; /* not full, or one is half-written: what was seen ends where it stands */
    return shm_word_state(atomic_load(&ring->right)) == SHM_RIGHT_FREE && !atomic_load(&ring->closed) &&
           others_have_declined(self, box, tail) && !may_be_told(self, box, filter) &&
           atomic_load(&ring->delivered) == delivered;
}

/* Is it among the positions that the receive is for? `only`: that one alone, + 1; 0: as the filter says. */
static inline bool is_meant(const struct shm_filter *filter, uint64_t only, uint64_t position)
{
    return only ? position + 1 == only
                : filter->until == 0 || (position >= filter->from && position < filter->until);
}

/* A receive that keeps the message makes no call its own; it passes over those that nobody waits for. */
static bool claim_call(struct shm_thread *self, const struct shm_filter *filter, shm_call_id call)
{
    return filter->keeps ? call == 0 || shm_call_is_pending(self->segment, call) : shm_call_take(self, call);
}

/* A request that nobody waits for any more: it is to take no room from those that somebody does. */
static bool is_withdrawn(const struct shm_thread *self, const struct shm_slot *slot)
{
    shm_call_id call = SHM_ONCE(slot->call);
    return call && !shm_call_is_pending(self->segment, call);
}

/* The oldest match among what was set aside. */
static int take_aside(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                      struct shm_message *message, uint64_t looked, uint64_t only)
{
    uint32_t previous = 0, steps = 0;
    /* What nobody waits for is looked for only when the mailbox is full; else the tags of the two conditions that there
     * are as a rule, the user's and the order to stop, tell most of them apart. */
    bool drops = !filter->keeps && shm_ring_is_full(box);
    const struct shm_filter *other = filter->other ? filter->other : filter;
    bool by_tag = !drops && filter->tag != SHM_TAG_ANY && other->tag != SHM_TAG_ANY &&
                  (other == filter || !other->other);
    for (uint32_t e = atomic_load_explicit(&box->ring->aside_first, memory_order_relaxed); e;) {
        if (e > box->capacity || steps++ > box->capacity)
            return SHM_CORRUPTED;
        struct shm_aside *aside = &box->asides[e - 1];
        uint32_t next = atomic_load_explicit(&aside->next, memory_order_relaxed);
        if (!atomic_load_explicit(&aside->used, memory_order_relaxed))
            return SHM_CORRUPTED; /* taken before: the list leads back to it */
        uint64_t tag = aside->header & SHM_TAG_MASK;
        if (by_tag && tag != filter->tag && tag != other->tag) {
            previous = e;
            e = next;
            continue;
        }
        struct shm_slot *body = body_at(box, e - 1);
        if (aside->position >= looked && is_meant(filter, only, aside->position) &&
            matches(filter, aside->header, aside->sender) &&
            is_raw_enough(filter, aside->header, body->flags)) {
            if (is_left_order(filter, aside->header))
                return SHM_CLOSED;
            if (does_not_fit(self, filter, body, message))
                return SHM_TOO_SMALL;
            if (claim_call(self, filter, body->call)) {
                int status = copy_out(self, box, body, aside->position, message, filter->keeps);
                if (filter->keeps)
                    return status;
                if (self->loses)
                    count_lost(self, box->index, aside->position, body->flags);
                unlink_aside(box, previous, e);
                taken(self);
                return status;
            }
            drop_slot(self, body);
            unlink_aside(box, previous, e);
            e = next;
            continue;
        }
        if (drops && is_withdrawn(self, body)) {
            drop_slot(self, body);
            unlink_aside(box, previous, e);
            e = next;
            continue;
        }
        previous = e;
        e = next;
    }
    return SHM_EMPTY;
}

/* The position + 1 of the most urgent match that was set aside, of those the oldest; 0: there is none. */
static uint64_t most_urgent(struct shm_box *box, const struct shm_filter *filter, uint64_t looked)
{
    uint64_t found = 0;
    uint32_t least = SHM_PRIORITY_MAX + 1, steps = 0;
    for (uint32_t e = atomic_load_explicit(&box->ring->aside_first, memory_order_relaxed);
         e && e <= box->capacity && steps++ < box->capacity;
         e = atomic_load_explicit(&box->asides[e - 1].next, memory_order_relaxed)) {
        const struct shm_aside *aside = &box->asides[e - 1];
        uint32_t priority = priority_of(body_at(box, e - 1));
        if ((priority < least || filter->ends) && aside->position >= looked &&
            is_meant(filter, 0, aside->position) && matches(filter, aside->header, aside->sender) &&
            is_raw_enough(filter, aside->header, body_at(box, e - 1)->flags)) {
            if (filter->ends && (aside->header & SHM_TAG_MASK) == filter->ends)
                return found ? found : aside->position + 1;
            if (priority >= least)
                continue;
            least = priority;
            found = aside->position + 1;
        }
    }
    return found;
}

/* Was it claimed before the port was emptied? */
static inline bool is_lost(const struct shm_box *box, uint64_t position)
{
    return (int64_t)(position - atomic_load_explicit(&box->ring->drop_below, memory_order_relaxed)) < 0;
}

/* Walk on from head: take the first match, set aside what does not match; UINT64_MAX as `only`: all. */
static int take_ring(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                     struct shm_message *message, uint64_t only)
{
    for (;;) {
        uint64_t head = atomic_load_explicit(&box->ring->head, memory_order_relaxed);
        struct shm_slot *slot = slot_at(box, head);
        uint32_t state = state_at(box, head); /* S1 */
        if (state == SHM_SLOT_SKIP) {
            free_head(box, head);
            count_delivered(box->ring);
            continue;
        }
        if (state !=
            SHM_SLOT_READY) /* under the right head's slot is in head's lap, in a state that there is */
            return is_to_be_seen(state) ? SHM_CORRUPTED : SHM_EMPTY;
        if (is_lost(box, head)) { /* its caller was told then */
            count_lost(self, box->index, head, slot->flags);
            drop_slot(self, slot);
            free_head(box, head);
            count_delivered(box->ring);
            continue;
        }
        int status;
        if (is_meant(filter, only, head) && matches(filter, slot->header, slot->sender) &&
            is_raw_enough(filter, slot->header, slot->flags)) {
            if (is_left_order(filter, slot->header))
                return SHM_CLOSED;
            if (does_not_fit(self, filter, slot, message))
                return SHM_TOO_SMALL;
            if (!claim_call(self, filter, slot->call)) {
                drop_slot(self, slot);
                free_head(box, head);
                count_delivered(box->ring);
                continue;
            }
            status = copy_out(self, box, slot, head, message, filter->keeps);
            if (filter->keeps)
                return status;
            if (self->loses)
                count_lost(self, box->index, head, slot->flags);
            free_head(box, head);
            taken(self);
            count_delivered(box->ring);
            return status;
        }
        if (!filter->keeps && is_withdrawn(self, slot)) {
            drop_slot(self, slot);
            free_head(box, head);
            count_delivered(box->ring);
            continue;
        }
        status = set_aside(box, head);
        if (status)
            return status;
    }
}

/* The most urgent match: all that is there is set aside, for each of them has to be looked at. */
static int take_urgent(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                       struct shm_message *message, uint64_t looked)
{
    int status = take_ring(self, box, filter, message, UINT64_MAX);
    while (status == SHM_EMPTY) {
        uint64_t only = most_urgent(box, filter, looked);
        if (only == 0)
            return SHM_EMPTY;
        status = take_aside(self, box, filter, message, looked, only); /* EMPTY: nobody waits for that call */
    }
    return status;
}

int shm_ring_receive(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                     struct shm_message *message, uint64_t *looked)
{
    struct shm_ring *ring = box->ring;
    int status = shm_port_check(self, box);
    if (status)
        return status;
    if (!shm_ring_readable(self, box, filter, *looked)) {
        if (shm_word_state(atomic_load(&ring->right)) == SHM_RIGHT_HELD)
            return SHM_BUSY;
        if (!shm_filter_is_open(filter)) /* the place forgets it between waits */
            atomic_store(&self->at->looked, *looked + 1);
        return SHM_EMPTY;
    }
    status = take_right(self, box);
    if (status)
        return status;
    status = shm_port_check(self, box); /* it may have migrated before we had the right */
    if (status) {
        /* nothing is ours to take */
    } else if (filter->keeps || filter->until ||
               (status = take_notice(self, box, filter, message)) == SHM_EMPTY) {
        if (filter->urgent) {
            status = take_urgent(self, box, filter, message, *looked);
        } else {
            status = take_aside(self, box, filter, message, *looked, 0);
            if (status == SHM_EMPTY)
                status = take_ring(self, box, filter, message, 0);
        }
        /* A request that was dropped may have been the last thing before its sender's end. */
        if (status == SHM_EMPTY && !filter->keeps && filter->until == 0)
            status = take_notice(self, box, filter, message);
        if (status == SHM_EMPTY) {
            if (!shm_filter_is_open(filter)) {
                *looked = atomic_load_explicit(&ring->head, memory_order_relaxed);
                atomic_store(&self->at->looked, *looked + 1);
            }
            if (atomic_load(&ring->closed))
                status = SHM_CLOSED;
        }
    }
    if (status == 0 && box->envelope_at && !self->loses && !filter->keeps)
        message->number = shm_port_count(self, box);
    release_right(self, box, SHM_RIGHT_FREE);
    return status;
}

int shm_ring_hold(struct shm_thread *self, struct shm_box *box)
{
    return take_right(self, box);
}

void shm_ring_let(struct shm_thread *self, struct shm_box *box)
{
    release_right(self, box, SHM_RIGHT_FREE);
}

uint64_t shm_ring_oldest_ns(const struct shm_thread *self, const struct shm_box *box)
{
    const struct shm_ring *ring = box->ring;
    const struct shm_filter any = SHM_FILTER_NONE;
    if (has_notice(self, box, &any))
        return 0; /* what needs no slot comes first, whenever it came */
    uint32_t entry = atomic_load(&ring->aside_first);
    for (uint64_t n = 0; entry && entry <= box->capacity && n < box->capacity; n++) {
        struct shm_slot *slot = body_at(box, entry - 1);
        if (!is_withdrawn(self, slot))
            return SHM_ONCE(envelope_of(box, slot)->arrived_ns);
        entry = atomic_load(&box->asides[entry - 1].next);
    }
    uint64_t head = atomic_load(&ring->head);
    for (uint64_t n = 0; n <= box->mask; n++) {
        struct shm_slot *slot = slot_at(box, head + n);
        uint32_t state = state_at(box, head + n);
        if (!is_to_be_seen(state))
            break;
        if (state == SHM_SLOT_READY && !is_lost(box, head + n) && !is_withdrawn(self, slot))
            return SHM_ONCE(envelope_of(box, slot)->arrived_ns);
    }
    return UINT64_MAX;
}

bool shm_ring_readable(const struct shm_thread *self, const struct shm_box *box,
                       const struct shm_filter *filter, uint64_t looked)
{
    const struct shm_ring *ring = box->ring;
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    uint32_t state = state_at(box, head),
             right = shm_word_state(atomic_load_explicit(&ring->right, memory_order_acquire));
    if (shm_port_check(self, box))
        return true; /* to be told so */
    if (right == SHM_RIGHT_HELD)
        return false;
    return is_to_be_seen(state) || right == SHM_RIGHT_UNSWEPT ||
           (atomic_load(&ring->aside_first) && (looked == 0 || head > looked)) ||
           has_notice(self, box, filter) || atomic_load(&ring->closed);
}

/* Was something set aside that somebody still waits for? The list is looked at as long as nobody has the right. */
static bool has_aside(const struct shm_thread *self, const struct shm_box *box)
{
    for (int looks = 0; looks < MATCH_LOOKS && atomic_load(&box->ring->aside_first); looks++) {
        shm_word right = atomic_load(&box->ring->right);
        uint32_t entry = atomic_load(&box->ring->aside_first);
        uint64_t n = 0;
        for (; entry && entry <= box->capacity && n < box->capacity; n++) {
            if (!is_withdrawn(self, body_at(box, entry - 1)))
                break;
            entry = atomic_load(&box->asides[entry - 1].next);
        }
        if (shm_word_state(right) == SHM_RIGHT_FREE && atomic_load(&box->ring->right) == right)
            return entry != 0;
        shm_clock_relax();
    }
    return atomic_load(&box->ring->aside_first) != 0;
}

bool shm_ring_has_message(const struct shm_thread *self, const struct shm_box *box)
{
    const struct shm_ring *ring = box->ring;
    const struct shm_filter any = SHM_FILTER_NONE;
    uint64_t head = atomic_load(&ring->head);
    for (uint64_t n = 0; n <= box->mask; n++) {
        uint32_t state = state_at(box, head + n);
        if (state == SHM_SLOT_READY && !is_withdrawn(self, slot_at(box, head + n)))
            return true;
        if (!is_to_be_seen(state))
            break;
    }
    /* Afterwards: what has left its slot to be set aside was linked before. */
    return has_aside(self, box) || has_notice(self, box, &any) || atomic_load(&ring->closed);
}

/* Among what was set aside and what lies in the ring, as long as nobody has the right. */
static bool has_matching(const struct shm_thread *self, const struct shm_box *box,
                         const struct shm_filter *filter)
{
    const struct shm_ring *ring = box->ring;
    uint32_t entry = atomic_load(&ring->aside_first);
    for (uint64_t n = 0; entry && entry <= box->capacity && n < box->capacity; n++) {
        const struct shm_aside *aside = &box->asides[entry - 1];
        for (const struct shm_filter *f = filter; f; f = f->other)
            if (shm_filter_fits(f, SHM_ONCE(aside->header), SHM_ONCE(aside->sender)) &&
                is_raw_enough(filter, SHM_ONCE(aside->header), SHM_ONCE(body_at(box, entry - 1)->flags)) &&
                !is_withdrawn(self, body_at(box, entry - 1)))
                return true;
        entry = atomic_load(&aside->next);
    }
    uint64_t head = atomic_load(&ring->head);
    for (uint64_t n = 0; n <= box->mask; n++) {
        const struct shm_slot *slot = slot_at(box, head + n);
        uint32_t state = state_at(box, head + n);
        if (!is_to_be_seen(state))
            return false;
        for (const struct shm_filter *f = filter; state == SHM_SLOT_READY && f; f = f->other)
            if (shm_filter_fits(f, SHM_ONCE(slot->header), SHM_ONCE(slot->sender)) &&
                is_raw_enough(filter, SHM_ONCE(slot->header), SHM_ONCE(slot->flags)) &&
                !is_withdrawn(self, slot))
                return true;
    }
    return false;
}

bool shm_ring_has_match(const struct shm_thread *self, const struct shm_box *box,
                        const struct shm_filter *filter)
{
    if (shm_filter_is_open(filter))
        return shm_ring_has_message(self, box);
    if (atomic_load(&box->ring->closed) || has_notice(self, box, filter))
        return true;
    for (int looks = 0; looks < MATCH_LOOKS; looks++) {
        shm_word right = atomic_load(&box->ring->right);
        if (shm_word_state(right) == SHM_RIGHT_UNSWEPT)
            return shm_ring_has_message(self, box);
        bool found = shm_word_state(right) == SHM_RIGHT_FREE && has_matching(self, box, filter);
        if (shm_word_state(right) == SHM_RIGHT_FREE && atomic_load(&box->ring->right) == right)
            return found; /* nobody has changed anything meanwhile, but added to it */
        shm_clock_relax();
    }
    return false;
}

/* One message of a ring that nobody has open any more. */
static void drop_message(struct shm_thread *self, uint32_t index, struct shm_slot *slot, uint64_t position,
                         void (*fail)(struct shm_thread *, shm_call_id))
{
    shm_call_id call = SHM_ONCE(slot->call);
    if (shm_call_take(self, call)) { /* else its caller has left, and nothing is lost */
        count_lost(self, index, position, slot->flags);
        if (call)
            fail(self, call);
    }
    drop_slot(self, slot);
}

void shm_ring_drop_messages(struct shm_thread *self, uint32_t block,
                            void (*fail)(struct shm_thread *, shm_call_id))
{
    struct shm_box box = {0};
    if (shm_ring_view(&box, self->segment, block))
        return;
    struct shm_ring *ring = box.ring;
    uint32_t seen = 0, index = SHM_ONCE(ring->box);
    if (!shm_index_ok(self->segment, SHM_TABLE_BOXES, index))
        return;
    for (uint32_t e = atomic_load(&ring->aside_first); e && e <= box.capacity && seen++ < box.capacity;) {
        drop_message(self, index, body_at(&box, e - 1), SHM_ONCE(box.asides[e - 1].position), fail);
        e = atomic_load(&box.asides[e - 1].next);
        atomic_store(&ring->aside_first, e);
    }
    for (uint64_t i = 0; i <= box.mask; i++) {
        struct shm_slot *slot = slot_at(&box, i);
        shm_word word = atomic_load(&slot->word);
        uint64_t position = shm_word_count(word) << box.shift | i;
        if (shm_word_state(word) != SHM_SLOT_READY)
            continue;
        drop_message(self, index, slot, position, fail);
        atomic_store(&slot->word, slot_word(&box, position, SHM_NOBODY, SHM_SLOT_SKIP));
    }
}

void shm_ring_drop_all(struct shm_thread *self, struct shm_box *box,
                       void (*fail)(struct shm_thread *, shm_call_id))
{
    struct shm_ring *ring = box->ring;
    uint64_t end = shm_ring_help_tail(box), head = atomic_load(&ring->head);
    SHM_KILL_POINT(port_drop);
    atomic_store(&ring->drop_below, end);
    SHM_KILL_POINT(port_dropped);
    for (uint32_t e = atomic_load(&ring->aside_first), n = 0; e && e <= box->capacity && n < box->capacity;
         e = atomic_load(&ring->aside_first), n++) {
        drop_message(self, box->index, body_at(box, e - 1), SHM_ONCE(box->asides[e - 1].position), fail);
        unlink_aside(box, 0, e);
    }
    for (uint64_t at = head; at != end && at - head <= box->mask; at++) {
        if (state_at(box, at) != SHM_SLOT_READY)
            continue;
        drop_message(self, box->index, slot_at(box, at), at, fail);
        atomic_store(&slot_at(box, at)->word, slot_word(box, at, SHM_NOBODY, SHM_SLOT_SKIP));
    }
    for (; head != end && state_at(box, head) == SHM_SLOT_SKIP; head++) {
        free_head(box, head);
        count_delivered(ring);
    }
}

/* ---- reap -------------------------------------------------------------------------------------------------- */

/* The victim held the right while it took `lease` from position: had it committed? If not, the block flies again. */
static void return_lease(struct shm_thread *self, struct shm_box *box, const struct shm_flight *flight)
{
    uint32_t lease = atomic_load(&flight->lease), seen = 0;
    uint64_t position = atomic_load(&flight->position);
    shm_word held = atomic_load(&flight->lease_word);
    if (lease == 0 || !shm_index_ok(self->segment, SHM_TABLE_LEASES, lease - 1))
        return;
    bool there = state_at(box, position) == SHM_SLOT_READY;
    for (uint32_t e = atomic_load(&box->ring->aside_first);
         !there && e && e <= box->capacity && seen++ < box->capacity;
         e = atomic_load(&box->asides[e - 1].next))
        there = box->asides[e - 1].position == position;
    if (there)
        atomic_compare_exchange_strong(&shm_lease_at(self->segment, lease - 1)->word, &held,
                                       shm_word_next(held, SHM_IN_FLIGHT, SHM_LEASE_HELD));
}

void shm_ring_reap_flight(struct shm_thread *self, struct shm_box *box, uint32_t victim, shm_word word,
                          const struct shm_flight *flight)
{
    uint32_t op = atomic_load(&flight->op), lease = atomic_load(&flight->lease);
    uint64_t position = atomic_load(&flight->position);
    if (op == SHM_FLIGHT_RIGHT) {
        shm_word right = atomic_load(&box->ring->right);
        if (shm_word_state(right) == SHM_RIGHT_HELD && shm_word_owner(right) == victim &&
            shm_still_dying(self->segment, victim, word)) {
            return_lease(self, box, flight);
            atomic_compare_exchange_strong(&box->ring->right, &right,
                                           shm_word_next(right, SHM_NOBODY, SHM_RIGHT_UNSWEPT));
        }
        wake_after_release(self, box, true);
        return;
    }
    struct shm_slot *slot = slot_at(box, position);
    shm_word claimed = atomic_load(&slot->word);
    bool is_claimed = position != UINT64_MAX && lap_ahead(box, claimed, position) == 0 &&
                      shm_word_state(claimed) == SHM_SLOT_CLAIMED && shm_word_owner(claimed) == victim;
    if (!shm_still_dying(self->segment, victim, word))
        return;
    /* The block goes before the claim does: a second reaper that finds no claim must find nothing to release. */
    if (lease && (is_claimed || op == SHM_FLIGHT_CLAIMING))
        shm_lease_drop_exact(self, lease - 1, atomic_load(&flight->lease_word));
    if (is_claimed)
        atomic_compare_exchange_strong(&slot->word, &claimed,
                                       slot_word(box, position, SHM_NOBODY, SHM_SLOT_SKIP));
    shm_ring_help_tail(box);
    wake_after_release(self, box, true);
}
