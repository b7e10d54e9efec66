# Abort: a wait of this thread ends because somebody wants it back, or nobody wants what it works on.

import contextvars as _contextvars

cdef extern from *:
    """
    #include "transport/abort.h"
    /* How many blocks this thread is in that no abort is to end. */
    static _Thread_local int shm_shielded;
    static const int *shm_shield_of_thread(void) { return &shm_shielded; }
    static int shm_shield_by(int by) { return shm_shielded += by; }
    /* The main thread is the one that an abort of the process means; while it has no place, the first that has one. */
    static void shm_abort_may_mean(struct shm_thread *t, int is_main)
    {
        if (is_main || atomic_load(&t->member->record->main) == 0)
            shm_abort_means_me(t);
    }
    """
    const int *shield_of_thread "shm_shield_of_thread"() nogil
    int shield_by "shm_shield_by"(int by) nogil
    void abort_may_mean "shm_abort_may_mean"(shm_thread *t, bint is_main) nogil


cdef bint has_tasks = False  # are there tasks of an event loop that serve calls, each one of its own?
cdef object SERVED = _contextvars.ContextVar("shmipc served", default=None)  # a Message


cdef object aborted(int taken):
    if taken & SHM_ABORT_THREAD:
        return errors.Aborted("this thread was aborted")
    return errors.Aborted("the call that this thread serves is closed: aborted, timed out, or its caller has ended")


cdef int raise_abort(shm_thread *t) except -1:
    """Take the abort for which a wait has ended, and raise it; a signal handler may have taken it."""
    cdef int taken = shm_abort_take(t)
    if taken:
        raise aborted(taken)
    return 0


cdef int check_abort(shm_thread *t) except -1:
    """Before something that waits."""
    if shm_abort_is_pending(t) and not shm_is_shielded(t):
        raise_abort(t)
    return 0


cdef uint64_t until_served(shm_thread *t) except? 1:
    """The deadline of what this thread serves: what it asks of others in that service is over by then. Within no_abort
    there is none."""
    if shm_is_shielded(t):
        return SHM_FOREVER
    cdef uint64_t until = shm_serves_until(t)
    if has_tasks:
        message = SERVED.get()
        # A task that its handler has made, and that goes on when the caller has its answer, is nobody's any more.
        if (message is not None and not (<Message>message).is_answered and (<Message>message).until
                and (<Message>message).until < until):
            until = (<Message>message).until
    return until


cdef str within_words(object timeout):
    return "before the deadline of the call that is served" if timeout is None else f"within {timeout} s"


def take_abort():
    """Was this thread aborted, or is a call closed that it serves? True once."""
    cdef Thread thread
    cdef Message message
    cdef shm_thread *t
    for entry in current_contexts():
        thread = entry
        if not can_act(thread.member):
            continue
        t = &thread.c
        if shm_abort_is_pending(t) and shm_abort_take(t):
            return True
    if has_tasks:
        message = SERVED.get()
        if message is not None and message.call and not message.told and message.is_aborted():
            if message.taker and message.taker == context(message.member).place + 1 and not message.heard:
                return False  # what runs here is a part of what serves it, which the core has told above
            message.told = True
            return True
    return False


def shield(int by):
    """Enter (1) or leave (-1) a block whose waits no abort of this thread ends."""
    shield_by(by)


def serve_in_task(Message message not None):
    """The task of an event loop that runs now serves this message."""
    global has_tasks
    has_tasks = True
    SERVED.set(message)
