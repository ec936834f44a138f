"""The report's sentences are true of any records: few documents, ties, refusals, seeds, losses."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from synthetic import (
    ARC,
    BASE_MEANS,
    BITS,
    EXACT,
    HEADLINE,
    RANK_BY,
    make_config,
    make_metric,
    make_record,
    make_study,
    make_sweep,
)

from ftsuite.analysis.compare import apply_gates, compare_scores
from ftsuite.commands import power
from ftsuite.config import EvalsConfig, GatesConfig, RunConfig
from ftsuite.records import Comparison, GateResult
from ftsuite.reporting import evidence, gates
from ftsuite.reporting.report import render

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.records import MetricScores, RunRecord


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., str]:
    """Render records without plots and give the text."""

    def render_text(*records: RunRecord) -> str:
        with mock.patch("ftsuite.reporting.report.plots.draw", return_value={}):
            return render(make_study(*records), records, tmp_path).read_text(encoding="utf-8")

    return render_text


def part(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def again(record: RunRecord, change: Callable[[MetricScores], MetricScores | None]) -> RunRecord:
    """The record with its metrics changed (None takes one away), and compared again."""
    sides = []
    for scores in (record.base, record.tuned):
        assert scores is not None
        metrics = tuple(new for metric in scores.metrics if (new := change(metric)))
        sides.append(dataclasses.replace(scores, metrics=metrics))
    comparisons = compare_scores(*sides)
    return dataclasses.replace(
        record,
        base=sides[0],
        tuned=sides[1],
        comparisons=comparisons,
        gates=apply_gates(comparisons, GatesConfig(**record.config["gates"])),
    )


def first(record: RunRecord, count: int, *names: str) -> RunRecord:
    """The record scored on the first `count` documents (of the metrics `names`)."""

    def cut(metric: MetricScores) -> MetricScores:
        if names and metric.name not in names:
            return metric
        return dataclasses.replace(
            metric,
            values=metric.values[:count],
            doc_ids=metric.doc_ids[:count],
            weights=metric.weights and metric.weights[:count],
        )

    return again(record, cut)


# --- splits and sources ---------------------------------------------------------------------


def test_each_split_names_its_own_source(say: Callable[..., str]) -> None:
    said = part(say(make_record(train_limit=160)), "Conditions")
    assert "160 of 640 rows, a seeded subset of evals/intent/train.jsonl" in said
    assert "all 96 rows of evals/intent/validation.jsonl" in said


def test_a_source_that_the_records_do_not_name_is_not_guessed(say: Callable[..., str]) -> None:
    cell = make_record()
    assert cell.data
    splits = tuple(dataclasses.replace(split, source="") for split in cell.data.splits)
    data = dataclasses.replace(cell.data, splits=splits)
    text = say(dataclasses.replace(cell, data=data))
    assert re.search(r"validation loss on +\| all 96 rows +\|", text)
    assert "rows of evals/intent/train.jsonl" not in text


def test_dropped_rows_are_no_seeded_subset(say: Callable[..., str]) -> None:
    cell = make_record()
    assert cell.data
    train = dataclasses.replace(cell.data.splits[0], rows=600)
    data = dataclasses.replace(cell.data, splits=(train, *cell.data.splits[1:]))
    said = part(say(dataclasses.replace(cell, data=data)), "Conditions")
    assert "600 of 640 rows, 40 dropped of evals" in said
    assert "600 of 640 rows, a seeded" not in said


def test_ranking_on_test_is_said_in_the_first_line(say: Callable[..., str]) -> None:
    def on_test(metric: MetricScores) -> MetricScores:
        return dataclasses.replace(metric, split="test")

    text = say(*[again(cell, on_test) for cell in make_sweep()])
    line = text.splitlines()[2]
    assert line.startswith("**The cells are ranked on the test split, not on validation:**")
    assert "**Take `lora.r=4` (chosen on the test split).**" in text
    assert "on validation (" not in text
    assert "| test split [95 %] |" in " ".join(text.split())


def test_an_unknown_split_is_not_called_validation(say: Callable[..., str]) -> None:
    cells = [again(cell, lambda m: dataclasses.replace(m, split="")) for cell in make_sweep()]
    text = say(*cells)
    assert "the records do not say of which split" in text
    assert "on validation" not in text
    assert "validation metric" not in text
    assert "test split" not in text


# --- how few documents can show anything ----------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 8])
def test_too_few_documents_can_show_nothing(say: Callable[..., str], count: int) -> None:
    text = say(*[first(cell, count) for cell in make_sweep()])
    assert "Too few documents: no result on" in part(text, "Before you read on")
    assert text.count("**Nothing can be shown here:**") == 4
    assert f"with {count} documents and 16 comparisons no result could have been sig" in text
    assert "80 % power" not in part(text, "Base against tuned, metric by metric")
    assert " better  |" not in text


def test_eight_documents_and_twelve_comparisons_cannot_reach_significance() -> None:
    floors = evidence.smallest_adjusted({place: evidence.smallest_p(8) for place in range(12)})
    assert min(floors.values()) == pytest.approx(12 * 2 / 2**8)
    # With one of many documents among them, the others are corrected for fewer.
    mixed = {place: evidence.smallest_p(8 if place < 4 else 400) for place in range(12)}
    assert evidence.smallest_adjusted(mixed)[0] == pytest.approx(4 * 2 / 2**8)


def test_one_document_says_so_and_compares_nothing(say: Callable[..., str]) -> None:
    text = say(*[first(cell, 1) for cell in make_sweep()])
    lead = part(text, "Recommendation")
    assert "**No recommendation: no cell was compared with the base on the headline.**" in lead
    assert "1.000\u00a0(1\u00a0document)" in part(text, "Ranking")
    assert "cannot tell any cell from the best" in text
    assert "No metric was tested against the base" in text


def test_four_documents_leave_the_choice_to_cost(say: Callable[..., str]) -> None:
    text = say(*[first(cell, 4, RANK_BY) for cell in make_sweep()])
    assert "With so few documents no two cells can be told apart: cost alone decided." in text


def test_no_number_is_outside_the_range_of_its_metric(say: Callable[..., str]) -> None:
    cell = make_record()
    found = next(c for c in cell.comparisons if c.name == ARC)
    wide = dataclasses.replace(found, low=-1.4, high=1.3, minimum_detectable=1.962)
    others = tuple(wide if c.name == ARC else c for c in cell.comparisons)
    said = say(dataclasses.replace(cell, comparisons=others))
    assert "1.962" not in said
    assert "[−1.00, 1.00]" in said
    metric = make_metric(ARC, 0.5, n=2, seed=1)
    metric = dataclasses.replace(metric, values=(0.9, 0.98))
    assert evidence.point_of(metric) == (pytest.approx(0.94), pytest.approx(0.432, abs=1e-3), 1.0)


# --- verdicts -------------------------------------------------------------------------------


def test_a_tie_for_the_best_names_them_all(say: Callable[..., str]) -> None:
    cells = [make_record(f"lora.r={r}", r=r, seed=3) for r in (2, 4, 8)]
    text = say(*cells)
    assert "`lora.r=4` and `lora.r=8` scored the same." in text
    rows = re.findall(r"^\|\s+(\d) ≈", part(text, "Ranking"), re.M)
    assert rows == ["1", "1", "1"]


def test_another_cell_that_is_better_on_test_is_not_hidden(say: Callable[..., str]) -> None:
    plain = {**BASE_MEANS, RANK_BY: 0.5, HEADLINE: 0.29}
    cells = [
        make_record("lora.r=2", r=2, seed=2, tuned=plain),
        make_record("lora.r=4", r=4, seed=4, tuned={**plain, HEADLINE: 0.79}),
    ]
    said = part(say(*cells), "Recommendation")
    assert "**`lora.r=2` is not shown to differ from the base" in said
    assert "`lora.r=4` is better than base on the headline, but to choose by that" in said


def test_a_headline_that_ranks_is_not_called_tested(say: Callable[..., str]) -> None:
    config = make_config(headline=RANK_BY, watch=[RANK_BY])
    cells = [dataclasses.replace(cell, config=config) for cell in make_sweep()]
    said = part(say(*cells), "Recommendation")
    assert "**Of the cells, take `lora.r=4`.** The headline is the metric that ranks" in said
    assert "not tested, as it ranks the cells" in said
    assert "None" not in said


def test_seeds_are_repetitions_and_none_is_recommended(say: Callable[..., str]) -> None:
    cells = [make_record(f"train.seed={seed}", seed=seed + 1) for seed in range(3)]
    text = say(*cells)
    assert "**The cells differ in nothing but their seed, so there is nothing to choose.**" in text
    assert "3 of 3 are better than base." in text
    assert "← pick" not in text
    assert "another training seed" not in text


def test_the_same_seed_everywhere_is_one_seed(say: Callable[..., str]) -> None:
    cells = [make_record(f"lora.r={r},train.seed=1", r=r, seed=r) for r in (2, 4)]
    assert "how much another training seed would change" in say(*cells)


def test_a_finished_cell_without_tasks_did_finish(say: Callable[..., str]) -> None:
    cell = dataclasses.replace(make_record(), base=None, tuned=None, comparisons=(), gates=())
    text = say(cell)
    assert "1 of 1 cell finished." in text
    assert "1 cell finished, but nothing was scored" in text
    assert "did not finish" not in text
    assert "**No recommendation: the finished cells were not scored" in text


def test_two_refused_of_three_leave_the_others_counted(say: Callable[..., str]) -> None:
    other = {"dtype": "bfloat16"}
    cells = [
        make_record(f"lora.r={r}", r=r, seed=r, tuned_conditions=other if r == 4 else None)
        for r in (2, 4, 8)
    ]
    text = say(*cells)
    assert "Both compared cells are better than base." in text
    assert "neither compared cell differs from base" in text
    assert "All 3" not in text


def test_unequal_numbers_of_documents_are_all_named(say: Callable[..., str]) -> None:
    cells = make_sweep()[:2]
    text = say(first(cells[0], 20, HEADLINE), cells[1])
    assert "240 or 20 of 240 documents of the test split." in text
    # The two were not compared on the same documents, so no range is given over both.
    assert "Without the format" not in text


def test_the_format_is_set_apart_on_the_same_documents(say: Callable[..., str]) -> None:
    cells = [first(cell, 60, EXACT) for cell in make_sweep()]
    text = say(*cells)
    assert "base scores 0.000 here (60 documents), but 0.279 on `intent_choice/acc`" in text
    assert "on the 240 documents of that metric, the scores go from 0.279 (base)" in text
    assert "fair baseline" not in text


def test_a_resumed_training_has_no_speed(say: Callable[..., str]) -> None:
    cell = make_record()
    assert cell.train
    cell = dataclasses.replace(cell, train=dataclasses.replace(cell.train, resumed_from_step=40))
    text = say(cell)
    assert "95 s of training after step 40, where it was resumed" in text
    assert re.search(r"\|\s+95 s \|\s+– \|", part(text, "Quality against cost"))


# --- gates and probes -----------------------------------------------------------------------


def change_of(difference: float, low: float, high: float, *, higher: bool = False) -> Comparison:
    return Comparison(
        task="prose",
        metric="acc" if higher else "bits_per_byte",
        higher_is_better=higher,
        n=16,
        base=0.5,
        tuned=0.5 + difference,
        difference=difference,
        low=low,
        high=high,
        p_value=0.01,
    )


@pytest.mark.parametrize(
    ("found", "observed", "expected"),
    [
        (
            change_of(0.054, 0.039, 0.070),
            0.054,
            "0.054 worse, 0.050 is allowed; the limit lies inside the interval [0.039, 0.070]",
        ),
        (
            change_of(0.0502, 0.0501, 0.0503),
            0.0502,
            "0.0502 worse, 0.0500 is allowed; the whole interval is past the limit",
        ),
        (
            change_of(0.02, 0.01, 0.03),
            0.02,
            "0.020 worse, 0.050 is allowed; the whole interval is within the limit",
        ),
        (
            change_of(0.1, -0.2, 0.4, higher=True),
            -0.1,
            "0.100 better, 0.050 is allowed; the limit lies inside the interval [−0.40, 0.20]",
        ),
    ],
)
def test_a_gate_says_value_limit_and_interval(
    found: Comparison, observed: float, expected: str
) -> None:
    gate = GateResult(metric=found.name, limit=0.05, observed=observed, passed=True, reason="")
    assert gates.words(gate, found) == expected


def test_a_gate_without_a_difference_says_why() -> None:
    gate = GateResult(
        metric="a/acc", limit=0.0, observed=0.0, passed=False, reason="no delta: not scored"
    )
    assert gates.words(gate, None) == "no delta: not scored"


def test_a_gate_that_fails_within_its_interval_says_so_in_the_recommendation(
    say: Callable[..., str],
) -> None:
    few = [first(cell, 4, BITS) for cell in make_sweep()]
    assert "(0.0" in part(say(*few), "Recommendation")
    assert "the limit lies inside the interval" in part(say(*few), "Regressions and gates")


def test_three_prompts_are_counted_and_not_called_a_change(say: Callable[..., str]) -> None:
    text = say(make_record())
    assert "With 3 prompts no change in these counts could be significant" in text
    assert "2 of 3 answers pass (base: 3 of 3)" in text
    assert "67 %" not in text


# --- conditions -----------------------------------------------------------------------------


def test_the_first_page_names_the_conditions(say: Callable[..., str]) -> None:
    place = {"system_place": "first_user", "stop": "<|end|>"}
    cell = make_record(tuned_conditions=place)
    assert cell.train and cell.merge and cell.data
    cell = dataclasses.replace(
        cell,
        train=dataclasses.replace(cell.train, isolation_difference=3.8e-6),
        merge=dataclasses.replace(
            cell.merge, max_trained_difference=0.17, proved_tensors=272, trained_tolerance=0.25
        ),
        data=dataclasses.replace(cell.data, documents_isolated=True),
    )
    text = say(cell)
    said = part(text, "Conditions")
    assert text.index("## Conditions") < text.index("## Ranking")
    for expected in (
        "cpu: AMD EPYC, 2 cores; float32",
        "in front of the first user turn",
        "`intent_validation/acc`, of the validation split",
        "`arc_easy` (test split): 60 of 570 documents, a seeded subset",
        "token differs from that of its document alone by at most 3.8e-06 nats",
        "at most 2.1e-05 nats a token over whole rows (tolerance 1.0e-03), over the trained tokens "
        "alone by at most 1.7e-01 (tolerance 2.5e-01); 16 rows",
        "all 272 tensors (210 adapted) are base + scale·B·A byte by byte",
    ):
        assert expected in said
    assert "stop strings: &lt;" in part(text, "Provenance")


# --- plan -----------------------------------------------------------------------------------


def planned(count: int, cells: int, **limits: int) -> dict[str, str]:
    """Metric → what the plan says of it, for a sweep of so many cells of the demo's tasks."""
    tasks = ["intent_choice_validation", "intent_choice", "intent_exact", "prose_bpb"]
    evals = EvalsConfig(
        tasks=tasks,
        limits={**dict.fromkeys(tasks, count), **limits},
        rank_by="intent_choice_validation/acc",
        headline="intent_choice/acc",
    )
    found = power.detectable([RunConfig(evals=evals) for _ in range(cells)])
    return {entry["metric"]: power.words(entry) for entry in found}


def test_the_plan_says_what_nothing_can_be_found_with() -> None:
    said = planned(8, 4)
    assert "nothing; with 8 items and 12 comparisons with the base" in said["intent_choice/acc"]
    assert "p-value is 0.094 after Holm's" in said["intent_choice/acc"]
    ranked = said["intent_choice_validation/acc"]
    assert "a difference of 0.981 with 8 items" in ranked
    assert "3 comparisons between cells" in ranked


def test_the_plan_prints_no_accuracy_above_one() -> None:
    for count in (1, 2, 5, 6, 7):
        for text in planned(count, 1).values():
            assert "nothing" in text, (count, text)
            assert "1.9" not in text
    assert "nothing can be detected with 2 items" in planned(2, 1)["intent_choice_validation/acc"]


def test_the_plan_of_enough_documents_gives_the_difference() -> None:
    said = planned(120, 4)["intent_choice/acc"]
    assert "a difference of 0.140 with 120 items" in said
    assert "the correction for 12 comparisons with the base needs a larger one" in said
