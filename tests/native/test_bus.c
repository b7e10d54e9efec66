/* Buses: what each reader gets, what it misses and is told, who waits for whom, and who may end it. Deaths at each
 * step: test_crash.c. */
#include "bus_world.h"

#include <sched.h>

static struct stage {
    struct world w;
    struct actor writer, reader, other;
    struct shm_bus_view bus, readers, others;
    struct shm_subscription subscription, second;
} s;

static void begin(struct shm_bus_config config)
{
    memset(&s, 0, sizeof s);
    world_open(&s.w, WORLD_SMALL);
    actor_join(&s.w, &s.writer);
    actor_join(&s.w, &s.reader);
    actor_join(&s.w, &s.other);
    config.frame_bytes = FRAME_BYTES;
    CHECK_OK(shm_bus_make(&s.writer.thread, &s.bus, &config));
    bus_open(&s.reader, &s.readers, &s.bus);
    bus_open(&s.other, &s.others, &s.bus);
}

static void end(void)
{
    shm_bus_release(&s.writer.thread, &s.bus);
    shm_bus_release(&s.reader.thread, &s.readers);
    shm_bus_release(&s.other.thread, &s.others);
    actor_leave(&s.writer);
    actor_leave(&s.reader);
    actor_leave(&s.other);
    world_close(&s.w);
}

static void subscribe(uint64_t patience_ns)
{
    CHECK_OK(shm_bus_subscribe(&s.reader.thread, &s.readers, patience_ns, &s.subscription, 0));
}

static void subscribe_other(uint64_t patience_ns)
{
    CHECK_OK(shm_bus_subscribe(&s.other.thread, &s.others, patience_ns, &s.second, 0));
}

static void publish(uint64_t from, uint64_t to)
{
    for (uint64_t n = from; n < to; n++)
        CHECK_OK(bus_publish(&s.writer, &s.bus, n, 0));
}

static void expect(uint64_t from, uint64_t to)
{
    uint64_t number;
    for (uint64_t n = from; n < to; n++) {
        CHECK_OK(bus_receive(&s.reader, &s.readers, &s.subscription, &number, 0));
        CHECK_EQ(number, n);
    }
}

static void expect_nothing(void)
{
    uint64_t number;
    CHECK_EQ(bus_receive(&s.reader, &s.readers, &s.subscription, &number, 0), SHM_EMPTY);
}

static void a_reader_gets_in_order_what_is_published_after_it_subscribed(void)
{
    uint64_t number;
    begin((struct shm_bus_config){.frames = 4, .readers = 2});
    publish(0, 3);
    subscribe(0);
    expect_nothing();
    publish(3, 6);
    subscribe_other(0);
    publish(6, 7);
    expect(3, 7);
    expect_nothing();
    CHECK_OK(bus_receive(&s.other, &s.others, &s.second, &number, 0));
    CHECK_EQ(number, 6);
    CHECK_EQ(s.subscription.missed + s.second.missed, 0);
    end();
}

static void a_slot_that_is_used_again_starts_with_what_comes_then(void)
{
    begin((struct shm_bus_config){.frames = 4, .readers = 1});
    subscribe(0);
    CHECK_EQ(shm_bus_subscribe(&s.other.thread, &s.others, 0, &s.second, 0), SHM_LIMIT);
    publish(0, 3);
    shm_bus_unsubscribe(&s.reader.thread, &s.readers, &s.subscription);
    uint64_t number;
    CHECK_EQ(bus_receive(&s.reader, &s.readers, &s.subscription, &number, 0), SHM_CLOSED);
    shm_bus_unsubscribe(&s.reader.thread, &s.readers, &s.subscription); /* a second time does nothing */
    subscribe_other(0);
    CHECK_EQ(bus_receive(&s.other, &s.others, &s.second, &number, 0), SHM_EMPTY);
    publish(3, 4);
    CHECK_OK(bus_receive(&s.other, &s.others, &s.second, &number, 0));
    CHECK_EQ(number, 3);
    end();
}

static void a_slow_reader_is_told_exactly_how_many_it_missed(void)
{
    begin((struct shm_bus_config){.frames = 3, .readers = 2});
    subscribe(0);
    publish(0, 3);
    expect(0, 1);
    CHECK_EQ(s.subscription.missed, 0);
    publish(3, 10);
    expect(7, 10);
    CHECK_EQ(s.subscription.missed, 6);
    expect_nothing();
    publish(10, 1000);
    expect(997, 1000);
    CHECK_EQ(s.subscription.missed, 6 + 987);
    end();
}

