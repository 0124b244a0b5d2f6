"""Plugins that lie, break or never end, beside good ones, through the command line: DESIGN.md §3 says what goes on.

Broken answers to `probe`, broken validators and what cannot be loaded are in resolve/test_loop.py, probes of GPUs in
gpu/test_check.py, classifiers in preflight/test_port.py.
"""

from __future__ import annotations

import signal
import time
from textwrap import indent
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Machine

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from pathlib import Path

OWNER = "acme-store 1.2.3"
HINT = "upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS=acme-store"
STORE = """\
import os, threading, time
from pathlib import Path

import vllmrt
from vllmrt.testing import FakeSource
from vllmrt.testing.fakes import FakeRange
from vllmrt.types import Candidate, Digest, RemoteFile

ONE = RemoteFile("config.json", size=2, version="1")


class Store(FakeSource):
{body}

@vllmrt.hookimpl
def vllmrt_sources(settings):
    yield Store(Path({root!r}), name="acme")
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which the store of acme and a directory have the model."""
    made = Machine(tmp_path)
    make_model(tmp_path / "origin" / "org" / "name")
    make_model(made.store / "name")
    return made


def add_store(machine: Machine, body: str) -> None:
    code = STORE.format(body=indent(body or "pass", "    "), root=str(machine.root / "origin"))
    machine.install("acme-store", "[vllmrt.sources]\nacme = acme_store\n", {"acme_store.py": code})


def resolve(machine: Machine, **env: str) -> Any:
    began = time.monotonic()
    done = machine.run("resolve", "org/name", "--sources", "acme,local", "--json", **env)
    assert time.monotonic() - began < 30
    assert done.code == 0, done.err
    return done.json


def opens(code: str) -> str:
    return f"def open(self, candidate, file, start, stop):\n{indent(code, '    ')}"


def reads(code: str) -> str:
    return opens(f"class Range(FakeRange):\n    def readinto(self, buffer):\n        {code}\nreturn Range(b'')")


def lists(code: str) -> str:
    return f"def probe(self, request):\n    {code}"


def listed(file: str) -> str:
    return lists(f"return [Candidate('x', files=({file},))]")


