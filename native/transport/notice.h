/* Exit notices: a preallocated word for each monitor (native/models/design/notice_model.py). */
#ifndef SHM_NOTICE_H
#define SHM_NOTICE_H

#include "transport/mailbox.h"

/* Watch `target`; the notice will be received from `box`, of this member. Returns its number (generation:43 | index + 1:20), or
 * an error. A target that is dead already fires at once. */
int64_t shm_notice_arm(struct shm_thread *self, struct shm_box *box, shm_member_id target);
/* Stop watching: true when no notice will come any more (also when it had fired and is dropped). */
bool shm_notice_disarm(struct shm_thread *self, uint64_t number);

/* For reap: fire what watches the victim, free what the victim watched. */
void shm_notice_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
