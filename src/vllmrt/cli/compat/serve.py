"""``vllm-serve``: becomes ``vllm serve`` with the model that the env file names."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vllmrt import pipeline
from vllmrt.cli import run_process
from vllmrt.cli.compat.script import HELP, load, require, run_script
from vllmrt.cli.output import show_launch
from vllmrt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.cli.reporting import Run
    from vllmrt.errors import VllmrtError
    from vllmrt.layers import Layers

_USAGE = """\
usage: vllm-serve [-h] [--print-cmd] [--dry-run] [[--] argument of vllm serve ...]

  --print-cmd   print the command line of vllm serve on stderr, then become it
  --dry-run     print it and stop
  -h, --help    print this

Everything else is set by variables: docs/coming-from-vllm-flox-runtime.md. Exit codes: 2 a variable is missing or
cannot be used, 1 anything else; after that they are those of vLLM.
"""
_PRINT, _DRY = "--print-cmd", "--dry-run"
_FINDS_ENV_FILE = ("model", "stores", "plugins", "env_file_trusted", "config_file")
_READS = (*_FINDS_ENV_FILE, "server", "engine", "logging", "cuda_visible_devices")
_REQUIRED = dict.fromkeys(
    (
        "host",
        "port",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "kv_cache_dtype",
        "max_model_len",
        "max_num_batched_tokens",
        "served_model_name",
    ),
    "",
)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    ours, extra = list(argv[:cut]), list(argv[cut + 1 :])
    if not HELP.isdisjoint(ours):
        sys.stdout.write(_USAGE)
        return 0
    passed_on = [word for word in ours if word not in {_PRINT, _DRY}] + extra
    dry = str(int(_DRY in ours))

    def body(run: Run) -> int:
        return _serve(run, print_cmd=not {_PRINT, _DRY}.isdisjoint(ours))

    return run_script(body, lambda: load(_FINDS_ENV_FILE, os.environ, dry_run=dry), _code, extra=tuple(passed_on))


def main() -> None:
    """Run the script as the whole process."""
    run_process(run)


def _code(error: VllmrtError | None) -> int:
    return 2 if isinstance(error, ConfigError) else 1


def _serve(run: Run, *, print_cmd: bool) -> int:
    _require_what_names_the_files(run.layers)
    record = pipeline.recorded(run.layers.settings, os.environ)
    loaded = _with_env_file(record.values, run.layers)
    require(loaded, _REQUIRED)
    plan = pipeline.serve(loaded, record, os.environ, run.extra)
    show_launch(run._replace(layers=loaded), plan, {}, print_cmd=print_cmd)
    return 0


def _require_what_names_the_files(loaded: Layers) -> None:
    given, needed = loaded.origins, {}
    if "model_env_file" not in given and "model_id" not in given:
        needed = dict.fromkeys(("model_org", "model"), ", and neither are VLLM_MODEL_ID and VLLM_MODEL_ENV_FILE")
    if not {"model_env_file", "config_file"} <= given.keys():
        needed["flox_env_cache"] = ""
    require(loaded, needed)
    if "flox_env_cache" in needed and not loaded.settings.cache.is_dir():
        hint = "create it; or set both VLLM_CONFIG_FILE and VLLM_MODEL_ENV_FILE"
        raise ConfigError(f"FLOX_ENV_CACHE={loaded.settings.cache} is not a directory", hint=hint)


def _with_env_file(values: dict[str, str], before: Layers) -> Layers:
    """Build all settings; what the env file sets wins, as where a shell has sourced it, but not what is ours alone."""
    told = {name: value for name, value in values.items() if not name.startswith("VLLMRT_")}
    return load(_READS, os.environ | told, dry_run=str(int(before.settings.dry_run)))
