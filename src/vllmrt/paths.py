"""Where things lie by default, names that may be trusted as paths, files of which nobody sees half."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_PART, MAX_PATH = 255, 4096
"""Bytes; NAME_MAX and PATH_MAX of Linux."""

# not compiled here: every start imports this module, and only a fetch needs them
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_OURS = r"(?i)\.{1,2}vllmrt.*|\.staging|\.locks|journal\.jsonl"


def user_cache() -> Path:
    """Return the user's cache directory for vllmrt (XDG base directories).

    Raises:
        ConfigError: the user has no home; so do the next two.
    """
    return _of_user("user_cache_path")


def user_models() -> Path:
    """Return the user's default store."""
    return _of_user("user_data_path") / "models"


def user_settings_file() -> Path:
    """Return the user's settings file; it need not exist."""
    return _of_user("user_config_path") / "settings.toml"


def _of_user(kind: str) -> Path:
    import platformdirs

    try:
        path: Path | None = getattr(platformdirs, kind)("vllmrt", appauthor=False)
    except RuntimeError:
        path = None
    if path is None or not path.is_absolute():
        raise ConfigError("this user has no home directory", hint="set HOME, or FLOX_ENV_CACHE and VLLM_MODELS_DIR")
    return path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, parents: bool = True) -> None:
    """Write `data` to `path` so that a reader, or a kill at any moment, finds the old file or the whole new one.

    A symbolic link at `path` is replaced, not followed. The directory is made if it is missing, unless `parents` is
    False: one that another process has just moved away must not come back with this file alone in it.

    Raises:
        OSError: as the file system gives it; nothing is left behind.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".vllmrt.{os.urandom(6).hex()}.tmp")
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


def is_ours(name: str) -> bool:
    """Tell whether a part of a relative name is one that the store keeps for itself."""
    return any(re.fullmatch(_OURS, part) for part in name.split("/"))


def safe_join(root: Path, name: str) -> Path:
    """Return the file that a store calls `name`, below `root`; nothing is looked up on the disk.

    Args:
        root: the directory that no name may leave.
        name: a relative POSIX path from a remote listing. Hostile.

    Raises:
        SourceError: the name is not plainly the name of a file below `root`.
    """
    fault = _fault(name)
    if fault:
        raise SourceError(
            f"the source lists a file {_shown(name)}, whose name {fault}", hint="no model needs it; leave it out"
        )
    return root / name


def check_listing(names: Iterable[str]) -> None:
    """Refuse a listing that cannot become one tree of files on every file system.

    Args:
        names: what a store lists, each acceptable to `safe_join` on its own.

    Raises:
        SourceError: two names are the same, or differ only in case or in how Unicode composes them, or one is a
            directory of another.
    """
    from itertools import pairwise
    from unicodedata import normalize

    # With NUL, which no name contains, for the slash, whatever lies below a name follows right behind it.
    folded = sorted((normalize("NFC", name).casefold().replace("/", "\0"), name) for name in names)
    for (key, name), (next_key, next_name) in pairwise(folded):
        if key == next_key:
            how = (
                "twice" if name == next_name else f"and {_shown(next_name)}, which many file systems take for the same"
            )
            raise SourceError(f"the source lists {_shown(name)} {how}", hint="leave one of them out")
        if next_key.startswith(key + "\0"):
            raise SourceError(f"the source lists {_shown(name)} as a file and as the directory of {_shown(next_name)}")


def _fault(name: str) -> str | None:
    parts = name.split("/")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is not Unicode"
    return next((fault for broken, fault in _faults(name, parts, lengths) if broken), None)


def _faults(name: str, parts: list[str], lengths: list[int]) -> Iterable[tuple[object, str]]:
    yield not name, "is empty"
    yield name.startswith("/"), "is absolute"
    yield name.endswith("/"), "is that of a directory"
    yield not all(parts), "has an empty part"
    yield not {".", ".."}.isdisjoint(parts), "has a part . or .."
    yield "\\" in name, "has a backslash"
    yield re.search(_CONTROL, name), "has a control character"
    yield max(lengths) > MAX_PART, f"has a part of more than {MAX_PART} bytes"
    yield sum(lengths) + len(parts) - 1 > MAX_PATH, f"is longer than {MAX_PATH} bytes"
    yield is_ours(name), "is one that the store keeps for itself"


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:60]}...{name[-17:]}")  # noqa: PLR2004 - what fits on a line
