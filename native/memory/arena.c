#define _GNU_SOURCE
#include "memory/arena.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "memory/cgroup.h"

#define HOLDERS_MASK ((UINT64_C(1) << 22) - 1)
#define WARM_BYTES_MAX (UINT64_C(256) << 20)
#define IDLE_NS (5 * SHM_NS_PER_S)
#define IDLE_BYTES (UINT64_C(256) << 20) /* given back in one look: it takes about 50 ms */
#define CGROUP_BYTES (UINT64_C(1) << 20) /* growth for which the limit of the cgroup is looked at */

/* From this class on (64 KiB) a block stays warm only with who writes to such blocks: a receiver that kept what it
 * had read would leave the sender without warm ones. */
enum { LARGE_CLASS = 4 };
/* How far above a full class a warm block is looked for. */
enum { NEAR_CLASSES = 2 };

static inline uint32_t holders_of(shm_word word)
{
    return (uint32_t)(shm_word_count(word) & HOLDERS_MASK);
}

/* The word after `word`: one more change, so many holders. */
static inline shm_word block_word(shm_word word, uint32_t holders, uint32_t owner, uint32_t state)
{
    uint64_t change = (shm_word_count(word) >> 22) + 1;
    return shm_word_make(change << 22 | holders, owner, state);
}

static inline uint32_t block_of(uint64_t field)
{
    return (uint32_t)field - 1;
}

uint32_t shm_lease_block(const struct shm_segment *segment, shm_lease_index lease)
{
    return block_of(atomic_load_explicit(&shm_lease_at(segment, lease)->block, memory_order_relaxed));
}

uint32_t shm_lease_birth(const struct shm_segment *segment, shm_lease_index lease)
{
    return (uint32_t)(atomic_load_explicit(&shm_lease_at(segment, lease)->block, memory_order_relaxed) >> 32);
}

uint32_t shm_block_holders(const struct shm_segment *segment, uint32_t block)
{
    return holders_of(atomic_load(&shm_block_at(segment, block)->word));
}

static uint32_t class_for(uint64_t len_bytes)
{
    uint32_t c = 0;
    while (c <= SHM_MAX_CLASS - SHM_MIN_CLASS && (UINT64_C(1) << (SHM_MIN_CLASS + c)) < len_bytes)
        c++;
    return c;
}

/* ---- lease records ----------------------------------------------------------------------------------------- */

/* A record of this member without a block yet; a reaper finds it by its owner. */
static int claim_record(struct shm_thread *self, shm_lease_index *lease)
{
    int64_t index = shm_pool_claim(self->segment, SHM_TABLE_LEASES, self->slot, SHM_LEASE_HELD);
    if (index < 0)
        return (int)index;
    struct shm_lease *record = shm_lease_at(self->segment, (uint32_t)index);
    uint64_t birth = shm_word_count(atomic_load_explicit(&record->word, memory_order_relaxed)) << 32;
    atomic_store_explicit(&record->receives, 0, memory_order_relaxed);
    atomic_store_explicit(&record->block, birth, memory_order_release);
    *lease = (shm_lease_index)index;
    return 0;
}

/* The record, which has no block any more, is free. */
static void free_record(struct shm_thread *self, shm_lease_index lease)
{
    struct shm_lease *record = shm_lease_at(self->segment, lease);
    shm_word word = atomic_load_explicit(&record->word, memory_order_relaxed);
    atomic_store(&record->word, shm_word_next(word, SHM_NOBODY, SHM_LEASE_FREE));
    shm_pool_hint(self->segment, SHM_TABLE_LEASES, lease);
}

/* Point the record at a block, or at none: the half that tells the record's lives apart stays. */
static void set_block(struct shm_lease *record, uint32_t block_plus_one)
{
    uint64_t old = atomic_load_explicit(&record->block, memory_order_relaxed);
    atomic_store(&record->block, (old & ~UINT64_C(0xFFFFFFFF)) | block_plus_one);
}

static void change_owner(struct shm_thread *self, shm_lease_index lease, uint32_t owner)
{
    struct shm_lease *record = shm_lease_at(self->segment, lease);
    shm_word word = atomic_load_explicit(&record->word, memory_order_relaxed);
    atomic_store_explicit(&record->word, shm_word_next(word, owner, SHM_LEASE_HELD), memory_order_release);
}

shm_word shm_lease_word_in_flight(const struct shm_thread *self, shm_lease_index lease)
{
    shm_word word = atomic_load_explicit(&shm_lease_at(self->segment, lease)->word, memory_order_relaxed);
    return shm_word_next(word, SHM_IN_FLIGHT, SHM_LEASE_HELD);
}

void shm_lease_fly(struct shm_thread *self, shm_lease_index lease)
{
    change_owner(self, lease, SHM_IN_FLIGHT);
}

void shm_lease_return(struct shm_thread *self, shm_lease_index lease)
{
    change_owner(self, lease, self->slot);
}

void shm_lease_give(struct shm_thread *self, shm_lease_index lease, uint32_t slot)
{
    change_owner(self, lease, slot);
}

shm_word shm_lease_land(struct shm_thread *self, shm_lease_index lease)
{
    struct shm_lease *record = shm_lease_at(self->segment, lease);
    shm_word word = atomic_load(&record->word);
    if (shm_word_owner(word) != SHM_IN_FLIGHT || shm_word_state(word) != SHM_LEASE_HELD)
        return 0;
    shm_word mine = shm_word_next(word, self->slot, SHM_LEASE_HELD);
    return atomic_compare_exchange_strong(&record->word, &word, mine) ? mine : 0;
}

/* ---- locked steps ------------------------------------------------------------------------------------------ */

