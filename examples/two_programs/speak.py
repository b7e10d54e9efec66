"""The other of two unrelated programs: finds the mailbox by its name, and sends."""

import sys

import shmipc


def main(name: str = "notice-board") -> None:
    with shmipc.Mailbox.open(name, timeout=30.0) as board:
        for text in ("good morning", "good evening", {"and": "good night"}):
            board.send(text)
        board.send(None)  # that was all
        print("said everything")


if __name__ == "__main__":
    main(*sys.argv[1:])
