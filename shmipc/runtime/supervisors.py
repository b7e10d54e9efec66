"""Supervisors: actors that start others, and start them again when they end.

A supervisor runs in a process of its own. Its children are started by it, so they end with it; a supervisor above it
starts it again, and with it all of them. docs/reference/supervisors.md says what becomes of whom.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, NoReturn

from shmipc import _native
from shmipc.actor import calls, inbox, refs
from shmipc.actor.aborts import no_abort
from shmipc.actor.calls import Monitor
from shmipc.actor.named import NamedRef
from shmipc.actor.remote import is_answer
from shmipc.base.deadlines import Deadline, check_timeout
from shmipc.base.errors import (
    Closed,
    InvalidArgument,
    NameTaken,
    NotFound,
    NotSupported,
    ShmipcError,
    TooManyRestarts,
    text_of,
)
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership
from shmipc.runtime import processes
from shmipc.runtime.children import Options
from shmipc.runtime.processes import Process
from shmipc.runtime.systems import System
from shmipc.transport.messages import ANY, ExitNotice, Kind, Message

MEMORY_SECONDS = 1.0  # that a restart waits for the memory of the one that died
logger = logging.getLogger("shmipc.supervisor")

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
RESTARTS = ("permanent", "transient", "temporary")
SHUTDOWN_SECONDS = 5.0  # what a child gets to end in order when nothing is said
NOTICE_SECONDS = 5.0  # for the notice of a child that has ended
ORPHAN_SECONDS = 10.0  # for a name to come free whose actor is to end, because its creator has
GAVE_UP = 75  # exit code


@dataclass(frozen=True)
class Child:
    """How a supervisor starts a child, and when again.

    Attributes:
        target: A class, or a function, which then runs.
        args, kwargs: What it gets, at each start.
        name: Under which the system's names find it, in each of its lives.
        restart: ``permanent``: after any end; ``transient``: after an abnormal one; ``temporary``: never.
        shutdown: Seconds to end in order before SIGKILL; 0: at once; None: for ever. ``...``: 5, None for a supervisor.
        slots, start_timeout, env, max_concurrency: See `System.options`.

    Raises:
        TypeError: The target cannot be called.
        InvalidArgument, LimitExceeded: A value outside its limits.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    restart: str = "permanent"
    shutdown: float | EllipsisType | None = ...
    slots: int = LIMITS.slots
    start_timeout: float | None = None
    env: Mapping[str, str] | None = None
    max_concurrency: int = 1000

    def __post_init__(self) -> None:
        if not callable(self.target):
            raise TypeError(f"target must be a class or a function, not {type(self.target).__name__}")
        if self.restart not in RESTARTS:
            raise InvalidArgument(f"restart is {self.restart!r}; it must be one of {', '.join(RESTARTS)}")
        if not isinstance(self.shutdown, EllipsisType):
            check_timeout(self.shutdown)
        self._options()

    def _options(self) -> Options:
        return Options(self.name, self.slots, self.start_timeout, self.env, self.max_concurrency).check()

    def _shutdown_seconds(self) -> float | None:
        if not isinstance(self.shutdown, EllipsisType):
            return self.shutdown
        is_supervisor = isinstance(self.target, type) and issubclass(self.target, Supervisor)
        return None if is_supervisor else SHUTDOWN_SECONDS


@dataclass(frozen=True)
class ChildState:
    """One child of a supervisor at one moment.

    Attributes:
        name: Its name, or None.
        kind: Name of its class or function.
        ref: Of the life that runs; None when none does.
        pid: Of its process, or None.
        restart: See `Child`.
        restarts: How often it was started again.
        undelivered: Messages that its lives had accepted and not received when they ended.
    """

    name: str | None
    kind: str
    ref: Any
    pid: int | None
    restart: str
    restarts: int
    undelivered: int