/* The block has been locked for long: if its locker died, do his reaper's work on it. */
static void mend_dead_lock(struct shm_thread *self, shm_word locked)
{
    uint32_t victim = shm_word_owner(locked);
    if (victim == 0 || !shm_index_ok(self->segment, SHM_TABLE_MEMBERS, victim))
        return;
    struct shm_member_record *record = shm_member_at(self->segment, victim);
    shm_word word = atomic_load(&record->word); /* before the proof: a later life of the slot has another */
    if (!shm_member_is_dead(self->member, victim))
        return;
    shm_word dying = shm_member_dying(word, victim);
    if (word != dying && !atomic_compare_exchange_strong(&record->word, &word, dying))
        return;
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        if (shm_word_owner(atomic_load(&place->owner)) != victim)
            continue;
        for (int f = SHM_PLACE_FLIGHTS - 1; f >= 0; f--)
            shm_arena_reap_flight(self, victim, dying, &place->flights[f]);
    }
}

/* LIVE -> LOCKED(me): 0; NOT_FOUND, the block is free; BUSY, another member has had it locked for long: he was
 * stopped there, and is not repaired. CORRUPTED: it is in no state, or locked by nobody. */
static int lock(struct shm_thread *self, struct shm_block *block, shm_word *locked)
{
    for (unsigned spins = 0;; spins++) {
        shm_word word = atomic_load(&block->word);
        switch (shm_word_state(word)) {
        case SHM_BLOCK_FREE:
            return SHM_NOT_FOUND;
        case SHM_BLOCK_LIVE:
            *locked = block_word(word, holders_of(word), self->slot, SHM_BLOCK_LOCKED);
            SHM_KILL_POINT(block_lock);
            if (atomic_compare_exchange_weak(&block->word, &word, *locked))
                return 0;
            break;
        case SHM_BLOCK_LOCKED: /* one small step of another, unless he was stopped there, or died */
            if (spins < 100) {
                shm_clock_relax();
            } else if (shm_slot_is_empty(self->segment, shm_word_owner(word)) &&
                       atomic_load(&block->word) == word) {
                return SHM_CORRUPTED;
            } else if (spins < 200) {
                shm_clock_sleep(10000);
            } else if (spins < 220) {
                shm_clock_sleep(1000000);
                mend_dead_lock(self, word);
            } else {
                return SHM_BUSY;
            }
            break;
        default:
            return SHM_CORRUPTED;
        }
    }
}

static void unlock(struct shm_block *block, shm_word locked, uint32_t holders)
{
    SHM_KILL_POINT(block_unlock);
    atomic_store(&block->word,
                 block_word(locked, holders, SHM_NOBODY, holders ? SHM_BLOCK_LIVE : SHM_BLOCK_FREE));
}

/* The bytes that have pages: never more than the block has. */
static inline uint64_t pages_of(const struct shm_block *block, uint32_t index)
{
    uint64_t bytes = atomic_load(&block->reserved_bytes), most = shm_block_class_bytes(index);
    return bytes < most ? bytes : most;
}

/* Everything a block owns goes before the block does. Idempotent: a reaper may do it again. */
static void drop_contents(struct shm_thread *self, uint32_t index)
{
    struct shm_block *block = shm_block_at(self->segment, index);
    uint32_t handles = atomic_load(&block->handles);
    /* Each is a lease, and lies in the pages of the block. */
    if (handles && handles <= self->segment->tables[SHM_TABLE_LEASES].max_items &&
        (uint64_t)handles * sizeof(struct shm_handle) <= pages_of(block, index)) {
        struct shm_handle *handle = (void *)(self->segment->base + shm_block_offset(self->segment, index));
        for (uint32_t i = 0; i < handles; i++)
            shm_lease_drop(self, &handle[i].lease, handle[i].birth);
        atomic_store(&block->handles, 0);
    }
    uint32_t box = atomic_load(&block->box);
    if (box && self->member->drop_box) {
        self->member->drop_box(self, box - 1, index);
        atomic_store(&block->box, 0);
    }
}

int shm_block_hold(struct shm_thread *self, uint32_t index, shm_lease_index *lease)
{
    if (!shm_block_ok(self->segment, index))
        return SHM_CORRUPTED;
    int status = claim_record(self, lease);
    if (status)
        return status;
    struct shm_block *block = shm_block_at(self->segment, index);
    shm_flight_push(self, SHM_FLIGHT_BLOCK, index, 0, 0);
    shm_word locked;
    status = lock(self, block, &locked);
    if (status) {
        /* nothing was changed */
    } else if (holders_of(locked) == HOLDERS_MASK) {
        unlock(block, locked, holders_of(locked));
        status = SHM_LIMIT;
    } else {
        SHM_KILL_POINT(block_record);
        set_block(shm_lease_at(self->segment, *lease), index + 1);
        unlock(block, locked, holders_of(locked) + 1);
    }
    shm_flight_pop(self);
    if (status)
        free_record(self, *lease);
    return status;
}

void shm_lease_later(struct shm_member *member, shm_lease_index lease)
{
    pthread_mutex_lock(&member->lock);
    if (member->stuck_count == member->stuck_room) {
        uint32_t room = member->stuck_room ? member->stuck_room * 2 : 16;
        uint32_t *stuck = realloc(member->stuck, room * sizeof *stuck);
        if (stuck) {
            member->stuck = stuck;
            member->stuck_room = room;
        }
    }
    if (member->stuck_count < member->stuck_room)
        member->stuck[member->stuck_count++] = lease;
    pthread_mutex_unlock(&member->lock);
}

