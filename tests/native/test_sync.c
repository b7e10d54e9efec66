/* Sync objects: what each waiter gets, in which order, and that a wait for all takes everything or nothing. Deaths at
 * each step: test_crash.c. */
#include "world.h"

#include "base/killpoint.h"
#include <pthread.h>
#include <unistd.h>

#include "transport/pipe.h"
#include "transport/rwlock.h"
#include "transport/waitset.h"

enum { THREADS = 4, ROUNDS = 2000 };

static struct stage {
    struct world w;
    struct actor a, b;
} s;

static const struct shm_sync_config auto_event = {.kind = SHM_SYNC_EVENT, .flags = SHM_SYNC_AUTO};
static const struct shm_sync_config mutex = {.kind = SHM_SYNC_MUTEX, .flags = SHM_SYNC_RECURSIVE};

static void begin(void)
{
    memset(&s, 0, sizeof s);
    world_open(&s.w, WORLD_SMALL);
    actor_join(&s.w, &s.a);
    actor_join(&s.w, &s.b);
}

static void end(void)
{
    actor_leave(&s.a);
    actor_leave(&s.b);
    world_close(&s.w);
}

static int take(struct actor *a, struct shm_sync_view *view, uint64_t deadline_ns)
{
    bool abandoned;
    return shm_sync_wait(&a->thread, view, &abandoned, deadline_ns);
}

static void make(struct shm_sync_view *view, const struct shm_sync_config *config)
{
    CHECK_OK(shm_sync_make(&s.a.thread, view, config));
}

static void open_for(struct actor *a, struct shm_sync_view *view, const struct shm_sync_view *of)
{
    CHECK_OK(shm_sync_open(&a->thread, view, of->index, of->count));
}

static struct shm_source source_of(struct shm_sync_view *view)
{
    return (struct shm_source){.kind = SHM_SOURCE_SYNC, .sync = view};
}

static void any_takes_the_first_that_is_there_and_no_other(void)
{
    struct shm_sync_view events[4];
    struct shm_source sources[4];
    uint32_t which;
    begin();
    for (int i = 0; i < 4; i++) {
        make(&events[i], &auto_event);
        sources[i] = source_of(&events[i]);
    }
    CHECK_EQ(shm_waitset_any(&s.a.thread, sources, 4, &which, 0), SHM_EMPTY);
    shm_event_set(&s.a.thread, &events[2]);
    shm_event_set(&s.a.thread, &events[1]);
    CHECK_OK(shm_waitset_any(&s.a.thread, sources, 4, &which, SHM_FOREVER));
    CHECK_EQ(which, 1);
    CHECK_OK(take(&s.a, &events[2], 0));
    CHECK_EQ(take(&s.a, &events[1], 0), SHM_EMPTY);
    CHECK_EQ(shm_waitset_any(&s.a.thread, sources, 0, &which, 0), SHM_INVALID);
    CHECK_EQ(shm_waitset_any(&s.a.thread, sources, SHM_WAITSET_MAX + 1, &which, 0), SHM_INVALID);
    sources[3] = sources[0];
    CHECK_EQ(shm_waitset_all(&s.a.thread, sources, 4, 0), SHM_INVALID);
    for (int i = 0; i < 4; i++)
        shm_sync_release(&s.a.thread, &events[i]);
    end();
}

static void a_mutex_counts_and_only_its_thread_unlocks_it(void)
{
    struct shm_sync_view mine, others;
    begin();
    make(&mine, &mutex);
    open_for(&s.b, &others, &mine);
    CHECK_OK(take(&s.a, &mine, 0));
    CHECK_OK(take(&s.a, &mine, 0));
    CHECK_EQ(take(&s.b, &others, 0), SHM_EMPTY);
    CHECK_EQ(take(&s.b, &others, soon(5)), SHM_TIMEOUT);
    CHECK_EQ(shm_mutex_unlock(&s.b.thread, &others), SHM_REFUSED);
    CHECK_OK(shm_mutex_unlock(&s.a.thread, &mine));
    CHECK_EQ(take(&s.b, &others, 0), SHM_EMPTY);
    CHECK_OK(shm_mutex_unlock(&s.a.thread, &mine));
    CHECK_OK(take(&s.b, &others, 0));
    CHECK_EQ(shm_mutex_unlock(&s.a.thread, &mine), SHM_REFUSED);
    CHECK_OK(shm_mutex_unlock(&s.b.thread, &others));
    shm_sync_release(&s.b.thread, &others);
    shm_sync_release(&s.a.thread, &mine);
    end();
}

