"""Capabilities of the ratos facade: grant, use, derive, describe, revoke, between processes."""

from typing import Any

import pytest

import shmipc
from shmipc.facades import ratos
from shmipc.facades.ratos import (
    RAT_INVALID_HANDLE,
    RAT_IPC_ERR_ACCESS_DENIED,
    RAT_IPC_ERR_INVALID_ARG,
    RAT_IPC_ERR_NOT_CONNECTED,
    RAT_IPC_ERR_NOT_FOUND,
    RAT_IPC_ERR_TIMEOUT,
    RAT_IPC_OK,
    RAT_RIGHT_READ,
    RAT_RIGHT_WRITE,
)
from tests.facades.rats import Rat, got, msg

BOTH = RAT_RIGHT_READ | RAT_RIGHT_WRITE


@pytest.fixture
def rat(system: shmipc.System) -> Any:
    return system.spawn(Rat)


@pytest.mark.row("F14")
def test_capability_gives_the_rights_that_were_granted_until_it_is_revoked(rat: Any) -> None:
    shm = got(ratos.RatCreateSharedMemory(None, 5000, access=()))
    _, addr, size = ratos.RatMapSharedMemory(shm)
    assert addr is not None
    assert (size, bytes(addr)) == (5000, bytes(5000))
    token = got(ratos.RatGrantCapability(shm, RAT_RIGHT_READ))
    assert rat.keep("m", "RatUseCapability", token) == RAT_IPC_OK
    assert rat.map("m") == -RAT_IPC_ERR_ACCESS_DENIED, "no right to write"
    assert rat.map("m", True) == 5000
    addr[:4] = b"seen"
    assert rat.read(4) == b"seen"
    assert rat.keep("n", "RatUseCapability", token, BOTH) == RAT_IPC_ERR_ACCESS_DENIED
    assert rat.do("RatGrantCapability", "@m", BOTH)[0] == RAT_IPC_ERR_ACCESS_DENIED, "wider than its own"
    told = got(ratos.RatDescribeCapability(token))
    assert (told.rights, told.uid, told.size, told.uses >= 1) == (RAT_RIGHT_READ, None, 5000, True)
    there = got(ratos.RatCreateNamedMessageQueue("there", 4))
    assert rat.keep("q", "RatOpenNamedMessageQueue", "there") == RAT_IPC_OK
    handle = got(rat.do("RatUseCapability", token))
    for place in (msg(1, handle), msg(1, 0, handle)):
        assert rat.do("RatPostMessage", "@q", place) == RAT_IPC_ERR_ACCESS_DENIED, "who gets it has no right"
    assert ratos.RatGetMessage(there, 0)[0] == RAT_IPC_ERR_TIMEOUT
    assert ratos.RatCloseMessageQueue(there) == RAT_IPC_OK
    derived = got(rat.do("RatGrantCapability", "@m", RAT_RIGHT_READ))
    assert rat.keep("d", "RatUseCapability", derived) == RAT_IPC_OK

    assert ratos.RatRevokeCapability(token) == RAT_IPC_OK
    for one in (token, derived):
        assert rat.keep("n", "RatUseCapability", one) == RAT_IPC_ERR_ACCESS_DENIED
    addr[:4] = b"open"
    assert rat.read(4) == b"open", "what is open stays open"

    wide = got(ratos.RatGrantCapability(shm, BOTH))
    assert rat.keep("w", "RatUseCapability", wide) == RAT_IPC_OK
    assert rat.map("w") == 5000
    rat.fill(b"there")
    assert bytes(addr[:5]) == b"there"
    forged = wide[:-1] + ("0" if wide[-1] != "0" else "1")
    assert rat.keep("n", "RatUseCapability", forged) == RAT_IPC_ERR_ACCESS_DENIED
    for wrong in ("", "no capability", None, 5):
        assert ratos.RatUseCapability(wrong) == (RAT_IPC_ERR_INVALID_ARG, RAT_INVALID_HANDLE)  # type: ignore[arg-type]
    assert ratos.RatUnmapSharedMemory(addr, size) == ratos.RatCloseSharedMemory(shm) == RAT_IPC_OK
    assert rat.keep("n", "RatUseCapability", wide) in (
        RAT_IPC_ERR_ACCESS_DENIED,
        RAT_IPC_ERR_NOT_CONNECTED,  # nobody is there to ask, with the last object of the process
    ), "its object is closed"


def test_memory_with_an_access_list_is_found_by_its_name_and_travels_by_capability_only(rat: Any) -> None:
    q = got(ratos.RatCreateMessageQueue(4))
    shm = got(ratos.RatCreateSharedMemory("/listed", 100, access=()))
    assert ratos.RatPostMessage(q, msg(1, shm)) == RAT_IPC_ERR_ACCESS_DENIED
    assert rat.keep("m", "RatOpenSharedMemory", "listed") == RAT_IPC_OK, "the same user"
    assert rat.keep("m", "RatOpenSharedMemory", "unlisted") == RAT_IPC_ERR_NOT_FOUND
    plain = got(ratos.RatCreateSharedMemory(None, 100))
    assert ratos.RatGrantCapability(plain, RAT_RIGHT_READ) == (RAT_IPC_ERR_ACCESS_DENIED, None)
    assert ratos.RatCreateSharedMemory("x", 10, True, access=())[0] == RAT_IPC_ERR_INVALID_ARG
    for handle in (plain, shm):
        assert ratos.RatCloseSharedMemory(handle) == RAT_IPC_OK
    ratos.RatCloseMessageQueue(q)
