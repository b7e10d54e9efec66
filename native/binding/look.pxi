# What members do, for those who look: the texts of waits that give up, and observers of a system.

cdef dict WAITS = {SHM_WAIT_RECEIVE: "receive", SHM_WAIT_SEND: "send", SHM_WAIT_CELL: "call", SHM_WAIT_FINISHED: "future",
                   SHM_WAIT_FRAME: "frame", SHM_WAIT_PUBLISH: "publish", SHM_WAIT_MANY: "sync",
                   SHM_WAIT_PORT: "any port"}
cdef dict MEMBER_KINDS = {
    SHM_KIND_ROOT: "root", SHM_KIND_WORKER: "worker", SHM_KIND_ATTACHED: "attached", SHM_KIND_FORK: "fork"}
cdef dict BOX_KINDS = {SHM_BOX_ACTOR: "actor", SHM_BOX_SHARED: "shared", SHM_BOX_PERSISTENT: "persistent",
                       SHM_BOX_OFFERS: "offers", SHM_BOX_PORT: "port"}
cdef dict MEMBER_STATES = {SHM_MEMBER_JOINING: "joining", SHM_MEMBER_LIVE: "live", SHM_MEMBER_DYING: "dying"}
cdef dict PROCESS_STATES = {
    "R": "running", "S": "sleeping", "D": "in the kernel", "T": "stopped", "t": "stopped", "Z": "ended", "X": "ended",
    "I": "idle"}


