/* Every shared byte of a system, in one place.
 *
 * A system is one sparse file in shared memory and one life-lock file that is never mapped:
 *
 *     0        64          4096         tables                        heap
 *     | frozen | header    | members places chunks boxes names        | class 12 | class 13 | ... |
 *     |        |           | notices leases blocks, hints             |          |          |     |
 *
 * Each table and each size class has its own range of the file, large enough for its limit, and gets pages only
 * as it grows (fallocate before first use, so a full /dev/shm is an error code and never SIGBUS). A table's bytes
 * keep their type for ever and their counts are never reset: a stale reference meets another count, never other
 * data. Processes map the whole file once to write and once to read, so a reference is an offset, and memory that
 * was warm stays warm. Rejected alternatives: docs/decisions/0001-one-sparse-segment.md.
 *
 * The first 64 bytes and the meaning of the life-lock file never change between versions.
 */
#ifndef SHM_LAYOUT_H
#define SHM_LAYOUT_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/word.h"

#define SHM_MAGIC UINT64_C(0x31306370696d6873) /* "shmipc01" */
#define SHM_VERSION 3
#define SHM_LINE 64

enum {
    SHM_PAGE_BYTES = 4096,
    SHM_NAME_BYTES = 72,   /* 64 characters, a NUL, and a round size */
    SHM_PLACE_ITEMS = 8,   /* objects in one wait that need no block */
    SHM_PLACE_FLIGHTS = 8, /* claims nest no deeper */
    SHM_WHAT_BYTES = 32,   /* what a thread serves, as text */
    SHM_CHUNK_CELLS = 64,
    SHM_CELL_INLINE = 192,
    SHM_NOTICE_INLINE = 400, /* bytes of a timer's body */
    SHM_BODY_FORMATS = 6,    /* that the binding writes, see native/binding/codec.pxi */
    SHM_MIN_CLASS = 12,      /* 4 KiB */
    SHM_MAX_CLASS = 44,
    SHM_CLASS_BLOCKS = 16384,
    SHM_MIN_SLOTS = 16,
    SHM_MAX_SLOTS = 1 << 20,
};

/* ---- header ------------------------------------------------------------------------------------------------ */

enum shm_table {
    SHM_TABLE_MEMBERS,
    SHM_TABLE_PLACES,
    SHM_TABLE_CHUNKS,
    SHM_TABLE_BOXES,
    SHM_TABLE_NAMES,
    SHM_TABLE_NOTICES,
    SHM_TABLE_LEASES,
    SHM_TABLE_PORTS,  /* item i: mailbox i as a port */
    SHM_TABLE_DESKS,  /* item m: of the member in slot m */
    SHM_TABLE_BLOCKS, /* one table for each size class from here on */
    SHM_TABLE_COUNT = SHM_TABLE_BLOCKS + SHM_MAX_CLASS - SHM_MIN_CLASS + 1,
};

/* A table: items of one type at a fixed offset. `ready` items have pages; it only grows, by CAS, after
 * fallocate. `free_hint` is where somebody last found or left a free item. */
struct shm_pool {
    uint64_t offset;
    uint32_t item_bytes;
    uint32_t max_items;
    uint32_t step; /* items added at a time */
    _Atomic uint32_t ready;
    _Atomic uint32_t free_hint;
    uint32_t spare;
};

enum shm_segment_state { SHM_SEGMENT_EMPTY, SHM_SEGMENT_MAKING, SHM_SEGMENT_READY, SHM_SEGMENT_CLOSED };

struct shm_header {
    /* frozen */
    uint64_t magic;
    uint64_t signature; /* of the rest of this layout, and of the C library's sem_t */
    uint32_t version;
    _Atomic uint32_t state;
    uint32_t uid;
    uint32_t life_offset; /* the life lock of member m is byte life_offset + m */
    uint64_t segment_bytes;
    uint64_t created_ns; /* CLOCK_REALTIME */
    uint64_t members_offset;
    uint32_t member_bytes;
    uint32_t max_members;
    /* end of the frozen 64 bytes */

    uint64_t memory_limit;   /* bytes the heap may reserve */
    uint32_t place_words;    /* length of a waiter set's bit map in words */
    uint32_t classes;        /* number of size classes */
    uint64_t heap_offset;    /* of class SHM_MIN_CLASS; the others follow */
    uint64_t time_namespace; /* inode of /proc/self/ns/time at creation; deadlines mean nothing elsewhere */
    uint64_t
        first_count; /* with which words of members and mailboxes begin: ids of a former system mean nobody */
    uint64_t spare0[2];

    _Alignas(SHM_LINE) _Atomic shm_word keeper; /* count | member that reaps at the moment | FREE, HELD */
    _Atomic uint64_t keeper_rounds;             /* grows while the keeper lives */
    _Atomic uint64_t member_changes;            /* grows when a member joins */
    _Atomic uint64_t root;                      /* id of the member whose end ends the system, 0: none */
    _Alignas(SHM_LINE) _Atomic uint64_t next_identity;
    _Atomic uint64_t next_tag;
    _Alignas(SHM_LINE) _Atomic uint64_t reserved_bytes; /* of the heap; a cache, see arena.h */
    _Atomic uint64_t rescued;                           /* conditions found true by a slice without a post */
    _Atomic uint64_t reaped;                            /* members reaped after a death */
    _Atomic uint64_t next_turn;                         /* of a wait in the lines of sync objects */

    _Alignas(SHM_LINE) struct shm_pool tables[SHM_TABLE_COUNT];
};

/* ---- members ----------------------------------------------------------------------------------------------- */

