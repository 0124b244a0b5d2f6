"""``vllmrt monitor up``: a real Prometheus; a stand-in for Grafana, which no package index has."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from cli.test_machine import Machine
from debiantools import tool
from realserver import free_port
from standin import alive, listens, wait_for

from vllmrt.monitoring.grafana import dashboard

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

# It answers as Grafana does, and notes what it was given.
GRAFANA = f"""\
#!{sys.executable} -IS
import http.server, json, os, sys
with open(os.environ["GF_NOTES"], "w") as notes:
    json.dump({{"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid()}}, notes)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
address = os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"])
http.server.HTTPServer(address, Handler).serve_forever()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    (tmp_path / "bin" / "prometheus").symlink_to(Path(tool("prometheus")).resolve())
    made.env |= {"PROMETHEUS_PORT": str(free_port()), "VLLM_PORT": str(free_port()), "VLLM_API_KEY": "canary-key"}
    return made


def install_grafana(machine: Machine, name: str = "grafana") -> Path:
    """Put a stand-in for Grafana on PATH; return where it notes what it was given."""
    program = machine.root / "bin" / name
    program.write_text(GRAFANA)
    program.chmod(0o755)
    machine.env |= {"GF_SERVER_HTTP_PORT": str(free_port()), "GF_NOTES": str(machine.root / "notes")}
    return machine.root / "notes"


def prometheus_of(machine: Machine) -> list[int]:
    """The live processes that run the machine's Prometheus."""
    mark = f"--storage.tsdb.path={machine.cache / 'monitoring' / 'prometheus'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]


@pytest.fixture
def started(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    process = machine.start("monitor", "up", "--json")
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)
        for pid in prometheus_of(machine):
            os.kill(pid, signal.SIGKILL)


def query(port: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    try:
        connection.request("GET", path)
        return json.load(connection.getresponse())["data"]
    finally:
        connection.close()


def test_it_watches_the_server_and_ends_with_us(machine: Machine, started: subprocess.Popen[str]) -> None:
    assert started.stdout
    told = json.loads(started.stdout.readline())
    port = machine.env["PROMETHEUS_PORT"]
    assert told == {"ok": True, "prometheus": f"http://127.0.0.1:{port}", "grafana": None}
    targets = wait_for(lambda: query(port, "/api/v1/targets")["activeTargets"])
    assert [one["discoveredLabels"]["__address__"] for one in targets] == [f"127.0.0.1:{machine.env['VLLM_PORT']}"]
    assert len(query(port, "/api/v1/rules")["groups"][0]["rules"]) == 5
    assert query(port, f"/api/v1/query?query={quote('1 + 1')}")["result"][1] == "2"
    (pid,) = prometheus_of(machine)
    assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert (machine.cache / "monitoring" / "prometheus" / "wal").is_dir()
    started.terminate()
    _, err = started.communicate(timeout=20)
    assert started.returncode == 143, err
    assert "no grafana on PATH" in err
    assert prometheus_of(machine) == []


def test_killed_with_9_it_leaves_no_prometheus(machine: Machine, started: subprocess.Popen[str]) -> None:
    assert started.stdout
    assert started.stdout.readline()
    started.kill()
    wait_for(lambda: not prometheus_of(machine))


@pytest.mark.parametrize("name", ["grafana", "grafana-server"])
def test_a_grafana_is_given_dashboard_and_prometheus(machine: Machine, name: str) -> None:
    notes = install_grafana(machine, name)
    home = machine.root / "share" / "grafana"
    (home / "conf").mkdir(parents=True)
    (home / "conf" / "defaults.ini").touch()
    with machine.start("monitor", "up", "--json", GF_LOG_LEVEL="debug") as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        assert told["grafana"] == f"http://127.0.0.1:{machine.env['GF_SERVER_HTTP_PORT']}"
        given = json.loads(notes.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not alive(given["pid"])
    assert given["argv"][1:] == [*(["server"] if name == "grafana" else []), f"--homepath={home}"]
    environ = given["environ"]
    assert environ["GF_LOG_LEVEL"] == "debug"  # what its user says is followed
    assert environ["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert "canary" not in notes.read_text()
    folder = Path(environ["GF_PATHS_PROVISIONING"])
    source = json.loads((folder / "datasources" / "vllmrt.yml").read_text())["datasources"][0]
    assert source["url"] == f"http://127.0.0.1:{machine.env['PROMETHEUS_PORT']}"
    provider = json.loads((folder / "dashboards" / "vllmrt.yml").read_text())["providers"][0]
    (shown,) = Path(provider["options"]["path"]).iterdir()
    assert json.loads(shown.read_text()) == dashboard()


def test_without_prometheus_there_is_a_remedy(machine: Machine) -> None:
    (machine.root / "bin" / "prometheus").unlink()
    done = machine.run("monitor", "up", "--json")
    assert (done.code, done.json["error"]) == (20, "no prometheus on PATH")
    assert "prometheus.io/download" in done.json["hint"]
    assert not (machine.cache / "monitoring").exists()


def test_a_port_that_is_taken_is_refused_before_another_answers_on_it(machine: Machine) -> None:
    install_grafana(machine)
    with machine.start("monitor", "up") as first:
        wait_for(lambda: listens(int(machine.env["PROMETHEUS_PORT"])))
        other = str(free_port())
        done = machine.run("monitor", "up", "--json", GF_SERVER_HTTP_PORT=other, FLOX_ENV_CACHE=str(machine.root / "c"))
        assert (done.code, done.json["program"], done.json["status"]) == (21, "Prometheus", None)
        assert f"port {machine.env['PROMETHEUS_PORT']} is taken" in done.json["hint"]
        assert "PROMETHEUS_PORT" in done.json["hint"]
        assert "answers" not in done.err
        assert not listens(int(other))
        first.terminate()
        first.communicate(timeout=20)
