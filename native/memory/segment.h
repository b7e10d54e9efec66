/* One process's mappings of a system's segment, and its tables.
 *
 * The core is given descriptors; who creates, names and unlinks them is not its concern.
 */
#ifndef SHM_SEGMENT_H
#define SHM_SEGMENT_H

#include <stdbool.h>

#include "base/clock.h"
#include "memory/layout.h"

/* Where a table is and how large it may become. */
struct shm_table_plan {
    uint64_t offset;
    uint32_t item_bytes, max_items, step;
};

/* The header's sizes are checked once, when the segment is opened. From then on each process goes by its own copy of
 * them, so that nobody who writes to the header can lead another out of the mapping. */
struct shm_segment {
    unsigned char *base;       /* whole file, writable */
    const unsigned char *view; /* whole file, read-only: what receivers are shown */
    struct shm_header *header;
    uint64_t bytes;
    int fd; /* kept to reserve pages; owned */
    uint64_t device, inode;
    uint32_t max_members, classes, place_words;
    uint64_t memory_limit;
    struct shm_table_plan tables[SHM_TABLE_COUNT];
    uint64_t heap[SHM_TABLE_COUNT - SHM_TABLE_BLOCKS]; /* where the blocks of each class start */
};

/* Is `fd` still the segment's file? A program may have closed descriptors that are not its own, and the number may be
 * another file's by now. */
bool shm_segment_has_fd(const struct shm_segment *segment);

/* What a new system is to be. */
struct shm_config {
    uint32_t uid;
    uint32_t max_members;
    uint64_t memory_limit; /* bytes of heap */
    uint64_t
        first_count; /* of members and mailboxes; at random, it tells their ids from those of other systems */
};

/* The size of the sparse file that `config` asks for, in bytes. */
uint64_t shm_segment_size(const struct shm_config *config);

/* Write a new system into the empty file `fd`, which the caller has made and holds the creation lock for, and
 * map it. On failure the file is left EMPTY or MAKING. NO_MEMORY: the file system is full. */
int shm_segment_format(struct shm_segment *segment, int fd, const struct shm_config *config);

/* Map an existing system. Answers by what the file shows:
 *     shorter than the frozen bytes, no magic, MAKING   BUSY: its creator is at work, or died there
 *     another signature or version                      LAYOUT
 *     CLOSED                                            CLOSED
 *     sizes that cannot be                              CORRUPTED
 * `fd` is owned by the segment afterwards when 0 is returned, else still the caller's. */
int shm_segment_attach(struct shm_segment *segment, int fd);

/* The same for who does not join: also when it is CLOSED. */
int shm_segment_inspect(struct shm_segment *segment, int fd);

/* Do the sizes in the header follow from its configuration? Then they are remembered. */
bool shm_segment_check(struct shm_segment *segment);

void shm_segment_detach(struct shm_segment *segment);

/* Give pages to [offset, offset + len_bytes) of the file: 0, NO_MEMORY or SYSTEM. Never under a claim. */
int shm_segment_reserve(struct shm_segment *segment, uint64_t offset, uint64_t len_bytes);
/* Take the pages of a range back; its bytes read as zero afterwards. */
void shm_segment_discard(struct shm_segment *segment, uint64_t offset, uint64_t len_bytes);

static inline struct shm_pool *shm_pool_of(const struct shm_segment *segment, uint32_t table)
{
    return &segment->header->tables[table];
}

/* Item `index` of a table, which the caller knows to be one. */
static inline void *shm_pool_item(const struct shm_segment *segment, uint32_t table, uint32_t index)
{
    const struct shm_table_plan *plan = &segment->tables[table];
    return segment->base + plan->offset + (uint64_t)index * plan->item_bytes;
}

/* The number of items that have pages; the others were never used. Never more than there is room for. */
static inline uint32_t shm_pool_ready(const struct shm_segment *segment, uint32_t table)
{
    uint32_t ready = atomic_load_explicit(&shm_pool_of(segment, table)->ready, memory_order_acquire);
    return ready < segment->tables[table].max_items ? ready : segment->tables[table].max_items;
}

/* Claim any item whose word is in state 0: its word becomes (count + 1, owner, state). The word is the first
 * field of every item. Returns the index, or NO_MEMORY, or LIMIT. */
int64_t shm_pool_claim(struct shm_segment *segment, uint32_t table, uint32_t owner, uint32_t state);

/* Make more items of a table ready, when `ready` are: 0, NO_MEMORY, LIMIT. */
int shm_pool_grow(struct shm_segment *segment, uint32_t table, uint32_t ready);

/* Tell where a free item is; a hint. */
/* As a hint: whoever looked last found every item taken, and there may be no more. */
#define SHM_POOL_FULL UINT32_MAX

