"""Groups of ports: one address for a service, whoever serves it at the moment."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from shmipc import _native
from shmipc.actor.ports import Port, check_id, is_handled_here, site_number
from shmipc.actor.remote import is_answer
from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline, check_timeout, poll
from shmipc.base.errors import AccessDenied, InvalidArgument, MailboxFull, NotFound, Timeout, Unreachable
from shmipc.base.limits import check_count
from shmipc.memory import membership
from shmipc.transport.mailboxes import HasMembership, membership_of
from shmipc.transport.messages import Message
from shmipc.transport.waits import Alarm

MAX_STAMP = (1 << 32) - 1
STATIC = 1 << 63  # set in the id that follows from a stamp, and in no other
MAX_MEMBERS = _native.GROUP_PORTS
MAX_KEY = (1 << 64) - 1
WAIT_SECONDS = 0.05  # in one full member for room, before the others are looked at again
FIRST_PAUSE = 0.0005  # before a call looks at full members again; it doubles up to LAST_PAUSE
LAST_PAUSE = 0.01


def static_name(stamp: int) -> str:
    """The name of the group of a stamp; no user's name looks like it."""
    return f"group/{stamp}"


def is_static(id: int) -> bool:
    """Does this id follow from a stamp?"""
    return STATIC <= id <= STATIC | MAX_STAMP


@dataclass(frozen=True)
class Broadcast:
    """What became of one message to all members.

    Attributes:
        delivered: Ids of the ports that have it.
        full: Ids of the ports that had no room, or that a process is opening which was stopped there.
    """

    delivered: tuple[int, ...]
    full: tuple[int, ...]


