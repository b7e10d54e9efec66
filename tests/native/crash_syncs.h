/* The scenes of test_crash.c whose victims use sync objects. Included by crash_scenes.h, whose stage they share. */
#ifndef CRASH_SYNCS_H
#define CRASH_SYNCS_H

#include "transport/names.h"
#include "transport/pipe.h"
#include "transport/rwlock.h"
#include "transport/waitset.h"

enum { THINGS = 3 };

static struct sync_stage {
    struct shm_sync_view lives[THINGS], victims[THINGS], sleepers[THINGS], earlys[THINGS];
    int count;
    uint32_t early_slot;
} y;

static void open_things(struct actor *a, struct shm_sync_view *views)
{
    for (int i = 0; i < y.count; i++)
        CHECK_OK(shm_sync_open(&a->thread, &views[i], y.lives[i].index, y.lives[i].count));
}

static void make_things(const struct shm_sync_config *configs, int count)
{
    memset(&y, 0, sizeof y);
    y.count = count;
    for (int i = 0; i < count; i++)
        CHECK_OK(shm_sync_make(&s.live.thread, &y.lives[i], &configs[i]));
    open_things(&s.victim, y.victims);
}

static const struct shm_sync_config auto_event = {.kind = SHM_SYNC_EVENT, .flags = SHM_SYNC_AUTO};
static const struct shm_sync_config set_event = {
    .kind = SHM_SYNC_EVENT, .flags = SHM_SYNC_AUTO, .initial = 1};
static const struct shm_sync_config one_left = {.kind = SHM_SYNC_SEMAPHORE, .max = 3, .initial = 1};
static const struct shm_sync_config mutex = {.kind = SHM_SYNC_MUTEX, .flags = SHM_SYNC_RECURSIVE};
static const struct shm_sync_config rwlock = {.kind = SHM_SYNC_RWLOCK, .entries = 4};
static const struct shm_sync_config condition = {.kind = SHM_SYNC_CONDITION};
static const struct shm_sync_config barrier = {.kind = SHM_SYNC_BARRIER, .max = 2};

static uint64_t peek(int i)
{
    return shm_sync_peek(&s.live.thread, &y.lives[i]);
}

static bool available(int i)
{
    return shm_sync_is_available(&s.live.thread, &y.lives[i], peek(i));
}

static uint32_t state_of(int i)
{
    return peek(i) & 0xF;
}

/* Nobody who is dead holds, claims or waits for anything, and everything works as on the first day. */
static void things_work(void)
{
    bool abandoned;
    uint32_t previous, entry;
    for (int i = 0; i < y.count; i++) {
        struct shm_sync_view *view = &y.lives[i];
        CHECK((atomic_load(&view->sync->word) & 0xF) != SHM_SYNC_CLAIMED);
        uint32_t others = shm_set_count(view->others, view->place_words), asleep = s.asleep ? 1 : 0;
        bool in_both = view->config.kind == SHM_SYNC_CONDITION || view->config.kind == SHM_SYNC_BARRIER;
        CHECK(shm_set_count(view->line, view->place_words) +
                  shm_set_count(view->watchers, view->place_words) + (in_both ? 0 : others) <=
              asleep);
        CHECK(others <= asleep);
        switch (view->config.kind) {
        case SHM_SYNC_EVENT:
            shm_event_set(&s.live.thread, view);
            CHECK_OK(shm_sync_wait(&s.live.thread, view, &abandoned, 0));
            CHECK_EQ(shm_sync_wait(&s.live.thread, view, &abandoned, 0), SHM_EMPTY);
            break;
        case SHM_SYNC_SEMAPHORE:
            while (shm_sync_wait(&s.live.thread, view, &abandoned, 0) == 0)
                ;
            CHECK_OK(shm_semaphore_release(&s.live.thread, view, 3, &previous));
            CHECK_EQ(previous, 0);
            break;
        case SHM_SYNC_MUTEX:
            CHECK_OK(shm_sync_wait(&s.live.thread, view, &abandoned, 0));
            CHECK_OK(shm_sync_wait(&s.live.thread, view, &abandoned, 0));
            CHECK_OK(shm_mutex_unlock(&s.live.thread, view));
            CHECK_OK(shm_mutex_unlock(&s.live.thread, view));
            CHECK_EQ(shm_mutex_unlock(&s.live.thread, view), SHM_REFUSED);
            break;
        case SHM_SYNC_RWLOCK:
            if (s.asleep)
                break;
            CHECK_OK(shm_rwlock_write(&s.live.thread, view, 0));
            CHECK_OK(shm_rwlock_unlock(&s.live.thread, view));
            CHECK_OK(shm_rwlock_read(&s.live.thread, view, &entry, 0));
            CHECK_OK(shm_rwlock_leave(&s.live.thread, view, entry));
            break;
        default:
            break;
        }
        shm_sync_release(&s.live.thread, view);
    }
}

