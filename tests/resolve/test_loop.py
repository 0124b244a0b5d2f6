"""The loop over sources, through the command line: what is asked, what is refused, what a second start spares."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli.test_machine import Done, Machine
from modelkit import edit_json
from remoteplugin import install

from vllmrt.identity import identity_hash
from vllmrt.testing import corrupt, fingerprint, make_model
from vllmrt.testing.models import INDEX, shard_name, write_raw_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
NOBODY = 65534

SOURCE = """\
import time, vllmrt
from itertools import takewhile
from pathlib import Path
from vllmrt.types import Candidate, ModelRequest, Skip
from vllmrt.errors import SourceError, TransientSourceError
class Source:
    name = "{name}"
    def probe(self, request):
        {probe}
@vllmrt.hookimpl
def vllmrt_sources(settings):
    {hook}
"""
GUARD = """\
import vllmrt
from vllmrt.types import Finding, Severity
class Guard:
    name = "acme-guard"
    def check(self, tree):
        {check}
@vllmrt.hookimpl
def vllmrt_validators(settings):
    yield Guard()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def model(machine: Machine) -> Path:
    return make_model(machine.store / "name")


@pytest.fixture
def world() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="vllmrt-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def resolve(machine: Machine, *args: str, model: str = "org/name", **env: str | None) -> Done:
    return machine.run("resolve", model, *args, **env)


def add_source(
    machine: Machine, name: str, probe: str = "pass", *, hook: str = "yield Source()", prelude: str = ""
) -> None:
    module = f"acme_{name}"
    code = prelude + SOURCE.format(name=name, probe=probe, hook=hook)
    machine.install(f"acme-{name}", f"[vllmrt.sources]\n{name} = {module}\n", {f"{module}.py": code})


def lines_of(done: Done, label: str) -> list[str]:
    return [line.removeprefix(label).strip() for line in done.err.splitlines() if line.startswith(f"{label} ")]


# -- the order, and what is recorded ------------------------------------------


@pytest.mark.parametrize("order", ["one,two,local", "two,one,local", "local,two,one"])
def test_sources_are_asked_in_the_users_order(machine: Machine, model: Path, order: str) -> None:
    for name in ("one", "two"):
        add_source(machine, name, f"return Skip('nothing in {name}')")
    done = resolve(machine, "--sources", order, "--json")
    assert done.code == 0
    asked = order.split(",")[: order.split(",").index("local") + 1]
    outcomes = {"one": ("skipped", "nothing in one"), "two": ("skipped", "nothing in two"), "local": ("chosen", model)}
    assert [(row["source"], row["outcome"], row["reason"]) for row in done.json["attempts"]] == [
        (name, outcomes[name][0], str(outcomes[name][1])) for name in asked
    ]


def test_the_first_that_has_it_wins_and_the_rest_is_not_even_imported(machine: Machine, model: Path) -> None:
    add_source(machine, "late", prelude="raise SystemExit('imported')\n")
    done = resolve(machine, "--sources", "local,late")
    assert (done.code, done.out.strip()) == (0, str(model))
    assert "late" not in done.err


@pytest.mark.parametrize(
    ("probe", "outcome", "reason", "hint"),
    [
        ("return Skip('share is not mounted', hint='mount it')", "skipped", "share is not mounted", "mount it"),
        ("return ()", "skipped", "it has no such model", None),
        ("raise SourceError('403 on it', hint='ask for access')", "failed", "403 on it", "ask for access"),
        ("raise TransientSourceError('503', retry_after=3)", "failed", "503", None),
        (
            "return (Candidate('acme://x', path=Path('/nowhere/x')),)",
            "failed",
            "acme://x is no directory on this machine",
            None,
        ),
        ("return (Candidate('acme://x'),)", "failed", "acme://x is no directory on this machine", None),
    ],
)
def test_every_attempt_is_recorded_with_its_reason(
    machine: Machine, probe: str, outcome: str, reason: str, hint: str | None
) -> None:
    add_source(machine, "acme", probe)
    done = resolve(machine, "--sources", "acme,local", "--json")
    assert done.code == 10
    first, last = done.json["attempts"]
    assert first == {"source": "acme", "outcome": outcome, "reason": reason, "hint": hint}
    assert last["source"] == "local"
    assert lines_of(done, "acme") == [f"{outcome}: {reason}"]
    assert hint is None or hint in done.json["hint"]


