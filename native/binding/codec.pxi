# Bodies: Python objects to bytes, blocks and handles, and back.
#
# BYTES     the bytes themselves
# PLAIN     small built-in values and arrays, inline, see plain.h
# PICKLE    pickle 5, remade by cloudpickle when it fails or names __main__
# HANDLES   in a block: the handles of other blocks (struct shm_handle, as many as the block says), then the number of
#           out-of-band buffers and a `buffer_entry` for each, then a pickle
# ARRAYS    in a block: handles, then plain values, among them arrays in the blocks of the handles
# ERROR     what pack_error made of an exception
#
# A large array or buffer is copied once, into a block of its own, and read there by whoever receives it; one that lies
# in shared memory already is not copied. What is smaller than LARGE stays in the pickle.

cdef enum:
    BYTES = 0
    PICKLE = 1
    HANDLES = 2
    ERROR = 3
    PLAIN = 4
    ARRAYS = 5

cdef enum:
    LARGE = 16384
    BUFFER_SHARED = 1  # in shared memory that everybody may write to

cdef packed struct buffer_entry:
    uint32_t handle
    uint32_t spare
    uint64_t offset
    uint64_t len_bytes

cdef extern from "plain.h":
    """
    static PyObject *shm_plain_value(const void *bytes, uint32_t n) { return shm_plain_get(bytes, n, NULL); }
    static PyObject *shm_plain_value_within(const void *bytes, uint32_t n, PyObject *within)
    {
        return shm_plain_get(bytes, n, within);
    }
    static size_t shm_plain_item_bytes(const struct shm_plain_array *a) { return shm_numpy.item_bytes[a->record[1]]; }
    """
    enum:
        PLAIN_BYTES "SHM_PLAIN_BYTES"
        SHM_ARRAY_C_CONTIGUOUS, SHM_ARRAY_F_CONTIGUOUS, SHM_ARRAY_WRITEABLE
        SHM_PLAIN_FLAGS_AT, SHM_PLAIN_HANDLE_AT, SHM_PLAIN_START_AT
    struct shm_ndarray:
        char *data
        int flags
    struct shm_plain_array:
        shm_ndarray *array
        unsigned char *record
    struct shm_plain_arrays:
        uint32_t count
        shm_plain_array *items
    PyObject *plain_error "shm_plain_error"
    size_t plain_put "shm_plain_put"(object x, unsigned char *room, size_t limit, shm_plain_arrays *arrays)
    size_t plain_put_call "shm_plain_put_call"(object name, object arguments, object keywords, unsigned char *room,
                                              size_t limit, shm_plain_arrays *arrays)
    size_t plain_item_bytes "shm_plain_item_bytes"(const shm_plain_array *item)
    void shm_plain_bounds(const shm_ndarray *array, size_t item_bytes, uintptr_t *low, uintptr_t *high)
    object plain_get_within "shm_plain_value_within"(const void *data, uint32_t n, object within)
    object (*plain_lease "shm_plain_lease")(object within, uint32_t handle, unsigned flags)
    object plain_get "shm_plain_value"(const void *data, uint32_t n)
    int plain_get_call "shm_plain_get_call"(const unsigned char *data, size_t n, object known, PyObject **name,
                                            PyObject **arguments, PyObject **keywords) except -1
    int (*plain_import "shm_plain_import")() except -1
    int plain_know_numpy "shm_plain_know_numpy"(object ndarray, object make_dtype, object trial, size_t address) except -1

cdef class Method

cdef object corrupted = errors.Corrupted
plain_error = <PyObject *>corrupted
cdef object c_dumps = pickle.dumps
cdef object c_loads = pickle.loads
cdef object ndarray = None       # numpy's, as soon as anybody has imported numpy
cdef object memmap = None
cdef object reducers = None      # dispatch table of our pickler
cdef Py_ssize_t reducers_seen = -1


