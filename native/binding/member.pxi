# A process's membership, and the contexts of its threads.

cdef uint64_t next_serial = 1
cdef set open_members = set()  # strong: the watching thread of one that was never left uses it still
cdef uint64_t rescued_total = 0


@cython.no_gc_clear  # see Box
cdef class Thread:
    """One Python thread's context in one member; its parking place goes back when the thread ends."""

    cdef shm_thread c
    cdef Member member
    cdef bint busy  # a signal handler runs inside a wait of this context: others must be used
    cdef object __weakref__

    def __dealloc__(self):
        self.drop()

    cdef drop(self):
        cdef Member member = self.member
        if last_context == &self.c:
            set_last(0, NULL)
        if self.c.at != NULL and member is not None and not shm_member_is_forked(&member.c):
            shm_thread_close(&self.c)
        elif self.c.scratch != NULL:
            free(self.c.scratch)
        memset(&self.c, 0, sizeof(self.c))
        self.member = None


cdef str name_in(const shm_member_record *record):
    """The name of a member, which need not end."""
    cdef char text[73]  # SHM_NAME_BYTES and a NUL
    memcpy(text, record.name, 72)
    text[72] = 0
    return text.decode("utf-8", "replace")


cdef int run_signal_handlers(shm_thread *c) noexcept nogil:
    """A wait was interrupted: let Python's handlers run; not 0 when one raised. The context counts as busy
    meanwhile, so that a handler which uses the system does not disturb the wait."""
    cdef int raised = 0
    with gil:
        raised = handle_signals(<uintptr_t>c)
    return raised


cdef int handle_signals(uintptr_t address) noexcept:
    cdef Thread mine = None
    for entry in current_contexts():
        if <uintptr_t>&(<Thread>entry).c == address:
            mine = entry
            break
    if mine is not None:
        mine.busy = True
    set_last(0, NULL)
    cdef int raised = 0
    cdef Member member = mine.member if mine is not None else None
    cdef uint64_t turn = 0, completed = 0
    wanted = None
    if member is not None:
        wanted, completed = member.leader_wants, member.completed
        turn = lend_lead(member)
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        pending_interrupts[threading.get_ident()] = error
        raised = 1
    if mine is not None:
        mine.busy = False
        if mine.member is not None:  # the handler may have left the system
            set_last(mine.member.serial, &mine.c)
    if turn and not take_lead_back(member, turn, wanted, completed):
        raised = 1
    if mine is not None and not raised and is_only_thread():
        shm_member_is_alone(&mine.c)
    return raised


cdef extern from *:
    """
    /* Is the calling thread the only one of the interpreter? */
    static int shm_is_only_thread(void) {
        PyThreadState *mine = PyThreadState_Get();
        return PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(mine)) == mine &&
               PyThreadState_Next(mine) == NULL;
    }
    """
    bint is_only_thread "shm_is_only_thread"()


cdef dict pending_interrupts = {}  # thread -> what its signal handler raised inside a wait


cdef void set_last(uint64_t serial, void *context) noexcept:
    global last_serial, last_context
    last_serial = serial
    last_context = context


cdef int raise_interrupt() except -1:
    """The wait ended as INTERRUPTED: raise what the handler raised."""
    error = pending_interrupts.pop(threading.get_ident(), None)
    if error is not None:
        raise error
    PyErr_CheckSignals()
    return 0


cdef list current_contexts():
    cdef PyObject *d = PyThreadState_GetDict()
    if d == NULL:
        return []
    entries = (<dict>d).get("shmipc contexts")
    if entries is None:
        entries = (<dict>d)["shmipc contexts"] = []
    return entries


cdef shm_thread *slow_context(Member member) except NULL:
    cdef Thread thread
    cdef int status
    cdef bint main
    cdef list entries
    member.check()
    entries = current_contexts()
    for entry in entries:
        thread = entry
        if thread.member is member and not thread.busy:
            set_last(member.serial, &thread.c)
            release_deferred(member, &thread.c)
            return &thread.c
    entries[:] = [entry for entry in entries if (<Thread>entry).member is not None]
    thread = Thread.__new__(Thread)
    member.threads.add(thread)
    main = threading.get_ident() == threading.main_thread().ident
    member.check()  # no Python code runs from here on
    status = shm_thread_open(&thread.c, &member.c)
    if status == SHM_NO_MEMORY:
        raise out_of_memory(member, 4096)
    if status:
        refuse(status, "a parking place for this thread")
    thread.member = member
    thread.c.shield = shield_of_thread()
    if main:
        thread.c.interrupted = run_signal_handlers
    if not [None for entry in entries if (<Thread>entry).member is member]:  # a signal handler's is not meant
        abort_may_mean(&thread.c, main)
    entries.append(thread)
    set_last(member.serial, &thread.c)
    release_deferred(member, &thread.c)
    return &thread.c


