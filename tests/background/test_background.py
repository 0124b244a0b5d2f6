"""``vllmrt up --detach``, ``status``, ``logs`` and ``down``: real processes, in the real background."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from background.conftest import KEY
from standin import VLLMRT, alive, children, listens, wait_for

from vllmrt.background import control
from vllmrt.host import PluginHost
from vllmrt.masking import Masker
from vllmrt.serve.launch import LaunchPlan
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from background.conftest import User
    from cli.test_machine import Done


def words(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def event(done: Done, name: str) -> dict[str, Any]:
    return next(json.loads(line) for line in done.err.splitlines() if json.loads(line)["event"] == name)


def test_it_is_started_looked_at_and_stopped_with_all_that_it_started(user: User) -> None:
    done = user.detach(WORKERS="2", LOADS="4")
    assert done.code == 0, done.err
    pid = done.json["pid"]
    assert (done.json["model"], done.json["ready"]) == ("acme/llama", False)
    starting = user.status()
    assert (starting["ok"], starting["state"], starting["pid"], starting["port"]) == (True, "starting", pid, user.port)
    healthy = user.wait_for("healthy")
    assert healthy["url"] == f"http://127.0.0.1:{user.port}"
    workers = children(pid)
    assert len(workers) == 2
    stopped = user.run("down", "--json")
    assert stopped.code == 0, stopped.err
    assert (stopped.json["was"], stopped.json["alive"], stopped.json["killed"]) == (pid, [], [])
    assert sorted(stopped.json["signalled"]) == sorted([pid, *workers])
    assert f"process {pid} was stopped, 3 processes in all" in stopped.err
    assert user.processes() == []
    told = user.run("status")
    assert (told.code, told.out.partition(";")[0]) == (1, f"nothing was started in the background on port {user.port}")
    again = user.run("down", "--json")
    assert (again.code, again.json["was"], again.json["signalled"]) == (0, None, [])


def test_it_has_a_session_of_its_own_and_nothing_of_ours(user: User) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - the signature is Python's
    try:
        done = subprocess.run(
            [VLLMRT, "up", "acme/llama", "--detach", "--json"],
            env=user.environ({}),
            capture_output=True,
            text=True,
            close_fds=False,
            check=False,
        )
    finally:
        os.close(descriptor)
    pid = json.loads(done.stdout)["pid"]
    state, parent, group, session = words(pid)[:4]
    assert state != "Z"
    assert int(parent) not in {os.getpid(), pid}
    assert (int(group), int(session)) == (pid, pid)
    folder = Path(f"/proc/{pid}/fd")
    wait_for(lambda: listens(user.port))
    leads = {}
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # the connection of whoever asked whether it listens, for one
            leads[int(entry.name)] = str(entry.readlink())
    log = str(user.folder / f"{user.port}.log")
    opened = {number: target for number, target in leads.items() if not target.startswith("socket:")}
    assert opened == {0: "/dev/null", 1: log, 2: log}


def test_what_is_kept_is_private_and_holds_no_secret(user: User) -> None:
    for _ in range(2):
        assert user.run("up", "acme/llama", "--detach", HF_TOKEN="a-token-of-a-test").code == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [user.folder, *user.folder.iterdir()]}
    files = [f"{user.port}.{ending}" for ending in ("json", "log", "log.1", "lock")]
    assert modes == {"background": 0o700} | dict.fromkeys(files, 0o600)
    kept = user.state
    assert set(kept) == {"pid", "start_ticks", "boot", "model", "url", "argv", "log", "since"}
    assert kept["argv"][1] == "serve"
    assert abs(kept["since"] - time.time()) < 60
    for name in files:
        text = (user.folder / name).read_text()
        assert KEY not in text
        assert "a-token" not in text


def test_a_secret_among_the_extra_arguments_is_not_kept(user: User) -> None:
    done = user.detach("--", "--hf-token", "not-to-be-seen")
    assert done.code == 0, done.err
    assert user.state["argv"][-2:] == ["--hf-token", "********"]
    assert b"not-to-be-seen" in Path(f"/proc/{done.json['pid']}/cmdline").read_bytes()


# -- waiting ------------------------------------------------------------------------------


def test_waiting_ends_with_the_first_token(user: User) -> None:
    done = user.detach("--wait", "--log-format", "json", LOADS="1")
    assert (done.code, done.json["ready"]) == (0, True), done.err
    assert event(done, "background.ready")["text"] == "it is healthy, and made its first token"
    path, authorized, body = json.loads(user.run("logs").out.partition("asked ")[2])
    assert (path, authorized, body["max_tokens"]) == ("/v1/completions", True, 1)


@pytest.mark.parametrize("answer", ["404", "501"])
def test_a_model_that_makes_no_text_is_ready_when_it_is_healthy(user: User, answer: str) -> None:
    assert user.detach("--wait", ANSWERS=answer).code == 0


@pytest.mark.parametrize(("dies", "status"), [("3", 3), ("-9", 137)])
def test_a_server_that_dies_is_told_with_its_status_and_its_last_lines(user: User, dies: str, status: int) -> None:
    done = user.detach("--wait", DIES=dies, LOADS="0.5")
    assert (done.code, done.json["code"], done.json["class"]) == (21, 21, "ServerFailed")
    assert done.json["status"] == status
    assert done.json["lines"][-1] == "its last words ********"
    assert f"ended with status {status}" in done.err
    assert "| its last words ********" in done.err
    assert KEY not in done.out + done.err
    assert user.status()["state"] == "ended"
    stopped = user.run("down")
    assert (stopped.code, "had ended already" in stopped.err) == (0, True)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"LOADS": "60"}, "it does not listen"),
        ({"HEALTH": "503"}, "/health answers 503"),
        ({"ANSWERS": "500"}, "answers 500 to a prompt"),
        ({"TOKENS": "0"}, "answers 200 to a prompt"),
    ],
)
def test_one_that_is_not_ready_in_time_goes_on(user: User, env: dict[str, str], reason: str) -> None:
    done = user.detach("--wait", "--ready-timeout", "2", **env)
    assert (done.code, done.json["status"]) == (21, None)
    assert reason in done.json["error"]
    assert alive(done.json["pid"])
    assert user.state["pid"] == done.json["pid"]


def test_ctrl_c_ends_the_waiting_and_not_the_server(user: User) -> None:
    with user.start("up", "acme/llama", "--detach", "--wait", LOADS="60") as waiting:
        pid = wait_for(lambda: (user.folder / f"{user.port}.json").exists() and user.state["pid"])
        time.sleep(0.3)
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert "goes on in the background" in err
    assert alive(pid)


def test_waiting_needs_something_to_wait_for(user: User) -> None:
    done = user.run("up", "acme/llama", "--wait")
    assert (done.code, user.processes()) == (64, [])


def test_a_dry_run_starts_and_writes_nothing(user: User) -> None:
    done = user.detach("--dry-run")
    assert (done.code, done.json["dry_run"]) == (0, True)
    assert (user.processes(), user.folder.exists()) == ([], False)


def test_an_engine_that_cannot_be_executed_is_refused_with_20(user: User) -> None:
    user.engine.write_bytes(b"\x7fELF no program\n")
    done = user.detach()
    assert (done.code, user.processes()) == (20, [])
    assert not (user.folder / f"{user.port}.json").exists()


# -- one after the other ------------------------------------------------------------------


def test_the_next_one_takes_the_port_of_one_that_serves(user: User) -> None:
    first = user.detach("--wait").json["pid"]
    second = user.detach("--wait").json
    assert not alive(first)
    assert second["preflight"]["reclaimed_roots"] == [first]
    assert user.wait_for("healthy")["pid"] == second["pid"]


def test_and_of_one_that_does_not_listen_yet(user: User) -> None:
    """No preflight can see that one, but it is known."""
    first = user.detach(LOADS="60", WORKERS="1").json["pid"]
    done = user.detach("--log-format", "json")
    assert event(done, "background.replaced")["roots"] == [first]
    assert user.wait_for("healthy")["pid"] == done.json["pid"]
    assert user.processes() == [done.json["pid"]]


def test_of_several_at_once_one_is_left_and_it_is_the_one_that_is_kept(user: User) -> None:
    starts = [user.start("up", "acme/llama", "--detach", "--no-preflight", LOADS="1") for _ in range(4)]
    for process in starts:
        process.communicate(timeout=60)
    assert [process.returncode for process in starts] == [0] * 4
    assert user.processes() == [user.state["pid"]]


def test_servers_on_two_ports_know_nothing_of_each_other(user: User) -> None:
    first = user.detach().json["pid"]
    assert user.run("down", "--port", str(user.port + 1 if user.port < 65535 else 1024)).code == 0
    assert alive(first)
    told = user.run("status", "--port", "1023")
    assert (told.code, f"something on port {user.port}" in told.out) == (1, True)


def test_it_outlives_its_terminal(user: User) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["/usr/bin/setsid", "--ctty", VLLMRT, "up", "acme/llama", "--detach"],
        env=user.environ({}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    pid = wait_for(lambda: (user.folder / f"{user.port}.json").exists() and user.state["pid"])
    assert process.wait(30) == 0
    os.close(ours)
    time.sleep(0.3)
    assert user.wait_for("healthy")["pid"] == pid


# -- what may not be trusted --------------------------------------------------------------


def keep(user: User, **changes: object) -> Path:
    """Keep something of a server that nobody started, as a recycled number leaves it."""
    user.folder.mkdir(parents=True, mode=0o700)
    known = {"pid": 4, "start_ticks": 5, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    known |= {"model": "acme/llama", "url": "http://127.0.0.1:1", "argv": ["vllm"], "log": "x", "since": 0.0, **changes}
    path = user.folder / f"{user.port}.json"
    path.write_text(json.dumps(known))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("recycled", ["start_ticks", "boot"])
def test_a_number_that_was_given_again_is_never_signalled(
    user: User, bystander: subprocess.Popen[bytes], recycled: str
) -> None:
    own = {"pid": bystander.pid, "start_ticks": int(words(bystander.pid)[19])}
    keep(user, **own | ({"start_ticks": own["start_ticks"] - 1} if recycled == "start_ticks" else {"boot": "another"}))
    assert user.status()["state"] == "ended"
    done = user.run("down", "--json")
    assert (done.code, done.json["signalled"]) == (0, [])
    assert bystander.poll() is None
    assert user.status()["state"] == "none"


def test_the_very_process_would_be(user: User, bystander: subprocess.Popen[bytes]) -> None:
    """Without this, the test above could not fail."""
    keep(user, pid=bystander.pid, start_ticks=int(words(bystander.pid)[19]))
    assert user.run("down", "--json").json["signalled"] == [bystander.pid]


def spoil(path: Path, how: str) -> None:
    good = path.read_bytes()
    path.unlink()
    if how == "link":
        path.with_name("elsewhere").write_bytes(good)
        path.symlink_to("elsewhere")
    elif how == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes({"garbage": b"{", "type": b"[]", "init": good.replace(b'"pid": ', b'"pid": -')}.get(how, good))
        path.chmod(0o666 if how == "writable" else 0o600)
    if how == "foreign":
        if os.geteuid():
            pytest.skip("needs root, to give a file away")
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize("how", ["link", "fifo", "garbage", "type", "init", "writable", "foreign"])
def test_what_is_kept_is_refused_where_it_may_be_anothers(
    user: User, bystander: subprocess.Popen[bytes], how: str
) -> None:
    spoil(keep(user, pid=bystander.pid, start_ticks=int(words(bystander.pid)[19])), how)
    for command in ("status", "down"):
        done = user.run(command, "--json")
        assert (done.code, done.json["class"]) == (1, "ConfigError")
        assert f"rm {user.folder / f'{user.port}.json'}" in done.json["hint"]
    assert bystander.poll() is None


def test_a_link_in_the_place_of_the_log_is_not_followed(user: User) -> None:
    precious = user.root / "precious"
    precious.write_text("mine")
    user.folder.mkdir(parents=True)
    (user.folder / f"{user.port}.log").symlink_to(precious)
    assert user.detach("--wait").code == 0
    assert precious.read_text() == "mine"


def test_a_link_in_the_place_of_the_log_is_not_shown_either(user: User) -> None:
    (precious := user.root / "precious").write_text("mine")
    user.detach()
    path = user.folder / f"{user.port}.log"
    path.unlink()
    path.symlink_to(precious)
    for how in ((), ("--follow",), ("--json",)):
        assert "mine" not in user.run("logs", *how).out


def test_a_server_of_which_nothing_can_be_kept_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(control.state, "save", full)
    monkeypatch.setattr(
        control.subprocess, "Popen", lambda *args, **how: started.append(popen(*args, **how)) or started[0]
    )
    settings = Settings(flox_env_cache=tmp_path)
    plan = LaunchPlan(["/bin/sleep", "600"], dict(os.environ), [])
    try:
        with pytest.raises(OSError, match="No space"):
            control.start(plan, "acme/llama", settings, PluginHost(settings), Masker({}, settings))
        assert started[0].returncode == -signal.SIGKILL
    finally:
        started[0].kill()


# -- the log ------------------------------------------------------------------------------


def test_the_log_of_the_one_before_is_kept(user: User) -> None:
    for said in ("first", "second", "third"):
        assert user.detach("--wait", SAYS=said).code == 0
    assert "it loads third" in user.run("logs").out
    assert "it loads second" in (user.folder / f"{user.port}.log.1").read_text()
    assert len(list(user.folder.glob("*.log*"))) == 2


def test_the_log_outlives_the_server(user: User) -> None:
    user.detach("--wait")
    user.run("down")
    told = user.run("logs", "--json").json
    assert told["lines"][0].startswith("it loads")
    assert told["log"] == str(user.folder / f"{user.port}.log")


def test_following_ends_with_the_server_and_misses_nothing(user: User) -> None:
    user.detach(LOADS="1.5", DIES="1")
    started = time.monotonic()
    done = user.run("logs", "-f")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"its last words {KEY}"
    assert time.monotonic() - started < 20


def test_following_asks_the_server_nothing_and_goes_on_while_it_is_unhealthy(user: User) -> None:
    user.detach(HEALTH="503", ACCESS_LOG="1")
    wait_for(lambda: listens(user.port))
    with user.start("logs", "--follow") as following:
        with pytest.raises(subprocess.TimeoutExpired):
            following.wait(2)
        assert user.run("down").code == 0
        out, _ = following.communicate(timeout=20)
    assert following.returncode == 0
    assert out.splitlines() == ["it loads "]


def test_following_goes_over_to_the_log_of_the_next_one(user: User) -> None:
    user.detach(SAYS="first")
    with user.start("logs", "--follow") as following:
        assert following.stdout
        assert "first" in following.stdout.readline()
        user.detach(SAYS="second", LOADS="1", DIES="1")
        out, _ = following.communicate(timeout=30)
    assert "it loads second" in out
    assert "its last words" in out


def test_ctrl_c_ends_the_following_without_a_word(user: User) -> None:
    user.detach()
    with user.start("logs", "--follow") as following:
        assert following.stdout
        assert "it loads" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.communicate(timeout=20)[1] == ""
    assert following.returncode == 130


def test_a_log_cannot_steer_the_terminal(user: User) -> None:
    user.detach("--wait", SAYS="\x1b]0;title\x07 and \t a bar\rover\n")
    code, seen = user.on_terminal("logs")
    assert code == 0
    assert "\\x1b]0;title\\x07" in seen
    assert "a bar\nover" in seen
    assert user.run("logs").out.startswith("it loads \x1b]0;title")  # as it is, where no terminal reads it


@pytest.mark.parametrize("args", [[], ["--json"], ["--follow"]])
def test_without_a_log_there_is_a_remedy(user: User, args: list[str]) -> None:
    done = user.run("logs", *args)
    assert done.code == 1
    assert "vllmrt up --detach" in done.err


def test_json_has_no_end_to_follow(user: User) -> None:
    user.detach("--wait")
    assert user.run("logs", "--json", "-f").code == 64
