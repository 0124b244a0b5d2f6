"""The port, with the command itself and real processes: who is refused with which code, who is gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from standin import OTHER, VLLMRT, Machine, alive, children, hand_over, held, listens, wait_for

from vllmrt.errors import PortOtherUser
from vllmrt.host import PluginHost
from vllmrt.preflight.decision import PortAction
from vllmrt.preflight.port import check, inspect, reclaim
from vllmrt.procfs import ProcFs, Sockets
from vllmrt.settings import Settings
from vllmrt.testing import fake_dist
from vllmrt.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllmrt.procfs import Stat
    from vllmrt.types import ProcessInfo

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, namespaces, hidepid")
CONTRACT = {
    "ok",
    "host",
    "port",
    "port_action",
    "reclaimed_roots",
    "blocked_roots",
    "could_scan",
    "gpus",
    "gpu_check_source",
}
ERROR = {"code", "error", "pids", "cmdlines", "uids"}


def test_a_free_port(machine: Machine, port: int) -> None:
    done = machine.preflight("--json", "--port", str(port))
    assert done.code == 0
    assert done.json.keys() >= CONTRACT
    expected = {
        "ok": True,
        "host": "127.0.0.1",
        "port": port,
        "port_action": "noop",
        "reclaimed_roots": [],
        "blocked_roots": [],
        "could_scan": True,
        "gpus": [],
        "gpu_check_source": "skipped",
    }
    assert {key: done.json[key] for key in CONTRACT} == expected


def test_the_variable_asks_for_json_too(machine: Machine, port: int) -> None:
    done = machine.preflight(environ={"VLLM_PREFLIGHT_JSON": "1", "VLLM_PORT": str(port)})
    assert done.json["port"] == port
    refused = machine.preflight(environ={"VLLM_PREFLIGHT_JSON": "1", "VLLM_PORT": "0"})
    assert (refused.code, refused.json["code"]) == (1, 1)
    assert "VLLM_PORT" in refused.json["error"]


def test_a_stale_vllm_is_reclaimed_with_its_tree_and_no_more(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port, WORKERS="2", ENGINE="VLLM::EngineCore")
    neighbour = machine.serve()
    tree = [stale.pid, *children(stale.pid)]
    assert len(tree) == 4
    done = machine.preflight("--json", "--port", str(port))
    assert done.code == 0, done.err
    assert (done.json["port_action"], done.json["reclaimed_roots"]) == ("stopped", [stale.pid])
    assert not any(map(alive, tree))
    assert alive(neighbour.pid)
    assert not listens(port)


def test_a_dry_run_signals_nothing_and_writes_nothing(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    done = machine.preflight("--json", "--port", str(port), "--dry-run")
    assert (done.code, done.json["port_action"], done.json["reclaimed_roots"]) == (0, "would_stop", [])
    assert done.json["pids"] == [stale.pid]
    assert listens(port)
    assert not (machine.path / "lock").exists()


def refused(machine: Machine, port: int, code: int, **environ: str) -> dict[str, object]:
    """Run it for real and dry; both are refused with the same code, and nothing is stopped."""
    before = machine.left()
    for args in (["--dry-run"], []):
        done = machine.preflight("--json", "--port", str(port), *args, environ=environ)
        assert done.code == code, done.err
        assert done.json.keys() >= CONTRACT | ERROR
        assert (done.json["ok"], done.json["code"], done.json["port_action"]) == (False, code, "blocked")
        assert done.json["dry_run"] is bool(args)
        assert len(done.json["pids"]) == len(done.json["cmdlines"])
    assert machine.left() == before
    answer: dict[str, object] = done.json
    return answer


def test_another_program_is_refused(machine: Machine, port: int) -> None:
    other = machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    answer = refused(machine, port, 2)
    assert (answer["pids"], answer["uids"]) == ([other.pid], [os.getuid()])
    assert "not vLLM" in str(answer["error"])


MENTIONS = {
    "shell": ["/bin/sh", "-c", "{python} {standin}; : vllm serve"],
    "timeout": ["timeout", "60", "{python}", "{standin}", "vllm", "serve"],
    "grep": ["{python}", "{standin}", "vllm serve", "-m", "vllm.entrypoints.openai.api_server"],
}


@pytest.mark.parametrize("name", MENTIONS)
def test_what_only_mentions_vllm_is_refused(machine: Machine, port: int, name: str) -> None:
    argv = [word.format(python=sys.executable, standin=machine.standin) for word in MENTIONS[name]]
    machine.start(argv, LISTEN=f"127.0.0.1:{port}")
    refused(machine, port, 2)


CARRIERS = {
    "shell": ["/bin/sh", "-c", "{python} {vllm} serve model; sleep 100"],
    "timeout": ["timeout", "60", "{python}", "{vllm}", "serve"],
    "tmux": ["tmux", "-L", "vllmrt-{port}", "-f", "/dev/null", "new-session", "-d", "{python} {vllm} serve; sleep 100"],
    "editor": ["vim", "-e", "-s", "-c", "!{python} {vllm} serve"],
}


@pytest.mark.parametrize("name", CARRIERS)
def test_the_root_is_vllm_and_not_what_started_it(machine: Machine, port: int, name: str) -> None:
    names = {"python": sys.executable, "vllm": machine.vllm, "port": port}
    carrier = machine.start([word.format(**names) for word in CARRIERS[name]], LISTEN=f"127.0.0.1:{port}")
    if name == "tmux":  # its server goes into the background
        pid = subprocess.run(
            ["tmux", "-L", f"vllmrt-{port}", "display-message", "-p", "#{pid}"], capture_output=True, check=True
        ).stdout
        survivor = int(pid)
    else:
        survivor = carrier.pid
    try:
        done = machine.preflight("--json", "--port", str(port))
        assert (done.code, done.json["port_action"]) == (0, "stopped"), done.err
        assert done.json["reclaimed_roots"] != [survivor]
        if name in {"shell", "tmux"}:  # the others end by themselves when what they run does
            assert alive(survivor)
    finally:
        if name == "tmux":
            subprocess.run(["tmux", "-L", f"vllmrt-{port}", "kill-server"], check=False)


def test_an_api_server_below_its_launcher(machine: Machine, port: int) -> None:
    """The launcher is above what has the socket, with a process between that is no vLLM by its command line."""
    spawner = machine.path / "spawner.py"
    spawner.write_text(
        "import os, subprocess, sys\n"
        "p = subprocess.Popen(['VLLM::APIServer_0'], executable=sys.executable, stdin=open(os.environ['STANDIN']))\n"
        "p.wait()\n"
    )
    launcher = machine.path / "launch" / "vllm"
    launcher.parent.mkdir()
    launcher.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(spawner)!r}])\n")
    top = machine.start([sys.executable, launcher, "serve"], LISTEN=f"127.0.0.1:{port}")
    done = machine.preflight("--json", "--port", str(port))
    assert (done.code, done.json["reclaimed_roots"]) == (0, [top.pid])
    assert machine.left() == []


def test_a_title_is_enough(machine: Machine, port: int) -> None:
    machine.start(["VLLM::APIServer_0"], executable=sys.executable, LISTEN=f"127.0.0.1:{port}")
    assert machine.preflight("--port", str(port)).code == 0
    assert not listens(port)


def test_a_prefix_and_a_signature_of_ones_own(machine: Machine, port: int) -> None:
    machine.start(["Prod::APIServer"], executable=sys.executable, LISTEN=f"127.0.0.1:{port}")
    refused(machine, port, 2)
    assert machine.preflight("--port", str(port), environ={"VLLM_PROCESS_NAME_PREFIX": "Prod"}).code == 0
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    assert machine.preflight("--port", str(port), environ={"VLLM_PROCESS_SIGNATURES": "x, standin.py"}).code == 0
    assert machine.left() == []


@pytest.mark.parametrize("address", ["::1", "::"])
def test_ipv6(machine: Machine, port: int, address: str) -> None:
    machine.serve(port=port, host=address, V6ONLY="1")
    free = machine.preflight("--json", "--host", "127.0.0.1", "--port", str(port))
    assert (free.code, free.json["port_action"]) == (0, "noop")
    done = machine.preflight("--json", "--host", "::1", "--port", str(port))
    assert (done.code, done.json["port_action"], done.json["host"]) == (0, "stopped", "::1")


def test_an_address_in_brackets_is_shown_with_one_pair_of_them(machine: Machine, port: int) -> None:
    assert f" [::1]:{port} is free" in machine.preflight("--host", "[::1]", "--port", str(port)).err


@root_only
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_a_name_with_several_addresses(machine: Machine, port: int, address: str) -> None:
    hosts = machine.path / "hosts"
    hosts.write_text("127.0.0.1 many\n127.0.0.2 many\n::1 many\n")
    wrapper = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    stale = machine.serve(port=port, host=address, V6ONLY="1")
    other = machine.serve(port=port, host="127.0.0.3")
    done = machine.preflight("--json", "--host", "many", "--port", str(port), wrapper=wrapper)
    assert (done.code, done.json["host"], done.json["reclaimed_roots"]) == (0, "many", [stale.pid]), done.err
    assert machine.left() == [other.pid]


def test_two_listeners_of_two_kinds_and_nothing_is_stopped(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.2:{port}")
    free = machine.preflight("--json", "--host", "0.0.0.0", "--port", str(port))  # noqa: S104 - asked, not bound
    assert (free.code, len(free.json["pids"])) == (2, 2)
    assert len(machine.left()) == 2


# what stops badly


def test_what_ignores_sigterm_is_killed(machine: Machine, port: int) -> None:
    machine.serve(port=port, ON_TERM="ignore", WORKERS="2", DEAF_WORKERS="1")
    begin = time.monotonic()
    assert machine.preflight("--port", str(port), "--stop-timeout", "1").code == 0
    assert time.monotonic() - begin < 6
    assert machine.left() == []


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_interrupted_it_does_not_speak_of_what_was_fetched(
    machine: Machine, port: int, number: signal.Signals, name: str
) -> None:
    machine.serve(port=port, ON_TERM="ignore")
    command = [VLLMRT, "preflight", "--port", str(port)]
    with subprocess.Popen(command, env=machine.environ, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: held(machine.path / "lock"))
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"by {name}" in err
    assert "fetched" not in err


def test_what_is_suspended_goes_on_and_ends_as_others_do(machine: Machine, port: int) -> None:
    """As after Ctrl-Z; the kernel still takes connections for it."""
    stale = machine.serve(port=port, ON_TERM="note", NOTES=str(machine.path / "notes"))
    stale.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert machine.preflight("--port", str(port)).code == 0
    assert time.monotonic() - begin < 10  # VLLM_STOP_TIMEOUT is 15 s
    assert (machine.path / "notes").read_text() == "SIGTERM\n"
    assert machine.left() == []


def test_what_forks_while_it_is_stopped(machine: Machine, port: int) -> None:
    machine.serve(port=port, ON_TERM="fork")
    done = machine.preflight("--port", str(port))
    assert done.code == 0, done.err
    assert machine.left() == []


def test_what_is_bound_again_by_something_else(machine: Machine, port: int) -> None:
    """Like a supervisor's next try, it lives on: it is nobody's that was to be stopped."""
    _, heir = hand_over(machine, port)
    done = machine.preflight("--json", "--port", str(port))
    assert done.code == 5, done.err
    assert (done.json["port_action"], done.json["pids"]) == ("stop_failed", [heir.pid])
    assert "bound again" in done.json["error"]
    assert machine.left() == [heir.pid]


def test_a_clean_stop_is_noticed_at_once(machine: Machine, port: int) -> None:
    """Measured inside: the interpreter's start is none of it."""
    settings = Settings(port=port)
    host = PluginHost(settings)
    taken = []
    for _ in range(3):
        stale = machine.serve(port=port)
        state = inspect(settings, host)
        begin = time.monotonic()
        stopped = reclaim(state, settings, host)
        taken.append(time.monotonic() - begin)
        assert stopped.roots == (stale.pid,)
        stale.wait(5)
    assert min(taken) < 0.5  # two looks at the process table, the end of a Python, and at most 50 ms


