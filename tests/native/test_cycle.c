/* Deadlock: a circle of calls that wait for ever is found by the one that closed it, and nothing else is. */
#include "world.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "transport/cycle.h"
#include "transport/look.h"

enum { CALLERS = 3 };

struct scene {
    struct world w;
    struct actor actors[CALLERS];
};

static void open_scene(struct scene *s)
{
    world_open(&s->w, WORLD_SMALL);
    for (int i = 0; i < CALLERS; i++) {
        actor_join(&s->w, &s->actors[i]);
        atomic_store(&s->actors[i].member.record->loop, s->actors[i].thread.place + 1);
    }
}

static void close_scene(struct scene *s)
{
    for (int i = CALLERS - 1; i >= 0; i--)
        actor_leave(&s->actors[i]);
    world_close(&s->w);
}

/* One call that waits in a thread of its own. */
struct caller {
    struct actor *actor;
    shm_call_id call;
    shm_member_id to;
    uint64_t deadline_ns;
    int status;
    shm_member_id cycle[CALLERS];
    uint32_t cycle_count;
    pthread_t thread;
};

static void *wait_for_reply(void *argument)
{
    struct caller *c = argument;
    c->status = shm_call_wait(&c->actor->thread, c->call, c->to, c->deadline_ns);
    c->cycle_count = c->status == SHM_DEADLOCK ? c->actor->thread.cycle_count : 0;
    for (uint32_t i = 0; i < c->cycle_count && i < CALLERS; i++)
        c->cycle[i] = ((shm_member_id *)c->actor->thread.scratch)[i];
    /* Closed as the caller does: by a cancel, unless the reply was first. */
    if (!shm_call_cancel(&c->actor->thread, c->call))
        shm_call_free(&c->actor->thread, c->call);
    return NULL;
}

static bool is_parked(const struct actor *a)
{
    return shm_word_state(atomic_load(&a->thread.at->word)) == SHM_PLACE_ARMED;
}

static void start_call(struct scene *s, struct caller *c, int from, int to, uint32_t flags,
                       uint64_t deadline_ns)
{
    *c = (struct caller){
        .actor = &s->actors[from], .to = actor_id(&s->actors[to]), .deadline_ns = deadline_ns};
    CHECK_OK(shm_call_open(&c->actor->thread, c->to, flags, &c->call));
    CHECK_EQ(pthread_create(&c->thread, NULL, wait_for_reply, c), 0);
    while (!is_parked(c->actor))
        sched_yield();
}

static void circle_of_three_ends_by_the_last_call(void)
{
    struct scene s;
    struct caller c[CALLERS];
    open_scene(&s);
    uint32_t flags = SHM_CELL_OWN | SHM_CELL_METHOD;
    for (int i = 0; i < CALLERS; i++)
        start_call(&s, &c[i], i, (i + 1) % CALLERS, flags, SHM_FOREVER);
    pthread_join(c[2].thread, NULL);
    CHECK_EQ(c[2].status, SHM_DEADLOCK);
    CHECK_EQ(c[2].cycle_count, CALLERS);
    CHECK_EQ(c[2].cycle[0], actor_id(&s.actors[2]));
    CHECK_EQ(c[2].cycle[1], actor_id(&s.actors[0]));
    CHECK_EQ(c[2].cycle[2], actor_id(&s.actors[1]));
    /* The others go on: what they wait for is answered, the innermost first. */
    uint64_t number = 7;
    CHECK_OK(shm_call_reply(&s.actors[2].thread, c[1].call, &number, sizeof number, 3, 0));
    pthread_join(c[1].thread, NULL);
    CHECK_OK(c[1].status);
    CHECK_OK(shm_call_reply(&s.actors[1].thread, c[0].call, &number, sizeof number, 3, 0));
    pthread_join(c[0].thread, NULL);
    CHECK_OK(c[0].status);
    close_scene(&s);
}

/* Runs the search by hand, for a call whose thread is parked. */
static uint32_t find(struct caller *c)
{
    shm_member_id members[8];
    return shm_cycle_find(&c->actor->thread, c->call, members, 8);
}

