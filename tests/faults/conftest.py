"""A world for each test, in which no secret may be found afterwards where it does not belong."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from faultkit import Version, World, make_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("old") / "model", "old")


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("new") / "model", "new")


@pytest.fixture
def world(tmp_path: Path, old: Version) -> Iterator[World]:
    made = World(tmp_path)
    with ExitStack() as stack:
        for server in (made.hub, made.cdn, made.s3):
            stack.enter_context(server)
        made.offer(old)
        yield made
    assert list(made.leaks()) == []
    assert (made.hub.crashed, made.cdn.crashed, made.s3.crashed) == ([], [], [])


@pytest.fixture
def tmpfs(world: World) -> Iterator[Callable[[int], Path]]:
    """Return what puts the store on a small file system of its own."""
    store = world.machine.store

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(store)]
        done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return store

    yield mount
    if store.is_mount():
        try:
            assert list(world.leaks()) == []  # `world` looks after it is unmounted
        finally:
            subprocess.run(["umount", str(store)], check=True)


@pytest.fixture
def preloaded(tmp_path: Path) -> Callable[[str], str]:
    """Return what compiles a C function that takes the place of libc's; the value is for LD_PRELOAD."""

    def build(source: str) -> str:
        code, library = tmp_path / "shim.c", tmp_path / "shim.so"
        code.write_text(source)
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, code, "-ldl"], check=True)
        except FileNotFoundError:
            pytest.skip("no C compiler")
        return str(library)

    return build
