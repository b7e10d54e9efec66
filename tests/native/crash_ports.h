/* The scenes of test_crash.c whose victims use ports and groups. Included by crash_scenes.h, whose stage they share. */
#ifndef CRASH_PORTS_H
#define CRASH_PORTS_H

#include "transport/group.h"
#include "transport/port.h"

enum { PORT_ROOM = 4, KEY = 77 };

static struct port_stage {
    struct shm_box victims, lives, sleepers; /* one port, as each has it open */
    shm_port_id id;
    struct shm_group_view group, groups; /* as live and the victim have it open */
    struct shm_group_view doomed;        /* as live has it open, which the victim destroys */
    shm_call_id call, served;            /* of live, queued and taken */
    uint64_t sent;                       /* by live: the numbers below it */
} po;

static void make_port(struct actor *a, struct shm_box *box, shm_member_id owner)
{
    struct shm_port_config config = {.owner = owner, .capacity = PORT_ROOM, .body_bytes = 64};
    CHECK_OK(shm_port_make(&a->thread, box, &config));
}

/* A port of `owner`; live and the victim have it open. */
static void port_of(struct actor *owner)
{
    memset(&po, 0, sizeof po);
    make_port(&s.live, &po.lives, actor_id(owner));
    po.id = shm_port_id_of(po.lives.index, po.lives.count);
    CHECK_OK(shm_port_open(&s.victim.thread, &po.victims, po.id));
}

static void live_sends_to_port(int count)
{
    for (; count; count--)
        CHECK_OK(box_send(&s.live, &po.lives, 0, po.sent++, 0));
}

static shm_call_id live_asks_port(void)
{
    shm_call_id call;
    uint64_t number = po.sent;
    struct shm_message m = message_of(0, &number);
    CHECK_OK(shm_call_open(&s.live.thread, 0, 0, &call));
    shm_call_through(&s.live.thread, call, po.lives.index);
    m.call = call;
    CHECK_OK(shm_box_send(&s.live.thread, &po.lives, &m, 0));
    return call;
}

static void live_has_a_group(void)
{
    CHECK_OK(shm_group_make(&s.live.thread, &po.group, KEY));
    CHECK_OK(shm_group_insert(&s.live.thread, &po.group, KEY, po.id));
    CHECK_OK(shm_group_open(&s.victim.thread, &po.groups, po.group.index, po.group.count));
}

static void has_failed(shm_call_id call)
{
    struct shm_reply r;
    CHECK_OK(shm_call_read(&s.live.thread, call, &r));
    CHECK(r.status != 0);
    shm_call_free(&s.live.thread, call);
}

static uint32_t members(void)
{
    shm_port_id ports[SHM_GROUP_PORTS];
    return shm_group_members(&s.live.thread, &po.group, ports);
}

/* The port is gone for everybody: nothing can be sent, the calls have failed, no group has it. */
static void port_is_gone(void)
{
    uint64_t number = 0;
    CHECK(!shm_port_is_there(&s.w.segment, po.id));
    CHECK_EQ(box_send(&s.live, &po.lives, 0, 9, 0), SHM_CLOSED);
    CHECK_EQ(box_receive(&s.live, &po.lives, NULL, &number, 0), SHM_NO_PORT);
    if (po.call)
        has_failed(po.call);
    if (po.served)
        has_failed(po.served);
    if (po.group.group) {
        CHECK_EQ(members(), 0);
        CHECK_EQ(atomic_load(&po.group.group->members[0]), 0);
        CHECK_EQ(shm_group_insert(&s.live.thread, &po.group, KEY, po.id), SHM_NOT_FOUND);
        shm_group_release(&s.live.thread, &po.group);
    }
    shm_box_release(&s.live.thread, &po.lives);
}

