from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from vllmrt.settings import Settings
from vllmrt.testing import fingerprint, make_model, tree_of
from vllmrt.types import Finding, Severity
from vllmrt.validate import validators

if TYPE_CHECKING:
    from pathlib import Path

Fault = tuple[str, str | None]


class Report:
    """The findings of all the core's validators."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    @property
    def errors(self) -> list[Fault]:
        return [(f.code, f.file) for f in self.findings if f.severity is Severity.ERROR]

    @property
    def warnings(self) -> list[Fault]:
        return [(f.code, f.file) for f in self.findings if f.severity is Severity.WARNING]

    @property
    def text(self) -> str:
        return "\n".join(f.message for f in self.findings)


class Check(Protocol):
    def __call__(self, path: Path, *, root: Path | None = None, **settings: object) -> Report: ...


@pytest.fixture
def check() -> Check:
    """Validate a directory, and see that this changes nothing in it."""

    def run(path: Path, *, root: Path | None = None, **settings: object) -> Report:
        before = fingerprint(path)
        tree = tree_of(path, root=root)
        findings = [finding for validator in validators(Settings(**settings)) for finding in validator.check(tree)]
        assert fingerprint(path) == before
        for finding in findings:
            assert f"{finding.file}{finding.message}".isprintable()
        return Report(findings)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")
