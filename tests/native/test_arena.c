/* Blocks and leases: who holds what, that everything comes back, and that the limit is a limit. */
#include "world.h"

#include <sys/stat.h>

static unsigned char *bytes_of(struct actor *a, shm_lease_index lease)
{
    return a->thread.segment->base +
           shm_block_offset(a->thread.segment, shm_lease_block(a->thread.segment, lease));
}

static uint64_t reserved(const struct world *w)
{
    struct shm_arena_counts statistics;
    shm_arena_statistics(&w->segment, &statistics);
    return statistics.reserved_bytes;
}

static void take(struct actor *a, uint64_t len_bytes, shm_lease_index *lease)
{
    CHECK_OK(shm_block_take(&a->thread, len_bytes, lease));
    memset(bytes_of(a, *lease), 0x5A, len_bytes);
}

static void block_lives_as_long_as_somebody_holds_it(void)
{
    struct world w;
    struct actor a, b;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    shm_lease_index first, second, third, none;
    take(&a, 10000, &first);
    uint32_t block = shm_lease_block(&w.segment, first);
    CHECK_EQ(shm_block_class_bytes(block), 16384);
    CHECK_OK(shm_block_hold(&b.thread, block, &second));
    CHECK_OK(shm_block_hold(&b.thread, block, &third));
    CHECK_EQ(shm_block_holders(&w.segment, block), 3);
    CHECK_EQ(shm_lease_block(&w.segment, third), block);
    shm_lease_release(&a.thread, first);
    shm_lease_release(&b.thread, third);
    CHECK_EQ(shm_block_holders(&w.segment, block), 1);
    CHECK_EQ(bytes_of(&b, second)[9999], 0x5A);
    shm_lease_release(&b.thread, second);
    CHECK_EQ(world_count(&w).blocks, 0);
    CHECK_EQ(shm_block_hold(&b.thread, block, &none), SHM_NOT_FOUND);
    CHECK_EQ(shm_block_hold(&b.thread, 63 << 24, &none), SHM_CORRUPTED);
    CHECK_EQ(world_count(&w).leases, 0);
    actor_leave(&a);
    actor_leave(&b);
    world_close(&w);
}

static void sizes_get_the_class_that_fits(void)
{
    struct world w;
    struct actor a;
    shm_lease_index lease;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    const uint64_t sizes[] = {0, 1, 4095, 4096, 4097, 65536, 65537, 1 << 20, (1 << 20) + 1, WORLD_SMALL};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        take(&a, sizes[i], &lease);
        uint64_t class_bytes = shm_block_class_bytes(shm_lease_block(&w.segment, lease));
        CHECK(class_bytes >= sizes[i] && (class_bytes == 4096 || class_bytes / 2 < sizes[i]));
        shm_lease_release(&a.thread, lease);
    }
    CHECK_EQ(shm_block_take(&a.thread, WORLD_SMALL + 1, &lease), SHM_NO_MEMORY);
    CHECK_EQ(shm_block_take(&a.thread, UINT64_C(1) << 50, &lease), SHM_NO_MEMORY);
    actor_leave(&a);
    world_close(&w);
}

static void limit_is_never_passed_and_memory_is_usable_afterwards(void)
{
    struct world w;
    struct actor a;
    enum { MIB = 1 << 20 };
    shm_lease_index leases[20], extra;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    for (int i = 0; i < 16; i++)
        take(&a, MIB, &leases[i]);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(shm_block_take(&a.thread, MIB, &extra), SHM_NO_MEMORY);
        CHECK_EQ(shm_block_take(&a.thread, 1, &extra), SHM_NO_MEMORY);
        CHECK_EQ(atomic_load(&w.segment.header->reserved_bytes), reserved(&w));
        CHECK_EQ(reserved(&w), WORLD_SMALL);
    }
    CHECK_EQ(world_count(&w).leases, 16);
    /* Pages of another size class are given back for it. */
    shm_lease_release(&a.thread, leases[0]);
    take(&a, 1, &extra);
    CHECK(reserved(&w) <= WORLD_SMALL);
    shm_lease_release(&a.thread, extra);
    take(&a, MIB, &leases[0]);
    CHECK_EQ(bytes_of(&a, leases[3])[MIB - 1], 0x5A);
    for (int i = 0; i < 16; i++)
        shm_lease_release(&a.thread, leases[i]);
    take(&a, WORLD_SMALL, &extra);
    CHECK_EQ(reserved(&w), WORLD_SMALL);
    shm_lease_release(&a.thread, extra);
    shm_arena_trim(&a.thread);
    CHECK_EQ(reserved(&w), 0);
    CHECK_EQ(atomic_load(&w.segment.header->reserved_bytes), 0);
    actor_leave(&a);
    world_close(&w);
}

