"""Timers: messages of kind TIMER that come later.

A native thread of this process, started with the first timer, sends them, also while the interpreter is busy. A tick
needs no slot: no traffic can suppress it. Never early, on the monotonic clock.
"""

from collections.abc import Callable
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.actor.calls import box_of
from shmipc.base.errors import InvalidArgument
from shmipc.transport.messages import check_tag


class Timer:
    """A message that is to come, once or each period; made by `send_after` and `send_every`.

    Dropping the Timer does not end it; the end of its process does. A tick that had come by then is received all the
    same. Periods that are late, because this process was stopped or the last tick was not received, are one tick.
    """

    def __init__(self, id: int, number: int, member: _native.Member | None) -> None:
        self._id = id
        self._number = number
        self._member = member
        self._cancelled = False

    @property
    def id(self) -> int:
        """Unique in the system; the tag of its messages, unless another was given."""
        return self._id

    def cancel(self) -> bool:
        """End it; a tick that has come and was not received is taken out of the mailbox.

        Returns:
            False when its only tick was received already, or its mailbox is gone.

        Raises:
            InvalidArgument: It was cancelled before, or this process has no such timer: it is another's.
        """
        if self._member is None:
            raise InvalidArgument(f"timer {self._id} is none of this process")
        if self._cancelled:
            raise InvalidArgument(f"timer {self._id} was cancelled before")
        self._cancelled = True
        return self._member.cancel_timer(self._number)

    def __reduce__(self) -> tuple[Callable[..., "Timer"], tuple[int, int, None]]:
        return Timer, (self._id, self._number, None)

    def __repr__(self) -> str:
        return f"<Timer {self._id:#x}{' cancelled' if self._cancelled else ''}>"


def send_after(delay: float, to: Any, body: Any, *, tag: int | None = None) -> Timer:
    """Send a message of kind TIMER once, after ``delay`` seconds at least; 0: at once.

    Args:
        to: A Ref, a Mailbox, or the name that either is served under now.
        body: Anything that pickles to 400 bytes or less.
        tag: 1 to 2**60 - 1; None: the timer's id.

    Raises:
        InvalidArgument: A delay below 0, or a tag that cannot be sent.
        TooLarge: The body takes more than 400 bytes.
        PeerDead, NotFound: The receiver has ended, or nobody has that name.
    """
    return set_timer(delay, None, to, body, tag)


def send_every(period: float, to: Any, body: Any, *, tag: int | None = None) -> Timer:
    """Send a message of kind TIMER each ``period`` seconds, the first after one period; as `send_after`."""
    return set_timer(period, period, to, body, tag)


def set_timer(delay: float, period: float | None, to: Any, body: Any, tag: int | None) -> Timer:
    box = box_of(to)
    if isinstance(box, refs.ActorBox) and not box.member.lives(box.owner_id):
        raise refs.peer_dead(box.member, box.owner_id)
    number = check_tag(tag)
    id = box.member.generate_tag()
    return Timer(id, box.set_timer(body, number or id, delay, period), box.member)
