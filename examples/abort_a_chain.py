"""A client gives up, and three servers that work for it stop: one waits, one waits for that, the last one computes."""

import time

import shmipc


class Server:
    """Asks the next one, or does the work itself; says on the board how that ended."""

    def __init__(self, name: str, board: shmipc.Mailbox) -> None:
        self.name = name
        self.board = board

    def ask(self, others: list["Server"]) -> int:
        """Wait for the next of the chain."""
        try:
            return others[0].ask(others[1:]) if others else self.compute()
        except shmipc.Aborted:
            self.board.send(f"{self.name}: my call was aborted, and so is the one I made")
            raise

    def compute(self) -> int:
        """Busy until somebody stops it."""
        self.board.send(f"{self.name}: I compute")
        steps, limit = 0, time.monotonic() + 30.0
        while not shmipc.aborted() and time.monotonic() < limit:
            steps += 1
        self.board.send(f"{self.name}: nobody wants it any more")
        return steps


def main() -> None:
    with shmipc.System() as system, shmipc.Mailbox.create(slots=8) as board:
        first, second, third = (system.spawn(Server, name, board) for name in ("first", "second", "third"))
        answer = first.ask.submit([second, third])
        print(board.receive(timeout=10.0))

        answer.cancel()  # so would a time limit, shmipc.abort() of this process, or its death
        for line in sorted(board.receive(timeout=10.0) for _ in range(3)):
            print(line)
        assert answer.cancelled()

        quick = first.compute.submit()  # the next request knows nothing of it
        print(board.receive(timeout=10.0))
        shmipc.abort(first)  # its thread, whoever it works for: who waits for it gets its answer
        print(board.receive(timeout=10.0))
        quick.result(timeout=10.0)


if __name__ == "__main__":
    main()
