/* Rendezvous: a message whose sender waits until it is received.
 *
 * It is a request that its receipt answers. Who takes it is its addressee from then on, and his death fails it; so the
 * sender goes on exactly when the message was received, and a sender that gives up, or dies, is not heard any more.
 */
#ifndef SHM_MEETING_H
#define SHM_MEETING_H

#include "transport/cell.h"

/* What was received is about to be used: 0; REFUSED: a request that was withdrawn, and must not be. A rendezvous is
 * accepted: its sender goes on, and it is a message like others afterwards. */
int shm_meeting_accept(struct shm_thread *self, struct shm_message *message);
/* Does somebody wait in a receive on the mailbox, or come into one within a moment? */
bool shm_meeting_is_possible(const struct shm_box *box);
/* The rendezvous `call` was sent to one who waits: 0, it is done, or was accepted; FULL: he did not take it, and it is
 * withdrawn; INTERRUPTED: it is open. Waits no longer than a woken receiver needs. */
int shm_meeting_try(struct shm_thread *self, struct shm_box *box, shm_call_id call);

#endif
