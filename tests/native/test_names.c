/* Names: one owner each, gone with what they name. */
#include "world.h"

#include <sched.h>

static struct shm_named actor_named(const struct actor *a)
{
    return (struct shm_named){SHM_NAME_ACTOR, a->member.slot, actor_id(a)};
}

static int serve(struct actor *a, const char *name)
{
    struct shm_named named = actor_named(a);
    return shm_name_serve(&a->thread, name, &named);
}

static void name_has_one_owner_until_it_is_withdrawn(void)
{
    struct world w;
    struct actor a, b;
    struct shm_named found;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    CHECK_EQ(shm_name_lookup(&b.thread, "x", &found), SHM_NOT_FOUND);
    CHECK_OK(serve(&a, "x"));
    CHECK_EQ(serve(&b, "x"), SHM_NAME_TAKEN);
    CHECK_EQ(serve(&a, "x"), SHM_NAME_TAKEN);
    CHECK_OK(shm_name_lookup(&b.thread, "x", &found));
    CHECK_EQ(found.kind, SHM_NAME_ACTOR);
    CHECK_EQ(found.object, a.member.slot);
    CHECK_EQ(found.life, actor_id(&a));
    char name[SHM_NAME_BYTES];
    CHECK(shm_name_of(&b.thread, SHM_NAME_ACTOR, a.member.slot, actor_id(&a), name));
    CHECK_EQ(strcmp(name, "x"), 0);
    CHECK_EQ(shm_name_withdraw(&b.thread, "x"), SHM_REFUSED);
    CHECK_OK(shm_name_lookup(&b.thread, "x", &found));
    CHECK_OK(shm_name_withdraw(&a.thread, "x"));
    CHECK_EQ(shm_name_withdraw(&a.thread, "x"), SHM_NOT_FOUND);
    CHECK_OK(serve(&b, "x"));
    CHECK_OK(shm_name_lookup(&a.thread, "x", &found));
    CHECK_EQ(found.life, actor_id(&b));
    actor_leave(&a);
    actor_leave(&b);
    world_close(&w);
}

static void names_are_1_to_64_bytes_and_compared_whole(void)
{
    struct world w;
    struct actor a;
    struct shm_named found;
    char name[67];
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    CHECK_EQ(serve(&a, ""), SHM_INVALID);
    memset(name, 'n', sizeof name);
    name[65] = 0;
    CHECK_EQ(serve(&a, name), SHM_INVALID);
    name[64] = 0;
    CHECK_OK(serve(&a, name));
    CHECK_OK(shm_name_lookup(&a.thread, name, &found));
    name[63] = 0;
    CHECK_EQ(shm_name_lookup(&a.thread, name, &found), SHM_NOT_FOUND);
    CHECK_OK(serve(&a, name));
    CHECK_EQ(world_count(&w).names, 2);
    actor_leave(&a);
    world_close(&w);
}

static void name_of_the_dead_is_free_at_once_and_that_of_a_mailbox_goes_with_it(void)
{
    struct world w;
    struct actor a, b;
    struct shm_box box, theirs;
    struct shm_named found;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &b);
    actor_join(&w, &a);
    uint32_t slot = a.member.slot;
    box_make(&a, &box, SHM_BOX_SHARED, 4);
    box_open(&b, &theirs, &box);
    struct shm_named named = {SHM_NAME_BOX, box.index, box.count};
    CHECK_OK(shm_name_serve(&a.thread, "box", &named));
    CHECK_OK(serve(&a, "actor"));
    actor_die(&w, &a);
    CHECK(shm_reap(&b.thread, slot));
    CHECK_EQ(shm_name_lookup(&b.thread, "actor", &found), SHM_NOT_FOUND);
    CHECK_OK(serve(&b, "actor"));
    CHECK_OK(shm_name_lookup(&b.thread, "box", &found));
    CHECK_EQ(found.object, box.index);
    shm_box_release(&b.thread, &theirs); /* the last who had it open */
    CHECK_EQ(shm_name_lookup(&b.thread, "box", &found), SHM_NOT_FOUND);
    actor_leave(&b);
    world_close(&w);
}

