"""Processes that hold a port, what they are, and what would have to be stopped with them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from vllmrt.preflight.decision import Holder
from vllmrt.preflight.trees import descendants
from vllmrt.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vllmrt.host import PluginHost
    from vllmrt.procfs import ProcFs, Stat
    from vllmrt.types import ProcessInfo

_INIT = 1


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
    """Return a process and its descendants, each with its ancestors inside the tree, the root first."""
    found = {root.pid: root}
    for pid in reversed(descendants(table, [root.pid])):
        info = found.get(pid) or proc.info(pid)
        parent = found.get(table[pid].ppid)
        if info and parent and pid != root.pid:
            found[pid] = replace(info, ancestors=(parent, *parent.ancestors))
    return tuple(found.values())


def verdict_on(tree: tuple[ProcessInfo, ...], host: PluginHost) -> Verdict | None:
    """Return what a tree's root is; PROTECTED where anything of it is, by a classifier or as init or ourselves."""
    if any(process.pid in {_INIT, os.getpid()} for process in tree):
        return Verdict.PROTECTED
    verdicts = _verdicts(tree, host)
    return Verdict.PROTECTED if Verdict.PROTECTED in verdicts.values() else verdicts[tree[0].pid]


def _verdicts(processes: Iterable[ProcessInfo], host: PluginHost) -> dict[int, Verdict | None]:
    asked = list(processes)
    return dict(zip([process.pid for process in asked], host.verdicts(asked), strict=True))
