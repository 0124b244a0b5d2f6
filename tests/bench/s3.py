"""A model from S3, over HTTP and HTTPS: vllmrt beside aws, s5cmd and rclone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import servers, tools
from bench.measure import take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.measure import Contender
    from bench.setting import Setting

NOTE = "nginx serves the objects; HEAD tells their CRC64NVME, as S3 does of what today's clients upload."
SUMMED = "aws s3 sync + sha256sum -c"
BUDGETS = (
    Budget("at least 5 times as fast as `aws s3 sync` and `sha256sum -c`", 5.0, SUMMED),
    Budget("not behind `s5cmd`, which verifies nothing", 1.0, "s5cmd cp"),
    Budget("beside `s5cmd` and `sha256sum -c`", None, "s5cmd cp + sha256sum -c"),
    Budget("beside `rclone`, which verifies nothing", None, "rclone copy"),
)


def measure(setting: Setting) -> list[Table]:
    """Fetch the large model over both."""
    model, size = setting.large()
    sums = tools.sums(model, setting.scratch / "large.sha256")
    tables = []
    with servers.store(setting.scratch) as store:
        for scheme, endpoint in (("HTTP", store.http), ("HTTPS", store.https)):
            environ = tools.trusting(tools.environ(setting.scratch, **tools.bucket(endpoint)), store.certificate)
            rows = take_turns(contenders("large", setting.out, environ, sums), setting.runs, setting.out)
            tables.append(Table(f"S3 over {scheme}, {size / 1e9:.1f} GB in 4 shards", NOTE, rows, size, BUDGETS))
    return [*tables, _like_for_like(setting, sums, size)]


def _like_for_like(setting: Setting, sums: Path, size: int) -> Table:
    """Fetch from a store that tells SHA-256: then all compare the same digest."""
    with servers.store(setting.scratch, told="sha256") as store:
        environ = tools.environ(setting.scratch, **tools.bucket(store.http))
        all_of_them = contenders("large", setting.out, environ, sums, "sha256")
        summing = [one for one in all_of_them if one.verified]
        rows = take_turns(summing, setting.runs, setting.out)
    note = "HEAD tells the SHA-256 of the objects, as S3 does of what was uploaded with one: all compute the same."
    return Table(f"S3 over HTTP, {size / 1e9:.1f} GB in 4 shards, SHA-256", note, rows, size, BUDGETS[::2])


def contenders(
    model: str, out: Path, environ: Mapping[str, str], sums: Path, told: str = "crc64nvme"
) -> list[Contender]:
    """Return all that read S3; those that verify nothing also with a check behind them; `told` is what we are told."""
    aws, s5cmd, rclone = (tool(model, out, environ) for tool in (tools.aws, tools.s5cmd, tools.rclone))
    return [
        tools.ours(model, out, environ, "r2", told),
        tools.then_summed(aws, out, sums),
        s5cmd,
        tools.then_summed(s5cmd, out, sums),
        rclone,
    ]
