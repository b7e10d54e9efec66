"""The binding: what Python sees of the C core. Only this module touches protocol words.

Errors of the core arrive as the exceptions of ``shmipc.base.errors``. Every wait releases the GIL, is ended by
Ctrl-C, and takes ``timeout`` in seconds (None waits, 0 polls). A member id names one life of one process slot;
0 names nobody.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Final, NoReturn, Self, final

KILL_POINTS: Final[tuple[str, ...]]  # empty unless this is the test build
LAYOUT: Final[int]  # signature of the shared layout
TAG_BITS: Final[int]
SLOT_DTYPE_HEADER_BYTES: Final[int]

ROOT: Final[int]  # kinds of member
WORKER: Final[int]
ATTACHED: Final[int]

BOX_ACTOR: Final[int]  # kinds of mailbox
BOX_SHARED: Final[int]
BOX_PERSISTENT: Final[int]
BOX_PORT: Final[int]

NAME_ACTOR: Final[int]
NAME_BOX: Final[int]
NAME_BUS: Final[int]
NAME_SYNC: Final[int]
NAME_GROUP: Final[int]

PRIORITY_MAX: Final[int]  # the least urgent
ANNEX_BYTES: Final[int]  # of a message's annex at most
GROUP_PORTS: Final[int]  # members of a group at most
ENVELOPE_BYTES: Final[int]  # that go with each message of a port

CAST: Final[int]
CALL: Final[int]
REPLY: Final[int]
TIMER: Final[int]
EXIT: Final[int]
NOTIFY: Final[int]
ANY: Final[int]  # sender, kind or tag: matches all

# Flags of a message: what its body means to an actor's loop.
RAW: Final[int]  # a user's body
METHOD: Final[int]  # (name, args, kwargs) of a method of the instance
TASK: Final[int]  # (function, args, kwargs) to run; see Future and pools
START: Final[int]  # first message of a worker
STOP: Final[int]  # orderly end
ORDER: Final[int]  # the tag of STOP
OWN: Final[int]  # the library's: nobody misses it when it is lost with its receiver
DEFINE: Final[int]  # (number, pickle) of a function that a pool's tasks call
RESULT: Final[int]  # (chunk, place, value): of an item of a map

OFFER_BIT: Final[int]  # of a notification: something is offered
OFFER_SLOTS: Final[int]  # offers of one process to another that wait at most

# Reasons of an end, as in ``PeerDead.reason``.
REASONS: Final[tuple[str, ...]]  # index: the core's number

class Message:
    """One received message; frozen. ``sender`` is filled by the actor floor through ``make_ref``."""

    kind: Any
    tag: int | None
    sender_id: int
    body: Any
    flags: int
    priority: int  # 0: the most urgent
    position: int  # in its mailbox: messages accepted there before it
    is_call: bool  # a reply is expected
    left: float | None  # seconds until its caller's limit; None: there is none
    is_replied: bool  # this process has answered the call, and its caller was there
    is_error: bool  # the answer to a CALL that was sent as a message: an error, which the body is
    transaction: int | None  # number of the call, unique in the system
    member: Member
    info: Any  # what request_info has found out; None: not asked
    port: int  # id of the port that it came to; 0: it came to no port
    source_id: int  # id of the sender's port that it was sent from; 0: none
    group_id: int  # of the group that it was addressed to; 0: none
    count: int  # its number among those that the port's owner has received from it
    annex: bytes | None  # what travelled beside the body

    @property
    def sender(self) -> Any: ...
    def reply(self, value: Any) -> None:
        """Answer a call. Raises InvalidArgument (not a call), Aborted (withdrawn, timed out, answered), PeerDead."""
    def reply_error(self, error: BaseException) -> None: ...
    def forget(self) -> None:
        """Let go of the body: the handler is over."""
    def fail(self, error: BaseException) -> None:
        """`reply_error` of a handler that is over: the body and the frames of the error are let go of first."""
    def received_in(self) -> tuple[int, int]:
        """(index, count) of the mailbox that it came to."""
    def get_data(self) -> Any:
        """The body of a message that was received without it; a second time raises InvalidArgument."""
    def drop_body(self) -> None:
        """Whoever keeps the message to answer it later lets the body go, and what that holds."""

    def noted(self) -> Message:
        """The message itself, which this thread is about to serve: said for those who look."""
    def is_open(self) -> bool:
        """Does the caller still wait for the answer? One load."""
    def is_aborted(self) -> bool:
        """Was the call, which is not answered, closed, or its caller aborted? One load."""
    def adopt(self) -> None:
        """A call that another thread has received for this one: the waits of this one end when it is aborted."""
    def hear(self) -> None:
        """The task that serves it is cancelled for its abort: its waits go on from there."""
    def end(self) -> None:
        """This thread does not serve it any more: that its call is closed ends none of the thread's waits."""
    def begin(self) -> None:
        """This thread serves the message: an abort of its call ends the thread's next wait."""
    def begin_step(self) -> None:
        """The same for a part of what serves it, which runs now; a closing that was told before is not told again."""
    def end_step(self) -> None:
        """That part is over: this thread serves nothing."""

class UnreadableBody(Exception):
    """A message could not be unpickled, says the cause; raised by take_next and take_any.

    Attributes:
        position: Of the message, where `Box.take_where` raises it.
    """

    position: int

