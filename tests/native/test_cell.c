/* Calls: one answer or none, told to both sides alike, whoever is late, leaves or dies. */
#include "world.h"

#include <sched.h>

struct scene {
    struct world w;
    struct actor caller, server;
};

static void open_scene(struct scene *s)
{
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->caller);
    actor_join(&s->w, &s->server);
}

static void close_scene(struct scene *s)
{
    actor_leave(&s->server);
    actor_leave(&s->caller);
    world_close(&s->w);
}

static shm_call_id open_call(struct scene *s, bool async)
{
    shm_call_id call;
    CHECK_OK(shm_call_open(&s->caller.thread, actor_id(&s->server), async, &call));
    return call;
}

static int reply(struct actor *a, shm_call_id call, uint64_t number)
{
    return shm_call_reply(&a->thread, call, &number, sizeof number, 3, 0);
}

static uint64_t read_number(struct scene *s, shm_call_id call)
{
    struct shm_reply r;
    uint64_t number;
    CHECK_OK(shm_call_read(&s->caller.thread, call, &r));
    CHECK_OK(r.status);
    CHECK_EQ(r.len_bytes, sizeof number);
    CHECK_EQ(r.format, 3);
    CHECK_EQ(r.replier, actor_id(&s->server));
    memcpy(&number, r.body, sizeof number);
    shm_call_free(&s->caller.thread, call);
    return number;
}

static void reply_reaches_its_caller(void)
{
    struct scene s;
    open_scene(&s);
    for (uint64_t i = 0; i < 1000; i++) {
        shm_call_id call = open_call(&s, false);
        struct shm_reply r;
        CHECK(!shm_call_is_done(&s.w.segment, call));
        CHECK_EQ(shm_call_read(&s.caller.thread, call, &r), SHM_EMPTY);
        CHECK_OK(shm_call_serve(&s.server.thread, call));
        CHECK(shm_call_is_open(&s.w.segment, call, s.server.member.slot));
        CHECK_OK(reply(&s.server, call, i));
        CHECK_OK(shm_call_wait(&s.caller.thread, call, actor_id(&s.server), 0));
        CHECK_EQ(read_number(&s, call), i);
    }
    close_scene(&s);
}

static void body_in_a_block_becomes_the_callers(void)
{
    struct scene s;
    struct shm_reply r;
    shm_lease_index lease;
    open_scene(&s);
    char body[SHM_CELL_INLINE + 1] = {0};
    shm_call_id call = open_call(&s, false);
    CHECK_EQ(shm_call_reply(&s.server.thread, call, body, sizeof body, 0, 0), SHM_TOO_LARGE);
    CHECK_OK(shm_block_take(&s.server.thread, 10000, &lease));
    CHECK_OK(shm_call_reply(&s.server.thread, call, NULL, 10000, 0, lease + 1));
    CHECK_OK(shm_call_read(&s.caller.thread, call, &r));
    CHECK_EQ(r.lease, lease + 1);
    CHECK_EQ(r.len_bytes, 10000);
    shm_call_free(&s.caller.thread, call);
    shm_lease_release(&s.caller.thread, r.lease - 1);
    /* Refused: it stays the server's. */
    call = open_call(&s, false);
    CHECK(shm_call_cancel(&s.caller.thread, call));
    CHECK_OK(shm_block_take(&s.server.thread, 10000, &lease));
    CHECK_EQ(shm_call_reply(&s.server.thread, call, NULL, 10000, 0, lease + 1), SHM_REFUSED);
    CHECK_EQ(shm_lease_land(&s.caller.thread, lease), 0);
    shm_lease_release(&s.server.thread, lease);
    CHECK_EQ(world_count(&s.w).leases, 0);
    close_scene(&s);
}

static struct scene *leaving;
static shm_call_id left;

static void caller_leaves(enum shm_kill_point point)
{
    (void)point;
    shm_kill_point_disarm();
    CHECK(shm_call_cancel(&leaving->caller.thread, left));
}

