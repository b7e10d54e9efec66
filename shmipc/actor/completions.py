"""What a completion queue is given and gives back: submissions and completions."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from shmipc import _native
from shmipc.actor.channels import Channel
from shmipc.base.errors import Cancelled
from shmipc.transport.locks import Mutex, RLock
from shmipc.transport.messages import Message


class Outcome(Enum):
    """How an operation ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one submission.

    Attributes:
        number: What the submission returned.
        tag: Of the submission.
        operation: read, write, receive, send, call, wait or submit.
        outcome: How it ended.
        value: What it gave; None unless it is done.
        bytes: How many were read, written, received or sent, as far as they are bytes; also of what was ended midway.
        message: The `Message` of a receive.
        error: What ended it; None when it is done.
    """

    number: int
    tag: Any
    operation: str
    outcome: Outcome
    value: Any = None
    bytes: int = 0
    message: Message | None = None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value; raises the error of what failed, `Cancelled` of what was cancelled."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class QueueStatistics:
    """A completion queue at one moment.

    Attributes:
        depth: Submissions that are not collected, at most.
        outstanding: Submissions that have no completion yet.
        ready: Completions that nobody has collected.
    """

    depth: int
    outstanding: int
    ready: int


class Done(NamedTuple):
    """What an attempt has brought about."""

    value: Any = None
    bytes: int = 0
    message: Message | None = None
    holds: Mutex | RLock | None = None  # which the attempting thread has until somebody collects it


class Sent(NamedTuple):
    """A request is under way, and its answer to come."""

    future: _native.Future


class State(Enum):
    """Of a submission; it only goes forward, but from RUNNING back to WAITING."""

    ENTERED = 0  # its worker has not seen it yet
    WAITING = 1
    RUNNING = 2  # it is being attempted
    SENT = 3  # a call, whose answer is to come
    OVER = 4  # it has its completion


Attempt = Callable[["Submission"], Done | Sent]


class Submission:
    """One operation. All but its making is done by the threads of its queue.

    Args:
        attempt: Does it at once; BlockingIOError: it cannot be done now.
        source: What is waited for before it is attempted again; None: it is attempted every so often.
        key: What tells the source from others; both may change from attempt to attempt.
        order: Submissions of one order are done one after the other.
        channel: The descriptor that is waited for, in the place of a source.
        deadline: On the monotonic clock; None: none.

    Attributes:
        bytes: How many are done, of those that are done in parts.
        holds: A mutex that a thread of the queue has until this is collected.
        home: The key by which a thread counts it among those for whose sources it waits.
        is_unwanted: It is to be cancelled as soon as it is not being attempted any more.
    """

    __slots__ = (
        *("attempt", "bytes", "channel", "completion", "deadline", "future", "holds", "home", "is_unwanted", "key"),
        *("number", "operation", "order", "source", "state", "tag", "timeout"),
    )

    def __init__(
        self,
        operation: str,
        tag: Any,
        attempt: Attempt,
        source: Any,
        key: Any,
        order: Any,
        channel: Channel | None = None,
    ) -> None:
        self.operation = operation
        self.tag = tag
        self.attempt: Attempt | None = attempt
        self.source = source
        self.key = key
        self.order = order
        self.channel = channel
        self.number = 0
        self.timeout: float | None = None
        self.deadline: float | None = None
        self.bytes = 0
        self.state = State.ENTERED
        self.is_unwanted = False
        self.home: Any = None
        self.holds: Mutex | RLock | None = None
        self.future: _native.Future | None = None
        self.completion: Completion | None = None

    def done(self, done: Done) -> Completion:
        return Completion(
            self.number, self.tag, self.operation, Outcome.DONE, done.value, done.bytes + self.bytes, done.message
        )

    def failed(self, error: BaseException) -> Completion:
        return Completion(
            self.number, self.tag, self.operation, Outcome.FAILED, bytes=self.bytes, error=error.with_traceback(None)
        )

    def cancelled(self) -> Completion:
        error = Cancelled(f"submission {self.number}, a {self.operation}, was cancelled")
        return Completion(self.number, self.tag, self.operation, Outcome.CANCELLED, bytes=self.bytes, error=error)


class Request:
    """What another thread asks of the one that does the work: to cancel a submission (None: all, and to end).

    Attributes:
        answer: Was it cancelled?
        over: Held until there is an answer.
    """

    __slots__ = ("answer", "over", "submission")

    def __init__(self, submission: Submission | None) -> None:
        self.submission = submission
        self.answer = False
        self.over = threading.Lock()
        self.over.acquire()


def size_of(value: object) -> int:
    """Bytes of what is bytes, else 0."""
    if isinstance(value, memoryview):
        return value.nbytes
    return len(value) if isinstance(value, (bytes, bytearray)) else 0
