"""Where output goes and what it looks like: for people, for programs, into pipes that close, and never a secret."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import VLLMRT, Machine

from vllmrt.testing import corrupt, make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BUG = """\
import vllmrt.identity
def requested(settings):
    raise ZeroDivisionError("kaboom")
vllmrt.identity.requested = requested
"""
HANGING = "import time\ntime.sleep(60)\n"
SECRETS = {"VLLM_API_KEY": "key-5d0c6f", "HF_TOKEN": "token-9be21a"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    make_model(made.store / "name")
    corrupt(make_model(made.store / "broken") / "model-00001-of-00002.safetensors", cut=1)
    return made


def hang(machine: Machine) -> None:
    machine.install("acme-slow", "[vllmrt.sources]\nslow = acme_slow\n", {"acme_slow.py": HANGING})


def dead_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# -- programs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["resolve", "org/name"], {"model", "source", "path", "revision", "files", "bytes", "env_file", "attempts"}),
        (["resolve", "org/name", "--dry-run"], {"model", "path", "env_file"}),
        (["up", "org/name", "--dry-run"], {"model", "source", "path", "revision", "attempts", "argv", "dry_run"}),
        (["plugins"], {"plugins"}),
        (["plugins", "info", "local"], {"plugins"}),
        (["config", "show"], {"settings"}),
    ],
)
def test_json_is_one_object(machine: Machine, args: list[str], keys: set[str]) -> None:
    done = machine.run(*args, "--json")
    assert (done.code, done.json["ok"]) == (0, True)
    assert keys <= set(done.json)
    assert done.out.count("\n") == 1


def test_json_of_serve_is_one_object(machine: Machine) -> None:
    machine.run("resolve", "org/name")
    done = machine.run("serve", "org/name", "--dry-run", "--json")
    assert (done.code, done.json["ok"], done.json["dry_run"]) == (0, True, True)
    assert done.json["argv"][1:3] == ["serve", str(machine.store / "name")]


@pytest.mark.parametrize(
    ("args", "env", "code", "kind"),
    [
        (["resolve", "org/.."], {}, 1, "ConfigError"),
        (["resolve", "org/name", "--sources", "nowhere"], {}, 1, "ConfigError"),
        (["resolve", "org/name"], {"VLLM_MODELS_DIR": "\n"}, 1, "ConfigError"),
        (["resolve", "org/name"], {"VLLMRT_DISABLE_PLUGINS": "vllmrt"}, 1, "PluginError"),
        (["resolve", "org/missing"], {}, 10, "ModelNotFound"),
        (["resolve", "org/broken"], {}, 11, "ModelRejected"),
        (["up", "org/broken"], {}, 11, "ModelRejected"),
        (["up", "org/name"], {"VLLMRT_VLLM": None}, 20, "ServeRefused"),
        (["up", "org/name", "--", "model"], {}, 20, "ServeRefused"),
        (["serve", "org/missing"], {}, 20, "ServeRefused"),
        (["plugins", "info", "nowhere"], {}, 1, "ConfigError"),
        (["resolve", "org/name", "--log-format", "xml"], {}, 64, "UsageError"),
        (["resolve", "--frobnicate"], {}, 64, "UsageError"),
        (["resolve", "a/b", "c/d"], {}, 64, "UsageError"),
    ],
)
def test_json_of_a_failure_is_one_object(
    machine: Machine, args: list[str], env: dict[str, str | None], code: int, kind: str
) -> None:
    cut = args.index("--") if "--" in args else len(args)
    done = machine.run(*args[:cut], "--json", *args[cut:], **env)
    assert done.code == code
    assert (done.json["ok"], done.json["code"], done.json["class"]) == (False, code, kind)
    assert done.json["error"]
    assert done.out.count("\n") == 1


def test_json_of_what_takes_no_extra_arguments(machine: Machine) -> None:
    done = machine.run("resolve", "org/name", "--json", "--", "x")
    assert (done.code, done.json["class"]) == (64, "UsageError")


def test_json_of_a_launch_that_fails_is_one_object(machine: Machine) -> None:
    machine.engine.write_text("#!/nowhere/python\n")
    done = machine.run("up", "org/name", "--json")
    assert done.code == 20
    assert (done.json["ok"], done.json["class"]) == (False, "ServeRefused")


def test_json_of_smoke_without_a_server(machine: Machine) -> None:
    done = machine.run("smoke", "--json", "--timeout", "2", "--port", str(dead_port()))
    assert (done.code, done.json["ok"]) == (1, False)
    assert {"health", "models", "completion"} <= {check["name"] for check in done.json["checks"]}


def test_smoke_without_a_server_is_a_failure_and_no_bug(machine: Machine) -> None:
    done = machine.run("smoke", "--timeout", "2", "--port", str(dead_port()))
    assert (done.code, done.err) == (1, "")
    assert "FAILED" in done.out


@pytest.mark.parametrize(
    ("args", "events"),
    [
        (["resolve", "org/name"], ["resolve.attempt", "validate.ok", "resolve.envfile"]),
        (["up", "org/name", "--dry-run"], ["resolve.attempt", "validate.ok", "serve.command"]),
        (
            ["resolve", "org/missing", "--sources", "flox,local"],
            ["resolve.attempt", "resolve.attempt", "resolve.log", "error", "hint"],
        ),
        (["resolve", "org/broken"], ["resolve.attempt", "resolve.log", "error"]),
        (["serve", "org/missing"], ["error", "hint"]),
    ],
)
def test_log_lines_are_objects(machine: Machine, args: list[str], events: list[str]) -> None:
    done = machine.run(*args, "--log-format", "json")
    assert [event["event"] for event in done.events] == events
    for event in done.events:
        assert event["v"] == 1
        assert event["level"] in {"info", "good", "warning", "error"}
        assert event["text"]
        assert event["time"] > 1_700_000_000


def test_log_lines_say_what_the_text_says(machine: Machine) -> None:
    plain = machine.run("resolve", "org/broken").err.splitlines()
    for event in machine.run("resolve", "org/broken", "--log-format", "json").events:
        for line in event["text"].splitlines():
            assert any(line in other for other in plain)


def test_print_cmd_prints_what_is_executed(machine: Machine) -> None:
    done = machine.run("up", "org/name", "--print-cmd", "--served-model-name", "it's a name")
    assert shlex.split(done.err.splitlines()[-1]) == done.json["argv"]
    assert sum("--tensor-parallel-size" in line for line in done.err.splitlines()) == 1


# -- people ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["up", "--help"],
        ["resolve", "org/name"],
        ["resolve", "org/broken"],
        ["resolve", "--frobnicate"],
        ["up", "org/name", "--dry-run"],
        ["plugins"],
        ["config", "show"],
    ],
)
def test_without_a_terminal_there_are_no_escape_codes(machine: Machine, args: list[str]) -> None:
    done = machine.run(*args, TERM="xterm-256color", COLORTERM="truecolor")
    assert "\x1b" not in done.out + done.err


def test_without_a_terminal_lines_have_a_label_and_a_text(machine: Machine) -> None:
    for args in (["up", "org/name", "--dry-run"], ["resolve", "org/broken"], ["resolve", "org/missing"]):
        for line in machine.run(*args).err.splitlines():
            assert re.fullmatch(r"(?:[a-z][a-z -]{0,8} *|          )\S.*", line), line
            assert line[9] == " "


def test_on_a_terminal_the_lines_are_calm_and_aligned(machine: Machine) -> None:
    code, seen = machine.on_terminal("up", "org/name", "--dry-run", "--sources", "flox,local")
    assert code == 0
    lines = ANSI.sub("", seen).splitlines()
    assert [line[2:11].strip() for line in lines if line[2] != " "] == ["flox", "local", "checked", "serve"]
    for line in lines:
        assert line[:2] == "  "
        assert line[11] == " "
        assert line[12] != " "
        assert len(line) <= 100
    assert "\r" not in seen
    assert "\x1b[2J" not in seen
    assert "\x1b[32m" in seen


def test_on_a_terminal_without_colour_nothing_is_coloured(machine: Machine) -> None:
    code, seen = machine.on_terminal("resolve", "org/name", NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", seen)


def test_on_a_terminal_a_long_source_name_stays_whole(machine: Machine) -> None:
    machine.install("acme-object-store", "[vllmrt.sources]\nacme-object-store = acme\n", {"acme.py": "1 / 0\n"})
    _, seen = machine.on_terminal("resolve", "org/name", "--sources", "acme-object-store,local")
    assert re.search(r"acme-object-store *failed: acme-object-store 1.2.3: ", ANSI.sub("", seen))


def test_on_a_terminal_the_tables_have_all_their_words(machine: Machine) -> None:
    _, seen = machine.on_terminal("plugins", columns=160)
    assert "vllmrt_source_hf_cache" in seen
    code, seen = machine.on_terminal("config", "show", columns=160, VLLM_API_KEY="key-5d0c6f")
    assert code == 0
    assert "key-5d0c6f" not in seen
    assert "VLLM_API_KEY" in seen


# -- pipes, signals, bugs ------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        ["plugins"],
        ["plugins", "--json"],
        ["config", "show"],
        ["resolve", "org/name"],
        ["resolve", "org/name", "--json"],
        ["resolve", "org/missing", "--json"],
        ["up", "org/name", "--dry-run", "--json"],
    ],
)
def test_a_reader_that_has_gone_is_no_bug(machine: Machine, args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [VLLMRT, *args]
    done = subprocess.run(
        command, env=machine.env, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=30
    )
    os.close(writer)
    assert done.returncode in {0, 1, 10, 128 + signal.SIGPIPE}
    for word in ("Traceback", "Exception", "bug "):
        assert word not in done.stderr


@pytest.mark.parametrize("args", [["resolve", "org/name"], ["resolve", "org/missing"], ["up", "org/name", "--dry-run"]])
def test_nobody_who_reads_the_log_is_no_bug(machine: Machine, args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with machine.start(*args, stderr=writer) as process:
        os.close(writer)
        process.communicate(timeout=30)
    assert process.returncode in {0, 10, 128 + signal.SIGPIPE}


@pytest.mark.parametrize("closed", ["2>&-", "<&-", ">&-", ">&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("resolve org/name", 0), ("resolve org/missing", 10), ("plugins", 0)])
def test_streams_that_are_closed_are_no_bug(machine: Machine, closed: str, command: str, code: int) -> None:
    """Some supervisors start a service so. What cannot be said may be an error, but not a crash."""
    done = machine.shell(f'"$V" {command} {closed}')
    assert done.code == code or (done.code == 1 and closed.startswith(">&-") and code == 0)
    assert "Traceback" not in done.err
    assert "bug" not in done.err


@pytest.mark.parametrize("command", ["resolve org/name", "resolve org/name --json", "plugins", "config show"])
def test_a_disk_that_is_full_is_no_success(machine: Machine, command: str) -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110 - a device, not a file of ours
        pytest.skip("no /dev/full")
    done = machine.shell(f'"$V" {command} > /dev/full')
    assert done.code == 1
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err
    assert "bug" not in done.err


@pytest.mark.parametrize("extra", [[], ["--json"], ["-v"]])
def test_ctrl_c_ends_with_130_and_nothing_more(machine: Machine, extra: list[str]) -> None:
    hang(machine)
    (machine.site / "acme_slow.py").write_text("import sys\nsys.stderr.write('loading\\n')\n" + HANGING)
    with machine.start("resolve", "org/name", "--sources", "slow", *extra) as process:
        assert process.stderr
        assert process.stderr.readline() == "loading\n"
        time.sleep(0.2)  # until it waits: a signal just before that is one that CPython may sleep through
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "bug" not in err


def test_a_plugin_that_hangs_does_not_hold_up_the_end(machine: Machine) -> None:
    hang(machine)
    done = machine.run("resolve", "org/name", "--sources", "slow,local", VLLMRT_PLUGIN_TIMEOUT="0.3")
    assert done.code == 0


def test_a_bug_is_one_line_and_a_request(machine: Machine) -> None:
    (machine.site / "sitecustomize.py").write_text(BUG)
    done = machine.run("resolve", "org/name")
    assert (done.code, done.out) == (70, "")
    first, second = done.err.splitlines()
    assert first == "bug       ZeroDivisionError: kaboom"
    assert "report" in second
    told = machine.run("resolve", "org/name", "--json").json
    assert (told["ok"], told["code"], told["error"]) == (False, 70, "ZeroDivisionError: kaboom")


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_bug_shows_its_traceback_to_those_who_ask(machine: Machine, extra: list[str]) -> None:
    (machine.site / "sitecustomize.py").write_text(BUG)
    done = machine.run("resolve", "org/name", "-v", *extra)
    assert done.code == 70
    assert "Traceback (most recent call last)" in done.err
    assert "ZeroDivisionError: kaboom" in done.err
    assert not extra or done.json["code"] == 70


# -- secrets -----------------------------------------------------------------------------


def _with_bug(machine: Machine) -> None:
    (machine.site / "sitecustomize.py").write_text(BUG)


def _silent_engine(machine: Machine) -> None:
    machine.engine.write_text(f"#!{sys.executable} -IS\n")


def _broken_engine(machine: Machine) -> None:
    machine.engine.write_text("#!/nowhere/python\n")


def _nothing(_: Machine) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "args"),
    [
        (_nothing, ["config", "show"]),
        (_nothing, ["config", "show", "--json"]),
        (_nothing, ["config", "show", "--port", "0"]),
        (_nothing, ["plugins"]),
        (_nothing, ["resolve", "org/name"]),
        (_nothing, ["resolve", "org/name", "--json"]),
        (_nothing, ["resolve", "org/missing", "--json"]),
        (_nothing, ["resolve", "org/broken", "--log-format", "json"]),
        (_with_bug, ["resolve", "org/name", "-v"]),
        (_nothing, ["up", "org/name", "--dry-run", "--json"]),
        (_silent_engine, ["up", "org/name", "--json"]),
        (_silent_engine, ["up", "org/name", "--print-cmd", "--host", "0.0.0.0"]),  # noqa: S104 - it shows a warning
        (_broken_engine, ["up", "org/name", "-v"]),
        (_nothing, ["up", "org/name", "--", "--api-key", SECRETS["VLLM_API_KEY"]]),
        (_nothing, ["up", "org/name", "--", f"--api_key={SECRETS['VLLM_API_KEY']}"]),
        (_nothing, ["up", "org/name", f"--api-key={SECRETS['VLLM_API_KEY']}"]),
        (_nothing, ["serve", "org/name"]),
        (_nothing, ["smoke", "--timeout", "1", "--port", "1", "--json"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", "\n"], ids=["sound", "with a line break"])
def test_secrets_are_in_no_output_and_no_file(
    machine: Machine, prepare: Callable[[Machine], object], args: list[str], suffix: str
) -> None:
    prepare(machine)
    done = machine.run(*args, **{name: value + suffix for name, value in SECRETS.items()})
    files = [path.read_bytes().decode(errors="replace") for path in machine.home.rglob("*") if path.is_file()]
    for secret in SECRETS.values():
        assert secret not in done.out + done.err
        assert not any(secret in content for content in files)


def test_the_list_of_flags_is_asked_for_without_the_key(machine: Machine) -> None:
    asked = machine.root / "asked"
    script = machine.engine.read_text().replace(
        'if "--help=all" in sys.argv:\n',
        f'if "--help=all" in sys.argv:\n    open({str(asked)!r}, "w").write(str(os.environ))\n',
    )
    machine.engine.write_text(script)
    assert machine.run("up", "org/name", "--", "--enforce-eager", **SECRETS).code == 0
    assert "XDG_CACHE_HOME" in asked.read_text()
    assert SECRETS["VLLM_API_KEY"] not in asked.read_text()


# -- exec ---------------------------------------------------------------------------------


def started(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("command", ["up", "serve"])
def test_vllmrt_becomes_the_engine_and_signals_reach_it(machine: Machine, command: str) -> None:
    assert machine.run("resolve", "org/name").code == 0
    with machine.start(command, "org/name", LINGER="60") as process:
        assert started(process)["pid"] == process.pid
        process.terminate()
        assert process.wait(timeout=5) == -signal.SIGTERM


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_status_is_the_engines(machine: Machine, code: int) -> None:
    assert machine.run("up", "org/name", EXIT=str(code)).code == code


def test_the_key_reaches_the_engine_by_its_environment_only(machine: Machine) -> None:
    with machine.start("up", "org/name", LINGER="60", **SECRETS) as process:
        got = started(process)
        with open(f"/proc/{process.pid}/cmdline") as file:  # noqa: PTH123 - procfs
            cmdline = file.read()
        process.kill()
    assert got["environ"]["VLLM_API_KEY"] == SECRETS["VLLM_API_KEY"]
    assert SECRETS["VLLM_API_KEY"] not in cmdline + " ".join(got["argv"])


def test_a_plugin_that_hung_does_not_live_on_in_the_engine(machine: Machine) -> None:
    hang(machine)
    with machine.start(
        "up", "org/name", "--sources", "slow,local", LINGER="60", VLLMRT_PLUGIN_TIMEOUT="0.3"
    ) as process:
        got = started(process)
        threads = os.listdir(f"/proc/{process.pid}/task")
        process.kill()
    assert got["pid"] == process.pid
    assert threads == [str(process.pid)]
