"""Ctrl-C and SIGTERM: out in under a second wherever it comes, and the journal is whole."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from faultkit import RANGE, SECOND, until

if TYPE_CHECKING:
    from faultkit import Version, World

AT_ONCE = 1.0
"""Seconds, from the signal to the end of the process."""
BLOCKED: dict[str, dict[str, Any]] = {
    "in a stall": {"cut": "stall"},
    "without an answer": {"cut": "silence"},
    "in a trickle": {"rate": 10},
    "in a long Retry-After": {"status": 503, "headers": {"Retry-After": "3600"}, "times": -1},
    "in a header that trickles": {"header_pause": 5.0},
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fault", BLOCKED.values(), ids=BLOCKED)
def test_in_a_fetch_that_hangs(world: World, old: Version, fault: dict[str, Any], number: signal.Signals) -> None:
    world.strike(SECOND, RANGE, **fault)
    process = world.start("resolve", "org/name")
    others = old.size - RANGE
    until(lambda: world.served >= others and world.left(old) <= RANGE)
    done, seconds = world.interrupted(process, number)
    assert (done.code, done.out) == (128 + number, ""), done.err
    assert seconds < AT_ONCE
    assert "what was fetched is kept" in done.err
    assert world.which() is None
    left = world.left(old)
    assert 0 < left <= RANGE
    world.heal()
    world.completes(old, fetching=left)


@pytest.mark.parametrize("where", ["/revision/", "/tree/", "/resolve/"])
def test_while_the_hub_is_silent(world: World, old: Version, where: str) -> None:
    world.hub.fault(where, cut="silence", times=-1)
    process = world.start("resolve", "org/name")
    until(lambda: world.hub.calls(where))
    done, seconds = world.interrupted(process)
    assert done.code == 130, done.err
    assert seconds < AT_ONCE
    world.heal()
    world.completes(old, fetching=old.size)


def test_before_the_hub_is_asked_again(world: World, old: Version) -> None:
    fault = world.hub.fault("/revision/", status=503, headers={"Retry-After": "3600"})
    process = world.start("resolve", "org/name")
    until(lambda: not fault.times)
    done, seconds = world.interrupted(process)
    assert done.code == 130, done.err
    assert seconds < AT_ONCE
    world.completes(old, fetching=old.size)


def test_while_another_process_resolves(world: World, old: Version) -> None:
    world.strike(SECOND, RANGE, cut="stall")
    holder = world.start("resolve", "org/name")
    until(lambda: world.served)
    waiter = world.start("resolve", "org/name", "--log-format", "json")
    assert waiter.stderr
    assert "resolve.wait" in waiter.stderr.readline()
    done, seconds = world.interrupted(waiter)
    assert done.code == 130, done.err
    assert seconds < AT_ONCE
    done, seconds = world.interrupted(holder)
    assert done.code == 130, done.err
    world.heal()
    world.completes(old, fetching=world.left(old))


def test_a_trickle_is_no_reason_to_lose_what_is_here(world: World, old: Version) -> None:
    """Byte after byte, for ever: nothing stalls, so it is the user who ends it."""
    world.strike(SECOND, RANGE, rate=200, times=-1)
    process = world.start("resolve", "org/name", VLLMRT_STALL_TIMEOUT="1")
    until(lambda: world.left(old) <= RANGE)
    done, seconds = world.interrupted(process)
    assert (done.code, seconds < AT_ONCE) == (130, True), done.err
    assert len(world.cdn.seen) == 4, "a connection that trickles is none that stalls"
    assert world.left(old) > RANGE // 2
    world.heal()
    world.completes(old, fetching=world.left(old))
