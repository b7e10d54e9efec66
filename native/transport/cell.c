#include "transport/cell.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/abort.h"
#include "transport/cycle.h"

enum { CHUNKS_MAX = 16384 / SHM_CHUNK_CELLS }; /* calls in flight of one process */

static inline struct shm_cell *cell_of(const struct shm_segment *segment, shm_call_id call)
{
    uint32_t cell = shm_call_cell(call);
    return cell / SHM_CHUNK_CELLS < shm_pool_ready(segment, SHM_TABLE_CHUNKS) ? shm_cell_at(segment, cell)
                                                                              : NULL;
}

/* The cell of a call that this member has opened: it is there, whatever the table says of its size by now. */
static inline struct shm_cell *own_cell(const struct shm_segment *segment, shm_call_id call)
{
    return shm_cell_at(segment, shm_call_cell(call));
}

/* ---- the caller's cells ------------------------------------------------------------------------------------ */

static int push_free(struct shm_member *member, uint32_t cell)
{
    if (member->free_cells_count == member->free_cells_room) {
        uint32_t room = member->free_cells_room ? member->free_cells_room * 2 : SHM_CHUNK_CELLS;
        uint32_t *cells = realloc(member->free_cells, room * sizeof *cells);
        if (!cells)
            return SHM_NO_MEMORY;
        member->free_cells = cells;
        member->free_cells_room = room;
    }
    member->free_cells[member->free_cells_count++] = cell;
    return 0;
}

static int add_chunk(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    if (member->chunks_count >= CHUNKS_MAX)
        return SHM_LIMIT;
    if (!member->chunks)
        member->chunks = calloc(CHUNKS_MAX, sizeof *member->chunks);
    if (!member->chunks)
        return SHM_NO_MEMORY;
    int64_t index = shm_pool_claim(self->segment, SHM_TABLE_CHUNKS, self->slot, 1);
    if (index < 0)
        return (int)index;
    struct shm_chunk *chunk = shm_chunk_at(self->segment, (uint32_t)index);
    atomic_store(&chunk->finished, 0);
    atomic_store(&chunk->answered, 0);
    uint32_t count = atomic_load(&member->chunks_count);
    member->chunks[count] = (uint32_t)index;
    atomic_store(&member->chunks_count, count + 1);
    for (int i = SHM_CHUNK_CELLS - 1; i >= 0; i--)
        push_free(member, (uint32_t)index * SHM_CHUNK_CELLS + (uint32_t)i);
    return 0;
}

/* A FREE cell of this member. A cell that its last caller left while it was filled becomes free later: it goes to
 * the bottom of the stack until then. */
static int pop_free(struct shm_thread *self, uint32_t *cell)
{
    struct shm_member *member = self->member;
    int status = 0;
    pthread_mutex_lock(&member->lock);
    for (uint32_t tried = 0;; tried++) {
        if (member->free_cells_count == 0 || tried >= member->free_cells_count) {
            status = add_chunk(self);
            if (status)
                break;
            tried = 0;
        }
        *cell = member->free_cells[--member->free_cells_count];
        if (shm_word_state(atomic_load(&shm_cell_at(self->segment, *cell)->word)) == SHM_CELL_FREE)
            break;
        memmove(member->free_cells + 1, member->free_cells,
                member->free_cells_count * sizeof *member->free_cells);
        member->free_cells[0] = *cell;
        member->free_cells_count++;
    }
    pthread_mutex_unlock(&member->lock);
    return status;
}

static void give_back(struct shm_thread *self, uint32_t cell)
{
    pthread_mutex_lock(&self->member->lock);
    push_free(self->member, cell); /* has room: it was popped */
    pthread_mutex_unlock(&self->member->lock);
}

