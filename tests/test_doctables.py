"""What a run's record keeps of its documents, counted by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
from answered import EVALS, make_answered, make_documents, make_scores

from ftsuite import documents, jsonfile
from ftsuite.compare import compare_scores, corpus_value
from ftsuite.docrecords import ConfusionRow, DocumentTable, LabelRow
from ftsuite.doctables import (
    LONGEST_TEXT,
    MOST_CONFUSIONS,
    MOST_ROWS,
    OTHER_TEXT,
    document_tables,
    group_tables,
)
from ftsuite.errors import ComparisonError
from ftsuite.records import RunRecord

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

COMPARISONS = compare_scores(make_scores(0), make_scores(1))


@pytest.fixture
def tables() -> dict[str, DocumentTable]:
    return {table.task: table for table in make_answered().documents}


def label(name: str, n: int, base: int, tuned: int, gained: int, lost: int) -> LabelRow:
    return LabelRow(label=name, n=n, base_right=base, tuned_right=tuned, gained=gained, lost=lost)


def test_headline_comes_first_then_what_was_generated(tables: dict[str, DocumentTable]) -> None:
    assert list(tables) == ["route", "write", "story"]
    other = dataclasses.replace(EVALS, headline="story/chrf")
    found = document_tables(other, COMPARISONS, make_documents(0), make_documents(1))
    assert [table.task for table in found] == ["story", "write"]


def test_won_lost_and_same(tables: dict[str, DocumentTable]) -> None:
    route = tables["route"]
    assert (route.metric, route.n, route.won, route.lost, route.same) == ("acc", 6, 3, 1, 2)
    # Equal changes by their hashes: 7 n mod 10 is 0, 7 and 5.
    assert [row.number for row in route.won_documents] == [0, 5, 1]
    (lost,) = route.lost_documents
    assert (lost.question, lost.expected) == ("Question 4 of route?", "login")
    assert (lost.base, lost.tuned, lost.base_value, lost.tuned_value) == ("login", "other", 1, 0)
    assert route.examples == () and route.lengths is None


def test_labels_and_confusions_of_choices(tables: dict[str, DocumentTable]) -> None:
    route = tables["route"]
    assert route.labels == (
        label("billing", 3, 0, 2, 2, 0),
        label("login", 2, 2, 1, 0, 1),
        label("other", 1, 0, 1, 1, 0),
    )
    confusions = {(c.expected, c.answered): (c.base, c.tuned) for c in route.confusions}
    assert confusions == {
        ("billing", "login"): (2, 1),
        ("billing", "other"): (1, 0),
        ("login", "other"): (0, 1),
        ("other", "billing"): (1, 0),
    }
    assert route.confusions[0] == ConfusionRow(
        expected="billing", answered="login", base=2, tuned=1
    )


def test_generated_answers_outside_of_the_set_are_another_text(
    tables: dict[str, DocumentTable],
) -> None:
    write = tables["write"]
    assert write.labels == (
        label("billing", 3, 1, 2, 2, 1),
        label("login", 2, 1, 2, 1, 0),
        label("other", 1, 0, 0, 0, 0),
    )
    confusions = {(c.expected, c.answered): (c.base, c.tuned) for c in write.confusions}
    assert confusions == {
        ("billing", OTHER_TEXT): (1, 0),
        ("billing", "login"): (1, 1),
        ("login", OTHER_TEXT): (1, 0),
        ("other", OTHER_TEXT): (1, 0),
        ("other", "login"): (0, 1),
    }
    # Characters: (7, 7, 7, 5, 5, 5), (20, 6, 7, 7, 5, 0), (7, 7, 5, 8, 5, 5).
    assert write.lengths is not None
    lengths = (write.lengths.expected, write.lengths.base, write.lengths.tuned)
    assert lengths == (6.0, 6.5, 6.0)


def test_an_answer_that_the_metric_calls_wrong_is_not_the_right_label() -> None:
    """A metric that minds case, which the reading of labels does not."""
    wrong = [dataclasses.replace(d, values={k: 0.0 for k in d.values}) for d in make_documents(1)]
    found = document_tables(EVALS, COMPARISONS, make_documents(0), wrong)
    write = next(table for table in found if table.task == "write")
    assert [row.tuned_right for row in write.labels] == [0, 0, 0]
    confusions = {(c.expected, c.answered): c.tuned for c in write.confusions}
    assert confusions["billing", OTHER_TEXT] == 2


def test_no_set_where_documents_have_their_own_choices_or_several_answers() -> None:
    for changes in ({"expected": ("billing", "login")}, {"expected": ("nothing",)}):
        sides = [make_documents(side, **changes) for side in (0, 1)]
        found = document_tables(EVALS, COMPARISONS, *sides)
        assert not any(table.labels or table.confusions for table in found)
    sides = [make_documents(side) for side in (0, 1)]
    for side in sides:
        more = (*side[2].choices, documents.Choice(text="sales", log_likelihood=-9.0))
        side[2] = dataclasses.replace(side[2], choices=more)
    found = {t.task: t for t in document_tables(EVALS, COMPARISONS, *sides)}
    assert not found["route"].labels and found["write"].labels


def test_free_text_without_a_value_a_document_is_shown_side_by_side(
    tables: dict[str, DocumentTable],
) -> None:
    story = tables["story"]
    assert (story.metric, story.won, story.lost, story.same) == ("", 0, 0, 0)
    assert [row.number for row in story.examples] == [0, 2, 1]
    assert story.examples[0].base == "Once upon a time"
    assert story.examples[0].base_value is None


def test_a_refused_task_has_no_table_and_others_are_not_touched() -> None:
    refused = tuple(
        dataclasses.replace(c, refused="documents differ") if c.task == "write" else c
        for c in COMPARISONS
    )
    tuned = [
        dataclasses.replace(d, sha256="other") if d.task == "write" else d
        for d in make_documents(1)
    ]
    found = document_tables(EVALS, refused, make_documents(0), tuned)
    assert [table.task for table in found] == ["route", "story"]
    with pytest.raises(ComparisonError, match="documents differ"):
        document_tables(EVALS, COMPARISONS, make_documents(0), tuned)
    scores = make_scores(0), make_scores(1)
    assert [t.name for t in group_tables(EVALS, refused, *scores)] == ["route/acc"]


def test_records_stay_small() -> None:
    """Five hundred labels, long texts, a thousand documents."""
    labels = tuple(f"label {number:03d}" for number in range(500))
    sides = []
    for side in (0, 1):
        found = []
        for number in range(1000):
            said = labels[(number + 1 - side) % 500] + " " * 2000
            found.append(
                documents.Document(
                    task="write",
                    kind="generate_until",
                    number=number,
                    sha256=f"{number:064d}",
                    question="long " * 5000,
                    question_characters=25_000,
                    expected=(labels[number % 500],),
                    answers=(said,),
                    filtered={"none": said},
                    values={"exact_match": float(side)},
                    labels=labels,
                )
            )
        sides.append(found)
    (table,) = document_tables(EVALS, COMPARISONS, *sides)
    assert (table.won, table.lost, len(table.won_documents)) == (1000, 0, 10)
    assert (len(table.labels), table.labels_left_out) == (MOST_ROWS, 500 - MOST_ROWS)
    assert len(table.confusions) == MOST_CONFUSIONS
    assert table.confusions_left_out == 500 - MOST_CONFUSIONS
    assert len(table.won_documents[0].question) == LONGEST_TEXT + 1
    assert len(jsonfile.dumps(jsonfile.to_json(table))) < 60_000


# --- groups ---------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    route, write = make_answered().groups
    assert (route.name, write.name) == ("route/acc", "write/exact_match")
    assert [(r.group, r.n, r.base, r.tuned) for r in route.rows] == [
        ("gold", 3, 0.0, 1.0),
        ("silver", 2, 0.5, 0.5),
        ("", 1, 1.0, 0.0),
    ]


def test_groups_of_weighted_means_and_of_statistics_are_values_of_their_documents() -> None:
    """One group of all documents has the value of the whole."""
    base, tuned = make_scores(0), make_scores(1)
    sides = []
    for scores in (base, tuned):
        story = next(metric for metric in scores.metrics if metric.task == "story")
        story = dataclasses.replace(story, groups=("all",) * 3, value=None)
        route = dataclasses.replace(
            next(metric for metric in scores.metrics if metric.task == "route"),
            weights=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        )
        sides.append(dataclasses.replace(scores, metrics=(story, route)))
    evals = dataclasses.replace(EVALS, headline="story/chrf", rank_by="", watch=["route/acc"])
    comparisons = compare_scores(*sides)
    story_groups, route_groups = group_tables(evals, comparisons, *sides)
    (row,) = story_groups.rows
    difference = comparisons[0].difference
    assert difference is not None and comparisons[0].base is not None
    assert row.base == pytest.approx(comparisons[0].base, abs=1e-9) and row.n == 3
    assert row.tuned - row.base == pytest.approx(difference, abs=1e-9) and difference
    silver = route_groups.rows[1]
    assert (silver.group, silver.base, silver.tuned) == ("silver", 4 / 7, 4 / 7)
    weights = {"gold": 9.0, "silver": 7.0, "": 5.0}
    whole = math.fsum(weights[r.group] * r.tuned for r in route_groups.rows) / 21
    assert whole == pytest.approx(corpus_value(sides[1].metrics[1]))


# --- records --------------------------------------------------------------------------------


def test_records_of_before_load_and_new_ones_come_back(tmp_path: Path) -> None:
    record = make_answered()
    jsonfile.write(tmp_path / "run.json", record)
    assert jsonfile.read(RunRecord, tmp_path / "run.json") == record
    plain = jsonfile.to_json(record)
    del plain["documents"], plain["groups"]
    old = jsonfile.from_json(RunRecord, plain, where="old")
    assert old.documents == () and old.groups == ()


def test_a_finished_run_has_its_tables(finished: Command) -> None:
    """A real process, the tiny model: tables, scores and the store's files agree."""
    for run in finished.runs().values():
        tables = {table.task: table for table in run.documents}
        assert list(tables) == ["intent_choice", "intent_exact"]
        comparisons = {c.task: c for c in run.comparisons}
        for name, table in tables.items():
            compared = comparisons[name]
            assert table.n == compared.n == 4 == table.won + table.lost + table.same
            assert compared.difference is not None
            assert compared.difference == pytest.approx((table.won - table.lost) / table.n)
        choice = tables["intent_choice"]
        assert sum(row.n for row in choice.labels) == 4
        (compared,) = (c for c in run.comparisons if c.name == "intent_choice/acc")
        assert compared.base is not None
        assert sum(row.base_right for row in choice.labels) == pytest.approx(4 * compared.base)
        exact = tables["intent_exact"]
        assert exact.lengths is not None and exact.lengths.expected > 0
        assert run.groups == ()