static void a_thread_that_ends_abandons_its_mutexes(void)
{
    struct shm_sync_view view;
    struct shm_thread other;
    bool abandoned;
    begin();
    make(&view, &mutex);
    CHECK_OK(shm_thread_open(&other, &s.a.member));
    CHECK_OK(shm_sync_wait(&other, &view, &abandoned, 0));
    other.at->thread = 0; /* of another thread of the operating system */
    CHECK_EQ(take(&s.a, &view, 0), SHM_EMPTY);
    shm_thread_close(&other);
    CHECK_OK(shm_sync_wait(&s.a.thread, &view, &abandoned, 0));
    CHECK(abandoned);
    CHECK_OK(shm_mutex_unlock(&s.a.thread, &view));
    CHECK_OK(shm_sync_wait(&s.a.thread, &view, &abandoned, 0));
    CHECK(!abandoned);
    CHECK_OK(shm_mutex_unlock(&s.a.thread, &view));
    shm_sync_release(&s.a.thread, &view);
    end();
}

/* ---- many threads ------------------------------------------------------------------------------------------ */

static struct table {
    struct shm_sync_view forks[THREADS];
    _Atomic int held[THREADS], done, stop;
    _Atomic long probes;
} t;

static void *dine(void *argument)
{
    uint32_t me = (uint32_t)(uintptr_t)argument, other = (me + 1) % THREADS;
    struct actor a;
    struct shm_sync_view left, right;
    actor_join(&s.w, &a);
    open_for(&a, &left, &t.forks[me]);
    open_for(&a, &right, &t.forks[other]);
    for (int i = 0; i < ROUNDS; i++) {
        struct shm_source sources[] = {source_of(&left), source_of(&right)};
        if (i % 3) {
            CHECK_OK(shm_waitset_all(&a.thread, sources, 2, SHM_FOREVER));
        } else { /* in order, one after the other */
            CHECK_OK(take(&a, me < other ? &left : &right, SHM_FOREVER));
            CHECK_OK(take(&a, me < other ? &right : &left, SHM_FOREVER));
        }
        CHECK_EQ(atomic_fetch_add(&t.held[me], 1), 0);
        CHECK_EQ(atomic_fetch_add(&t.held[other], 1), 0);
        atomic_fetch_sub(&t.held[me], 1);
        atomic_fetch_sub(&t.held[other], 1);
        shm_event_set(&a.thread, &left);
        shm_event_set(&a.thread, &right);
    }
    shm_sync_release(&a.thread, &left);
    shm_sync_release(&a.thread, &right);
    actor_leave(&a);
    atomic_fetch_add(&t.done, 1);
    return NULL;
}

static void philosophers_eat_with_both_forks_and_none_starves(void)
{
    pthread_t threads[THREADS];
    struct shm_sync_config config = auto_event;
    begin();
    memset(&t, 0, sizeof t);
    config.initial = 1;
    for (int i = 0; i < THREADS; i++)
        make(&t.forks[i], &config);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_OK(pthread_create(&threads[i], NULL, dine, (void *)i));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        CHECK_OK(take(&s.a, &t.forks[i], 0));
        shm_sync_release(&s.a.thread, &t.forks[i]);
    }
    end();
}

/* Claims the first and often fails at the second. */
static void *wait_in_vain(void *unused)
{
    struct actor a;
    struct shm_sync_view first, second;
    (void)unused;
    actor_join(&s.w, &a);
    open_for(&a, &first, &t.forks[0]);
    open_for(&a, &second, &t.forks[1]);
    while (!atomic_load(&t.stop)) {
        struct shm_source sources[] = {source_of(&first), source_of(&second)};
        if (shm_waitset_all(&a.thread, sources, 2, 0) == 0) {
            shm_event_set(&a.thread, &first);
            atomic_fetch_add(&t.probes, 1);
        }
    }
    shm_sync_release(&a.thread, &first);
    shm_sync_release(&a.thread, &second);
    actor_leave(&a);
    return NULL;
}

/* The first is set for ever, as far as a wait for all does not get both; the second comes and goes. */
static void nobody_sees_anything_missing_that_a_wait_for_all_gives_back(void)
{
    pthread_t thread;
    struct shm_sync_config config = {.kind = SHM_SYNC_EVENT};
    begin();
    memset(&t, 0, sizeof t);
    config.initial = 1;
    make(&t.forks[0], &config);
    make(&t.forks[1], &auto_event);
    CHECK_OK(pthread_create(&thread, NULL, wait_in_vain, NULL));
    for (int i = 0; i < 20 * ROUNDS || atomic_load(&t.probes) < 10; i++) {
        shm_event_set(&s.a.thread, &t.forks[1]);
        CHECK_EQ(shm_sync_peek(&s.a.thread, &t.forks[0]) & 0xF, SHM_SYNC_SET);
        CHECK_OK(take(&s.a, &t.forks[0], 0));
        shm_event_reset(&s.a.thread, &t.forks[1]);
    }
    atomic_store(&t.stop, 1);
    pthread_join(thread, NULL);
    shm_sync_release(&s.a.thread, &t.forks[0]);
    shm_sync_release(&s.a.thread, &t.forks[1]);
    end();
}

