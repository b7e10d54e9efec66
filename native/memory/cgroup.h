/* How much memory the control group of this process has left.
 *
 * Pages of shared memory are charged to the group of who makes them. A full /dev/shm is an error, a full group is the
 * kernel's killer: so a large growth looks here first.
 */
#ifndef SHM_CGROUP_H
#define SHM_CGROUP_H

#include <stdint.h>

/* Bytes until the tightest limit of this process's group and of those above it, the page cache of files, which the
 * kernel gives up first, counted as free; UINT64_MAX: there is no limit that can be seen. Both versions of cgroups.
 * `root` is put before the paths that are read, for tests; NULL: none. Reads a few files, some 30 us. */
uint64_t shm_cgroup_free(const char *root);

#endif
