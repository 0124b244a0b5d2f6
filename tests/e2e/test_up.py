"""What the README promises: ``make up`` ends with a server that answers, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from realserver import KEY, OLD_EXPORTS, VLLMRT, Server, smoke, start, stop, stop_whatever_is_left

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def server(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("up") / "log"
    server = start(["make", "up", "ARGS=-- --enforce-eager"], environ | OLD_EXPORTS, log)
    try:
        yield server
    finally:
        stop_whatever_is_left(server)


def ask(server: Server, path: str, body: dict[str, Any] | None = None, *, key: str = KEY) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_every_line_of_smoke_is_green(server: Server) -> None:
    names = {check["name"] for check in smoke(server)["checks"]}
    assert {"health", "auth", "models", "completion", "chat", "streaming", "metrics"} <= names


def test_it_answers_in_english_words(server: Server) -> None:
    body = {"model": "vllmrt/tiny", "prompt": "The import statement", "max_tokens": 40, "temperature": 0}
    status, text = ask(server, "/v1/completions", body)
    answer = json.loads(text)["choices"][0]["text"]
    known = (
        set(Path("/usr/share/dict/words").read_text().split()) if Path("/usr/share/dict/words").exists() else _topics()
    )
    words = [word.strip(".,;:()'\"`").lower() for word in answer.split() if word.strip(".,;:()'\"`").isalpha()]
    assert status == 200
    assert len(words) > 10
    assert sum(word in known for word in words) / len(words) > 0.8, answer


def _topics() -> set[str]:
    from pydoc_data.topics import topics

    return {word.strip(".,;:()'\"`*").lower() for text in topics.values() for word in text.split()}


def test_without_the_key_it_is_closed(server: Server) -> None:
    assert ask(server, "/v1/models", key="wrong")[0] == 401
    assert ask(server, "/health", key="wrong")[0] == 200


def test_what_is_served_is_the_directory_that_was_validated(server: Server) -> None:
    resolved = subprocess.run(
        [VLLMRT, "resolve", "--json"], env=server.environ, capture_output=True, text=True, check=True
    )
    _, text = ask(server, "/v1/models")
    assert json.loads(text)["data"][0]["root"] == json.loads(resolved.stdout)["path"]


def test_vllm_knows_every_variable_that_it_was_given(server: Server) -> None:
    log = server.log.read_text()
    assert "Unknown vLLM environment variable" not in log
    assert "serve" in log


def test_the_key_is_in_no_command_line_and_no_log(server: Server) -> None:
    assert KEY not in server.log.read_text()
    assert not [line for line in server.in_session() if KEY in line]


def test_it_installed_nothing_the_second_time(server: Server) -> None:
    assert "environment:" not in server.log.read_text()
    assert "engine:" not in server.log.read_text()


def test_ctrl_c_leaves_no_process_behind(server: Server) -> None:
    assert any("EngineCore" in line for line in server.in_session())
    assert stop(server, signal.SIGINT) == []
