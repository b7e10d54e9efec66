/* What the victims of test_crash.c do: what is there before, the act that a death interrupts, what must be true after
 * the reap. */
#ifndef CRASH_SCENES_H
#define CRASH_SCENES_H

#include "world.h"

enum { NUMBERS = 64, ROOM = 4 };

static struct stage {
    struct world w; /* the same for all runs: it is empty between them */
    struct actor live, victim, second, sleeper, early;
    struct shm_box box, victims, seconds, sleepers,
        earlys;                  /* one mailbox of `live`, and each one's view of it */
    struct shm_box own, between; /* of the victim; made between two reaps */
    unsigned char tried[NUMBERS], sent[NUMBERS], got[NUMBERS];
    uint64_t next;     /* number of the next message */
    uint32_t may_lose; /* messages the victim may have taken */
    bool asleep;       /* there is a sleeper */
    uint32_t slot;     /* of the victim */
    shm_member_id prepared;
    shm_call_id calls[4];
    uint32_t calls_count;
    struct shm_box mine;     /* of `live`, where it gets the answers to its letters */
    int least, most;         /* what is to be told to `live` without a slot */
    struct shm_thread keeps; /* another thread of the victim's */
} s;

/* ---- steps ------------------------------------------------------------------------------------------------- */

/* What others do while the victim's turn lasts: they do not die of it. */
#define SAFELY(statement)                                                                                    \
    do {                                                                                                     \
        bool mortal = world_mortal;                                                                          \
        world_mortal = false;                                                                                \
        statement;                                                                                           \
        world_mortal = mortal;                                                                               \
    } while (0)

static int send_number(struct actor *a, struct shm_box *box, uint64_t tag, bool block, uint64_t deadline_ns)
{
    uint64_t number = s.next++;
    s.tried[number] = 1;
    int status = block ? box_send_block(a, box, tag, number, true, deadline_ns)
                       : box_send(a, box, tag, number, deadline_ns);
    s.sent[number] = status == 0;
    return status;
}

static int take_number(struct actor *a, struct shm_box *box, const struct shm_filter *filter,
                       uint64_t deadline_ns)
{
    uint64_t number;
    s.may_lose = a == &s.victim;
    int status = box_receive(a, box, filter, &number, deadline_ns);
    s.may_lose = 0;
    if (status == 0) {
        CHECK(number < NUMBERS);
        CHECK_EQ(s.got[number]++, 0);
    }
    return status;
}

static void fill_box(int plain, int blocks)
{
    for (int i = 0; i < plain; i++)
        CHECK_OK(send_number(&s.live, &s.box, 1, false, 0));
    for (int i = 0; i < blocks; i++)
        CHECK_OK(send_number(&s.live, &s.box, 1, true, 0));
}

static void sleep_in_receive(void *unused)
{
    (void)unused;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    shm_box_receive(&s.sleeper.thread, &s.sleepers, &any, &m, SHM_FOREVER);
}

static void sleep_in_send(void *unused)
{
    (void)unused;
    box_send(&s.sleeper, &s.sleepers, 0, NUMBERS - 1, SHM_FOREVER);
}

static void sleep_in_call(void *unused)
{
    (void)unused;
    shm_call_wait(&s.sleeper.thread, s.calls[0], actor_id(&s.victim), SHM_FOREVER);
}

static void sleep_for_finished(void *unused)
{
    (void)unused;
    shm_call_wait_finished(&s.sleeper.thread, 0, SHM_FOREVER);
}

static void put_to_sleep(void (*how)(void *))
{
    actor_join(&s.w, &s.sleeper);
    box_open(&s.sleeper, &s.sleepers, &s.box);
    s.sleeper.thread.may_spin = false;
    world_arm("wait_park", 1);
    CHECK(world_dies(how, NULL));
    s.asleep = true;
}

static void expect_awake(void)
{
    int tokens = 0;
    CHECK_EQ(shm_word_state(atomic_load(&s.sleeper.thread.at->word)), SHM_PLACE_NOTIFIED);
    sem_getvalue(&s.sleeper.thread.at->semaphore, &tokens);
    CHECK(tokens > 0);
}

/* ---- scenarios: what is there before, what the victim does, what must be true after its reap ----------------- */

static void receiver_sleeps(void)
{
    put_to_sleep(sleep_in_receive);
}

static void sends(void *unused)
{
    (void)unused;
    send_number(&s.victim, &s.victims, 1, false, 0);
}

