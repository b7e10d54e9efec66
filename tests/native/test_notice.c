/* Exit notices: each death told once, after the last message of the dead, however full the mailbox. */
#include "world.h"

struct scene {
    struct world w;
    struct actor watcher, target, third;
    struct shm_box box, theirs, thirds;
    uint32_t slot;
    shm_member_id id;
};

static void target_joins(struct scene *s)
{
    actor_join(&s->w, &s->target);
    box_open(&s->target, &s->theirs, &s->box);
    s->slot = s->target.member.slot;
    s->id = actor_id(&s->target);
}

static void open_scene(struct scene *s, uint32_t capacity)
{
    world_open(&s->w, WORLD_SMALL);
    actor_join(&s->w, &s->watcher);
    actor_join(&s->w, &s->third);
    box_make(&s->watcher, &s->box, SHM_BOX_ACTOR, capacity);
    box_open(&s->third, &s->thirds, &s->box);
    target_joins(s);
}

static void target_dies(struct scene *s)
{
    actor_die(&s->w, &s->target);
    CHECK(shm_reap(&s->third.thread, s->slot));
}

static void close_scene(struct scene *s)
{
    CHECK_EQ(world_count(&s->w).notices, 0);
    shm_box_release(&s->third.thread, &s->thirds);
    shm_box_release(&s->watcher.thread, &s->box);
    actor_leave(&s->third);
    actor_leave(&s->watcher);
    world_close(&s->w);
}

static int receive(struct scene *s, const struct shm_filter *filter, struct shm_message *message)
{
    struct shm_filter any = SHM_FILTER_NONE;
    return shm_box_receive(&s->watcher.thread, &s->box, filter ? filter : &any, message, 0);
}

static void expect_notice(struct scene *s, const struct shm_filter *filter, shm_member_id of, int64_t number)
{
    struct shm_message m;
    CHECK_OK(receive(s, filter, &m));
    CHECK_EQ(m.header >> 61, SHM_KIND_EXIT);
    CHECK_EQ(m.sender, of);
    CHECK_EQ(m.notice, number);
}

static void expect_number(struct scene *s, const struct shm_filter *filter, uint64_t number)
{
    struct shm_message m;
    CHECK_OK(receive(s, filter, &m));
    CHECK_EQ(m.header >> 61, SHM_KIND_CAST);
    CHECK_EQ(number_in(&m), number);
}

static void expect_nothing(struct scene *s, const struct shm_filter *filter)
{
    struct shm_message m;
    CHECK_EQ(receive(s, filter, &m), SHM_EMPTY);
}

static void death_is_told_once(void)
{
    struct scene s;
    open_scene(&s, 4);
    for (int round = 0; round < 50; round++) {
        int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
        CHECK(number > 0);
        expect_nothing(&s, NULL);
        if (round % 2)
            target_dies(&s);
        else
            shm_box_release(&s.target.thread, &s.theirs), actor_leave(&s.target);
        expect_notice(&s, NULL, s.id, number);
        expect_nothing(&s, NULL);
        target_joins(&s);
    }
    target_dies(&s);
    close_scene(&s);
}

static void watching_the_dead_is_told_at_once(void)
{
    struct scene s;
    open_scene(&s, 4);
    target_dies(&s);
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    expect_notice(&s, NULL, s.id, number);
    expect_nothing(&s, NULL);
    close_scene(&s);
}

static void watch_that_was_ended_tells_nothing(void)
{
    struct scene s;
    open_scene(&s, 4);
    int64_t first = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    int64_t second = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    int64_t third = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    CHECK(first != second && second != third);
    CHECK(!shm_notice_disarm(&s.third.thread, (uint64_t)first)); /* not its own */
    CHECK(shm_notice_disarm(&s.watcher.thread, (uint64_t)first));
    CHECK(!shm_notice_disarm(&s.watcher.thread, (uint64_t)first));
    target_dies(&s);
    CHECK(shm_notice_disarm(&s.watcher.thread, (uint64_t)second)); /* fired, and dropped */
    expect_notice(&s, NULL, s.id, third);
    CHECK(!shm_notice_disarm(&s.watcher.thread, (uint64_t)third));
    CHECK(!shm_notice_disarm(&s.watcher.thread, 0));
    expect_nothing(&s, NULL);
    close_scene(&s);
}