static void release_one(struct shm_thread *self, shm_lease_index lease)
{
    struct shm_lease *record = shm_lease_at(self->segment, lease);
    uint64_t field = atomic_load(&record->block);
    uint32_t index = block_of(field);
    if ((uint32_t)field != 0 && shm_block_ok(self->segment, index)) {
        struct shm_block *block = shm_block_at(self->segment, index);
        shm_flight_push(self, SHM_FLIGHT_BLOCK, index, 0, 0);
        shm_word locked;
        int status = lock(self, block, &locked);
        if (status == SHM_BUSY) {
            shm_flight_pop(self);
            shm_lease_later(self->member, lease);
            return;
        }
        if (status == 0 && atomic_load(&record->block) != field) {
            unlock(block, locked,
                   holders_of(locked)); /* a reaper was faster, and the block is another's by now */
        } else if (status == 0) {
            uint32_t holders = holders_of(locked);
            if (holders == 1)
                drop_contents(self, index);
            SHM_KILL_POINT(block_record);
            set_block(record, 0);
            unlock(block, locked, holders ? holders - 1 : 0);
            if (holders <= 1)
                shm_pool_hint(self->segment, SHM_TABLE_BLOCKS + (index >> 24), index & 0xFFFFFF);
        }
        shm_flight_pop(self);
    }
    free_record(self, lease);
}

/* What a block held is released after it, not within: flight words, and the stack, nest no deeper however deep the
 * handles do. Those that wait are leases of this member, so its reap finds them. */
static void release_deferred(struct shm_thread *self)
{
    self->releases = true;
    while (self->deferred) {
        shm_lease_index lease = self->deferred - 1;
        struct shm_lease *record = shm_lease_at(self->segment, lease);
        shm_word word = atomic_load_explicit(&record->word, memory_order_relaxed);
        uint32_t next = SHM_ONCE(record->deferred);
        /* The list lies in shared memory: it leads no further than to leases of ours, and to each of them once. */
        bool ours = shm_word_state(word) == SHM_LEASE_HELD && shm_word_owner(word) == self->slot;
        self->deferred = ours && next <= self->segment->tables[SHM_TABLE_LEASES].max_items ? next : 0;
        if (ours)
            release_one(self, lease);
    }
    self->releases = false;
}

void shm_lease_release(struct shm_thread *self, shm_lease_index lease)
{
    shm_lease_at(self->segment, lease)->deferred = self->deferred;
    self->deferred = lease + 1;
    if (!self->releases)
        release_deferred(self);
}

void shm_lease_retry(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    for (uint32_t n = member->stuck_count; n; n--) { /* what is still locked comes to the list's end again */
        pthread_mutex_lock(&member->lock);
        bool any = member->stuck_count > 0;
        shm_lease_index lease = any ? member->stuck[0] : 0;
        if (any)
            memmove(member->stuck, member->stuck + 1, --member->stuck_count * sizeof *member->stuck);
        pthread_mutex_unlock(&member->lock);
        if (!any)
            return;
        shm_lease_release(self, lease);
    }
}

void shm_lease_drop_exact(struct shm_thread *self, shm_lease_index lease, shm_word word)
{
    if (shm_word_state(word) != SHM_LEASE_HELD || !shm_index_ok(self->segment, SHM_TABLE_LEASES, lease))
        return;
    /* Mine first: if this member dies here, its own reap releases it. */
    if (atomic_compare_exchange_strong(&shm_lease_at(self->segment, lease)->word, &word,
                                       shm_word_next(word, self->slot, SHM_LEASE_HELD)))
        shm_lease_release(self, lease);
}

/* The lease that the reference holds becomes this member's, and the reference holds none: true; *lease is what. */
static bool claim_reference(struct shm_thread *self, _Atomic uint32_t *at, uint32_t birth,
                            shm_lease_index *lease)
{
    uint32_t reference = atomic_load(at);
    if (reference == 0 || !shm_index_ok(self->segment, SHM_TABLE_LEASES, reference - 1))
        return false;
    struct shm_lease *record = shm_lease_at(self->segment, reference - 1);
    shm_word word = atomic_load(&record->word);
    if (atomic_load(at) != reference)
        return false; /* another dropper was faster, and the record may be another's by now */
    bool in_flight = shm_word_owner(word) == SHM_IN_FLIGHT && shm_word_state(word) == SHM_LEASE_HELD &&
                     shm_lease_birth(self->segment, reference - 1) == birth;
    SHM_KILL_POINT(drop_claim);
    bool mine = in_flight && atomic_compare_exchange_strong(&record->word, &word,
                                                            shm_word_next(word, self->slot, SHM_LEASE_HELD));
    SHM_KILL_POINT(drop_clear);
    *lease = reference - 1;
    atomic_compare_exchange_strong(at, &reference, 0);
    return mine;
}

void shm_lease_drop(struct shm_thread *self, _Atomic uint32_t *at, uint32_t birth)
{
    shm_lease_index lease;
    if (claim_reference(self, at, birth, &lease))
        shm_lease_release(self, lease);
}

void shm_lease_drop_warm(struct shm_thread *self, _Atomic uint32_t *at, uint32_t birth)
{
    shm_lease_index lease;
    if (claim_reference(self, at, birth, &lease))
        shm_lease_recycle(self, lease);
}

bool shm_handle_take(struct shm_thread *self, uint32_t index, uint32_t at, shm_lease_index *lease)
{
    struct shm_block *block = shm_block_at(self->segment, index);
    if (at >= atomic_load(&block->handles) ||
        (at + UINT64_C(1)) * sizeof(struct shm_handle) > pages_of(block, index))
        return false;
    struct shm_handle *handle = (void *)(self->segment->base + shm_block_offset(self->segment, index));
    return claim_reference(self, &handle[at].lease, handle[at].birth, lease);
}

