"""What a handle of a shared buffer and one of a byte queue have in common: whose it is, who may what."""

import os
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from shmipc.base.closing import Closing
from shmipc.base.errors import AccessDenied, Closed, NotSupported
from shmipc.base.undisturbed import undisturbed
from shmipc.memory import segments
from shmipc.transport import grantor
from shmipc.transport.grantor import Store
from shmipc.transport.rights import (
    ANSWER_SECONDS,
    POSSIBLE,
    Access,
    Capability,
    Kind,
    Reply,
    Rights,
    check_id,
    check_pid,
    check_rights,
    open_named,
)


class Granted(Closing):
    """A handle of an object in sealed memory, in its owner or in a process that it was granted to.

    Attributes:
        name: Under which it is opened; None: it has none.
        owner: Uid of the owner.
        rights: What may be done by this handle.
        generation: Which object of its owner's process; never used twice there.
        is_owner: Is this the process that made it?
    """

    KIND: ClassVar[Kind]
    _store: Store | None = None
    _capability: Capability | None = None
    _closed: bool = True

    def _own(self, store: Store, name: str | None, access: Iterable[Access]) -> None:
        """Be the handle of a new object's owner."""
        self._store = store
        self._pid = os.getpid()
        self.name = name
        self.owner = store.owner
        self.rights = POSSIBLE[self.KIND]
        self.generation = store.generation
        self.is_owner = True
        self._closed = False
        try:
            store.access = tuple(access)
            for line in store.access:
                check_line(line, self.KIND)
            if name is not None:
                segments.check_name(f"{self.KIND.name.lower()} name", name)
                grantor.publish(store, name)
        except BaseException:
            self.close()
            raise

    def _adopt(self, reply: Reply, capability: Capability | None) -> None:
        """Be the handle of another's object."""
        answer = reply.answer
        self._capability = capability
        self._pid = os.getpid()
        self.name = answer.name.decode("ascii", "replace") or None
        self.owner = reply.owner.uid
        self.rights = Rights(answer.rights)
        self.generation = answer.generation
        self.is_owner = False
        self._closed = False

    @classmethod
    def open(
        cls,
        name: str,
        *,
        owner: int | None = None,
        rights: Rights | None = None,
        timeout: float | None = 0.0,
    ) -> Self:
        """Open the object of that name and owner, if its access list lets us.

        Args:
            owner: Uid; None: our own.
            rights: That are wanted; None: READ of a buffer, POST of a queue.
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: Nobody has the name.
            AccessDenied: We may not; or a stranger has the name.
            InvalidArgument: It is of another kind.
            WouldBlock: The end of the queue is taken.
            Timeout: The owner did not answer.
        """
        wanted = rights if rights is not None else Rights.READ if cls.KIND is Kind.BUFFER else Rights.POST
        found: Self = open_named(cls.KIND, name, owner, wanted, timeout, ANSWER_SECONDS)
        return found

    @property
    def access(self) -> tuple[Access, ...]:
        """Whom it is opened to by name; the owner only. Raises AccessDenied, Closed."""
        return self._own_store().access

    def allow(self, rights: Rights, *, uid: int | None = None, gid: int | None = None) -> None:
        """Let this user, or this group, open it by name, with these rights; takes the place of an earlier line.

        Raises:
            InvalidArgument: Not exactly one of uid and gid; rights that it has not.
            AccessDenied: We are not its owner.
        """
        self._set_line(Access(check_rights(rights, self.KIND), uid, gid))

    def deny(self, *, uid: int | None = None, gid: int | None = None) -> None:
        """Let this user, or this group, not open it; what is open stays open. Errors as of `allow`."""
        self._set_line(Access(Rights(0), uid, gid))

    def _set_line(self, line: Access) -> None:
        store = self._own_store()
        with grantor.lock:
            others = (entry for entry in store.access if (entry.uid, entry.gid) != (line.uid, line.gid))
            store.access = (*others, line)
        grantor.log.info("%s %r: %r", self.KIND.name.lower(), self.name, line)

    def grant(self, rights: Rights, *, uid: int | None = None) -> Capability:
        """A capability for it. Of what was itself opened with one: derived from that.

        Args:
            rights: That its user shall have.
            uid: Who alone may use it; None: whoever has it.

        Raises:
            InvalidArgument: Rights that it has not.
            AccessDenied: It was opened by name, or with less rights.
            ForkedHandle, Closed.
        """
        wanted = check_rights(rights, self.KIND)
        self._check()
        if self._capability is not None:
            return self._capability.derive(wanted, uid=uid)
        store = self._own_store()
        whom = None if uid is None else check_id("uid", uid)
        return undisturbed(lambda: grantor.grant(store, wanted, whom))

    def close(self) -> None:
        """Give it up in this process; idempotent. Of the owner: nobody can open it any more, who has it open keeps the
        memory.
        """
        if self._closed:
            return
        self._closed = True
        undisturbed(self._give_up)

    def _give_up(self) -> None:
        if self._store is None:
            return
        if self._pid == os.getpid():
            grantor.withdraw(self._store)
        else:
            self._store.shut()

    @property
    def closed(self) -> bool:
        return self._closed

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"the {self.KIND.name.lower()} is closed in this process")
        check_pid(self._pid, f"the {self.KIND.name.lower()}")

    def _own_store(self) -> Store:
        self._check()
        if self._store is None:
            raise AccessDenied(f"the {self.KIND.name.lower()} is uid {self.owner}'s, in another process")
        return self._store

    def __del__(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._store is not None:
                grantor.drop(self._store)
            self._drop()
        except Exception:
            pass  # the interpreter ends, and what this needs is gone

    def _drop(self) -> None:
        """For a finaliser: close what this handle has open itself."""

    def __reduce__(self) -> Any:
        noun = self.KIND.name.lower()
        raise NotSupported(f"a {noun} is not sent; grant it, and send the capability, which its receiver uses")

    def __repr__(self) -> str:
        kind = type(self).__name__
        if self._closed:
            return f"<{kind}, closed>"
        whose = "ours" if self.is_owner else f"of uid {self.owner}"
        return f"<{kind}{' ' + self.name if self.name else ''}, {whose}, {self.rights!r}>"


def check_line(line: Access, kind: Kind) -> None:
    if not isinstance(line, Access):
        raise TypeError(f"access must hold shmipc.Access, not {type(line).__name__}")
    if line.rights:
        check_rights(line.rights, kind)
