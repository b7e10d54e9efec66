# Bodies: Python objects to bytes, blocks and handles, and back.
#
# BYTES     the bytes themselves
# PLAIN     small built-in values, inline, see plain.h
# PICKLE    pickle 5, remade by cloudpickle when it fails or names __main__
# HANDLES   in a block: the handles of shared arrays (struct shm_handle, as many as the block says), then a pickle
# ERROR     what pack_error made of an exception

cdef enum:
    BYTES = 0
    PICKLE = 1
    HANDLES = 2
    ERROR = 3
    PLAIN = 4

cdef extern from "plain.h":
    """
    static PyObject *shm_plain_value(const void *bytes, uint32_t n) { return shm_plain_get(bytes, n); }
    """
    enum:
        PLAIN_BYTES "SHM_PLAIN_BYTES"
    PyObject *plain_error "shm_plain_error"
    size_t plain_put "shm_plain_put"(object x, unsigned char *room, size_t limit)
    size_t plain_put_call "shm_plain_put_call"(object name, object arguments, object keywords, unsigned char *room,
                                              size_t limit)
    object plain_get "shm_plain_value"(const void *data, uint32_t n)
    int plain_get_call "shm_plain_get_call"(const unsigned char *data, size_t n, object known, PyObject **name,
                                            PyObject **arguments, PyObject **keywords) except -1

cdef class Method

cdef object corrupted = errors.Corrupted
plain_error = <PyObject *>corrupted
cdef object c_dumps = pickle.dumps
cdef object c_loads = pickle.loads
cdef object ndarray = None       # numpy's, as soon as anybody has imported numpy
cdef object reducers = None      # dispatch table of our pickler
cdef Py_ssize_t reducers_seen = -1


cdef class Encoding:
    """One body on its way out: what refers to shared memory."""

    cdef Member member
    cdef list leases       # lease indexes of this member, one for each shared array's block
    cdef dict blocks       # block -> position in leases

    cdef drop(self):
        leases, self.leases = self.leases, []
        for lease in leases:
            release_later(self.member, lease)


cdef class Decoding:
    """One body on its way in, whose block has handles."""

    cdef Member member
    cdef const unsigned char *base
    cdef uint32_t handles


cdef bint is_builtin(object x, int depth):
    """Only built-in values, so that pickle's C function does it alone."""
    kind = type(x)
    if kind is int or kind is float or kind is str or kind is bytes or kind is bool or x is None:
        return True
    if depth == 0:
        return False
    if kind is tuple or kind is list:
        if len(x) > 32:
            return False
        for item in x:
            if not is_builtin(item, depth - 1):
                return False
        return True
    if kind is dict:
        if len(x) > 32:
            return False
        for key, value in (<dict>x).items():
            if not is_builtin(key, 0) or not is_builtin(value, depth - 1):
                return False
        return True
    return False


cdef Member member_of_address(uintptr_t address, bint *writable):
    cdef Member member
    for member in open_members:
        if <uintptr_t>member.segment.base <= address < <uintptr_t>member.segment.base + member.segment.bytes:
            writable[0] = True
            return member
        if <uintptr_t>member.segment.view <= address < <uintptr_t>member.segment.view + member.segment.bytes:
            writable[0] = False
            return member
    return None


cdef int64_t block_at(Member member, uintptr_t address, uint64_t *offset):
    """The block that an address lies in, -1: none."""
    cdef uint64_t at
    cdef uint32_t c, i, index
    if <uintptr_t>member.segment.base <= address < <uintptr_t>member.segment.base + member.segment.bytes:
        at = address - <uintptr_t>member.segment.base
    else:
        at = address - <uintptr_t>member.segment.view
    for c in range(33):
        index = c << 24
        if not shm_block_ok(&member.segment, index):
            continue
        start = shm_block_offset(&member.segment, index)
        size = shm_block_class_bytes(index)
        if at >= start and at < start + size * shm_pool_ready(&member.segment, SHM_TABLE_BLOCKS + c):
            i = (at - start) // size
            offset[0] = at - start - i * size
            return c << 24 | i
    return -1


cdef extern from "memory/layout.h":
    enum:
        SHM_TABLE_BLOCKS


def shared_block(array):
    cdef bint writable
    cdef uint64_t offset = 0
    if ndarray is None:
        find_numpy()
    if ndarray is None or not isinstance(array, ndarray):
        return None
    low, high = bounds_of(array)
    cdef Member member = member_of_address(low, &writable)
    if member is None:
        return None
    block = block_at(member, low, &offset)
    return None if block < 0 else (block, offset)