/* The port is live's: it has what it has, in order, and works as any. */
static void port_is_lives(uint64_t messages)
{
    uint64_t number, changes;
    uint32_t which;
    struct shm_message m;
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_box *boxes[] = {&po.lives};
    CHECK_OK(shm_desk_open(&s.live.thread, &changes));
    CHECK_EQ(shm_port_receive_any(&s.live.thread, boxes, 1, changes, 0, &m, &which, 0), SHM_EMPTY);
    for (uint64_t i = 0; i < messages; i++) {
        CHECK_OK(shm_box_receive(&s.live.thread, &po.lives, &any, &m, 0));
        CHECK_EQ(number_in(&m), i);
        CHECK_EQ(m.number, i + 1);
        if (m.call) {
            CHECK_OK(shm_call_serve(&s.live.thread, m.call));
            CHECK_OK(shm_call_reply(&s.live.thread, m.call, &m, 8, 0, 0));
            read_reply(&s.live, m.call);
        }
    }
    CHECK_EQ(box_receive(&s.live, &po.lives, NULL, &number, 0), SHM_EMPTY);
    if (po.group.group) {
        CHECK_EQ(members(), 1);
        shm_group_release(&s.live.thread, &po.group);
    }
    CHECK_OK(shm_port_enable(&s.live.thread, &po.lives, 3));
    CHECK_OK(shm_desk_open(&s.live.thread, &changes));
    for (uint64_t i = 0; i < 2 * PORT_ROOM; i++) {
        CHECK_OK(box_send(&s.live, &po.lives, 0, i, 0));
        CHECK_OK(shm_port_receive_any(&s.live.thread, boxes, 1, changes, 0, &m, &which, 0));
        CHECK_EQ(number_in(&m), i);
    }
    CHECK_OK(shm_port_delete(&s.live.thread, &po.lives));
    po.call = po.served = 0;
    port_is_gone();
}

/* ---- making and removing ------------------------------------------------------------------------------------ */

static void no_port_yet(void)
{
    memset(&po, 0, sizeof po);
}

static void makes_ports(void *unused)
{
    (void)unused;
    struct shm_box mine, lives;
    make_port(&s.victim, &mine, 0);
    make_port(&s.victim, &lives, actor_id(&s.live));
    CHECK_OK(box_send(&s.victim, &mine, 0, 1, 0));
    shm_box_release(&s.victim.thread, &lives);
    CHECK_OK(shm_port_delete(&s.victim.thread, &mine));
    shm_box_release(&s.victim.thread, &mine);
}

static void only_ports_of_the_living_are_left(void)
{
    for (uint32_t i = 0; i < shm_pool_ready(&s.w.segment, SHM_TABLE_PORTS); i++) {
        shm_word word = atomic_load(&shm_port_at(&s.w.segment, i)->word);
        CHECK(shm_word_state(word) == SHM_PORT_GONE || shm_port_owner(word) == actor_id(&s.live));
    }
}

static void asks_for_a_default_port(void *unused)
{
    (void)unused;
    struct shm_port_config config = {.owner = actor_id(&s.live), .capacity = PORT_ROOM, .body_bytes = 64};
    CHECK_OK(shm_port_default(&s.victim.thread, &config, &po.id));
}

static void there_is_one_default_port(void)
{
    struct shm_port_config config = {.owner = actor_id(&s.live), .capacity = PORT_ROOM, .body_bytes = 64};
    shm_port_id id, again;
    CHECK_OK(shm_port_default(&s.live.thread, &config, &id));
    CHECK(po.id == 0 || po.id == id);
    CHECK_OK(shm_port_default(&s.live.thread, &config, &again));
    CHECK_EQ(id, again);
    CHECK_OK(shm_port_open(&s.live.thread, &po.lives, id));
    CHECK_EQ(shm_port_delete(&s.live.thread, &po.lives), SHM_INVALID);
    shm_box_release(&s.live.thread, &po.lives);
    uint32_t count = 0;
    for (uint32_t i = 0; i < shm_pool_ready(&s.w.segment, SHM_TABLE_PORTS); i++)
        count += shm_word_state(atomic_load(&shm_port_at(&s.w.segment, i)->word)) != SHM_PORT_GONE;
    CHECK_EQ(count, 1);
}

/* Its maker has died before he said that it is the default port. */
static void a_port_is_left_unnamed(void)
{
    struct shm_port_config config = {
        .owner = actor_id(&s.live), .capacity = PORT_ROOM, .body_bytes = 64, .is_default = true};
    struct shm_box box;
    memset(&po, 0, sizeof po);
    CHECK_OK(shm_port_make(&s.live.thread, &box, &config));
    po.id = shm_port_id_of(box.index, box.count);
    shm_box_release(&s.live.thread, &box);
}