class Future:
    """Result of a call in flight; the interface of concurrent.futures.Future, and awaitable."""

    def result(self, timeout: float | None = None) -> Any: ...
    def exception(self, timeout: float | None = None) -> BaseException | None: ...
    def done(self) -> bool: ...
    def running(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[Future], object], /) -> None: ...
    def __await__(self) -> Any: ...
    # for those who complete futures themselves (pools)
    def set_result(self, value: Any) -> None: ...
    def set_exception(self, error: BaseException) -> None: ...

class Box:
    """An open mailbox; base class of ``shmipc.Mailbox``. Each process holds one lease of its memory."""

    index: int
    life: int  # count of the index: which mailbox of this index it is
    owner_id: int
    capacity: int
    slot_bytes: int
    @property
    def message_bytes(self) -> int | None:
        """The length that every body has; None: any."""
    closed: bool  # this handle is closed
    member: Member

    def send(self, body: Any, timeout: float | None = None) -> None: ...
    def send_nowait(self, body: Any) -> None: ...
    def post(
        self,
        body: Any,
        kind: int = 0,
        tag: int = 0,
        flags: int = 0,
        timeout: float | None = None,
        priority: int = 0,
    ) -> None:
        """Send with everything said. tag 0: none."""
    def send_many(self, bodies: Collection[Any], timeout: float | None = None) -> int: ...
    def receive(self, timeout: float | None = None) -> Any:
        """The body of the oldest message. One that asks for an answer gets an error: there is no Message to answer."""
    def receive_nowait(self) -> Any: ...
    def receive_bounded(self, capacity: int, timeout: float | None = None) -> Any:
        """The body of the oldest message if it takes ``capacity`` bytes at most, else BufferTooSmall, and it stays. The
        size is that of bytes, for another body of its encoding."""
    def receive_many(self, max: int | None = None, timeout: float | None = None) -> list[Any]: ...
    def take(
        self,
        timeout: float | None = None,
        sender_id: int = ...,
        kind: int = ...,
        tag: int = ...,
        serving: bool = False,
        orders: bool = False,
        capacity: int = -1,
        raw: bool = False,
        into: list[Message] | None = None,
    ) -> Message:
        """The oldest message that matches (ANY: no condition; tag 0: messages without a tag).

        Args:
            serving: What cannot be read raises UnreadableBody; this thread does not serve it before ``begin``.
            orders: The order to stop matches too.
            capacity: A body of more bytes raises BufferTooSmall, and stays; -1: any.
            raw: Method calls and tasks, which are for the loop, do not match.
            into: It is put there first, before a signal handler may run.
        """
    def take_where(
        self,
        timeout: float | None = None,
        sender_id: int = ...,
        kind: int = ...,
        tag: int = ...,
        tag_from: int = 0,
        tag_until: int = 0,
        also: int | None = None,
        start: int = 0,
        until: int = 0,
        urgent: bool = False,
        keeps: bool = False,
        orders: bool = False,
        tells: bool = False,
        ends: int = 0,
        into: list[Message] | None = None,
    ) -> Message:
        """As `take`, with more conditions.

        Args:
            tag_from: With tag_until: tags from the one and below the other; tag_until 0: all.
            also: A message of this tag matches too.
            start: With until: positions from the one and below the other; until 0: all.
            urgent: The most urgent that matches, of those the oldest; else the oldest.
            keeps: It stays in the mailbox, and cannot be answered.
            tells: What cannot be read raises UnreadableBody, which no error of the mailbox looks like.
            ends: With urgent: a match of this tag comes behind all matches before it, and before those after it.
        """
    def take_matching(
        self,
        matches: Iterable[tuple[int, int, int]],
        timeout: float | None = None,
        orders: bool = False,
        raw: bool = False,
        into: list[Message] | None = None,
    ) -> tuple[int, Message]:
        """The oldest that matches any of these (sender id, kind, tag), after the index of the first that it matches."""
    def take_next(self, timeout: float | None = None, noted: bool = True) -> Message:
        """The oldest message, for a loop: raises UnreadableBody for one that cannot be unpickled.

        noted: say to those who look that this thread serves it, until the next take.
        """
    def take_or_hear(self) -> Message | None:
        """As take_next, not noted; None: see ``Member.heard``. For a thread that called ``Member.hear``."""
    def call(self, body: Any, flags: int = 0, timeout: float | None = None, tag: int = 0) -> Any:
        """Send as CALL, wait for the reply, return its value or raise its error."""
    def call_nowait(self, body: Any, timeout: float | None = None, tag: int = 0) -> Any:
        """The same, sent at once or not at all: MailboxFull, LimitExceeded. The timeout is of the answer."""
    def submit(self, body: Any, flags: int = 0, timeout: float | None = None, tag: int = 0) -> Future: ...
    def submit_nowait(self, body: Any, timeout: float | None = None, tag: int = 0) -> Future:
        """The same, sent at once or not at all: MailboxFull, LimitExceeded. The timeout is of the answer."""
    def meet(self, body: Any, timeout: float | None = None, tag: int = 0) -> None:
        """Send, and wait until it was received; 0: to one who waits for it now, else WouldBlock."""
    def notify(self, bits: int) -> None:
        """Set bits of the mailbox's notification; PeerDead, Closed, NotSupported."""
    def offer(self, body: Any) -> None:
        """Queue a message that the owner of this mailbox pulls; MailboxFull, WouldBlock, PeerDead."""
    def pull(self, sender_id: int) -> Any:
        """The oldest offer to this process, whose own mailbox this is; MailboxEmpty, WouldBlock, PeerDead."""
    def ask(self, body: Any, tag: int = 0, timeout: float | None = None) -> None:
        """Send as CALL; the answer is received from this process's own mailbox: kind REPLY, the same tag, no slot."""
    def link(self, other_id: int, other_box: int, other_life: int) -> bool:
        """Link this member, whose own mailbox this is, with another; False: they are linked already."""
    def unlink_from(self, other_id: int) -> bool: ...
    def set_timer(self, body: Any, tag: int, delay: float, period: float | None = None) -> int:
        """Have a message of kind TIMER arrive after ``delay`` seconds, and then each ``period``; the timer's number."""
    def monitor(self, target_id: int) -> int:
        """Have the exit notice of a member arrive in this mailbox; returns the monitor's number."""
    def demonitor(self, monitor: int) -> bool: ...
    def depth(self) -> int:
        """Messages undelivered, set-aside ones included."""
    def say_receives(self) -> None:
        """This hold receives from the mailbox, until it is closed."""
    def receivers(self) -> int:
        """Holds of living processes that have said so; reads the table of leases."""
    def close_box(self) -> int:
        """Accept nothing more and drop what is queued (its number); for the owner."""
    def release(self) -> None:
        """Close this handle. Views of the memory stay valid until the last is gone."""
    def unpersist(self) -> None:
        """A persistent mailbox goes from now on when its last holder does."""
    def ring_view(self) -> memoryview:
        """The live ring, read-only bytes: geometry and words, then set-aside entries, then slots."""
    def layout(self) -> dict[str, int]:
        """Offsets and sizes inside ring_view(): tail, head, delivered, right, asides, bodies, slots, slot_stride,
        slots_count."""

