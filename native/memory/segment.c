#define _GNU_SOURCE
#include "memory/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/status.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Reserved in steps, so that a signal does not undo minutes of work and other members get their turn. */
#define RESERVE_STEP (UINT64_C(16) << 20)

uint64_t shm_layout_signature(void)
{
    const uint64_t facts[] = {
        SHM_VERSION,
        sizeof(sem_t),
        sizeof(struct shm_header),
        sizeof(struct shm_pool),
        sizeof(struct shm_member_record),
        sizeof(struct shm_place),
        sizeof(struct shm_chunk),
        sizeof(struct shm_ring),
        sizeof(struct shm_slot),
        sizeof(struct shm_aside),
        sizeof(struct shm_box_record),
        sizeof(struct shm_bus),
        sizeof(struct shm_frame),
        sizeof(struct shm_bus_reader),
        sizeof(struct shm_sync),
        SHM_SYNC_KINDS,
        sizeof(struct shm_name_record),
        sizeof(struct shm_notice),
        sizeof(struct shm_block),
        sizeof(struct shm_lease),
        __builtin_offsetof(struct shm_lease, receives),
        sizeof(struct shm_port),
        __builtin_offsetof(struct shm_port, local),
        sizeof(struct shm_envelope),
        sizeof(struct shm_desk),
        sizeof(struct shm_group),
        SHM_CLASS_BLOCKS,
        SHM_PLACE_ITEMS,
        SHM_BODY_FORMATS,
        __builtin_offsetof(struct shm_ring, bits),
        __builtin_offsetof(struct shm_box_record, reader),
        __builtin_offsetof(struct shm_member_record, vigil),
        __BYTE_ORDER__,
    };
    uint64_t hash = UINT64_C(1469598103934665603); /* FNV-1a */
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++)
        for (int byte = 0; byte < 8; byte++)
            hash = (hash ^ (facts[i] >> 8 * byte & 0xFF)) * UINT64_C(1099511628211);
    return hash;
}

