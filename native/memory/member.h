/* A member: one process's life in a system; and its threads.
 *
 * There is no process-global identity: every core function is given the thread that acts, and the thread names its
 * member. So many members can live as threads of one test process on one mapping.
 *
 * Proof of death, in this order (docs/explanation/failure-model.md):
 *     the member's word already says DYING
 *     its pid is gone, is a zombie, or belongs to a process with another start time
 *     its life lock is free and no task of its pid maps the segment
 *     every task of its pid is exiting (ending.h); its leases and its slot then wait until the process has ended
 * In another pid namespace only the lock counts, and it must be free at two looks two seconds apart.
 */
#ifndef SHM_MEMBER_H
#define SHM_MEMBER_H

#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "memory/segment.h"

enum { SHM_WARM_CLASSES = 20, SHM_WARM_DEPTH = 8 };

/* Blocks of one class whose pages are in this process's page table: those it has done with and still owns, and a hint
 * at those it took last, which it looks at first when they are free again. */
struct shm_warm {
    uint32_t count;
    uint32_t leases[SHM_WARM_DEPTH];
    uint32_t taken[SHM_WARM_DEPTH]; /* index + 1 */
    uint32_t next_taken;
};

struct shm_thread;

/* A lease of this member on which a forked child relies, because no record could be had for the child: released when
 * nobody holds the lock on `byte` of the life-lock file any more, and no array of this process needs it. */
struct shm_lent {
    uint64_t byte; /* UINT64_MAX: there is no lock; it is kept until this member leaves */
    uint32_t lease;
    bool dropped; /* by this process */
};

struct shm_member {
    struct shm_segment *segment;
    uint32_t slot;
    shm_word word; /* as it is while this member lives */
    struct shm_member_record *record;
    int life_fd; /* holds the life lock, -1: none (tests) */
    uint64_t life_device, life_inode;
    char *life_path; /* to take a lost lock again, and to look at those of others */
    void *fork_page; /* zero in a forked child */
    _Atomic int closed;
    pthread_mutex_t lock; /* of the fields below */
    struct shm_warm warm[SHM_WARM_CLASSES];
    uint64_t warm_bytes;
    _Atomic uint64_t takes; /* of blocks, so far; stands still while the process is idle */
    uint32_t *free_cells;   /* stack of cells of this member's chunks */
    uint32_t free_cells_count, free_cells_room;
    uint32_t *chunks; /* made once, for as many as there may be: read without the lock */
    _Atomic uint32_t chunks_count;
    uint32_t *stuck; /* leases whose block somebody who is stopped has locked; released later */
    uint32_t stuck_count, stuck_room;
    struct shm_lent *lent;
    _Atomic uint32_t lent_count;
    _Atomic uint64_t pokes;     /* of the thread that waits for finished calls */
    _Atomic uint32_t letters;   /* calls whose answer is to be received as a message */
    uint64_t tag_next, tag_end; /* numbers of generated tags that this member may still give */
    bool (*is_dead)(struct shm_member *self,
                    uint32_t slot); /* NULL: ask the operating system; tests replace it */
    /* Drop what a mailbox, or with SHM_BLOCK_BUS a bus, with SHM_BLOCK_SYNC a sync object, holds whose block is about to be freed; set by the transport
     * floor. */
    void (*drop_box)(struct shm_thread *self, uint32_t box, uint32_t block);
    /* A wait has lasted another slice and depends on the member in slot `peer` (0: nobody known): look whether
     * somebody must be reaped. Set by the transport floor. */
    void (*slice)(struct shm_thread *self, uint32_t peer);
    uint64_t rounds_seen; /* the keeper's counter at the last slice */
    /* A thread that may still hold mutexes ends. Set by the transport floor. */
    void (*abandon)(struct shm_thread *self);
};