static _Atomic int inside_read, inside_write;

static void *read_and_write(void *argument)
{
    struct actor a;
    struct shm_sync_view lock;
    unsigned seed = (unsigned)(uintptr_t)argument;
    actor_join(&s.w, &a);
    open_for(&a, &lock, &t.forks[0]);
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t entry;
        seed = seed * 1103515245u + 12345u;
        if (seed >> 16 & 3) {
            CHECK_OK(shm_rwlock_read(&a.thread, &lock, &entry, SHM_FOREVER));
            atomic_fetch_add(&inside_read, 1);
            CHECK_EQ(atomic_load(&inside_write), 0);
            atomic_fetch_sub(&inside_read, 1);
            CHECK_OK(shm_rwlock_leave(&a.thread, &lock, entry));
        } else {
            CHECK_OK(shm_rwlock_write(&a.thread, &lock, SHM_FOREVER));
            CHECK_EQ(atomic_fetch_add(&inside_write, 1), 0);
            CHECK_EQ(atomic_load(&inside_read), 0);
            atomic_fetch_sub(&inside_write, 1);
            CHECK_OK(shm_rwlock_unlock(&a.thread, &lock));
        }
    }
    shm_sync_release(&a.thread, &lock);
    actor_leave(&a);
    return NULL;
}

static void readers_share_and_a_writer_is_alone(void)
{
    pthread_t threads[THREADS];
    struct shm_sync_config config = {.kind = SHM_SYNC_RWLOCK, .entries = 2};
    begin();
    make(&t.forks[0], &config);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_OK(pthread_create(&threads[i], NULL, read_and_write, (void *)i));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    shm_sync_release(&s.a.thread, &t.forks[0]);
    end();
}

/* ---- files and moments ------------------------------------------------------------------------------------- */

static void *write_later(void *argument)
{
    shm_clock_sleep(20 * MS);
    CHECK_EQ(write(*(int *)argument, "x", 1), 1);
    return NULL;
}

static void files_and_moments_wake_too(void)
{
    int ends[2];
    uint32_t which;
    pthread_t thread;
    struct shm_sync_view event;
    begin();
    make(&event, &auto_event);
    CHECK_OK(pipe(ends));
    struct shm_source sources[] = {source_of(&event),
                                   {.kind = SHM_SOURCE_FILE, .fd = ends[0], .events = 1},
                                   {.kind = SHM_SOURCE_DUE, .due_ns = SHM_FOREVER}};
    CHECK_EQ(shm_waitset_any(&s.a.thread, sources, 3, &which, soon(5)), SHM_TIMEOUT);
    CHECK_OK(pthread_create(&thread, NULL, write_later, &ends[1]));
    CHECK_OK(shm_waitset_any(&s.a.thread, sources, 3, &which, soon(10000)));
    CHECK_EQ(which, 1);
    pthread_join(thread, NULL);
    sources[2].due_ns = soon(10);
    CHECK_EQ(shm_waitset_all(&s.a.thread, sources, 3, soon(30)), SHM_TIMEOUT);
    shm_event_set(&s.a.thread, &event);
    CHECK_OK(shm_waitset_all(&s.a.thread, sources, 3, soon(10000)));
    CHECK_EQ(shm_waitset_any(&s.a.thread, sources, 1, &which, 0), SHM_EMPTY);
    sources[2].due_ns = soon(10);
    CHECK_OK(shm_waitset_look(&s.a.thread, sources, 3, soon(10000)));
    CHECK(!sources[0].there && sources[1].there && !sources[2].there);
    close(ends[0]);
    close(ends[1]);
    shm_sync_release(&s.a.thread, &event);
    end();
}

/* ---- room ------------------------------------------------------------------------------------------------- */

static struct shm_sync_view read_end, write_end;
static struct shm_box room_box, far_box, third_box;
static pthread_t impatient;

static void look_for_room(struct shm_source *source)
{
    CHECK_OK(shm_waitset_look(&s.a.thread, source, 1, soon(20000)));
    CHECK(source->there);
}

static void *make_room(void *argument)
{
    unsigned char bytes[100];
    uint64_t done = 0;
    (void)argument;
    while (shm_set_empty(write_end.watchers))
        usleep(100);
    CHECK_OK(shm_pipe_read(&s.b.thread, &read_end, bytes, 99, &done, 0));
    usleep(1000);
    CHECK(!shm_set_empty(write_end.watchers)); /* one byte is missing */
    CHECK_OK(shm_pipe_read(&s.b.thread, &read_end, bytes, 1, &done, 0));
    return NULL;
}

