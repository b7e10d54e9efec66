"""The resea facade: rendezvous, notifications and asynchronous messages. This process is a task too."""

import os
import pickle
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmipc
from shmipc.facades import resea
from shmipc.facades.resea import IPC_ANY, NOTIFY_ASYNC, NOTIFY_TIMER, OK, error_t, message
from tests.actors import usage
from tests.facades.tasks import LIMIT, WORK_MSG, Task, collect, number, number_in

ROOM = 128  # asynchronous messages for each pair of tasks


@pytest.fixture(autouse=True, scope="module")
def zygote() -> Iterator[None]:
    """One zygote for all systems of this module: it goes with the last system of the process."""
    with shmipc.System() as anchor:
        anchor.spawn(Task)
        yield


@pytest.fixture
def home() -> Iterator[shmipc.System]:
    with shmipc.System() as made:
        yield made
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.receive(timeout=0)


@pytest.fixture
def crew(home: shmipc.System) -> list[Any]:
    return [home.spawn(Task) for _ in range(3)]


@pytest.fixture
def victim(home: shmipc.System) -> Any:
    return home.spawn(Task)


def stays_blocked(waits: Any, seconds: float = 0.1) -> None:
    """Watched for a while: it does not end. A sleep by intent."""
    threading.Event().wait(seconds)
    assert not waits.done()


def kill(ref: Any) -> int:
    """SIGKILL, and its death is known; its number."""
    task: int = ref.me()
    os.kill(shmipc.process(ref).pid, signal.SIGKILL)
    assert shmipc.process(ref).join(LIMIT)
    return task


def queued(count: int) -> Callable[[], bool]:
    return lambda: shmipc.pending() == count


def bits_of(result: tuple[error_t, message]) -> int:
    m = resea.ASSERT_OK(result)
    assert (m.type, m.src, m.data) == (resea.NOTIFICATIONS_MSG, 0, b"")
    bits: int = m.notifications.data
    return bits


# --- notifications ---------------------------------------------------------------------------------------------


@pytest.mark.row("J1")
def test_bits_coalesce_and_come_before_queued_messages(crew: list[Any], eventually: Any) -> None:
    me, one, two = resea.task_self(), crew[0], crew[1]
    waits = one.send.submit(me, 7)
    eventually(queued(1))
    assert two.notify.call(me, [1, 2, 4] * 100, timeout=LIMIT) == [OK] * 300, "nobody receives: it never waits"
    assert bits_of(resea.ipc_recv(IPC_ANY)) == 7
    stays_blocked(waits, 0.05)
    m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
    assert (number_in(m), m.src, m.notifications.data) == (7, one.me(), 0)
    assert waits.result(LIMIT)[0] == OK
    assert two.notify(me, [1 << 62, 16]) == [OK, OK], "the last three are gone with their receipt"
    assert bits_of(resea.ipc_recv(IPC_ANY)) == 1 << 62 | 16


@pytest.mark.row("J2")
@pytest.mark.timeout(600)
def test_no_bit_is_lost_that_races_with_a_receive(crew: list[Any], rounds: Any) -> None:
    seen, count = shmipc.shared((1,), "int64"), rounds(100_000, 1_000)
    done = crew[0].notify_in_turn.submit(resea.task_self(), seen, count)
    for n in range(count):
        assert bits_of(resea.ipc_recv(IPC_ANY)) == 1 << n % 63
        seen[0] = n + 1
    done.result(LIMIT)


@pytest.mark.row("J3")
def test_closed_receive_leaves_bits_for_an_open_one(crew: list[Any]) -> None:
    me, waiting, other = resea.task_self(), crew[0], crew[1]
    assert other.notify(me, [3]) == [OK]
    told: list[tuple[error_t, message]] = []
    closed = threading.Thread(target=lambda: told.append(resea.ipc_recv(waiting.me())))
    closed.start()
    threading.Event().wait(0.1)
    assert other.notify(me, [4]) == [OK]
    closed.join(0.1)
    assert closed.is_alive()
    assert waiting.send(me, 5)[0] == OK
    closed.join(LIMIT)
    assert number_in(resea.ASSERT_OK(told[0])) == 5
    assert bits_of(resea.ipc_recv(IPC_ANY)) == 7


@pytest.mark.row("J4")
def test_notification_of_a_dead_task_is_refused(victim: Any) -> None:
    task = victim.me()
    assert resea.ipc_notify(task, 1) == OK
    kill(victim)
    for to in (task, victim):
        assert resea.ipc_notify(to, 1) == error_t.ERR_PEER_DEAD
        assert "ended" in resea.detail()
    assert resea.async_send(task, number(1)) == error_t.ERR_PEER_DEAD
    assert resea.ipc_send(task, number(1)) == error_t.ERR_ABORTED


# --- asynchronous messages -------------------------------------------------------------------------------------


