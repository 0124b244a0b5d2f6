"""The Hugging Face Hub: a revision resolved once, one listing for every size and digest, bodies in ranges.

Reference: hub-facts, "What a client asks for"; chapter "Source table", row hf-hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import vllmrt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ModelSource


@vllmrt.hookimpl
def vllmrt_sources(settings: Settings) -> Iterator[ModelSource]:
    """Offer the one source of this plugin."""
    from vllmrt_source_hf_hub.source import HfHubSource

    yield HfHubSource(settings)
