"""A real Prometheus that scrapes a real vLLM under a little load: every panel and every alert has something to show."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from debiantools import tool
from monitoring.test_prometheus import queries
from realserver import KEY, VLLMRT, Server, free_port, smoke, start, stop_whatever_is_left

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

METRIC = r"\bvllm:[a-z0-9_]+"
REQUESTS, AT_A_TIME = 60, 4


@pytest.fixture(scope="module")
def server(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start([str(VLLMRT), "up", "--", "--enforce-eager"], environ, tmp_path_factory.mktemp("vllm") / "log")
    try:
        smoke(started)
        yield started
    finally:
        stop_whatever_is_left(started)


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The port of a Prometheus with the rendered files, but that it looks more often."""
    folder, port = tmp_path_factory.mktemp("prometheus"), str(free_port())
    command = [VLLMRT, "render", "prometheus", "--output", folder]
    subprocess.run(command, env=server.environ, check=True)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace(": 15s", ": 4s"))
    argv = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with subprocess.Popen([*argv, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]) as process:
        yield port
        process.terminate()


@pytest.fixture(scope="module")
def loaded(server: Server, prometheus: str) -> str:
    """The same, when the server has worked while it looked."""
    wait_for(lambda: result(prometheus, 'up{job="vllm"} == 1'))
    lengths = [1 + (number * 37) % 60 for number in range(REQUESTS)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        assert set(pool.map(lambda length: complete(server, length), lengths)) == {200}
    wait_for(lambda: result(prometheus, f"sum(vllm:request_success_total) >= {REQUESTS}"))
    return prometheus


def get(port: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    try:
        connection.request("GET", path)
        return json.load(connection.getresponse())
    finally:
        connection.close()


def result(port: str, query: str) -> list[dict[str, Any]]:
    try:
        told = get(port, f"/api/v1/query?query={quote(query)}")
    except OSError:
        return []
    assert told["status"] == "success", told
    found: list[dict[str, Any]] = told["data"]["result"]
    return found


def wait_for(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return value


def complete(server: Server, length: int) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    body = {"prompt": "the import statement " * length, "max_tokens": length}
    try:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.mark.parametrize("name", queries())
def test_a_query_of_the_dashboard_has_data(loaded: str, name: str) -> None:
    found = wait_for(lambda: result(loaded, queries()[name]))  # a look that took too long leaves a gap
    values = [float(one["value"][1]) for one in found]
    assert not any(value != value for value in values), values  # noqa: PLR0124 - not a number
    panel = name.partition(":")[0]
    if panel not in {"Scheduler state", "Preemptions", "KV cache in use"}:  # these may well be at rest
        assert any(value > 0 for value in values), values


def test_the_latencies_are_those_of_the_load(loaded: str) -> None:
    """A wrong unit or a wrong histogram would show: a first token comes before the last one."""
    asked = queries()
    first, last = (
        float(wait_for(lambda name=name: result(loaded, asked[f"{name}: p50"]))[0]["value"][1])
        for name in ("Time to first token", "End-to-end latency")
    )
    assert 0 < first <= last < 120


def test_no_query_names_a_metric_that_does_not_exist(server: Server, loaded: str) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    exist = set(re.findall(rf"^{METRIC}", text, re.MULTILINE))
    rules = get(loaded, "/api/v1/rules")["data"]["groups"][0]["rules"]
    named = {
        name
        for query in [*queries().values(), *(rule["query"] for rule in rules)]
        for name in re.findall(METRIC, query)
    }
    assert len(named) > 15
    assert named - exist == set()


def test_every_alert_is_judged_and_none_is_wrong(loaded: str) -> None:
    names = ("VllmDown", "VllmQueueGrowing", "VllmKvCacheFull", "VllmTtftHigh", "VllmPreemptions")

    def rules() -> list[dict[str, Any]]:
        return get(loaded, "/api/v1/rules")["data"]["groups"][0]["rules"]

    wait_for(lambda: all(rule["health"] == "ok" for rule in rules()))
    # a look that took too long makes one pending for a moment
    wait_for(lambda: {rule["name"]: rule["state"] for rule in rules()} == dict.fromkeys(names, "inactive"))
    for rule in rules():  # what is compared is there, so that the rule can ever fire
        left = re.split(r" (?:==|>) [\d.]+", rule["query"])[0]
        assert result(loaded, left), left


def test_the_end_of_the_server_is_noticed(server: Server, loaded: str) -> None:
    """The last of these tests, as it ends the server."""
    stop_whatever_is_left(server)
    wait_for(lambda: result(loaded, 'up{job="vllm"} == 0'))
    wait_for(
        lambda: [
            alert
            for alert in get(loaded, "/api/v1/alerts")["data"]["alerts"]
            if alert["labels"]["alertname"] == "VllmDown"
        ]
    )