static void recycled_block_stays_warm_until_it_is_dropped_or_memory_is_short(void)
{
    struct world w;
    struct actor a;
    shm_lease_index lease, again, all;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    take(&a, 100000, &lease);
    uint32_t block = shm_lease_block(&w.segment, lease);
    shm_lease_recycle(&a.thread, lease);
    CHECK_EQ(world_count(&w).blocks, 1);
    take(&a, 120000, &again);
    CHECK_EQ(shm_lease_block(&w.segment, again), block);
    shm_lease_recycle(&a.thread, again);
    take(&a, WORLD_SMALL, &all); /* takes the warm one's pages */
    shm_lease_release(&a.thread, all);
    take(&a, 5000, &lease);
    CHECK_OK(shm_block_hold(&a.thread, shm_lease_block(&w.segment, lease), &again));
    shm_lease_recycle(&a.thread, lease); /* not its only holder: not warm */
    CHECK_EQ(world_count(&w).leases, 1);
    shm_lease_recycle(&a.thread, again);
    CHECK_EQ(world_count(&w).leases, 1);
    shm_warm_drop(&a.thread);
    CHECK_EQ(world_count(&w).leases, 0);
    take(&a, 5000, &lease);
    shm_lease_recycle(&a.thread, lease);
    actor_leave(&a); /* warm ones go with it */
    world_close(&w);
}

static void lease_flies_lands_once_and_returns(void)
{
    struct world w;
    struct actor a, b;
    shm_lease_index lease;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    take(&a, 4096, &lease);
    CHECK_EQ(shm_lease_land(&b.thread, lease), 0);
    shm_word expected = shm_lease_word_in_flight(&a.thread, lease);
    shm_lease_fly(&a.thread, lease);
    CHECK_EQ(atomic_load(&shm_lease_at(&w.segment, lease)->word), expected);
    uint32_t slot = a.member.slot;
    actor_die(&w, &a);
    CHECK(shm_reap(&b.thread, slot));
    CHECK(shm_lease_land(&b.thread, lease) != 0); /* what flies does not go with its sender */
    CHECK_EQ(shm_lease_land(&b.thread, lease), 0);
    shm_lease_fly(&b.thread, lease);
    shm_lease_return(&b.thread, lease);
    CHECK_EQ(shm_lease_land(&b.thread, lease), 0);
    shm_lease_release(&b.thread, lease);
    actor_leave(&b);
    world_close(&w);
}

static void dropped_reference_releases_what_flies_and_nothing_else(void)
{
    struct world w;
    struct actor a;
    shm_lease_index lease;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    take(&a, 4096, &lease);
    _Atomic uint32_t reference = lease + 1;
    uint32_t birth = shm_lease_birth(&w.segment, lease);
    shm_lease_drop(&a.thread, &reference, birth); /* held by us, not by the reference */
    CHECK_EQ(atomic_load(&reference), 0);
    CHECK_EQ(world_count(&w).leases, 1);
    shm_lease_drop(&a.thread, &reference, birth);
    atomic_store(&reference, UINT32_MAX);
    shm_lease_drop(&a.thread, &reference, birth);
    shm_lease_fly(&a.thread, lease);
    atomic_store(&reference, lease + 1); /* of an earlier life of the record */
    shm_lease_drop(&a.thread, &reference, birth - 1);
    CHECK_EQ(atomic_load(&reference), 0);
    CHECK_EQ(world_count(&w).leases, 1);
    atomic_store(&reference, lease + 1);
    shm_lease_drop(&a.thread, &reference, birth);
    CHECK_EQ(world_count(&w).leases, 0);
    actor_leave(&a);
    world_close(&w);
}

