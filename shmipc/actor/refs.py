"""Refs: what one holds of an actor. ``ref.m`` is method ``m`` of the actor's class, and nothing else.

A Ref has no public attribute of its own; what concerns the actor as a process is reached by functions. Names with
a leading underscore are never remote, so copy, numpy and IPython may probe a Ref.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from shmipc import _native
from shmipc.base.errors import NoSuchMethod, NotFound, PeerDead, ShmipcError
from shmipc.memory import membership
from shmipc.memory.membership import Membership

T = TypeVar("T")

HOOKS = frozenset({"on_message", "on_stop"})  # called by the loop, not by others
DESCRIBE = "__describe__"  # asks an actor for its description
DESCRIBE_SECONDS = 1.0
KNOWN_LIMIT = 8192


class ActorBox(_native.Box):
    """An actor's mailbox as others have it open."""


class Description:
    """What a Ref knows of its actor's class.

    Attributes:
        kind: Name of the class or function.
        names: Its public methods.
    """

    __slots__ = ("kind", "names")

    def __init__(self, kind: str, names: frozenset[str]) -> None:
        self.kind = kind
        self.names = names

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return describe_again, (self.kind, ",".join(sorted(self.names)))


def describe_again(kind: str, names: str) -> Description:
    key = (kind, names)
    if key not in _descriptions:
        _descriptions[key] = Description(kind, frozenset(names.split(",")) if names else frozenset())
    return _descriptions[key]


_descriptions: dict[tuple[str, str], Description] = {}
_known: dict[tuple[str, int], Description] = {}  # by system and member id; what this process has heard of


def describe(target: Any) -> Description:
    """The description of an actor that runs ``target``: a class, or a function, which has no methods."""
    if not inspect.isclass(target):
        return Description(getattr(target, "__name__", type(target).__name__), frozenset())
    names = (name for name in dir(target) if not name.startswith("_") and name not in HOOKS)
    methods = frozenset(name for name in names if callable(getattr(target, name, None)))
    return Description(target.__name__, methods)


class Handle:
    """What a Ref and its methods share: how this process reaches the actor. It does not know the Ref, so that a
    Ref which is dropped gives back the mailbox at once.

    Args:
        system: Name of the actor's system.
        member: This process's member of it; None: found at first use.
        id: The actor's member id.
        about: Its description, None when nobody has said it yet.
    """

    __slots__ = ("about", "asked", "box", "id", "member", "system")

    def __init__(self, system: str, member: _native.Member | None, id: int, about: Description | None) -> None:
        self.system = system
        self.member = member
        self.id = id
        self.about = about
        self.box: _native.Box | None = None
        self.asked = False

    def use(self) -> _native.Member:
        """The member through which this process reaches the actor; raises NotFound, ForkedHandle."""
        if self.member is None:
            self.member = membership.find(self.system).member
        return self.member

    def open(self, timeout: float | None = None) -> _native.Box:
        """The actor's mailbox, opened at first use; raises PeerDead, and Timeout: see `open_mailbox`."""
        if self.box is None or self.box.closed:
            self.box = open_mailbox(self.use(), self.id, timeout)
        return self.box

    def describe(self) -> Description | None:
        """What is known of the class; asks the actor once, and waits a second at most."""
        if self.about is None:
            self.about = _known.get((self.system, self.id))
            if self.about is None and not self.asked:
                self.asked = True
                self.about = ask(self)
        return self.about

    def __repr__(self) -> str:
        about = self.about or _known.get((self.system, self.id))
        words = ["Ref", about.kind if about else "?"]
        record = record_of(self.member, self.id)
        if record is None:
            words.append("ended" if self.member is not None else "of another system")
        else:
            if record["name"]:
                words.append(f'"{record["name"]}"')
            words.append(f"pid {record['pid']}")
        return f"<{' '.join(words)}>"


class ActorRef:
    """The address of an actor; picklable, hashable, equal when it names the same life of the same process.

    Dropping it stops nothing. ``Ref[T]`` is ``T`` itself for type checkers.
    """

    _shm: Handle

    def __init__(self, system: str, member: _native.Member | None, id: int, about: Description | None) -> None:
        self.__dict__["_shm"] = Handle(system, member, id, about)
        if about is not None:
            know(system, id, about)

    def __class_getitem__(cls, kind: Any) -> Any:
        return Annotated[kind, cls]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; such names are never remote")
        about = self._shm.describe()
        if about is not None and name not in about.names:
            raise no_such_method(name, about.kind, about.names, self)
        method = _native.Method(self._shm, name, self._shm.open)
        self.__dict__[name] = method
        return method

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Ref has no attribute {name!r} to set; call a method of the actor")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Ref has no attribute {name!r} to delete")

    def __dir__(self) -> list[str]:
        about = self._shm.describe()
        return sorted([*object.__dir__(self), *(about.names if about else ())])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorRef) or "_shm" not in other.__dict__:
            return NotImplemented  # the Ref of a name is none of a life
        return self._shm.id == other._shm.id and self._shm.system == other._shm.system

    def __hash__(self) -> int:
        return hash((self._shm.system, self._shm.id))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return restore, (self._shm.system, self._shm.id, self._shm.about)

    def __copy__(self) -> "ActorRef":
        return self

    def __deepcopy__(self, memo: Any) -> "ActorRef":
        return self

    def __repr__(self) -> str:
        return repr(self._shm)


