"""The exokernel mailbox, row by row: processes of their own, ticks of 10 ms, statuses and never an exception."""

import collections
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.facades import exokernel as exo
from shmipc.facades.exokernel import (
    EXO_IPC_STATUS_ERROR,
    EXO_IPC_STATUS_SUCCESS,
    EXO_IPC_STATUS_TIMEOUT,
    MAILBOX_BUFSZ,
    Recv_T,
    exo_ipc_queue_recv_timed,
    exo_ipc_reason,
    exo_ipc_status,
    ipcs,
    mailbox_recv_t,
    mbox_close,
    mbox_open,
    mbox_recv,
    mbox_send,
)
from shmipc.memory import membership
from tests.facades.users import MSG, User, msg
from tests.programs import Program

TICK = 0.01
WATCHDOG = 1000  # ticks
NONE = exo_ipc_status.EXO_IPC_STATUS_TIMEOUT, b""


def number_in(body: bytes) -> int:
    return int(MSG.unpack(body)[1])


def drain(m: exo.mbox | None) -> list[int]:
    found = []
    while True:
        status, body, _ = mailbox_recv_t(m, MSG.size, 0)
        if status != EXO_IPC_STATUS_SUCCESS:
            assert status == EXO_IPC_STATUS_TIMEOUT
            return found
        found.append(number_in(body))


def waits(ref: Any, what: str = "send") -> bool:
    """Is a thread of that process parked in a send, or a receive?"""
    found = shmipc.System.current()._membership.member
    told = found.whereabouts(ref._shm.id)
    return " runs " in told and {"send": "waits for room", "receive": "waits for a message"}[what] in told


@pytest.fixture
def default_is_left(system: shmipc.System) -> Iterator[None]:
    """The default system, which `ipcs` opens, is left before the test's own."""
    yield
    if membership._default is not None:
        membership._default.leave()


# --- I1, I2, I3 ------------------------------------------------------------------------------------------------


@pytest.mark.row("I1")
def test_two_programs_open_one_mailbox_by_name_and_ping_is_answered(tmp_path: Path) -> None:
    """The interface's own example, in two unrelated programs; each reads the same first-in, first-out queue."""
    server = """
        from shmipc.facades.exokernel import *
        req, resp = mbox_open("req"), mbox_open("resp")
        say("open")
        for _ in range(8):
            status, m = mbox_recv(req, 0)
            assert status == EXO_IPC_STATUS_SUCCESS
            mbox_send(resp, m.replace(b"PING", b"PONG"), 0)
        say("served")
        hear()
    """
    client = """
        from shmipc.facades.exokernel import *
        req, resp = mbox_open("req"), mbox_open("resp")
        m = b"PING".ljust(64)
        mbox_send(req, m, 0)
        status, m = mbox_recv(resp, 100)
        say([int(status), m.decode().strip()])
        for i in range(7):
            mbox_send(req, b"%d" % i + bytes(63), 0)
        say([mbox_recv(resp, 1000)[1][0] - 48 for _ in range(7)])
        status, m, n = Recv_T(resp, 64, 5)
        say([int(status), m.decode(), n])
        hear()
    """
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    with Program(tmp_path / "server", server) as first, Program(tmp_path / "client", client) as second:
        assert first.hear() == "open"
        assert second.hear() == [0, "PONG"]
        assert second.hear() == list(range(7))
        assert second.hear() == [1, "", 64]
        assert first.hear() == "served"
        for program in (first, second):
            program.tell("end")
            assert program.process.wait(10.0) == 0


@pytest.mark.row("I2")
def test_messages_of_another_size_are_refused_and_nothing_is_queued(system: shmipc.System) -> None:
    kept = []  # a mailbox lives as long as somebody has it open
    for size in (1, 5, 64, 5000, 100_000):
        m = mbox_open(f"m{size}", size, 4)
        kept.append(m)
        assert m is not None
        assert m.msg_bytes == size
        for wrong in (size - 1, size + 1, 0):
            assert mbox_send(m, bytes(wrong), 1) == EXO_IPC_STATUS_ERROR
            reason, text = exo.detail()
            assert reason == exo_ipc_reason.INVALID
            assert f"exactly {size}" in text
            assert str(wrong) in text
        assert mailbox_recv_t(m, size, 0) == (EXO_IPC_STATUS_TIMEOUT, b"", size)
        body = os.urandom(size)
        assert mbox_send(m, bytearray(body)) == EXO_IPC_STATUS_SUCCESS
        assert mbox_recv(m) == (EXO_IPC_STATUS_SUCCESS, body)
    assert mbox_open("m64", 65, 4) is None
    assert exo.detail().reason == exo_ipc_reason.INVALID
    assert mbox_open("m64", 64, 5) is None
    again = mbox_open("m64", 64, 4)
    assert mbox_send(again, bytes(64)) == EXO_IPC_STATUS_SUCCESS
    assert mbox_close(again) == EXO_IPC_STATUS_SUCCESS


