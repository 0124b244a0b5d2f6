"""The list of models, proof of them, who has them open, and what garbage collection takes."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from storekit import REQUEST, can_mount, contents, listing, manifest_of, publish_model, read_model, restage, stage

from vllmrt import locking
from vllmrt.errors import ConfigError, LockTimeout
from vllmrt.identity import identity_hash
from vllmrt.resolve import inventory, manifest
from vllmrt.resolve.gc import Plan, collect, plan
from vllmrt.resolve.inventory import find, model_at, models, verify
from vllmrt.resolve.publish import publish
from vllmrt.resolve.store import Store
from vllmrt.resolve.usage import usage
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD, NEW = contents("old"), contents("new")
OTHER = ModelRequest("org/other")
DAY = 86_400

# Python's mmap keeps a descriptor of its own, which is closed here: safetensors' has none.
MAPPING = """\
import mmap, os
with open({}) as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
for name in os.listdir("/proc/self/fd"):
    if os.path.realpath("/proc/self/fd/" + name).endswith("0.bin"): os.close(int(name))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@contextlib.contextmanager
def running(*argv: str, cwd: Path | None = None) -> Iterator[int]:
    """A process that says when it has started, and lives until the end of the block."""
    with subprocess.Popen(argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def python(body: str, *argv: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys\n{body}\nprint('ready', flush=True)\nsys.stdin.read()", *argv)


def age(path: Path, days: float) -> None:
    when = time.time() - days * DAY
    for entry in [*path.rglob("*"), path]:
        os.utime(entry, (when, when), follow_symlinks=False)


def test_every_directory_is_listed_and_nothing_of_the_stores_own(store: Store, tmp_path: Path):
    target = publish_model(store, OLD)
    publish_model(store, OLD, OTHER)
    (store.root / "mine/sub").mkdir(parents=True)
    (store.root / "mine/sub/file").write_bytes(b"12345")
    (store.root / "mine/dangling").symlink_to("nowhere")
    (store.root / "linked").symlink_to(target)
    (store.root / "broken").symlink_to("nowhere")
    (store.root / "hub").mkdir()
    (store.root / "a-file").write_text("x")
    (store.root / ".locks").mkdir(exist_ok=True)
    (store.root / "garbage").mkdir()
    (store.root / "garbage" / manifest.NAME).write_text("[")
    found = {model.path.name: model for model in models(store)}
    assert list(found) == ["garbage", "linked", "mine", "name", "other"]
    assert {name for name, model in found.items() if model.manifest} == {"name", "other"}
    assert found["name"].files == len(OLD)
    assert found["name"].size == found["linked"].size == sum(map(len, OLD.values()))
    assert (found["mine"].files, found["mine"].size) == (1, 5)
    assert models(Store(tmp_path / "nowhere")) == []


def test_a_model_is_found_by_directory_or_identity(store: Store):
    publish_model(store, OLD)
    publish_model(store, OLD, OTHER)
    pinned = publish_model(store, NEW, ModelRequest("org/name", revision="v1"))
    assert find(store, "name") == find(store, "org/name")
    assert find(store, "org/name@v1").path == find(store, pinned.name).path == pinned
    for name in ("nothing", "org/nothing", "../models/name", "", "org/name@v2"):
        with pytest.raises(ConfigError, match="nothing is called"):
            find(store, name)
    publish_model(store, OLD, name="alias")
    with pytest.raises(ConfigError, match="more than once: alias, name"):
        find(store, "org/name")


def test_a_whole_model_is_verified(store: Store):
    told: list[int] = []
    result = verify(model_at(publish_model(store, OLD)), told.append)
    assert result == inventory.Verification(len(OLD), sum(map(len, OLD.values())), 0, (), ())
    assert sum(told) == result.size


def verified(target: Path) -> inventory.Verification:
    result = verify(model_at(target))
    assert result is not None
    return result


def once(act: Callable[[], object]) -> Callable[[int], None]:
    """Return what does something when the first file has been read; no thread reads a second one before that."""
    lock, left = threading.Lock(), [act]

    def told(_: int) -> None:
        with lock:
            while left:
                left.pop()()

    return told


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(store: Store):
    """Every pod of a shared volume publishes, and none of them damages what another reads."""
    target = publish_model(store, contents("old", files=20))
    newer = contents("newer", files=21, size=1001)
    result = verify(model_at(target), once(lambda: publish_model(store, newer)))
    assert result == inventory.Verification(len(newer), sum(map(len, newer.values())), 0, (), ())


def test_a_model_that_is_removed_while_it_is_read_is_not_damaged(store: Store):
    target = publish_model(store, contents("old", files=20))
    assert verify(model_at(target), once(lambda: inventory.remove(store, model_at(target)))) is None


def flip(path: Path) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "sha256 is .*, published was "),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of 1,000"),
        (fifo, "is no regular file"),
        (link, "cannot be opened"),
        (directory, "is no regular file"),
    ],
)
def test_a_damaged_file_is_named(store: Store, spoil: Any, said: str):
    target = publish_model(store, OLD)
    spoil(target / "sub/2.bin")
    result = verified(target)
    assert [fault.file for fault in result.faults] == ["sub/2.bin"]
    assert re.search(said, result.faults[0].reason)
    assert result.verified == len(OLD) - 1


def test_what_is_not_known_is_not_called_verified(store: Store):
    known = manifest_of(OLD)
    files = dict(known.files)
    files["config.json"] = manifest.FileState(3, 0)
    files["sub/0.bin"] = manifest.FileState(1000, 0, "whirlpool:00")
    target = store.target(REQUEST)
    publish(stage(store, OLD), target, manifest.Manifest(identity="org/name", source="s", location="l", files=files))
    (target / "model.fp16.safetensors").write_bytes(b"x")
    result = verified(target)
    assert (result.verified, result.unproven, result.added) == (3, 1, ("model.fp16.safetensors",))
    assert [(fault.file, fault.reason) for fault in result.faults] == [
        ("sub/0.bin", "has a digest that cannot be checked here: 'whirlpool'")
    ]
    (store.root / "mine").mkdir()
    with pytest.raises(ConfigError, match="put there by its user"):
        verify(model_at(store.root / "mine"))


def test_a_hostile_manifest_reads_nothing_elsewhere(store: Store, tmp_path: Path):
    target = publish_model(store, OLD)
    known = json.loads((target / manifest.NAME).read_text())
    (tmp_path / "secret").write_text("x")
    names = ["../../secret", "/etc/passwd", "", "a\0b"]
    known["files"] |= {name: [1, 0, "sha256:00"] for name in names}
    (target / manifest.NAME).write_text(json.dumps(known))
    faults = verified(target).faults
    assert {fault.file: fault.reason for fault in faults} == dict.fromkeys(
        names, "is no name of a file that was published"
    )


def test_git_digests_are_verified_too(store: Store):
    known = manifest_of({"x": b"hello\n"})
    digest = "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a"  # what git hash-object says
    files = {"x": manifest.FileState(6, 0, digest)}
    target = store.target(REQUEST)
    publish(
        stage(store, {"x": b"hello\n"}),
        target,
        manifest.Manifest(identity=known.identity, source="s", location="l", files=files),
    )
    assert verified(target).verified == 1
    flip(target / "x")
    assert len(verified(target).faults) == 1


def test_a_published_model_is_removed(store: Store):
    target = publish_model(store, OLD)
    inventory.remove(store, model_at(target))
    assert not target.exists()
    assert os.listdir(store.root / ".staging") == []


@pytest.mark.parametrize("make", ["yours", "link", "garbage"])
def test_what_is_yours_is_not_removed(store: Store, make: str):
    mine = publish_model(store, OLD)
    if make == "link":
        (store.root / "mine").symlink_to(mine)
    else:
        (store.root / "mine").mkdir()
        (store.root / "mine" / manifest.NAME).write_text("{}") if make == "garbage" else None
    with pytest.raises(ConfigError, match="put there by its user"):
        inventory.remove(store, model_at(store.root / "mine"))
    assert (store.root / "mine").exists()
    assert read_model(mine) == OLD


def test_a_model_that_is_being_fetched_is_not_removed(store: Store):
    target = publish_model(store, OLD)
    with (
        locking.hold(store.lock_path("org/name"), timeout=0, waiting=lambda _: None),
        pytest.raises(LockTimeout),
    ):
        inventory.remove(store, model_at(target))
    assert read_model(target) == OLD


def test_a_removed_model_does_not_come_back_from_its_backup(store: Store):
    from vllmrt.resolve.recovery import recover

    target = publish_model(store, OLD)
    backup = store.staging("org/name") / "backup.1.name"
    backup.mkdir()
    inventory.remove(store, model_at(target))
    recover(store)
    assert not target.exists()


@pytest.mark.parametrize(
    "body",
    [
        "file = open(sys.argv[1] + '/sub/0.bin')",
        MAPPING.format("sys.argv[1] + '/sub/0.bin'"),
        "import os\nos.chdir(sys.argv[1])",
    ],
    ids=["descriptor", "mapping", "directory"],
)
def test_what_a_process_has_open_is_seen(store: Store, tmp_path: Path, body: str):
    target, other = publish_model(store, OLD), publish_model(store, NEW, OTHER)
    with running(*python(f"path = sys.argv[1]\nimport ctypes\n{body}", str(target))) as pid:
        found = usage([target, other])
        assert [user.pid for user in found.users[target]] == [pid]
        assert other not in found.users
        moved = target.rename(tmp_path / "moved")
        hidden = usage([moved])
        assert [user.pid for user in hidden.users[moved]] == [pid], "it has it open still, under another name"
    assert usage([moved]).users == {}


@pytest.mark.skipif(not can_mount(), reason="mounting takes root and unshare")
@pytest.mark.parametrize(
    "body",
    [
        "file = open('/mnt/name/sub/0.bin')",
        MAPPING.format("'/mnt/name/sub/0.bin'"),
    ],
    ids=["descriptor", "mapping"],
)
def test_a_container_that_has_it_under_another_path_is_seen(store: Store, body: str):
    target, other = publish_model(store, OLD), publish_model(store, OLD, OTHER)
    mount = 'mount --bind "$0" /mnt && shift 0 && exec "$@"'
    with running("unshare", "-m", "sh", "-c", mount, str(store.root), *python(body)) as pid:
        found = usage([target, other])
        assert [user.pid for user in found.users[target]] == [pid]
        assert other not in found.users


@pytest.mark.parametrize("word", ["{target}", "--model={target}", "{target}/", "name", "./name/../name", "{link}/name"])
def test_a_model_on_a_command_line_is_seen(store: Store, tmp_path: Path, word: str):
    target = publish_model(store, OLD)
    (tmp_path / "link").symlink_to(store.root)
    argument = word.format(target=target, link=tmp_path / "link")
    with running(*python("pass", "serve", argument), cwd=store.root) as pid:
        users = usage([target]).users[target]
        assert [user.pid for user in users] == [pid]
        assert str(users[0]).startswith(f"process {pid} (")


@pytest.mark.parametrize("word", ["--api-key=canary", "https://user:canary@host/x?token=canary", "HF_TOKEN=canary"])
def test_no_key_on_the_command_line_of_a_user_is_shown(store: Store, word: str):
    target = publish_model(store, OLD)
    with running("sh", "-c", f"echo ready; read x # {word}", str(target)) as pid:
        (user,) = usage([target]).users[target]
    assert user.pid == pid
    assert "********" in user.command
    assert "canary" not in str(user)


@pytest.mark.parametrize("word", ["{target}-2", "{target}.bak", "rename", "{target}/../other"])
def test_a_command_line_that_only_looks_like_it_is_not(store: Store, word: str):
    target = publish_model(store, OLD)
    with running(*python("pass", "serve", word.format(target=target)), cwd=store.root):
        assert usage([target]).users == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_processes_that_cannot_be_looked_into_are_counted(store: Store):
    target = publish_model(store, OLD)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom vllmrt.resolve.usage import usage\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(usage([Path(sys.argv[1])]).unknown)"
    )
    with running(*python("pass")):
        done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert usage([target]).unknown == 0


def test_without_anything_to_look_for_no_process_is_looked_at(tmp_path: Path):
    assert usage([], tmp_path).unknown == 0


def test_we_and_those_who_started_us_do_not_count(store: Store):
    target = publish_model(store, OLD)
    with (target / "config.json").open() as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        assert usage([target]).users == {}


def half_fetched(store: Store, request: ModelRequest = REQUEST) -> Path:
    staging = stage(store, {"config.json": b"x"}, request).parent
    (staging / "journal.jsonl").write_text("{}\n")
    return staging


def run_gc(store: Store, **options: Any) -> Plan:
    """Plan and collect, and check that planning writes nothing and says what will happen."""
    options = {"keep_days": 7.0, **options}
    before = sorted(map(str, store.root.rglob("*")))
    planned = plan(store, **options)
    assert sorted(map(str, store.root.rglob("*"))) == before
    return collect(store, planned, keep_days=options["keep_days"])


def outcome(done: Plan) -> list[tuple[str, str, str]]:
    return [(item.action, item.kind, item.path.name) for item in done.items]


@pytest.mark.parametrize(("days", "keep_days", "dropped"), [(1, 7, False), (8, 7, True), (1, 0, True), (8, 30, False)])
def test_a_broken_off_download_is_kept_for_a_while(store: Store, days: float, keep_days: float, dropped: bool):  # noqa: FBT001
    staging = half_fetched(store)
    age(staging, days)
    done = run_gc(store, keep_days=keep_days)
    assert outcome(done) == [("drop" if dropped else "keep", "staging", staging.name)]
    assert staging.exists() is not dropped
    assert dropped or (staging / "files/config.json").exists()


def test_a_download_that_goes_on_is_not_old(store: Store):
    staging = half_fetched(store)
    age(staging, 30)
    (staging / "files/config.json").write_text("xy")
    assert outcome(run_gc(store)) == [("keep", "staging", staging.name)]


def test_staging_that_is_older_than_what_was_published_is_superseded(store: Store):
    staging = half_fetched(store)
    leavings = {path: path.read_bytes() for path in staging.rglob("*") if path.is_file()}
    target = publish_model(store, OLD)
    (staging / "files").mkdir(parents=True)
    for path, data in leavings.items():
        path.write_bytes(data)
    fresh = half_fetched(store, OTHER)
    age(staging, 1)
    done = run_gc(store)
    assert outcome(done) == [("drop", "staging", staging.name), ("keep", "staging", fresh.name)]
    assert not staging.exists()
    assert read_model(target) == OLD


def test_what_kills_have_left_is_dropped(store: Store):
    target = publish_model(store, OLD)
    staging = half_fetched(store)
    for name in ("trash.0123456789ab", "sealed.0123456789ab", "backup.1.name"):
        (staging / name).mkdir()
        (staging / name / "x").write_text("x")
    top = store.root / ".staging/trash.0123456789ab"
    top.mkdir()
    done = run_gc(store)
    assert sorted(outcome(done)) == [
        ("drop", "backup", "backup.1.name"),
        ("drop", "leftover", "sealed.0123456789ab"),
        ("drop", "leftover", "trash.0123456789ab"),
        ("drop", "leftover", "trash.0123456789ab"),
        ("keep", "staging", staging.name),
    ]
    assert sorted(os.listdir(staging)) == ["files", "journal.jsonl", "parts"]
    assert not top.exists()
    assert read_model(target) == OLD


def test_the_last_copy_of_a_model_is_restored_and_not_dropped(store: Store):
    target = publish_model(store, OLD)
    staging = half_fetched(store)
    target.rename(staging / "backup.2.name")
    (staging / "backup.1.name").mkdir()
    age(staging, 30)
    done = run_gc(store)
    assert ("restore", "backup", "backup.2.name") in outcome(done)
    assert ("drop", "backup", "backup.1.name") in outcome(done)
    assert read_model(target) == OLD


def test_an_unpublished_model_is_taken_for_a_download(store: Store):
    publish_model(store, OLD)
    staging = stage(store, NEW).parent
    (staging / "files").rename(staging / "claim.0123456789ab")
    assert outcome(run_gc(store)) == [("keep", "staging", staging.name)]
    assert (staging / "claim.0123456789ab").exists()


