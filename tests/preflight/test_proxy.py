"""A command behind the preflight: waited for, told of signals, and never left behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standin import VLLMRT, Machine, alive, children, held, listens, wait_for

from vllmrt.preflight.listeners import listening, targets
from vllmrt.preflight.proxy import strangers
from vllmrt.preflight.trees import descendants
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from vllmrt.procfs import Stat


def start(machine: Machine, port: int, command: Sequence[str | Path] = (), **environ: str) -> subprocess.Popen[bytes]:
    """Start vllmrt in front of a command; without one, in front of a stand-in that listens."""
    default = [sys.executable, machine.vllm, "serve"]
    listen = {} if command else {"LISTEN": f"127.0.0.1:{port}"}
    given = [VLLMRT, "preflight", "--port", str(port), "--", *(command or default)]
    return machine.start(given, ready=False, **listen, **environ)


def command_of(proxy: subprocess.Popen[bytes]) -> int:
    """Return the process of the command: the only child of the only child."""
    (guardian,) = wait_for(lambda: children(proxy.pid))
    return int(wait_for(lambda: children(guardian))[0])


def locked(machine: Machine) -> bool:
    return held(machine.path / "lock")


@pytest.mark.parametrize("status", [0, 1, 2, 7, 64, 255])
def test_the_status_is_the_commands_own(machine: Machine, port: int, status: int) -> None:
    assert start(machine, port, ["sh", "-c", f"exit {status}"]).wait(20) == status


@pytest.mark.parametrize("status", [0, 2])
def test_the_status_after_it_has_listened(machine: Machine, port: int, status: int) -> None:
    assert start(machine, port, EXIT=str(status), LINGER="1").wait(20) == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_command_that_a_signal_ends(machine: Machine, port: int, number: signal.Signals) -> None:
    proxy = start(machine, port)
    wait_for(lambda: listens(port))
    os.kill(command_of(proxy), number)
    assert proxy.wait(20) == 128 + number
    assert machine.left() == []


def test_the_lock_is_held_until_the_command_listens(machine: Machine, port: int) -> None:
    proxy = start(machine, port, DELAY="1.5")
    command_of(proxy)
    assert locked(machine)
    assert not listens(port)
    wait_for(lambda: not locked(machine))
    assert listens(port)
    assert alive(proxy.pid)


def test_a_listener_in_a_grandchild_counts(machine: Machine, port: int) -> None:
    script = f"LISTEN=127.0.0.1:{port} {sys.executable} {machine.standin} & wait"
    start(machine, port, ["sh", "-c", script])
    command = machine.path / "lock"
    wait_for(command.exists)
    wait_for(lambda: listens(port) and not locked(machine))


def test_a_port_that_another_process_takes(machine: Machine, port: int) -> None:
    proxy = start(machine, port, [sys.executable, machine.standin])
    command = command_of(proxy)
    thief = machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    assert proxy.wait(20) == 2
    assert not alive(command)
    assert alive(thief.pid)


class Late(ProcFs):
    """A process table whose first picture was taken before the last children were born."""

    looks = 0

    def table(self, skip: Container[int] = ()) -> dict[int, Stat]:
        self.looks += 1
        return {pid: stat for pid, stat in super().table(skip).items() if self.looks > 1 or stat.ppid != os.getpid()}


def test_a_listener_that_was_born_since_the_look_is_no_stranger(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    inodes = {one.inode for one in listening(targets("127.0.0.1", port), port)}
    assert strangers(inodes, os.getpid(), Late()) == set()
    assert strangers(inodes, os.getpid(), ProcFs()) is None
    assert strangers(inodes, machine.serve().pid, ProcFs()) == {stale.pid}


def test_a_command_that_never_listens(machine: Machine, port: int) -> None:
    begin = time.monotonic()
    proxy = start(machine, port, [sys.executable, machine.standin], VLLM_START_BIND_TIMEOUT="0.5", WORKERS="2")
    assert proxy.wait(20) == 1
    assert time.monotonic() - begin < 10
    assert machine.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_end_while_it_waits(machine: Machine, port: int, number: signal.Signals) -> None:
    proxy = start(machine, port, [sys.executable, machine.standin], WORKERS="2", ON_TERM="note", NOTES="/dev/null")
    command = command_of(proxy)
    wait_for(lambda: len(children(command)) == 2)
    proxy.send_signal(number)
    assert proxy.wait(20) == 128 + number
    assert machine.left() == []


def test_told_to_end_while_it_waits_for_what_does_not_listen_to_reason(machine: Machine, port: int) -> None:
    proxy = start(machine, port, [sys.executable, machine.standin], ON_TERM="ignore", VLLM_STOP_TIMEOUT="1")
    command_of(proxy)
    time.sleep(0.5)  # it has to have had the time to become deaf
    proxy.terminate()
    assert proxy.wait(20) == 143
    assert machine.left() == []


def test_signals_reach_the_command_once(machine: Machine, port: int) -> None:
    notes = machine.path / "notes"
    proxy = start(machine, port, ON_TERM="note", NOTES=str(notes))
    wait_for(lambda: listens(port) and not locked(machine))
    for count, number in enumerate((signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM), start=1):
        proxy.send_signal(number)
        wait_for(lambda count=count: notes.exists() and len(notes.read_text().split()) == count)
    assert proxy.wait(20) == 3
    assert notes.read_text().split() == ["SIGUSR1", "SIGHUP", "SIGINT", "SIGTERM"]


def test_signals_reach_a_command_that_does_not_listen_yet(machine: Machine, port: int) -> None:
    notes, ready = machine.path / "notes", machine.path / "ready"
    environ = {"ON_TERM": "note", "NOTES": str(notes), "READY": str(ready)}
    proxy = start(machine, port, [sys.executable, machine.standin], **environ)
    wait_for(ready.exists)
    for count in (1, 2):
        proxy.send_signal(signal.SIGUSR1)
        wait_for(lambda count=count: notes.exists() and notes.read_text().split() == ["SIGUSR1"] * count)
    proxy.send_signal(signal.SIGINT)
    assert proxy.wait(20) == 130


def test_ctrl_c_of_a_terminal_reaches_the_command_once(machine: Machine, port: int) -> None:
    """A terminal tells all of its foreground group; two of them would make vLLM quit at once."""
    notes = machine.path / "notes"
    environ = machine.environ | {"LISTEN": f"127.0.0.1:{port}", "ON_TERM": "note", "NOTES": str(notes)}
    pid, terminal = pty.fork()
    if pid == 0:
        command = [VLLMRT, "preflight", "--port", str(port), "--", sys.executable, str(machine.vllm), "serve"]
        os.execve(VLLMRT, command, environ)  # noqa: S606 - as pty.fork wants it
    try:
        wait_for(lambda: listens(port) and not locked(machine))
        between = [pid, *children(pid)]
        for one in between:  # or two signals could arrive as one
            os.kill(one, signal.SIGSTOP)
        os.write(terminal, b"\x03")
        wait_for(notes.exists)
        for one in between:
            os.kill(one, signal.SIGCONT)
        time.sleep(0.5)  # for the second one, which must not come
        assert notes.read_text().split() == ["SIGINT"]
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        pid = 0
    finally:
        os.close(terminal)
        if pid:  # the guardian ends the rest
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_the_end_of_its_terminal_reaches_the_command(machine: Machine, port: int) -> None:
    """The kernel tells only the leader of the session, which is vllmrt where ssh or docker started it."""
    notes = machine.path / "notes"
    environ = machine.environ | {"LISTEN": f"127.0.0.1:{port}", "ON_TERM": "note", "NOTES": str(notes)}
    pid, terminal = pty.fork()
    if pid == 0:
        command = [VLLMRT, "preflight", "--port", str(port), "--", sys.executable, str(machine.vllm), "serve"]
        os.execve(VLLMRT, command, environ)  # noqa: S606 - as pty.fork wants it
    try:
        wait_for(lambda: listens(port) and not locked(machine))
        os.close(terminal)
        wait_for(lambda: notes.exists() and notes.read_text())
        assert notes.read_text().split() == ["SIGHUP"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_for(lambda: not listens(port))


def test_nothing_is_left_when_vllmrt_is_killed(machine: Machine, port: int) -> None:
    proxy = start(machine, port, WORKERS="2", DEAF_WORKERS="1", ENGINE="VLLM::EngineCore", VLLM_STOP_TIMEOUT="1")
    wait_for(lambda: listens(port) and len(descendants(ProcFs().table(), [proxy.pid])) == 6)
    proxy.kill()
    proxy.wait()
    wait_for(lambda: machine.left() == [])
    assert not listens(port)


def test_nothing_is_left_when_vllmrt_is_killed_while_it_waits(machine: Machine, port: int) -> None:
    proxy = start(machine, port, [sys.executable, machine.standin], WORKERS="1")
    wait_for(lambda: len(descendants(ProcFs().table(), [proxy.pid])) == 4)
    proxy.kill()
    proxy.wait()
    wait_for(lambda: machine.left() == [])


def test_nothing_is_left_whenever_vllmrt_is_killed(machine: Machine, port: int) -> None:
    """From its first moments to the last: before the guardian is there, before the command is, before it listens."""
    for step in range(10):
        proxy = start(machine, port, WORKERS="1", DELAY="0.1")
        time.sleep(0.05 * step)
        proxy.kill()
        proxy.wait()
        wait_for(lambda: machine.left() == [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_forks_when_it_is_told_to_end_does_not_get_away(
    machine: Machine, port: int, number: signal.Signals
) -> None:
    """Its child has lost its parent before anybody can look."""
    proxy = start(machine, port, ON_TERM="fork")
    wait_for(lambda: listens(port) and not locked(machine))
    proxy.send_signal(number)
    proxy.wait(20)
    wait_for(lambda: machine.left() == [])


def test_daemons_of_the_command_are_stopped_too(machine: Machine, port: int) -> None:
    """Sessions of their own, and parents that have ended."""
    pids = machine.path / "pids"
    daemon = f"setsid sh -c 'setsid sh -c \"echo \\$\\$ >> {pids}; exec sleep 1000\" & exit' &"
    script = f"{daemon} {daemon} LISTEN=127.0.0.1:{port} exec {sys.executable} {machine.vllm} serve"
    proxy = start(machine, port, ["sh", "-c", script])
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    daemons = list(map(int, pids.read_text().split()))
    wait_for(lambda: listens(port) and not locked(machine))
    assert all(map(alive, daemons))
    proxy.kill()
    proxy.wait()
    wait_for(lambda: not any(map(alive, daemons)))
    wait_for(lambda: machine.left() == [])


def test_when_the_guardian_is_killed_the_command_is_told(machine: Machine, port: int) -> None:
    proxy = start(machine, port)
    wait_for(lambda: listens(port) and not locked(machine))
    (guardian,) = children(proxy.pid)
    os.kill(guardian, signal.SIGKILL)
    assert proxy.wait(20) == 137
    wait_for(lambda: machine.left() == [])


def test_what_the_command_leaves_behind_is_stopped(machine: Machine, port: int) -> None:
    """As vLLM's engine, which outlives a launcher that was killed."""
    proxy = start(machine, port, ENGINE="VLLM::EngineCore", ENGINE_WORKERS="1")
    wait_for(lambda: listens(port) and len(descendants(ProcFs().table(), [proxy.pid])) == 5)
    os.kill(command_of(proxy), signal.SIGKILL)
    assert proxy.wait(20) == 137
    assert machine.left() == []


