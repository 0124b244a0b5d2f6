"""Ending trees: on made-up kernels, where nothing outside a tree may ever be signalled, and on real processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin import Machine, alive, children, wait_for

from vllmrt.preflight.stopping import Pidfds, Stopper
from vllmrt.preflight.trees import descendants
from vllmrt.procfs import ProcFs, Stat
from vllmrt.types import ProcessInfo

if TYPE_CHECKING:
    from collections.abc import Collection, Container


def row(pid: int, ppid: int, start: int = 0, state: str = "S") -> Stat:
    return Stat(pid, "x", state, ppid, 0, start, 0)


def below(table: dict[int, int], pid: int, root: int) -> bool:
    """Say the slow way whether a process descends from another."""
    seen = set()
    while pid in table and pid not in seen:
        if pid == root:
            return True
        seen.add(pid)
        pid = table[pid]
    return False


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30)), st.integers(1, 30))
def test_descendants_are_all_of_the_tree_and_nothing_else(parents: dict[int, int], root: int) -> None:
    """Also of tables that no kernel would show: circles, parents that are missing."""
    found = descendants({pid: row(pid, ppid) for pid, ppid in parents.items()}, [root])
    expected = {pid for pid in parents if root in parents and below(parents, pid, root)}
    assert set(found) == expected
    assert len(found) == len(expected)


@given(st.lists(st.integers(0, 100), max_size=40))
def test_children_come_before_their_parents(choices: list[int]) -> None:
    parents = {pid: choice % pid for pid, choice in enumerate(choices, start=1)}
    order = descendants({pid: row(pid, ppid) for pid, ppid in parents.items()}, [1])
    place = {pid: index for index, pid in enumerate(order)}
    assert all(place[pid] < place[parents[pid]] for pid in order if pid != 1)


class Kernel(Pidfds):
    """A process table in memory: processes fork, die, are reparented, and their numbers are given to others.

    Something happens between any two calls, as in life; `lineage` remembers who really descends from whom.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test's own
        self.now = 0
        self.rows: dict[int, Stat] = {}
        self.lineage: dict[int, int] = {}  # start time, which is unique here, to that of the parent
        self.descriptors: dict[int, int] = {}
        self.signalled: list[tuple[int, signal.Signals]] = []
        self.frozen: set[int] = set()
        self.deaf: set[int] = set()
        for number in range(1, 16):
            self.fork(self.random.randrange(number))

    def fork(self, ppid: int) -> None:
        free = next(pid for pid in range(1, 40) if pid not in self.rows)
        self.now += 1
        self.rows[free] = row(free, ppid, self.now)
        self.lineage[self.now] = self.rows[ppid].start_ticks if ppid in self.rows else 0
        if self.random.random() < 0.3:
            self.deaf.add(self.now)

    def die(self, pid: int) -> None:
        for child in [one for one in self.rows.values() if one.ppid == pid]:
            self.rows[child.pid] = child._replace(ppid=1)
        del self.rows[pid]

    def happen(self) -> None:
        movable = [pid for pid, one in self.rows.items() if pid != 1 and one.start_ticks not in self.frozen]
        if movable and self.random.random() < 0.5:
            self.die(self.random.choice(movable))
        able = [pid for pid, one in self.rows.items() if one.start_ticks not in self.frozen]
        if able and len(self.rows) < 25 and self.random.random() < 0.5:
            self.fork(self.random.choice(able))

    def table(self, skip: Container[int] = ()) -> dict[int, Stat]:
        self.happen()
        return {pid: one for pid, one in self.rows.items() if pid not in skip}

    def stat(self, pid: int) -> Stat | None:
        self.happen()
        return self.rows.get(pid)

    def open(self, pid: int) -> int:
        self.happen()
        if pid not in self.rows:
            raise ProcessLookupError
        self.descriptors[len(self.descriptors) + 100] = self.rows[pid].start_ticks
        return len(self.descriptors) + 99

    def send(self, descriptor: int, number: signal.Signals) -> None:
        self.happen()
        start = self.descriptors[descriptor]
        found = [pid for pid, one in self.rows.items() if one.start_ticks == start]
        if not found:
            raise ProcessLookupError
        self.signalled.append((start, number))
        if number is signal.SIGSTOP:
            self.frozen.add(start)
        elif number is signal.SIGCONT:
            self.frozen.discard(start)
        elif number is signal.SIGKILL or start not in self.deaf:
            self.die(found[0])

    def ended(self, descriptors: Collection[int], seconds: float) -> set[int]:  # noqa: ARG002 - as the real one
        self.happen()
        self.now += 1
        living = {one.start_ticks for one in self.rows.values()}
        return {descriptor for descriptor in descriptors if self.descriptors[descriptor] not in living}

    def close(self, descriptor: int) -> None:
        pass

    def descends(self, start: int, root: int) -> bool:
        while start:
            if start == root:
                return True
            start = self.lineage[start]
        return False


