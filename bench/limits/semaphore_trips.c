/* Round trips between two pinned processes over two bare semaphores, each really asleep when it is posted. */
#define _GNU_SOURCE
#include <errno.h>
#include <semaphore.h>

#include "trips.h"

struct semaphores {
    _Alignas(128) sem_t to_far;
    _Alignas(128) sem_t to_near;
};

static void prepare(void *shared)
{
    struct semaphores *semaphores = shared;
    if (sem_init(&semaphores->to_far, 1, 0) || sem_init(&semaphores->to_near, 1, 0))
        die("sem_init");
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore))
        if (errno != EINTR)
            die("sem_wait");
}

static void near_side(void *shared, const struct plan *plan, long trips, int64_t *samples)
{
    struct semaphores *semaphores = shared;
    for (long trip = 0; trip < trips; trip++) {
        wait_gap(plan);
        int64_t started = now_ns();
        sem_post(&semaphores->to_far);
        wait_for(&semaphores->to_near);
        samples[trip] = now_ns() - started;
    }
}

static void far_side(void *shared, long trips)
{
    struct semaphores *semaphores = shared;
    for (long trip = 0; trip < trips; trip++) {
        wait_for(&semaphores->to_far);
        sem_post(&semaphores->to_near);
    }
}

int main(int count, char **words)
{
    return run_trips(count, words, sizeof(struct semaphores), prepare, near_side, far_side);
}
