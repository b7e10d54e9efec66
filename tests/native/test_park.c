/* Waiting: who sleeps is woken by what concerns it, in order, never early, and never only by its slice. */
#include "world.h"

struct scene {
    struct world w;
    struct actor main;
    struct shm_box box, second;
    _Atomic uint32_t ready, done;
    _Atomic uint64_t order[16];
    uint64_t rounds;
};

static void open_scene(struct scene *s, uint32_t capacity)
{
    memset(s, 0, sizeof *s);
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->main);
    box_make(&s->main, &s->box, SHM_BOX_SHARED, capacity);
}

static void close_scene(struct scene *s)
{
    shm_box_release(&s->main.thread, &s->box);
    actor_leave(&s->main);
    world_close(&s->w);
}

static void until(_Atomic uint32_t *count, uint32_t value)
{
    while (atomic_load(count) < value)
        shm_clock_sleep(20000);
}

/* So many threads sleep, or are about to. */
static void until_parked(struct scene *s, uint32_t count)
{
    while (world_count(&s->w).armed < count)
        shm_clock_sleep(20000);
    shm_clock_sleep(2 * MS); /* nothing depends on it: it makes the interesting case the likely one */
}

struct helper {
    struct actor a;
    struct shm_box box;
};

static void helper_join(struct scene *s, struct helper *h)
{
    actor_join(&s->w, &h->a);
    box_open(&h->a, &h->box, &s->box);
}

static void helper_leave(struct helper *h)
{
    shm_box_release(&h->a.thread, &h->box);
    actor_leave(&h->a);
}

/* ---- ping-pong --------------------------------------------------------------------------------------------- */

static void ping_or_pong(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    struct shm_box other;
    uint64_t number;
    helper_join(s, &h);
    box_open(&h.a, &other, &s->second);
    h.a.thread.may_spin = index < 2; /* two that spin, two that only sleep */
    for (uint64_t i = 0; i < s->rounds; i++) {
        if (index % 2 == 0) {
            CHECK_OK(box_send(&h.a, &h.box, 0, i, SHM_FOREVER));
            CHECK_OK(box_receive(&h.a, &other, NULL, &number, SHM_FOREVER));
        } else {
            CHECK_OK(box_receive(&h.a, &h.box, NULL, &number, SHM_FOREVER));
            CHECK_OK(box_send(&h.a, &other, 0, number, SHM_FOREVER));
        }
    }
    shm_box_release(&h.a.thread, &other);
    helper_leave(&h);
}

static void no_wake_is_lost_between_senders_and_receivers(void)
{
    struct scene s;
    open_scene(&s, 1);
    box_make(&s.main, &s.second, SHM_BOX_SHARED, 1);
    s.rounds = 3000;
    check_threads(4, ping_or_pong, &s);
    shm_box_release(&s.main.thread, &s.second);
    close_scene(&s);
}

/* ---- deadlines --------------------------------------------------------------------------------------------- */

static void timeout_is_never_early(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s, 1);
    struct shm_filter filter = by_tag(9);
    for (int spins = 0; spins < 2; spins++) {
        s.main.thread.may_spin = spins;
        for (uint64_t ns = 0; ns < 700 * MS;
             ns = ns * 8 + 10000) { /* 0 to 600 ms: within, and beyond, a slice */
            uint64_t deadline = shm_clock_ns() + ns;
            CHECK_EQ(box_receive(&s.main, &s.box, spins ? NULL : &filter, &number, deadline), SHM_TIMEOUT);
            CHECK(shm_clock_ns() >= deadline);
        }
        CHECK_OK(box_send(&s.main, &s.box, 0, 1, 0));
        uint64_t deadline = shm_clock_ns() + 3 * MS;
        CHECK_EQ(box_send(&s.main, &s.box, 0, 1, deadline), SHM_TIMEOUT);
        CHECK(shm_clock_ns() >= deadline);
        deadline = shm_clock_ns() + 3 * MS;
        CHECK_EQ(box_receive(&s.main, &s.box, &filter, &number, deadline),
                 SHM_STARVED); /* the mailbox is full */
        CHECK_OK(box_receive(&s.main, &s.box, NULL, &number, 0));
        CHECK_EQ(box_receive(&s.main, &s.box, NULL, &number, 0), SHM_EMPTY);
        CHECK_EQ(box_receive(&s.main, &s.box, NULL, &number, 1), SHM_TIMEOUT);
    }
    close_scene(&s);
}

static int interrupt(struct shm_thread *self)
{
    (void)self;
    return 1;
}

