"""One preflight of a port at a time."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllmrt import locking
from vllmrt.errors import ConfigError, LockTimeout, VllmrtError
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from vllmrt.settings import Settings


def lock_path(settings: Settings) -> Path:
    """Return the file that the contract names: one for each port, the same for all users."""
    shared = Path("/tmp") / f"vllm-preflight.{settings.port}.lock"  # noqa: S108 - opened by `locking`, which follows no link
    return settings.preflight_lockfile or shared


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the lock of the port for the length of the block.

    A dry run writes nothing, and holds none. A command that was started by ``vllmrt preflight -- COMMAND`` has the lock
    already: the preflight in front of it holds it until the command listens.

    The lock ends with an exec too. It cannot stay with the server, or no preflight could ever reclaim a stale one.

    Raises:
        VllmrtError: another preflight of this port runs. Its exit code is 1, as the contract has no other.
        ConfigError: the lock file cannot be used.
    """
    if settings.dry_run:
        yield
        return
    path = lock_path(settings)
    held: AbstractContextManager[Any] = locking.hold(path, timeout=0, waiting=lambda _: None)
    try:
        held.__enter__()
    except LockTimeout as error:
        if error.pid is None or not _started_us(error.pid, path):
            raise VllmrtError(f"another preflight of port {settings.port} runs: {error}", hint="wait for it") from None
        held = nullcontext()
    except OSError as error:
        raise ConfigError(
            f"lock file {path} cannot be opened: {error.strerror}",
            hint="remove it if it is another user's, or set VLLM_PREFLIGHT_LOCKFILE",
        ) from None
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _started_us(pid: int, path: Path) -> bool:
    """Tell whether the process that a lock file names is above us, and has the file open.

    The file may lie, or speak of another container's process where both have one ``/tmp``.
    """
    if pid not in set(ProcFs().ancestry(os.getppid())):
        return False
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # of another user: it may not be looked into
        return False
    return any(_is_same(descriptor, path) for descriptor in descriptors)


def _is_same(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.samefile(path)
    except OSError:  # it has been closed
        return False