@cython.final
cdef class Encoding:
    """One body on its way out: what refers to shared memory."""

    cdef Member member
    cdef list leases       # lease indexes of this member, one for each block that is referred to
    cdef dict blocks       # block -> position in leases
    cdef list buffers      # of the out-of-band ones: (position in leases, offset, bytes)
    cdef list moving       # Moved arrays
    cdef dict copies       # (address, bytes, order) -> (position in leases, whose bytes they are): what was copied
    cdef uint64_t deadline  # until which a block that is locked is waited for
    cdef object body       # for the error when it passes

    cdef drop(self):
        leases, self.leases = self.leases, []
        for lease in leases:
            release_later(self.member, lease)
        self.blocks = {}
        self.copies = {}
        self.again()

    cdef again(self):
        """The body is pickled another time; what it refers to, and what was copied, need not be found anew."""
        self.buffers = []
        for moved in self.moving:
            (<Moved>moved).sent = False
        self.moving = []

    cdef uint32_t hold(self, uint32_t block) except? 0xFFFFFFFF:
        """The position of a block in `leases`."""
        cdef uint32_t lease
        at = self.blocks.get(block)
        if at is None:
            hold_block(self.member, block, &lease, "the block of a shared array", self.deadline, self.body)
            at = self.blocks[block] = len(self.leases)
            self.leases.append(lease)
        return at

    cdef unsigned char *add_block(self, uint64_t nbytes) except NULL:
        """A new block, the last of `leases`: where its bytes are."""
        cdef uint32_t lease, block
        take_block(self.member, nbytes, &lease)
        if not shm_lease_find(&self.member.segment, lease, nbytes, &block):
            release_later(self.member, lease)
            raise errors.Corrupted("a new block is none")
        self.blocks[block] = len(self.leases)
        self.leases.append(lease)
        return self.member.segment.base + shm_block_offset(&self.member.segment, block)

    def add_buffer(self, buffer):
        """For the pickler: True keeps the buffer in the pickle."""
        cdef bint writable
        cdef uint64_t offset = 0
        cdef unsigned char *at
        cdef Py_buffer view
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
        except BufferError:
            return True  # pickle copies what is not contiguous, or says why not
        try:
            if view.len == 0 or view.len < LARGE and not is_ours(self.member, <uintptr_t>view.buf):
                return True
            if is_ours(self.member, <uintptr_t>view.buf):
                block = block_at(self.member, <uintptr_t>view.buf, &offset)
                check_moved(self.member, lease_of(view.obj), block)
                if block >= 0 and offset + <uint64_t>view.len <= shm_block_class_bytes(block):
                    self.buffers.append((self.hold(block), offset, view.len))
                    return False
            found = self.copies.get((<uintptr_t>view.buf, view.len, "buffer"))
            if found is not None:
                self.buffers.append((found[0], 0, view.len))
                return False
            at = self.add_block(view.len)
            self.buffers.append((len(self.leases) - 1, 0, view.len))
            copy_without_gil(self.member, at, view.buf, view.len)
            self.copies[<uintptr_t>view.buf, view.len, "buffer"] = len(self.leases) - 1, buffer
            return False
        finally:
            PyBuffer_Release(&view)


cdef Encoding new_encoding(Member member, uint64_t deadline, object body):
    cdef Encoding out = Encoding.__new__(Encoding)
    out.member = member
    out.deadline = deadline
    out.body = body
    out.leases = []
    out.blocks = {}
    out.buffers = []
    out.moving = []
    out.copies = {}
    return out


@cython.final
cdef class Chunks:
    """The file that a pickler writes to. A large bytes or bytearray comes as itself and is not copied here."""

    cdef list chunks
    cdef Py_ssize_t nbytes
    cdef bint names_main

    def __cinit__(self):
        self.chunks = []

    def write(self, chunk):
        self.chunks.append(chunk)
        self.nbytes += len(chunk)
        # A name stands in a frame of the pickler's own, and those are small.
        if not self.names_main and len(chunk) <= 1 << 18 and b"__main__" in chunk:
            self.names_main = True
        return len(chunk)

    cdef object whole(self):
        return self.chunks[0] if len(self.chunks) == 1 and type(self.chunks[0]) is bytes else self


cdef class Decoding:
    """One body on its way in, whose block has handles."""

    cdef Member member
    cdef const unsigned char *base
    cdef uint32_t handles
    cdef uint32_t block
    cdef bint alone   # nobody else holds the block: its leases are there to be taken over
    cdef dict taken   # position of a handle -> {may it be written to: its Lease}


cdef bint is_builtin(object x, int depth):
    """Only built-in values, none of them large, so that pickle's C function does it alone."""
    kind = type(x)
    if kind is int or kind is float or kind is bool or x is None:
        return True
    if kind is str or kind is bytes:
        return len(x) < 65536
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


cdef inline bint is_ours(Member member, uintptr_t address):
    """Does the address lie in the memory of that system?"""
    return (<uintptr_t>member.segment.base <= address < <uintptr_t>member.segment.base + member.segment.bytes or
            <uintptr_t>member.segment.view <= address < <uintptr_t>member.segment.view + member.segment.bytes)


cdef int64_t block_at(Member member, uintptr_t address, uint64_t *offset):
    """The block that an address lies in, -1: none."""
    cdef uint64_t at, start, size
    cdef uint32_t c, i, index
    if <uintptr_t>member.segment.base <= address < <uintptr_t>member.segment.base + member.segment.bytes:
        at = address - <uintptr_t>member.segment.base
    else:
        at = address - <uintptr_t>member.segment.view
    for c in range(member.segment.classes):
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


cdef Lease lease_of(base):
    """The lease behind an array, or what exports a buffer; None: it lies elsewhere, or cannot be seen."""
    if ndarray is None:
        find_numpy()
    while base is not None:
        if isinstance(base, Lease):
            return base
        if type(base) is memoryview:
            base = (<object>base).obj
        elif ndarray is not None and isinstance(base, ndarray):
            base = (<object>base).base
        else:
            return None
    return None


cdef int check_moved(Member member, Lease lease, int64_t block) except -1:
    """What was moved is not sent again, by whatever view. Where the lease cannot be seen (a tensor, an Arrow buffer), the
    block says it; another lease of such a block came from its new owner, and may be sent on."""
    if lease.moved if lease is not None else block in member.moved_blocks:
        raise BufferError("the array was moved to another process, and cannot be sent again")
    return 0


