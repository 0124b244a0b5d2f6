"""Programs of Debian that tests start; scripts/test-tools gets them."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import which

import pytest

FOLDER = Path(__file__).parents[1] / ".venv-tools" / "bin"


def tool(name: str) -> str:
    """Return the path of a program; the test is skipped where there is none."""
    found = which(name, path=f"{os.environ.get('PATH', os.defpath)}:{FOLDER}")
    return found or pytest.skip(f"no {name}: make test-tools")
