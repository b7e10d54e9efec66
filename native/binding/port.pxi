# Ports and groups of ports.

cdef extern from "transport/port.h":
    enum:
        SHM_PORT_DIRECT, SHM_PORT_ANY, SHM_PORT_HANDLER
        SHM_PORT_GONE, SHM_PORT_MAKING, SHM_PORT_DISABLED, SHM_PORT_ENABLED, SHM_PORT_HANDLED, SHM_PORT_MOVING
        SHM_PORT_REMOVING
        SHM_ANNEX_BYTES
        SHM_TABLE_PORTS, SHM_BOX_PORT, SHM_BOX_GROUP, SHM_NAME_GROUP, SHM_GROUP_PORTS

    struct shm_envelope:
        uint64_t group

    struct shm_port_config:
        uint64_t owner
        uint32_t capacity
        uint32_t body_bytes
        uint64_t site
        bint is_default

    uint64_t shm_port_id_of(uint32_t index, uint64_t count) nogil
    int shm_port_make(shm_thread *self, shm_box *box, const shm_port_config *config) nogil
    int shm_port_default(shm_thread *self, const shm_port_config *config, uint64_t *id) nogil
    int shm_port_open(shm_thread *self, shm_box *box, uint64_t id) nogil
    bint shm_port_is_there(const shm_segment *segment, uint64_t id) nogil
    int shm_port_delete(shm_thread *self, shm_box *box) nogil
    int shm_port_enable(shm_thread *self, shm_box *box, uint32_t priority) nogil
    int shm_port_disable(shm_thread *self, shm_box *box) nogil
    int shm_port_handle(shm_thread *self, shm_box *box, bint handled) nogil
    int shm_port_migrate(shm_thread *self, shm_box *box, uint64_t to, bint drops, uint64_t *number,
                         uint32_t *local) nogil
    int shm_desk_open(shm_thread *self, uint64_t *changes) nogil
    int shm_port_receive_any(shm_thread *self, shm_box **boxes, uint32_t count, uint64_t changes, uint64_t too_large,
                             shm_message *message, uint32_t *which, uint64_t deadline_ns) nogil

cdef extern from "transport/group.h":
    struct shm_group:
        pass

    struct shm_group_view:
        shm_group *group
        uint32_t index
        uint64_t count
        uint32_t lease

    int shm_group_make(shm_thread *self, shm_group_view *view, uint64_t key) nogil
    int shm_group_open(shm_thread *self, shm_group_view *view, uint32_t index, uint64_t count) nogil
    void shm_group_release(shm_thread *self, shm_group_view *view) nogil
    int shm_group_destroy(shm_thread *self, shm_group_view *view, uint64_t key) nogil
    bint shm_group_is_closed(const shm_group_view *view) nogil
    int shm_group_insert(shm_thread *self, shm_group_view *view, uint64_t key, uint64_t port) nogil
    int shm_group_remove(shm_thread *self, shm_group_view *view, uint64_t key, uint64_t port) nogil
    uint32_t shm_group_members(const shm_thread *self, const shm_group_view *view, uint64_t *ports) nogil
    uint64_t shm_group_turn(shm_group_view *view) nogil

cdef extern from *:
    """
    struct shm_port_look { uint64_t word, life, received, site; uint32_t priority, local; int is_default; };
    static void shm_port_see(const struct shm_segment *s, uint32_t index, struct shm_port_look *look)
    {
        const struct shm_port *port = shm_port_at(s, index);
        *look = (struct shm_port_look){atomic_load(&port->word), atomic_load(&port->life), atomic_load(&port->received),
                                       atomic_load(&port->site), (uint32_t)atomic_load(&port->priority),
                                       atomic_load(&port->local), shm_port_is_default(s, index)};
    }
    """
    struct shm_port_look:
        uint64_t word
        uint64_t life
        uint64_t received
        uint64_t site
        uint32_t priority
        uint32_t local
        bint is_default
    void port_see "shm_port_see"(const shm_segment *s, uint32_t index, shm_port_look *look) nogil

BOX_PORT = SHM_BOX_PORT
NAME_GROUP = SHM_NAME_GROUP
ANNEX_BYTES = SHM_ANNEX_BYTES
GROUP_PORTS = SHM_GROUP_PORTS
ENVELOPE_BYTES = sizeof(shm_envelope)

