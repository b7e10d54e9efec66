"""Messages between processes: send, call, receive, reply, monitor, and what a process knows of itself.

Every process is a member of its system and has a mailbox, the root and attached ones too. Functions that name no
system use the current one. Timeouts are seconds: None waits, 0 polls, a positive one ends in `Timeout`.
"""

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from shmipc import _native
from shmipc.actor import inbox, refs
from shmipc.actor.groups import PortGroup
from shmipc.actor.ports import Port
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.errors import InvalidArgument, NotFound, NotSupported, PeerDead, Unreachable
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.memory.segments import check_name
from shmipc.transport.mailboxes import Mailbox
from shmipc.transport.messages import (
    ANY,
    GENERATE,
    ExitNotice,
    Kind,
    Match,
    Message,
    Sign,
    check_filter,
    check_tag,
    is_any,
)


def box_of(to: object, timeout: float | None = None) -> _native.Box:
    """The mailbox behind a Ref, a Mailbox or the name of either, or a Port; raises TypeError, PeerDead, NotFound,
    and Timeout when it cannot be opened in time, see `refs.open_mailbox`.
    """
    if isinstance(to, refs.ActorRef):
        return to._shm.open(timeout)
    if isinstance(to, (Mailbox, Port)):
        return to
    if isinstance(to, str):
        return box_named(to, timeout)
    raise TypeError(f"a Ref, a Mailbox, a Port or a name is needed, not {type(to).__name__}")


def box_within(to: object, timeout: float | None) -> tuple[_native.Box, float | None]:
    """As `box_of`, and what is left of the timeout."""
    if not timeout or isinstance(to, (Mailbox, Port)):
        return box_of(to, timeout), timeout
    deadline = Deadline(timeout)
    box, left = box_of(to, timeout), deadline.left()
    return box, left if left is None else max(left, 1e-9)


def box_named(name: str, timeout: float | None = None) -> _native.Box:
    """The mailbox of whoever has the name now; what was opened before is kept until the name is another's."""
    check_name("name", name)
    found = membership.current()
    kind, object, life = found.member.lookup_name(name)
    opened = _named.setdefault(found, {})
    last = opened.get(name)
    if last is not None and last[0] == (kind, object, life) and not last[1].closed:
        return last[1]
    if len(opened) >= WATCHED_LIMIT:
        opened.clear()
    box: _native.Box
    if kind == _native.NAME_ACTOR:
        box = refs.open_mailbox(found.member, life, timeout)
    elif kind == _native.NAME_BOX:
        box = found.member.open_box(object, life, cls=Mailbox, timeout=timeout)
    else:
        raise NotFound(f"{name!r} names neither an actor nor a mailbox")
    opened[name] = (kind, object, life), box
    return box


# Mailboxes that this process has reached by name, with what the name stood for.
_named: "weakref.WeakKeyDictionary[Membership, dict[str, tuple[tuple[int, int, int], _native.Box]]]"
_named = weakref.WeakKeyDictionary()


def tag_for(box: _native.Box, tag: int | Sign | None) -> int:
    """The core's form of a tag that is to be sent; 0 for none."""
    if tag is GENERATE:
        return box.member.generate_tag()
    return check_tag(tag)  # type: ignore[arg-type]  # it refuses another Sign


def send(
    to: object,
    body: Any,
    *,
    kind: Kind = Kind.CAST,
    tag: int | Sign | None = None,
    timeout: float | None = None,
    priority: int = 0,
) -> int | None:
    """Put a message into a mailbox.

    Args:
        to: A Ref, a Mailbox, or the name that either is served under.
        body: Anything that pickles; arrays in shared memory travel as handles.
        kind: CAST, or REPLY or TIMER for an ordinary message of that kind. CALL asks for an answer, which this
            process receives from its own mailbox: kind REPLY, the same tag, without a slot. Its body is what was
            answered, or the error, and then its `is_error` is True. A REPLY sent by this function answers no call.
        tag: 1 to 2**60 - 1, None, or GENERATE for one that is unique in the system.
        timeout: Seconds to wait for room.
        priority: 0, the most urgent, to 1023; a receive that asks for what is ``urgent`` goes by it. A CALL has 0.

    Returns:
        The tag that was sent.

    Raises:
        InvalidArgument: A kind or tag that cannot be sent; a CALL to this process's own mailbox.
        MailboxFull: ``timeout=0`` and no room; carries the body.
        Timeout: No room in time; carries the body.
        PeerDead: The receiver has ended.
        NotFound: Nobody has that name.
        TooLarge: The body is above its limit; nothing was queued.
    """
    if type(kind) not in (Kind, int) or kind not in (Kind.CAST, Kind.CALL, Kind.REPLY, Kind.TIMER):
        raise InvalidArgument(f"a message of kind {kind!r} cannot be sent; only CAST, CALL, REPLY and TIMER can")
    box, timeout = box_within(to, timeout)
    number = tag_for(box, tag)
    if kind == Kind.CALL:
        if priority != 0:
            raise InvalidArgument(f"priority is {priority}; that of a CALL is 0")
        box.ask(body, number, timeout)
    else:
        box.post(body, int(kind), number, _native.RAW, timeout, priority)
    return number or None


