/* A small busy system whose shared bytes are scribbled on, and everything that reads them run over it.
 *
 *     hostile_open();                        once: builds the system and keeps an image of it
 *     hostile_run(bytes, len_bytes);         the image, then a script of writes and operations; never crashes or hangs
 *     hostile_sweep(...)                     each field of each shared struct in turn
 *
 * A script is a list of records. A byte below 128 is an operation. A byte from 128 on begins a write:
 *
 *     | >= 128 | field:16 | item | mode | operands ... |
 *
 * mode & 7 says what is written: zeros, ones, one more, one less, a small number, eight raw bytes, one bit turned, or
 * one part of a protocol word. mode & 8: not now, but when a kill point is passed (two more bytes: which, how often),
 * that is between two steps of the core, as a writer in another process would. mode & 48 = 48: at any offset.
 *
 * Time is made up while a script runs, so that waits and back-offs take none; what loops without asking for the time
 * meets the watchdog. Both mappings stand between pages that nobody may touch.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "transport/abort.h"
#include "transport/bus.h"
#include "transport/names.h"
#include "transport/notice.h"

/* ---- time that is made up ---------------------------------------------------------------------------------- */

static _Atomic bool hostile_runs;
static _Atomic uint64_t hostile_now;

int clock_gettime(clockid_t clock, struct timespec *t)
{
    if (clock != CLOCK_MONOTONIC || !atomic_load(&hostile_runs))
        return (int)syscall(SYS_clock_gettime, clock, t);
    *t = shm_clock_timespec(atomic_fetch_add(&hostile_now, 1000) + 1000);
    return 0;
}

int nanosleep(const struct timespec *t, struct timespec *left)
{
    if (!atomic_load(&hostile_runs))
        return (int)syscall(SYS_nanosleep, t, left);
    atomic_fetch_add(&hostile_now, (uint64_t)t->tv_sec * SHM_NS_PER_S + (uint64_t)t->tv_nsec);
    return 0;
}

/* Nobody else is there to post: what is not there now does not come before the end of the slice. */
int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict t)
{
    (void)clock;
    if (sem_trywait(semaphore) == 0)
        return 0;
    uint64_t until = (uint64_t)t->tv_sec * SHM_NS_PER_S + (uint64_t)t->tv_nsec;
    if (until > atomic_load(&hostile_now))
        atomic_store(&hostile_now, until);
    errno = ETIMEDOUT;
    return -1;
}

/* ---- the system -------------------------------------------------------------------------------------------- */

enum { A, B, V, W, ACTORS }; /* a receiver, a sender, one that died with the right, one that died sending */
enum { HOSTILE_CALLS = 8, HOSTILE_KEPT = 8 };
static int hostile_seconds = 10; /* of processor time for one script */

struct hostile_extent {
    uint64_t at, bytes;
    unsigned char *image;
};

static struct hostile {
    struct world w;
    struct actor actors[ACTORS], actors_then[ACTORS];
    struct shm_box inbox, shared, peer,
        dead; /* of A, opened by A; of B, opened by A; inbox as B has it; of V, by B */
    struct shm_box boxes_then[4];
    struct shm_bus_view read, written,
        left_behind; /* one bus, as A and B have it; one that V and W died with, by B */
    struct shm_bus_view buses_then[3];
    struct shm_subscription reader, reader_then; /* A, of the first */
    shm_call_id calls[HOSTILE_CALLS], calls_then[HOSTILE_CALLS];
    shm_lease_index kept[HOSTILE_KEPT], kept_then[HOSTILE_KEPT];
    uint32_t kept_count, kept_count_then;
    struct hostile_extent extents[256];
    uint32_t extents_count;
    blkcnt_t blocks;
    int life_fd;
    char life_path[32];
    bool left[ACTORS];
    unsigned long reads; /* so that what is read is not optimised away */
    unsigned long statuses[32];
} hostile;

static bool hostile_is_dead(struct shm_member *self, uint32_t slot)
{
    (void)self;
    return slot == hostile.actors_then[V].member.slot || slot == hostile.actors_then[W].member.slot;
}

/* ---- fields ------------------------------------------------------------------------------------------------ */

enum hostile_struct {
    H_HEADER,
    H_POOL,
    H_MEMBER,
    H_PLACE,
    H_ITEM,
    H_FLIGHT,
    H_SET,
    H_CHUNK,
    H_CELL,
    H_BOX,
    H_RING,
    H_SLOT,
    H_ASIDE,
    H_NAME,
    H_NOTICE,
    H_BLOCK,
    H_LEASE,
    H_HANDLE,
    H_BUS,
    H_FRAME,
    H_READER,
    H_COUNT
};

struct hostile_field {
    const char *name;
    enum hostile_struct of;
    uint32_t at, bytes;
};

