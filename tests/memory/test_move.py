"""Arrays that are handed over, and arrays that all may write to."""

import asyncio
import contextlib
import gc
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import _native
from tests.memory.holders import Census, Holder


class Writer(Holder):
    """Writes to what it is given, as far as it may."""

    def fill(self, array: np.ndarray, value: int) -> tuple[bool, tuple[int, int] | None]:
        array[:] = value
        return array.flags.writeable, _native.shared_block(array)

    def fill_inside(self, body: dict[str, Any]) -> bool:
        body["frame"][:] = 7
        return bool(body["frame"].flags.writeable)

    def hand_back(self, array: np.ndarray) -> Any:
        array[:] = 3
        self.mine = array
        array = None  # type: ignore[assignment]
        return 0

    def move_on(self, box: shmipc.Mailbox) -> str:
        held, self.mine = self.mine, None  # type: ignore[assignment]
        try:
            box.send(shmipc.move(held))
        except BufferError as error:
            return str(error)
        return "moved" if not held.flags.writeable else "writable"

    def count(self, half: np.ndarray, rounds: int, box: shmipc.Mailbox) -> int:
        """Add to each number of one half; wait for the other side each time."""
        for _ in range(rounds):
            half += 1
            box.send("done")
        return int(half.sum())


@pytest.fixture
def writer(system: shmipc.System) -> Any:
    return system.spawn(Writer)


@pytest.mark.row("L5")
def test_moved_array_is_writable_there_and_read_only_here_and_is_not_sent_again(
    system: shmipc.System, writer: Any
) -> None:
    census = Census(system, writer)
    frame = shmipc.zeros((50, 40), np.uint8)
    place = _native.shared_block(frame)
    assert writer.fill(shmipc.move(frame), 9) == (True, place)
    assert (frame == 9).all()  # nothing was copied
    assert not frame.flags.writeable
    for write in (
        lambda: frame.__setitem__(0, 1),
        lambda: frame.setflags(write=True),
        lambda: np.frombuffer(frame.base, np.uint8).__setitem__(0, 1),
    ):
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE|cannot set"):
            write()
    with shmipc.Mailbox.create() as box:
        for again in (
            lambda: writer.look(frame),
            lambda: box.send(frame[3:]),
            lambda: box.send({"in": [frame]}),
            lambda: shmipc.move(frame),
        ):
            with pytest.raises(BufferError, match="moved"):
                again()
        token = shmipc.move(shmipc.zeros(10))
        box.send(token)
        with pytest.raises(BufferError, match="cannot be sent again"):
            box.send(token)
        assert box.receive().flags.writeable
        with pytest.raises(BufferError, match="cannot be sent again"):
            box.send([token])
        assert box.count() == 0
    assert writer.fill_inside({"frame": shmipc.move(shmipc.zeros(5)), "n": 1})
    frame = token = None  # type: ignore[assignment]
    gc.collect()
    assert census.is_back()


@pytest.mark.row("L5")
def test_move_is_refused_while_another_view_of_the_block_exists(system: shmipc.System, writer: Any) -> None:
    frame = shmipc.zeros((50, 40), np.uint8)
    for make in (
        lambda: frame[3:],
        lambda: frame.T,
        lambda: frame.reshape(-1)[::2],
        lambda: memoryview(frame),
        lambda: np.frombuffer(frame.base, np.uint8),
    ):
        view: Any = make()
        with pytest.raises(BufferError, match="references"):
            shmipc.move(frame)
        assert frame.flags.writeable
        del view
    writer.keep("it", frame)  # another process has a view
    with pytest.raises(BufferError, match="held 2 times"):
        shmipc.move(frame)
    writer.drop("it")
    with shmipc.Mailbox.create() as box:  # a message on its way
        box.send(frame)
        with pytest.raises(BufferError, match="held 2 times"):
            shmipc.move(frame)
        box.receive()
    assert frame.flags.writeable
    part = shmipc.zeros(100, np.uint8)[10:20]  # the only view there is
    assert writer.fill(shmipc.move(part), 1)[0]
    assert writer.fill(shmipc.move(frame), 2)[0]
    assert (frame == 2).all()
    for refused, error in (
        (np.zeros(3), shmipc.InvalidArgument),
        ([1], TypeError),
        (shmipc.shared(3), BufferError),
    ):
        with pytest.raises(error):
            shmipc.move(refused)  # type: ignore[arg-type]


