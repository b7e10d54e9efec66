"""IPC primitives and a message loop, in the spelling of RatOS.

Each function takes the C function's in-parameters in C order and returns its status first, then its out-parameters; a
buffer that is filled is a capacity, and comes back as bytes with their length. Nothing is raised: `detail` says why the
calling thread's last failure happened. What a signal handler raises in a wait comes through if it is no `Exception`,
as that of Ctrl-C; an `Exception` becomes a status, as any other.

What is this interface's own:
- A handle is a `RatHandle`, the number of an entry in a table that each process has of its own, with rights. Closing it
  gives one reference up; the object goes with the last, in any process. Another process's number is INVALID_ARG.
- A `RatHandle` in ``wparam`` or ``lparam`` travels as a handle, with its rights, and arrives as the receiver's own, who
  closes it; on its way it keeps the object. A plain int is a number. Handles of unnamed queues, sockets and processes
  do not travel: ACCESS_DENIED.
- Timeouts are in milliseconds: 0 polls, a negative one or `RAT_INFINITE` waits for ever, a positive one is a limit,
  never early. A full queue is NO_RESOURCES at once.
- The lowest priority value is the most urgent. Received is the most urgent of what is there, of these the oldest.
- Names are one namespace in the system, of all kinds: creating under a taken one is ALREADY_EXISTS, opening never
  creates.
- `header.sender` is the runtime's word. Windows are no targets.

Statuses, and the page with all functions: docs/reference/facade-ratos.md.
"""