static void port_is_busy(void)
{
    struct shm_filter any = SHM_FILTER_NONE;
    struct shm_message m;
    port_of(&s.victim);
    live_has_a_group();
    po.served = live_asks_port();
    CHECK_OK(shm_box_receive(&s.victim.thread, &po.victims, &any, &m, 0));
    CHECK_OK(shm_call_serve(&s.victim.thread, m.call));
    live_sends_to_port(2);
    po.call = live_asks_port();
}

static void deletes_port(void *unused)
{
    (void)unused;
    CHECK_OK(shm_port_delete(&s.victim.thread, &po.victims));
}

/* ---- migrating ---------------------------------------------------------------------------------------------- */

static void migrates(bool drops)
{
    uint64_t number;
    uint32_t local;
    CHECK_OK(shm_port_enable(&s.victim.thread, &po.victims, 1));
    CHECK_OK(shm_port_migrate(&s.victim.thread, &po.victims, actor_id(&s.live), drops, &number, &local));
    CHECK_EQ(number, 1);
    CHECK_EQ(shm_port_enable(&s.victim.thread, &po.victims, 1), SHM_NO_PORT);
}

static void queue_is_filled(void)
{
    port_of(&s.victim);
    live_has_a_group();
    live_sends_to_port(2);
    po.call = live_asks_port();
}

static void migrates_with_messages(void *unused)
{
    (void)unused;
    migrates(false);
}

static void migrates_without_messages(void *unused)
{
    (void)unused;
    migrates(true);
}

static void all_is_lives_or_gone(void)
{
    if (shm_port_is_there(&s.w.segment, po.id))
        port_is_lives(3);
    else
        port_is_gone();
}

static void nothing_is_lives_or_all_is_gone(void)
{
    if (!shm_port_is_there(&s.w.segment, po.id)) {
        port_is_gone();
        return;
    }
    has_failed(po.call);
    port_is_lives(0);
}

/* ---- any port ----------------------------------------------------------------------------------------------- */

static void victim_has_an_empty_port(void)
{
    port_of(&s.victim);
    live_has_a_group();
}

static void receives_from_any(void *unused)
{
    (void)unused;
    struct shm_box *boxes[] = {&po.victims};
    struct shm_message m;
    uint32_t which;
    uint64_t changes;
    CHECK_OK(shm_port_enable(&s.victim.thread, &po.victims, 5));
    CHECK_OK(shm_desk_open(&s.victim.thread, &changes));
    CHECK_EQ(shm_port_receive_any(&s.victim.thread, boxes, 1, changes, 0, &m, &which, soon(0) + MS / 10),
             SHM_TIMEOUT);
    SAFELY(live_sends_to_port(2));
    CHECK_OK(shm_port_receive_any(&s.victim.thread, boxes, 1, changes, 0, &m, &which, 0));
    CHECK_OK(shm_port_handle(&s.victim.thread, &po.victims, true));
    CHECK_OK(shm_port_handle(&s.victim.thread, &po.victims, false));
    CHECK_OK(shm_port_disable(&s.victim.thread, &po.victims));
}

static void sleep_for_any_port(void *unused)
{
    (void)unused;
    struct shm_box *boxes[] = {&po.sleepers};
    struct shm_message m;
    uint32_t which;
    uint64_t changes;
    make_port(&s.sleeper, &po.sleepers, 0);
    CHECK_OK(shm_port_enable(&s.sleeper.thread, &po.sleepers, 5));
    CHECK_OK(shm_desk_open(&s.sleeper.thread, &changes));
    shm_port_receive_any(&s.sleeper.thread, boxes, 1, changes, 0, &m, &which, SHM_FOREVER);
}

static void one_sleeps_for_any_port(void)
{
    memset(&po, 0, sizeof po);
    put_to_sleep(sleep_for_any_port);
    po.id = shm_port_id_of(po.sleepers.index, po.sleepers.count);
    CHECK_OK(shm_port_open(&s.victim.thread, &po.victims, po.id));
    CHECK_OK(shm_port_open(&s.live.thread, &po.lives, po.id));
}

