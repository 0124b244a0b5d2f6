"""What a user is told about a port that cannot be had: the messages and JSON fields of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllmrt.errors import PortForeign, PortOtherUser, PortStillBound, PortUnattributable, PreflightError
from vllmrt.events import printable
from vllmrt.preflight.decision import PortAction
from vllmrt.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllmrt.preflight.decision import PortState
    from vllmrt.preflight.stopping import Stopped
    from vllmrt.types import ProcessInfo

_LONGEST = 200
_LONGEST_SHOWN = 80


def facts(state: PortState, action: str) -> dict[str, Any]:
    """Return the fields that every answer of a preflight has.

    Args:
        state: of the port.
        action: what was done about it, for ``port_action``.
    """
    return {
        "host": state.host,
        "port": state.port,
        "port_action": action,
        "reclaimed_roots": [],
        "blocked_roots": [],
        "could_scan": state.could_scan,
    }


def refusal(state: PortState, action: PortAction, name: Callable[[ProcessInfo], str] | None = None) -> PreflightError:
    """Return the error for a port that is held by what may not be stopped.

    Args:
        state: of the port.
        action: one of those that refuse.
        name: says for the message what a process is; None does so by its command line.
    """
    name = name or _short
    blocking = [holder.process for holder in state.holders]
    told = _facts(state, "blocked", blocking) | {"blocked_roots": [root.pid for root in state.roots]}
    if action is PortAction.FOREIGN:
        return _foreign(state, told, name)
    if action is PortAction.OTHER_USER:
        uids = ", ".join(str(uid) for uid in sorted({root.uid for root in state.roots}))
        return PortOtherUser(
            f"{state.address} is held by a vLLM of uid {uids}: {_named(state.roots, name)}",
            hint="ask them to stop it, or set VLLM_ALLOW_OTHER_UID_KILL=1",
            facts=told,
        )
    return _unattributable(state, told)


def still_bound(state: PortState, stopped: Stopped) -> PortStillBound:
    """Return the error for a port that something still listens on after all was stopped."""
    holders = [holder.process for holder in state.holders]
    told = _facts(state, "stop_failed", holders)
    told |= {"reclaimed_roots": list(stopped.roots), "blocked_roots": [root.pid for root in state.roots]}
    who = _named(holders, _short) or "what cannot be seen"
    again = bool(holders) and not {process.pid for process in holders} & set(stopped.signalled)
    return PortStillBound(
        f"{state.address} was {'bound again' if again else 'not freed'} by {who}",
        hint="see who starts it again" if again else "raise VLLM_STOP_TIMEOUT, or stop it yourself",
        facts=told,
    )


def command(process: ProcessInfo, longest: int = _LONGEST) -> str:
    """Return a command line for people and JSON: on one line, without secrets or what is no text, and not endless."""
    from vllmrt.masking import redact_argv

    words = [word[:_LONGEST] for word in process.argv[:_LONGEST]]
    text = printable(" ".join(redact_argv(words)) or process.exe or "?").replace("\n", "\\n")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _foreign(state: PortState, told: dict[str, Any], name: Callable[[ProcessInfo], str]) -> PortForeign:
    protected = [holder.process for holder in state.holders if holder.verdict is Verdict.PROTECTED]
    if protected:
        return PortForeign(
            f"{state.address} is held by {_named(protected, name)}, which is protected",
            hint="a plugin, or its place in the process table, forbids to stop it; choose another VLLM_PORT",
            facts=told,
        )
    foreign = [holder.process for holder in state.holders if holder.verdict is None]
    return PortForeign(
        f"{state.address} is held by {_named(foreign, name)}, which is not vLLM",
        hint="stop it, or choose another VLLM_PORT; VLLM_PROCESS_SIGNATURES names launchers of vLLM that are unusual",
        facts=told,
    )


def _unattributable(state: PortState, told: dict[str, Any]) -> PortUnattributable:
    if state.fault is not None:
        return PortUnattributable(
            f"{state.address} is in use, and what holds it cannot be judged: {state.fault}",
            hint="upgrade the plugin, or disable it with VLLMRT_DISABLE_PLUGINS",
            facts=told,
        )
    uids = sorted({listener.uid for listener in state.unowned})
    told |= {"uids": uids}
    hidden = f" ({state.hidden} processes may not be looked into)" if state.hidden else ""
    return PortUnattributable(
        f"{state.address} is in use, but no process can be found that holds it; its socket is of uid "
        f"{', '.join(map(str, uids))}{hidden}",
        hint="run as that user or root, relax hidepid, look into other containers, or choose another VLLM_PORT",
        facts=told,
    )


def _facts(state: PortState, action: str, processes: list[ProcessInfo]) -> dict[str, Any]:
    return facts(state, action) | {
        "pids": [process.pid for process in processes],
        "cmdlines": [command(process) for process in processes],
        "uids": [process.uid for process in processes],
    }


def _named(processes: Iterable[ProcessInfo], name: Callable[[ProcessInfo], str]) -> str:
    return " and ".join(f"process {one.pid} ({name(one)})" for one in processes)


def _short(process: ProcessInfo) -> str:
    return command(process, _LONGEST_SHOWN)
