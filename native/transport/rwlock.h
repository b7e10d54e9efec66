/* Read-write locks, conditions and barriers: sync objects that are waited for alone.
 *
 * A read-write lock has one line for readers and writers. A reader claims an entry, then looks whether a writer has come;
 * a writer takes the word, then waits until no entry is a reader's: so one of the two sees the other (R1). An entry
 * names its member, and is freed when that dies.
 */
#ifndef SHM_RWLOCK_H
#define SHM_RWLOCK_H

#include "transport/sync.h"

/* 0, EMPTY (deadline 0), TIMEOUT, CLOSED, INTERRUPTED. *entry: to be given back with shm_rwlock_leave. */
int shm_rwlock_read(struct shm_thread *self, struct shm_sync_view *view, uint32_t *entry,
                    uint64_t deadline_ns);
int shm_rwlock_write(struct shm_thread *self, struct shm_sync_view *view, uint64_t deadline_ns);
/* A reader leaves: 0, or REFUSED: the entry is not the caller's. */
int shm_rwlock_leave(struct shm_thread *self, struct shm_sync_view *view, uint32_t entry);
/* The writer leaves: 0, or REFUSED. */
int shm_rwlock_unlock(struct shm_thread *self, struct shm_sync_view *view);
uint32_t shm_rwlock_readers(const struct shm_sync_view *view);

/* Wait to be notified, with the mutex, which the caller holds, unlocked as soon as it stands in line: 0, TIMEOUT, CLOSED,
 * INTERRUPTED; REFUSED: it does not hold it. Whatever is returned but REFUSED, the mutex is unlocked; *depth times. */
int shm_condition_wait(struct shm_thread *self, struct shm_sync_view *view, struct shm_sync_view *mutex,
                       uint32_t *depth, uint64_t deadline_ns);
/* Notify the n that have waited longest. */
void shm_condition_notify(struct shm_thread *self, struct shm_sync_view *view, uint32_t n);

/* Arrive at a barrier: 0, and *index is how many have come before, *acts: the caller is the last and calls
 * shm_barrier_open when it has done what is to be done; else it waits until then. ABORTED: the barrier is broken, or was
 * while the caller waited: by a reset, by an abort, by one whose time was up, or by the death of one who waited or
 * acted. TIMEOUT: the caller's time was up, and it has broken the barrier. CLOSED, INTERRUPTED (broken too). */
int shm_barrier_arrive(struct shm_thread *self, struct shm_sync_view *view, uint32_t *index, uint64_t *acts,
                       uint64_t deadline_ns);
/* 0, or ABORTED: it was broken meanwhile. */
int shm_barrier_open(struct shm_thread *self, struct shm_sync_view *view);
void shm_barrier_break(struct shm_thread *self, struct shm_sync_view *view);
/* The same, while the round is on in which a thread of this member `acts`. */
void shm_barrier_break_mine(struct shm_thread *self, struct shm_sync_view *view, uint64_t acts);
/* As on the first day; who waits finds it broken. */
void shm_barrier_reset(struct shm_thread *self, struct shm_sync_view *view);
uint32_t shm_barrier_count(const struct shm_sync_view *view);
bool shm_barrier_is_broken(const struct shm_sync_view *view);

#endif