def _reduce_array(array):
    """How our pickler sees an ndarray: a handle when it lies in shared memory of the system, a handle to a copy when
    it is large, else its bytes. The receiver's is read-only, whatever its size."""
    cdef Encoding out
    cdef uint64_t offset = 0
    cdef int flags = 0
    cdef Lease lease
    if coding == NULL or array.dtype.hasobject or (<Encoding>coding).member is None:
        return array.__reduce_ex__(5)
    out = <Encoding>coding
    nbytes = array.nbytes
    low, high = bounds_of(array)
    if low != high and is_ours(out.member, low):
        lease = lease_of(array)
        block = block_at(out.member, low, &offset)
        check_moved(out.member, lease, block)
        if block >= 0 and offset + (high - low) <= shm_block_class_bytes(block):
            if lease is not None and lease.shared and array.flags.writeable:
                flags = BUFFER_SHARED
            first = array.__array_interface__["data"][0]
            return _rebuild_array, (out.hold(block), offset, high - low, first - low, array.shape, array.strides,
                                    array.dtype, flags)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    if nbytes < LARGE:
        return _rebuild_small, (array.tobytes(order), array.shape, array.dtype, order)
    key = array.__array_interface__["data"][0], array.itemsize, array.shape, array.strides
    found = out.copies.get(key)  # it keeps the array, so that nothing else is at that address
    if found is None:
        copied = copy_array(out, array, nbytes, order)
        found = out.copies[key] = len(out.leases) - 1, array, copied.strides
    return _rebuild_array, (found[0], 0, nbytes, 0, array.shape, found[2], array.dtype, 0)


def _reduce_subclass(array):
    """An array of a subclass that pickles as ndarray does: the memory goes as an ndarray's, and is seen as that class
    there. A mapped file is no file at the receiver, but an ndarray."""
    if array.dtype.hasobject:
        return array.__reduce_ex__(5)
    if isinstance(array, memmap):
        return _reduce_array(array.view(ndarray))
    made, args = _reduce_array(array.view(ndarray))
    return made, (*args, type(array))


cdef class _Reducers(dict):
    """A dispatch table, which knows those subclasses of ndarray that pickle as it does."""

    def __missing__(self, kind):
        if (ndarray is not None and issubclass(kind, ndarray) and kind.__reduce_ex__ is ndarray.__reduce_ex__
                and kind.__reduce__ is ndarray.__reduce__ and kind.__setstate__ is ndarray.__setstate__):
            return _reduce_subclass
        raise KeyError(kind)


cdef object copy_array(Encoding out, array, uint64_t nbytes, str order):
    """The array's copy in a new block, the last of out's."""
    cdef unsigned char *at = out.add_block(nbytes)
    cdef uintptr_t source
    copied = ndarray(array.shape, array.dtype, PyMemoryView_FromMemory(<char *>at, nbytes, PyBUF_WRITE), 0, None, order)
    if array.flags.c_contiguous or array.flags.f_contiguous:
        source = array.__array_interface__["data"][0]
        copy_without_gil(out.member, at, <const void *>source, nbytes)
    else:
        copied[...] = array
    return copied


def _reduce_moved(Moved moved not None):
    """A handle with the right to write."""
    cdef Encoding out
    cdef uint64_t offset = 0
    if coding == NULL or (<Encoding>coding).member is None:
        raise BufferError("a moved array can only be sent in a message")
    out = <Encoding>coding
    if moved.sent:
        raise BufferError("the array was moved to another process, and cannot be sent again")
    array = moved.array
    low, high = bounds_of(array)
    if low != high and not is_ours(out.member, low):
        raise errors.InvalidArgument("the array that is moved lies in the memory of another system")
    if low == high:
        moved.sent = True
        out.moving.append(moved)
        return _rebuild_small, (b"", array.shape, array.dtype, "C")
    block = block_at(out.member, low, &offset)
    if block < 0 or offset + (high - low) > shm_block_class_bytes(block):
        raise errors.Corrupted("the array that is moved lies in no block")
    if shm_block_holders(&out.member.segment, block) != 1 + (block in out.blocks):  # held since it was pickled before
        raise BufferError("another process, or a message on its way, refers to the array that is moved")
    at = out.hold(block)
    moved.sent = True
    out.moving.append(moved)
    first = array.__array_interface__["data"][0]
    return _rebuild_array, (at, offset, high - low, first - low, array.shape, array.strides, array.dtype, MOVED_FLAG)


cdef enum:
    MOVED_FLAG = 2


def _rebuild_small(data, shape, dtype, order, kind=None):
    if ndarray is None:
        import_numpy()  # no array has come to this process, or gone, before
    # A subclass is made without its __new__, and finalized as of nothing: as numpy's own pickles are.
    return ndarray.__new__(kind or ndarray, shape, dtype, data, 0, None, order)


def _rebuild_view(data, format, shape):
    view = memoryview(data).toreadonly().cast("B")
    return view if format == "B" and len(shape) == 1 else view.cast(format, shape)


