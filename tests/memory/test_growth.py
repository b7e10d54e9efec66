"""Reuse of warm pages, thousands of arrays, and memory that comes back."""

import ctypes
import gc
import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from tests.memory.holders import Census, Holder, trim
from tests.memory.test_small_memory import WORK, run

PAGES = 4096
NBYTES = PAGES * 4096


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Reader(Holder):
    def read(self, array: np.ndarray) -> tuple[int, int]:
        """Its sum, and the page faults that reading it took."""
        before = faults()
        total = int(array.sum())
        return total, faults() - before

    def kind(self, body: Any) -> str:
        return type(body).__name__

    def maps(self) -> tuple[int, int]:
        return maps()


def maps() -> tuple[int, int]:
    """Descriptors and mappings of this process."""
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.row("L13")
def test_second_send_of_a_size_touches_no_new_page_on_either_side(system: shmipc.System) -> None:
    reader: Any = system.spawn(Reader)
    array = np.ones(NBYTES, np.uint8)
    taken = []
    for _ in range(4):
        before = faults()
        total, reading = reader.read(array)
        taken.append((faults() - before, reading))
        assert total == NBYTES
    assert taken[0][0] > PAGES / 2  # the first send made the pages
    for sending, reading in taken[1:]:
        assert sending < PAGES / 50, taken
        assert reading < PAGES / 50, taken
    # The same of arrays that are made there and sent by handle, and of bodies that are bytes.
    for make in (lambda: shmipc.zeros(NBYTES - 4096, np.uint8), lambda: bytes(NBYTES - 100_000)):
        counts = []
        for _ in range(4):
            before = faults()
            body = make()
            own = faults() - before
            reader.look(body) if isinstance(body, np.ndarray) else reader.kind(body)
            counts.append(own if isinstance(body, np.ndarray) else faults() - before - own)
            del body
        assert max(counts[2:]) < PAGES / 20, counts


@pytest.mark.row("L17")
def test_twenty_thousand_live_arrays_take_no_descriptor_and_no_mapping_each() -> None:
    with shmipc.System(memory_limit=300 << 20) as system:
        reader: Any = system.spawn(Reader)
        census = Census(system, reader)
        reader.maps()
        before, there = maps(), reader.maps()
        arrays = [shmipc.empty(100 + number % 50, np.uint8) for number in range(20_000)]
        for number, array in enumerate(arrays):
            array[:] = number % 251
        for start in range(0, 20_000, 4000):
            reader.keep(str(start), arrays[start : start + 4000])
        assert system.statistics().blocks >= 20_000
        # The numbers are the process's own: its heap may have grown by a few mappings for 20 000 objects.
        for had, has in ((before, maps()), (there, reader.maps())):
            assert has[0] <= had[0] + 2
            assert has[1] <= had[1] + 40
        assert all(int(array[0]) == number % 251 for number, array in enumerate(arrays))
        del arrays, array
        gc.collect()
        for start in range(0, 20_000, 4000):
            reader.drop(str(start))
        assert census.is_back()
        again = [shmipc.empty(100, np.uint8) for _ in range(1000)]
        assert len(again) == 1000


def test_idle_system_gives_memory_back_and_works_on(system: shmipc.System, eventually: Any) -> None:
    reader: Any = system.spawn(Reader)
    trim()
    idle = system.statistics().reserved_bytes
    for _ in range(3):
        reader.read(np.ones(NBYTES, np.uint8))
    assert system.statistics().reserved_bytes >= NBYTES
    began = time.monotonic()
    eventually(lambda: system.statistics().reserved_bytes <= idle + (1 << 20), 40.0)
    assert time.monotonic() - began > 1.0  # not at once: what is used again and again stays warm
    assert reader.read(np.ones(NBYTES, np.uint8))[0] == NBYTES