static void sends_block(void *unused)
{
    (void)unused;
    send_number(&s.victim, &s.victims, 1, true, 0);
}

static void awake_if_there_is_a_message(void)
{
    if (shm_ring_count(&s.box))
        expect_awake();
}

static void box_is_full(void)
{
    fill_box(ROOM - 1, 1);
}

static void waits_to_send(void *unused)
{
    (void)unused;
    send_number(&s.victim, &s.victims, 1, true, shm_clock_ns() + MS / 10);
}

static void sender_sleeps(void)
{
    fill_box(ROOM - 1, 1);
    put_to_sleep(sleep_in_send);
}

static void receives(void *unused)
{
    (void)unused;
    take_number(&s.victim, &s.victims, NULL, 0);
}

static void awake_if_there_is_room(void)
{
    if (shm_ring_count(&s.box) < ROOM)
        expect_awake();
}

static void blocks_are_queued(void)
{
    fill_box(0, ROOM);
}

static void waits_behind_another(void *unused)
{
    (void)unused;
    send_number(&s.victim, &s.victims, 1, false, shm_clock_ns() + MS / 10);
    SAFELY(CHECK_OK(take_number(&s.live, &s.box, NULL, 0)));
    send_number(&s.victim, &s.victims, 1, false, shm_clock_ns() + MS / 10); /* room, but not its turn */
}

static void victim_waits_to_receive(void *unused)
{
    (void)unused;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    shm_box_receive(&s.victim.thread, &s.victims, &any, &m, SHM_FOREVER);
}

static void victim_waits_to_send(void *unused)
{
    (void)unused;
    box_send(&s.victim, &s.victims, 0, NUMBERS - 1, SHM_FOREVER);
}

static void two_receivers_sleep(void)
{
    world_arm("wait_park", 1);
    CHECK(world_dies(victim_waits_to_receive, NULL));
    put_to_sleep(sleep_in_receive);
}

static void two_senders_sleep(void)
{
    fill_box(ROOM - 1, 1);
    world_arm("wait_park", 1);
    CHECK(world_dies(victim_waits_to_send, NULL));
    put_to_sleep(sleep_in_send);
}

/* Others do something, and the victim, which is woken by it, is not there any more. */
static void is_sent_to(void *unused)
{
    (void)unused;
    SAFELY(CHECK_OK(send_number(&s.live, &s.box, 1, false, 0)));
}

static void is_given_room(void *unused)
{
    (void)unused;
    SAFELY(CHECK_OK(take_number(&s.live, &s.box, NULL, 0)));
}

static void tags_are_mixed(void)
{
    for (uint64_t i = 0; i < ROOM; i++)
        CHECK_OK(send_number(&s.live, &s.box, i == 2 ? 2 : 1, i % 2, 0));
}

static void selects(void *unused)
{
    (void)unused;
    struct shm_filter two = by_tag(2), one = by_tag(1), none = by_tag(9);
    take_number(&s.victim, &s.victims, &none, 0);
    take_number(&s.victim, &s.victims, &two, 0);
    take_number(&s.victim, &s.victims, &one, 0);
    SAFELY(send_number(&s.live, &s.box, 3, false, 0));
    take_number(&s.victim, &s.victims, &none, 0);
    take_number(&s.victim, &s.victims, NULL, 0);
}

static void waits_to_receive(void *unused)
{
    (void)unused;
    struct shm_filter none = by_tag(9);
    take_number(&s.victim, &s.victims, NULL, shm_clock_ns() + MS / 10);
    SAFELY(CHECK_OK(send_number(&s.live, &s.box, 1, false, 0)));
    take_number(&s.victim, &s.victims, &none, shm_clock_ns() + MS / 10);
}

static void nothing(void)
{
}

/* What was freed so far is in use again, for messages that must arrive. */
static void life_goes_on(void)
{
    if (s.between.ring)
        return;
    shm_pool_hint(&s.w.segment, SHM_TABLE_LEASES, 0); /* the freed records first */
    box_make(&s.live, &s.between, SHM_BOX_SHARED, ROOM);
    for (uint64_t i = 0; i < ROOM; i++)
        CHECK_OK(box_send_block(&s.live, &s.between, 0, i, true, 0));
}

/* An earlier victim died with the take right in its hands, half way through setting a message aside. */
static void early_selects(void *unused)
{
    (void)unused;
    struct shm_filter none = by_tag(9);
    uint64_t number;
    box_receive(&s.early, &s.earlys, &none, &number, 0);
}