#define F(of, type, field)                                                                                   \
    {#type "." #field, of, offsetof(struct type, field), sizeof(((struct type *)0)->field)}
static const struct hostile_field hostile_fields[] = {
    F(H_HEADER, shm_header, magic),
    F(H_HEADER, shm_header, signature),
    F(H_HEADER, shm_header, version),
    F(H_HEADER, shm_header, state),
    F(H_HEADER, shm_header, uid),
    F(H_HEADER, shm_header, life_offset),
    F(H_HEADER, shm_header, segment_bytes),
    F(H_HEADER, shm_header, created_ns),
    F(H_HEADER, shm_header, members_offset),
    F(H_HEADER, shm_header, member_bytes),
    F(H_HEADER, shm_header, max_members),
    F(H_HEADER, shm_header, memory_limit),
    F(H_HEADER, shm_header, place_words),
    F(H_HEADER, shm_header, classes),
    F(H_HEADER, shm_header, heap_offset),
    F(H_HEADER, shm_header, time_namespace),
    F(H_HEADER, shm_header, keeper),
    F(H_HEADER, shm_header, keeper_rounds),
    F(H_HEADER, shm_header, member_changes),
    F(H_HEADER, shm_header, root),
    F(H_HEADER, shm_header, next_identity),
    F(H_HEADER, shm_header, next_tag),
    F(H_HEADER, shm_header, reserved_bytes),
    F(H_BOX, shm_box_record, lost),
    F(H_HEADER, shm_header, rescued),
    F(H_HEADER, shm_header, reaped),
    F(H_POOL, shm_pool, offset),
    F(H_POOL, shm_pool, item_bytes),
    F(H_POOL, shm_pool, max_items),
    F(H_POOL, shm_pool, step),
    F(H_POOL, shm_pool, ready),
    F(H_POOL, shm_pool, free_hint),
    F(H_MEMBER, shm_member_record, word),
    F(H_MEMBER, shm_member_record, exit_status),
    F(H_MEMBER, shm_member_record, exit_reason),
    F(H_MEMBER, shm_member_record, identity),
    F(H_MEMBER, shm_member_record, pid),
    F(H_MEMBER, shm_member_record, kind),
    F(H_MEMBER, shm_member_record, start_time),
    F(H_MEMBER, shm_member_record, pid_namespace),
    F(H_MEMBER, shm_member_record, creator),
    F(H_MEMBER, shm_member_record, box),
    F(H_MEMBER, shm_member_record, completions),
    F(H_MEMBER, shm_member_record, failed_casts),
    F(H_MEMBER, shm_member_record, joined_ns),
    F(H_MEMBER, shm_member_record, name),
    F(H_MEMBER, shm_member_record, reaper),
    F(H_MEMBER, shm_member_record, undelivered),
    F(H_MEMBER, shm_member_record, described),
    F(H_MEMBER, shm_member_record, suspected),
    F(H_MEMBER, shm_member_record, main),
    F(H_MEMBER, shm_member_record, ending),
    F(H_MEMBER, shm_member_record, vigil),
    F(H_PLACE, shm_place, owner),
    F(H_PLACE, shm_place, word),
    F(H_PLACE, shm_place, semaphore),
    F(H_PLACE, shm_place, looked),
    F(H_PLACE, shm_place, items_count),
    F(H_PLACE, shm_place, thread),
    F(H_PLACE, shm_place, serving),
    F(H_PLACE, shm_place, abort),
    F(H_PLACE, shm_place, told),
    F(H_ITEM, shm_wait_item, kind),
    F(H_ITEM, shm_wait_item, object),
    F(H_ITEM, shm_wait_item, ticket),
    F(H_FLIGHT, shm_flight, op),
    F(H_FLIGHT, shm_flight, object),
    F(H_FLIGHT, shm_flight, position),
    F(H_FLIGHT, shm_flight, lease),
    F(H_FLIGHT, shm_flight, lease_word),
    F(H_SET, shm_set, summary),
    F(H_SET, shm_set, next_ticket),
    {"shm_set.words", H_SET, offsetof(struct shm_set, words), 8},
    {"shm_set.words[1]", H_SET, offsetof(struct shm_set, words) + 8, 8},
    F(H_CHUNK, shm_chunk, word),
    F(H_CHUNK, shm_chunk, finished),
    F(H_CELL, shm_cell, word),
    F(H_CELL, shm_cell, served_by),
    F(H_CELL, shm_cell, waiter),
    F(H_CELL, shm_cell, flags),
    F(H_CELL, shm_cell, replier),
    F(H_CELL, shm_cell, len_bytes),
    F(H_CELL, shm_cell, format),
    F(H_CELL, shm_cell, lease),
    F(H_CELL, shm_cell, birth),
    F(H_CELL, shm_cell, server),
    F(H_CELL, shm_cell, body),
    F(H_BOX, shm_box_record, word),
    F(H_BOX, shm_box_record, place_of_ring),
    F(H_BOX, shm_box_record, owner),
    F(H_BOX, shm_box_record, kind),
    F(H_BOX, shm_box_record, lease),
    F(H_BOX, shm_box_record, birth),
    F(H_RING, shm_ring, box),
    F(H_RING, shm_ring, capacity),
    F(H_RING, shm_ring, slots),
    F(H_RING, shm_ring, slot_bytes),
    F(H_RING, shm_ring, body_bytes),
    F(H_RING, shm_ring, place_words),
    F(H_RING, shm_ring, receivers_offset),
    F(H_RING, shm_ring, senders_offset),
    F(H_RING, shm_ring, asides_offset),
    F(H_RING, shm_ring, bodies_offset),
    F(H_RING, shm_ring, slots_offset),
    F(H_RING, shm_ring, box_count),
    F(H_RING, shm_ring, closed),
    F(H_RING, shm_ring, tail),
    F(H_RING, shm_ring, right),
    F(H_RING, shm_ring, head),
    F(H_RING, shm_ring, aside_first),
    F(H_RING, shm_ring, aside_last),
    F(H_RING, shm_ring, aside_count),
    F(H_RING, shm_ring, aside_free),
    F(H_RING, shm_ring, notices_seen),
    F(H_RING, shm_ring, delivered),
    F(H_RING, shm_ring, notices),
    F(H_SLOT, shm_slot, word),
    F(H_SLOT, shm_slot, header),
    F(H_SLOT, shm_slot, sender),
    F(H_SLOT, shm_slot, call),
    F(H_SLOT, shm_slot, len_bytes),
    F(H_SLOT, shm_slot, format),
    F(H_SLOT, shm_slot, flags),
    F(H_SLOT, shm_slot, lease),
    F(H_SLOT, shm_slot, birth),
    F(H_SLOT, shm_slot, seq),
    F(H_SLOT, shm_slot, deadline_ns),
    F(H_ASIDE, shm_aside, position),
    F(H_ASIDE, shm_aside, header),
    F(H_ASIDE, shm_aside, sender),
    F(H_ASIDE, shm_aside, next),
    F(H_ASIDE, shm_aside, used),
    F(H_NAME, shm_name_record, word),
    F(H_NAME, shm_name_record, hash),
    F(H_NAME, shm_name_record, kind),
    F(H_NAME, shm_name_record, object),
    F(H_NAME, shm_name_record, life),
    F(H_NAME, shm_name_record, name),
    F(H_NOTICE, shm_notice, word),
    F(H_NOTICE, shm_notice, target),
    F(H_NOTICE, shm_notice, box),
    F(H_NOTICE, shm_notice, kind),
    F(H_NOTICE, shm_notice, life),
    F(H_NOTICE, shm_notice, maker),
    F(H_NOTICE, shm_notice, back_box),
    F(H_NOTICE, shm_notice, back_life),
    F(H_NOTICE, shm_notice, len_bytes),
    F(H_NOTICE, shm_notice, header),
    F(H_NOTICE, shm_notice, period_ns),
    F(H_NOTICE, shm_notice, format),
    F(H_BLOCK, shm_block, word),
    F(H_BLOCK, shm_block, reserved_bytes),
    F(H_BLOCK, shm_block, box),
    F(H_BLOCK, shm_block, handles),
    F(H_BLOCK, shm_block, len_bytes),
    F(H_LEASE, shm_lease, word),
    F(H_LEASE, shm_lease, block),
    F(H_LEASE, shm_lease, deferred),
    F(H_HANDLE, shm_handle, lease),
    F(H_HANDLE, shm_handle, birth),
    F(H_RING, shm_ring, lost_before),
    F(H_BUS, shm_bus, box),
    F(H_BUS, shm_bus, frames),
    F(H_BUS, shm_bus, readers),
    F(H_BUS, shm_bus, consume_after),
    F(H_BUS, shm_bus, frame_bytes),
    F(H_BUS, shm_bus, max_age_ns),
    F(H_BUS, shm_bus, box_count),
    F(H_BUS, shm_bus, place_words),
    F(H_BUS, shm_bus, right),
    F(H_BUS, shm_bus, gate),
    F(H_BUS, shm_bus, tail),
    F(H_FRAME, shm_frame, word),
    F(H_FRAME, shm_frame, taken),
    F(H_FRAME, shm_frame, stamp_ns),
    F(H_FRAME, shm_frame, len_bytes),
    F(H_FRAME, shm_frame, head_bytes),
    F(H_FRAME, shm_frame, lease),
    F(H_FRAME, shm_frame, birth),
    F(H_READER, shm_bus_reader, word),
    F(H_READER, shm_bus_reader, cursor),
    F(H_READER, shm_bus_reader, patience_ns),
    F(H_READER, shm_bus_reader, blamed),
};
#undef F
enum { HOSTILE_FIELDS = sizeof hostile_fields / sizeof hostile_fields[0], HOSTILE_ITEMS = 24 };

/* Where the items of each struct are in the file, those in use first. */
static uint64_t hostile_items[H_COUNT][HOSTILE_ITEMS];
static uint32_t hostile_items_count[H_COUNT];

static void hostile_item(enum hostile_struct of, const void *at)
{
    if (hostile_items_count[of] < HOSTILE_ITEMS)
        hostile_items[of][hostile_items_count[of]++] =
            (uint64_t)((const unsigned char *)at - hostile.w.segment.base);
}

static void hostile_items_of_ring(const struct shm_box *box)
{
    hostile_item(H_RING, box->ring);
    hostile_item(H_SET, box->receivers);
    hostile_item(H_SET, box->senders);
    for (uint32_t i = 0; i < 8; i++)
        hostile_item(H_SLOT, box->slots + (uint64_t)i * box->slot_bytes);
    for (uint32_t i = 0; i < 4; i++)
        hostile_item(H_ASIDE, box->asides + i);
    for (uint32_t i = 0; i < 4; i++) /* images of slots */
        hostile_item(H_SLOT, box->bodies + (uint64_t)i * box->slot_bytes);
}

static void hostile_items_of_bus(const struct shm_bus_view *bus)
{
    hostile_item(H_BUS, bus->bus);
    hostile_item(H_SET, bus->waiting_readers);
    hostile_item(H_SET, bus->waiting_writers);
    for (uint32_t i = 0; i < bus->config.frames; i++)
        hostile_item(H_FRAME, &bus->frames[i]);
    for (uint32_t i = 0; i < bus->config.readers; i++)
        hostile_item(H_READER, &bus->readers[i]);
}

static void hostile_find_items(void)
{
    struct shm_segment *s = &hostile.w.segment;
    hostile_item(H_HEADER, s->header);
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS + 8; t++)
        hostile_item(H_POOL, &s->header->tables[t]);
    for (int i = 0; i < ACTORS; i++) {
        struct shm_place *place = shm_place_at(s, hostile.actors[i].thread.place);
        hostile_item(H_MEMBER, shm_member_at(s, hostile.actors[i].member.slot));
        hostile_item(H_PLACE, place);
        hostile_item(H_ITEM, &place->items[0]);
        for (int f = 0; f < 3; f++)
            hostile_item(H_FLIGHT, &place->flights[f]);
    }
    hostile_item(H_MEMBER, shm_member_at(s, 0));
    hostile_item(H_MEMBER, shm_member_at(s, ACTORS + 1));
    hostile_items_of_ring(&hostile.inbox);
    hostile_items_of_ring(&hostile.shared);
    hostile_items_of_bus(&hostile.read);
    hostile_items_of_bus(&hostile.left_behind);
    for (uint32_t i = 0; i < shm_pool_ready(s, SHM_TABLE_CHUNKS); i++)
        hostile_item(H_CHUNK, shm_chunk_at(s, i));
    for (int i = 0; i < HOSTILE_CALLS && hostile.calls[i]; i++)
        hostile_item(H_CELL, shm_cell_at(s, shm_call_cell(hostile.calls[i])));
    for (uint32_t i = 0; i < 5; i++) /* the last is a bus */
        hostile_item(H_BOX, shm_box_at(s, i));
    for (uint32_t i = 0; i < 3; i++) {
        hostile_item(H_NAME, shm_name_at(s, i));
        hostile_item(H_NOTICE, shm_notice_at(s, i));
    }
    for (uint32_t i = 0; i < HOSTILE_ITEMS; i++) {
        hostile_item(H_LEASE, shm_lease_at(s, i));
        uint32_t block = shm_lease_block(s, i);
        if (shm_word_state(atomic_load(&shm_lease_at(s, i)->word)) == SHM_LEASE_FREE ||
            !shm_block_ok(s, block))
            continue;
        hostile_item(H_BLOCK, shm_block_at(s, block));
        for (uint32_t h = 0; h < atomic_load(&shm_block_at(s, block)->handles); h++)
            hostile_item(H_HANDLE, s->base + shm_block_offset(s, block) + h * sizeof(struct shm_handle));
    }
    for (int of = 0; of < H_COUNT; of++)
        CHECK(hostile_items_count[of] > 0);
}