@pytest.mark.row("L11")
def test_out_of_memory_while_the_system_grows_leaves_it_as_it_was(tmp_path: Path) -> None:
    text = """
    system = shmipc.System(memory_limit=64 << 20)  # more than there is
    worker = system.spawn(Worker)
    everything_works(system, worker)
    from shmipc.memory import membership
    member = membership.current().member
    for room in (0, 4096, 3 << 20):
        fill_by_a_stranger()
        os.truncate(SHM + "/stranger", max(0, os.stat(SHM + "/stranger").st_size - room))
        kept, errors = [], []
        before = system.statistics()
        # A block's pages, of which some can be had; tables of blocks and leases; whatever an object needs on its way.
        for size in (8 << 20, 5 << 20, 1 << 20, 1 << 16):
            errors.append(refused(lambda: [kept.append(shmipc.zeros(size, np.uint8)) for _ in range(2000)], size))
            errors.append(refused(lambda: [worker.keep(np.ones(size, np.uint8)) for _ in range(2000)], size))
        errors.append(refused(lambda: [kept.append(shmipc.zeros(10, np.uint8)) for _ in range(40000)]))
        errors.append(refused(lambda: worker.keep({"in": [np.ones(1 << 20)]}), 1 << 20))
        assert all(error.free < error.needed or error.needed <= 4096 for error in errors)
        for array in kept:  # no page of them is missing
            array[:] = 1
        assert worker.echo("small") == "small"
        os.unlink(SHM + "/stranger")
        kept.clear()
        worker.drop()
        member.trim()
        assert system.statistics().used_bytes <= before.used_bytes + (1 << 20)
        everything_works(system, worker)
        member.trim()
    kept.append(shmipc.zeros(8 << 20, np.uint8))
    kept.clear()
    system.shutdown()
    print("done")
    """
    assert run(tmp_path, WORK + text, 16) == "done\n"


# --- made ready before -----------------------------------------------------------------------------------------

BLOCK = 32 << 20


def policy_of(array: Any) -> int:
    """The memory policy of the array's first page, MPOL_*."""
    mode = ctypes.c_int(-1)
    by_address = 2
    get_mempolicy = {"x86_64": 239, "aarch64": 236}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(get_mempolicy, ctypes.byref(mode), None, 0, ctypes.c_void_p(array.ctypes.data), by_address) != 0:
        pytest.skip(f"get_mempolicy: {os.strerror(ctypes.get_errno())}")
    return mode.value


def huge_kib(array: Any) -> int:
    """How much of the mapping that holds the array is mapped as huge pages."""
    within, address = False, array.ctypes.data
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(match[1], 16) <= address < int(match[2], 16)
        elif within and line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1])
    return 0


class Maker:
    """Makes arrays in a process of its own."""

    def faults_of_writing(self, ready: int, made: int) -> int:
        if ready:
            shmipc.prefault(BLOCK, ready).result(60)
        before = faults()
        for _ in range(made):
            shmipc.empty(BLOCK, np.uint8)[:] = 1
        return faults() - before


def test_arrays_that_were_made_ready_cost_no_fault(system: shmipc.System) -> None:
    cold: Any = system.spawn(Maker)
    warm: Any = system.spawn(Maker)
    assert cold.faults_of_writing(0, 1) >= BLOCK // 4096 / 16  # 16: what a kernel may map around a fault
    assert warm.faults_of_writing(2, 2) < 200
    assert shmipc.prefault(1).result(60) is None
    leases = system.statistics().leases
    shmipc.prefault(BLOCK, 2).result(60)
    array = shmipc.empty(BLOCK, np.uint8)
    assert system.statistics().leases <= leases + 2  # the first is one of the two
    del array


def test_pages_made_ready_are_huge_on_request(system: shmipc.System) -> None:
    shmipc.prefault(BLOCK, huge=True).result(60)
    array = shmipc.empty(BLOCK, np.uint8)
    if huge_kib(array) == 0:  # a kernel that cannot is one that cannot when the test itself asks
        collapse = 25
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(BLOCK), collapse) != 0:
            pytest.skip(f"the kernel makes no huge pages of shared memory: {os.strerror(ctypes.get_errno())}")
        pytest.fail("the kernel makes huge pages of this block, and prefault had none made")
    assert huge_kib(array) * 1024 >= BLOCK - (2 << 20)


def test_pages_made_ready_lie_on_the_node_that_was_asked_for(system: shmipc.System) -> None:
    shmipc.prefault(BLOCK, node=0).result(60)
    preferred = 1
    assert policy_of(shmipc.empty(BLOCK, np.uint8)) == preferred
    for node in (1023, 5000):
        with pytest.raises(shmipc.InvalidArgument, match=f"{node}; this machine has no such node"):
            shmipc.prefault(BLOCK, node=node).result(60)


def test_what_cannot_be_made_ready_is_refused(system: shmipc.System) -> None:
    with pytest.raises(shmipc.InvalidArgument, match="nbytes is 0; the least is 1"):
        shmipc.prefault(0)
    with pytest.raises(shmipc.InvalidArgument, match="count is 0; the least is 1"):
        shmipc.prefault(1, 0)
    with pytest.raises(shmipc.InvalidArgument, match="node is -1; the least is 0"):
        shmipc.prefault(1, node=-1)
    wrong: Any = 1.5
    with pytest.raises(TypeError, match="nbytes must be an int, not float"):
        shmipc.prefault(wrong)
    before = system.statistics().leases
    with pytest.raises(shmipc.OutOfMemory):
        shmipc.prefault(1 << 50).result(60)
    assert system.statistics().leases == before
