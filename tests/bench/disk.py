"""A model from S3 to a real disk: the column that waits for it is the one to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import servers, tools
from bench.measure import take_turns
from bench.table import Table

if TYPE_CHECKING:
    from bench.setting import Setting

NOTE = (
    "The same to a disk. vllmrt publishes what the disk has; the others end before that, which `on disk s` adds"
    " (`sync -f` after each)."
)


def measure(setting: Setting) -> list[Table]:
    """Fetch the large model to where the scratch directory is, three times at most."""
    _, size = setting.large()
    out = setting.scratch / "out"
    with servers.store(setting.scratch) as store:
        environ = tools.environ(setting.scratch, **tools.bucket(store.http))
        rivals = [tool("large", out, environ) for tool in (tools.s5cmd, tools.rclone)]
        rows = take_turns([tools.ours("large", out, environ, "r2", "crc64nvme"), *rivals], min(3, setting.runs), out)
    return [Table(f"S3 over HTTP to a disk, {size / 1e9:.1f} GB", NOTE, rows, size)]
