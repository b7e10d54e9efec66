"""Rights, access lists, capabilities, and what is said of them at a grantor's socket.

Requests and answers are records of fixed size with numbers and bytes in them; nothing of another user is unpickled.

Source: docs/reference/rights.md; why so, docs/explanation/trust.md.
"""

import array
import enum
import errno
import hashlib
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shmipc.base.deadlines import Deadline, poll
from shmipc.base.errors import (
    AccessDenied,
    Closed,
    Corrupted,
    ForkedHandle,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    OutOfMemory,
    PeerDead,
    ShmipcError,
    Timeout,
    WouldBlock,
)
from shmipc.base.undisturbed import undisturbed
from shmipc.memory import segments

SECRET_BYTES = 32
NOBODY = -1  # stands for no uid
MAX_UID = (1 << 32) - 2
MAX_DESCRIPTORS = 250  # the kernel passes 253 at once
ADDRESS_BYTES = 107  # of a socket in the kernel's list of them, at most
ANSWER_SECONDS = 5.0


class Rights(enum.IntFlag):
    """What may be done with an object that another process owns."""

    READ = 1
    WRITE = 2
    POST = 4


class Kind(enum.IntEnum):
    """Of an object."""

    BUFFER = 1
    QUEUE = 2


POSSIBLE = {Kind.BUFFER: Rights.READ | Rights.WRITE, Kind.QUEUE: Rights.READ | Rights.POST}


def check_rights(rights: int, kind: Kind | None = None) -> Rights:
    """The rights, if an object of that kind can have them.

    Raises:
        TypeError: No Rights.
        InvalidArgument: None, others than the kind has, or WRITE without READ.
    """
    if isinstance(rights, bool) or not isinstance(rights, int):
        raise TypeError(f"rights must be shmipc.Rights, not {type(rights).__name__}")
    known = Rights.READ | Rights.WRITE | Rights.POST if kind is None else POSSIBLE[kind]
    if rights <= 0 or int(rights) & ~int(known):
        raise InvalidArgument(f"rights are {rights!r}; a {kind.name.lower() if kind else 'grant'} has {known!r}")
    if rights & Rights.WRITE and not rights & Rights.READ:
        raise InvalidArgument("rights are WRITE without READ; memory that can be written can be read")
    return Rights(rights)


def check_id(what: str, value: int) -> int:
    """The uid or gid, if it can be one.

    Raises:
        TypeError: No int.
        InvalidArgument: Negative, or above 2**32 - 2.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_UID:
        raise InvalidArgument(f"{what} is {value}; it must be 0 to {MAX_UID}")
    return value


@dataclass(frozen=True)
class Access:
    """One line of an access list: whose it is, and what they may.

    Attributes:
        rights: ``Rights(0)`` denies.
        uid: Of a user; or
        gid: of a group, which any of the peer's groups may be.
    """

    rights: Rights
    uid: int | None = None
    gid: int | None = None

    def __post_init__(self) -> None:
        if self.rights != 0:
            check_rights(self.rights)
        if (self.uid is None) == (self.gid is None):
            raise InvalidArgument(f"uid is {self.uid} and gid is {self.gid}; exactly one is given")
        check_id("uid" if self.gid is None else "gid", self.uid if self.uid is not None else self.gid or 0)


class Peer(NamedTuple):
    """Who is at the other end of a socket, by the kernel's word."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"


SO_PEERGROUPS = 59


def peer_of(connection: socket.socket) -> Peer:
    """The peer, as it was when it connected or listened."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups = array.array("I")
    for room in (64, 65536):  # groups; the kernel allows so many
        try:
            groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * room))
            break
        except OSError as error:
            if error.errno != errno.ERANGE:
                break
    return Peer(pid, uid, gid, tuple(groups))


def allowed(access: Iterable[Access], peer: Peer) -> Rights:
    """What an access list lets a peer do: his uid's line decides, else those of his groups, of which one may deny."""
    groups = {peer.gid, *peer.groups}
    found = Rights(0)
    denied = False
    for line in access:
        if line.uid == peer.uid:
            return line.rights
        if line.gid is not None and line.gid in groups:
            found |= line.rights
            denied |= line.rights == 0
    return Rights(0) if denied else found


# --- what is said ----------------------------------------------------------------------------------------------

MAGIC = b"shm1"


class Verb(enum.IntEnum):
    """What is asked of a grantor."""

    USE = 1
    OPEN = 2  # by name
    DESCRIBE = 3
    DERIVE = 4
    REVOKE = 5


REQUEST = struct.Struct("=4sIQQ32sIqQ64s")
ANSWER = struct.Struct("=4sIIIQQQ32sqqQQIIIi64s200s")