/* A block that owns a block that owns a block ... as a list of lists does. */
static void handles_inside_blocks_go_with_the_outermost(void)
{
    enum { DEPTH = 40 };
    struct world w;
    struct actor a, b;
    static unsigned char neighbours[4 * sizeof(struct shm_place)];
    memset(neighbours, 0x77, sizeof neighbours);
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &b);
    for (int how = 0; how < 4; how++) {
        shm_lease_index inner[2], outer;
        actor_join(&w, &a);
        uint32_t slot = a.member.slot;
        take(&a, 100, &inner[0]);
        for (int i = 0; i < DEPTH; i++) {
            take(&a, 100, &inner[1]);
            take(&a, 100, &outer);
            shm_handles_put(&a.thread, shm_lease_block(&w.segment, outer), inner, 2);
            inner[0] = outer;
        }
        CHECK_EQ(world_count(&w).blocks, 2 * DEPTH + 1);
        uint32_t last = a.thread.place > b.thread.place ? a.thread.place : b.thread.place;
        memset(shm_place_at(&w.segment, last + 1), 0x77, sizeof neighbours);
        _Atomic uint32_t reference = outer + 1;
        if (how == 0) {
            shm_lease_release(&a.thread, outer);
        } else if (how == 1) {
            shm_lease_fly(&a.thread, outer);
            shm_lease_drop(&b.thread, &reference, shm_lease_birth(&w.segment, outer));
        } else if (how == 2) {
            actor_die(&w, &a);
            CHECK(shm_reap(&b.thread, slot));
        } else {
            shm_lease_recycle(&a.thread, outer);
            CHECK_EQ(world_count(&w).blocks, 1);
        }
        /* Flight words nest no deeper than a place has room for. */
        CHECK_BYTES(shm_place_at(&w.segment, last + 1), neighbours, sizeof neighbours);
        memset(shm_place_at(&w.segment, last + 1), 0, sizeof neighbours);
        if (how != 2)
            actor_leave(&a);
        CHECK_EQ(world_count(&w).blocks, 0);
        CHECK_EQ(world_count(&w).leases, 0);
    }
    actor_leave(&b);
    world_close(&w);
}