from shmipc.facades.ratos.capabilities import RatCapabilityInfo as RatCapabilityInfo
from shmipc.facades.ratos.capabilities import RatDescribeCapability as RatDescribeCapability
from shmipc.facades.ratos.capabilities import RatGrantCapability as RatGrantCapability
from shmipc.facades.ratos.capabilities import RatRevokeCapability as RatRevokeCapability
from shmipc.facades.ratos.capabilities import RatUseCapability as RatUseCapability
from shmipc.facades.ratos.completions import RatCancelSubmission as RatCancelSubmission
from shmipc.facades.ratos.completions import RatCloseCompletionQueue as RatCloseCompletionQueue
from shmipc.facades.ratos.completions import RatCompletion as RatCompletion
from shmipc.facades.ratos.completions import RatCreateCompletionQueue as RatCreateCompletionQueue
from shmipc.facades.ratos.completions import RatGetCompletion as RatGetCompletion
from shmipc.facades.ratos.completions import RatQueryCompletionQueue as RatQueryCompletionQueue
from shmipc.facades.ratos.completions import RatSubmitRead as RatSubmitRead
from shmipc.facades.ratos.completions import RatSubmitReceive as RatSubmitReceive
from shmipc.facades.ratos.completions import RatSubmitSend as RatSubmitSend
from shmipc.facades.ratos.completions import RatSubmitWait as RatSubmitWait
from shmipc.facades.ratos.completions import RatSubmitWrite as RatSubmitWrite
from shmipc.facades.ratos.handles import RAT_HANDLE_NONBLOCKING as RAT_HANDLE_NONBLOCKING
from shmipc.facades.ratos.handles import RAT_INVALID_HANDLE as RAT_INVALID_HANDLE
from shmipc.facades.ratos.handles import RAT_RIGHT_READ as RAT_RIGHT_READ
from shmipc.facades.ratos.handles import RAT_RIGHT_WAIT as RAT_RIGHT_WAIT
from shmipc.facades.ratos.handles import RAT_RIGHT_WRITE as RAT_RIGHT_WRITE
from shmipc.facades.ratos.handles import RAT_RIGHTS_ALL as RAT_RIGHTS_ALL
from shmipc.facades.ratos.handles import RatEvent as RatEvent
from shmipc.facades.ratos.handles import RatHandle as RatHandle
from shmipc.facades.ratos.handles import RatMessageQueue as RatMessageQueue
from shmipc.facades.ratos.handles import RatPipe as RatPipe
from shmipc.facades.ratos.handles import RatSetHandleFlags as RatSetHandleFlags
from shmipc.facades.ratos.handles import RatSharedMemory as RatSharedMemory
from shmipc.facades.ratos.handles import RatSocket as RatSocket
from shmipc.facades.ratos.memory import RatCloseSharedMemory as RatCloseSharedMemory
from shmipc.facades.ratos.memory import RatCreateSharedMemory as RatCreateSharedMemory
from shmipc.facades.ratos.memory import RatMapSharedMemory as RatMapSharedMemory
from shmipc.facades.ratos.memory import RatOpenSharedMemory as RatOpenSharedMemory
from shmipc.facades.ratos.memory import RatUnlinkSharedMemory as RatUnlinkSharedMemory
from shmipc.facades.ratos.memory import RatUnmapSharedMemory as RatUnmapSharedMemory
from shmipc.facades.ratos.messages import RatMessage as RatMessage
from shmipc.facades.ratos.messages import RatMessageHeader as RatMessageHeader
from shmipc.facades.ratos.messages import RatOpenProcess as RatOpenProcess
from shmipc.facades.ratos.pipes import RatClosePipe as RatClosePipe
from shmipc.facades.ratos.pipes import RatCreatePipe as RatCreatePipe
from shmipc.facades.ratos.pipes import RatReadPipe as RatReadPipe
from shmipc.facades.ratos.pipes import RatWritePipe as RatWritePipe
from shmipc.facades.ratos.queues import RAT_MSG_QUIT as RAT_MSG_QUIT
from shmipc.facades.ratos.queues import RatCloseMessageQueue as RatCloseMessageQueue
from shmipc.facades.ratos.queues import RatCreateMessageQueue as RatCreateMessageQueue
from shmipc.facades.ratos.queues import RatCreateNamedMessageQueue as RatCreateNamedMessageQueue
from shmipc.facades.ratos.queues import RatDispatchMessage as RatDispatchMessage
from shmipc.facades.ratos.queues import RatGetMessage as RatGetMessage
from shmipc.facades.ratos.queues import RatOpenNamedMessageQueue as RatOpenNamedMessageQueue
from shmipc.facades.ratos.queues import RatPeekMessage as RatPeekMessage
from shmipc.facades.ratos.queues import RatPostMessage as RatPostMessage
from shmipc.facades.ratos.queues import RatPostQuitMessage as RatPostQuitMessage
from shmipc.facades.ratos.queues import RatRegisterHandler as RatRegisterHandler
from shmipc.facades.ratos.queues import RatReplyMessage as RatReplyMessage
from shmipc.facades.ratos.queues import RatSendMessage as RatSendMessage
from shmipc.facades.ratos.queues import RatUnlinkMessageQueue as RatUnlinkMessageQueue
from shmipc.facades.ratos.sockets import AF_INET as AF_INET
from shmipc.facades.ratos.sockets import AF_UNIX as AF_UNIX
from shmipc.facades.ratos.sockets import SOCK_DGRAM as SOCK_DGRAM
from shmipc.facades.ratos.sockets import SOCK_STREAM as SOCK_STREAM
from shmipc.facades.ratos.sockets import RatAcceptSocket as RatAcceptSocket
from shmipc.facades.ratos.sockets import RatBindSocket as RatBindSocket
from shmipc.facades.ratos.sockets import RatCloseSocket as RatCloseSocket
from shmipc.facades.ratos.sockets import RatConnectSocket as RatConnectSocket
from shmipc.facades.ratos.sockets import RatCreateSocket as RatCreateSocket
from shmipc.facades.ratos.sockets import RatListenSocket as RatListenSocket
from shmipc.facades.ratos.sockets import RatRecvSocket as RatRecvSocket
from shmipc.facades.ratos.sockets import RatSendSocket as RatSendSocket
from shmipc.facades.ratos.sockets import RatSocketAddress as RatSocketAddress
from shmipc.facades.ratos.statuses import RAT_INFINITE as RAT_INFINITE
from shmipc.facades.ratos.statuses import RatIpcStatus as RatIpcStatus
from shmipc.facades.ratos.statuses import detail as detail
from shmipc.facades.ratos.sync import RatAcquireSemaphore as RatAcquireSemaphore
from shmipc.facades.ratos.sync import RatCloseEvent as RatCloseEvent
from shmipc.facades.ratos.sync import RatCloseMutex as RatCloseMutex
from shmipc.facades.ratos.sync import RatCloseRwLock as RatCloseRwLock
from shmipc.facades.ratos.sync import RatCloseSemaphore as RatCloseSemaphore
from shmipc.facades.ratos.sync import RatCreateEvent as RatCreateEvent
from shmipc.facades.ratos.sync import RatCreateMutex as RatCreateMutex
from shmipc.facades.ratos.sync import RatCreateRwLock as RatCreateRwLock
from shmipc.facades.ratos.sync import RatCreateSemaphore as RatCreateSemaphore
from shmipc.facades.ratos.sync import RatLockMutex as RatLockMutex
from shmipc.facades.ratos.sync import RatLockRead as RatLockRead
from shmipc.facades.ratos.sync import RatLockWrite as RatLockWrite
from shmipc.facades.ratos.sync import RatOpenEvent as RatOpenEvent
from shmipc.facades.ratos.sync import RatOpenMutex as RatOpenMutex
from shmipc.facades.ratos.sync import RatOpenRwLock as RatOpenRwLock
from shmipc.facades.ratos.sync import RatOpenSemaphore as RatOpenSemaphore
from shmipc.facades.ratos.sync import RatReleaseSemaphore as RatReleaseSemaphore
from shmipc.facades.ratos.sync import RatResetEvent as RatResetEvent
from shmipc.facades.ratos.sync import RatSetEvent as RatSetEvent
from shmipc.facades.ratos.sync import RatUnlockMutex as RatUnlockMutex
from shmipc.facades.ratos.sync import RatUnlockRead as RatUnlockRead
from shmipc.facades.ratos.sync import RatUnlockWrite as RatUnlockWrite
from shmipc.facades.ratos.waits import RAT_WAIT_MOST as RAT_WAIT_MOST
from shmipc.facades.ratos.waits import RatWaitForMultipleObjects as RatWaitForMultipleObjects
from shmipc.facades.ratos.waits import RatWaitForObject as RatWaitForObject

