"""A user of the old scripts: the variables that a Flox activation exports, and the three names on PATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Done, Machine
from realserver import free_port

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BIN = Path(sys.executable).parent
PREFLIGHT, RESOLVE, SERVE = (str(BIN / name) for name in ("vllm-preflight", "vllm-resolve-model", "vllm-serve"))
MODEL, ORG, HASH = "llama", "acme", "7a7f1c5bb0e6"
MODEL_ID = f"{ORG}/{MODEL}"


class User:
    """Who has exported what the reference's hook exports; nothing is fetched yet.

    Attributes:
        env: the variables.
        cache: FLOX_ENV_CACHE. models: VLLM_MODELS_DIR. port: VLLM_PORT, on which nobody listens.
    """

    def __init__(self, root: Path) -> None:
        self.machine = Machine(root / "user")
        self.root = root
        self.cache, self.models, self.flox = root / "cache", root / "models", root / "flox"
        for directory in (self.cache, self.models, self.flox):
            directory.mkdir()
        self.port = free_port()
        kept = {name: self.machine.env[name] for name in ("HOME", "LANG", "PYTHONPATH", "VLLMRT_VLLM")}
        self.env = kept | {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "FLOX_ENV": str(self.flox),
            "FLOX_ENV_CACHE": str(self.cache),
            "VLLM_MODEL": MODEL,
            "VLLM_MODEL_ORG": ORG,
            "VLLM_MODELS_DIR": str(self.models),
            "VLLM_SERVED_MODEL_NAME": "Llama",
            "VLLM_HOST": "127.0.0.1",
            "VLLM_PORT": str(self.port),
            "VLLM_TENSOR_PARALLEL_SIZE": "1",
            "VLLM_PIPELINE_PARALLEL_SIZE": "1",
            "VLLM_PREFIX_CACHING": "false",
            "VLLM_KV_CACHE_DTYPE": "auto",
            "VLLM_MAX_MODEL_LEN": "128",
            "VLLM_MAX_NUM_BATCHED_TOKENS": "4096",
            "VLLM_SKIP_GPU_CHECK": "1",
            "VLLM_PREFLIGHT_LOCKFILE": str(root / "preflight.lock"),
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, program: str, *args: str, wrapper: Sequence[str] = (), **env: str | None) -> Done:
        """Run one of the scripts to its end; a variable that is None is not set."""
        done = subprocess.run(
            [*wrapper, program, *args],
            cwd=self.root,
            env={name: value for name, value in (self.env | env).items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def bash(self, script: str, **env: str) -> Done:
        """Run a line of shell."""
        return self.run("/bin/bash", "-c", script, **env)

    @property
    def local(self) -> Path:
        """The model's directory in the store."""
        return self.models / MODEL

    @property
    def env_file(self) -> Path:
        """The one env file that was written."""
        (found,) = self.cache.glob("vllm-model.*.env")
        return found

    def have_model(self) -> Path:
        """Put the model into the store."""
        return make_model(self.local)

    def write_env_file(self, text: str | bytes | Iterable[str], mode: int = 0o600) -> Path:
        """Write an env file where the scripts look for it."""
        from vllmrt.identity import identity_hash

        path = self.cache / f"vllm-model.{ORG}-{MODEL}.{identity_hash(MODEL_ID)}.env"
        content = text if isinstance(text, str | bytes) else "\n".join(text)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def launched(self, *args: str, **env: str | None) -> dict[str, Any]:
        """Run vllm-serve to the end of the stand-in for vLLM, and return its argv and environment."""
        done = self.run(SERVE, *args, **env)
        assert done.code == 0, done.err
        told: dict[str, Any] = done.json
        return told


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture
def ready(user: User) -> User:
    """A user whose model is resolved already."""
    user.have_model()
    done = user.run(RESOLVE, VLLM_MODEL_SOURCES="local")
    assert done.code == 0, done.err
    return user