static void many_names_are_found(void)
{
    struct world w;
    struct actor a;
    struct shm_named found;
    char name[20];
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 200; i++) {
            snprintf(name, sizeof name, "name-%d", i);
            CHECK_OK(serve(&a, name));
        }
        for (int i = 0; i < 200; i++) {
            snprintf(name, sizeof name, "name-%d", i);
            CHECK_OK(shm_name_lookup(&a.thread, name, &found));
            CHECK_OK(shm_name_withdraw(&a.thread, name));
        }
        CHECK_EQ(world_count(&w).names, 0);
    }
    actor_leave(&a);
    world_close(&w);
}

/* ---- rivals ------------------------------------------------------------------------------------------------ */

enum { RIVALS = 4, ROUNDS = 1000 };

struct contest {
    struct world w;
    _Atomic uint32_t arrived, winners;
    _Atomic uint64_t winner;
};

/* Everybody is here; the last who comes starts the next round. */
static void meet(struct contest *c, uint32_t *phase)
{
    *phase += RIVALS;
    atomic_fetch_add(&c->arrived, 1);
    while (atomic_load(&c->arrived) < *phase)
        sched_yield();
}

static void strive(void *argument, int index)
{
    struct contest *c = argument;
    struct actor a;
    struct shm_named found = {0};
    uint32_t phase = 0;
    char name[SHM_NAME_BYTES], own[20];
    actor_join(&c->w, &a);
    if (index == RIVALS) { /* looks on, and never sees half a name */
        while (atomic_load(&c->arrived) < 3 * RIVALS * ROUNDS) {
            if (shm_name_lookup(&a.thread, "prize-1", &found) == 0)
                CHECK_EQ(found.object, found.life & 0xFFFF);
            if (shm_name_of(&a.thread, SHM_NAME_ACTOR, found.object, found.life, name))
                CHECK(strncmp(name, "prize-", 6) == 0 || strncmp(name, "own-", 4) == 0);
            sched_yield();
        }
        actor_leave(&a);
        return;
    }
    for (int i = 0; i < ROUNDS; i++) {
        snprintf(name, sizeof name, "prize-%d", i % 3);
        snprintf(own, sizeof own, "own-%d-%d", index, i % 7);
        meet(c, &phase);
        if (i % 2)
            CHECK_OK(serve(&a, own)); /* so that the rivals' entries are in another order each time */
        int status = serve(&a, name);
        if (status == 0) {
            CHECK_EQ(atomic_fetch_add(&c->winners, 1), 0);
            atomic_store(&c->winner, actor_id(&a));
        } else {
            CHECK_EQ(status, SHM_NAME_TAKEN);
        }
        meet(c, &phase);
        CHECK_EQ(atomic_load(&c->winners), 1);
        CHECK_OK(shm_name_lookup(&a.thread, name, &found));
        CHECK_EQ(found.life, atomic_load(&c->winner));
        meet(c, &phase);
        if (i % 2)
            CHECK_OK(shm_name_withdraw(&a.thread, own));
        if (status == 0) {
            atomic_store(&c->winners, 0);
            CHECK_OK(shm_name_withdraw(&a.thread, name));
        }
    }
    actor_leave(&a);
}

static void one_of_the_rivals_for_a_name_wins(void)
{
    static struct contest c;
    world_open(&c.w, WORLD_SMALL);
    check_threads(RIVALS + 1, strive, &c);
    world_close(&c.w);
}

int main(void)
{
    RUN(name_has_one_owner_until_it_is_withdrawn);
    RUN(names_are_1_to_64_bytes_and_compared_whole);
    RUN(name_of_the_dead_is_free_at_once_and_that_of_a_mailbox_goes_with_it);
    RUN(many_names_are_found);
    RUN(one_of_the_rivals_for_a_name_wins);
    return 0;
}