def test_nothing_has_it_says_why_for_every_source(machine: Machine) -> None:
    done = resolve(machine, "--sources", "package,flox,local,hf-cache")
    assert (done.code, done.out) == (10, "")
    labels = [line.split()[0] for line in done.err.splitlines()]
    assert labels == ["package", "flox", "local", "hf-cache", "log", "error", "hint"]
    assert lines_of(done, "flox") == ["skipped: FLOX_ENV is not set"]
    assert lines_of(done, "local") == [f"skipped: nothing at {machine.store / 'name'}"]
    assert lines_of(done, "error") == ["no source has org/name"]
    assert lines_of(done, "hint") == ["flox: run inside flox activate"]


def test_a_default_source_that_is_not_installed_is_skipped_one_that_was_named_is_refused(machine: Machine) -> None:
    absent = ("vllmrt-source-flox", "vllmrt-source-r2", "vllmrt-source-hf-hub")  # the last two would use the network
    silent = resolve(machine, VLLM_MODEL_SOURCES=None, VLLMRT_DISABLE_PLUGINS=",".join(absent))
    assert silent.code == 10
    assert "flox      skipped: no plugin of that name is installed" in silent.err
    named = resolve(machine, "--sources", "local,nowhere")
    assert named.code == 1
    assert "'nowhere'" in named.err
    for source in ("flox", "hf-cache", "local", "package"):
        assert source in lines_of(named, "error")[0].partition("installed:")[2]


@pytest.mark.parametrize("sources", ["", ",", " , "])
def test_an_order_that_names_no_source_is_refused(machine: Machine, model: Path, sources: str) -> None:
    assert model.is_dir()
    done = resolve(machine, "--sources", sources)
    assert done.code == 1
    assert "source" in done.err


def test_two_plugins_that_claim_one_name_are_both_named(machine: Machine, model: Path) -> None:
    machine.install("acme-local", "[vllmrt.sources]\nlocal = acme\n")
    done = resolve(machine)
    assert done.code == 1
    assert "acme-local 1.2.3" in done.err
    assert "vllmrt-source-local" in done.err
    assert "VLLMRT_DISABLE_PLUGINS" in done.err
    assert resolve(machine, VLLMRT_DISABLE_PLUGINS="acme_local").out.strip() == str(model)


# -- names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ("../name", "is a directory, not a name"),
        ("org/..", "is a directory, not a name"),
        ("org/.", "is a directory, not a name"),
        ("org/a/b", "must be one path element"),
        ("org/a\\b", "must be one path element"),
        ("/name", "is empty"),
        ("org/", "is empty"),
        ("org/\x1b[31mred", "must not contain control characters"),
        ("org/a\nb", "must not contain control characters"),
        ("org/" + "n" * 300, "is longer than 200 bytes"),
        ("org/.locks", "must not begin with a dot"),
        ("org/hub", "is a directory of the store's own"),
        ("org/name@", "cannot be a branch, tag or commit"),
        ("org/name@a..b", "cannot be a branch, tag or commit"),
        ("org/name@-x", "cannot be a branch, tag or commit"),
        ("org/name@/etc/passwd", "cannot be a branch, tag or commit"),
        ("org/name@\x1b[31m", "cannot be a branch, tag or commit"),
        ("name", "has no org"),
    ],
)
def test_an_unsafe_name_is_refused_with_the_rule(machine: Machine, model: str, rule: str) -> None:
    before = fingerprint(machine.home)
    done = resolve(machine, model=model)
    assert done.code == 1
    assert rule in done.err
    assert done.err.replace("\n", "").isprintable()
    assert fingerprint(machine.home) == before


@pytest.mark.parametrize(
    "env",
    [
        {"VLLM_MODEL": "../x", "VLLM_MODEL_ORG": "org"},
        {"VLLM_MODEL": "x", "VLLM_MODEL_ORG": "a/b"},
        {"VLLM_MODEL": "x"},
        {"VLLM_MODEL_ID": "org/../x"},
        {"VLLM_MODEL_ID": "org/name", "VLLM_MODEL_REVISION": "a b"},
    ],
)
def test_names_from_the_environment_obey_the_same_rules(machine: Machine, env: dict[str, str]) -> None:
    assert machine.run("resolve", **env).code == 1


