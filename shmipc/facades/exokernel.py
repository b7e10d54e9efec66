"""The exokernel mailbox: first in, first out, fixed-size messages, statuses instead of exceptions.

Its rules, where they differ from the core's:

- Timeouts are ticks of 10 ms. 0 ticks in `mbox_send` and `mbox_recv` wait for ever; in `mailbox_recv_t`, `Recv_T` and
  `exo_ipc_queue_recv_timed` they poll. Negative ticks wait for ever everywhere, positive ones are a limit, never early.
- A function takes the C function's in-parameters in C order and returns its status first, then its out-parameters.
  Nothing is raised: whatever cannot be done is a status, and `detail` says why, for the calling thread. (What a signal
  handler raises in a wait is a status if it is an `Exception`; else, as of Ctrl-C, it comes through. Nothing was
  transferred.)
- A message has exactly the mailbox's size. A full mailbox blocks the sender, and of those who wait the first that came
  is served first.

Mailboxes live in the current system, the user's default one in a plain program; `ipcs` always in the default system.
"""

import os
import threading
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from shmipc.base.deadlines import in_seconds
from shmipc.base.errors import (
    BufferTooSmall,
    Closed,
    ForkedHandle,
    InvalidArgument,
    OutOfMemory,
    ShmipcError,
    text_of,
)
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.transport.mailboxes import Mailbox

TICKS = 100  # in a second
MAILBOX_BUFSZ = 16  # mailboxes of `ipcs`
MESSAGE_BYTES = 64
SLOTS = 64
SLOT_BYTES_LIMIT = 4096  # of a message held in its slot; a larger one goes to a block
GLOBAL_NAME = "exokernel.ipcs"


class exo_ipc_status(IntEnum):
    EXO_IPC_STATUS_SUCCESS = 0
    EXO_IPC_STATUS_TIMEOUT = 1
    EXO_IPC_STATUS_ERROR = 2


EXO_IPC_STATUS_SUCCESS = exo_ipc_status.EXO_IPC_STATUS_SUCCESS
EXO_IPC_STATUS_TIMEOUT = exo_ipc_status.EXO_IPC_STATUS_TIMEOUT
EXO_IPC_STATUS_ERROR = exo_ipc_status.EXO_IPC_STATUS_ERROR


class exo_ipc_reason(IntEnum):
    """Why an operation did not succeed.

    Attributes:
        NONE: The thread's operations have all succeeded.
        AGAIN: The time passed first: no room, or no message.
        BADDEST: No such mailbox: closed, of an ended system or of the parent, a bad index, or no mailbox at all.
        INVALID: A size, a number or a type that cannot be.
        TOO_SMALL: The buffer; the message was kept.
        NO_RESOURCES: Shared memory, or a table of the system, is exhausted.
        FAILED: Anything else; the text says it.
    """

    NONE = 0
    AGAIN = 1
    BADDEST = 2
    INVALID = 3
    TOO_SMALL = 4
    NO_RESOURCES = 5
    FAILED = 6


class Detail(NamedTuple):
    """What `detail` returns; ``text`` says cause, value and limit."""

    reason: exo_ipc_reason
    text: str


class mbox:
    """What `mbox_open` returns: this process's hold on a mailbox. It can be sent to other processes of the system.

    Attributes:
        msg_bytes: Size of each message.
    """

    def __init__(self, box: Mailbox) -> None:
        self._box = box
        self.msg_bytes = box.message_bytes

    def __repr__(self) -> str:
        return f"<mbox {self._box!r}>"


class _Failures(threading.local):
    """The last failure of each thread."""

    detail = Detail(exo_ipc_reason.NONE, "")


_failures = _Failures()


def detail() -> Detail:
    """Why the calling thread's last operation that did not succeed did not."""
    return _failures.detail


