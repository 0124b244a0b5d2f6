"""The core's own plugin: what every model has to pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.hookspecs import hookimpl
from vllmrt.validate import validators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import Validator


@hookimpl
def vllmrt_validators(settings: Settings) -> Iterator[Validator]:
    """Offer the checks of DESIGN.md §9."""
    yield from validators(settings)
