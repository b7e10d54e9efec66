"""Systems: the shared world of one user on one host, and what a process does with it."""

import atexit
import logging
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from shmipc import _native
from shmipc.actor import refs
from shmipc.actor.refs import Ref
from shmipc.base.deadlines import Deadline, check_timeout, poll
from shmipc.base.errors import InvalidArgument, NotFound, NotSupported, ShmipcError
from shmipc.base.limits import LIMITS, check_count
from shmipc.base.undisturbed import quiet
from shmipc.memory import membership, segments
from shmipc.memory.membership import Membership
from shmipc.runtime import children, launcher, processes
from shmipc.runtime.children import Options
from shmipc.runtime.pools import Pool
from shmipc.runtime.processes import Process
from shmipc.runtime.worker import Settings

logger = logging.getLogger("shmipc")

T = TypeVar("T")
EXCEPTION_SECONDS = 0.5  # what a worker gets to end when a system is left by an exception


class Statistics:
    """Counters of a system at one moment; frozen. The names are those of `as_dict`."""

    def __init__(self, values: Mapping[str, int]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> int:
        values: dict[str, int] = object.__getattribute__(self, "_values")
        if name not in values:
            raise AttributeError(f"no counter {name!r}; there are {', '.join(sorted(values))}")
        return values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("statistics are frozen")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type["Statistics"], tuple[dict[str, int]]]:
        return Statistics, (self.as_dict(),)

    def as_dict(self) -> dict[str, int]:
        values: dict[str, int] = object.__getattribute__(self, "_values")
        return dict(values)

    def __dir__(self) -> list[str]:
        return sorted([*object.__dir__(self), *self.as_dict()])

    def __repr__(self) -> str:
        return f"Statistics({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"


class Spawner:
    """``system.options(...)``: starts actors and pools in that way."""

    def __init__(self, system: "System", options: Options) -> None:
        self._system = system
        self._options = options

    def spawn(self, target: Callable[..., T], /, *args: Any, **kwargs: Any) -> Ref[T]:
        """As `System.spawn`."""
        return self._system._spawn(target, args, kwargs, self._options)

    def pool(self, workers: int | None = None, target: type | None = None, /, *args: Any, **kwargs: Any) -> Pool:
        """As `System.pool`."""
        return self._system._pool(workers, target, args, kwargs, self._options)