struct shm_thread {
    struct shm_member *member;
    struct shm_segment *segment;
    uint32_t slot;  /* of the member */
    uint32_t place; /* index */
    struct shm_place *at;
    uint32_t depth;      /* of the flight words */
    uint64_t spin_ns;    /* how long spinning has paid of late */
    bool may_spin;       /* more than one core */
    bool mending_failed; /* this reap could not open a mailbox, and must be repeated */
    bool releases;       /* a block is being released, and what it holds comes after it */
    uint32_t deferred;   /* leases of this member to release then; index + 1 of the first */
    bool loses;          /* what is taken from a mailbox now is lost with its receiver, and counted */
    uint32_t turns;      /* messages this thread may still send before it queues behind parked senders */
    uint64_t turns_ns;   /* when they were granted */
    uint32_t port_mode;  /* enum shm_port_mode: as whom it receives from ports */
    /* Called now and then while waiting: not 0 ends the wait as INTERRUPTED. NULL in native threads. */
    int (*interrupted)(struct shm_thread *self);
    _Atomic int called; /* another thread of this process wants it back: see shm_call_back */
    void *scratch;      /* one message body is copied out here */
    uint32_t scratch_bytes;
    uint32_t cycle_count; /* of the member ids in scratch, when a call has ended as DEADLOCK */
    bool holds;           /* it has taken a mutex, and may hold it still */
    unsigned char annex[SHM_ANNEX_BYTES]; /* of the message that is copied out */
    /* Abort, see transport/abort.h. A call that is answered, or whose abort was told, is none any more; another thread of
     * this process may have answered it. */
    _Atomic uint64_t serves; /* the call that a loop has this thread serve, 0: none */
    _Atomic uint64_t took;   /* the last call whose request this thread has received by itself, 0: none */
    uint64_t serves_until_ns, took_until_ns; /* their deadlines */
    uint64_t told_seen;                      /* of the place's `told` */
    bool hears_all;    /* it takes requests that others serve: told of each that is closed */
    const int *shield; /* not NULL and not 0: its waits are not ended by an abort */
};

static inline shm_member_id shm_member_id_of(shm_word word, uint32_t slot)
{
    return shm_word_count(word) << 16 | slot;
}

static inline shm_member_id shm_member_id_self(const struct shm_member *member)
{
    return shm_member_id_of(member->word, member->slot);
}

/* Claim a slot for a process that is about to start. The claimer answers for it (`creator`) until the process
 * activates it. Returns the id, or NO_MEMORY or LIMIT as a negative number. `name` is cut to 64 bytes. */
int64_t shm_member_prepare(struct shm_segment *segment, struct shm_member *creator, uint32_t kind,
                           const char *name);
/* Tell a prepared slot the pid that was started for it, so that its death is seen before it has joined. */
void shm_member_launched(struct shm_segment *segment, shm_member_id id, int pid);
/* Give a prepared slot up: its process never started. */
void shm_member_forget(struct shm_segment *segment, shm_member_id id);

/* Become the member `id` (prepared), or a new one when `id` is 0. Takes the life lock in the file `life_path`
 * (NULL: none), then goes LIVE. PEER_DEAD: the prepared slot was given up meanwhile. */
int shm_member_join(struct shm_member *member, struct shm_segment *segment, shm_member_id id, uint32_t kind,
                    const char *name, const char *life_path);
/* Undo a join that has no thread to leave with: whoever comes by reaps it. */
void shm_member_abandon(struct shm_member *member);
/* Free what the process holds of a member that has left or was reaped; shared memory is not touched. */
void shm_member_dispose(struct shm_member *member);
/* Called in a forked child: forget everything, take no lock. */
void shm_member_forked(struct shm_member *member);
static inline bool shm_member_is_forked(const struct shm_member *member)
{
    return member->fork_page && *(volatile unsigned char *)member->fork_page == 0;
}

/* Is `id` a life that has not ended and is not known to be dying? One load. */
bool shm_member_lives(const struct shm_segment *segment, shm_member_id id);
/* Is this slot's member provably dead? Slow; asks the operating system. */
bool shm_member_is_dead(struct shm_member *self, uint32_t slot);
/* Has the kernel given back what the process of this slot's member, which is DYING, had? So it is proven dead, or it was
 * found ending (see ending.h) and has ended since. */
bool shm_member_has_ended(struct shm_member *self, uint32_t slot);
/* Open the life-lock file anew and take the lock of `slot`: the descriptor, or -1. */
int shm_life_take(const char *life_path, uint32_t slot);
/* Does anybody hold the life lock of `slot`? One system call. */
bool shm_member_is_locked(const struct shm_member *self, uint32_t slot);
/* A byte of the life-lock file behind those of all members, locked through `fd`; UINT64_MAX: it cannot be had. */
uint64_t shm_life_take_spare(int fd);
/* Does anybody hold that lock? */
bool shm_life_spare_is_locked(const struct shm_member *self, uint64_t byte);
/* Is any life lock of the file `fd` held by another? */
bool shm_life_any_locked(int fd, uint32_t max_members);
/* The word of a member in `slot` whose word was `word`, once it is proven dead. */
static inline shm_word shm_member_dying(shm_word word, uint32_t slot)
{
    uint32_t owner = shm_word_owner(word) == slot ? SHM_NOBODY : shm_word_owner(word);
    return shm_word_make(shm_word_count(word), owner, SHM_MEMBER_DYING);
}
/* The start time of a process in ticks, 0: no such process. */
uint64_t shm_process_start_time(int pid);
/* Is there a process of this pid and start time that has not ended as a whole? */
bool shm_process_lives(int pid, uint64_t start_time);
/* Wait status of a process that was waited for, from its pidfd. False: not yet, or the kernel does not tell (before
 * Linux 6.15). */
