"""Ports, groups and calls in the spelling of the ChorusOS nucleus.

Each function takes the C function's in-parameters in C order and returns its result first, then its out-parameters in C
order. A result of 0 or more is an identifier or a count, a negative one a `KnError`. Nothing is raised: `detail` says
why the calling thread's last failure happened.

What is this interface's own:
- An actor's capability is its Ref; `K_MYACTOR` is the calling actor. A port's or group's unique identifier is an int. A
  group's capability is a `KnCap`: its identifier, and the key that inserting and removing need.
- A port's local identifier is its number in its actor, from 1; `K_DEFAULTPORT` and `K_ANYENABLED` stand apart.
- A message is a `KnMsgDesc`: a body and an annex of `K_CMSGANNEXSIZE` bytes, padded with zeros; no annex is None.
- Timeouts are in milliseconds: 0 polls (`K_EWOULDBLOCK`), a negative one waits, a positive one is a limit
  (`K_ETIMEOUT`, never early). A send never waits: a port without room is `K_EBUSY`, at once.
- A thread has a current message, the last that it received: it is what `ipcReply`, `ipcGetData`, `ipcSave` and
  `ipcSysInfo` are about.
- Only an actor itself deletes, enables and migrates its ports.

Source: shmipc/actor/ports.py, shmipc/actor/groups.py.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from shmipc import _native
from shmipc.actor import aborts, calls, ports, refs, remote
from shmipc.actor.groups import MAX_KEY, STATIC, PortGroup
from shmipc.actor.ports import Port
from shmipc.base import errors
from shmipc.base.deadlines import Deadline, in_seconds
from shmipc.base.failures import Failures
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership
from shmipc.transport.messages import Message

K_MYACTOR = None
K_DEFAULTPORT = 0
K_ANYENABLED = -1
K_MAINTHREAD = 0
K_NOTIMEOUT = -1
K_NOBODY = -1  # capacity of a receive that leaves the body to ipcGetData
K_CMSGANNEXSIZE = _native.ANNEX_BYTES
K_DYNAMIC = 0  # groups with an identifier of their own
K_STATUSER = 1  # groups whose identifier follows from a stamp
MAX_THREAD = (1 << 64) - 1
K_MAXSAVED = 64  # messages that a thread saves at most
K_MAXDECLARED = (1 << 20) - 1  # the largest identifier that portDeclare takes; the others begin above


class KnMode(IntEnum):
    """To whom of a group a message goes; `K_BROADMODE` when nothing is said."""

    K_BROADMODE = 0  # every member
    K_FUNCMODE = 1  # one member
    K_FUNCUMODE = 2  # the cotarget, or one member at its site
    K_FUNCXMODE = 3  # one member, but never the cotarget, nor one at its site


K_BROADMODE = KnMode.K_BROADMODE
K_FUNCMODE = KnMode.K_FUNCMODE
K_FUNCUMODE = KnMode.K_FUNCUMODE
K_FUNCXMODE = KnMode.K_FUNCXMODE


class KnError(IntEnum):
    """What a negative result says."""

    K_EFAILED = -1
    K_EINVAL = -2  # a value that cannot be, or an operation that the port's state forbids
    K_ENOPORT = -3  # the port is gone, or another actor's
    K_EUNREACH = -4  # nobody is there to receive
    K_ETIMEOUT = -5
    K_EWOULDBLOCK = -6
    K_EBUSY = -7  # the port has no room
    K_EPEERDEAD = -8  # who was to answer has ended
    K_EABORT = -9  # the transaction is closed
    K_EACCESS = -10  # the key is another, or the port is not one's own
    K_EEXIST = -11  # there is one of that stamp
    K_ENOTFOUND = -12
    K_ETOOLARGE = -13
    K_ETOOSMALL = -14  # the message is larger than the buffer; it was kept
    K_ENOMEM = -15
    K_ELIMIT = -16
    K_ECLOSED = -17


class KnCap(NamedTuple):
    """A group's capability."""

    ui: int
    key: int | None


class KnProtectId(NamedTuple):
    """Who is behind a message or a port, in the runtime's words: a process's number in its system, and its user."""

    identity: int
    uid: int


