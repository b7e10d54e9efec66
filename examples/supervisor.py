"""A supervisor keeps two actors alive; whoever uses them keeps one Ref over all their lives."""

import logging
import os
import signal
import sys

import shmipc


class Store:
    """Remembers; what it remembers goes with it."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def put(self, key: str, value: int) -> int:
        self.values[key] = value
        return len(self.values)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Adder:
    """Uses the store by its name, so it finds the one that lives."""

    def add(self, key: str, first: int, second: int) -> int:
        return int(shmipc.System.current().lookup("store", timeout=10.0).put(key, first + second))


def main() -> None:
    logging.basicConfig(stream=sys.stdout, format="log: %(message)s")  # each restart is logged
    with shmipc.System() as system:
        supervisor = system.spawn(
            shmipc.Supervisor,
            [shmipc.Child(Store, name="store"), shmipc.Child(Adder, name="adder")],
            strategy="rest_for_one",  # the adder is started again after the store
            max_restarts=1,
        )
        watch = shmipc.monitor(supervisor)
        store, adder = supervisor.child("store", wait=10.0), supervisor.child("adder", wait=10.0)
        print("values in the store:", adder.add("x", 1, 2))

        death = store.die.submit().exception(timeout=10.0)
        assert isinstance(death, shmipc.PeerDead)
        print("values in the new store:", store.put("y", 5))  # the same Ref, a clean slate

        store.die.cast()  # once too often
        notice = shmipc.receive(sender=supervisor, kind=shmipc.Kind.EXIT, timeout=10.0).body
        assert notice.monitor == watch.id
        print("the supervisor gave up:", notice.reason, notice.exitcode)
        assert system.processes() == []


if __name__ == "__main__":
    main()
