/* Objects that lie in a block of their own, mailboxes, buses, sync objects and groups, and the records by which others find
 * them: how one is made. The maker takes a block, lays the object out, claims a record, and opens it. A maker that dies
 * before leaves a block without a record, or a record that nobody opens; reap frees both.
 */
#ifndef SHM_RECORD_H
#define SHM_RECORD_H

#include "memory/arena.h"

/* An object that is being made. */
struct shm_making {
    shm_lease_index lease;
    uint32_t block, index, slot;
    uint64_t count;       /* of the record's word: which life of the record it is */
    unsigned char *bytes; /* of the block: whatever its last user left */
};

/* Take a block: 0, NO_MEMORY, LIMIT, CORRUPTED. */
int shm_record_begin(struct shm_thread *self, struct shm_making *made, uint64_t len_bytes);
/* Claim a record of `kind` for `owner`, and have block (`what` is it the block of, SHM_BLOCK_*, 0: a mailbox) and object
 * say which: 0, or an error, and the block is given up. */
int shm_record_claim(struct shm_thread *self, struct shm_making *made, uint32_t kind, uint32_t what,
                     shm_member_id owner, uint32_t *box, uint64_t *box_count);
/* From now on others may open it. */
void shm_record_open(struct shm_thread *self, const struct shm_making *made);
/* Did an object that is to be mended not open for want of something, so that it must be tried again? */
bool shm_record_opened_to_mend(struct shm_thread *self, int status);

#endif
