"""Ports: addresses that an actor receives at, one by one or all at once, and that can be given to another actor."""

import hashlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Self

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.closing import Closing
from shmipc.base.errors import Aborted, Closed, ForkedHandle, PeerDead
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership
from shmipc.transport.mailboxes import HasMembership, membership_of
from shmipc.transport.messages import Message

log = logging.getLogger("shmipc.actor")

PORT_SLOTS = 64  # messages that a port has room for when nothing is said
MAX_PRIORITY = (1 << 32) - 1
MAX_SLOT_BYTES = LIMITS.max_slot_bytes - 144  # an envelope goes with each message


def site_number(label: str | None) -> int:
    """The core's form of a label; 0 for none."""
    if label is None:
        return 0
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little") or 1


def capacity_of(capacity: int | None) -> int:
    """The binding's form of a buffer's size; -1: any."""
    return -1 if capacity is None else check_count("capacity", capacity, 0, LIMITS.body_bytes)


class Port(Closing, _native.PortBox):
    """A port: made with `create`, found with `open` or `default`, passed on by pickling.

    It belongs to an actor, its owner, who alone receives from it; anybody sends. It lives until its owner deletes it or
    ends; closing it ends this process's hold only. Messages come in order of arrival, each with the sender, the port it
    was sent from and an annex of up to 120 bytes, where given. Timeouts are as of `Mailbox`.

    A new port is disabled, which only means that `receive_any` passes it over.

    Source: native/transport/port.c; bytes in native/memory/layout.h.
    """

    @classmethod
    def create(
        cls,
        slots: int = PORT_SLOTS,
        slot_bytes: int = LIMITS.slot_bytes,
        *,
        owner: Any = None,
        site: str | None = None,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a port.

        Args:
            slots: Messages undelivered at most, exactly; 1 to 2**20.
            slot_bytes: Bytes of a body held in its slot; 8 to 65 392.
            owner: The Ref of its owner; None: this process.
            site: A label, by which a group's members are told apart.
            system: Where; the current system by default.

        Raises:
            PeerDead: The owner has ended.
            InvalidArgument, LimitExceeded: A number outside its limits.
            OutOfMemory: Shared memory is exhausted.
        """
        check_count("slots", slots, 1, LIMITS.max_slots)
        check_count("slot_bytes", slot_bytes, LIMITS.min_slot_bytes, MAX_SLOT_BYTES)
        member = membership_of(system).member
        owner_id = 0 if owner is None else refs.check_ref(owner)._shm.id
        port: Self = _native.make_port(member, slots, slot_bytes, owner_id, site_number(site), cls=cls)
        return port

    @classmethod
    def open(cls, id: int, *, system: HasMembership | None = None) -> Self:
        """Open the port of that id; raises Unreachable when there is none, or none any more."""
        port: Self = _native.open_port(membership_of(system).member, id, cls=cls)
        return port

    @classmethod
    def default(cls, ref: Any = None, *, system: HasMembership | None = None) -> Self:
        """The default port of an actor, which every actor has; it is neither deleted nor migrated, and starts disabled.

        Args:
            ref: The actor; None: this process.

        Raises:
            PeerDead: The actor has ended.
        """
        member = membership_of(system).member
        owner_id = 0 if ref is None else refs.check_ref(ref)._shm.id
        id = _native.default_port(member, PORT_SLOTS, LIMITS.slot_bytes, owner_id)
        port: Self = _native.open_port(member, id, cls=cls)
        return port

    # -- sending ------------------------------------------------------------------------------------------------

    def send(
        self,
        body: Any,
        timeout: float | None = None,
        *,
        annex: bytes | None = None,
        source: "Port | None" = None,
        tag: int | None = None,
    ) -> None:
        """Send a message.

        Args:
            annex: Up to 120 bytes that travel beside the body.
            source: The port of this process that it comes from; the receiver can rely on that.

        Raises:
            MailboxFull: ``timeout=0`` and no room; carries the body.
            Timeout: No room in time; carries the body.
            Unreachable: The port was deleted, or its owner has ended.
            AccessDenied: ``source`` is another actor's.
            TooLarge: The annex has more than 120 bytes.
        """
        self.post_with(body, annex, source, tag or 0, timeout)

    def call(  # type: ignore[override]  # flags are the runtime's
        self, body: Any, timeout: float | None = None, *, annex: bytes | None = None, source: "Port | None" = None
    ) -> Any:
        """Send a request, wait for the answer and return it, or raise the error that was answered.

        Raises:
            Unreachable: The port was deleted, or its owner has ended; nothing was sent.
            PeerDead: The owner, or who had taken the request, has ended since.
            Closed: The port was deleted since, or has migrated without its messages.
            Timeout: No answer in time; the server is told.
        """
        return self.call_with(body, annex, source, 0, timeout)

    def submit(  # type: ignore[override]
        self, body: Any, timeout: float | None = None, *, annex: bytes | None = None, source: "Port | None" = None
    ) -> "_native.Future":
        """The same, with a Future for the answer."""
        return self.submit_with(body, annex, source, 0, timeout)

    # -- receiving ----------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None, *, body: bool = True, capacity: int | None = None) -> Message:
        """The oldest message.

        Args:
            body: False: it stays undecoded until ``message.get_data()`` is called, which can be done once.
            capacity: A body of more bytes raises BufferTooSmall, and the message stays; None: any.

        Raises:
            NoPort: The port is another actor's, or gone: also when that becomes so during the wait.
            InvalidArgument: It has a handler.
            MailboxEmpty: ``timeout=0`` and there is none.
            Timeout: None came in time.
        """
        return self.take_from(timeout, body, False, capacity_of(capacity))

    def enable(self, priority: int = 0) -> None:
        """Have `receive_any` receive from it; low numbers are urgent. Again: with another priority.

        Raises:
            NoPort: The port is another actor's, or gone.
            InvalidArgument, LimitExceeded: It has a handler; a priority outside 0 to 2**32 - 1.
        """
        check_count("priority", priority, 0, MAX_PRIORITY)
        self.enable_with(priority)

    def migrate(self, to: Any, *, messages: bool = True) -> tuple[int, int]:
        """Give the port to another actor, its place in groups with it. It is disabled there.

        Args:
            to: The Ref of the new owner.
            messages: False: what is queued is dropped and counted, its callers get Closed.

        Returns:
            The number of the message that would have been received next here, and the port's local number there.

        Raises:
            NoPort: The port is another actor's, or gone.
            InvalidArgument: It is the default port, has a handler, or is the new owner's already.
            PeerDead: The new owner has ended; when he did so meanwhile, the port is gone.
        """
        moved: tuple[int, int] = self.migrate_to(refs.check_ref(to)._shm.id, not messages)
        return moved

    def connect(self, handler: Callable[[Message], object]) -> None:
        """Have a thread of this process call ``handler(message)`` for what is queued and for what comes, in order.

        Meanwhile `receive` and `migrate` are refused. What a handler raises goes to the caller if the message is a
        call, and is logged otherwise.

        Raises:
            NoPort: The port is another actor's, or gone.
            InvalidArgument: It has a handler already.
        """
        if not callable(handler):
            raise TypeError(f"a handler is called, {type(handler).__name__} cannot be")
        self.handle(True)
        kept = _native.open_port(self.member, self.id, cls=type(self))
        thread = threading.Thread(target=serve, args=(kept, handler), name=f"shmipc port {self.id:#x}", daemon=True)
        _handlers[self.member, self.id] = thread
        thread.start()

    def disconnect(self) -> None:
        """End that: what is queued is received by `receive` again. Returns when the handler does not run any more,
        unless the handler itself calls this.

        Raises:
            InvalidArgument: It has no handler.
        """
        self.handle(False)
        thread = _handlers.pop((self.member, self.id), None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def owner(self) -> refs.ActorRef | None:
        """The Ref of its owner, dead or alive."""
        return refs.make_ref(self.member, self.owner_id)

    def count(self) -> int:
        """Messages undelivered."""
        return self.depth()

    def __len__(self) -> int:
        return self.depth()

    def close(self) -> None:
        """Close this process's hold; the port stays."""
        if not self.closed:
            self.release()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Port) and (self.member, self.id) == (other.member, other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        found = membership.of_member(self.member)
        return reopen, (type(self), found.name if found is not None else "", self.id)

    def __repr__(self) -> str:
        if self.closed:
            return "<Port, closed>"
        if self.member.forked:
            return "<Port of the process that forked this one>"
        return f"<Port {self.id:#x} {self.depth()}/{self.capacity}>"


_handlers: dict[tuple[_native.Member, int], threading.Thread] = {}  # by the port that each serves


def serve(port: Port, handler: Callable[[Message], object]) -> None:
    """Call the handler for each message, until it is disconnected or the port goes."""
    while True:
        try:
            message: Message = port.take_from(None, True, True)
        except (Closed, ForkedHandle):
            return
        except Exception:
            log.exception("a message of %r could not be read", port)
            continue
        try:
            handler(message)
        except Exception as error:
            answer_failure(message, error)


def answer_failure(message: Message, error: Exception) -> None:
    """What a handler raised, told to the caller, or to the log."""
    if not message.is_call:
        log.exception("the handler of a port failed")
        return
    try:
        message.reply_error(error)
    except (Aborted, PeerDead):
        pass  # it was answered before, or the caller has left


def receive_any(
    timeout: float | None = None,
    *,
    body: bool = True,
    capacity: int | None = None,
    system: HasMembership | None = None,
) -> tuple[Port, Message]:
    """The oldest message of the most urgent of this process's enabled ports, and which port that is.

    Of ports with the same priority it is the one whose oldest message arrived first. What is enabled, disabled or
    changed during the wait counts from then on; with no port enabled it waits until one is.

    Raises:
        MailboxEmpty: ``timeout=0`` and there is none.
        Timeout: None came in time.
        BufferTooSmall: As of `Port.receive`.
    """
    port, message = _native.take_from_any(membership_of(system).member, timeout, body, capacity_of(capacity))
    return port, message


def reopen(cls: type[Port], system: str, id: int) -> Port:
    """Open in this process a port that another process pickled; raises Unreachable, NotFound, Closed."""
    found = membership.find(system)
    found.check()
    port: Port = _native.open_port(found.member, id, cls=cls)
    return port
