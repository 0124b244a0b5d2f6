"""The store: what is in it, and whether more can be put there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllmrt.doctor.mounts import existing, mount_of
from vllmrt.doctor.page import Section
from vllmrt.events import human_size
from vllmrt.resolve import gc, inventory
from vllmrt.resolve.store import Store, free_space

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.doctor.mounts import Mount
    from vllmrt.doctor.page import Case

KEEP_DAYS = 7.0
"""As `vllmrt models gc` has it by default."""
LEAST_FREE = 1_000_000_000
"""Bytes; less than the smallest models that are served take."""
_ELSEWHERE = "name another store with VLLM_MODELS_DIR"
_LISTED = 20


def look(case: Case) -> Section:
    """Return the state of the store; nothing is written to see whether it could be."""
    root = case.settings.store
    mount, free = mount_of(root), free_space(root)
    section = Section({"path": str(root), "exists": root.exists(), "writable": _is_writable(root), "free": free})
    section.facts |= {"filesystem": mount.kind, "options": list(mount.options), "models": [], "leftovers": []}
    kind = " ".join((mount.kind or "file system not known", *mount.options))
    state = "" if section.facts["exists"] else " · not there yet, the first fetch makes it"
    space = f"{human_size(free)} free" if free is not None else "free space not known"
    section.lines.append(f"{root} · {kind} · {space}{state}")
    _judge(section, root, mount, free)
    if section.facts["exists"] and root.is_dir():
        _models(section, root)
        _leftovers(section, root)
    return section


def _judge(section: Section, root: Path, mount: Mount, free: int | None) -> None:
    wrong = root if os.path.lexists(root) else existing(root)
    if not wrong.is_dir():
        message = f"{wrong} is no directory, so that the store cannot be {'used' if wrong == root else 'made'}"
        section.add("store-no-directory", message, f"see what it is, or {_ELSEWHERE}")
    elif "ro" in mount.options:
        remedy = f"what is there can be served; to fetch models, mount it for writing, or {_ELSEWHERE}"
        section.add("store-read-only", f"the file system of the store {root} is read-only", remedy)
    elif not section.facts["writable"]:
        message = f"the store {root} cannot be written by uid {os.geteuid()}"
        section.add("store-not-writable", message, f"chown or chmod {existing(root)}, or {_ELSEWHERE}")
    elif free is not None and free < LEAST_FREE:
        message = f"only {human_size(free)} are free for the store {root}"
        section.add("store-full", message, f"vllmrt models gc --dry-run says what can go; or {_ELSEWHERE}")
    if mount.is_remote:
        text = "locks may not hold between machines there: a model may be fetched twice, a mix is never published"
        section.notes.append(f"the store is on {mount.kind}: {text}")
    if "noexec" in mount.options:
        section.notes.append("the store is mounted noexec: compiled code that a model brings cannot be loaded")


def _is_writable(root: Path) -> bool:
    return os.access(existing(root), os.W_OK | os.X_OK)


def _models(section: Section, root: Path) -> None:
    there = inventory.models(Store(root))
    for model in there:
        identity = model.manifest.identity if model.manifest else None
        section.facts["models"].append(
            {"directory": model.path.name, "identity": identity, "files": model.files, "size": model.size}
        )
    section.lines.append(f"models: {len(there)} · {human_size(sum(model.size for model in there))}")
    shown = section.facts["models"][:_LISTED]
    section.lines += [
        f"  {one['directory']} · {one['identity'] or 'yours'} · {one['files']} files · {human_size(one['size'])}"
        for one in shown
    ]
    if len(there) > _LISTED:
        section.lines.append(f"  and {len(there) - _LISTED} more: vllmrt models list")


def _leftovers(section: Section, root: Path) -> None:
    items = [item for item in gc.plan(Store(root), keep_days=KEEP_DAYS).items if item.action != "keep"]
    section.facts["leftovers"] = [
        {"path": str(item.path), "kind": item.kind, "size": item.size, "reason": item.reason} for item in items
    ]
    if items:
        size = human_size(sum(item.size for item in items))
        message = (
            f"what downloads and kills have left takes {size} of the store ({len(items)} in all); {items[0].path.name}"
        )
        section.add("store-leftovers", f"{message} {items[0].reason}", "vllmrt models gc --dry-run, then without")
