"""Asks the probes in the user's order until one answers. Reference: chapter "GPU health check", the cascade."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt import discovery
from vllmrt.errors import VllmrtError
from vllmrt.gpu import driver
from vllmrt.settings import Settings
from vllmrt.types import GpuStatus, Skip

if TYPE_CHECKING:
    from vllmrt.discovery import EntryPoint
    from vllmrt.host import PluginHost

_MOST = 1 << 60
_OURS = Settings().gpu_probes


class Found(NamedTuple):
    """What the probes said.

    Attributes:
        probe: the name of the one that answered; None where none did.
        gpus: its answer.
        skips: those before it, and why they did not answer.
    """

    probe: str | None
    gpus: tuple[GpuStatus, ...] = ()
    skips: tuple[tuple[str, Skip], ...] = ()


class _Answer(msgspec.Struct, omit_defaults=True):
    """What a child writes: one of the two."""

    gpus: tuple[GpuStatus, ...] | None = None
    skip: Skip | None = None


def require(settings: Settings, host: PluginHost) -> None:
    """Refuse names of probes that cannot be used.

    Raises:
        ConfigError: no plugin has the name of a probe, and it is not one of those that vllmrt asks by itself.
        PluginError: two distributions claim the name of a probe.
    """
    unknown = [name for name in settings.gpu_probes if not host.select(discovery.GPU_PROBES, name)]
    host.require(discovery.GPU_PROBES, [name for name in unknown if name not in _OURS])


def ask(settings: Settings, host: PluginHost, devices: tuple[str, ...]) -> Found:
    """Ask for these devices, all of them for an empty tuple."""
    skips: list[tuple[str, Skip]] = []
    for name in settings.gpu_probes:
        answer = _probe(host, name, devices, settings.gpu_probe_timeout)
        if not isinstance(answer, Skip):
            return Found(name, answer, tuple(skips))
        skips.append((name, answer))
    return Found(None, (), tuple(skips))


def all_of(settings: Settings, host: PluginHost, found: Found) -> tuple[GpuStatus, ...] | None:
    """Ask the probe that answered for all devices; None where it does not answer that."""
    answer = _probe(host, str(found.probe), (), settings.gpu_probe_timeout)
    return None if isinstance(answer, Skip) else answer


def _probe(host: PluginHost, name: str, devices: tuple[str, ...], seconds: float) -> tuple[GpuStatus, ...] | Skip:
    entry = host.select(discovery.GPU_PROBES, name)
    if entry is None:
        return Skip("it is not installed", hint=f"pip install vllmrt-gpu-{name}")
    if absent := driver.absence(name):
        return absent
    from vllmrt.gpu import child

    line = child.run(lambda: _answer(host, entry, devices), seconds)
    if isinstance(line, Skip):
        return Skip(f"{entry.owner}: {line.reason}", hint=line.hint)
    return _decoded(line, entry)


def _answer(host: PluginHost, entry: EntryPoint, devices: tuple[str, ...]) -> bytes:
    """Run in the child: load the probe, ask it, and put its answer into bytes."""
    try:
        read = host.read_gpus(entry, devices)
        answer = _Answer(skip=read) if isinstance(read, Skip) else _Answer(gpus=read)
        return msgspec.json.encode(answer)
    except VllmrtError as error:
        return msgspec.json.encode(_Answer(skip=Skip(error.message, hint=error.hint)))
    except Exception as error:  # noqa: BLE001 - the values of a plugin may do anything when they are looked at
        skip = Skip(f"{entry.owner}: read gave what cannot be passed on: {type(error).__name__}")
        return msgspec.json.encode(_Answer(skip=skip))


def _decoded(line: bytes, entry: EntryPoint) -> tuple[GpuStatus, ...] | Skip:
    """Check every value down to its fields: a dataclass does not."""
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Skip(f"{entry.owner}: read gave something else than GPUs: {error}")
    if answer.gpus is None:
        return answer.skip or Skip(f"{entry.owner}: read gave no answer")
    absurd = next(filter(_is_absurd, answer.gpus), None)
    return Skip(f"{entry.owner}: read gave numbers that no GPU has: {absurd!r:.200}") if absurd else answer.gpus


def _is_absurd(gpu: GpuStatus) -> bool:
    held = [number or 0 for process in gpu.processes for number in (process.pid, process.memory)]
    numbers = [gpu.index, gpu.memory_total, gpu.memory_free, gpu.utilization_pct or 0, *held]
    largest = max(*numbers, abs(gpu.temperature_c or 0))
    return min(numbers) < 0 or largest > _MOST or gpu.memory_free > gpu.memory_total