@pytest.mark.row("J5")
def test_async_send_never_waits_for_a_stopped_receiver(crew: list[Any], victim: Any) -> None:
    sender, task, process = crew[0], victim.me(), shmipc.process(victim)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        sent = sender.offer(task, 0, ROOM)
        assert [status for status, _ in sent] == [OK] * ROOM
        assert max(took for _, took in sent) < 10 * 0.01
        before = sender.resident()
        refused = sender.offer(task, ROOM, 2000)
        assert {status for status, _ in refused} == {error_t.ERR_WOULD_BLOCK}
        assert max(took for _, took in refused) < 10 * 0.01
        assert sender.resident() - before < 2 << 20
        assert not sender.is_empty(task)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert victim.pull(sender.me(), ROOM) == [(OK, n) for n in range(ROOM)]
    assert sender.is_empty(task)


@pytest.mark.row("J6")
def test_pulls_are_in_order_and_driven_by_notifications_alone(crew: list[Any]) -> None:
    sender, me = crew[0], resea.task_self()
    assert {status for status, _ in sender.offer(me, 0, 100)} == {OK}
    task = sender.me()
    found = collect(100, lambda: [(m.src, number_in(m)) for m in [resea.ASSERT_OK(resea.async_recv(task))]])
    assert found == [(task, n) for n in range(100)]
    assert resea.async_recv(task)[0] == error_t.ERR_EMPTY
    large = message(WORK_MSG, data=b"9" * 100_000)
    assert resea.async_send(me, large) == OK, "to oneself"
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_ASYNC
    assert resea.ASSERT_OK(resea.async_recv(me)).data == large.data


@pytest.mark.row("J7")
def test_pull_of_nothing_is_empty_at_once(crew: list[Any], victim: Any) -> None:
    os.kill(shmipc.process(victim).pid, signal.SIGSTOP)
    try:
        for src in (crew[0].me(), crew[0], victim, IPC_ANY):
            started = time.monotonic()
            assert resea.async_recv(src) == (error_t.ERR_EMPTY, message())
            assert time.monotonic() - started < 1.0
    finally:
        os.kill(shmipc.process(victim).pid, signal.SIGCONT)


@pytest.mark.row("J8")
@pytest.mark.parametrize("known", [True, False])
def test_offers_of_several_senders_are_all_collected(crew: list[Any], known: bool) -> None:
    me, senders = resea.task_self(), {ref.me(): n for n, ref in enumerate(crew)}

    def poll() -> list[tuple[int, int]]:
        """Each sender that may have something, or whoever has."""
        results = [resea.async_recv(src) for src in (senders if known else [IPC_ANY])]
        assert {status for status, _ in results} <= {OK, error_t.ERR_EMPTY}
        return [(m.src, number_in(m)) for status, m in results if status == OK]

    sent = [ref.offer.submit(me, 100 * n, 10) for n, ref in enumerate(crew)]
    found = collect(30, poll)
    assert [{status for status, _ in future.result(LIMIT)} for future in sent] == [{OK}] * 3
    for task, n in senders.items():
        assert [got for src, got in found if src == task] == list(range(100 * n, 100 * n + 10))
    assert shmipc.offers() == []
    assert crew[0].offer(me, 1, 1)[0][0] == OK
    assert shmipc.offers() == [crew[0]], "the receiver can learn who has something"
    assert collect(1, poll) == [(crew[0].me(), 1)]
    while (more := drained()) is not None:
        assert more == NOTIFY_ASYNC


@pytest.mark.row("J8")
def test_asynchronous_messages_of_anybody_are_pulled_in_turn(crew: list[Any]) -> None:
    me = resea.task_self()
    for ref in crew:
        assert {status for status, _ in ref.offer(me, 0, 3)} == {OK}
    pulled = [resea.ASSERT_OK(resea.async_recv(IPC_ANY)) for _ in range(9)]
    turn = sorted(ref.me() for ref in crew)
    assert [(m.src, number_in(m)) for m in pulled] == [(task, n) for n in range(3) for task in turn]
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_ASYNC


def drained() -> int | None:
    """A notification that came for what was pulled by the last one."""
    try:
        bits = shmipc.receive(kind=shmipc.Kind.NOTIFY, timeout=0).body
    except shmipc.MailboxEmpty:
        return None
    assert bits == shmipc.OFFERED
    return NOTIFY_ASYNC


@pytest.mark.row("J9")
def test_async_is_empty_is_exact(crew: list[Any], rounds: Any) -> None:
    sender, me, model, n = crew[0], resea.task_self(), deque[int](), 0
    task = sender.me()
    for _ in range(rounds(5000, 200)):
        if random.random() < 0.5:
            ((status, _),) = sender.offer(me, n, 1)
            assert status == (OK if len(model) < ROOM else error_t.ERR_WOULD_BLOCK)
            if status == OK:
                model.append(n)
                n += 1
        else:
            status, m = resea.async_recv(task)
            assert (status, number_in(m) if status == OK else None) == (
                (OK, model.popleft()) if model else (error_t.ERR_EMPTY, None)
            )
        assert sender.is_empty(me) == (not model)
        assert (shmipc.offers() == [sender]) == bool(model)
    while model:
        assert number_in(resea.ASSERT_OK(resea.async_recv(task))) == model.popleft()
    assert sender.is_empty(me)
    drained()


