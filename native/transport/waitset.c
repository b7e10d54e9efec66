#define _GNU_SOURCE
#include "transport/waitset.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/pipe.h"
#include "transport/port.h"

/* What is ready and nobody has done anything about is looked at again after so long. */
#define READY_PAUSE_NS UINT64_C(2000000)
/* How often a wait for all tries again when others let its claims fail. */
#define CLAIM_TRIES 10000

struct waiting {
    struct shm_source *sources;
    uint32_t count;
    uint32_t *order; /* all: the objects, by the order of their records */
    uint32_t order_count;
    struct shm_wait *wait;
    uint64_t deadline_ns; /* of the caller; that of `wait` may be the next moment that is due */
    uint32_t which;
    bool all, look, poll, registered;
};

static bool is_object(const struct shm_source *source)
{
    return source->kind == SHM_SOURCE_SYNC;
}

/* ---- is it there? ------------------------------------------------------------------------------------------ */

static bool is_file_ready(int fd, short events)
{
    struct pollfd one = {.fd = fd, .events = events};
    return poll(&one, 1, 0) > 0; /* a closed one says so at once */
}

static bool has_frame(const struct shm_source *source)
{
    const struct shm_bus_reader *reader = &source->bus->readers[source->subscription->index];
    return atomic_load(&source->subscription->count) == 0 || shm_bus_is_closed(source->bus) ||
           atomic_load(&reader->cursor) != atomic_load(&source->bus->bus->tail);
}

/* A port that this thread may not receive from any more is there too: who waits for it is to see that. */
static bool has_message(const struct shm_thread *self, const struct shm_source *source)
{
    const struct shm_box *box = source->box;
    return (source->filter ? shm_ring_has_match(self, box, source->filter)
                           : shm_ring_has_message(self, box)) ||
           shm_port_check(self, box) != 0;
}

static bool has_room(const struct shm_source *source)
{
    return source->sync ? shm_pipe_has_room(source->sync, source->least) : shm_ring_has_room(source->box);
}

/* Loads and polls only. */
static bool is_there(const struct shm_thread *self, const struct shm_source *source)
{
    switch (source->kind) {
    case SHM_SOURCE_SYNC:
        return shm_sync_is_available(self, source->sync, shm_sync_peek(self, source->sync));
    case SHM_SOURCE_BOX:
        return has_message(self, source);
    case SHM_SOURCE_ROOM:
        return has_room(source);
    case SHM_SOURCE_BUS:
        return has_frame(source);
    case SHM_SOURCE_MEMBER:
        return !shm_member_lives(self->segment, source->member) ||
               (source->fd >= 0 && is_file_ready(source->fd, POLLIN));
    case SHM_SOURCE_DUE:
        return shm_clock_ns() >= source->due_ns;
    default:
        return is_file_ready(source->fd, source->events);
    }
}

static bool is_released(const struct shm_source *source)
{
    return (source->sync && atomic_load(&source->sync->released)) ||
           (source->box && atomic_load(&source->box->released)) ||
           (source->bus && atomic_load(&source->bus->released));
}

/* Is it something that stays whoever has it, so that nobody need wait for his turn? */
static bool is_shared(const struct shm_thread *self, const struct shm_sync_view *view)
{
    return view->config.kind == SHM_SYNC_PIPE ||
           (view->config.kind == SHM_SYNC_EVENT && !(view->config.flags & SHM_SYNC_AUTO)) ||
           (view->config.kind == SHM_SYNC_MUTEX && shm_sync_is_mine(self, atomic_load(&view->sync->word)));
}

/* Nobody who came before us waits for it; or he was stopped, it seems. */
static bool is_our_turn(struct shm_thread *self, const struct waiting *w, const struct shm_source *source)
{
    struct shm_sync_view *view = source->sync;
    if (w->poll || w->look || source->impatient || shm_set_empty(view->line) || is_shared(self, view))
        return true;
    struct shm_waitable line = shm_sync_line(view);
    if (!w->all)
        return shm_set_is_first(self, &line, self->place);
    uint64_t first = shm_set_first_turn(self, &line);
    return first == 0 || (w->registered && first > atomic_load(&self->at->items[0].ticket));
}

/* ---- any --------------------------------------------------------------------------------------------------- */

