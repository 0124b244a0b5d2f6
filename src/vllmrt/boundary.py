"""What comes from a plugin is checked here before anybody relies on it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import PurePath
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, TypeVar

from vllmrt.errors import PluginError, SourceError, TransientSourceError
from vllmrt.types import Candidate, Digest, Finding, GpuStatus, RemoteFile, Severity, Skip, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.discovery import EntryPoint
    from vllmrt.types import ReadableRange

T = TypeVar("T")
MOST = 100_000
"""Values in one answer; a generator without an end would fill the memory before its time is up."""
_TEXT, _PATH = (str,), (PurePath, type(None))
_MAYBE_TEXT = (str, type(None))
_SHAPES: dict[type, dict[str, tuple[type, ...]]] = {
    Candidate: {
        "location": _TEXT,
        "path": _PATH,
        "root": _PATH,
        "files": (tuple,),
        "revision": _MAYBE_TEXT,
        "hf_home": _PATH,
    },
    RemoteFile: {"path": _TEXT, "size": (int,), "version": _TEXT, "digest": (Digest, type(None))},
    Digest: {"algorithm": _TEXT, "value": _TEXT},
    Skip: {"reason": _TEXT, "hint": _MAYBE_TEXT},
    Verdict: {},
    GpuStatus: {},  # its fields cross a second boundary, where they are read: `vllmrt.gpu.child`
    Finding: {"severity": (Severity,), "message": _TEXT, "code": _TEXT, "file": _MAYBE_TEXT},
}


def typed(entry: EntryPoint, what: str, answer: Any, kind: type[T]) -> tuple[T, ...]:
    """Check every value that crosses the boundary, down to its fields: a dataclass does not.

    Raises:
        PluginError: one is of another type; it names the plugin.
    """
    for item in answer if isinstance(answer, tuple) else (answer,):
        if not isinstance(item, kind):
            fault = f"{what} gave a {type(item).__name__}, not a {kind.__name__}"
            raise PluginError(f"{entry.owner}: {fault}", hint=disable_hint(entry))
        for field, kinds in _SHAPES[kind].items():
            if not isinstance(getattr(item, field), kinds):
                wrong = f"{what} gave a {kind.__name__} whose {field} is a {type(getattr(item, field)).__name__}"
                raise PluginError(f"{entry.owner}: {wrong}", hint=disable_hint(entry))
        if isinstance(item, Candidate):
            _check_files(entry, what, item.files)
    return tuple(answer)


def canonical(candidate: Candidate) -> Candidate:
    """Return a candidate whose digests are by algorithms as the core spells them: ``SHA-256`` is ``sha256``."""
    files = tuple(map(_canonical, candidate.files))
    return candidate if files == candidate.files else replace(candidate, files=files)


def _canonical(file: RemoteFile) -> RemoteFile:
    if file.digest is None:
        return file
    name = file.digest.algorithm.lower().replace("sha-", "sha")
    return file if name == file.digest.algorithm else replace(file, digest=replace(file.digest, algorithm=name))


def _check_files(entry: EntryPoint, what: str, files: tuple[RemoteFile, ...]) -> None:
    typed(entry, what, files, RemoteFile)
    typed(entry, what, tuple(file.digest for file in files if file.digest), Digest)
    for file in files:
        if file.size < 0:
            text = f"{entry.owner}: {what} gave {file.path!a} a size of {file.size}"
            raise PluginError(text, hint=disable_hint(entry))


def skipped(entry: EntryPoint, what: str, answer: Any) -> Skip | None:
    """Return the answer if it is a Skip, checked as `typed` does; None for any other."""
    return typed(entry, what, (answer,), Skip)[0] if isinstance(answer, Skip) else None


def disable_hint(entry: EntryPoint) -> str:
    """Return what a user can do about a plugin that is broken."""
    return f"upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS={entry.distribution}"


def drained(answer: Any) -> Any:
    """Take everything from an iterable while a guard still watches.

    Raises:
        OverflowError: it has no end.
    """
    if isinstance(answer, Skip):
        return answer
    values = tuple(islice(iter(answer), MOST + 1))
    if len(values) > MOST:
        raise OverflowError(f"more than {MOST:,} values")
    return values


def failure(entry: EntryPoint, what: str, error: BaseException) -> PluginError:
    """Return what a plugin raised, and should not have, as an error that names it; it may hold a signed URL."""
    from vllmrt.masking import redact

    try:
        said = redact(str(error))
    except Exception:  # noqa: BLE001 - a plugin's exception may do anything
        said = "(an error that cannot be shown)"
    return PluginError(f"{entry.owner}: {what} failed: {type(error).__name__}: {said}", hint=disable_hint(entry))


class CheckedRange:
    """The bytes of a range that a plugin opened; whatever is wrong with them is named.

    Args:
        entry: whose it is.
        opened: what `open` returned.
    """

    def __init__(self, entry: EntryPoint, opened: ReadableRange) -> None:
        for method in ("readinto", "close"):
            if not callable(getattr(opened, method, None)):
                kind = type(opened).__name__
                raise PluginError(f"{entry.owner}: open gave a {kind} without {method}()", hint=disable_hint(entry))
        self._entry = entry
        self._opened = opened

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer; a number of bytes that cannot be is not believed."""
        count: Any = watched(self._entry, "readinto", lambda: self._opened.readinto(buffer))
        if not isinstance(count, int) or not 0 <= count <= len(buffer):
            text = f"{self._entry.owner}: readinto gave {count!a} for a buffer of {len(buffer):,} bytes"
            raise PluginError(text, hint=disable_hint(self._entry))
        return count

    def close(self) -> None:
        """Close it; what it raises then matters to nobody."""
        with suppress(SourceError, PluginError):
            watched(self._entry, "close", self._opened.close)


def watched(entry: EntryPoint, what: str, call: Callable[[], T]) -> T:
    """Call a plugin where it moves bytes: what it raises is named, and may pass unless the source says otherwise.

    Raises:
        SourceError: as the source raised it; TransientSourceError for any other exception.
        PluginError: it tried to end the process.
    """
    try:
        return call()
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        named = failure(entry, what, error)
        raise TransientSourceError(named.message, hint=named.hint) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # the user's
        raise failure(entry, what, error) from error