# How long what does not wait gives one who is in the midst of opening the same port, and may have no core.
cdef uint64_t PATIENCE_NS = 20_000_000
PATIENCE = PATIENCE_NS / 1e9


cdef object port_config(Member member, shm_port_config *config, uint64_t owner, uint32_t capacity, uint32_t body_bytes,
                        uint64_t site):
    config.owner, config.capacity, config.body_bytes, config.site, config.is_default = owner, capacity, body_bytes, site, False


cdef object not_made(Member member, int status, shm_port_config *config):
    if status == SHM_PEER_DEAD:
        return peer_dead(member, config.owner, "the port's owner")
    if status == SHM_NO_MEMORY:
        return out_of_memory(member, (<uint64_t>config.capacity) * (64 + ENVELOPE_BYTES + config.body_bytes) * 2)
    return status_error(status, "a new port")


def make_port(Member member not None, uint32_t capacity, uint32_t body_bytes, uint64_t owner=0, uint64_t site=0,
              cls=None):
    """A new port, disabled. owner 0: this process."""
    cdef shm_port_config config
    cdef PortBox box = (cls or PortBox).__new__(cls or PortBox)
    member.check()
    port_config(member, &config, owner, capacity, body_bytes, site)
    cdef int status = shm_port_make(context(member), &box.c, &config)
    if status:
        raise not_made(member, status, &config)
    box.open_in(member)
    return box


def default_port(Member member not None, uint32_t capacity, uint32_t body_bytes, uint64_t owner=0):
    """The id of an actor's default port."""
    cdef shm_port_config config
    cdef uint64_t id = 0
    member.check()
    port_config(member, &config, owner, capacity, body_bytes, 0)
    cdef int status = shm_port_default(context(member), &config, &id)
    if status:
        raise not_made(member, status, &config)
    return id


def open_port(Member member not None, uint64_t id, cls=None, timeout=None):
    return open_until(member, id, cls, deadline_of(timeout))


cdef object open_until(Member member, uint64_t id, cls, uint64_t deadline):
    cdef PortBox box = (cls or PortBox).__new__(cls or PortBox)
    cdef int status = shm_port_open(context(member), &box.c, id)
    while status == SHM_BUSY:
        status = shm_port_open(give_way(member, deadline, f"port {id:#x}"), &box.c, id)
    if status == SHM_NOT_FOUND:
        raise errors.Unreachable(f"port {id:#x}: there is no such port, or no more")
    if status:
        refuse(status, f"port {id:#x}")
    box.open_in(member)
    return box


def site_of_port(Member member not None, uint64_t id):
    """The number of the label that the port was made with, 0: none, or there is no such port."""
    cdef shm_port_look look
    member.check()
    if not shm_port_is_there(&member.segment, id):
        return 0
    port_see(&member.segment, (id & 0xFFFFF) - 1, &look)
    return look.site if shm_port_id_of((id & 0xFFFFF) - 1, look.life) == id else 0


def port_is_there(Member member not None, uint64_t id):
    member.check()
    return bool(shm_port_is_there(&member.segment, id))


def port_of(Member member not None, uint64_t owner, uint32_t local):
    """The id of an actor's port by its local number; 0: it has none of that number."""
    cdef shm_port_look look
    cdef uint64_t id
    cdef uint32_t index
    member.check()
    for index in range(shm_pool_ready(&member.segment, SHM_TABLE_PORTS)):
        port_see(&member.segment, index, &look)
        if look.local == local and look.word >> 4 == owner:
            id = shm_port_id_of(index, look.life)
            if shm_port_is_there(&member.segment, id):
                return id
    return 0


cdef object port_failed(Member member, shm_reply *r, uint64_t call):
    """Why a call to a port has no answer."""
    cdef shm_port_look look
    if r.served and not shm_member_lives(&member.segment, r.replier):
        return peer_dead(member, r.replier, "the call", True, service_of(member, call))
    port_see(&member.segment, r.port - 1, &look)
    owner = look.word >> 4
    if not shm_member_lives(&member.segment, owner):
        return peer_dead(member, owner, "the call: the port's owner", bool(r.served))
    return errors.Closed("the port was deleted, or has migrated without its messages, before the call was answered")


