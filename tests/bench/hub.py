"""A model from a Hub: vllmrt beside ``hf download``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import servers, tools
from bench.measure import take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from bench.setting import Setting

NOTE = (
    "The hub of the tests answers the API; it sends clients to nginx for the large files, as the real one sends them to"
    " its CDN. There is no Xet on this hub: `hf` uses plain HTTP."
)

BUDGETS = (
    Budget("at least 3 times as fast as `hf download`, which verifies nothing", 3.0, "hf download"),
    Budget("beside `hf download` and `sha256sum -c`", None, "hf download + sha256sum -c"),
)


def measure(setting: Setting) -> list[Table]:
    """Fetch the large model."""
    model, size = setting.large()
    with (
        servers.store(setting.scratch, told=None) as store,
        servers.hub(model, "acme/large", store.cdn) as endpoint,
    ):
        environ = tools.environ(setting.scratch, HF_ENDPOINT=endpoint)
        hf = tools.hf("large", setting.out, environ)
        sums = tools.sums(model, setting.scratch / "large.sha256")
        contenders = [
            tools.ours("large", setting.out, environ, "hf-hub", "sha256"),
            hf,
            tools.then_summed(hf, setting.out / "hf", sums),
        ]
        rows = take_turns(contenders, setting.runs, setting.out)
    return [Table(f"Hub, {size / 1e9:.1f} GB in 4 shards", NOTE, rows, size, BUDGETS)]
