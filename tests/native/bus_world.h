/* Frames with a number in them, for the tests of buses. */
#ifndef BUS_WORLD_H
#define BUS_WORLD_H

#include "world.h"

#include "transport/bus.h"
#include "transport/names.h"

enum { FRAME_HEAD = 64, FRAME_WORDS = 1024, FRAME_BYTES = FRAME_WORDS * 8 };

static inline void bus_make(struct actor *a, struct shm_bus_view *view, uint32_t frames, uint32_t readers)
{
    struct shm_bus_config config = {.frames = frames, .readers = readers, .frame_bytes = FRAME_BYTES};
    CHECK_OK(shm_bus_make(&a->thread, view, &config));
}

static inline void bus_open(struct actor *a, struct shm_bus_view *view, const struct shm_bus_view *of)
{
    CHECK_OK(shm_bus_open(&a->thread, view, of->index, of->count));
}

/* Publish a frame that is `number` all over, by the deadline; the status. */
static inline int bus_publish(struct actor *a, struct shm_bus_view *view, uint64_t number,
                              uint64_t deadline_ns)
{
    shm_lease_index lease;
    CHECK_OK(shm_block_take(&a->thread, FRAME_HEAD + FRAME_BYTES, &lease));
    struct shm_segment *segment = a->thread.segment;
    uint64_t *words =
        (uint64_t *)(segment->base + shm_block_offset(segment, shm_lease_block(segment, lease)));
    for (int i = 0; i < FRAME_HEAD / 8 + FRAME_WORDS; i++)
        words[i] = number;
    int status = shm_bus_publish(&a->thread, view, lease, FRAME_HEAD, FRAME_HEAD + FRAME_BYTES, deadline_ns);
    if (status)
        shm_lease_recycle(&a->thread, lease);
    return status;
}

/* The number in a frame, which must be whole. */
static inline uint64_t bus_number(const struct actor *a, const struct shm_taken *taken)
{
    const struct shm_segment *segment = a->thread.segment;
    const uint64_t *words =
        (const uint64_t *)(segment->base + shm_block_offset(segment, shm_lease_block(segment, taken->lease)));
    CHECK_EQ(taken->len_bytes, FRAME_HEAD + FRAME_BYTES);
    for (int i = 1; i < FRAME_HEAD / 8 + FRAME_WORDS; i++)
        CHECK_EQ(words[i], words[0]);
    return words[0];
}

static inline int bus_receive(struct actor *a, struct shm_bus_view *view,
                              struct shm_subscription *subscription, uint64_t *number, uint64_t deadline_ns)
{
    struct shm_taken taken;
    int status = shm_bus_receive(&a->thread, view, subscription, UINT64_MAX, &taken, deadline_ns);
    if (status == 0) {
        *number = bus_number(a, &taken);
        shm_lease_recycle(&a->thread, taken.lease);
    }
    return status;
}

#endif