class KnIpcDest(NamedTuple):
    """Where a message goes: a port, or a group in one of the modes.

    The cotarget is a port's identifier, or the label of a site.
    """

    target: int
    mode: KnMode = K_BROADMODE
    cotarget: int | str | None = None


@dataclass(frozen=True)
class KnMsgDesc:
    """A message: what it says, and up to `K_CMSGANNEXSIZE` bytes beside it."""

    body: bytes = b""
    annex: bytes | None = None


@dataclass(frozen=True)
class KnIpcInfo:
    """What is known of the current message.

    Attributes:
        source_actor: Who sent it.
        source_port: The port that it was sent from, 0: none.
        target: What it was sent to: the port that it came to, or the group.
        sequence: Its number among those that the port's actor has received.
        transaction: Of a request: its number; else 0.
        protection: Of the sender.
    """

    source_actor: Any
    source_port: int
    target: int
    sequence: int
    transaction: int
    protection: KnProtectId


_failures: Failures[KnError] = Failures(
    [
        (errors.NoPort, KnError.K_ENOPORT),
        (errors.Unreachable, KnError.K_EUNREACH),
        (errors.MailboxEmpty, KnError.K_EWOULDBLOCK),
        (errors.MailboxFull, KnError.K_EBUSY),
        (errors.Timeout, KnError.K_ETIMEOUT),
        (errors.PeerDead, KnError.K_EPEERDEAD),
        (errors.Aborted, KnError.K_EABORT),
        (errors.AccessDenied, KnError.K_EACCESS),
        (errors.NameTaken, KnError.K_EEXIST),
        (errors.NotFound, KnError.K_ENOTFOUND),
        (errors.TooLarge, KnError.K_ETOOLARGE),
        (errors.BufferTooSmall, KnError.K_ETOOSMALL),
        (MemoryError, KnError.K_ENOMEM),
        (errors.LimitExceeded, KnError.K_ELIMIT),
        (errors.Closed, KnError.K_ECLOSED),
        ((TypeError, ValueError, errors.InvalidArgument), KnError.K_EINVAL),
    ],
    KnError.K_EFAILED,
)


def detail() -> str:
    """The reason of the calling thread's last failure; empty when nothing has failed in it."""
    return _failures.detail()


Bytes = bytes | bytearray | memoryview
BYTES = (bytes, bytearray, memoryview)


class Thread(threading.local):
    """What a thread has of its own."""

    def __init__(self) -> None:
        self.current: Message | None = None
        self.saved: dict[int, Message] = {}
        self.next_saved = 0


_thread = Thread()
OPENED_MOST = 1024  # ports of one system


class Opened:
    """The ports and groups of one system that this process has open for its next use; let go when it leaves that."""

    def __init__(self, member: _native.Member) -> None:
        self.member = member
        self.ports: dict[int, Port] = {}
        self.groups: dict[int, PortGroup] = {}

    def sweep(self) -> None:
        """Let go what is no more; who is using it at the moment holds it meanwhile."""
        for number, port in list(self.ports.items()):
            if port.closed or not port.is_there:
                self.ports.pop(number, None)
        for ui, group in list(self.groups.items()):
            if group.closed:
                self.groups.pop(ui, None)
        if len(self.ports) >= OPENED_MOST:
            self.ports.clear()


_opened: dict[_native.Member, Opened] = {}


def _here() -> Opened:
    """Of the current system."""
    place = membership.current()
    known = _opened.get(place.member)
    if known is None:
        made = Opened(place.member)
        known = _opened.setdefault(place.member, made)
        if known is made:
            place.before_leave.append(partial(_close, place.member))
    return known


def _close(member: _native.Member) -> None:
    _opened.pop(member, None)


# --- what names what -------------------------------------------------------------------------------------------


def _ui(what: str, value: Any) -> int:
    """A unique identifier; raises TypeError, InvalidArgument."""
    return ports.check_id(_whole(what, value))


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    return int(value)


def _seconds(timeout: Any) -> float | None:
    return in_seconds(_whole("timeout", timeout))


def _rest(left: Deadline, timeout: float | None) -> float | None:
    """What is left of a timeout, which does not become a poll by that."""
    return left.left() if not timeout else max(left.left() or 0.0, 1e-9)


