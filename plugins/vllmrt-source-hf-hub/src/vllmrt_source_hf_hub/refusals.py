"""What an answer that is no success means, and what the user can do about it.

Nothing there is a `Skip`; there, but not for us, is a `SourceError`; later perhaps is a `TransientSourceError`.
Reference: hub-facts, "errors" and "Gated repository without access".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.types import Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllmrt_source_hf_hub.access import Access

_DISABLED = "Access to this resource is disabled."
_LATER = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


class Refusal(NamedTuple):
    """The parts of an answer that tell why: X-Error-Code and X-Error-Message; `retry_after` in seconds."""

    status: int
    code: str | None = None
    message: str | None = None
    retry_after: float | None = None


class Asked(NamedTuple):
    """What was asked for, and whom."""

    model_id: str
    revision: str
    access: Access


def judge(refusal: Refusal, asked: Asked) -> Skip | SourceError:
    """Return what a refusal means; a token that the answer echoes is not in it."""
    if refusal.status in _LATER or refusal.status >= _SERVER_ERROR:
        return _later(refusal, asked)
    known = _BY_CODE.get(refusal.code or "")
    if known:
        return known(asked)
    if refusal.message == _DISABLED:
        return SourceError(f"{asked.model_id} is disabled{asked.access.suffix}")
    return _by_status(refusal, asked)


def _by_status(refusal: Refusal, asked: Asked) -> Skip | SourceError:
    at = asked.access.suffix
    if refusal.status == _UNAUTHORIZED and asked.access.token:
        hint = f"make a new token at {asked.access.endpoint}/settings/tokens and set HF_TOKEN, or unset the old one"
        return SourceError(f"the token from {asked.access.token.origin} is not accepted{at}", hint=hint)
    if refusal.status in {_UNAUTHORIZED, _NOT_FOUND}:
        return _not_found(asked)
    if refusal.status == _FORBIDDEN:
        hint = "give the token read access to it" if asked.access.token else "set HF_TOKEN"
        return SourceError(f"{asked.model_id} is not open to you{at} (403)", hint=hint)
    said = f": {_printable(refusal.message, asked)}" if refusal.message else ""
    return SourceError(f"the Hub answered {refusal.status}{at}{said}")


def _later(refusal: Refusal, asked: Asked) -> TransientSourceError:
    known = {408: "was too slow", 425: "asks for patience", 429: "limits how often it may be asked"}
    what = known.get(refusal.status, "is in trouble")
    hint = "a token raises the limit: set HF_TOKEN" if refusal.status == 429 and not asked.access.token else None  # noqa: PLR2004
    text = f"the Hub {what}{asked.access.suffix} ({refusal.status})"
    return TransientSourceError(text, hint=hint, retry_after=refusal.retry_after)


def _gated(asked: Asked) -> SourceError:
    page = f"{asked.access.endpoint}/{asked.model_id}"
    if asked.access.token:
        text = f"{asked.model_id} is gated, and the token from {asked.access.token.origin} has no access to it"
        return SourceError(text, hint=f"accept the licence at {page} with the account that the token belongs to")
    return SourceError(
        f"{asked.model_id} is gated, and no token was found", hint=f"accept the licence at {page} and set HF_TOKEN"
    )


def _not_found(asked: Asked) -> Skip:
    name = f"model {asked.model_id}{asked.access.suffix}"
    if asked.access.token:
        origin = asked.access.token.origin
        hint = f"check the name; if it is private, that the token from {origin} is valid and may read it"
    else:
        hint = "check the name; if it is private, set HF_TOKEN"
    return Skip(f"there is no {name}, or it is private", hint=hint)


def _no_revision(asked: Asked) -> Skip:
    hint = f"its branches and tags are listed at {asked.access.endpoint}/{asked.model_id}/tree/main"
    return Skip(f"{asked.model_id} has no revision {asked.revision}{asked.access.suffix}", hint=hint)


def _printable(text: str, asked: Asked) -> str:
    if asked.access.token:
        text = text.replace(asked.access.token.value, "********")
    return re.sub(r"[^ -~]", "?", text)[:200]


_BY_CODE: Mapping[str, Callable[[Asked], Skip | SourceError]] = {
    "GatedRepo": _gated,
    "RepoNotFound": _not_found,
    "RevisionNotFound": _no_revision,
}