static inline void shm_pool_hint(const struct shm_segment *segment, uint32_t table, uint32_t index)
{
    atomic_store_explicit(&shm_pool_of(segment, table)->free_hint, index, memory_order_relaxed);
}

static inline struct shm_member_record *shm_member_at(const struct shm_segment *s, uint32_t slot)
{
    return shm_pool_item(s, SHM_TABLE_MEMBERS, slot);
}

static inline struct shm_place *shm_place_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_PLACES, index);
}

static inline struct shm_box_record *shm_box_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_BOXES, index);
}

static inline struct shm_lease *shm_lease_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_LEASES, index);
}

static inline struct shm_chunk *shm_chunk_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_CHUNKS, index);
}

static inline struct shm_cell *shm_cell_at(const struct shm_segment *s, uint32_t cell)
{
    return &shm_chunk_at(s, cell / SHM_CHUNK_CELLS)->cells[cell % SHM_CHUNK_CELLS];
}

/* Can a call in this state still be answered? */
/* Has it ended, with an answer or without? */
static inline bool shm_cell_is_done(shm_word word)
{
    uint32_t state = shm_word_state(word);
    return state == SHM_CELL_DONE || state == SHM_CELL_FAILED || state == SHM_CELL_DROPPED;
}

static inline bool shm_cell_is_open(shm_word word)
{
    return shm_word_state(word) == SHM_CELL_PENDING || shm_word_state(word) == SHM_CELL_PENDING_ABORT;
}

/* Has a call that is open come to its limit? Then nobody is to serve it any more; its caller has yet to free the cell. */
static inline bool shm_cell_is_over(const struct shm_cell *cell)
{
    return atomic_load_explicit(&cell->flags, memory_order_relaxed) & SHM_CELL_LIMITED &&
           shm_clock_ns() >= atomic_load_explicit(&cell->tag, memory_order_relaxed);
}

/* Is the call still open: does its caller wait, and has nobody answered? One load. */
static inline bool shm_call_is_pending(const struct shm_segment *s, shm_call_id call)
{
    uint32_t cell = (uint32_t)(call >> 44);
    if (cell / SHM_CHUNK_CELLS >= shm_pool_ready(s, SHM_TABLE_CHUNKS))
        return false;
    shm_word word = atomic_load(&shm_cell_at(s, cell)->word);
    return shm_word_count(word) == (call & SHM_COUNT_MASK) && shm_cell_is_open(word) &&
           !shm_cell_is_over(shm_cell_at(s, cell));
}

static inline struct shm_notice *shm_notice_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_NOTICES, index);
}

static inline struct shm_name_record *shm_name_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_NAMES, index);
}

static inline struct shm_block *shm_block_at(const struct shm_segment *s, uint32_t block)
{
    return shm_pool_item(s, SHM_TABLE_BLOCKS + (block >> 24), block & 0xFFFFFF);
}

/* Size class of a block in bytes, and where the block's bytes start in the file. */
static inline uint64_t shm_block_class_bytes(uint32_t block)
{
    return UINT64_C(1) << (SHM_MIN_CLASS + (block >> 24));
}

static inline uint64_t shm_block_offset(const struct shm_segment *segment, uint32_t block)
{
    return segment->heap[block >> 24] + (uint64_t)(block & 0xFFFFFF) * shm_block_class_bytes(block);
}

static inline struct shm_port *shm_port_at(const struct shm_segment *s, uint32_t index)
{
    return shm_pool_item(s, SHM_TABLE_PORTS, index);
}

static inline struct shm_desk *shm_desk_at(const struct shm_segment *s, uint32_t slot)
{
    return shm_pool_item(s, SHM_TABLE_DESKS, slot);
}

/* Does this index name an item that exists? Asked of every index that was read from shared memory. */
static inline bool shm_index_ok(const struct shm_segment *segment, uint32_t table, uint32_t index)
{
    return index < shm_pool_ready(segment, table);
}

static inline bool shm_block_ok(const struct shm_segment *segment, uint32_t block)
{
    return (block >> 24) < segment->classes &&
           shm_index_ok(segment, SHM_TABLE_BLOCKS + (block >> 24), block & 0xFFFFFF);
}

/* Is there nobody in this member slot, so that a claim that names it is impossible? Reaping mends a member's claims
 * before it frees the slot: the claim is to be read again afterwards. */
static inline bool shm_slot_is_empty(const struct shm_segment *segment, uint32_t slot)
{
    return slot == 0 || !shm_index_ok(segment, SHM_TABLE_MEMBERS, slot) ||
           shm_word_state(atomic_load(&shm_member_at(segment, slot)->word)) == SHM_MEMBER_FREE;
}

#endif
