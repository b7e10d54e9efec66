#include "transport/rwlock.h"

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/queue.h"

/* ---- waits ------------------------------------------------------------------------------------------------- */

struct queueing {
    struct shm_queue queue;
    struct shm_sync_view *view, *mutex;
    bool unlocked;
    uint64_t generation; /* of a barrier */
    uint32_t entry, index;
};

static bool seen(struct shm_thread *self, const struct shm_queue *queue)
{
    uint64_t word = atomic_load(&queue->view->sync->word);
    return shm_sync_is_available(self, queue->view, word);
}

static struct queueing queueing(struct shm_sync_view *view, struct shm_waitable set)
{
    return (struct queueing){.queue = {.view = view, .set = set, .seen = seen}, .view = view};
}

/* ---- read-write locks -------------------------------------------------------------------------------------- */

uint32_t shm_rwlock_readers(const struct shm_sync_view *view)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < view->config.entries; i++)
        count += shm_word_state(atomic_load(&view->entries[i])) == SHM_ENTRY_READER;
    return count;
}

static void wake_writer(struct shm_thread *self, struct shm_sync_view *view)
{
    struct shm_waitable others = shm_sync_others(view);
    if (!shm_set_empty(view->others))
        shm_wake_all(self, &others);
}

static bool is_open(const struct shm_sync_view *view)
{
    return (atomic_load(&view->sync->word) & 0xF) == SHM_SYNC_FREE;
}

static int attempt_read(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    struct shm_sync_view *view = q->view;
    if (atomic_load(&view->released))
        return SHM_CLOSED;
    if (!is_open(view) || !shm_queue_is_our_turn(self, &q->queue))
        return SHM_EMPTY;
    for (uint32_t n = 0; n < view->config.entries; n++) {
        uint32_t i = (self->place + n) % view->config.entries;
        shm_word word = atomic_load(&view->entries[i]);
        shm_word mine = shm_word_next(word, self->slot, SHM_ENTRY_READER);
        if (shm_word_state(word) != SHM_ENTRY_FREE)
            continue;
        SHM_KILL_POINT(rw_enter);
        if (!atomic_compare_exchange_strong(&view->entries[i], &word, mine)) /* R1 */
            continue;
        SHM_KILL_POINT(rw_entered);
        q->entry = i;
        if (is_open(view))
            return 0;
        shm_rwlock_leave(self, view, i);
        return SHM_EMPTY;
    }
    return SHM_EMPTY; /* as many as there may be */
}

static bool ready_to_read(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    return is_open(q->view) && shm_queue_is_our_turn(self, &q->queue) &&
           shm_rwlock_readers(q->view) < q->view->config.entries;
}

int shm_rwlock_read(struct shm_thread *self, struct shm_sync_view *view, uint32_t *entry,
                    uint64_t deadline_ns)
{
    struct queueing q = queueing(view, shm_sync_line(view));
    int status = shm_queue_wait(self, &q, attempt_read, ready_to_read, deadline_ns);
    *entry = q.entry;
    return status;
}

int shm_rwlock_leave(struct shm_thread *self, struct shm_sync_view *view, uint32_t entry)
{
    if (entry >= view->config.entries)
        return SHM_REFUSED;
    shm_word word = atomic_load(&view->entries[entry]);
    if (shm_word_state(word) != SHM_ENTRY_READER || shm_word_owner(word) != self->slot)
        return SHM_REFUSED;
    SHM_KILL_POINT(rw_leave);
    if (!atomic_compare_exchange_strong(&view->entries[entry], &word,
                                        shm_word_next(word, SHM_NOBODY, SHM_ENTRY_FREE)))
        return SHM_REFUSED;
    SHM_KILL_POINT(rw_left);
    wake_writer(self, view);
    shm_sync_pass(self, view); /* those for whom there was no entry */
    return 0;
}

static int attempt_write(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    struct shm_sync_view *view = q->view;
    uint64_t word = atomic_load(&view->sync->word);
    if (atomic_load(&view->released))
        return SHM_CLOSED;
    if ((word & 0xF) != SHM_SYNC_FREE || !shm_queue_is_our_turn(self, &q->queue) ||
        (q->queue.poll && shm_rwlock_readers(view)))
        return SHM_EMPTY;
    SHM_KILL_POINT(sync_take);
    if (!atomic_compare_exchange_strong(&view->sync->word, &word,
                                        shm_sync_next(word, shm_sync_held(self), SHM_SYNC_HELD))) /* R1 */
        return SHM_EMPTY;
    self->holds = true;
    return 0;
}