int shm_call_open(struct shm_thread *self, shm_member_id addressee, uint32_t flags, shm_call_id *call)
{
    uint32_t index;
    int status = pop_free(self, &index);
    if (status)
        return status;
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    uint64_t generation = shm_word_count(atomic_load(&cell->word)) + 1;
    cell->flags = flags;
    atomic_store(&cell->waiter, 0);
    atomic_store(&cell->lease, 0);
    atomic_store(&cell->tag, 0);
    atomic_store(&cell->port, 0);
    cell->replier = addressee;
    if (flags & SHM_CELL_LETTER)
        atomic_fetch_add(&self->member->letters, 1);
    SHM_KILL_POINT(cell_register);
    atomic_exchange(&cell->word, shm_word_make(generation, addressee & 0xFFFF, SHM_CELL_PENDING));
    *call = (uint64_t)index << 44 | (generation & SHM_COUNT_MASK);
    return 0;
}

void shm_call_label(struct shm_thread *self, shm_call_id call, uint64_t tag)
{
    atomic_store(&own_cell(self->segment, call)->tag, tag);
}

void shm_call_limit(struct shm_thread *self, shm_call_id call, uint64_t deadline_ns)
{
    struct shm_cell *cell = own_cell(self->segment, call);
    atomic_store(&cell->tag, deadline_ns);
    atomic_fetch_or(&cell->flags, SHM_CELL_LIMITED);
}

void shm_call_through(struct shm_thread *self, shm_call_id call, uint32_t index)
{
    atomic_store(&own_cell(self->segment, call)->port, (uint16_t)(index + 1));
}

bool shm_letter_withdraw(struct shm_thread *self, shm_call_id call)
{
    struct shm_cell *cell = own_cell(self->segment, call);
    if (!(atomic_fetch_and(&cell->flags, ~(uint32_t)SHM_CELL_LETTER) & SHM_CELL_LETTER))
        return false;
    atomic_fetch_sub(&self->member->letters, 1);
    return true;
}

/* The answer waits for the receivers of the caller's own mailbox. */
static void tell_mailbox(struct shm_thread *self, struct shm_chunk *chunk, uint32_t index)
{
    struct shm_segment *segment = self->segment;
    SHM_KILL_POINT(cell_bit);
    atomic_fetch_or(&chunk->answered, UINT64_C(1) << index % SHM_CHUNK_CELLS);
    SHM_KILL_POINT(cell_letter);
    uint32_t owner = shm_word_owner(atomic_load(&chunk->word));
    if (!shm_index_ok(segment, SHM_TABLE_MEMBERS, owner))
        return;
    uint32_t box = atomic_load(&shm_member_at(segment, owner)->box);
    if (box && shm_index_ok(segment, SHM_TABLE_BOXES, box - 1))
        shm_box_tell(self, box - 1, shm_word_count(atomic_load(&shm_box_at(segment, box - 1)->word)));
}

/* The cell is done: tell whoever waits for it. */
static void tell_caller(struct shm_thread *self, uint32_t index)
{
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    struct shm_chunk *chunk = shm_chunk_at(self->segment, index / SHM_CHUNK_CELLS);
    if (atomic_load(&cell->flags) & SHM_CELL_LETTER) {
        tell_mailbox(self, chunk, index);
    } else if (cell->flags & SHM_CELL_ASYNC) {
        SHM_KILL_POINT(cell_bit);
        atomic_fetch_or(&chunk->finished, UINT64_C(1) << index % SHM_CHUNK_CELLS);
        SHM_KILL_POINT(cell_wake);
        uint32_t owner = shm_word_owner(atomic_load(&chunk->word));
        if (shm_index_ok(self->segment, SHM_TABLE_MEMBERS, owner))
            shm_wake_one(self, &shm_member_at(self->segment, owner)->completions);
    } else {
        SHM_KILL_POINT(cell_wake);
        shm_wake_one(self, &cell->waiter);
    }
}