class PortGroup(Closing, _native.GroupView):
    """A group of ports: made with `create`, found with `open`, passed on by pickling, with its key.

    Who sends to it reaches all members (`broadcast`) or one (`send`, `call`); members whose owners have ended are
    passed over. Who knows the key inserts and removes ports. It lives until the last process that has it open closes
    it or ends, or until it is destroyed. At most 500 members.

    Source: native/transport/group.c; bytes in native/memory/layout.h.
    """

    stamp: int | None
    key: int | None

    @classmethod
    def create(cls, *, stamp: int | None = None, key: int | None = None, system: HasMembership | None = None) -> Self:
        """Make a group.

        Args:
            stamp: Its id follows from this number, 0 to 2**32 - 1, in every process; None: the id is new.
            key: What is needed to insert and remove, up to 64 bits; None: a random one.
            system: Where; the current system by default.

        Raises:
            NameTaken: There is a group of that stamp.
        """
        member = membership_of(system).member
        if stamp is not None:
            check_count("stamp", stamp, 0, MAX_STAMP)
        if key is None:
            key = random.SystemRandom().getrandbits(64)
        check_count("key", key, 0, MAX_KEY)
        group: Self = cls.make(member, key, cls=cls)
        group._begin(stamp, key)
        if stamp is not None:
            try:
                member.serve_name(static_name(stamp), _native.NAME_GROUP, group.index, group.life)
            except BaseException:
                group.release()
                raise
        return group

    @classmethod
    def open(
        cls,
        id: int | None = None,
        *,
        stamp: int | None = None,
        key: int | None = None,
        timeout: float | None = 0.0,
        system: HasMembership | None = None,
    ) -> Self:
        """Open the group of that id, or of that stamp.

        Args:
            key: The key, for who inserts and removes.
            timeout: Seconds to wait for it to appear; 0 looks once.

        Raises:
            NotFound: There is none.
            InvalidArgument: An id or a key that no group can have.
            Timeout: A process has been stopped in the midst of opening it for ``timeout`` seconds; with 0 this waits
                for that process.
        """
        if (id is None) == (stamp is None):
            raise InvalidArgument("an id or a stamp is needed, and not both")
        if id is not None and is_static(check_group_id(id)):
            stamp = id & MAX_STAMP
        if stamp is not None:
            check_count("stamp", stamp, 0, MAX_STAMP)
        if key is not None:
            check_count("key", key, 0, MAX_KEY)
        member = membership_of(system).member
        deadline = Deadline(timeout or None)
        return poll(lambda: cls._find(member, id, stamp, key, deadline.left()), timeout)

    @classmethod
    def _find(
        cls,
        member: _native.Member,
        id: int | None,
        stamp: int | None,
        key: int | None,
        timeout: float | None = None,
    ) -> Self:
        """The group of that stamp, or else of that id, at one look; raises NotFound, Timeout."""
        if stamp is not None:
            _, index, life = member.lookup_name(static_name(stamp))
        else:
            assert id is not None
            if not id & 0xFFFFF:
                raise NotFound(f"there is no group {id:#x}")
            index, life = (id & 0xFFFFF) - 1, id >> 20
        group: Self = cls.open_in(member, index, life, cls=cls, timeout=timeout)
        group._begin(stamp, key)
        return group

    @classmethod
    def addressed_by(cls, message: Message) -> Self | None:
        """The group that a port's message was sent to; None: it was the port itself, or the group is gone."""
        id = message.group_id
        if id == 0:
            return None
        try:
            return cls._find(message.member, id, id & MAX_STAMP if is_static(id) else None, None)
        except NotFound:
            return None

    def _begin(self, stamp: int | None, key: int | None) -> None:
        self.stamp, self.key = stamp, key
        self._opened: dict[int, Port] = {}  # members that were sent to; see _member_ids
        self._call_turns = itertools.count(random.randrange(MAX_MEMBERS))

    @staticmethod
    def static_id(stamp: int) -> int:
        """The id of the group of a stamp, whether there is one or not."""
        return STATIC | check_count("stamp", stamp, 0, MAX_STAMP)

    @property
    def id(self) -> int:
        """Never used again in the system, unless it follows from a stamp."""
        return self.life << 20 | (self.index + 1) if self.stamp is None else self.static_id(self.stamp)

    # -- members ------------------------------------------------------------------------------------------------

    def insert(self, port: Port | int) -> None:
        """Make a port a member; a member already: nothing happens.

        Raises:
            AccessDenied: The key is unknown here, or is not the group's.
            NotFound: There is no such port, or no more.
            LimitExceeded: There are 500 members.
            Closed: The group was destroyed.
        """
        self.insert_port(self._known_key(), self._id_of(port))

    def remove(self, port: Port | int) -> None:
        """The port is no member any more; raises NotFound when it was none, AccessDenied, Closed."""
        id = self._id_of(port)
        self.remove_port(self._known_key(), id)
        self._opened.pop(id, None)

    def _id_of(self, port: Port | int) -> int:
        if not isinstance(port, Port):
            return check_id(port)
        if port.member is not self.member:
            raise InvalidArgument(f"{port!r} is of another system than the group")
        return port.id

    def _known_key(self) -> int:
        if self.key is None:
            raise AccessDenied("the key of the group is not known here")
        return self.key

    def members(self) -> list[int]:
        """Ids of the members whose owners live."""
        return self._member_ids()

    def destroy(self) -> None:
        """End the group for everybody: sending to it raises Closed, its stamp is free. Its ports stay."""
        self.destroy_with(self._known_key())

    # -- sending ------------------------------------------------------------------------------------------------

    def broadcast(self, body: Any, *, annex: bytes | None = None, source: Port | None = None) -> Broadcast:
        """Send a copy to each member, without waiting for those that have no room.

        Raises:
            Unreachable: There is no member that can be reached.
            BufferError: The body is what `move` returned, which one receiver can have.
            Exception: Whatever else ends it, with ``delivered``: the ids of those who have their copy.
        """
        if isinstance(body, _native.Moved):
            raise BufferError("a moved array goes to one receiver, not to each member of a group")
        delivered: list[int] = []
        full: list[int] = []
        for id in self._member_ids():
            try:
                sent = self._try_send(id, body, None, annex, source)
                if sent is not None:
                    (delivered if sent else full).append(id)
            except BaseException as error:
                BaseException.__setattr__(error, "delivered", tuple(delivered))  # whatever its class makes of that
                raise
        if not delivered and not full:
            raise Unreachable("no member of the group can be reached")
        return Broadcast(tuple(delivered), tuple(full))

    def send(
        self,
        body: Any,
        timeout: float | None = None,
        *,
        only: "Port | str | None" = None,
        never: "Port | str | None" = None,
        annex: bytes | None = None,
        source: Port | None = None,
    ) -> int:
        """Send to one member; each gets its turn.

        Args:
            timeout: Seconds to wait for room when every member is full.
            only: Only this port, or one with this label.
            never: Never this port, nor one with this label.

        Returns:
            The id of the port that has it.

        Raises:
            Unreachable: There is no such member that can be reached.
            MailboxFull, Timeout: All of them are full; with the body.
        """
        left = Deadline(check_timeout(timeout) or None)
        while True:
            ids = self._candidates(only, never, self.take_turn)
            for id in ids:
                if self._try_send(id, body, None, annex, source):
                    return id
            if timeout == 0:
                raise MailboxFull(f"all {len(ids)} members of the group are full", message=body)
            rest = left.left()
            turn = Deadline(WAIT_SECONDS if rest is None else min(rest, WAIT_SECONDS))
            if self._try_send(ids[0], body, turn, annex, source):
                return ids[0]
            if left.passed():
                raise Timeout(f"none of {len(ids)} members of the group had room within {timeout} s", message=body)

    def call(
        self,
        body: Any,
        timeout: float | None = None,
        *,
        only: "Port | str | None" = None,
        never: "Port | str | None" = None,
        annex: bytes | None = None,
        source: Port | None = None,
    ) -> Any:
        """Call one member, chosen as by `send`, and return what it answers, or raise what it does.

        A request that was accepted is not sent again, whatever becomes of its server. Who is full is passed over; when
        all are, it waits for room in any. A member whose handler calls is passed over, unless there is no other.

        Raises:
            InvalidArgument: The only such member's own handler calls it, which would never end.
            Unreachable: There is no such member that can be reached; nobody was waited for.
            PeerDead, Closed: As of `Port.call`, once it was accepted.
            Timeout: No answer in time.
        """
        if check_timeout(timeout) == 0:
            raise InvalidArgument("timeout is 0; a call needs time for an answer")
        left = Deadline(timeout)
        pause = FIRST_PAUSE
        while True:
            ids = self._candidates(only, never, self._call_turns.__next__)
            for id in [id for id in ids if not is_handled_here(self.member, id)] or ids:
                if (rest := left.left()) == 0:
                    raise Timeout(f"none of {len(ids)} members of the group took the request within {timeout} s")
                try:
                    port = self._port(id)
                except (NotOpened, Unreachable):
                    continue
                try:
                    # A call whose port is filled at this moment waits there: the core has no call that refuses to.
                    if port.depth() < port.capacity:
                        return port.call(body, rest, annex=annex, source=source)
                except Unreachable as error:
                    if is_answer(error) or port.is_there:  # there still: the body's own pickling has raised it
                        raise
            rest = left.left()
            wait_for(self.member, pause if rest is None else min(rest, pause))
            pause = min(2 * pause, LAST_PAUSE)

    def _try_send(
        self, id: int, body: Any, until: Deadline | None, annex: bytes | None, source: Port | None
    ) -> bool | None:
        """Send to a member, without waiting or until the deadline; False: it has no room, None: it is gone.

        What the body's own pickling raises is raised, also when it is of the kind that a send raises.
        """
        try:
            port = self._port(id, None if until is None else until.left())
        except NotOpened:
            return False
        except Unreachable:
            return None
        try:
            port.send(body, 0 if until is None else until.left(), annex=annex, source=source)
        except (MailboxFull, Timeout) as error:
            if error.message is not body:
                raise
            return False
        except Unreachable:
            if port.is_there:
                raise
            return None
        return True

    def _member_ids(self) -> list[int]:
        """Ids of the members whose owners live. The ports that are none any more are let go, with their memory, as soon
        as no other thread is using them.
        """
        ids = self.member_ids()
        for id in self._opened.keys() - ids:
            self._opened.pop(id, None)
        return ids

    def _candidates(
        self, only: "Port | str | None", never: "Port | str | None", take_turn: Callable[[], int]
    ) -> list[int]:
        """The members that may be chosen, beginning with the one whose turn it is; raises Unreachable.

        With a condition it begins anywhere: a turn of those without one that were taken for it would miss a member for
        good, when both alternate.
        """
        for which in (only, never):
            if not isinstance(which, Port | str | None):
                raise TypeError(f"members are told by a Port or a label, not by {type(which).__name__}")
        ids = self._member_ids()
        if only is not None:
            ids = [id for id in ids if self._is(id, only)]
        if never is not None:
            ids = [id for id in ids if not self._is(id, never)]
        if not ids:
            raise Unreachable("no member of the group can be reached, or none that is asked for")
        turn = random.randrange(len(ids)) if only is not None or never is not None else take_turn() % len(ids)
        return ids[turn:] + ids[:turn]

    def _is(self, id: int, which: "Port | str") -> bool:
        if isinstance(which, Port):
            return id == self._id_of(which)
        return bool(_native.site_of_port(self.member, id) == site_number(which))

    def _port(self, id: int, timeout: float | None = None) -> Port:
        """The port of a member, open; raises Unreachable, and NotOpened when one who was stopped is in the midst of
        opening it: after ``timeout`` seconds, or a moment.
        """
        port = self._opened.get(id)
        if port is None or port.closed:
            try:
                port = _native.open_port(self.member, id, cls=Port, timeout=max(timeout or 0.0, _native.PATIENCE))
            except Timeout as error:
                raise NotOpened(str(error)) from None
            self._opened[id] = port.reach_by(self.id)
        elif not port.is_there:
            self._opened.pop(id, None)
        return port

    # -- the rest -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this process's hold; a second close does nothing."""
        self.release()
        self._opened.clear()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        found = membership.of_member(self.member)
        name = found.name if found is not None else ""
        return reopen, (type(self), name, self.index, self.life, self.stamp, self.key)

    def __repr__(self) -> str:
        if self.closed:
            return "<PortGroup, closed>"
        return f"<PortGroup {self.id:#x}, {len(self.member_ids())} members>"


class NotOpened(Timeout):
    """Of a member: a process that was stopped, or gets no core, is in the midst of opening it."""


def check_group_id(id: int) -> int:
    """The id, if it can be one of a group; raises TypeError, InvalidArgument."""
    if check_id(id) == 0 or (id & STATIC and not is_static(id)):
        raise InvalidArgument(f"{id:#x} is the id of no group")
    return id


def wait_for(member: _native.Member, seconds: float) -> None:
    """A pause that ends early, and raises, when the thread is aborted or the system is closed."""
    alarm = Alarm(seconds)
    _native.wait_many((alarm,), _native.WAIT_LOOK, None, lambda: member)


def reopen(cls: type[PortGroup], system: str, index: int, life: int, stamp: int | None, key: int | None) -> PortGroup:
    """Open in this process a group that another process pickled; raises NotFound, Closed."""
    found = membership.find(system)
    found.check()
    group: PortGroup = cls.open_in(found.member, index, life, cls=cls)
    group._begin(stamp, key)
    return group
