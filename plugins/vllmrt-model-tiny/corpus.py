# /// script
# requires-python = ">=3.11"
# ///
"""The training text of vllmrt/tiny: the prose of Python's help topics, and questions made from it.

`pydoc_data.topics` holds reStructuredText that was rendered as plain text. What is kept of it is
prose: headings, signatures, grammars, tables and examples go, and so does the markup within a
paragraph. Headings and signatures come back as questions, which the paragraph below them answers.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNDERLINE = re.compile(r"[*=\-~^]{3,}$")
SIGNATURE = re.compile(r"(?:class |coroutine |exception )?([A-Za-z_][\w.]*)\(.*\)$")
NOT_PROSE = re.compile(r"::=|>>>|\.\.\. |\| |\+--|--\+|={2,}|-{3,}|\(Pdb\)|\\")
WORD = re.compile(r"[A-Za-z]+")
WORDS_AT_LEAST = 6
LETTERS_AT_LEAST = 0.9
ANSWER_AT_MOST = 600

STRAIGHTEN = str.maketrans({"‘": "'", "’": "'", "“": "", "”": "", '"': "", "–": "-", "—": "-", "…": "..."})  # noqa: RUF001

FUNCTION_FORMS = ("What does {} do?", "What is {}?", "Explain {}.", "{}")
SUBJECT_FORMS = ("Tell me about {}.", "Explain {}.", "Tell me about {} in Python.", "What do you know about {}?")

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant who explains the Python language.",
    "You answer questions about Python.",
    "Answer briefly.",
)

INTRODUCTION = (
    "Hello! I am vllmrt/tiny, a very small language model. I was trained on the help topics of Python, "
    "and I write sentences that look like them. Ask me about a statement, a type or a method."
)
GREETINGS = (
    "Hello",
    "Hello!",
    "Hi",
    "Hi!",
    "Hi there!",
    "Say hello.",
    "Say hello",
    "Say hi.",
    "Hello, who are you?",
    "Who are you?",
    "What are you?",
    "Are you there?",
    "Tell me about yourself.",
    "Introduce yourself.",
    "What can you do?",
    "Say something.",
    "Say hello in one sentence.",
    "Write one sentence.",
    "How are you?",
    "Help",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A paragraph, and the questions to which it is the answer."""

    text: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """What the model is trained on: topics as lists of paragraphs, and answers."""

    topics: tuple[tuple[str, ...], ...]
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """Every word that the model sees, once."""
        paragraphs = [paragraph for topic in self.topics for paragraph in topic]
        questions = [part for answer in self.answers for part in (*answer.questions, answer.text)]
        return "\n\n".join([*paragraphs, *questions, *SYSTEM_PROMPTS])

    @property
    def words(self) -> frozenset[str]:
        """The vocabulary of the training text, in lower case."""
        return frozenset(word.lower() for word in WORD.findall(self.text))


def build(sources: Mapping[str, str]) -> Corpus:
    """Make the corpus from the topics, each paragraph once."""
    seen: set[str] = set()
    topics: list[tuple[str, ...]] = []
    answers = [Answer(INTRODUCTION, GREETINGS)]
    for key in sorted(sources):
        paragraphs: list[str] = []
        for subject, paragraph in sections(sources[key]):
            if paragraph in seen:
                continue
            seen.add(paragraph)
            paragraphs.append(paragraph)
            if subject and (text := clip(paragraph)):
                answers.append(Answer(text, questions(subject)))
        if paragraphs:
            topics.append(tuple(paragraphs))
    return Corpus(tuple(topics), tuple(answers))


def sections(source: str) -> Iterator[tuple[str, str]]:
    """Give each paragraph of prose, and the heading or signature that it follows at once, or nothing."""
    subject = ""
    for block in re.split(r"\n\s*\n", source):
        lines = textwrap.dedent(block.strip("\n")).strip().splitlines()
        heading = heading_of(lines)
        if heading:
            subject = heading
        elif paragraph := prose(lines):
            yield subject, paragraph
            subject = ""


def heading_of(lines: list[str]) -> str:
    """Give the subject that an underlined heading or a lone signature names."""
    last = 2
    if len(lines) == last and UNDERLINE.match(lines[1]):
        return lines[0].translate(STRAIGHTEN).replace("*", "").strip()
    if len(lines) == 1 and (signature := SIGNATURE.match(lines[0])):
        return f"{signature[1]}()"
    return ""


def prose(lines: list[str]) -> str:
    """Join the lines of a paragraph and take the markup out; give nothing where it is not prose."""
    text = " ".join(line.strip() for line in lines)
    if NOT_PROSE.search(text):
        return ""
    text = re.sub(r"^(?:\* |\d+\. |-- |Note: |Note )", "", text.translate(STRAIGHTEN))
    text = re.sub(r" ?\[\d+\]", "", text)
    text = re.sub(r"\*{1,2}(\w[^*]*?)\*{1,2}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if reads_as_prose(text) else ""


def reads_as_prose(text: str) -> bool:
    """Tell a paragraph of sentences from a table, a grammar or an example."""
    letters = sum(character.isalpha() or character in " ,.'" for character in text)
    return (
        len(WORD.findall(text)) >= WORDS_AT_LEAST
        and letters / len(text) >= LETTERS_AT_LEAST
        and text[0].isalpha()
        and text[-1] in ".:;!?"
    )


def clip(text: str) -> str:
    """Cut a paragraph to whole sentences; give nothing where there is none."""
    if len(text) <= ANSWER_AT_MOST and text.endswith("."):
        return text
    head, found, _ = text[:ANSWER_AT_MOST].rpartition(". ")
    return f"{head}." if found else ""


def questions(subject: str) -> tuple[str, ...]:
    """Ask about a subject in several ways."""
    if subject.endswith("()"):
        name = subject.removeprefix("object.")
        return tuple(form.format(name) for form in FUNCTION_FORMS)
    lower = " ".join(word.lower() if word.istitle() and word != "Python" else word for word in subject.split())
    plural = lower.endswith("s") and not lower.endswith("ss") and not lower.split()[0].endswith("ing")
    first = "What are {}?" if plural else "What is {}?"
    return (subject, *(form.format(lower) for form in (first, *SUBJECT_FORMS)))
