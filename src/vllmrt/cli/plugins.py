"""``vllmrt plugins``: what is installed, whether it works, and the beginning of a new one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vllmrt
from vllmrt import discovery, scaffold
from vllmrt.boundary import disable_hint
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table
from vllmrt.errors import ConfigError, ExitCode
from vllmrt.events import Event

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
    facts = [fact | _metadata(entry) for entry, fact in _named(run, name)]
    if run.json:
        run.print_json({"ok": True, "plugins": facts})
    else:
        for fact in facts:
            show_table(run.out, ("fact", "value"), list(fact.items()))


@app.command()
@command("model_sources", "stores", "plugins")
def check(
    run: Run, name: Annotated[str | None, typer.Argument(help="What a user types, or a distribution; all.")] = None
) -> None:
    """Load the installed plugins and ask them what costs nothing, each in a process of its own.

    import: it can be loaded, and offers what its entry point says. contract: it answers what the contract allows, and
    asks no network where it may not. speed: loading it takes no more than half a second. Exit code 1: one failed.
    """
    named = _named(run, name)
    facts = [_checked(run, entry, fact) for entry, fact in named]
    failed = [(entry, fact) for (entry, _), fact in zip(named, facts, strict=True) if any(fact["checks"].values())]
    if run.json:
        run.print_json({**({"ok": False, "code": ExitCode.GENERAL} if failed else {"ok": True}), "plugins": facts})
    else:
        columns = ("kind", "name", "distribution", "version", *CHECKS)
        show_table(run.out, columns, [[*(fact[column] for column in columns[:4]), *_cells(fact)] for fact in facts])
    for entry, fact in failed:
        for fault in filter(None, fact["checks"].values()):
            run.emit(Event("plugins.fault", "fault", fault, "error"))
        run.emit(Event("hint", "hint", disable_hint(entry)))
    if failed:
        raise SystemExit(ExitCode.GENERAL)


@app.command()
@command()
def new(
    run: Run,
    name: Annotated[str, typer.Argument(help="Of the distribution and of the plugin, such as acme-share.")],
    kind: Annotated[scaffold.Kind, typer.Option("--kind", help="What the plugin is to be.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="PATH", help="Where to write it; ./NAME unless it is given.")
    ] = None,
) -> None:
    """Write the package of a new plugin, with its conformance suite, its linters and a workflow for CI.

    It works and passes its tests as it is written. Nothing is overwritten.
    """
    target = directory or Path(name)
    files = scaffold.write(name, kind, target, vllmrt.__version__)
    commands = [
        f"cd {shlex.quote(str(target))}",
        "python3 -m venv .venv",
        ".venv/bin/pip install -e '.[dev]'",
        ".venv/bin/pytest",
        f".venv/bin/vllmrt plugins check {name}",
    ]
    if run.json:
        run.print_json({"ok": True, "directory": target, "files": files, "next": commands})
        return
    run.emit(Event("plugins.written", "written", f"{len(files)} files in {target}; next:", "good"))
    for line in commands:
        run.print(line)


CHECKS = ("import", "contract", "speed")


def _named(run: Run, name: str | None) -> list[tuple[EntryPoint, dict[str, str]]]:
    """Return the plugins that are called so, all for None; raise ConfigError where there is none."""
    listed = discovery.listing(run.layers.settings.disable_plugins)
    found = [(entry, fact) for entry, fact in listed if name in {None, entry.name, entry.distribution}]
    if not found:
        known = sorted({entry.name for entry, _ in listed})
        raise ConfigError(f"no plugin is called {name!a}; installed: {', '.join(known)}")
    return found


def _checked(run: Run, entry: EntryPoint, fact: dict[str, str]) -> dict[str, Any]:
    from vllmrt import plugincheck

    if entry.group == discovery.MODELS or fact["state"] == "disabled":
        return {**fact, "ms": None, "checks": {}}
    settings = run.layers.settings
    found = plugincheck.check(entry, settings)
    faults = (found.importing, found.contract or plugincheck.claim(entry, settings), found.speed)
    return {**fact, "ms": found.ms, "checks": dict(zip(CHECKS, faults, strict=True))}


def _cells(fact: dict[str, Any]) -> list[str]:
    """Return how each check ended: a check that comes behind one that failed was not made."""
    checks = fact["checks"]
    if not checks:
        return ["-" if fact["state"] == "enabled" else "disabled", "-", "-"]
    if checks["import"]:
        return ["failed", "-", "-"]
    return ["ok", "failed" if checks["contract"] else "ok", f"{fact['ms']:.0f} ms"]


def _metadata(entry: EntryPoint) -> dict[str, str]:
    from importlib.metadata import metadata

    told = metadata(entry.distribution)
    facts = {"summary": told["Summary"], "licence": told["License-Expression"], "python": told["Requires-Python"]}
    requires = ", ".join(told.get_all("Requires-Dist") or [])
    return {key: str(value) for key, value in {**facts, "requires": requires}.items() if value}
