"""What is kept of a server in the background: one file for each port, which its user alone may read."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec

from vllmrt import locking
from vllmrt.errors import ConfigError, LockTimeout
from vllmrt.paths import write_atomic
from vllmrt.procfs import PROC, ProcFs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.settings import Settings

_FOLDER = "background"
_SIZE_LIMIT = 1 << 20
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How what lies in the folder is opened, which others may be able to write."""
_LONGER_THAN_STOPPING = 10.0


class Server(msgspec.Struct, frozen=True):
    """A server, as it was started.

    Attributes:
        pid: its topmost process, which leads a session and a process group of that number.
        start_ticks: when that began; with `boot` it tells the process from a later one of the same number.
        boot: of the machine, as the kernel names it.
        model: its identity.
        url: where clients reach it.
        argv: its command line, without secrets.
        log: where its output goes.
        since: seconds since the epoch.
    """

    pid: Annotated[int, msgspec.Meta(gt=1)]
    start_ticks: int
    boot: str
    model: str
    url: str
    argv: tuple[str, ...]
    log: str
    since: float


def boot_id() -> str:
    """Return the kernel's name for the time since the machine was started."""
    return (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()


def log_path(settings: Settings) -> Path:
    """Return where the output of the server goes; that of the one before has ``.1`` behind its name."""
    return _folder(settings) / f"{settings.port}.log"


def others(settings: Settings) -> list[int]:
    """Return the other ports that something is kept of."""
    try:
        names = os.listdir(_folder(settings))
    except OSError:
        return []
    stems = (stem for stem, ending in map(os.path.splitext, names) if ending == ".json" and stem.isdecimal())
    return sorted({int(stem) for stem in stems} - {settings.port})


def hint(settings: Settings) -> str:
    """Return what its user may mean who asks for a port of which nothing is kept."""
    ports = ", ".join(map(str, others(settings)))
    return f"there is something on port {ports}: --port" if ports else "vllmrt up --detach starts a server there"


def load(settings: Settings) -> Server | None:
    """Return what is kept of the port; None where that is nothing.

    Raises:
        ConfigError: what is kept may have been written by somebody else, or is no such file.
    """
    path = _path(settings)
    try:
        descriptor = os.open(path, READING)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be opened") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise _unusable(path, "it is no plain file that you alone may write")
        try:
            return msgspec.json.decode(file.read(_SIZE_LIMIT), type=Server)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _unusable(path, "it does not say which process was started") from None


def save(settings: Settings, server: Server) -> None:
    """Keep what is known of the server on the port.

    Raises:
        OSError: it cannot be written.
    """
    write_atomic(_path(settings), msgspec.json.encode(server))


def forget(settings: Settings) -> None:
    """Take away what is kept of the port; the log stays."""
    _path(settings).unlink(missing_ok=True)


def is_running(server: Server, proc: ProcFs) -> bool:
    """Tell whether the very process that was started still runs."""
    now = proc.stat(server.pid)
    return now is not None and now.alive and now.start_ticks == server.start_ticks and server.boot == boot_id()


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Keep every other command that starts or stops a server on the port away for the length of the block.

    Raises:
        LockTimeout: another one takes longer than it takes to stop a server.
    """
    lock = _folder(settings) / f"{settings.port}.lock"
    try:
        with locking.hold(lock, timeout=settings.stop_timeout + _LONGER_THAN_STOPPING, waiting=lambda _: None):
            yield
    except LockTimeout as error:
        raise LockTimeout(error.message, hint="wait for it, or stop it", pid=error.pid) from None


def _folder(settings: Settings) -> Path:
    return settings.cache / _FOLDER


def _path(settings: Settings) -> Path:
    return _folder(settings) / f"{settings.port}.json"


def _unusable(path: Path, reason: str) -> ConfigError:
    hint = f"see what runs, then remove it: rm {path}; vllmrt preflight stops a vLLM of yours that listens"
    return ConfigError(f"{path} cannot be used: {reason}", hint=hint)
