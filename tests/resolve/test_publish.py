"""A published model is the old one or the new one, whatever happens."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from storekit import REQUEST, contents, manifest_of, publish_model, read_model, stage

from vllmrt.errors import ConfigError, IntegrityError, LockTimeout
from vllmrt.resolve import disk, gc, inventory, manifest, recovery
from vllmrt.resolve import publish as publishing
from vllmrt.resolve.inventory import model_at
from vllmrt.resolve.publish import publish
from vllmrt.resolve.recovery import recover, settle
from vllmrt.resolve.store import Store
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD, NEW = contents("old"), contents("new", files=5)
OTHER = ModelRequest("org/other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def refuse(*codes: int) -> Any:
    """Return a renameat2 that a kernel or file system without it has."""

    def renameat2(source: Path, target: Path, flags: int) -> None:
        if flags in codes:
            raise OSError(errno.EINVAL, "Invalid argument", str(source), None, str(target))
        _real(source, target, flags)

    _real = disk.renameat2
    return renameat2


@pytest.fixture(params=["exchange", "no exchange", "no renameat2"])
def _renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"exchange": (), "no exchange": (disk.EXCHANGE,), "no renameat2": (disk.EXCHANGE, disk.NOREPLACE)}
    monkeypatch.setattr(disk, "renameat2", refuse(*missing[request.param]))


@pytest.mark.usefixtures("_renames")
def test_a_model_is_published_and_then_replaced(store: Store):
    target = publish_model(store, OLD)
    assert read_model(target) == OLD
    publish_model(store, NEW)
    assert read_model(target) == NEW
    assert os.listdir(store.root / ".staging") == []


@pytest.mark.usefixtures("_renames")
def test_the_manifest_is_what_a_warm_start_will_see(store: Store):
    target = store.target(REQUEST)
    final = publish(stage(store, OLD), target, manifest_of(OLD, revision="c0ffee"))
    assert manifest.of(target) == final
    assert final.revision == "c0ffee"
    assert manifest.unchanged(final, manifest_of(OLD)) is False
    seen = manifest.states(target)
    assert {path: (state.size, state.mtime_ns) for path, state in final.files.items()} == {
        path: (state.size, state.mtime_ns) for path, state in seen.items()
    }
    assert all(state.digest.startswith("sha256:") for state in final.files.values())


@pytest.mark.parametrize(("umask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_may_read_what_is_published_unless_the_umask_forbids_it(
    store: Store, umask: int, file_mode: int, directory_mode: int
):
    before = os.umask(umask)
    try:
        files = stage(store, OLD)
        assert stat.S_IMODE(files.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(files.parent.parent.stat().st_mode) == 0o700
        (files / "config.json").chmod(0o600)
        publish(files, target := store.target(REQUEST), manifest_of(OLD))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [target, *target.rglob("*")]}
    assert modes == {path: directory_mode if path.is_dir() else file_mode for path in modes}


@pytest.mark.parametrize("syncs", [True, False])
def test_bytes_are_synced_before_they_are_published(store: Store, monkeypatch: pytest.MonkeyPatch, syncs: bool):  # noqa: FBT001
    synced: list[str] = []
    real = disk.sync_path
    monkeypatch.setattr(disk, "sync_path", lambda path: (synced.append(os.fspath(path)), real(path)))
    if not syncs:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    target = publish_model(store, OLD)
    assert read_model(target) == OLD
    assert str(target.parent) in synced
    assert any("claim." in path for path in synced)
    assert any(path.endswith("sub/0.bin") for path in synced) is not syncs


def spoil_size(files: Path) -> None:
    (files / "config.json").write_bytes(b"longer than it was")


def spoil_missing(files: Path) -> None:
    (files / "config.json").unlink()


def spoil_extra(files: Path) -> None:
    (files / "sub/extra.bin").write_bytes(b"x")


def spoil_link(files: Path) -> None:
    (files / "config.json").unlink()
    (files / "config.json").symlink_to("/etc/passwd")


def spoil_directory_link(files: Path) -> None:
    (files / "sub").rename(files.parent / "elsewhere")
    (files / "sub").symlink_to(files.parent / "elsewhere")


def spoil_fifo(files: Path) -> None:
    (files / "config.json").unlink()
    os.mkfifo(files / "config.json")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "spoil", [spoil_size, spoil_missing, spoil_extra, spoil_link, spoil_directory_link, spoil_fifo]
)
def test_what_is_not_what_was_proven_is_not_published(store: Store, spoil: Any):
    target = publish_model(store, OLD)
    files = stage(store, NEW)
    spoil(files)
    with pytest.raises(IntegrityError):
        publish(files, target, manifest_of(NEW))
    assert read_model(target) == OLD
    assert files.is_dir()


def test_a_file_that_another_process_put_there_is_not_published(store: Store):
    files = stage(store, NEW)
    inodes = {path: (files / path).stat().st_ino for path in NEW}
    twin = files / "config.json.twin"
    twin.write_bytes(NEW["config.json"])
    twin.replace(files / "config.json")
    with pytest.raises(IntegrityError, match="replaced"):
        publish(files, store.target(REQUEST), manifest_of(NEW), inodes=inodes)
    inodes["config.json"] = (files / "config.json").stat().st_ino
    publish(files, store.target(REQUEST), manifest_of(NEW), inodes=inodes)


def yours(target: Path) -> None:
    target.mkdir()
    (target / "precious").write_text("x")


def garbage(target: Path) -> None:
    yours(target)
    (target / manifest.NAME).write_text("{")


def of_another(target: Path) -> None:
    yours(target)
    manifest.write(target / manifest.NAME, manifest_of({}, ModelRequest("other/name")))


def link(target: Path) -> None:
    yours(target.with_name("elsewhere"))
    manifest.write(target.with_name("elsewhere") / manifest.NAME, manifest_of({}))
    target.symlink_to("elsewhere")


def dangling(target: Path) -> None:
    target.symlink_to("nowhere")


def plain_file(target: Path) -> None:
    target.write_text("x")


@pytest.mark.parametrize("make", [yours, garbage, of_another, link, dangling, plain_file])
def test_what_is_not_ours_is_never_replaced(store: Store, make: Any):
    files, target = stage(store, NEW), store.root / "name"
    make(target)
    before = sorted((str(path), path.lstat().st_ino) for path in store.root.glob("[!.]*"))
    with pytest.raises(ConfigError, match="not replaced"):
        publish(files, target, manifest_of(NEW))
    assert sorted((str(path), path.lstat().st_ino) for path in store.root.glob("[!.]*")) == before
    assert read_model(files) == NEW


def test_a_directory_that_appears_meanwhile_is_not_replaced(store: Store, monkeypatch: pytest.MonkeyPatch):
    files, target = stage(store, NEW), store.root / "name"
    real = publishing._seal

    def seal(*arguments: Any) -> Any:
        yours(target)
        return real(*arguments)

    monkeypatch.setattr(publishing, "_seal", seal)
    with pytest.raises(LockTimeout, match="not replaced"):
        publish(files, target, manifest_of(NEW))
    assert (target / "precious").read_text() == "x"
    assert read_model(files) == NEW


def test_what_another_process_published_meanwhile_is_as_good(store: Store, monkeypatch: pytest.MonkeyPatch):
    target = publish_model(store, NEW)
    monkeypatch.setattr(publishing, "_PATIENCE", 0.1)
    gone = store.staging_path(REQUEST.identity) / "files"
    assert publish(gone, target, manifest_of(NEW)) == manifest.of(target)
    with pytest.raises(LockTimeout, match="has taken name away"):
        publish(gone, target, manifest_of(OLD))
    assert read_model(target) == NEW


def test_what_another_process_published_meanwhile_is_not_replaced_by_the_same(store: Store):
    target = publish_model(store, NEW)
    inode = target.stat().st_ino
    assert publish(stage(store, NEW), target, manifest_of(NEW)) == manifest.of(target)
    assert target.stat().st_ino == inode
    assert os.listdir(store.root / ".staging") == []
    (target / "config.json").write_bytes(NEW["config.json"])
    assert publish(stage(store, NEW), target, manifest_of(NEW)) == manifest.of(target)
    assert target.stat().st_ino != inode, "what was altered is replaced"
    assert manifest.states(target).keys() == NEW.keys()


def test_what_is_not_accepted_stays_staged(store: Store):
    target, files = publish_model(store, OLD), stage(store, NEW)
    seen: list[Any] = []

    def accept(claimed: Path) -> bool:
        assert not files.exists()
        return bool(seen.append(read_model(claimed)))

    assert publish(files, target, manifest_of(NEW), accept=accept) is None
    assert seen == [NEW]
    assert read_model(files) == NEW
    assert read_model(target) == OLD
    assert sorted(os.listdir(files.parent)) == ["files", "parts"]


def test_what_is_taken_away_while_it_is_looked_at_never_comes_back_under_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """So whoever looks knows that what he misses is not the model's fault, however fast it was put back."""
    target, files = store.target(REQUEST), stage(store, NEW)
    monkeypatch.setattr(publishing, "_PATIENCE", 0.1)

    def accept(claimed: Path) -> bool:
        settle(files.parent, store.root)  # as another process does, where locks lie
        assert read_model(files) == NEW
        claimed.lstat()
        return False

    with pytest.raises(LockTimeout, match="has taken name away"):
        publish(files, target, manifest_of(NEW), accept=accept)
    assert read_model(files) == NEW


