/* Wait for any or for all of many things.
 *
 * Any: the first in the list that is there; of that alone something is taken. All: nothing is taken before all are
 * there, and then everything in one step, see struct shm_sync; nobody ever sees that something is missing which is
 * given back afterwards. An auto-reset event, a mutex and a semaphore are taken; the others are only looked at.
 */
#ifndef SHM_WAITSET_H
#define SHM_WAITSET_H

#include "transport/bus.h"
#include "transport/mailbox.h"
#include "transport/sync.h"

enum { SHM_WAITSET_MAX = 1024 };

enum shm_source_kind {
    SHM_SOURCE_SYNC,   /* event, mutex, semaphore; a pipe, while it can be read */
    SHM_SOURCE_BOX,    /* while it has a message that matches the filter */
    SHM_SOURCE_BUS,    /* while its reader has a frame */
    SHM_SOURCE_MEMBER, /* from the end of that life on */
    SHM_SOURCE_DUE,    /* from that moment on */
    SHM_SOURCE_FILE,   /* while poll says so */
    SHM_SOURCE_ROOM, /* while `sync`, a pipe, has room for `least` bytes, or `box` for a message; at their end too */
};

struct shm_source {
    uint32_t kind;
    struct shm_sync_view *sync;
    struct shm_box *box;
    const struct shm_filter *filter; /* BOX; NULL: any message */
    struct shm_bus_view *bus;
    struct shm_subscription *subscription;
    shm_member_id member;
    uint64_t due_ns;
    uint64_t least; /* ROOM of a pipe */
    int fd;         /* FILE; MEMBER: its pidfd, -1: none, then its end is seen when it is reaped */
    short events;   /* of poll */
    bool abandoned; /* out: the owner of the mutex that was taken had died */
    bool there;     /* out, of shm_waitset_look */
    /* of the wait */
    bool impatient;
    uint64_t first; /* whose turn it was when a slice ended and it was free; 0: it was not */
    uint64_t seen;
};

/* Wait until deadline_ns (0: not at all) for one of them, *which, or for all: 0, EMPTY, TIMEOUT, CLOSED, INTERRUPTED,
 * INVALID (none, too many, or one twice), NO_MEMORY, SYSTEM. */
int shm_waitset_any(struct shm_thread *self, struct shm_source *sources, uint32_t count, uint32_t *which,
                    uint64_t deadline_ns);
int shm_waitset_all(struct shm_thread *self, struct shm_source *sources, uint32_t count,
                    uint64_t deadline_ns);

/* Until one or more of them are there; which, is said by `there`. Nothing is taken. */
int shm_waitset_look(struct shm_thread *self, struct shm_source *sources, uint32_t count,
                     uint64_t deadline_ns);

/* The same for one object alone: 0, EMPTY, TIMEOUT, CLOSED, INTERRUPTED. */
int shm_sync_wait(struct shm_thread *self, struct shm_sync_view *view, bool *abandoned, uint64_t deadline_ns);

#endif