cdef class HeldBody:
    """A body that was received and not read yet."""

    cdef Member member
    cdef uint16_t format
    cdef const void *at
    cdef uint32_t size, lease
    cdef object data

    def __dealloc__(self):
        if self.lease:
            release_later(self.member, self.lease - 1)

    cdef get(self):
        cdef uint32_t lease = self.lease
        self.lease = 0
        if lease:
            return decode(self.member, self.format, self.at, self.size, lease)
        return decode(self.member, self.format, PyBytes_AS_STRING(self.data), self.size, 0)


cdef HeldBody hold_body(Member member, shm_message *m):
    cdef HeldBody held = HeldBody.__new__(HeldBody)
    held.member, held.format, held.at, held.size, held.lease = member, m.format, m.body, m.len_bytes, m.lease
    if m.lease == 0:
        held.data = PyBytes_FromStringAndSize(<const char *>m.body, m.len_bytes)
    return held


cdef int fill_of_port(Message message, PortBox box, shm_message *m, bint body, bint handling) except -1:
    """As fill(), with what only ports have; without `body` it is fetched later. `handling`: whatever its unpickling
    raises is the caller's, not the thread's."""
    message.annex = PyBytes_FromStringAndSize(<const char *>m.annex, m.annex_bytes) if m.annex != NULL else None
    message.source_id, message.group_id = m.source, m.group
    message.count = m.number
    message.port = shm_port_id_of(box.c.index, box.c.count)
    if body:
        if handling:
            message.member, message.flags, message.call, message.until = box.member, m.flags, m.call, m.deadline_ns
            if m.call and m.flags == RAW:
                message.begin()  # what it serves; another that its handler receives is what it has taken
        return fill(message, box, m, handling)
    message.member = box.member
    message.number = m.header >> 61
    message.tag = m.header & SHM_TAG_MASK or None
    message.sender_id = m.sender
    message.flags = m.flags
    message.priority, message.position = m.priority, m.position
    message.call = m.call
    message.box, message.life = box.c.index, box.c.count
    taken_by_hand(message, m)
    message.held = hold_body(box.member, m)
    return True