/* ---- building ---------------------------------------------------------------------------------------------- */

/* Both mappings go where the pages around them belong to nobody. */
static void hostile_guard(struct shm_segment *s)
{
    uint64_t gap = UINT64_C(1) << 30, bytes = shm_round_up(s->bytes, SHM_PAGE_BYTES);
    unsigned char *room =
        mmap(NULL, 2 * bytes + 3 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(room != MAP_FAILED);
    void *base = mremap(s->base, s->bytes, s->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room + gap);
    void *view = mremap((void *)(uintptr_t)s->view, s->bytes, s->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                        room + 2 * gap + bytes);
    CHECK(base != MAP_FAILED && view != MAP_FAILED);
    s->base = base;
    s->view = view;
    s->header = base;
}

static shm_call_id hostile_call(struct actor *caller, struct shm_box *box, bool async)
{
    shm_call_id call;
    uint64_t number = 5;
    struct shm_message message = message_of(3, &number);
    CHECK_OK(shm_call_open(&caller->thread, box->owner, async, &call));
    message.header = shm_header_make(SHM_KIND_CALL, 3);
    message.call = call;
    CHECK_OK(shm_box_send(&caller->thread, box, &message, 0));
    return call;
}

static void hostile_reply(struct actor *a, struct shm_box *box, bool block)
{
    struct shm_filter calls = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1u << SHM_KIND_CALL};
    struct shm_message message;
    shm_lease_index lease = 0;
    uint64_t number = 7;
    CHECK_OK(shm_box_receive(&a->thread, box, &calls, &message, 0));
    CHECK_OK(shm_call_serve(&a->thread, message.call));
    if (block)
        CHECK_OK(shm_block_take(&a->thread, 4096, &lease));
    CHECK_OK(shm_call_reply(&a->thread, message.call, &number, sizeof number, 0, block ? lease + 1 : 0));
}

static void hostile_die_receiving(void *box)
{
    uint64_t number;
    box_receive(&hostile.actors[V], box, NULL, &number, 0);
}

static void hostile_die_sending(void *box)
{
    box_send_block(&hostile.actors[W], box, 8, 8, true, 0);
}