static void leases_of_the_dead_come_back_and_those_given_away_stay(void)
{
    struct world w;
    struct actor a, b;
    shm_lease_index kept, shared, given;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    uint32_t slot = a.member.slot;
    take(&a, 5000, &kept);
    take(&a, 5000, &given);
    CHECK_OK(shm_block_hold(&b.thread, shm_lease_block(&w.segment, kept), &shared));
    shm_lease_give(&a.thread, given, b.member.slot);
    actor_die(&w, &a);
    CHECK(shm_reap(&b.thread, slot));
    CHECK_EQ(world_count(&w).leases, 2);
    CHECK_EQ(shm_block_holders(&w.segment, shm_lease_block(&w.segment, shared)), 1);
    shm_lease_release(&b.thread, shared);
    shm_lease_release(&b.thread, given);
    actor_leave(&b);
    world_close(&w);
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

enum { HOLDERS = 4, ROUNDS = 2000 };

struct crowd {
    struct world w;
    uint32_t block; /* held by the main thread all the time */
    _Atomic uint64_t refused;
};

static void hold_and_release(void *argument, int index)
{
    struct crowd *crowd = argument;
    struct actor a;
    actor_join(&crowd->w, &a);
    for (int i = 0; i < ROUNDS; i++) {
        shm_lease_index common, own;
        CHECK_OK(shm_block_hold(&a.thread, crowd->block, &common));
        int status = shm_block_take(&a.thread, (uint64_t)1 << (8 + (i + index) % 12), &own);
        if (status == 0) {
            uint64_t *bytes = (uint64_t *)bytes_of(&a, own);
            *bytes = (uint64_t)index << 32 | (uint64_t)i;
            CHECK(shm_block_holders(&crowd->w.segment, crowd->block) >= 2);
            CHECK_EQ(*bytes, (uint64_t)index << 32 | (uint64_t)i);
            i % 3 ? shm_lease_recycle(&a.thread, own) : shm_lease_release(&a.thread, own);
        } else {
            CHECK(status == SHM_NO_MEMORY || status == SHM_LIMIT); /* pages, or blocks of the size */
            atomic_fetch_add(&crowd->refused, 1);
        }
        shm_lease_release(&a.thread, common);
    }
    actor_leave(&a);
}

static void concurrent_holders_leave_counters_at_their_baseline(void)
{
    struct crowd crowd = {0};
    struct actor a;
    shm_lease_index lease;
    world_open(&crowd.w, UINT64_C(1) << 20);
    actor_join(&crowd.w, &a);
    take(&a, 5000, &lease);
    crowd.block = shm_lease_block(&crowd.w.segment, lease);
    check_threads(HOLDERS, hold_and_release, &crowd);
    CHECK_EQ(shm_block_holders(&crowd.w.segment, crowd.block), 1);
    CHECK_EQ(world_count(&crowd.w).leases, 1);
    CHECK_EQ(world_count(&crowd.w).blocks, 1);
    shm_lease_release(&a.thread, lease);
    shm_arena_trim(&a.thread);
    CHECK_EQ(reserved(&crowd.w), 0);
    take(&a, UINT64_C(1) << 20, &lease); /* all of it is there again */
    shm_lease_release(&a.thread, lease);
    actor_leave(&a);
    world_close(&crowd.w);
}

static void die_holding_locks(void *argument, int index)
{
    struct crowd *crowd = argument;
    struct actor a;
    for (int i = 0; i < 20; i++) {
        actor_join(&crowd->w, &a);
        shm_lease_index lease, own;
        CHECK_OK(shm_block_hold(&a.thread, crowd->block, &lease));
        if (index == 0) { /* die between LOCKED and LIVE: others mend it and go on */
            struct shm_block *block = shm_block_at(&crowd->w.segment, crowd->block);
            shm_flight_push(&a.thread, SHM_FLIGHT_BLOCK, crowd->block, 0, 0);
            shm_word word = atomic_load(&block->word);
            while (shm_word_state(word) != SHM_BLOCK_LIVE ||
                   !atomic_compare_exchange_weak(&block->word, &word,
                                                 shm_word_make(shm_word_count(word) + (UINT64_C(1) << 22),
                                                               a.thread.slot, SHM_BLOCK_LOCKED)))
                word = atomic_load(&block->word);
            actor_die(&crowd->w, &a);
            continue;
        }
        CHECK_OK(shm_block_take(&a.thread, 100, &own));
        shm_lease_release(&a.thread, lease);
        actor_leave(&a); /* with `own` */
    }
}

static void lock_of_a_dead_holder_is_mended_by_whoever_needs_the_block(void)
{
    struct crowd crowd = {0};
    struct actor a;
    shm_lease_index lease;
    world_open(&crowd.w, UINT64_C(1) << 20);
    actor_join(&crowd.w, &a);
    take(&a, 5000, &lease);
    crowd.block = shm_lease_block(&crowd.w.segment, lease);
    check_threads(3, die_holding_locks, &crowd);
    shm_reap_all(&a.thread);
    CHECK_EQ(shm_block_holders(&crowd.w.segment, crowd.block), 1);
    shm_lease_release(&a.thread, lease);
    actor_leave(&a);
    world_close(&crowd.w);
}

/* ---- one who is stopped with a block locked ------------------------------------------------------------------ */

/* LIVE -> LOCKED(a), as far as the others see. */
static shm_word stop_with_lock(struct world *w, struct actor *a, uint32_t block)
{
    _Atomic shm_word *at = &shm_block_at(&w->segment, block)->word;
    shm_word live = atomic_load(at);
    CHECK_EQ(shm_word_state(live), SHM_BLOCK_LIVE);
    atomic_store(at, shm_word_make(shm_word_count(live), a->member.slot, SHM_BLOCK_LOCKED));
    return live;
}

static void lease_of_one_who_leaves_while_its_block_is_locked_comes_back_later(void)
{
    struct world w;
    struct actor stays, stopped, leaves;
    shm_lease_index first, second;
    world_open(&w, UINT64_C(1) << 20);
    actor_join(&w, &stays);
    actor_join(&w, &stopped);
    actor_join(&w, &leaves);
    take(&stopped, 5000, &first);
    uint32_t block = shm_lease_block(&w.segment, first);
    CHECK_OK(shm_block_hold(&leaves.thread, block, &second));
    shm_word live = stop_with_lock(&w, &stopped, block);
    actor_leave(&leaves);
    shm_reap_all(&stays.thread); /* its lease is taken over, to be released later */
    CHECK_EQ(stays.member.stuck_count, 1);
    atomic_store(&shm_block_at(&w.segment, block)->word, live); /* it goes on */
    shm_reap_all(&stays.thread);
    shm_lease_retry(&stays.thread);
    CHECK_EQ(shm_block_holders(&w.segment, block), 1);
    CHECK_EQ(world_count(&w).members, 2);
    shm_lease_release(&stopped.thread, first);
    actor_leave(&stopped);
    actor_leave(&stays);
    world_close(&w);
}

static void mailbox_of_one_who_leaves_while_it_is_locked_is_closed_later(void)
{
    struct world w;
    struct actor stays, stopped, leaves;
    struct shm_box box, theirs, mine;
    world_open(&w, UINT64_C(1) << 20);
    actor_join(&w, &stays);
    actor_join(&w, &stopped);
    actor_join(&w, &leaves);
    box_make(&leaves, &box, SHM_BOX_ACTOR, 4);
    box_open(&stopped, &theirs, &box);
    box_open(&stays, &mine, &box);
    int64_t notice = shm_notice_arm(&stays.thread, &mine, actor_id(&leaves));
    CHECK(notice > 0);
    shm_word live = stop_with_lock(&w, &stopped, box.block);
    actor_leave(&leaves);
    atomic_store(&shm_block_at(&w.segment, box.block)->word, live);
    shm_reap_all(&stays.thread);
    shm_lease_retry(&stays.thread);
    CHECK_EQ(world_count(&w).members, 2);
    CHECK(shm_box_is_closed(&mine));
    CHECK_EQ(box_send(&stays, &mine, 0, 1, SHM_FOREVER), SHM_PEER_DEAD);
    CHECK_EQ(shm_word_state(atomic_load(&shm_notice_at(&w.segment, 0)->word)), SHM_NOTICE_FIRED);
    CHECK(shm_notice_disarm(&stays.thread, (uint64_t)notice));
    shm_box_release(&stopped.thread, &theirs);
    shm_box_release(&stays.thread, &mine);
    actor_leave(&stopped);
    actor_leave(&stays);
    world_close(&w);
}

/* ---- two threads of one member at one block ------------------------------------------------------------------ */

static struct {
    struct world w;
    struct actor live, victim;
    struct shm_thread other; /* the victim's second thread */
    shm_lease_index held, mine;
    uint32_t block;
} pair;

static void first_releases(void *unused)
{
    (void)unused;
    shm_lease_release(&pair.victim.thread, pair.held);
}

static void first_holds(void *unused)
{
    shm_lease_index lease;
    (void)unused;
    shm_block_hold(&pair.victim.thread, pair.block, &lease);
}

static void other_releases(void *unused)
{
    (void)unused;
    shm_lease_release(&pair.other, pair.held);
}

static void other_holds(void *unused)
{
    shm_lease_index lease;
    (void)unused;
    shm_block_hold(&pair.other, pair.block, &lease);
}

static void die_at_one_block(void (*first)(void *), void (*other)(void *), const char *point)
{
    memset(&pair, 0, sizeof pair);
    world_open(&pair.w, UINT64_C(1) << 20);
    actor_join(&pair.w, &pair.live);
    actor_join(&pair.w, &pair.victim);
    CHECK_OK(shm_thread_open(&pair.other, &pair.victim.member));
    take(&pair.live, 5000, &pair.mine);
    pair.block = shm_lease_block(&pair.w.segment, pair.mine);
    CHECK_OK(shm_block_hold(&pair.victim.thread, pair.block, &pair.held));
    world_arm("block_lock", 1);
    CHECK(world_dies(first, NULL));
    world_arm(point, 1);
    CHECK(world_dies(other, NULL));
    uint32_t slot = pair.victim.member.slot;
    free(pair.other.scratch);
    actor_die(&pair.w, &pair.victim);
    CHECK(shm_reap(&pair.live.thread, slot));
    CHECK_EQ(shm_block_holders(&pair.w.segment, pair.block), 1);
    shm_lease_release(&pair.live.thread, pair.mine);
    actor_leave(&pair.live);
    world_close(&pair.w);
}

static void holders_are_counted_when_two_threads_of_the_dead_were_at_one_block(void)
{
    const char *points[] = {"block_lock", "block_record", "block_unlock"};
    for (int i = 0; i < 3; i++) {
        die_at_one_block(first_releases, other_holds, points[i]);
        die_at_one_block(first_holds, other_releases, points[i]);
        die_at_one_block(first_holds, other_holds, points[i]);
    }
}

/* ---- growth and shrinking ------------------------------------------------------------------------------------- */

static uint64_t pages_of_file(const struct world *w)
{
    struct stat st;
    CHECK_OK(fstat(w->segment.fd, &st));
    return (uint64_t)st.st_blocks;
}

static void takes_a_mebibyte(void *argument)
{
    shm_lease_index lease;
    shm_block_take(&((struct actor *)argument)->thread, 1 << 20, &lease);
}

static void trims(void *argument)
{
    shm_arena_trim(&((struct actor *)argument)->thread);
}

static void pages_of_who_died_growing_or_shrinking_are_found_again(void)
{
    struct world w;
    struct actor live, victim;
    shm_lease_index lease;
    const char *points[] = {"pages_reserve", "pages_count", "trim_count", "trim_discard"};
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &live);
    take(&live, 1 << 20, &lease);
    shm_lease_release(&live.thread, lease);
    shm_arena_trim(&live.thread);
    uint64_t before = pages_of_file(&w);
    for (int i = 0; i < 4; i++) {
        actor_join(&w, &victim);
        if (i >= 2) { /* more than it used last: what is counted is what is given back */
            take(&victim, 1 << 20, &lease);
            shm_lease_release(&victim.thread, lease);
            take(&victim, (1 << 20) - 5000, &lease);
            shm_lease_release(&victim.thread, lease);
        }
        world_arm(points[i], 1);
        CHECK(world_dies(i < 2 ? takes_a_mebibyte : trims, &victim));
        uint32_t slot = victim.member.slot;
        actor_die(&w, &victim);
        CHECK(shm_reap(&live.thread, slot));
        shm_arena_trim(&live.thread);
        CHECK_EQ(pages_of_file(&w), before);
        CHECK_EQ(reserved(&w), 0);
    }
    take(&live, WORLD_SMALL, &lease); /* all of it can be had */
    shm_lease_release(&live.thread, lease);
    actor_leave(&live);
    world_close(&w);
}

