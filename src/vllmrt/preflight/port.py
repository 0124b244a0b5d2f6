"""Looks at the port, and clears it. `inspect` only reads; nothing is stopped but by `reclaim`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vllmrt.errors import ClassifierError
from vllmrt.preflight.decision import Policy, PortAction, PortState, decide
from vllmrt.preflight.holders import chain_of, holders_of
from vllmrt.preflight.listeners import listening, targets
from vllmrt.preflight.refusals import refusal, still_bound
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from vllmrt.host import PluginHost
    from vllmrt.preflight.stopping import Stopped
    from vllmrt.settings import Settings

_LOOKS, _PAUSE = 4, 0.01
_ROUNDS = 3


def inspect(settings: Settings, host: PluginHost, proc: ProcFs | None = None) -> PortState:
    """Find out who is in the way of `Settings.host` and `Settings.port`.

    No process is looked at where nobody listens.

    Args:
        settings: address, port, and what counts as vLLM.
        host: the classifiers.
        proc: the process table; None is ``/proc``.

    Raises:
        ConfigError: the host is no address and no name.
        PluginError: a classifier cannot be loaded.
    """
    proc = proc or ProcFs()
    wanted = targets(settings.host, settings.port, proc.root)
    state = PortState(settings.host, settings.port)
    for look in range(_LOOKS):
        state = state._replace(listeners=tuple(listening(wanted, settings.port, proc.root)))
        if not state.listeners:
            return state._replace(holders=(), unowned=())
        state, complete = _attribute(state, host, proc)
        if complete:
            break
        time.sleep(_PAUSE * 2**look)  # whoever listened may have ended between the two tables
    return state


def check(state: PortState, settings: Settings) -> PortAction:
    """Return what is to be done: NOOP, or STOP by `reclaim`.

    Raises:
        PortForeign, PortOtherUser, PortUnattributable: the port is held by what may not be stopped.
    """
    action = decide(state, _policy(settings))
    if action in {PortAction.NOOP, PortAction.STOP}:
        return action
    raise refusal(state, action)


def reclaim(state: PortState, settings: Settings, host: PluginHost, proc: ProcFs | None = None) -> Stopped:
    """Stop the vLLM that holds the port.

    Args:
        state: what `inspect` said just now; for one of long ago, inspect again.
        settings: how long it has, and whose it may be.
        host: the classifiers, to say what holds the port afterwards.
        proc: as for `inspect`.

    Raises:
        PortStillBound: it, or something else, still listens.
        PortForeign, PortOtherUser, PortUnattributable: as `check`; nothing is stopped.
    """
    from vllmrt.preflight.stopping import Stopper

    proc = proc or ProcFs()
    wanted = targets(settings.host, settings.port, proc.root)
    stopper = Stopper(proc)
    for _ in range(_ROUNDS):
        if check(state, settings) is PortAction.NOOP:
            return stopper.result
        stopper.stop(state.roots, settings.stop_timeout, lambda: not listening(wanted, settings.port, proc.root))
        state = inspect(settings, host, proc)
        # what listens now was born while its parent was stopped, or started by somebody else
        if stopper.result.alive or decide(state, _policy(settings)) not in {PortAction.NOOP, PortAction.STOP}:
            break
    if state.listeners:
        raise still_bound(state, stopper.result)
    return stopper.result


def _policy(settings: Settings) -> Policy:
    return Policy(os.geteuid(), settings.allow_other_uid_kill)


def _attribute(state: PortState, host: PluginHost, proc: ProcFs) -> tuple[PortState, bool]:
    """Find the processes of the listeners, and say whether that is all there is to find."""
    owners, hidden = proc.sockets(listener.inode for listener in state.listeners)
    chains = {pid: chain_of(pid, proc) for pid in sorted(set().union(*owners.values()))}
    unowned = [one for one in state.listeners if one.inode not in owners]
    state = state._replace(holders=(), unowned=tuple(unowned), hidden=hidden, fault=None)
    try:
        state = state._replace(holders=tuple(holders_of([chain for chain in chains.values() if chain], host, proc)))
    except ClassifierError as error:
        state = state._replace(fault=str(error))
    return state, not unowned and all(chains.values())
