"""Processes that hold a port, what they are, and what would have to be stopped with them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from vllmrt.preflight.decision import Holder
from vllmrt.preflight.trees import descendants
from vllmrt.types import ProcessInfo, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vllmrt.host import PluginHost
    from vllmrt.procfs import ProcFs, Stat

_INIT, _NOBODY = 1, -1


def chain_of(pid: int, proc: ProcFs) -> list[ProcessInfo]:
    """Return a process and its ancestors, each with its own; nothing where it has ended."""
    infos = [proc.info(one) for one in proc.ancestry(pid) if one != _INIT or one == pid]
    known = [info for info in infos if info]
    if not infos or infos[0] is None:
        return []
    return [replace(info, ancestors=tuple(known[index + 1 :])) for index, info in enumerate(known)]


def holders_of(chains: list[list[ProcessInfo]], host: PluginHost, proc: ProcFs) -> Iterator[Holder]:
    """Judge processes, each with its tree where it is vLLM.

    Args:
        chains: the processes, as `chain_of` returns them.
        host: the classifiers.
        proc: the process table.

    Raises:
        ClassifierError: one of them broke.
    """
    everyone = {process.pid: process for chain in chains for process in chain}
    verdicts = _verdicts(everyone.values(), host)
    for chain in chains:
        process = chain[0]
        if verdicts[process.pid] is not Verdict.VLLM:
            yield Holder(process, verdicts[process.pid])
            continue
        root = next(one for one in reversed(chain) if verdicts[one.pid] is Verdict.VLLM)
        tree = tree_of(root, proc.family(root.pid), proc)
        yield Holder(process, verdict_on(tree, host), tree)


def tree_of(root: ProcessInfo, table: Mapping[int, Stat], proc: ProcFs) -> tuple[ProcessInfo, ...]:
    """Return a process and its descendants, each with its ancestors inside the tree, the root first.

    What has ended, or only its first thread, has none of its own; its descendants have the nearest ancestor that is
    there. What runs and may not be looked into belongs to no user that we know.
    """
    nearest = {root.pid: root}
    for pid in reversed(descendants(table, [root.pid])[:-1]):
        parent = nearest[table[pid].ppid]
        info = proc.info(pid) or _unseen(proc.stat(pid))
        nearest[pid] = replace(info, ancestors=(parent, *parent.ancestors)) if info else parent
    return tuple({process.pid: process for process in nearest.values()}.values())


def _unseen(stat: Stat | None) -> ProcessInfo | None:
    if stat is None or not stat.alive:
        return None
    return ProcessInfo(stat.pid, uid=_NOBODY, start_ticks=stat.start_ticks, exe=None, argv=(), title="")


def verdict_on(tree: tuple[ProcessInfo, ...], host: PluginHost) -> Verdict | None:
    """Return what a tree's root is; PROTECTED where anything of it is, by a classifier or as init or ourselves."""
    if any(process.pid in {_INIT, os.getpid()} for process in tree):
        return Verdict.PROTECTED
    verdicts = _verdicts(tree, host)
    return Verdict.PROTECTED if Verdict.PROTECTED in verdicts.values() else verdicts[tree[0].pid]


def _verdicts(processes: Iterable[ProcessInfo], host: PluginHost) -> dict[int, Verdict | None]:
    asked = list(processes)
    return dict(zip([process.pid for process in asked], host.verdicts(asked), strict=True))
