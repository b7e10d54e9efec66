"""Starting actors: from a target and its arguments to a process that has answered its START."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.errors import PeerDead, ShmipcError, Timeout
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


class Starting:
    """An actor whose process was launched; `finish` waits for it."""

    def __init__(self, ref: refs.ActorRef, process: Process, future: _native.Future, deadline: Deadline) -> None:
        self.ref = ref
        self.process = process
        self.future = future
        self.deadline = deadline

    def finish(self) -> Process:
        """The process, when the actor is there.

        Raises:
            Exception: What its constructor raised; the process has ended then.
            Timeout: It took longer than its start_timeout; the process was killed.
            PeerDead: It died in its start.
        """
        try:
            self.future.result(self.deadline.left())
        except Timeout:
            where = self.ref._shm.use().whereabouts(self.ref._shm.id)
            self.abandon()
            raise Timeout(f"{self.process.name} (pid {self.process.pid}) did not start in time: {where}") from None
        except PeerDead:
            self.abandon()
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                self.process.join(ENDING_SECONDS)
            self.abandon()
            raise
        self.process.check_pid()
        return self.process

    def abandon(self) -> None:
        """End the process, if it has not ended."""
        self.process.kill()
        self.process.join(FAILED_SECONDS)


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
) -> Starting:
    """Launch a worker for an actor; it runs when `Starting.finish` returns.

    Args:
        method: ``zygote`` or ``spawn``.
        workers: Among how many the cores are shared.

    Raises:
        TypeError: The target cannot be called.
        NameTaken: The name belongs to a living object; nothing was started.
        LimitExceeded: The system has no place for another process.
        Exception: What pickling the target or the arguments raised; nothing was started.
    """
    if not callable(target):
        raise TypeError(f"target must be a class or a function, not {type(target).__name__}")
    found.check()
    member = found.member
    about = refs.describe(target) if about is None else about
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
        act = partial(launch, found, id, request, ref, future, name, deadline)
        # Ctrl-C ends the wait for it, not the launch, whose process is ended then; so does the deadline.
        return Step(act, Starting.abandon).wait(deadline.left(), f"the launch of a process for {name}")
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
) -> Starting:
    """Have the zygote start the process, and tell the member table and this process of it."""
    member = found.member
    pid, sentinel = launcher.launcher().start(request)
    member.launched(id, pid)
    member.poke_keeper()
    process = Process(ref, pid, member.who(id)[1], name, sentinel)
    processes.remember(process)
    return Starting(ref, process, future, deadline)


def withdraw(member: _native.Member, name: str, id: int) -> None:
    """Take the name away if it is this life's."""
    try:
        if member.lookup_name(name)[2] == id:
            member.withdraw_name(name)
    except ShmipcError:
        pass  # it never had it
