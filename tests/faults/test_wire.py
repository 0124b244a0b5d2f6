"""What a network and an origin do to a transfer: the model is published right, or not at all."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from faultkit import BUFFERED, FIRST, MIB, RANGE, SECOND, overlap

if TYPE_CHECKING:
    from faultkit import Version, World


class Passing(NamedTuple):
    """A fault that passes: the model is published, and at most `again` bytes are fetched twice."""

    fault: dict[str, Any]
    again: int = 0
    stall: str | None = None
    at_least: float = 0.0


IN_MIDDLE = RANGE + 5 * MIB
PASSING = {
    "reset": Passing({"cut": "reset"}, BUFFERED),
    "reset three times": Passing({"cut": "reset", "times": 3}, 3 * BUFFERED),
    "end": Passing({"cut": "fin"}),
    "end at once": Passing({"raw": b""}),
    "stall": Passing({"cut": "stall"}, stall="1", at_least=1.0),
    "no answer": Passing({"cut": "silence"}, stall="1", at_least=1.0),
    "trickle": Passing({"rate": 4 * MIB}, at_least=2.0),
    "flipped byte": Passing({"flip": IN_MIDDLE}, 3 * RANGE),
    "not HTTP": Passing({"raw": b"SSH-2.0-OpenSSH_9.6\r\n"}),
    "too long announced": Passing({"headers": {"Content-Length": str(RANGE + 1)}}, RANGE),
    "too short announced": Passing({"headers": {"Content-Length": str(RANGE - 1)}}, RANGE),
    "other bytes announced": Passing({"headers": {"Content-Range": f"bytes 0-{RANGE - 1}/99999999"}}, RANGE),
    "no bytes announced": Passing({"headers": {"Content-Range": None}}, RANGE),
    "in chunks that end early": Passing({"chunked": MIB, "cut": "fin"}, BUFFERED),
    "hangs up silently": Passing({"hang_up": "silent"}),
    **{str(status): Passing({"status": status}) for status in (408, 429, 500, 503)},
    # the listing is made anew, and the connections that are open then are given up
    "416": Passing({"status": 416}, 3 * RANGE),
    **{
        f"{status} with Retry-After": Passing({"status": status, "headers": {"Retry-After": "1"}}, at_least=1.0)
        for status in (408, 429, 500, 503)
    },
    "416 with Retry-After": Passing({"status": 416, "headers": {"Retry-After": "1"}}, 3 * RANGE),
    "503 with a Retry-After that has passed": Passing({"status": 503, "headers": {"Retry-After": formatdate(1)}}),
    "503 with a Retry-After that says nothing": Passing({"status": 503, "headers": {"Retry-After": "soon"}}),
}


@pytest.mark.parametrize("case", PASSING.values(), ids=PASSING)
def test_what_passes(world: World, old: Version, case: Passing) -> None:
    struck = world.strike(SECOND, IN_MIDDLE, **case.fault)
    begin = time.monotonic()
    done = world.resolve(VLLMRT_STALL_TIMEOUT=case.stall)
    assert (done.code, done.out) == (0, f"{world.target}\n"), done.err
    assert struck() == case.fault.get("times", 1)
    assert world.which() is old
    assert old.size <= world.served <= old.size + case.again
    assert time.monotonic() - begin >= case.at_least


# without those that only a digest shows: an object in parts has none
IN_A_BUCKET = [name for name in PASSING if "flipped" not in name]


@pytest.mark.parametrize("case", [PASSING[name] for name in IN_A_BUCKET], ids=IN_A_BUCKET)
def test_what_passes_in_a_bucket(world: World, old: Version, case: Passing) -> None:
    world.use_s3()
    test_what_passes(world, old, case)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}], ids=["at once", "later"])
@pytest.mark.parametrize("status", [408, 416, 429, 500, 503])
@pytest.mark.parametrize("where", ["/revision/", "/tree/", "/resolve/"])
def test_what_passes_at_the_hub_itself(
    world: World, old: Version, where: str, status: int, headers: dict[str, str]
) -> None:
    fault = world.hub.fault(where, status=status, headers=headers)
    done = world.resolve()
    assert fault.times == 0
    if status == 416 and where != "/resolve/":
        assert done.code == 10  # no range was asked for: a hub that answers so is out of order
        assert world.which() is None
        done = world.resolve()
    assert done.code == 0, done.err
    assert world.which() is old


class Lasting(NamedTuple):
    """A fault that lasts: nothing is published, and the user reads why. `keeps`: all but one range is saved."""

    fault: dict[str, Any]
    said: str
    code: int = 10
    keeps: bool = False
    stall: str | None = None


GAVE_UP = "gave up after 5 failures"
LASTING = {
    "reset": Lasting({"cut": "reset"}, GAVE_UP, keeps=True),
    "end": Lasting({"cut": "fin"}, GAVE_UP, keeps=True),
    "stall": Lasting({"cut": "stall"}, GAVE_UP, keeps=True, stall="0.6"),
    "503": Lasting({"status": 503}, "503 Service Unavailable", keeps=True),
    "408": Lasting({"status": 408}, "408 Request Timeout", keeps=True),
    "429": Lasting({"status": 429}, "429 Too Many Requests", keeps=True),
    "500": Lasting({"status": 500}, "500 Internal Server Error", keeps=True),
    "416": Lasting({"status": 416}, "416"),
    "403": Lasting({"status": 403}, "403"),
    "ignores Range": Lasting({"whole": True}, "ignores Range"),
    "too long announced": Lasting({"headers": {"Content-Length": str(RANGE + 1)}}, "are announced", keeps=True),
    "other bytes announced": Lasting(
        {"headers": {"Content-Range": f"bytes 0-{RANGE - 1}/99999999"}}, "was given others", keeps=True
    ),
    "redirects for ever": Lasting({"status": 302, "headers": {"Location": f"/{{}}/{SECOND}"}}, "more than 5 redirects"),
    "redirects in a circle": Lasting({"status": 302, "headers": {"Location": f"/a/{SECOND}"}}, "in a circle"),
    "redirects to nowhere": Lasting({"status": 302, "headers": {"Location": None}}, "to nowhere"),
    "redirects to a file": Lasting({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "only http and"),
    "packed": Lasting({"headers": {"Content-Encoding": "gzip"}}, "packs the bytes"),
}


@pytest.mark.parametrize("case", LASTING.values(), ids=LASTING)
def test_what_lasts(world: World, old: Version, case: Lasting) -> None:
    world.strike(SECOND, IN_MIDDLE, times=-1, **case.fault)
    done = world.resolve(VLLMRT_STALL_TIMEOUT=case.stall)
    assert done.code == case.code, done.err
    assert case.said in done.err
    assert world.which() is None
    left = world.left(old)
    assert left <= (RANGE if case.keeps else old.size)
    world.heal()
    world.completes(old, fetching=left)


def test_a_byte_that_is_always_flipped(world: World, old: Version) -> None:
    world.strike(SECOND, IN_MIDDLE, times=-1, flip=IN_MIDDLE)
    done = world.resolve()
    assert done.code == 14, done.err
    assert "differs from the digest that its source publishes, also when it is fetched again" in done.err
    assert world.which() is None
    world.heal()
    # what the journal notes of the first shard is noted, and wrong: the shard is fetched anew, the other one is not
    world.completes(old, fetching=len(old.files[SECOND]), proven=[FIRST])


def test_the_object_changes_between_two_ranges(world: World, old: Version, new: Version) -> None:
    """The hub's commit is immutable: other bytes under its name are never right."""
    path = next(path for path in world.cdn.files if path.endswith(SECOND))
    world.strike(SECOND, IN_MIDDLE, replace=new.files[SECOND])
    done = world.resolve()
    assert done.code == 14
    assert "differs from the digest" in done.err
    assert world.which() is None
    world.cdn.files[path] = old.files[SECOND]
    world.completes(old, fetching=len(old.files[SECOND]), proven=[FIRST])


