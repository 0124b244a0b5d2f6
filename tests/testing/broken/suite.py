"""A conformance class for every broken plugin; test_broken.py runs this file in a pytest of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import broken_classifiers
import broken_gpus
import broken_inplace
import broken_remote
import broken_validators
import pytest

from vllmrt.testing import (
    ClassifierConformance,
    GpuProbeConformance,
    RemoteSourceConformance,
    SourceConformance,
    ValidatorConformance,
    make_model,
)
from vllmrt.types import ProcessInfo, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


class Remote(RemoteSourceConformance):
    __test__ = False

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"model_url": str(tmp_path / "origin")}

    @pytest.fixture
    def put(self, tmp_path: Path) -> Callable[[str, bytes], None]:
        def store(path: str, data: bytes) -> None:
            file = tmp_path / "origin" / "org" / "name" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

        return store


class InPlace(SourceConformance):
    __test__ = False

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"hf_home": tmp_path / "origin"}

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        base = tmp_path / "origin" / "org" / "name"
        for name in ("worse", "best"):
            path = make_model(base / name)
            shutil.move(path / "config.json", base / f"{name}.config")
            (path / "config.json").symlink_to(f"../{name}.config")
        return path


class Gpus(GpuProbeConformance):
    __test__ = False

    @pytest.fixture
    def machine(self) -> dict[str, str]:
        return {"ACME_DRIVER": "1"}


class Validators(ValidatorConformance):
    __test__ = False

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = make_model(tmp_path / "model")
        (path / "LICENSE").touch()
        return path

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        return make_model(tmp_path / "broken")


class Classifiers(ClassifierConformance):
    __test__ = False
    seconds = 1.0

    @pytest.fixture
    def judged(self) -> list[tuple[ProcessInfo, Verdict | None]]:
        def process(*argv: str) -> ProcessInfo:
            return ProcessInfo(10, uid=0, start_ticks=1, exe="/bin/program", argv=argv, title="")

        return [(process("program"), None), (process("acme-supervised", "x"), Verdict.PROTECTED)]


def suites(base: type, names: Iterable[str]) -> None:
    for name in names:
        globals()[f"Test{name}"] = type(
            f"Test{name}", (base,), {"name": name, "__test__": True, "__module__": __name__}
        )


suites(Remote, [*broken_remote.BROKEN, "heavy_import", "thread_import", "noisy_import"])
suites(InPlace, broken_inplace.BROKEN)
suites(Gpus, broken_gpus.BROKEN)
suites(Validators, broken_validators.BROKEN)
suites(Classifiers, broken_classifiers.BROKEN)
