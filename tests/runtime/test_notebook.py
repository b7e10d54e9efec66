"""What `__main__` defines works in other processes: in a notebook, at the prompt, in a script without a guard."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.terminal import Terminal, environment, names

# --- a notebook ------------------------------------------------------------------------------------------------

DEFINITIONS = """
import os, time
import numpy as np
import shmipc

factor = 3

class Counter:
    def __init__(self, start):
        self.number = start
    def add(self, step):
        self.number += step
        return self.number
    def fail(self):
        raise Odd("text of the cell's own exception", 5)
    def sleep(self):
        time.sleep(1000)

class Odd(Exception):
    def __init__(self, text, code):
        super().__init__(text)
        self.code = code

def triple(number):
    return factor * number

system = shmipc.System()
"""


class Notebook:
    """A kernel with its client."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        kept = environment(IPYTHONDIR=str(folder), JUPYTER_RUNTIME_DIR=str(folder), HOME=str(folder))
        self.manager.start_kernel(env=kept, cwd=str(folder))
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, timeout: float = 60.0) -> str:
        """Run a cell; the text of its value. An error of it is one here."""
        return self.finish(self.client.execute(code, stop_on_error=False), timeout)

    def finish(self, request: str, timeout: float = 60.0) -> str:
        value, failed = "", None
        while True:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_result":
                value = content["data"]["text/plain"]
            elif kind == "error":
                failed = CellError(content["ename"], content["evalue"], "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                if failed is not None:
                    raise failed
                return value

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.manager.provisioner.pid).children(recursive=True)

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.is_alive():
            self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


class CellError(Exception):
    def __init__(self, name: str, text: str, trace: str) -> None:
        super().__init__(name, text)
        self.name, self.text = name, text
        self.trace = re.sub(r"\x1b\[[0-9;]*m", "", trace)


@pytest.fixture(autouse=True, scope="module")
def loop() -> Iterator[None]:
    """The loop that jupyter_client keeps for this thread: made before descriptors are counted."""
    from jupyter_core.utils import ensure_event_loop

    made = ensure_event_loop()
    yield
    made.close()


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path)
    yield made
    made.close()
    vars(made).clear()


def gone(everybody: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everybody)


@pytest.mark.row("N6")
def test_what_a_notebook_defines_works_in_actors_and_pools(notebook: Notebook) -> None:
    run = notebook.run
    run(DEFINITIONS)
    assert run("counter = system.spawn(Counter, 10); counter.add(5)") == "15"
    assert run("counter.add.submit(1).result(60)") == "16"
    assert run("pool = system.pool(2); list(pool.map(triple, range(5)))") == "[0, 3, 6, 9, 12]"
    assert run("pool.submit(lambda number: number + factor, 4).result(60)") == "7"
    assert run("list(pool.map(lambda a, b: a * b, range(4), range(4), chunksize=2))") == "[0, 1, 4, 9]"
    assert run("other = system.pool(1, Counter, 100); list(other.map(Counter.add, [1, 2]))") == "[101, 103]"
    assert run("pool.submit(lambda: os.getpid()).result(60) != os.getpid()") == "True"
    assert run("pool.submit(np.mean, shmipc.share(np.arange(1000.0))).result(60).item()") == "499.5"
    assert run("def serve():\n  shmipc.reply(shmipc.receive(), factor)\nshmipc.call(system.spawn(serve), 1)") == "3"
    assert run("type(pool.submit(lambda: Counter(1)).result(60)) is Counter") == "True", "their classes are ours"
    # A cell that is run again, with another definition.
    run("factor = 10\nclass Counter:\n    def __init__(self): self.n = 0\n    def twice(self, n): return 2 * n")
    assert run("system.spawn(Counter).twice(21)") == "42"
    assert run("counter.add(1)") == "17", "the actor that runs keeps its class"
    assert run("list(pool.map(triple, range(3)))") == "[0, 10, 20]"


@pytest.mark.row("N6")
def test_error_of_an_actor_is_shown_in_the_notebook_with_its_own_lines(notebook: Notebook) -> None:
    notebook.run(DEFINITIONS)
    notebook.run("counter = system.spawn(Counter, 10)")
    with pytest.raises(CellError) as caught:
        notebook.run("counter.fail()")
    assert (caught.value.name, caught.value.text) == ("Odd", "text of the cell's own exception")
    assert "in fail" in caught.value.trace
    assert notebook.run("try: counter.fail()\nexcept Odd as error: code = error.code") == ""
    assert notebook.run("code") == "5"
    with pytest.raises(CellError) as caught:
        notebook.run("counter.ad(1)")
    assert caught.value.name == "NoSuchMethod"
    assert "did you mean add" in caught.value.text


@pytest.mark.row("N6")
def test_notebook_may_probe_and_complete_a_ref(notebook: Notebook) -> None:
    notebook.run(DEFINITIONS)
    notebook.run("counter = system.spawn(Counter, 10)")
    assert re.fullmatch(r"<Ref Counter.* pid \d+>", notebook.run("counter"))
    reply = notebook.client.complete("counter.a", reply=True, timeout=60)
    assert "add" in "".join(reply["content"]["matches"])
    reply = notebook.client.inspect("counter", reply=True, timeout=60)
    assert reply["content"]["status"] == "ok"
    assert notebook.run("counter.add(1)") == "11"


