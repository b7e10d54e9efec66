"""Actors in separate processes, with mailboxes and arrays in POSIX shared memory.

Two promises: a message arrives once, or its loss is reported; and any process may die at any instruction, while the
others go on.
"""

import sys
import sysconfig

if sysconfig.get_config_var("Py_GIL_DISABLED") and not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("shmipc does not support free-threaded interpreters yet")

from importlib.metadata import PackageNotFoundError, version

from shmipc import _native
from shmipc.actor.aborts import abort as abort
from shmipc.actor.aborts import aborted as aborted
from shmipc.actor.aborts import no_abort as no_abort
from shmipc.actor.calls import (
    Monitor as Monitor,
)
from shmipc.actor.calls import (
    RequestInfo as RequestInfo,
)
from shmipc.actor.calls import (
    call as call,
)
from shmipc.actor.calls import (
    exit as exit,
)
from shmipc.actor.calls import (
    exit_notice,
)
from shmipc.actor.calls import (
    link as link,
)
from shmipc.actor.calls import (
    monitor as monitor,
)
from shmipc.actor.calls import (
    notify as notify,
)
from shmipc.actor.calls import (
    pending as pending,
)
from shmipc.actor.calls import (
    receive as receive,
)
from shmipc.actor.calls import (
    receive_matching as receive_matching,
)
from shmipc.actor.calls import (
    rendezvous as rendezvous,
)
from shmipc.actor.calls import (
    reply as reply,
)
from shmipc.actor.calls import (
    reply_error as reply_error,
)
from shmipc.actor.calls import (
    reply_receive as reply_receive,
)
from shmipc.actor.calls import (
    request_info as request_info,
)
from shmipc.actor.calls import (
    self as self,
)
from shmipc.actor.calls import (
    send as send,
)
from shmipc.actor.calls import (
    unlink as unlink,
)
from shmipc.actor.completion_queues import CompletionQueue as CompletionQueue
from shmipc.actor.completions import Completion as Completion
from shmipc.actor.completions import Outcome as Outcome
from shmipc.actor.completions import QueueStatistics as QueueStatistics
from shmipc.actor.groups import Broadcast as Broadcast
from shmipc.actor.groups import PortGroup as PortGroup
from shmipc.actor.named import NamedRef as NamedRef
from shmipc.actor.offers import OFFERED as OFFERED
from shmipc.actor.offers import offer as offer
from shmipc.actor.offers import offered as offered
from shmipc.actor.offers import offers as offers
from shmipc.actor.offers import pull as pull
from shmipc.actor.offers import recall as recall
from shmipc.actor.ports import Port as Port
from shmipc.actor.ports import receive_any as receive_any
from shmipc.actor.refs import Ref as Ref
from shmipc.actor.refs import make_ref
from shmipc.actor.remote import make_error, pack_error
from shmipc.actor.timers import Timer as Timer
from shmipc.actor.timers import send_after as send_after
from shmipc.actor.timers import send_every as send_every
from shmipc.base.errors import (
    Aborted as Aborted,
)
from shmipc.base.errors import (
    AccessDenied as AccessDenied,
)
from shmipc.base.errors import (
    BrokenPipe as BrokenPipe,
)
from shmipc.base.errors import (
    BrokenPool as BrokenPool,
)
from shmipc.base.errors import (
    BufferTooSmall as BufferTooSmall,
)
from shmipc.base.errors import (
    Cancelled as Cancelled,
)
from shmipc.base.errors import (
    Closed as Closed,
)
from shmipc.base.errors import (
    Corrupted as Corrupted,
)
from shmipc.base.errors import (
    Deadlock as Deadlock,
)
from shmipc.base.errors import (
    ForkedHandle as ForkedHandle,
)
from shmipc.base.errors import (
    InvalidArgument as InvalidArgument,
)
from shmipc.base.errors import (
    LayoutMismatch as LayoutMismatch,
)
from shmipc.base.errors import (
    LimitExceeded as LimitExceeded,
)
from shmipc.base.errors import (
    MailboxEmpty as MailboxEmpty,
)
from shmipc.base.errors import (
    MailboxFull as MailboxFull,
)
from shmipc.base.errors import (
    NameTaken as NameTaken,
)
from shmipc.base.errors import (
    NoPort as NoPort,
)
from shmipc.base.errors import (
    NoSuchMethod as NoSuchMethod,
)
from shmipc.base.errors import (
    NotFound as NotFound,
)
from shmipc.base.errors import (
    NotOwner as NotOwner,
)
from shmipc.base.errors import (
    NotSupported as NotSupported,
)
from shmipc.base.errors import (
    OutOfMemory as OutOfMemory,
)
from shmipc.base.errors import (
    PeerDead as PeerDead,
)
from shmipc.base.errors import (
    RemoteError as RemoteError,
)
from shmipc.base.errors import (
    ShmipcError as ShmipcError,
)
from shmipc.base.errors import (
    Starved as Starved,
)
from shmipc.base.errors import (
    Timeout as Timeout,
)
from shmipc.base.errors import (
    TooLarge as TooLarge,
)
from shmipc.base.errors import (
    TooManyRestarts as TooManyRestarts,
)
from shmipc.base.errors import (
    Unreachable as Unreachable,
)
from shmipc.base.errors import (
    WouldBlock as WouldBlock,
)
from shmipc.base.limits import LIMITS as LIMITS
from shmipc.memory.arrays import empty as empty
from shmipc.memory.arrays import move as move
from shmipc.memory.arrays import prefault as prefault
from shmipc.memory.arrays import share as share
from shmipc.memory.arrays import shared as shared
from shmipc.memory.arrays import zeros as zeros
from shmipc.memory.shared_memory import SharedMemory as SharedMemory
from shmipc.runtime.pools import Pool as Pool
from shmipc.runtime.processes import Process as Process
from shmipc.runtime.processes import process as process
from shmipc.runtime.supervisors import Child as Child
from shmipc.runtime.supervisors import ChildState as ChildState
from shmipc.runtime.supervisors import Supervisor as Supervisor
from shmipc.runtime.systems import Statistics as Statistics
from shmipc.runtime.systems import System as System
from shmipc.transport.buses import Bus as Bus
from shmipc.transport.buses import BusReader as BusReader
from shmipc.transport.byte_queues import ByteQueue as ByteQueue
from shmipc.transport.byte_queues import Delivery as Delivery
from shmipc.transport.conditions import Barrier as Barrier
from shmipc.transport.conditions import Condition as Condition
from shmipc.transport.events import Event as Event
from shmipc.transport.locks import Lock as Lock
from shmipc.transport.locks import Locked as Locked
from shmipc.transport.locks import Mutex as Mutex
from shmipc.transport.locks import RLock as RLock
from shmipc.transport.locks import RWLock as RWLock
from shmipc.transport.loops import MessageLoop as MessageLoop
from shmipc.transport.mailboxes import Mailbox as Mailbox
from shmipc.transport.messages import (
    ANY as ANY,
)
from shmipc.transport.messages import (
    GENERATE as GENERATE,
)
from shmipc.transport.messages import (
    ExitNotice as ExitNotice,
)
from shmipc.transport.messages import (
    Kind as Kind,
)
from shmipc.transport.messages import (
    Match as Match,
)
from shmipc.transport.messages import (
    Message as Message,
)
from shmipc.transport.pipes import BytePipe as BytePipe
from shmipc.transport.rights import Access as Access
from shmipc.transport.rights import Capability as Capability
from shmipc.transport.rights import Description as Description
from shmipc.transport.rights import Rights as Rights
from shmipc.transport.semaphores import BoundedSemaphore as BoundedSemaphore
from shmipc.transport.semaphores import Semaphore as Semaphore
from shmipc.transport.shared_buffers import SharedBuffer as SharedBuffer
from shmipc.transport.waits import Alarm as Alarm
from shmipc.transport.waits import select as select
from shmipc.transport.waits import wait_all as wait_all
from shmipc.transport.waits import wait_any as wait_any

Future = _native.Future

try:
    __version__ = version("shmipc")
except PackageNotFoundError:  # run from the sources, never installed
    __version__ = "0"

_native.install(
    make_ref=make_ref, make_error=make_error, pack_error=pack_error, exit_notice=exit_notice, kinds=tuple(Kind)
)
