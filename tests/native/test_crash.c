/* Death at every step, and what the others find afterwards.
 *
 * For each scene and each kill point that it passes, the victim dies there; another member reaps it; then every
 * message that was accepted arrives once and in order, whoever slept on what came true is awake, mailbox, arena and
 * calls work, and nothing is left when all have gone. Then the same with a first reaper that dies at each step of its
 * reap. All members are actors of one thread, so a run is the same each time.
 *
 * A sleeper is a member that stopped just before its semaphore: it is armed, in its set, and alive.
 */
#include "world.h"

#include "crash_scenes.h"

/* How many passings of a point are tried: alone, and with reapers that die; and how many of the reaper's. */
enum { OCCURRENCES = 6, TWICE = 2, REAPS = 3 };

static bool hit[SHM_KILL_POINT_COUNT];
static unsigned long runs;
/* What is played, and the points it must pass; a program each, for each has its time. */
static const struct part {
    const char *name;
    const struct scene *scenes;
    size_t count;
    const char *prefixes[5]; /* of its points; none: those that are no other part's */
} parts[] = {
    {"mailboxes", scenes, sizeof scenes / sizeof scenes[0], {NULL}},
    {"buses", bus_scenes, sizeof bus_scenes / sizeof bus_scenes[0], {"bus_"}},
    {"syncs",
     sync_scenes,
     sizeof sync_scenes / sizeof sync_scenes[0],
     {"sync_", "rw_", "pipe_", "barrier_", "reap_line"}},
    {"ports", port_scenes, sizeof port_scenes / sizeof port_scenes[0], {"port_", "group_"}},
    {"aborts", abort_scenes, sizeof abort_scenes / sizeof abort_scenes[0], {"abort_"}},
};
static const struct part *part = &parts[0];
static char check_running_at[200]; /* who dies where, for a failed check */

/* Points that no scene here can pass, and why. */
static const char *const unreachable[] = {
    "lane_copy",   "lane_post",   "lane_posted",
    "lane_take",   "lane_taken",  /* no members: test_lane.c plays them */
    "vigil_begin", "vigil_end",   /* no native threads: test_kill_points.py */
    "remain_give", "remain_live", /* no life locks: test_death_of_holder.py */
    NULL};

static void begin(const struct scene *scene)
{
    struct world w = s.w;
    memset(&s, 0, sizeof s);
    s.w = w;
    actor_join(&s.w, &s.live);
    actor_join(&s.w, &s.second);
    box_make(&s.live, &s.box, SHM_BOX_SHARED, ROOM);
    box_open(&s.second, &s.seconds, &s.box);
    if (scene->act != joins) {
        actor_join(&s.w, &s.victim);
        s.slot = s.victim.member.slot;
        s.victim.thread.may_spin = false;
        atomic_store(&s.w.segment.header->state, SHM_SEGMENT_READY);
        atomic_store(&s.w.segment.header->root, actor_id(&s.victim));
        box_open(&s.victim, &s.victims, &s.box);
    }
    scene->before();
}

static void victim_dies(void)
{
    if (s.prepared &&
        shm_word_state(atomic_load(&shm_member_at(&s.w.segment, s.slot)->word)) == SHM_MEMBER_JOINING)
        shm_member_forget(&s.w.segment, s.prepared); /* whoever prepared it sees that its process has ended */
    world_kill(&s.w, s.slot);
    free(s.victim.thread.scratch);
    shm_member_dispose(&s.victim.member);
}

/* First what needs no more than that the victim runs no more, then the rest. */
static void second_reaps(void *unused)
{
    (void)unused;
    shm_word word = atomic_load(&shm_member_at(&s.w.segment, s.slot)->word);
    bool found = shm_reap_ending(&s.second.thread, s.slot, word, SIGKILL);
    CHECK_EQ(found, shm_word_state(word) == SHM_MEMBER_LIVE);
    CHECK(shm_reap(&s.second.thread, s.slot));
}

