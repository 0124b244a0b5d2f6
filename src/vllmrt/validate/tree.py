"""Walks a model directory once and finds every file that lies inside.

A symbolic link may point anywhere below the model's directory or below the candidate's root (a cache's blobs, a package
store), and nowhere else: what vLLM would load from elsewhere was not part of what is validated here.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.validate.reading import File, error, printable, unreadable

if TYPE_CHECKING:
    from vllmrt.types import Finding, ModelTree
    from vllmrt.validate.weights import Indexes

ENTRIES_LIMIT = 100_000
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_DANGLING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Survey:
    """What a model directory holds.

    Attributes:
        files: every regular file that lies inside, by name; links are followed.
        refused: names of what is there and may not be opened; each has a finding.
        findings: what containment has to say.
    """

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.refused: set[str] = set()
        self.findings: list[Finding] = []

    @cached_property
    def indexes(self) -> Indexes:
        """The weight indexes at the root, parsed once for the validators that need them."""
        from vllmrt.validate.weights import read_indexes

        return read_indexes(self)

    def root_files(self) -> list[File]:
        """The files directly in the model's directory."""
        return [file for name, file in self.files.items() if "/" not in name]

    def has(self, name: str) -> bool:
        """Whether the name is there, be it refused: then there is a finding for it already."""
        return name in self.files or name in self.refused

    def refuse(self, name: str, finding: Finding) -> None:
        """Note that `name` may not be opened, and why."""
        self.refused.add(name)
        self.findings.append(finding)


class _Directory(NamedTuple):
    prefix: str
    real: str
    chain: tuple[str, ...]


def survey(tree: ModelTree) -> Survey:
    """Walk `tree`; whatever it holds, nothing is raised, opened or modified."""
    base = os.path.realpath(tree.path)
    root = tree.candidate.root
    allowed = (base, os.path.realpath(root)) if root else (base,)
    return _Walk(base, tuple(_below(path) for path in allowed)).run()


def _below(path: str) -> str:
    return f"{path.rstrip('/')}/"


class _Walk:
    def __init__(self, base: str, allowed: tuple[str, ...]) -> None:
        self.result = Survey()
        self.allowed = allowed
        self.pending = [_Directory("", base, (base,))]
        self.left = ENTRIES_LIMIT

    def run(self) -> Survey:
        for directory in self.pending:  # grows while it is walked
            self.directory(directory)
            if self.left < 0:
                message = f"holds more than {ENTRIES_LIMIT:,} files, which no model does"
                self.result.findings.append(error("tree-too-large", None, message))
                break
        return self.result

    def directory(self, directory: _Directory) -> None:
        try:
            with os.scandir(directory.real) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as failure:
            name = directory.prefix.rstrip("/")
            self.result.refuse(name, unreadable(name or None, failure))
            return
        for entry in ordered:
            self.left -= 1
            if self.left < 0:
                return
            name = directory.prefix + entry.name
            try:
                self.entry(name, entry, directory.chain)
            except OSError as failure:
                self.result.refuse(name, unreadable(name, failure))

    def entry(self, name: str, entry: os.DirEntry[str], chain: tuple[str, ...]) -> None:
        real: str | None = entry.path
        if entry.is_symlink():
            real = self.target(name, entry.path)
        elif entry.name == "__pycache__" and entry.is_dir(follow_symlinks=False):
            return
        if real is None:
            return
        status = os.lstat(real)
        if stat.S_ISREG(status.st_mode):
            self.result.files[name] = File(name, real, status.st_size)
        elif not stat.S_ISDIR(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
            self.result.refuse(name, error("special-file", name, f"is {kind}"))
        elif real not in chain:  # a link to its own parent adds nothing
            self.pending.append(_Directory(f"{name}/", real, (*chain, real)))

    def target(self, name: str, link: str) -> str | None:
        """Where a link leads, None when it may not be followed."""
        try:
            real = os.path.realpath(link, strict=True)
        except OSError as failure:
            if failure.errno not in _DANGLING:
                raise
            message = f"is a dangling symbolic link to {printable(str(Path(link).readlink()))}"
            self.result.refuse(name, error("link-dangling", name, message))
            return None
        if _below(real).startswith(self.allowed):
            return real
        self.result.refuse(name, error("link-escapes", name, f"is a symbolic link out of the model: {printable(real)}"))
        return None
