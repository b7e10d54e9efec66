/* Mailboxes: made, opened, closed; send and receive that wait. */
#ifndef SHM_MAILBOX_H
#define SHM_MAILBOX_H

#include "transport/ring.h"

/* A new mailbox owned by `owner` (0: this member): 0, NO_MEMORY, LIMIT, INVALID (capacity 1 to 2^20; body_bytes 8
 * to 65 536). */
int shm_box_make(struct shm_thread *self, struct shm_box *box, uint32_t kind, uint32_t capacity,
                 uint32_t body_bytes, shm_member_id owner);
/* From now on it takes bytes of exactly this length, 1 to 2^30; for the maker, before others can find it. */
void shm_box_fix_length(struct shm_box *box, uint32_t message_bytes);
/* Open mailbox `index` in the life `count`: 0 or NOT_FOUND. */
int shm_box_open(struct shm_thread *self, struct shm_box *box, uint32_t index, uint64_t count);
/* The same for a reaper: false also when the table of leases is full, which makes the reap be repeated. */
bool shm_box_open_to_mend(struct shm_thread *self, struct shm_box *box, uint32_t index, uint64_t count);
/* Give up this process's hold. The last holder's mailbox disappears, a persistent one excepted. */
void shm_box_release(struct shm_thread *self, struct shm_box *box);
/* One lease that no process holds keeps the mailbox, until it is unpersisted: 0, LIMIT, NO_MEMORY, BUSY. */
int shm_box_keep(struct shm_thread *self, struct shm_box *box);
/* The same of one that is persistent from now on. */
int shm_box_persist(struct shm_thread *self, struct shm_box *box);
void shm_box_unpersist(struct shm_thread *self, struct shm_box *box);
/* Accept nothing more, drop what is queued, wake everybody; returns how many messages this mailbox has lost. */
uint64_t shm_box_close(struct shm_thread *self, struct shm_box *box);
bool shm_box_is_closed(const struct shm_box *box);
/* Has the actor that it belongs to ended? Its reaper closes it a moment later. */
bool shm_box_is_dead(const struct shm_segment *segment, const struct shm_box *box);
/* Is mailbox `index` open, in the life `count`? Loads only. */
bool shm_box_is_open(const struct shm_segment *segment, uint32_t index, uint64_t count);
/* Something that is no message has come for mailbox `index`, in the life `count`: its receivers look. False: it could not
 * be opened, which is to be tried again, see shm_box_open_to_mend, unless it is gone. */
bool shm_box_tell(struct shm_thread *self, uint32_t index, uint64_t count);
/* Drop what was accepted by a mailbox that is closed. */
void shm_box_drain_closed(struct shm_thread *self, struct shm_box *box);
/* This hold receives from the mailbox, until it is given up. */
void shm_box_say_receives(struct shm_thread *self, struct shm_box *box);
/* Holds that have said so, of those who live. Loads only; as long as the table of leases. */
uint32_t shm_box_receivers(const struct shm_segment *segment, const struct shm_box *box);
/* Messages that were lost with their receivers, in all mailboxes of the system. */
uint64_t shm_box_undelivered(const struct shm_segment *segment);

/* Set bits of the mailbox's notification, see shm_ring_notify: 0, CLOSED, PEER_DEAD. */
int shm_box_notify(struct shm_thread *self, struct shm_box *box, uint64_t bits);
/* Send without waiting, behind those who wait: 0, FULL, CLOSED, PEER_DEAD. */
int shm_box_try_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message);
/* Send, waiting for room until deadline_ns (0: not at all): 0, FULL, TIMEOUT, CLOSED, PEER_DEAD, INTERRUPTED. */
int shm_box_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message,
                 uint64_t deadline_ns);
/* Receive, waiting until deadline_ns (0: not at all): 0, EMPTY, TIMEOUT, CLOSED, INTERRUPTED, STARVED. */
int shm_box_receive(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                    struct shm_message *message, uint64_t deadline_ns);

/* Receive from the first of up to SHM_PLACE_ITEMS mailboxes that has something; *which says which. Statuses as
 * above; CLOSED when one of them is. */
int shm_box_receive_any(struct shm_thread *self, struct shm_box **boxes, uint32_t count,
                        struct shm_message *message, uint32_t *which, uint64_t deadline_ns);

/* The part of shm_member.drop_box that concerns mailboxes. */
void shm_box_drop(struct shm_thread *self, uint32_t box, uint32_t block);

/* For reap: close the mailboxes a dead member owned. */
void shm_box_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
