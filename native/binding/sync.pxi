# Sync objects, and waits on many.

cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"

cdef extern from "transport/sync.h":
    enum:
        SHM_SYNC_EVENT, SHM_SYNC_MUTEX, SHM_SYNC_SEMAPHORE, SHM_SYNC_CONDITION, SHM_SYNC_BARRIER, SHM_SYNC_RWLOCK
        SHM_SYNC_PIPE, SHM_SYNC_AUTO, SHM_SYNC_RECURSIVE, SHM_SYNC_ANYONE, SHM_SYNC_RLOCK
        SHM_SYNC_FREE, SHM_SYNC_SET, SHM_SYNC_HELD, SHM_SYNC_ABANDONED
        SHM_SYNC_MAX_VALUE, SHM_SYNC_MAX_ENTRIES
        SHM_ENTRY_READER, SHM_ENTRY_WRITER
    uint64_t SHM_PIPE_MAX_BYTES

    struct shm_set:
        pass

    struct shm_sync:
        uint32_t depth

    struct shm_sync_config:
        uint32_t kind
        uint32_t flags
        uint32_t max
        uint32_t initial
        uint32_t entries
        uint64_t bytes

    struct shm_sync_view:
        shm_sync *sync
        uint32_t index
        uint64_t count
        uint32_t lease
        uint32_t block
        shm_sync_config config
        uint32_t place_words
        shm_set *line
        shm_set *watchers
        int released

    int shm_sync_make(shm_thread *self, shm_sync_view *view, const shm_sync_config *config) nogil
    int shm_sync_open(shm_thread *self, shm_sync_view *view, uint32_t index, uint64_t count) nogil
    void shm_sync_release(shm_thread *self, shm_sync_view *view) nogil
    uint64_t shm_sync_peek(const shm_thread *self, const shm_sync_view *view) nogil
    uint64_t shm_sync_value(uint64_t word) nogil
    uint32_t shm_sync_slot(uint64_t word) nogil
    bint shm_sync_is_mine(const shm_thread *self, uint64_t word) nogil
    int shm_sync_take(shm_thread *self, shm_sync_view *view, c_bool *abandoned) nogil
    void shm_sync_give_back(shm_thread *self, shm_sync_view *view, bint was_abandoned) nogil
    void shm_event_set(shm_thread *self, shm_sync_view *view) nogil
    void shm_event_reset(shm_thread *self, shm_sync_view *view) nogil
    int shm_mutex_unlock(shm_thread *self, shm_sync_view *view) nogil
    int shm_mutex_adopt(shm_thread *self, shm_sync_view *view) nogil
    int shm_semaphore_release(shm_thread *self, shm_sync_view *view, uint32_t n, uint32_t *previous) nogil

cdef extern from "transport/rwlock.h":
    int shm_rwlock_read(shm_thread *self, shm_sync_view *view, uint32_t *entry, uint64_t deadline_ns) nogil
    int shm_rwlock_write(shm_thread *self, shm_sync_view *view, uint64_t deadline_ns) nogil
    int shm_rwlock_leave(shm_thread *self, shm_sync_view *view, uint32_t entry) nogil
    int shm_rwlock_unlock(shm_thread *self, shm_sync_view *view) nogil
    uint32_t shm_rwlock_readers(const shm_sync_view *view) nogil
    int shm_condition_wait(shm_thread *self, shm_sync_view *view, shm_sync_view *mutex, uint32_t *depth,
                           uint64_t deadline_ns) nogil
    void shm_condition_notify(shm_thread *self, shm_sync_view *view, uint32_t n) nogil
    int shm_barrier_arrive(shm_thread *self, shm_sync_view *view, uint32_t *index, uint64_t *acts, uint64_t deadline_ns) nogil
    int shm_barrier_open(shm_thread *self, shm_sync_view *view) nogil
    void shm_barrier_break(shm_thread *self, shm_sync_view *view) nogil
    void shm_barrier_break_mine(shm_thread *self, shm_sync_view *view, uint64_t acts) nogil
    void shm_barrier_reset(shm_thread *self, shm_sync_view *view) nogil
    uint32_t shm_barrier_count(const shm_sync_view *view) nogil
    bint shm_barrier_is_broken(const shm_sync_view *view) nogil

cdef extern from "transport/pipe.h":
    int shm_pipe_join(shm_thread *self, shm_sync_view *view, uint32_t what, uint32_t *entry) nogil
    int shm_pipe_leave(shm_thread *self, shm_sync_view *view, uint32_t entry) nogil
    uint32_t shm_pipe_count(const shm_sync_view *view, uint32_t what) nogil
    int shm_pipe_read(shm_thread *self, shm_sync_view *view, void *into, uint64_t len, uint64_t *done,
                      uint64_t deadline_ns) nogil
    int shm_pipe_write(shm_thread *self, shm_sync_view *view, const void *from_, uint64_t len, uint64_t *done,
                       uint64_t deadline_ns) nogil