# strange command lines


@pytest.mark.parametrize(
    "words", [["--api-key", "canary-1", "canary-2"], ["--hf-token=canary"], ["sh -c 'VLLM_API_KEY=canary serve'"]]
)
def test_no_key_on_a_command_line_is_shown(machine: Machine, port: int, words: list[str]) -> None:
    machine.start([sys.executable, machine.vllm, "serve", *words, "--port", "1"], LISTEN=f"127.0.0.1:{port}")
    for args in (["--dry-run"], []):
        done = machine.preflight("--port", str(port), "--json", *args)
        assert done.code == 0
        (shown,) = done.json["cmdlines"]
        assert shown.endswith(" --port 1")
        assert "********" in shown
        assert "canary" not in done.out + done.err


def test_a_command_line_of_100_kb_and_bytes_that_are_no_text(machine: Machine, port: int) -> None:
    long = "x" * 100_000
    machine.start([sys.executable, machine.standin, b"\xff\xfe\n\x1b[2J", long], LISTEN=f"127.0.0.1:{port}")
    answer = refused(machine, port, 2)
    (shown,) = answer["cmdlines"]  # type: ignore[misc]
    assert len(shown) <= 200
    assert "\\udcff" in shown
    assert "\x1b" not in str(answer)
    assert "\n" not in shown


