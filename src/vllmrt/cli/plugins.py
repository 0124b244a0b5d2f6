"""``vllmrt plugins``: what is installed, from metadata alone; no plugin is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmrt import discovery
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table
from vllmrt.errors import ConfigError

if TYPE_CHECKING:
    from vllmrt.discovery import EntryPoint

app = typer.Typer(invoke_without_command=True, add_completion=False)
KINDS = {
    discovery.SOURCES: "source",
    discovery.GPU_PROBES: "gpu-probe",
    discovery.PLUGINS: "ambient",
    discovery.MODELS: "model",
}


@app.callback()
@command()
def plugins(run: Run) -> None:
    """List the installed plugins; none is imported."""
    facts = [_facts(entry, run) for entry in discovery.entry_points() if entry.group in KINDS]
    facts.sort(key=lambda fact: (list(KINDS.values()).index(fact["kind"]), fact["name"]))
    if run.json:
        run.print_json({"ok": True, "plugins": facts})
    else:
        columns = ("kind", "name", "distribution", "version", "module", "state")
        show_table(run.out, columns, [[fact[column] for column in columns] for fact in facts])


@app.command()
@command()
def info(run: Run, name: Annotated[str, typer.Argument(help="What a user types, or a distribution.")]) -> None:
    """Tell what the metadata of one plugin says."""
    found = [
        entry for entry in discovery.entry_points() if entry.group in KINDS and name in {entry.name, entry.distribution}
    ]
    if not found:
        known = sorted({entry.name for entry in discovery.entry_points() if entry.group in KINDS})
        raise ConfigError(f"no plugin is called {name!a}; installed: {', '.join(known)}")
    facts = [_facts(entry, run) | _metadata(entry) for entry in found]
    if run.json:
        run.print_json({"ok": True, "plugins": facts})
    else:
        for fact in facts:
            show_table(run.out, ("fact", "value"), list(fact.items()))


def _facts(entry: EntryPoint, run: Run) -> dict[str, str]:
    disabled = entry.distribution in map(discovery.normalise, run.layers.settings.disable_plugins)
    return {
        "kind": KINDS[entry.group],
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.value,
        "state": "disabled" if disabled else "enabled",
    }


def _metadata(entry: EntryPoint) -> dict[str, str]:
    from importlib.metadata import metadata

    told = metadata(entry.distribution)
    facts = {"summary": told["Summary"], "licence": told["License-Expression"], "python": told["Requires-Python"]}
    requires = ", ".join(told.get_all("Requires-Dist") or [])
    return {key: str(value) for key, value in {**facts, "requires": requires}.items() if value}