@pytest.mark.row("J10")
def test_queue_goes_with_its_puller_and_with_its_sender(home: shmipc.System, crew: list[Any], eventually: Any) -> None:
    sender = crew[0]
    puller, other = [home.spawn(Task) for _ in range(2)]
    assert sender.notify(puller.me(), [1]) == [OK]  # the sender has the puller's mailbox open from now on
    assert other.me()
    baseline = usage(home, sender, puller, other)
    assert {status for status, _ in sender.offer(puller.me(), 0, 50)} == {OK}
    assert resea.async_send(puller, message(WORK_MSG, data=bytes(200_000))) == OK
    assert usage(home, sender, other)["mailboxes"] == baseline["mailboxes"] + 2
    kill(puller)
    lost = baseline["undelivered"] + 51  # and reported
    eventually(lambda: usage(home, sender, other)["undelivered"] == lost)
    after = usage(home, sender, other)
    assert after["members"] == baseline["members"] - 1
    assert (after["mailboxes"], after["blocks"]) == (baseline["mailboxes"], baseline["blocks"])
    assert after["leases"] < baseline["leases"], "those of the dead one"
    assert {status for status, _ in other.offer(resea.task_self(), 0, 3)} == {OK}
    task = other.me()
    assert number_in(resea.ASSERT_OK(resea.async_recv(task))) == 0
    kill(other)
    started = time.monotonic()
    for src in (task, other):
        assert resea.async_recv(src) == (error_t.ERR_PEER_DEAD, message())
    assert resea.async_recv(IPC_ANY)[0] == error_t.ERR_EMPTY
    assert time.monotonic() - started < LIMIT
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_ASYNC
    left = usage(home, sender)
    assert (left["mailboxes"], left["blocks"]) == (baseline["mailboxes"], baseline["blocks"])
    assert left["undelivered"] == lost + 2


@pytest.mark.row("J11")
@pytest.mark.timeout(600)
def test_two_that_send_to_each_other_both_go_on(crew: list[Any], rounds: Any) -> None:
    count = rounds(100_000, 3_000)
    one, two = [(ref, ref.me()) for ref in crew[:2]]
    ends = [one[0].exchange.submit(two[1], count), two[0].exchange.submit(one[1], count)]
    assert [end.result(20 * LIMIT) for end in ends] == [count, count]


def test_requests_for_asynchronous_messages_are_answered_by_hand(crew: list[Any]) -> None:
    me, server = resea.task_self(), crew[0]
    task = server.me()
    served = server.serve_pulls.submit(me, 3)
    asked = message(resea.ASYNC_MSG)
    for n in range(3):
        m = resea.ASSERT_OK(resea.ipc_call(task, asked))
        assert (number_in(m), m.src) == (n, task)
    assert resea.ipc_call(task, asked) == (error_t.ERR_EMPTY, message(error_t.ERR_EMPTY, task))
    assert served.result(LIMIT) == [OK] * 4
    assert resea.async_reply(task) == error_t.ERR_INVALID_ARG
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_ASYNC


@pytest.fixture
def asked(crew: list[Any]) -> Iterator[tuple[Any, Any]]:
    """A task that asks this one for an asynchronous message, of three; with the future of its request."""
    puller, me = crew[0], resea.task_self()
    assert [resea.async_send(puller, number(n)) for n in range(3)] == [OK] * 3
    request = puller.call.submit(me, b"", resea.ASYNC_MSG)
    m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
    assert (m.type, m.src) == (resea.ASYNC_MSG, puller._shm.id)
    yield puller, request
    assert resea.async_is_empty(puller)
    assert not resea._self().taken_back


def test_request_that_was_withdrawn_takes_no_message(asked: tuple[Any, Any]) -> None:
    puller, request = asked
    shmipc.abort(puller)
    assert request.result(LIMIT)[0] == error_t.ERR_ABORTED
    assert resea.async_reply(puller) == error_t.ERR_ABORTED
    assert not resea.async_is_empty(puller)
    assert puller.pull(resea.task_self(), 4) == [(OK, 0), (OK, 1), (OK, 2), (error_t.ERR_EMPTY, -1)]


