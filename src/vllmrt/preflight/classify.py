"""Which processes are vLLM: by the words of the command line and by the process title, never by a mere mention."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllmrt.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.types import ProcessInfo

PREFIX = "VLLM"
# Texts, and compiled at their first use: where no process has to be judged, none is.
# Nix and Flox start a program through a wrapper, and rename the program itself.
_WRAPPED = r"(?:-wrapped_*)?"
_VLLM = rf"\.?vllm{_WRAPPED}"
_PYTHON = rf"\.?(?:python|pypy)[\d.]*t?{_WRAPPED}"
_INTERPRETER = rf"\.?(?:(?:python|pypy|perl|ruby|node|lua)[\d.]*t?|(?:ba|da|z|k)?sh){_WRAPPED}"
_ENTRYPOINTS = "vllm.entrypoints"
_CLI = {"vllm", "vllm.entrypoints.cli", "vllm.entrypoints.cli.main"}
_SCRIPT = r"(?s:(?:.*/)?vllm/entrypoints/(?:.*/)?[^/]+\.py)"
# Options of python (python --help) that take a value in the next word.
_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
# -m or -c among the letters of one word; -W and -X take the rest of theirs.
_RUN = r"(?s:-[a-zA-VYZ]*?(?P<option>[cm])(?P<value>.*))"
_ENGINE = r"(?:EngineCore|Worker|DPCoordinator)"


def classify(process: ProcessInfo, signatures: Sequence[str] = (), prefix: str = PREFIX) -> Verdict | None:
    """Return VLLM for a process that is vLLM, and None for any other.

    It is vLLM when its program is: ``vllm serve``, also run by a Python; a module or file of ``vllm.entrypoints``; one
    of the titles that vLLM sets; or one of `signatures`. A shell, a timeout or an editor with ``vllm serve`` among its
    arguments has another program.

    Args:
        process: what `/proc` says of it.
        signatures: what else is vLLM: a part of the name of the program, script or module, with words that follow it.
        prefix: of the titles, besides the one that vLLM uses by default.
    """
    if _is_titled(process.title, prefix) or _is_serve(process) or _is_signed(process, signatures):
        return Verdict.VLLM
    return None


def is_engine(title: str, prefix: str = PREFIX) -> bool:
    """Tell whether a title is of a process that a launcher starts and that is of no use without one."""
    return re.match(rf"(?:{PREFIX}|{re.escape(prefix)})::{_ENGINE}", title) is not None


def is_python(process: ProcessInfo) -> bool:
    """Tell whether a process is a Python, and so may have started an engine."""
    return any(re.fullmatch(_PYTHON, _name(text)) for text in (process.exe or "", *process.argv[:1]))


def _is_titled(title: str, prefix: str) -> bool:
    return re.match(rf"(?:{PREFIX}|{re.escape(prefix)})::\w", title) is not None


def _is_serve(process: ProcessInfo) -> bool:
    argv = process.argv
    if _is_command(argv):
        return True
    program = _program(argv[1:]) if is_python(process) else ()
    if program[:1] == ("-m",):
        module = program[1]
        if module in _CLI:
            return program[2:3] == ("serve",)
        return module == _ENTRYPOINTS or module.startswith(f"{_ENTRYPOINTS}.")
    return _is_command(program) or bool(program and re.fullmatch(_SCRIPT, program[0]))


def _is_command(words: Sequence[str]) -> bool:
    return len(words) > 1 and words[1] == "serve" and re.fullmatch(_VLLM, _name(words[0])) is not None


def _is_signed(process: ProcessInfo, signatures: Sequence[str]) -> bool:
    argv = process.argv
    if not argv or not signatures:
        return False
    programs = [argv]
    if any(re.fullmatch(_INTERPRETER, _name(text)) for text in (process.exe or "", argv[0])):
        programs.append(tuple(word for word in _program(argv[1:]) if word != "-m"))
    return any(_begins(words, signature) for words in programs if words for signature in signatures)


def _begins(words: Sequence[str], signature: str) -> bool:
    """Tell whether a signature begins inside the first word."""
    return 0 <= " ".join(words).find(signature) < len(words[0])


def _program(words: Sequence[str]) -> tuple[str, ...]:
    """Return what an interpreter runs, with its arguments: a script, or ``-m`` and a module; nothing for ``-c``."""
    rest = iter(enumerate(words))
    for index, word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-") or word == "-":
            return tuple(words[index:])
        elif match := re.match(_RUN, word):
            attached = [match["value"]] if match["value"] else []
            found = ("-m", *attached, *words[index + 1 :])
            return found if match["option"] == "m" and len(found) > 1 else ()
    return ()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
