/* The ring of a mailbox: claim, publish, take, set aside, sweep. Nothing here waits. */
#ifndef SHM_RING_H
#define SHM_RING_H

#include "transport/park.h"

enum {
    SHM_KIND_CAST,
    SHM_KIND_CALL,
    SHM_KIND_REPLY,
    SHM_KIND_TIMER,
    SHM_KIND_EXIT,
    SHM_KIND_NOTIFY,
    SHM_KIND_ANY = 7
};

#define SHM_TAG_MASK ((UINT64_C(1) << 61) - 1)
#define SHM_TAG_ANY UINT64_MAX
/* Of the runtime's order to stop: no user's tag, and the last that could be generated. */
#define SHM_TAG_ORDER SHM_TAG_MASK
#define SHM_SENDER_ANY UINT64_MAX

static inline uint64_t shm_header_make(uint32_t kind, uint64_t tag)
{
    return (uint64_t)kind << 61 | (tag & SHM_TAG_MASK);
}

/* How a watcher knows a notice: count, 43 bits of it, so that no number looks like a status | index + 1. */
static inline uint64_t shm_notice_number(uint64_t count, uint32_t index)
{
    return (count & (SHM_COUNT_MASK >> 1)) << 20 | (index + 1);
}

#define SHM_FORMAT_BYTES 0 /* the body is the user's bytes; other formats are the binding's */

/* What is received without a slot. */
enum shm_told { SHM_TOLD_NOTHING, SHM_TOLD_EXIT, SHM_TOLD_LINK, SHM_TOLD_REPLY, SHM_TOLD_BITS };

/* In a message's flags: the runtime's own, which nobody misses when it is lost with its receiver; not counted then. */
#define SHM_FLAG_OWN 0x8000u
/* A rendezvous: whoever receives it tells its sender, and nobody answers. */
#define SHM_FLAG_MEETING 0x4000u
/* How urgent it is, 0 the most; in a slot beside the flags. */
#define SHM_PRIORITY_SHIFT 4
#define SHM_PRIORITY_MAX 1023u
#define SHM_PRIORITY_BITS (SHM_PRIORITY_MAX << SHM_PRIORITY_SHIFT)

/* A message on its way in or out. */
struct shm_message {
    uint64_t header;
    shm_member_id sender; /* stamped by send */
    shm_call_id call;
    const void *body; /* send: the bytes; receive: a copy, or the block through the read-only mapping */
    uint32_t len_bytes;
    uint16_t format;
    uint16_t flags;
    uint32_t lease;       /* index + 1 of the block that is the body, 0: inline */
    uint32_t told;        /* enum shm_told: what is no message of the ring */
    uint64_t deadline_ns; /* of a call: nobody waits for its answer afterwards; 0: it has none */
    shm_call_id
        letter;      /* REPLY: the call that is answered, whose cell holds the body; the receiver frees it */
    uint64_t notice; /* EXIT: its number; of a notification: its bits */
    /* of ports only */
    const void *annex;    /* NULL: none; receive: a copy */
    uint32_t annex_bytes; /* up to SHM_ANNEX_BYTES */
    shm_port_id source;   /* the port of the sender that it comes from, 0: none */
    uint64_t group;       /* id of the group that it was addressed to, 0: none */
    uint64_t number;      /* received: its number among those that the port's owner has received */
    uint32_t priority;    /* 0, the most urgent, to SHM_PRIORITY_MAX */
    uint64_t position;    /* received: in the ring */
    /* EXIT notices only */
    uint32_t cause; /* reason:4 | status:16 of the end, reason 0: nobody had said it when the notice fired */
    uint32_t undelivered;
};

struct shm_filter {
    shm_member_id sender;           /* or SHM_SENDER_ANY */
    uint64_t tag;                   /* or SHM_TAG_ANY; 0 matches messages without a tag */
    uint32_t kinds;                 /* bit mask of 1 << kind */
    const struct shm_filter *other; /* what matches this one instead matches too; NULL: none */
    /* No condition, but the receiver's buffer: a match of so many bytes or more stays, TOO_SMALL; 0: all fit it. */
    uint64_t too_large;
    uint64_t tag_from, tag_until; /* tags from the one, and below the other; tag_until 0: all */
    /* Of the first of several filters, for all of them: */
    uint64_t from, until; /* ring positions likewise; nothing that has no slot has one */
    uint64_t ends; /* urgent: a match of this tag comes after all before it, and before all others; 0: none */
    bool urgent;   /* take the most urgent match, the oldest of these; else the oldest */
    bool keeps;    /* the message stays: the receiver gets a copy, and no call is his */
    bool raw;      /* only what users have sent; the order to stop, if it matches, stays: CLOSED */
};

