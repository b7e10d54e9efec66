"""Refs that follow a name: they mean whoever has it at the moment, and so survive the restart of an actor."""

from collections.abc import Callable
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.actor.refs import ActorRef, Description
from shmipc.base.deadlines import check_timeout, poll
from shmipc.base.errors import NotFound
from shmipc.memory import membership


class NamedRef(ActorRef):
    """The address of a name; picklable, hashable, equal when it is the same name of the same system.

    Each use finds the actor that has the name then. A method that was looked up, ``m = ref.m``, stays the method of
    that life. Nothing is repeated: a call under way when the actor dies raises PeerDead.

    Args:
        system: Name of the system.
        name: The actor's name in it.
        about: What its class is known to be; None: asked for.
        wait: Seconds a use waits for somebody to have the name.
    """

    def __init__(self, system: str, name: str, about: Description | None = None, wait: float = 0.0) -> None:
        check_timeout(wait)
        self.__dict__.update(_system=system, _name=name, _about=about, _wait=wait, _life=None)

    @property
    def _shm(self) -> Any:  # type: ignore[override]  # nobody sets it
        return self._current()._shm

    def _current(self) -> ActorRef:
        """The Ref of the life that has the name.

        Raises:
            PeerDead: Nobody has it, and the last one known has ended.
            NotFound: Nobody has it, and nobody is known to have had it, or who had it lives on without it.
        """
        life: ActorRef | None = self.__dict__["_life"]
        member = membership.find(self.__dict__["_system"]).member
        try:
            id = poll(lambda: self._look(member), self.__dict__["_wait"])
        except NotFound:
            if life is None or member.lives(life._shm.id):
                raise
            raise refs.peer_dead(member, life._shm.id) from None
        if life is None or life._shm.id != id or life._shm.member is not member:
            life = ActorRef(self.__dict__["_system"], member, id, self.__dict__["_about"])
            self.__dict__["_life"] = life
        return life

    def _look(self, member: _native.Member) -> int:
        name = self.__dict__["_name"]
        kind, _, id = member.lookup_name(name)
        if kind != _native.NAME_ACTOR:
            raise NotFound(f"{name!r} names no actor")
        if not member.lives(id):
            raise NotFound(f"the actor that has the name {name!r} has ended")
        return id

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; such names are never remote")
        about: Description | None = self.__dict__["_about"]
        if about is not None and name not in about.names:
            raise refs.no_such_method(name, about.kind, about.names, self)
        return getattr(self._current(), name)

    def __dir__(self) -> list[str]:
        about: Description | None = self.__dict__["_about"]
        return sorted([*object.__dir__(self), *(about.names if about else ())])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NamedRef):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str]:
        return self.__dict__["_system"], self.__dict__["_name"]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return NamedRef, (*self._key(), self.__dict__["_about"], self.__dict__["_wait"])

    def __repr__(self) -> str:
        about: Description | None = self.__dict__["_about"]
        return f'<Ref {about.kind if about else "?"} named "{self.__dict__["_name"]}">'