def test_a_bucket_changes_between_two_ranges(world: World, new: Version) -> None:
    """Its names have no commit: the version that was listed is asked for, and what has another one is listed again."""
    world.use_s3()
    world.when(SECOND, lambda: world.offer(new), start=RANGE)
    done = world.resolve(VLLMRT_CONNECTIONS="1")
    assert done.code == 0, done.err
    assert "is listed again" in done.err
    assert world.which() is new
    assert world.asked()[SECOND] == 2 * [(0, RANGE), (RANGE, len(new.files[SECOND]))]


@pytest.mark.parametrize("by", [-1, 1])
def test_the_listing_lies_about_a_length(world: World, old: Version, by: int) -> None:
    repository = world.hub.repositories["org/name"]
    (blobs,) = repository.commits.values()
    repository.listing = [blob.entry(path) for path, blob in blobs.items()]
    entry = next(entry for entry in repository.listing if entry["path"] == SECOND)
    entry["lfs"]["size"] = entry["size"] = entry["size"] + by
    done = world.resolve()
    assert done.code in {10, 14}, done.err
    assert world.which() is None
    repository.listing = None
    noted, asked = world.noted(old).get(FIRST, ()), len(world.bodies.seen)
    done = world.resolve()
    assert done.code == 0, done.err
    assert world.which() is old
    assert not overlap(noted, world.asked(since=asked).get(FIRST, ()))


def test_a_signed_url_that_expires_in_the_middle(world: World, old: Version) -> None:
    """With the hub's own bodies, which are signed."""
    server = world.hub._servers["cdn"]
    world.hub.cdn = f"http://localhost:{server.server_port}"
    world.hub.lifetime = 0.5
    world.hub.fault(SECOND, origin="cdn", times=-1, rate=8 * MIB)
    done = world.resolve(VLLMRT_CONNECTIONS="1")
    assert done.code == 0, done.err
    assert world.which() is old
    assert len(world.hub.calls(SECOND, origin="cdn")) == 3, "the second range is asked for with an old URL, and again"
    assert len(world.hub.calls(SECOND, origin="api")) == 2
    assert sum(world.hub.sent[f"org/name/{path}"] for path in old.shards) == old.size


def test_a_signed_url_that_is_never_good(world: World) -> None:
    server = world.hub._servers["cdn"]
    world.hub.cdn = f"http://localhost:{server.server_port}"
    world.hub.lifetime = -1.0
    done = world.resolve()
    assert done.code == 10
    assert "403" in done.err
    assert world.which() is None
    assert len(world.hub.seen) < 100


@pytest.mark.parametrize("source", ["hf-hub", "r2"])
def test_a_program_reads_what_went_wrong_and_what_was_proven(world: World, old: Version, source: str) -> None:
    if source == "r2":
        world.use_s3()
    world.strike(SECOND, RANGE, status=503)
    done = world.resolve("--log-format", "json")
    assert done.code == 0, done.err
    events = {event["event"]: event for event in map(json.loads, done.err.splitlines())}
    assert events["transfer.retry"]["retries"] == 1
    assert events["transfer.retry"]["reason"].endswith("503 Service Unavailable")
    assert events["transfer.start"]["files"] == len(old.files)
    proven = {"by": {"sha256": 2, "git-sha1": len(old.files) - 2}, "noted": 0}
    assert (
        events["verify.ok"].items() >= (proven if source == "hf-hub" else {"by": {}, "noted": len(old.files)}).items()
    )
