"""What the machine itself does to a resolve: full and read-only disks, many processes, locks and clocks that lie."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from faultkit import FIRST, MIB, RANGE, SECOND, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faultkit import Version, World

HEADROOM = 64 * MIB
PROCESSES = 16
NO_FALLOCATE = """
#include <errno.h>
#include <sys/types.h>
int fallocate(int fd, int mode, off_t offset, off_t length) { errno = EOPNOTSUPP; return -1; }
"""
NO_FLOCK = "int flock(int descriptor, int operation) { return 0; }\n"
NO_EXCHANGE = """
#include <errno.h>
int renameat2(int from, const char *old, int to, const char *new, unsigned int flags) { errno = EINVAL; return -1; }
"""
JUMPING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int calls;
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, now);
    if (!result && id == CLOCK_REALTIME) {
        static const long steps[] = {0, 10800, -7200, 90000, -400000000};
        now->tv_sec += steps[__sync_fetch_and_add(&calls, 1) % 5];
    }
    return result;
}
"""


def python(program: str, library: str) -> str:
    """Run a program with a shim; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"LD_PRELOAD": library}, capture_output=True, check=True, encoding="utf-8"
    )
    return done.stdout.strip()


# -- disks


def fill(store: Path, *, leaving: int) -> Path:
    """Take all space of a file system but some."""
    from os import posix_fallocate, statvfs

    free = statvfs(store)
    filler = store / "filler"
    with filler.open("wb") as file:
        posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leaving)
    return filler


def test_too_small_a_disk_is_known_before_the_first_shard(
    world: World, old: Version, tmpfs: Callable[[int], Path]
) -> None:
    store = tmpfs(old.size + HEADROOM + 40 * MIB)
    filler = fill(store, leaving=old.size)
    done = world.resolve()
    assert done.code == 13, done.err
    assert "free at least" in done.err
    assert world.served == 0
    assert world.which() is None
    filler.unlink()
    world.completes(old, fetching=old.size)


@pytest.mark.parametrize("reserved", [True, False], ids=["while space is reserved", "while bytes are written"])
def test_the_disk_becomes_full_in_the_middle(
    world: World, old: Version, tmpfs: Callable[[int], Path], preloaded: Callable[[str], str], *, reserved: bool
) -> None:
    store = tmpfs(old.size + HEADROOM + 40 * MIB)
    fillers: list[Path] = []
    leaving = 8 * MIB if reserved else len(old.files[FIRST]) + RANGE + 4 * MIB
    world.when(SECOND if reserved else FIRST, lambda: fillers.append(fill(store, leaving=leaving)))
    library = None if reserved else preloaded(NO_FALLOCATE)
    done = world.resolve(VLLMRT_CONNECTIONS="1", LD_PRELOAD=library)
    assert done.code == 13, done.err
    assert "the disk is full" in done.err
    assert "what was fetched is kept" in done.err
    assert world.which() is None
    left = world.left(old)
    assert left <= len(old.files[SECOND]) - (0 if reserved else RANGE)
    fillers[0].unlink()
    world.heal()
    world.completes(old, fetching=left)


def test_the_disk_becomes_full_while_an_old_version_is_replaced(
    world: World, old: Version, new: Version, tmpfs: Callable[[int], Path]
) -> None:
    store = tmpfs(2 * old.size + HEADROOM + 40 * MIB)
    world.completes(old, fetching=old.size)
    world.offer(new)
    fillers: list[Path] = []
    world.when(SECOND, lambda: fillers.append(fill(store, leaving=0)))
    done = world.resolve(VLLMRT_CONNECTIONS="1")
    assert done.code == 13, done.err
    assert world.which() is old
    fillers[0].unlink()
    world.heal()
    left = world.left(new)
    assert left == len(new.files[SECOND])
    world.completes(new, fetching=left)


def test_a_read_only_store(world: World, old: Version, tmpfs: Callable[[int], Path]) -> None:
    store = tmpfs(2 * old.size + HEADROOM)
    subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
    done = world.resolve()
    assert done.code == 1, done.err
    assert "Read-only file system" in done.err
    assert "VLLM_MODELS_DIR" in done.err
    assert world.served == 0
    subprocess.run(["mount", "-o", "remount,rw", str(store)], check=True)
    world.completes(old, fetching=old.size)
    subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
    done = world.resolve(VLLM_MODEL_SOURCES="local,hf-hub")
    assert (done.code, done.out) == (0, f"{world.target}\n"), done.err
    assert world.which() is old


def test_a_store_that_becomes_read_only_in_the_middle(world: World, old: Version, tmpfs: Callable[[int], Path]) -> None:
    """What has been opened for writing keeps a file system from it; so the next file of the store is in the way."""
    store = tmpfs(2 * old.size + HEADROOM)
    world.strike(FIRST, RANGE, rate=RANGE // 2)
    process = world.start("resolve", "org/name", VLLMRT_CONNECTIONS="1")
    until(lambda: world.served)
    (staged,) = (store / ".staging").glob("*/files")
    subprocess.run(["mount", "--bind", str(staged), str(staged)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(staged)], check=True)
    try:
        done = world.ended(process)
        assert done.code == 1, done.err
        assert world.which() is None
    finally:
        subprocess.run(["umount", str(staged)], check=True)
    world.heal()
    world.completes(old, fetching=world.left(old))


# -- many processes


def test_sixteen_processes_fetch_once(world: World, old: Version) -> None:
    processes = [world.start("resolve", "org/name") for _ in range(PROCESSES)]
    ends = [world.ended(process) for process in processes]
    assert {(done.code, done.out) for done in ends} == {(0, f"{world.target}\n")}, [done.err for done in ends]
    assert world.which() is old
    assert world.served == old.size
    assert len(list((world.machine.store / ".staging").glob("*"))) <= 1


@pytest.mark.parametrize("lacking", [NO_FLOCK, NO_FLOCK + NO_EXCHANGE], ids=["flock", "flock and renameat2"])
def test_sixteen_processes_without_locks(
    world: World, old: Version, preloaded: Callable[[str], str], lacking: str
) -> None:
    """The second lack is that of NFS."""
    library = preloaded(lacking)
    both = "import fcntl; a, b = open('/dev/null'), open('/dev/null')\nfor f in a, b: fcntl.flock(f, 6)\nprint('held')"
    assert python(both, library) == "held"
    processes = [world.start("resolve", "org/name", LD_PRELOAD=library) for _ in range(PROCESSES)]
    ends = [world.ended(process) for process in processes]
    assert world.which() is old
    assert [done.err for done in ends if done.code] == []
    world.completes(old, fetching=0)


@pytest.mark.parametrize("source", ["hf-hub", "r2"])
def test_two_versions_at_once_without_locks(
    world: World, old: Version, new: Version, preloaded: Callable[[str], str], source: str
) -> None:
    """Both write the same names in the same staging directory; r2 has no digests that would tell them apart."""
    library = preloaded(NO_FLOCK)
    env = {"LD_PRELOAD": library, "VLLMRT_CONNECTIONS": "1"}
    if source == "r2":
        world.use_s3()
    for version in (old, new):
        for name in (FIRST, SECOND):
            for start in range(0, len(version.files[name]), RANGE):
                world.strike(name, start, rate=24 * MIB)
    first = world.start("resolve", "org/name", **env)
    until(lambda: world.served > RANGE + MIB)
    world.offer(new)
    second = world.start("resolve", "org/name", **env)
    ends = [world.ended(first), world.ended(second)]
    assert {done.code for done in ends} <= {0, 10, 12, 14}, [done.err for done in ends]
    assert world.which() or all(done.code for done in ends)
    world.heal()
    done = world.resolve()
    assert done.code == 0, done.err
    assert world.which() is new


def test_a_version_that_returns(world: World, old: Version, new: Version) -> None:
    """Half of one, half of another over it, then the first again, from a store that has no digests."""
    world.use_s3()
    for version in (old, new):
        world.offer(version)
        world.strike(SECOND, rate=MIB)
        enough = world.served + len(version.files[FIRST]) + MIB
        process = world.start("resolve", "org/name", VLLMRT_CONNECTIONS="1")
        until(lambda enough=enough: world.served > enough)
        process.kill()
        world.ended(process)
        assert world.which() is None
    world.heal()
    world.offer(old)
    done = world.resolve()
    assert done.code == 0, done.err
    assert world.which() is old


# -- clocks


def test_a_clock_that_jumps(world: World, old: Version, new: Version, preloaded: Callable[[str], str]) -> None:
    library = preloaded(JUMPING)
    jumps = "import time; a = [time.time() for _ in range(10)]; print(max(a) - min(a) > 1e8, time.monotonic() < 1e8)"
    assert python(jumps, library) == "True True"
    for version in (old, new):
        world.offer(version)
        world.strike(FIRST, RANGE, status=503, headers={"Retry-After": "1"})
        world.strike(SECOND, RANGE, cut="stall")
        before = world.served
        done = world.resolve(LD_PRELOAD=library, VLLMRT_STALL_TIMEOUT="1")
        assert done.code == 0, done.err
        assert world.which() is version
        assert world.served - before == version.size
    processes = [world.start("resolve", "org/name", LD_PRELOAD=library) for _ in range(4)]
    assert [world.ended(process).code for process in processes] == [0, 0, 0, 0]
    assert world.which() is new
