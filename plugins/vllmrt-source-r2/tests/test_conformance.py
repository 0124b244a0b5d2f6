"""The source, held to what every source is held to, with a real S3 server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from s3server import KEY, SECRET

from vllmrt.testing import RemoteSourceConformance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3server import Bucket, S3Server


class TestR2(RemoteSourceConformance):
    name = "r2"

    @pytest.fixture
    def options(
        self, s3_server: S3Server, bucket: Bucket, environ: pytest.MonkeyPatch, tmp_path: Path
    ) -> dict[str, Any]:
        for name, value in s3_server.environ(tmp_path).items():
            environ.setenv(name, value)
        return {"r2_bucket": bucket.name, "r2_models_prefix": "llm", "r2_endpoint_url": s3_server.endpoint}

    @pytest.fixture
    def put(self, bucket: Bucket) -> Callable[[str, bytes], object]:
        return lambda path, data: bucket.put(f"llm/name/{path}", data)

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return KEY, SECRET
