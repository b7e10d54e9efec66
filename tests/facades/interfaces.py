"""What the facades have in common, one class each: how to say the same in its words.

A new facade is one more class, and its name in `INTERFACES`. What it has not stays as it is in `Interface`, and
`test_conformance.py` asks it for nothing of the kind. No pytest is imported here, for workers import it.
"""

import os
from typing import Any

import shmipc
from shmipc.facades import chorus, exokernel, ratos, resea, rt_ipc, rt_ipc_sync
from tests.actors import Actor

FOREVER, AT_ONCE = -1, 0


class Interface:
    """How to send and receive bytes; by default it can do nothing else.

    Attributes:
        calls: Has it requests that are answered later, in any order?
        filters: Can a receive ask for one sender?
        tells: Does a blocked sender or caller learn that the other has died?
    """

    calls = filters = tells = False

    def here(self) -> Any:
        """Where this process receives."""
        return shmipc.self()

    def who(self, ref: Any) -> Any:
        """How a message names its sender, an actor."""
        return ref

    def send(self, to: Any, data: bytes) -> bool:
        """Send, blocking when that is its way; did it succeed?"""
        raise NotImplementedError

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        """The next message, of one sender: who sent it (None: it does not say), its data, what to answer."""
        raise NotImplementedError

    def take(self) -> tuple[bytes, Any]:
        """The next request: its data, and what keeps its caller waiting."""
        return self.receive()[1:]

    def call(self, to: Any, data: bytes) -> bytes | None:
        """Ask and wait; None: it failed."""
        raise NotImplementedError

    def answer(self, request: Any, data: bytes) -> bool:
        raise NotImplementedError


class RtIpc(Interface):
    calls = filters = tells = True

    def send(self, to: Any, data: bytes) -> bool:
        return rt_ipc.rt_ipc_cast(to, data) == rt_ipc.RT_SUCCESS

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        of = rt_ipc.RT_SENDER_WILDCARD if sender is None else sender
        any_class, any_tag = rt_ipc.RT_MESSAGE_CLASS_WILDCARD, rt_ipc.RT_MESSAGE_TAG_WILDCARD
        status, who, _, _, msg = rt_ipc.rt_ipc_sel_recv(of, any_class, any_tag, FOREVER)
        assert status == rt_ipc.RT_SUCCESS, rt_ipc.detail()
        assert msg is not None
        return who, bytes(msg), msg

    def call(self, to: Any, data: bytes) -> bytes | None:
        status, msg = rt_ipc.rt_ipc_call(to, data, FOREVER)
        return None if status != rt_ipc.RT_SUCCESS or msg is None else bytes(msg)

    def answer(self, request: Any, data: bytes) -> bool:
        return rt_ipc.rt_ipc_reply(request, data) == rt_ipc.RT_SUCCESS


class RtIpcSync(Interface):
    tells = True

    def send(self, to: Any, data: bytes) -> bool:
        return rt_ipc_sync.rt_ipc_send(to, data, rt_ipc_sync.SYNC) == rt_ipc_sync.RT_SUCCESS

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        data, msg = self.take()
        rt_ipc_sync.rt_ipc_release(msg)
        return msg.sender, data, None

    def take(self) -> tuple[bytes, Any]:
        status, msg = rt_ipc_sync.rt_ipc_recv(FOREVER)
        assert status == rt_ipc_sync.RT_SUCCESS, rt_ipc_sync.detail()
        assert msg is not None
        return bytes(msg), msg

    def call(self, to: Any, data: bytes) -> bytes | None:
        return b"" if self.send(to, data) else None


class Exokernel(Interface):
    def here(self) -> Any:
        name = f"inbox.{os.getpid()}"
        self._inbox = exokernel.mbox_open(name)  # kept: it lives while somebody has it open
        return name

    def send(self, to: Any, data: bytes) -> bool:
        m = exokernel.mbox_open(to)
        return exokernel.mbox_send(m, data.ljust(64, b"\0")) == exokernel.EXO_IPC_STATUS_SUCCESS

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        status, data = exokernel.mbox_recv(self._inbox)
        assert status == exokernel.EXO_IPC_STATUS_SUCCESS, exokernel.detail()
        return None, data.rstrip(b"\0"), None


