/* The bare ring: one producer, one consumer, 64-byte messages, spinning; no owner, no waiter, no death.
 *
 *     0              128            256                     256 + 64 * 1024
 *     | tail, seen_h | head, seen_t | cell | cell | ... ... |
 *
 * tail and seen_h (the head as the producer last saw it) are the producer's line, head and seen_t the
 * consumer's; each reads the other's line only when its own copy says full or empty.
 *
 * R1  put  tail store release -> get  tail load acquire: the cell is whole
 * R2  get  head store release -> put  head load acquire: the old cell is done with
 */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "relax.h"

enum { RING_CELLS = 1024, RING_BODY_BYTES = 64 };

struct ring {
    _Alignas(128) _Atomic uint64_t tail;
    uint64_t seen_head;
    _Alignas(128) _Atomic uint64_t head;
    uint64_t seen_tail;
    _Alignas(128) unsigned char cells[RING_CELLS][RING_BODY_BYTES];
};

static inline void ring_put(struct ring *ring, const void *body)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* own word */
    for (unsigned turn = 0; tail - ring->seen_head == RING_CELLS; relax(turn++))
        ring->seen_head = atomic_load_explicit(&ring->head, memory_order_acquire); /* R2 */
    memcpy(ring->cells[tail % RING_CELLS], body, RING_BODY_BYTES);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release); /* R1 */
}

/* The cell stays the caller's until ring_drop(). */
static inline const void *ring_peek(struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* own word */
    for (unsigned turn = 0; head == ring->seen_tail; relax(turn++))
        ring->seen_tail = atomic_load_explicit(&ring->tail, memory_order_acquire); /* R1 */
    return ring->cells[head % RING_CELLS];
}

static inline void ring_drop(struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* own word */
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);      /* R2 */
}

#endif
