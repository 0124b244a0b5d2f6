"""What survives a loss of power, and what a thread that was given up can still do: nothing."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from standin import wait_for
from transfer.test_engine import MIB, Bytes, Origin, refuses, remote, transfer, turned, whole

from vllmrt.errors import IntegrityError, SourceError
from vllmrt.transfer import blocks, journal, ranges
from vllmrt.transfer.engine import Engine
from vllmrt.transfer.journal import Journal
from vllmrt.transfer.target import Target
from vllmrt.types import Digest, RemoteFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def contents() -> dict[str, bytes]:
    return {"a": os.urandom(20 * MIB), "b": os.urandom(5 * MIB)}


class Sleepy(Bytes):
    """Ends after some bytes, and not before the engine has synced."""

    synced = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        if self.position >= MIB:
            assert Sleepy.synced.wait(20)
        return super().readinto(buffer)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes that fdatasync(2) was really called for."""
    inodes: set[int] = set()
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        real(descriptor)
        inodes.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return inodes


def trusted_after_a_crash(staging: Path, files: list[RemoteFile], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(journal, "_boot", lambda: "another boot")
    with Journal(staging) as later:
        return {file.path: sum(stop - start for start, stop in later.done(file)) for file in files}


def test_only_what_was_synced_is_trusted_after_a_loss_of_power(
    tmp_path: Path, contents: dict[str, bytes], on_disk: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = remote(contents)
    staging = tmp_path / "s"
    transfer(staging, Origin(contents), files[:1])  # an earlier run, that never synced
    with Journal(staging) as now:
        targets = [Target(file, staging / file.path, now) for file in files]
        engine = Engine(Origin(contents).open, targets, connections=2)
        engine.run(ranges.plan(files, {"a": targets[0].here()}, connections=2), lambda _: None)
        assert on_disk == set()
        for target in targets:
            target.close()  # as the engine does with what is proven
            target.sync()
        assert on_disk == {(staging / name).stat().st_ino for name in contents}
        lines = (staging / journal.NAME).read_bytes()
        for target in targets:
            target.sync()
        assert (staging / journal.NAME).read_bytes() == lines
    assert trusted_after_a_crash(staging, files, monkeypatch) == {"a": 20 * MIB, "b": 5 * MIB}


def test_what_cannot_be_synced_is_not_trusted(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    monkeypatch.setattr("vllmrt.transfer.engine._SYNC_EVERY", 0.0)
    files = remote(contents)
    transfer(tmp_path / "s", Origin(contents), files)
    assert whole(tmp_path / "s", contents)
    assert trusted_after_a_crash(tmp_path / "s", files, monkeypatch) == {"a": 0, "b": 0}


def test_where_the_boot_cannot_be_told_only_what_was_synced_is_trusted(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_BOOT_ID", tmp_path / "nothing")
    (first, second) = files = remote(contents)
    transfer(tmp_path, Origin(contents), files)
    with Journal(tmp_path) as later:
        assert (later.done(first), later.done(second)) == ([], [])
        later.record(first, 0, 5)
        assert later.done(first) == [(0, 5)]


def test_what_is_begun_anew_while_it_is_synced_is_not_trusted(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file, *_) = files = remote(contents)
    transfer(tmp_path, Origin(contents), files)
    with Journal(tmp_path) as now:
        target = Target(file, tmp_path / "a", now)
        monkeypatch.setattr(os, "fdatasync", lambda _: target.restart())
        with pytest.raises(FileNotFoundError):
            target.sync()
    assert trusted_after_a_crash(tmp_path, files, monkeypatch)["a"] == 0


def test_the_engine_syncs_now_and_then(
    tmp_path: Path, contents: dict[str, bytes], on_disk: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllmrt.transfer.engine._SYNC_EVERY", 0.0)
    Sleepy.synced.clear()

    def synced(_: object) -> None:
        part = tmp_path / "b"
        if part.exists() and part.stat().st_ino in on_disk:
            Sleepy.synced.set()

    files = remote(contents)
    with Journal(tmp_path) as now:
        targets = [Target(file, tmp_path / file.path, now) for file in files]
        origin = Origin(contents, [turned(Sleepy)])
        Engine(origin.open, targets, connections=2).run(ranges.plan(files, {}, connections=2), synced)
    assert whole(tmp_path, contents)
    assert trusted_after_a_crash(tmp_path, files, monkeypatch)["b"] == 5 * MIB


class Deaf(Bytes):
    """Its close() waits for a read that never ends, as a buffered reader's does."""

    ended = threading.Event()

    def readinto(self, _: memoryview) -> int:
        Deaf.ended.wait()
        return 0

    def close(self) -> None:
        Deaf.ended.wait()
        raise OSError("whoever closes is told so, and nobody else")


def test_a_connection_that_cannot_be_closed_is_given_up_too(tmp_path: Path, contents: dict[str, bytes]) -> None:
    Deaf.ended.clear()
    origin = Origin(contents, [turned(Deaf), turned(Deaf)])
    try:
        progress = transfer(tmp_path / "s", origin, remote(contents), connections=2, stall=1.5)
    finally:
        Deaf.ended.set()
    assert whole(tmp_path / "s", contents)
    assert progress.retries == 2


def test_a_slow_disk_is_no_stall(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    slow = iter([1.2, 1.2])

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        time.sleep(next(slow, 0))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert transfer(tmp_path / "s", Origin(contents), remote(contents), connections=2, stall=0.4).retries == 0
    assert whole(tmp_path / "s", contents)


def test_a_sync_holds_nobody_up(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: synced.wait(20))
    files = remote(contents)
    with Journal(tmp_path) as now:
        target = Target(files[0], tmp_path / "a", now)
        target.write(0, memoryview(contents["a"])[:MIB])
        target.arrived(0, MIB)
        syncing = threading.Thread(target=target.sync)
        syncing.start()
        target.write(MIB, memoryview(contents["a"])[MIB:])
        target.arrived(MIB, len(contents["a"]))
        assert syncing.is_alive()
        assert target.matches()
        synced.set()
        syncing.join()
        target.leave()


def test_a_thread_that_was_given_up_writes_into_nobody_elses_file(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors are numbers: what was opened next had those of the journal and of the parts."""
    stuck, go_on = threading.Event(), threading.Event()

    def write_back(*_: int) -> None:
        stuck.set()
        go_on.wait()

    monkeypatch.setattr(blocks, "write_back", write_back)
    monkeypatch.setattr("vllmrt.transfer.crew._GOODBYE", 0.05)

    def fault(handle: Bytes) -> Bytes:
        assert stuck.wait(20)
        return refuses(SourceError("404"))(handle)

    before = set(threading.enumerate())
    with pytest.raises(SourceError, match="404"):
        leaving(tmp_path / "s", Origin(contents, [turned(Bytes), fault]), remote(contents))
    wait_for(lambda: len(set(threading.enumerate()) - before) == 1)
    (late,) = set(threading.enumerate()) - before
    others = [(tmp_path / f"other{number}").open("wb+", buffering=0) for number in range(8)]
    go_on.set()
    late.join()
    assert [(tmp_path / f"other{number}").read_bytes() for number in range(8)] == [b""] * 8
    for other in others:
        other.close()
    assert transfer(tmp_path / "s", Origin(contents), remote(contents)).retries == 0
    assert whole(tmp_path / "s", contents)


def leaving(staging: Path, origin: Origin, files: list[RemoteFile]) -> None:
    """Transfer in the way of `vllmrt.resolve.fetch`."""
    staging.mkdir()
    with Journal(staging) as now:
        targets = [Target(file, staging / file.path, now) for file in files]
        try:
            parts = [ranges.Range(file, 0, file.size) for file in files]
            Engine(origin.open, targets, connections=2).run(parts, lambda _: None)
        finally:
            for target in targets:
                target.leave()


def test_a_read_back_ends_when_its_file_is_left(tmp_path: Path, contents: dict[str, bytes]) -> None:
    (file, *_) = remote(contents)
    with Journal(tmp_path) as now:
        target = Target(file, tmp_path / "a", now)
        target.write(MIB, memoryview(contents["a"])[MIB:])
        target.arrived(MIB, file.size)
        target.leave()
        with pytest.raises(RuntimeError):
            target.arrived(0, MIB)
        target.restart()
        assert (tmp_path / "a").exists()
        assert now.done(file) == [(MIB, file.size)]


@pytest.mark.parametrize("size", [0, 70 * MIB])
def test_what_differs_twice_is_refused_whatever_its_size(tmp_path: Path, size: int) -> None:
    file = RemoteFile("a", size=size, version="1", digest=Digest("sha256", value="0" * 64))
    origin = Origin({"a": bytes(size)})
    with pytest.raises(IntegrityError, match="also when it is fetched again"):
        transfer(tmp_path / "s", origin, [file])
    longest = max((stop - start for _, start, stop in origin.asked), default=0)
    assert longest <= ranges.LARGEST
