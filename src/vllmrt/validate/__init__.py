"""What the core itself demands of a model directory (DESIGN.md §9).

`validators` gives the validators; each is a module below with one function, ``check(survey, settings)``, that yields
findings and raises nothing for any content of the directory. All of them judge bytes alone, so a tree that is unchanged
passes without one of those modules being imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from vllmrt.settings import Settings
    from vllmrt.types import Finding, ModelTree, Validator
    from vllmrt.validate.tree import Survey

NAMES = ("containment", "config", "tokenizer", "shards", "safetensors", "checksums")
SHOWN = 20


class Surveyor:
    """Walks a tree once for all validators of a run."""

    def __init__(self) -> None:
        self._last: tuple[ModelTree, Survey] | None = None

    def __call__(self, tree: ModelTree) -> Survey:
        """Return the survey of `tree`, made at the first call with this very object."""
        last = self._last
        if last is not None and last[0] is tree:
            return last[1]
        from vllmrt.validate.tree import survey

        result = survey(tree)
        self._last = (tree, result)
        return result


class BytesValidator:
    """One of the core's validators.

    Args:
        name: its module below this package.
        settings: the run's settings.
        surveyor: shared by the validators of one run.
    """

    def __init__(self, name: str, settings: Settings, surveyor: Surveyor) -> None:
        self.name = name
        self._settings = settings
        self._surveyor = surveyor

    def check(self, tree: ModelTree) -> Sequence[Finding]:
        """Return the findings, errors first; of more than `SHOWN` the rest is counted in a last one."""
        if tree.unchanged:
            return ()
        check = import_module(f"vllmrt.validate.{self.name}").check
        return _shortened(check(self._surveyor(tree), self._settings))


def validators(settings: Settings) -> tuple[Validator, ...]:
    """Return the core's validators, which share one walk of each tree."""
    surveyor = Surveyor()
    return tuple(BytesValidator(name, settings, surveyor) for name in NAMES)


def missing(names: Collection[str], settings: Settings) -> tuple[Finding, ...]:
    """Return what a directory with files of these names would lack, before any of them is fetched."""
    from vllmrt.validate import config, shards, tokenizer

    return (*config.missing(names), *tokenizer.missing(names, settings), *shards.missing(names))


def _shortened(found: Iterable[Finding]) -> tuple[Finding, ...]:
    from vllmrt.types import Finding, Severity

    findings = sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)
    rest = findings[SHOWN:]
    if not rest:
        return tuple(findings)
    more = Finding(rest[0].severity, message=f"and {len(rest):,} more findings of this kind", code="more-findings")
    return (*findings[:SHOWN], more)
