"""The reference's chapter "Security notes", and what an attacker could put where the scripts look."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from compatkit import MODEL_ID, PREFLIGHT, RESOLVE, SERVE, User
from standin import held, wait_for

if TYPE_CHECKING:
    from pathlib import Path


def base(user: User) -> str:
    return f"VLLM_MODEL_ID='{MODEL_ID}'\nVLLM_MODEL_PATH='{user.local}'\n_VLLM_RESOLVED_MODEL='{user.local}'\n"


def refused(user: User, *words: str, **env: str) -> None:
    """Hold that vllm-serve ends with 1 and a remedy, and starts nothing."""
    done = user.run(SERVE, **env)
    assert (done.code, done.out) == (1, ""), done.err
    assert "hint " in done.err
    for word in words:
        assert word in done.err
    assert not (user.root / "ran").exists()


# -- Env file trust model ------------------------------------------------------------------------

LOADERS = ["PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV"]


@pytest.mark.parametrize("name", LOADERS)
def test_what_decides_which_code_runs_is_refused(name: str, ready: User) -> None:
    evil = ready.root / "evil"
    evil.mkdir()
    program = evil / "vllm"
    program.write_text(f"#!/bin/sh\ntouch {ready.root}/ran\n")
    program.chmod(0o755)
    ready.write_env_file(f"{base(ready)}export {name}='{evil}'\n")
    refused(ready, name, "take it out")


def test_the_env_file_does_not_choose_the_engine(ready: User) -> None:
    program = ready.root / "evil"
    program.write_text(f"#!/bin/sh\ntouch {ready.root}/ran\n")
    program.chmod(0o755)
    ready.write_env_file(f"{base(ready)}export VLLMRT_VLLM='{program}'\nexport VLLMRT_SETTINGS_FILE=/dev/null\n")
    assert ready.launched()["argv"][0] == ready.env["VLLMRT_VLLM"]
    assert not (ready.root / "ran").exists()


COMMANDS = {
    "command substitution": "A=$(touch ran)",
    "command substitution with backquotes": "A=`touch ran`",
    "in double quotes": 'A="$(touch ran)"',
    "interpolation": "A=${HOME}",
    "a second command": "A='b'; touch ran",
    "a bare command": "touch ran",
    "a newline in a value": "A='b\ntouch ran\n'",
    "an escaped newline": "A=b\\\ntouch ran",
    "a subscript that a shell evaluates": "A[$(touch ran)]=b",
    "process substitution": "A=<(touch ran)",
}


@pytest.mark.parametrize("lines", COMMANDS.values(), ids=COMMANDS)
def test_what_a_shell_would_run_is_refused(lines: str, ready: User) -> None:
    ready.write_env_file(f"{base(ready)}{lines}\n")
    refused(ready, "safe subset")


DATA = {
    "single quotes": ("A='$(touch ran) `touch ran` ${HOME}'", "$(touch ran) `touch ran` ${HOME}"),
    "an escaped newline in double quotes": (r'A="b\ntouch ran"', "b\ntouch ran"),
    "a comment": ("A='b' # $(touch ran)", "b"),
}


@pytest.mark.parametrize(("line", "value"), DATA.values(), ids=DATA)
def test_what_is_data_is_carried_as_data(line: str, value: str, ready: User) -> None:
    ready.write_env_file(f"{base(ready)}{line}\n")
    assert ready.launched()["environ"]["A"] == value
    assert not (ready.root / "ran").exists()


BYTES = {
    "NUL": b"A='b\0c'\n",
    "CR": b"A='b'\r\n",
    "not UTF-8": b"A='\xff'\n",
    "a line of 10 MB": b"A='" + b"b" * 10_000_000 + b"'\n",
    "a million lines": b"A='b'\n" * 1_000_000,
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_hostile_bytes_are_refused_quickly(content: bytes, ready: User) -> None:
    ready.write_env_file(base(ready).encode() + content)
    begin = time.monotonic()
    refused(ready)
    assert time.monotonic() - begin < 5


def link(user: User, path: Path) -> None:
    target = user.root / "target.env"
    path.rename(target)
    path.symlink_to(target)


def fifo(_: User, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def world_writable(_: User, path: Path) -> None:
    path.chmod(0o666)


def directory(_: User, path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [link, fifo, world_writable, directory], ids=lambda spoil: spoil.__name__)
def test_a_file_that_others_could_have_put_there_is_refused(
    spoil: object, ready: User, request: pytest.FixtureRequest
) -> None:
    assert callable(spoil), request.node.name
    spoil(ready, ready.env_file)
    refused(ready)


def test_a_file_of_another_user_is_refused(ready: User) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give a file away")
    os.chown(ready.env_file, 12345, 12345)
    refused(ready, "uid 12345")


def test_trusted_mode_runs_the_file_and_only_when_it_is_asked_for(ready: User) -> None:
    ready.write_env_file(f"{base(ready)}touch ran\n")
    refused(ready, "safe subset")
    ready.launched(VLLM_ENV_FILE_TRUSTED="yes")
    assert (ready.root / "ran").exists()


def test_no_secret_of_an_env_file_is_shown(ready: User) -> None:
    ready.write_env_file(f"{base(ready)}HF_TOKEN='hf_s3cr3t'\nVLLM_API_KEY='sk-s3cr3t'\n")
    done = ready.run(SERVE, "--print-cmd")
    assert done.code == 0
    assert "s3cr3t" not in done.err + str(done.json["argv"])
    ready.write_env_file(f"{base(ready)}HF_TOKEN='hf_s3cr3t\n")
    assert "s3cr3t" not in ready.run(SERVE).err


# -- File permissions -----------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_env_files_and_locks_are_for_their_owner_only(user: User) -> None:
    user.have_model()
    done = user.bash(f"umask 000; {PREFLIGHT} && {RESOLVE}", VLLM_MODEL_SOURCES="local")
    assert done.code == 0, done.err
    (lock,) = (user.models / ".locks").iterdir()
    for path in (user.env_file, lock, user.root / "preflight.lock"):
        assert mode(path) == 0o600, path


# -- Lockfile safety -----------------------------------------------------------------------------


def test_the_lock_of_the_preflight_follows_no_link(user: User) -> None:
    victim = user.root / "victim"
    (user.root / "preflight.lock").symlink_to(victim)
    done = user.run(PREFLIGHT)
    assert (done.code, victim.exists()) == (1, False)
    assert "is not a regular file" in done.err
    assert "remove it" in done.err


def test_the_lock_of_a_resolve_follows_no_link(user: User) -> None:
    user.have_model()
    assert user.run(RESOLVE, VLLM_MODEL_SOURCES="local").code == 0
    (lock,) = (user.models / ".locks").iterdir()
    victim = user.root / "victim"
    lock.unlink()
    lock.symlink_to(victim)
    user.run(RESOLVE, VLLM_MODEL_SOURCES="local")
    assert not victim.exists()


def test_two_models_do_not_wait_for_each_other(user: User) -> None:
    user.have_model()
    assert user.run(RESOLVE, VLLM_MODEL_SOURCES="local").code == 0
    (lock,) = (user.models / ".locks").iterdir()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, 2); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, lock]) as holder:
        wait_for(lambda: held(lock))
        try:
            own = {"VLLM_MODEL_SOURCES": "local", "VLLM_RESOLVE_LOCK_TIMEOUT": "0"}
            assert user.run(RESOLVE, **own).code == 1
            assert user.run(RESOLVE, VLLM_MODEL_ID="acme/other", **own).code == 0
        finally:
            holder.kill()
