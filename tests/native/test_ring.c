/* The ring without waiting: order, capacity, laps, what is set aside, and what a sweep mends. */
#include "world.h"

#include "transport/port.h"

struct pair {
    struct world w;
    struct actor a;
    struct shm_box box;
};

static void open_pair(struct pair *p, uint32_t capacity)
{
    world_open(&p->w, WORLD_SMALL);
    actor_join(&p->w, &p->a);
    box_make(&p->a, &p->box, SHM_BOX_SHARED, capacity);
}

static void close_pair(struct pair *p)
{
    CHECK_EQ(shm_ring_count(&p->box), 0);
    shm_box_release(&p->a.thread, &p->box);
    actor_leave(&p->a);
    world_close(&p->w);
}

static void receive_in_order(struct pair *p, const struct shm_filter *filter, const uint64_t *numbers)
{
    uint64_t number;
    for (; *numbers; numbers++) {
        CHECK_OK(box_receive(&p->a, &p->box, filter, &number, 0));
        CHECK_EQ(number, *numbers);
    }
    CHECK_EQ(box_receive(&p->a, &p->box, filter, &number, 0), SHM_EMPTY);
}

static void messages_arrive_once_and_in_order(void)
{
    struct pair p;
    uint64_t number, sent = 0, received = 0;
    open_pair(&p, 5);
    for (int round = 0; round < 1000; round++) {
        for (int i = 0; i < 1 + round % 5; i++)
            CHECK_OK(box_send(&p.a, &p.box, 0, sent++, 0));
        CHECK_EQ(shm_ring_count(&p.box), sent - received);
        while (box_receive(&p.a, &p.box, NULL, &number, 0) == 0)
            CHECK_EQ(number, received++);
        CHECK_EQ(received, sent);
    }
    close_pair(&p);
}

static void message_carries_all_that_was_sent_with_it(void)
{
    struct pair p;
    open_pair(&p, 2);
    char body[64];
    memset(body, 'b', sizeof body);
    struct shm_message in = {.header = shm_header_make(SHM_KIND_TIMER, SHM_TAG_MASK),
                             .body = body,
                             .len_bytes = sizeof body,
                             .format = 7,
                             .flags = 9},
                       out;
    struct shm_filter any = SHM_FILTER_NONE;
    CHECK_OK(shm_box_send(&p.a.thread, &p.box, &in, 0));
    CHECK_OK(shm_box_receive(&p.a.thread, &p.box, &any, &out, 0));
    CHECK_EQ(out.header, in.header);
    CHECK_EQ(out.sender, actor_id(&p.a));
    CHECK_EQ(out.format, 7);
    CHECK_EQ(out.flags, 9);
    CHECK_EQ(out.len_bytes, 64);
    CHECK_BYTES(out.body, body, sizeof body);
    in.len_bytes = 0;
    CHECK_OK(shm_box_send(&p.a.thread, &p.box, &in, 0));
    CHECK_OK(shm_box_receive(&p.a.thread, &p.box, &any, &out, 0));
    CHECK_EQ(out.len_bytes, 0);
    in.len_bytes = 65;
    CHECK_EQ(shm_box_send(&p.a.thread, &p.box, &in, 0), SHM_TOO_LARGE);
    close_pair(&p);
}

static void capacity_is_exact(void)
{
    const uint32_t capacities[] = {1, 2, 3, 15, 16, 17, 100};
    for (size_t c = 0; c < sizeof capacities / sizeof capacities[0]; c++) {
        struct pair p;
        uint64_t number, expected = 0, next = 0;
        open_pair(&p, capacities[c]);
        for (int round = 0; round < 40; round++) {
            while (shm_ring_count(&p.box) < capacities[c])
                CHECK_OK(box_send(&p.a, &p.box, 0, next++, 0));
            CHECK_EQ(box_send(&p.a, &p.box, 0, 0, 0), SHM_FULL);
            CHECK_EQ(box_send_block(&p.a, &p.box, 0, 0, true, 0), SHM_FULL);
            CHECK_OK(box_receive(&p.a, &p.box, NULL, &number, 0));
            CHECK_EQ(number, expected++);
        }
        while (box_receive(&p.a, &p.box, NULL, &number, 0) == 0)
            CHECK_EQ(number, expected++);
        CHECK_EQ(expected, next);
        close_pair(&p);
    }
}

