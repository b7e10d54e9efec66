# Buses and their readers.

cdef extern from "transport/bus.h":
    struct shm_bus:
        pass

    struct shm_bus_config:
        uint32_t frames
        uint32_t readers
        uint32_t consume_after
        uint64_t frame_bytes
        uint64_t max_age_ns

    struct shm_bus_view:
        shm_bus *bus
        uint32_t index
        uint64_t count
        uint32_t lease
        shm_bus_config config
        int released

    struct shm_subscription:
        uint32_t index
        uint64_t count
        uint64_t missed
        uint64_t skipped

    struct shm_taken:
        uint32_t lease
        uint32_t head_bytes
        uint64_t len_bytes
        uint64_t position
        uint64_t stamp_ns

    int shm_bus_make(shm_thread *self, shm_bus_view *view, const shm_bus_config *config) nogil
    int shm_bus_open(shm_thread *self, shm_bus_view *view, uint32_t index, uint64_t count) nogil
    void shm_bus_release(shm_thread *self, shm_bus_view *view) nogil
    int shm_bus_destroy(shm_thread *self, shm_bus_view *view) nogil
    bint shm_bus_is_closed(const shm_bus_view *view) nogil
    uint32_t shm_bus_count_readers(const shm_bus_view *view) nogil
    int shm_bus_publish(shm_thread *self, shm_bus_view *view, uint32_t lease, uint32_t head_bytes, uint64_t len_bytes,
                        uint64_t deadline_ns) nogil
    int shm_bus_subscribe(shm_thread *self, shm_bus_view *view, uint64_t patience_ns, shm_subscription *subscription,
                          uint64_t deadline_ns) nogil
    void shm_bus_unsubscribe(shm_thread *self, shm_bus_view *view, shm_subscription *subscription) nogil
    int shm_bus_receive(shm_thread *self, shm_bus_view *view, shm_subscription *subscription, uint64_t room_bytes,
                        shm_taken *taken, uint64_t deadline_ns) nogil

cdef extern from *:
    """
    static void shm_set_bus_released(struct shm_bus_view *v) { atomic_store(&v->released, 1); }
    static uint64_t shm_count_of(const struct shm_subscription *s) { return atomic_load(&s->count); }
    static uint64_t shm_missed_of(const struct shm_subscription *s) { return atomic_load(&s->missed); }
    static uint64_t shm_skipped_of(const struct shm_subscription *s) { return atomic_load(&s->skipped); }
    """
    void set_bus_released "shm_set_bus_released"(shm_bus_view *v) nogil
    uint64_t count_of "shm_count_of"(const shm_subscription *s) nogil
    uint64_t missed_of "shm_missed_of"(const shm_subscription *s) nogil
    uint64_t skipped_of "shm_skipped_of"(const shm_subscription *s) nogil

# How long one who subscribes waits for another who destroys the bus, and was stopped there.
cdef double GATE_SECONDS = 5.0