static void right_is_unswept(void)
{
    actor_join(&s.w, &s.early);
    box_open(&s.early, &s.earlys, &s.box);
    uint32_t slot = s.early.member.slot;
    tags_are_mixed();
    world_arm("aside_free", 2);
    CHECK(world_dies(early_selects, NULL));
    actor_die(&s.w, &s.early);
    CHECK(shm_reap(&s.live.thread, slot));
}

static void right_is_unswept_and_a_sender_sleeps(void)
{
    right_is_unswept();
    put_to_sleep(sleep_in_send);
}

static shm_call_id request(struct actor *caller, struct shm_box *box, bool async)
{
    shm_call_id call;
    uint64_t number = 0;
    struct shm_message m = message_of(0, &number);
    CHECK_OK(shm_call_open(&caller->thread, box->owner, async, &call));
    m.header = shm_header_make(SHM_KIND_CALL, 0);
    m.call = call;
    CHECK_OK(shm_box_send(&caller->thread, box, &m, 0));
    shm_call_check(&caller->thread, call, box->owner);
    return call;
}

static int answer(struct actor *server, struct shm_box *box, bool block)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    uint64_t number = 42;
    int status = shm_box_receive(&server->thread, box, &any, &m, 0);
    if (status || (status = shm_call_serve(&server->thread, m.call)))
        return status;
    if (!block)
        return shm_call_reply(&server->thread, m.call, &number, sizeof number, 0, 0);
    shm_lease_index lease;
    CHECK_OK(shm_block_take(&server->thread, 5000, &lease));
    status = shm_call_reply(&server->thread, m.call, NULL, 5000, 0, lease + 1);
    if (status)
        shm_lease_release(&server->thread, lease);
    return status;
}

static void read_reply(struct actor *caller, shm_call_id call)
{
    struct shm_reply r;
    CHECK_OK(shm_call_read(&caller->thread, call, &r));
    if (r.lease)
        shm_lease_release(&caller->thread, r.lease - 1);
    shm_call_free(&caller->thread, call);
}

static void request_is_withdrawn(void)
{
    shm_lease_index lease;
    struct shm_message m = {.header = shm_header_make(SHM_KIND_CALL, 0), .len_bytes = 100};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(shm_call_open(&s.live.thread, s.box.owner, false, &m.call));
        CHECK_OK(shm_block_take(&s.live.thread, 100, &lease));
        m.lease = lease + 1;
        CHECK_OK(shm_box_send(&s.live.thread, &s.box, &m, 0));
        CHECK(shm_call_cancel(&s.live.thread, m.call));
    }
}

static void calls(void *unused)
{
    (void)unused;
    for (int how = 0; how < 4; how++) {
        shm_call_id call = request(&s.victim, &s.victims, how == 1);
        if (how == 3) { /* the server has it, and is told that nobody waits any more */
            struct shm_filter any = SHM_FILTER_NONE;
            struct shm_message m;
            SAFELY(CHECK_OK(shm_box_receive(&s.live.thread, &s.box, &any, &m, 0));
                   CHECK_OK(shm_call_serve(&s.live.thread, m.call)));
        }
        if (how >= 2) {
            CHECK_EQ(shm_call_wait(&s.victim.thread, call, 0, shm_clock_ns() + MS / 10), SHM_TIMEOUT);
            CHECK(shm_call_cancel(&s.victim.thread, call));
            SAFELY(answer(&s.live, &s.box, false));
        } else {
            SAFELY(CHECK_OK(answer(&s.live, &s.box, how == 0)));
            CHECK_OK(shm_call_wait(&s.victim.thread, call, 0, 0));
            read_reply(&s.victim, call);
        }
    }
}

/* Requests that it left behind are dropped by whoever comes to them. */
static void requests_are_gone(void)
{
    CHECK_EQ(answer(&s.live, &s.box, false), SHM_EMPTY);
}

static void victim_has_a_mailbox(void)
{
    box_make(&s.victim, &s.own, SHM_BOX_ACTOR, ROOM);
}

static void call_from(struct actor *caller, bool async)
{
    struct shm_box box;
    box_open(caller, &box, &s.own);
    s.calls[s.calls_count++] = request(caller, &box, async);
    shm_box_release(&caller->thread, &box);
}

