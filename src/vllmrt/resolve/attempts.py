"""What every source came to, and the error that says so where none has the model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from vllmrt.errors import IntegrityError, LockTimeout, ModelNotFound, ModelRejected, ResolveError
from vllmrt.events import Event
from vllmrt.resolve import manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllmrt.events import Emit
    from vllmrt.resolve.manifest import Manifest
    from vllmrt.types import Candidate, ModelRequest

Outcome = Literal["skipped", "failed", "rejected", "chosen"]
T = TypeVar("T")
_RACES, _RACE_PAUSE = 10, 0.1
"""How often something is tried that other processes disturb, and the seconds to the next time, times its number."""


class Attempt(NamedTuple):
    """What one source, or one place that it offered, came to."""

    source: str
    outcome: Outcome
    reason: str
    hint: str | None = None


class Place(NamedTuple):
    """A directory on this machine, as it would be used where it lies, and its manifest if it has one."""

    path: Path
    published: Manifest | None


def place(source: str, candidate: Candidate, request: ModelRequest) -> Place | Attempt:
    """Return the directory of a candidate that is not fetched, or why it cannot be used.

    Args:
        source: the name of the source.
        candidate: what it offers.
        request: what was asked for.
    """
    if candidate.path is None or not candidate.path.is_dir():
        return Attempt(source, "failed", f"{candidate.location} is no directory on this machine")
    path = Path(os.path.realpath(candidate.path))
    published = manifest.of(path)
    if published and published.identity != request.identity:
        return Attempt(source, "skipped", f"{path} belongs to {published.identity}")
    return Place(path, published)


def failure(request: ModelRequest, attempts: Sequence[Attempt]) -> ResolveError:
    """Return the error for a model that none of the attempts found, or none found whole."""
    hints = "\n".join(f"{attempt.source}: {attempt.hint}" for attempt in attempts if attempt.hint) or None
    facts = [attempt._asdict() for attempt in attempts]
    if any(attempt.outcome == "rejected" for attempt in attempts):
        return ModelRejected(f"{request.identity} was found, but it is not whole", hint=hints, attempts=facts)
    return ModelNotFound(f"no source has {request.identity}", hint=hints, attempts=facts)


def against_rivals(attempt: Callable[[], T], emit: Emit) -> T:
    """Try something, and again where a process that no lock kept away took what it was working on.

    Where locks lie, that process publishes what both have staged: then it is here the next time, as a rule.

    Args:
        attempt: what to do.
        emit: told of every race that was lost.

    Raises:
        LockTimeout: all were lost.
        IntegrityError: as before, where files were replaced.
    """
    for race in range(1, _RACES):
        try:
            return attempt()
        except (LockTimeout, IntegrityError) as error:
            emit(Event("resolve.retry", "retry", str(error)))
            time.sleep(race * _RACE_PAUSE)
    return attempt()
