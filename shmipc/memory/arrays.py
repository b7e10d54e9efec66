"""Plain ndarrays whose memory is shared.

The base of each array is one lease of a block; the memory is released when the last view dies, in any process.
Sent to another process, an array, or any view or slice of it, travels as a handle and is received read-only,
without a copy. The maker's later writes stay visible there.
"""

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
    lease = membership.current().member.allocate(min(max(count, 1), 1 << 62))
    return np.ndarray(lengths, kind, buffer=cast(memoryview, lease), order=order)


def zeros(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Order = "C"
) -> np.ndarray[Any, np.dtype[Any]]:
    """As `empty`, with every byte zero."""
    array = empty(shape, dtype, order)
    if array.nbytes:
        flat: np.ndarray[Any, np.dtype[np.uint8]] = np.ndarray((array.nbytes,), np.uint8, buffer=array.base)
        flat[:] = 0
    return array


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
