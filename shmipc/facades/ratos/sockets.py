"""Sockets: the operating system's, under handles. They do not travel."""

import socket
from collections.abc import Callable
from typing import Any, TypeVar

from shmipc.base.errors import Closed
from shmipc.base.limits import check_count
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE, Kind, RatHandle, close, table
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole

AF_UNIX = int(socket.AF_UNIX)
AF_INET = int(socket.AF_INET)
SOCK_STREAM = int(socket.SOCK_STREAM)
SOCK_DGRAM = int(socket.SOCK_DGRAM)
MAX_CAPACITY = 1 << 30

Address = str | bytes | tuple[Any, ...]
T = TypeVar("T")


class Socket(socket.socket):
    """A socket that may be closed while threads wait by it: they are told, and what others do with it is theirs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._closing = False
        self._inside: dict[int, list[object]] = {socket.SHUT_RD: [], socket.SHUT_WR: []}  # who waits for which side
        super().__init__(*args, **options)

    def wait(self, side: int, act: Callable[[], T]) -> T:
        """What the act returns, which may wait for a side; raises Closed: it was closed before anything came."""
        mine = object()
        self._inside[side].append(mine)
        try:
            result = act()
        except OSError as error:
            if self._closing:
                raise Closed("the socket was closed in this process meanwhile") from error
            raise
        finally:
            self._inside[side].remove(mine)
        if self._closing and not result:
            raise Closed("the socket was closed in this process meanwhile")
        return result

    def close(self) -> None:
        self._closing = True
        for side, inside in self._inside.items():
            if inside:
                try:
                    self.shutdown(side)
                except OSError:  # it is not connected; who waits is woken all the same
                    pass
        super().close()


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
        client, _ = found.wait(socket.SHUT_RD, found.accept)
        return OK, table.add(Kind.SOCKET, Socket(fileno=client.detach()), travels=False)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatConnectSocket(sock: int, addr: Address) -> RatIpcStatus:
    """Connect to an address. NOT_CONNECTED: nobody listens there; NOT_FOUND: there is no such path."""
    try:
        _socket(sock).connect(addr)
    except Exception as error:
        return failed(error)
    return OK


def RatSendSocket(sock: int, data: bytes | bytearray | memoryview) -> tuple[RatIpcStatus, int]:
    """Send: how many bytes were sent, which may be less than all. NOT_CONNECTED: the other side is gone."""
    try:
        found = _socket(sock)
        return OK, found.wait(socket.SHUT_WR, lambda: found.send(data, socket.MSG_NOSIGNAL))
    except Exception as error:
        return failed(error), 0


def RatRecvSocket(sock: int, capacity: int) -> tuple[RatIpcStatus, bytes, int]:
    """Receive what is there, ``capacity`` bytes at most: the bytes, and how many; none when the other side is done.

    Returns:
        NOT_CONNECTED: the handle was closed meanwhile.
    """
    try:
        found, most = _socket(sock), check_count("capacity", capacity, 0, MAX_CAPACITY)
        data = found.wait(socket.SHUT_RD, lambda: found.recv(most))
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
    """Close it. Threads that receive, send or accept by the handle: NOT_CONNECTED. What was submitted goes on, but ends
    too if a thread waits so for the same side.
    """
    return close(sock, Kind.SOCKET)
