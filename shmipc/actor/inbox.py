"""The mailbox of the process that runs, as its own code reads it.

What an actor's loop is to handle (method calls, tasks) may arrive while the code of a handler waits for a message
of its own; it stays in the mailbox, counted and in order, until the loop comes by. Only the order to stop is taken,
and sent again, behind what was there before it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import Aborted, Closed, PeerDead, ShmipcError
from shmipc.memory.membership import Membership
from shmipc.transport.messages import ANY, Message

T = TypeVar("T")

deferred: deque[Message] = deque()
has_loop = False  # does a loop serve this process's mailbox?
put_aside: Callable[[Message], None] = deferred.append  # what becomes of an order to stop that finds no room
_stopping = threading.Event()


def take(found: Membership, timeout: float | None, sender_id: int, kind: int, tag: int) -> Message:
    """The oldest message for the user's code that matches; raises as `Mailbox.receive_message` does.

    Raises:
        Closed: The actor was told to stop, or its system has ended.
    """
    box, deadline = found.box, Deadline(timeout) if timeout else None
    # Without a loop and conditions nothing is left out, orders and calls of methods that there are none of included.
    is_open = not has_loop and sender_id == ANY and kind == ANY and tag == ANY
    while True:
        if is_open:
            message = take_one(box.take, timeout)
        else:
            message = take_one(box.take, timeout, sender_id, kind, tag, orders=True, raw=has_loop)
        if is_for_user(found, message):
            return message
        timeout = left(deadline, timeout)


def take_matching(found: Membership, timeout: float | None, matches: list[tuple[int, int, int]]) -> tuple[int, Message]:
    """The same by several conditions (sender id, kind, tag); with the index of the first that the message matches."""
    deadline = Deadline(timeout) if timeout else None
    while True:
        index, message = take_one(found.box.take_matching, matches, timeout, orders=True, raw=has_loop)
        if is_for_user(found, message):
            return index, message
        timeout = left(deadline, timeout)


def left(deadline: Deadline | None, timeout: float | None) -> float | None:
    """What is left of a timeout; of one that was no poll, never so little that it is one."""
    rest = deadline.left() if deadline is not None else timeout
    return max(rest, 1e-9) if deadline is not None and rest is not None else rest


def take_one(take: Callable[..., T], *arguments: Any, **options: bool) -> T:
    if _stopping.is_set():
        raise Closed("this actor was told to stop")
    try:
        return take(*arguments, **options)
    except Closed:  # by whoever ends the system
        _stopping.set()
        raise


def is_for_user(found: Membership, message: Message) -> bool:
    """False for the order to stop, which the loop gets, and for a method call to who has no methods."""
    flags = message.flags
    if flags == _native.RAW:
        return True
    if has_loop:
        _stopping.set()
        try:  # the loop sees to it when the handler is done, and what came before it
            found.box.post(None, _native.CAST, _native.ORDER, flags, 0)
        except ShmipcError:
            put_aside(message)
            found.member.call_loop()  # who may sleep, when this is another thread
    elif flags == _native.STOP:
        stop(found.box)
        raise Closed("this actor was told to stop")
    else:
        refuse(found, message)
    return False


def stop(box: _native.Box) -> None:
    """Accept nothing more; what is queued is dropped and its senders told."""
    _stopping.set()
    box.close_box()


def stopping() -> bool:
    return _stopping.is_set()


def refuse(found: Membership, message: Message) -> None:
    """Answer a method call to a process that has no methods."""
    if not message.is_call:
        return
    about = refs.own_ref(found)._shm.describe() or refs.NOBODY
    body: Any = message.body
    name = body[0] if isinstance(body, tuple) and body else "?"
    try:
        if name == refs.DESCRIBE:
            message.reply(about)
        else:
            message.reply_error(refs.no_such_method(name, about.kind, about.names))
    except (Aborted, PeerDead):
        pass  # the caller has left
