"""Arrays in shared memory: what they are, how they travel, and how long they live."""

import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import _native
from shmipc.memory import membership
from tests.memory.holders import Census, Holder, checksum, pattern, place_is_reused

STRUCTURED = np.dtype([("id", "<u4"), ("at", "<M8[ms]"), ("points", "<f4", (3,)), ("tag", "S5")])
DTYPES = [
    np.dtype(kind) for kind in ("?", "i1", "<u2", ">i4", "<u8", "<f2", "f8", "<c16", "S7", "<U3", "<M8[ns]", "<m8[us]")
] + [STRUCTURED, np.dtype("V16"), np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8]})]
ORDERS: list[Any] = ["C", "F"]
SHAPES: list[int | tuple[int, ...]] = [(), 0, 1, 7, (3, 5), (0, 4), (4, 0, 2), (2, 3, 4, 5)]


@pytest.fixture
def holder(system: shmipc.System) -> Any:
    return system.spawn(Holder)


def leases(system: shmipc.System) -> int:
    return system.statistics().leases


# --- allocation ------------------------------------------------------------------------------------------------


@pytest.mark.row("L1")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("make", [shmipc.empty, shmipc.zeros], ids=["empty", "zeros"])
def test_new_array_is_a_plain_ndarray_whose_memory_is_a_leased_block(
    system: shmipc.System, make: Any, order: Any
) -> None:
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        before = leases(system)
        array = make(shape, dtype, order)
        plain = np.zeros(shape, dtype, order)
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (plain.dtype, plain.shape)
        assert array.size == 0 or array.strides == plain.strides
        assert array.flags.writeable
        assert array.flags.aligned
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous == plain.flags.c_contiguous
        assert array.flags.f_contiguous == plain.flags.f_contiguous
        assert isinstance(array.base, _native.Lease)
        assert leases(system) <= before + 1
        if array.nbytes:
            assert _native.shared_block(array) == (_native.shared_block(array)[0], 0)
        if make is shmipc.zeros:
            assert not any(memoryview(array.base)[: array.nbytes])  # type: ignore[arg-type]
        array[...] = plain
        assert np.array_equal(array, plain)
    held = [make(100, np.uint8, order) for _ in range(100)]
    assert leases(system) >= 100
    assert len({_native.shared_block(array) for array in held}) == 100


@pytest.mark.row("L1")
def test_share_puts_any_array_into_a_leased_block_once(system: shmipc.System) -> None:
    for dtype, shape, order in itertools.product(DTYPES, SHAPES, ORDERS):
        plain = np.zeros(shape, dtype, order)
        plain[...] = np.ones((), dtype) if dtype.kind in "?iufc" else plain
        shared = shmipc.share(plain)
        assert type(shared) is np.ndarray
        assert (shared.dtype, shared.shape) == (plain.dtype, plain.shape)
        assert shared.size == 0 or shared.strides == plain.strides
        assert np.array_equal(shared, plain)
        assert shared.ctypes.data % 64 == 0
        assert not np.shares_memory(shared, plain)
        if plain.nbytes:
            assert shmipc.share(shared) is shared
            assert shmipc.share(shared, copy=False) is shared
            again = shmipc.share(shared, copy=True)
            assert not np.shares_memory(again, shared)
    grid = np.arange(24, dtype="<i4").reshape(4, 6)
    for view in (grid[:, ::2], grid[::-1], grid.T, grid[1:3, 2:5]):
        assert np.array_equal(shmipc.share(view), view)
    assert shmipc.share([1, 2, 3]).tolist() == [1, 2, 3]
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.share(grid, copy=False)


@pytest.mark.row("L1")
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_array_arrives_with_its_dtype_shape_and_strides(
    system: shmipc.System, holder: Any, order: Any
) -> None:
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        array = pattern(shape, dtype, order)
        seen = holder.look(array)
        assert seen["type"] is np.ndarray
        assert (seen["dtype"], seen["shape"]) == (array.dtype, array.shape)
        assert seen["elements"] == array.tobytes("A")
        if array.nbytes:
            assert seen["strides"] == array.strides
            assert seen["place"] == _native.shared_block(array)


