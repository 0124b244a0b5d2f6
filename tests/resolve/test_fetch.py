"""From a remote listing to a published model, through the command line, with a plugin as a stranger would write it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from remoteplugin import asked, install

from vllmrt.events import PROGRESS, Event
from vllmrt.resolve.fetch import Fetcher
from vllmrt.resolve.manifest import FileState
from vllmrt.resolve.reporting import Reporter
from vllmrt.resolve.reuse import Reuse, reuse
from vllmrt.resolve.store import Published, Store
from vllmrt.settings import Settings
from vllmrt.testing import FakeSource, fake_dist, fingerprint, make_model
from vllmrt.testing.models import write_sums
from vllmrt.transfer.engine import Progress
from vllmrt.types import ModelRequest, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLMRT = str(Path(sys.executable).with_name("vllmrt"))
MIB = 1 << 20


class Rig:
    """An origin with one model, and an empty store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = root / "origin"
        self.store = root / "models"
        install(root / "site", self.origin)
        self.model = make_model(self.origin / "llama", shards=3)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_", "XDG_"))}
        self.env = kept | {
            "HOME": str(root / "home"),
            "PYTHONPATH": str(root / "site"),
            "VLLM_MODELS_DIR": str(self.store),
            "VLLM_MODEL_SOURCES": "acme",
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    @property
    def published(self) -> Path:
        return self.store / "llama"

    def resolve(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [VLLMRT, "resolve", "acme/llama", *args]
        return subprocess.run(command, env=self.env | env, capture_output=True, text=True, check=False)

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        command = [VLLMRT, "resolve", "acme/llama"]
        return subprocess.Popen(command, env=self.env | env, stdout=null, stderr=null)

    def whole(self) -> bool:
        wanted = {path.relative_to(self.model): path.read_bytes() for path in self.model.rglob("*") if path.is_file()}
        there = {
            path.relative_to(self.published): path.read_bytes()
            for path in self.published.rglob("*")
            if path.is_file() and path.name != ".vllmrt.json"
        }
        return wanted == there

    def fetched(self) -> int:
        return sum(stop - start for _, start, stop in asked(self.origin))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_model_is_fetched_proven_and_published(rig: Rig) -> None:
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(rig.published)
    assert rig.whole()
    manifest = json.loads((rig.published / ".vllmrt.json").read_text())
    assert manifest["identity"] == "acme/llama"
    assert manifest["files"]["config.json"][2].startswith("sha256:")
    assert not list((rig.store / ".staging").iterdir())


def test_the_second_time_no_byte_is_moved(rig: Rig) -> None:
    rig.resolve()
    before = asked(rig.origin)
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert "unchanged" in done.stderr
    assert asked(rig.origin) == before


def test_where_nothing_differs_nothing_is_staged(rig: Rig) -> None:
    """A second name in staging would keep the bytes of a model that is removed, and a copy would cost as much again."""
    rig.resolve()
    assert rig.resolve().returncode == 0
    assert {path.stat().st_nlink for path in rig.published.iterdir()} == {1}
    assert not list((rig.store / ".staging").iterdir())


def test_what_an_earlier_run_has_staged_goes_where_nothing_differs(rig: Rig) -> None:
    rig.resolve()
    store, request = Store(rig.store), ModelRequest("acme/llama")
    reuse(
        store.published(request),
        Reuse({"config.json": FileState(0, 0)}, (), identical=False),
        store.staging("acme/llama"),
    )
    assert (rig.published / "config.json").stat().st_nlink == 2
    assert rig.resolve().returncode == 0
    assert (rig.published / "config.json").stat().st_nlink == 1
    assert not list((rig.store / ".staging").iterdir())


def test_a_touched_file_is_read_once_and_whoever_waits_hears_of_it(rig: Rig) -> None:
    rig.resolve()
    for path in rig.published.iterdir():
        os.utime(path, ns=(0, 10**18))
    source, notes = FakeSource(rig.origin, name="acme"), list[str]()
    answer = source.probe(ModelRequest("llama"))
    assert not isinstance(answer, Skip)
    fetcher = Fetcher(Store(rig.store), Settings(), lambda _: None, notes.append)
    fetched = fetcher.fetch("acme", partial(source.open, answer[0]), answer[0], ModelRequest("acme/llama"))
    assert isinstance(fetched, Published)
    assert sorted(notes) == sorted(f"checking {path.name}" for path in rig.model.iterdir())


def test_whoever_waits_hears_of_what_is_only_checked() -> None:
    """What an earlier run has fetched is proven by ranges of no bytes; the time-out of a waiter counts from a note."""
    notes, events = list[str](), list[Event]()
    reporter = Reporter(events.append, notes.append, "acme", 3, [])
    deadline = time.monotonic() + 30
    while not notes and time.monotonic() < deadline:
        time.sleep(0.05)
        reporter(Progress(0, 1, 0))
    assert "1/3 verified" in notes[0]
    assert [(event.name, event.data["total"], event.data["verified"]) for event in events] == [(PROGRESS, 0, 1)]


def test_a_changed_file_is_all_that_moves(rig: Rig) -> None:
    rig.resolve()
    before = len(asked(rig.origin))
    (rig.model / "generation_config.json").write_text('{"temperature": 0.5}')
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert {path for path, _, _ in asked(rig.origin)[before:]} == {"generation_config.json"}
    assert rig.whole()


def test_without_version_and_digest_the_size_says_nothing(rig: Rig) -> None:
    bare = {"ACME_NO_DIGEST": "1", "ACME_NO_VERSION": "1"}
    rig.resolve(**bare)
    path = rig.model / "generation_config.json"
    path.write_text(path.read_text().replace("1", "2"))
    done = rig.resolve(**bare)
    assert done.returncode == 0, done.stderr
    assert rig.whole()


def test_a_model_that_was_only_touched_is_read_and_not_fetched(rig: Rig) -> None:
    """As a copy that keeps no times leaves it; where other bytes lie, they are fetched."""
    rig.resolve()
    before = asked(rig.origin)
    for path in rig.published.rglob("*"):
        os.utime(path, ns=(0, 10**18))
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert asked(rig.origin) == before
    files = json.loads((rig.published / ".vllmrt.json").read_text())["files"]
    assert {state[1] for state in files.values()} == {10**18}, "so that they are not read again"
    shard = rig.published / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert rig.resolve().returncode == 0
    assert {path for path, _, _ in asked(rig.origin)[len(before) :]} == {shard.name}
    assert rig.whole()


def test_what_vllm_does_not_load_stays_where_it_is(rig: Rig) -> None:
    (rig.model / "original").mkdir()
    for name in ("original/consolidated.00.pth", "pytorch_model.bin", "model.onnx", "flax_model.msgpack"):
        (rig.model / name).write_bytes(b"x" * 100)
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    assert not (rig.published / "original").exists()
    assert not (rig.published / "pytorch_model.bin").exists()


def test_include_and_exclude_override_the_choice(rig: Rig) -> None:
    (rig.model / "notes.md").write_text("x")
    assert rig.resolve("--exclude", "*.md,generation_*").returncode == 0
    assert not (rig.published / "notes.md").exists()
    assert not (rig.published / "generation_config.json").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a\\b", "x" * 4097, "dir/", "CONFIG.json", "config.json/x", "a\0b"]
)
def test_a_hostile_name_is_refused_and_nothing_is_written(rig: Rig, name: str) -> None:
    (rig.origin / "hostile.json").write_text(json.dumps([name]))
    done = rig.resolve()
    assert done.returncode == 10, done.stderr
    assert "acme      failed:" in done.stderr
    assert asked(rig.origin) == []
    assert not rig.published.exists()


def test_what_the_store_keeps_for_itself_is_passed_over(rig: Rig) -> None:
    (rig.model / ".vllmrt.json").write_text("{}")
    (rig.model / "__pycache__").mkdir()
    (rig.model / "__pycache__" / "x.pyc").write_text("x")
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert not (rig.published / "__pycache__").exists()
    assert rig.resolve().stderr.count("unchanged") == 1


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.json", "config.json: is missing"),
        ("tokenizer.json", "no tokenizer in"),
        ("model*", "no weights"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_is_no_model_by_its_names_is_not_fetched(rig: Rig, gone: str, said: str, *, dry: bool) -> None:
    for path in rig.model.glob(gone):
        path.unlink()
    (rig.model / "llama-Q4_K_M.bin.part").write_bytes(b"0" * 100_000)
    done = rig.resolve(*["--dry-run"] * dry)
    assert done.returncode == 11, done.stderr
    assert "rejected" in done.stderr
    assert said in done.stderr
    assert {path for path, _, _ in asked(rig.origin)} <= {"model.safetensors.index.json"}  # which says what is chosen
    assert not rig.published.exists()


def test_a_list_of_digests_may_name_what_is_not_fetched(rig: Rig) -> None:
    (rig.model / "pytorch_model.bin").write_bytes(b"0" * 1000)
    write_sums(rig.model)
    for env in ({}, {"XDG_CACHE_HOME": str(rig.root / "another")}):  # and once more without what was proven
        done = rig.resolve(**env)
        assert done.returncode == 0, done.stderr
        assert "pytorch_model.bin" in done.stderr or not env
    assert not (rig.published / "pytorch_model.bin").exists()


def test_a_damaged_model_is_not_published(rig: Rig) -> None:
    shard = rig.model / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = rig.resolve()
    assert done.returncode == 11
    assert "model-00002-of-00003.safetensors" in done.stderr
    assert not rig.published.exists()


def test_a_dry_run_says_what_would_be_fetched_and_writes_nothing(rig: Rig) -> None:
    done = rig.resolve("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would be fetched" in done.stderr
    assert asked(rig.origin) == []
    assert not rig.store.exists()


def test_a_users_own_directory_is_never_replaced(rig: Rig) -> None:
    mine = make_model(rig.store / "llama", layers=1)
    before = fingerprint(mine)
    done = rig.resolve()
    assert done.returncode == 0, done.stderr
    assert fingerprint(mine) == before
    assert Path(done.stdout.strip()).name.startswith("llama.")


RIVAL = """
import os, pathlib, vllmrt

class Rival:
    name = "rival"
    def check(self, tree):
        place = pathlib.Path(os.environ["VLLM_MODELS_DIR"], "llama")
        if not place.exists():
            place.mkdir()
            (place / ".vllmrt.json").write_text(os.environ["ACME_RIVAL"])
        return []

@vllmrt.hookimpl
def vllmrt_validators():
    yield Rival()
"""


def test_one_that_loses_the_race_for_a_name_takes_the_other(rig: Rig) -> None:
    """While it is validated another revision is published under the name that was free."""
    fake_dist(rig.root / "site", "rival", "1", {"vllmrt.plugins": {"rival": "rival"}}, {"rival": RIVAL})
    rival = {"version": 1, "identity": "acme/llama@v1", "source": "acme", "location": "there"}
    done = rig.resolve(ACME_RIVAL=json.dumps(rival))
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name.startswith("llama.")
    assert json.loads((path / ".vllmrt.json").read_text())["identity"] == "acme/llama"
    assert json.loads((rig.published / ".vllmrt.json").read_text()) == rival
    ranges = asked(rig.origin)
    assert len(ranges) == len(set(ranges)), "nothing is fetched twice"


def test_an_index_that_would_fill_the_memory_is_not_fetched(rig: Rig) -> None:
    with (rig.model / "model.safetensors.index.json").open("r+b") as index:
        index.truncate((1 << 27) + 1)
    done = rig.resolve()
    assert done.returncode == 10, done.stderr
    assert "at most 134,217,728 make sense" in done.stderr
    assert asked(rig.origin) == []


@pytest.fixture
def large(rig: Rig) -> Iterator[Rig]:
    """A model that takes a while: two files of 24 MiB more."""
    rng = random.Random(3)  # noqa: S311 - bytes that are the same in every run
    for number in (1, 2):
        (rig.model / f"adapter-{number}.dat").write_bytes(rng.randbytes(24 * MIB))
    return rig


def test_after_a_kill_only_what_was_in_flight_is_fetched_again(large: Rig) -> None:
    first = large.start(ACME_SLOW="0.003", VLLMRT_CONNECTIONS="2")
    journal = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        journal = next(iter((large.store / ".staging").glob("*/journal.jsonl")), None) if large.store.exists() else None
        if journal and journal.read_text().count('"stop":16777216'):
            break
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    before = len(asked(large.origin))
    done = large.resolve(VLLMRT_CONNECTIONS="2")
    assert done.returncode == 0, done.stderr
    assert large.whole()
    again = sum(stop - start for _, start, stop in asked(large.origin)[before:])
    size = sum(path.stat().st_size for path in large.model.iterdir())
    assert again <= size - 16 * MIB


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_moment_leaves_the_model_right_or_absent(large: Rig, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - as above
    for _ in range(3):
        process = large.start(ACME_SLOW="0.0005")
        time.sleep(rng.uniform(0.05, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert not large.published.exists() or large.whole()
    done = large.resolve()
    assert done.returncode == 0, done.stderr
    assert large.whole()


def test_sixteen_at_once_fetch_it_once(large: Rig) -> None:
    processes = [large.start() for _ in range(16)]
    assert [process.wait(60) for process in processes] == [0] * 16
    assert large.whole()
    size = sum(path.stat().st_size for path in large.model.iterdir())
    assert large.fetched() == size


@pytest.mark.parametrize(
    ("spelling", "said"), [("SHA-256", "8 by sha256"), ("CRC32", "8 noted by sha256, as crc32 cannot be checked here")]
)
def test_what_is_said_of_digests(rig: Rig, spelling: str, said: str) -> None:
    done = rig.resolve(ACME_DIGEST=spelling)
    assert done.returncode == 0, done.stderr
    assert f"8 files verified: {said}\n" in done.stderr
    assert "the source has no digest" not in done.stderr


def test_without_digests_the_bytes_are_hashed_into_the_manifest(rig: Rig) -> None:
    assert rig.resolve(ACME_NO_DIGEST="1").returncode == 0
    files = json.loads((rig.published / ".vllmrt.json").read_text())["files"]
    assert all(state[2].startswith("sha256:") for state in files.values())


def test_ctrl_c_ends_it_in_a_second_with_130(large: Rig) -> None:
    process = large.start(ACME_SLOW="0.1")
    time.sleep(1.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert time.monotonic() - begin < 1
    assert large.resolve().returncode == 0
    assert large.whole()


def test_a_model_that_changes_while_it_is_fetched_is_listed_again(rig: Rig) -> None:
    """The old listing's version is refused, as a store does with If-Match; the new one is fetched."""
    done = rig.resolve(ACME_CHANGES="config.json")
    assert done.returncode == 0, done.stderr
    assert "acme is listed again" in done.stderr
    assert rig.whole()
    assert json.loads((rig.published / "config.json").read_text())["changed"] is True


def test_a_source_that_fails_once_is_asked_again(rig: Rig) -> None:
    done = rig.resolve(ACME_FAILS_ONCE=str(rig.origin / "failed"))
    assert done.returncode == 0, done.stderr
    assert "acme is asked again: 503" in done.stderr
