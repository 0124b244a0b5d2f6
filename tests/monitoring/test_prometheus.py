"""The configuration, the alert rules and the dashboard, as Prometheus' own tools judge them."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
import yaml
from cli.test_machine import Machine
from debiantools import tool

from vllmrt.monitoring.grafana import dashboard
from vllmrt.monitoring.panels import PANELS

if TYPE_CHECKING:
    from pathlib import Path

LABELS = 'instance="127.0.0.1:8000", job="vllm", model_name="m", engine="0"'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def rendered(machine: Machine) -> Path:
    assert machine.run("render", "prometheus", "--output", str(machine.root / "out")).code == 0
    return machine.root / "out"


def promtool(*args: object) -> str:
    done = subprocess.run([tool("promtool"), *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_configuration_and_rules(rendered: Path) -> None:
    told = promtool("check", "config", rendered / "prometheus.yml")
    assert "1 rule files found" in told
    assert "5 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", rendered / "vllm-alerts.yml")


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("0.0.0.0", "127.0.0.1:8123"),  # noqa: S104
        ("::", "[::1]:8123"),
        ("[::1]", "[::1]:8123"),
        ("vllm.internal", "vllm.internal:8123"),
    ],
)
def test_the_target_is_where_the_server_is_reached(machine: Machine, host: str, target: str) -> None:
    done = machine.run("render", "prometheus", "--json", VLLM_HOST=host, VLLM_PORT="8123")
    config = yaml.safe_load(done.json["files"]["prometheus.yml"])
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": [target]}]


@pytest.mark.parametrize("what", ["prometheus", "grafana"])
def test_no_secret_is_printed(machine: Machine, what: str) -> None:
    done = machine.run("render", what, VLLM_API_KEY="canary-key", HF_TOKEN="canary-token")
    assert done.code == 0
    assert "canary" not in done.out + done.err


# How each alert is tried: series in the notation of promtool, when it fires, and series with which it never does.
DOWN = ('up{instance="127.0.0.1:8000", job="vllm"}', "0x40", "1x40")
ALERTS = {
    "VllmDown": DOWN,
    "VllmQueueGrowing": (f"vllm:num_requests_waiting{{{LABELS}}}", "5+2x40", "30x40"),
    "VllmKvCacheFull": (f"vllm:kv_cache_usage_perc{{{LABELS}}}", "0.99x40", "0.94x40"),
    "VllmPreemptions": (f"vllm:num_preemptions_total{{{LABELS}}}", "0+3x40", "7x40"),
}
TTFT = {"le": ("1", "7.5", "+Inf"), "slow": ("0x40", "0+60x40", "0+60x40"), "fast": ("0+60x40", "0+60x40", "0+60x40")}


def series(alert: str, *, bad: bool) -> list[dict[str, str]]:
    if alert != "VllmTtftHigh":
        name, *values = ALERTS[alert]
        return [{"series": name, "values": values[0 if bad else 1]}]
    names = [f'vllm:time_to_first_token_seconds_bucket{{{LABELS}, le="{le}"}}' for le in TTFT["le"]]
    return [{"series": name, "values": one} for name, one in zip(names, TTFT["slow" if bad else "fast"], strict=True)]


@pytest.mark.parametrize("bad", [True, False], ids=["bad", "good"])
@pytest.mark.parametrize("alert", [*ALERTS, "VllmTtftHigh"])
def test_an_alert_fires_when_it_should_and_only_then(rendered: Path, alert: str, *, bad: bool) -> None:
    fires: dict[str, object] = {
        "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
        "eval_time": "30m",
    }
    fires["exp_samples"] = [{"labels": "{}", "value": 1}] if bad else []
    early = fires | {"eval_time": "0m" if alert == "VllmDown" else "4m", "exp_samples": []}
    tried = {"interval": "1m", "input_series": series(alert, bad=bad), "promql_expr_test": [early, fires]}
    test = {"rule_files": ["vllm-alerts.yml"], "evaluation_interval": "1m", "tests": [tried]}
    (rendered / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", rendered / "test.yml")


# -- the dashboard ------------------------------------------------------------------------


def queries() -> dict[str, str]:
    """Every query of the dashboard with Grafana's variables filled in, by panel and legend."""
    filled = {"$__rate_interval": "1m", "$model_name": ".*", "$instance": ".*"}
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in filled.items():
                text = text.replace(name, value)
            found[f"{panel['title']}: {target['legendFormat']}"] = text
    return found


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries().values())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "queries.yml")
    assert not [query for query in queries().values() if "$" in query]


def test_the_dashboard_has_the_panels_that_the_old_one_had(machine: Machine) -> None:
    shown = json.loads(machine.run("render", "grafana").out)
    assert shown == dashboard()
    kinds = {panel["title"]: panel["type"] for panel in shown["panels"]}
    assert set(kinds) >= {
        "Token throughput",
        "Successful requests",
        "Finish reasons",
        "End-to-end latency",
        "Time to first token",
        "Inter-token latency",
        "KV cache in use",
        "Scheduler state",
    }
    assert {title for title, kind in kinds.items() if kind == "heatmap"} == {"Prompt length", "Generation length"}
    assert len(kinds) == len(PANELS)


def test_no_panel_lies_on_another() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)


def test_every_variable_that_is_used_is_defined() -> None:
    text = json.dumps(dashboard())
    used = set(re.findall(r"\$\{?([a-z_]+)\}?", text)) - {"__rate_interval", "__all"}
    assert used == {variable["name"] for variable in dashboard()["templating"]["list"]}
