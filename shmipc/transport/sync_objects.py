"""What events, locks, semaphores and the like have in common: names, life, pickling."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from shmipc import _native
from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline, poll
from shmipc.base.errors import Closed, InvalidArgument, NotFound, Timeout, WouldBlock
from shmipc.memory import membership, segments
from shmipc.transport.mailboxes import HasMembership, membership_of

NOUNS: dict[int, str] = {}  # of the kinds that only their flags tell apart


class SyncObject(Closing, _native.SyncView):
    """An object in shared memory that processes of one system wait for; base of all its kinds.

    Made by its class or with ``create``, found with `open`, passed on by pickling. It lives until the last process
    that has it open closes it or dies. What a process holds of it when it dies is given back, as each kind says.

    Source: native/transport/sync.c; bytes in native/memory/layout.h.
    """

    KIND: ClassVar[int]
    NOUN: ClassVar[str]
    FLAGS: ClassVar[int] = -1  # that tell it from others of its kind; -1: nothing does

    def _create(
        self,
        name: str | None,
        system: HasMembership | _native.Member | None,
        *,
        flags: int = 0,
        max: int = 0,
        initial: int = 0,
        entries: int = 0,
        nbytes: int = 0,
    ) -> None:
        """Be a new object; raises NameTaken, InvalidArgument, LimitExceeded, OutOfMemory."""
        if name is not None:
            segments.check_name(f"{self.NOUN} name", name)
        member = system if isinstance(system, _native.Member) else membership_of(system).member
        self.make(member, self.KIND, flags, max, initial, entries, nbytes)
        if name is not None:
            try:
                member.serve_name(name, _native.NAME_SYNC, self.index, self.life)
            except BaseException:
                self.release_hold()
                raise

    @classmethod
    def open(cls, name: str, *, timeout: float | None = 0.0, system: HasMembership | None = None) -> Self:
        """Open the object of that name.

        Args:
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: There is none.
            InvalidArgument: It is of another kind.
            Timeout: A process has been stopped in the midst of opening it for ``timeout`` seconds; with 0 this waits
                for that process.
        """
        return cls._open(name, timeout, membership_of(system).member)

    @classmethod
    def _open(cls, name: str, timeout: float | None, member: _native.Member, *state: Any) -> Self:
        """See `open`; the state is what `_restore` takes."""
        segments.check_name(f"{cls.NOUN} name", name)
        deadline = Deadline(timeout or None)

        def find() -> Any:
            kind, index, life = member.lookup_name(name)
            if kind != _native.NAME_SYNC:
                raise NotFound(f"{name!r} names something else, not a {cls.NOUN}")
            return cls._adopt(member, index, life, *state, timeout=deadline.left())

        found: Self = poll(find, timeout)
        return found

    @classmethod
    def _adopt(cls, member: _native.Member, index: int, life: int, *state: Any, timeout: float | None = None) -> Self:
        """An object that another has made."""
        found = cls.__new__(cls)
        found.find(member, cls.KIND, index, life, timeout)
        if cls.FLAGS >= 0 and found.flags != cls.FLAGS:
            flags, name = found.flags, found.name
            found.release_hold()
            what = repr(name) if name is not None else f"object {index}"
            raise InvalidArgument(f"{what} is a {NOUNS.get(flags, 'lock of another kind')}, not a {cls.NOUN}")
        found._restore(*state)
        return found

    @property
    def name(self) -> str | None:
        """The name it has in its system, None when it has none; raises Closed when it was never open."""
        if getattr(self, "member", None) is None:
            raise Closed(f"the {self.NOUN} was never open in this process")
        return self.member.name_of(_native.NAME_SYNC, self.index, self.life)

    def unlink(self) -> None:
        """Take its name away; it lives on for those who have it open."""
        name = self.name
        if name is not None:
            self.member.withdraw_name(name)

    def close(self) -> None:
        """Close this process's hold; threads that wait here get `Closed`. A second close does nothing."""
        self.release_hold()

    def _state(self) -> tuple[Any, ...]:
        """What more it needs in the process that unpickles it."""
        return ()

    def _restore(self, *state: Any) -> None:
        """Take what `_state` gave."""

    def _refused(self, timeout: float | None) -> WouldBlock | Timeout:
        """The exception of a wait that was not in time."""
        if timeout == 0:
            return WouldBlock(self.describe())
        return Timeout(f"not within {timeout} s: {self.describe()}")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        found = membership.of_member(self.member)
        name = found.name if found is not None else ""
        return reopen, (type(self), name, self.index, self.life, self._state())

    def __repr__(self) -> str:
        kind = type(self).__name__
        if self.member.forked:
            return f"<{kind} of the process that forked this one>"
        if self.closed:
            return f"<{kind}, closed>"
        name = self.name
        return f"<{kind}{' ' + name if name else ''}: {self.describe()}>"


def reopen(cls: type[SyncObject], system: str, index: int, life: int, state: tuple[Any, ...]) -> SyncObject:
    """Open in this process an object that another process pickled; raises NotFound, Closed."""
    found = membership.find(system)
    found.check()
    return cls._adopt(found.member, index, life, *state)
