"""Ports: addresses that an actor receives at, one by one or all at once, and that can be given to another actor."""

import contextlib
import hashlib
import inspect
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Self

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.closing import Closing
from shmipc.base.errors import (
    Aborted,
    Closed,
    ForkedHandle,
    InvalidArgument,
    NoPort,
    PeerDead,
    RemoteError,
    Unreachable,
    text_of,
)
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership
from shmipc.transport.mailboxes import HasMembership, membership_of
from shmipc.transport.messages import Message, carry, check_tag

log = logging.getLogger("shmipc.actor")

PORT_SLOTS = 64  # messages that a port has room for when nothing is said
FIRST_PAUSE = 0.1  # seconds after a receive for a handler that failed; it doubles up to LAST_PAUSE
LAST_PAUSE = 1.0
MAX_PRIORITY = (1 << 32) - 1
MAX_ID = (1 << 64) - 1
MAX_SLOT_BYTES = LIMITS.max_slot_bytes - _native.ENVELOPE_BYTES  # an envelope goes with each message


def site_number(label: str | None) -> int:
    """The core's form of a label; 0 for none."""
    if label is None:
        return 0
    if not isinstance(label, str):
        raise TypeError(f"a label is a str, not {type(label).__name__}")
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little") or 1


def check_id(id: int) -> int:
    """The id, if it is an int of 64 bits; raises TypeError, InvalidArgument."""
    if isinstance(id, bool) or not isinstance(id, int):
        raise TypeError(f"a Port or its id is needed, not {type(id).__name__}")
    if not 0 <= id <= MAX_ID:
        raise InvalidArgument(f"id is {id}; it must be 0 to 2**64 - 1")
    return id


def default_id(ref: Any = None, member: _native.Member | None = None) -> int:
    """The id of an actor's default port; raises PeerDead."""
    member = membership.current().member if member is None else member
    owner_id = 0 if ref is None else refs.id_in(ref, member)
    return _native.default_port(member, PORT_SLOTS, LIMITS.slot_bytes, owner_id)


def check_handler(handler: Any) -> None:
    """Raise TypeError for what a thread cannot call for a message, or would only make a coroutine."""
    if not callable(handler):
        raise TypeError(f"a handler is called, {type(handler).__name__} cannot be")
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        raise TypeError("a handler is a plain function: nobody would await what an async def returns")


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
            slot_bytes: Bytes of a body held in its slot; 8 to 65 384.
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
        owner_id = 0 if owner is None else refs.id_in(owner, member)
        port: Self = _native.make_port(member, slots, slot_bytes, owner_id, site_number(site), cls=cls)
        return port

    @classmethod
    def open(cls, id: int, *, system: HasMembership | None = None) -> Self:
        """Open the port of that id; raises Unreachable when there is none, or none any more."""
        port: Self = _native.open_port(membership_of(system).member, check_id(id), cls=cls)
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
        port: Self = _native.open_port(member, default_id(ref, member), cls=cls)
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
            tag: 1 to 2**60 - 1; None: none.

        Raises:
            MailboxFull: ``timeout=0`` and no room; carries the body.
            Timeout: No room in time; carries the body.
            Unreachable: The port was deleted, or its owner has ended.
            AccessDenied: ``source`` is another actor's.
            TooLarge: The annex has more than 120 bytes.
        """
        self.post_with(body, annex, source, check_tag(tag), timeout)

    def call(  # type: ignore[override]  # flags are the runtime's
        self, body: Any, timeout: float | None = None, *, annex: bytes | None = None, source: "Port | None" = None
    ) -> Any:
        """Send a request, wait for the answer and return it, or raise the error that was answered.

        Raises:
            Unreachable: The port was deleted, or its owner has ended; nothing was sent.
            PeerDead: The owner, or who had taken the request, has ended since.
            Closed: The port was deleted since, or has migrated without its messages.
            Timeout: No answer in time; the server is told.
            InvalidArgument: The port's own handler calls it, which would never end.
        """
        self.check_other_thread()
        return self.call_with(body, annex, source, 0, timeout)

    def submit(  # type: ignore[override]
        self, body: Any, timeout: float | None = None, *, annex: bytes | None = None, source: "Port | None" = None
    ) -> "_native.Future":
        """The same, with a Future for the answer."""
        return self.submit_with(body, annex, source, 0, timeout)

    def check_other_thread(self) -> None:
        """Raise InvalidArgument in the thread of this port's handler, which alone could answer."""
        if is_handled_here(self.member, self.id):
            raise InvalidArgument("the handler of a port that calls its own port would wait for ever")

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
        taken: list[Message] = []
        try:
            return self.take_from(timeout, body, False, capacity_of(capacity), taken)
        except BaseException as error:
            carry(error, taken)
            raise

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
        moved: tuple[int, int] = self.migrate_to(refs.id_in(to, self.member), not messages)
        return moved

    def connect(self, handler: Callable[[Message], object]) -> None:
        """Have a thread of this process call ``handler(message)`` for what is queued and for what comes, in order.

        Meanwhile `receive` and `migrate` are refused. What a handler raises goes to the caller if the message is a
        call, and is logged otherwise; SystemExit and the like go to the caller as RemoteError, and end nothing.

        Raises:
            TypeError: It cannot be called, or is an ``async def``.
            NoPort: The port is another actor's, or gone.
            InvalidArgument: It has a handler already.
            RuntimeError: No thread can be had; nothing has changed.
        """
        check_handler(handler)
        try:
            kept = _native.open_port(self.member, self.id, cls=type(self))
        except Unreachable as error:
            raise NoPort(str(error)) from None
        connection = Connection(kept, handler, self.priority)
        with _changing, connection.taking:  # it takes nothing before this is over
            try:
                connection.thread.start()
                self.handle(True)
                _handlers[self.member, self.id] = connection
            except BaseException:
                connection.over.set()
                kept.close()
                raise

    def disconnect(self) -> None:
        """End that: what is queued is received by `receive` again, and by `receive_any` if it was enabled before, with
        the priority that it had. Returns when the handler does not run any more,
        unless the handler itself calls this: then it is done with the message that it has, and gets no other. It may
        connect another. The port was deleted: the same.

        Raises:
            NoPort: The port is another actor's.
            InvalidArgument: It has no handler.
        """
        key = self.member, self.id
        with _changing:
            connection = _handlers.get(key)
            try:
                self.handle(False)
            except NoPort:
                if self.is_there:
                    raise
            _handlers.pop(key, None)
            if connection is None:
                return
            connection.over.set()
            with connection.taking:  # it was told, and takes nothing from now on
                pass
            if connection.priority is not None:
                with contextlib.suppress(NoPort):
                    self.enable(connection.priority)
        if connection.thread is not threading.current_thread():
            connection.thread.join()

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


