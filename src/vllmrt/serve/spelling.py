"""How vLLM's own parser reads a command line.

vLLM 0.32 parses with `FlexibleArgumentParser` (``vllm/utils/argparse_utils.py``): Python's argparse with abbreviations
allowed, underscores for dashes in long flags, and ``--flag.key value`` for a key of a JSON value.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-(?:\d+|\d*\.\d+)(?:[eE][+-]?\d+)?")


def is_flag(token: str) -> bool:
    """Tell whether argparse takes a token for a flag: a lone dash, negative numbers and text with spaces are none."""
    name = token.partition("=")[0]
    return len(token) > 1 and token[0] == "-" and not _NUMBER.fullmatch(token) and " " not in name


def stem(token: str) -> str:
    """Return a flag as vLLM registers it: without ``=value`` and dotted keys, long ones with dashes for underscores."""
    name = token.partition("=")[0].partition(".")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def accepts(flags: frozenset[str], name: str) -> bool:
    """Tell whether a parser with these flags knows a name: exactly, or as an abbreviation of one flag only."""
    return name in flags or sum(flag.startswith(name) for flag in flags) == 1
