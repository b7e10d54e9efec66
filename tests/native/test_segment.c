/* The file of a system: what attach says about each state it may be found in, and how its tables grow. */
#include "world.h"

static int empty_file(void)
{
    int fd = memfd_create("shmipc-test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static int ready_file(struct shm_segment *segment)
{
    int fd = empty_file();
    struct shm_config config = {.uid = 7, .max_members = 10, .memory_limit = UINT64_C(1) << 20};
    CHECK_OK(shm_segment_format(segment, fd, &config));
    return fd;
}

/* What another process would be told that finds the file as it is now. */
static int attach(int fd)
{
    struct shm_segment other;
    int copy = dup(fd);
    int status = shm_segment_attach(&other, copy);
    if (status == 0)
        shm_segment_detach(&other);
    else
        CHECK_OK(close(copy));
    return status;
}

static void file_without_a_system_is_busy(void)
{
    int fd = empty_file();
    CHECK_EQ(attach(fd), SHM_BUSY);
    CHECK_OK(ftruncate(fd, 63));
    CHECK_EQ(attach(fd), SHM_BUSY);
    CHECK_OK(ftruncate(fd, 1 << 20));
    CHECK_EQ(attach(fd), SHM_BUSY);
    close(fd);
}

static void other_file_is_corrupted(void)
{
    int fd = empty_file();
    char text[4096];
    memset(text, 'x', sizeof text);
    CHECK_EQ(write(fd, text, sizeof text), (long)sizeof text);
    CHECK_EQ(attach(fd), SHM_CORRUPTED);
    close(fd);
}

static void state_decides_what_attach_says(void)
{
    struct shm_segment segment;
    int fd = ready_file(&segment);
    struct shm_header *header = segment.header;
    CHECK_OK(attach(fd));
    atomic_store(&header->state, SHM_SEGMENT_MAKING);
    CHECK_EQ(attach(fd), SHM_BUSY);
    atomic_store(&header->state, SHM_SEGMENT_EMPTY);
    CHECK_EQ(attach(fd), SHM_BUSY);
    atomic_store(&header->state, SHM_SEGMENT_CLOSED);
    CHECK_EQ(attach(fd), SHM_CLOSED);
    atomic_store(&header->state, SHM_SEGMENT_READY);
    CHECK_OK(attach(fd));
    shm_segment_detach(&segment);
}

static void other_layout_is_refused_by_signature_and_by_version(void)
{
    struct shm_segment segment;
    int fd = ready_file(&segment);
    segment.header->signature ^= 1;
    CHECK_EQ(attach(fd), SHM_LAYOUT);
    segment.header->signature ^= 1;
    segment.header->version++;
    CHECK_EQ(attach(fd), SHM_LAYOUT);
    segment.header->version--;
    segment.header->time_namespace += 1;
    CHECK_EQ(attach(fd), SHM_LAYOUT);
    segment.header->time_namespace -= 1;
    CHECK_OK(attach(fd));
    shm_segment_detach(&segment);
}

/* One field after another is spoiled, and mended again. */
#define REFUSED_WITH(field, value)                                                                           \
    do {                                                                                                     \
        __typeof__(segment.header->field) good = segment.header->field;                                      \
        segment.header->field = (value);                                                                     \
        CHECK_EQ(attach(fd), SHM_CORRUPTED);                                                                 \
        segment.header->field = good;                                                                        \
    } while (0)

static void impossible_sizes_are_refused(void)
{
    struct shm_segment segment;
    int fd = ready_file(&segment);
    uint64_t bytes = segment.bytes;
    REFUSED_WITH(max_members, 0);
    REFUSED_WITH(max_members, 11000);
    REFUSED_WITH(max_members, UINT32_MAX);
    REFUSED_WITH(memory_limit, 0);
    REFUSED_WITH(memory_limit, UINT64_MAX);
    REFUSED_WITH(memory_limit, UINT64_C(1) << 30);
    REFUSED_WITH(segment_bytes, bytes * 2);
    REFUSED_WITH(heap_offset, 4096);
    REFUSED_WITH(classes, 33);
    REFUSED_WITH(place_words, 1);
    REFUSED_WITH(tables[SHM_TABLE_LEASES].offset, bytes);
    REFUSED_WITH(tables[SHM_TABLE_LEASES].item_bytes, 1);
    REFUSED_WITH(tables[SHM_TABLE_LEASES].max_items, UINT32_MAX);
    REFUSED_WITH(tables[SHM_TABLE_LEASES].ready, UINT32_MAX);
    REFUSED_WITH(tables[SHM_TABLE_COUNT - 1].max_items, 1);
    CHECK_OK(attach(fd));
    CHECK_OK(ftruncate(fd, (off_t)(bytes - 4096)));
    CHECK_EQ(attach(fd), SHM_CORRUPTED);
    shm_segment_detach(&segment);
}

static void bad_configurations_are_invalid(void)
{
    struct shm_segment segment;
    int fd = empty_file();
    struct shm_config none = {.max_members = 0, .memory_limit = 4096};
    struct shm_config many = {.max_members = SHM_MAX_MEMBERS + 1, .memory_limit = 4096};
    struct shm_config nothing = {.max_members = 1, .memory_limit = 0};
    struct shm_config huge = {.max_members = 1, .memory_limit = (UINT64_C(1) << SHM_MAX_CLASS) + 1};
    CHECK_EQ(shm_segment_format(&segment, fd, &none), SHM_INVALID);
    CHECK_EQ(shm_segment_format(&segment, fd, &many), SHM_INVALID);
    CHECK_EQ(shm_segment_format(&segment, fd, &nothing), SHM_INVALID);
    CHECK_EQ(shm_segment_format(&segment, fd, &huge), SHM_INVALID);
    CHECK_EQ(attach(fd), SHM_BUSY);
    close(fd);
}

static void file_has_the_size_that_was_announced(void)
{
    const uint64_t limits[] = {1, 4096, 4097, UINT64_C(1) << 20, UINT64_C(3) << 20, UINT64_C(1) << 30};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        struct shm_segment segment;
        struct shm_config config = {.max_members = 1, .memory_limit = limits[i]};
        int fd = empty_file();
        CHECK_OK(shm_segment_format(&segment, fd, &config));
        CHECK_EQ(segment.bytes, shm_segment_size(&config));
        CHECK_EQ(lseek(fd, 0, SEEK_END), (long)segment.bytes);
        CHECK_EQ(memcmp(segment.view, segment.base, 64), 0);
        CHECK_OK(attach(fd));
        shm_segment_detach(&segment);
    }
}

static void table_ends_with_limit_and_its_items_do_not_overlap(void)
{
    struct shm_segment segment;
    ready_file(&segment);
    struct shm_pool *pool = shm_pool_of(&segment, SHM_TABLE_MEMBERS);
    CHECK_EQ(pool->max_items, 11);
    for (int i = 0; i < 10; i++)
        CHECK(shm_pool_claim(&segment, SHM_TABLE_MEMBERS, 1, 1) > 0);
    CHECK_EQ(shm_pool_claim(&segment, SHM_TABLE_MEMBERS, 1, 1), SHM_LIMIT);
    for (uint32_t t = 0; t + 1 < SHM_TABLE_BLOCKS + segment.header->classes; t++) {
        struct shm_pool *at = shm_pool_of(&segment, t), *next = shm_pool_of(&segment, t + 1);
        CHECK(at->offset + (uint64_t)at->item_bytes * at->max_items <= next->offset);
    }
    uint32_t last = (segment.header->classes - 1) << 24;
    CHECK(shm_block_offset(&segment, last) + shm_block_class_bytes(last) <= segment.bytes);
    shm_segment_detach(&segment);
}

enum { CLAIMS = 300 };

static _Atomic uint32_t claimed[8 * CLAIMS + 64];

static void claim_many(void *argument, int index)
{
    struct shm_segment *segment = argument;
    for (int i = 0; i < CLAIMS; i++) {
        int64_t item = shm_pool_claim(segment, SHM_TABLE_NOTICES, (uint32_t)index + 1, 1);
        CHECK(item >= 0 && item < 8 * CLAIMS + 64);
        CHECK_EQ(atomic_exchange(&claimed[item], (uint32_t)index + 1), 0);
    }
}

static void item_is_claimed_by_one_of_many_that_grow_the_table(void)
{
    struct world w;
    world_open(&w, WORLD_SMALL);
    check_threads(8, claim_many, &w.segment);
    CHECK_EQ(world_count(&w).notices, 8 * CLAIMS);
    shm_segment_detach(&w.segment);
}

int main(void)
{
    RUN(file_without_a_system_is_busy);
    RUN(other_file_is_corrupted);
    RUN(state_decides_what_attach_says);
    RUN(other_layout_is_refused_by_signature_and_by_version);
    RUN(impossible_sizes_are_refused);
    RUN(bad_configurations_are_invalid);
    RUN(file_has_the_size_that_was_announced);
    RUN(table_ends_with_limit_and_its_items_do_not_overlap);
    RUN(item_is_claimed_by_one_of_many_that_grow_the_table);
    return 0;
}
