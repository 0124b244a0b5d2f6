"""The tokenizer: the second check of the reference, and the files of Mistral's and OpenAI's tokenizers beyond it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vllmrt.validate.reading import File, check_object, empty, error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.tree import Survey

DIRECTORIES = ("", "tokenizer/", "tokenizer_files/")
ALONE = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "tekken.json", "tiktoken.model")
ALONE_PATTERNS = ("tokenizer.model.v*", "*.tiktoken")
# A tokenizer of the model's own, whatever its vocabulary is called: vLLM runs it with --trust-remote-code.
OWN_CODE = "tokenization_*.py"
TOGETHER = (
    {"vocab.json", "merges.txt"},
    {"tokenizer_config.json", "vocab.json"},
)
JSON_FILES = (
    "tokenizer.json",
    "tekken.json",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def check(survey: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield ``tokenizer-missing``, ``tokenizer-invalid`` and ``empty-file``, unless the check is switched off."""
    if settings.skip_tokenizer_check:
        return
    yield from missing((*survey.files, *survey.refused), settings)
    for file in survey.files.values():
        directory, _, name = file.name.rpartition("/")
        if f"{directory}/".lstrip("/") in DIRECTORIES:
            yield from _check_file(file, name)


def missing(names: Collection[str], settings: Settings) -> Iterator[Finding]:
    """Yield ``tokenizer-missing`` unless one of the files is a tokenizer, or the check is switched off."""
    if settings.skip_tokenizer_check or any(_complete(_below(directory, names)) for directory in DIRECTORIES):
        return
    looked = ", ".join(directory or "./" for directory in DIRECTORIES)
    known = "neither tokenizer.json, tokenizer.model, vocab.txt nor another known one"
    message = f"no tokenizer in {looked}: {known}; VLLM_SKIP_TOKENIZER_CHECK=1 does without"
    yield error("tokenizer-missing", None, message)


def _below(directory: str, names: Collection[str]) -> set[str]:
    below = {name.removeprefix(directory) for name in names if name.startswith(directory)}
    return {name for name in below if "/" not in name}


def _complete(names: set[str]) -> bool:
    own = "tokenizer_config.json" in names and any(fnmatchcase(name, OWN_CODE) for name in names)
    return own or any(_alone(name) for name in names) or any(needed <= names for needed in TOGETHER)


def _alone(name: str) -> bool:
    return name in ALONE or _matches(name, ALONE_PATTERNS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_file(file: File, name: str) -> Iterator[Finding]:
    if name in JSON_FILES:
        yield from check_object(file, "tokenizer-invalid")
    elif file.size == 0 and (_alone(name) or name == "merges.txt"):
        yield empty(file)
