"""Processes that use exokernel mailboxes; apart from the tests, so that a worker need not import pytest."""

import os
import signal
import struct
import time

from shmipc.facades.exokernel import EXO_IPC_STATUS_SUCCESS, mbox_open, mbox_recv, mbox_send

MSG = struct.Struct("<ii56x")  # who, number


def msg(number: int, mine: int = 0) -> bytes:
    return MSG.pack(mine, number)


class User:
    """A process that uses mailboxes by their names."""

    def pid(self) -> int:
        return os.getpid()

    def echo(self, count: int) -> None:
        req, resp = mbox_open("req"), mbox_open("resp")
        for _ in range(count):
            assert mbox_send(resp, mbox_recv(req)[1]) == EXO_IPC_STATUS_SUCCESS

    def send(self, name: str, numbers: list[int], ticks: int = 0, slots: int = 64) -> list[tuple[int, float]]:
        """Send each; its status and the moment it was sent."""
        m = mbox_open(name, slots=slots)
        return [(int(mbox_send(m, msg(number), ticks)), time.monotonic()) for number in numbers]

    def receive(self, name: str, count: int, ticks: int = 0, slots: int = 64) -> list[tuple[int, bytes, float]]:
        m = mbox_open(name, slots=slots)
        return [(*mbox_recv(m, ticks), time.monotonic()) for _ in range(count)]

    def produce(self, name: str, mine: int, count: int) -> None:
        m = mbox_open(name)
        for number in range(count):
            assert mbox_send(m, msg(number, mine)) == EXO_IPC_STATUS_SUCCESS

    def consume(self, name: str) -> list[tuple[int, int]]:
        """Everything until a negative number."""
        m = mbox_open(name)
        found: list[tuple[int, int]] = []
        while not found or found[-1][1] >= 0:
            found.append(MSG.unpack(mbox_recv(m)[1]))
        return found[:-1]

    def send_until_told(self, name: str, mine: int) -> int:
        m, sent = mbox_open(name, slots=4), 0
        while mbox_send(m, msg(sent, mine), 200) == EXO_IPC_STATUS_SUCCESS:
            sent += 1
        return sent

    def storm(self, name: str, pid: int) -> None:
        """Wake others without end: by signals, and by messages and room that others take first."""
        m = mbox_open(name, slots=1)
        while True:
            os.kill(pid, signal.SIGUSR1)
            mbox_send(m, msg(0))
            mbox_recv(m)

    def block_for_ever(self, name: str, mine: int, what: str) -> None:
        m = mbox_open(name, slots=4)
        while True:
            if what == "send":
                mbox_send(m, msg(-1, mine))
            else:
                mbox_recv(m)