static void notice_comes_after_the_messages_of_the_dead_and_before_others(void)
{
    struct scene s;
    open_scene(&s, 8);
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    CHECK_OK(box_send(&s.third, &s.thirds, 2, 1, 0));
    CHECK_OK(box_send(&s.target, &s.theirs, 1, 2, 0));
    CHECK_OK(box_send(&s.target, &s.theirs, 2, 3, 0));
    struct shm_filter two = by_tag(2),
                      exits = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_EXIT};
    expect_number(&s, &two, 1); /* sets 2 aside on no way; the next one does */
    expect_number(&s, &two, 3);
    CHECK_OK(box_send(&s.target, &s.theirs, 2, 4, 0));
    target_dies(&s);
    CHECK_OK(box_send(&s.third, &s.thirds, 1, 5, 0));
    expect_number(&s, NULL, 2); /* set aside */
    expect_number(&s, NULL, 4); /* in the ring */
    expect_notice(&s, NULL, s.id, number);
    expect_number(&s, NULL, 5);
    target_joins(&s);
    number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    CHECK_OK(box_send(&s.target, &s.theirs, 2, 6, 0));
    target_dies(&s);
    expect_notice(&s, &exits, s.id, number); /* only what the filter matches holds it back */
    expect_number(&s, NULL, 6);
    close_scene(&s);
}

static void notice_needs_no_room_and_no_tag(void)
{
    struct scene s;
    open_scene(&s, 1);
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    CHECK_OK(box_send(&s.third, &s.thirds, 5, 1, 0));
    target_dies(&s);
    struct shm_filter six = by_tag(6),
                      others = {.sender = actor_id(&s.third), .tag = SHM_TAG_ANY, .kinds = ~0u},
                      its = {.sender = s.id, .tag = SHM_TAG_ANY, .kinds = ~0u};
    expect_nothing(&s, &six);
    expect_number(&s, &others, 1);
    expect_nothing(&s, &others);
    expect_notice(&s, &its, s.id, number);
    close_scene(&s);
}

static void notices_of_a_watcher_go_with_it(void)
{
    struct scene s;
    open_scene(&s, 4);
    CHECK(shm_notice_arm(&s.third.thread, &s.thirds, s.id) > 0); /* fires, and is never read */
    CHECK(shm_notice_arm(&s.target.thread, &s.theirs, actor_id(&s.watcher)) > 0);
    target_dies(&s);
    CHECK_EQ(world_count(&s.w).notices, 1);
    shm_box_release(&s.third.thread, &s.thirds);
    actor_leave(&s.third);
    CHECK_EQ(world_count(&s.w).notices, 0);
    shm_box_release(&s.watcher.thread, &s.box);
    actor_leave(&s.watcher);
    world_close(&s.w);
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static void wait_or_kill(void *argument, int index)
{
    struct scene *s = argument;
    struct shm_message m;
    if (index == 0) { /* while both sleep */
        while (world_count(&s->w).armed < 2)
            shm_clock_sleep(20000);
        CHECK_OK(box_send(&s->third, &s->thirds, 9, 9, 0)); /* both have looked at something */
        shm_clock_sleep(5 * MS);
        target_dies(s);
        return;
    }
    struct shm_thread self;
    CHECK_OK(shm_thread_open(&self, &s->watcher.member));
    struct shm_filter tagged = by_tag(5),
                      exits = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_EXIT};
    if (index == 1) {
        CHECK_OK(shm_box_receive(&self, &s->box, &tagged, &m, SHM_FOREVER));
    } else {
        while (world_count(&s->w).armed < 1)
            shm_clock_sleep(20000);
        CHECK_OK(shm_box_receive(&self, &s->box, &exits, &m, SHM_FOREVER));
        CHECK_EQ(m.sender, s->id);
        shm_clock_sleep(1200 * MS); /* the other has slept through two slices with a notice gone by */
        uint64_t number = 5;
        struct shm_message last = message_of(5, &number);
        CHECK_OK(shm_box_send(&self, &s->box, &last, 0));
    }
    shm_thread_close(&self);
}

