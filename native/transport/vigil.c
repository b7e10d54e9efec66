#define _GNU_SOURCE
#include "transport/vigil.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/killpoint.h"

#define SLEEP_NS (60 * SHM_NS_PER_S)

enum { WORDS = (SHM_LISTENER_ROOM + 63) / 64 };
_Static_assert(SHM_LISTENER_ROOM + 1 <= (int)SHM_FUTEX_MAX, "and the listener's own word");

void shm_vigil_begin(struct shm_vigil *vigil, _Atomic uint32_t *word)
{
    vigil->entry.next = &vigil->head.list;
    vigil->head.list.next = &vigil->entry;
    vigil->head.futex_offset = (long)((uintptr_t)word - (uintptr_t)&vigil->entry);
    vigil->head.list_op_pending = NULL;
    SHM_KILL_POINT(vigil_begin);
    atomic_store(word, (uint32_t)syscall(SYS_gettid) | FUTEX_WAITERS);
    syscall(SYS_set_robust_list, &vigil->head, sizeof vigil->head); /* refused: there are no hints */
}

void shm_vigil_end(struct shm_vigil *vigil, _Atomic uint32_t *word)
{
    vigil->head.list.next = &vigil->head.list;
    atomic_signal_fence(memory_order_seq_cst); /* the kernel reads it in this thread */
    SHM_KILL_POINT(vigil_end);
    atomic_store(word, 0);
}

struct shm_listener {
    struct shm_segment *segment;
    int poke;
    pthread_t thread;
    _Atomic uint32_t changes; /* of what is to be heard; its thread waits for this too */
    _Atomic int stop;
    pthread_mutex_t lock; /* of the two below */
    shm_member_id members[SHM_LISTENER_ROOM];
    uint32_t count;
    _Atomic uint64_t
        ended[WORDS]; /* by place in `members`; a hint that is taken for another's costs a look */
};

static _Atomic uint32_t *vigil_of(const struct shm_segment *segment, shm_member_id id)
{
    return &shm_member_at(segment, id & 0xFFFF)->vigil;
}

static void *listen_to(void *argument)
{
    struct shm_listener *listener = argument;
    shm_member_id members[SHM_LISTENER_ROOM];
    uint32_t count = 0, heard = 0;
    bool told[SHM_LISTENER_ROOM] = {false};
    struct shm_futex futexes[SHM_LISTENER_ROOM + 1];
    while (!atomic_load(&listener->stop)) {
        uint32_t changes = atomic_load(&listener->changes), waits = 1;
        if (changes != heard) {
            pthread_mutex_lock(&listener->lock);
            count = listener->count;
            memcpy(members, listener->members, count * sizeof *members);
            pthread_mutex_unlock(&listener->lock);
            memset(told, 0, sizeof told);
            heard = changes;
        }
        futexes[0] = (struct shm_futex){&listener->changes, changes};
        bool tell = false;
        for (uint32_t i = 0; i < count; i++) {
            _Atomic uint32_t *vigil = vigil_of(listener->segment, members[i]);
            uint32_t value = atomic_load(vigil);
            if (!(value & FUTEX_OWNER_DIED)) {
                told[i] = false;
                futexes[waits++] = (struct shm_futex){vigil, value};
            } else if (!told[i]) {
                told[i] = tell = true;
                atomic_fetch_or(&listener->ended[i / 64], UINT64_C(1) << i % 64);
            }
        }
        if (tell && write(listener->poke, "v", 1) < 0 && errno != EAGAIN)
            break;
        if (!shm_futex_sleep(futexes, waits, SLEEP_NS))
            break; /* there are no hints */
    }
    return NULL;
}

struct shm_listener *shm_listener_start(struct shm_segment *segment, int poke)
{
    struct shm_listener *listener = calloc(1, sizeof *listener);
    if (!listener)
        return NULL;
    listener->segment = segment;
    listener->poke = poke;
    pthread_mutex_init(&listener->lock, NULL);
    if (pthread_create(&listener->thread, NULL, listen_to, listener) == 0)
        return listener;
    pthread_mutex_destroy(&listener->lock);
    free(listener);
    return NULL;
}

static void call(struct shm_listener *listener)
{
    atomic_fetch_add(&listener->changes, 1);
    shm_futex_wake(&listener->changes);
}

void shm_listener_hear(struct shm_listener *listener, const shm_member_id *members, uint32_t count)
{
    if (count > SHM_LISTENER_ROOM)
        count = SHM_LISTENER_ROOM;
    if (count == listener->count && memcmp(members, listener->members, count * sizeof *members) == 0)
        return;
    pthread_mutex_lock(&listener->lock);
    memcpy(listener->members, members, count * sizeof *members);
    listener->count = count;
    pthread_mutex_unlock(&listener->lock);
    call(listener);
}

uint32_t shm_listener_take(struct shm_listener *listener, shm_member_id *members)
{
    uint32_t found = 0;
    for (uint32_t w = 0; w < WORDS; w++)
        for (uint64_t bits = atomic_exchange(&listener->ended[w], 0); bits; bits &= bits - 1) {
            uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (i < listener->count)
                members[found++] = listener->members[i];
        }
    return found;
}

void shm_listener_stop(struct shm_listener *listener)
{
    atomic_store(&listener->stop, 1);
    call(listener);
    pthread_join(listener->thread, NULL);
    pthread_mutex_destroy(&listener->lock);
    free(listener);
}