def process_state(int pid, uint64_t start_time=0):
    """What the operating system says of a process; "ended" also when its number is another's by now."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "ended"
    if start_time and int(fields[19]) != start_time:
        return "ended"
    return PROCESS_STATES.get(fields[0].decode(), "unknown")


cdef str text_of(const char *text, Py_ssize_t room):
    """Text from memory that may hold anything."""
    return PyBytes_FromStringAndSize(text, room).partition(b"\0")[0].decode("utf-8", "replace")


cdef double seconds_since(uint64_t ns, uint64_t now):
    return (now - ns) / 1e9 if ns < now else 0.0


cdef list activities(const shm_segment *s, uint32_t slot, uint64_t now):
    """What the threads of a member do that say or wait for something."""
    cdef shm_activity a
    cdef uint32_t i, server
    found = []
    for i in range(shm_pool_ready(s, SHM_TABLE_PLACES)):
        if not shm_look_place(s, i, slot, &a):
            continue
        entry = {"thread": a.thread, "runs": None, "runs_for": None, "waits": None, "waits_for": None, "object": None,
                 "peer": None, "limit": None}
        if a.serving_since:
            entry["runs"] = text_of(a.what, 32)
            entry["runs_for"] = seconds_since(a.serving_since, now)
        if a.wait_kind in WAITS:
            entry["waits"] = WAITS[a.wait_kind]
            entry["waits_for"] = seconds_since(a.waits_since, now)
            entry["object"] = a.object
            if a.waits_until != SHM_FOREVER:
                entry["limit"] = (a.waits_until - now) / 1e9 if a.waits_until > now else 0.0
            if a.wait_kind == SHM_WAIT_CELL:
                server = shm_look_server(s, a.object)
                entry["peer"] = server or None
            elif a.wait_kind == SHM_WAIT_SEND and shm_index_ok(s, SHM_TABLE_BOXES, a.object):
                entry["peer"] = shm_box_at(s, a.object).owner & 0xFFFF or None
        found.append(entry)
    return found


cdef str name_of_process(const shm_segment *s, uint32_t slot):
    cdef shm_member_record *r
    if not shm_index_ok(s, SHM_TABLE_MEMBERS, slot):
        return "an unknown process"
    r = shm_member_at(s, slot)
    name = text_of(r.name, 72)
    return f"process {r.pid}" + (f" ({name})" if name else "")


cdef str activity_text(const shm_segment *s, dict entry):
    words = []
    if entry["runs"] is not None:
        words.append(f"runs {entry['runs']} for {entry['runs_for']:.1f} s")
    if entry["waits"] is not None:
        what = {"receive": f"a message in mailbox {entry['object']}", "send": f"room in mailbox {entry['object']}",
                "call": "a reply", "future": "calls that it has submitted", "frame": f"a frame of bus {entry['object']}",
                "publish": f"room on bus {entry['object']}", "sync": f"object {entry['object']}",
                "any port": "a message in any of its ports"}.get(entry["waits"], "something")
        if entry["peer"] is not None and entry["waits"] == "call":
            what += f" of {name_of_process(s, entry['peer'])}"
        words.append(f"waits for {what} for {entry['waits_for']:.1f} s")
    return " and ".join(words)


cdef str whereabouts(Member member, uint64_t id):
    """Who that is, its state, and what its threads do, for the text of an error."""
    cdef const shm_segment *s = &member.segment
    cdef uint32_t slot = id & 0xFFFF
    if not shm_index_ok(s, SHM_TABLE_MEMBERS, slot):
        return "an unknown process"
    words = [name_of_process(s, slot)]
    if not shm_member_lives(s, id):
        return words[0] + ", which has ended"
    words.append(process_state(shm_member_at(s, slot).pid, shm_member_at(s, slot).start_time))
    told = [activity_text(s, entry) for entry in activities(s, slot, shm_clock_ns())]
    words.append("which " + "; another thread ".join(told) if told else "which says nothing of what it does")
    return ", ".join(words)


cdef uint64_t own_depth(Member member, uint64_t id):
    """Messages in the mailbox of a process, for a text."""
    cdef uint32_t box
    cdef const shm_ring *ring
    if not shm_index_ok(&member.segment, SHM_TABLE_MEMBERS, id & 0xFFFF):
        return 0
    box = shm_member_at(&member.segment, id & 0xFFFF).box
    ring = shm_look_ring(&member.segment, box - 1) if box else NULL
    return shm_look_depth(ring) if ring != NULL else 0


cdef str answerer(Member member, uint64_t call, uint64_t addressee):
    """Who is to answer a call, as `whereabouts` says it, and how full his mailbox is."""
    cdef uint64_t id = addressee or shm_look_taker(&member.segment, call)
    if id == 0:
        return "nobody: it was not taken yet"
    return f"{whereabouts(member, id)}; {own_depth(member, id)} messages wait there"


cdef str describe_box(Box box):
    """Which mailbox that is, whose, in which state, how full, and what its owner does, for the text of an error."""
    cdef Member member = box.member
    cdef uint64_t owner
    if not can_act(member):
        return f"mailbox {box.c.index}"
    name = member.name_of(SHM_NAME_BOX, box.c.index, box.c.count)
    text = f"mailbox {name!r}" if name else f"mailbox {box.c.index}"
    text += ", closed, " if box.c.ring == NULL or box.c.ring.closed else ", open, "
    text += f"which holds {box.waiting()} of {box.c.capacity} messages"
    owner = shm_box_at(&member.segment, box.c.index).owner
    if box.c.envelope_at:
        owner = (<PortBox>box).seen().word >> 4
    if owner == shm_member_id_self(&member.c):
        return text + f" and is this process's, {os.getpid()}"
    return text + f" and is owned by {whereabouts(member, owner)}"


cdef object deadlock(Member member, shm_thread *t):
    """The error of a call that closes a circle of calls; its members are in the thread's scratch."""
    cdef uint64_t ids[256]
    cdef uint32_t i, count = t.cycle_count
    memcpy(ids, t.scratch, count * sizeof(uint64_t))
    cycle, names = [], []
    for i in range(count):
        cycle.append(make_ref(member, ids[i]))
        names.append(name_of_process(&member.segment, ids[i] & 0xFFFF))
    text = " -> ".join([*names, names[0]])
    return errors.Deadlock(f"these calls wait for each other: {text}", cycle=tuple(cycle))


