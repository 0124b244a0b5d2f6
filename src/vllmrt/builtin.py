"""The core's own plugin: what every model has to pass, and which processes are vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import ProcessInfo, Validator, Verdict


@hookimpl
def vllmrt_validators(settings: Settings) -> Iterator[Validator]:
    """Offer the checks of DESIGN.md §9."""
    from vllmrt.validate import validators

    yield from validators(settings)


@hookimpl
def vllmrt_classify_process(process: ProcessInfo, settings: Settings) -> Verdict | None:
    """Know vLLM by its command line and its titles (DESIGN.md §10)."""
    from vllmrt.preflight.classify import classify

    return classify(process, settings.process_signatures, settings.process_name_prefix)