class PortBox(Box):
    """An open port; base class of ``shmipc.Port``."""

    id: int
    owner_id: int  # member id of the owner, dead or alive
    local: int  # its number among its owner's ports
    site_number: int
    is_default: bool
    received: int  # messages received since the owner has it
    priority: int | None  # None: not enabled
    is_there: bool  # it can be sent to

    def reach_by(self, group_id: int) -> Self:
        """This handle is a group's own, for its messages to a member."""
    def enable_with(self, priority: int) -> None: ...
    def disable(self) -> None:
        """Have receives from any port pass it over."""
    def handle(self, handled: bool) -> None:
        """From now on, or no more, only a handler receives."""
    def delete(self) -> None:
        """Remove it: what is queued is dropped and counted, its callers get Closed, who waits there gets NoPort."""
    def migrate_to(self, to: int, drops: bool) -> tuple[int, int]: ...
    def post_with(
        self,
        body: Any,
        annex: bytes | None = None,
        source: PortBox | None = None,
        tag: int = 0,
        timeout: float | None = None,
    ) -> None: ...
    def call_with(
        self,
        body: Any,
        annex: bytes | None = None,
        source: PortBox | None = None,
        tag: int = 0,
        timeout: float | None = None,
    ) -> Any: ...
    def receive_many(self, max: int | None = None, timeout: float | None = None) -> NoReturn:
        """Raises NotSupported, as `receive_bounded` does."""
    def receive_bounded(self, capacity: int, timeout: float | None = None) -> NoReturn: ...
    def submit_with(
        self,
        body: Any,
        annex: bytes | None = None,
        source: PortBox | None = None,
        tag: int = 0,
        timeout: float | None = None,
    ) -> Future: ...
    def take_from(
        self,
        timeout: float | None = None,
        body: bool = True,
        handling: bool = False,
        capacity: int = -1,
        into: list[Message] | None = None,
    ) -> Message: ...

def make_port(
    member: Member, capacity: int, body_bytes: int, owner: int = 0, site: int = 0, cls: type[PortBox] | None = None
) -> Any: ...
def default_port(member: Member, capacity: int, body_bytes: int, owner: int = 0) -> int:
    """The id of an actor's default port, made when there is none. owner 0: this process."""

PATIENCE: float  # seconds that what does not wait gives one who is in the midst of opening the same port

def open_port(member: Member, id: int, cls: type[PortBox] | None = None, timeout: float | None = None) -> Any:
    """Raises Unreachable when there is no such port; Timeout: one who was stopped is in the midst of opening it."""

def site_of_port(member: Member, id: int) -> int:
    """The number of the label that the port was made with; 0: none, or there is no such port. Never waits."""

def port_of(member: Member, owner: int, local: int) -> int:
    """The id of an actor's port by its local number; 0: it has none of that number."""

def port_is_there(member: Member, id: int) -> bool: ...
def take_from_any(
    member: Member,
    timeout: float | None = None,
    body: bool = True,
    capacity: int = -1,
    into: list[Message] | None = None,
) -> tuple[Any, Message]: ...

