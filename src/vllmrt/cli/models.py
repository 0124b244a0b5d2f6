"""``vllmrt models``: what is in the store."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table
from vllmrt.errors import ConfigError, ExitCode
from vllmrt.events import Event, human_size

if TYPE_CHECKING:
    from vllmrt.resolve.gc import Item, Plan
    from vllmrt.resolve.inventory import Model, Verification
    from vllmrt.resolve.store import Store
    from vllmrt.resolve.usage import Usage

app = typer.Typer(no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A directory of the store, or org/name[@revision].")]
_YOURS = "yours"


@app.callback()
def models() -> None:
    """Look at the models in the store, prove them, remove them."""


@app.command("list")
@command("--models-dir")
def show_all(run: Run) -> None:
    """List the models in the store; what was not published by vllmrt is marked as yours."""
    from vllmrt.resolve import inventory

    store = _store(run)
    facts = [_facts(model) for model in inventory.models(store)]
    if run.json:
        run.print_json({"ok": True, "store": _text(store.root), "models": facts})
    else:
        columns = ("identity", "revision", "source", "files", "size", "directory")
        show_table(run.out, columns, [[_cell(column, fact[column]) for column in columns] for fact in facts])


@app.command()
@command("--models-dir")
def show(run: Run, name: Name) -> None:
    """Tell what is known of one model: its manifest."""
    from vllmrt.resolve import inventory

    model = inventory.find(_store(run), name)
    facts = _facts(model) | _manifest(model)
    if run.json:
        run.print_json({"ok": True, "model": facts})
        return
    files = facts.pop("manifest", {})
    show_table(run.out, ("fact", "value"), [[key, _cell(key, value)] for key, value in facts.items()])
    if files:
        columns = ("size", "digest")
        rows = [
            [_printable(path), *(_cell(column, state[column]) for column in columns)] for path, state in files.items()
        ]
        show_table(run.out, ("file", *columns), rows)


@app.command()
@command("--models-dir")
def verify(
    run: Run, name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="As of show; without it, all.")] = None
) -> None:
    """Read every byte of a model, or of all that were published, and compare the digests."""
    from vllmrt.resolve import inventory

    store = _store(run)
    chosen = [inventory.find(store, name)] if name else [model for model in inventory.models(store) if model.manifest]
    results = []
    for model in chosen:
        result = inventory.verify(model)
        if result is None:
            text, facts = "was removed while it was read", {"model": _text(model.path.name)}
            run.emit(Event("models.gone", _printable(model.path.name), text, "warning", facts))
            continue
        results.append((model, result))
        _tell_verified(run, model, result)
    _show_verified(run, results)


@app.command()
@command("--models-dir", "--dry-run")
def rm(run: Run, name: Name) -> None:
    """Remove one published model, unless a process has it open."""
    from vllmrt.resolve import inventory
    from vllmrt.resolve.usage import usage

    store = _store(run)
    model = inventory.find(store, name)
    if model.manifest is None:
        raise ConfigError(f"{model.path} was put there by its user", hint="remove it yourself")
    used = usage([model.path])
    _warn_unknown(run, used.unknown)
    _refuse_used(model, used)
    dry = run.layers.settings.dry_run
    if not dry:
        inventory.remove(store, model)
    verb = "would be removed" if dry else "removed"
    facts = {"path": _text(model.path), "bytes": model.size, "dry_run": dry}
    run.emit(
        Event("models.rm", "models", f"{verb}: {_printable(model.path)} · {human_size(model.size)}", "good", facts)
    )
    if run.json:
        run.print_json({"ok": True, **facts})


@app.command()
@command("--models-dir", "--dry-run")
def gc(
    run: Run,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Do not touch what belongs to this model; may be repeated.")
    ] = None,
    keep_staging: Annotated[
        float, typer.Option("--keep-staging", min=0, metavar="DAYS", help="How long a broken-off download is kept.")
    ] = 7.0,
) -> None:
    """Drop what no model needs: old downloads that were broken off, backups, versions that were replaced."""
    from vllmrt.resolve.gc import collect, plan

    store = _store(run)
    done = plan(store, keep=keep or (), keep_days=keep_staging)
    dry = run.layers.settings.dry_run
    if not dry:
        done = collect(store, done, keep_days=keep_staging)
    _warn_unknown(run, done.unknown)
    _show_collected(run, done, dry=dry)


def _store(run: Run) -> Store:
    from vllmrt.resolve.store import Store

    return Store(run.layers.settings.store)


def _facts(model: Model) -> dict[str, Any]:
    known = model.manifest
    return {
        "identity": known.identity if known else None,
        "revision": known.revision if known else None,
        "source": known.source if known else _YOURS,
        "files": model.files,
        "size": model.size,
        "directory": _text(model.path.name),
    }


def _manifest(model: Model) -> dict[str, Any]:
    known = model.manifest
    if known is None:
        return {"path": _text(model.path)}
    files = {path: {"size": state.size, "digest": state.digest or None} for path, state in known.files.items()}
    return {"path": _text(model.path), "location": known.location, "guards": known.guards, "manifest": files}


def _tell_verified(run: Run, model: Model, result: Verification) -> None:
    name, label = _text(model.path.name), _printable(model.path.name)
    for fault in result.faults:
        facts = {"model": name, "file": _text(fault.file), "reason": fault.reason}
        run.emit(Event("models.fault", label, f"{_printable(fault.file)}: {fault.reason}", "error", facts))
    for path in result.added:
        text = f"{_printable(path)} was not published, and may be loaded all the same"
        run.emit(Event("models.added", label, text, "warning", {"model": name, "file": _text(path)}))
    if hint := _remedy(model, result):
        run.emit(Event("hint", "hint", hint))


def _remedy(model: Model, result: Verification) -> str | None:
    if not result.faults or model.manifest is None:
        return None
    name, identity = (quote(_printable(word)) for word in (model.path.name, model.manifest.identity))
    return f"vllmrt models rm {name}; vllmrt resolve {identity}, or vllmrt up, then fetches it anew"


def _show_verified(run: Run, results: list[tuple[Model, Verification]]) -> None:
    facts = [
        {
            "directory": _text(model.path.name),
            "result": "DAMAGED" if result.faults else "whole",
            "verified": result.verified,
            "size": result.size,
            "unproven": result.unproven,
            "added": [_text(path) for path in result.added],
            "faults": [{"file": _text(fault.file), "reason": fault.reason} for fault in result.faults],
            "hint": _remedy(model, result),
        }
        for model, result in results
    ]
    bad = any(result.faults for _, result in results)
    if run.json:
        code = {"code": int(ExitCode.INTEGRITY)} if bad else {}
        run.print_json({"ok": not bad, **code, "models": facts})
    else:
        columns = ("directory", "result", "verified", "size", "unproven")
        show_table(run.out, columns, [[_cell(column, fact[column]) for column in columns] for fact in facts])
    if bad:
        raise SystemExit(ExitCode.INTEGRITY)


def _show_collected(run: Run, done: Plan, *, dry: bool) -> None:
    freed = sum(item.size for item in done.items if item.action == "drop")
    facts = [_item(item) for item in done.items]
    if run.json:
        run.print_json({"ok": True, "dry_run": dry, "freed": freed, "items": facts})
        return
    columns = ("action", "kind", "size", "path", "reason")
    show_table(run.out, columns, [[_cell(column, fact[column]) for column in columns] for fact in facts])
    verb = "would be freed" if dry else "freed"
    run.emit(Event("models.gc", "models", f"{human_size(freed)} {verb}", "good", {"freed": freed, "dry_run": dry}))


def _item(item: Item) -> dict[str, Any]:
    facts = item._asdict() | {"path": _text(item.path)}
    facts.pop("lock")
    return facts


def _refuse_used(model: Model, used: Usage) -> None:
    users = used.users.get(model.path)
    if users:
        raise ConfigError(f"{model.path} is open in {', '.join(map(str, users))}", hint="stop it first")


def _warn_unknown(run: Run, unknown: int) -> None:
    if unknown:
        text = f"{unknown} processes of other users cannot be looked into; they may have something open"
        run.emit(Event("models.unknown", "models", text, "warning", {"processes": unknown}))


def _cell(column: str, value: object) -> str:
    if column == "size" and isinstance(value, int):
        return human_size(value)
    if column == "revision" and value:
        return _printable(str(value)[:12])
    if isinstance(value, tuple):
        return "; ".join(map(_printable, value)) or "-"
    return "-" if value is None else _printable(value)


def _printable(value: object) -> str:
    """Return a text that cannot steer a terminal."""
    text = _text(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _text(value: object) -> str:
    """Return a path as JSON can hold it; bytes that are no UTF-8 as escapes."""
    return str(value).encode(errors="backslashreplace").decode()