BROKEN = {
    "open raises": (
        opens("raise ValueError('sorry')"),
        "failures without a byte: acme-store 1.2.3: open failed",
    ),
    "open exits": (opens("raise SystemExit(0)"), "open failed: SystemExit: 0"),
    "open interrupts": (opens("raise KeyboardInterrupt"), "open failed: KeyboardInterrupt"),
    "open gives nothing": (opens("return None"), "open gave a NoneType without readinto()"),
    "open gives bytes": (opens("return b'{}'"), "open gave a bytes without readinto()"),
    "a range that cannot be closed": (
        opens("class Range:\n    def readinto(self, buffer):\n        return 0\nreturn Range()"),
        "open gave a Range without close()",
    ),
    "reads too much": (reads("return len(buffer) + 1"), "bytes"),
    "reads less than nothing": (reads("return -1"), "readinto gave -1 for a buffer of "),
    "reads None": (reads("return None"), "readinto gave None for a buffer of "),
    "reads half a byte": (reads("return 0.5"), "readinto gave 0.5 for a buffer of "),
    "exits while it reads": (reads("raise SystemExit(3)"), "readinto failed: SystemExit: 3"),
    "raises while it reads": (reads("raise OSError('broken pipe')"), "readinto failed: OSError: broken pipe"),
    "lists texts": (listed("'config.json'"), "probe gave a str, not a RemoteFile"),
    "lists a size that is a text": (listed("RemoteFile('x', size='2', version='1')"), "RemoteFile whose size is a str"),
    "lists a size below zero": (listed("RemoteFile('x', size=-2, version='1')"), "probe gave 'x' a size of -2"),
    "lists a name that is bytes": (listed("RemoteFile(b'x', size=2, version='1')"), "RemoteFile whose path is a bytes"),
    "lists no version": (listed("RemoteFile('x', size=2, version=None)"), "RemoteFile whose version is a NoneType"),
    "lists a digest that is a text": (
        listed("RemoteFile('x', size=2, version='1', digest='sha256:00')"),
        "RemoteFile whose digest is a str",
    ),
    "lists a digest of bytes": (
        listed("RemoteFile('x', size=2, version='1', digest=Digest('sha256', value=b'00'))"),
        "Digest whose value is a bytes",
    ),
    "lists without an end": (lists("while True: yield Candidate('x')"), "OverflowError: more than 100,000 values"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_store_that_breaks_is_named_and_the_next_source_is_used(machine: Machine, fault: str) -> None:
    body, words = BROKEN[fault]
    add_store(machine, body)
    failed, chosen = resolve(machine)["attempts"]
    assert (failed["source"], failed["outcome"]) == ("acme", "failed")
    assert f"{OWNER}: " in failed["reason"]
    assert words in failed["reason"]
    assert failed["hint"] in {HINT, None}
    assert (chosen["source"], chosen["outcome"]) == ("local", "chosen")


HOSTILE = {
    "leaves the model": ("RemoteFile('../../x', size=2, version='1')", "has a part . or .."),
    "is absolute": ("RemoteFile('/etc/cron.d/x', size=2, version='1')", "is absolute"),
    "steers a terminal": ("RemoteFile('x\\x1b[2J', size=2, version='1')", "has a control character"),
    "poses as the manifest": ("ONE, RemoteFile('a/.VLLMRT.json', size=2, version='1'), ONE", "twice"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_name_is_refused_and_nothing_is_written(machine: Machine, what: str) -> None:
    files, words = HOSTILE[what]
    add_store(machine, lists(f"return [Candidate('x', files=({files},))]"))
    failed, chosen = resolve(machine)["attempts"]
    assert words in failed["reason"]
    assert chosen["source"] == "local"
    assert not [path for path in machine.store.rglob("*") if path.is_file() and path.parent.name == "files"]


def test_a_store_that_hangs_while_it_opens_costs_its_time(machine: Machine) -> None:
    add_store(machine, opens("time.sleep(60)"))
    failed, chosen = resolve(machine, VLLMRT_STALL_TIMEOUT="0.3")["attempts"]
    assert "no byte in 0.3 s" in failed["reason"]
    assert chosen["source"] == "local"


def test_a_store_that_gives_other_bytes_is_not_believed(machine: Machine) -> None:
    add_store(machine, opens("return FakeRange(bytes(stop - start))"))
    failed, chosen = resolve(machine)["attempts"]
    assert "differs from the digest that its source publishes" in failed["reason"]
    assert chosen["source"] == "local"


def test_what_a_range_does_when_it_is_closed_matters_to_nobody(machine: Machine) -> None:
    close = "def close(self):\n        raise SystemExit(9)"
    add_store(
        machine, opens(f"class Range(FakeRange):\n    {close}\nreturn Range(self.content(candidate, file)[start:stop])")
    )
    (chosen,) = resolve(machine)["attempts"]
    assert (chosen["source"], chosen["outcome"]) == ("acme", "chosen")


@pytest.mark.parametrize("command", ["up", "plan"])
def test_what_a_plugin_puts_into_the_environment_does_not_reach_the_server(machine: Machine, command: str) -> None:
    preload = "os.environ['LD_PRELOAD'] = '/tmp/evil.so'; os.environ['VLLM_MODEL_ORG'] = 'evil'"
    add_store(machine, lists(f"{preload}; return ()"))
    args = ("--json",) if command == "plan" else ()
    done = machine.run(command, "org/name", "--sources", "acme,local", *args)
    assert done.code == 0, done.err
    told = done.json["environment" if command == "plan" else "environ"]
    assert "HF_HUB_OFFLINE" in told
    assert "LD_PRELOAD" not in told
    assert "VLLM_MODEL_ORG" not in done.json.get("removed", [])


def test_a_validator_that_hangs_is_left_by_an_interrupt(machine: Machine) -> None:
    """It has no time limit, since it may read every byte of a model."""
    code = "import time, vllmrt\nclass Guard:\n    name = 'acme'\n    def check(self, tree):\n        time.sleep(600)\n"
    hook = "@vllmrt.hookimpl\ndef vllmrt_validators():\n    yield Guard()\n"
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": code + hook})
    with machine.start("resolve", "org/name", VLLMRT_PLUGIN_TIMEOUT="0.2") as process:
        time.sleep(2)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - began < 5


# two hundred plugins that nobody names


@pytest.fixture
def crowd(machine: Machine) -> set[str]:
    """Install two hundred sources and probes; return their distributions."""
    for number in range(200):
        groups = f"[vllmrt.sources]\ns{number} = crowd_{number}\n[vllmrt.gpu_probes]\np{number} = crowd_{number}\n"
        machine.install(f"crowd-{number}", groups, {f"crowd_{number}.py": "raise SystemExit('imported')\n"})
    return {f"crowd_{number}-1.2.3.dist-info" for number in range(200)}


def test_plugins_that_nobody_names_are_not_imported_and_their_metadata_is_read_once(
    machine: Machine, crowd: set[str]
) -> None:
    machine.run("resolve", "org/name")
    done, opened = machine.opened("up", "org/name", "--sources", "package,flox,local,hf-cache", "--dry-run")
    assert done.code == 0, done.err
    theirs = sorted(path.removeprefix(f"{machine.site}/") for path in opened if path.startswith(f"{machine.site}/"))
    assert theirs == sorted(f"{info}/entry_points.txt" for info in crowd)


def test_one_of_them_is_found_by_its_name(machine: Machine, crowd: set[str]) -> None:
    assert crowd
    done, opened = machine.opened("resolve", "org/name", "--sources", "s7,local")
    assert done.code == 0, done.err
    assert "crowd-7 1.2.3: loading failed: SystemExit: imported" in done.err
    modules = {path.rpartition("/")[2] for path in opened if path.startswith(f"{machine.site}/crowd") and ".py" in path}
    assert {module for module in modules if not module.startswith("crowd_7.")} == set()
