"""``vllmrt doctor``: one page with everything that a ticket needs. Nothing is written, stopped or asked of a network.

Each section is looked at in a child process with a time limit, so that none can ruin the page: a plugin that exits, a
file system that does not answer.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from vllmrt.doctor import engine, environment, gpus, machine, page, plugins, processes, store, versions
from vllmrt.errors import VllmrtError
from vllmrt.events import to_json
from vllmrt.gpu import child
from vllmrt.masking import Masker
from vllmrt.serve.engine import HELP_TIMEOUT
from vllmrt.types import Skip

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.doctor.page import Case, Page, Section

SECONDS = 30.0
_LONGER = {"engine": HELP_TIMEOUT + 10}
_BROKEN = "the rest of the page still holds; 'docs/doctor.md' says what this section looks at"
_LOOKS = {
    "versions": versions.look,
    "engine": engine.look,
    "environment": environment.look,
    "store": store.look,
    "machine": machine.look,
    "port": processes.look_at_port,
    "orphans": processes.look_at_orphans,
}


def examine(case: Case) -> Page:
    """Look at everything.

    Args:
        case: the settings as `vllmrt.layers.read` gives them, and the environment.

    Returns:
        The page, without secrets.
    """
    found = {name: _apart(name, partial(look, case)) for name, look in _LOOKS.items()}
    build = (found["engine"].facts or {}).get("build")
    # these two start children of their own, one for each plugin
    found["gpus"] = _safely("gpus", partial(gpus.look, case, build))
    found["plugins"] = _safely("plugins", partial(plugins.look, case))
    masker = Masker(case.environ, case.settings)
    return page.Page({name: _masked(section, masker) for name, section in found.items()})


def _masked(section: Section, masker: Masker) -> Section:
    return msgspec.convert(masker.values(msgspec.to_builtins(section)), page.Section)


def _apart(name: str, look: Callable[[], Section]) -> Section:
    """Look in a child process; whatever happens there, there is a section."""
    seconds = _LONGER.get(name, SECONDS)
    answer = child.run(lambda: to_json(msgspec.to_builtins(_safely(name, look), enc_hook=str)).encode(), seconds)
    if isinstance(answer, Skip):
        return _failed(name, answer.reason.partition(",")[0], _BROKEN)
    return msgspec.convert(json.loads(answer), page.Section)


def _safely(name: str, look: Callable[[], Section]) -> Section:
    try:
        return look()
    except VllmrtError as error:
        return _failed(name, error.message, error.hint)
    except PermissionError as error:
        return _failed(name, f"{error.filename}: {error.strerror}", f"let uid {os.geteuid()} look there")
    except OSError as error:
        return _failed(name, f"{error.filename}: {error.strerror}" if error.filename else str(error), _BROKEN)
    except Exception as error:  # noqa: BLE001 - the page is most needed where something is badly wrong
        return _failed(name, f"{type(error).__name__}: {error}", "please report it as a bug of vllmrt")


def _failed(name: str, reason: str, remedy: str | None) -> Section:
    section = page.Section(lines=["could not be looked at"])
    section.add("not-looked-at", f"{name} could not be looked at: {reason}", remedy)
    return section
