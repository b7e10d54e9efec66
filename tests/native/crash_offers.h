/* The scenes of test_crash.c whose victims notify, offer, pull and meet. Included by crash_scenes.h, whose stage they
 * share. */
#ifndef CRASH_OFFERS_H
#define CRASH_OFFERS_H

#include "transport/meeting.h"
#include "transport/offer.h"

static uint64_t bits_least; /* that must have come */

/* ---- notifications ----------------------------------------------------------------------------------------- */

static void receiver_of_bits_sleeps(void)
{
    bits_least = 0;
    put_to_sleep(sleep_in_receive);
}

static void notifies(void *unused)
{
    (void)unused;
    for (uint64_t bit = 1; bit <= 4; bit *= 2) {
        CHECK_OK(shm_ring_notify(&s.victim.thread, &s.victims, bit));
        CHECK_OK(shm_ring_notify(&s.victim.thread, &s.victims, bit));
        bits_least |= bit;
    }
}

static uint64_t bits_in(struct shm_box *box)
{
    struct shm_message m = {0};
    int count = told(box, SHM_KIND_NOTIFY, &m);
    CHECK(count <= 1);
    return count ? m.notice : 0;
}

static void bits_are_told(void)
{
    if (atomic_load(&s.box.ring->bits))
        expect_awake();
    uint64_t bits = bits_in(&s.box);
    CHECK_EQ(bits & bits_least, bits_least);
    CHECK(bits <= 7);
}

static void bits_are_set(void)
{
    bits_least = 3;
    fill_box(1, 1);
    CHECK_OK(shm_ring_notify(&s.second.thread, &s.seconds, 3));
}

/* A receive that is not for them leaves them; an open one gets them before the messages. */
static void takes_bits(void *unused)
{
    (void)unused;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    take_number(&s.victim, &s.victims, &(struct shm_filter){.sender = SHM_SENDER_ANY, .tag = 1, .kinds = ~0u},
                0);
    bits_least = 0;
    CHECK_OK(shm_box_receive(&s.victim.thread, &s.victims, &any, &m, 0));
    CHECK_EQ(m.header >> 61, SHM_KIND_NOTIFY);
    CHECK_EQ(m.notice, 3);
    CHECK_OK(take_number(&s.victim, &s.victims, NULL, 0));
}

static void bits_were_taken_once(void)
{
    uint64_t bits = bits_in(&s.box);
    CHECK(bits == 0 || bits == 3);
    CHECK_EQ(bits & bits_least, bits_least);
}

/* ---- looking ------------------------------------------------------------------------------------------------ */

/* Looks at the most urgent, which stays; the others are set aside. Then takes it. */
static void looks_and_takes(void *unused)
{
    (void)unused;
    struct shm_filter urgent = SHM_FILTER_NONE, looks = SHM_FILTER_NONE;
    struct shm_message m;
    urgent.urgent = looks.urgent = looks.keeps = true;
    shm_box_say_receives(&s.victim.thread, &s.victims);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(shm_box_receive(&s.victim.thread, &s.victims, &looks, &m, 0));
        if (m.lease)
            shm_lease_release(&s.victim.thread, m.lease - 1);
        SAFELY(CHECK_EQ(shm_ring_count(&s.box), ROOM - (uint64_t)i));
        CHECK_OK(take_number(&s.victim, &s.victims, &urgent, 0));
    }
}

static void nobody_receives_any_more(void)
{
    CHECK_EQ(shm_box_receivers(&s.w.segment, &s.box), 0);
}

/* ---- offers ------------------------------------------------------------------------------------------------ */

static int offer_number(struct actor *a, struct shm_box *to, uint64_t number, bool block)
{
    struct shm_message m = message_of(0, &number);
    shm_lease_index lease;
    if (block) {
        CHECK_OK(shm_block_take(&a->thread, 5000, &lease));
        memcpy(a->thread.segment->base +
                   shm_block_offset(a->thread.segment, shm_lease_block(a->thread.segment, lease)),
               &number, sizeof number);
        m.lease = lease + 1;
    }
    int status = shm_offer_send(&a->thread, to, &m);
    if (status && block)
        shm_lease_release(&a->thread, lease);
    return status;
}