/* ---- one object -------------------------------------------------------------------------------------------- */

static void sleep_for_it(void *unused)
{
    (void)unused;
    bool abandoned;
    open_things(&s.sleeper, y.sleepers);
    shm_sync_wait(&s.sleeper.thread, &y.sleepers[0], &abandoned, SHM_FOREVER);
}

static void awake_if_it_is_there(void)
{
    if (available(0))
        expect_awake();
    things_work();
}

static void one_waits_for_an_event(void)
{
    make_things(&auto_event, 1);
    put_to_sleep(sleep_for_it);
}

static void sets(void *unused)
{
    (void)unused;
    shm_event_set(&s.victim.thread, &y.victims[0]);
}

static void victim_has_the_mutex_and_one_waits(void)
{
    bool abandoned;
    make_things(&mutex, 1);
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[0], &abandoned, 0));
    put_to_sleep(sleep_for_it);
}

static void unlocks(void *unused)
{
    (void)unused;
    CHECK_OK(shm_mutex_adopt(&s.victim.thread, &y.victims[0])); /* as if from another thread of its process */
    CHECK_OK(shm_mutex_unlock(&s.victim.thread, &y.victims[0]));
}

static void gives_back(void *unused)
{
    (void)unused;
    shm_sync_give_back(&s.victim.thread, &y.victims[0], true);
}

static void the_next_is_awake(void)
{
    CHECK(available(0));
    expect_awake();
    things_work();
}

static void there_is_one_of_each(void)
{
    const struct shm_sync_config configs[] = {set_event, one_left, mutex};
    make_things(configs, 3);
}

static void takes_each(void *unused)
{
    (void)unused;
    bool abandoned;
    uint32_t previous;
    for (int i = 0; i < 3; i++)
        CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[i], &abandoned, 0));
    CHECK_OK(shm_semaphore_release(&s.victim.thread, &y.victims[1], 1, &previous));
}

static void the_mutex_is_free(void)
{
    CHECK(state_of(2) == SHM_SYNC_FREE || state_of(2) == SHM_SYNC_ABANDONED);
    things_work();
}

static void there_is_none(void)
{
    const struct shm_sync_config configs[] = {auto_event, mutex};
    make_things(configs, 2);
}

static struct shm_source source_of(struct shm_sync_view *view)
{
    return (struct shm_source){.kind = SHM_SOURCE_SYNC, .sync = view};
}

static void waits_for_any(void *unused)
{
    (void)unused;
    bool abandoned;
    uint32_t which;
    struct shm_source sources[] = {source_of(&y.victims[0]), {.kind = SHM_SOURCE_BOX, .box = &s.victims}};
    CHECK_EQ(shm_waitset_any(&s.victim.thread, sources, 2, &which, shm_clock_ns() + MS / 10), SHM_TIMEOUT);
    SAFELY(send_number(&s.live, &s.box, 1, false, 0));
    CHECK_OK(shm_waitset_any(&s.victim.thread, sources, 2, &which, SHM_FOREVER));
    CHECK_EQ(which, 1);
    SAFELY(shm_event_set(&s.live.thread, &y.lives[0]));
    CHECK_OK(shm_waitset_any(&s.victim.thread, sources, 2, &which, SHM_FOREVER));
    CHECK_EQ(which, 0);
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[1], &abandoned, SHM_FOREVER));
}