ERRORS: list[type[ShmipcError]] = [
    AccessDenied,
    PeerDead,
    NotFound,
    WouldBlock,
    InvalidArgument,
    LimitExceeded,
    OutOfMemory,
    Closed,
    Corrupted,
    ShmipcError,
]


class Request(NamedTuple):
    """One question, as it goes over the socket."""

    verb: int
    instance: int = 0  # of the grantor that is meant
    number: int = 0  # of the grant
    secret: bytes = bytes(SECRET_BYTES)
    rights: int = 0
    uid: int = NOBODY
    target: int = 0  # number of the grant to revoke
    name: bytes = b""

    def pack(self) -> bytes:
        return REQUEST.pack(MAGIC, *self)

    @classmethod
    def unpack(cls, packet: bytes) -> "Request":
        """Raises InvalidArgument: it is none."""
        if len(packet) != REQUEST.size or packet[:4] != MAGIC:
            raise InvalidArgument(f"a packet of {len(packet)} bytes is no request")
        request = cls._make(REQUEST.unpack(packet)[1:])
        return request._replace(name=request.name.rstrip(b"\0"))


class Answer(NamedTuple):
    """What a grantor answers. Its client checks everything in it that it relies on."""

    status: int = 0  # 0, or place in ERRORS + 1
    kind: int = 0
    rights: int = 0
    instance: int = 0
    generation: int = 0
    number: int = 0
    secret: bytes = bytes(SECRET_BYTES)
    uid: int = NOBODY
    owner_pid: int = 0
    size: int = 0
    uses: int = 0
    slots: int = 0
    slot_bytes: int = 0
    posters: int = 0
    lane: int = -1
    name: bytes = b""
    text: bytes = b""

    def pack(self) -> bytes:
        return ANSWER.pack(MAGIC, *self)

    @classmethod
    def unpack(cls, packet: bytes) -> "Answer":
        """Raises Corrupted: it is none."""
        if len(packet) != ANSWER.size or packet[:4] != MAGIC:
            raise Corrupted(f"a packet of {len(packet)} bytes is no answer of a grantor")
        answer = cls._make(ANSWER.unpack(packet)[1:])
        return answer._replace(name=answer.name.rstrip(b"\0"), text=answer.text.rstrip(b"\0"))

    @classmethod
    def refusal(cls, error: ShmipcError, instance: int) -> "Answer":
        status = next((i for i, kind in enumerate(ERRORS) if type(error) is kind), len(ERRORS) - 1) + 1
        return cls(status, instance=instance, text=str(error).encode("utf-8", "replace")[:200])

    def check(self) -> None:
        """Raise what the grantor refused with."""
        if self.status:
            kind = ERRORS[min(self.status, len(ERRORS)) - 1]
            raise kind(self.text.decode("utf-8", "replace"))


# --- asking ----------------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """An answer, the descriptors that came with it, and the connection, when it stays open as a line."""

    answer: Answer
    owner: Peer
    descriptors: list[int] = field(default_factory=list)
    line: socket.socket | None = None

    def close(self) -> None:
        """Give up what is left of it."""
        while self.descriptors:
            os.close(self.descriptors.pop())
        if self.line is not None:
            self.line.close()
            self.line = None


def named_address(owner: int, name: str) -> bytes:
    """The abstract socket at which the objects of that name and owner are opened."""
    namespace = os.environ.get("SHMIPC_NAMESPACE", "")
    full = f"{namespace + '~' if namespace else ''}{name}".encode()
    address = b"\0shmipc-rights.%d." % owner
    if len(address) + len(full) > ADDRESS_BYTES:
        full = b"#" + hashlib.sha256(full).hexdigest().encode()  # no name begins so
    return address + full


def is_named(name: str) -> bool:
    """Has a process of our own user an object of that name? Waits 0.1 s at most, while whoever holds it is flooded."""
    owner = os.geteuid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
        try:
            connect(probe, named_address(owner, name), Deadline(0.1), True)
            return peer_of(probe).uid == owner
        except (ShmipcError, OSError):  # nobody is there, or he does not say who he is
            return False


