"""What is known of a port, and what follows from it: values and pure functions."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.types import Verdict

if TYPE_CHECKING:
    from vllmrt.preflight.listeners import Listener
    from vllmrt.types import ProcessInfo


class PortAction(Enum):
    """What is to be done about a port; the last four refuse."""

    NOOP = "noop"
    STOP = "stop"
    FOREIGN = "foreign"
    OTHER_USER = "other_user"
    UNATTRIBUTABLE = "unattributable"


class Holder(NamedTuple):
    """A process that has a listening socket open.

    Attributes:
        process: it, with its ancestors.
        verdict: of the classifiers; PROTECTED also where a process of the tree is.
        tree: what has to be stopped with it, from the topmost process that is vLLM down; empty where it is not vLLM.
    """

    process: ProcessInfo
    verdict: Verdict | None
    tree: tuple[ProcessInfo, ...] = ()

    @property
    def root(self) -> ProcessInfo:
        """The topmost process of the tree."""
        return self.tree[0] if self.tree else self.process


class PortState(NamedTuple):
    """Who is in the way of an address, at one moment.

    Attributes:
        host: the address, as the user names it.
        port: its port.
        listeners: the sockets that are in the way.
        holders: the processes that have them open.
        unowned: those of `listeners` that no process could be found for.
        hidden: how many processes may not be looked into.
        fault: what a classifier that broke had to say; what the holders are is not known then.
    """

    host: str
    port: int
    listeners: tuple[Listener, ...] = ()
    holders: tuple[Holder, ...] = ()
    unowned: tuple[Listener, ...] = ()
    hidden: int = 0
    fault: str | None = None

    @property
    def could_scan(self) -> bool:
        """Whether every socket has an owner that is known."""
        return not self.unowned and self.fault is None

    @property
    def roots(self) -> list[ProcessInfo]:
        """The topmost process of each tree, once."""
        return list({holder.root.pid: holder.root for holder in self.holders}.values())

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return address(self.host, self.port)


class Policy(NamedTuple):
    """Whose processes may be stopped.

    Attributes:
        uid: our own.
        allow_other_uid: True for those of other users too.
    """

    uid: int
    allow_other_uid: bool = False


def decide(state: PortState, policy: Policy) -> PortAction:
    """Say what is to be done about a port.

    Several things may be in the way at once. Whatever is not vLLM outweighs the rest, since nothing would help then.
    Only where every socket is a vLLM that may be stopped, anything is.
    """
    if not state.listeners:
        return PortAction.NOOP
    if state.fault is not None:
        return PortAction.UNATTRIBUTABLE
    if any(holder.verdict is not Verdict.VLLM for holder in state.holders):
        return PortAction.FOREIGN
    if not policy.allow_other_uid and any(
        process.uid != policy.uid for holder in state.holders for process in (holder.process, *holder.tree)
    ):
        return PortAction.OTHER_USER
    return PortAction.UNATTRIBUTABLE if state.unowned or not state.holders else PortAction.STOP


def address(host: str, port: int) -> str:
    """Return host and port for people; an IPv6 address has brackets, whether it was given with them or not."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
