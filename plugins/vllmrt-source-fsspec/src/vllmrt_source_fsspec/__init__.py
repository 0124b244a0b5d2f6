"""A model at any URL that fsspec has a driver for: ``gs://``, ``az://``, ``sftp://``, ``oss://``, ``file://``, …."""

from __future__ import annotations

from typing import TYPE_CHECKING

import vllmrt
from vllmrt.errors import SourceError
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource, ReadableRange, RemoteFile


class FsspecSource:
    """Offers what lies below one URL.

    Args:
        url: VLLMRT_MODEL_URL, the model's directory; ``{org}`` and ``{name}`` in it stand for the parts of the model's
            id. None where it is unset. It may hold credentials.
        name: VLLM_MODEL, which need not be the last part of the id; None where it is.
    """

    name = "fsspec"

    def __init__(self, url: str | None, name: str | None = None) -> None:
        self._url = url
        self._model = name
        self._urls: dict[str, str] = {}

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """List the files below the URL.

        Raises:
            SourceError: the URL cannot be used: no driver, no access, nothing that can be listed.
            TransientSourceError: not now.
        """
        from vllmrt_source_fsspec import address, backend

        if not self._url:
            return Skip("VLLMRT_MODEL_URL is not set")
        url = self._url.replace("{org}", request.org).replace("{name}", self._model or request.name)
        shown = address.shown(url)
        if request.offline and not address.is_local(url):
            return Skip(f"offline: {shown} is not asked")
        address.check(url)
        files = backend.listing(url)
        if not files:
            return Skip(f"nothing at {shown}", hint="VLLMRT_MODEL_URL is the directory with config.json in it")
        self._urls[shown] = url
        return (Candidate(shown, files=files),)

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open the bytes ``start`` to ``stop`` of one file, unless it is another than was listed.

        Raises:
            SourceError: it cannot be read.
            ChangedError: it was replaced.
            TransientSourceError: it may work later.
        """
        from vllmrt_source_fsspec import backend

        url = self._urls.get(candidate.location)
        if url is None:
            raise SourceError(f"{candidate.location} was not listed before")
        return backend.open_range(url, file, start, stop)


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield FsspecSource(settings.model_url, settings.model)
