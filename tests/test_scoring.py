"""How answers of the tasks that the suite builds are scored."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from ftsuite.resources import evals_dir

spec = importlib.util.spec_from_file_location("scoring", evals_dir() / "held_out" / "scoring.py")
assert spec is not None and spec.loader is not None
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)

SCHEMA = {
    "type": "object",
    "properties": {"goods": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["goods", "count"],
    "additionalProperties": False,
}


def json_scores(expected: Any, answer: str) -> dict[str, float]:
    doc = {"expected": json.dumps(expected), "schema": json.dumps(SCHEMA)}
    scores: dict[str, float] = scoring.json_scores(doc, [answer])
    return scores


WANTED = {"goods": "lamp", "count": 3}


@pytest.mark.parametrize(
    ("answer", "valid", "schema", "fields", "equal"),
    [
        ('{"count": 3, "goods": "lamp"}', 1, 1, 1.0, 1),
        ('{"goods": "lamp", "count": 3.0}', 1, 1, 1.0, 1),
        ('{"goods": "lamp", "count": "3"}', 1, 0, 0.5, 0),
        ('{"goods": "lamp", "count": true}', 1, 0, 0.5, 0),
        ('{"goods": "lamp"}', 1, 0, 2 / 3, 0),
        ('{"goods": "lamp", "count": 3, "more": 1}', 1, 0, 0.8, 0),
        ('{"goods": "lamp", "count": 3', 0, 0, 0.0, 0),
        ('Here: {"goods": "lamp", "count": 3}', 0, 0, 0.0, 0),
        ("3", 0, 0, 0.0, 0),
        ("[]", 1, 0, 0.0, 0),
        ("", 0, 0, 0.0, 0),
        ("[" * 100_000, 0, 0, 0.0, 0),
        ("[" * 500 + "]" * 500, 0, 0, 0.0, 0),
        ('{"goods": "lamp", "count": NaN}', 0, 0, 0.0, 0),
        ('{"goods": "lamp", "count": 4, "count": 3}', 0, 0, 0.0, 0),
    ],
)
def test_json(answer: str, valid: int, schema: int, fields: float, equal: int) -> None:
    scores = json_scores(WANTED, answer)
    assert scores == pytest.approx(
        {"json_valid": valid, "json_schema": schema, "json_fields": fields, "json_equal": equal}
    )


def test_true_is_not_one_and_order_in_a_list_counts() -> None:
    assert json_scores({"a": True}, '{"a": 1}')["json_equal"] == 0
    assert json_scores([1, 2], "[2, 1]")["json_equal"] == 0
    assert json_scores({"a": {"b": [1, {}]}}, '{"a": {"b": [1, {}]}}')["json_equal"] == 1
    assert json_scores({"a": 10**400}, json.dumps({"a": 10**400}))["json_equal"] == 1


@pytest.mark.parametrize(
    ("expected", "answer", "equal", "given"),
    [
        ("72", "72", 1, 1),
        ("72", "The result is 72.", 1, 1),
        ("1,200", "so 1200", 1, 1),
        ("work 5\n#### 72", "5 + 67 = 72", 1, 1),
        ("-3", "3", 0, 1),
        ("0.5", ".5", 1, 1),
        ("72", "72 or 73", 0, 1),
        ("72", "no idea", 0, 0),
        ("0", "0.0000001", 0, 1),
        ("12%", "12", 1, 1),
        ("72", "1" * 400, 0, 1),
        ("10000000", "10000001", 0, 1),
        ("0.5", "0.50", 1, 1),
        ("1000", "1e3", 1, 1),
        ("\u22123", "-3", 1, 1),
    ],
)
def test_numbers(expected: str, answer: str, equal: int, given: int) -> None:
    doc = {"expected": expected, "tolerance": 0.0}
    assert scoring.number_scores(doc, [answer]) == {"number_equal": equal, "number_given": given}


def test_numbers_within_the_tolerance() -> None:
    assert scoring.number_scores({"expected": "100", "tolerance": 0.01}, ["101"]) == {
        "number_equal": 1,
        "number_given": 1,
    }


def test_rouge_l_counts_words_of_any_script() -> None:
    def rouge(expected: str, answer: str) -> float:
        value: float = scoring.text_scores({"expected": expected}, [answer])["rouge_l"]
        return value

    # Lin 2004: the longest common subsequence "police the gunman" of 4 and 4 words.
    assert rouge("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge("Здравствуй мир", "здравствуй, мир!") == 1
    assert rouge("a b", "c d") == 0
    assert rouge("कि", "का") == 0
    assert 0 < rouge("C++", "C#") < 1
    assert rouge("👍", "👍") == 1
    assert rouge("?!", "?!") == 1
    assert rouge("a b", "") == 0
    assert scoring.text_scores({"expected": "a"}, ["b"])["chrf"] == ("a", "b")


def test_bits_count_the_bytes_of_the_answer() -> None:
    assert scoring.answer_bits({"answer": "é!"}, [(-2.0, False)]) == {"bits_per_byte": (-2.0, 3)}