/* As if it had run for years: the laps are about to pass 2 to the power of 44. */
static void laps_wrap(void)
{
    struct pair p;
    uint64_t number, lap = SHM_COUNT_MASK - 2, next = 0, expected = 0;
    open_pair(&p, 16);
    for (uint32_t i = 0; i <= p.box.mask; i++)
        atomic_store(&((struct shm_slot *)(p.box.slots + i * p.box.slot_bytes))->word,
                     shm_word_make(lap, SHM_NOBODY, SHM_SLOT_FREE));
    atomic_store(&p.box.ring->tail, lap << p.box.shift);
    atomic_store(&p.box.ring->head, lap << p.box.shift);
    atomic_store(&p.box.ring->delivered, lap << p.box.shift);
    atomic_store(&p.box.delivered_seen, lap << p.box.shift);
    struct shm_filter odd = by_tag(1);
    for (int round = 0; round < 20; round++) {
        while (box_send(&p.a, &p.box, next % 2, next, 0) == 0)
            next++;
        CHECK_EQ(shm_ring_count(&p.box), 16);
        for (int i = 0; i < 5; i++) { /* the even ones are set aside and taken from there */
            CHECK_OK(box_receive(&p.a, &p.box, &odd, &number, 0));
            CHECK_EQ(number % 2, 1);
        }
        while (box_receive(&p.a, &p.box, NULL, &number, 0) == 0)
            expected++;
    }
    CHECK_EQ(expected + 100, next);
    close_pair(&p);
}

static void selective_receive_keeps_the_order_of_what_it_sets_aside(void)
{
    struct pair p;
    open_pair(&p, 8);
    for (uint64_t i = 1; i <= 8; i++)
        CHECK_OK(box_send(&p.a, &p.box, i % 3, i, 0));
    struct shm_filter zero = by_tag(0), one = by_tag(1), two = by_tag(2);
    receive_in_order(&p, &two, (uint64_t[]){2, 5, 8, 0});
    CHECK_EQ(shm_ring_count(&p.box), 5);
    CHECK_OK(box_send(&p.a, &p.box, 1, 10, 0));
    CHECK_OK(box_send(&p.a, &p.box, 2, 11, 0));
    CHECK_OK(box_send(&p.a, &p.box, 0, 12, 0));
    CHECK_EQ(box_send(&p.a, &p.box, 0, 13, 0), SHM_FULL); /* what is set aside counts */
    uint64_t number;
    CHECK_OK(box_receive(&p.a, &p.box, NULL, &number, 0));
    CHECK_EQ(number, 1); /* an open receive takes the oldest of all */
    receive_in_order(&p, &zero, (uint64_t[]){3, 6, 12, 0});
    receive_in_order(&p, &one, (uint64_t[]){4, 7, 10, 0});
    receive_in_order(&p, NULL, (uint64_t[]){11, 0});
    close_pair(&p);
}

static void filter_matches_kind_tag_and_sender(void)
{
    struct pair p;
    struct actor other;
    struct shm_box theirs;
    open_pair(&p, 8);
    actor_join(&p.w, &other);
    box_open(&other, &theirs, &p.box);
    uint64_t numbers[] = {1, 2, 3, 4}, number;
    for (int i = 0; i < 4; i++) {
        struct shm_message m = message_of(5, &numbers[i]);
        m.header = shm_header_make(i % 2 ? SHM_KIND_TIMER : SHM_KIND_CAST, 5);
        CHECK_OK(shm_box_send(i < 2 ? &p.a.thread : &other.thread, i < 2 ? &p.box : &theirs, &m, 0));
    }
    struct shm_filter theirs_only = {.sender = actor_id(&other), .tag = SHM_TAG_ANY, .kinds = ~0u};
    struct shm_filter timers = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_TIMER};
    struct shm_filter untagged = {.sender = SHM_SENDER_ANY, .tag = 0, .kinds = ~0u};
    CHECK_EQ(box_receive(&p.a, &p.box, &untagged, &number, 0), SHM_EMPTY);
    CHECK_OK(box_receive(&p.a, &p.box, &theirs_only, &number, 0));
    CHECK_EQ(number, 3);
    receive_in_order(&p, &timers, (uint64_t[]){2, 4, 0});
    receive_in_order(&p, NULL, (uint64_t[]){1, 0});
    shm_box_release(&other.thread, &theirs);
    actor_leave(&other);
    close_pair(&p);
}

static void send_urgent(struct pair *p, uint64_t tag, uint64_t number, uint32_t priority)
{
    struct shm_message m = message_of(tag, &number);
    m.priority = priority;
    CHECK_OK(shm_box_send(&p->a.thread, &p->box, &m, 0));
}

