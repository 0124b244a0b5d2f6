"""The panels of the dashboard, and what each asks of Prometheus: the one table of queries."""

from __future__ import annotations

from typing import NamedTuple

_SELECTED = '{model_name=~"$model_name", instance=~"$instance"}'
_RANGE = "[$__rate_interval]"
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Panel(NamedTuple):
    """A panel.

    Attributes:
        title: its heading.
        queries: PromQL by legend; ``{{label}}`` is filled in by Grafana.
        unit: as Grafana calls it.
        kind: as Grafana calls it.
        width: of 24 columns.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8


def _value(metric: str) -> str:
    return f"sum(vllm:{metric}{_SELECTED})"


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate(vllm:{metric}{_SELECTED}{_RANGE}))"


def _quantiles(histogram: str) -> dict[str, str]:
    buckets = _rate(f"{histogram}_bucket", "le")
    quantiles = {legend: f"histogram_quantile({share}, {buckets})" for legend, share in _QUANTILES.items()}
    return quantiles | {"average": _average(histogram)}


def _average(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


def _heatmap(histogram: str) -> dict[str, str]:
    return {"{{le}}": f"sum by (le) (increase(vllm:{histogram}_bucket{_SELECTED}{_RANGE}))"}


PANELS = (
    Panel(
        "Token throughput",
        {"prompt": _rate("prompt_tokens_total"), "generation": _rate("generation_tokens_total")},
        "tokens/s",
    ),
    Panel("Successful requests", {"requests": _rate("request_success_total")}, "reqps"),
    Panel("Finish reasons", {"{{finished_reason}}": _rate("request_success_total", "finished_reason")}, "reqps"),
    Panel("End-to-end latency", _quantiles("e2e_request_latency_seconds"), "s"),
    Panel("Time to first token", _quantiles("time_to_first_token_seconds"), "s"),
    Panel("Inter-token latency", _quantiles("inter_token_latency_seconds"), "s"),
    Panel(
        "Scheduler state",
        {"running": _value("num_requests_running"), "waiting": _value("num_requests_waiting")},
    ),
    Panel(
        "Where the time goes",
        {
            "queue": _average("request_queue_time_seconds"),
            "prefill": _average("request_prefill_time_seconds"),
            "decode": _average("request_decode_time_seconds"),
        },
        "s",
    ),
    Panel("Preemptions", {"preemptions": _rate("num_preemptions_total")}, "ops"),
    Panel(
        "KV cache in use",
        {"{{instance}} engine {{engine}}": f"vllm:kv_cache_usage_perc{_SELECTED}"},
        "percentunit",
        width=12,
    ),
    Panel(
        "Prefix cache hits",
        {"hits": f"{_rate('prefix_cache_hits_total')} / {_rate('prefix_cache_queries_total')}"},
        "percentunit",
        width=12,
    ),
    Panel("Prompt length", _heatmap("request_prompt_tokens"), kind="heatmap", width=12),
    Panel("Generation length", _heatmap("request_generation_tokens"), kind="heatmap", width=12),
)