static void interrupted_wait_takes_nothing(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s, 4);
    s.main.thread.interrupted = interrupt;
    CHECK_EQ(box_receive(&s.main, &s.box, NULL, &number, soon(60000)), SHM_INTERRUPTED);
    CHECK_OK(box_send(&s.main, &s.box, 0, 7, 0));
    CHECK_OK(
        box_receive(&s.main, &s.box, NULL, &number, soon(60000))); /* what is there is taken all the same */
    CHECK_EQ(number, 7);
    close_scene(&s);
}

/* The first of two is called away by a signal; while its handler runs the condition comes true. */
struct called_away {
    struct scene *s;
    struct actor first, second;
    struct shm_box firsts, seconds;
    bool sends;
};

static struct called_away *called_away;

/* The second parks, and stays where it is, just before its semaphore. */
static void second_parks(void *argument)
{
    struct called_away *c = argument;
    uint64_t number;
    c->sends ? box_send(&c->second, &c->seconds, 0, 2, SHM_FOREVER)
             : box_receive(&c->second, &c->seconds, NULL, &number, SHM_FOREVER);
}

static int be_called_away(struct shm_thread *self)
{
    struct called_away *c = called_away;
    uint64_t number;
    (void)self;
    CHECK_EQ(shm_word_state(atomic_load(&c->first.thread.at->word)), SHM_PLACE_IDLE); /* it gave way before */
    world_arm("wait_park", 1);
    CHECK(world_dies(second_parks, c));
    CHECK_EQ(shm_word_state(atomic_load(&c->second.thread.at->word)), SHM_PLACE_ARMED);
    if (c->sends)
        CHECK_OK(box_receive(&c->s->main, &c->s->box, NULL, &number, 0));
    else
        CHECK_OK(box_send(&c->s->main, &c->s->box, 0, 1, 0));
    return 1;
}

static void who_is_called_away_does_not_keep_the_wake(void)
{
    for (int sends = 0; sends < 2; sends++) {
        struct scene s;
        struct called_away c = {.s = &s, .sends = sends};
        uint64_t number;
        called_away = &c;
        open_scene(&s, 1);
        actor_join(&s.w, &c.first);
        actor_join(&s.w, &c.second);
        box_open(&c.first, &c.firsts, &s.box);
        box_open(&c.second, &c.seconds, &s.box);
        c.first.thread.interrupted = be_called_away;
        if (sends) {
            CHECK_OK(box_send(&s.main, &s.box, 0, 0, 0));
            CHECK_EQ(box_send(&c.first, &c.firsts, 0, 1, SHM_FOREVER), SHM_INTERRUPTED);
        } else {
            CHECK_EQ(box_receive(&c.first, &c.firsts, NULL, &number, SHM_FOREVER), SHM_INTERRUPTED);
        }
        CHECK_EQ(shm_word_state(atomic_load(&c.second.thread.at->word)), SHM_PLACE_NOTIFIED);
        uint32_t slot = c.second.member.slot;
        actor_die(&s.w, &c.second);
        CHECK(shm_reap(&s.main.thread, slot));
        shm_box_release(&c.first.thread, &c.firsts);
        actor_leave(&c.first);
        close_scene(&s);
    }
}

/* A sender is stopped between claim and publish. Who waits behind it sleeps, filter or not. */
static void stop_there(void *argument)
{
    struct called_away *c = argument;
    box_send(&c->second, &c->seconds, 0, 1, 0);
}

static void wait_behind_the_stopped(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    uint64_t number;
    struct shm_filter filter = by_tag((uint64_t)index);
    if (index == 0) {
        until_parked(s, 2);
        shm_kill_point_disarm();
        CHECK_OK(box_send(&s->main, &s->box, 1, 1, 0));
        shm_clock_sleep(100 * MS);
        CHECK(shm_kill_point_passed("wake_notify") < 100); /* they do not wake each other over and over */
        uint32_t slot = called_away->second.member.slot;
        actor_die(&s->w, &called_away->second);
        CHECK(shm_reap(&s->main.thread, slot));
        CHECK_OK(box_send(&s->main, &s->box, 2, 2, 0));
        return;
    }
    helper_join(s, &h);
    CHECK_OK(box_receive(&h.a, &h.box, &filter, &number, SHM_FOREVER));
    CHECK_EQ(number, index);
    helper_leave(&h);
}

static void filtered_receivers_sleep_while_a_sender_is_stopped(void)
{
    struct scene s;
    struct called_away c = {.s = &s};
    called_away = &c;
    open_scene(&s, 8);
    actor_join(&s.w, &c.second);
    box_open(&c.second, &c.seconds, &s.box);
    CHECK_OK(box_send(&s.main, &s.box, 7, 7, 0)); /* for nobody: it is set aside */
    world_arm("send_publish", 1);
    CHECK(world_dies(stop_there, &c));
    check_threads(3, wait_behind_the_stopped, &s);
    uint64_t number;
    CHECK_OK(box_receive(&s.main, &s.box, NULL, &number, 0));
    CHECK_EQ(number, 7);
    close_scene(&s);
}