static void urgent_receive_takes_the_lowest_priority_of_its_tags(void)
{
    struct pair p;
    open_pair(&p, 8);
    send_urgent(&p, 1, 11, 5);
    send_urgent(&p, 2, 12, 0);
    send_urgent(&p, 3, 13, SHM_PRIORITY_MAX);
    send_urgent(&p, 2, 14, 0);
    send_urgent(&p, 3, 15, 5);
    struct shm_filter urgent = SHM_FILTER_NONE, looks = SHM_FILTER_NONE, ranged = SHM_FILTER_NONE,
                      before = SHM_FILTER_NONE;
    urgent.urgent = looks.urgent = ranged.urgent = before.urgent = looks.keeps = true;
    ranged.tag_from = 3;
    ranged.tag_until = 5;
    before.until = 1;
    uint64_t number;
    struct shm_message m;
    for (int i = 0; i < 2; i++) {
        CHECK_OK(shm_box_receive(&p.a.thread, &p.box, &looks, &m, 0));
        CHECK_EQ(number_in(&m), 12);
        CHECK_EQ(m.priority, 0);
        CHECK_EQ(m.position, 1);
        CHECK_EQ(m.flags, 0);
        CHECK_EQ(shm_ring_count(&p.box), 5);
    }
    receive_in_order(&p, &ranged, (uint64_t[]){15, 13, 0});
    receive_in_order(&p, &before, (uint64_t[]){11, 0});
    CHECK_OK(box_receive(&p.a, &p.box, &urgent, &number, 0));
    CHECK_EQ(number, 12);
    receive_in_order(&p, NULL, (uint64_t[]){14, 0});
    CHECK_EQ(shm_box_receive(&p.a.thread, &p.box, &looks, &m, 0), SHM_EMPTY);
    close_pair(&p);
}

static void receive_passes_over_a_withdrawn_request_it_only_looks_at(void)
{
    struct pair p;
    struct actor server;
    struct shm_box theirs;
    open_pair(&p, 4);
    actor_join(&p.w, &server);
    box_open(&server, &theirs, &p.box);
    uint64_t number = 1;
    struct shm_filter looks = SHM_FILTER_NONE;
    looks.keeps = true;
    struct shm_message m = message_of(2, &number);
    CHECK_OK(shm_call_open(&p.a.thread, 0, 0, &m.call));
    m.header = shm_header_make(SHM_KIND_CALL, 2);
    CHECK_OK(shm_box_send(&p.a.thread, &p.box, &m, 0));
    CHECK_OK(box_send(&p.a, &p.box, 3, 2, 0));
    struct shm_message out;
    CHECK_OK(shm_box_receive(&server.thread, &theirs, &looks, &out, 0));
    CHECK_EQ(number_in(&out), 1);
    CHECK(shm_call_cancel(&p.a.thread, m.call)); /* nobody serves it: who looked has not taken it */
    CHECK_OK(shm_box_receive(&server.thread, &theirs, &looks, &out, 0));
    CHECK_EQ(number_in(&out), 2);
    CHECK_EQ(shm_ring_count(&p.box), 1);
    receive_in_order(&p, NULL, (uint64_t[]){2, 0});
    shm_box_release(&server.thread, &theirs);
    actor_leave(&server);
    close_pair(&p);
}

static void message_too_large_for_the_receiver_stays_and_says_how_large(void)
{
    struct pair p;
    uint64_t number;
    open_pair(&p, 4);
    struct shm_filter any = SHM_FILTER_NONE, eight = any, four = any, two_in_four = by_tag(2),
                      one = by_tag(1);
    eight.too_large = 9;
    four.too_large = two_in_four.too_large = 5;
    struct shm_message out;
    CHECK_OK(box_send(&p.a, &p.box, 2, 11, 0));
    CHECK_OK(box_send(&p.a, &p.box, 1, 12, 0));
    for (int round = 0; round < 2; round++) { /* in its slot, then set aside */
        CHECK_EQ(shm_box_receive(&p.a.thread, &p.box, &four, &out, 0), SHM_TOO_SMALL);
        CHECK_EQ(out.len_bytes, 8);
        CHECK_EQ(shm_box_receive(&p.a.thread, &p.box, &four, &out, soon(10000)), SHM_TOO_SMALL);
        CHECK_EQ(shm_box_receive(&p.a.thread, &p.box, &two_in_four, &out, 0), SHM_TOO_SMALL);
        CHECK_EQ(out.len_bytes, 8);
        if (round)
            break;
        CHECK_EQ(shm_ring_count(&p.box), 2);
        CHECK_OK(box_receive(&p.a, &p.box, &one, &number, 0));
        CHECK_EQ(number, 12);
    }
    CHECK_EQ(shm_ring_count(&p.box), 1);
    CHECK_OK(box_receive(&p.a, &p.box, &eight, &number, 0));
    CHECK_EQ(number, 11);
    CHECK_EQ(shm_box_receive(&p.a.thread, &p.box, &four, &out, 0), SHM_EMPTY);
    close_pair(&p);
}