def _actor(actorcap: Any) -> refs.ActorRef:
    if actorcap is None:
        return calls.self()
    refs.id_here(actorcap)  # in another system the number is another actor's
    return refs.check_ref(actorcap)


def _declared(ui: int) -> str:
    """The name of a port whose identifier was chosen by its maker."""
    return f"port/{ui}"


def _is_declared(ui: int) -> bool:
    try:
        membership.current().member.lookup_name(_declared(ui))
    except errors.NotFound:
        return False
    return True


def _open(ui: Any, timeout: float | None = None) -> Port:
    """The port of an identifier; raises Unreachable. It stays open for the next use.

    Raises Timeout when one who was stopped is in the midst of opening it for ``timeout`` seconds; 0: a moment.
    """
    number, here = _ui("port", ui), _here()
    known = here.ports.get(number)
    if known is not None and not known.closed and known.is_there:
        return known
    here.sweep()
    member = here.member
    id = number
    if 0 < number <= K_MAXDECLARED:
        try:
            _, index, life = member.lookup_name(_declared(number))
        except errors.NotFound:
            raise errors.Unreachable(f"nobody has declared port {number}") from None
        id = life << 20 | (index + 1)
    limit = None if timeout is None else max(timeout, _native.PATIENCE)
    port: Port = _native.open_port(member, id, cls=Port, timeout=limit)
    here.ports[number] = port
    return port


def _own(portli: Any, actorcap: Any = K_MYACTOR, timeout: float | None = None) -> Port:
    """An actor's port by its local identifier; raises NoPort, and Timeout as `_open`."""
    local, actor = _whole("port", portli), _actor(actorcap)
    if local == K_DEFAULTPORT:
        return _open(ports.default_id(actor), timeout)
    id = _native.port_of(membership.current().member, actor._shm.id, local) if 0 < local < 1 << 32 else 0
    if not id:
        raise errors.NoPort(f"the actor has no port {local}")
    return _open(id, timeout)


def _mine(actorcap: Any, portli: Any) -> Port:
    """The same, of the calling actor only."""
    if _actor(actorcap) != calls.self():
        raise errors.AccessDenied("only an actor itself changes its ports")
    return _own(portli)


def _known_group(ui: int) -> PortGroup:
    """The group of an identifier, which this process keeps open; raises NotFound."""
    here = _here()
    group = here.groups.get(ui)
    if group is None or group.closed:
        here.sweep()
        group = here.groups[ui] = PortGroup.open(ui)
    return group


def _to_edit(grpcap: Any) -> tuple[PortGroup, int]:
    """A group and the key of its capability; raises AccessDenied when that has none."""
    if not isinstance(grpcap, KnCap):
        raise TypeError(f"a KnCap is needed, not {type(grpcap).__name__}")
    if grpcap.key is None:
        raise errors.AccessDenied("the capability has no key")
    key = check_count("key", grpcap.key, 0, MAX_KEY)
    return _known_group(_ui("group", grpcap.ui)), key


# --- actors and threads ----------------------------------------------------------------------------------------


def actorSelf() -> tuple[int, Any]:
    """The capability of the calling actor."""
    try:
        return 0, calls.self()
    except Exception as error:
        return _failures.status(error), None


def threadSelf() -> int:
    """The local identifier of the calling thread, by which it can be aborted.

    Returns:
        It: `K_ELIMIT`, `K_ENOMEM`, `K_ECLOSED`.
    """
    try:
        return membership.current().member.thread
    except Exception as error:
        return _failures.status(error)


def threadAbort(actorcap: Any, threadli: int) -> int:
    """Abort a thread of an actor: what it waits for ends with `K_EABORT`, or else its next wait does.

    Args:
        threadli: `K_MAINTHREAD`, or what `threadSelf` has returned to the thread.

    Returns:
        0: `K_EPEERDEAD`, `K_ENOTFOUND` when the actor has no such thread, or none that can be aborted.
    """
    try:
        actor, thread = _actor(actorcap), check_count("thread", threadli, 0, MAX_THREAD)
        if thread == K_MAINTHREAD:
            aborts.abort(actor)
        else:
            membership.current().member.abort(actor._shm.id, thread)
    except Exception as error:
        return _failures.status(error)
    return 0


