"""What events, locks, semaphores and the like have in common: names, life, pickling."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from shmipc import _native
from shmipc.base.closing import Closing
from shmipc.base.deadlines import poll
from shmipc.base.errors import NotFound, Timeout, WouldBlock
from shmipc.memory import membership, segments
from shmipc.transport.mailboxes import HasMembership, membership_of


class SyncObject(Closing, _native.SyncView):
    """An object in shared memory that processes of one system wait for; base of all its kinds.

    Made by its class or with ``create``, found with `open`, passed on by pickling. It lives until the last process
    that has it open closes it or dies. What a process holds of it when it dies is given back, as each kind says.

    Source: native/transport/sync.c; bytes in native/memory/layout.h.
    """

    KIND: ClassVar[int]
    NOUN: ClassVar[str]

    def _create(
        self,
        name: str | None,
        system: HasMembership | None,
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
        member = membership_of(system).member
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
        """
        segments.check_name(f"{cls.NOUN} name", name)
        member = membership_of(system).member

        def find() -> Any:
            kind, index, life = member.lookup_name(name)
            if kind != _native.NAME_SYNC:
                raise NotFound(f"{name!r} names something else, not a {cls.NOUN}")
            return cls._adopt(member, index, life)

        found: Self = poll(find, timeout)
        return found

    @classmethod
    def _adopt(cls, member: _native.Member, index: int, life: int, *state: Any) -> Self:
        """An object that another has made."""
        found = cls.__new__(cls)
        found.find(member, cls.KIND, index, life)
        found._restore(*state)
        return found

    @property
    def name(self) -> str | None:
        """The name it has in its system, None when it has none."""
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
        if self.closed:
            return f"<{kind}, closed>"
        if self.member.forked:
            return f"<{kind} of the process that forked this one>"
        name = self.name
        return f"<{kind}{' ' + name if name else ''}: {self.describe()}>"


def reopen(cls: type[SyncObject], system: str, index: int, life: int, state: tuple[Any, ...]) -> SyncObject:
    """Open in this process an object that another process pickled; raises NotFound, Closed."""
    found = membership.find(system)
    found.check()
    return cls._adopt(found.member, index, life, *state)


def span(block: bool, timeout: float | None) -> float | None:
    """Seconds of a wait in multiprocessing's manner: not to block is 0, and so is less."""
    if not block:
        return 0.0
    return None if timeout is None else max(0.0, timeout)
