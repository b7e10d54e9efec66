/* Abort: a wait ends once, a request nobody took is not executed, and whoever serves a call that is closed is told. */
#include "world.h"

#include <sched.h>

#include "transport/abort.h"

struct scene {
    struct world w;
    struct actor caller, server, third;
    struct shm_box box, view; /* the server's mailbox; the caller's view of it */
};

static void open_scene(struct scene *s)
{
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->caller);
    actor_join(&s->w, &s->server);
    actor_join(&s->w, &s->third);
    shm_abort_means_me(&s->caller.thread);
    shm_abort_means_me(&s->server.thread);
    box_make(&s->server, &s->box, SHM_BOX_ACTOR, 4);
    box_open(&s->caller, &s->view, &s->box);
}

static void close_scene(struct scene *s)
{
    shm_box_release(&s->caller.thread, &s->view);
    shm_box_close(&s->server.thread, &s->box);
    shm_box_release(&s->server.thread, &s->box);
    actor_leave(&s->third);
    actor_leave(&s->server);
    actor_leave(&s->caller);
    world_close(&s->w);
}

static void abort_caller(struct scene *s)
{
    CHECK_OK(shm_abort(&s->third.thread, actor_id(&s->caller), 0));
}

static shm_call_id request(struct scene *s, uint64_t number, uint64_t deadline_ns)
{
    struct shm_message m = message_of(0, &number);
    CHECK_OK(shm_call_open(&s->caller.thread, actor_id(&s->server), 0, &m.call));
    m.header = shm_header_make(SHM_KIND_CALL, 0);
    m.deadline_ns = deadline_ns;
    CHECK_OK(shm_box_send(&s->caller.thread, &s->view, &m, 0));
    return m.call;
}

static int wait_for(struct scene *s, shm_call_id call)
{
    return shm_call_wait(&s->caller.thread, call, actor_id(&s->server), soon(60000));
}

/* Take the next request and begin to serve it; its status. */
static int take(struct scene *s, struct shm_message *m)
{
    struct shm_filter any = SHM_FILTER_NONE;
    shm_serve_end(&s->server.thread);
    int status = shm_box_receive(&s->server.thread, &s->box, &any, m, 0);
    if (status == 0)
        status = shm_call_serve(&s->server.thread, m->call);
    if (status == 0)
        shm_serve_begin(&s->server.thread, m->call, m->deadline_ns);
    return status;
}

static int reply(struct scene *s, shm_call_id call)
{
    uint64_t number = 42;
    return shm_call_reply(&s->server.thread, call, &number, sizeof number, 0, 0);
}

static int nested_wait(struct scene *s)
{
    uint64_t number;
    return box_receive(&s->server, &s->box, NULL, &number, soon(60000));
}

static void read_reply(struct scene *s, shm_call_id call)
{
    struct shm_reply r;
    CHECK_OK(shm_call_read(&s->caller.thread, call, &r));
    CHECK_OK(r.status);
    shm_call_free(&s->caller.thread, call);
}

/* ---- a thread ---------------------------------------------------------------------------------------------- */

static void abort_of_a_running_thread_ends_its_next_wait_once(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s);
    abort_caller(&s);
    abort_caller(&s); /* before it was noticed: the same */
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, 0), SHM_EMPTY); /* a poll is no wait */
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, soon(60000)), SHM_ABORTED);
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, soon(60000)), SHM_ABORTED); /* nobody took it */
    CHECK_EQ(shm_abort_take(&s.caller.thread), SHM_ABORT_THREAD);
    CHECK_EQ(shm_abort_take(&s.caller.thread), 0);
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, soon(5)), SHM_TIMEOUT);
    CHECK_OK(box_send(&s.third, &s.box, 0, 7, 0));
    CHECK_OK(box_receive(&s.caller, &s.view, NULL, &number, soon(60000)));
    CHECK_EQ(number, 7);
    close_scene(&s);
}

static void shielded_wait_is_not_ended(void)
{
    struct scene s;
    uint64_t number;
    int shield = 1;
    open_scene(&s);
    s.caller.thread.shield = &shield;
    abort_caller(&s);
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, soon(5)), SHM_TIMEOUT);
    shield = 0;
    CHECK_EQ(box_receive(&s.caller, &s.view, NULL, &number, soon(60000)), SHM_ABORTED);
    shm_abort_take(&s.caller.thread);
    close_scene(&s);
}