/* Publish `number`; a frame is two words, the first its head. */
static int hostile_publish(struct actor *a, struct shm_bus_view *bus, uint64_t number, uint64_t wait_ms)
{
    shm_lease_index lease;
    uint32_t block;
    int status = shm_block_take(&a->thread, 16, &lease);
    if (status)
        return status;
    if (shm_lease_find(a->thread.segment, lease, 16, &block)) {
        unsigned char *at = a->thread.segment->base + shm_block_offset(a->thread.segment, block);
        memcpy(at + 8, &number, sizeof number);
    }
    status = shm_bus_publish(&a->thread, bus, lease, 8, 16, wait_ms ? soon(wait_ms) : 0);
    if (status)
        shm_lease_recycle(&a->thread, lease);
    return status;
}

static void hostile_die_publishing(void *bus)
{
    hostile_publish(&hostile.actors[V], bus, 9, 0);
}

static void hostile_build_buses(void)
{
    struct hostile *h = &hostile;
    struct shm_bus_config config = {.frames = 3, .readers = 2, .frame_bytes = 100};
    struct shm_bus_view of_v, of_w;
    struct shm_subscription patient;
    struct shm_taken taken;
    CHECK_OK(shm_bus_make(&h->actors[A].thread, &h->read, &config));
    CHECK_OK(shm_bus_open(&h->actors[B].thread, &h->written, h->read.index, h->read.count));
    CHECK_OK(shm_bus_subscribe(&h->actors[A].thread, &h->read, 0, &h->reader, 0));
    for (uint64_t i = 0; i < 4; i++)
        CHECK_OK(hostile_publish(&h->actors[B], &h->written, i, 0));
    CHECK_OK(shm_bus_receive(&h->actors[A].thread, &h->read, &h->reader, 100, &taken, 0));
    CHECK_EQ(h->reader.missed, 1);
    shm_lease_release(&h->actors[A].thread, taken.lease);
    config = (struct shm_bus_config){
        .frames = 1, .readers = 3, .frame_bytes = 100, .consume_after = 1, .max_age_ns = SHM_NS_PER_S};
    CHECK_OK(shm_bus_make(&h->actors[B].thread, &h->left_behind, &config));
    CHECK_OK(shm_bus_open(&h->actors[V].thread, &of_v, h->left_behind.index, h->left_behind.count));
    CHECK_OK(shm_bus_open(&h->actors[W].thread, &of_w, h->left_behind.index, h->left_behind.count));
    CHECK_OK(hostile_publish(&h->actors[V], &of_v, 1, 0));
    world_arm("bus_ready", 1);
    CHECK(world_dies(hostile_die_publishing, &of_v));
    CHECK_OK(shm_bus_subscribe(&h->actors[W].thread, &of_w, SHM_NS_PER_S, &patient, 0));
}

static void hostile_build(void)
{
    struct hostile *h = &hostile;
    struct actor *a = &h->actors[A], *b = &h->actors[B], *v = &h->actors[V], *w = &h->actors[W];
    uint64_t number;
    struct shm_filter none = by_tag(999);
    world_open(&h->w, UINT64_C(1) << 20);
    hostile_guard(&h->w.segment);
    for (uint32_t t = 0; t < SHM_TABLE_COUNT; t++) /* small tables: every reap walks through all of them */
        if (h->w.segment.tables[t].step > 16)
            h->w.segment.tables[t].step = 16;
    for (int i = 0; i < ACTORS; i++)
        actor_join(&h->w, &h->actors[i]);
    shm_abort_means_me(&b->thread);
    box_make(a, &h->inbox, SHM_BOX_ACTOR, 8);
    box_make(b, &h->shared, SHM_BOX_SHARED, 6);
    struct shm_box of_a, of_v, of_w, own;
    box_make(v, &own, SHM_BOX_ACTOR, 4);
    box_open(b, &h->dead, &own);
    box_open(b, &h->peer, &h->inbox);
    box_open(a, &of_a, &h->shared);
    box_open(v, &of_v, &h->shared);
    box_open(w, &of_w, &h->inbox);
    h->shared = of_a; /* A and B are one process here */
    atomic_store(&shm_member_at(&h->w.segment, a->member.slot)->box, h->inbox.index + 1);

    h->calls[0] = hostile_call(b, &h->peer, false);
    h->calls[1] = hostile_call(b, &h->peer, true);
    h->calls[2] = hostile_call(b, &h->peer, true);
    hostile_reply(a, &h->inbox, false);
    hostile_reply(a, &h->inbox, true);
    hostile_reply(a, &h->inbox, false);
    h->calls[3] = hostile_call(b, &h->peer, false); /* stays open, set aside */
    CHECK_OK(box_send(b, &h->peer, 1, 11, 0));
    CHECK_OK(box_send_block(b, &h->peer, 2, 12, true, 0));
    CHECK_EQ(box_receive(a, &h->inbox, &none, &number, 0), SHM_EMPTY);
    CHECK_OK(box_send(b, &h->peer, 4, 13, 0));
    CHECK_OK(box_send_block(b, &h->peer, 5, 14, true, 0));
    h->calls[4] = hostile_call(b, &h->peer, true);
    world_arm("send_copy", 1);
    CHECK(world_dies(hostile_die_sending, &of_w));
    CHECK_OK(box_send(b, &h->dead, 1, 21, 0));
    CHECK_OK(box_send_block(b, &h->dead, 1, 22, false, 0));
    CHECK_OK(box_send_block(b, &h->shared, 1, 31, true, 0));
    CHECK_OK(box_send(b, &h->shared, 2, 32, 0));
    world_arm("take_commit", 1);
    CHECK(world_dies(hostile_die_receiving, &of_v));

    CHECK_OK(shm_name_serve(&a->thread, "alpha",
                            &(struct shm_named){SHM_NAME_ACTOR, a->member.slot, actor_id(a)}));
    CHECK_OK(shm_name_serve(&b->thread, "beta",
                            &(struct shm_named){SHM_NAME_BOX, h->shared.index, h->shared.count}));
    CHECK_OK(shm_name_serve(&v->thread, "gamma",
                            &(struct shm_named){SHM_NAME_ACTOR, v->member.slot, actor_id(v)}));
    CHECK(shm_notice_arm(&a->thread, &h->inbox, actor_id(v)) > 0);
    CHECK(shm_notice_arm(&a->thread, &h->inbox, actor_id(b)) > 0);
    CHECK(shm_notice_arm(&a->thread, &h->inbox, 0) > 0); /* has fired already */
    hostile_build_buses();
    for (int i = 0; i < 3; i++)
        CHECK_OK(shm_block_take(&a->thread, 100, &h->kept[i]));
    CHECK_OK(shm_block_hold(&a->thread, shm_lease_block(&h->w.segment, h->kept[2]), &h->kept[3]));
    h->kept_count = 4;
    CHECK_OK(shm_block_take(&b->thread, 9000, &h->kept[4]));
    shm_lease_recycle(&b->thread, h->kept[4]); /* a warm block */
}

/* What `of` points to that was allocated, once more. */
static void *hostile_copy(const void *of, size_t bytes)
{
    void *copy = of ? malloc(bytes) : NULL;
    if (copy)
        memcpy(copy, of, bytes);
    return copy;
}