static void mailbox_of_one_length_takes_bytes_of_that_length_only(void)
{
    struct pair p;
    open_pair(&p, 4);
    shm_box_fix_length(&p.box, 8);
    struct shm_box theirs;
    box_open(&p.a, &theirs, &p.box);
    CHECK_EQ(theirs.message_bytes, 8);
    uint64_t number = 5;
    struct shm_message message = message_of(0, &number);
    for (message.len_bytes = 0; message.len_bytes < 16; message.len_bytes++)
        if (message.len_bytes != 8)
            CHECK_EQ(shm_box_send(&p.a.thread, &theirs, &message, 0), SHM_INVALID);
    message.len_bytes = 8;
    message.format = 4; /* of that length, but no bytes of the user's */
    CHECK_EQ(shm_box_send(&p.a.thread, &theirs, &message, 0), SHM_INVALID);
    CHECK_EQ(shm_ring_count(&p.box), 0);
    CHECK_OK(box_send(&p.a, &theirs, 0, 6, 0));
    CHECK_OK(box_receive(&p.a, &p.box, NULL, &number, 0));
    CHECK_EQ(number, 6);
    shm_box_release(&p.a.thread, &theirs);
    close_pair(&p);
}

static void block_travels_with_its_message_and_with_what_is_set_aside(void)
{
    struct pair p;
    open_pair(&p, 8);
    uint32_t blocks = world_count(&p.w).blocks;
    for (uint64_t i = 1; i <= 6; i++)
        CHECK_OK(box_send_block(&p.a, &p.box, i % 2, i, i % 3 == 0, 0));
    struct shm_filter odd = by_tag(1);
    receive_in_order(&p, &odd, (uint64_t[]){1, 3, 5, 0});
    receive_in_order(&p, NULL, (uint64_t[]){2, 4, 6, 0});
    CHECK_EQ(world_count(&p.w).blocks, blocks);
    for (uint64_t i = 1; i <= 6; i++) /* what is queued goes with the mailbox */
        CHECK_OK(box_send_block(&p.a, &p.box, i % 2, i, true, 0));
    receive_in_order(&p, &odd, (uint64_t[]){1, 3, 5, 0});
    shm_box_release(&p.a.thread, &p.box);
    CHECK_EQ(world_count(&p.w).blocks, 0);
    actor_leave(&p.a);
    world_close(&p.w);
}

static void claim_of_a_dead_sender_is_skipped_and_its_room_comes_back(void)
{
    struct pair p;
    struct actor dead;
    struct shm_box theirs;
    open_pair(&p, 3);
    for (int round = 0; round < 20; round++) {
        actor_join(&p.w, &dead);
        box_open(&dead, &theirs, &p.box);
        uint32_t slot = dead.member.slot;
        CHECK_OK(box_send(&p.a, &p.box, 0, 1, 0));
        uint64_t tail = atomic_load(&p.box.ring->tail); /* as send does it: flight, claim */
        struct shm_slot *at = (struct shm_slot *)(p.box.slots + (tail & p.box.mask) * p.box.slot_bytes);
        shm_flight_push(&dead.thread, SHM_FLIGHT_CLAIMING, p.box.index, tail, 0);
        atomic_store(&at->word, shm_word_make(tail >> p.box.shift, slot, SHM_SLOT_CLAIMED));
        CHECK_OK(box_send(&p.a, &p.box, 0, 2, 0));
        CHECK_EQ(box_send(&p.a, &p.box, 0, 3, 0), SHM_FULL);
        actor_die(&p.w, &dead);
        CHECK(shm_reap(&p.a.thread, slot));
        receive_in_order(&p, NULL, (uint64_t[]){1, 2, 0});
    }
    close_pair(&p);
}

static void withdrawn_request_is_not_delivered(void)
{
    struct pair p;
    open_pair(&p, 4);
    uint64_t numbers[] = {1, 2}, number;
    shm_call_id calls[2];
    for (int i = 0; i < 2; i++) {
        struct shm_message m = message_of(0, &numbers[i]);
        CHECK_OK(shm_call_open(&p.a.thread, actor_id(&p.a), false, &calls[i]));
        m.header = shm_header_make(SHM_KIND_CALL, 0);
        m.call = calls[i];
        CHECK_OK(shm_box_send(&p.a.thread, &p.box, &m, 0));
    }
    CHECK(shm_call_cancel(&p.a.thread, calls[0]));
    CHECK_OK(box_receive(&p.a, &p.box, NULL, &number, 0));
    CHECK_EQ(number, 2);
    CHECK(shm_call_cancel(&p.a.thread, calls[1]));
    CHECK_EQ(box_receive(&p.a, &p.box, NULL, &number, 0), SHM_EMPTY);
    close_pair(&p);
}