def test_a_model_that_is_published_twice_is_kept_once(store: Store):
    (store.root / "name").mkdir(parents=True)
    twin = publish_model(store, OLD)
    assert twin.name == f"name.{identity_hash('org/name')}"
    assert outcome(run_gc(store)) == []
    (store.root / "name").rmdir()
    twin.rename(store.root / "name")
    publish(stage(store, OLD), twin, manifest_of(OLD))
    publish_model(store, NEW, ModelRequest("org/name", revision="v1"))
    assert outcome(run_gc(store)) == [("drop", "duplicate", twin.name)]
    assert not twin.exists()
    assert read_model(store.root / "name") == OLD
    assert len(models(store)) == 2


@pytest.mark.parametrize("keep", ["org/name", "name", "staging"])
def test_what_is_to_be_kept_is_kept(store: Store, keep: str):
    publish_model(store, OLD)
    staging, other = half_fetched(store), half_fetched(store, OTHER)
    age(staging, 30)
    age(other, 30)
    done = run_gc(store, keep=[staging.name if keep == "staging" else keep])
    assert sorted(outcome(done)) == [("drop", "staging", other.name), ("keep", "staging", staging.name)]
    assert staging.exists()


def test_what_is_being_fetched_is_not_dropped(store: Store):
    staging = half_fetched(store)
    age(staging, 30)
    body = (
        "from pathlib import Path\nfrom vllmrt import locking\n"
        "lock = locking.hold(Path(sys.argv[1]), timeout=0, waiting=print)\nlock.__enter__()"
    )
    planned = plan(store, keep_days=7)
    assert planned.items[0].action == "drop"
    with running(*python(body, str(store.lock_path("org/name")))):
        assert plan(store, keep_days=7).items[0].reason == "is being worked on"
        assert outcome(run_gc(store)) == [("keep", "staging", staging.name)]
        assert outcome(collect(store, planned, keep_days=7)) == [("keep", "staging", staging.name)]
    assert staging.exists()


def test_a_plan_that_no_longer_holds_is_not_carried_out(store: Store):
    staging = half_fetched(store)
    age(staging, 30)
    planned = plan(store, keep_days=7)
    (staging / "files/config.json").write_text("resumed")
    done = collect(store, planned, keep_days=7)
    assert [(item.action, item.reason) for item in done.items] == [("keep", "has changed meanwhile")]
    assert (staging / "files/config.json").read_text() == "resumed"


def test_what_a_process_has_open_is_not_dropped(store: Store):
    target = publish_model(store, OLD)
    staging = half_fetched(store)
    old = staging / "sealed.0123456789ab"
    target.rename(old)
    with running(*python("file = open(sys.argv[1])", str(old / "config.json"))) as pid:
        done = run_gc(store)
        assert ("keep", "leftover", old.name) in outcome(done)
        assert any(f"process {pid}" in item.reason for item in done.items)
        assert read_model(old) == OLD
    assert ("drop", "leftover", old.name) in outcome(run_gc(store))
    assert not old.exists()


def test_linked_files_keep_their_other_name(store: Store):
    target = publish_model(store, OLD)
    staging = store.staging("org/name")
    restage(store, listing(OLD | {"more": b"x"}))
    age(staging, 30)
    age(staging.parent, 30)
    done = run_gc(store)
    assert [item.size for item in done.items] == [0]
    assert read_model(target) == OLD


def test_yours_is_never_dropped(store: Store, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    for name in ("mine", f"name.{identity_hash('org/name')}", "trash.0123456789ab", ".staging/mine"):
        (store.root / name).mkdir(parents=True)
    publish_model(store, OLD)
    (store.root / f".staging/org-x.{identity_hash('org/x')}").symlink_to(elsewhere)
    (store.root / "hub/blobs").mkdir(parents=True)
    age(store.root, 300)
    assert outcome(run_gc(store, keep_days=0)) == []
    assert (elsewhere / "file").exists()
    assert {path.name for path in store.root.iterdir()} >= {"mine", "name", "trash.0123456789ab", "hub"}


def test_a_store_whose_staging_leads_elsewhere_is_refused(store: Store, tmp_path: Path):
    (tmp_path / "elsewhere/trash.0123456789ab").mkdir(parents=True)
    store.root.mkdir()
    (store.root / ".staging").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="link"):
        plan(store, keep_days=0)
    assert (tmp_path / "elsewhere/trash.0123456789ab").exists()
