# A list of things that one thread waits for again and again, and that changes little between the waits.

@cython.final
cdef class WaitList:
    """Sources, each with its key and a token; of one thread, and without locks."""

    cdef readonly Member member
    cdef shm_source *sources
    cdef uint32_t count
    cdef list entries    # what was given, in the order of `sources`
    cdef list held       # the open objects of these
    cdef list tokens
    cdef list keys
    cdef dict places     # of a key: where it is

    def __init__(self, Member member not None):
        self.member = member
        self.entries, self.held, self.tokens, self.keys, self.places = [], [], [], [], {}
        self.sources = <shm_source *>calloc(SHM_WAITSET_MAX, sizeof(shm_source))
        if self.sources == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.sources)

    def __len__(self):
        return self.count

    def add(self, key, entry, token):
        """Wait for one more."""
        if key in self.places:
            raise errors.InvalidArgument(f"{key!r} is in the list")
        if self.count == SHM_WAITSET_MAX:
            raise errors.LimitExceeded(f"{self.count + 1} objects in one wait, the limit is {SHM_WAITSET_MAX}")
        cdef shm_source source
        memset(&source, 0, sizeof(source))
        fill_source(&source, self.member, entry)
        self.sources[self.count] = source
        self.places[key] = self.count
        self.entries.append(entry)
        self.held.append(inner(entry))
        self.tokens.append(token)
        self.keys.append(key)
        self.count += 1

    def remove(self, key):
        """Wait for it no more; the last takes its place."""
        cdef uint32_t place = self.places.pop(key), last = self.count - 1
        for entries in (self.entries, self.held, self.tokens, self.keys):
            moved = entries.pop()
            if place != last:
                entries[place] = moved
        if place != last:
            self.sources[place] = self.sources[last]
            self.places[self.keys[place]] = place
        self.count = last

    def look(self, timeout):
        """Wait until one or more are there, and take nothing: their tokens; none: the time was up."""
        cdef uint64_t deadline = deadline_of(timeout)
        cdef uint32_t i
        cdef int status
        cdef shm_thread *t
        cdef tuple held = tuple(self.held)
        while True:
            self.member.check()
            for i in range(self.count):
                if self.sources[i].kind == SHM_SOURCE_DUE:
                    self.sources[i].due_ns = (<DueSource>self.entries[i]).due_ns
            t = context(self.member)
            go_in_all(held)
            with nogil:
                status = shm_waitset_look(t, self.sources, self.count, deadline)
            come_out_all(held, t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            return [self.tokens[i] for i in range(self.count) if self.sources[i].there]
        if status == SHM_TIMEOUT or status == SHM_EMPTY:
            return []
        refuse(status, "a wait for several")
