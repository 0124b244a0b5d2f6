"""ModelScope's API on loopback, as far as a download needs it.

Listings carry a SHA-256 for every file and the commit that changed it last, and every revision may be asked for by
branch or commit. What is in LFS is redirected to another origin by a signed URL; other files come from the API itself,
which calls a range 200. What is not there is told with a code of ModelScope's own in the body.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

LFS_FROM = 10 << 10
"""Bytes from which a file is in LFS."""
NOT_FOUND = 10010205001


class File(NamedTuple):
    """The content of a file, and the commit that changed it last."""

    content: bytes
    commit: str

    @property
    def sha256(self) -> str:
        """The digest that a listing has."""
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """Return the file as a listing has it."""
        return {
            "CommitMessage": "",
            "CommittedDate": 1726665606,
            "CommitterName": "acme",
            "InCheck": False,
            "IsLFS": len(self.content) >= LFS_FROM,
            "Mode": "33188",
            "Name": path.rpartition("/")[2],
            "Path": path,
            "Revision": self.commit,
            "Sha256": self.sha256,
            "Size": len(self.content),
            "Type": "blob",
        }


class ModelScopeServer:
    """A server; use it as a context manager.

    Attributes:
        token: opens the private models.
        seen: path with query, and headers, of every request.
        failing: the status that the next requests are answered with, one for each.
        listing: replaces the body of every listing.
    """

    def __init__(self) -> None:
        self.token = "ms-token-7c1e"
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.failing: list[int] = []
        self.listing: bytes | None = None
        self._private: set[str] = set()
        self._commits: dict[tuple[str, str], dict[str, File]] = {}
        self._heads: dict[tuple[str, str], str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Bound", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        port = self._server.server_address[1]
        self.endpoint, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def commit(self, model: str, files: Mapping[str, bytes], *, branch: str = "master", private: bool = False) -> str:
        """Put the files on a branch; return the commit."""
        before = self._tree(model, branch) or {}
        digest = hashlib.sha1(repr((model, branch, sorted(files.items()))).encode(), usedforsecurity=False).hexdigest()
        kept = {path: file for path, file in before.items() if files.get(path) == file.content}
        self._commits[model, digest] = {path: kept.get(path) or File(data, digest) for path, data in files.items()}
        self._heads[model, branch] = digest
        if private:
            self._private.add(model)
        return digest

    def upload(self, model: str, folder: Path, **more: Any) -> str:
        """Put all files of a folder on a branch; return the commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.commit(model, files, **more)

    def answer(self, target: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        self.seen.append((target, dict(headers)))
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        if self.failing:
            return self.failing.pop(0), {}, b"{}"
        if path.startswith("/cdn/"):
            content = next(file for tree in self._commits.values() for file in tree.values() if file.sha256 in path)
            return _cut(content.content, headers.get("Range"), partial=206)
        model, _, call = path.removeprefix("/api/v1/models/").partition("/repo")
        tree = self._tree(model, query["Revision"][0])
        if tree is None or (model in self._private and headers.get("Authorization") != f"Bearer {self.token}"):
            told = {"Code": NOT_FOUND, "Message": "record not found", "RequestId": "1", "Success": False}
            return 200, {}, json.dumps(told).encode()
        return (200, {}, self.listing or _listing(tree)) if call else self._file(tree, query["FilePath"][0], headers)

    def _file(
        self, tree: Mapping[str, File], path: str, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        file = tree.get(path)
        if file is None:
            return 404, {}, b"{}"
        if len(file.content) < LFS_FROM:
            return _cut(file.content, headers.get("Range"), partial=200)
        signed = f"{self.cdn}/cdn/{file.sha256}?Expires=1&Signature={quote('a+b/c=')}"
        return 302, {"Location": signed, "X-Linked-ETag": f'"{file.sha256}"'}, b""

    def _tree(self, model: str, revision: str) -> dict[str, File] | None:
        return self._commits.get((model, self._heads.get((model, revision), revision)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 5
    owner: ModelScopeServer

    def do_GET(self) -> None:
        status, headers, body = self.owner.answer(self.path, dict(self.headers.items()))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Stay silent."""


def _listing(tree: Mapping[str, File]) -> bytes:
    folders = sorted({path.rpartition("/")[0] for path in tree} - {""})
    entries = [{**File(b"", "0").entry(folder), "Type": "tree", "Sha256": "", "Mode": "16384"} for folder in folders]
    entries += [file.entry(path) for path, file in tree.items()]
    data = {"Files": entries, "IsVisual": 0, "LatestCommitter": {"Name": "acme"}}
    return json.dumps({"Code": 200, "Data": data, "Message": "success", "RequestId": "1", "Success": True}).encode()


def _cut(content: bytes, wanted: str | None, *, partial: int) -> tuple[int, dict[str, str], bytes]:
    if not wanted:
        return 200, {}, content
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    if int(first) >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
    part = content[int(first) : int(last or len(content)) + 1]
    return partial, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"}, part
