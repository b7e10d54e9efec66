#define _GNU_SOURCE
#include "transport/look.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

bool shm_look_place(const struct shm_segment *segment, uint32_t index, uint32_t slot,
                    struct shm_activity *activity)
{
    struct shm_place *place = shm_place_at(segment, index);
    shm_word owner = atomic_load(&place->owner);
    if (shm_word_owner(owner) != slot || shm_word_state(owner) != 1)
        return false;
    uint64_t text[SHM_WHAT_BYTES / 8];
    *activity = (struct shm_activity){.place = index,
                                      .thread = place->thread,
                                      .serving = atomic_load(&place->serving),
                                      .serving_since = atomic_load(&place->serving_since)};
    for (int i = 0; i < SHM_WHAT_BYTES / 8; i++)
        text[i] = atomic_load(&place->serving_what[i]);
    memcpy(activity->what, text, sizeof text);
    uint32_t state = shm_word_state(atomic_load(&place->word));
    if (state != SHM_PLACE_IDLE && atomic_load(&place->items_count)) {
        activity->wait_kind = atomic_load(&place->items[0].kind);
        activity->object = atomic_load(&place->items[0].object);
        activity->waits_since = atomic_load(&place->waits_since);
        activity->waits_until = atomic_load(&place->waits_until);
    }
    return activity->serving_since || activity->wait_kind;
}

const struct shm_ring *shm_look_ring(const struct shm_segment *segment, uint32_t box)
{
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, box))
        return NULL;
    struct shm_box_record *record = shm_box_at(segment, box);
    uint64_t place = atomic_load(&record->place_of_ring);
    if (shm_word_state(atomic_load(&record->word)) != SHM_BOX_OPEN || !shm_box_has_ring(record) ||
        place == 0 || place > UINT32_MAX || !shm_block_ok(segment, (uint32_t)place - 1) ||
        shm_block_class_bytes((uint32_t)place - 1) < sizeof(struct shm_ring))
        return NULL;
    uint64_t offset = shm_block_offset(segment, (uint32_t)place - 1);
    return offset + sizeof(struct shm_ring) <= segment->bytes
               ? (const struct shm_ring *)(segment->base + offset)
               : NULL;
}

uint64_t shm_look_depth(const struct shm_ring *ring)
{
    uint64_t delivered = atomic_load(&ring->delivered), tail = atomic_load(&ring->tail);
    return tail > delivered ? tail - delivered : 0;
}

uint32_t shm_look_server(const struct shm_segment *segment, uint32_t cell)
{
    if (!shm_index_ok(segment, SHM_TABLE_CHUNKS, cell / SHM_CHUNK_CELLS))
        return 0;
    shm_word word = atomic_load(&shm_cell_at(segment, cell)->word);
    uint32_t state = shm_word_state(word), slot = shm_word_owner(word);
    bool waits = state == SHM_CELL_PENDING || state == SHM_CELL_PENDING_ABORT || state == SHM_CELL_FILLING;
    return waits && shm_index_ok(segment, SHM_TABLE_MEMBERS, slot) ? slot : 0;
}

shm_member_id shm_look_taker(const struct shm_segment *segment, shm_call_id call)
{
    uint32_t cell = (uint32_t)(call >> 44);
    if (!shm_index_ok(segment, SHM_TABLE_CHUNKS, cell / SHM_CHUNK_CELLS))
        return 0;
    const struct shm_cell *at = shm_cell_at(segment, cell);
    return atomic_load(&at->served_by) >> 20 == (call & SHM_COUNT_MASK) ? atomic_load(&at->server) : 0;
}

bool shm_look_service(const struct shm_segment *segment, shm_call_id call, char *what)
{
    uint32_t cell = (uint32_t)(call >> 44);
    if (!shm_index_ok(segment, SHM_TABLE_CHUNKS, cell / SHM_CHUNK_CELLS))
        return false;
    uint64_t served = atomic_load(&shm_cell_at(segment, cell)->served_by);
    uint32_t place = (uint32_t)(served & 0xFFFFF);
    if (served >> 20 != (call & SHM_COUNT_MASK) || place == 0 ||
        !shm_index_ok(segment, SHM_TABLE_PLACES, place - 1))
        return false;
    struct shm_place *at = shm_place_at(segment, place - 1);
    uint64_t text[SHM_WHAT_BYTES / 8];
    bool serves = atomic_load(&at->serving) == call;
    for (int i = 0; i < SHM_WHAT_BYTES / 8; i++)
        text[i] = atomic_load(&at->serving_what[i]);
    memcpy(what, text, sizeof text);
    what[SHM_WHAT_BYTES] = 0;
    return serves && atomic_load(&at->serving) == call && what[0];
}

/* ---- images ------------------------------------------------------------------------------------------------ */

/* As much of the range as the file has; what it has not reads as zero. */
static int copy(struct shm_segment *image, int fd, uint64_t offset, uint64_t len_bytes)
{
    if (offset > image->bytes || len_bytes > image->bytes - offset)
        return SHM_CORRUPTED;
    while (len_bytes) {
        ssize_t got = pread(fd, image->base + offset, len_bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return SHM_SYSTEM;
        if (got == 0)
            break;
        offset += (uint64_t)got;
        len_bytes -= (uint64_t)got;
    }
    return 0;
}

static int copy_tables(struct shm_segment *image, int fd)
{
    int status = 0;
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS + image->classes && status == 0; t++)
        status = copy(image, fd, image->tables[t].offset,
                      (uint64_t)shm_pool_ready(image, t) * image->tables[t].item_bytes);
    for (uint32_t box = 0; box < shm_pool_ready(image, SHM_TABLE_BOXES) && status == 0; box++) {
        const struct shm_ring *ring = shm_look_ring(image, box);
        if (ring)
            status = copy(image, fd, (uint64_t)((const unsigned char *)ring - image->base),
                          sizeof(struct shm_ring));
    }
    return status;
}

int shm_look_open(struct shm_segment *image, int fd)
{
    struct stat st;
    struct shm_header header;
    *image = (struct shm_segment){.fd = -1};
    if (fstat(fd, &st) != 0)
        return SHM_SYSTEM;
    if ((uint64_t)st.st_size < SHM_PAGE_BYTES || pread(fd, &header, sizeof header, 0) != sizeof header ||
        header.magic == 0)
        return SHM_BUSY;
    if (header.magic != SHM_MAGIC)
        return SHM_CORRUPTED;
    if (header.version != SHM_VERSION || header.signature != shm_layout_signature())
        return SHM_LAYOUT;
    uint32_t state = atomic_load(&header.state);
    if (state != SHM_SEGMENT_READY && state != SHM_SEGMENT_CLOSED)
        return SHM_BUSY;
    void *base = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return SHM_NO_MEMORY;
    *image = (struct shm_segment){
        .base = base, .view = base, .header = base, .bytes = (uint64_t)st.st_size, .fd = -1};
    memcpy(base, &header, sizeof header);
    int status = shm_segment_check(image) ? copy_tables(image, fd) : SHM_CORRUPTED;
    if (status)
        shm_look_close(image);
    return status;
}

void shm_look_close(struct shm_segment *image)
{
    if (image->base)
        munmap(image->base, image->bytes);
    *image = (struct shm_segment){.fd = -1};
}
