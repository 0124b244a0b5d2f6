"""What is kept of a resolve, and when."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt.errors import ModelNotFound
from vllmrt.events import PROGRESS, Event
from vllmrt.resolve import envfile, log
from vllmrt.settings import Settings
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = ModelRequest("org/name")


def run(cache: Path, error: BaseException | None = None, **settings: Any) -> tuple[list[dict[str, Any]], list[Event]]:
    """Resolve something, keep what is to be kept, and return the lines of the log and what was shown."""
    made = Settings(flox_env_cache=cache, **settings)
    shown: list[Event] = []

    def resolve() -> None:
        with log.kept(made, REQUEST, shown.append) as emit:
            emit(Event("resolve.attempt", "local", "skipped: nothing", data={"outcome": "skipped"}))
            emit(Event(PROGRESS, "hub", "50 %", data={"received": 1, "total": 2}))
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            resolve()
    else:
        resolve()
    path = log.path_for(made, REQUEST)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [], shown


def test_a_success_leaves_nothing(tmp_path: Path) -> None:
    lines, shown = run(tmp_path)
    assert (lines, list(tmp_path.iterdir())) == ([], [])
    assert [event.name for event in shown] == ["resolve.attempt", PROGRESS]


def test_a_success_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    lines, shown = run(tmp_path, keep_logs=True)
    assert [(line["event"], line["outcome"]) for line in lines] == [("resolve.attempt", "skipped")]
    path = log.path_for(Settings(flox_env_cache=tmp_path), REQUEST)
    assert shown[-1] == Event("resolve.log", "log", str(path), data={"path": str(path)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [ModelNotFound("none has it"), KeyboardInterrupt(), ValueError("a bug")], ids=repr)
def test_a_failure_is_always_kept(error: BaseException, keep: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    lines, _ = run(tmp_path, error, keep_logs=keep)
    assert [line["event"] for line in lines] == ["resolve.attempt", "error"]
    assert (lines[-1]["class"], lines[-1]["text"]) == (type(error).__name__, str(error))
    assert lines[-1].get("code") == getattr(error, "exit_code", None)
    assert all(line["time"] > 1_700_000_000 for line in lines)


def test_no_secret_is_kept(tmp_path: Path) -> None:
    signed = "https://host/a?X-Amz-Signature=5ecre7"
    settings = Settings(flox_env_cache=tmp_path, model_url="sftp://user:pa55w0rd@host/a")

    def resolve() -> None:
        with log.kept(settings, REQUEST, lambda _: None) as emit:
            emit(Event("resolve.attempt", "hub", f"failed: {signed}", data={"reason": f"pa55w0rd for {signed}"}))
            raise ModelNotFound(signed)

    with pytest.raises(ModelNotFound):
        resolve()
    kept = log.path_for(settings, REQUEST).read_text()
    assert [json.loads(line)["event"] for line in kept.splitlines()] == ["resolve.attempt", "error"]
    assert "https://host/a?***" in kept
    assert "5ecre7" not in kept
    assert "pa55w0rd" not in kept


@pytest.mark.parametrize("error", [None, ModelNotFound("none has it")], ids=repr)
def test_a_dry_run_keeps_nothing(error: ModelNotFound | None, tmp_path: Path) -> None:
    assert run(tmp_path, error, keep_logs=True, dry_run=True)[0] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, ModelNotFound("none has it")], ids=repr)
def test_a_log_that_cannot_be_written_is_no_failure_of_its_own(error: ModelNotFound | None, tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.write_text("")
    _, shown = run(cache, error, keep_logs=True)
    assert (shown[-1].name, shown[-1].level) == ("resolve.log", "warning")


def test_it_lies_beside_the_env_file(tmp_path: Path) -> None:
    settings = Settings(model_env_file=tmp_path / "model.env")
    assert log.path_for(settings, REQUEST) == tmp_path / "model.env.log"
    cached = Settings(flox_env_cache=tmp_path)
    assert log.path_for(cached, REQUEST).name == f"{envfile.path_for(cached, REQUEST).name}.log"
