"""A vllmrt source: models on ModelScope, by its public HTTP API."""

from __future__ import annotations

import os
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import msgspec

import vllmrt
from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.transfer.http import RangeClient
from vllmrt.types import Candidate, Digest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.types import ModelRequest, ModelSource, ReadableRange


class Entry(msgspec.Struct, rename="pascal"):
    """A file, or a ``tree``; `revision` is the commit that changed it last."""

    path: str
    type: str
    size: int
    revision: str
    sha256: str


class Data(msgspec.Struct, rename="pascal"):
    """What an answer is about."""

    files: list[Entry] = []


class Answer(msgspec.Struct, rename="pascal"):
    """An answer; where there is no such model, there is no data, whatever the status of HTTP is."""

    data: Data | None = None


class ModelScope:
    """Offers the models of one endpoint."""

    name = "modelscope"

    def __init__(self, endpoint: str, token: str | None) -> None:
        self._api = f"{endpoint.rstrip('/')}/api/v1/models/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ranges = RangeClient()

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """List the files of the revision, each with its SHA-256 and the commit that changed it last."""
        if request.offline:
            return Skip("offline: ModelScope is not asked")
        where = self._api + quote(request.model_id)
        query = urlencode({"Revision": request.revision or "master", "Recursive": "True"})
        entries = self._ask(f"{where}/repo/files?{query}").files
        if len(entries) >= 3000:  # noqa: PLR2004 - where ModelScope cuts a listing, without saying so
            raise SourceError(f"{request.identity} has more files than ModelScope lists")
        files = [entry for entry in entries if entry.type == "blob"]
        if not files:
            hint = "check name and revision; if it is private, set MODELSCOPE_API_TOKEN"
            return Skip(f"there is no {request.identity} on ModelScope, or it is private", hint=hint)
        return (Candidate(where, files=tuple(map(_remote, files))),)

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open a range of the file as it was at the commit that was listed."""
        url = f"{candidate.location}/repo?{urlencode({'Revision': file.version, 'FilePath': file.path})}"
        return self._ranges.open(url, start, stop, headers=self._headers)

    def close(self) -> None:
        """Close the connections that wait for a next range."""
        self._ranges.close()

    def _ask(self, url: str) -> Data:
        request = Request(url)  # noqa: S310 - whom to ask is the user's choice
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            with urlopen(request, timeout=20) as answer:  # noqa: S310 - as above
                return msgspec.json.decode(answer.read(), type=Answer).data or Data()
        except HTTPError as error:
            error.close()
            if error.code == 404:  # noqa: PLR2004 - RFC 9110
                return Data()
            kind = SourceError if error.code in {400, 401, 403} else TransientSourceError
            raise kind(f"ModelScope answers {error.code}", hint="is MODELSCOPE_API_TOKEN right?") from None
        except (OSError, HTTPException) as error:
            raise TransientSourceError(f"ModelScope cannot be reached: {type(error).__name__}") from None
        except msgspec.MsgspecError:
            raise SourceError("what ModelScope lists cannot be understood") from None


def _remote(entry: Entry) -> RemoteFile:
    digest = Digest("sha256", value=entry.sha256.lower())
    return RemoteFile(entry.path, size=entry.size, version=entry.revision, digest=digest)


@vllmrt.hookimpl
def vllmrt_sources() -> Iterator[ModelSource]:
    """Offer the one source; it is set up by the variables of ModelScope's own client."""
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
    yield ModelScope(endpoint, os.environ.get("MODELSCOPE_API_TOKEN"))
