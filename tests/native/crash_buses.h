/* The scenes of test_crash.c whose victims use a bus. Included by crash_scenes.h, whose stage they share. */
#ifndef CRASH_BUSES_H
#define CRASH_BUSES_H

#include "bus_world.h"

static struct bus_stage {
    struct shm_bus_view lives, victims, sleepers, earlys; /* one bus of `live`, and each one's view of it */
    struct shm_subscription live, victim, sleeper;
    uint64_t since; /* position at which `live` subscribed */
} b;

static void make_bus(struct shm_bus_config config)
{
    memset(&b, 0, sizeof b);
    config.readers = 4;
    config.frame_bytes = FRAME_BYTES;
    CHECK_OK(shm_bus_make(&s.live.thread, &b.lives, &config));
    bus_open(&s.victim, &b.victims, &b.lives);
}

static void live_publishes(uint64_t count)
{
    for (; count; count--)
        CHECK_OK(bus_publish(&s.live, &b.lives, atomic_load(&b.lives.bus->tail), 0));
}

static void live_subscribes(uint64_t patience_ns)
{
    CHECK_OK(shm_bus_subscribe(&s.live.thread, &b.lives, patience_ns, &b.live, 0));
    b.since = atomic_load(&b.lives.bus->tail);
}

static void sleep_for_a_frame(void *unused)
{
    (void)unused;
    uint64_t number;
    bus_open(&s.sleeper, &b.sleepers, &b.lives);
    CHECK_OK(shm_bus_subscribe(&s.sleeper.thread, &b.sleepers, 0, &b.sleeper, 0));
    bus_receive(&s.sleeper, &b.sleepers, &b.sleeper, &number, SHM_FOREVER);
}

static void sleep_in_publish(void *unused)
{
    (void)unused;
    bus_open(&s.sleeper, &b.sleepers, &b.lives);
    bus_publish(&s.sleeper, &b.sleepers, 7, SHM_FOREVER);
}

/* Every frame that `live` has not read yet is whole and is the next, or it is told that it missed it; the bus works as
 * on the first day. */
static void bus_works(void)
{
    uint64_t number, got = 0, tail = atomic_load(&b.lives.bus->tail);
    if (b.live.count) {
        while (bus_receive(&s.live, &b.lives, &b.live, &number, 0) == 0)
            got++;
        CHECK_EQ(atomic_load(&b.lives.readers[b.live.index].cursor), tail);
        CHECK(got + b.live.missed + b.live.skipped <= tail - b.since);
        shm_bus_unsubscribe(&s.live.thread, &b.lives, &b.live);
    }
    CHECK_EQ(shm_word_state(atomic_load(&b.lives.bus->right)), SHM_PUBLISH_FREE);
    if (!shm_bus_is_closed(&b.lives)) {
        live_subscribes(60 * SHM_NS_PER_S);
        for (uint64_t i = 0; i < 5; i++) { /* more than one lap */
            CHECK_OK(bus_publish(&s.live, &b.lives, i, 0));
            CHECK_OK(bus_receive(&s.live, &b.lives, &b.live, &number, 0));
            CHECK_EQ(number, i);
        }
        CHECK_EQ(b.live.missed + b.live.skipped, 0);
        shm_bus_unsubscribe(&s.live.thread, &b.lives, &b.live);
        CHECK_EQ(shm_bus_count_readers(&b.lives), b.sleeper.count ? 1 : 0);
    }
    shm_bus_release(&s.live.thread, &b.lives);
}

/* ---- publishing -------------------------------------------------------------------------------------------- */

static void bus_is_full_and_a_reader_sleeps(void)
{
    make_bus((struct shm_bus_config){.frames = 2});
    live_subscribes(0);
    live_publishes(2);
    put_to_sleep(sleep_for_a_frame);
}

static void publishes(void *unused)
{
    (void)unused;
    for (int i = 0; i < 3; i++)
        bus_publish(&s.victim, &b.victims, atomic_load(&b.victims.bus->tail), 0);
}

static void frames_are_whole_and_the_sleeper_knows(void)
{
    if (atomic_load(&b.lives.bus->tail) > 2)
        expect_awake();
    bus_works();
}

static void a_reader_has_patience(void)
{
    make_bus((struct shm_bus_config){.frames = 1});
    live_subscribes(60 * SHM_NS_PER_S);
    live_publishes(1);
}

static void waits_to_publish(void *unused)
{
    (void)unused;
    uint64_t number;
    bus_publish(&s.victim, &b.victims, 1, shm_clock_ns() + MS / 10);
    SAFELY(CHECK_OK(bus_receive(&s.live, &b.lives, &b.live, &number, 0)));
    bus_publish(&s.victim, &b.victims, 2, 0);
}

static void a_reader_has_little_patience(void)
{
    make_bus((struct shm_bus_config){.frames = 1});
    live_subscribes(1);
    live_publishes(1);
}

static void waits_until_it_is_late(void *unused)
{
    (void)unused;
    bus_publish(&s.victim, &b.victims, 1, SHM_FOREVER);
}

static void early_publishes(void *unused)
{
    (void)unused;
    bus_publish(&s.early, &b.earlys, 9, 0);
}

