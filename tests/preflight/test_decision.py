"""decide(state, policy), as a table."""

from __future__ import annotations

import pytest

from vllmrt.preflight.decision import Holder, Policy, PortAction, PortState, decide
from vllmrt.preflight.listeners import Endpoint, Listener
from vllmrt.types import ProcessInfo, Verdict

LISTENER = Listener("127.0.0.1:1", Endpoint(b"", None), 7, 0)


def info(pid: int, uid: int = 5) -> ProcessInfo:
    return ProcessInfo(pid, uid=uid, start_ticks=1, exe=None, argv=("x",), title="x")


OWN = Holder(info(1), Verdict.VLLM, (info(1),))
WORKER_OF_ANOTHER = Holder(info(1), Verdict.VLLM, (info(1), info(2, uid=6)))
ROOT_OF_ANOTHER = Holder(info(2), Verdict.VLLM, (info(1, uid=6), info(2)))
OTHERS = Holder(info(3, uid=6), Verdict.VLLM, (info(3, uid=6),))
FOREIGN = Holder(info(4), None)
PROTECTED = Holder(info(5), Verdict.PROTECTED, (info(5),))
MINE, ANY = Policy(5), Policy(5, allow_other_uid=True)

TABLE = {
    "nobody listens": (PortState("h", 1), MINE, PortAction.NOOP),
    "own vLLM": ((OWN,), MINE, PortAction.STOP),
    "not vLLM": ((FOREIGN,), MINE, PortAction.FOREIGN),
    "protected": ((PROTECTED,), MINE, PortAction.FOREIGN),
    "protected, of any user": ((PROTECTED,), ANY, PortAction.FOREIGN),
    "another user's vLLM": ((OTHERS,), MINE, PortAction.OTHER_USER),
    "another user's, allowed": ((OTHERS,), ANY, PortAction.STOP),
    "own, with another user's worker": ((WORKER_OF_ANOTHER,), MINE, PortAction.OTHER_USER),
    "own, started by another user's": ((ROOT_OF_ANOTHER,), MINE, PortAction.OTHER_USER),
    "the same, allowed": ((WORKER_OF_ANOTHER, ROOT_OF_ANOTHER), ANY, PortAction.STOP),
    "own and not vLLM": ((OWN, FOREIGN), ANY, PortAction.FOREIGN),
    "own and another user's": ((OWN, OTHERS), MINE, PortAction.OTHER_USER),
    "another user's and not vLLM": ((OTHERS, FOREIGN), MINE, PortAction.FOREIGN),
    "nobody to be found": ((), ANY, PortAction.UNATTRIBUTABLE),
}


def state(*holders: Holder, **fields: object) -> PortState:
    return PortState("h", 1, (LISTENER,), holders)._replace(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TABLE)
def test_decide(name: str) -> None:
    given, policy, expected = TABLE[name]
    assert decide(given if isinstance(given, PortState) else state(*given), policy) is expected


@pytest.mark.parametrize(
    ("holders", "expected"),
    [
        ((), PortAction.UNATTRIBUTABLE),
        ((OWN,), PortAction.UNATTRIBUTABLE),
        ((FOREIGN,), PortAction.FOREIGN),
        ((OTHERS,), PortAction.OTHER_USER),
    ],
)
def test_a_socket_without_a_process_forbids_to_stop_the_others(
    holders: tuple[Holder, ...], expected: PortAction
) -> None:
    assert decide(state(*holders, unowned=(LISTENER,)), MINE) is expected


@pytest.mark.parametrize("holders", [(), (OWN,), (FOREIGN,)])
def test_a_classifier_that_broke_forbids_everything(holders: tuple[Holder, ...]) -> None:
    assert decide(state(*holders, fault="broke"), ANY) is PortAction.UNATTRIBUTABLE


def test_each_root_once() -> None:
    worker = Holder(info(2), Verdict.VLLM, OWN.tree)
    assert [root.pid for root in state(OWN, worker, FOREIGN).roots] == [1, 4]


def test_an_ipv6_address_has_brackets() -> None:
    assert PortState("::1", 80).address == "[::1]:80"
    assert PortState("localhost", 80).address == "localhost:80"
