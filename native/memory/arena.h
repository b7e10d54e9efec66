/* Blocks of the heap and the leases that hold them.
 *
 * A block is one cell of a size class; its bytes have a fixed place in the file. A lease is the right of one
 * holder (a process, or a message in flight) to a block. Each process keeps a few blocks it has done with, warm.
 *
 *     lease:  taken with its block (A1), added to a block (A2), released (A3), handed over (A4)
 *
 * A1-A3 change a record and the block's number of holders in one locked step; who finds the locker dead counts the
 * records. A4 changes only the record: to SHM_IN_FLIGHT before the message is claimed, to the taker under the
 * take right; the flight words of those two say who has it when one dies in between.
 */
#ifndef SHM_ARENA_H
#define SHM_ARENA_H

#include "memory/member.h"

/* A lease as a process holds it: index of the record; the block and its bytes follow from it. */
typedef uint32_t shm_lease_index;

/* A1. A block of at least `len_bytes`, its pages reserved, held by this member. Its bytes are whatever they were.
 * NO_MEMORY: the file system or the limit of the system is exhausted; LIMIT: a table is. Never blocks. */
int shm_block_take(struct shm_thread *self, uint64_t len_bytes, shm_lease_index *lease);
/* A2. One more lease, of this member, on a block that it holds already (itself, or by a message it is taking):
 * 0, LIMIT, NO_MEMORY, NOT_FOUND (the block is not held by anyone), BUSY (its locker is stopped), CORRUPTED. */
int shm_block_hold(struct shm_thread *self, uint32_t block, shm_lease_index *lease);
/* A3. The holder gives up its lease; the last one frees the block. */
void shm_lease_release(struct shm_thread *self, shm_lease_index lease);
/* A3, but a block whose only holder this is stays with the process as a warm one. */
void shm_lease_recycle(struct shm_thread *self, shm_lease_index lease);
/* The native thread releases it at its next round: its block is locked by somebody who was stopped, or the calling
 * thread has no parking place. Until then it is this member's, and its reap releases it should it die. */
void shm_lease_later(struct shm_member *member, shm_lease_index lease);
/* Release what was to be released later. */
void shm_lease_retry(struct shm_thread *self);
/* Release every warm block. */
void shm_warm_drop(struct shm_thread *self);
/* The pages that free blocks still have go back to the file system. */
void shm_arena_trim(struct shm_thread *self);

/* What the native thread of a process has seen of the blocks. */
struct shm_idle {
    uint64_t looked_ns, takes;
    shm_word *words[SHM_MAX_CLASS - SHM_MIN_CLASS + 1]; /* of each class */
    uint32_t count[SHM_MAX_CLASS - SHM_MIN_CLASS + 1];
};
/* Called about once a second. A process that has taken no block for five seconds gives its warm ones up; the pages of
 * blocks that were free all that time go back to the file system when `keeps`, a part at a time. */
void shm_arena_idle(struct shm_thread *self, struct shm_idle *idle, bool keeps);

/* The n handles at the start of a block of this member's: each is a lease of this member, which the block owns
 * from then on. */
void shm_handles_put(struct shm_thread *self, uint32_t block, const shm_lease_index *leases, uint32_t count);
/* The lease of handle `at` of a block whose only holder is this member becomes this member's; true: *lease is what.
 * The handle names none afterwards. So whoever has received a message needs no record of its own for what is in it. */
bool shm_handle_take(struct shm_thread *self, uint32_t block, uint32_t at, shm_lease_index *lease);

uint32_t shm_lease_block(const struct shm_segment *segment, shm_lease_index lease);
/* The same, read once and then checked: false when that is no block, or one of less than `len_bytes`. */
static inline bool shm_lease_find(const struct shm_segment *segment, shm_lease_index lease,
                                  uint64_t len_bytes, uint32_t *block)
{
    *block = shm_lease_block(segment, lease);
    return shm_block_ok(segment, *block) && len_bytes <= shm_block_class_bytes(*block);
}
uint32_t shm_block_holders(const struct shm_segment *segment, uint32_t block);

/* A4. The lease's word afterwards; 0: it was not in flight. */
shm_word shm_lease_word_in_flight(const struct shm_thread *self, shm_lease_index lease);
void shm_lease_fly(struct shm_thread *self, shm_lease_index lease);
shm_word shm_lease_land(struct shm_thread *self, shm_lease_index lease);
/* A lease was to fly and did not: it is this member's again. */
void shm_lease_return(struct shm_thread *self, shm_lease_index lease);
/* Give a lease of this member to another member (a forked child). */
void shm_lease_give(struct shm_thread *self, shm_lease_index lease, uint32_t slot);

