"""The source, held to what every source is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from modelkit import move_to_hub_cache

from vllmrt.testing import SourceConformance, make_model

if TYPE_CHECKING:
    from pathlib import Path


class TestHfCache(SourceConformance):
    name = "hf-cache"

    @pytest.fixture(autouse=True)
    def _nobodys_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        by_default = tmp_path / "home" / ".cache" / "huggingface" / "hub"
        for hub in (by_default, tmp_path / "store" / "hub"):
            snapshot, _ = move_to_hub_cache(make_model(tmp_path / "download"), hub)
        return snapshot
