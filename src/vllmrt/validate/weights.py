"""Which files are weights, which of them vLLM loads, and what the indexes say.

vLLM takes the first kind of `PREFERENCE` that has a file in the directory itself, and of safetensors with an index
exactly the files in its ``weight_map``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.validate.reading import Fault, File, error, printable, read

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllmrt.types import Finding
    from vllmrt.validate.tree import Survey

INDEX = ".index.json"
SAFETENSORS = ".safetensors"
PREFERENCE = ("consolidated", "safetensors", "bin", "pt", "pth", "gguf")
PICKLES = ("bin", "pt", "pth")
# vLLM's own list, and the random state that a Trainer leaves beside them.
_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_RANDOM_STATE = "rng_state"
_VARIANT = re.compile(r"(?P<base>[^./]+)\.[A-Za-z0-9_]+(?P<shard>-\d{5}-of-\d{5})?(?P<suffix>\.(?:safetensors|bin))")


class _WeightMap(msgspec.Struct):
    weight_map: dict[str, str]


_decode_index = msgspec.json.Decoder(_WeightMap).decode


class Index(NamedTuple):
    """One index file.

    Attributes:
        file: its name.
        shards: the tensors that it places in each file; only names of weights that stay inside.
    """

    file: str
    shards: dict[str, set[str]]

    @property
    def kind(self) -> str | None:
        """The kind of weights that it lists."""
        return kind(self.file.removesuffix(INDEX))


class Indexes(NamedTuple):
    """The indexes of a model.

    Attributes:
        names: every index file that is there.
        usable: those that could be parsed.
        findings: what is wrong with them in themselves.
    """

    names: tuple[str, ...]
    usable: tuple[Index, ...]
    findings: tuple[Finding, ...]


def kind(name: str) -> str | None:
    """Return the kind of weights in a file of that name, None for what is no weights."""
    if name.endswith(_OF_TRAINING) or name.startswith((".", _RANDOM_STATE)):
        return None
    stem, _, suffix = name.rpartition(".")
    if suffix == "safetensors" and stem.startswith("consolidated"):
        return "consolidated"
    return suffix if stem and suffix in PREFERENCE[1:] else None


def is_variant(name: str, names: Collection[str]) -> bool:
    """Return whether a file is a variant (``model.fp16.safetensors``) of another one, in another precision."""
    match = _VARIANT.fullmatch(name)
    if match is None:
        return False
    # a precision that takes more room may be cut where the other one is not
    return any(f"{match['base']}{shard}{match['suffix']}" in names for shard in (match["shard"] or "", ""))


def by_kind(survey: Survey) -> dict[str, list[File]]:
    """Return the weights in the directory itself, in the order of vLLM's preference: the first kind is loaded."""
    found: dict[str, list[File]] = {}
    for file in survey.root_files():
        if (sort := kind(file.name)) is not None:
            found.setdefault(sort, []).append(file)
    return {sort: found[sort] for sort in PREFERENCE if sort in found}


def read_indexes(survey: Survey) -> Indexes:
    """Parse every ``*.index.json`` in the directory itself."""
    files = [file for file in survey.root_files() if file.name.endswith(INDEX)]
    usable: list[Index] = []
    findings: list[Finding] = []
    for file in files:
        try:
            weight_map = _weight_map(file)
        except Fault as fault:
            findings.append(fault.finding)
            continue
        shards = _by_shard(weight_map)
        faulty = {name: finding for name in shards if (finding := _fault_of(file.name, name))}
        usable.append(Index(file.name, {name: shards[name] for name in shards if name not in faulty}))
        findings.extend(faulty.values())
    return Indexes(tuple(file.name for file in files), tuple(usable), tuple(findings))


def _weight_map(file: File) -> dict[str, str]:
    try:
        weight_map = _decode_index(read(file)).weight_map
    except msgspec.ValidationError as failure:
        raise Fault(error("weight-map-invalid", file.name, f"has no usable weight_map: {failure}")) from None
    except (ValueError, RecursionError) as failure:
        message = f"is not JSON: {printable(str(failure))}"
        raise Fault(error("index-invalid", file.name, message)) from None
    if not weight_map:
        raise Fault(error("weight-map-invalid", file.name, "has an empty weight_map"))
    return weight_map


def _by_shard(weight_map: dict[str, str]) -> dict[str, set[str]]:
    shards: defaultdict[str, set[str]] = defaultdict(set)
    for tensor, shard in weight_map.items():
        shards[shard].add(tensor)
    return dict(shards)


def _stays_inside(name: str) -> bool:
    if "\\" in name or "\0" in name:
        return False
    return not {"", ".", ".."}.intersection(name.split("/"))


def _fault_of(index: str, name: str) -> Finding | None:
    shown = printable(name[:200])
    if not _stays_inside(name):
        return error("weight-map-escapes", index, f'weight_map names "{shown}", which is no path inside the model')
    if kind(name) is None:
        return error("weight-map-invalid", index, f'weight_map names "{shown}", which is no file of weights')
    return None
