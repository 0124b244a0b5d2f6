"""`vllmrt.gpu.check`: which GPUs are asked for, which probe answers, and probes that are wrong in every way."""

from __future__ import annotations

import importlib
import sys
import time
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

import pytest
from gpukit import compile_nvml, run_check, write_smi

from vllmrt import discovery, gpu
from vllmrt.errors import ConfigError, PluginError
from vllmrt.host import PluginHost
from vllmrt.settings import Settings
from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllmrt.gpu.report import GpuReport

    Install = Callable[..., None]
    Check = Callable[..., GpuReport]

OWNER = "acme-gpu 1.2.3"
PROBE = """\
import ctypes, os, signal, sys, time

import vllmrt
from vllmrt.types import *

GIB = 1 << 30


def gpu(index=0, **changed):
    fine = dict(uuid=f"GPU-{{index}}", name="Acme", memory_total=80 * GIB, memory_free=79 * GIB, temperature_c=40)
    return GpuStatus(index, **{{**fine, **changed}})


class Acme:
    name = "{name}"

    def read(self, devices):
{body}


@vllmrt.hookimpl
def vllmrt_gpu_probes(settings):
    yield Acme()
"""
FINE = "return [gpu(index) for index in range(4) if not devices or str(index) in devices]"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    return directory


@pytest.fixture
def install(site: Path) -> Install:
    def run(body: str, *, name: str = "acme", distribution: str = "acme-gpu", source: str | None = None) -> None:
        module = f"{distribution.replace('-', '_')}_{site.parent.name.replace('-', '_')}"
        text = source or PROBE.format(name=name, body=indent(dedent(body), " " * 8))
        fake_dist(site, distribution, "1.2.3", {discovery.GPU_PROBES: {name: module}}, {module: text})
        importlib.invalidate_caches()

    return run


@pytest.fixture
def check(site: Path) -> Iterator[Check]:
    def run(*, alone: bool = False, **changed: Any) -> GpuReport:
        settings = Settings(**{"gpu_probes": ("acme",), "gpu_probe_timeout": 3.0, **changed})
        return gpu.check(settings, PluginHost(settings, discovery.entry_points([str(site)])), alone=alone)

    yield run
    assert not [name for name in sys.modules if name.startswith("acme_gpu")], "a probe was loaded into the main process"


def codes(report: GpuReport) -> dict[str, bool]:
    return {problem.code: problem.fatal for problem in report.problems}


# which GPUs


def test_all_gpus_where_nothing_is_said(install: Install, check: Check) -> None:
    install(FINE)
    report = check()
    assert (report.source, [one.index for one in report.gpus], report.visible) == ("acme", [0, 1, 2, 3], 4)
    assert (report.problems, report.skips, report.warnings) == ((), (), ())


@pytest.mark.parametrize(
    ("named", "cuda", "indices", "visible"),
    [
        ((), "1,3", [1, 3], 2),
        ((), "3", [3], 1),
        (("2",), None, [2], 4),
        (("2",), "1,2,3", [2], 3),
        (("2",), "0", [2], 1),
        (("2",), "", [2], 0),
        (("3", "GPU-1"), None, [3, 1], 4),
    ],
)
def test_the_gpus_to_check(
    named: tuple[str, ...], cuda: str | None, indices: list[int], visible: int, install: Install, check: Check
) -> None:
    install(FINE)
    report = check(gpu_devices=named, cuda_visible_devices=cuda)
    assert [one.index for one in report.gpus] == indices
    assert report.visible == visible
    assert report.problems == ()


@pytest.mark.parametrize(
    ("cuda", "sizes", "expected"),
    [
        (None, (2, 2), {}),
        (None, (5, 1), {"gpu-number": True}),
        ("0,1", (2, 2), {"gpu-number": True}),
        ("0,1", (2, 1), {}),
        ("0,1,2", (2, 1), {"gpu-number": False}),
    ],
)
def test_the_visible_gpus_are_counted_where_they_have_to_be_enough(
    cuda: str | None, sizes: tuple[int, int], expected: dict[str, bool], install: Install, check: Check
) -> None:
    install(FINE)
    settings = {"tensor_parallel_size": sizes[0], "pipeline_parallel_size": sizes[1], "cuda_visible_devices": cuda}
    assert codes(check(alone=True, **settings)) == expected
    assert codes(check(alone=False, **settings)) == {}
    # what is checked is not what the engine may use
    assert codes(check(alone=True, gpu_devices=("0",), **settings)) == expected


@pytest.mark.parametrize("blind", [{"gpu_probes": ()}, {"cuda_visible_devices": ""}, {"skip_gpu_check": True}], ids=str)
def test_where_no_gpu_was_seen_none_is_missing(blind: dict[str, Any], install: Install, check: Check) -> None:
    install(FINE)
    assert check(alone=True, tensor_parallel_size=64, **blind).problems == ()


