/* Lives: joining, leaving, dying, the proof of it, and what is told about its cause. */
#include "world.h"

#include <sys/syscall.h>

static void slot_has_another_generation_after_it_was_left(void)
{
    struct world w;
    struct actor a;
    world_open(&w, WORLD_SMALL);
    shm_member_id last = 0;
    uint32_t slot = 0;
    for (int life = 0; life < 200; life++) {
        actor_join(&w, &a);
        shm_member_id id = actor_id(&a);
        CHECK(id != last);
        CHECK(shm_member_lives(&w.segment, id));
        CHECK(last == 0 || !shm_member_lives(&w.segment, last));
        slot = a.member.slot;
        actor_leave(&a);
        CHECK(!shm_member_lives(&w.segment, id));
        CHECK_EQ(shm_word_state(atomic_load(&shm_member_at(&w.segment, slot)->word)), SHM_MEMBER_FREE);
        last = id;
    }
    CHECK(!shm_member_lives(&w.segment, 0));
    CHECK(!shm_member_lives(&w.segment, UINT64_MAX));
    world_close(&w);
}

static void join_is_refused_at_the_limit_and_possible_after_a_leave(void)
{
    struct shm_segment segment;
    struct shm_config config = {.max_members = 5, .memory_limit = 1 << 20};
    int fd = memfd_create("shmipc-test", MFD_CLOEXEC);
    CHECK_OK(shm_segment_format(&segment, fd, &config));
    struct shm_member members[6];
    for (int i = 0; i < 5; i++)
        CHECK_OK(shm_member_join(&members[i], &segment, 0, SHM_KIND_ATTACHED, NULL, NULL));
    CHECK_EQ(shm_member_join(&members[5], &segment, 0, SHM_KIND_ATTACHED, NULL, NULL), SHM_LIMIT);
    struct shm_thread thread;
    CHECK_OK(shm_thread_open(&thread, &members[2]));
    shm_leave(&thread);
    shm_member_dispose(&members[2]);
    CHECK_OK(shm_member_join(&members[5], &segment, 0, SHM_KIND_ATTACHED, NULL, NULL));
    members[2] = members[5];
    for (int i = 0; i < 5; i++)
        shm_member_dispose(&members[i]);
    shm_segment_detach(&segment);
}

static void dead_member_is_reaped_by_another_and_only_then_free(void)
{
    struct world w;
    struct actor a, b;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    uint32_t slot = a.member.slot;
    CHECK(!shm_reap(&b.thread, slot));
    CHECK(!shm_reap(&b.thread, b.member.slot));
    actor_die(&w, &a);
    CHECK(shm_reap(&b.thread, slot));
    CHECK(shm_reap(&b.thread, slot));
    CHECK_EQ(shm_reap_all(&b.thread), 0);
    CHECK_EQ(atomic_load(&w.segment.header->reaped), 1);
    actor_leave(&b);
    world_close(&w);
}

static void prepared_slot_goes_when_it_is_forgotten_or_its_creator_dies(void)
{
    struct world w;
    struct actor creator, other;
    struct shm_member late;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &other);
    actor_join(&w, &creator);
    int64_t first = shm_member_prepare(&w.segment, &creator.member, SHM_KIND_WORKER, "first");
    int64_t second = shm_member_prepare(&w.segment, &creator.member, SHM_KIND_WORKER, "second");
    CHECK(first > 0 && second > 0 && first != second);
    CHECK(shm_member_lives(&w.segment, (shm_member_id)first));
    CHECK(!shm_reap(&other.thread, first & 0xFFFF));

    shm_member_forget(&w.segment, (shm_member_id)first);
    CHECK(!shm_member_lives(&w.segment, (shm_member_id)first));
    CHECK_EQ(shm_member_join(&late, &w.segment, (shm_member_id)first, SHM_KIND_WORKER, "", NULL),
             SHM_PEER_DEAD);
    CHECK(shm_reap(&other.thread, first & 0xFFFF));

    actor_die(&w, &creator);
    CHECK(shm_reap_all(&other.thread) >= 1);
    shm_reap_all(&other.thread);
    CHECK(!shm_member_lives(&w.segment, (shm_member_id)second));
    CHECK_EQ(shm_member_join(&late, &w.segment, (shm_member_id)second, SHM_KIND_WORKER, "", NULL),
             SHM_PEER_DEAD);
    actor_leave(&other);
    world_close(&w);
}

