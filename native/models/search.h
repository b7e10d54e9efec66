/* A search over the core's own functions: every order of the shared steps of a few members, with deaths and stops.
 *
 * A scene has a world, made by `setup`, and up to MODEL_FIBERS members; each is a fiber that runs `program`. At each
 * step (step.h) that touches a word which another member uses too, the search may go on with any fiber that can, or
 * kill the one that stands there, or stop it until nobody else can go on. The whole of memory (mapping, what members
 * keep for themselves, fiber stacks) is hashed, and a state that was seen is not searched again.
 *
 * Which words are shared is learnt: a pass treats as shared what an earlier pass saw used by two fibers, one of them
 * writing; a pass that finds another such word ends, and the next begins anew. The last pass found none, so steps
 * between its points commute with everybody's. A word that only the reapers of its writer read is a point at which
 * the writer may die, not one at which others may run.
 */
#ifndef MODEL_SEARCH_H
#define MODEL_SEARCH_H

#include "transport/abort.h"
#include "transport/bus.h"
#include "transport/cell.h"
#include "transport/keeper.h"
#include "transport/lane.h"
#include "transport/mailbox.h"
#include "transport/notice.h"
#include "transport/waitset.h"

enum {
    MODEL_FIBERS = 6,
    MODEL_SLOTS = 12,
    MODEL_STACK_BYTES = 48 << 10,
    MODEL_HEAP_BYTES = 64 << 10,
    MODEL_MESSAGES = 16,
    MODEL_FUTEXES = 3
};
#define MODEL_UNBOUNDED 1000

struct scene {
    const char *name, *what;
    int fibers;
    void (*setup)(void);
    void (*program)(int fiber);
    /* Of every state, of every end; they call model_fail. The end has been mended: the dead are reaped. */
    void (*always)(void);
    void (*at_end)(void);
    void (*at_crash)(int fiber); /* it is about to be forgotten */
    /* Is there what a fiber waits for whose wait is of the scene's kind? */
    bool (*is_there)(int fiber);
    uint32_t mortal;       /* bit mask of fibers that may die */
    uint32_t short_mortal; /* in the short form, 0: the same */
    uint32_t stoppable;    /* ... that may be stopped until the others can do no more */
    int deaths, stops;     /* so many in one run */
    bool slices;      /* when nobody can go on, parks end their slice: the scene has no reaper of its own */
    uint32_t threads; /* bit mask of fibers that are threads of the first one's process: they die together */
    bool lasts; /* who dies is dead at once, and his process is taken apart later, by a fiber of the scene */
    int bound, full; /* switches away from a fiber that could go on: in the short form, in the whole */
};

enum fiber_state { FIBER_READY, FIBER_PARKED, FIBER_PAUSED, FIBER_IDLE, FIBER_ENDED, FIBER_DEAD };
enum fiber_point { POINT_SHARED, POINT_MORTAL };

struct fiber {
    void *sp;
    uint8_t state, point, slices;
    bool writes, stopped, woken, timed_out, is_slice;
    int line;
    const char *function;
    const volatile void *address;
    sem_t *semaphore; /* parked on it; NULL: on words */
    const volatile void *futexes[MODEL_FUTEXES];
    bool rung;
    uintptr_t will;
    uint64_t until_ns;
};

/* What a fiber says it waits for, so that an end can be judged. */
struct waits {
    enum {
        WAITS_NOTHING,
        WAITS_MESSAGE,
        WAITS_ROOM,
        WAITS_REPLY,
        WAITS_FRAME,
        WAITS_PUBLISH,
        WAITS_SYNC,
        WAITS_LANE,
        WAITS_ANY /* as the scene says */
    } kind;
    struct shm_box *box;
    struct shm_filter filter;
    shm_call_id call;
    uint32_t syncs; /* bit mask of those that are waited for at once */
};

/* All that is not in the mapping: private memory of the members, and what the scene has seen. */
struct image {
    struct fiber fibers[MODEL_FIBERS];
    uint64_t now_ns;
    uint32_t deaths, stops;
    uint64_t dead[MODEL_SLOTS]; /* generation + 1 that died in each slot */
    struct shm_member auditor_member, members[MODEL_FIBERS];
    struct shm_thread auditor, threads[MODEL_FIBERS];
    struct shm_box auditor_boxes[2], boxes[MODEL_FIBERS][2];
    struct shm_bus_view auditor_bus, buses[MODEL_FIBERS];
    struct shm_subscription readers[MODEL_FIBERS];
    struct shm_sync_view auditor_syncs[2], syncs[MODEL_FIBERS][2];
    struct shm_lane lanes[MODEL_FIBERS];
    struct waits waits[MODEL_FIBERS];
    shm_member_id ids[MODEL_FIBERS];
    uint8_t
        sent[MODEL_MESSAGES]; /* 1 + status below zero turned: 1 sent, more: refused; 0: not yet, or died */
    uint8_t got[MODEL_MESSAGES]; /* how often */
    uint8_t in_dead_hands[MODEL_MESSAGES], tags[MODEL_MESSAGES];
    int8_t order[MODEL_FIBERS][MODEL_MESSAGES];
    uint8_t received[MODEL_FIBERS];
    uint64_t notes[16]; /* of the scene */
    uint32_t heap_used;
};

extern struct image *const model;
extern const struct scene *model_scene;
extern struct shm_segment model_segment;
/* Which of the injected bugs is on; 0: none. Read by the copies of the core's sources that bugs.py makes. */
extern int model_bug;

/* For scenes. */
void model_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The calling fiber goes on when a member has died that nobody has reaped. */
void model_wait_for_death(void);
/* What is no shared word has changed: whoever pauses goes on. */
void model_tell(void);
bool model_is_unreaped(uint32_t slot);
uint32_t model_slot(int fiber);
bool model_has_ended(int fiber);
bool model_is_dead(int fiber);

struct result {
    unsigned long states, steps, ends, passes;
    double seconds;
    bool failed, exhausted;
    char failure[256];
};

/* Search `scene` with at most `bound` switches; prints the shortest run found to a failure when `verbose`. */
struct result model_search(const struct scene *scene, int bound, unsigned long states_max, bool verbose);

#endif
