"""Starts a thread when it is imported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import vllmrt
from vllmrt.testing import FakeSource

threading.Thread(target=threading.Event().wait, daemon=True).start()


@vllmrt.hookimpl
def vllmrt_sources(settings: Any) -> Any:
    yield FakeSource(Path(settings.model_url) if settings.model_url else None, name="thread_import")
