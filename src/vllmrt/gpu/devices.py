"""Which GPUs are meant: names of devices, as CUDA and its users write them. Pure functions.

An index, a UUID (``GPU-…``, ``MIG-…``) or as much of its beginning as is unique: CUDA C++ Programming Guide, "CUDA
Environment Variables", and the MIG User Guide, "CUDA Visible Devices".
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllmrt.types import GpuStatus

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_NAME = re.compile(r"[0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]+")


class Visible(NamedTuple):
    """What ``CUDA_VISIBLE_DEVICES`` leaves.

    Attributes:
        names: of the devices; None where all are left.
        warnings: what its author may not have meant, a line each.
    """

    names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


class Chosen(NamedTuple):
    """The devices that a list of names means.

    Attributes:
        gpus: in the order of the names, each once.
        missing: names of which there is no device.
        unclear: beginnings of UUIDs that several devices share.
    """

    gpus: tuple[GpuStatus, ...]
    missing: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


def of_cuda(value: str | None) -> Visible:
    """Read ``CUDA_VISIBLE_DEVICES`` as CUDA does.

    The list ends before the first thing in it that is no device, so that an empty value, ``-1`` or ``NoDevFiles`` hides
    every GPU. PyTorch also ends it where it goes over from indices to UUIDs (``torch.cuda._parse_visible_devices``).

    Raises:
        ConfigError: a device is named twice; CUDA would then see none at all.
    """
    if value is None:
        return Visible(None)
    words = [word.strip() for word in value.split(",")]
    kind = _kind(words[0])
    names = tuple(takewhile(lambda word: kind and _kind(word) == kind, words))
    devices = [int(name) if name.isdecimal() else name for name in names]
    if len(set(devices)) < len(devices):
        raise ConfigError(
            f"{_VARIABLE}={value[:80]!a} names a GPU twice: CUDA then sees none at all", hint="name each GPU once"
        )
    if not names:
        return Visible((), (f"{_VARIABLE}={value[:80]!a} hides every GPU from the engine, so none was checked",))
    rest = words[len(names) :]
    cut = (f"{_VARIABLE}={value[:80]!a}: the engine sees nothing from {rest[0][:80]!a} on",) if rest else ()
    return Visible(names, cut)


def is_named(gpu: GpuStatus, name: str) -> bool:
    """Tell whether `name` is the device's index, or its UUID or the beginning of it."""
    if name.isdecimal():
        return gpu.index == int(name)
    return any(text.startswith(name) for text in (gpu.uuid, *gpu.aliases))


def select(gpus: Sequence[GpuStatus], names: Iterable[str] | None) -> Chosen:
    """Return the devices that are meant; that of a divided GPU means all its MIG instances, and None all devices."""
    if names is None:
        return Chosen(tuple(gpus))
    chosen: list[GpuStatus] = []
    missing, unclear = [], []
    for name in dict.fromkeys(names):
        found = [gpu for gpu in gpus if is_named(gpu, name)]
        if not found:
            missing.append(name)
        elif _is_unclear(name, found):
            unclear.append(name)
        chosen += [gpu for gpu in found if gpu not in chosen]
    return Chosen(tuple(chosen), tuple(missing), tuple(unclear))


def count(gpus: Sequence[GpuStatus]) -> int:
    """Return as how many devices a CUDA process sees these: of MIG instances it can use one (MIG User Guide)."""
    whole = [gpu for gpu in gpus if not gpu.uuid.startswith("MIG-")]
    return len(whole) or min(1, len(gpus))


def _is_unclear(name: str, found: Sequence[GpuStatus]) -> bool:
    gpus = len({gpu.index for gpu in found})
    return len(found) > 1 if name.startswith("MIG-") else gpus > 1 and not name.isdecimal()


def _kind(word: str) -> str | None:
    """Return ``GPU``, ``MIG`` or ``index``; None where the word is no device."""
    found = _NAME.fullmatch(word)
    return None if found is None else found[1] or "index"
