"""Engines that have lost their launcher, and hold its memory: ``VLLM::EngineCore`` and workers under init."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ClassifierError
from vllmrt.preflight.classify import PREFIX, classify, is_engine, is_python
from vllmrt.preflight.trees import descendants
from vllmrt.procfs import ProcFs
from vllmrt.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllmrt.host import PluginHost
    from vllmrt.preflight.stopping import Stopped
    from vllmrt.procfs import Stat
    from vllmrt.settings import Settings
    from vllmrt.types import ProcessInfo

_INIT = 1
_USERS_INIT = "systemd"
_COMM = 15
"""Bytes that the kernel keeps of a process's name."""


class Orphan(NamedTuple):
    """An engine without a launcher.

    Attributes:
        process: the topmost process.
        processes: how many it is with its descendants.
        resident: bytes of memory of all of them; what they share is counted for each.
        age: seconds since its start.
    """

    process: ProcessInfo
    processes: int
    resident: int
    age: float


def find_orphans(settings: Settings, proc: ProcFs | None = None) -> list[Orphan]:
    """Return the engines that have no launcher any more, whoever they belong to.

    A launcher is the parent of its engines. When it dies, init inherits them, or the user's systemd. An engine under
    anything else has what started it: ``vllm serve --headless``, Ray, a program that uses vLLM as a library; so it has
    under an init that is a Python itself, as in a container. One whose API server lives in the same process group,
    orphaned too, still serves.

    Args:
        settings: the prefix of the titles.
        proc: the process table; None is ``/proc``.
    """
    proc = proc or ProcFs()
    if not any(_may_be_engine(stat, settings.process_name_prefix) for stat in _adopted(proc)):
        return []
    table = proc.table()
    suspects = [stat for stat in table.values() if _may_be_engine(stat, settings.process_name_prefix)]
    adopters = {pid for pid in {stat.ppid for stat in suspects} if _inherits(pid, table, proc)}
    found = []
    for stat in suspects:
        process = proc.info(stat.pid) if stat.ppid in adopters else None
        if process is None or process.start_ticks != stat.start_ticks:
            continue
        if is_engine(process.title, settings.process_name_prefix) and not _serves(stat, table, proc, settings):
            found.append(_measure(process, table, proc))
    return found


def reap(orphans: Sequence[Orphan], settings: Settings, host: PluginHost, proc: ProcFs | None = None) -> Stopped:
    """Stop those orphans that are our own user's with all their children, and of which no classifier protects any.

    Args:
        orphans: as `find_orphans` returned them just now.
        settings: how long they have.
        host: the classifiers; none is stopped where one of them breaks.
        proc: as for `find_orphans`.
    """
    from vllmrt.preflight.holders import tree_of, verdict_on
    from vllmrt.preflight.stopping import Stopper

    proc = proc or ProcFs()
    table = proc.table() if orphans else {}
    trees = [tree_of(orphan.process, table, proc) for orphan in orphans]
    own = [tree for tree in trees if all(process.uid == os.geteuid() for process in tree)]
    stopper = Stopper(proc)
    with suppress(ClassifierError):
        chosen = [tree[0] for tree in own if verdict_on(tree, host) is Verdict.VLLM]
        if chosen:
            stopper.stop(chosen, settings.stop_timeout)
    return stopper.result


def _adopted(proc: ProcFs) -> Iterator[Stat]:
    """Yield the children of init and of the users' systemds, which are far fewer than all processes."""
    parents = [_INIT]
    for parent in parents:
        children = proc.children(parent)
        if children is None:
            yield from proc.table().values()
            return
        for stat in filter(None, map(proc.stat, children)):
            yield stat
            if stat.comm == _USERS_INIT:
                parents.append(stat.pid)


def _may_be_engine(stat: Stat, prefix: str) -> bool:
    """Tell by the name alone, which vLLM's titles set too: the command lines of all processes are dear."""
    beginnings = {f"{one}::"[:_COMM] for one in (PREFIX, prefix)}
    return stat.alive and any(stat.comm.startswith(beginning) for beginning in beginnings)


def _inherits(pid: int, table: Mapping[int, Stat], proc: ProcFs) -> bool:
    """Tell whether a process only inherits others' children."""
    if pid == 0:
        return False
    stat = table.get(pid)
    if pid != _INIT and (stat is None or stat.comm != _USERS_INIT):
        return False
    info = proc.info(pid)  # hidden: of another user, who starts no engine for us
    return info is None or not (is_python(info) or classify(info))


def _serves(orphan: Stat, table: Mapping[int, Stat], proc: ProcFs, settings: Settings) -> bool:
    """Tell whether an API server lives in its process group."""
    group = [stat.pid for stat in table.values() if stat.pgrp == orphan.pgrp and stat.alive and stat.pid != orphan.pid]
    infos = [info for info in map(proc.info, group) if info]
    prefix = settings.process_name_prefix
    return any(classify(info, (), prefix) and not is_engine(info.title, prefix) for info in infos)


def _measure(process: ProcessInfo, table: Mapping[int, Stat], proc: ProcFs) -> Orphan:
    tree = [table[pid] for pid in descendants(table, [process.pid]) if table[pid].alive]
    pages = sum(stat.rss for stat in tree)
    age = proc.uptime() - process.start_ticks / os.sysconf("SC_CLK_TCK")
    return Orphan(process, len(tree), pages * os.sysconf("SC_PAGE_SIZE"), max(0.0, age))