/* The caller times out while the reply is being written: what was to carry it is the server's again. */
static void block_of_a_reply_stays_with_the_server_when_its_caller_leaves(void)
{
    static const char *const points[] = {"cell_copy", "cell_done"};
    for (int i = 0; i < 2; i++) {
        struct scene s;
        shm_lease_index lease;
        open_scene(&s);
        leaving = &s;
        left = open_call(&s, false);
        CHECK_OK(shm_block_take(&s.server.thread, 10000, &lease));
        shm_kill_point_hook = caller_leaves;
        CHECK_OK(shm_kill_point_arm(points[i], 1, SIGKILL));
        CHECK_EQ(shm_call_reply(&s.server.thread, left, NULL, 10000, 0, lease + 1), SHM_REFUSED);
        shm_kill_point_hook = NULL;
        CHECK_EQ(world_count(&s.w).cells, 0);
        CHECK_EQ(shm_lease_land(&s.caller.thread, lease), 0); /* it is not on its way */
        shm_lease_release(&s.server.thread, lease);
        CHECK_EQ(world_count(&s.w).leases, 0);
        CHECK_EQ(world_count(&s.w).blocks, 0);
        close_scene(&s);
    }
}

static void late_second_and_forged_replies_are_refused(void)
{
    struct scene s;
    struct actor stranger;
    open_scene(&s);
    actor_join(&s.w, &stranger);
    shm_call_id call = open_call(&s, false);
    CHECK_EQ(reply(&stranger, call, 1), SHM_REFUSED); /* not its addressee */
    CHECK_OK(reply(&s.server, call, 2));
    CHECK_EQ(reply(&s.server, call, 3), SHM_REFUSED);
    CHECK_EQ(shm_call_serve(&stranger.thread, call), SHM_REFUSED);
    CHECK(!shm_call_cancel(&s.caller.thread, call));
    CHECK_EQ(read_number(&s, call), 2);
    CHECK_EQ(reply(&s.server, call, 4), SHM_REFUSED);

    shm_call_id next = open_call(&s, false); /* the same cell, another generation */
    CHECK_EQ(next >> 44, call >> 44);
    CHECK_EQ(reply(&s.server, call, 5), SHM_REFUSED);
    CHECK_EQ(shm_call_serve(&s.server.thread, call), SHM_REFUSED);
    CHECK(!shm_call_cancel(&s.caller.thread, call));
    CHECK_EQ(reply(&s.server, UINT64_MAX, 6), SHM_REFUSED);
    CHECK_EQ(shm_call_serve(&s.server.thread, UINT64_MAX), SHM_REFUSED);
    CHECK_OK(shm_call_serve(&stranger.thread, next)); /* one of a pool took it */
    CHECK_EQ(reply(&s.server, next, 7), SHM_REFUSED);
    CHECK(shm_call_cancel(&s.caller.thread, next));
    CHECK_EQ(reply(&stranger, next, 8), SHM_REFUSED);
    CHECK(!shm_call_is_open(&s.w.segment, next, stranger.member.slot));
    actor_leave(&stranger);
    close_scene(&s);
}

static void many_calls_are_open_at_once(void)
{
    enum { MANY = 300 };
    struct scene s;
    static shm_call_id calls[MANY];
    open_scene(&s);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++)
            calls[i] = open_call(&s, i % 2);
        for (uint64_t i = 0; i < MANY; i++)
            CHECK_OK(reply(&s.server, calls[i], i));
        for (uint64_t i = 0; i < MANY; i++)
            CHECK_EQ(read_number(&s, calls[i]), i);
    }
    close_scene(&s);
}

static void finished_calls_are_found_by_their_bits(void)
{
    enum { MANY = 100 };
    struct scene s;
    shm_call_id calls[MANY], found[7];
    uint32_t count, total = 0;
    open_scene(&s);
    for (int i = 0; i < MANY; i++)
        calls[i] = open_call(&s, true);
    CHECK_EQ(shm_call_finished(&s.caller.thread, found, 7), 0);
    uint64_t pokes = atomic_load(&s.caller.member.pokes);
    CHECK_EQ(shm_call_wait_finished(&s.caller.thread, pokes, shm_clock_ns() + MS), SHM_TIMEOUT);
    shm_call_poke(&s.server.thread);
    CHECK_EQ(shm_call_wait_finished(&s.caller.thread, pokes, shm_clock_ns() + MS), SHM_TIMEOUT);
    shm_call_poke(&s.caller.thread);
    CHECK_OK(shm_call_wait_finished(&s.caller.thread, pokes, shm_clock_ns() + MS));
    for (uint64_t i = 0; i < MANY; i += 2)
        CHECK_OK(reply(&s.server, calls[i], i));
    while ((count = shm_call_finished(&s.caller.thread, found, 7)))
        for (uint32_t i = 0; i < count; i++, total++)
            CHECK_EQ(read_number(&s, found[i]) % 2, 0);
    CHECK_EQ(total, MANY / 2);
    for (int i = 1; i < MANY; i += 2)
        CHECK(shm_call_cancel(&s.caller.thread, calls[i]));
    close_scene(&s);
}