static void prepared_slot_is_joined_once(void)
{
    struct world w;
    struct actor creator, worker, twin;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &creator);
    int64_t id = shm_member_prepare(&w.segment, &creator.member, SHM_KIND_WORKER,
                                    "a name of seventy characters, which is cut after the sixty-fourth one");
    CHECK_OK(shm_member_join(&worker.member, &w.segment, (shm_member_id)id, SHM_KIND_WORKER, "", NULL));
    actor_begin(&worker);
    CHECK_EQ(actor_id(&worker), id);
    CHECK_EQ(strlen(worker.member.record->name), 64);
    CHECK_EQ(worker.member.record->creator, actor_id(&creator));
    CHECK_EQ(shm_member_join(&twin.member, &w.segment, (shm_member_id)id, SHM_KIND_WORKER, "", NULL),
             SHM_PEER_DEAD);
    actor_leave(&worker);
    actor_leave(&creator);
    world_close(&w);
}

static void prepared_slot_whose_process_ended_before_joining_is_dead(void)
{
    struct world w;
    struct actor creator;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &creator);
    int64_t id = shm_member_prepare(&w.segment, &creator.member, SHM_KIND_WORKER, "");
    pid_t pid = fork();
    if (pid == 0)
        pause();
    creator.member.is_dead = NULL; /* the operating system is asked */
    shm_member_launched(&w.segment, (shm_member_id)id, pid);
    CHECK(!shm_member_is_dead(&creator.member, id & 0xFFFF));
    kill(pid, SIGKILL);
    check_wait(pid);
    CHECK(shm_member_is_dead(&creator.member, id & 0xFFFF));
    CHECK(shm_reap(&creator.thread, id & 0xFFFF));
    actor_leave(&creator);
    world_close(&w);
}

struct child {
    struct shm_segment *segment;
    const char *life_path;
    int ready;
    bool loses_its_lock;
};

static void live_until_killed(void *argument)
{
    struct child *child = argument;
    struct shm_member member;
    CHECK_OK(shm_member_join(&member, child->segment, 0, SHM_KIND_ATTACHED, "child", child->life_path));
    if (child->loses_its_lock)
        close(member.life_fd);
    CHECK_EQ(write(child->ready, &member.slot, sizeof member.slot), (long)sizeof member.slot);
    pause();
}

static void life_and_death_of(bool loses_its_lock)
{
    struct world w;
    struct shm_member self;
    struct shm_thread thread;
    char path[] = "/tmp/shmipc-test-life-XXXXXX";
    int file = mkstemp(path), pipe_fds[2];
    CHECK(file >= 0);
    CHECK_OK(pipe(pipe_fds));
    world_open(&w, WORLD_SMALL);
    CHECK(!shm_life_any_locked(file, 64));
    CHECK_OK(shm_member_join(&self, &w.segment, 0, SHM_KIND_ROOT, "self", path));
    shm_member_attach_transport(&self);
    CHECK_OK(shm_thread_open(&thread, &self));
    CHECK(shm_life_any_locked(file, 64));
    struct child child = {&w.segment, path, pipe_fds[1], loses_its_lock};
    pid_t pid = check_fork(live_until_killed, &child);
    uint32_t slot;
    CHECK_EQ(read(pipe_fds[0], &slot, sizeof slot), (long)sizeof slot);
    CHECK(!shm_member_is_dead(&self, slot)); /* a lost lock alone is no proof: it still maps the segment */
    CHECK(!shm_reap(&thread, slot));
    kill(pid, SIGKILL);
    check_wait(pid);
    CHECK(shm_member_is_dead(&self, slot));
    CHECK(shm_reap(&thread, slot));
    shm_leave(&thread);
    shm_member_dispose(&self);
    CHECK(!shm_life_any_locked(file, 64));
    close(file);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    CHECK_OK(unlink(path));
    world_close(&w);
}

static void killed_process_is_proven_dead(void)
{
    life_and_death_of(false);
}

static void process_that_lost_its_life_lock_is_alive_until_killed(void)
{
    life_and_death_of(true);
}