class GroupView:
    """An open group of ports; base class of ``shmipc.PortGroup``."""

    index: int
    life: int
    closed: bool  # in this process, or for everybody
    member: Member

    @staticmethod
    def make(member: Member, key: int, cls: type[GroupView] | None = None) -> Any: ...
    @staticmethod
    def open_in(
        member: Member, index: int, life: int, cls: type[GroupView] | None = None, timeout: float | None = None
    ) -> Any: ...
    def insert_port(self, key: int, port: int) -> None: ...
    def remove_port(self, key: int, port: int) -> None: ...
    def destroy_with(self, key: int) -> None: ...
    def member_ids(self) -> list[int]: ...
    def take_turn(self) -> int:
        """A number that grows with each call, in any process."""
    def release(self) -> None: ...

class BusView:
    """An open bus; base class of ``shmipc.Bus``."""

    member: Member
    index: int
    life: int
    frames: int
    frame_bytes: int
    readers: int
    closed: bool

    def publish_block(
        self, block: Lease, head_bytes: int, len_bytes: int, timeout: float | None = None, message: Any = None
    ) -> None:
        """Publish the first bytes of a block; errors as of ``Bus.publish``, with ``message``."""
    def join(self, patience: float = 0.0, cls: type[BusReader] | None = None) -> Any:
        """A new reader, an instance of ``cls``."""
    def end(self) -> bool:
        """Destroy it; False: it has readers."""
    def release(self) -> None:
        """Give up this process's hold, and its readers."""

class BusReader:
    """A reader of a bus; base class of ``shmipc.BusReader``."""

    bus: BusView
    missed: int  # frames that ended before they were read
    skipped: int  # frames that were gone by consume_after or max_age
    position: int | None  # of the frame that was received last: how many were published before it
    closed: bool

    def take(self, timeout: float | None = None) -> tuple[Lease, int, int]:
        """(block, length of its head, length) of the next frame."""
    def receive_into(self, buffer: Any, timeout: float | None = None) -> int: ...
    def leave(self) -> None: ...

SYNC_EVENT: Final[int]  # kinds of sync object
SYNC_MUTEX: Final[int]
SYNC_SEMAPHORE: Final[int]
SYNC_CONDITION: Final[int]
SYNC_BARRIER: Final[int]
SYNC_RWLOCK: Final[int]
SYNC_PIPE: Final[int]
SYNC_AUTO: Final[int]  # flags: an event that one waiter takes
SYNC_RECURSIVE: Final[int]  # a mutex that its holder may take again
SYNC_ANYONE: Final[int]  # a mutex that anybody may unlock
SYNC_RLOCK: Final[int]  # a mutex that was made as an RLock
SYNC_MAX_VALUE: Final[int]  # of a semaphore
PIPE_READER: Final[int]  # ends of a pipe
PIPE_WRITER: Final[int]

WAIT_ANY: Final[int]  # modes of wait_many
WAIT_ALL: Final[int]
WAIT_LOOK: Final[int]

class SyncView:
    """An open sync object; base class of ``shmipc.Event`` and the like. Which methods may be called, its kind says."""

    member: Member
    index: int
    life: int
    flags: int
    max: int
    nbytes: int
    closed: bool

    def make(
        self,
        member: Member,
        kind: int,
        flags: int = 0,
        max: int = 0,
        initial: int = 0,
        entries: int = 0,
        nbytes: int = 0,
    ) -> None:
        """Be a new object."""
    def find(self, member: Member, kind: int, index: int, life: int, timeout: float | None = None) -> None:
        """Be an object that another has made; InvalidArgument: it is of another kind."""
    def describe(self) -> str:
        """Kind, state, owner and how many wait."""
    def owner(self) -> tuple[int, int] | None:
        """(pid, member id) of who holds it."""
    def waiting(self) -> int: ...
    def state(self) -> int:
        """0 free, 1 set, 2 held, 3 abandoned."""
    def value(self) -> int: ...
    def is_mine(self) -> bool: ...
    def depth(self) -> int: ...
    def take(self, timeout: float | None = None) -> int:
        """Wait for it and take it: 0 not in time, 1 taken, 2 taken from one who died."""
    def put(self, is_set: bool) -> None: ...
    def unlock(self) -> Any:
        """False: it is not the caller's."""
    def adopt(self) -> bool:
        """A mutex that another thread of this process has becomes this thread's; False: none of them has it."""
    def add(self, n: int) -> int:
        """The value before; -1: it would be above the maximum."""
    def enter_read(self, timeout: float | None = None) -> bool:
        """This thread is a reader; False: not in time."""
    def enter_write(self, timeout: float | None = None) -> bool: ...
    def leave_read(self) -> bool:
        """False: this thread is no reader."""
    def leave_write(self) -> bool: ...
    def readers(self) -> int: ...
    def wait_notified(self, mutex: SyncView, timeout: float | None = None) -> bool:
        """Unlock the mutex, wait to be notified, and lock it again. RuntimeError: the caller does not hold it."""
    def notify_waiting(self, n: int) -> None: ...
    def arrive(self, timeout: float | None = None, opens: bool = False) -> tuple[int, bool]:
        """(how many came before, must the caller act and open it); index -1: broken, -2: because of our timeout.
        ``opens``: the last opens it at once."""
    def open_barrier(self) -> bool: ...
    def break_barrier(self) -> None: ...
    def break_mine(self) -> None:
        """Break it if this thread is the one that is to open it."""
    def reset_barrier(self) -> None: ...
    def arrived(self) -> int: ...
    def is_broken(self) -> bool: ...
    def release_hold(self) -> None:
        """Give up this process's hold, and the end of a pipe that is open here."""
    def join_pipe(self, what: int) -> None:
        """Open an end here, PIPE_READER or PIPE_WRITER."""
    def pipe_ends(self, what: int) -> int: ...
    def read_pipe(self, buffer: Any, timeout: float | None = None) -> int:
        """Bytes read, 0 at the end of the stream, -1: none in time."""
    def write_pipe(self, data: Any, timeout: float | None = None) -> tuple[int, int]:
        """(bytes written, all: 1, not in time: 0, nobody reads: -1). What is raised has the bytes as ``written``."""

