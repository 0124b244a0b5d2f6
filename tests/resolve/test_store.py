"""Where models, staged files and locks lie; admission; what is not fetched twice."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from storekit import (
    REQUEST,
    Contents,
    can_mount,
    contents,
    listing,
    manifest_of,
    publish_model,
    read_model,
    restage,
    sha256,
    stage,
)

from vllmrt.errors import ConfigError, NoSpace, SourceError
from vllmrt.identity import identity_hash
from vllmrt.resolve import manifest, recovery
from vllmrt.resolve.publish import publish
from vllmrt.resolve.reuse import Reuse, divide, plan_reuse
from vllmrt.resolve.store import Store, allocated, free_space, unallocated
from vllmrt.types import Digest, ModelRequest, RemoteFile

OLD = contents("old")
ORIGIN = {"source": "hub", "location": "https://hub.example/org/name"}
HASH = identity_hash("org/name")
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def mine(path: Path) -> None:
    path.mkdir(parents=True)
    manifest.write(path / manifest.NAME, manifest_of({}))


def others(path: Path) -> None:
    path.mkdir(parents=True)
    manifest.write(path / manifest.NAME, manifest_of({}, ModelRequest("other/name")))


def yours(path: Path) -> None:
    path.mkdir(parents=True)


def garbage(path: Path) -> None:
    path.mkdir(parents=True)
    (path / manifest.NAME).write_bytes(b'{"identity": 1}')


def fifo(path: Path) -> None:
    path.mkdir(parents=True)
    os.mkfifo(path / manifest.NAME)


def link_to_mine(path: Path) -> None:
    mine(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def plain_file(path: Path) -> None:
    path.write_text("x")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        (None, None, "name"),
        (mine, None, "name"),
        (mine, mine, "name"),
        (None, mine, f"name.{HASH}"),
        (others, None, f"name.{HASH}"),
        (others, mine, f"name.{HASH}"),
        (yours, None, f"name.{HASH}"),
        (garbage, None, f"name.{HASH}"),
        (fifo, None, f"name.{HASH}"),
        (link_to_mine, None, f"name.{HASH}"),
        (dangling, None, f"name.{HASH}"),
        (plain_file, None, f"name.{HASH}"),
        (yours, yours, None),
        (others, others, None),
        (None, yours, "name"),
    ],
)
def test_nobodys_model_is_ever_a_target(store: Store, first: Any, second: Any, target: str | None):
    store.root.mkdir()
    for make, name in ((first, "name"), (second, f"name.{HASH}")):
        if make:
            make(store.root / name)
    published = store.published(REQUEST)
    assert (published is not None) == (mine in (first, second))
    if target is None:
        with pytest.raises(ConfigError, match="is replaced"):
            store.target(REQUEST)
    else:
        assert store.target(REQUEST) == store.root / target
        assert published is None or published.path == store.root / target


def test_a_revision_is_another_identity(store: Store):
    publish_model(store, OLD)
    pinned = ModelRequest("org/name", revision="v1")
    target = publish_model(store, contents("v1"), pinned)
    assert target.name == f"name.{identity_hash('org/name@v1')}"
    assert read_model(store.root / "name") == OLD
    assert store.staging_path("org/name") != store.staging_path("org/name@v1")
    assert store.lock_path("org/name") != store.lock_path("org/name@v1")


def test_the_directory_may_have_another_name(store: Store):
    target = publish_model(store, OLD, name="llama")
    assert target == store.root / "llama"
    assert store.published(REQUEST) is None
    found = store.published(REQUEST, "llama")
    assert found is not None
    assert found.path == target


@pytest.mark.parametrize("name", ["../x", ".staging", "hub", "a/b", "x" * 300, ".locks", "a\nb"])
def test_a_directory_name_that_is_no_path_element_is_refused(store: Store, name: str):
    with pytest.raises(ConfigError):
        store.target(REQUEST, name)


@pytest.mark.parametrize("identity", ["org/name", "o" * 200 + "/" + "n" * 200 + "@" + "r" * 200, "ö/ü@refs/pr/1"])
def test_staging_is_private_and_its_name_fits(store: Store, identity: str):
    staging = store.staging(identity)
    assert staging == store.staging_path(identity)
    assert len(os.fsencode(staging.name)) < 230
    assert store.stagings() == [staging]
    assert store.lock_of(staging) == store.lock_path(identity)
    for path in (staging, staging.parent, staging / "files"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (staging / "files/x").write_text("kept")
    assert (store.staging(identity) / "files/x").read_text() == "kept"


@pytest.mark.parametrize("where", [".staging", f".staging/org-name.{HASH}", f".staging/org-name.{HASH}/files"])
@pytest.mark.parametrize("what", ["link", "dangling link", "file"])
def test_staging_that_leads_elsewhere_is_refused(store: Store, tmp_path: Path, where: str, what: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = store.root / where
    path.parent.mkdir(parents=True)
    if what == "file":
        path.write_text("x")
    else:
        path.symlink_to(elsewhere if what == "link" else "nowhere")
    with pytest.raises(ConfigError):
        store.staging("org/name")
    assert os.listdir(elsewhere) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


@pytest.mark.skipif(not AS_ROOT, reason="needs root to give a directory away")
def test_staging_of_another_user_is_refused(store: Store):
    staging = store.staging("org/name")
    os.chown(staging, 12345, 12345)
    with pytest.raises(ConfigError, match="uid 12345"):
        store.staging("org/name")
    os.chown(store.root, 12345, 12345)  # as on a file system that maps every user to one
    store.staging("org/name")


@pytest.mark.parametrize(
    ("root", "said"), [("file/models", "Not a directory"), ("file", "File exists"), ("x" * 300, "too long")]
)
def test_a_store_that_cannot_be_made_is_named(tmp_path: Path, root: str, said: str):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=said) as caught:
        Store(tmp_path / root).staging("org/name")
    assert str(tmp_path / root) in caught.value.message
    assert "VLLM_MODELS_DIR" in (caught.value.hint or "")


ISOLATED = """\
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from storekit import *
from vllmrt.errors import *
from vllmrt.resolve.store import Store, free_space
from vllmrt.types import RemoteFile
store = Store(Path(sys.argv[1]))
{body}
"""


def isolated(mount: str, body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a few lines with a file system of their own."""
    where = tmp_path / "mounted"
    where.mkdir()
    script = ISOLATED.format(tests=str(Path(__file__).parents[1]), body=body)
    shell = 'set -e; eval "$1"; exec "$2" -c "$3" "$4"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", mount.format(where), sys.executable, script, f"{where}/models"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting takes root and unshare")