void shm_call_check(struct shm_thread *self, shm_call_id call, shm_member_id addressee)
{
    if (addressee == 0 || shm_member_lives(self->segment, addressee))
        return;
    struct shm_cell *cell = own_cell(self->segment, call);
    shm_word pending = shm_word_make(shm_call_generation(call), addressee & 0xFFFF, SHM_CELL_PENDING);
    if (atomic_compare_exchange_strong(&cell->word, &pending,
                                       shm_word_make(shm_call_generation(call), self->slot, SHM_CELL_FAILED)))
        tell_caller(self, shm_call_cell(call));
}

bool shm_call_is_done(const struct shm_segment *segment, shm_call_id call)
{
    shm_word word = atomic_load(&own_cell(segment, call)->word);
    return shm_word_count(word) == shm_call_generation(call) && shm_cell_is_done(word);
}

int shm_call_read(struct shm_thread *self, shm_call_id call, struct shm_reply *reply)
{
    struct shm_cell *cell = own_cell(self->segment, call);
    shm_word word = atomic_load(&cell->word);
    if (shm_word_count(word) != shm_call_generation(call) || !shm_cell_is_done(word))
        return SHM_EMPTY;
    /* Who dropped it had taken it to do so, and served nobody. */
    bool dropped = shm_word_state(word) == SHM_CELL_DROPPED;
    *reply =
        (struct shm_reply){.status = dropped ? SHM_CLOSED : SHM_PEER_DEAD,
                           .served = !dropped && atomic_load(&cell->served_by) >> 20 == shm_word_count(word),
                           .replier = dropped ? 0 : atomic_load(&cell->server),
                           .port = atomic_load(&cell->port)};
    if (shm_word_state(word) != SHM_CELL_DONE)
        return 0;
    uint32_t lease = atomic_load(&cell->lease);
    *reply = (struct shm_reply){
        .len_bytes = SHM_ONCE(cell->len_bytes), .format = cell->format, .replier = cell->replier};
    if (lease == 0) {
        reply->body = cell->body;
        return reply->len_bytes <= SHM_CELL_INLINE ? 0 : SHM_CORRUPTED;
    }
    uint32_t block;
    if (!shm_index_ok(self->segment, SHM_TABLE_LEASES, lease - 1) ||
        !shm_lease_find(self->segment, lease - 1, reply->len_bytes, &block) ||
        !shm_lease_land(self, lease - 1))
        return SHM_CORRUPTED;
    atomic_store(&cell->lease, 0);
    reply->lease = lease;
    reply->body = self->segment->view + shm_block_offset(self->segment, block);
    return 0;
}

void shm_call_free(struct shm_thread *self, shm_call_id call)
{
    struct shm_cell *cell = own_cell(self->segment, call);
    SHM_KILL_POINT(cell_take);
    atomic_store(&cell->word, shm_word_make(shm_call_generation(call), SHM_NOBODY, SHM_CELL_FREE));
    give_back(self, shm_call_cell(call));
}

bool shm_call_cancel(struct shm_thread *self, shm_call_id call)
{
    struct shm_cell *cell = own_cell(self->segment, call);
    for (;;) {
        shm_word word = atomic_load(&cell->word);
        if (shm_word_count(word) != shm_call_generation(call) ||
            !(shm_cell_is_open(word) || shm_word_state(word) == SHM_CELL_FILLING))
            return false;
        shm_word left = shm_word_state(word) == SHM_CELL_FILLING
                            ? shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_CELL_ABANDONED)
                            : shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_CELL_FREE);
        SHM_KILL_POINT(cell_close);
        if (atomic_compare_exchange_strong(&cell->word, &word, left))
            break;
    }
    SHM_KILL_POINT(cell_closed);
    shm_abort_tell(self, shm_call_cell(call), shm_call_generation(call));
    give_back(self, shm_call_cell(call));
    return true;
}

/* ---- generated tags ---------------------------------------------------------------------------------------- */

/* Has an outstanding call of any member this tag? */
static bool is_in_flight(const struct shm_segment *segment, uint64_t tag)
{
    for (uint32_t c = 0; c < shm_pool_ready(segment, SHM_TABLE_CHUNKS); c++)
        for (uint32_t i = 0; i < SHM_CHUNK_CELLS; i++) {
            const struct shm_cell *cell = &shm_chunk_at(segment, c)->cells[i];
            if (atomic_load(&cell->tag) == tag && shm_word_state(atomic_load(&cell->word)) != SHM_CELL_FREE)
                return true;
        }
    return false;
}

