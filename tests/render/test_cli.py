"""``vllmrt render`` on the command line: what is printed, what is written, and what never is."""

from __future__ import annotations

import filecmp
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cli.test_machine import VLLMRT, Machine
from remoteplugin import asked, install

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden")
TARGETS = [("k8s", "--model-size", "15"), ("flox",), ("systemd",), ("quadlet",)]
HELD = ["flox/.flox/env/manifest.toml", "k8s/deployment.yaml", "k8s/multi-node/leaderworkerset.yaml"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    del machine.env["VLLM_MODEL_SOURCES"], machine.env["VLLMRT_PREFLIGHT"]
    return machine


def test_the_examples_are_what_it_prints(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "render-examples", tmp_path], check=True)
    fresh = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert set(HELD) <= set(fresh)
    _, differ, missing = filecmp.cmpfiles(tmp_path, ROOT / "examples", fresh, shallow=False)
    assert (differ, missing) == ([], []), "make examples"


def test_no_other_manifest_lies_among_the_examples(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "render-examples", tmp_path], check=True)
    for folder in ("k8s", "k8s/multi-node"):
        kept, made = ({file.name for file in (root / folder).glob("*.yaml")} for root in (ROOT / "examples", tmp_path))
        assert kept == made


SETTINGS = {
    "VLLM_PORT": "8001",
    "VLLM_API_KEY": "golden-canary",
    "VLLM_MAX_MODEL_LEN": "8192",
    "VLLM_SERVED_MODEL_NAME": "a model of 100 %",
    "VLLMRT_VLLM": "/opt/vllm/bin/vllm",
}


@pytest.mark.parametrize(("target", "name"), [("systemd", "vllm.service"), ("quadlet", "vllm.container")])
def test_golden_units(target: str, name: str, machine: Machine) -> None:
    args = ("render", target, "org/name@v1", "--", "--chat-template", "{{ $x }}\n100%")
    printed = machine.run(*args, **SETTINGS).out.replace(VLLMRT, "/opt/vllmrt/bin/vllmrt")
    assert printed == (GOLDEN / name).read_text()


# secrets

CANARIES = {
    "VLLM_API_KEY": "canary-key-0123",
    "HF_TOKEN": "canary-token-0123",
    "VLLMRT_MODEL_URL": "s3://canary-user:canary-pass@bucket/{name}",
    "HF_ENDPOINT": "https://canary-user2:canary-pass2@hub.example/x?sig=canary-signature",
    "R2_ENDPOINT_URL": "https://canary-user3@r2.example",
    "VLLM_SERVED_MODEL_NAME": "named canary-key-0123",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0123",
    "R2_BUCKET": "bucket",
}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[0])
def test_no_secret_is_printed(target: tuple[str, ...], form: tuple[str, ...], machine: Machine) -> None:
    done = machine.run("render", *target, "org/name", *form, **CANARIES)
    assert done.code == 0, done.err
    assert "canary" not in done.out + done.err
    if target[0] != "flox":  # what is secret stays in the environment from which Flox is activated
        assert "hf-token" in done.out or "EnvironmentFile=/etc" in done.out