static int pull_number(struct actor *a, struct shm_box *own, shm_member_id sender, uint64_t *number)
{
    struct shm_message m;
    int status = shm_offer_pull(&a->thread, own, sender, &m);
    if (status == 0) {
        *number = number_in(&m);
        if (m.lease)
            shm_lease_release(&a->thread, m.lease - 1);
    }
    return status;
}

static shm_member_id offerer;

static void live_has_a_mailbox(void)
{
    offerer = actor_id(&s.victim);
    box_make(&s.live, &s.mine, SHM_BOX_ACTOR, ROOM);
    atomic_store(&s.live.member.record->box, s.mine.index + 1);
}

static void offers(void *unused)
{
    (void)unused;
    struct shm_box to;
    uint64_t number;
    box_open(&s.victim, &to, &s.mine);
    CHECK_OK(offer_number(&s.victim, &to, 1, false));
    CHECK_OK(offer_number(&s.victim, &to, 2, true));
    SAFELY(CHECK_EQ(bits_in(&s.mine), SHM_BIT_OFFER);
           CHECK_OK(pull_number(&s.live, &s.mine, offerer, &number)); CHECK_EQ(number, 1));
    CHECK_OK(offer_number(&s.victim, &to, 3, false));
    shm_box_release(&s.victim.thread, &to);
}

static void offers_have_gone(void)
{
    uint64_t number;
    shm_member_id senders[2];
    CHECK_EQ(pull_number(&s.live, &s.mine, offerer, &number), SHM_PEER_DEAD);
    CHECK_EQ(shm_offer_senders(&s.live.thread, senders, 2), 0);
    bits_in(&s.mine);
    atomic_store(&s.live.member.record->box, 0);
    shm_box_close(&s.live.thread, &s.mine);
    shm_box_release(&s.live.thread, &s.mine);
}

static void live_offers(void)
{
    offerer = actor_id(&s.victim);
    victim_has_a_mailbox();
    box_open(&s.live, &s.mine, &s.own);
    for (uint64_t number = 1; number <= 3; number++)
        CHECK_OK(offer_number(&s.live, &s.mine, number, number == 2));
}

static void pulls(void *unused)
{
    (void)unused;
    uint64_t number;
    for (uint64_t n = 1; n <= 2; n++) {
        struct shm_filter any = SHM_FILTER_NONE;
        struct shm_message m;
        CHECK_OK(shm_box_receive(&s.victim.thread, &s.own, &any, &m, 0));
        CHECK_EQ(m.notice, SHM_BIT_OFFER);
        CHECK_OK(pull_number(&s.victim, &s.own, actor_id(&s.live), &number));
        CHECK_EQ(number, n);
    }
    SAFELY(CHECK_EQ(shm_offer_count(&s.live.thread, actor_id(&s.live), offerer), 1));
}

static void nobody_is_offered_anything(void)
{
    struct shm_message m;
    CHECK_EQ(offer_number(&s.live, &s.mine, 4, true), SHM_PEER_DEAD);
    CHECK_EQ(shm_offer_count(&s.live.thread, actor_id(&s.live), offerer), 0);
    CHECK_EQ(shm_offer_recall(&s.live.thread, offerer, &m), SHM_PEER_DEAD);
    shm_box_release(&s.live.thread, &s.mine);
}

/* ---- rendezvous -------------------------------------------------------------------------------------------- */

static void live_meets(void)
{
    uint64_t number = 9;
    struct shm_box box;
    struct shm_message m = message_of(0, &number);
    victim_has_a_mailbox();
    box_open(&s.live, &box, &s.own);
    CHECK_OK(shm_call_open(&s.live.thread, box.owner, 0, &m.call));
    m.flags = SHM_FLAG_MEETING;
    CHECK_OK(shm_box_send(&s.live.thread, &box, &m, 0));
    shm_call_check(&s.live.thread, m.call, box.owner);
    s.calls[s.calls_count++] = m.call;
    shm_box_release(&s.live.thread, &box);
}

static void accepts(void *unused)
{
    (void)unused;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    CHECK_OK(shm_box_receive(&s.victim.thread, &s.own, &any, &m, 0));
    CHECK_OK(shm_meeting_accept(&s.victim.thread, &m));
    CHECK_EQ(m.call, 0);
    CHECK_EQ(m.flags, 0);
    CHECK_EQ(number_in(&m), 9);
}

static void sender_knows(void)
{
    CHECK(shm_call_is_done(&s.w.segment, s.calls[0]));
    read_reply(&s.live, s.calls[0]);
}

#endif