/* word = generation | claimer of the slot, 0: its own process | state; DYING with itself as owner: it leaves in order
 *
 *     FREE --claim(CAS)--> JOINING --activate--> LIVE --proven dead--> DYING --reaped--> FREE, gen + 1
 *                                                  '--leave--> DYING(self) --proven dead, or not all done--> DYING
 *
 * What is described here belongs to the generation that `described` says, no other.
 */
enum shm_member_state { SHM_MEMBER_FREE, SHM_MEMBER_JOINING, SHM_MEMBER_LIVE, SHM_MEMBER_DYING };

/* Names one life of one slot: generation:44 | slot:16; 0 names nobody. */
typedef uint64_t shm_member_id;

enum shm_member_kind {
    SHM_KIND_ROOT = 1,   /* created the system; its end ends it */
    SHM_KIND_WORKER = 2, /* was spawned; ends with its creator and with the root */
    SHM_KIND_ATTACHED = 3,
    SHM_KIND_FORK = 4, /* a forked child that holds copies of its parent's leases, and does nothing else */
};

/* Why a process ended: generation:44 | reason:4 | status:16, written once for each generation.
 * status is what waitpid gives. */
enum shm_exit_reason {
    SHM_EXIT_UNKNOWN,
    SHM_EXIT_RETURNED,  /* the actor's function returned, or it was told to stop */
    SHM_EXIT_EXCEPTION, /* an exception left it */
    SHM_EXIT_EXITED,    /* exit status, not 0, or a process that ended by itself */
    SHM_EXIT_SIGNAL,    /* ended by a signal */
    SHM_EXIT_KILLED,    /* ended by kill() of this library */
    SHM_EXIT_ORPHANED,  /* ended because its creator or root had ended */
};

struct shm_member_record {
    _Atomic shm_word word;
    _Atomic uint64_t exit_status; /* generation:44 | reason:4 | status:16 of the last life that ended here */
    _Atomic uint64_t exit_reason; /* the same form; what the process itself said before it ended */
    uint64_t identity;            /* never reused in the system */
    _Atomic int32_t pid;
    _Atomic uint32_t kind;
    _Atomic uint64_t start_time;    /* of /proc/pid/stat, in ticks */
    _Atomic uint64_t pid_namespace; /* inode */
    _Atomic shm_member_id creator;
    _Atomic uint32_t box;         /* index + 1 of its mailbox */
    _Atomic uint32_t completions; /* place + 1 of the thread that waits for finished cells */
    _Atomic uint64_t failed_casts;
    _Atomic uint64_t joined_ns;
    char name[SHM_NAME_BYTES];
    _Atomic uint64_t
        reaper; /* slot:16 | milliseconds:48 of who reaps this; saves double work, proves nothing */
    _Atomic uint64_t undelivered; /* low half of the generation:32 | messages lost with this life:32 */
    _Atomic uint64_t described;   /* generation of the fields above */
    _Atomic uint64_t
        suspected; /* low bits of the generation:16 | milliseconds:48 when it was first seen without */
    _Atomic uint32_t loop; /* place + 1 of the thread that alone answers method calls, 0: none */
    _Atomic uint32_t door; /* number + 1 of the abstract socket at which it tells its stacks, 0: none */
    _Atomic uint64_t
        alone; /* generation:44 | place + 1:20 of a wait at which no other thread could answer calls */
    _Atomic uint64_t main;   /* place + 1 of the thread that an abort of this process means, 0: none */
    _Atomic uint64_t ending; /* generation + 1 of who was reaped before the kernel gave back what it had */
    _Atomic uint32_t vigil;  /* robust futex of its native thread, 0: it keeps none; see vigil.h */
    uint32_t spare0;
    uint64_t spare[3];
};

/* ---- parking places ---------------------------------------------------------------------------------------- */

/* One for each thread that waits.
 *
 * word = generation | waker | state; the generation counts waits.
 *
 *     IDLE --arm--> ARMED --CAS by a waker--> NOTIFIED(waker) --re-arm--> ARMED
 *                     '--------leave----> LEAVING <--leave---'    LEAVING --baton passed--> IDLE
 */
enum shm_place_state { SHM_PLACE_IDLE, SHM_PLACE_ARMED, SHM_PLACE_NOTIFIED, SHM_PLACE_LEAVING };

enum shm_wait_kind {
    SHM_WAIT_NOTHING,
    SHM_WAIT_RECEIVE,  /* object: mailbox index; something to take */
    SHM_WAIT_SEND,     /* object: mailbox index; room */
    SHM_WAIT_CELL,     /* object: reply cell; done */
    SHM_WAIT_FINISHED, /* object: member slot; any of its cells done */
    SHM_WAIT_FRAME,    /* object: record of a bus; a frame to read */
    SHM_WAIT_PUBLISH,  /* object: record of a bus; the right to publish, and room */
    SHM_WAIT_MANY, /* object: record of the first of them; in the sets of any number of objects, see park.h */
    SHM_WAIT_PORT = 24, /* object: member slot; something to take from any of its enabled ports */
};

struct shm_wait_item {
    _Atomic uint32_t kind;
    _Atomic uint32_t object;
    _Atomic uint64_t ticket; /* order of arrival in the waiter set */
};

/* A flight word: what this thread is about to do, stored before the claim, cleared after the last wake.
 * Only a reaper reads it, after the thread's death. */
enum shm_flight_op {
    SHM_FLIGHT_NONE,
    SHM_FLIGHT_CLAIMING, /* object: mailbox, position: ring position, lease: block that travels */
    SHM_FLIGHT_CLAIMED,  /* as before; the claim succeeded */
    SHM_FLIGHT_RIGHT,    /* object: mailbox, position and lease: what is being taken, lease 0: no block */
    SHM_FLIGHT_BLOCK,    /* object: block that is locked */
    SHM_FLIGHT_FILL,     /* object: cell, lease: block of the reply */
    SHM_FLIGHT_NOTIFY,   /* object: mailbox whose receivers are to be told of bits */
    SHM_FLIGHT_ABORT,    /* object: place whose thread is being aborted */
};