/* ---- races ------------------------------------------------------------------------------------------------- */

#ifdef __SANITIZE_THREAD__
enum { RACES = 20000 };
#else
enum { RACES = 100000 };
#endif

struct race {
    struct scene s;
    _Atomic shm_call_id open; /* 0: the round is over */
    _Atomic int server_status;
    uint64_t replied, cancelled;
};

static void cancel_or_reply(void *argument, int index)
{
    struct race *race = argument;
    struct scene *s = &race->s;
    for (uint64_t i = 0; i < RACES; i++) {
        if (index == 0) {
            shm_call_id call = open_call(s, i % 2);
            atomic_store(&race->server_status, 1);
            atomic_store(&race->open, call);
            for (uint64_t n = i * 7919 % (i % 2 ? 64 : 1024); n; n--)
                n % 256 ? shm_clock_relax() : (void)sched_yield();
            bool closed = shm_call_cancel(&s->caller.thread, call);
            if (!closed) {
                CHECK(shm_call_is_done(&s->w.segment, call));
                CHECK_EQ(read_number(s, call), call);
            }
            int status;
            while ((status = atomic_load(&race->server_status)) == 1)
                sched_yield();
            CHECK_EQ(status, closed ? SHM_REFUSED : 0); /* both sides say the same */
            closed ? race->cancelled++ : race->replied++;
        } else {
            shm_call_id call;
            for (unsigned spins = 0; (call = atomic_exchange(&race->open, 0)) == 0; spins++)
                spins % 256 ? shm_clock_relax() : (void)sched_yield();
            for (uint64_t n = i % 7; n; n--)
                shm_clock_relax();
            int status = shm_call_serve(&s->server.thread, call);
            if (status == 0)
                status = reply(&s->server, call, call);
            atomic_store(&race->server_status, status);
        }
    }
}

static void cancel_against_reply_has_one_outcome(void)
{
    static struct race race;
    open_scene(&race.s);
    check_threads(2, cancel_or_reply, &race);
    fprintf(stderr, "  %lu replied, %lu cancelled\n", (unsigned long)race.replied,
            (unsigned long)race.cancelled);
    close_scene(&race.s);
}

enum { CALLS = 3000, CALLERS = 3 };

struct traffic {
    struct scene s;
    struct shm_box box;
    _Atomic uint32_t callers;
    _Atomic uint32_t opened, finished;
};

static void call_or_serve(void *argument, int index)
{
    struct traffic *t = argument;
    struct actor a;
    struct shm_box box;
    uint64_t number;
    actor_join(&t->s.w, &a);
    box_open(&a, &box, &t->box);
    if (index < 2) {
        struct shm_filter any = SHM_FILTER_NONE;
        struct shm_message m;
        while (shm_box_receive(&a.thread, &box, &any, &m, SHM_FOREVER) == 0) {
            shm_call_id call = m.call;
            number = number_in(&m) + 1;
            if (shm_call_serve(&a.thread, call) == 0)
                shm_call_reply(&a.thread, call, &number, sizeof number, 3, 0);
        }
    } else {
        for (uint64_t i = 0; i < CALLS; i++) {
            shm_call_id call;
            struct shm_reply r;
            struct shm_message m = message_of(0, &i);
            CHECK_OK(shm_call_open(&a.thread, t->box.owner, false, &call));
            m.header = shm_header_make(SHM_KIND_CALL, 0);
            m.call = call;
            CHECK_OK(shm_box_send(&a.thread, &box, &m, SHM_FOREVER));
            shm_call_check(&a.thread, call, t->box.owner);
            int status =
                shm_call_wait(&a.thread, call, t->box.owner, i % 16 ? SHM_FOREVER : shm_clock_ns() + 5000);
            if (status == SHM_TIMEOUT && shm_call_cancel(&a.thread, call))
                continue;
            CHECK_OK(shm_call_read(&a.thread, call, &r));
            CHECK_OK(r.status);
            memcpy(&number, r.body, sizeof number);
            CHECK_EQ(number, i + 1);
            shm_call_free(&a.thread, call);
        }
        if (atomic_fetch_add(&t->callers, 1) == CALLERS - 1)
            shm_box_close(&a.thread, &box);
    }
    shm_box_release(&a.thread, &box);
    actor_leave(&a);
}