/* ---- order ------------------------------------------------------------------------------------------------- */

static void send_in_turn(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    uint64_t number;
    if (index == 0) { /* one receiver, after all have queued up */
        until(&s->ready, 5);
        until_parked(s, 5);
        for (int i = 0; i < 6; i++) {
            CHECK_OK(box_receive(&s->main, &s->box, NULL, &number, SHM_FOREVER));
            atomic_store(&s->order[i], number);
            if (i < 5) /* the room is for the first in line, however fast another is */
                while (shm_ring_count(&s->box) == 0)
                    shm_clock_sleep(10000);
        }
        return;
    }
    helper_join(s, &h);
    until(&s->ready, (uint32_t)index - 1);
    until_parked(s, (uint32_t)index - 1);
    atomic_fetch_add(&s->ready, 1);
    CHECK_OK(box_send(&h.a, &h.box, 0, (uint64_t)index, SHM_FOREVER));
    until(&s->done, 0);
    helper_leave(&h);
}

static void senders_get_room_in_the_order_in_which_they_came(void)
{
    for (int round = 0; round < 5; round++) {
        struct scene s;
        open_scene(&s, 1);
        CHECK_OK(box_send(&s.main, &s.box, 0, 0, 0));
        check_threads(6, send_in_turn, &s);
        for (uint64_t i = 0; i < 6; i++)
            CHECK_EQ(atomic_load(&s.order[i]), i);
        close_scene(&s);
    }
}

/* ---- filters ----------------------------------------------------------------------------------------------- */

static void select_one(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    uint64_t number;
    if (index == 0) {
        until_parked(s, 3);
        for (uint64_t i = 0; i < 50; i++) {
            CHECK_OK(box_send(&s->main, &s->box, 100, i, 0)); /* for nobody */
            CHECK_EQ(atomic_load(&s->done), 0);
        }
        for (uint64_t tag = 3; tag >= 1; tag--)
            CHECK_OK(box_send(&s->main, &s->box, tag, tag, 0));
        return;
    }
    helper_join(s, &h);
    struct shm_filter filter = by_tag((uint64_t)index);
    CHECK_OK(box_receive(&h.a, &h.box, &filter, &number, SHM_FOREVER));
    CHECK_EQ(number, index);
    atomic_fetch_add(&s->done, 1);
    helper_leave(&h);
}

static void filtered_receiver_waits_for_its_own_message(void)
{
    for (int round = 0; round < 5; round++) {
        struct scene s;
        uint64_t number;
        open_scene(&s, 64);
        check_threads(4, select_one, &s);
        for (uint64_t i = 0; i < 50; i++) {
            CHECK_OK(box_receive(&s.main, &s.box, NULL, &number, 0));
            CHECK_EQ(number, i);
        }
        close_scene(&s);
    }
}

static void look_elsewhere_first(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    struct shm_box other;
    uint64_t number;
    if (index == 0) {
        until_parked(s, 1);
        CHECK_OK(box_send(&s->main, &s->box, 0, 1, 0));
        return;
    }
    helper_join(s, &h);
    box_open(&h.a, &other, &s->second);
    struct shm_filter filter = by_tag(9);
    CHECK_EQ(box_receive(&h.a, &other, &filter, &number, 0), SHM_EMPTY);
    CHECK_OK(box_receive(&h.a, &h.box, NULL, &number, SHM_FOREVER));
    shm_box_release(&h.a.thread, &other);
    helper_leave(&h);
}

/* How far a receive has looked in one mailbox says nothing about the next. */
static void receiver_is_woken_after_a_selective_look_into_a_longer_mailbox(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s, 4);
    box_make(&s.main, &s.second, SHM_BOX_SHARED, 4);
    for (uint64_t i = 0; i < 100; i++) {
        CHECK_OK(box_send(&s.main, &s.second, 0, i, 0));
        CHECK_OK(box_receive(&s.main, &s.second, NULL, &number, 0));
    }
    CHECK_OK(box_send(&s.main, &s.second, 0, 0, 0));
    check_threads(2, look_elsewhere_first, &s);
    shm_box_release(&s.main.thread, &s.second);
    close_scene(&s);
}

/* ---- ends -------------------------------------------------------------------------------------------------- */

