"""Completion queues: operations on handles are submitted, go on meanwhile, and are collected when they are done."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmipc.actor.completion_queues import DEPTH, CompletionQueue
from shmipc.actor.completions import Completion, Submission
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import (
    Cancelled,
    Closed,
    InvalidArgument,
    LimitExceeded,
    MailboxFull,
    PeerDead,
    ShmipcError,
    Timeout,
    WouldBlock,
)
from shmipc.facades.ratos import messages, queues
from shmipc.facades.ratos.handles import (
    RAT_INVALID_HANDLE,
    RAT_RIGHT_READ,
    RAT_RIGHT_WRITE,
    Kind,
    RatHandle,
    table,
)
from shmipc.facades.ratos.messages import MAX_MESSAGE, RatMessage
from shmipc.facades.ratos.queues import Queue
from shmipc.facades.ratos.statuses import (
    ABANDONED,
    NO_RESOURCES,
    OK,
    RAT_INFINITE,
    RatIpcStatus,
    check_flag,
    failed,
    seconds,
)
from shmipc.facades.ratos.waits import entry_of, source_of
from shmipc.transport.locks import Mutex


@dataclass
class RatCompletion:
    """The end of one submission.

    Attributes:
        tag: That it was submitted with.
        status: How it ended; CANCELLED: it has done nothing.
        bytes: How many were read, written, or are the message's payload.
        misc: The bytes that were read, the message that was received, the reply; else None.
    """

    tag: int
    status: RatIpcStatus
    bytes: int = 0
    misc: Any = None


class Submissions:
    """What a handle of a completion queue stands for.

    Attributes:
        queue: The core's.
        closing: Nothing is submitted any more; what is done is still collected.
    """

    def __init__(self, depth: int) -> None:
        self.queue = CompletionQueue(depth)
        self.member = self.queue._engine.member
        self.closing = False
        self._one = threading.Lock()
        self._sent: dict[int, Reply] = {}  # by the numbers of their submissions, perhaps done

    def end(self) -> None:
        """Cancel what is outstanding; raises InvalidArgument when that was asked for before."""
        with self._one:
            if self.closing:
                raise InvalidArgument("the completion queue is closed")
            self.closing = True
        self.queue.close()

    def is_over(self) -> bool:
        """Is nothing left to collect of what was closed?"""
        return self.closing and self.queue.statistics().ready == 0

    def close(self) -> None:
        self.queue.close()

    def send(self, reply: "Reply", id: int, body: Any, limit: float | None) -> None:
        """Submit a send; the completion says what a blocking one would. Raises WouldBlock: the depth is reached."""
        deadline = Deadline(limit)
        sent = self.queue._operations.call(
            reply.queue.box, body, id + 1, lambda: None if limit is None else max(1e-9, deadline.left() or 0.0), reply
        )
        call = sent.attempt
        assert call is not None

        def attempt(submission: Submission) -> Any:
            if limit == 0:
                raise Timeout("nothing was sent: the timeout is 0")
            if not reply.look():
                raise reply.lost or AssertionError
            try:
                return call(submission)
            except MailboxFull as error:
                raise LimitExceeded(str(error)) from None

        sent.attempt = attempt
        number = self.queue._enter(sent, limit or None)
        with self._one:
            starts = not self._sent
            self._sent[number] = reply
        if starts:
            threading.Thread(target=self._watch, daemon=True, name="ratos sends").start()

    def _watch(self) -> None:
        """In a thread of its own, while a send may be outstanding: cancel those to which nobody can reply any more."""
        while True:
            time.sleep(queues.LOOK_SECONDS)
            for number, reply in list(self._sent.items()):
                try:
                    with self.queue._engine.lock:
                        submission = self.queue._engine.live.get(number)
                    if (
                        submission is not None
                        and submission.completion is None
                        and (reply.look() or not self.queue.cancel(number))
                    ):
                        continue
                except ShmipcError:  # collected meanwhile, or the system has ended
                    pass
                self._sent.pop(number, None)
            with self._one:
                if not self._sent:
                    return


def _find(cq: Any) -> Submissions:
    found: Submissions = table.find(cq, Kind.COMPLETIONS).object
    return found


def _tag(tag: Any) -> int:
    return messages.check_word("tag", tag)


def _submit(cq: Any, tag: Any, act: Callable[[Submissions, int], Any]) -> RatIpcStatus:
    try:
        found = _find(cq)
        if found.closing:
            raise InvalidArgument("the completion queue is closed")
        act(found, _tag(tag))
    except WouldBlock as error:
        failed(error)
        return NO_RESOURCES
    except Exception as error:
        return failed(error)
    return OK


def RatCreateCompletionQueue(depth: int = DEPTH) -> tuple[RatIpcStatus, RatHandle]:
    """Make a completion queue, of this process alone.

    Args:
        depth: Submissions that are not collected at most; the next is NO_RESOURCES, and nothing was submitted.
    """
    try:
        return OK, table.add(Kind.COMPLETIONS, Submissions(depth), travels=False)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatSubmitRead(cq: int, handle: int, size: int, tag: int) -> RatIpcStatus:
    """Submit a read of a pipe or socket: what is there, ``size`` bytes at most; ``misc`` is them.

    Args:
        tag: 0 to 2**64 - 1; comes back with the completion. Two submissions may have the same.
    """

    def act(found: Submissions, number: int) -> None:
        entry = table.find(handle, Kind.PIPE, Kind.SOCKET, right=RAT_RIGHT_READ)
        found.queue.read(entry.object, size, tag=number)

    return _submit(cq, tag, act)


def RatSubmitWrite(cq: int, handle: int, data: bytes | bytearray | memoryview, tag: int) -> RatIpcStatus:
    """Submit a write of all of it to a pipe or socket; writes to one appear in the order of their submissions."""

    def act(found: Submissions, number: int) -> None:
        entry = table.find(handle, Kind.PIPE, Kind.SOCKET, right=RAT_RIGHT_WRITE)
        found.queue.write(entry.object, data, tag=number)

    return _submit(cq, tag, act)


def RatSubmitReceive(
    cq: int, q: int, tag: int, capacity: int | None = None, min_id: int = 0, max_id: int = MAX_MESSAGE
) -> RatIpcStatus:
    """Submit a `RatGetMessage`; ``misc`` is the message, which the thread that collects it replies to."""

    def act(found: Submissions, number: int) -> None:
        box = table.find(q, Kind.QUEUE, right=RAT_RIGHT_READ).object.box
        queues.check_receive(capacity, min_id, max_id)
        found.queue.submit(lambda: _attempt(q, capacity, min_id, max_id), box, tag=number)

    return _submit(cq, tag, act)


def _attempt(q: Any, capacity: int | None, min_id: int, max_id: int) -> tuple[RatIpcStatus, RatMessage | None]:
    """In a thread of the completion queue; raises WouldBlock when nothing is there, Closed when the handle has gone."""
    try:
        table.find(q, Kind.QUEUE)
    except InvalidArgument:
        raise Closed("the queue was closed before a message came") from None
    return queues.receive(q, 0.0, capacity, min_id, max_id, True)


def RatSubmitSend(
    cq: int, q: int, msg: RatMessage, tag: int, timeout_ms: int = RAT_INFINITE, want_reply: bool = True
) -> RatIpcStatus:
    """Submit a `RatSendMessage`; ``misc`` is the reply. What that returns, the completion says."""

    def act(found: Submissions, number: int) -> None:
        target: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_WRITE).object
        reply = Reply(number, target, check_flag("want_reply", want_reply))
        id, body = messages.encode(msg)
        found.send(reply, id, body, seconds(timeout_ms))

    return _submit(cq, tag, act)


class Reply(int):
    """The tag of a send, and how its reply is read.

    Attributes:
        queue: That it is sent to.
        wants: Is the reply wanted?
        lost: Why it was cancelled, when it was not asked for.
    """

    queue: Queue
    wants: bool
    lost: ShmipcError | None

    def __new__(cls, tag: int, queue: Queue, wants: bool) -> "Reply":
        made = super().__new__(cls, tag)
        made.queue, made.wants, made.lost = queue, wants, None
        return made

    def look(self) -> bool:
        """Can it still come?"""
        if self.queue.box.closed:
            self.lost = Closed("the queue was closed in this process")
        elif not self.queue.is_connected():
            self.lost = PeerDead("nobody is left who receives from the queue")
        return self.lost is None


def RatSubmitWait(cq: int, handle: int, tag: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Submit a `RatWaitForObject`; a mutex is then the thread's that collects the completion."""

    def act(found: Submissions, number: int) -> None:
        found.queue.wait(source_of(entry_of(handle)), tag=number, timeout=seconds(timeout_ms))

    return _submit(cq, tag, act)


