/* Abort: a thread's wait ends because somebody wants the thread back, or because nobody wants any more what it works on.
 *
 *     abort(thread) --sets place.abort, wakes--> its wait ends as ABORTED --it closes its call--> whoever serves that one
 *     is told: its wait ends as ABORTED --it closes its own call--> ... down the chain
 *
 * Only the caller, or its reaper, touches the caller's cell: a third party's CAS could hit the caller's next call. A call
 * is closed in the same word by abort, timeout and death; who closed or marked it then tells the thread that served_by
 * names (C1 of layout.h). That thread compares cell and generation with the call it serves, so what is told late is
 * nothing to it.
 *
 * An abort is told once: whoever takes it goes on as if there had been none. A wait that ends as ABORTED has not taken it,
 * for a caller may find that the reply was first, and then the abort is its next wait's.
 *
 * A1  abort  CAS seq_cst of place.abort, then load of place.word -> wait  exchange seq_cst of word, then load of abort
 * A2  tell   RMW seq_cst of place.told,  then load of place.word -> wait  the same with told, and with the cell's word
 */
#ifndef SHM_ABORT_H
#define SHM_ABORT_H

#include "memory/member.h"

/* What an abort that was taken was. */
enum {
    SHM_ABORT_THREAD = 1, /* of the thread */
    SHM_ABORT_CALL = 2,   /* of the call that it serves: aborted, timed out, or its caller died */
};

/* Names one thread for good: count of its place:44 | place + 1:20. */
typedef uint64_t shm_thread_id;

static inline shm_thread_id shm_thread_id_self(const struct shm_thread *self)
{
    return shm_word_count(atomic_load(&self->at->owner)) << 20 | (self->place + 1);
}

/* May its waits not be ended by an abort? */
static inline bool shm_is_shielded(const struct shm_thread *self)
{
    return self->shield && *self->shield;
}

/* Is this call, which this member took and this thread has not answered, closed, over or marked by an abort? One load. */
static inline bool shm_abort_reached(const struct shm_thread *self, shm_call_id call)
{
    const struct shm_cell *cell = shm_cell_at(self->segment, (uint32_t)(call >> 44));
    shm_word word = atomic_load(&cell->word);
    uint64_t generation = call & SHM_COUNT_MASK;
    if (word == shm_word_make(generation, self->slot, SHM_CELL_PENDING))
        return shm_cell_is_over(cell);
    /* Another thread of this process may be answering it. */
    return shm_word_count(word) != generation || shm_word_owner(word) != self->slot ||
           (shm_word_state(word) != SHM_CELL_FILLING && shm_word_state(word) != SHM_CELL_DONE);
}

/* Is there an abort that this thread has not taken? Loads only: one, and one for each call that it serves. */
static inline bool shm_abort_is_pending(const struct shm_thread *self)
{
    shm_word flag = atomic_load(&self->at->abort);
    if (flag && flag == atomic_load(&self->at->owner))
        return true;
    shm_call_id serves = atomic_load_explicit(&self->serves, memory_order_relaxed),
                took = atomic_load_explicit(&self->took, memory_order_relaxed);
    return (serves && shm_abort_reached(self, serves)) || (took && shm_abort_reached(self, took)) ||
           (self->hears_all && atomic_load(&self->at->told) != self->told_seen);
}

/* This thread answers the call, or another of its process does: its closing is no abort from here on. */
static inline void shm_abort_answered(struct shm_thread *self, shm_call_id call)
{
    if (atomic_load_explicit(&self->serves, memory_order_relaxed) == call)
        atomic_store_explicit(&self->serves, 0, memory_order_relaxed);
    if (atomic_load_explicit(&self->took, memory_order_relaxed) == call)
        atomic_store_explicit(&self->took, 0, memory_order_relaxed);
}

/* A loop has this thread serve a call (0: what is none), whose deadline is `deadline_ns` (0: none). */
static inline void shm_serve_begin(struct shm_thread *self, shm_call_id call, uint64_t deadline_ns)
{
    atomic_store_explicit(&self->serves, call, memory_order_relaxed);
    atomic_store_explicit(&self->took, 0, memory_order_relaxed);
    self->serves_until_ns = deadline_ns ? deadline_ns : SHM_FOREVER;
}

/* This thread has received a message by itself. */
static inline void shm_serve_taken(struct shm_thread *self, shm_call_id call, uint64_t deadline_ns)
{
    if (!call)
        return;
    atomic_store_explicit(&self->took, call, memory_order_relaxed);
    self->took_until_ns = deadline_ns ? deadline_ns : SHM_FOREVER;
}

/* Has a loop begun to have this thread serve a call that is not answered, and has its closing not been told? */
static inline bool shm_is_serving(const struct shm_thread *self)
{
    return atomic_load_explicit(&self->serves, memory_order_relaxed) != 0;
}

/* When the last of those has left for whom this thread works now, as far as it was said; SHM_FOREVER: it was not. */
static inline uint64_t shm_serves_until(const struct shm_thread *self)
{
    uint64_t until = SHM_FOREVER;
    if (atomic_load_explicit(&self->serves, memory_order_relaxed))
        until = self->serves_until_ns;
    if (atomic_load_explicit(&self->took, memory_order_relaxed) && self->took_until_ns < until)
        until = self->took_until_ns;
    return until;
}

/* Take what there is of it: SHM_ABORT_* or 0. */
int shm_abort_take(struct shm_thread *self);
/* A loop has this thread serve nothing: an abort of what it did last, or of its being idle, is over. */
void shm_serve_end(struct shm_thread *self);

/* An abort of this process means this thread, from now on. */
void shm_abort_means_me(struct shm_thread *self);
/* Abort the thread `thread` of the member `id`, 0: the one that an abort of the process means. 0, PEER_DEAD, NOT_FOUND:
 * there is no such thread. One that was aborted already, and has not taken it, is aborted once. */
int shm_abort(struct shm_thread *self, shm_member_id id, shm_thread_id thread);

/* The caller of this call is aborted and waits on: its server should know. */
void shm_abort_mark(struct shm_thread *self, shm_call_id call);
/* The call in this cell was closed or marked: tell whoever serves this generation of it. */
void shm_abort_tell(struct shm_thread *self, uint32_t cell, uint64_t generation);

/* For reap: wake again whom the dead one may have aborted and not woken. */
void shm_abort_reap_flight(struct shm_thread *self, const struct shm_flight *flight);

#endif
