"""Imports a library that a run may never need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # noqa: F401, TID253 - the fault

import vllmrt
from vllmrt.testing import FakeSource


@vllmrt.hookimpl
def vllmrt_sources(settings: Any) -> Any:
    yield FakeSource(Path(settings.model_url) if settings.model_url else None, name="heavy_import")
