"""Settings from their layers, and the errors of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllmrt import layers
from vllmrt.errors import ConfigError
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    WriteFile = Callable[[str | bytes], dict[str, str]]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "vllmrt"


@pytest.fixture
def named_file(tmp_path: Path) -> WriteFile:
    """Write a settings file and return the environment that names it."""

    def write(content: str | bytes) -> dict[str, str]:
        path = tmp_path / "named.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"VLLMRT_SETTINGS_FILE": str(path)}

    return write


def fault(environ: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        layers.load(environ, flags)
    assert caught.value.exit_code == 1
    return str(caught.value)


LAYERS = ("flags", "VLLMRT_PORT", "VLLM_PORT", "port in the file")


@pytest.mark.parametrize("present", range(len(LAYERS)), ids=LAYERS)
def test_a_layer_wins_over_everything_below_it(present: int, named_file: WriteFile) -> None:
    file = named_file("port = 4")
    environ = {**file, "VLLM_PORT": "3", "VLLMRT_PORT": "2"}
    flags = {"port": "1"}
    for gone in range(present):
        if gone == 0:
            flags = {}
        else:
            del environ[LAYERS[gone]]
    loaded = layers.load(environ, flags)
    assert loaded.settings.port == present + 1
    origin = ("--port", "VLLMRT_PORT", "VLLM_PORT", f"port in {file['VLLMRT_SETTINGS_FILE']}")[present]
    assert loaded.origins["port"] == origin


def test_below_every_layer_is_the_default() -> None:
    loaded = layers.load({})
    assert loaded.settings == Settings()
    assert loaded.origins == {}
    assert loaded.warnings == ()


def test_other_defaults_are_below_every_layer_too(named_file: WriteFile) -> None:
    defaults = {"port": 9000}
    assert layers.load({}, defaults=defaults).settings == Settings(port=9000)
    assert layers.load({}, defaults=defaults).origins == {}
    assert layers.load(named_file("port = 9001\n"), defaults=defaults).settings.port == 9001
    assert layers.load({"VLLM_PORT": "9002"}, defaults=defaults).settings.port == 9002
    assert layers.read({"VLLM_PORT": "x"}, defaults=defaults).settings.port == 9000


def test_an_empty_variable_lets_the_next_layer_through(named_file: WriteFile) -> None:
    environ = {**named_file("port = 4"), "VLLMRT_PORT": "", "VLLM_PORT": ""}
    assert layers.load(environ).settings.port == 4
    assert layers.load({**environ, "VLLM_PORT": "3"}).settings.port == 3


def test_a_bad_value_that_a_better_layer_covers_does_no_harm() -> None:
    assert layers.load({"VLLM_PORT": "tcp://10.0.0.1:8000", "VLLMRT_PORT": "9000"}).settings.port == 9000


def test_a_flag_that_has_no_name_is_from_the_command_line() -> None:
    assert layers.load({}, {"model": "tiny"}).origins == {"model": "the command line"}


def test_all_bad_values_are_told_at_once_a_line_each(named_file: WriteFile) -> None:
    environ = {
        **named_file('max_model_len = "many"\nprot = 1'),
        "VLLM_PORT": "0",
        "VLLMRT_TENSOR_PARALLEL_SIZE": "x",
        "VLLM_DRY_RUN": "yes",
    }
    message = fault(environ, {"kv_cache_dtype": "fp 8"})
    lines = message.splitlines()
    assert len(lines) == 6
    for part in ("prot", "max_model_len in ", "VLLM_PORT='0'", "VLLMRT_TENSOR_PARALLEL_SIZE='x'", "VLLM_DRY_RUN='yes'"):
        assert sum(part in line for line in lines) == 1, part
    assert "--kv-cache-dtype='fp 8' is not one word" in lines


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:8000", "udp://10.0.0.1:53", "sctp://[fd00::1]:1"])
def test_a_service_link_of_kubernetes_is_recognised(link: str) -> None:
    message = fault({"VLLM_PORT": link})
    assert message.startswith(f"VLLM_PORT='{link}' is not an integer from 1 to 65535")
    assert "Kubernetes" in message
    assert "enableServiceLinks: false" in message


def test_another_bad_port_is_not_blamed_on_kubernetes() -> None:
    assert "Kubernetes" not in fault({"VLLM_PORT": "http"})


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(fault({"VLLM_PORT": "9" * 100_000})) < 300


@pytest.mark.parametrize(
    "value", ["a\x00b", "a\x1b[31mb", "a\nb", "a\u202eb", "a\udcffb", "a\u2028b", "a\x85b"], ids=ascii
)
@pytest.mark.parametrize("field", ["model", "host", "models_dir", "model_sources", "cuda_visible_devices"])
@pytest.mark.parametrize("layer", ["variable", "flag"])
def test_what_could_not_be_printed_is_refused(layer: str, field: str, value: str) -> None:
    name = next(row.names[0] for row in layers.rows() if row.field == field)
    message = fault({name: value}) if layer == "variable" else fault({}, {field: value})
    assert message.isprintable()


def test_a_path_of_the_environment_that_is_not_utf_8_is_refused_too() -> None:
    assert "VLLM_MODELS_DIR" in fault({"VLLM_MODELS_DIR": os.fsdecode(b"/srv/\xff")})


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/srv/../srv/models", "/srv/models"),
        ("~/models", "HOME/models"),
        ("models", "CWD/models"),
        ("./models", "CWD/models"),
    ],
)
def test_paths_are_absolute_whatever_the_current_directory_becomes(
    given: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    expected = path.replace("HOME", str(tmp_path / "home")).replace("CWD", str(tmp_path))
    assert layers.load({"VLLM_MODELS_DIR": given}).settings.models_dir == Path(expected)


def test_a_misspelt_name_of_ours_is_a_warning_with_what_was_meant() -> None:
    loaded = layers.load({"VLLMRT_MODEL_SUORCES": "local", "VLLM_UNKNOWN": "1", "OTHER": "1"})
    assert loaded.warnings == ("no setting is called 'VLLMRT_MODEL_SUORCES'; did you mean VLLMRT_MODEL_SOURCES?",)


def test_no_name_of_ours_is_warned_about() -> None:
    environ = {row.names[0]: "" for row in layers.rows()}
    assert layers.load(environ).warnings == ()


# the settings file


GOOD = [
    ('model = "Phi"', "model", "Phi"),
    ("port = 8080", "port", 8080),
    ('port = "8080"', "port", 8080),
    ("min_free_gpu_gb = 2", "min_free_gpu_gb", 2.0),
    ("min_free_gpu_gb = 0.5", "min_free_gpu_gb", 0.5),
    ("prefix_caching = true", "prefix_caching", True),
    ('prefix_caching = "yes"', "prefix_caching", True),
    ("dry_run = true", "dry_run", True),
    ('dry_run = "1"', "dry_run", True),
    ('model_sources = ["flox", "local"]', "model_sources", ("flox", "local")),
    ('model_sources = "flox,local"', "model_sources", ("flox", "local")),
    ('logging_level = "debug"', "logging_level", "DEBUG"),
    ('gpu_fail_on = ["memory"]', "gpu_fail_on", ("memory",)),
    ('models_dir = "/srv/models"', "models_dir", Path("/srv/models")),
]


@pytest.mark.parametrize(("line", "field", "value"), GOOD, ids=[line for line, _, _ in GOOD])
def test_the_settings_file_sets(line: str, field: str, value: object, named_file: WriteFile) -> None:
    assert getattr(layers.load(named_file(line)).settings, field) == value


BAD = [
    ('port = "http"', "port in "),
    ("port = true", "port in "),
    ("port = 8080.0", "port in "),
    ("port = 0", "from 1 to 65535"),
    ("port = []", "port in "),
    ("model = 5", "model in "),
    ("model = 2020-01-01", "model in "),
    ("[model]\nname = 1", "model in "),
    ("models_dir = 5", "is not a path"),
    ('model_sources = ["flox", 1]', "is not a comma-separated list"),
    ("model_sources = 5", "is not a comma-separated list"),
    ('gpu_fail_on = ["cold"]', "temperature, memory, utilization"),
    ('dry_run = "yes"', "is not 0 or 1"),
    ("stop_timeout = 1.5", "is not an integer"),
    ("start_bind_poll = nan", "is not a number"),
    ("start_bind_poll = inf", "is not a number"),
    ('host = ""', "is not one word"),
    ('model = "a\\u0000b"', "is not a printable text"),
    ('model = "a\\u001b[31m"', "is not a printable text"),
    ('model_sources = ["a\\u001b[31m"]', "is not a comma-separated list"),
    ('model_sources = ["a\\u0000"]', "is not a comma-separated list"),
    ("model_sources = []", "is not a comma-separated list"),
    ('model_sources = [""]', "is not a comma-separated list"),
]


@pytest.mark.parametrize(("line", "part"), BAD, ids=[line for line, _ in BAD])
def test_the_settings_file_is_checked_like_the_rest(line: str, part: str, named_file: WriteFile) -> None:
    environ = named_file(line)
    message = fault(environ)
    assert part in message
    assert environ["VLLMRT_SETTINGS_FILE"] in message
    assert message.isprintable()


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_message_does_not_contradict_itself(value: str, named_file: WriteFile) -> None:
    try:
        settings = layers.load(named_file(f"skip_tokenizer_check = {value}")).settings
    except ConfigError as error:
        assert f"={value} is not 0 or 1" not in str(error)  # noqa: PT017 - either outcome is sound
    else:
        assert settings.skip_tokenizer_check is (value == "1")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("prot", "port"), ("model_source", "model_sources"), ("VLLM_PORT", None), ("max-model-len", "max_model_len")],
)
def test_an_unknown_key_is_refused_with_what_was_meant(key: str, meant: str | None, named_file: WriteFile) -> None:
    message = fault(named_file(f"{key} = 1"))
    assert f"no setting is called {key!r}" in message
    assert meant is None or f"did you mean {meant}?" in message


def test_an_unknown_key_cannot_write_to_the_terminal(named_file: WriteFile) -> None:
    assert fault(named_file('"\\u001b]0;x\\u0007" = 1')).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        "port = ",
        "port 8000",
        "[",
        "port = 1\nport = 2",
        b"\xff\xfe",
        b"\x7fELF\x00",
        b'model = "\x00"',
        'a = "\\ud800"',
    ],
    ids=ascii,
)
def test_a_file_that_is_no_toml_is_named(content: str | bytes, named_file: WriteFile) -> None:
    environ = named_file(content)
    message = fault(environ)
    assert message.startswith(f"settings file {environ['VLLMRT_SETTINGS_FILE']} cannot be read")


def test_an_empty_file_sets_nothing(named_file: WriteFile) -> None:
    assert set(layers.load(named_file("# nothing\n")).origins) <= {"settings_file"}


def test_a_file_is_read_as_utf_8_whatever_the_locale(named_file: WriteFile) -> None:
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "import os; from vllmrt import layers; print(ascii(layers.load(os.environ).settings.model))"
    environ = named_file('model = "mod\u00e8le"') | locale | {"HOME": os.environ["HOME"]}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "'mod\\xe8le'\n", done.stderr


@pytest.mark.parametrize("how", ["variable", "flag"])
def test_a_file_that_is_named_must_be_there(how: str, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.toml")
    message = fault({"VLLMRT_SETTINGS_FILE": path}) if how == "variable" else fault({}, {"settings_file": path})
    assert message.startswith(f"settings file {path} does not exist")


@pytest.mark.parametrize(
    "name",
    ["~nobody-of-this-name/settings.toml", "/" + "a" * 5000, "/x\x1b[31m", ".", "/proc/self/mem", "/dev/null/x"],
    ids=["no such user", "too long", "control characters", "a directory", "unreadable", "below a file"],
)
def test_a_file_that_cannot_be_used_is_a_config_error(name: str) -> None:
    assert "\x1b" not in fault({"VLLMRT_SETTINGS_FILE": name})


class Expired(BaseException):
    """Not an OSError, which the code under test may catch."""


def test_a_pipe_is_no_settings_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def expired(*_: object) -> None:
        raise Expired

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        fault({"VLLMRT_SETTINGS_FILE": str(tmp_path / "pipe")})
    except Expired:
        pytest.fail("reading the pipe never ended")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_users_file_is_read_without_being_named(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "settings.toml").write_text("port = 4000")
    assert layers.load({}).settings.port == 4000


def test_the_named_file_is_read_instead_of_the_users(home: Path, named_file: WriteFile) -> None:
    home.mkdir(parents=True)
    (home / "settings.toml").write_text("port = 4000\nmax_model_len = 7")
    settings = layers.load(named_file("port = 5000")).settings
    assert (settings.port, settings.max_model_len) == (5000, 4096)


def test_the_flag_names_the_file_before_the_variable(named_file: WriteFile, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("port = 6000")
    assert layers.load(named_file("port = 5000"), {"settings_file": str(other)}).settings.port == 6000


@pytest.mark.parametrize(
    "name", ["settings.toml", "vllmrt.toml", ".vllmrt.toml", "vllmrt/settings.toml", "pyproject.toml"]
)
def test_no_file_is_found_in_the_current_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / name).parent.mkdir(parents=True)
    (here / name).write_text("port = 4000\n[tool.vllmrt]\nport = 4000" if "pyproject" in name else "port = 4000")
    monkeypatch.chdir(here)
    assert layers.load({}).settings.port == 8000


def test_a_model_on_the_command_line_replaces_the_id_of_the_environment() -> None:
    environ = {"VLLM_MODEL_ID": "a/b", "VLLM_MODEL_ORG": "org"}
    settings = layers.load(environ, {"model": "tiny", "model_id": None}).settings
    assert not settings.model_id
    assert settings.model == "tiny"


def test_what_cannot_be_used_is_told_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("conections = 4\nmax_model_len = 7\n")
    environ = {"VLLM_PORT": "tcp://10.0.0.1:8000", "VLLM_HOST": "::1", "VLLMRT_SETTINGS_FILE": str(file)}
    read = layers.read(environ)
    assert (read.settings.port, read.settings.host, read.settings.max_model_len) == (8000, "::1", 7)
    assert "port" not in read.origins
    unknown, link = read.faults
    assert unknown == (f"{file}: no setting is called 'conections'", "did you mean connections?")
    assert link.hint == "set enableServiceLinks: false in the pod, or give the Service another name"
    with pytest.raises(ConfigError) as caught:
        layers.load(environ)
    assert caught.value.message == f"{unknown}\n{link}"


def test_a_settings_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    read = layers.read({"VLLMRT_SETTINGS_FILE": str(tmp_path), "VLLM_HOST": "::1"})
    assert read.settings.host == "::1"
    assert [fault.message for fault in read.faults] == [f"settings file {tmp_path} does not exist, or is no file"]