static void forget_idle(struct shm_idle *idle)
{
    for (size_t c = 0; c < sizeof idle->words / sizeof idle->words[0]; c++)
        free(idle->words[c]);
}

static void free_blocks_of_an_idle_system_give_their_pages_back(void)
{
    struct world w;
    struct actor a;
    struct shm_idle idle = {0};
    shm_lease_index kept, lease;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    take(&a, 5000, &kept);
    for (int i = 0; i < 2; i++) { /* their tables stay */
        take(&a, i ? 3 << 20 : 1 << 20, &lease);
        shm_lease_release(&a.thread, lease);
    }
    shm_arena_trim(&a.thread);
    uint64_t before = pages_of_file(&w);
    take(&a, 1 << 20, &lease);
    shm_lease_recycle(&a.thread, lease); /* warm */
    take(&a, 3 << 20, &lease);
    shm_lease_release(&a.thread, lease); /* free */
    for (int look = 0; look < 2; look++) {
        idle.looked_ns = 1; /* long ago */
        shm_arena_idle(&a.thread, &idle, true);
        CHECK_EQ(world_count(&w).leases, 2); /* it has taken some since */
        CHECK(pages_of_file(&w) > before);
        take(&a, 3 << 20, &lease);
        shm_lease_release(&a.thread, lease);
    }
    idle.looked_ns = 1;
    shm_arena_idle(&a.thread, &idle, true);
    idle.looked_ns = 1;
    shm_arena_idle(&a.thread, &idle, false); /* the warm one goes, another keeps */
    CHECK_EQ(world_count(&w).leases, 1);
    CHECK(pages_of_file(&w) > before);
    for (int look = 0; look < 2; look++) {
        idle.looked_ns = 1;
        shm_arena_idle(&a.thread, &idle, true);
    }
    CHECK_EQ(pages_of_file(&w), before);
    CHECK_EQ(bytes_of(&a, kept)[4999], 0x5A);
    shm_lease_release(&a.thread, kept);
    forget_idle(&idle);
    actor_leave(&a);
    world_close(&w);
}

