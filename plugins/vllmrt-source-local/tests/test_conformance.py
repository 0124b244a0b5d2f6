"""The source, held to what every source is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllmrt.identity import identity_hash
from vllmrt.testing import SourceConformance, make_model

if TYPE_CHECKING:
    from pathlib import Path


class TestLocal(SourceConformance):
    name = "local"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        make_model(tmp_path / "store" / f"name.{identity_hash('org/name')}")
        return make_model(tmp_path / "store" / "name")
