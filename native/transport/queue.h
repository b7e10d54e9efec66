/* A wait for one sync object, in one of its sets: a wait for many of which there is one, see park.h. */
#ifndef SHM_QUEUE_H
#define SHM_QUEUE_H

#include "transport/sync.h"

/* The first member of what a wait is about, which is the context of `attempt` and `ready`. */
struct shm_queue {
    struct shm_sync_view *view;
    struct shm_waitable set;
    /* Is anything there now? For the passing over of a stopped first. NULL: nothing ever is. */
    bool (*seen)(struct shm_thread *self, const struct shm_queue *queue);
    /* Pass the baton. NULL: see shm_sync_pass. */
    void (*pass)(struct shm_thread *self, struct shm_queue *queue);
    /* of the wait */
    bool registered, impatient, poll;
    struct shm_first first; /* when the last slice ended and something was there */
};

/* Is nobody in the set who has waited longer; or was he stopped, it seems; or does the caller only look once? */
bool shm_queue_is_our_turn(struct shm_thread *self, const struct shm_queue *queue);
/* See shm_wait; `context` begins with a struct shm_queue. */
int shm_queue_wait(struct shm_thread *self, void *context, int (*attempt)(struct shm_thread *, void *),
                   bool (*ready)(struct shm_thread *, void *), uint64_t deadline_ns);

#endif