static void large_block_stays_warm_with_who_took_it_and_is_found_again(void)
{
    struct world w;
    struct actor sender, receiver;
    shm_lease_index lease, other;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &sender);
    actor_join(&w, &receiver);
    take(&sender, 1 << 20, &lease);
    uint32_t block = shm_lease_block(&w.segment, lease);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(shm_block_hold(&receiver.thread, block, &other));
        shm_lease_recycle(&sender.thread, lease);
        shm_lease_recycle(&receiver.thread, other); /* the last to let it go, and yet not his */
        CHECK_EQ(world_count(&w).leases, 0);
        shm_lease_index elsewhere;
        take(&receiver, 5000, &elsewhere);
        take(&sender, 1 << 20, &lease);
        CHECK_EQ(shm_lease_block(&w.segment, lease), block);
        shm_lease_release(&receiver.thread, elsewhere);
    }
    shm_lease_recycle(&sender.thread, lease);
    CHECK_EQ(world_count(&w).leases, 1);
    shm_warm_drop(&sender.thread);
    actor_leave(&sender);
    actor_leave(&receiver);
    world_close(&w);
}

static void large_blocks_are_not_kept_warm_while_others_may_be_refused(void)
{
    struct world w;
    struct actor a, b;
    shm_lease_index mine, theirs[5];
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    uint64_t part = WORLD_SMALL / 16;
    take(&a, 3 * part, &mine);
    shm_lease_recycle(&a.thread, mine);
    for (int i = 0; i < 3; i++)
        take(&b, 4 * part, &theirs[i]);
    CHECK_EQ(shm_block_take(&b.thread, 4 * part, &theirs[3]), SHM_NO_MEMORY);
    take(&a, 3 * part, &mine);
    shm_lease_recycle(&a.thread, mine);
    take(&b, 4 * part, &theirs[3]);
    for (int i = 0; i < 4; i++)
        shm_lease_release(&b.thread, theirs[i]);
    actor_leave(&a);
    actor_leave(&b);
    world_close(&w);
}

