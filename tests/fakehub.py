"""A Hugging Face Hub on loopback: the protocol that the reference "hub-facts" observed, with faults on demand.

The API listens on ``127.0.0.1``, the "CDN" of the LFS bodies on ``localhost`` and another port: another origin. Bodies
leave by sendfile. In a test it runs in the test's own process; for a benchmark start it beside:

    python tests/fakehub.py org/name=DIRECTORY [--token TOKEN] [--cdn URL]    prints one JSON line, ends when stdin does
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode

from vllmrt.testing.loopback import LoopbackServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from typing import Self

LFS_FROM = 10 * 1024
"""Bytes from which a file is kept in LFS, unless its name says so."""
PIECE = 4 << 20
_LFS_NAMES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".msgpack", ".h5")
_LONGEST_STALL = 120.0


class Blob(NamedTuple):
    """A file of a commit; `sha256` is None where it is a plain git blob."""

    file: Path
    size: int
    oid: str
    sha256: str | None

    def entry(self, path: str) -> dict[str, Any]:
        """The file as the tree call lists it."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """A model repository; `listing` replaces the true answer of the tree call, as text or as entries."""

    model_id: str
    gated: bool | str = False
    private: bool = False
    moved_to: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    listing: list[Any] | bytes | None = None
    info: dict[str, Any] = field(default_factory=dict)


class Seen(NamedTuple):
    """A request, as it came.

    Attributes:
        origin: ``api`` or ``cdn``.
        method: GET, HEAD or POST.
        path: unquoted and without the query.
        query: of a POST its form.
        authorization: the header.
        range: the header.
        host: the header.
    """

    origin: str
    method: str
    path: str
    query: str
    authorization: str | None
    range: str | None
    host: str | None = None


@dataclass
class Fault:
    """What is to go wrong with requests whose path contains `where`.

    Attributes:
        where: part of the unquoted path.
        origin: ``api``, ``cdn`` or None for both.
        times: how often; -1 for always.
        status: answer with this status, `headers` and `body`, and nothing else.
        cut: ``reset``, ``fin`` or ``stall`` when the byte `at` of the file is reached; ``silence`` never answers.
        flip: byte of the file whose lowest bit is turned.
        whole: ignore Range, answer 200 with the whole file.
        rate: bytes a second.
        then_close: close the connection after the answer, which does not announce it.
    """

    where: str
    origin: str | None = None
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: str | None = None
    at: int = 0
    flip: int | None = None
    whole: bool = False
    rate: int | None = None
    then_close: bool = False


class Answer(NamedTuple):
    """A status, its headers, and a body in memory or on disk (`name` is what its bytes are counted under)."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    file: Path | None = None
    name: str = ""


