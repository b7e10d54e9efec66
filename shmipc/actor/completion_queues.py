"""Completion queues: operations are submitted, go on meanwhile, and are collected when they are done."""

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NoReturn

from shmipc.actor.completion_workers import Engine
from shmipc.actor.completions import Completion, QueueStatistics, Request, Submission
from shmipc.actor.operations import Operations
from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.errors import Closed, ForkedHandle, InvalidArgument, NotSupported, Timeout, WouldBlock
from shmipc.base.limits import check_count
from shmipc.transport.events import Event
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.messages import ANY, Sign

DEPTH = 1024
MAX_DEPTH = 1 << 20
READ_BYTES = 1 << 16


class CompletionQueue(Closing):
    """Where operations are submitted and their completions collected; of this process alone.

    Each submission gets one completion, whatever happens: done, failed or cancelled. Submissions to one handle are done
    in order, those to different ones in any. Threads of the queue do them, a few for all; so a submission never blocks.
    `wait_any`, `wait_all` and `select` take a queue among others: signalled while a completion can be got.

    Args:
        depth: Submissions that are not collected, at most; 1 to 2**20.
        system: Whose objects it takes; the current system by default.

    Raises:
        InvalidArgument, LimitExceeded: A depth outside its limits.
        Closed: The system is closed.

    Source: shmipc/actor/completion_workers.py.
    """

    def __init__(self, depth: int = DEPTH, *, system: HasMembership | None = None) -> None:
        check_count("depth", depth, 1, MAX_DEPTH)
        self._engine = engine = Engine(depth, system)
        self._operations = Operations(engine.member, engine.channels, engine.bell)
        _engines.add(engine)
        try:
            engine.workers[0].start()
        except BaseException:
            engine.bell(Request(None))
            raise

    # -- submitting ---------------------------------------------------------------------------------------------

    def _enter(self, submission: Submission, timeout: float | None) -> int:
        submission.timeout = timeout
        if timeout is not None:
            submission.deadline = time.monotonic() + timeout
        try:
            return self._engine.enter(submission)
        except (Closed, WouldBlock):
            submission.attempt = submission.channel = None  # the error may be kept; the descriptor is not
            raise

    def read(self, file: Any, size: int = READ_BYTES, *, tag: Any = None, timeout: float | None = None) -> int:
        """Submit a read of what is there, at least one byte and at most ``size``; b"" at the end of the stream.

        Args:
            file: A `BytePipe` for reading, a socket, or another descriptor or what has ``fileno()``. It may be closed
                before the completion if it is no `BytePipe`.
            size: 1 to 2**30; of a `BytePipe` no more than its capacity, and 256 KiB, come at once.
            tag: Any object, which comes back with the completion.
            timeout: Seconds from now; None: no limit; 0: it is tried once. A completion says that they were up.

        Returns:
            The number of the submission.

        Raises:
            WouldBlock: As many submissions as the depth are not collected.
            Closed: The queue, or what is to be read, is closed.
            NotSupported: It is not for reading.
            ForkedHandle: The queue is the parent's of this forked process.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.read(file, size, tag), timeout)

    def write(self, file: Any, data: Any, *, tag: Any = None, timeout: float | None = None) -> int:
        """Submit a write of all of it; writes to one file appear in the order of their submissions.

        Args:
            file: As of `read`, but for writing.
            data: Bytes-like; copied, unless it is of type bytes.
            tag, timeout: As of `read`. ``completion.bytes`` says how many were written before a timeout or a cancel.

        Returns, Raises: As of `read`.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.write(file, data, tag), timeout)

    def receive(
        self,
        source: Any,
        *,
        sender: Any = ANY,
        kind: int = ANY,
        message_tag: int | None = ANY,
        capacity: int | None = None,
        tag: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Submit a receive; ``completion.value`` is the body, ``completion.message`` the message.

        Who collects a call serves it, as if he had received it himself. What is pending takes no message before it can
        complete; a filtered one does not say `Starved`.

        Args:
            source: A `Mailbox`, a `Port` of this process, a `BusReader`, or this process's Ref for its own mailbox.
            sender, kind, message_tag: Conditions as of `Mailbox.receive_message`.
            capacity: A body of more bytes fails with `BufferTooSmall`, and the message stays; None: any.
            tag, timeout: As of `read`.

        Returns, Raises: As of `read`.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.receive(source, sender, kind, message_tag, capacity, tag), timeout)

    def send(
        self,
        to: Any,
        body: Any,
        *,
        message_tag: int | Sign | None = None,
        tag: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Submit a send, which waits for room behind those who wait for it already.

        Args:
            to: A `Mailbox`, `Port`, Ref or name, or a `Bus` to publish on.
            body: What is sent; not to be changed before the completion.
            message_tag: The tag of the message.
            tag, timeout: As of `read`.

        Returns, Raises: As of `read`; also NotFound: nobody has that name.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.send(to, body, message_tag, tag), timeout)

    def call(
        self,
        to: Any,
        body: Any,
        *,
        message_tag: int | Sign | None = None,
        tag: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Submit a call; ``completion.value`` is the answer, ``completion.error`` what was answered as an error.

        Args:
            to: A `Mailbox`, `Port`, Ref or name.
            body, message_tag, tag: As of `send`.
            timeout: Seconds from now until the answer; the server is told when they are up.

        Returns, Raises: As of `send`; also InvalidArgument: a call to oneself, or a timeout of 0.
        """
        timeout = self._check(timeout)
        if timeout == 0:
            raise InvalidArgument("timeout is 0; a call needs time for an answer")
        left = Deadline(timeout).left
        return self._enter(self._operations.call(to, body, message_tag, lambda: positive(left()), tag), timeout)

    def wait(self, source: Any, *, tag: Any = None, timeout: float | None = None) -> int:
        """Submit a wait for whatever `wait_any` takes, or for a `threading.Thread`.

        An auto-reset event, one of a semaphore or a lock is taken when it completes; a `Mutex` or `RLock` is then the
        thread's that collects it. It stands in no line: those who wait for it themselves may be faster.

        Args:
            source: A `Process`, an `Event`, another queue, a descriptor and so on.
            tag, timeout: As of `read`.

        Returns, Raises: As of `read`.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.wait(source, tag), timeout)

    def submit(
        self,
        attempt: Callable[[], Any],
        source: Any,
        *,
        order: Hashable = None,
        tag: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Submit anything else: ``attempt()`` is called at once, and again whenever ``source`` is signalled, until it
        does not raise `WouldBlock` or another BlockingIOError. What it returns is the value, what it raises the error.

        Args:
            attempt: Must not block; it runs in a thread of the queue.
            source: As of `wait`; nothing is taken of it but by the attempt.
            order: Submissions of one order are done one after the other; None: it waits for no other.
            tag, timeout: As of `read`.

        Returns, Raises: As of `read`.
        """
        timeout = self._check(timeout)
        return self._enter(self._operations.submit(attempt, source, order, tag), timeout)

    # -- collecting ---------------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Completion:
        """The oldest completion, which is then collected.

        Args:
            timeout: Seconds; None waits, 0 looks once.

        Raises:
            WouldBlock: ``timeout=0``, and there is none.
            Timeout: There was none in time.
            Closed: The queue is closed, and all were collected.
            ForkedHandle: The queue is the parent's of this forked process.
        """
        engine = self._engine
        deadline = Deadline(self._check(timeout))
        while True:
            completion = engine.take()
            if completion is not None:
                return completion
            self._refuse(timeout, deadline)
            try:
                engine.signal.take(deadline.left())
            except Closed:
                engine.wait_until_settled(deadline.left())

    def get_many(self, max: int | None = None, timeout: float | None = None) -> list[Completion]:
        """At least one completion within the timeout, and then all that are there, ``max`` at most; raises as `get`."""
        if max is not None:
            check_count("max", max, 1, MAX_DEPTH)
        found = [self.get(timeout)]
        while max is None or len(found) < max:
            completion = self._engine.take()
            if completion is None:
                break
            found.append(completion)
        return found

    async def get_async(self, timeout: float | None = None) -> Completion:
        """The same as `get` in an event loop, which goes on meanwhile."""
        engine, loop = self._engine, asyncio.get_running_loop()
        deadline = Deadline(self._check(timeout))
        while True:
            completion = engine.take()
            if completion is not None:
                return completion
            self._refuse(timeout, deadline)
            entry = loop, loop.create_future()
            with engine.lock:
                if not engine.ready and (engine.live or not engine.is_closed):
                    engine.waiters.append(entry)
                else:
                    continue
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(entry[1], deadline.left())
            finally:
                with engine.lock, suppress(ValueError):  # it was woken
                    engine.waiters.remove(entry)

    def _refuse(self, timeout: float | None, deadline: Deadline) -> None:
        """Raise what one gets who has found no completion, if he is not to wait."""
        if self._engine.is_spent():
            raise Closed("the completion queue is closed, and all completions were collected")
        if timeout == 0:
            raise WouldBlock("no completion is there")
        if deadline.passed():
            raise Timeout(f"no completion came within {timeout} s; {self.outstanding} submissions are outstanding")

    def cancel(self, number: int) -> bool:
        """Cancel a submission, which takes nothing then.

        Returns:
            True: its completion says `Outcome.CANCELLED`. False: it was done first, and its completion says how.

        Raises:
            InvalidArgument: No submission has that number, or it is collected.
            ForkedHandle: The queue is the parent's of this forked process.
        """
        self._check(None)
        with self._engine.lock:
            submission = self._engine.live.get(number)
        if submission is None:
            raise InvalidArgument(f"no submission has the number {number!r}, or it is collected")
        return self._engine.ask(Request(submission))

    # -- what it is ---------------------------------------------------------------------------------------------

    def submissions(self, tag: Any) -> list[int]:
        """Numbers of the submissions with this tag that are not collected, oldest first."""
        self._check(None)
        with self._engine.lock:
            live = list(self._engine.live.values())
        return [submission.number for submission in live if is_same_tag(submission.tag, tag)]

    def statistics(self) -> QueueStatistics:
        """What is outstanding and what is ready at this moment."""
        self._check(None)
        with self._engine.lock:
            return QueueStatistics(self._engine.depth, self._engine.outstanding(), len(self._engine.ready))

    @property
    def depth(self) -> int:
        """Submissions that are not collected, at most."""
        return self._engine.depth

    @property
    def outstanding(self) -> int:
        """Submissions that have no completion yet."""
        return self.statistics().outstanding

    @property
    def ready(self) -> int:
        """Completions that nobody has collected."""
        return self.statistics().ready

    @property
    def closed(self) -> bool:
        """Can nothing be submitted any more?"""
        return self._engine.is_closed or self._engine.member.forked

    @property
    def _waited_for(self) -> Event:
        """For a wait among others."""
        return self._engine.signal

    def close(self) -> None:
        """Cancel what is outstanding, and return when it is. Completions stay to be collected; a second close does
        nothing.
        """
        if not self._engine.member.forked:
            self._engine.ask(Request(None))

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and not engine.member.forked:
            engine.drop()

    def __reduce__(self) -> NoReturn:
        raise NotSupported("a CompletionQueue belongs to the process that made it and cannot be pickled")

    def __repr__(self) -> str:
        engine = self._engine
        if engine.member.forked:
            return "<CompletionQueue of the process that forked this one>"
        state = ", closed" if engine.is_closed else ""
        return f"<CompletionQueue{state}: {len(engine.live)} of {engine.depth}, {len(engine.ready)} ready>"

    def _check(self, timeout: float | None) -> float | None:
        """The timeout; raises what it is refused with, and ForkedHandle."""
        if self._engine.member.forked:
            raise ForkedHandle("this completion queue belongs to the process that forked this one; make another")
        return check_timeout(timeout)


def is_same_tag(a: object, b: object) -> bool:
    """The same object, or equal to it; what cannot say whether it is equal, as an array, is not."""
    try:
        return a is b or bool(a == b)
    except Exception:
        return False


def positive(seconds: float | None) -> float | None:
    return seconds if seconds is None else max(seconds, 1e-9)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    """The child has neither the threads nor any use for the descriptors."""
    for engine in list(_engines):
        for channel in list(engine.channels.by_key.values()):
            channel.close()
        for worker in engine.workers:
            if worker.epoll is not None:
                worker.epoll.close()
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork)