uint64_t shm_tag_make(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    uint64_t tag;
    pthread_mutex_lock(&member->lock);
    for (;;) {
        if (member->tag_next == member->tag_end) {
            member->tag_next = atomic_fetch_add(&self->segment->header->next_tag, SHM_TAG_BLOCK);
            member->tag_end = member->tag_next + SHM_TAG_BLOCK;
        }
        uint64_t number = member->tag_next++;
        tag = SHM_TAG_GENERATED | (number & (SHM_TAG_GENERATED - 1));
        if (tag == SHM_TAG_GENERATED)
            continue;
        if (number < SHM_TAG_GENERATED || !is_in_flight(self->segment, tag))
            break; /* numbers come again only when all were given */
    }
    pthread_mutex_unlock(&member->lock);
    return tag;
}

/* ---- waiting for replies ----------------------------------------------------------------------------------- */

struct calling {
    shm_call_id call;
    bool is_marked;
};

/* Is the caller aborted, and waits on all the same, and its server does not know it? */
static inline bool must_mark(const struct shm_thread *self, const struct calling *calling)
{
    return !calling->is_marked && shm_is_shielded(self) && shm_abort_is_pending(self);
}

static int attempt_call(struct shm_thread *self, void *context)
{
    struct calling *calling = context;
    if (shm_call_is_done(self->segment, calling->call))
        return 0;
    if (must_mark(self, calling)) {
        calling->is_marked = true;
        shm_abort_mark(self, calling->call);
    }
    return SHM_EMPTY;
}

static bool call_ready(struct shm_thread *self, void *context)
{
    struct calling *calling = context;
    return shm_call_is_done(self->segment, calling->call) || must_mark(self, calling);
}

/* Only the caller frees its cell, and reaping tells it of an addressee that is gone; of nobody, while it waits for
 * whoever takes it. */
bool shm_call_is_sound(const struct shm_segment *segment, shm_call_id call)
{
    const struct shm_cell *cell = own_cell(segment, call);
    shm_word word = atomic_load(&cell->word);
    if (shm_word_count(word) != shm_call_generation(call))
        return false;
    if (shm_cell_is_done(word))
        return true;
    if (!shm_cell_is_open(word) && shm_word_state(word) != SHM_CELL_FILLING)
        return false;
    uint32_t owner = shm_word_owner(word);
    return (owner == SHM_NOBODY && shm_cell_is_open(word)) || !shm_slot_is_empty(segment, owner) ||
           atomic_load(&cell->word) != word;
}

static int look_at_call(struct shm_thread *self, void *context)
{
    enum { ROOM = 256 };
    _Static_assert(ROOM * sizeof(shm_member_id) <= 4096, "fits the scratch");
    shm_call_id call = ((struct calling *)context)->call;
    if (!shm_call_is_sound(self->segment, call))
        return SHM_CORRUPTED;
    if (atomic_load(&self->at->waits_until) != SHM_FOREVER)
        return 0;
    self->cycle_count = shm_cycle_find(self, call, self->scratch, ROOM);
    return self->cycle_count ? SHM_DEADLOCK : 0;
}

int shm_call_wait(struct shm_thread *self, shm_call_id call, shm_member_id addressee, uint64_t deadline_ns)
{
    struct calling calling = {.call = call};
    struct shm_waitable waitable = {
        .kind = SHM_WAIT_CELL, .object = shm_call_cell(call), .one = &own_cell(self->segment, call)->waiter};
    struct shm_wait wait = {.waitables = &waitable,
                            .count = 1,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_call,
                            .ready = call_ready,
                            .slice = look_at_call,
                            .context = &calling,
                            .peer = addressee & 0xFFFF};
    return shm_wait(self, &wait);
}

