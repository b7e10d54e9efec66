/* A bus: frames that are written once and read by many, each reader at its own pace.
 *
 * One publishes at a time: whoever holds the right, for as long as a few stores take. Frames lie in blocks of the heap;
 * the bus holds one lease of each, every reader that has taken it one more: so a frame stays as long as anybody has it,
 * and a reader that dies gives it back by its reap. A full bus ends its oldest frame, whoever has not read it; a reader
 * with patience is waited for first, so long at most, and is late afterwards until it receives again. Bytes, states and
 * ordering pairs: memory/layout.h, struct shm_bus.
 */
#ifndef SHM_BUS_H
#define SHM_BUS_H

#include "transport/park.h"

enum { SHM_BUS_MAX_FRAMES = 4096, SHM_BUS_MAX_READERS = 1024 };
#define SHM_BUS_MAX_PATIENCE_NS (1000000 * SHM_NS_PER_S)

struct shm_bus_config {
    uint32_t frames;        /* kept at most, 1 to SHM_BUS_MAX_FRAMES */
    uint32_t readers;       /* at a time at most, 1 to SHM_BUS_MAX_READERS */
    uint32_t consume_after; /* so many readers have a frame, then it is gone; 0: any number */
    uint64_t frame_bytes;   /* of a frame at most, its head not counted */
    uint64_t max_age_ns;    /* then a frame is gone; 0: never */
};

/* A bus as a process has it open: its words stay mapped and typed while `lease` is held. */
struct shm_bus_view {
    struct shm_bus *bus;
    uint32_t index;
    uint64_t count; /* of the record's word */
    shm_lease_index lease;
    uint32_t block;
    struct shm_bus_config config; /* what was checked, and is not read again */
    uint32_t place_words;
    struct shm_frame *frames;
    struct shm_bus_reader *readers;
    struct shm_set *waiting_readers, *waiting_writers;
    _Atomic int released; /* this hold is given up: those of this process who wait here end as CLOSED */
};

/* This process as a reader of a bus. */
struct shm_subscription {
    uint32_t index;
    _Atomic uint64_t count;   /* of the reader's word; 0: left */
    _Atomic uint64_t missed;  /* frames that ended before they were read, so far */
    _Atomic uint64_t skipped; /* frames that were gone by the bus's own rules, so far */
};

/* A frame that was taken: its block is held by this member. */
struct shm_taken {
    shm_lease_index lease;
    uint32_t head_bytes; /* before the frame's own bytes */
    uint64_t len_bytes;  /* the head included */
    uint64_t position;
    uint64_t stamp_ns;
};

/* A new bus: 0, NO_MEMORY, LIMIT, INVALID. */
int shm_bus_make(struct shm_thread *self, struct shm_bus_view *view, const struct shm_bus_config *config);
/* Open bus `index` in the life `count`: 0, NOT_FOUND, BUSY, CORRUPTED. */
int shm_bus_open(struct shm_thread *self, struct shm_bus_view *view, uint32_t index, uint64_t count);
/* See shm_box_open_to_mend. */
bool shm_bus_open_to_mend(struct shm_thread *self, struct shm_bus_view *view, uint32_t index, uint64_t count);
/* Give up this process's hold. The last holder's bus disappears. */
void shm_bus_release(struct shm_thread *self, struct shm_bus_view *view);
/* End the bus: 0; BUSY, it has readers; CLOSED. */
int shm_bus_destroy(struct shm_thread *self, struct shm_bus_view *view);
bool shm_bus_is_closed(const struct shm_bus_view *view);
/* Readers at the moment, those that are joining included. */
uint32_t shm_bus_count_readers(const struct shm_bus_view *view);

/* Publish the block of `lease`, which this member holds and which is the bus's afterwards, until deadline_ns (0: without
 * waiting): 0, FULL, TIMEOUT, CLOSED, TOO_LARGE, CORRUPTED, INTERRUPTED. When refused it is the caller's as before, and
 * every frame is where it was. */
int shm_bus_publish(struct shm_thread *self, struct shm_bus_view *view, shm_lease_index lease,
                    uint32_t head_bytes, uint64_t len_bytes, uint64_t deadline_ns);

/* Become a reader of what is published from now on; patience_ns 0: it loses what it is too slow for;
 * more than SHM_BUS_MAX_PATIENCE_NS is as much. 0, LIMIT, CLOSED,
 * TIMEOUT (somebody who was stopped there is destroying the bus). */
int shm_bus_subscribe(struct shm_thread *self, struct shm_bus_view *view, uint64_t patience_ns,
                      struct shm_subscription *subscription, uint64_t deadline_ns);
void shm_bus_unsubscribe(struct shm_thread *self, struct shm_bus_view *view,
                         struct shm_subscription *subscription);
/* The next frame: 0, EMPTY, TIMEOUT, CLOSED, TOO_LARGE (more than room_bytes without its head: *taken says how many, and
 * the frame is the next as before), NO_MEMORY, LIMIT, CORRUPTED, INTERRUPTED. */
int shm_bus_receive(struct shm_thread *self, struct shm_bus_view *view, struct shm_subscription *subscription,
                    uint64_t room_bytes, struct shm_taken *taken, uint64_t deadline_ns);

struct shm_waitable shm_bus_readers(struct shm_bus_view *view);
struct shm_waitable shm_bus_writers(struct shm_bus_view *view);

/* The block of a bus goes: its frames' blocks, its name and the record. The block is locked by us, or by a dead one. */
void shm_bus_drop(struct shm_thread *self, uint32_t index, uint32_t block);
/* For reap: the right, the gate and the readers of a dead member, and the wakes it owed. */
void shm_bus_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
