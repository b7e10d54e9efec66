"""A replicated service behind a group, whose servers are replaced while a client keeps asking.

The client knows the group, and nothing of who serves it. A server is a process with a port in the group; one is killed
in the midst of its work, another starts, and the client goes on with the same identifier.
"""

import os
import struct
import time

import shmipc
from shmipc.facades.chorus import (
    K_DEFAULTPORT,
    K_FUNCMODE,
    K_MYACTOR,
    K_NOTIMEOUT,
    K_STATUSER,
    KnCap,
    KnError,
    KnMsgDesc,
    detail,
    grpAllocate,
    grpPortInsert,
    ipcCall,
    ipcReceive,
    ipcReply,
    ipcTarget,
    portCreate,
)

STAMP = 7
REPLY = "<qq"  # who served it, the answer
REPLY_BYTES = struct.calcsize(REPLY)


def serve(group: KnCap) -> None:
    """A server: squares what it is sent."""
    portli, portui = portCreate(K_MYACTOR)
    assert grpPortInsert(group, portui) == 0, detail()
    while True:
        length, request, _ = ipcReceive(8, portli, K_NOTIMEOUT)
        if length < 0 or request is None:
            raise SystemExit(detail())
        number = int.from_bytes(request.body, "little")
        ipcReply(KnMsgDesc(struct.pack(REPLY, os.getpid(), number * number)))


def ask(dest: object, number: int) -> tuple[int, int] | None:
    """Who served it and what it said; None when its server died of it, or nobody serves."""
    request = KnMsgDesc(number.to_bytes(8, "little"))
    length, reply = ipcCall(request, K_DEFAULTPORT, dest, REPLY_BYTES, 5000)  # type: ignore[arg-type]
    if length in (KnError.K_EPEERDEAD, KnError.K_EUNREACH):
        return None
    assert length == REPLY_BYTES, detail()
    assert reply is not None
    return struct.unpack(REPLY, reply.body)


def main() -> None:
    with shmipc.System() as system:
        status, group = grpAllocate(K_STATUSER, STAMP)
        assert status == 0, detail()
        assert group is not None
        _, dest = ipcTarget(group.ui, K_FUNCMODE)

        servers = [system.spawn(serve, group) for _ in range(2)]
        served: dict[int, int] = {}
        number = repeated = 0
        replaced = False
        while number < 2000:
            answer = ask(dest, number)
            if answer is None:
                repeated += 1  # at most once: whether to ask again is the client's decision
                time.sleep(0.001)
                continue
            server, square = answer
            assert square == number * number
            served[server] = served.get(server, 0) + 1
            number += 1
            if number == 1000 and not replaced:
                replaced = True
                shmipc.process(servers[0]).kill()
                servers.append(system.spawn(serve, group))

        assert len(served) == 3
        print(
            f"{number} requests, served by {len(served)} processes; one was killed, {repeated} requests were repeated"
        )
        for entry in servers[1:]:
            shmipc.process(entry).kill()


if __name__ == "__main__":
    main()
