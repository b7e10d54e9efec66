/* A small system whose members are threads, or simply several `struct actor` of one thread.
 *
 *     struct world w;
 *     world_open(&w, WORLD_SMALL);
 *     struct actor a;
 *     actor_join(&w, &a);
 *     ...
 *     actor_leave(&a);            or actor_die(&a); then shm_reap() by another
 *     world_close(&w);            everything must be free again, and no wait was rescued
 *
 * A death is: the actor is not used any more, its life is put into the table of the dead, another member reaps.
 * DIES(expression) runs the expression and says whether the armed kill point ended it.
 */
#ifndef WORLD_H
#define WORLD_H

#define _GNU_SOURCE /* included before everything else */

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/keeper.h"

#include "check.h"

#define WORLD_SMALL (UINT64_C(16) << 20)
#define MS UINT64_C(1000000)

struct world {
    struct shm_segment segment;
};

struct actor {
    struct shm_member member;
    struct shm_thread thread;
};

/* ---- deaths ------------------------------------------------------------------------------------------------ */

/* The generation that has died in each slot; a later life of the slot is alive. */
static _Atomic uint64_t world_dead[256];

static inline bool world_is_dead(struct shm_member *self, uint32_t slot)
{
    shm_word word = atomic_load(&shm_member_at(self->segment, slot)->word);
    return atomic_load(&world_dead[slot]) == shm_word_count(word);
}

static inline void world_kill(struct world *w, uint32_t slot)
{
    atomic_store(&world_dead[slot], shm_word_count(atomic_load(&shm_member_at(&w->segment, slot)->word)));
}

static _Thread_local sigjmp_buf world_death;
static _Thread_local bool world_mortal;

/* Only the thread that is to die does; another that comes by first leaves the point armed. */
static inline void world_hook(enum shm_kill_point point)
{
    if (world_mortal)
        siglongjmp(world_death, 1);
    shm_kill_point_arm(shm_kill_point_names[point], 1, SIGKILL);
}

static inline void world_arm(const char *point, unsigned after)
{
    shm_kill_point_hook = world_hook;
    CHECK_OK(shm_kill_point_arm(point, after, SIGKILL));
}

/* Did the armed kill point end it? Afterwards none is armed. A function, so that nothing lives across the jump. */
static inline bool world_dies(void (*act)(void *), void *argument)
{
    volatile bool died = true;
    world_mortal = true;
    if (sigsetjmp(world_death, 0) == 0) {
        act(argument);
        died = false;
    }
    world_mortal = false;
    shm_kill_point_disarm();
    return died;
}

/* ---- members ----------------------------------------------------------------------------------------------- */

static inline void actor_begin(struct actor *a)
{
    a->member.is_dead = world_is_dead;
    shm_member_attach_transport(&a->member);
    CHECK_OK(shm_thread_open(&a->thread, &a->member));
}

static inline void actor_join(struct world *w, struct actor *a)
{
    CHECK_OK(shm_member_join(&a->member, &w->segment, 0, SHM_KIND_ATTACHED, "test", NULL));
    actor_begin(a);
}

static inline void actor_leave(struct actor *a)
{
    shm_leave(&a->thread);
    shm_member_dispose(&a->member);
}

/* It does nothing from here on; what it has in shared memory stays as it is. */
static inline void actor_die(struct world *w, struct actor *a)
{
    world_kill(w, a->member.slot);
    free(a->thread.scratch);
    a->thread.scratch = NULL;
    shm_member_dispose(&a->member);
}

static inline shm_member_id actor_id(const struct actor *a)
{
    return shm_member_id_self(&a->member);
}

/* ---- what is in use ---------------------------------------------------------------------------------------- */

struct world_counts {
    uint32_t members, places, chunks, cells, boxes, names, notices, leases, ports, blocks, armed;
};

static inline uint32_t world_count_words(const struct shm_segment *s, uint32_t table)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < shm_pool_ready(s, table); i++)
        used += shm_word_state(atomic_load((_Atomic shm_word *)shm_pool_item(s, table, i))) != 0;
    return used;
}

static inline struct world_counts world_count(const struct world *w)
{
    const struct shm_segment *s = &w->segment;
    struct world_counts n = {
        .members = world_count_words(s, SHM_TABLE_MEMBERS),
        .places = world_count_words(s, SHM_TABLE_PLACES),
        .chunks = world_count_words(s, SHM_TABLE_CHUNKS),
        .boxes = world_count_words(s, SHM_TABLE_BOXES),
        .names = world_count_words(s, SHM_TABLE_NAMES),
        .notices = world_count_words(s, SHM_TABLE_NOTICES),
        .leases = world_count_words(s, SHM_TABLE_LEASES),
        .ports = world_count_words(s, SHM_TABLE_PORTS),
    };
    for (uint32_t c = 0; c < s->classes; c++)
        n.blocks += world_count_words(s, SHM_TABLE_BLOCKS + c);
    for (uint32_t i = 0; i < shm_pool_ready(s, SHM_TABLE_CHUNKS) * SHM_CHUNK_CELLS; i++)
        n.cells += shm_word_state(atomic_load(&shm_cell_at(s, i)->word)) != SHM_CELL_FREE;
    for (uint32_t i = 0; i < shm_pool_ready(s, SHM_TABLE_PLACES); i++)
        n.armed += shm_word_state(atomic_load(&shm_place_at(s, i)->word)) != SHM_PLACE_IDLE;
    return n;
}