#define SHM_FILTER_NONE ((struct shm_filter){.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = ~0u})

static inline bool shm_filter_is_open(const struct shm_filter *filter)
{
    if (filter->raw)
        return false;
    for (; filter; filter = filter->other)
        if (filter->sender == SHM_SENDER_ANY && filter->tag == SHM_TAG_ANY && filter->kinds == ~0u &&
            filter->tag_until == 0 && filter->until == 0)
            return true;
    return false;
}

/* Does a message of this header and sender match this condition, whatever `other` says? */
static inline bool shm_filter_fits(const struct shm_filter *filter, uint64_t header, shm_member_id sender)
{
    uint64_t tag = header & SHM_TAG_MASK;
    return (filter->kinds >> (header >> 61) & 1) && (filter->tag == SHM_TAG_ANY || filter->tag == tag) &&
           (filter->tag_until == 0 || (tag >= filter->tag_from && tag < filter->tag_until)) &&
           (filter->sender == SHM_SENDER_ANY || filter->sender == sender);
}

/* Bits have no sender and no tag: they are for a receive without conditions, or one that asks for them alone. */
static inline bool shm_filter_takes_bits(const struct shm_filter *filter)
{
    return filter->sender == SHM_SENDER_ANY &&
           ((filter->kinds == ~0u && filter->tag == SHM_TAG_ANY && filter->tag_until == 0) ||
            (filter->kinds == 1u << SHM_KIND_NOTIFY && (filter->tag == SHM_TAG_ANY || filter->tag == 0)));
}

/* A mailbox as a process has it open: the ring stays mapped and typed while `lease` is held. */
struct shm_box {
    struct shm_ring *ring;
    uint32_t index;
    uint64_t count; /* of the record's word */
    shm_member_id owner;
    shm_lease_index lease;
    uint64_t capacity;
    uint32_t mask, shift; /* of the number of slots */
    uint32_t slot_bytes, body_bytes, place_words;
    uint32_t message_bytes; /* of every body, 0: any */
    uint32_t envelope_at;   /* of a port: where in its slots the envelopes are; 0: it is no port */
    uint32_t block;         /* that the ring lies in */
    unsigned char *slots;
    struct shm_aside *asides;
    unsigned char *bodies;
    struct shm_set *receivers, *senders, *watchers;
    struct shm_woken woken;          /* of senders */
    _Atomic uint64_t delivered_seen; /* stale at worst: then send looks again */
    _Atomic int released; /* this hold is given up: those of this process who wait here end as CLOSED */
};

/* The measure of a port's ring in which bodies of so many bytes, and an envelope, have room. */
static inline uint32_t shm_ring_port_body(uint32_t body_bytes)
{
    return (uint32_t)(shm_round_up(body_bytes, 8) + sizeof(struct shm_envelope));
}

/* The bytes a ring of these measures takes. */
uint64_t shm_ring_bytes(uint32_t capacity, uint32_t body_bytes, uint32_t place_words);
void shm_ring_format(struct shm_ring *ring, uint32_t capacity, uint32_t body_bytes, uint32_t place_words);
/* Point `box` into the ring that begins `block`, after its geometry was checked against the block: 0 or CORRUPTED. What
 * was checked is copied, and the ring is not asked again. */
int shm_ring_view(struct shm_box *box, const struct shm_segment *segment, uint32_t block);

/* Claim, copy, publish, wake: 0, FULL, CLOSED, CORRUPTED; TOO_LARGE for the slot; INVALID: the mailbox takes bodies of
 * one length, and this has another. message->lease, if any, is held by this member before, and travels
 * with the message afterwards; when refused it is the sender's as before. `behind` keeps the order of the line: it
 * is refused as FULL while others wait for room, unless there is room for all of them. */
int shm_ring_send(struct shm_thread *self, struct shm_box *box, const struct shm_message *message,
                  bool behind);

/* Take the oldest message that matches: 0, EMPTY, BUSY (another receiver has the right), CLOSED (closed and
 * drained), TOO_SMALL (it stays, for it is too large for the receiver; message->len_bytes says how large), CORRUPTED (in the list or at the head is what cannot be there; no later message is passed). The body is copied to self->scratch, or its block is held by this member afterwards. `looked` in and
 * out: ring position up to which everything was seen not to match; a filtered receive starts there again. */
int shm_ring_receive(struct shm_thread *self, struct shm_box *box, const struct shm_filter *filter,
                     struct shm_message *message, uint64_t *looked);

/* A request becomes the taker's, who says that he serves it, before it is taken: his death from then on is seen at the
 * caller's cell. False: the caller has left, and it must not be executed. True for call 0, which is none. */