@pytest.mark.row("I3")
@pytest.mark.race
@pytest.mark.timeout(300)
def test_four_producers_and_four_consumers_each_message_once_and_in_order(
    system: shmipc.System, rounds: Callable[[int, int], int]
) -> None:
    count = rounds(50_000, 5000)
    m = mbox_open("crowd")
    producers, consumers = ([system.spawn(User) for _ in range(4)] for _ in range(2))
    consumed = [user.consume.submit("crowd") for user in consumers]
    produced = [user.produce.submit("crowd", mine, count) for mine, user in enumerate(producers)]
    for future in produced:
        future.result(250)
    for _ in consumers:
        assert mbox_send(m, msg(-1)) == EXO_IPC_STATUS_SUCCESS
    lists = [future.result(250) for future in consumed]
    assert collections.Counter(entry for found in lists for entry in found) == collections.Counter(
        (mine, number) for mine in range(4) for number in range(count)
    )
    for found in lists:
        for mine in range(4):
            of_one = [number for producer, number in found if producer == mine]
            assert of_one == sorted(of_one)
    assert drain(m) == []


# --- I4, I5 ----------------------------------------------------------------------------------------------------


@pytest.mark.row("I4")
def test_a_sender_blocks_at_a_full_mailbox_until_one_is_received(system: shmipc.System) -> None:
    m = mbox_open("full", slots=4)
    user: Any = system.spawn(User)
    for number in range(4):
        assert mbox_send(m, msg(number)) == EXO_IPC_STATUS_SUCCESS
    done: list[float] = []

    def send() -> None:
        assert mbox_send(m, msg(4)) == EXO_IPC_STATUS_SUCCESS
        done.append(time.monotonic())

    thread = threading.Thread(target=send)
    thread.start()
    thread.join(0.2)  # watched: nothing happens
    assert thread.is_alive()
    assert done == []
    other = user.send.submit("full", [5], 0, 4)
    before = time.monotonic()
    assert number_in(mbox_recv(m)[1]) == 0
    thread.join(10.0)
    assert done[0] - before < 1.0
    assert number_in(mbox_recv(m)[1]) == 1
    assert other.result(10)[0][0] == EXO_IPC_STATUS_SUCCESS
    assert drain(m) == [2, 3, 4, 5]


@pytest.mark.row("I5")
def test_a_receiver_blocks_at_an_empty_mailbox_until_one_is_sent(system: shmipc.System) -> None:
    m = mbox_open("empty")
    user: Any = system.spawn(User)
    for where in ("thread", "process"):
        done: list[tuple[int, bytes, float]] = []
        if where == "thread":
            act = lambda: done.append((*mbox_recv(m), time.monotonic()))  # noqa: E731, B023
        else:
            act = lambda: done.extend(user.receive("empty", 1))  # noqa: E731, B023
        thread = threading.Thread(target=act)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert done == []
        before = time.monotonic()
        assert mbox_send(m, msg(7)) == EXO_IPC_STATUS_SUCCESS
        thread.join(10.0)
        [(status, body, at)] = done
        assert (status, number_in(body)) == (EXO_IPC_STATUS_SUCCESS, 7)
        assert at - before < 1.0


# --- I6 to I9 --------------------------------------------------------------------------------------------------


