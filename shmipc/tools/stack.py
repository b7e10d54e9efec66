"""``shmipc stack``: the Python stacks of the members of this user's systems, told by themselves.

Each member has a door, an abstract socket that its native thread attends to, so neither the right to trace nor a
free interpreter is needed; see native/binding/stacks.h.
"""

import os
import re
import socket
import struct
from typing import Any

from shmipc import _native
from shmipc.tools.looks import Look, label, looks

ANSWER_SECONDS = 5.0
THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[(.*)\])?.*:$")
FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')


def ask(member: dict[str, Any]) -> tuple[str, bool, str]:
    """How it went (told, stopped, ended, elsewhere, no door, no answer), whether the interpreter's lock was free,
    and the text."""
    if member["process"] in ("stopped", "ended", "elsewhere", "not started"):
        return member["process"], False, ""
    if member["door"] < 0:
        return "no door", False, ""
    parts = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(f"\0{member['door']:05x}")
            pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if (pid, uid) != (member["pid"], os.geteuid()):
                return "no door", False, ""  # it has ended, and the name is another's by now
            while part := connection.recv(65536):
                parts.append(part)
    except OSError:
        state = _native.process_state(member["pid"], member["start_time"])
        return (state if state in ("stopped", "ended") else "no answer"), False, ""
    head, _, text = b"".join(parts).decode("utf-8", "replace").partition("\n")
    if not head:
        return "no answer", False, ""
    return "told", head == "lock free", text


def threads_in(text: str) -> list[dict[str, Any]]:
    """The stacks of a text, the innermost frame first."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if match := THREAD.match(line):
            found.append({"thread": int(match[1], 16), "name": match[2], "frames": []})
        elif found and (match := FRAME.match(line)):
            number = int(match[2]) if match[2].isdigit() else None
            found[-1]["frames"].append({"file": match[1], "line": number, "function": match[3]})
    return found


def described(look: Look, pids: set[int]) -> dict[str, Any]:
    members = []
    for member in sorted(look.members, key=lambda member: int(member["identity"])):
        if pids and member["pid"] not in pids:
            continue
        status, lock_free, text = ask(member)
        members.append(
            {
                "pid": member["pid"],
                "name": member["name"],
                "kind": member["kind"],
                "status": status,
                "lock_free": lock_free if status == "told" else None,
                "threads": threads_in(text),
            }
        )
    return {"name": look.name, "state": look.state, "members": members}


def as_text(systems: list[dict[str, Any]]) -> str:
    lines = []
    for system in systems:
        lines.append(f"system {system['name']}: {system['state']}")
        for member in system["members"]:
            note = {None: "", True: "", False: "; the interpreter's lock is held, by C code that does not return"}
            lines.append(f"  {label(member)}, {member['kind']}: {member['status']}{note[member['lock_free']]}")
            for thread in member["threads"]:
                lines.append(f"    thread {thread['name'] or hex(thread['thread'])}, innermost first")
                lines += [
                    f"      {frame['file']}:{frame['line'] or '?'} {frame['function']}" for frame in thread["frames"]
                ]
    return "\n".join(lines) if lines else "no systems"


def run(targets: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """What is to be printed, and whether a member did not tell; a target that is a number is a pid."""
    pids = {int(target) for target in targets if target.isdigit()}
    names = [target for target in targets if not target.isdigit()]
    systems = [described(look, pids) for look in looks(names)]
    if pids:
        systems = [system for system in systems if system["members"]]
    found = any(member["status"] != "told" for system in systems for member in system["members"])
    known = {member["pid"] for system in systems for member in system["members"]}
    return systems, found or not pids <= known
