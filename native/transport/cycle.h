/* Deadlock: calls that wait for each other in a circle, for ever. Loads only. */
#ifndef SHM_CYCLE_H
#define SHM_CYCLE_H

#include "memory/member.h"

/* Is this call, for which the calling thread is parked without a deadline, on a circle of such calls, and is this
 * thread the one that breaks it? Then the members of the circle, this one first; their number, else 0. Circles of
 * more than `room` calls are not found. */
uint32_t shm_cycle_find(struct shm_thread *self, shm_call_id call, shm_member_id *members, uint32_t room);

#endif
