/* Looking at a system: who does what. Nothing here writes shared memory, and nothing is trusted.
 *
 * An observer is no member. It reads the tables of a segment into memory of its own, so that neither a full /dev/shm,
 * nor a file that is cut short, nor bytes that change meanwhile can harm it, and pages that nobody has touched stay
 * unallocated: a read-only mapping would give them pages.
 */
#ifndef SHM_LOOK_H
#define SHM_LOOK_H

#include "memory/member.h"

/* What one thread does at the moment. */
struct shm_activity {
    uint32_t place;
    uint32_t thread; /* of the operating system */
    shm_call_id serving;
    uint64_t serving_since; /* 0: nothing that it has said */
    char what[SHM_WHAT_BYTES + 1];
    uint32_t wait_kind; /* enum shm_wait_kind; NOTHING: it runs */
    uint32_t object;
    uint64_t waits_since, waits_until;
};

/* The thread of a place of member `slot`; false: it has no thread there, or one that does and says nothing. */
bool shm_look_place(const struct shm_segment *segment, uint32_t place, uint32_t slot,
                    struct shm_activity *activity);
/* The ring of an open mailbox, NULL: there is none that can be read. */
const struct shm_ring *shm_look_ring(const struct shm_segment *segment, uint32_t box);
/* Messages that wait in it, as far as its hints say. */
uint64_t shm_look_depth(const struct shm_ring *ring);
/* The member that is to answer a cell, as a slot; 0: nobody, it is not pending. */
uint32_t shm_look_server(const struct shm_segment *segment, uint32_t cell);

/* The member that has taken a call, also when it is closed already; 0: nobody has. */
shm_member_id shm_look_taker(const struct shm_segment *segment, shm_call_id call);
/* What the thread that has taken a call says, or said before it died, that it runs for it: SHM_WHAT_BYTES + 1. False:
 * nobody has taken it, or the thread is at something else, or its place is another's by now. */
bool shm_look_service(const struct shm_segment *segment, shm_call_id call, char *what);

/* An image of the segment `fd`: header, tables and the heads of rings. Statuses as of shm_segment_attach, but CLOSED
 * systems are read too. To be closed by shm_look_close, not detached. */
int shm_look_open(struct shm_segment *image, int fd);
void shm_look_close(struct shm_segment *image);

#endif
