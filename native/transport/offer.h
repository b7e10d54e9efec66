/* Offers: messages that wait with their sender until their receiver pulls them.
 *
 * One queue for each pair, made with the first offer: a mailbox of kind OFFERS, whose record says who offers and who
 * pulls, and which a lease of no process keeps. Each use opens it and lets it go again, so that the reap of either of
 * the two frees it at once, whatever the other does. An offer never waits for the receiver, and sets SHM_BIT_OFFER in
 * his own mailbox; he is told anew as long as more is left.
 */
#ifndef SHM_OFFER_H
#define SHM_OFFER_H

#include "transport/mailbox.h"

#define SHM_BIT_OFFER (UINT64_C(1) << 63)

enum { SHM_OFFER_SLOTS = 128, SHM_OFFER_BODY_BYTES = 192 };

/* Offer a message to the owner of the mailbox `to`, his own: 0, FULL, PEER_DEAD, LIMIT, NO_MEMORY, TOO_LARGE; BUSY: he
 * was stopped while he opened the queue. One thread of a member at a time offers to one receiver for the first time. */
int shm_offer_send(struct shm_thread *self, struct shm_box *to, const struct shm_message *message);
/* Take the oldest offer of `sender` to this member, whose own mailbox is `own`: 0, EMPTY, PEER_DEAD, BUSY. Received as
 * by shm_ring_receive. */
int shm_offer_pull(struct shm_thread *self, struct shm_box *own, shm_member_id sender,
                   struct shm_message *message);
/* Take back the oldest offer of this member that `receiver` has not pulled; statuses as above. */
int shm_offer_recall(struct shm_thread *self, shm_member_id receiver, struct shm_message *message);
/* Offers that were not pulled; exact when nobody acts; or BUSY. */
int64_t shm_offer_count(struct shm_thread *self, shm_member_id sender, shm_member_id receiver);
/* Who offers something to this member at the moment: their ids, `room` at most; how many. Loads only. */
uint32_t shm_offer_senders(const struct shm_thread *self, shm_member_id *senders, uint32_t room);
/* For reap: the queues of what the victim offered, and of what was offered to it. */
void shm_offer_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
