"""Models in a bucket of Cloudflare R2, Amazon S3, or any store that speaks S3.

Reference: chapter "Source table", row r2; there is no aws CLI to miss any more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import vllmrt
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.transfer.http import RangeClient
    from vllmrt.types import ModelRequest, ModelSource, ReadableRange, RemoteFile
    from vllmrt_source_r2.bucket import Bucket

_NOT_LET_IN = frozenset({400, 401, 403})


class R2Source:
    """Offers ``<R2_MODELS_PREFIX>/<VLLM_MODEL>/`` of one bucket.

    Args:
        settings: bucket, prefix, endpoint, the model's directory and what a transfer may do are taken from it.
    """

    name = "r2"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mutex = threading.Lock()
        self._bucket: Bucket | None = None
        self._ranges: RangeClient | None = None

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """List the model's objects, all pages of them.

        Raises:
            SourceError: the bucket cannot be listed; the hint says which of the settings to look at.
            TransientSourceError: the store cannot be reached, or is overloaded.
        """
        from vllmrt_source_r2 import listing

        name, prefix = self._settings.r2_bucket, self._settings.r2_models_prefix
        if not name or not prefix:
            return Skip(f"{'R2_MODELS_PREFIX' if name else 'R2_BUCKET'} is not set")
        if request.offline:
            return Skip("offline: the bucket is not asked")
        bucket = self._connect()
        if isinstance(bucket, Skip):
            return bucket
        prefix = f"{prefix.strip('/')}/{self._settings.model or request.name}/".lstrip("/")
        files = listing.files(bucket, prefix)
        if not files:
            return Skip(f"nothing under {bucket.location}{prefix}", hint="check R2_MODELS_PREFIX and the model's name")
        return (Candidate(f"{bucket.location}{prefix}", files=files),)

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open the bytes ``start`` to ``stop`` of one object, as long as its ETag is the one that was listed.

        Every call signs a URL of its own, so none is too old; a store that refuses it is asked once more with
        credentials that were loaded anew.

        Raises:
            SourceError: the store refuses.
            ChangedError: the object was replaced.
            TransientSourceError: it may work later.
        """
        from vllmrt.transfer.http import HttpStatusError
        from vllmrt_source_r2 import faults

        for last in (False, True):
            bucket = self._connect(again=last)
            if isinstance(bucket, Skip):
                raise faults.unusable(bucket)
            key = candidate.location.removeprefix(bucket.location) + file.path
            try:
                return self._client().open(bucket.sign(key), start, stop, version=file.version or None)
            except HttpStatusError as error:
                if last or error.status not in _NOT_LET_IN:
                    raise faults.of_status(error.status, error.code, bucket.location + key) from None
        raise AssertionError

    def close(self) -> None:
        """Give up all connections."""
        with self._mutex:
            bucket, self._bucket = self._bucket, None
            ranges, self._ranges = self._ranges, None
        if bucket:
            bucket.close()
        if ranges:
            ranges.close()

    def _connect(self, *, again: bool = False) -> Bucket | Skip:
        from vllmrt_source_r2.bucket import connect

        with self._mutex:
            if self._bucket is None or again:
                region = self._bucket.followed if self._bucket else None
                bucket = connect(str(self._settings.r2_bucket), self._settings.r2_endpoint_url, region=region)
                if isinstance(bucket, Skip):
                    return bucket
                if self._bucket is not None:
                    self._bucket.close()  # its connections; what others sign with it needs none
                self._bucket = bucket
            return self._bucket

    def _client(self) -> RangeClient:
        from vllmrt.transfer.http import RangeClient

        with self._mutex:
            if self._ranges is None:
                asked = self._settings
                self._ranges = RangeClient(timeout=asked.stall_timeout, connections=asked.connections)
            return self._ranges


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    yield R2Source(settings)
