"""One run of a pool's ``map``: what is submitted, what has come back, what is run again."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from shmipc import _native
from shmipc.actor.remote import is_answer
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import Corrupted, MailboxEmpty, PeerDead, ShmipcError, Timeout
from shmipc.runtime.progress import Progress
from shmipc.runtime.tasks import Head
from shmipc.transport.mailboxes import Mailbox

RESULT_SLOTS = 8192
LOOK_SECONDS = 0.05  # how long a wait for a result of a chunk goes without a look at the chunk itself


class Map:
    """One run.

    Args:
        submit: Queues a task in the pool's mailbox.
        member: This process, for the mailbox of results.
        head: Stands for the function.
        window: Items submitted and not yet yielded at most.
        retries: How often an item is run again whose worker died in it.
        check: Raises when the pool takes no more work.
        done: Told the head when the run has ended.
    """

    def __init__(
        self,
        submit: Callable[[tuple[Any, ...]], _native.Future],
        member: _native.Member,
        head: Head,
        iterables: tuple[Iterable[Any], ...],
        *,
        chunksize: int,
        window: int,
        deadline: Deadline,
        retries: int,
        progress: bool,
        check: Callable[[], None],
        done: Callable[[Head], None],
    ) -> None:
        self.submit = submit
        self.member = member
        self.head = head
        self.items = Items(zip(*iterables, strict=False))
        self.chunksize = chunksize
        self.window = window
        self.deadline = deadline
        self.retries = retries
        self.check = check
        self.done = done
        self.bar = Progress(total_of(iterables), shown=True) if progress else None

    def start(self) -> Iterator[Any]:
        """Submit a window full of items; the iterator that yields their results and submits the others."""
        results = self.singles() if self.chunksize == 1 else self.chunks()
        next(results)  # runs to the first submission
        return self.drawn(results) if self.bar is not None else results

    def drawn(self, results: Iterator[Any]) -> Iterator[Any]:
        assert self.bar is not None
        try:
            for value in results:
                self.bar.step()
                yield value
        finally:
            self.bar.close()

    def end(self, futures: Iterable[_native.Future]) -> None:
        """Take back what was submitted and is not wanted any more."""
        self.done(self.head)
        try:
            for future in futures:
                future.cancel()
        except ShmipcError:
            pass  # the system is closed, or this is a forked child

    # --- chunks of one item ---

    def singles(self) -> Iterator[Any]:
        submit, head, items, window = self.submit, self.head, self.items, self.window
        limited = self.deadline.at is not None
        pending: deque[tuple[_native.Future, tuple[Any, ...]]] = deque()
        low = window // 2 if window > 1 else 0
        try:
            for args in items.take(window):
                pending.append((submit((head, args, None, None)), args))
            yield None  # `start` ends here
            while pending or items.more:
                if items.more and len(pending) <= low:
                    self.check()
                    for args in items.take(window - len(pending)):
                        pending.append((submit((head, args, None, None)), args))
                    if not pending:
                        break
                future, args = pending.popleft()
                try:
                    value = future.result(self.deadline.left()) if limited else future.result()
                except PeerDead as error:
                    if is_answer(error):
                        raise
                    value = self.again(args, error)
                yield value
                value = future = None  # type: ignore[assignment]  # they may hold arrays
            items.end()
        finally:
            self.end(future for future, _ in pending)

    def again(self, args: tuple[Any, ...], error: PeerDead) -> Any:
        """Run an item again whose worker died in it, as often as it may be."""
        for _ in range(self.retries):
            self.check()
            try:
                return self.submit((self.head, args, None, None)).result(self.deadline.left())
            except PeerDead as next_error:
                if is_answer(next_error):
                    raise
                error = next_error
        raise error

    # --- larger chunks ---

    def chunks(self) -> Iterator[Any]:
        """Each item's result comes by the mailbox of results as soon as it is there; the answer ends the chunk."""
        limit = max(1, self.window // self.chunksize)
        slots = max(64, min(limit * self.chunksize, RESULT_SLOTS))  # one for each item under way
        results: Mailbox = self.member.make_box(_native.BOX_SHARED, slots, 256, cls=Mailbox)
        pending: deque[Chunk] = deque()
        by_number: dict[int, Chunk] = {}
        numbers = itertools.count()

        def submit(chunk: Chunk) -> None:
            chunk.number = next(numbers)
            by_number[chunk.number] = chunk
            items = chunk.items[chunk.start :]
            chunk.future = self.submit((self.head, items, None, (results, chunk.number)))

        def fill() -> None:
            while len(pending) < limit and self.items.more:
                items = self.items.take(self.chunksize)
                if items:
                    chunk = Chunk(items)
                    submit(chunk)
                    pending.append(chunk)

        def drain(timeout: float | None) -> None:
            try:
                found = results.receive_many(timeout=timeout)
            except (MailboxEmpty, Timeout):
                return
            for number, place, value in found:
                if number in by_number:
                    by_number[number].keep(number, place, value)

        try:
            fill()
            yield None  # `start` ends here
            while pending:
                chunk = pending[0]
                for place in range(len(chunk.items)):
                    while place not in chunk.got:
                        self.wait(chunk, place, drain, submit)
                    yield chunk.got.pop(place)
                by_number.pop(chunk.number, None)
                pending.popleft()
                self.check()
                fill()
            self.items.end()
        finally:
            self.end(chunk.future for chunk in pending if chunk.future is not None)
            results.close()

    def wait(
        self,
        chunk: "Chunk",
        place: int,
        drain: Callable[[float | None], None],
        submit: Callable[["Chunk"], None],
    ) -> None:
        """Wait for news of an item: its result, its error, or its worker's death."""
        future = chunk.future
        assert future is not None
        left = self.deadline.left()
        if not future.done():
            drain(LOOK_SECONDS if left is None else min(LOOK_SECONDS, left))
            if self.deadline.passed() and place not in chunk.got:
                raise Timeout("timed out waiting for a result of map")
            return
        drain(0)  # what was sent before the end
        if place in chunk.got:
            return
        try:
            for at, value in future.result():
                chunk.keep(chunk.number, at, value)
        except PeerDead as error:
            if chunk.tried.get(place, 0) >= self.retries or is_answer(error):
                raise
            chunk.tried[place] = chunk.tried.get(place, 0) + 1
            self.check()
            chunk.start = place
            submit(chunk)
        else:
            if place not in chunk.got:
                raise Corrupted(f"a chunk ended without the result of item {place}")


class Items:
    """What a map runs over, read as far as the window goes. An error of the iterable is raised in its turn.

    Attributes:
        more: May there be more items?
    """

    def __init__(self, source: Iterator[tuple[Any, ...]]) -> None:
        self.source = source
        self.more = True
        self.error: Exception | None = None

    def take(self, count: int) -> list[tuple[Any, ...]]:
        """The next items, ``count`` at most."""
        taken: list[tuple[Any, ...]] = []
        try:
            for args in itertools.islice(self.source, count):
                taken.append(args)  # what came before an error counts
        except Exception as error:
            self.error = error
        self.more = self.error is None and len(taken) == count
        return taken

    def end(self) -> None:
        """All results were yielded: raise what the iterable raised, if it did."""
        if self.error is not None:
            raise self.error


class Chunk:
    """Some items that travel together.

    Attributes:
        start: Place of the first item of its latest submission.
        got: Results by place, those that were not yielded yet.
        tried: How often the item at a place was run again.
    """

    def __init__(self, items: list[tuple[Any, ...]]) -> None:
        self.items = items
        self.start = 0
        self.number = -1
        self.future: _native.Future | None = None
        self.got: dict[int, Any] = {}
        self.tried: dict[int, int] = {}

    def keep(self, number: int, place: int, value: Any) -> None:
        """A result of submission ``number``; of an earlier one it came too late."""
        if number == self.number:
            self.got[self.start + place] = value


def total_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """How many items there will be, None when nobody can say."""
    if all(isinstance(entry, Sized) for entry in iterables):
        return min(len(entry) for entry in iterables if isinstance(entry, Sized))
    return None