cdef inline shm_thread *context(Member member) except NULL:
    """The context of the calling thread; raises ForkedHandle or Closed."""
    if last_serial == member.serial and not member.c.closed and not shm_member_is_forked(&member.c):
        return <shm_thread *>last_context
    return slow_context(member)


cdef inline bint can_act(Member member):
    return member is not None and member.joined and not member.c.closed and not shm_member_is_forked(&member.c)


cdef int release_later(Member member, uint32_t lease) except -1:
    """An object that held a lease is gone. The thread may be ending, and can be given no context any more: without
    one at hand the watching thread releases it, for the others may all be waiting."""
    if not can_act(member):
        return 0  # it goes, or went, with the member; in a forked child it is the parent's
    if last_serial == member.serial:
        shm_lease_recycle(<shm_thread *>last_context, lease)
    elif member.keeper != NULL:
        shm_lease_later(&member.c, lease)
        shm_keeper_poke(member.keeper)
    else:
        member.deferred.append(lease)
    return 0


cdef int release_deferred(Member member, shm_thread *t) except -1:
    while member.deferred:
        gone = member.deferred.pop()
        if type(gone) is int:
            shm_lease_recycle(t, <uint32_t>gone)
        elif type(gone) is SyncFarewell:
            say_sync_farewell(<SyncFarewell>gone, t)
        else:
            say_farewell(<Farewell>gone, t)
    return 0


cdef shm_thread *give_way(Member member, uint64_t deadline, str what, message=None) except NULL:
    """A block is locked by one who was stopped there: look again a moment later. Waits as long as he is stopped, or
    until the deadline."""
    if shm_clock_ns() >= deadline:
        raise errors.Timeout(f"{what} could not be opened in time: a process that was stopped, or gets no core, is "
                             "in the midst of opening it", message=message)
    member.inside += 1
    with nogil:
        shm_clock_sleep(1000000)
    member.inside -= 1
    PyErr_CheckSignals()
    return context(member)


cdef int hold_block(Member member, uint32_t block, uint32_t *lease, str what, uint64_t deadline=SHM_FOREVER,
                    message=None) except -1:
    """One more lease on a block; `what` names it in an error, and `message` goes with a Timeout."""
    cdef int status = shm_block_hold(context(member), block, lease)
    while status == SHM_BUSY:
        status = shm_block_hold(give_way(member, deadline, what, message), block, lease)
    if status:
        refuse(status, what)
    return 0


@cython.final
cdef class Fork:
    """What a child needs that is about to be forked; its slot is made with the first lease."""

    cdef shm_fork c
    cdef bint prepared

    def __cinit__(self):
        self.c.life_fd = -1