bool shm_process_status(int pidfd, uint32_t *wait_status);
/* Take the life lock again if it was lost; `fd` holds it in the descriptor table of the calling thread. */
void shm_member_check_lock(struct shm_member *self, int *fd);

/* Tell how a life ended; the first word said counts. `reason` SHM_EXIT_*, status as of waitpid. */
void shm_member_say_status(struct shm_segment *segment, shm_member_id id, uint32_t reason, uint32_t status);
void shm_member_say_reason(struct shm_segment *segment, shm_member_id id, uint32_t reason, uint32_t status);
/* What is known about the end of `id`: generation:44 | reason:4 | status:16; reason UNKNOWN when nothing is. */
uint64_t shm_member_cause(const struct shm_segment *segment, shm_member_id id);
/* How many messages were lost with its mailbox; 0 also when its slot has been another's since. */
uint32_t shm_member_undelivered(const struct shm_segment *segment, shm_member_id id);

/* A thread of the member gets its parking place: 0, NO_MEMORY or LIMIT. */
int shm_thread_open(struct shm_thread *self, struct shm_member *member);
void shm_thread_close(struct shm_thread *self);

/* Flight words; see layout.h. */
static inline struct shm_flight *shm_flight_push(struct shm_thread *self, uint32_t op, uint32_t object,
                                                 uint64_t position, uint32_t lease)
{
    struct shm_flight *flight = &self->at->flights[self->depth++];
    atomic_store_explicit(&flight->object, object, memory_order_relaxed);
    atomic_store_explicit(&flight->position, position, memory_order_relaxed);
    atomic_store_explicit(&flight->lease, lease, memory_order_relaxed);
    atomic_store_explicit(&flight->op, op, memory_order_release);
    return flight;
}

static inline void shm_flight_pop(struct shm_thread *self)
{
    atomic_store_explicit(&self->at->flights[--self->depth].op, SHM_FLIGHT_NONE, memory_order_release);
}

/* A wait of this thread is about to go on: nobody else of the process can answer a call meanwhile. */
static inline void shm_member_is_alone(struct shm_thread *self)
{
    uint64_t generation =
        shm_word_count(atomic_load(&self->at->word)) + 1; /* of the word when it is armed again */
    atomic_store(&self->member->record->alone, generation << 20 | (self->place + 1));
}

/* Say what this thread is about to do, for those who look: the call (0: none) and a text that is cut to 31 bytes. */
static inline void shm_serving_begin(struct shm_thread *self, shm_call_id call, const char *what, size_t len)
{
    uint64_t text[SHM_WHAT_BYTES / 8] = {0};
    memcpy(text, what, len < SHM_WHAT_BYTES ? len : SHM_WHAT_BYTES - 1);
    for (int i = 0; i < SHM_WHAT_BYTES / 8; i++)
        SHM_NOTE(&self->at->serving_what[i], text[i]);
    SHM_NOTE(&self->at->serving, call);
    SHM_NOTE(&self->at->serving_since, shm_clock_coarse_ns());
}

/* The same text as the last time. */
static inline void shm_serving_again(struct shm_thread *self, shm_call_id call)
{
    SHM_NOTE(&self->at->serving, call);
    SHM_NOTE(&self->at->serving_since, shm_clock_coarse_ns());
}

static inline void shm_serving_end(struct shm_thread *self)
{
    SHM_NOTE(&self->at->serving_since, 0);
    SHM_NOTE(&self->at->serving, 0);
}

/* Say who serves generation `generation` of a call; only goes forward. */
static inline void shm_cell_served(struct shm_thread *self, struct shm_cell *cell, uint64_t generation)
{
    uint64_t served = atomic_load(&cell->served_by), mine = generation << 20 | (self->place + 1);
    atomic_store_explicit(&cell->server, shm_member_id_self(self->member), memory_order_relaxed);
    while (shm_count_difference(served >> 20, generation) < 0 &&
           !atomic_compare_exchange_weak(&cell->served_by, &served, mine))
        ;
}

#endif
