#include "base/killpoint.h"

#ifdef SHM_KILL_POINTS
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *const shm_kill_point_names[SHM_KILL_POINT_COUNT] = {
#define SHM_KILL_POINT_NAME(name) #name,
    SHM_KILL_POINT_TABLE(SHM_KILL_POINT_NAME)
#undef SHM_KILL_POINT_NAME
};

void (*shm_kill_point_hook)(enum shm_kill_point);

static _Atomic unsigned long passed[SHM_KILL_POINT_COUNT];
static _Atomic int armed = -1;
static _Atomic int fatal_signal;
static _Atomic long remaining;

static int point_of(const char *name)
{
    for (int i = 0; i < SHM_KILL_POINT_COUNT; i++)
        if (strcmp(name, shm_kill_point_names[i]) == 0)
            return i;
    return -1;
}

int shm_kill_point_arm(const char *name, unsigned after, int signal)
{
    int point = point_of(name);
    if (point < 0 || after == 0)
        return -1;
    atomic_store(&armed, -1);
    atomic_store(&remaining, (long)after);
    atomic_store(&fatal_signal, signal);
    atomic_store(&armed, point);
    return 0;
}

void shm_kill_point_disarm(void)
{
    atomic_store(&armed, -1);
    for (int i = 0; i < SHM_KILL_POINT_COUNT; i++)
        atomic_store(&passed[i], 0);
}

unsigned long shm_kill_point_passed(const char *name)
{
    int point = point_of(name);
    return point < 0 ? 0 : atomic_load(&passed[point]);
}

void shm_kill_point_pass(enum shm_kill_point point)
{
    atomic_fetch_add_explicit(&passed[point], 1, memory_order_relaxed);
    if (atomic_load_explicit(&armed, memory_order_relaxed) != (int)point ||
        atomic_fetch_sub(&remaining, 1) != 1)
        return;
    atomic_store(&armed, -1);
    if (shm_kill_point_hook)
        shm_kill_point_hook(point);
    else
        /* To this thread: of a signal to the process another may learn first, and this one runs on for a while. */
        syscall(SYS_tgkill, (pid_t)syscall(SYS_getpid), (pid_t)syscall(SYS_gettid),
                atomic_load(&fatal_signal));
}
#endif
