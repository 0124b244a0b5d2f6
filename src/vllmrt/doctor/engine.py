"""The vLLM that would be started, and its config."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllmrt.doctor.page import Section
from vllmrt.errors import VllmrtError
from vllmrt.serve import config, known
from vllmrt.serve.engine import engine_build, engine_flags, engine_version, find_engine, interpreter
from vllmrt.serve.environ import child_environment

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case

_BROKEN = "its virtual environment was moved or removed: install vLLM again, or set VLLMRT_VLLM"


def look(case: Case) -> Section:
    """Return where vLLM is, which one, and whether it takes its config. It is started to list its flags at most."""
    section = Section({"found": False, "path": None, "version": None, "build": None, "config": None})
    engine = None
    try:
        engine = find_engine(case.settings, case.environ)
    except VllmrtError as error:
        section.lines.append("none")
        section.add("engine-missing", error.message, error.hint)
    else:
        _describe(section, engine)
    try:
        _config(section, case, engine)
    except VllmrtError as error:
        section.add("config", error.message, error.hint)
    return section


def _describe(section: Section, engine: Path) -> None:
    version, build = engine_version(engine), engine_build(engine)
    section.facts |= {"found": True, "path": str(engine), "version": version, "build": build}
    kind = {"cpu": "for CPUs", "cuda": "for CUDA", None: "for what is not known"}.get(build, f"for {build}")
    section.lines.append(f"{engine} · vLLM {version or '(version not known)'}, built {kind}")
    script = interpreter(engine)
    with suppress(PermissionError):
        if script is not None and not Path(script).exists():
            message = f"{engine} cannot be executed: its interpreter {script} does not exist"
            section.add("engine-broken", message, _BROKEN)


def _config(section: Section, case: Case, engine: Path | None) -> None:
    path = config.ensure_config(case.settings, dry_run=True)
    facts: dict[str, Any] = {"path": str(path), "exists": path.exists(), "keys": [], "checked": False}
    section.facts["config"] = facts
    if not facts["exists"]:
        section.lines.append(f"config {path} · not there yet, the first start writes it")
        facts |= {"keys": config.default_keys(), "checked": True}
        return
    facts["keys"] = keys = config.config_keys(path)
    section.notes += known.overridden(keys, where=str(path))
    facts["checked"] = not known.needs_flags(keys, ()) or _accepted(section, case, engine, path)
    state = "checked" if facts["checked"] else "not checked: the flags of this vLLM are not known"
    section.lines.append(f"config {path} · keys {', '.join(keys) or 'none'} · {state}")


def _accepted(section: Section, case: Case, engine: Path | None, path: Path) -> bool:
    """Compare the keys with the engine's flags; return whether those are known."""
    if engine is None:
        return False
    environ, cache = child_environment(case.environ, case.settings), case.settings.cache
    flags = engine_flags(engine, cache, environ, dry_run=True) or engine_flags(engine, cache, environ, keep=False)
    if flags is None:
        return False
    try:
        known.check_keys(section.facts["config"]["keys"], flags, where=str(path))
    except VllmrtError as error:
        section.add("config-key", error.message, error.hint)
    return True
