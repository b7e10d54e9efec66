# Mailboxes and messages.

cdef class Message:
    cdef int number  # of its kind
    cdef readonly object tag
    cdef readonly uint64_t sender_id
    cdef readonly object body
    cdef readonly int flags
    cdef uint64_t call
    cdef Member member

    @property
    def kind(self):
        return kinds[self.number]

    @property
    def is_call(self):
        return self.call != 0

    @property
    def sender(self):
        return make_ref(self.member, self.sender_id)

    def is_open(self):
        self.member.check()
        return self.call != 0 and bool(shm_call_is_open(&self.member.segment, self.call, self.member.c.slot))

    def reply(self, value):
        if self.call == 0:
            raise errors.InvalidArgument(f"a message of kind {kinds[self.number]!r} asks for no reply")
        answer(self.member, self.call, self.sender_id, value, -1)

    def reply_error(self, error):
        if self.call == 0:
            raise errors.InvalidArgument(f"a message of kind {kinds[self.number]!r} asks for no reply")
        if not isinstance(error, BaseException):
            raise TypeError(f"reply_error needs an exception, not {type(error).__name__}")
        answer(self.member, self.call, self.sender_id, pack_error(error), ERROR)

    def __repr__(self):
        return f"<Message {self.kind.name} tag={self.tag} sender={self.sender_id:#x} body={self.body!r:.60}>"


cdef int answer(Member member, uint64_t call, uint64_t sender, object value, int format) except -1:
    cdef shm_thread *t = context(member)
    cdef shm_message m
    cdef Encoding out = Encoding.__new__(Encoding)
    encode(out, member, t, value, &m, SHM_CELL_INLINE)
    if format >= 0:
        m.format = format
    cdef int status = shm_call_reply(t, call, m.body, m.len_bytes, m.format, m.lease)
    if status == 0:
        return 0
    not_sent(t, &m)
    if not shm_member_lives(&member.segment, sender):
        raise peer_dead(member, sender, "the caller")
    if status == SHM_REFUSED:
        raise errors.Aborted("the call is not open any more: answered before, timed out, or withdrawn")
    refuse(status, "a reply")


cdef object decode_message(Member member, shm_thread *t, shm_message *m):
    """The body of a received message."""
    if m.notice:
        return exit_notice(member, m.sender, m.notice, cause_tuple(shm_member_cause(&member.segment, m.sender)),
                           undelivered_of(member, m.sender))
    return decode(member, t, m.format, m.body, m.len_bytes, m.lease)


cdef uint64_t undelivered_of(Member member, uint64_t id):
    cdef uint64_t field = shm_member_at(&member.segment, id & 0xFFFF).undelivered
    return field & 0xFFFFFFFF if field >> 32 == (id >> 16 & 0xFFFFFFFF) else 0


cdef Message new_message(Member member, shm_thread *t, shm_message *m):
    """The message; None for a request that could not be unpickled: its caller, who can act, is told why."""
    cdef Message message = Message.__new__(Message)
    message.member = member
    message.number = m.header >> 61
    if message.number >= len(kinds):
        raise errors.Corrupted(f"a message of kind {message.number}")
    message.tag = m.header & SHM_TAG_MASK or None
    message.sender_id = m.sender
    message.flags = m.flags
    message.call = m.call
    try:
        message.body = decode_message(member, t, m)
    except Exception as error:
        if not message.call:
            raise
        answer(member, message.call, message.sender_id, pack_error(error), ERROR)
        return None
    return message


