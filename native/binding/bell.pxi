# What threads note for one that waits, which is woken then.

@cython.final
cdef class Bell:
    """Called with a thing it notes it in its deque and sets its event. No Python code runs between the two, so that no
    signal handler keeps the second from happening."""

    cdef readonly object noted  # deque
    cdef readonly SyncView event

    def __init__(self, noted, SyncView event not None):
        if event.c.config.kind != SHM_SYNC_EVENT:
            raise TypeError(f"a bell rings an event, not a {event.kind_name()}")
        self.noted = noted
        self.event = event

    def __call__(self, thing):
        cdef shm_thread *t
        self.noted.append(thing)
        if self.event.opened and can_act(self.event.member):
            try:
                t = context(self.event.member)
            except errors.ShmipcError:
                return  # the system is closed: who waits is told so
            if self.event.opened:
                shm_event_set(t, &self.event.c)
