"""Parsers of what `vllmrt render` writes: each reads back what the real reader would."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import yaml

from vllmrt.render import deployment
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllmrt.render.deployment import Deployment


def settings(**fields: Any) -> Settings:
    """The settings of a model, with some that differ."""
    return Settings(**({"model_id": "org/name", "model": None} | fields))


def describe(given: Settings, extra: Sequence[str], environ: Mapping[str, str] | None = None) -> Deployment:
    """Take settings apart; without `environ`, where the environment has nothing that is secret."""
    return deployment.describe(given, extra, environ or {})


def documents(files: Mapping[str, str]) -> dict[str, Any]:
    """The objects of the files, by kind."""
    return {one["kind"]: one for text in files.values() for one in yaml.safe_load_all(text)}


def unit_dump(path: Path) -> str:
    """What systemd's own parser says of a unit; fails where it finds a fault."""
    loud = os.environ | {"SYSTEMD_LOG_LEVEL": "debug"}
    command = ["systemd-analyze", "verify", "--man=no", path]
    done = subprocess.run(command, env=loud, capture_output=True, text=True, check=False)
    faults = re.findall(
        rf"^{re.escape(str(path))}:\d+: .*|^{path.name}: (?:Command|Unit configuration).*", done.stderr, re.MULTILINE
    )
    assert (done.returncode, faults) == (0, []), faults or done.stderr[-2000:]
    return (done.stdout + done.stderr).partition(f"-> Unit {path.name}:")[2]


def unit_environment(dump: str) -> dict[str, str]:
    """The variables of a unit, as systemd read them; none of them has a newline."""
    return dict(re.findall(r"^\t\tEnvironment: (\w+)=(.*)$", dump, re.MULTILINE))


def unit_command(dump: str) -> list[str]:
    """The command line of a unit; what systemd would take for a variable fails."""
    shown = re.search(r"^\t\t\tCommand Line: (.*)$", dump, re.MULTILINE)
    assert shown, dump
    words = [
        re.sub(r"\\(x..|.)", _unescaped, quoted) if quoted else plain
        for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', shown[1])
    ]
    assert not [word for word in words if re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word)], words
    return [word.replace("$$", "$") for word in words]


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else {"n": "\n", "t": "\t"}.get(code, code)


def unit_words(value: str) -> list[str]:
    """Split a value as systemd and quadlet do: quotes, C escapes (systemd.syntax(7))."""
    words, word, quote, index = [], None, "", 0
    while index < len(value):
        char = value[index]
        if char == "\\":
            escape = re.match(r'\\(?:x([0-9a-f]{2})|([\\"]))', value[index:])
            assert escape, value
            word = (word or "") + (chr(int(escape[1], 16)) if escape[1] else escape[2])
            index += len(escape[0])
            continue
        if char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote, word = char, word or ""
        elif not quote and char in " \t":
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + char
        index += 1
    assert not quote, value
    return words + ([] if word is None else [word])


def quadlet_values(text: str, key: str) -> list[str]:
    """The words of all lines of a key, as the container gets them.

    Quadlet splits them and writes them, quoted again, into a command line of systemd, which expands ``%`` and ``$``.
    """
    lines = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    words = [word for line in lines for word in unit_words(line)]
    for word in words:
        assert not re.search(r"(?<!%)(%%)*%(?!%)|(?<!\$)(\$\$)*\$(?!\$)", word), word
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def hook_environment(manifest: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables after the hook of a Flox manifest has run in bash."""
    script = tomllib.loads(manifest)["hook"]["on-activate"] + "\nenv -0\n"
    done = subprocess.run(["/bin/bash", "-euc", script], env=dict(environ), capture_output=True, check=True, timeout=60)
    return dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair)