class Resea(Interface):
    calls = filters = tells = True

    def here(self) -> Any:
        return resea.task_self()

    def who(self, ref: Any) -> Any:
        return ref.resea_task()

    def send(self, to: Any, data: bytes) -> bool:
        return resea.ipc_send(to, resea.message(1, data=data)) == resea.OK

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        m = resea.ASSERT_OK(resea.ipc_recv(resea.IPC_ANY if sender is None else sender))
        return m.src, m.data, m.src

    def call(self, to: Any, data: bytes) -> bytes | None:
        status, m = resea.ipc_call(to, resea.message(1, data=data))
        return m.data if status == resea.OK else None

    def answer(self, request: Any, data: bytes) -> bool:
        return resea.ipc_reply(request, resea.message(1, data=data)) == resea.OK


class Chorus(Interface):
    calls = tells = True

    def here(self) -> Any:
        return chorus.portUi(chorus.K_MYACTOR, chorus.K_DEFAULTPORT)[1]

    def send(self, to: Any, data: bytes) -> bool:
        while (sent := chorus.ipcSend(chorus.KnMsgDesc(data), chorus.K_DEFAULTPORT, to)) == chorus.KnError.K_EBUSY:
            os.sched_yield()  # its way is not to wait for room
        return int(sent) >= 0

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        length, msg, _ = chorus.ipcReceive(None, chorus.K_DEFAULTPORT, FOREVER)
        _, info = chorus.ipcSysInfo()
        assert length >= 0, chorus.detail()
        assert msg is not None
        assert info is not None
        return info.source_actor, msg.body, chorus.ipcSave() if info.transaction else None

    def call(self, to: Any, data: bytes) -> bytes | None:
        length, msg = chorus.ipcCall(chorus.KnMsgDesc(data), chorus.K_DEFAULTPORT, to, None, FOREVER)
        return None if length < 0 or msg is None else msg.body

    def answer(self, request: Any, data: bytes) -> bool:
        assert chorus.ipcRestore(request) == 0
        return chorus.ipcReply(chorus.KnMsgDesc(data)) == 0


class Ratos(Interface):
    calls = tells = True

    def here(self) -> Any:
        name = f"queue.{os.getpid()}"
        status, made = ratos.RatCreateNamedMessageQueue(name, 64)
        if status == ratos.RAT_IPC_OK:  # else it was asked before
            self._queue = made
        return name

    def who(self, ref: Any) -> Any:
        return ratos.RatOpenProcess(ref)[1]

    def send(self, to: Any, data: bytes) -> bool:
        _, queue = ratos.RatOpenNamedMessageQueue(to)
        while (sent := ratos.RatPostMessage(queue, self.message(data))) == ratos.RAT_IPC_ERR_NO_RESOURCES:
            os.sched_yield()  # its way is not to wait for room
        ratos.RatCloseMessageQueue(queue)
        return sent == ratos.RAT_IPC_OK

    def message(self, data: bytes) -> ratos.RatMessage:
        return ratos.RatMessage(ratos.RatMessageHeader(message=1, size=len(data)), data)

    def receive(self, sender: Any = None) -> tuple[Any, bytes, Any]:
        status, m = ratos.RatGetMessage(self._queue, FOREVER)
        assert status == ratos.RAT_IPC_OK, ratos.detail()
        assert m is not None
        return m.header.sender, m.payload, m

    def call(self, to: Any, data: bytes) -> bytes | None:
        _, queue = ratos.RatOpenNamedMessageQueue(to)
        _, reply = ratos.RatSendMessage(queue, self.message(data), FOREVER)
        ratos.RatCloseMessageQueue(queue)
        return None if reply is None else reply.payload

    def answer(self, request: Any, data: bytes) -> bool:
        return ratos.RatReplyMessage(request, self.message(data)) == ratos.RAT_IPC_OK


INTERFACES: dict[str, Interface] = {
    "rt_ipc": RtIpc(),
    "rt_ipc_sync": RtIpcSync(),
    "exokernel": Exokernel(),
    "resea": Resea(),
    "chorus": Chorus(),
    "ratos": Ratos(),
}


class Speaker(Actor):
    """Speaks to another process in the words of one of them."""

    def resea_task(self) -> int:
        return resea.task_self()

    def send(self, name: str, to: Any, bodies: list[bytes]) -> list[bool]:
        return [INTERFACES[name].send(to, body) for body in bodies]

    def call(self, name: str, to: Any, bodies: list[bytes]) -> list[bytes | None]:
        return [INTERFACES[name].call(to, body) for body in bodies]

    def hold(self, name: str, told: Any) -> None:
        """Receive one message, and do nothing about it, nor anything else."""
        interface = INTERFACES[name]
        shmipc.send(told, interface.here(), tag=1)
        while True:
            shmipc.receive(tag=2)

    def on_message(self, message: shmipc.Message) -> None:
        pass