static bool ready_to_write(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    return is_open(q->view) && shm_queue_is_our_turn(self, &q->queue);
}

static int attempt_alone(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    (void)self;
    if (atomic_load(&q->view->released))
        return SHM_CLOSED;
    return shm_rwlock_readers(q->view) ? SHM_EMPTY : 0;
}

static bool is_alone(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    (void)self;
    return shm_rwlock_readers(q->view) == 0;
}

int shm_rwlock_write(struct shm_thread *self, struct shm_sync_view *view, uint64_t deadline_ns)
{
    struct queueing q = queueing(view, shm_sync_line(view));
    int status = shm_queue_wait(self, &q, attempt_write, ready_to_write, deadline_ns);
    if (status)
        return status;
    SHM_KILL_POINT(rw_taken);
    q.queue.set = shm_sync_others(view);
    status = shm_queue_wait(self, &q, attempt_alone, is_alone, deadline_ns);
    if (status)
        shm_rwlock_unlock(self, view);
    return status;
}

int shm_rwlock_unlock(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    if (!shm_sync_is_mine(self, word))
        return SHM_REFUSED;
    SHM_KILL_POINT(sync_change);
    if (!atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, 0, SHM_SYNC_FREE)))
        return SHM_REFUSED;
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
    return 0;
}

/* ---- conditions -------------------------------------------------------------------------------------------- */

/* `others` holds all who wait and have no notice yet. In the line stands only who sleeps: not one whose slice ends, or
 * whose signal handlers run. A notice that comes meanwhile is for him all the same, or for one who was stopped, and not
 * for who came after it was given: turns are drawn, and notices given, with the mutex. */

static uint64_t noticed(const struct shm_thread *self, const struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    uint64_t turn = atomic_load(&self->at->items[0].ticket) & ~SHM_TURN_MANY;
    return turn <= atomic_load(&view->sync->notified) ? shm_sync_value(word) : 0;
}

static bool has_notice(struct shm_thread *self, const struct shm_queue *queue)
{
    return noticed(self, queue->view) > 0;
}

static bool take_notice(const struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    while (shm_sync_value(word) > 0 && noticed(self, view) > 0) {
        SHM_KILL_POINT(sync_take);
        if (atomic_compare_exchange_weak(&view->sync->word, &word,
                                         shm_sync_next(word, shm_sync_value(word) - 1, SHM_SYNC_FREE)))
            return true;
    }
    return false;
}

/* Notices that those left behind who gave up just then: nobody waits, and who notifies has the mutex as the caller has. */
static void forget_notices(struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    if (shm_sync_value(word) > 0)
        atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, 0, SHM_SYNC_FREE));
}

static int attempt_noticed(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    if (atomic_load(&q->view->released) || atomic_load(&q->mutex->released))
        return SHM_CLOSED;
    if (!q->queue.registered)
        return SHM_EMPTY; /* nobody could notify us yet */
    if (!q->unlocked) {
        q->unlocked = true;
        atomic_store(&q->mutex->sync->depth, 1);
        shm_mutex_unlock(self, q->mutex);
    }
    if (!shm_queue_is_our_turn(self, &q->queue) || !take_notice(self, q->view))
        return SHM_EMPTY;
    shm_set_leave(q->view->others, q->view->place_words, self->place); /* who notifies now means another */
    return 0;
}

static bool is_noticed(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    return q->queue.registered && noticed(self, q->view) > 0 && shm_queue_is_our_turn(self, &q->queue);
}

int shm_condition_wait(struct shm_thread *self, struct shm_sync_view *view, struct shm_sync_view *mutex,
                       uint32_t *depth, uint64_t deadline_ns)
{
    struct queueing q = queueing(view, shm_sync_line(view));
    q.queue.seen = has_notice;
    q.mutex = mutex;
    uint64_t word = atomic_load(&mutex->sync->word);
    *depth = 0;
    if ((word & 0xF) != SHM_SYNC_HELD ||
        !(mutex->config.flags & SHM_SYNC_ANYONE || shm_sync_is_mine(self, word)))
        return SHM_REFUSED;
    *depth = atomic_load(&mutex->sync->depth);
    if (shm_set_empty(view->others))
        forget_notices(view);
    SHM_KILL_POINT(wait_register);
    shm_set_join(view->others, view->place_words, self->place);
    bool spins = self->may_spin;
    self->may_spin = false; /* before it stands in line there is nothing to see */
    int status = shm_queue_wait(self, &q, attempt_noticed, is_noticed, deadline_ns ? deadline_ns : 1);
    self->may_spin = spins;
    if (!q.unlocked) {
        atomic_store(&mutex->sync->depth, 1);
        shm_mutex_unlock(self, mutex);
    }
    SHM_KILL_POINT(wait_deregister);
    if (status)
        shm_set_leave(view->others, view->place_words, self->place);
    /* Notified as its time was up, and nobody else is there to have it. */
    if (status == SHM_TIMEOUT && shm_set_empty(view->others) && take_notice(self, view))
        status = 0;
    return status;
}

