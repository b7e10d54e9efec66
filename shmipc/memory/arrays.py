"""Plain ndarrays whose memory is shared.

The base of each array is one lease of a block; the memory is released when the last view dies, in any process.
Sent to another process, an array, or any view or slice of it, travels as a handle and is received read-only,
without a copy. The maker's later writes stay visible there; `move` hands them over, `shared` lets all write.
"""

import sys
import threading
from concurrent.futures import Future
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from shmipc import _native
from shmipc.base.errors import InvalidArgument, LimitExceeded
from shmipc.memory import membership

Order = Literal["C", "F"]


def empty(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Order = "C"
) -> np.ndarray[Any, np.dtype[Any]]:
    """An array in shared memory; its bytes are whatever they were.

    Args:
        shape: Lengths of the axes; zero is legal.
        dtype: Anything without Python objects in it.
        order: "C" or "F".

    Returns:
        A writable ndarray, aligned to 64 bytes. Does not block.

    Raises:
        TypeError: The dtype holds Python objects.
        InvalidArgument: A negative length, or another order.
        OutOfMemory: Shared memory is exhausted.
    """
    return _allocate(shape, dtype, order, False)


def _allocate(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike, order: Order, shared: bool
) -> np.ndarray[Any, np.dtype[Any]]:
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind} holds Python objects, which cannot be shared")
    if order not in ("C", "F"):
        raise InvalidArgument(f"order is {order!r}; it must be 'C' or 'F'")
    lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    count = kind.itemsize
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise TypeError(f"a length must be an int, not {type(length).__name__}")
        if length < 0:
            raise InvalidArgument(f"shape is {lengths}; the least length is 0")
        count *= int(length)
    if count == 0 and len(lengths) > 0 and np.prod([max(1, int(n)) for n in lengths], dtype=float) >= 2.0**62:
        raise LimitExceeded(f"shape is {lengths}, which is too large")
    lease = membership.current().member.allocate(min(max(count, 1), 1 << 62), shared=shared)
    return np.ndarray(lengths, kind, buffer=cast(memoryview, lease), order=order)


def zeros(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Order = "C"
) -> np.ndarray[Any, np.dtype[Any]]:
    """As `empty`, with every byte zero."""
    return _cleared(empty(shape, dtype, order))


def shared(shape: int | tuple[int, ...], dtype: npt.DTypeLike = float) -> np.ndarray[Any, np.dtype[Any]]:
    """As `zeros`, and whoever receives the array, or a view of it, may write to it too.

    All see all writes, in no order but the one that messages or locks between the processes make. A view whose
    ``flags.writeable`` is False is received read-only.
    """
    return _cleared(_allocate(shape, dtype, "C", True))


