"""What a doctor's page is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmrt.layers import Layers
    from vllmrt.settings import Settings


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and what to do about it.

    Attributes:
        code: for programs; docs/doctor.md lists them.
        message: for people, in one line.
        remedy: the same.
    """

    code: str
    message: str
    remedy: str


class Section(msgspec.Struct):
    """A part of the page.

    Attributes:
        facts: for programs; None where nothing could be found out.
        lines: the same facts for people.
        notes: what is worth knowing and no problem.
        problems: what is.
    """

    facts: Any = None
    lines: list[str] = []
    notes: list[str] = []
    problems: list[Problem] = []

    def add(self, code: str, message: str, remedy: str | None) -> None:
        """Add a problem; one whose error has no remedy gets the general one."""
        self.problems.append(Problem(code, message, remedy or "docs/doctor.md has more about it"))


class Case(NamedTuple):
    """What is looked at.

    Attributes:
        layers: the settings, with their faults.
        environ: the environment that vllmrt was started in.
    """

    layers: Layers
    environ: Mapping[str, str]

    @property
    def settings(self) -> Settings:
        """The settings, with defaults for those that cannot be used."""
        return self.layers.settings


class Page(NamedTuple):
    """Everything that was found out.

    Attributes:
        sections: by name, in the order of the page.
    """

    sections: dict[str, Section]

    @property
    def problems(self) -> list[tuple[str, Problem]]:
        """All problems, each with the name of its section."""
        return [(name, problem) for name, section in self.sections.items() for problem in section.problems]

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints; docs/doctor.md describes it."""
        notes = [{"section": name, "message": note} for name, one in self.sections.items() for note in one.notes]
        problems = [{"section": name, **msgspec.structs.asdict(problem)} for name, problem in self.problems]
        facts = {name: section.facts for name, section in self.sections.items()}
        ok: dict[str, Any] = {"ok": False, "code": 1} if problems else {"ok": True}
        return {**ok, **facts, "notes": notes, "problems": problems}
