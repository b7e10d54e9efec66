/* Timers of one process: a native thread, started with the first, fires their cells (notice.h) when they are due, also
 * while the interpreter is busy. Who may act on them holds no lock of Python's. */
#ifndef SHM_TIMER_H
#define SHM_TIMER_H

#include "transport/notice.h"

struct shm_timers;

/* Start the thread for this member: NULL with *status LIMIT, NO_MEMORY or SYSTEM. */
struct shm_timers *shm_timers_start(struct shm_member *member, int *status);
/* End the thread, before the member leaves. Cells that are armed go with the member. */
void shm_timers_stop(struct shm_timers *timers);
/* Fire the cell `number` (of shm_notice_set) at due_ns, and then each period_ns, 0: once. Periods that are late are one
 * tick. 0 or NO_MEMORY. */
int shm_timer_schedule(struct shm_timers *timers, uint64_t number, uint64_t due_ns, uint64_t period_ns);

#endif
