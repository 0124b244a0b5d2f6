from __future__ import annotations

import errno
import hashlib
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vllmrt.errors import (
    ConfigError,
    IntegrityError,
    LockTimeout,
    NoSpace,
    SourceError,
    TransientSourceError,
    VllmrtError,
)
from vllmrt.transfer import hashing, ranges
from vllmrt.transfer.crew import WAITING, Load
from vllmrt.transfer.engine import Engine, Progress
from vllmrt.transfer.hashing import FileHash
from vllmrt.transfer.journal import Journal
from vllmrt.transfer.target import Target
from vllmrt.types import Digest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


class Bytes:
    """A range of a byte string, in the pieces that a network would give."""

    def __init__(self, content: bytes, start: int, stop: int, *, piece: int = 300_000) -> None:
        self.content, self.position, self.stop, self.piece = content, start, stop, piece
        self.closed = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self.stop - self.position, self.piece)
        buffer[:count] = self.content[self.position : self.position + count]
        self.position += count
        return count

    def close(self) -> None:
        self.closed.set()


class Origin:
    """Opens ranges of some files, with one fault after the other, and counts what it gives away."""

    def __init__(self, contents: dict[str, bytes], faults: list[Callable[[Bytes], object]] | None = None) -> None:
        self.contents = contents
        self.faults = faults or []
        self.asked: list[tuple[str, int, int]] = []
        self.mutex = threading.Lock()

    def open(self, file: RemoteFile, start: int, stop: int) -> object:
        with self.mutex:
            self.asked.append((file.path, start, stop))
            fault = self.faults.pop(0) if self.faults else None
        handle = Bytes(self.contents[file.path], start, stop)
        return fault(handle) if fault else handle


def remote(contents: dict[str, bytes], *, digest: bool = True) -> list[RemoteFile]:
    return [
        RemoteFile(
            path,
            size=len(content),
            version="1",
            digest=Digest("sha256", value=hashlib.sha256(content).hexdigest()) if digest else None,
        )
        for path, content in contents.items()
    ]


def transfer(
    staging: Path, origin: Origin, files: list[RemoteFile], *, connections: int = 4, stall: float = 20.0
) -> Progress:
    staging.mkdir(exist_ok=True)
    last = [Progress(0, 0, 0)]
    with Journal(staging) as journal:
        targets = [Target(file, staging / file.path, journal) for file in files]
        try:
            engine = Engine(origin.open, targets, connections=connections, stall=stall)
            done = {target.file.path: target.here() for target in targets}
            engine.run(ranges.plan(files, done, connections=connections), last.append)
        finally:
            for target in targets:
                target.close()
    return last[-1]


@pytest.fixture
def contents() -> dict[str, bytes]:
    rng = random.Random(7)  # noqa: S311 - bytes that are the same in every run
    sizes = {"a": 40 * MIB + 17, "b": 3 * MIB, "c": 1, "d": 0}
    return {name: rng.randbytes(size) for name, size in sizes.items()}


def whole(staging: Path, contents: dict[str, bytes]) -> bool:
    return all((staging / name).read_bytes() == content for name, content in contents.items())


@pytest.mark.parametrize("connections", [1, 3, 16])
def test_every_byte_arrives_and_is_proven(tmp_path: Path, contents: dict[str, bytes], connections: int) -> None:
    progress = transfer(tmp_path / "s", Origin(contents), remote(contents), connections=connections)
    assert whole(tmp_path / "s", contents)
    assert progress == Progress(sum(map(len, contents.values())), len(contents), 0)


class Cut(Bytes):
    """Ends cleanly after some pieces, as a FIN does."""

    def readinto(self, buffer: memoryview) -> int:
        self.piece_count = getattr(self, "piece_count", 0) + 1
        return super().readinto(buffer) if self.piece_count <= 3 else 0