static void *leave_the_pipe(void *entry)
{
    while (shm_set_empty(write_end.watchers))
        usleep(100);
    CHECK_OK(shm_pipe_leave(&s.b.thread, &read_end, *(uint32_t *)entry));
    return NULL;
}

static void who_looks_for_room_in_a_pipe_is_woken_by_readers_and_by_their_end(void)
{
    const struct shm_sync_config config = {.kind = SHM_SYNC_PIPE, .entries = 4, .bytes = 4096};
    unsigned char bytes[4096] = {0};
    uint32_t reader, writer;
    uint64_t done = 0;
    pthread_t thread;
    begin();
    make(&write_end, &config);
    open_for(&s.b, &read_end, &write_end);
    CHECK_OK(shm_pipe_join(&s.a.thread, &write_end, SHM_ENTRY_WRITER, &writer));
    CHECK_OK(shm_pipe_join(&s.b.thread, &read_end, SHM_ENTRY_READER, &reader));
    struct shm_source source = {.kind = SHM_SOURCE_ROOM, .sync = &write_end, .least = 100};
    look_for_room(&source);
    CHECK_OK(shm_pipe_write(&s.a.thread, &write_end, bytes, 4096, &done, 0));
    CHECK_EQ(shm_waitset_look(&s.a.thread, &source, 1, 0), SHM_EMPTY);
    CHECK_OK(pthread_create(&thread, NULL, make_room, NULL));
    look_for_room(&source);
    pthread_join(thread, NULL);
    source.least = 4096;
    CHECK_OK(pthread_create(&thread, NULL, leave_the_pipe, &reader));
    look_for_room(&source);
    pthread_join(thread, NULL);
    CHECK_EQ(atomic_load(&s.w.segment.header->rescued), 0);
    shm_sync_release(&s.b.thread, &read_end);
    shm_sync_release(&s.a.thread, &write_end);
    end();
}

static struct actor third;

/* He has given up, and stands in line still: now somebody receives, and nobody is told of room by that. */
static void receive_as_he_leaves(enum shm_kill_point point)
{
    uint64_t number;
    if (!pthread_equal(pthread_self(), impatient)) {
        shm_kill_point_arm(shm_kill_point_names[point], 1, SIGKILL);
        return;
    }
    CHECK_OK(box_receive(&third, &third_box, NULL, &number, 0));
    usleep(20000); /* who looks for room is woken, and finds the line before him */
    CHECK(!shm_set_empty(room_box.watchers));
}

static void *stand_in_line(void *argument)
{
    (void)argument;
    while (shm_set_empty(room_box.watchers))
        usleep(100);
    impatient = pthread_self();
    shm_kill_point_hook = receive_as_he_leaves;
    CHECK_OK(shm_kill_point_arm("wait_leave", 1, SIGKILL));
    CHECK_EQ(box_send(&s.b, &far_box, 0, 9, soon(5)), SHM_TIMEOUT);
    shm_kill_point_disarm();
    shm_kill_point_hook = NULL;
    return NULL;
}

static void *receive_one(void *argument)
{
    uint64_t number;
    (void)argument;
    while (shm_set_empty(room_box.watchers))
        usleep(100);
    CHECK_OK(box_receive(&s.b, &far_box, NULL, &number, 0));
    return NULL;
}

static void who_looks_for_room_in_a_mailbox_is_woken_by_receivers_and_when_the_line_is_shorter(void)
{
    pthread_t thread;
    begin();
    actor_join(&s.w, &third);
    box_make(&s.a, &room_box, SHM_BOX_SHARED, 1);
    box_open(&s.b, &far_box, &room_box);
    box_open(&third, &third_box, &room_box);
    struct shm_source source = {.kind = SHM_SOURCE_ROOM, .box = &room_box};
    look_for_room(&source);
    CHECK_OK(box_send(&s.a, &room_box, 0, 1, 0));
    CHECK_EQ(shm_waitset_look(&s.a.thread, &source, 1, 0), SHM_EMPTY);
    CHECK_OK(pthread_create(&thread, NULL, receive_one, NULL));
    look_for_room(&source);
    pthread_join(thread, NULL);
    CHECK_OK(box_send(&s.a, &room_box, 0, 1, 0));
    CHECK_OK(pthread_create(&thread, NULL, stand_in_line, NULL));
    look_for_room(&source);
    pthread_join(thread, NULL);
    CHECK_EQ(shm_ring_count(&room_box), 0);
    CHECK_EQ(atomic_load(&s.w.segment.header->rescued), 0);
    shm_box_release(&third.thread, &third_box);
    shm_box_release(&s.b.thread, &far_box);
    shm_box_release(&s.a.thread, &room_box);
    actor_leave(&third);
    end();
}

