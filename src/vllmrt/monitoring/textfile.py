"""What a start has cost, for the textfile collector of Prometheus' node exporter; made from the events of the run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ExitCode, VllmrtError
from vllmrt.events import Event
from vllmrt.paths import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllmrt.events import Emit

PHASES = ("inspect", "resolve", "fetch", "publish", "reclaim", "launch")
_FETCH = ("transfer.progress", "transfer.retry", "transfer.end", "verify")
_LOOK = ("preflight", "gpu")


_Labels = tuple[tuple[str, str], ...]


class _Family(NamedTuple):
    """A metric: what is known of it, and its value for each further set of labels."""

    name: str
    help: str
    values: Mapping[_Labels, float]


class Recorder:
    """Shows events, and notes what they cost. The time before an event belongs to the phase of that event.

    Args:
        emit: shows the events.
        path: the file to write.
        labels: of every metric.
    """

    def __init__(self, emit: Emit, path: Path, labels: Mapping[str, str]) -> None:
        self._emit = emit
        self._path = path
        self._labels = labels
        self._last = time.monotonic()
        self._phase = PHASES[0]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._received = self._retries = 0
        self._source = ""

    def __call__(self, event: Event) -> None:
        """Note an event, and show it."""
        self._phase = self._phase_of(event.name)
        self._count()
        if event.name == "transfer.end":
            self._received += event.data["received"]
            self._retries += event.data["retries"]
        elif event.data.get("outcome") == "chosen":
            self._source = event.data["source"]
        self._emit(event)

    def succeed(self) -> None:
        """Write that the run went well; it may be about to become something else."""
        self.finish("ok", ExitCode.OK)

    def fail(self, error: BaseException) -> None:
        """Write how the run ends with what was raised."""
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            self.finish("interrupted" if code else "ok", code)
        elif isinstance(error, VllmrtError):
            self.finish(type(error).__name__, error.exit_code)
        else:
            system = isinstance(error, OSError)
            self.finish("OSError" if system else "bug", ExitCode.GENERAL if system else ExitCode.BUG)

    def finish(self, outcome: str, code: int) -> None:
        """Write the file. One that cannot be written is warned of: it is no reason to fail."""
        self._count()
        text = "".join(line for family in self._families(outcome, code) for line in _lines(family, self._labels))
        try:
            write_atomic(self._path, text.encode(errors="backslashreplace"), mode=0o644)
        except OSError as error:
            text = f"{self._path} cannot be written: {error.strerror}"
            self._emit(Event("metrics.file", "metrics", text, "warning", {"path": str(self._path)}))

    def _phase_of(self, name: str) -> str:
        if name == "resolve.default":  # it is said before anything is looked at
            return self._phase
        if name.startswith(_LOOK):
            return PHASES[0] if self._phase == PHASES[0] else "reclaim"
        if name.startswith(_FETCH):
            return "fetch"
        if name.startswith(("serve", "background")):
            return "launch"
        # an error, and a warning, belong to what went before
        if name == "publish":
            return "publish"
        return "resolve" if name.startswith(("resolve", "transfer", "validate")) else self._phase

    def _count(self) -> None:
        now = time.monotonic()
        self._seconds[self._phase] += now - self._last
        self._last = now

    def _families(self, outcome: str, code: int) -> Iterator[_Family]:
        none: _Labels = ()
        seconds: dict[_Labels, float] = {(("phase", name),): round(value, 6) for name, value in self._seconds.items()}
        how: _Labels = (("outcome", outcome), ("source", self._source))
        yield _Family("vllmrt_last_run_success", "Whether the last run went well.", {none: float(outcome == "ok")})
        yield _Family("vllmrt_last_run_exit_code", "Exit code of the last run.", {none: code})
        yield _Family("vllmrt_last_run_outcome", "How the last run ended, and where its model is from.", {how: 1})
        yield _Family(
            "vllmrt_last_run_end_timestamp_seconds", "When the last run ended.", {none: round(time.time(), 3)}
        )
        yield _Family("vllmrt_last_run_phase_seconds", "Time that each phase of the last run took.", seconds)
        yield _Family("vllmrt_last_run_fetched_bytes", "Bytes that the last run has fetched.", {none: self._received})
        yield _Family("vllmrt_last_run_retries", "Ranges that the last run has asked for again.", {none: self._retries})


def _lines(family: _Family, labels: Mapping[str, str]) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} gauge\n"
    for more, value in family.values.items():
        shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in [*labels.items(), *more])
        yield f"{family.name}{{{shown}}} {value:.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
