/* Pages made ready before they are written to. Nothing here touches a word of the protocol. */
#ifndef SHM_PREFAULT_H
#define SHM_PREFAULT_H

#include <stdbool.h>
#include <stdint.h>

/* Have this process map the reserved pages of a block for writing, so that the first write to each costs no fault.
 *
 * `huge`: as pages of 2 MiB where the kernel makes them (MADV_COLLAPSE, Linux 6.1; else the advice is given before).
 * `node`: of the memory that is to hold them, as long as it has room; -1: any. They are moved there.
 * Blocks as long as the kernel takes, for 64 MiB some 10 to 200 ms: call it without a lock.
 *
 * Returns 0, INVALID (there is no such node), NO_MEMORY or SYSTEM. */
int shm_prefault(void *at, uint64_t len_bytes, bool huge, int node);

#endif
