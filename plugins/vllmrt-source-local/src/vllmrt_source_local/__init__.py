"""Models in the store: published there by vllmrt, or put there by their user.

Reference: chapter "Source table", row local.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import vllmrt
from vllmrt.identity import identity_hash
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource


class LocalSource:
    """Offers ``<store>/<name>``, and the directory that is used instead where another model has that name.

    Args:
        store: VLLM_MODELS_DIR.
        name: VLLM_MODEL, which need not be the last part of the id; None where it is.
    """

    name = "local"

    def __init__(self, store: Path, name: str | None) -> None:
        self._store = store
        self._name = name

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the directories that are there."""
        name = self._name or request.name
        places = (self._store / name, self._store / f"{name}.{identity_hash(request.identity)}")
        try:
            found = tuple(Candidate(str(path), path=path) for path in places if path.is_dir())
        except OSError as error:
            return Skip(f"{error.filename}: {error.strerror}", hint="let this user read the store")
        return found or Skip(f"nothing at {places[0]}")


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield LocalSource(settings.store, settings.model)
