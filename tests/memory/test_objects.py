"""Large buffers inside of objects are copied once, into a block, and read there; and other libraries take them so."""

import ctypes
import gc
import resource
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import _native
from tests.memory.holders import Census, Holder, trim
from tests.programs import Program

PAGES = 2048
NBYTES = PAGES * 4096


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def addresses(shared: np.ndarray) -> tuple[int, int]:
    place = _native.shared_block(shared)
    assert place is not None, "not in shared memory"
    return place


@dataclass
class Frame:
    number: int
    pixels: np.ndarray
    more: dict[str, np.ndarray]


def bytes_in(array: np.ndarray) -> np.ndarray:
    return array.ravel("K").view(np.uint8)  # a view: they are contiguous in one order or the other


def dict_of_arrays() -> tuple[Any, Any, Any]:
    body = {"a": np.arange(NBYTES // 8.0), "b": [np.arange(NBYTES // 4, dtype="i4").reshape(-1, 64).T, "text"]}

    def same(x: Any, y: Any) -> bool:
        return x["b"][1] == y["b"][1] and np.array_equal(x["a"], y["a"]) and np.array_equal(x["b"][0], y["b"][0])

    return body, lambda x: [x["a"], x["b"][0]], same


def dataclass_of_arrays() -> tuple[Any, Any, Any]:
    body = Frame(3, np.full((512, NBYTES // 512), 7, np.uint8), {"times": np.zeros(NBYTES // 8, "M8[ns]")})

    def same(x: Frame, y: Frame) -> bool:
        return (x.number, list(x.more)) == (y.number, list(y.more)) and np.array_equal(x.pixels, y.pixels)

    return body, lambda x: [x.pixels, x.more["times"]], same


def data_frame() -> tuple[Any, Any, Any]:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install shmipc[interop]")
    columns = {"x": np.arange(NBYTES // 8.0), "n": np.arange(NBYTES // 8)}
    body = pandas.DataFrame(columns)
    return body, lambda x: [x["x"].to_numpy(), x["n"].to_numpy()], lambda x, y: x.equals(y)


def arrow_table() -> tuple[Any, Any, Any]:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install shmipc[interop]")
    body = arrow.table({"x": np.arange(NBYTES // 8.0), "n": np.arange(NBYTES // 8)})

    def parts(table: Any) -> list[np.ndarray]:
        return [np.frombuffer(column.chunk(0).buffers()[1], np.uint8) for column in table.columns]

    return body, parts, lambda x, y: x.equals(y)


def tensor() -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    body = {"a": torch.arange(NBYTES // 8), "b": torch.ones(512, NBYTES // 1024, dtype=torch.bfloat16)}
    return (
        body,
        lambda x: [x["a"].numpy(), x["b"].view(torch.int16).numpy()],
        lambda x, y: all(torch.equal(x[key], y[key]) for key in x),
    )


@pytest.mark.row("L3")
@pytest.mark.parametrize("make", [dict_of_arrays, dataclass_of_arrays, data_frame, arrow_table, tensor])
def test_each_large_buffer_in_an_object_is_copied_once_and_read_without_a_copy(
    system: shmipc.System, make: Any
) -> None:
    body, parts, same = make()
    with shmipc.Mailbox.create(slots=4) as box:
        box.send(make()[0])  # what is imported at the first time
        box.receive()
        gc.collect()
        trim()
        slot = box.slots[int(box.header["tail"]) % len(box.slots)]
        used, before = system.statistics().used_bytes, faults()
        box.send(body)
        sending = faults() - before
        # Two blocks with the bytes, one page for the rest. Each page of them was touched once, and nothing else.
        assert system.statistics().used_bytes - used <= 2 * NBYTES + 4 * 4096
        assert int(slot["len"]) < 8192
        assert sending < 3 * PAGES
        before = faults()
        received = box.receive()
        assert faults() - before < PAGES / 4  # nothing was read
        found = parts(received)
        assert len({addresses(part)[0] for part in found}) == 2
        if make is not tensor:  # torch has no tensors that are read-only, and says so of none
            assert not any(part.flags.writeable for part in found)
        assert same(received, body)
        copies = [bytes_in(part).copy() for part in found]
        for part in parts(body):  # it is a copy: what the sender writes later is its own
            if part.flags.writeable:
                bytes_in(part)[:] = 9
        assert all(np.array_equal(bytes_in(part), copy) for part, copy in zip(found, copies, strict=True))
        # What was received lies in shared memory: sent on, nothing is copied at all.
        box.send(received)
        assert system.statistics().used_bytes - used <= 2 * NBYTES + 8 * 4096
        again = box.receive()
        assert [addresses(part) for part in parts(again)] == [addresses(part) for part in found]
        del received, again, found


def test_received_arrays_are_read_only_whatever_their_size_and_keep_their_kind(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    kinds = [np.dtype(kind) for kind in ("?", "i1", ">i4", "u8", "f2", "f8", "c16", "S7", "U3", "M8[s]", "V5")]
    with shmipc.Mailbox.create() as box:
        for dtype in kinds:
            for shape in ((), (0,), (3,), (0, 4), (2, 3), (40, 50), (70, 80, 3)):
                count = int(np.prod(shape))
                plain = np.frombuffer(bytes(range(251)) * 1100, dtype, count).reshape(shape)
                if dtype.kind in "?U":
                    plain = np.ones(shape, dtype)
                for array in (plain, plain.T, plain[::2] if shape and shape[0] > 1 else plain):
                    for sent in (array, (array, 1), {"in": [array]}):
                        box.send(sent)
                        got = box.receive()
                        got = got if type(got) is np.ndarray else got[0] if type(got) is tuple else got["in"][0]
                        assert (got.dtype, got.shape) == (array.dtype, array.shape)
                        assert got.tobytes() == array.tobytes()
                        assert not got.flags.writeable
                        assert type(got) is np.ndarray
    nothing = holder.look(np.zeros(10))
    assert nothing["writeable"] is False
    objects = np.array([None, "x"], object)
    assert holder.look(objects)["dtype"].kind == "O"


def test_one_array_twice_and_a_small_one_of_a_shared_block_keep_their_meaning(system: shmipc.System) -> None:
    with shmipc.Mailbox.create() as box:
        shared = shmipc.zeros(4)
        box.send((shared, shared[1:], np.arange(3), "end", None, 1.5))
        first, second, third, *rest = box.receive()
        shared[:] = 5
        assert first.tolist() == [5] * 4
        assert second.tolist() == [5] * 3
        assert third.tolist() == [0, 1, 2]
        assert rest == ["end", None, 1.5]
        large = np.zeros(NBYTES // 8)
        box.send([large, large])
        first, second = box.receive()
        assert first is second


def test_first_array_that_a_worker_sees_may_be_a_small_one_of_a_pickled_body(tmp_path: Path) -> None:
    text = """
    WEIGHTS = np.array([1.0, 2.0])
    def weigh(box):
        box.send(float(WEIGHTS.sum()))
    with shmipc.System() as system, shmipc.Mailbox.create() as box:
        system.spawn(weigh, box)
        say(box.receive())
    """
    with Program(tmp_path, text) as program:
        assert program.hear() == 3.0
        assert program.process.wait(30.0) == 0


@pytest.mark.row("L3")
def test_bytes_bytearray_and_memoryview_arrive_as_they_were(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    census = Census(system, holder)
    data = np.arange(NBYTES, dtype=np.uint8).tobytes()
    with shmipc.Mailbox.create() as box:
        for sent in (data, bytearray(data), [data, {"x": bytearray(data)}], (data[:100], bytearray(b"abc"))):
            box.send(sent)
            got = box.receive()
            assert got == sent
            assert type(got) is type(sent)
        for size in (5, NBYTES):
            box.send(memoryview(data)[:size])
            got = box.receive()
            assert type(got) is memoryview
            assert got.readonly
            assert got == memoryview(data)[:size]
        assert addresses(np.frombuffer(got, np.uint8))[1] == 0  # the large one lies in its block
        grid = np.arange(NBYTES // 8.0).reshape(-1, 64)
        for view in (memoryview(grid), memoryview(grid)[::2], memoryview(bytearray(b"abcdef"))[::-1]):
            box.send({"view": view})
            got = box.receive()["view"]
            assert (got.format, got.shape) == (view.format, view.shape)
            assert got.tolist() == view.tolist()
        got = view = None
    assert census.is_back()


# --- hand-over to other libraries ------------------------------------------------------------------------------


@pytest.fixture
def received(system: shmipc.System) -> Any:
    with shmipc.Mailbox.create() as box:
        made = shmipc.empty((100, 40), np.float64)
        made[:] = np.arange(4000.0).reshape(100, 40)
        box.send(made)
        yield box.receive()


@pytest.mark.row("L14")
def test_buffer_protocol_and_array_interface_give_the_received_bytes_themselves(received: Any) -> None:
    at = received.ctypes.data
    view = memoryview(received)
    assert view.readonly
    assert np.asarray(view).ctypes.data == at
    assert np.frombuffer(received, np.float64).ctypes.data == at
    assert received.__array_interface__["data"] == (at, True)
    assert np.asarray(received) is received

    class Foreign:
        __array_interface__ = received.__array_interface__

    foreign = np.asarray(Foreign())
    assert foreign.ctypes.data == at
    assert not foreign.flags.writeable
    assert memoryview(received.base).nbytes >= received.nbytes
    assert (ctypes.c_char * 8).from_address(at).raw == received[0, 0].tobytes()


@pytest.mark.row("L14")
def test_read_only_array_goes_through_dlpack_1_0_and_an_old_consumer_is_refused_or_copies(received: Any) -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        with pytest.raises(BufferError):
            received.__dlpack__()
        pytest.skip(f"numpy {np.__version__} knows no DLPack 1.0 and refuses read-only arrays; 2.1 does")
    taken = np.from_dlpack(received)
    assert taken.ctypes.data == received.ctypes.data
    assert not taken.flags.writeable
    capsule = received.__dlpack__(max_version=(1, 0))
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    managed = get(capsule, b"dltensor_versioned")  # DLManagedTensorVersioned: version, context, deleter, flags, tensor
    assert ctypes.c_uint32.from_address(managed).value == 1
    assert ctypes.c_uint64.from_address(managed + 24).value & 1  # read-only
    assert ctypes.c_void_p.from_address(managed + 32).value == received.ctypes.data
    with pytest.raises(BufferError):
        received.__dlpack__()  # one that cannot be told that it must not write
    with pytest.raises(BufferError):
        received.__dlpack__(max_version=(0, 8))
    copied = np.from_dlpack(received, copy=True)
    assert copied.ctypes.data != received.ctypes.data
    assert np.array_equal(copied, received)
    old = received.__dlpack__(copy=True)
    assert get(old, b"dltensor") is not None


@pytest.mark.row("L14")
def test_arrow_takes_a_received_array_without_a_copy(received: Any) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install shmipc[interop]")
    buffer = arrow.py_buffer(received)
    assert (buffer.address, buffer.is_mutable) == (received.ctypes.data, False)
    flat = received.reshape(-1)
    made = arrow.array(flat)
    assert made.buffers()[1].address == flat.ctypes.data
    assert arrow.Tensor.from_numpy(received).to_numpy().ctypes.data == received.ctypes.data


@pytest.mark.row("L14")
def test_torch_takes_a_received_array_without_a_copy(received: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with warnings.catch_warnings():  # that it is not writable, which torch says once in a process
        warnings.simplefilter("ignore")
        made = torch.from_numpy(received)
    assert made.data_ptr() == received.ctypes.data
    assert made.sum() == received.sum()
