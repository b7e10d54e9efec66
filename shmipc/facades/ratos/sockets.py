"""Sockets: the operating system's, under handles. They do not travel."""

import socket
from typing import Any

from shmipc.base.limits import check_count
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE, Kind, RatHandle, close, table
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole

AF_UNIX = int(socket.AF_UNIX)
AF_INET = int(socket.AF_INET)
SOCK_STREAM = int(socket.SOCK_STREAM)
SOCK_DGRAM = int(socket.SOCK_DGRAM)
MAX_CAPACITY = 1 << 30

Address = str | bytes | tuple[Any, ...]


def _socket(sock: Any) -> socket.socket:
    found: socket.socket = table.find(sock, Kind.SOCKET).object
    return found


def RatCreateSocket(domain: int, type: int) -> tuple[RatIpcStatus, RatHandle]:
    """Make a socket; ``domain`` and ``type`` are POSIX's: `AF_UNIX`, `AF_INET`, `SOCK_STREAM`, `SOCK_DGRAM`."""
    try:
        made = socket.socket(whole("domain", domain), whole("type", type))
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
    """Wait for one that connects; TIMEOUT: none is there, and the socket does not block."""
    try:
        client, _ = _socket(sock).accept()
        return OK, table.add(Kind.SOCKET, client, travels=False)
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
        return OK, _socket(sock).send(data, socket.MSG_NOSIGNAL)
    except Exception as error:
        return failed(error), 0


def RatRecvSocket(sock: int, capacity: int) -> tuple[RatIpcStatus, bytes, int]:
    """Receive what is there, ``capacity`` bytes at most: the bytes, and how many; none when the other side is done."""
    try:
        data = _socket(sock).recv(check_count("capacity", capacity, 0, MAX_CAPACITY))
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
    """Close it."""
    return close(sock, Kind.SOCKET)
