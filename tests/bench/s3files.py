"""A directory of buckets over HTTP as S3 has it: listing, HEAD, GET with Range and If-Match; no signature is checked.

    python tests/bench/s3files.py DIRECTORY ADDRESS PORT [BYTES_PER_SECOND_AND_CONNECTION]     until stdin ends

It is the listing beside nginx, which serves the objects themselves; ETags are those that nginx makes. Where the network
is slow, it serves the objects too, and the kernel paces every connection.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from time import gmtime, strftime
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
SO_MAX_PACING_RATE = 47  # socket(7); the module socket has no name for it
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def main(directory: str, address: str, port: str, pace: str = "0") -> None:
    """Serve until stdin ends."""
    Handler.root, Handler.pace = Path(directory), int(pace)
    with Server((address, int(port)), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        os._exit(0)  # connections that are open are nobody's any more


class Server(ThreadingHTTPServer):
    """It does not ask a name server who it is, as its base class does."""

    request_queue_size = 128
    server_bind = TCPServer.server_bind


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root: Path
    pace = 0

    def setup(self) -> None:
        if self.pace:
            self.request.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, self.pace)
        super().setup()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        file = self.root / bucket / key
        if not key and (self.root / bucket).is_dir():
            self._answer(200, listing(self.root, bucket, query))
        elif not file.is_file():
            self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")
        elif self.headers["If-Match"] not in {None, etag(file.stat())}:
            self._answer(412, "<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._object(file)

    do_HEAD = do_GET  # noqa: N815 - the base class looks for it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Stay silent."""

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())

    def _object(self, file: Path) -> None:
        about = file.stat()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start = int(wanted[1]) if wanted else 0
        stop = min(int(wanted[2]) + 1, about.st_size) if wanted and wanted[2] else about.st_size
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{about.st_size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", etag(about))
        self.send_header("Last-Modified", strftime("%a, %d %b %Y %H:%M:%S GMT", gmtime(about.st_mtime)))
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as content:
                self.connection.sendfile(content, start, stop - start)


def listing(root: Path, bucket: str, query: dict[str, str]) -> str:
    """Return one page of ListObjectsV2; the token is the last key of the page before."""
    if "location" in query:
        return f'<LocationConstraint xmlns="{_NAMESPACE}"/>'
    prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
    # every prefix that is asked for ends at a slash
    directory = root / bucket / prefix
    found = sorted(directory.rglob("*")) if prefix.endswith("/") and directory.is_dir() else []
    files = [(file.relative_to(root / bucket).as_posix(), file.stat()) for file in found if file.is_file()]
    files = [(key, about) for key, about in files if key > after]
    entries = [_entry(key, about) for key, about in files[:PAGE]]
    more = len(files) > PAGE
    token = f"<NextContinuationToken>{escape(files[PAGE - 1][0])}</NextContinuationToken>" if more else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="{_NAMESPACE}"><Name>{bucket}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}</ListBucketResult>"
    )


def etag(about: os.stat_result) -> str:
    """Return the ETag that nginx gives a file: time and size in hexadecimal."""
    return f'"{int(about.st_mtime):x}-{about.st_size:x}"'


def _entry(key: str, about: os.stat_result) -> str:
    when = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(about.st_mtime))
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>{escape(etag(about))}</ETag>"
        f"<Size>{about.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
