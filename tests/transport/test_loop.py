"""Message loops: handlers by id, urgency, ids, the end with a code."""

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc import Mailbox, MessageLoop
from shmipc.transport import loops
from tests.actors import Actor
from tests.interruptions import Interruption, each_place

LIMIT = 20.0  # seconds; a watchdog


class Poster(Actor):
    def post(self, box: Mailbox, messages: list[tuple[int, Any, int]], code: int | None = None) -> None:
        loop = MessageLoop(box)
        for id, body, priority in messages:
            loop.post(id, body, priority=priority)
        if code is not None:
            loop.quit(code)

    def call(self, box: Mailbox, id: int, body: Any) -> Any:
        return shmipc.call(box, body, tag=id, timeout=LIMIT)

    def call_briefly(self, box: Mailbox, id: int) -> str:
        try:
            shmipc.call(box, None, tag=id, timeout=0.2)
        except shmipc.Timeout as error:
            return type(error).__name__
        return "answered"

    def run(self, box: Mailbox) -> tuple[int, list[Any]]:
        loop, seen = MessageLoop(box), []
        loop.default(lambda message: seen.append(message.body))
        return loop.run(), seen


@pytest.fixture(scope="module")
def posters(home: shmipc.System) -> list[Any]:
    return [home.spawn(Poster) for _ in range(2)]


@pytest.fixture
def poster(posters: list[Any]) -> Any:
    return posters[0]


@pytest.fixture
def loop(home: shmipc.System) -> Iterator[MessageLoop]:
    with MessageLoop(slots=32) as made:
        yield made


@pytest.mark.row("F10", "F11")
def test_handlers_by_id_and_a_default_run_until_the_quit(loop: MessageLoop, poster: Any, caplog: Any) -> None:
    seen: list[Any] = []

    @loop.on(1)
    def first(message: shmipc.Message) -> None:
        seen.append((1, message.body))

    @loop.on(2, 3)
    def second(message: shmipc.Message) -> None:
        seen.append((message.tag, message.body))
        if message.tag == 3:
            raise ZeroDivisionError("on purpose")

    @loop.default
    def other(message: shmipc.Message) -> None:
        seen.append(("other", message.body))

    poster.post(loop.mailbox, [(1, "a", 0), (3, "b", 0), (2, "c", 0), (77, "d", 0)], 42)
    poster.post(loop.mailbox, [(1, "behind", 0)])
    with caplog.at_level(logging.ERROR, "shmipc.actor"):
        assert loop.run() == 42
    assert seen == [(1, "a"), (3, "b"), (2, "c"), ("other", "d")]
    assert loop.failed == 1
    assert "message 3 failed" in caplog.text
    assert "on purpose" in caplog.text
    assert loop.mailbox.receive(0) == "behind"


@pytest.mark.row("F11")
def test_messages_before_the_quit_are_handled_the_most_urgent_first(loop: MessageLoop, poster: Any) -> None:
    seen: list[Any] = []
    loop.default(lambda message: seen.append(message.body))
    poster.post(loop.mailbox, [(5, "late", 900), (6, "soon", 1), (5, "now", 0)], -7)
    poster.post(loop.mailbox, [(5, "behind", 0)])
    peeked = loop.peek()
    assert peeked is not None
    assert peeked.body == "now"
    assert loop.run(ids=(5, 5)) == -7
    assert seen == ["now", "late"]
    assert loop.code == -7
    loop.quit(1)
    assert loop.run() == 1
    assert seen == ["now", "late", "behind", "soon"]
    loop.quit(8)
    assert loop.peek() is None
    assert loop.get(0) is None
    assert loop.code == 8
    with pytest.raises(shmipc.MailboxEmpty):
        loop.get(0)
    with pytest.raises(shmipc.Timeout):
        loop.get(0.05)