/* Every block of the least class is taken, and it may not grow: they are not looked at again for each that is wanted. */
static void full_class_is_passed_by_until_one_of_its_blocks_is_released(void)
{
    struct world w;
    struct actor a;
    shm_lease_index mine, next, again;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    take(&a, 1, &mine);
    uint32_t ready, most = w.segment.tables[SHM_TABLE_BLOCKS].max_items;
    while ((ready = shm_pool_ready(&w.segment, SHM_TABLE_BLOCKS)) < most)
        CHECK_OK(shm_pool_grow(&w.segment, SHM_TABLE_BLOCKS, ready));
    for (uint32_t i = 0; i < most; i++) /* somebody's, as far as anybody can see, and without pages */
        if (i != (shm_lease_block(&w.segment, mine) & 0xFFFFFF))
            atomic_store(&shm_block_at(&w.segment, i)->word, shm_word_make(1, SHM_NOBODY, SHM_BLOCK_LIVE));
    take(&a, 1, &next);
    CHECK_EQ(shm_lease_block(&w.segment, next) >> 24, 1);
    atomic_store(&shm_block_at(&w.segment, 7)->word,
                 0); /* free, but nobody says so: whoever looks finds it */
    shm_lease_recycle(&a.thread, next);
    take(&a, 1, &again);
    CHECK_EQ(again, next); /* and what was used instead is found warm */
    take(&a, 1, &next);
    CHECK_EQ(shm_lease_block(&w.segment, next) >> 24, 1);
    shm_lease_release(&a.thread, next);
    shm_lease_release(&a.thread, mine);
    take(&a, 1, &mine);
    CHECK_EQ(shm_lease_block(&w.segment, mine) >> 24, 0);
    shm_lease_release(&a.thread, mine);
    shm_lease_release(&a.thread, again);
    for (uint32_t i = 0; i < most; i++)
        atomic_store(&shm_block_at(&w.segment, i)->word, 0);
    actor_leave(&a);
    world_close(&w);
}

