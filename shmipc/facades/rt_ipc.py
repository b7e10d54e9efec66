"""Tagged messages with selective receive, in the spelling of an Erlang-like C runtime.

Each function takes the C function's in-parameters in C order and returns its status first, then its out-parameters in
C order. An in-out parameter stands in both places and comes back unchanged on failure. Nothing is raised: `detail`
says why the calling thread's last failure happened.

What is this interface's own:
- ``timeout_ms`` is in milliseconds: 0 polls (`RT_WOULDBLOCK`), a negative one waits, a positive one is a limit
  (`RT_TIMEOUT`, never early). `rt_ipc_call` needs time for an answer, and refuses 0.
- A send never waits: a mailbox without room is `RT_NOMEM`, at once.
- An actor is its Ref, or the name it is served under. Data is bytes-like; what is received is bytes.
- The class has 3 bits, the tag 61. A user's tag is 1 to 2**60 - 1; a generated one is 2**60 plus a number that is
  unique in the system. Sentinels lie at the top of 64 bits, outside both.
- A REPLY that is sent by hand is an ordinary message and answers no call: the call's own number, never shown, decides.
  `rt_ipc_reply` answers.

Source: shmipc/actor/calls.py.
"""

import pickle
from contextlib import suppress
from enum import IntEnum
from typing import Any

from shmipc.actor import calls
from shmipc.actor.remote import answers_as_exceptions
from shmipc.base import errors
from shmipc.base.deadlines import in_seconds
from shmipc.base.failures import Failures
from shmipc.base.limits import LIMITS
from shmipc.transport.messages import ANY, GENERATE, Kind, Message

RT_SENDER_WILDCARD = 0xFFFF_FFFF_FFFF_FFFD
RT_MESSAGE_TAG_WILDCARD = 0xFFFF_FFFF_FFFF_FFF1
RT_MESSAGE_TAG_NONE = 0xFFFF_FFFF_FFFF_FFE1
RT_MESSAGE_TAG_GENERATE = 0xFFFF_FFFF_FFFF_FFD1


class rt_status(IntEnum):  # the seed's spelling
    """What a function says of itself."""

    RT_SUCCESS = 0
    RT_INVALID = 1
    RT_TIMEOUT = 2
    RT_WOULDBLOCK = 3
    RT_NOMEM = 4
    RT_TOO_LARGE = 5
    RT_PEER_DEAD = 6
    RT_NOT_FOUND = 7
    RT_CLOSED = 8
    RT_ABORTED = 9
    RT_DEADLOCK = 10
    RT_STARVED = 11
    RT_FAILED = 12


class rt_message_class(IntEnum):  # the seed's spelling
    """What a message is; WILDCARD and EXIT cannot be sent."""

    RT_MESSAGE_CLASS_CAST = 0
    RT_MESSAGE_CLASS_CALL = 1
    RT_MESSAGE_CLASS_REPLY = 2
    RT_MESSAGE_CLASS_TIMER = 3
    RT_MESSAGE_CLASS_WILDCARD = 4
    RT_MESSAGE_CLASS_EXIT = 5


RT_MESSAGE_CLASS_CAST = rt_message_class.RT_MESSAGE_CLASS_CAST
RT_MESSAGE_CLASS_CALL = rt_message_class.RT_MESSAGE_CLASS_CALL
RT_MESSAGE_CLASS_REPLY = rt_message_class.RT_MESSAGE_CLASS_REPLY
RT_MESSAGE_CLASS_TIMER = rt_message_class.RT_MESSAGE_CLASS_TIMER
RT_MESSAGE_CLASS_WILDCARD = rt_message_class.RT_MESSAGE_CLASS_WILDCARD
RT_MESSAGE_CLASS_EXIT = rt_message_class.RT_MESSAGE_CLASS_EXIT
RT_MESSAGE_REPLY = RT_MESSAGE_CLASS_REPLY

RT_SUCCESS = rt_status.RT_SUCCESS

Bytes = bytes | bytearray | memoryview
BYTES = (bytes, bytearray, memoryview)

KINDS = {
    RT_MESSAGE_CLASS_CAST: Kind.CAST,
    RT_MESSAGE_CLASS_CALL: Kind.CALL,
    RT_MESSAGE_CLASS_REPLY: Kind.REPLY,
    RT_MESSAGE_CLASS_TIMER: Kind.TIMER,
    RT_MESSAGE_CLASS_EXIT: Kind.EXIT,
}
CLASSES = {kind: class_ for class_, kind in KINDS.items()} | {Kind.NOTIFY: RT_MESSAGE_CLASS_CAST}  # another's