static void caller_sleeps(void)
{
    victim_has_a_mailbox();
    actor_join(&s.w, &s.sleeper);
    box_open(&s.sleeper, &s.sleepers, &s.box);
    call_from(&s.sleeper, false);
    call_from(&s.sleeper, true);
    s.sleeper.thread.may_spin = false;
    world_arm("wait_park", 1);
    CHECK(world_dies(sleep_in_call, NULL));
    s.asleep = true;
}

static void collector_sleeps(void)
{
    victim_has_a_mailbox();
    actor_join(&s.w, &s.sleeper);
    box_open(&s.sleeper, &s.sleepers, &s.box);
    call_from(&s.sleeper, true);
    s.sleeper.thread.may_spin = false;
    world_arm("wait_park", 1);
    CHECK(world_dies(sleep_for_finished, NULL));
    s.asleep = true;
}

static void serves(void *unused)
{
    (void)unused;
    answer(&s.victim, &s.own, false);
    answer(&s.victim, &s.own, true);
}

static void caller_leaves_while_it_is_served(void *unused)
{
    (void)unused;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    shm_box_receive(&s.victim.thread, &s.own, &any, &m, 0);
    shm_call_serve(&s.victim.thread, m.call);
    SAFELY(CHECK(shm_call_cancel(&s.live.thread, s.calls[0])); s.calls_count = 0);
    shm_call_reply(&s.victim.thread, m.call, &m, 8, 0, 0);
}

static void live_calls(void)
{
    victim_has_a_mailbox();
    call_from(&s.live, false);
}

static void calls_are_done_and_told(void)
{
    shm_call_id found[4];
    for (uint32_t i = 0; i < s.calls_count; i++)
        CHECK(shm_call_is_done(&s.w.segment, s.calls[i]));
    if (!s.asleep)
        return;
    expect_awake();
    CHECK_EQ(shm_call_finished(&s.sleeper.thread, found, 4), 1);
    for (uint32_t i = 0; i < s.calls_count; i++)
        read_reply(&s.sleeper, s.calls[i]);
}

static void request_is_queued(void)
{
    s.calls[0] = request(&s.live, &s.box, false);
}

static void serves_anothers_mailbox(void *unused)
{
    (void)unused;
    answer(&s.victim, &s.victims, true);
}

/* Taken and not answered: it failed. Not taken: another serves it. */
static void call_is_done_or_another_serves_it(void)
{
    if (!shm_call_is_done(&s.w.segment, s.calls[0]))
        CHECK_OK(answer(&s.live, &s.box, false));
    read_reply(&s.live, s.calls[0]);
}

static void memory_is_given_back(void)
{
    shm_arena_trim(&s.live.thread);
}

static void uses_blocks(void *unused)
{
    (void)unused;
    shm_lease_index a, b, c, kept;
    CHECK_OK(shm_block_take(&s.victim.thread, 300000, &a)); /* without pages: memory_is_given_back */
    shm_lease_release(&s.victim.thread, a);
    CHECK_OK(shm_block_take(&s.victim.thread, 5000, &a));
    CHECK_OK(shm_block_hold(&s.victim.thread, shm_lease_block(&s.w.segment, a), &b));
    SAFELY(CHECK_OK(shm_block_hold(&s.live.thread, shm_lease_block(&s.w.segment, a), &kept)));
    shm_lease_release(&s.victim.thread, b);
    CHECK_OK(shm_block_take(&s.victim.thread, 5000, &b));
    CHECK_OK(shm_block_take(&s.victim.thread, 5000, &c));
    shm_handles_put(&s.victim.thread, shm_lease_block(&s.w.segment, c), (shm_lease_index[]){a, b}, 2);
    shm_lease_release(&s.victim.thread, c);
    SAFELY(CHECK_EQ(shm_block_holders(&s.w.segment, shm_lease_block(&s.w.segment, kept)), 1);
           shm_lease_release(&s.live.thread, kept));
    CHECK_OK(shm_block_take(&s.victim.thread, 5000, &a));
    shm_lease_recycle(&s.victim.thread, a);
    shm_arena_trim(&s.victim.thread);
}