struct shm_flight {
    _Atomic uint32_t op;
    _Atomic uint32_t object;
    _Atomic uint64_t position;
    _Atomic uint32_t lease; /* index + 1 */
    uint32_t spare;
    _Atomic shm_word lease_word; /* the lease's word while it is in flight (CLAIMING), or taken (RIGHT) */
};

struct shm_place {
    _Atomic shm_word owner; /* count | member | 0 free, 1 owned */
    _Atomic shm_word word;
    sem_t semaphore;
    _Atomic uint64_t looked; /* ring position + 1 up to which a filtered receive has looked */
    _Atomic uint32_t items_count;
    uint32_t thread;          /* of the operating system */
    _Atomic uint64_t serving; /* call being served: cell:20 | generation:44 */
    /* For those who look: plain stores of the place's own thread, which may be read torn or stale. Nothing is done
     * because of them, but that a call ends as DEADLOCK, see cycle.c: it believes the two times only when the word
     * is the same before and after. */
    _Atomic uint64_t serving_since; /* monotonic; 0: it serves nothing */
    _Atomic uint64_t waits_since;   /* of the wait that the word counts, with its deadline */
    _Atomic uint64_t waits_until;
    _Atomic uint64_t serving_what[SHM_WHAT_BYTES / 8];
    struct shm_wait_item items[SHM_PLACE_ITEMS];  /* 128 bytes */
    struct shm_flight flights[SHM_PLACE_FLIGHTS]; /* 256 bytes */
    /* The word `owner` as it was when somebody aborted its thread, which clears it; 0: nobody has. An abort that was meant
     * for an earlier thread names another word. */
    _Atomic shm_word abort;
    _Atomic uint64_t
        told; /* grows when a call whose request this thread took is closed, or marked by an abort */
    uint64_t spare[6];
};

/* The threads that wait for one condition, one bit for each place. A summary bit covers
 * place_words / 64 words; it may stay set when they are empty, never the other way round. */
struct shm_set {
    _Atomic uint64_t summary;
    _Atomic uint64_t next_ticket;
    uint64_t spare[6];
    _Atomic uint64_t words[];
};

/* ---- reply cells ------------------------------------------------------------------------------------------- */

/* word = generation | owner | state. PENDING names the addressee, FILLING and DONE the replier (or a reaper),
 * ABANDONED the filler. The generation grows with each use and is never reset.
 *
 *     FREE --register--> PENDING --CAS by the addressee--> FILLING --CAS--> DONE --caller--> FREE
 *                           |        '-- PENDING_ABORT --'     '-- caller leaves --> ABANDONED --filler--> FREE
 *                           '-- caller leaves --> FREE         PENDING, FILLING --addressee died--> FAILED
 *
 * DROPPED: as FAILED, of a request that was lost with its mailbox.
 * PENDING_ABORT: the caller was aborted and waits all the same.
 *
 * C1  close, mark  CAS seq_cst of word, then load of served_by -> take  CAS seq_cst of served_by, then load of word: one of
 *                  the two sees the other, and a request that is closed is not executed, or its server is told
 */
enum shm_cell_state {
    SHM_CELL_FREE,
    SHM_CELL_PENDING,
    SHM_CELL_PENDING_ABORT,
    SHM_CELL_FILLING,
    SHM_CELL_DONE,
    SHM_CELL_ABANDONED,
    SHM_CELL_FAILED,  /* done by a reaper or by the caller, who found the addressee dead; there is no body */
    SHM_CELL_DROPPED, /* done by whoever closed the mailbox before anybody served it; there is no body */
};

/* A call as it travels: cell:20 | generation:44; 0 names none. */
typedef uint64_t shm_call_id;

struct shm_cell {
    _Atomic shm_word word;
    _Atomic uint64_t served_by; /* generation:44 | place + 1:20; only goes forward */
    _Atomic uint32_t waiter;    /* place + 1 of the caller's thread */
    _Atomic uint32_t flags; /* who told the last caller may read the next one's: it wakes in vain, at worst */
    uint64_t replier;       /* member id; the addressee's until somebody answers */
    uint32_t len_bytes;
    uint16_t format;
    _Atomic uint16_t port;   /* index + 1 of the port that it was sent to; 0: no port */
    _Atomic uint32_t lease;  /* index + 1 of the block that holds the body */
    _Atomic uint32_t birth;  /* of that lease */
    _Atomic uint64_t server; /* id of the member that took the request; for the error when it dies */
    _Atomic uint64_t tag;    /* of the request, 0: none; LIMITED: when the call is over, ns */
    unsigned char body[SHM_CELL_INLINE];
};

enum {
    SHM_CELL_ASYNC = 1,
    SHM_CELL_OWN = 4,      /* sent to a process's own mailbox: nobody but that process can take it */
    SHM_CELL_METHOD = 8,   /* ... and a method call: nobody but its loop answers it */
    SHM_CELL_LETTER = 16,  /* the answer is received from the caller's own mailbox, like a notice */
    SHM_CELL_LIMITED = 32, /* over at some time, though its caller is not there to close it */
};

/* A chunk of cells belongs to one member; word = count | member | 0 free, 1 owned. */
struct shm_chunk {
    _Atomic shm_word word;
    _Atomic uint64_t finished; /* bit i: cell i of the chunk is done */
    _Atomic uint64_t answered; /* the same of LETTER cells, until their answer is received */
    uint64_t spare[5];
    struct shm_cell cells[SHM_CHUNK_CELLS];
};

/* ---- mailboxes --------------------------------------------------------------------------------------------- */