static void hostile_free(struct actor *a)
{
    free(a->member.free_cells);
    free(a->member.stuck);
    free(a->member.lent);
    free(a->member.chunks);
    free(a->member.life_path);
    free(a->thread.scratch);
}

static void hostile_copy_actor(struct actor *to, const struct actor *from)
{
    *to = *from;
    to->member.free_cells =
        hostile_copy(from->member.free_cells, from->member.free_cells_room * sizeof(uint32_t));
    to->member.stuck = hostile_copy(from->member.stuck, from->member.stuck_room * sizeof(uint32_t));
    to->member.chunks = hostile_copy(from->member.chunks, 256 * sizeof(uint32_t));
    to->member.life_path = hostile_copy(hostile.life_path, sizeof hostile.life_path);
    to->thread.scratch = malloc(65536);
    to->thread.member = &to->member;
}

static void hostile_restore(void)
{
    struct hostile *h = &hostile;
    struct shm_segment *s = &h->w.segment;
    struct stat st;
    CHECK_OK(fstat(s->fd, &st));
    if (st.st_blocks != h->blocks) {
        uint64_t at = 0;
        for (uint32_t i = 0; i <= h->extents_count; i++) {
            uint64_t end = i < h->extents_count ? h->extents[i].at : s->bytes;
            if (end > at)
                shm_segment_discard(s, at, end - at);
            if (i < h->extents_count)
                at = end + h->extents[i].bytes;
        }
    }
    for (uint32_t i = 0; i < h->extents_count; i++)
        memcpy(s->base + h->extents[i].at, h->extents[i].image, h->extents[i].bytes);
    for (int i = 0; i < ACTORS; i++) {
        hostile_copy_actor(&h->actors[i], &h->actors_then[i]);
        h->left[i] = false;
    }
    h->inbox = h->boxes_then[0];
    h->shared = h->boxes_then[1];
    h->peer = h->boxes_then[2];
    h->dead = h->boxes_then[3];
    h->read = h->buses_then[0];
    h->written = h->buses_then[1];
    h->left_behind = h->buses_then[2];
    h->reader = h->reader_then;
    memcpy(h->calls, h->calls_then, sizeof h->calls);
    memcpy(h->kept, h->kept_then, sizeof h->kept);
    h->kept_count = h->kept_count_then;
}

static void hostile_hangs(int signal)
{
    (void)signal;
    CHECK_FAIL("a script takes more than %d s of processor time", hostile_seconds);
}