static struct actor victim;
static struct shm_box victims_box;

static void wait_for_room(void *unused)
{
    (void)unused;
    box_send(&victim, &victims_box, 0, 9, soon(20000));
}

/* One who stands before the looker in line dies there. */
static void *die_in_line(void *argument)
{
    uint64_t number;
    (void)argument;
    while (shm_set_empty(room_box.watchers))
        usleep(100);
    world_arm("wait_park", 1);
    CHECK(world_dies(wait_for_room, NULL));
    CHECK_OK(box_receive(&s.b, &far_box, NULL, &number, 0));
    usleep(20000); /* who looks is woken, and finds the dead before him */
    CHECK(!shm_set_empty(room_box.watchers));
    actor_die(&s.w, &victim);
    shm_reap(&s.b.thread, victim.member.slot);
    return NULL;
}

static void who_looks_for_room_is_woken_when_one_in_the_line_has_died(void)
{
    pthread_t thread;
    begin();
    actor_join(&s.w, &victim);
    box_make(&s.a, &room_box, SHM_BOX_SHARED, 1);
    box_open(&s.b, &far_box, &room_box);
    box_open(&victim, &victims_box, &room_box);
    struct shm_source source = {.kind = SHM_SOURCE_ROOM, .box = &room_box};
    CHECK_OK(box_send(&s.a, &room_box, 0, 1, 0));
    CHECK_OK(pthread_create(&thread, NULL, die_in_line, NULL));
    look_for_room(&source);
    pthread_join(thread, NULL);
    CHECK_EQ(atomic_load(&s.w.segment.header->rescued), 0);
    shm_box_release(&s.b.thread, &far_box);
    shm_box_release(&s.a.thread, &room_box);
    end();
}

/* ---- what comes at an awkward moment ----------------------------------------------------------------------- */

static struct shm_sync_view a_condition, a_mutex, b_condition, b_mutex;

static int notify_from_a_handler(struct shm_thread *self)
{
    bool abandoned;
    (void)self;
    CHECK_OK(shm_sync_wait(&s.b.thread, &b_mutex, &abandoned, 0));
    shm_condition_notify(&s.b.thread, &b_condition, 1);
    CHECK_OK(shm_mutex_unlock(&s.b.thread, &b_mutex));
    return 0;
}

static void a_notice_reaches_one_whose_handlers_run(void)
{
    const struct shm_sync_config condition = {.kind = SHM_SYNC_CONDITION};
    uint32_t depth;
    begin();
    make(&a_condition, &condition);
    make(&a_mutex, &mutex);
    open_for(&s.b, &b_condition, &a_condition);
    open_for(&s.b, &b_mutex, &a_mutex);
    CHECK_OK(take(&s.a, &a_mutex, 0));
    s.a.thread.interrupted = notify_from_a_handler; /* also at the end of each slice */
    CHECK_OK(shm_condition_wait(&s.a.thread, &a_condition, &a_mutex, &depth, soon(2000)));
    s.a.thread.interrupted = NULL;
    shm_condition_notify(&s.b.thread, &b_condition, 1); /* for nobody */
    CHECK_EQ(shm_sync_value(atomic_load(&a_condition.sync->word)), 0);
    shm_sync_release(&s.b.thread, &b_condition);
    shm_sync_release(&s.b.thread, &b_mutex);
    shm_sync_release(&s.a.thread, &a_condition);
    shm_sync_release(&s.a.thread, &a_mutex);
    end();
}

static struct shm_sync_view a_barrier, b_barrier;
static int arrivals;

static void arrive_just_then(enum shm_kill_point point)
{
    uint32_t index;
    uint64_t acts;
    (void)point;
    if (arrivals++)
        return;
    CHECK_OK(shm_barrier_arrive(&s.b.thread, &b_barrier, &index, &acts, SHM_FOREVER));
    CHECK(acts);
    CHECK_OK(shm_barrier_open(&s.b.thread, &b_barrier));
}

static const struct shm_sync_config two_parties = {.kind = SHM_SYNC_BARRIER, .max = 2};

