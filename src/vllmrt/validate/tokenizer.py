"""The tokenizer: the second check of the reference, and the files of Mistral's and OpenAI's tokenizers beyond it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vllmrt.validate.reading import File, check_object, empty, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.tree import Survey

DIRECTORIES = ("", "tokenizer/", "tokenizer_files/")
ALONE = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "tekken.json")
ALONE_PATTERNS = ("tokenizer.model.v*", "*.tiktoken")
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
    if not any(_complete(_names(survey, directory)) for directory in DIRECTORIES):
        looked = ", ".join(directory or "./" for directory in DIRECTORIES)
        known = "neither tokenizer.json, tokenizer.model, vocab.txt nor another known one"
        message = f"no tokenizer in {looked}: {known}; VLLM_SKIP_TOKENIZER_CHECK=1 does without"
        yield error("tokenizer-missing", None, message)
    for file in survey.files.values():
        directory, _, name = file.name.rpartition("/")
        if f"{directory}/".lstrip("/") in DIRECTORIES:
            yield from _check_file(file, name)


def _names(survey: Survey, directory: str) -> set[str]:
    there = (*survey.files, *survey.refused)
    names = {name.removeprefix(directory) for name in there if name.startswith(directory)}
    return {name for name in names if "/" not in name}


def _complete(names: set[str]) -> bool:
    return any(_alone(name) for name in names) or any(needed <= names for needed in TOGETHER)


def _alone(name: str) -> bool:
    return name in ALONE or _matches(name, ALONE_PATTERNS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_file(file: File, name: str) -> Iterator[Finding]:
    if name in JSON_FILES:
        yield from check_object(file, "tokenizer-invalid")
    elif file.size == 0 and (_alone(name) or name == "merges.txt"):
        yield empty(file)