static void makes_things(void *unused)
{
    (void)unused;
    struct shm_box box, again;
    box_make(&s.victim, &box, SHM_BOX_SHARED, ROOM);
    box_send_block(&s.victim, &box, 1, 1, true, 0);
    CHECK_OK(shm_box_open(&s.victim.thread, &again, box.index, box.count));
    struct shm_named actor = {SHM_NAME_ACTOR, s.slot, actor_id(&s.victim)},
                     its = {SHM_NAME_BOX, box.index, box.count};
    CHECK_OK(shm_name_serve(&s.victim.thread, "victim", &actor));
    CHECK_OK(shm_name_serve(&s.victim.thread, "box", &its));
    CHECK(shm_notice_arm(&s.victim.thread, &box, actor_id(&s.live)) > 0);
    CHECK_OK(shm_thread_open(&s.keeps, &s.victim.member));
    shm_thread_close(&s.keeps);
    shm_box_release(&s.victim.thread, &again);
    shm_box_release(&s.victim.thread, &box);
    box_make(&s.victim, &box, SHM_BOX_ACTOR, ROOM);
    box_send_block(&s.victim, &box, 1, 1, true, 0);
    shm_box_close(&s.victim.thread, &box);
    CHECK(shm_member_prepare(&s.w.segment, &s.victim.member, SHM_KIND_WORKER, "") > 0);
}

static void names_are_free(void)
{
    struct shm_named live = {SHM_NAME_ACTOR, s.live.member.slot, actor_id(&s.live)};
    CHECK_OK(shm_name_serve(&s.live.thread, "victim", &live));
    CHECK_OK(shm_name_serve(&s.live.thread, "box", &live));
    CHECK_OK(shm_name_withdraw(&s.live.thread, "victim"));
    CHECK_OK(shm_name_withdraw(&s.live.thread, "box"));
}

static void victim_has_one_of_everything(void)
{
    makes_things(NULL);
    live_calls();
    call_from(&s.victim, true);
    s.calls_count = 1;
    CHECK(shm_notice_arm(&s.live.thread, &s.box, actor_id(&s.victim)) > 0);
    CHECK(shm_notice_arm(&s.victim.thread, &s.own, actor_id(&s.live)) > 0);
}

static void leaves(void *unused)
{
    (void)unused;
    shm_leave(&s.victim.thread);
}

static void end_is_told(void)
{
    struct shm_filter exits = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_EXIT};
    struct shm_message m;
    CHECK_OK(shm_box_receive(&s.live.thread, &s.box, &exits, &m, 0));
    CHECK_EQ(m.sender & 0xFFFF, s.slot);
    CHECK_EQ(shm_box_receive(&s.live.thread, &s.box, &exits, &m, 0), SHM_EMPTY);
    calls_are_done_and_told();
}

/* Links with `live`, which is told of its end in s.box; and `live` ends one of them, or links it first. */
static void links_and_unlinks(void *unused)
{
    (void)unused;
    shm_member_id live = actor_id(&s.live), victim = actor_id(&s.victim);
    s.most = 1;
    CHECK_OK(shm_notice_link(&s.victim.thread, &s.own, live, s.box.index, s.box.count));
    s.least = 1;
    CHECK_EQ(shm_notice_link(&s.victim.thread, &s.own, live, s.box.index, s.box.count), SHM_REFUSED);
    SAFELY(CHECK_EQ(shm_notice_link(&s.live.thread, &s.box, victim, s.own.index, s.own.count), SHM_REFUSED);
           CHECK(shm_notice_unlink(&s.live.thread, victim)));
    s.least = 0;
    CHECK(!shm_notice_unlink(&s.victim.thread, live));
    SAFELY(CHECK_OK(shm_notice_link(&s.live.thread, &s.box, victim, s.own.index, s.own.count)));
    s.least = 1;
    CHECK_EQ(shm_notice_link(&s.victim.thread, &s.own, live, s.box.index, s.box.count), SHM_REFUSED);
}

static void live_links(void *unused)
{
    (void)unused;
    shm_notice_link(&s.live.thread, &s.box, actor_id(&s.victim), s.own.index, s.own.count);
}

/* Its link with the victim is half made. */
static void live_has_stopped_in_its_link(void)
{
    victim_has_a_mailbox();
    shm_pool_hint(&s.w.segment, SHM_TABLE_NOTICES, 0); /* before that of the victim */
    world_arm("link_ready", 1);
    CHECK(world_dies(live_links, NULL));
}

static void links_who_has_stopped(void *unused)
{
    (void)unused;
    s.most = 1;
    CHECK_EQ(shm_notice_link(&s.victim.thread, &s.own, actor_id(&s.live), s.box.index, s.box.count),
             SHM_REFUSED);
    s.least = 1;
}

