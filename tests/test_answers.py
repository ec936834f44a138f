"""What answers are: found out from real sets, and from rows that are nearly something else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ftsuite.choices import Answers
from ftsuite.config import DataConfig
from ftsuite.errors import ConfigError, DataError
from ftsuite.scoring import answers

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")


def found(texts: list[str], **settings: object) -> answers.AnswerFacts:
    return answers.describe(texts, DataConfig(**settings))  # type: ignore[arg-type]


@needs_shared
def test_gsm8k_answers_are_numbers() -> None:
    (path,) = SHARED.glob("gsm8k/*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert found([row["answer"] for row in rows]).kind is Answers.number


@needs_shared
def test_dolly_answers_are_free_text_and_its_categories_labels() -> None:
    (path,) = SHARED.glob("dolly_3k/*.json")
    rows = json.loads(path.read_text())
    assert found([row["output"] for row in rows]).kind is Answers.text
    categories = found([row["category"] for row in rows])
    assert categories.kind is Answers.labels
    assert "closed_qa" in categories.labels
    assert sum(categories.counts) == len(rows)


@needs_shared
def test_truthfulqa_answers_are_free_text_and_its_types_labels() -> None:
    (path,) = SHARED.glob("truthfulqa/*.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert found([row["Best Answer"] for row in rows]).kind is Answers.text
    assert found([row["Type"] for row in rows]).labels == ("Adversarial", "Non-Adversarial")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["yes", "no"] * 10, Answers.labels),
        # Ratings are labels, though they are numbers as well.
        (["1", "2", "3", "4", "5"] * 4, Answers.labels),
        ([str(n) for n in range(40)], Answers.number),
        (["1,200", "-3.5", "12%", "+7", ".5"] + [str(n) for n in range(30)], Answers.number),
        (["She has 3 + 4 = 7.\n#### 7", "So 12.\n#### 1,200"], Answers.number),
        (['{"a": 1}', "[1, 2]", '{"b": null}'], Answers.json),
        # The same object again and again is JSON, not a label.
        (['{"a": 1}', '{"a": 2}'] * 10, Answers.json),
        (["yes\nno", "no"] * 10, Answers.text),
        (["x" * 81, "y" * 81] * 10, Answers.text),
        # Hardly any repeats: four rows a label are asked for.
        ([f"answer {n // 2}" for n in range(40)], Answers.text),
        ([f"label {n % 101}" for n in range(1010)], Answers.text),
        ([f"label {n % 100}" for n in range(1000)], Answers.labels),
        (["the same"] * 20, Answers.text),
        (["1.2.3"] * 5 + ["4.5"] * 5 + ["x 7"], Answers.text),
    ],
)
def test_kind(texts: list[str], kind: Answers) -> None:
    assert found(texts).kind is kind


def test_a_few_rows_of_another_kind_are_counted() -> None:
    texts = [f'{{"a": {n}}}' for n in range(95)] + ["sorry"] * 5
    facts = found(texts)
    assert facts.kind is Answers.text
    assert "5 of 100 answers are no JSON" in facts.notes[0]
    with pytest.raises(ConfigError, match=r"data\.answers = 'json': 5 of 100 answers"):
        found(texts, answers=Answers.json)


def test_labels_that_differ_in_case_are_said() -> None:
    facts = found(["World", "world", "Sports"] * 5)
    assert "'World' and 'world' differ in case or punctuation alone" in facts.notes[1]


def test_given_labels_must_cover_the_answers_and_keep_their_order() -> None:
    assert found(["b", "a", "a"], labels=["b", "a", "c"]).labels == ("b", "a", "c")
    with pytest.raises(ConfigError, match=r"data\.labels.*1 of 3 answers are none of them"):
        found(["b", "a", "x"], labels=["b", "a"])
    with pytest.raises(ConfigError, match="there twice"):
        found(["b", "a"], labels=["b", "b"])
    with pytest.raises(ConfigError, match="at least two"):
        found(["b", "b"], labels=["b"])


def test_no_answers_are_an_error() -> None:
    with pytest.raises(DataError, match="no answers"):
        found([])


def test_a_label_that_begins_another_is_found() -> None:
    assert answers.begins_another(["no", "yes", "card_lost", "card"]) == ("card", "card_lost")
    assert answers.begins_another(["cart", "card"]) is None


def test_lengths_are_bytes() -> None:
    facts = found(["é" * 10, *["a"] * 99])
    assert (facts.longest_bytes, facts.usual_bytes) == (20, 1)
