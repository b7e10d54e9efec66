"""Mailboxes: rings of slots in shared memory that any process of a system may send to and receive from."""

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np

from shmipc import _native
from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline, poll
from shmipc.base.errors import InvalidArgument, NameTaken, NotFound
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership, segments
from shmipc.memory.membership import Membership
from shmipc.transport.messages import ANY, Message, check_filter, is_any

Structured = np.ndarray[Any, np.dtype[np.void]]
MAKING_SECONDS = 5.0  # how long one who is making a mailbox may take over it, for others who want it made


class HasMembership(Protocol):
    """A system, as this floor knows it."""

    @property
    def _membership(self) -> Membership: ...


def membership_of(system: HasMembership | None) -> Membership:
    """The membership of a system, or the current one; raises Closed, ForkedHandle."""
    found = membership.current() if system is None else system._membership
    found.check()
    return found


class Mailbox(Closing, _native.Box):
    """A mailbox that stands alone: made with `create`, found with `open`, passed on by pickling.

    First in, first out for each sending thread. It lives until the last process that has it open closes it or
    dies; a persistent one until `unlink` or the end of the system. ``send``, ``send_nowait``, ``send_many``,
    ``receive``, ``receive_nowait``, ``receive_bounded`` and ``receive_many`` are the binding's own methods.

    Timeouts are seconds: None waits, 0 polls (`MailboxFull`, `MailboxEmpty`), a positive one ends in `Timeout`.

    Source: native/transport/mailbox.c; bytes in native/memory/layout.h.
    """

    @classmethod
    def create(
        cls,
        name: str | None = None,
        slots: int = LIMITS.slots,
        slot_bytes: int = LIMITS.slot_bytes,
        *,
        message_bytes: int | None = None,
        persistent: bool = False,
        exist_ok: bool = False,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a mailbox.

        Args:
            name: Under which others of the system find it, or None.
            slots: Messages undelivered at most, exactly; 1 to 2**20.
            slot_bytes: Bytes of a body held in its slot; a larger body goes to a block. 8 to 65 536.
            message_bytes: Each body is then bytes of exactly this length; None: any body. 1 to ``LIMITS.body_bytes``.
            persistent: Keep it when nobody has it open.
            exist_ok: Open the mailbox of that name when there is one: of all who ask at once one makes it.
            system: Where; the current system by default.

        Raises:
            NameTaken: The name belongs to a living object; with ``exist_ok`` to an actor, or for `MAKING_SECONDS`
                to a maker that does not go on.
            InvalidArgument: The mailbox that exists has other slots or another message_bytes.
            InvalidArgument, LimitExceeded: A number outside its limits, or a name with other characters.
            OutOfMemory: Shared memory is exhausted.
        """
        if name is not None:
            segments.check_name("mailbox name", name)
        check_count("slots", slots, 1, LIMITS.max_slots)
        check_count("slot_bytes", slot_bytes, LIMITS.min_slot_bytes, LIMITS.max_slot_bytes)
        if message_bytes is not None:
            check_count("message_bytes", message_bytes, 1, LIMITS.body_bytes)
        member = membership_of(system).member
        kind = _native.BOX_PERSISTENT if persistent else _native.BOX_SHARED
        measures = kind, slots, slot_bytes, message_bytes
        if name is None or not exist_ok:
            return cls._make(member, name, *measures)
        deadline, pause = Deadline(MAKING_SECONDS), 0.0005
        while True:
            try:
                return cls.open(name, system=system)._check_measures(slots, message_bytes)
            except NotFound:
                pass
            try:
                return cls._make(member, name, *measures)
            except NameTaken:  # another makes it, and is about to be found; or it is the name of something else
                if deadline.passed() or names_other(member, name):
                    raise
            deadline.pause(pause)
            pause = min(2 * pause, 0.05)

    @classmethod
    def _make(
        cls,
        member: _native.Member,
        name: str | None,
        kind: int,
        slots: int,
        slot_bytes: int,
        message_bytes: int | None,
    ) -> Self:
        """A new mailbox under a name that was checked."""
        box: Self = member.make_box(kind, slots, slot_bytes, message_bytes=message_bytes, cls=cls)
        if name is not None:
            try:
                member.serve_name(name, _native.NAME_BOX, box.index, box.life)
            except BaseException:
                if kind == _native.BOX_PERSISTENT:
                    box.unlink()
                box.release()
                raise
        return box

    def _check_measures(self, slots: int, message_bytes: int | None) -> Self:
        """Is it what somebody would have made? Else it is closed, InvalidArgument."""
        if (self.capacity, self.message_bytes) == (slots, message_bytes):
            return self
        text = f"mailbox {self.name!r} exists with {self.capacity} slots and message_bytes {self.message_bytes}"
        self.close()
        raise InvalidArgument(f"{text}; {slots} slots and message_bytes {message_bytes} were asked for")

    @classmethod
    def open(cls, name: str, *, timeout: float | None = 0.0, system: HasMembership | None = None) -> Self:
        """Open the mailbox of that name.

        Args:
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: There is none.
            Timeout: A process has been stopped in the midst of opening it for ``timeout`` seconds; with 0 this waits
                for that process.
        """
        segments.check_name("mailbox name", name)
        member = membership_of(system).member
        deadline = Deadline(timeout or None)

        def find() -> Any:
            kind, index, life = member.lookup_name(name)
            if kind != _native.NAME_BOX:
                raise NotFound(f"{name!r} names something else, not a mailbox")
            return member.open_box(index, life, cls=cls, timeout=deadline.left())

        found: Self = poll(find, timeout)
        return found

    def unlink(self) -> None:
        """Take its name away and end its persistence: it goes when the last process closes it."""
        name = self.name
        if name is not None:
            self.member.withdraw_name(name)
        self.unpersist()

    @property
    def name(self) -> str | None:
        """The name it has in its system, None when it has none."""
        return self.member.name_of(_native.NAME_BOX, self.index, self.life)

    def count(self) -> int:
        """Messages undelivered, set-aside ones included; exact."""
        return self.depth()

    def __len__(self) -> int:
        return self.depth()

    def receive_message(
        self,
        sender: Any = ANY,
        kind: int = ANY,
        tag: int | None = ANY,
        timeout: float | None = None,
        *,
        tags: tuple[int, int] | None = None,
        urgent: bool = False,
    ) -> Message:
        """The oldest message that matches, with its sender, kind and tag; the others keep their order.

        Args:
            sender: A Ref, or ANY.
            kind: A Kind, or ANY.
            tag: A tag, None for messages without one, or ANY.
            tags: The lowest and the highest tag that match, instead of ``tag``.
            urgent: Of those that match the most urgent, see the ``priority`` of `shmipc.send`; of these the oldest.

        Raises:
            MailboxEmpty: ``timeout=0`` and nothing matches.
            Timeout: Nothing matched in time.
            Starved: The mailbox is full, nothing matches, and nobody can make room.
            Closed: The mailbox is closed.
        """
        sender_id = check_sender(sender, self.member)
        if tags is None and not urgent:
            return self.take(timeout, sender_id, *check_filter(kind, tag))
        kind, number = check_filter(kind, tag)
        return self.take_where(timeout, sender_id, kind, number, *check_range(tags), urgent=urgent)

    def peek(
        self,
        sender: Any = ANY,
        kind: int = ANY,
        tag: int | None = ANY,
        timeout: float | None = 0.0,
        *,
        tags: tuple[int, int] | None = None,
        urgent: bool = False,
    ) -> Message:
        """What `receive_message` would return, which stays where it is and cannot be answered.

        Ends of processes, timers and notifications are not messages of the mailbox, and not seen. Arguments and errors
        as of `receive_message`, but it looks once unless there is a timeout.
        """
        sender_id = check_sender(sender, self.member)
        kind, number = check_filter(kind, tag)
        return self.take_where(timeout, sender_id, kind, number, *check_range(tags), urgent=urgent, keeps=True)

    def receive_peeked(self, message: Message) -> Message:
        """The message that `peek` has shown, which may now be answered: MailboxEmpty when another has received it."""
        if message.received_in() != (self.index, self.life) or message.member is not self.member:
            raise InvalidArgument("the message is of another mailbox")
        return self.take_where(0, ANY, ANY, ANY, start=message.position, until=message.position + 1)

    def matching(self, sender: Any = ANY, kind: int = ANY, tag: int | None = ANY) -> _native.MatchSource:
        """For `wait_any`, `wait_all` and `select`: signalled while a message that matches is there. See
        `receive_message`.
        """
        sender_id = check_sender(sender, self.member)
        return _native.MatchSource(self, sender_id, *check_filter(kind, tag))

    @property
    def header(self) -> Structured:
        """The ring's words as they are now: a live, read-only record of shape ()."""
        return ring_header(self)

    @property
    def slots(self) -> Structured:
        """The ring's slots as they are now: a live, read-only array of records, one for each physical slot."""
        return ring_slots(self)

    def close(self) -> None:
        """Close this process's hold; a second close does nothing. Views of the memory stay valid."""
        if not self.closed:
            self.release()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        found = membership.of_member(self.member)
        name = found.name if found is not None else ""
        return reopen, (type(self), name, self.index, self.life)

    def __repr__(self) -> str:
        if self.closed:
            return "<Mailbox, closed>"
        if self.member.forked:
            return "<Mailbox of the process that forked this one>"
        return f"<Mailbox {self.name or self.index} {self.depth()}/{self.capacity}>"


def check_sender(sender: Any, member: _native.Member) -> int:
    """The member id of a Ref of that system, or ANY."""
    if is_any(sender):
        return ANY
    if not hasattr(sender, "_shm"):
        raise TypeError(f"sender must be a Ref or ANY, not {type(sender).__name__}")
    membership.check_same(sender, sender._shm.member, sender._shm.system, member)
    return int(sender._shm.id)


def check_range(tags: tuple[int, int] | None) -> tuple[int, int]:
    """The core's form of the tags of a receive: the first, and the first above; (0, 0) for all."""
    if tags is None:
        return 0, 0
    try:
        low, high = tags
    except (TypeError, ValueError):
        raise TypeError(f"tags are a pair, the lowest and the highest, not {tags!r:.60}") from None
    for tag in (low, high):
        check_filter(ANY, tag)
    if low is None or high is None or not 1 <= low <= high:
        raise InvalidArgument(f"tags are {tags}; they must be the lowest and the highest, at least 1")
    return low, high + 1


def names_other(member: _native.Member, name: str) -> bool:
    try:
        return member.lookup_name(name)[0] != _native.NAME_BOX
    except NotFound:
        return False


def reopen(cls: type[Mailbox], system: str, index: int, life: int) -> Mailbox:
    """Open in this process a mailbox that another process pickled; raises NotFound, Closed."""
    found = membership.find(system)
    found.check()
    box: Mailbox = found.member.open_box(index, life, cls=cls)
    return box


# --- views -----------------------------------------------------------------------------------------------------

HEADER_FIELDS = {"tail": "<u8", "right": "<u8", "head": "<u8", "delivered": "<u8"}
SLOT_FIELDS = {  # native/memory/layout.h, struct shm_slot
    "word": ("<u8", 0),
    "header": ("<u8", 8),
    "sender": ("<u8", 16),
    "call": ("<u8", 24),
    "len": ("<u4", 32),
    "format": ("<u2", 36),
    "flags": ("<u2", 38),
    "lease": ("<u4", 40),
    "seq": ("<u8", 48),
}


def ring_header(box: _native.Box) -> Structured:
    """See `Mailbox.header`. Fields: tail, head, delivered (message counts), right (the take right's word)."""
    layout = box.layout()
    names = [name for name in HEADER_FIELDS if name in layout]
    kind = np.dtype(
        {
            "names": names,
            "formats": [HEADER_FIELDS[name] for name in names],
            "offsets": [layout[name] for name in names],
            "itemsize": layout["asides"],
        }
    )
    return np.ndarray((), kind, buffer=box.ring_view())


def ring_slots(box: _native.Box) -> Structured:
    """See `Mailbox.slots`. Fields as in ``struct shm_slot``, the inline body as ``body``, bytes."""
    layout = box.layout()
    stride = layout["slot_stride"]
    start = _native.SLOT_DTYPE_HEADER_BYTES
    kind = np.dtype(
        {
            "names": [*SLOT_FIELDS, "body"],
            "formats": [form for form, _ in SLOT_FIELDS.values()] + [("u1", (stride - start,))],
            "offsets": [offset for _, offset in SLOT_FIELDS.values()] + [start],
            "itemsize": stride,
        }
    )
    return np.ndarray((layout["slots_count"],), kind, buffer=box.ring_view(), offset=layout["slots"])
