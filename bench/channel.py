"""The protocol that ours, the peers and the bare ring share: messages between two processes.

A channel is made in the near process (the driver), handed to one far process or more, and opened on both
sides. One-way messages flow from far to near, so that many producers are the same case as one. Commands go
over a Unix socket, the same for every channel, and never while a clock runs.
"""

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice, pairwise, repeat
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple

from bench import machine
from bench.harness import FORK, Sample, Settings, percentiles

End = Literal["near", "far"]
Payload = Literal["bytes", "tuple"]
Gap = Literal["none", "busy", "sleep"]

BLOCK = 256
WARM_BLOCKS = 20
WARM_TRIPS = 1_000
GAP_US = 300
FAREWELL_S = 5.0


class Port(NamedTuple):
    """One end of a channel, as bare callables: the timed loops call nothing else.

    Args:
        send: Takes one message and returns when it is accepted.
        receive: Waits for the next message and returns it.
        receive_many: Waits for at least one message and returns a list; None if the channel cannot.
    """

    send: Callable[[Any], object]
    receive: Callable[[], Any]
    receive_many: Callable[[], list[Any]] | None = None


class Channel(ABC):
    """Messages from far to near, and back if ``two_way``.

    Args:
        payload: "bytes" for 64-byte messages, "tuple" for small Python tuples.
        two_way: Near sends too.
        producers: How many far processes will open it.
    """

    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        self.payload: Payload = payload
        self.two_way = two_way
        self.producers = producers
        self.children: list[BaseProcess] = []

    @abstractmethod
    def open(self, end: End) -> Port:
        """Called once in each process, in the far ones first."""

    def start(self, target: Callable[..., None], *args: object) -> None:
        """Start a far process that runs ``target(*args)``; it ends when its control connection does."""
        child = FORK.Process(target=target, args=args, daemon=True)
        child.start()
        self.children.append(child)

    def close(self) -> None:
        """Called in the near process when the far ones have been told to stop; waits until they have tidied up."""
        for child in self.children:
            child.join(FAREWELL_S)


def bodies(payload: Payload) -> list[Any]:
    """One block of messages, all different; both sides make the same ones."""
    if payload == "tuple":
        return [(k, "abc", k + 0.5) for k in range(BLOCK)]
    return [k.to_bytes(8, "little") * 8 for k in range(BLOCK)]


def measure_one_way(channel: Channel, settings: Settings) -> Sample:
    """Messages per second from the producer's first send to the consumer's last receive, and CPU per message."""
    with _opened(channel) as (port, (control,)):
        warm = _take_blocks(port, control, channel.payload, WARM_BLOCKS, check_all=True)
        wanted = settings.run_seconds * warm["rate"] / BLOCK
        blocks = settings.count(min(20_000, max(10, round(wanted))), 10)
        return _take_blocks(port, control, channel.payload, blocks, check_all=False)


def measure_round_trip(channel: Channel, settings: Settings, gap: Gap = "none") -> Sample:
    """Time from send to reply seen, ns, each reply compared; near idles ``GAP_US`` before each trip if asked to."""
    near_trips = _make_trips if gap == "none" else _make_spaced_trips
    with _opened(channel) as (port, (control,)):
        messages = bodies(channel.payload)
        warm_trips = settings.count(WARM_TRIPS if gap == "none" else 100, 20)
        warm = _trip(near_trips, port, control, messages, warm_trips, gap)
        wanted = settings.run_seconds * 1e9 / (warm["mean"] + (GAP_US * 1e3 if gap != "none" else 0.0))
        trips = settings.count(min(300_000, max(500, round(wanted))), 50)
        return _trip(near_trips, port, control, messages, trips, gap)


@contextmanager
def opened_far(channel: Channel, cores: list[set[int]]) -> Iterator[tuple[Port, list[Connection]]]:
    """Far processes started, pinned to ``cores`` and open; near open and not pinned. Controls in order of index."""
    with Listener(tempfile.mktemp(suffix=".sock"), "AF_UNIX", backlog=128) as listener:
        for index in range(channel.producers):
            channel.start(serve, channel, str(listener.address), index, cores[index])
        by_index = {}
        for _ in range(channel.producers):
            control = listener.accept()
            by_index[control.recv()] = control
    controls = [by_index[index] for index in range(channel.producers)]
    try:
        yield channel.open("near"), controls
        for control in controls:
            control.send(("stop",))
        for control in controls:
            control.recv()
    finally:
        for control in controls:
            control.close()
        channel.close()


def serve(channel: Channel, address: str, index: int, cores: set[int]) -> None:
    """The far process: open, pin, then do what the near process says."""
    port = channel.open("far")
    machine.pin(cores)
    with Client(address, "AF_UNIX") as control:
        control.send(index)
        while True:
            try:
                command, *arguments = control.recv()
            except EOFError:
                return
            if command == "stop":
                control.send("stopped")
                return
            control.send(COMMANDS[command](port, channel.payload, index, *arguments))


@contextmanager
def _opened(channel: Channel) -> Iterator[tuple[Port, list[Connection]]]:
    near_core, far_core = machine.two_cores()
    with opened_far(channel, [{far_core}]) as (port, controls):
        machine.pin({near_core})
        yield port, controls


