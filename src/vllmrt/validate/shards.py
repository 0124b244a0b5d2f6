"""All weights are there: the third check of the reference; and pickles among them are named."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.validate.reading import empty, error, warning
from vllmrt.validate.weights import INDEX, PICKLES, PREFERENCE, Index, by_kind, kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.reading import File
    from vllmrt.validate.tree import Survey

_NAMED = 3
_NUMBERED = re.compile(r"(?P<prefix>.*)-(?P<number>[0-9]{5,6})-of-(?P<total>[0-9]{5,6})(?P<suffix>\.[a-z]+)", re.DOTALL)


def check(survey: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield what is missing of the weights, and pickles among those that would be loaded."""
    weights = by_kind(survey)
    loaded = next(iter(weights), None)
    indexes = survey.indexes
    yield from indexes.findings
    for index in indexes.usable:
        yield from _missing_of_index(survey, index, loaded)
    for sort in _without_index(survey, loaded):
        yield from _missing_of_series(survey, sort)
    yield from _empty(survey, weights)
    yield from missing((*survey.files, *survey.refused))
    if loaded in PICKLES:
        yield _pickles(weights[loaded], refuse=settings.safe_weights_only)


def missing(names: Iterable[str]) -> Iterator[Finding]:
    """Yield ``weights-missing`` unless one of the files in the directory itself is weights, or an index of some."""
    if not any("/" not in name and (kind(name) or name.endswith(INDEX)) for name in names):
        yield error("weights-missing", None, "no weights: no .safetensors, .bin, .pt, .pth or .gguf file")


def _missing_of_index(survey: Survey, index: Index, loaded: str | None) -> Iterator[Finding]:
    missing = [name for name in index.shards if not survey.has(name)]
    if missing and len(missing) == len(index.shards) and _comes_after(index.kind, loaded):
        message = f"lists weights that are not here; vLLM loads the .{_suffix(loaded)} files instead"
        yield warning("index-unused", index.file, message)
        return
    for name in missing:
        yield error("shard-missing", name, f"is listed in {index.file}, but is missing")


def _comes_after(sort: str | None, loaded: str | None) -> bool:
    """Whether vLLM does not look for `sort`, having found weights that it prefers."""
    return sort is not None and loaded is not None and PREFERENCE.index(sort) > PREFERENCE.index(loaded)


def _suffix(sort: str | None) -> str | None:
    return "safetensors" if sort == "consolidated" else sort


def _without_index(survey: Survey, loaded: str | None) -> set[str | None]:
    """The kinds whose shards are known by their numbers alone; beside an index only the kind that is loaded."""
    names = survey.indexes.names
    considered: set[str | None] = {loaded} if names else set(PREFERENCE)
    return considered.difference(kind(name.removesuffix(INDEX)) for name in names)


class _Series(NamedTuple):
    prefix: str
    digits: int
    total: str
    suffix: str

    def name(self, number: int) -> str:
        return f"{self.prefix}-{number:0{self.digits}}-of-{self.total}{self.suffix}"


def _missing_of_series(survey: Survey, sort: str | None) -> Iterator[Finding]:
    series: dict[_Series, set[int]] = {}
    for name in (*survey.files, *survey.refused):
        match = _NUMBERED.fullmatch(name) if "/" not in name and kind(name) == sort else None
        if match:
            key = _Series(match["prefix"], len(match["number"]), match["total"], match["suffix"])
            series.setdefault(key, set()).add(int(match["number"]))
    for key, present in series.items():
        yield from _gaps(key, present)


def _gaps(series: _Series, present: set[int]) -> Iterator[Finding]:
    wanted = range(1, int(series.total) + 1)
    count = len(wanted) - len(present.intersection(wanted))
    if count:
        first = [series.name(number) for number in islice((n for n in wanted if n not in present), _NAMED)]
        more = f" and {count - len(first):,} more" if count > len(first) else ""
        yield error("shard-missing", first[0], f"{count:,} of {len(wanted):,} shards missing: {', '.join(first)}{more}")


def _empty(survey: Survey, weights: Mapping[str, list[File]]) -> Iterator[Finding]:
    """Empty weights that are not safetensors, whose own check sees them."""
    listed = (survey.files.get(name) for index in survey.indexes.usable for name in index.shards)
    files: Iterable[File | None] = (*(file for files in weights.values() for file in files), *listed)
    for file in dict.fromkeys(files):
        if file is not None and file.size == 0 and not file.name.endswith(".safetensors"):
            yield empty(file)


def _pickles(files: list[File], *, refuse: bool) -> Finding:
    which = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1:,} more"
    if refuse:
        message = f"pickle weights, which VLLMRT_SAFE_WEIGHTS_ONLY refuses: {which}"
        return error("pickle-weights", files[0].name, message)
    return warning("pickle-weights", files[0].name, f"pickle weights can run code when they are loaded: {which}")
