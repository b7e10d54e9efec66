/* Vigils: the kernel says in shared memory that a native thread ends.
 *
 * The native thread of a member keeps a word in the member's record that names it, as a robust mutex names its holder.
 * When a task ends, whatever ends it, the kernel changes such words first of all and wakes who waits for them, long before
 * the memory of the process is given back and its pidfd says so.
 *
 * That proves nothing about the other threads of the process: it is a hint to look, and who looks asks shm_process_ending.
 * A hint that does not come, from an older kernel or of a member too many, costs time only.
 */
#ifndef SHM_VIGIL_H
#define SHM_VIGIL_H

#include <linux/futex.h>

#include "memory/segment.h"

/* Of the thread that keeps it; stays where it is. */
struct shm_vigil {
    struct robust_list_head head;
    struct robust_list entry;
};

/* The calling thread keeps a vigil in `word` of shared memory until it ends. It has no robust mutexes. */
void shm_vigil_begin(struct shm_vigil *vigil, _Atomic uint32_t *word);
/* It ends it in order, and nobody is told. */
void shm_vigil_end(struct shm_vigil *vigil, _Atomic uint32_t *word);

/* A thread that waits for the vigils of others. Futexes and descriptors cannot be waited for at once. */
struct shm_listener;

enum { SHM_LISTENER_ROOM = 126 };

/* Start it; it writes a byte to `poke` whenever there is something to take. NULL: no memory, or no thread. Its thread has
 * the signal mask and the descriptor table of the caller. */
struct shm_listener *shm_listener_start(struct shm_segment *segment, int poke);
/* From now on it listens to these members, the first SHM_LISTENER_ROOM of them. */
void shm_listener_hear(struct shm_listener *listener, const shm_member_id *members, uint32_t count);
/* Members whose vigils have ended, each told once at least; how many, SHM_LISTENER_ROOM at most. By the thread that calls
 * shm_listener_hear. */
uint32_t shm_listener_take(struct shm_listener *listener, shm_member_id *members);
void shm_listener_stop(struct shm_listener *listener);

#endif
