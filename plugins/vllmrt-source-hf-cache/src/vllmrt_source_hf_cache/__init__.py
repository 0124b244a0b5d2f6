"""Snapshots in a Hugging Face cache on this machine: the store's own, then those that the user's tools filled.

Reference: chapter "Source table", row hf-cache; DESIGN.md §5 for the caches beyond it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import vllmrt
from vllmrt import hubcache
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource


class Cache(NamedTuple):
    """A cache, and the HF_HOME that leads to it (None where only HF_HUB_CACHE can)."""

    hub: Path
    home: Path | None


class HfCacheSource:
    """Offers the snapshots of several caches, the first cache's first."""

    name = "hf-cache"

    def __init__(self, caches: tuple[Cache, ...]) -> None:
        self._caches = caches

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the snapshots of the model."""
        found: list[Candidate] = []
        looked_in: list[str] = []
        for cache in self._caches:
            place = str(hubcache.repository(cache.hub, request))
            try:
                found += _snapshots(cache, request)
            except OSError as error:
                place += f" ({error.strerror})"
            looked_in.append(place)
        return tuple(found) or Skip(f"no usable snapshot in {' and '.join(looked_in)}")


def caches(settings: Settings) -> tuple[Cache, ...]:
    """Return the store's cache and the one that huggingface_hub would use, without repeating a directory."""
    own = Cache(settings.store / "hub", settings.store)
    home = hubcache.home(settings.hf_home)
    hub = settings.hf_hub_cache or (home / "hub" if home else None)
    if hub in {None, own.hub}:
        return (own,)
    return own, Cache(hub, hub.parent if hub.name == "hub" else None)


def _snapshots(cache: Cache, request: ModelRequest) -> Iterator[Candidate]:
    repository = hubcache.repository(cache.hub, request)
    for path in hubcache.snapshots(repository, request.revision):
        yield Candidate(str(path), path=path, root=repository, revision=path.name, hf_home=cache.home)


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield HfCacheSource(caches(settings))