/* How often `live` is told something of this kind, in one of its mailboxes. */
static int told(struct shm_box *box, uint32_t kind, struct shm_message *m)
{
    struct shm_filter filter = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1u << kind};
    int count = 0;
    while (shm_box_receive(&s.live.thread, box, &filter, m, 0) == 0)
        count++;
    return count;
}

static void link_is_told(void)
{
    struct shm_message m = {0};
    int count = told(&s.box, SHM_KIND_EXIT, &m);
    CHECK(count >= s.least && count <= s.most);
    CHECK(count == 0 || (m.told == SHM_TOLD_LINK && m.sender >> 16 && (m.sender & 0xFFFF) == s.slot));
}

static void sets_timers(void *unused)
{
    (void)unused;
    uint64_t body = 99;
    struct shm_message m = message_of(7, &body), tick;
    struct shm_filter any = SHM_FILTER_NONE;
    m.header = shm_header_make(SHM_KIND_TIMER, 7);
    int64_t own = shm_notice_set(&s.victim.thread, &s.own, &m, 1);
    CHECK(own > 0);
    for (int i = 0; i < 2; i++) { /* its receipt arms it again */
        CHECK_OK(shm_notice_tick(&s.victim.thread, (uint64_t)own, 1));
        CHECK_OK(shm_notice_tick(&s.victim.thread, (uint64_t)own, 2));
        CHECK_OK(shm_box_receive(&s.victim.thread, &s.own, &any, &tick, 0));
        CHECK_EQ(tick.header, m.header);
        CHECK_EQ(number_in(&tick), body);
        CHECK_EQ(shm_box_receive(&s.victim.thread, &s.own, &any, &tick, 0), SHM_EMPTY);
    }
    int64_t number = shm_notice_set(&s.victim.thread, &s.box, &m, 0);
    CHECK(number > 0);
    s.most = 1;
    CHECK_OK(shm_notice_tick(&s.victim.thread, (uint64_t)number, 3));
    s.least = 1; /* it has fired: it comes, whether its setter lives or not */
    CHECK(shm_notice_disarm(&s.victim.thread, (uint64_t)own));
    CHECK_EQ(shm_notice_tick(&s.victim.thread, (uint64_t)own, 4), SHM_NOT_FOUND);
}

static void tick_is_told(void)
{
    struct shm_message m = {0};
    int count = told(&s.box, SHM_KIND_TIMER, &m);
    CHECK(count >= s.least && count <= s.most);
    CHECK(count == 0 || ((m.header & SHM_TAG_MASK) == 7 && number_in(&m) == 99));
}

/* `live` sends the victim two letters, tagged 1 and 2. */
static void letters_are_queued(void)
{
    struct shm_box box;
    uint64_t number = 0;
    struct shm_message m = message_of(0, &number);
    victim_has_a_mailbox();
    box_make(&s.live, &s.mine, SHM_BOX_ACTOR, ROOM);
    atomic_store(&s.live.member.record->box, s.mine.index + 1);
    box_open(&s.live, &box, &s.own);
    for (uint64_t tag = 1; tag <= 2; tag++) {
        CHECK_OK(shm_call_open(&s.live.thread, box.owner, SHM_CELL_LETTER, &m.call));
        shm_call_label(&s.live.thread, m.call, tag);
        m.header = shm_header_make(SHM_KIND_CALL, tag);
        CHECK_OK(shm_box_send(&s.live.thread, &box, &m, 0));
        shm_call_check(&s.live.thread, m.call, box.owner);
    }
    shm_box_release(&s.live.thread, &box);
}

static void letters_are_answered(void)
{
    for (uint64_t tag = 1; tag <= 2; tag++) {
        struct shm_filter filter = by_tag(tag);
        struct shm_message m;
        CHECK_OK(shm_box_receive(&s.live.thread, &s.mine, &filter, &m, 0));
        CHECK_EQ(m.header, shm_header_make(SHM_KIND_REPLY, tag));
        CHECK_EQ(m.told, SHM_TOLD_REPLY);
        CHECK_EQ(m.sender & 0xFFFF, s.slot);
        read_reply(&s.live, m.letter);
        CHECK_EQ(shm_box_receive(&s.live.thread, &s.mine, &filter, &m, 0), SHM_EMPTY);
    }
    atomic_store(&s.live.member.record->box, 0);
    shm_box_close(&s.live.thread, &s.mine);
    shm_box_release(&s.live.thread, &s.mine);
}

