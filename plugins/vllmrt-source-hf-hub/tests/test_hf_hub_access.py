"""Where the token comes from, and that it is nowhere to be read."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from vllmrt_source_hf_hub import access, vllmrt_sources
from vllmrt_source_hf_hub.refusals import Asked, Refusal, judge

from vllmrt.errors import SourceError, VllmrtError
from vllmrt.layers import load
from vllmrt.settings import Settings
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Client
    from fakehub import FakeHub

    Clients = Callable[..., Client]

MODEL, TOKEN = "org/name", "hf_UniqueTokenThatMustNotLeak0451"


def write(path: Path, text: str = f"{TOKEN}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_variable_wins_then_the_file_that_is_named_then_the_home(tmp_path: Path) -> None:
    places = {
        "usual": write(tmp_path / "home" / ".cache" / "huggingface" / "token", "hf_usual"),
        "home": write(tmp_path / "hf" / "token", "hf_home\n"),
        "path": write(tmp_path / "elsewhere", "  hf_path\n\n"),
    }
    environ: dict[str, str] = {}
    for name, variable in (("usual", {}), ("home", {"HF_HOME": "hf"}), ("path", {"HF_TOKEN_PATH": "elsewhere"})):
        environ |= {key: str(tmp_path / value) for key, value in variable.items()}
        found = access.find(load(environ).settings).token
        assert found
        assert (found.value, found.origin) == (f"hf_{name}", str(places[name]))
    found = access.find(load(environ | {"HF_TOKEN": "hf_variable"}).settings).token
    assert found
    assert (found.value, found.origin) == ("hf_variable", "HF_TOKEN")


def test_the_usual_place_is_where_huggingface_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HOME defaults to ``$XDG_CACHE_HOME/huggingface``."""
    write(tmp_path / "home" / ".cache" / "huggingface" / "token", "hf_an_old_one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "scratch"))
    assert access.find(load({}).settings).token is None
    write(tmp_path / "scratch" / "huggingface" / "token")
    found = access.find(load({}).settings).token
    assert found
    assert found.value == TOKEN


def test_a_token_file_that_is_sent(hub: FakeHub, client: Clients, model: Path, tmp_path: Path) -> None:
    hub.add(MODEL, model, private=True)
    hub.tokens[TOKEN] = {MODEL}
    assert client(hf_token_path=write(tmp_path / "token")).candidate().files


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_no_token_is_no_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        write(tmp_path / "token", content)
    found = access.find(Settings(hf_token_path=tmp_path / "token"))
    assert found.token is None
    assert found.headers == {}


def test_a_home_that_is_not_ours_is_no_error_but_a_file_that_was_named_is(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    assert access.find(Settings(hf_home=tmp_path)).token is None
    with pytest.raises(SourceError, match="cannot be read"):
        access.find(Settings(hf_token_path=tmp_path / "token"))


@pytest.mark.parametrize(
    "spoilt", [f"{TOKEN} {TOKEN}", f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN}é", f"{TOKEN}\0", TOKEN * 200]
)
@pytest.mark.parametrize("where", ["variable", "file"])
def test_what_is_no_token_is_refused_without_being_quoted(tmp_path: Path, spoilt: str, where: str) -> None:
    path = tmp_path / "token"
    path.write_text(spoilt, newline="")
    settings = Settings(hf_token=spoilt) if where == "variable" else Settings(hf_token_path=path)
    with pytest.raises(SourceError, match="does not hold a token") as caught:
        access.find(settings)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_an_endpoint_with_a_password_is_refused_without_being_quoted() -> None:
    with pytest.raises(SourceError, match="password") as caught:
        access.find(Settings(hf_endpoint="https://user:geheim@hub.example"))
    assert "geheim" not in f"{caught.value}{caught.value.hint}"


def everything(error: VllmrtError) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error.hint) + repr(vars(error))


@pytest.fixture
def output(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything that was logged or written so far."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("echo", ["X-Error-Message", "X-Error-Code", "Location", "Retry-After", "Link"])
@pytest.mark.parametrize("status", [200, 307, 400, 401, 403, 404, 418, 429, 500])
def test_a_token_that_the_endpoint_echoes_is_not_shown(
    hub: FakeHub, model: Path, output: Callable[[], str], status: int, echo: str
) -> None:
    hub.add(MODEL, model)
    hub.tokens[TOKEN] = {MODEL}
    text = f"bad {TOKEN}" if echo != "Location" else f"/a {TOKEN}"
    hub.fault("revision", status=status, headers={echo: text}, body=TOKEN.encode(), times=-1)
    (source,) = vllmrt_sources(Settings(hf_endpoint=hub.endpoint, hf_token=TOKEN))
    try:
        shown = repr(source.probe(ModelRequest(MODEL)))
    except SourceError as error:
        shown = everything(error)
    assert hub.seen
    assert TOKEN not in shown + output()


def test_no_repr_has_the_token(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    hub.tokens[TOKEN] = {MODEL}
    asker = client(hf_token=TOKEN)
    candidate = asker.candidate()
    found = access.find(Settings(hf_token=TOKEN))
    values: list[Any] = [candidate, asker.source, vars(asker.source), found, found.token, f"{found} {found.token}"]
    assert TOKEN not in repr(values)
    verdict = judge(Refusal(418, None, f"no {TOKEN}"), Asked(MODEL, "main", found))
    assert str(verdict).endswith("no ********")


FAULTS: list[dict[str, Any]] = [{"status": 403}, {"status": 503}, {"status": 416}, {"cut": "reset", "at": 0}]


@pytest.mark.parametrize("fault", FAULTS, ids=range(len(FAULTS)))
def test_neither_token_nor_signature_is_in_the_error_of_a_body(
    hub: FakeHub, client: Clients, model: Path, output: Callable[[], str], fault: dict[str, Any]
) -> None:
    hub.add(MODEL, model)
    hub.tokens[TOKEN] = {MODEL}
    shard = "model-00001-of-00002.safetensors"
    asker = client(hf_token=TOKEN)
    candidate = asker.candidate()
    hub.fault(shard, origin="cdn", times=-1, **fault)
    with pytest.raises((VllmrtError, OSError)) as caught:
        asker.read(candidate, shard)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + output()
    assert TOKEN not in shown
    assert "Signature" not in shown
    assert hub.calls(shard, origin="cdn")