@pytest.mark.parametrize("cuda", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_not_looked_at(cuda: str, install: Install, check: Check) -> None:
    install("os.kill(os.getppid(), signal.SIGTERM)")
    report = check(cuda_visible_devices=cuda)
    assert (report.source, report.gpus, report.visible) == ("skipped", (), 0)
    assert "hides every GPU" in report.warnings[0]


def test_the_check_may_be_skipped(install: Install, check: Check) -> None:
    install("os.kill(os.getppid(), signal.SIGTERM)")
    assert check(skip_gpu_check=True, cuda_visible_devices="0,0").as_json() == {
        "gpus": [],
        "gpu_check_source": "skipped",
        "gpus_visible": None,
        "gpu_problems": [],
        "gpu_warnings": [],
        "gpu_skips": [],
    }


@pytest.mark.parametrize("settings", [{"gpu_devices": ("0", "7")}, {"cuda_visible_devices": "0,7"}], ids=str)
def test_a_gpu_that_is_not_there_is_told_with_those_that_are(
    settings: dict[str, Any], install: Install, check: Check
) -> None:
    install(FINE)
    report = check(**settings)
    assert codes(report) == {"gpu-missing": True}
    told = "there is no GPU 7; acme sees 0 GPU-0, 1 GPU-1, 2 GPU-2, 3 GPU-3"
    assert report.problems[0].message == told


def test_a_beginning_that_two_share_is_told(install: Install, check: Check) -> None:
    install("return [gpu(0, uuid='GPU-aa'), gpu(1, uuid='GPU-ab')]")
    report = check(cuda_visible_devices="GPU-a")
    assert codes(report) == {"gpu-missing": True}
    assert report.problems[0].message == "several GPUs begin with GPU-a: 0 GPU-aa, 1 GPU-ab"


@pytest.mark.parametrize("cuda", [None, "0", "GPU-0"])
def test_a_driver_without_a_gpu_stops_the_start_whatever_stops_it_else(
    cuda: str | None, install: Install, check: Check
) -> None:
    install("return []")
    report = check(cuda_visible_devices=cuda, gpu_fail_on=())
    assert codes(report) == {"gpu-none": True}
    assert report.source == "acme"


def test_a_device_that_is_named_twice_is_refused_before_a_probe_is_asked(install: Install, check: Check) -> None:
    install("os.kill(os.getppid(), signal.SIGTERM)")
    with pytest.raises(ConfigError):
        check(cuda_visible_devices="0,0")


def test_a_broken_gpu_that_is_not_ours_is_nobodys_business(install: Install, check: Check) -> None:
    install("return [gpu(0), gpu(1, fault='GPU is lost')]")
    assert codes(check(cuda_visible_devices="0")) == {}
    assert codes(check()) == {"gpu-fault": True}


# which probe


def test_the_first_probe_that_answers_counts(install: Install, check: Check) -> None:
    install("return Skip('not here', hint='buy one')")
    install(FINE, name="other", distribution="acme-gpu-other")
    report = check(gpu_probes=("acme", "other"))
    assert report.source == "other"
    ((name, skip),) = report.skips
    assert (name, skip.reason, skip.hint) == ("acme", "not here", "buy one")
    assert check(gpu_probes=("other", "acme")).skips == ()


def test_where_none_answers_that_is_a_warning_with_every_reason(check: Check) -> None:
    report = check(gpu_probes=("nvml", "nvidia-smi"))
    assert report.warnings == ("no GPU was checked: nvml: it is not installed; nvidia-smi: it is not installed",)
    assert (report.source, report.problems, report.visible) == ("skipped", (), None)
    assert report.skips[0][1].hint == "pip install vllmrt-gpu-nvml"


def test_a_probe_of_no_plugin_is_refused(install: Install, check: Check) -> None:
    install(FINE)
    with pytest.raises(ConfigError, match=r"no plugin in vllmrt.gpu_probes is called 'acne'; installed: acme"):
        check(gpu_probes=("acne", "acme"))


@pytest.mark.parametrize("name", ["acme", "nvml"])
def test_a_name_that_two_claim_is_refused(name: str, install: Install, check: Check) -> None:
    install(FINE, name=name)
    install(FINE, name=name, distribution="acme-gpu-two")
    with pytest.raises(PluginError, match=r"claimed by two plugins: acme-gpu 1\.2\.3 and acme-gpu-two 1.2.3"):
        check(gpu_probes=(name,))


def test_a_disabled_probe_is_not_asked(install: Install, site: Path) -> None:
    install("return []")
    settings = Settings(gpu_probes=("acme",), disable_plugins=("acme_gpu",))
    with pytest.raises(ConfigError):
        gpu.check(settings, PluginHost(settings, discovery.entry_points([str(site)])))


# probes that are wrong

BROKEN = {
    "raises": ("raise ValueError('sorry')", "read failed: ValueError: sorry"),
    "exits": ("sys.exit(0)", "read failed: SystemExit: 0"),
    "ends the process": ("os._exit(0)", "it ended without an answer"),
    "crashes": ("ctypes.string_at(8)", "it was killed by SIGSEGV"),
    "aborts": ("os.abort()", "it was killed by SIGABRT"),
    "hangs": ("time.sleep(60)", "no answer in 0.5 s"),
    "hangs and cannot be ended": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntime.sleep(60)",
        "no answer in 0.5 s",
    ),
    "hangs in its generator": ("yield gpu()\ntime.sleep(60)", "no answer in 0.5 s"),
    "never ends": ("while True: yield gpu()", "read failed: OverflowError: more than 100,000 values"),
    "says too much": ("return [gpu(name='x' * (2 << 20))]", "an answer of more than 1 MiB"),
    "closes everything": ("os.closerange(0, 4096)\ntime.sleep(60)", "it was killed by SIGKILL"),
    "writes into every descriptor": (
        "for fd in range(3, 64):\n    try: os.write(fd, b'{}\\n')\n    except OSError: pass\nreturn [gpu()]",
        "read gave",
    ),
    "returns None": ("return None", "read failed: TypeError"),
    "returns a number": ("return 5", "read failed: TypeError"),
    "returns a text": ("return 'gpu'", "read gave a str, not a GpuStatus"),
    "returns a dict": ("return [{'index': 0}]", "read gave a dict, not a GpuStatus"),
    "returns a skip in a list": ("return [Skip('x')]", "read gave a Skip, not a GpuStatus"),
    "a skip without a text": ("return Skip(None)", "read gave a Skip whose reason is a NoneType"),
    "an index that is a text": ("return [gpu('0')]", "Expected `int`, got `str`"),
    "a temperature that is a float": ("return [gpu(temperature_c=41.5)]", "Expected `int | null`, got `float`"),
    "a temperature that is true": ("return [gpu(temperature_c=True)]", "Expected `int | null`, got `bool`"),
    "memory that is not a number": ("return [gpu(memory_free=float('nan'))]", "Expected `int`, got `null`"),
    "memory that is None": ("return [gpu(memory_total=None)]", "Expected `int`, got `null`"),
    "a uuid that is bytes": ("return [gpu(uuid=b'GPU-0')]", None),
    "a uuid that is no text": ("return [gpu(uuid=7)]", "Expected `str`, got `int`"),
    "a name that is an object": ("return [gpu(name=object())]", "read gave what cannot be passed on: TypeError"),
    "a name that is no unicode": ("return [gpu(name='\\udcff')]", "read gave"),
    "memory that is too large": ("return [gpu(memory_total=1 << 2000)]", "numbers that no GPU has"),
    "more free memory than memory": ("return [gpu(memory_free=81 * GIB)]", "numbers that no GPU has"),
    "memory below zero": ("return [gpu(memory_free=-1)]", "numbers that no GPU has"),
    "heat beyond measure": ("return [gpu(temperature_c=10**9000)]", "read gave"),
    "a process below zero": ("return [gpu(processes=(GpuProcess(-1),))]", "numbers that no GPU has"),
    "reasons that are a text": ("return [gpu(throttle_reasons='hot')]", "Expected `array`, got `str`"),
    "reasons that are numbers": ("return [gpu(throttle_reasons=(1,))]", "Expected `str`, got `int`"),
    "itself in itself": ("a = []; a.append(a); return [gpu(throttle_reasons=a)]", "read gave"),
    "processes that are numbers": ("return [gpu(processes=(4711,))]", "Expected `object`, got `int`"),
}