@pytest.mark.row("L5")
def test_moved_array_is_not_sent_again_by_whatever_looks_at_its_memory(system: shmipc.System, writer: Any) -> None:
    record = np.dtype([("a", "f8"), ("b", "i8")])
    views: list[tuple[Any, Any]] = [
        (float, memoryview),
        (float, lambda a: [memoryview(a)]),
        (float, lambda a: memoryview(a).cast("B")[8:]),
        (float, lambda a: np.frombuffer(memoryview(a).cast("B"), float)),
        (float, np.from_dlpack),
        (float, lambda a: {"in": np.from_dlpack(a)}),
        (float, lambda a: a.view(np.matrix)),
        (record, lambda a: a.view(np.recarray)),
    ]
    try:
        import pyarrow as pa
    except ImportError:
        pass
    else:
        views += [(float, pa.py_buffer), (float, lambda a: pa.array(a.reshape(-1)))]
    with shmipc.Mailbox.create() as box:
        for dtype, look in views:
            frame = shmipc.zeros((40, 50), dtype)
            writer.hand_back(shmipc.move(frame))
            view = look(frame)
            with pytest.raises(BufferError, match="moved to another process"):
                box.send(view)
            del frame, view
        frame = shmipc.zeros(2000)
        box.send(shmipc.move(frame))
        owned = box.receive()
        box.send(owned)
        shown = box.receive()  # the new owner has shown it to this process, which may send that on
        box.send([shown, memoryview(shown)])
        assert not box.receive()[0].flags.writeable
        del frame, owned, shown
        frame = shmipc.zeros(2000)  # perhaps the same block, which is another array's by now
        box.send(memoryview(frame))
        assert len(box.receive()) == 2000


class Plain:
    def look(self, array: np.ndarray) -> float:
        return float(array[0])

    def fail(self, array: np.ndarray) -> None:
        raise ValueError(len(array))


class Async(Plain):
    async def wait(self, array: np.ndarray) -> float:
        await asyncio.sleep(0)
        return float(array[0])

    async def fail_later(self, array: np.ndarray) -> None:
        await asyncio.sleep(0)
        raise ValueError(len(array))


@pytest.mark.row("L5", "L7")
def test_who_was_answered_may_move_what_it_had_sent(system: shmipc.System) -> None:
    """Also by an error, and by an actor with async handlers, which held its last message for as long as it idled."""
    plain: Any = system.spawn(Plain)
    other: Any = system.spawn(Async)
    pool = system.pool(1)
    calls: dict[str, Any] = {
        "look": plain.look,
        "fail": plain.fail,
        "look of an async one": other.look,
        "fail of an async one": other.fail,
        "wait": other.wait,
        "fail_later": other.fail_later,
        "task": lambda array: pool.submit(look_at, array).result(),
        "task that fails": lambda array: pool.submit(fail_of, array).result(),
    }
    for _ in range(10):
        for name, call in calls.items():
            frame = shmipc.zeros(1000)
            with contextlib.suppress(ValueError):
                call(frame)
            try:
                shmipc.move(frame)
            except BufferError as error:
                raise AssertionError(f"after {name}: {error}") from None


def look_at(array: np.ndarray) -> float:
    return float(array[0])


def fail_of(array: np.ndarray) -> None:
    raise ValueError(len(array))


@pytest.mark.row("L5")
def test_receiver_of_a_moved_array_may_move_it_on(system: shmipc.System, writer: Any) -> None:
    with shmipc.Mailbox.create() as box:
        frame = shmipc.zeros(1000)
        writer.hand_back(shmipc.move(frame))
        assert "held 2 times" in writer.move_on(box)  # the first owner still reads it
        writer.hand_back(shmipc.move(shmipc.zeros(1000)))
        assert writer.move_on(box) == "moved"
        back = box.receive()
        assert back.flags.writeable
        back[:] = 4
        assert back.sum() == 4000


@pytest.mark.row("L5")
def test_refused_send_of_a_moved_array_does_not_count(system: shmipc.System, writer: Any) -> None:
    with shmipc.Mailbox.create(slots=1) as box:
        box.send("full")
        token = shmipc.move(shmipc.zeros(1000))
        for _ in range(2):
            with pytest.raises(shmipc.MailboxFull) as caught:
                box.send_nowait(token)
            assert caught.value.message is token
            with pytest.raises(shmipc.Timeout):
                box.send([token, {1}], timeout=0.01)
        with pytest.raises(TypeError, match="generator"):
            box.send((token, (x for x in ())))
        box.receive()
        box.send((token, lambda: 1))
        assert box.receive()[0].flags.writeable


@pytest.mark.row("L6")
def test_two_processes_write_to_one_shared_array_and_see_each_other(system: shmipc.System, writer: Any) -> None:
    array = shmipc.shared((2, 1000), np.int64)
    assert (array.sum(), array.flags.writeable) == (0, True)
    other: Any = system.spawn(Writer)
    with shmipc.Mailbox.create(slots=1) as first, shmipc.Mailbox.create(slots=1) as second:
        counts = [
            writer.count.submit(array[0], 20, first),
            other.count.submit(array[1], 20, second),
        ]
        for number in range(1, 21):  # each has written before it says so
            for half, box in enumerate((first, second)):
                assert box.receive(10.0) == "done"
                assert array[half].min() >= number
        assert [count.result(10.0) for count in counts] == [20_000, 20_000]
    assert (array == 20).all()
    array[0] = 5
    assert writer.fill(array[1:, ::2], 1)[0]  # a view, writable there, of the same memory
    assert (array[1, ::2] == 1).all()
    assert (array[1, 1::2] == 20).all()
    quiet = array[0]
    quiet.flags.writeable = False
    assert writer.look(quiet)["writeable"] is False
    assert writer.look(array)["writeable"] is True
    assert writer.look({"in": array[0]}["in"])["elements"] == array[0].tobytes()