static void callers_and_servers_of_one_mailbox_meet(void)
{
    static struct traffic t;
    open_scene(&t.s);
    box_make(&t.s.server, &t.box, SHM_BOX_SHARED, 2);
    check_threads(2 + CALLERS, call_or_serve, &t);
    shm_box_release(&t.s.server.thread, &t.box);
    close_scene(&t.s);
}

/* One thread opens calls, one collects those that are done, one answers: all of two members. */
static void open_collect_or_answer(void *argument, int index)
{
    struct traffic *t = argument;
    struct scene *s = &t->s;
    struct shm_thread self;
    struct shm_message m;
    uint64_t number;
    CHECK_OK(shm_thread_open(&self, index == 2 ? &s->server.member : &s->caller.member));
    for (uint64_t i = 0; i < CALLS; i++) {
        if (index == 0) {
            shm_call_id call;
            CHECK_OK(shm_call_open(&self, actor_id(&s->server), true, &call));
            m = message_of(0, &i);
            m.header = shm_header_make(SHM_KIND_CALL, 0);
            m.call = call;
            CHECK_OK(shm_box_send(&self, &t->box, &m, SHM_FOREVER));
        } else if (index == 1) {
            shm_call_id found[5];
            uint64_t pokes = atomic_load(&s->caller.member.pokes);
            CHECK_OK(shm_call_wait_finished(&self, pokes, SHM_FOREVER));
            uint32_t count = shm_call_finished(&self, found, 5);
            for (uint32_t n = 0; n < count; n++)
                shm_call_free(&self, found[n]);
            atomic_fetch_add(&t->finished, count);
            i = atomic_load(&t->finished) - 1;
        } else {
            struct shm_filter any = SHM_FILTER_NONE;
            CHECK_OK(shm_box_receive(&self, &t->box, &any, &m, SHM_FOREVER));
            number = number_in(&m);
            CHECK_OK(shm_call_serve(&self, m.call));
            CHECK_OK(shm_call_reply(&self, m.call, &number, sizeof number, 3, 0));
        }
    }
    shm_thread_close(&self);
}

static void one_thread_collects_what_another_called(void)
{
    static struct traffic t;
    memset(&t, 0, sizeof t);
    open_scene(&t.s);
    box_make(&t.s.server, &t.box, SHM_BOX_SHARED, 256);
    check_threads(3, open_collect_or_answer, &t);
    CHECK_EQ(atomic_load(&t.finished), CALLS);
    shm_box_release(&t.s.server.thread, &t.box);
    close_scene(&t.s);
}

/* ---- death ------------------------------------------------------------------------------------------------- */

static void call_fails_when_its_addressee_dies(void)
{
    struct scene s;
    struct shm_reply r;
    open_scene(&s);
    uint32_t slot = s.server.member.slot;
    shm_member_id server = actor_id(&s.server);
    shm_call_id calls[4], found[4];
    for (int i = 0; i < 4; i++)
        calls[i] = open_call(&s, i >= 2);
    CHECK_OK(shm_call_serve(&s.server.thread, calls[1]));
    CHECK_OK(reply(&s.server, calls[3], 3)); /* answered before it died */
    actor_die(&s.w, &s.server);
    CHECK_EQ(shm_call_wait(&s.caller.thread, calls[0], server, shm_clock_ns() + MS), SHM_TIMEOUT);
    CHECK_OK(shm_call_wait(&s.caller.thread, calls[0], server, soon(60000))); /* its slice reaps */
    CHECK_EQ(shm_word_state(atomic_load(&shm_member_at(&s.w.segment, slot)->word)), SHM_MEMBER_FREE);
    CHECK_EQ(shm_call_finished(&s.caller.thread, found, 4), 2);
    for (int i = 0; i < 4; i++) {
        CHECK_OK(shm_call_read(&s.caller.thread, calls[i], &r));
        CHECK_EQ(r.status, i == 3 ? 0 : SHM_PEER_DEAD);
        shm_call_free(&s.caller.thread, calls[i]);
    }
    shm_call_id late; /* addressed to who is dead already: the check after the request finds out */
    CHECK_OK(shm_call_open(&s.caller.thread, server, false, &late));
    shm_call_check(&s.caller.thread, late, server);
    CHECK(shm_call_is_done(&s.w.segment, late));
    shm_call_free(&s.caller.thread, late);
    actor_join(&s.w, &s.server);
    close_scene(&s);
}

