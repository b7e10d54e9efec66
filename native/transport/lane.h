/* A lane: the messages of one poster to one reader, who may be of different users and do not trust each other.
 *
 * It lies in sealed memory, outside the segment, and knows no members: ends are given out by the owner of the lane, who
 * tells each the sizes. Everything that the other side can write is read once, and checked before it is used: a hostile
 * peer spoils his own lane, which is CORRUPTED then, and nothing else. Bytes: memory/layout.h.
 */
#ifndef SHM_LANE_H
#define SHM_LANE_H

#include <stdbool.h>
#include <stddef.h>

#include "memory/layout.h"

/* A lane as one process has it open, as its poster or as its reader. */
struct shm_lane {
    struct shm_lane_posted *posted;
    struct shm_lane_taken *taken;
    const struct shm_lane_board *board;
    uint32_t slots, slot_bytes;
    uint64_t position; /* what this side posts, or takes, next; its own copy, which nobody else can change */
    bool posts;
};

/* Bytes of the poster's memory. */
uint64_t shm_lane_bytes(uint32_t slots, uint32_t slot_bytes);

/* Go on where the last one at this end stopped: 0, or CORRUPTED. */
int shm_lane_open(struct shm_lane *lane);
/* Messages posted and not taken, 0 to slots; CORRUPTED. */
int64_t shm_lane_depth(const struct shm_lane *lane);
/* 0, FULL, TOO_LARGE, CORRUPTED. */
int shm_lane_post(struct shm_lane *lane, const void *body, uint64_t len_bytes);
/* The length of the next message: 0, EMPTY, CORRUPTED. */
int shm_lane_next(const struct shm_lane *lane, uint32_t *len_bytes);
/* Copy the next message, of so many bytes, and count it as taken. For who has just asked `next`. */
void shm_lane_take(struct shm_lane *lane, void *into, uint32_t len_bytes);

/* Wait, ns at most, until there is something to do in one of the lanes (a message, room, or what cannot be), or the
 * owner's bell is not `seen` any more; a poster in one lane alone. May return at any time. A stranger may have moved a
 * sleeper to another futex (FUTEX_REQUEUE), and one who is stopped keeps his wake: so nobody sleeps long without looking
 * again. */
void shm_lane_wait(struct shm_lane *const *lanes, uint32_t count, const struct shm_lane_board *board,
                   uint32_t seen, uint64_t ns);

/* Messages in it, for the owner, who may have neither end and sees both move: or SHM_CORRUPTED. */
int64_t shm_lane_count(const struct shm_lane *lane);

/* For the owner: who has an end, told to all. */
void shm_board_reader(struct shm_lane_board *board, uint32_t state);
void shm_board_poster(struct shm_lane_board *board, uint32_t lane, uint32_t uid, uint32_t state);
#endif