def _reduce_view(view):
    """How our pickler sees a memoryview, which pickle does not know: a read-only one, large ones without a copy."""
    if coding == NULL:
        raise TypeError("a memoryview can only be sent in a message")
    format = view.format.removeprefix("@")
    if len(format) != 1:
        raise TypeError(f"a memoryview of format {view.format!r} cannot be sent; cast it to bytes")
    shape = tuple(view.shape)
    if view.c_contiguous and view.nbytes:
        return _rebuild_view, (pickle.PickleBuffer(view), format, shape)
    return _rebuild_view, (view.tobytes(), format, shape)


cdef Lease lease_at(Decoding within, uint32_t at, uint64_t low, uint64_t extent, uint32_t flags):
    """The lease of what handle `at` refers to, of which so many bytes from `low` on are to be there. The message's own
    is taken over, so that no memory is needed for what has arrived; one that others may still receive gets another."""
    cdef uint32_t lease, block
    cdef const shm_handle *handles
    cdef Lease held, other
    if at >= within.handles:
        raise errors.Corrupted(f"handle {at} of {within.handles}")
    handles = <const shm_handle *>within.base
    cdef uint32_t source = handles[at].lease, birth = handles[at].birth
    cdef Member member = within.member
    cdef dict taken = within.taken.get(at)
    if taken is not None:
        other = next(iter(taken.values()))
        if low > other.nbytes or extent > other.nbytes - low:
            raise errors.Corrupted(f"an array of {extent} bytes at {low} of a block of {other.nbytes}")
        held = taken.get(flags)
        if held is None:
            held = taken[flags] = same_lease(other, flags)
        return held
    if source == 0 or not shm_index_ok(&member.segment, SHM_TABLE_LEASES, source - 1):
        raise errors.Corrupted("a handle names no lease")
    if shm_lease_birth(&member.segment, source - 1) != birth:
        raise errors.Corrupted("a handle names a lease that has gone")
    if not shm_lease_find(&member.segment, source - 1, 0, &block):
        raise errors.Corrupted("a handle names no block")
    if low > shm_block_class_bytes(block) or extent > shm_block_class_bytes(block) - low:
        raise errors.Corrupted(f"an array of {extent} bytes at {low} of a block of {shm_block_class_bytes(block)}")
    if not within.alone:
        hold_block(member, block, &lease, "the block of a shared array")
    elif not shm_handle_take(context(member), within.block, at, &lease):
        raise errors.Corrupted("a handle names a lease that is not the message's")
    held = new_lease(member, lease, shm_block_class_bytes(block), flags == 0)
    held.shared = flags == BUFFER_SHARED
    within.taken[at] = {flags: held}
    return held


def _rebuild_array(uint32_t at, uint64_t low, uint64_t extent, uint64_t first, shape, strides, dtype, uint32_t flags,
                   kind=None):
    """The other side of _reduce_array: a read-only array over the read-only mapping, a writable one when it was moved
    or is everybody's. Its bytes are `extent` from `low` on; its first element, which need not be the lowest, is at
    `first` of them."""
    cdef Lease held
    if coding == NULL:
        raise errors.Corrupted("a handle of a shared array outside a message")
    if first > extent:
        raise errors.Corrupted(f"an array of {extent} bytes begins at {first} of them")
    held = lease_at(<Decoding>coding, at, low, extent, flags)
    # numpy checks shape, strides and start against the buffer
    return ndarray.__new__(kind or ndarray, shape, dtype, held, low + first, strides)


@cython.final
cdef class Hold:
    """See _native.pyi."""

    cdef readonly object target  # a Box or SyncView of this process
    cdef Member member
    cdef uint32_t block

    def __init__(self, target):
        self.target = target
        if isinstance(target, Box):
            (<Box>target).use()
            self.member, self.block = (<Box>target).member, (<Box>target).c.block
        elif isinstance(target, SyncView):
            (<SyncView>target).use()
            self.member, self.block = (<SyncView>target).member, (<SyncView>target).c.block
        else:
            raise TypeError(f"a mailbox or sync object is held, not {type(target).__name__}")


def _reduce_hold(Hold hold not None):
    """A handle of the block that the object lies in, which keeps it as any process's hold does."""
    if coding == NULL or (<Encoding>coding).member is None:
        raise TypeError("a hold can only be sent in a message")
    if (<Encoding>coding).member is not hold.member:
        raise errors.InvalidArgument("the object that is held lies in the memory of another system")
    return _rebuild_hold, ((<Encoding>coding).hold(hold.block),)


def _rebuild_hold(uint32_t at):
    """The receiver's own: its lease keeps the object until it has gone."""
    if coding == NULL:
        raise errors.Corrupted("a hold outside a message")
    return lease_at(<Decoding>coding, at, 0, 0, 0)


cdef extern from "memory/layout.h":
    enum:
        SHM_TABLE_LEASES


cdef int find_numpy() except -1:
    global ndarray, memmap
    import sys
    module = sys.modules.get("numpy")
    if module is not None and ndarray is None and hasattr(module, "zeros"):  # else it is being imported
        trial = module.zeros((2, 3))
        plain_know_numpy(module.ndarray, module.dtype, trial, trial.__array_interface__["data"][0])
        ndarray, memmap = module.ndarray, module.memmap
    return 0


