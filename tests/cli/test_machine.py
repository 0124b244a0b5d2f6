"""A machine of its own for a test: the real command line, a home that is empty, an engine that says what it was given.

Other tests import `Machine` from here; the tests below hold what they rely on.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

VLLMRT = str(Path(sys.executable).with_name("vllmrt"))

# Isolated and without site, which is what makes it fast. EXIT and LINGER are for the tests.
ENGINE = f"""\
#!{sys.executable} -IS
import json, os, sys, time
if "--help=all" in sys.argv:
    flags = "config port gpu-memory-utilization uvicorn-log-level max-num-seqs".split()
    print("options:", *(f"  --{{flag}} VALUE" for flag in flags), "  --enforce-eager", sep="\\n")
    sys.exit()
print(json.dumps({{"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid()}}), flush=True)
time.sleep(float(os.environ.get("LINGER", "0")))
sys.exit(int(os.environ.get("EXIT", "0")))
"""

# Every file that is opened, from the first line of Python on: PEP 578 has an event for each.
SPY = """\
import os, sys
_log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def _hook(event, args):
    if event == "open":
        os.write(_log, f"{args[0]}\\n".encode(errors="replace"))
sys.addaudithook(_hook)
"""


class Done(NamedTuple):
    """What a run came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout; fails where there is more or less than one."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of ``--log-format json``; fails where a line is none."""
        return [json.loads(line) for line in self.err.splitlines()]


class Started(subprocess.Popen[str]):
    """A process whose ``with`` block does not wait for it when a test has failed in it."""

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *more)


class Machine:
    """A user's machine below `root`: ``home``, ``bin`` on PATH, ``site`` on PYTHONPATH once something is installed.

    Only the source ``local`` is asked unless a test says otherwise. ``up`` does without its preflight: what the machine
    below serves, and what other tests leave behind for a moment, is none of a test's business.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.store = self.home / "data" / "vllmrt" / "models"
        self.cache = self.home / "cache" / "vllmrt"
        self.site = root / "site"
        self.engine = root / "engine" / "bin" / "vllm"
        for directory in (self.store, self.site, self.engine.parent, root / "bin"):
            directory.mkdir(parents=True)
        self.engine.write_text(ENGINE)
        self.engine.chmod(0o755)
        self.env = {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PATH": f"{root}/bin",
            "PYTHONPATH": str(self.site),
            "VLLMRT_VLLM": str(self.engine),
            "VLLM_MODEL_SOURCES": "local",
            "VLLMRT_PREFLIGHT": "0",
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
        }

    def environ(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Return the environment with some variables changed, and those that are None taken out."""
        merged = self.env | changes
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, *args: str, prefix: tuple[str, ...] = (), **env: str | None) -> Done:
        """Run ``vllmrt`` to its end."""
        with self.start(*args, prefix=prefix, **env) as process:
            try:
                out, err = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        return Done(process.returncode, out, err)

    def start(
        self, *args: str, prefix: tuple[str, ...] = (), stderr: int = subprocess.PIPE, **env: str | None
    ) -> subprocess.Popen[str]:
        """Start ``vllmrt``."""
        return Started(
            [*prefix, VLLMRT, *args],
            cwd=self.root,
            env=self.environ(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        )

    def shell(self, script: str, **env: str | None) -> Done:
        """Run a bash script in which ``$V`` is vllmrt."""
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=self.root,
            env=self.environ({**env, "V": VLLMRT, "PATH": f"{self.root}/bin:{os.defpath}"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def on_terminal(self, *args: str, columns: int = 100, **env: str | None) -> tuple[int, str]:
        """Run ``vllmrt`` on a terminal; return the exit status and what the terminal was sent."""
        environ = self.environ({"TERM": "xterm-256color", "COLUMNS": str(columns), **env})
        ours, theirs = pty.openpty()
        with subprocess.Popen([VLLMRT, *args], env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            seen = b""
            # a terminal that nobody has open any more reads as an error
            with contextlib.suppress(OSError):
                while piece := os.read(ours, 65536):
                    seen += piece
        os.close(ours)
        return process.returncode, seen.decode().replace("\r\n", "\n")

    def install(
        self, distribution: str, entry_points: str, modules: Mapping[str, str] | None = None, version: str = "1.2.3"
    ) -> None:
        """Install a distribution: its metadata, and modules by their paths."""
        metadata = self.site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        for name, content in (modules or {}).items():
            path = self.site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def opened(self, *args: str, **env: str | None) -> tuple[Done, list[str]]:
        """Run ``vllmrt`` and return every file that it opened as well."""
        log = self.root / "opened"
        log.unlink(missing_ok=True)
        spy = self.root / "spy" / "sitecustomize.py"
        spy.parent.mkdir(exist_ok=True)
        spy.write_text(SPY)
        done = self.run(*args, OPENED=str(log), PYTHONPATH=f"{spy.parent}:{self.site}", **env)
        return done, log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_home_is_empty_and_nothing_of_the_tester_reaches_it(machine: Machine) -> None:
    settings = machine.run("config", "show", "--json").json["settings"]
    origins = {row["origin"] for row in settings} - {"default"}
    assert {"VLLM_MODEL_SOURCES", "VLLMRT_VLLM"} <= origins <= set(machine.env)
    values = {row["setting"]: row["value"] for row in settings}
    assert values["models_dir"] == str(machine.store)
    assert values["flox_env_cache"] == str(machine.cache)


def test_what_is_installed_is_found(machine: Machine) -> None:
    machine.install("acme-share", "[vllmrt.sources]\nacme = acme\n")
    listed = machine.run("plugins", "--json").json["plugins"]
    assert ("acme", "acme-share", "1.2.3") in {(row["name"], row["distribution"], row["version"]) for row in listed}


def test_the_spy_sees_what_is_opened(machine: Machine) -> None:
    settings = machine.home / "config" / "vllmrt" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("port = 9000\n")
    done, opened = machine.opened("config", "show")
    assert done.code == 0
    assert str(settings) in opened