/* Nobody is here and nothing is left. */
static inline void world_check_empty(const struct world *w)
{
    struct world_counts n = world_count(w);
    CHECK_EQ(n.members, 0);
    CHECK_EQ(n.places, 0);
    CHECK_EQ(n.armed, 0);
    CHECK_EQ(n.chunks, 0);
    CHECK_EQ(n.cells, 0);
    CHECK_EQ(n.boxes, 0);
    CHECK_EQ(n.names, 0);
    CHECK_EQ(n.notices, 0);
    CHECK_EQ(n.leases, 0);
    CHECK_EQ(n.ports, 0);
    CHECK_EQ(n.blocks, 0);
    CHECK_EQ(atomic_load(&w->segment.header->rescued), 0);
}

static inline void world_open(struct world *w, uint64_t memory_limit)
{
    struct shm_config config = {.uid = 1000, .max_members = 64, .memory_limit = memory_limit};
    int fd = memfd_create("shmipc-test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    for (int i = 0; i < 256; i++)
        atomic_store(&world_dead[i], 0);
    CHECK_OK(shm_segment_format(&w->segment, fd, &config));
}

static inline void world_close(struct world *w)
{
    world_check_empty(w);
    shm_segment_detach(&w->segment);
}

/* ---- mailboxes --------------------------------------------------------------------------------------------- */

static inline void box_make(struct actor *a, struct shm_box *box, uint32_t kind, uint32_t capacity)
{
    CHECK_OK(shm_box_make(&a->thread, box, kind, capacity, 64, 0));
}

static inline void box_open(struct actor *a, struct shm_box *box, const struct shm_box *of)
{
    CHECK_OK(shm_box_open(&a->thread, box, of->index, of->count));
}

static inline uint64_t soon(uint64_t ms)
{
    return shm_clock_ns() + ms * MS;
}

static inline struct shm_message message_of(uint64_t tag, const uint64_t *number)
{
    return (struct shm_message){
        .header = shm_header_make(SHM_KIND_CAST, tag), .body = number, .len_bytes = sizeof *number};
}

/* Send one number, by the deadline; the status. */
static inline int box_send(struct actor *a, struct shm_box *box, uint64_t tag, uint64_t number,
                           uint64_t deadline_ns)
{
    struct shm_message message = message_of(tag, &number);
    return shm_box_send(&a->thread, box, &message, deadline_ns);
}

static inline uint64_t number_in(const struct shm_message *message)
{
    uint64_t number;
    CHECK(message->len_bytes >= sizeof number);
    memcpy(&number, (const char *)message->body + message->len_bytes - sizeof number, sizeof number);
    return number;
}

static inline struct shm_filter by_tag(uint64_t tag)
{
    return (struct shm_filter){.sender = SHM_SENDER_ANY, .tag = tag, .kinds = ~0u};
}

/* Receive a number, whether it travels in the slot or in a block. */
static inline int box_receive(struct actor *a, struct shm_box *box, const struct shm_filter *filter,
                              uint64_t *number, uint64_t deadline_ns)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message message;
    *number = 0;
    int status = shm_box_receive(&a->thread, box, filter ? filter : &any, &message, deadline_ns);
    if (status == 0) {
        *number = number_in(&message);
        if (message.lease)
            shm_lease_release(&a->thread, message.lease - 1);
    }
    return status;
}

/* Send a number that travels in a block of its own, with a second block as a handle when `nested`. */
static inline int box_send_block(struct actor *a, struct shm_box *box, uint64_t tag, uint64_t number,
                                 bool nested, uint64_t deadline_ns)
{
    shm_lease_index lease, inner;
    CHECK_OK(shm_block_take(&a->thread, 5000, &lease));
    uint32_t block = shm_lease_block(a->thread.segment, lease);
    unsigned char *bytes = a->thread.segment->base + shm_block_offset(a->thread.segment, block);
    memset(bytes, 0, 16);
    if (nested) {
        CHECK_OK(shm_block_take(&a->thread, 100, &inner));
        shm_handles_put(&a->thread, block, &inner, 1);
    }
    /* The body is all of the block; receivers read the number behind the handle. */
    memcpy(bytes + 8, &number, 8);
    struct shm_message message = {
        .header = shm_header_make(SHM_KIND_CAST, tag), .len_bytes = 16, .lease = lease + 1};
    int status = shm_box_send(&a->thread, box, &message, deadline_ns);
    if (status)
        shm_lease_release(&a->thread, lease);
    return status;
}

#endif