static void wait_for_the_end(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    uint64_t number;
    if (index == 0) {
        until_parked(s, 4);
        shm_box_close(&s->main.thread, &s->box);
        return;
    }
    helper_join(s, &h);
    struct shm_filter filter = by_tag(9);
    filter.kinds = 1 << SHM_KIND_TIMER; /* for which a full mailbox has room */
    if (index < 3)
        CHECK_EQ(box_send(&h.a, &h.box, 0, 1, SHM_FOREVER), SHM_CLOSED);
    else
        CHECK_EQ(box_receive(&h.a, &h.box, &filter, &number, SHM_FOREVER), SHM_CLOSED);
    helper_leave(&h);
}

static void close_ends_every_wait(void)
{
    struct scene s;
    open_scene(&s, 1);
    CHECK_OK(box_send(&s.main, &s.box, 0, 0, 0));
    check_threads(5, wait_for_the_end, &s);
    close_scene(&s);
}

static void wait_behind_the_dead(void *argument, int index)
{
    struct scene *s = argument;
    struct helper h;
    uint64_t number;
    if (index > 0)
        until(&s->ready, 1);
    helper_join(s, &h);
    uint32_t slot = h.a.member.slot;
    if (index == 0) { /* the first in line dies there; who waits behind it reaps it */
        h.a.thread.interrupted = NULL;
        world_arm("wait_park", 1);
        volatile bool died = true;
        world_mortal = true;
        if (sigsetjmp(world_death, 0) == 0) {
            box_send(&h.a, &h.box, 0, 1, SHM_FOREVER);
            died = false;
        }
        world_mortal = false;
        CHECK(died);
        actor_die(&s->w, &h.a);
        atomic_store(&s->ready, slot);
        return;
    }
    if (index == 1) {
        CHECK_OK(box_send(&h.a, &h.box, 0, 2, SHM_FOREVER));
    } else {
        until_parked(s, 2);
        CHECK_OK(box_receive(&h.a, &h.box, NULL, &number, SHM_FOREVER));
        CHECK_EQ(number, 0);
        CHECK_OK(box_receive(&h.a, &h.box, NULL, &number, SHM_FOREVER));
        CHECK_EQ(number, 2);
    }
    helper_leave(&h);
}

static void dead_first_in_line_is_reaped_by_those_behind_it(void)
{
    struct scene s;
    open_scene(&s, 1);
    CHECK_OK(box_send(&s.main, &s.box, 0, 0, 0));
    check_threads(3, wait_behind_the_dead, &s);
    close_scene(&s);
}

/* ---- tokens that nobody has posted ------------------------------------------------------------------------- */

enum { FALSE_TOKENS = 200000 };

static int attempt_with_false_tokens(struct shm_thread *self, void *attempts)
{
    if (++*(uint32_t *)attempts == 2) /* the place is armed */
        for (int i = 0; i < FALSE_TOKENS; i++)
            CHECK_OK(sem_post(&self->at->semaphore));
    return SHM_EMPTY;
}

static bool never_ready(struct shm_thread *self, void *attempts)
{
    (void)self;
    (void)attempts;
    return false;
}

static void wait_does_not_use_up_tokens_that_a_hostile_member_wrote(void)
{
    struct scene s;
    open_scene(&s, 4);
    uint32_t attempts = 0;
    struct shm_waitable receivers = shm_ring_receivers(&s.box);
    struct shm_wait wait = {.waitables = &receivers,
                            .count = 1,
                            .deadline_ns = soon(300),
                            .attempt = attempt_with_false_tokens,
                            .ready = never_ready,
                            .context = &attempts};
    s.main.thread.may_spin = false;
    CHECK_EQ(shm_wait(&s.main.thread, &wait), SHM_TIMEOUT);
    CHECK(shm_clock_ns() >= wait.deadline_ns);
    CHECK(attempts < FALSE_TOKENS / 10);
    close_scene(&s);
}

int main(void)
{
    RUN(wait_does_not_use_up_tokens_that_a_hostile_member_wrote);
    RUN(no_wake_is_lost_between_senders_and_receivers);
    RUN(timeout_is_never_early);
    RUN(interrupted_wait_takes_nothing);
    RUN(who_is_called_away_does_not_keep_the_wake);
    RUN(filtered_receivers_sleep_while_a_sender_is_stopped);
    RUN(senders_get_room_in_the_order_in_which_they_came);
    RUN(filtered_receiver_waits_for_its_own_message);
    RUN(close_ends_every_wait);
    RUN(dead_first_in_line_is_reaped_by_those_behind_it);
    RUN(receiver_is_woken_after_a_selective_look_into_a_longer_mailbox);
    return 0;
}