_failures: Failures[rt_status] = Failures(
    [
        (errors.TooLarge, rt_status.RT_TOO_LARGE),
        (errors.MailboxEmpty, rt_status.RT_WOULDBLOCK),
        ((errors.MailboxFull, errors.LimitExceeded, MemoryError), rt_status.RT_NOMEM),
        (errors.Timeout, rt_status.RT_TIMEOUT),
        (errors.PeerDead, rt_status.RT_PEER_DEAD),
        (errors.NotFound, rt_status.RT_NOT_FOUND),
        (errors.Closed, rt_status.RT_CLOSED),
        (errors.Aborted, rt_status.RT_ABORTED),
        (errors.Deadlock, rt_status.RT_DEADLOCK),
        (errors.Starved, rt_status.RT_STARVED),
        ((TypeError, errors.InvalidArgument), rt_status.RT_INVALID),
    ],
    rt_status.RT_FAILED,
)

FAILURES = (
    rt_status.RT_TOO_LARGE,
    rt_status.RT_PEER_DEAD,
    rt_status.RT_NOT_FOUND,
    rt_status.RT_ABORTED,
    rt_status.RT_DEADLOCK,
)  # of a call whose answer is received
detail = _failures.detail


class rt_message(bytes):  # the seed's spelling
    """The data of a received message; `rt_ipc_reply` answers it, when it is a call."""

    message: Message | None = None

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (bytes(self),)


def _message(message: Message) -> rt_message:
    """The data of a message as bytes: why a process ended, of an EXIT; the pickle of a body that is none.

    The caller of one that has none is told so, and does not wait for ever.
    """
    try:
        body = message.body
        if message.kind == Kind.EXIT:
            body = body.reason.encode()
        elif not isinstance(body, BYTES):
            body = pickle.dumps(body)
    except Exception as error:
        if message.is_call:
            with suppress(errors.PeerDead, errors.Aborted):
                message.reply_error(error)
        raise
    made = rt_message(body)
    made.message = message
    return made


def _data(data: Any) -> bytes:
    view = memoryview(data)  # TypeError for what is not bytes-like
    if view.nbytes > LIMITS.body_bytes:
        raise errors.TooLarge(f"data has {view.nbytes} bytes, the limit is {LIMITS.body_bytes}")
    return bytes(view)


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    return int(value)


def _seconds(timeout_ms: Any) -> float | None:
    return in_seconds(_whole("timeout_ms", timeout_ms))


def _kind(class_: Any) -> Kind:
    number = _whole("class", class_)
    if number not in KINDS:
        raise errors.InvalidArgument(f"class {number} is none of a message")
    return KINDS[rt_message_class(number)]


def _send(to: Any, class_: Any, tag: Any, data: Any) -> int:
    kind, number = _kind(class_), _whole("tag", tag)
    if isinstance(to, int):
        raise errors.InvalidArgument(f"receiver {to} is no actor")
    body = _data(data)
    if number == RT_MESSAGE_TAG_GENERATE:
        return calls.send(to, body, kind=kind, tag=GENERATE, timeout=0) or number
    return calls.send(to, body, kind=kind, tag=None if number == RT_MESSAGE_TAG_NONE else number, timeout=0) or number


def rt_ipc_send(to: Any, class_: int, tag: int, data: Bytes) -> tuple[rt_status, int]:
    """Send a message; it does not wait. The answer to a CALL is received as a message of class REPLY, with its tag.

    Args:
        to: A Ref or a name.
        class_: CAST, CALL, REPLY or TIMER.
        tag: `RT_MESSAGE_TAG_NONE`, `RT_MESSAGE_TAG_GENERATE`, or 1 to 2**60 - 1.

    Returns:
        A status and the tag that was sent: `RT_NOMEM` when the mailbox has no room, `RT_PEER_DEAD`, `RT_TOO_LARGE`,
        `RT_NOT_FOUND`, `RT_INVALID`.
    """
    try:
        return RT_SUCCESS, _send(to, class_, tag, data)
    except Exception as error:
        return _failures.status(error), tag


rt_ipc_canonical_send = rt_ipc_send


def _receive(sender: Any, class_: Any, tag: Any, timeout_ms: Any) -> Message:
    timeout = _seconds(timeout_ms)
    kind = ANY if _whole("class", class_) == RT_MESSAGE_CLASS_WILDCARD else _kind(class_)
    number = _whole("tag", tag)
    wanted: int | None = number
    if number == RT_MESSAGE_TAG_WILDCARD:
        wanted = ANY
    elif number == RT_MESSAGE_TAG_NONE:
        wanted = None
    elif number < 1:
        raise errors.InvalidArgument(f"tag {number} is none of a message")
    who: Any = sender
    if isinstance(sender, int):
        if sender != RT_SENDER_WILDCARD:
            raise errors.InvalidArgument(f"sender {sender} is no actor")
        who = ANY
    message = calls.receive(who, kind, wanted, timeout)
    if message.is_call:
        message.end()  # the seed knows no aborts: that a caller has ended is its exit notice's to say
    return message