def ask(address: bytes, owner: int, request: Request, timeout: float | None, named: bool) -> Reply:
    """Connect, see who answers, ask, and take the answer.

    Raises:
        NotFound, PeerDead: Nobody is at the address, a name's or a grantor's.
        AccessDenied: The name is a stranger's.
        Timeout: No answer came in time.
        ShmipcError: What the grantor refused with.
    """
    deadline = Deadline(timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    reply: Reply | None = None
    try:
        connect(connection, address, deadline, named)
        owner_peer = peer_of(connection)
        if owner_peer.uid != owner:  # before anything secret is said
            if named:
                raise AccessDenied(f"the name is held by {owner_peer}, not by uid {owner}")
            raise PeerDead(f"the owner, uid {owner}, has ended; {owner_peer} is at its address")
        reply = Reply(Answer(), owner_peer)
        try:
            connection.settimeout(within(deadline))
            connection.send(request.pack())
            connection.settimeout(within(deadline))
            packet, reply.descriptors, flags, _ = socket.recv_fds(
                connection, ANSWER.size + 1, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            raise Timeout(f"{owner_peer} did not answer within {timeout} s; it may be stopped, or busy") from None
        except OSError as error:
            raise PeerDead(f"{owner_peer} has broken off: {error.strerror}") from error
        if not packet:
            raise PeerDead(f"{owner_peer} has ended, or sent us away")
        if flags & socket.MSG_CTRUNC:
            raise Corrupted(f"{owner_peer} passed more descriptors than can be taken")
        reply.answer = Answer.unpack(packet)
        reply.answer.check()
        reply.line = connection
        return reply
    except BaseException:
        if reply is not None:
            reply.close()
        connection.close()
        raise


def within(deadline: Deadline) -> float | None:
    """What is left, for a socket, for which 0 is something else."""
    left = deadline.left()
    return None if left is None else max(left, 0.001)


def connect(connection: socket.socket, address: bytes, deadline: Deadline, named: bool) -> None:
    pause = 0.0005
    while True:
        try:
            connection.settimeout(within(deadline))
            connection.connect(address)
            return
        except (BlockingIOError, TimeoutError):  # its backlog is full: somebody floods it, or it is stopped
            if deadline.passed():
                raise Timeout("the owner takes no connection: it may be stopped, or too many ask") from None
        except ConnectionRefusedError:
            if named:
                raise NotFound("nobody has an object of that name") from None
            raise PeerDead("the owner has ended, or has closed the object") from None
        except PermissionError as error:
            raise AccessDenied(f"cannot connect to the owner: {error.strerror}") from error
        deadline.pause(pause)
        pause = min(pause * 2, 0.05)


# --- capabilities ----------------------------------------------------------------------------------------------

TEXT = re.compile(
    r"shmipc-capability-1:(\d{1,10}):([0-9a-f]{5}):([0-9a-f]{16}):(\d{1,19}):([1-7]):([0-9a-f]{64})", re.ASCII
)

# How a handle is made of an answer, by kind; filled by the floors' modules that have the kinds.
HANDLES: dict[Kind, Callable[[Reply, "Capability | None"], Any]] = {}


@dataclass(frozen=True)
class Description:
    """What a grantor says of a capability and its object; see docs/reference/rights.md."""

    kind: str
    rights: Rights
    uid: int | None
    name: str | None
    generation: int
    size: int
    owner: int
    owner_pid: int
    uses: int


@dataclass(frozen=True, init=False, repr=False)
class Capability:
    """The right to use one object of another process, in the form of a secret; a plain value that can be sent on.

    Args:
        text: What ``str(capability)`` gave.

    Attributes:
        owner: Uid of the process that owns the object.
        address: Of its grantor: five digits in base 16.
        instance: Of its grantor, unique.
        number: Of the grant.
        rights: That were granted.
        secret: 256 random bits.

    Raises:
        InvalidArgument: The text is no capability.
    """

    owner: int
    address: str
    instance: int
    number: int
    rights: Rights
    secret: bytes
    authority: tuple[int, bytes] | None = field(default=None, compare=False)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        found = TEXT.fullmatch(text.strip())
        if found is None:
            raise InvalidArgument("the text is no capability")  # which is not shown: it may be one with a slip in it
        owner, address, instance, number, rights, secret = found.groups()
        self._set(int(owner), address, int(instance, 16), int(number), int(rights), bytes.fromhex(secret), None)

    def _set(self, *values: Any) -> None:
        names = ("owner", "address", "instance", "number", "rights", "secret", "authority")
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, Rights(value) if name == "rights" else value)

    @classmethod
    def of(
        cls,
        owner: int,
        address: str,
        instance: int,
        number: int,
        rights: int,
        secret: bytes,
        authority: tuple[int, bytes] | None = None,
    ) -> "Capability":
        """A capability of its parts; ``authority``: number and secret of the one it was derived from."""
        made = cls.__new__(cls)
        made._set(owner, address, instance, number, rights, secret, authority)
        return made

    def __str__(self) -> str:
        parts = (self.owner, self.address, f"{self.instance:016x}", self.number, int(self.rights), self.secret.hex())
        return ":".join(["shmipc-capability-1", *map(str, parts)])

    def __repr__(self) -> str:
        return f"<Capability {self.number} of uid {self.owner}, {self.rights!r}>"

    def __reduce__(self) -> tuple[Callable[..., "Capability"], tuple[Any, ...]]:
        # Without its authority: that has the secret of a wider one in it.
        return Capability.of, (self.owner, self.address, self.instance, self.number, int(self.rights), self.secret)

    def use(self, rights: Rights | None = None, *, timeout: float | None = ANSWER_SECONDS) -> Any:
        """Accept it: open the object in this process, a `SharedBuffer` or `ByteQueue`.

        Args:
            rights: Some of those granted; None: all.
            timeout: Seconds that the owner may take to answer.

        Raises:
            AccessDenied: The token is wrong, revoked, for another uid or of a closed object; more rights than granted.
            PeerDead: The owner has ended.
            WouldBlock: The end of the queue is taken.
            Timeout: The owner did not answer.
        """
        wanted = self.rights if rights is None else check_rights(rights)
        return opened(lambda: self._ask(Verb.USE, timeout, rights=wanted), wanted, self)

    def describe(self, *, timeout: float | None = ANSWER_SECONDS) -> Description:
        """What it is for; errors as of `use`, except WouldBlock."""
        reply = self._ask(Verb.DESCRIBE, timeout)
        answer = reply.answer
        reply.close()
        return Description(
            kind=kind_of(answer).name.lower(),
            rights=Rights(answer.rights),
            uid=None if answer.uid == NOBODY else answer.uid,
            name=answer.name.decode("ascii", "replace") or None,
            generation=answer.generation,
            size=answer.size,
            owner=reply.owner.uid,
            owner_pid=answer.owner_pid,
            uses=answer.uses,
        )

    def derive(self, rights: Rights, *, uid: int | None = None, timeout: float | None = ANSWER_SECONDS) -> "Capability":
        """Another for the same object, with these rights or for this uid alone, that goes with this one.

        Raises:
            AccessDenied: Wider than this one; and as `use`.
        """
        wanted = check_rights(rights)
        whom = NOBODY if uid is None else check_id("uid", uid)
        reply = self._ask(Verb.DERIVE, timeout, rights=wanted, uid=whom)
        reply.close()
        answer = reply.answer
        authority = (self.number, self.secret)
        return Capability.of(
            self.owner, self.address, self.instance, answer.number, answer.rights, answer.secret, authority
        )

    def revoke(self, *, timeout: float | None = ANSWER_SECONDS) -> None:
        """End it and all derived from it, for new uses; what is open stays open. Of one that this process
        derived: idempotent.

        Raises:
            AccessDenied: This process is neither of the owner's user nor the one that derived it; or it was not
                derived, and is revoked.
            PeerDead, Timeout: As of `use`.
        """
        number, secret = self.authority or (self.number, self.secret)
        request = Request(Verb.REVOKE, self.instance, number, secret, target=self.number)
        undisturbed(lambda: self._send(request, timeout), Reply.close).close()

    def _ask(self, verb: Verb, timeout: float | None, rights: int = 0, uid: int = NOBODY) -> Reply:
        request = Request(verb, self.instance, self.number, self.secret, rights, uid)
        return undisturbed(lambda: self._send(request, timeout), Reply.close)

    def _send(self, request: Request, timeout: float | None) -> Reply:
        return ask(b"\0" + self.address.encode(), self.owner, request, timeout, named=False)


def kind_of(answer: Answer) -> Kind:
    """Raises Corrupted: of no kind that is known."""
    try:
        return Kind(answer.kind)
    except ValueError:
        raise Corrupted(f"the owner speaks of an object of kind {answer.kind}") from None


def opened(request: Callable[[], Reply], wanted: Rights, capability: Capability | None) -> Any:
    """The handle of what the reply to this request brings, or nothing stays open."""

    def make() -> Any:
        reply = request()
        try:
            if reply.answer.rights != wanted:
                raise Corrupted(f"{reply.owner} was asked for {wanted!r} and gave {Rights(reply.answer.rights)!r}")
            return HANDLES[kind_of(reply.answer)](reply, capability)
        finally:
            reply.close()

    return undisturbed(make, lambda handle: handle.close())


def open_named(
    kind: Kind, name: str, owner: int | None, rights: Rights, timeout: float | None, answer: float | None
) -> Any:
    """Open an object by name, waiting for it to appear."""
    segments.check_name(f"{kind.name.lower()} name", name)
    wanted = check_rights(rights, kind)
    whose = os.geteuid() if owner is None else check_id("owner", owner)
    request = Request(Verb.OPEN, rights=wanted, target=kind, name=name.encode())
    address = named_address(whose, name)
    return poll(lambda: opened(lambda: ask(address, whose, request, answer, named=True), wanted, None), timeout)


def check_pid(pid: int, what: str) -> None:
    """Raise ForkedHandle when this process is a forked child of the one that opened it."""
    if pid != os.getpid():
        raise ForkedHandle(f"{what} belongs to process {pid}, which forked this one")


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