@pytest.mark.row("I6")
def test_a_message_whose_send_timed_out_never_appears(system: shmipc.System) -> None:
    m = mbox_open("full", slots=2)
    user: Any = system.spawn(User)
    sent = 0
    for turn in range(20):  # room comes free at about the time at which it ends
        while mailbox_recv_t(m, MSG.size, 0)[0] == EXO_IPC_STATUS_SUCCESS:
            pass
        assert [mbox_send(m, msg(number)) for number in (1, 2)] == [EXO_IPC_STATUS_SUCCESS] * 2
        started = time.monotonic()
        timed = user.send.submit("full", [3], 2, 2)
        found = []
        if turn % 2:
            time.sleep(2 * TICK)  # watched: the race with the deadline is what is tested
            found.append(number_in(mbox_recv(m)[1]))
        [(status, at)] = timed.result(10)
        found += drain(m)
        if status == EXO_IPC_STATUS_TIMEOUT:
            assert at - started >= 2 * TICK
            assert found == [1, 2]
            assert mbox_recv(m, 1) == NONE
        else:
            assert status == EXO_IPC_STATUS_SUCCESS
            assert found == [1, 2, 3]
            sent += 1
        assert turn % 2 or status == EXO_IPC_STATUS_TIMEOUT
    assert sent <= 10


@pytest.mark.row("I7")
@pytest.mark.row("I11")
@pytest.mark.parametrize("receive", [mailbox_recv_t, Recv_T])
def test_a_receive_that_times_out_consumes_nothing(system: shmipc.System, receive: Any) -> None:
    m = mbox_open("late")
    sent: list[float] = []

    def send() -> None:
        assert mbox_send(m, msg(9)) == EXO_IPC_STATUS_SUCCESS
        sent.append(time.monotonic())

    timer = threading.Timer(20 * TICK, send)
    started = time.monotonic()
    timer.start()
    assert receive(m, MSG.size, 15) == (EXO_IPC_STATUS_TIMEOUT, b"", MSG.size)
    assert time.monotonic() - started >= 15 * TICK
    assert exo.detail().reason == exo_ipc_reason.AGAIN
    assert receive(m, MSG.size, WATCHDOG if sent else 30) == (EXO_IPC_STATUS_SUCCESS, msg(9), MSG.size)
    assert receive(m, MSG.size, 0) == (EXO_IPC_STATUS_TIMEOUT, b"", MSG.size)
    timer.join()


@pytest.mark.row("I8")
@pytest.mark.parametrize("storm", [False, True])
def test_a_hundred_ticks_are_a_second(system: shmipc.System, storm: bool) -> None:
    m, full = mbox_open("quiet"), mbox_open("storm", slots=1)
    woken = 0

    def count(number: int, frame: Any) -> None:
        nonlocal woken
        woken += 1

    before = signal.signal(signal.SIGUSR1, count)
    user: Any = system.spawn(User)
    if storm:
        user.storm.cast("storm", os.getpid())
    results = []
    others = [
        threading.Thread(target=lambda: results.append(timed(lambda: mbox_recv(m, 100)))),
        threading.Thread(target=lambda: results.append(timed(lambda: mailbox_recv_t(m, 64, 100)))),
    ]
    try:
        for thread in others:
            thread.start()
        results.append(timed(lambda: mbox_recv(m, 100)))
        for thread in others:
            thread.join()
        for status, took in results:
            assert status == EXO_IPC_STATUS_TIMEOUT
            assert 1.0 <= took < 13.0
        assert len(results) == 3
        assert not storm or woken > 20
    finally:
        shmipc.process(user).kill()
        assert shmipc.process(user).join(10)
        signal.signal(signal.SIGUSR1, before)
    assert full is not None


def timed(act: Callable[[], tuple[Any, ...]]) -> tuple[Any, float]:
    started = time.monotonic()
    status = act()[0]
    return status, time.monotonic() - started


@pytest.mark.row("I9")
@pytest.mark.usefixtures("default_is_left")
def test_zero_ticks_block_a_send_and_poll_in_recv_t(system: shmipc.System) -> None:
    m = mbox_open("zero", slots=1)
    assert mbox_send(m, msg(0), 0) == EXO_IPC_STATUS_SUCCESS
    user: Any = system.spawn(User)
    assert user.send("other", [1])  # it is there
    started = time.monotonic()
    sent = user.send.submit("zero", [1], 0, 1)
    time.sleep(0.3)  # watched: nothing happens
    assert not sent.done()
    assert number_in(mbox_recv(m, 0)[1]) == 0
    [(status, at)] = sent.result(10)
    assert status == EXO_IPC_STATUS_SUCCESS
    assert at - started >= 0.3
    assert number_in(mbox_recv(m, 0)[1]) == 1
    for poll in (mailbox_recv_t, Recv_T):
        status, took = timed(lambda: poll(m, 64, 0))  # noqa: B023
        assert status == EXO_IPC_STATUS_TIMEOUT
        assert took < 0.2
    assert timed(lambda: exo_ipc_queue_recv_timed(3, 64, 0))[0] == EXO_IPC_STATUS_TIMEOUT
    for never in (1 << 62, 10**400):
        assert mbox_send(m, msg(2), never) == EXO_IPC_STATUS_SUCCESS
        assert mailbox_recv_t(m, 64, never) == (EXO_IPC_STATUS_SUCCESS, msg(2), 64)
    for function in (mbox_send, mbox_recv, mailbox_recv_t):
        assert function.__doc__ is not None
        assert "0" in function.__doc__