void shm_handles_put(struct shm_thread *self, uint32_t index, const shm_lease_index *leases, uint32_t count)
{
    struct shm_block *block = shm_block_at(self->segment, index);
    struct shm_handle *handle = (void *)(self->segment->base + shm_block_offset(self->segment, index));
    for (uint32_t i = 0; i < count; i++) {
        handle[i].birth = shm_lease_birth(self->segment, leases[i]);
        atomic_store_explicit(&handle[i].lease, leases[i] + 1, memory_order_relaxed);
    }
    atomic_store(&block->handles, count);
    /* From here on a death releases each of them once: with the block if it is in flight, with us if it is not. */
    for (uint32_t i = 0; i < count; i++)
        shm_lease_fly(self, leases[i]);
}

/* ---- taking blocks ----------------------------------------------------------------------------------------- */

/* Take this block, if it is free. */
static bool take_free(struct shm_thread *self, uint32_t index, shm_lease_index lease)
{
    struct shm_block *block = shm_block_at(self->segment, index);
    shm_word word = atomic_load_explicit(&block->word, memory_order_relaxed);
    if (shm_word_state(word) != SHM_BLOCK_FREE)
        return false;
    shm_flight_push(self, SHM_FLIGHT_BLOCK, index, 0, 0);
    SHM_KILL_POINT(block_lock);
    shm_word locked = block_word(word, 0, self->slot, SHM_BLOCK_LOCKED);
    bool taken = atomic_compare_exchange_strong(&block->word, &word, locked);
    if (taken) {
        SHM_KILL_POINT(block_record);
        set_block(shm_lease_at(self->segment, lease), index + 1);
        unlock(block, locked, 1);
    }
    shm_flight_pop(self);
    return taken;
}

/* Did the last look at that class, which may not grow, find no free block, and has nobody freed one since? */
static bool is_full(struct shm_segment *segment, uint32_t class)
{
    struct shm_pool *pool = shm_pool_of(segment, SHM_TABLE_BLOCKS + class);
    return atomic_load_explicit(&pool->free_hint, memory_order_relaxed) == SHM_POOL_FULL;
}

/* A free block of exactly this class, without regard to its pages. */
static int take_of_class(struct shm_thread *self, uint32_t class, shm_lease_index lease)
{
    struct shm_segment *segment = self->segment;
    uint32_t table = SHM_TABLE_BLOCKS + class;
    struct shm_pool *pool = shm_pool_of(segment, table);
    for (;;) {
        uint32_t ready = shm_pool_ready(segment, table);
        uint32_t start = atomic_load_explicit(&pool->free_hint, memory_order_relaxed);
        for (uint32_t n = 0; n < ready; n++) {
            uint32_t i = (uint32_t)(((uint64_t)start + n) % ready);
            if (take_free(self, class << 24 | i, lease)) {
                atomic_store_explicit(&pool->free_hint, i + 1, memory_order_relaxed);
                return 0;
            }
        }
        int status = shm_pool_grow(segment, table, ready);
        if (status == SHM_LIMIT) /* or else the next would look at each of them again; a release unsays it */
            atomic_compare_exchange_strong(&pool->free_hint, &start, SHM_POOL_FULL);
        if (status)
            return status;
        atomic_store_explicit(&pool->free_hint, ready, memory_order_relaxed);
    }
}

/* One of those that this process took before: their pages are in its page table. */
static bool take_again(struct shm_thread *self, uint32_t class, shm_lease_index lease)
{
    struct shm_member *member = self->member;
    uint32_t taken[SHM_WARM_DEPTH];
    if (class < LARGE_CLASS || class >= SHM_WARM_CLASSES)
        return false;
    pthread_mutex_lock(&member->lock);
    memcpy(taken, member->warm[class].taken, sizeof taken);
    pthread_mutex_unlock(&member->lock);
    for (uint32_t i = 0; i < SHM_WARM_DEPTH; i++)
        if (taken[i] && shm_block_ok(self->segment, taken[i] - 1) && take_free(self, taken[i] - 1, lease))
            return true;
    return false;
}

static bool was_taken(const struct shm_warm *warm, uint32_t index)
{
    for (uint32_t i = 0; i < SHM_WARM_DEPTH; i++)
        if (warm->taken[i] == index + 1)
            return true;
    return false;
}

static void note_taken(struct shm_member *member, uint32_t index)
{
    uint32_t class = index >> 24;
    if (class < LARGE_CLASS || class >= SHM_WARM_CLASSES)
        return;
    pthread_mutex_lock(&member->lock);
    struct shm_warm *warm = &member->warm[class];
    if (!was_taken(warm, index))
        warm->taken[warm->next_taken++ % SHM_WARM_DEPTH] = index + 1;
    pthread_mutex_unlock(&member->lock);
}

/* The cache of the sum is wrong after a death between two stores; make it anew. */
static void recount_reserved(struct shm_segment *segment)
{
    uint64_t sum = 0;
    for (uint32_t c = 0; c < segment->classes; c++)
        for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BLOCKS + c); i++)
            sum += atomic_load(&shm_block_at(segment, c << 24 | i)->reserved_bytes);
    atomic_store(&segment->header->reserved_bytes, sum);
}

/* Add to the sum; what seems too much may be the cache's mistake. The caller takes it off again when refused. */
static bool is_within_limit(struct shm_segment *segment, uint64_t more)
{
    uint64_t limit = segment->memory_limit;
    if (atomic_fetch_add(&segment->header->reserved_bytes, more) + more <= limit)
        return true;
    recount_reserved(segment); /* forgets what we added */
    return atomic_fetch_add(&segment->header->reserved_bytes, more) + more <= limit;
}

