"""Which plugins are installed, from the metadata on disk; nothing is imported.

`importlib.metadata` would do, but importing it (email, csv, zipfile) takes longer than all the rest of a warm start,
and it reads the metadata of every distribution. Here each ``entry_points.txt`` is read once, and parsed only where it
mentions us. Format: the entry points specification of the Python packaging guide.
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SOURCES = "vllmrt.sources"
GPU_PROBES = "vllmrt.gpu_probes"
PLUGINS = "vllmrt.plugins"
MODELS = "vllmrt.models"
KINDS = {SOURCES: "source", GPU_PROBES: "gpu-probe", PLUGINS: "ambient", MODELS: "model"}
"""What the plugins of a group are called; in this order they are listed."""


class EntryPoint(NamedTuple):
    """One line of an ``entry_points.txt`` and whose it is.

    Attributes:
        group: such as ``vllmrt.sources``.
        name: what a user types.
        value: ``module`` or ``module:attribute``.
        distribution: the normalised name of the distribution (PyPA name normalisation).
        version: its version.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def owner(self) -> str:
        """Whom to blame: distribution and version."""
        return f"{self.distribution} {self.version}"


def normalise(name: str) -> str:
    """Return a distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entry_points(search_path: Sequence[str] | None = None) -> list[EntryPoint]:
    """Return every entry point in a group of ours.

    Args:
        search_path: directories to look in, `sys.path` where it is None. Of a distribution that is there twice the
            first one counts, as for imports.
    """
    installed: dict[str, tuple[EntryPoint, ...]] = {}
    for directory in sys.path if search_path is None else search_path:
        try:
            changed = os.stat(directory or ".").st_mtime_ns  # noqa: PTH116 - plain strings are what sys.path has
        except OSError:
            continue
        for distribution, points in _distributions(directory or ".", changed):
            installed.setdefault(distribution, points)
    return [point for points in installed.values() for point in points]


def listing(disabled: Iterable[str]) -> list[tuple[EntryPoint, dict[str, str]]]:
    """Return every plugin with what its metadata says, by kind and name.

    Args:
        disabled: distributions whose plugins are not to be imported.
    """
    without = set(map(normalise, disabled))
    found = [entry for entry in entry_points() if entry.group in KINDS]
    found.sort(key=lambda entry: (list(KINDS).index(entry.group), entry.name))
    return [(entry, _told(entry, disabled=entry.distribution in without)) for entry in found]


def _told(entry: EntryPoint, *, disabled: bool) -> dict[str, str]:
    return {
        "kind": KINDS[entry.group],
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.value,
        "state": "disabled" if disabled else "enabled",
    }


@lru_cache
def _distributions(directory: str, changed: int) -> list[tuple[str, tuple[EntryPoint, ...]]]:  # noqa: ARG001 - the cache's key
    """Read one directory; more than one caller asks in a run, and installing anything changes its mtime."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    found = []
    for name in names:
        stem, dot, kind = name.rpartition(".")
        # pip renames what it is about to remove to ~name
        if kind in {"dist-info", "egg-info"} and dot and not name.startswith("~"):
            distribution, version = f"{stem}-?".split("-")[:2]
            found.append((normalise(distribution), tuple(_read(f"{directory}/{name}", distribution, version))))
    return found


def _read(metadata: str, distribution: str, version: str) -> Iterator[EntryPoint]:
    try:
        with open(f"{metadata}/entry_points.txt", "rb") as file:  # noqa: PTH123 - as above
            content = file.read()
    except OSError:
        return
    if b"vllmrt." in content:
        for group, name, value in _parse(content.decode(errors="replace").splitlines()):
            yield EntryPoint(group, name, value, normalise(distribution), version)


def _parse(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    group = ""
    for line in map(str.strip, lines):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith("vllmrt.") and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()