static void death_wakes_the_receiver_that_selects_it(void)
{
    struct scene s;
    struct shm_message m;
    open_scene(&s, 4);
    CHECK(shm_notice_arm(&s.watcher.thread, &s.box, s.id) > 0);
    check_threads(3, wait_or_kill, &s);
    CHECK_OK(receive(&s, NULL, &m));
    CHECK_EQ(number_in(&m), 9);
    close_scene(&s);
}

static void wait_for_another(void *argument, int index)
{
    struct scene *s = argument;
    struct shm_message m;
    if (index == 0) {
        struct shm_filter others = {.sender = actor_id(&s->third), .tag = SHM_TAG_ANY, .kinds = ~0u};
        CHECK_OK(shm_box_receive(&s->watcher.thread, &s->box, &others, &m, SHM_FOREVER));
    } else {
        while (world_count(&s->w).armed < 1)
            shm_clock_sleep(20000);
        target_dies(s);
        shm_clock_sleep(1200 * MS);
        CHECK_OK(box_send(&s->third, &s->thirds, 0, 1, 0));
    }
}

/* It would count as rescued, and turn round and round. */
static void notice_that_a_filter_declines_does_not_end_its_sleep(void)
{
    struct scene s;
    open_scene(&s, 4);
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    check_threads(2, wait_for_another, &s);
    expect_notice(&s, NULL, s.id, number);
    close_scene(&s);
}

static void cause_is_told_though_the_slot_has_been_anothers_since(void)
{
    struct scene s;
    open_scene(&s, 4);
    shm_member_id first = s.id;
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, first);
    shm_member_say_status(&s.w.segment, first, SHM_EXIT_SIGNAL, 11);
    target_dies(&s);
    uint32_t slot = s.slot;
    do { /* until the slot has been another's, who ended otherwise */
        target_joins(&s);
        shm_member_say_status(&s.w.segment, s.id, SHM_EXIT_EXITED, 3 << 8);
        target_dies(&s);
    } while (s.slot != slot);
    struct shm_message m;
    CHECK_OK(receive(&s, NULL, &m));
    CHECK_EQ(m.sender, first);
    CHECK_EQ(m.notice, number);
    CHECK_EQ(m.cause, SHM_EXIT_SIGNAL << 16 | 11);
    close_scene(&s);
}

/* Another was stopped while it opened or closed the watcher's mailbox: the watcher needs no hold of its own on it. */
static void watch_on_one_who_has_died_is_told_while_the_mailbox_is_locked(void)
{
    struct scene s;
    open_scene(&s, 4);
    target_dies(&s);
    _Atomic shm_word *at = &shm_block_at(&s.w.segment, s.box.block)->word;
    shm_word live = atomic_load(at);
    atomic_store(at, shm_word_make(shm_word_count(live), s.third.member.slot, SHM_BLOCK_LOCKED));
    int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
    atomic_store(at, live);
    expect_notice(&s, NULL, s.id, number);
    close_scene(&s);
}

/* Nobody says how they ended: each cause is waited for, all of them at once. */
static void deaths_of_one_moment_share_the_wait_for_their_causes(void)
{
    enum { DEAD = 20 };
    struct world w;
    struct actor reaper, dead[DEAD];
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &reaper);
    for (int i = 0; i < DEAD; i++) {
        actor_join(&w, &dead[i]);
        dead[i].member.record->kind = SHM_KIND_WORKER;
    }
    for (int i = 0; i < DEAD; i++)
        actor_die(&w, &dead[i]);
    uint64_t began = shm_clock_ns();
    CHECK_EQ(shm_reap_all(&reaper.thread), DEAD);
    CHECK(shm_clock_ns() - began < 2000 * MS); /* one after the other: 20 times 200 ms */
    actor_leave(&reaper);
    world_close(&w);
}