@cython.no_gc_clear  # see Box
cdef class PortBox(Box):
    cdef uint64_t group_id  # what is sent by this handle is addressed to that group; 0: to the port

    def reach_by(self, uint64_t group_id):
        """This handle is a group's own, for its messages to a member."""
        self.group_id = group_id
        return self

    cdef shm_port_look seen(self):
        cdef shm_port_look look
        port_see(&self.member.segment, self.c.index, &look)
        return look

    @property
    def id(self):
        return shm_port_id_of(self.c.index, self.c.count)

    @property
    def owner_id(self):
        self.use()
        return self.seen().word >> 4

    @property
    def local(self):
        self.use()
        return self.seen().local

    @property
    def site_number(self):
        self.use()
        return self.seen().site

    @property
    def is_default(self):
        self.use()
        return bool(self.seen().is_default)

    @property
    def received(self):
        self.use()
        return self.seen().received

    @property
    def priority(self):
        """None: not enabled."""
        self.use()
        cdef shm_port_look look = self.seen()
        return look.priority if shm_word_state(look.word) == SHM_PORT_ENABLED else None

    @property
    def is_there(self):
        self.use()
        return bool(shm_port_is_there(&self.member.segment, shm_port_id_of(self.c.index, self.c.count)))

    cdef object what(self):
        return f"port {shm_port_id_of(self.c.index, self.c.count):#x}"

    cdef object unreachable(self):
        """Why nothing can be sent there."""
        if not can_act(self.member):
            return errors.Closed("the system is closed in this process")
        if not self.opened:
            return errors.Closed("the port was closed in this process")
        owner = self.seen().word >> 4
        if not shm_member_lives(&self.member.segment, owner):
            return errors.Unreachable(f"{self.what()}: {peer_dead(self.member, owner, 'its owner')}")
        return errors.Unreachable(f"{self.what()} was deleted")

    cdef int own(self, int status) except -1:
        """Raise what an operation of the owner was refused with."""
        if status == SHM_NO_PORT:
            raise errors.NoPort(f"{self.what()} is gone, or is another actor's")
        if status == SHM_INVALID:
            if self.seen().is_default:
                raise errors.InvalidArgument(f"{self.what()} is its actor's default port, which is neither deleted nor migrated")
            raise errors.InvalidArgument(f"{self.what()} has a handler, which alone receives its messages; disconnect it first")
        if status:
            refuse(status, self.what())
        return 0

    cdef forget(self):
        """It is not enabled any more; or it is, because it came back meanwhile and another thread did that."""
        cdef shm_port_look look = self.seen()
        if shm_word_state(look.word) != SHM_PORT_ENABLED or look.word >> 4 != shm_member_id_self(&self.member.c):
            self.member.enabled.pop(self.c.index, None)

    def enable_with(self, uint32_t priority):
        self.use()
        cdef dict enabled = self.member.enabled
        cdef uint32_t index = self.c.index
        try:
            kept = open_port(self.member, shm_port_id_of(index, self.c.count), type(self))
        except errors.Unreachable as error:
            raise errors.NoPort(str(error)) from None
        before = enabled.get(index)
        enabled[index] = kept  # first: whoever waits for any looks here when the core says that there is another
        try:
            self.own(shm_port_enable(self.use(), &self.c, priority))
            if index not in enabled:  # another thread had given it away at this moment, and it has come back
                enabled[index] = kept
                self.own(shm_port_enable(self.use(), &self.c, priority))
        except BaseException:
            if before is not None:
                enabled[index] = before
            if can_act(self.member):
                self.forget()
            raise

    def disable(self):
        self.own(shm_port_disable(self.use(), &self.c))
        self.forget()

    def handle(self, bint handled):
        cdef int status = shm_port_handle(self.use(), &self.c, handled)
        if not handled and status == SHM_INVALID:
            raise errors.InvalidArgument(f"{self.what()} has no handler")
        self.own(status)
        self.forget()

    def delete(self):
        cdef shm_thread *t = self.use()
        cdef int status
        self.go_in()
        with nogil:
            status = shm_port_delete(t, &self.c)
        self.come_out(t)
        self.own(status)
        self.forget()

    def migrate_to(self, uint64_t to, bint drops):
        """(number of the message that would have come next, its local number there)."""
        cdef shm_thread *t = self.use()
        cdef uint64_t number = 0
        cdef uint32_t local = 0
        cdef int status
        self.go_in()
        with nogil:
            status = shm_port_migrate(t, &self.c, to, drops, &number, &local)
        self.come_out(t)
        if status == SHM_INVALID and to == shm_member_id_self(&self.member.c):
            raise errors.InvalidArgument(f"{self.what()} is this process's already")
        if status == SHM_PEER_DEAD:
            self.forget()
            raise peer_dead(self.member, to, f"{self.what()}: its new owner")
        self.own(status)
        self.forget()
        return number, local

    cdef uint64_t source_of(self, PortBox source) except? 1:
        """The id of the port that a message is sent from: one of this process's."""
        if source is None:
            return 0
        if source.member is not self.member or source.owner_id != shm_member_id_self(&self.member.c):
            raise errors.AccessDenied(f"{source.what()} is another actor's; a message is sent from a port of one's own")
        return shm_port_id_of(source.c.index, source.c.count)

    cdef int mark(self, shm_message *m, bytes annex, PortBox source) except -1:
        """What goes with a body. The annex is to live until it is sent."""
        m.source, m.group, m.annex, m.annex_bytes = self.source_of(source), self.group_id, NULL, 0
        if annex is None:
            return 0
        if PyBytes_GET_SIZE(annex) > SHM_ANNEX_BYTES:
            raise errors.TooLarge(f"the annex is {PyBytes_GET_SIZE(annex)} bytes, the limit is {SHM_ANNEX_BYTES}")
        m.annex = PyBytes_AS_STRING(annex)
        m.annex_bytes = <uint32_t>PyBytes_GET_SIZE(annex)
        return 0

    def post_with(self, body, bytes annex=None, PortBox source=None, uint64_t tag=0, timeout=None):
        cdef shm_message m, marks
        cdef unsigned char room[PLAIN_BYTES]
        cdef uint64_t deadline = deadline_of(timeout)
        self.use()
        self.mark(&marks, annex, source)  # refused before anything is encoded
        m.header = shm_header_make(SHM_KIND_CAST, tag)
        m.call = 0
        m.flags = 0
        kept = encode(self.member, body, &m, self.c.body_bytes, room, deadline)
        put_marks(&m, &marks)
        self.deliver(&m, timeout, body, deadline)

    def call_with(self, body, bytes annex=None, PortBox source=None, uint64_t tag=0, timeout=None):
        cdef shm_message marks
        self.mark(&marks, annex, source)
        return call_box(self, body, 0, timeout, tag, None, None, None, &marks)

    def receive_many(self, max=None, timeout=None):
        raise errors.NotSupported("a port's messages are received one by one, see Port.receive")

    def receive_bounded(self, capacity, timeout=None):
        raise errors.NotSupported("see Port.receive, which has a capacity")

    def submit_with(self, body, bytes annex=None, PortBox source=None, uint64_t tag=0, timeout=None):
        cdef shm_message marks
        self.mark(&marks, annex, source)
        return submit_box(self, body, 0, timeout, tag, None, None, None, &marks)

    def take_from(self, timeout=None, bint body=True, bint handling=False, int64_t capacity=-1, list into=None):
        """The next message; `handling`: for its handler."""
        cdef shm_message m
        cdef shm_filter f
        cdef uint64_t deadline = deadline_of(timeout)
        cdef int status
        cdef Message message = Message.__new__(Message)  # first: no Python code runs between receiving and reading
        set_filter(&f, ANYTHING, -1, ANYTHING)
        f.too_large = capacity + 1
        while True:
            if handling:
                self.use().port_mode = SHM_PORT_HANDLER
            try:
                status = self.fetch(&f, &m, timeout, &deadline)
            finally:
                if handling and can_act(self.member):
                    context(self.member).port_mode = SHM_PORT_DIRECT
            if status:
                raise self.nothing(status, timeout, "")
            if fill_of_port(message, self, &m, body, handling):
                return handed(message, into)


