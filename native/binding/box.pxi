# Mailboxes and messages.

cdef class HeldBody


cdef class Message:
    cdef int number  # of its kind
    cdef readonly object tag
    cdef readonly uint64_t sender_id
    cdef readonly object body
    cdef readonly int flags
    cdef readonly int priority   # 0: the most urgent
    cdef readonly uint64_t position  # in the ring of its mailbox
    cdef readonly bint is_error  # the answer to a letter: an error, which the body is
    cdef uint64_t call
    cdef uint64_t until          # the deadline of the call, 0: none
    cdef uint32_t taker          # place of the thread that serves it, or has received it, + 1; 0: another may serve it
    cdef bint told               # the task that serves it knows of its abort
    cdef bint heard              # by its cancellation: its waits go on from there
    cdef bint is_answered        # perhaps
    cdef readonly bint is_replied    # it is, and its caller was there
    cdef uint32_t box            # where it was received
    cdef uint64_t life
    cdef readonly Member member
    cdef public object info      # what request_info has found out
    # of a port only
    cdef readonly uint64_t port       # its id; 0: it came to no port
    cdef readonly uint64_t source_id  # id of the sender's port; 0: none
    cdef readonly uint64_t group_id  # of the group that it was addressed to; 0: none
    cdef readonly uint64_t count      # its number among those that the port's owner has received
    cdef readonly bytes annex
    cdef HeldBody held                # the body, until it is fetched

    @property
    def kind(self):
        return kinds[self.number]

    @property
    def is_call(self):
        return self.call != 0

    @property
    def transaction(self):
        return self.call or None

    def forget(self):
        """Its handler is over: the body, which may hold arrays, is not kept by who still has the message."""
        self.body = None

    def fail(self, error):
        """reply_error of a handler that is over: who is answered can count on it that its arrays are not held here any
        more, neither by the message nor by the frames of the error."""
        if self.flags != RAW:
            self.body = None
        self.answered()
        answer_with_error(self.member, self.call, self.sender_id, error, True)

    def received_in(self):
        """(index, count) of the mailbox."""
        return self.box, self.life

    @property
    def sender(self):
        return make_ref(self.member, self.sender_id)

    def get_data(self):
        """The body of a message that was received without it; once."""
        cdef HeldBody held = self.held
        if held is None:
            raise errors.InvalidArgument("the body was received with the message, or fetched before")
        self.member.check()
        self.held = None
        self.body = held.get()
        return self.body

    def drop_body(self):
        """Whoever keeps the message to answer it later lets the body go, and what that holds."""
        self.body = self.held = None

    def noted(self):
        """The message, which this thread is about to serve: said for those who look."""
        note(self)
        return self

    def is_aborted(self):
        self.member.check()
        return self.call != 0 and not self.is_answered and bool(shm_abort_reached(context(self.member), self.call))

    def begin(self):
        """This thread serves it from now on."""
        shm_serve_begin(context(self.member), self.call, self.until)
        self.taker = context(self.member).place + 1

    def hear(self):
        """The task that serves it is cancelled for its abort."""
        self.heard = True

    def begin_step(self):
        """This thread runs a part of what serves it."""
        if not can_act(self.member):
            return
        cdef shm_thread *t = context(self.member)
        shm_serve_end(t)
        shm_serve_begin(t, 0 if self.is_answered or self.told or self.heard else self.call, self.until)
        self.taker = t.place + 1

    def end_step(self):
        """That part is over."""
        if not can_act(self.member):
            return
        cdef shm_thread *t = context(self.member)
        if self.call and not self.is_answered and not self.heard and not shm_is_serving(t):
            self.told = True  # a wait of this part has ended for it
        shm_serve_end(t)
        self.taker = 0

    def adopt(self):
        """This thread has it from another, which received it for whoever would ask, and serves it until it is answered."""
        if can_act(self.member) and self.call and self.flags == RAW and not self.is_answered:
            taken_by(self)

    def end(self):
        """This thread does not serve it any more, though it has received it."""
        shm_abort_answered(context(self.member), self.call)
        self.taker = 0

    cdef int answered(self) except -1:
        """It is about to be answered: for the thread that serves it its closing is no abort any more."""
        cdef Thread thread
        self.is_answered = True
        if self.taker == 0 or not can_act(self.member) or context(self.member).place + 1 == self.taker:
            return 0  # the core sees to it
        for thread in list(self.member.threads):
            if thread.c.at != NULL and thread.c.place + 1 == self.taker:
                shm_abort_answered(&thread.c, self.call)
        return 0

    @property
    def left(self):
        """Seconds until its caller's limit; None: there is none."""
        if self.call == 0 or self.until == 0 or self.until == SHM_FOREVER:
            return None
        now = shm_clock_ns()
        return (self.until - now) / 1e9 if self.until > now else 0.0

    def is_open(self):
        self.member.check()
        return self.call != 0 and bool(shm_call_is_open(&self.member.segment, self.call, self.member.c.slot))

    def reply(self, value):
        if self.call == 0:
            raise errors.InvalidArgument(f"a message of kind {kinds[self.number]!r} asks for no reply")
        self.answered()
        answer(self.member, self.call, self.sender_id, value, -1)
        self.is_replied = True

    def reply_error(self, error):
        if self.call == 0:
            raise errors.InvalidArgument(f"a message of kind {kinds[self.number]!r} asks for no reply")
        if not isinstance(error, BaseException):
            raise TypeError(f"reply_error needs an exception, not {type(error).__name__}")
        self.answered()
        answer_with_error(self.member, self.call, self.sender_id, error)
        self.is_replied = True

    def __repr__(self):
        return f"<Message {self.kind.name} tag={self.tag} sender={self.sender_id:#x} body={self.body!r:.60}>"


