"""Whatever is put in, a parser reads back; the real parser where there is one on every machine."""

from __future__ import annotations

import tomllib

import yaml
from hypothesis import example, given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from podkit import expanded
from render.kit import quadlet_values, unit_words

from vllmrt.render.quoting import kubernetes_literal, toml_string, unit_word, yaml_documents

TEXTS = st.text(st.characters(codec="utf-8"))
HOSTILE = [
    "",
    "$(HOME)",
    "$$(HOME)",
    "a $ b",
    "${HOME}",
    "%h %%",
    '"',
    "'",
    "\\",
    "\\n",
    "a\nb\t",
    "'''",
    '"""',
    "#",
    ": ",
    "1e3",
]


def hostile(test):
    for text in HOSTILE:
        test = example(text=text)(test)
    return bounds(deadline=None)(given(text=TEXTS)(test))


@hostile
def test_kubernetes_expands_to_what_was_meant(text: str) -> None:
    assert expanded(kubernetes_literal(text), {"HOME": "expanded"}) == text


@hostile
def test_yaml_reads_back(text: str) -> None:
    written = yaml_documents([{"value": kubernetes_literal(text)}])
    assert yaml.safe_load(written) == {"value": text.replace("$", "$$")}


@hostile
def test_a_value_is_in_quotes_for_whichever_yaml(text: str) -> None:
    assert yaml_documents([{"value": kubernetes_literal(text)}]).startswith('value: "')


@hostile
def test_toml_reads_back(text: str) -> None:
    assert tomllib.loads(f"value = {toml_string(text)}") == {"value": text}


@hostile
def test_a_unit_is_one_line_and_reads_back(text: str) -> None:
    text = text.replace("\0", "")
    for in_command in (False, True):
        word = unit_word(text, in_command=in_command)
        assert "\n" not in word
        assert unit_words(word) == [text.replace("%", "%%").replace("$", "$$" if in_command else "$")]


@hostile
def test_quadlet_reads_back(text: str) -> None:
    text = text.replace("\0", "")
    assert quadlet_values(f"Exec={unit_word(text, in_command=True)}", "Exec") == [text]
