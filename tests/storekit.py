"""Stages and publishes tiny models as a fetch would, for tests of the store."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

from vllmrt.paths import is_ours
from vllmrt.resolve.manifest import FileState, Manifest
from vllmrt.resolve.publish import publish
from vllmrt.resolve.reuse import Reuse, plan_reuse, reuse
from vllmrt.types import Digest, ModelRequest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllmrt.resolve.store import Store

REQUEST = ModelRequest("org/name")
Contents = dict[str, bytes]


def contents(word: str, *, files: int = 4, size: int = 1000) -> Contents:
    """Return the files of one version of a model: each says which version it is of."""
    return {
        "config.json": word.encode(),
        **{f"sub/{number}.bin": f"{word}-{number}".encode().ljust(size, b".") for number in range(files)},
    }


def listing(files: Mapping[str, bytes]) -> tuple[RemoteFile, ...]:
    """Return what a source would list, with digests."""
    return tuple(
        RemoteFile(path, size=len(data), version=f"v-{sha256(data)[:8]}", digest=Digest("sha256", value=sha256(data)))
        for path, data in files.items()
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stage(store: Store, files: Mapping[str, bytes], request: ModelRequest = REQUEST) -> Path:
    """Write files into staging, each as a new one; return ``files/``."""
    staged = store.staging(request.identity) / "files"
    for path, data in files.items():
        file = staged / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
    return staged


def manifest_of(
    files: Mapping[str, bytes], request: ModelRequest = REQUEST, *, revision: str | None = None
) -> Manifest:
    """Return the manifest that a fetch would hand to publish."""
    return Manifest(
        identity=request.identity,
        source="hub",
        location="https://hub.example/org/name",
        revision=revision,
        files={
            file.path: FileState(file.size, 0, f"sha256:{sha256(files[file.path])}", file.version)
            for file in listing(files)
        },
    )


def restage(store: Store, files: tuple[RemoteFile, ...], request: ModelRequest = REQUEST) -> Reuse:
    """Put into staging what need not be fetched of a listing of the same source; return the plan."""
    published = store.published(request)
    plan = plan_reuse(published, files, source="hub", location="https://hub.example/org/name")
    reuse(published, plan, store.staging(request.identity))
    return plan


def publish_model(
    store: Store, files: Mapping[str, bytes], request: ModelRequest = REQUEST, name: str | None = None
) -> Path:
    """Stage and publish; return the target."""
    target = store.target(request, name)
    publish(stage(store, files, request), target, manifest_of(files, request))
    return target


def read_model(path: Path) -> Contents:
    """Return what lies in a published directory, its manifest left out."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not is_ours(file.name)
    }


def can_mount() -> bool:
    """Tell whether a process of ours may have mounts of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0
