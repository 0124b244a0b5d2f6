"""A remote source as a stranger would write it: the "store" is a directory, and what is asked of it is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
import json, os, time
from dataclasses import replace
from pathlib import Path

import vllmrt
from vllmrt.errors import ChangedError, TransientSourceError
from vllmrt.testing import FakeSource
from vllmrt.types import RemoteFile, Skip

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


class Acme(FakeSource):
    def probe(self, request):
        marker = os.environ.get("ACME_FAILS_ONCE")
        if marker and not os.path.exists(marker):
            open(marker, "w").close()
            raise TransientSourceError("503", retry_after=0.1)
        answer = super().probe(replace(request, model_id=request.name))
        extra = ROOT / "hostile.json"
        if isinstance(answer, Skip) or not extra.exists():
            return answer
        hostile = tuple(RemoteFile(name, size=1, version="1") for name in json.loads(extra.read_text()))
        return (replace(answer[0], files=answer[0].files + hostile),)

    def describe(self, base, path):
        file = super().describe(base, path)
        if os.environ.get("ACME_DIGEST"):
            file = replace(file, digest=replace(file.digest, algorithm=os.environ["ACME_DIGEST"]))
        return replace(file, version="") if os.environ.get("ACME_NO_VERSION") else file

    def open(self, candidate, file, start, stop):
        with (ROOT / "asked.log").open("a") as log:
            log.write(f"{{file.path}} {{start}} {{stop}}\\n")
        path = Path(candidate.location, file.path)
        if os.environ.get("ACME_CHANGES") == file.path and "changed" not in path.read_text():
            path.write_text(json.dumps(json.loads(path.read_text()) | {{"changed": True}}))
            raise ChangedError(f"{{file.path}} is another")
        return Range(path, start, stop)


@vllmrt.hookimpl
def vllmrt_sources():
    yield Acme(ROOT, name="acme", digests=not os.environ.get("ACME_NO_DIGEST"))
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
