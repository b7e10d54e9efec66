"""Messages, as they look and as they travel."""

import struct
from dataclasses import dataclass, field
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.errors import InvalidArgument
from shmipc.facades.ratos import handles
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE, Kind, RatHandle, table
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole
from shmipc.runtime.processes import Process, process
from shmipc.transport.messages import Message

MAX_MESSAGE = (1 << 32) - 1
MAX_WPARAM = (1 << 64) - 1
MIN_LPARAM, MAX_LPARAM = -(1 << 63), (1 << 63) - 1
HEAD = struct.Struct("<IQq")  # message, wparam, lparam; the payload follows


@dataclass
class RatMessageHeader:
    """The header of a message.

    Attributes:
        message: Its id, 0 to 2**32 - 1.
        wparam: 0 to 2**64 - 1, or a handle.
        lparam: -2**63 to 2**63 - 1, or a handle.
        sender: Of a message that was received: a handle of the process that sent it, the same for each of its
            messages, which can be waited for. The runtime says who that is, whatever the sender has written.
        size: Bytes of the payload that are sent; 0: none, whatever the payload is.
    """

    message: int = 0
    wparam: int = 0
    lparam: int = 0
    sender: RatHandle = RAT_INVALID_HANDLE
    size: int = 0


@dataclass
class RatMessage:
    """A message: its header, and bytes beside it."""

    header: RatMessageHeader = field(default_factory=RatMessageHeader)
    payload: Any = None
    _origin: Any = field(default=None, repr=False, compare=False)  # the queue that it came from
    _request: Any = field(default=None, repr=False, compare=False)  # of one that waits for a reply: its Request


def _within(what: str, value: Any, least: int, most: int) -> int:
    number = whole(what, value)
    if not least <= number <= most:
        raise InvalidArgument(f"{what} is {number}; it must be {least} to {most}")
    return number


def check_id(what: str, value: Any) -> int:
    """A message's id; raises TypeError, InvalidArgument."""
    return _within(what, value, 0, MAX_MESSAGE)


def check_word(what: str, value: Any) -> int:
    """An int of 64 bits without a sign; raises TypeError, InvalidArgument."""
    return _within(what, value, 0, MAX_WPARAM)


def encode(msg: Any) -> tuple[int, Any]:
    """(id, body) of what is sent; nothing was changed if it raises.

    Raises:
        TypeError, InvalidArgument: A field that cannot be; a handle that is none of this process.
        AccessDenied: A handle that cannot travel.
    """
    if not isinstance(msg, RatMessage) or not isinstance(msg.header, RatMessageHeader):
        raise TypeError(f"a RatMessage is needed, not {type(msg).__name__}")
    header = msg.header
    id = check_id("message", header.message)
    wparam = check_word("wparam", header.wparam)
    lparam = _within("lparam", header.lparam, MIN_LPARAM, MAX_LPARAM)
    size = whole("size", header.size)
    payload = b""
    if size:
        if not isinstance(msg.payload, (bytes, bytearray, memoryview)):
            raise TypeError(f"payload must be bytes-like, not {type(msg.payload).__name__}")
        payload = bytes(memoryview(msg.payload).cast("B")[:size])
        if size < 0 or size != len(payload):
            raise InvalidArgument(f"size is {size}; the payload has {len(payload)} bytes")
    packed = handles.pack(header.wparam), handles.pack(header.lparam)
    if packed == (None, None):
        return id, HEAD.pack(id, wparam, lparam) + payload
    head = HEAD.pack(id, 0 if packed[0] else wparam, 0 if packed[1] else lparam)
    return id, (head, payload, *packed)


def size_of(body: Any) -> int:
    """Bytes of the payload of what has arrived; raises InvalidArgument."""
    if type(body) is bytes and len(body) >= HEAD.size:
        return len(body) - HEAD.size
    if type(body) is tuple and len(body) == 4 and type(body[0]) is type(body[1]) is bytes and len(body[0]) == HEAD.size:
        return len(body[1])
    raise InvalidArgument(f"what has come is no message of RatOS, but {body!r:.60}")


def decode(member: _native.Member, body: Any, sender: RatHandle, keeps: bool = False) -> RatMessage:
    """What has arrived; its handles are opened, unless the message stays (`keeps`).

    Raises:
        InvalidArgument: It is no message of this interface, or refers to what is not there.
        OutOfMemory, LimitExceeded: What it refers to cannot be opened.
    """
    size = size_of(body)
    if type(body) is bytes:
        id, wparam, lparam = HEAD.unpack_from(body)
        return RatMessage(RatMessageHeader(id, wparam, lparam, sender, size), body[HEAD.size :])
    head, payload, *packed = body
    id, first, second = HEAD.unpack(head)
    words = [first, second]
    opened: list[RatHandle] = []
    try:
        for place, one in enumerate(packed):
            if one is not None:
                words[place] = RAT_INVALID_HANDLE if keeps else handles.unpack(member, one)
                opened.append(words[place])
    except BaseException:
        for handle in opened:
            handles.close(handle)
        raise
    return RatMessage(RatMessageHeader(id, words[0], words[1], sender, size), payload)


# --- senders ---------------------------------------------------------------------------------------------------


class Sender:
    """A process that a handle stands for; the handle goes with the system, or when many have ended.

    Attributes:
        process: That is waited for.
    """

    def __init__(self, member: _native.Member, id: int) -> None:
        self.member = member
        self.id = id
        self.process: Process = process(refs.make_ref(member, id))

    def close(self) -> None:
        _senders.get(self.member, {}).pop(self.id, None)


SENDERS_MOST = 1024
_senders: dict[_native.Member, dict[int, RatHandle]] = {}


def _forget(member: _native.Member) -> None:
    _senders.pop(member, None)


table.leaving.append(_forget)


def sender_of(message: Message) -> RatHandle:
    """This process's handle of whoever sent a message, always the same one."""
    return process_handle(message.member, message.sender_id)


def process_handle(member: _native.Member, id: int) -> RatHandle:
    """This process's handle of a process of a system, by its member id."""
    if not id:
        return RAT_INVALID_HANDLE
    known = _senders.setdefault(member, {})
    handle = known.get(id)
    if handle is None:
        if len(known) >= SENDERS_MOST:
            _sweep(member, known)
        handle = known.setdefault(
            id, table.add(Kind.PROCESS, Sender(member, id), handles.RAT_RIGHT_WAIT, travels=False)
        )
    return handle


def _sweep(member: _native.Member, known: dict[int, RatHandle]) -> None:
    """Let go of those who have ended."""
    for id, handle in list(known.items()):
        if not member.lives(id):
            handles.close(handle, Kind.PROCESS)


def RatOpenProcess(ref: Any) -> tuple[RatIpcStatus, RatHandle]:
    """The handle of an actor, or of another process whose Ref one has: what ``header.sender`` of its messages is."""
    try:
        shown = refs.check_ref(ref)._shm
        return OK, process_handle(shown.use(), shown.id)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE
