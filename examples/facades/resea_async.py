"""The example of Resea's asynchronous messages, line by line: a server queues messages, and clients pull them.

Three processes: `my_server`; `my_client`, which waits for the notification and pulls with `async_recv`; and `main`,
which asks by hand, with the message `ASYNC_MSG`, and ends them.

Run:  python examples/facades/resea_async.py
"""

import shmipc
from shmipc.facades.resea import (
    ASSERT_OK,
    ASYNC_MSG,
    IPC_ANY,
    NOTIFICATIONS_MSG,
    NOTIFY_ASYNC,
    TASK_EXITED_MSG,
    async_recv,
    async_reply,
    async_send,
    ipc_call,
    ipc_lookup,
    ipc_recv,
    ipc_send,
    ipc_serve,
    message,
    task_watch,
)

BENCHMARK_NOP_MSG, SUBSCRIBE_MSG, STOP_MSG = 1, 2, 3


# my_server.c
def somewhere(dst: int) -> None:
    # `async_send` enqueues the message and notifies the destination task with
    # the notification `NOTIFY_ASYNC`.
    m = message()
    m.type = BENCHMARK_NOP_MSG
    ASSERT_OK(async_send(dst, m))


def my_server() -> None:
    ASSERT_OK(ipc_serve("my_server"))
    while True:
        m = ASSERT_OK(ipc_recv(IPC_ANY))

        match m.type:
            case _ if m.type == ASYNC_MSG:
                # Handle a request from the client's async_recv().
                async_reply(m.src)
            case _ if m.type == SUBSCRIBE_MSG:
                somewhere(m.src)
            case _ if m.type == STOP_MSG:
                return


# my_client.c
def my_client() -> None:
    my_server = ASSERT_OK(ipc_lookup("my_server"))
    ASSERT_OK(ipc_send(my_server, message(SUBSCRIBE_MSG)))
    while True:
        m = ASSERT_OK(ipc_recv(IPC_ANY))

        match m.type:
            case _ if m.type == NOTIFICATIONS_MSG:
                if m.notifications.data & NOTIFY_ASYNC:
                    # Pull a pending asynchronous message from the server.
                    # As you can see, you have to know which server would
                    # send an async message in advance: you cannot determine
                    # which task has notified NOTIFY_ASYNC! (Here you can: async_recv(IPC_ANY).)
                    m = ASSERT_OK(async_recv(my_server))
                    if m.type == BENCHMARK_NOP_MSG:
                        print("received a async message!", flush=True)
                        return


def main() -> None:
    with shmipc.System() as system:
        system.spawn(my_server)
        server = ASSERT_OK(ipc_lookup("my_server"))
        client = system.spawn(my_client)
        ASSERT_OK(task_watch(client))
        while ASSERT_OK(ipc_recv(IPC_ANY)).type != TASK_EXITED_MSG:
            pass
        # The other way to pull: a request that the server answers when it comes to it.
        ASSERT_OK(ipc_send(server, message(SUBSCRIBE_MSG)))
        m = ASSERT_OK(ipc_call(server, message(ASYNC_MSG)))
        print("asked for one:", m.type == BENCHMARK_NOP_MSG and m.src == server)
        ASSERT_OK(ipc_send(server, message(STOP_MSG)))


if __name__ == "__main__":
    main()
