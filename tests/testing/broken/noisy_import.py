"""Prints when it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vllmrt
from vllmrt.testing import FakeSource

print("welcome to noisy")


@vllmrt.hookimpl
def vllmrt_sources(settings: Any) -> Any:
    yield FakeSource(Path(settings.model_url) if settings.model_url else None, name="noisy_import")