class Connection:
    """A handler and its thread.

    Attributes:
        priority: That the port was enabled with; None: it was not.
        over: It takes no more messages.
        taking: Held by the thread from looking at ``over`` until it has a message.
    """

    def __init__(self, port: Port, handler: Callable[[Message], object], priority: int | None) -> None:
        self.port = port
        self.handler = handler
        self.priority = priority
        self.over = threading.Event()
        self.taking = threading.RLock()
        self.thread = threading.Thread(target=self.serve, name=f"shmipc port {port.id:#x}", daemon=True)

    def serve(self) -> None:
        """Call the handler for each message, until it is disconnected or the port goes."""
        key = self.port.member, self.port.id
        try:
            while (message := self.take()) is not None:
                try:
                    self.handler(message)
                except BaseException as error:  # SystemExit too: callers are waiting for the next messages
                    answer_failure(message, error)
                del message
                self.port.member.serve_end()  # a request that it has kept is not what it serves from now on
        finally:
            if _handlers.get(key) is self:
                _handlers.pop(key, None)
            self.port.close()

    def take(self) -> Message | None:
        """The next message; None: it is over. What goes on failing is logged once, and tried again now and then."""
        pause, logged = FIRST_PAUSE, set()
        while True:
            with self.taking:
                if self.over.is_set():
                    return None
                try:
                    message: Message = self.port.take_from(None, True, True)
                    return message
                except (Closed, ForkedHandle):
                    return None
                except Aborted:
                    continue  # whoever gave up, was told so
                except _native.UnreadableBody:
                    log.exception("a message of %r could not be read", self.port)
                    continue
                except BaseException as error:
                    if type(error) not in logged:
                        logged.add(type(error))
                        log.exception("nothing can be received from %r for its handler", self.port)
            self.over.wait(pause)
            pause = min(2 * pause, LAST_PAUSE)


_handlers: dict[tuple[_native.Member, int], Connection] = {}  # by the port that each serves; gone with its thread
_changing = threading.RLock()  # one thread at a time connects or disconnects


def is_handled_here(member: _native.Member, id: int) -> bool:
    """Is this the thread of that port's handler?"""
    connection = _handlers.get((member, id))
    return connection is not None and connection.thread is threading.current_thread()


def answer_failure(message: Message, error: BaseException) -> None:
    """What a handler raised, told to the caller, or to the log."""
    if not message.is_call:
        log.error("the handler of a port failed", exc_info=error)
        return
    if not isinstance(error, Exception):  # it would end the caller
        name = type(error).__name__
        error = RemoteError(f"the handler of the port raised {name}: {text_of(error)}", type_name=name)
    try:
        message.reply_error(error)
    except (Aborted, Closed, PeerDead):
        pass  # it was answered before, or the caller has left
    except Exception:
        log.exception("what the handler of a port raised could not be answered")


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
    taken: list[Message] = []
    try:
        port, message = _native.take_from_any(membership_of(system).member, timeout, body, capacity_of(capacity), taken)
        return port, message
    except BaseException as error:
        carry(error, taken)
        raise


def reopen(cls: type[Port], system: str, id: int) -> Port:
    """Open in this process a port that another process pickled; raises Unreachable, NotFound, Closed."""
    found = membership.find(system)
    found.check()
    port: Port = _native.open_port(found.member, id, cls=cls)
    return port


def _after_fork() -> None:
    """Whoever had the lock, and the handlers' threads, are not here."""
    global _changing
    _changing = threading.RLock()
    _handlers.clear()


os.register_at_fork(after_in_child=_after_fork)