static void finish(struct caller *c, struct actor *server)
{
    uint64_t number = 1;
    CHECK_OK(shm_call_reply(&server->thread, c->call, &number, sizeof number, 3, 0));
    pthread_join(c->thread, NULL);
    CHECK_OK(c->status);
}

static void end_as_deadlock(struct caller *c)
{
    pthread_join(c->thread, NULL);
    CHECK_EQ(c->status, SHM_DEADLOCK);
}

static _Thread_local bool others_seem_dead; /* to this thread: whoever waits may look at any time */

static bool seems_dead(struct shm_member *self, uint32_t slot)
{
    (void)self, (void)slot;
    return others_seem_dead;
}

/* A thread of another member parks where it is looked for, so the search is right whatever it finds. */
static void what_can_still_go_on_is_no_circle(void)
{
    struct scene s;
    struct caller a, b;
    struct actor other;
    open_scene(&s);
    actor_join(&s.w, &other);
    s.actors[1].member.is_dead = seems_dead;
    uint32_t method = SHM_CELL_OWN | SHM_CELL_METHOD;

    /* One of the calls has a deadline. */
    start_call(&s, &a, 0, 1, method, shm_clock_ns() + 60 * SHM_NS_PER_S);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&b), 0);
    CHECK_EQ(find(&a), 0);
    finish(&a, &s.actors[1]);
    finish(&b, &s.actors[0]);

    /* The one that is asked answers in another thread. */
    atomic_store(&s.actors[0].member.record->loop, 0);
    start_call(&s, &a, 0, 1, method, SHM_FOREVER);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&b), 0); /* any thread of that process may answer */
    finish(&a, &s.actors[1]);
    finish(&b, &s.actors[0]);
    atomic_store(&s.actors[0].member.record->loop, other.thread.place + 1); /* not a thread of that member */
    start_call(&s, &a, 0, 1, method, SHM_FOREVER);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&b), 0);
    finish(&a, &s.actors[1]);
    finish(&b, &s.actors[0]);
    atomic_store(&s.actors[0].member.record->loop, s.actors[0].thread.place + 1);

    /* Whoever takes it may answer: no method call, not to a mailbox of its own. */
    start_call(&s, &a, 0, 1, 0, SHM_FOREVER);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&b), 0);
    finish(&a, &s.actors[1]);
    finish(&b, &s.actors[0]);

    /* Alone, but in another wait than this one; and then in this one. */
    atomic_store(&s.actors[1].member.record->loop, 0);
    start_call(&s, &a, 0, 1, SHM_CELL_OWN, SHM_FOREVER);
    shm_member_is_alone(&s.actors[1].thread);
    atomic_fetch_add(&s.actors[1].member.record->alone, UINT64_C(1) << 20);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&b), 0);
    finish(&a, &s.actors[1]);
    finish(&b, &s.actors[0]);
    start_call(&s, &a, 0, 1, SHM_CELL_OWN, SHM_FOREVER);
    shm_member_is_alone(&s.actors[1].thread);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    end_as_deadlock(&b);
    finish(&a, &s.actors[1]);
    atomic_store(&s.actors[1].member.record->loop, s.actors[1].thread.place + 1);

    /* Dead: its callers get PEER_DEAD, not this. */
    start_call(&s, &a, 0, 1, method, SHM_FOREVER);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    others_seem_dead = true;
    CHECK_EQ(find(&b), 0);
    others_seem_dead = false;
    CHECK_EQ(find(&a), 0); /* it parked first: the other is the one to break it */
    end_as_deadlock(&b);
    finish(&a, &s.actors[1]);

    actor_leave(&other);
    close_scene(&s);
}

static void bystander_who_waits_for_a_circle_goes_on_waiting(void)
{
    struct scene s;
    struct caller a, b, c;
    open_scene(&s);
    uint32_t method = SHM_CELL_OWN | SHM_CELL_METHOD;
    start_call(&s, &a, 0, 1, method, SHM_FOREVER);
    start_call(&s, &b, 1, 0, method, SHM_FOREVER);
    start_call(&s, &c, 2, 0, method, SHM_FOREVER);
    CHECK_EQ(find(&c), 0);
    pthread_join(b.thread, NULL);
    CHECK_EQ(b.status, SHM_DEADLOCK);
    finish(&a, &s.actors[1]);
    finish(&c, &s.actors[0]);
    close_scene(&s);
}

