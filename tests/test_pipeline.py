"""From a name to a server, through the command line: up, and resolve followed by serve."""

from __future__ import annotations

import json
import os
import shlex
import stat
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Done, Machine

from vllmrt.identity import identity_hash
from vllmrt.testing import fingerprint, make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMIT = "a" * 40


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def model(machine: Machine) -> Path:
    return make_model(machine.store / "name")


@pytest.fixture
def env_file(machine: Machine, model: Path) -> Path:
    """The env file of a model that was resolved."""
    assert model.is_dir()
    return machine.cache / env_file_of(machine.run("resolve", "org/name"))


def env_file_of(done: Done) -> str:
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("env file")]
    return line.split()[-1]


def sourced(path: Path) -> dict[str, str]:
    """Read an env file as the old scripts' shell would."""
    lines = path.read_text().splitlines()
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert {word[0] for word in words} == {"export"}
    return dict(word[1].split("=", 1) for word in words)


def served(done: Done) -> dict[str, Any]:
    """Return what the engine said that it was given."""
    assert done.code == 0, done.err
    return json.loads(done.out)


# -- the env file ------------------------------------------------------------------


def test_env_file_of_a_local_model(machine: Machine, model: Path) -> None:
    done = machine.run("resolve", "org/name", "--json")
    path = machine.cache / f"vllm-model.org-name.{identity_hash('org/name')}.env"
    assert done.json["env_file"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sourced(path) == {
        "VLLM_MODEL": "name",
        "VLLM_MODEL_ID": "org/name",
        "VLLM_MODEL_PATH": str(model),
        "_VLLM_RESOLVED_MODEL": str(model),
        "_VLLM_RESOLVED_VIA": "local",
        "_VLLM_RESOLVED_PATH": str(model),
        "_VLLM_MODEL_IDENTITY": "org/name",
    }


def test_env_file_of_a_cached_model(machine: Machine) -> None:
    snapshot = make_model(machine.store / "hub" / "models--org--name" / "snapshots" / COMMIT)
    done = machine.run("resolve", "org/name", "--sources", "hf-cache", "--json")
    assert done.json["revision"] == COMMIT
    assert sourced(machine.cache / done.json["env_file"]) == {
        "HF_HOME": str(machine.store),
        "VLLM_MODEL": "name",
        "VLLM_MODEL_ID": "org/name",
        "_VLLM_RESOLVED_MODEL": "org/name",
        "_VLLM_RESOLVED_VIA": "hf-cache",
        "_VLLM_RESOLVED_PATH": str(snapshot),
        "_VLLM_MODEL_IDENTITY": "org/name",
    }


@pytest.mark.parametrize("identity", ["org/name", "org/name@v1", "org/name@refs/pr/3"])
def test_each_identity_has_an_env_file_of_its_own(machine: Machine, model: Path, identity: str) -> None:
    assert model.is_dir()
    path = machine.run("resolve", identity, "--json").json["env_file"]
    assert path == str(machine.cache / f"vllm-model.org-name.{identity_hash(identity)}.env")


def test_the_env_file_may_be_put_elsewhere(machine: Machine, model: Path) -> None:
    path = machine.root / "deep" / "down" / "my.env"
    assert machine.run("resolve", "org/name", VLLM_MODEL_ENV_FILE=str(path)).code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sourced(path)["VLLM_MODEL_PATH"] == str(model)
    assert served(machine.run("serve", VLLM_MODEL_ENV_FILE=str(path)))["argv"][2] == str(model)


def test_a_link_at_its_place_is_replaced_and_not_followed(machine: Machine, env_file: Path) -> None:
    victim = machine.root / "victim"
    victim.write_text("mine")
    env_file.unlink()
    env_file.symlink_to(victim)
    assert machine.run("resolve", "org/name").code == 0
    assert not env_file.is_symlink()
    assert victim.read_text() == "mine"


def test_an_env_file_that_cannot_be_written_is_named(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    done = machine.run("resolve", "org/name", "--env-file", str(machine.root), "--json")
    assert done.code == done.json["code"] == 1
    assert str(machine.root) in done.json["error"]


@pytest.mark.parametrize("name", ["a b", "it's", 'q"q', "$HOME", "`id`", "a;b", "#x", "é"])
def test_any_directory_survives_the_env_file(machine: Machine, name: str) -> None:
    store = machine.root / name
    model = make_model(store / "name")
    done = machine.run("resolve", "org/name", VLLM_MODELS_DIR=str(store))
    assert sourced(machine.cache / env_file_of(done))["VLLM_MODEL_PATH"] == str(model)
    assert served(machine.run("serve", "org/name"))["argv"][2] == str(model)


# -- serve ----------------------------------------------------------------------------


def test_serve_takes_what_resolve_left(machine: Machine, model: Path, env_file: Path) -> None:
    assert env_file.is_file()
    got = served(machine.run("serve", "org/name", "--port", "9000", "--", "--max-num-seqs", "4"))
    assert got["argv"] == [
        str(machine.engine),
        "serve",
        str(model),
        *("--config", str(machine.cache / "vllm-config.yaml")),
        *("--host", "127.0.0.1"),
        *("--port", "9000"),
        *("--tensor-parallel-size", "1"),
        *("--pipeline-parallel-size", "1"),
        *("--kv-cache-dtype", "auto"),
        *("--max-model-len", "128"),
        *("--max-num-batched-tokens", "4096"),
        *("--served-model-name", "org/name"),
        *("--max-num-seqs", "4"),
    ]
    assert got["environ"]["HF_HUB_OFFLINE"] == "1"


def test_serve_of_a_cached_model_gets_the_directory_that_was_checked(machine: Machine) -> None:
    snapshot = make_model(machine.store / "hub" / "models--org--name" / "snapshots" / COMMIT)
    machine.run("resolve", "org/name", "--sources", "hf-cache")
    got = served(machine.run("serve", "org/name"))
    assert got["argv"][2] == str(snapshot)
    assert got["environ"]["HF_HOME"] == str(machine.store)


def test_serve_without_resolve_says_what_comes_first(machine: Machine) -> None:
    done = machine.run("serve", "org/name")
    assert (done.code, done.out) == (20, "")
    assert "does not exist" in done.err
    assert "run vllmrt resolve, or vllm-resolve-model, first" in done.err


@pytest.mark.parametrize("model_id", ["other/name", "org/name@v1"])
def test_serve_refuses_the_env_file_of_another_identity(machine: Machine, env_file: Path, model_id: str) -> None:
    done = machine.run("serve", model_id, VLLM_MODEL_ENV_FILE=str(env_file))
    assert (done.code, done.out) == (20, "")
    assert f"is of org/name, not of {model_id}" in done.err


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def _append(line: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(f"{path.read_text()}{line}\n")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "a link": _link,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "writable by everybody": lambda path: path.chmod(0o666),
    "interpolation": _append('export A="$HOME"'),
    "braces": _append("export A=${HOME}"),
    "command substitution": _append('export A="$(id)"'),
    "backticks": _append("export A=`id`"),
    "two lines": _append("export A='one\ntwo'"),
    "junk behind a value": _append("export A='x' ; id"),
    "junk behind a name": _append("export A='x' B='y'"),
    "a command": _append("id"),
    "what loads code": _append("export LD_PRELOAD='/tmp/x.so'"),
    "a relative directory": lambda path: path.write_text(path.read_text().replace("PATH='/", "PATH='./")),
    "a directory that is gone": lambda path: path.write_text(path.read_text().replace("/models/", "/gone/")),
    "nothing resolved": lambda path: path.write_text("export VLLM_MODEL_ID='org/name'\n"),
    "empty": lambda path: path.write_text(""),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "NUL": _append("export A='\0'"),
}


@pytest.mark.parametrize("fault", TAMPERED)
def test_an_env_file_that_was_tampered_with_is_refused(machine: Machine, env_file: Path, fault: str) -> None:
    TAMPERED[fault](env_file)
    done = machine.run("serve", "org/name", "--json")
    assert done.code == done.json["code"] == 20
    assert str(env_file) in done.json["error"]


def test_a_trusted_env_file_is_sourced(machine: Machine, env_file: Path) -> None:
    env_file.write_text(env_file.read_text() + 'export COMPUTED="$(echo $((6 * 7)))"\n')
    assert machine.run("serve", "org/name").code == 20
    got = served(machine.run("serve", "org/name", VLLM_ENV_FILE_TRUSTED="true"))
    assert got["environ"]["COMPUTED"] == "42"


@pytest.mark.parametrize("trusted", ["false", "true"])
def test_an_env_file_of_the_old_scripts_is_served_local(machine: Machine, model: Path, trusted: str) -> None:
    path = machine.cache / f"vllm-model.org-name.{identity_hash('org/name')}.env"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# generated by vllm-resolve-model\n"
        "export VLLM_MODEL='name'\n"
        "export VLLM_MODEL_ID='org/name'\n"
        f"export VLLM_MODEL_PATH='{model}'\n"
        f"export _VLLM_RESOLVED_MODEL='{model}'\n"
        "export _VLLM_RESOLVED_VIA='local'\n"
    )
    assert served(machine.run("serve", "org/name", VLLM_ENV_FILE_TRUSTED=trusted))["argv"][2] == str(model)


def test_an_env_file_of_the_old_scripts_is_served_cached(machine: Machine) -> None:
    """It names no directory, only the home whose snapshot the old vllm-serve left to vLLM to find."""
    snapshot = make_model(machine.store / "hub" / "models--org--name" / "snapshots" / COMMIT)
    path = machine.root / "old.env"
    path.write_text(
        "# generated by vllm-resolve-model\n"
        f"export HF_HOME='{machine.store}'\n"
        "export VLLM_MODEL='name'\n"
        "export VLLM_MODEL_ID='org/name'\n"
        "export _VLLM_RESOLVED_MODEL='org/name'\n"
        "export _VLLM_RESOLVED_VIA='hf-cache'\n"
    )
    assert served(machine.run("serve", "org/name", VLLM_MODEL_ENV_FILE=str(path)))["argv"][2] == str(snapshot)


# -- up ----------------------------------------------------------------------------------


def test_up_serves_the_directory_that_was_checked(machine: Machine, model: Path) -> None:
    got = served(machine.run("up", "org/name"))
    assert got["argv"][:3] == [str(machine.engine), "serve", str(model)]
    assert (machine.cache / f"vllm-model.org-name.{identity_hash('org/name')}.env").is_file()


def test_up_without_a_model_serves_the_one_that_comes_with_vllmrt_and_says_so(machine: Machine) -> None:
    done = machine.run("up", "--dry-run", "--json", VLLM_MODEL_SOURCES=None)
    assert (done.code, done.json["model"], done.json["source"]) == (0, "vllmrt/tiny", "package")
    assert done.err.splitlines()[0].startswith("model     none is named, so this is vllmrt/tiny")


@pytest.mark.parametrize("args", [["org/name"], ["org/name", "--", "--max-num-seqs", "4"], ["org/name", "--print-cmd"]])
def test_a_dry_run_starts_and_writes_nothing(machine: Machine, model: Path, args: list[str]) -> None:
    assert model.is_dir()
    before = fingerprint(machine.root)
    extra = args.index("--") if "--" in args else len(args)
    done = machine.run("up", *args[:extra], "--dry-run", *args[extra:])
    assert (done.code, done.out) == (0, "")
    assert f"{machine.engine} serve {model} --config" in done.err
    assert fingerprint(machine.root) == before


@pytest.mark.parametrize(
    "args", [["up", "--dry-run"], ["up", "--dry-run", "--json"], ["plan"], ["plan", "--json"]], ids=" ".join
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_among_the_extra_arguments_is_not_shown(
    machine: Machine, model: Path, args: list[str], form: str
) -> None:
    command, *options = args
    done = machine.run(command, "org/name", *options, "--log-format", form, "--", "--hf-token", "canary-0123")
    assert done.code == 0, done.err
    assert "********" in done.out + done.err
    assert "canary" not in done.out + done.err
    assert model.is_dir()
    told = machine.run("up", "org/name", "--dry-run", "--print-cmd", "--", "--hf-token", "canary-0123")
    assert "--hf-token canary-0123" in told.err


def test_a_dry_run_of_resolve_writes_nothing(machine: Machine, model: Path) -> None:
    before = fingerprint(machine.root)
    done = machine.run("resolve", "org/name", "--json", VLLM_DRY_RUN="1")
    assert (done.json["path"], done.json["env_file"]) == (str(model), None)
    assert fingerprint(machine.root) == before


def test_a_dry_run_of_serve_writes_nothing(machine: Machine, env_file: Path) -> None:
    assert env_file.is_file()
    before = fingerprint(machine.root)
    done = machine.run("serve", "org/name", "--dry-run")
    assert (done.code, done.out) == (0, "")
    assert fingerprint(machine.root) == before


def test_a_dry_run_says_what_would_be_refused(machine: Machine) -> None:
    assert machine.run("up", "org/name", "--dry-run").code == 10
    assert machine.run("up", "org/name", "--dry-run", "--vllm", "/nowhere/vllm").code == 20


def test_without_an_engine_nothing_is_resolved(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    before = fingerprint(machine.home)
    done = machine.run("up", "org/name", VLLMRT_VLLM=None)
    assert (done.code, done.out) == (20, "")
    assert "no vllm beside" in done.err
    assert "pip install vllm" in done.err
    assert fingerprint(machine.home) == before


def test_the_engine_is_found_on_path(machine: Machine, model: Path) -> None:
    (machine.root / "bin" / "vllm").symlink_to(machine.engine)
    got = served(machine.run("up", "org/name", VLLMRT_VLLM=None))
    assert got["argv"][:3] == [str(machine.root / "bin" / "vllm"), "serve", str(model)]


def test_a_model_that_is_refused_starts_nothing(machine: Machine, model: Path) -> None:
    (model / "config.json").unlink()
    done = machine.run("up", "org/name", "--json")
    assert done.code == done.json["code"] == 11
    assert not list(machine.cache.rglob("*.env"))


def test_the_environment_of_the_engine_is_clean(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    given = {
        "VLLM_PORT": "9000",
        "VLLM_MODEL_ORG": "org",
        "VLLM_MAX_MODEL_LEN": "64",
        "VLLMRT_PLUGIN_TIMEOUT": "9",
        "VLLM_API_KEY": "key-1f8a",
        "VLLM_SERVICE_HOST": "10.0.0.1",
        "VLLM_PORT_8000_TCP_ADDR": "10.0.0.1",
        "VLLM_ATTENTION_BACKEND": "TORCH_SDPA",
        "ODD": "a=b c",
    }
    got = served(machine.run("up", "org/name", **given))
    kept = {name: value for name, value in got["environ"].items() if "VLLM" in name}
    assert kept == {
        "VLLM_API_KEY": "key-1f8a",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ATTENTION_BACKEND": "TORCH_SDPA",
    }
    assert got["environ"]["ODD"] == "a=b c"
    assert got["environ"]["HF_HUB_OFFLINE"] == "1"
    assert "9000" in got["argv"]
    assert "key-1f8a" not in " ".join(got["argv"])


def test_an_extra_argument_that_this_engine_lacks_is_refused(machine: Machine, model: Path) -> None:
    assert model.is_dir()
    done = machine.run("up", "org/name", "--", "--no-such-flag")
    assert done.code == 20
    assert "--no-such-flag" in done.err
    assert served(machine.run("up", "org/name", "--", "--enforce-eager"))["argv"][-1] == "--enforce-eager"