def test_a_vllm_with_a_command_line_of_100_kb(machine: Machine, port: int) -> None:
    machine.start([sys.executable, machine.vllm, "serve", "x" * 100_000, b"\xff"], LISTEN=f"127.0.0.1:{port}")
    assert machine.preflight("--port", str(port)).code == 0
    assert machine.left() == []


def test_what_changes_its_title_is_judged_by_what_it_is_now(machine: Machine, port: int) -> None:
    script = machine.path / "changing.py"
    script.write_text(
        "import os, sys\nif len(sys.argv) > 1:\n    os.execve(sys.executable, ['VLLM::APIServer'], os.environ)\n"
    )
    with machine.standin.open("rb") as stdin:
        mark = machine.path / "changed"
        environ = machine.environ | {"LISTEN": f"127.0.0.1:{port}", "READY": str(mark)}
        changed = subprocess.Popen([sys.executable, script, "x"], env=environ, stdin=stdin, start_new_session=True)
    machine.sessions.append(changed)
    wait_for(mark.exists)
    done = machine.preflight("--json", "--port", str(port))
    assert (done.code, done.json["reclaimed_roots"]) == (0, [changed.pid])


# other users, and what cannot be seen


def test_another_users_vllm(machine: Machine, port: int, as_other: list[str]) -> None:
    command = [sys.executable, str(machine.vllm), "serve"]
    stale = machine.start(command, wrapper=as_other, LISTEN=f"127.0.0.1:{port}")
    answer = refused(machine, port, 3)
    assert (answer["pids"], answer["uids"], answer["blocked_roots"]) == ([stale.pid], [OTHER], [stale.pid])
    done = machine.preflight("--json", "--port", str(port), environ={"VLLM_ALLOW_OTHER_UID_KILL": "1"})
    assert (done.code, done.json["reclaimed_roots"]) == (0, [stale.pid])