static bool any_finished(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    for (uint32_t i = 0; i < member->chunks_count; i++)
        if (atomic_load(&shm_chunk_at(self->segment, member->chunks[i])->finished))
            return true;
    return false;
}

struct poked {
    uint64_t seen;
};

static int attempt_finished(struct shm_thread *self, void *context)
{
    struct poked *poked = context;
    return any_finished(self) || atomic_load(&self->member->pokes) != poked->seen ? 0 : SHM_EMPTY;
}

static bool finished_ready(struct shm_thread *self, void *context)
{
    return attempt_finished(self, context) == 0;
}

void shm_call_look(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    for (uint32_t i = 0; i < member->chunks_count; i++) {
        struct shm_chunk *chunk = shm_chunk_at(self->segment, member->chunks[i]);
        uint64_t bits = 0;
        for (uint32_t at = 0; at < SHM_CHUNK_CELLS; at++)
            if (shm_cell_is_done(atomic_load(&chunk->cells[at].word)) &&
                chunk->cells[at].flags & SHM_CELL_ASYNC)
                bits |= UINT64_C(1) << at;
        if (bits & ~atomic_load(&chunk->finished))
            atomic_fetch_or(&chunk->finished, bits);
    }
}

uint32_t shm_call_finished(struct shm_thread *self, shm_call_id *calls, uint32_t room)
{
    struct shm_member *member = self->member;
    uint32_t found = 0;
    for (uint32_t i = 0; i < member->chunks_count && found < room; i++) {
        struct shm_chunk *chunk = shm_chunk_at(self->segment, member->chunks[i]);
        if (!atomic_load_explicit(&chunk->finished, memory_order_relaxed))
            continue;
        uint64_t bits = atomic_exchange(&chunk->finished, 0);
        while (bits && found < room) {
            uint32_t at = (uint32_t)__builtin_ctzll(bits);
            bits &= bits - 1;
            shm_word word = atomic_load(&chunk->cells[at].word);
            if (shm_cell_is_done(word) && chunk->cells[at].flags & SHM_CELL_ASYNC)
                calls[found++] =
                    (uint64_t)(member->chunks[i] * SHM_CHUNK_CELLS + at) << 44 | shm_word_count(word);
        }
        if (bits)
            atomic_fetch_or(&chunk->finished, bits);
    }
    return found;
}

int shm_call_wait_finished(struct shm_thread *self, uint64_t pokes_seen, uint64_t deadline_ns)
{
    struct poked poked = {.seen = pokes_seen};
    struct shm_waitable waitable = {
        .kind = SHM_WAIT_FINISHED, .object = self->slot, .one = &self->member->record->completions};
    struct shm_wait wait = {.waitables = &waitable,
                            .count = 1,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_finished,
                            .ready = finished_ready,
                            .context = &poked};
    return shm_wait(self, &wait);
}

void shm_call_poke(struct shm_thread *self)
{
    atomic_fetch_add(&self->member->pokes, 1);
    shm_wake_one(self, &self->member->record->completions);
}

/* ---- the server's side ------------------------------------------------------------------------------------- */

int shm_call_serve(struct shm_thread *self, shm_call_id call)
{
    SHM_KILL_POINT(cell_serve);
    return call && shm_call_take(self, call) ? 0 : SHM_REFUSED;
}

void shm_call_fail(struct shm_thread *self, shm_call_id call)
{
    struct shm_cell *cell = cell_of(self->segment, call);
    uint64_t generation = shm_call_generation(call);
    shm_abort_answered(self, call);
    while (cell) {
        shm_word word = atomic_load(&cell->word);
        if (shm_word_count(word) != generation || shm_word_owner(word) != self->slot ||
            !shm_cell_is_open(word))
            return;
        if (atomic_compare_exchange_strong(&cell->word, &word,
                                           shm_word_make(generation, self->slot, SHM_CELL_DROPPED))) {
            tell_caller(self, shm_call_cell(call));
            return;
        }
    }
}

