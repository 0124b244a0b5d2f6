"""What every scenario is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench import models
from bench.models import BUCKET, PREFIX

if TYPE_CHECKING:
    from pathlib import Path


class Setting(NamedTuple):
    """Where and how much.

    Attributes:
        scratch: a directory of this run, on a disk; the models that are served lie in it.
        out: where models are fetched to, in memory if possible: it is the tools that are compared, not the disk.
        runs: how often each contender runs.
        size: bytes of the large model.
        small: files of the small one.
        huge: bytes of the sparse model.
        shards: of the model that is warm.
    """

    scratch: Path
    out: Path
    runs: int
    size: int
    small: int
    huge: int
    shards: int

    def model(self, name: str, shards: int, size: int, *, sparse: bool = False) -> tuple[Path, int]:
        """Return a model that is served, made when it is first asked for, and its size."""
        path = self.scratch / "data" / BUCKET / PREFIX / name
        return path, models.make(path, shards, size, sparse=sparse)

    def large(self) -> tuple[Path, int]:
        """Return the large model: four shards."""
        return self.model("large", 4, self.size // 4)
