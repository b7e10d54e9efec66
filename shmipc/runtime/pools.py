"""Pools: workers that take tasks from one mailbox, and are replaced when they die.

Source: shmipc/runtime/tasks.py for what a worker does.
"""

import itertools
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn, Self

from shmipc import _native
from shmipc.actor import refs, remote
from shmipc.base.cores import core_count
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.descriptors import Descriptor
from shmipc.base.errors import BrokenPool, Closed, MailboxEmpty, PeerDead, ShmipcError
from shmipc.base.limits import LIMITS, check_count
from shmipc.base.undisturbed import undisturbed
from shmipc.memory.membership import Membership
from shmipc.runtime import children, tasks
from shmipc.runtime.children import Options, Starting
from shmipc.runtime.maps import Map
from shmipc.runtime.processes import Process
from shmipc.runtime.worker import Settings
from shmipc.transport.mailboxes import Mailbox

WINDOW = 256  # items of a map under way, enough that neither side sleeps when tasks are short
TASK_SLOT_BYTES = 512
FAILED_STARTS = 3  # in a row: then the pool is broken
LOOK_SECONDS = 1.0  # how often it is asked whether the descriptors are still ours


class Member:
    """What a pool's worker is when the pool runs over no class."""


class Pool:
    """A fixed number of workers, one per core by default. Made by ``system.pool``.

    Tasks are taken in the order in which they were submitted, by whichever worker is free. A worker that dies fails
    only the task it had taken, and is replaced; three failed starts in a row make the pool a `BrokenPool`.

    Args:
        found: The system's membership.
        workers: Number of workers, None: one per core.
        target: A class: each worker makes an instance with the arguments, and tasks get it as first argument.
        options: How workers are started.
        method: ``zygote`` or ``spawn``.
    """

    def __init__(
        self,
        found: Membership,
        workers: int | None,
        target: type | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
        method: str,
    ) -> None:
        if target is not None and not isinstance(target, type):
            raise TypeError(f"a pool runs over a class, not over {type(target).__name__}; give functions to submit")
        if target is None and (args or kwargs):
            raise TypeError("arguments without a class to give them to")
        count = core_count() if workers is None else check_count("workers", workers, 1, LIMITS.max_members)
        self._found = found
        self._what = (target if target is not None else Member, args, kwargs)
        self._about = refs.describe(target) if target is not None else refs.Description("Pool", frozenset())
        self._options = options
        self._method = method
        self._count = count
        self._lock = threading.Lock()
        self._closed = False
        self._broken: BaseException | None = None
        self._heads = itertools.count()
        self._definitions: dict[int, bytes] = {}  # of the maps that run
        self._tasks: Mailbox = found.member.make_box(_native.BOX_SHARED, options.slots, TASK_SLOT_BYTES, cls=Mailbox)
        self._settings = Settings(options.max_concurrency, self._tasks, target is not None)
        self._processes: list[Process] = []
        try:
            self._start_all()
        except BaseException:
            self._kill_all()
            self._tasks.close()
            raise
        self._woken, self._wake = map(Descriptor, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        self._keeper = threading.Thread(target=self._keep, name="shmipc-pool", daemon=True)
        undisturbed(self._keeper.start)

    # --- workers ---

    def _start(self) -> Starting:
        target, args, kwargs = self._what
        return children.start(
            self._found,
            target,
            args,
            kwargs,
            self._options,
            method=self._method,
            workers=self._count,
            settings=self._settings,
            about=self._about,
            of=self,
            check=self._check,
        )

    def _start_all(self) -> None:
        starting: list[Starting] = []
        try:
            for _ in range(self._count):
                starting.append(self._start())
            for entry in starting:
                self._processes.append(entry.finish())
        except BaseException:
            for entry in starting:
                entry.abandon()
            raise

    def _keep(self) -> None:
        """In the pool's own thread: replace workers that end, until the pool is closed or broken."""
        failed = 0
        while True:
            poll = select.poll()
            if self._woken.is_open():
                poll.register(self._woken.number, select.POLLIN)
            places, ended = {}, []
            for place, entry in enumerate(self._processes):
                try:
                    places[entry.sentinel] = place
                except PeerDead:  # it was closed behind our back, and opened again too late
                    ended.append(place)
                except Closed:
                    return
            for sentinel in places:
                poll.register(sentinel, select.POLLIN)
            if not ended:
                ended = [places[number] for number, _ in poll.poll(LOOK_SECONDS * 1000) if number in places]
            for place in ended:
                self._processes[place].join(children.FAILED_SECONDS)  # its slot is free then: the system may be full
                while not self._closed and self._broken is None:
                    try:
                        fresh = self._start().finish()
                    except Closed as error:
                        if self._closed or self._found.closing:
                            return  # who lives works on what is queued
                        self._break(error)
                    except Exception as error:
                        failed += 1
                        if failed >= FAILED_STARTS:
                            self._break(error)
                    else:
                        failed = 0
                        self._replace(place, fresh)
                        break
            if self._closed or self._broken is not None:
                return

    def _replace(self, place: int, fresh: Process) -> None:
        with self._lock:
            wanted = not self._closed
            if wanted:
                self._processes[place] = fresh
            definitions = dict(self._definitions)
        if not wanted:
            fresh.kill()
            fresh.join(children.FAILED_SECONDS)
            return
        for number, blob in definitions.items():
            self._define(fresh, number, blob)

    def _break(self, error: BaseException) -> None:
        """No worker can be started: whoever waits for a task is told."""
        self._broken = error
        self._refuse_queued(BrokenPool(f"{FAILED_STARTS} workers in a row failed to start: {error!r}"))

    def _refuse_queued(self, error: ShmipcError) -> None:
        """Answer every task that nobody has taken with an error."""
        while True:
            try:
                self._tasks.take(0).reply_error(error)
            except (MailboxEmpty, Closed):
                return
            except ShmipcError:
                continue  # its caller has left

    def _kill_all(self) -> None:
        for entry in self._processes:
            entry.kill()
        for entry in self._processes:
            entry.join(children.FAILED_SECONDS)

    @property
    def refs(self) -> tuple[Any, ...]:
        """The Refs of the workers as they are now."""
        return tuple(entry.ref for entry in self._processes)

    # --- work ---

    def _check(self) -> None:
        if self._broken is not None:
            raise BrokenPool(f"workers fail to start: {self._broken!r}") from self._broken
        if self._closed:
            raise Closed("the pool is shut down")
        self._found.check()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _native.Future:
        """Queue ``fn(*args, **kwargs)``; the Future of its result. Blocks only while the queue is full.

        Raises:
            Closed, BrokenPool: The pool takes no more work.
            Exception: What pickling raised; nothing was queued.
        """
        self._check()
        return self._queue((self._blob(fn), args, kwargs or None, None))

    def _queue(self, task: tuple[Any, ...]) -> _native.Future:
        """Queue a task; it is answered also when the pool broke since it was looked at."""
        try:
            future = self._tasks.submit(task, _native.TASK)
        except Closed:
            self._check()
            raise
        if self._broken is not None:
            self._break(self._broken)
        return future

    def _blob(self, fn: Callable[..., Any]) -> bytes:
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        return remote.encode(fn)

    def _head(self, fn: Callable[..., Any]) -> tasks.Head:
        """What stands for the function in each task of a map; a large one is sent to every worker once."""
        blob = self._blob(fn)
        if len(blob) <= tasks.HEAD_LIMIT:
            return blob
        with self._lock:
            number = next(self._heads)
            self._definitions[number] = blob
            workers = list(self._processes)  # who comes later gets it from his starter
        for entry in workers:
            self._define(entry, number, blob)
        return number

    def _define(self, entry: Process, number: int, blob: bytes) -> None:
        """Blocks while the worker's mailbox is full; never under the lock, which the end of the pool takes."""
        try:
            entry.ref._shm.open().post((number, blob), _native.CAST, 0, _native.DEFINE)
        except ShmipcError:
            pass  # it has ended; who takes its place gets all definitions

    def _forget(self, head: tasks.Head) -> None:
        """A map has ended."""
        if isinstance(head, int):
            with self._lock:
                self._definitions.pop(head, None)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        window: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool = False,
    ) -> Iterator[Any]:
        """``fn`` over the items of the iterables, which are read as far as the window goes; lazy and in order.

        Args:
            chunksize: Items in one task.
            window: Items submitted and not yet yielded at most; None: 256, or more when chunks are large.
            timeout: Seconds from now in which a result must be there.
            retries: How often an item is run again whose worker died in it.
            progress: Draw a bar, if stderr is a terminal.

        Returns:
            An iterator of the results. The error of an item is raised in its turn and ends it; the worker's death
            in an item is such an error (`PeerDead`), when no retry is left.

        Raises:
            Closed, BrokenPool: The pool takes no more work.
        """
        self._check()
        if not iterables:
            raise TypeError("map needs an iterable")
        check_count("chunksize", chunksize, 1, LIMITS.max_slots)
        check_count("retries", retries, 0, 1 << 30)
        check_timeout(timeout)
        if window is None:
            window = max(WINDOW, 4 * chunksize * self._count)
        check_count("window", window, 1, 1 << 30)
        work = Map(
            self._queue,
            self._found.member,
            self._head(fn),
            iterables,
            chunksize=chunksize,
            window=min(window, LIMITS.calls // 2 * chunksize),
            deadline=Deadline(timeout),
            retries=retries,
            progress=progress,
            check=self._check,
            done=self._forget,
        )
        return work.start()

    # --- end ---

    def shutdown(self, *, timeout: float | None = 5.0) -> None:
        """Take no more work, finish what is queued, end the workers; SIGKILL after ``timeout`` seconds.

        Tasks that nobody has taken by then end as `Closed`, those under way as `PeerDead`.
        """
        if self._found.member.forked:
            self._found.check()
        self._end(Deadline(timeout), drop=False)

    def _end(self, deadline: Deadline, *, drop: bool) -> None:
        if self._found.pid != os.getpid():
            return  # the descriptor that wakes the pool's thread is the parent's
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.write(b"x")
        children.call_off(self, "the pool is shut down")
        if not self._found.member.closed:
            self._end_workers(deadline, drop)
        if threading.current_thread() is not self._keeper:
            self._keeper.join(children.FAILED_SECONDS)
        if not self._keeper.is_alive():
            self._woken.close()
            self._wake.close()

    def _end_workers(self, deadline: Deadline, drop: bool) -> None:
        if drop:
            self._refuse_queued(Closed("the pool is shut down"))
        for entry in self._processes:
            if not entry.ask_to_stop(deadline):
                entry.kill()
        for entry in self._processes:
            if not entry.join(deadline.left()):
                entry.kill()
                entry.join(children.FAILED_SECONDS)
        self._refuse_queued(Closed("the pool is shut down"))
        self._tasks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end(Deadline(5.0), drop=False)
        else:
            self._end(Deadline(0.5), drop=True)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pool belongs to the process that made it and cannot be pickled; send its refs")

    def __repr__(self) -> str:
        try:
            queued = f"{self._tasks.depth()} queued"
        except ShmipcError as error:  # its system is closed, or the parent's
            queued = type(error).__name__
        state = "broken" if self._broken is not None else "closed" if self._closed else queued
        return f"<Pool of {self._count} {self._about.kind}, {state}>"
