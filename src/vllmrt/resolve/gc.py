"""What no identity of a store needs: old staging, what kills have left, models that are published twice."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

from vllmrt import locking
from vllmrt.errors import LockTimeout
from vllmrt.identity import identity_hash
from vllmrt.resolve import disk, inventory, manifest, recovery
from vllmrt.resolve.store import allocated
from vllmrt.resolve.usage import usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from vllmrt.resolve.inventory import Model
    from vllmrt.resolve.store import Store

_DAY = 86_400.0
Kind = Literal["staging", "leftover", "backup", "duplicate"]
Action = Literal["drop", "keep", "restore"]


class Item(NamedTuple):
    """Something that garbage collection has looked at.

    Attributes:
        path: a directory.
        kind: what it is.
        action: what is to be done with it, or what was done.
        reason: why, in words that follow on its name.
        size: bytes that dropping it frees.
        lock: the lock of its identity, None where it belongs to none.
    """

    path: Path
    kind: Kind
    action: Action
    reason: str
    size: int
    lock: Path | None


class Plan(NamedTuple):
    """What garbage collection would do, or has done.

    Attributes:
        items: everything it has looked at.
        unknown: processes that it could not look into.
    """

    items: tuple[Item, ...]
    unknown: int


def plan(store: Store, *, keep: Collection[str] = (), keep_days: float) -> Plan:
    """Decide what to drop; nothing is written.

    Args:
        store: what to look through.
        keep: models whose leavings are not touched, by directory or identity.
        keep_days: how long a download that was broken off is kept to be resumed.

    Raises:
        ConfigError: the store cannot be read.
    """
    kept = _hashes(keep, inventory.models(store))
    items = [
        _keep(item, "is kept as you wish") if item.lock and item.lock.stem in kept else item
        for item in _candidates(store, keep_days)
    ]
    used = usage([item.path for item in items if item.action == "drop"])
    open_in = {path: f"is open in {', '.join(map(str, users))}" for path, users in used.users.items()}
    return Plan(
        tuple(_keep(item, open_in[item.path]) if item.path in open_in else item for item in items), used.unknown
    )


def collect(store: Store, planned: Plan, *, keep_days: float) -> Plan:
    """Carry a plan out, as far as it still holds once the lock of each identity is held.

    Raises:
        ConfigError: the store cannot be written.
    """
    done = []
    for item in planned.items:
        if item.action != "keep":
            lock = locking.hold(item.lock, timeout=0, waiting=lambda _: None) if item.lock else nullcontext()
            try:
                with disk.writing(store.root), lock:
                    done.append(_carry_out(store, item, keep_days))
            except LockTimeout:
                done.append(_keep(item, "is being worked on"))
        else:
            done.append(item)
    return Plan(tuple(done), planned.unknown)


def _carry_out(store: Store, item: Item, keep_days: float) -> Item:
    if not any((now.path, now.action) == (item.path, item.action) for now in _candidates(store, keep_days, ours=item)):
        return _keep(item, "has changed meanwhile")
    if item.action == "restore":
        disk.move(item.path, store.root / recovery.model_of(item.path))
        return item
    whole = item.kind in {"staging", "duplicate"}
    remedy = recovery.discard(item.path, store.private() if whole else item.path.parent)
    return _keep(item, f"cannot be removed altogether: {remedy}") if remedy else item


def _candidates(store: Store, keep_days: float, *, ours: Item | None = None) -> Iterator[Item]:
    """Look at everything; what another process is working on is to be kept. `ours` is what we hold the lock of."""
    there = inventory.models(store)
    found = [
        *(item for staging in store.stagings() for item in _of_staging(store, staging, there, keep_days)),
        *(Item(path, "leftover", "drop", "is half removed", allocated(path), None) for path in store.trashes()),
        *_duplicates(store, there),
    ]
    for item in found:
        free = item.action == "keep" or (ours and ours.lock == item.lock)
        occupied = None if free else _occupied(item)
        yield _keep(item, occupied) if occupied else item


def _of_staging(store: Store, staging: Path, there: list[Model], keep_days: float) -> Iterator[Item]:
    lock = store.lock_of(staging)
    parts = list(_parts(store, staging, lock))
    obsolete = _obsolete(staging, lock.stem, there, keep_days)
    if obsolete and not any(item.action == "restore" for item in parts):
        yield Item(staging, "staging", "drop", obsolete, allocated(staging), lock)
        return
    yield from parts
    yield Item(staging, "staging", "keep", "can be resumed", allocated(staging), lock)


def _parts(store: Store, staging: Path, lock: Path) -> Iterator[Item]:
    restored: set[str] = set()
    names = sorted(recovery.entries(staging))
    for _, model, name in sorted(recovery.backups(names), reverse=True):
        path = staging / name
        if model in restored or os.path.lexists(store.root / model):
            yield Item(path, "backup", "drop", "is of a model that is there", allocated(path), lock)
        else:
            restored.add(model)
            yield Item(path, "backup", "restore", f"is all that is left of {model}", 0, lock)
    for path in (staging / name for name in names):
        if path.name.startswith(recovery.TRASH):
            yield Item(path, "leftover", "drop", "is half removed", allocated(path), lock)
        elif path.name.startswith(recovery.SEALED) and not recovery.is_unpublished(path):
            yield Item(path, "leftover", "drop", "was replaced", allocated(path), lock)


def _obsolete(staging: Path, identity: str, there: list[Model], keep_days: float) -> str | None:
    """Return why nobody needs what is staged, None where a download may still be resumed."""
    touched = _touched(staging)
    published = [
        (model.path / manifest.NAME).lstat().st_mtime
        for model in there
        if model.manifest and identity_hash(model.manifest.identity) == identity
    ]
    if any(when > touched for when in published):
        return "is older than what was published since"
    days = (time.time() - touched) / _DAY
    return f"was last written to {days:.0f} days ago" if days > keep_days else None


def _touched(staging: Path) -> float:
    newest = 0.0
    for parent, directories, names in os.walk(staging):
        for name in (".", *directories, *names):
            with suppress(OSError):  # it has just been published, or removed
                newest = max(newest, os.lstat(os.path.join(parent, name)).st_mtime)  # noqa: PTH118 - once for each file
    return newest


def _duplicates(store: Store, there: list[Model]) -> Iterator[Item]:
    """Yield ``<name>.<hash>`` where ``<name>`` has become free and was published for the same identity."""
    published = {model.path.name: model.manifest.identity for model in there if model.manifest}
    for model in there:
        identity = published.get(model.path.name, "")
        base = model.path.name.removesuffix(f".{identity_hash(identity)}")
        if identity and base != model.path.name and published.get(base) == identity:
            reason, lock = f"is published as {base} too", store.lock_path(identity)
            yield Item(model.path, "duplicate", "drop", reason, allocated(model.path), lock)


def _hashes(keep: Collection[str], there: list[Model]) -> set[str]:
    """Return the hashes of the identities that a user names: by identity, directory, or staging directory."""
    named = {identity_hash(name) for name in keep}
    named |= {match[1] for match in (re.search(r"\.([0-9a-f]{12})$", name) for name in keep) if match}
    return named | {
        identity_hash(model.manifest.identity) for model in there if model.manifest and model.path.name in keep
    }


def _occupied(item: Item) -> str | None:
    """Return why an item is left alone: its lock is held, or that cannot be told. The file of the lock is not made."""
    if item.lock is None:
        return None
    try:
        descriptor = os.open(item.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "is being worked on"
    except OSError as error:
        by_hand = ": remove it by hand when no other vllmrt runs" if item.action == "drop" else ""
        return f"cannot be locked ({error.strerror}){by_hand}"
    finally:
        os.close(descriptor)
    return None


def _keep(item: Item, reason: str) -> Item:
    return item._replace(action="keep", reason=reason)