static void image_shows_what_the_segment_shows(void)
{
    struct scene s;
    struct caller a;
    struct shm_segment image;
    struct shm_activity seen;
    struct shm_box box;
    open_scene(&s);
    box_make(&s.actors[0], &box, SHM_BOX_SHARED, 16);
    for (uint64_t i = 0; i < 3; i++)
        CHECK_OK(box_send(&s.actors[0], &box, 1, i, 0));
    shm_serving_begin(&s.actors[1].thread, 5, "a name that is much longer than thirty-one bytes", 48);
    start_call(&s, &a, 0, 1, 0, SHM_FOREVER);
    CHECK_OK(shm_look_open(&image, s.w.segment.fd));
    CHECK(shm_look_place(&image, s.actors[0].thread.place, s.actors[0].member.slot, &seen));
    CHECK_EQ(seen.wait_kind, SHM_WAIT_CELL);
    CHECK_EQ(seen.waits_until, SHM_FOREVER);
    CHECK(seen.waits_since > 0 && seen.waits_since <= shm_clock_ns());
    CHECK_EQ(shm_look_server(&image, seen.object), s.actors[1].member.slot);
    CHECK(shm_look_place(&image, s.actors[1].thread.place, s.actors[1].member.slot, &seen));
    CHECK_EQ(strcmp(seen.what, "a name that is much longer than"), 0);
    CHECK_EQ(seen.serving, 5);
    CHECK(!shm_look_place(&image, s.actors[1].thread.place, s.actors[0].member.slot, &seen));
    CHECK_EQ(shm_look_depth(shm_look_ring(&image, box.index)), 3);
    CHECK(!shm_look_ring(&image, box.index + 1));
    CHECK(!shm_look_ring(&image, UINT32_MAX));
    shm_look_close(&image);
    shm_serving_end(&s.actors[1].thread);
    CHECK(!shm_look_place(&s.w.segment, s.actors[1].thread.place, s.actors[1].member.slot, &seen));
    finish(&a, &s.actors[1]);
    shm_box_release(&s.actors[0].thread, &box);
    close_scene(&s);
}

/* Whatever the bytes are: an error, or an image within its bounds. */
static void image_of_garbage_is_refused_or_bounded(void)
{
    struct scene s;
    struct shm_segment image;
    struct shm_activity seen;
    open_scene(&s);
    uint64_t random = 88172645463325252;
    uint64_t tables = s.w.segment.header->tables[SHM_TABLE_LEASES].offset;
    unsigned char *saved = malloc(tables);
    memcpy(saved, s.w.segment.base, tables);
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < 40; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            uint64_t limit = round % 6 ? tables : SHM_PAGE_BYTES;
            s.w.segment.base[random % limit] = (unsigned char)(random >> 56);
        }
        if (shm_look_open(&image, s.w.segment.fd) == 0) {
            for (uint32_t p = 0; p < shm_pool_ready(&image, SHM_TABLE_PLACES); p++)
                for (uint32_t slot = 1; slot < 4; slot++)
                    if (shm_look_place(&image, p, slot, &seen))
                        CHECK(strlen(seen.what) <= SHM_WHAT_BYTES &&
                              shm_look_server(&image, seen.object) <= 64);
            for (uint32_t b = 0; b < 100; b++)
                if (shm_look_ring(&image, b))
                    shm_look_depth(shm_look_ring(&image, b));
            shm_look_close(&image);
        }
        memcpy(s.w.segment.base, saved, tables);
    }
    free(saved);
    int empty = memfd_create("shmipc-test", MFD_CLOEXEC);
    CHECK_EQ(shm_look_open(&image, empty), SHM_BUSY);
    CHECK_EQ(ftruncate(empty, 8192), 0);
    CHECK_EQ(shm_look_open(&image, empty), SHM_BUSY);
    close(empty);
    close_scene(&s);
}

int main(void)
{
    RUN(circle_of_three_ends_by_the_last_call);
    RUN(what_can_still_go_on_is_no_circle);
    RUN(bystander_who_waits_for_a_circle_goes_on_waiting);
    RUN(image_shows_what_the_segment_shows);
    RUN(image_of_garbage_is_refused_or_bounded);
    return 0;
}