static void a_time_that_is_up_as_the_last_one_comes_breaks_no_later_round(void)
{
    uint32_t index;
    uint64_t acts;
    begin();
    make(&a_barrier, &two_parties);
    open_for(&s.b, &b_barrier, &a_barrier);
    shm_kill_point_hook = arrive_just_then;
    CHECK_OK(shm_kill_point_arm("sync_change", 1, 9));
    CHECK_OK(shm_barrier_arrive(&s.a.thread, &a_barrier, &index, &acts, soon(20)));
    shm_kill_point_disarm();
    shm_kill_point_hook = NULL;
    CHECK(arrivals && !shm_barrier_is_broken(&a_barrier));
    CHECK_EQ(shm_barrier_arrive(&s.a.thread, &a_barrier, &index, &acts, soon(20)), SHM_TIMEOUT);
    CHECK(shm_barrier_is_broken(&a_barrier));
    shm_sync_release(&s.b.thread, &b_barrier);
    shm_sync_release(&s.a.thread, &a_barrier);
    end();
}

static void *wait_at_the_barrier(void *argument)
{
    uint32_t index;
    uint64_t acts;
    (void)argument;
    CHECK_EQ(shm_barrier_arrive(&s.b.thread, &b_barrier, &index, &acts, soon(10000)), SHM_ABORTED);
    return NULL;
}

static void a_thread_that_ends_while_it_acts_breaks_the_barrier(void)
{
    struct shm_thread other;
    pthread_t thread;
    uint32_t index;
    uint64_t acts;
    begin();
    make(&a_barrier, &two_parties);
    open_for(&s.b, &b_barrier, &a_barrier);
    CHECK_OK(pthread_create(&thread, NULL, wait_at_the_barrier, NULL));
    while (shm_barrier_count(&a_barrier) == 0)
        usleep(1000);
    CHECK_OK(shm_thread_open(&other, &s.a.member));
    CHECK_OK(shm_barrier_arrive(&other, &a_barrier, &index, &acts, SHM_FOREVER));
    CHECK(acts);
    shm_thread_close(&other);
    pthread_join(thread, NULL);
    CHECK(shm_barrier_is_broken(&a_barrier));
    shm_sync_release(&s.b.thread, &b_barrier);
    shm_sync_release(&s.a.thread, &a_barrier);
    end();
}

static struct shm_sync_view a_pipe, b_pipe;
static _Atomic int over;

static void *hand_over(void *argument)
{
    uint32_t entry, next;
    (void)argument;
    CHECK_OK(shm_pipe_join(&s.b.thread, &b_pipe, SHM_ENTRY_WRITER, &entry));
    atomic_store(&over, 1);
    while (atomic_load(&over) == 1) {
        CHECK_OK(shm_pipe_join(&s.b.thread, &b_pipe, SHM_ENTRY_WRITER, &next));
        CHECK_OK(shm_pipe_leave(&s.b.thread, &b_pipe, entry));
        entry = next;
    }
    CHECK_OK(shm_pipe_leave(&s.b.thread, &b_pipe, entry));
    return NULL;
}

static struct shm_thread *acting;

static void open_meanwhile(enum shm_kill_point point)
{
    (void)point;
    shm_kill_point_hook = NULL;
    shm_kill_point_disarm();
    CHECK_OK(shm_barrier_open(acting, &a_barrier));
}

static void *pass_the_barrier(void *argument)
{
    uint32_t index;
    uint64_t acts;
    (void)argument;
    CHECK_OK(shm_barrier_arrive(&s.b.thread, &b_barrier, &index, &acts, soon(10000)));
    return NULL;
}

static void a_reset_that_comes_too_late_breaks_nothing(void)
{
    pthread_t thread;
    uint32_t index;
    uint64_t acts;
    begin();
    make(&a_barrier, &two_parties);
    open_for(&s.b, &b_barrier, &a_barrier);
    CHECK_OK(pthread_create(&thread, NULL, pass_the_barrier, NULL));
    while (shm_barrier_count(&a_barrier) == 0)
        usleep(1000);
    acting = &s.a.thread;
    CHECK_OK(shm_barrier_arrive(acting, &a_barrier, &index, &acts, SHM_FOREVER));
    CHECK(acts);
    shm_kill_point_hook = open_meanwhile;
    CHECK_OK(shm_kill_point_arm("sync_change", 1, 0));
    shm_barrier_reset(&s.a.thread, &a_barrier);
    pthread_join(thread, NULL);
    CHECK(!shm_barrier_is_broken(&a_barrier));
    shm_sync_release(&s.b.thread, &b_barrier);
    shm_sync_release(&s.a.thread, &a_barrier);
    end();
}

