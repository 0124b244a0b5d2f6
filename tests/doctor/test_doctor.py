"""``vllmrt doctor`` on machines that are well, and on machines where one thing is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doctor.conftest import install_engine, own
from gpukit import compile_nvml
from standin import VLLMRT, children, wait_for
from storekit import can_mount, contents, publish_model, stage

from vllmrt.resolve.store import Store
from vllmrt.testing import fake_dist
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.test_machine import Machine as Patient
    from standin import Machine

    Doctor = Callable[..., list[dict[str, Any]]]

SECTIONS = ("versions", "engine", "environment", "store", "machine", "port", "orphans", "gpus", "plugins")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, mounts")


# a machine that is well


def test_a_machine_that_is_well(patient: Patient, doctor: Doctor) -> None:
    assert doctor() == []
    told = patient.run("doctor", "--json").json
    assert list(told)[-11:] == [*SECTIONS, "notes", "problems"]
    assert (told["engine"]["version"], told["engine"]["build"]) == ("0.32.0+cpu", "cpu")
    assert told["port"]["state"] == "free"


def test_the_page_says_what_the_json_says(patient: Patient) -> None:
    publish_model(Store(patient.store), contents("one"), ModelRequest("org/name"))
    told = patient.run("doctor", "--json").json
    text = patient.run("doctor").out
    facts = [told["versions"][name] for name in ("vllmrt", "python", "executable", "kernel", "machine", "uid")]
    facts += [told["engine"]["path"], told["engine"]["version"], told["engine"]["config"]["path"]]
    facts += [*told["environment"]["settings"], told["store"]["path"], told["store"]["filesystem"]]
    facts += [f"name · org/name · {told['store']['models'][0]['files']} files", f"{told['machine']['cpus']} CPUs"]
    facts += [f"open files: {told['machine']['open_files']['soft']}", f"127.0.0.1:{told['port']['port']} is free"]
    facts += [f"{one['distribution']} {one['version']}" for one in told["plugins"]]
    facts += [note["message"] for note in told["notes"]]
    assert [fact for fact in facts if str(fact) not in text] == []


def test_events_for_programs(patient: Patient) -> None:
    done = patient.run("doctor", "--log-format", "json", VLLM_MODELS_DIRR="x")
    told = patient.run("doctor", "--json", VLLM_MODELS_DIRR="x").json
    events = [json.loads(line) for line in done.out.splitlines()]
    found = {event["section"]: event["facts"] for event in events if event["event"] == "doctor.section"}
    assert list(found) == list(SECTIONS)
    assert found["engine"] == told["engine"]
    (problem,) = [event for event in events if event["event"] == "doctor.problem" and event["section"] != "orphans"]
    assert (problem["code"], problem["remedy"]) == ("variable-unknown", "did you mean VLLM_MODELS_DIR?")
    assert done.err == ""


def test_nothing_is_in_the_environment() -> None:
    done = subprocess.run([VLLMRT, "doctor", "--json"], env={}, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(told[name] is not None for name in SECTIONS)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [root, *root.rglob("*")]}


def test_nothing_is_written(patient: Patient) -> None:
    publish_model(Store(patient.store), contents("one"))
    stage(Store(patient.store), contents("two"), ModelRequest("org/other"))
    patient.cache.mkdir(parents=True)
    (patient.cache / "vllm-config.yaml").write_text("max-num-seqs: 4\n")
    before = snapshot(patient.root)
    done = patient.run("doctor", "--json", PYTHONDONTWRITEBYTECODE="1")
    assert snapshot(patient.root) == before
    assert own(done) == []
    assert done.json["engine"]["config"]["checked"], "the engine was not asked, so this proves less than it should"


SPY = """\
import os, sys
def _hook(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        with open(os.environ["CALLS"], "a") as log:
            log.write(f"{event} {args[0]} {args[-1]}\\n")
sys.addaudithook(_hook)
"""


def test_no_network_is_asked_for_a_name(patient: Patient, tmp_path: Path) -> None:
    (patient.site / "sitecustomize.py").write_text(SPY)
    calls = tmp_path / "calls"
    done = patient.run("doctor", "--json", VLLM_HOST="vllm.example.com", CALLS=str(calls))
    assert own(done) == []
    assert done.json["port"]["state"] is None
    assert "vllmrt preflight asks" in " ".join(note["message"] for note in done.json["notes"])
    # one look-up, which test_parts shows to be for numbers only, and no connection
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["socket.getaddrinfo"]


# settings and variables


@pytest.mark.parametrize(
    ("env", "code", "message", "remedy"),
    [
        ({"VLLM_PORT": "tcp://10.0.0.1:8000"}, "setting-invalid", "Kubernetes", "enableServiceLinks: false"),
        ({"VLLM_MAX_MODEL_LEN": "many"}, "setting-invalid", "VLLM_MAX_MODEL_LEN='many'", "settings.md"),
        ({"VLLMRT_SETTINGS_FILE": "/nowhere.toml"}, "setting-invalid", "/nowhere.toml", "settings.md"),
        ({"VLLMRT_SETTINGS_FILE": "/"}, "setting-invalid", "is no file", "settings.md"),
        ({"VLLM_MODELS_DIRR": "x"}, "variable-unknown", "VLLM_MODELS_DIRR", "did you mean VLLM_MODELS_DIR?"),
        ({"VLLM_USE_V2": "1"}, "variable-unknown", "VLLM_USE_V2", "did you mean VLLM_USE_V1?"),
        ({"VLLM_QQQQQQQ": "1"}, "variable-unknown", "VLLM_QQQQQQQ", "unset it"),
        ({"VLLMRT_CONECTIONS": "4"}, "variable-unknown", "VLLMRT_CONECTIONS", "did you mean VLLMRT_CONNECTIONS?"),
        ({"VLLMRT_HOST": "127.0.0.1", "VLLM_HOST": "::1"}, "variables-disagree", "VLLMRT_HOST counts", "VLLM_HOST"),
        (
            {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b"},
            "variables-disagree",
            "HUGGINGFACE_HUB_CACHE means /b",
            "unset",
        ),
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "variables-disagree", "HF_HOME means /b/hub", "unset"),
        ({"LD_PRELOAD": "/nowhere/lib.so"}, "preload-missing", "/nowhere/lib.so", "LD_PRELOAD"),
        ({"VLLM_HOST": "0.0.0.0", "VLLMRT_REQUIRE_API_KEY": "1"}, "exposed", "without an API key", "VLLM_API_KEY"),  # noqa: S104
        ({"VLLM_HOST": "no host"}, "setting-invalid", "VLLM_HOST", "settings.md"),
        ({"VLLMRT_VLLM": "/nowhere/vllm"}, "engine-missing", "does not exist", "pip install vllm"),
        ({"VLLMRT_VLLM": "/dev/null"}, "engine-missing", "cannot be executed", "pip install vllm"),
        ({"VLLM_CONFIG_FILE": "/nowhere.yaml"}, "config", "does not exist", "VLLM_CONFIG_FILE"),
        ({"VLLM_CONFIG_FILE": "/etc/hosts"}, "config", "takes no config called", "*.yaml"),
        ({"VLLM_MODEL_SOURCES": "local,acme"}, "source-missing", "'acme'", "hf-hub"),
        ({"VLLMRT_DISABLE_PLUGINS": "vllmrt"}, "validator-missing", "no validator", "VLLMRT_DISABLE_PLUGINS"),
        ({"VLLMRT_GPU_PROBES": "acme", "VLLM_SKIP_GPU_CHECK": "0"}, "not-looked-at", "gpus", "pip install"),
        ({"VLLM_MODELS_DIR": "/etc/hosts"}, "store-no-directory", "/etc/hosts is no directory", "VLLM_MODELS_DIR"),
        ({"VLLM_MODELS_DIR": "/etc/hosts/store"}, "store-no-directory", "cannot be made", "VLLM_MODELS_DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_variable_is_wrong(env: dict[str, str], code: str, message: str, remedy: str, doctor: Doctor) -> None:
    (problem,) = doctor(**env)
    assert problem["code"] == code
    assert message in problem["message"]
    assert remedy in problem["remedy"]


@pytest.mark.parametrize(
    ("env", "what"),
    [
        ({"HF_HUB_CACHE": "/a/hub", "HF_HOME": "/a"}, "caches that agree"),
        ({"VLLM_USE_V1": "1", "VLLM_API_KEY": "k"}, "variables of vLLM itself"),
        ({"VLLM_SERVICE_HOST": "10.0.0.1", "VLLMRT_PORT_80_TCP_ADDR": "10.0.0.1"}, "service links"),
        ({"VLLMRT_HOST": "::1", "VLLM_HOST": "::1"}, "two names that agree"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "localhost"}, "proxies"),
        ({"FLOX_ENV": "/nowhere", "VLLM_MODELS_DIR": "/tmp/not/there/yet"}, "a store that can be made"),  # noqa: S108
        ({"VLLM_LOGGING_LEVEL": ""}, "a variable that is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_problem(env: dict[str, str], what: str, doctor: Doctor) -> None:
    assert doctor(**env) == [], what


@pytest.mark.parametrize("content", ["port = ", 'port = "x"', "conections = 4", b"\xff"], ids=repr)
def test_the_settings_file_is_wrong(content: str | bytes, patient: Patient, doctor: Doctor) -> None:
    path = patient.home / "config" / "vllmrt" / "settings.toml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = doctor(VLLM_PORT=None)
    assert problem["code"] == "setting-invalid"
    assert str(path) in problem["message"]
    if content == "conections = 4":
        assert problem["remedy"] == "did you mean connections?"


def test_without_an_engine_only_what_is_very_like_one_of_ours_is_a_mistake(doctor: Doctor) -> None:
    found = doctor(VLLMRT_VLLM="/nowhere", VLLM_MODELS_DIRR="x", VLLM_USE_V2="1", VLLM_QQQQQQQ="1")
    assert [(one["code"], "VLLM_MODELS_DIRR" in one["message"]) for one in found] == [
        ("engine-missing", False),
        ("variable-unknown", True),
    ]


# the engine and its config


def test_an_engine_whose_environment_was_moved(patient: Patient, doctor: Doctor) -> None:
    patient.engine.write_text("#!/nowhere/python\n")
    (problem,) = doctor()
    assert problem["code"] == "engine-broken"
    assert "/nowhere/python does not exist" in problem["message"]
    assert "install vLLM again" in problem["remedy"]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("disable-log-requests: true\n", "config-key", "'disable-log-requests'"),
        ("max-num-seqz: 4\n", "config-key", "'max-num-seqz'"),
        ("- a\n", "config", "not a mapping"),
        ("a: [\n", "config", "not YAML"),
        ("", "config", "has no key"),
    ],
)
def test_a_config_that_the_engine_rejects(
    content: str, code: str, message: str, patient: Patient, doctor: Doctor
) -> None:
    patient.cache.mkdir(parents=True)
    (patient.cache / "vllm-config.yaml").write_text(content)
    (problem,) = doctor()
    assert problem["code"] == code
    assert message in problem["message"]
    assert problem["remedy"]


def test_a_config_that_cannot_be_checked(patient: Patient) -> None:
    patient.cache.mkdir(parents=True)
    (patient.cache / "vllm-config.yaml").write_text("max-num-seqz: 4\n")
    patient.engine.write_text("#!/bin/sh\nexit 3\n")
    done = patient.run("doctor")
    assert "not checked: the flags of this vLLM are not known" in done.out


# the store


def test_leftovers_of_a_download(patient: Patient, doctor: Doctor) -> None:
    store = Store(patient.store)
    staging = stage(store, contents("old"), ModelRequest("org/old")).parent
    assert doctor() == []
    old = time.time() - 30 * 86400
    for path in [staging, *staging.rglob("*")]:
        os.utime(path, (old, old))
    (problem,) = doctor()
    assert problem["code"] == "store-leftovers"
    assert "was last written to 30 days ago" in problem["message"]
    assert "vllmrt models gc" in problem["remedy"]


def mounted(where: Path, options: str) -> tuple[str, ...]:
    """Return what starts a program with a file system of its own at a place."""
    if not can_mount():
        pytest.skip("may not mount")
    where.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o {options} none "{where}" && exec "$@"'
    return ("unshare", "-m", "/bin/sh", "-c", script, "sh")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [("ro", "store-read-only", "is read-only"), ("size=1m", "store-full", "only 1.0 MB")],
)
def test_the_file_system_of_the_store(options: str, code: str, message: str, patient: Patient, doctor: Doctor) -> None:
    (problem,) = doctor(prefix=mounted(patient.store, options), PATH=os.defpath)
    assert problem["code"] == code
    assert message in problem["message"]
    assert "VLLM_MODELS_DIR" in problem["remedy"]


def test_a_store_that_is_mounted_noexec(patient: Patient) -> None:
    done = patient.run("doctor", "--json", prefix=mounted(patient.store, "noexec,size=4g"), PATH=os.defpath)
    assert own(done) == []
    assert (done.json["store"]["filesystem"], done.json["store"]["options"]) == ("tmpfs", ["noexec"])
    assert "noexec" in " ".join(note["message"] for note in done.json["notes"])


def test_the_store_of_another_user(patient: Patient, as_other: list[str], doctor: Doctor) -> None:
    (problem,) = doctor(prefix=tuple(as_other), PATH=os.defpath)
    assert problem["code"] == "store-not-writable"
    assert "12345" in problem["message"]
    assert str(patient.store) in problem["remedy"]


# the machine


def test_few_open_files(doctor: Doctor) -> None:
    (problem,) = doctor(prefix=("prlimit", "--nofile=1024:1024"), PATH=os.defpath)
    assert (problem["code"], problem["section"]) == ("open-files", "machine")
    assert "1024" in problem["message"]
    assert "LimitNOFILE" in problem["remedy"]


@pytest.mark.parametrize(("size", "gpus", "found"), [("64m", 1, True), ("512m", 1, False), ("512m", 2, True)])
def test_little_shared_memory(size: str, gpus: int, found: bool, doctor: Doctor) -> None:  # noqa: FBT001 - a row
    prefix = mounted(Path("/dev/shm"), f"size={size}")  # noqa: S108 - a mount of its own
    problems = doctor(prefix=prefix, PATH=os.defpath, VLLM_TENSOR_PARALLEL_SIZE=str(gpus))
    assert [one["code"] for one in problems] == ["shm"] * found
    assert all("--shm-size" in one["remedy"] for one in problems)


def test_no_proc(patient: Patient, doctor: Doctor, machine: Machine, port: int) -> None:
    machine.serve(port=port)  # while nothing listens, the kernel says so without /proc
    prefix = mounted(Path("/proc"), "size=1m")
    problems = doctor(prefix=prefix, PATH=os.defpath)
    codes = {one["section"]: one["code"] for one in problems}
    assert codes == {"machine": "proc", "port": "not-looked-at"}
    assert patient.run("doctor", "--json", prefix=prefix, PATH=os.defpath).json["orphans"] is None


def test_processes_of_others_are_hidden(patient: Patient, as_other: list[str], machine: Machine, port: int) -> None:
    script = 'mount -t proc -o hidepid=2 none /proc && exec "$@"'
    prefix = ("unshare", "-m", "/bin/sh", "-c", script, "sh")
    if not can_mount():
        pytest.skip("may not mount")
    machine.serve(port=port)
    done = patient.run("doctor", "--json", prefix=(*prefix, *as_other), PATH=os.defpath)
    assert done.json["machine"]["proc"] == "hidden"
    assert "hidepid=" in " ".join(note["message"] for note in done.json["notes"])
    assert done.json["port"]["state"] == "unattributable"
    done = patient.run("doctor", "--json", prefix=prefix, PATH=os.defpath)
    assert (done.json["machine"]["proc"], done.json["port"]["state"]) == ("seen", "would_stop")


@root_only
def test_a_store_that_may_not_be_looked_at(patient: Patient, as_other: list[str], doctor: Doctor) -> None:
    closed = patient.root / "closed"
    closed.mkdir(mode=0o700)
    problems = doctor(prefix=tuple(as_other), PATH=os.defpath, VLLM_MODELS_DIR=str(closed / "store"))
    (problem,) = problems
    assert (problem["code"], problem["section"]) == ("not-looked-at", "store")
    assert str(closed) in problem["message"]
    assert problem["remedy"] == "let uid 12345 look there"


# the port and what is left of engines


def test_a_foreign_program_has_the_port(machine: Machine, patient: Patient, doctor: Doctor, port: int) -> None:
    server = machine.start([sys.executable, str(machine.standin), "--password=hidden"], LISTEN=f"127.0.0.1:{port}")
    (problem,) = doctor()
    assert problem["code"] == "port-foreign"
    assert f"process {server.pid} ({Path(sys.executable).name} standin.py)" in problem["message"]
    assert "VLLM_PORT" in problem["remedy"]
    assert patient.run("doctor", "--json").json["port"]["holders"][0]["pid"] == server.pid
    assert server.poll() is None


def test_a_vllm_of_ours_has_the_port(machine: Machine, patient: Patient, doctor: Doctor, port: int) -> None:
    server = machine.serve(port=port)
    assert doctor() == []
    assert patient.run("doctor", "--json").json["port"]["state"] == "would_stop"
    assert f"process {server.pid} ({Path(sys.executable).name} vllm serve)" in patient.run("doctor").out
    assert server.poll() is None


def test_another_user_has_the_port(machine: Machine, as_other: list[str], doctor: Doctor, port: int) -> None:
    script = [sys.executable, str(machine.vllm), "serve", "model"]
    machine.start(script, wrapper=as_other, LISTEN=f"127.0.0.1:{port}")
    (problem,) = doctor()
    assert problem["code"] == "port-other-user"
    assert "VLLM_ALLOW_OTHER_UID_KILL" in problem["remedy"]
    problems = doctor(VLLM_ALLOW_OTHER_UID_KILL="1")
    assert problems == []


def test_a_process_that_cannot_be_seen_has_the_port(
    machine: Machine, as_other: list[str], doctor: Doctor, port: int
) -> None:
    machine.serve(port=port)
    problems = doctor(prefix=tuple(as_other), PATH=os.defpath)
    (problem,) = [one for one in problems if one["section"] == "port"]
    assert problem["code"] == "port-unattributable"
    assert "uid 0" in problem["message"]
    assert "run as that user or root" in problem["remedy"]


@pytest.mark.usefixtures("only_orphans")
@pytest.mark.skipif(Path("/proc/1/comm").read_text().startswith("python"), reason="orphans could be init's own here")
def test_an_engine_without_its_launcher(machine: Machine, patient: Patient) -> None:
    launcher = machine.serve(ENGINE="VLLM::EngineCore")
    (engine,) = children(launcher.pid)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1] == "1")
    done = patient.run("doctor", "--json")
    assert done.code == 1
    assert engine in [one["pid"] for one in done.json["orphans"]]
    (problem,) = [one for one in done.json["problems"] if f"process {engine} " in one["message"]]
    assert problem["code"] == "orphan"
    assert "--reap-orphans" in problem["remedy"]
    assert Path(f"/proc/{engine}").exists()


# GPUs


@pytest.mark.parametrize(
    ("stub", "label", "expected"),
    [
        ("", "", None),
        ("hot", "", "gpu-temperature"),
        ("none", "", "gpu-none"),
        ("full container", "", None),
        ("not-loaded", "+cu128", "gpu-unseen"),
        ("not-loaded", "+cpu", None),
        ("not-loaded", "", None),
        ("segv", "+cu128", "gpu-unseen"),
    ],
)
def test_gpus(stub: str, label: str, expected: str | None, patient: Patient, doctor: Doctor, tmp_path: Path) -> None:
    """Without a label it is not known what vLLM was built for, and no GPU is no problem."""
    for path in patient.engine.parents[1].glob("lib/python3.11/site-packages/vllm*"):
        path.rename(tmp_path / f"gone.{path.name}")
    install_engine(patient, label)
    library = compile_nvml(tmp_path / "nvml")
    problems = doctor(NVML_STUB=stub, LD_LIBRARY_PATH=str(library), VLLM_SKIP_GPU_CHECK="0")
    assert [one["code"] for one in problems] == ([expected] if expected else [])
    assert all(one["remedy"] for one in problems)
    if stub == "full container":
        assert (
            "less than 4"
            in patient.run("doctor", NVML_STUB=stub, LD_LIBRARY_PATH=str(library), VLLM_SKIP_GPU_CHECK="0").out
        )


def test_too_few_gpus(patient: Patient, doctor: Doctor, tmp_path: Path) -> None:
    for path in patient.engine.parents[1].glob("lib/python3.11/site-packages/vllm*"):
        path.rename(tmp_path / f"gone.{path.name}")
    install_engine(patient, "")
    library = {"LD_LIBRARY_PATH": str(compile_nvml(tmp_path / "nvml")), "VLLM_SKIP_GPU_CHECK": "0"}
    sizes = {"NVML_STUB": "eight", "VLLM_TENSOR_PARALLEL_SIZE": "4", "VLLM_PIPELINE_PARALLEL_SIZE": "4"}
    (problem,) = [one for one in doctor(**library, **sizes) if one["section"] == "gpus"]
    assert problem["code"] == "gpu-number"
    assert "needs 16 GPUs, and 8 are visible" in problem["message"]
    several = doctor(**library, **sizes, LWS_GROUP_SIZE="2")
    assert [one for one in several if one["section"] == "gpus"] == []


# plugins

BROKEN = {
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "exits": ("import os\nos._exit(0)", "it ended without an answer"),
    "leaves": ("raise SystemExit(0)", "SystemExit"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    "hangs": ("import time\ntime.sleep(1000)", "no answer in 2 s"),
    "hangs deaf": (
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1000)",
        "no answer in 2 s",
    ),
    "no hook": ("", "offers no source called acme"),
    "another hook": ("import vllmrt\n@vllmrt.hookimpl\ndef vllmrt_sauces(): return ()", "vllmrt_sauces"),
    "other arguments": ("import vllmrt\n@vllmrt.hookimpl\ndef vllmrt_sources(sattings): return ()", "sattings"),
    "no probe": (
        "import vllmrt\nclass One:\n    name = 'acme'\n@vllmrt.hookimpl\ndef vllmrt_sources(): yield One()",
        "offers no source called acme, but One",
    ),
    "no module": (None, "ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_is_broken(name: str, patient: Patient, doctor: Doctor) -> None:
    source, message = BROKEN[name]
    groups = {"vllmrt.sources": {"acme": "acme_broken"}}
    fake_dist(patient.site, "acme-broken", "1.2", groups, {"acme_broken": source} if source is not None else {})
    (problem,) = doctor(VLLMRT_PLUGIN_TIMEOUT="2")
    assert problem["code"] == "plugin-broken"
    assert problem["message"].startswith("acme-broken 1.2: ")
    assert message in problem["message"]
    assert "VLLMRT_DISABLE_PLUGINS=acme-broken" in problem["remedy"]
    told = patient.run("doctor", "--json", VLLMRT_PLUGIN_TIMEOUT="2").json["plugins"]
    states = {one["name"]: one["state"] for one in told}
    assert states.pop("acme") == "broken"
    assert set(states.values()) == {"loaded", "enabled"}
    assert doctor(VLLMRT_DISABLE_PLUGINS="acme-broken") == []


def test_the_time_that_an_import_takes(patient: Patient) -> None:
    source = (
        "import time\ntime.sleep(0.3)\nprint('hello')\nimport vllmrt\nclass Acme:\n    name = 'acme'\n"
        "    def probe(self, request): return ()\n@vllmrt.hookimpl\ndef vllmrt_sources(): yield Acme()"
    )
    fake_dist(patient.site, "acme", "1", {"vllmrt.sources": {"acme": "acme"}}, {"acme": source})
    done = patient.run("doctor", "--json")
    times = {one["name"]: one["ms"] for one in done.json["plugins"]}
    assert 300 <= times.pop("acme") < 5000
    assert times.pop("vllmrt/tiny") is None
    assert all(time > 0 for time in times.values())


def test_an_ambient_plugin_that_ends_the_process_costs_only_what_needs_it(
    machine: Machine, patient: Patient, port: int
) -> None:
    groups = {"vllmrt.plugins": {"acme": "acme_exits"}}
    fake_dist(patient.site, "acme-exits", "1.2", groups, {"acme_exits": "import os\nos._exit(0)"})
    machine.serve(port=port)
    problems = {one["section"]: one["code"] for one in own(patient.run("doctor", "--json"))}
    assert problems == {"port": "not-looked-at", "plugins": "plugin-broken"}


def test_two_plugins_claim_a_name(patient: Patient, doctor: Doctor) -> None:
    source = "import vllmrt\nclass A:\n    name = 'local'\n    def probe(self, request): return ()\n"
    source += "@vllmrt.hookimpl\ndef vllmrt_sources(): yield A()"
    fake_dist(patient.site, "acme-local", "1.2", {"vllmrt.sources": {"local": "acme_local"}}, {"acme_local": source})
    (problem,) = doctor()
    assert problem["code"] == "plugin-claimed"
    assert "acme-local 1.2" in problem["message"]
    assert "uninstall one" in problem["remedy"]


def test_everything_is_broken_at_once(doctor: Doctor) -> None:
    codes = {
        one["code"]
        for one in doctor(
            prefix=mounted(Path("/proc"), "size=1m"),
            PATH=os.defpath,
            VLLMRT_SETTINGS_FILE="/nowhere",
            VLLM_PORT="tcp://1.2.3.4:80",
            VLLM_MAX_MODEL_LEN="-1",
            VLLMRT_VLLM="/nowhere",
            VLLM_MODELS_DIR="/dev/null/store",
            VLLM_CONFIG_FILE="/dev/null",
            HOME=None,
            VLLMRT_DISABLE_PLUGINS="vllmrt",
        )
    }
    assert codes >= {"setting-invalid", "engine-missing", "config", "proc", "validator-missing", "store-no-directory"}


def test_a_vllm_for_cuda_from_which_all_gpus_are_hidden(patient: Patient, doctor: Doctor) -> None:
    install_engine(patient, "+cu129")
    site = patient.engine.parents[1] / "lib" / "python3.11" / "site-packages"
    (site / "vllm-0.32.0+cpu.dist-info").rmdir()
    (problem,) = doctor(CUDA_VISIBLE_DEVICES="", VLLM_SKIP_GPU_CHECK="0")
    assert (problem["code"], problem["remedy"]) == ("gpu-hidden", "unset CUDA_VISIBLE_DEVICES, or name GPUs in it")