cdef int note(Message message) except -1:
    cdef const char *text = "on_message"
    cdef Py_ssize_t size = 10
    cdef object body = message.body
    if message.flags == F_METHOD and type(body) is tuple and body and type((<tuple>body)[0]) is str:
        text = PyUnicode_AsUTF8AndSize((<tuple>body)[0], &size)
    elif message.flags == F_TASK:
        text, size = "task", 4
    elif message.flags == F_STOP:
        text, size = "stop", 4
    if can_act(message.member):
        message.begin()
        shm_serving_begin(context(message.member), message.call, text, size)
    return 0


cdef int answer(Member member, uint64_t call, uint64_t sender, object value, int format) except -1:
    cdef shm_message m
    cdef unsigned char room[PLAIN_BYTES]
    member.check()
    kept = encode(member, value, &m, SHM_CELL_INLINE, room)
    if format >= 0:
        m.format = format
    cdef int status = shm_call_reply(context(member), call, m.body, m.len_bytes, m.format, m.lease)
    if status == 0:
        return 0
    not_sent(member, &m)
    if not shm_member_lives(&member.segment, sender):
        raise peer_dead(member, sender, "the caller")
    if status == SHM_REFUSED:
        raise errors.Aborted("the call is not open any more: answered before, timed out, or withdrawn")
    refuse(status, "a reply")


cdef int forget_frames(object error) except -1:
    """Of an error and of those it came from. The frames themselves are let be: one may be a generator that goes on."""
    cdef list left = [error]
    cdef set seen = set()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            BaseException.__setattr__(one, "__traceback__", None)  # whatever its class makes of an assignment
            left += [one.__cause__, one.__context__]
    return 0


cdef int answer_with_error(Member member, uint64_t call, uint64_t sender, object error, bint over=False) except -1:
    packed = pack_error(error, 0)
    if over:
        forget_frames(error)
    try:
        answer(member, call, sender, packed, ERROR)
    except errors.OutOfMemory:  # then what fits the cell itself: the caller must not wait for ever
        answer(member, call, sender, pack_error(error, SHM_CELL_INLINE), ERROR)
    return 0


cdef int answer_error(Member member, uint64_t call, uint64_t sender, object error) except -1:
    """Answer a call that nobody will serve; whatever refuses that is the caller's affair."""
    try:
        answer_with_error(member, call, sender, error)
    except errors.ShmipcError:
        if can_act(member):
            shm_call_fail(context(member), call)
    return 0


cdef object decode_message(Member member, shm_message *m):
    """The body of a received message. Of an answer, `cause` says afterwards whether it is an error."""
    cdef bint failed
    if m.told == SHM_TOLD_NOTHING:
        return decode(member, m.format, m.body, m.len_bytes, m.lease)
    if m.told == SHM_TOLD_BITS:
        return m.notice
    if m.told == SHM_TOLD_REPLY:
        body = reply_value(member, context(member), m.letter, m.sender, &failed)
        m.cause = failed
        return body
    cause = m.cause if m.cause >> 16 else shm_member_cause(&member.segment, m.sender)
    number = m.notice if m.told == SHM_TOLD_EXIT else None
    return exit_notice(member, m.sender, number, cause_tuple(cause), m.undelivered)


class UnreadableBody(Exception):
    """A message could not be unpickled, says the cause; told to loops, to whom it is not to look like an error of
    their mailbox."""
    position = 0


cdef object GONE = object()


cdef object body_of(Member member, shm_message *m, bint serving):
    """The body; GONE for a request that could not be unpickled: its caller, who can act, is told why."""
    try:
        return decode_message(member, m)
    except BaseException as error:
        if not isinstance(error, Exception) and not serving:
            raise
        if not m.call:
            if serving:
                raise UnreadableBody(f"a message's body: {type(error).__name__}") from error
            raise
        if isinstance(error, SystemExit):  # neither the end of who serves it, nor of who called
            error = errors.NotSupported(f"a body whose unpickling raises {error!r} cannot be served")
        answer_error(member, m.call, m.sender, error)
        return GONE


cdef object plain_body(Member member, shm_message *m):
    """The body for one who gets no Message, and so could not answer a call."""
    body = body_of(member, m, False)
    if m.call and body is not GONE:
        answer_error(member, m.call, m.sender,
                     errors.NotSupported("received by receive(); use receive_message to answer"))
    return body


cdef inline Message handed(Message message, list into):
    """Into the caller's hands, before any code of Python's runs."""
    if into is not None:
        into.append(message)
    return message