def call(to: object, body: Any, *, tag: int | Sign | None = None, timeout: float | None = None) -> Any:
    """Send a message, wait for the answer and return it, or raise the error that was answered.

    ``to`` and ``tag`` as for `send`; what arrives in this process's mailbox meanwhile stays there.

    Raises:
        InvalidArgument: ``timeout=0``, or a call to oneself, which would never end.
        Timeout: No answer in time; the server is told.
        PeerDead: The server has ended.
    """
    if check_timeout(timeout) == 0:
        raise InvalidArgument("call(timeout=0) cannot be answered; use submit to poll for an answer")
    box, timeout = _box_to_call(to, timeout)
    return _native.Box.call(box, body, _native.RAW, timeout, tag_for(box, tag))  # a Port has a call of its own


def call_nowait(to: object, body: Any) -> Any:
    """As `call` without a limit, but sent at once or not at all: MailboxFull, LimitExceeded."""
    box, _ = _box_to_call(to, 0)
    return box.call_nowait(body)


def _box_to_call(to: object, timeout: float | None) -> tuple[_native.Box, float | None]:
    box, timeout = box_within(to, timeout)
    if isinstance(to, refs.ActorRef) and to._shm.id == box.member.id:
        raise InvalidArgument("a process that calls itself would wait for ever")
    if isinstance(box, Port):
        box.check_other_thread()
    return box, timeout


def rendezvous(to: object, body: Any, *, tag: int | Sign | None = None, timeout: float | None = None) -> None:
    """Send a message and wait until it was received; it arrives as a CAST, and needs no answer.

    ``to`` and ``tag`` as for `send`. Whatever this raises, the message is not received any more, and if it returns, it
    was.

    Args:
        timeout: Seconds to wait for the receiver; 0: only if somebody waits for it now.

    Raises:
        WouldBlock: ``timeout=0``, and nobody waits there, or has room for it, or takes it.
        InvalidArgument: To this process's own mailbox, which would never end.
        Timeout, PeerDead, NotFound, TooLarge: As of `send`.
        Deadlock: Both wait for each other, without limits.
    """
    box, timeout = box_within(to, check_timeout(timeout))
    if isinstance(box, Port):
        box.check_other_thread()
    box.meet(body, timeout, tag_for(box, tag))


def notify(to: object, bits: int) -> None:
    """Set bits in a mailbox; it never waits, needs no room, and says so when the receiver has ended.

    The next receive there that has no conditions, or asks for kind NOTIFY alone, returns all bits that were set since
    the last, before any queued message: a message of kind NOTIFY whose body is the bits. It has no sender.

    Args:
        to: A Ref, a Mailbox, or the name that either is served under.
        bits: 1 to 2**64 - 1; the highest is `OFFERED`, which `offer` sets.

    Raises:
        InvalidArgument: No such bits.
        NotSupported: The mailbox takes bodies of one length, or is a port.
        PeerDead, Closed, NotFound: Nobody can receive them.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, not {type(bits).__name__}")
    if not 0 < bits < 1 << 64:
        raise InvalidArgument(f"bits are {bits:#x}; they must be 1 to 2**64 - 1")
    box = box_of(to)
    if isinstance(box, Port):
        raise NotSupported("a port receives no bits; notify its owner")
    box.notify(bits)


def receive(sender: Any = ANY, kind: int = ANY, tag: int | None = ANY, timeout: float | None = None) -> Message:
    """The oldest message of this process's mailbox that matches; the others keep their order.

    Args:
        sender: A Ref, or ANY.
        kind: A Kind, or ANY.
        tag: A tag, None for messages without one, or ANY.

    Raises:
        MailboxEmpty: ``timeout=0`` and nothing matches.
        Timeout: Nothing matched in time.
        Starved: The mailbox is full, nothing matches, and nobody can make room.
        Closed: This actor was told to stop, or the system has ended.
    """
    return inbox.take(membership.current(), timeout, *check_match((sender, kind, tag)))


def check_match(match: Iterable[Any]) -> tuple[int, int, int]:
    """The core's form of (sender, kind, tag); raises TypeError, InvalidArgument."""
    sender, kind, tag = match
    sender_id = ANY if is_any(sender) else refs.id_here(sender)
    return sender_id, *check_filter(kind, tag)


def receive_matching(matches: Iterable[Any], timeout: float | None = None) -> tuple[int, Message]:
    """The oldest message that matches any of several conditions, and the index of the first that it matches.

    Args:
        matches: One to 64 of `Match`, or tuples of a sender, a kind and a tag, as for `receive`.

    Raises:
        As `receive`.
    """
    wanted = [check_match(Match(*match)) for match in matches]
    return inbox.take_matching(membership.current(), timeout, wanted)


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