# --- I10, I12 --------------------------------------------------------------------------------------------------


@pytest.mark.row("I10")
@pytest.mark.usefixtures("default_is_left")
def test_statuses_are_0_1_2_and_the_detail_says_more(system: shmipc.System) -> None:
    assert [(status.name, status.value) for status in exo_ipc_status] == [
        ("EXO_IPC_STATUS_SUCCESS", 0),
        ("EXO_IPC_STATUS_TIMEOUT", 1),
        ("EXO_IPC_STATUS_ERROR", 2),
    ]
    assert (EXO_IPC_STATUS_SUCCESS, EXO_IPC_STATUS_TIMEOUT, EXO_IPC_STATUS_ERROR) == (0, 1, 2)
    reasons: list[str] = []
    in_thread = threading.Thread(target=lambda: reasons.append(exo.detail().reason.name))
    m = mbox_open("small", slots=1)
    assert mbox_send(m, msg(1)) == EXO_IPC_STATUS_SUCCESS
    assert mbox_send(m, msg(2), 1) == EXO_IPC_STATUS_TIMEOUT
    assert exo.detail().reason == exo_ipc_reason.AGAIN
    assert "0.01 s" in exo.detail().text
    for index in (-1, MAILBOX_BUFSZ):
        assert exo_ipc_queue_recv_timed(index, 64, 1) == (EXO_IPC_STATUS_ERROR, b"", 64)
        assert exo.detail().reason == exo_ipc_reason.BADDEST
        assert str(index) in exo.detail().text
    assert mbox_close(m) == EXO_IPC_STATUS_SUCCESS
    bad: list[Any] = [m, None, "small", ipcs[16], ipcs[-1]]
    for handle in bad:
        for status in (mbox_send(handle, msg(1)), mbox_recv(handle)[0], Recv_T(handle, 64, 1)[0], mbox_close(handle)):
            assert status == EXO_IPC_STATUS_ERROR
            assert exo.detail().reason == exo_ipc_reason.BADDEST
    in_thread.start()
    in_thread.join()
    assert reasons == ["NONE"]  # each thread has its own


@pytest.mark.row("I10")
@pytest.mark.usefixtures("default_is_left")
def test_wrong_arguments_are_statuses_and_never_exceptions(system: shmipc.System) -> None:
    m = mbox_open("strict")
    any_: Any = None
    acts: list[Callable[[], Any]] = [
        lambda: mbox_open(any_),
        lambda: mbox_open("no/such"),
        lambda: mbox_open("x", any_),
        lambda: mbox_open("x", 0),
        lambda: mbox_open("x", 1 << 40),
        lambda: mbox_open("x", 64, 0),
        lambda: mbox_open("x", 64, "many"),  # type: ignore[arg-type]
        lambda: mbox_send(m, any_),
        lambda: mbox_send(m, "text"),  # type: ignore[arg-type]
        lambda: mbox_send(m, 64),  # type: ignore[arg-type]
        lambda: mbox_send(m, msg(1), 1.5),  # type: ignore[arg-type]
        lambda: mbox_recv(m, "soon"),  # type: ignore[arg-type]
        lambda: mailbox_recv_t(m, -1, 0),
        lambda: mailbox_recv_t(m, any_, 0),
        lambda: mailbox_recv_t(m, 64, any_),
    ]
    for act in acts:
        result = act()
        status = result[0] if isinstance(result, tuple) else result
        assert status in (None, EXO_IPC_STATUS_ERROR)
        assert exo.detail().reason == exo_ipc_reason.INVALID
    assert ipcs[any_] is None
    assert drain(m) == []


