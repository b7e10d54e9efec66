#include "transport/queue.h"

#include "base/killpoint.h"

static void enter(struct shm_thread *self, void *context)
{
    struct shm_queue *q = context;
    SHM_KILL_POINT(wait_register);
    shm_set_join(q->set.set, q->set.words, self->place);
    q->registered = true;
}

static void leave(struct shm_thread *self, void *context)
{
    struct shm_queue *q = context;
    SHM_KILL_POINT(wait_deregister);
    q->registered = false;
    shm_set_leave(q->set.set, q->set.words, self->place);
}

static void pass(struct shm_thread *self, void *context)
{
    struct shm_queue *q = context;
    if (q->pass)
        q->pass(self, q);
    else
        shm_sync_pass(self, q->view);
}

bool shm_queue_is_our_turn(struct shm_thread *self, const struct shm_queue *q)
{
    return q->poll || q->impatient || shm_set_empty(q->set.set) ||
           shm_set_is_first(self, &q->set, self->place);
}

/* Whoever comes before us may be stopped: he stood first when the last slice ended and there was something, was woken, and
 * has not looked yet. One who has looked wants more than there is, and we wait behind him. How much there is may have
 * changed, and who it is has not. */
static int after_slice(struct shm_thread *self, void *context)
{
    struct shm_queue *q = context;
    bool is_there = q->seen && q->seen(self, q);
    if (!is_there)
        q->first = (struct shm_first){0};
    q->impatient = is_there && shm_set_first_is_stopped(self, &q->set, &q->first);
    return 0;
}

int shm_queue_wait(struct shm_thread *self, void *context, int (*attempt)(struct shm_thread *, void *),
                   bool (*ready)(struct shm_thread *, void *), uint64_t deadline_ns)
{
    struct shm_queue *q = context;
    struct shm_wait wait = {.deadline_ns = deadline_ns,
                            .attempt = attempt,
                            .ready = ready,
                            .slice = after_slice,
                            .context = context,
                            .enter = enter,
                            .leave = leave,
                            .pass = pass,
                            .object = q->view->index};
    q->first = (struct shm_first){0};
    q->impatient = false;
    q->poll = deadline_ns == 0;
    return shm_wait(self, &wait);
}
