"""Installed plugins, each looked at in processes of its own: one that breaks, hangs or exits costs only itself."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from vllmrt import discovery
from vllmrt.errors import PluginError, SourceError, VllmrtError
from vllmrt.gpu import child
from vllmrt.host import PluginHost
from vllmrt.procfs import ProcFs
from vllmrt.types import Candidate, ModelRequest, ModelTree, Skip

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.discovery import EntryPoint
    from vllmrt.settings import Settings

SECONDS = 10.0
"""That one plugin may take to be loaded, or to answer; less where VLLMRT_PLUGIN_TIMEOUT is."""
SLOW = 500.0
"""Milliseconds from which loading a plugin is too slow: every run that names it pays them."""
TRIES = 3
"""Of a plugin that was slow; the machine may have been busy."""
UNKNOWN = ModelRequest("vllmrt/no-such-model", offline=True)


class Loading(NamedTuple):
    """How a plugin was loaded: the milliseconds that it took, or why it was not."""

    ms: float | None = None
    error: str | None = None


class Checks(NamedTuple):
    """What a plugin came to; of each check the fault, None where there is none.

    Attributes:
        ms: that loading it took.
        importing: whether it can be loaded, and offers what its entry point says.
        contract: whether it answers what the contract allows, and asks no network where it may not.
        speed: whether it is loaded in time.
    """

    ms: float | None
    importing: str | None = None
    contract: str | None = None
    speed: str | None = None


def load(entry: EntryPoint, settings: Settings) -> Loading:
    """Load a plugin, and forget it."""

    def timed(patient: Settings) -> dict[str, Any]:
        start = perf_counter()
        PluginHost(patient, [entry]).load(entry)
        return {"ms": round((perf_counter() - start) * 1000, 1)}

    return Loading(**_apart(entry, settings, f"{entry.name} was not loaded", timed))


def check(entry: EntryPoint, settings: Settings) -> Checks:
    """Load a plugin, and ask it what costs nothing."""
    loading = load(entry, settings)
    if loading.error:
        return Checks(loading.ms, loading.error)
    times = [loading.ms or 0.0]
    while min(times) > SLOW and len(times) < TRIES:
        times.append(load(entry, settings).ms or times[0])
    slow = f"{entry.owner}: {entry.name} takes {min(times):.0f} ms to be loaded, more than {SLOW:.0f}"
    answer = _apart(entry, settings, f"{entry.name} gave no answer", lambda patient: _ask(entry, patient))
    return Checks(min(times), None, answer.get("error"), slow if min(times) > SLOW else None)


def claim(entry: EntryPoint, settings: Settings) -> str | None:
    """Return what is wrong if another distribution claims the name too."""
    if entry.group in {discovery.SOURCES, discovery.GPU_PROBES}:
        try:
            PluginHost(settings).select(entry.group, entry.name)
        except PluginError as error:
            return error.message
    return None


def _apart(
    entry: EntryPoint, settings: Settings, what: str, call: Callable[[Settings], dict[str, Any]]
) -> dict[str, Any]:
    """Call in a child process; an error comes back as ``error``."""
    import_module("vllmrt.hookspecs")  # and pluggy: no plugin is to blame for what they take
    # the host's own limit must not come first: a thread that hangs cannot be ended, a process can
    patient = msgspec.structs.replace(settings, plugin_timeout=2 * SECONDS)

    def run() -> bytes:
        try:
            return json.dumps(call(patient)).encode()
        except VllmrtError as error:
            return json.dumps({"error": error.message}).encode()

    answer = child.run(run, min(settings.plugin_timeout, SECONDS))
    if isinstance(answer, Skip):
        return {"error": f"{entry.owner}: {what}: {answer.reason.partition(',')[0]}"}
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError:
        return {"error": f"{entry.owner}: {what}: it wrote into our answer"}
    return told


def _ask(entry: EntryPoint, settings: Settings) -> dict[str, Any]:
    """Ask a plugin what its hooks are for, without network and about nothing that is there; run in the child."""
    own = [one for one in discovery.entry_points() if one.distribution == "vllmrt" and one != entry]
    host = PluginHost(settings, [entry, *own])
    if entry.group == discovery.GPU_PROBES:
        host.read_gpus(entry, ())
    elif entry.group == discovery.SOURCES:
        called = _watch_network()
        with suppress(SourceError):
            host.probe(host.source(entry), UNKNOWN)
        if called:
            return {"error": f"{entry.owner}: {entry.name} asks the network though the request is offline: {called[0]}"}
    else:
        _ask_guards(entry, host)
    return {}


def _ask_guards(entry: EntryPoint, host: PluginHost) -> None:
    plugin = resolve_name(entry.value)
    if not any(hasattr(getattr(plugin, name, None), "vllmrt_impl") for name in dir(plugin)):
        raise PluginError(f"{entry.owner}: {entry.name} implements no hook: is @vllmrt.hookimpl missing?")
    ourselves = ProcFs().info(os.getpid())
    host.verdicts([ourselves] if ourselves else [])
    with TemporaryDirectory() as empty:
        tree = ModelTree(Path(empty), request=UNKNOWN, candidate=Candidate(empty, path=Path(empty)))
        for guard in host.validators():
            if guard.entry == entry:
                host.check(guard, tree)


def _watch_network() -> list[str]:
    """Note from now on whom this process connects to or looks up."""
    called: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            called.append(f"it looks up {args[0]!a}")
        elif event == "socket.connect" and args[0].family != socket.AF_UNIX:
            called.append(f"it connects to {args[1]!a}")

    sys.addaudithook(note)
    return called
