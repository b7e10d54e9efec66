#define _GNU_SOURCE
#include "base/futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* As in linux/futex.h since 5.16. */
struct sleeper {
    uint64_t value, address;
    uint32_t flags, spare;
};

enum { FUTEX_SIZE_32 = 2 };

void shm_futex_wake(const _Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

bool shm_futex_sleep(const struct shm_futex *futexes, uint32_t count, uint64_t ns)
{
    struct sleeper sleepers[SHM_FUTEX_MAX];
    struct timespec until = shm_clock_timespec(shm_clock_ns() + ns);
    for (uint32_t i = 0; i < count; i++)
        sleepers[i] =
            (struct sleeper){futexes[i].seen, (uint64_t)(uintptr_t)futexes[i].word, FUTEX_SIZE_32, 0};
    return syscall(SYS_futex_waitv, sleepers, count, 0, &until, CLOCK_MONOTONIC) >= 0 || errno == EAGAIN ||
           errno == ETIMEDOUT || errno == EINTR;
}

/* ---- wills ------------------------------------------------------------------------------------------------- */

static _Thread_local struct {
    struct robust_list_head *list; /* NULL: none is registered */
    bool asked;
} mine;

static struct robust_list_head *list_of_thread(void)
{
    size_t len_bytes = 0;
    if (!mine.asked) {
        mine.asked = true;
        if (syscall(SYS_get_robust_list, 0, &mine.list, &len_bytes) || len_bytes != sizeof *mine.list)
            mine.list = NULL;
    }
    return mine.list;
}

/* The kernel reads it when the thread ends: nothing but the order of this thread's own steps matters. */
static void set_pending(struct robust_list_head *list, struct robust_list *pending)
{
    atomic_signal_fence(memory_order_seq_cst);
    *(struct robust_list *volatile *)&list->list_op_pending = pending;
    atomic_signal_fence(memory_order_seq_cst);
}

uintptr_t shm_will_make(const _Atomic uint32_t *word)
{
    struct robust_list_head *list = list_of_thread();
    if (!list)
        return 0;
    uintptr_t before = (uintptr_t)list->list_op_pending;
    set_pending(list, (struct robust_list *)((uintptr_t)word - (uintptr_t)list->futex_offset));
    return before;
}

void shm_will_revoke(uintptr_t before)
{
    struct robust_list_head *list = list_of_thread();
    if (list)
        set_pending(list, (struct robust_list *)before);
}