class Place:
    """A child in the supervisor's list, through all its lives."""

    def __init__(self, spec: Child) -> None:
        self.spec = spec
        self.about = refs.describe(spec.target)
        self.label = label_of(spec)
        self.ref: refs.ActorRef | None = None
        self.process: Process | None = None
        self.watch: Monitor | None = None
        self.wanted = True  # False: somebody has stopped it
        self.starts = 0
        self.undelivered = 0

    def start(self) -> ExitNotice | None:
        """Start a life; the notice of its end, if it has ended before it could be watched.

        Raises:
            Exception: What its constructor raised.
            PeerDead: It died in its start.
            LimitExceeded: It cannot be watched, and was stopped.
        """
        self.ref = ref = self.spawn()
        self.process = processes.process(ref)
        self.wanted = True
        self.starts += 1
        try:
            self.watch = calls.monitor(ref)
        except BaseException as error:
            if not isinstance(error, InvalidArgument) or membership.current().member.lives(ref._shm.id):
                self.stop()  # it lives, and nobody would hear of its end
                raise
            self.process.join(NOTICE_SECONDS)
            reason, exitcode, signal = self.process.cause or ("unknown", None, None)
            return ExitNotice(ref, None, reason, exitcode, signal, None, 0)
        return None

    def spawn(self) -> refs.ActorRef:
        """Spawn it; its name may still belong to one who is about to end."""
        spec, system = self.spec, System.current()
        deadline = Deadline(ORPHAN_SECONDS)
        while True:
            try:
                spawned: Any = system._spawn(spec.target, spec.args, dict(spec.kwargs), spec._options())
            except NameTaken as error:
                if is_answer(error):
                    raise  # its constructor's, of a name of its own
                if deadline.passed() or not belongs_to_orphan(system._membership.member, spec.name):
                    raise
            else:
                return refs.check_ref(spawned)
            deadline.pause(0.01)

    def stop(self) -> None:
        """End the life that runs, in order if it does so in time; count what it had not received."""
        process, ref = self.process, self.ref
        if process is None or ref is None:
            return
        seconds = self.spec._shutdown_seconds()
        if seconds == 0:
            process.kill()
            process.join(NOTICE_SECONDS)
        elif not process.stop(seconds):
            logger.warning("child %s, pid %d, was killed: it had not ended in time", self.label, process.pid)
        undelivered = self.take_notice(ref)
        self.ended(undelivered)
        if undelivered:
            logger.warning("child %s was stopped; %d messages were lost with it", self.label, undelivered)

    def take_notice(self, ref: refs.ActorRef) -> int:
        """Take the notice of its end out of the mailbox; the messages lost with it."""
        if self.watch is None:
            return 0
        try:
            with no_abort():
                message = self.watch._box.take(NOTICE_SECONDS, ref._shm.id, int(Kind.EXIT), ANY)
        except ShmipcError:  # it cannot be killed, or this supervisor's mailbox is closed
            self.watch.cancel()
            return 0
        notice: ExitNotice = message.body
        return notice.undelivered

    def ended(self, undelivered: int) -> None:
        if self.process is not None:
            self.process.join(MEMORY_SECONDS)  # its death is told before the kernel has its memory back
        self.ref = self.process = self.watch = None
        self.undelivered += undelivered

    def state(self) -> ChildState:
        pid = self.process.pid if self.process is not None else None
        spec = self.spec
        return ChildState(
            spec.name, self.about.kind, self.ref, pid, spec.restart, max(0, self.starts - 1), self.undelivered
        )