static void a_frame_that_is_held_stays_as_it_is(void)
{
    struct shm_taken held[3];
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    subscribe(0);
    for (uint64_t i = 0; i < 3; i++) {
        publish(i, i + 1);
        CHECK_OK(shm_bus_receive(&s.reader.thread, &s.readers, &s.subscription, UINT64_MAX, &held[i], 0));
        CHECK_EQ(held[i].position, i);
    }
    publish(3, 40);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK_EQ(bus_number(&s.reader, &held[i]), i);
        shm_lease_release(&s.reader.thread, held[i].lease);
    }
    end();
}

static void one_block_is_written_again_when_nobody_has_its_frame(void)
{
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    publish(0, 100);
    CHECK(world_count(&s.w).blocks <= 4); /* the bus, its frames, a warm one */
    end();
}

static void a_reader_with_patience_misses_nothing_and_a_refused_publish_removes_nothing(void)
{
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    subscribe(60 * SHM_NS_PER_S);
    publish(0, 2);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(bus_publish(&s.writer, &s.bus, 9, 0), SHM_FULL);
    uint64_t began = shm_clock_ns();
    CHECK_EQ(bus_publish(&s.writer, &s.bus, 9, began + 20 * MS), SHM_TIMEOUT);
    CHECK(shm_clock_ns() - began >= 20 * MS);
    expect(0, 1);
    publish(2, 3);
    expect(1, 3);
    expect_nothing();
    CHECK_EQ(s.subscription.missed, 0);
    end();
}

static void a_reader_is_waited_for_no_longer_than_its_patience_and_once(void)
{
    begin((struct shm_bus_config){.frames = 2, .readers = 2});
    subscribe(30 * MS);
    publish(0, 2);
    uint64_t began = shm_clock_ns();
    CHECK_OK(bus_publish(&s.writer, &s.bus, 2, SHM_FOREVER));
    CHECK(shm_clock_ns() - began >= 30 * MS);
    publish(3, 6); /* it is late, and nobody waits for it */
    expect(4, 5);
    CHECK_EQ(s.subscription.missed, 4);
    expect(5, 6);
    publish(6, 8); /* it has read again, and is waited for again */
    CHECK_EQ(bus_publish(&s.writer, &s.bus, 8, 0), SHM_FULL);
    shm_bus_unsubscribe(&s.reader.thread, &s.readers, &s.subscription);
    publish(8, 9);
    end();
}

static void polls_use_up_patience_as_waits_do(void)
{
    begin((struct shm_bus_config){.frames = 1, .readers = 1});
    subscribe(20 * MS);
    publish(0, 1);
    uint64_t began = shm_clock_ns();
    while (bus_publish(&s.writer, &s.bus, 1, 0) == SHM_FULL)
        sched_yield();
    CHECK(shm_clock_ns() - began >= 20 * MS);
    expect(1, 2);
    CHECK_EQ(s.subscription.missed, 1);
    end();
}

static void so_many_readers_have_a_frame_and_then_it_is_gone(void)
{
    uint64_t number;
    begin((struct shm_bus_config){.frames = 4, .readers = 3, .consume_after = 2});
    struct shm_subscription third;
    subscribe(0);
    subscribe_other(0);
    CHECK_OK(shm_bus_subscribe(&s.writer.thread, &s.bus, 0, &third, 0));
    publish(0, 2);
    expect(0, 1);
    CHECK_OK(bus_receive(&s.writer, &s.bus, &third, &number, 0));
    CHECK_EQ(number, 0);
    CHECK_OK(bus_receive(&s.other, &s.others, &s.second, &number, 0));
    CHECK_EQ(number, 1); /* two have had frame 0 */
    CHECK_EQ(s.second.skipped, 1);
    CHECK_EQ(s.second.missed, 0);
    CHECK_OK(bus_receive(&s.writer, &s.bus, &third, &number, 0));
    expect_nothing();
    CHECK_EQ(s.subscription.skipped, 1);
    publish(2, 5);
    expect(2, 5);
    end();
}

static void a_frame_is_gone_when_it_is_too_old(void)
{
    begin((struct shm_bus_config){.frames = 4, .readers = 1, .max_age_ns = 20 * MS});
    subscribe(0);
    publish(0, 1);
    expect(0, 1);
    publish(1, 3);
    shm_clock_sleep(21 * MS);
    publish(3, 4);
    expect(3, 4);
    CHECK_EQ(s.subscription.skipped, 2);
    CHECK_EQ(s.subscription.missed, 0);
    end();
}

