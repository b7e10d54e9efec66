"""Mailboxes: rings of slots in shared memory that any process of a system may send to and receive from."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from shmipc import _native
from shmipc.base.deadlines import poll
from shmipc.base.errors import NotFound
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership, segments
from shmipc.memory.membership import Membership
from shmipc.transport.messages import ANY, Message, check_filter, is_any

Structured = np.ndarray[Any, np.dtype[np.void]]


class HasMembership(Protocol):
    """A system, as this floor knows it."""

    @property
    def _membership(self) -> Membership: ...


def membership_of(system: HasMembership | None) -> Membership:
    """The membership of a system, or the current one; raises Closed, ForkedHandle."""
    found = membership.current() if system is None else system._membership
    found.check()
    return found


class Mailbox(_native.Box):
    """A mailbox that stands alone: made with `create`, found with `open`, passed on by pickling.

    First in, first out for each sending thread. It lives until the last process that has it open closes it or
    dies; a persistent one until `unlink` or the end of the system. ``send``, ``send_nowait``, ``send_many``,
    ``receive``, ``receive_nowait`` and ``receive_many`` are the binding's own methods.

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
        persistent: bool = False,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a mailbox.

        Args:
            name: Under which others of the system find it, or None.
            slots: Messages undelivered at most, exactly; 1 to 2**20.
            slot_bytes: Bytes of a body held in its slot; a larger body goes to a block. 8 to 65 536.
            persistent: Keep it when nobody has it open.
            system: Where; the current system by default.

        Raises:
            NameTaken: The name belongs to a living object.
            InvalidArgument, LimitExceeded: A number outside its limits, or a name with other characters.
            OutOfMemory: Shared memory is exhausted.
        """
        if name is not None:
            segments.check_name("mailbox name", name)
        check_count("slots", slots, 1, LIMITS.max_slots)
        check_count("slot_bytes", slot_bytes, LIMITS.min_slot_bytes, LIMITS.max_slot_bytes)
        member = membership_of(system).member
        kind = _native.BOX_PERSISTENT if persistent else _native.BOX_SHARED
        box: Self = member.make_box(kind, slots, slot_bytes, cls=cls)
        if name is not None:
            try:
                member.serve_name(name, _native.NAME_BOX, box.index, box.life)
            except BaseException:
                if persistent:
                    box.unlink()
                box.release()
                raise
        return box

    @classmethod
    def open(cls, name: str, *, timeout: float | None = 0.0, system: HasMembership | None = None) -> Self:
        """Open the mailbox of that name.

        Args:
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: There is none.
        """
        segments.check_name("mailbox name", name)
        member = membership_of(system).member

        def find() -> Any:
            kind, index, life = member.lookup_name(name)
            if kind != _native.NAME_BOX:
                raise NotFound(f"{name!r} names something else, not a mailbox")
            return member.open_box(index, life, cls=cls)

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
        self, sender: Any = ANY, kind: int = ANY, tag: int | None = ANY, timeout: float | None = None
    ) -> Message:
        """The oldest message that matches, with its sender, kind and tag; the others keep their order.

        Args:
            sender: A Ref, or ANY.
            kind: A Kind, or ANY.
            tag: A tag, None for messages without one, or ANY.

        Raises:
            MailboxEmpty: ``timeout=0`` and nothing matches.
            Timeout: Nothing matched in time.
            Starved: The mailbox is full, nothing matches, and nobody can make room.
            Closed: The mailbox is closed.
        """
        if not is_any(sender) and not hasattr(sender, "_shm"):
            raise TypeError(f"sender must be a Ref or ANY, not {type(sender).__name__}")
        sender_id = ANY if is_any(sender) else sender._shm.id
        return self.take(timeout, sender_id, *check_filter(kind, tag))

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