# ---- observers -------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #include <stdatomic.h>
    static uint64_t shm_record_field(const struct shm_member_record *r, int which) {
        const _Atomic uint64_t *at[] = {&r->pid_namespace, &r->start_time};
        return atomic_load(at[which]);
    }
    static uint32_t shm_record_door(const struct shm_member_record *r) { return atomic_load(&r->door); }
    """
    uint64_t record_field "shm_record_field"(const shm_member_record *r, int which) nogil
    uint32_t record_door "shm_record_door"(const shm_member_record *r) nogil


cdef class Observer:
    """An image of a system as it was at one moment, by one who is no member; see native/transport/look.h."""

    cdef shm_segment image
    cdef readonly uint64_t taken_ns

    def __cinit__(self, int fd):
        self.image.fd = -1
        cdef int status
        with nogil:
            status = shm_look_open(&self.image, fd)
        if status == SHM_BUSY:
            raise errors.NotFound("the segment is not ready: its creator is at work, or died there")
        if status:
            refuse(status, "the segment")
        self.taken_ns = shm_clock_ns()

    def __dealloc__(self):
        shm_look_close(&self.image)

    def header(self):
        cdef shm_header *h = self.image.header
        cdef shm_arena_counts counts
        shm_arena_statistics(&self.image, &counts)
        return {
            "state": "closed" if h.state == 3 else "ready", "created_ns": h.created_ns, "max_members": h.max_members,
            "memory_limit": h.memory_limit, "reserved_bytes": counts.reserved_bytes, "used_bytes": counts.used_bytes,
            "undelivered": shm_box_undelivered(&self.image), "rescued": h.rescued, "reaped": h.reaped,
            "keeper": shm_word_owner(h.keeper) or None, "keeper_rounds": h.keeper_rounds, "root": h.root & 0xFFFF or None,
        }

    def members(self):
        cdef const shm_segment *s = &self.image
        cdef shm_member_record *r
        cdef const shm_ring *ring
        cdef uint32_t slot, box, lease, owner, block
        cdef uint64_t word
        held = {}
        for lease in range(shm_pool_ready(s, SHM_TABLE_LEASES)):
            word = shm_lease_at(s, lease).word
            block = <uint32_t>(shm_lease_at(s, lease).block & 0xFFFFFFFF)
            owner = shm_word_owner(word)
            if shm_word_state(word) and block and shm_block_ok(s, block - 1):
                held.setdefault(owner, set()).add(block - 1)
        found = []
        for slot in range(1, shm_pool_ready(s, SHM_TABLE_MEMBERS)):
            r = shm_member_at(s, slot)
            word = r.word
            if shm_word_state(word) == SHM_MEMBER_FREE:
                continue
            box = r.box
            ring = shm_look_ring(s, box - 1) if box else NULL
            found.append({
                "slot": slot, "id": shm_member_id_of(word, slot), "identity": r.identity, "pid": r.pid,
                "name": text_of(r.name, 72), "kind": MEMBER_KINDS.get(r.kind, "?"),
                "state": MEMBER_STATES.get(shm_word_state(word), "?"), "start_time": record_field(r, 1),
                "pid_namespace": record_field(r, 0), "creator": r.creator & 0xFFFF or None,
                "box": box - 1 if box else None, "depth": shm_look_depth(ring) if ring != NULL else None,
                "capacity": ring.capacity if ring != NULL else None, "failed_casts": r.failed_casts,
                "memory_bytes": sum([shm_block_class_bytes(block) for block in held.get(slot, ())]),
                "door": <int64_t>record_door(r) - 1, "activities": activities(s, slot, self.taken_ns),
            })
        return found

    def leases(self):
        cdef const shm_segment *s = &self.image
        cdef uint32_t lease, block, owner
        cdef uint64_t word
        found = []
        for lease in range(shm_pool_ready(s, SHM_TABLE_LEASES)):
            word = shm_lease_at(s, lease).word
            if not shm_word_state(word):
                continue
            block = <uint32_t>(shm_lease_at(s, lease).block & 0xFFFFFFFF)
            owner = shm_word_owner(word)
            known = block and shm_block_ok(s, block - 1)
            found.append({"lease": lease, "owner": owner if owner != SHM_IN_FLIGHT else None,
                          "block": block - 1 if known else None,
                          "bytes": shm_block_class_bytes(block - 1) if known else 0})
        return found

    def mailboxes(self):
        cdef const shm_segment *s = &self.image
        cdef const shm_ring *ring
        cdef uint32_t i
        cdef uint64_t name[10], owner
        cdef shm_port_look port
        cdef shm_name_record *n
        names = {}
        for i in range(shm_pool_ready(s, SHM_TABLE_NAMES)):
            n = shm_name_at(s, i)
            if shm_word_state(n.word) == 3 and n.kind == SHM_NAME_BOX:
                memset(name, 0, sizeof(name))
                memcpy(name, n.name, 72)
                names[n.object, n.life] = text_of(<const char *>name, 72)
        found = []
        for i in range(shm_pool_ready(s, SHM_TABLE_BOXES)):
            ring = shm_look_ring(s, i)
            if ring != NULL:
                owner = shm_box_at(s, i).owner
                if shm_box_at(s, i).kind == SHM_BOX_PORT and shm_index_ok(s, SHM_TABLE_PORTS, i):
                    port_see(s, i, &port)
                    owner = port.word >> 4
                found.append({
                    "index": i, "name": names.get((i, shm_word_count(shm_box_at(s, i).word))),
                    "kind": BOX_KINDS.get(shm_box_at(s, i).kind, "?"),
                    "owner": owner & 0xFFFF, "depth": shm_look_depth(ring), "capacity": ring.capacity,
                    "closed": bool(ring.closed),
                })
        return found
