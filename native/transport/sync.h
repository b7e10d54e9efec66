/* Events, mutexes, semaphores, and what conditions, barriers, read-write locks and pipes have in common with them: how
 * they are made, opened and freed, how they change, and who is woken.
 *
 * What is free or set is taken by one CAS. Those who wait stand in a line, first in first out; each change wakes the
 * first, and whoever leaves the line passes the wake on. A poll takes what is there, whoever waits. A stopped first is
 * passed over by those behind him after two slices. Bytes, states and ordering pairs: memory/layout.h, struct shm_sync.
 */
#ifndef SHM_SYNC_H
#define SHM_SYNC_H

#include "transport/park.h"

enum { SHM_SYNC_MAX_VALUE = (1 << 20) - 1, SHM_SYNC_MAX_ENTRIES = 1024, SHM_SYNC_MAX_PLACES = 1 << 18 };
#define SHM_PIPE_MAX_BYTES (UINT64_C(1) << 30)

struct shm_sync_config {
    uint32_t kind;    /* enum shm_sync_kind */
    uint32_t flags;   /* SHM_SYNC_AUTO ... */
    uint32_t max;     /* of a semaphore; parties of a barrier, at least 1; at most SHM_SYNC_MAX_VALUE */
    uint32_t initial; /* an event's: 1 is set; a semaphore's value */
    uint32_t
        entries; /* read-write lock: readers inside at a time; pipe: open ends; at most SHM_SYNC_MAX_ENTRIES */
    uint64_t bytes; /* pipe: that it holds, a power of two, at most SHM_PIPE_MAX_BYTES */
};

/* A sync object as a process has it open: its words stay mapped and typed while `lease` is held. */
struct shm_sync_view {
    struct shm_sync *sync;
    uint32_t index;
    uint64_t count; /* of the record's word */
    shm_lease_index lease;
    uint32_t block;
    struct shm_sync_config config; /* what was checked, and is not read again */
    uint32_t place_words;
    struct shm_set *line, *watchers;
    /* a pipe's writers; a writer of a read-write lock that waits for the readers; all who wait for a condition */
    struct shm_set *others;
    _Atomic shm_word *entries; /* who is inside, or has an end open */
    unsigned char *bytes;      /* of a pipe */
    _Atomic int released;      /* this hold is given up: those of this process who wait here end as CLOSED */
};

/* A new object: 0, NO_MEMORY, LIMIT, INVALID. */
int shm_sync_make(struct shm_thread *self, struct shm_sync_view *view, const struct shm_sync_config *config);
/* Open object `index` in the life `count`: 0, NOT_FOUND, BUSY, CORRUPTED. */
int shm_sync_open(struct shm_thread *self, struct shm_sync_view *view, uint32_t index, uint64_t count);
/* See shm_box_open_to_mend. */
bool shm_sync_open_to_mend(struct shm_thread *self, struct shm_sync_view *view, uint32_t index,
                           uint64_t count);
/* Give up this process's hold. The last holder's object disappears. */
void shm_sync_release(struct shm_thread *self, struct shm_sync_view *view);

/* ---- words ------------------------------------------------------------------------------------------------- */

static inline uint64_t shm_sync_word(uint64_t count, uint64_t value, uint32_t state)
{
    return count << 38 | (value & ((UINT64_C(1) << 34) - 1)) << 4 | state;
}

static inline uint64_t shm_sync_value(uint64_t word)
{
    return word >> 4 & ((UINT64_C(1) << 34) - 1);
}

/* The word after `word`: its count is one more. */
static inline uint64_t shm_sync_next(uint64_t word, uint64_t value, uint32_t state)
{
    return shm_sync_word((word >> 38) + 1, value, state);
}

/* Member slot and place of whoever holds it; of words that are HELD. */
static inline uint32_t shm_sync_slot(uint64_t word)
{
    return (uint32_t)(word >> 4) & 0xFFFF;
}