class FakeHub:
    """A hub; use it as a context manager.

    Args:
        lifetime: seconds for which a signed URL is good.
        page_size: entries of a page of the tree call.
        anonymous_404: False answers a stranger who asks for what is not there with 401, as the real one does.
        tls: speaks HTTPS with this context on both origins.

    Attributes:
        seen: every request, in order.
        sent: body bytes that left, by ``org/name/path``.
        accepted: connections, by origin.
        tokens: the known tokens, each with the gated repositories that are open to it.
        crashed: what went wrong in the hub itself; a test may assert that it is empty.
    """

    def __init__(
        self,
        *,
        lifetime: float = 3600.0,
        page_size: int = 1000,
        anonymous_404: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.lifetime = lifetime
        self.page_size = page_size
        self.anonymous_404 = anonymous_404
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, set[str]] = {}
        self.seen: list[Seen] = []
        self.sent: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.crashed: list[str] = []
        self.api_budget: int | None = None
        self.stopping = threading.Event()
        self._key = os.urandom(16)
        self._lock = threading.Lock()
        self._servers = {origin: _Server(self, origin, tls) for origin in ("api", "cdn")}
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{self._servers['api'].server_port}"
        self.cdn = f"{scheme}://localhost:{self._servers['cdn'].server_port}"

    def __enter__(self) -> Self:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.hang_up()
            server.server_close()

    def add(self, model_id: str, directory: Path, *, ref: str = "main", lfs: bool | None = None, **facts: Any) -> str:
        """Commit a directory and point `ref` at it; return the commit.

        The files are served from where they are: another commit needs another directory.

        Args:
            model_id: ``org/name``; made if it is not there.
            directory: what the commit holds.
            ref: branch or tag.
            lfs: keep all files in LFS, or none; None decides by name and size.
            facts: ``gated``, ``private``, ``moved_to``, ``listing``, ``info`` of the repository.
        """
        repository = self.repositories.setdefault(model_id, Repository(model_id))
        for name, value in facts.items():
            setattr(repository, name, value)
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        blobs = {path.relative_to(directory).as_posix(): _blob(path, lfs=lfs) for path in paths}
        state = json.dumps([(path, blob.oid) for path, blob in blobs.items()])
        sha = hashlib.sha1(state.encode(), usedforsecurity=False).hexdigest()
        repository.commits[sha] = blobs
        repository.refs[ref] = sha
        return sha

    def fault(self, where: str, **what: Any) -> Fault:
        """Let something go wrong, see `Fault`."""
        fault = Fault(where, **what)
        with self._lock:
            self.faults.append(fault)
        return fault

    def expire(self) -> None:
        """Make every URL that was signed so far worthless."""
        self._key = os.urandom(16)

    def calls(self, part: str, *, origin: str | None = None) -> list[Seen]:
        """Return the requests whose path contains `part`."""
        return [seen for seen in self.seen if part in seen.path and origin in {None, seen.origin}]

    def note(self, seen: Seen) -> Fault | None:
        """Record a request and return what is to go wrong with it."""
        with self._lock:
            self.seen.append(seen)
            for fault in self.faults:
                if fault.times and fault.where in seen.path and fault.origin in {None, seen.origin}:
                    fault.times -= 1
                    return fault
        return None

    def count(self, name: str, count: int) -> None:
        """Add to the bytes that left for a file."""
        with self._lock:
            self.sent[name] += count

    def answer(self, seen: Seen) -> Answer:
        """Route a request."""
        if seen.origin == "cdn":
            return self._body(seen)
        if self.api_budget is not None:
            self.api_budget -= 1
            if self.api_budget < 0:
                return _refusal(429, None, "Too many requests", {"ratelimit": '"api";r=0;t=7'})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree|paths-info)/(.+?)/?", seen.path):
            return self._api(seen, *found.groups())
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/auth-check)?", seen.path):
            return self._api(seen, found[1], "auth-check" if found[2] else "revision", "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/((?:refs/(?:pr|convert)/)?[^/]+)/(.+)", seen.path):
            return self._resolve(seen, *found.groups())
        return _refusal(404, None, "Not found")

    def _api(self, seen: Seen, model_id: str, call: str, revision: str) -> Answer:
        repository = self._repository(seen, model_id)
        if isinstance(repository, Answer):
            return repository
        if call == "auth-check":
            return self._gate(seen, repository) or Answer(200, {"Content-Type": "text/plain"}, b"OK")  # nobody reads it
        sha = _commit(repository, revision)
        if sha is None:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if call == "tree":
            return self._tree(seen, repository, sha)
        if call == "paths-info":
            wanted = parse_qs(seen.query).get("paths", [])
            return _json([blob.entry(path) for path, blob in repository.commits[sha].items() if path in wanted])
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        facts = {"id": model_id, "sha": sha, "private": repository.private, "gated": repository.gated}
        return _json(facts | {"modelId": model_id, "tags": [], "siblings": siblings} | repository.info)

    def _tree(self, seen: Seen, repository: Repository, sha: str) -> Answer:
        listing = repository.listing
        if isinstance(listing, bytes):
            return Answer(200, {"Content-Type": "application/json"}, listing)
        if listing is None:
            listing = _directories(repository.commits[sha])
            listing += [blob.entry(path) for path, blob in repository.commits[sha].items()]
        query = {name: values[0] for name, values in parse_qs(seen.query).items()}
        start = int(query.get("cursor", "0"))
        stop = start + self.page_size
        more = {}
        if stop < len(listing):
            following = urlencode(query | {"cursor": str(stop)})
            more = {"Link": f'<{self.endpoint}{quote(seen.path)}?{following}>; rel="next"'}
        return _json(listing[start:stop], more)

    def _resolve(self, seen: Seen, model_id: str, revision: str, path: str) -> Answer:
        repository = self._repository(seen, model_id)
        if isinstance(repository, Answer):
            return repository
        sha = _commit(repository, revision)
        if sha is None:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        refused = self._gate(seen, repository)
        if refused:
            return refused
        blob = repository.commits[sha].get(path)
        facts = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if blob is None:
            return _refusal(404, "EntryNotFound", "Entry not found", facts)
        name = f"{model_id}/{path}"
        if blob.sha256 is None:
            return Answer(200, facts | {"ETag": f'"{blob.oid}"'}, file=blob.file, name=name)
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        where = f"/{model_id}/{sha}/{path}"
        return Answer(302, facts | linked | {"Location": self.cdn + self._signed(where)}, b"Found. Redirecting")

    def _body(self, seen: Seen) -> Answer:
        query = {name: values[0] for name, values in parse_qs(seen.query).items()}
        expires = query.get("Expires", "0")
        if not hmac.compare_digest(self._signature(seen.path, expires), query.get("Signature", "")):
            return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        if float(expires) < time.time():
            return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>ExpiredToken</Code></Error>")
        org, name, sha, path = seen.path.lstrip("/").split("/", 3)
        blob = self.repositories[f"{org}/{name}"].commits[sha][path]
        # The real CDN's ETag is no digest of the content either.
        facts = {"ETag": f'"{blob.oid[:32]}-7"', "Accept-Ranges": "bytes"}
        return Answer(200, facts, file=blob.file, name=f"{org}/{name}/{path}")

    def _signed(self, path: str) -> str:
        expires = f"{time.time() + self.lifetime:.3f}"
        return f"{quote(path)}?{urlencode({'Expires': expires, 'Signature': self._signature(path, expires)})}"

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), "sha256").hexdigest()

    def _repository(self, seen: Seen, model_id: str) -> Repository | Answer:
        token = _token(seen)
        if token is not None and token not in self.tokens:
            return _refusal(401, None, "Invalid credentials in Authorization header")
        repository = self.repositories.get(model_id)
        hidden = repository is not None and repository.private and model_id not in self.tokens.get(token or "", ())
        if repository is None or hidden:
            known = token is not None or self.anonymous_404
            return _refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        if repository.moved_to:
            query = f"?{seen.query}" if seen.query else ""
            there = quote(seen.path.replace(model_id, repository.moved_to, 1)) + query
            return Answer(307, {"Location": there}, b"Temporary Redirect")
        return repository

    def _gate(self, seen: Seen, repository: Repository) -> Answer | None:
        token = _token(seen)
        if not repository.gated or repository.model_id in self.tokens.get(token or "", ()):
            return None
        text = f"Access to model {repository.model_id} is restricted. You must have access to it."
        return _refusal(403 if token else 401, "GatedRepo", text)


