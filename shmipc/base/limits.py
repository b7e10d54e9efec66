"""The limits of shmipc in one record. Beyond one: `LimitExceeded` with value and limit."""

from dataclasses import dataclass

from shmipc.base.errors import InvalidArgument, LimitExceeded


@dataclass(frozen=True)
class Limits:
    """What a system holds at most, and what it starts with.

    Attributes:
        members: Processes of one system when nothing is said; at most ``max_members``.
        mailboxes: Mailboxes of one system.
        slots: Messages undelivered in one mailbox when nothing is said, exact; at most ``max_slots``.
        slot_bytes: Bytes of a body held in its slot when nothing is said; larger bodies go to a block.
        body_bytes: Size of one body.
        memory_limit: Smallest heap of a system in bytes; the default is half of what /dev/shm has free.
        calls: Calls in flight of one process; then submit waits.
        waitables: Objects in one wait.
        frames: Frames kept by a bus when nothing is said; at most ``max_frames``.
        readers: Readers of a bus at a time when nothing is said; at most ``max_readers``.
        name_length: Characters of a name.
        tag: Largest tag of a user.
    """

    members: int = 1024
    max_members: int = 65_534
    mailboxes: int = 4096
    slots: int = 1024
    max_slots: int = 1 << 20
    slot_bytes: int = 256
    min_slot_bytes: int = 8
    max_slot_bytes: int = 65_536
    body_bytes: int = 1 << 30
    memory_limit: int = 8 << 20
    calls: int = 16_384
    waitables: int = 1024
    frames: int = 8
    max_frames: int = 4096
    readers: int = 64
    max_readers: int = 1024
    name_length: int = 64
    tag: int = (1 << 60) - 1


LIMITS = Limits()


def check_count(what: str, value: int, least: int, most: int) -> int:
    """The value, if it is an int from ``least`` to ``most``.

    Raises:
        TypeError: Not an int.
        InvalidArgument: Below ``least``.
        LimitExceeded: Above ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if value < least:
        raise InvalidArgument(f"{what} is {value}, the least is {least}")
    if value > most:
        raise LimitExceeded(f"{what} is {value}, the limit is {most}")
    return value