static int attempt_any(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    w->wait->deadline_ns = w->deadline_ns;
    for (uint32_t i = 0; i < w->count; i++) {
        struct shm_source *source = &w->sources[i];
        w->which = i;
        if (is_released(source))
            return SHM_CLOSED;
        if (source->kind == SHM_SOURCE_DUE && source->due_ns < w->wait->deadline_ns)
            w->wait->deadline_ns = source->due_ns;
        if (!is_there(self, source))
            continue;
        if (!is_object(source))
            return 0;
        if (is_our_turn(self, w, source) && shm_sync_take(self, source->sync, &source->abandoned) == 0)
            return 0;
    }
    return SHM_EMPTY;
}

/* ---- which ------------------------------------------------------------------------------------------------- */

static int attempt_look(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    bool any = false;
    w->wait->deadline_ns = w->deadline_ns;
    for (uint32_t i = 0; i < w->count; i++) {
        struct shm_source *source = &w->sources[i];
        if (is_released(source))
            return SHM_CLOSED;
        if (source->kind == SHM_SOURCE_DUE && source->due_ns < w->wait->deadline_ns)
            w->wait->deadline_ns = source->due_ns;
        source->there = is_there(self, source);
        any |= source->there;
    }
    return any ? 0 : SHM_EMPTY;
}

/* ---- all --------------------------------------------------------------------------------------------------- */

/* Let go of the first `n` claims, as decided. */
static void settle(struct shm_thread *self, const struct waiting *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        shm_sync_settle(self, w->sources[w->order[i]].sync);
}

static bool are_there(struct shm_thread *self, struct waiting *w)
{
    bool all = true;
    for (uint32_t i = 0; i < w->count && all; i++) {
        struct shm_source *source = &w->sources[i];
        all = is_there(self, source) && (!is_object(source) || is_our_turn(self, w, source));
    }
    return all;
}

/* Claim one object: 0, EMPTY, or SHM_BUSY when our decision was let fail meanwhile. */
static int claim(struct shm_thread *self, struct shm_source *source, uint64_t decision)
{
    struct shm_sync_view *view = source->sync;
    for (;;) {
        uint64_t word = shm_sync_settle(self, view);
        source->seen = word;
        if (!shm_sync_is_available(self, view, word))
            return SHM_EMPTY;
        if (view->config.kind == SHM_SYNC_PIPE || (word & 0xF) == SHM_SYNC_HELD)
            return 0; /* a pipe is only looked at, and a mutex of ours is ours */
        SHM_KILL_POINT(sync_claim);
        if (atomic_compare_exchange_strong(&view->sync->word, &word,
                                           shm_sync_claim(self, decision, word))) /* Y2 */
            return 0;
    }
}

/* What was taken becomes ours. */
static void own(struct shm_thread *self, const struct waiting *w)
{
    for (uint32_t i = 0; i < w->order_count; i++) {
        struct shm_source *source = &w->sources[w->order[i]];
        if (source->sync->config.kind != SHM_SYNC_MUTEX)
            continue;
        source->abandoned = (source->seen & 0xF) == SHM_SYNC_ABANDONED;
        if ((source->seen & 0xF) == SHM_SYNC_HELD)
            atomic_fetch_add(&source->sync->sync->depth, 1);
        else
            atomic_store(&source->sync->sync->depth, 1);
        self->holds = true;
    }
}

/* Claim what is there and take it in one step: 0, EMPTY, or BUSY: others let the claims fail. */
static int take_all(struct shm_thread *self, struct waiting *w)
{
    uint64_t decision = shm_sync_decide(self);
    int status = 0;
    uint32_t claimed = 0;
    while (claimed < w->order_count && status == 0) {
        status = claim(self, &w->sources[w->order[claimed]], decision);
        claimed += status == 0;
    }
    for (uint32_t i = 0; i < w->count && status == 0; i++)
        if (!is_object(&w->sources[i]) && !is_there(self, &w->sources[i]))
            status = SHM_EMPTY;
    bool taken = shm_sync_conclude(self, decision, status == 0);
    if (status == 0 && !taken)
        status = SHM_BUSY;
    settle(self, w, claimed);
    if (status == 0)
        own(self, w);
    return status;
}

