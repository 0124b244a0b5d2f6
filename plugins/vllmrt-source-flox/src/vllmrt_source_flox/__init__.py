"""Models that are shipped as Flox packages, at ``$FLOX_ENV/share/models``, in the Hugging Face cache layout.

Reference: chapter "Source table", row flox.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import vllmrt
from vllmrt import hubcache
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource

NIX_STORE = Path("/nix/store")


class FloxSource:
    """Offers the snapshots of the active Flox environment.

    Args:
        environment: FLOX_ENV, None outside of an activation.
    """

    name = "flox"

    def __init__(self, environment: Path | None) -> None:
        self._environment = environment

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the snapshots of the model in the environment."""
        if self._environment is None:
            return Skip("FLOX_ENV is not set", hint="run inside flox activate")
        models = self._environment / "share" / "models"
        repository = hubcache.repository(models / "hub", request)
        try:
            found = hubcache.snapshots(repository, request.revision)
        except OSError as error:
            return Skip(f"{error.filename}: {error.strerror}")
        if not found:
            return Skip(f"no snapshot in {repository / 'snapshots'}")
        root = _links_end_in(self._environment)
        return tuple(Candidate(str(path), path=path, root=root, revision=path.name, hf_home=models) for path in found)


def _links_end_in(environment: Path) -> Path:
    """Return where links of an environment may lead: it is a forest of links into the read-only Nix store."""
    resolved = Path(os.path.realpath(environment))
    return NIX_STORE if resolved.is_relative_to(NIX_STORE) else resolved


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield FloxSource(settings.flox_env)