class Reset(Cut):
    def readinto(self, buffer: memoryview) -> int:
        return super().readinto(buffer) or self.fail()

    def fail(self) -> int:
        raise ConnectionResetError(104, "reset by peer")


class Flipped(Bytes):
    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        buffer[0] ^= 1
        return count


class Stalled(Bytes):
    """Never answers, not even when it is closed."""

    def readinto(self, _: memoryview) -> int:
        time.sleep(30)
        return 0


def turned(kind: type[Bytes]) -> Callable[[Bytes], Bytes]:
    return lambda handle: kind(handle.content, handle.position, handle.stop)


def refuses(error: Exception) -> Callable[[Bytes], Bytes]:
    def fault(_: Bytes) -> Bytes:
        raise error

    return fault


FAULTS = {
    "FIN": turned(Cut),
    "RST": turned(Reset),
    "one flipped byte": turned(Flipped),
    "503 with Retry-After": refuses(TransientSourceError("503", retry_after=0.05)),
    "an error that no contract knows": refuses(RuntimeError("boom")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_tried_again(tmp_path: Path, contents: dict[str, bytes], fault: Callable[[Bytes], Bytes]) -> None:
    origin = Origin(contents, [fault, fault])
    transfer(tmp_path / "s", origin, remote(contents))
    assert whole(tmp_path / "s", contents)


def test_a_range_that_is_just_being_taken_is_not_forgotten(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Engine._ready

    def slowly(engine: Engine) -> object:
        task = ready(engine)
        time.sleep(0.3)
        return task

    monkeypatch.setattr(Engine, "_ready", slowly)
    content = {"b": contents["b"]}
    assert transfer(tmp_path / "s", Origin(content), remote(content)).verified == 1
    assert whole(tmp_path / "s", content)


def test_a_connection_that_stalls_is_given_up(tmp_path: Path, contents: dict[str, bytes]) -> None:
    origin = Origin(contents, [turned(Stalled), turned(Stalled)])
    begin = time.monotonic()
    progress = transfer(tmp_path / "s", origin, remote(contents), connections=2, stall=0.4)
    assert whole(tmp_path / "s", contents)
    assert progress.retries == 2
    assert time.monotonic() - begin < 15


def test_progress_resets_the_count_of_failures(tmp_path: Path, contents: dict[str, bytes]) -> None:
    origin = Origin(contents, [turned(Reset)] * 12)
    transfer(tmp_path / "s", origin, remote(contents), connections=1)
    assert whole(tmp_path / "s", contents)


def test_five_failures_without_a_byte_end_it(tmp_path: Path) -> None:
    contents = {"a": b"x" * MIB}
    origin = Origin(contents, [refuses(ConnectionRefusedError(111, "refused"))] * 99)
    with pytest.raises(SourceError, match="a: gave up after 5 failures without a byte"):
        transfer(tmp_path / "s", origin, remote(contents), connections=1)
    assert len(origin.asked) == 5


def test_a_permanent_refusal_ends_it_at_once_and_keeps_what_came(tmp_path: Path, contents: dict[str, bytes]) -> None:
    files = remote(contents)
    with pytest.raises(SourceError, match="403"):
        transfer(
            tmp_path / "s", Origin(contents, [lambda handle: handle, refuses(SourceError("403"))]), files, connections=1
        )
    again = Origin(contents)
    transfer(tmp_path / "s", again, files, connections=1)
    assert whole(tmp_path / "s", contents)
    assert again.asked[0] != ("a", 0, 16 * MIB)


def test_what_another_connection_had_of_its_range_is_kept_too(tmp_path: Path) -> None:
    contents = {"a": os.urandom(8 * MIB), "b": b"b"}
    halfway = threading.Event()

    class Halfway(Bytes):
        def readinto(self, buffer: memoryview) -> int:
            if self.position < 4 * MIB:
                return super().readinto(buffer)
            halfway.set()
            time.sleep(10)  # also when it is closed
            return 0

    def refused(_: Bytes) -> Bytes:
        assert halfway.wait(20)
        raise SourceError("403")

    both = Origin(contents, [])
    both.open = lambda file, start, stop: (  # type: ignore[method-assign]
        refused if file.path == "b" else turned(Halfway)
    )(Bytes(contents[file.path], start, stop))
    with pytest.raises(SourceError, match="403"):
        transfer(tmp_path / "s", both, remote(contents))
    again = Origin(contents)
    transfer(tmp_path / "s", again, remote(contents))
    assert whole(tmp_path / "s", contents)
    assert min(start for path, start, _ in again.asked if path == "a") >= 4 * MIB


def test_bytes_that_differ_twice_are_refused(tmp_path: Path) -> None:
    contents = {"a": b"x" * MIB}
    with pytest.raises(IntegrityError, match="a differs from the digest"):
        transfer(tmp_path / "s", Origin(contents, [turned(Flipped)] * 9), remote(contents), connections=1)


def test_a_second_run_fetches_only_what_is_missing(tmp_path: Path, contents: dict[str, bytes]) -> None:
    files = remote(contents)
    transfer(tmp_path / "s", Origin(contents), files)
    again = Origin(contents)
    progress = transfer(tmp_path / "s", again, files)
    assert again.asked == []
    assert progress.verified == len(files)


def test_bytes_that_rotted_on_the_disk_are_fetched_again(tmp_path: Path, contents: dict[str, bytes]) -> None:
    files = remote(contents)
    transfer(tmp_path / "s", Origin(contents), files)
    with (tmp_path / "s" / "b").open("r+b") as file:
        file.write(b"rot")
    again = Origin(contents)
    transfer(tmp_path / "s", again, files)
    assert whole(tmp_path / "s", contents)
    assert {path for path, _, _ in again.asked} == {"b"}


def test_another_version_throws_the_ranges_away(tmp_path: Path) -> None:
    old, new = {"a": b"o" * MIB}, {"a": b"n" * MIB}
    transfer(tmp_path / "s", Origin(old), remote(old))
    changed = [RemoteFile("a", size=MIB, version="2")]
    transfer(tmp_path / "s", Origin(new), changed)
    assert whole(tmp_path / "s", new)


@pytest.mark.parametrize("digest", [None, Digest("crc32", value="0")])
def test_what_nothing_identifies_is_not_resumed(tmp_path: Path, digest: Digest | None) -> None:
    """Without a version, and a digest that can be checked, the bytes at the source may be others by now."""
    files = [RemoteFile("a", size=MIB, version="", digest=digest)]
    for content in (b"o", b"n"):
        transfer(tmp_path / "s", Origin({"a": content * MIB}), files)
        assert whole(tmp_path / "s", {"a": content * MIB})


def test_what_another_process_published_is_not_written_to_when_it_does_not_match(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    transfer(tmp_path / "s", Origin(contents), remote(contents))
    rotten = tmp_path / "s" / "a"
    rotten.write_bytes(b"\0" * rotten.stat().st_size)
    os.link(rotten, tmp_path / "published")
    transfer(tmp_path / "s", Origin(contents), remote(contents))
    assert whole(tmp_path / "s", contents)
    assert set((tmp_path / "published").read_bytes()) == {0}


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, ConfigError), (errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EFBIG, NoSpace)],
)
def test_a_fault_of_the_disk_is_not_taken_for_one_of_the_connection(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, code: int, kind: type[VllmrtError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    origin = Origin(contents)
    with pytest.raises(kind, match=os.strerror(code)):
        transfer(tmp_path / "s", origin, remote(contents), connections=1)
    assert len(origin.asked) == 1


def test_a_directory_that_another_process_took_away_is_named(tmp_path: Path, contents: dict[str, bytes]) -> None:
    (tmp_path / "s").mkdir()
    files = remote(contents)
    with Journal(tmp_path / "s") as journal:
        targets = [Target(file, tmp_path / "gone" / file.path, journal) for file in files]
        with pytest.raises(LockTimeout, match="another process"):
            Engine(Origin(contents).open, targets, connections=2).run(
                ranges.plan(files, {}, connections=2), lambda _: None
            )


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_file_that_another_process_took_is_left_at_the_end_of_a_range(
    tmp_path: Path, contents: dict[str, bytes], *, made_anew: bool
) -> None:
    """It may be published by now; and what lies there instead holds none of our bytes, whatever the journal noted."""
    content = {"a": contents["a"]}
    part = tmp_path / "s" / "a"

    def take(handle: Bytes) -> Bytes:
        part.rename(tmp_path / "published")
        if made_anew:
            part.write_bytes(bytes(len(content["a"])))
        return handle

    origin = Origin(content, [lambda handle: handle, take])
    with pytest.raises(LockTimeout, match="taken a away"):
        transfer(tmp_path / "s", origin, remote(content), connections=1)
    assert len(origin.asked) == 2
    (noted,) = [line for line in (tmp_path / "s" / "journal.jsonl").read_text().splitlines() if line]
    assert '"stop":16777216' in noted


def test_without_a_digest_the_bytes_are_hashed(tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    (tmp_path / "s").mkdir()
    with Journal(tmp_path / "s") as journal:
        target = Target(RemoteFile("a", size=len(content), version="1"), tmp_path / "s" / "a", journal)
        Engine(Origin({"a": content}).open, [target], connections=2).run(
            ranges.plan([target.file], {}, connections=2), lambda _: None
        )
        assert target.digest() == Digest("sha256", value=hashlib.sha256(content).hexdigest())
        target.close()


def test_git_names_a_blob_by_its_length_and_content(tmp_path: Path) -> None:
    content = b"hello\n"
    digest = Digest("git-sha1", value="ce013625030ba8dba906f756967f9e9ca394464a")  # printf 'hello\n' | git hash-object
    transfer(tmp_path / "s", Origin({"a": content}), [RemoteFile("a", size=6, version="1", digest=digest)])
    assert (tmp_path / "s" / "a").read_bytes() == content


# of "123456789" (CRC RevEng catalogue: CRC-32/ISCSI and CRC-64/NVME)
CHECKS = [("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")]


@pytest.mark.parametrize(("algorithm", "value"), CHECKS)
def test_the_checksums_of_object_stores_are_checked(tmp_path: Path, algorithm: str, value: str) -> None:
    def file(value: str) -> RemoteFile:
        return RemoteFile("a", size=9, version="1", digest=Digest(algorithm, value=value))

    transfer(tmp_path / "s", Origin({"a": b"123456789"}), [file(value.upper())])
    with pytest.raises(IntegrityError):
        transfer(tmp_path / "s", Origin({"a": b"123456789"}), [file("0" * len(value))])


@pytest.mark.parametrize("algorithm", [algorithm for algorithm, _ in CHECKS])
def test_a_checksum_is_the_same_in_whatever_order_the_ranges_come(tmp_path: Path, algorithm: str) -> None:
    content = os.urandom(5 * MIB)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    digests = []
    for path, pieces in ((whole, [(0, 5)]), (parts, [(3, 5), (1, 3), (0, 1)])):
        path.write_bytes(content)
        file = RemoteFile("a", size=len(content), version="1", digest=Digest(algorithm, value=""))
        with path.open("rb") as written:
            running = FileHash(file, written.fileno())
            for start, stop in pieces:
                running.arrived(start * MIB, stop * MIB)
            assert running.complete
            digests.append(running.digest())
    assert digests[0] == digests[1]


def test_without_awscrt_the_bytes_are_hashed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awscrt", None)
    hashing._checksums.cache_clear()
    file = RemoteFile("a", size=1, version="1", digest=Digest("crc64nvme", value="0" * 16))
    (tmp_path / "a").write_bytes(b"x")
    with (tmp_path / "a").open("rb") as written:
        running = FileHash(file, written.fileno(), [(0, 1)])
        running.catch_up()
    assert running.digest() == Digest("sha256", value=hashlib.sha256(b"x").hexdigest())
    monkeypatch.undo()
    hashing._checksums.cache_clear()


def test_an_interrupt_ends_it_in_a_second_and_keeps_what_came(tmp_path: Path, contents: dict[str, bytes]) -> None:
    class Slow(Bytes):
        def readinto(self, buffer: memoryview) -> int:
            time.sleep(0.02)
            return super().readinto(buffer)

    (tmp_path / "s").mkdir()
    before = set(threading.enumerate())
    files = remote(contents)
    origin = Origin(contents, [turned(Slow)] * 99)
    seen = []

    def interrupt(progress: Progress) -> None:
        if progress.received > 2 * MIB:
            seen.append((time.monotonic(), progress.received))
            raise KeyboardInterrupt

    with Journal(tmp_path / "s") as journal:
        targets = [Target(file, tmp_path / "s" / file.path, journal) for file in files]
        with pytest.raises(KeyboardInterrupt):
            Engine(origin.open, targets, connections=4).run(ranges.plan(files, {}, connections=4), interrupt)
        assert time.monotonic() - seen[0][0] < 1
        kept = sum(stop - start for file in files for start, stop in journal.done(file))
        assert kept >= seen[0][1]
    assert set(threading.enumerate()) <= before


def test_what_the_journal_speaks_of_is_gone(tmp_path: Path, contents: dict[str, bytes]) -> None:
    transfer(tmp_path / "s", Origin(contents), remote(contents))
    (tmp_path / "s" / "a").unlink()
    (tmp_path / "s" / "b").write_bytes(b"another")
    assert transfer(tmp_path / "s", Origin(contents), remote(contents)).received == 43 * MIB + 17
    assert whole(tmp_path / "s", contents)


def test_a_file_that_goes_once_the_ranges_are_planned_is_not_taken_for_zeros(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    files = remote({"a": contents["a"]}, digest=False)
    transfer(tmp_path / "s", Origin(contents), files)
    with Journal(tmp_path / "s") as journal:
        target = Target(files[0], tmp_path / "s" / "a", journal)
        done = {"a": target.here()}
        (tmp_path / "s" / "a").unlink()
        with pytest.raises(LockTimeout, match="taken a away"):
            Engine(Origin(contents).open, [target], connections=1).run(
                ranges.plan(files, done, connections=1), lambda _: None
            )
        with pytest.raises(RuntimeError):
            target.digest()


class Slow(Bytes):
    """A network that keeps one waiting; it knows how many wait at a time."""

    mutex = threading.Lock()
    waiting = most = 0

    def readinto(self, buffer: memoryview) -> int:
        with Slow.mutex:
            Slow.waiting += 1
            Slow.most = max(Slow.most, Slow.waiting)
        time.sleep(0.01)
        with Slow.mutex:
            Slow.waiting -= 1
        return super().readinto(buffer)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_more_connections_join_while_the_processors_have_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    connections = len(os.sched_getaffinity(0)) + 6
    monkeypatch.setattr(Load, "share", lambda _: share)
    monkeypatch.setattr(Slow, "most", 0)
    contents = {f"{number}.bin": bytes(8 * MIB) for number in range(4 * connections)}
    transfer(tmp_path, Origin(contents, [turned(Slow)] * 1000), remote(contents), connections=connections)
    assert whole(tmp_path, contents)
    assert Slow.most == (connections if share < WAITING else max(2, connections - 6))


def test_the_share_of_the_processors_is_measured() -> None:
    load = Load()
    time.sleep(0.1)
    assert load.share() < 0.5
    used = time.process_time() + 0.1
    while time.process_time() < used:
        pass
    assert 0 < load.share() <= 1.1