bool shm_call_take(struct shm_thread *self, shm_call_id call);

/* Is there something a receive could act on? Loads only. */
bool shm_ring_readable(const struct shm_thread *self, const struct shm_box *box,
                       const struct shm_filter *filter, uint64_t looked);
bool shm_ring_writable(const struct shm_box *box);
/* Are as many messages undelivered as it has room for? */
bool shm_ring_is_full(const struct shm_box *box);
/* Can a filtered receive of this thread, which has looked at everything below `looked`, never end? The mailbox is full
 * of what it declines, nothing is on its way, every other receive has declined it too, and no notice that is armed, and
 * no letter that is open, could match. Loads only. */
bool shm_ring_starves(struct shm_thread *self, const struct shm_box *box, const struct shm_filter *filter,
                      uint64_t looked);
/* Set bits, for the next receive that is open or asks for kind NOTIFY: it gets all that were set since the last. 0 or
 * CLOSED. Never waits. */
int shm_ring_notify(struct shm_thread *self, struct shm_box *box, uint64_t bits);
/* Does anybody wait here who has not declined what is there? Loads only. */
bool shm_ring_is_awaited(const struct shm_thread *self, const struct shm_box *box);
/* Something that is no message has come for the mailbox: its receivers look. */
void shm_ring_tell(struct shm_thread *self, struct shm_box *box);
/* Is there an answered letter that receivers of this mailbox, this member's own, have not been told of? */
bool shm_ring_has_letter(const struct shm_thread *self, const struct shm_box *box);
/* Do the ring's numbers fit together? 0, or CORRUPTED: then no wait on this mailbox may ever end. Loads only. */
int shm_ring_check(const struct shm_thread *self, const struct shm_box *box);
/* Messages undelivered, those set aside included; exact when nobody acts. */
uint64_t shm_ring_count(const struct shm_box *box);
/* Help the tail past every position that was claimed; the tail then. */
uint64_t shm_ring_help_tail(const struct shm_box *box);

/* For reap: a CLAIMING, CLAIMED or RIGHT flight of a dead member on an open mailbox. */
void shm_ring_reap_flight(struct shm_thread *self, struct shm_box *box, uint32_t victim, shm_word word,
                          const struct shm_flight *flight);
/* Count what is queued as lost, release what it holds and let `fail` tell the callers, before the ring's block is
 * freed; the caller has it locked. */
void shm_ring_drop_messages(struct shm_thread *self, uint32_t block,
                            void (*fail)(struct shm_thread *, shm_call_id));

/* For the owner of a port: no message is taken while it holds the take right. 0, BUSY, CORRUPTED. */
int shm_ring_hold(struct shm_thread *self, struct shm_box *box);
void shm_ring_let(struct shm_thread *self, struct shm_box *box);
/* When the oldest message of a port arrived, which is readable; UINT64_MAX: none of those that are there can be received
 * any more. A guess while another receives. */
uint64_t shm_ring_oldest_ns(const struct shm_thread *self, const struct shm_box *box);
/* For who holds the port so: all that was sent until now is lost. What is there goes, and `fail` tells its callers; what is
 * being written will go when it is at head, and its callers are to be told by whoever calls this. */
void shm_ring_drop_all(struct shm_thread *self, struct shm_box *box,
                       void (*fail)(struct shm_thread *, shm_call_id));

/* Is there room for everybody in the line of senders, and `more`? */
bool shm_ring_has_room_for_line(const struct shm_box *box, uint32_t more);
/* The same for one who looks on and stands in no line: could a message of his be sent now, or is the ring closed, or to be
 * swept? Loads only. */
bool shm_ring_has_room(const struct shm_box *box);
/* The thread has waited its turn in line: it may send a few messages before it queues again. */
void shm_ring_grant_turns(struct shm_thread *self);

/* Is there a message, an end or a tick to receive, or nothing any more because it is closed? Loads only; who receives
 * meanwhile does not hide what he leaves. */
bool shm_ring_has_message(const struct shm_thread *self, const struct shm_box *box);
/* The same for what matches. False also while somebody receives, after whom all watchers are woken; true while the ring is to
 * be swept. */
bool shm_ring_has_match(const struct shm_thread *self, const struct shm_box *box,
                        const struct shm_filter *filter);

struct shm_waitable shm_ring_receivers(struct shm_box *box);
/* Those who wait for a message without receiving it: each looks for himself, all are woken, and no baton is passed. */
struct shm_waitable shm_ring_watchers(struct shm_box *box);
struct shm_waitable shm_ring_senders(struct shm_box *box);

#endif