if TYPE_CHECKING:
    Ref = Annotated[T, "the address of an actor"]
else:
    Ref = ActorRef
    ActorRef.__name__ = ActorRef.__qualname__ = "Ref"


def restore(system: str, id: int, about: Description | None) -> ActorRef:
    """Make a Ref that another process pickled; it is bound to a member at first use."""
    try:
        member: _native.Member | None = membership.find(system).member
    except ShmipcError:
        member = None
    return ActorRef(system, member, id, about)


def make_ref(member: _native.Member, id: int) -> ActorRef | None:
    """The Ref of a member id; None for nobody."""
    if id == 0:
        return None
    found = membership.of_member(member)
    system = found.name if found is not None else ""
    return ActorRef(system, member, id, _known.get((system, id)))


def own_ref(found: Membership) -> ActorRef:
    """The Ref of this process."""
    id = found.member.id
    return ActorRef(found.name, found.member, id, _known.get((found.name, id), NOBODY))


def know(system: str, id: int, about: Description) -> None:
    """Remember the description of an actor; the oldest are forgotten."""
    if len(_known) >= KNOWN_LIMIT:
        for key in list(_known)[: KNOWN_LIMIT // 2]:
            _known.pop(key, None)
    _known[system, id] = about


def forget_system(name: str) -> None:
    """Ids begin anew in a later system of this name."""
    for key in [key for key in list(_known) if key[0] == name]:
        _known.pop(key, None)


NOBODY = Description("Process", frozenset())  # a process that is no actor has no methods


def check_ref(ref: object) -> ActorRef:
    """The Ref, or TypeError."""
    if not isinstance(ref, ActorRef):
        raise TypeError(f"a Ref is needed, not {type(ref).__name__}")
    return ref


def id_in(ref: object, member: _native.Member) -> int:
    """The member id of a Ref of that system.

    Raises:
        TypeError: It is no Ref.
        InvalidArgument: It is of another system, where the number is somebody else's.
    """
    handle = check_ref(ref)._shm
    membership.check_same(ref, handle.member, handle.system, member)
    return handle.id


def id_here(ref: object) -> int:
    """The same in the current system."""
    return id_in(ref, membership.current().member)


def no_such_method(name: str, kind: str, names: frozenset[str], obj: Any = None) -> NoSuchMethod:
    near = difflib.get_close_matches(name, sorted(names), 3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    error = NoSuchMethod(f"{kind} has no public method {name!r}{hint}")
    error.name = name
    error.obj = obj if isinstance(obj, ActorRef) else None
    return error


def record_of(member: _native.Member | None, id: int) -> dict[str, Any] | None:
    """The member table's record of a living member."""
    if member is None or member.closed or member.forked:
        return None
    for record in member.members():
        if record["id"] == id:
            return record
    return None


def open_mailbox(member: _native.Member, id: int, timeout: float | None = None) -> _native.Box:
    """Open the mailbox of a living member.

    Raises:
        PeerDead: It has ended, and how.
        Timeout: For ``timeout`` seconds a process has been stopped in the midst of opening it too.
    """
    try:
        index, life = member.box_of(id)
        box: _native.Box = member.open_box(index, life, cls=ActorBox, timeout=timeout)
    except NotFound:
        raise peer_dead(member, id) from None
    return box


def peer_dead(member: _native.Member, id: int) -> PeerDead:
    """The error that says how this life ended."""
    reason, exitcode, signal = member.cause(id)
    end = f"signal {signal}" if signal is not None else f"exit code {exitcode}" if exitcode is not None else "no status"
    hint = member.hint(id)
    text = f"the actor has ended: {reason}, {end}" + (f" ({hint})" if hint else "")
    return PeerDead(text, reason=reason, exitcode=exitcode, signal=signal, hint=hint)


def ask(handle: Handle) -> Description | None:
    """Ask an actor what it is; None when it does not say within a second, or has ended."""
    _native.shield(1)  # an abort is for what is asked next
    try:
        member = handle.use()
        record = record_of(member, handle.id)
        if record is None:
            return None
        if record["kind"] != _native.WORKER or handle.id == member.id:
            return NOBODY
        answer = handle.open(DESCRIBE_SECONDS).submit((DESCRIBE, (), {}), flags=_native.METHOD).result(DESCRIBE_SECONDS)
    except ShmipcError:
        return None
    finally:
        _native.shield(-1)
    if not isinstance(answer, Description):
        return None
    know(handle.system, handle.id, answer)
    return answer
