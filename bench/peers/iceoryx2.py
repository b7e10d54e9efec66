"""iceoryx2's Python package: publish/subscribe in shared memory; polled, and blocking with an event service.

Settings: ``loan_uninit`` and one memmove (``send_copy`` is slower), a buffer of 1_024 samples, the publisher
retries until delivered, no overflow. The subscriber copies 64 bytes out, so that the sample goes back. Arrays are
slices of a service of their size, whose subscriber holds one and looks at it where it lies; both sides poll.
"""

import ctypes
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.channel import Channel, End, Payload, Port, own_name
from bench.handover import LOOKS, Array, Handover, Look
from bench.harness import FORK, need
from bench.tasks import look_at, pin_worker

BUFFER_SAMPLES = 1_024
BODY_BYTES = 64


class Iceoryx2Polled(Channel):
    waits = False

    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        assert payload == "bytes"
        need("iceoryx2")
        self.names = [f"bench/{own_name(direction)}" for direction in ("to_near", "to_far")]

    def open(self, end: End) -> Port:
        node = _make_node()  # lives as long as its ports, and leaves no files then
        to_near, to_far = self.names
        outgoing, incoming = (to_far, to_near) if end == "near" else (to_near, to_far)
        return Port(self._make_send(node, outgoing), self._make_receive(node, incoming))

    def _service(self, node: Any, name: str) -> Any:
        import iceoryx2

        body = type("Body", (ctypes.Structure,), {"_fields_": [("octets", ctypes.c_uint8 * BODY_BYTES)]})
        return (
            node.service_builder(iceoryx2.ServiceName.new(name))
            .publish_subscribe(body)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(BUFFER_SAMPLES)
            .open_or_create()
        )

    def _events(self, node: Any, name: str) -> Any:
        import iceoryx2

        return node.service_builder(iceoryx2.ServiceName.new(f"{name}-event")).event().open_or_create()

    def _make_send(self, node: Any, name: str) -> Callable[[bytes], None]:
        import iceoryx2

        strategy = iceoryx2.BackpressureStrategy.RetryUntilDelivered
        loan = self._service(node, name).publisher_builder().backpressure_strategy(strategy).create().loan_uninit
        notify = self._events(node, name).notifier_builder().create().notify if self.waits else None
        memmove = ctypes.memmove

        def send(body: bytes) -> None:
            sample = loan()
            memmove(sample.payload_ptr, body, BODY_BYTES)
            sample.assume_init().send()
            if notify is not None:
                notify()

        return send

    def _make_receive(self, node: Any, name: str) -> Callable[[], bytes]:
        take = self._service(node, name).subscriber_builder().create().receive
        wait = self._events(node, name).listener_builder().create().blocking_wait if self.waits else None
        copy_out = ctypes.string_at

        def receive() -> bytes:
            while (sample := take()) is None:
                if wait is not None:
                    wait()
            return copy_out(sample.payload_ptr, BODY_BYTES)

        return receive


class Iceoryx2(Iceoryx2Polled):
    waits = True


class SliceHandover(Handover):
    """A sample is an array and one number more, which says what to look at; a copy of the caller's array in each."""

    def start(self, cores: set[int]) -> None:
        need("iceoryx2")
        self.name = f"bench/{own_name('handover')}"
        self.connection, far = FORK.Pipe()
        self.process = FORK.Process(target=_serve_looks, args=(far, self.name, cores), daemon=True)
        self.process.start()
        far.close()
        self.node = _make_node()  # after the fork: a node is of one process
        self.answers = _make_service(self.node, f"{self.name}-answers").subscriber_builder().create()
        self.connection.send(None)
        self.connection.recv()

    def place(self, array: Array) -> "Placed":
        import iceoryx2

        publisher = (
            _make_service(self.node, f"{self.name}-{array.size}")
            .publisher_builder()
            .initial_max_slice_len(array.size + 1)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self.connection.send(array.size)
        self.connection.recv()
        return Placed(array, publisher)

    def stamp(self, placed: "Placed", number: int) -> int:
        return super().stamp(placed.array, number)

    def ask(self, look: Look, placed: "Placed") -> int:
        return self._send(placed, LOOKS.index(look), copied=True)

    def drop(self, placed: "Placed") -> None:
        self._send(placed, STOP, copied=False)
        placed.publisher = None

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()

    def _send(self, placed: "Placed", order: int, *, copied: bool) -> int:
        sample = placed.publisher.loan_slice_uninit(placed.array.size + 1)
        address = sample.payload_ptr
        if copied:
            ctypes.memmove(address, placed.address, placed.array.nbytes)
        elif order != STOP:
            self._write_ends(placed, address)
        ctypes.c_int64.from_address(address + placed.array.nbytes).value = order
        sample.assume_init().send()
        while (answer := self.answers.receive()) is None:
            pass
        return ctypes.c_int64.from_address(answer.payload_ptr).value

    def _write_ends(self, placed: "Placed", address: int) -> None:
        """A sample that is used for the first time is filled; its ends are written each time."""
        if address not in placed.filled:
            placed.filled.add(address)
            ctypes.memmove(address, placed.address, placed.array.nbytes)
        for at in (0, placed.array.nbytes - 8):
            ctypes.c_int64.from_address(address + at).value = placed.array[0]


class SliceInPlace(SliceHandover):
    """The array is made in the loaned sample: its ends are written there, nothing is copied."""

    def ask(self, look: Look, placed: "Placed") -> int:
        return self._send(placed, LOOKS.index(look), copied=False)


class Placed:
    """An array, and the publisher of samples of its size."""

    def __init__(self, array: Array, publisher: Any) -> None:
        self.array = array
        self.address = array.ctypes.data
        self.publisher = publisher
        self.filled: set[int] = set()


STOP = len(LOOKS)


def _serve_looks(connection: Connection, name: str, cores: set[int]) -> None:
    connection.recv()
    node = _make_node()
    publisher = _make_service(node, f"{name}-answers").publisher_builder().initial_max_slice_len(1).create()
    connection.send(None)
    pin_worker(cores)
    while (count := connection.recv()) is not None:
        subscriber = _make_service(node, f"{name}-{count}").subscriber_builder().create()
        connection.send(None)
        order = 0
        while order != STOP:
            while (sample := subscriber.receive()) is None:
                pass
            address = sample.payload_ptr
            order = ctypes.c_int64.from_address(address + 8 * count).value
            array = np.frombuffer((ctypes.c_int64 * count).from_address(address), np.int64)
            told = look_at(array, LOOKS[order]) if order != STOP else 0
            del sample, array
            answer = publisher.loan_slice_uninit(1)
            ctypes.c_int64.from_address(answer.payload_ptr).value = told
            answer.assume_init().send()


def _make_node() -> Any:
    import iceoryx2

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    builder = iceoryx2.NodeBuilder.new().signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
    return builder.create(iceoryx2.ServiceType.Ipc)


def _make_service(node: Any, name: str) -> Any:
    """Slices of integers, one on its way and one held at most."""
    import iceoryx2

    return (
        node.service_builder(iceoryx2.ServiceName.new(name))
        .publish_subscribe(iceoryx2.Slice[ctypes.c_int64])
        .enable_safe_overflow(False)
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .subscriber_max_buffer_size(1)
        .subscriber_max_borrowed_samples(1)
        .open_or_create()
    )
