"""Distributions that are made up: real metadata and modules on disk, without a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def fake_dist(
    directory: Path,
    name: str,
    version: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
) -> None:
    """Install a distribution into `directory`, as an unpacked wheel would lie there.

    Args:
        directory: to be put on ``sys.path``.
        name: as its author writes it; the directory gets the form of the wheel specification.
        version: its version.
        entry_points: group to name to value.
        modules: module name to source; ``a.b`` lies in the package ``a``.
    """
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: A fake.\n")
    (info / "entry_points.txt").write_text(entry_points_txt(entry_points))
    for module, source in (modules or {}).items():
        path = directory.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def entry_points_txt(entry_points: Mapping[str, Mapping[str, str]]) -> str:
    """Return the content of an ``entry_points.txt``."""
    lines: list[str] = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    return "\n".join(lines)
