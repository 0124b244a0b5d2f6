"""nvidia-smi as a script that says what drivers of all ages have said, and worse."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from gpukit import is_gone, run_check, write_smi
from vllmrt_gpu_nvidia_smi import NvidiaSmiProbe

from vllmrt.testing import GpuProbeConformance
from vllmrt.types import GpuProcess, GpuStatus, Skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Read = Callable[..., tuple[GpuStatus, ...]]
    Skipped = Callable[..., Skip]

MIB, GIB = 1 << 20, 1 << 30
ROW = "0, GPU-5f4c, 81559, 81038, 44, 3, P0, 0x0000000000000001, Disabled, NVIDIA H100 80GB HBM3"
FIELDS = (
    "index,uuid,memory.total,memory.free,temperature.gpu,utilization.gpu,pstate,clocks_event_reasons.active,"
    "mig.mode.current,name"
)
# Says "is not a valid field" of the first of these that it is asked for, as nvidia-smi does.
OLD = """\
for field in {unknown}; do
  case ",${{1#*=}}," in *",$field,"*) echo "Field \\"$field\\" is not a valid field to query."; echo; exit 2;; esac
done
echo {row}"""


def say(text: str, code: int = 0) -> str:
    return f"printf '%s\\n' {shlex.quote(text)}; exit {code}"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(script: str, *devices: str, enough: float = 0) -> Any:
        directory = write_smi(tmp_path / "bin", script)
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        return NvidiaSmiProbe(enough).read(devices)

    return run


def test_a_healthy_gpu(read: Read) -> None:
    assert read(say(ROW)) == (
        GpuStatus(
            0,
            uuid="GPU-5f4c",
            name="NVIDIA H100 80GB HBM3",
            memory_total=81559 * MIB,
            memory_free=81038 * MIB,
            temperature_c=44,
            utilization_pct=3,
            pstate="P0",
            throttle_reasons=("idle",),
        ),
    )


def test_what_it_is_asked(read: Read, tmp_path: Path) -> None:
    read(f'printf "%s\\n" "$@" > {tmp_path}/asked; {say(ROW)}')
    assert (tmp_path / "asked").read_text().split() == [f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]


EIGHT = "\n".join(
    f"{index}, GPU-{index}f, 100, {50 + index}, 4{index}, 0, P8, 0x1, [N/A], NVIDIA L4" for index in range(8)
)


@pytest.mark.parametrize(
    ("devices", "indices"),
    [((), range(8)), (("3",), [3]), (("7", "GPU-1"), [1, 7]), (("8",), []), (("GPU-x",), [])],
)
def test_some_of_eight(devices: tuple[str, ...], indices: list[int], read: Read) -> None:
    assert [gpu.index for gpu in read(say(EIGHT), *devices)] == list(indices)


UNTOLD = ["[N/A]", "N/A", "[Not Supported]", "[Not Found]", "[Unknown Error]", "ERR!", "[Insufficient Permissions]", ""]


@pytest.mark.parametrize("word", UNTOLD)
def test_what_it_does_not_tell(word: str, read: Read) -> None:
    (gpu,) = read(say(f"0, GPU-1, {word}, {word}, {word}, {word}, {word}, {word}, {word}, {word}"))
    assert gpu == GpuStatus(0, uuid="GPU-1", name="unnamed", memory_total=0, memory_free=0)


def test_half_of_the_memory_is_not_told(read: Read) -> None:
    (gpu,) = read(say("0, GPU-1, 81559, [N/A], 44, 3, P0, 0x0, Disabled, H100"))
    assert (gpu.memory_total, gpu.memory_free) == (0, 0)


def test_a_name_with_a_comma(read: Read) -> None:
    (gpu,) = read(say("0, GPU-1, 2, 1, 44, 3, P0, 0x0, Disabled, Acme, Inc. GPU"))
    assert gpu.name == "Acme, Inc. GPU"


def test_throttle_reasons_are_words(read: Read) -> None:
    (gpu,) = read(say(ROW.replace("0x0000000000000001", "0x0000000000000048")))
    assert gpu.throttle_reasons == ("hardware slowdown", "hardware thermal slowdown")


@pytest.mark.parametrize("words", ["GPU is lost", "GPU requires reset"])
def test_a_gpu_that_fell_off_the_bus(words: str, read: Read) -> None:
    first, second = read(
        say(f"0, GPU-1, [{words}], [{words}], [{words}], [{words}], [{words}], x, x, H100\n{EIGHT[120:]}")
    )[:2]
    assert (first.index, first.uuid, first.fault) == (0, "GPU-1", words.lower())
    assert second.fault is None


def test_no_devices_are_no_gpu_and_no_skip(read: Read) -> None:
    assert read(say("No devices were found", 6)) == ()
    assert read(say("No devices were found", 0)) == ()


@pytest.mark.parametrize("code", [0, 14])
def test_a_warning_beside_the_table(code: int, read: Read) -> None:
    (gpu,) = read(
        f"echo 'libfoo: trouble' >&2; {say(f'{ROW}{chr(10)}WARNING: infoROM is corrupted at gpu 0000:00:1E.0', code)}"
    )
    assert gpu.uuid == "GPU-5f4c"


# drivers that are old


@pytest.mark.parametrize(
    ("unknown", "row", "reasons"),
    [
        ("clocks_event_reasons.active", ROW, ("idle",)),
        (
            "clocks_event_reasons.active clocks_throttle_reasons.active",
            "0, GPU-5f4c, 81559, 81038, 44, 3, P0, Disabled, NVIDIA",
            (),
        ),
        ("mig.mode.current", "0, GPU-5f4c, 81559, 81038, 44, 3, P0, 0x1, NVIDIA", ("idle",)),
        (
            "mig.mode.current clocks_event_reasons.active clocks_throttle_reasons.active pstate utilization.gpu",
            "0, GPU-5f4c, 81559, 81038, 44, NVIDIA",
            (),
        ),
    ],
)
def test_fields_that_an_old_driver_does_not_know(unknown: str, row: str, reasons: tuple[str, ...], read: Read) -> None:
    (gpu,) = read(OLD.format(unknown=unknown, row=shlex.quote(row)))
    assert (gpu.memory_free, gpu.temperature_c, gpu.throttle_reasons) == (81038 * MIB, 44, reasons)


@pytest.mark.parametrize("field", ["uuid", "memory.free", "name", "power.draw", "x" * 5000])
def test_a_field_that_has_to_be_there(field: str, read: Skipped) -> None:
    skip = read(say(f'Field "{field}" is not a valid field to query.', 2))
    assert f"it does not know the field {field[:80]!r}" in skip.reason
    assert len(skip.reason) < 200


def test_one_that_knows_no_field_at_all_is_asked_a_few_times_only(read: Skipped, tmp_path: Path) -> None:
    script = f"""echo x >> {tmp_path}/asked
