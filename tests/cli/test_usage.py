"""What a command line may say, and what the commands that only look print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Machine

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    *("up", "status", "logs", "down", "plan", "preflight", "resolve", "serve", "smoke", "doctor", "render", "monitor"),
    *("models", "plugins", "config"),
]
BOOM = "raise SystemExit('imported')\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Usage: vllmrt"),
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["resolve", "--frobnicate"], "--frobnicate"),
        (["resolve", "org/name", "other/name"], "other/name"),
        (["resolve", "--revision"], "--revision"),
        (["resolve", "--port", "9000"], "--port"),
        (["resolve", "org/name", "--", "x"], "passes nothing on after --"),
        (["plugins", "--", "x"], "passes nothing on after --"),
        (["resolve", "org/name", "--log-format", "xml"], "text or json"),
        (["config"], "show"),
        (["plugins", "info"], "name"),
    ],
)
def test_a_command_line_that_cannot_be_understood_ends_with_64(machine: Machine, args: list[str], words: str) -> None:
    done = machine.run(*args)
    assert done.code == 64
    assert words.lower() in (done.out + done.err).lower()
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        *([command, "--help"] for command in COMMANDS),
        ["plugins", "info", "--help"],
        ["plugins", "new", "--help"],
        ["plugins", "check", "--help"],
    ],
)
def test_help_is_on_stdout(machine: Machine, args: list[str]) -> None:
    done = machine.run(*args)
    assert (done.code, done.err) == (0, "")
    assert "Usage: vllmrt" in done.out


def test_help_lists_the_commands_in_the_order_of_a_first_day(machine: Machine) -> None:
    out = machine.run("--help").out
    places = [out.index(f" {command} ") for command in COMMANDS]
    assert places == sorted(places)


def test_version(machine: Machine) -> None:
    from importlib.metadata import version

    done = machine.run("--version")
    assert done == (0, f"vllmrt {version('vllmrt')}\n", "")


@pytest.mark.parametrize(
    ("words", "cword", "expected"),
    [
        ("vllmrt ", "1", COMMANDS),
        ("vllmrt res", "1", ["resolve"]),
        ("vllmrt plugins ", "2", ["info", "check", "new"]),
        ("vllmrt config ", "2", ["show"]),
        ("vllmrt up --por", "2", ["--port"]),
    ],
)
def test_the_shell_completes(machine: Machine, words: str, cword: str, expected: list[str]) -> None:
    done = machine.run(_VLLMRT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=cword)
    assert (done.code, done.out.split(), done.err) == (0, expected, "")


# -- settings ------------------------------------------------------------------------


def shown(machine: Machine, *args: str, **env: str | None) -> dict[str, dict[str, Any]]:
    done = machine.run("config", "show", "--json", *args, **env)
    assert done.code == 0, done.err
    return {row["setting"]: row for row in done.json["settings"]}


def test_config_show_says_where_each_value_comes_from(machine: Machine) -> None:
    file = machine.home / "config" / "vllmrt" / "settings.toml"
    file.parent.mkdir(parents=True)
    file.write_text('port = 9000\nhost = "10.0.0.1"\n')
    rows = shown(machine)
    assert (rows["port"]["value"], rows["port"]["origin"]) == (9000, f"port in {file}")
    assert (rows["max_model_len"]["value"], rows["max_model_len"]["origin"]) == (4096, "default")
    assert rows["port"]["variables"] == ["VLLMRT_PORT", "VLLM_PORT"]
    order = [({"VLLM_PORT": "9001"}, [], "VLLM_PORT"), ({"VLLMRT_PORT": "9002"}, [], "VLLMRT_PORT")]
    env: dict[str, str | None] = {}
    for more, args, origin in [*order, ({}, ["--port", "9003"], "--port")]:
        env |= more
        row = shown(machine, *args, **env)["port"]
        assert row["origin"] == origin
    assert row["value"] == 9003


def test_config_show_masks_secrets_and_only_those(machine: Machine) -> None:
    rows = shown(machine, VLLM_API_KEY="key-77ab", HF_TOKEN="token-77ab")
    assert {rows["api_key"]["value"], rows["hf_token"]["value"]} == {"********"}
    assert [name for name, row in rows.items() if row["value"] == "********"] == ["hf_token", "api_key"]
    assert shown(machine)["api_key"]["value"] is None


@pytest.mark.parametrize("args", [[], ["--json"], ["--port", "0"]])
def test_config_show_masks_users_in_urls(machine: Machine, args: list[str]) -> None:
    url = "https://us3r:s3cr3t@store.example"
    done = machine.run("config", "show", *args, HF_ENDPOINT=url, R2_ENDPOINT_URL=url, VLLMRT_HF_ENDPOINTS=url)
    assert not any(word in done.out + done.err for word in ("us3r", "s3cr3t"))
    assert done.out.count("https://********@store.example") == (0 if args == ["--port", "0"] else 2)


def test_config_show_lines_up(machine: Machine) -> None:
    lines = machine.run("config", "show").out.splitlines()
    column = lines[0].index("value")
    assert all(line[column - 1] == " " != line[column] for line in lines)
    assert len(lines) > 40


@pytest.mark.parametrize(
    ("env", "args", "words"),
    [
        ({"VLLM_PORT": "70000"}, [], ["VLLM_PORT='70000' is not an integer from 1 to 65535"]),
        ({}, ["--port", "http"], ["--port='http' is not an integer from 1 to 65535"]),
        ({"VLLM_PORT": "tcp://10.0.0.1:8000"}, [], ["VLLM_PORT=", "enableServiceLinks: false"]),
        (
            {"VLLM_PORT": "0", "VLLM_MAX_MODEL_LEN": "-1", "VLLM_SKIP_TOKENIZER_CHECK": "true"},
            [],
            ["VLLM_PORT='0'", "VLLM_MAX_MODEL_LEN='-1'", "VLLM_SKIP_TOKENIZER_CHECK='true' is not 0 or 1"],
        ),
        ({"VLLMRT_SETTINGS_FILE": "/nowhere/s.toml"}, [], ["settings file /nowhere/s.toml does not exist"]),
    ],
)
def test_bad_values_are_all_named_with_their_bounds(
    machine: Machine, env: dict[str, str], args: list[str], words: list[str]
) -> None:
    done = machine.run("up", "org/name", *args, "--json", **env)
    assert done.code == done.json["code"] == 1
    assert done.json["class"] == "ConfigError"
    for word in words:
        assert word in done.json["error"]
        assert word in done.err


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "1e12"])
def test_a_time_limit_that_no_clock_can_keep_is_refused_or_kept(machine: Machine, value: str) -> None:
    make_model(machine.store / "name")
    done = machine.run("resolve", "org/name", VLLMRT_PLUGIN_TIMEOUT=value)
    assert done.code in {0, 1}, done.err
    assert done.code == 0 or "VLLMRT_PLUGIN_TIMEOUT" in done.err


# -- plugins -------------------------------------------------------------------------


def test_plugins_lists_what_is_installed_and_imports_none(machine: Machine) -> None:
    points = (
        "[vllmrt.sources]\nacme = acme\n[vllmrt.plugins]\nguard = acme:guard\n[console_scripts]\nacme = acme:main\n"
    )
    machine.install("acme-share", points, {"acme.py": BOOM})
    rows = {row["name"]: row for row in machine.run("plugins", "--json").json["plugins"]}
    assert {name for name, row in rows.items() if row["kind"] == "source"} >= {
        *("acme", "flox", "hf-cache", "local", "package"),
    }
    assert rows["acme"] == {
        "kind": "source",
        "name": "acme",
        "distribution": "acme-share",
        "version": "1.2.3",
        "module": "acme",
        "state": "enabled",
    }
    assert (rows["guard"]["kind"], rows["builtin"]["kind"]) == ("ambient", "ambient")
    assert rows["vllmrt/tiny"]["kind"] == "model"


def test_plugins_says_which_are_disabled(machine: Machine) -> None:
    done = machine.run("plugins", VLLMRT_DISABLE_PLUGINS="vllmrt_source.local")
    (line,) = [line for line in done.out.splitlines() if " local " in line]
    assert line.split()[-1] == "disabled"
    assert done.out.count("disabled") == 1


@pytest.mark.parametrize("name", ["local", "vllmrt-source-local"])
def test_info_tells_what_the_metadata_says(machine: Machine, name: str) -> None:
    done = machine.run("plugins", "info", name)
    assert done.code == 0
    facts = dict(line.split(None, 1) for line in done.out.splitlines())
    assert facts["distribution"] == "vllmrt-source-local"
    assert facts["licence"] == "Apache-2.0"
    assert facts["requires"].startswith("vllmrt")
    assert "store" in facts["summary"]


def test_info_of_a_name_that_is_not_there_says_which_are(machine: Machine) -> None:
    done = machine.run("plugins", "info", "nowhere", "--json")
    assert done.code == done.json["code"] == 1
    assert "'nowhere'" in done.json["error"]
    assert "hf-cache" in done.json["error"]


def test_info_of_a_distribution_that_was_half_removed(machine: Machine) -> None:
    machine.install("acme-share", "[vllmrt.sources]\nacme = acme\n")
    (machine.site / "acme_share-1.2.3.dist-info" / "METADATA").unlink()
    done = machine.run("plugins", "info", "acme", "--json")
    assert done.code in {0, 1}, done.err
    assert "acme" in json.dumps(done.json)
