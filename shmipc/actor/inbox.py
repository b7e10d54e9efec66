"""The mailbox of the process that runs, as its own code reads it.

What an actor's loop is to handle (method calls, tasks) may arrive while the code of a handler waits for a message
of its own; it is kept in order until the loop comes by. A loop that does not come by itself says who takes it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.errors import Aborted, Closed, PeerDead
from shmipc.memory.membership import Membership
from shmipc.transport.messages import ANY, Message

T = TypeVar("T")

deferred: deque[Message] = deque()
has_loop = False  # does a loop serve this process's mailbox?
put_aside: Callable[[Message], None] = deferred.append  # what becomes of a message for the loop
_stopping = threading.Event()


def take(found: Membership, timeout: float | None, sender_id: int, kind: int, tag: int) -> Message:
    """The oldest message for the user's code that matches; raises as `Mailbox.receive_message` does.

    Raises:
        Closed: The actor was told to stop, or its system has ended.
    """
    box = found.box
    if sender_id == ANY and kind == ANY and tag == ANY:
        while True:
            message = take_one(lambda: box.take(timeout))
            if is_for_user(found, message):
                return message
    while True:
        message = take_one(lambda: box.take(timeout, sender_id, kind, tag, orders=True))
        if is_for_user(found, message):
            return message


def take_matching(found: Membership, timeout: float | None, matches: list[tuple[int, int, int]]) -> tuple[int, Message]:
    """The same by several conditions (sender id, kind, tag); with the index of the first that the message matches."""
    while True:
        index, message = take_one(lambda: found.box.take_matching(matches, timeout, orders=True))
        if is_for_user(found, message):
            return index, message


def take_one(take: Callable[[], T]) -> T:
    if _stopping.is_set():
        raise Closed("this actor was told to stop")
    try:
        return take()
    except Closed:  # by whoever ends the system
        _stopping.set()
        raise


def is_for_user(found: Membership, message: Message) -> bool:
    """False for a message of the loop's, which it gets, or is refused."""
    flags = message.flags
    if flags == _native.RAW:
        return True
    if has_loop:
        put_aside(message)
        found.member.call_loop()  # who may sleep, when this is another thread
        if flags == _native.STOP:  # the loop sees to it when the handler is done
            _stopping.set()
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
