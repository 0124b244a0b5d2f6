"""What each source would give, without fetching, validating or writing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from vllmrt import discovery
from vllmrt.errors import LockTimeout, SourceError, VllmrtError
from vllmrt.events import human_size
from vllmrt.resolve.attempts import Attempt, place
from vllmrt.resolve.comparison import compare
from vllmrt.resolve.proof import words
from vllmrt.resolve.store import Store, free_space
from vllmrt.types import Skip
from vllmrt.validate import missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vllmrt.host import PluginHost
    from vllmrt.resolve.attempts import Outcome
    from vllmrt.settings import Settings
    from vllmrt.types import Candidate, ModelRequest


class Offer(NamedTuple):
    """What one source says of a model.

    Attributes:
        source: its name.
        outcome: ``in place`` where the model is on this machine, ``fetch`` where it would be fetched; else as of an
            attempt, none is ``chosen``.
        detail: the reason, or the place.
        path: where the model would be served from.
        files: to fetch.
        size: bytes to fetch.
        left_out: bytes of the listing that vLLM does not load.
        here: files of the listing that are here already.
        whole: bytes that vLLM loads; 0 where the model is in place.
    """

    source: str
    outcome: Outcome | Literal["in place", "fetch"]
    detail: str
    path: Path | None = None
    files: int = 0
    size: int = 0
    left_out: int = 0
    here: int = 0
    whole: int = 0

    def __str__(self) -> str:
        """Return it as the text of a line."""
        if self.outcome != "fetch":
            return f"{self.outcome}: {self.detail}"
        saved = f", {human_size(self.left_out)} left out" if self.left_out else ""
        here = f", {self.here} files are here" if self.here else ""
        if not self.files:
            return f"nothing is to be fetched{here}; {self.detail}"
        return f"fetch: {self.files} files, {human_size(self.size)}{saved}{here}; {self.detail}"


class Planner:
    """Asks sources what they would give.

    Args:
        host: where they come from.
        settings: the run's settings.
    """

    def __init__(self, host: PluginHost, settings: Settings) -> None:
        self._host = host
        self._settings = settings
        self._store = Store(settings.store)

    def offers(self, request: ModelRequest, sources: Sequence[str]) -> Iterator[Offer]:
        """Yield what each source offers, in the user's order; the first that has the model is the one that is taken.

        Raises:
            PluginError: two plugins claim a source's name.
        """
        for name in sources:
            entry = self._host.select(discovery.SOURCES, name)
            if entry is None:
                yield Offer(name, "skipped", "no plugin of that name is installed")
                continue
            try:
                answer = self._host.probe(self._host.source(entry), request)
            except VllmrtError as error:
                yield Offer(name, "failed", str(error))
                continue
            if isinstance(answer, Skip) or not answer:
                yield Offer(name, "skipped", answer.reason if isinstance(answer, Skip) else "it has no such model")
                continue
            for candidate in answer:
                try:
                    yield self._offer(name, candidate, request)
                except (SourceError, LockTimeout) as error:
                    yield Offer(name, "failed", str(error))

    def free(self) -> int | None:
        """Return the free bytes of the store's disk; None where it does not say."""
        return free_space(self._store.root)

    def _offer(self, name: str, candidate: Candidate, request: ModelRequest) -> Offer:
        if candidate.path is not None or not candidate.files:
            there = place(name, candidate, request)
            if isinstance(there, Attempt):
                return Offer(name, there.outcome, there.reason)
            return Offer(name, "in place", candidate.location, candidate.path)
        published = self._store.published(request, self._settings.model)
        selection, plan = compare(published, candidate, self._settings, source=name)
        if not plan.identical and (faults := missing([file.path for file in selection.wanted], self._settings)):
            return Offer(name, "rejected", "\n".join([candidate.location, *map(words, faults)]))
        return Offer(
            name,
            "fetch",
            candidate.location,
            self._store.target(request, self._settings.model),
            len(plan.wanted),
            sum(file.size for file in plan.wanted),
            sum(file.size for file in selection.left_out),
            len(plan.reused),
            sum(file.size for file in selection.wanted),
        )
