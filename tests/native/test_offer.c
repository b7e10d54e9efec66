/* Offers: oldest first, bounded, told until all is pulled, gone with either side. And bits, which coalesce. */
#include "world.h"

#include "transport/offer.h"

struct scene {
    struct world w;
    struct actor sender, receiver;
    struct shm_box own, to; /* the receiver's mailbox, and the sender's view of it */
    shm_member_id from, id;
    uint32_t slot, senders_slot;
};

static void open_scene(struct scene *s)
{
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->sender);
    actor_join(&s->w, &s->receiver);
    box_make(&s->receiver, &s->own, SHM_BOX_ACTOR, 4);
    box_open(&s->sender, &s->to, &s->own);
    s->from = actor_id(&s->sender);
    s->id = actor_id(&s->receiver);
    s->slot = s->receiver.member.slot;
    s->senders_slot = s->sender.member.slot;
}

static int offer(struct scene *s, uint64_t number)
{
    struct shm_message m = message_of(0, &number);
    return shm_offer_send(&s->sender.thread, &s->to, &m);
}

static int pull(struct scene *s, uint64_t *number)
{
    struct shm_message m;
    int status = shm_offer_pull(&s->receiver.thread, &s->own, s->from, &m);
    *number = status ? 0 : number_in(&m);
    return status;
}

static uint64_t bits(struct scene *s, const struct shm_filter *filter)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    if (shm_box_receive(&s->receiver.thread, &s->own, filter ? filter : &any, &m, 0))
        return 0;
    CHECK_EQ(m.header, shm_header_make(SHM_KIND_NOTIFY, 0));
    CHECK_EQ(m.sender, 0);
    CHECK_EQ(m.told, SHM_TOLD_BITS);
    return m.notice;
}

static void offers_are_pulled_in_order_and_told_until_none_is_left(void)
{
    struct scene s;
    shm_member_id who[2] = {0};
    uint64_t number, count = 0;
    open_scene(&s);
    CHECK_EQ(pull(&s, &number), SHM_EMPTY);
    for (uint64_t n = 0; n < SHM_OFFER_SLOTS; n++)
        CHECK_OK(offer(&s, n));
    CHECK_EQ(offer(&s, 999), SHM_FULL);
    CHECK_EQ(shm_offer_count(&s.sender.thread, s.from, s.id), SHM_OFFER_SLOTS);
    CHECK_EQ(shm_offer_senders(&s.receiver.thread, who, 2), 1);
    CHECK_EQ(who[0], s.from);
    CHECK_EQ(shm_offer_senders(&s.sender.thread, who, 2), 0);
    while (bits(&s, NULL) == SHM_BIT_OFFER) {
        CHECK_OK(pull(&s, &number));
        CHECK_EQ(number, count++);
    }
    CHECK_EQ(count, SHM_OFFER_SLOTS);
    CHECK_EQ(pull(&s, &number), SHM_EMPTY);
    CHECK_EQ(shm_offer_senders(&s.receiver.thread, who, 2), 0);
    CHECK_OK(offer(&s, 5));
    struct shm_message m;
    CHECK_OK(shm_offer_recall(&s.sender.thread, s.id, &m));
    CHECK_EQ(number_in(&m), 5);
    CHECK_EQ(shm_offer_recall(&s.sender.thread, s.id, &m), SHM_EMPTY);
    CHECK_EQ(bits(&s, NULL), SHM_BIT_OFFER); /* once too often */
    shm_box_release(&s.sender.thread, &s.to);
    shm_box_release(&s.receiver.thread, &s.own);
    actor_leave(&s.sender);
    CHECK_EQ(pull(&s, &number), SHM_PEER_DEAD);
    actor_leave(&s.receiver);
    world_close(&s.w);
}

static void queue_goes_with_its_receiver(void)
{
    struct scene s;
    open_scene(&s);
    uint32_t before = world_count(&s.w).blocks;
    for (uint64_t n = 0; n < 50; n++)
        CHECK_OK(offer(&s, n));
    CHECK_EQ(world_count(&s.w).blocks, before + 1);
    actor_die(&s.w, &s.receiver);
    CHECK(shm_reap(&s.sender.thread, s.slot));
    CHECK_EQ(offer(&s, 50), SHM_PEER_DEAD);
    CHECK_EQ(shm_offer_count(&s.sender.thread, s.from, s.id), 0);
    CHECK_EQ(shm_box_undelivered(&s.w.segment), 50);
    CHECK_EQ(shm_box_notify(&s.sender.thread, &s.to, 1), SHM_PEER_DEAD);
    shm_box_release(&s.sender.thread, &s.to);
    CHECK_EQ(world_count(&s.w).boxes, 0);
    actor_leave(&s.sender);
    world_close(&s.w);
}

static void queue_goes_with_its_sender(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s);
    for (uint64_t n = 0; n < 50; n++)
        CHECK_OK(offer(&s, n));
    CHECK_OK(pull(&s, &number));
    actor_die(&s.w, &s.sender);
    CHECK(shm_reap(&s.receiver.thread, s.senders_slot));
    CHECK_EQ(pull(&s, &number), SHM_PEER_DEAD);
    CHECK_EQ(world_count(&s.w).boxes, 1);
    shm_box_release(&s.receiver.thread, &s.own);
    actor_leave(&s.receiver);
    world_close(&s.w);
}

