"""A remote source as a stranger would write it: the "store" is a directory, and what is asked of it is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
import hashlib, json, os, time
from pathlib import Path

import vllmrt
from vllmrt.errors import ChangedError, TransientSourceError
from vllmrt.types import Candidate, Digest, RemoteFile, Skip

ROOT = Path({root!r})


class Range:
    def __init__(self, path, start, stop):
        self.file = open(path, "rb")
        self.file.seek(start)
        self.left = stop - start

    def readinto(self, buffer):
        if os.environ.get("ACME_SLOW"):
            time.sleep(float(os.environ["ACME_SLOW"]))
            buffer = buffer[:65536]
        count = self.file.readinto(buffer[: self.left])
        self.left -= count
        return count

    def close(self):
        self.file.close()


class Acme:
    name = "acme"

    def probe(self, request):
        marker = os.environ.get("ACME_FAILS_ONCE")
        if marker and not os.path.exists(marker):
            open(marker, "w").close()
            raise TransientSourceError("503", retry_after=0.1)
        base = ROOT / request.name
        if not base.is_dir():
            return Skip(f"nothing at {{base}}")
        names = [str(path.relative_to(base)) for path in sorted(base.rglob("*")) if path.is_file()]
        files = tuple(self.describe(base, name) for name in names)
        extra = (ROOT / "hostile.json")
        if extra.exists():
            files += tuple(RemoteFile(name, size=1, version="1") for name in json.loads(extra.read_text()))
        return (Candidate(f"acme:{{request.name}}", files=files, revision="r1"),)

    def describe(self, base, name):
        content = (base / name).read_bytes()
        value = hashlib.sha256(content).hexdigest()
        digest = Digest("sha256", value=value) if not os.environ.get("ACME_NO_DIGEST") else None
        return RemoteFile(name, size=len(content), version=value[:16], digest=digest)

    def open(self, candidate, file, start, stop):
        with (ROOT / "asked.log").open("a") as log:
            log.write(f"{{file.path}} {{start}} {{stop}}\\n")
        self.change(candidate, file)
        return Range(ROOT / candidate.location.removeprefix("acme:") / file.path, start, stop)

    def change(self, candidate, file):
        path = ROOT / candidate.location.removeprefix("acme:") / file.path
        if os.environ.get("ACME_CHANGES") == file.path and "changed" not in path.read_text():
            path.write_text(json.dumps(json.loads(path.read_text()) | {{"changed": True}}))
            raise ChangedError(f"{{file.path}} is another")


@vllmrt.hookimpl
def vllmrt_sources():
    yield Acme()
"""


def install(site: Path, root: Path) -> None:
    """Install the plugin into `site`; it offers the models below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    modules = {"acme_remote": MODULE.format(root=str(root))}
    fake_dist(site, "acme-remote", "1.2.3", {"vllmrt.sources": {"acme": "acme_remote"}}, modules)


def asked(root: Path) -> list[tuple[str, int, int]]:
    """Return the ranges that were opened so far, in order."""
    log = root / "asked.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(path, int(start), int(stop)) for path, start, stop in (line.rsplit(" ", 2) for line in lines)]