static inline uint32_t shm_sync_place(uint64_t word)
{
    return (uint32_t)(word >> 20) & (SHM_SYNC_MAX_PLACES - 1);
}

static inline uint64_t shm_sync_held(const struct shm_thread *self)
{
    return (uint64_t)self->place << 16 | self->slot;
}

/* What the object is now, whoever has claimed it: a word that is not CLAIMED. Loads only. */
uint64_t shm_sync_peek(const struct shm_thread *self, const struct shm_sync_view *view);
/* The same, and no claim stands there any more: it has been let fail, or was carried out. */
uint64_t shm_sync_settle(struct shm_thread *self, struct shm_sync_view *view);
/* Is there something to take for this thread? */
bool shm_sync_is_available(const struct shm_thread *self, const struct shm_sync_view *view, uint64_t word);
/* Does this thread hold the mutex, or the lock for writing, whose word this is? */
bool shm_sync_is_mine(const struct shm_thread *self, uint64_t word);
/* A pipe: there was such an end, SHM_ENTRY_READER or SHM_ENTRY_WRITER, and there is none any more. */
bool shm_sync_end_has_gone(const struct shm_sync_view *view, uint32_t what);
/* The word when this thread has taken it. */
uint64_t shm_sync_taken(const struct shm_sync_view *view, uint64_t word, uint64_t held);

/* Take it if it is there, without waiting: 0 or EMPTY. *abandoned: its last owner died. */
int shm_sync_take(struct shm_thread *self, struct shm_sync_view *view, bool *abandoned);
/* As if a wait had not taken it. `was_abandoned`: what the wait has said; whoever gets it next is told so. */
void shm_sync_give_back(struct shm_thread *self, struct shm_sync_view *view, bool was_abandoned);
/* A wait for all: its decision, which others may let fail; what a word becomes that it claims; and whether it has taken
 * what it claims (`take` false: it fails). Settle each object afterwards. */
uint64_t shm_sync_decide(struct shm_thread *self);
uint64_t shm_sync_claim(const struct shm_thread *self, uint64_t decision, uint64_t word);
bool shm_sync_conclude(struct shm_thread *self, uint64_t decision, bool take);
/* After a change that made it available: the first in line, and all who watch. W1 */
void shm_sync_wake(struct shm_thread *self, struct shm_sync_view *view);
/* Pass the baton: the same, if it is available and somebody waits. */
void shm_sync_pass(struct shm_thread *self, struct shm_sync_view *view);

struct shm_waitable shm_sync_line(struct shm_sync_view *view);
struct shm_waitable shm_sync_watchers(struct shm_sync_view *view);
struct shm_waitable shm_sync_others(struct shm_sync_view *view);

/* ---- what is done with them -------------------------------------------------------------------------------- */

void shm_event_set(struct shm_thread *self, struct shm_sync_view *view);
void shm_event_reset(struct shm_thread *self, struct shm_sync_view *view);
/* 0, or REFUSED: it is not the caller's. */
int shm_mutex_unlock(struct shm_thread *self, struct shm_sync_view *view);
/* What another thread of this process has becomes the caller's: 0, or REFUSED: it is held by nobody of it. */
int shm_mutex_adopt(struct shm_thread *self, struct shm_sync_view *view);
/* 0; LIMIT: more than its maximum, and nothing has changed. *previous: its value before. */
int shm_semaphore_release(struct shm_thread *self, struct shm_sync_view *view, uint32_t n,
                          uint32_t *previous);

/* The block of an object goes: its name and the record. */
void shm_sync_drop(struct shm_thread *self, uint32_t index, uint32_t block);
/* A thread ends: the mutexes it holds are abandoned, but those that anybody may unlock. */
void shm_sync_abandon(struct shm_thread *self);
/* For reap: what a dead member held, claimed or stood in line for, and the wakes it owed. Before its places go. */
void shm_sync_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