def RatGetCompletion(cq: int, timeout_ms: int) -> tuple[RatIpcStatus, RatCompletion | None]:
    """The oldest completion, which is then collected.

    Returns:
        TIMEOUT: there is none, in time. INVALID_ARG: the queue is closed and all were collected.
    """
    try:
        found = _find(cq)
        try:
            done = found.queue.get(seconds(timeout_ms))
        except Closed as error:
            if found.closing:
                table.take(cq, Kind.COMPLETIONS)
                raise InvalidArgument("the completion queue is closed, and all completions were collected") from error
            raise
        return OK, _told(done)
    except Exception as error:
        return failed(error), None


def _told(done: Completion) -> RatCompletion:
    tag, error, value = int(done.tag), done.error, done.value
    if error is not None:
        if isinstance(done.tag, Reply) and isinstance(error, Cancelled) and done.tag.lost is not None:
            error = done.tag.lost
        return RatCompletion(tag, failed(error), done.bytes)
    if isinstance(done.tag, Reply):
        try:
            reply = messages.decode(done.tag.queue.member, value, RAT_INVALID_HANDLE) if value is not None else None
        except Exception as trouble:
            return RatCompletion(tag, failed(trouble))
        size = 0 if reply is None else reply.header.size
        return RatCompletion(tag, OK, size, reply if done.tag.wants else None)
    if done.operation == "submit":
        status, m = value
        if m is not None and m._request is not None:
            m._request.thread = threading.get_ident()
        return RatCompletion(tag, status, 0 if m is None else m.header.size, m)
    status = ABANDONED if isinstance(value, Mutex) and value.abandoned else OK
    return RatCompletion(tag, status, done.bytes, value if done.operation == "read" else None)