static void a_stream_has_no_end_while_writers_hand_over(void)
{
    const struct shm_sync_config pipe = {.kind = SHM_SYNC_PIPE, .entries = 1024, .bytes = 4096};
    pthread_t thread;
    uint32_t entry;
    unsigned char byte;
    uint64_t done;
    begin();
    make(&a_pipe, &pipe);
    open_for(&s.b, &b_pipe, &a_pipe);
    for (uint32_t i = 0; i < 1000; i++) /* between the two ends that take turns: */
        CHECK_OK(shm_pipe_join(&s.a.thread, &a_pipe, SHM_ENTRY_READER, &entry));
    CHECK_OK(shm_pipe_leave(&s.a.thread, &a_pipe, 0));
    CHECK_OK(pthread_create(&thread, NULL, hand_over, NULL));
    while (atomic_load(&over) == 0)
        usleep(100);
    uint64_t until = soon(500);
    while (shm_clock_ns() < until) {
        CHECK(!shm_sync_end_has_gone(&a_pipe, SHM_ENTRY_WRITER));
        CHECK_EQ(shm_pipe_read(&s.a.thread, &a_pipe, &byte, 1, &done, 0), SHM_EMPTY);
    }
    atomic_store(&over, 2);
    CHECK_OK(shm_pipe_read(&s.a.thread, &a_pipe, &byte, 1, &done, soon(10000)));
    CHECK_EQ(done, 0);
    pthread_join(thread, NULL);
    shm_sync_release(&s.b.thread, &b_pipe);
    shm_sync_release(&s.a.thread, &a_pipe);
    end();
}

static void what_is_given_back_is_as_it_was_taken(void)
{
    const struct shm_sync_config kinds[] = {{.kind = SHM_SYNC_MUTEX, .flags = SHM_SYNC_RECURSIVE},
                                            {.kind = SHM_SYNC_MUTEX, .flags = SHM_SYNC_ANYONE},
                                            {.kind = SHM_SYNC_SEMAPHORE, .max = 1, .initial = 1},
                                            {.kind = SHM_SYNC_EVENT, .flags = SHM_SYNC_AUTO, .initial = 1}};
    struct shm_sync_view ours, theirs;
    bool abandoned;
    begin();
    for (int i = 0; i < 4; i++) {
        make(&ours, &kinds[i]);
        open_for(&s.b, &theirs, &ours);
        for (int was = 0; was < (i < 2 ? 2 : 1); was++) { /* abandoned */
            CHECK_OK(shm_sync_wait(&s.a.thread, &ours, &abandoned, 0));
            shm_sync_give_back(&s.a.thread, &ours, was);
            CHECK_OK(shm_sync_wait(&s.b.thread, &theirs, &abandoned, 0));
            CHECK_EQ(abandoned, was);
            shm_sync_give_back(&s.a.thread, &ours, was); /* of a lock that another has meanwhile nothing */
            CHECK_EQ(shm_sync_wait(&s.a.thread, &ours, &abandoned, 0), i < 2 ? SHM_EMPTY : 0);
            shm_sync_give_back(&s.b.thread, &theirs, false);
        }
        shm_sync_release(&s.b.thread, &theirs);
        shm_sync_release(&s.a.thread, &ours);
    }
    end();
}

static struct shm_sync_view a_semaphore, b_semaphore;
static _Atomic int stopped;

static void stop(struct shm_thread *self, uint32_t peer)
{
    (void)self, (void)peer;
    if (atomic_load(&stopped) == 0)
        atomic_store(&stopped, 1);
    while (atomic_load(&stopped) == 1)
        usleep(1000);
}

static void release_one(struct shm_thread *self, uint32_t peer)
{
    uint32_t previous;
    (void)peer;
    CHECK_OK(shm_semaphore_release(self, &a_semaphore, 1, &previous));
}

static void *be_first(void *argument)
{
    (void)argument;
    CHECK_OK(take(&s.b, &b_semaphore, soon(20000)));
    return NULL;
}

static void a_stopped_first_is_passed_over_though_the_count_moves(void)
{
    const struct shm_sync_config semaphore = {.kind = SHM_SYNC_SEMAPHORE, .max = 1000};
    pthread_t thread;
    begin();
    make(&a_semaphore, &semaphore);
    open_for(&s.b, &b_semaphore, &a_semaphore);
    s.b.member.slice = stop;
    CHECK_OK(pthread_create(&thread, NULL, be_first, NULL));
    while (atomic_load(&stopped) == 0)
        usleep(1000);
    s.a.member.slice = release_one;
    CHECK_OK(take(&s.a, &a_semaphore, soon(4000)));
    atomic_store(&stopped, 2);
    pthread_join(thread, NULL);
    shm_sync_release(&s.b.thread, &b_semaphore);
    shm_sync_release(&s.a.thread, &a_semaphore);
    end();
}

static void wait_until_stopped(void)
{
    while (atomic_load(&stopped) != 1)
        usleep(1000);
}

