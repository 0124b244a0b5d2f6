"""Texts as the parsers of manifests have to be given them, so that they read back what was put in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = re.compile(r"[\w./:=,+-]+", re.ASCII)


class Text(str):
    """A text that YAML shows in quotes, whatever it looks like.

    YAML 1.1 and 1.2 disagree about what is a number, and Kubernetes reads another YAML than PyYAML writes: ``1e3``.
    """

    __slots__ = ()


def yaml_documents(documents: Iterable[object]) -> str:
    """Return values as the documents of one YAML file."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
            return True

    Dumper.add_representer(Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))
    endless = 1 << 20
    written = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=endless, allow_unicode=True)
    return str(written)


def kubernetes_literal(text: str) -> Text:
    """Return a text for an argument or a variable of a container, where Kubernetes expands ``$(NAME)``."""
    return Text(text.replace("$", "$$"))


def toml_string(text: str) -> str:
    """Return a text as a basic string of TOML 1.0, whose escapes are JSON's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def unit_word(text: str, *, in_command: bool = False) -> str:
    r"""Return a text as one word of a systemd unit (systemd.syntax(7), systemd.unit(5) "Specifiers").

    Args:
        text: what the program has to be given.
        in_command: True for words of a command line, where ``$`` stands for a variable.
    """
    if _PLAIN.fullmatch(text):
        return text
    doubled = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if in_command:
        doubled = doubled.replace("$", "$$")
    return '"' + "".join(char if char >= " " else f"\\x{ord(char):02x}" for char in doubled) + '"'
