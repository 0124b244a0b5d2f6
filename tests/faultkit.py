"""A machine, a hub whose bodies come from another origin, an S3 store, and models of several ranges, for fault tests.

A test of faults asserts three things: what is published is byte for byte a version of the model, or absent; what the
journal notes is not fetched again; and no secret was written, shown or sent to anybody but the hub. The last one
`World.leaks` looks for after every test.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

from cli.test_machine import Done, Machine
from fakehub import FakeHub
from modelkit import edit_json, read_header
from storekit import read_model

from vllmrt.testing import ByteServer, Fault, make_model
from vllmrt.testing.byteserver import md5
from vllmrt.testing.models import write_raw_safetensors

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator

    from vllmrt.testing.faults import Seen

TOKEN = "hf_FaultSuiteTokenThatMustNotLeak7c1e"
KEY, SECRET = "AKIDfaultsuite", "fault-suite-secret-that-must-not-leak-91d0"
MODEL = "org/name"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MIB = 1 << 20
PAGE = 1000
"""Keys on a page of a listing."""
RANGE = 16 * MIB
"""Bytes of a range of these models: each shard is one and a shorter one."""
BUFFERED = 8 * MIB
"""Bytes that a connection may hold when it is reset: they left the server, and nobody reads them."""
Tree = dict[str, bytes]
Interval = tuple[int, int]


class Version(NamedTuple):
    """A version of the model: its files on disk, and their bytes."""

    directory: Path
    files: Tree

    @property
    def shards(self) -> Tree:
        """The two large files."""
        return {path: self.files[path] for path in (FIRST, SECOND)}

    @property
    def size(self) -> int:
        """Bytes of the shards."""
        return sum(map(len, self.shards.values()))


def make_version(path: Path, word: str, *, hidden: int = 1536) -> Version:
    """Write a version: the same names and sizes as any other, other weights, none of which repeats itself."""
    make_model(path, shards=2, layers=1, hidden=hidden)
    edit_json(path / "generation_config.json", lambda value: value.update(version=word))
    for name in (FIRST, SECOND):
        header, data = read_header(path / name)
        write_raw_safetensors(path / name, header, random.Random(f"{word} {name}").randbytes(len(data)))  # noqa: S311 - no secret
    return Version(path, read_model(path))


class S3(ByteServer):
    """A store that speaks as much S3 as a resolve needs. Its ETags are those of objects in parts: no digest."""

    def __init__(self, plan: Callable[[Seen], Fault | None]) -> None:
        super().__init__(plan=lambda seen: plan(seen) or self._list(seen), host="localhost")
        self._keys: list[str] = []

    def etag(self, path: str) -> str:
        return self.named(self.files[path])

    def named(self, data: bytes) -> str:
        """Return the ETag of an object."""
        return f'"{md5(data)}-2"'

    def hold(self, version: Version) -> None:
        """Replace all objects by those of a version."""
        self.files.update({f"/models/llm/name/{path}": data for path, data in version.files.items()})

    def _list(self, seen: Seen) -> Fault | None:
        query = parse_qs(seen.target.partition("?")[2])
        if "list-type" not in query:
            return None
        start = int(query.get("continuation-token", ["0"])[0])
        if len(self._keys) != len(self.files):  # a listing of 100,000 has 100 pages: sorted once
            self._keys = sorted(path.removeprefix("/models/") for path in self.files)
        keys = self._keys
        entries = "".join(map(self._entry, keys[start : start + PAGE]))
        more = start + PAGE if start + PAGE < len(keys) else 0
        following = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>"
        body = f"<ListBucketResult>{entries}{following * bool(more)}<EncodingType>url</EncodingType></ListBucketResult>"
        return Fault(status=200, body=body.encode(), headers={"Content-Length": str(len(body))})

    def _entry(self, key: str) -> str:
        size, etag = len(self.files[f"/models/{key}"]), escape(self.etag(f"/models/{key}"))
        return f"<Contents><Key>{quote(key)}</Key><ETag>{etag}</ETag><Size>{size}</Size></Contents>"


class World:
    """A machine below `root`, and what it can reach.

    Attributes:
        machine: only the source ``hf-hub`` is asked unless a test says otherwise.
        hub: its repository is private; `TOKEN` opens it.
        cdn: where the hub sends for large files; knows nothing of tokens.
        s3: an S3 store.
        bodies: the one of the two from which shards come.
        expected: every version that may be found published.
        said: all output, and every command line on the machine while the first bytes are sent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine = Machine(root)
        self.hub = FakeHub()
        self.cdn = ByteServer(plan=self._plan, host="localhost")
        self.s3 = S3(self._plan)
        self.hub.cdn = self.cdn.origin
        self.hub.tokens[TOKEN] = {MODEL}
        self.expected: list[Version] = []
        self.said: list[str] = []
        self.bodies: ByteServer = self.cdn
        self._plans: list[Callable[[Seen], Fault | None]] = []
        self.target = self.machine.store / "name"
        self.machine.env |= {
            "VLLM_MODEL_SOURCES": "hf-hub",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": TOKEN,
            "R2_BUCKET": "models",
            "R2_MODELS_PREFIX": "llm",
            "R2_ENDPOINT_URL": self.s3.origin,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    # -- what is there to be fetched

    def offer(self, version: Version) -> None:
        """Make a version the one that everybody has."""
        if version not in self.expected:
            self.expected.append(version)
        commit = self.hub.add(MODEL, version.directory, private=True)
        self.cdn.files.update({f"/{MODEL}/{commit}/{path}": data for path, data in version.shards.items()})
        self.s3.hold(version)

    def use_s3(self) -> None:
        """Ask only the source ``r2`` from now on."""
        self.bodies = self.s3
        self.machine.env["VLLM_MODEL_SOURCES"] = "r2"

    def strike(self, name: str, at: int = 0, *, times: int = 1, **what: Any) -> Callable[[], int]:
        """Let something go wrong with a request of the CDN or S3 for the byte `at` of a file (`byteserver.Fault`).

        Returns:
            what tells how often it did.
        """
        fault, left = Fault(**{"at": at, **what}), [times]

        def plan(seen: Seen) -> Fault | None:
            span = seen.range
            if seen.method != "GET" or not left[0] or not seen.path.endswith(name) or not span:
                return None
            if not span[0] <= at < span[1]:
                return None
            left[0] -= 1
            return fault

        self._plans.append(plan)
        return lambda: times - left[0]

    def when(self, name: str, act: Callable[[], object], *, start: int | None = None) -> None:
        """Do something when a file is asked for, at first or from byte `start` on, before it is answered."""
        left = [1]

        def plan(seen: Seen) -> Fault | None:
            its = start is None or (seen.range and seen.range[0] == start)
            if left[0] and its and seen.method == "GET" and seen.path.endswith(name):
                left[0] = 0
                act()
            return None

        self._plans.append(plan)

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._plans.clear()
        for server in (self.hub, self.cdn, self.s3):
            server.faults.clear()

    def _plan(self, seen: Seen) -> Fault | None:
        if seen.range and not seen.range[0]:
            self.said += map(_words_of, Path("/proc").glob("[0-9]*"))
        return next((fault for fault in (plan(seen) for plan in self._plans) if fault), None)

    # -- what is done

    def run(self, *args: str, **env: str | None) -> Done:
        """Run ``vllmrt`` to its end."""
        return self.ended(self.start(*args, **env))

    def resolve(self, *args: str, **env: str | None) -> Done:
        """Run ``vllmrt resolve`` to its end."""
        return self.run("resolve", MODEL, *args, **env)

    def start(self, *args: str, **env: str | None) -> subprocess.Popen[str]:
        """Start ``vllmrt`` in a group of its own; `ended` must follow."""
        return self.machine.start(*args, **env)

    def ended(self, process: subprocess.Popen[str], timeout: float = 60) -> Done:
        """Wait for a process and keep what it said."""
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        self.said += [out, err]
        return Done(process.returncode, out, err)

    def interrupted(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[Done, float]:
        """Send a signal; return what the process came to, and after how many seconds."""
        begin = time.monotonic()
        process.send_signal(number)
        return self.ended(process), time.monotonic() - begin

    # -- what came of it

    def published(self) -> Tree | None:
        """Return what is published, None where nothing is."""
        return read_model(self.target) if self.target.exists() else None

    def which(self) -> Version | None:
        """Return which version is published; fails where it is none of them, or not alone."""
        assert sorted(path.name for path in self.machine.store.glob("name*")) == ["name"] * self.target.exists()
        found = self.published()
        if found is None:
            return None
        version = next((version for version in self.expected if version.files == found), None)
        assert version, f"{self.target} is a mix: {sorted(found)}"
        return version

    def noted(self, version: Version) -> dict[str, list[Interval]]:
        """Return what the journal holds of the shards as the source knows them, read as anybody can read it."""
        done: dict[str, list[Interval]] = {}
        mine = self._names_of(version)
        for file in (self.machine.store / ".staging").glob("*/journal.jsonl"):
            for line in filter(None, file.read_text().splitlines()):
                with suppress(ValueError):  # cut by a kill
                    entry = json.loads(line)
                    path, start, stop = entry["path"], entry.get("start", 0), entry.get("stop", 0)
                    if mine.get(path) == entry["version"]:
                        done[path] = [*done.get(path, ()), (start, stop)] if start < stop else []
        return {path: spans for path, spans in done.items() if spans}

    def left(self, version: Version) -> int:
        """Return how many bytes of the shards the journal lacks."""
        noted = self.noted(version)
        return sum(missing(len(data), noted.get(path, ())) for path, data in version.shards.items())

    def completes(self, version: Version, *, fetching: int, proven: Iterable[str] = (FIRST, SECOND)) -> None:
        """Resolve once more: it ends well, with so many bytes of shards, and none that the journal had noted.

        Args:
            version: what is there then.
            fetching: bytes.
            proven: the shards of which the notes are right.
        """
        noted, asked = self.noted(version), len(self.bodies.seen)
        done = self.resolve()
        assert done.code == 0, done.err
        assert self.which() is version
        again = self.asked(since=asked)
        assert sum(stop - start for spans in again.values() for start, stop in spans) == fetching
        assert all(not overlap(again.get(path, ()), noted.get(path, ())) for path in proven)

    def _names_of(self, version: Version) -> dict[str, str]:
        """Return what the source calls this version of each shard."""
        if self.bodies is self.s3:
            return {path: self.s3.named(data) for path, data in version.shards.items()}
        return {path: hashlib.sha256(data).hexdigest() for path, data in version.shards.items()}

    def asked(self, since: int = 0) -> dict[str, list[Interval]]:
        """Return the ranges of shards that were asked for, those of the requests from `since` on."""
        found: dict[str, list[Interval]] = {}
        for seen in self.bodies.seen[since:]:
            path = seen.path.rpartition("/")[2]
            if seen.range and path in {FIRST, SECOND}:
                found.setdefault(path, []).append(seen.range)
        return found

    @property
    def served(self) -> int:
        """Bytes of shards that left the origin so far."""
        return sum(count for path, count in self.bodies.sent.items() if path.endswith((FIRST, SECOND)))

    # -- what must not have come of it

    def leaks(self) -> Iterator[str]:
        """Yield every place where a secret is that has no business there."""
        signatures = {signature.encode() for signature in self._signatures()}
        for place, text in self._places():
            # shards are too large to look for every signature in them, and are compared byte for byte
            secrets = {TOKEN.encode(), SECRET.encode()} | (signatures if len(text) < MIB else set())
            yield from (f"{secret!r} in {place}" for secret in secrets if secret in text)
        foreign = [*self.cdn.seen, *self.s3.seen]
        yield from (f"the token at {seen.target}" for seen in foreign if TOKEN in f"{seen.target} {seen.headers}")
        yield from (f"credentials at {seen.target}" for seen in self.cdn.seen if "authorization" in seen.headers)

    def _signatures(self) -> Iterator[str]:
        for seen in [*self.cdn.seen, *self.s3.seen]:
            yield from re.findall(r"Signature=([0-9a-f]{64})", seen.target)

    def _places(self) -> Iterator[tuple[str, bytes]]:
        for path in [*self.root.rglob("*"), *self.root.rglob(".*")]:
            yield f"the name {path}", bytes(path)
            if path.is_file() and not path.is_symlink():
                yield str(path), _content(path)
        for text in filter(None, self.said):
            yield f"{text[:80]!r}", text.encode(errors="replace")
        for seen in self.hub.seen:
            yield f"the query of {seen.path}", seen.query.encode()


def _words_of(process: Path) -> str:
    """Return the command line of a process, as everybody on the machine may read it."""
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _content(path: Path) -> bytes:
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=8)
def _read(path: Path, *_: int) -> bytes:
    return path.read_bytes()


def missing(size: int, done: Iterable[Interval]) -> int:
    """Return how many of the bytes 0 to `size` are in no interval."""
    position = left = 0
    for start, stop in sorted(done):
        left += max(0, start - position)
        position = max(position, stop)
    return left + max(0, size - position)


def overlap(one: Iterable[Interval], other: Iterable[Interval]) -> int:
    """Return how many bytes two sets of intervals share; each is disjoint."""
    pairs = [(a, b) for a in one for b in other]
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs)


def until(condition: Callable[[], object], *, seconds: float = 20, pause: float = 0.002) -> None:
    """Wait until something is so; fails where that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(pause)