static void what_does_not_fit_is_kept_and_says_how_large_it_is(void)
{
    struct shm_taken taken;
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    subscribe(0);
    publish(0, 1);
    for (int waits = 0; waits < 2; waits++) {
        CHECK_EQ(shm_bus_receive(&s.reader.thread, &s.readers, &s.subscription, FRAME_BYTES - 1, &taken,
                                 waits ? soon(1000) : 0),
                 SHM_TOO_LARGE);
        CHECK_EQ(taken.len_bytes - taken.head_bytes, FRAME_BYTES);
    }
    CHECK_OK(shm_bus_receive(&s.reader.thread, &s.readers, &s.subscription, FRAME_BYTES, &taken, 0));
    shm_lease_release(&s.reader.thread, taken.lease);
    expect_nothing();
    end();
}

static void a_frame_above_the_limit_is_refused(void)
{
    shm_lease_index lease;
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    CHECK_OK(shm_block_take(&s.writer.thread, FRAME_BYTES + 1, &lease));
    CHECK_EQ(shm_bus_publish(&s.writer.thread, &s.bus, lease, 0, FRAME_BYTES + 1, 0), SHM_TOO_LARGE);
    CHECK_EQ(shm_bus_publish(&s.writer.thread, &s.bus, lease, 2, 1, 0), SHM_INVALID);
    CHECK_EQ(shm_bus_publish(&s.writer.thread, &s.bus, lease, 0, 100 * FRAME_BYTES, 0), SHM_INVALID);
    CHECK_OK(shm_bus_publish(&s.writer.thread, &s.bus, lease, 1, FRAME_BYTES + 1, 0));
    struct shm_bus_config none = {.frames = 0, .readers = 1}, many = {.frames = 1, .readers = 1025};
    struct shm_bus_view view;
    CHECK_EQ(shm_bus_make(&s.writer.thread, &view, &none), SHM_INVALID);
    CHECK_EQ(shm_bus_make(&s.writer.thread, &view, &many), SHM_INVALID);
    end();
}

static void a_bus_with_readers_cannot_be_destroyed(void)
{
    uint64_t number;
    struct shm_named named = {0}, bus;
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    bus = (struct shm_named){SHM_NAME_BUS, s.bus.index, s.bus.count};
    CHECK_OK(shm_name_serve(&s.writer.thread, "bus", &bus));
    subscribe(0);
    CHECK_EQ(shm_bus_destroy(&s.writer.thread, &s.bus), SHM_BUSY);
    publish(0, 1);
    expect(0, 1);
    shm_bus_unsubscribe(&s.reader.thread, &s.readers, &s.subscription);
    CHECK_OK(shm_name_lookup(&s.writer.thread, "bus", &named));
    CHECK_OK(shm_bus_destroy(&s.writer.thread, &s.bus));
    CHECK_EQ(shm_bus_destroy(&s.other.thread, &s.others), SHM_CLOSED);
    CHECK_EQ(shm_name_lookup(&s.writer.thread, "bus", &named), SHM_NOT_FOUND);
    CHECK_EQ(bus_publish(&s.other, &s.others, 1, SHM_FOREVER), SHM_CLOSED);
    CHECK_EQ(shm_bus_subscribe(&s.reader.thread, &s.readers, 0, &s.subscription, 0), SHM_CLOSED);
    CHECK_EQ(bus_receive(&s.reader, &s.readers, &s.subscription, &number, 0), SHM_CLOSED);
    end();
}

