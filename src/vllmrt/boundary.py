"""What comes from a plugin is checked here before anybody relies on it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from vllmrt.errors import PluginError
from vllmrt.types import Candidate, Finding, GpuStatus, Severity, Skip, Verdict

if TYPE_CHECKING:
    from vllmrt.discovery import EntryPoint

T = TypeVar("T")
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
    return tuple(answer)


def skipped(entry: EntryPoint, what: str, answer: Any) -> Skip | None:
    """Return the answer if it is a Skip, checked as `typed` does; None for any other."""
    return typed(entry, what, (answer,), Skip)[0] if isinstance(answer, Skip) else None


def disable_hint(entry: EntryPoint) -> str:
    """Return what a user can do about a plugin that is broken."""
    return f"upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS={entry.distribution}"