void shm_call_fail_port(struct shm_thread *self, uint32_t index, bool served)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_CHUNKS) * SHM_CHUNK_CELLS; i++) {
        struct shm_cell *cell = shm_cell_at(self->segment, i);
        shm_word word = atomic_load(&cell->word);
        /* Also one that has just been opened and labelled: its request will find the port closed. */
        while (shm_cell_is_open(word) && atomic_load(&cell->port) == index + 1 &&
               (served || shm_word_owner(word) == SHM_NOBODY))
            if (atomic_compare_exchange_strong(
                    &cell->word, &word, shm_word_make(shm_word_count(word), self->slot, SHM_CELL_FAILED))) {
                tell_caller(self, i);
                break;
            }
    }
}

bool shm_call_is_open(const struct shm_segment *segment, shm_call_id call, uint32_t slot)
{
    struct shm_cell *cell = cell_of(segment, call);
    shm_word word = cell ? atomic_load(&cell->word) : 0;
    return cell && shm_word_count(word) == shm_call_generation(call) && shm_word_owner(word) == slot &&
           shm_cell_is_open(word) && !shm_cell_is_over(cell);
}

int shm_call_reply(struct shm_thread *self, shm_call_id call, const void *body, uint32_t len_bytes,
                   uint16_t format, uint32_t lease)
{
    struct shm_cell *cell = cell_of(self->segment, call);
    uint64_t generation = shm_call_generation(call);
    shm_abort_answered(self, call);
    if (!cell)
        return SHM_REFUSED;
    if (lease == 0 && len_bytes > SHM_CELL_INLINE)
        return SHM_TOO_LARGE;
    struct shm_flight *flight =
        shm_flight_push(self, SHM_FLIGHT_FILL, shm_call_cell(call), generation, lease);
    if (lease)
        atomic_store_explicit(&flight->lease_word, shm_lease_word_in_flight(self, lease - 1),
                              memory_order_release);
    for (;;) {
        shm_word word = atomic_load(&cell->word);
        if (shm_word_count(word) != generation || !shm_cell_is_open(word) ||
            shm_word_owner(word) != self->slot || shm_cell_is_over(cell)) {
            shm_flight_pop(self);
            return SHM_REFUSED;
        }
        SHM_KILL_POINT(cell_fill);
        if (atomic_compare_exchange_strong(&cell->word, &word,
                                           shm_word_make(generation, self->slot, SHM_CELL_FILLING)))
            break;
    }
    SHM_KILL_POINT(cell_copy);
    cell->len_bytes = len_bytes;
    cell->format = format;
    cell->replier = shm_member_id_self(self->member);
    if (lease) {
        shm_lease_fly(self, lease - 1);
        atomic_store(&cell->birth, shm_lease_birth(self->segment, lease - 1));
        atomic_store(&cell->lease, lease);
    } else {
        memcpy(cell->body, body, len_bytes);
    }
    SHM_KILL_POINT(cell_done);
    shm_word filling = shm_word_make(generation, self->slot, SHM_CELL_FILLING);
    int status = 0;
    if (atomic_compare_exchange_strong(&cell->word, &filling,
                                       shm_word_make(generation, self->slot, SHM_CELL_DONE))) {
        tell_caller(self, shm_call_cell(call));
    } else { /* the caller left meanwhile; what it abandoned is ours to free */
        if (lease) {
            atomic_store(&cell->lease, 0);
            shm_lease_return(self, lease - 1);
        }
        shm_word abandoned = shm_word_make(generation, self->slot, SHM_CELL_ABANDONED);
        atomic_compare_exchange_strong(&cell->word, &abandoned,
                                       shm_word_make(generation, SHM_NOBODY, SHM_CELL_FREE));
        status = SHM_REFUSED;
    }
    shm_flight_pop(self);
    return status;
}

/* ---- reap -------------------------------------------------------------------------------------------------- */