@given(st.integers(0, 1 << 32), st.integers(2, 15), st.sampled_from([0.0, 5.0, 50.0]))
def test_nothing_outside_the_tree_is_ever_signalled(seed: int, pid: int, seconds: float) -> None:
    kernel = Kernel(seed)
    root = kernel.rows[pid]
    stopper = Stopper(kernel, kernel, clock=lambda: float(kernel.now))
    stopper.stop([ProcessInfo(pid, uid=0, start_ticks=root.start_ticks, exe=None, argv=(), title="")], seconds)
    assert [start for start, _ in kernel.signalled if not kernel.descends(start, root.start_ticks)] == []
    assert root.start_ticks not in {one.start_ticks for one in kernel.rows.values()}


class Interrupted(Kernel):
    """Ctrl-C, or SIGTERM, before one of the signals that freeze; nothing happens by itself."""

    def __init__(self, after: int) -> None:
        super().__init__(0)
        self.after = after
        self.deaf = set(self.lineage)

    def happen(self) -> None:
        pass

    def send(self, descriptor: int, number: signal.Signals) -> None:
        if number is signal.SIGSTOP:
            self.after -= 1
            if not self.after:
                raise KeyboardInterrupt
        super().send(descriptor, number)


@pytest.mark.parametrize("after", [1, 2, 5])
def test_nothing_stays_frozen_when_it_is_interrupted(after: int) -> None:
    kernel = Interrupted(after)
    stopper = Stopper(kernel, kernel, clock=lambda: float(kernel.now))
    roots = [ProcessInfo(pid, uid=0, start_ticks=pid, exe=None, argv=(), title="") for pid in range(2, 15)]
    with pytest.raises(KeyboardInterrupt):
        stopper.stop(roots, 0)
    assert len(kernel.frozen) == after - 1
    assert [one for one in kernel.rows.values() if one.start_ticks in kernel.frozen] == []


def info(pid: int) -> ProcessInfo:
    found = ProcFs().info(pid)
    assert found
    return found


def test_a_number_that_was_given_to_another_process_is_left_alone(machine: Machine) -> None:
    process = machine.serve()
    stopper = Stopper(ProcFs())
    stopper.stop([replace(info(process.pid), start_ticks=1)], 1)
    assert alive(process.pid)
    assert stopper.result.signalled == ()