@cython.no_gc_clear  # see Box
cdef class BusView:
    cdef shm_bus_view c
    cdef readonly Member member
    cdef bint opened
    cdef int inside   # threads in the core without the GIL: the last one out gives the hold back
    cdef object places  # WeakSet of the readers of this process, and of those that may become one
    cdef int reading   # of these, so many are
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("use Bus.create or Bus.open")

    cdef open_in(self, Member member):
        self.member = member
        self.opened = True
        self.places = weakref.WeakSet()

    def __dealloc__(self):
        if self.opened and self.c.bus != NULL:
            release_later(self.member, self.c.lease)

    cdef void go_in(self):
        self.inside += 1
        self.member.inside += 1

    cdef void come_out(self, shm_thread *t):
        self.member.inside -= 1
        self.inside -= 1
        if self.inside == 0 and not self.opened:
            shm_bus_release(t, &self.c)

    cdef shm_thread *use(self) except NULL:
        if not self.opened:
            if self.member is not None:
                self.member.check()
            raise errors.Closed("the bus is closed in this process")
        cdef shm_thread *t = context(self.member)
        if not self.opened:
            raise errors.Closed("the bus is closed in this process")
        return t

    cdef str what(self):
        return f"bus {self.c.index} of {self.c.config.frames} frames"

    @property
    def index(self):
        return self.c.index

    @property
    def life(self):
        return self.c.count

    @property
    def frames(self):
        return self.c.config.frames

    @property
    def frame_bytes(self):
        return self.c.config.frame_bytes

    @property
    def readers(self):
        self.use()
        return shm_bus_count_readers(&self.c)

    @property
    def closed(self):
        if not self.opened or not self.member.joined or self.member.c.closed:
            return True
        return bool(shm_bus_is_closed(&self.c))

    def publish_block(self, Lease block not None, uint32_t head_bytes, uint64_t len_bytes, timeout=None, message=None):
        """Publish the first bytes of a block; the block stays the caller's too, as long as he has it."""
        cdef uint64_t deadline = deadline_of(timeout)
        cdef shm_thread *t = self.use()
        cdef uint32_t lease, index
        cdef int status
        if block.member is not self.member or block.readonly or len_bytes > block.nbytes or head_bytes > len_bytes:
            raise errors.InvalidArgument(f"{len_bytes} bytes of a block of {block.nbytes} that is not this bus's to publish")
        if len_bytes - head_bytes > self.c.config.frame_bytes:
            raise errors.TooLarge(
                f"the frame is {len_bytes - head_bytes} bytes; the limit of this bus is {self.c.config.frame_bytes}")
        if not shm_lease_find(&self.member.segment, block.index, len_bytes, &index):
            raise errors.Corrupted("a block is none")
        hold_block(self.member, index, &lease, "a frame", deadline, message)
        try:
            while True:
                t = self.use()
                self.go_in()
                with nogil:
                    status = shm_bus_publish(t, &self.c, lease, head_bytes, len_bytes, deadline)
                self.come_out(t)
                if status == SHM_ABORTED:
                    raise_abort(t)
                elif status != SHM_INTERRUPTED:
                    break
                else:
                    raise_interrupt()
        except BaseException:
            release_later(self.member, lease)
            raise
        if status == SHM_OK:
            return
        release_later(self.member, lease)
        if status == SHM_FULL:
            raise errors.MailboxFull(f"{self.what()}: a reader with patience has not read the oldest, or another publishes",
                                     message=message)
        if status == SHM_TIMEOUT:
            raise errors.Timeout(f"{self.what()}: no room came free within {timeout} s", message=message)
        refuse(status, self.what())

    def join(self, double patience=0.0, cls=None):
        """A new reader, an instance of `cls`."""
        cdef BusReader reader = (cls or BusReader).__new__(cls or BusReader)
        cdef uint64_t deadline, patience_ns
        cdef int status
        if isnan(patience) or not 0 <= patience <= 1e6:
            raise errors.InvalidArgument(f"patience is {patience}; it must be 0 to 1e6 seconds")
        patience_ns = <uint64_t>ceil(patience * 1e9)
        deadline = deadline_of(GATE_SECONDS)
        reader.bus = self
        self.places.add(reader)
        cdef shm_thread *t = self.use()
        self.go_in()
        with nogil:
            status = shm_bus_subscribe(t, &self.c, patience_ns, &reader.c, deadline)
        reader.reads = status == SHM_OK and self.opened
        self.reading += reader.reads
        if status == SHM_OK and not reader.reads:  # another thread has closed the bus here, and knew of no reader
            shm_bus_unsubscribe(t, &self.c, &reader.c)
            status = SHM_CLOSED
        self.come_out(t)
        if status == SHM_LIMIT:
            raise errors.LimitExceeded(f"the bus has {self.c.config.readers} readers already, its limit")
        if status:
            refuse(status, self.what())
        return reader

    def end(self):
        """Destroy it; False: it has readers."""
        cdef int status = shm_bus_destroy(self.use(), &self.c)
        if status == SHM_BUSY:
            return False
        if status:
            refuse(status, self.what())
        return True

    def release(self):
        cdef shm_thread *t = NULL
        if not self.opened:
            return
        while can_act(self.member):
            t = context(self.member)
            for reader in list(self.places):
                (<BusReader>reader).leave()
            t = context(self.member)
            if self.reading == 0:  # else another thread has just subscribed
                break
        if not self.opened:
            return
        self.opened = False
        if t == NULL:
            return
        set_bus_released(&self.c)
        if self.inside > 0:
            shm_wake_own(t)
        else:
            shm_bus_release(t, &self.c)