cdef int taken_by_hand(Message message, shm_message *m) except -1:
    """This thread has received a message by itself: if it is a user's call, it serves that until it is answered."""
    message.until = m.deadline_ns
    if m.call and m.flags == RAW:  # others are the loop's
        taken_by(message)
    return 0


cdef int taken_by(Message message) except -1:
    shm_serve_taken(context(message.member), message.call, message.until)
    message.taker = context(message.member).place + 1
    return 0


cdef int fill(Message message, Box box, shm_message *m, bint serving) except -1:
    """Make it the received message; False for one whose caller was told that it cannot be read."""
    cdef Member member = box.member
    message.member = member
    message.number = m.header >> 61
    if message.number >= len(kinds):
        if m.lease:
            release_later(member, m.lease - 1)
        raise (UnreadableBody if serving else errors.Corrupted)(f"a message of kind {message.number}")
    message.tag = m.header & SHM_TAG_MASK or None
    message.sender_id = m.sender
    message.flags = m.flags
    message.priority, message.position = m.priority, m.position
    message.call = m.call
    message.box, message.life = box.c.index, box.c.count
    if serving:
        message.until = m.deadline_ns
    else:
        taken_by_hand(message, m)
    message.body = body_of(member, m, serving)
    message.is_error = m.told == SHM_TOLD_REPLY and m.cause
    return message.body is not GONE


def take_any(boxes, timeout=None):
    cdef Box box
    cdef shm_box *opened[8]
    cdef shm_message m
    cdef uint32_t which = 0, count
    cdef uint64_t deadline = deadline_of(timeout)
    cdef int status
    cdef shm_thread *t = NULL
    cdef Message message = Message.__new__(Message)  # first: no Python code runs between receiving and reading
    cdef tuple held = tuple(boxes)
    if not 1 <= len(held) <= 8:
        raise errors.InvalidArgument(f"{len(held)} mailboxes; take_any waits for 1 to 8")
    cdef Member member = (<Box?>held[0]).member
    while True:
        t = (<Box>held[0]).use()
        count = 0
        for entry in held:
            box = entry
            if box.member is not member:
                raise errors.InvalidArgument("the mailboxes are of different systems")
            box.use()
            opened[count] = &box.c
            count += 1
        shm_serving_end(t)
        shm_serve_end(t)
        status = shm_box_receive_any(t, opened, count, &m, &which, 0)
        if (status == SHM_EMPTY or status == SHM_BUSY) and deadline != 0:
            for box in held:
                box.go_in()
            with nogil:
                status = shm_box_receive_any(t, opened, count, &m, &which, deadline)
            for box in held:
                box.come_out(t)
        if status == SHM_INTERRUPTED:
            raise_interrupt()
        elif status == SHM_ABORTED:
            continue  # it served nothing
        elif status == SHM_EMPTY or status == SHM_BUSY:
            raise errors.MailboxEmpty("no message is there")
        elif status == SHM_TIMEOUT:
            raise errors.Timeout(f"no message came within {timeout} s to "
                                 + " or ".join([describe_box(box) for box in held]))
        elif status:
            refuse(status, "a receive")
        elif m.call and shm_meeting_accept(t, &m) != SHM_OK:
            if m.lease:
                shm_lease_recycle(t, m.lease - 1)
        elif fill(message, held[which], &m, True):
            note(message)
            return message


cdef enum:
    MATCHES_MAX = 64


cdef int set_filter(shm_filter *f, object sender_id, int kind, object tag) except -1:
    f.sender = SHM_SENDER_ANY if sender_id is ANYTHING or sender_id == -1 else <uint64_t>sender_id
    f.tag = SHM_TAG_ANY if tag is ANYTHING or tag == -1 else <uint64_t>tag
    f.kinds = 0xFFFFFFFF if kind < 0 else <uint32_t>1 << kind
    f.other = NULL
    f.too_large = 0
    f.tag_from = f.tag_until = f.from_ = f.until = f.ends = 0
    f.urgent = f.keeps = f.raw = False
    return 0


PRIORITY_MAX = SHM_PRIORITY_MAX
OWN = SHM_FLAG_OWN


cdef uint32_t priority_of(object priority) except? 0xFFFF:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {type(priority).__name__}")
    if priority < 0:
        raise errors.InvalidArgument(f"priority is {priority}, the least is 0")
    if priority > SHM_PRIORITY_MAX:
        raise errors.LimitExceeded(f"priority is {priority}, the limit is {SHM_PRIORITY_MAX}")
    return priority


# What waits for the mailbox of an actor let through whatever they wait for: the order to stop.
cdef shm_filter the_order
set_filter(&the_order, -1, SHM_KIND_CAST, SHM_TAG_ORDER)


cdef int kind_in(uint32_t bits):
    cdef int kind = 0
    while bits > 1:
        bits >>= 1
        kind += 1
    return kind


cdef inline bint is_passed_over(const shm_box *box, shm_thread *t, shm_message *m):
    """Has the caller left since the request was taken? What came to a port has its number by then, and is received: only
    its answer is refused."""
    cdef bint is_counted = box.envelope_at != 0 and not m.flags & SHM_FLAG_MEETING
    return shm_meeting_accept(t, m) != SHM_OK and not is_counted


