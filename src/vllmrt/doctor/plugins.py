"""The plugins, loaded one by one, each in a process of its own: one that breaks, hangs or exits costs only itself."""

from __future__ import annotations

import json
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from vllmrt import discovery
from vllmrt.doctor.page import Section
from vllmrt.errors import VllmrtError
from vllmrt.gpu import child
from vllmrt.host import PluginHost
from vllmrt.types import Skip

if TYPE_CHECKING:
    from vllmrt.discovery import EntryPoint
    from vllmrt.doctor.page import Case
    from vllmrt.settings import Settings

SECONDS = 10.0
"""That one plugin may take to be loaded; less where VLLMRT_PLUGIN_TIMEOUT is."""


def look(case: Case) -> Section:
    """Return every plugin, and how long it takes to be imported."""
    import_module("vllmrt.hookspecs")  # and pluggy: no plugin is to blame for what they take
    section, settings = Section([]), case.settings
    for entry, fact in discovery.listing(settings.disable_plugins):
        told: dict[str, Any] = {**fact, "ms": None, "error": None}
        if fact["state"] == "enabled" and entry.group != discovery.MODELS:
            told |= _load(entry, settings)
        section.facts.append(told)
        if told["error"]:
            remedy = f"upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS={entry.distribution}"
            section.add("plugin-broken", str(told["error"]), remedy)
    _describe(section)
    host = PluginHost(settings)
    _claims(section, host)
    _missing(section, case, host)
    return section


def _load(entry: EntryPoint, settings: Settings) -> dict[str, Any]:
    seconds = min(settings.plugin_timeout, SECONDS)
    # the host's own limit must not come first: a thread that hangs cannot be ended, a process can
    patient = msgspec.structs.replace(settings, plugin_timeout=2 * SECONDS)
    answer = child.run(lambda: _timed(entry, patient), seconds)
    if isinstance(answer, Skip):
        reason = answer.reason.partition(",")[0]
        return {"state": "broken", "error": f"{entry.owner}: {entry.name} was not loaded: {reason}"}
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError:
        told = {"error": f"{entry.owner}: {entry.name} was not loaded: it wrote into our answer"}
    return {**told, "state": "broken" if told.get("error") else "loaded"}


def _timed(entry: EntryPoint, settings: Settings) -> bytes:
    """Run in the child."""
    start = perf_counter()
    try:
        PluginHost(settings, [entry]).load(entry)
    except VllmrtError as error:
        return json.dumps({"error": error.message}).encode()
    return json.dumps({"ms": round((perf_counter() - start) * 1000, 1)}).encode()


def _describe(section: Section) -> None:
    facts = section.facts
    widths = [max((len(fact[name]) for fact in facts), default=0) for name in ("kind", "name")]
    for fact in facts:
        time = f"{fact['ms']:.0f} ms" if fact["ms"] is not None else ""
        state = {"loaded": time, "enabled": "not imported"}.get(fact["state"], fact["state"])
        kind, name = fact["kind"].ljust(widths[0]), fact["name"].ljust(widths[1])
        section.lines.append(f"{kind}  {name}  {fact['distribution']} {fact['version']} · {state}")
    if not facts:
        section.lines.append("none")


def _claims(section: Section, host: PluginHost) -> None:
    """Find names that two distributions claim."""
    for group in (discovery.SOURCES, discovery.GPU_PROBES):
        for name in sorted({entry.name for entry in host.installed(group)}):
            try:
                host.select(group, name)
            except VllmrtError as error:
                section.add("plugin-claimed", error.message, error.hint)


def _missing(section: Section, case: Case, host: PluginHost) -> None:
    """Find sources that the user names and that are not there, and the lack of any validator."""
    installed = {entry.name for entry in host.installed(discovery.SOURCES)}
    asked = case.settings.model_sources if "model_sources" in case.layers.origins else ()
    for name in asked:
        if name not in installed:
            message = f"the source {name!a} is to be asked, and no plugin that is enabled has that name"
            section.add(
                "source-missing",
                message,
                f"install its plugin, or leave it out; there are {', '.join(sorted(installed))}",
            )
    if not host.installed(discovery.PLUGINS):
        message = "no validator is installed, so no model can be proven whole"
        section.add("validator-missing", message, "enable vllmrt's own: VLLMRT_DISABLE_PLUGINS must not name vllmrt")