static void wait_for_room_is_ended_and_nothing_is_queued(void)
{
    struct scene s;
    open_scene(&s);
    for (uint64_t i = 0; i < 4; i++)
        CHECK_OK(box_send(&s.caller, &s.view, 0, i, 0));
    abort_caller(&s);
    CHECK_EQ(box_send(&s.caller, &s.view, 0, 4, soon(60000)), SHM_ABORTED);
    CHECK_EQ(shm_abort_take(&s.caller.thread), SHM_ABORT_THREAD);
    CHECK_EQ(shm_ring_count(&s.box), 4);
    close_scene(&s);
}

static void thread_that_is_gone_is_not_aborted_nor_is_its_successor(void)
{
    struct scene s;
    struct shm_thread second, third;
    open_scene(&s);
    shm_member_id id = actor_id(&s.caller);
    CHECK_OK(shm_thread_open(&second, &s.caller.member));
    shm_thread_id named = shm_thread_id_self(&second);
    CHECK_OK(shm_abort(&s.third.thread, id, named));
    CHECK(shm_abort_is_pending(&second));
    CHECK(!shm_abort_is_pending(&s.caller.thread));
    uint32_t place = second.place;
    shm_thread_close(&second);
    CHECK_EQ(shm_abort(&s.third.thread, id, named), SHM_NOT_FOUND);
    shm_pool_hint(&s.w.segment, SHM_TABLE_PLACES, place);
    CHECK_OK(shm_thread_open(&third, &s.caller.member)); /* the flag of the other is still there */
    CHECK_EQ(third.place, place);
    CHECK(!shm_abort_is_pending(&third));
    CHECK_EQ(shm_abort_take(&third), 0);
    CHECK_EQ(shm_abort(&s.third.thread, id, named), SHM_NOT_FOUND);
    CHECK_OK(shm_abort(&s.third.thread, id, shm_thread_id_self(&third)));
    CHECK_EQ(shm_abort_take(&third), SHM_ABORT_THREAD);
    shm_thread_close(&third);
    CHECK_EQ(shm_abort(&s.third.thread, actor_id(&s.third), 0), SHM_NOT_FOUND); /* it never said which */
    struct actor dead;
    actor_join(&s.w, &dead);
    id = actor_id(&dead);
    uint32_t slot = dead.member.slot;
    actor_die(&s.w, &dead);
    CHECK(shm_reap(&s.third.thread, slot));
    CHECK_EQ(shm_abort(&s.third.thread, id, 0), SHM_PEER_DEAD);
    close_scene(&s);
}

/* ---- a call ------------------------------------------------------------------------------------------------ */

static void request_that_nobody_took_is_never_executed(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s);
    shm_call_id call = request(&s, 1, 0);
    abort_caller(&s);
    CHECK_EQ(wait_for(&s, call), SHM_ABORTED);
    CHECK(shm_call_cancel(&s.caller.thread, call));
    CHECK_EQ(shm_abort_take(&s.caller.thread), SHM_ABORT_THREAD);
    CHECK_EQ(take(&s, &m), SHM_EMPTY);
    CHECK_EQ(shm_abort_take(&s.server.thread), 0);
    close_scene(&s);
}

/* Its caller is elsewhere, and closes nothing. */
static void call_that_is_over_is_not_executed_and_whoever_serves_it_is_told(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s);
    for (int taken = 0; taken < 2; taken++) {
        shm_call_id call = request(&s, 1, 0);
        uint64_t until = soon(20);
        shm_call_limit(&s.caller.thread, call, until);
        if (taken) {
            CHECK_OK(take(&s, &m));
            CHECK(shm_call_is_open(&s.w.segment, call, s.server.member.slot));
            CHECK(!shm_abort_is_pending(&s.server.thread));
        }
        while (shm_clock_ns() < until)
            usleep(1000);
        if (taken) {
            CHECK(!shm_call_is_open(&s.w.segment, call, s.server.member.slot));
            CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
            CHECK_EQ(reply(&s, call), SHM_REFUSED);
        } else {
            CHECK_EQ(take(&s, &m), SHM_EMPTY);
        }
        CHECK(shm_call_cancel(&s.caller.thread, call));
        CHECK(!shm_abort_is_pending(&s.server.thread));
    }
    close_scene(&s);
}