/* An earlier victim died with the right in its hands, and its frame has a block already. */
static void a_frame_was_left_half_made(void)
{
    make_bus((struct shm_bus_config){.frames = 2});
    live_subscribes(0);
    live_publishes(2);
    actor_join(&s.w, &s.early);
    bus_open(&s.early, &b.earlys, &b.lives);
    uint32_t slot = s.early.member.slot;
    world_arm("bus_ready", 1);
    CHECK(world_dies(early_publishes, NULL));
    actor_die(&s.w, &s.early);
    CHECK(shm_reap(&s.live.thread, slot));
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

static void bus_counts_readers(void)
{
    make_bus((struct shm_bus_config){.frames = 2, .consume_after = 1});
    live_subscribes(0);
}

static void reads_frames(void *unused)
{
    (void)unused;
    uint64_t number;
    struct shm_taken taken;
    CHECK_OK(shm_bus_subscribe(&s.victim.thread, &b.victims, 0, &b.victim, 0));
    SAFELY(live_publishes(4));
    CHECK_OK(bus_receive(&s.victim, &b.victims, &b.victim, &number, 0));
    CHECK_EQ(b.victim.missed, 2);
    SAFELY(CHECK_OK(bus_receive(&s.live, &b.lives, &b.live, &number, 0)); CHECK_EQ(number, 3);
           live_publishes(1));
    CHECK_OK(shm_bus_receive(&s.victim.thread, &b.victims, &b.victim, UINT64_MAX, &taken, 0));
    CHECK_EQ(b.victim.skipped, 1); /* the others are gone, for each was read once */
    shm_bus_unsubscribe(&s.victim.thread, &b.victims, &b.victim);
}

static void the_victim_has_patience_and_a_writer_sleeps(void)
{
    make_bus((struct shm_bus_config){.frames = 1});
    CHECK_OK(shm_bus_subscribe(&s.victim.thread, &b.victims, 60 * SHM_NS_PER_S, &b.victim, 0));
    live_publishes(1);
    put_to_sleep(sleep_in_publish);
}

static void reads_one(void *unused)
{
    (void)unused;
    uint64_t number;
    CHECK_OK(bus_receive(&s.victim, &b.victims, &b.victim, &number, 0));
}

static void unsubscribes(void *unused)
{
    (void)unused;
    shm_bus_unsubscribe(&s.victim.thread, &b.victims, &b.victim);
}

static void the_writer_is_awake(void)
{
    expect_awake();
    bus_works();
}

static void waits_for_a_frame(void *unused)
{
    (void)unused;
    uint64_t number;
    CHECK_OK(shm_bus_subscribe(&s.victim.thread, &b.victims, 1, &b.victim, 0));
    bus_receive(&s.victim, &b.victims, &b.victim, &number, shm_clock_ns() + MS / 10);
    SAFELY(live_publishes(1));
    CHECK_OK(bus_receive(&s.victim, &b.victims, &b.victim, &number, 0));
}

/* ---- beginning and end ------------------------------------------------------------------------------------- */

static void destroys(void *unused)
{
    (void)unused;
    CHECK_EQ(shm_bus_destroy(&s.victim.thread, &b.victims), SHM_BUSY);
    SAFELY(shm_bus_unsubscribe(&s.live.thread, &b.lives, &b.live));
    CHECK_OK(shm_bus_destroy(&s.victim.thread, &b.victims));
}

static void it_is_open_or_closed(void)
{
    CHECK(shm_word_state(atomic_load(&b.lives.bus->gate)) != SHM_GATE_CLOSING);
    if (!b.live.count) {
        int status = shm_bus_destroy(&s.live.thread, &b.lives);
        CHECK(status == 0 || status == SHM_CLOSED);
        CHECK_EQ(shm_bus_subscribe(&s.live.thread, &b.lives, 0, &b.live, 0), SHM_CLOSED);
        CHECK_EQ(bus_publish(&s.live, &b.lives, 1, 0), SHM_CLOSED);
    }
    bus_works();
}

static void one_reads_a_bus(void)
{
    make_bus((struct shm_bus_config){.frames = 2});
    live_subscribes(0);
}

static void makes_a_bus(void *unused)
{
    (void)unused;
    struct shm_bus_view bus, again;
    struct shm_subscription subscription;
    bus_make(&s.victim, &bus, 2, 1);
    struct shm_named named = {SHM_NAME_BUS, bus.index, bus.count};
    CHECK_OK(shm_name_serve(&s.victim.thread, "victim", &named));
    bus_open(&s.victim, &again, &bus);
    CHECK_OK(shm_bus_subscribe(&s.victim.thread, &bus, 0, &subscription, 0));
    CHECK_OK(bus_publish(&s.victim, &again, 1, 0));
    shm_bus_unsubscribe(&s.victim.thread, &bus, &subscription);
    shm_bus_release(&s.victim.thread, &again);
    shm_bus_release(&s.victim.thread, &bus);
}

static void victim_reads_and_writes_a_bus(void)
{
    struct shm_taken taken;
    make_bus((struct shm_bus_config){.frames = 1});
    CHECK_OK(shm_bus_subscribe(&s.victim.thread, &b.victims, 60 * SHM_NS_PER_S, &b.victim, 0));
    publishes(NULL);
    CHECK_OK(shm_bus_receive(&s.victim.thread, &b.victims, &b.victim, UINT64_MAX, &taken, 0));
    live_publishes(1);
    put_to_sleep(sleep_in_publish);
}

#endif
