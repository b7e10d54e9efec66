/* Ports: mailboxes with an owner, who alone receives, and who may change (layout.h: struct shm_port).
 *
 * A port is made for an actor, and kept until that deletes it or ends. Its owner receives from it, or from all of its
 * ports that are enabled: the oldest message of the most urgent. Whoever migrates a port gives it to another actor, its
 * messages too, and its senders do not notice. What is here and waits is in transport/mailbox.h, that it is a port or not.
 */
#ifndef SHM_PORT_H
#define SHM_PORT_H

#include "transport/mailbox.h"

/* As whom a thread receives from a port: from this one, from any that is enabled, or for its handler. */
enum shm_port_mode { SHM_PORT_DIRECT, SHM_PORT_ANY, SHM_PORT_HANDLER };

static inline shm_port_id shm_port_id_of(uint32_t index, uint64_t count)
{
    return (count & (SHM_COUNT_MASK >> 1)) << 20 | (index + 1);
}

/* The owner that the word of a port names. */
static inline shm_member_id shm_port_owner(shm_word word)
{
    return shm_member_id_of(word, shm_word_owner(word));
}

/* Has its owner ended, and was it not given away before? */
static inline bool shm_port_is_orphaned(const struct shm_segment *segment, const struct shm_box *box)
{
    const struct shm_port *port = shm_port_at(segment, box->index);
    shm_word word = atomic_load(&port->word);
    return !shm_member_lives(segment, shm_port_owner(word)) && atomic_load(&port->word) == word;
}

/* What a new port is to be. */
struct shm_port_config {
    shm_member_id owner; /* 0: this member */
    uint32_t capacity, body_bytes;
    uint64_t site; /* of a label, 0: none */
    bool is_default;
};

/* A new port, disabled: 0, PEER_DEAD (its owner), NO_MEMORY, LIMIT, INVALID (capacity, body_bytes 8 to 65 384). */
int shm_port_make(struct shm_thread *self, struct shm_box *box, const struct shm_port_config *config);
/* The actor's default port, made when there is none; `config` says for whom: 0 and its id, else as above. */
int shm_port_default(struct shm_thread *self, const struct shm_port_config *config, shm_port_id *id);
/* Open a port: 0, NOT_FOUND, BUSY, LIMIT, NO_MEMORY. */
int shm_port_open(struct shm_thread *self, struct shm_box *box, shm_port_id id);
/* Is port `index` its owner's default port? One that was made to be it, by one who died before it was, is not. Loads only. */
bool shm_port_is_default(const struct shm_segment *segment, uint32_t index);
/* Is there a port of this id, which can be sent to? Loads only. */
bool shm_port_is_there(const struct shm_segment *segment, shm_port_id id);
/* Remove a port: its messages are dropped, its callers fail, whoever waits there is told. 0, NO_PORT, INVALID: it is the
 * default port. */
int shm_port_delete(struct shm_thread *self, struct shm_box *box);

/* Have the port among those that shm_port_receive_any receives from, with that priority (low is urgent); or not: 0,
 * NO_PORT, INVALID (it has a handler), NO_MEMORY. */
int shm_port_enable(struct shm_thread *self, struct shm_box *box, uint32_t priority);
int shm_port_disable(struct shm_thread *self, struct shm_box *box);
/* From now on, or no more, only those receive whose port_mode is HANDLER: 0, NO_PORT, INVALID. */
int shm_port_handle(struct shm_thread *self, struct shm_box *box, bool handled);

/* Give the port to another actor, with its messages or (`drops`) without: 0, NO_PORT, INVALID (default, handled, or his
 * already), PEER_DEAD (he is, and the port is gone or stays, as he died), BUSY, NO_MEMORY. *number: of the message that
 * would have been received next; *local: the port's number among the new owner's. */
int shm_port_migrate(struct shm_thread *self, struct shm_box *box, shm_member_id to, bool drops,
                     uint64_t *number, uint32_t *local);

/* May this thread receive from the port now? 0, NO_PORT, INVALID: it is its handler's. Loads only. */
int shm_port_may_receive(const struct shm_thread *self, const struct shm_box *box);
static inline int shm_port_check(const struct shm_thread *self, const struct shm_box *box)
{
    return box->envelope_at && !self->loses ? shm_port_may_receive(self, box) : 0;
}
/* The holder of the take right has received: the number of the message. */
uint64_t shm_port_count(struct shm_thread *self, const struct shm_box *box);
/* A message was published, or one that is there may be had now: wake who waits for any port of the owner. */
void shm_port_wake(struct shm_thread *self, const struct shm_box *box);

/* Where this member waits for any of its ports: 0 and how often its enabled ports have changed; NO_MEMORY. */
int shm_desk_open(struct shm_thread *self, uint64_t *changes);
/* Receive from the enabled of these ports, which are this member's: *which one. 0, EMPTY, TIMEOUT, CLOSED, TOO_SMALL
 * (`too_large`: as of struct shm_filter); INTERRUPTED: also when the enabled ports have changed since `changes`, or this
 * process has given up its hold of one of these. */
int shm_port_receive_any(struct shm_thread *self, struct shm_box **boxes, uint32_t count, uint64_t changes,
                         uint64_t too_large, struct shm_message *message, uint32_t *which,
                         uint64_t deadline_ns);
struct shm_waitable shm_desk_waiters(const struct shm_segment *segment, uint32_t slot);

/* For reap: the ports of the victim, and those of whoever has ended. */
void shm_port_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
