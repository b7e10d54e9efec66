"""Starting actors: from a target and its arguments to a process that has answered its START."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.errors import Aborted, Closed, PeerDead, ShmipcError, Timeout
from shmipc.base.limits import LIMITS, check_count
from shmipc.base.undisturbed import Step
from shmipc.memory import segments
from shmipc.memory.membership import Membership
from shmipc.runtime import launcher, processes
from shmipc.runtime.processes import Process
from shmipc.runtime.requests import Request
from shmipc.runtime.worker import Settings

START_METHODS = ("zygote", "spawn")
FAILED_SECONDS = 5.0  # for a killed process to be gone
LAUNCH_SECONDS = 0.5  # that the end of a system waits at least for a launch under way, before it ends the zygote
ENDING_SECONDS = 0.25  # for a process whose start failed to end by itself


@dataclass(frozen=True)
class Options:
    """How an actor is started.

    Attributes:
        name: Under which the system's names find it.
        slots: Capacity of its mailbox.
        start_timeout: Seconds that its start may take.
        env: Variables put over the environment.
        max_concurrency: ``async def`` handlers under way at most.
    """

    name: str | None = None
    slots: int = LIMITS.slots
    start_timeout: float | None = None
    env: Mapping[str, str] | None = None
    max_concurrency: int = 1000

    def check(self) -> "Options":
        if self.name is not None:
            segments.check_name("actor name", self.name)
        check_count("slots", self.slots, 1, LIMITS.max_slots)
        check_timeout(self.start_timeout)
        check_count("max_concurrency", self.max_concurrency, 1, LIMITS.calls)
        return self


class Flight:
    """A start that is under way: from its first step until its process has answered, or is ended.

    Args:
        of: The system's membership and the pool that it is for, whose ends call it off.
    """

    def __init__(self, *of: object) -> None:
        self.of = of
        self.reason: str | None = None  # why it was called off
        self.step: Step[Starting] | None = None
        self.starting: Starting | None = None
        _flights.add(self)

    def check(self) -> None:
        if self.reason is not None:
            raise Closed(self.reason)

    def call_off(self, reason: str) -> "Step[Starting] | None":
        """For another thread: end its process, if it has one; who waits for the start gets Closed.

        Returns:
            Its launch, for `wait_for`.
        """
        self.reason = reason
        step, starting = self.step, self.starting
        if step is not None:
            step.give_up(Closed(reason))
        if starting is not None:
            starting.process.kill()
        return step

    def land(self) -> None:
        """It has ended, and holds nothing of the actor."""
        _flights.discard(self)
        self.step = self.starting = None


_flights: set[Flight] = set()
os.register_at_fork(after_in_child=_flights.clear)


def under_way(of: object) -> list[Flight]:
    """The starts for a system or a pool that have not ended."""
    return [flight for flight in _flights.copy() if any(entry is of for entry in flight.of)]


def call_off(of: object, reason: str) -> "list[Step[Starting]]":
    """End the starts for a system or a pool that are under way, whatever they wait for; no more may begin.

    Returns:
        Their launches, for `wait_for`.
    """
    called = [flight.call_off(reason) for flight in under_way(of)]
    return [step for step in called if step is not None]


def wait_for(launches: "list[Step[Starting]]", deadline: Deadline) -> None:
    """Wait for launches that were called off: until the deadline, and for a moment after it."""
    for step in launches:
        step.has_ended(min(FAILED_SECONDS, max(LAUNCH_SECONDS, deadline.left() or 0.0)))


class Starting:
    """An actor whose process was launched; `finish` waits for it."""

    def __init__(self, ref: refs.ActorRef, process: Process, future: _native.Future, deadline: Deadline) -> None:
        self.ref = ref
        self.process = process
        self.future = future
        self.deadline = deadline
        self.flight: Flight | None = None

    def finish(self) -> Process:
        """The process, when the actor is there.

        Raises:
            Exception: What its constructor raised; the process has ended then.
            Timeout: It took longer than its start_timeout; the process was killed.
            PeerDead: It died in its start.
            Closed: The start was called off.
        """
        try:
            if self.flight is not None:
                self.flight.check()
            self.future.result(self.deadline.left())
            if self.flight is not None:
                self.flight.check()
        except Timeout:
            if self.future.done():  # its constructor raised it
                self.process.join(ENDING_SECONDS)
                self.abandon()
                raise
            where = self.ref._shm.use().whereabouts(self.ref._shm.id)
            self.abandon()
            raise Timeout(f"{self.process.name} (pid {self.process.pid}) did not start in time: {where}") from None
        except Aborted:  # this thread was, or the constructor
            self.abandon()
            raise
        except PeerDead:
            self.abandon()
            if self.flight is not None:
                self.flight.check()
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                self.process.join(ENDING_SECONDS)
            self.abandon()
            raise
        self.process.check_pid()
        self.land()
        return self.process

    def land(self) -> None:
        if self.flight is not None:
            self.flight.land()

    def abandon(self) -> None:
        """End the process, if it has not ended."""
        self.process.kill()
        self.process.join(FAILED_SECONDS)
        self.land()


def start(
    found: Membership,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    *,
    method: str,
    workers: int,
    settings: Settings,
    about: refs.Description | None = None,
    of: object,
    check: Callable[[], None],
) -> Starting:
    """Launch a worker for an actor; it runs when `Starting.finish` returns.

    Args:
        method: ``zygote`` or ``spawn``.
        workers: Among how many the cores are shared.
        of: The pool that it is for, or the membership; see `call_off`.
        check: Raises Closed when that takes no more work.

    Raises:
        TypeError: The target cannot be called.
        NameTaken: The name belongs to a living object; nothing was started.
        LimitExceeded: The system has no place for another process.
        Exception: What pickling the target or the arguments raised; nothing was started.
    """
    if not callable(target):
        raise TypeError(f"target must be a class or a function, not {type(target).__name__}")
    about = refs.describe(target) if about is None else about
    flight = Flight(found, of)
    try:
        check()  # from here on whoever ends it finds this start
        starting = take_off(found, target, args, kwargs, options, method, workers, settings, about, flight)
    except BaseException:
        flight.land()
        raise
    return starting


def take_off(
    found: Membership,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    method: str,
    workers: int,
    settings: Settings,
    about: refs.Description,
    flight: Flight,
) -> Starting:
    """`start`, of which ``flight`` is known to whoever may call it off."""
    member = found.member
    deadline = Deadline(options.start_timeout)
    id = member.prepare(_native.WORKER, options.name or about.kind)
    box = None
    try:
        box = member.make_box(_native.BOX_ACTOR, options.slots, LIMITS.slot_bytes, owner_id=id, cls=refs.ActorBox)
        member.give_box(id, box)
        future = box.submit((target, args, kwargs, settings), flags=_native.START)
        ref = refs.ActorRef(found.name, member, id, about)
        ref._shm.box = box
        if options.name is not None:
            member.serve_name(options.name, _native.NAME_ACTOR, id & 0xFFFF, id)
        request = launcher.make_request(
            found, id, fresh=method == "spawn", env=dict(options.env) if options.env else None, workers=workers
        )
        name = options.name or about.kind
        act = partial(launch, found, id, request, ref, future, name, deadline, flight)
        # Ctrl-C ends the wait for it, not the launch, whose process is ended then; so does the deadline.
        step = flight.step = Step(act, Starting.abandon)
        flight.check()
        starting = step.wait(deadline.left(), f"the launch of a process for {name}")
        starting.flight, flight.starting = flight, starting
        return starting
    except BaseException:
        if options.name is not None:
            withdraw(member, options.name, id)
        member.forget(id)
        if box is not None:
            box.release()
        raise


def launch(
    found: Membership,
    id: int,
    request: Request,
    ref: refs.ActorRef,
    future: _native.Future,
    name: str,
    deadline: Deadline,
    flight: Flight,
) -> Starting:
    """Have the zygote start the process, and tell the member table and this process of it."""
    member = found.member

    def check() -> None:
        flight.check()
        found.check()

    used = launcher.launcher()
    pid, sentinel = used.start(request, check)
    try:
        member.launched(id, pid)
        member.poke_keeper()
        process = Process(ref, pid, member.who(id)[1], name, sentinel)
    except BaseException:  # the system was left meanwhile
        signal.pidfd_send_signal(sentinel, signal.SIGKILL)
        os.close(sentinel)
        raise
    processes.remember(process)
    return Starting(ref, process, future, deadline)


def withdraw(member: _native.Member, name: str, id: int) -> None:
    """Take the name away if it is this life's."""
    try:
        if member.lookup_name(name)[2] == id:
            member.withdraw_name(name)
    except ShmipcError:
        pass  # it never had it
