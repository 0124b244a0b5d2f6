from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllmrt.serve.cpu import VARIABLE, available_memory, kv_cache_space

if TYPE_CHECKING:
    from pathlib import Path


def engine(directory: Path, version: str) -> Path:
    (directory / "bin").mkdir()
    site = directory / "lib" / "python3.11" / "site-packages"
    (site / f"vllm-{version}.dist-info").mkdir(parents=True)
    (directory / "bin" / "vllm").write_text("#!/bin/sh\n")
    return directory / "bin" / "vllm"


def test_the_cpu_build_gets_a_bounded_kv_cache(tmp_path: Path) -> None:
    space = kv_cache_space(engine(tmp_path, "0.32.0+cpu"), {}, [], [])
    assert space is not None
    assert 1 <= int(space) <= 4


@pytest.mark.parametrize(
    ("version", "environ", "keys", "extra"),
    [
        pytest.param("0.32.0", {}, [], [], id="a CUDA build"),
        pytest.param("0.32.0+cpu", {VARIABLE: "40"}, [], [], id="the variable is set"),
        pytest.param("0.32.0+cpu", {}, ["kv-cache-memory-bytes"], [], id="the config says"),
        pytest.param("0.32.0+cpu", {}, [], ["--kv_cache_memory_bytes=1G"], id="an extra argument says"),
    ],
)
def test_nothing_is_set(
    tmp_path: Path, version: str, environ: dict[str, str], keys: list[str], extra: list[str]
) -> None:
    assert kv_cache_space(engine(tmp_path, version), environ, keys, extra) is None


def test_memory_is_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:   12582912 kB\n")
    assert available_memory(tmp_path / "meminfo") == 12
    assert available_memory(tmp_path / "missing") == 0
    assert available_memory() > 0