static uint64_t round_to_power(uint64_t value)
{
    uint64_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

static uint32_t smaller(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* The whole plan of the file, written into `header`; pure, so that size and format cannot disagree. */
static void plan(struct shm_header *header, const struct shm_config *config)
{
    uint64_t span =
        round_to_power(config->memory_limit < SHM_PAGE_BYTES ? SHM_PAGE_BYTES : config->memory_limit);
    uint32_t places =
        (uint32_t)shm_round_up(config->max_members < 1024 ? 4096 : (uint64_t)config->max_members * 4, 4096);
    if (places > 65536 * 2)
        places = 65536 * 2;
    uint32_t classes = 1;
    while (classes <= SHM_MAX_CLASS - SHM_MIN_CLASS && UINT64_C(1) << (SHM_MIN_CLASS + classes) <= span)
        classes++;

    header->place_words = places / 64;
    header->classes = classes;
    struct shape {
        uint32_t bytes, max, step;
    } shapes[SHM_TABLE_BLOCKS] = {
        [SHM_TABLE_MEMBERS] = {sizeof(struct shm_member_record), config->max_members + 1, 64},
        [SHM_TABLE_PLACES] = {sizeof(struct shm_place), places, 64},
        [SHM_TABLE_CHUNKS] = {sizeof(struct shm_chunk), 4096, 1},
        [SHM_TABLE_BOXES] = {sizeof(struct shm_box_record), 8192, 64},
        [SHM_TABLE_NAMES] = {sizeof(struct shm_name_record), 8192, 32},
        [SHM_TABLE_NOTICES] = {sizeof(struct shm_notice), 1 << 18, 64},
        [SHM_TABLE_LEASES] = {sizeof(struct shm_lease), 1 << 20, 1024},
        [SHM_TABLE_PORTS] = {sizeof(struct shm_port), 8192, 64},
        [SHM_TABLE_DESKS] = {(uint32_t)(sizeof(struct shm_desk) + sizeof(struct shm_set) + places / 64 * 8),
                             config->max_members + 1, 8},
    };
    uint64_t at = SHM_PAGE_BYTES;
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS + classes; t++) {
        struct shape shape;
        if (t < SHM_TABLE_BLOCKS) {
            shape = shapes[t];
        } else {
            uint32_t blocks = smaller(span >> (SHM_MIN_CLASS + t - SHM_TABLE_BLOCKS), SHM_CLASS_BLOCKS);
            shape = (struct shape){sizeof(struct shm_block), blocks, 128};
        }
        header->tables[t].offset = at;
        header->tables[t].item_bytes = shape.bytes;
        header->tables[t].max_items = shape.max;
        header->tables[t].step = shape.step;
        at += shm_round_up((uint64_t)shape.bytes * shape.max, SHM_PAGE_BYTES);
    }
    header->heap_offset = shm_round_up(at, UINT64_C(1) << 21);
    at = header->heap_offset;
    for (uint32_t c = 0; c < classes; c++)
        at += (uint64_t)header->tables[SHM_TABLE_BLOCKS + c].max_items << (SHM_MIN_CLASS + c);
    header->segment_bytes = at;
}

uint64_t shm_segment_size(const struct shm_config *config)
{
    struct shm_header header = {0};
    plan(&header, config);
    return header.segment_bytes;
}

/* Keep what was planned, which nobody else can write to. */
static void remember(struct shm_segment *segment, const struct shm_header *planned,
                     const struct shm_config *config)
{
    uint64_t at = planned->heap_offset;
    segment->max_members = config->max_members;
    segment->memory_limit = config->memory_limit;
    segment->classes = planned->classes;
    segment->place_words = planned->place_words;
    for (uint32_t t = 0; t < SHM_TABLE_COUNT; t++) {
        const struct shm_pool *pool = &planned->tables[t];
        segment->tables[t] =
            (struct shm_table_plan){pool->offset, pool->item_bytes, pool->max_items, pool->step};
        if (t >= SHM_TABLE_BLOCKS) {
            segment->heap[t - SHM_TABLE_BLOCKS] = at;
            at += (uint64_t)pool->max_items << (SHM_MIN_CLASS + t - SHM_TABLE_BLOCKS);
        }
    }
}

static int reserve(int fd, uint64_t offset, uint64_t len_bytes)
{
    while (len_bytes) {
        uint64_t step = len_bytes < RESERVE_STEP ? len_bytes : RESERVE_STEP;
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)step) != 0) {
            if (errno == EINTR)
                continue;
            return errno == ENOSPC || errno == ENOMEM || errno == EDQUOT ? SHM_NO_MEMORY : SHM_SYSTEM;
        }
        offset += step;
        len_bytes -= step;
    }
    return 0;
}

bool shm_segment_has_fd(const struct shm_segment *segment)
{
    struct stat st;
    return segment->fd >= 0 && fstat(segment->fd, &st) == 0 && st.st_dev == segment->device &&
           st.st_ino == segment->inode;
}

int shm_segment_reserve(struct shm_segment *segment, uint64_t offset, uint64_t len_bytes)
{
    if (shm_segment_has_fd(segment))
        return reserve(segment->fd, offset, len_bytes);
    /* The descriptor was closed behind our back; touching the pages gives them too, and fails without a signal. */
    while (len_bytes) {
        uint64_t step = len_bytes < RESERVE_STEP ? len_bytes : RESERVE_STEP;
        if (madvise(segment->base + offset, step, MADV_POPULATE_WRITE) != 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            return errno == EFAULT || errno == ENOMEM ? SHM_NO_MEMORY : SHM_SYSTEM;
        }
        offset += step;
        len_bytes -= step;
    }
    return 0;
}

void shm_segment_discard(struct shm_segment *segment, uint64_t offset, uint64_t len_bytes)
{
    if (!shm_segment_has_fd(segment)) {
        madvise(segment->base + offset, len_bytes, MADV_REMOVE);
        return;
    }
    while (fallocate(segment->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)len_bytes) != 0 &&
           errno == EINTR)
        ;
}

