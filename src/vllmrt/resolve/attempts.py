"""What every source came to, and the error that says so where none has the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from vllmrt.errors import ModelNotFound, ModelRejected, ResolveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.types import ModelRequest

Outcome = Literal["skipped", "failed", "rejected", "chosen"]


class Attempt(NamedTuple):
    """What one source, or one place that it offered, came to."""

    source: str
    outcome: Outcome
    reason: str
    hint: str | None = None


def failure(request: ModelRequest, attempts: Sequence[Attempt]) -> ResolveError:
    """Return the error for a model that none of the attempts found, or none found whole."""
    hints = "\n".join(f"{attempt.source}: {attempt.hint}" for attempt in attempts if attempt.hint) or None
    facts = [attempt._asdict() for attempt in attempts]
    if any(attempt.outcome == "rejected" for attempt in attempts):
        return ModelRejected(f"{request.identity} was found, but it is not whole", hint=hints, attempts=facts)
    return ModelNotFound(f"no source has {request.identity}", hint=hints, attempts=facts)