static void hostile_open(void)
{
    struct hostile *h = &hostile;
    signal(SIGVTALRM, hostile_hangs);
    h->life_fd = memfd_create("shmipc-test-life", MFD_CLOEXEC);
    CHECK(h->life_fd >= 0);
    snprintf(h->life_path, sizeof h->life_path, "/proc/self/fd/%d", h->life_fd);
    hostile_build();
    for (int i = 0; i < ACTORS; i++) {
        struct actor *a = &h->actors[i];
        a->member.is_dead = hostile_is_dead;
        munmap(a->member.fork_page, SHM_PAGE_BYTES);
        a->member.fork_page = NULL;
        h->actors_then[i] = *a;
        h->actors_then[i].thread.may_spin = false;
    }
    h->boxes_then[0] = h->inbox;
    h->boxes_then[1] = h->shared;
    h->boxes_then[2] = h->peer;
    h->boxes_then[3] = h->dead;
    h->buses_then[0] = h->read;
    h->buses_then[1] = h->written;
    h->buses_then[2] = h->left_behind;
    h->reader_then = h->reader;
    memcpy(h->calls_then, h->calls, sizeof h->calls);
    memcpy(h->kept_then, h->kept, sizeof h->kept);
    h->kept_count_then = h->kept_count;
    hostile_find_items();
    struct shm_segment *s = &h->w.segment;
    struct stat st;
    for (off_t at = 0; (at = lseek(s->fd, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(s->fd, at, SEEK_HOLE);
        CHECK(end > at && h->extents_count < 256);
        struct hostile_extent *extent = &h->extents[h->extents_count++];
        *extent = (struct hostile_extent){(uint64_t)at, (uint64_t)(end - at),
                                          hostile_copy(s->base + at, (size_t)(end - at))};
        at = end;
    }
    CHECK_OK(fstat(s->fd, &st));
    h->blocks = st.st_blocks;
}

/* ---- writes ------------------------------------------------------------------------------------------------ */

struct hostile_write {
    uint64_t at;
    uint32_t bytes, mode;
    uint64_t operand;
    unsigned char part;
};

static void hostile_apply(const struct hostile_write *write)
{
    unsigned char *at = hostile.w.segment.base + write->at;
    uint64_t value = 0;
    uint32_t bytes = write->bytes < 8 ? write->bytes : 8;
    memcpy(&value, at, bytes);
    switch (write->mode & 7) {
    case 0:
        memset(at, 0, write->bytes);
        return;
    case 1:
        memset(at, 0xFF, write->bytes);
        return;
    case 2:
        value++;
        break;
    case 3:
        value--;
        break;
    case 4:
        value = write->operand & 0xFF;
        break;
    case 5:
        value = write->operand;
        break;
    case 6:
        value ^= UINT64_C(1) << write->operand % (8 * bytes);
        break;
    default: { /* a part of a word */
        uint64_t count = shm_word_count(value);
        uint32_t owner = shm_word_owner(value), state = shm_word_state(value);
        if (write->part % 3 == 0)
            state = (uint32_t)write->operand & 15;
        else if (write->part % 3 == 1)
            owner = write->operand & 0x80 ? SHM_IN_FLIGHT : (uint32_t)write->operand & 0x7F;
        else
            count += (uint64_t)(int64_t)(signed char)write->operand;
        value = shm_word_make(count, owner, state);
    }
    }
    memcpy(at, &value, bytes);
}

static struct hostile_write hostile_delayed;

static void hostile_hook(enum shm_kill_point point)
{
    (void)point;
    hostile_apply(&hostile_delayed);
}

/* ---- operations -------------------------------------------------------------------------------------------- */

static void hostile_saw(int64_t status)
{
    CHECK(status > 0 || (status <= 0 && status >= SHM_DEADLOCK)); /* in the table */
    hostile.statuses[status > 0 ? 0 : -status]++;
}

static void hostile_look(const void *body, uint64_t len_bytes)
{
    const unsigned char *bytes = body;
    for (uint64_t i = 0; i < len_bytes && i < 65536; i += 64)
        hostile.reads += bytes[i];
    if (len_bytes)
        hostile.reads += bytes[len_bytes - 1];
}

static void hostile_keep(shm_lease_index lease)
{
    if (hostile.kept_count < HOSTILE_KEPT)
        hostile.kept[hostile.kept_count++] = lease;
    else
        shm_lease_release(&hostile.actors[A].thread, lease);
}

static void hostile_receive(struct actor *a, struct shm_box *box, const struct shm_filter *filter,
                            uint64_t wait_ms)
{
    struct shm_message message;
    int status = shm_box_receive(&a->thread, box, filter, &message, wait_ms ? soon(wait_ms) : 0);
    hostile_saw(status);
    if (status)
        return;
    hostile_look(message.body, message.notice ? 0 : message.len_bytes);
    if (message.call && shm_call_serve(&a->thread, message.call) == 0 && message.flags != 1)
        hostile_saw(shm_call_reply(&a->thread, message.call, "reply", 5, 0, 0));
    if (message.lease && message.header & 1)
        shm_lease_recycle(&a->thread, message.lease - 1);
    else if (message.lease && a == &hostile.actors[A])
        hostile_keep(message.lease - 1);
    else if (message.lease)
        shm_lease_release(&a->thread, message.lease - 1);
}

static void hostile_send(struct actor *a, struct shm_box *box, bool block, uint64_t wait_ms)
{
    struct shm_thread *t = &a->thread;
    uint64_t number = 3;
    struct shm_message message = message_of(block ? 6 : 7, &number);
    shm_lease_index lease, inner;
    if (block) {
        int status = shm_block_take(t, 5000, &lease);
        hostile_saw(status);
        uint32_t at = status ? 0 : shm_lease_block(t->segment, lease);
        if (status)
            return;
        if (!shm_block_ok(t->segment, at)) {
            shm_lease_release(t, lease);
            return;
        }
        memset(t->segment->base + shm_block_offset(t->segment, at), 0, 64);
        if (shm_block_take(t, 10, &inner) == 0)
            shm_handles_put(t, at, &inner, 1);
        message.lease = lease + 1;
    }
    int status = shm_box_send(t, box, &message, wait_ms ? soon(wait_ms) : 0);
    hostile_saw(status);
    if (status && block)
        shm_lease_release(t, lease);
}

static void hostile_read_calls(struct actor *a)
{
    struct shm_reply reply;
    for (int i = 0; i < HOSTILE_CALLS; i++) {
        shm_call_id call = hostile.calls[i];
        if (!call || !shm_call_is_done(a->thread.segment, call))
            continue;
        int status = shm_call_read(&a->thread, call, &reply);
        hostile_saw(status);
        if (status == 0 && reply.status == 0)
            hostile_look(reply.body, reply.len_bytes);
        if (status == 0 && reply.lease)
            shm_lease_release(&a->thread, reply.lease - 1);
        shm_call_free(&a->thread, call);
        hostile.calls[i] = 0;
    }
}

static void hostile_call_anew(struct actor *a)
{
    shm_call_id call;
    uint64_t number = 5;
    struct shm_message message = message_of(3, &number);
    int status = shm_call_open(&a->thread, hostile.peer.owner, hostile.calls[5] == 0, &call);
    hostile_saw(status);
    if (status)
        return;
    message.call = call;
    status = shm_box_send(&a->thread, &hostile.peer, &message, 0);
    hostile_saw(status);
    shm_call_check(&a->thread, call, hostile.peer.owner);
    int at = 5;
    while (at < HOSTILE_CALLS && hostile.calls[at])
        at++;
    if (at == HOSTILE_CALLS)
        shm_call_cancel(&a->thread, call);
    else
        hostile.calls[at] = call;
}

static void hostile_open_boxes(struct actor *a)
{
    struct shm_segment *s = a->thread.segment;
    for (uint32_t i = 0; i < 5 && i < shm_pool_ready(s, SHM_TABLE_BOXES); i++) {
        struct shm_box box;
        int status = shm_box_open(&a->thread, &box, i, shm_word_count(atomic_load(&shm_box_at(s, i)->word)));
        hostile_saw(status);
        if (status)
            continue;
        hostile.reads += shm_ring_count(&box) + shm_ring_writable(&box) + shm_box_is_closed(&box);
        shm_box_release(&a->thread, &box);
    }
}

static void hostile_attach(void)
{
    struct shm_segment s = {.fd = -1};
    int fd = fcntl(hostile.w.segment.fd, F_DUPFD_CLOEXEC, 0);
    int status = shm_segment_attach(&s, fd);
    hostile_saw(status);
    if (status) {
        close(fd);
        return;
    }
    struct actor c;
    status = shm_member_join(&c.member, &s, 0, SHM_KIND_ATTACHED, "comer", NULL);
    hostile_saw(status);
    if (status == 0) {
        c.member.is_dead = hostile_is_dead;
        shm_member_attach_transport(&c.member);
        status = shm_thread_open(&c.thread, &c.member);
        hostile_saw(status);
        if (status == 0) {
            c.thread.may_spin = false;
            hostile_open_boxes(&c);
            shm_leave(&c.thread);
            shm_thread_close(&c.thread);
        }
        shm_member_dispose(&c.member);
    }
    shm_segment_detach(&s);
}

static void hostile_blocks(struct actor *a)
{
    shm_lease_index lease, more;
    static const uint64_t sizes[] = {1, 4096, 5000, 70000, 600000, 3000000};
    for (unsigned i = 0; i < 6; i++) {
        int status = shm_block_take(&a->thread, sizes[i], &lease);
        hostile_saw(status);
        if (status)
            continue;
        uint32_t block = shm_lease_block(a->thread.segment, lease);
        if (shm_block_ok(a->thread.segment, block)) {
            hostile.reads += shm_block_holders(a->thread.segment, block);
            if (shm_block_class_bytes(block) >= sizes[i])
                a->thread.segment->base[shm_block_offset(a->thread.segment, block) + sizes[i] - 1] = 1;
        }
        status = shm_block_hold(&a->thread, block, &more);
        hostile_saw(status);
        if (status == 0)
            shm_lease_release(&a->thread, more);
        if (i % 2)
            shm_lease_recycle(&a->thread, lease);
        else
            shm_lease_release(&a->thread, lease);
    }
}

static void hostile_names(struct actor *a)
{
    static const char *const names[] = {"alpha", "beta", "gamma", "delta"};
    struct shm_named named;
    char text[SHM_NAME_BYTES];
    for (int i = 0; i < 4; i++) {
        int status = shm_name_lookup(&a->thread, names[i], &named);
        hostile_saw(status);
        if (status == 0 && named.kind == SHM_NAME_BOX) {
            struct shm_box box;
            status = shm_box_open(&a->thread, &box, named.object, named.life);
            hostile_saw(status);
            if (status == 0)
                shm_box_release(&a->thread, &box);
        }
        hostile.reads +=
            shm_name_of(&a->thread, SHM_NAME_BOX, hostile.shared.index, hostile.shared.count, text);
        hostile_saw(shm_name_serve(&a->thread, names[i],
                                   &(struct shm_named){SHM_NAME_ACTOR, a->member.slot, actor_id(a)}));
        if (i % 2)
            hostile_saw(shm_name_withdraw(&a->thread, names[i]));
    }
}

static void hostile_members(struct actor *a)
{
    struct shm_segment *s = a->thread.segment;
    int64_t id = shm_member_prepare(s, &a->member, SHM_KIND_WORKER, "child");
    hostile_saw(id);
    if (id > 0) {
        shm_member_launched(s, (shm_member_id)id, getpid());
        shm_member_say_reason(s, (shm_member_id)id, SHM_EXIT_KILLED, 9);
        shm_member_forget(s, (shm_member_id)id);
    }
    for (uint32_t slot = 0; slot < 8 && slot < shm_pool_ready(s, SHM_TABLE_MEMBERS); slot++) {
        shm_member_id one = shm_member_id_of(atomic_load(&shm_member_at(s, slot)->word), slot);
        hostile.reads += shm_member_lives(s, one) + shm_member_cause(s, one);
        shm_member_say_status(s, one, SHM_EXIT_SIGNAL, 9);
    }
}

static void hostile_notices(struct actor *a)
{
    struct shm_filter exits = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1u << SHM_KIND_EXIT};
    int64_t number = shm_notice_arm(&a->thread, &hostile.inbox, actor_id(&hostile.actors[B]));
    hostile_saw(number);
    hostile_receive(a, &hostile.inbox, &exits, 0);
    if (number > 0)
        hostile.reads += shm_notice_disarm(&a->thread, (uint64_t)number);
    number = shm_notice_arm(&a->thread, &hostile.inbox, 0);
    hostile_saw(number);
    hostile_receive(a, &hostile.inbox, &exits, 0);
    struct actor *b = &hostile.actors[B];
    hostile_saw(
        shm_notice_link(&a->thread, &hostile.inbox, actor_id(b), hostile.shared.index, hostile.shared.count));
    hostile_receive(a, &hostile.inbox, &exits, 0);
    hostile.reads += shm_notice_unlink(&a->thread, actor_id(b));
    struct shm_message message = {
        .header = shm_header_make(SHM_KIND_TIMER, 5), .body = "a tick", .len_bytes = 6};
    struct shm_filter ticks = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1u << SHM_KIND_TIMER};
    for (uint64_t period = 0; period < 2; period++) {
        number = shm_notice_set(&a->thread, &hostile.inbox, &message, period);
        hostile_saw(number);
        if (number <= 0)
            continue;
        hostile_saw(shm_notice_tick(&a->thread, (uint64_t)number, period));
        hostile_receive(a, &hostile.inbox, &ticks, 0);
        hostile.reads += shm_notice_disarm(&a->thread, (uint64_t)number);
    }
}

