"""Names that columns have in the data sets of this field, and what each tells of its column."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import TYPE_CHECKING

from ftsuite.config import ColumnsConfig
from ftsuite.errors import shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

QUESTIONS = (
    *("article", "body", "comment", "content", "document", "email", "headline", "input"),
    *("instruction", "message", "passage", "post", "prompt", "query", "question", "request"),
    *("review", "sentence", "subject", "text", "ticket", "title", "tweet", "utterance"),
)
"""Names of columns that hold what a model is asked."""
ANSWERS = (
    *("answer", "category", "class", "completion", "emotion", "highlights", "intent", "label"),
    *("output", "polarity", "rating", "reply", "response", "sentiment", "solution", "summary"),
    *("target", "translation"),
)
"""Names of columns that hold what a model should learn to say."""
PARTS_OF_QUESTIONS = ("choices", "context", "input", "instruction", "options", "passage")
"""Names of columns that belong to a question, beside the one that holds it."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Names of columns that hold a row's system message."""
SHAREGPT = "conversations"
"""Column of the messages in data sets of the ShareGPT kind."""
METADATA = (
    *("date", "id", "idx", "index", "lang", "language", "meta", "metadata", "source", "split"),
    *("timestamp", "url"),
)
"""Names of columns that say something about a row; they tell a header from a row."""
NAMED = 10
"""Columns that an error or a note names before it counts the rest."""
TOKEN = re.compile(r"\w+([.-]\w+)*")
"""A name as programs write it, without spaces."""


def are_names(cells: Collection[str]) -> bool:
    """Say whether the cells of a first line have a name that columns have.

    That is one in its own words, or, where all are written as programs write names, one whose last
    word is, such as `intent_label`.
    """
    if any(map(is_known, cells)):
        return True
    words = {*QUESTIONS, *ANSWERS}
    return all(map(TOKEN.fullmatch, cells)) and any(_last_word(cell) in words for cell in cells)


def is_known(name: str) -> bool:
    """Say whether a name is, word for word, one that columns have."""
    defaults = [value for value in dataclasses.asdict(ColumnsConfig()).values() if value]
    known = {*defaults, *QUESTIONS, *ANSWERS, *PARTS_OF_QUESTIONS, *SYSTEM, *METADATA, SHAREGPT}
    return name.strip().lower() in known


def names_like(words: Collection[str], names: Iterable[str], group: str | None) -> list[str]:
    """Return the columns whose name ends in one of `words`; the group's if no other does."""
    found = [name for name in names if _last_word(str(name)) in words]
    return [name for name in found if name != group] or found


def can_be_asked_or_answered(name: str) -> bool:
    """Say whether a column's name may make it the question or the answer, if nothing else does."""
    return bool(names_like({*QUESTIONS, *ANSWERS}, [name], None))


def listed(names: Iterable[object]) -> str:
    """Return column names in quotation marks, the first few of many."""
    shown = [repr(shorten(str(name))) if name else "one without a name" for name in names]
    rest = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + rest or "none"


def _last_word(name: str) -> str:
    """The noun of a name such as `Best Answer`, `intent_label`, `userMessage` or `sentence2`."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    last = parts[-1].lower() if parts else ""
    return last if last in (*QUESTIONS, *ANSWERS) else last.removesuffix("s")


def remedy(question: str, answer: str) -> str:
    """Return overrides that name the two columns, as a shell takes them."""
    words = (f"data.columns.prompt={question}", f"data.columns.completion={answer}")
    return f"data.shape=prompt_completion {' '.join(map(shlex.quote, words))}"


def untrained(names: Collection[str], answers: list[str], text: str) -> str:
    """Return why a text beside what looks like its answer is refused, and the remedy."""
    return (
        f"the column {answers[0]!r} looks like an answer, but would not be trained beside "
        f"{text!r}, and of {listed(names)} it is not plain which is the question and which "
        f"the answer; set {remedy(text, answers[0])}, or data.shape=text to leave it out"
    )


def ambiguous(questions: list[str], answers: list[str]) -> str:
    """Return why several questions or answers are refused, and the remedy."""
    several = questions if len(questions) > 1 else answers
    what = "question" if several is questions else "answer"
    return (
        f"{listed(several)} all look like the {what}; set "
        f"{remedy(questions[0], answers[0])}, or others of them"
    )
