"""One of two unrelated programs: makes a mailbox in the user's default system, and prints what comes.

Start it, and `speak.py` beside it, in any order.
"""

import sys

import shmipc


def main(name: str = "notice-board") -> None:
    with shmipc.Mailbox.create(name) as board:
        print("listening", flush=True)
        heard = []
        while (text := board.receive(timeout=30.0)) is not None:
            print("heard:", text, flush=True)
            heard.append(text)
    assert heard == ["good morning", "good evening", {"and": "good night"}]


if __name__ == "__main__":
    main(*sys.argv[1:])
