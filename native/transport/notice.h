/* Notices: a preallocated word for each monitor, link and timer (native/models/design/notice_model.py). */
#ifndef SHM_NOTICE_H
#define SHM_NOTICE_H

#include "transport/mailbox.h"

/* Watch `target`; the notice will be received from `box`, of this member. Returns its number (generation:43 | index + 1:20), or
 * an error. A target that is dead already fires at once. */
int64_t shm_notice_arm(struct shm_thread *self, struct shm_box *box, shm_member_id target);
/* Stop watching: true when no notice will come any more (also when it had fired and is dropped). */
bool shm_notice_disarm(struct shm_thread *self, uint64_t number);

/* Link this member with another: when either ends, the other is told. `box` is this member's mailbox, `other_box` the
 * other's, in the life `other_life`. 0; REFUSED: they are linked, whoever did it; LIMIT, NO_MEMORY. */
int shm_notice_link(struct shm_thread *self, struct shm_box *box, shm_member_id other, uint32_t other_box,
                    uint64_t other_life);
/* End the link, whoever made it: true when there was one, or a notice of the other's end that was not received. */
bool shm_notice_unlink(struct shm_thread *self, shm_member_id other);

/* A tick of this message, to be received from `box`: armed, and its number as of a monitor; or TOO_LARGE, LIMIT,
 * NO_MEMORY. With a period its receipt arms it again. shm_notice_disarm ends it, and drops a tick that has fired. */
int64_t shm_notice_set(struct shm_thread *self, const struct shm_box *box, const struct shm_message *message,
                       uint64_t period_ns);
/* It is due: 0; BUSY: nobody could be told, try again; NOT_FOUND: it is no more. One that has fired stays one tick. */
int shm_notice_tick(struct shm_thread *self, uint64_t number, uint64_t due_ns);
/* Is it armed, or has it fired and was not received? Loads only. */
bool shm_notice_is_set(const struct shm_member *member, uint64_t number);
/* A mailbox, in the life `count`, is gone: ticks that nobody received go. */
void shm_notice_drop_box(struct shm_thread *self, uint32_t index, uint64_t count);

/* For reap: fire what watches the victim, free what the victim watched. */
void shm_notice_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
