"""The model's configuration: the first check of the reference, and Mistral's own layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.validate.reading import check_object, empty, error
from vllmrt.validate.tokenizer import JSON_FILES
from vllmrt.validate.weights import INDEX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.tree import Survey

MODEL = ("config.json", "params.json")
OBJECTS = (*MODEL, "generation_config.json", "preprocessor_config.json", "processor_config.json")


def check(survey: Survey, _: Settings) -> Iterator[Finding]:
    """Yield ``config-missing``, ``config-invalid``, and ``empty-file`` for any JSON file beside them."""
    yield from missing((*survey.files, *survey.refused))
    for file in survey.root_files():
        if file.name in OBJECTS:
            yield from check_object(file, "config-invalid")
        elif file.size == 0 and _is_for_nobody_else(file.name):
            yield empty(file)


def missing(names: Collection[str]) -> Iterator[Finding]:
    """Yield ``config-missing`` unless one of the files is a configuration."""
    if not any(name in names for name in MODEL):
        yield error("config-missing", MODEL[0], "is missing, and there is no params.json of Mistral's layout either")


def _is_for_nobody_else(name: str) -> bool:
    return name.endswith(".json") and not name.endswith(INDEX) and name not in JSON_FILES