/* Beyond the limit of the cgroup comes no error but the kernel's killer. */
static bool is_within_cgroup(uint64_t more)
{
    return more < CGROUP_BYTES || more <= shm_cgroup_free(NULL);
}

/* Give the block of a new lease its pages; nobody else knows the block yet. */
static int give_pages(struct shm_thread *self, uint32_t index, uint64_t len_bytes)
{
    struct shm_segment *segment = self->segment;
    struct shm_block *block = shm_block_at(segment, index);
    uint64_t has = pages_of(block, index), wants = shm_round_up(len_bytes, SHM_PAGE_BYTES);
    /* First: what is reserved by one who dies before he has counted it is found by this. */
    atomic_store_explicit(&block->len_bytes, len_bytes, memory_order_relaxed);
    if (has >= wants)
        return 0;
    for (int attempt = 0;; attempt++) {
        int status = SHM_NO_MEMORY;
        SHM_KILL_POINT(pages_reserve);
        if (is_within_limit(segment, wants - has) && is_within_cgroup(wants - has))
            status = shm_segment_reserve(segment, shm_block_offset(segment, index) + has, wants - has);
        if (status == 0) {
            SHM_KILL_POINT(pages_count);
            atomic_store(&block->reserved_bytes, wants);
            return 0;
        }
        shm_segment_discard(segment, shm_block_offset(segment, index) + has, wants - has);
        atomic_fetch_sub(&segment->header->reserved_bytes, wants - has);
        if (status != SHM_NO_MEMORY || attempt)
            return status;
        shm_warm_drop(self);
        shm_arena_trim(self);
    }
}

/* What pages a free block may have: those it counts, and those that somebody reserved who died before he counted. */
static uint64_t pages_left(const struct shm_block *block, uint32_t index)
{
    uint64_t has = pages_of(block, index), most = shm_block_class_bytes(index);
    uint64_t len_bytes = atomic_load_explicit(&block->len_bytes, memory_order_relaxed);
    len_bytes = len_bytes < most ? shm_round_up(len_bytes, SHM_PAGE_BYTES) : most;
    return has > len_bytes ? has : len_bytes;
}

/* The pages of a block go back, if it is free and its word is still this one. Their number. */
static uint64_t trim_block(struct shm_thread *self, uint32_t index, shm_word word)
{
    struct shm_segment *segment = self->segment;
    struct shm_block *block = shm_block_at(segment, index);
    uint64_t has = pages_left(block, index);
    if (shm_word_state(word) != SHM_BLOCK_FREE || has == 0)
        return 0;
    shm_flight_push(self, SHM_FLIGHT_BLOCK, index, 0, 0);
    shm_word locked = block_word(word, 0, self->slot, SHM_BLOCK_LOCKED);
    if (atomic_compare_exchange_strong(&block->word, &word, locked)) {
        /* The number first: pages without a number are found again, a number without pages is SIGBUS. */
        atomic_store_explicit(&block->len_bytes, has, memory_order_relaxed);
        SHM_KILL_POINT(trim_count);
        atomic_store(&block->reserved_bytes, 0);
        SHM_KILL_POINT(trim_discard);
        shm_segment_discard(segment, shm_block_offset(segment, index), has);
        atomic_store_explicit(&block->len_bytes, 0, memory_order_relaxed);
        unlock(block, locked, 0);
    } else {
        has = 0;
    }
    shm_flight_pop(self);
    return has;
}

void shm_arena_trim(struct shm_thread *self)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t c = 0; c < segment->classes; c++)
        for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BLOCKS + c); i++)
            trim_block(self, c << 24 | i, atomic_load(&shm_block_at(segment, c << 24 | i)->word));
    recount_reserved(segment);
}

/* Free blocks whose words are as they were at the last look: nobody has taken them since. */
static void trim_idle(struct shm_thread *self, struct shm_idle *idle)
{
    struct shm_segment *segment = self->segment;
    uint64_t bytes = 0;
    for (uint32_t c = 0; c < segment->classes; c++) {
        uint32_t ready = shm_pool_ready(segment, SHM_TABLE_BLOCKS + c);
        if (ready > idle->count[c]) {
            shm_word *words = realloc(idle->words[c], ready * sizeof *words);
            if (!words)
                return;
            memset(words + idle->count[c], 0, (ready - idle->count[c]) * sizeof *words);
            idle->words[c] = words;
            idle->count[c] = ready;
        }
        for (uint32_t i = 0; i < ready; i++) {
            shm_word word = atomic_load(&shm_block_at(segment, c << 24 | i)->word);
            if (idle->words[c][i] == word && bytes < IDLE_BYTES)
                bytes += trim_block(self, c << 24 | i, word);
            else
                idle->words[c][i] = word;
        }
    }
    if (bytes)
        recount_reserved(segment);
}

void shm_arena_idle(struct shm_thread *self, struct shm_idle *idle, bool keeps)
{
    uint64_t now = shm_clock_ns(), takes = atomic_load_explicit(&self->member->takes, memory_order_relaxed);
    if (now - idle->looked_ns < IDLE_NS)
        return;
    if (idle->looked_ns && takes == idle->takes)
        shm_warm_drop(self);
    idle->takes = takes;
    idle->looked_ns = now;
    if (keeps)
        trim_idle(self, idle);
}