REASONS: tuple[tuple[type[Exception], exo_ipc_reason], ...] = (
    (BufferTooSmall, exo_ipc_reason.TOO_SMALL),
    (BlockingIOError, exo_ipc_reason.AGAIN),
    (TimeoutError, exo_ipc_reason.AGAIN),
    (Closed, exo_ipc_reason.BADDEST),
    (ForkedHandle, exo_ipc_reason.BADDEST),
    (IndexError, exo_ipc_reason.BADDEST),
    (OutOfMemory, exo_ipc_reason.NO_RESOURCES),
    (InvalidArgument, exo_ipc_reason.INVALID),
    (TypeError, exo_ipc_reason.INVALID),
    (ShmipcError, exo_ipc_reason.FAILED),
)


def failed(error: Exception) -> exo_ipc_status:
    """Remember the error for `detail`; the status that stands for it."""
    found = (reason for kind, reason in REASONS if isinstance(error, kind))
    reason = next(found, exo_ipc_reason.FAILED)
    _failures.detail = Detail(reason, f"{type(error).__name__}: {text_of(error)}")
    return EXO_IPC_STATUS_TIMEOUT if reason == exo_ipc_reason.AGAIN else EXO_IPC_STATUS_ERROR


def box_of(m: object) -> Mailbox:
    """The mailbox behind a handle; raises IndexError for what is none."""
    if not isinstance(m, mbox):
        raise IndexError(f"not an open mailbox: {m!r:.60}")
    return m._box


def seconds(ticks: int, zero: float | None) -> float | None:
    """Ticks as a timeout of the core; ``zero`` is what 0 ticks mean."""
    if isinstance(ticks, bool) or not isinstance(ticks, int):
        raise TypeError(f"ticks must be an int, not {type(ticks).__name__}")
    return zero if ticks == 0 else in_seconds(ticks, TICKS)


# --- mailboxes by name -----------------------------------------------------------------------------------------


def make(name: str, msg_bytes: int, slots: int, found: Membership | None) -> mbox:
    """Open or make the mailbox, in the current system or a given one."""
    check_count("msg_bytes", msg_bytes, 1, LIMITS.body_bytes)
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    slot_bytes = min(max(msg_bytes, LIMITS.min_slot_bytes), SLOT_BYTES_LIMIT)
    home = None if found is None else Home(found)
    return mbox(Mailbox.create(name, slots, slot_bytes, message_bytes=msg_bytes, exist_ok=True, system=home))


class Home:
    """A system, as mailboxes want to be told of one."""

    def __init__(self, found: Membership) -> None:
        self._membership = found


def mbox_open(name: str, msg_bytes: int = MESSAGE_BYTES, slots: int = SLOTS) -> mbox | None:
    """Open the mailbox of that name in the current system, or make it: of all who do so at once one makes it.

    It lives until the last process that has it open closes it or dies; what it holds then is lost, and counted.

    Args:
        msg_bytes: Size of each message, 1 to 2**30.
        slots: Messages it holds; the next sender blocks.

    Returns:
        None when it cannot be: a mailbox of that name with other sizes (INVALID), no memory (NO_RESOURCES).
    """
    try:
        return make(name, msg_bytes, slots, None)
    except Exception as error:
        failed(error)
        return None


def mbox_close(m: mbox | None) -> exo_ipc_status:
    """Give up this process's hold. Its threads that wait in it end with ERROR, BADDEST."""
    try:
        box = box_of(m)
        if box.closed:
            raise Closed("the mailbox is closed in this process already")
        box.close()
    except Exception as error:
        return failed(error)
    return EXO_IPC_STATUS_SUCCESS


# --- messages --------------------------------------------------------------------------------------------------


