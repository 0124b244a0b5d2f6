"""Which files of a listing to fetch: what vLLM loads, and everything small beside it (DESIGN.md §8).

A repository often holds its weights two or three times: for another framework, in half precision, as the authors first
published them. vLLM loads one set (`vllmrt.validate.weights`); the others are left out, and the plan says how much that
saved.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.validate.weights import INDEX, PREFERENCE, is_variant, kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from vllmrt.types import RemoteFile

SAFETENSORS_INDEX = "model.safetensors.index.json"
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".mlmodel")
_CACHE = "__pycache__/"
_OTHER_LAYOUTS = ("original/", "metal/", "onnx/", "openvino/", "coreml/")
_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


class Selection(NamedTuple):
    """What to fetch of a listing, and what not."""

    wanted: tuple[RemoteFile, ...]
    left_out: tuple[RemoteFile, ...]


def select(
    files: Sequence[RemoteFile],
    *,
    weight_map: Collection[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Selection:
    """Divide a listing into what vLLM loads and the rest.

    Args:
        files: the listing.
        weight_map: the shards that ``model.safetensors.index.json`` names, None where the listing has no such file.
        include: patterns (``fnmatch``, on the whole path) that replace the choice made here.
        exclude: patterns of files that are left out of whatever was chosen.
    """
    chosen = _matching(files, include) if include else _loaded(files, weight_map)
    dropped = _matching(files, exclude)
    wanted = tuple(file for file in files if file.path in chosen and file.path not in dropped)
    kept = {file.path for file in wanted}
    return Selection(wanted, tuple(file for file in files if file.path not in kept))


def _matching(files: Iterable[RemoteFile], patterns: Sequence[str]) -> set[str]:
    return {file.path for file in files if any(fnmatchcase(file.path, pattern) for pattern in patterns)}


def _loaded(files: Sequence[RemoteFile], weight_map: Collection[str] | None) -> set[str]:
    names = {file.path for file in files}
    of_root: dict[str, set[str]] = {}
    for name in names:
        if "/" not in name and (sort := kind(name)):
            of_root.setdefault(sort, set()).add(name)
    first = next((sort for sort in PREFERENCE if sort in of_root), None)
    weights = _of_kind(first, of_root, weight_map) if first else set()
    return weights | {name for name in names if not _is_weight(name, of_root) and _goes_with(name, first)}


def _of_kind(sort: str, of_root: dict[str, set[str]], weight_map: Collection[str] | None) -> set[str]:
    if sort == "safetensors" and weight_map is not None:
        return set(weight_map)
    names = of_root[sort]
    return {name for name in names if not is_variant(name, names)} if sort != "gguf" else names


def _is_weight(name: str, of_root: dict[str, set[str]]) -> bool:
    return any(name in found for found in of_root.values())


def _goes_with(name: str, loaded: str | None) -> bool:
    """Tell whether a file that is no weight of the root belongs to what is loaded."""
    if _CACHE in name:
        return False
    if name.startswith(_OTHER_LAYOUTS) or name.endswith(_OTHER_FRAMEWORKS) or name in _OF_TRAINING:
        return loaded is None
    if name.endswith(INDEX):
        return kind(name.removesuffix(INDEX)) == loaded
    nested = kind(name)
    return nested in {None, loaded} or (nested == "safetensors" and loaded == "consolidated")