static void closed_mailbox_refuses_and_says_so_and_counts_what_is_lost(void)
{
    struct pair p;
    uint64_t number;
    open_pair(&p, 4);
    CHECK_OK(box_send(&p.a, &p.box, 1, 1, 0));
    CHECK_OK(box_send_block(&p.a, &p.box, 0, 2, true, 0));
    struct shm_filter zero = by_tag(0);
    CHECK_OK(box_receive(&p.a, &p.box, &zero, &number, 0));
    CHECK_OK(box_send(&p.a, &p.box, 0, 3, 0));
    CHECK_EQ(shm_box_close(&p.a.thread, &p.box), 2);
    CHECK_EQ(shm_box_close(&p.a.thread, &p.box), 2);
    CHECK_EQ(box_send(&p.a, &p.box, 0, 4, 0), SHM_CLOSED);
    CHECK_EQ(box_receive(&p.a, &p.box, NULL, &number, 0), SHM_CLOSED);
    CHECK_EQ(box_receive(&p.a, &p.box, NULL, &number, soon(1000)), SHM_CLOSED);
    CHECK_EQ(shm_box_undelivered(&p.w.segment), 2);
    close_pair(&p);
}

/* ---- deaths with two hands ---------------------------------------------------------------------------------- */

struct hands {
    struct world w;
    struct actor live, victim, second;
    struct shm_thread other; /* the victim's second thread */
    struct shm_box box, victims;
    uint32_t slot;
} hands;

static void receive_by(struct shm_thread *thread)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message message;
    shm_box_receive(thread, &hands.victims, &any, &message, 0);
}

static void first_receives(void *unused)
{
    (void)unused;
    receive_by(&hands.victim.thread);
}

static void other_receives(void *unused)
{
    (void)unused;
    receive_by(&hands.other);
}

/* One thread of the victim is about to try for the right, which its other thread has, with a block in hand. */
static void block_comes_back_when_two_threads_of_the_dead_were_at_the_right(void)
{
    uint64_t number;
    memset(&hands, 0, sizeof hands);
    world_open(&hands.w, WORLD_SMALL);
    actor_join(&hands.w, &hands.live);
    actor_join(&hands.w, &hands.victim);
    hands.slot = hands.victim.member.slot;
    CHECK_OK(shm_thread_open(&hands.other, &hands.victim.member));
    box_make(&hands.live, &hands.box, SHM_BOX_SHARED, 4);
    box_open(&hands.victim, &hands.victims, &hands.box);
    CHECK_OK(box_send_block(&hands.live, &hands.box, 1, 42, false, 0));
    world_arm("right_take", 1);
    CHECK(world_dies(first_receives, NULL));
    world_arm("take_commit", 1);
    CHECK(world_dies(other_receives, NULL));
    free(hands.other.scratch);
    actor_die(&hands.w, &hands.victim);
    CHECK(shm_reap(&hands.live.thread, hands.slot));
    CHECK_OK(box_receive(&hands.live, &hands.box, NULL, &number, 0));
    CHECK_EQ(number, 42);
    shm_box_release(&hands.live.thread, &hands.box);
    actor_leave(&hands.live);
    world_close(&hands.w);
}

static void second_sends(void *unused)
{
    (void)unused;
    box_send(&hands.second, &hands.victims, 1, 99, 0);
}

static void second_reaps(void *unused)
{
    (void)unused;
    shm_reap(&hands.second.thread, hands.slot);
}

enum { QUEUED = 6 };

/* The owner died with messages queued; the reaper that drops them dies at its n-th passing of a point. */
static bool lose_all(const char *point, unsigned n, bool aside)
{
    uint64_t number;
    struct shm_box lives;
    struct shm_filter tagged = by_tag(9);
    memset(&hands, 0, sizeof hands);
    world_open(&hands.w, WORLD_SMALL);
    actor_join(&hands.w, &hands.live);
    actor_join(&hands.w, &hands.second);
    actor_join(&hands.w, &hands.victim);
    hands.slot = hands.victim.member.slot;
    box_make(&hands.victim, &hands.box, SHM_BOX_ACTOR, 16);
    box_open(&hands.live, &lives, &hands.box);
    for (uint64_t i = 0; i < QUEUED; i++)
        CHECK_OK(i % 2 ? box_send(&hands.live, &lives, 1, i, 0)
                       : box_send_block(&hands.live, &lives, 1, i, false, 0));
    if (aside)
        CHECK_EQ(box_receive(&hands.victim, &hands.box, &tagged, &number, 0), SHM_EMPTY);
    struct shm_member_record *record = hands.victim.member.record;
    uint32_t reaper = hands.second.member.slot;
    actor_die(&hands.w, &hands.victim);
    world_arm(point, n);
    bool died = world_dies(second_reaps, NULL);
    actor_die(&hands.w, &hands.second);
    CHECK(shm_reap(&hands.live.thread, reaper));
    CHECK(shm_reap(&hands.live.thread, hands.slot));
    CHECK_EQ(shm_box_undelivered(&hands.w.segment), QUEUED);
    CHECK_EQ((uint32_t)atomic_load(&record->undelivered), QUEUED);
    shm_box_release(&hands.live.thread, &lives);
    CHECK_EQ(shm_box_undelivered(&hands.w.segment), QUEUED);
    actor_leave(&hands.live);
    world_close(&hands.w);
    return died;
}

