"""A machine that is well: an engine for CPUs, a store, a port that is free."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Machine
from standin import as_other, machine, only_orphans, port  # noqa: F401 - pytest finds fixtures by their names here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.test_machine import Done

ENVS = """\
from typing import Any, Callable

environment_variables: dict[str, Callable[[], Any]] = {
    # ==== a comment
    "VLLM_USE_V1": lambda: True,
    "VLLM_LOGGING_LEVEL": lambda: "INFO",
    "VLLM_API_KEY": lambda: None,
}
"""


def install_engine(patient: Machine, label: str = "+cpu") -> None:
    """Put what an installed vLLM has beside its executable."""
    site = patient.engine.parents[1] / "lib" / "python3.11" / "site-packages"
    (site / f"vllm-0.32.0{label}.dist-info").mkdir(parents=True)
    (site / "vllm").mkdir(exist_ok=True)
    (site / "vllm" / "envs.py").write_text(ENVS)


@pytest.fixture
def patient(tmp_path: Path, port: int) -> Machine:  # noqa: F811 - as above
    made = Machine(tmp_path / "patient")
    del made.env["VLLM_MODEL_SOURCES"]
    made.env |= {"VLLM_PORT": str(port), "VLLM_SKIP_GPU_CHECK": "1"}
    install_engine(made)
    return made


def own(done: Done) -> list[dict[str, Any]]:
    """Return the problems, without engines that other tests have orphaned just now; the exit code fits all of them."""
    told = done.json
    assert done.code == int(bool(told["problems"])) == int(not told["ok"])
    return [one for one in told["problems"] if one["code"] != "orphan"]


def _steady(text: str) -> str:
    """Return a text without line ends, and without numbers, such as that of all processes, which change meanwhile."""
    return re.sub(r"\d+", "N", " ".join(text.split()))


@pytest.fixture
def doctor(patient: Machine) -> Callable[..., list[dict[str, Any]]]:
    """Run the doctor; return the problems that it finds, and see to it that the page has each with its remedy."""

    def run(*args: str, prefix: tuple[str, ...] = (), **env: str | None) -> list[dict[str, Any]]:
        done = patient.run("doctor", "--json", *args, prefix=prefix, **env)
        page = patient.run("doctor", *args, prefix=prefix, **env)
        problems = own(done)
        assert "Traceback" not in done.err + page.out + page.err
        for one in problems:
            assert _steady(f"problem {one['message']} remedy {one['remedy']}") in _steady(page.out)
        assert page.code == int(page.out.splitlines()[-1] != "result    no problem was found")
        return problems

    return run