static void sender_wakes(void *unused)
{
    (void)unused;
    send_number(&s.victim, &s.victims, 1, false, 0);
}

static void sleep_for_event_and_message(void *unused)
{
    (void)unused;
    uint32_t which;
    open_things(&s.sleeper, y.sleepers);
    struct shm_source sources[] = {source_of(&y.sleepers[0]), {.kind = SHM_SOURCE_BOX, .box = &s.sleepers}};
    shm_waitset_any(&s.sleeper.thread, sources, 2, &which, SHM_FOREVER);
}

static void one_waits_for_event_or_message(void)
{
    make_things(&auto_event, 1);
    put_to_sleep(sleep_for_event_and_message);
}

static void awake_if_there_is_either(void)
{
    if (available(0) || shm_ring_count(&s.box))
        expect_awake();
    things_work();
}

/* ---- all --------------------------------------------------------------------------------------------------- */

static int take_all_of(struct actor *a, struct shm_sync_view *views, struct shm_box *box)
{
    struct shm_source sources[] = {source_of(&views[2]),
                                   source_of(&views[0]),
                                   source_of(&views[1]),
                                   {.kind = SHM_SOURCE_BOX, .box = box}};
    return shm_waitset_all(&a->thread, sources, 4, 0);
}

static void all_are_there(void)
{
    there_is_one_of_each();
    CHECK_OK(send_number(&s.live, &s.box, 1, false, 0));
}

static void takes_all(void *unused)
{
    (void)unused;
    CHECK_OK(take_all_of(&s.victim, y.victims, &s.victims));
}

/* All was taken, or nothing. */
static void all_or_nothing(void)
{
    bool taken = state_of(0) != SHM_SYNC_SET;
    CHECK_EQ(state_of(2), taken ? SHM_SYNC_ABANDONED : SHM_SYNC_FREE);
    CHECK_EQ(shm_sync_value(peek(1)), taken ? 0 : 1);
    if (!taken) {
        CHECK_OK(take_all_of(&s.live, y.lives, &s.box));
        CHECK_OK(shm_mutex_unlock(&s.live.thread, &y.lives[2]));
    }
    things_work();
}

static void early_takes_all(void *unused)
{
    (void)unused;
    take_all_of(&s.early, y.earlys, &s.victims);
}

static void early_died(const char *point, unsigned after)
{
    all_are_there();
    actor_join(&s.w, &s.early);
    open_things(&s.early, y.earlys);
    y.early_slot = s.early.member.slot;
    world_arm(point, after);
    CHECK(world_dies(early_takes_all, NULL));
    actor_die(&s.w, &s.early);
}

static void one_has_claimed_all(void)
{
    early_died("sync_taken", 1);
}

static void one_has_taken_all(void)
{
    early_died("sync_finish", 1);
}

static void takes_what_is_claimed(void *unused)
{
    (void)unused;
    bool abandoned;
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[0], &abandoned, 0));
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[1], &abandoned, 0));
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[2], &abandoned, 0));
}

static void finds_it_taken(void *unused)
{
    (void)unused;
    bool abandoned;
    CHECK_EQ(shm_sync_wait(&s.victim.thread, &y.victims[0], &abandoned, 0), SHM_EMPTY);
    CHECK_EQ(shm_sync_wait(&s.victim.thread, &y.victims[2], &abandoned, 0), SHM_EMPTY);
}

static void after_the_early_one(void)
{
    shm_reap(&s.live.thread, y.early_slot);
    things_work();
}

static void waits_for_all(void *unused)
{
    (void)unused;
    struct shm_source sources[] = {source_of(&y.victims[0]), source_of(&y.victims[1])};
    CHECK_EQ(shm_waitset_all(&s.victim.thread, sources, 2, shm_clock_ns() + MS / 10), SHM_TIMEOUT);
    SAFELY(shm_event_set(&s.live.thread, &y.lives[0]));
    CHECK_OK(shm_waitset_all(&s.victim.thread, sources, 2, SHM_FOREVER));
}