/* word = count | owner | state. The ring lies in a block of the heap; everybody who has the mailbox open holds a
 * lease of that block, so its bytes stay a ring as long as anybody may touch them.
 *
 *     FREE --claim(CAS)--> MAKING --open--> OPEN --close, or owner died--> CLOSED --block freed--> FREE
 */
enum shm_box_state { SHM_BOX_FREE, SHM_BOX_MAKING, SHM_BOX_OPEN, SHM_BOX_CLOSED };
enum shm_box_kind {
    SHM_BOX_ACTOR = 1,
    SHM_BOX_SHARED = 2,
    SHM_BOX_PERSISTENT = 3,
    SHM_BOX_BUS = 4,
    SHM_BOX_OFFERS = 5, /* what `owner` offers to `reader`, see native/transport/offer.h */
    SHM_BOX_SYNC = 8,
    SHM_BOX_PORT = 16,
    SHM_BOX_GROUP = 17,
};

struct shm_box_record {
    _Atomic shm_word word;
    _Atomic uint64_t place_of_ring; /* block index + 1, set by the maker before OPEN */
    shm_member_id owner;
    uint32_t kind;
    /* MAKING: the maker's lease + 1; PERSISTENT, OFFERS, PORT: the lease that keeps it + 1 */
    _Atomic uint32_t lease;
    _Atomic uint32_t birth; /* of that lease */
    uint32_t spare0;
    /* position + 1 of the message that was counted last, low half:32 | messages lost with their receiver:32, in all
     * lives of the record. The two are stored as one, before the message goes: so it is counted once, whoever dies. */
    _Atomic uint64_t lost;
    _Atomic shm_member_id reader; /* OFFERS: who pulls; 0: not yet said */
    uint64_t spare1;
};

/* Does a mailbox's ring lie in its block? */
static inline bool shm_box_has_ring(const struct shm_box_record *record)
{
    return record->kind <= SHM_BOX_PERSISTENT || record->kind == SHM_BOX_OFFERS ||
           record->kind == SHM_BOX_PORT;
}

/* One message cell of a ring; 64 bytes and the inline body.
 *
 *     0      8        16       24     32    36       38      40      44      48     56      64
 *     | word | header | sender | call | len | format | flags | lease | birth | seq | deadline | body ... |
 *
 * word = lap | owner | state. The compare-and-swap that claims a slot also names its producer, so reap() always
 * knows whose death to undo.
 *
 *     FREE --claim--> CLAIMED --publish--> READY --take: copy out, then store--> FREE, lap + 1
 *                        '--reap (owner dead)--> SKIP --take--'
 *
 * S1  publish  exchange seq_cst -> take   load acquire: header and body are whole
 * S2  take     store release    -> claim  CAS acquire:  the old body is done with
 */
enum shm_slot_state { SHM_SLOT_FREE, SHM_SLOT_CLAIMED, SHM_SLOT_READY, SHM_SLOT_SKIP };

struct shm_slot {
    _Atomic shm_word word;
    uint64_t header; /* kind:3 | tag:61, tag 0: none */
    shm_member_id sender;
    shm_call_id call;
    uint32_t len_bytes;
    uint16_t format;
    uint16_t flags;
    _Atomic uint32_t lease; /* index + 1 of the block that holds the body, 0: inline */
    uint32_t birth;         /* of that lease */
    uint64_t seq;           /* ring position */
    uint64_t deadline_ns;   /* of the call, after which nobody waits for it; 0: it has none */
    unsigned char body[];
};

/* One entry of the set-aside list; the slot's image with the same index lies in `bodies`. Free entries are those
 * that are not linked. */
struct shm_aside {
    uint64_t position;
    uint64_t header;
    shm_member_id sender;
    _Atomic uint32_t next; /* index + 1 */
    _Atomic uint32_t used; /* a hint, true only while the right is held; a sweep makes it anew */
};

/* The take right: count | owner | state.
 *
 *     FREE --CAS--> HELD --exchange--> FREE        HELD(dead) --reap, CAS--> UNSWEPT --CAS--> HELD, sweep first
 */
enum shm_right_state { SHM_RIGHT_FREE, SHM_RIGHT_HELD, SHM_RIGHT_UNSWEPT };

struct shm_ring {
    /* written before OPEN, then only read */
    uint32_t box;      /* index of its record */
    uint32_t capacity; /* messages undelivered at most */
    uint32_t slots;    /* a power of two, at least 16 and at least capacity */
    uint32_t slot_bytes;
    uint32_t body_bytes; /* inline part of a body */
    uint32_t place_words;
    uint64_t receivers_offset; /* from the start of the ring */
    uint64_t senders_offset;
    uint64_t watchers_offset; /* those who wait for a message without receiving it */
    uint64_t asides_offset;
    uint64_t bodies_offset;
    uint64_t slots_offset;
    uint64_t box_count;      /* of the record's word: which life of the record this ring is */
    _Atomic uint32_t closed; /* no more messages are accepted */
    uint32_t lost_before;    /* what the record had lost in earlier lives */
    uint32_t message_bytes;  /* the length that every body has, in format SHM_FORMAT_BYTES; 0: any */
    uint32_t is_port;        /* each slot ends in a struct shm_envelope */
    uint32_t spare0[8];

    _Alignas(128) _Atomic uint64_t tail; /* a hint, helped forward by CAS only */

    _Alignas(128) _Atomic shm_word right;
    _Atomic uint64_t head;         /* right */
    _Atomic uint32_t aside_first;  /* right; index + 1 */
    uint32_t aside_last;           /* right, hint: index + 1 */
    uint32_t aside_count;          /* right, hint */
    uint32_t aside_free;           /* right, hint: where to look for an unlinked entry */
    _Atomic uint64_t notices_seen; /* right: `notices` when no fired notice was left */
    _Atomic uint64_t drop_below;   /* right: what was claimed below this position is lost, once it is there */
    uint64_t spare1[2];

