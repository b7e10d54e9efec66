"""The example of the exokernel mailbox: send a message, and wait up to one second (100 ticks) for a reply.

Two processes: `main` asks, `serve` answers.
"""

import os
import struct

import shmipc
from shmipc.facades.exokernel import (
    EXO_IPC_STATUS_SUCCESS,
    Recv_T,
    exo_ipc_queue_recv_timed,
    ipcs,
    mbox_open,
    mbox_recv,
    mbox_send,
)

MSG = "i60x"  # struct msg { int cmd; ... }, 64 bytes
PING, PONG, STOP = 1, 2, 3


def serve() -> None:
    """The other process."""
    req, resp = mbox_open("req"), mbox_open("resp")
    while True:
        status, m = mbox_recv(req)
        assert status == EXO_IPC_STATUS_SUCCESS
        (cmd,) = struct.unpack(MSG, m)
        if cmd == STOP:
            return
        mbox_send(resp, struct.pack(MSG, PONG))


def main() -> None:
    with shmipc.System() as system:
        server = system.spawn(serve)

        # struct mbox *req = mbox_open("req");
        req = mbox_open("req")
        # struct mbox *resp = mbox_open("resp");
        resp = mbox_open("resp")
        # struct msg m = { .cmd = PING };
        m = struct.pack(MSG, PING)

        # mbox_send(req, &m, 0);           /* block until sent */
        mbox_send(req, m, 0)
        # if (mbox_recv(resp, &m, 100) == EXO_IPC_STATUS_SUCCESS) {
        status, m = mbox_recv(resp, 100)
        if status == EXO_IPC_STATUS_SUCCESS:
            # /* process reply */
            print("reply:", struct.unpack(MSG, m)[0])
        else:
            # /* timeout or error */
            raise SystemExit(f"no reply: {status!r}")

        mbox_send(req, struct.pack(MSG, PING), 0)
        # size_t len = sizeof(m);
        len_ = struct.calcsize(MSG)
        # if (Recv_T(resp, &m, &len, 50) == EXO_IPC_STATUS_SUCCESS) {
        status, m, len_ = Recv_T(resp, len_, 50)
        if status == EXO_IPC_STATUS_SUCCESS:
            # /* got a message within 50 ticks */
            print("got a message of", len_, "bytes:", struct.unpack(MSG, m)[0])

        mbox_send(ipcs[0], f"from {os.getpid()}".encode().ljust(64), 0)
        # size_t len = sizeof(buf);
        len_ = 64
        # exo_ipc_status r = exo_ipc_queue_recv_timed(0, buf, &len, 10);
        r, buf, len_ = exo_ipc_queue_recv_timed(0, len_, 10)
        assert r == EXO_IPC_STATUS_SUCCESS
        print("the global mailbox 0 had:", buf.decode().strip())

        mbox_send(req, struct.pack(MSG, STOP), 0)
        assert shmipc.process(server).join(10.0)


if __name__ == "__main__":
    main()
