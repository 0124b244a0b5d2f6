"""Trees of processes, from a snapshot of the process table: pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllmrt.procfs import Stat


def descendants(table: Mapping[int, Stat], roots: Iterable[int]) -> list[int]:
    """Return `roots` and all that descends from them, children before their parents.

    Args:
        table: a snapshot. It is not of one moment, so that it may lack a parent, or lead round in a circle.
        roots: where the trees begin; those that are not in `table` are left out.
    """
    children: dict[int, list[int]] = {}
    for stat in table.values():
        children.setdefault(stat.ppid, []).append(stat.pid)
    order: list[int] = []
    seen: set[int] = set()
    pending = [pid for pid in roots if pid in table]
    while pending:
        pid = pending.pop()
        if pid not in seen:
            seen.add(pid)
            order.append(pid)
            pending += children.get(pid, ())
    return order[::-1]