def test_without_rights_another_users_process_is_not_attributable(
    machine: Machine, port: int, as_other: list[str]
) -> None:
    machine.serve(port=port)
    before = machine.left()
    done = machine.preflight("--json", "--port", str(port), wrapper=as_other)
    assert (done.code, done.json["could_scan"], done.json["pids"], done.json["uids"]) == (4, False, [], [0])
    assert "may not be looked into" in done.json["error"]
    assert machine.left() == before


def test_hidepid(machine: Machine, port: int, as_other: list[str]) -> None:
    machine.serve(port=port)
    hide = f"mount -t proc -o hidepid=2 proc /proc && exec {' '.join(as_other)} {VLLMRT} preflight --json --port {port}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide], env=machine.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["could_scan"], answer["uids"], answer["port_action"]) == (False, [0], "blocked")
    assert listens(port)


@root_only
def test_an_owner_in_another_pid_namespace(machine: Machine, port: int) -> None:
    """As in a container with the host's network: the socket is seen, its process is not."""
    machine.serve(port=port)
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = machine.preflight("--json", "--port", str(port), wrapper=inside)
    assert (done.code, done.json["code"]) == (4, 4)
    assert listens(port)


@root_only
def test_an_owner_in_another_network_namespace_is_not_in_the_way(machine: Machine, port: int) -> None:
    away = machine.start(
        ["sh", "-c", f"ip link set lo up; exec {sys.executable} {machine.vllm} serve"],
        wrapper=["unshare", "--net"],
        LISTEN=f"127.0.0.1:{port}",
    )
    done = machine.preflight("--json", "--port", str(port))
    assert (done.code, done.json["port_action"]) == (0, "noop")
    assert alive(away.pid)


