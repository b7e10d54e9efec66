/* The protocol word: count:44 | owner:16 | state:4, always replaced whole.
 *
 * One 64-bit word says in which state an object is, who put it there, and how often it has changed (or, for a
 * ring slot, in which lap it is). A compare-and-swap therefore names its doer in the same step, so that whoever
 * finds the word later knows whose death to ask about, and an old value never comes back.
 */
#ifndef SHM_WORD_H
#define SHM_WORD_H

#include <stdbool.h>
#include <stdint.h>

typedef uint64_t shm_word;

enum { SHM_NOBODY = 0, SHM_IN_FLIGHT = 0xFFFF, SHM_MAX_MEMBERS = 65534 };

#define SHM_COUNT_MASK ((UINT64_C(1) << 44) - 1)

/* Store what nobody acts upon: diagnosis. The models leave it out of their search. */
#ifndef SHM_NOTE
#define SHM_NOTE(at, value) atomic_store_explicit(at, value, memory_order_relaxed)
#endif

static inline shm_word shm_word_make(uint64_t count, uint32_t owner, uint32_t state)
{
    return (count & SHM_COUNT_MASK) << 20 | (uint64_t)(owner & 0xFFFF) << 4 | (state & 0xF);
}

static inline uint64_t shm_word_count(shm_word w)
{
    return w >> 20;
}

static inline uint32_t shm_word_owner(shm_word w)
{
    return (uint32_t)(w >> 4) & 0xFFFF;
}

static inline uint32_t shm_word_state(shm_word w)
{
    return (uint32_t)w & 0xF;
}

/* The word that follows `w`: count grows by one, so a stale compare-and-swap fails. */
static inline shm_word shm_word_next(shm_word w, uint32_t owner, uint32_t state)
{
    return shm_word_make(shm_word_count(w) + 1, owner, state);
}

/* The value of a plain field of shared memory, read exactly once: what is checked afterwards is what is used, whoever
 * writes meanwhile. */
#define SHM_ONCE(field) (*(const volatile __typeof__(field) *)&(field))

/* a - b for laps and counts that may wrap at 44 bits. */
static inline int64_t shm_count_difference(uint64_t a, uint64_t b)
{
    return (int64_t)((a - b) << 20) >> 20;
}

#endif
