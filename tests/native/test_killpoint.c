/* Kill points: counted, armed by name, and fatal at exactly the passing that was asked for. */
#include "base/killpoint.h"

#include "check.h"

#include <signal.h>

static void pass_three_times(void *unused)
{
    (void)unused;
    for (int i = 0; i < 3; i++)
        SHM_KILL_POINT(send_claim);
}

static void pass_often(void *unused, int index)
{
    (void)index;
    for (int i = 0; i < 1000; i++)
        pass_three_times(unused);
}

static void die_at_the_third_passing(void *unused)
{
    CHECK_OK(shm_kill_point_arm("send_claim", 3, SIGKILL));
    SHM_KILL_POINT(send_claim);
    SHM_KILL_POINT(send_publish);
    SHM_KILL_POINT(send_claim);
    pass_three_times(unused);
}

static void live_through_two_passings(void *unused)
{
    (void)unused;
    CHECK_OK(shm_kill_point_arm("send_claim", 3, SIGKILL));
    SHM_KILL_POINT(send_claim);
    SHM_KILL_POINT(send_claim);
}

static void passings_of_all_threads_are_counted(void)
{
    shm_kill_point_disarm();
    check_threads(4, pass_often, NULL);
    CHECK_EQ(shm_kill_point_passed("send_claim"), 12000);
    CHECK_EQ(shm_kill_point_passed("send_publish"), 0);
}

static void armed_point_kills_at_the_passing_asked_for(void)
{
    int status = check_wait(check_fork(die_at_the_third_passing, NULL));
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGKILL);
    CHECK_OK(check_wait(check_fork(live_through_two_passings, NULL)));
}

static void unknown_point_is_refused(void)
{
    CHECK(shm_kill_point_arm("no_such_point", 1, SIGKILL) != 0);
    CHECK(shm_kill_point_arm("send_claim", 0, SIGKILL) != 0);
    CHECK_EQ(shm_kill_point_passed("no_such_point"), 0);
}

static int hooked = -1;

static void remember(enum shm_kill_point point)
{
    hooked = (int)point;
}

static void hook_is_called_once_instead_of_the_signal(void)
{
    shm_kill_point_hook = remember;
    CHECK_OK(shm_kill_point_arm("send_publish", 1, SIGKILL));
    SHM_KILL_POINT(send_claim);
    CHECK_EQ(hooked, -1);
    SHM_KILL_POINT(send_publish);
    CHECK_EQ(hooked, SHM_KILL_send_publish);
    hooked = -1;
    SHM_KILL_POINT(send_publish);
    CHECK_EQ(hooked, -1);
    shm_kill_point_hook = NULL;
}

int main(void)
{
    RUN(passings_of_all_threads_are_counted);
    RUN(armed_point_kills_at_the_passing_asked_for);
    RUN(unknown_point_is_refused);
    RUN(hook_is_called_once_instead_of_the_signal);
    return 0;
}