    _Alignas(128) _Atomic uint64_t delivered; /* right; read by senders */

    _Alignas(128) _Atomic uint64_t notices; /* grows when a notice of this mailbox fires, or bits are set */
    _Atomic uint64_t bits; /* of a notification: set by OR, taken under the right by an exchange */
};

/* ---- ports ------------------------------------------------------------------------------------------------- */

/* A port is a mailbox with an owner, who alone receives from it, and who may change. Item i of the table of ports
 * describes mailbox i, as long as that is a port.
 *
 * word = generation of the owner | owner | state: so it names the owner as a member id, and who is dead never owns again.
 *
 *     GONE --> MAKING(maker) --> DISABLED <--> ENABLED --.
 *                                   |  '<----> HANDLED    '--> MOVING(old owner) --> DISABLED(new owner)
 *                                   any --> REMOVING --> GONE
 *
 * A port is kept by a lease in flight, its record's, until it is removed: by its owner, or by whoever finds the owner, or
 * in MAKING the maker, dead. Removing is idempotent.
 *
 * P1  send     publish (S1), then load of word and of the desk's set;  enable: CAS of word, then `changes`, then the set
 * P2  migrate  CAS of word, then load of the new owner's state;        reap: DYING, then load of the words
 * P3  insert   CAS of a member of a group, then load of word;          remove: CAS of word, then load of the members
 * P4  enable   load of priority, then load of word, then CAS of priority: it fails when a later owner has enabled the port
 */
enum shm_port_state {
    SHM_PORT_GONE,
    SHM_PORT_MAKING,
    SHM_PORT_DISABLED,
    SHM_PORT_ENABLED,
    SHM_PORT_HANDLED, /* only by the thread of its handler */
    SHM_PORT_MOVING,
    SHM_PORT_REMOVING,
};

/* Never reused in the system: count of the mailbox record:43 | index + 1; 0 names none. */
typedef uint64_t shm_port_id;

struct shm_port {
    _Atomic shm_word word;
    _Atomic uint64_t life;     /* count of the mailbox record */
    _Atomic uint64_t received; /* right: messages received since the owner has it */
    _Atomic uint64_t priority; /* how often it was set:32 | low is urgent:32; P4 */
    _Atomic uint64_t site;     /* of the label that it was made with; 0: none */
    _Atomic uint32_t local;    /* its number among its owner's */
    _Atomic uint32_t is_default;
    uint64_t spare[2];
};

#define SHM_ANNEX_BYTES 120

/* What goes with each message of a port, at the end of its slot. */
struct shm_envelope {
    uint64_t arrived_ns;
    shm_port_id source;   /* the sender's port that it was sent from; 0: none */
    uint64_t group;       /* id of the group that it was addressed to; 0: the port itself */
    uint32_t annex_bytes; /* and one more; 0: there is none */
    uint32_t spare;
    unsigned char annex[SHM_ANNEX_BYTES];
};

/* Where an actor waits for any of its ports; followed by the struct shm_set of its threads that do. */
struct shm_desk {
    _Atomic uint64_t changes;      /* of which ports are enabled, and how */
    _Atomic uint64_t default_port; /* its id; of an earlier owner of the slot: none */
    _Atomic uint32_t next_local;
    uint32_t spare0;
    uint64_t spare1[5];
};

/* ---- groups ------------------------------------------------------------------------------------------------ */

enum { SHM_GROUP_PORTS = 500 };

/* A group of ports lies in a block, and has a record in the table of mailboxes. Nothing in it has an owner: each change
 * is one CAS. A port may stand there twice for a moment, or for good when its inserter died: who reads counts it once. */
struct shm_group {
    uint32_t box; /* index of its record */
    _Atomic uint32_t closed;
    uint64_t box_count; /* of the record's word */
    uint64_t key;       /* who knows it may insert and remove */
    uint64_t spare0[4];
    _Atomic uint64_t turn; /* of who gets the next message that one member gets */
    _Atomic uint64_t members[SHM_GROUP_PORTS];
};

/* ---- buses ------------------------------------------------------------------------------------------------- */

/* A bus lies in a block, as a ring does, and has a record in the table of mailboxes: so it is opened, named, kept and
 * freed like one.
 *
 *     | struct shm_bus | set of readers | set of writers | frames ... | readers ... |
 *
 * Position p, the number of frames published before it, is kept in frame p % frames until p + frames is published.
 *
 * right = count | owner | state: who publishes. It is taken by CAS and given back by an exchange, or by the reap of its
 * holder: nothing is swept, for what is not below `tail` is nobody's, and the next holder writes over it.
 * gate = count | owner | state: CLOSING while its owner looks whether there are readers.
 *
 * B1  publish  exchange seq_cst of tail -> receive  load seq_cst of tail: the frame is whole
 * B2  receive  its lease of the block, seq_cst, then load of the frame's word; publish: exchange of the word, then the
 *              bus's lease is dropped. Who still saw the word has the block.
 * B3  receive  CAS seq_cst of cursor, then load of the writers' set; publish: enters the set, then loads the cursors
 * B4  subscribe: exchange of the reader's word, then load of gate; destroy: CAS of gate, then load of the words
 */
enum shm_publish_state { SHM_PUBLISH_FREE, SHM_PUBLISH_HELD };
enum shm_gate_state { SHM_GATE_OPEN, SHM_GATE_CLOSING, SHM_GATE_CLOSED };

struct shm_bus {
    /* written before OPEN, then only read */
    uint32_t box;           /* index of its record */
    uint32_t frames;        /* kept at most */
    uint32_t readers;       /* at a time at most */
    uint32_t consume_after; /* readers after which a frame is gone; 0: none */
    uint64_t frame_bytes;   /* of one frame at most */
    uint64_t max_age_ns;    /* after which a frame is gone; 0: never */
    uint64_t box_count;     /* of the record's word */
    uint32_t place_words;
    uint32_t spare0[19];

