"""What a user is told of a transfer: what comes, how far it is, what went wrong on the way, what was proven."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from vllmrt.events import PROGRESS, PROGRESS_EVERY, Event, human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllmrt.events import Emit
    from vllmrt.resolve.manifest import FileState
    from vllmrt.transfer.engine import Progress
    from vllmrt.transfer.ranges import Range
    from vllmrt.types import Candidate, RemoteFile
    from vllmrt.validate.selection import Selection

_REPORT_EVERY = 0.5


def announce(emit: Emit, source: str, candidate: Candidate, selection: Selection, wanted: Sequence[RemoteFile]) -> None:
    """Tell what is fetched, what is here already, and what is left out."""
    text = summary(candidate, selection, wanted)
    emit(Event("transfer.start", source, text, data=amounts(source, selection, wanted)))


def summary(candidate: Candidate, selection: Selection, wanted: Sequence[RemoteFile]) -> str:
    """Return what is fetched, what is here already, and what is left out, in words."""
    left_out = sum(file.size for file in selection.left_out)
    size = sum(file.size for file in wanted)
    revision = f"{candidate.revision[:7]} · " if candidate.revision else ""
    saved = f" ({human_size(left_out)} left out)" if left_out else ""
    here = len(selection.wanted) - len(wanted)
    kept = f", {here} are here" if here else ""
    return f"{revision}{len(wanted)} files · {human_size(size)}{saved}{kept} · {candidate.location}"


def amounts(source: str, selection: Selection, wanted: Sequence[RemoteFile]) -> dict[str, str | int]:
    """Return the same for programs."""
    return {
        "source": source,
        "files": len(wanted),
        "bytes": sum(file.size for file in wanted),
        "left_out": sum(file.size for file in selection.left_out),
        "reused": len(selection.wanted) - len(wanted),
    }


def verified(emit: Emit, source: str, files: Sequence[RemoteFile], states: Mapping[str, FileState]) -> None:
    """Tell by which digests files were compared to their source, and for how many none could be."""
    proven: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for file in files:
        if file.digest:
            algorithm, _, _ = states[file.path].digest.partition(":")
            (proven if file.digest.algorithm == algorithm else unknown)[file.digest.algorithm] += 1
    bare = len(files) - proven.total() - unknown.total()
    said = [f"{count} by {algorithm}" for algorithm, count in sorted(proven.items())]
    said += [f"{count} noted by sha256, as {name} cannot be checked here" for name, count in sorted(unknown.items())]
    said += [f"{bare} noted by sha256, as the source has no digest of them"] if bare else []
    text = f"{len(files)} files verified: {', '.join(said)}"
    data = {"source": source, "by": dict(proven), "noted": bare, "unknown": dict(unknown)}
    emit(Event("verify.ok", source, text, "good", data))


class Reporter:
    """Told by the engine how far it is, several times a second; an instance is the function that it calls.

    Args:
        emit: told twice a second.
        note: told the same in words, for whoever waits for the lock.
        source: where from.
        files: how many files.
        ranges: what is fetched of them.
    """

    def __init__(
        self, emit: Emit, note: Callable[[str], None], source: str, files: int, ranges: Sequence[Range]
    ) -> None:
        self._emit = emit
        self._note = note
        self._source = source
        self._files = files
        self._total = sum(part.stop - part.start for part in ranges)
        self._begin = self._shown = time.monotonic()
        self._complained = 0.0
        self._retries = 0
        self._last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Pass it on, if it is time."""
        now, self._last = time.monotonic(), progress
        if progress.retries > self._retries and now - self._complained >= PROGRESS_EVERY:
            self._complained, self._retries = now, progress.retries
            self._complain(progress)
        if now - self._shown >= _REPORT_EVERY:
            self._shown = now
            self._tell(progress, now - self._begin)

    def end(self) -> None:
        """Tell programs what the transfer has cost, however it ended."""
        if self._total and self._last is not None:
            data = {"source": self._source, "received": self._last.received, "retries": self._last.retries}
            self._emit(Event("transfer.end", self._source, "", data=data))

    def _complain(self, progress: Progress) -> None:
        text = f"retry {progress.retries}: {progress.trouble}"
        data = {"source": self._source, "retries": progress.retries, "reason": progress.trouble}
        self._emit(Event("transfer.retry", self._source, text, "warning", data))

    def _tell(self, progress: Progress, seconds: float) -> None:
        rate, verified = progress.received / seconds, f"{progress.verified}/{self._files} verified"
        if self._total:
            left = (self._total - progress.received) / rate if rate else 0
            share = progress.received / self._total
            text = (
                f"{share:4.0%}  {human_size(progress.received)} of {human_size(self._total)}  "
                f"{human_size(rate)}/s  {left:.0f} s left  {verified}"
            )
        else:  # an earlier run has fetched it all; each note is another one, for waiters that count from the last
            text = f"all is here; {verified} in {seconds:.0f} s"
        data = {"received": progress.received, "total": self._total, "rate": round(rate), "verified": progress.verified}
        self._emit(Event(PROGRESS, self._source, text, data=data | {"retries": progress.retries}))
        self._note(text)