static void lost_messages_are_counted_once_however_often_reapers_die(void)
{
    const char *points[] = {"take_lost",    "take_lease",   "take_commit",   "take_head",
                            "take_count",   "aside_unlink", "right_release", "right_released",
                            "block_record", "block_unlock", "reap_boxes",    "reap_leases",
                            "right_take",   "reap_notices", "drop_claim",    "reap_retire"};
    for (size_t p = 0; p < sizeof points / sizeof points[0]; p++)
        for (unsigned n = 1; n <= QUEUED + 1; n++) {
            lose_all(points[p], n, false);
            lose_all(points[p], n, true);
        }
    CHECK(lose_all("take_lost", QUEUED, false));
    CHECK(lose_all("take_lost", QUEUED, true));
    CHECK(lose_all("take_head", QUEUED, false));
}

/* What was accepted behind a claim that its owner never finished is lost with the mailbox, and counted. */
static void messages_behind_the_claim_of_a_stopped_sender_are_counted_when_their_receiver_dies(void)
{
    for (int ends = 0; ends < 2; ends++) {
        struct shm_box lives;
        memset(&hands, 0, sizeof hands);
        world_open(&hands.w, WORLD_SMALL);
        actor_join(&hands.w, &hands.live);
        actor_join(&hands.w, &hands.second);
        actor_join(&hands.w, &hands.victim);
        hands.slot = hands.victim.member.slot;
        box_make(&hands.victim, &hands.box, SHM_BOX_ACTOR, 16);
        box_open(&hands.live, &lives, &hands.box);
        box_open(&hands.second, &hands.victims, &hands.box);
        world_arm("send_copy", 1);
        CHECK(world_dies(second_sends, NULL)); /* only stopped, for now */
        for (uint64_t i = 0; i < QUEUED; i++)
            CHECK_OK(box_send(&hands.live, &lives, 1, i, 0));
        uint32_t sender = hands.second.member.slot;
        actor_die(&hands.w, &hands.victim);
        CHECK(shm_reap(&hands.live.thread, hands.slot));
        CHECK_EQ(shm_box_undelivered(&hands.w.segment), 0);
        if (ends == 0)
            shm_box_release(&hands.live.thread, &lives);
        actor_die(&hands.w, &hands.second);
        CHECK(shm_reap(&hands.live.thread, sender));
        CHECK_EQ(shm_box_undelivered(&hands.w.segment), QUEUED);
        if (ends == 1)
            shm_box_release(&hands.live.thread, &lives);
        actor_leave(&hands.live);
        world_close(&hands.w);
    }
}

static shm_call_id ask(struct actor *a, struct shm_box *box)
{
    shm_call_id call;
    uint64_t number = 1;
    struct shm_message message = message_of(0, &number);
    CHECK_OK(shm_call_open(&a->thread, box->owner, true, &call));
    message.header = shm_header_make(SHM_KIND_CALL, 0);
    message.call = call;
    CHECK_OK(shm_box_send(&a->thread, box, &message, 0));
    shm_call_check(&a->thread, call, box->owner);
    return call;
}

/* The callers of a dead actor are told before its mailbox is closed. */
static void nothing_is_accepted_for_an_actor_whose_death_was_told(void)
{
    struct shm_box lives;
    struct shm_reply reply;
    memset(&hands, 0, sizeof hands);
    world_open(&hands.w, WORLD_SMALL);
    actor_join(&hands.w, &hands.live);
    actor_join(&hands.w, &hands.second);
    actor_join(&hands.w, &hands.victim);
    hands.slot = hands.victim.member.slot;
    box_make(&hands.victim, &hands.box, SHM_BOX_ACTOR, 16);
    box_open(&hands.live, &lives, &hands.box);
    shm_call_id call = ask(&hands.live, &lives);
    uint32_t reaper = hands.second.member.slot;
    actor_die(&hands.w, &hands.victim);
    world_arm("reap_boxes", 1);
    CHECK(world_dies(second_reaps, NULL)); /* only stopped, for now */
    CHECK(!shm_box_is_closed(&lives));
    CHECK_OK(shm_call_read(&hands.live.thread, call, &reply));
    CHECK_EQ(reply.status, SHM_PEER_DEAD);
    shm_call_free(&hands.live.thread, call);
    CHECK_EQ(box_send(&hands.live, &lives, 1, 99, 0), SHM_PEER_DEAD);
    CHECK_EQ(box_send_block(&hands.live, &lives, 1, 99, false, 0), SHM_PEER_DEAD);
    CHECK_EQ(box_send(&hands.live, &lives, 1, 99, SHM_FOREVER), SHM_PEER_DEAD);
    actor_die(&hands.w, &hands.second);
    CHECK(shm_reap(&hands.live.thread, reaper));
    CHECK(shm_reap(&hands.live.thread, hands.slot));
    shm_box_release(&hands.live.thread, &lives);
    CHECK_EQ(shm_box_undelivered(&hands.w.segment), 0);
    actor_leave(&hands.live);
    world_close(&hands.w);
}