/* ---- links ------------------------------------------------------------------------------------------------- */

static int watcher_links(struct scene *s)
{
    return shm_notice_link(&s->watcher.thread, &s->box, s->id, s->theirs.index, s->theirs.count);
}

static void target_links(void *scene)
{
    struct scene *s = scene;
    CHECK_OK(
        shm_notice_link(&s->target.thread, &s->theirs, actor_id(&s->watcher), s->box.index, s->box.count));
}

static void expect_end_of_link(struct scene *s)
{
    struct shm_message m;
    CHECK_OK(receive(s, NULL, &m));
    CHECK_EQ(m.told, SHM_TOLD_LINK);
    CHECK_EQ(m.sender, s->id);
    expect_nothing(s, NULL);
}

/* Its maker may be stopped for long, or die: it is a link all the same. */
static void link_that_was_left_half_made_is_armed_by_the_other(void)
{
    struct scene s;
    open_scene(&s, 4);
    world_arm("link_ready", 1);
    CHECK(world_dies(target_links, &s));
    CHECK_EQ(watcher_links(&s), SHM_REFUSED);
    CHECK_EQ(world_count(&s.w).notices, 1);
    target_dies(&s);
    expect_end_of_link(&s);
    close_scene(&s);
}

static struct scene *rivals;
static bool rival_dies;

/* While the watcher is about to arm its link, the target makes one that is before it. */
static void rival_comes(enum shm_kill_point point)
{
    (void)point;
    shm_kill_point_disarm();
    shm_pool_hint(&rivals->w.segment, SHM_TABLE_NOTICES, 0);
    if (rival_dies) {
        world_arm("link_ready", 1);
        CHECK(world_dies(target_links, rivals));
        target_dies(rivals);
    } else {
        target_links(rivals);
    }
}

static void link_that_gave_way_to_one_whose_maker_died_is_made_anew(void)
{
    for (int round = 0; round < 2; round++) {
        struct scene s;
        open_scene(&s, 4);
        rivals = &s;
        rival_dies = round == 0;
        int64_t first = shm_notice_arm(&s.third.thread, &s.thirds, actor_id(&s.watcher)); /* room before it */
        shm_kill_point_hook = rival_comes;
        CHECK(shm_notice_disarm(&s.third.thread, (uint64_t)first));
        CHECK_OK(shm_kill_point_arm("link_ready", 1, SIGKILL));
        CHECK_EQ(watcher_links(&s), rival_dies ? 0 : SHM_REFUSED);
        CHECK_EQ(world_count(&s.w).notices, 1);
        if (!rival_dies)
            target_dies(&s);
        expect_end_of_link(&s);
        close_scene(&s);
    }
}

/* ---- what is older than an end ------------------------------------------------------------------------------- */

static void target_sets_a_tick_off(struct scene *s)
{
    uint64_t number = 7;
    struct shm_message m = message_of(7, &number);
    int64_t timer = shm_notice_set(&s->target.thread, &s->theirs, &m, 0);
    CHECK(timer > 0);
    CHECK_OK(shm_notice_tick(&s->target.thread, (uint64_t)timer, 1));
}

static void notice_comes_after_the_ticks_of_the_dead(void)
{
    struct scene s;
    struct shm_message m;
    struct shm_filter exits = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = 1 << SHM_KIND_EXIT};
    open_scene(&s, 4);
    for (int round = 0; round < 2; round++) {
        int64_t number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
        target_sets_a_tick_off(&s);
        shm_member_id dead = s.id;
        target_dies(&s);
        if (round == 1)
            expect_notice(&s, &exits, dead, number); /* only what the filter matches holds it back */
        CHECK_OK(receive(&s, NULL, &m));
        CHECK_EQ(m.header, shm_header_make(SHM_KIND_TIMER, 7));
        if (round == 0)
            expect_notice(&s, NULL, dead, number);
        expect_nothing(&s, NULL);
        target_joins(&s);
    }
    target_dies(&s);
    close_scene(&s);
}

