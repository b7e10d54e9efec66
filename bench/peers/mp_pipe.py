"""multiprocessing.Pipe, blocking; and the same pipe polled, without Connection, which is as fast as a pipe gets.

Settings: a simplex pipe for each direction, 1 MiB of kernel buffer, ``send_bytes`` for bytes and arrays (no pickle).
"""

import contextlib
import fcntl
import os
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from bench.channel import Channel, End, Payload, Port
from bench.handover import Array, Handover, Look
from bench.harness import FORK
from bench.tasks import Adder, look_at, pin_worker
from bench.workers import Workers

PIPE_BYTES = 1 << 20
BODY_BYTES = 64


class MpPipe(Channel):
    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        self.to_near = _make_pipe()
        self.to_far = _make_pipe()

    def open(self, end: End) -> Port:
        incoming, outgoing = _ends(self, end)
        if self.payload == "bytes":
            return Port(outgoing.send_bytes, incoming.recv_bytes)
        return Port(outgoing.send, incoming.recv)


class MpPipePolled(MpPipe):
    """``os.read`` and ``os.write`` of 64 bytes on non-blocking descriptors, tried until they succeed."""

    def open(self, end: End) -> Port:
        assert self.payload == "bytes"
        incoming, outgoing = _ends(self, end)
        for connection in (incoming, outgoing):
            os.set_blocking(connection.fileno(), False)
        return Port(partial(_write_polled, outgoing.fileno()), partial(_read_polled, incoming.fileno()))


class PipeServer(Workers):
    """A loop around one duplex pipe that adds one: the least a hand-written server can cost."""

    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        super().__init__(count, cores)
        self.connection, far = FORK.Pipe()
        self.process = FORK.Process(target=_serve_calls, args=(far, cores), daemon=True)
        self.process.start()
        far.close()

    def call(self, k: int) -> int:
        self.connection.send(("add", k))
        answer: int = self.connection.recv()
        return answer

    def pids(self) -> list[int]:
        return [self.process.pid or 0]

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


class PipeHandover(Handover):
    """The bytes of the array through a pipe; the worker reads them into bytes, and sees an array in these.

    `mp.Pool`, which pickles arrays, is slower at every size.
    """

    def start(self, cores: set[int]) -> None:
        incoming, far_outgoing = _make_pipe()
        far_incoming, outgoing = _make_pipe()
        self.incoming, self.outgoing = incoming, outgoing
        self.process = FORK.Process(target=_serve_looks, args=(far_incoming, far_outgoing, cores), daemon=True)
        self.process.start()

    def ask(self, look: Look, placed: Array) -> int:
        self.outgoing.send_bytes(look.encode())
        self.outgoing.send_bytes(placed)
        answer: int = self.incoming.recv()
        return answer

    def close(self) -> None:
        self.outgoing.send_bytes(b"stop")
        self.process.join()


def _make_pipe() -> tuple[Connection, Connection]:
    receiver, sender = FORK.Pipe(duplex=False)
    with contextlib.suppress(OSError):  # above the user's share of pipe pages: stay at 64 KiB
        fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return receiver, sender


def _ends(channel: MpPipe, end: End) -> tuple[Connection, Connection]:
    if end == "near":
        return channel.to_near[0], channel.to_far[1]
    return channel.to_far[0], channel.to_near[1]


def _write_polled(descriptor: int, body: bytes) -> None:
    while True:
        try:
            os.write(descriptor, body)
            return
        except BlockingIOError:
            pass


def _read_polled(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, BODY_BYTES)
        except BlockingIOError:
            pass


def _serve_calls(connection: Connection, cores: set[int] | None) -> None:
    adder = Adder(cores)
    while (request := connection.recv()) is not None:
        method, k = request
        connection.send(getattr(adder, method)(k))


def _serve_looks(incoming: Connection, outgoing: Connection, cores: set[int]) -> None:
    pin_worker(cores)
    while (look := incoming.recv_bytes().decode()) != "stop":
        outgoing.send(look_at(np.frombuffer(incoming.recv_bytes(), np.int64), look))
