"""Models that are shipped as Python distributions.

What the flox source is to Nix packages, this is to pip packages: an entry point in the group ``vllmrt.models`` names a
model, and its value the module whose directory holds it. The module is located, never imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import vllmrt
from vllmrt.discovery import MODELS, EntryPoint, entry_points, normalise
from vllmrt.errors import SourceError
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource


class PackageSource:
    """Offers the models of the distributions that are installed beside vllmrt.

    Args:
        disabled: distributions to pass over.
    """

    name = "package"

    def __init__(self, disabled: tuple[str, ...] = ()) -> None:
        self._disabled = {normalise(name) for name in disabled}

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the directory of the one distribution that ships the model."""
        shipped = [entry for entry in entry_points() if entry.group == MODELS]
        named = [entry for entry in shipped if entry.name == request.model_id]
        claims = [entry for entry in named if entry.distribution not in self._disabled]
        if len(claims) > 1:
            raise SourceError(
                f"{request.model_id} is shipped by {' and by '.join(entry.owner for entry in claims)}",
                hint="uninstall all but one",
            )
        if not claims:
            return Skip(f"no installed distribution ships {request.model_id}")
        entry = claims[0]
        if request.revision not in {None, entry.version}:
            return Skip(f"{entry.owner} ships {request.model_id}, but not revision {request.revision}")
        path = _directory(entry)
        return (Candidate(f"{entry.owner} in {path}", path=path, revision=entry.version),)


def _directory(entry: EntryPoint) -> Path:
    """Locate the module without importing anything, its parent packages included."""
    from importlib.util import find_spec

    top, *rest = entry.value.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{entry.owner} names {entry.value}, which cannot be found: {error}") from None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location, *rest)
        if path.is_dir():
            return path
    raise SourceError(f"{entry.owner} names {entry.value}, which is no package", hint="reinstall it")


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield PackageSource(settings.disable_plugins)