class _Server(LoopbackServer):
    def __init__(self, hub: FakeHub, origin: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(_Handler, "127.0.0.1" if origin == "api" else "localhost", tls)
        self.hub = hub
        self.origin = origin
        self.crashed = hub.crashed

    def get_request(self) -> tuple[socket.socket, Any]:
        self.hub.accepted[self.origin] += 1
        return super().get_request()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        hub = self.server.hub
        # The absolute form is what a client sends to a proxy (RFC 9112 §3.2.2): we are the proxy and the hub.
        path, _, query = re.sub(r"^http://[^/]*", "", self.path).partition("?")
        headers = self.headers
        if self.command == "POST":
            query = self.rfile.read(int(headers["Content-Length"] or 0)).decode()
        access = headers["Authorization"], headers["Range"], headers["Host"]
        seen = Seen(self.server.origin, self.command, unquote(path), query, *access)
        fault = hub.note(seen)
        if fault is not None and fault.cut == "silence":
            hub.stopping.wait(_LONGEST_STALL)
            self.close_connection = True
        elif fault is not None and fault.status is not None:
            self._reply(Answer(fault.status, fault.headers, fault.body))
        else:
            self._reply(hub.answer(seen), fault)
        if fault is not None and fault.then_close:
            self.close_connection = True

    do_HEAD = do_POST = do_GET  # noqa: N815 - the base class looks for them

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Stay silent: the hub remembers in `seen`."""

    def _reply(self, answer: Answer, fault: Fault | None = None) -> None:
        if answer.file is None:
            self._head(answer.status, {**answer.headers, "Content-Length": str(len(answer.body))})
            if self.command != "HEAD":
                self._plain(answer.body, fault)
            return
        size = answer.file.stat().st_size
        wanted = None if fault is not None and fault.whole else self.headers["Range"]
        start, stop = _span(wanted, size) if wanted else (0, size)
        if start >= stop and wanted:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        facts = {**answer.headers, "Content-Length": str(stop - start)}
        if wanted:
            facts["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(206 if wanted else 200, facts)
        if self.command == "GET":
            self._send(answer, start, stop, fault)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _plain(self, body: bytes, fault: Fault | None) -> None:
        if fault is None or fault.cut is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.at])
        self._cut(fault.cut)

    def _send(self, answer: Answer, start: int, stop: int, fault: Fault | None) -> None:
        with answer.file.open("rb") as file:  # type: ignore[union-attr]
            end = stop if fault is None or fault.cut is None else min(max(fault.at, start), stop)
            position = start
            while position < end:
                count = self._piece(file, position, end, fault)
                self.server.hub.count(answer.name, count)
                position += count
        if fault is not None and fault.cut is not None and start <= fault.at < stop:
            self._cut(fault.cut)

    def _piece(self, file: Any, position: int, end: int, fault: Fault | None) -> int:
        length = min(PIECE, end - position)
        if fault is not None and fault.rate is not None:
            length = min(length, max(1, fault.rate // 10))
            time.sleep(length / fault.rate)
        if fault is None or fault.flip is None or not position <= fault.flip < position + length:
            return int(self.connection.sendfile(file, position, length))
        spoilt = bytearray(os.pread(file.fileno(), length, position))
        spoilt[fault.flip - position] ^= 1
        self.connection.sendall(spoilt)
        return length

    def _cut(self, how: str) -> None:
        self.close_connection = True
        if how == "stall":
            self.server.hub.stopping.wait(_LONGEST_STALL)
        elif how == "reset":
            # Closing with a linger of 0 sends RST; shutdown_request would send FIN first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.open.discard(self.connection)
            os.close(self.connection.detach())


def _blob(path: Path, *, lfs: bool | None) -> Blob:
    size = path.stat().st_size
    in_lfs = (size >= LFS_FROM or path.name.endswith(_LFS_NAMES)) if lfs is None else lfs
    if not in_lfs:
        return Blob(path, size, _git_sha1(path.read_bytes()), None)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(path, size, _git_sha1(pointer.encode()), sha256)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _directories(files: Mapping[str, Blob]) -> list[dict[str, Any]]:
    names = sorted({str(parent) for path in files for parent in Path(path).parents if str(parent) != "."})
    return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in names]


def _commit(repository: Repository, revision: str) -> str | None:
    return revision if revision in repository.commits else repository.refs.get(revision)


def _token(seen: Seen) -> str | None:
    return seen.authorization.removeprefix("Bearer ") if seen.authorization else None


def _span(header: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if found is None:
        return 0, size
    first, last = found.groups()
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(int(last) + 1, size) if last else size


def _json(value: Any, headers: Mapping[str, str] = {}) -> Answer:
    return Answer(200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())


def _refusal(status: int, code: str | None, message: str, headers: Mapping[str, str] = {}) -> Answer:
    named = {"X-Error-Code": code} if code else {}
    return Answer(
        status,
        {"Content-Type": "application/json", "X-Error-Message": message, **named, **headers},
        json.dumps({"error": message}).encode(),
    )


def main(arguments: list[str]) -> None:
    """Serve the directories that the command line names until stdin ends."""
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repositories", nargs="+", metavar="ORG/NAME=DIRECTORY")
    parser.add_argument("--token", action="append", default=[], help="a token that every repository is open to")
    parser.add_argument("--cdn", help="another server that has the LFS bodies, as ORG/NAME/COMMIT/PATH")
    chosen = parser.parse_args(arguments)
    with FakeHub() as hub:
        hub.cdn = chosen.cdn or hub.cdn
        pairs = [text.partition("=") for text in chosen.repositories]
        commits = {model_id: hub.add(model_id, Path(directory)) for model_id, _, directory in pairs}
        hub.tokens.update({token: set(commits) for token in chosen.token})
        print(json.dumps({"endpoint": hub.endpoint, "cdn": hub.cdn, "commits": commits}), flush=True)
        sys.stdin.read()
        print(json.dumps({"sent": hub.sent, "crashed": hub.crashed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