def threadAborted() -> int:
    """1 when the calling thread was aborted, or the request is closed that it serves; told once. Else 0."""
    try:
        return int(aborts.aborted())
    except Exception as error:
        return _failures.status(error)


def actorPi(actorcap: Any) -> tuple[int, KnProtectId | None]:
    """The protection identifier of an actor, which the runtime has given it."""
    try:
        return 0, _protection(_actor(actorcap)._shm.id)
    except Exception as error:
        return _failures.status(error), None


def _protection(id: int) -> KnProtectId:
    member = membership.current().member
    pid, identity = member.who(id)
    if not pid and not identity:
        raise errors.PeerDead("the actor has ended")
    return KnProtectId(identity, os.getuid())


# --- ports -----------------------------------------------------------------------------------------------------


def portCreate(actorcap: Any) -> tuple[int, int]:
    """Make a port of an actor, disabled.

    Returns:
        Its local identifier, and its unique identifier: `K_EPEERDEAD`, `K_ENOMEM`, `K_ELIMIT`.
    """
    try:
        with Port.create(owner=_actor(actorcap)) as port:
            return port.local, port.id
    except Exception as error:
        return _failures.status(error), 0


def portDeclare(actorcap: Any, portui: int) -> int:
    """Make a port of an actor under an identifier of one's choice, 1 to `K_MAXDECLARED`: `K_EEXIST` when it is taken.

    Returns:
        Its local identifier.
    """
    try:
        number = _whole("port", portui)
        if not 1 <= number <= K_MAXDECLARED:
            raise errors.InvalidArgument(f"port is {number}; it must be 1 to {K_MAXDECLARED}")
        if _is_declared(number):
            raise errors.NameTaken(f"port {number} is declared already")
        with Port.create(owner=_actor(actorcap)) as port:
            try:
                port.member.serve_name(_declared(number), _native.NAME_BOX, port.index, port.life)
            except BaseException:
                if port.owner == calls.self():
                    port.delete()
                raise
            return port.local
    except Exception as error:
        return _failures.status(error)


def portDelete(actorcap: Any, portli: int) -> int:
    """Remove a port of the calling actor: `K_ENOPORT`, `K_EINVAL` for the default port."""
    try:
        port = _mine(actorcap, portli)
        port.delete()
        _here().ports.pop(port.id, None)
    except Exception as error:
        return _failures.status(error)
    return 0


def portEnable(actorcap: Any, portli: int, prio: int) -> int:
    """Have receives from `K_ANYENABLED` include the port; a low ``prio`` is urgent."""
    try:
        _mine(actorcap, portli).enable(_whole("prio", prio))
    except Exception as error:
        return _failures.status(error)
    return 0


def portDisable(actorcap: Any, portli: int) -> int:
    """Have them pass it over."""
    try:
        _mine(actorcap, portli).disable()
    except Exception as error:
        return _failures.status(error)
    return 0


def portMigrate(actorsrccap: Any, portli: int, actordestcap: Any, keep: bool = True) -> tuple[int, int]:
    """Give a port of the calling actor to another, with its messages or without.

    Returns:
        The number of the message that would have been received next, and the port's local identifier there:
        `K_ENOPORT`, `K_EINVAL` for the default port or one with a handler, `K_EPEERDEAD`.
    """
    try:
        return _mine(actorsrccap, portli).migrate(_actor(actordestcap), messages=bool(keep))
    except Exception as error:
        return _failures.status(error), 0


def portGetSeqNum(actorcap: Any, portli: int) -> int:
    """How many messages the port's actor has received from it; 0 after a migration."""
    try:
        return _own(portli, actorcap).received
    except Exception as error:
        return _failures.status(error)


def portUi(actorcap: Any, portli: int) -> tuple[int, int]:
    """The unique identifier of an actor's port."""
    try:
        return 0, _own(portli, actorcap).id
    except Exception as error:
        return _failures.status(error), 0


def portLi(actorcap: Any, portui: int) -> int:
    """The local identifier of a port in its actor: `K_ENOPORT` when it is another's."""
    try:
        port = _open(portui)
        if port.owner != _actor(actorcap):
            raise errors.NoPort("the port is another actor's")
        return K_DEFAULTPORT if port.is_default else port.local
    except Exception as error:
        return _failures.status(error)