static int map(struct shm_segment *segment, int fd, uint64_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return errno == ENOMEM ? SHM_NO_MEMORY : SHM_SYSTEM;
    void *view = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (view == MAP_FAILED) {
        munmap(base, bytes);
        return errno == ENOMEM ? SHM_NO_MEMORY : SHM_SYSTEM;
    }
    madvise(base, bytes, MADV_DONTDUMP);
    madvise(view, bytes, MADV_DONTDUMP);
    struct stat st = {0};
    fstat(fd, &st);
    *segment = (struct shm_segment){.base = base,
                                    .view = view,
                                    .header = base,
                                    .bytes = bytes,
                                    .fd = fd,
                                    .device = st.st_dev,
                                    .inode = st.st_ino};
    return 0;
}

static uint64_t time_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/time", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

int shm_segment_format(struct shm_segment *segment, int fd, const struct shm_config *config)
{
    if (config->max_members < 1 || config->max_members > SHM_MAX_MEMBERS || config->memory_limit == 0 ||
        config->memory_limit > UINT64_C(1) << SHM_MAX_CLASS)
        return SHM_INVALID;
    uint64_t bytes = shm_segment_size(config);
    if (ftruncate(fd, (off_t)bytes) != 0)
        return SHM_SYSTEM;
    int status = reserve(fd, 0, SHM_PAGE_BYTES);
    if (status)
        return status;
    status = map(segment, fd, bytes);
    if (status)
        return status;

    struct shm_header *header = segment->header;
    header->version = SHM_VERSION;
    header->uid = config->uid;
    header->max_members = config->max_members;
    header->memory_limit = config->memory_limit;
    header->member_bytes = sizeof(struct shm_member_record);
    header->signature = shm_layout_signature();
    header->time_namespace = time_namespace();
    header->first_count = config->first_count;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    header->created_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    struct shm_header planned = {0};
    plan(&planned, config);
    remember(segment, &planned, config);
    plan(header, config);
    header->members_offset = header->tables[SHM_TABLE_MEMBERS].offset;
    atomic_store(&header->next_identity, 1);
    atomic_store(&header->next_tag, 1);
    atomic_store(&header->state, SHM_SEGMENT_MAKING);
    header->magic = SHM_MAGIC;
    atomic_store(&header->state, SHM_SEGMENT_READY);
    return 0;
}

bool shm_segment_check(struct shm_segment *segment)
{
    const struct shm_header *header = segment->header;
    struct shm_header expected = {0};
    struct shm_config config = {.max_members = SHM_ONCE(header->max_members),
                                .memory_limit = SHM_ONCE(header->memory_limit)};
    if (config.max_members < 1 || config.max_members > SHM_MAX_MEMBERS || config.memory_limit == 0 ||
        config.memory_limit > UINT64_C(1) << SHM_MAX_CLASS)
        return false;
    plan(&expected, &config);
    if (expected.segment_bytes != segment->bytes || expected.segment_bytes != header->segment_bytes ||
        expected.heap_offset != header->heap_offset || expected.classes != header->classes ||
        expected.place_words != header->place_words)
        return false;
    for (uint32_t t = 0; t < SHM_TABLE_COUNT; t++)
        if (expected.tables[t].offset != header->tables[t].offset ||
            expected.tables[t].item_bytes != header->tables[t].item_bytes ||
            expected.tables[t].max_items != header->tables[t].max_items ||
            atomic_load(&header->tables[t].ready) > expected.tables[t].max_items)
            return false;
    remember(segment, &expected, &config);
    return true;
}

static int attach(struct shm_segment *segment, int fd, bool closed_too)
{
    struct stat st;
    struct shm_header frozen;
    if (fstat(fd, &st) != 0)
        return SHM_SYSTEM;
    if ((uint64_t)st.st_size < SHM_PAGE_BYTES || pread(fd, &frozen, 64, 0) != 64 || frozen.magic == 0)
        return SHM_BUSY;
    if (frozen.magic != SHM_MAGIC)
        return SHM_CORRUPTED;
    if (frozen.version != SHM_VERSION || frozen.signature != shm_layout_signature())
        return SHM_LAYOUT;
    uint32_t state = atomic_load(&frozen.state);
    if (state == SHM_SEGMENT_CLOSED && !closed_too)
        return SHM_CLOSED;
    if (state != SHM_SEGMENT_READY && state != SHM_SEGMENT_CLOSED)
        return SHM_BUSY;
    int status = map(segment, fd, (uint64_t)st.st_size);
    if (status)
        return status;
    if (!shm_segment_check(segment)) {
        segment->fd = -1;
        shm_segment_detach(segment);
        return SHM_CORRUPTED;
    }
    uint64_t theirs = SHM_ONCE(segment->header->time_namespace), ours = time_namespace();
    if (theirs && ours && theirs != ours) {
        segment->fd = -1;
        shm_segment_detach(segment);
        return SHM_LAYOUT;
    }
    return 0;
}