static void what_an_idle_thread_has_seen_of_a_class_stays_when_another_grows(void)
{
    struct world w;
    struct actor a;
    struct shm_idle idle = {0};
    shm_lease_index small, large;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    take(&a, 5000, &large);
    uint32_t block = shm_lease_block(&w.segment, large), ready;
    shm_lease_release(&a.thread, large);
    idle.looked_ns = 1;
    shm_arena_idle(&a.thread, &idle, true);
    take(&a, 1, &small);
    while ((ready = shm_pool_ready(&w.segment, SHM_TABLE_BLOCKS)) < 1000)
        CHECK_OK(shm_pool_grow(&w.segment, SHM_TABLE_BLOCKS, ready));
    CHECK(atomic_load(&shm_block_at(&w.segment, block)->reserved_bytes) > 0);
    idle.looked_ns = 1;
    shm_arena_idle(&a.thread, &idle, true);
    CHECK_EQ(atomic_load(&shm_block_at(&w.segment, block)->reserved_bytes), 0);
    shm_lease_release(&a.thread, small);
    forget_idle(&idle);
    actor_leave(&a);
    world_close(&w);
}

int main(void)
{
    RUN(full_class_is_passed_by_until_one_of_its_blocks_is_released);
    RUN(what_an_idle_thread_has_seen_of_a_class_stays_when_another_grows);
    RUN(pages_of_who_died_growing_or_shrinking_are_found_again);
    RUN(free_blocks_of_an_idle_system_give_their_pages_back);
    RUN(large_block_stays_warm_with_who_took_it_and_is_found_again);
    RUN(large_blocks_are_not_kept_warm_while_others_may_be_refused);
    RUN(holders_are_counted_when_two_threads_of_the_dead_were_at_one_block);
    RUN(lease_of_one_who_leaves_while_its_block_is_locked_comes_back_later);
    RUN(mailbox_of_one_who_leaves_while_it_is_locked_is_closed_later);
    RUN(block_lives_as_long_as_somebody_holds_it);
    RUN(sizes_get_the_class_that_fits);
    RUN(limit_is_never_passed_and_memory_is_usable_afterwards);
    RUN(recycled_block_stays_warm_until_it_is_dropped_or_memory_is_short);
    RUN(lease_flies_lands_once_and_returns);
    RUN(dropped_reference_releases_what_flies_and_nothing_else);
    RUN(leases_of_the_dead_come_back_and_those_given_away_stay);
    RUN(concurrent_holders_leave_counters_at_their_baseline);
    RUN(lock_of_a_dead_holder_is_mended_by_whoever_needs_the_block);
    RUN(handles_inside_blocks_go_with_the_outermost);
    return 0;
}