def test_array_with_python_objects_or_an_impossible_shape_is_refused(system: shmipc.System) -> None:
    before = leases(system)
    for dtype in (object, np.dtype([("a", "O")])):
        with pytest.raises(TypeError, match="objects"):
            shmipc.empty(3, dtype)
    with pytest.raises(TypeError, match="objects"):
        shmipc.share(np.array([None]))
    with pytest.raises(TypeError, match="masked"):
        shmipc.share(np.ma.masked_array([1], [True]))
    for shape in (-1, (2, -3)):
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.empty(shape)
    with pytest.raises((shmipc.LimitExceeded, shmipc.OutOfMemory)):
        shmipc.empty((1 << 40, 1 << 10))
    with pytest.raises(TypeError):
        shmipc.empty((2, 1.5))  # type: ignore[arg-type]
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.empty(3, order="K")  # type: ignore[arg-type]
    assert leases(system) == before


# --- travel ----------------------------------------------------------------------------------------------------


def free_shm() -> int:
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize


def send_and_watch(system: shmipc.System, box: shmipc.Mailbox, array: np.ndarray) -> tuple[int, int, bytes, np.ndarray]:
    """Send and receive an array; bytes of its body, of shared memory taken for it, the slot's inline part, and it."""
    used = system.statistics().used_bytes
    slot = box.slots[int(box.header["tail"]) % len(box.slots)]
    box.send(array)
    body_bytes, taken, inline = int(slot["len"]), system.statistics().used_bytes - used, slot["body"].tobytes()
    assert slot["lease"] != 0  # the body is elsewhere
    return body_bytes, taken, inline, box.receive()