/* Its owner's other thread gives the port away, and the new owner enables it. */
static void port_moves(enum shm_kill_point unused)
{
    (void)unused;
    uint64_t number;
    uint32_t local;
    CHECK_OK(shm_port_migrate(&hands.other, &hands.victims, actor_id(&hands.live), false, &number, &local));
    CHECK_OK(shm_port_enable(&hands.live.thread, &hands.box, 7));
}

static void priority_of_a_port_is_its_new_owners_when_the_old_one_was_about_to_enable_it(void)
{
    struct shm_port_config config = {.capacity = 4, .body_bytes = 64};
    memset(&hands, 0, sizeof hands);
    world_open(&hands.w, WORLD_SMALL);
    actor_join(&hands.w, &hands.live);
    actor_join(&hands.w, &hands.victim);
    CHECK_OK(shm_thread_open(&hands.other, &hands.victim.member));
    CHECK_OK(shm_port_make(&hands.victim.thread, &hands.victims, &config));
    CHECK_OK(shm_port_open(&hands.live.thread, &hands.box,
                           shm_port_id_of(hands.victims.index, hands.victims.count)));
    shm_kill_point_hook = port_moves;
    CHECK_OK(shm_kill_point_arm("port_priority", 1, SIGKILL));
    CHECK_EQ(shm_port_enable(&hands.victim.thread, &hands.victims, 3), SHM_NO_PORT);
    CHECK_EQ((uint32_t)atomic_load(&shm_port_at(&hands.w.segment, hands.box.index)->priority), 7);
    shm_thread_close(&hands.other);
    shm_box_release(&hands.victim.thread, &hands.victims);
    actor_leave(&hands.victim);
    CHECK_OK(shm_port_delete(&hands.live.thread, &hands.box));
    shm_box_release(&hands.live.thread, &hands.box);
    actor_leave(&hands.live);
    world_close(&hands.w);
}

/* A mailbox that several serve belongs to none of them: a call through it waits for whoever takes it. */
static void call_through_a_shared_mailbox_does_not_depend_on_who_made_it(void)
{
    struct shm_box lives;
    struct shm_reply reply;
    struct shm_message message;
    struct shm_filter any = SHM_FILTER_NONE;
    memset(&hands, 0, sizeof hands);
    world_open(&hands.w, WORLD_SMALL);
    actor_join(&hands.w, &hands.live);
    actor_join(&hands.w, &hands.second);
    actor_join(&hands.w, &hands.victim);
    hands.slot = hands.victim.member.slot;
    box_make(&hands.victim, &hands.box, SHM_BOX_SHARED, 4);
    box_open(&hands.live, &lives, &hands.box);
    box_open(&hands.second, &hands.victims, &hands.box);
    shm_call_id before = ask(&hands.live, &lives);
    actor_die(&hands.w, &hands.victim);
    CHECK(shm_reap(&hands.second.thread, hands.slot));
    shm_call_id after = ask(&hands.live, &lives), last = ask(&hands.live, &lives);
    CHECK(!shm_call_is_done(&hands.w.segment, before) && !shm_call_is_done(&hands.w.segment, after));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(shm_box_receive(&hands.second.thread, &hands.victims, &any, &message, 0));
        CHECK_OK(shm_call_serve(&hands.second.thread, message.call));
        CHECK_OK(shm_call_reply(&hands.second.thread, message.call, "x", 1, 0, 0));
    }
    for (int i = 0; i < 2; i++) {
        CHECK_OK(shm_call_read(&hands.live.thread, i ? after : before, &reply));
        CHECK_OK(reply.status);
        shm_call_free(&hands.live.thread, i ? after : before);
    }
    /* Nobody has it open any more: the last call is told so, not left waiting. */
    shm_box_release(&hands.live.thread, &lives);
    shm_box_release(&hands.second.thread, &hands.victims);
    CHECK(shm_call_is_done(&hands.w.segment, last));
    CHECK_OK(shm_call_read(&hands.live.thread, last, &reply));
    CHECK_EQ(reply.status, SHM_CLOSED);
    shm_call_free(&hands.live.thread, last);
    CHECK_EQ(shm_box_undelivered(&hands.w.segment), 1);
    actor_leave(&hands.second);
    actor_leave(&hands.live);
    world_close(&hands.w);
}

/* ---- many senders, many receivers -------------------------------------------------------------------------- */

enum { SENDERS = 4, RECEIVERS = 3, EACH = 4000, MANY = 1 << 20 };