def test_a_stale_vllm_makes_room_for_the_command(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    proxy = start(machine, port)
    stale.wait(20)
    wait_for(lambda: listens(port))
    assert alive(proxy.pid)


def test_another_preflight_ends_the_command_and_its_proxy(machine: Machine, port: int) -> None:
    proxy = start(machine, port)
    wait_for(lambda: listens(port) and not locked(machine))
    done = machine.preflight("--json", "--port", str(port))
    assert done.code == 0, done.err
    assert proxy.wait(20) == 143
    assert machine.left() == []


def test_plain_exec(machine: Machine, port: int) -> None:
    proxy = start(machine, port, VLLM_PREFLIGHT_PROXY_CHILD="0")
    wait_for(lambda: listens(port))
    assert b"serve" in Path(f"/proc/{proxy.pid}/cmdline").read_bytes().split(b"\0")
    assert children(proxy.pid) == []
    assert not locked(machine)
    proxy.terminate()
    assert proxy.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("proxied", ["0", "1"])
def test_the_command_finds_signals_as_a_shell_leaves_them(machine: Machine, port: int, proxied: str) -> None:
    status = machine.path / "status"
    proxy = start(machine, port, ["sh", "-c", f"cat /proc/self/status > {status}"], VLLM_PREFLIGHT_PROXY_CHILD=proxied)
    proxy.wait(20)
    lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
    ordinary = (1 << 31) - 1  # what lies above is the C library's own: posix_spawn ignores it
    assert [int(lines[name], 16) & ordinary for name in ("SigBlk", "SigIgn")] == [0, 0]


def test_what_nohup_made_deaf_stays_deaf(machine: Machine, port: int) -> None:
    command = [VLLMRT, "preflight", "--port", str(port), "--", sys.executable, machine.vllm, "serve"]
    proxy = machine.start(command, wrapper=["env", "--ignore-signal=HUP"], ready=False, LISTEN=f"127.0.0.1:{port}")
    wait_for(lambda: listens(port) and not locked(machine))
    proxy.send_signal(signal.SIGHUP)
    time.sleep(0.3)  # for what must not happen
    assert alive(proxy.pid)
    assert listens(port)


def test_input_and_output_are_the_commands(machine: Machine, port: int) -> None:
    done = subprocess.run(
        [VLLMRT, "preflight", "--port", str(port), "--", "cat"],
        env=machine.environ,
        input=b"through",
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"through"


def test_a_command_that_does_not_exist_costs_no_running_server(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    done = machine.preflight("--port", str(port), "--", "no-such-program")
    assert (done.code, "no program is called" in done.err) == (1, True)
    assert listens(port)


def test_a_command_that_cannot_be_executed(machine: Machine, port: int) -> None:
    broken = machine.path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    assert start(machine, port, [broken]).wait(20) == 127
    assert start(machine, port, [broken], VLLM_PREFLIGHT_PROXY_CHILD="0").wait(20) == 1


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_json_and_a_command_do_not_go_together(machine: Machine, port: int, how: str) -> None:
    args = ["--json"] if how == "flag" else []
    environ = {} if how == "flag" else {"VLLM_PREFLIGHT_JSON": "1"}
    done = machine.preflight("--port", str(port), *args, "--", "touch", str(machine.path / "ran"), environ=environ)
    assert (done.code, done.json["code"]) == (1, 1)
    assert not (machine.path / "ran").exists()


def test_a_dry_run_starts_nothing(machine: Machine, port: int) -> None:
    done = machine.preflight("--port", str(port), "--dry-run", "--", "touch", str(machine.path / "ran"))
    assert done.code == 0
    assert not (machine.path / "ran").exists()


def test_a_port_that_is_refused_starts_nothing(machine: Machine, port: int) -> None:
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    done = machine.preflight("--port", str(port), "--", "touch", str(machine.path / "ran"))
    assert done.code == 2
    assert not (machine.path / "ran").exists()


def test_a_command_needs_no_dashes_before_it_and_may_have_some_of_its_own(machine: Machine, port: int) -> None:
    given = ["--port", str(port), "echo", "--json", "--dry-run", "-x", "--", "y"]
    done = machine.preflight(*given)
    assert (done.code, done.out) == (0, "--json --dry-run -x -- y\n")
    assert "no program is called" in machine.preflight("--port", str(port), "no-such-program").err


def test_no_key_of_the_command_is_shown(machine: Machine, port: int) -> None:
    given = ["--port", str(port), "--log-format", "json", "--", "true", "--api-key", "canary", "-v", "HF_TOKEN=canary"]
    done = machine.preflight(*given)
    assert done.code == 0
    assert "canary" not in done.err
    assert "true --api-key '********' -v 'HF_TOKEN=********'" in done.err
