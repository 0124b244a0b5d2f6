"""The port, and engines that have lost their launcher. Nothing is stopped."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vllmrt.doctor.page import Section
from vllmrt.events import human_size
from vllmrt.host import PluginHost
from vllmrt.preflight.decision import Policy, PortAction, decide
from vllmrt.preflight.orphans import find_orphans
from vllmrt.preflight.port import inspect
from vllmrt.preflight.refusals import refusal
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case
    from vllmrt.preflight.decision import PortState
    from vllmrt.types import ProcessInfo

PLUGIN_SECONDS = 5.0
_STATES = {PortAction.NOOP: "free", PortAction.STOP: "would_stop"}
_HOSTS = Path("/etc/hosts")
_SCRIPT = re.compile(r"/?(?:[\w.-]+/)*(?P<name>vllm|[\w.-]+\.(?:py|sh))")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")


def look_at_port(case: Case) -> Section:
    """Return who listens where vLLM would, and what a preflight would do about it."""
    settings = case.settings
    host, port = settings.host, settings.port
    facts: dict[str, Any] = {"host": host, "port": port, "state": None, "listeners": [], "holders": []}
    section = Section(facts)
    if not _is_known_here(host):
        section.lines.append(f"{host}:{port} · not looked at")
        section.notes.append(f"{host} is a name that only the network knows; vllmrt preflight asks for its addresses")
        return section
    limited = msgspec.structs.replace(settings, plugin_timeout=min(settings.plugin_timeout, PLUGIN_SECONDS))
    state = inspect(limited, PluginHost(limited))
    action = decide(state, Policy(os.geteuid(), settings.allow_other_uid_kill))
    facts["state"] = _STATES.get(action, action.value)
    facts["listeners"] = [one.address for one in state.listeners]
    facts["holders"] = [_facts(holder.process) for holder in state.holders]
    if action is PortAction.NOOP:
        section.lines.append(f"{state.address} is free")
    elif action is PortAction.STOP:
        section.lines.append(f"{state.address} is held by {_named(state)}; vllmrt preflight would stop it")
    else:
        section.lines.append(f"{state.address} is in use")
        error = refusal(state, action, program)
        section.add(f"port-{action.value.replace('_', '-')}", error.message, error.hint)
    return section


def look_at_orphans(case: Case) -> Section:
    """Return the engines that have no launcher any more."""
    if ProcFs().stat(os.getpid()) is None:  # which the section of the machine says too
        return Section(lines=["nobody can say without /proc"])
    found = find_orphans(case.settings)
    section = Section([])
    for orphan in found:
        process = orphan.process
        sizes = {"processes": orphan.processes, "resident": orphan.resident, "age": round(orphan.age)}
        section.facts.append(_facts(process) | sizes)
        message = f"{program(process)} · process {process.pid} of uid {process.uid} has lost its launcher"
        own = process.uid == os.geteuid()
        remedy = "vllmrt preflight --reap-orphans stops it" if own else "its user, or root, has to stop it"
        section.add("orphan", f"{message}, and holds {human_size(orphan.resident)} of memory", remedy)
    section.lines.append(f"engines without a launcher: {len(found)}" if found else "none")
    return section


def program(process: ProcessInfo) -> str:
    """Return what a process is, without its arguments: they may hold a key, and the page goes into a ticket."""
    words = process.argv or (process.exe or "?",)
    first = (words[0].split() or ["?"])[0].rpartition("/")[2][:60]
    rest = list(words[1:3])
    if rest[:1] == ["-m"] and len(rest) > 1 and _MODULE.fullmatch(rest[1]):
        return f"{first} -m {rest[1]}"
    script = _SCRIPT.fullmatch(rest[0]) if rest else None
    names = [first, script["name"]] if script else [first]
    following = words[len(names) : len(names) + 1]
    return " ".join([*names, "serve"] if names[-1] == "vllm" and following == ("serve",) else names)


def _facts(process: ProcessInfo) -> dict[str, Any]:
    return {"pid": process.pid, "uid": process.uid, "program": program(process)}


def _named(state: PortState) -> str:
    processes = [holder.process for holder in state.holders]
    return " and ".join(f"process {one.pid} ({program(one)}) of uid {one.uid}" for one in processes)


def _is_known_here(host: str) -> bool:
    """Tell whether a host has an address without asking the network for it."""
    try:
        socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        try:
            lines = _HOSTS.read_text(errors="replace").splitlines()
        except OSError:
            return False
        return any(host.lower() in line.partition("#")[0].lower().split()[1:] for line in lines)
    return True