static void hostile_new_box(struct actor *a)
{
    struct shm_box box;
    uint64_t number = 1;
    struct shm_message message = message_of(1, &number);
    struct shm_filter any = SHM_FILTER_NONE;
    int status = shm_box_make(&a->thread, &box, SHM_BOX_PERSISTENT, 2, 16, 0);
    hostile_saw(status);
    if (status)
        return;
    hostile_saw(shm_box_persist(&a->thread, &box));
    hostile_saw(shm_box_send(&a->thread, &box, &message, 0));
    hostile_receive(a, &box, &any, 0);
    shm_box_unpersist(&a->thread, &box);
    hostile.reads += shm_box_close(&a->thread, &box);
    shm_box_release(&a->thread, &box);
}

static void hostile_read_bus(struct actor *a, struct shm_bus_view *bus, struct shm_subscription *reader,
                             uint64_t room_bytes, uint64_t wait_ms)
{
    struct shm_taken taken;
    int status = shm_bus_receive(&a->thread, bus, reader, room_bytes, &taken, wait_ms ? soon(wait_ms) : 0);
    uint32_t block;
    hostile_saw(status);
    if (status)
        return;
    if (shm_lease_find(a->thread.segment, taken.lease, taken.len_bytes, &block))
        hostile_look(a->thread.segment->view + shm_block_offset(a->thread.segment, block), taken.len_bytes);
    if (a == &hostile.actors[A] && taken.position % 2)
        hostile_keep(taken.lease);
    else
        shm_lease_recycle(&a->thread, taken.lease);
}

static void hostile_join_bus(struct actor *a)
{
    struct shm_bus_view bus;
    struct shm_subscription reader;
    struct shm_box_record *record = shm_box_at(a->thread.segment, hostile.left_behind.index);
    int status =
        shm_bus_open(&a->thread, &bus, hostile.left_behind.index, shm_word_count(atomic_load(&record->word)));
    hostile_saw(status);
    if (status)
        return;
    hostile.reads += shm_bus_count_readers(&bus) + shm_bus_is_closed(&bus);
    status = shm_bus_subscribe(&a->thread, &bus, 1, &reader, soon(5));
    hostile_saw(status);
    if (status == 0) {
        hostile_read_bus(a, &bus, &reader, 7, 0);
        hostile_read_bus(a, &bus, &reader, 100, 600);
        shm_bus_unsubscribe(&a->thread, &bus, &reader);
    }
    hostile_saw(shm_bus_destroy(&a->thread, &bus));
    shm_bus_release(&a->thread, &bus);
}

static void hostile_new_bus(struct actor *a)
{
    struct shm_bus_config config = {.frames = 2, .readers = 1, .frame_bytes = 100, .consume_after = 1};
    struct shm_bus_view bus;
    struct shm_subscription reader;
    int status = shm_bus_make(&a->thread, &bus, &config);
    hostile_saw(status);
    if (status)
        return;
    status = shm_bus_subscribe(&a->thread, &bus, SHM_NS_PER_S, &reader, soon(5));
    hostile_saw(status);
    for (uint64_t i = 0; i < 3; i++)
        hostile_saw(hostile_publish(a, &bus, i, i == 2 ? 1200 : 0));
    if (status == 0) {
        hostile_read_bus(a, &bus, &reader, 100, 0);
        hostile_read_bus(a, &bus, &reader, 100, 0);
        hostile_saw(shm_bus_destroy(&a->thread, &bus));
        shm_bus_unsubscribe(&a->thread, &bus, &reader);
    }
    hostile_saw(shm_bus_destroy(&a->thread, &bus));
    shm_bus_release(&a->thread, &bus);
}

enum { HOSTILE_OPERATIONS = 38, HOSTILE_LENGTH = 48 /* of a script, in operations */ };

