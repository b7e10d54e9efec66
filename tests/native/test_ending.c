/* A process that is ending: told from one that lives, is stopped, or has lost its first thread. */
#define _GNU_SOURCE
#include "memory/ending.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/clock.h"
#include "check.h"
#include "memory/member.h"

#define MS UINT64_C(1000000)

static uint32_t status;

static enum shm_ending ending_of(pid_t pid)
{
    return shm_process_ending(pid, shm_process_start_time(pid), &status);
}

static void await(pid_t pid, enum shm_ending wanted)
{
    uint64_t until = shm_clock_ns() + 10000 * MS;
    while (ending_of(pid) != wanted && shm_clock_ns() < until)
        shm_clock_sleep(MS / 10);
    CHECK_EQ(ending_of(pid), wanted);
}

static void *sleep_on(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static pid_t start(void (*body)(void *))
{
    int ends[2];
    char byte;
    CHECK_OK(pipe(ends));
    pid_t pid = check_fork(body, &ends[1]);
    close(ends[1]);
    CHECK_EQ(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    return pid;
}

static void live_with_another_thread(void *end)
{
    pthread_t other;
    CHECK_OK(pthread_create(&other, NULL, sleep_on, NULL));
    CHECK_EQ(write(*(int *)end, "x", 1), 1);
    sleep_on(NULL);
}

/* The exit code of a process whose first thread has ended is that thread's, and the process goes on. */
static void lose_the_first_thread(void *end)
{
    pthread_t other;
    CHECK_OK(pthread_create(&other, NULL, sleep_on, NULL));
    CHECK_EQ(write(*(int *)end, "x", 1), 1);
    syscall(SYS_exit, 5);
}

static void killed_process_is_ending_until_it_was_waited_for(void)
{
    pid_t pid = start(live_with_another_thread);
    uint64_t start_time = shm_process_start_time(pid);
    CHECK_EQ(ending_of(pid), SHM_ENDING_SOON); /* for all that is known without reading more */
    kill(pid, SIGKILL);
    await(pid, SHM_ENDING_SURE);
    CHECK_EQ(status, SIGKILL);
    CHECK_EQ(shm_process_ending(pid, start_time + 1, &status), SHM_ENDING_NOT);
    CHECK_EQ(check_wait(pid), SIGKILL);
    CHECK_EQ(shm_process_ending(pid, start_time, &status), SHM_ENDING_NOT);
}

static void stopped_process_is_not_ending(void)
{
    pid_t pid = start(live_with_another_thread);
    kill(pid, SIGSTOP);
    CHECK_EQ(waitpid(pid, NULL, WUNTRACED), pid);
    CHECK(ending_of(pid) != SHM_ENDING_SURE);
    kill(pid, SIGCONT);
    kill(pid, SIGTERM);
    await(pid, SHM_ENDING_SURE);
    CHECK_EQ(status, SIGTERM);
    check_wait(pid);
}

static void process_that_has_lost_its_first_thread_is_not_ending(void)
{
    pid_t pid = start(lose_the_first_thread);
    await(pid, SHM_ENDING_SOON);
    shm_clock_sleep(MS);
    CHECK_EQ(ending_of(pid), SHM_ENDING_SOON);
    kill(pid, SIGKILL);
    await(pid, SHM_ENDING_SURE);
    CHECK_EQ(status, SIGKILL);
    CHECK_EQ(check_wait(pid), SIGKILL);
}

int main(void)
{
    RUN(killed_process_is_ending_until_it_was_waited_for);
    RUN(stopped_process_is_not_ending);
    RUN(process_that_has_lost_its_first_thread_is_not_ending);
    return 0;
}