def span(block: Any, timeout: float | None) -> float | None:
    """Seconds of a wait in multiprocessing's manner: not to block is 0, and so is less."""

class HeldView(SyncView):
    """What has a holder, who may die."""

    abandoned: bool

class MutexView(HeldView):
    """Base of ``shmipc.Mutex``. Between the taking and a ``with`` block no code of Python's runs."""

    WAYS: ClassVar[tuple[Any, ...]]  # what `lock` returns for 1 and 2, see `SyncView.take`

    def lock(self, timeout: float | None = None) -> Any:
        """Wait for the mutex, in line, and have it: a `Locked`.

        Raises:
            WouldBlock: ``timeout=0``, and somebody else has it.
            Timeout: Not within the timeout; the text names the process that has it.
            Closed: It was closed in this process meanwhile.
        """
    def unlock(self) -> None:
        """Give it back; raises NotOwner when the calling thread does not have it."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

class LockView(HeldView):
    """The same of ``shmipc.Lock`` and ``shmipc.RLock``."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Wait for it, in line.

        Args:
            block: False: look once.
            timeout: Seconds; None waits, 0 or less looks once.

        Returns:
            Has the caller got it?
        """
    def release(self) -> None:
        """Give it back; of a Lock raises ValueError when nobody has it, of an RLock AssertionError when the calling
        thread does not."""
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

class SemaphoreView(SyncView):
    """The same of ``shmipc.Semaphore``."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take one, waiting in line while there is none.

        Args:
            block: False: look once.
            timeout: Seconds; None waits, 0 or less looks once.

        Returns:
            Has the caller got one?
        """
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

class ConditionView(SyncView):
    """The same of ``shmipc.Condition``, for its lock."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Side:
    """One side of a read-write lock, as a context manager."""

    def __init__(self, lock: SyncView, reads: bool) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class MatchSource:
    """For a wait among others: a mailbox while it has a message that matches."""

    box: Box
    def __init__(
        self,
        box: Box,
        sender_id: int = ...,
        kind: int = ...,
        tag: int = ...,
        orders: bool = False,
        raw: bool = False,
    ) -> None: ...

@final
class RoomSource:
    """For a wait among others: a mailbox while it has room for a message, or a pipe's writing end while it has room for
    so many bytes; from their end on too."""

    target: Box | SyncView
    def __init__(self, target: Box | SyncView, least: int = 1) -> None: ...

@final
class Bell:
    """Called with a thing it appends it to a deque and sets an event, and no signal handler comes between the two."""

    noted: deque[Any]
    event: SyncView
    def __init__(self, noted: deque[Any], event: SyncView) -> None: ...
    def __call__(self, thing: object) -> None: ...

@final
class WaitList:
    """Sources that one thread waits for again and again, each with its key and a token."""

    member: Member
    def __init__(self, member: Member) -> None: ...
    def __len__(self) -> int: ...
    def add(self, key: object, entry: object, token: object) -> None:
        """Wait for one more; raises InvalidArgument (its key is there), LimitExceeded, what a wait for it would."""
    def remove(self, key: object) -> None: ...
    def look(self, timeout: float | None = None) -> list[Any]:
        """Wait until one or more are there, and take nothing: their tokens; none: the time was up."""

def same_file(a: int, b: int) -> bool | None:
    """Is one descriptor a duplicate of the other? None: this system does not say (kcmp is not there, or refused)."""

def source_key(entry: object, member: Member) -> Any:
    """What tells a source from others of one wait; raises what a wait for it would."""

class DueSource:
    """Something that is there from a moment on; base class of ``shmipc.Alarm``."""

    due_ns: int  # on the monotonic clock
    def set_due(self, seconds: float) -> None: ...
    def clear_due(self) -> None: ...
    def is_due(self) -> bool: ...

def wait_many(entries: Iterable[Any], mode: int, timeout: float | None, current: Callable[[], Member]) -> Any:
    """WAIT_ANY: (index, was it a mutex whose owner had died). WAIT_ALL: the indexes of such mutexes. WAIT_LOOK: the
    indexes of all that are there. None: not in time."""