cdef extern from "transport/waitset.h":
    enum:
        SHM_WAITSET_MAX
        SHM_SOURCE_SYNC, SHM_SOURCE_BOX, SHM_SOURCE_BUS, SHM_SOURCE_MEMBER, SHM_SOURCE_DUE, SHM_SOURCE_FILE
        SHM_SOURCE_ROOM

    struct shm_source:
        uint32_t kind
        shm_sync_view *sync
        shm_box *box
        const shm_filter *filter
        shm_bus_view *bus
        shm_subscription *subscription
        uint64_t member
        uint64_t due_ns
        uint64_t least
        int fd
        short events
        bint abandoned
        bint there

    int shm_waitset_any(shm_thread *self, shm_source *sources, uint32_t count, uint32_t *which, uint64_t deadline_ns) nogil
    int shm_waitset_look(shm_thread *self, shm_source *sources, uint32_t count, uint64_t deadline_ns) nogil
    int shm_waitset_all(shm_thread *self, shm_source *sources, uint32_t count, uint64_t deadline_ns) nogil
    int shm_sync_wait(shm_thread *self, shm_sync_view *view, c_bool *abandoned, uint64_t deadline_ns) nogil

cdef extern from *:
    """
    #include <poll.h>
    static void shm_set_sync_released(struct shm_sync_view *v) { atomic_store(&v->released, 1); }
    static void shm_set_depth(struct shm_sync_view *v, uint32_t n) { atomic_store(&v->sync->depth, n); }
    static uint32_t shm_depth_of(const struct shm_sync_view *v) { return atomic_load(&v->sync->depth); }
    static uint32_t shm_count_set(const struct shm_set *set, uint32_t words) { return shm_set_count(set, words); }
    """
    enum:
        POLLIN
    void set_sync_released "shm_set_sync_released"(shm_sync_view *v) nogil
    void set_depth "shm_set_depth"(shm_sync_view *v, uint32_t n) nogil
    uint32_t depth_of "shm_depth_of"(const shm_sync_view *v) nogil
    uint32_t count_set "shm_count_set"(const shm_set *set, uint32_t words) nogil

SYNC_EVENT = SHM_SYNC_EVENT
SYNC_MUTEX = SHM_SYNC_MUTEX
SYNC_SEMAPHORE = SHM_SYNC_SEMAPHORE
SYNC_CONDITION = SHM_SYNC_CONDITION
SYNC_BARRIER = SHM_SYNC_BARRIER
SYNC_RWLOCK = SHM_SYNC_RWLOCK
SYNC_PIPE = SHM_SYNC_PIPE
SYNC_AUTO = SHM_SYNC_AUTO
SYNC_RECURSIVE = SHM_SYNC_RECURSIVE
SYNC_ANYONE = SHM_SYNC_ANYONE
SYNC_RLOCK = SHM_SYNC_RLOCK
NAME_SYNC = SHM_NAME_SYNC
PIPE_READER = SHM_ENTRY_READER
PIPE_WRITER = SHM_ENTRY_WRITER
SYNC_MAX_VALUE = SHM_SYNC_MAX_VALUE

cdef dict SYNC_NAMES = {
    SHM_SYNC_EVENT: "event", SHM_SYNC_MUTEX: "mutex", SHM_SYNC_SEMAPHORE: "semaphore", SHM_SYNC_CONDITION: "condition",
    SHM_SYNC_BARRIER: "barrier", SHM_SYNC_RWLOCK: "read-write lock", SHM_SYNC_PIPE: "pipe"}