def _cleared(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    if array.nbytes:
        flat: np.ndarray[Any, np.dtype[np.uint8]] = np.ndarray((array.nbytes,), np.uint8, buffer=array.base)
        flat[:] = 0
    return array


def prefault(nbytes: int, count: int = 1, *, huge: bool = False, node: int | None = None) -> "Future[None]":
    """Have ``count`` blocks for arrays of ``nbytes`` bytes ready in this process, by a thread in the background.

    Their pages are reserved and mapped for writing; the next arrays of that size that this process makes, or sends as
    ordinary ones, cost no page fault: 64 MiB are 16 384 faults otherwise. Blocks that nobody takes within some five
    seconds are given back.

    Args:
        nbytes: Of each block, from 1 on.
        count: How many; those beyond eight of a size, or 256 MiB in all, are not kept for this process alone.
        huge: Pages of 2 MiB, where the kernel makes them (MADV_COLLAPSE, from Linux 6.1 on; before, where the mount of
            /dev/shm allows it): a tenth of the misses of the translation buffer, and all of 2 MiB is in use at once.
        node: The NUMA node whose memory is to hold them while it has room; None: the kernel chooses.

    Returns:
        A future, done when they are ready. Its exception: OutOfMemory, or InvalidArgument for a node that is not there.

    Raises:
        InvalidArgument: nbytes or count below 1, or a negative node.
    """
    for name, value in (("nbytes", nbytes), ("count", count), ("node", 0 if node is None else node)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if value < (name != "node"):
            raise InvalidArgument(f"{name} is {value}; the least is {int(name != 'node')}")
    member = membership.current().member
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        leases = []
        try:
            for _ in range(count):
                leases.append(member.allocate(min(nbytes, 1 << 62)))
                leases[-1].prefault(huge, -1 if node is None else node)
        except BaseException as error:
            leases.clear()
            done.set_exception(error)
        else:
            leases.clear()  # they stay with the process, warm
            done.set_result(None)

    threading.Thread(target=work, name="shmipc prefault", daemon=True).start()
    return done


def share(a: npt.ArrayLike, *, copy: bool | None = None) -> np.ndarray[Any, np.dtype[Any]]:
    """The array in shared memory: ``a`` itself if it is there already, else a copy.

    Args:
        a: Anything that `numpy.asarray` takes.
        copy: True always copies, False never does, None copies when needed.

    Raises:
        TypeError: Its dtype holds Python objects, or it is masked.
        InvalidArgument: ``copy=False`` and it is not in shared memory.
        OutOfMemory: Shared memory is exhausted.
    """
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError("a masked array cannot be shared; share its data and its mask")
    array = np.asarray(a)
    if array.dtype.hasobject:
        raise TypeError(f"dtype {array.dtype} holds Python objects, which cannot be shared")
    if copy is not True and _native.shared_block(array) is not None:
        return array
    if copy is False:
        raise InvalidArgument("the array is not in shared memory, and copy=False forbids a copy")
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    out = empty(array.shape, array.dtype, "F" if fortran else "C")
    out[...] = array
    return out


def move(a: np.ndarray[Any, np.dtype[Any]]) -> _native.Moved:
    """Hand a writable array over: ``ref.fill(shmipc.move(a))``. The receiver gets it writable, without a copy.

    From now on ``a`` is read-only here, and sending it again is refused with BufferError; it may still be read, and
    shows what the receiver writes. What is returned can be sent once, also inside of other objects; a send that is
    refused (MailboxFull, Timeout) does not count.

    Args:
        a: An array of `empty`, `zeros` or `share`, a view that alone refers to one, or one that was moved here.

    Raises:
        BufferError: Something else refers to the array's memory, and could go on writing: a view of it, another name
            for it, another process, a message on its way. Or it is read-only, was moved before, or is `shared`.
        InvalidArgument: It does not lie in shared memory.
        TypeError: No ndarray.
    """
    if type(a) is not np.ndarray:
        raise TypeError(f"move needs an ndarray, not {type(a).__name__}")
    if _native.shared_block(a) is None:
        raise InvalidArgument("only an array in shared memory can be moved; share() makes one")
    names = sys.getrefcount(a) - _ONE_NAME
    base: Any = a.base
    others = 0
    try:
        while names <= 0 and base is not None and others <= 0:
            others = sys.getrefcount(base) - _ONE_OWNER
            base = base.base if isinstance(base, np.ndarray) else None
        if names > 0 or others > 0:
            raise BufferError(
                f"the array has {max(names, others)} more references than the one that moves it: views of it, or other "
                "names for it; delete them first"
            )
        return _native.Moved(a)
    finally:
        del a, base  # the traceback of an error would refer to it


# How many references an object has when one variable refers to it and it is an argument, and when one object refers to
# it and a local variable: no constants, for an interpreter may leave some of them out.
def _one_name(a: object) -> int:
    return sys.getrefcount(a)


def _one_owner(owners: list[object]) -> int:
    base: Any = owners[0]
    return sys.getrefcount(base)


def _calibrate() -> tuple[int, int]:
    named = object()
    return _one_name(named), _one_owner([object()])


_ONE_NAME, _ONE_OWNER = _calibrate()
