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


@app.callback()
@command()
def plugins(run: Run) -> None:
    """List the installed plugins; none is imported."""
    facts = [fact for _, fact in discovery.listing(run.layers.settings.disable_plugins)]
    if run.json:
        run.print_json({"ok": True, "plugins": facts})
    else:
        columns = ("kind", "name", "distribution", "version", "module", "state")
        show_table(run.out, columns, [[fact[column] for column in columns] for fact in facts])


@app.command()
@command()
def info(run: Run, name: Annotated[str, typer.Argument(help="What a user types, or a distribution.")]) -> None:
    """Tell what the metadata of one plugin says."""
    listed = discovery.listing(run.layers.settings.disable_plugins)
    found = [(entry, fact) for entry, fact in listed if name in {entry.name, entry.distribution}]
    if not found:
        known = sorted({entry.name for entry, _ in listed})
        raise ConfigError(f"no plugin is called {name!a}; installed: {', '.join(known)}")
    facts = [fact | _metadata(entry) for entry, fact in found]
    if run.json:
        run.print_json({"ok": True, "plugins": facts})
    else:
        for fact in facts:
            show_table(run.out, ("fact", "value"), list(fact.items()))


def _metadata(entry: EntryPoint) -> dict[str, str]:
    from importlib.metadata import metadata

    told = metadata(entry.distribution)
    facts = {"summary": told["Summary"], "licence": told["License-Expression"], "python": told["Requires-Python"]}
    requires = ", ".join(told.get_all("Requires-Dist") or [])
    return {key: str(value) for key, value in {**facts, "requires": requires}.items() if value}