static struct {
    struct scene *scene;
    struct shm_box box; /* the target's, where it gets letters */
} asked;

static void target_answers(void *unused)
{
    (void)unused;
    struct shm_thread *self = &asked.scene->target.thread;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    uint64_t number = 42;
    CHECK_OK(shm_box_receive(self, &asked.box, &any, &m, 0));
    CHECK_OK(shm_call_serve(self, m.call));
    CHECK_OK(shm_call_reply(self, m.call, &number, sizeof number, 0, 0));
}

static void third_reaps(void *unused)
{
    (void)unused;
    shm_reap(&asked.scene->third.thread, asked.scene->slot);
}

/* It answers a letter and dies, at once or before its answer is told; the watch is older than that, or not. */
static void notice_comes_after_the_answers_of_the_dead(void)
{
    static const char *const deaths[] = {NULL, "cell_bit", "cell_letter"};
    for (unsigned round = 0; round < 6; round++) {
        struct scene s;
        struct shm_box view;
        struct shm_message m, letter = {.body = &round, .len_bytes = 4};
        int64_t number = 0;
        open_scene(&s, 4);
        asked.scene = &s;
        box_make(&s.target, &asked.box, SHM_BOX_ACTOR, 4);
        box_open(&s.watcher, &view, &asked.box);
        atomic_store(&s.watcher.member.record->box, s.box.index + 1);
        if (round < 3)
            number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
        CHECK_OK(shm_call_open(&s.watcher.thread, s.id, SHM_CELL_LETTER, &letter.call));
        shm_call_label(&s.watcher.thread, letter.call, 5);
        letter.header = shm_header_make(SHM_KIND_CALL, 5);
        CHECK_OK(shm_box_send(&s.watcher.thread, &view, &letter, 0));
        shm_call_check(&s.watcher.thread, letter.call, s.id);
        if (deaths[round % 3])
            world_arm(deaths[round % 3], 1);
        CHECK_EQ(world_dies(target_answers, NULL), deaths[round % 3] != NULL);
        actor_die(&s.w, &s.target);
        if (round >= 3) { /* it is known to be dead, and its answer not yet seen to */
            world_arm("reap_cells", 1);
            CHECK(world_dies(third_reaps, NULL));
            number = shm_notice_arm(&s.watcher.thread, &s.box, s.id);
        } else {
            CHECK(shm_reap(&s.third.thread, s.slot));
        }
        CHECK_OK(receive(&s, NULL, &m));
        CHECK_EQ(m.header, shm_header_make(SHM_KIND_REPLY, 5));
        shm_call_free(&s.watcher.thread, m.letter);
        expect_notice(&s, NULL, s.id, number);
        if (round >= 3)
            CHECK(shm_reap(&s.third.thread, s.slot));
        expect_nothing(&s, NULL);
        atomic_store(&s.watcher.member.record->box, 0);
        shm_box_release(&s.watcher.thread, &view);
        close_scene(&s);
    }
}

int main(void)
{
    RUN(link_that_was_left_half_made_is_armed_by_the_other);
    RUN(link_that_gave_way_to_one_whose_maker_died_is_made_anew);
    RUN(notice_comes_after_the_ticks_of_the_dead);
    RUN(notice_comes_after_the_answers_of_the_dead);
    RUN(watch_on_one_who_has_died_is_told_while_the_mailbox_is_locked);
    RUN(death_is_told_once);
    RUN(watching_the_dead_is_told_at_once);
    RUN(watch_that_was_ended_tells_nothing);
    RUN(notice_comes_after_the_messages_of_the_dead_and_before_others);
    RUN(notice_needs_no_room_and_no_tag);
    RUN(notices_of_a_watcher_go_with_it);
    RUN(cause_is_told_though_the_slot_has_been_anothers_since);
    RUN(death_wakes_the_receiver_that_selects_it);
    RUN(notice_that_a_filter_declines_does_not_end_its_sleep);
    RUN(deaths_of_one_moment_share_the_wait_for_their_causes);
    return 0;
}
