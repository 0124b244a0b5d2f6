"""A user who starts servers in the background, and a stand-in for vLLM that answers as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Done, Machine
from standin import VLLMRT, port, wait_for  # noqa: F401 - pytest finds fixtures by their names here

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "a-key-of-a-test"

# What it does is in its environment, since its command line is vllmrt's.
ENGINE = f"""\
#!{sys.executable} -IS
import http.server, json, os, subprocess, sys, time
get = os.environ.get
if "--help=all" in sys.argv:
    print(*(f"  --{{flag}} A" for flag in "config port gpu-memory-utilization uvicorn-log-level hf-token".split()),
          sep="\\n", flush=True)
    os._exit(0)
print("it loads", get("SAYS", ""), flush=True)
for _ in range(int(get("WORKERS", "0"))):
    subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(600)"])
time.sleep(float(get("LOADS", "0")))
if get("DIES"):
    print("its last words", get("VLLM_API_KEY", ""), file=sys.stderr, flush=True)
    os.kill(os.getpid(), -int(get("DIES"))) if int(get("DIES")) < 0 else os._exit(int(get("DIES")))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if get("ACCESS_LOG"):
            print("GET", self.path, flush=True)
        self.answer(int(get("HEALTH", "200")), b"")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == f"Bearer {{get('VLLM_API_KEY')}}"
        print("asked", json.dumps([self.path, known, body]), flush=True)
        said = {{"choices": [{{"text": ""}}], "usage": {{"completion_tokens": int(get("TOKENS", "1"))}}}}
        self.answer(int(get("ANSWERS", "200")), json.dumps(said).encode())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class User(Machine):
    """A machine with a model, and with servers that end with the test."""

    def __init__(self, root: Path, port: int) -> None:  # noqa: F811 - a number here
        super().__init__(root)
        self.port = port
        self.engine.write_text(ENGINE)
        make_model(self.store / "llama")
        del self.env["VLLMRT_PREFLIGHT"]
        self.env |= {
            "VLLM_PORT": str(port),
            "VLLM_API_KEY": KEY,
            "VLLM_PREFLIGHT_LOCKFILE": str(root / "lock"),
            "VLLM_SKIP_GPU_CHECK": "1",
            "VLLM_STOP_TIMEOUT": "5",
        }

    @property
    def folder(self) -> Path:
        return self.cache / "background"

    @property
    def state(self) -> Any:
        """What is kept of the server."""
        return json.loads((self.folder / f"{self.port}.json").read_bytes())

    def detach(self, *args: str, **env: str | None) -> Done:
        return self.run("up", "acme/llama", "--detach", "--json", *args, **env)

    def status(self) -> Any:
        return self.run("status", "--json").json

    def wait_for(self, state: str) -> Any:
        return wait_for(lambda: (told := self.status())["state"] == state and told)

    def processes(self) -> list[int]:
        """Return every live process that was started on the machine."""
        mark, found = f"HOME={self.home}".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return sorted(found)


@pytest.fixture
def user(tmp_path: Path, port: int) -> Iterator[User]:  # noqa: F811 - as above
    made = User(tmp_path, port)
    try:
        yield made
    finally:
        for pid in made.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody may stop."""
    with subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()