@cython.no_gc_clear  # see Box
cdef class SyncView:
    cdef shm_sync_view c
    cdef readonly Member member
    cdef bint opened
    cdef int inside  # threads in the core without the GIL: the last one out gives the hold back
    cdef int what    # of a pipe: the end that is open here, PIPE_READER or PIPE_WRITER; 0: none
    cdef uint32_t end
    cdef object entered  # of a read-write lock: a bit for each entry where this handle is inside as a reader. No list, for
    #                      the collector empties that before it comes to us
    cdef uint64_t acts  # of a barrier: the round in which somebody has come by this handle as the last, and has not opened it
    cdef uint32_t actor  # place + 1 of his
    cdef object by_thread  # of a read-write lock: a threading.local with the entries where its thread is inside
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self.entered = 0

    def __init__(self, *args, **kwargs):
        raise TypeError(f"use {type(self).__name__}.create or {type(self).__name__}.open")

    def make(self, Member member not None, kind, flags=0, max=0, initial=0, entries=0, nbytes=0):
        """Be a new object."""
        if self.opened:
            raise errors.InvalidArgument("it is open already")
        fill_view(self, member, kind, flags, max, initial, entries, nbytes)

    def find(self, Member member not None, kind, index, life, timeout=None):
        """Be an object that another has made; InvalidArgument: it is of another kind."""
        if self.opened:
            raise errors.InvalidArgument("it is open already")
        open_view(self, member, kind, index, life, deadline_of(timeout))

    def __dealloc__(self):
        cdef SyncFarewell farewell
        cdef shm_thread passing
        if not self.opened or self.c.sync == NULL:
            return
        if (self.what or self.acts or self.entered) and can_act(self.member):
            if last_serial == self.member.serial:
                self.leave(<shm_thread *>last_context)
            elif shm_thread_open(&passing, &self.member.c) == SHM_OK:  # the others may all be waiting
                self.leave(&passing)
                shm_sync_release(&passing, &self.c)
                shm_thread_close(&passing)
                return
            else:
                farewell = SyncFarewell.__new__(SyncFarewell)
                memcpy(&farewell.c, &self.c, sizeof(self.c))
                farewell.is_end, farewell.end, farewell.entered = self.what != 0, self.end, self.entered
                farewell.acts = self.acts
                self.member.deferred.append(farewell)
                return
        release_later(self.member, self.c.lease)

    cdef void go_in(self):
        self.inside += 1
        self.member.inside += 1

    cdef void come_out(self, shm_thread *t):
        self.member.inside -= 1
        self.inside -= 1
        if self.inside == 0 and not self.opened:
            self.let_go(t)

    cdef void leave(self, shm_thread *t):
        """What can only be left by this handle: the end of a pipe, a barrier that it is to open, and where it is inside as
        a reader."""
        if self.what:
            shm_pipe_leave(t, &self.c, self.end)
            self.what = 0
        if self.acts:
            shm_barrier_break_mine(t, &self.c, self.acts)
            self.acts = 0
        leave_entries(t, &self.c, self.entered)
        self.entered = 0

    cdef void let_go(self, shm_thread *t):
        self.leave(t)
        shm_sync_release(t, &self.c)

    cdef shm_thread *use(self) except NULL:
        if not self.opened:
            if self.member is not None:
                self.member.check()
            raise errors.Closed(f"the {self.kind_name()} is closed in this process")
        cdef shm_thread *t = context(self.member)
        if not self.opened:
            raise errors.Closed(f"the {self.kind_name()} is closed in this process")
        return t

    cdef str kind_name(self):
        return SYNC_NAMES.get(self.c.config.kind, "object")

    @property
    def index(self):
        return self.c.index

    @property
    def life(self):
        return self.c.count

    @property
    def flags(self):
        return self.c.config.flags

    @property
    def max(self):
        return self.c.config.max

    @property
    def nbytes(self):
        return self.c.config.bytes

    @property
    def closed(self):
        return not self.opened or not self.member.joined or bool(self.member.c.closed)

    def describe(self):
        """Kind, state, owner and how many wait, for the text of a wait that gives up."""
        cdef shm_thread *t = self.use()
        cdef uint64_t word = shm_sync_peek(t, &self.c)
        text = f"{self.kind_name()} {self.c.index}"
        if self.c.config.kind == SHM_SYNC_EVENT:
            text += ", set" if word & 0xF == SHM_SYNC_SET else ", not set"
        elif self.c.config.kind == SHM_SYNC_SEMAPHORE:
            text += f", {shm_sync_value(word)} of {self.c.config.max} left"
        elif word & 0xF == SHM_SYNC_HELD:
            owner = self.owner()
            text += f", held by process {owner[0]}" if owner else ", held"
        if self.c.config.kind == SHM_SYNC_RWLOCK:
            text += f", {shm_rwlock_readers(&self.c)} readers inside"
        return f"{text}, {self.waiting()} waiting"

    def owner(self):
        """(pid, member id) of who holds it, None: nobody."""
        cdef shm_thread *t = self.use()
        cdef uint64_t word = shm_sync_peek(t, &self.c)
        cdef uint32_t slot = shm_sync_slot(word)
        cdef shm_member_record *r
        if word & 0xF != SHM_SYNC_HELD or not shm_index_ok(&self.member.segment, SHM_TABLE_MEMBERS, slot):
            return None
        r = shm_member_at(&self.member.segment, slot)
        return r.pid, shm_member_id_of(r.word, slot)

    def waiting(self):
        self.use()
        return count_set(self.c.line, self.c.place_words) + count_set(self.c.watchers, self.c.place_words)

    def state(self):
        """FREE 0, SET 1, HELD 2, ABANDONED 3, whoever has claimed it."""
        return shm_sync_peek(self.use(), &self.c) & 0xF

    def value(self):
        return shm_sync_value(shm_sync_peek(self.use(), &self.c))

    def is_mine(self):
        cdef shm_thread *t = self.use()
        return bool(shm_sync_is_mine(t, shm_sync_peek(t, &self.c)))

    def depth(self):
        self.use()
        return depth_of(&self.c)

    def take(self, timeout=None):
        """Wait for it and take it: 0 not in time, 1 taken, 2 taken from one who died."""
        return self.take_it(timeout)

    cdef int take_it(self, object timeout) except -1:
        cdef uint64_t deadline
        cdef c_bool abandoned = False
        cdef int status = shm_sync_take(self.use(), &self.c, &abandoned) if timeout == 0 else SHM_EMPTY
        if status == SHM_OK:
            return 2 if abandoned else 1
        deadline = deadline_of(timeout)
        if deadline == 0:
            return 0
        cdef shm_thread *t
        while True:
            t = self.use()
            self.go_in()
            with nogil:
                status = shm_sync_wait(t, &self.c, &abandoned, deadline)
            if status == SHM_OK and not self.opened:  # closed meanwhile: nobody could give it back
                shm_sync_give_back(t, &self.c, abandoned)
                status = SHM_CLOSED
            self.come_out(t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            return 2 if abandoned else 1
        if status == SHM_TIMEOUT or status == SHM_EMPTY:
            return 0
        refuse(status, f"a wait for {self.kind_name()} {self.c.index}")

    def put(self, bint is_set):
        cdef shm_thread *t = self.use()
        if is_set:
            shm_event_set(t, &self.c)
        else:
            shm_event_reset(t, &self.c)

    def unlock(self):
        """False: it is not the caller's."""
        return shm_mutex_unlock(self.use(), &self.c) == SHM_OK

    def adopt(self):
        """A mutex that another thread of this process has for this one becomes this one's; False: nobody of it has it."""
        return shm_mutex_adopt(self.use(), &self.c) == SHM_OK

    def add(self, uint32_t n):
        """The value before; -1: it would be above the maximum."""
        cdef uint32_t previous = 0
        cdef int status = shm_semaphore_release(self.use(), &self.c, n, &previous)
        return -1 if status else previous

    # -- read-write locks ---------------------------------------------------------------------------------------

    cdef list mine(self):
        """The entries where this thread is inside."""
        if self.by_thread is None:
            self.by_thread = thread_local()
        cdef dict kept = self.by_thread.__dict__
        return kept.setdefault("entries", [])

    def enter_read(self, timeout=None):
        """False: not in time."""
        cdef list mine = self.mine()
        cdef uint64_t deadline = deadline_of(timeout)
        cdef uint32_t entry = 0
        cdef int status
        cdef shm_thread *t
        while True:
            t = self.use()
            self.go_in()
            with nogil:
                status = shm_rwlock_read(t, &self.c, &entry, deadline)
            if status == SHM_OK and not self.opened:
                shm_rwlock_leave(t, &self.c, entry)
                status = SHM_CLOSED
            self.come_out(t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            self.entered |= (<object>1) << entry
            mine.append(entry)
            return True
        if status == SHM_TIMEOUT or status == SHM_EMPTY:
            return False
        refuse(status, f"read-write lock {self.c.index}")

    def enter_write(self, timeout=None):
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        cdef shm_thread *t
        while True:
            t = self.use()
            self.go_in()
            with nogil:
                status = shm_rwlock_write(t, &self.c, deadline)
            if status == SHM_OK and not self.opened:
                shm_rwlock_unlock(t, &self.c)
                status = SHM_CLOSED
            self.come_out(t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            return True
        if status == SHM_TIMEOUT or status == SHM_EMPTY:
            return False
        refuse(status, f"read-write lock {self.c.index}")

    def leave_read(self):
        """False: this thread is no reader."""
        cdef list mine = self.mine()
        cdef shm_thread *t = self.use()
        cdef uint32_t entry
        if not mine:
            return False
        entry = mine.pop()
        self.entered &= ~((<object>1) << entry)
        return shm_rwlock_leave(t, &self.c, entry) == SHM_OK

    def leave_write(self):
        return shm_rwlock_unlock(self.use(), &self.c) == SHM_OK

    def readers(self):
        self.use()
        return shm_rwlock_readers(&self.c)

    # -- conditions and barriers --------------------------------------------------------------------------------

    def wait_notified(self, SyncView mutex not None, timeout=None):
        """Unlock the mutex, wait to be notified, and lock it again: was it notified?"""
        cdef uint64_t deadline = deadline_of(timeout)
        cdef uint32_t depth = 0
        cdef shm_thread *t = self.use()
        cdef int status
        if mutex.member is not self.member:
            raise errors.InvalidArgument("the condition and its lock are of different systems")
        mutex.use()
        self.go_in()
        mutex.go_in()
        shield_by(1)  # who waits here has its lock again afterwards, whatever comes
        with nogil:
            status = shm_condition_wait(t, &self.c, &mutex.c, &depth, deadline)
        self.come_out(t)
        mutex.come_out(t)
        if status == SHM_REFUSED:
            shield_by(-1)
            raise RuntimeError("a condition is waited for with its lock held")
        raised = None
        if status == SHM_INTERRUPTED:
            try:
                raise_interrupt()
            except BaseException as error:
                raised = error
        while True:
            try:
                taken = mutex.take()
                break
            except errors.ShmipcError:
                shield_by(-1)
                raise
            except BaseException as error:
                raised = error
        set_depth(&mutex.c, depth)  # it is open: `take` has found it so, and no other thread has run since
        shield_by(-1)
        if isinstance(mutex, HeldView):
            (<HeldView>mutex).abandoned = taken == 2
        if raised is not None:
            raise raised
        if status == SHM_OK:
            return True
        if status == SHM_TIMEOUT or status == SHM_EMPTY or status == SHM_INTERRUPTED:
            return False
        refuse(status, f"condition {self.c.index}")

    def notify_waiting(self, uint32_t n):
        shm_condition_notify(self.use(), &self.c, n)

    def arrive(self, timeout=None, bint opens=False):
        """(how many came before, must the caller act and open it); index -1: broken, -2: because of our timeout. `opens`:
        the last opens it at once."""
        cdef uint64_t deadline = deadline_of(timeout)
        cdef uint32_t index = 0
        cdef uint64_t acts = 0
        cdef shm_thread *t = self.use()
        cdef int status
        self.go_in()
        shield_by(1)  # the others rely on it; and a broken barrier has the same status
        with nogil:
            status = shm_barrier_arrive(t, &self.c, &index, &acts, deadline)
        shield_by(-1)
        if status == SHM_OK and acts and not self.opened:
            shm_barrier_break_mine(t, &self.c, acts)
            status = SHM_CLOSED
        elif status == SHM_OK and acts and opens:
            acts = 0
            status = shm_barrier_open(t, &self.c)
        elif status == SHM_OK and acts:
            self.acts, self.actor = acts, t.place + 1
        self.come_out(t)
        if status == SHM_OK:
            return index, acts != 0
        if status == SHM_INTERRUPTED:
            raise_interrupt()
        if status == SHM_ABORTED or status == SHM_INTERRUPTED:
            return -1, False
        if status == SHM_TIMEOUT or status == SHM_EMPTY:
            return -2, False
        refuse(status, f"barrier {self.c.index}")

    def open_barrier(self):
        cdef shm_thread *t = self.use()
        if self.actor == t.place + 1:
            self.acts = 0  # else it is of a later round: this one's was reset
        return shm_barrier_open(t, &self.c) == SHM_OK

    def break_barrier(self):
        shm_barrier_break(self.use(), &self.c)

    def break_mine(self):
        """Break it if this thread is the one that is to open it, and its round is not over."""
        cdef shm_thread *t
        if self.opened and self.acts:
            t = self.use()
            if self.actor == t.place + 1:
                shm_barrier_break_mine(t, &self.c, self.acts)
                self.acts = 0

    def reset_barrier(self):
        shm_barrier_reset(self.use(), &self.c)

    def arrived(self):
        self.use()
        return shm_barrier_count(&self.c)

    def is_broken(self):
        self.use()
        return bool(shm_barrier_is_broken(&self.c))

    def release_hold(self):
        """Give up this process's hold; who waits here gets Closed."""
        cdef shm_thread *t = NULL
        if not self.opened:
            return
        if can_act(self.member):
            t = context(self.member)
        if not self.opened:
            return
        self.opened = False
        if t == NULL:
            return
        set_sync_released(&self.c)
        if self.inside > 0:
            shm_wake_own(t)
        else:
            self.let_go(t)

    # -- pipes --------------------------------------------------------------------------------------------------

    def join_pipe(self, uint32_t what):
        """Open an end here, PIPE_READER or PIPE_WRITER."""
        cdef int status = shm_pipe_join(self.use(), &self.c, what, &self.end)
        if status == SHM_LIMIT:
            raise errors.LimitExceeded(f"the pipe has {self.c.config.entries} open ends already, its limit")
        if status:
            refuse(status, f"pipe {self.c.index}")
        self.what = what

    def pipe_ends(self, uint32_t what):
        self.use()
        return shm_pipe_count(&self.c, what)

    def read_pipe(self, buffer, timeout=None):
        """Bytes read, 0 at the end of the stream, -1: none in time."""
        cdef uint64_t deadline = deadline_of(timeout), done = 0
        cdef Py_buffer into
        cdef shm_thread *t
        cdef int status
        if self.what != SHM_ENTRY_READER:
            self.use()
            raise errors.NotSupported("this end of the pipe is not for reading")
        PyObject_GetBuffer(buffer, &into, PyBUF_WRITABLE)
        try:
            while True:
                t = self.use()
                self.go_in()
                with nogil:
                    status = shm_pipe_read(t, &self.c, into.buf, into.len, &done, deadline)
                self.come_out(t)
                if status == SHM_ABORTED:
                    raise_abort(t)
                elif status != SHM_INTERRUPTED:
                    break
                else:
                    raise_interrupt()
        finally:
            PyBuffer_Release(&into)
        if status == SHM_OK:
            return done
        if status == SHM_EMPTY or status == SHM_TIMEOUT:
            return -1
        refuse(status, f"pipe {self.c.index}")

    def write_pipe(self, data, timeout=None):
        """(bytes written, all: 1, not in time: 0, nobody reads: -1)."""
        cdef uint64_t deadline = deadline_of(timeout), done = 0, before
        cdef Py_buffer source
        cdef shm_thread *t
        cdef int status
        if self.what != SHM_ENTRY_WRITER:
            self.use()
            raise errors.NotSupported("this end of the pipe is not for writing")
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            while True:
                t = self.use()
                before = done
                self.go_in()
                shield_by(1)  # how much was written must be told
                with nogil:
                    status = shm_pipe_write(t, &self.c, <const char *>source.buf + before, source.len - before, &done,
                                            deadline)
                shield_by(-1)
                self.come_out(t)
                if status != SHM_INTERRUPTED:
                    break
                raise_interrupt()
            if status == SHM_OK:
                return done, 1
            if status == SHM_FULL or status == SHM_EMPTY or status == SHM_TIMEOUT:
                return done, 0
            if status == SHM_PEER_DEAD:
                return done, -1
            refuse(status, f"pipe {self.c.index}")
        except BaseException as error:  # that of a signal handler, too
            BaseException.__setattr__(error, "written", done)
            raise
        finally:
            PyBuffer_Release(&source)


# What a `with` block takes and gives back: of these no code of Python's runs between the taking and the block, nor between
# the block and the giving back, where what a signal handler raises would leave it taken.

cdef object thread_local = threading.local


def span(block, timeout):
    """Seconds of a wait in multiprocessing's manner: not to block is 0, and so is less."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    try:
        return 0.0 if timeout < 0 else timeout
    except TypeError:
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}") from None


@cython.auto_pickle(False)  # SyncObject says how
cdef class HeldView(SyncView):
    cdef public bint abandoned

    cdef int hold(self, object timeout) except -1:
        cdef int result = self.take_it(timeout)
        if result:
            self.abandoned = result == 2
        return result


@cython.auto_pickle(False)  # SyncObject says how
cdef class MutexView(HeldView):

    def lock(self, timeout=None):
        cdef tuple ways = self.WAYS  # first: nothing that may fail comes behind the taking
        cdef int result = self.hold(timeout)
        if result == 0:
            raise self._refused(timeout)
        return ways[result]

    def unlock(self):
        if shm_mutex_unlock(self.use(), &self.c) != SHM_OK:
            raise errors.NotOwner(f"only who holds a mutex unlocks it: {self.describe()}")

    def __enter__(self):
        self.hold(None)
        return self

    def __exit__(self, kind, error, trace):
        MutexView.unlock(self)


@cython.auto_pickle(False)  # SyncObject says how
cdef class LockView(HeldView):

    def acquire(self, block=True, timeout=None):
        return self.hold(span(block, timeout)) > 0

    def release(self):
        if shm_mutex_unlock(self.use(), &self.c) == SHM_OK:
            return
        if self.c.config.flags & SHM_SYNC_RLOCK:
            raise AssertionError("attempt to release recursive lock not owned by thread")
        raise ValueError("release of a lock that nobody has")

    def __enter__(self):
        return self.hold(None) > 0

    def __exit__(self, kind, error, trace):
        LockView.release(self)


@cython.auto_pickle(False)  # SyncObject says how
cdef class SemaphoreView(SyncView):

    def acquire(self, block=True, timeout=None):
        return self.take_it(span(block, timeout)) > 0

    def __enter__(self):
        return self.take_it(None) > 0

    def __exit__(self, kind, error, trace):
        if self.add(1) < 0:
            self.release()  # which says why not


@cython.auto_pickle(False)  # SyncObject says how
cdef class ConditionView(SyncView):
    cdef public object _lock

    def __enter__(self):
        return (<LockView?>self._lock).hold(None) > 0

    def __exit__(self, kind, error, trace):
        LockView.release(<LockView?>self._lock)


@cython.final
cdef class Side:
    """One side of a read-write lock, as a context manager."""
    cdef SyncView lock
    cdef bint reads

    def __init__(self, SyncView lock not None, bint reads):
        self.lock, self.reads = lock, reads

    def __enter__(self):
        if self.reads:
            self.lock.enter_read()
        else:
            self.lock.enter_write()
        return self.lock

    def __exit__(self, kind, error, trace):
        if self.reads:
            if not self.lock.leave_read():
                raise errors.NotOwner("only a reader that is inside leaves")
        elif not self.lock.leave_write():
            raise errors.NotOwner(f"only the writer that is inside leaves: {self.lock.describe()}")


cdef class SyncFarewell:
    """An end of a pipe, a reader of a lock, or who was to open a barrier, is gone: whoever has a context next says so."""

    cdef shm_sync_view c
    cdef uint64_t acts
    cdef bint is_end
    cdef uint32_t end
    cdef object entered


cdef int leave_entries(shm_thread *t, shm_sync_view *view, object entered) except -1:
    while entered:
        shm_rwlock_leave(t, view, entered.bit_length() - 1)
        entered ^= (<object>1) << (entered.bit_length() - 1)
    return 0


cdef int say_sync_farewell(SyncFarewell farewell, shm_thread *t) except -1:
    if farewell.is_end:
        shm_pipe_leave(t, &farewell.c, farewell.end)
    if farewell.acts:
        shm_barrier_break_mine(t, &farewell.c, farewell.acts)
    leave_entries(t, &farewell.c, farewell.entered)
    shm_sync_release(t, &farewell.c)
    return 0


cdef int fill_view(SyncView view, Member member, uint32_t kind, uint32_t flags, uint32_t max, uint32_t initial,
                   uint32_t entries, uint64_t nbytes) except -1:
    cdef shm_sync_config config
    config.kind, config.flags, config.max, config.initial = kind, flags, max, initial
    config.entries, config.bytes = entries, nbytes
    cdef int status = shm_sync_make(context(member), &view.c, &config)
    if status == SHM_NO_MEMORY:
        raise out_of_memory(member, 4096 + nbytes)
    if status:
        refuse(status, f"a new {SYNC_NAMES.get(kind, 'object')}")
    view.member = member
    view.opened = True
    return 0


cdef int open_view(SyncView view, Member member, uint32_t kind, uint32_t index, uint64_t life,
                   uint64_t deadline) except -1:
    what = f"{SYNC_NAMES.get(kind, 'object')} {index}"
    cdef int status = shm_sync_open(context(member), &view.c, index, life)
    while status == SHM_BUSY:
        status = shm_sync_open(give_way(member, deadline, what), &view.c, index, life)
    if status:
        refuse(status, what)
    view.member = member
    view.opened = True
    if view.c.config.kind != kind:
        found = view.kind_name()
        view.release_hold()
        raise errors.InvalidArgument(f"{index} is a {found}, not a {SYNC_NAMES.get(kind, 'object')}")
    return 0


# ---- waits on many ----

cdef class DueSource:
    """Something that is there from a moment on."""

    cdef public uint64_t due_ns

    def __cinit__(self, *args, **kwargs):
        self.due_ns = SHM_FOREVER

    def set_due(self, double seconds):
        self.due_ns = shm_clock_ns() + <uint64_t>ceil(max(0.0, min(seconds, 1e9)) * 1e9)

    def clear_due(self):
        self.due_ns = SHM_FOREVER

    def is_due(self):
        return shm_clock_ns() >= self.due_ns


@cython.final
cdef class MatchSource:
    """A mailbox while it has a message that matches."""

    cdef readonly Box box
    cdef shm_filter f
    cdef tuple key

    def __init__(self, Box box not None, sender_id=ANYTHING, int kind=-1, tag=ANYTHING, bint orders=False,
                 bint raw=False):
        self.box = box
        set_filter(&self.f, sender_id, kind, tag)
        self.f.raw = raw
        self.f.other = &the_order if orders else NULL
        self.key = box.c.index, sender_id, kind, tag


@cython.final
cdef class RoomSource:
    """A mailbox while it has room for a message, or a pipe's writing end while it has room for so many bytes; from
    their end on too."""

    cdef readonly object target
    cdef Box box
    cdef SyncView pipe
    cdef uint64_t least

    def __init__(self, target, uint64_t least=1):
        self.target = target
        self.least = least
        if isinstance(target, Box):
            self.box = target
            return
        self.pipe = <SyncView?>target
        if self.pipe.c.config.kind != SHM_SYNC_PIPE or self.pipe.what != SHM_ENTRY_WRITER:
            raise TypeError(f"a {self.pipe.kind_name()} has no room to wait for, but the writing end of a pipe")

    cdef object fill(self, shm_source *s, Member member):
        s.kind = SHM_SOURCE_ROOM
        if self.box is not None:
            self.box.use()
            s.box, found, index = &self.box.c, self.box.member, self.box.c.index
        else:
            self.pipe.use()
            s.sync, found, index = &self.pipe.c, self.pipe.member, self.pipe.c.index
            s.least = self.least
        if found is not member:
            raise errors.InvalidArgument("the objects are of different systems")
        return "room", index, self.least


cdef object fill_source(shm_source *s, Member member, object entry):
    """What makes it one of a kind, for a search of duplicates."""
    cdef SyncView view
    cdef Box box
    cdef BusReader reader
    s.fd = -1
    if isinstance(entry, SyncView):
        view = entry
        view.use()
        if view.member is not member:
            raise errors.InvalidArgument("the objects are of different systems")
        if view.c.config.kind not in (SHM_SYNC_EVENT, SHM_SYNC_MUTEX, SHM_SYNC_SEMAPHORE, SHM_SYNC_PIPE):
            raise TypeError(f"a {view.kind_name()} cannot be waited for among others")
        if view.c.config.kind == SHM_SYNC_PIPE and view.what != SHM_ENTRY_READER:
            raise TypeError("the writing end of a pipe cannot be waited for among others")
        s.kind, s.sync = SHM_SOURCE_SYNC, &view.c
        return view.c.index
    if isinstance(entry, Box):
        box = entry
        box.use()
        if box.member is not member:
            raise errors.InvalidArgument("the objects are of different systems")
        s.kind, s.box = SHM_SOURCE_BOX, &box.c
        return box.c.index
    if isinstance(entry, MatchSource):
        box = (<MatchSource>entry).box
        box.use()
        if box.member is not member:
            raise errors.InvalidArgument("the objects are of different systems")
        s.kind, s.box, s.filter = SHM_SOURCE_BOX, &box.c, &(<MatchSource>entry).f
        return (<MatchSource>entry).key
    if isinstance(entry, BusReader):
        reader = entry
        reader.bus.use()
        if reader.bus.member is not member:
            raise errors.InvalidArgument("the objects are of different systems")
        s.kind, s.bus, s.subscription = SHM_SOURCE_BUS, &reader.bus.c, &reader.c
        return entry
    if isinstance(entry, RoomSource):
        return (<RoomSource>entry).fill(s, member)
    if isinstance(entry, DueSource):
        s.kind, s.due_ns = SHM_SOURCE_DUE, (<DueSource>entry).due_ns
        return entry
    process = getattr(entry, "_wait_source", None)
    if process is not None:
        s.member, s.fd = process()
        s.kind = SHM_SOURCE_MEMBER
        return "process", s.member
    if isinstance(entry, int) and not isinstance(entry, bool):
        number = entry
    elif hasattr(entry, "fileno"):
        number = entry.fileno()
    else:
        raise TypeError(f"a {type(entry).__name__} cannot be waited for")
    if not 0 <= number < 1 << 30:
        raise errors.InvalidArgument(f"descriptor {number} is none")
    s.kind, s.fd, s.events = SHM_SOURCE_FILE, number, POLLIN
    return "file", number


def source_key(entry, Member member not None):
    """What tells it from other sources of one wait; raises what a wait for it would."""
    cdef shm_source source
    memset(&source, 0, sizeof(source))
    return fill_source(&source, member, entry)


cdef object inner(object entry):
    """The open object that a wait is to hold."""
    if isinstance(entry, MatchSource):
        return (<MatchSource>entry).box
    if isinstance(entry, BusReader):
        return (<BusReader>entry).bus
    if isinstance(entry, RoomSource):
        return (<RoomSource>entry).target
    return entry


cdef Member member_of_sources(tuple entries, Member default):
    for outer in entries:
        entry = inner(outer)
        if isinstance(entry, SyncView):
            return (<SyncView>entry).member
        if isinstance(entry, Box):
            return (<Box>entry).member
        if isinstance(entry, BusView):
            return (<BusView>entry).member
    return default


cdef enum:
    FOR_ANY, FOR_ALL, FOR_LOOK

WAIT_ANY = FOR_ANY
WAIT_ALL = FOR_ALL
WAIT_LOOK = FOR_LOOK


def wait_many(entries, int mode, timeout, current):
    """Wait for what is listed. WAIT_ANY: (index, was it a mutex whose owner had died). WAIT_ALL: the indexes of such
    mutexes. WAIT_LOOK: the indexes of all that are there, and nothing is taken. None: not in time. `current` gives the member for a list of files and processes alone."""
    cdef tuple held = tuple(entries)
    cdef uint64_t deadline = deadline_of(timeout)
    cdef uint32_t count = len(held), i, which = 0
    cdef shm_source *sources
    cdef shm_thread *t
    cdef int status
    if count == 0:
        raise errors.InvalidArgument("a wait needs something to wait for, the list is empty")
    if count > SHM_WAITSET_MAX:
        raise errors.LimitExceeded(f"{count} objects in one wait, the limit is {SHM_WAITSET_MAX}")
    cdef Member member = member_of_sources(held, None)
    if member is None:
        member = current()
    member.check()
    sources = <shm_source *>malloc(count * sizeof(shm_source))
    if sources == NULL:
        raise MemoryError
    try:
        while True:
            memset(sources, 0, count * sizeof(shm_source))
            keys = set()
            for i in range(count):
                key = fill_source(&sources[i], member, held[i])
                if key in keys:
                    raise errors.InvalidArgument(f"entry {i} of the wait is there twice")
                keys.add(key)
            t = context(member)
            go_in_all(held)
            with nogil:
                if mode == FOR_ALL:
                    status = shm_waitset_all(t, sources, count, deadline)
                elif mode == FOR_LOOK:
                    status = shm_waitset_look(t, sources, count, deadline)
                else:
                    status = shm_waitset_any(t, sources, count, &which, deadline)
            if status == SHM_OK and mode != FOR_LOOK and gives_back(held, sources, mode, which, t):
                status = SHM_CLOSED
            come_out_all(held, t)
            if status == SHM_ABORTED:
                raise_abort(t)
            elif status != SHM_INTERRUPTED:
                break
            else:
                raise_interrupt()
        if status == SHM_OK:
            if mode == FOR_LOOK:
                return [i for i in range(count) if sources[i].there]
            if mode == FOR_ALL:
                return [i for i in range(count) if sources[i].abandoned]
            return which, bool(sources[which].abandoned)
    finally:
        free(sources)
    if status == SHM_TIMEOUT or status == SHM_EMPTY:
        return None
    refuse(status, "a wait for several")


cdef bint gives_back(tuple held, shm_source *sources, int mode, uint32_t which, shm_thread *t):
    """Was something that the wait has taken closed meanwhile? Then nothing is taken."""
    cdef Py_ssize_t i
    cdef bint closed = False
    for i in range(len(held)):
        if isinstance(held[i], SyncView) and (mode == FOR_ALL or i == which):
            closed |= not (<SyncView>held[i]).opened
    for i in range(len(held)):
        if closed and isinstance(held[i], SyncView) and (mode == FOR_ALL or i == which):
            shm_sync_give_back(t, &(<SyncView>held[i]).c, sources[i].abandoned)
    return closed


cdef int go_in_all(tuple held) except -1:
    cdef list entries = [inner(entry) for entry in held]
    for entry in entries:  # another thread may have closed one while Python code ran
        if ((isinstance(entry, SyncView) and not (<SyncView>entry).opened)
                or (isinstance(entry, Box) and not (<Box>entry).opened)
                or (isinstance(entry, BusView) and not (<BusView>entry).opened)):
            raise errors.Closed("an object of the wait is closed in this process")
    for entry in entries:
        if isinstance(entry, SyncView):
            (<SyncView>entry).go_in()
        elif isinstance(entry, Box):
            (<Box>entry).go_in()
        elif isinstance(entry, BusView):
            (<BusView>entry).go_in()
    return 0


cdef int come_out_all(tuple held, shm_thread *t) except -1:
    for outer in held:
        entry = inner(outer)
        if isinstance(entry, SyncView):
            (<SyncView>entry).come_out(t)
        elif isinstance(entry, Box):
            (<Box>entry).come_out(t)
        elif isinstance(entry, BusView):
            (<BusView>entry).come_out(t)
    return 0
