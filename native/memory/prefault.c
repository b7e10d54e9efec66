#define _GNU_SOURCE
#include "memory/prefault.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/status.h"
#include "memory/layout.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define NODE_BITS 1024
#define PREFERRED 1 /* MPOL_PREFERRED and MPOL_MF_MOVE of linux/mempolicy.h, which libc does not have */
#define MOVE 2
#define COLLAPSE_TRIES 8
#define HUGE_BYTES (UINT64_C(2) << 20)
#define STEP_BYTES (UINT64_C(16) << 20) /* a kill, or a signal, is not kept waiting for the whole */

static int bind_to(void *at, uint64_t len_bytes, int node)
{
    unsigned long mask[NODE_BITS / (8 * sizeof(unsigned long))] = {0};
    if (node >= NODE_BITS)
        return SHM_INVALID;
    mask[(unsigned)node / (8 * sizeof *mask)] = 1UL << (unsigned)node % (8 * sizeof *mask);
    if (syscall(SYS_mbind, at, len_bytes, PREFERRED, mask, NODE_BITS + 1, MOVE) == 0)
        return 0;
    if (errno == ENOSYS || errno == EPERM)
        return 0; /* a kernel, or a filter, without policies: it was a hint */
    return errno == EINVAL ? SHM_INVALID : errno == ENOMEM ? SHM_NO_MEMORY : SHM_SYSTEM;
}

/* The same page for page, where the kernel (before Linux 5.14) or a filter does not do it. */
static void touch(unsigned char *at, uint64_t len_bytes)
{
    for (uint64_t i = 0; i < len_bytes; i += SHM_PAGE_BYTES)
        atomic_fetch_or((_Atomic unsigned char *)at + i, 0);
}

static int populate(unsigned char *at, uint64_t len_bytes)
{
    while (madvise(at, len_bytes, MADV_POPULATE_WRITE) != 0) {
        if (errno == EINVAL || errno == EPERM || errno == ENOSYS) {
            touch(at, len_bytes);
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN)
            return errno == ENOMEM || errno == EFAULT ? SHM_NO_MEMORY : SHM_SYSTEM;
    }
    return 0;
}

/* Pages that were made a moment ago may still be on their way to the kernel's lists: it says EAGAIN, and is asked again. */
static void collapse(unsigned char *at, uint64_t len_bytes)
{
    for (int tries = 0; madvise(at, len_bytes, MADV_COLLAPSE) != 0; tries++)
        if ((errno != EAGAIN && errno != EINTR && errno != EBUSY) || tries == COLLAPSE_TRIES) {
            madvise(at, len_bytes, MADV_HUGEPAGE); /* what that does depends on the mount */
            return;
        }
}

int shm_prefault(void *at, uint64_t len_bytes, bool huge, int node)
{
    len_bytes = shm_round_up(len_bytes, SHM_PAGE_BYTES);
    int status = node >= 0 ? bind_to(at, len_bytes, node) : 0;
    for (uint64_t done = 0; !status && done < len_bytes; done += STEP_BYTES) {
        unsigned char *from = (unsigned char *)at + done;
        uint64_t bytes = len_bytes - done < STEP_BYTES ? len_bytes - done : STEP_BYTES;
        if (huge && bytes >= HUGE_BYTES)
            collapse(from, bytes);
        status = populate(from, bytes);
    }
    return status;
}