static void sleep_for_all(void *unused)
{
    (void)unused;
    open_things(&s.sleeper, y.sleepers);
    struct shm_source sources[] = {source_of(&y.sleepers[0]), source_of(&y.sleepers[1])};
    shm_waitset_all(&s.sleeper.thread, sources, 2, SHM_FOREVER);
}

static void one_waits_for_all(void)
{
    there_is_none();
    put_to_sleep(sleep_for_all);
}

/* ---- read-write locks, conditions, barriers ---------------------------------------------------------------- */

static void there_is_a_rwlock(void)
{
    make_things(&rwlock, 1);
}

static void reads_and_writes(void *unused)
{
    (void)unused;
    uint32_t entry, mine;
    CHECK_OK(shm_rwlock_read(&s.victim.thread, &y.victims[0], &entry, SHM_FOREVER));
    SAFELY(CHECK_EQ(shm_rwlock_write(&s.live.thread, &y.lives[0], 0), SHM_EMPTY));
    CHECK_OK(shm_rwlock_leave(&s.victim.thread, &y.victims[0], entry));
    CHECK_OK(shm_rwlock_write(&s.victim.thread, &y.victims[0], SHM_FOREVER));
    CHECK_OK(shm_rwlock_unlock(&s.victim.thread, &y.victims[0]));
    SAFELY(CHECK_OK(shm_rwlock_read(&s.live.thread, &y.lives[0], &mine, 0)));
    CHECK_EQ(shm_rwlock_write(&s.victim.thread, &y.victims[0], shm_clock_ns() + MS / 10), SHM_TIMEOUT);
    SAFELY(CHECK_OK(shm_rwlock_leave(&s.live.thread, &y.lives[0], mine)));
}

static void nobody_is_inside(void)
{
    for (uint32_t i = 0; i < 4; i++)
        shm_rwlock_leave(&s.live.thread, &y.lives[0], i); /* what was ours when the victim died */
    CHECK_EQ(shm_rwlock_readers(&y.lives[0]), 0);
    CHECK_EQ(state_of(0), SHM_SYNC_FREE);
    things_work();
}

static void sleep_to_write(void *unused)
{
    (void)unused;
    open_things(&s.sleeper, y.sleepers);
    shm_rwlock_write(&s.sleeper.thread, &y.sleepers[0], SHM_FOREVER);
}

static uint32_t victims_entry;

static void victim_reads_and_one_waits_to_write(void)
{
    there_is_a_rwlock();
    CHECK_OK(shm_rwlock_read(&s.victim.thread, &y.victims[0], &victims_entry, 0));
    put_to_sleep(sleep_to_write);
}

static void stops_reading(void *unused)
{
    (void)unused;
    CHECK_OK(shm_rwlock_leave(&s.victim.thread, &y.victims[0], victims_entry));
}

static void the_writer_is_alone_and_awake(void)
{
    CHECK_EQ(shm_rwlock_readers(&y.lives[0]), 0);
    expect_awake();
    things_work();
}

static void sleep_in_condition(void *unused)
{
    (void)unused;
    bool abandoned;
    uint32_t depth;
    open_things(&s.sleeper, y.sleepers);
    CHECK_OK(shm_sync_wait(&s.sleeper.thread, &y.sleepers[1], &abandoned, 0));
    shm_condition_wait(&s.sleeper.thread, &y.sleepers[0], &y.sleepers[1], &depth, SHM_FOREVER);
}

static void one_waits_for_a_condition(void)
{
    const struct shm_sync_config configs[] = {condition, mutex};
    make_things(configs, 2);
    put_to_sleep(sleep_in_condition);
}

static void notifies_all(void *unused)
{
    (void)unused;
    bool abandoned;
    uint32_t depth;
    CHECK_OK(shm_sync_wait(&s.victim.thread, &y.victims[1], &abandoned, 0));
    shm_condition_notify(&s.victim.thread, &y.victims[0], 5);
    CHECK_EQ(
        shm_condition_wait(&s.victim.thread, &y.victims[0], &y.victims[1], &depth, shm_clock_ns() + MS / 10),
        SHM_TIMEOUT);
}