def RatCancelSubmission(cq: int, tag: int) -> RatIpcStatus:
    """Cancel the oldest submission of a tag that is not done: its completion is CANCELLED.

    Returns:
        OK also when all of that tag are done, and not collected: their own completions stand. INVALID_ARG: none is
        known.
    """
    try:
        found, number = _find(cq), _tag(tag)
        known = found.queue.submissions(number)
        if not known:
            raise InvalidArgument(f"no submission has the tag {number}, or it is collected")
        for submission in known:
            try:
                if found.queue.cancel(submission):
                    break
            except InvalidArgument:
                continue  # collected meanwhile
    except Exception as error:
        return failed(error)
    return OK


def RatQueryCompletionQueue(cq: int) -> tuple[RatIpcStatus, int, int]:
    """Its depth, and how many submissions are not done."""
    try:
        told = _find(cq).queue.statistics()
        return OK, told.depth, told.outstanding
    except Exception as error:
        return failed(error), 0, 0


def RatCloseCompletionQueue(cq: int) -> RatIpcStatus:
    """Cancel what is outstanding and return when that is done. What is done stays to be collected, and the handle with
    it until all is.
    """
    try:
        found = _find(cq)
        found.end()
        if found.is_over():
            table.take(cq, Kind.COMPLETIONS)
    except Exception as error:
        return failed(error)
    return OK