class Supervisor:
    """An actor that starts children, and starts them again when they end; spawn it as any other actor.

    Its constructor starts the children in order; when one fails it stops the others and raises that one's error.

    Args:
        children: What to start.
        strategy: ``one_for_one``, ``one_for_all`` or ``rest_for_one``: who is started again with one that ended.
        max_restarts: Allowed within ``period`` seconds; one more, and it stops all and exits with code `GAVE_UP`.
        on_give_up: Called with the TooManyRestarts then, when all have been stopped, in the supervisor's process.

    Raises:
        TypeError: ``children`` are no `Child`.
        InvalidArgument: A value outside its limits.
    """

    def __init__(
        self,
        children: Iterable[Child] = (),
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        period: float = 5.0,
        on_give_up: Callable[[TooManyRestarts], object] | None = None,
    ) -> None:
        specs = [check_child(spec) for spec in children]
        if strategy not in STRATEGIES:
            raise InvalidArgument(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
        check_count("max_restarts", max_restarts, 0, 1 << 30)
        if period is None:
            raise InvalidArgument("period is None; it must be a number of seconds")
        seconds = check_timeout(period)
        if seconds == 0:
            raise InvalidArgument("period is 0 seconds; it must be longer")
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._period = math.inf if seconds is None else seconds
        self._on_give_up = on_give_up
        self._places: list[Place] = []
        self._times: deque[float] = deque()  # of the restarts within the period
        self._early: deque[ExitNotice] = deque()  # of children that ended before they could be watched
        try:
            for spec in specs:
                self._add(spec)
            self._settle()
        except SystemExit as error:
            raise error.__cause__ or error  # noqa: B904
        except BaseException:
            self._stop_all()
            raise

    # --- methods ---

    def children(self) -> list[ChildState]:
        """The children as they are now, in order."""
        return [place.state() for place in self._places]

    def child(self, name: str, wait: float = 0.0) -> NamedRef:
        """A Ref that means the child of that name in whichever life; see `NamedRef`. Raises NotFound."""
        return self._named(self._find(name), wait)

    def start_child(self, child: Child) -> Any:
        """Start one more, at the end of the list; raises what its start raises, and NameTaken for the name of a child.

        Returns:
            Its NamedRef; the Ref of its first life when it has no name.
        """
        finish_what_is_asked()
        spec = check_child(child)
        with logged(label_of(spec)):
            place = self._add(spec)
        ref = place.ref
        self._settle()
        return self._named(place, 0.0) if place.spec.name is not None else ref

    def stop_child(self, which: Any) -> None:
        """Stop a child, by name or Ref, and leave it so; a temporary one is forgotten. Raises NotFound."""
        finish_what_is_asked()
        place = self._find(which)
        place.stop()
        place.wanted = False
        if place.spec.restart == "temporary":
            self._places.remove(place)

    def restart_child(self, which: Any) -> None:
        """Stop a child if it runs, and start it; not counted. Raises NotFound, and what its start raises."""
        finish_what_is_asked()
        place = self._find(which)
        place.stop()
        with logged(place.label):
            self._start(place)
        self._settle()

    def on_message(self, message: Message) -> None:
        if message.kind != Kind.EXIT or not isinstance(message.body, ExitNotice):
            raise NotSupported(f"a supervisor takes no messages, this one is of kind {message.kind.name}")
        self._early.append(message.body)
        self._settle()

    def on_stop(self, reason: str) -> None:
        self._stop_all()

    # --- lives ---

    def _add(self, spec: Child) -> Place:
        if spec.name is not None and any(place.spec.name == spec.name for place in self._places):
            raise NameTaken(f"a child has the name {spec.name!r}, though it may not run")
        place = Place(spec)
        self._start(place)
        self._places.append(place)
        return place

    def _start(self, place: Place) -> None:
        notice = place.start()
        if notice is not None:
            self._early.append(notice)

    def _settle(self) -> None:
        """Act on every end that is known."""
        while self._early:
            self._ended(self._early.popleft())

    def _stop_all(self) -> None:
        for place in reversed(self._places):
            place.stop()

    def _ended(self, notice: ExitNotice) -> None:
        """A child has ended by itself; one that was stopped, or started again meanwhile, is none of these."""
        place = next((place for place in self._places if place.ref is not None and place.ref == notice.ref), None)
        if place is None:
            return
        place.ended(notice.undelivered)
        why = story(place, notice)
        restart = place.spec.restart
        if restart == "temporary":
            self._places.remove(place)
            logger.info("%s; it is temporary", why)
        elif restart == "transient" and is_normal(notice):
            logger.info("%s; it is transient", why)
        else:
            self._restart(place, why)

    def _restart(self, place: Place, why: str) -> None:
        """Start it again, with those whom the strategy names, until that succeeds or the limit is reached."""
        at = self._places.index(place)
        named = {"one_for_one": [place], "one_for_all": self._places, "rest_for_one": self._places[at:]}
        group = [entry for entry in named[self._strategy] if entry.wanted]
        while True:
            number = self._count(why)
            logger.warning("%s; restart %d of %d within %g s", why, number, self._max_restarts, self._period)
            try:
                self._start_group(group)
            except Exception as error:
                if isinstance(error, Closed) and is_ending():
                    raise  # else a child's constructor raised it
                logger.exception("children of %s could not be started again", place.label)
                why = f"the restart of child {place.label} failed: {type(error).__name__}: {text_of(error)}"
            else:
                return

    def _start_group(self, group: list[Place]) -> None:
        for place in reversed(group):
            place.stop()
        for place in [place for place in group if place.spec.restart == "temporary"]:
            self._places.remove(place)
            group.remove(place)
        for place in group:
            self._start(place)

    def _count(self, why: str) -> int:
        """One more restart; how many that are within the period. Beyond the limit this supervisor ends."""
        now = time.monotonic()
        self._times.append(now)
        while self._times[0] < now - self._period:
            self._times.popleft()
        if len(self._times) > self._max_restarts:
            self._give_up(why)
        return len(self._times)

    def _give_up(self, why: str) -> NoReturn:
        error = TooManyRestarts(
            f"{why}; {self._max_restarts} restarts within {self._period:g} s are allowed, and were made",
            restarts=self._max_restarts,
            period=self._period,
        )
        logger.error("a supervisor gives up: %s", error)
        self._stop_all()
        if self._on_give_up is not None:
            try:
                self._on_give_up(error)
            except Exception:
                logger.exception("on_give_up failed")
        raise SystemExit(GAVE_UP) from error

    def _find(self, which: Any) -> Place:
        wanted = which  # a name, or the Ref of a life; of the Ref of a name, that name, whoever has it
        if isinstance(which, NamedRef):
            system, name = which._key()
            wanted = name if system == membership.current().name else None
        for place in self._places:
            if wanted is not None and (place.spec.name == wanted or (place.ref is not None and place.ref == wanted)):
                return place
        names = ", ".join(repr(place.spec.name) for place in self._places if place.spec.name is not None)
        raise NotFound(f"no child {which!r}; named ones are {names or 'none'}")

    def _named(self, place: Place, wait: float) -> NamedRef:
        if place.spec.name is None:
            raise InvalidArgument(f"child {place.label} has no name")
        return NamedRef(membership.current().name, place.spec.name, place.about, wait)


def finish_what_is_asked() -> None:
    """A caller who leaves while his request is served is no abort: a child that was stopped would stay so."""
    membership.current().member.serve_end()


def label_of(spec: Child) -> str:
    """What a child is called in the log."""
    return repr(spec.name) if spec.name is not None else refs.describe(spec.target).kind


@contextmanager
def logged(label: str) -> Iterator[None]:
    """Of a start that somebody has asked for: he is told how it failed, but may have left."""
    try:
        yield
    except Exception:
        logger.exception("child %s could not be started", label)
        raise


def check_child(spec: object) -> Child:
    """The Child, or TypeError."""
    if not isinstance(spec, Child):
        raise TypeError(f"a Child is needed, not {type(spec).__name__}")
    return spec


def is_normal(notice: ExitNotice) -> bool:
    """Did it end because it was done?"""
    return notice.reason == "returned" or (notice.reason == "exited" and notice.exitcode == 0)


def is_ending() -> bool:
    """Is this supervisor told to stop, or its system at its end?"""
    found = membership.current()
    return inbox.stopping() or found.closing or found.member.closed or found.box.closed


def story(place: Place, notice: ExitNotice) -> str:
    """Who ended how, and what was lost with it."""
    how = notice.reason
    if notice.signal is not None:
        how += f", signal {notice.signal}"
    elif notice.exitcode is not None:
        how += f", exit code {notice.exitcode}"
    lost = f"; {notice.undelivered} messages were lost with it" if notice.undelivered else ""
    return f"child {place.label} ended ({how}){lost}"


def belongs_to_orphan(member: _native.Member, name: str | None) -> bool:
    """Is the actor that has the name about to end, because its creator has? True when nobody has it any more."""
    if name is None:
        return False
    try:
        kind, _, id = member.lookup_name(name)
    except NotFound:
        return True
    record = next((entry for entry in member.members() if entry["id"] == id), None)
    if kind != _native.NAME_ACTOR or record is None:
        return kind == _native.NAME_ACTOR
    return not member.lives(record["creator"])
