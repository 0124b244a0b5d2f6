"""All that a source of models on a mount has to be tested for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllmrt.testing import SourceConformance, make_model

if TYPE_CHECKING:
    from pathlib import Path


class TestConformance(SourceConformance):
    name = "acme-share"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return make_model(tmp_path / "share" / "org" / "name")