@pytest.mark.row("I12")
def test_a_buffer_that_is_too_small_leaves_the_message_and_says_what_it_needs(system: shmipc.System) -> None:
    for size in (64, 100_000):
        m = mbox_open(f"m{size}", size)
        bodies = [os.urandom(size) for _ in range(2)]
        for body in bodies:
            assert mbox_send(m, body) == EXO_IPC_STATUS_SUCCESS
        for ticks in (0, 1, -1):
            for small in (0, 8, size - 1):
                assert mailbox_recv_t(m, small, ticks) == (EXO_IPC_STATUS_ERROR, b"", size)
                assert exo.detail().reason == exo_ipc_reason.TOO_SMALL
        assert mailbox_recv_t(m, size, 0) == (EXO_IPC_STATUS_SUCCESS, bodies[0], size)
        assert mailbox_recv_t(m, 2 * size, 0) == (EXO_IPC_STATUS_SUCCESS, bodies[1], size)
        assert mailbox_recv_t(m, 8, 0) == (EXO_IPC_STATUS_TIMEOUT, b"", 8)


@pytest.mark.row("I2")
@pytest.mark.row("I12")
def test_ticks_of_timers_keep_the_length_of_a_mailbox_and_the_size_of_a_buffer(system: shmipc.System) -> None:
    m = mbox_open("ticks", 8, 4)
    for wrong in ("a string", 8, bytes(7), bytes(9)):
        with pytest.raises(shmipc.InvalidArgument, match="exactly 8"):
            shmipc.send_after(0, "ticks", wrong)
    shmipc.send_after(0, "ticks", b"8 bytes.")
    for _ in range(2):
        assert mailbox_recv_t(m, 7, -1) == (EXO_IPC_STATUS_ERROR, b"", 8)
        assert exo.detail().reason == exo_ipc_reason.TOO_SMALL
    assert mailbox_recv_t(m, 8, 0) == (EXO_IPC_STATUS_SUCCESS, b"8 bytes.", 8)


# --- I13 -------------------------------------------------------------------------------------------------------


@pytest.mark.row("I13")
@pytest.mark.race
def test_processes_that_start_together_share_the_global_mailboxes(
    tmp_path: Path, rounds: Callable[[int, int], int], eventually: Callable[..., None]
) -> None:
    """Forked ones, so that all come to the making at once; no process holds the mailboxes before them."""
    program = """
        from shmipc.facades.exokernel import *
        count = int(sys.argv[1])
        go, went, over = os.pipe(), os.pipe(), os.pipe()
        children = []
        for number in range(count):
            child = os.fork()
            if child == 0:
                os.close(over[1])
                os.read(go[0], 1)
                status = mbox_send(ipcs[5], b"%d" % number + bytes(64 - len(str(number))), 1000)
                os.write(went[1], b"+" if status == EXO_IPC_STATUS_SUCCESS else b"-")
                os.read(over[0], 1)
                os._exit(0)
            children.append(child)
        os.write(go[1], b"." * count)
        said = b""
        while len(said) < count:
            said += os.read(went[0], count)
        found = []
        while True:
            status, m, n = exo_ipc_queue_recv_timed(5, 64, 0)
            if status != EXO_IPC_STATUS_SUCCESS:
                break
            found.append(int(m.rstrip(bytes(1))))
        others = [int(exo_ipc_queue_recv_timed(i, 64, 0)[0]) for i in range(-1, 17) if i != 5]
        os.close(over[1])
        ends = [os.waitpid(child, 0)[1] for child in children]
        say([said.decode(), sorted(found), others, ends])
        hear()
    """
    count = rounds(50, 20)
    with Program(tmp_path, program, count) as made:
        said, found, others, ends = made.hear()
        assert said == "+" * count
        assert found == list(range(count))
        assert others == [2, *[1] * 15, 2]
        assert ends == [0] * count
        made.tell("end")
        assert made.process.wait(10.0) == 0


# --- I14, I15 --------------------------------------------------------------------------------------------------