@pytest.mark.row("L2")
def test_sending_one_kibibyte_and_one_gibibyte_writes_the_same_number_of_bytes() -> None:
    if free_shm() < 1400 << 20:
        pytest.skip(f"/dev/shm has {free_shm() >> 20} MiB free; the array of this test takes 1 GiB")
    with shmipc.System(memory_limit=1200 << 20) as system:
        holder: Any = system.spawn(Holder)
        box = shmipc.Mailbox.create(slots=4)
        small, large = shmipc.empty(1 << 10, np.uint8), shmipc.empty(1 << 30, np.uint8)
        for array in (small, large):
            array[:] = 7
            array[[0, array.size // 2, -1]] = 1, 2, 3
            send_and_watch(system, box, array)  # warms the block that takes the handle
        # The same part of both: every byte is the same.
        parts = [send_and_watch(system, box, array[100:900])[:2] for array in (small, large)]
        assert parts[0] == parts[1]
        (small_body, small_taken, small_inline, _), (large_body, large_taken, large_inline, received) = (
            send_and_watch(system, box, array) for array in (small, large)
        )
        assert small_taken == large_taken == 0
        assert not any(small_inline)  # nothing but the slot's header is written to the ring
        assert not any(large_inline)
        assert large_body - small_body <= 16  # the digits of the length
        assert large_body < 512
        assert _native.shared_block(received) == _native.shared_block(large)
        for key, array in (("small", small), ("large", large)):
            used = system.statistics().used_bytes
            holder.keep(key, array)
            assert holder.place_of(key) == _native.shared_block(array)
            assert holder.checksum(key) == checksum(array)
            assert system.statistics().used_bytes - used < 1 << 20
            array[1] = 99  # no copy was made: the maker's later writes are seen
            assert holder.checksum(key) == checksum(array)
        box.close()


def views_of(base: np.ndarray) -> dict[str, np.ndarray]:
    """Views of a Fortran- or C-ordered array of shape (6, 8, at least 4)."""
    return {
        "whole": base,
        "row": base[3],
        "steps": base[::2, 1::3, ::-1],
        "reversed": base[::-1, ::-1, ::-1],
        "transposed": base.T,
        "axes moved": np.moveaxis(base, 0, 2),
        "one element": base[2, 3, 1:2],
        "zero-dimensional": base[2, 3, 1, ...],
        "broadcast": np.broadcast_to(base[0], (5, *base.shape[1:])),
        "field": base.view(np.dtype([("low", "<u2"), ("high", "<u2")]))["high"]
        if base.flags.c_contiguous
        else base[1:],
        "windows": np.lib.stride_tricks.sliding_window_view(base, 3, axis=1),
        "empty": base[2:2],
    }


@pytest.mark.row("L2")
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_view_travels_as_handle_and_offset_and_keeps_its_strides(
    system: shmipc.System, holder: Any, order: Any
) -> None:
    base = pattern((6, 8, 21), "<u4", order)  # nearly all of its block
    block = _native.shared_block(base)
    assert block is not None
    for name, view in views_of(base).items():
        seen = holder.look(view)
        assert seen["shape"] == view.shape, name
        assert seen["dtype"] == view.dtype
        assert seen["elements"] == view.tobytes("A"), name
        if view.size:
            assert seen["strides"] == view.strides, name
            assert seen["place"] == _native.shared_block(view), name
            assert seen["place"][0] == block[0], name


@pytest.mark.row("L2")
def test_any_view_of_an_array_that_fills_its_block_travels_in_a_pickle_too(system: shmipc.System) -> None:
    base = pattern((6, 8, 21), "<u4")
    with shmipc.Mailbox.create() as box:
        for name, view in views_of(base).items():
            box.send({"a set is pickled": {1}, "view": view})
            got = box.receive(timeout=10)["view"]
            assert np.array_equal(got, view), name
            if view.size:
                assert got.strides == view.strides, name
                assert _native.shared_block(got) == _native.shared_block(view), name
            del got
        box.send(shmipc.move(pattern((6, 8, 21), "<u4")[::-1]))
        assert np.array_equal(box.receive(timeout=10)[::-1], base)


@pytest.mark.row("L2")
def test_received_view_travels_on_by_handle_and_arrays_inside_objects_too(system: shmipc.System, holder: Any) -> None:
    base = pattern((64, 64), "<u4")
    box = shmipc.Mailbox.create()
    box.send({"frame": base, "parts": [base[1::2], (base[:, 3], "text")], "again": base})
    received = box.receive()
    for mine, got in (
        (base, received["frame"]),
        (base[1::2], received["parts"][0]),
        (base[:, 3], received["parts"][1][0]),
        (base, received["again"]),
    ):
        assert np.array_equal(mine, got)
        assert got.strides == mine.strides
        assert _native.shared_block(got) == _native.shared_block(mine)
        holder.keep("passed on", got[1:])
        assert holder.place_of("passed on") == _native.shared_block(mine[1:])
        assert holder.checksum("passed on") == checksum(mine[1:])
    box.close()


class Frame(np.ndarray):
    """A subclass that pickles as ndarray does."""

    camera = None

    def __array_finalize__(self, other: Any) -> None:
        self.camera = getattr(other, "camera", None)


class Strict(np.ndarray):
    """Looks at what it comes of, unless that is nothing, as of a pickle."""

    unit: str

    def __array_finalize__(self, other: Any) -> None:
        self.unit = "none" if other is None else other.unit


class Labelled(np.ndarray):
    """One with a pickle of its own."""

    def __reduce__(self) -> Any:
        return label, (self.tobytes(),)


def label(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).view(Labelled)


@pytest.mark.row("L2", "L3", "L4")
def test_subclass_of_ndarray_travels_as_an_ndarray_does(system: shmipc.System, tmp_path: Path) -> None:
    """They went as bytes in the pickle, copied several times, and arrived in private memory, writable."""
    record = np.dtype([("a", "f8"), ("b", "i8")])
    with shmipc.Mailbox.create() as box:
        for count in (4, 30_000):
            mapped = np.memmap(tmp_path / f"mapped{count}", np.uint8, "w+", shape=(count,))
            mapped[:] = 7
            cases: list[tuple[np.ndarray, type]] = [
                (mapped, np.ndarray),
                (np.ones((4, count)).view(np.matrix), np.matrix),
                (np.zeros(count, record).view(np.recarray), np.recarray),
                (np.arange(count).view(Frame), Frame),
            ]
            for sent, kind in cases:
                box.send(sent)
                box.send({"in": [sent], "cls": lambda: 1})  # by cloudpickle
                for got in (box.receive(), box.receive()["in"][0]):
                    assert type(got) is kind
                    assert not got.flags.writeable
                    assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
                    assert (_native.shared_block(np.asarray(got)) is not None) == (count > 4)
            strict = np.ndarray.__new__(Strict, (count,), np.int64)
            strict[:] = 5
            box.send(strict)
            found = box.receive()
            assert (type(found), found.unit, found.sum()) == (Strict, "none", 5 * count)
            del found
            box.send(np.zeros(count, np.uint8).view(Labelled))
            assert type(box.receive()) is Labelled
        del got
        shared = shmipc.zeros(1000, record)
        before = leases(system)
        for kind in (np.recarray, Frame):
            box.send(shared.view(kind)[10:])
            got = box.receive()
            assert type(got) is kind
            assert got.shape == (990,)
            place = _native.shared_block(shared)
            assert place is not None
            assert _native.shared_block(np.asarray(got)) == (place[0], place[1] + 160)  # it is the block itself
            del got
        membership.current().member.trim()
        assert leases(system) <= before


class Between:
    """Pickled between an array and what only cloudpickle can: it writes to the array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        self.array[:] = 2
        return str, ()


@pytest.mark.row("L3")
def test_large_array_is_copied_once_however_often_its_message_is_pickled(system: shmipc.System) -> None:
    """cloudpickle goes over an object again that pickle cannot do, or that is of a class of __main__."""
    with shmipc.Mailbox.create() as box:
        array = np.ones((100, 300))
        data = bytearray(100_000)
        box.send([array, array[:, ::2], pickle.PickleBuffer(data), Between(array), lambda: 1])
        got = box.receive()
        assert (got[0] == 1).all()
        assert (got[1] == 1).all()
        assert bytes(got[2]) == data
        box.send((array, array, array.T, array[:50]))
        got = box.receive()
        assert _native.shared_block(got[0]) == _native.shared_block(got[1]) == _native.shared_block(got[2])
        assert [part.tolist() for part in got] == [
            array.tolist(),
            array.tolist(),
            array.T.tolist(),
            array[:50].tolist(),
        ]
        token = shmipc.move(shmipc.zeros(10))
        box.send([token, lambda: 1])
        assert box.receive()[0].flags.writeable


# --- read-only -------------------------------------------------------------------------------------------------


@pytest.mark.row("L4")
def test_received_array_cannot_be_written_by_any_means_of_python(system: shmipc.System, holder: Any) -> None:
    array = pattern(1000)
    before = array.tobytes()
    assert set(holder.try_to_write(array)) <= {"ValueError", "TypeError"}
    seen = holder.look(array)
    assert not seen["writeable"]
    box = shmipc.Mailbox.create()
    box.send(array)
    received = box.receive()  # in the very process that may write
    assert not received.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1
    with pytest.raises(ValueError):
        received.setflags(write=True)
    assert isinstance(received.base, _native.Lease)
    assert received.base.readonly
    assert memoryview(received.base).readonly
    assert array.flags.writeable
    assert array.tobytes() == before
    box.close()


@pytest.mark.row("L4")
def test_write_through_c_ends_in_a_segmentation_fault_of_the_writer_and_nowhere_else(
    system: shmipc.System, holder: Any, eventually: Any
) -> None:
    array = pattern(5000)
    before = array.tobytes()
    holder.keep("mine", array)
    victim: Any = system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(Holder)
    with pytest.raises(shmipc.PeerDead) as told:
        victim.write_through_c(array)
    assert (told.value.reason, told.value.signal) == ("signal", signal.SIGSEGV)
    assert shmipc.process(victim).exitcode == -signal.SIGSEGV
    assert array.tobytes() == before
    assert holder.checksum("mine") == checksum(array)
    array[0] += 1  # the maker still may
    assert holder.checksum("mine") == checksum(array)


# --- lifetime --------------------------------------------------------------------------------------------------


LEAVING = [(part, order) for part in ("whole", "slice") for order in ("012", "021", "102", "120", "201", "210")]


@pytest.mark.row("L7")
@pytest.mark.parametrize(("part", "order"), LEAVING if os.environ.get("SHMIPC_FULL") else LEAVING[::2])
def test_block_is_freed_when_the_last_of_three_processes_drops_its_view_and_not_earlier(
    system: shmipc.System, eventually: Any, part: str, order: str
) -> None:
    first, second = holders = [system.spawn(Holder), system.spawn(Holder)]
    for holder in holders:
        holder.trim()
    census = Census(system, *holders)
    mine: list[np.ndarray] = [pattern(100_000)]
    place, expected = _native.shared_block(mine[0]), checksum(mine[0][10:20] if part == "slice" else mine[0])
    for holder in holders:
        if part == "slice":
            holder.keep_part("it", mine[0], 10, 20)
        else:
            holder.keep("it", mine[0])
    if part == "slice":
        mine[0] = mine[0][10:20]
    drops = [mine.clear, lambda: first.drop("it"), lambda: second.drop("it")]
    sees = [lambda: checksum(mine[0]), lambda: first.checksum("it"), lambda: second.checksum("it")]
    alive = list(range(3))
    for which in map(int, order):
        for still in alive:
            assert sees[still]() == expected
        census.now()
        assert not place_is_reused(place, 100_000)
        assert not census.is_back()
        drops[which]()
        alive.remove(which)
    assert census.is_back()
    assert place_is_reused(place, 100_000)


@pytest.mark.row("L7")
def test_smallest_view_keeps_the_block_after_array_and_base_are_gone(system: shmipc.System, eventually: Any) -> None:
    census = Census(system)
    array = pattern((100, 100), "<u4")
    expected, place = array[3, 5:7].tolist(), _native.shared_block(array)
    part = array[3, 5:7]
    del array
    assert part.tolist() == expected
    memory = memoryview(part)
    del part
    gc.collect()
    assert not place_is_reused(place, 40_000)
    assert memory.tolist() == expected
    assert not census.is_back()
    del memory
    assert census.is_back()


@pytest.mark.row("L7")
def test_block_of_a_killed_holder_is_freed_and_those_of_others_stay(system: shmipc.System, eventually: Any) -> None:
    stays: Any = system.spawn(Holder)
    census = Census(system, stays)
    dies: Any = system.spawn(Holder)
    process = shmipc.process(dies)
    array = pattern(100_000)
    stays.keep("it", array)
    dies.keep("it", array)
    dies.keep("own", pattern(50_000, seed=1))
    expected = checksum(array)
    del array
    process.kill()
    assert process.join(10.0)
    del dies, process
    assert stays.checksum("it") == expected
    assert census.now() == (census.baseline[0] + 1, census.baseline[1] + 1)
    stays.drop("it")
    eventually(census.is_back)


EXIT = """
    import sys
    import numpy as np
    import shmipc

    class Keeper:
        kept = []
        def keep(self, array):
            self.kept.append(array)
            KEPT.append(array[1:])
            return int(array.sum())

    KEPT = []
    system = shmipc.System()
    ref = system.spawn(Keeper)
    array = shmipc.zeros((1000, 10), np.uint8)
    array[5] = 1
    assert ref.keep(array) == 10
    box = shmipc.Mailbox.create()
    box.send({"a": array})
    box.send(array[:2])
    received = box.receive()["a"]
    memory = memoryview(received)
    sys.held = [array[3:], received.T, memory, box.header]
    class Late:
        def __del__(self, array=array, held=sys.held):
            assert int(array.sum()) == 10 and int(held[0].sum()) == 10
    sys.late = Late()
    """
ENDS = {
    "as it stands": "",
    "after shutdown": "system.shutdown()\nassert int(array.sum()) == 10 and int(received.sum()) == 10",
    "by sys.exit": "sys.exit(0)",
    "as current system": "del system",
    "in a thread": (
        "import threading\nt = threading.Thread(target=lambda: sys.held.append(array[4:])); t.start(); t.join()"
    ),
}


@pytest.mark.row("L7")
@pytest.mark.parametrize("end", ENDS)
def test_interpreter_ends_with_live_views_without_error_or_warning(tmp_path: Path, end: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(EXIT) + ENDS[end])
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the sender goes -------------------------------------------------------------------------------------------


class Sender:
    """An actor that sends an array and is gone."""

    def send(self, box: shmipc.Mailbox, end: str, seed: int) -> None:
        array = pattern(300_000, seed=seed)
        box.send((checksum(array), array, array[100:200]))
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif end == "exits":
            os._exit(0)
        elif end == "returns":
            raise SystemExit(0)


@pytest.mark.row("L8")
@pytest.mark.parametrize("end", ["killed", "exits", "returns"])
def test_data_stays_valid_when_the_sender_ends_right_after_send(
    system: shmipc.System, eventually: Any, end: str
) -> None:
    holder: Any = system.spawn(Holder)
    box = shmipc.Mailbox.create()
    box.send(None)
    box.receive()
    census = Census(system, holder)
    for seed in range(5):
        sender: Any = system.spawn(Sender)
        sender.send.cast(box, end, seed)
        assert shmipc.process(sender).join(20.0)
        eventually(lambda: len(system.processes()) == 1)
        if seed % 2:
            place_is_reused((0, 0), 300_000)  # others take memory before the message is received
        expected, array, part = box.receive(timeout=20.0)
        place_is_reused((0, 0), 300_000)  # and after
        assert checksum(array) == expected
        assert part.tobytes() == array[100:200].tobytes()
        holder.keep("it", array)
        del array
        place_is_reused((0, 0), 300_000)
        assert holder.checksum("it") == expected
        assert zlib.crc32(part.tobytes()) == zlib.crc32(((np.arange(100, 200) * 37 + seed) % 251).astype(np.uint8))
        holder.drop("it")
        del part, sender
    eventually(census.is_back)
    box.close()
