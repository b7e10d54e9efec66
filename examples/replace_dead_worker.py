"""A worker dies by SIGKILL: who waits for it is told, and another takes its place."""

import os
import signal

import shmipc


class Worker:
    def __init__(self, name: str) -> None:
        self.name = name

    def where(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    with shmipc.System() as system:
        worker = system.spawn(Worker, "first")
        watch = shmipc.monitor(worker)
        print("the first runs as process", worker.where())

        death = worker.die.submit().exception(timeout=10.0)  # known at once, not after a timeout
        print("the call failed:", death)
        assert isinstance(death, shmipc.PeerDead)
        assert death.signal == signal.SIGKILL

        notice = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=10.0).body
        print("the notice says:", notice.reason, notice.signal)
        assert notice.ref == worker
        assert notice.monitor == watch.id
        assert notice.signal == signal.SIGKILL

        worker = system.spawn(Worker, "second")
        print("the second runs as process", worker.where())
        assert shmipc.process(worker).is_alive()


if __name__ == "__main__":
    main()