struct crowd {
    struct world w;
    struct shm_box box;
    _Atomic uint32_t received;
    _Atomic unsigned char seen[SENDERS][EACH];
    uint32_t each, receivers;
    bool filtered, blocks;
};

static void send_or_receive(void *argument, int index)
{
    struct crowd *c = argument;
    struct actor a;
    struct shm_box box;
    actor_join(&c->w, &a);
    box_open(&a, &box, &c->box);
    if (index < SENDERS) {
        for (uint64_t i = 0; i < c->each; i++) {
            uint64_t number = (uint64_t)index << 32 | i;
            CHECK_OK(c->blocks && i % 8 == 0
                         ? box_send_block(&a, &box, i % c->receivers + 1, number, i % 16 == 0, soon(60000))
                         : box_send(&a, &box, i % c->receivers + 1, number, soon(60000)));
        }
    } else {
        int64_t last[SENDERS];
        memset(last, -1, sizeof last);
        uint64_t number, mine = (uint64_t)(index - SENDERS) + 1;
        struct shm_filter filter = by_tag(mine);
        while (atomic_load(&c->received) < SENDERS * c->each) {
            if (box_receive(&a, &box, c->filtered ? &filter : NULL, &number, soon(20)) != 0)
                continue;
            uint32_t sender = number >> 32, i = (uint32_t)number;
            CHECK(!c->filtered || i % c->receivers + 1 == mine);
            CHECK((int64_t)i > last[sender]); /* in the order of its sender */
            last[sender] = i;
            CHECK_EQ(atomic_exchange(&c->seen[sender][i], 1), 0);
            atomic_fetch_add(&c->received, 1);
        }
    }
    shm_box_release(&a.thread, &box);
    actor_leave(&a);
}

static void run_crowd(uint32_t capacity, uint32_t receivers, uint32_t each, bool filtered, bool blocks)
{
    static struct crowd c;
    struct actor a;
    memset(&c, 0, sizeof c);
    c.each = each;
    c.receivers = receivers;
    c.filtered = filtered;
    c.blocks = blocks;
    world_open(&c.w, WORLD_SMALL);
    actor_join(&c.w, &a);
    box_make(&a, &c.box, SHM_BOX_SHARED, capacity);
    check_threads(SENDERS + (int)receivers, send_or_receive, &c);
    CHECK_EQ(atomic_load(&c.received), SENDERS * each);
    CHECK_EQ(shm_ring_count(&c.box), 0);
    shm_box_release(&a.thread, &c.box);
    actor_leave(&a);
    world_close(&c.w);
}

static void every_message_of_many_senders_reaches_one_of_many_receivers(void)
{
    run_crowd(1, RECEIVERS, EACH / 8, false, false);
    run_crowd(16, RECEIVERS, EACH, false, false);
    run_crowd(64, 1, EACH, false, true);
}

static void every_message_reaches_the_receiver_that_selects_it(void)
{
    /* Room enough for what the others have not taken yet: nobody starves. */
    run_crowd(SENDERS * EACH, RECEIVERS, EACH / 4, true, true);
}

int main(void)
{
    RUN(messages_arrive_once_and_in_order);
    RUN(message_carries_all_that_was_sent_with_it);
    RUN(capacity_is_exact);
    RUN(laps_wrap);
    RUN(selective_receive_keeps_the_order_of_what_it_sets_aside);
    RUN(filter_matches_kind_tag_and_sender);
    RUN(urgent_receive_takes_the_lowest_priority_of_its_tags);
    RUN(receive_passes_over_a_withdrawn_request_it_only_looks_at);
    RUN(message_too_large_for_the_receiver_stays_and_says_how_large);
    RUN(mailbox_of_one_length_takes_bytes_of_that_length_only);
    RUN(block_travels_with_its_message_and_with_what_is_set_aside);
    RUN(claim_of_a_dead_sender_is_skipped_and_its_room_comes_back);
    RUN(withdrawn_request_is_not_delivered);
    RUN(closed_mailbox_refuses_and_says_so_and_counts_what_is_lost);
    RUN(block_comes_back_when_two_threads_of_the_dead_were_at_the_right);
    RUN(lost_messages_are_counted_once_however_often_reapers_die);
    RUN(messages_behind_the_claim_of_a_stopped_sender_are_counted_when_their_receiver_dies);
    RUN(nothing_is_accepted_for_an_actor_whose_death_was_told);
    RUN(priority_of_a_port_is_its_new_owners_when_the_old_one_was_about_to_enable_it);
    RUN(call_through_a_shared_mailbox_does_not_depend_on_who_made_it);
    RUN(every_message_of_many_senders_reaches_one_of_many_receivers);
    RUN(every_message_reaches_the_receiver_that_selects_it);
    return 0;
}