@pytest.mark.row("N6")
def test_interrupt_of_a_cell_leaves_the_notebook_usable(notebook: Notebook) -> None:
    notebook.run(DEFINITIONS)
    notebook.run("counter, pool = system.spawn(Counter, 10), system.pool(1)")
    for cell in ("shmipc.receive()", "counter.sleep()", "list(pool.map(time.sleep, [1000]))"):
        request = notebook.client.execute(f"print('begun', flush=True); {cell}", stop_on_error=False)
        while True:
            message = notebook.client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "stream" and "begun" in message["content"]["text"]:
                break
        time.sleep(0.2)  # it blocks
        pressed = time.monotonic()
        notebook.manager.interrupt_kernel()
        with pytest.raises(CellError) as caught:
            notebook.finish(request)
        assert caught.value.name == "KeyboardInterrupt"
        assert time.monotonic() - pressed < 10
    assert notebook.run("system.spawn(Counter, 1).add(1)") == "2"
    assert notebook.run("shmipc.process(counter).is_alive()") == "True"


@pytest.mark.row("N6")
@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize("busy", [True, False])
def test_restart_of_the_kernel_leaves_nothing(
    notebook: Notebook, eventually: Callable[..., None], now: bool, busy: bool
) -> None:
    for _ in range(2):
        notebook.run(DEFINITIONS)
        notebook.run("counter, pool = system.spawn(Counter, 10), system.pool(2)")
        notebook.run("mailbox = shmipc.Mailbox.create('named'); array = shmipc.zeros(100_000)")
        if busy:
            notebook.run("counter.sleep.cast(); futures = [pool.submit(time.sleep, 1000) for _ in range(9)]")
        everybody = notebook.descendants()
        assert len(everybody) >= 4
        assert names() != set()
        notebook.client.stop_channels()
        notebook.manager.restart_kernel(now=now)
        notebook.connect()
        eventually(lambda: gone(everybody), 20)  # noqa: B023
        eventually(lambda: names() == set(), 20)
        assert notebook.run("'system' in globals()") == "False"


# --- the prompt, and scripts without a guard -------------------------------------------------------------------

PROGRAM = """
import os
import shmipc

class Counter:
    def __init__(self, start):
        self.number = start
    def add(self, step):
        self.number += step
        return self.number

def triple(number):
    return 3 * number

system = shmipc.System()
counter = system.spawn(Counter, 10)
print("class", counter.add(5))
pool = system.pool(2)
print("function", list(pool.map(triple, range(4))))
print("lambda", pool.submit(lambda number: number + counter.add(0), 4).result(60))
print("begun once", os.getpid())
system.shutdown()
"""
EXPECTED = ["class 15", "function [0, 3, 6, 9]", "lambda 19"]


def check(output: str) -> None:
    lines = output.splitlines()
    assert lines[:3] == EXPECTED
    assert lines[3].startswith("begun once ")
    assert len(lines) == 4, "no worker runs the script again"


@pytest.mark.row("N6")
@pytest.mark.parametrize("start_method", ["zygote", "spawn"])
@pytest.mark.parametrize("how", ["script", "-c", "-m", "stdin", "-i"])
def test_main_needs_no_guard(tmp_path: Path, how: str, start_method: str) -> None:
    code = PROGRAM.replace("System()", f"System(start_method={start_method!r})")
    (tmp_path / "program.py").write_text(code)
    arguments = {
        "script": ["program.py"],
        "-c": ["-c", code],
        "-m": ["-m", "program"],
        "stdin": ["-"],
        "-i": ["-i", "-q"],
    }[how]
    typed = code.replace("\n\n", "\n").replace("\ndef", "\n\ndef").replace("\nsystem", "\n\nsystem", 1)
    done = subprocess.run(
        [sys.executable, *arguments],
        input=typed if how == "-i" else code if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout)
    assert (done.stderr.replace(">>> ", "").replace("... ", "").strip() if how == "-i" else done.stderr) == ""
    assert names() == set()


@pytest.mark.row("N6")
def test_prompt_in_a_terminal_runs_what_is_typed(tmp_path: Path, eventually: Callable[..., None]) -> None:
    with Terminal(sys.executable, "-q", cwd=tmp_path) as terminal:
        terminal.wait_for(">>> ")
        for line in (
            "import shmipc",
            "class Doubler:",
            "    def double(self, n): return 2 * n",
            "",
            "system = shmipc.System()",
            "doubler = system.spawn(Doubler)",
            "print('sum', doubler.double(21) + system.pool(1).submit(lambda n: n, 1000).result(60))",
        ):
            terminal.press(line + "\n")
        terminal.wait_for("sum 1042")
        everybody = terminal.descendants()
        assert len(everybody) >= 3
        terminal.press("shmipc.receive()\n")
        time.sleep(0.3)  # it blocks
        terminal.press("\x03")
        terminal.wait_for("KeyboardInterrupt")
        terminal.press("print('still', doubler.double(4))\n")
        terminal.wait_for("still 8\r\n>>> ")  # an end of the file that comes before the prompt is lost
        terminal.press("\x04")  # the end of a session, with the system open
        assert terminal.wait(20) == 0
        assert terminal.text.count("Traceback") == 1, terminal.text
        eventually(lambda: gone(everybody))
    assert names() == set()
