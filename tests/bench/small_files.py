"""Two thousand files of 100 KiB, from a Hub and from S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import s3, servers, tools
from bench.measure import take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from bench.setting import Setting

SIZE = 100 << 10
TOLD = "64 files by crc64nvme, else sha256 noted"
NOTE = "What counts here is requests, and what every file costs on disk."


def measure(setting: Setting) -> list[Table]:
    """Fetch the model of many small files from both."""
    model, size = setting.model("small", setting.small, SIZE)
    title = f"{setting.small:,} files of 100 KiB"
    sums = tools.sums(model, setting.scratch / "small.sha256")
    budgets = [Budget(f"not behind `{s3.SUMMED}`", 1.0, s3.SUMMED), *s3.BUDGETS[1:]]
    with servers.store(setting.scratch) as store:
        environ = tools.environ(setting.scratch, **tools.bucket(store.http))
        rows = take_turns(s3.contenders("small", setting.out, environ, sums, TOLD), setting.runs, setting.out)
        tables = [Table(f"S3 over HTTP, {title}", NOTE, rows, size, budgets)]
        with servers.hub(model, "acme/small", store.cdn) as endpoint:
            environ = tools.environ(setting.scratch, HF_ENDPOINT=endpoint)
            both = [
                tools.ours("small", setting.out, environ, "hf-hub", "sha256"),
                tools.hf("small", setting.out, environ),
            ]
            rows = take_turns(both, min(3, setting.runs), setting.out)  # hf takes a quarter of a minute
    budget = Budget("not behind `hf download`", 1.0, "hf download")
    return [*tables, Table(f"Hub, {title}", NOTE, rows, size, [budget])]
