"""``vllmrt config``."""

from __future__ import annotations

import typer

from vllmrt import layers
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def config() -> None:
    """Look at the settings."""


@app.command()
@command("model", "transfer", "stores", "server", "engine", "logging", "plugins")
def show(run: Run) -> None:
    """Print every setting: its value, where that came from, its variables; secrets are masked."""
    shown = run.layers.settings.shown()
    shown |= {"flox_env_cache": run.layers.settings.cache, "models_dir": run.layers.settings.store}
    facts = [
        {
            "setting": row.field,
            "value": shown[row.field],
            "origin": run.layers.origins.get(row.field, "default"),
            "variables": row.names,
        }
        for row in layers.rows()
    ]
    if run.json:
        run.print_json({"ok": True, "settings": facts})
    else:
        columns = ("setting", "value", "origin")
        show_table(run.out, columns, [[_cell(fact[column]) for column in columns] for fact in facts])


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else str(value)
