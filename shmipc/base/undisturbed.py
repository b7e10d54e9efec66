"""Steps that a signal handler does not break off in the midst.

A handler, that of Ctrl-C above all, may raise at any line of the main thread: behind a step that made something, and
before the one that remembers it. Such steps run in a thread of their own, in which no handler ever runs.
"""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from shmipc.base.errors import Timeout

T = TypeVar("T")
EXIT_SECONDS = 5.0  # that the end of the process waits for a step whose waiter was interrupted
BEGIN_SECONDS = 0.5  # ... for one that has not begun: it was interrupted before, or its thread got no core yet


class Step(Generic[T]):
    """A step in its own thread. Bare locks and no `threading.Thread`: those do not bear an exception at any line.

    Args:
        act: The step.
        undo: Takes back what it returned, when nobody waits for that any more.
    """

    def __init__(self, act: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self.act = act
        self.undo = undo
        self.results: list[T] = []  # one, until somebody has it
        self.error: BaseException | None = None
        self.unwanted = False
        self.begun = False
        self.given_up: BaseException | None = None
        self.running = _thread.allocate_lock()
        self.running.acquire()
        self.waiting = _thread.allocate_lock()
        self.waiting.acquire()

    def run(self) -> None:
        self.begun = True
        try:
            self.results.append(self.act())
            if self.unwanted:
                self.take_back()
        except BaseException as error:
            self.error = error
        _running.discard(self)
        self.running.release()
        self.wake()

    def wake(self) -> None:
        """Have who waits for it look."""
        try:
            self.waiting.release()
        except RuntimeError:
            pass  # it was woken already

    def give_up(self, error: BaseException) -> None:
        """For another thread: whoever waits for it gets ``error`` now; the step goes on, and what it makes is taken
        back.
        """
        self.given_up = error
        self.wake()

    def has_ended(self, timeout: float) -> bool:
        """Has it, within ``timeout`` seconds?"""
        if not self.running.acquire(timeout=timeout):
            return False
        self.running.release()
        return True

    def take_back(self) -> None:
        while self.results:
            try:
                result = self.results.pop()
            except IndexError:
                return  # the other thread takes it back
            if self.undo is not None:
                self.undo(result)

    def wait(self, timeout: float | None = None, what: str = "a step") -> T:
        """What it returned, or raised. What a signal handler raises meanwhile is raised at once; the step goes on.

        Args:
            what: Names it in an error.

        Raises:
            Timeout: It has not ended within ``timeout`` seconds; it goes on, and what it makes is taken back.
            BaseException: What `give_up` was given.
        """
        try:
            _running.add(self)
            try:
                _thread.start_new_thread(self.run, ())
            except RuntimeError:
                self.run()  # no thread can be had, as at the end of the interpreter
            if not self.waiting.acquire(timeout=-1 if timeout is None else timeout):
                raise Timeout(f"{what} was not done within the {timeout:.3g} s that were left")
            if self.given_up is not None:
                raise self.given_up
            error, self.error = self.error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            return self.results[0]
        except BaseException:
            self.unwanted = True
            self.take_back()
            raise


def undisturbed(act: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Run ``act`` to its end, whatever signal handlers raise; see `Step`. Blocks until it has ended, or one has raised.

    In the main thread it runs in another, so it must not ask for a lock that this thread holds.
    """
    if not is_main_thread():
        return act()
    return Step(act, undo).wait()


def is_main_thread() -> bool:
    """Is it the thread in which signal handlers run?"""
    return threading.get_ident() == threading.main_thread().ident


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore Ctrl-C: at the end of the process, when nobody is left who could do again what it breaks off."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


_running: set[Step[Any]] = set()


def wait_for_all() -> None:
    """Before what they made is taken down at exit: let the steps end whose waiters were interrupted."""
    for step in list(_running):
        until = time.monotonic() + BEGIN_SECONDS
        while not step.begun and time.monotonic() < until:
            time.sleep(0.001)
        if step.begun:
            step.has_ended(EXIT_SECONDS)


def _after_fork() -> None:
    _running.clear()


os.register_at_fork(after_in_child=_after_fork)
