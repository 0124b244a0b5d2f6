"""The source, held to what every source is held to, with stores of several kinds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from s3server import KEY, SECRET

from vllmrt.testing import RemoteSourceConformance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[[str, bytes], None]


class OnStore(RemoteSourceConformance):
    name = "fsspec"
    pause = 0.0

    @pytest.fixture
    def base(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def options(self, base: str) -> dict[str, Any]:
        return {"model_url": f"{base}/{{org}}/{{name}}"}

    @pytest.fixture
    def put(self, base: str, put: Put) -> Put:
        seen: set[str] = set()

        def store(path: str, data: bytes) -> None:
            if path in seen:
                time.sleep(self.pause)
            seen.add(path)
            put(f"{base}/org/name/{path}", data)

        return store


class TestMemory(OnStore):
    @pytest.fixture
    def base(self, memory: str) -> str:
        return memory


class TestFiles(OnStore):
    @pytest.fixture
    def base(self, tmp_path: Path) -> str:
        return (tmp_path / "files").as_uri()


class TestS3(OnStore):
    @pytest.fixture
    def base(self, s3_url: str) -> str:
        return s3_url

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return KEY, SECRET


class TestGcs(OnStore):
    @pytest.fixture
    def base(self, gcs_url: str) -> str:
        return gcs_url


class TestSftp(OnStore):
    pause = 1.1  # it tells whole seconds

    @pytest.fixture
    def base(self, sftp_url: str) -> str:
        return sftp_url

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return ("s3cr3t-pw",)

    @pytest.mark.xfail(reason="fsspec keeps a connection of paramiko, and its thread, for each thread that asked")
    def test_an_interrupt_leaves_no_thread(
        self, settings: Any, entry: Any, opener: Any, largest: Any, wanted: Any
    ) -> None:
        super().test_an_interrupt_leaves_no_thread(settings, entry, opener, largest, wanted)