def reply_receive(
    message: Message,
    body: Any,
    *,
    sender: Any = ANY,
    kind: int = ANY,
    tag: int | None = ANY,
    timeout: float | None = None,
) -> Message:
    """Answer a call and receive the next message, as `reply` and then `receive` do.

    The conditions are checked first: when they are refused, nothing was answered.
    """
    match = check_match((sender, kind, tag))
    check_timeout(timeout)
    message.reply(body)
    return inbox.take(membership.current(), timeout, *match)


@dataclass(frozen=True)
class RequestInfo:
    """What a server knows of a request; the runtime's word, which no sender can choose.

    Attributes:
        sender: Who sent it.
        target: Where it was sent to: this process's Ref, the Mailbox that stands alone, the Port, or the PortGroup
            while there is one; None: a port that has been deleted since.
        transaction: Number of the call, unique in the system; None for a message that asks for no answer.
        identity: Of the sender's process, never used again in its system; 0 when it had ended before this was asked.
        pid: Of the sender's process; 0 likewise.
        uid: Of the user whose system it is.
    """

    sender: refs.ActorRef | None
    target: Any
    transaction: int | None
    identity: int
    pid: int
    uid: int


def request_info(message: Message) -> RequestInfo:
    """Who sent a message, where to, and in which transaction; the same before and after the answer."""
    if message.info is None:
        member = message.member
        pid, identity = member.who(message.sender_id)
        found = membership.of_member(member)
        index, life = message.received_in()
        target: Any = refs.own_ref(found) if found is not None else None
        if message.port:
            target = PortGroup.addressed_by(message)
            if target is None:
                try:
                    target = _native.open_port(member, message.port, cls=Port)
                except Unreachable:
                    pass
        elif (index, life) != member.own_box():
            target = member.open_box(index, life, cls=Mailbox)
        message.info = RequestInfo(message.sender, target, message.transaction, identity, pid, os.getuid())
    known: RequestInfo = message.info
    return known


@dataclass(frozen=True)
class Monitor:
    """A watch on a process; its end arrives here as a message of kind EXIT with an `ExitNotice`."""

    id: int
    ref: refs.ActorRef
    _box: _native.Box = field(repr=False, compare=False)

    _watched: dict[int, object] = field(repr=False, compare=False)
    _target: int = field(repr=False, compare=False)  # the member id; the Ref may be that of a name

    def cancel(self) -> bool:
        """Stop watching; False when the notice was received already."""
        cancelled = self._box.demonitor(self.id)
        if cancelled:
            self._watched.pop(self._target, None)
        return cancelled


def monitor(ref: Any) -> Monitor:
    """Watch a process: when it has ended, one notice arrives, behind all that it sent.

    Raises:
        InvalidArgument: It is this process, it is watched already, or it has ended; the text says how.
    """
    watched = refs.check_ref(ref)
    found = membership.current()
    member, id = found.member, refs.id_in(watched, found.member)
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
        return Monitor(found.box.monitor(id), watched, found.box, targets, id)
    except BaseException:
        targets.pop(id, None)
        raise


def link(ref: Any) -> None:
    """Tie this process and another together: when either ends, the other receives one notice, as of a monitor.

    Its `ExitNotice.monitor` is None. A link and a monitor of one process are two notices.

    Raises:
        InvalidArgument: It is this process, the two are linked already, or it has ended; the text says how.
    """
    other = refs.check_ref(ref)
    found = membership.current()
    member, id = found.member, refs.id_in(other, found.member)
    if id == member.id:
        raise InvalidArgument("a process cannot be linked with itself")
    try:
        index, life = member.box_of(id)
    except PeerDead:
        raise InvalidArgument(f"no link with who has ended: {refs.peer_dead(member, id)}") from None
    if not found.box.link(id, index, life):
        raise InvalidArgument(f"{other!r} and this process are linked already")


def unlink(ref: Any) -> bool:
    """End the link with another process, whoever made it; no notice comes of it any more.

    Returns:
        Was there a link, or a notice of one that was not received yet?
    """
    return membership.current().box.unlink_from(refs.id_here(ref))


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
    member: _native.Member, id: int, number: int | None, cause: tuple[str, int | None, int | None], undelivered: int
) -> ExitNotice:
    """Make the body of an exit notice."""
    reason, exitcode, signal = cause
    found: Membership | None = membership.of_member(member)
    text = None
    for look in traceback_sources:
        text = text or look(found.name if found is not None else "", id)
    return ExitNotice(refs.make_ref(member, id), number, reason, exitcode, signal, text, undelivered, member.hint(id))


traceback_sources: list[Any] = []  # callables (system, member id) -> text or None; filled by the runtime floor