    _Alignas(128) _Atomic shm_word right;
    _Atomic shm_word gate;

    _Alignas(128) _Atomic uint64_t tail; /* right; the position that is published next */
};

/* word = position | owner | state. The lease of the block is in flight while the frame is on the bus.
 *
 *     FREE --exchange--> CLAIMED --store--> READY --exchange--> CLAIMED, position + frames
 */
enum shm_frame_state { SHM_FRAME_FREE, SHM_FRAME_CLAIMED, SHM_FRAME_READY };

struct shm_frame {
    _Atomic shm_word word;
    _Atomic uint64_t taken;      /* position:44 | readers that have it:16 | 0 */
    _Atomic uint64_t stamp_ns;   /* when it was published */
    _Atomic uint64_t len_bytes;  /* of the block, in use */
    _Atomic uint32_t head_bytes; /* before the frame's own bytes */
    _Atomic uint32_t lease;      /* index + 1 of the block */
    _Atomic uint32_t birth;      /* of that lease */
    uint32_t spare0;
    uint64_t spare1[2];
};

/* word = count | owner | state
 *
 *     FREE --CAS--> JOINING --exchange--> LOSES or BLOCKS --leave, reap--> FREE
 *                                         BLOCKS --a writer that waited for it long enough--> LATE --receive--> BLOCKS
 */
enum shm_reader_state {
    SHM_READER_FREE,
    SHM_READER_JOINING,
    SHM_READER_LOSES,
    SHM_READER_BLOCKS,
    SHM_READER_LATE
};

struct shm_bus_reader {
    _Atomic shm_word word;
    _Atomic uint64_t cursor;      /* the position it reads next; changed by CAS, by its owner */
    _Atomic uint64_t patience_ns; /* how long a writer waits for it */
    _Atomic uint64_t
        blamed; /* low half of the cursor:24 | milliseconds:40 since when a writer waits for it there */
    uint64_t spare[4];
};

/* ---- sync objects ------------------------------------------------------------------------------------------ */

/* An event, mutex, semaphore or the like lies in a block of its own, as a ring does, and has a record in the table of
 * mailboxes: so it is opened, named, kept and freed like one.
 *
 *     | struct shm_sync | line | watchers | entries ... | bytes ... |
 *
 * line: those who wait for it, or for any of several; only the first takes. watchers: those who wait for all of several.
 *
 * word = count:26 | value:34 | state:4
 *
 *     event      UNSET, SET
 *     semaphore  COUNTS, value: what is left
 *     mutex      FREE --take--> HELD, value: place:18 | slot:16 --unlock--> FREE
 *                               '--owner died--> ABANDONED --take--> HELD
 *     condition  COUNTS, value: waiters that were notified and have not gone yet
 *
 * A wait for all claims its objects one by one in the order of their records, and takes them by one step:
 *
 *     what is there --CAS by the waiter--> CLAIMED, gen:22 | place:18 | value:20 --CAS by anybody--> as decided
 *
 * decision, in the waiter's place = 11 | gen:58 | state:4
 *
 *     UNDECIDED --CAS by the waiter--> TAKEN        '--CAS by anybody--> FAILED: all is as it was
 *
 * Until it is TAKEN a claimed object is what it was before: whoever would change it lets the claim fail first. Only the
 * waiter claims, and no claim of his is left when he makes the next decision; so a word of his is always of the
 * decision that his place shows.
 *
 * Y1  set, unlock, release  CAS seq_cst, then load of line and watchers (W1)
 * Y2  claim   CAS seq_cst, then the CAS of the decision; other: load of the claimed word, then CAS of the decision
 * Y3  an end of a pipe: CAS of its entry, then joins + 1, then it is handed over to; count: joins, each entry, joins again
 */
enum shm_sync_kind {
    SHM_SYNC_EVENT = 1,
    SHM_SYNC_MUTEX,
    SHM_SYNC_SEMAPHORE,
    SHM_SYNC_CONDITION,
    SHM_SYNC_BARRIER,
    SHM_SYNC_RWLOCK,
    SHM_SYNC_PIPE,
    SHM_SYNC_KINDS
};
/* RLOCK: it was made as an RLock, not as a Mutex. Both are recursive, and are opened as what they are. */
enum { SHM_SYNC_AUTO = 1, SHM_SYNC_RECURSIVE = 2, SHM_SYNC_ANYONE = 4, SHM_SYNC_RLOCK = 8 };
enum shm_sync_state {
    SHM_SYNC_FREE, /* UNSET, COUNTS */
    SHM_SYNC_SET,
    SHM_SYNC_HELD,
    SHM_SYNC_ABANDONED,
    SHM_SYNC_CLAIMED,
};
enum shm_decision_state {
    SHM_DECISION_NONE,
    SHM_DECISION_UNDECIDED,
    SHM_DECISION_TAKEN,
    SHM_DECISION_FAILED
};

/* word = count | owner | state; one that is inside, or one end of a pipe that is open */
enum shm_entry_state { SHM_ENTRY_FREE, SHM_ENTRY_READER, SHM_ENTRY_WRITER };

struct shm_sync {
    /* written before OPEN, then only read */
    uint32_t box; /* index of its record */
    uint32_t kind;
    uint32_t place_words;
    uint32_t flags;
    uint64_t box_count; /* of the record's word */
    uint64_t bytes;     /* of a pipe */
    uint32_t max;       /* of a semaphore; parties of a barrier */
    uint32_t entries;
    uint32_t spare0[22];

