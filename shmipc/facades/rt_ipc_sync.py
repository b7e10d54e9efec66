"""The synchronous send that tagged messages replace: the sender waits until the receiver releases the message.

Conventions as in `shmipc.facades.rt_ipc`, whose names these are with other parameters. What is this interface's own:
- Data is copied; a message never points into the sender's memory, and stays valid when the sender dies.
- A SYNC send whose mailbox has no room fails at once with `RT_NOMEM`; one that was queued waits for its release,
  without a limit. Success means released, not processed.
- A message of another interface is received as the pickle of its body, unless that is bytes; the release of a call
  answers None.
- A process holds one SYNC message at most: its next receive releases it, also one that times out. A second release,
  and the release of an ASYNC message, do nothing.

Source: shmipc/actor/calls.py; a SYNC message is a call, and its release the answer.
"""

import os
import pickle
import threading
from contextlib import suppress
from enum import IntEnum
from typing import Any

from shmipc.actor import calls
from shmipc.actor.remote import answers_as_exceptions
from shmipc.base import errors
from shmipc.base.deadlines import in_seconds
from shmipc.base.failures import Failures
from shmipc.transport.messages import Kind, Match, Message


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
    RT_DEADLOCK = 10
    RT_STARVED = 11  # the numbers are those of rt_ipc's statuses
    RT_FAILED = 12


class rt_ipc_mode(IntEnum):  # the seed's spelling
    """How a message is sent."""

    ASYNC = 0
    SYNC = 1


ASYNC = rt_ipc_mode.ASYNC
SYNC = rt_ipc_mode.SYNC
RT_SUCCESS = rt_status.RT_SUCCESS

BYTES = (bytes, bytearray, memoryview)

_failures: Failures[rt_status] = Failures(
    [
        (errors.TooLarge, rt_status.RT_TOO_LARGE),
        (errors.MailboxEmpty, rt_status.RT_WOULDBLOCK),
        ((errors.MailboxFull, errors.LimitExceeded, MemoryError), rt_status.RT_NOMEM),
        (errors.Timeout, rt_status.RT_TIMEOUT),
        (errors.PeerDead, rt_status.RT_PEER_DEAD),
        (errors.NotFound, rt_status.RT_NOT_FOUND),
        (errors.Closed, rt_status.RT_CLOSED),
        (errors.Deadlock, rt_status.RT_DEADLOCK),
        (errors.Starved, rt_status.RT_STARVED),
        ((TypeError, errors.InvalidArgument), rt_status.RT_INVALID),
    ],
    rt_status.RT_FAILED,
)

detail = _failures.detail


class rt_message(bytes):  # the seed's spelling
    """The data of a received message, and its sender."""

    sender: Any = None
    message: Message | None = None  # of a SYNC one that is not released

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (bytes(self),)


_held: rt_message | None = None
_lock = threading.RLock()  # a signal handler may come here while its thread has it


def _hold(msg: rt_message | None) -> None:
    """Hold this message, or none, and release the one before."""
    global _held
    with _lock:
        before, _held = _held, msg
    if before is not None:
        with suppress(errors.Closed, errors.ForkedHandle):  # of a system that has ended, or of a parent
            _release(before)


def _release(msg: rt_message) -> None:
    with _lock:
        message, msg.message = msg.message, None
    if message is None:
        return
    try:
        message.reply(None)
    except (errors.PeerDead, errors.Aborted):
        pass  # the sender has ended


def rt_ipc_send(to: Any, data: bytes | bytearray | memoryview, mode: int) -> rt_status:
    """Send a copy of the data. With `SYNC`, wait until it is released: `RT_PEER_DEAD` when the receiver has ended,
    `RT_DEADLOCK` when it waits for this process.

    Args:
        to: A Ref or a name; not this process, when SYNC.
    """
    try:
        copy = bytes(memoryview(data))  # TypeError for what is not bytes-like
        if isinstance(mode, bool) or mode not in (ASYNC, SYNC):
            raise errors.InvalidArgument(f"mode is {mode!r}; it must be ASYNC or SYNC")
        if mode == ASYNC:
            calls.send(to, copy, timeout=0)
            return RT_SUCCESS
        with answers_as_exceptions():
            calls.call_nowait(to, copy)
    except Exception as error:
        return _failures.status(error)
    return RT_SUCCESS


def _received(message: Message) -> rt_message:
    """Its data as bytes: the pickle of a body that is none. When it has none, its sender does not wait for ever."""
    body = message.body
    try:
        return rt_message(body if isinstance(body, BYTES) else pickle.dumps(body))
    except Exception as error:
        if message.is_call:
            with suppress(errors.PeerDead, errors.Aborted):
                message.reply_error(error)
        raise


def rt_ipc_recv(timeout_ms: int) -> tuple[rt_status, rt_message | None]:
    """Release the message that is held, then receive the oldest: 0 polls, a negative timeout waits."""
    try:
        if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int):
            raise TypeError(f"timeout_ms must be an int, not {type(timeout_ms).__name__}")
        timeout = in_seconds(timeout_ms)
        _hold(None)
        wanted = [Match(kind=Kind.CAST), Match(kind=Kind.CALL)]  # a REPLY is for who has sent a letter
        _, message = calls.receive_matching(wanted, timeout)
        msg = _received(message)
        msg.sender = message.sender
        if message.is_call:
            message.end()  # that its sender has ended is no failure of what is sent while it is held
            msg.message = message
        _hold(msg if message.is_call else None)  # another thread may have received one meanwhile
        return RT_SUCCESS, msg
    except Exception as error:
        return _failures.status(error), None


def rt_ipc_release(msg: rt_message) -> rt_status:
    """Let the sender of a SYNC message go on."""
    try:
        if not isinstance(msg, rt_message):
            raise TypeError(f"a received message is needed, not {type(msg).__name__}")
        _release(msg)
    except Exception as error:
        return _failures.status(error)
    return RT_SUCCESS


def _after_fork() -> None:
    """What is held is the parent's."""
    global _lock, _held
    _lock, _held = threading.RLock(), None


os.register_at_fork(after_in_child=_after_fork)