static void sends_to_port(void *unused)
{
    (void)unused;
    CHECK_OK(box_send(&s.victim, &po.victims, 0, 1, 0));
}

static void sleeper_knows_of_its_message(void)
{
    if (shm_ring_count(&po.lives))
        expect_awake();
    shm_box_release(&s.live.thread, &po.lives);
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

static void live_has_a_port_and_a_group(void)
{
    port_of(&s.live);
    live_has_a_group();
}

static void live_has_a_group_with_a_name(void)
{
    memset(&po, 0, sizeof po);
    CHECK_OK(shm_group_make(&s.live.thread, &po.doomed, KEY));
    struct shm_named named = {SHM_NAME_GROUP, po.doomed.index, po.doomed.count};
    CHECK_OK(shm_name_serve(&s.live.thread, "doomed", &named));
    CHECK_OK(shm_group_open(&s.victim.thread, &po.groups, po.doomed.index, po.doomed.count));
}

static void destroys_group(void *unused)
{
    (void)unused;
    CHECK_OK(shm_group_destroy(&s.victim.thread, &po.groups, KEY));
}

/* It is there for everybody, or for nobody; whoever has it open can end it, or has been told. */
static void group_is_whole_or_its_name_is_free(void)
{
    struct shm_named found;
    int status = shm_name_lookup(&s.live.thread, "doomed", &found);
    if (status == 0) {
        CHECK(!shm_group_is_closed(&po.doomed));
    } else {
        struct shm_group_view next;
        CHECK_EQ(status, SHM_NOT_FOUND);
        CHECK_OK(shm_group_make(&s.live.thread, &next, KEY));
        struct shm_named named = {SHM_NAME_GROUP, next.index, next.count};
        CHECK_OK(shm_name_serve(&s.live.thread, "doomed", &named));
        CHECK_OK(shm_group_destroy(&s.live.thread, &next, KEY));
        shm_group_release(&s.live.thread, &next);
    }
    bool closed = shm_group_is_closed(&po.doomed);
    CHECK_EQ(shm_group_destroy(&s.live.thread, &po.doomed, KEY), closed ? SHM_CLOSED : 0);
    CHECK(shm_group_is_closed(&po.doomed));
    CHECK_EQ(shm_name_lookup(&s.live.thread, "doomed", &found), SHM_NOT_FOUND);
    shm_group_release(&s.live.thread, &po.doomed);
}

static void edits_groups(void *unused)
{
    (void)unused;
    struct shm_group_view mine;
    struct shm_box port;
    CHECK_OK(shm_group_make(&s.victim.thread, &mine, KEY));
    struct shm_named named = {SHM_NAME_GROUP, mine.index, mine.count};
    CHECK_OK(shm_name_serve(&s.victim.thread, "victim", &named));
    CHECK_OK(shm_group_insert(&s.victim.thread, &mine, KEY, po.id));
    CHECK_OK(shm_group_destroy(&s.victim.thread, &mine, KEY));
    shm_group_release(&s.victim.thread, &mine);
    make_port(&s.victim, &port, 0);
    shm_port_id id = shm_port_id_of(port.index, port.count);
    CHECK_OK(shm_group_insert(&s.victim.thread, &po.groups, KEY, id));
    CHECK_OK(shm_group_insert(&s.victim.thread, &po.groups, KEY, id));
    CHECK_OK(shm_group_remove(&s.victim.thread, &po.groups, KEY, po.id));
    CHECK_OK(shm_group_insert(&s.victim.thread, &po.groups, KEY, po.id));
}

static void group_has_living_members(void)
{
    shm_port_id ports[SHM_GROUP_PORTS];
    for (uint32_t i = 0; i < SHM_GROUP_PORTS; i++)
        CHECK(atomic_load(&po.group.group->members[i]) == 0 ||
              atomic_load(&po.group.group->members[i]) == po.id);
    CHECK_OK(shm_group_insert(&s.live.thread, &po.group, KEY, po.id));
    CHECK_EQ(shm_group_members(&s.live.thread, &po.group, ports), 1);
    CHECK_EQ(ports[0], po.id);
    names_are_free();
    port_is_lives(0);
}

#endif