def test_message_goes_back_in_front_when_its_request_is_withdrawn_meanwhile(
    asked: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    puller, request = asked

    def late(got: shmipc.Message, _: object) -> None:
        """The caller has left just before the answer."""
        shmipc.reply(got, (int(error_t.ERR_TIMEOUT), b""))
        raise shmipc.Aborted("withdrawn")

    with monkeypatch.context() as patched:
        patched.setattr("shmipc.actor.calls.reply", late)
        assert resea.async_reply(puller) == error_t.ERR_ABORTED
    assert request.result(LIMIT)[0] == error_t.ERR_TIMEOUT
    assert puller.pull(resea.task_self(), 4) == [(OK, 0), (OK, 1), (OK, 2), (error_t.ERR_EMPTY, -1)]


@pytest.mark.parametrize("by_hand", [True, False])
def test_message_that_cannot_be_answered_with_stays_the_next(
    asked: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    puller, request = asked

    def refuse(*_: object) -> None:
        raise shmipc.OutOfMemory("no room")

    with monkeypatch.context() as patched:
        patched.setattr("shmipc.actor.calls.reply", refuse)
        assert resea.async_reply(puller) == error_t.ERR_NO_MEMORY
        patched.setattr("shmipc.actor.offers.offer", refuse)
        assert not resea.async_is_empty(puller)
        assert resea.async_send(puller, number(9)) == error_t.ERR_NO_MEMORY
    if by_hand:
        assert resea.async_reply(puller) == OK
        assert request.result(LIMIT)[3] == b"0"
    else:
        assert resea.ipc_reply_err(puller, error_t.ERR_TRY_AGAIN) == OK
        assert request.result(LIMIT)[0] == error_t.ERR_TRY_AGAIN
    assert resea.async_send(puller, number(3)) == OK
    assert puller.pull(resea.task_self(), 5 - by_hand)[:-1] == [(OK, n) for n in range(by_hand, 4)]


# --- rendezvous ------------------------------------------------------------------------------------------------


@pytest.mark.row("J12")
def test_send_returns_when_it_is_received(crew: list[Any], victim: Any, eventually: Any) -> None:
    me, sender = resea.task_self(), crew[0]
    sent = sender.send.submit(me, 1)
    eventually(queued(1))
    stays_blocked(sent)
    received = time.monotonic()
    assert number_in(resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))) == 1
    status, returned = sent.result(LIMIT)
    assert status == OK
    assert received < returned < received + 10 * 0.1
    # To one who is busy, and to one who waits.
    status, _ = sender.send(me, 2, False)
    assert status == error_t.ERR_WOULD_BLOCK
    assert shmipc.pending() == 0
    task = sender.me()
    for n, src in ((3, IPC_ANY), (4, task)):
        sent = sender.send_until.submit(me, n)
        assert number_in(resea.ASSERT_OK(resea.ipc_recv(src))) == n
        sent.result(LIMIT)
    # The receiver dies while it takes from another alone, and before.
    blocked = victim.recv.submit(task)
    told: list[tuple[error_t, float, str]] = []
    thread = threading.Thread(
        target=lambda: told.append((resea.ipc_send(victim, number(5)), time.monotonic(), resea.detail()))
    )
    thread.start()
    eventually(lambda: depth_of(victim) == 1)
    killed = time.monotonic()
    os.kill(shmipc.process(victim).pid, signal.SIGKILL)
    thread.join(LIMIT)
    assert told[0][0] == error_t.ERR_ABORTED
    assert told[0][1] - killed < 10 * 1.0
    assert "signal 9" in told[0][2]
    with pytest.raises(shmipc.PeerDead):
        blocked.result(LIMIT)
    assert resea.ipc_send(victim, number(6)) == error_t.ERR_ABORTED
    assert resea.ipc_send_noblock(victim, number(6)) == error_t.ERR_ABORTED
    for refused in (resea.ipc_send, resea.ipc_send_noblock):
        assert refused(me, number(7)) == error_t.ERR_INVALID_ARG, "to oneself"


def depth_of(ref: Any) -> int:
    pid = shmipc.process(ref).pid
    member = shmipc.System.current()._membership.member
    return next(int(record["depth"]) for record in member.members() if record["pid"] == pid)


def test_send_that_is_withdrawn_is_not_received(home: shmipc.System, victim: Any, eventually: Any) -> None:
    sent = victim.send.submit(resea.task_self(), 1)
    eventually(queued(1))
    os.kill(shmipc.process(victim).pid, signal.SIGKILL)
    assert shmipc.process(victim).join(LIMIT)
    with pytest.raises(shmipc.PeerDead):
        sent.result(LIMIT)
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)


@pytest.mark.row("J13")
def test_closed_receive_takes_one_sender_and_leaves_the_turn_of_the_others(crew: list[Any], eventually: Any) -> None:
    me, tasks = resea.task_self(), [ref.me() for ref in crew]
    sent = []
    for n, ref in enumerate(crew):
        sent.append(ref.send.submit(me, n))
        eventually(queued(n + 1))
    m = resea.ASSERT_OK(resea.ipc_recv(tasks[1]))
    assert (m.src, number_in(m)) == (tasks[1], 1)
    assert sent[1].result(LIMIT)[0] == OK
    stays_blocked(sent[0], 0.05)
    assert not sent[2].done()
    for n in (0, 2):
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
        assert (m.src, number_in(m)) == (tasks[n], n)
        assert sent[n].result(LIMIT)[0] == OK


