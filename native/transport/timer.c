#include "transport/timer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/status.h"

/* Whoever could not be told is told again after this long. */
#define RETRY_NS UINT64_C(10000000)
/* Entries before those of cancelled timers are looked for. */
#define SWEEP_MIN 64

struct entry {
    uint64_t due_ns, period_ns, number;
};

struct shm_timers {
    struct shm_member *member;
    struct shm_thread self;
    pthread_t thread;
    pthread_mutex_t lock; /* of the fields below; never held while a cell fires */
    pthread_cond_t changed;
    bool stop;
    struct entry *heap; /* the first is due first */
    uint32_t count, room, sweep_at;
};

/* ---- the heap ---------------------------------------------------------------------------------------------- */

static void swap(struct entry *a, struct entry *b)
{
    struct entry kept = *a;
    *a = *b;
    *b = kept;
}

static void rise(struct entry *heap, uint32_t i)
{
    for (; i && heap[i].due_ns < heap[(i - 1) / 2].due_ns; i = (i - 1) / 2)
        swap(&heap[i], &heap[(i - 1) / 2]);
}

static void sink(struct entry *heap, uint32_t count, uint32_t i)
{
    for (;;) {
        uint32_t least = i;
        for (uint32_t child = 2 * i + 1; child < count && child <= 2 * i + 2; child++)
            if (heap[child].due_ns < heap[least].due_ns)
                least = child;
        if (least == i)
            return;
        swap(&heap[i], &heap[least]);
        i = least;
    }
}

static struct entry pop(struct shm_timers *timers)
{
    struct entry first = timers->heap[0];
    timers->heap[0] = timers->heap[--timers->count];
    sink(timers->heap, timers->count, 0);
    return first;
}

static int push(struct shm_timers *timers, struct entry entry)
{
    if (timers->count == timers->room) {
        uint32_t room = timers->room ? timers->room * 2 : 16;
        struct entry *heap = realloc(timers->heap, room * sizeof *heap);
        if (!heap)
            return SHM_NO_MEMORY;
        timers->heap = heap;
        timers->room = room;
    }
    timers->heap[timers->count] = entry;
    rise(timers->heap, timers->count++);
    return 0;
}

/* Timers that were cancelled long before they are due would pile up. */
static void sweep(struct shm_timers *timers)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < timers->count; i++)
        if (shm_notice_is_set(timers->member, timers->heap[i].number))
            timers->heap[kept++] = timers->heap[i];
    timers->count = kept;
    for (uint32_t i = kept / 2; i-- > 0;)
        sink(timers->heap, kept, i);
    timers->sweep_at = kept * 2 > SWEEP_MIN ? kept * 2 : SWEEP_MIN;
}

/* ---- the thread -------------------------------------------------------------------------------------------- */

/* The next time this one is to fire, if it is. */
static bool goes_on(struct entry *entry, int status)
{
    uint64_t now = shm_clock_ns();
    if (status == SHM_NOT_FOUND)
        return false;
    if (status == SHM_BUSY) {
        entry->due_ns = now + RETRY_NS;
        return true;
    }
    if (entry->period_ns == 0)
        return false;
    uint64_t late = now > entry->due_ns ? now - entry->due_ns : 0;
    entry->due_ns += (late / entry->period_ns + 1) * entry->period_ns;
    return true;
}

static void *run(void *argument)
{
    struct shm_timers *timers = argument;
    pthread_mutex_lock(&timers->lock);
    while (!timers->stop) {
        if (timers->count == 0) {
            pthread_cond_wait(&timers->changed, &timers->lock);
            continue;
        }
        uint64_t due = timers->heap[0].due_ns;
        if (shm_clock_ns() < due) {
            struct timespec until = shm_clock_timespec(due);
            pthread_cond_timedwait(&timers->changed, &timers->lock, &until);
            continue;
        }
        struct entry entry = pop(timers); /* leaves room for its return */
        pthread_mutex_unlock(&timers->lock);
        bool again = goes_on(&entry, shm_notice_tick(&timers->self, entry.number, entry.due_ns));
        pthread_mutex_lock(&timers->lock);
        if (again)
            push(timers, entry);
    }
    pthread_mutex_unlock(&timers->lock);
    return NULL;
}

int shm_timer_schedule(struct shm_timers *timers, uint64_t number, uint64_t due_ns, uint64_t period_ns)
{
    pthread_mutex_lock(&timers->lock);
    if (timers->count >= timers->sweep_at)
        sweep(timers);
    int status = push(timers, (struct entry){due_ns, period_ns, number});
    pthread_cond_signal(&timers->changed);
    pthread_mutex_unlock(&timers->lock);
    return status;
}

struct shm_timers *shm_timers_start(struct shm_member *member, int *status)
{
    struct shm_timers *timers = calloc(1, sizeof *timers);
    *status = SHM_NO_MEMORY;
    if (!timers)
        return NULL;
    timers->member = member;
    timers->sweep_at = SWEEP_MIN;
    *status = shm_thread_open(&timers->self, member);
    if (*status) {
        free(timers);
        return NULL;
    }
    timers->self.may_spin = false;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&timers->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&timers->lock, NULL);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&timers->thread, NULL, run, timers);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0)
        return timers;
    *status = SHM_SYSTEM;
    shm_thread_close(&timers->self);
    free(timers);
    return NULL;
}

void shm_timers_stop(struct shm_timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    timers->stop = true;
    pthread_cond_signal(&timers->changed);
    pthread_mutex_unlock(&timers->lock);
    pthread_join(timers->thread, NULL);
    shm_thread_close(&timers->self);
    pthread_cond_destroy(&timers->changed);
    pthread_mutex_destroy(&timers->lock);
    free(timers->heap);
    free(timers);
}
