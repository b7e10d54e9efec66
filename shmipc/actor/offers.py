"""Offers: messages that wait with their sender until their receiver pulls them.

An offer never waits for the receiver, who may be busy or stopped: there is one queue for each pair of processes, of
`OFFERS_AT_MOST` messages, and what does not fit is refused. The receiver is notified: bit `OFFERED` is set in its
mailbox, see `notify`, and set again as long as more is left after a pull. A queue ends with either of the two; what was
in it is counted as undelivered.

Source: native/transport/offer.c.
"""

from typing import Any, Final

from shmipc import _native
from shmipc.actor import refs
from shmipc.actor.calls import box_of
from shmipc.memory import membership

OFFERED: Final[int] = _native.OFFER_BIT  # of a notification: some process offers something
OFFERS_AT_MOST: Final[int] = _native.OFFER_SLOTS  # from one process to another


def offer(to: object, body: Any) -> None:
    """Leave a message for a process to pull, oldest first.

    Args:
        to: A Ref, or the name of an actor.
        body: Anything that pickles.

    Raises:
        MailboxFull: It has `OFFERS_AT_MOST` offers of this process to pull; carries the body.
        WouldBlock: It was stopped just when it opened the queue.
        PeerDead, NotFound: It has ended, or nobody has that name.
        InvalidArgument: A mailbox that stands alone.
    """
    box_of(to).offer(body)


def pull(sender: Any) -> Any:
    """The body of the oldest offer of a process to this one; it never waits.

    Raises:
        MailboxEmpty: It offers nothing.
        WouldBlock: It was stopped just when it opened the queue.
        PeerDead: It has ended, and its offers with it.
    """
    return membership.current().box.pull(refs.id_here(sender))


def recall(to: Any) -> Any:
    """Take back the oldest offer to a process; raises as `pull`."""
    return membership.current().member.recall(refs.id_here(to))


def offered(to: Any) -> int:
    """Offers to a process that it has not pulled; 0 when it has ended."""
    member = membership.current().member
    return member.offered(member.id, refs.id_in(to, member))


def offers() -> list[Any]:
    """The Refs of those who offer something to this process at the moment."""
    member = membership.current().member
    return [refs.make_ref(member, id) for id in member.offers()]