def _answered(error: BaseException) -> rt_status:
    """The status of a failed call, which is none of the receive's own: nothing was closed here, nor timed out."""
    status = _failures.status(error)
    if status == rt_status.RT_CLOSED:
        return rt_status.RT_PEER_DEAD  # its server was stopped before it took the call
    return status if status in FAILURES else rt_status.RT_FAILED


def rt_ipc_sel_recv(
    sender: Any, class_: int, tag: int, timeout_ms: int
) -> tuple[rt_status, Any, int, int, rt_message | None]:
    """Receive the oldest message from this sender, of this class and with this tag; the others stay in order.

    Args:
        sender: A Ref, or `RT_SENDER_WILDCARD`.
        class_: A class, or `RT_MESSAGE_CLASS_WILDCARD`.
        tag: A tag, `RT_MESSAGE_TAG_NONE`, or `RT_MESSAGE_TAG_WILDCARD`.
        timeout_ms: 0 polls, a negative one waits.

    Returns:
        A status, the message's sender, class and tag, and its data; the arguments and None on failure. A call that
        failed, or whose server has ended, ends in `RT_PEER_DEAD`, `RT_ABORTED`, `RT_TOO_LARGE`, `RT_NOT_FOUND`,
        `RT_DEADLOCK` or `RT_FAILED`.
    """
    try:
        message = _receive(sender, class_, tag, timeout_ms)
        if message.is_error:
            return _answered(message.body), sender, class_, tag, None
        number = RT_MESSAGE_TAG_NONE if message.tag is None else message.tag
        return RT_SUCCESS, message.sender, CLASSES[message.kind], number, _message(message)
    except Exception as error:
        return _failures.status(error), sender, class_, tag, None


def rt_ipc_recv(
    sender: Any, class_: int, tag: int, timeout_ms: int
) -> tuple[rt_status, Any, int, int, rt_message | None]:
    """Receive the oldest message, whatever the arguments say on entry; as `rt_ipc_sel_recv`."""
    anything = RT_SENDER_WILDCARD, RT_MESSAGE_CLASS_WILDCARD, RT_MESSAGE_TAG_WILDCARD
    status, its_sender, its_class, its_tag, msg = rt_ipc_sel_recv(*anything, timeout_ms)
    if status != RT_SUCCESS:
        return status, sender, class_, tag, None
    return status, its_sender, its_class, its_tag, msg


def rt_ipc_recv_reply(
    sender: Any, class_: int, tag: int, timeout_ms: int
) -> tuple[rt_status, Any, int, int, rt_message | None]:
    """Receive the answer to a CALL that was sent to ``sender`` with this tag; as `rt_ipc_sel_recv`."""
    return rt_ipc_sel_recv(sender, class_, tag, timeout_ms)


def rt_ipc_cast(to: Any, data: Bytes) -> rt_status:
    """Send a message of class CAST without a tag; as `rt_ipc_send`."""
    return rt_ipc_send(to, RT_MESSAGE_CLASS_CAST, RT_MESSAGE_TAG_NONE, data)[0]


def rt_ipc_call(to: Any, data: Bytes, timeout_ms: int) -> tuple[rt_status, rt_message | None]:
    """Send a CALL with a generated tag and wait for its answer; what arrives meanwhile stays.

    Returns:
        A status and the answer: `RT_TIMEOUT`, `RT_PEER_DEAD`, `RT_DEADLOCK`, `RT_INVALID` for a call to oneself.
    """
    try:
        if isinstance(to, int):
            raise errors.InvalidArgument(f"receiver {to} is no actor")
        with answers_as_exceptions():
            answer = calls.call(to, _data(data), tag=GENERATE, timeout=_seconds(timeout_ms))
        return RT_SUCCESS, rt_message(answer if isinstance(answer, BYTES) else pickle.dumps(answer))
    except Exception as error:
        return _failures.status(error), None


def rt_ipc_reply(msg: rt_message, data: Bytes) -> rt_status:
    """Answer a call, now or later: `RT_INVALID` for what is no call, `RT_ABORTED` when nobody waits any more."""
    try:
        if not isinstance(msg, rt_message) or msg.message is None:
            raise TypeError(f"a received message is needed, not {type(msg).__name__}")
        calls.reply(msg.message, _data(data))
    except Exception as error:
        return _failures.status(error)
    return RT_SUCCESS