static void one_waits_at_a_barrier_for_us(void *unused)
{
    (void)unused;
    uint32_t index;
    uint64_t acts;
    open_things(&s.sleeper, y.sleepers);
    shm_barrier_arrive(&s.sleeper.thread, &y.sleepers[0], &index, &acts, SHM_FOREVER);
}

static void one_waits_at_a_barrier(void)
{
    make_things(&barrier, 1);
    put_to_sleep(one_waits_at_a_barrier_for_us);
}

static void opens_the_barrier(void *unused)
{
    (void)unused;
    uint32_t index;
    uint64_t acts;
    CHECK_OK(shm_barrier_arrive(&s.victim.thread, &y.victims[0], &index, &acts, SHM_FOREVER));
    CHECK(acts && index == 1);
    CHECK_OK(shm_barrier_open(&s.victim.thread, &y.victims[0]));
    CHECK_EQ(shm_barrier_arrive(&s.victim.thread, &y.victims[0], &index, &acts, shm_clock_ns() + MS / 10),
             SHM_TIMEOUT);
    shm_barrier_reset(&s.victim.thread, &y.victims[0]);
}

static const struct shm_sync_config barrier_of_three = {.kind = SHM_SYNC_BARRIER, .max = 3};

static void one_of_three_waits_at_a_barrier(void)
{
    make_things(&barrier_of_three, 1);
    put_to_sleep(one_waits_at_a_barrier_for_us);
}

static void comes_second(void *unused)
{
    (void)unused;
    uint32_t index;
    uint64_t acts;
    CHECK_EQ(shm_barrier_arrive(&s.victim.thread, &y.victims[0], &index, &acts, shm_clock_ns() + MS / 10),
             SHM_TIMEOUT);
}

static void nobody_waits_for_the_dead(void)
{
    uint64_t word = peek(0);
    CHECK((word & 0xF) != SHM_SYNC_HELD);
    if (shm_barrier_is_broken(&y.lives[0]) || word >> 38)
        expect_awake();
    else
        CHECK_EQ(shm_barrier_count(&y.lives[0]), 1);
    things_work();
}

/* ---- pipes ------------------------------------------------------------------------------------------------- */

enum { PIPE_BYTES = 256 };

static const struct shm_sync_config pipe_config = {.kind = SHM_SYNC_PIPE, .entries = 4, .bytes = PIPE_BYTES};

static unsigned char pattern[1000];

static void make_pipe(void)
{
    for (int i = 0; i < 1000; i++)
        pattern[i] = (unsigned char)(i * 7);
    make_things(&pipe_config, 1);
}

static uint64_t write_to(struct actor *a, struct shm_sync_view *view, uint64_t from, uint64_t count,
                         uint64_t deadline_ns)
{
    uint64_t done = 0;
    shm_pipe_write(&a->thread, view, pattern + from, count, &done, deadline_ns);
    return done;
}

static void sleep_in_read(void *unused)
{
    (void)unused;
    unsigned char byte;
    uint64_t done;
    uint32_t entry;
    open_things(&s.sleeper, y.sleepers);
    CHECK_OK(shm_pipe_join(&s.sleeper.thread, &y.sleepers[0], SHM_ENTRY_READER, &entry));
    shm_pipe_read(&s.sleeper.thread, &y.sleepers[0], &byte, 1, &done, SHM_FOREVER);
}

static void sleep_in_write(void *unused)
{
    (void)unused;
    uint32_t entry;
    open_things(&s.sleeper, y.sleepers);
    CHECK_OK(shm_pipe_join(&s.sleeper.thread, &y.sleepers[0], SHM_ENTRY_WRITER, &entry));
    write_to(&s.sleeper, &y.sleepers[0], 0, 1, SHM_FOREVER);
}

static void one_waits_to_read(void)
{
    make_pipe();
    put_to_sleep(sleep_in_read);
}

