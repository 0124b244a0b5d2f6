"""``vllmrt up`` with its preflight: what is refused before a byte moves, what is stopped, and when."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cli.test_machine import Done
from cli.test_machine import Machine as User
from gpukit import write_smi
from remoteplugin import asked, install
from standin import SCRIPT, VLLMRT, Machine, alive, children, hand_over, held, listens, wait_for

from vllmrt.testing import corrupt, fake_dist, fingerprint, make_model


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    make_model(tmp_path / "origin" / "llama")
    return tmp_path / "origin"


@pytest.fixture
def user(tmp_path: Path, origin: Path, port: int) -> User:
    """Who starts ``acme/llama``, of which nothing is there yet, on the port."""
    user = User(tmp_path / "user")
    install(user.site, origin)
    del user.env["VLLMRT_PREFLIGHT"]
    user.env |= {
        "VLLM_MODEL_SOURCES": "acme",
        "VLLM_PORT": str(port),
        "VLLM_PREFLIGHT_LOCKFILE": str(tmp_path / "lock"),
        "VLLM_SKIP_GPU_CHECK": "1",
    }
    return user


def names(done: Done) -> list[str]:
    return [event["event"] for event in done.events if event["event"] != "preflight.orphan"]


# -- in which order -----------------------------------------------------------------------

WATCHING = """
import os, socket
import vllmrt
from vllmrt.types import Candidate

class Watching:
    name = "watching"
    def __init__(self, port):
        self.port = port
    def probe(self, request):
        with socket.socket() as client, open(os.environ["WATCHED"], "w") as log:
            log.write(str(client.connect_ex(("127.0.0.1", self.port))))
        return [Candidate("here", path=__import__("pathlib").Path(os.environ["MODEL"]))]

@vllmrt.hookimpl
def vllmrt_sources(settings):
    yield Watching(settings.port)