cdef tuple bounds_of(array):
    """First address and one past the last of an array's bytes."""
    cdef intptr_t_like low, high
    address = array.__array_interface__["data"][0]
    low = high = 0
    for length, stride in zip(array.shape, array.strides):
        if length == 0:
            return address, address
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return address + low, address + high + array.itemsize


ctypedef int64_t intptr_t_like


def _reduce_array(array):
    """How our pickler sees an ndarray: a handle when it lies in shared memory of the system, else as usual."""
    cdef Encoding out
    cdef bint writable = False
    cdef uint64_t offset = 0
    cdef uint32_t lease
    if coding == NULL:
        return array.__reduce_ex__(5)
    out = <Encoding>coding
    low, high = bounds_of(array)
    if low == high or member_of_address(low, &writable) is not out.member or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    block = block_at(out.member, low, &offset)
    if block < 0 or offset + (high - low) > shm_block_class_bytes(block):
        return array.__reduce_ex__(5)
    at = out.blocks.get(block)
    if at is None:
        hold_block(out.member, block, &lease, "the block of a shared array")
        at = out.blocks[block] = len(out.leases)
        out.leases.append(lease)
    first = array.__array_interface__["data"][0]
    return _rebuild_array, (at, offset + (first - low), high - low, array.shape, array.strides, array.dtype)


def _rebuild_array(uint32_t at, uint64_t start, uint64_t extent, shape, strides, dtype):
    """The other side of _reduce_array: a read-only array over the read-only mapping."""
    cdef Decoding within
    cdef uint32_t lease, block
    cdef const shm_handle *handles
    if coding == NULL:
        raise errors.Corrupted("a handle of a shared array outside a message")
    within = <Decoding>coding
    if at >= within.handles:
        raise errors.Corrupted(f"handle {at} of {within.handles}")
    handles = <const shm_handle *>within.base
    cdef uint32_t source = handles[at].lease, birth = handles[at].birth
    cdef Member member = within.member
    if source == 0 or not shm_index_ok(&member.segment, SHM_TABLE_LEASES, source - 1):
        raise errors.Corrupted("a handle names no lease")
    if shm_lease_birth(&member.segment, source - 1) != birth:
        raise errors.Corrupted("a handle names a lease that has gone")
    if not shm_lease_find(&member.segment, source - 1, 0, &block):
        raise errors.Corrupted("a handle names no block")
    if start > shm_block_class_bytes(block) or extent > shm_block_class_bytes(block) - start:
        raise errors.Corrupted(f"an array of {extent} bytes at {start} of a block of {shm_block_class_bytes(block)}")
    hold_block(member, block, &lease, "the block of a shared array")
    held = new_lease(member, lease, shm_block_class_bytes(block), True)
    # numpy checks shape, strides and start against the buffer
    return ndarray(shape, dtype, held, start, strides)


cdef extern from "memory/layout.h":
    enum:
        SHM_TABLE_LEASES


cdef int find_numpy() except -1:
    global ndarray
    import sys
    module = sys.modules.get("numpy")
    if module is not None:
        ndarray = module.ndarray
    return 0


cdef object dispatch_table():
    global reducers, reducers_seen
    if reducers_seen != len(copyreg.dispatch_table) or ndarray is None:
        find_numpy()
        reducers = dict(copyreg.dispatch_table)
        reducers_seen = len(reducers)
        if ndarray is not None:
            reducers[ndarray] = _reduce_array
    return reducers


cdef object io_bytes = __import__("io").BytesIO


cdef bytes pickle_with_handles(Encoding out, object body):
    """Pickle; shared arrays leave handles in `out`."""
    global coding
    cdef PyObject *outer = coding
    cdef bytes data = None
    buffer = io_bytes()
    coding = <PyObject *>out
    try:
        try:
            pickler = pickle.Pickler(buffer, 5)
            pickler.dispatch_table = dispatch_table()
            pickler.dump(body)
            data = buffer.getvalue()
        except RecursionError:
            raise
        except Exception:
            data = None
        if data is None or b"__main__" in data:
            out.drop()
            out.blocks = {}
            buffer = io_bytes()
            pickler = cloudpickle.CloudPickler(buffer, 5)
            if ndarray is None:
                find_numpy()
            if ndarray is not None:
                pickler.dispatch_table = collections.ChainMap({ndarray: _reduce_array}, *pickler.dispatch_table.maps)
            pickler.dump(body)
            data = buffer.getvalue()
    finally:
        coding = outer
    return data