def mbox_send(m: mbox | None, msg: bytes | bytearray | memoryview, ticks: int = 0) -> exo_ipc_status:
    """Append a message: any bytes-like object of exactly the mailbox's size.

    Args:
        ticks: How long to wait for room; 0 or negative: for ever. After TIMEOUT the message is not in the mailbox,
            and never will be.
    """
    try:
        box_of(m).send(msg if type(msg) is bytes else as_bytes(msg), seconds(ticks, None))
    except Exception as error:
        return failed(error)
    return EXO_IPC_STATUS_SUCCESS


def as_bytes(msg: object) -> bytes:
    if not isinstance(msg, (bytes, bytearray, memoryview)):
        msg = memoryview(msg)  # type: ignore[arg-type]  # anything with a buffer; TypeError for the rest
    return bytes(msg)


def mbox_recv(m: mbox | None, ticks: int = 0) -> tuple[exo_ipc_status, bytes]:
    """Remove the oldest message, waiting for one; 0 or negative ticks: for ever. ``b""`` unless SUCCESS."""
    try:
        return EXO_IPC_STATUS_SUCCESS, box_of(m).receive(seconds(ticks, None))
    except Exception as error:
        return failed(error), b""


def mailbox_recv_t(m: mbox | None, capacity: int, ticks: int) -> tuple[exo_ipc_status, bytes, int]:
    """Remove the oldest message if it fits a buffer of ``capacity`` bytes; 0 ticks poll, negative ones wait for ever.

    Returns:
        Status, message and length. A message that does not fit stays the next one: ERROR, TOO_SMALL, and the length
        says what it needs. After any other failure the length is ``capacity``, unchanged.
    """
    try:
        msg = box_of(m).receive_bounded(capacity, seconds(ticks, 0.0))
    except BufferTooSmall as error:
        return failed(error), b"", error.needed
    except Exception as error:
        return failed(error), b"", capacity
    return EXO_IPC_STATUS_SUCCESS, msg, len(msg)


def Recv_T(m: mbox | None, capacity: int, ticks: int) -> tuple[exo_ipc_status, bytes, int]:
    """Forwards to `mailbox_recv_t`."""
    return mailbox_recv_t(m, capacity, ticks)


# --- the global mailboxes --------------------------------------------------------------------------------------


class Ipcs:
    """The `MAILBOX_BUFSZ` mailboxes that all processes of the user's default system share; see `mbox_open`.

    Opened, or made, at the first use of any of them; from then on this process holds all. An index outside 0 to 15, or
    a system that cannot be joined, gives None, which every function refuses with BADDEST.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come here while its thread has it
        self._home: Membership | None = None
        self._held: list[mbox] = []

    def _all(self) -> list[mbox]:
        found = membership.default()
        with self._lock:
            if self._home is not found:
                self._home, self._held = found, []
            for index in range(MAILBOX_BUFSZ):
                if index < len(self._held) and not self._held[index]._box.closed:
                    continue
                self._held[index : index + 1] = [make(f"{GLOBAL_NAME}.{index}", MESSAGE_BYTES, SLOTS, found)]
            return self._held

    def __getitem__(self, index: int) -> mbox | None:
        try:
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(f"index must be an int, not {type(index).__name__}")
            if not 0 <= index < MAILBOX_BUFSZ:
                raise IndexError(f"index is {index}; there are mailboxes 0 to {MAILBOX_BUFSZ - 1}")
            return self._all()[index]
        except Exception as error:
            failed(error)
            return None

    def __len__(self) -> int:
        return MAILBOX_BUFSZ

    def __iter__(self) -> Iterator[mbox | None]:
        return (self[index] for index in range(MAILBOX_BUFSZ))


ipcs = Ipcs()


def exo_ipc_queue_recv_timed(index: int, capacity: int, ticks: int) -> tuple[exo_ipc_status, bytes, int]:
    """`mailbox_recv_t` on ``ipcs[index]``; an index that is none: ERROR, BADDEST."""
    m = ipcs[index]
    if m is None:
        return EXO_IPC_STATUS_ERROR, b"", capacity
    return mailbox_recv_t(m, capacity, ticks)
