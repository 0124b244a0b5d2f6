"""What is vLLM, by argv and title, and what only mentions it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmrt import builtin
from vllmrt.preflight.classify import classify, is_engine
from vllmrt.settings import Settings
from vllmrt.types import ProcessInfo, Verdict

PYTHON = "/usr/bin/python3.12"


def process(*argv: str, exe: str | None = None) -> ProcessInfo:
    title = argv[0] if len(argv) == 1 else ""
    return ProcessInfo(10, uid=0, start_ticks=1, exe=exe, argv=argv, title=title)


VLLM = [
    ("vllm", "serve", "model"),
    ("/opt/venv/bin/vllm", "serve"),
    (PYTHON, "/opt/venv/bin/vllm", "serve", "model"),
    ("python", "/opt/venv/bin/vllm", "serve"),
    (PYTHON, "-u", "-X", "dev", "-W", "ignore", "/opt/venv/bin/vllm", "serve", "model"),
    (PYTHON, "-Xfaulthandler", "-Wdefault", "/opt/venv/bin/vllm", "serve", "model"),
    (PYTHON, "--check-hash-based-pycs", "never", "/opt/venv/bin/vllm", "serve", "model"),
    (PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", "m"),
    (PYTHON, "-um", "vllm.entrypoints.openai.api_server"),
    (PYTHON, "-mvllm.entrypoints.api_server"),
    (PYTHON, "-m", "vllm.entrypoints.openai.run_server"),
    (PYTHON, "-m", "vllm.entrypoints"),
    (PYTHON, "-m", "vllm", "serve", "m"),
    (PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", "m"),
    (PYTHON, "/x/site-packages/vllm/entrypoints/openai/api_server.py"),
    ("/nix/store/a-python3/bin/python3.12", "/nix/store/b/bin/.vllm-wrapped", "serve", "m"),
    ("/nix/store/a/bin/.python3.12-wrapped", "/nix/store/b/bin/vllm", "serve", "m"),
    ("VLLM::EngineCore",),
    ("VLLM::EngineCore_DP1",),
    ("VLLM::Worker_TP0",),
    ("VLLM::APIServer_0",),
    ("VLLM::DPCoordinator",),
]
NOT_VLLM = [
    (),
    ("vllm",),
    ("vllm", "bench", "serve"),
    ("vllm", "chat"),
    ("vllmrt", "serve"),
    (PYTHON, "/venv/bin/vllmrt", "preflight", "--", "vllm", "serve"),
    (PYTHON, "-P", "-m", "vllmrt.preflight.guardian", "1", "15", "vllm", "serve"),
    (PYTHON, "-c", "import os", "vllm", "serve"),
    (PYTHON, "-Ic", "vllm serve"),
    (PYTHON, "tool.py", "vllm", "serve"),
    (PYTHON, "-m", "vllm.entrypoints.cli.main", "bench"),
    (PYTHON, "-m", "vllm_tools.entrypoints"),
    (PYTHON, "-m", "vllm.entrypointsx"),
    (PYTHON, "-m", "pip", "install", "vllm.entrypoints"),
    (PYTHON, "-m"),
    (PYTHON, "-W"),
    (PYTHON, "-"),
    (PYTHON,),
    ("sh", "-c", "exec vllm serve model"),
    ("bash", "-c", "python -m vllm.entrypoints.openai.api_server"),
    ("/bin/sh", "/usr/local/bin/vllm", "serve"),
    ("timeout", "60", "vllm", "serve", "model"),
    ("tmux", "new-session", "vllm", "serve"),
    ("tmux: server",),
    ("grep", "vllm serve", "log"),
    ("grep", "-r", "vllm.entrypoints", "."),
    ("vim", "vllm", "serve"),
    ("nano", "/x/vllm/entrypoints/openai/api_server.py"),
    ("less", "VLLM::EngineCore"),
    ("sudo", "-u", "x", "vllm", "serve"),
    ("nginx: master process vllm serve",),
    ("VLLM",),
    ("VLLM::",),
    ("my VLLM::EngineCore",),
    ("vllm::EngineCore",),
    ("VLLM::EngineCore", "with", "arguments"),
    ("ray::RayWorkerWrapper",),
]


@pytest.mark.parametrize("argv", VLLM, ids=" ".join)
def test_what_is_vllm(argv: tuple[str, ...]) -> None:
    assert classify(process(*argv)) is Verdict.VLLM


@pytest.mark.parametrize("argv", NOT_VLLM, ids=" ".join)
def test_what_is_not_vllm(argv: tuple[str, ...]) -> None:
    assert classify(process(*argv)) is None


def test_the_executable_tells_a_python_that_goes_by_another_name() -> None:
    argv = ("my-server", "/opt/bin/vllm", "serve")
    assert classify(process(*argv, exe="/usr/bin/python3.11")) is Verdict.VLLM
    assert classify(process(*argv, exe="/usr/bin/dash")) is None


SIGNED = [
    ("my.custom.launcher", (PYTHON, "-m", "my.custom.launcher")),
    ("my.custom.launcher", (PYTHON, "-m", "my.custom.launcher.main", "--x")),
    ("another_entrypoint", ("/opt/bin/another_entrypoint", "--x")),
    ("another_entrypoint", (PYTHON, "/opt/another_entrypoint.py")),
    ("another_entrypoint", ("bash", "/opt/another_entrypoint.sh")),
    ("tool serve", ("/opt/bin/tool", "serve", "m")),
    ("tool serve", (PYTHON, "/opt/bin/tool", "serve", "m")),
    ("My::", ("My::Server",)),
]
UNSIGNED = [
    ("another_entrypoint", ("sh", "-c", "another_entrypoint")),
    ("another_entrypoint", ("timeout", "9", "another_entrypoint")),
    ("another_entrypoint", ("tmux", "new", "another_entrypoint")),
    ("another_entrypoint", ("grep", "another_entrypoint")),
    ("another_entrypoint", ("vim", "another_entrypoint.py")),
    ("another_entrypoint", (PYTHON, "-c", "another_entrypoint")),
    ("tool serve", ("/opt/bin/tool", "stop")),
    ("tool serve", ("cat", "tool", "serve")),
]


@pytest.mark.parametrize(("signature", "argv"), SIGNED)
def test_a_signature_names_the_program(signature: str, argv: tuple[str, ...]) -> None:
    assert classify(process(*argv), (signature,)) is Verdict.VLLM
    assert classify(process(*argv)) is None


@pytest.mark.parametrize(("signature", "argv"), UNSIGNED)
def test_a_signature_that_is_only_mentioned_is_none(signature: str, argv: tuple[str, ...]) -> None:
    assert classify(process(*argv), (signature,)) is None


def test_the_prefix_of_the_titles() -> None:
    assert classify(process("Prod.1::EngineCore"), (), "Prod.1") is Verdict.VLLM
    assert classify(process("ProdX1::EngineCore"), (), "Prod.1") is None
    assert classify(process("VLLM::EngineCore"), (), "Prod.1") is Verdict.VLLM


def test_the_titles_of_engines() -> None:
    assert [is_engine(f"VLLM::{name}") for name in ("EngineCore_DP0", "Worker_TP1", "DPCoordinator")] == [True] * 3
    assert [is_engine(f"VLLM::{name}") for name in ("APIServer_0", "DPSupervisor", "")] == [False] * 3
    assert is_engine("Prod::Worker", "Prod")
    assert not is_engine("Prod::Worker")


CARRIERS = st.sampled_from(
    ["sh", "bash", "timeout", "tmux", "screen", "grep", "rg", "vim", "nano", "emacs", "sudo", "ssh"]
)
WORDS = st.sampled_from(
    ["vllm", "serve", "-m", "-c", "vllm.entrypoints", "VLLM::EngineCore", PYTHON, "vllm serve", "a"]
)


@given(CARRIERS, st.lists(WORDS, min_size=1))
def test_what_carries_a_command_line_never_is_it(program: str, words: list[str]) -> None:
    assert classify(process(f"/usr/bin/{program}", *words)) is None


@given(st.lists(st.text(max_size=20)))
def test_no_command_line_is_too_strange(argv: list[str]) -> None:
    classify(process(*argv), ("x", "a b"))


def test_the_plugin_takes_signatures_and_prefix_from_the_settings() -> None:
    settings = Settings(process_signatures=("launcher",), process_name_prefix="Prod")
    assert builtin.vllmrt_classify_process(process("launcher"), settings) is Verdict.VLLM
    assert builtin.vllmrt_classify_process(process("Prod::Worker"), settings) is Verdict.VLLM
    assert builtin.vllmrt_classify_process(process("launcher"), Settings()) is None