@needs_mount
def test_a_full_disk_is_no_space_and_loses_nothing(tmp_path: Path):
    body = """
old, big = contents("old"), contents("big", size=200_000)
target = publish_model(store, old)
try:
    store.admit(store.staging(REQUEST.identity), listing(big))
except NoSpace as error:
    assert "800.0 kB are still to be fetched" in error.message, error.message
    assert "free at least" in error.hint
else:
    raise SystemExit("admitted")
store.admit(store.staging(REQUEST.identity), listing(old))
staged = stage(store, contents("new"))
filler = (store.root / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(b"x" * 512)
except OSError:
    pass
try:
    from vllmrt.resolve.publish import publish
    publish(staged, target, manifest_of(contents("new")))
except NoSpace as error:
    print("no space:", error.message)
assert read_model(target) in (old, contents("new"))
filler.close()
(store.root / "filler").unlink()
if read_model(target) == old:
    publish(staged, target, manifest_of(contents("new")))
assert read_model(target) == contents("new")
print("right")
"""
    done = isolated("mount -t tmpfs -o size=256k,nr_inodes=200 none {}", body, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no space:" in done.stdout
    assert "right" in done.stdout


@needs_mount
def test_a_read_only_store_says_so_and_can_be_read(tmp_path: Path):
    body = """
from vllmrt.resolve.recovery import recover
recover(store)
assert store.published(REQUEST) is not None
for action in (lambda: store.staging(REQUEST.identity), lambda: store.staging("other/model"), store.private):
    try:
        action()
    except ConfigError as error:
        assert "Read-only" in error.message, error.message
    else:
        raise SystemExit("written")
print("right")
"""
    kept = tmp_path / "kept"
    publish_model(Store(kept / "models"), OLD)
    (Store(kept / "models").staging(REQUEST.identity) / "trash.0123456789ab").mkdir()
    done = isolated(f"mount --bind {kept} {{0}} && mount -o remount,bind,ro {{0}}", body, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout


@needs_mount
def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path):
    body = """
import os
old = contents("old")
target = publish_model(store, old)
new = {**old, "config.json": b"new"}
os.system(f"mount -t tmpfs none {store.private()}")
plan = restage(store, listing(new))
assert [file.path for file in plan.wanted] == ["config.json"]
staged = store.staging_path(REQUEST.identity) / "files"
assert read_model(staged) == {path: data for path, data in old.items() if path != "config.json"}
inode = (staged / "sub/0.bin").stat().st_ino
restage(store, listing(new))
assert (staged / "sub/0.bin").stat().st_ino == inode, "copied again"
print("right")
"""
    done = isolated("mount -t tmpfs none {}", body, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout


def file(path: str, size: int, version: str = "v", digest: Digest | None = None) -> RemoteFile:
    return RemoteFile(path, size=size, version=version, digest=digest)


def test_admission_counts_what_is_there(store: Store, monkeypatch: pytest.MonkeyPatch):
    staging = store.staging("org/name")
    wanted = [file("a", 1_000_000), file("b/c", 500_000)]
    assert unallocated(staging, wanted) == 1_500_000
    part = recovery.part(staging, wanted[0])
    part.write_bytes(b"x" * 400_000)
    assert 1_500_000 - 400_000 - 4096 <= unallocated(staging, wanted) <= 1_500_000 - 400_000
    with part.open("r+b") as sparse:
        sparse.truncate(1_000_000)
    assert unallocated(staging, wanted) > 1_000_000, "a hole is no space"
    part.write_bytes(b"x" * 2_000_000)
    assert unallocated(staging, wanted) == 500_000, "what is too long does not pay for another"
    free = 600_000
    monkeypatch.setattr("vllmrt.resolve.store.free_space", lambda _: free)
    store.admit(staging, wanted)
    store.admit(staging, wanted, headroom=100_000)
    with pytest.raises(NoSpace, match=r"500\.0 kB are still to be fetched and 100\.0 kB to spare") as caught:
        store.admit(staging, wanted, headroom=100_001)
    assert "(1 bytes)" in (caught.value.hint or "")
    monkeypatch.setattr("vllmrt.resolve.store.free_space", lambda _: None)
    store.admit(staging, wanted, headroom=1 << 60)


def test_admission_says_what_other_downloads_have_left(store: Store):
    (store.staging("org/other") / "files/x").write_bytes(b"x" * 1_000_000)
    with pytest.raises(NoSpace) as caught:
        store.admit(store.staging_path("org/name"), [file("a", 1 << 60)])
    assert "gc looks after 1.0 MB" in (caught.value.hint or "")


def test_files_with_another_name_elsewhere_are_not_counted(store: Store, tmp_path: Path):
    staging = store.staging("org/name")
    (staging / "files/a").write_bytes(b"x" * 100_000)
    before = allocated(staging)
    assert before >= 100_000
    (tmp_path / "b").hardlink_to(staging / "files/a")
    assert allocated(staging) == before - before
    assert unallocated(staging, [file("a", 100_000)]) == 100_000


def test_free_space_is_known_before_the_store_is_made(tmp_path: Path):
    assert free_space(tmp_path / "a/b/c") == free_space(tmp_path)
    assert not (tmp_path / "a").exists()


def names(plan: Reuse) -> tuple[set[str], set[str]]:
    return set(plan.reused), {file.path for file in plan.wanted}


SHA_X, SHA_Y = Digest("sha256", value=sha256(b"x")), Digest("sha256", value=sha256(b"y"))
KNOWN = manifest_of({"x": b"x"})
STATE = KNOWN.files["x"]


@pytest.mark.parametrize(
    ("listed", "location", "same"),
    [
        (file("x", 1, digest=SHA_X), "elsewhere", True),
        (file("x", 1, digest=Digest("sha256", value=SHA_X.value.upper())), "elsewhere", True),
        (file("x", 1, digest=SHA_Y), "elsewhere", False),
        (file("x", 1, STATE.version, digest=SHA_Y), ORIGIN["location"], False),
        (file("x", 2, digest=SHA_X), "elsewhere", False),
        (file("y", 1, digest=SHA_X), "elsewhere", False),
        (file("x", 1, STATE.version), ORIGIN["location"], True),
        (file("x", 1, STATE.version), "elsewhere", False),
        (file("x", 2, STATE.version), ORIGIN["location"], False),
        (file("x", 1, "another"), ORIGIN["location"], False),
        (file("x", 1, STATE.version, digest=Digest("crc32c", value="00")), ORIGIN["location"], True),
        (file("x", 1, "another", digest=Digest("crc32c", value="00")), ORIGIN["location"], False),
    ],
)
def test_a_file_is_the_same_by_digest_or_by_what_the_same_store_calls_it(listed: RemoteFile, location: str, same: bool):  # noqa: FBT001
    plan = divide(KNOWN, [listed], source="hub", location=location)
    assert names(plan) == (({listed.path}, set()) if same else (set(), {listed.path}))
    assert plan.identical is same
    if same:
        assert plan.reused[listed.path].version == listed.version
        assert plan.reused[listed.path].digest == STATE.digest


def test_an_empty_version_says_nothing():
    known = manifest.Manifest(
        identity="org/name", source="hub", location="l", files={"x": manifest.FileState(1, 0, "md5:00")}
    )
    assert names(divide(known, [file("x", 1, "")], source="hub", location="l")) == (set(), {"x"})


def test_a_listing_is_identical_only_as_a_whole():
    known = manifest_of(OLD)
    assert divide(known, listing(OLD), **ORIGIN).identical
    fewer = {path: data for path, data in OLD.items() if path != "config.json"}
    assert not divide(known, listing(fewer), **ORIGIN).identical
    assert not divide(known, listing({**OLD, "more": b""}), **ORIGIN).identical
    assert not divide(None, listing(OLD), **ORIGIN).identical
    assert divide(None, listing(OLD), **ORIGIN).wanted == listing(OLD)


def update(store: Store, new: Contents) -> tuple[Reuse, Path]:
    return restage(store, listing(new)), store.staging_path(REQUEST.identity) / recovery.FILES


def test_what_did_not_change_is_linked_and_what_did_is_fetched(store: Store):
    target = publish_model(store, OLD)
    new = {**OLD, "config.json": b"new", "deep/er/more.bin": b"more"}
    del new["sub/3.bin"]
    plan, files = update(store, new)
    assert names(plan) == ({"sub/0.bin", "sub/1.bin", "sub/2.bin"}, {"config.json", "deep/er/more.bin"})
    for path in plan.reused:
        assert (files / path).samefile(target / path)
    assert not (files / "sub/3.bin").exists()
    for path in ("config.json", "deep/er/more.bin"):
        (files / path).write_bytes(new[path])
    before = {path: (target / path).stat().st_mtime_ns for path in plan.reused}
    publish(files, target, manifest_of(new))
    assert read_model(target) == new
    assert {path: (target / path).stat().st_mtime_ns for path in before} == before
    assert update(store, new)[0].identical


def test_a_file_that_its_user_has_altered_is_fetched_again(store: Store):
    target = publish_model(store, OLD)
    (target / "config.json").write_bytes(b"OLD")
    (target / "sub/1.bin").unlink()
    (target / "sub/2.bin").rename(target / "sub/moved")
    (target / "sub/2.bin").symlink_to("moved")
    plan = plan_reuse(store.published(REQUEST), listing(OLD), **ORIGIN)
    assert names(plan) == ({"sub/0.bin", "sub/3.bin"}, {"config.json", "sub/1.bin", "sub/2.bin"})
    assert not plan.identical


def test_a_linked_file_is_never_left_where_it_would_be_written_to(store: Store):
    target = publish_model(store, OLD)
    update(store, OLD | {"more": b"x"})  # links all of the old model, and is then killed
    new = contents("new")
    plan, files = update(store, new)
    assert {file.path for file in plan.wanted} == set(new)
    for path, data in new.items():
        assert not (files / path).exists()
        with os.fdopen(os.open(files / path, os.O_RDWR | os.O_CREAT, 0o644), "wb") as written:
            written.write(data)
    assert read_model(target) == OLD
    publish(files, target, manifest_of(new))
    assert read_model(target) == new


def test_what_was_half_fetched_stays_for_the_journal(store: Store):
    publish_model(store, OLD)
    new = contents("new")
    plan, files = update(store, new)
    part = recovery.part(files.parent, plan.wanted[0])
    part.write_bytes(b"half")
    inode = part.stat().st_ino
    update(store, new)
    os.link(part, files / plan.wanted[0].path)  # as a kill after the file got its name in the model leaves it
    update(store, new)
    assert part.read_bytes() == b"half"
    assert part.stat().st_ino == inode


def test_a_part_of_another_version_or_of_a_published_file_is_taken_out(store: Store):
    target = publish_model(store, OLD)
    half, published = [recovery.part(store.staging(REQUEST.identity), file) for file in listing(OLD)[:2]]
    half.write_bytes(b"half")
    os.link(target / listing(OLD)[1].path, published)
    altered = target / listing(OLD)[1].path
    other = b"!" + OLD[listing(OLD)[1].path][1:]
    altered.write_bytes(other)
    plan, _ = update(store, OLD)
    assert [file.path for file in plan.wanted] == [listing(OLD)[1].path]
    assert not half.exists(), "nobody wants it any more"
    assert not published.exists(), "it would be written to"
    assert altered.read_bytes() == other


def test_versions_and_sizes_have_parts_of_their_own(store: Store):
    staging = store.staging(REQUEST.identity)
    files = [file("a", 1), file("a", 2), file("b", 1), file("a", 1, version="2")]
    assert len({recovery.part(staging, one) for one in files}) == len(files)


def test_staging_is_cleared_of_what_is_not_in_the_listing(store: Store, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("x")
    staging = store.staging(REQUEST.identity)
    files = staging / "files"
    (files / "gone/deep").mkdir(parents=True)
    (files / "gone/deep/x").write_text("x")
    (files / "sub").symlink_to(precious)
    (files / "config.json").symlink_to(precious / "config.json")
    os.mkfifo(files / "fifo")
    (files / manifest.NAME).write_text("{}")
    (files / "more").mkdir()
    (files / "more/file").write_text("was a directory, is a file now")
    plan, _ = update(store, OLD | {"more": b"x"})
    assert len(plan.wanted) == len(OLD) + 1
    assert [path.relative_to(files).as_posix() for path in files.rglob("*")] == ["sub"]
    assert not (files / "sub").is_symlink()
    assert {path.name: path.read_text() for path in precious.iterdir()} == {"config.json": "x"}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b", ".vllmrt.json", "a\0b"])
def test_a_hostile_name_never_reaches_the_disk(store: Store, name: str):
    staging = store.staging(REQUEST.identity)
    with pytest.raises(SourceError):
        restage(store, (file(name, 1),))
    store.admit(staging, [file(name, 1)])
    assert os.listdir(staging / "files") == os.listdir(staging / "parts") == []


def test_a_hostile_manifest_links_nothing_from_elsewhere(store: Store, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    target = publish_model(store, OLD)
    known = json.loads((target / manifest.NAME).read_text())
    status = secret.stat()
    known["files"]["../../secret"] = [1, status.st_mtime_ns, f"sha256:{sha256(b'x')}", "v"]
    (target / manifest.NAME).write_text(json.dumps(known))
    with pytest.raises(SourceError):
        restage(store, listing({"../../secret": b"x"}))


def test_a_copy_that_was_cut_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    target = publish_model(store, OLD)
    plan, files = update(store, OLD | {"more": b"x"})
    assert len(plan.reused) == len(OLD)
    assert read_model(files) == OLD
    assert not any((files / path).samefile(target / path) for path in OLD)
    (files / "config.json").write_bytes(b"ol")
    update(store, OLD | {"more": b"x"})
    assert read_model(files) == OLD


def test_publishing_and_staging_again_leaves_no_trace(store: Store):
    for number in range(3):
        target = publish_model(store, contents(str(number)))
        assert stage(store, {}).is_dir()
    assert read_model(target) == contents("2")
    assert sorted(os.listdir(store.root / ".staging" / f"org-name.{HASH}")) == ["files", "parts"]
