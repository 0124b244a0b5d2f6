"""NVIDIA GPUs by the ``nvidia-smi`` command, where NVML cannot be used directly.

Reference: chapter "GPU health check", row nvidia-smi. Fields: ``nvidia-smi --help-query-gpu``.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import vllmrt
from vllmrt.gpu.devices import is_named
from vllmrt.gpu.throttle import words
from vllmrt.types import GpuProcess, GpuStatus, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllmrt.settings import Settings
    from vllmrt.types import GpuProbe

_REASONS = "clocks_event_reasons.active"
# The name comes last: it is the only one that could have a comma.
_FIELDS = (
    "index",
    "uuid",
    "memory.total",
    "memory.free",
    "temperature.gpu",
    "utilization.gpu",
    "pstate",
    _REASONS,
    "mig.mode.current",
    "name",
)
_OLDER = {_REASONS: "clocks_throttle_reasons.active"}
_NEEDED = frozenset({"index", "uuid", "memory.total", "memory.free", "name"})
_APPS = ("gpu_uuid", "pid", "used_memory", "process_name")
_NO_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')
_ROW = re.compile(r"\s*[0-9]+\s*,")  # whatever else there is, is a warning
_BAD_INFOROM = 14
_NO_DEVICES = "No devices were found"
_UNTOLD = re.compile(r"\[?(n/a|not supported|not found|unknown error|insufficient permissions|)\]?|err!")
_FAULT = re.compile(r"\[(gpu is lost|gpu requires reset)\]")
_LARGEST = 1 << 20
_MIB = 1 << 20


class _Refusal(Exception):
    """The output cannot be used; the text says why."""


class _Said(NamedTuple):
    code: int
    text: str


class NvidiaSmiProbe:
    """Asks ``nvidia-smi`` on PATH.

    Args:
        enough: bytes; where a GPU has less than that free, its processes are asked for too.
    """

    name = "nvidia-smi"

    def __init__(self, enough: float) -> None:
        self._enough = enough

    def read(self, devices: tuple[str, ...]) -> tuple[GpuStatus, ...] | Skip:
        """Return the GPUs of its table. It has no row for a MIG instance."""
        try:
            gpus = _table()
        except FileNotFoundError:
            return Skip("it is not on PATH")
        except (OSError, _Refusal) as error:
            return Skip(str(error))
        named = [gpu for gpu in gpus if not devices or any(is_named(gpu.status, name) for name in devices)]
        divided = [gpu.status.uuid for gpu in named if gpu.divided]
        if divided or any(name.startswith("MIG-") for name in devices):
            return Skip("its table has no MIG instances", hint="pip install vllmrt-gpu-nvml, which reads them")
        return tuple(self._with_processes([gpu.status for gpu in named]))

    def _with_processes(self, gpus: list[GpuStatus]) -> list[GpuStatus]:
        from dataclasses import replace

        if all(gpu.memory_free >= self._enough for gpu in gpus if gpu.memory_total):
            return gpus
        holders = list(_holders())
        return [replace(gpu, processes=tuple(one for uuid, one in holders if uuid == gpu.uuid)) for gpu in gpus]


class _Row(NamedTuple):
    status: GpuStatus
    divided: bool


def _table() -> list[_Row]:
    """Ask for the fields, and without those that an old driver does not know."""
    fields = list(_FIELDS)
    for _ in range(len(_FIELDS)):
        said = _run(f"--query-gpu={','.join(fields)}")
        unknown = _NO_FIELD.search(said.text)
        if unknown is None:
            break
        fields = _without(unknown[1], fields)
    if _NO_DEVICES in said.text:
        return []
    if said.code not in {0, _BAD_INFOROM}:
        raise _Refusal(f"it ended with {said.code}: {_first_line(said.text)}")
    rows = [_row(line, fields) for line in said.text.splitlines() if _ROW.match(line)]
    if not rows:
        raise _Refusal(f"it said {_first_line(said.text)}, which is no table")
    return rows


def _without(name: str, fields: list[str]) -> list[str]:
    if name in _NEEDED or name not in fields:
        raise _Refusal(f"it does not know the field {name[:80]!a}")
    older = _OLDER.get(name)
    return [older if field == name and older else field for field in fields if field != name or older]


def _row(line: str, fields: Sequence[str]) -> _Row:
    values = [value.strip() for value in line.split(",", len(fields) - 1)]
    if len(values) != len(fields):
        raise _Refusal(f"it said {line[:80]!a}, which are not {len(fields)} fields")
    fault = next(filter(None, map(_fault, values)), None)
    told = {field: None if fault else _told(value) for field, value in zip(fields, values, strict=True)}
    index, uuid = _number(values[0]), values[1]
    if index is None or not uuid:
        raise _Refusal(f"it said {line[:80]!a}, which names no GPU")
    reasons = told.get(_REASONS) or told.get(_OLDER[_REASONS])
    total, free = _memory(told)
    return _Row(
        GpuStatus(
            index,
            uuid=uuid,
            name=told["name"] or "unnamed",
            memory_total=total,
            memory_free=free,
            temperature_c=_number(told.get("temperature.gpu")),
            utilization_pct=_number(told.get("utilization.gpu")),
            pstate=told.get("pstate"),
            throttle_reasons=words(_number(reasons, base=16) or 0),
            fault=fault,
        ),
        divided=told.get("mig.mode.current") == "Enabled",
    )


def _memory(told: Mapping[str, str | None]) -> tuple[int, int]:
    """Return the bytes that there are and that are free; 0 of both where one of them is not told."""
    total, free = (_number(told[f"memory.{which}"]) for which in ("total", "free"))
    return (0, 0) if total is None or free is None else (total * _MIB, free * _MIB)


def _holders() -> Iterator[tuple[str, GpuProcess]]:
    """Yield the processes of all GPUs; what cannot be read of them is left out, since they only explain."""
    try:
        said = _run(f"--query-compute-apps={','.join(_APPS)}")
    except (OSError, _Refusal):
        return
    for line in said.text.splitlines():
        values = [value.strip() for value in line.split(",", len(_APPS) - 1)]
        if said.code == 0 and len(values) == len(_APPS) and values[1].isascii() and values[1].isdecimal():
            memory = values[2] if values[2].isascii() and values[2].isdecimal() else None
            size = None if memory is None else int(memory) * _MIB
            yield values[0], GpuProcess(int(values[1]), memory=size, name=_told(values[3]))


def _fault(value: str) -> str | None:
    found = _FAULT.fullmatch(value.lower())
    return found[1] if found else None


def _told(value: str) -> str | None:
    return None if _UNTOLD.fullmatch(value.lower()) else value


def _number(value: str | None, base: int = 10) -> int | None:
    if value is None:
        return None
    try:
        number = int(value, base)
    except ValueError:
        raise _Refusal(f"it said {value[:80]!a} where a number belongs") from None
    if not value.isascii() or number < 0:
        raise _Refusal(f"it said {value[:80]!a} where a number belongs")
    return number


def _run(query: str) -> _Said:
    """Run it and return what it says, on either stream: its complaints are on both.

    How long it takes is not limited here; the process that this runs in is.
    """
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        said = process.stdout.read(_LARGEST + 1)
        if len(said) > _LARGEST:
            process.kill()
            raise _Refusal(f"it said more than {_LARGEST >> 20} MiB")
    return _Said(process.returncode, said.decode(errors="replace"))


def _first_line(text: str) -> str:
    return next((ascii(line.strip())[1:-1][:200] for line in text.splitlines() if line.strip()), "nothing")


@vllmrt.hookimpl
def vllmrt_gpu_probes(settings: Settings) -> Iterator[GpuProbe]:
    """Offer the one probe of this plugin."""
    yield NvidiaSmiProbe(settings.min_free_gpu_gb * (1 << 30))
