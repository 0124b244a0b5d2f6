"""Runs of rival commands in turn: seconds, CPU seconds, peak memory of the whole tree, and what the numbers say."""

from __future__ import annotations

import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST = 600.0
"""Seconds after which a command is ended, and has failed."""
_SAMPLES = 0.05  # seconds between two looks at the memory


class Missing(Exception):
    """Something that a scenario needs is not on this machine."""


class Contender(NamedTuple):
    """A command that takes part.

    Attributes:
        name: what the table calls it.
        command: None if its program was not found.
        environ: all of its environment.
        verified: what it knows of the bytes when it ends.
    """

    name: str
    command: Sequence[str] | None
    environ: Mapping[str, str]
    verified: str = ""


class Run(NamedTuple):
    """One run: seconds, seconds until the disk has it, CPU seconds, bytes of peak memory of the tree."""

    wall: float
    durable: float
    cpu: float
    memory: int


class Measured(NamedTuple):
    """All runs of one contender; none if it was not found, or `failed` says why."""

    contender: Contender
    runs: Sequence[Run]
    failed: str = ""

    def median(self, what: str) -> float:
        """Return the median of one of the fields of `Run`."""
        return statistics.median(getattr(run, what) for run in self.runs)

    @property
    def memory(self) -> int:
        """The highest of the peaks, in bytes."""
        return max(run.memory for run in self.runs)


def take_turns(contenders: Sequence[Contender], runs: int, out: Path, *, keep: bool = False) -> list[Measured]:
    """Run each contender `runs` times, one after the other in every round.

    Args:
        contenders: in the order of the table.
        runs: how often.
        out: the directory they write to; removed before each run.
        keep: leave it, for what is measured warm.
    """
    found: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    failed = {contender.name: "not found" for contender in contenders if contender.command is None}
    for name in failed:
        print(f"bench: {name}: not found", file=sys.stderr)
    for number in range(runs):
        for contender in contenders:
            if contender.name in failed:
                continue
            if not keep:
                empty(out)
            try:
                found[contender.name].append(run(contender, out))
            except RuntimeError as error:
                failed[contender.name] = "failed"
                print(f"bench: {contender.name}, run {number + 1}: {error}", file=sys.stderr)
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
    return [Measured(one, found[one.name], failed.get(one.name, "")) for one in contenders]


def empty(directory: Path) -> None:
    """Make a directory that is there and empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def run(contender: Contender, out: Path) -> Run:
    """Run a command once.

    Raises:
        RuntimeError: it failed, or took longer than `LONGEST`; with the end of what it printed.
    """
    assert contender.command is not None
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            contender.command,
            env=contender.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            memory = _watch(process.pid, begin + LONGEST)
        finally:
            # also where we are interrupted; what has ended is not reaped yet, so its group is still its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
            raise RuntimeError(f"ended with {process.returncode}: {output.read().decode(errors='replace')}")
    subprocess.run(["sync", "-f", out], check=True)
    durable = time.perf_counter() - begin
    return Run(wall, durable, used.ru_utime + used.ru_stime, memory)


def _watch(pid: int, deadline: float) -> int:
    """Return the peak memory of a process and its descendants when it has ended."""
    descriptor = os.pidfd_open(pid)
    peak = 0
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        while not ended.poll(_SAMPLES * 1000):
            peak = max(peak, _peak(pid))
            if time.perf_counter() > deadline:
                os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)
    return peak


def _peak(pid: int) -> int:
    """Return the sum of the peaks of a process and its descendants so far; pages that they share count for each."""
    # Not what wait4 knows: that begins with the memory of whoever started the command.
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return 0
    _, found, rest = status.partition("VmHWM:")
    return (int(rest.split()[0]) * 1024 if found else 0) + sum(map(_peak, children))
