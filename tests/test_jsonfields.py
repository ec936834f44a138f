"""Answers that are JSON objects, field by field."""

from __future__ import annotations

import json
from typing import Any

from ftsuite.analysis import jsonfields
from ftsuite.scoring.documents import Document, Pair


def document(expected: Any, answer: str) -> Document:
    return Document(
        task="t",
        kind="generate_until",
        number=0,
        sha256="0",
        question="q",
        question_characters=1,
        expected=(json.dumps(expected),),
        answers=(answer,),
        filtered={"none": answer},
        values={"json_fields": 0.0},
    )


def pair(expected: Any, base: str, tuned: str) -> Pair:
    return Pair(base=document(expected, base), tuned=document(expected, tuned))


def test_each_field_is_counted_where_it_is_expected() -> None:
    found = jsonfields.rows(
        [
            pair({"a": 1, "b": "x"}, "no JSON", '{"a": 1.0, "b": "y"}'),
            pair({"a": True}, '{"a": true}', '{"a": 1}'),
            pair({"a": [1, {"c": None}]}, '{"a": [1, {"c": null}]}', '{"a": [1]}'),
        ],
        "json_fields",
    )
    rows = {
        row.label: (row.n, row.base_right, row.tuned_right, row.gained, row.lost) for row in found
    }
    assert rows == {"a": (3, 2, 1, 1, 2), "b": (1, 0, 0, 0, 0)}
    assert [row.label for row in found] == ["a", "b"]


def test_other_answers_have_no_fields() -> None:
    assert jsonfields.rows([pair([1], "[1]", "[1]")], "json_fields") == []
    assert jsonfields.rows([], "json_fields") == []
