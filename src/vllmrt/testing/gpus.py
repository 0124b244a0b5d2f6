"""What every GPU probe has to do. It is asked in a Python of its own: a dynamic loader reads its environment once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from vllmrt import discovery
from vllmrt.testing.conformance import CANARY, Conformance, told_secrets
from vllmrt.types import GpuStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllmrt.discovery import EntryPoint

    Answer = dict[str, Any]

_SCRIPT = """\
import json, os, sys
import msgspec
from vllmrt import layers
from vllmrt.discovery import EntryPoint
from vllmrt.errors import VllmrtError
from vllmrt.host import PluginHost
from vllmrt.types import Skip

entry, asked = json.loads(sys.argv[1])
out, entry = os.dup(1), EntryPoint(*entry)
os.dup2(2, 1)
host = PluginHost(layers.load(os.environ).settings, [entry])
answers = []
for devices in asked:
    try:
        answer = host.read_gpus(entry, tuple(devices))
        answers.append({"skip": answer} if isinstance(answer, Skip) else {"gpus": answer})
    except VllmrtError as error:
        answers.append({"error": str(error)})
os.write(out, msgspec.json.encode(answers))
"""
_KEPT = ("HOME", "LANG", "TMPDIR")
_MIB = 1 << 20
_HOTTEST = 150


class GpuProbeConformance(Conformance):
    """For a GPU probe.

    A suite overrides the fixture `machine`, most override nothing else.

    Attributes:
        seconds: that the probe may take for one question.
    """

    group = discovery.GPU_PROBES
    seconds: ClassVar[float] = 10.0

    @pytest.fixture
    def machine(self) -> Mapping[str, str]:
        """Return the variables of an environment in which the probe finds two GPUs or more, such as PATH."""
        raise NotImplementedError(f"{type(self).__name__} has to override the fixture 'machine'")

    @pytest.fixture
    def bare(self) -> Mapping[str, str]:
        """Return those of an environment in which it has no driver; none unless overridden."""
        return {}

    @pytest.fixture
    def gpus(self, entry: EntryPoint, machine: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the GPUs of the machine as the probe tells them."""
        return _gpus(self._ask(entry, machine, [()])[0])

    def test_it_tells_every_gpu_once(self, gpus: list[dict[str, Any]]) -> None:
        """There are two or more; each has a number from 0 on, and a UUID of its own."""
        assert len(gpus) > 1, "the fixture 'machine' is to have two GPUs or more"
        assert all(type(gpu["index"]) is int and gpu["index"] >= 0 for gpu in gpus)
        uuids = [gpu["uuid"] for gpu in gpus]
        assert all(isinstance(uuid, str) and uuid for uuid in uuids)
        assert len(set(uuids)) == len(uuids), f"a UUID is told twice: {uuids}"

    def test_its_numbers_are_in_the_units_of_the_contract(self, gpus: list[dict[str, Any]]) -> None:
        """Memory is bytes and no more free than there is, heat degrees Celsius, utilisation per cent."""
        for gpu in (one for one in gpus if not one["fault"]):
            total, free = gpu["memory_total"], gpu["memory_free"]
            assert total == 0 or total >= _MIB, f"{total} bytes are no GPU's memory"
            assert 0 <= free <= total, f"{free} of {total} bytes are free"
            assert gpu["temperature_c"] is None or 0 <= gpu["temperature_c"] <= _HOTTEST
            assert gpu["utilization_pct"] is None or 0 <= gpu["utilization_pct"] <= 100  # noqa: PLR2004 - per cent
            assert gpu["pstate"] is None or gpu["pstate"][:1] == "P"
            assert gpu["name"].strip()

    def test_asking_again_gives_the_same_gpus(self, entry: EntryPoint, machine: Mapping[str, str]) -> None:
        """The same question has the same GPUs in the same order; what they are doing may differ."""
        first, second = (_named(answer) for answer in self._ask(entry, machine, [(), ()]))
        assert first == second

    def test_a_gpu_can_be_asked_for_by_index_or_uuid(
        self, entry: EntryPoint, machine: Mapping[str, str], gpus: list[dict[str, Any]]
    ) -> None:
        """Its number, its UUID and the beginning of that give this GPU, and what nobody has gives none."""
        last = gpus[-1]
        same = [(gpu["index"], gpu["uuid"]) for gpu in gpus if gpu["index"] == last["index"]]
        asked = [(str(last["index"]),), (last["uuid"],), (last["uuid"][:-1],), ("9999",)]
        by_index, by_uuid, by_beginning, by_nothing = map(_named, self._ask(entry, machine, asked))
        assert by_index == same
        assert by_uuid == [(last["index"], last["uuid"])]
        assert (last["index"], last["uuid"]) in by_beginning
        assert by_nothing == []

    def test_without_a_driver_it_skips_with_a_reason(self, entry: EntryPoint, bare: Mapping[str, str]) -> None:
        """It says why it cannot read; no GPUs at all would mean a driver without any, and stop the start."""
        (answer,) = self._ask(entry, bare, [()])
        if "skip" in answer:
            assert answer["skip"]["reason"].strip(), "it skips without a reason"
        else:
            assert _gpus(answer), "it answers that there is a driver without GPUs"

    def test_no_secret_is_told(self, entry: EntryPoint, machine: Mapping[str, str], secrets: tuple[str, ...]) -> None:
        """No credential is in what it answers."""
        told = [json.dumps(answer) for answer in self._ask(entry, machine, [()])]
        assert told_secrets(iter(told), secrets) == []

    def _ask(
        self, entry: EntryPoint, environ: Mapping[str, str], asked: Sequence[tuple[str, ...]]
    ) -> list[dict[str, Any]]:
        """Return an answer for each question: ``gpus``, ``skip`` or ``error``."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, json.dumps([entry, asked])],
            env={
                **kept,
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "VLLM_API_KEY": CANARY,
                **environ,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=self.seconds * len(asked) + 20,
        )
        assert done.returncode == 0, f"it ends its process: {done.returncode}\n{done.stderr[-2000:]}"
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers


def _gpus(answer: Answer) -> list[dict[str, Any]]:
    assert "gpus" in answer, f"it reads no GPUs: {answer}"
    known = {field.name for field in fields(GpuStatus)}
    assert all(set(gpu) == known for gpu in answer["gpus"])
    gpus: list[dict[str, Any]] = answer["gpus"]
    return gpus


def _named(answer: Answer) -> list[tuple[int, str]]:
    return [(gpu["index"], gpu["uuid"]) for gpu in _gpus(answer)]
