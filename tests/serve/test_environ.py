import ast
from pathlib import Path

import pytest

from vllmrt.errors import ServeRefused
from vllmrt.serve.environ import KNOWN_KEY, child_environment, exposure_warnings, is_loopback
from vllmrt.settings import Settings

ROWS = {field: annotation.__metadata__[-1] for field, annotation in Settings.__annotations__.items()}
OLD_NAMES = sorted(var.old for var in ROWS.values() if var.old and var.old.startswith("VLLM_"))
ENGINE_NAMES = {var.old for var in ROWS.values() if var.engine}
SERVICE_LINKS = {
    "VLLM_SERVICE_HOST": "10.0.0.1",
    "VLLM_SERVICE_PORT": "8000",
    "VLLM_SERVICE_PORT_HTTP": "8000",
    "VLLM_PORT": "tcp://10.0.0.1:8000",
    "VLLM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "VLLM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "VLLM_PORT_8000_TCP_PORT": "8000",
    "VLLM_PORT_8000_TCP_PROTO": "tcp",
    "VLLM_ROUTER_SERVICE_HOST": "10.0.0.2",
    "VLLM_ROUTER_SERVICE_PORT": "80",
    "VLLM_ROUTER_SERVICE_PORT_METRICS": "81",
    "VLLM_ROUTER_PORT": "udp://10.0.0.2:80",
    "VLLM_ROUTER_V2_PORT_80_UDP_PROTO": "udp",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "tcp://10.0.0.3:5600",
}


def child(environ, settings=None):
    return child_environment(environ, settings or Settings())


@pytest.fixture(scope="module")
def vllm_names(real_engine):
    """The keys of `environment_variables` in vllm/envs.py, read without importing it."""
    files = sorted(real_engine.parent.parent.glob("lib/python3*/site-packages/vllm/envs.py"))
    if not files:
        pytest.skip("vLLM's envs.py is not where its executable suggests")
    for node in ast.walk(ast.parse(files[0].read_text())):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "environment_variables":
            return {key.value for key in node.value.keys}
    pytest.fail("envs.py has no environment_variables")


@pytest.mark.parametrize("name", OLD_NAMES)
def test_our_names_do_not_reach_the_engine_unless_it_has_them_too(name):
    assert (name in child({name: "1"})) == (name in ENGINE_NAMES)


@pytest.mark.parametrize("name", ["VLLMRT_PORT", "VLLMRT_ANYTHING", "_VLLM_RESOLVED_MODEL", "_VLLM_RESOLVED_VIA"])
def test_names_of_our_own_are_removed(name):
    assert name not in child({name: "1"})


@pytest.mark.parametrize(("name", "value"), SERVICE_LINKS.items())
def test_service_links_are_removed(name, value):
    assert name not in child({name: value})


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "HTTPS_PROXY",
        "HF_HOME",
        "HF_TOKEN",
        "OMP_NUM_THREADS",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_CACHE_ROOT",
        "VLLM_HOST_IP",
        "VLLM_PLUGINS",
        "VLLM_NIXL_SIDE_CHANNEL_PORT",
        "VLLM_PROCESS_NAME_PREFIX",
        "KUBERNETES_SERVICE_HOST",
        "REDIS_PORT",
    ],
)
def test_everything_else_is_passed_on(name):
    assert child({name: "5600"})[name] == "5600"


def test_what_the_settings_decide():
    settings = Settings(
        api_key="s3cret",
        logging_level="DEBUG",
        prometheus_multiproc_dir=Path("/run/metrics"),
        cuda_visible_devices="1",
    )
    inherited = {"VLLM_API_KEY": "other", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "0"}
    assert child(inherited, settings) == {
        "VLLM_API_KEY": "s3cret",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "PROMETHEUS_MULTIPROC_DIR": "/run/metrics",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_HUB_OFFLINE": "1",
    }


def test_what_is_unset_is_not_invented():
    assert child({}) == {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    assert "HF_HUB_OFFLINE" not in child_environment({}, Settings(), offline=False)


def test_the_callers_environment_is_not_changed():
    environ = {"VLLM_PORT": "1"}
    child(environ)
    assert environ == {"VLLM_PORT": "1"}


def test_engine_marks_are_those_of_the_real_vllm(vllm_names):
    ours = set(OLD_NAMES)
    assert ours & vllm_names == ENGINE_NAMES | {"VLLM_PORT"}
    assert vllm_names >= ENGINE_NAMES


def test_no_variable_of_the_real_vllm_is_ever_removed(vllm_names):
    kept = child(dict.fromkeys(vllm_names, "5600"))
    assert vllm_names - set(kept) == {"VLLM_PORT"}


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("127.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing listens
        ("::", False),
        ("10.0.0.1", False),
        ("127.0.0.1.example.com", False),
        ("1270.0.0.1", False),
        ("localhost.example.com", False),
        ("fe80::1", False),
        ("a:b", False),
    ],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "key", "risky"),
    [
        ("127.0.0.1", None, False),
        ("127.0.0.1", KNOWN_KEY, False),
        ("10.0.0.1", "a key of my own", False),
        ("10.0.0.1", None, True),
        ("10.0.0.1", KNOWN_KEY, True),
        ("::", None, True),
    ],
)
def test_exposure(host, key, risky):
    warnings = exposure_warnings(Settings(host=host, api_key=key))
    assert bool(warnings) is risky
    strict = Settings(host=host, api_key=key, require_api_key=True)
    if not risky:
        assert exposure_warnings(strict) == []
        return
    assert host in warnings[0]
    with pytest.raises(ServeRefused, match="whoever reaches the port") as caught:
        exposure_warnings(strict)
    assert "VLLM_API_KEY" in caught.value.hint
