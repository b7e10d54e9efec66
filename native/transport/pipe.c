#include "transport/pipe.h"

#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/queue.h"

struct transfer {
    struct shm_queue queue;
    struct shm_sync_view *view;
    unsigned char *into;
    const unsigned char *from;
    uint64_t left, done;
    uint64_t least; /* a write: room for so many, or none */
};

/* ---- ends -------------------------------------------------------------------------------------------------- */

uint32_t shm_pipe_count(const struct shm_sync_view *view, uint32_t what)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < view->config.entries; i++)
        count += shm_word_state(atomic_load(&view->entries[i])) == what;
    return count;
}

/* Writers in line, and those who only look on for room. */
static void wake_writers(struct shm_thread *self, struct shm_sync_view *view, bool all)
{
    struct shm_waitable others = shm_sync_others(view), watchers = shm_sync_watchers(view);
    if (!shm_set_empty(view->others)) {
        if (all)
            shm_wake_all(self, &others);
        else
            shm_wake_set(self, &others, 0);
    }
    if (!shm_set_empty(view->watchers))
        shm_wake_all(self, &watchers);
}

int shm_pipe_join(struct shm_thread *self, struct shm_sync_view *view, uint32_t what, uint32_t *entry)
{
    for (uint32_t i = 0; i < view->config.entries; i++) {
        shm_word word = atomic_load(&view->entries[i]);
        if (shm_word_state(word) != SHM_ENTRY_FREE)
            continue;
        SHM_KILL_POINT(pipe_join);
        if (!atomic_compare_exchange_strong(&view->entries[i], &word, shm_word_next(word, self->slot, what)))
            continue;
        SHM_KILL_POINT(pipe_joined);
        atomic_fetch_add(&view->sync->joins, 1); /* Y3 */
        atomic_fetch_or(&view->sync->had, 1U << what);
        *entry = i;
        return 0;
    }
    return SHM_LIMIT;
}

int shm_pipe_leave(struct shm_thread *self, struct shm_sync_view *view, uint32_t entry)
{
    if (entry >= view->config.entries)
        return SHM_REFUSED;
    shm_word word = atomic_load(&view->entries[entry]);
    if (shm_word_state(word) == SHM_ENTRY_FREE || shm_word_owner(word) != self->slot)
        return SHM_REFUSED;
    SHM_KILL_POINT(pipe_leave);
    if (!atomic_compare_exchange_strong(&view->entries[entry], &word,
                                        shm_word_next(word, SHM_NOBODY, SHM_ENTRY_FREE)))
        return SHM_REFUSED;
    SHM_KILL_POINT(pipe_left);
    shm_sync_wake(self, view);
    wake_writers(self, view, true);
    return 0;
}

/* ---- transfers --------------------------------------------------------------------------------------------- */

static uint64_t filled(const struct shm_sync_view *view)
{
    uint64_t read = atomic_load(&view->sync->read); /* first: it is never beyond what was written later */
    return atomic_load(&view->sync->written) - read;
}

bool shm_pipe_has_room(const struct shm_sync_view *view, uint64_t least)
{
    return view->config.bytes - filled(view) >= least || shm_sync_end_has_gone(view, SHM_ENTRY_READER);
}

static bool take_right(struct shm_thread *self, _Atomic shm_word *right, shm_word *held)
{
    shm_word word = atomic_load(right);
    if (shm_word_state(word))
        return false;
    *held = shm_word_next(word, self->slot, 1);
    SHM_KILL_POINT(pipe_right);
    return atomic_compare_exchange_strong(right, &word, *held);
}

/* W1: whoever found the right taken, or nothing to do, looks again. */
static void give_right(struct shm_thread *self, struct shm_sync_view *view, _Atomic shm_word *right,
                       shm_word held)
{
    SHM_KILL_POINT(pipe_release);
    atomic_compare_exchange_strong(right, &held, shm_word_next(held, SHM_NOBODY, 0));
    SHM_KILL_POINT(pipe_released);
    shm_sync_pass(self, view);
    if (filled(view) < view->config.bytes)
        wake_writers(self, view, false);
}

static uint64_t smallest(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t least = a < b ? a : b;
    return least < c ? least : c;
}

/* Where byte `position` lies, and how many follow it without a break. */
static unsigned char *place_of(const struct shm_sync_view *view, uint64_t position, uint64_t *room)
{
    uint64_t at = position & (view->config.bytes - 1);
    *room = view->config.bytes - at;
    return view->bytes + at;
}