static void slot_is_prepared(void)
{
    int64_t id = shm_member_prepare(&s.w.segment, &s.live.member, SHM_KIND_WORKER, "victim");
    CHECK(id > 0);
    s.prepared = (shm_member_id)id;
    s.slot = id & 0xFFFF;
}

static void joins(void *unused)
{
    (void)unused;
    CHECK_OK(shm_member_join(&s.victim.member, &s.w.segment, s.prepared, SHM_KIND_WORKER, "", NULL));
}

#include "crash_aborts.h"
#include "crash_buses.h"
#include "crash_offers.h"
#include "crash_syncs.h"

#include "crash_ports.h"

static void does_nothing(void *unused)
{
    (void)unused;
}

static const struct scene {
    const char *name;
    void (*before)(void);
    void (*act)(void *);
    void (*after)(void);
} scenes[] = {
    {"sender", receiver_sleeps, sends, awake_if_there_is_a_message},
    {"sender of a block", receiver_sleeps, sends_block, awake_if_there_is_a_message},
    {"sender that waits for room", box_is_full, waits_to_send, nothing},
    {"sender behind another", sender_sleeps, waits_behind_another, awake_if_there_is_room},
    {"receiver that was woken", two_receivers_sleep, is_sent_to, expect_awake},
    {"sender that was woken", two_senders_sleep, is_given_room, expect_awake},
    {"receiver", sender_sleeps, receives, awake_if_there_is_room},
    {"receiver of a block", blocks_are_queued, receives, nothing},
    {"filtered receiver", tags_are_mixed, selects, nothing},
    {"receiver that waits", nothing, waits_to_receive, nothing},
    {"receiver that sweeps", right_is_unswept, selects, nothing},
    {"sender that sweeps", right_is_unswept_and_a_sender_sleeps, sends, nothing},
    {"receiver of a withdrawn request", request_is_withdrawn, receives, life_goes_on},
    {"caller", nothing, calls, requests_are_gone},
    {"server of one that waits", caller_sleeps, serves, calls_are_done_and_told},
    {"server of one that collects", collector_sleeps, serves, calls_are_done_and_told},
    {"server whose caller leaves", live_calls, caller_leaves_while_it_is_served, nothing},
    {"server of a pool", request_is_queued, serves_anothers_mailbox, call_is_done_or_another_serves_it},
    {"user of blocks", memory_is_given_back, uses_blocks, nothing},
    {"maker of mailboxes, names and notices", nothing, makes_things, names_are_free},
    {"linked", victim_has_a_mailbox, links_and_unlinks, link_is_told},
    {"linked with one who has stopped", live_has_stopped_in_its_link, links_who_has_stopped, link_is_told},
    {"setter of timers", victim_has_a_mailbox, sets_timers, tick_is_told},
    {"server of letters", letters_are_queued, serves, letters_are_answered},
    {"member that leaves", victim_has_one_of_everything, leaves, end_is_told},
    {"member that joins", slot_is_prepared, joins, nothing},
    {"notifier", receiver_of_bits_sleeps, notifies, bits_are_told},
    {"receiver of bits", bits_are_set, takes_bits, bits_were_taken_once},
    {"looker", blocks_are_queued, looks_and_takes, nobody_receives_any_more},
    {"offerer", live_has_a_mailbox, offers, offers_have_gone},
    {"puller", live_offers, pulls, nobody_is_offered_anything},
    {"receiver of a rendezvous", live_meets, accepts, sender_knows},
};

/* What `test_crash ports` plays. */
static const struct scene port_scenes[] = {
    {"maker of ports", no_port_yet, makes_ports, only_ports_of_the_living_are_left},
    {"maker of a default port", no_port_yet, asks_for_a_default_port, there_is_one_default_port},
    {"namer of a default port", a_port_is_left_unnamed, asks_for_a_default_port, there_is_one_default_port},
    {"owner of a port", port_is_busy, does_nothing, port_is_gone},
    {"deleter of a port", port_is_busy, deletes_port, port_is_gone},
    {"migrator", queue_is_filled, migrates_with_messages, all_is_lives_or_gone},
    {"migrator without messages", queue_is_filled, migrates_without_messages,
     nothing_is_lives_or_all_is_gone},
    {"receiver from any port", victim_has_an_empty_port, receives_from_any, port_is_gone},
    {"sender to one who waits for any port", one_sleeps_for_any_port, sends_to_port,
     sleeper_knows_of_its_message},
    {"editor of groups", live_has_a_port_and_a_group, edits_groups, group_has_living_members},
    {"destroyer of a group", live_has_a_group_with_a_name, destroys_group,
     group_is_whole_or_its_name_is_free},
    {"owner that leaves", port_is_busy, leaves, port_is_gone},
};

