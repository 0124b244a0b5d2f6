"""From the settings table to a command's options."""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmrt import layers
from vllmrt.cli.reporting import Run, asks_for_json, reporting
from vllmrt.errors import UsageError
from vllmrt.events import Event
from vllmrt.identity import parse_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.layers import Row

__all__ = ["Run", "command"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="text, or json for one event per line.")]
Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="org/name or org/name@revision; without it, vllmrt/tiny.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of a bug.")]


def command(
    *wanted: str, takes_extra: bool = False, json_setting: str | None = None, tolerant: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function ``f(run, …)`` the flags of some rows of the settings table, and the options of every command.

    Args:
        wanted: sections of `vllmrt.settings.Var`, or single flags; ``model`` adds the MODEL argument.
        takes_extra: whether arguments may follow ``--``.
        json_setting: the field that asks for JSON as ``--json`` does.
        tolerant: whether it looks at settings that cannot be used, and at warnings, itself.
    """
    rows = [row for row in layers.rows() if row.var.flag and {row.var.section, row.var.flag} & set(wanted)]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(ctx: typer.Context, **given: Any) -> None:
            if ctx.invoked_subcommand:
                return
            common = {name: given.pop(name) for name in ("json", "log_format", "verbose")}
            flags: dict[str, str | None] = {
                row.field: _text(value) for row in rows if (value := given.pop(row.field)) is not None
            }
            common["json"] |= asks_for_json(json_setting)
            with reporting(**common) as (emit, out):
                _check_usage(ctx, common["log_format"], takes_extra=takes_extra)
                flags.update(_model_flags(given.pop("model", None), flags.get("model_revision")))
                loaded = (layers.read if tolerant else layers.load)(os.environ, flags)
                for warning in () if tolerant else loaded.warnings:
                    emit(Event("settings.warning", "settings", warning, "warning"))
                json = common["json"] or bool(json_setting and getattr(loaded.settings, json_setting))
                function(Run(loaded, emit, json, _extra(ctx), out, common["log_format"]), **given)

        _sign(wrapper, function, rows, {"model": Model} if "model" in wanted else {})
        return wrapper

    return decorate


def _check_usage(ctx: typer.Context, log_format: str | None, *, takes_extra: bool) -> None:
    if log_format not in {None, "text", "json"}:
        raise UsageError(f"--log-format is text or json, not {log_format!a}")
    if ctx.obj is not None and not takes_extra:
        raise UsageError(f"vllmrt {ctx.info_name} passes nothing on after --")


def _extra(ctx: typer.Context) -> tuple[str, ...]:
    dashes = ("--",) if ctx.args and ctx.obj is not None else ()
    return (*ctx.args, *dashes, *(ctx.obj or ()))


def _sign(
    wrapper: Callable[..., None], function: Callable[..., None], rows: list[Row], leading: dict[str, Any]
) -> None:
    """Let the wrapper look to typer as if it had been written with all its options."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [
        _parameter("ctx", typer.Context, inspect.Parameter.empty),
        *(_parameter(name, annotation, None) for name, annotation in leading.items()),
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own if parameter.name != "run"),
        *(_parameter(row.field, _option(row), None) for row in rows),
        _parameter("json", Json, default=False),
        _parameter("log_format", LogFormat, None),
        _parameter("verbose", Verbose, default=False),
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # type: ignore[attr-defined]


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(row: Row) -> Any:
    flag = row.var.flag or ""
    default = "" if row.default in (None, ()) else f"; default {_text(row.default)}"
    text = f"{row.var.help} ({row.names[-1]}{default})."
    panel = f"Settings: {row.var.section}"
    if row.kind is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=panel)]
    metavar = {int: "N", float: "N"}.get(row.kind, "PATH" if row.kind is Path else "TEXT")
    return Annotated[str | None, typer.Option(flag, help=text, metavar=metavar, rich_help_panel=panel)]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _model_flags(model: str | None, revision: str | None) -> dict[str, str | None]:
    """Turn MODEL into settings; it replaces whatever the environment says of the model.

    A revision stays in the id, where one that is given besides is noticed.
    """
    if model is None:
        return {}
    if "/" not in model:
        return {"model": model, "model_id": None, "model_revision": revision}
    name = parse_model(model)[0].partition("/")[2]
    return {"model_id": model, "model": name, "model_revision": revision}