/* What a fork needs of its parent until it has happened. */
struct shm_fork {
    shm_member_id id; /* of the child's record, 0: none could be had */
    uint64_t byte;    /* the spare lock of what is lent, 0: none yet */
    int life_fd;      /* holds the child's locks, -1: it has none */
    void *page; /* a mapping of that file, which keeps the locks when the child closes its descriptors */
};

/* Before user code forks: a member slot for the child, LIVE. The child's life lock is held by whoever maps `page`: it, and
 * what it forks, until they end or execute another program. `self` NULL: this thread has no parking place; there is no slot. */
void shm_fork_prepare(struct shm_member *member, struct shm_thread *self, struct shm_fork *fork);
/* A copy of the lease for that child, so that no array it inherits shows a stranger's data. If none can be had it is lent:
 * this member keeps its own, whatever becomes of the array, until the child's lock is free. NO_MEMORY: the heap of this
 * process has none; nothing was done. */
int shm_fork_add(struct shm_member *member, struct shm_thread *self, shm_lease_index lease,
                 struct shm_fork *fork);
/* Before this member leaves: a member slot for its arrays, LIVE, with their leases, for as long as the locks are held (by
 * this process, until shm_fork_end, and by those that it forks). LIMIT, NO_MEMORY, CLOSED: there is none; nothing was done. */
int shm_arrays_remain(struct shm_member *member, struct shm_thread *self, const shm_lease_index *leases,
                      uint32_t count, struct shm_fork *fork);
/* In the parent, or in a child that is another's: let go of the locks. */
void shm_fork_end(struct shm_fork *fork);
/* An array of this process has gone: true when a forked child relies on its lease, which is kept then. */
bool shm_lease_is_lent(struct shm_member *member, shm_lease_index lease);
/* Release what was lent to children that have ended. One system call for each child. */
void shm_lent_look(struct shm_thread *self);
/* This member leaves in order: what is still lent stays with the system. */
void shm_lent_leave(struct shm_thread *self);
/* In the child: say who it is. */
void shm_fork_child(struct shm_segment *segment, shm_member_id id);

/* One more lease of this member on the block of mailbox `box` (`what`: 0), bus, sync object or group (SHM_BLOCK_*), if it
 * still is that one's (its record's count is `count`): then the object, which begins `block`, may be touched until the
 * lease is released. NOT_FOUND otherwise. */
int shm_block_pin(struct shm_thread *self, uint32_t box, uint64_t count, uint32_t what,
                  shm_lease_index *lease, uint32_t *block);

/* For reap: the steps of A1-A3 of a dead member, and all its leases. */
void shm_arena_reap_flight(struct shm_thread *self, uint32_t victim, shm_word word,
                           const struct shm_flight *flight);
void shm_arena_reap_leases(struct shm_thread *self, uint32_t victim, shm_word word);
/* Tells the lives of a lease record apart; goes with each reference in shared memory. */
uint32_t shm_lease_birth(const struct shm_segment *segment, shm_lease_index lease);
/* Release the lease in flight that the reference `at` (index + 1, and its birth) holds and that nobody will take. Safe beside
 * others that do the same: the record is read before the reference is read again, which is cleared before the
 * record goes. */
void shm_lease_drop(struct shm_thread *self, _Atomic uint32_t *at, uint32_t birth);
/* The same, and a block whose only holder it was stays with this process as a warm one. */
void shm_lease_drop_warm(struct shm_thread *self, _Atomic uint32_t *at, uint32_t birth);
/* Release a lease whose word is known, if it still has this word. */
void shm_lease_drop_exact(struct shm_thread *self, shm_lease_index lease, shm_word word);

/* Is `victim` still in the life and state that this reap is about? Asked between reading a word and its CAS. */
static inline bool shm_still_dying(const struct shm_segment *segment, uint32_t victim, shm_word word)
{
    return atomic_load(&shm_member_at(segment, victim)->word) == word;
}

struct shm_arena_counts {
    uint64_t reserved_bytes; /* pages the heap has */
    uint64_t used_bytes;     /* of blocks that are held */
    uint64_t limit_bytes;
    uint32_t blocks; /* held, warm ones included */
    uint32_t leases;
};
void shm_arena_statistics(const struct shm_segment *segment, struct shm_arena_counts *out);

#endif
