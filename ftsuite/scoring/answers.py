"""What the answers of a data set are: labels, JSON, numbers or free text.

Held-out rows are scored accordingly.

Found out from all rows, before any is held out: which labels there are is a fact of the data set,
not something that a model could learn from the held-out rows.
"""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ftsuite.choices import Answers
from ftsuite.data.readers import parse_json
from ftsuite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftsuite.config import DataConfig

MOST_LABELS = 100
"""More distinct answers than this are no closed set, unless `data.labels` says so."""
LONGEST_LABEL = 80
"""Characters."""
ROWS_A_LABEL = 4
"""Rows that a label must have on average: answers that hardly repeat are no closed set."""
MOSTLY = 0.9
"""Share of answers of one kind above which the others are worth a word."""
USUAL = 0.95
"""Share of the answers that `usual_bytes` covers."""
NUMBER = re.compile(r"[+-]?((\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][+-]?\d{1,3})?|\.\d+)%?")
FINAL_NUMBER = re.compile(rf"####\s*({NUMBER.pattern})\s*\Z")
"""GSM8K's form (Cobbe et al. 2021, arXiv 2110.14168): the working, then `#### 72`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFacts:
    """What the answers of a data set are."""

    kind: Answers
    """Never auto."""
    labels: tuple[str, ...] = ()
    """The closed set: in the order of `data.labels`, else of their texts."""
    counts: tuple[int, ...] = ()
    """Rows of each label."""
    longest_bytes: int
    usual_bytes: int
    """No longer are 95 % of the answers."""
    notes: tuple[str, ...] = ()
    """What was found and how to say otherwise."""


def describe(answers: Iterable[str], data: DataConfig) -> AnswerFacts:
    """Find out what the answers are.

    Args:
        answers: of every row, in any order.
        data: `answers`, `labels`, and the training file for messages.

    Raises:
        ConfigError: `data.answers` or `data.labels` do not fit the rows.
        DataError: there are no answers.
    """
    counts, sizes = Counter[str](), list[int]()
    json_like = number_like = 0
    for answer in answers:
        text = answer.strip()
        sizes.append(len(text.encode()))
        json_like += is_json(text)
        number_like += is_number(text)
        # What is certainly no label need not be kept.
        if _may_be_label(text):
            counts[text] += 1
        else:
            counts[""] += 1
    if not sizes:
        raise DataError(f"{data.train}: no answers to describe; check the file")
    sizes.sort()
    facts = AnswerFacts(
        kind=Answers.text,
        longest_bytes=sizes[-1],
        usual_bytes=sizes[min(len(sizes) - 1, int(USUAL * len(sizes)))],
    )
    if data.labels or data.answers is Answers.labels:
        labels = _labels(counts, data)
        return replace(
            facts,
            kind=Answers.labels,
            labels=labels,
            counts=tuple(counts[label] for label in labels),
            notes=_alike(labels),
        )
    shares = {Answers.json: json_like, Answers.number: number_like}
    if data.answers in shares:
        _require_all(data, shares[data.answers], len(sizes))
    if data.answers is not Answers.auto:
        return replace(facts, kind=data.answers)
    return _found(facts, counts, shares, len(sizes))


def _found(
    facts: AnswerFacts, counts: Counter[str], shares: dict[Answers, int], total: int
) -> AnswerFacts:
    is_closed = (
        "" not in counts and 2 <= len(counts) <= MOST_LABELS and total >= ROWS_A_LABEL * len(counts)
    )
    if is_closed and shares[Answers.json] < total:
        labels = tuple(sorted(counts))
        said = (
            f"the answers are {len(labels)} labels, each {total // len(labels):,} times on "
            "average; data.answers=text says otherwise"
        )
        return replace(
            facts,
            kind=Answers.labels,
            labels=labels,
            counts=tuple(counts[label] for label in labels),
            notes=(said, *_alike(labels)),
        )
    for kind, there in shares.items():
        name = "JSON" if kind is Answers.json else "numbers"
        if there == total:
            said = f"the answers are {name}; data.answers=text says otherwise"
            return replace(facts, kind=kind, notes=(said,))
        if there >= MOSTLY * total:
            said = (
                f"{total - there:,} of {total:,} answers are no {name}, so all are scored as free "
                f"text; mend these rows, and they are scored as {name}"
            )
            return replace(facts, notes=(said,))
    if len(counts) == 1 and "" not in counts:
        said = "all answers are the same, so there is nothing to tell apart"
    else:
        said = "the answers are free text"
    return replace(facts, notes=(said,))


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array and nothing else."""
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return False
    try:
        parse_json(text, strict=True)
    except (ValueError, RecursionError):
        return False
    return True


def is_number(text: str) -> bool:
    """Whether a text is a number, or ends in GSM8K's `#### number`."""
    text = text.replace("\u2212", "-")
    return bool(NUMBER.fullmatch(text) or FINAL_NUMBER.search(text))


def _may_be_label(text: str) -> bool:
    return bool(text) and len(text) <= LONGEST_LABEL and len(text.splitlines()) == 1


def _require_all(data: DataConfig, there: int, total: int) -> None:
    if there < total:
        kind = "JSON objects or arrays" if data.answers is Answers.json else "numbers"
        raise ConfigError(
            "data.answers",
            data.answers.value,
            f"{total - there:,} of {total:,} answers are no {kind}; mend them, or set text",
        )


def _labels(counts: Counter[str], data: DataConfig) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in data.labels) or tuple(sorted(counts))
    if len(set(labels)) < len(labels) or not all(labels):
        raise ConfigError(
            "data.labels" if data.labels else "data.answers",
            data.labels or data.answers.value,
            "a label is empty, or longer than a line, or there twice; name each once",
        )
    if len(labels) < 2:
        raise ConfigError("data.labels", list(labels), "at least two are needed to choose from")
    unknown = sum(count for answer, count in counts.items() if answer not in labels)
    if unknown:
        raise ConfigError(
            "data.labels",
            data.labels,
            f"{unknown:,} of {counts.total():,} answers are none of them; add their labels, or "
            "mend the rows",
        )
    return labels


def _alike(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels that a person would take for one another's misspelling."""
    seen: dict[str, str] = {}
    said = []
    for label in labels:
        bare = normalised(label)
        if bare and bare in seen:
            said.append(
                f"the labels {seen[bare]!r} and {label!r} differ in case or punctuation alone; "
                "if they are one, mend the rows"
            )
        seen.setdefault(bare, label)
    return tuple(said)


def normalised(label: str) -> str:
    """A label without case and punctuation, as lm-eval's exact_match can compare.

    Letters with accents count alike whether they are one sign or two (Unicode's NFKC).
    """
    label = unicodedata.normalize("NFKC", label)
    return label.casefold().translate(str.maketrans("", "", string.punctuation))


def begins_another(labels: Sequence[str]) -> tuple[str, str] | None:
    """Two labels of which one begins the other: its log-likelihood is then never the lower one."""
    ordered = sorted(labels)
    for one, other in itertools.pairwise(ordered):
        if other.startswith(one):
            return one, other
    return None