/* The lease that was kept warm last, and its block, unless what the lease says is not sound: false then, as when none is. */
static bool pop_warm(struct shm_thread *self, uint32_t class, uint64_t len_bytes, shm_lease_index *lease,
                     uint32_t *index, bool *any)
{
    struct shm_member *member = self->member;
    bool sound = false;
    pthread_mutex_lock(&member->lock);
    struct shm_warm *warm = &member->warm[class];
    *any = warm->count > 0;
    if (*any) {
        *lease = warm->leases[--warm->count];
        sound = shm_lease_find(self->segment, *lease, len_bytes, index);
        uint64_t bytes = sound ? pages_of(shm_block_at(self->segment, *index), *index) : 0;
        member->warm_bytes -= bytes < member->warm_bytes ? bytes : member->warm_bytes;
    }
    pthread_mutex_unlock(&member->lock);
    return sound;
}

/* Has the block one holder, us, and is nobody within? A late reader of a bus may look in at any time, finds that his frame
 * has ended, and leaves, unless he was stopped there: then whoever has the block waits for him. */
static bool is_ours_alone(const struct shm_segment *segment, uint32_t index)
{
    shm_word word = atomic_load(&shm_block_at(segment, index)->word);
    return shm_word_state(word) == SHM_BLOCK_LIVE && holders_of(word) == 1;
}

static bool take_warm(struct shm_thread *self, uint32_t class, uint64_t len_bytes, shm_lease_index *lease)
{
    uint32_t index;
    bool any;
    if (class >= SHM_WARM_CLASSES || self->member->warm[class].count == 0)
        return false;
    if (pop_warm(self, class, len_bytes, lease, &index, &any) && is_ours_alone(self->segment, index) &&
        give_pages(self, index, len_bytes) == 0)
        return true;
    if (any)
        shm_lease_release(self, *lease);
    return false;
}

int shm_block_take(struct shm_thread *self, uint64_t len_bytes, shm_lease_index *lease)
{
    uint32_t first = class_for(len_bytes ? len_bytes : 1);
    if (first >= self->segment->classes)
        return SHM_NO_MEMORY;
    uint64_t takes = atomic_load_explicit(&self->member->takes, memory_order_relaxed);
    atomic_store_explicit(&self->member->takes, takes + 1, memory_order_relaxed); /* may miss some: a hint */
    uint32_t nearest = first; /* where what was taken instead of a block of a full class is kept warm */
    while (nearest < first + NEAR_CLASSES && is_full(self->segment, nearest) &&
           nearest + 1 < self->segment->classes)
        nearest++;
    if (take_warm(self, first, len_bytes, lease) ||
        (nearest > first && take_warm(self, nearest, len_bytes, lease)))
        return 0;
    int status = claim_record(self, lease);
    if (status)
        return status;
    status = take_again(self, first, *lease) ? 0 : SHM_LIMIT;
    for (int attempt = 0; attempt < 2 && status == SHM_LIMIT; attempt++) {
        if (attempt)
            shm_warm_drop(self);
        for (uint32_t class = first; class < self->segment->classes && status == SHM_LIMIT; class++)
            if (attempt || !is_full(self->segment, class)) /* what a death freed says nothing */
                status = take_of_class(self, class, *lease);
    }
    if (status) {
        free_record(self, *lease);
        return status == SHM_LIMIT ? SHM_NO_MEMORY : status; /* every block that is large enough is held */
    }
    uint32_t block;
    status = shm_lease_find(self->segment, *lease, len_bytes, &block) ? give_pages(self, block, len_bytes)
                                                                      : SHM_CORRUPTED;
    if (status)
        shm_lease_release(self, *lease);
    else
        note_taken(self->member, block);
    return status;
}

/* Is so much in use that large blocks kept warm may be all that others are refused for? */
static bool is_scarce(const struct shm_segment *segment)
{
    uint64_t limit = segment->memory_limit;
    return atomic_load_explicit(&segment->header->reserved_bytes, memory_order_relaxed) > limit - limit / 4;
}

/* Let go of what is kept warm, from a class on. */
static void drop_warm(struct shm_thread *self, uint32_t class)
{
    while (class < SHM_WARM_CLASSES) {
        shm_lease_index lease;
        uint32_t index;
        bool any;
        pop_warm(self, class, 0, &lease, &index, &any);
        if (any)
            shm_lease_release(self, lease);
        else
            class++;
    }
}

void shm_lease_recycle(struct shm_thread *self, shm_lease_index lease)
{
    struct shm_member *member = self->member;
    uint32_t index, class;
    if (!shm_lease_find(self->segment, lease, 0, &index)) {
        shm_lease_release(self, lease);
        return;
    }
    class = index >> 24;
    struct shm_block *block = shm_block_at(self->segment, index);
    bool scarce = class >= LARGE_CLASS && is_scarce(self->segment);
    if (scarce)
        drop_warm(self, LARGE_CLASS);
    if (class < SHM_WARM_CLASSES && !scarce && is_ours_alone(self->segment, index) &&
        !atomic_load(&block->box) && !atomic_load(&member->closed)) {
        uint64_t bytes = pages_of(block, index);
        drop_contents(self, index);
        pthread_mutex_lock(&member->lock);
        struct shm_warm *warm = &member->warm[class];
        uint64_t most = self->segment->memory_limit / 4;
        bool kept = warm->count < SHM_WARM_DEPTH && (class < LARGE_CLASS || was_taken(warm, index)) &&
                    member->warm_bytes + bytes <= (most < WARM_BYTES_MAX ? most : WARM_BYTES_MAX);
        if (kept) {
            warm->leases[warm->count++] = lease;
            member->warm_bytes += bytes;
        }
        pthread_mutex_unlock(&member->lock);
        if (kept)
            return;
    }
    shm_lease_release(self, lease);
}