# plugins


def plugin(machine: Machine, body: str) -> dict[str, str]:
    source = "import vllmrt\nfrom vllmrt.types import Verdict\n@vllmrt.hookimpl\n"
    site = machine.path / "site"
    groups = {"vllmrt.plugins": {"acme": "acme"}}
    fake_dist(site, "acme", "1.0", groups, {"acme": f"{source}def vllmrt_classify_process(process):\n    {body}\n"})
    return {"PYTHONPATH": str(site)}


def test_a_protected_process_is_refused(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    answer = refused(machine, port, 2, **plugin(machine, "return Verdict.PROTECTED"))
    assert "protected" in str(answer["error"])


def test_a_protected_child_protects_the_whole_tree(machine: Machine, port: int) -> None:
    machine.serve(port=port, ENGINE="VLLM::EngineCore")
    protect = plugin(machine, "return Verdict.PROTECTED if process.title == 'VLLM::EngineCore' else None")
    refused(machine, port, 2, **protect)


# The first listens; below it is one whose first thread has ended, a zombie by its state, and below that a third.
LEADERLESS = """\
import ctypes, os, socket, subprocess, sys, threading, time
role = sys.argv[1]
if role == "serve":
    host, _, port = os.environ["LISTEN"].rpartition(":")
    listener = socket.create_server((host, int(port)))
    subprocess.Popen([sys.executable, __file__, "between"])
elif role == "between":
    def go_on():
        while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        subprocess.run([sys.executable, __file__, "below"])
    threading.Thread(target=go_on).start()
    ctypes.CDLL(None).pthread_exit(None)
else:
    open(os.environ["READY"], "w").close()
time.sleep(100)
"""


def test_what_is_below_a_process_that_shows_nothing_of_itself_protects_the_whole_tree(
    machine: Machine, port: int
) -> None:
    machine.vllm.write_text(LEADERLESS)
    top = machine.start([sys.executable, machine.vllm, "serve"], LISTEN=f"127.0.0.1:{port}")
    (between,) = children(top.pid)
    assert ProcFs().info(between) is None
    refused(machine, port, 2, **plugin(machine, "return Verdict.PROTECTED if 'below' in process.argv else None"))


def test_what_may_not_be_looked_into_is_another_users(machine: Machine, port: int) -> None:
    class Hiding(ProcFs):
        def info(self, pid: int) -> ProcessInfo | None:
            return None if pid == hidden else super().info(pid)

    stale = machine.serve(port=port, WORKERS="1")
    (hidden,) = children(stale.pid)
    settings = Settings(port=port)
    with pytest.raises(PortOtherUser):
        reclaim(inspect(settings, PluginHost(settings), Hiding()), settings, PluginHost(settings))
    assert listens(port)


@pytest.mark.parametrize("body", ["raise ValueError('boom')", "return 'vllm'", "raise SystemExit"])
def test_a_classifier_that_breaks_stops_nothing(machine: Machine, port: int, body: str) -> None:
    machine.serve(port=port)
    answer = refused(machine, port, 4, **plugin(machine, body))
    assert "acme 1.0" in str(answer["error"])


def test_a_classifier_that_hangs_stops_nothing(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    hanging = plugin(machine, "import time; time.sleep(60)")
    answer = refused(machine, port, 4, VLLMRT_PLUGIN_TIMEOUT="0.5", **hanging)
    assert "acme 1.0: vllmrt_classify_process gave no answer in 0.5 s" in str(answer["error"])


@pytest.mark.parametrize("prelude", ["raise ValueError('boom')", "import time; time.sleep(60)"])
def test_a_classifier_that_cannot_be_loaded_stops_the_run(machine: Machine, port: int, prelude: str) -> None:
    machine.serve(port=port)
    broken = plugin(machine, "return None")
    (machine.path / "site" / "acme.py").write_text(prelude)
    before = machine.left()
    done = machine.preflight("--json", "--port", str(port), environ={"VLLMRT_PLUGIN_TIMEOUT": "0.5", **broken})
    assert (done.code, machine.left()) == (1, before)
    assert done.json["error"].startswith("acme 1.0: loading ")
    assert "VLLMRT_DISABLE_PLUGINS=acme" in done.json["hint"]


def test_a_plugin_may_know_more_and_no_opinion_changes_nothing(machine: Machine, port: int) -> None:
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    know = plugin(machine, "return Verdict.VLLM if 'standin' in ' '.join(process.argv) else None")
    assert machine.preflight("--port", str(port), environ=know).code == 0
    assert machine.left() == []


def test_without_any_classifier_nothing_is_vllm(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    refused(machine, port, 2, VLLMRT_DISABLE_PLUGINS="vllmrt")


# inspect, without the command


SPY = """\
import json, os, sys
seen = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir"):
        seen.append(os.fsdecode(args[0]) if isinstance(args[0], bytes) else str(args[0]))
from vllmrt.settings import Settings
from vllmrt.host import PluginHost
from vllmrt.preflight.port import inspect
settings = Settings(port=int(sys.argv[1]))
host = PluginHost(settings)
sys.addaudithook(hook)
state = inspect(settings, host)
print(json.dumps([len(state.listeners), [path for path in seen if path.startswith("/proc")]]))
"""


def spied(port: int) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-c", SPY, str(port)], capture_output=True, text=True, check=True)
    count, paths = json.loads(done.stdout)
    return count, paths


def test_nobody_listens_and_no_process_is_looked_at(machine: Machine, port: int) -> None:
    count, paths = spied(port)
    assert (count, set(paths) - {"/proc/sys/net/ipv6/bindv6only"}) == (0, set())
    machine.serve(port=port)
    count, paths = spied(port)
    assert count == 1
    assert f"/proc/{os.getpid()}/fd" in paths


def test_a_holder_and_its_tree_are_all_that_is_looked_at_twice(machine: Machine, port: int) -> None:
    """With thousands of processes, to read a line of each takes as long as all the rest."""
    read = []

    class Counting(ProcFs):
        def stat(self, pid: int) -> Stat | None:
            read.append(pid)
            return super().stat(pid)

    def looked_at(proc: ProcFs) -> set[int]:
        settings = Settings(port=port)
        holders = inspect(settings, PluginHost(settings), proc).holders
        return {one.pid for holder in holders for one in holder.tree}

    stale = machine.serve(port=port, WORKERS="2")
    tree = {stale.pid, *children(stale.pid)}
    assert looked_at(Counting()) == tree
    assert set(read) <= {*tree, *ProcFs().ancestry(stale.pid)}

    class Changing(ProcFs):
        """One whose first lists of children lack some, since others ended while they were read."""

        def children(self, pid: int) -> list[int] | None:
            missed.append(pid)
            found = super().children(pid)
            return found[1:] if found and len(missed) == 1 else found

    missed: list[int] = []
    assert looked_at(Changing()) == tree


class Racing(ProcFs):
    """A process table in which owners come and go between two reads."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def sockets(self, inodes: Iterable[int], pids: Iterable[int] | None = None) -> Sockets:
        self.looks -= 1
        return Sockets({}, 0) if self.looks >= 0 else super().sockets(inodes, pids)


def test_an_owner_that_is_seen_only_at_the_second_look(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    settings = Settings(port=port)
    state = inspect(settings, PluginHost(settings), Racing(1))
    assert [root.pid for root in state.roots] == [stale.pid]
    assert check(state, settings) is PortAction.STOP


def test_an_owner_that_is_never_seen(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    settings = Settings(port=port)
    state = inspect(settings, PluginHost(settings), Racing(99))
    assert (len(state.unowned), state.holders, state.could_scan) == (1, (), False)


def test_an_owner_that_has_gone_between_the_tables_leaves_the_port_free(port: int) -> None:
    settings = Settings(port=port)
    held = socket.create_server(("127.0.0.1", port))

    class Leaving(ProcFs):
        def sockets(self, inodes: Iterable[int], pids: Iterable[int] | None = None) -> Sockets:
            found = super().sockets(inodes, pids)
            held.close()
            return Sockets({}, found.hidden)

    state = inspect(settings, PluginHost(settings), Leaving())
    assert check(state, settings) is PortAction.NOOP


def test_an_owner_that_exits_in_the_middle_of_the_scan(machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    settings = Settings(port=port)

    class Dying(ProcFs):
        def sockets(self, inodes: Iterable[int], pids: Iterable[int] | None = None) -> Sockets:
            found = super().sockets(inodes, pids)
            stale.kill()
            stale.wait()
            return found

    assert check(inspect(settings, PluginHost(settings), Dying()), settings) is PortAction.NOOP


def test_we_never_stop_ourselves(machine: Machine, port: int) -> None:
    """A vLLM that runs vllmrt, in a hook of its own, is no stale one."""
    machine.vllm.write_text(
        "import os, socket, subprocess, sys\n"
        f"s = socket.create_server(('127.0.0.1', {port}))\n"
        f"done = subprocess.run([{VLLMRT!r}, 'preflight', '--port', '{port}'])\n"
        "sys.exit(40 + done.returncode)\n"
    )
    process = machine.start([sys.executable, machine.vllm, "serve"], ready=False)
    assert process.wait(30) == 42


def test_init_is_never_ours_to_stop(tmp_path: Path) -> None:
    """A recorded /proc, in which process 1 is vllm serve, as in a container."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(
        "sl\n 0: 0100007F:1F90 0:0 0A 0:0 0:0 0 0 0 777 1 0\n" if sys.byteorder == "little" else ""
    )
    one = tmp_path / "1"
    (one / "fd").mkdir(parents=True)
    (one / "fd/3").symlink_to("socket:[777]")
    (one / "stat").write_text("1 (vllm) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 0 0 55 0 99 0")
    (one / "cmdline").write_bytes(b"python\0/bin/vllm\0serve\0")
    (one / "status").write_text(f"Name:\tvllm\nUid:\t{os.geteuid()}\t0\t0\t0\n")
    settings = Settings(port=8080)
    state = inspect(settings, PluginHost(settings), ProcFs(tmp_path))
    assert [holder.verdict for holder in state.holders] == [Verdict.PROTECTED]