"""


def test_the_old_server_serves_until_the_new_model_is_ready(
    user: User, machine: Machine, port: int, tmp_path: Path
) -> None:
    fake_dist(user.site, "watching", "1", {"vllmrt.sources": {"watching": "watching"}}, {"watching": WATCHING})
    stale = machine.serve(port=port, WORKERS="2")
    neighbour = machine.serve()
    env = {"WATCHED": str(tmp_path / "watched"), "MODEL": str(tmp_path / "origin" / "llama")}
    done = user.run("up", "acme/llama", "--sources", "watching", "--log-format", "json", **env)
    assert done.code == 0, done.err
    assert (tmp_path / "watched").read_text() == "0"  # it accepted connections while the model was looked for
    assert names(done) == [
        "preflight.port",
        "resolve.attempt",
        "validate.ok",
        "resolve.envfile",
        "preflight.port",
        "serve.command",
    ]
    before, after = [event for event in done.events if event["event"] == "preflight.port"]
    assert (before["port_action"], after["port_action"]) == ("would_stop", "stopped")
    assert (before["reclaimed_roots"], after["reclaimed_roots"]) == ([], [stale.pid])
    assert machine.left() == [neighbour.pid]
    assert done.json["argv"][1] == "serve"


def test_what_was_said_is_not_said_again(user: User) -> None:
    done = user.run("up", "acme/llama")
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.err.splitlines()].count("port") == 1
    assert "is free" in done.err


def test_json_says_what_the_preflight_did(user: User, machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    dry = user.run("up", "acme/llama", "--dry-run", "--json").json
    assert (dry["preflight"]["port_action"], dry["preflight"]["dry_run"]) == ("would_stop", True)
    engine = user.root / "silent"
    engine.write_text(f"#!{sys.executable}\n")
    engine.chmod(0o755)
    told = user.run("up", "acme/llama", "--json", "--vllm", str(engine)).json
    assert (told["ok"], told["preflight"]["port_action"]) == (True, "stopped")
    assert told["preflight"]["reclaimed_roots"] == [stale.pid]
    assert told["preflight"]["gpu_check_source"] == "skipped"


# -- what no model can mend is refused before a byte moves ---------------------------------


def refused(user: User, origin: Path, code: int, **environ: str | None) -> Done:
    for args in (["--dry-run"], []):
        done = user.run("up", "acme/llama", "--json", *args, **environ)
        assert (done.code, done.json["ok"], done.json["code"]) == (code, False, code), done.err
    assert asked(origin) == []
    assert not (user.store / "llama").exists()
    assert not (user.store / ".staging").exists()
    return done


def test_another_program_on_the_port(user: User, machine: Machine, port: int, origin: Path) -> None:
    other = machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    done = refused(user, origin, 2)
    assert (done.json["port_action"], done.json["pids"]) == ("blocked", [other.pid])
    assert listens(port)


def test_another_users_server(user: User, machine: Machine, port: int, origin: Path, as_other: list[str]) -> None:
    command = [sys.executable, str(machine.vllm), "serve"]
    machine.start(command, wrapper=as_other, LISTEN=f"127.0.0.1:{port}")
    refused(user, origin, 3)
    assert listens(port)


def test_a_server_that_cannot_be_judged(user: User, machine: Machine, port: int, origin: Path) -> None:
    body = "import vllmrt\n@vllmrt.hookimpl\ndef vllmrt_classify_process(process, settings):\n    1 / 0\n"
    fake_dist(user.site, "acme-judge", "1", {"vllmrt.plugins": {"judge": "acme_judge"}}, {"acme_judge": body})
    machine.serve(port=port)
    refused(user, origin, 4)
    assert listens(port)


SMI = 'echo "0, GPU-1, 81920, {free}, {heat}, 3, P0, 0x1, Disabled, NVIDIA H100"'


def with_gpu(user: User, script: str, **more: str) -> dict[str, str | None]:
    write_smi(user.root / "bin", script)
    return {"VLLM_SKIP_GPU_CHECK": None, "VLLMRT_GPU_PROBES": "nvidia-smi", **more}


@pytest.mark.parametrize(
    ("script", "code"),
    [(SMI.format(free=80000, heat=99), "gpu-temperature"), ('echo "No devices were found"', "gpu-none")],
)
def test_a_gpu_that_is_hot_or_missing(
    user: User, machine: Machine, port: int, origin: Path, script: str, code: str
) -> None:
    machine.serve(port=port)
    done = refused(user, origin, 1, **with_gpu(user, script))
    assert done.json["class"] == "GpuUnhealthy"
    assert [problem["code"] for problem in done.json["gpu_problems"] if problem["fatal"]] == [code]
    assert done.json["port_action"] == "would_stop"
    assert listens(port)


def test_a_gpu_that_became_hot_meanwhile(user: User, machine: Machine, port: int, tmp_path: Path) -> None:
    """It was cool before the model was fetched. The old server, which may have heated it, goes on."""
    machine.serve(port=port)
    seen, cool, hot = tmp_path / "seen", SMI.format(free=80000, heat=40), SMI.format(free=80000, heat=99)
    script = f"if [ -e {seen} ]; then {hot}; else : > {seen}; {cool}; fi"
    done = user.run("up", "acme/llama", "--json", **with_gpu(user, script))
    assert (done.code, done.json["class"]) == (1, "GpuUnhealthy"), done.err
    assert (user.store / "llama" / "config.json").exists()
    assert listens(port)


# -- a start that fails costs no server ----------------------------------------------------


FAULTS = {
    "a model that nobody has": (10, ["acme/gone"]),
    "a damaged shard": (11, ["acme/llama"]),
    "a flag that this vLLM lacks": (20, ["acme/llama", "--", "--no-such-flag"]),
    "an engine without its interpreter": (20, ["acme/llama"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_that_fails_leaves_the_old_server(
    user: User, machine: Machine, port: int, origin: Path, fault: str
) -> None:
    if fault == "a damaged shard":
        corrupt(next((origin / "llama").glob("*.safetensors")), cut=1)
    if fault == "an engine without its interpreter":
        user.engine.write_text("#!/nowhere/python\n")
    stale = machine.serve(port=port, WORKERS="1")
    tree = [stale.pid, *children(stale.pid)]
    code, args = FAULTS[fault]
    done = user.run("up", *args)
    assert done.code == code, done.err
    assert "is to be reclaimed from process" in done.err
    assert machine.left() == tree
    assert listens(port)


def test_a_dry_run_stops_and_writes_nothing(user: User, machine: Machine, port: int, tmp_path: Path) -> None:
    assert user.run("resolve", "acme/llama").code == 0
    stale = machine.serve(port=port)
    before = fingerprint(user.root)
    done = user.run("up", "acme/llama", "--dry-run")
    assert done.code == 0, done.err
    assert f"is to be reclaimed from process {stale.pid} (" in done.err
    assert fingerprint(user.root) == before
    assert not (tmp_path / "lock").exists()
    assert listens(port)


def test_without_its_preflight_it_looks_at_nothing(user: User, machine: Machine, port: int) -> None:
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    for args, env in ((["--no-preflight"], None), ([], "0")):
        done = user.run("up", "acme/llama", *args, VLLMRT_PREFLIGHT=env)
        assert (done.code, done.json["argv"][1]) == (0, "serve"), done.err
        assert "port  " not in done.err
    assert listens(port)


def test_a_port_that_is_taken_meanwhile(user: User, machine: Machine, port: int, origin: Path) -> None:
    """It was free when it was looked at; now another program has it, and that is not stopped."""
    begun = user.start("up", "acme/llama", ACME_SLOW="0.3")
    wait_for(lambda: asked(origin))
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    _, err = begun.communicate(timeout=60)
    assert begun.returncode == 2, err
    assert (user.store / "llama" / "config.json").exists()
    assert listens(port)


def test_a_port_that_is_bound_again(user: User, machine: Machine, port: int) -> None:
    _, heir = hand_over(machine, port)
    done = user.run("up", "acme/llama", "--json")
    assert (done.code, done.json["port_action"], done.json["pids"]) == (5, "stop_failed", [heir.pid]), done.err
    assert machine.left() == [heir.pid]


# -- the memory of the GPUs is looked at when the old server is gone -----------------------


def test_memory_that_the_old_server_holds_is_no_fault(user: User, machine: Machine, port: int) -> None:
    stale = machine.serve(port=port)
    full, empty = SMI.format(free=100, heat=40), SMI.format(free=80000, heat=40)
    script = f"if kill -0 {stale.pid} 2>/dev/null; then {full}; else {empty}; fi"
    # buried at once, or else its number could still be signalled
    signal.signal(signal.SIGCHLD, lambda *_: stale.poll())
    try:
        environ = with_gpu(user, script, VLLM_GPU_FAIL_ON="memory,utilization")
        done = user.run("up", "acme/llama", "--log-format", "json", **environ)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert done.code == 0, done.err
    gpus = [(event["event"], event["level"]) for event in done.events if event["event"].startswith("gpu.")]
    assert gpus == [("gpu.status", "info"), ("gpu.warning", "warning"), ("gpu.status", "info")]
    assert done.json["argv"][1] == "serve"


@pytest.mark.parametrize(("condition", "code"), [("memory", 1), ("temperature", 0)])
def test_memory_that_stays_away(user: User, machine: Machine, port: int, condition: str, code: int) -> None:
    machine.serve(port=port)
    environ = with_gpu(user, SMI.format(free=100, heat=40), VLLM_GPU_FAIL_ON=condition)
    done = user.run("up", "acme/llama", **environ)
    assert done.code == code, done.err
    assert done.err.count("less than 4 (VLLM_MIN_FREE_GPU_GB)") == 1 + code
    assert ("serve" in done.out) is (code == 0)
    assert machine.left() == []


# -- orphans -------------------------------------------------------------------------------


@pytest.mark.skipif(Path("/proc/1/comm").read_text().startswith("python"), reason="init could start engines itself")
@pytest.mark.usefixtures("only_orphans")
def test_orphans_are_reported_at_once_and_stopped_only_for_the_new_server(user: User, machine: Machine) -> None:
    launcher = machine.serve(ENGINE="Up::EngineCore")
    (engine,) = children(launcher.pid)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1] == "1")
    prefix = {"VLLM_PROCESS_NAME_PREFIX": "Up"}
    for args in (["acme/gone", "--reap-orphans"], ["acme/llama", "--reap-orphans", "--dry-run"], ["acme/llama"]):
        assert f"process {engine} of uid" in user.run("up", *args, **prefix).err
        assert alive(engine)
    done = user.run("up", "acme/llama", **prefix, VLLMRT_REAP_ORPHANS="1")
    assert done.code == 0, done.err
    assert ("is to be stopped" in done.err, "· stopped" in done.err) == (True, True)
    assert machine.left() == []


# -- how many GPUs ---------------------------------------------------------------------------


def two_gpus(tmp_path: Path) -> dict[str, str]:
    rows = [f"{number}, GPU-{number}, 81920, 80000, 44, 3, P0, 0x1, Disabled, NVIDIA H100" for number in (0, 1)]
    folder = write_smi(tmp_path / "smi", f"printf '%s\\n' '{rows[0]}' '{rows[1]}'")
    return {"PATH": f"{folder}:/usr/bin:/bin", "VLLM_SKIP_GPU_CHECK": "0", "VLLMRT_GPU_PROBES": "nvidia-smi"}


def test_too_few_gpus_are_refused_before_a_byte_moves(user: User, origin: Path, tmp_path: Path) -> None:
    environ = two_gpus(tmp_path) | {"VLLM_TENSOR_PARALLEL_SIZE": "2", "VLLM_PIPELINE_PARALLEL_SIZE": "2"}
    done = refused(user, origin, 1, **environ)
    assert done.json["class"] == "GpuUnhealthy"
    assert done.json["error"] == (
        "VLLM_TENSOR_PARALLEL_SIZE 2 x VLLM_PIPELINE_PARALLEL_SIZE 2 needs 4 GPUs, and 2 are visible"
    )
    assert done.json["gpus_visible"] == 2


MULTI_NODE = [
    ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1"],
    ["--distributed-executor-backend=ray"],
    ["--distributed_executor_backend", "ray"],
    ["--data-parallel-size", "2", "--data-parallel-backend", "ray"],
    ["-dp", "2"],
    ["-n", "2", "-r", "1"],
]


@pytest.mark.parametrize("extra", MULTI_NODE, ids=" ".join)
def test_several_machines_are_not_refused(extra: list[str], user: User, tmp_path: Path) -> None:
    flags = [word.partition("=")[0].replace("_", "-") for word in extra if word.startswith("--")]
    user.engine.write_text(user.engine.read_text().replace("max-num-seqs", " ".join(flag[2:] for flag in flags)))
    environ = two_gpus(tmp_path) | {"VLLM_TENSOR_PARALLEL_SIZE": "8"}
    done = user.run("up", "acme/llama", "--", *extra, **environ)
    assert done.code == 0, done.err
    assert done.json["argv"][-len(extra) :] == extra


def test_a_config_for_several_machines_is_not_refused(user: User, origin: Path, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    environ = two_gpus(tmp_path) | {"VLLM_TENSOR_PARALLEL_SIZE": "8", "VLLM_CONFIG_FILE": str(config)}
    config.write_text("dtype: auto\n")
    refused(user, origin, 1, **environ)
    config.write_text("distributed_executor_backend: ray\n")
    user.engine.write_text(user.engine.read_text().replace("max-num-seqs", "distributed-executor-backend"))
    assert user.run("up", "acme/llama", **environ).code == 0


def test_without_a_probe_that_sees_gpus_nothing_is_counted(user: User) -> None:
    done = user.run("up", "acme/llama", VLLM_TENSOR_PARALLEL_SIZE="8", VLLM_SKIP_GPU_CHECK="0")
    assert done.code == 0, done.err


def test_a_vllm_for_cpus_beside_gpus_counts_none(user: User, tmp_path: Path) -> None:
    library = user.engine.parent.parent / "lib" / "python3.12" / "site-packages"
    (library / "vllm-0.32.0+cpu.dist-info").mkdir(parents=True)
    done = user.run("up", "acme/llama", **two_gpus(tmp_path), VLLM_TENSOR_PARALLEL_SIZE="8")
    assert done.code == 0, done.err


def has_open(pid: int, path: Path) -> bool:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if entry.readlink() == path:
                return True
    return False


# -- the lock ------------------------------------------------------------------------------


def test_another_preflight_of_the_port(user: User, machine: Machine, port: int, tmp_path: Path) -> None:
    """While a deaf server is stopped, the lock is held; afterwards the new server does not have it."""
    stale = machine.serve(port=port, ON_TERM="ignore")
    first = user.start("up", "acme/llama", "--stop-timeout", "60", LINGER="30")
    wait_for(lambda: (tmp_path / "lock").exists() and held(tmp_path / "lock"))
    second = user.run("up", "acme/llama", "--json")
    assert (second.code, second.json["class"]) == (1, "VllmrtError")
    assert f"another preflight of port {port} runs" in second.json["error"]
    assert machine.left() != []
    stale.kill()
    assert first.stdout
    assert '"serve"' in first.stdout.readline()
    assert not held(tmp_path / "lock")
    assert not has_open(first.pid, tmp_path / "lock")
    first.kill()
    first.communicate()


def test_behind_a_preflight_it_has_that_ones_lock(user: User, port: int, tmp_path: Path) -> None:
    """``vllmrt preflight -- vllmrt up`` holds the lock until the server listens."""
    user.engine.write_text(f"#!{sys.executable}\n{SCRIPT}")
    environ = {"LISTEN": f"127.0.0.1:{port}", "DELAY": "1", "READY": str(tmp_path / "ready")}
    begun = user.start("preflight", "--", VLLMRT, "up", "acme/llama", **environ)
    try:
        wait_for((user.store / "llama" / "config.json").exists)
        assert held(tmp_path / "lock")
        wait_for(lambda: listens(port))
        wait_for(lambda: not held(tmp_path / "lock"))
    finally:
        begun.send_signal(signal.SIGTERM)
        _, err = begun.communicate(timeout=30)
    assert "another preflight" not in err
    assert begun.returncode == 128 + signal.SIGTERM, err
    assert not listens(port)


@pytest.mark.parametrize("fault", ["a directory", "a link"])
def test_a_lock_file_that_cannot_be_used(user: User, machine: Machine, port: int, tmp_path: Path, fault: str) -> None:
    lock = tmp_path / "lock"
    lock.mkdir() if fault == "a directory" else lock.symlink_to(tmp_path / "victim")
    machine.serve(port=port)
    done = user.run("up", "acme/llama", "--json")
    assert (done.code, done.json["class"]) == (1, "ConfigError")
    assert listens(port)


# -- plan ----------------------------------------------------------------------------------


def test_a_plan_says_what_would_be_done_about_the_port(user: User, machine: Machine, port: int) -> None:
    free = user.run("plan", "acme/llama", "--json")
    assert (free.code, free.json["preflight"]["port_action"]) == (0, "noop")
    stale = machine.serve(port=port)
    told = user.run("plan", "acme/llama", "--json").json["preflight"]
    assert (told["port_action"], told["pids"]) == ("would_stop", [stale.pid])
    assert listens(port)


def test_a_plan_does_not_fail_for_a_port_that_is_held(user: User, machine: Machine, port: int) -> None:
    machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{port}")
    done = user.run("plan", "acme/llama", "--json")
    assert (done.code, done.json["ok"], done.json["preflight"]["port_action"]) == (0, True, "blocked")
    assert "is not vLLM" in done.json["preflight"]["error"]
    assert "is not vLLM" in done.err
    assert user.run("plan", "acme/llama", "--no-preflight", "--json").json["preflight"] == {}
