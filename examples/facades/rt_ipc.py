"""The example of the design of tagged messages, line by line: two convenience functions over two primitives.

Run:  python examples/facades/rt_ipc.py
"""

import shmipc
from shmipc.facades.rt_ipc import (
    RT_MESSAGE_CLASS_CALL,
    RT_MESSAGE_CLASS_CAST,
    RT_MESSAGE_CLASS_WILDCARD,
    RT_MESSAGE_REPLY,
    RT_MESSAGE_TAG_GENERATE,
    RT_MESSAGE_TAG_NONE,
    RT_MESSAGE_TAG_WILDCARD,
    RT_SENDER_WILDCARD,
    rt_ipc_canonical_send,
    rt_ipc_recv,
    rt_ipc_recv_reply,
    rt_ipc_reply,
    rt_ipc_sel_recv,
    rt_ipc_send,
    rt_message,
    rt_status,
)

actor_id = shmipc.Ref


def rt_ipc_cast(to: actor_id, data: bytes) -> rt_status:
    tag = RT_MESSAGE_TAG_NONE
    status, tag = rt_ipc_canonical_send(to, RT_MESSAGE_CLASS_CAST, tag, data)
    assert tag == RT_MESSAGE_TAG_NONE
    return status


def rt_ipc_call(to: actor_id, data: bytes, timeout_ms: int) -> tuple[rt_status, rt_message | None]:
    from_ = to
    tag = RT_MESSAGE_TAG_GENERATE
    status, tag = rt_ipc_send(to, RT_MESSAGE_CLASS_CALL, tag, data)
    assert tag != RT_MESSAGE_TAG_GENERATE
    class_ = RT_MESSAGE_REPLY

    status, from_, class_, tag, reply_msg = rt_ipc_recv_reply(from_, class_, tag, timeout_ms)
    assert from_ == to
    assert class_ == RT_MESSAGE_REPLY
    return status, reply_msg


def server() -> None:
    """Counts the casts, and answers calls with their number."""
    casts = 0
    while True:
        status, _, class_, _, msg = rt_ipc_recv(
            RT_SENDER_WILDCARD, RT_MESSAGE_CLASS_WILDCARD, RT_MESSAGE_TAG_WILDCARD, -1
        )
        if status != rt_status.RT_SUCCESS or msg is None:
            return
        if class_ == RT_MESSAGE_CLASS_CALL:
            rt_ipc_reply(msg, b"%d casts before %s" % (casts, msg))
        else:
            casts += 1


def main() -> None:
    with shmipc.System() as system:
        to = system.spawn(server)
        for _ in range(3):
            assert rt_ipc_cast(to, b"hello") == rt_status.RT_SUCCESS
        rt_ipc_cast(shmipc.self(), b"waits its turn")
        status, answer = rt_ipc_call(to, b"the question", 5000)
        print(status.name, answer.decode() if answer is not None else "")
        # A selective receive takes the oldest message that fits; the others stay.
        status, _, class_, tag, msg = rt_ipc_sel_recv(RT_SENDER_WILDCARD, RT_MESSAGE_CLASS_CAST, RT_MESSAGE_TAG_NONE, 0)
        print(status.name, rt_status(0).name, class_, tag == RT_MESSAGE_TAG_NONE, bytes(msg or b"").decode())


if __name__ == "__main__":
    main()
