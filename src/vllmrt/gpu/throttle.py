"""Why a GPU holds its clocks down, in words: ``nvmlClocksEventReason…`` of nvml.h."""

from __future__ import annotations

_WORDS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
SERIOUS = frozenset(_WORDS[bit] for bit in (0x8, 0x20, 0x40, 0x80))
"""Those that mean heat or a lack of power, instead of nothing to do or a limit that somebody set."""


def words(mask: int) -> tuple[str, ...]:
    """Return the reasons in a bit mask of the driver's; one that nvml.h did not have yet as its number."""
    bits = (1 << place for place in range(mask.bit_length()) if mask >> place & 1)
    return tuple(_WORDS.get(bit, f"reason {bit:#x}") for bit in bits)