static void bits_coalesce_and_are_for_an_open_receive_or_their_own(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s);
    struct shm_filter tagged = by_tag(0), its = {.sender = s.from, .tag = SHM_TAG_ANY, .kinds = ~0u},
                      casts = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_CAST},
                      own = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_NOTIFY};
    CHECK_OK(box_send(&s.sender, &s.to, 0, 7, 0));
    for (int n = 0; n < 100; n++)
        CHECK_OK(shm_box_notify(&s.sender.thread, &s.to, UINT64_C(1) << n % 3));
    CHECK_OK(shm_box_receive(&s.receiver.thread, &s.own, &tagged, &m, 0));
    CHECK_EQ(number_in(&m), 7);
    CHECK_EQ(bits(&s, &its), 0);
    CHECK_EQ(bits(&s, &casts), 0);
    CHECK_OK(box_send(&s.sender, &s.to, 0, 8, 0));
    CHECK_EQ(bits(&s, NULL), 7);
    CHECK_OK(shm_box_receive(&s.receiver.thread, &s.own, &casts, &m, 0));
    CHECK_EQ(bits(&s, NULL), 0);
    CHECK_OK(shm_box_notify(&s.sender.thread, &s.to, UINT64_MAX));
    CHECK_EQ(bits(&s, &own), UINT64_MAX);
    CHECK_EQ(bits(&s, &own), 0);
    shm_box_close(&s.receiver.thread, &s.own);
    CHECK_EQ(shm_box_notify(&s.sender.thread, &s.to, 1), SHM_CLOSED);
    shm_box_release(&s.sender.thread, &s.to);
    shm_box_release(&s.receiver.thread, &s.own);
    actor_leave(&s.sender);
    actor_leave(&s.receiver);
    world_close(&s.w);
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

enum { ROUNDS = 3000 };

struct race {
    struct scene s;
    _Atomic uint64_t seen;
};

/* One sets a bit when the last was seen; two receive. */
static void set_or_see(void *argument, int index)
{
    struct race *r = argument;
    struct shm_thread self;
    struct shm_filter any = SHM_FILTER_NONE;
    if (index == 0) {
        for (uint64_t n = 0; n < ROUNDS; n++) {
            CHECK_OK(shm_box_notify(&r->s.sender.thread, &r->s.to, UINT64_C(1) << n % 64));
            while (atomic_load(&r->seen) <= n)
                shm_clock_relax();
        }
        for (int receivers = 0; receivers < 2; receivers++)
            CHECK_OK(box_send(&r->s.sender, &r->s.to, 0, 0, SHM_FOREVER));
        return;
    }
    CHECK_OK(shm_thread_open(&self, &r->s.receiver.member));
    for (;;) {
        struct shm_message m;
        CHECK_OK(shm_box_receive(&self, &r->s.own, &any, &m, SHM_FOREVER));
        if (m.told != SHM_TOLD_BITS)
            break;
        CHECK_EQ(m.notice, UINT64_C(1) << atomic_load(&r->seen) % 64);
        atomic_fetch_add(&r->seen, 1);
    }
    shm_thread_close(&self);
}

static void no_bit_is_lost_between_threads(void)
{
    struct race r = {0};
    open_scene(&r.s);
    check_threads(3, set_or_see, &r);
    CHECK_EQ(atomic_load(&r.seen), ROUNDS);
    shm_box_release(&r.s.sender.thread, &r.s.to);
    shm_box_release(&r.s.receiver.thread, &r.s.own);
    actor_leave(&r.s.sender);
    actor_leave(&r.s.receiver);
    world_close(&r.s.w);
}

static void offer_or_pull(void *argument, int index)
{
    struct scene *s = argument;
    if (index == 0) {
        for (uint64_t n = 0; n < ROUNDS;) {
            int status = offer(s, n);
            CHECK(status == 0 || status == SHM_FULL || status == SHM_BUSY);
            n += status == 0;
        }
        return;
    }
    for (uint64_t n = 0, number; n < ROUNDS;) {
        struct shm_filter any = SHM_FILTER_NONE;
        struct shm_message m;
        CHECK_OK(shm_box_receive(&s->receiver.thread, &s->own, &any, &m, SHM_FOREVER));
        CHECK_EQ(m.notice, SHM_BIT_OFFER);
        int status = pull(s, &number);
        CHECK(status == 0 || status == SHM_EMPTY);
        if (status == 0)
            CHECK_EQ(number, n++);
    }
}

static void offers_go_between_threads(void)
{
    struct scene s;
    open_scene(&s);
    check_threads(2, offer_or_pull, &s);
    shm_box_release(&s.sender.thread, &s.to);
    shm_box_release(&s.receiver.thread, &s.own);
    actor_leave(&s.sender);
    actor_leave(&s.receiver);
    world_close(&s.w);
}

int main(void)
{
    RUN(offers_are_pulled_in_order_and_told_until_none_is_left);
    RUN(queue_goes_with_its_receiver);
    RUN(queue_goes_with_its_sender);
    RUN(bits_coalesce_and_are_for_an_open_receive_or_their_own);
    RUN(no_bit_is_lost_between_threads);
    RUN(offers_go_between_threads);
    return 0;
}
