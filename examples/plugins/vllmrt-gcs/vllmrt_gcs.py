"""A vllmrt source: models in Google Cloud Storage, listed by Google's own client and fetched in ranges by vllmrt."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import vllmrt
from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt.transfer.http import HttpStatusError, RangeClient
from vllmrt.types import Candidate, Digest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource, ReadableRange

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"


class Gcs:
    """Offers what lies below a ``gs://`` URL; ``{org}`` and ``{name}`` in it stand for the parts of the model's id."""

    name = "gcs"

    def __init__(self, url: str | None) -> None:
        self._url = url or ""
        self._ranges = RangeClient()

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """List the objects, each with its generation, and its MD5 or CRC32C."""
        if not self._url.startswith("gs://"):
            return Skip("VLLMRT_MODEL_URL is no gs:// URL", hint="set it to gs://bucket/models/{org}/{name}")
        where = self._url.replace("{org}", request.org).replace("{name}", request.name).rstrip("/") + "/"
        if request.offline:
            return Skip(f"offline: {where} is not asked")
        bucket, _, prefix = where.removeprefix("gs://").partition("/")
        with _told(where):
            blobs = list(self._client.list_blobs(bucket, prefix=prefix, timeout=20, retry=None))
        files = tuple(remote(blob, prefix) for blob in blobs if not blob.name.endswith("/"))
        return (Candidate(where, files=files),) if files else Skip(f"nothing at {where}")

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open a range of the generation that was listed; it is gone once the object is replaced."""
        from google.auth.transport.requests import Request

        headers: dict[str, str] = {}
        bucket, _, prefix = candidate.location.removeprefix("gs://").partition("/")
        path = f"/download/storage/v1/b/{bucket}/o/{quote(prefix + file.path, safe='')}"
        url = f"{self._client.api_endpoint}{path}?alt=media&generation={file.version}"
        with _told(candidate.location):
            self._credentials.before_request(Request(), "GET", url, headers)
            return self._ranges.open(url, start, stop, headers=headers)

    def close(self) -> None:
        """Close the connections that wait for a next range."""
        self._ranges.close()

    @cached_property
    def _credentials(self) -> Any:
        from google.auth import credentials, default, exceptions

        try:
            return default(scopes=[SCOPE])[0]
        except exceptions.DefaultCredentialsError:
            return credentials.AnonymousCredentials()  # public buckets need none

    @cached_property
    def _client(self) -> Any:
        from google.cloud.storage import Client

        return Client(project="none", credentials=self._credentials)  # who only reads needs no project


def remote(blob: Any, prefix: str) -> RemoteFile:
    """Return an object as vllmrt knows it."""
    kind, value = ("md5", blob.md5_hash) if blob.md5_hash else ("crc32c", blob.crc32c)  # composed objects have no MD5
    digest = Digest(kind, value=base64.b64decode(value).hex())
    return RemoteFile(blob.name.removeprefix(prefix), size=blob.size, version=str(blob.generation), digest=digest)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what Google's client raises into what a source may raise."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    try:
        yield
    except (GoogleAPICallError, GoogleAuthError, RequestException) as error:
        kind = SourceError if getattr(error, "code", 0) in {400, 401, 403, 404} else TransientSourceError
        hint = "check the bucket's name, and that gcloud auth application-default login has an account that may read it"
        raise kind(f"{where} cannot be read: {type(error).__name__}", hint=hint) from None
    except HttpStatusError as error:
        if error.status == 404:  # noqa: PLR2004 - RFC 9110
            raise ChangedError(f"an object at {where} was replaced") from None
        raise


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source."""
    yield Gcs(settings.model_url)
