"""Whether one machine has to have all the GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllmrt.serve.engine import interpreter
from vllmrt.serve.nodes import in_cluster, stands_alone
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeEngine = Callable[..., Path]

ALONE = {
    "nothing": [],
    "other flags": ["--max-num-seqs", "64", "--enforce-eager", "--no-enable-log-requests"],
    "a value that looks like one": ["--served-model-name", "nnodes"],
    "another short one": ["-tp", "4", "-O3"],
    "a negative number": ["--seed", "-1"],
}
SPREAD = {
    "multiprocessing": ["--nnodes", "2"],
    "multiprocessing, with =": ["--nnodes=2"],
    "an abbreviation": ["--nnode", "2"],
    "the rank": ["--node-rank", "1"],
    "with underscores": ["--node_rank", "1"],
    "Ray": ["--distributed-executor-backend", "ray"],
    "no API server here": ["--headless"],
    "data parallel": ["--data-parallel-size", "4"],
    "data parallel on this machine": ["--data-parallel-size-local", "1"],
    "short": ["-dp", "4"],
    "short, with its value": ["-n2"],
    "in the middle of a command": ["python", "-m", "vllm.entrypoints.openai.api_server", "--nnodes", "2"],
}


def ask(words: list[str], cache: Path, **settings: int) -> bool:
    sizes = {"tensor_parallel_size": 4, **settings}
    return stands_alone(Settings(flox_env_cache=cache, vllm=cache / "no-engine", **sizes), {}, words)


@pytest.mark.parametrize("words", ALONE.values(), ids=ALONE)
def test_a_machine_alone(words: list[str], tmp_path: Path) -> None:
    assert ask(words, tmp_path)
    assert not ask(words, tmp_path, tensor_parallel_size=1)
    assert ask(words, tmp_path, tensor_parallel_size=1, pipeline_parallel_size=2)


@pytest.mark.parametrize("words", SPREAD.values(), ids=SPREAD)
def test_one_of_several_machines(words: list[str], tmp_path: Path) -> None:
    assert not ask(words, tmp_path)


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("nnodes: 2\n", False),
        ("distributed_executor_backend: ray\n", False),
        ("data-parallel-size: 2\n", False),
        ("dtype: auto\n", True),
        ("headless: false\n", True),
        ("{", True),
        ("", True),
    ],
)
def test_what_the_engines_config_says(text: str, alone: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    (tmp_path / "vllm-config.yaml").write_text(text)
    assert ask([], tmp_path) is alone


@pytest.mark.parametrize(("version", "alone"), [("0.32.0+cpu", False), ("0.32.0", True), ("0.32.0+cu130", True)])
def test_a_vllm_for_cpus_needs_no_gpu(version: str, alone: bool, make_engine: MakeEngine, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    engine = make_engine("#!/bin/sh\n", version=version)
    settings = Settings(flox_env_cache=tmp_path, vllm=engine, tensor_parallel_size=2)
    assert stands_alone(settings, {}, []) is alone


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, True),
        ({"RAY_ADDRESS": ""}, False),
        ({"LWS_GROUP_SIZE": "2"}, True),
        ({"LWS_GROUP_SIZE": "1"}, False),
        ({"SLURM_NNODES": "4"}, True),
        ({"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1"}, False),
    ],
)
def test_an_environment_of_several_machines(environ: dict[str, str], several: bool) -> None:  # noqa: FBT001 - a case
    assert in_cluster(environ) is several


def test_the_flags_exist_in_the_real_vllm(real_engine: Path) -> None:
    site = Path(interpreter(real_engine) or "").parent.parent / "lib"
    (file,) = site.glob("python3*/site-packages/vllm/engine/arg_utils.py")
    text = file.read_text() + (file.parents[1] / "entrypoints" / "cli" / "serve.py").read_text()
    known = {"--nnodes", "--node-rank", "--distributed-executor-backend", "--data-parallel-size", "headless", '"-n"'}
    assert {flag for flag in known if flag not in text} == set()