@pytest.mark.parametrize("there", [False, True])
def test_what_is_taken_away_before_it_gets_its_manifest_is_not_published_as_a_manifest_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, there: bool
):
    target = publish_model(store, OLD) if there else store.target(REQUEST)
    files = stage(store, NEW)
    monkeypatch.setattr(publishing, "_PATIENCE", 0.1)

    def accept(_: Path) -> bool:
        settle(files.parent, store.root)
        return True

    with pytest.raises(LockTimeout, match="has taken name away"):
        publish(files, target, manifest_of(NEW), accept=accept)
    assert read_model(files) == NEW
    assert sorted(os.listdir(files.parent)) == ["files", "parts"]
    assert read_model(target) == OLD if there else not target.exists()


PUBLISHER = """\
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from storekit import REQUEST, contents, manifest_of, stage
from vllmrt.resolve import disk
from vllmrt.resolve.inventory import model_at
from vllmrt.resolve.publish import publish
from vllmrt.resolve.recovery import recover
from vllmrt.resolve.store import Store

if sys.argv[2] == "backup":
    def renameat2(source, target, flags):
        raise OSError(38, "Function not implemented")
    disk.renameat2 = renameat2
store = Store(Path(sys.argv[1]))
recover(store, held=REQUEST.identity)
for number in range(10**6):
    files = contents(f"{{sys.argv[3]}}.{{number}}", files=20)
    publish(stage(store, files), store.target(REQUEST), manifest_of(files))
    print(number, flush=True)
"""


