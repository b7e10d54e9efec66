/* Timers: the thread that fires their cells, while others set, receive and cancel. */
#include "world.h"

#include "transport/timer.h"

struct scene {
    struct world w;
    struct actor setter, other;
    struct shm_box box, others;
    struct shm_timers *timers;
};

static void open_scene(struct scene *s)
{
    int status;
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->setter);
    actor_join(&s->w, &s->other);
    box_make(&s->setter, &s->box, SHM_BOX_ACTOR, 4);
    box_open(&s->other, &s->others, &s->box);
    s->timers = shm_timers_start(&s->setter.member, &status);
    CHECK(s->timers != NULL);
}

static void close_scene(struct scene *s)
{
    shm_timers_stop(s->timers);
    shm_box_release(&s->other.thread, &s->others);
    actor_leave(&s->other);
    shm_box_close(&s->setter.thread, &s->box);
    shm_box_release(&s->setter.thread, &s->box);
    actor_leave(&s->setter);
    world_close(&s->w);
}

static uint64_t set(struct scene *s, uint64_t body, uint64_t delay_ns, uint64_t period_ns)
{
    struct shm_message message = message_of(1, &body);
    message.header = shm_header_make(SHM_KIND_TIMER, 1);
    int64_t number = shm_notice_set(&s->setter.thread, &s->box, &message, period_ns);
    CHECK(number > 0);
    CHECK_OK(shm_timer_schedule(s->timers, (uint64_t)number, shm_clock_ns() + delay_ns, period_ns));
    return (uint64_t)number;
}

static uint64_t receive(struct scene *s)
{
    uint64_t number;
    CHECK_OK(box_receive(&s->setter, &s->box, NULL, &number, soon(20000)));
    return number;
}

static void ticks_come_in_order_and_not_early(void)
{
    struct scene s;
    open_scene(&s);
    for (uint64_t i = 0; i < 4; i++) /* a full mailbox is no matter */
        CHECK_OK(box_send(&s.other, &s.others, 0, 1000 + i, 0));
    uint64_t started = shm_clock_ns();
    for (uint64_t i = 0; i < 50; i++) {
        uint64_t ms = i * 7 % 50;
        set(&s, ms, ms * MS, 0);
    }
    struct shm_filter ticks = by_tag(1);
    for (uint64_t ms = 0; ms < 50; ms++) {
        uint64_t number;
        CHECK_OK(box_receive(&s.setter, &s.box, &ticks, &number, soon(20000)));
        CHECK(shm_clock_ns() >= started + number * MS);
    }
    for (uint64_t i = 0; i < 4; i++)
        CHECK_EQ(receive(&s), 1000 + i);
    close_scene(&s);
}

static void late_periods_are_one_tick_and_cancelled_ones_none(void)
{
    struct scene s;
    uint64_t number;
    open_scene(&s);
    uint64_t timer = set(&s, 7, MS, MS);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(receive(&s), 7);
    shm_clock_sleep(20 * MS);
    CHECK_EQ(receive(&s), 7);
    CHECK(shm_notice_disarm(&s.setter.thread, timer));
    CHECK_EQ(box_receive(&s.setter, &s.box, NULL, &number, 0), SHM_EMPTY);
    for (int i = 0; i < 1000; i++) /* none is kept until it is due */
        CHECK(shm_notice_disarm(&s.setter.thread, set(&s, 8, 1000 * SHM_NS_PER_S, 0)));
    set(&s, 9, 0, 0);
    CHECK_EQ(receive(&s), 9);
    close_scene(&s);
}

struct racer {
    struct scene *s;
    _Atomic uint64_t received;
};

static void race(void *argument, int index)
{
    struct racer *r = argument;
    struct shm_message m;
    struct shm_filter any = SHM_FILTER_NONE;
    if (index == 0) {
        for (int i = 0; i < 300; i++) {
            uint64_t timer = set(r->s, 1, (uint64_t)(i % 3) * MS / 10, i % 2 ? 0 : MS / 10);
            shm_clock_sleep(MS / 5);
            if (i % 2 == 0)
                shm_notice_disarm(&r->s->setter.thread, timer);
        }
        atomic_fetch_add(&r->received, UINT64_C(1) << 32);
        return;
    }
    struct actor reader;
    struct shm_box box;
    actor_join(&r->s->w, &reader);
    box_open(&reader, &box, &r->s->box);
    while (atomic_load(&r->received) >> 32 == 0)
        if (shm_box_receive(&reader.thread, &box, &any, &m, soon(5)) == 0)
            atomic_fetch_add(&r->received, 1);
    shm_box_release(&reader.thread, &box);
    actor_leave(&reader);
}

static void ticks_are_set_cancelled_and_received_at_once(void)
{
    struct scene s;
    open_scene(&s);
    struct racer r = {.s = &s};
    check_threads(3, race, &r);
    CHECK((atomic_load(&r.received) & 0xFFFFFFFF) >= 140); /* those that came once, but the last ones */
    close_scene(&s);
}

int main(void)
{
    RUN(ticks_come_in_order_and_not_early);
    RUN(late_periods_are_one_tick_and_cancelled_ones_none);
    RUN(ticks_are_set_cancelled_and_received_at_once);
    return 0;
}