void shm_warm_drop(struct shm_thread *self)
{
    drop_warm(self, 0);
}

/* ---- forks ------------------------------------------------------------------------------------------------- */

/* Keep the lease for a child. */
static int lend(struct shm_member *member, shm_lease_index lease, uint64_t byte)
{
    pthread_mutex_lock(&member->lock);
    uint32_t count = atomic_load(&member->lent_count);
    struct shm_lent *lent = realloc(member->lent, (count + (size_t)1) * sizeof *lent);
    if (lent) {
        member->lent = lent;
        lent[count] = (struct shm_lent){.byte = byte, .lease = lease};
        atomic_store(&member->lent_count, count + 1);
    }
    pthread_mutex_unlock(&member->lock);
    return lent ? 0 : SHM_NO_MEMORY;
}

void shm_fork_prepare(struct shm_member *member, struct shm_thread *self, struct shm_fork *fork)
{
    struct shm_segment *segment = member->segment;
    *fork = (struct shm_fork){.life_fd = -1};
    int64_t id = self ? shm_member_prepare(segment, member, SHM_KIND_FORK, "fork") : SHM_LIMIT;
    struct shm_member_record *record = NULL;
    shm_word word = 0;
    if (id >= 0) {
        record = shm_member_at(segment, (uint32_t)(id & 0xFFFF));
        word = atomic_load(&record->word);
        fork->life_fd = shm_life_take(member->life_path, (uint32_t)(id & 0xFFFF));
        if (fork->life_fd < 0) {
            shm_member_forget(segment, (shm_member_id)id);
            record = NULL;
        }
    }
    if (fork->life_fd < 0 && member->life_path)
        fork->life_fd = open(member->life_path, O_RDWR | O_CLOEXEC);
    if (fork->life_fd >= 0) {
        void *page = mmap(NULL, SHM_PAGE_BYTES, PROT_NONE, MAP_SHARED, fork->life_fd, 0);
        fork->page = page == MAP_FAILED ? NULL : page;
    }
    if (record) {
        fork->id = (shm_member_id)id;
        atomic_compare_exchange_strong(
            &record->word, &word, shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_MEMBER_LIVE));
    }
}

int shm_fork_add(struct shm_member *member, struct shm_thread *self, shm_lease_index lease,
                 struct shm_fork *fork)
{
    shm_lease_index copy;
    if (self && fork->id && shm_block_hold(self, shm_lease_block(member->segment, lease), &copy) == 0) {
        shm_lease_give(self, copy, (uint32_t)(fork->id & 0xFFFF));
        return 0;
    }
    if (!fork->byte)
        fork->byte = shm_life_take_spare(fork->life_fd);
    return lend(member, lease, fork->byte);
}

int shm_arrays_remain(struct shm_member *member, struct shm_thread *self, const shm_lease_index *leases,
                      uint32_t count, struct shm_fork *fork)
{
    struct shm_segment *segment = member->segment;
    *fork = (struct shm_fork){.life_fd = -1};
    int64_t id = shm_member_prepare(segment, member, SHM_KIND_FORK, "arrays");
    if (id < 0)
        return (int)id;
    uint32_t slot = (uint32_t)(id & 0xFFFF);
    struct shm_member_record *record = shm_member_at(segment, slot);
    shm_word word = atomic_load(&record->word);
    fork->life_fd = shm_life_take(member->life_path, slot);
    void *page =
        fork->life_fd < 0 ? MAP_FAILED : mmap(NULL, SHM_PAGE_BYTES, PROT_NONE, MAP_SHARED, fork->life_fd, 0);
    if (page == MAP_FAILED) {
        shm_fork_end(fork);
        shm_member_forget(segment, (shm_member_id)id);
        return SHM_CLOSED;
    }
    fork->page = page;
    /* From the lock on a death frees the slot, and with it what it has got by then; the rest is still the member's. */
    for (uint32_t i = 0; i < count; i++) {
        SHM_KILL_POINT(remain_give);
        shm_lease_give(self, leases[i], slot);
    }
    SHM_KILL_POINT(remain_live);
    fork->id = (shm_member_id)id;
    atomic_compare_exchange_strong(
        &record->word, &word, shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_MEMBER_LIVE));
    return 0;
}

void shm_fork_end(struct shm_fork *fork)
{
    if (fork->page)
        munmap(fork->page, SHM_PAGE_BYTES);
    if (fork->life_fd >= 0)
        close(fork->life_fd);
    *fork = (struct shm_fork){.life_fd = -1};
}

bool shm_lease_is_lent(struct shm_member *member, shm_lease_index lease)
{
    bool found = false;
    if (atomic_load(&member->lent_count) == 0)
        return false;
    pthread_mutex_lock(&member->lock);
    for (uint32_t i = 0; i < atomic_load(&member->lent_count); i++)
        if (member->lent[i].lease == lease)
            found = member->lent[i].dropped = true;
    pthread_mutex_unlock(&member->lock);
    return found;
}

/* Take the first entry at or behind *at whose child has ended off the list. */
static bool take_back(struct shm_member *member, uint32_t *at, struct shm_lent *entry)
{
    uint64_t held = 0; /* a byte that was found locked: entries of one child stand together */
    bool found = false;
    pthread_mutex_lock(&member->lock);
    for (; !found && *at < atomic_load(&member->lent_count); *at += !found) {
        *entry = member->lent[*at];
        if (entry->byte == held)
            continue;
        held = entry->byte;
        found = !shm_life_spare_is_locked(member, entry->byte);
    }
    if (found) {
        uint32_t left = atomic_load(&member->lent_count) - 1;
        memmove(member->lent + *at, member->lent + *at + 1, (left - *at) * sizeof *member->lent);
        atomic_store(&member->lent_count, left);
        for (uint32_t i = 0; i < left; i++) /* another child has it too: then it goes with that one */
            if (member->lent[i].lease == entry->lease)
                entry->dropped = false;
    }
    pthread_mutex_unlock(&member->lock);
    return found;
}

