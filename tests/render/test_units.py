"""The units: systemd's own parser reads back what was put in; quadlet's keys are those that podman knows."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, reject
from hypothesis import settings as bounds
from hypothesis import strategies as st
from render.kit import describe, quadlet_values, settings, unit_command, unit_dump, unit_environment

from vllmrt.errors import ConfigError
from vllmrt.identity import check_name
from vllmrt.render.units import container, service

VLLMRT = Path(sys.executable).with_name("vllmrt")

# podman-systemd.unit(5), section "Container units [Container]", of podman 5
KEYS = {*(Path(__file__).parents[1] / "data" / "quadlet-container-keys.txt").read_text().split()}


def unit(extra: tuple[str, ...] = (), executable: Path = VLLMRT, engine: Path | None = None, **fields: Any) -> str:
    return service(describe(settings(**fields), extra), executable, engine)["vllm.service"]


def quadlet(extra: tuple[str, ...] = (), **fields: Any) -> str:
    return container(describe(settings(**fields), extra), "vllmrt:0.1.0")["vllm.container"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: scripts/test-tools")
    return tmp_path_factory.mktemp("units")


def dumped(directory: Path, text: str) -> str:
    file = directory / "vllm.service"
    file.write_text(text)
    return unit_dump(file)


def test_systemd_takes_it(directory: Path) -> None:
    dump = dumped(directory, unit(port=8001, models_dir=Path("/srv/a b"), api_key="key-canary"))
    environment = unit_environment(dump)
    assert unit_command(dump) == [str(VLLMRT), "up"]
    assert environment == {
        "HOME": "/var/cache/vllmrt",
        "VLLM_MODEL_ORG": "org",
        "VLLM_MODEL": "name",
        "VLLM_MODELS_DIR": "/srv/a b",
        "VLLM_PORT": "8001",
    }
    for line in ("EnvironmentFile: /etc/vllmrt/vllm.env", "ReadWritePaths: -/srv/a b", "DynamicUser: yes"):
        assert line in dump
    assert "canary" not in dump


def test_a_fault_would_be_seen(directory: Path) -> None:
    file = directory / "vllm.service"
    file.write_text(unit().replace("KillMode=mixed", "KillModes=mixed"))
    with pytest.raises(AssertionError, match="KillModes"):
        unit_dump(file)


def test_the_store_is_the_service_s_own(directory: Path) -> None:
    environment = unit_environment(dumped(directory, unit()))
    assert environment["VLLM_MODELS_DIR"] == "/var/lib/vllmrt"
    assert environment["HOME"] == "/var/cache/vllmrt"


def test_an_engine_of_elsewhere_is_named(directory: Path) -> None:
    assert unit_environment(dumped(directory, unit(engine=Path("/opt/v/bin/vllm"))))["VLLMRT_VLLM"] == "/opt/v/bin/vllm"


def test_secrets_are_required_where_there_are_some() -> None:
    assert "\nEnvironmentFile=-/etc/vllmrt/vllm.env\n" in unit()
    assert "\nEnvironmentFile=/etc/vllmrt/vllm.env\n" in unit(hf_token="t")


PRINTABLE = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=40)
LINES = st.text(st.characters(codec="utf-8").filter(lambda char: char.isprintable() or char in "\n\t"), min_size=1)
SLOW = bounds(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(name=PRINTABLE, word=PRINTABLE, extra=LINES)
@example(name="$(x) `y` %h %% ${HOME}", word="a\"b'c\\d $HOME ; # &", extra="a\nb\tc $X ${Y} %n \\n\"'")
@example(name="%", word="\\", extra="$")
@example(name="a", word="'", extra='"')
def test_systemd_reads_back(name: str, word: str, extra: str, directory: Path) -> None:
    deployment = hostile(name, word, extra)
    dump = dumped(directory, service(deployment, VLLMRT, None)["vllm.service"])
    environment = unit_environment(dump)
    assert (environment["VLLM_MODEL"], environment["VLLM_SERVED_MODEL_NAME"]) == (name, word)
    assert unit_command(dump) == [str(VLLMRT), "up", "--", "--flag", extra]


@bounds(deadline=None)
@given(name=PRINTABLE, word=PRINTABLE, extra=LINES)
@example(name="$(x) `y` %h %% ${HOME}", word="a\"b'c\\d $HOME ; # &", extra="a\nb\tc $X ${Y} %n \\n\"'")
def test_quadlet_reads_back(name: str, word: str, extra: str) -> None:
    text = container(hostile(name, word, extra), "i")["vllm.container"]
    environment = dict(pair.split("=", 1) for pair in quadlet_values(text, "Environment"))
    assert (environment["VLLM_MODEL"], environment["VLLM_SERVED_MODEL_NAME"]) == (name, word)
    assert quadlet_values(text, "Exec") == ["up", "--", "--flag", extra]
    assert len(re.findall(r"^\[", text, re.MULTILINE)) == 4


def hostile(name: str, word: str, extra: str):
    try:
        check_name(name, "name")
        return describe(settings(model_id=f"org/{name}", served_model_name=word), ["--flag", extra])
    except ConfigError:
        reject()


def test_a_program_that_no_unit_can_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no unit can name"):
        unit(executable=Path("/a\nb/vllmrt"))


# quadlet


def test_its_keys_are_known() -> None:
    text = quadlet(("--seed", "1"), port=8001, api_key="key-canary", tensor_parallel_size=4)
    section = text.partition("[Container]\n")[2].partition("[")[0]
    keys = [line.partition("=")[0] for line in section.splitlines() if line and not line.startswith("#")]
    assert set(keys) - KEYS == set()
    assert {"Image", "Exec", "Environment", "Secret", "PublishPort", "Volume", "ReadOnly"} <= set(keys)
    assert quadlet_values(text, "Secret") == ["vllm-api-key,type=env,target=VLLM_API_KEY"]
    assert quadlet_values(text, "ShmSize") == ["8g"]
    # the image may have another program of its own, as vLLM's has
    assert (quadlet_values(text, "Entrypoint"), quadlet_values(text, "Exec")) == (
        ["vllmrt"],
        ["up", "--", "--seed", "1"],
    )
    assert "canary" not in text


def test_what_a_library_reads_of_the_credentials_is_a_secret_too() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-key"}
    text = container(describe(settings(r2_bucket="b"), (), environ), "i")["vllm.container"]
    assert quadlet_values(text, "Secret") == [
        f"vllm-{name.lower().replace('_', '-')},type=env,target={name}" for name in environ
    ]
    assert "canary" not in text
    assert quadlet_values(container(describe(settings(), (), environ), "i")["vllm.container"], "Secret") == []


def test_what_the_service_writes_is_writable_for_it_and_flox_is_left_out() -> None:
    text = unit(
        metrics_file=Path("/var/lib/node/vllm.prom"),
        preflight_lockfile=Path("/run/lock/vllm"),
        flox_env=Path("/home/u/.flox/run"),
        flox_env_cache=Path("/home/u/.flox/cache"),
    )
    paths = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ReadWritePaths=")]
    assert paths == ["-/var/lib/node", "-/run/lock"]
    assert "flox" not in text.partition("[Service]")[2].lower()


@pytest.mark.parametrize("extra", [("--ssl-certfile", "c"), ("--ssl_keyfile=k",), ("--uds", "s")])
def test_a_server_that_speaks_no_plain_http_is_warned_of(extra: tuple[str, ...]) -> None:
    (warning,) = describe(settings(), extra, {}).warnings
    assert "plain HTTP" in warning


def test_what_it_says_to_systemd_is_valid(directory: Path) -> None:
    """The sections that quadlet passes on, with what it would put in."""
    text = quadlet()
    passed = re.sub(r"\[Container\]\n.*?\n\n", "", text, flags=re.DOTALL)
    file = directory / "vllm.service"
    file.write_text(passed.replace("[Service]\n", "[Service]\nType=notify\nExecStart=/bin/true\n"))
    unit_dump(file)


@pytest.mark.parametrize(
    ("host", "published"),
    [
        ("127.0.0.1", "127.0.0.1:8000:8000"),
        ("localhost", "127.0.0.1:8000:8000"),
        ("0.0.0.0", "0.0.0.0:8000:8000"),
        ("::1", "[::1]:8000:8000"),
        ("[::]", "[::]:8000:8000"),
    ],
)
def test_the_port_is_published_where_the_settings_say(host: str, published: str) -> None:
    text = quadlet(host=host)
    assert quadlet_values(text, "PublishPort") == [published]


@pytest.mark.parametrize("host", ["example.org", "1.2.3", "%h", "$X"])
def test_a_host_that_podman_cannot_publish_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="publishes no port"):
        quadlet(host=host)


def test_a_store_of_the_user_s_is_a_volume_as_it_is() -> None:
    assert quadlet_values(quadlet(models_dir=Path("/srv/100%")), "Volume")[0] == "/srv/100%:/models"
    assert quadlet_values(quadlet(), "Volume")[0] == "vllm-models:/models:U"


@pytest.mark.parametrize("path", ["/a b", "/a:b", "/a$b", "/a,b", '/a"b', "/a\\b"])
def test_a_store_that_is_no_volume_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        quadlet(models_dir=Path(path))
