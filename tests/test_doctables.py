"""What a run's record keeps of its documents, counted by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
from answered import EVALS, make_answered, make_documents, make_scores

from ftsuite import jsonfile
from ftsuite.analysis.compare import compare_scores, corpus_value
from ftsuite.analysis.doclabels import OTHER_TEXT, answered_label
from ftsuite.analysis.doctables import MOST_CONFUSIONS, MOST_ROWS, document_tables, group_tables
from ftsuite.docrecords import LONGEST_TEXT, ConfusionRow, DocumentTable, LabelRow
from ftsuite.errors import ComparisonError
from ftsuite.records import RunRecord
from ftsuite.scoring import documents

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


def chosen(metric: str, side: int, values: tuple[float, ...]) -> list[documents.Document]:
    """Four documents: the raw log-likelihood picks the wrong choice, that a character the right.

    −6 / 2 = −3 nats a character; −8 / 4 = −2.
    """
    return [
        documents.Document(
            task="pick",
            kind="multiple_choice",
            number=number,
            sha256=f"{number:064d}",
            question="q",
            question_characters=1,
            expected=("four",),
            choices=(
                documents.Choice(text="ab", log_likelihood=-6.0),
                documents.Choice(text="four", log_likelihood=-8.0 - 8 * (1 - side)),
            ),
            choice_characters=(2, 4),
            choice_bytes=(2, 4),
            values={metric: value},
        )
        for number, value in enumerate(values)
    ]


def chosen_table(metric: str, tuned: tuple[float, ...]) -> DocumentTable:
    sides = [chosen(metric, 0, (0.0,) * 4), chosen(metric, 1, tuned)]
    compared = next(c for c in COMPARISONS if c.name == "route/acc")
    compared = dataclasses.replace(compared, task="pick", metric=metric)
    evals = dataclasses.replace(EVALS, headline=f"pick/{metric}")
    (table,) = document_tables(evals, [compared], *sides)
    return table


def test_labels_are_those_that_the_metric_picks() -> None:
    table = chosen_table("acc_norm", (1.0,) * 4)
    assert table.labels == (label("four", 4, 0, 4, 4, 0),)
    (pair,) = table.confusions
    assert (pair.expected, pair.answered, pair.base, pair.tuned) == ("four", "ab", 4, 0)
    assert (table.won_documents[0].base, table.won_documents[0].tuned) == ("ab", "four")
    assert table.contradicted == 0


def test_no_label_table_contradicts_the_score() -> None:
    """exact_match of choices is whether greedy decoding gives the answer, no highest score."""
    table = chosen_table("exact_match", (1.0, 1.0, 0.0, 0.0))
    assert (table.won, table.contradicted) == (2, 2)
    assert table.labels == () and table.confusions == ()
    # A single document is enough.
    table = chosen_table("acc_norm", (1.0, 1.0, 1.0, 0.0))
    assert table.contradicted == 1 and table.labels == ()


@pytest.mark.parametrize(
    ("labels", "expected", "said", "found"),
    [
        (("C", "C#", "C++"), "C#", "C++", "C++"),
        (("C", "C#", "C++"), "C", "C++", "C++"),
        (("C", "C#", "C++"), "C", " c#\n", "C#"),
        (("C", "C#", "C++"), "C", "C++.", OTHER_TEXT),
        (("yes", "Yes", "no"), "no", "Yes", "Yes"),
        (("yes", "Yes", "no"), "no", "YES", OTHER_TEXT),
        (("billing", "login"), "login", " Billing. ", "billing"),
        (("billing", "?"), "billing", "", OTHER_TEXT),
        (("billing", "?"), "billing", "?", "?"),
    ],
)
def test_the_label_that_is_answered(
    labels: tuple[str, ...], expected: str, said: str, found: str
) -> None:
    document = next(d for d in make_documents(0) if d.task == "write")
    document = dataclasses.replace(
        document, expected=(expected,), filtered={"none": said}, values={"exact_match": 0.0}
    )
    for metric in ("exact_match", ""):
        said_label = answered_label(document, labels, metric, is_right_or_wrong=bool(metric))
        assert said_label == found


def test_documents_without_a_value_hide_no_others() -> None:
    """The first document lacks the metric, as a task's own code may leave it out."""
    sides = [make_documents(side) for side in (0, 1)]
    for side in sides:
        side[0] = dataclasses.replace(side[0], values={})
    route = document_tables(EVALS, COMPARISONS, *sides)[0]
    assert (route.metric, route.n, route.won, route.lost, route.same) == ("acc", 6, 2, 1, 2)
    # By label as the score counts: without it.
    assert route.labels[0] == label("billing", 2, 0, 1, 1, 0)
    assert route.labels[1] == label("login", 2, 2, 1, 0, 1)


def test_a_right_answer_outside_of_the_labels_is_counted() -> None:
    sides = [make_documents(side) for side in (0, 1)]
    for side in sides:
        place = next(n for n, d in enumerate(side) if d.task == "write")
        side[place] = dataclasses.replace(side[place], expected=("sales",))
    found = {t.task: t for t in document_tables(EVALS, COMPARISONS, *sides)}
    assert found["write"].unlabelled == 1 and not found["write"].labels
    assert found["route"].unlabelled == found["story"].unlabelled == 0


def test_answers_that_are_all_another_text_are_no_pairs() -> None:
    sides = [
        [
            dataclasses.replace(d, filtered={"none": "Well,"}, values={"exact_match": 0.0})
            if d.task == "write"
            else d
            for d in make_documents(side)
        ]
        for side in (0, 1)
    ]
    found = {t.task: t for t in document_tables(EVALS, COMPARISONS, *sides)}
    write = found["write"]
    assert (write.confusions, write.another_base, write.another_tuned) == ((), 6, 6)
    assert found["route"].another_base == 0


def test_fields_that_are_left_out_are_counted() -> None:
    expected = "{" + ", ".join(f'"f{n}": {n}' for n in range(MOST_ROWS + 3)) + "}"
    sides = [
        [
            dataclasses.replace(d, expected=(expected,), labels=())
            for d in make_documents(side)
            if d.task == "write"
        ]
        for side in (0, 1)
    ]
    (table,) = document_tables(EVALS, COMPARISONS, *sides)
    assert (len(table.fields), table.fields_left_out) == (MOST_ROWS, 3)


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