def test_closed_receive_of_a_dead_task_ends(home: shmipc.System, victim: Any) -> None:
    task = victim.me()
    told: list[tuple[error_t, message]] = []
    thread = threading.Thread(target=lambda: told.append(resea.ipc_recv(task)))
    thread.start()
    threading.Event().wait(0.05)
    os.kill(shmipc.process(victim).pid, signal.SIGKILL)
    thread.join(LIMIT)
    assert told == [(error_t.ERR_ABORTED, message())]
    assert shmipc.process(victim).join(LIMIT)
    assert resea.ipc_recv(task) == (error_t.ERR_ABORTED, message())
    assert resea.ipc_recv(resea.task_self()) == (error_t.ERR_INVALID_ARG, message())


def test_closed_receive_of_a_task_that_the_program_monitors_waits(
    crew: list[Any], victim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resea, "LOOK_SECONDS", 0.02)
    told: list[tuple[error_t, message]] = []

    def receive_of(task: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: told.append(resea.ipc_recv(task)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive(), told
        return thread

    mine = shmipc.monitor(crew[0])
    waits = receive_of(crew[0])
    assert crew[0].send(resea.task_self(), 1)[0] == OK
    waits.join(LIMIT)
    assert (told[0][0], number_in(told[0][1])) == (OK, 1)
    assert mine.cancel()
    for cancelled in (False, True):  # its own notice tells of the end; or the look at who lives
        monitored = shmipc.System.current().spawn(Task) if cancelled else victim
        mine = shmipc.monitor(monitored)
        waits = receive_of(monitored)
        assert not cancelled or mine.cancel()
        ended = kill(monitored)
        waits.join(LIMIT)
        status, m = told[-1]
        assert (status, m.task_exited.task) == ((error_t.ERR_ABORTED, 0) if cancelled else (OK, ended))


@pytest.mark.parametrize("handler", ["ipc_recv", "ipc_recv of all", "task_watch", "task_unwatch", "receive"])
@pytest.mark.parametrize("watched", [False, True])
def test_closed_receive_ends_though_a_signal_handler_took_the_notice(
    victim: Any, monkeypatch: pytest.MonkeyPatch, handler: str, watched: bool
) -> None:
    monkeypatch.setattr(resea, "LOOK_SECONDS", 0.02)
    task, process, told = victim.me(), shmipc.process(victim), []
    exited = OK, message(resea.TASK_EXITED_MSG, task, task_exited=resea.task_exited_t(task))
    aborted = error_t.ERR_ABORTED, message()

    def end() -> None:
        os.kill(process.pid, signal.SIGKILL)
        assert process.join(LIMIT)
        if handler == "ipc_recv of all" and not watched:
            threading.Event().wait(0.1)  # by intent: it is told of nothing before
            resea.ipc_notify(resea.task_self(), 2)

    ending = threading.Thread(target=end)

    def handle(number: int, frame: object) -> None:
        if handler not in ("task_watch", "task_unwatch"):
            ending.start()
        if handler == "ipc_recv":
            told.append(resea.ipc_recv(task))
        elif handler == "ipc_recv of all":
            told.append(resea.ipc_recv(IPC_ANY))
        elif handler == "receive":
            told.append(shmipc.receive(kind=shmipc.Kind.EXIT, timeout=LIMIT).sender)
        else:
            told.append(resea.task_watch(task) if handler == "task_watch" else resea.task_unwatch(task))
            ending.start()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        assert not watched or resea.task_watch(task) == OK
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        ended = resea.ipc_recv(task)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ending.join(LIMIT)
    if handler == "task_watch":
        assert (told, ended) == ([error_t.ERR_ALREADY_EXISTS if watched else OK], exited)
    elif handler == "task_unwatch":
        assert (told, ended) == ([OK if watched else error_t.ERR_NOT_FOUND], aborted)
    elif handler == "receive":
        assert (told, ended) == ([victim], aborted)
    elif handler == "ipc_recv of all" and not watched:
        assert bits_of(told[0]) == 2, "the end of a task that is not watched is nobody else's"
        assert ended == aborted
    else:
        assert (told, ended) == ([exited if watched else aborted], aborted)


def test_what_only_the_runtime_says_cannot_be_sent_by_hand(home: shmipc.System) -> None:
    bodies = [(int(type), b"") for type in (*resea.RECEIVED_ONLY, 0, -13, 1 << 31)]
    for body in bodies:
        shmipc.send(shmipc.self(), body)
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
        assert (m.type, pickle.loads(m.data)) == (resea.OTHER_MSG, body)
    for body in bodies:
        shmipc.offer(shmipc.self(), body)
        assert resea.ASSERT_OK(resea.async_recv(resea.task_self())).type == resea.OTHER_MSG
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_ASYNC


# --- calls -----------------------------------------------------------------------------------------------------


@pytest.mark.row("B20")
def test_every_error_is_answered_as_it_was_said(crew: list[Any]) -> None:
    codes = list(error_t)
    asked = crew[0].call_codes.submit(resea.task_self(), len(codes))
    for code in codes:
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
        assert resea.ipc_reply_err(m.src, code) == OK
    assert asked.result(LIMIT) == [(int(code), b"") for code in codes]
    assert resea.ipc_reply_err(crew[0].me(), 99) == error_t.ERR_INVALID_ARG  # type: ignore[arg-type]


def test_calls_are_answered_once_each_and_later(crew: list[Any]) -> None:
    me, server = resea.task_self(), crew[0]
    task, clients = server.me(), {ref.me(): ref for ref in crew[1:]}
    served = server.answer.submit(4)
    for n in range(4):
        m = resea.ASSERT_OK(resea.ipc_call(task, message(WORK_MSG, data=b"%d" % n)))
        assert (m.type, m.src, m.data) == (WORK_MSG, task, b"answer to %d" % n)
    assert served.result(LIMIT) == [me] * 4
    asked = {client: ref.call.submit(me, b"%d" % client) for client, ref in clients.items()}
    sources = [resea.ASSERT_OK(resea.ipc_recv(IPC_ANY)).src for _ in clients]
    assert set(sources) == set(clients)
    for client in reversed(sources):
        assert resea.ipc_reply(client, message(WORK_MSG, data=b"to %d" % client)) == OK
        assert asked[client].result(LIMIT) == (OK, WORK_MSG, me, b"to %d" % client)
    assert resea.ipc_call(me, number(1)) == (error_t.ERR_INVALID_ARG, number(1))


@pytest.fixture
def given_up(crew: list[Any]) -> tuple[Any, message, Any, message]:
    """A task that has given a call up, that call, and the future and call that it waits for now."""
    me, client = resea.task_self(), crew[0]
    call = client.call.submit(me, b"one", resea.ASYNC_MSG)
    first = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
    shmipc.abort(client)
    assert call.result(LIMIT)[0] == error_t.ERR_ABORTED
    call = client.call.submit(me, b"two", resea.ASYNC_MSG)
    return client, first, call, resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))


