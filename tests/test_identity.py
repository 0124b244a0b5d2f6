"""Model ids, revisions and the names that are made from them."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmrt.errors import ConfigError
from vllmrt.identity import (
    DEFAULT_MODEL,
    MAX_NAME,
    check_name,
    check_revision,
    identity_hash,
    parse_model,
    requested,
    slug,
)
from vllmrt.settings import Settings
from vllmrt.types import ModelRequest

UNSAFE = [
    ("", "is empty"),
    (".", "is a directory, not a name"),
    ("..", "is a directory, not a name"),
    ("/", "must be one path element"),
    ("/etc", "must be one path element"),
    ("a/b", "must be one path element"),
    ("a\\b", "must be one path element"),
    ("..\\..", "must be one path element"),
    ("a/..", "must be one path element"),
    (".staging", "must not begin with a dot"),
    (".locks", "must not begin with a dot"),
    (".vllmrt.json", "must not begin with a dot"),
    ("hub", "is a directory of the store's own"),
    ("a\x00b", "must not contain control characters"),
    ("a\nb", "must not contain control characters"),
    ("a\x1b[31mb", "must not contain control characters"),
    ("a\x7f", "must not contain control characters"),
    ("a\u202eb", "must not contain control characters"),
    ("a\u2028b", "must not contain control characters"),
    ("a\udcff", "must not contain control characters"),
    ("a@b", "must not contain @"),
    ("a" * 300, f"is longer than {MAX_NAME} bytes"),
    ("\u00e9" * 101, f"is longer than {MAX_NAME} bytes"),
]
SAFE = [
    "a",
    "Phi-3.5-mini-instruct-AWQ",
    "a b",
    "modèle",
    "-",
    "a..b",
    "Hub",
    "hub2",
    "a.lock",
    "a" * MAX_NAME,
    "é" * 100,
]

BAD_REVISIONS = [
    " ",
    "a b",
    "a\tb",
    "a\x00b",
    "..",
    "a..b",
    "../../etc/passwd",
    "/main",
    "main/",
    "a//b",
    "-main",
    ".hidden",
    "a~1",
    "a^",
    "a:b",
    "a?b",
    "a*b",
    "a[b",
    "a\\b",
    "a@{b",
    "main.lock",
    "a" * 300,
    "a\u202eb",
    "refs/.hidden",
    "refs/pr.lock/3",
    "@",
    "main.",
]
GOOD_REVISIONS = ["main", "v1.0", "refs/pr/3", "0" * 40, "feature/x_y", "1.0.0-rc.1", "a@b", "HEAD"]


@pytest.mark.parametrize(("name", "rule"), UNSAFE, ids=[ascii(name)[:24] for name, _ in UNSAFE])
def test_an_unsafe_name_is_refused_by_its_rule(name: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name, "model name")
    assert rule in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert caught.value.exit_code == 1
    assert caught.value.hint


@pytest.mark.parametrize("name", SAFE, ids=lambda name: ascii(name)[:24])
def test_a_safe_name_passes(name: str) -> None:
    check_name(name, "model name")


# what is left of a name after the id is split at its slash and its @
NAMES = [(name, rule) for name, rule in UNSAFE if not {"/", "@"} & set(name)]


@pytest.mark.parametrize(("name", "rule"), NAMES, ids=[ascii(name)[:24] for name, _ in NAMES])
@pytest.mark.parametrize("part", ["org", "model name"])
def test_both_parts_of_an_id_are_checked(part: str, name: str, rule: str) -> None:
    text = f"{name}/good" if part == "org" else f"good/{name}"
    with pytest.raises(ConfigError, match=re.escape(rule)) as caught:
        parse_model(text)
    assert str(caught.value).startswith(part)


@pytest.mark.parametrize(
    ("name", "rule"), [pair for pair in UNSAFE if pair[0]], ids=[ascii(name)[:24] for name, _ in UNSAFE if name]
)
@pytest.mark.parametrize("variable", ["VLLM_MODEL", "VLLM_MODEL_ORG"])
def test_both_variables_are_checked(variable: str, name: str, rule: str) -> None:
    given: dict[str, Any] = {"VLLM_MODEL": {"model": name, "model_org": "org"}}.get(
        variable, {"model": "name", "model_org": name}
    )
    with pytest.raises(ConfigError, match=re.escape(rule)) as caught:
        requested(Settings(**given))
    assert str(caught.value).startswith(variable)


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b", "hub"])
def test_the_directorys_name_is_checked_even_where_the_id_says_it_all(name: str) -> None:
    with pytest.raises(ConfigError, match="VLLM_MODEL"):
        requested(Settings(model=name, model_id="org/name"))


@pytest.mark.parametrize("text", ["name", "name@main", "", "@main", "@org/name"])
def test_an_id_without_an_org_says_so(text: str) -> None:
    with pytest.raises(ConfigError, match="has no org") as caught:
        parse_model(text)
    assert "VLLM_MODEL_ORG" in (caught.value.hint or "")


def test_a_model_without_an_org_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="model 'name' has no org") as caught:
        requested(Settings(model="name"))
    assert "VLLM_MODEL_ORG" in (caught.value.hint or "")
    assert "VLLM_MODEL_ID" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["org/a/b", "/org/name", "org//name", "org/name/", "https://huggingface.co/org/name"])
def test_an_id_has_two_parts(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_model(text)


@pytest.mark.parametrize("revision", BAD_REVISIONS, ids=lambda revision: ascii(revision)[:24])
def test_a_bad_revision_is_refused(revision: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a branch, tag or commit") as caught:
        check_revision(revision)
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError):
        parse_model(f"org/name@{revision}")
    with pytest.raises(ConfigError):
        requested(Settings(model_id="org/name", model_revision=revision))


def test_a_revision_that_is_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match="revision '' cannot be"):
        parse_model("org/name@")


@pytest.mark.parametrize("revision", GOOD_REVISIONS)
def test_a_good_revision_passes(revision: str) -> None:
    assert parse_model(f"org/name@{revision}") == ("org/name", revision)


def test_without_a_revision_there_is_none() -> None:
    assert parse_model("org/name") == ("org/name", None)


DERIVATIONS = [
    ({}, None),
    ({"model_org": "org"}, None),
    ({"model": "name", "model_org": "org"}, "org/name"),
    ({"model_id": "a/b"}, "a/b"),
    ({"model_id": "a/b", "model": "name", "model_org": "org"}, "a/b"),
    ({"model_id": "a/b", "model": "name"}, "a/b"),
    ({"model_id": "a/b@v1"}, "a/b@v1"),
    ({"model_id": "a/b", "model_revision": "v1"}, "a/b@v1"),
    ({"model_id": "a/b@v1", "model_revision": "v1"}, "a/b@v1"),
    ({"model": "name", "model_org": "org", "model_revision": "v1"}, "org/name@v1"),
]


@pytest.mark.parametrize(("given", "identity"), DERIVATIONS, ids=[str(given) for given, _ in DERIVATIONS])
def test_the_id_is_derived_as_the_reference_says(given: dict[str, Any], identity: str | None) -> None:
    request = requested(Settings(**given))
    assert (request.identity if request else None) == identity


def test_what_is_said_of_vllm_model_is_what_is_accepted() -> None:
    """The reference refuses a slash in it; so must the help, or do otherwise."""
    told = Settings.__annotations__["model"].__metadata__[-1].help
    with pytest.raises(ConfigError, match="must be one path element"):
        requested(Settings(model="org/name@v1"))
    assert "org/name" not in told


def test_two_revisions_that_differ_are_refused_naming_both() -> None:
    with pytest.raises(ConfigError, match="v1 in the id and v2"):
        requested(Settings(model_id="a/b@v1", model_revision="v2"))


def test_a_bad_revision_is_refused_even_without_a_model() -> None:
    with pytest.raises(ConfigError):
        requested(Settings(model_revision="a b"))


def test_the_model_that_comes_along_has_a_sound_id() -> None:
    assert parse_model(DEFAULT_MODEL) == (DEFAULT_MODEL, None)


def test_the_parts_of_a_request() -> None:
    request = ModelRequest("org/name", revision="v1")
    assert (request.org, request.name, request.identity) == ("org", "name", "org/name@v1")
    assert ModelRequest("org/name").identity == "org/name"


# what can become of any text at all

HOSTILE = st.text(alphabet=st.one_of(st.sampled_from("./\\@~ \x00\n\x1b-ah"), st.characters()), max_size=12)


@given(HOSTILE, HOSTILE, st.one_of(st.none(), HOSTILE))
@example("..", "..", None)
@example("a", "..", "main")
@example("a", "hub", None)
@example("a", "b", "../../x")
def test_nothing_that_passes_leaves_the_directory_that_it_is_joined_to(
    org: str, name: str, revision: str | None
) -> None:
    text = f"{org}/{name}" if revision is None else f"{org}/{name}@{revision}"
    try:
        model_id, found = parse_model(text)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - most texts are refused
        return
    joined = posixpath.normpath(posixpath.join("/store", model_id.partition("/")[2]))
    assert posixpath.dirname(joined) == "/store"
    assert joined not in {"/store/hub", "/store/.staging", "/store/.locks"}
    assert posixpath.dirname(posixpath.normpath(f"/store/{model_id}")) != "/"
    assert len(os.fsencode(posixpath.basename(joined))) <= 255 - len(".000000000000")
    assert text.isprintable()
    if found:
        inside = posixpath.normpath(f"/refs/x/{found}")
        assert inside.startswith("/refs/x/")
        assert not found.startswith("-")


@given(st.text())
def test_a_slug_is_safe_in_a_file_name_and_keeps_its_length(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]*", slug(text))
    assert len(slug(text)) == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"),
        ("org/modèle", "org-mod-le"),
        ("a b@c", "a-b-c"),
        ("../x", "..-x"),
    ],
)
def test_a_slug_maps_unsafe_characters_to_dashes(text: str, expected: str) -> None:
    assert slug(text) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("meta-llama/Llama-3.1-8B-Instruct")
def test_the_hash_is_the_first_12_digits_of_the_sha_256(text: str) -> None:
    assert identity_hash(text) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_hash_is_what_sha256sum_says() -> None:
    # printf %s meta-llama/Llama-3.1-8B-Instruct | sha256sum | cut -c 1-12
    assert identity_hash("meta-llama/Llama-3.1-8B-Instruct") == "08a20b291e44"
