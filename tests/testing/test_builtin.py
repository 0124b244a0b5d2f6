"""The core's own plugin, held to what a stranger's is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllmrt.testing import ClassifierConformance, ValidatorConformance, corrupt, make_model
from vllmrt.types import ProcessInfo, Verdict

if TYPE_CHECKING:
    from pathlib import Path


def process(*argv: str) -> ProcessInfo:
    return ProcessInfo(10, uid=0, start_ticks=1, exe=None, argv=argv, title=argv[0] if len(argv) == 1 else "")


class TestValidators(ValidatorConformance):
    name = "builtin"

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        model = make_model(tmp_path / "broken")
        corrupt(model / "model-00002-of-00002.safetensors", cut=1)
        (model / "tokenizer.json").write_text("{")
        return model


class TestClassifier(ClassifierConformance):
    name = "builtin"

    @pytest.fixture
    def judged(self) -> list[tuple[ProcessInfo, Verdict | None]]:
        return [
            (process("vllm", "serve", "model"), Verdict.VLLM),
            (process("VLLM::EngineCore"), Verdict.VLLM),
            (process("python", "-m", "vllm.entrypoints.openai.api_server"), Verdict.VLLM),
            (process("python", "train.py"), None),
        ]
