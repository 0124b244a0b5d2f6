"""Which GPUs a list of names means."""

from __future__ import annotations

import pytest

from vllmrt.errors import ConfigError
from vllmrt.gpu import devices
from vllmrt.types import GpuStatus


def gpu(index: int, uuid: str, *aliases: str) -> GpuStatus:
    return GpuStatus(index, uuid=uuid, name="G", memory_total=1, memory_free=1, aliases=aliases)


ZERO, ONE = gpu(0, "GPU-aaa0"), gpu(1, "GPU-aab1")
FIRST = gpu(2, "MIG-ccc0", "GPU-ddd2", "MIG-GPU-ddd2/7/0")
SECOND = gpu(2, "MIG-ccc1", "GPU-ddd2", "MIG-GPU-ddd2/8/0")
ALL = (ZERO, ONE, FIRST, SECOND)

LISTS = {
    "0": ("0",),
    " 1 , 0 ": ("1", "0"),
    "GPU-aaa0,GPU-b": ("GPU-aaa0", "GPU-b"),
    "MIG-ccc0": ("MIG-ccc0",),
    "MIG-GPU-ddd2/7/0": ("MIG-GPU-ddd2/7/0",),
}
HIDING = ["", " ", "-1", "NoDevFiles", "none", "void", ",0", "-1,0", "GPU-", "12345", "\u0661"]
CUT = {"0,-1,1": "'-1'", "0,1,": "''", "0,GPU-aaa0": "'GPU-aaa0'", "GPU-aaa0,0": "'0'", "MIG-c,GPU-a": "'GPU-a'"}
TWICE = ["0,0", "0,1,0", "0,00", "GPU-a,GPU-b,GPU-a", "MIG-c,MIG-c"]


def test_without_the_variable_all_are_left() -> None:
    assert devices.of_cuda(None) == (None, ())


@pytest.mark.parametrize("value", LISTS)
def test_a_list_names_what_is_left(value: str) -> None:
    assert devices.of_cuda(value) == (LISTS[value], ())


@pytest.mark.parametrize("value", HIDING)
def test_a_list_that_begins_with_no_device_hides_all(value: str) -> None:
    names, (warning,) = devices.of_cuda(value)
    assert names == ()
    assert warning == f"CUDA_VISIBLE_DEVICES={value!a} hides every GPU from the engine, so none was checked"


@pytest.mark.parametrize("value", CUT)
def test_a_list_ends_before_what_is_no_device_of_its_kind(value: str) -> None:
    names, (warning,) = devices.of_cuda(value)
    assert names == tuple(value.split(",")[: len(names or ())])
    assert names
    assert warning.endswith(f"the engine sees nothing from {CUT[value]} on")


@pytest.mark.parametrize("value", TWICE)
def test_a_device_that_is_named_twice_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="names a GPU twice") as caught:
        devices.of_cuda(value)
    assert caught.value.exit_code == 1


def test_what_follows_the_end_of_a_list_may_be_named_twice() -> None:
    assert devices.of_cuda("0,-1,0").names == ("0",)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (None, ALL),
        (("1",), (ONE,)),
        (("01", "0"), (ONE, ZERO)),
        (("0", "0", "00"), (ZERO,)),
        (("GPU-aaa0",), (ZERO,)),
        (("GPU-aaa",), (ZERO,)),
        (("GPU-aab", "0"), (ONE, ZERO)),
        (("0", "GPU-aaa0"), (ZERO,)),
        (("2",), (FIRST, SECOND)),
        (("GPU-d",), (FIRST, SECOND)),
        (("MIG-ccc1",), (SECOND,)),
        (("MIG-GPU-ddd2/8/0",), (SECOND,)),
        (("0", "GPU-aab1", "MIG-ccc0"), (ZERO, ONE, FIRST)),
    ],
)
def test_names_choose_devices(names: tuple[str, ...] | None, chosen: tuple[GpuStatus, ...]) -> None:
    assert devices.select(ALL, names) == (chosen, (), ())


@pytest.mark.parametrize("name", ["3", "10", "GPU-aaa00", "GPU-ccc", "MIG-ddd", "GPU-AAA0", "MIG-GPU-ddd2/9/0"])
def test_a_name_without_a_device_is_missing(name: str) -> None:
    assert devices.select(ALL, ("0", name)) == ((ZERO,), (name,), ())


@pytest.mark.parametrize("name", ["GPU-aa", "GPU-a", "MIG-c", "MIG-GPU-ddd2"])
def test_a_beginning_that_several_share_is_unclear(name: str) -> None:
    assert devices.select(ALL, (name,)).unclear == (name,)


@pytest.mark.parametrize(
    ("gpus", "seen"), [((), 0), ((ZERO,), 1), ((ZERO, ONE), 2), ((FIRST, SECOND), 1), (ALL, 2)], ids=str
)
def test_cuda_uses_one_mig_instance(gpus: tuple[GpuStatus, ...], seen: int) -> None:
    assert devices.count(gpus) == seen
