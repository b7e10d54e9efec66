/* A process that is ending: none of its threads runs an instruction of its program any more, though the kernel has not
 * given its memory and descriptors back yet, which takes 85 ms for each GiB.
 *
 * The kernel marks each task as exiting (PF_EXITING) before it takes it apart, and never lets it return to its program
 * from there. So a process all of whose tasks are exiting has written its last word into shared memory.
 */
#ifndef SHM_ENDING_H
#define SHM_ENDING_H

#include <stdint.h>

enum shm_ending {
    SHM_ENDING_NOT,  /* it has gone, or is another, or the kernel does not tell this process */
    SHM_ENDING_SOON, /* some task of it may still run; perhaps it lives on */
    SHM_ENDING_SURE, /* it runs no more */
};

/* What is known about the process of this pid and start time. SURE: `wait_status` is what waitpid will say. Reads /proc
 * and does not wait; tens of microseconds. */
enum shm_ending shm_process_ending(int pid, uint64_t start_time, uint32_t *wait_status);

#endif