cdef class Member:
    cdef shm_member c
    cdef shm_segment segment
    cdef shm_keeper *keeper
    cdef shm_timers *timers   # the thread that fires timers; NULL until the first
    cdef uint64_t serial
    cdef bint joined, leaving
    cdef readonly bint forked
    cdef object threads       # WeakSet of Thread
    cdef int inside           # threads in the core without the GIL: leaving waits for them
    cdef set leases           # indexes of the leases that arrays and views hold
    cdef dict moves           # lease in flight -> its birth, the moved array; see codec.pxi
    cdef set moved_blocks     # that leases of this process refer to whose arrays were moved
    cdef list deferred        # leases that nobody holds any more, see release_later, and readers that are gone
    cdef dict futures         # key_of(call) -> Future
    cdef uint32_t loop        # place of the thread that answers method calls, + 1; 0: none does
    cdef uint64_t leading     # the turn of the thread that waits for finished calls; 0: none does
    cdef uint64_t leads       # turns so far
    cdef unsigned long leader  # the thread that leads
    cdef bint asleep          # ... it is in the core
    cdef object leader_wants  # ... for this future, None: any
    cdef list aside           # finished calls that wait until a thread is less deep in completions
    cdef uint64_t completed   # futures, so far
    cdef uint64_t due         # when the first of the watched futures times out, or earlier
    cdef uint32_t submits     # counts; now and then finished calls are completed on the way
    cdef list followers       # locks of threads that wait for their future, or for the lead
    cdef object drainer       # thread that completes futures which somebody awaits
    cdef object drainer_wake  # Event, None before there is a drainer
    cdef int watched          # futures that somebody awaits, or that have callbacks
    cdef dict forks           # of each thread that is about to fork: what its child needs, a Fork
    cdef set left             # indexes of the leases whose arrays outlived the membership
    cdef Fork left_fork       # the slot that has them
    cdef dict enabled         # mailbox index -> the PortBox of an enabled port of this process
    cdef dict hints           # member id -> what else may explain its end, "": nothing
    cdef uint64_t rescued_before  # of the system, when this process joined
    cdef object __weakref__

    def __cinit__(self):
        global next_serial
        self.serial = next_serial
        next_serial += 1
        self.segment.fd = -1
        self.c.life_fd = -1
        self.forks = {}
        self.threads = weakref.WeakSet()
        self.leases = set()
        self.moved_blocks = set()
        self.left = set()
        self.deferred = []
        self.moves = {}
        self.futures = {}
        self.enabled = {}
        self.hints = {}
        self.followers = []
        self.aside = []
        self.due = SHM_FOREVER

    def __dealloc__(self):
        shm_segment_detach(&self.segment)

    @staticmethod
    def create(int fd, str life_path, *, uint32_t max_members, uint64_t memory_limit, str name, bint root):
        cdef Member self = Member.__new__(Member)
        cdef shm_config config
        config.uid = os.getuid()
        config.max_members = max_members
        config.memory_limit = memory_limit
        config.first_count = <uint64_t>int.from_bytes(os.urandom(4), "little") << 11
        cdef int status = shm_segment_format(&self.segment, fd, &config)
        if status:
            os.close(fd)  # it is the segment's, also when there is none
        if status == SHM_NO_MEMORY:
            raise errors.OutOfMemory("/dev/shm has no room for a new system; make it larger", needed=1 << 20)
        if status:
            refuse(status, "a new system")
        self.enter(life_path, 0, SHM_KIND_ROOT if root else SHM_KIND_ATTACHED, name, ())
        if root:
            self.segment.header.root = shm_member_id_self(&self.c)
        return self

    @staticmethod
    def join(int fd, str life_path, *, uint64_t id=0, uint32_t kind=SHM_KIND_ATTACHED, str name="", lifelines=()):
        cdef Member self = Member.__new__(Member)
        cdef int status = shm_segment_attach(&self.segment, fd)
        if status:
            os.close(fd)
            refuse(status, "the system's segment")
        self.enter(life_path, id, kind, name, lifelines)
        return self

    cdef enter(self, str life_path, uint64_t id, uint32_t kind, str name, lifelines):
        cdef bytes text = name.encode(), path = life_path.encode()
        cdef int status = shm_member_join(&self.c, &self.segment, id, kind, text, path)
        if status == SHM_LIMIT:
            raise errors.LimitExceeded(f"the system has {self.segment.max_members} members already, its limit")
        if status:
            refuse(status, "joining the system")
        self.joined = True
        open_members.add(self)
        self.rescued_before = self.segment.header.rescued
        shm_member_attach_transport(&self.c)
        oom.kills.begin()
        try:
            context(self)  # this thread's, without which nobody could leave again
        except BaseException:
            self.joined = False
            open_members.discard(self)
            shm_member_abandon(&self.c)
            raise
        cdef int fds[8]
        cdef uint32_t count = 0
        for fd in lifelines:
            fds[count] = fd
            count += 1
        self.keeper = shm_keeper_start(&self.c, fds, count, &status)
        if self.keeper == NULL:
            self.leave()
            if status == SHM_NO_MEMORY:
                refuse(status, "the watching thread of this process")
            raise errors.ShmipcError("the watching thread of this process could not be started")
        open_stacks()
        shm_keeper_open_door(self.keeper, shm_stacks_tell)

    cdef int check(self) except -1:
        if self.forked or shm_member_is_forked(&self.c):
            raise errors.ForkedHandle("this handle belongs to the process that forked this one; open the system anew")
        if not self.joined or self.c.closed:
            raise errors.Closed("the system is closed in this process")
        return 0

    @property
    def id(self):
        return shm_member_id_self(&self.c)

    @property
    def slot(self):
        return self.c.slot

    @property
    def identity(self):
        self.check()
        return self.c.record.identity

    @property
    def closed(self):
        return not self.joined or bool(self.c.closed)

    def prepare(self, uint32_t kind, str name):
        self.check()
        cdef bytes text = name.encode()
        cdef int64_t id = shm_member_prepare(&self.segment, &self.c, kind, text)
        if id == SHM_LIMIT:
            raise errors.LimitExceeded(f"the system has {self.segment.max_members} members already, its limit")
        if id == SHM_NO_MEMORY:
            raise out_of_memory(self, 4096)
        return id

    def launched(self, uint64_t id, int pid):
        self.check()
        shm_member_launched(&self.segment, id, pid)

    def forget(self, uint64_t id):
        self.check()
        shm_member_forget(&self.segment, id)
        shm_keeper_poke(self.keeper)

    def make_box(self, uint32_t kind, capacity, slot_bytes, *, message_bytes=None, uint64_t owner_id=0, cls=None):
        self.check()
        if not isinstance(capacity, int) or isinstance(capacity, bool):
            raise TypeError(f"slots must be an int, not {type(capacity).__name__}")
        if not isinstance(slot_bytes, int) or isinstance(slot_bytes, bool):
            raise TypeError(f"slot_bytes must be an int, not {type(slot_bytes).__name__}")
        if not 1 <= capacity <= 1 << 20:
            raise errors.LimitExceeded(f"slots is {capacity}; a mailbox has 1 to {1 << 20}")
        if not 8 <= slot_bytes <= 65536:
            raise errors.LimitExceeded(f"slot_bytes is {slot_bytes}; it must be 8 to 65536")
        cdef uint32_t length = message_bytes or 0
        cdef Box box = (cls or Box).__new__(cls or Box)
        cdef shm_thread *t = context(self)
        cdef int status = shm_box_make(t, &box.c, kind, capacity, slot_bytes, owner_id)
        if status == SHM_NO_MEMORY:
            raise out_of_memory(self, (<uint64_t>capacity) * (64 + slot_bytes) * 2)
        if status:
            refuse(status, "a new mailbox")
        box.open_in(self)
        if length:
            shm_box_fix_length(&box.c, length)
        if kind == SHM_BOX_PERSISTENT:
            status = shm_box_persist(t, &box.c)
            if status:
                refuse(status, "a persistent mailbox")
        return box

    def open_box(self, uint32_t index, uint64_t life, *, cls=None, timeout=None):
        cdef Box box = (cls or Box).__new__(cls or Box)
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status = shm_box_open(context(self), &box.c, index, life)
        while status == SHM_BUSY:
            status = shm_box_open(give_way(self, deadline, f"mailbox {index}"), &box.c, index, life)
        if status:
            refuse(status, f"mailbox {index}")
        box.open_in(self)
        return box

    def make_bus(self, uint32_t frames, uint32_t readers, uint64_t frame_bytes, uint32_t consume_after,
                 uint64_t max_age_ns, cls=None):
        cdef BusView bus = (cls or BusView).__new__(cls or BusView)
        cdef shm_bus_config config
        config.frames, config.readers, config.consume_after = frames, readers, consume_after
        config.frame_bytes, config.max_age_ns = frame_bytes, max_age_ns
        cdef int status = shm_bus_make(context(self), &bus.c, &config)
        if status == SHM_NO_MEMORY:
            raise out_of_memory(self, <uint64_t>64 * (frames + readers) + 4096)
        if status:
            refuse(status, "a new bus")
        bus.open_in(self)
        return bus

    def open_bus(self, uint32_t index, uint64_t life, cls=None, timeout=None):
        cdef BusView bus = (cls or BusView).__new__(cls or BusView)
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status = shm_bus_open(context(self), &bus.c, index, life)
        while status == SHM_BUSY:
            status = shm_bus_open(give_way(self, deadline, f"bus {index}"), &bus.c, index, life)
        if status:
            refuse(status, f"bus {index}")
        bus.open_in(self)
        return bus

    def own_box(self):
        self.check()
        cdef uint32_t index = self.c.record.box
        if index == 0:
            return -1, 0
        if not shm_index_ok(&self.segment, SHM_TABLE_BOXES, index - 1):
            raise errors.Corrupted(f"mailbox {index - 1} of this process is none")
        return index - 1, shm_word_count(shm_box_at(&self.segment, index - 1).word)

    def set_own_box(self, Box box not None):
        self.check()
        set_box_of(self, box)

    def give_box(self, uint64_t id, Box box not None):
        """Tell a prepared slot that this is its mailbox."""
        self.check()
        if not shm_index_ok(&self.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
            raise errors.Corrupted(f"member slot {id & 0xFFFF} is none")
        shm_member_at(&self.segment, id & 0xFFFF).box = box.c.index + 1

    def box_of(self, uint64_t id):
        self.check()
        if not shm_member_lives(&self.segment, id):
            raise peer_dead(self, id, "the actor")
        cdef uint32_t index = shm_member_at(&self.segment, id & 0xFFFF).box
        if index == 0 or not shm_index_ok(&self.segment, SHM_TABLE_BOXES, index - 1):
            raise errors.NotFound("the process has no mailbox")
        life = shm_word_count(shm_box_at(&self.segment, index - 1).word)
        if not shm_member_lives(&self.segment, id):  # else it may be the mailbox of who has the slot now
            raise peer_dead(self, id, "the actor")
        return index - 1, life

    def serve_name(self, str name, uint32_t kind, uint32_t object, uint64_t life):
        cdef shm_thread *t = context(self)
        cdef bytes encoded = name.encode()
        cdef const char *text = encoded
        cdef shm_named named
        named.kind, named.object, named.life = kind, object, life
        cdef int status
        self.inside += 1
        with nogil:
            status = shm_name_serve(t, text, &named)
        self.inside -= 1
        if status:
            refuse(status, f"name {name!r}")

    def lookup_name(self, str name):
        cdef shm_thread *t = context(self)
        cdef bytes text = name.encode()
        cdef shm_named named
        cdef int status = shm_name_lookup(t, text, &named)
        if status:
            refuse(status, f"name {name!r}")
        return named.kind, named.object, named.life

    def withdraw_name(self, str name):
        cdef bytes text = name.encode()
        cdef int status = shm_name_withdraw(context(self), text)
        if status == SHM_REFUSED:
            raise errors.AccessDenied(f"name {name!r} is another actor's, and was given by another process")
        if status:
            refuse(status, f"name {name!r}")

    def name_of(self, uint32_t kind, uint32_t index, uint64_t life):
        cdef char text[80]
        if shm_name_of(context(self), kind, index, life, text):
            return text.decode("utf-8", "replace")
        return None

    def cancel_timer(self, uint64_t number):
        """True when no tick will come any more; one that has fired and was not received is dropped."""
        return bool(shm_notice_disarm(context(self), number))

    def generate_tag(self):
        """A tag that no process of the system has made before."""
        return shm_tag_make(context(self))

    def set_next_tag(self, uint64_t number):
        """For tests: where the system's count of generated tags stands; this process takes its next from there."""
        if not KILL_POINTS:
            raise errors.NotSupported("for the test build only")
        self.check()
        set_next_tag(self.segment.header, number)
        self.c.tag_next = self.c.tag_end = 0

    def lives(self, uint64_t id):
        self.check()
        return bool(shm_member_lives(&self.segment, id))

    def recall(self, uint64_t receiver_id):
        cdef shm_message m
        cdef int status
        self.check()
        status = shm_offer_recall(context(self), receiver_id, &m)
        return pulled(self, status, receiver_id, &m)

    def offered(self, uint64_t sender_id, uint64_t receiver_id):
        self.check()
        cdef int64_t count = shm_offer_count(context(self), sender_id, receiver_id)
        if count < 0:
            refuse(<int>count, "a queue of offers")
        return count

    def offers(self):
        cdef uint64_t senders[1024]
        self.check()
        cdef uint32_t i, count = shm_offer_senders(context(self), senders, 1024)
        return [senders[i] for i in range(count)]

    def wait_end(self, uint64_t id, timeout=None):
        cdef uint64_t deadline = deadline_of(timeout), pause = 200000
        cdef shm_member_record *record
        if not shm_index_ok(&self.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
            return True
        record = shm_member_at(&self.segment, id & 0xFFFF)
        while True:
            self.check()
            if shm_word_count(record.word) != id >> 16 or shm_word_state(record.word) == SHM_MEMBER_FREE:
                return True
            if shm_clock_ns() >= deadline:
                return False
            with nogil:
                shm_clock_sleep(pause)
            PyErr_CheckSignals()
            pause = pause * 2 if pause < 10000000 else pause

    def cause(self, uint64_t id):
        self.check()
        return cause_of(self, id)

    def hint(self, uint64_t id):
        self.check()
        reason, _, signal = cause_of(self, id)
        return hint_of(self, id, reason, signal)

    def say_status(self, uint64_t id, str reason, uint32_t wait_status):
        self.check()
        shm_member_say_status(&self.segment, id, REASONS.index(reason), wait_status)

    def say_reason(self, str reason, uint32_t code=0):
        self.check()
        shm_member_say_reason(&self.segment, shm_member_id_self(&self.c), REASONS.index(reason), (code & 0xFF) << 8)

    def say_killed(self, uint64_t id, int signal=9):
        """Record that this library is about to kill the process."""
        self.check()
        shm_member_say_reason(&self.segment, id, REASONS.index("killed"), signal)

    def who(self, uint64_t id):
        self.check()
        cdef shm_member_record *r
        if not shm_index_ok(&self.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
            return 0, 0
        r = shm_member_at(&self.segment, id & 0xFFFF)
        found = r.pid, r.identity
        if shm_word_count(r.word) != id >> 16 or shm_word_state(r.word) == SHM_MEMBER_FREE:
            return 0, 0
        return found

    def is_elsewhere(self, uint64_t id):
        self.check()
        if not shm_index_ok(&self.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
            return False
        return bool(shm_member_at(&self.segment, id & 0xFFFF).pid_namespace != self.c.record.pid_namespace)

    def members(self):
        cdef shm_thread *t
        cdef uint32_t slot
        cdef shm_member_record *r
        cdef uint64_t word
        cdef uint32_t index
        cdef shm_box box
        names = {SHM_KIND_ROOT: "root", SHM_KIND_WORKER: "worker", SHM_KIND_ATTACHED: "attached", SHM_KIND_FORK: "fork"}
        states = {SHM_MEMBER_JOINING: "joining", SHM_MEMBER_LIVE: "live", SHM_MEMBER_DYING: "dying"}
        found = []
        self.check()
        for slot in range(1, shm_pool_ready(&self.segment, SHM_TABLE_MEMBERS)):
            t = context(self)
            r = shm_member_at(&self.segment, slot)
            word = r.word
            if shm_word_state(word) == SHM_MEMBER_FREE:
                continue
            depth = None
            index = r.box
            if index and shm_index_ok(&self.segment, SHM_TABLE_BOXES, index - 1) and shm_box_open(
                    t, &box, index - 1, shm_word_count(shm_box_at(&self.segment, index - 1).word)) == 0:
                depth = shm_ring_count(&box)
                shm_box_release(t, &box)
            found.append({
                "id": shm_member_id_of(word, slot), "slot": slot, "identity": r.identity, "pid": r.pid, "kind": r.kind,
                "kind_name": names.get(r.kind, "?"), "name": name_in(r),
                "state": states.get(shm_word_state(word), "?"), "creator": r.creator, "box": <int64_t>index - 1,
                "depth": depth, "failed_casts": r.failed_casts, "joined_ns": r.joined_ns,
            })
        return found

    def statistics(self):
        release_deferred(self, context(self))
        shm_lease_retry(context(self))
        cdef shm_arena_counts s
        cdef shm_header *h = self.segment.header
        cdef uint32_t slot, members = 0
        shm_arena_statistics(&self.segment, &s)
        for slot in range(1, shm_pool_ready(&self.segment, SHM_TABLE_MEMBERS)):
            members += shm_word_state(shm_member_at(&self.segment, slot).word) != SHM_MEMBER_FREE
        boxes = 0
        for slot in range(shm_pool_ready(&self.segment, SHM_TABLE_BOXES)):
            boxes += (shm_word_state(shm_box_at(&self.segment, slot).word) != 0
                      and shm_box_has_ring(shm_box_at(&self.segment, slot)))
        return {
            "members": members, "mailboxes": boxes, "undelivered": shm_box_undelivered(&self.segment), "rescued": h.rescued,
            "reaped": h.reaped, "reserved_bytes": s.reserved_bytes, "used_bytes": s.used_bytes,
            "limit_bytes": s.limit_bytes, "blocks": s.blocks, "leases": s.leases,
        }

    def allocate(self, uint64_t nbytes, *, bint shared=False):
        cdef uint32_t lease
        cdef Lease held
        release_deferred(self, context(self))
        take_block(self, nbytes, &lease)
        held = new_lease(self, lease, nbytes, False)
        held.shared = shared
        return held

    def poke_keeper(self):
        self.check()
        shm_keeper_poke(self.keeper)

    def reap(self):
        cdef shm_thread *t = context(self)
        cdef uint32_t reaped
        self.inside += 1
        with nogil:
            reaped = shm_reap_all(t)
            shm_lent_look(t)
        self.inside -= 1
        return reaped

    def fail_futures(self):
        """Calls in flight end as Closed."""
        fail_futures(self, context(self))

    def note(self, what):
        """Say what this thread does, for those who look; None: nothing."""
        cdef bytes text
        cdef shm_thread *t
        if not can_act(self):
            return
        if what is None:
            shm_serving_end(context(self))
        else:
            text = what.encode()
            t = context(self)
            shm_serving_begin(t, serving(t), text, len(text))  # of the call that it serves, if it does

    def whereabouts(self, uint64_t id):
        self.check()
        return whereabouts(self, id)

    def has_loop(self):
        """This thread is the one that answers method calls, from now on."""
        cdef uint32_t place = context(self).place
        set_loop(self.c.record, place + 1)
        self.loop = place + 1

    def call_loop(self):
        """Have the thread with the loop look at what was put aside for it."""
        cdef Thread thread
        cdef shm_thread *t = context(self)
        for thread in list(self.threads):
            if thread.c.at != NULL and &thread.c != t and thread.c.place + 1 == self.loop:
                shm_call_back(t, &thread.c)

    @property
    def thread(self):
        return shm_thread_id_self(context(self))

    def abort(self, uint64_t id, uint64_t thread=0):
        cdef int status
        if not shm_index_ok(&self.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
            raise errors.NotFound(f"member slot {id & 0xFFFF} is none")
        status = shm_abort(context(self), id, thread)
        if status == SHM_PEER_DEAD:
            raise peer_dead(self, id, "the actor")
        if status:
            raise errors.NotFound("the process has no such thread")

    def hear(self):
        """This thread takes calls that others serve: it hears of those that are closed, and is the one to be aborted."""
        cdef shm_thread *t = context(self)
        t.told_seen -= 1  # look once
        t.hears_all = True
        shm_abort_means_me(t)

    def heard(self):
        """(was this thread aborted, was a call closed that it took), since this was asked last."""
        cdef int taken = shm_abort_take(context(self))
        return bool(taken & SHM_ABORT_THREAD), bool(taken & SHM_ABORT_CALL)

    def serve_end(self):
        """This thread serves nothing."""
        if can_act(self):
            shm_serve_end(context(self))

    def count_failed_cast(self):
        self.check()
        self.c.record.failed_casts += 1

    def trim(self):
        cdef shm_thread *t = context(self)
        release_deferred(self, t)
        self.inside += 1
        with nogil:
            shm_lease_retry(t)
            shm_warm_drop(t)
            shm_arena_trim(t)
        self.inside -= 1

    def others_alive(self):
        cdef uint32_t slot
        if self.segment.header == NULL:
            return False
        for slot in range(1, shm_pool_ready(&self.segment, SHM_TABLE_MEMBERS)):
            if slot != self.c.slot and shm_word_state(shm_member_at(&self.segment, slot).word) == SHM_MEMBER_LIVE:
                return True
        return False

    def is_waiting_here(self):
        """Does this thread run a signal handler inside a wait of this member? Then it cannot leave."""
        return any([(<Thread>entry).busy and (<Thread>entry).member is self for entry in current_contexts()])

    def leave(self, bint final=False):
        """Leave the system; the waits of other threads end as Closed. Arrays of this process that still live keep
        their memory; with `final` (the process ends) they do not. Not from a signal handler inside a wait."""
        if not self.joined or self.leaving or self.forked:
            return
        self.leaving = True
        set_closed(&self.c, 0)  # the root may have ended: one last time
        try:
            drain(self)
        except errors.Closed:
            pass  # it has ended meanwhile
        finally:
            self.leave_now(final)

    cdef leave_now(self, bint final):
        cdef shm_thread *t = NULL
        while t == NULL:
            try:
                t = context(self)
            except errors.Closed:
                set_closed(&self.c, 0)  # the root's end is told once
        # Nobody gets a context from here on, and who is in the core comes out: then this thread acts alone.
        set_closed(&self.c, 1)
        if self.drainer_wake is not None:
            self.drainer_wake.set()
        while self.inside > 0:
            with nogil:
                shm_wake_own(t)
                shm_clock_sleep(1000000)
        try:
            fail_futures(self, t)
        finally:
            self.tear_down(t, final)

    cdef leave_arrays(self, shm_thread *t):
        """Arrays of this process that still live keep their memory: as long as any of them does, when a root will see
        to it that it comes back, or else as long as the system."""
        cdef Fork fork = Fork.__new__(Fork)
        cdef list held = list(self.leases)  # other threads may drop some meanwhile
        cdef uint32_t *leases = <uint32_t *>malloc(len(held) * sizeof(uint32_t))
        cdef uint32_t lease, count = 0
        cdef bint kept = False
        cdef uint64_t root = self.segment.header.root
        if leases != NULL:
            for lease in held:
                if not shm_lease_is_lent(&self.c, lease):  # a forked child has them too
                    leases[count] = lease
                    count += 1
            if count and root and root != shm_member_id_self(&self.c) and shm_member_lives(&self.segment, root):
                kept = shm_arrays_remain(&self.c, t, leases, count, &fork.c) == 0
        if kept:
            self.left = {leases[i] for i in range(count)}
            self.left_fork = fork
        for lease in held:
            if not kept or lease not in self.left:
                shm_lease_give(t, lease, SHM_IN_FLIGHT)
        free(leases)

    cdef array_gone(self, uint32_t lease):
        """Of those that outlived the membership; with the last the watching thread of another process gets them back."""
        self.left.discard(lease)
        if not self.left and self.left_fork is not None:
            shm_fork_end(&self.left_fork.c)
            self.left_fork = None

    cdef tear_down(self, shm_thread *t, bint final):
        cdef Thread thread
        global rescued_total
        if self.timers != NULL:
            with nogil:
                shm_timers_stop(self.timers)
            self.timers = NULL
        if self.keeper != NULL:
            with nogil:
                shm_keeper_stop(self.keeper)
            self.keeper = NULL
            wait_for_visitors()
        if not final and self.leases:
            self.leave_arrays(t)
        self.leases = set()
        self.deferred = []
        self.enabled = {}
        with nogil:
            shm_leave(t)
        rescued_total += self.segment.header.rescued - self.rescued_before
        for entry in list(self.threads):
            thread = entry
            if thread.c.scratch != NULL:
                free(thread.c.scratch)
            memset(&thread.c, 0, sizeof(thread.c))
            thread.member = None
        self.threads = weakref.WeakSet()
        set_last(0, NULL)
        shm_member_dispose(&self.c)
        set_closed(&self.c, 1)
        self.joined = False
        open_members.discard(self)
        close_stacks()
        if shm_segment_has_fd(&self.segment):  # the mapping goes with the last view; pages are not reserved any more
            os.close(self.segment.fd)
        self.segment.fd = -1

    # -- forks --------------------------------------------------------------------------------------------------

    cdef before_fork(self):
        cdef Fork fork = Fork.__new__(Fork)
        if self.closed or self.forked:
            return
        if self.leases:
            try:
                context(self)  # what is deferred goes first: the child needs no copy
            except errors.Closed:
                return
            except errors.ShmipcError:
                pass  # no parking place is free
        # From here on new_lease adds what other threads make: other hooks run before the fork does, and may wait.
        self.forks[threading.get_ident()] = fork
        for lease in self.leases:
            self.inherit(fork, lease)

    cdef inherit(self, Fork fork, uint32_t lease):
        """The child that is about to be forked has the lease too."""
        cdef shm_thread *t = <shm_thread *>last_context if last_serial == self.serial else NULL
        if not fork.prepared:
            fork.prepared = True
            shm_fork_prepare(&self.c, t, &fork.c)
        shm_fork_add(&self.c, t, lease, &fork.c)

    cdef after_fork_parent(self):
        cdef Fork fork = self.forks.pop(threading.get_ident(), None)
        if fork is not None:
            shm_fork_end(&fork.c)

    cdef after_fork_child(self):
        if self.forked or not self.joined:
            return
        self.forked = True
        self.futures = {}
        cdef Fork fork = self.forks.pop(threading.get_ident(), None)
        if fork is not None and fork.c.id:
            shm_fork_child(&self.segment, fork.c.id)
        for other in self.forks.values():  # of children that other threads were about to fork
            shm_fork_end(&(<Fork>other).c)
        self.forks = {}
        self.timers = NULL  # the parent's
        if self.keeper != NULL:
            shm_keeper_forked(self.keeper)
            self.keeper = NULL
        shm_member_forked(&self.c)


cdef extern from *:
    """
    static shm_call_id shm_serving(struct shm_thread *t) { return atomic_load(&t->at->serving); }
    static void shm_set_next_tag(struct shm_header *h, uint64_t number) { atomic_store(&h->next_tag, number); }
    static void shm_set_closed(struct shm_member *m, int closed) { atomic_store(&m->closed, closed); }
    static void shm_set_box(struct shm_member_record *r, uint32_t box) { atomic_store(&r->box, box); }
    static void shm_set_loop(struct shm_member_record *r, uint32_t loop) { atomic_store(&r->loop, loop); }
    """
    uint64_t serving "shm_serving"(shm_thread *t) nogil
    void set_next_tag "shm_set_next_tag"(shm_header *h, uint64_t number) nogil
    void set_closed "shm_set_closed"(shm_member *m, int closed) nogil
    void shm_set_box(shm_member_record *r, uint32_t box) nogil
    void set_loop "shm_set_loop"(shm_member_record *r, uint32_t loop) nogil


cdef set_box_of(Member member, Box box):
    shm_set_box(member.c.record, box.c.index + 1)


def _before_fork():
    for member in list(open_members):
        (<Member>member).before_fork()


def _after_fork_parent():
    for member in list(open_members):
        (<Member>member).after_fork_parent()


def _after_fork_child():
    set_last(0, NULL)
    shm_stacks_forked()
    for member in list(open_members):
        (<Member>member).after_fork_child()
    open_members.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_parent, after_in_child=_after_fork_child)


def take_rescued():
    global rescued_total
    cdef uint64_t total = rescued_total
    rescued_total = 0
    return total


cdef int start_timers(Member member) except -1:
    cdef int status = 0
    if member.timers == NULL:
        member.timers = shm_timers_start(&member.c, &status)
        if member.timers == NULL:
            refuse(status, "the thread that fires timers")
    return 0


cdef tuple own_index(Member member):
    """(index, count) of this process's own mailbox."""
    cdef uint32_t index = member.c.record.box
    if index == 0 or not shm_index_ok(&member.segment, SHM_TABLE_BOXES, index - 1):
        return 0, 0
    return index - 1, shm_word_count(shm_box_at(&member.segment, index - 1).word)
