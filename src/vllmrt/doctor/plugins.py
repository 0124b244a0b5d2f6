"""The plugins, loaded one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllmrt import discovery, plugincheck
from vllmrt.doctor.page import Section
from vllmrt.errors import VllmrtError
from vllmrt.host import PluginHost

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case


def look(case: Case) -> Section:
    """Return every plugin, and how long it takes to be imported."""
    section, settings = Section([]), case.settings
    for entry, fact in discovery.listing(settings.disable_plugins):
        told: dict[str, Any] = {**fact, "ms": None, "error": None}
        if fact["state"] == "enabled" and entry.group != discovery.MODELS:
            loading = plugincheck.load(entry, settings)
            told |= {**loading._asdict(), "state": "broken" if loading.error else "loaded"}
        section.facts.append(told)
        if told["error"]:
            remedy = f"upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS={entry.distribution}"
            section.add("plugin-broken", str(told["error"]), remedy)
    _describe(section)
    host = PluginHost(settings)
    _claims(section, host)
    _missing(section, case, host)
    return section


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