cdef object encode(Member member, object body, shm_message *m, uint32_t inline_bytes, unsigned char *room):
    """Fill in body, len_bytes, format and lease of a message. What it points to is `room` (PLAIN_BYTES, for plain
    values), the body itself, or what is returned: all to be kept until it is sent."""
    cdef size_t n
    m.lease = 0
    if type(body) is bytes:
        m.format = BYTES
        if PyBytes_GET_SIZE(body) <= <Py_ssize_t>inline_bytes:
            m.body = PyBytes_AS_STRING(body)
            m.len_bytes = PyBytes_GET_SIZE(body)
            return None
        return place(member, body, m, inline_bytes, None)
    n = plain_put(body, room, inline_bytes)
    if n:
        m.format = PLAIN
        m.body = room
        m.len_bytes = n
        return None
    m.format = PICKLE
    if is_builtin(body, 3):
        return place(member, c_dumps(body, 5), m, inline_bytes, None)  # no class hides among built-in values
    cdef Encoding out = Encoding.__new__(Encoding)
    out.member = member
    out.leases = []
    out.blocks = {}
    try:
        data = pickle_with_handles(out, body)
    except BaseException:
        out.drop()
        raise
    if out.leases:
        m.format = HANDLES
    return place(member, data, m, inline_bytes, out)


cdef object encode_call(Member member, Method method, tuple args, dict kwargs, shm_message *m, uint32_t inline_bytes,
                        unsigned char *room):
    """encode() of a method call's body, which need not be made when all in it is plain."""
    cdef size_t n = plain_put_call(method.name, args, kwargs, room, inline_bytes)
    if n == 0:
        return encode(member, (method.name, args, kwargs), m, inline_bytes, room)
    m.format = PLAIN
    m.lease = 0
    m.body = room
    m.len_bytes = n
    return None


cdef object place(Member member, bytes data, shm_message *m, uint32_t inline_bytes, Encoding out):
    """Let the message point to these bytes, or to a block with them and the handles of `out`."""
    cdef shm_thread *t
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef uint32_t lease, block = 0, handles = 0
    cdef unsigned char *at
    cdef uint32_t *indexes
    cdef int status
    if n > <Py_ssize_t>BODY_LIMIT:
        if out is not None:
            out.drop()
        raise errors.TooLarge(f"the body is {n} bytes; a message carries at most {BODY_LIMIT} (send a shared array)")
    m.body = PyBytes_AS_STRING(data)
    m.len_bytes = n
    if n <= <Py_ssize_t>inline_bytes and m.format != HANDLES:
        return data
    t = context(member)
    if m.format == HANDLES:
        handles = len(out.leases)
    if n > 65536:  # its pages may have to be made
        member.inside += 1
        with nogil:
            status = shm_block_take(t, n + handles * sizeof(shm_handle), &lease)
        member.inside -= 1
        t = context(member)  # the system may have been closed meanwhile
    else:
        status = shm_block_take(t, n + handles * sizeof(shm_handle), &lease)
    if status:
        if handles:
            out.drop()
        if status == SHM_NO_MEMORY:
            raise out_of_memory(member, n)
        refuse(status, f"a block of {n} bytes")
    if not shm_lease_find(&member.segment, lease, n + handles * sizeof(shm_handle), &block):
        if handles:
            out.drop()
        release_later(member, lease)
        raise errors.Corrupted("a new block is none")
    at = member.segment.base + shm_block_offset(&member.segment, block)
    if handles:
        indexes = <uint32_t *>malloc(handles * sizeof(uint32_t))
        for i in range(handles):
            indexes[i] = out.leases[i]
        shm_handles_put(t, block, indexes, handles)
        free(indexes)
        out.leases = None
    if n > 65536:
        copy_without_gil(member, at + handles * sizeof(shm_handle), m.body, n)
    else:
        memcpy(at + handles * sizeof(shm_handle), m.body, n)
    m.len_bytes = n + handles * sizeof(shm_handle)
    m.lease = lease + 1
    m.body = NULL
    return data


cdef void copy_without_gil(Member member, void *to, const void *source, size_t n):
    member.inside += 1
    with nogil:
        memcpy(to, source, n)
    member.inside -= 1


