"""Runs a Prometheus, and a Grafana where there is one, for as long as we run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ServeRefused, ServerFailed
from vllmrt.monitoring import grafana, prometheus
from vllmrt.paths import write_atomic
from vllmrt.preflight.listeners import listening, targets
from vllmrt.serve.client import Failed, ask, parse_url, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllmrt.settings import Settings

LOOPBACK = "127.0.0.1"
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
_PAUSE, _SECONDS, _OK = 0.2, 2.0, 200
_STOPPING = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRAFANA_HOMES = ("/usr/share/grafana", "/opt/grafana")
_OTHERS = "PROMETHEUS_PORT and GF_SERVER_HTTP_PORT choose others"
_HINT = (
    "install it: Debian's package prometheus, Flox's prometheus, or https://prometheus.io/download; "
    "vllmrt render prometheus prints the files for one that runs elsewhere"
)


class Program(NamedTuple):
    """A program to run.

    Attributes:
        name: for people.
        argv: its command line.
        environ: its whole environment; it holds no credential of ours.
        url: where it is reached.
        health: the path that answers 200 when it is ready.
    """

    name: str
    argv: list[str]
    environ: dict[str, str]
    url: str
    health: str


def prepare(settings: Settings, environ: Mapping[str, str]) -> list[Program]:
    """Find the programs, and write what they read, below the cache directory.

    Raises:
        ServeRefused: there is no Prometheus.
        OSError: a file cannot be written.
    """
    folder = settings.cache / "monitoring"
    programs = [_prometheus(settings, folder, environ)]
    program = _which(("grafana", "grafana-server"), environ)
    if program:
        programs.append(_grafana(program, settings, folder, environ))
    return programs


def run(programs: Sequence[Program], ready: Callable[[Program], None]) -> None:
    """Start the programs, and wait until we are told to end; then they are ended.

    Args:
        programs: as `prepare` returns them.
        ready: told of each that answers.

    Raises:
        ServerFailed: one of them ended by itself. KeyboardInterrupt: we were told to end.
    """
    running: list[tuple[Program, subprocess.Popen[bytes]]] = []
    waiting = list(programs)
    try:
        for program in programs:
            _refuse_taken(program)
        running.extend((program, _start(program)) for program in programs)
        while True:
            for program, process in running:
                if (status := process.poll()) is not None:
                    raise _ended(program, status)
            for program in [one for one in waiting if _answers(one)]:
                waiting.remove(program)
                ready(program)
            time.sleep(_PAUSE)
    finally:
        _stop([process for _, process in running])


def _prometheus(settings: Settings, folder: Path, environ: Mapping[str, str]) -> Program:
    program = _which(("prometheus",), environ)
    if program is None:
        raise ServeRefused("no prometheus on PATH", hint=_HINT)
    for name, text in prometheus.configuration(settings).items():
        write_atomic(folder / name, text.encode())
    argv = [
        program,
        f"--config.file={folder / prometheus.CONFIG}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={LOOPBACK}:{settings.prometheus_port}",
        "--log.level=warn",
    ]
    url = url_of(LOOPBACK, settings.prometheus_port)
    return Program("Prometheus", argv, _environment(environ), url, "/-/ready")


def _grafana(program: str, settings: Settings, folder: Path, environ: Mapping[str, str]) -> Program:
    folder = folder / "grafana"
    for name, text in grafana.provisioning(folder, url_of(LOOPBACK, settings.prometheus_port)).items():
        write_atomic(folder / name, text.encode())
    ours = {
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(settings.grafana_port),
        "GF_PATHS_DATA": str(folder / "data"),
        "GF_PATHS_LOGS": str(folder / "logs"),
        "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
        "GF_LOG_LEVEL": "warn",
        # whoever is on this machine may look; there is no administrator whose password everybody knows
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    theirs = {name: value for name, value in environ.items() if name.startswith("GF_")}
    given = _environment(environ) | ours | theirs | {"GF_SERVER_HTTP_PORT": str(settings.grafana_port)}
    home = next((str(one) for one in _homes(Path(program)) if (one / "conf" / "defaults.ini").exists()), None)
    server = [] if Path(program).name == "grafana-server" else ["server"]
    argv = [program, *server, *([f"--homepath={home}"] if home else [])]
    url = url_of(given["GF_SERVER_HTTP_ADDR"], settings.grafana_port)
    if given.get("GF_SERVER_PROTOCOL") == "https":
        url = url.replace("http://", "https://", 1)
    return Program("Grafana", argv, given, url, "/api/health")


def _homes(program: Path) -> list[Path]:
    prefixes = dict.fromkeys(one.parents[1] for one in (program, program.resolve()))
    return [*(one for prefix in prefixes for one in (prefix / "share" / "grafana", prefix)), *map(Path, _GRAFANA_HOMES)]


def _which(names: Sequence[str], environ: Mapping[str, str]) -> str | None:
    path = os.pathsep.join(one for one in environ.get("PATH", os.defpath).split(os.pathsep) if one.startswith("/"))
    return next((found for name in names if (found := which(name, path=path))), None)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in _PASSED_ON if name in environ}


def _refuse_taken(program: Program) -> None:
    """Refuse a port that is taken: until ours has found that out, another one answers in its place."""
    server = parse_url(program.url)
    port = server.port or 0
    if listening(targets(server.host, port), port):
        raise _failed(program, "cannot start", f"port {port} is taken; {_OTHERS}")


def _start(program: Program) -> subprocess.Popen[bytes]:
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    try:
        # a session of its own: Ctrl-C reaches us alone, and we end them in order
        return subprocess.Popen(
            program.argv,
            env=program.environ,
            stdin=subprocess.DEVNULL,
            stdout=2,
            preexec_fn=prepare_child,  # noqa: PLW1509 - there are no threads
            start_new_session=True,
        )
    except OSError as error:
        raise ServeRefused(f"{program.argv[0]} cannot be executed: {error.strerror}", hint="install it again") from None


def _answers(program: Program) -> bool:
    try:
        return ask(parse_url(program.url), program.health, key=None, body=None, seconds=_SECONDS).status == _OK
    except Failed:
        return False


def _ended(program: Program, status: int) -> ServerFailed:
    code = 128 - status if status < 0 else status
    port = program.url.rpartition(":")[2]
    return _failed(program, f"ended with status {code}", f"it has said why; if port {port} is taken, {_OTHERS}", code)


def _failed(program: Program, what: str, hint: str, status: int | None = None) -> ServerFailed:
    return ServerFailed(f"{program.name} {what}", hint=hint, facts={"program": program.name, "status": status})


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOPPING
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