static void server_of_a_closed_call_is_told_once_and_its_reply_is_refused(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s);
    for (int how = 0; how < 2; how++) {
        shm_call_id call = request(&s, 1, soon(1000));
        CHECK_OK(take(&s, &m));
        CHECK(shm_serves_until(&s.server.thread) != SHM_FOREVER);
        if (how == 0) {
            abort_caller(&s);
            CHECK_EQ(wait_for(&s, call), SHM_ABORTED);
        }
        CHECK(shm_call_cancel(&s.caller.thread, call));
        shm_abort_take(&s.caller.thread);
        CHECK_EQ(nested_wait(&s), SHM_ABORTED);
        CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
        CHECK_EQ(shm_serves_until(&s.server.thread), SHM_FOREVER);
        CHECK_EQ(shm_abort_take(&s.server.thread), 0);
        CHECK_EQ(reply(&s, call), SHM_REFUSED);
        /* The next request, in the same cell, is not disturbed. */
        shm_call_id next = request(&s, 2, 0);
        CHECK_EQ(next >> 44, call >> 44);
        CHECK_OK(take(&s, &m));
        CHECK(!shm_abort_is_pending(&s.server.thread));
        CHECK_OK(reply(&s, next));
        CHECK_OK(wait_for(&s, next));
        read_reply(&s, next);
        CHECK(!shm_abort_is_pending(&s.server.thread));
    }
    close_scene(&s);
}

static void abort_reaches_the_end_of_a_chain(void)
{
    struct scene s;
    struct shm_message m;
    uint64_t number;
    open_scene(&s);
    struct shm_box last, view;
    shm_call_id nested;
    box_make(&s.third, &last, SHM_BOX_ACTOR, 4);
    box_open(&s.server, &view, &last);
    shm_call_id call = request(&s, 1, 0);
    CHECK_OK(take(&s, &m));
    struct shm_message inner = message_of(0, &m.call), got;
    CHECK_OK(shm_call_open(&s.server.thread, actor_id(&s.third), 0, &nested));
    inner.header = shm_header_make(SHM_KIND_CALL, 0);
    inner.call = nested;
    CHECK_OK(shm_box_send(&s.server.thread, &view, &inner, 0));
    struct shm_filter any = SHM_FILTER_NONE;
    CHECK_OK(shm_box_receive(&s.third.thread, &last, &any, &got, 0));
    CHECK_OK(shm_call_serve(&s.third.thread, got.call));
    shm_serve_taken(&s.third.thread, got.call, 0);
    CHECK_OK(shm_abort(&s.server.thread, actor_id(&s.caller), 0));
    CHECK_EQ(wait_for(&s, call), SHM_ABORTED);
    CHECK(shm_call_cancel(&s.caller.thread, call));
    CHECK_EQ(shm_call_wait(&s.server.thread, nested, actor_id(&s.third), soon(60000)), SHM_ABORTED);
    CHECK(shm_call_cancel(&s.server.thread, nested));
    CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
    CHECK_EQ(box_receive(&s.third, &last, NULL, &number, soon(60000)), SHM_ABORTED);
    CHECK_EQ(shm_abort_take(&s.third.thread), SHM_ABORT_CALL);
    shm_abort_take(&s.caller.thread);
    shm_box_release(&s.server.thread, &view);
    shm_box_close(&s.third.thread, &last);
    shm_box_release(&s.third.thread, &last);
    close_scene(&s);
}

static void shielded_caller_waits_on_and_its_server_knows(void)
{
    struct scene s;
    struct shm_message m;
    int shield = 1;
    open_scene(&s);
    s.caller.thread.shield = &shield;
    for (int taken_first = 0; taken_first < 2; taken_first++) {
        shm_call_id call = request(&s, 1, 0);
        if (taken_first)
            CHECK_OK(take(&s, &m));
        abort_caller(&s);
        CHECK_EQ(shm_call_wait(&s.caller.thread, call, actor_id(&s.server), soon(5)), SHM_TIMEOUT);
        if (!taken_first)
            CHECK_OK(take(&s, &m));
        CHECK(shm_call_is_open(&s.w.segment, call, s.server.member.slot));
        CHECK_EQ(nested_wait(&s), SHM_ABORTED);
        CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
        CHECK_OK(reply(&s, call));
        CHECK_OK(wait_for(&s, call));
        read_reply(&s, call);
        CHECK(!shm_abort_is_pending(&s.server.thread));
        CHECK_EQ(shm_abort_take(&s.caller.thread), SHM_ABORT_THREAD);
    }
    close_scene(&s);
}

static void answer_by_another_thread_is_no_abort(void)
{
    struct scene s;
    struct shm_message m;
    struct shm_thread second;
    uint64_t number = 1;
    open_scene(&s);
    CHECK_OK(shm_thread_open(&second, &s.server.member));
    shm_call_id call = request(&s, 1, 0);
    CHECK_OK(take(&s, &m));
    CHECK_OK(shm_call_reply(&second, call, &number, sizeof number, 0, 0));
    CHECK(!shm_abort_is_pending(&s.server.thread)); /* while its caller has not read it */
    shm_abort_answered(&s.server.thread, call);
    read_reply(&s, call);
    CHECK(!shm_abort_is_pending(&s.server.thread));
    shm_thread_close(&second);
    close_scene(&s);
}