@pytest.mark.row("B5")
@pytest.mark.row("B7")
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("late", ["ipc_reply", "ipc_reply_err", "ipc_replyrecv", "async_reply"])
def test_late_answer_never_reaches_the_next_call(
    given_up: tuple[Any, message, Any, message], crew: list[Any], late: str, plain: bool, eventually: Any
) -> None:
    client, first, call, second = given_up
    to: list[int] = [int(m.src) if plain else m.src for m in (first, second)]
    answer = message(WORK_MSG, data=b"answer to one")
    if late == "ipc_replyrecv":
        waits = crew[1].send.submit(resea.task_self(), 3)
        eventually(queued(1))
        assert resea.ipc_replyrecv(to[0], answer) == (error_t.ERR_ABORTED, answer)
        stays_blocked(waits)
        assert number_in(resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))) == 3
    elif late == "async_reply":
        assert resea.async_send(client, number(1)) == OK
        assert resea.async_reply(to[0]) == error_t.ERR_ABORTED
    elif late == "ipc_reply_err":
        assert resea.ipc_reply_err(to[0], error_t.ERR_EMPTY) == error_t.ERR_ABORTED
    else:
        assert resea.ipc_reply(to[0], answer) == error_t.ERR_ABORTED
    assert resea.ipc_reply(to[1], message(WORK_MSG, data=b"answer to two")) == OK
    assert call.result(LIMIT) == (OK, WORK_MSG, resea.task_self(), b"answer to two")
    assert resea._self().open_calls == {}
    waits = client.recv.submit(IPC_ANY)
    for m in (first, second):
        assert resea.ipc_reply(m.src, answer) == error_t.ERR_ABORTED, "that call, and nothing else of its task"
    stays_blocked(waits)
    assert resea.ipc_send(client, answer) == OK


@pytest.mark.row("B5")
def test_call_is_answered_by_its_source_whatever_becomes_of_the_one_before(
    given_up: tuple[Any, message, Any, message],
) -> None:
    client, _, call, second = given_up
    assert resea.ipc_reply(second.src, number(2)) == OK, "the first is never answered"
    assert call.result(LIMIT)[3] == number(2).data
    assert pickle.loads(pickle.dumps(second)) == second
    call = client.call.submit(resea.task_self(), b"three")
    third = resea.ASSERT_OK(resea.ipc_recv(client))
    assert resea.ipc_reply(third.src, number(3)) == OK
    assert call.result(LIMIT)[3] == number(3).data
    assert resea.ipc_reply(client, number(1)) == error_t.ERR_ABORTED, "the oldest that is not answered"