static void check_messages(void)
{
    uint64_t number, last = 0, lost = 0;
    while (box_receive(&s.live, &s.box, NULL, &number, 0) == 0) {
        CHECK(number < NUMBERS && s.tried[number]);
        CHECK_EQ(s.got[number]++, 0);
        CHECK(last == 0 || number > last - 1);
        last = number + 1;
    }
    for (number = 0; number < s.next; number++)
        lost += s.sent[number] && !s.got[number];
    CHECK(lost <= s.may_lose);
}

static void check_that_all_works(void)
{
    uint64_t number;
    struct shm_filter odd = by_tag(1);
    for (int round = 0; round < 5; round++) { /* more than one lap */
        for (uint64_t i = 0; i < ROOM; i++)
            CHECK_OK(i == 3 ? box_send_block(&s.live, &s.box, i % 2, i, true, 0)
                            : box_send(&s.live, &s.box, i % 2, i, 0));
        CHECK_EQ(box_send(&s.live, &s.box, 0, 9, 0), SHM_FULL);
        const uint64_t order[ROOM] = {1, 3, 0, 2};
        for (int i = 0; i < ROOM; i++) {
            CHECK_OK(box_receive(&s.live, &s.box, i < 2 ? &odd : NULL, &number, 0));
            CHECK_EQ(number, order[i]);
        }
        CHECK_EQ(box_receive(&s.live, &s.box, NULL, &number, 0), SHM_EMPTY);
    }
    shm_call_id call = request(&s.live, &s.box, true);
    CHECK_OK(answer(&s.live, &s.box, true));
    read_reply(&s.live, call);
}

static void end(bool second_lives)
{
    uint64_t number;
    for (uint64_t i = 0; s.between.ring && i < ROOM; i++) {
        CHECK_OK(box_receive(&s.live, &s.between, NULL, &number, 0));
        CHECK_EQ(number, i);
    }
    shm_box_release(&s.live.thread, &s.between);
    if (s.asleep) {
        uint32_t slot = s.sleeper.member.slot;
        actor_die(&s.w, &s.sleeper);
        CHECK(shm_reap(&s.live.thread, slot));
    }
    check_that_all_works();
    shm_reap_all(&s.live.thread); /* whom the victim had prepared */
    if (second_lives) {
        shm_box_release(&s.second.thread, &s.seconds);
        actor_leave(&s.second);
    }
    shm_box_release(&s.live.thread, &s.box);
    actor_leave(&s.live);
    world_check_empty(&s.w);
    runs++;
}

/* One run. `point` NULL: the act is not interrupted; `reaping` NULL: nor is the reap. What each passed is counted into
 * `passed` when given. True when all deaths that were asked for happened. */
static bool run(const struct scene *scene, const char *point, unsigned after, const char *reaping,
                unsigned reaping_after, unsigned long *acted, unsigned long *reaped)
{
    bool died = true, second_lives = true;
    begin(scene);
    if (point) {
        world_arm(point, after);
        died = world_dies(scene->act, NULL);
    } else {
        shm_kill_point_disarm();
        scene->act(NULL);
        for (int i = 0; acted && i < SHM_KILL_POINT_COUNT; i++)
            acted[i] = shm_kill_point_passed(shm_kill_point_names[i]);
    }
    victim_dies();
    if (reaping) {
        uint32_t slot = s.second.member.slot;
        world_arm(reaping, reaping_after);
        if (world_dies(second_reaps, NULL)) {
            actor_die(&s.w, &s.second);
            life_goes_on();
            CHECK(shm_reap(&s.live.thread, slot));
            second_lives = false;
        } else {
            died = false;
        }
    } else if (reaped) {
        shm_kill_point_disarm();
        second_reaps(NULL);
        for (int i = 0; i < SHM_KILL_POINT_COUNT; i++)
            reaped[i] = shm_kill_point_passed(shm_kill_point_names[i]);
    }
    CHECK(shm_reap(&s.live.thread, s.slot));
    if (scene->act != joins)
        CHECK_EQ(atomic_load(&s.w.segment.header->state), SHM_SEGMENT_CLOSED);
    scene->after();
    check_messages();
    end(second_lives);
    return died;
}