static void thread_that_takes_for_others_hears_of_each(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s);
    s.server.thread.hears_all = true;
    shm_call_id first = request(&s, 1, 0), second = request(&s, 2, 0);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(take(&s, &m));
        shm_serve_end(&s.server.thread);
    }
    CHECK(!shm_abort_is_pending(&s.server.thread));
    CHECK(shm_call_cancel(&s.caller.thread, second));
    CHECK_EQ(nested_wait(&s), SHM_ABORTED);
    CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
    CHECK(shm_abort_reached(&s.server.thread, second));
    CHECK(!shm_abort_reached(&s.server.thread, first));
    CHECK(shm_call_cancel(&s.caller.thread, first));
    CHECK_EQ(shm_abort_take(&s.server.thread), SHM_ABORT_CALL);
    CHECK_EQ(shm_abort_take(&s.server.thread), 0);
    close_scene(&s);
}

/* ---- races ------------------------------------------------------------------------------------------------- */

#ifdef __SANITIZE_THREAD__
enum { RACES = 3000 };
#else
enum { RACES = 20000 };
#endif

struct race {
    struct scene s;
    _Atomic uint64_t round;
    _Atomic int said; /* 1: not yet */
    uint64_t replied, aborted;
};

/* 0 calls, 1 serves, 2 aborts the caller now and then. */
static void call_serve_or_abort(void *argument, int index)
{
    struct race *race = argument;
    struct scene *s = &race->s;
    for (uint64_t i = 0; i < RACES; i++) {
        if (index == 0) {
            atomic_store(&race->said, 1);
            shm_call_id call = request(s, i, 0);
            atomic_store(&race->round, i + 1);
            int status = wait_for(s, call);
            bool closed = status == SHM_ABORTED && shm_call_cancel(&s->caller.thread, call);
            if (closed)
                CHECK_EQ(shm_abort_take(&s->caller.thread), SHM_ABORT_THREAD);
            else
                read_reply(s, call);
            int said;
            while ((said = atomic_load(&race->said)) == 1)
                sched_yield();
            CHECK_EQ(said, closed ? SHM_REFUSED : 0); /* both sides say the same */
            closed ? race->aborted++ : race->replied++;
        } else if (index == 1) {
            struct shm_message m;
            int status;
            while (atomic_load(&race->round) <= i)
                sched_yield();
            while ((status = take(s, &m)) == SHM_EMPTY && shm_ring_count(&s->box))
                sched_yield();
            if (status == 0) {
                CHECK_EQ(number_in(&m), i);
                for (uint64_t n = i % 7; n; n--)
                    shm_clock_relax();
                bool told = shm_abort_take(&s->server.thread) != 0;
                status = reply(s, m.call);
                CHECK(!told || status == SHM_REFUSED); /* no abort of a call whose caller waits */
            }
            atomic_store(&race->said, status == 0 ? 0 : SHM_REFUSED);
        } else {
            while (atomic_load(&race->round) <= i)
                sched_yield();
            for (uint64_t n = i * 7919 % (i % 2 ? 64 : 4096); n; n--)
                n % 256 ? shm_clock_relax() : (void)sched_yield();
            if (i % 4)
                abort_caller(s);
        }
    }
}

static void abort_against_reply_has_one_outcome(void)
{
    static struct race race;
    open_scene(&race.s);
    check_threads(3, call_serve_or_abort, &race);
    fprintf(stderr, "  %lu replied, %lu aborted\n", (unsigned long)race.replied, (unsigned long)race.aborted);
    shm_abort_take(&race.s.caller.thread);
    close_scene(&race.s);
}

int main(void)
{
    RUN(abort_of_a_running_thread_ends_its_next_wait_once);
    RUN(shielded_wait_is_not_ended);
    RUN(wait_for_room_is_ended_and_nothing_is_queued);
    RUN(thread_that_is_gone_is_not_aborted_nor_is_its_successor);
    RUN(request_that_nobody_took_is_never_executed);
    RUN(call_that_is_over_is_not_executed_and_whoever_serves_it_is_told);
    RUN(server_of_a_closed_call_is_told_once_and_its_reply_is_refused);
    RUN(abort_reaches_the_end_of_a_chain);
    RUN(shielded_caller_waits_on_and_its_server_knows);
    RUN(answer_by_another_thread_is_no_abort);
    RUN(thread_that_takes_for_others_hears_of_each);
    RUN(abort_against_reply_has_one_outcome);
    return 0;
}
