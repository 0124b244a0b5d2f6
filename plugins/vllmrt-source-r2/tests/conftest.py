"""Sources for a real S3 server and for the stub, in an environment of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from s3server import bucket, s3_server  # noqa: F401 - pytest finds fixtures by their names here
from s3stub import stub  # noqa: F401 - the same
from vllmrt_source_r2 import R2Source

from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from s3server import Bucket, S3Server


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make an environment without AWS settings from this machine; credentials are the stub's."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDstub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stub-secret-5f0e")
    return monkeypatch


@pytest.fixture
def sources() -> Iterator[Callable[..., R2Source]]:
    """Return a maker of sources; what they hold open ends with the test."""
    made: list[R2Source] = []

    def make(**changed: Any) -> R2Source:
        made.append(R2Source(Settings(**{"r2_bucket": "models", "r2_models_prefix": "llm", **changed})))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def real(
    s3_server: S3Server,  # noqa: F811 - the fixture
    bucket: Bucket,  # noqa: F811 - the fixture
    environ: pytest.MonkeyPatch,
    tmp_path: Path,
    sources: Callable[..., R2Source],
) -> Callable[..., R2Source]:
    """Return a maker of sources for the test's own bucket on the real server."""
    for name, value in s3_server.environ(tmp_path).items():
        environ.setenv(name, value)
    return lambda **changed: sources(**{"r2_bucket": bucket.name, "r2_endpoint_url": s3_server.endpoint, **changed})