def test_no_secret_of_the_settings_file_either(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('api_key = "canary-1234"\nhf_endpoint = "https://canary@x"\n')
    for target in TARGETS:
        done = machine.run("render", *target, "org/name", VLLMRT_SETTINGS_FILE=str(file))
        assert done.code == 0
        assert "canary" not in done.out + done.err


@pytest.mark.parametrize(
    "extra", [("--hf-token", "canary"), ("--x", "http://canary@y"), ("--api-key", "canary")], ids=" ".join
)
def test_a_secret_argument_is_refused(extra: tuple[str, ...], machine: Machine) -> None:
    done = machine.run("render", "systemd", "org/name", "--", *extra)
    assert done.code in {1, 20}
    assert done.out == ""
    assert "canary" not in done.err


# the size of the model


def test_the_sources_are_asked_for_the_size(machine: Machine, tmp_path: Path) -> None:
    install(machine.site, tmp_path / "origin")
    model = make_model(tmp_path / "origin" / "llama")
    grow(model)
    done = machine.run("render", "k8s", "acme/llama", VLLM_MODEL_SOURCES="local,acme")
    assert tries(done.out) == 33
    assert asked(tmp_path / "origin") == []
    assert list(machine.store.iterdir()) == []


def test_a_model_in_place_has_a_size(machine: Machine) -> None:
    model = make_model(machine.store / "llama")
    grow(model)
    assert tries(machine.run("render", "k8s", "acme/llama", VLLM_MODEL_SOURCES="local").out) == 33


def test_a_model_that_nobody_has_is_taken_for_one_of_25_gb(machine: Machine) -> None:
    done = machine.run("render", "k8s", "acme/llama", VLLM_MODEL_SOURCES="local")
    assert tries(done.out) == 80
    assert "--model-size says it" in done.err
    assert done.code == 0


def grow(model: Path) -> None:
    """Make a model of one GB of it, most of which is a hole."""
    with next(model.glob("*.safetensors")).open("r+b") as file:
        file.truncate(1_000_000_000)


def tries(text: str) -> int:
    """How often a server is asked whether it has started: every 10 s, for 300 s and 1 s for 50 MB."""
    server = next(one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment")
    return server["spec"]["template"]["spec"]["containers"][0]["startupProbe"]["failureThreshold"]


# where it goes


def test_the_manifests_are_one_stream(machine: Machine) -> None:
    done = machine.run("render", "k8s", "org/name", "--model-size", "1", VLLMRT_VLLM=None)
    kinds = [one["kind"] for one in yaml.safe_load_all(done.out)]
    assert kinds == ["Namespace", "PersistentVolumeClaim", "Deployment", "Service"]
    assert done.err == ""


def test_files_are_written_where_the_user_says(machine: Machine, tmp_path: Path) -> None:
    done = machine.run(
        "render", "k8s", "org/name", "--model-size", "1", "--output", "made/here", "--log-format", "json"
    )
    files = [tmp_path / "made" / "here" / name for name in ("namespace", "pvc", "deployment", "service")]
    written = [one["path"] for one in done.events if one["event"] == "render.file"]
    assert written == [f"made/here/{file.name}.yaml" for file in files]
    assert all(yaml.safe_load(file.with_suffix(".yaml").read_text())["kind"] for file in files)
    assert done.out == ""


def test_json_has_the_same_texts(machine: Machine) -> None:
    args = ("render", "k8s", "org/name", "--model-size", "1")
    told = machine.run(*args, "--json").json
    assert told["ok"] is True
    assert "---\n".join(told["files"].values()) == machine.run(*args).out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("k8s", "--nodes", "3"), "cannot be divided among 3 nodes"),
        (("k8s", "--image", "a b"), "no image is called"),
        (("quadlet", "--image", "a\\"), "no image is called"),  # it would take the next line with it
        (("k8s", "--models-dir", "/tmp"), "cannot be mounted"),
        (("quadlet", "--host", "example.org"), "publishes no port"),
        (("flox", "--output", "/proc/nothing"), "/proc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_rendered_is_1_and_nothing_is_printed(
    args: tuple[str, ...], message: str, machine: Machine
) -> None:
    size = ("--model-size", "1") if args[0] == "k8s" else ()
    done = machine.run("render", args[0], "org/name", *args[1:], *size)
    assert (done.code, done.out) == (1, "")
    assert message in done.err


@pytest.mark.parametrize(("size", "code"), [("nan", 1), ("inf", 1), ("-1", 64)])
def test_a_size_that_is_none(machine: Machine, size: str, code: int) -> None:
    done = machine.run("render", "k8s", "org/name", "--model-size", size)
    assert (done.code, done.out) == (code, ""), done.err
    assert "--model-size" in done.err


def test_what_is_of_this_machine_is_named(machine: Machine) -> None:
    done = machine.run("render", "quadlet", "org/name", VLLM_CONFIG_FILE="/etc/engine.yaml")
    assert "left out" in done.err
    assert "VLLM_CONFIG_FILE, VLLMRT_VLLM" in done.err or "VLLMRT_VLLM, VLLM_CONFIG_FILE" in done.err
    assert "engine.yaml" not in done.out


def test_a_service_needs_no_engine_to_be_rendered(machine: Machine) -> None:
    done = machine.run("render", "systemd", "org/name", VLLMRT_VLLM=None)
    assert done.code == 0
    assert "no vllm beside" in done.err


def test_an_engine_on_path_is_named_to_the_service(machine: Machine) -> None:
    done = machine.run("render", "systemd", "org/name", VLLMRT_VLLM=None, PATH=str(machine.engine.parent))
    assert f"VLLMRT_VLLM={machine.engine}\n" in done.out


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[0])
def test_a_dry_run_of_the_shell_is_not_that_of_the_server(target: tuple[str, ...], machine: Machine) -> None:
    done = machine.run("render", *target, "org/name", VLLM_DRY_RUN="1")
    assert done.out
    assert not re.search("DRY_RUN", done.out)


def lines() -> Iterator[str]:
    yield from json.loads((ROOT / "examples" / "flox" / ".flox" / "env.json").read_text())


def test_the_flox_environment_has_a_name() -> None:
    assert set(lines()) == {"name", "version"}
