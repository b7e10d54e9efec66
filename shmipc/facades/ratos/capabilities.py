"""Capabilities: the right to use an object, as a secret that can be handed to another process, of another user too."""

from dataclasses import dataclass
from typing import Any

from shmipc.base.errors import AccessDenied
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE, Kind, RatHandle, table
from shmipc.facades.ratos.memory import Granted, add_granted
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole
from shmipc.transport.rights import Capability, Rights
from shmipc.transport.shared_buffers import SharedBuffer


@dataclass(frozen=True)
class RatCapabilityInfo:
    """What a capability is for.

    Attributes:
        rights: RAT_RIGHT_* that it gives.
        uid: Who alone may use it; None: whoever has it.
        name: Of the memory; None: it has none.
        size: Of the memory, bytes.
        owner: Uid of the owner.
        owner_pid: Its process.
        uses: How often it was used.
    """

    rights: int
    uid: int | None
    name: str | None
    size: int
    owner: int
    owner_pid: int
    uses: int


def RatGrantCapability(handle: int, rights: int, uid: int | None = None) -> tuple[RatIpcStatus, str | None]:
    """A capability for shared memory that was made with an access list, or used by a capability: then a narrower one.

    Args:
        rights: RAT_RIGHT_READ, or with it RAT_RIGHT_WRITE.
        uid: Who alone may use it; None: whoever has the token.

    Returns:
        A line of text, which is a secret. ACCESS_DENIED: memory made without an access list, or wider rights.
    """
    try:
        memory: Any = table.find(handle, Kind.MEMORY).object
        if not isinstance(memory, Granted):
            raise AccessDenied("the memory was made without an access list, for this system alone")
        return OK, str(memory.buffer.grant(Rights(whole("rights", rights)), uid=uid))
    except Exception as error:
        return failed(error), None


def RatUseCapability(token: str, rights: int | None = None) -> tuple[RatIpcStatus, RatHandle]:
    """Accept a capability: a handle of what it is for.

    Args:
        rights: Some of those that it gives; None: all.

    Returns:
        ACCESS_DENIED: it is wrong, revoked, for another user, or its object is closed. NOT_CONNECTED: the owner has
        ended, or owns nothing any more.
    """
    try:
        wanted = None if rights is None else Rights(whole("rights", rights))
        used = Capability(token).use(wanted)
        if not isinstance(used, SharedBuffer):
            used.close()
            raise AccessDenied("the capability is for another kind of object")
        return OK, add_granted(used)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatRevokeCapability(token: str) -> RatIpcStatus:
    """Have nobody use it, or what was derived from it, from now on; what is open stays open. For the owner's user."""
    try:
        Capability(token).revoke()
    except Exception as error:
        return failed(error)
    return OK


def RatDescribeCapability(token: str) -> tuple[RatIpcStatus, RatCapabilityInfo | None]:
    """What a capability is for; errors as of `RatUseCapability`."""
    try:
        capability = Capability(token)
        told = capability.describe()
        return OK, RatCapabilityInfo(
            int(told.rights), told.uid, told.name, told.size, told.owner, told.owner_pid, told.uses
        )
    except Exception as error:
        return failed(error), None
