"""Snapshots in a Hugging Face cache on this machine: the store's own, then those that the user's tools filled.

Reference: chapter "Source table", row hf-cache; DESIGN.md §5 for the caches beyond it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import vllmrt
from vllmrt import hubcache
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        found = tuple(candidate for cache in self._caches for candidate in _snapshots(cache, request))
        if found:
            return found
        looked_in = " and ".join(str(hubcache.repository(cache.hub, request)) for cache in self._caches)
        return Skip(f"no usable snapshot in {looked_in}")


def caches(settings: Settings) -> tuple[Cache, ...]:
    """Return the store's cache and the one that huggingface_hub would use, without repeating a directory."""
    home = settings.hf_home or Path("~/.cache/huggingface").expanduser()
    hub = settings.hf_hub_cache or home / "hub"
    own = Cache(settings.store / "hub", settings.store)
    theirs = Cache(hub, hub.parent if hub.name == "hub" else None)
    return (own,) if own.hub == theirs.hub else (own, theirs)


def _snapshots(cache: Cache, request: ModelRequest) -> Iterator[Candidate]:
    repository = hubcache.repository(cache.hub, request)
    for path in hubcache.snapshots(repository, request.revision):
        yield Candidate(str(path), path=path, root=repository, revision=path.name, hf_home=cache.home)


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield HfCacheSource(caches(settings))