int shm_segment_attach(struct shm_segment *segment, int fd)
{
    return attach(segment, fd, false);
}

int shm_segment_inspect(struct shm_segment *segment, int fd)
{
    return attach(segment, fd, true);
}

void shm_segment_detach(struct shm_segment *segment)
{
    if (segment->base) {
        munmap(segment->base, segment->bytes);
        munmap((void *)(uintptr_t)segment->view, segment->bytes);
    }
    if (shm_segment_has_fd(segment))
        close(segment->fd);
    *segment = (struct shm_segment){.fd = -1};
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

/* Ids are kept by whoever knows of a system, longer than that lives: they begin elsewhere in each. */
static void begin_counts(struct shm_segment *segment, uint32_t table, uint32_t from, uint32_t more)
{
    shm_word first = shm_word_make(SHM_ONCE(segment->header->first_count), SHM_NOBODY, 0);
    if (first == 0 || (table != SHM_TABLE_MEMBERS && table != SHM_TABLE_BOXES))
        return;
    for (uint32_t index = from; index < from + more; index++) {
        shm_word none = 0;
        atomic_compare_exchange_strong((_Atomic shm_word *)shm_pool_item(segment, table, index), &none,
                                       first);
    }
}

/* Make more items ready. Two that grow at once reserve the same pages; the second CAS fails and is harmless. */
int shm_pool_grow(struct shm_segment *segment, uint32_t table, uint32_t ready)
{
    struct shm_pool *pool = shm_pool_of(segment, table);
    const struct shm_table_plan *plan = &segment->tables[table];
    if (ready >= plan->max_items)
        return SHM_LIMIT;
    uint32_t more = plan->max_items - ready < plan->step ? plan->max_items - ready : plan->step;
    uint64_t from = plan->offset + (uint64_t)ready * plan->item_bytes;
    uint64_t to = from + (uint64_t)more * plan->item_bytes;
    uint64_t first_page = from / SHM_PAGE_BYTES * SHM_PAGE_BYTES;
    int status = shm_segment_reserve(segment, first_page, shm_round_up(to, SHM_PAGE_BYTES) - first_page);
    if (status)
        return status;
    begin_counts(segment, table, ready, more);
    atomic_compare_exchange_strong(&pool->ready, &ready, ready + more);
    return 0;
}

int64_t shm_pool_claim(struct shm_segment *segment, uint32_t table, uint32_t owner, uint32_t state)
{
    struct shm_pool *pool = shm_pool_of(segment, table);
    uint32_t first = table == SHM_TABLE_MEMBERS ? 1 : 0; /* member slot 0 names nobody */
    for (;;) {
        uint32_t ready = shm_pool_ready(segment, table);
        uint32_t start = atomic_load_explicit(&pool->free_hint, memory_order_relaxed);
        for (uint32_t n = 0; n < ready; n++) {
            uint32_t index = (uint32_t)(((uint64_t)start + n) % ready);
            if (index < first)
                continue;
            _Atomic shm_word *at = shm_pool_item(segment, table, index);
            shm_word word = atomic_load_explicit(at, memory_order_acquire);
            if (shm_word_state(word) == 0 &&
                atomic_compare_exchange_strong(at, &word, shm_word_next(word, owner, state))) {
                atomic_store_explicit(&pool->free_hint, index + 1, memory_order_relaxed);
                return index;
            }
        }
        int status = shm_pool_grow(segment, table, ready);
        if (status)
            return status;
        atomic_store_explicit(&pool->free_hint, ready, memory_order_relaxed);
    }
}