cdef int import_numpy() except -1:
    import numpy
    return find_numpy()


plain_import = import_numpy


cdef _Reducers own_reducers(inherited):
    """What our picklers do, some of it otherwise than those they come from."""
    own = _Reducers(inherited)
    own.update({memoryview: _reduce_view, Moved: _reduce_moved, Hold: _reduce_hold})
    if ndarray is None:
        find_numpy()
    if ndarray is not None:
        own[ndarray] = _reduce_array
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor"):
        own[torch.Tensor] = _reduce_tensor
    return own


cdef object dispatch_table():
    global reducers, reducers_seen
    if reducers_seen != len(copyreg.dispatch_table) or ndarray is None or not has_torch and "torch" in sys.modules:
        note_torch()
        reducers = own_reducers(copyreg.dispatch_table)
        reducers_seen = len(copyreg.dispatch_table)
    return reducers


cdef bint has_torch = False


cdef note_torch():
    global has_torch
    has_torch = hasattr(sys.modules.get("torch"), "Tensor")


def _reduce_tensor(tensor):
    """A dense tensor in main memory goes as an array, of integers when numpy does not have its type; another as torch
    has it: one that has a gradient is to be written to."""
    if (tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided" or tensor.requires_grad
            or tensor.is_conj() or tensor.is_neg()):
        return tensor.__reduce_ex__(5)
    try:
        return _rebuild_tensor, (tensor.numpy(),)
    except TypeError:
        pass
    import torch
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    try:
        return _rebuild_tensor, (tensor.view(integers[tensor.element_size()]).numpy(), tensor.dtype)
    except (KeyError, RuntimeError, TypeError):
        return tensor.__reduce_ex__(5)


def _rebuild_tensor(array, dtype=None):
    import torch
    import warnings
    with warnings.catch_warnings():  # that it is not writable: as everything that is received
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.view(dtype)


class Remaker(cloudpickle.CloudPickler):
    """cloudpickle with our reducers."""


cdef object pickle_with_handles(Encoding out, object body):
    """Pickle; what lies in shared memory, or is copied there, leaves handles in `out`. Bytes or Chunks."""
    global coding
    cdef PyObject *outer = coding
    cdef Chunks file = Chunks()
    cdef bint failed = False
    add_buffer = out.add_buffer if out.member is not None else None
    coding = <PyObject *>out
    try:
        try:
            pickler = pickle.Pickler(file, 5, buffer_callback=add_buffer)
            pickler.dispatch_table = dispatch_table()
            pickler.dump(body)
        except (RecursionError, MemoryError, BufferError):
            raise
        except Exception:
            failed = True
        if failed or file.names_main:
            out.again()
            file = Chunks()
            # Read from the class when the pickler is made, and never again.
            Remaker.dispatch_table = collections.ChainMap(own_reducers(()), *cloudpickle.CloudPickler.dispatch_table.maps)
            Remaker(file, 5, add_buffer).dump(body)
    finally:
        coding = outer
    return file.whole()


cdef Encoding find_blocks(Member member, shm_plain_arrays *arrays, uint64_t deadline, object body):
    """Give each array that was written as a handle its block: its own when that is shared memory, else a new one with
    a copy. None: one of them cannot be sent so, and nothing was done."""
    cdef shm_plain_array *item
    cdef uintptr_t low, high
    cdef uint64_t offset = 0
    cdef uint32_t i, handle
    cdef int64_t block
    cdef Lease lease
    cdef Encoding out
    for i in range(arrays.count):
        item = &arrays.items[i]
        shm_plain_bounds(item.array, plain_item_bytes(item), &low, &high)
        if not is_ours(member, low) and not item.array.flags & (SHM_ARRAY_C_CONTIGUOUS | SHM_ARRAY_F_CONTIGUOUS):
            return None
    out = new_encoding(member, deadline, body)
    try:
        for i in range(arrays.count):
            item = &arrays.items[i]
            shm_plain_bounds(item.array, plain_item_bytes(item), &low, &high)
            block = -1
            if is_ours(member, low):
                lease = lease_of(<object><PyObject *>item.array)
                if lease is not None and lease.shared and item.array.flags & SHM_ARRAY_WRITEABLE:
                    item.record[SHM_PLAIN_FLAGS_AT] = BUFFER_SHARED
                block = block_at(member, low, &offset)
                check_moved(member, lease, block)
                if block >= 0 and offset + (high - low) > shm_block_class_bytes(block):
                    block = -1
            found = out.copies.get((low, high)) if block < 0 else None
            if block >= 0:
                handle = out.hold(block)
                offset += <uintptr_t>item.array.data - low
            elif found is not None:  # the same array again, or a view of all of it
                handle = found
                offset = <uintptr_t>item.array.data - low
            else:
                copy_without_gil(member, out.add_block(high - low), <void *>low, high - low)
                handle = len(out.leases) - 1
                out.copies[low, high] = handle
                offset = <uintptr_t>item.array.data - low
            memcpy(item.record + SHM_PLAIN_HANDLE_AT, &handle, 4)
            memcpy(item.record + SHM_PLAIN_START_AT, &offset, 8)
    except BaseException:
        out.drop()
        raise
    return out