static uint64_t cause_when(uint32_t said, uint32_t said_status, uint32_t seen, uint32_t seen_status)
{
    struct world w;
    struct actor a;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    shm_member_id id = actor_id(&a);
    CHECK_EQ(shm_member_cause(&w.segment, id), (id >> 16) << 20);
    if (said) {
        shm_member_say_reason(&w.segment, id, said, said_status);
        shm_member_say_reason(&w.segment, id, SHM_EXIT_EXITED, 99); /* the first word counts */
    }
    if (seen) {
        shm_member_say_status(&w.segment, id, seen, seen_status);
        shm_member_say_status(&w.segment, id, SHM_EXIT_EXITED, 99);
    }
    actor_leave(&a);
    uint64_t cause = shm_member_cause(&w.segment, id);
    CHECK_EQ(cause >> 20, id >> 16);
    actor_join(&w, &a);
    if (a.member.slot == (id & 0xFFFF))
        CHECK_EQ(shm_member_cause(&w.segment, actor_id(&a)) & 0xFFFFF, 0);
    actor_leave(&a);
    world_close(&w);
    return cause & 0xFFFFF;
}

static void cause_is_what_was_said_when_it_agrees_with_what_was_seen(void)
{
    CHECK_EQ(cause_when(0, 0, 0, 0), 0);
    CHECK_EQ(cause_when(SHM_EXIT_RETURNED, 0, 0, 0), SHM_EXIT_RETURNED << 16);
    CHECK_EQ(cause_when(0, 0, SHM_EXIT_SIGNAL, 9), SHM_EXIT_SIGNAL << 16 | 9);
    CHECK_EQ(cause_when(SHM_EXIT_EXCEPTION, 0, SHM_EXIT_EXITED, 0x100), SHM_EXIT_EXCEPTION << 16 | 0x100);
    CHECK_EQ(cause_when(SHM_EXIT_RETURNED, 0, SHM_EXIT_SIGNAL, 11), SHM_EXIT_SIGNAL << 16 | 11);
    CHECK_EQ(cause_when(SHM_EXIT_KILLED, 9, SHM_EXIT_SIGNAL, 9), SHM_EXIT_KILLED << 16 | 9);
    CHECK_EQ(cause_when(SHM_EXIT_KILLED, 9, SHM_EXIT_EXITED, 0x300), SHM_EXIT_EXITED << 16 | 0x300);
}

/* How a process ended is learnt from the kernel, which tells only once somebody has waited for it: here late. */
static void keeper_waits_for_the_cause_and_so_does_who_asks(void)
{
    struct world w;
    struct shm_member self;
    struct shm_thread thread;
    char path[] = "/tmp/shmipc-test-life-XXXXXX";
    int file = mkstemp(path), pipe_fds[2], status;
    CHECK(file >= 0);
    CHECK_OK(pipe(pipe_fds));
    world_open(&w, WORLD_SMALL);
    CHECK_OK(shm_member_join(&self, &w.segment, 0, SHM_KIND_ROOT, "self", path));
    shm_member_attach_transport(&self);
    CHECK_OK(shm_thread_open(&thread, &self));
    struct shm_keeper *keeper = shm_keeper_start(&self, NULL, 0, &status);
    CHECK(keeper);
    struct child child = {&w.segment, path, pipe_fds[1], false};
    pid_t pid = check_fork(live_until_killed, &child);
    uint32_t slot;
    CHECK_EQ(read(pipe_fds[0], &slot, sizeof slot), (long)sizeof slot);
    struct shm_member_record *record = shm_member_at(&w.segment, slot);
    record->kind = SHM_KIND_WORKER;
    shm_member_id id = shm_member_id_of(atomic_load(&record->word), slot);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    CHECK(pidfd >= 0);
    shm_keeper_poke(keeper);
    shm_clock_sleep(20 * MS); /* it opens a pidfd */
    kill(pid, SIGKILL);
    uint64_t until = shm_clock_ns() + 10000 * MS;
    while (shm_member_lives(&w.segment, id) && shm_clock_ns() < until)
        shm_clock_sleep(MS / 10);
    CHECK_EQ(shm_word_state(atomic_load(&record->word)), SHM_MEMBER_DYING);
    CHECK_EQ(shm_member_cause(&w.segment, id) & 0xFFFFF, 0);
    shm_clock_sleep(20 * MS); /* as if the scheduler had taken it between its end and the wait for it */
    check_wait(pid);
    uint32_t told;
    uint32_t cause = shm_reap_cause(&w.segment, id) & 0xFFFFF;
    if (shm_process_status(pidfd, &told))
        CHECK_EQ(cause, SHM_EXIT_SIGNAL << 16 | SIGKILL);
    close(pidfd);
    shm_keeper_stop(keeper);
    while (!shm_reap(&thread, slot))
        shm_clock_sleep(MS);
    shm_leave(&thread);
    shm_member_dispose(&self);
    close(file);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    CHECK_OK(unlink(path));
    world_close(&w);
}

