import os
import sys
from pathlib import Path

import pytest

# As argparse writes it in `vllm serve --help=all`, shortened.
HELP = """\
usage: vllm serve [model_tag] [options]

Search by using: `--help=<ConfigGroup>` to explore options by section

options:
  --config CONFIG       Read CLI options from a config file.
  --enable-log-requests, --no-enable-log-requests
                        Enable logging request information. See --not-a-flag
  --disable-log-stats   Disable logging statistics, not --another-one
  -h, --help            show this help message and exit
  --bare
  --port PORT           Port number. (default: 8000)
  --gpu-memory-utilization, --device-memory-utilization GPU_MEMORY_UTILIZATION
                        The fraction of GPU memory
  --hf-overrides HF_OVERRIDES
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
  --uvicorn-log-level {critical,debug,error,info,trace,warning}
  --max-num-seqs MAX_NUM_SEQS
  --enforce-eager, --no-enforce-eager
                        Whether to always use eager-mode PyTorch.
"""


@pytest.fixture
def make_engine(tmp_path):
    """Write an executable called vllm, with the metadata of a release beside it as pip would."""

    def make(script, *, version="9.9.9", prefix=tmp_path / "engine"):
        engine = prefix / "bin" / "vllm"
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_text(script)
        engine.chmod(0o755)
        if version:
            (prefix / "lib" / "python3.12" / "site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
        return engine

    return make


@pytest.fixture
def helpful_engine(make_engine, tmp_path):
    """An engine that answers --help=all, and counts how often it was asked."""
    help_text = tmp_path / "help.txt"
    help_text.write_text(HELP)
    return make_engine(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {help_text}\n')


@pytest.fixture
def json_engine(make_engine):
    """An engine that prints its command line, environment and process id as JSON."""
    return make_engine(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps({'argv': sys.argv, 'environ': dict(os.environ), 'pid': os.getpid()}), flush=True)\n"
    )


@pytest.fixture(scope="session")
def real_engine():
    """The vLLM that VLLMRT_VLLM names, or the repository's own."""
    named = os.environ.get("VLLMRT_VLLM")
    path = Path(named) if named else Path(__file__).parents[2] / ".venv-vllm" / "bin" / "vllm"
    if not path.exists():
        pytest.skip("no vLLM: neither VLLMRT_VLLM nor .venv-vllm/bin/vllm in the repository")
    return path
