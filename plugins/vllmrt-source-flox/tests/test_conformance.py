"""The source, held to what every source is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vllmrt.testing import SourceConformance, make_model

if TYPE_CHECKING:
    from pathlib import Path


class TestFlox(SourceConformance):
    name = "flox"

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"flox_env": tmp_path / "env"}

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        repository = tmp_path / "env" / "share" / "models" / "hub" / "models--org--name"
        model = make_model(repository / "snapshots" / ("a" * 40))
        make_model(repository / "snapshots" / ("b" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
        return model