def test_what_a_handler_returns_or_raises_answers_a_call(loop: MessageLoop, poster: Any) -> None:
    loop.on(1)(lambda message: message.body * 2)
    loop.on(2)(lambda message: 1 // message.body)
    loop.on(3)(lambda message: message.reply("itself"))
    codes: list[int] = []
    running = threading.Thread(target=lambda: codes.append(loop.run()))
    running.start()
    assert poster.call(loop.mailbox, 1, 21) == 42
    assert poster.call(loop.mailbox, 3, None) == "itself"
    with pytest.raises(ZeroDivisionError):
        poster.call(loop.mailbox, 2, 0)
    with pytest.raises(shmipc.InvalidArgument, match="nobody handles messages of id 4"):
        poster.call(loop.mailbox, 4, 0)
    loop.quit(3)
    running.join(LIMIT)
    assert codes == [3]
    assert loop.failed == 2


def test_handler_that_raises_behind_its_answer_has_failed(loop: MessageLoop, poster: Any, caplog: Any) -> None:
    @loop.on(1)
    def answer(message: shmipc.Message) -> None:
        message.reply("done")
        raise shmipc.PeerDead("another call of its own")

    call = poster.call.submit(loop.mailbox, 1, None)
    message = loop.get(LIMIT)
    assert message is not None
    assert not loop.dispatch(message)
    assert call.result(LIMIT) == "done"
    assert (loop.failed, len(caplog.records)) == (1, 1)


def test_loop_outlives_a_caller_that_gives_up(loop: MessageLoop, poster: Any) -> None:
    held: list[shmipc.Message] = []

    @loop.on(1)
    def late(message: shmipc.Message) -> None:
        while message.is_open():
            pass

    given_up = poster.call_briefly.submit(loop.mailbox, 1)
    message = loop.get(LIMIT)
    assert message is not None
    loop.dispatch(message)
    held.append(message)
    assert given_up.result(LIMIT) == "Timeout"
    with pytest.raises(shmipc.Timeout):
        loop.get(0.05)
    with pytest.raises(shmipc.Aborted):
        held[0].reply("too late")
    assert loop.failed == 0


def test_handler_may_end_its_own_loop_and_post_to_it(loop: MessageLoop) -> None:
    @loop.on(1)
    def again(message: shmipc.Message) -> None:
        if message.body:
            loop.post(1, message.body - 1)
        else:
            loop.quit(5)

    loop.post(1, 10)
    assert loop.run() == 5


def test_loop_runs_in_another_process_than_its_mailbox_was_made_in(posters: list[Any]) -> None:
    poster, other = posters
    with MessageLoop() as loop:
        running = other.run.submit(loop.mailbox)
        poster.post(loop.mailbox, [(1, n, n % 3) for n in range(50)], 4)
        code, seen = running.result(LIMIT)
    assert (code, sorted(seen)) == (4, list(range(50)))


@pytest.mark.parametrize("wrong", [0, -1, 1 << 60, None, "1", True])
def test_what_is_no_id_is_refused(loop: MessageLoop, wrong: Any) -> None:
    for act in (lambda: loop.post(wrong), lambda: loop.on(wrong)):
        with pytest.raises((ValueError, TypeError)):
            act()
    for code in (None, "1", 1 << 63):
        with pytest.raises((ValueError, TypeError)):
            loop.quit(code)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        loop.default(5)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        MessageLoop("name")  # type: ignore[arg-type]
    assert loop.mailbox.count() == 0


def test_full_mailbox_refuses_a_post_and_a_quit_that_may_not_wait(home: shmipc.System) -> None:
    with MessageLoop(slots=1) as loop:
        loop.post(1)
        with pytest.raises(shmipc.MailboxFull):
            loop.post(1)
        with pytest.raises(shmipc.MailboxFull):
            loop.quit(timeout=0)
        with pytest.raises(shmipc.Timeout):
            loop.quit(timeout=0.05)
        loop.close()
        with pytest.raises(shmipc.Closed):
            loop.run()


class Ill:
    """A body whose unpickling raises one of shmipc's own errors, as that of a mailbox that was closed does."""

    def __reduce__(self) -> Any:
        return Mailbox.open, ("not-there",)


def test_body_that_cannot_be_unpickled_does_not_end_the_loop(loop: MessageLoop, caplog: Any) -> None:
    seen: list[Any] = []
    loop.default(lambda message: seen.append(message.body))
    for body in (Ill(), "a", Ill()):
        loop.post(1, body, priority=3)
    loop.quit(7)
    loop.post(2, Ill())
    loop.post(2, "behind")
    assert loop.run() == 7
    assert (seen, loop.failed) == (["a"], 2)
    assert caplog.text.count("could not be read") == 2
    with pytest.raises(shmipc.NotFound):
        loop.peek()
    with pytest.raises(shmipc.NotFound):
        loop.get(0)
    assert loop.get(0).body == "behind"  # type: ignore[union-attr]
    with pytest.raises(TypeError):
        loop.run(ids=("1", 2))  # type: ignore[arg-type]


def test_loop_is_not_sent(loop: MessageLoop) -> None:
    with pytest.raises(shmipc.NotSupported, match="send its mailbox"):
        pickle.dumps(loop)


def test_of_threads_with_one_loop_each_ends_by_a_quit_of_its_own(loop: MessageLoop) -> None:
    """The one handles what was before both, while the other ends."""
    bodies, codes, one_ends = [], [], threading.Event()

    @loop.default
    def handle(message: shmipc.Message) -> None:
        bodies.append(message.body)
        assert one_ends.wait(LIMIT)

    def run() -> None:
        codes.append(loop.run())
        one_ends.set()

    loop.post(5, "less urgent", priority=5)
    for code in (1, 2):
        loop.quit(code)
    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5.0)
    assert codes == [1, 2]
    assert bodies == ["less urgent"]
    assert loop.mailbox.count() == 0


