"""The source, held to what every source is held to, with a gated repository of a hub on loopback."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt.testing import RemoteSourceConformance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fakehub import FakeHub

MODEL, TOKEN = "org/name", "hf_UniqueTokenThatMustNotLeak0452"


class TestHfHub(RemoteSourceConformance):
    name = "hf-hub"

    @pytest.fixture
    def options(self, hub: FakeHub) -> dict[str, Any]:
        hub.tokens[TOKEN] = {MODEL}
        return {"hf_endpoint": hub.endpoint, "hf_token": TOKEN}

    @pytest.fixture
    def put(self, hub: FakeHub, tmp_path: Path) -> Callable[[str, bytes], None]:
        commits = [tmp_path / "commit-0"]
        commits[0].mkdir()

        def commit(path: str, data: bytes) -> None:
            commits.append(tmp_path / f"commit-{len(commits)}")
            shutil.copytree(commits[-2], commits[-1])
            file = commits[-1] / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            hub.add(MODEL, commits[-1], gated="manual")

        return commit

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return (TOKEN,)
