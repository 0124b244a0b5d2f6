"""The source, held to what every source is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllmrt import discovery
from vllmrt.testing import SourceConformance, fake_dist, make_model

if TYPE_CHECKING:
    from pathlib import Path


class TestPackage(SourceConformance):
    name = "package"

    @pytest.fixture
    def model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        site = tmp_path / "site"
        fake_dist(site, "acme-models", "1.2", {discovery.MODELS: {"org/name": "acme_conformance"}})
        monkeypatch.syspath_prepend(site)
        return make_model(site / "acme_conformance")
