"""Parts that others wrote: the Hub's own client on our hub, and our source on an independent mirror of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllmrt.errors import SourceError
from vllmrt.types import Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Client
    from fakehub import FakeHub

    Clients = Callable[..., Client]

MODEL, TOKEN = "org/name", "hf_UniqueTokenThatMustNotLeak0451"
ROOT = Path(__file__).parents[3]


def contents(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    found = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
    return {path: content for path, content in found.items() if not path.startswith(".cache/")}


def hf_download(hub: FakeHub, target: Path, *arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hf")
    if not program.exists():
        pytest.skip("no hf: make dev")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "VLLM", "HTTP"))}
    environ = kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(target.parent / "hf"), "HF_TOKEN": token}
    command = [program, "download", MODEL, "--local-dir", target, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_the_hubs_own_client_takes_our_hub_for_one(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    hub.add(MODEL, model, gated="auto")
    hub.tokens[TOKEN] = {MODEL}
    hub.page_size = 3
    ended = hf_download(hub, tmp_path / "out", token=TOKEN)
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "out") == contents(model)
    assert hub.calls("model-00001", origin="cdn")
    assert {seen.authorization for seen in hub.seen if seen.origin == "cdn"} == {None}


@pytest.mark.parametrize("case", ["unknown", "gated", "revision"])
def test_the_hubs_own_client_understands_our_refusals(hub: FakeHub, model: Path, tmp_path: Path, case: str) -> None:
    hub.add(MODEL if case != "unknown" else "org/other", model, gated=case == "gated")
    ended = hf_download(hub, tmp_path / "out", *(["--revision", "v9"] if case == "revision" else []))
    words = {"unknown": f"'{MODEL}' not found", "gated": "requires approval", "revision": f"found in model '{MODEL}'"}
    assert ended.returncode != 0
    assert words[case] in ended.stderr


@pytest.fixture
def mirror(hub: FakeHub, tmp_path: Path) -> Iterator[str]:
    """An olah in front of our hub; it pins libraries that we do not, so it has an environment of its own."""
    beside = ROOT / ".venv-olah" / "bin" / "olah-cli"
    program = os.environ.get("VLLMRT_TEST_OLAH") or shutil.which("olah-cli") or str(beside)
    if not os.access(program, os.X_OK):
        pytest.skip("no olah: make test-tools")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    host, port = address.split(":")
    upstream = ["--hf-scheme", "http", "--hf-netloc", hub.endpoint[7:], "--hf-lfs-netloc", hub.cdn[7:]]
    itself = ["--mirror-scheme", "http", "--mirror-netloc", address, "--mirror-lfs-netloc", address]
    places = ["--repos-path", str(tmp_path / "repos"), "--log-path", str(tmp_path / "logs")]
    command = [program, "--host", host, "--port", port, *upstream, *itself, *places]
    with (tmp_path / "olah.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(host, int(port), process)
        yield f"http://{address}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("olah did not start")


@pytest.fixture
def plain_model(model: Path) -> Path:
    """Without the # that olah does not quote upstream."""
    (model / "original" / "a b#c%41?+é.txt").rename(model / "original" / "a b+é.txt")
    return model


def test_a_mirror_that_others_wrote(mirror: str, hub: FakeHub, client: Clients, plain_model: Path) -> None:
    sha = hub.add(MODEL, plain_model)
    asker = client(hf_endpoint=mirror)
    candidate = asker.candidate()
    assert candidate.revision == sha
    assert candidate.location.endswith(mirror)
    assert {file.path: asker.read(candidate, file.path) for file in candidate.files} == contents(plain_model)
    shard = "model-00001-of-00002.safetensors"
    assert asker.read(candidate, shard, 1000, 2000) == (plain_model / shard).read_bytes()[1000:2000]


def test_the_refusals_of_a_mirror_that_others_wrote(
    mirror: str, hub: FakeHub, client: Clients, plain_model: Path
) -> None:
    hub.add(MODEL, plain_model)
    hub.add("org/gated", plain_model, gated="manual")
    hub.tokens[TOKEN] = {"org/gated"}
    asker = client(hf_endpoint=mirror)
    assert "no model org/nope" in getattr(asker.probe("org/nope"), "reason", "")
    assert "no revision v9" in getattr(asker.probe(revision="v9"), "reason", "")
    with pytest.raises(SourceError, match="gated, and no token"):
        asker.probe("org/gated")
    assert not isinstance(client(hf_endpoint=mirror, hf_token=TOKEN).probe("org/gated"), Skip)