RAT_IPC_OK = RatIpcStatus.RAT_IPC_OK
RAT_IPC_ERR_UNKNOWN = RatIpcStatus.RAT_IPC_ERR_UNKNOWN
RAT_IPC_ERR_NOT_FOUND = RatIpcStatus.RAT_IPC_ERR_NOT_FOUND
RAT_IPC_ERR_ACCESS_DENIED = RatIpcStatus.RAT_IPC_ERR_ACCESS_DENIED
RAT_IPC_ERR_NO_RESOURCES = RatIpcStatus.RAT_IPC_ERR_NO_RESOURCES
RAT_IPC_ERR_INVALID_ARG = RatIpcStatus.RAT_IPC_ERR_INVALID_ARG
RAT_IPC_ERR_ALREADY_EXISTS = RatIpcStatus.RAT_IPC_ERR_ALREADY_EXISTS
RAT_IPC_ERR_NOT_CONNECTED = RatIpcStatus.RAT_IPC_ERR_NOT_CONNECTED
RAT_IPC_ERR_BUFFER_TOO_SMALL = RatIpcStatus.RAT_IPC_ERR_BUFFER_TOO_SMALL
RAT_IPC_ERR_TIMEOUT = RatIpcStatus.RAT_IPC_ERR_TIMEOUT
RAT_IPC_ERR_CANCELLED = RatIpcStatus.RAT_IPC_ERR_CANCELLED
RAT_IPC_ERR_ABANDONED = RatIpcStatus.RAT_IPC_ERR_ABANDONED