def test_the_org_may_come_from_the_environment(machine: Machine, model: Path) -> None:
    assert machine.run("resolve", VLLM_MODEL="name", VLLM_MODEL_ORG="org").out.strip() == str(model)
    assert resolve(machine, model="name", VLLM_MODEL_ORG="org").out.strip() == str(model)


def test_a_model_on_the_command_line_replaces_all_of_the_environments(machine: Machine, model: Path) -> None:
    env = {"VLLM_MODEL": "x", "VLLM_MODEL_ORG": "y", "VLLM_MODEL_ID": "z/x", "VLLM_MODEL_REVISION": "v9"}
    done = resolve(machine, "--json", **env)
    assert (done.json["model"], done.json["path"]) == ("org/name", str(model))


def test_two_revisions_that_differ_are_refused(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    done = resolve(machine, "--revision", "v1", model="org/name@v2")
    assert done.code == 1
    assert "v1" in done.err
    assert "v2" in done.err
    assert resolve(machine, "--revision", "v1", model="org/name@v1").code == 0


def test_names_that_are_long_and_safe_work(machine: Machine) -> None:
    org, name = "o" * 190, "n" * 190
    model = make_model(machine.store / name)
    for _ in range(2):
        done = resolve(machine, model=f"{org}/{name}@{'r' * 190}")
        assert (done.code, done.out.strip()) == (0, str(model))
    assert lines_of(done, "checked") == ["unchanged since it was last checked"]


# -- what is refused -----------------------------------------------------------


def _outside(path: Path) -> None:
    edit_json(path / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": f"../../other/{SECOND}"}))


def _replaced_by_a_link(path: Path) -> None:
    target = path.parent / "elsewhere"
    (path / FIRST).rename(target)
    (path / FIRST).symlink_to(target)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated shard": (lambda path: corrupt(path / SECOND, cut=1), SECOND, "byte"),
    "shard missing": (lambda path: (path / SECOND).unlink(), SECOND, "is listed in"),
    "weight_map outside": (_outside, INDEX, "no path inside the model"),
    "index": (lambda path: (path / INDEX).write_text('{"weight_map": {'), INDEX, "is not JSON"),
    "header": (lambda path: write_raw_safetensors(path / FIRST, b"{not json"), FIRST, "header"),
    "header of 2^60": (lambda path: write_raw_safetensors(path / FIRST, {}, length=1 << 60), FIRST, "header"),
    "zero bytes": (lambda path: (path / FIRST).write_bytes(b""), FIRST, "is empty"),
    "no tokenizer": (lambda path: [f.unlink() for f in path.glob("tokenizer*")], "tokenizer", "no tokenizer in"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json", "is missing"),
    "config no JSON": (lambda path: (path / "config.json").write_text("{"), "config.json", "is not JSON"),
    "link out": (_replaced_by_a_link, FIRST, "is a symbolic link out of the model"),
    "link to nothing": (lambda path: (path / "x").symlink_to("gone"), "name/x", "No such file"),
    "link to itself": (lambda path: (path / "x").symlink_to("x"), "name/x", "Too many levels of symbolic links"),
    "FIFO": (lambda path: os.mkfifo(path / "x"), "x", "is a FIFO"),
    "FIFO for a manifest": (lambda path: os.mkfifo(path / ".vllmrt.json"), ".vllmrt.json", "is a FIFO"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_is_refused_with_file_and_fault_and_not_touched(
    machine: Machine, model: Path, fault: str
) -> None:
    spoil, file, words = FAULTS[fault]
    spoil(model)
    before = fingerprint(machine.store / "name")
    done = resolve(machine, "--json")
    assert done.code == done.json["code"] == 11
    (attempt,) = done.json["attempts"]
    assert attempt["outcome"] == "rejected"
    assert str(model) in attempt["reason"]
    assert any(file in line and words in line for line in attempt["reason"].splitlines()), attempt["reason"]
    assert words in done.err
    assert fingerprint(machine.store / "name") == before
    assert not list(machine.cache.rglob("*.env"))


def test_a_broken_model_gives_way_to_the_next_source(machine: Machine, model: Path) -> None:
    corrupt(model / SECOND, cut=1)
    other = make_model(machine.root / "other")
    add_source(machine, "acme", f"return (Candidate('acme', path=Path({str(other)!r})),)")
    done = resolve(machine, "--sources", "local,acme", "--json")
    assert (done.code, done.json["source"], done.json["path"]) == (0, "acme", str(other))
    assert [row["outcome"] for row in done.json["attempts"]] == ["rejected", "chosen"]


def test_names_of_files_cannot_write_to_the_terminal(machine: Machine, model: Path) -> None:
    (model / "a\x1b[31mred\n").symlink_to("gone")
    done = resolve(machine)
    assert done.code == 11
    assert done.err.replace("\n", "").isprintable()


def test_a_file_whose_name_is_no_utf8_does_no_harm(machine: Machine, model: Path) -> None:
    Path(os.fsdecode(os.fsencode(model) + b"/r\xe9sum\xe9.txt")).touch()
    for said in ("it is whole", "unchanged since it was last checked"):
        done = resolve(machine, "--json")
        assert (done.code, lines_of(done, "checked")) == (0, [said])


# -- plugins that misbehave -----------------------------------------------------

BROKEN = {
    "raises at import": ({"prelude": "raise RuntimeError('no licence')\n"}, "RuntimeError: no licence"),
    "exits at import": ({"prelude": "raise SystemExit(0)\n"}, "SystemExit"),
    "syntax error": ({"prelude": "def\n"}, "SyntaxError"),
    "missing module": ({"prelude": "import acme_sdk_that_is_not_there\n"}, "ModuleNotFoundError"),
    "hangs in a generator": ({"hook": "time.sleep(30); yield Source()"}, "gave no answer in 0.5 s"),
    "hangs in probe": ({"probe": "time.sleep(30)"}, "gave no answer in 0.5 s"),
    "hangs in the probe's generator": ({"probe": "yield time.sleep(30)"}, "gave no answer in 0.5 s"),
    "raises in probe": ({"probe": "raise KeyError('bucket')"}, "KeyError: 'bucket'"),
    "answers None": ({"probe": "return None"}, "NoneType"),
    "answers texts": ({"probe": "return ['/models/x']"}, "gave a str, not a Candidate"),
    "answers one candidate": ({"probe": "return Candidate('x')"}, "Candidate"),
    "a path that is a text": ({"probe": "return [Candidate('x', path='/tmp')]"}, "path"),
    "a revision that is a number": (
        {"probe": "return [Candidate('x', path=Path(__file__).parents[1] / 'other', revision=7)]"},
        "revision",
    ),
    "offers nothing": ({"hook": "return []"}, "offers no source called acme"),
    "offers another name": ({"hook": "s = Source(); s.name = 'emca'; yield s"}, "offers no source called acme"),
    "offers no source": ({"hook": "yield 42"}, "offers no source called acme"),
    "has no such hook": ({"hook": "yield Source()\ndel vllmrt_sources"}, "offers no source called acme"),
    "asks for what is not given": ({"hook": "pass\ndef vllmrt_sources(engine): pass"}, "acme-acme 1.2.3"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_source_is_named_and_the_next_one_asked(machine: Machine, model: Path, fault: str) -> None:
    parts, words = BROKEN[fault]
    make_model(machine.root / "other")
    add_source(machine, "acme", **parts)  # type: ignore[arg-type]
    began = time.monotonic()
    done = resolve(machine, "--sources", "acme,local", "--json", VLLMRT_PLUGIN_TIMEOUT="0.5")
    assert time.monotonic() - began < 10
    assert done.code == 0, done.err
    failed, chosen = done.json["attempts"]
    assert (failed["source"], failed["outcome"]) == ("acme", "failed")
    assert failed["reason"].startswith("acme-acme 1.2.3: ")
    assert words in failed["reason"]
    assert failed["hint"] == "upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS=acme-acme"
    assert (chosen["outcome"], chosen["reason"]) == ("chosen", str(model))


def test_a_source_that_prints_does_not_spoil_the_json(machine: Machine, model: Path) -> None:
    add_source(machine, "acme", "print('probing'); return ()", prelude="print('hello')\n")
    done = resolve(machine, "--sources", "acme,local", "--json")
    assert done.json["path"] == str(model)


def test_a_disabled_plugin_is_not_imported(machine: Machine, model: Path) -> None:
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": "raise SystemExit(9)\n"})
    assert resolve(machine).code == 1
    done = resolve(machine, VLLMRT_DISABLE_PLUGINS="Acme_Guard")
    assert (done.code, done.out.strip()) == (0, str(model))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import time; time.sleep(30)", "gave no answer in 0.5 s"),
        (GUARD.format(check="pass").replace("yield Guard()", "yield 42"), "int is no validator"),
    ],
    ids=["raises", "hangs", "wrong type"],
)
def test_a_broken_validator_stops_the_run_and_says_how_to_do_without(
    machine: Machine, model: Path, code: str, words: str
) -> None:
    assert model.is_dir()
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": code})
    done = resolve(machine, VLLMRT_PLUGIN_TIMEOUT="0.5")
    assert (done.code, done.out) == (1, "")
    assert "acme-guard 1.2.3" in done.err
    assert words in done.err
    assert "VLLMRT_DISABLE_PLUGINS=acme-guard" in done.err


@pytest.mark.parametrize(
    "check",
    ["raise RuntimeError('no licence')", "return ['fine']", "return None", "raise SystemExit(0)"],
)
def test_a_validator_that_breaks_while_it_judges_refuses_and_says_how_to_do_without(
    machine: Machine, model: Path, check: str
) -> None:
    assert model.is_dir()
    code = GUARD.format(check=check)
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": code})
    done = resolve(machine)
    assert (done.code, done.out) == (11, "")
    assert "acme-guard 1.2.3" in done.err
    assert "VLLMRT_DISABLE_PLUGINS=acme-guard" in done.err


def test_a_validator_of_a_stranger_is_obeyed(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    found = "Finding(Severity.{}, message='is not licensed', code='licence', file='config.json')"
    code = GUARD.format(check=f"return [{found.format('ERROR')}]")
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": code})
    refused = resolve(machine)
    assert refused.code == 11
    assert "config.json: is not licensed" in refused.err
    (machine.site / "acme_guard.py").write_text(GUARD.format(check=f"return [{found.format('WARNING')}]"))
    accepted = resolve(machine)
    assert accepted.code == 0
    assert "config.json: is not licensed" in accepted.err


def test_without_any_validator_nothing_is_served(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    done = resolve(machine, VLLMRT_DISABLE_PLUGINS="vllmrt")
    assert (done.code, done.out) == (1, "")
    assert "no validator" in done.err


def test_a_validator_may_take_longer_than_other_plugins(machine: Machine, model: Path) -> None:
    """It may have to read every byte of a model."""
    code = GUARD.format(check="import time; time.sleep(1.2); return ()")
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", {"acme_guard.py": code})
    assert resolve(machine, VLLMRT_PLUGIN_TIMEOUT="1").out.strip() == str(model)


# -- a second start ---------------------------------------------------------------


def checked(done: Done) -> str:
    assert done.code == 0, done.err
    (said,) = lines_of(done, "checked")
    return said.partition(" ")[0]


def test_a_second_start_opens_no_file_of_the_model(machine: Machine, model: Path) -> None:
    cold, opened = machine.opened("resolve", "org/name")
    assert checked(cold) == "it"
    seen = {Path(name).name for name in opened if name.startswith(f"{model}/")}
    assert seen >= {FIRST, SECOND, INDEX, "config.json", "tokenizer.json"}
    warm, opened = machine.opened("resolve", "org/name")
    assert checked(warm) == "unchanged"
    # whether it was published is asked each time; that is no byte of the model
    assert {name for name in opened if name.startswith(str(model))} <= {str(model / ".vllmrt.json")}


def test_a_change_that_keeps_size_and_time_is_not_looked_for(machine: Machine, model: Path) -> None:
    """The other side of reading no byte: `vllmrt models verify` is for that."""
    assert checked(resolve(machine)) == "it"
    before = (model / FIRST).stat()
    (model / FIRST).write_bytes(b"\xff" * before.st_size)
    os.utime(model / FIRST, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checked(resolve(machine)) == "unchanged"
    os.utime(model / FIRST, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert resolve(machine).code == 11


def _same_time(path: Path, write: Callable[[], object]) -> None:
    before = path.stat()
    write()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda path: os.utime(path / FIRST, ns=(1, (path / FIRST).stat().st_mtime_ns + 1)),
    "older": lambda path: os.utime(path / "config.json", ns=(1, 1)),
    "longer": lambda path: _same_time(
        path / "config.json",
        lambda: (path / "config.json").write_text((path / "config.json").read_text() + " "),
    ),
    "added": lambda path: (path / "added.txt").touch(),
    "added deep down": lambda path: ((path / "a" / "b").mkdir(parents=True), (path / "a" / "b" / "c").touch()),
    "removed": lambda path: (path / "generation_config.json").unlink(),
    "renamed": lambda path: (path / "generation_config.json").rename(path / "generation.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_looked_at_again_once(machine: Machine, model: Path, change: str) -> None:
    assert checked(resolve(machine)) == "it"
    CHANGES[change](model)
    assert [checked(resolve(machine)) for _ in range(2)] == ["it", "unchanged"]


def test_a_change_behind_a_link_to_a_directory_is_seen(machine: Machine) -> None:
    repository = machine.store / "hub" / "models--org--name"
    snapshot = make_model(repository / "snapshots" / ("a" * 40), tokenizer=False)
    tokenizer = make_model(machine.root / "other") / "tokenizer.json"
    (repository / "shared").mkdir()
    shutil.copy(tokenizer, repository / "shared")
    (snapshot / "tokenizer").symlink_to("../../shared")
    assert checked(resolve(machine, "--sources", "hf-cache")) == "it"
    (repository / "shared" / "tokenizer.json").write_text("{")
    assert resolve(machine, "--sources", "hf-cache").code == 11


@pytest.mark.parametrize(
    ("model_id", "change"),
    [
        ("org/name", {"VLLMRT_SAFE_WEIGHTS_ONLY": "1"}),
        ("org/name", {"VLLM_SKIP_TOKENIZER_CHECK": "1"}),
        ("other/name", {}),
        ("org/name@v1", {}),
    ],
)
def test_what_bends_the_checks_makes_them_run_again(
    machine: Machine, model: Path, model_id: str, change: dict[str, str]
) -> None:
    assert model.is_dir()
    assert checked(resolve(machine)) == "it"
    assert [checked(resolve(machine, model=model_id, **change)) for _ in range(2)] == ["it", "unchanged"]


def test_pickles_that_were_accepted_are_refused_when_only_safe_weights_are(machine: Machine, model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert checked(resolve(machine)) == "it"
    refused = resolve(machine, VLLMRT_SAFE_WEIGHTS_ONLY="1")
    assert refused.code == 11
    assert "VLLMRT_SAFE_WEIGHTS_ONLY" in refused.err


def test_a_new_version_of_a_validator_looks_again(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    code = {"acme_guard.py": GUARD.format(check="return ()")}
    assert checked(resolve(machine)) == "it"
    machine.install("acme-guard", "[vllmrt.plugins]\nacme = acme_guard\n", code)
    assert [checked(resolve(machine)) for _ in range(2)] == ["it", "unchanged"]
    (machine.site / "acme_guard-1.2.3.dist-info").rename(machine.site / "acme_guard-1.2.4.dist-info")
    assert [checked(resolve(machine)) for _ in range(2)] == ["it", "unchanged"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[1]"], ids=["empty", "cut", "no text", "another type"])
def test_what_is_known_may_be_damaged(machine: Machine, model: Path, damage: bytes) -> None:
    assert model.is_dir()
    assert checked(resolve(machine)) == "it"
    (known,) = (machine.cache / "manifests").iterdir()
    assert known.stat().st_mode & 0o777 == 0o600
    known.write_bytes(damage)
    assert [checked(resolve(machine)) for _ in range(2)] == ["it", "unchanged"]


def test_a_model_cannot_vouch_for_itself(machine: Machine) -> None:
    """Whoever packs a model could put a manifest into it; only the store's own are worth anything."""
    snapshot = make_model(machine.store / "hub" / "models--org--name" / "snapshots" / ("a" * 40))
    assert checked(resolve(machine, "--sources", "hf-cache")) == "it"
    corrupt(snapshot / FIRST, cut=1)
    (known,) = (machine.cache / "manifests").iterdir()
    forged = json.loads(known.read_text())
    status = (snapshot / FIRST).stat()
    forged["files"][FIRST] = [status.st_size, status.st_mtime_ns]
    (snapshot / ".vllmrt.json").write_text(json.dumps(forged))
    known.unlink()
    assert resolve(machine, "--sources", "hf-cache").code == 11


# -- the lock, other processes, other users -----------------------------------------

HOLDER = """\
import pathlib, sys, time
from vllmrt import locking
with locking.hold(pathlib.Path(sys.argv[1]), timeout=5, waiting=print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(machine: Machine) -> Iterator[int]:
    """A live process that holds the lock of org/name; the value is its number."""
    path = machine.store / ".locks" / f"{identity_hash('org/name')}.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize("timeout", ["0", "1"])
def test_a_lock_that_is_held_is_waited_for_and_its_holder_named(
    machine: Machine, model: Path, holder: int, timeout: str
) -> None:
    assert model.is_dir()
    began = time.monotonic()
    done = resolve(machine, "--json", VLLM_RESOLVE_LOCK_TIMEOUT=timeout)
    assert float(timeout) <= time.monotonic() - began < float(timeout) + 5
    assert done.code == done.json["code"] == 12
    assert f"process {holder} on" in done.json["error"]
    assert f"waited {timeout} s" in done.json["error"]
    assert len(lines_of(done, "lock")) == int(timeout)


def test_a_waiter_is_told_of_a_holder_and_not_of_each_of_its_notes(machine: Machine, model: Path) -> None:
    """Who fetches notes twice a second how far it is, perhaps for hours; another holder is told of at once."""
    assert model.is_dir()
    path = machine.store / ".locks" / f"{identity_hash('org/name')}.lock"
    path.parent.mkdir()

    def sign(pid: int, note: str) -> None:
        text = json.dumps(["host", pid, 1.0, note]).ljust(2048)
        os.pwrite(file.fileno(), text.encode(), 0)

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sign(1, "0 %")
        began = time.monotonic()
        process = machine.start("resolve", "org/name", "--lock-timeout", "60")
        assert process.stderr
        assert "waiting for process 1 on 'host'" in process.stderr.readline()
        for percent in range(1, 5):
            sign(1, f"{percent} %")
            time.sleep(0.6)  # longer than a waiter pauses
        sign(2, "0 %")
        more = list(takewhile(lambda line: "process 2 on 'host'" not in line, process.stderr))
        due = (time.monotonic() - began) // 30
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(more) <= due, more


def test_a_lock_that_is_given_up_is_taken(machine: Machine, model: Path, holder: int) -> None:
    process = machine.start("resolve", "org/name", "--lock-timeout", "30")
    assert process.stderr
    assert f"waiting for process {holder} on" in process.stderr.readline()
    os.kill(holder, signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (0, str(model))


def test_the_lock_is_one_for_each_identity_and_none_for_a_dry_run(machine: Machine, model: Path, holder: int) -> None:
    assert holder
    dry = resolve(machine, "--dry-run", "--lock-timeout", "0")
    other = resolve(machine, "--lock-timeout", "0", model="org/name@v1")
    assert (dry.out.strip(), other.out.strip()) == (str(model), str(model))


def test_a_lock_that_is_a_link_is_refused(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    victim = machine.root / "victim"
    victim.write_text("mine")
    lock = machine.store / ".locks" / f"{identity_hash('org/name')}.lock"
    lock.parent.mkdir()
    lock.symlink_to(victim)
    done = resolve(machine)
    assert done.code == 1
    assert f"{lock} is not a regular file" in done.err
    assert victim.read_text() == "mine"


def test_sixteen_at_once_all_succeed(machine: Machine, model: Path) -> None:
    running = [machine.start("resolve", "org/name") for _ in range(16)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert {(out.strip(), code) for out, _, code in ended} == {(str(model), 0)}
    assert sum("it is whole" in err for _, err, _ in ended) == 1
    assert not list(machine.home.rglob("*.tmp"))


def as_nobody(machine: Machine, uid: int = NOBODY) -> tuple[str, ...]:
    """Return what starts a program as a user who is not root, and skip where that cannot be done."""
    if os.geteuid():
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv to become somebody else than root")
    prefix = (setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--")
    if machine.run("--version", prefix=prefix).code:
        pytest.skip("another user may not run this checkout")
    return prefix


def give(path: Path) -> None:
    """Hand a tree to the user of `as_nobody`."""
    if os.geteuid() == 0:
        for entry in (path, *path.rglob("*")):
            os.chown(entry, NOBODY, NOBODY)


def test_a_store_that_may_only_be_read_gives_its_models(world: Path) -> None:
    machine = Machine(world)
    prefix = as_nobody(machine)
    model = make_model(machine.store / "name")
    (machine.home / "cache").mkdir()
    give(machine.home / "cache")
    machine.store.chmod(0o555)
    for said in ("it", "unchanged"):
        done = machine.run("resolve", "org/name", prefix=prefix)
        assert done.out.strip() == str(model)
        assert checked(done) == said
    assert [entry.name for entry in machine.store.iterdir()] == ["name"]
    machine.store.chmod(0o755)


def test_a_store_that_may_only_be_read_gives_what_a_remote_source_says_is_unchanged(world: Path) -> None:
    machine = Machine(world)
    prefix = as_nobody(machine)
    install(machine.site, world / "origin")
    make_model(world / "origin" / "name", shards=2)
    give(world)
    machine.env["VLLM_MODEL_SOURCES"] = "acme,local"
    assert machine.run("resolve", "org/name", prefix=prefix).code == 0
    machine.store.chmod(0o555)
    done = machine.run("resolve", "org/name", prefix=prefix)
    machine.store.chmod(0o755)
    assert (done.code, checked(done)) == (0, "unchanged"), done.err
    assert lines_of(done, "acme")


def test_without_a_cache_that_can_be_written_resolve_says_so(world: Path) -> None:
    """The env file is what resolve is for."""
    machine = Machine(world)
    prefix = as_nobody(machine)
    make_model(machine.store / "name")
    (machine.home / "cache").mkdir(mode=0o555)
    done = machine.run("resolve", "org/name", "--json", prefix=prefix)
    assert done.code == done.json["code"] == 1
    assert "ermission denied" in done.json["error"]
    assert str(machine.cache) in done.json["error"]
    assert "FLOX_ENV_CACHE" in done.json["hint"]


def test_without_a_cache_that_can_be_written_up_still_serves(world: Path) -> None:
    """What is kept there spares work, and the env file is for other tools."""
    machine = Machine(world)
    prefix = as_nobody(machine)
    model = make_model(machine.store / "name")
    config = machine.root / "config.yaml"
    config.write_text("dtype: auto\n")
    (machine.home / "cache").mkdir(mode=0o555)
    machine.engine.write_text('#!/bin/sh\necho "$2"\n')  # Python itself may lie where only root can run it
    done = machine.run("up", "org/name", "--config", str(config), prefix=prefix)
    assert (done.code, done.out.strip()) == (0, str(model)), done.err
    assert str(machine.cache) in done.err


def test_a_model_that_may_not_be_read_is_refused_with_the_file(world: Path) -> None:
    machine = Machine(world)
    prefix = as_nobody(machine)
    model = make_model(machine.store / "name")
    (machine.home / "cache").mkdir()
    give(machine.home / "cache")
    (model / FIRST).chmod(0o000)
    done = machine.run("resolve", "org/name", prefix=prefix)
    assert done.code == 11
    assert f"{FIRST}: cannot be read: Permission denied" in done.err


@pytest.mark.parametrize("source", ["local", "hf-cache"])
def test_a_store_that_may_not_be_entered_is_no_fault_of_a_plugin(world: Path, source: str) -> None:
    machine = Machine(world)
    prefix = as_nobody(machine)
    machine.store.chmod(0o700)
    done = machine.run("resolve", "org/name", "--sources", source, prefix=prefix)
    assert done.code == 10
    (said,) = lines_of(done, source)
    assert re.search("[Pp]ermission denied", said)
    assert str(machine.store) in said
    assert "DISABLE_PLUGINS" not in done.err


STRANGER = 54321
NO_HOME = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that does not exist")
def test_a_user_without_a_home_is_told_what_to_set(world: Path) -> None:
    """As a pod runs with ``runAsUser`` and an image that does not know the number."""
    machine = Machine(world)
    prefix = as_nobody(machine, STRANGER)
    done = machine.run("resolve", "org/name", "--json", prefix=prefix, **NO_HOME)
    assert done.code == done.json["code"] == 1
    assert "HOME" in f"{done.json['error']} {done.json['hint']}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that does not exist")
def test_a_user_without_a_home_who_has_set_everything_is_served(world: Path) -> None:
    machine = Machine(world)
    prefix = as_nobody(machine, STRANGER)
    model = make_model(machine.store / "name")
    cache = world / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    env = NO_HOME | {"VLLM_MODELS_DIR": str(machine.store), "FLOX_ENV_CACHE": str(cache)}
    done = machine.run("resolve", "org/name", prefix=prefix, **env)
    assert (done.code, done.out.strip()) == (0, str(model)), done.err