cdef object plain_lease_of(object within, uint32_t handle, unsigned flags):
    return lease_at(<Decoding?>within, handle, 0, 0, flags)


plain_lease = plain_lease_of


cdef object encode(Member member, object body, shm_message *m, uint32_t inline_bytes, unsigned char *room,
                   uint64_t deadline=SHM_FOREVER):
    """Fill in body, len_bytes, format and lease of a message. What it points to is `room` (PLAIN_BYTES, for plain
    values), the body itself, or what is returned: all to be kept until it is sent."""
    cdef size_t n
    m.lease = 0
    m.annex = NULL
    m.source = m.group = 0
    m.priority = 0
    m.deadline_ns = 0
    if type(body) is bytes:
        m.format = BYTES
        if PyBytes_GET_SIZE(body) <= <Py_ssize_t>inline_bytes:
            m.body = PyBytes_AS_STRING(body)
            m.len_bytes = PyBytes_GET_SIZE(body)
            return None
        return place(member, body, m, inline_bytes, None)
    n = plain_put(body, room, inline_bytes, NULL)
    if n:
        m.format = PLAIN
        m.body = room
        m.len_bytes = n
        return None
    cdef shm_plain_arrays arrays
    cdef Encoding out
    arrays.count = 0
    n = plain_put(body, room, PLAIN_BYTES, &arrays)
    if n:
        out = find_blocks(member, &arrays, deadline, body)
        if out is not None:
            m.format = ARRAYS
            return place(member, PyBytes_FromStringAndSize(<char *>room, n), m, inline_bytes, out)
    m.format = PICKLE
    if is_builtin(body, 3):
        return place(member, c_dumps(body, 5), m, inline_bytes, None)  # no class hides among built-in values
    out = new_encoding(member, deadline, body)
    try:
        data = pickle_with_handles(out, body)
    except BaseException:
        out.drop()
        raise
    if out.leases:
        m.format = HANDLES
    return place(member, data, m, inline_bytes, out)


cdef object encode_call(Member member, Method method, tuple args, dict kwargs, shm_message *m, uint32_t inline_bytes,
                        unsigned char *room, uint64_t deadline=SHM_FOREVER):
    """encode() of a method call's body, which need not be made when all in it is plain."""
    cdef shm_plain_arrays arrays
    cdef Encoding out
    cdef size_t n = plain_put_call(method.name, args, kwargs, room, inline_bytes, NULL)
    m.lease = 0
    m.annex = NULL
    m.source = m.group = 0
    m.priority = 0
    m.deadline_ns = 0
    if n == 0:
        arrays.count = 0
        n = plain_put_call(method.name, args, kwargs, room, PLAIN_BYTES, &arrays)
        if n:
            out = find_blocks(member, &arrays, deadline, None)
            if out is not None:
                m.format = ARRAYS
                return place(member, PyBytes_FromStringAndSize(<char *>room, n), m, inline_bytes, out)
        return encode(member, (method.name, args, kwargs), m, inline_bytes, room, deadline)
    m.format = PLAIN
    m.body = room
    m.len_bytes = n
    return None


cdef int take_block(Member member, uint64_t nbytes, uint32_t *lease) except -1:
    """A block of this member; without the GIL when its pages may have to be made."""
    cdef shm_thread *t = context(member)
    cdef int status
    if nbytes > member.segment.memory_limit:
        raise out_of_memory(member, nbytes)
    if nbytes > 65536:
        member.inside += 1
        with nogil:
            status = shm_block_take(t, nbytes, lease)
        member.inside -= 1
    else:
        status = shm_block_take(t, nbytes, lease)
    if status == SHM_NO_MEMORY:
        member.inside += 1
        with nogil:  # what other threads have dropped, and the watching thread has not yet released
            shm_lease_retry(t)
            status = shm_block_take(t, nbytes, lease)
        member.inside -= 1
    if status == SHM_NO_MEMORY:
        raise out_of_memory(member, nbytes)
    if status:
        refuse(status, f"a block of {nbytes} bytes")
    return 0


