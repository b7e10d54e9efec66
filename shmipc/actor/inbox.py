"""The mailbox of the process that runs, as its own code reads it.

What an actor's loop is to handle (method calls, tasks) may arrive while the code of a handler waits for a message
of its own; it stays in the mailbox, counted and in order, until the loop comes by. The order to stop stays too, and
ends the wait that comes to it.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import Aborted, Closed, PeerDead
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.transport.messages import ANY, Message, carry

T = TypeVar("T")

deferred: deque[Message] = deque()
has_loop = False  # does a loop serve this process's mailbox?
_stopping = False  # has the code of this actor been told to stop?


def take(found: Membership, timeout: float | None, sender_id: int, kind: int, tag: int) -> Message:
    """The oldest message for the user's code that matches; raises as `Mailbox.receive_message` does.

    Raises:
        Closed: The actor was told to stop, or its system has ended.
    """
    box, deadline = found.box, Deadline(timeout) if timeout else None
    # Without a loop and conditions nothing is left out, orders and calls of methods that there are none of included.
    is_open = not has_loop and sender_id == ANY and kind == ANY and tag == ANY
    taken: list[Message] = []
    try:
        while True:
            if is_open:
                message = take_one(box.take, timeout, into=taken)
            else:
                message = take_one(box.take, timeout, sender_id, kind, tag, orders=True, raw=has_loop, into=taken)
            if is_for_user(found, message):
                return message
            taken.clear()
            timeout = left(deadline, timeout)
    except BaseException as error:
        broken_off(found, error, taken)
        raise


def take_matching(found: Membership, timeout: float | None, matches: list[tuple[int, int, int]]) -> tuple[int, Message]:
    """The same by several conditions (sender id, kind, tag); with the index of the first that the message matches."""
    deadline = Deadline(timeout) if timeout else None
    taken: list[Message] = []
    try:
        while True:
            index, message = take_one(found.box.take_matching, matches, timeout, orders=True, raw=has_loop, into=taken)
            if is_for_user(found, message):
                return index, message
            taken.clear()
            timeout = left(deadline, timeout)
    except BaseException as error:
        broken_off(found, error, taken)
        raise


def left(deadline: Deadline | None, timeout: float | None) -> float | None:
    """What is left of a timeout; of one that was no poll, never so little that it is one."""
    rest = deadline.left() if deadline is not None else timeout
    return max(rest, 1e-9) if deadline is not None and rest is not None else rest


def take_one(take: Callable[..., T], *arguments: Any, **options: Any) -> T:
    if _stopping:
        raise Closed("this actor was told to stop")
    try:
        return take(*arguments, **options)
    except Closed:  # the order to stop was found, or whoever ends the system has closed the mailbox
        if membership.home() is not None:
            _be_stopping()
        raise


def broken_off(found: Membership, error: BaseException, taken: list[Message]) -> None:
    """A signal handler has raised behind the taking of a message: it is the user's all the same, or is heeded."""
    if not taken or taken[0].flags == _native.RAW:
        carry(error, taken)
    elif taken[0].flags == _native.STOP:
        stop(found)
    else:
        refuse(found, taken[0])


def is_for_user(found: Membership, message: Message) -> bool:
    """False for a method call to who has no methods. Raises Closed for the order to stop."""
    flags = message.flags
    if flags == _native.RAW:
        return True
    if flags == _native.STOP:
        stop(found)
        raise Closed("this actor was told to stop")
    refuse(found, message)
    return False


def stop(found: Membership) -> None:
    """Accept nothing more there; what is queued is dropped and its senders told."""
    if found is membership.home():
        _be_stopping()
    found.box.close_box()


def _be_stopping() -> None:
    global _stopping
    _stopping = True


def stopping() -> bool:
    return _stopping


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


def _after_fork() -> None:
    """What the actor was told, its child was not; nor has that a loop."""
    global has_loop, _stopping
    has_loop = _stopping = False


os.register_at_fork(after_in_child=_after_fork)
