"""Where things lie by default, and how a file is written so that nobody sees half of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def user_cache() -> Path:
    """Return the user's cache directory for vllmrt (XDG base directories)."""
    from platformdirs import user_cache_path

    return user_cache_path("vllmrt", appauthor=False)


def user_models() -> Path:
    """Return the user's default store."""
    from platformdirs import user_data_path

    return user_data_path("vllmrt", appauthor=False) / "models"


def user_settings_file() -> Path:
    """Return the user's settings file; it need not exist."""
    from platformdirs import user_config_path

    return user_config_path("vllmrt", appauthor=False) / "settings.toml"


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` to `path` so that a reader, or a kill at any moment, finds the old file or the whole new one.

    A symbolic link at `path` is replaced, not followed. The directory is made if it is missing.

    Raises:
        OSError: as the file system gives it; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
