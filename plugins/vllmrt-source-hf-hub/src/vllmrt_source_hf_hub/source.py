"""The source: asks the API what there is, and opens ranges of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vllmrt.errors import SourceError
from vllmrt.transfer.http import HttpStatusError, RangeClient
from vllmrt.types import Candidate, Skip
from vllmrt_source_hf_hub import access, listing
from vllmrt_source_hf_hub.refusals import Asked, Refusal, judge
from vllmrt_source_hf_hub.wire import Answer, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllmrt.settings import Settings
    from vllmrt.transfer.http import HttpRange
    from vllmrt.types import ModelRequest, RemoteFile

PROBE_TIMEOUT = 35.0
"""Seconds for all calls of a probe together; less than the host's `plugin_timeout`, so that the user reads why."""
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What stores answer to a signed URL that is no longer good."""
_NO_SUCH_CALL = frozenset({404, 405, 501})


class HfHubSource:
    """Offers the model repositories of a Hub.

    Args:
        settings: endpoint, token and offline mode are taken from it.
    """

    name = "hf-hub"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = RangeClient(timeout=settings.stall_timeout, connections=settings.connections)
        self._offered: dict[str, tuple[Asked, str]] = {}
        self._signed: dict[tuple[str, str], str] = {}

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Return the repository's files at the commit that the revision means now."""
        if request.offline or self._settings.hf_hub_offline:
            return Skip("offline", hint="unset HF_HUB_OFFLINE to ask the Hub" if not request.offline else None)
        asked = Asked(request.model_id, request.revision or "main", access.find(self._settings))
        try:
            return self._ask(asked)
        except _Refused as refused:
            if isinstance(refused.verdict, Skip):
                return refused.verdict
            raise refused.verdict from None

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> HttpRange:
        """Open the bytes ``start`` to ``stop`` of a file of a commit.

        No version is passed on: a commit is immutable, and the ETag of the store behind the redirect is another one.
        """
        asked, commit = self._offered[candidate.location]
        signed = self._signed.get((candidate.location, file.path))
        if signed is not None:
            try:
                return self._client.open(signed, start, stop)
            except HttpStatusError as error:
                if error.status not in _EXPIRED:
                    raise _refused(error, asked, file) from None
                self._signed.pop((candidate.location, file.path), None)
        opened = self._resolve(asked, commit, file, start, stop)
        if not opened.url.startswith(f"{asked.access.endpoint}/"):
            self._signed[candidate.location, file.path] = opened.url
        return opened

    def close(self) -> None:
        """Close the connections that wait for a next range."""
        self._client.close()

    def _ask(self, asked: Asked) -> tuple[Candidate, ...] | Skip:
        model = f"/api/models/{quote(asked.model_id)}"
        with Wire(asked.access, timeout=PROBE_TIMEOUT) as wire:
            at = listing.revision(_get(wire, asked, f"{model}/revision/{quote(asked.revision, safe='')}").value)
            proven = not at.gated or _gate_is_open(wire, asked)
            files = listing.files(_entries(wire, asked, f"{model}/tree/{at.commit}"))
        where = f"{asked.model_id}@{at.commit}{asked.access.suffix}"
        if not files:
            return Skip(f"{where} has no files")
        if not proven:
            self._try_one(asked, at.commit, files)
        candidate = Candidate(f"hf-hub {where}", files=files, revision=at.commit)
        self._offered[candidate.location] = asked, at.commit
        return (candidate,)

    def _try_one(self, asked: Asked, commit: str, files: Sequence[RemoteFile]) -> None:
        """Learn from one byte, before the first big one, whether we may have the files."""
        smallest = min(files, key=lambda file: (file.size == 0, file.size))
        self._resolve(asked, commit, smallest, 0, 1).close()

    def _resolve(self, asked: Asked, commit: str, file: RemoteFile, start: int, stop: int) -> HttpRange:
        url = f"{asked.access.endpoint}/{quote(asked.model_id)}/resolve/{commit}/{quote(file.path)}"
        try:
            return self._client.open(url, start, stop, headers=asked.access.headers)
        except HttpStatusError as error:
            raise _refused(error, asked, file) from None


class _Refused(Exception):
    """Carries a verdict out of a call."""

    def __init__(self, verdict: Skip | SourceError) -> None:
        super().__init__()
        self.verdict = verdict


def _get(wire: Wire, asked: Asked, path: str) -> Answer:
    answer = wire.get(path)
    if isinstance(answer, Refusal):
        raise _Refused(judge(answer, asked))
    return answer


def _gate_is_open(wire: Wire, asked: Asked) -> bool:
    """Return whether the endpoint says so; a mirror may not know this call, whatever the code of its 404."""
    refusal = wire.refusal(f"/api/models/{quote(asked.model_id)}/auth-check")
    if refusal and refusal.status not in _NO_SUCH_CALL:
        raise _Refused(judge(refusal, asked))
    return refusal is None


def _entries(wire: Wire, asked: Asked, path: str) -> Iterator[Any]:
    """Yield what all pages list."""
    query: str | None = "recursive=true&expand=false"
    asked_before: set[str] = set()
    while query is not None:
        if query in asked_before:
            raise SourceError(f"the list of files of {asked.model_id} leads back to a page that was read")
        asked_before.add(query)
        answer = _get(wire, asked, f"{path}?{query}")
        if not isinstance(answer.value, list):
            raise SourceError(f"the list of files of {asked.model_id} is no list")
        yield from answer.value
        query = answer.next_query


def _refused(error: HttpStatusError, asked: Asked, file: RemoteFile) -> SourceError:
    if error.status == 404 and error.code in {None, "EntryNotFound"}:  # noqa: PLR2004 - RFC 9110
        return SourceError(f"{asked.model_id} lists {file.path!a} and does not have it{asked.access.suffix}")
    verdict = judge(Refusal(error.status, error.code), asked)
    return SourceError(verdict.reason, hint=verdict.hint) if isinstance(verdict, Skip) else verdict
