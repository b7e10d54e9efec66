"""Messages between processes: send, call, receive, reply, monitor, and what a process knows of itself.

Every process is a member of its system and has a mailbox, the root and attached ones too. Functions that name no
system use the current one. Timeouts are seconds: None waits, 0 polls, a positive one ends in `Timeout`.
"""

import itertools
import weakref
from dataclasses import dataclass, field
from typing import Any, NoReturn

from shmipc import _native
from shmipc.actor import inbox, refs
from shmipc.base.deadlines import check_timeout
from shmipc.base.errors import InvalidArgument
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.transport.mailboxes import Mailbox
from shmipc.transport.messages import (
    ANY,
    ExitNotice,
    Kind,
    Message,
    Sign,
    check_filter,
    check_tag,
    generated_tag,
    is_any,
)

_numbers = itertools.count(1)


def box_of(to: object) -> _native.Box:
    """The mailbox behind a Ref or Mailbox; raises TypeError, PeerDead."""
    if isinstance(to, refs.ActorRef):
        return to._shm.open()
    if isinstance(to, Mailbox):
        return to
    raise TypeError(f"a Ref or a Mailbox is needed, not {type(to).__name__}")


def send(
    to: object, body: Any, *, kind: Kind = Kind.CAST, tag: int | Sign | None = None, timeout: float | None = None
) -> int | None:
    """Put a message into a mailbox.

    Args:
        to: A Ref or a Mailbox.
        body: Anything that pickles; arrays in shared memory travel as handles.
        kind: CAST, or REPLY or TIMER for an ordinary message of that kind.
        tag: 1 to 2**60 - 1, None, or GENERATE for one that is unique in the system.
        timeout: Seconds to wait for room.

    Returns:
        The tag that was sent.

    Raises:
        InvalidArgument: A kind or tag that cannot be sent.
        MailboxFull: ``timeout=0`` and no room; carries the body.
        Timeout: No room in time; carries the body.
        PeerDead: The receiver has ended.
        TooLarge: The body is above its limit; nothing was queued.
    """
    box = box_of(to)
    if kind not in (Kind.CAST, Kind.REPLY, Kind.TIMER):
        if not isinstance(kind, int) or kind == ANY or kind not in tuple(Kind):
            raise InvalidArgument(f"kind is {kind!r}; a message is of kind CAST, REPLY or TIMER")
        hint = "use call, or ref.m.submit" if kind == Kind.CALL else "such notices are made by the runtime"
        raise InvalidArgument(f"a message of kind {Kind(kind).name} cannot be sent; {hint}")
    if isinstance(tag, Sign):
        number: int = generated_tag(box.member.identity, next(_numbers))
        box.post(body, int(kind), number, _native.RAW, timeout)
        return number
    box.post(body, int(kind), check_tag(tag), _native.RAW, timeout)
    return tag


def call(to: object, body: Any, *, tag: int | None = None, timeout: float | None = None) -> Any:
    """Send a message, wait for the answer and return it, or raise the error that was answered.

    Raises:
        InvalidArgument: ``timeout=0``, or a call to oneself, which would never end.
        Timeout: No answer in time; the server is told.
        PeerDead: The server has ended.
    """
    box = box_of(to)
    if check_timeout(timeout) == 0:
        raise InvalidArgument("call(timeout=0) cannot be answered; use submit to poll for an answer")
    if isinstance(to, refs.ActorRef) and to._shm.id == box.member.id:
        raise InvalidArgument("a process that calls itself would wait for ever")
    return box.call(body, _native.RAW, timeout, check_tag(tag))


def receive(sender: Any = ANY, kind: int = ANY, tag: int | None = ANY, timeout: float | None = None) -> Message:
    """The oldest message of this process's mailbox that matches; the others keep their order.

    Args:
        sender: A Ref, or ANY.
        kind: A Kind, or ANY.
        tag: A tag, None for messages without one, or ANY.

    Raises:
        MailboxEmpty: ``timeout=0`` and nothing matches.
        Timeout: Nothing matched in time.
        Starved: The mailbox is full and nothing matches.
        Closed: This actor was told to stop, or the system has ended.
    """
    sender_id = ANY if is_any(sender) else refs.check_ref(sender)._shm.id
    return inbox.take(membership.current(), timeout, sender_id, *check_filter(kind, tag))


def reply(message: Message, body: Any) -> None:
    """Answer a call.

    Raises:
        InvalidArgument: The message is no call.
        Aborted: The caller gave up, or was answered before.
        PeerDead: The caller has ended.
    """
    message.reply(body)


def reply_error(message: Message, error: BaseException) -> None:
    """Answer a call with an exception, which the caller's call raises; raises as `reply` does."""
    if not isinstance(error, BaseException):
        raise TypeError(f"an exception is needed, not {type(error).__name__}")
    message.reply_error(error)


@dataclass(frozen=True)
class Monitor:
    """A watch on a process; its end arrives here as a message of kind EXIT with an `ExitNotice`."""

    id: int
    ref: refs.ActorRef
    _box: _native.Box = field(repr=False, compare=False)

    _watched: dict[int, object] = field(repr=False, compare=False)

    def cancel(self) -> bool:
        """Stop watching; False when the notice was received already."""
        cancelled = self._box.demonitor(self.id)
        if cancelled:
            self._watched.pop(self.ref._shm.id, None)
        return cancelled


def monitor(ref: Any) -> Monitor:
    """Watch a process: when it has ended, one notice arrives, behind all that it sent.

    Raises:
        InvalidArgument: It is this process, it is watched already, or it has ended; the text says how.
    """
    watched = refs.check_ref(ref)
    found = membership.current()
    member, id = found.member, watched._shm.id
    if id == member.id:
        raise InvalidArgument("a process cannot monitor itself")
    if not member.lives(id):
        raise InvalidArgument(f"no monitor of who has ended: {refs.peer_dead(member, id)}")
    targets = _watched.setdefault(found, {})
    if len(targets) >= WATCHED_LIMIT:
        for target in [target for target in list(targets) if not member.lives(target)]:
            targets.pop(target, None)
    mine = object()
    if targets.setdefault(id, mine) is not mine:
        raise InvalidArgument(f"{watched!r} is monitored already; one notice tells this process of its end")
    try:
        return Monitor(found.box.monitor(id), watched, found.box, targets)
    except BaseException:
        targets.pop(id, None)
        raise


# Whom this process monitors, by member id; one that has ended stays until many have: no id is used twice.
_watched: "weakref.WeakKeyDictionary[Membership, dict[int, object]]" = weakref.WeakKeyDictionary()
WATCHED_LIMIT = 1024


def self() -> refs.ActorRef:
    """The Ref of this process."""
    return refs.own_ref(membership.current())


def pending() -> int:
    """Messages in this process's mailbox; exact."""
    return membership.current().box.depth()


def exit(code: int = 0) -> NoReturn:
    """End this process with that exit code; its `on_stop` runs first."""
    raise SystemExit(code)


# --- what the binding asks back --------------------------------------------------------------------------------


def exit_notice(
    member: _native.Member, id: int, number: int, cause: tuple[str, int | None, int | None], undelivered: int
) -> ExitNotice:
    """Make the body of an exit notice."""
    reason, exitcode, signal = cause
    found: Membership | None = membership.of_member(member)
    text = None
    for look in traceback_sources:
        text = text or look(found.name if found is not None else "", id)
    return ExitNotice(refs.make_ref(member, id), number, reason, exitcode, signal, text, undelivered, member.hint(id))


traceback_sources: list[Any] = []  # callables (system, member id) -> text or None; filled by the runtime floor
