"""The conformance classes, against the kit's own stand-ins: what is right passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vllmrt.testing import RemoteSourceConformance, SourceConformance, fake_dist, make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODULE = """\
from pathlib import Path
import vllmrt
from vllmrt.testing import FakeSource

@vllmrt.hookimpl
def vllmrt_sources(settings):
    yield FakeSource(Path(settings.model_url) if settings.model_url else None)
"""


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    fake_dist(site, "vllmrt-fake", "1.0", {"vllmrt.sources": {"fake": "fake_plugin"}}, {"fake_plugin": MODULE})
    monkeypatch.syspath_prepend(str(site))


class TestFakeSource(RemoteSourceConformance):
    name = "fake"

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


class TestLocal(SourceConformance):
    name = "local"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return make_model(tmp_path / "store" / "name")
