"""Every safetensors file is whole, by its header: no tensor is read.

The rules are those of the format (https://github.com/huggingface/safetensors#format): eight bytes with the length of
the header, little-endian; the header, JSON; then the tensors, without holes, to the end of the file. A file that was
cut in its tensors has a perfect header, so the length of the file is what tells.
"""

from __future__ import annotations

from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import msgspec

from vllmrt.validate.reading import Fault, empty, error, opened, printable, read_range, warning
from vllmrt.validate.weights import SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.reading import File
    from vllmrt.validate.tree import Survey

HEADER_LIMIT = 100_000_000
_PREFIX = 8
_LFS_POINTER = b"version https://git-lfs"
_FIRST_READ = _PREFIX + (64 << 10)
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

_Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Tensor(msgspec.Struct, gc=False):
    """One entry of a header; offsets are bytes from the end of the header, the second exclusive."""

    dtype: str
    shape: Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Natural, _Natural]


_decode_header = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tensor = msgspec.json.Decoder(Tensor).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str] | None).decode


def check(survey: Survey, _: Settings) -> Iterator[Finding]:
    """Yield what is wrong with each file, and where index and headers disagree."""
    headers: dict[str, set[str]] = {}
    for file in _files(survey):
        try:
            headers[file.name] = set(read_header(file))
        except Fault as fault:
            yield fault.finding
    for index in survey.indexes.usable:
        for name, listed in index.shards.items():
            if name in headers:
                yield from _disagreements(index.file, name, listed, headers[name])


def _files(survey: Survey) -> list[File]:
    names = {file.name: file for file in survey.root_files()}
    for index in survey.indexes.usable:
        names.update((name, survey.files[name]) for name in index.shards if name in survey.files)
    return [file for name, file in names.items() if name.endswith(SAFETENSORS)]


def _disagreements(index: str, shard: str, listed: set[str], present: set[str]) -> Iterator[Finding]:
    if missing := listed - present:
        yield error("tensor-missing", shard, f"lacks {_some(missing)}, which {index} places here")
    if unlisted := present - listed:
        yield warning("tensor-unlisted", shard, f"holds {_some(unlisted)}, which {index} does not place here")


def _some(tensors: set[str]) -> str:
    first = printable(min(tensors)[:200])
    return first if len(tensors) == 1 else f"{first} and {len(tensors) - 1:,} more tensors"


def read_header(file: File) -> Mapping[str, Tensor]:
    """Return the tensors of a file that is exactly as long as its header says.

    Raises:
        Fault: ``empty-file``, ``unreadable``, ``git-lfs-pointer``, ``header-too-large``, ``header-invalid``,
            ``tensor-invalid``, ``safetensors-truncated`` or ``safetensors-overlong``.
    """
    with opened(file) as (descriptor, size):
        if size == 0:
            raise Fault(empty(file))
        start = read_range(descriptor, 0, min(size, _FIRST_READ))
        end = _PREFIX + int.from_bytes(start[:_PREFIX], "little")
        if start.startswith(_LFS_POINTER):
            raise Fault(error("git-lfs-pointer", file.name, "is a pointer of Git LFS; run git lfs pull"))
        _require_header_inside(file, size, end)
        start += read_range(descriptor, len(start), end)
    tensors = _parse(file, start[_PREFIX:end])
    _require_length(file, size, end + _span(file, tensors))
    return tensors


def _require_header_inside(file: File, size: int, end: int) -> None:
    if size < _PREFIX:
        raise Fault(error("safetensors-truncated", file.name, f"is {size} bytes long, too short for any header"))
    if end - _PREFIX > HEADER_LIMIT:
        message = f"claims a header of {end - _PREFIX:,} bytes; the format allows {HEADER_LIMIT:,}"
        raise Fault(error("header-too-large", file.name, message))
    if end > size:
        raise Fault(error("safetensors-truncated", file.name, f"ends at byte {size:,}, its header at {end:,}"))


def _parse(file: File, header: bytes) -> dict[str, Tensor]:
    name = None
    try:
        raw = _decode_header(header)
        _decode_metadata(raw.pop("__metadata__", b"{}"))
        tensors = {}
        for name, value in raw.items():
            tensors[name] = _decode_tensor(value)
    except (ValueError, RecursionError) as failure:
        where = "" if name is None else f'tensor "{printable(name[:200])}": '
        raise Fault(error("header-invalid", file.name, f"header: {where}{printable(str(failure))}")) from None
    return tensors


def _span(file: File, tensors: Mapping[str, Tensor]) -> int:
    """Return where the last tensor ends, having checked that they lie one behind the other."""
    end = 0
    for tensor in sorted(tensors.values(), key=attrgetter("data_offsets")):
        start, stop = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        if start != end or stop < start or (bits and prod(tensor.shape) * bits != (stop - start) * 8):
            raise Fault(error("tensor-invalid", file.name, _fault_of(tensors, tensor, end)))
        end = stop
    return end


def _fault_of(tensors: Mapping[str, Tensor], tensor: Tensor, end: int) -> str:
    name = next(printable(name[:200]) for name, value in tensors.items() if value is tensor)
    start, stop = tensor.data_offsets
    if start != end:
        return f'tensor "{name}" starts at {start:,}, where the one before ends at {end:,}'
    if stop < start:
        return f'tensor "{name}" ends at {stop:,}, before it starts at {start:,}'
    return f'tensor "{name}", {tensor.dtype}{list(tensor.shape)}, cannot be {stop - start:,} bytes long'


def _require_length(file: File, size: int, expected: int) -> None:
    if size < expected:
        raise Fault(error("safetensors-truncated", file.name, f"is cut short: {size:,} of {expected:,} bytes"))
    if size > expected:
        message = f"is {size:,} bytes long, {size - expected:,} more than its header says"
        raise Fault(error("safetensors-overlong", file.name, message))
