"""``shmipc ps``: the processes of this user's systems, what each runs or waits for, the stuck ones first."""

from typing import Any

from shmipc.tools.looks import Look, label, looks

STUCK_SECONDS = 10.0
BLOCKING = ("send", "call")  # waits that somebody else has to end; a receive may be an actor at rest


def cycles(members: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The slots that are on a circle of waiting calls, each with its circle."""
    peers: dict[int, list[int]] = {
        member["slot"]: [entry["peer"] for entry in member["activities"] if entry["waits"] == "call" and entry["peer"]]
        for member in members
    }
    found: dict[int, list[int]] = {}
    for start in peers:
        if start in found:
            continue
        path = [start]
        if walk(peers, path, set()):
            for slot in path:
                found[slot] = path
    return found


def walk(peers: dict[int, list[int]], path: list[int], seen: set[int]) -> bool:
    """Extend the path until it is back at its start."""
    for slot in peers.get(path[-1], ()):
        if slot == path[0]:
            return True
        if slot not in seen:
            seen.add(slot)
            path.append(slot)
            if walk(peers, path, seen):
                return True
            path.pop()
    return False


def why_stuck(member: dict[str, Any], circle: list[int] | None, by_slot: dict[int, Any], limit: float) -> str | None:
    """Why it counts as stuck; None: it does not."""
    if member["process"] == "ended":
        return "has ended, and nobody has reaped it yet"
    if member["process"] == "stopped":
        return "is stopped by a signal; SIGCONT lets it go on"
    if circle is not None:
        return "waits in a circle of calls: " + " -> ".join(label(by_slot.get(slot)) for slot in [*circle, circle[0]])
    for entry in member["activities"]:
        if entry["waits"] in BLOCKING and entry["waits_for"] >= limit:
            return f"has waited {entry['waits_for']:.0f} s"
        busy = entry["waits"] not in ("receive", "any port") and (entry["runs_for"] or 0.0) >= limit
        if busy and member["depth"]:
            return f"has run {entry['runs']} for {entry['runs_for']:.0f} s, and {member['depth']} messages wait"
    return None


def doing(entry: dict[str, Any], by_slot: dict[int, Any], boxes: dict[int, Any]) -> str:
    words = []
    if entry["runs"] is not None:
        words.append(f"runs {entry['runs']} {entry['runs_for']:.1f} s")
    if entry["waits"] == "call":
        words.append(f"waits for a reply of {label(by_slot.get(entry['peer']))} {entry['waits_for']:.1f} s")
    elif entry["waits"] == "future":
        words.append(f"waits for calls it has submitted {entry['waits_for']:.1f} s")
    elif entry["waits"] == "any port":
        words.append(f"waits for a message in any of its ports {entry['waits_for']:.1f} s")
    elif entry["waits"] in ("frame", "publish"):
        what = "a frame of" if entry["waits"] == "frame" else "room on"
        words.append(f"waits for {what} bus {entry['object']} {entry['waits_for']:.1f} s")
    elif entry["waits"] == "sync":
        words.append(f"waits for object {entry['object']} {entry['waits_for']:.1f} s")
    elif entry["waits"] is not None:
        box = boxes.get(entry["object"], {})
        name = f"mailbox {box.get('name') or entry['object']}"
        if box.get("kind") == "actor":
            owner = by_slot.get(box["owner"])
            name = f"the mailbox of {label(owner)}"
        what = "room in" if entry["waits"] == "send" else "a message in"
        fill = f" [{box['depth']}/{box['capacity']}]" if box else ""
        words.append(f"waits for {what} {name}{fill} {entry['waits_for']:.1f} s")
    return ", ".join(words)


def described(look: Look, limit: float) -> dict[str, Any]:
    """A look as what is printed."""
    by_slot = {member["slot"]: member for member in look.members}
    boxes = {box["index"]: box for box in look.mailboxes}
    circles = cycles(look.members)
    made = []
    for member in look.members:
        slot = member["slot"]
        entry = {key: member[key] for key in ("pid", "name", "kind", "state", "process", "depth", "capacity")}
        entry["memory_bytes"] = member["memory_bytes"]
        entry["failed_casts"] = member["failed_casts"]
        entry["stuck"] = why_stuck(member, circles.get(slot), by_slot, limit) if look.state == "alive" else None
        entry["cycle"] = [by_slot[other]["pid"] for other in circles[slot]] if slot in circles else None
        entry["threads"] = [
            activity
            | {
                "peer": by_slot[activity["peer"]]["pid"] if activity["peer"] in by_slot else None,
                "text": doing(activity, by_slot, boxes),
            }
            for activity in member["activities"]
        ]
        made.append(entry)
    made.sort(key=rank)
    return {
        "name": look.name,
        "state": look.state,
        "bytes": look.bytes,
        "counters": look.header,
        "members": made,
        "mailboxes": [
            box | {"owner": by_slot[box["owner"]]["pid"] if box["owner"] in by_slot else None}
            for box in look.mailboxes
            if box["kind"] != "actor"
        ],
    }


def rank(entry: dict[str, Any]) -> tuple[bool, float, int]:
    """Stuck ones first, then those that have been at one thing the longest; at rest last."""
    longest = max(
        ((thread["waits_for"] if thread["waits"] not in ("receive", "any port") else None) or thread["runs_for"] or 0.0)
        for thread in [*entry["threads"], {"waits_for": 0.0, "waits": None, "runs_for": None}]
    )
    return entry["stuck"] is None, -longest, entry["pid"]


def size(count: int) -> str:
    """Bytes for people."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def as_text(systems: list[dict[str, Any]]) -> str:
    lines = []
    for system in systems:
        lines.append(f"system {system['name']}: {system['state']}, {size(system['bytes'])} of /dev/shm")
        for entry in system["members"]:
            fill = "-" if entry["depth"] is None else f"{entry['depth']}/{entry['capacity']}"
            lines.append(
                f"  {entry['pid']:>8} {entry['name'] or '-':<16.16} {entry['kind']:<8} {entry['process']:<11}"
                f" mailbox {fill:<9} holds {size(entry['memory_bytes'])}"
            )
            if entry["stuck"]:
                lines.append(f"           STUCK: it {entry['stuck']}")
            lines += [f"           {thread['text']}" for thread in entry["threads"]]
        for box in system["mailboxes"]:
            owner = f", made by {box['owner']}" if box["owner"] else ""
            lines.append(f"  mailbox {box['name'] or box['index']}: {box['depth']}/{box['capacity']}{owner}")
    return "\n".join(lines) if lines else "no systems"


def run(names: list[str], limit: float) -> tuple[list[dict[str, Any]], bool]:
    """What is to be printed, and whether anything is stuck or dead; raises NotFound, InvalidArgument."""
    systems = [described(look, limit) for look in looks(names)]
    found = any(
        system["state"] != "alive" or any(member["stuck"] for member in system["members"]) for system in systems
    )
    return systems, found
