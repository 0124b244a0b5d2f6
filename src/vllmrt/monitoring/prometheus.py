"""The configuration of a Prometheus that watches a vLLM, and its alert rules."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

from vllmrt.serve.client import url_of

if TYPE_CHECKING:
    from vllmrt.settings import Settings

CONFIG, RULES = "prometheus.yml", "vllm-alerts.yml"
JOB = "vllm"
_CONFIG = """\
# {name}: promtool check config {name}
global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files:
  - {rules}
scrape_configs:
  - job_name: {job}
    # vLLM shows its metrics to whoever asks, also where it has an API key
    metrics_path: /metrics
    static_configs:
      - targets: [{target}]
"""


def configuration(settings: Settings) -> dict[str, str]:
    """Return the files of a Prometheus by their names: the configuration first, then the rules that it reads."""
    target = url_of(settings.host, settings.port).partition("://")[2]
    config = _CONFIG.format(name=CONFIG, rules=RULES, job=JOB, target=json.dumps(target))
    return {CONFIG: config, RULES: files("vllmrt.monitoring").joinpath("alerts.yml").read_text()}
