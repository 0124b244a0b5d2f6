"""Stand-ins: real processes that look like vLLM, or like what is not vLLM, and behave badly where a test wants it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

OTHER = 12345
VLLMRT = str(Path(sys.executable).with_name("vllmrt"))

# What it does is in its environment, since its command line has to look like something.
SCRIPT = """\
import os, signal, socket, subprocess, sys, time
get = os.environ.get
def sleep():
    while True:
        time.sleep(100)
def listen():
    host, _, port = get("LISTEN").rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(get("V6ONLY", "0")))
    s.bind((host, int(port)))
    s.listen()
    return s
time.sleep(float(get("DELAY", "0")))
if get("COMM"):
    with open("/proc/self/comm", "w") as comm:
        comm.write(get("COMM"))
held = [listen()] if get("LISTEN") else []
for _ in range(int(get("WORKERS", "0"))):
    if not os.fork():
        if get("DEAF_WORKERS"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep()
if get("ENGINE"):
    env = {**os.environ, "LISTEN": "", "ENGINE": "", "WORKERS": get("ENGINE_WORKERS", "0"), "COMM": get("ENGINE")[:15]}
    env |= {"READY": "", "ON_TERM": ""}
    engine = subprocess.Popen([get("ENGINE")], executable=get("PYTHON"), stdin=subprocess.PIPE, env=env)
    engine.stdin.write(open(get("STANDIN"), "rb").read())
    engine.stdin.close()
on_term = get("ON_TERM", "")
def forking(*_):
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sleep()
def noting(number, _):
    with open(get("NOTES"), "a") as notes:
        notes.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGTERM:
        os._exit(3)
if on_term == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif on_term == "note":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, noting)
elif on_term == "fork":
    signal.signal(signal.SIGTERM, forking)
if get("READY"):
    open(get("READY"), "w").close()
if get("EXIT"):
    time.sleep(float(get("LINGER", "0")))
    os._exit(int(get("EXIT")))
sleep()
"""


# On SIGTERM the first lets the second listen before it ends, which is what a supervisor's next try looks like.
HAND_OVER = """\
import os, signal, socket, sys, time
host, _, port = os.environ["LISTEN"].rpartition(":")
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((host, int(port)))
def ending(*_):
    open(os.environ["GO"], "w").close()
    while not os.path.exists(os.environ["GONE"]):
        time.sleep(0.01)
    os._exit(0)
if sys.argv[1] == "serve":
    signal.signal(signal.SIGTERM, ending)
    s.listen()
    open(os.environ["READY"], "w").close()
else:
    open(os.environ["READY"], "w").close()
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    s.listen()
    open(os.environ["GONE"], "w").close()
while True:
    time.sleep(100)
"""


class Done(NamedTuple):
    """What a run of vllmrt came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


class Machine:
    """A directory with programs, and everything that is started from it, in sessions that end with the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.standin = path / "standin.py"
        self.standin.write_text(SCRIPT)
        self.vllm = path / "bin" / "vllm"
        self.vllm.parent.mkdir()
        self.vllm.write_text(SCRIPT)
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}
        self.environ = kept | {
            "HOME": str(path / "home"),
            "STANDIN": str(self.standin),
            "PYTHON": sys.executable,
            "VLLM_PREFLIGHT_LOCKFILE": str(path / "lock"),
            "VLLM_SKIP_GPU_CHECK": "1",
        }
        self.sessions: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        argv: Sequence[str | bytes | Path],
        *,
        executable: str | None = None,
        wrapper: Sequence[str] = (),
        ready: bool = True,
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """Start a program, and wait until it says that it is ready; a title alone reads its script from stdin."""
        mark = self.path / f"ready.{len(self.sessions)}"
        given = self.environ | environ | ({"READY": str(mark)} if ready else {})
        with (self.standin if len(argv) == 1 else Path(os.devnull)).open("rb") as stdin:
            process = subprocess.Popen(
                [*wrapper, *argv], executable=executable, env=given, stdin=stdin, start_new_session=True
            )
        self.sessions.append(process)
        if ready:
            wait_for(mark.exists)
        return process

    def serve(self, *, port: int = 0, host: str = "127.0.0.1", **environ: str) -> subprocess.Popen[bytes]:
        """Start ``python …/vllm serve``, listening."""
        listen = {"LISTEN": f"{host}:{port}"} if port else {}
        return self.start([sys.executable, str(self.vllm), "serve", "model"], **listen, **environ)

    def preflight(
        self, *args: str, wrapper: Sequence[str] = (), environ: Mapping[str, str] | None = None, timeout: float = 40
    ) -> Done:
        """Run ``vllmrt preflight``."""
        done = subprocess.run(
            [*wrapper, VLLMRT, "preflight", *args],
            env=self.environ | dict(environ or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def left(self) -> list[int]:
        """Return the live processes of all sessions."""
        sessions = {str(process.pid) for process in self.sessions}
        listing = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [int(pid) for pid, session, state in rows if session in sessions and not state.startswith("Z")]

    def end(self) -> None:
        """End everything that was started."""
        for _ in range(100):
            left = self.left()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.02)
        for process in self.sessions:
            process.wait(10)


def hand_over(machine: Machine, port: int) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Start a vLLM, and another program that has its port as soon as it is stopped."""
    program = machine.path / "over" / "vllm"
    program.parent.mkdir()
    program.write_text(HAND_OVER)
    names = {"LISTEN": f"127.0.0.1:{port}", "GO": f"{program}.go", "GONE": f"{program}.gone"}
    first = machine.start([sys.executable, program, "serve"], **names)
    return first, machine.start([sys.executable, program, "wait"], **names)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine of its own for a test."""
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def as_other(machine: Machine) -> list[str]:
    """What starts a program as another user, who may also write to the machine; skips where that cannot be."""
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    wrapper = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    machine.path.chmod(0o777)
    for folder in machine.path.parents:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    if subprocess.run([*wrapper, VLLMRT, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("another user may not run this checkout")
    return wrapper


@pytest.fixture
def only_orphans() -> Iterator[None]:
    """Keep other tests that make orphans or stop them from running: an orphan is everybody's on this machine."""
    with (Path(tempfile.gettempdir()) / "vllmrt-tests-orphans.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """Return what a condition gives as soon as it is true; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listens(port: int) -> bool:
    """Tell whether anybody accepts connections on the loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def held(lock: Path) -> bool:
    """Tell whether a process holds a lock file; without trying it, which could turn another one away."""
    if not lock.exists():
        return False
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    return any(row[1] == "FLOCK" and row[5].endswith(f":{lock.stat().st_ino}") for row in rows)
