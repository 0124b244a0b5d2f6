"""No link leads out of the model, and all that is there are files and directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.tree import Survey


def check(survey: Survey, _: Settings) -> Sequence[Finding]:
    """Return ``link-escapes``, ``link-dangling``, ``special-file``, ``unreadable`` and ``tree-too-large``."""
    return survey.findings