@cython.no_gc_clear  # what __dealloc__ needs must still be there when the collector has found a cycle
cdef class Box:
    cdef shm_box c
    cdef readonly Member member
    cdef bint opened
    cdef int inside  # threads in the core without the GIL: the last one out gives the hold back
    cdef list unreadable  # what receive_many met behind messages that it returned: the next receives raise it
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("use Mailbox.create or Mailbox.open")

    cdef open_in(self, Member member):
        if (self.c.envelope_at != 0) != isinstance(self, PortBox):  # what is done with a port is done with a PortBox
            shm_box_release(context(member), &self.c)
            raise errors.Corrupted(f"mailbox {self.c.index} and its record do not agree whether it is a port")
        self.member = member
        self.opened = True

    def __dealloc__(self):
        if self.opened and self.c.ring != NULL:
            release_later(self.member, self.c.lease)

    cdef bint is_closed(self):
        return not self.opened or not self.member.joined or self.member.c.closed

    cdef void go_in(self):
        self.inside += 1
        self.member.inside += 1

    cdef void come_out(self, shm_thread *t):
        self.member.inside -= 1
        self.inside -= 1
        if self.inside == 0 and not self.opened:
            shm_box_release(t, &self.c)

    cdef uint64_t waiting(self):
        """Messages that wait, for a text; 0 when the hold is given back."""
        return shm_ring_count(&self.c) if self.c.ring != NULL else 0

    cdef shm_thread *use(self) except NULL:
        if not self.opened:
            if self.member is not None:
                self.member.check()
            raise errors.Closed("the mailbox is closed in this process")
        cdef shm_thread *t = context(self.member)
        if not self.opened:
            raise errors.Closed("the mailbox is closed in this process")
        return t

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
    def message_bytes(self):
        return self.c.message_bytes or None

    @property
    def closed(self):
        return self.is_closed()

    # -- sending ------------------------------------------------------------------------------------------------

    cdef int deliver(self, shm_message *m, object timeout, object body, uint64_t deadline=1) except -1:
        """Send an encoded message; whatever refuses it is raised. `deadline`: of a timeout that runs already."""
        cdef int status
        cdef shm_thread *t
        try:
            t = self.use()
            status = shm_box_try_send(t, &self.c, m)
            if status == SHM_OK:
                return 0
            if status == SHM_FULL or status == SHM_CLOSED:
                if deadline == 1:
                    deadline = deadline_of(timeout)
                while True:
                    t = self.use()
                    self.go_in()
                    with nogil:
                        status = shm_box_send(t, &self.c, m, deadline)
                    self.come_out(t)
                    if status == SHM_ABORTED:
                        raise_abort(t)
                    elif status != SHM_INTERRUPTED:
                        break
                    else:
                        raise_interrupt()
        except BaseException:
            not_sent(self.member, m)
            raise
        if status == SHM_OK:
            return 0
        not_sent(self.member, m)
        if status == SHM_FULL:
            raise errors.MailboxFull(f"the mailbox holds {self.c.capacity} undelivered messages, its capacity", message=body)
        if status == SHM_TIMEOUT:
            raise errors.Timeout(f"no room came free {within_words(timeout)} in {describe_box(self)}", message=body)
        if status == SHM_PEER_DEAD:
            raise peer_dead(self.member, self.c.owner, "the owner of the mailbox")
        if status == SHM_INVALID and self.c.message_bytes:
            raise self.other_length(m)
        if status == SHM_CLOSED and self.c.envelope_at:
            raise (<PortBox>self).unreachable()
        refuse(status, "a send")

    cdef object other_length(self, shm_message *m):
        wanted = f"the mailbox takes bytes of exactly {self.c.message_bytes}"
        if m.format != BYTES:
            return errors.InvalidArgument(f"{wanted}; the body is not of type bytes")
        kind = errors.TooLarge if m.len_bytes > self.c.message_bytes else errors.InvalidArgument
        return kind(f"{wanted}; the body has {m.len_bytes}")

    def send(self, body, timeout=None):
        cdef shm_message m
        cdef unsigned char room[PLAIN_BYTES]
        cdef uint64_t deadline = deadline_of(timeout)
        self.use()
        m.header = 0
        m.call = 0
        m.flags = 0
        kept = encode(self.member, body, &m, self.c.body_bytes, room, deadline)
        self.deliver(&m, timeout, body, deadline)

    def send_nowait(self, body):
        self.send(body, 0)

    def post(self, body, int kind=0, uint64_t tag=0, int flags=0, timeout=None, priority=0):
        cdef shm_message m
        cdef unsigned char room[PLAIN_BYTES]
        self.use()
        cdef uint64_t deadline = deadline_of(timeout)
        if kind < 0 or kind >= SHM_KIND_EXIT:
            raise errors.InvalidArgument(f"kind {kind} cannot be sent")
        m.header = shm_header_make(kind, tag)
        m.call = 0
        m.flags = flags
        cdef uint32_t urgency = priority_of(priority)
        kept = encode(self.member, body, &m, self.c.body_bytes, room, deadline)
        m.priority = urgency
        self.deliver(&m, timeout, body, deadline)

    cdef post_call(self, Method method, tuple args, dict kwargs):
        cdef shm_message m
        cdef unsigned char room[PLAIN_BYTES]
        self.use()
        m.header = shm_header_make(SHM_KIND_CAST, 0)
        m.call = 0
        m.flags = F_METHOD
        kept = encode_call(self.member, method, args, kwargs, &m, self.c.body_bytes, room)
        self.deliver(&m, None, None)

    def send_many(self, bodies, timeout=None):
        """Send in order; how many were sent. The first that finds no room within the timeout ends it, and raises
        when it is the first of all. Whatever else ends it is raised with `sent`, that number."""
        cdef uint64_t deadline = deadline_of(timeout)
        turns = iter(bodies)
        if turns is bodies:  # the body that found no room would be taken from it, and in nobody's hands
            raise TypeError(f"send_many needs a sequence, not {type(bodies).__name__}: what did not fit is sent on by "
                            "its place")
        sent = 0
        try:
            for body in turns:
                left = timeout if deadline == SHM_FOREVER or deadline == 0 else max(0, deadline - shm_clock_ns()) / 1e9
                try:
                    self.send(body, left)
                except (errors.MailboxFull, errors.Timeout) as error:
                    if sent == 0 or error.message is not body:  # it is not the mailbox's, but of the body's pickling
                        raise
                    break
                sent += 1
        except BaseException as error:
            BaseException.__setattr__(error, "sent", sent)
            raise
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------

    cdef int fetch(
        self, const shm_filter *f, shm_message *m, object timeout, uint64_t *deadline, object deferred=None,
        bint serving=False
    ) except -2:
        """One message, or a status EMPTY, TIMEOUT; requests that were withdrawn are passed over. *deadline is
        computed when it is first needed (1: not yet). INTERRUPTED: another thread has put something in `deferred`. A loop
        (`serving`) is not ended by an abort; ABORTED: it hears of the calls that others serve, and is to look."""
        cdef int status
        cdef uint64_t looked = 0
        cdef shm_thread *t
        if self.unreadable:
            raise self.unreadable.pop(0)
        while True:
            t = self.use()
            if not serving and deadline[0] != 0:
                check_abort(t)
            elif serving and t.hears_all and shm_abort_is_pending(t):
                return SHM_ABORTED
            status = shm_ring_receive(t, &self.c, f, m, &looked)
            if status == SHM_EMPTY or status == SHM_BUSY:
                if deadline[0] == 1:
                    deadline[0] = deadline_of(timeout)
                    t = self.use()
                if deadline[0] == 0 and status == SHM_EMPTY:
                    return SHM_EMPTY
                self.go_in()
                with nogil:
                    status = shm_box_receive(t, &self.c, f, m, deadline[0])
                self.come_out(t)
            if status == SHM_OK:
                if m.call and not f.keeps and is_passed_over(&self.c, t, m):
                    if m.lease:
                        shm_lease_recycle(t, m.lease - 1)
                    looked = 0
                    continue
                return SHM_OK
            if status == SHM_INTERRUPTED:
                raise_interrupt()
                if deferred:
                    return status
                looked = 0
                continue
            if status == SHM_ABORTED:
                if not serving:
                    raise_abort(t)
                elif t.hears_all:
                    return status
                shm_abort_take(t)
                looked = 0
                continue
            if status == SHM_EMPTY or status == SHM_TIMEOUT:
                return status
            if status == SHM_STARVED:
                raise self.starved(f)
            if status == SHM_TOO_SMALL:
                raise errors.BufferTooSmall(
                    f"the next message has {m.len_bytes} bytes, the buffer {f.too_large - 1}; it was kept",
                    needed=m.len_bytes)
            if self.c.envelope_at:
                (<PortBox>self).own(status)
            refuse(status, "a receive")

    cdef object starved(self, const shm_filter *f):
        asked = []
        cdef const shm_filter *first = f
        while f != NULL and f != &the_order:
            asked.append((ANYTHING if f.sender == SHM_SENDER_ANY else make_ref(self.member, f.sender),
                          ANYTHING if f.kinds == 0xFFFFFFFF else kinds[kind_in(f.kinds)],
                          ANYTHING if f.tag == SHM_TAG_ANY else f.tag or None))
            f = f.other
        texts = " or ".join([", ".join([f"{name}={value!r}" for name, value in zip(("sender", "kind", "tag"), one)
                                        if value is not ANYTHING]) for one in asked])
        if not texts:
            texts = "a tag in the range" if first.tag_until else "been sent by send or call: they are for the loop"
        depth = shm_ring_count(&self.c)
        return errors.Starved(
            f"{describe_box(self)} holds {depth} undelivered messages, its capacity, and none has {texts}: no other "
            "message can get in. Receive what is there, or make the mailbox larger",
            depth=depth, filter=asked[0] if len(asked) == 1 else tuple(asked))

    cdef object nothing(self, int status, object timeout, str what):
        if status == SHM_EMPTY:
            return errors.MailboxEmpty(f"no message {what}is there")
        return errors.Timeout(f"no message {what}came within {timeout} s to {describe_box(self)}")

    def receive(self, timeout=None):
        return self.receive_within(-1, timeout)

    cdef object receive_within(self, int64_t capacity, object timeout):
        """The next body; of more bytes than the capacity (-1: of any), it is kept."""
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = 1
        cdef int status
        set_filter(&f, ANYTHING, -1, ANYTHING)
        f.too_large = capacity + 1
        if timeout is not None:
            deadline = deadline_of(timeout)
        while True:
            status = self.fetch(&f, &m, timeout, &deadline)
            if status:
                raise self.nothing(status, timeout, "")
            if m.format == BYTES and m.lease == 0 and m.told == SHM_TOLD_NOTHING and m.call == 0:
                return PyBytes_FromStringAndSize(<const char *>m.body, m.len_bytes)
            body = plain_body(self.member, &m)
            if body is not GONE:
                return body

    def receive_nowait(self):
        return self.receive(0)

    def receive_bounded(self, capacity, timeout=None):
        if not isinstance(capacity, int) or isinstance(capacity, bool):
            raise TypeError(f"capacity must be an int, not {type(capacity).__name__}")
        if capacity < 0:
            raise errors.InvalidArgument(f"capacity is {capacity}; it must be at least 0")
        return self.receive_within(min(capacity, BODY_LIMIT), timeout)

    cdef keep_unreadable(self, error):
        if self.unreadable is None:
            self.unreadable = []
        self.unreadable.append(error)

    def receive_many(self, max=None, timeout=None):
        """At least one message within the timeout, and then all that are there, at most `max`, or as many as the mailbox
        has room for. One that cannot be read ends it: what came before is returned, and the next receive raises the
        error."""
        if max is not None and (not isinstance(max, int) or isinstance(max, bool)):
            raise TypeError(f"max must be an int or None, not {type(max).__name__}")
        if max is not None and max < 1:
            raise errors.InvalidArgument(f"max is {max}; it must be at least 1")
        cdef list found = [self.receive(timeout)]
        if max is None:  # else one that is filled as fast as it is emptied would never be seen empty
            max = self.c.capacity
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = 0
        set_filter(&f, ANYTHING, -1, ANYTHING)
        while len(found) < max:
            if self.unreadable:  # what another thread's batch has met is for the next receive, whatever it is
                break
            try:
                if self.fetch(&f, &m, 0, &deadline) != SHM_OK:
                    break
            except errors.Closed:
                break
            except BaseException as error:
                self.keep_unreadable(error)
                break
            try:
                body = plain_body(self.member, &m)
            except BaseException as error:  # also Ctrl-C within an unpickling: what came before is in no mailbox any more
                self.keep_unreadable(error)
                break
            if body is not GONE:
                found.append(body)
        return found

    def take(self, timeout=None, sender_id=ANYTHING, int kind=-1, tag=ANYTHING, bint serving=False, bint orders=False,
             int64_t capacity=-1, bint raw=False, list into=None):
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        cdef Message message = Message.__new__(Message)  # first: no Python code runs between receiving and reading
        set_filter(&f, sender_id, kind, tag)
        f.other = &the_order if orders else NULL
        f.too_large = capacity + 1
        f.raw = raw
        while True:
            status = self.fetch(&f, &m, timeout, &deadline, None, serving)
            if status == SHM_ABORTED:
                return None
            if status:
                open_filter = f.kinds == 0xFFFFFFFF and f.tag == SHM_TAG_ANY and f.sender == SHM_SENDER_ANY
                raise self.nothing(status, timeout, "" if open_filter else "that matches ")
            if fill(message, self, &m, serving):
                return handed(message, into)

    def take_where(self, timeout=None, sender_id=ANYTHING, int kind=-1, tag=ANYTHING, uint64_t tag_from=0,
                   uint64_t tag_until=0, also=None, uint64_t start=0, uint64_t until=0, bint urgent=False,
                   bint keeps=False, bint orders=False, bint tells=False, uint64_t ends=0, list into=None):
        """See _native.pyi."""
        cdef shm_message m
        cdef shm_filter f, other
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        cdef Message message = Message.__new__(Message)
        set_filter(&f, sender_id, kind, tag)
        f.tag_from, f.tag_until, f.from_, f.until = tag_from, tag_until, start, until
        f.urgent, f.keeps, f.ends = urgent, keeps, ends
        f.other = &the_order if orders else NULL
        if also is not None:
            set_filter(&other, ANYTHING, -1, also)
            other.other, f.other = f.other, &other
        while True:
            status = self.fetch(&f, &m, timeout, &deadline)
            if status:
                raise self.nothing(status, timeout, "that matches ")
            if keeps:
                m.call = 0  # not the receiver's to answer
            try:
                if fill(message, self, &m, False):
                    return handed(message, into)
            except Exception as error:
                if not tells:
                    raise
                unreadable = UnreadableBody(f"a message's body: {type(error).__name__}")
                unreadable.position = message.position
                raise unreadable from error

    def take_matching(self, matches, timeout=None, bint orders=False, bint raw=False, list into=None):
        """The oldest message that matches any of these (sender id, kind, tag), and the index of the first that does."""
        cdef shm_message m
        cdef shm_filter *filters
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        cdef Py_ssize_t i, count
        cdef list wanted = list(matches)
        cdef Message message = Message.__new__(Message)
        count = len(wanted)
        if count == 0:
            raise errors.InvalidArgument("no condition is given; at least one is needed")
        if count > MATCHES_MAX:
            raise errors.LimitExceeded(f"{count} conditions are given, the limit is {MATCHES_MAX}")
        filters = <shm_filter *>malloc(count * sizeof(shm_filter))
        if filters == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                sender_id, kind, tag = wanted[i]
                set_filter(&filters[i], sender_id, kind, tag)
                filters[i].other = &filters[i + 1] if i + 1 < count else &the_order if orders else NULL
            filters[0].raw = raw
            while True:
                status = self.fetch(filters, &m, timeout, &deadline)
                if status:
                    raise self.nothing(status, timeout, "that matches ")
                for i in range(count):
                    if m.told == SHM_TOLD_BITS:
                        if shm_filter_takes_bits(&filters[i]):
                            break
                    elif shm_filter_fits(&filters[i], m.header, m.sender):
                        break
                if fill(message, self, &m, False):
                    return i, handed(message, into)
        finally:
            free(filters)

    def take_next(self, timeout=None, bint noted=True):
        if noted and self.opened:
            shm_serving_end(self.use())
            shm_serve_end(self.use())
        cdef Message message = self.take(timeout, ANYTHING, -1, ANYTHING, True)
        if noted:
            note(message)
        return message

    def take_or_hear(self):
        """As take_next, not noted; None when a call that this thread took was closed, or this thread was aborted."""
        return self.take(None, ANYTHING, -1, ANYTHING, True)

    # -- calling ------------------------------------------------------------------------------------------------

    def call(self, body, int flags=0, timeout=None, uint64_t tag=0):
        return call_box(self, body, flags, timeout, tag, None, None, None)

    def call_nowait(self, body, timeout=None, uint64_t tag=0):
        """The same with a message of the user's, which is sent at once or not at all; the timeout is of the answer."""
        return call_box(self, body, 0, timeout, tag, None, None, None, NULL, True)

    def submit(self, body, int flags=0, timeout=None, uint64_t tag=0):
        return submit_box(self, body, flags, timeout, tag, None, None, None)

    def submit_nowait(self, body, timeout=None, uint64_t tag=0):
        """The same as of call_nowait."""
        return submit_box(self, body, 0, timeout, tag, None, None, None, NULL, True)

    def ask(self, body, uint64_t tag=0, timeout=None):
        """Send as CALL; the answer is received from this process's own mailbox, kind REPLY, with the same tag."""
        ask_box(self, body, tag, timeout)

    def meet(self, body, timeout=None, uint64_t tag=0):
        if deadline_of(timeout) == 0:
            meet_now(self, body, tag)
        else:
            call_box(self, body, SHM_FLAG_MEETING, timeout, tag, None, None, None)

    # -- without a slot -----------------------------------------------------------------------------------------

    def notify(self, uint64_t bits):
        cdef shm_thread *t = self.use()
        if self.c.message_bytes:
            raise errors.NotSupported(f"the mailbox takes bytes of exactly {self.c.message_bytes}, and no notifications")
        cdef int status = shm_box_notify(t, &self.c, bits)
        if status == SHM_PEER_DEAD:
            raise peer_dead(self.member, self.c.owner, "the owner of the mailbox")
        if status:
            refuse(status, "a notification")

    def offer(self, body):
        cdef shm_message m
        cdef unsigned char room[PLAIN_BYTES]
        cdef uint64_t receiver = self.c.owner
        self.use()
        if receiver == 0:
            raise errors.InvalidArgument("an offer is for a process, not for a mailbox that stands alone")
        m.header = 0
        m.call = 0
        m.flags = 0
        kept = encode(self.member, body, &m, SHM_OFFER_BODY_BYTES, room)
        cdef int status
        try:
            status = shm_offer_send(self.use(), &self.c, &m)  # holding the GIL: this process makes one queue
        except BaseException:
            not_sent(self.member, &m)
            raise
        if status == SHM_OK:
            return
        not_sent(self.member, &m)
        if status == SHM_FULL:
            raise errors.MailboxFull(
                f"{SHM_OFFER_SLOTS} offers wait for this receiver to pull them, the limit", message=body)
        if status == SHM_BUSY:
            raise errors.WouldBlock("the receiver was stopped while it opened the queue; try again")
        if status == SHM_PEER_DEAD:
            raise peer_dead(self.member, receiver, "the receiver of the offer")
        refuse(status, "an offer")

    def pull(self, uint64_t sender_id):
        cdef shm_message m
        cdef int status = shm_offer_pull(self.use(), &self.c, sender_id, &m)
        return pulled(self.member, status, sender_id, &m)

    # -- the rest -----------------------------------------------------------------------------------------------

    def monitor(self, uint64_t target_id):
        cdef shm_thread *t = self.use()
        cdef int64_t number = shm_notice_arm(t, &self.c, target_id)
        if number < 0:
            refuse(<int>number, "a monitor")
        return number

    def demonitor(self, uint64_t monitor):
        return bool(shm_notice_disarm(self.use(), monitor))

    def link(self, uint64_t other_id, uint32_t other_box, uint64_t other_life):
        """False: they are linked already."""
        cdef int status = shm_notice_link(self.use(), &self.c, other_id, other_box, other_life)
        if status == SHM_REFUSED:
            return False
        if status:
            refuse(status, "a link")
        return True

    def unlink_from(self, uint64_t other_id):
        return bool(shm_notice_unlink(self.use(), other_id))

    def set_timer(self, body, uint64_t tag, delay, period=None):
        """A message of kind TIMER in this mailbox after `delay` seconds, and then each `period`; its number."""
        cdef shm_message m
        cdef unsigned char room[PLAIN_BYTES]
        cdef uint64_t delay_ns = span_of("delay", delay), period_ns = 0
        cdef int64_t number
        cdef int status
        if period is not None:
            period_ns = span_of("period", period)
            if period_ns == 0:
                raise errors.InvalidArgument("period is 0; it must be more than 0 seconds")
        self.use()
        m.header = shm_header_make(SHM_KIND_TIMER, tag)
        m.call = 0
        m.flags = 0
        kept = encode(self.member, body, &m, SHM_NOTICE_INLINE, room)
        if m.lease:
            not_sent(self.member, &m)
            if m.len_bytes <= SHM_NOTICE_INLINE:
                raise errors.InvalidArgument("a timer's body cannot refer to shared memory (an array, or a handle of it)")
            raise errors.TooLarge(f"a timer's body takes {m.len_bytes} bytes, the limit is {SHM_NOTICE_INLINE}")
        if self.c.message_bytes and (m.format != BYTES or m.len_bytes != self.c.message_bytes):
            raise self.other_length(&m)
        cdef shm_thread *t = self.use()
        start_timers(self.member)
        number = shm_notice_set(t, &self.c, &m, period_ns)
        if number < 0:
            refuse(<int>number, "a timer")
        status = shm_timer_schedule(self.member.timers, number, shm_clock_ns() + delay_ns, period_ns)
        if status:
            shm_notice_disarm(t, number)
            refuse(status, "a timer")
        return number

    def depth(self):
        self.use()
        return shm_ring_count(&self.c)

    def say_receives(self):
        shm_box_say_receives(self.use(), &self.c)

    def receivers(self):
        self.use()
        return shm_box_receivers(&self.member.segment, &self.c)

    def close_box(self):
        cdef shm_thread *t = self.use()
        return shm_box_close(t, &self.c)

    def unpersist(self):
        shm_box_unpersist(self.use(), &self.c)

    def release(self):
        cdef shm_thread *t = NULL
        if self.opened and can_act(self.member):
            t = context(self.member)
        if not self.opened:
            return
        self.opened = False
        if t == NULL:
            return
        set_released(&self.c)
        if self.inside > 0:
            shm_wake_own(t)  # the last of those who wait here gives the hold back
        else:
            shm_box_release(t, &self.c)

    def ring_view(self):
        self.use()
        cdef uint32_t lease
        hold_block(self.member, self.c.block, &lease, "a view of the mailbox")
        return memoryview(new_lease(self.member, lease, ring_bytes(&self.c), True))

    def layout(self):
        self.use()
        cdef uint64_t base = <uintptr_t>self.c.ring
        return {
            "tail": ring_field(0), "right": ring_field(1), "head": ring_field(2), "delivered": ring_field(3),
            "asides": <uintptr_t>self.c.asides - base, "bodies": <uintptr_t>self.c.bodies - base,
            "slots": <uintptr_t>self.c.slots - base, "slot_stride": self.c.slot_bytes, "slots_count": self.c.mask + 1,
        }