cdef object place(Member member, object data, shm_message *m, uint32_t inline_bytes, Encoding out):
    """Let the message point to these bytes (or Chunks), or to a block with them and the handles of `out`."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data) if type(data) is bytes else (<Chunks>data).nbytes
    cdef uint32_t lease, block = 0, handles = 0
    cdef uint64_t head = 0, buffers
    cdef unsigned char *at
    cdef uint32_t *indexes
    cdef buffer_entry entry
    if n > <Py_ssize_t>BODY_LIMIT:
        if out is not None:
            out.drop()
        raise errors.TooLarge(f"the body is {n} bytes; a message carries at most {BODY_LIMIT} (send a shared array)")
    if n <= <Py_ssize_t>inline_bytes and m.format != HANDLES and m.format != ARRAYS:
        if type(data) is not bytes:
            data = b"".join((<Chunks>data).chunks)
        m.body = PyBytes_AS_STRING(data)
        m.len_bytes = n
        return data
    if m.format == HANDLES:
        handles = len(out.leases)
        head = handles * sizeof(shm_handle) + sizeof(buffers) + len(out.buffers) * sizeof(entry)
    elif m.format == ARRAYS:
        handles = len(out.leases)
        head = handles * sizeof(shm_handle)
    try:
        take_block(member, n + head, &lease)
        if not shm_lease_find(&member.segment, lease, n + head, &block):
            release_later(member, lease)
            raise errors.Corrupted("a new block is none")
    except BaseException:
        if out is not None:
            out.drop()
        raise
    at = member.segment.base + shm_block_offset(&member.segment, block)
    if handles:
        indexes = <uint32_t *>malloc(handles * sizeof(uint32_t))
        for i in range(handles):
            indexes[i] = out.leases[i]
        shm_handles_put(context(member), block, indexes, handles)
        if out.moving:
            keep_moving(out, indexes)
        free(indexes)
        out.leases = []
        at += handles * sizeof(shm_handle)
    if m.format == HANDLES:
        buffers = len(out.buffers)
        memcpy(at, &buffers, sizeof(buffers))
        at += sizeof(buffers)
        for handle, offset, size in out.buffers:
            entry.handle, entry.spare, entry.offset, entry.len_bytes = handle, 0, offset, size
            memcpy(at, &entry, sizeof(entry))
            at += sizeof(entry)
    m.len_bytes = n + head
    m.lease = lease + 1
    m.body = NULL
    try:
        if type(data) is bytes:
            copy_bytes(member, at, data)
        else:
            for chunk in (<Chunks>data).chunks:
                at += copy_bytes(member, at, chunk)
    except BaseException:
        not_sent(member, m)
        raise
    return data


cdef Py_ssize_t copy_bytes(Member member, unsigned char *at, object chunk) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
    if view.len > 65536:
        copy_without_gil(member, at, view.buf, view.len)
    else:
        memcpy(at, view.buf, view.len)
    cdef Py_ssize_t n = view.len
    PyBuffer_Release(&view)
    return n


# Moved arrays whose message may still be refused: the lease that travels -> (its birth, the array). What was sent goes
# with the array, or with the next use of the lease.
cdef keep_moving(Encoding out, const uint32_t *indexes):
    cdef Member member = out.member
    cdef uint64_t offset = 0
    for moved in out.moving:
        low, high = bounds_of((<Moved>moved).array)
        if low == high:
            continue
        at = out.blocks[block_at(member, low, &offset)]
        member.moves[indexes[at]] = shm_lease_birth(&member.segment, indexes[at]), weakref.ref(moved)


cdef take_back(Member member, uint32_t lease):
    """A message was refused: the arrays that it moved can be sent again."""
    cdef uint32_t block
    cdef const shm_handle *handles
    if not shm_lease_find(&member.segment, lease, 0, &block):
        return
    handles = <const shm_handle *>(member.segment.base + shm_block_offset(&member.segment, block))
    for i in range(block_handles(shm_block_at(&member.segment, block))):
        found = member.moves.pop(handles[i].lease - 1, None)
        if found is not None and found[0] == handles[i].birth:
            moved = found[1]()
            if moved is not None:
                (<Moved>moved).sent = False


cdef void copy_without_gil(Member member, void *to, const void *source, size_t n):
    member.inside += 1
    with nogil:
        memcpy(to, source, n)
    member.inside -= 1


cdef int not_sent(Member member, shm_message *m) except -1:
    """The message was refused: its block is ours again, and goes."""
    if m.lease:
        if member.moves and m.format == HANDLES and can_act(member):
            take_back(member, m.lease - 1)
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
    cdef uint64_t skip, count, i
    cdef uint32_t block
    cdef buffer_entry entry
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
        if format != HANDLES and format != ARRAYS or not shm_lease_find(&member.segment, lease - 1, n, &block):
            raise errors.Corrupted(f"a body of format {format}, {n} bytes in a block")
        within.block = block
        within.alone = shm_block_holders(&member.segment, block) == 1  # it is this one, and nobody else can come by it
        within.taken = {}
        within.handles = block_handles(shm_block_at(&member.segment, block))
        skip = <uint64_t>within.handles * sizeof(shm_handle)
        if format == ARRAYS:
            if skip >= n or n - skip > PLAIN_BYTES:
                raise errors.Corrupted(f"a body of {n} bytes with {within.handles} handles")
            memcpy(copy, within.base + skip, n - skip)
            return plain_get_within(copy, n - skip, within)
        skip += sizeof(count)
        if skip >= n:
            raise errors.Corrupted(f"a body of {n} bytes with {within.handles} handles")
        memcpy(&count, within.base + skip - sizeof(count), sizeof(count))
        if count > n or skip + count * sizeof(entry) >= n:
            raise errors.Corrupted(f"a body of {n} bytes with {count} buffers")
        buffers = []
        for i in range(count):
            memcpy(&entry, within.base + skip + i * sizeof(entry), sizeof(entry))
            held = lease_at(within, entry.handle, entry.offset, entry.len_bytes, 0)
            buffers.append(memoryview(held)[entry.offset:entry.offset + entry.len_bytes])
        skip += count * sizeof(entry)
        outer = coding
        coding = <PyObject *>within
        try:
            return c_loads(PyMemoryView_FromMemory(<char *>body + skip, n - skip, PyBUF_READ), buffers=buffers)
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
    cdef Encoding out
    cdef unsigned char room[PLAIN_BYTES]
    cdef size_t n
    if type(body) is bytes:
        return len(body)
    n = plain_put(body, room, PLAIN_BYTES, NULL)
    if n:
        return n
    if is_builtin(body, 3):
        return len(c_dumps(body, 5))
    out = new_encoding(None, SHM_FOREVER, None)
    return len_of(pickle_with_handles(out, body)) if coding == NULL else 0


cdef Py_ssize_t len_of(data):
    return PyBytes_GET_SIZE(data) if type(data) is bytes else (<Chunks>data).nbytes


# ---- leases as Python sees them --------------------------------------------------------------------------------

@cython.no_gc_clear  # see Box
cdef class Lease:
    cdef Member member
    cdef uint32_t index
    cdef uint64_t serial
    cdef unsigned char *at
    cdef readonly uint64_t nbytes
    cdef readonly bint readonly
    cdef readonly bint moved   # its array was handed over
    cdef readonly bint shared  # everybody who has it may write to it
    cdef uint32_t block        # of a moved one
    cdef Lease whole           # of which this is another view, with other rights; it has the record

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.at, self.nbytes, self.readonly, flags)

    def prefault(self, bint huge, int node):
        cdef int status
        self.member.check()
        self.member.inside += 1
        with nogil:
            status = shm_prefault(self.at, self.nbytes, huge, node)
        self.member.inside -= 1
        if status == SHM_INVALID:
            raise errors.InvalidArgument(f"node is {node}; this machine has no such node of memory")
        if status:
            refuse(status, f"pages of {self.nbytes} bytes")

    def __dealloc__(self):
        cdef Member member = self.member
        if self.whole is not None:
            return
        if member is not None and member.left:
            member.array_gone(self.index)
        if not can_act(member):
            if member is not None and not member.forked:
                member.leases.discard(self.index)  # who is leaving just now gives it back with the rest
            return
        if self.index not in member.leases:
            return
        if self.moved:
            member.moved_blocks.discard(self.block)
        member.leases.discard(self.index)
        if not shm_lease_is_lent(&member.c, self.index):
            release_later(member, self.index)


@cython.final
cdef class Moved:
    """An array on its way to another process, which alone may write to it from now on; made by shmipc.move().

    Sent as any object, also inside of others; received as a writable ndarray. It can be sent once; a send that is
    refused does not count.
    """

    cdef readonly object array  # read-only by now
    cdef readonly bint sent
    cdef object __weakref__

    def __init__(self, array):
        cdef Lease lease = lease_of(array)
        cdef uint32_t block
        if lease is None:
            raise errors.InvalidArgument("only an array in shared memory can be moved; share() makes one")
        if lease.moved:
            raise BufferError("the array was moved before")
        if lease.readonly or not array.flags.writeable:
            raise BufferError("a read-only array cannot be moved: whoever may write to it is another")
        if lease.shared:
            raise BufferError("an array that everybody may write to cannot be moved")
        lease.member.check()
        if not shm_lease_find(&lease.member.segment, lease.index, 0, &block):
            raise errors.Corrupted("the array's lease has no block")
        holders = shm_block_holders(&lease.member.segment, block)
        if holders != 1:
            raise BufferError(f"the array's memory is held {holders} times, by other processes or messages; "
                              "it can be moved when they have let it go")
        lease.moved = lease.readonly = True
        lease.block = block
        lease.member.moved_blocks.add(block)
        array.flags.writeable = False
        self.array = array

    def __reduce__(self):
        raise BufferError("a moved array can only be sent in a message")

    def __repr__(self):
        return f"<Moved array of shape {self.array.shape}, {self.array.dtype}{', sent' if self.sent else ''}>"


cdef Lease same_lease(Lease whole, uint32_t flags):
    """The same memory with other rights."""
    cdef Lease lease = Lease.__new__(Lease)
    cdef shm_segment *segment = &whole.member.segment
    cdef uint64_t offset = whole.at - (<unsigned char *>segment.view if whole.readonly else segment.base)
    lease.whole = whole
    lease.member = whole.member
    lease.index = whole.index
    lease.nbytes = whole.nbytes
    lease.readonly = flags == 0
    lease.shared = flags == BUFFER_SHARED
    lease.at = <unsigned char *>segment.view + offset if lease.readonly else segment.base + offset
    return lease


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
    if member.forks and can_act(member):
        for fork in member.forks.values():
            member.inherit(<Fork>fork, index)
    if member.deferred and last_serial == member.serial and can_act(member):
        release_deferred(member, <shm_thread *>last_context)
    return lease
