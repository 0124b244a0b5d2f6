"""The beginning of a plugin: a package that installs, passes its linters and its conformance suite as it is written."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
import tempfile
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt import discovery
from vllmrt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

LONGEST = 40
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Kind(StrEnum):
    """What a plugin can be."""

    SOURCE = "source"
    GPU_PROBE = "gpu-probe"
    VALIDATOR = "validator"
    CLASSIFIER = "classifier"

    @property
    def group(self) -> str:
        """Its entry-point group."""
        return {Kind.SOURCE: discovery.SOURCES, Kind.GPU_PROBE: discovery.GPU_PROBES}.get(self, discovery.PLUGINS)


def write(name: str, kind: Kind, directory: Path, version: str) -> list[str]:
    """Write the package of a plugin.

    Args:
        name: of the distribution and of the entry point, as users will type it.
        kind: what the plugin is to be.
        directory: where to; it must not exist, or be empty.
        version: of the vllmrt that it is written for.

    Returns:
        the files, relative to `directory`.

    Raises:
        ConfigError: the name cannot be used, or there is something at `directory`.
        OSError: it cannot be written.
    """
    check_name(name, kind)
    if directory.is_symlink() or (directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))):
        raise ConfigError(f"{directory} is there already, and nothing is overwritten", hint="name another directory")
    if directory.exists() and directory.samefile("."):
        raise ConfigError(
            "the directory that you are in cannot be replaced", hint="leave --directory out, or name another"
        )
    made = render(name, kind, version)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory.parent))
    try:
        for path, text in made.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_text(text)
        staging.chmod(0o777 & ~_umask())
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return sorted(made)


def check_name(name: str, kind: Kind) -> None:
    """Raise ConfigError for a name that no distribution, module and entry point could have together."""
    module = name.replace("-", "_")
    hint = f"words of a-z and 0-9 joined by '-', at most {LONGEST} letters, such as acme-share"
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigError(f"{name[:80]!a} cannot be the name of a plugin", hint=hint)
    if module in sys.stdlib_module_names or keyword.iskeyword(module) or module.split("_")[0] == "vllmrt":
        raise ConfigError(f"{name} would be taken for a module of Python or vllmrt", hint="put your name before it")
    taken = [entry for entry in discovery.entry_points() if (entry.group, entry.name) == (kind.group, name)]
    if taken:
        raise ConfigError(
            f"{name} is the name of a plugin of {taken[0].owner}, which is installed", hint="choose another"
        )


def render(name: str, kind: Kind, version: str) -> dict[str, str]:
    """Return the content of every file by its path."""
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "VARIABLE": module.upper(),
        "kind": str(kind),
        "group": kind.group,
        "requires": requirement(version),
    }
    base = files(__package__) / "templates"
    paths = {
        "pyproject.toml": base / "pyproject.toml.in",
        "README.md": base / "README.md.in",
        ".gitignore": base / "gitignore.in",
        ".github/workflows/ci.yml": base / "ci.yml.in",
        f"src/{module}/__init__.py": base / kind / "module.py.in",
        f"tests/test_{module}.py": base / kind / "test.py.in",
    }
    return {path: _filled(template, words) for path, template in paths.items()} | {f"src/{module}/py.typed": ""}


def requirement(version: str) -> str:
    """Return what a plugin says that it needs: this minor version or a later one of the same major version."""
    major, minor = version.split(".")[:2]
    return f"vllmrt>={major}.{minor},<{int(major) + 1}"


def _filled(template: Traversable, words: Mapping[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: words[match[1]], template.read_text(encoding="utf-8"))


def _umask() -> int:
    """Return the umask, which can only be read by being set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
