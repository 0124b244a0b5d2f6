"""Sources of models in place, each wrong in one way that one test of the conformance kit is meant for."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import vllmrt
from vllmrt.errors import SourceError
from vllmrt.types import Candidate, Skip

if TYPE_CHECKING:
    from pathlib import Path


class InPlace:
    """What is right about all of them: snapshots of a model, whose files are links into blobs beside it."""

    meant_for: str | None = None

    def __init__(self, root: Path | None, key: str) -> None:
        self.name = type(self).__name__
        self.root = root
        self.key = key
        self.probed = 0

    def probe(self, request: Any) -> Any:
        self.probed += 1
        if self.root is None:
            return Skip("no directory")
        base = self.root / request.model_id
        found = [self.offer(base / name) for name in ("best", "worse") if (base / name).is_dir()]
        return found or Skip(f"nothing at {base}")

    def offer(self, path: Path) -> Candidate:
        return Candidate(str(path), path=path, root=self.root)


class FineInPlace(InPlace):
    pass


class NameOfAnotherInPlace(InPlace):
    meant_for = "test_it_is_declared_once_and_under_its_own_name"

    def __init__(self, root: Path | None, key: str) -> None:
        super().__init__(root, key)
        self.name = "something-else"


class WorstFirst(InPlace):
    meant_for = "test_the_best_place_comes_first"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        return answer if isinstance(answer, Skip) else answer[::-1]


class SilentInPlace(InPlace):
    meant_for = "test_what_it_does_not_have_is_skipped_with_a_reason"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        return [] if isinstance(answer, Skip) and self.root else answer


class DemandingInPlace(InPlace):
    meant_for = "test_without_its_settings_it_is_skipped_with_a_reason"

    def probe(self, request: Any) -> Any:
        if self.root is None:
            raise SourceError("no directory")
        return super().probe(request)


class ChangesTheWorkingDirectory(InPlace):
    meant_for = "test_probing_changes_nothing"

    def probe(self, request: Any) -> Any:
        if self.root:
            os.chdir(self.root if self.probed % 2 else "/")
        return super().probe(request)


class ChangesItsMindInPlace(InPlace):
    meant_for = "test_probing_again_gives_the_same"

    def offer(self, path: Path) -> Candidate:
        return replace(super().offer(path), location=f"{path} (asked {self.probed} times)")


class PhonesHomeInPlace(InPlace):
    meant_for = "test_offline_it_touches_no_network"

    def probe(self, request: Any) -> Any:
        if self.root:
            with socket.socket(type=socket.SOCK_DGRAM) as telemetry, suppress(OSError):
                telemetry.sendto(b"used", ("127.0.0.1", 9))
        return super().probe(request)


class TrustsNames(InPlace):
    meant_for = "test_an_odd_name_is_no_crash"

    def probe(self, request: Any) -> Any:
        request.model_id.encode("ascii")
        return super().probe(request)


class TellsInPlace(InPlace):
    meant_for = "test_no_secret_is_told"

    def offer(self, path: Path) -> Candidate:
        return replace(super().offer(path), location=f"https://user:{self.key}@host{path}")


class ForgetsTheRoot(InPlace):
    """The links of the model lead out of what it says may be read."""

    meant_for = "test_the_model_passes_the_validators"

    def offer(self, path: Path) -> Candidate:
        return replace(super().offer(path), root=None)


BROKEN = {cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, InPlace)}
del BROKEN["InPlace"]


@vllmrt.hookimpl
def vllmrt_sources(settings: Any) -> Any:
    for cls in BROKEN.values():
        yield cls(settings.hf_home, settings.api_key)