# In a namespace of its own, whose kernel is told which number comes next; the first has ended between two calls.
RECYCLED = """\
import os, signal, time
from pathlib import Path
from vllmrt.preflight.stopping import Pidfds, Stopper
from vllmrt.procfs import ProcFs
def child():
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid
class Late(Pidfds):
    def open(self, pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        time.sleep(0.05)  # it may not have begun in the same tick
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        assert child() == pid
        return super().open(pid)
info = ProcFs().info(child())
stopper = Stopper(ProcFs(), Late())
stopper.stop([info], 1)
print(ProcFs().stat(info.pid).alive, stopper.result)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a namespace of processes")
def test_a_number_is_given_to_another_process_for_real() -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", RECYCLED]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert done.stdout == "True Stopped(roots=(), signalled=(), killed=(), alive=())\n", done.stderr


def test_a_tree_ends_and_its_neighbours_live(machine: Machine) -> None:
    process, neighbour = machine.serve(WORKERS="3", ENGINE="VLLM::EngineCore", ENGINE_WORKERS="2"), machine.serve()
    wait_for(lambda: len(descendants(ProcFs().table(), [process.pid])) == 7)
    tree = set(descendants(ProcFs().table(), [process.pid]))
    stopper = Stopper(ProcFs())
    begin = time.monotonic()
    stopper.stop([info(process.pid)], 10)
    assert time.monotonic() - begin < 1
    assert set(stopper.result.signalled) == tree
    assert stopper.result.killed == stopper.result.alive == ()
    assert not any(map(alive, tree))
    assert alive(neighbour.pid)


def test_what_ignores_sigterm_is_killed_and_reported(machine: Machine) -> None:
    process = machine.serve(ON_TERM="ignore", WORKERS="2")
    tree = {process.pid, *children(process.pid)}
    stopper = Stopper(ProcFs())
    begin = time.monotonic()
    stopper.stop([info(process.pid)], 0.5)
    assert 0.5 <= time.monotonic() - begin < 2
    assert set(stopper.result.signalled) == tree
    assert process.pid in stopper.result.killed
    assert not any(map(alive, tree))


def test_what_ran_in_the_round_before_is_told_to_end_in_its_own(machine: Machine) -> None:
    """Another supervisor's vLLM, which gets the port when the first one is gone."""
    first, second = machine.serve(), machine.serve(WORKERS="1")
    stopper = Stopper(ProcFs())
    stopper.stop([info(first.pid)], 10)
    assert alive(second.pid)
    stopper.stop([info(second.pid)], 3)
    assert stopper.result.roots == (first.pid, second.pid)
    assert stopper.result.killed == ()
    assert machine.left() == []


def test_no_time_at_all_kills_at_once(machine: Machine) -> None:
    process = machine.serve(ON_TERM="ignore")
    Stopper(ProcFs()).stop([info(process.pid)], 0)
    assert not alive(process.pid)


class Counting(ProcFs):
    """Notes whose state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def stat(self, pid: int) -> Stat | None:
        self.read.append(pid)
        return super().stat(pid)


def test_further_looks_do_not_read_thousands_of_strangers_again(machine: Machine) -> None:
    process = machine.serve(ON_TERM="ignore", WORKERS="1")
    proc = Counting()
    Stopper(proc).stop([info(process.pid)], 1)
    assert proc.read.count(process.pid) > 4
    assert proc.read.count(os.getpid()) == 2  # at first, and once more when all was frozen
    assert machine.left() == []


FORKING = """\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    if not os.fork():
        time.sleep(0.3)
        os._exit(0)
    time.sleep(0.002)
"""


def test_what_keeps_forking_does_not_get_away(machine: Machine) -> None:
    script = machine.path / "forking.py"
    script.write_text(FORKING)
    process = machine.start([sys.executable, script], ready=False)
    wait_for(lambda: len(children(process.pid)) > 10)
    Stopper(ProcFs()).stop([info(process.pid)], 0.6)
    assert machine.left() == []


def test_a_zombie_is_not_alive(machine: Machine) -> None:
    script = "import os, time\nif not os.fork(): os._exit(0)\nopen(os.environ['READY'], 'w')\ntime.sleep(99)"
    process = machine.start([sys.executable, "-c", script])
    (zombie,) = children(process.pid)
    wait_for(lambda: not alive(zombie))
    assert ProcFs().info(zombie) is None
    stopper = Stopper(ProcFs())
    stopper.stop([info(process.pid)], 5)
    assert stopper.result.signalled == (process.pid,)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_what_may_not_be_signalled_is_reported_as_alive(machine: Machine) -> None:
    process = machine.serve()
    script = (
        "import sys\nfrom vllmrt.procfs import ProcFs\nfrom vllmrt.preflight.stopping import Stopper\n"
        "s = Stopper(ProcFs())\ns.stop([ProcFs().info(int(sys.argv[1]))], 0)\nprint(s.result.alive, s.result.signalled)"
    )
    command = ["setpriv", "--reuid=12345", "--clear-groups", sys.executable, "-c", script, str(process.pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"({process.pid},) ()\n"
    assert alive(process.pid)