def assert_whole(target: Path) -> None:
    """One version, every file of it, and its manifest."""
    found = read_model(target)
    version = found["config.json"].decode()
    assert found == contents(version, files=20)
    known = manifest.of(target)
    assert known is not None
    assert known.files.keys() == found.keys()
    states = manifest.states(target)
    assert all(known.files[path].mtime_ns == state.mtime_ns for path, state in states.items())
    assert all(known.files[path].digest == state.digest for path, state in manifest_of(found).files.items())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["exchange", "backup"])
def test_a_kill_at_any_moment_leaves_the_old_model_or_the_new_one(store: Store, way: str):
    chance = random.Random(way)  # noqa: S311 - when to kill is no secret
    target, unsettled = store.root / "name", 0
    for round_ in range(25):
        script = PUBLISHER.format(tests=str(Path(__file__).parents[1]))
        with subprocess.Popen(
            [sys.executable, "-c", script, str(store.root), way, str(round_)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "0\n"
            begin = time.monotonic()
            assert process.stdout.readline() == "1\n"
            # anywhere in the next two publications, however slow the machine is just now
            time.sleep(chance.random() * 2 * (time.monotonic() - begin))
            process.send_signal(signal.SIGKILL)
        unsettled += any(map(recovery.is_unsettled, store.stagings()))
        if way == "backup":
            recover(store)  # what the next start does first
        assert_whole(target)
    assert unsettled, "no kill came in the middle of a publication: the test shows nothing"
    recover(store)
    assert not any(map(recovery.is_unsettled, store.stagings()))
    assert_whole(target)
    assert {path.name for path in store.root.glob("*")} - {".locks"} == {".staging", "name"}


def steps(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Let every change of a name count as a step, and die at one, before it happens."""
    taken: list[str] = []

    def step(name: str, real: Any) -> Any:
        def stepping(*arguments: Any, **options: Any) -> Any:
            taken.append(name)
            if len(taken) > stop_at:
                raise Death
            return real(*arguments, **options)

        return stepping

    monkeypatch.setattr(Path, "rename", step("rename", Path.rename))
    monkeypatch.setattr(Path, "replace", step("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", step("unlink", Path.unlink))
    monkeypatch.setattr(Path, "rmdir", step("rmdir", Path.rmdir))
    monkeypatch.setattr(disk, "renameat2", step("renameat2", disk.renameat2))
    monkeypatch.setattr(disk, "remove", step("remove", disk.remove))
    return taken


class Death(BaseException):
    """A kill: nothing of ours runs after it, whatever ``finally`` says, because every further step dies too."""


@pytest.mark.parametrize("way", ["exchange", "backup"])
def test_a_kill_before_each_step_in_turn(store: Store, way: str):
    target = publish_model(store, OLD)
    outcomes = []
    for stop_at in range(40):
        with pytest.MonkeyPatch.context() as patch:
            if way == "backup":
                patch.setattr(disk, "renameat2", refuse(disk.EXCHANGE, disk.NOREPLACE))
            if not target.exists() or read_model(target) != OLD:
                publish_model(store, OLD)
            files = stage(store, NEW)
            (files.parent / recovery.JOURNAL).write_text("lines\n")
            steps(patch, stop_at)
            try:
                publish(files, target, manifest_of(NEW))
            except Death:
                finished = False
            else:
                finished = True
        if way == "exchange":
            assert read_model(target) in (OLD, NEW)
        recover(store)
        assert read_model(target) in (OLD, NEW)
        assert read_model(target) == (NEW if finished else read_model(target))
        left = store.staging_path(REQUEST.identity)
        if read_model(target) == OLD:
            # nothing has to be fetched again
            assert read_model(left / "files") == NEW
            assert (left / recovery.JOURNAL).exists()
        else:
            assert not (left / recovery.JOURNAL).exists()
        outcomes.append((finished, read_model(target) == NEW))
        if finished:
            break
    assert outcomes[0] == (False, False)
    assert (False, True) in outcomes
    assert outcomes[-1] == (True, True)


def test_the_newest_backup_is_restored_where_the_model_is_missing(store: Store):
    target = publish_model(store, OLD)
    staging = store.staging(REQUEST.identity)
    for number, word in ((2, "second"), (10, "tenth")):
        backup = staging / f"backup.{number}.name"
        backup.mkdir()
        (backup / "config.json").write_text(word)
    recover(store)
    assert read_model(target) == OLD, "a model that is there is left alone"
    assert list(staging.glob("backup.*")) == []
    for number, word in ((2, "second"), (10, "tenth")):
        backup = staging / f"backup.{number}.name"
        backup.mkdir()
        (backup / "config.json").write_text(word)
    target.rename(store.root / "moved-by-its-user")
    recover(store)
    assert read_model(target) == {"config.json": b"tenth"}
    assert list(staging.glob("backup.*")) == []


def test_half_removed_directories_are_never_restored(store: Store):
    staging = store.staging(REQUEST.identity)
    (staging / "trash.0123456789ab").mkdir()
    (staging / "trash.0123456789ab/config.json").write_text("x")
    settle(staging, store.root)
    assert sorted(os.listdir(staging)) == ["files", "parts"]
    assert os.listdir(store.root) == [".staging"]


@pytest.mark.parametrize("content", [None, b"{", b"\0" * 100])
def test_an_old_model_whose_manifest_cannot_be_read_is_not_taken_for_a_new_one(store: Store, content: bytes | None):
    staging = store.staging(REQUEST.identity)
    (staging / "files").rmdir()
    sealed = staging / "sealed.0123456789ab"
    sealed.mkdir()
    if content is not None:
        (sealed / manifest.NAME).write_bytes(content)
    (staging / recovery.JOURNAL).write_text("lines\n")
    settle(staging, store.root)
    assert os.listdir(staging) == []


def test_what_another_process_works_on_is_left_alone(store: Store):
    from vllmrt import locking

    staging = store.staging(REQUEST.identity)
    (staging / "trash.0123456789ab").mkdir()
    with locking.hold(store.lock_path(REQUEST.identity), timeout=0, waiting=lambda _: None):
        recover(store)
        assert recovery.is_unsettled(staging)
        recover(store, held=REQUEST.identity)
    assert not recovery.is_unsettled(staging)


def test_a_journal_without_files_is_void(store: Store):
    staging = store.staging(REQUEST.identity)
    (staging / recovery.JOURNAL).write_text("lines\n")
    assert store.staging(REQUEST.identity) == staging
    assert (staging / recovery.JOURNAL).exists()
    (staging / "parts/x").write_text("x")
    (staging / "files").rmdir()
    assert recovery.is_unsettled(staging)
    store.staging(REQUEST.identity)
    assert not (staging / recovery.JOURNAL).exists()
    assert os.listdir(staging / "parts") == []


def test_links_are_removed_and_not_followed(store: Store, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    staging = store.staging(REQUEST.identity)
    (staging / "trash.0123456789ab").symlink_to(precious)
    (staging / "sealed.0123456789ab").symlink_to(precious)
    (staging / "files").rmdir()
    settle(staging, store.root)
    assert os.listdir(staging) == []
    assert (precious / "file").read_text() == "x"


def test_publishing_onto_a_full_disk_leaves_everything_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch):
    from vllmrt.errors import NoSpace

    target = publish_model(store, OLD)
    files = stage(store, NEW)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(NoSpace, match="full"):
        publish(files, target, manifest_of(NEW))
    assert read_model(target) == OLD
    assert read_model(files) == NEW


RACERS = """\
import multiprocessing, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from storekit import REQUEST, contents, manifest_of, read_model
from vllmrt.resolve.inventory import model_at
from vllmrt.resolve.publish import publish
from vllmrt.resolve.store import Store

def fetch(store, files):
    "As the engine does: into the files that are there, the same bytes at the same offsets."
    staged, inodes = store.staging(REQUEST.identity) / "files", {{}}
    for path, data in files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(staged / path, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(descriptor, data, 0)
        inodes[path] = os.fstat(descriptor).st_ino
        os.close(descriptor)
    return staged, inodes

def race(store, number, barrier):
    for version in range(6):
        files = contents(f"version-{{version}}", files=30)
        barrier.wait()
        try:
            staged, inodes = fetch(store, files)
            publish(staged, store.target(REQUEST), manifest_of(files), inodes=inodes)
        except Exception as error:
            print(f"{{version}} {{type(error).__name__}}\\n", end="", flush=True)
        else:
            assert read_model(store.root / "name") == files
            print(f"{{version}} published\\n", end="", flush=True)
        barrier.wait()

barrier = multiprocessing.get_context("fork").Barrier(5)
store = Store(Path(sys.argv[1]))
workers = [multiprocessing.get_context("fork").Process(target=race, args=(store, n, barrier)) for n in range(5)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
sys.exit(any(worker.exitcode for worker in workers))
"""


@pytest.mark.timeout(180)
def test_without_any_lock_a_mix_is_never_published(store: Store):
    script = RACERS.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 30
    assert sum("published" in line for line in lines) >= 6, done.stdout
    found = read_model(store.root / "name")
    assert found == contents(found["config.json"].decode(), files=30)


# -- overlayfs: a model that was put into an image


@contextmanager
def mounted(kind: str, path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", kind, "-o", options, kind, str(path)]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    if done.returncode:
        pytest.skip(f"no {kind} can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def baked(tmp_path: Path) -> Iterator[Store]:
    """A store as a container sees it: what was published and staged before lies in a layer of the image."""
    layers, seen = tmp_path / "layers", tmp_path / "container"
    options = [f"{name}dir={layers / name}" for name in ("lower", "upper", "work")]
    with mounted("tmpfs", layers, "size=16m"):  # in a container, ours may be an overlay, which cannot bear another
        for name in ("upper", "work"):
            (layers / name).mkdir()
        publish_model(Store(layers / "lower"), OLD)
        stage(Store(layers / "lower"), OLD, OTHER)
        with mounted("overlay", seen, ",".join([*options, "redirect_dir=off"])):
            yield Store(seen)


@pytest.mark.parametrize("lacking", [(), (disk.EXCHANGE,)], ids=["exchange", "no exchange"])
def test_what_lies_in_a_layer_of_an_image_is_not_replaced(
    baked: Store, monkeypatch: pytest.MonkeyPatch, lacking: tuple[int, ...]
):
    monkeypatch.setattr(disk, "renameat2", refuse(*lacking))
    target = baked.root / "name"
    with pytest.raises(ConfigError, match=re.escape(str(target))) as caught:
        publish_model(baked, NEW)
    assert "lies in a layer of an image" in caught.value.message
    assert "set VLLM_MODELS_DIR to a volume" in (caught.value.hint or "")
    assert read_model(target) == OLD
    (staging,) = (path for path in baked.stagings() if "org-name" in path.name)
    assert read_model(staging / "files") == NEW


def test_what_lies_in_a_layer_of_an_image_is_not_removed(baked: Store):
    target = baked.root / "name"
    with pytest.raises(ConfigError, match="cannot be removed altogether") as caught:
        inventory.remove(baked, model_at(target))
    assert "set VLLM_MODELS_DIR to a volume" in (caught.value.hint or "")
    assert read_model(target) == OLD
    done = gc.collect(baked, gc.plan(baked, keep_days=0), keep_days=0)
    assert [(item.action, item.kind) for item in done.items] == [("keep", "staging")]
    assert "set VLLM_MODELS_DIR to a volume" in done.items[0].reason


def test_beside_what_lies_in_a_layer_of_an_image_a_model_is_published(baked: Store):
    request = ModelRequest("org/third")
    assert read_model(publish_model(baked, NEW, request)) == NEW
    assert read_model(publish_model(baked, OLD, request)) == OLD