class System:
    """A system that this process creates; it ends when this process leaves it or dies.

    Use it as a context manager: leaving shuts down in order, by an exception quickly.

    Args:
        name: Under which other programs attach; None: private, under a generated name.
        start_method: ``zygote`` forks workers from a prepared process, ``spawn`` executes fresh interpreters.
        memory_limit: Bytes of shared memory for bodies and arrays; None: half of what /dev/shm has free.
        max_members: Processes at most, 1 to 65 534.

    Raises:
        NameTaken: A living system has the name.
        InvalidArgument, LimitExceeded: A value outside its limits.
        OutOfMemory: /dev/shm is full.
    """

    _membership: Membership
    _start_method: str
    _children: list[Process]
    _pools: "weakref.WeakSet[Pool]"

    def __init__(
        self,
        name: str | None = None,
        *,
        start_method: str = "zygote",
        memory_limit: int | None = None,
        max_members: int = LIMITS.members,
    ) -> None:
        if start_method not in children.START_METHODS:
            raise InvalidArgument(f"start_method is {start_method!r}; it must be one of {children.START_METHODS}")
        check_count("max_members", max_members, 1, LIMITS.max_members)
        if memory_limit is not None:
            check_count("memory_limit", memory_limit, LIMITS.memory_limit, 1 << 44)
        own = segments.private_name() if name is None else segments.check_system_name(name)
        found = membership.create(own, max_members=max_members, memory_limit=memory_limit, root=True)
        self._adopt(found, start_method)

    def _adopt(self, found: Membership, start_method: str) -> None:
        self._membership = found
        self._start_method = start_method
        self._children = []
        self._pools = weakref.WeakSet()
        _systems[found] = self

    @classmethod
    def _of(cls, found: Membership) -> "System":
        """The System of a membership of this process."""
        known = _systems.get(found)
        if known is None:
            known = cls.__new__(cls)
            known._adopt(found, "zygote")
        return known

    @classmethod
    def attach(cls, name: str, *, timeout: float | None = 0.0) -> "System":
        """Join the living system of that name; never creates one.

        Args:
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: There is none.
            LayoutMismatch: Another version of shmipc made it.
        """
        segments.check_system_name(name)
        for found in membership.open_systems():
            if found.name == name:
                return cls._of(found)
        return cls._of(poll(lambda: membership.attach(name), timeout))

    @classmethod
    def current(cls) -> "System":
        """The system that functions use which name none; see API: joins the user's default system if need be."""
        return cls._of(membership.current())

    @property
    def name(self) -> str:
        return self._membership.name

    @property
    def closed(self) -> bool:
        """Has this process left it, or has its root ended?"""
        found = self._membership
        return found.closed or found.closing or found.member.closed

    # --- actors ---

    def spawn(self, target: Callable[..., T], /, *args: Any, **kwargs: Any) -> Ref[T]:
        """Start an actor in a process of its own; returns when its ``__init__`` has returned.

        Args:
            target: A class, whose public methods are then remote, or a function, which then runs.

        Raises:
            Exception: What ``__init__`` raised, or what pickling the target or arguments raised.
            PeerDead: The process died in its start.
            Closed: The system is closed.
        """
        return self._spawn(target, args, kwargs, Options())

    def _spawn(
        self, target: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Ref[T]:
        self._membership.check()
        self._children = [child for child in self._children if child.is_alive()]
        starting = children.start(
            self._membership,
            target,
            args,
            kwargs,
            options,
            method=self._start_method,
            workers=len(self._children) + 1,
            settings=Settings(options.max_concurrency),
            of=self._membership,
            check=self._membership.check,
        )
        self._children.append(starting.finish())
        return starting.ref  # type: ignore[return-value]  # a Ref[T] is a T for type checkers only

    def pool(self, workers: int | None = None, target: type | None = None, /, *args: Any, **kwargs: Any) -> Pool:
        """Start a pool of workers, one per core by default; over a class, each makes an instance of it."""
        return self._pool(workers, target, args, kwargs, Options())

    def _pool(
        self,
        workers: int | None,
        target: type | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
    ) -> Pool:
        self._membership.check()
        if options.name is not None:
            raise InvalidArgument("a pool's workers cannot share one name; serve a Ref of pool.refs instead")
        made = Pool(self._membership, workers, target, args, kwargs, options, self._start_method)
        self._pools.add(made)
        return made

    def options(
        self,
        *,
        name: str | None = None,
        slots: int = LIMITS.slots,
        start_timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        max_concurrency: int = 1000,
    ) -> Spawner:
        """An object with ``spawn`` and ``pool`` that start actors in this way; see `children.Options`."""
        return Spawner(self, Options(name, slots, start_timeout, env, max_concurrency).check())

    # --- names ---

    def serve(self, name: str, ref: Any) -> None:
        """Give an actor a name; it goes with the actor.

        Raises:
            NameTaken: The name belongs to another living object.
            PeerDead: The actor has ended.
        """
        segments.check_name("actor name", name)
        self._membership.check()
        member = self._membership.member
        id = refs.id_in(ref, member)
        if not member.lives(id):
            raise refs.peer_dead(member, id)
        member.serve_name(name, _native.NAME_ACTOR, id & 0xFFFF, id)

    def lookup(self, name: str, *, timeout: float | None = 0.0) -> Any:
        """The Ref of the actor of that name; waits up to ``timeout`` seconds for it to appear. Raises NotFound."""
        segments.check_name("actor name", name)
        member = self._membership.member

        def find() -> Any:
            self._membership.check()
            kind, _, id = member.lookup_name(name)
            if kind != _native.NAME_ACTOR:
                raise NotFound(f"{name!r} names a mailbox, not an actor; use Mailbox.open")
            return refs.make_ref(member, id)

        return poll(find, timeout)

    def withdraw(self, name: str) -> None:
        """Take a name away; the object lives on. Raises NotFound."""
        segments.check_name("name", name)
        self._membership.check()
        self._membership.member.withdraw_name(name)

    # --- looking ---

    def processes(self) -> list[Process]:
        """The living actors of the system, whoever started them, the oldest first."""
        self._membership.check()
        return processes.workers_of(self._membership)

    def statistics(self) -> Statistics:
        """Counters of the whole system; nobody is stopped for them."""
        return Statistics(self._membership.member.statistics())

    # --- end ---

    def shutdown(self, *, timeout: float | None = 5.0) -> None:
        """End in order: no new work, actors stop behind what is queued, the newest first, then this process leaves.

        After ``timeout`` seconds what has not ended is killed. An attached process stops the actors it started and
        leaves. Idempotent.

        Raises:
            NotSupported: An actor called it for the system that runs it.
        """
        check_timeout(timeout)
        self._end(Deadline(timeout), drop=False)

    def kill(self) -> None:
        """SIGKILL every actor this process started, the newest first, and leave."""
        found = self._membership
        if found.closed:
            return
        for child in reversed(self._living()):
            child.kill()
        self._end(Deadline(0.0), drop=True)

    def _living(self) -> list[Process]:
        """The actors this process started, pools' included, the oldest first. Those too whose spawn was interrupted."""
        started = processes.started_in(self._membership.name)
        return sorted((entry for entry in started if entry.is_alive()), key=lambda entry: entry.identity)

    def _end(self, deadline: Deadline, *, drop: bool, final: bool = False) -> None:
        found = self._membership
        if found.closed:
            return
        if found.member.forked:
            found.check()
        if found.member is own_member():
            raise NotSupported("an actor does not end the system that runs it; end the actor with shmipc.exit()")
        found.closing = True
        starts = children.call_off(found, f"system {found.name!r} is closed")
        self._stop_children(deadline, drop)
        children.wait_for(starts, deadline)
        if not drop and found.is_root and not found.member.closed and (lost := self.statistics().undelivered):
            logger.warning("system %s: %d messages were lost with their receivers", self.name, lost)
        found.leave(final)
        _systems.pop(found, None)  # it refers to its key, and would keep the mapping for good
        processes.forget_system(found.name)
        refs.forget_system(found.name)
        if not membership.open_systems():
            launcher.close_launcher(deadline.left())

    def _stop_children(self, deadline: Deadline, drop: bool) -> None:
        """End what this process started, the newest first."""
        for pool in list(self._pools):
            pool._end(deadline, drop=drop)
        living = self._living()
        if drop:
            for child in reversed(living):
                child.drop_queue()
        for child in reversed(living):
            if not (drop or child.ask_to_stop(deadline)) or not child.join(deadline.left()):
                if not self._membership.member.closed:
                    fail_futures(self._membership.member)
                child.kill()
        for child in living:
            child.join(children.FAILED_SECONDS)
        self._children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._membership.member.forked:
            return  # a child that leaves the block of its parent, by sys.exit() for one
        if error is None:
            self.shutdown()
        else:
            self._end(Deadline(EXCEPTION_SECONDS), drop=True)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return restore, (self.name,)

    def __repr__(self) -> str:
        return f"<System {self.name} {'closed' if self.closed else 'open'}>"


_systems: "weakref.WeakKeyDictionary[Membership, System]" = weakref.WeakKeyDictionary()


def restore(name: str) -> System:
    """A System that another process pickled, as this process has it open."""
    return System._of(membership.find(name))


def own_member() -> _native.Member | None:
    """The member that this process, an actor, is in the system that runs it."""
    home = membership.home()
    return home.member if home is not None else None


def fail_futures(member: _native.Member) -> None:
    """Time is up: calls that were not answered end as Closed, not as the death that follows."""
    if hasattr(member, "fail_futures"):
        member.fail_futures()


def end_all() -> None:
    """At exit: end every system this process has open; quickly when an exception ends the interpreter."""
    drop = getattr(sys, "last_value", None) is not None
    limit = time.monotonic() + (EXCEPTION_SECONDS if drop else 5.0)
    for found in reversed(membership.open_systems()):
        system = System._of(found)
        deadline = Deadline(max(0.0, limit - time.monotonic()))
        try:
            if found is membership.home():
                system._stop_children(deadline, drop)
            else:
                system._end(deadline, drop=drop, final=True)
        except ShmipcError:
            pass  # the others are to be ended too


def kill_rest() -> None:
    """At exit, after `end_all`: what one more Ctrl-C has kept it from ending is killed, so that the files can go."""
    with quiet():
        for found in membership.open_systems():
            try:
                living = [child for child in processes.started_in(found.name) if child.is_alive()]
                for child in living:
                    child.kill()
                for child in living:
                    child.join(children.FAILED_SECONDS)
            except ShmipcError:
                pass  # the root has ended, and what it had started with it


atexit.register(kill_rest)
atexit.register(end_all)