class Victim(Poster):
    def get(self, box: Mailbox) -> Any:
        """One message, and no more."""
        message = MessageLoop(box).get(LIMIT)
        return None if message is None else message.body

    def die_of_one(self, box: Mailbox) -> None:
        loop = MessageLoop(box)
        loop.default(lambda message: os.kill(os.getpid(), signal.SIGKILL))
        loop.run()


def test_quit_stays_for_the_others_until_it_is_next(system: shmipc.System) -> None:
    victim, other = system.spawn(Victim), system.spawn(Poster)
    with MessageLoop(slots=32, system=system) as loop:
        for priority in (5, 0, 5):  # what comes after the quit is behind it, however urgent
            loop.post(5, priority, priority=priority)
        loop.quit(42)
        loop.post(5, "later")
        assert victim.get(loop.mailbox) == 0
        with pytest.raises(shmipc.PeerDead):
            victim.die_of_one.call(loop.mailbox, timeout=LIMIT)
        assert other.run.call(loop.mailbox, timeout=LIMIT) == (42, [5])
        assert loop.mailbox.count() == 1


@pytest.mark.parametrize("way", ["get", "run"])
def test_what_a_signal_handler_raises_carries_what_a_loop_had_taken(system: shmipc.System, way: str) -> None:
    with MessageLoop() as loop:
        found: list[Any] = []
        loop.on(1)(lambda message: found.append(message.body))

        def go() -> None:
            try:
                if way == "run":
                    loop.run()
                elif (message := loop.get(0)) is not None:
                    found.append(message.body)
            except Interruption as error:
                message = getattr(error, "message", None)
                if message is not None and message.tag == 1 and message.body not in found:
                    found.append(message.body)
                raise

        for body in "ab" if way == "run" else "a":
            loop.post(1, body)
        loop.quit(0)
        for places in each_place(go, loops):
            while loop.mailbox.count():
                message = loop.get(0)
                found.extend([message.body] if message is not None else [])
            assert found == ["a", "b"][: 2 if way == "run" else 1], places
            found.clear()
            for body in "ab" if way == "run" else "a":
                loop.post(1, body)
            loop.quit(0)
        assert places > 3
