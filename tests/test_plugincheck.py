"""``vllmrt plugins check``: each broken plugin fails the check that is meant for it, and the others pass beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from strangerkit import environ_with

from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[..., dict[str, Any]]

SOURCE = """\
import os, socket, sys, time
import vllmrt
from vllmrt.errors import SourceError
from vllmrt.types import Candidate, Skip
{at_import}
class Source:
    name = "acme"
    def probe(self, request):
        {probe}
@vllmrt.hookimpl
def vllmrt_sources():
    {offer}
"""
GUARD = """\
import vllmrt
from vllmrt.types import Finding, Severity
class Guard:
    name = "acme"
    def check(self, tree):
        {check}
@vllmrt.hookimpl
def {hook}():
    yield Guard()
@vllmrt.hookimpl
def vllmrt_classify_process(process):
    {classify}
"""
PROBE = """\
import vllmrt
class Probe:
    name = "acme"
    def read(self, devices):
        {read}
@vllmrt.hookimpl
def vllmrt_gpu_probes():
    yield Probe()
"""


def source(at_import: str = "", probe: str = 'return Skip("no")', offer: str = "yield Source()") -> str:
    return SOURCE.format(at_import=at_import, probe=probe, offer=offer)


def guard(check: str = "return ()", hook: str = "vllmrt_validators", classify: str = "return None") -> str:
    return GUARD.format(check=check, hook=hook, classify=classify)


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def run(group: str, module: str, *, code: int, timeout: str = "10") -> dict[str, Any]:
        """Install a plugin called acme, check all that are installed, and return what was told of this one."""
        fake_dist(
            tmp_path / "site", "acme", "1.5", {f"vllmrt.{group}": {"acme": "acme_plugin"}}, {"acme_plugin": module}
        )
        environ = environ_with(tmp_path / "site", tmp_path) | {"VLLMRT_PLUGIN_TIMEOUT": timeout}
        command = [Path(sys.executable).with_name("vllmrt"), "plugins", "check", "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        told = json.loads(done.stdout)
        assert (told["ok"], told.get("code", 0)) == (code == 0, code)
        others = [one for one in told["plugins"] if one["name"] != "acme"]
        assert len(others) > 9
        assert [one for one in others if any(one["checks"].values())] == []
        (ours,) = (one for one in told["plugins"] if one["name"] == "acme")
        return dict(ours)

    return run


GOOD = {
    "source": ("sources", source()),
    "source that refuses": ("sources", source(probe='raise SourceError("no store")')),
    "GPU probe": ("gpu_probes", PROBE.format(read="return ()")),
    "validator": ("plugins", guard()),
    "classifier": ("plugins", guard(classify="return vllmrt.types.Verdict.PROTECTED")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_plugin_passes(check: Check, name: str) -> None:
    told = check(*GOOD[name], code=0)
    assert told["checks"] == {"import": None, "contract": None, "speed": None}
    assert 0 < told["ms"] < 500


BROKEN = {
    "no such module": ("sources", "import no_such_module", "import", "No module named 'no_such_module'"),
    "syntax": ("sources", "def", "import", "SyntaxError"),
    "exits": ("sources", source("os._exit(3)"), "import", "ended without an answer"),
    "sys.exit": ("sources", source("sys.exit(3)"), "import", "SystemExit"),
    "crashes": ("sources", source("os.abort()"), "import", "SIGABRT"),
    "other name": ("sources", source().replace('name = "acme"', 'name = "other"'), "import", "offers no source called"),
    "no probe": ("sources", source().replace("def probe", "def prope"), "import", "offers no source called"),
    "offers nothing": ("sources", source(offer="return ()"), "import", "but nothing"),
    "generator": ("sources", source(offer="yield Source(); 1 / 0"), "import", "ZeroDivisionError"),
    "misspelt hook": ("plugins", guard(hook="vllmrt_validator"), "import", "unknown hook"),
    "no hook": ("plugins", guard().replace("@vllmrt.hookimpl", ""), "contract", "implements no hook"),
    "raises": ("sources", source(probe='raise KeyError("x")'), "contract", "KeyError"),
    "lies": ("sources", source(probe='return ["/models"]'), "contract", "gave a str, not a Candidate"),
    "ends in probe": ("sources", source(probe="os._exit(0)"), "contract", "ended without an answer"),
    "connects": (
        "sources",
        source(probe='socket.socket().connect_ex(("127.0.0.1", 9)); return Skip("no")'),
        "contract",
        "it connects to",
    ),
    "looks up": (
        "sources",
        source(probe='socket.getaddrinfo("localhost", 80); return Skip("no")'),
        "contract",
        "it looks up",
    ),
    "lying validator": ("plugins", guard(check='return ["bad"]'), "contract", "gave a str, not a Finding"),
    "raising validator": ("plugins", guard(check="return tree.nothing"), "contract", "AttributeError"),
    "raising classifier": ("plugins", guard(classify="return process.nothing"), "contract", "AttributeError"),
    "lying probe": ("gpu_probes", PROBE.format(read='return ["H100"]'), "contract", "gave a str, not a GpuStatus"),
    "slow": ("sources", source("import time; time.sleep(0.8)"), "speed", "more than 500"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_fails_the_check_that_is_meant_for_it(check: Check, name: str) -> None:
    group, module, failed, words = BROKEN[name]
    told = check(group, module, code=1)
    assert {one for one, fault in told["checks"].items() if fault} == {failed}
    assert words in told["checks"][failed]
    assert "acme 1.5" in told["checks"][failed]


@pytest.mark.parametrize("hangs", [source("time.sleep(100)"), source(probe="time.sleep(100)")], ids=["import", "probe"])
def test_one_that_hangs_costs_its_time_limit(check: Check, hangs: str) -> None:
    began = time.monotonic()
    told = check("sources", hangs, code=1, timeout="1.5")
    (fault,) = (fault for fault in told["checks"].values() if fault)
    assert "no answer in 1.5 s" in fault
    assert time.monotonic() - began < 30


def test_two_that_claim_a_name_fail_both(tmp_path: Path) -> None:
    fake_dist(tmp_path / "site", "rival", "2.0", {"vllmrt.sources": {"r2": "rival"}}, {"rival": source()})
    environ = environ_with(tmp_path / "site", tmp_path)
    command = [Path(sys.executable).with_name("vllmrt"), "plugins", "check", "r2"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("r2 is claimed by two plugins") == 2


def test_the_table_and_what_is_not_checked(tmp_path: Path) -> None:
    fake_dist(
        tmp_path / "site", "acme", "1.5", {"vllmrt.sources": {"acme": "acme_plugin"}}, {"acme_plugin": "import no"}
    )
    environ = environ_with(tmp_path / "site", tmp_path) | {"VLLMRT_DISABLE_PLUGINS": "acme"}
    program = Path(sys.executable).with_name("vllmrt")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [program, "plugins", "check", *args]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)

    table = run()
    assert table.returncode == 0, table.stderr
    rows = {line.split()[1]: line.split()[4:] for line in table.stdout.splitlines()}
    assert rows["name"] == ["import", "contract", "speed"]
    assert rows["acme"] == ["disabled", "-", "-"]
    assert rows["vllmrt/tiny"] == ["-", "-", "-"]
    assert rows["local"][:2] == ["ok", "ok"]
    del environ["VLLMRT_DISABLE_PLUGINS"]
    broken = run("acme")
    assert broken.returncode == 1
    assert broken.stdout.splitlines()[1].split()[4:] == ["failed", "-", "-"]
    assert "acme 1.5: loading failed: ModuleNotFoundError" in broken.stderr
    assert "VLLMRT_DISABLE_PLUGINS=acme" in broken.stderr
    unknown = run("no-such")
    assert (unknown.returncode, "no plugin is called 'no-such'" in unknown.stderr) == (1, True)
