"""A vllmrt source in one file: models on a mounted share, as ``<mount>/<org>/<name>``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import vllmrt
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource


class Share:
    """Offers what lies on the share."""

    name = "acme-share"

    def __init__(self, mount: Path) -> None:
        """Look below `mount`."""
        self._mount = mount

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the model's directory, or say why there is none."""
        path = self._mount / request.org / request.name
        if not path.is_dir():
            return Skip(f"nothing at {path}", hint=f"mount the share at {self._mount}")
        return (Candidate(str(path), path=path),)


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the share that lies beside the store."""
    yield Share(settings.store.parent / "share")
