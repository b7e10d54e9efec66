# Sealed memory that another user may hold, and the lanes that lie in it.

from libc.errno cimport errno

cdef extern from "<sys/mman.h>":
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t len, int protection, int flags, int fd, int64_t offset) nogil
    int munmap(void *address, size_t len) nogil

cdef extern from "transport/lane.h":
    enum:
        SHM_LANES_MAX, SHM_LANE_MAX_SLOTS, SHM_LANE_MAX_BYTES
        SHM_END_FREE, SHM_END_OPEN, SHM_END_LEFT

    struct shm_lane_posted:
        pass

    struct shm_lane_taken:
        pass

    struct shm_lane_board:
        pass

    struct shm_lane:
        shm_lane_posted *posted
        shm_lane_taken *taken
        const shm_lane_board *board
        uint32_t slots
        uint32_t slot_bytes
        bint posts

    uint64_t shm_lane_bytes(uint32_t slots, uint32_t slot_bytes) nogil
    int shm_lane_open(shm_lane *lane) nogil
    int64_t shm_lane_depth(const shm_lane *lane) nogil
    int64_t shm_lane_count(const shm_lane *lane) nogil
    int shm_lane_post(shm_lane *lane, const void *body, uint64_t len_bytes) nogil
    int shm_lane_next(const shm_lane *lane, uint32_t *len_bytes) nogil
    void shm_lane_take(shm_lane *lane, void *into, uint32_t len_bytes) nogil
    void shm_lane_wait(shm_lane **lanes, uint32_t count, const shm_lane_board *board, uint32_t seen, uint64_t ns) nogil
    void shm_board_reader(shm_lane_board *board, uint32_t state) nogil
    void shm_board_poster(shm_lane_board *board, uint32_t lane, uint32_t uid, uint32_t state) nogil

cdef extern from *:
    """
    static uint32_t shm_board_bell(const struct shm_lane_board *b) { return atomic_load(&b->bell); }
    static uint32_t shm_board_reader_of(const struct shm_lane_board *b) { return atomic_load(&b->reader); }
    static uint64_t shm_board_poster_of(const struct shm_lane_board *b, uint32_t i) { return atomic_load(&b->posters[i]); }
    static size_t shm_board_size(void) { return sizeof(struct shm_lane_board); }
    static size_t shm_taken_size(void) { return sizeof(struct shm_lane_taken); }
    """
    uint32_t board_bell "shm_board_bell"(const shm_lane_board *b) nogil
    uint32_t board_reader_of "shm_board_reader_of"(const shm_lane_board *b) nogil
    uint64_t board_poster_of "shm_board_poster_of"(const shm_lane_board *b, uint32_t i) nogil
    size_t board_size "shm_board_size"() nogil
    size_t taken_size "shm_taken_size"() nogil

LANES_MAX = SHM_LANES_MAX
LANE_MAX_SLOTS = SHM_LANE_MAX_SLOTS
LANE_MAX_BYTES = SHM_LANE_MAX_BYTES
BOARD_BYTES = board_size()
TAKEN_BYTES = taken_size()
END_FREE = SHM_END_FREE
END_OPEN = SHM_END_OPEN
END_LEFT = SHM_END_LEFT


def memory_free():
    """What the control group, with those above it, has left, in bytes; None: it has no limit."""
    cdef uint64_t left
    with nogil:
        left = shm_cgroup_free(NULL)
    return None if left == <uint64_t>-1 else left


def lane_bytes(uint32_t slots, uint32_t slot_bytes):
    return shm_lane_bytes(slots, slot_bytes)


cdef class Mapping:
    """So many bytes of a file, mapped until the last view of them goes. The descriptor is not kept."""
    cdef unsigned char *base
    cdef readonly Py_ssize_t nbytes
    cdef readonly bint writable

    def __cinit__(self, int fd, Py_ssize_t nbytes, bint writable):
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        cdef void *base
        if nbytes < 1:
            raise errors.InvalidArgument(f"nbytes is {nbytes}, the least is 1")
        with nogil:
            base = mmap(NULL, nbytes, protection, MAP_SHARED, fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.base, self.nbytes, self.writable = <unsigned char *>base, nbytes, writable

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.nbytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.nbytes, not self.writable, flags)


cdef class Board:
    """Who has the ends of a queue; written by its owner, read by all."""
    cdef Mapping mapping
    cdef shm_lane_board *c

    def __cinit__(self, Mapping mapping not None):
        if mapping.nbytes < <Py_ssize_t>board_size():
            raise errors.Corrupted(f"a board of {mapping.nbytes} bytes; it has {board_size()}")
        self.mapping, self.c = mapping, <shm_lane_board *>mapping.base

    @property
    def bell(self):
        return board_bell(self.c)

    @property
    def reader(self):
        return board_reader_of(self.c)

    def poster(self, uint32_t lane):
        cdef uint64_t word
        if lane >= SHM_LANES_MAX:
            raise errors.InvalidArgument(f"lane {lane}; there are {SHM_LANES_MAX} at most")
        word = board_poster_of(self.c, lane)
        return word >> 32, word & 0xFFFFFFFF

    def set_reader(self, uint32_t state):
        self.check()
        shm_board_reader(self.c, state)

    def set_poster(self, uint32_t lane, uint32_t uid, uint32_t state):
        self.check()
        if lane >= SHM_LANES_MAX:
            raise errors.InvalidArgument(f"lane {lane}; there are {SHM_LANES_MAX} at most")
        shm_board_poster(self.c, lane, uid, state)

    cdef int check(self) except -1:
        if not self.mapping.writable:
            raise errors.AccessDenied("only its owner writes a board")
        return 0