fields=${{1#*=}}; rest=${{fields#*,*,*,*,}}
echo "Field \\"${{rest%%,*}}\\" is not a valid field to query."; exit 2"""
    assert "it does not know the field" in read(script).reason
    assert len((tmp_path / "asked").read_text().split()) <= 10


# what cannot be used

REFUSED = {
    "driver not loaded": (
        say("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9),
        "it ended with 9: NVIDIA-SMI has failed because it couldn't communicate",
    ),
    "no library": (say("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", 12), "it ended with 12: "),
    "a mismatch": (
        say("Failed to initialize NVML: Driver/library version mismatch", 18),
        "it ended with 18: Failed to",
    ),
    "lost": (
        say("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", 255),
        "it ended with 255: ",
    ),
    "an error on stderr": ("echo 'error while loading shared libraries: libm.so' >&2; exit 127", "127: error while"),
    "an error and nothing": ("exit 255", "it ended with 255: nothing"),
    "a table and an error": (say(ROW, 15), "it ended with 15: 0, GPU-5f4c"),
    "killed": ("kill -SEGV $$", "it ended with -11"),
    "nothing": ("exit 0", "it said nothing, which is no table"),
    "a usage text": (say("usage: nvidia-smi [OPTION1 [ARG1]] ..."), "it said usage: nvidia-smi"),
    "a cut row": (say(ROW[:30]), "which are not 10 fields"),
    "a cut last row": (say(f"{ROW}\n{ROW[:30]}"), "which are not 10 fields"),
    "a cut number": (say(ROW.replace("81559,", "815x,")), "it said '815x' where a number belongs"),
    "units": (say(ROW.replace("81559,", "81559 MiB,")), "it said '81559 MiB' where a number belongs"),
    "a number below zero": (say(ROW.replace("81559,", "-1,")), "it said '-1' where a number belongs"),
    "other digits": (say(ROW.replace("81559,", "\u0668\u0661,")), "where a number belongs"),
    "another language": (say("0, GPU-1, nicht unterstützt, 1, 44, 3, P0, 0x0, Disabled, H"), "nicht unterst\\xfctzt"),
    "a decimal comma": (say("0, GPU-1, 81559,5, 44,1, 3, P0, 0x0, Disabled, H100"), "where a number belongs"),
    "no uuid": (say("0, , 2, 1, 44, 3, P0, 0x0, Disabled, H"), "which names no GPU"),
    "binary": (r"printf '0,\377\376,\000,1,2,3,4,5,6,7\n'", "where a number belongs"),
    "escapes": (say("\x1b]0;owned\x07", 1), "it ended with 1: \\x1b]0;owned\\x07"),
    "10 MB of rows": (f"yes {shlex.quote(ROW)} | head -c 10000000", "it said more than 1 MiB"),
    "10 MB in a line": ("head -c 10000000 /dev/zero", "it said more than 1 MiB"),
    "no end": ("yes", "it said more than 1 MiB"),
}


@pytest.mark.parametrize(("script", "part"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_a_skip(script: str, part: str, read: Skipped) -> None:
    skip = read(script)
    assert isinstance(skip, Skip)
    assert part in skip.reason
    assert skip.reason.isprintable()
    assert len(skip.reason) < 300


def test_without_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert NvidiaSmiProbe(0).read(()) == Skip("it is not on PATH")


def test_a_command_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = write_smi(tmp_path, "") / "nvidia-smi"
    program.write_text("#!/no/such/interpreter\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(NvidiaSmiProbe(0).read(()), Skip)
    program.write_bytes(b"\x7fELF")
    skip = NvidiaSmiProbe(0).read(())
    assert isinstance(skip, Skip)
    assert "Exec format error" in skip.reason


# MIG

MIG = ROW.replace("Disabled", "Enabled")


@pytest.mark.parametrize("devices", [(), ("0",), ("MIG-1",)])
def test_a_divided_gpu_is_left_to_nvml(devices: tuple[str, ...], read: Skipped) -> None:
    assert "vllmrt-gpu-nvml" in (read(say(MIG), *devices).hint or "")


def test_a_divided_gpu_that_nobody_wants_does_not_matter(read: Read) -> None:
    other = ROW.replace("0, GPU-5f4c", "1, GPU-other")
    assert [gpu.index for gpu in read(say(f"{MIG}\n{other}"), "1")] == [1]


# who holds the memory

HELD = f"""\
case $1 in
*compute-apps*) echo asked >> "$ASKED"; {{apps}};;
*) echo {shlex.quote(ROW.replace("81038", "900"))};;
esac"""
APPS = r"""printf '%s\n' 'GPU-5f4c, 4711, 80000, VLLM::EngineCore' 'GPU-5f4c, 4194305, [N/A], [Not Found]' \
'GPU-other, 1, 5, x' 'junk' 'GPU-5f4c, [N/A], 1, x'"""


def test_who_holds_the_memory_is_asked_where_there_is_little(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    (gpu,) = read(HELD.format(apps=APPS), enough=4 * GIB)
    assert gpu.processes == (GpuProcess(4711, memory=80000 * MIB, name="VLLM::EngineCore"), GpuProcess(4194305))
    (tmp_path / "asked").unlink()
    (gpu,) = read(HELD.format(apps=APPS), enough=900 * MIB)
    assert gpu.processes == ()
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("apps", ["exit 3", "yes", "echo No running processes found", "kill -9 $$"])
def test_who_holds_the_memory_is_no_reason_to_skip(
    apps: str, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    (gpu,) = read(HELD.format(apps=apps), enough=4 * GIB)
    assert (gpu.memory_free, gpu.processes) == (900 * MIB, ())


# through the core


def check(directory: Path, script: str, **environ: str) -> dict[str, Any]:
    environ = {"VLLMRT_GPU_PROBES": "nvidia-smi", **environ}
    return run_check(environ, smi=write_smi(directory, script))


def test_a_hot_gpu_stops_the_start(tmp_path: Path) -> None:
    told = check(tmp_path, say(ROW.replace(" 44,", " 91,")))
    assert (told["gpu_check_source"], told["code"]) == ("nvidia-smi", 1)
    assert told["error"] == "GPU 0 (NVIDIA H100 80GB HBM3) is at 91 °C, above 85 (VLLM_MAX_GPU_TEMP_C)"


def test_a_full_gpu_is_told_with_its_holders(tmp_path: Path) -> None:
    told = check(tmp_path, HELD.format(apps=APPS), ASKED=str(tmp_path / "asked"), VLLM_GPU_FAIL_ON="memory")
    assert told["code"] == 1
    assert "has 0.87 of 79.64 GiB free" in told["error"]
    assert "held by 4711 VLLM::EngineCore (78.12 GiB), 4194305 (of another container or user)" in told["error"]


def test_no_devices_stop_the_start(tmp_path: Path) -> None:
    told = check(tmp_path, say("No devices were found", 6))
    assert told["error"] == "there is a GPU driver, but no GPU (nvidia-smi sees none)"
    assert told["code"] == 1


def test_one_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"trap '' TERM INT HUP; sleep 613 & echo $$ $! > {tmp_path}/pids; wait; sleep 613"
    told = check(tmp_path, script, VLLMRT_GPU_PROBE_TIMEOUT="0.6")
    assert told["gpu_skips"][0]["reason"].startswith("vllmrt-gpu-nvidia-smi 0.1.0: no answer in 0.6 s")
    assert (told["error"], told["seconds"] < 3) == (None, True)
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


class TestConformance(GpuProbeConformance):
    name = "nvidia-smi"

    @pytest.fixture
    def machine(self, tmp_path: Path) -> dict[str, str]:
        return {"PATH": f"{write_smi(tmp_path / 'eight', say(EIGHT))}:/usr/bin:/bin"}
