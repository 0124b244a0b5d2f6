"""The metrics file: written however a run ends, and what is in it is what happened."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli.test_machine import Machine
from debiantools import tool
from fakehub import FakeHub
from standin import wait_for

from vllmrt.events import Event
from vllmrt.monitoring.textfile import Recorder
from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.env["VLLMRT_METRICS_FILE"] = str(tmp_path / "textfile" / "vllmrt.prom")
    return made


@pytest.fixture
def hub(machine: Machine, tmp_path: Path) -> Iterator[FakeHub]:
    make_model(tmp_path / "origin" / "llama")
    with FakeHub() as hub:
        hub.add("acme/llama", tmp_path / "origin" / "llama")
        machine.env |= {"HF_ENDPOINT": hub.endpoint, "VLLM_MODEL_SOURCES": "hf-hub"}
        yield hub


def metrics(machine: Machine) -> dict[str, float]:
    """Return every sample; checked by promtool."""
    text = Path(machine.env["VLLMRT_METRICS_FILE"]).read_text()
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            found[f"{match['name'].removeprefix('vllmrt_last_run_')}{{{match['labels']}}}"] = float(match["value"])
    return found


def test_a_fetch_is_counted_byte_by_byte(machine: Machine, hub: FakeHub) -> None:
    hub.fault("", origin="cdn", times=1, status=503)
    done = machine.run("resolve", "acme/llama", "--log-format", "json")
    assert done.code == 0, done.err
    told = metrics(machine)
    model = 'model="acme/llama"'
    assert told[f"success{{{model}}}"] == 1
    assert told[f"exit_code{{{model}}}"] == 0
    assert told[f'outcome{{{model},outcome="ok",source="hf-hub"}}'] == 1
    assert told[f"fetched_bytes{{{model}}}"] == sum(hub.sent.values()) > 0
    assert told[f"retries{{{model}}}"] == 1
    assert abs(told[f"end_timestamp_seconds{{{model}}}"] - time.time()) < 60
    phases = {name: value for name, value in told.items() if name.startswith("phase_seconds")}
    assert len(phases) == 6
    for phase in ("resolve", "fetch", "publish"):
        assert phases[f'phase_seconds{{{model},phase="{phase}"}}'] > 0
    assert sum(phases.values()) < 60
    ended = [event for event in done.events if event["event"] == "transfer.end"]
    assert sum(event["received"] for event in ended) == sum(hub.sent.values())
    assert [sum(event["retries"] for event in ended), {event["source"] for event in ended}] == [1, {"hf-hub"}]
    mode = Path(machine.env["VLLMRT_METRICS_FILE"]).stat().st_mode
    assert stat.S_IMODE(mode) == 0o644  # the node exporter is another user
    machine.run("resolve", "acme/llama")
    assert metrics(machine)[f"fetched_bytes{{{model}}}"] == 0


def test_people_are_not_shown_what_only_programs_are_told(machine: Machine, hub: FakeHub) -> None:
    assert hub
    lines = machine.run("resolve", "acme/llama").err.splitlines()
    assert [line for line in lines if not line[9:].strip()] == []
    code, seen = machine.on_terminal("resolve", "acme/llama", VLLM_MODELS_DIR=str(machine.root / "second"))
    assert code == 0
    assert [line for line in seen.splitlines() if line.strip() == "hf-hub"] == []


def test_a_look_is_a_look_also_where_no_model_is_named(machine: Machine) -> None:
    recorder = Recorder(lambda _: None, machine.root / "m.prom", {})
    for name in ("resolve.default", "preflight.port", "gpu.none"):
        recorder(Event(name, "label", "text"))
    time.sleep(0.01)
    recorder.succeed()
    told = dict(line.rsplit(" ", 1) for line in (machine.root / "m.prom").read_text().splitlines() if line[0] != "#")
    assert float(told['vllmrt_last_run_phase_seconds{phase="inspect"}']) >= 0.01
    assert told['vllmrt_last_run_phase_seconds{phase="reclaim"}'] == "0"


def test_up_writes_before_it_becomes_the_server(machine: Machine) -> None:
    make_model(machine.store / "llama")
    with machine.start("up", "acme/llama", VLLM_PORT="8123", LINGER="60") as server:
        wait_for(Path(machine.env["VLLMRT_METRICS_FILE"]).exists)
        labels = 'model="acme/llama",port="8123"'
        assert metrics(machine)[f'outcome{{{labels},outcome="ok",source="local"}}'] == 1
        assert metrics(machine)[f'phase_seconds{{{labels},phase="launch"}}'] > 0
        server.kill()


@pytest.mark.parametrize(
    ("args", "code", "outcome"),
    [
        (["resolve", "acme/none"], 10, "ModelNotFound"),
        (["up", "acme/none"], 10, "ModelNotFound"),
        (["up", "acme/llama", "--vllm", "/nowhere/vllm"], 20, "ServeRefused"),
        (["up", "acme/llama", "--", "--api-key", "x"], 20, "ServeRefused"),
    ],
)
def test_a_failure_is_written_too(machine: Machine, args: list[str], code: int, outcome: str) -> None:
    make_model(machine.store / "llama")
    assert machine.run(*args).code == code
    told = metrics(machine)
    assert [value for name, value in told.items() if name.startswith("success")] == [0]
    assert [value for name, value in told.items() if name.startswith("exit_code")] == [code]
    assert [name for name in told if f'outcome="{outcome}"' in name]


def test_so_is_an_engine_that_is_gone_at_the_last_moment(machine: Machine) -> None:
    make_model(machine.store / "llama")
    machine.engine.write_bytes(b"\x7fELF no program\n")
    assert machine.run("up", "acme/llama").code == 20
    assert [name for name in metrics(machine) if 'outcome="ServeRefused"' in name]


def test_an_interrupted_fetch_has_what_came_so_far(machine: Machine, hub: FakeHub) -> None:
    hub.fault("", origin="cdn", times=-1, rate=10_000)
    with machine.start("resolve", "acme/llama") as process:
        wait_for(lambda: sum(hub.sent.values()) > 5_000)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 143
    told = metrics(machine)
    assert [name for name in told if 'outcome="interrupted"' in name]
    assert told['exit_code{model="acme/llama"}'] == 143
    assert 0 < told['fetched_bytes{model="acme/llama"}'] <= sum(hub.sent.values())


def test_a_file_that_cannot_be_written_fails_nothing(machine: Machine) -> None:
    make_model(machine.store / "llama")
    done = machine.run("resolve", "acme/llama", "--log-format", "json", VLLMRT_METRICS_FILE="/proc/vllmrt.prom")
    assert done.code == 0
    assert done.events[-1]["event"] == "metrics.file"
    assert "/proc/vllmrt.prom cannot be written" in done.events[-1]["text"]


def test_a_dry_run_writes_none(machine: Machine) -> None:
    make_model(machine.store / "llama")
    assert machine.run("up", "acme/llama", "--dry-run").code == 0
    assert not Path(machine.env["VLLMRT_METRICS_FILE"]).exists()


def test_labels_are_escaped(tmp_path: Path) -> None:
    from vllmrt.monitoring.textfile import Recorder

    shown: list[Event] = []
    Recorder(shown.append, tmp_path / "x.prom", {"model": 'a"b\\c\nd'}).succeed()
    text = (tmp_path / "x.prom").read_text()
    assert 'success{model="a\\"b\\\\c\\nd"} 1\n' in text
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert shown == []
