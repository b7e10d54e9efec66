#include "transport/abort.h"

#include "base/killpoint.h"
#include "base/status.h"
#include "transport/park.h"

static bool is_marked(const struct shm_thread *self, _Atomic uint64_t *call)
{
    shm_call_id id = atomic_load_explicit(call, memory_order_relaxed);
    return id && shm_abort_reached(self, id);
}

int shm_abort_take(struct shm_thread *self)
{
    int taken = 0;
    shm_word flag = atomic_load(&self->at->abort);
    if (flag && flag == atomic_load(&self->at->owner)) {
        SHM_KILL_POINT(abort_take);
        if (atomic_compare_exchange_strong(&self->at->abort, &flag, 0))
            taken |= SHM_ABORT_THREAD;
    }
    if (is_marked(self, &self->serves)) {
        atomic_store_explicit(&self->serves, 0, memory_order_relaxed);
        taken |= SHM_ABORT_CALL;
    }
    if (is_marked(self, &self->took)) {
        atomic_store_explicit(&self->took, 0, memory_order_relaxed);
        taken |= SHM_ABORT_CALL;
    }
    uint64_t told = atomic_load(&self->at->told);
    if (self->hears_all && told != self->told_seen) {
        self->told_seen = told; /* before it looks which calls are closed */
        taken |= SHM_ABORT_CALL;
    }
    return taken;
}

void shm_serve_end(struct shm_thread *self)
{
    atomic_store_explicit(&self->serves, 0, memory_order_relaxed);
    atomic_store_explicit(&self->took, 0, memory_order_relaxed);
    if (atomic_load(&self->at->abort))
        shm_abort_take(self);
}

/* ---- aborting ---------------------------------------------------------------------------------------------- */

void shm_abort_means_me(struct shm_thread *self)
{
    atomic_store(&self->member->record->main, self->place + 1);
}

/* The place of that thread, and its owner's word, of the life `id`; false: there is none. */
static bool find(struct shm_thread *self, shm_member_id id, shm_thread_id thread, uint32_t *index,
                 shm_word *owner)
{
    uint64_t place = thread & 0xFFFFF;
    if (!thread)
        place = atomic_load(&shm_member_at(self->segment, id & 0xFFFF)->main);
    if (place == 0 || place > UINT32_MAX ||
        !shm_index_ok(self->segment, SHM_TABLE_PLACES, (uint32_t)place - 1))
        return false;
    *index = (uint32_t)place - 1;
    *owner = atomic_load(&shm_place_at(self->segment, *index)->owner);
    return shm_word_state(*owner) == 1 && shm_word_owner(*owner) == (id & 0xFFFF) &&
           (!thread || shm_word_count(*owner) == thread >> 20);
}

int shm_abort(struct shm_thread *self, shm_member_id id, shm_thread_id thread)
{
    uint32_t index;
    shm_word owner;
    for (;;) {
        if (!shm_member_lives(self->segment, id))
            return SHM_PEER_DEAD;
        bool found = find(self, id, thread, &index, &owner);
        if (!shm_member_lives(self->segment, id))
            return SHM_PEER_DEAD; /* what was found may be of a later life */
        if (!found)
            return SHM_NOT_FOUND;
        struct shm_place *place = shm_place_at(self->segment, index);
        shm_word seen = atomic_load(&place->abort);
        if (seen != owner && atomic_load(&place->owner) != owner)
            continue; /* a later thread's, perhaps, which stays */
        shm_flight_push(self, SHM_FLIGHT_ABORT, index, 0, 0);
        SHM_KILL_POINT(abort_flag);
        bool flagged = seen == owner || atomic_compare_exchange_strong(&place->abort, &seen, owner); /* A1 */
        if (flagged) {
            _Atomic uint32_t one = index + 1;
            SHM_KILL_POINT(abort_flagged);
            shm_wake_one(self, &one);
        }
        shm_flight_pop(self);
        if (flagged)
            return 0;
    }
}

void shm_abort_reap_flight(struct shm_thread *self, const struct shm_flight *flight)
{
    uint32_t index = atomic_load(&flight->object);
    if (atomic_load(&flight->op) != SHM_FLIGHT_ABORT || !shm_index_ok(self->segment, SHM_TABLE_PLACES, index))
        return;
    _Atomic uint32_t one = index + 1;
    if (atomic_load(&shm_place_at(self->segment, index)->abort))
        shm_wake_one(self, &one);
}

/* ---- telling ----------------------------------------------------------------------------------------------- */

void shm_abort_mark(struct shm_thread *self, shm_call_id call)
{
    uint32_t index = (uint32_t)(call >> 44);
    uint64_t generation = call & SHM_COUNT_MASK;
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    for (;;) {
        shm_word word = atomic_load(&cell->word);
        if (shm_word_count(word) != generation || shm_word_state(word) != SHM_CELL_PENDING)
            return;
        SHM_KILL_POINT(abort_mark);
        if (atomic_compare_exchange_strong(
                &cell->word, &word, shm_word_make(generation, shm_word_owner(word), SHM_CELL_PENDING_ABORT)))
            break;
    }
    SHM_KILL_POINT(abort_marked);
    shm_abort_tell(self, index, generation);
}

void shm_abort_tell(struct shm_thread *self, uint32_t cell, uint64_t generation)
{
    uint64_t served = atomic_load(&shm_cell_at(self->segment, cell)->served_by);
    _Atomic uint32_t one = (uint32_t)(served & 0xFFFFF);
    if (served >> 20 != generation || one == 0 || !shm_index_ok(self->segment, SHM_TABLE_PLACES, one - 1))
        return;
    SHM_KILL_POINT(abort_tell);
    atomic_fetch_add(&shm_place_at(self->segment, one - 1)->told, 1); /* A2 */
    SHM_KILL_POINT(abort_told);
    shm_wake_one(self, &one);
}