static void writes(void *unused)
{
    (void)unused;
    uint32_t entry;
    CHECK_OK(shm_pipe_join(&s.victim.thread, &y.victims[0], SHM_ENTRY_WRITER, &entry));
    CHECK_EQ(write_to(&s.victim, &y.victims[0], 0, 200, 0), 200);
    CHECK_EQ(write_to(&s.victim, &y.victims[0], 200, 100, shm_clock_ns() + MS / 10), 0);
    CHECK_OK(shm_pipe_leave(&s.victim.thread, &y.victims[0], entry));
}

/* What was written is a beginning of it, whole; then comes the end. */
static void the_stream_is_whole_and_ends(void)
{
    unsigned char into[PIPE_BYTES];
    uint64_t done, total = 0;
    int status;
    if (atomic_load(&y.lives[0].sync->had) >> SHM_ENTRY_WRITER & 1)
        expect_awake();
    CHECK_EQ(shm_word_state(atomic_load(&y.lives[0].sync->read_right)), 0);
    CHECK_EQ(shm_word_state(atomic_load(&y.lives[0].sync->write_right)), 0);
    CHECK_EQ(shm_pipe_count(&y.lives[0], SHM_ENTRY_WRITER), 0);
    while ((status = shm_pipe_read(&s.live.thread, &y.lives[0], into + total, 150, &done, 0)) == 0 && done)
        total += done;
    CHECK(total == 0 || total == 200);
    CHECK_EQ(memcmp(into, pattern, total), 0);
    CHECK(total ? status == 0 : status == 0 || status == SHM_EMPTY);
    things_work();
}

static void it_is_full_and_one_waits_to_write(void)
{
    uint32_t entry;
    make_pipe();
    CHECK_OK(shm_pipe_join(&s.live.thread, &y.lives[0], SHM_ENTRY_WRITER, &entry));
    CHECK_EQ(write_to(&s.live, &y.lives[0], 0, PIPE_BYTES, 0), PIPE_BYTES);
    CHECK_OK(shm_pipe_leave(&s.live.thread, &y.lives[0], entry));
    put_to_sleep(sleep_in_write);
}

static void reads(void *unused)
{
    (void)unused;
    unsigned char into[200];
    uint32_t entry;
    uint64_t done;
    CHECK_OK(shm_pipe_join(&s.victim.thread, &y.victims[0], SHM_ENTRY_READER, &entry));
    CHECK_OK(shm_pipe_read(&s.victim.thread, &y.victims[0], into, 200, &done, 0));
    CHECK_EQ(done, 200);
    CHECK_EQ(memcmp(into, pattern, done), 0);
}

/* Nothing was read, or all that was to be; and the writer knows that there is room, or no reader any more. */
static void the_writer_knows(void)
{
    unsigned char into[PIPE_BYTES];
    uint64_t done, read = atomic_load(&y.lives[0].sync->read);
    CHECK(read == 0 || read == 200);
    if (atomic_load(&y.lives[0].sync->had) >> SHM_ENTRY_READER & 1) {
        expect_awake();
        CHECK_EQ(write_to(&s.live, &y.lives[0], 0, 1, 0), 0);
    }
    CHECK_OK(shm_pipe_read(&s.live.thread, &y.lives[0], into, PIPE_BYTES, &done, 0));
    CHECK_EQ(done, PIPE_BYTES - read);
    CHECK_EQ(memcmp(into, pattern + read, done), 0);
    things_work();
}

static void makes_an_event(void *unused)
{
    (void)unused;
    struct shm_sync_view event, again;
    CHECK_OK(shm_sync_make(&s.victim.thread, &event, &auto_event));
    struct shm_named named = {SHM_NAME_SYNC, event.index, event.count};
    CHECK_OK(shm_name_serve(&s.victim.thread, "victim", &named));
    CHECK_OK(shm_sync_open(&s.victim.thread, &again, event.index, event.count));
    shm_event_set(&s.victim.thread, &again);
    shm_sync_release(&s.victim.thread, &again);
    shm_sync_release(&s.victim.thread, &event);
}

#endif