static void hostile_operate(unsigned op)
{
    struct hostile *h = &hostile;
    struct actor *a = &h->actors[A], *b = &h->actors[B];
    struct shm_filter any = SHM_FILTER_NONE, tagged = by_tag(op & 1 ? 2 : 5), nothing = by_tag(999);
    struct shm_filter from = {.sender = actor_id(b), .tag = SHM_TAG_ANY, .kinds = 1u << SHM_KIND_CAST};
    struct shm_message message;
    struct shm_box *boxes[2] = {&h->inbox, &h->shared};
    shm_call_id calls[4];
    struct shm_arena_counts counts;
    uint32_t which;
    if (h->left[A] || (h->left[B] && ((op >= 8 && op < 16) || op == 34 || op == 35)))
        return;
    switch (op) {
    case 0:
    case 1:
        hostile_receive(a, boxes[op], &any, 0);
        break;
    case 2:
    case 3:
        hostile_receive(a, &h->inbox, &tagged, 0);
        break;
    case 4:
        hostile_receive(a, &h->inbox, &from, 0);
        break;
    case 5:
        hostile_receive(a, boxes[0], &nothing, 700);
        break;
    case 6: {
        int status = shm_box_receive_any(&a->thread, boxes, 2, &message, &which, soon(600));
        hostile_saw(status);
        if (status == 0 && message.lease)
            shm_lease_recycle(&a->thread, message.lease - 1);
        break;
    }
    case 7:
        hostile_receive(a, boxes[1], &any, 1200);
        break;
    case 8:
    case 9:
        hostile_send(b, &h->peer, op & 1, 0);
        break;
    case 10:
        hostile_send(b, &h->shared, false, 700);
        break;
    case 11:
        hostile_call_anew(b);
        break;
    case 12:
        hostile_read_calls(b);
        break;
    case 13:
        hostile_saw(shm_abort(&a->thread, actor_id(b), 0));
        shm_abort_take(&b->thread);
        for (int i = 0; i < HOSTILE_CALLS; i++)
            if (h->calls[i] && shm_call_cancel(&b->thread, h->calls[i])) {
                h->calls[i] = 0;
                break;
            }
        break;
    case 14: {
        uint32_t n = shm_call_finished(&b->thread, calls, 4);
        CHECK(n <= 4);
        for (uint32_t i = 0; i < n; i++)
            h->reads += shm_call_is_done(b->thread.segment, calls[i]);
        hostile_saw(shm_call_wait_finished(&b->thread, atomic_load(&b->member.pokes), soon(600)));
        break;
    }
    case 15:
        for (int i = 0; i < HOSTILE_CALLS; i++)
            if (h->calls[i]) {
                hostile_saw(shm_call_wait(&b->thread, h->calls[i], h->peer.owner, soon(600)));
                break;
            }
        break;
    case 16:
        hostile_open_boxes(a);
        break;
    case 17:
        hostile_attach();
        break;
    case 18:
    case 19:
        h->reads += shm_reap(&a->thread, h->actors[op == 18 ? V : W].member.slot);
        break;
    case 20:
        h->reads += shm_reap_all(&a->thread);
        shm_lease_retry(&a->thread);
        break;
    case 21:
        hostile_blocks(a);
        break;
    case 22:
        shm_warm_drop(&a->thread);
        shm_arena_trim(&a->thread);
        break;
    case 23: {
        struct shm_fork fork;
        shm_fork_prepare(&a->member, &a->thread, &fork);
        for (uint32_t i = 0; i < h->kept_count; i++)
            hostile_saw(shm_fork_add(&a->member, &a->thread, h->kept[i], &fork));
        shm_fork_end(&fork);
        shm_lent_look(&a->thread);
        break;
    }
    case 24:
        hostile_names(a);
        break;
    case 25:
        hostile_members(a);
        break;
    case 26:
        hostile_notices(a);
        break;
    case 27:
        shm_arena_statistics(a->thread.segment, &counts);
        h->reads += counts.used_bytes + shm_ring_count(&h->inbox) + shm_ring_count(&h->shared) +
                    shm_set_count(h->inbox.receivers, 64) + shm_ring_help_tail(&h->inbox);
        shm_wake_own(&a->thread);
        break;
    case 28:
        hostile_new_box(a);
        break;
    case 29:
        while (h->kept_count)
            shm_lease_release(&a->thread, h->kept[--h->kept_count]);
        break;
    case 30:
        h->reads += shm_box_close(&a->thread, &h->inbox);
        break;
    case 32:
    case 33:
        hostile_read_bus(a, &h->read, &h->reader, 100, op == 33 ? 700 : 0);
        break;
    case 34:
        hostile_saw(hostile_publish(b, &h->written, 5, 0));
        break;
    case 35:
        hostile_saw(hostile_publish(b, &h->left_behind, 6, 700));
        break;
    case 36:
        hostile_join_bus(a);
        break;
    case 37:
        hostile_new_bus(a);
        break;
    default:
        if (!h->left[B]) {
            h->left[B] = true;
            shm_leave(&b->thread);
        }
        break;
    }
}

/* ---- scripts ----------------------------------------------------------------------------------------------- */

struct hostile_script {
    const unsigned char *bytes;
    size_t left;
};

static uint64_t hostile_next(struct hostile_script *script, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value |= script->left ? (uint64_t)*script->bytes << 8 * i : 0;
        script->bytes += script->left > 0;
        script->left -= script->left > 0;
    }
    return value;
}

static void hostile_read_write(struct hostile_script *script)
{
    const struct hostile_field *field = &hostile_fields[hostile_next(script, 2) % HOSTILE_FIELDS];
    uint64_t item = hostile_next(script, 1) % hostile_items_count[field->of];
    struct hostile_write write = {.at = hostile_items[field->of][item] + field->at, .bytes = field->bytes};
    write.mode = (uint32_t)hostile_next(script, 1);
    if ((write.mode & 48) == 48) {
        const struct hostile_extent *extent =
            &hostile.extents[hostile_next(script, 1) % hostile.extents_count];
        write.at = extent->at + hostile_next(script, 3) % (extent->bytes - 8);
        write.bytes = 8;
    }
    if ((write.mode & 7) == 7)
        write.part = (unsigned char)hostile_next(script, 1);
    if ((write.mode & 7) >= 4)
        write.operand = hostile_next(script, (write.mode & 7) == 5 ? 8 : 1);
    if (write.mode & 8) {
        unsigned point = (unsigned)hostile_next(script, 1) % SHM_KILL_POINT_COUNT;
        unsigned after = 1 + (unsigned)hostile_next(script, 1) % 8;
        hostile_delayed = write;
        shm_kill_point_hook = hostile_hook;
        CHECK_OK(shm_kill_point_arm(shm_kill_point_names[point], after, SIGKILL));
    } else {
        hostile_apply(&write);
    }
}

static void hostile_begin(void)
{
    struct itimerval limit = {.it_value = {.tv_sec = hostile_seconds}};
    hostile_restore();
    setitimer(ITIMER_VIRTUAL, &limit, NULL);
    atomic_store(&hostile_now, UINT64_C(1000) * SHM_NS_PER_S);
    atomic_store(&hostile_runs, true);
}

static void hostile_end(void)
{
    struct itimerval none = {0};
    struct actor *actors = hostile.actors;
    shm_kill_point_disarm();
    /* All that is left goes in order, whatever it has become. */
    for (int i = 0; i < 2; i++)
        if (!hostile.left[i])
            shm_leave(&actors[i].thread);
    atomic_store(&hostile_runs, false);
    setitimer(ITIMER_VIRTUAL, &none, NULL);
    for (int i = 0; i < ACTORS; i++)
        hostile_free(&actors[i]);
}

static inline void hostile_run(const unsigned char *bytes, size_t len_bytes)
{
    struct hostile_script script = {bytes, len_bytes};
    hostile_begin();
    for (unsigned operations = 0; script.left && operations < HOSTILE_LENGTH;) {
        unsigned op = (unsigned)hostile_next(&script, 1);
        if (op & 0x80)
            hostile_read_write(&script);
        else if (++operations)
            hostile_operate(op % HOSTILE_OPERATIONS);
    }
    hostile_end();
}

#endif