def test_calls_that_nobody_waits_for_hold_no_memory(
    home: shmipc.System, given_up: tuple[Any, message, Any, message], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, first, _, second = given_up
    monkeypatch.setattr(resea, "KNOWN_LIMIT", 2)
    assert (first.src.call, second.src.call.is_open()) == (None, True)  # type: ignore[attr-defined]
    for _ in range(3):
        last: Any = home.spawn(Task)
        last.call.submit(resea.task_self(), b"")
        assert resea.ASSERT_OK(resea.ipc_recv(IPC_ANY)).src == last._shm.id
        kill_unasked(last)
    assert list(resea._self().open_calls) == [client._shm.id, last._shm.id]
    for _ in range(4):
        shmipc.abort(client)
        client.call.submit(resea.task_self(), b"")
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
    assert len(resea._self().open_calls[client._shm.id]) == 2
    assert resea.ipc_reply(first.src, number(1)) == error_t.ERR_ABORTED
    assert resea.ipc_reply(m.src, number(1)) == OK


def kill_unasked(ref: Any) -> None:
    """It serves nothing at the moment."""
    os.kill(shmipc.process(ref).pid, signal.SIGKILL)
    assert shmipc.process(ref).join(LIMIT)


def test_call_whose_answer_found_no_memory_keeps_its_place_and_can_be_answered_again() -> None:
    with shmipc.System(memory_limit=8 << 20) as home:
        caller: Any = home.spawn(Task)
        asked = caller.call_in_threads.submit(resea.task_self(), 3)
        first, second, third = [resea.ASSERT_OK(resea.ipc_recv(IPC_ANY)) for _ in range(3)]
        task = int(first.src)
        for src in (second.src, task):
            assert resea.ipc_reply(src, message(WORK_MSG, data=bytes(16 << 20))) == error_t.ERR_NO_MEMORY
        assert resea.ipc_reply(task, message(WORK_MSG, data=b"to " + first.data)) == OK
        assert resea.ipc_reply_err(task, error_t.ERR_NO_MEMORY) == OK
        assert resea.ipc_reply(task, message(WORK_MSG, data=b"to " + third.data)) == OK
        answers = {int(m.data): (OK, b"to " + m.data) for m in (first, third)}
        assert dict(enumerate(asked.result(LIMIT))) == answers | {int(second.data): (error_t.ERR_NO_MEMORY, b"")}


# --- names, ends, timers ---------------------------------------------------------------------------------------


@pytest.mark.row("J14")
def test_lookup_waits_until_the_name_is_served(home: shmipc.System, crew: list[Any], victim: Any) -> None:
    looking, later = crew[0], crew[1]
    started = time.monotonic()
    found = looking.lookup.submit("server", -1)
    stays_blocked(found, 0.3)
    assert victim.serve("server") == OK
    assert found.result(LIMIT)[:2] == (OK, victim.me())
    assert found.result(0)[2] - started >= 0.3
    assert resea.ipc_lookup("server", 10**400) == (OK, victim.me())
    assert later.serve("server") == error_t.ERR_ALREADY_EXISTS
    assert resea.ipc_lookup("server", 0) == (OK, victim.me())
    started = time.monotonic()
    assert resea.ipc_lookup("nobody", 100) == (error_t.ERR_TIMEOUT, 0)
    assert 0.1 <= time.monotonic() - started < 10 * 0.2
    assert resea.ipc_lookup("nobody", 0) == (error_t.ERR_NOT_FOUND, 0)
    kill(victim)
    found = looking.lookup.submit("server", -1)
    stays_blocked(found, 0.2)
    assert later.serve("server") == OK
    assert found.result(LIMIT)[:2] == (OK, later.me())


@pytest.mark.row("J15")
def test_end_of_a_watched_task_is_told_once(home: shmipc.System, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, unwatched, last = [home.spawn(Task) for _ in range(3)]
    task = watched.me()
    with monkeypatch.context() as patched:
        patched.setattr(resea.calls, "monitor", table_is_full)
        assert resea.task_watch(task) == error_t.ERR_NO_MEMORY, "it lives"
    assert resea.task_watch(task) == OK
    assert resea.task_watch(watched) == error_t.ERR_ALREADY_EXISTS
    assert resea.task_watch(unwatched) == OK
    assert resea.task_unwatch(unwatched) == OK
    assert resea.task_unwatch(unwatched) == error_t.ERR_NOT_FOUND
    assert resea.task_watch(last) == OK
    kill(unwatched)
    kill(watched)
    m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
    assert (m.type, m.src, m.task_exited.task, m.data) == (resea.TASK_EXITED_MSG, task, task, b"")
    threading.Event().wait(0.3)  # by intent: no other comes
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)
    assert resea.task_watch(task) == error_t.ERR_INVALID_TASK
    assert resea.task_watch(resea.task_self()) == error_t.ERR_INVALID_TASK
    ended = kill(last)
    m = resea.ASSERT_OK(resea.ipc_recv(ended))
    assert (m.type, m.task_exited.task) == (resea.TASK_EXITED_MSG, ended), "a closed receive of it is told too"


def table_is_full(ref: Any) -> None:
    raise shmipc.LimitExceeded("a monitor: a table of the system is full")


def test_timer_is_a_notification_that_coalesces(crew: list[Any], eventually: Any) -> None:
    started = time.monotonic()
    assert resea.timer_set(50) == OK
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_TIMER
    assert time.monotonic() - started >= 0.05
    assert resea.timer_set(10_000) == OK
    assert resea.timer_set(20) == OK, "the last one set counts"
    threading.Event().wait(0.1)
    assert crew[0].notify(resea.task_self(), [2]) == [OK]
    assert bits_of(resea.ipc_recv(IPC_ANY)) == NOTIFY_TIMER | 2
    for late in (10_000, 10**400):
        assert resea.timer_set(late) == OK
    assert resea.timer_set(0) == OK
    assert resea.timer_set(-1) == error_t.ERR_INVALID_ARG


def test_what_cannot_be_is_a_status(crew: list[Any]) -> None:
    task: Any
    for task in (-1, 1 << 60, True, None, "name", 1.5):
        assert resea.ipc_send(task, number(1)) == error_t.ERR_INVALID_ARG
        assert resea.ipc_call(task, number(1))[0] == error_t.ERR_INVALID_ARG
        assert resea.ipc_notify(task, 1) == error_t.ERR_INVALID_ARG
        assert resea.async_send(task, number(1)) == error_t.ERR_INVALID_ARG
        assert resea.ipc_recv(task) == (error_t.ERR_INVALID_ARG, message())
        assert resea.async_recv(task) == (error_t.ERR_INVALID_ARG, message())
        assert resea.task_watch(task) == error_t.ERR_INVALID_ARG
        assert resea.task_unwatch(task) == error_t.ERR_INVALID_ARG
        assert resea.detail()
    here = crew[0].me()
    m: Any
    for m in (None, b"data", message(0), message(-1), message(1 << 31), message(resea.NOTIFICATIONS_MSG), message(1.5)):  # type: ignore[arg-type]
        assert resea.ipc_send(here, m) == error_t.ERR_INVALID_ARG
        assert resea.ipc_call(here, m) == (error_t.ERR_INVALID_ARG, m)
        assert resea.ipc_reply(here, m) == error_t.ERR_INVALID_ARG
        assert resea.async_send(here, m) == error_t.ERR_INVALID_ARG
    for bits in (0, -1, 1 << 63, 1.5, True):
        assert resea.ipc_notify(here, bits) == error_t.ERR_INVALID_ARG  # type: ignore[arg-type]
    gone = here + (7 << 16)  # another life of that slot
    assert resea.ipc_send(gone, number(1)) == error_t.ERR_ABORTED
    assert resea.ipc_notify(gone, 1) == error_t.ERR_PEER_DEAD
    with pytest.raises(AssertionError, match="ERR_PEER_DEAD"):
        resea.ASSERT_OK(resea.async_recv(gone))
    assert resea.ASSERT_OK(OK) is None


@pytest.mark.row("J12")
@pytest.mark.row("J13")
def test_closed_receive_that_has_set_others_aside_is_met_without_waiting(crew: list[Any], eventually: Any) -> None:
    other, receiver = crew[:2]
    me, task = resea.task_self(), receiver.me()

    def is_met(meet: Callable[[Any, message], error_t], n: int) -> bool:
        status = meet(task, number(n))  # it may not have come to its receive yet
        assert status in (OK, error_t.ERR_WOULD_BLOCK), resea.detail()
        return status == OK

    for meet in (resea.ipc_send_noblock, resea.ipc_reply):
        waits = receiver.recv.submit(me)
        aside = other.send.submit(task, 3)
        eventually(lambda: depth_of(receiver) == 1)
        stays_blocked(waits)
        eventually(lambda: is_met(meet, 7))  # noqa: B023
        status, _, src, data = waits.result(LIMIT)
        assert (status, src, data) == (OK, me, number(7).data)
        assert aside.result(LIMIT)[0] == OK
        waits = receiver.recv.submit(me)
        for _ in range(3):
            stays_blocked(waits)
            assert other.send(task, 9, False)[0] == error_t.ERR_WOULD_BLOCK, "it waits for another"
        eventually(lambda: is_met(meet, 8))  # noqa: B023
        assert waits.result(LIMIT)[0] == OK


def test_task_that_the_program_monitors_is_watched_already(crew: list[Any]) -> None:
    monitor = shmipc.monitor(crew[0])
    assert resea.task_watch(crew[0]) == error_t.ERR_ALREADY_EXISTS
    assert monitor.cancel()
    assert resea.task_watch(crew[0]) == OK


def test_notification_ends_a_receive_though_the_mailbox_is_full_of_calls(home: shmipc.System) -> None:
    task: Any = home.options(slots=4).spawn(Waiting)
    waits = task.wait.submit(shmipc.self())
    assert shmipc.receive(tag=8, timeout=LIMIT).body == "waits"
    for _ in range(4):
        task.nothing.cast()
    stays_blocked(waits)
    assert resea.ipc_notify(task, 2) == OK
    assert waits.result(LIMIT) == 2


class Waiting(Task):
    def wait(self, told: Any) -> int:
        shmipc.send(told, "waits", tag=8)
        return bits_of(resea.ipc_recv(IPC_ANY))

    def nothing(self) -> None:
        pass