@pytest.mark.row("I14")
@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["send", "receive"])
def test_killing_one_who_waits_loses_no_message_and_leaves_no_ghost(
    system: shmipc.System, rounds: Callable[[int, int], int], what: str, eventually: Callable[..., None]
) -> None:
    m = mbox_open("box", slots=4)
    echo: Any = system.spawn(User)
    req, resp = mbox_open("req"), mbox_open("resp")
    echoing = echo.echo.submit(1 << 30)
    choose = random.Random(14)
    for turn in range(rounds(250, 15)):
        victim: Any = system.spawn(User)
        if what == "send":
            for number in range(4):
                assert mbox_send(m, msg(number)) == EXO_IPC_STATUS_SUCCESS
        victim.block_for_ever.cast("box", turn, what)
        if choose.random() < 0.7:
            eventually(lambda: waits(victim, what))  # noqa: B023
        threading.Event().wait(choose.uniform(0, 0.003))
        shmipc.process(victim).kill()
        if what == "send":
            found = [MSG.unpack(mbox_recv(m, WATCHDOG)[1]) for _ in range(4)]
            assert found == [(0, number) for number in range(4)]
        assert shmipc.process(victim).join(10)
        if what == "send":  # what it had got in is received, once
            while (entry := mailbox_recv_t(m, 64, 0))[0] == EXO_IPC_STATUS_SUCCESS:
                assert MSG.unpack(entry[1]) == (turn, -1)
        for number in range(6):  # more than the mailbox holds: no ghost takes room or a message
            assert mbox_send(m, msg(number), WATCHDOG) == EXO_IPC_STATUS_SUCCESS
            assert mbox_send(req, msg(number), WATCHDOG) == EXO_IPC_STATUS_SUCCESS
            assert number_in(mbox_recv(m, WATCHDOG)[1]) == number
            assert number_in(mbox_recv(resp, WATCHDOG)[1]) == number
        for number in range(4):
            assert mbox_send(m, msg(number), WATCHDOG) == EXO_IPC_STATUS_SUCCESS
        assert mbox_send(m, msg(9), 1) == EXO_IPC_STATUS_TIMEOUT
        assert drain(m) == [0, 1, 2, 3]
    assert not echoing.done()
    shmipc.process(echo).kill()


@pytest.mark.row("I15")
@pytest.mark.race
def test_blocked_senders_get_in_in_the_order_in_which_they_came(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    m = mbox_open("line", slots=4)
    for number in range(4):
        assert mbox_send(m, msg(-number)) == EXO_IPC_STATUS_SUCCESS
    users = [system.spawn(User) for _ in range(10)]
    sent = []
    for place, user in enumerate(users):
        sent.append(user.send.submit("line", [place], 0, 4))
        eventually(lambda: waits(user))  # noqa: B023
    found = [number_in(mbox_recv(m, WATCHDOG)[1]) for _ in range(14)]
    assert found == [0, -1, -2, -3, *range(10)]
    for future in sent:
        assert future.result(10)[0][0] == EXO_IPC_STATUS_SUCCESS


@pytest.mark.row("I15")
@pytest.mark.allows_rescue
def test_room_that_one_in_the_line_waits_for_is_not_a_newcomer_s(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    m = mbox_open("line", slots=4)
    for number in range(4):
        assert mbox_send(m, msg(number)) == EXO_IPC_STATUS_SUCCESS
    user: Any = system.spawn(User)
    pid = user.pid()
    sent = user.send.submit("line", [4], 0, 4)
    eventually(lambda: waits(user))
    os.kill(pid, signal.SIGSTOP)  # so that it does not take the room at once
    try:
        assert number_in(mbox_recv(m)[1]) == 0
        assert mbox_send(m, msg(5), 5) == EXO_IPC_STATUS_TIMEOUT
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sent.result(10)[0][0] == EXO_IPC_STATUS_SUCCESS
    assert drain(m) == [1, 2, 3, 4]


@pytest.mark.row("I15")
@pytest.mark.race
def test_no_sender_starves_at_a_mailbox_that_is_always_full(system: shmipc.System) -> None:
    m = mbox_open("line", slots=4)
    users = [system.spawn(User) for _ in range(10)]
    sending = [user.send_until_told.submit("line", mine) for mine, user in enumerate(users)]
    counts = collections.Counter(MSG.unpack(mbox_recv(m, WATCHDOG)[1])[0] for _ in range(20_000))
    assert sorted(counts) == list(range(10))
    assert min(counts.values()) > 20_000 / 10 / 4, counts
    for _ in range(4):  # until each has given up
        while mailbox_recv_t(m, 64, 0)[0] == EXO_IPC_STATUS_SUCCESS:
            counts["left"] += 1
    del sending
