"""Classifiers, each wrong in one way that one test of the conformance kit is meant for."""

from __future__ import annotations

import time
from typing import Any

import vllmrt
from vllmrt.types import ProcessInfo, Verdict


class Broken:
    """What is right about all of them: what a supervisor of ours started is protected."""

    meant_for: str | None = None

    @vllmrt.hookimpl
    def vllmrt_classify_process(self, process: ProcessInfo) -> Any:
        return self.judge(process)

    def judge(self, process: ProcessInfo) -> Any:
        return Verdict.PROTECTED if process.argv[:1] == ("acme-supervised",) else None


class FineClassifier(Broken):
    pass


class Misspelt:
    meant_for = "test_it_is_declared_once_and_under_its_own_name"

    @vllmrt.hookimpl
    def vllmrt_classify_processes(self, process: ProcessInfo) -> Any:
        return process


class NoVerdict(Broken):
    meant_for = "test_its_verdicts"

    def judge(self, process: ProcessInfo) -> Any:
        return super().judge(process) and None


class Tires(Broken):
    """After four answers it says nothing any more."""

    meant_for = "test_asking_again_gives_the_same"
    asked = 0

    def judge(self, process: ProcessInfo) -> Any:
        self.asked += 1
        return super().judge(process) if self.asked <= 4 else None


class LooksForTheWord(Broken):
    meant_for = "test_what_only_mentions_vllm_is_not_vllm"

    def judge(self, process: ProcessInfo) -> Any:
        return super().judge(process) or (Verdict.VLLM if "vllm" in process.argv else None)


class NeedsAnExecutable(Broken):
    meant_for = "test_whatever_a_process_looks_like_it_does_not_break"

    def judge(self, process: ProcessInfo) -> Any:
        return Verdict.PROTECTED if process.exe.endswith("acme") else super().judge(process)  # type: ignore[union-attr]


class NeedsText(Broken):
    meant_for = "test_whatever_a_process_looks_like_it_does_not_break"

    def judge(self, process: ProcessInfo) -> Any:
        return Verdict.PROTECTED if b"--acme" in " ".join(process.argv).encode() else super().judge(process)


class Dawdles(Broken):
    meant_for = "test_it_is_quick"

    def judge(self, process: ProcessInfo) -> Any:
        time.sleep(0.02)
        return super().judge(process)


BROKEN = {cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and hasattr(cls, "meant_for")}
del BROKEN["Broken"]
plugins = type("plugins", (), {name: cls() for name, cls in BROKEN.items()})
