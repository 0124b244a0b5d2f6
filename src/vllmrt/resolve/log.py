"""The log of a resolve (VLLM_KEEP_LOGS): its events, one JSON object a line, in a file beside the env file."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError, VllmrtError
from vllmrt.events import PROGRESS, Event, as_json
from vllmrt.paths import write_atomic
from vllmrt.resolve import envfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.events import Emit
    from vllmrt.masking import Masker
    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest


def path_for(settings: Settings, request: ModelRequest) -> Path:
    """Return where the log of a model is."""
    return Path(f"{envfile.path_for(settings, request)}.log")


@contextmanager
def kept(settings: Settings, request: ModelRequest, emit: Emit) -> Iterator[Emit]:
    """Note what is said in the block, and keep it: always when it fails, else where `Settings.keep_logs` says so.

    The value is what to say it to. A dry run keeps nothing; a log that cannot be written is no reason to fail.
    """
    said: list[tuple[float, Event]] = []

    def note(event: Event) -> None:
        emit(event)
        if event.name != PROGRESS:
            said.append((time.time(), event))

    try:
        yield note
    except BaseException as error:
        said.append((time.time(), _ending(error)))
        _keep(settings, request, said, emit)
        raise
    if settings.keep_logs:
        _keep(settings, request, said, emit)


def _ending(error: BaseException) -> Event:
    facts = {"class": type(error).__name__} | ({"code": int(error.exit_code)} if isinstance(error, VllmrtError) else {})
    return Event("error", "error", str(error), "error", facts)


def _masked(event: Event, masker: Masker) -> Event:
    return event._replace(text=masker.text(event.text), data=masker.values(event.data))


def _keep(settings: Settings, request: ModelRequest, said: list[tuple[float, Event]], emit: Emit) -> None:
    if settings.dry_run:
        return
    from vllmrt.masking import Masker

    masker = Masker({}, settings)
    try:
        path = path_for(settings, request)
        write_atomic(path, "".join(f"{as_json(_masked(event, masker), at)}\n" for at, event in said).encode())
    except (OSError, ConfigError) as error:
        emit(Event("resolve.log", "log", f"it cannot be kept: {error}", "warning"))
    else:
        emit(Event("resolve.log", "log", str(path), data={"path": str(path)}))