void shm_condition_notify(struct shm_thread *self, struct shm_sync_view *view, uint32_t n)
{
    uint64_t word = atomic_load(&view->sync->word), value;
    atomic_store(&view->sync->notified, atomic_load(&self->segment->header->next_turn));
    do {
        uint64_t waiting = shm_set_count(view->others, view->place_words);
        value = shm_sync_value(word) + n < waiting ? shm_sync_value(word) + n : waiting;
        SHM_KILL_POINT(sync_change);
    } while (
        !atomic_compare_exchange_weak(&view->sync->word, &word, shm_sync_next(word, value, SHM_SYNC_FREE)));
    SHM_KILL_POINT(sync_changed);
    if (value)
        shm_sync_wake(self, view);
}

/* ---- barriers ---------------------------------------------------------------------------------------------- */

/* word = generation | how many have come, or who acts | FREE: it fills, HELD: the last one acts, ABANDONED: broken.
 * The generation changes when it opens or is reset. reset = the one after the last that a reset has ended, and of the
 * 38 before that, the youngest lowest, whether a reset has ended each: who waited may look much later. */
enum { HISTORY = 38 };
#define GENERATIONS ((UINT64_C(1) << 26) - 1)

static bool was_reset(const struct shm_sync *sync, uint64_t generation)
{
    uint64_t history = atomic_load(&sync->reset);
    uint64_t ago = ((history >> HISTORY) - generation - 1) & GENERATIONS;
    return ago < HISTORY && (history >> ago & 1);
}

uint32_t shm_barrier_count(const struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    return (word & 0xF) == SHM_SYNC_FREE ? (uint32_t)shm_sync_value(word) : 0;
}

bool shm_barrier_is_broken(const struct shm_sync_view *view)
{
    return (atomic_load(&view->sync->word) & 0xF) == SHM_SYNC_ABANDONED;
}

static int attempt_pass(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    const struct shm_sync *sync = q->view->sync;
    uint64_t word = atomic_load(&sync->word);
    (void)self;
    if (atomic_load(&q->view->released))
        return SHM_CLOSED;
    if (word >> 38 != q->generation)
        return was_reset(sync, q->generation) ? SHM_ABORTED : 0;
    return (word & 0xF) == SHM_SYNC_ABANDONED ? SHM_ABORTED : SHM_EMPTY;
}

static bool may_pass(struct shm_thread *self, void *context)
{
    return attempt_pass(self, context) != SHM_EMPTY;
}

static int attempt_arrive(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    struct shm_sync_view *view = q->view;
    if (atomic_load(&view->released))
        return SHM_CLOSED;
    for (;;) {
        uint64_t word = atomic_load(&view->sync->word), come = shm_sync_value(word);
        bool last = come + 1 >= view->config.max;
        if ((word & 0xF) == SHM_SYNC_ABANDONED)
            return SHM_ABORTED;
        if ((word & 0xF) != SHM_SYNC_FREE)
            return SHM_EMPTY; /* the last ones are not out yet */
        SHM_KILL_POINT(sync_take);
        uint64_t next = last ? shm_sync_word(word >> 38, shm_sync_held(self), SHM_SYNC_HELD)
                             : shm_sync_word(word >> 38, come + 1, SHM_SYNC_FREE);
        if (atomic_compare_exchange_strong(&view->sync->word, &word, next)) {
            q->generation = word >> 38;
            q->index = (uint32_t)come;
            self->holds |= last;
            return 0;
        }
    }
}

static bool may_arrive(struct shm_thread *self, void *context)
{
    struct queueing *q = context;
    (void)self;
    return (atomic_load(&q->view->sync->word) & 0xF) != SHM_SYNC_HELD;
}