cdef class Farewell:
    """A reader that is gone: whoever has a context next says so."""

    cdef BusView bus
    cdef shm_subscription c


@cython.no_gc_clear  # see Box
cdef class BusReader:
    cdef shm_subscription c
    cdef readonly BusView bus
    cdef bint reads
    cdef object last
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("use Bus.subscribe")

    def __dealloc__(self):
        cdef Farewell farewell
        cdef shm_thread passing
        if not self.reads:
            return
        self.bus.reading -= 1
        if not can_act(self.bus.member) or not self.bus.opened:
            return
        if last_serial == self.bus.member.serial:
            shm_bus_unsubscribe(<shm_thread *>last_context, &self.bus.c, &self.c)
        elif shm_thread_open(&passing, &self.bus.member.c) == SHM_OK:  # the others may all be waiting, for it too
            shm_bus_unsubscribe(&passing, &self.bus.c, &self.c)
            shm_thread_close(&passing)
        else:
            farewell = Farewell.__new__(Farewell)
            farewell.bus = self.bus
            memcpy(&farewell.c, &self.c, sizeof(self.c))
            self.bus.member.deferred.append(farewell)

    def __reduce__(self):
        raise TypeError("a reader is one process's place in a bus and cannot be pickled; send the bus, and subscribe there")

    @property
    def missed(self):
        return missed_of(&self.c)

    @property
    def skipped(self):
        return skipped_of(&self.c)

    @property
    def position(self):
        return self.last

    @property
    def closed(self):
        return not self.reads or self.bus.closed

    cdef int fetch(self, uint64_t room, shm_taken *taken, object timeout) except -1:
        cdef uint64_t deadline = deadline_of(timeout)
        cdef shm_thread *t
        cdef int status
        while True:
            if not self.reads:
                raise errors.Closed("the reader is closed")
            t = self.bus.use()
            self.bus.go_in()
            with nogil:
                status = shm_bus_receive(t, &self.bus.c, &self.c, room, taken, deadline)
            self.bus.come_out(t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            self.last = taken.position
            return 0
        if status == SHM_EMPTY:
            raise errors.MailboxEmpty("no frame is there")
        if status == SHM_TIMEOUT:
            raise errors.Timeout(f"no frame came within {timeout} s to {self.bus.what()}")
        if status == SHM_TOO_LARGE:
            needed = taken.len_bytes - taken.head_bytes
            raise errors.BufferTooSmall(f"the frame is {needed} bytes, the buffer {room}; the frame was kept", needed=needed)
        refuse(status, self.bus.what())

    def take(self, timeout=None):
        """(block, length of its head, length) of the next frame."""
        cdef shm_taken taken
        self.fetch(<uint64_t>-1, &taken, timeout)
        return new_lease(self.bus.member, taken.lease, taken.len_bytes, True), taken.head_bytes, taken.len_bytes

    def receive_into(self, buffer, timeout=None):
        cdef Py_buffer into
        cdef shm_taken taken
        cdef Member member = self.bus.member
        cdef Lease held
        PyObject_GetBuffer(buffer, &into, PyBUF_WRITABLE)
        try:
            self.fetch(into.len, &taken, timeout)
            held = new_lease(member, taken.lease, taken.len_bytes, True)
            copy_without_gil(member, into.buf, held.at + taken.head_bytes, taken.len_bytes - taken.head_bytes)
        finally:
            PyBuffer_Release(&into)
        return taken.len_bytes - taken.head_bytes

    def leave(self):
        cdef shm_thread *t
        if not self.reads:
            return
        if not can_act(self.bus.member) or not self.bus.opened:
            self.bus.reading -= self.reads
            self.reads = False
            return
        t = self.bus.use()
        self.bus.reading -= self.reads  # whoever else closes it may have been faster
        self.reads = False
        shm_bus_unsubscribe(t, &self.bus.c, &self.c)


cdef int say_farewell(Farewell farewell, shm_thread *t) except -1:
    if farewell.bus.opened:
        shm_bus_unsubscribe(t, &farewell.bus.c, &farewell.c)
    return 0
