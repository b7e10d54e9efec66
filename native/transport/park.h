/* Waiting and waking (W1 to W4 of docs/explanation/waiting.md).
 *
 * W1  whoever makes a condition true does it by a seq_cst read-modify-write and then loads the waiter set seq_cst;
 *     a waiter enters the set by a seq_cst read-modify-write, then reads the condition again, then parks.
 * W2  a waker does CAS ARMED -> NOTIFIED(me), then posts. Whoever leaves a set first goes to LEAVING, leaves the
 *     set, reads each condition again and wakes the next; then its place is IDLE.
 * W3  one absolute monotonic deadline for an operation.
 * W4  parks are sliced; a slice may reap the peer it waits for. A slice that finds its condition true although
 *     nobody posted counts `rescued`.
 */
#ifndef SHM_PARK_H
#define SHM_PARK_H

#include "memory/arena.h"

#define SHM_SLICE_NS (SHM_NS_PER_S / 2)

struct shm_box;

/* Whom a waker of this process saw notified last in a line, so that the next need not search the line for its first. May
 * be wrong at any time, and is checked. */
struct shm_woken {
    _Atomic uint64_t ticket;
    _Atomic uint32_t place;
};

/* One thing to wait for, as this process sees it. */
struct shm_waitable {
    uint32_t kind; /* enum shm_wait_kind */
    uint32_t object;
    struct shm_set *set;   /* RECEIVE and SEND */
    _Atomic uint32_t *one; /* CELL and FINISHED: place + 1 of the only waiter */
    uint32_t words;        /* RECEIVE and SEND: length of the set's bit map */
    const struct shm_box *box;
    bool (*is_true)(
        const struct shm_box *box); /* RECEIVE and SEND: is there anything to wake somebody for? */
    bool in_line;                   /* SEND: only the first in line may act */
    struct shm_woken *woken;        /* of a line; NULL: it is searched each time */
    bool has_looked;                /* RECEIVE: the caller has just looked, and need not be woken itself */
};

struct shm_wait {
    struct shm_waitable *waitables;
    uint32_t count;
    uint64_t deadline_ns;
    /* Try to do what is waited for: 0 or an error ends the wait; EMPTY or FULL goes on. */
    int (*attempt)(struct shm_thread *self, void *context);
    /* Is the condition true, without taking anything? For slices. */
    bool (*ready)(struct shm_thread *self, void *context);
    /* At the end of each slice, after the peer was looked at: not 0 ends the wait with this status. NULL: none. */
    int (*slice)(struct shm_thread *self, void *context);
    void *context;
    /* A wait for any number of objects, which has no waitables: enter its sets, leave them, and pass the baton. Its
     * place has one turn, the same in all lines, and says that it waits for `object` and others. NULL: none. */
    void (*enter)(struct shm_thread *self, void *context);
    void (*leave)(struct shm_thread *self, void *context);
    void (*pass)(struct shm_thread *self, void *context);
    uint32_t object;
    uint64_t began_ns; /* set by shm_wait */
    uint32_t peer;     /* slot of the member this depends on, 0: nobody in particular; a slice looks at it */
    bool filtered;     /* a receive with a filter: it may decline what is there */
};

/* Attempt, spin a little, then park until attempt succeeds: its status, TIMEOUT, INTERRUPTED when a signal
 * handler ran (nothing was taken then), or ABORTED: somebody wants the thread back, see abort.h, and it did not succeed. */
int shm_wait(struct shm_thread *self, struct shm_wait *wait);
/* Spin until attempt is not EMPTY or FULL, `limit_ns` at most; the last status. */
int shm_spin(struct shm_thread *self, struct shm_wait *wait, uint64_t limit_ns);

/* Turns of waits for many: above every ticket of a set, so that who receives comes before who only looks on. */
#define SHM_TURN_MANY (UINT64_C(1) << 63)

/* Enter with the ticket that is there, or with a new one when it is 0. */
void shm_set_enter(struct shm_set *set, uint32_t words, uint32_t place, _Atomic uint64_t *ticket);
void shm_set_leave(struct shm_set *set, uint32_t words, uint32_t place);
static inline bool shm_set_empty(const struct shm_set *set)
{
    return atomic_load(&set->summary) == 0;
}
bool shm_set_has(const struct shm_set *set, uint32_t place);
uint32_t shm_set_count(const struct shm_set *set, uint32_t words);
/* Is `place` the longest waiting of the set (or the set empty)? */
bool shm_set_is_first(struct shm_thread *self, const struct shm_waitable *waitable, uint32_t place);

/* Wake one waiter of the set unless a wake is in flight already. `looked` is where the ring ends now: filtered
 * receivers that have looked so far are passed over; 0 asks nobody how far he has looked. */
void shm_wake_set(struct shm_thread *self, const struct shm_waitable *waitable, uint64_t looked);
/* Wake every waiter of the set (close, death). */
void shm_wake_all(struct shm_thread *self, const struct shm_waitable *waitable);
/* The turn of the longest waiting of a set that only waits for many enter; 0: it is empty. */
uint64_t shm_set_first_turn(struct shm_thread *self, const struct shm_waitable *waitable);
/* Who stood first in a line, and which of his wakes it was. */
struct shm_first {
    uint64_t turn, woken; /* 0: nobody */
};

/* Have the longest waiting look, if he is another. True: he was woken already, and has not looked since the last call with
 * the same `first`, which is for the caller to begin as {0}. */
bool shm_set_first_is_stopped(struct shm_thread *self, const struct shm_waitable *waitable,
                              struct shm_first *first);
/* Put the place in a set, without a ticket. */
void shm_set_join(struct shm_set *set, uint32_t words, uint32_t place);
/* Wake the only waiter of a cell or of a member's completions. */
void shm_wake_one(struct shm_thread *self, const _Atomic uint32_t *one);

/* Wake the other threads of this member, which is about to leave: their waits end as CLOSED. */
void shm_wake_own(struct shm_thread *self);

/* Have another thread of this process come back from its wait, or from its next one if it is in none: INTERRUPTED. */
void shm_call_back(struct shm_thread *self, struct shm_thread *other);

/* For reap: post again what the dead had notified. */
void shm_park_reap_posts(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
