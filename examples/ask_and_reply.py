"""An actor is asked: calls that wait, calls that do not, and errors that come back."""

import shmipc


class Account:
    """Any class is an actor's class; this one runs in a process of its own."""

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(f"{self.owner} has {self.balance}, not {amount}")
        self.balance -= amount
        return self.balance


def main() -> None:
    with shmipc.System() as system:
        account = system.spawn(Account, "Ada", balance=100)

        assert account.deposit(20) == 120  # call and wait
        account.deposit.cast(5)  # tell, and go on
        future = account.withdraw.submit(25)  # ask now, look later
        print("after a deposit and a withdrawal:", future.result(timeout=10.0))
        assert future.result() == 100

        try:
            account.withdraw(1_000_000)
        except ValueError as error:  # raised over there, raised again here
            print("refused:", error)
        else:
            raise AssertionError("nobody has that much")

        try:
            account.close()
        except AttributeError as error:  # known here, nothing was sent
            print("no such method:", error)


if __name__ == "__main__":
    main()