cdef PortBox reopened(Member member, PortBox port, uint64_t deadline):
    """An enabled port whose handle here was closed by whom it was given to; None: it is gone."""
    try:
        fresh = open_until(member, shm_port_id_of(port.c.index, port.c.count), type(port), deadline)
    except errors.Unreachable:
        fresh = None
    if member.enabled.get(port.c.index) is port:
        if fresh is None:
            del member.enabled[port.c.index]
        else:
            member.enabled[port.c.index] = fresh
    return fresh


cdef PortBox opened_again(Member member, PortBox port):
    """A handle for who has received from a port whose handle another thread has closed meanwhile; the closed one when there
    is none: the message is his all the same."""
    try:
        fresh = reopened(member, port, shm_clock_ns() + PATIENCE_NS)
    except Exception:
        fresh = None
    return port if fresh is None else fresh


cdef list ports_in_use(Member member, uint64_t deadline):
    """The enabled ports of this process, open; a poll passes over one that somebody who was stopped is opening."""
    cdef PortBox port
    found = []
    for entry in tuple(member.enabled.values()):
        port = entry
        if not port.opened:
            try:
                port = reopened(member, port, deadline if deadline else shm_clock_ns() + PATIENCE_NS)
            except errors.Timeout:
                if deadline:
                    raise
                port = None
        if port is not None:
            found.append(port)
    return found


def take_from_any(Member member not None, timeout=None, bint body=True, int64_t capacity=-1, list into=None):
    """(port, message): the oldest message of the most urgent of this process's enabled ports."""
    cdef uint64_t deadline = deadline_of(timeout), changes = 0
    cdef shm_box **boxes
    cdef shm_message m
    cdef uint32_t which = 0, count
    cdef int status
    cdef shm_thread *t
    cdef PortBox port
    cdef Message message = Message.__new__(Message)  # first: no Python code runs between receiving and reading
    while True:
        t = context(member)
        if deadline != 0:
            check_abort(t)
        status = shm_desk_open(t, &changes)
        if status:
            refuse(status, "a wait for any port")
        used = ports_in_use(member, deadline)
        t = context(member)
        boxes = <shm_box **>malloc((len(used) + 1) * sizeof(shm_box *))
        if boxes == NULL:
            raise MemoryError()
        count = 0
        for port in used:  # from here to the core no Python code runs
            if not port.opened:
                break
            boxes[count] = &port.c
            count += 1
        if count < <uint32_t>len(used):
            free(boxes)
            continue
        for port in used:
            port.go_in()
        member.inside += 1  # also when there is no port
        with nogil:
            status = shm_port_receive_any(t, boxes, count, changes, capacity + 1, &m, &which, deadline)
        member.inside -= 1
        free(boxes)
        for port in used:
            port.come_out(t)
        if status == SHM_OK:
            port = used[which]
            if m.call and is_passed_over(&port.c, t, &m):
                if m.lease:
                    shm_lease_recycle(t, m.lease - 1)
                continue
            if fill_of_port(message, port, &m, body, False):
                handed(message, into)
                return port if port.opened else opened_again(member, port), message
        elif status == SHM_INTERRUPTED:
            raise_interrupt()
        elif status == SHM_ABORTED:
            raise_abort(t)
        elif status == SHM_EMPTY:
            raise errors.MailboxEmpty("no message is there in any enabled port")
        elif status == SHM_TOO_SMALL:
            raise errors.BufferTooSmall(f"the next message has {m.len_bytes} bytes, the buffer {capacity}; it was kept",
                                        needed=m.len_bytes)
        elif status == SHM_TIMEOUT:
            raise errors.Timeout(f"no message came within {timeout} s to any of the {count} enabled ports of this process")
        else:
            refuse(status, "a receive from any port")


