"""The pod as the manifest has it: a user whom nobody knows, a root that nobody can write, one writer, many waiters."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import ENGINE
from fakehub import FakeHub
from podkit import Pod, image, wait_for
from render.kit import describe, documents, settings

from vllmrt.render.kubernetes import manifests
from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Make = Callable[..., Pod]

TOKEN = "hf_podcanary0123456789"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.tokens[TOKEN] = {"org/name"}
        hub.add("org/name", make_model(tmp_path / "origin"), private=True)
        yield hub


@pytest.fixture
def make(tmp_path: Path, hub: FakeHub) -> Iterator[Make]:
    engine = tmp_path / "engine" / "bin" / "vllm"
    engine.parent.mkdir(parents=True)
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    programs = image(tmp_path, engine)
    pods: list[Pod] = []

    def build(*, user: int = 12345, secrets: dict[str, str] | None = None, **fields: Any) -> Pod:
        given = {"hf_endpoint": hub.endpoint, "hf_token": TOKEN, "model_sources": ("hf-hub",)} | fields
        files = manifests(describe(settings(**given), ["--enforce-eager"]), image="i", size=10**9, nodes=1)
        spec = documents(files)["Deployment"]["spec"]["template"]["spec"]
        known = {"hf-token": TOKEN, "api-key": "key"} if secrets is None else secrets
        claims = {"vllm-models": tmp_path / "models"}
        pods.append(Pod(spec, tmp_path / f"pod{len(pods)}", claims=claims, image=programs, secrets=known, user=user))
        return pods[-1]

    yield build
    for pod in pods:
        pod.__exit__()


def parts(pod: Pod) -> tuple[dict[str, Any], dict[str, Any]]:
    (init,), (server,) = pod.spec["initContainers"], pod.spec["containers"]
    return init, server


def test_the_container_is_as_closed_as_its_specification_says(make: Make) -> None:
    pod = make()
    init, server = parts(pod)
    places = (
        "for place in / /usr /etc /models /home/vllm /tmp /dev/shm; do touch $place/x 2>/dev/null && echo $place; done"
    )
    told = pod.run(init, ["sh", "-c", f"id -u; id -G; {places}; grep Cap /proc/self/status; whoami"])[1].split("\n")
    assert told[:2] == ["12345", "12345"]
    assert told[2:5] == ["/models", "/home/vllm", "/tmp"]
    assert {line.split()[1] for line in told if line.startswith("Cap")} == {"0" * 16}
    assert "whoami: cannot find name for user ID 12345" in told
    assert pod.run(server, ["sh", "-c", places])[1].split() == ["/home/vllm", "/tmp", "/dev/shm"]


@pytest.mark.parametrize("user", [10001, 1000650000])
def test_from_a_hub_to_the_server(user: int, make: Make, hub: FakeHub) -> None:
    pod = make(user=user)
    init, server = parts(pod)
    status, told = pod.run(init)
    assert status == 0, told
    assert told.rstrip().endswith("/models/name")
    asked = len(hub.calls("api"))
    status, told = pod.run(server)
    assert status == 0, told
    started = json.loads(told.splitlines()[-1])
    assert started["argv"][1:3] == ["serve", "/models/name"]
    assert started["argv"][-1] == "--enforce-eager"
    assert started["argv"][started["argv"].index("--host") + 1] == "0.0.0.0"
    assert started["environ"]["VLLM_API_KEY"] == "key"
    assert started["pid"] == 1
    assert "unchanged" in told or "whole" in told
    assert TOKEN not in told
    assert len(hub.calls("api")) == asked, "the server asked the hub, and has no token for it"


def test_many_pods_fetch_a_model_once(make: Make, hub: FakeHub, tmp_path: Path) -> None:
    pods = [make() for _ in range(4)]
    whole = sum(file.stat().st_size for file in (tmp_path / "origin").iterdir())
    hub.fault("", origin="cdn", times=-1, rate=whole)
    runs = [(pod, pod.start(parts(pod)[0], pod.path / "log")) for pod in pods]
    for pod, process in runs:
        assert process.wait(90) == 0, (pod.path / "log").read_text()
    logs = [(pod.path / "log").read_text() for pod in pods]
    assert sum("published" in log for log in logs) == 1
    assert sum("waiting" in log for log in logs) == 3
    assert sum(hub.sent.values()) == whole


def test_a_writer_that_is_stopped_leaves_a_model_to_the_next(make: Make, hub: FakeHub) -> None:
    first, second = make(), make()
    fault = hub.fault("", origin="cdn", times=-1, cut="stall")
    process = first.start(parts(first)[0], first.path / "log")
    wait_for(lambda: hub.calls("", origin="cdn"))
    assert first.stop(process, seconds=10) == 128 + 15
    fault.times = 0
    status, told = second.run(parts(second)[0])
    assert status == 0, told


def test_without_the_token_it_does_not_start(make: Make) -> None:
    pod = make(secrets={})
    with pytest.raises(AssertionError, match="the secret has no hf-token"):
        pod.run(parts(pod)[0])


def test_a_key_that_may_be_missing_is(make: Make) -> None:
    pod = make(secrets={"hf-token": TOKEN})
    init, server = parts(pod)
    assert pod.run(init)[0] == 0
    status, told = pod.run(server)
    assert status == 0
    assert "without an API key" in told
    assert "VLLM_API_KEY" not in json.loads(told.splitlines()[-1])["environ"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces with mounts")
@pytest.mark.parametrize(
    ("taken", "said"),
    [("HOME", "this user has no home directory"), ("home", "cannot be written: Read-only file system")],
)
def test_without_a_place_to_write_it_says_what_to_set(taken: str, said: str, make: Make) -> None:
    pod = make()
    init, _ = parts(pod)
    if taken == "HOME":
        init["env"] = [one for one in init["env"] if one["name"] != "HOME"]
    else:
        init["env"][0]["value"] = "/"
    status, told = pod.run(init)
    assert status == 1
    assert said in told
    assert "set HOME, or FLOX_ENV_CACHE" in told or "set FLOX_ENV_CACHE" in told