static void a_bus_is_no_mailbox_and_a_mailbox_no_bus(void)
{
    struct shm_box box, none;
    struct shm_bus_view view;
    begin((struct shm_bus_config){.frames = 2, .readers = 1});
    box_make(&s.writer, &box, SHM_BOX_SHARED, 4);
    CHECK_EQ(shm_box_open(&s.writer.thread, &none, s.bus.index, s.bus.count), SHM_NOT_FOUND);
    CHECK_EQ(shm_bus_open(&s.writer.thread, &view, box.index, box.count), SHM_NOT_FOUND);
    shm_box_release(&s.writer.thread, &box);
    end();
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

#ifdef __SANITIZE_THREAD__
enum { FRAMES = 300 };
#else
enum { FRAMES = 3000 };
#endif
enum { READERS = 4 };

static struct crowd {
    struct actor readers[READERS], writers[2];
    struct shm_bus_view of_readers[READERS], of_writers[2];
    struct shm_subscription subscriptions[READERS];
    _Atomic uint64_t next;
    uint64_t patience_ns;
    uint32_t writers_count;
    uint64_t missed;
} crowd;

static void reads(int i)
{
    struct actor *a = &crowd.readers[i];
    struct shm_subscription *subscription = &crowd.subscriptions[i];
    uint64_t number, got = 0, last[2] = {0, 0};
    for (;;) {
        CHECK_OK(bus_receive(a, &crowd.of_readers[i], subscription, &number, soon(30000)));
        got++;
        uint64_t writer = number >> 32, value = number & 0xFFFFFFFF;
        CHECK(writer < 2 && value > last[writer]);
        last[writer] = value;
        if (got + atomic_load(&subscription->missed) == (uint64_t)FRAMES * crowd.writers_count)
            return;
        if (crowd.patience_ns == 0 && i == 0 && got % 16 == 0)
            shm_clock_sleep(200000); /* the slow one */
    }
}

static void acts(void *unused, int i)
{
    (void)unused;
    if (i < READERS) {
        reads(i);
        return;
    }
    uint64_t writer = (uint64_t)i - READERS;
    for (uint64_t n = 1; n <= FRAMES; n++)
        CHECK_OK(
            bus_publish(&crowd.writers[writer], &crowd.of_writers[writer], writer << 32 | n, soon(30000)));
}

static void run_crowd(uint32_t writers, uint64_t patience_ns)
{
    struct world w;
    memset(&crowd, 0, sizeof crowd);
    crowd.patience_ns = patience_ns;
    crowd.writers_count = writers;
    world_open(&w, WORLD_SMALL);
    for (uint32_t i = 0; i < writers; i++)
        actor_join(&w, &crowd.writers[i]);
    bus_make(&crowd.writers[0], &crowd.of_writers[0], 4, READERS);
    for (uint32_t i = 1; i < writers; i++)
        bus_open(&crowd.writers[i], &crowd.of_writers[i], &crowd.of_writers[0]);
    for (int i = 0; i < READERS; i++) {
        actor_join(&w, &crowd.readers[i]);
        bus_open(&crowd.readers[i], &crowd.of_readers[i], &crowd.of_writers[0]);
        CHECK_OK(shm_bus_subscribe(&crowd.readers[i].thread, &crowd.of_readers[i], patience_ns,
                                   &crowd.subscriptions[i], 0));
    }
    check_threads(READERS + (int)writers, acts, NULL);
    for (int i = 0; i < READERS; i++) {
        CHECK_EQ(shm_bus_count_readers(&crowd.of_readers[i]), READERS - i);
        crowd.missed += crowd.subscriptions[i].missed;
        shm_bus_unsubscribe(&crowd.readers[i].thread, &crowd.of_readers[i], &crowd.subscriptions[i]);
        shm_bus_release(&crowd.readers[i].thread, &crowd.of_readers[i]);
        actor_leave(&crowd.readers[i]);
    }
    for (uint32_t i = 0; i < writers; i++) {
        shm_bus_release(&crowd.writers[i].thread, &crowd.of_writers[i]);
        actor_leave(&crowd.writers[i]);
    }
    world_close(&w);
}

static void each_reader_gets_or_is_told_to_have_missed_every_frame(void)
{
    run_crowd(1, 0);
    run_crowd(2, 0);
}

static void readers_with_patience_miss_nothing_of_two_writers(void)
{
    run_crowd(2, 60 * SHM_NS_PER_S);
    CHECK_EQ(crowd.missed, 0);
}

int main(void)
{
    RUN(a_reader_gets_in_order_what_is_published_after_it_subscribed);
    RUN(a_slot_that_is_used_again_starts_with_what_comes_then);
    RUN(a_slow_reader_is_told_exactly_how_many_it_missed);
    RUN(a_frame_that_is_held_stays_as_it_is);
    RUN(one_block_is_written_again_when_nobody_has_its_frame);
    RUN(a_reader_with_patience_misses_nothing_and_a_refused_publish_removes_nothing);
    RUN(a_reader_is_waited_for_no_longer_than_its_patience_and_once);
    RUN(polls_use_up_patience_as_waits_do);
    RUN(so_many_readers_have_a_frame_and_then_it_is_gone);
    RUN(a_frame_is_gone_when_it_is_too_old);
    RUN(what_does_not_fit_is_kept_and_says_how_large_it_is);
    RUN(a_frame_above_the_limit_is_refused);
    RUN(a_bus_with_readers_cannot_be_destroyed);
    RUN(a_bus_is_no_mailbox_and_a_mailbox_no_bus);
    RUN(each_reader_gets_or_is_told_to_have_missed_every_frame);
    RUN(readers_with_patience_miss_nothing_of_two_writers);
    return 0;
}
