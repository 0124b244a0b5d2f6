"""GPU probes, each wrong in one way that one test of the conformance kit is meant for."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import vllmrt
from vllmrt.testing import FakeProbe
from vllmrt.types import GpuStatus, Skip

GIB = 1 << 30


class Broken(FakeProbe):
    """What is right about all of them: three GPUs where there is a driver."""

    meant_for: str | None = None

    def __init__(self, key: str) -> None:
        gpus = [
            GpuStatus(index, uuid=f"GPU-{index}abc", name="Acme", memory_total=80 * GIB, memory_free=79 * GIB)
            for index in range(3)
        ]
        super().__init__([self.tell(gpu) for gpu in gpus], name=type(self).__name__)
        self.key = key

    def tell(self, gpu: GpuStatus) -> GpuStatus:
        return gpu

    def read(self, devices: tuple[str, ...]) -> Any:
        if "ACME_DRIVER" not in os.environ:
            return self.without_driver()
        self.asked.append(devices)
        return tuple(gpu for gpu in self.answer if not devices or any(self.is_named(gpu, name) for name in devices))

    def is_named(self, gpu: GpuStatus, name: str) -> bool:
        return name == str(gpu.index) or gpu.uuid.startswith(name)

    def without_driver(self) -> Any:
        return Skip("no driver")


class FineProbe(Broken):
    pass


class NameOfAnotherProbe(Broken):
    meant_for = "test_it_is_declared_once_and_under_its_own_name"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name = "something-else"


class OneUuid(Broken):
    meant_for = "test_it_tells_every_gpu_once"

    def tell(self, gpu: GpuStatus) -> GpuStatus:
        return replace(gpu, uuid="GPU-same") if gpu.index < 2 else gpu


class Mebibytes(Broken):
    meant_for = "test_its_numbers_are_in_the_units_of_the_contract"

    def tell(self, gpu: GpuStatus) -> GpuStatus:
        return replace(gpu, memory_total=gpu.memory_total >> 20, memory_free=gpu.memory_free >> 20)


class Fahrenheit(Broken):
    meant_for = "test_its_numbers_are_in_the_units_of_the_contract"

    def tell(self, gpu: GpuStatus) -> GpuStatus:
        return replace(gpu, temperature_c=158)


class Shuffles(Broken):
    meant_for = "test_asking_again_gives_the_same_gpus"
    times = 0  # of the process: a new object answers each question

    def read(self, devices: tuple[str, ...]) -> Any:
        answer = super().read(devices)
        Shuffles.times += 1
        return answer if isinstance(answer, Skip) or self.times % 2 else answer[::-1]


class WholeNamesOnly(Broken):
    meant_for = "test_a_gpu_can_be_asked_for_by_index_or_uuid"

    def is_named(self, gpu: GpuStatus, name: str) -> bool:
        return name in {str(gpu.index), gpu.uuid}


class TellsAll(Broken):
    meant_for = "test_a_gpu_can_be_asked_for_by_index_or_uuid"

    def read(self, devices: tuple[str, ...]) -> Any:
        return super().read(devices[:0])


class NoReason(Broken):
    meant_for = "test_without_a_driver_it_skips_with_a_reason"

    def without_driver(self) -> Any:
        return Skip("")


class NoGpus(Broken):
    meant_for = "test_without_a_driver_it_skips_with_a_reason"

    def without_driver(self) -> Any:
        return ()


class Raises(Broken):
    meant_for = "test_without_a_driver_it_skips_with_a_reason"

    def without_driver(self) -> Any:
        raise OSError("libacme.so: cannot open shared object file")


class TellsTheKey(Broken):
    meant_for = "test_no_secret_is_told"

    def read(self, devices: tuple[str, ...]) -> Any:
        answer = super().read(devices)
        return answer if isinstance(answer, Skip) else tuple(replace(gpu, name=self.key) for gpu in answer)


BROKEN = {cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Broken)}
del BROKEN["Broken"]


@vllmrt.hookimpl
def vllmrt_gpu_probes(settings: Any) -> Any:
    for cls in BROKEN.values():
        yield cls(settings.api_key)