void shm_lent_look(struct shm_thread *self)
{
    struct shm_lent entry;
    uint32_t at = 0;
    if (atomic_load(&self->member->lent_count) == 0)
        return;
    while (take_back(self->member, &at, &entry))
        if (entry.dropped)
            shm_lease_release(self, entry.lease);
}

void shm_lent_leave(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    shm_lent_look(self);
    for (uint32_t i = 0; i < atomic_load(&member->lent_count); i++) {
        shm_word word = atomic_load(&shm_lease_at(self->segment, member->lent[i].lease)->word);
        if (shm_word_state(word) == SHM_LEASE_HELD && shm_word_owner(word) == self->slot)
            shm_lease_give(self, member->lent[i].lease, SHM_IN_FLIGHT);
    }
    atomic_store(&member->lent_count, 0);
}

void shm_fork_child(struct shm_segment *segment, shm_member_id id)
{
    struct shm_member_record *record = shm_member_at(segment, id & 0xFFFF);
    record->start_time = shm_process_start_time(getpid());
    atomic_store(&record->pid, (int32_t)getpid());
}

/* ---- rings ------------------------------------------------------------------------------------------------- */

int shm_block_pin(struct shm_thread *self, uint32_t box, uint64_t count, uint32_t what,
                  shm_lease_index *lease, uint32_t *block)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, box))
        return SHM_NOT_FOUND;
    struct shm_box_record *record = shm_box_at(segment, box);
    shm_word word = atomic_load(&record->word);
    uint64_t place = atomic_load(&record->place_of_ring);
    if (shm_word_count(word) != count || shm_word_state(word) < SHM_BOX_OPEN || place == 0)
        return SHM_NOT_FOUND;
    uint32_t index = (uint32_t)(place - 1);
    int status = shm_block_hold(self, index, lease);
    if (status)
        return status;
    /* Held now, so it cannot become another's; but was it still this mailbox's? */
    if (atomic_load(&shm_block_at(segment, index)->box) != ((box + 1) | what) ||
        shm_word_count(atomic_load(&record->word)) != count) {
        shm_lease_release(self, *lease);
        return SHM_NOT_FOUND;
    }
    *block = index;
    return 0;
}

/* ---- reap -------------------------------------------------------------------------------------------------- */

/* How many records hold the block. For its locker: nobody else points a record at it, or away from it. */
static uint32_t count_holders(const struct shm_segment *segment, uint32_t index)
{
    uint32_t holders = 0;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_LEASES); i++) {
        const struct shm_lease *record = shm_lease_at(segment, i);
        holders += (uint32_t)atomic_load(&record->block) == index + 1 &&
                   shm_word_state(atomic_load(&record->word)) == SHM_LEASE_HELD;
    }
    return holders;
}

/* The victim has the block locked, by one of its threads: the flight says only where to look, the records how many
 * holders there are, whatever step it died at. Done under a lock of our own, so a reaper that was stopped here does not
 * go on in a block that is another's by now; if we die, our flight word says the same as the victim's. */
void shm_arena_reap_flight(struct shm_thread *self, uint32_t victim, shm_word word,
                           const struct shm_flight *flight)
{
    struct shm_segment *segment = self->segment;
    uint32_t index = atomic_load(&flight->object);
    if (atomic_load(&flight->op) != SHM_FLIGHT_BLOCK || !shm_block_ok(segment, index))
        return;
    struct shm_block *block = shm_block_at(segment, index);
    shm_word locked = atomic_load(&block->word);
    if (shm_word_state(locked) != SHM_BLOCK_LOCKED || shm_word_owner(locked) != victim ||
        !shm_still_dying(segment, victim, word))
        return;
    shm_flight_push(self, SHM_FLIGHT_BLOCK, index, 0, 0);
    shm_word mine = block_word(locked, holders_of(locked), self->slot, SHM_BLOCK_LOCKED);
    if (atomic_compare_exchange_strong(&block->word, &locked, mine)) {
        SHM_KILL_POINT(block_count);
        unlock(block, mine, count_holders(segment, index));
    }
    shm_flight_pop(self);
}

void shm_arena_reap_leases(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_LEASES); i++) {
        shm_word lease = atomic_load(&shm_lease_at(segment, i)->word);
        if (shm_word_state(lease) == SHM_LEASE_HELD && shm_word_owner(lease) == victim &&
            shm_still_dying(segment, victim, word))
            shm_lease_drop_exact(self, i, lease);
    }
}

void shm_arena_statistics(const struct shm_segment *segment, struct shm_arena_counts *out)
{
    *out = (struct shm_arena_counts){.limit_bytes = segment->memory_limit};
    for (uint32_t c = 0; c < segment->classes; c++)
        for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BLOCKS + c); i++) {
            const struct shm_block *block = shm_block_at(segment, c << 24 | i);
            out->reserved_bytes += atomic_load(&block->reserved_bytes);
            if (shm_word_state(atomic_load(&block->word)) != SHM_BLOCK_FREE) {
                out->blocks++;
                out->used_bytes += atomic_load(&block->reserved_bytes);
            }
        }
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_LEASES); i++)
        out->leases += shm_word_state(atomic_load(&shm_lease_at(segment, i)->word)) == SHM_LEASE_HELD;
}
