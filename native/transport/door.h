/* The door of a process: an abstract socket at which another process of the same user asks for its stacks.
 *
 * The kernel chooses the name, so nobody can sit at it first; the member's record says which. It is there as long as
 * the process, whatever ends it, and needs no permission to trace.
 */
#ifndef SHM_DOOR_H
#define SHM_DOOR_H

#include <stdint.h>

/* A listening socket, -1: there can be none here. *number is its name, five digits in base 16. */
int shm_door_open(uint32_t *number);
/* The next visitor's connection; -1: nobody, or somebody of another user, who is sent away. */
int shm_door_accept(int door);

#endif