    _Alignas(128) _Atomic uint64_t word;
    _Atomic uint32_t depth; /* of a mutex that is HELD; written by its owner */
    uint32_t spare1;
    _Atomic uint64_t reset;    /* of a barrier: which rounds were ended by a reset */
    _Atomic uint64_t notified; /* of a condition: the last turn that a notice may be for */
    /* a pipe's: bytes written and read so far, and who writes and reads at the moment: count | owner | state */
    _Atomic uint64_t written;
    _Atomic uint64_t read;
    _Atomic shm_word write_right;
    _Atomic shm_word read_right;
    _Atomic uint32_t had; /* bit of each end that was ever open */
    uint32_t spare3;
    _Atomic uint64_t joins; /* ends that were opened */
    uint64_t spare4[6];
};

/* ---- names ------------------------------------------------------------------------------------------------- */

/* word = count | owner | state. Two that claim one name at once both become TENTATIVE and look: the lower entry
 * wins by freeing the other, unless that is READY already.
 *
 *     FREE --CAS--> CLAIMED --exchange--> TENTATIVE --store--> READY --withdraw, reap--> FREE
 */
enum shm_name_state { SHM_NAME_FREE, SHM_NAME_CLAIMED, SHM_NAME_TENTATIVE, SHM_NAME_READY };
enum shm_name_kind {
    SHM_NAME_ACTOR = 1,
    SHM_NAME_BOX = 2,
    SHM_NAME_BUS = 3,
    SHM_NAME_SYNC = 8,
    SHM_NAME_GROUP = 9,
};

struct shm_name_record {
    _Atomic shm_word word;
    /* Readers do not lock: they read these, then the word again. */
    _Atomic uint64_t hash;
    _Atomic uint32_t kind;
    _Atomic uint32_t object; /* ACTOR: member slot; BOX, BUS: index of the record */
    _Atomic uint64_t life;   /* ACTOR: member id; BOX, BUS: count of the record's word */
    _Atomic uint64_t name[SHM_NAME_BYTES / 8];
    _Atomic uint64_t server; /* id of who gave the name */
    uint64_t spare[2];
};

/* ---- notices ----------------------------------------------------------------------------------------------- */

/* Preallocated word of one future event, owned by its watcher; needs no slot when it fires.
 *
 *     FREE --CAS--> MAKING --arm--> ARMED --CAS--> FIRED --receive--> FREE
 *
 * word = generation | watcher | state; read before the target, and the generation decides.
 *
 * What is to be told is kept here, for the target's slot is another's when the notice is received: `cause` and `undelivered` are set
 * before FIRED, each by one CAS from "unsaid" of this generation, so that a reaper who is late says nothing of a later watch.
 *
 * A link is one word for both ends, so it is made and undone for both in one step. Who made it is its watcher, until he
 * ends: then the other is. Two that link each other at once both become TENTATIVE and look: whoever looks arms the first
 * entry of them, and puts the others back, for their makers may be stopped. Who finds his own put back frees it.
 *
 *     MAKING --> TENTATIVE --CAS by anybody--> ARMED --target ended--> FIRED, maker's
 *        ^-----------'--another is first         '---- maker ended --> BACK, target's   FIRED, BACK --receive--> FREE
 *
 * A timer is fired by a thread of whoever set it. One that repeats is ARMED again by its receipt, so that late periods
 * are one tick. A tick whose setter has ended is owned by NOBODY, and stays until it is received or its mailbox goes.
 */
enum shm_notice_state {
    SHM_NOTICE_FREE,
    SHM_NOTICE_MAKING,
    SHM_NOTICE_TENTATIVE,
    SHM_NOTICE_ARMED,
    SHM_NOTICE_FIRED,
    SHM_NOTICE_BACK,
};

struct shm_notice {
    _Atomic shm_word word;
    _Atomic uint64_t target; /* id of the member that is watched; of a timer: that set it */
    _Atomic uint32_t box;    /* where it is received: the watcher's mailbox, the timer's destination */
    _Atomic uint32_t kind;   /* of its message: EXIT or TIMER */
    _Atomic uint64_t life;   /* of that mailbox: a later one of its index gets nothing */
    _Atomic uint64_t cause;  /* generation:44 | reason:4 | status:16 of the end, reason 0: unsaid */
    _Atomic uint64_t
        undelivered; /* low half of the generation:32 | messages lost with the one who ended:32 */
    /* a link's; maker 0: it is none */
    _Atomic uint64_t maker; /* id of who made it */
    _Atomic uint64_t back_life;
    _Atomic uint32_t back_box; /* where the target receives it */
    /* a timer's; readers do not lock: they read these, then the word again */
    _Atomic uint32_t len_bytes;
    _Atomic uint64_t header;    /* as in shm_slot */
    _Atomic uint64_t due_ns;    /* of the tick that has fired */
    _Atomic uint64_t period_ns; /* 0: once */
    _Atomic uint64_t format;
    uint64_t spare;
    _Atomic uint64_t body[SHM_NOTICE_INLINE / 8];
};

/* ---- blocks and leases ------------------------------------------------------------------------------------- */

/* word = change:22 holders:22 | owner | state; holders are the low half of the count. A lease record names each holder
 * and is the truth; the number of holders is its cache, changed only while the block is LOCKED by a named member. Who
 * finds him dead counts the records; the flight word says only where to look.
 *
 *     FREE --CAS--> LOCKED --store--> LIVE --CAS--> LOCKED --store--> LIVE, or FREE when the last holder went
 */
enum shm_block_state { SHM_BLOCK_FREE, SHM_BLOCK_LIVE, SHM_BLOCK_LOCKED };
#define SHM_BLOCK_BUS (UINT32_C(1) << 31)
#define SHM_BLOCK_SYNC (UINT32_C(1) << 30)
#define SHM_BLOCK_GROUP (UINT32_C(1) << 28)