cdef int not_sent(Member member, shm_message *m) except -1:
    """The message was refused: its block is ours again, and goes."""
    if m.lease:
        release_later(member, m.lease - 1)
        m.lease = 0
    return 0


cdef object decode(Member member, uint16_t format, const void *body, uint32_t n, uint32_t lease):
    """The object; the block, if any, goes back. `body` must not be this thread's scratch when Python code may run,
    so what is inline is copied first."""
    cdef object value
    global coding
    cdef PyObject *outer
    cdef Decoding within
    cdef uint64_t skip
    cdef uint32_t block, handles
    cdef unsigned char copy[PLAIN_BYTES]
    if lease == 0:
        if format == PLAIN:
            if n > PLAIN_BYTES:
                raise errors.Corrupted(f"a plain body of {n} bytes, more than {PLAIN_BYTES}")
            memcpy(copy, body, n)
            return plain_get(copy, n)
        data = PyBytes_FromStringAndSize(<const char *>body, n)
        if format == BYTES or format == ERROR:
            return data
        if format != PICKLE:
            raise errors.Corrupted(f"a body of format {format}, {n} bytes in place")
        return c_loads(data)
    try:
        if format == BYTES or format == ERROR:
            if n < 65536:
                return PyBytes_FromStringAndSize(<const char *>body, n)
            data = PyBytes_FromStringAndSize(NULL, n)
            copy_without_gil(member, PyBytes_AS_STRING(data), body, n)
            return data
        if format == PICKLE:
            return c_loads(PyMemoryView_FromMemory(<char *>body, n, PyBUF_READ))
        if ndarray is None:
            import numpy
            find_numpy()
        within = Decoding.__new__(Decoding)
        within.member = member
        within.base = <const unsigned char *>body
        if format != HANDLES or not shm_lease_find(&member.segment, lease - 1, n, &block):
            raise errors.Corrupted(f"a body of format {format}, {n} bytes in a block")
        handles = block_handles(shm_block_at(&member.segment, block))
        skip = <uint64_t>handles * sizeof(shm_handle)
        if skip >= n:
            raise errors.Corrupted(f"a body of {n} bytes with {handles} handles")
        within.handles = handles
        outer = coding
        coding = <PyObject *>within
        try:
            return c_loads(PyMemoryView_FromMemory(<char *>body + skip, n - skip, PyBUF_READ))
        finally:
            coding = outer
    finally:
        release_later(member, lease - 1)


cdef extern from *:
    """
    static uint32_t shm_block_handles(const struct shm_block *b) { return atomic_load(&b->handles); }
    """
    uint32_t block_handles "shm_block_handles"(const shm_block *b) nogil


def encode_size(body):
    """Bytes a body takes when it is sent, handles not counted."""
    cdef Encoding out = Encoding.__new__(Encoding)
    cdef unsigned char room[PLAIN_BYTES]
    cdef size_t n
    if type(body) is bytes:
        return len(body)
    n = plain_put(body, room, PLAIN_BYTES)
    if n:
        return n
    if is_builtin(body, 3):
        return len(c_dumps(body, 5))
    out.leases = []
    out.blocks = {}
    return len(pickle_with_handles(out, body)) if coding == NULL else 0


# ---- leases as Python sees them --------------------------------------------------------------------------------

@cython.no_gc_clear  # see Box
cdef class Lease:
    cdef Member member
    cdef uint32_t index
    cdef uint64_t serial
    cdef unsigned char *at
    cdef readonly uint64_t nbytes
    cdef readonly bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.at, self.nbytes, self.readonly, flags)

    def __dealloc__(self):
        cdef Member member = self.member
        if not can_act(member) or self.index not in member.leases:
            return
        member.leases.discard(self.index)
        release_later(member, self.index)


cdef Lease new_lease(Member member, uint32_t index, uint64_t nbytes, bint readonly):
    cdef Lease lease = Lease.__new__(Lease)
    cdef uint32_t block
    if not shm_lease_find(&member.segment, index, nbytes, &block):
        release_later(member, index)
        raise errors.Corrupted(f"{nbytes} bytes of shared memory are not where they were put")
    cdef uint64_t offset = shm_block_offset(&member.segment, block)
    lease.member = member
    lease.index = index
    lease.nbytes = nbytes
    lease.readonly = readonly
    lease.at = <unsigned char *>member.segment.view + offset if readonly else member.segment.base + offset
    member.leases.add(index)
    if member.deferred and last_serial == member.serial and can_act(member):
        release_deferred(member, <shm_thread *>last_context)
    return lease
