"""A long wire: round trips of 50 ms, and every connection as fast as a store lets it be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import netspace, servers, tools
from bench.measure import Contender, take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.setting import Setting

DELAY = 25.0
"""Milliseconds each way."""
CONNECTIONS = ((8, 20), (2, 100))
"""How many, and MB/s of each: together less than two cores carry, who have to play the wire too."""
FILLED = 0.8
"""From start to end, the interpreter, the listing and the end on disk too."""
FILES = 4
PORT = 8080


def measure(setting: Setting) -> list[Table]:
    """Fetch the large model over wires with connections of different rates."""
    with netspace.wire(DELAY) as wire:
        return [_table(setting, wire, *connections) for connections in CONNECTIONS]


def _table(setting: Setting, wire: netspace.Wire, count: int, rate: int) -> Table:
    _, size = setting.large()
    endpoint = f"http://{netspace.SERVER}:{PORT + rate}"
    environ = tools.environ(setting.scratch, VLLMRT_CONNECTIONS=str(count), **tools.bucket(endpoint))
    data = setting.scratch / "data"
    with servers.listing_server(data, netspace.SERVER, PORT + rate, pace=rate * 10**6, inside=wire.server):
        rows = take_turns(list(_contenders(setting, wire, environ, count)), min(3, setting.runs), setting.out)
    full = rate * 10**6 * count
    speed = size / rows[0].median("wall") if rows[0].runs else 0
    note = (
        f"Wire: {wire.by}, {2 * DELAY:.0f} ms there and back; the server's kernel paces each connection to {rate} MB/s"
        f" (`SO_MAX_PACING_RATE`). All tools have {count} connections: {full / 1e6:.0f} MB/s at most, of"
        f" which vllmrt, from its start to its end, fills {speed / full:.0%}."
    )
    limit = size / full / FILLED
    budgets = [
        Budget(f"at least {FILLED:.0%} of what the connections allow: {limit:.1f} s", limit * 1000),
        *(Budget(f"beside `{row.contender.name}`", None, row.contender.name) for row in rows[1:]),
    ]
    return Table(f"50 ms, {count} connections of {rate} MB/s, {size / 1e9:.1f} GB", note, rows, size, budgets)


def _contenders(setting: Setting, wire: netspace.Wire, environ: dict[str, str], count: int) -> Iterator[Contender]:
    files = min(FILES, count)
    at_once, each = str(files), str(count // files)
    streams = ["--transfers", at_once, "--multi-thread-streams", each, "--multi-thread-cutoff", "1M"]
    contenders = [
        tools.ours("large", setting.out, environ, "r2"),
        tools.s5cmd("large", setting.out, environ, "--numworkers", at_once, "--concurrency", each),
        tools.rclone("large", setting.out, environ, *streams),
    ]
    for one in contenders:
        yield one._replace(command=[*wire.client, *one.command] if one.command else None)
