"""What a user is told while another process has the lock of the same model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllmrt.events import Event

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.events import Emit
    from vllmrt.locking import Holder

_EVERY = 30.0
"""Seconds between two lines of one holder, which may fetch for hours and notes how far it is twice a second."""


class Waiting:
    """Told of every note of the holder; an instance is the function that `vllmrt.locking.hold` calls.

    Args:
        emit: told who is waited for, and now and then how far that is.
        path: the lock.
    """

    def __init__(self, emit: Emit, path: Path) -> None:
        self._emit = emit
        self._path = path
        self._told: Holder | None = None
        self._when = float("-inf")

    def __call__(self, holder: Holder | None) -> None:
        """Pass it on, if the holder is another one, or it is time."""
        who = holder and holder._replace(note="")
        now = time.monotonic()
        if who == self._told and now - self._when < _EVERY:
            return
        self._told, self._when = who, now
        text = f"waiting for {holder or 'another process'}, which resolves the same model"
        self._emit(Event("resolve.wait", "lock", text, data={"path": str(self._path)}))
