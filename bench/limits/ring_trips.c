/* Round trips of 64 bytes between two pinned processes over two bare rings: what memory alone costs. */
#define _GNU_SOURCE
#include "ring.h"
#include "trips.h"

struct rings {
    struct ring to_far, to_near;
};

static void prepare(void *shared)
{
    (void)shared; /* all zero is an empty ring */
}

static void near_side(void *shared, const struct plan *plan, long trips, int64_t *samples)
{
    struct rings *rings = shared;
    unsigned char body[RING_BODY_BYTES] = {0}, reply[RING_BODY_BYTES];
    for (long trip = 0; trip < trips; trip++) {
        memcpy(body, &trip, sizeof trip);
        wait_gap(plan);
        int64_t started = now_ns();
        ring_put(&rings->to_far, body);
        memcpy(reply, ring_peek(&rings->to_near), sizeof reply);
        ring_drop(&rings->to_near);
        samples[trip] = now_ns() - started;
        if (memcmp(body, reply, sizeof body)) {
            fprintf(stderr, "the reply differs from the message\n");
            exit(1);
        }
    }
}

static void far_side(void *shared, long trips)
{
    struct rings *rings = shared;
    unsigned char body[RING_BODY_BYTES];
    for (long trip = 0; trip < trips; trip++) {
        memcpy(body, ring_peek(&rings->to_far), sizeof body);
        ring_drop(&rings->to_far);
        ring_put(&rings->to_near, body);
    }
}

int main(int count, char **words)
{
    return run_trips(count, words, sizeof(struct rings), prepare, near_side, far_side);
}