def _take_blocks(port: Port, control: Connection, payload: Payload, blocks: int, *, check_all: bool) -> Sample:
    messages = bodies(payload)
    control.send(("produce", blocks))
    before = machine.usage()
    if check_all:
        _take_checked(port, messages, blocks)
    elif port.receive_many is not None:
        _take_many(port.receive_many, messages, blocks)
    else:
        _take_singly(port.receive, messages, blocks)
    ended_ns = time.monotonic_ns()
    near = machine.usage().since(before)
    started_ns, far_before = control.recv()
    control.send(("usage",))  # now, because a sender's helper thread may have worked on after the last send
    far = control.recv().since(far_before)
    count = blocks * len(messages)
    return {
        "rate": count * 1e9 / (ended_ns - started_ns),
        "messages": float(count),
        "near_cpu": near.cpu_ns / count,
        "far_cpu": far.cpu_ns / count,
        "near_parks": near.parks / count,
        "far_parks": far.parks / count,
    }


def _take_singly(receive: Callable[[], Any], messages: list[Any], blocks: int) -> None:
    last = messages[-1]
    for _ in repeat(None, blocks):
        for _ in repeat(None, len(messages) - 1):
            receive()
        if receive() != last:
            raise AssertionError("a message is lost, doubled or out of order")


def _take_many(receive_many: Callable[[], list[Any]], messages: list[Any], blocks: int) -> None:
    left = blocks * len(messages)
    batch: list[Any] = []
    while left > 0:
        batch = receive_many()
        left -= len(batch)
    if left or batch[-1] != messages[-1]:
        raise AssertionError("a message is lost, doubled or out of order")


def _take_checked(port: Port, messages: list[Any], blocks: int) -> None:
    got: list[Any] = []
    wanted = blocks * len(messages)
    while len(got) < wanted:
        if port.receive_many is not None:
            got += port.receive_many()
        else:
            got.append(port.receive())
    if got != messages * blocks:
        raise AssertionError("messages differ from those sent")


def _trip(
    near_trips: "Callable[[Port, list[Any], int, Gap], list[int]]",
    port: Port,
    control: Connection,
    messages: list[Any],
    trips: int,
    gap: Gap,
) -> Sample:
    control.send(("echo", trips + 1))
    port.send(messages[-1])  # the first trip also waits for the far side to enter its loop
    port.receive()
    before = machine.usage()
    samples = near_trips(port, messages, trips, gap)
    near = machine.usage().since(before)
    far = control.recv()
    return {
        **percentiles(samples),
        "trips": float(trips),
        "near_cpu": near.cpu_ns / trips,
        "far_cpu": far.cpu_ns / trips,
        "near_parks": near.parks / trips,
        "far_parks": far.parks / trips,
    }


def _make_trips(port: Port, messages: list[Any], trips: int, gap: Gap) -> list[int]:
    send, receive, _ = port
    clock = time.perf_counter_ns
    stamps = [clock()]
    stamp = stamps.append
    for body in islice(cycle(messages), trips):
        send(body)
        if receive() != body:
            raise AssertionError("the reply differs from the message")
        stamp(clock())
    return [after - before for before, after in pairwise(stamps)]


def _make_spaced_trips(port: Port, messages: list[Any], trips: int, gap: Gap) -> list[int]:
    send, receive, _ = port
    clock = time.perf_counter_ns
    samples = []
    for body in islice(cycle(messages), trips):
        wait_gap(gap)
        started = clock()
        send(body)
        reply = receive()
        samples.append(clock() - started)
        if reply != body:
            raise AssertionError("the reply differs from the message")
    return samples


def wait_gap(gap: Gap) -> None:
    """Let the other side fall asleep: stay busy on this core, or sleep too."""
    if gap == "sleep":
        time.sleep(GAP_US / 1e6)
    elif gap == "busy":
        until = time.perf_counter_ns() + GAP_US * 1_000
        while time.perf_counter_ns() < until:
            pass


def _produce(port: Port, payload: Payload, index: int, blocks: int) -> tuple[int, machine.Usage]:
    send = port.send
    messages = bodies(payload)
    before = machine.usage()
    started_ns = time.monotonic_ns()
    for _ in repeat(None, blocks):
        for body in messages:
            send(body)
    return started_ns, before


def _echo(port: Port, payload: Payload, index: int, trips: int) -> machine.Usage:
    send, receive, _ = port
    before = machine.usage()
    for _ in repeat(None, trips):
        send(receive())
    return machine.usage().since(before)


def _produce_until(port: Port, payload: Payload, index: int, start_ns: int, stop_ns: int) -> tuple[int, machine.Usage]:
    """Send as fast as accepted between two instants, then one closing message; the first number is how many."""
    send = port.send
    body = bodies(payload)[index]
    clock = time.monotonic_ns
    time.sleep(max(0.0, (start_ns - clock()) / 1e9))
    before = machine.usage()
    count = 0
    while clock() < stop_ns:
        for _ in repeat(None, 8):
            send(body)
        count += 8
    send(bodies(payload)[-1])
    return count, machine.usage().since(before)


def _usage(port: Port, payload: Payload, index: int) -> machine.Usage:
    return machine.usage()


COMMANDS: dict[str, Callable[..., object]] = {
    "produce": _produce,
    "echo": _echo,
    "produce_until": _produce_until,
    "usage": _usage,
}


def own_name(purpose: str) -> str:
    """A name for kernel objects of this run, not of another."""
    return f"bench-{purpose}-{os.getpid()}-{time.monotonic_ns()}"
