/* Vigils: a thread that ends without a word is heard, one that ends in order is not. */
#include "world.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>

#include "transport/vigil.h"

static struct world w;
static struct actor a, b;
static int poke[2];

struct keeping {
    _Atomic uint32_t *word;
    bool orderly;
};

static void *keep(void *argument)
{
    const struct keeping *keeping = argument;
    static _Thread_local struct shm_vigil vigil; /* goes with the thread, after the kernel has read it */
    shm_vigil_begin(&vigil, keeping->word);
    CHECK((atomic_load(keeping->word) & FUTEX_TID_MASK) != 0);
    if (keeping->orderly)
        shm_vigil_end(&vigil, keeping->word);
    return NULL;
}

static void keep_and_end(struct actor *of, bool orderly)
{
    pthread_t thread;
    struct keeping keeping = {.word = &of->member.record->vigil, .orderly = orderly};
    CHECK_OK(pthread_create(&thread, NULL, keep, &keeping));
    CHECK_OK(pthread_join(thread, NULL));
}

/* Is something told within so many milliseconds? */
static bool is_told(int milliseconds)
{
    char bytes[64];
    struct pollfd polled = {.fd = poke[0], .events = POLLIN};
    return poll(&polled, 1, milliseconds) == 1 && read(poke[0], bytes, sizeof bytes) > 0;
}

static void end_of_a_vigil_is_heard_and_told_whose(void)
{
    shm_member_id heard[SHM_LISTENER_ROOM], members[2];
    CHECK_OK(pipe2(poke, O_NONBLOCK | O_CLOEXEC));
    world_open(&w, WORLD_SMALL);
    actor_join(&w, &a);
    actor_join(&w, &b);
    struct shm_listener *listener = shm_listener_start(&w.segment, poke[1]);
    CHECK(listener);
    members[0] = actor_id(&a);
    members[1] = actor_id(&b);
    shm_listener_hear(listener, members, 2);
    keep_and_end(&a, true);
    CHECK(!is_told(20));
    keep_and_end(&b, false);
    if (!is_told(2000)) {
        fprintf(stderr, "  this kernel has no futex_waitv\n");
    } else {
        CHECK_EQ(shm_listener_take(listener, heard), 1);
        CHECK_EQ(heard[0], actor_id(&b));
        CHECK_EQ(shm_listener_take(listener, heard), 0);
        CHECK(!is_told(20)); /* once */

        /* Another life in the same slot. */
        do {
            actor_leave(&b);
            actor_join(&w, &b);
        } while ((actor_id(&b) & 0xFFFF) != (members[1] & 0xFFFF));
        members[1] = actor_id(&b);
        shm_listener_hear(listener, members, 2);
        CHECK(!is_told(20));
        keep_and_end(&b, false);
        CHECK(is_told(2000));
        CHECK_EQ(shm_listener_take(listener, heard), 1);
        CHECK_EQ(heard[0], actor_id(&b));
    }
    shm_listener_stop(listener);
    actor_leave(&b);
    actor_leave(&a);
    world_close(&w);
    close(poke[0]);
    close(poke[1]);
}

int main(void)
{
    RUN(end_of_a_vigil_is_heard_and_told_whose);
    return 0;
}