/* Its process runs no more: it is dead for all, but its block, and its slot, are its own until the process has ended. */
static void what_an_ending_process_leases_comes_back_when_it_has_ended(void)
{
    struct world w;
    struct actor a, victim;
    struct shm_box box, theirs;
    shm_lease_index lease;
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &victim);
    box_make(&a, &box, SHM_BOX_SHARED, 4);
    box_open(&victim, &theirs, &box);
    uint32_t slot = victim.member.slot;
    CHECK_OK(shm_block_take(&victim.thread, 10000, &lease));
    uint32_t leases = world_count(&w).leases;
    shm_word word = victim.member.word;
    shm_word former = shm_word_make(shm_word_count(word) - 1, 0, SHM_MEMBER_LIVE);
    CHECK(!shm_reap_ending(&a.thread, slot, former, SIGKILL)); /* another life */
    CHECK(shm_reap_ending(&a.thread, slot, word, SIGKILL));
    CHECK(!shm_reap_ending(&a.thread, slot, word, SIGKILL));
    CHECK(!shm_member_lives(&w.segment, actor_id(&victim)));
    CHECK_EQ(shm_member_cause(&w.segment, actor_id(&victim)) & 0xFFFFF, SHM_EXIT_SIGNAL << 16 | SIGKILL);
    CHECK(!shm_reap(&a.thread, slot));
    shm_reap_all(&a.thread);
    CHECK_EQ(world_count(&w).leases, leases);
    CHECK_EQ(shm_word_state(atomic_load(&victim.member.record->word)), SHM_MEMBER_DYING);
    actor_die(&w, &victim);
    CHECK(shm_reap(&a.thread, slot));
    CHECK(world_count(&w).leases < leases);
    shm_box_release(&a.thread, &box);
    actor_leave(&a);
    world_close(&w);
}

/* ---- races ------------------------------------------------------------------------------------------------- */

static void join_and_leave(void *argument, int index)
{
    struct world *w = argument;
    for (int i = 0; i < 200; i++) {
        struct actor a;
        struct shm_box box;
        actor_join(w, &a);
        if (index == 0) {
            shm_reap_all(&a.thread);
        } else if (index == 1) {
            int64_t id = shm_member_prepare(&w->segment, &a.member, SHM_KIND_WORKER, "");
            shm_member_forget(&w->segment, (shm_member_id)id);
            shm_reap_all(&a.thread);
        } else {
            box_make(&a, &box, SHM_BOX_ACTOR, 4);
            CHECK_OK(box_send_block(&a, &box, 1, 1, true, 0));
            CHECK_OK(box_send(&a, &box, 1, 1, 0));
        }
        actor_leave(&a);
    }
}

static void members_come_and_go_while_others_reap(void)
{
    struct world w;
    struct actor a;
    world_open(&w, WORLD_SMALL);
    check_threads(4, join_and_leave, &w);
    actor_join(&w, &a);
    shm_reap_all(&a.thread);
    actor_leave(&a);
    world_close(&w);
}

int main(void)
{
    RUN(slot_has_another_generation_after_it_was_left);
    RUN(join_is_refused_at_the_limit_and_possible_after_a_leave);
    RUN(dead_member_is_reaped_by_another_and_only_then_free);
    RUN(prepared_slot_goes_when_it_is_forgotten_or_its_creator_dies);
    RUN(prepared_slot_is_joined_once);
    RUN(prepared_slot_whose_process_ended_before_joining_is_dead);
    RUN(killed_process_is_proven_dead);
    RUN(process_that_lost_its_life_lock_is_alive_until_killed);
    RUN(cause_is_what_was_said_when_it_agrees_with_what_was_seen);
    RUN(keeper_waits_for_the_cause_and_so_does_who_asks);
    RUN(what_an_ending_process_leases_comes_back_when_it_has_ended);
    RUN(members_come_and_go_while_others_reap);
    return 0;
}