/* The victim died while it answered: the block of its reply goes, before the cell is mended. */
void shm_call_reap_flight(struct shm_thread *self, uint32_t victim, shm_word word,
                          const struct shm_flight *flight)
{
    uint32_t index = atomic_load(&flight->object), lease = atomic_load(&flight->lease);
    if (atomic_load(&flight->op) != SHM_FLIGHT_FILL || lease == 0 ||
        index / SHM_CHUNK_CELLS >= shm_pool_ready(self->segment, SHM_TABLE_CHUNKS))
        return;
    shm_word cell = atomic_load(&shm_cell_at(self->segment, index)->word);
    uint32_t state = shm_word_state(cell);
    if (shm_word_count(cell) == atomic_load(&flight->position) && shm_word_owner(cell) == victim &&
        (state == SHM_CELL_FILLING || state == SHM_CELL_ABANDONED) &&
        shm_still_dying(self->segment, victim, word))
        shm_lease_drop_exact(self, lease - 1, atomic_load(&flight->lease_word));
}

/* A cell whose caller died: closed as by a timeout. */
static void mend_own(struct shm_thread *self, uint32_t index, uint32_t victim, shm_word word)
{
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    for (;;) {
        shm_word seen = atomic_load(&cell->word);
        uint32_t state = shm_word_state(seen);
        if (!shm_still_dying(self->segment, victim, word))
            return;
        if (state == SHM_CELL_FREE || state == SHM_CELL_ABANDONED) {
            shm_abort_tell(self, index,
                           shm_word_count(seen)); /* it may have died between closing and telling */
            return;
        }
        if (shm_cell_is_done(seen))
            shm_lease_drop(self, &cell->lease, atomic_load(&cell->birth));
        shm_word left = state == SHM_CELL_FILLING
                            ? shm_word_make(shm_word_count(seen), shm_word_owner(seen), SHM_CELL_ABANDONED)
                            : shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_CELL_FREE);
        if (atomic_compare_exchange_strong(&cell->word, &seen, left)) {
            if (!shm_cell_is_done(seen))
                shm_abort_tell(self, index, shm_word_count(seen));
            return;
        }
    }
}

/* A cell whose addressee, replier or filler died. */
static void mend_other(struct shm_thread *self, uint32_t index, uint32_t victim, shm_word word)
{
    struct shm_cell *cell = shm_cell_at(self->segment, index);
    for (;;) {
        shm_word seen = atomic_load(&cell->word);
        uint32_t state = shm_word_state(seen);
        if (shm_word_owner(seen) != victim || state == SHM_CELL_FREE ||
            !shm_still_dying(self->segment, victim, word))
            return;
        if (shm_cell_is_done(seen)) { /* it, or a reaper, may have died before it told */
            tell_caller(self, index);
            return;
        }
        shm_word left = state == SHM_CELL_ABANDONED
                            ? shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_CELL_FREE)
                            : shm_word_make(shm_word_count(seen), self->slot, SHM_CELL_FAILED);
        if (atomic_compare_exchange_strong(&cell->word, &seen, left)) {
            if (state != SHM_CELL_ABANDONED)
                tell_caller(self, index);
            return;
        }
    }
}

void shm_call_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t c = 0; c < shm_pool_ready(segment, SHM_TABLE_CHUNKS); c++) {
        struct shm_chunk *chunk = shm_chunk_at(segment, c);
        shm_word owner = atomic_load(&chunk->word);
        bool own = shm_word_state(owner) == 1 && shm_word_owner(owner) == victim;
        for (uint32_t i = 0; i < SHM_CHUNK_CELLS; i++) {
            if (own)
                mend_own(self, c * SHM_CHUNK_CELLS + i, victim, word);
            mend_other(self, c * SHM_CHUNK_CELLS + i, victim, word);
        }
        if (own && shm_still_dying(segment, victim, word))
            atomic_compare_exchange_strong(&chunk->word, &owner, shm_word_next(owner, SHM_NOBODY, 0));
    }
}
