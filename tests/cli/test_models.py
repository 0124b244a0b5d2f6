"""``vllmrt models``: what it prints, what it refuses, and with which status."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import typer
from storekit import contents, publish_model, read_model, stage

from vllmrt.cli.models import app
from vllmrt.resolve import inventory, manifest
from vllmrt.resolve.inventory import model_at
from vllmrt.resolve.store import Store
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., "Done"]

OLD = contents("old")
SIZE = sum(map(len, OLD.values()))


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout; fails where there is more or less than one."""
        return json.loads(self.out)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("VLLM_MODELS_DIR", str(store.root))
    for name in ("VLLM_DRY_RUN", "VLLMRT_DRY_RUN", "VLLMRT_MODELS_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            typer.main.get_command(app).main(args=list(args), prog_name="vllmrt models")
        assert leaving.value.code is None or isinstance(leaving.value.code, int)
        return Done(leaving.value.code or 0, *capsys.readouterr())

    return run


def test_a_store_that_is_not_there_is_empty(run: Run, store: Store):
    assert run("list", "--json").json == {"ok": True, "store": str(store.root), "models": []}
    assert run("verify").code == 0
    assert run("gc", "--json").json == {"ok": True, "dry_run": False, "freed": 0, "items": []}
    assert not store.root.exists()


def test_list(run: Run, store: Store):
    publish_model(store, OLD)
    (store.root / "mine").mkdir()
    (store.root / "mine/file").write_bytes(b"x" * 2000)
    rows = [line.split() for line in run("list").out.splitlines()]
    assert rows[0] == ["identity", "revision", "source", "files", "size", "directory"]
    assert rows[1] == ["-", "-", "yours", "1", "2.0", "kB", "mine"]
    assert rows[2] == ["org/name", "-", "hub", "5", "4.0", "kB", "name"]
    found = run("list", "--json").json["models"]
    assert found[1] == {
        "identity": "org/name",
        "revision": None,
        "source": "hub",
        "files": len(OLD),
        "size": SIZE,
        "directory": "name",
    }


def test_names_cannot_steer_the_terminal(run: Run, store: Store):
    (store.root / "a\x1b[2Jb").mkdir(parents=True)
    (store.root / os.fsdecode(b"bad\xff")).mkdir()
    done = run("list")
    assert "\x1b" not in done.out
    assert r"a\x1b[2Jb" in done.out
    assert {model["directory"] for model in run("list", "--json").json["models"]} == {"a\x1b[2Jb", r"bad\udcff"}


def test_show(run: Run, store: Store):
    target = publish_model(store, OLD)
    done = run("show", "org/name")
    assert "https://hub.example/org/name" in done.out
    assert "sub/3.bin" in done.out
    assert "sha256:" in done.out
    facts = run("show", "name", "--json").json["model"]
    assert facts["path"] == str(target)
    assert facts["manifest"]["config.json"]["size"] == 3
    (store.root / "mine").mkdir()
    assert run("show", "mine", "--json").json["model"]["source"] == "yours"
    assert run("show", "mine").code == 0
    missing = run("show", "nothing")
    assert missing.code == 1
    assert "nothing is called" in missing.err


def test_verify(run: Run, store: Store):
    target = publish_model(store, OLD)
    publish_model(store, OLD, ModelRequest("org/other"))
    (store.root / "mine").mkdir()
    assert run("verify").code == 0
    assert [line.split()[:2] for line in run("verify").out.splitlines()[1:]] == [["name", "whole"], ["other", "whole"]]
    (target / "added.bin").write_text("x")
    assert "added.bin was not published" in run("verify", "name").err
    (target / "sub/1.bin").write_bytes(b"y" * 1000)
    (target / "config.json").unlink()
    done = run("verify")
    assert done.code == 14
    assert "sub/1.bin: sha256 is" in done.err
    assert "config.json: is missing" in done.err
    assert "DAMAGED" in done.out
    remedy = "vllmrt models rm name; vllmrt resolve org/name, or vllmrt up, then fetches it anew"
    assert done.err.count(remedy) == 1
    answer = run("verify", "org/name", "--json")
    assert answer.code == 14
    assert answer.json["ok"] is False
    assert answer.json["code"] == 14
    assert [fault["file"] for fault in answer.json["models"][0]["faults"]] == ["config.json", "sub/1.bin"]
    assert [model["hint"] for model in answer.json["models"]] == [remedy]
    assert run("verify", "org/other", "--json").json["models"][0]["hint"] is None
    assert run("verify", "org/other").code == 0
    assert run("verify", "mine").code == 1


def test_a_model_that_is_removed_while_others_are_read_is_no_fault(store: Store):
    """The first model has more faults than a pipe holds, so the second is not read before they are."""
    target, other = publish_model(store, OLD), publish_model(store, OLD, ModelRequest("org/other"))
    known = json.loads((target / manifest.NAME).read_text())
    known["files"] |= {f"{'x' * 80}-{number}": [1, 0, "sha256:00"] for number in range(2000)}
    (target / manifest.NAME).write_text(json.dumps(known))
    argv = [sys.executable, "-c", "from vllmrt.cli.models import app; app()", "verify", "--json"]
    env = os.environ | {"VLLM_MODELS_DIR": str(store.root)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "is missing" in process.stderr.readline()
        inventory.remove(store, model_at(other))
        out, err = process.communicate(timeout=60)
    assert err.splitlines()[-1].split(maxsplit=1) == ["other", "was removed while it was read"]
    assert [model["directory"] for model in json.loads(out)["models"]] == ["name"]


def test_rm(run: Run, store: Store):
    target = publish_model(store, OLD)
    assert "would be removed" in run("rm", "name", "--dry-run").err
    assert read_model(target) == OLD
    (store.root / "mine").mkdir()
    assert run("rm", "mine").code == 1
    assert (store.root / "mine").exists()
    done = run("rm", "org/name", "--json")
    assert done.json == {"ok": True, "path": str(target), "bytes": SIZE, "dry_run": False}
    assert not target.exists()
    assert run("rm", "name").code == 1


def test_the_old_switch_for_a_dry_run_holds_too(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch):
    target = publish_model(store, OLD)
    monkeypatch.setenv("VLLM_DRY_RUN", "1")
    assert run("rm", "name").code == 0
    assert read_model(target) == OLD


def test_rm_refuses_what_is_open(run: Run, store: Store):
    target = publish_model(store, OLD)
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, "serve", str(target)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        for args in (("rm", "name"), ("rm", "name", "--dry-run")):
            done = run(*args)
            assert done.code == 1
            assert f"open in process {process.pid}" in done.err
        process.kill()
    assert read_model(target) == OLD


def test_gc(run: Run, store: Store):
    publish_model(store, OLD)
    for name in ("one", "two"):
        stage(store, {"big": b"x" * 100_000}, ModelRequest(f"org/{name}"))
    kept = run("gc", "--json").json
    assert [item["action"] for item in kept["items"]] == ["keep", "keep"]
    would = run("gc", "--keep-staging", "0", "--keep", "org/one", "--dry-run", "--json").json
    assert would["dry_run"] is True
    assert [item["action"] for item in would["items"]] == ["keep", "drop"]
    assert would["freed"] >= 100_000
    assert len(store.stagings()) == 2
    done = run("gc", "--keep-staging", "0", "--keep", "org/one")
    assert done.code == 0
    assert "freed" in done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["action", "keep", "drop"]
    assert store.stagings() == [store.staging_path("org/one")]
    assert run("gc", "--keep-staging", "-1").code == 2  # click's; 64 by way of the root command


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS], ids=["NFS without lockd", "Lustre without flock"])
def test_without_locks_nothing_is_removed_and_the_remedy_named(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, code: int
):
    """A download into the same store may be going on, and cannot be seen."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    target = publish_model(store, OLD)
    stage(store, OLD, ModelRequest("org/other"))
    for identity in ("org/name", "org/other"):  # the file is there: a resolve tries to lock it
        store.lock_path(identity).parent.mkdir(exist_ok=True)
        store.lock_path(identity).touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    done = run("rm", "name")
    assert done.code == 1
    assert f"the file system of the store {store.root} has no locks: {os.strerror(code)}" in done.err
    assert "see that no other vllmrt runs, then remove the directory by hand" in done.err
    assert read_model(target) == OLD
    for args in (("--dry-run",), ()):
        done = run("gc", "--keep-staging", "0", "--json", *args)
        assert done.code == 0
        (item,) = done.json["items"]
        assert item["action"] == "keep"
        reason = f"cannot be locked ({os.strerror(code)}): remove it by hand when no other vllmrt runs"
        assert item["reason"] == reason
    store.lock_path("org/other").unlink()
    done = run("gc", "--keep-staging", "0")
    assert done.code == 1
    assert "by hand" in done.err
    assert len(store.stagings()) == 1


def test_a_staging_directory_that_is_a_link_stops_gc(run: Run, store: Store, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    store.root.mkdir()
    (store.root / ".staging").symlink_to(tmp_path / "elsewhere")
    done = run("gc")
    assert done.code == 1
    assert "link" in done.err


def test_a_hostile_manifest_harms_no_command(run: Run, store: Store):
    target = publish_model(store, OLD)
    known = json.loads((target / manifest.NAME).read_text())
    known |= {"location": "\x1b[2J", "revision": "\x1b[2J" * 9, "identity": "\x1b]0;x\x07/y", "guards": ["\x1b[2J"]}
    known["files"] = {"\x1b[2J": [1, 0, "\x1b[2J:0", ""]}
    (target / manifest.NAME).write_text(json.dumps(known))
    for args in (("list",), ("show", "name"), ("verify", "name"), ("gc",), ("rm", "name", "--dry-run")):
        done = run(*args)
        assert done.code in {0, 14}
        assert "\x1b" not in done.out + done.err
        run(*args, "--json").json  # noqa: B018 - it is one object
