"""The reference's chapters "Static settings" and "Runtime environment variables", a test for every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from compatkit import MODEL, ORG, RESOLVE, SERVE, User

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# -- Static settings (vllm-config.yaml) -----------------------------------------------------------

STATIC = {
    "host | 0.0.0.0": "host: 0.0.0.0",
    "port | 8000": "port: 8000",
    "dtype | float16": "dtype: float16",
    "gpu-memory-utilization | 0.85": "gpu-memory-utilization: 0.85",
    "quantization | awq": "quantization: awq",
    "uvicorn-log-level | warning": "uvicorn-log-level: warning",
}


@pytest.fixture
def config(ready: User) -> Path:
    return ready.cache / "vllm-config.yaml"


@pytest.mark.parametrize("line", STATIC.values(), ids=STATIC)
def test_static_setting_is_left_to_the_config(line: str, ready: User, config: Path) -> None:
    config.write_text(f"{line}\n")
    done = ready.run(SERVE)
    assert (done.code, done.json["argv"][3:5]) == (0, ["--config", str(config)])
    assert "has no effect" not in done.err
    assert config.read_text() == f"{line}\n"


def test_static_setting_host_and_port_are_overridden_on_the_command_line(ready: User, config: Path) -> None:
    config.write_text("host: 10.0.0.1\nport: 1\n")
    argv = ready.launched()["argv"]
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert argv[argv.index("--port") + 1] == str(ready.port)


@pytest.mark.parametrize("row", ["disable-log-requests | true"])
def test_static_setting_that_vllm_has_dropped_is_named(row: str, ready: User, config: Path) -> None:
    config.write_text(f"{row.replace(' |', ':')}\n")
    done = ready.run(SERVE)
    assert (done.code, done.out) == (1, "")
    assert "remove disable-log-requests" in done.err


def test_what_is_written_on_the_first_run_suits_every_model(ready: User, config: Path) -> None:
    ready.launched()
    keys = [line.partition(":")[0] for line in config.read_text().splitlines() if line and line[0] not in "# "]
    assert keys == ["gpu-memory-utilization", "uvicorn-log-level"]


# -- Runtime environment variables ----------------------------------------------------------------


def model(user: User) -> None:
    other = user.models / "other"
    user.local.rename(other)
    assert user.run(RESOLVE, VLLM_MODEL="other").code == 0
    assert user.launched(VLLM_MODEL="other")["argv"][2] == str(other)


def model_org(user: User) -> None:
    assert user.run(RESOLVE, VLLM_MODEL_ORG="elsewhere").code == 0
    assert f"vllm-model.elsewhere-{MODEL}." in user.env_file.name


def model_sources(user: User) -> None:
    done = user.run(RESOLVE, VLLM_MODEL_SOURCES="flox,local,hf-cache,hf-hub")
    assert [line.split()[0] for line in done.err.splitlines()][:2] == ["flox", "local"]


def models_dir(user: User) -> None:
    project = user.root / "project"
    (project / "models").mkdir(parents=True)
    user.local.rename(project / "models" / MODEL)
    environ = {"FLOX_ENV_PROJECT": str(project), "VLLM_MODELS_DIR": str(project / "models")}
    assert user.run(RESOLVE, **environ).code == 0
    assert user.launched(**environ)["argv"][2] == str(project / "models" / MODEL)


def flag(name: str, option: str, value: str) -> Callable[[User], None]:
    def check(user: User) -> None:
        assert user.run(RESOLVE).code == 0
        argv = user.launched(**{name: value})["argv"]
        assert argv[argv.index(option) + 1] == value

    return check


def api_key(user: User) -> None:
    assert user.run(RESOLVE).code == 0
    assert user.launched(VLLM_API_KEY="sk-mine")["environ"]["VLLM_API_KEY"] == "sk-mine"
    everywhere = {"VLLM_HOST": "0.0.0.0", "VLLM_API_KEY": "sk-vllm-local-dev"}  # noqa: S104 - the contract's defaults
    assert "well-known API key" in user.run(SERVE, **everywhere).err


def prefix_caching(user: User) -> None:
    assert user.run(RESOLVE).code == 0
    assert "--enable-prefix-caching" in user.launched(VLLM_PREFIX_CACHING="true")["argv"]
    assert "--enable-prefix-caching" not in user.launched(VLLM_PREFIX_CACHING="false")["argv"]


def logging_level(user: User) -> None:
    assert user.run(RESOLVE).code == 0
    for level in ("DEBUG", "INFO", "WARNING", "ERROR"):
        assert user.launched(VLLM_LOGGING_LEVEL=level)["environ"]["VLLM_LOGGING_LEVEL"] == level
    assert user.launched(VLLM_LOGGING_LEVEL=None)["environ"]["VLLM_LOGGING_LEVEL"] == "WARNING"


def prometheus_multiproc_dir(user: User) -> None:
    assert user.run(RESOLVE).code == 0
    place = user.cache / "vllm-prometheus"
    environ = user.launched(PROMETHEUS_MULTIPROC_DIR=str(place))["environ"]
    assert (environ["PROMETHEUS_MULTIPROC_DIR"], place.is_dir()) == (str(place), True)


RUNTIME = {
    "VLLM_MODEL | model directory name": model,
    "VLLM_MODEL_ORG | derives the model ID": model_org,
    "VLLM_MODEL_SOURCES | flox,local,hf-cache,hf-hub": model_sources,
    "VLLM_MODELS_DIR | $FLOX_ENV_PROJECT/models": models_dir,
    "VLLM_SERVED_MODEL_NAME": flag("VLLM_SERVED_MODEL_NAME", "--served-model-name", "Phi-3.5-mini-instruct"),
    "VLLM_HOST | 0.0.0.0": flag("VLLM_HOST", "--host", "0.0.0.0"),  # noqa: S104 - the contract's default
    "VLLM_PORT | 8000 | 1-65535": flag("VLLM_PORT", "--port", "65535"),
    "VLLM_API_KEY | sk-vllm-local-dev": api_key,
    "VLLM_TENSOR_PARALLEL_SIZE | 1 | > 0": flag("VLLM_TENSOR_PARALLEL_SIZE", "--tensor-parallel-size", "4"),
    "VLLM_PIPELINE_PARALLEL_SIZE | 1 | > 0": flag("VLLM_PIPELINE_PARALLEL_SIZE", "--pipeline-parallel-size", "4"),
    "VLLM_PREFIX_CACHING | false": prefix_caching,
    "VLLM_KV_CACHE_DTYPE | auto": flag("VLLM_KV_CACHE_DTYPE", "--kv-cache-dtype", "fp8"),
    "VLLM_MAX_MODEL_LEN | 4096 | > 0": flag("VLLM_MAX_MODEL_LEN", "--max-model-len", "100"),
    "VLLM_MAX_NUM_BATCHED_TOKENS | 4096 | > 0": flag("VLLM_MAX_NUM_BATCHED_TOKENS", "--max-num-batched-tokens", "64"),
    "VLLM_LOGGING_LEVEL | WARNING": logging_level,
    "PROMETHEUS_MULTIPROC_DIR | created automatically": prometheus_multiproc_dir,
}


@pytest.mark.parametrize("row", RUNTIME.values(), ids=RUNTIME)
def test_runtime_variable(row: Callable[[User], None], user: User) -> None:
    user.have_model()
    row(user)


def test_the_whole_line_in_one_shell(user: User) -> None:
    user.have_model()
    done = user.bash("vllm-preflight && vllm-resolve-model && vllm-serve -- --enforce-eager")
    assert done.code == 0, done.err
    assert done.json["argv"][2] == str(user.local)
    assert done.json["argv"][-1] == "--enforce-eager"
    assert f"vllm-model.{ORG}-{MODEL}." in done.err


def test_the_line_stops_where_a_script_fails(user: User) -> None:
    done = user.bash("vllm-preflight && vllm-resolve-model && vllm-serve", VLLM_MODEL_SOURCES="local")
    assert (done.code, done.out) == (1, "")
    assert list(user.cache.glob("*.env")) == []
