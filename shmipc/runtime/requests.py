"""What a creator asks of its zygote, and the bytes between them.

One request, one answer, over a stream socket: length and payload with the descriptors riding on the length; the
answer is the pid with its pidfd, or the text of an error. The zygote hands a request on to a spare child in the same
form; its answer is one byte.
"""

import array
import os
import pickle
import socket
import struct
from dataclasses import dataclass, field

FLAG_LENGTH = struct.Struct("<Q")
ANSWER = struct.Struct("<qI")

# Descriptors of a request, in this order; the root's is left out when the creator is the root or there is none.
DESCRIPTORS = ("segment", "stdout", "stderr", "log", "creator", "root")


@dataclass
class Request:
    """A worker to be started.

    Attributes:
        id: Its prepared member id.
        system: Name of the system.
        life_path: Its life-lock file.
        fresh: Execute a new interpreter, rather than fork.
        executable: Of a fresh interpreter, with `flags`.
        cwd, path, env, umask, log_level: The creator's, at this moment.
        threads: Threads for BLAS libraries.
        group: The process group to be of, the creator's; 0: a session of its own.
        creator_is_root: The creator's end is the root's end.
    """

    id: int
    system: str
    life_path: str
    fresh: bool
    executable: str
    flags: list[str]
    cwd: str
    path: list[str]
    env: dict[bytes, bytes]
    umask: int
    log_level: int
    threads: int
    group: int
    creator_is_root: bool
    descriptors: dict[str, int] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """Without its class, which the reader would look up: that touches memory which is the worker's own then."""
        return pickle.dumps(tuple(vars(self).values()))

    @staticmethod
    def decoded(content: bytes) -> "Request":
        return Request(*pickle.loads(content))


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """``count`` bytes; EOFError when the other side has gone."""
    parts = []
    while count:
        part = connection.recv(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive_with_descriptors(connection: socket.socket, count: int) -> tuple[bytes, list[int]]:
    """``count`` bytes and the descriptors that came with them, none of them inheritable."""
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(
        count, socket.CMSG_SPACE(len(DESCRIPTORS) * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if not data:
        for descriptor in descriptors:
            os.close(descriptor)
        raise EOFError
    return data + read_exactly(connection, count - len(data)), list(descriptors)


def send_request(connection: socket.socket, request: Request) -> None:
    """Ask; the descriptors stay the caller's."""
    payload = request.encoded()
    descriptors = [request.descriptors[name] for name in DESCRIPTORS if name in request.descriptors]
    socket.send_fds(connection, [FLAG_LENGTH.pack(len(payload))], descriptors)
    connection.sendall(payload)


def send_farewell(connection: socket.socket) -> None:
    """Say that there will be no more requests, and nothing to clean up."""
    connection.sendall(FLAG_LENGTH.pack(0))


def receive_request(connection: socket.socket) -> Request | None:
    """The next request, its descriptors by this process's numbers and owned by the caller.

    Returns:
        None for a farewell.

    Raises:
        EOFError: The creator has gone without one.
    """
    head, descriptors = receive_with_descriptors(connection, FLAG_LENGTH.size)
    length = FLAG_LENGTH.unpack(head)[0]
    if length == 0:
        return None
    try:
        request = Request.decoded(read_exactly(connection, length))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    request.descriptors = dict(zip(DESCRIPTORS, descriptors, strict=False))
    return request


def send_answer(connection: socket.socket, pid: int, descriptor: int | None, text: str = "") -> None:
    content = text.encode()[:60_000]
    socket.send_fds(connection, [ANSWER.pack(pid, len(content))], [] if descriptor is None else [descriptor])
    connection.sendall(content)


def receive_answer(connection: socket.socket) -> tuple[int, int]:
    """The pid and a pidfd of the worker, owned by the caller.

    Raises:
        EOFError, OSError: The zygote has gone.
        RuntimeError: It could not start the worker.
    """
    head, descriptors = receive_with_descriptors(connection, ANSWER.size)
    pid, length = ANSWER.unpack(head)
    text = read_exactly(connection, length).decode()
    if pid < 0 or not descriptors:
        for descriptor in descriptors:
            os.close(descriptor)
        raise RuntimeError(text or "the worker could not be started")
    return pid, descriptors[0]