cdef class Lane:
    """One end of a lane. Threads may share it: what moves it does not give the interpreter up."""
    cdef shm_lane c
    cdef Mapping posted, taken
    cdef Board board
    cdef list given_back

    def __cinit__(self, Mapping posted not None, Mapping taken not None, Board board not None, uint32_t slots,
                  uint32_t slot_bytes, bint posts):
        if not 1 <= slots <= SHM_LANE_MAX_SLOTS or not 1 <= slot_bytes <= SHM_LANE_MAX_BYTES:
            raise errors.Corrupted(f"a lane of {slots} slots of {slot_bytes} bytes")
        if posted.nbytes < <Py_ssize_t>shm_lane_bytes(slots, slot_bytes) or taken.nbytes < <Py_ssize_t>taken_size():
            raise errors.Corrupted(f"a lane of {slots} slots of {slot_bytes} bytes in {posted.nbytes} bytes")
        if not (posted if posts else taken).writable:
            raise errors.AccessDenied("a lane is written at both of its ends")
        self.posted, self.taken, self.board = posted, taken, board
        self.c.posted, self.c.taken = <shm_lane_posted *>posted.base, <shm_lane_taken *>taken.base
        self.c.board = board.c
        self.given_back = []
        self.c.slots, self.c.slot_bytes, self.c.posts = slots, slot_bytes, posts
        cdef int status = shm_lane_open(&self.c)
        if status:
            refuse(status, "the positions of a lane")

    @property
    def depth(self):
        """Messages posted and not taken; raises Corrupted."""
        cdef int64_t depth = shm_lane_depth(&self.c)
        if depth < 0:
            refuse(<int>depth, "the positions of a lane")
        return depth + len(self.given_back)

    @property
    def kept(self):
        return len(self.given_back)

    def post(self, body):
        """Post it: False when the lane is full; raises TooLarge, Corrupted."""
        cdef Py_buffer view
        cdef int status
        if not self.c.posts:
            raise errors.AccessDenied("the reader of a lane does not post")
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            status = shm_lane_post(&self.c, view.buf, <uint64_t>view.len)
            if status == SHM_TOO_LARGE:
                raise errors.TooLarge(f"the message is {view.len} bytes; the queue takes {self.c.slot_bytes} at most")
        finally:
            PyBuffer_Release(&view)
        if status != SHM_OK and status != SHM_FULL:
            refuse(status, "the positions of a lane")
        return status == SHM_OK

    def take(self, list into not None):
        """The next message goes to the end of ``into`` before it leaves the lane; False: there is none."""
        cdef uint32_t len_bytes = 0
        cdef object body
        if self.c.posts:
            raise errors.AccessDenied("the poster of a lane does not take")
        if self.given_back:
            into.append(self.given_back[0])
            del self.given_back[0]
            return True
        cdef int status = shm_lane_next(&self.c, &len_bytes)
        if status == SHM_EMPTY:
            return False
        if status:
            refuse(status, "a message of a lane")
        body = PyBytes_FromStringAndSize(NULL, len_bytes)
        into.append(body)
        shm_lane_take(&self.c, PyBytes_AS_STRING(body), len_bytes)
        return True

    def give_back(self, list messages not None):
        """These were taken and nobody has them: they come first again. The list is empty afterwards."""
        self.given_back[:0] = messages
        messages.clear()


def lane_count(Mapping posted not None, Mapping taken not None, uint32_t slots, uint32_t slot_bytes):
    cdef shm_lane lane
    if posted.nbytes < <Py_ssize_t>shm_lane_bytes(slots, slot_bytes) or taken.nbytes < <Py_ssize_t>taken_size():
        raise errors.Corrupted(f"a lane of {slots} slots of {slot_bytes} bytes in {posted.nbytes} bytes")
    lane.posted, lane.taken = <shm_lane_posted *>posted.base, <shm_lane_taken *>taken.base
    lane.slots, lane.slot_bytes = slots, slot_bytes
    cdef int64_t count = shm_lane_count(&lane)
    if count < 0:
        refuse(<int>count, "the positions of a lane")
    return count


def wait_for_lanes(list lanes not None, Board board not None, uint32_t seen, double seconds):
    """Wait until there is something to do in one of these ends, or the board's bell is not ``seen``; or so long."""
    cdef shm_lane *ends[64]
    cdef uint32_t count = 0
    cdef uint64_t ns = <uint64_t>(max(0.0, min(seconds, 60.0)) * 1e9)
    for lane in lanes:
        if count == SHM_LANES_MAX:
            break
        ends[count] = &(<Lane?>lane).c
        count += 1
    cdef shm_lane_board *c = board.c
    held = tuple(lanes)
    with nogil:
        shm_lane_wait(ends, count, c, seen, ns)
    del held