/* Break the barrier in the round `generation`; false: that is over. */
static bool break_round(struct shm_thread *self, struct shm_sync_view *view, uint64_t generation)
{
    uint64_t word = atomic_load(&view->sync->word);
    do {
        if (word >> 38 != generation)
            return false;
        SHM_KILL_POINT(sync_change);
    } while ((word & 0xF) != SHM_SYNC_ABANDONED &&
             !atomic_compare_exchange_strong(&view->sync->word, &word,
                                             shm_sync_word(generation, 0, SHM_SYNC_ABANDONED)));
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
    return true;
}

static int arrive(struct shm_thread *self, struct shm_sync_view *view, uint32_t *index, uint64_t *acts,
                  uint64_t until)
{
    struct queueing q = queueing(view, shm_sync_line(view));
    int status = shm_queue_wait(self, &q, attempt_arrive, may_arrive, until);
    *index = q.index;
    *acts = 0;
    if (status)
        return status;
    if (q.index + 1 >= view->config.max) {
        *acts = q.generation + 1;
        return 0;
    }
    SHM_KILL_POINT(barrier_counted);
    status = shm_queue_wait(self, &q, attempt_pass, may_pass, until);
    if (status == 0 || status == SHM_ABORTED || break_round(self, view, q.generation))
        return status;
    /* The last one came, or it was reset, just as our time was up: the next round is none of our business. */
    return status == SHM_TIMEOUT ? attempt_pass(self, &q) : status;
}

int shm_barrier_arrive(struct shm_thread *self, struct shm_sync_view *view, uint32_t *index, uint64_t *acts,
                       uint64_t deadline_ns)
{
    /* Who dies counted, and not in line yet, or any more, is found there: see reap_object. */
    SHM_KILL_POINT(wait_register);
    shm_set_join(view->others, view->place_words, self->place);
    int status = arrive(self, view, index, acts, deadline_ns ? deadline_ns : 1);
    SHM_KILL_POINT(wait_deregister);
    shm_set_leave(view->others, view->place_words, self->place);
    return status;
}

int shm_barrier_open(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    if (!shm_sync_is_mine(self, word))
        return SHM_ABORTED;
    SHM_KILL_POINT(sync_change);
    if (!atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, 0, SHM_SYNC_FREE)))
        return SHM_ABORTED;
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view);
    return 0;
}

void shm_barrier_break_mine(struct shm_thread *self, struct shm_sync_view *view, uint64_t acts)
{
    uint64_t word = atomic_load(&view->sync->word);
    if ((word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == self->slot)
        break_round(self, view, acts - 1);
}

void shm_barrier_break(struct shm_thread *self, struct shm_sync_view *view)
{
    while (!break_round(self, view, atomic_load(&view->sync->word) >> 38))
        ;
}

/* Of the round of `word`, which is broken: once, and not when another's reset has gone on from there. */
static void note_reset(struct shm_sync *sync, uint64_t word)
{
    uint64_t next = ((word >> HISTORY) + 1) & GENERATIONS, history = atomic_load(&sync->reset), before;
    do {
        uint64_t gap = (next - (history >> HISTORY)) & GENERATIONS;
        if (gap == 0 || atomic_load(&sync->word) != word)
            return;
        before = gap < HISTORY ? history << gap & ((UINT64_C(1) << HISTORY) - 1) : 0;
    } while (!atomic_compare_exchange_weak(&sync->reset, &history, next << HISTORY | before | 1));
}

void shm_barrier_reset(struct shm_thread *self, struct shm_sync_view *view)
{
    uint64_t word = atomic_load(&view->sync->word);
    /* Broken first: then nobody opens it, and whoever waits is told the same by the word and by the note. */
    while ((word & 0xF) != SHM_SYNC_ABANDONED) {
        if ((word & 0xF) == SHM_SYNC_FREE && shm_sync_value(word) == 0)
            return;
        SHM_KILL_POINT(sync_change);
        uint64_t broken = shm_sync_word(word >> 38, 0, SHM_SYNC_ABANDONED);
        if (atomic_compare_exchange_strong(&view->sync->word, &word, broken))
            word = broken;
    }
    note_reset(view->sync, word);
    SHM_KILL_POINT(sync_change);
    atomic_compare_exchange_strong(&view->sync->word, &word, shm_sync_next(word, 0, SHM_SYNC_FREE));
    SHM_KILL_POINT(sync_changed);
    shm_sync_wake(self, view); /* also when another's reset was faster: he may be dead */
}
