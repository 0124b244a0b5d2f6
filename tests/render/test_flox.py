"""The Flox manifest: valid against Flox's schema; its hook run by bash, with what a user has set and hostile values."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, reject
from hypothesis import settings as bounds
from hypothesis import strategies as st
from render.kit import describe, hook_environment, settings

from vllmrt.errors import ConfigError
from vllmrt.identity import check_name
from vllmrt.render.flox import manifest, requirements

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests" / "data" / "flox-manifest-v1.schema.json").read_text())
PRINTABLE = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=40)


def rendered(extra: tuple[str, ...] = (), needs: tuple[str, ...] = ("vllmrt==0.1.0",), **fields: Any) -> str:
    return manifest(describe(settings(**fields), extra), needs)["manifest.toml"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An activated environment, in which vllmrt is installed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllmrt").symlink_to(Path(sys.executable).with_name("vllmrt"))
    return {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "FLOX_ENV": str(tmp_path),
        "FLOX_ENV_CACHE": str(tmp_path / "cache"),
        "FLOX_ENV_PROJECT": str(tmp_path / "project"),
    }


@pytest.mark.parametrize(
    "fields",
    [{}, {"port": 8001, "model_id": "a'b/c\"d@v1", "api_key": "k"}, {"exclude": ("*'''*",)}],
    ids=["plain", "named", "quotes"],
)
def test_the_schema_of_flox_takes_it(fields: dict[str, Any]) -> None:
    jsonschema.validate(tomllib.loads(rendered(("--seed", "1'\n"), **fields)), SCHEMA)


def test_a_fault_would_be_seen() -> None:
    broken = tomllib.loads(rendered())
    broken["hook"]["on-activated"] = broken["hook"].pop("on-activate")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_hook_sets_what_differs(environ: dict[str, str]) -> None:
    after = hook_environment(rendered(port=8001, model_id="org/name@v1", served_model_name="mine"), environ)
    assert {name: value for name, value in after.items() if name.startswith("VLLM")} == {
        "VLLM_MODEL_ORG": "org",
        "VLLM_MODEL": "name",
        "VLLM_MODEL_REVISION": "v1",
        "VLLM_SERVED_MODEL_NAME": "mine",
        "VLLM_PORT": "8001",
    }


def test_what_a_user_sets_wins(environ: dict[str, str]) -> None:
    """Reference, chapter "Swapping models"."""
    text = rendered(port=8001, model_id="org/name@v1", served_model_name="mine")
    given = {"VLLM_MODEL": "other", "VLLM_MODEL_ORG": "else", "VLLM_PORT": "9000"}
    after = hook_environment(text, environ | given)
    assert {name: value for name, value in after.items() if name.startswith("VLLM")} == given
    after = hook_environment(text, environ | {"VLLM_MODEL": "other"})
    assert (after["VLLM_MODEL_ORG"], after["VLLM_MODEL"]) == ("org", "other")
    assert "VLLM_MODEL_REVISION" not in after
    after = hook_environment(text, environ | {"VLLM_MODEL_ID": "else/other"})
    assert "VLLM_MODEL" not in after


@bounds(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=PRINTABLE, word=PRINTABLE, extra=PRINTABLE)
@example(name="a'b\"c`d$(touch x)}", word="'''}${HOME:-x}\\", extra="'; touch x #\n")
@example(name="}", word="'", extra='"')
def test_bash_reads_back(name: str, word: str, extra: str, environ: dict[str, str]) -> None:
    try:
        check_name(name, "name")
        deployment = describe(settings(model_id=f"org/{name}", hf_hub_cache=Path("/x", word)), ["--flag", extra])
    except ConfigError:
        reject()
    text = manifest(deployment, [])["manifest.toml"]
    after = hook_environment(text, environ)
    assert (after["VLLM_MODEL"], after["HF_HUB_CACHE"]) == (name, str(Path("/x", word)))
    Path(environ["FLOX_ENV"], "cache", "vllmrt", "bin").mkdir(parents=True, exist_ok=True)
    service = tomllib.loads(text)["services"]["vllm"]["command"].replace("exec vllmrt", "printf '%s\\0'")
    done = subprocess.run(["/bin/bash", "-euc", service], env=environ, capture_output=True, check=True)
    assert done.stdout.decode().split("\0") == ["up", "--", "--flag", extra, ""]


# installing


@pytest.fixture
def plain(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment without vllmrt, and a pip that finds it in a directory and everything else in ours."""
    (tmp_path / "bin" / "vllmrt").unlink()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    wheels = tmp_path / "wheels"
    for package in (ROOT, ROOT / "plugins" / "vllmrt-source-package", ROOT / "plugins" / "vllmrt-model-tiny"):
        build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(package)]
        subprocess.run([sys.executable, *build], check=True, capture_output=True)
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_DEPS": "1"}
    return environ | pip | {"HOME": str(tmp_path)}


NEEDS = ("vllmrt==0.1.0", "vllmrt-source-package==0.1.0", "vllmrt-model-tiny==0.1.0")


def test_the_hook_installs_vllmrt_once(plain: dict[str, str], run_installed: Callable[[dict[str, str]], str]) -> None:
    text = rendered(needs=NEEDS)
    venv = Path(plain["FLOX_ENV_CACHE"], "vllmrt")
    after = hook_environment(text, plain)
    assert (venv / ".installed").read_text().split() == list(NEEDS)
    assert run_installed(after) == "vllmrt 0.1.0"
    (venv / "marked").touch()
    hook_environment(text, after)  # in a second shell, and with its PATH of the first
    hook_environment(text, plain)
    assert (venv / "marked").exists()
    hook_environment(rendered(needs=NEEDS[:1]), after)
    assert not (venv / "marked").exists()
    assert (venv / ".installed").read_text().split() == ["vllmrt==0.1.0"]


@pytest.fixture
def run_installed() -> Callable[[dict[str, str]], str]:
    def run(environ: dict[str, str]) -> str:
        """Run the vllmrt that is first on PATH; it has its dependencies from our environment."""
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        command = ["bash", "-c", "exec vllmrt --version"]
        environ = environ | {"PYTHONPATH": ours}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()

    return run


def test_an_installation_that_fails_leaves_no_stamp(plain: dict[str, str]) -> None:
    hook_environment(rendered(needs=("vllmrt==0.0.0",)), plain)
    venv = Path(plain["FLOX_ENV_CACHE"], "vllmrt")
    assert not (venv / ".installed").exists()
    hook_environment(rendered(needs=NEEDS), plain)
    assert (venv / ".installed").exists()


def test_what_is_on_path_is_used_as_it_is(environ: dict[str, str]) -> None:
    hook_environment(rendered(), environ)
    assert not Path(environ["FLOX_ENV_CACHE"]).exists()


def test_what_is_installed_here_is_installed_there() -> None:
    deployment = describe(
        settings(model_id="vllmrt/tiny", model_sources=("package", "local", "none"), gpu_probes=()), []
    )
    assert requirements(deployment, "0.1.0") == [
        "vllmrt==0.1.0",
        "vllmrt-model-tiny==0.1.0",
        "vllmrt-source-local==0.1.0",
        "vllmrt-source-package==0.1.0",
    ]
    assert "vllmrt-model-tiny==0.1.0" not in requirements(describe(settings(), []), "0.1.0")
    without = settings(model_sources=("package", "local"), gpu_probes=(), disable_plugins=("vllmrt_source.local",))
    assert requirements(describe(without, []), "0.1.0") == ["vllmrt==0.1.0", "vllmrt-source-package==0.1.0"]
