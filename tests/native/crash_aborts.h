/* What the victims of `test_crash aborts` do; included by crash_scenes.h. */
#ifndef CRASH_ABORTS_H
#define CRASH_ABORTS_H

#include "transport/abort.h"

static struct shm_box served; /* of the sleeper */
static const int shielded = 1;

static void receiver_sleeps_and_may_be_aborted(void)
{
    put_to_sleep(sleep_in_receive);
    shm_abort_means_me(&s.sleeper.thread);
}

static void aborts_twice(void *unused)
{
    (void)unused;
    for (int i = 0; i < 2; i++)
        CHECK_OK(shm_abort(&s.victim.thread, actor_id(&s.sleeper), 0));
}

/* Whoever is aborted, or whose call is closed, knows. */
static void awake_if_it_is_aborted(void)
{
    if (shm_abort_is_pending(&s.sleeper.thread))
        expect_awake();
}

static void is_aborted(void *unused)
{
    (void)unused;
    uint64_t number;
    shm_abort_means_me(&s.victim.thread);
    for (int i = 0; i < 2; i++) {
        SAFELY(CHECK_OK(shm_abort(&s.live.thread, actor_id(&s.victim), 0)));
        CHECK_EQ(box_receive(&s.victim, &s.victims, NULL, &number, shm_clock_ns() + MS), SHM_ABORTED);
        CHECK_EQ(shm_abort_take(&s.victim.thread), SHM_ABORT_THREAD);
    }
}

/* The victim has called the sleeper, who serves that, and waits in its service for something else. */
static void server_of_the_victim_sleeps(void)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    struct shm_box view;
    actor_join(&s.w, &s.sleeper);
    box_make(&s.sleeper, &served, SHM_BOX_ACTOR, ROOM);
    box_open(&s.victim, &view, &served);
    s.calls[0] = request(&s.victim, &view, false);
    shm_box_release(&s.victim.thread, &view);
    CHECK_OK(shm_box_receive(&s.sleeper.thread, &served, &any, &m, 0));
    CHECK_OK(shm_call_serve(&s.sleeper.thread, m.call));
    shm_serve_begin(&s.sleeper.thread, m.call, 0);
    box_open(&s.sleeper, &s.sleepers, &s.box);
    s.sleeper.thread.may_spin = false;
    world_arm("wait_park", 1);
    CHECK(world_dies(sleep_in_receive, NULL));
    s.asleep = true;
    shm_abort_means_me(&s.victim.thread);
}

static void is_aborted_in_its_call(void *unused)
{
    (void)unused;
    SAFELY(CHECK_OK(shm_abort(&s.live.thread, actor_id(&s.victim), 0)));
    CHECK_EQ(shm_call_wait(&s.victim.thread, s.calls[0], 0, shm_clock_ns() + MS), SHM_ABORTED);
    CHECK(shm_call_cancel(&s.victim.thread, s.calls[0]));
    CHECK_EQ(shm_abort_take(&s.victim.thread), SHM_ABORT_THREAD);
}

static void is_aborted_and_waits_on(void *unused)
{
    (void)unused;
    s.victim.thread.shield = &shielded;
    SAFELY(CHECK_OK(shm_abort(&s.live.thread, actor_id(&s.victim), 0)));
    CHECK_EQ(shm_call_wait(&s.victim.thread, s.calls[0], 0, shm_clock_ns() + MS / 10), SHM_TIMEOUT);
}

/* However the victim ended: its call is closed. */
static void server_is_awake(void)
{
    CHECK(shm_abort_is_pending(&s.sleeper.thread));
    expect_awake();
    CHECK_EQ(shm_abort_take(&s.sleeper.thread), SHM_ABORT_CALL);
    CHECK_EQ(shm_call_reply(&s.sleeper.thread, s.calls[0], NULL, 0, 0, 0), SHM_REFUSED);
}

#endif
