"""Plugins with validators, each wrong in one way that one test of the conformance kit is meant for."""

from __future__ import annotations

import json
from typing import Any

import vllmrt
from vllmrt.types import Finding, ModelTree, Severity


class Broken:
    """What is right about all of them: a model needs a licence. Each class is a plugin and its validator."""

    meant_for: str | None = None
    key = ""

    def __init__(self) -> None:
        self.name = type(self).__name__
        self.checked = 0

    @vllmrt.hookimpl
    def vllmrt_validators(self, settings: Any) -> Any:
        self.key = settings.api_key
        yield self

    def check(self, tree: ModelTree) -> Any:
        self.checked += 1
        return () if (tree.path / "LICENSE").is_file() else (self.finding(tree),)

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message=f"{tree.path.name} has no licence", code="no-licence", file="LICENSE")


class FineValidator(Broken):
    pass


class NoValidator(Broken):
    meant_for = "test_it_is_declared_once_and_under_its_own_name"
    check = None  # type: ignore[assignment]


class TwoOfOneName(Broken):
    meant_for = "test_each_has_a_name_of_its_own"

    @vllmrt.hookimpl
    def vllmrt_validators(self, settings: Any) -> Any:
        yield from (self, self) if settings else ()


class RefusesAll(Broken):
    meant_for = "test_a_good_model_passes"

    def check(self, tree: ModelTree) -> Any:
        return (self.finding(tree),)


class PassesAll(Broken):
    meant_for = "test_a_broken_model_is_refused"

    def check(self, tree: ModelTree) -> Any:
        return tuple(Finding(Severity.WARNING, message=one.message, code=one.code) for one in super().check(tree))


class SpeaksInParagraphs(Broken):
    meant_for = "test_its_findings_can_be_shown"

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message=f"{tree.path}:\nno licence", code="no-licence")


class SpeaksInSentences(Broken):
    meant_for = "test_its_findings_can_be_shown"

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message=f"{tree.path}: no licence", code="There is no licence!")


class NamesWholePaths(Broken):
    meant_for = "test_its_findings_can_be_shown"

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message="no licence", code="no-licence", file=str(tree.path / "LICENSE"))


class LeavesAMark(Broken):
    meant_for = "test_checking_changes_nothing"

    def check(self, tree: ModelTree) -> Any:
        if tree.path.is_dir():
            (tree.path / ".checked").touch()
        return super().check(tree)


class Counts(Broken):
    meant_for = "test_checking_again_gives_the_same"

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message=f"{tree.path}: refused {self.checked} times", code="no-licence")


class TrustsTheConfiguration(Broken):
    meant_for = "test_whatever_lies_there_it_does_not_break"

    def check(self, tree: ModelTree) -> Any:
        config = tree.path / "config.json"
        if config.is_file():
            json.loads(config.read_bytes())
        return super().check(tree)


class TellsTheKeyInAFinding(Broken):
    meant_for = "test_no_secret_is_told"

    def finding(self, tree: ModelTree) -> Finding:
        return Finding(Severity.ERROR, message=f"{tree.path}: {self.key} is no licence", code="no-licence")


BROKEN = {cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Broken)}
del BROKEN["Broken"]
plugins = type("plugins", (), {name: cls() for name, cls in BROKEN.items()})