def take_any(boxes, timeout=None):
    cdef Box box
    cdef shm_box *opened[8]
    cdef shm_message m
    cdef uint32_t which = 0, count = 0
    cdef uint64_t deadline = deadline_of(timeout)
    cdef int status
    cdef shm_thread *t = NULL
    cdef Message message
    if not 1 <= len(boxes) <= 8:
        raise errors.InvalidArgument(f"{len(boxes)} mailboxes; take_any waits for 1 to 8")
    cdef Member member = (<Box>boxes[0]).member
    for entry in boxes:
        box = entry
        if box.member is not member:
            raise errors.InvalidArgument("the mailboxes are of different systems")
        t = box.use()
        opened[count] = &box.c
        count += 1
    while True:
        status = shm_box_receive_any(t, opened, count, &m, &which, 0)
        if (status == SHM_EMPTY or status == SHM_BUSY) and deadline != 0:
            with nogil:
                status = shm_box_receive_any(t, opened, count, &m, &which, deadline)
        if status == SHM_INTERRUPTED:
            raise_interrupt()
        elif status == SHM_EMPTY or status == SHM_BUSY:
            raise errors.MailboxEmpty("no message is there")
        elif status == SHM_TIMEOUT:
            raise errors.Timeout(f"no message came within {timeout} s")
        elif status:
            refuse(status, "a receive")
        elif m.call and shm_call_serve(t, m.call) != SHM_OK:
            if m.lease:
                shm_lease_recycle(t, m.lease - 1)
        else:
            message = new_message(member, t, &m)
            if message is not None:
                return message
        t = context(member)


