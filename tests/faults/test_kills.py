"""Killed at random moments, over and over: what is published is always a version of the model, and nothing is lost.

``FAULT_KILLS`` says how often each source is killed (``make faults``: fifty times), ``FAULT_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from faultkit import FIRST, SECOND, overlap, until

if TYPE_CHECKING:
    import subprocess

    from faultkit import Version, World

KILLS = int(os.environ.get("FAULT_KILLS", "3"))
SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
PHASES = ("fetch", "verify", "publish")
AT_ONCE = 1.0


class Run:
    """One resolve, and how far it is: looked at from outside."""

    def __init__(self, world: World, version: Version) -> None:
        self.world = world
        self.version = version
        self.noted = world.noted(version)
        self.left = world.left(version)
        self.before = world.which()
        self.served = world.served
        self.asked = len(world.bodies.seen)
        self.earlier = self.claimed()
        self.process: subprocess.Popen[str] = world.start("resolve", "org/name")

    def begun(self, phase: str) -> bool:
        """Tell whether a phase has begun, or the process has ended."""
        if self.process.poll() is not None:
            return True
        if phase == "fetch":
            return len(self.world.bodies.seen) > self.asked
        if phase == "verify":
            return len(self.world.bodies.seen) > self.asked and self.world.served - self.served >= self.left
        return bool(self.claimed() - self.earlier)

    def claimed(self) -> set[str]:
        """Return the names of what is being published, also by a run that was killed."""
        names = {path.name for path in (self.world.machine.store / ".staging").glob("*/*")}
        return {name for name in names if name.startswith(("claim.", "sealed."))}

    def check(self) -> bool:
        """Compare what there is now with what was there; return whether the version was published."""
        now = self.world.which()
        assert now in (self.before, self.version)
        again = self.world.asked(since=self.asked)
        for path in (FIRST, SECOND):
            assert not overlap(again.get(path, ()), self.noted.get(path, ())), f"{path}: what was noted was fetched"
        return now is self.version


def durations(world: World, version: Version) -> dict[str, float]:
    """Return how long each phase of an undisturbed run takes, seconds."""
    run, times = Run(world, version), []
    for phase in PHASES:
        until(lambda phase=phase: run.begun(phase), pause=0.0005)
        times.append(time.monotonic())
    assert world.ended(run.process).code == 0
    assert run.check()
    ends = [*times[1:], time.monotonic()]
    return {phase: end - begin for phase, begin, end in zip(PHASES, times, ends, strict=True)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("source", ["hf-hub", "r2"])
def test_again_and_again(world: World, old: Version, new: Version, source: str, number: signal.Signals) -> None:
    chance = random.Random(f"{SEED} {source} {number}")  # noqa: S311 - no secret
    print(f"FAULT_SEED={SEED}")
    if source == "r2":
        world.use_s3()
    first = durations(world, old)
    world.offer(new)
    second = durations(world, new)
    lasting = {phase: min(first[phase], second[phase]) for phase in PHASES}
    versions, hits, tries = [old, new], dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    world.offer(versions[0])
    for _ in range(10 * KILLS):
        if sum(hits.values()) >= KILLS:
            break
        phase = min(PHASES, key=lambda phase: (tries[phase], chance.random()))
        tries[phase] += 1
        run = Run(world, versions[0])
        until(lambda run=run, phase=phase: run.begun(phase), pause=0.0005)
        time.sleep(chance.uniform(0, lasting[phase]))
        done, seconds = world.interrupted(run.process, number)
        assert done.code in {0, -number, 128 + number}, done.err
        hits[phase] += done.code != 0
        assert seconds < AT_ONCE or number != signal.SIGINT
        if run.check():
            versions.reverse()
            world.offer(versions[0])
        elif phase == "publish":
            assert world.left(versions[0]) == 0, "all of it had been fetched, and is lost"
    print(lasting, hits)
    assert sum(hits.values()) >= KILLS
    world.completes(versions[0], fetching=world.left(versions[0]))
    left = [path.name for path in (world.machine.store / ".staging").glob("*/*")]
    assert not left
    world.completes(versions[0], fetching=0)
