"""A simple message loop of RatOS, in one process: handlers, and a quit with a code.

A second thread posts, as a window or a timer would.
"""

import threading

from shmipc.facades.ratos import (
    RAT_IPC_ERR_CANCELLED,
    RAT_IPC_OK,
    RatCloseMessageQueue,
    RatCreateMessageQueue,
    RatDispatchMessage,
    RatGetMessage,
    RatHandle,
    RatMessage,
    RatMessageHeader,
    RatPostMessage,
    RatPostQuitMessage,
    RatRegisterHandler,
)


def post(mq: RatHandle) -> None:
    for message in (1, 2, 7):
        RatPostMessage(mq, RatMessage(RatMessageHeader(message=message, wparam=10 * message)))
    RatPostQuitMessage(mq, 42)


def main() -> None:
    # RatMessageQueue mq;
    # RatCreateMessageQueue(256, &mq);
    _, mq = RatCreateMessageQueue(256)
    RatRegisterHandler(mq, None, lambda msg: print("default:", msg.header.message))
    poster = threading.Thread(target=post, args=(mq,))
    poster.start()

    # for (;;) {
    while True:
        # RatMessage msg;
        # if (RatGetMessage(mq, &msg, -1) != RAT_IPC_OK) break;
        status, msg = RatGetMessage(mq, -1)
        assert msg is not None
        if status != RAT_IPC_OK:
            break
        # switch (msg.header.message) {
        match msg.header.message:
            # case 1:
            case 1:
                print("one:", msg.header.wparam)  # // handle
            # case 2:
            case 2:
                print("two:", msg.header.wparam)  # // handle
            case _:
                RatDispatchMessage(msg)

    assert status == RAT_IPC_ERR_CANCELLED
    print("quit with", msg.header.wparam)
    poster.join()
    # RatCloseMessageQueue(mq);
    RatCloseMessageQueue(mq)


if __name__ == "__main__":
    main()
