/* Reply cells: one call in flight each (layout.h has the state machine; native/models/design/call_model.py the proof). */
#ifndef SHM_CELL_H
#define SHM_CELL_H

#include "transport/mailbox.h"

/* A reply as the caller gets it. */
struct shm_reply {
    int status;       /* 0, PEER_DEAD, or CLOSED: the mailbox was closed with the request in it */
    bool served;      /* somebody had taken the request */
    const void *body; /* inside the cell, or in the block */
    uint32_t len_bytes;
    uint16_t format;
    uint32_t lease;        /* index + 1, held by the caller afterwards */
    shm_member_id replier; /* PEER_DEAD: who had taken the request, if anybody */
    uint32_t port;         /* index + 1 of the port that it was sent to, 0: none */
};

static inline uint32_t shm_call_cell(shm_call_id call)
{
    return (uint32_t)(call >> 44);
}

static inline uint64_t shm_call_generation(shm_call_id call)
{
    return call & SHM_COUNT_MASK;
}

/* Open a transaction addressed to `addressee` (0: to whoever takes it): 0, LIMIT or NO_MEMORY. `flags`: SHM_CELL_*;
 * ASYNC: completion is told through the member's finished bits, not to one waiting thread; LETTER: the answer is received
 * from the member's own mailbox, shm_message.letter, and its receiver frees the call. Goes before the request is sent. */
int shm_call_open(struct shm_thread *self, shm_member_id addressee, uint32_t flags, shm_call_id *call);
/* The tag of the request, which the answer to a letter bears; before the request is sent. */
void shm_call_label(struct shm_thread *self, shm_call_id call, uint64_t tag);
/* When it is over, though its caller is busy elsewhere; not of a letter. Before the request is sent. */
void shm_call_limit(struct shm_thread *self, shm_call_id call, uint64_t deadline_ns);

/* The request goes to port `index`, whose end fails the call; before it is sent. */
void shm_call_through(struct shm_thread *self, shm_call_id call, uint32_t index);
/* Port `index` is gone (`served`), or has lost what it had: calls that were sent to it, and are not answered, fail; or those
 * that nobody has taken. */
void shm_call_fail_port(struct shm_thread *self, uint32_t index, bool served);

/* A letter whose request could not be sent becomes a plain call, to be cancelled: false when its answer (its addressee has
 * ended) was received already, and with it the call was freed. */
bool shm_letter_withdraw(struct shm_thread *self, shm_call_id call);

/* Bit 60 is set in generated tags and in no other. Members take their numbers by the block. */
#define SHM_TAG_GENERATED (UINT64_C(1) << 60)
#define SHM_TAG_BLOCK UINT64_C(4096)
/* A tag that no other member has or gets, nor an outstanding call. */
uint64_t shm_tag_make(struct shm_thread *self);

/* After the request was published: is the addressee still alive? Else the cell fails as by reap. */
void shm_call_check(struct shm_thread *self, shm_call_id call, shm_member_id addressee);
/* Is the transaction done (or failed)? One load. */
bool shm_call_is_done(const struct shm_segment *segment, shm_call_id call);
/* Can a call of this member still be answered, or has been? False: its cell holds what nobody could have left there,
 * and no wait for it may ever end. Loads only. */
bool shm_call_is_sound(const struct shm_segment *segment, shm_call_id call);
/* The reply of a call that is done; the cell stays until shm_call_free. */
int shm_call_read(struct shm_thread *self, shm_call_id call, struct shm_reply *reply);
/* Free a cell that is done and read. */
void shm_call_free(struct shm_thread *self, shm_call_id call);
/* Wait for a call opened without ASYNC: 0, TIMEOUT, INTERRUPTED, CORRUPTED (see shm_call_is_sound); DEADLOCK: the wait
 * is on a circle of calls that wait for ever, whose self->cycle_count members lie in self->scratch, this one first;
 * ABORTED: this thread is aborted, and has not taken it, see abort.h; the call is open, or was answered meanwhile. */
int shm_call_wait(struct shm_thread *self, shm_call_id call, shm_member_id addressee, uint64_t deadline_ns);
/* Close the transaction from the caller's side: true when this closed it; false: the reply was first. */
bool shm_call_cancel(struct shm_thread *self, shm_call_id call);
/* Up to `room` async calls of this member that are done, each reported at least once; the number. */
uint32_t shm_call_finished(struct shm_thread *self, shm_call_id *calls, uint32_t room);
/* Report the calls too that are done and whose replier was stopped before he said so. Reads every cell. */
void shm_call_look(struct shm_thread *self);
/* Wait until some async call of this member is done, or shm_call_poke was called since the member's `pokes` read
 * `pokes_seen`: 0, TIMEOUT, INTERRUPTED. Finished bits are not consumed. One thread of the member at a time. */
int shm_call_wait_finished(struct shm_thread *self, uint64_t pokes_seen, uint64_t deadline_ns);
/* Wake the thread that waits in shm_call_wait_finished, without a completion. */
void shm_call_poke(struct shm_thread *self);

/* The request that was taken is about to be executed. REFUSED: withdrawn, must not be executed. */
int shm_call_serve(struct shm_thread *self, shm_call_id call);
/* A request that this member took and nobody will answer: its caller is told as if the member had died. */
void shm_call_fail(struct shm_thread *self, shm_call_id call);
/* Is the transaction still open for this member? One load. */
bool shm_call_is_open(const struct shm_segment *segment, shm_call_id call, uint32_t slot);
/* Answer: 0; REFUSED: not open, not yours, answered already; PEER_DEAD: the caller died. `lease`, if any, is
 * held by this member before and by the cell afterwards, when 0 is returned. */
int shm_call_reply(struct shm_thread *self, shm_call_id call, const void *body, uint32_t len_bytes,
                   uint16_t format, uint32_t lease);

/* For reap. */
void shm_call_reap_flight(struct shm_thread *self, uint32_t victim, shm_word word,
                          const struct shm_flight *flight);
void shm_call_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
