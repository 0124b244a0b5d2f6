"""What is in a store: the list of models, what is known of each, proof of it, and how one is taken away."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ConfigError
from vllmrt.resolve import disk, manifest, recovery
from vllmrt.types import Digest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllmrt.resolve.manifest import FileState, Manifest
    from vllmrt.resolve.store import Store

_HUB = "hub"
_HASHERS = 4


class Model(NamedTuple):
    """A directory of the store.

    Attributes:
        path: the directory, or a link to one.
        manifest: what was published; None for what its user has put there.
        files: how many.
        size: bytes.
    """

    path: Path
    manifest: Manifest | None
    files: int
    size: int


class Fault(NamedTuple):
    """A file that is not what was published."""

    file: str
    reason: str


class Verification(NamedTuple):
    """What reading every byte of a model came to.

    Attributes:
        verified: files whose digest is right.
        size: bytes that were read.
        unproven: files that have no digest in the manifest; their size is right.
        added: files that were not published. vLLM may load them all the same.
        faults: files that are not what was published.
    """

    verified: int
    size: int
    unproven: int
    added: tuple[str, ...]
    faults: tuple[Fault, ...]


def models(store: Store) -> list[Model]:
    """Return every model directory of a store, by name; none of the store's own.

    Raises:
        ConfigError: the store cannot be read.
    """
    try:
        with os.scandir(store.root) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.name != _HUB and _is_dir(entry)
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"the store {store.root} cannot be read: {error.strerror}") from error
    return [model_at(store.root / name) for name in names]


def model_at(path: Path) -> Model:
    """Return one directory as a model; sizes of what was published are those that its manifest has."""
    known = manifest.of(path)
    if known:
        return Model(path, known, len(known.files), manifest.total_size(known.files))
    sizes = [status.st_size for _, status in walk(path)]
    return Model(path, None, len(sizes), sum(sizes))


def find(store: Store, name: str) -> Model:
    """Return the model that a user means.

    Args:
        store: where to look.
        name: of the directory, or the identity, ``org/name[@revision]``.

    Raises:
        ConfigError: there is none, or there are several.
    """
    there = models(store)
    found = [model for model in there if name == model.path.name]
    found = found or [model for model in there if model.manifest and model.manifest.identity == name]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(model.path.name for model in found)
        raise ConfigError(f"{name!a} is published more than once: {names}", hint="name the directory")
    raise ConfigError(f"nothing is called {name!a} in {store.root}", hint="vllmrt models list shows what is there")


def verify(model: Model, told: Callable[[int], None] = lambda _: None) -> Verification | None:
    """Read every byte of a published model, and compare it with the digests of its manifest.

    One that another process has replaced meanwhile is read again: its files are not those of the old manifest.

    Args:
        model: one that has a manifest.
        told: called with the bytes of each file when it has been read; from several threads.

    Returns:
        what that came to; None where another process has removed it meanwhile.

    Raises:
        ConfigError: nothing is known of it.
    """
    from concurrent.futures import ThreadPoolExecutor

    if model.manifest is None:
        raise ConfigError(
            f"{model.path} was put there by its user; nothing says what it should be",
            hint="a sha256sums.txt in it would be checked by vllmrt resolve",
        )
    files = model.manifest.files

    def check(path: str) -> Fault | None:
        found = fault(model.path, path, files[path])
        told(files[path].size)
        return found

    pool = ThreadPoolExecutor(_HASHERS)
    try:
        faults = tuple(filter(None, pool.map(check, files)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    bad = {fault.file for fault in faults}
    good = [state for path, state in files.items() if path not in bad]
    proven = [state.size for state in good if state.digest]
    added = tuple(path for path, _ in walk(model.path) if path not in files)
    if (faults or added) and (now := manifest.of(model.path)) != model.manifest:
        return verify(model._replace(manifest=now), told) if now else None
    return Verification(len(proven), sum(proven), len(good) - len(proven), added, faults)


def remove(store: Store, model: Model) -> None:
    """Take a published model away; killed in the middle, it leaves the whole model, or nothing that looks like one.

    Raises:
        ConfigError: it was not published by us, or it cannot be removed.
        LockTimeout: another process is working on it.
    """
    from vllmrt import locking

    if model.manifest is None:
        raise ConfigError(f"{model.path} was put there by its user", hint="remove it yourself")
    lock, staging = store.lock_path(model.manifest.identity), store.staging_path(model.manifest.identity)
    with disk.writing(store.root), locking.hold(lock, timeout=0, waiting=lambda _: None):
        # a backup of it would be taken for the model of an interrupted publication
        recovery.settle(staging, store.root)
        if remedy := recovery.discard(model.path, store.private()):
            raise ConfigError(f"{model.path} cannot be removed altogether", hint=remedy)


def walk(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file below a directory with its state, as a manifest would list it; what cannot be read is left out.

    Links to files are followed, links to directories are not.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        with suppress(OSError), os.scandir(directory / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in {"__pycache__", manifest.NAME}:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                    continue
                with suppress(OSError):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield f"{prefix}{entry.name}", status


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def fault(directory: Path, path: str, state: FileState) -> Fault | None:
    """Read a published file again; return what is wrong with it, None where it holds the bytes that were proven."""
    from vllmrt.errors import SourceError
    from vllmrt.paths import safe_join

    try:
        # not through a link: it could lead anywhere, and what was published holds none
        descriptor = os.open(safe_join(directory, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Fault(path, "is missing")
    except OSError as error:
        return Fault(path, f"cannot be opened: {error.strerror}")
    except SourceError:
        return Fault(path, "is no name of a file that was published")
    try:
        reason = _difference(descriptor, path, state)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    finally:
        os.close(descriptor)
    return Fault(path, reason) if reason else None


def _difference(descriptor: int, path: str, state: FileState) -> str | None:
    from vllmrt.transfer.hashing import FileHash, is_known

    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size != state.size:
        return f"has {status.st_size:,} bytes instead of {state.size:,}"
    algorithm, _, value = state.digest.partition(":")
    if not state.digest:
        return None
    if not is_known(algorithm):
        return f"has a digest that cannot be checked here: {algorithm!a}"
    claimed = RemoteFile(path, size=state.size, version="", digest=Digest(algorithm, value=value))
    hashed = FileHash(claimed, descriptor, [(0, state.size)])
    hashed.catch_up()
    found = hashed.digest().value
    return None if found == value else f"{algorithm} is {found}, published was {value}"
