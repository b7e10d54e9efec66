#include "transport/lane.h"

#include <string.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/killpoint.h"
#include "base/status.h"

enum { BLIND_NS = 1000000, LOOKS = 1000 };

static uint64_t stride_of(uint32_t slot_bytes)
{
    return shm_round_up(8 + (uint64_t)slot_bytes, 64);
}

uint64_t shm_lane_bytes(uint32_t slots, uint32_t slot_bytes)
{
    return sizeof(struct shm_lane_posted) + slots * stride_of(slot_bytes);
}

static unsigned char *slot_at(const struct shm_lane *lane, uint64_t position)
{
    return (unsigned char *)(lane->posted + 1) + position % lane->slots * stride_of(lane->slot_bytes);
}

/* Where the kernel looks whether a position has moved. It cannot come round meanwhile: there are so many slots at most. */
static const _Atomic uint32_t *low_half(const _Atomic uint64_t *position)
{
    return (const _Atomic uint32_t *)(const void *)position + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

/* ---- positions --------------------------------------------------------------------------------------------- */

/* What the other side has done so far, seen from ours: messages in the lane. */
int64_t shm_lane_depth(const struct shm_lane *lane)
{
    uint64_t depth = lane->posts ? lane->position - atomic_load(&lane->taken->head)
                                 : atomic_load(&lane->posted->tail) - lane->position;
    return depth <= lane->slots ? (int64_t)depth : SHM_CORRUPTED;
}

int shm_lane_open(struct shm_lane *lane)
{
    lane->position = lane->posts ? atomic_load(&lane->posted->tail) : atomic_load(&lane->taken->head);
    return shm_lane_depth(lane) < 0 ? SHM_CORRUPTED : 0;
}

int64_t shm_lane_count(const struct shm_lane *lane)
{
    uint64_t depth = 0;
    for (int i = 0; i < LOOKS; i++) { /* a hostile reader may change it for ever */
        uint64_t head = atomic_load(&lane->taken->head);
        depth = atomic_load(&lane->posted->tail) - head;
        if (head == atomic_load(&lane->taken->head))
            break;
    }
    return depth <= lane->slots ? (int64_t)depth : SHM_CORRUPTED;
}

/* ---- posting and taking ------------------------------------------------------------------------------------ */

int shm_lane_post(struct shm_lane *lane, const void *body, uint64_t len_bytes)
{
    if (len_bytes > lane->slot_bytes)
        return SHM_TOO_LARGE;
    int64_t depth = shm_lane_depth(lane);
    if (depth < 0 || depth == (int64_t)lane->slots)
        return depth < 0 ? SHM_CORRUPTED : SHM_FULL;
    unsigned char *slot = slot_at(lane, lane->position);
    uint32_t len = (uint32_t)len_bytes;
    SHM_KILL_POINT(lane_copy);
    memcpy(slot, &len, sizeof len);
    if (len)
        memcpy(slot + 8, body, len);
    uintptr_t before = shm_will_make(&lane->board->knell); /* L3 */
    SHM_KILL_POINT(lane_post);
    atomic_store(&lane->posted->tail, ++lane->position); /* L1 */
    SHM_KILL_POINT(lane_posted);
    if (atomic_load(&lane->taken->waits))
        shm_futex_wake(low_half(&lane->posted->tail));
    shm_will_revoke(before);
    return 0;
}

int shm_lane_next(const struct shm_lane *lane, uint32_t *len_bytes)
{
    int64_t depth = shm_lane_depth(lane);
    if (depth <= 0)
        return depth < 0 ? SHM_CORRUPTED : SHM_EMPTY;
    *len_bytes = *(const volatile uint32_t *)(const void *)slot_at(lane, lane->position);
    return *len_bytes <= lane->slot_bytes ? 0 : SHM_CORRUPTED;
}

void shm_lane_take(struct shm_lane *lane, void *into, uint32_t len_bytes)
{
    if (len_bytes)
        memcpy(into, slot_at(lane, lane->position) + 8, len_bytes);
    uintptr_t before = shm_will_make(&lane->taken->knell); /* L3 */
    SHM_KILL_POINT(lane_take);
    atomic_store(&lane->taken->head, ++lane->position); /* L2 */
    SHM_KILL_POINT(lane_taken);
    if (atomic_load(&lane->posted->waits))
        shm_futex_wake(low_half(&lane->taken->head));
    shm_will_revoke(before);
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

/* What the other side moves. */
static const _Atomic uint64_t *others(const struct shm_lane *lane)
{
    return lane->posts ? &lane->taken->head : &lane->posted->tail;
}

static void say(struct shm_lane *lane, uint32_t waits)
{
    atomic_store(lane->posts ? &lane->posted->waits : &lane->taken->waits, waits);
}

static bool has_something(const struct shm_lane *lane)
{
    return shm_lane_depth(lane) != (lane->posts ? (int64_t)lane->slots : 0);
}

void shm_lane_wait(struct shm_lane *const *lanes, uint32_t count, const struct shm_lane_board *board,
                   uint32_t seen, uint64_t ns)
{
    struct shm_futex futexes[SHM_LANES_MAX + 2];
    bool something = false;
    count = count < SHM_LANES_MAX ? count : SHM_LANES_MAX;
    for (uint32_t i = 0; i < count; i++) {
        const _Atomic uint64_t *moves = others(lanes[i]);
        say(lanes[i], 1);
        futexes[i] = (struct shm_futex){low_half(moves), (uint32_t)atomic_load(moves)}; /* L1, L2 */
        something |= has_something(lanes[i]);
    }
    const _Atomic uint32_t *knell = count && lanes[0]->posts ? &lanes[0]->taken->knell : &board->knell;
    futexes[count] = (struct shm_futex){&board->bell, seen};
    futexes[count + 1] = (struct shm_futex){knell, atomic_load(knell)}; /* L3 */
    if (!something && !shm_futex_sleep(futexes, count + 2, ns))
        shm_clock_sleep(ns < BLIND_NS ? ns : BLIND_NS);
    for (uint32_t i = 0; i < count; i++)
        say(lanes[i], 0);
}

/* ---- the owner's board ------------------------------------------------------------------------------------- */

static void ring(struct shm_lane_board *board)
{
    atomic_fetch_add(&board->bell, 1);
    shm_futex_wake(&board->bell);
}

void shm_board_reader(struct shm_lane_board *board, uint32_t state)
{
    atomic_store(&board->reader, state);
    ring(board);
}

void shm_board_poster(struct shm_lane_board *board, uint32_t lane, uint32_t uid, uint32_t state)
{
    atomic_store(&board->posters[lane], (uint64_t)uid << 32 | state);
    ring(board);
}
