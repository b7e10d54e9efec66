"""Sockets: the operating system's, under handles. They do not travel."""

import os
import select
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from shmipc import _native
from shmipc.base.errors import Closed
from shmipc.base.limits import check_count
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE, Kind, RatHandle, close, table
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole

AF_UNIX = int(socket.AF_UNIX)
AF_INET = int(socket.AF_INET)
SOCK_STREAM = int(socket.SOCK_STREAM)
SOCK_DGRAM = int(socket.SOCK_DGRAM)
MAX_CAPACITY = 1 << 30
RETRY_MS = 10  # between attempts to connect to a path whose queue is full, which poll says nothing of

Address = str | bytes | tuple[Any, ...]
T = TypeVar("T")


class Socket(socket.socket):
    """A socket that may be closed while threads wait by it: they are told, and what others do with it is theirs.

    Its descriptor never blocks. Who waits has a duplicate: the number of what is closed may be another file's next.

    Attributes:
        blocking: Do those who find nothing wait?
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.blocking = True
        self._closing = False
        super().__init__(*args, **options)
        self.setblocking(False)

    @property
    def _gone(self) -> _native.Duplicate | None:
        return vars(self).get("_sign")

    def held(self) -> tuple[_native.Duplicate, _native.Duplicate]:
        """For one wait: a duplicate, and what can be read once this is closed; raises Closed."""
        try:
            gone = self._gone or vars(self).setdefault("_sign", sign())  # one, also when two waits begin now
            return _native.Duplicate(self.fileno()), gone
        finally:
            self.check()

    def check(self) -> None:
        """Raise Closed: it was closed in this process."""
        if self._closing:
            raise Closed("the socket was closed in this process meanwhile")

    def wait(self, events: int, act: Callable[[], T]) -> T:
        """What the act returns, as soon as it can be done.

        Args:
            events: What poll says then; 0: it does not, and it is tried every so often.

        Raises:
            BlockingIOError: It cannot be done at once, and the socket does not block.
            Closed: It was closed before it could be done.
        """
        poll: select.poll | None = None
        while True:
            try:
                return act()
            except BlockingIOError:
                if not self.blocking:
                    raise
            except OSError:
                self.check()
                raise
            if poll is None:
                poll, held = select.poll(), self.held()
                poll.register(held[1].number, select.POLLIN)
                if events:
                    poll.register(held[0].number, events)
            poll.poll(None if events else RETRY_MS)
            self.check()

    def send_all(self, data: Any) -> int:
        """How many bytes were sent: of a stream all, unless it does not block, or ends meanwhile."""
        content = memoryview(data)
        content = content.cast("B") if content.nbytes else memoryview(b"")
        sent = 0

        def act() -> int:
            nonlocal sent
            sent += self.send(content[sent:], socket.MSG_NOSIGNAL)
            if self.blocking and self.type == SOCK_STREAM and sent < len(content):
                raise BlockingIOError
            return sent

        try:
            return self.wait(select.POLLOUT, act)
        except (OSError, Closed):
            if not sent:
                raise
            return sent

    def close(self) -> None:
        self._closing = True  # before a sign is looked for: who makes one later looks at this
        if self._gone is not None:
            os.eventfd_write(self._gone.number, 1)
        super().close()


def sign() -> _native.Duplicate:
    """An eventfd."""
    number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        return _native.Duplicate(number)
    finally:
        os.close(number)


def _socket(sock: Any) -> Socket:
    found: Socket = table.find(sock, Kind.SOCKET).object
    return found


def RatCreateSocket(domain: int, type: int) -> tuple[RatIpcStatus, RatHandle]:
    """Make a socket; ``domain`` and ``type`` are POSIX's: `AF_UNIX`, `AF_INET`, `SOCK_STREAM`, `SOCK_DGRAM`."""
    try:
        made = Socket(whole("domain", domain), whole("type", type))
        return OK, table.add(Kind.SOCKET, made, travels=False)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatBindSocket(sock: int, addr: Address) -> RatIpcStatus:
    """Give it an address: a path, or (host, port). ALREADY_EXISTS: it is in use."""
    try:
        _socket(sock).bind(addr)
    except Exception as error:
        return failed(error)
    return OK


def RatListenSocket(sock: int, backlog: int) -> RatIpcStatus:
    """Have others connect to it."""
    try:
        _socket(sock).listen(whole("backlog", backlog))
    except Exception as error:
        return failed(error)
    return OK


def RatAcceptSocket(sock: int) -> tuple[RatIpcStatus, RatHandle]:
    """Wait for one that connects.

    Returns:
        TIMEOUT: none is there, and the socket does not block. NOT_CONNECTED: the handle was closed meanwhile.
    """
    try:
        found = _socket(sock)
        client, _ = found.wait(select.POLLIN, found.accept)
        return OK, table.add(Kind.SOCKET, Socket(fileno=client.detach()), travels=False)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatConnectSocket(sock: int, addr: Address) -> RatIpcStatus:
    """Connect to an address.

    Returns:
        NOT_CONNECTED: nobody listens there, or the handle was closed meanwhile. NOT_FOUND: there is no such path.
        TIMEOUT: it cannot be done at once, and the socket does not block.
    """
    try:
        found = _socket(sock)
        found.wait(0 if found.family == AF_UNIX else select.POLLOUT, lambda: found.connect(addr))
    except Exception as error:
        return failed(error)
    return OK


def RatSendSocket(sock: int, data: bytes | bytearray | memoryview) -> tuple[RatIpcStatus, int]:
    """Send: how many bytes were sent, which may be less than all.

    Returns:
        NOT_CONNECTED: the other side is gone, or the handle was closed meanwhile.
    """
    try:
        return OK, _socket(sock).send_all(data)
    except Exception as error:
        return failed(error), 0


def RatRecvSocket(sock: int, capacity: int) -> tuple[RatIpcStatus, bytes, int]:
    """Receive what is there, ``capacity`` bytes at most: the bytes, and how many; none when the other side is done.

    Returns:
        NOT_CONNECTED: the handle was closed meanwhile.
    """
    try:
        found, most = _socket(sock), check_count("capacity", capacity, 0, MAX_CAPACITY)
        data = found.wait(select.POLLIN, lambda: found.recv(most))
        return OK, data, len(data)
    except Exception as error:
        return failed(error), b"", 0


def RatSocketAddress(sock: int) -> tuple[RatIpcStatus, Any]:
    """The address that it is bound to, so the port that the operating system has chosen."""
    try:
        return OK, _socket(sock).getsockname()
    except Exception as error:
        return failed(error), None


def RatCloseSocket(sock: int) -> RatIpcStatus:
    """Close it. Threads that wait by the handle: NOT_CONNECTED. What was submitted goes on."""
    return close(sock, Kind.SOCKET)