/* What `test_crash buses` plays. */
static const struct scene bus_scenes[] = {
    {"publisher", bus_is_full_and_a_reader_sleeps, publishes, frames_are_whole_and_the_sleeper_knows},
    {"publisher that waits for a reader", a_reader_has_patience, waits_to_publish, bus_works},
    {"publisher that does not wait any more", a_reader_has_little_patience, waits_until_it_is_late,
     bus_works},
    {"publisher after one that died", a_frame_was_left_half_made, publishes, bus_works},
    {"reader of a bus", bus_counts_readers, reads_frames, bus_works},
    {"reader of a bus that waits", one_reads_a_bus, waits_for_a_frame, bus_works},
    {"reader that a writer waits for", the_victim_has_patience_and_a_writer_sleeps, reads_one,
     the_writer_is_awake},
    {"reader that leaves a bus", the_victim_has_patience_and_a_writer_sleeps, unsubscribes,
     the_writer_is_awake},
    {"destroyer of a bus", one_reads_a_bus, destroys, it_is_open_or_closed},
    {"maker of a bus", nothing, makes_a_bus, names_are_free},
    {"reader and writer that leaves", victim_reads_and_writes_a_bus, leaves, the_writer_is_awake},
};

/* What `test_crash syncs` plays. */
static const struct scene sync_scenes[] = {
    {"one who sets an event", one_waits_for_an_event, sets, awake_if_it_is_there},
    {"one who unlocks a mutex", victim_has_the_mutex_and_one_waits, unlocks, the_next_is_awake},
    {"one who gives back a mutex that was abandoned", victim_has_the_mutex_and_one_waits, gives_back,
     the_next_is_awake},
    {"one who leaves with a mutex", victim_has_the_mutex_and_one_waits, leaves, the_next_is_awake},
    {"one who takes one of each", there_is_one_of_each, takes_each, the_mutex_is_free},
    {"one who waits for any", there_is_none, waits_for_any, things_work},
    {"one who sends to a watcher", one_waits_for_event_or_message, sender_wakes, awake_if_there_is_either},
    {"one who takes all", all_are_there, takes_all, all_or_nothing},
    {"one who finds all claimed by a dead one", one_has_claimed_all, takes_what_is_claimed,
     after_the_early_one},
    {"one who finds all taken by a dead one", one_has_taken_all, finds_it_taken, after_the_early_one},
    {"one who waits for all", there_is_none, waits_for_all, things_work},
    {"one who sets what a wait for all lacks", one_waits_for_all, sets, awake_if_it_is_there},
    {"reader and writer of a lock", there_is_a_rwlock, reads_and_writes, nobody_is_inside},
    {"reader whom a writer waits for", victim_reads_and_one_waits_to_write, stops_reading,
     the_writer_is_alone_and_awake},
    {"one who notifies", one_waits_for_a_condition, notifies_all, awake_if_it_is_there},
    {"the last at a barrier", one_waits_at_a_barrier, opens_the_barrier, nobody_waits_for_the_dead},
    {"the second of three at a barrier", one_of_three_waits_at_a_barrier, comes_second,
     nobody_waits_for_the_dead},
    {"writer of a pipe", one_waits_to_read, writes, the_stream_is_whole_and_ends},
    {"reader of a pipe", it_is_full_and_one_waits_to_write, reads, the_writer_knows},
    {"maker of an event", nothing, makes_an_event, names_are_free},
};

/* What `test_crash aborts` plays. */
static const struct scene abort_scenes[] = {
    {"who aborts one that sleeps", receiver_sleeps_and_may_be_aborted, aborts_twice, awake_if_it_is_aborted},
    {"receiver that is aborted", nothing, is_aborted, nothing},
    {"caller that is aborted", server_of_the_victim_sleeps, is_aborted_in_its_call, server_is_awake},
    {"caller that is aborted and waits on", server_of_the_victim_sleeps, is_aborted_and_waits_on,
     server_is_awake},
};

#endif