cdef class Box:
    cdef shm_box c
    cdef readonly Member member
    cdef bint opened
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("use Mailbox.create or Mailbox.open")

    cdef open_in(self, Member member):
        self.member = member
        self.opened = True

    def __dealloc__(self):
        cdef Member member = self.member
        if self.opened and member is not None and member.joined and not member.c.closed and not shm_member_is_forked(&member.c):
            try:
                shm_box_release(context(member), &self.c)
            except BaseException:
                pass  # the process's end releases it

    cdef shm_thread *use(self) except NULL:
        cdef shm_thread *t
        if not self.opened:
            if self.member is not None:
                self.member.check()
            raise errors.Closed("the mailbox is closed in this process")
        return context(self.member)

    cdef uint32_t kind(self):
        return shm_box_at(&self.member.segment, self.c.index).kind

    @property
    def index(self):
        return self.c.index

    @property
    def life(self):
        return self.c.count

    @property
    def owner_id(self):
        return self.c.owner

    @property
    def capacity(self):
        return self.c.capacity

    @property
    def slot_bytes(self):
        return self.c.body_bytes

    @property
    def closed(self):
        return not self.opened or self.member.closed

    # -- sending ------------------------------------------------------------------------------------------------

    cdef int deliver(self, shm_thread *t, shm_message *m, object timeout, object body) except -1:
        """Send an encoded message; whatever refuses it is raised."""
        cdef int status = shm_box_try_send(t, &self.c, m)
        cdef uint64_t deadline
        if status == SHM_OK:
            return 0
        if status == SHM_FULL or status == SHM_CLOSED:
            try:
                deadline = deadline_of(timeout)
            except BaseException:
                not_sent(t, m)
                raise
            while True:
                with nogil:
                    status = shm_box_send(t, &self.c, m, deadline)
                if status != SHM_INTERRUPTED:
                    break
                try:
                    raise_interrupt()
                except BaseException:
                    not_sent(t, m)
                    raise
        if status == SHM_OK:
            return 0
        not_sent(t, m)
        if status == SHM_FULL:
            raise errors.MailboxFull(f"the mailbox holds {self.c.capacity} undelivered messages, its capacity", message=body)
        if status == SHM_TIMEOUT:
            raise errors.Timeout(f"no room came free within {timeout} s: the mailbox holds {shm_ring_count(&self.c)} "
                                 f"of {self.c.capacity} messages", message=body)
        if status == SHM_PEER_DEAD:
            raise peer_dead(self.member, self.c.owner, "the owner of the mailbox")
        refuse(status, "a send")

    def send(self, body, timeout=None):
        cdef shm_thread *t = self.use()
        cdef shm_message m
        cdef Encoding out = None
        if timeout is not None:
            deadline_of(timeout)
        m.header = 0
        m.call = 0
        m.flags = 0
        if type(body) is bytes and PyBytes_GET_SIZE(body) <= <Py_ssize_t>self.c.body_bytes:
            m.format = BYTES
            m.body = PyBytes_AS_STRING(body)
            m.len_bytes = PyBytes_GET_SIZE(body)
            m.lease = 0
        else:
            out = Encoding.__new__(Encoding)
            encode(out, self.member, t, body, &m, self.c.body_bytes)
        self.deliver(t, &m, timeout, body)

    def send_nowait(self, body):
        self.send(body, 0)

    def post(self, body, int kind=0, uint64_t tag=0, int flags=0, timeout=None):
        cdef shm_thread *t = self.use()
        cdef shm_message m
        cdef Encoding out = Encoding.__new__(Encoding)
        if timeout is not None:
            deadline_of(timeout)
        if kind < 0 or kind >= SHM_KIND_EXIT:
            raise errors.InvalidArgument(f"kind {kind} cannot be sent")
        m.header = shm_header_make(kind, tag)
        m.call = 0
        m.flags = flags
        encode(out, self.member, t, body, &m, self.c.body_bytes)
        self.deliver(t, &m, timeout, body)

    def send_many(self, bodies, timeout=None):
        """Send in order; how many were sent. The first that finds no room within the timeout ends it, and raises
        when it is the first of all."""
        cdef uint64_t deadline = deadline_of(timeout)
        sent = 0
        for body in bodies:
            left = timeout if deadline == SHM_FOREVER or deadline == 0 else max(0, deadline - shm_clock_ns()) / 1e9
            try:
                self.send(body, left)
            except (errors.MailboxFull, errors.Timeout):
                if sent == 0:
                    raise
                break
            sent += 1
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------

    cdef int fetch(self, shm_thread *t, const shm_filter *f, shm_message *m, object timeout, uint64_t *deadline) except -2:
        """One message, or a status EMPTY, TIMEOUT; requests that were withdrawn are passed over. *deadline is
        computed when it is first needed (1: not yet)."""
        cdef int status
        cdef uint64_t looked = 0
        while True:
            status = shm_ring_receive(t, &self.c, f, m, &looked)
            if status == SHM_EMPTY or status == SHM_BUSY:
                if deadline[0] == 1:
                    deadline[0] = deadline_of(timeout)
                if deadline[0] == 0 and status == SHM_EMPTY:
                    return SHM_EMPTY
                with nogil:
                    status = shm_box_receive(t, &self.c, f, m, deadline[0])
            if status == SHM_OK:
                if m.call and shm_call_serve(t, m.call) != SHM_OK:
                    if m.lease:
                        shm_lease_recycle(t, m.lease - 1)
                    looked = 0
                    continue
                return SHM_OK
            if status == SHM_INTERRUPTED:
                raise_interrupt()
                looked = 0
                continue
            if status == SHM_EMPTY or status == SHM_TIMEOUT:
                return status
            refuse(status, "a receive")

    cdef object nothing(self, int status, object timeout, str what):
        if status == SHM_EMPTY:
            return errors.MailboxEmpty(f"no message {what}is there")
        return errors.Timeout(f"no message {what}came within {timeout} s; {shm_ring_count(&self.c)} others wait")

    def receive(self, timeout=None):
        cdef shm_thread *t = self.use()
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = 1
        cdef int status
        f.sender, f.tag, f.kinds = SHM_SENDER_ANY, SHM_TAG_ANY, 0xFFFFFFFF
        if timeout is not None:
            deadline = deadline_of(timeout)
        status = self.fetch(t, &f, &m, timeout, &deadline)
        if status:
            raise self.nothing(status, timeout, "")
        if m.format == BYTES and m.lease == 0 and m.notice == 0:
            return PyBytes_FromStringAndSize(<const char *>m.body, m.len_bytes)
        return decode_message(self.member, t, &m)

    def receive_nowait(self):
        return self.receive(0)

    def receive_many(self, max=None, timeout=None):
        """At least one message within the timeout, and then all that are there, `max` at most."""
        if max is not None and (not isinstance(max, int) or isinstance(max, bool)):
            raise TypeError(f"max must be an int or None, not {type(max).__name__}")
        if max is not None and max < 1:
            raise errors.InvalidArgument(f"max is {max}; it must be at least 1")
        cdef list found = [self.receive(timeout)]
        cdef shm_thread *t = self.use()
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = 0
        f.sender, f.tag, f.kinds = SHM_SENDER_ANY, SHM_TAG_ANY, 0xFFFFFFFF
        while max is None or len(found) < max:
            try:
                if self.fetch(t, &f, &m, 0, &deadline) != SHM_OK:
                    break
            except errors.Closed:
                break
            found.append(decode_message(self.member, t, &m))
            t = self.use()
        return found

    def take(self, timeout=None, sender_id=ANYTHING, int kind=-1, tag=ANYTHING):
        cdef shm_thread *t = self.use()
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        f.sender = SHM_SENDER_ANY if sender_id is ANYTHING or sender_id == -1 else <uint64_t>sender_id
        f.tag = SHM_TAG_ANY if tag is ANYTHING or tag == -1 else <uint64_t>tag
        f.kinds = 0xFFFFFFFF if kind < 0 else <uint32_t>1 << kind
        while True:
            status = self.fetch(t, &f, &m, timeout, &deadline)
            if status:
                open_filter = f.kinds == 0xFFFFFFFF and f.tag == SHM_TAG_ANY and f.sender == SHM_SENDER_ANY
                raise self.nothing(status, timeout, "" if open_filter else "that matches ")
            message = new_message(self.member, t, &m)
            if message is not None:
                return message
            t = self.use()

    # -- calling ------------------------------------------------------------------------------------------------

    def call(self, body, int flags=0, timeout=None, uint64_t tag=0):
        return call_box(self, body, flags, timeout, tag)

    def submit(self, body, int flags=0, timeout=None, uint64_t tag=0):
        return submit_box(self, body, flags, timeout, tag)

    # -- the rest -----------------------------------------------------------------------------------------------

    def monitor(self, uint64_t target_id):
        cdef shm_thread *t = self.use()
        cdef int64_t number = shm_notice_arm(t, &self.c, target_id)
        if number < 0:
            refuse(<int>number, "a monitor")
        return number

    def demonitor(self, uint64_t monitor):
        return bool(shm_notice_disarm(self.use(), monitor))

    def depth(self):
        self.use()
        return shm_ring_count(&self.c)

    def close_box(self):
        cdef shm_thread *t = self.use()
        return shm_box_close(t, &self.c)

    def unpersist(self):
        shm_box_unpersist(self.use(), &self.c)

    def release(self):
        if not self.opened:
            return
        if not self.member.closed and not shm_member_is_forked(&self.member.c):
            shm_box_release(context(self.member), &self.c)
        self.opened = False

    def ring_view(self):
        cdef shm_thread *t = self.use()
        cdef uint32_t lease, block = shm_lease_block(&self.member.segment, self.c.lease)
        cdef int status = shm_block_hold(t, block, &lease)
        if status:
            refuse(status, "a view of the mailbox")
        return memoryview(new_lease(self.member, lease, ring_bytes(&self.c), True))

    def layout(self):
        cdef uint64_t base = <uintptr_t>self.c.ring
        self.use()
        return {
            "tail": ring_field(0), "right": ring_field(1), "head": ring_field(2), "delivered": ring_field(3),
            "asides": <uintptr_t>self.c.asides - base, "bodies": <uintptr_t>self.c.bodies - base,
            "slots": <uintptr_t>self.c.slots - base, "slot_stride": self.c.slot_bytes, "slots_count": self.c.mask + 1,
        }


cdef extern from *:
    """
    static uint64_t shm_ring_field(int which) {
        static const size_t at[] = {offsetof(struct shm_ring, tail), offsetof(struct shm_ring, right),
                                    offsetof(struct shm_ring, head), offsetof(struct shm_ring, delivered)};
        return at[which];
    }
    static uint64_t shm_box_ring_bytes(const struct shm_box *b) {
        return shm_ring_bytes(b->ring->capacity, b->body_bytes, b->ring->place_words);
    }
    """
    uint64_t ring_field "shm_ring_field"(int which) nogil
    uint64_t ring_bytes "shm_box_ring_bytes"(const shm_box *b) nogil