struct shm_block {
    _Atomic shm_word word;
    _Atomic uint64_t reserved_bytes; /* pages this block has; changed under the lock */
    _Atomic uint32_t
        box; /* index + 1 of the mailbox that lies in it; with SHM_BLOCK_BUS, _SYNC, _GROUP: of that */
    _Atomic uint32_t handles;   /* the block begins with so many shm_handle, which it owns */
    _Atomic uint64_t len_bytes; /* in use, or last; pages beyond the counted ones lie within it */
};

/* word = count | owner | state; owner SHM_IN_FLIGHT: a message that is queued, or a reply, holds it. */
enum shm_lease_state { SHM_LEASE_FREE, SHM_LEASE_HELD };

struct shm_lease {
    _Atomic shm_word word;
    _Atomic uint64_t
        block; /* birth, the low half of the count at its claim:32 | block + 1:32; 0 in the low half: none
                             * yet. A reference in shared memory carries the birth: whoever died before it had cleared
                             * one may have left it to a record that is another's by now */
    uint32_t deferred;         /* the next in its owner's list of leases to release, index + 1 */
    _Atomic uint32_t receives; /* of a mailbox: whoever holds it so has said that he receives from it */
    uint64_t spare1;
};

/* A lease that travels inside a message's block: it is in flight as long as the block lives. */
struct shm_handle {
    _Atomic uint32_t lease; /* index + 1; 0: dropped */
    uint32_t birth;         /* of that lease */
};

/* ---- lanes: not in the segment, but in sealed memory of their own, which another user may hold ------------------ */

/* A lane: messages of one poster, in order, to one reader. What each writes lies in memory of its own, of which the
 * other has no writable mapping; the sizes are in neither, each was told them by the owner.
 *
 *     the poster's       0      8               64            64 + stride
 *                        | tail | waits | ...   | slot 0 ...  | slot 1 ...     slot: len:32 | 0:32 | bytes
 *     the reader's       0      8       12
 *                        | head | waits | knell | ...
 *     the owner's        0      4        8                                     520
 *                        | bell | reader | who has lane 0 | lane 1 ...         | knell |       uid:32 | state:32
 *
 * A message is there once `tail` is beyond it, and was taken once `head` is: one store each, so that a death before it
 * leaves the lane as it was. tail - head is 0 to slots; whoever reads another value there is told lies.
 *
 * L1  post  tail seq_cst, then loads the reader's waits   -> wait  waits seq_cst, then looks at tail, then sleeps on its low
 *           half as it was seen
 * L2  take  head seq_cst, then loads the poster's waits   -> the same
 * L3  post, take  a will before tail or head moves, revoked when all are woken   -> wait  sleeps on the knell too: the
 *           board's, for the wills of posters, or the lane's, for its reader's. The kernel wakes one there when he dies in
 *           between, also when the owner is stopped or dead; who has not slept yet sees that tail or head has moved.
 */
enum { SHM_LANES_MAX = 64, SHM_LANE_MAX_SLOTS = 1 << 16, SHM_LANE_MAX_BYTES = 1 << 20 };

struct shm_lane_posted {
    _Atomic uint64_t tail;  /* messages posted so far */
    _Atomic uint32_t waits; /* the poster sleeps, or is about to */
    uint32_t spare_word;
    uint64_t spare[6];
};

struct shm_lane_taken {
    _Atomic uint64_t head; /* messages taken so far */
    _Atomic uint32_t waits;
    _Atomic uint32_t knell; /* 0 for ever; its poster sleeps on it */
    uint64_t spare[6];
};

enum shm_end_state { SHM_END_FREE, SHM_END_OPEN, SHM_END_LEFT };

struct shm_lane_board {
    _Atomic uint32_t bell;
    _Atomic uint32_t reader;                 /* enum shm_end_state */
    _Atomic uint64_t posters[SHM_LANES_MAX]; /* uid:32 | enum shm_end_state:32 */
    _Atomic uint32_t knell;                  /* 0 for ever; the reader sleeps on it */
    uint32_t spare;
};

static inline uint64_t shm_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Changes whenever the meaning of any byte after the frozen ones does. */
uint64_t shm_layout_signature(void);

_Static_assert(__builtin_offsetof(struct shm_header, memory_limit) == 64, "the frozen bytes are 64");
_Static_assert(sizeof(struct shm_header) <= SHM_PAGE_BYTES, "the header is one page");
_Static_assert(sizeof(struct shm_member_record) == 256, "layout");
_Static_assert(sizeof(struct shm_place) == 576, "layout");
_Static_assert(sizeof(struct shm_cell) == 64 + SHM_CELL_INLINE, "layout");
_Static_assert(sizeof(struct shm_slot) == 64, "layout");
_Static_assert(sizeof(struct shm_aside) == 32, "layout");
_Static_assert(sizeof(struct shm_box_record) == 64, "layout");
_Static_assert(sizeof(struct shm_port) == 64 && sizeof(struct shm_desk) == 64, "layout");
_Static_assert(sizeof(struct shm_envelope) == 152, "layout");
_Static_assert(sizeof(struct shm_group) == 4064, "layout");
_Static_assert(sizeof(struct shm_bus) == 384, "layout");
_Static_assert(sizeof(struct shm_frame) == 64 && sizeof(struct shm_bus_reader) == 64, "layout");
_Static_assert(sizeof(struct shm_sync) == 256, "layout");
_Static_assert(sizeof(struct shm_name_record) == 128, "layout");
_Static_assert(sizeof(struct shm_notice) == 112 + SHM_NOTICE_INLINE, "layout");
_Static_assert(sizeof(struct shm_block) == 32 && sizeof(struct shm_lease) == 32, "layout");
_Static_assert(sizeof(struct shm_lane_posted) == 64 && sizeof(struct shm_lane_taken) == 64, "layout");

#endif
