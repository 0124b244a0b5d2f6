import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vllmrt
from vllmrt.errors import ServeRefused
from vllmrt.serve import launch as module
from vllmrt.serve.config import DEFAULT, NAME
from vllmrt.serve.launch import LaunchPlan, launch, plan_launch
from vllmrt.settings import Settings

DRIVER = """
import json, signal, sys
from vllmrt.serve.launch import LaunchPlan, launch
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("before", end="")
launch(LaunchPlan(*json.loads(sys.argv[1]), []))
"""
# No child: while a shell waits for one, it blocks signals itself.
SIGNALS = """\
#!/bin/sh
while read -r name value; do
  case $name in SigBlk:|SigIgn:) echo "$value";; esac
done < /proc/$$/status
echo $$
exec sleep 60
"""


def start(argv, environ):
    source = Path(vllmrt.__file__).parents[1]
    command = [sys.executable, "-c", DRIVER, json.dumps([argv, environ])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(source)})


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    return folder


@pytest.fixture
def plan(tmp_path, model):
    def make(engine, *extra, dry_run=False, environ=None, **settings):
        return plan_launch(
            model,
            Settings(vllm=engine, flox_env_cache=tmp_path / "cache", **settings),
            model_id="org/model",
            explicit=frozenset(settings),
            extra=extra,
            environ={"PATH": os.environ["PATH"]} if environ is None else environ,
            dry_run=dry_run,
        )

    return make


def test_engine_gets_the_process_its_arguments_and_its_environment(json_engine):
    environ = {"PATH": os.environ["PATH"], "VLLM_API_KEY": "s3cret", "ODD": "a=b c"}
    with start([str(json_engine), "serve", "/m", "--x", "a b"], environ) as process:
        output = process.stdout.read()
    assert process.returncode == 0
    assert output.startswith("before")
    seen = json.loads(output.removeprefix("before"))
    assert seen["pid"] == process.pid
    assert seen["argv"] == [str(json_engine), "serve", "/m", "--x", "a b"]
    assert {name: seen["environ"].get(name) for name in environ} == environ
    assert "PYTHONPATH" not in seen["environ"]


def test_signals_reach_the_engine_as_if_it_had_been_started_alone(make_engine):
    with start([str(make_engine(SIGNALS)), "serve"], {"PATH": os.environ["PATH"]}) as process:
        blocked, ignored, pid = (process.stdout.readline().removeprefix("before").strip() for _ in range(3))
        process.terminate()
        assert process.wait(timeout=10) == -signal.SIGTERM
    assert int(pid) == process.pid
    assert int(blocked, 16) == 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert int(ignored, 16) & 1 << number - 1 == 0


def test_directory_for_metrics_is_made(json_engine, tmp_path):
    metrics = tmp_path / "a" / "b"
    with start([str(json_engine)], {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}) as process:
        process.stdout.read()
    assert metrics.is_dir()


def test_directory_for_metrics_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeRefused, match="PROMETHEUS_MULTIPROC_DIR"):
        launch(LaunchPlan(["/bin/true"], {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "file" / "x")}, []))


