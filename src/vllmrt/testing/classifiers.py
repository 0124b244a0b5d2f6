"""What every process classifier has to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import pytest

from vllmrt import discovery
from vllmrt.host import PluginHost
from vllmrt.testing.conformance import Conformance
from vllmrt.types import ProcessInfo, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.discovery import EntryPoint
    from vllmrt.settings import Settings

    Judged = Sequence[tuple[ProcessInfo, Verdict | None]]


def _process(*argv: str, title: str = "", exe: str | None = "/usr/bin/program", depth: int = 0) -> ProcessInfo:
    parents = tuple(
        ProcessInfo(number, uid=0, start_ticks=1, exe="/bin/sh", argv=("sh",), title="") for number in range(depth)
    )
    return ProcessInfo(4711, uid=1000, start_ticks=99, exe=exe, argv=argv, title=title, ancestors=parents)


MENTIONS = (
    _process("vim", "vllm", "serve"),
    _process("sh", "-c", "exec vllm serve model"),
    _process("timeout", "60", "vllm", "serve", "model"),
    _process("tmux", "new-session", "vllm", "serve"),
    _process("grep", "VLLM::EngineCore", "log"),
    _process("nginx: master process vllm serve", title="nginx: master process vllm serve"),
    _process("postgres"),
)
"""Processes whose command lines have the words, and that nobody may stop for them."""
HOSTILE = (
    _process(exe=None),
    _process(""),
    _process("\udcff\udcfe", "\x1b[31m\n"),
    _process("x" * 2_000_000),
    _process(*["--flag"] * 50_000),
    _process(title="\x00" * 100),
    _process("sleep", depth=1000),
)
"""Processes as they may look to whoever reads /proc: all of it is under their control."""


class ClassifierConformance(Conformance):
    """For a process classifier.

    A suite overrides the fixture `judged`, and some `options`.

    Attributes:
        seconds: that it may take for all that is asked of it in a test.
    """

    group = discovery.PLUGINS
    seconds: ClassVar[float] = 5.0

    @pytest.fixture
    def judged(self) -> Judged:
        """Return processes with the verdict that is expected of each; at least one is VLLM or PROTECTED."""
        raise NotImplementedError(f"{type(self).__name__} has to override the fixture 'judged'")

    @pytest.fixture
    def alone(self, settings: Settings, entry: EntryPoint) -> PluginHost:
        """Return a host that knows the plugin under test and no other."""
        return PluginHost(settings, [entry])

    def test_its_verdicts(self, alone: PluginHost, judged: Judged) -> None:
        """Every process of the suite is judged as the suite says."""
        assert any(verdict is not None for _, verdict in judged), "a suite without a verdict proves nothing"
        assert alone.verdicts([process for process, _ in judged]) == [verdict for _, verdict in judged]

    def test_asking_again_gives_the_same(self, alone: PluginHost, judged: Judged) -> None:
        """The same process has the same verdict, alone or among others."""
        processes = [process for process, _ in judged]
        assert alone.verdicts(processes) == [alone.verdicts([process])[0] for process in processes]

    def test_what_only_mentions_vllm_is_not_vllm(self, alone: PluginHost) -> None:
        """An editor, a shell or a database is never said to be vLLM: it would be stopped."""
        verdicts = zip(MENTIONS, alone.verdicts(MENTIONS), strict=True)
        assert [process.argv for process, verdict in verdicts if verdict is Verdict.VLLM] == []

    def test_whatever_a_process_looks_like_it_does_not_break(self, alone: PluginHost) -> None:
        """Hostile processes get a verdict or none, no exception: that would keep every start from its port."""
        assert len(alone.verdicts(HOSTILE)) == len(HOSTILE)

    def test_it_is_quick(self, alone: PluginHost, judged: Judged) -> None:
        """A hundred processes are judged in `seconds`: it is asked at every start."""
        processes = [process for process, _ in judged]
        start = time.monotonic()
        alone.verdicts([*processes, *MENTIONS] * (100 // (len(processes) + len(MENTIONS)) + 1))
        assert time.monotonic() - start < self.seconds
