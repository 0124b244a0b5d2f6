"""What the three scripts share: which settings one reads, what it misses, how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllmrt import layers
from vllmrt.cli.reporting import Run, reporting
from vllmrt.errors import ConfigError
from vllmrt.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from vllmrt.cli.reporting import Codes
    from vllmrt.layers import Layers

HELP = frozenset({"-h", "--help"})
DEFAULTS: dict[str, Any] = {
    "host": "0.0.0.0",  # noqa: S104 - the contract's default; serving there without a key of one's own is warned about
    "model_sources": ("flox", "local", "hf-cache", "r2", "hf-hub"),
}
"""Where the scripts differ from ``vllmrt``."""


def load(reads: Collection[str], environ: Mapping[str, str], **flags: str) -> Layers:
    """Build the settings that a script reads.

    Args:
        reads: sections and fields of the settings table. A value that only another script reads is none of this one's
            business, however wrong it may be.
        environ: the environment.
        flags: as for `vllmrt.layers.load`.

    Raises:
        ConfigError: as `vllmrt.layers.load`.
    """
    rows = [row for row in layers.rows() if row.var.section not in reads and row.field not in reads]
    others = {name for row in rows for name in row.names}
    own = {name: value for name, value in environ.items() if name not in others}
    return layers.load(own, flags, DEFAULTS)


def run_script(
    body: Callable[[Run], int],
    settings: Callable[[], Layers],
    code: Codes,
    *,
    json: bool = False,
    extra: tuple[str, ...] = (),
) -> int:
    """Run a script and return its exit status.

    Args:
        body: what it does.
        settings: builds its settings.
        code: the exit status of an error.
        json: whether stdout takes one JSON object.
        extra: for `Run.extra`.
    """
    try:
        with reporting(json=json, code=code) as (emit, out):
            loaded = settings()
            for warning in loaded.warnings:
                emit(Event("settings.warning", "settings", warning, "warning"))
            return body(Run(loaded, emit, json, extra, out))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1


def require(loaded: Layers, needed: Mapping[str, str]) -> None:
    """Refuse settings that nothing has set.

    Args:
        loaded: the settings and their origins.
        needed: fields of the settings, each with when it is needed; empty for always.

    Raises:
        ConfigError: with a line for each.
    """
    table = {row.field: row.var for row in layers.rows()}
    missing = {field: table[field] for field in needed if field not in loaded.origins}
    if missing:
        lines = [f"{var.old} is not set{needed[field]}: {var.help}" for field, var in missing.items()]
        raise ConfigError("\n".join(lines), hint=f"export {' '.join(f'{var.old}=…' for var in missing.values())}")
