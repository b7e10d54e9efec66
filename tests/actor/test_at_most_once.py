"""A request is executed at most once, whoever dies or gives up meanwhile."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc import Mailbox
from tests.actors import CallingClient, GatedLedger, Ledger, serve_ledger


class Outcomes:
    """What became of the requests of a test, and of those that were asked again as new ones."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.timed_out: list[str] = []
        self.died: list[str] = []

    def ask(self, act: Callable[[str], object], request: str) -> None:
        try:
            assert act(request) == request
        except shmipc.Timeout:
            self.timed_out.append(request)
        except shmipc.PeerDead:
            self.died.append(request)
        else:
            self.answered.append(request)

    def check(self, path: Path) -> None:
        """None ran twice, and each that was answered ran."""
        executed = Counter(path.read_text().split())
        assert [request for request, count in executed.items() if count > 1] == []
        assert set(self.answered) <= set(executed)
        assert len(self.answered) > 0
        assert len(self.died) > 0


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B6")
def test_request_runs_at_most_once_though_its_server_is_killed_and_its_client_asks_again(
    system: shmipc.System, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    path, choose, told = tmp_path / "executed", random.Random(6), Outcomes()
    for generation in range(rounds(300, 30)):
        server: Any = system.spawn(Ledger, str(path))
        process = shmipc.process(server)
        killer = threading.Timer(choose.uniform(0, 0.02), process.kill)
        killer.start()
        timeout = choose.choice([None, None, 0.0005, 0.002])
        for number in range(1_000_000):
            request, deaths = f"{generation}.{number}", len(told.died)
            if choose.random() < 0.5:
                told.ask(lambda request: server.execute.call(request, timeout=timeout), request)  # noqa: B023
            else:
                told.ask(lambda request: shmipc.call(server, request, timeout=timeout), request)  # noqa: B023
            if len(told.died) > deaths:
                break
        killer.join()
        assert process.join(10)
        assert process.cause == ("killed", None, 9)
    told.check(path)
    assert len(told.timed_out) > 0


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B6")
def test_request_is_not_run_by_another_server_after_its_taker_was_killed(
    system: shmipc.System, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    path, choose, told = tmp_path / "executed", random.Random(66), Outcomes()
    mailbox = Mailbox.create(slots=64)
    servers = [system.spawn(serve_ledger, mailbox, str(path)) for _ in range(2)]
    over = threading.Event()
    lock = threading.Lock()

    def client(mine: int) -> None:
        mine_choose, number = random.Random(mine), 0
        while not over.is_set():
            timeout = mine_choose.choice([None, 0.001, 0.005])
            with_outcome = Outcomes()
            with_outcome.ask(lambda request: shmipc.call(mailbox, request, timeout=timeout), f"{mine}.{number}")  # noqa: B023
            with lock:
                told.answered += with_outcome.answered
                told.timed_out += with_outcome.timed_out
                told.died += with_outcome.died
            number += 1

    clients = [threading.Thread(target=client, args=(mine,)) for mine in range(4)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(rounds(300, 30)):
            over.wait(choose.uniform(0, 0.02))  # the random instant of the kill
            place = choose.randrange(2)
            shmipc.process(servers[place]).kill()
            assert shmipc.process(servers[place]).join(10)
            servers[place] = system.spawn(serve_ledger, mailbox, str(path))
    finally:
        over.set()
        for thread in clients:
            thread.join(60)
        for server in servers:
            shmipc.process(server).kill()  # their own mailbox, by which they would be stopped, they never look into
    assert not any(thread.is_alive() for thread in clients)
    told.check(path)


@pytest.mark.row("B6")
def test_request_that_timed_out_before_it_was_taken_is_never_run(system: shmipc.System, tmp_path: Path) -> None:
    path = tmp_path / "executed"
    gate: Any = system.spawn(GatedLedger, str(path))
    shutting = gate.shut.submit()
    for number in range(20):
        with pytest.raises(shmipc.Timeout):
            gate.execute.call(f"m{number}", timeout=0.005)
        with pytest.raises(shmipc.Timeout):
            shmipc.call(gate, f"r{number}", timeout=0.005)
    cancelled = gate.execute.submit("cancelled")
    assert cancelled.cancel()
    shmipc.send(gate, "go on", tag=1)
    assert shutting.result(10) is None
    assert gate.execute("last") == "last"
    assert path.read_text().split() == ["last"]


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B6")
def test_request_of_a_client_that_is_killed_runs_at_most_once(
    system: shmipc.System, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    path, choose = tmp_path / "executed", random.Random(666)
    server: Any = system.spawn(Ledger, str(path))
    for generation in range(rounds(100, 30)):
        client: Any = system.spawn(CallingClient)
        client.go_on.cast(server, generation)
        threading.Event().wait(choose.uniform(0, 0.02))  # the random instant of the kill
        shmipc.process(client).kill()
        assert shmipc.process(client).join(10)
    assert server.execute("last") == "last"
    executed = Counter(path.read_text().split())
    assert max(executed.values()) == 1
    assert len(executed) > 1