/* Whoever drains the mailbox of the dead takes the request to fail it: nobody has served the call for that. */
static void request_dropped_with_its_mailbox_was_not_served(void)
{
    struct scene s;
    struct actor third;
    struct shm_box box, theirs;
    struct shm_reply r;
    open_scene(&s);
    actor_join(&s.w, &third);
    box_make(&s.server, &box, SHM_BOX_ACTOR, 4);
    box_open(&s.caller, &theirs, &box);
    uint32_t slot = s.server.member.slot;
    shm_call_id call = open_call(&s, false);
    uint64_t number = 1;
    struct shm_message message = message_of(0, &number);
    message.call = call;
    CHECK_OK(shm_box_send(&s.caller.thread, &theirs, &message, 0));
    shm_call_check(&s.caller.thread, call, actor_id(&s.server));
    CHECK_EQ(shm_box_close(&third.thread, &theirs), 1);
    CHECK_OK(shm_call_read(&s.caller.thread, call, &r));
    CHECK_EQ(r.status, SHM_CLOSED);
    CHECK(!r.served);
    CHECK_EQ(r.replier, 0);
    shm_call_free(&s.caller.thread, call);
    shm_box_release(&s.caller.thread, &theirs);
    actor_die(&s.w, &s.server);
    CHECK(shm_reap(&third.thread, slot));
    actor_leave(&third);
    actor_join(&s.w, &s.server);
    close_scene(&s);
}

static void reply_to_a_dead_caller_is_refused_and_its_cells_come_back(void)
{
    struct scene s;
    shm_lease_index lease;
    open_scene(&s);
    uint32_t slot = s.caller.member.slot;
    shm_call_id pending = open_call(&s, false), done = open_call(&s, true);
    CHECK_OK(shm_block_take(&s.server.thread, 10000, &lease));
    CHECK_OK(shm_call_reply(&s.server.thread, done, NULL, 10000, 0, lease + 1));
    actor_die(&s.w, &s.caller);
    CHECK(shm_reap(&s.server.thread, slot));
    CHECK_EQ(reply(&s.server, pending, 1), SHM_REFUSED);
    CHECK_EQ(world_count(&s.w).chunks, 0);
    CHECK_EQ(world_count(&s.w).cells, 0);
    CHECK_EQ(world_count(&s.w).leases, 0);
    actor_join(&s.w, &s.caller);
    shm_call_id next = open_call(&s, false);
    CHECK(next != pending && next != done);
    CHECK_EQ(reply(&s.server, pending, 1), SHM_REFUSED);
    CHECK(shm_call_cancel(&s.caller.thread, next));
    close_scene(&s);
}

int main(void)
{
    RUN(reply_reaches_its_caller);
    RUN(body_in_a_block_becomes_the_callers);
    RUN(block_of_a_reply_stays_with_the_server_when_its_caller_leaves);
    RUN(late_second_and_forged_replies_are_refused);
    RUN(many_calls_are_open_at_once);
    RUN(finished_calls_are_found_by_their_bits);
    RUN(call_fails_when_its_addressee_dies);
    RUN(request_dropped_with_its_mailbox_was_not_served);
    RUN(reply_to_a_dead_caller_is_refused_and_its_cells_come_back);
    RUN(cancel_against_reply_has_one_outcome);
    RUN(callers_and_servers_of_one_mailbox_meet);
    RUN(one_thread_collects_what_another_called);
    return 0;
}
