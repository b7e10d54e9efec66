"""A pipe for each reader, and each frame written to all of them: what one does without a broadcast.

Settings: 1 MiB of kernel buffer where it is allowed. `ConnectionPipes` is `mp.Pipe` with ``send_bytes`` and
``recv_bytes_into``; `RawPipes` is ``os.write`` and ``os.readv`` into one buffer, without lengths.
"""

import contextlib
import fcntl
import os
from functools import partial

from bench.broadcast import FRAME_BYTES, READERS, Broadcast, Reads
from bench.harness import FORK

PIPE_BYTES = 1 << 20


class ConnectionPipes(Broadcast):
    def __init__(self) -> None:
        self.pipes = [FORK.Pipe(duplex=False) for _ in range(READERS)]
        for _, writer in self.pipes:
            _widen(writer.fileno())

    def start_reading(self, index: int, address: str) -> Reads:
        buffer = bytearray(FRAME_BYTES)
        return partial(_receive_into, self.pipes[index][0], buffer)

    def write(self, frame: Broadcast.Frame, number: int) -> None:
        view = memoryview(frame)
        for _, writer in self.pipes:
            writer.send_bytes(view)


class RawPipes(Broadcast):
    def __init__(self) -> None:
        self.pipes = [os.pipe() for _ in range(READERS)]
        for _, writer in self.pipes:
            _widen(writer)

    def start_reading(self, index: int, address: str) -> Reads:
        buffer = bytearray(FRAME_BYTES)
        return partial(_read_all, self.pipes[index][0], buffer)

    def write(self, frame: Broadcast.Frame, number: int) -> None:
        view = memoryview(frame)
        for _, writer in self.pipes:
            at = 0
            while at < len(view):
                at += os.write(writer, view[at:])


def _widen(fd: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _receive_into(reader: object, buffer: bytearray) -> bytearray:
    reader.recv_bytes_into(buffer)  # type: ignore[attr-defined]
    return buffer


def _read_all(reader: int, buffer: bytearray) -> bytearray:
    view, at = memoryview(buffer), 0
    while at < FRAME_BYTES:
        at += os.readv(reader, [view[at:]])
    return buffer
