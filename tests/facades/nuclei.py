"""Processes that use the interface of the ChorusOS nucleus; apart from the tests: a worker need not import pytest."""

import os
import threading
from typing import Any

from shmipc.facades import chorus
from shmipc.facades.chorus import K_DEFAULTPORT, K_MYACTOR, KnIpcDest, KnMsgDesc


class Nucleus:
    """An actor that does what it is told, in the interface's own words."""

    def __init__(self) -> None:
        self.threads: list[tuple[threading.Thread, list[Any]]] = []

    def pid(self) -> int:
        return os.getpid()

    def do(self, name: str, *args: Any) -> Any:
        return getattr(chorus, name)(*args)

    def begin(self, name: str, *args: Any) -> int:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(getattr(chorus, name)(*args)), daemon=True)
        thread.start()
        self.threads.append((thread, found))
        return len(self.threads) - 1

    def end(self, place: int) -> Any:
        thread, found = self.threads[place]
        thread.join(20.0)
        return found[0]

    def echo(self, portli: int, count: int) -> list[Any]:
        """Answer so many requests with what they say; what is known of each."""
        known = []
        for _ in range(count):
            length, msg, _ = chorus.ipcReceive(None, portli, 20_000)
            assert length >= 0, chorus.detail()
            assert msg is not None
            known.append(chorus.ipcSysInfo()[1])
            assert chorus.ipcReply(msg) == 0, chorus.detail()
        return known

    def save_all(self, portli: int, count: int) -> list[int]:
        """Answer so many requests in another order; the numbers they were saved under."""
        saved = []
        for _ in range(count):
            assert chorus.ipcReceive(None, portli, 20_000)[0] >= 0, chorus.detail()
            saved.append(chorus.ipcSave())
        for number in reversed(saved):
            assert chorus.ipcRestore(number) == 0
            assert chorus.ipcReply(KnMsgDesc(b"%d" % number)) == 0
        return saved

    def ask(self, dest: KnIpcDest | int, body: bytes) -> Any:
        return chorus.ipcCall(KnMsgDesc(body), K_DEFAULTPORT, dest, None, 20_000)

    def make(self) -> tuple[int, int]:
        return chorus.portCreate(K_MYACTOR)
