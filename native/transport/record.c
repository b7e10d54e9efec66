#include "transport/record.h"

#include "base/status.h"

int shm_record_begin(struct shm_thread *self, struct shm_making *made, uint64_t len_bytes)
{
    int status = shm_block_take(self, len_bytes, &made->lease);
    if (status)
        return status;
    if (!shm_lease_find(self->segment, made->lease, len_bytes, &made->block)) {
        shm_lease_release(self, made->lease);
        return SHM_CORRUPTED;
    }
    made->bytes = self->segment->base + shm_block_offset(self->segment, made->block);
    return 0;
}

int shm_record_claim(struct shm_thread *self, struct shm_making *made, uint32_t kind, uint32_t what,
                     shm_member_id owner, uint32_t *box, uint64_t *box_count)
{
    int64_t index = shm_pool_claim(self->segment, SHM_TABLE_BOXES, owner & 0xFFFF, SHM_BOX_MAKING);
    if (index < 0) {
        shm_lease_release(self, made->lease);
        return (int)index;
    }
    made->index = (uint32_t)index;
    made->slot = owner & 0xFFFF;
    struct shm_box_record *record = shm_box_at(self->segment, made->index);
    made->count = shm_word_count(atomic_load(&record->word));
    record->owner = owner;
    record->kind = kind;
    atomic_store(&record->reader, 0);
    atomic_store(&record->lease, 0);
    *box = made->index;
    *box_count = made->count;
    atomic_store(&shm_block_at(self->segment, made->block)->box, (made->index + 1) | what);
    atomic_store(&record->place_of_ring, (uint64_t)made->block + 1);
    return 0;
}

void shm_record_open(struct shm_thread *self, const struct shm_making *made)
{
    struct shm_box_record *record = shm_box_at(self->segment, made->index);
    atomic_exchange(&record->word, shm_word_make(made->count, made->slot, SHM_BOX_OPEN));
}

bool shm_record_opened_to_mend(struct shm_thread *self, int status)
{
    self->mending_failed |= status == SHM_LIMIT || status == SHM_NO_MEMORY || status == SHM_BUSY;
    return status == 0;
}
