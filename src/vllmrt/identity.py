"""Which model is meant, and the names that are made from it.

Names come from command lines, pod specs and env files, and become directories, so they are checked once, here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.settings import Settings

DEFAULT_MODEL = "vllmrt/tiny"
MAX_NAME = 200
"""Bytes of a name; the store appends to it, and file systems end at 255."""

_BAD_IN_REVISION = re.compile(r"^$|^@$|[\s~^:?*\[\\]|\.\.|//|@\{|\.lock(/|$)|[/.]$|^[-/]|(^|/)\.")


def check_name(name: str, what: str) -> None:
    """Raise ConfigError unless `name` is a single safe path element (reference, chapter "Model settings")."""
    for breaks, rule in _RULES:
        if breaks(name):
            hint = "give the model as org/name, as the Hugging Face Hub does"
            raise ConfigError(f"{what} {_quote(name)} {rule}", hint=hint)


def check_revision(revision: str) -> None:
    """Raise ConfigError unless `revision` can be a branch, tag or commit (git-check-ref-format(1))."""
    if not revision.isprintable() or len(revision) > MAX_NAME or _BAD_IN_REVISION.search(revision):
        raise ConfigError(
            f"revision {_quote(revision)} cannot be a branch, tag or commit",
            hint="name one such as main, v1.0, refs/pr/3 or a commit's hash",
        )


def parse_model(text: str) -> tuple[str, str | None]:
    """Split ``org/name[@revision]``, check its parts, and return the id and the revision.

    Raises:
        ConfigError: it is not of that form, or a part breaks a rule.
    """
    model_id, at, revision = text.partition("@")
    org, slash, name = model_id.partition("/")
    if not slash:
        raise ConfigError(
            f"model {_quote(text)} has no org", hint=f"write it as org/name, or set VLLM_MODEL_ORG for {name or org}"
        )
    check_name(org, "org")
    check_name(name, "model name")
    if at:
        check_revision(revision)
    return model_id, revision or None


def requested(settings: Settings) -> ModelRequest | None:
    """Return what the settings ask for, None where they name no model.

    VLLM_MODEL_ID wins over VLLM_MODEL_ORG with VLLM_MODEL (reference, chapter "Environment variables").

    Raises:
        ConfigError: a name that breaks a rule, a name without an org, two revisions that differ.
    """
    if settings.model:
        check_name(settings.model, "VLLM_MODEL")
    if settings.model_revision:
        check_revision(settings.model_revision)
    model_id = _model_id(settings)
    if model_id is None:
        return None
    model_id, revision = parse_model(model_id)
    if revision and settings.model_revision and revision != settings.model_revision:
        raise ConfigError(
            f"two revisions are asked for: {revision} in the id and {settings.model_revision}", hint="give one"
        )
    return ModelRequest(model_id, revision=revision or settings.model_revision)


def slug(text: str) -> str:
    """Return `text` with everything but letters, digits, ``.``, ``_`` and ``-`` as ``-``, for use in file names."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)


def identity_hash(identity: str) -> str:
    """Return the first 12 hexadecimal digits of the identity's SHA-256 (reference, chapter "Env file output")."""
    for module in ("_sha2", "_sha256", "hashlib"):  # as `random` does: hashlib loads OpenSSL, 3 ms of every start
        with suppress(ImportError):  # the first is of Python 3.12, the second of 3.11
            return str(import_module(module).sha256(identity.encode()).hexdigest()[:12])
    raise AssertionError("Python has no SHA-256")


def _model_id(settings: Settings) -> str | None:
    if settings.model_id:
        return settings.model_id
    if not settings.model:
        return None
    if not settings.model_org:
        raise ConfigError(
            f"model {_quote(settings.model)} has no org",
            hint=f"write it as org/{settings.model}, or set VLLM_MODEL_ORG or VLLM_MODEL_ID",
        )
    check_name(settings.model_org, "VLLM_MODEL_ORG")
    return f"{settings.model_org}/{settings.model}"


_RULES: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda name: not name, "is empty"),
    (lambda name: "/" in name or "\\" in name, "must be one path element: no / and no \\"),
    (lambda name: name in {".", ".."}, "is a directory, not a name"),
    (lambda name: name.startswith("."), "must not begin with a dot: the store keeps its own files under such names"),
    (lambda name: name == "hub", "is a directory of the store's own"),
    (lambda name: not name.isprintable(), "must not contain control characters"),
    (lambda name: "@" in name, "must not contain @, which begins a revision"),
    (lambda name: len(name.encode(errors="surrogateescape")) > MAX_NAME, f"is longer than {MAX_NAME} bytes"),
)


def _quote(text: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - what fits on a line
    return ascii(shown)
