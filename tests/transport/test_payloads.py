"""Large payloads: any size up to the limit, whatever becomes of the sender, the message or the receiver."""

import mmap
import os
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import LIMITS, Mailbox, _native
from tests.actors import Actor, usage

LIMIT = 20.0  # seconds; a watchdog
PAGE = mmap.PAGESIZE
SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, 8 << 20]


class Sender(Actor):
    def send(self, box: Mailbox, sizes: list[int], as_text: bool) -> list[int]:
        """Send bytes or text of these sizes; their checksums."""
        found = []
        for size in sizes:
            data = os.urandom(size)
            text = data.decode("latin-1")
            box.send(text if as_text else data)
            found.append(zlib.crc32(text.encode() if as_text else data))
        return found

    def send_and_overwrite(self, box: Mailbox, size: int) -> int:
        data, array = bytearray(os.urandom(size)), np.frombuffer(os.urandom(size), np.uint8).copy()
        box.send(data)
        box.send(array)
        checksum = zlib.crc32(data), zlib.crc32(array.tobytes())
        data[:] = bytes(size)
        array[:] = 0
        return hash(checksum)

    def hold(self, box: Mailbox) -> None:
        """Keep a hold of it."""
        self.box = box

    def send_to(self, to: Any, size: int, count: int) -> None:
        for _ in range(count):
            shmipc.send(to, bytes(size), tag=1)

    def on_message(self, message: shmipc.Message) -> None:
        pass

    def busy(self) -> None:
        shmipc.receive(tag=2)


class Bogus:
    """Is pickled as a reference to memory that its sender does not have."""

    def __init__(self, handle: int, low: int, extent: int) -> None:
        self.reference = handle, low, extent

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        handle, low, extent = self.reference
        return _native._rebuild_array, (handle, low, extent, 0, (extent,), (1,), np.dtype(np.uint8), 0)


@pytest.fixture(scope="module")
def home() -> Iterator[shmipc.System]:
    with shmipc.System(memory_limit=3 << 30) as made:
        yield made


@pytest.fixture(scope="module")
def senders(home: shmipc.System) -> list[Any]:
    return [home.spawn(Sender) for _ in range(2)]


@pytest.mark.row("H4")
@pytest.mark.parametrize("as_text", [False, True], ids=["bytes", "str"])
def test_payload_of_any_size_arrives_whole_with_its_sender(
    home: shmipc.System, senders: list[Any], request: pytest.FixtureRequest, as_text: bool
) -> None:
    sizes = [*SIZES, LIMITS.body_bytes] if request.config.option.full and not as_text else SIZES
    with Mailbox.create(slots=8) as box:
        sent = senders[0].send.submit(box, sizes, as_text)
        found = []
        for size in sizes:
            message = box.receive_message(timeout=10 * LIMIT)
            assert message.sender == senders[0]
            assert type(message.body) is (str if as_text else bytes)
            assert len(message.body) == size
            found.append(zlib.crc32(message.body.encode() if as_text else message.body))
            del message
        assert found == sent.result(10 * LIMIT)
        box.send("a\0b\0")
        assert box.receive(0) == "a\0b\0"
        with pytest.raises(shmipc.TooLarge):
            box.send(bytes(LIMITS.body_bytes + 1))
        assert box.count() == 0


@pytest.mark.row("H5")
def test_payload_is_the_receiver_s_whatever_becomes_of_the_sender(senders: list[Any], system: shmipc.System) -> None:
    mortal: Any = system.spawn(Sender)
    with Mailbox.create(slots=8) as box:
        checksum = mortal.send_and_overwrite(box, 300_000)
        bodies = box.receive(LIMIT), box.receive(LIMIT)
        assert hash((zlib.crc32(bodies[0]), zlib.crc32(bodies[1].tobytes()))) == checksum, "overwritten right after"
        kept = mortal.send(box, [300_000], False)
        os.kill(shmipc.process(mortal).pid, signal.SIGKILL)
        assert shmipc.process(mortal).join(LIMIT)
        assert [zlib.crc32(box.receive(LIMIT))] == kept, "killed before it was received"
        assert hash((zlib.crc32(bodies[0]), zlib.crc32(bodies[1].tobytes()))) == checksum
        del bodies


@pytest.mark.row("H6")
def test_memory_of_what_nobody_reads_comes_back(senders: list[Any], system: shmipc.System, eventually: Any) -> None:
    before = {name: usage(system)[name] for name in ("blocks", "leases", "mailboxes")}

    def is_back() -> bool:
        return {name: usage(system)[name] for name in before} == before

    box = Mailbox.create(slots=8)
    for _ in range(4):
        box.send(bytes(1 << 20))
    assert usage(system)["blocks"] > before["blocks"] + 1
    box.close()
    eventually(is_back)  # the queue went

    victim: Any = system.spawn(Sender)
    box = Mailbox.create(slots=8)
    asked = [shmipc._native.Box.submit(box, bytes(1 << 20), timeout=0.05) for _ in range(3)]
    for future in asked:
        with pytest.raises(shmipc.Timeout):
            future.result()
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive(0)  # what its callers have withdrawn is discarded
    del asked, future
    box.close()
    victim.busy.cast()
    for _ in range(4):
        shmipc.send(victim, bytes(1 << 20), tag=1)
    assert usage(system)["blocks"] > before["blocks"] + 4
    os.kill(shmipc.process(victim).pid, signal.SIGKILL)
    assert shmipc.process(victim).join(LIMIT)
    del victim
    eventually(is_back)  # the receiver died


@pytest.mark.row("H7")
def test_bogus_reference_is_refused_and_shows_nothing(home: shmipc.System) -> None:
    secret = shmipc.empty((4096,), np.uint8)
    secret[:] = 77
    good = shmipc.share(np.arange(1000))
    before = usage(home)["leases"]
    with Mailbox.create(slots=8) as box:
        for bogus in (
            Bogus(0, 0, 64),  # no handle at all
            [good, Bogus(1, 0, 64)],
            [good, Bogus(2**32 - 1, 0, 64)],
            [good, Bogus(0, 0, 1 << 40)],
            [good, Bogus(0, 1 << 62, 64)],
            [good, Bogus(0, 8192, 64)],
        ):
            box.send(bogus)
            box.send("next")
            with pytest.raises(shmipc.Corrupted):
                box.receive(0)
            assert box.receive(0) == "next"
    del bogus
    assert usage(home)["leases"] == before
    assert (secret == 77).all()


@pytest.mark.row("H8")
def test_large_payloads_that_fill_the_memory_leave_small_ones_their_way(senders: list[Any]) -> None:
    with shmipc.System(memory_limit=64 << 20) as small, Mailbox.create(slots=64) as box:
        sizes: list[int] = []
        with pytest.raises(shmipc.OutOfMemory) as caught:
            while True:
                box.send(bytes(5 << 20))
                sizes.append(5 << 20)
        assert caught.value.needed >= 5 << 20
        assert len(sizes) >= 4
        used = small.statistics().used_bytes
        for size in (10, 200, 1000, 3000):
            box.send(bytes(size))
            sizes.append(size)
        assert small.statistics().used_bytes - used <= 2 * 4096, "none lies in a larger piece than it needs"
        with pytest.raises(shmipc.OutOfMemory):
            box.send(bytes(5 << 20))
        assert [len(box.receive(0)) for _ in sizes] == sizes