class Method:
    """``ref.name``: callable; ``call``, ``cast``, ``submit``, ``options``."""

    name: str

    def __init__(self, target: Any, name: str, open_box: Callable[..., Box]) -> None:
        """``open_box`` is called at first use, with the timeout if there is one, and gives the target's mailbox."""
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def call(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any: ...
    def cast(self, *args: Any, **kwargs: Any) -> None: ...
    def submit(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Future: ...
    def options(self, *, timeout: float | None) -> Callable[..., Any]: ...

class Lease:
    """The hold on one block of shared memory; exposes the buffer protocol; base of shared arrays."""

    nbytes: int
    readonly: bool
    moved: bool  # its array was handed over
    shared: bool  # everybody who has it may write to it
    def prefault(self, huge: bool, node: int) -> None:
        """Have this process map its pages for writing. Blocks for 10 to 200 ms for 64 MiB, without the GIL."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Moved:
    """An array on its way to another process, which alone may write to it; can be sent once. See shmipc.move."""

    array: Any  # read-only
    sent: bool

    def __init__(self, array: Any) -> None: ...

@final
class Hold:
    """Keeps a mailbox or sync object, as any process's hold does, while a message that has this in its body is on its
    way; the receiver finds a `Lease` in its place, which keeps it as long as it is there."""

    target: Box | SyncView

    def __init__(self, target: Box | SyncView) -> None: ...

class Member:
    """This process's membership of one system."""

    id: int
    slot: int
    identity: int
    closed: bool
    forked: bool  # this handle belongs to the parent of this process

    @staticmethod
    def create(fd: int, life_path: str, *, max_members: int, memory_limit: int, name: str, root: bool) -> Member:
        """Format the new segment ``fd`` (owned afterwards) and join it."""
    @staticmethod
    def join(
        fd: int, life_path: str, *, id: int = 0, kind: int = ..., name: str = "", lifelines: Sequence[int] = ()
    ) -> Member:
        """Join an existing segment. ``lifelines``: pidfds, owned afterwards; when one ends this process is killed."""
    def prepare(self, kind: int, name: str) -> int:
        """Claim a slot for a process about to start; its member id."""
    def launched(self, id: int, pid: int) -> None: ...
    def forget(self, id: int) -> None: ...
    def make_box(
        self,
        kind: int,
        capacity: int,
        slot_bytes: int,
        *,
        message_bytes: int | None = None,
        owner_id: int = 0,
        cls: type[Box] = ...,
    ) -> Any:
        """A new mailbox, an instance of ``cls``, owned by this member or by a prepared one.

        message_bytes: it takes bytes of exactly this length; the caller has checked it. None: anything.
        """
    def open_box(self, index: int, count: int, *, cls: type[Box] = ..., timeout: float | None = None) -> Any:
        """Waits while a process is stopped in the midst of opening it; raises Timeout."""
    def make_bus(
        self,
        frames: int,
        readers: int,
        frame_bytes: int,
        consume_after: int,
        max_age_ns: int,
        cls: type[BusView] | None = None,
    ) -> Any:
        """A new bus, an instance of ``cls``."""
    def open_bus(
        self, index: int, life: int, cls: type[BusView] | None = None, timeout: float | None = None
    ) -> Any: ...
    def own_box(self) -> tuple[int, int]:
        """(index, count) of the mailbox that was made for this member; (-1, 0): none."""
    def set_own_box(self, box: Box) -> None: ...
    def give_box(self, id: int, box: Box) -> None:
        """Tell a prepared member that this is its mailbox."""
    def box_of(self, id: int) -> tuple[int, int]:
        """(index, count) of the mailbox of a living member; PeerDead, NotFound."""
    def serve_name(self, name: str, kind: int, object: int, life: int) -> None: ...
    def lookup_name(self, name: str) -> tuple[int, int, int]:
        """(kind, object, life): NAME_ACTOR, slot, member id; or NAME_BOX, index, count. NotFound."""
    def withdraw_name(self, name: str) -> None: ...
    def name_of(self, kind: int, index: int, count: int) -> str | None: ...
    def cancel_timer(self, number: int) -> bool: ...
    def generate_tag(self) -> int:
        """A tag that no process of the system has made before."""
    def set_next_tag(self, number: int) -> None:
        """For tests, in their build: where the system's count of generated tags stands."""
    def recall(self, receiver_id: int) -> Any:
        """Take back the oldest offer to a process; errors as of ``Box.pull``."""
    def offered(self, sender_id: int, receiver_id: int) -> int:
        """Offers of one process to another that were not pulled."""
    def offers(self) -> list[int]:
        """Ids of those who offer something to this process."""
    def lives(self, id: int) -> bool: ...
    def wait_end(self, id: int, timeout: float | None = None) -> bool:
        """Wait until the life ``id`` has ended and was reaped."""
    def hint(self, id: int) -> str | None:
        """What else may explain the end of that life, so that memory ran out; None: nothing."""

    def cause(self, id: int) -> tuple[str, int | None, int | None]:
        """(reason, exit code, signal) of a life that has ended; ("unknown", None, None) when nobody knows."""
    def say_status(self, id: int, reason: str, wait_status: int) -> None:
        """Record how a process ended (who waited for it)."""
    def say_killed(self, id: int, signal: int = 9) -> None:
        """Record that this library is about to kill the process."""
    def say_reason(self, reason: str, code: int = 0) -> None:
        """Record why this process is about to end."""
    def who(self, id: int) -> tuple[int, int]:
        """Pid and identity of a life that has not been reaped; zeros for another."""
    def is_elsewhere(self, id: int) -> bool:
        """Is it in another pid namespace, where its pid means another process than here?"""
    def members(self) -> list[dict[str, Any]]:
        """One record each: id, slot, identity, pid, kind, name, state, creator, box, depth, joined_ns."""
    def statistics(self) -> dict[str, int]: ...
    def allocate(self, nbytes: int, *, shared: bool = False) -> Lease:
        """A writable block of at least ``nbytes`` (its bytes are whatever they were); shared: for all receivers."""
    @property
    def thread(self) -> int:
        """Names the calling thread for ``abort``, as long as it lives."""
    def abort(self, id: int, thread: int = 0) -> None:
        """Abort a thread of a member, 0: its main thread. PeerDead, NotFound (no such thread)."""
    def hear(self) -> None:
        """This thread takes calls that others serve: it is told of those that are closed, and is the one to abort."""
    def heard(self) -> tuple[bool, bool]:
        """(was this thread aborted, was a call closed that it took) since this was asked last."""
    def serve_end(self) -> None:
        """This thread serves nothing any more."""
    def poke_keeper(self) -> None: ...
    def reap(self) -> int:
        """Reap whoever is dead; the number."""
    def leave(self, final: bool = False) -> None:
        """Leave the system: waits of other threads end as Closed, everything this process holds is dropped (live
        arrays keep their memory, unless this is the process's end)."""
    def is_waiting_here(self) -> bool:
        """Does this thread run a signal handler inside a wait of this member? Then it cannot leave."""
    def fail_futures(self) -> None:
        """Close every call of this process that was not answered; its future raises Closed."""
    def others_alive(self) -> bool:
        """Does any other living process have the system open?"""
    def note(self, what: str | None) -> None:
        """Say what this thread does, for those who look; None: nothing. Cut to 31 bytes."""
    def whereabouts(self, id: int) -> str:
        """Who that is, its state, what its threads do and for how long; for the text of an error."""
    def call_loop(self) -> None:
        """Have the thread with the loop look at what another has put aside for it."""

    def has_loop(self) -> None:
        """From now on this thread, and no other of the process, answers method calls."""
    def count_failed_cast(self) -> None:
        """An exception left a cast of this process; counted in its record."""
    def trim(self) -> None:
        """Release warm blocks."""

def install(
    *,
    make_ref: Callable[[Member, int], Any],
    make_error: Callable[[bytes | BaseException], BaseException],
    pack_error: Callable[[BaseException, int], bytes],
    exit_notice: Callable[[Member, int, int | None, tuple[str, int | None, int | None], int], Any],
    kinds: tuple[Any, ...],
) -> None:
    """Give the binding what lives above it.

    make_ref(member, id): a Ref; None for id 0. kinds: what Message.kind says for each number.
    pack_error(error, limit)/make_error: a remote exception to bytes and back (with its traceback text); with a limit
    of bytes, 0: none, shortened to that.
    exit_notice(member, target id, monitor, cause, undelivered): an ExitNotice.
    """

def encode_size(body: Any) -> int: ...
def shared_block(array: Any) -> tuple[int, int] | None:
    """(block, offset) of an ndarray that lives in shared memory of an open system, else None."""

class Observer:
    """An image of a system at one moment, by one who is no member and writes nothing; ``fd``: its segment, open for
    reading. Raises NotFound (not ready), LayoutMismatch, Corrupted, OutOfMemory."""

    @property
    def taken_ns(self) -> int: ...
    def __new__(cls, fd: int) -> Observer: ...
    def header(self) -> dict[str, Any]: ...
    def members(self) -> list[dict[str, Any]]:
        """One for each slot in use: who it is, its mailbox, memory, door, and what its threads do."""
    def leases(self) -> list[dict[str, Any]]:
        """One for each that is held: its owner (a member slot; None: a message or reply in flight), block, bytes."""

    def mailboxes(self) -> list[dict[str, Any]]: ...

def process_state(pid: int, start_time: int = 0) -> str:
    """running, sleeping, in the kernel, stopped, idle, ended: what the operating system says."""

def fill_heap() -> int:
    """Take, for good, the places that are free between what malloc has in use; how many bytes. For who forks then."""

def segment_state(fd: int) -> str:
    """empty, making, ready, closed, other-layout, corrupted."""

def segment_size(max_members: int, memory_limit: int) -> int: ...
def only_forks_locked(fd: int, max_members: int, segment: int) -> bool:
    """Are all life locks that are held those of forked children?"""

def life_locked(fd: int, max_members: int) -> bool:
    """Is any life lock of the open life file held?"""

def segment_members_alive(fd: int) -> bool:
    """Reads the member table of a segment without joining: does any process of it still live?"""

def process_start_time(pid: int) -> int: ...
def process_status(pidfd: int) -> int | None:
    """Wait status of a process that was waited for, from its pidfd; None: not yet, or before Linux 6.15."""

def say_status(fd: int, id: int, reason: str, wait_status: int) -> None:
    """As Member.say_status, for the zygote, which is no member; ``fd``: the segment (not owned)."""

def kill_point_arm(name: str, after: int = 1, signal: int = 9) -> None: ...
def kill_point_disarm() -> None: ...
def kill_point_passed(name: str) -> int: ...
def take_rescued() -> int:
    """Sum of `rescued` of the systems this process has left since the last call."""

def set_title(title: bytes) -> None:
    """Name the calling thread, for ps and top; of the first thread, the process. 15 bytes are shown."""

def end_with_parent(number: int) -> None:
    """Have the kernel send this process the signal when its parent ends; 0: none."""

def take_abort() -> bool:
    """Was the calling thread aborted, or is a call closed that it serves? True once."""

def shield(by: int) -> None:
    """Enter (1) or leave (-1) a block in which no abort ends a wait of the calling thread."""

def serve_in_task(message: Message) -> None:
    """The task of an event loop that runs now serves this message."""

def serve_calls(
    box: Box, instance: Any, known: dict[str, str], deferred: Any, fail: Callable[[Message, Exception], None]
) -> Message | None:
    """Serve method calls of `instance`, whose public methods `known` names with themselves, until something else comes:
    that message; None when a handler has deferred one. Errors as of take_next."""

def serve_tasks(
    own: Box,
    tasks: Box,
    instance: Any,
    known: dict[Any, Any],
    deferred: Any,
    fail: Callable[[Message, Exception], None],
) -> Message | None:
    """Serve a pool's tasks whose functions are known by their pickles, until something else comes: that message; None
    when a task has deferred one. Errors as of take_any."""

def take_any(boxes: Sequence[Box], timeout: float | None = None) -> Message:
    """The oldest message of the first of these mailboxes that has one; waits for all of them. Errors as of take."""

# --- sealed memory that another user may hold, and the lanes in it ---------------------------------------------

LANES_MAX: Final[int]  # of a queue
LANE_MAX_SLOTS: Final[int]
LANE_MAX_BYTES: Final[int]  # of a message
BOARD_BYTES: Final[int]
TAKEN_BYTES: Final[int]  # of what a lane's reader writes
END_FREE: Final[int]  # states of an end
END_OPEN: Final[int]
END_LEFT: Final[int]

def memory_free() -> int | None:
    """What the control group, with those above it, has left, in bytes; None: it has no limit."""

def lane_bytes(slots: int, slot_bytes: int) -> int:
    """Bytes of what a lane's poster writes."""

@final
class Mapping:
    """So many bytes of a file, mapped until the last view of them goes; a buffer. The descriptor is not kept."""

    nbytes: Final[int]
    writable: Final[bool]
    def __new__(cls, fd: int, nbytes: int, writable: bool) -> Mapping:
        """Raises OSError."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Board:
    """Who has the ends of a queue; written by its owner, read by all."""

    def __new__(cls, mapping: Mapping) -> Board:
        """Raises Corrupted: it is too small."""
    @property
    def bell(self) -> int:
        """Changes with the rest."""
    @property
    def reader(self) -> int:
        """END_FREE, END_OPEN, END_LEFT."""
    def poster(self, lane: int) -> tuple[int, int]:
        """(uid, state) of a lane's poster."""
    def set_reader(self, state: int) -> None:
        """Tell all; raises AccessDenied when it is not ours to write."""
    def set_poster(self, lane: int, uid: int, state: int) -> None:
        """Tell all; raises AccessDenied when it is not ours to write."""

@final
class Lane:
    """One end of a lane. Threads may share it: what moves it does not give the interpreter up."""

    def __new__(cls, posted: Mapping, taken: Mapping, board: Board, slots: int, slot_bytes: int, posts: bool) -> Lane:
        """Raises Corrupted: sizes or positions cannot be; AccessDenied: what it must write is mapped read-only."""
    @property
    def depth(self) -> int:
        """Messages posted and not taken; raises Corrupted."""
    @property
    def kept(self) -> int:
        """Of these, how many were given back."""
    def post(self, body: Any) -> bool:
        """Post a bytes-like; False: the lane is full. Raises TooLarge, Corrupted, AccessDenied."""
    def take(self, into: list[bytes]) -> bool:
        """Have the next message at the end of ``into``, where it is before it has left the lane; False: there is none.
        No Python code runs between the two: a signal handler finds it in one of them. Raises Corrupted, AccessDenied.
        """
    def give_back(self, messages: list[bytes]) -> None:
        """What was taken and nobody has: it comes first again; the list is empty then."""

def lane_count(posted: Mapping, taken: Mapping, slots: int, slot_bytes: int) -> int:
    """Messages in a lane of which one may have neither end, while both move. Raises Corrupted."""

def wait_for_lanes(lanes: list[Lane], board: Board, seen: int, seconds: float) -> None:
    """Wait until there is something to do in one of these ends, or the board's bell is not ``seen``; so long at most,
    and a minute. May return at any time.
    """

@final
class Duplicate:
    """A descriptor of our own: a duplicate, or with ``flags`` (of `os.open`) a description of its own of the same file.
    It is closed when it goes.
    """

    def __new__(cls, number: int, flags: int = -1) -> Duplicate:
        """Raises OSError."""
    @property
    def number(self) -> int:
        """-1: it is closed."""
    def close(self) -> None:
        """Idempotent."""
    def receive(self, size: int) -> bytes:
        """Of a socket what is there, b"" at the end; raises BlockingIOError, OSError."""
    def send(self, content: Any) -> int:
        """To a socket, bytes-like; how many bytes were sent. Raises BlockingIOError, OSError."""

class PosixSemaphore:
    """A named semaphore that another program made. Whoever is within `acquire` comes out before it is closed."""

    def __init__(self, name: str) -> None: ...
    @property
    def value(self) -> int: ...
    def acquire(self, seconds: float) -> bool:
        """Take one within that time; False: there was none, or a signal came whose handler did not raise."""

    def release(self) -> None: ...
    def close(self) -> None: ...