static int attempt_all(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    w->wait->deadline_ns = w->deadline_ns;
    for (uint32_t i = 0; i < w->count; i++) {
        const struct shm_source *source = &w->sources[i];
        if (is_released(source))
            return SHM_CLOSED;
        if (source->kind == SHM_SOURCE_DUE && shm_clock_ns() < source->due_ns &&
            source->due_ns < w->wait->deadline_ns)
            w->wait->deadline_ns = source->due_ns;
    }
    int status = SHM_EMPTY;
    for (int n = 0; n < CLAIM_TRIES && are_there(self, w); n++) {
        status = take_all(self, w);
        if (status != SHM_BUSY)
            break;
    }
    return status == SHM_BUSY ? SHM_EMPTY : status;
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static bool ready(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    bool any = false, all = true;
    for (uint32_t i = 0; i < w->count; i++) {
        struct shm_source *source = &w->sources[i];
        bool there = is_released(source) ||
                     (is_there(self, source) && (!is_object(source) || is_our_turn(self, w, source)));
        any |= there;
        all &= there;
    }
    return w->all ? all : any;
}

/* The set of those who wait for it: in line, or looking on. NULL: nobody need tell us. */
static struct shm_set *set_of(const struct waiting *w, const struct shm_source *source, uint32_t *words)
{
    if (source->sync) {
        bool watches = w->all || w->look || !is_object(source) || source->sync->config.kind == SHM_SYNC_PIPE;
        *words = source->sync->place_words;
        return watches ? source->sync->watchers : source->sync->line;
    }
    if (source->box) {
        *words = source->box->place_words;
        return source->box->watchers;
    }
    *words = source->bus ? source->bus->place_words : 0;
    return source->bus ? source->bus->waiting_readers : NULL;
}

static void enter(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    for (uint32_t i = 0; i < w->count; i++) {
        uint32_t words;
        struct shm_set *set = set_of(w, &w->sources[i], &words);
        SHM_KILL_POINT(wait_register);
        if (set)
            shm_set_join(set, words, self->place);
    }
    w->registered = true;
}

static void leave(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    w->registered = false;
    for (uint32_t i = 0; i < w->count; i++) {
        uint32_t words;
        struct shm_set *set = set_of(w, &w->sources[i], &words);
        SHM_KILL_POINT(wait_deregister);
        if (set)
            shm_set_leave(set, words, self->place);
    }
}

static void pass(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    for (uint32_t i = 0; i < w->count; i++)
        if (is_object(&w->sources[i]))
            shm_sync_pass(self, w->sources[i].sync);
}

/* Whoever comes before us may be stopped: he stood first when the last slice ended and it was free, and stands there
 * still. Its word may have changed, and who it is has not. */
static int after_slice(struct shm_thread *self, void *context)
{
    struct waiting *w = context;
    for (uint32_t i = 0; i < w->count; i++) {
        struct shm_source *source = &w->sources[i];
        if (!is_object(source))
            continue;
        struct shm_waitable line = shm_sync_line(source->sync);
        bool is_free = shm_sync_is_available(self, source->sync, atomic_load(&source->sync->sync->word));
        uint64_t first = is_free ? shm_set_first_turn(self, &line) : 0;
        source->impatient =
            first && first == source->first && first != atomic_load(&self->at->items[0].ticket);
        source->first = first;
    }
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

/* Who waits for files has a thread that polls them, for as long as he waits. */
struct files {
    pthread_t thread;
    struct pollfd *polled; /* the last: to be told the end */
    uint32_t count;
    int end;
    struct shm_thread waker;
    _Atomic uint32_t place;
};

static void *poll_files(void *argument)
{
    struct files *files = argument;
    while (poll(files->polled, files->count + 1, -1) >= 0 && !files->polled[files->count].revents) {
        shm_wake_one(&files->waker, &files->place);
        shm_clock_sleep(READY_PAUSE_NS);
    }
    return NULL;
}

static void end_files(struct files *files)
{
    uint64_t one = 1;
    if (!files->polled)
        return;
    while (write(files->end, &one, sizeof one) < 0)
        ;
    pthread_join(files->thread, NULL);
    close(files->end);
    free(files->polled);
    files->polled = NULL;
}

static bool has_file(const struct shm_source *source)
{
    return (source->kind == SHM_SOURCE_MEMBER || source->kind == SHM_SOURCE_FILE) && source->fd >= 0;
}

static int begin_files(struct shm_thread *self, const struct waiting *w, struct files *files)
{
    uint32_t count = 0;
    *files = (struct files){.waker = *self, .place = self->place + 1};
    for (uint32_t i = 0; i < w->count; i++)
        count += has_file(&w->sources[i]);
    if (count == 0)
        return 0;
    struct pollfd *polled = calloc(count + 1, sizeof *polled);
    if (!polled)
        return SHM_NO_MEMORY;
    for (uint32_t i = 0; i < w->count; i++) {
        const struct shm_source *source = &w->sources[i];
        if (has_file(source))
            polled[files->count++] = (struct pollfd){
                .fd = source->fd, .events = source->kind == SHM_SOURCE_FILE ? source->events : POLLIN};
    }
    files->end = eventfd(0, EFD_CLOEXEC);
    polled[count] = (struct pollfd){.fd = files->end, .events = POLLIN};
    files->polled = polled;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = files->end < 0 ? 1 : pthread_create(&files->thread, NULL, poll_files, files);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error) {
        if (files->end >= 0)
            close(files->end);
        free(polled);
        files->polled = NULL;
        return SHM_SYSTEM;
    }
    return 0;
}

/* ---- the waits --------------------------------------------------------------------------------------------- */

static uint32_t record_of(const struct shm_source *source)
{
    return source->sync  ? source->sync->index
           : source->box ? source->box->index
           : source->bus ? source->bus->index
                         : 0;
}

static int run(struct shm_thread *self, struct waiting *w)
{
    struct shm_wait wait = {.deadline_ns = w->deadline_ns,
                            .attempt = w->all    ? attempt_all
                                       : w->look ? attempt_look
                                                 : attempt_any,
                            .ready = ready,
                            .slice = after_slice,
                            .context = w,
                            .enter = enter,
                            .leave = leave,
                            .pass = pass,
                            .object = record_of(&w->sources[0])};
    struct files files;
    w->wait = &wait;
    w->poll = w->deadline_ns == 0;
    int status = wait.attempt(self, w);
    if (status != SHM_EMPTY || w->poll)
        return status;
    status = begin_files(self, w, &files);
    if (status)
        return status;
    do /* a wait also ends when something is due */
        status = shm_wait(self, &wait);
    while ((status == SHM_TIMEOUT && shm_clock_ns() < w->deadline_ns) || status == SHM_EMPTY);
    end_files(&files);
    return status;
}

int shm_sync_wait(struct shm_thread *self, struct shm_sync_view *view, bool *abandoned, uint64_t deadline_ns)
{
    struct shm_source source = {.kind = SHM_SOURCE_SYNC, .sync = view};
    struct waiting w = {.sources = &source, .count = 1, .deadline_ns = deadline_ns};
    int status = run(self, &w);
    *abandoned = source.abandoned;
    return status;
}

int shm_waitset_any(struct shm_thread *self, struct shm_source *sources, uint32_t count, uint32_t *which,
                    uint64_t deadline_ns)
{
    if (count == 0 || count > SHM_WAITSET_MAX)
        return SHM_INVALID;
    struct waiting w = {.sources = sources, .count = count, .deadline_ns = deadline_ns};
    int status = run(self, &w);
    *which = w.which;
    return status;
}

int shm_waitset_look(struct shm_thread *self, struct shm_source *sources, uint32_t count,
                     uint64_t deadline_ns)
{
    if (count == 0 || count > SHM_WAITSET_MAX)
        return SHM_INVALID;
    struct waiting w = {.sources = sources, .count = count, .deadline_ns = deadline_ns, .look = true};
    return run(self, &w);
}

int shm_waitset_all(struct shm_thread *self, struct shm_source *sources, uint32_t count, uint64_t deadline_ns)
{
    uint32_t order[SHM_WAITSET_MAX];
    struct waiting w = {
        .sources = sources, .count = count, .order = order, .deadline_ns = deadline_ns, .all = true};
    if (count == 0 || count > SHM_WAITSET_MAX)
        return SHM_INVALID;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_object(&sources[i]))
            continue;
        uint32_t at = w.order_count++;
        for (; at > 0 && sources[order[at - 1]].sync->index >= sources[i].sync->index; at--) {
            if (sources[order[at - 1]].sync->index == sources[i].sync->index)
                return SHM_INVALID;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return run(self, &w);
}
