"""The servers of the benchmarks, on free ports of loopback; each ends with its block."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.measure import Missing
from bench.models import BUCKET, PREFIX
from bench.tools import find

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
_PATIENCE = 20.0

_CONFIG = """\
daemon off; worker_processes {workers}; pid {here}/nginx.pid; error_log {here}/nginx.log; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off; default_type application/octet-stream; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {here}/tmp; proxy_temp_path {here}/tmp; fastcgi_temp_path {here}/tmp;
  uwsgi_temp_path {here}/tmp; scgi_temp_path {here}/tmp;
  map_hash_bucket_size 256; map_hash_max_size 65536;
  map $request_method:$uri $digest {{ {digests} }}
  map $digest $whole {{ "" ""; default FULL_OBJECT; }}
  server {{
    listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl;
    ssl_certificate {here}/cert.pem; ssl_certificate_key {here}/key.pem;
    root {root};
    location = /{bucket} {{ proxy_pass http://127.0.0.1:{listing}; }}
    location = /{bucket}/ {{ proxy_pass http://127.0.0.1:{listing}; }}
    location /{bucket}/ {{ add_header x-amz-checksum-{algorithm} $digest; add_header x-amz-checksum-type $whole; }}
    location /acme/ {{ rewrite ^/acme/([^/]+)/[0-9a-f]+/(.+)$ /{bucket}/{prefix}/$1/$2 break; }}
  }}
}}
"""


class Store(NamedTuple):
    """A running nginx.

    Attributes:
        http: the endpoint.
        https: the other one.
        certificate: what to trust for it.
    """

    http: str
    https: str
    certificate: Path

    @property
    def cdn(self) -> str:
        """The same server under another name: to a client another origin, as a Hub's CDN is."""
        return self.http.replace("127.0.0.1", "localhost")


@contextmanager
def store(scratch: Path, *, told: str | None = "crc64nvme") -> Iterator[Store]:
    """Serve ``scratch/data``, the directory of the bucket, with nginx over HTTP and HTTPS.

    Args:
        scratch: a directory with ``data/<BUCKET>/<PREFIX>/<model>`` in it.
        told: which digest of the object HEAD tells: ``crc64nvme``, as S3 does of what today's clients upload,
            ``sha256``, as of what was uploaded with one, or none.

    Raises:
        Missing: there is no nginx, or no openssl.
    """
    nginx = find("nginx")
    if nginx is None or not find("openssl"):
        raise Missing("there is no nginx, or no openssl")
    here, data = scratch / "nginx", scratch / "data"
    (here / "tmp").mkdir(parents=True, exist_ok=True)
    _certificate(here)
    port, tls, listing = free_ports(3)
    files = [file for file in data.rglob("*") if file.is_file()] if told else []
    config = _CONFIG.format(
        workers=os.cpu_count(),
        here=here,
        user="user root;" if os.getuid() == 0 else "",
        algorithm=told,
        digests=" ".join(f'"HEAD:/{file.relative_to(data)}" "{_digest(file, told)}";' for file in files),
        port=port,
        tls=tls,
        listing=listing,
        root=data,
        bucket=BUCKET,
        prefix=PREFIX,
    )
    (here / "nginx.conf").write_text(config)
    with ExitStack() as stack:
        stack.enter_context(listing_server(data, "127.0.0.1", listing))
        stack.enter_context(process([nginx, "-p", here, "-c", here / "nginx.conf", "-e", here / "nginx.log"]))
        wait(("127.0.0.1", port))
        yield Store(f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls}", here / "cert.pem")


@contextmanager
def listing_server(data: Path, address: str, port: int, *, pace: int = 0, inside: Sequence[str] = ()) -> Iterator[None]:
    """Run `s3files`; `pace` is bytes a second on each connection, `inside` a command that runs it somewhere else."""
    command = [*inside, sys.executable, HERE / "s3files.py", data, address, port, pace]
    with process(command, stdin=subprocess.PIPE):
        if not inside:
            wait((address, port))
        yield


@contextmanager
def hub(model: Path, model_id: str, cdn: str) -> Iterator[str]:
    """Run the hub of the tests, with its large files on another server; the value is its endpoint."""
    command = [sys.executable, HERE.parent / "fakehub.py", f"{model_id}={model}", "--cdn", cdn]
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        yield json.loads(running.stdout.readline())["endpoint"]


@contextmanager
def process(command: Sequence[object], **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; it is told to end with the block, and dies with this process."""
    dying = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    running = subprocess.Popen([*dying, *map(str, command)], **pipes)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(10)
        for pipe in (running.stdin, running.stdout):
            if pipe:
                pipe.close()


def wait(address: tuple[str, int]) -> None:
    """Wait until somebody listens.

    Raises:
        TimeoutError: nobody did.
    """
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nobody listens on {address[0]}:{address[1]}")


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _certificate(here: Path) -> None:
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", here / "key.pem", "-out", here / "cert.pem"]
    subprocess.run([*request, *names, *files], check=True, capture_output=True)


def _digest(file: Path, algorithm: str | None) -> str:
    """Return a digest as S3 writes it."""
    from awscrt import checksums

    if algorithm == "sha256":
        with file.open("rb") as content:
            return b64encode(hashlib.file_digest(content, algorithm).digest()).decode()
    value, block = 0, memoryview(bytearray(1 << 20))
    with file.open("rb") as content:
        while count := content.readinto(block):
            value = checksums.crc64nvme(block[:count], value)
    return b64encode(value.to_bytes(8, "big")).decode()