def portPi(portui: int) -> tuple[int, KnProtectId | None]:
    """The protection identifier of the actor that has the port."""
    try:
        return 0, _protection(_open(portui).owner_id)
    except Exception as error:
        return _failures.status(error), None


# --- groups ----------------------------------------------------------------------------------------------------


def grpAllocate(grptype: int, stamp: int = 0) -> tuple[int, KnCap | None]:
    """Make a group, which this process keeps open.

    Args:
        grptype: `K_DYNAMIC`, or `K_STATUSER` for the group of ``stamp``.

    Returns:
        0 and its capability: `K_EEXIST` when there is a group of that stamp.
    """
    try:
        kind = _whole("grptype", grptype)
        if kind not in (K_DYNAMIC, K_STATUSER):
            raise errors.InvalidArgument(f"grptype is {kind}; it must be K_DYNAMIC or K_STATUSER")
        group = PortGroup.create(stamp=_whole("stamp", stamp) if kind == K_STATUSER else None)
        _here().groups[group.id] = group
        return 0, KnCap(group.id, group.key)
    except Exception as error:
        return _failures.status(error), None


def grpPortInsert(grpcap: KnCap, portui: int) -> int:
    """Make a port a member; one that is a member already stays one: `K_EACCESS` for another key."""
    try:
        group, key = _to_edit(grpcap)
        group.insert_port(key, _open(portui).id)
    except Exception as error:
        return _failures.status(error)
    return 0


def grpPortRemove(grpcap: KnCap, portui: int) -> int:
    """The port is no member any more: `K_ENOTFOUND` when it was none."""
    try:
        (group, key), number = _to_edit(grpcap), _ui("port", portui)
        group.remove_port(key, _open(number).id if number <= K_MAXDECLARED else number)
    except Exception as error:
        return _failures.status(error)
    return 0


def ipcTarget(target: int, mode: int = K_BROADMODE, cotarget: int | str | None = None) -> tuple[int, KnIpcDest | None]:
    """A destination: a port, or a group in one of the modes.

    Args:
        cotarget: For `K_FUNCUMODE` and `K_FUNCXMODE`: a port, or the label of a site.
    """
    try:
        dest = KnIpcDest(_whole("target", target), KnMode(_whole("mode", mode)), cotarget)
        if (cotarget is not None) != (dest.mode in (K_FUNCUMODE, K_FUNCXMODE)):
            raise errors.InvalidArgument(f"{dest.mode.name} {'needs a' if cotarget is None else 'has no'} cotarget")
        return 0, dest
    except Exception as error:
        return _failures.status(error), None


# --- messages --------------------------------------------------------------------------------------------------


def _data(data: Any) -> bytes:
    view = memoryview(data)  # TypeError for what is not bytes-like
    if view.nbytes > LIMITS.body_bytes:
        raise errors.TooLarge(f"the body has {view.nbytes} bytes, the limit is {LIMITS.body_bytes}")
    return bytes(view)


def _annex(annex: Any) -> bytes | None:
    if annex is None:
        return None
    made = _data(annex)
    if len(made) > K_CMSGANNEXSIZE:
        raise errors.TooLarge(f"the annex has {len(made)} bytes, the limit is {K_CMSGANNEXSIZE}")
    return made.ljust(K_CMSGANNEXSIZE, b"\0")


def _parts(msg: Any) -> tuple[bytes, bytes | None]:
    if not isinstance(msg, KnMsgDesc):
        raise TypeError(f"a KnMsgDesc is needed, not {type(msg).__name__}")
    return _data(msg.body), _annex(msg.annex)


def _bytes(body: Any) -> bytes:
    """A body of another interface arrives as its pickle; what was sent by value, as a lambda, is pickled so again."""
    return bytes(body) if isinstance(body, BYTES) else remote.encode(body)


def _dest(dest: Any) -> KnIpcDest:
    if not isinstance(dest, KnIpcDest):
        return KnIpcDest(_whole("target", dest))
    return dest._replace(mode=KnMode(dest.mode))  # ValueError for a number that is none


def _is_group(ui: int) -> bool:
    if ports.check_id(ui) & STATIC:
        return True
    return ui > K_MAXDECLARED and not _native.port_is_there(membership.current().member, ui)


