/* Reap, and the native thread of each process that keeps watch. */
#ifndef SHM_KEEPER_H
#define SHM_KEEPER_H

#include "transport/cell.h"
#include "transport/names.h"
#include "transport/notice.h"

/* Give a new member what the transport floor does for it; before its first thread waits. */
void shm_member_attach_transport(struct shm_member *member);

/* Undo or finish everything the member in `slot` left, if it is dead or leaving; idempotent, and safe beside other
 * reapers. Returns true when the slot is free afterwards. */
bool shm_reap(struct shm_thread *self, uint32_t slot);
/* The member whose word is `word` (LIVE) has a process that runs no more and will end with `wait_status`, see ending.h:
 * reap it but for its leases, into whose blocks the kernel may still write for it, and its slot, whose life lock it still
 * has. shm_reap does the rest when the process has ended. False: others are at it, or it is another's slot by now. */
bool shm_reap_ending(struct shm_thread *self, uint32_t slot, shm_word word, uint32_t wait_status);
/* What is known about the end of `id`, as shm_member_cause; of one that is being reaped his reaper may still be waiting
 * for it, and so do we, for up to half a second. */
uint64_t shm_reap_cause(struct shm_segment *segment, shm_member_id id);
/* Reap whoever is dead; the number. */
uint32_t shm_reap_all(struct shm_thread *self);
/* A dead place leaves a set; whether the baton must still go on is the caller's affair. */
void shm_reap_leave(struct shm_thread *self, uint32_t index, shm_word owner,
                    const struct shm_waitable *waitable);
/* Leave in order: as if dead, but by one's own hand. No thread of the member may act any more, but `self`. */
void shm_leave(struct shm_thread *self);

/* The native thread of a process: kills the process when one of `lifelines` (pidfds, owned afterwards) ends, keeps
 * the life lock, and is the keeper when nobody else is: polls the members' pidfds and reaps. All signals are
 * blocked in it; it never touches Python. NULL: `status` says why. */
struct shm_keeper;
struct shm_keeper *shm_keeper_start(struct shm_member *member, const int *lifelines, uint32_t count,
                                    int *status);
/* Look at the members now: one was started. Async-signal-safe. */
void shm_keeper_poke(struct shm_keeper *keeper);
/* Open the process's door, and have each visitor's connection, owned, handed to `visit` by the native thread, which
 * it must not hold up. Without a door nobody comes. */
void shm_keeper_open_door(struct shm_keeper *keeper, void (*visit)(int connection));
void shm_keeper_stop(struct shm_keeper *keeper);
/* In a forked child: the thread is not here any more. */
void shm_keeper_forked(struct shm_keeper *keeper);

#endif
