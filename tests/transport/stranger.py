"""A process of a plain user that does what it is told, a line at a time; see users.py.

It drops its privileges after its imports: the sources need not be readable for it.
"""

import ctypes
import fcntl
import json
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

import shmipc
from shmipc import _native
from shmipc.memory import sealed
from shmipc.transport import grantor, rights

KNOWN = (ctypes, fcntl, mmap, pickle, signal, socket, threading, time, np, shmipc, _native, sealed, grantor, rights)


def raw(capability: str, wanted: int) -> list[int]:
    """What a program gets that keeps the descriptors, as ours does not."""
    meant = shmipc.Capability(capability)
    reply = meant._ask(rights.Verb.USE, 5.0, rights=wanted)
    found, reply.descriptors = reply.descriptors, []
    kept.append(reply)
    return found


def error_of(act: Any) -> str | None:
    """The name of the exception's class and what an OSError says; None: none was raised."""
    try:
        act()
    except Exception as error:
        number = getattr(error, "errno", None)
        return type(error).__name__ + (f" {number}" if number else "")
    return None


def map_of(descriptor: int, nbytes: int, protection: int) -> mmap.mmap:
    return mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, protection)


kept: list[Any] = []


def main() -> None:
    uid = int(sys.argv[1])
    os.setgroups([int(gid) for gid in sys.argv[2:]])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    names: dict[str, Any] = {**globals(), "Rights": shmipc.Rights, "Access": shmipc.Access}
    for line in sys.stdin:
        told = json.loads(line)
        try:
            if told["value"]:
                answer = {"value": eval(told["text"], names)}
            else:
                exec(told["text"], names)
                answer = {"value": None}
            text = json.dumps(answer, default=repr)
        except Exception as error:
            text = json.dumps({"error": type(error).__name__, "text": str(error)})
        print(text, flush=True)


if __name__ == "__main__":
    main()