@pytest.mark.parametrize(("body", "part"), BROKEN.values(), ids=BROKEN)
def test_a_probe_that_is_wrong_is_skipped_by_name(body: str, part: str | None, install: Install, check: Check) -> None:
    install(body)
    install(FINE, name="other", distribution="acme-gpu-other")
    start = time.monotonic()
    report = check(gpu_probes=("acme", "other"), gpu_probe_timeout=0.5 if part == "no answer in 0.5 s" else 10.0)
    assert time.monotonic() - start < 5
    if part is None:  # harmless: it is a text on the way
        assert report.source == "acme"
        return
    ((_, skip),) = report.skips
    assert skip.reason.startswith(f"{OWNER}: ")
    assert part in skip.reason
    assert len(skip.reason) < 300
    assert (report.source, len(report.gpus)) == ("other", 4)


LOADING = {
    "raises at import": ("raise ValueError('sorry')", "loading failed: ValueError: sorry"),
    "crashes at import": ("import ctypes\nctypes.string_at(8)", "it was killed by SIGSEGV"),
    "hangs at import": ("import time\ntime.sleep(60)", "no answer in 1 s"),
    "offers nothing": ("x = 1", "offers no GPU probe called acme, but nothing"),
    "offers another": (PROBE.format(name="other", body="        pass"), "offers no GPU probe called acme, but Acme"),
    "offers what cannot read": (
        PROBE.format(name="acme", body="        pass").replace("def read", "def look"),
        "offers no GPU probe called acme, but Acme",
    ),
    "a misspelt hook": (PROBE.format(name="acme", body="        pass").replace("gpu_probes", "gpus"), "vllmrt_gpus"),
}