def _target_group(dest: KnIpcDest) -> PortGroup:
    """The group that is sent to; what is neither a port nor a group is unreachable."""
    try:
        return _known_group(dest.target)
    except errors.NotFound:
        raise errors.Unreachable(f"{dest.target:#x} is neither a port nor a group") from None


def _choice(dest: KnIpcDest) -> dict[str, Any]:
    """How one member of a group is chosen."""
    if dest.mode == K_FUNCMODE:
        return {}
    which = "only" if dest.mode == K_FUNCUMODE else "never"
    try:
        return {which: dest.cotarget if isinstance(dest.cotarget, str) else _open(dest.cotarget)}
    except errors.Unreachable:
        if which == "only":
            raise
        return {}  # it is gone, and no member


def ipcSend(msg: KnMsgDesc, srcportli: int, dest: KnIpcDest | int) -> int:
    """Send a message; it does not wait.

    Args:
        srcportli: The port of the calling actor that it comes from.
        dest: From `ipcTarget`, or an identifier.

    Returns:
        How many ports have it: `K_EUNREACH`, `K_EBUSY` when none of them had room, `K_EACCESS`, `K_ETOOLARGE`.
    """
    try:
        body, annex = _parts(msg)
        where = _dest(dest)
        try:
            source = _own(srcportli, timeout=0)
            port = None if _is_group(where.target) else _open(where.target, 0)
        except errors.Timeout as error:
            raise errors.MailboxFull(str(error)) from None
        if port is not None:
            port.send(body, 0, annex=annex, source=source)
            return 1
        group = _target_group(where)
        if where.mode != K_BROADMODE:
            group.send(body, 0, annex=annex, source=source, **_choice(where))
            return 1
        result = group.broadcast(body, annex=annex, source=source)
        if not result.delivered:
            raise errors.MailboxFull("no member of the group has room")
        return len(result.delivered)
    except Exception as error:
        return _failures.status(error)


def ipcReceive(capacity: int | None, portli: int, timeout: int) -> tuple[int, KnMsgDesc | None, int]:
    """Receive the oldest message; it is the thread's current one then.

    Args:
        capacity: Bytes of the body at most, `K_ETOOSMALL` and the message stays; None: any; `K_NOBODY`: the body stays
            for `ipcGetData`.
        portli: A port of the calling actor, `K_DEFAULTPORT`, or `K_ANYENABLED` for its enabled ones.
        timeout: Milliseconds.

    Returns:
        The length of the body, the message, and the port that it came to; the argument on failure.
    """
    try:
        room = None if capacity is None else _whole("capacity", capacity)
        wait, local = _seconds(timeout), _whole("port", portli)
        if room is not None and room < K_NOBODY:
            raise errors.InvalidArgument(f"capacity is {room}; it must be at least 0, or K_NOBODY")
        most = None if room == K_NOBODY else room
        if local == K_ANYENABLED:
            port, message = ports.receive_any(wait, body=room != K_NOBODY, capacity=most)
        else:
            left = Deadline(wait)
            port = _own(local, timeout=wait)
            message = port.receive(_rest(left, wait), body=room != K_NOBODY, capacity=most)
        _thread.current = message
        body = b"" if room == K_NOBODY else _bytes(message.body)
        return len(body), KnMsgDesc(body, message.annex), K_DEFAULTPORT if port.is_default else port.local
    except Exception as error:
        return _failures.status(error), None, portli


def ipcGetData() -> tuple[int, KnMsgDesc | None]:
    """The body of the current message, which was received without it; a second time it is `K_EINVAL`.

    Returns:
        Its length, and the message.
    """
    try:
        message = _current()
        body = _bytes(message.get_data())
        return len(body), KnMsgDesc(body, message.annex)
    except Exception as error:
        return _failures.status(error), None