static int attempt_read(struct shm_thread *self, void *context)
{
    struct transfer *t = context;
    struct shm_sync_view *view = t->view;
    shm_word held;
    if (atomic_load(&view->released))
        return SHM_CLOSED;
    bool over =
        shm_sync_end_has_gone(view, SHM_ENTRY_WRITER); /* before what they have written is looked for */
    if (filled(view) == 0)
        return over ? 0 : SHM_EMPTY;
    if (!shm_queue_is_our_turn(self, &t->queue) || !take_right(self, &view->sync->read_right, &held))
        return SHM_EMPTY;
    uint64_t position = atomic_load(&view->sync->read), there = filled(view), room;
    uint64_t part = smallest(there, t->left, SHM_PIPE_PART);
    int status = there > view->config.bytes ? SHM_CORRUPTED : part ? 0 : SHM_EMPTY;
    for (uint64_t copied = 0; status == 0 && copied < part; copied += room) {
        const unsigned char *from = place_of(view, position + copied, &room);
        room = room < part - copied ? room : part - copied;
        SHM_KILL_POINT(pipe_copy);
        memcpy(t->into + copied, from, room);
    }
    if (status == 0) {
        SHM_KILL_POINT(pipe_commit);
        atomic_exchange(&view->sync->read, position + part); /* W1 */
        t->done = part;
    }
    give_right(self, view, &view->sync->read_right, held);
    return status;
}

static bool ready_to_read(struct shm_thread *self, void *context)
{
    const struct transfer *t = context;
    if (filled(t->view) == 0)
        return shm_sync_end_has_gone(t->view, SHM_ENTRY_WRITER);
    return shm_word_state(atomic_load(&t->view->sync->read_right)) == 0 &&
           shm_queue_is_our_turn(self, &t->queue);
}

static bool unread(struct shm_thread *self, const struct shm_queue *queue)
{
    (void)self;
    return filled(queue->view) > 0;
}

int shm_pipe_read(struct shm_thread *self, struct shm_sync_view *view, void *into, uint64_t len,
                  uint64_t *done, uint64_t deadline_ns)
{
    struct transfer t = {.queue = {.view = view, .set = shm_sync_line(view), .seen = unread},
                         .view = view,
                         .into = into,
                         .left = len};
    *done = 0;
    if (len == 0)
        return 0;
    int status = shm_queue_wait(self, &t, attempt_read, ready_to_read, deadline_ns);
    *done = t.done;
    return status;
}

static int attempt_write(struct shm_thread *self, void *context)
{
    struct transfer *t = context;
    struct shm_sync_view *view = t->view;
    shm_word held;
    if (atomic_load(&view->released))
        return SHM_CLOSED;
    if (shm_sync_end_has_gone(view, SHM_ENTRY_READER))
        return SHM_PEER_DEAD;
    if (view->config.bytes - filled(view) < t->least || !shm_queue_is_our_turn(self, &t->queue) ||
        !take_right(self, &view->sync->write_right, &held))
        return SHM_FULL;
    uint64_t position = atomic_load(&view->sync->written), there = filled(view), room;
    uint64_t space = there <= view->config.bytes ? view->config.bytes - there : 0;
    uint64_t part = space < t->least ? 0 : smallest(space, t->left, SHM_PIPE_PART);
    for (uint64_t copied = 0; copied < part; copied += room) {
        unsigned char *into = place_of(view, position + copied, &room);
        room = room < part - copied ? room : part - copied;
        SHM_KILL_POINT(pipe_copy);
        memcpy(into, t->from + copied, room);
    }
    if (part) {
        SHM_KILL_POINT(pipe_commit);
        atomic_exchange(&view->sync->written, position + part); /* W1 */
        t->done += part;
        t->from += part;
        t->left -= part;
    }
    give_right(self, view, &view->sync->write_right, held);
    return part ? 0 : there > view->config.bytes ? SHM_CORRUPTED : SHM_FULL;
}

static bool ready_to_write(struct shm_thread *self, void *context)
{
    const struct transfer *t = context;
    if (shm_sync_end_has_gone(t->view, SHM_ENTRY_READER))
        return true;
    return t->view->config.bytes - filled(t->view) >= t->least &&
           shm_word_state(atomic_load(&t->view->sync->write_right)) == 0 &&
           shm_queue_is_our_turn(self, &t->queue);
}

static bool unwritten(struct shm_thread *self, const struct shm_queue *queue)
{
    const struct transfer *t = (const struct transfer *)queue;
    (void)self;
    return t->view->config.bytes - filled(t->view) >= t->least;
}

static void pass_to_writers(struct shm_thread *self, struct shm_queue *queue)
{
    if (filled(queue->view) < queue->view->config.bytes ||
        shm_sync_end_has_gone(queue->view, SHM_ENTRY_READER))
        wake_writers(self, queue->view, false);
}

int shm_pipe_write(struct shm_thread *self, struct shm_sync_view *view, const void *from, uint64_t len,
                   uint64_t *done, uint64_t deadline_ns)
{
    uint64_t at_once = len <= SHM_PIPE_ATOMIC && len <= view->config.bytes ? len : 1;
    struct transfer t = {
        .queue = {.view = view, .set = shm_sync_others(view), .seen = unwritten, .pass = pass_to_writers},
        .view = view,
        .from = from,
        .left = len,
        .least = at_once};
    int status = 0;
    while (t.left && status == 0) {
        status = shm_queue_wait(self, &t, attempt_write, ready_to_write, deadline_ns);
        t.least = 1;
    }
    *done += t.done;
    return status;
}