@pytest.mark.parametrize(("source", "part"), LOADING.values(), ids=LOADING)
def test_a_probe_that_cannot_be_loaded_is_skipped_by_name(
    source: str, part: str, install: Install, check: Check
) -> None:
    install("", source=source)
    ((_, skip),) = check(gpu_probe_timeout=1.0).skips
    assert skip.reason.startswith(f"{OWNER}: ")
    assert part in skip.reason


def test_a_probe_that_prints_answers_all_the_same(
    install: Install, check: Check, capfd: pytest.CaptureFixture[str]
) -> None:
    install("print('{}', flush=True)\nos.write(1, b'{}\\n')\nos.write(2, b'trouble')\n" + FINE)
    assert check().source == "acme"
    assert capfd.readouterr() == ("", "")


def test_a_probe_is_given_the_names_and_the_settings(install: Install, check: Check) -> None:
    install("return Skip(f'{devices} {settings.port}')".replace("settings", "self.settings"))
    assert "no attribute 'settings'" in check(port=4711).skips[0][1].reason
    source = PROBE.format(name="acme", body="        return Skip(f'{devices} {self.port}')")
    source = source.replace("yield Acme()", "Acme.port = settings.port; yield Acme()")
    install("", name="told", distribution="acme-gpu-told", source=source.replace('name = "acme"', 'name = "told"'))
    answer = check(gpu_probes=("told",), port=4711, cuda_visible_devices="1,0", gpu_devices=("GPU-2", "0"))
    assert answer.skips[0][1].reason == "('GPU-2', '0', '1') 4711"


# the cascade of the reference, with drivers that are made up


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_nvml(tmp_path_factory.mktemp("nvml"))


SMI = 'echo "0, GPU-smi, 81920, 80000, 44, 3, P0, 0x1, Disabled, NVIDIA H100"'


def test_nvml_comes_first(library: Path, tmp_path: Path) -> None:
    told = run_check({"NVML_STUB": "healthy"}, library=library, smi=write_smi(tmp_path, SMI))
    assert told["gpu_check_source"] == "nvml"
    assert told["gpu_skips"] == []


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        ("hang", "no answer in 0.5 s"),
        ("segv", "it was killed by SIGSEGV"),
        ("not-loaded", "Driver Not Loaded"),
        (None, "there is no libnvidia-ml.so.1"),
    ],
)
def test_nvidia_smi_is_asked_where_nvml_does_not_answer(
    stub: str | None, reason: str, library: Path, tmp_path: Path
) -> None:
    environ = {"NVML_STUB": stub or "", "VLLMRT_GPU_PROBE_TIMEOUT": "0.5"}
    told = run_check(environ, library=library if stub else None, smi=write_smi(tmp_path, SMI))
    assert told["gpu_check_source"] == "nvidia-smi"
    assert told["gpus"][0]["uuid"] == "GPU-smi"
    assert reason in told["gpu_skips"][0]["reason"]
    assert told["error"] is None


def test_without_either_there_is_a_warning_and_no_error() -> None:
    told = run_check({})
    assert (told["gpu_check_source"], told["gpus"], told["error"]) == ("skipped", [], None)
    assert told["gpu_warnings"] == [
        "no GPU was checked: nvml: there is no libnvidia-ml.so.1, so no NVIDIA driver; nvidia-smi: it is not on PATH"
    ]
    assert not told["imported"]


def test_both_may_hang_and_cost_no_more_than_their_time(library: Path, tmp_path: Path) -> None:
    environ = {"NVML_STUB": "stubborn", "VLLMRT_GPU_PROBE_TIMEOUT": "0.5"}
    told = run_check(environ, library=library, smi=write_smi(tmp_path, "trap '' TERM INT; sleep 600 & wait; sleep 600"))
    assert [skip["probe"] for skip in told["gpu_skips"]] == ["nvml", "nvidia-smi"]
    assert all("no answer in 0.5 s" in skip["reason"] for skip in told["gpu_skips"])
    assert 1 <= told["seconds"] < 4
    assert told["error"] is None