static void first_reapers_die(const struct scene *scene, const char *point, unsigned after)
{
    unsigned long reaped[SHM_KILL_POINT_COUNT] = {0};
    run(scene, point, after, NULL, 0, NULL, reaped);
    for (int p = 0; p < SHM_KILL_POINT_COUNT; p++)
        for (unsigned n = 1; n <= reaped[p] && n <= REAPS; n++) {
            snprintf(check_running_at, sizeof check_running_at, "%s, dead at %s %u, its reaper at %s %u",
                     scene->name, point ? point : "the end", after, shm_kill_point_names[p], n);
            hit[p] |= run(scene, point, after, shm_kill_point_names[p], n, NULL, NULL);
        }
}

static void play(const struct scene *scene)
{
    unsigned long acted[SHM_KILL_POINT_COUNT] = {0};
    snprintf(check_running_at, sizeof check_running_at, "%s", scene->name);
    run(scene, NULL, 0, NULL, 0, acted, NULL);
    first_reapers_die(scene, NULL, 0);
    for (int p = 0; p < SHM_KILL_POINT_COUNT; p++)
        for (unsigned n = 1; n <= acted[p] && n <= OCCURRENCES; n++) {
            snprintf(check_running_at, sizeof check_running_at, "%s, dead at %s %u", scene->name,
                     shm_kill_point_names[p], n);
            hit[p] |= run(scene, shm_kill_point_names[p], n, NULL, 0, NULL, NULL);
            if (n <= TWICE)
                first_reapers_die(scene, shm_kill_point_names[p], n);
        }
}

static void others_go_on_wherever_a_victim_and_its_reaper_die(void)
{
    world_open(&s.w, WORLD_SMALL);
    for (size_t i = 0; i < part->count; i++) {
        fprintf(stderr, "  %s\n", part->scenes[i].name);
        check_running = check_running_at;
        play(&part->scenes[i]);
    }
    world_close(&s.w);
    fprintf(stderr, "  %lu runs\n", runs);
}

/* The part whose points begin like this one. */
static const struct part *part_of(const char *point)
{
    for (size_t i = 1; i < sizeof parts / sizeof parts[0]; i++)
        for (int n = 0; n < 5 && parts[i].prefixes[n]; n++)
            if (strncmp(point, parts[i].prefixes[n], strlen(parts[i].prefixes[n])) == 0)
                return &parts[i];
    return &parts[0];
}

static void every_kill_point_was_somebodys_death(void)
{
    int missed = 0;
    for (int p = 0; p < SHM_KILL_POINT_COUNT; p++) {
        bool known = false;
        if (part_of(shm_kill_point_names[p]) != part)
            continue; /* another program's */
        for (size_t i = 0; i < sizeof unreachable / sizeof unreachable[0]; i++)
            known |= unreachable[i] && strcmp(unreachable[i], shm_kill_point_names[p]) == 0;
        if (hit[p] == known)
            fprintf(stderr, "  %s: %s\n", shm_kill_point_names[p],
                    known ? "reached after all" : "not reached");
        missed += hit[p] == known;
    }
    CHECK_EQ(missed, 0);
}

int main(int count, char **arguments)
{
    for (size_t i = 0; count == 2 && i < sizeof parts / sizeof parts[0]; i++)
        if (strcmp(arguments[1], parts[i].name) == 0)
            part = &parts[i];
    RUN(others_go_on_wherever_a_victim_and_its_reaper_die);
    RUN(every_kill_point_was_somebodys_death);
    return 0;
}