@pytest.mark.parametrize(
    ("script", "mode", "fault"),
    [
        (None, 0, "is gone"),
        ("#!/nonexistent/bin/python3\n", 0o755, "interpreter /nonexistent/bin/python3 does not exist"),
        ("#!/bin/sh\n", 0o644, "Permission denied"),
        ("no first line\n", 0o755, "neither a program for this machine"),
    ],
)
def test_engine_that_cannot_be_executed(make_engine, tmp_path, script, mode, fault):
    engine = tmp_path / "gone"
    if script:
        engine = make_engine(script)
        engine.chmod(mode)
    before = signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ServeRefused, match=fault) as caught:
        launch(LaunchPlan([str(engine), "serve"], {}, []))
    assert str(engine) in caught.value.message
    assert caught.value.hint
    assert (signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


def test_command_line_that_is_too_large(json_engine):
    with pytest.raises(ServeRefused, match="too large"):
        launch(LaunchPlan([str(json_engine), "x" * (64 << 20)], {}, []))


def test_fault_that_nobody_thought_of():
    assert "output error" in module.refusal(Path("/x/vllm"), OSError(errno.EIO, "")).message


def test_plan_shows_no_secret():
    assert "s3cret" not in repr(LaunchPlan(["vllm"], {"VLLM_API_KEY": "s3cret"}, []))


def test_plan_puts_everything_together(plan, helpful_engine, model, tmp_path):
    environ = {"PATH": os.environ["PATH"], "VLLM_MODEL": "m", "KEPT": "1"}
    made = plan(helpful_engine, "--enforce-eager", "--port", "9", host="10.0.0.1", api_key="s3cret", environ=environ)
    config = tmp_path / "cache" / NAME
    assert config.read_bytes() == DEFAULT
    assert made.argv[:5] == [str(helpful_engine), "serve", str(model), "--config", str(config)]
    assert made.argv[made.argv.index("--max-model-len") + 1] == "512"
    assert made.argv[made.argv.index("--served-model-name") + 1] == "org/model"
    assert made.argv[-1] == "--enforce-eager"
    assert made.environ["VLLM_API_KEY"] == "s3cret"
    assert made.environ["KEPT"] == "1"
    assert "VLLM_MODEL" not in made.environ
    assert len(made.warnings) == 1
    assert "s3cret" not in " ".join([*made.argv, *made.warnings])


def test_name_in_the_api_can_be_chosen(plan, json_engine):
    argv = plan(json_engine, served_model_name="mine").argv
    assert argv[argv.index("--served-model-name") + 1] == "mine"


def test_default_config_asks_the_engine_nothing(plan, helpful_engine, tmp_path):
    plan(helpful_engine)
    plan(helpful_engine)
    assert not (tmp_path / "asked").exists()


def test_dry_run_leaves_no_trace(plan, helpful_engine, tmp_path):
    made = plan(helpful_engine, "--enforce-eager", dry_run=True)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "asked").exists()
    assert "not checked" in made.warnings[0]
    assert plan(helpful_engine, dry_run=True).warnings == []


def test_rejected_key_is_named_before_the_launch(plan, helpful_engine, tmp_path):
    config = tmp_path / "old.yaml"
    config.write_text("host: 0.0.0.0\ndisable-log-requests: true\ngpu-memory-utilization: 0.85\n")
    with pytest.raises(ServeRefused, match=r"old\.yaml: .* 'disable-log-requests'$"):
        plan(helpful_engine, config_file=config)


def test_rejected_extra_flag_is_named_before_the_launch(plan, helpful_engine):
    with pytest.raises(ServeRefused, match=r"extra arguments: .* '--enforce-eagre'"):
        plan(helpful_engine, "--enforce-eagre")


def test_engine_without_a_list_of_flags_is_not_held_up(plan, json_engine):
    made = plan(json_engine, "--anything", "1")
    assert made.argv[-2:] == ["--anything", "1"]
    assert "not checked" in made.warnings[0]


def test_config_that_is_overruled_is_named(plan, json_engine, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("max-model-len: 9\n")
    (warning,) = plan(json_engine, config_file=config).warnings
    assert "mine.yaml" in warning
    assert "VLLM_MAX_MODEL_LEN" in warning


def test_exposed_server_is_refused_before_anything_is_written(plan, json_engine, tmp_path):
    with pytest.raises(ServeRefused, match="without an API key"):
        plan(json_engine, host="10.0.0.1", require_api_key=True)
    assert not (tmp_path / "cache").exists()


def test_importing_it_is_cheap():
    heavy = "yaml subprocess http.client shlex shutil tempfile importlib.metadata dataclasses json"
    code = f"import sys, vllmrt.serve.launch; print(sorted(set({heavy.split()!r}) & set(sys.modules)))"
    source = Path(vllmrt.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": os.pathsep.join([str(source), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