# ---- groups ----------------------------------------------------------------------------------------------------

@cython.no_gc_clear  # see Box
cdef class GroupView:
    cdef shm_group_view c
    cdef readonly Member member
    cdef bint opened
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("use PortGroup.create or PortGroup.open")

    def __dealloc__(self):
        if self.opened and self.c.group != NULL:
            release_later(self.member, self.c.lease)

    @staticmethod
    def make(Member member not None, uint64_t key, cls=None):
        cdef GroupView group = (cls or GroupView).__new__(cls or GroupView)
        member.check()
        cdef int status = shm_group_make(context(member), &group.c, key)
        if status == SHM_NO_MEMORY:
            raise out_of_memory(member, 4096)
        if status:
            refuse(status, "a new group")
        group.member, group.opened = member, True
        return group

    @staticmethod
    def open_in(Member member not None, uint32_t index, uint64_t life, cls=None, timeout=None):
        cdef GroupView group = (cls or GroupView).__new__(cls or GroupView)
        cdef uint64_t deadline = deadline_of(timeout)
        member.check()
        cdef int status = shm_group_open(context(member), &group.c, index, life)
        while status == SHM_BUSY:
            status = shm_group_open(give_way(member, deadline, f"group {index}"), &group.c, index, life)
        if status:
            refuse(status, f"group {index}")
        group.member, group.opened = member, True
        return group

    cdef shm_thread *use(self) except NULL:
        if not self.opened:
            if self.member is not None:
                self.member.check()
            raise errors.Closed("the group is closed in this process")
        cdef shm_thread *t = context(self.member)
        if not self.opened:
            raise errors.Closed("the group is closed in this process")
        return t

    @property
    def index(self):
        return self.c.index

    @property
    def life(self):
        return self.c.count

    @property
    def closed(self):
        if not self.opened or not self.member.joined or self.member.c.closed:
            return True
        return bool(shm_group_is_closed(&self.c))

    cdef int done(self, int status, str what) except -1:
        if status == SHM_REFUSED:
            raise errors.AccessDenied("the key is not the group's")
        if status == SHM_CLOSED:
            raise errors.Closed("the group was destroyed")
        if status == SHM_LIMIT:
            raise errors.LimitExceeded(f"the group has {SHM_GROUP_PORTS} members, its limit")
        if status == SHM_NOT_FOUND:
            raise errors.NotFound(what)
        if status:
            refuse(status, "a group")
        return 0

    def insert_port(self, uint64_t key, uint64_t port):
        self.done(shm_group_insert(self.use(), &self.c, key, port), f"port {port:#x}: there is no such port, or no more")

    def remove_port(self, uint64_t key, uint64_t port):
        self.done(shm_group_remove(self.use(), &self.c, key, port), f"port {port:#x} is no member of the group")

    def destroy_with(self, uint64_t key):
        self.done(shm_group_destroy(self.use(), &self.c, key), "")

    def member_ids(self):
        cdef uint64_t ports[SHM_GROUP_PORTS]
        cdef shm_thread *t = self.use()
        if shm_group_is_closed(&self.c):
            raise errors.Closed("the group was destroyed")
        cdef uint32_t i, count = shm_group_members(t, &self.c, ports)
        return [ports[i] for i in range(count)]

    def take_turn(self):
        self.use()
        return shm_group_turn(&self.c)

    def release(self):
        cdef shm_thread *t
        if not self.opened:
            return
        t = context(self.member) if can_act(self.member) else NULL
        self.opened = False
        if t != NULL:
            shm_group_release(t, &self.c)