static void a_first_who_looks_in_between_is_not_passed_over(void)
{
    const struct shm_sync_config semaphore = {.kind = SHM_SYNC_SEMAPHORE, .max = 1000};
    struct shm_first first = {0};
    uint32_t previous;
    pthread_t thread;
    begin();
    make(&a_semaphore, &semaphore);
    open_for(&s.b, &b_semaphore, &a_semaphore);
    struct shm_waitable line = shm_sync_line(&a_semaphore);
    atomic_store(&stopped, 0);
    s.b.member.slice = stop;
    CHECK_OK(pthread_create(&thread, NULL, be_first, NULL));
    wait_until_stopped();
    CHECK(!shm_set_first_is_stopped(&s.a.thread, &line, &first)); /* woken now */
    atomic_store(&stopped, 0);
    wait_until_stopped(); /* he has looked, and slept again */
    shm_wake_set(&s.a.thread, &line, 0);
    CHECK(!shm_set_first_is_stopped(&s.a.thread, &line, &first));
    CHECK(shm_set_first_is_stopped(&s.a.thread, &line, &first));
    CHECK_OK(shm_semaphore_release(&s.a.thread, &a_semaphore, 1, &previous));
    atomic_store(&stopped, 2);
    pthread_join(thread, NULL);
    shm_sync_release(&s.b.thread, &b_semaphore);
    shm_sync_release(&s.a.thread, &a_semaphore);
    end();
}

static void *read_first(void *argument)
{
    unsigned char byte;
    uint64_t done;
    uint32_t entry;
    (void)argument;
    CHECK_OK(shm_pipe_join(&s.b.thread, &b_pipe, SHM_ENTRY_READER, &entry));
    CHECK_OK(shm_pipe_read(&s.b.thread, &b_pipe, &byte, 1, &done, soon(20000)));
    return NULL;
}

static void a_stopped_reader_is_passed_over(void)
{
    const struct shm_sync_config pipe = {.kind = SHM_SYNC_PIPE, .entries = 8, .bytes = 4096};
    pthread_t thread;
    uint32_t entry;
    unsigned char bytes[2] = {1, 2};
    uint64_t done;
    begin();
    make(&a_pipe, &pipe);
    open_for(&s.b, &b_pipe, &a_pipe);
    CHECK_OK(shm_pipe_join(&s.a.thread, &a_pipe, SHM_ENTRY_WRITER, &entry));
    CHECK_OK(shm_pipe_join(&s.a.thread, &a_pipe, SHM_ENTRY_READER, &entry));
    atomic_store(&stopped, 0);
    s.b.member.slice = stop;
    CHECK_OK(pthread_create(&thread, NULL, read_first, NULL));
    while (atomic_load(&stopped) == 0)
        usleep(1000);
    CHECK_OK(shm_pipe_write(&s.a.thread, &a_pipe, bytes, 1, &done, 0));
    CHECK_OK(shm_pipe_read(&s.a.thread, &a_pipe, bytes, 1, &done, soon(4000)));
    atomic_store(&stopped, 2);
    done = 0;
    CHECK_OK(shm_pipe_write(&s.a.thread, &a_pipe, bytes, 1, &done, 0));
    pthread_join(thread, NULL);
    shm_sync_release(&s.b.thread, &b_pipe);
    shm_sync_release(&s.a.thread, &a_pipe);
    end();
}

int main(void)
{
    RUN(any_takes_the_first_that_is_there_and_no_other);
    RUN(a_mutex_counts_and_only_its_thread_unlocks_it);
    RUN(a_thread_that_ends_abandons_its_mutexes);
    RUN(philosophers_eat_with_both_forks_and_none_starves);
    RUN(nobody_sees_anything_missing_that_a_wait_for_all_gives_back);
    RUN(readers_share_and_a_writer_is_alone);
    RUN(files_and_moments_wake_too);
    RUN(who_looks_for_room_in_a_pipe_is_woken_by_readers_and_by_their_end);
    RUN(who_looks_for_room_in_a_mailbox_is_woken_by_receivers_and_when_the_line_is_shorter);
    RUN(who_looks_for_room_is_woken_when_one_in_the_line_has_died);
    RUN(a_notice_reaches_one_whose_handlers_run);
    RUN(a_time_that_is_up_as_the_last_one_comes_breaks_no_later_round);
    RUN(a_thread_that_ends_while_it_acts_breaks_the_barrier);
    RUN(a_reset_that_comes_too_late_breaks_nothing);
    RUN(a_stream_has_no_end_while_writers_hand_over);
    RUN(what_is_given_back_is_as_it_was_taken);
    RUN(a_stopped_first_is_passed_over_though_the_count_moves);
    RUN(a_first_who_looks_in_between_is_not_passed_over);
    RUN(a_stopped_reader_is_passed_over);
    return 0;
}
