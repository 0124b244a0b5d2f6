"""``vllmrt plan``: every source, what would be fetched, what would be launched; nothing is moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cli.test_machine import Machine
from remoteplugin import asked, install

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from pathlib import Path

GONE = """
import vllmrt
from pathlib import Path
from vllmrt.types import Candidate
class Gone:
    name = "gone"
    def probe(self, request):
        return [Candidate("/no/such/place", path=Path("/no/such/place"))]
@vllmrt.hookimpl
def vllmrt_sources():
    yield Gone()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    install(machine.site, tmp_path / "origin")
    model = make_model(tmp_path / "origin" / "llama")
    (model / "pytorch_model.bin").write_bytes(b"x" * 5000)
    machine.env["VLLM_MODEL_SOURCES"] = "local,acme"
    return machine


def test_what_would_be_fetched_and_launched(machine: Machine, tmp_path: Path) -> None:
    done = machine.run("plan", "acme/llama", "--json", VLLM_API_KEY="plan-key-1")
    told = done.json
    assert done.code == 0, done.err
    local, acme = told["offers"]
    assert (local["outcome"], acme["outcome"]) == ("skipped", "fetch")
    assert acme["left_out"] == 5000
    assert acme["files"] == len(list((tmp_path / "origin" / "llama").iterdir())) - 1
    assert told["path"] == str(machine.store / "llama")
    assert told["free"] > 0
    assert told["argv"][:3] == [str(machine.engine), "serve", told["path"]]
    assert told["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "plan-key-1" not in done.out + done.err


def test_nothing_is_moved_or_written(machine: Machine, tmp_path: Path) -> None:
    before = sorted(path for path in machine.home.rglob("*"))
    machine.run("plan", "acme/llama")
    assert sorted(path for path in machine.home.rglob("*")) == before
    assert asked(tmp_path / "origin") == []


def test_what_is_here_already_is_not_counted(machine: Machine) -> None:
    assert machine.run("resolve", "acme/llama").code == 0
    local, acme = machine.run("plan", "acme/llama", "--json").json["offers"]
    assert local["outcome"] == "in place"
    assert acme["files"] == 0
    assert acme["here"] > 0


@pytest.mark.parametrize(
    ("resolved", "changed", "files"), [("", "", 7), ("resolved", "", 0), ("resolved", "changed", 1)]
)
@pytest.mark.parametrize("command", ["resolve", "up"])
def test_a_dry_run_counts_as_plan_does(
    machine: Machine, tmp_path: Path, command: str, resolved: str, changed: str, files: int
) -> None:
    machine.env["VLLM_MODEL_SOURCES"] = "acme"
    if resolved:
        assert machine.run("resolve", "acme/llama").code == 0
    if changed:
        (tmp_path / "origin" / "llama" / "generation_config.json").write_text("{}")
    (offer,) = machine.run("plan", "acme/llama", "--json").json["offers"]
    dry = machine.run(command, "acme/llama", "--dry-run", "--log-format", "json")
    assert dry.code == 0, dry.err
    (event,) = [event for event in dry.events if event["event"] == "transfer.plan"]
    counted = [offer["files"], offer["size"], offer["left_out"], offer["here"]]
    assert [event["files"], event["bytes"], event["left_out"], event["reused"]] == counted
    assert offer["files"] == files
    assert ("nothing is to be fetched" in event["text"]) == (files == 0)


@pytest.mark.parametrize("command", ["plan", "resolve --dry-run", "resolve"])
def test_what_is_refused_is_planned_by_none(machine: Machine, tmp_path: Path, command: str) -> None:
    hostile = tmp_path / "origin" / "hostile.json"
    hostile.write_text('["../x"]')
    done = machine.run(*command.split(), "acme/llama")
    assert done.code == 10
    assert "acme      failed: " in done.err
    hostile.unlink()
    (tmp_path / "origin" / "llama" / "config.json").unlink()
    done = machine.run(*command.split(), "acme/llama")
    assert done.code == (10 if command == "plan" else 11)
    assert "acme      rejected: " in done.err


def test_what_belongs_to_another_model_is_not_in_place(machine: Machine) -> None:
    assert machine.run("resolve", "acme/llama").code == 0
    done = machine.run("plan", "other/llama", "--json")
    local, acme = done.json["offers"]
    assert (local["outcome"], acme["outcome"]) == ("skipped", "fetch")
    assert local["detail"] == f"{machine.store / 'llama'} belongs to acme/llama"
    assert done.json["path"] == acme["path"] != str(machine.store / "llama")


def test_what_is_no_directory_is_not_in_place(machine: Machine) -> None:
    machine.install("acme-gone", "[vllmrt.sources]\ngone = acme_gone\n", {"acme_gone.py": GONE})
    offers = machine.run("plan", "acme/llama", "--json", VLLM_MODEL_SOURCES="gone,acme").json["offers"]
    assert [offer["outcome"] for offer in offers] == ["failed", "fetch"]
    assert offers[0]["detail"] == "/no/such/place is no directory on this machine"


def test_lines_say_the_same(machine: Machine) -> None:
    done = machine.run("plan", "acme/llama")
    assert done.code == 0
    assert "5.0 kB left out" in done.err
    assert f"from {machine.store / 'llama'}; " in done.err


def test_a_model_that_nobody_has_is_10(machine: Machine) -> None:
    done = machine.run("plan", "acme/missing", "--json")
    assert done.code == 10
    assert done.json["ok"] is False
    assert [offer["outcome"] for offer in done.json["offers"]] == ["skipped", "skipped"]
