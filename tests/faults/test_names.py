"""What a store may call its files: nothing leaves the store, and 100,000 names are no trouble."""

from __future__ import annotations

import json
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3server import bucket, s3_server  # noqa: F401 - pytest finds the fixtures by their names here

if TYPE_CHECKING:
    from faultkit import Version, World
    from s3server import Bucket, S3Server

MANY = 100_000
MOST = 300
"""MiB of memory with all their names."""
PATIENCE = 40
"""Seconds; it takes six where nobody else computes."""
LOGS = {"home/cache", "home/cache/vllmrt"}
"""Where a resolve that failed leaves its log."""
HOSTILE = {
    "upwards": ["../x"],
    "upwards in the middle": ["a/../../x"],
    "absolute": ["/etc/passwd"],
    "a backslash": ["a\\b"],
    "4 KB": ["k" * 4096],
    "4 KB of directories": ["/".join(["d" * 255] * 16 + ["x"])],
    "differing only in case": ["README.md", "readme.md"],
    "differing only in how it is composed": ["\u00e9.txt", "e\u0301.txt"],
    "ending in /": ["x/"],
    "a file and its directory": ["x", "x/y"],
    "a control character": ["a\x1b[2Jb"],
    "a line break": ["a\nb"],
    "NUL": ["a\x00b"],
    "a dot": ["./x"],
    "an empty part": ["a//b"],
}


def listing(world: World, *more: str) -> list[dict[str, object]]:
    """Return what the hub lists, and files of one byte."""
    (blobs,) = world.hub.repositories["org/name"].commits.values()
    added = [{"type": "file", "oid": "0" * 40, "size": 1, "path": path} for path in more]
    return [*(blob.entry(path) for path, blob in blobs.items()), *added]


def outside(world: World) -> set[str]:
    """Return every name below the machine that is neither in staging, nor a lock, nor the log of the resolve."""
    paths = (path for path in world.root.rglob("*") if not {".staging", ".locks"} & set(path.parts))
    names = {str(path.relative_to(world.root)) for path in paths}
    return {name for name in names if not fnmatch(name, "home/cache/vllmrt/vllm-model.org-name.*.env.log")} - LOGS


def refuses(world: World, **env: str) -> None:
    before = outside(world)
    done = world.resolve("--json", **env)
    assert done.code == 10, done.err
    assert "the source lists" in done.json["attempts"][-1]["reason"]
    assert outside(world) <= before
    assert world.which() is None
    assert world.served == 0
    assert not any(seen.range for seen in world.s3.seen)
    assert done.err.replace("\n", "").isprintable()
    assert len(done.err) < 2000


@pytest.mark.parametrize("names", HOSTILE.values(), ids=HOSTILE)
def test_of_a_hub(world: World, old: Version, names: list[str]) -> None:
    world.hub.repositories["org/name"].listing = listing(world, *names)
    refuses(world)
    world.hub.repositories["org/name"].listing = None
    world.completes(old, fetching=old.size)


@pytest.mark.parametrize("names", HOSTILE.values(), ids=HOSTILE)
def test_of_a_bucket(world: World, names: list[str]) -> None:
    for name in names:
        world.s3.files[f"/models/llm/name/{name}"] = b"x"
    refuses(world, VLLM_MODEL_SOURCES="r2")


@pytest.mark.parametrize("name", ["README.md readme.md"])
def test_of_a_real_bucket(world: World, old: Version, s3_server: S3Server, bucket: Bucket, name: str) -> None:  # noqa: F811 - the fixtures
    bucket.put("llm/name/config.json", old.files["config.json"])
    for key in name.split():
        bucket.put(f"llm/name/{key}", b"x")
    environ = s3_server.environ(world.root)
    refuses(world, VLLM_MODEL_SOURCES="r2", R2_BUCKET=bucket.name, R2_ENDPOINT_URL=s3_server.endpoint, **environ)


def test_a_published_model_that_was_uploaded_with_its_manifest(world: World, old: Version) -> None:
    world.hub.repositories["org/name"].listing = listing(world, ".vllmrt.json", ".staging/x", ".locks/x.lock")
    world.completes(old, fetching=old.size)


@pytest.mark.parametrize("source", ["hf-hub", "r2"])
def test_a_hundred_thousand(world: World, old: Version, source: str) -> None:
    """All of them are listed, and what vLLM does not load is left out."""
    names = [f"onnx/{number:06}.onnx" for number in range(MANY)]
    world.hub.repositories["org/name"].listing = listing(world, *names)
    world.s3.files |= {f"/models/llm/name/{name}": b"x" for name in names}
    peaks: list[int] = []
    process = None

    def measure() -> None:
        status = Path(f"/proc/{process.pid if process else 0}/status").read_text()
        peaks.append(next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM")))

    world.when("-00001-of-00002.safetensors", measure)
    begin = time.monotonic()
    process = world.start("resolve", "org/name", VLLM_MODEL_SOURCES=source)
    done = world.ended(process)
    assert done.code == 0, done.err
    assert world.which() is old
    assert peaks[0] < MOST
    assert time.monotonic() - begin < PATIENCE
    world.hub.repositories["org/name"].listing = listing(world, *names, "../x")
    world.s3.files["/models/llm/name/../x"] = b"x"
    done = world.resolve("--json", VLLM_MODEL_SOURCES=source)
    assert done.code == 10, done.err
    assert json.dumps("../x")[1:-1] in done.json["attempts"][0]["reason"]
    assert world.which() is old