def ipcCall(
    msg: KnMsgDesc, srcportli: int, dest: KnIpcDest | int, capacity: int | None, timeout: int
) -> tuple[int, KnMsgDesc | None]:
    """Send a request and wait for its answer.

    Args:
        srcportli: The port of the calling actor that it comes from.
        dest: As of `ipcSend`; a group in a mode that reaches one member, else `K_EINVAL`.
        capacity: Bytes of the answer at most, what is more is `K_ETOOSMALL`; None: any.
        timeout: Milliseconds; 0 is `K_EINVAL`, for an answer needs time.

    Returns:
        The length of the answer, and the answer: `K_EUNREACH` when nobody could be asked, `K_EPEERDEAD`, `K_ETIMEOUT`.
    """
    try:
        body, annex = _parts(msg)
        room = None if capacity is None else check_count("capacity", capacity, 0, LIMITS.body_bytes)
        wait, where = _seconds(timeout), _dest(dest)
        left = Deadline(wait)
        source = _own(srcportli, timeout=wait)
        if not _is_group(where.target):
            asked: Port | PortGroup = _open(where.target, left.left())
            choice: dict[str, Any] = {}
        else:
            asked = _target_group(where)
            if where.mode == K_BROADMODE:
                raise errors.InvalidArgument("a request goes to one member of a group, not to all")
            choice = _choice(where)
        with remote.answers_as_exceptions():
            answer = asked.call(body, _rest(left, wait), annex=annex, source=source, **choice)
        made = answer if isinstance(answer, KnMsgDesc) else KnMsgDesc(_bytes(answer))
        if room is not None and len(made.body) > room:
            raise errors.BufferTooSmall(
                f"the answer has {len(made.body)} bytes, the buffer {room}", needed=len(made.body)
            )
        return len(made.body), made
    except Exception as error:
        return _failures.status(error), None


def _current() -> Message:
    if _thread.current is None:
        raise errors.InvalidArgument("this thread has no current message")
    return _thread.current


def ipcReply(msg: KnMsgDesc) -> int:
    """Answer the current message: `K_EINVAL` when it asks for no answer, `K_EABORT` when nobody waits any more."""
    try:
        body, annex = _parts(msg)
        _current().reply(body if annex is None else KnMsgDesc(body, annex))
    except Exception as error:
        return _failures.status(error)
    return 0


def ipcSave() -> int:
    """Put the current message aside, to be answered later; the thread has none then.

    Returns:
        The number for `ipcRestore`: `K_ELIMIT` when `K_MAXSAVED` are saved; the current message stays.
    """
    try:
        message = _current()
        if len(_thread.saved) >= K_MAXSAVED:
            raise errors.LimitExceeded(f"{K_MAXSAVED} messages are saved already, the limit")
        number = _thread.next_saved
        _thread.next_saved += 1
        _thread.saved[number] = message
        _thread.current = None
        return number
    except Exception as error:
        return _failures.status(error)


def ipcRestore(saved: int) -> int:
    """Make a saved message the current one again: `K_EINVAL` for a number that is none."""
    try:
        number = _whole("number", saved)
        if number not in _thread.saved:
            raise errors.InvalidArgument(f"no message is saved under {number}")
        _thread.current = _thread.saved.pop(number)
    except Exception as error:
        return _failures.status(error)
    return 0


def ipcSysInfo() -> tuple[int, KnIpcInfo | None]:
    """What the runtime knows of the current message; a sender can choose none of it."""
    try:
        message = _current()
        known = calls.request_info(message)
        protection = KnProtectId(known.identity, known.uid)
        transaction = known.transaction or 0
        target = message.group_id or message.port
        info = KnIpcInfo(known.sender, message.source_id, target, message.count, transaction, protection)
        return 0, info
    except Exception as error:
        return _failures.status(error), None


# --- handlers --------------------------------------------------------------------------------------------------


def svMsgHandler(actorcap: Any, portli: int, handler: Callable[[KnMsgDesc], object] | None) -> int:
    """Have ``handler(msg)`` called for each message of a port of the calling actor; None: no more.

    The handler is called in a thread of its own, whose current message is the one it gets; `svMsgHdlReply` answers it.
    """
    try:
        port = _mine(actorcap, portli)
        if handler is None:
            port.disconnect()
            return 0
        ports.check_handler(handler)
        handle = handler

        def serve(message: Message) -> None:
            _thread.current = message
            handle(KnMsgDesc(_bytes(message.body), message.annex))

        port.connect(serve)
    except Exception as error:
        return _failures.status(error)
    return 0


def svMsgHdlReply(msg: KnMsgDesc) -> int:
    """Answer the message that the handler got; as `ipcReply`."""
    return ipcReply(msg)