cdef object pulled(Member member, int status, uint64_t other, shm_message *m):
    """The body of an offer that was taken, or what the status says."""
    if status == SHM_OK:
        return decode(member, m.format, m.body, m.len_bytes, m.lease)
    if status == SHM_EMPTY:
        raise errors.MailboxEmpty("nothing is offered")
    if status == SHM_BUSY:
        raise errors.WouldBlock("the other side was stopped while it opened the queue; try again")
    if status == SHM_PEER_DEAD:
        raise peer_dead(member, other, "the other side of the offers")
    refuse(status, "an offer")


cdef extern from *:
    """
    static uint64_t shm_ring_field(int which) {
        static const size_t at[] = {offsetof(struct shm_ring, tail), offsetof(struct shm_ring, right),
                                    offsetof(struct shm_ring, head), offsetof(struct shm_ring, delivered)};
        return at[which];
    }
    static void shm_set_released(struct shm_box *b) { atomic_store(&b->released, 1); }
    static uint64_t shm_box_ring_bytes(const struct shm_box *b) {
        return shm_ring_bytes(
            (uint32_t)b->capacity, b->envelope_at ? shm_ring_port_body(b->body_bytes) : b->body_bytes, b->place_words);
    }
    """
    void set_released "shm_set_released"(shm_box *b) nogil
    uint64_t ring_field "shm_ring_field"(int which) nogil
    uint64_t ring_bytes "shm_box_ring_bytes"(const shm_box *b) nogil
