"""What may be compared, the gates, and which cell is recommended."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from synthetic import (
    ARC,
    BASE_MEANS,
    BITS,
    CONDITIONS,
    HEADLINE,
    RANK_BY,
    TUNED_MEANS,
    make_config,
    make_failed,
    make_metric,
    make_record,
    make_scores,
    make_sweep,
)

from ftsuite.analysis.compare import (
    CONDITIONS as CONDITION_WORDS,
)
from ftsuite.analysis.compare import (
    apply_gates,
    compare_scores,
    corpus_value,
    incomparable,
    require_comparable,
    value_interval,
    worsening,
)
from ftsuite.analysis.ranking import adjusted_p_values, cost, ranking
from ftsuite.config import GatesConfig
from ftsuite.errors import ComparisonError
from ftsuite.records import Comparison, Conditions, MetricScores, RunRecord, Scores

OTHER: dict[str, Any] = {"batch_size": 16}


def scores_of(metric: MetricScores) -> Scores:
    return Scores(conditions=CONDITIONS, metrics=(metric,), tokens=1)


def comparison(difference: float | None, *, higher: bool = True, refused: str = "") -> Comparison:
    return Comparison(
        task="t",
        metric="m",
        higher_is_better=higher,
        n=10,
        difference=difference,
        refused=refused,
    )


# --- incomparable ---------------------------------------------------------------------------


def test_equal_conditions_are_comparable() -> None:
    assert incomparable(CONDITIONS, CONDITIONS) == []


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Conditions)])
def test_every_condition_is_checked_and_named_with_both_values(name: str) -> None:
    value = OTHER.get(name, "something else")
    changed = dataclasses.replace(CONDITIONS, **{name: value})
    reasons = incomparable(CONDITIONS, changed)
    assert len(reasons) == 1
    assert CONDITION_WORDS[name] in reasons[0]
    assert repr(value) in reasons[0]
    assert str(getattr(CONDITIONS, name))[:12] in reasons[0]


def test_a_long_value_is_cut_and_a_hash_keeps_its_start() -> None:
    changed = dataclasses.replace(CONDITIONS, system_prompt="x" * 500, template_sha256="ab" * 32)
    template, prompt = incomparable(CONDITIONS, changed)
    assert len(prompt) < 120
    assert "abababababab…" in template


# --- compare_scores -------------------------------------------------------------------------


def test_pairs_every_metric() -> None:
    base, tuned = make_scores(BASE_MEANS, seed=0), make_scores(TUNED_MEANS, seed=1)
    found = {one.name: one for one in compare_scores(base, tuned)}
    assert list(found) == list(BASE_MEANS)
    headline = found[HEADLINE]
    assert headline.refused == ""
    assert headline.n == 240
    assert headline.difference == pytest.approx(headline.tuned - headline.base)
    assert headline.low < headline.difference < headline.high
    assert headline.p_value < 1e-9
    # Weighted: the corpus' bits per byte, not the documents' mean.
    bits = next(metric for metric in base.metrics if metric.name == BITS)
    weighted = sum(v * w for v, w in zip(bits.values, bits.weights, strict=True))
    assert found[BITS].base == pytest.approx(weighted / sum(bits.weights))
    assert not found[BITS].higher_is_better


def test_differing_conditions_refuse_every_delta() -> None:
    base = make_scores(BASE_MEANS, seed=0)
    tuned = make_scores(TUNED_MEANS, seed=1, dtype="bfloat16")
    for found in compare_scores(base, tuned):
        assert found.refused == "dtype differs: base 'float32', tuned 'bfloat16'"
        numbers = (found.base, found.tuned, found.difference, found.low, found.high, found.p_value)
        assert numbers == (None,) * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"docs_sha256": "0" * 64}, "documents' hash differs"),
        ({"doc_ids": tuple(range(1, 61))}, "documents differ: base 60, tuned 60, 59 in common"),
        ({"task_version": "2"}, "task version differs: base '1', tuned '2'"),
        ({"weights": (2.0,) * 60}, "weights of the documents differ"),
        ({"higher_is_better": False}, "direction of better differs"),
    ],
)
def test_differing_documents_refuse_the_metric(change: dict[str, Any], words: str) -> None:
    metric = make_metric(ARC, 0.5, n=60, seed=0)
    (found,) = compare_scores(scores_of(metric), scores_of(dataclasses.replace(metric, **change)))
    assert words in found.refused
    assert found.difference is None


def test_a_metric_of_one_side_only_is_refused_and_the_others_are_not() -> None:
    base = make_scores(BASE_MEANS, seed=0)
    tuned = make_scores({ARC: 0.5}, seed=1)
    found = {one.name: one for one in compare_scores(base, tuned)}
    assert found[ARC].refused == ""
    assert found[HEADLINE].refused == "metric was scored on base only"
    assert next(iter(compare_scores(tuned, base))).refused == ""
    swapped = {one.name: one for one in compare_scores(tuned, base)}
    assert swapped[HEADLINE].refused == "metric was scored on tuned only"


def test_a_single_document_is_refused_instead_of_raising() -> None:
    metric = make_metric(ARC, 1.0, n=1, seed=0)
    (found,) = compare_scores(scores_of(metric), scores_of(metric))
    assert "at least 2" in found.refused


def test_require_comparable_returns_the_comparison_or_raises_the_reason() -> None:
    base, tuned = make_scores(BASE_MEANS, seed=0), make_scores(TUNED_MEANS, seed=1)
    assert require_comparable(base, tuned, HEADLINE).name == HEADLINE
    other = dataclasses.replace(tuned, conditions=dataclasses.replace(CONDITIONS, bos="none"))
    with pytest.raises(ComparisonError, match=f"{HEADLINE}: .*BOS differs.*'template'.*'none'"):
        require_comparable(base, other, HEADLINE)
    with pytest.raises(ComparisonError, match="nothing/acc: scored on neither"):
        require_comparable(base, tuned, "nothing/acc")


# --- gates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "higher", "passed"),
    [
        (-0.03, True, False),
        (-0.01, True, True),
        (0.5, True, True),
        (0.03, False, False),
        (0.01, False, True),
        (-0.5, False, True),
        (-0.02 - 1e-15, True, True),  # the limit, but for rounding
    ],
)
def test_gate_follows_the_direction_of_better(
    difference: float, higher: bool, passed: bool
) -> None:
    gates = GatesConfig(max_worse={"t/m": 0.02})
    (result,) = apply_gates([comparison(difference, higher=higher)], gates)
    assert result.passed is passed
    assert result.observed == pytest.approx(-difference if higher else difference)


def test_a_refused_or_missing_metric_fails_its_gate_with_the_reason() -> None:
    gates = GatesConfig(max_worse={"t/m": 1.0, "gone/acc": 1.0})
    gone, refused = apply_gates([comparison(None, refused="dtype differs")], gates)
    assert not gone.passed
    assert gone.reason == "no delta: the metric was not scored"
    assert not refused.passed
    assert refused.reason == "no delta: dtype differs"


def test_worsening_of_no_change_is_plain_zero() -> None:
    assert str(worsening(comparison(0.0))) == "0.0"


# --- ranking --------------------------------------------------------------------------------


def rank(*records: Any) -> Any:
    return ranking(records, RANK_BY, 0.05)


def test_recommends_the_cheapest_within_noise_that_passes_the_gates() -> None:
    r2, r4, r8, r16 = make_sweep()
    found = rank(r2, r4, r8, r16, make_failed("lora.r=32"))
    assert found.order == (r16.run_id, r8.run_id, r4.run_id, r2.run_id)
    assert found.best == r16.run_id
    assert found.within_noise == {r4.run_id, r8.run_id, r16.run_id}
    assert found.recommended == r4.run_id
    assert found.excluded == {r16.run_id: f"fails the gate on {BITS}"}
    assert found.caveats == ()
    assert found.reason == (
        "Of the 3 cells within noise of the best, 2 qualify, and of these it is the cheapest."
    )


def test_cost_is_parameters_then_own_seconds_then_order() -> None:
    first, second = make_record("a=1", seconds=100.0), make_record("a=2", seconds=90.0)
    assert rank(first, second).recommended == second.run_id
    same = dataclasses.replace(second, stages=first.stages)
    assert rank(first, same).recommended == first.run_id
    fewer = make_record("a=3", r=2, seconds=500.0)
    assert rank(first, second, fewer).recommended == fewer.run_id
    # Training, the tuned model's merge, check and loss, and its four tasks.
    assert cost(first) == (1_221_120, pytest.approx(100.0 + 6.7 + 31.0))


def test_a_loss_ranks_the_lowest_first() -> None:
    low = make_record("a=1", tuned={BITS: 1.0})
    high = make_record("a=2", tuned={BITS: 1.1})
    highest = make_record("a=3", tuned={BITS: 1.2})
    found = ranking([highest, high, low], BITS, 0.05)
    assert found.order == (low.run_id, high.run_id, highest.run_id)
    assert not found.higher_is_better


def test_a_worse_cell_that_qualifies_goes_before_a_better_one_that_does_not() -> None:
    forgets = make_record("a=1", tuned={RANK_BY: 0.95, BITS: 1.4})
    keeps = make_record("a=2", tuned={RANK_BY: 0.6})
    found = rank(forgets, keeps)
    assert found.within_noise == {forgets.run_id}
    assert found.recommended == keeps.run_id
    assert "No cell within noise of the best qualifies" in found.reason


def test_recommends_none_if_every_cell_is_worse_than_base() -> None:
    bad = make_record(base={HEADLINE: 0.9}, tuned={HEADLINE: 0.3})
    found = rank(bad)
    assert found.recommended is None
    assert (
        found.reason
        == f"No cell qualifies: lora.r=4 is worse than base on the headline {HEADLINE}."
    )
    bad = make_record(base={RANK_BY: 0.9}, tuned={RANK_BY: 0.3})
    assert "worse than base on validation" in rank(bad).reason


def test_a_cell_without_a_headline_delta_is_not_recommended() -> None:
    refused = make_record(tuned_conditions={"dtype": "float16"})
    found = rank(refused)
    assert found.recommended is None
    assert f"has no delta on the headline {HEADLINE}" in found.reason
    no_headline = make_config(headline="") | {"gates": {"max_worse": {}, "alpha": 0.05}}
    refused = make_record(tuned_conditions={"dtype": "float16"}, config=no_headline)
    assert rank(refused).recommended == refused.run_id


def test_cells_on_other_documents_have_no_order() -> None:
    one, two = make_record("a=1"), make_record("a=2")
    other = dataclasses.replace(
        two.tuned,
        metrics=(make_metric(RANK_BY, 0.9, n=96, seed=1, doc_offset=96), *two.tuned.metrics[1:]),
    )
    with pytest.raises(ComparisonError, match="a=2 and a=1 were not scored on the same documents"):
        rank(one, dataclasses.replace(two, tuned=other))


def test_ranking_needs_scores() -> None:
    with pytest.raises(ComparisonError, match="no cell finished"):
        rank(make_failed())
    with pytest.raises(ComparisonError, match=r"evals\.rank_by = 'nothing/acc'"):
        ranking([make_record()], "nothing/acc", 0.05)


def test_cells_under_other_conditions_are_ranked_with_a_caveat() -> None:
    both = make_record("a=1"), make_record("a=2", tuned_conditions={"template_sha256": "f" * 64})
    assert rank(*both).caveats == ("chat template (2 different)",)


def test_holm_family_is_every_test_comparison_of_complete_cells() -> None:
    cells = make_sweep()
    refused = make_record("lora.r=64", tuned_conditions={"dtype": "float16"})
    adjusted = adjusted_p_values([*cells, refused, make_failed()], RANK_BY)
    assert len(adjusted) == 4 * 4
    assert {run_id for run_id, _ in adjusted} == {cell.run_id for cell in cells}
    assert RANK_BY not in {name for _, name in adjusted}
    raw = {(cell.run_id, one.name): one.p_value for cell in cells for one in cell.comparisons}
    smallest = min(adjusted, key=lambda key: raw[key])
    assert adjusted[smallest] == pytest.approx(16 * raw[smallest])
    assert adjusted_p_values([make_failed()], RANK_BY) == {}


# --- metrics that are not means -------------------------------------------------------------


def perplexity(shift: float, *, n: int = 60, seed: int = 0, **changes: Any) -> MetricScores:
    """LAMBADA-like: log-likelihoods that are `shift` nats better than -3."""
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    scores = np.random.default_rng(7).normal(-3, 1, n) + shift + noise
    plain = MetricScores(
        task="last_word",
        metric="perplexity",
        higher_is_better=False,
        values=(),
        aggregation="perplexity",
        value=math.exp(-float(scores.mean())),
        statistics={"log_likelihood": tuple(float(score) for score in scores)},
        doc_ids=tuple(range(n)),
        docs_sha256="d",
        task_version="1",
        available=n,
    )
    return dataclasses.replace(plain, **changes)


def compared(base: MetricScores, tuned: MetricScores) -> Comparison:
    (found,) = compare_scores(scores_of(base), scores_of(tuned))
    return found


def test_a_lower_perplexity_is_an_improvement() -> None:
    """The sign was inverted: higher log-likelihoods were called worse."""
    found = compared(perplexity(0.0), perplexity(0.3, seed=1))
    assert found.base is not None and found.tuned is not None and found.high is not None
    assert found.base == pytest.approx(corpus_value(perplexity(0.0)))
    assert found.tuned < found.base and found.high < 0
    assert found.p_value is not None and found.p_value < 0.001
    worse = worsening(found)
    assert worse is not None and worse < 0
    assert found.method.startswith("swap permutation")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aggregation": "nanmean"}, "aggregation differs: base 'perplexity', tuned 'nanmean'"),
        ({"members": {"a": 30, "b": 30}}, "documents of the group's members differs"),
        ({"higher_is_better": True}, "direction of better differs"),
    ],
)
def test_other_aggregations_are_not_paired(changes: dict[str, Any], reason: str) -> None:
    assert reason in compared(perplexity(0.0), perplexity(0.1, **changes)).refused


def test_documents_of_a_group_are_told_apart_by_member() -> None:
    members = {"a": 30, "b": 30}
    base = perplexity(0.0, members=members, doc_ids=(*range(30), *range(30)))
    tuned = perplexity(0.0, members=members, doc_ids=(*range(30), *range(1, 31)))
    assert "base 60, tuned 60, 59 in common" in compared(base, tuned).refused


def test_an_own_function_is_compared_by_its_resamples() -> None:
    def own(value: float, *replicates: float) -> MetricScores:
        return perplexity(
            0.0,
            aggregation="utils.own",
            value=value,
            statistics={},
            replicates=replicates,
            higher_is_better=True,
        )

    found = compared(own(0.5, 0.4, 0.5, 0.6), own(0.8, 0.8, 0.7, 0.9))
    assert (found.base, found.tuned) == (0.5, 0.8)
    assert found.difference == pytest.approx(0.3)
    assert "3 paired resamples" in found.method
    assert "resamples: score both" in compared(own(0.5, 0.4), own(0.8, 0.7, 0.8)).refused
    assert value_interval(own(0.5, 0.4, 0.5, 0.6))[0] == 0.5


def test_cells_are_ranked_by_the_value_of_the_corpus() -> None:
    def cell(label: str, shift: float, seed: int) -> RunRecord:
        record = make_record(label)
        assert record.tuned is not None
        scored = perplexity(shift, seed=seed)
        tuned = dataclasses.replace(record.tuned, metrics=(*record.tuned.metrics, scored))
        return dataclasses.replace(record, tuned=tuned)

    # The best has the lowest perplexity, which is the highest log-likelihood.
    bad, good, alike = cell("a=1", 0.0, 1), cell("a=2", 0.5, 2), cell("a=3", 0.5, 3)
    found = ranking([bad, good, alike], "last_word/perplexity", 0.05)
    assert not found.higher_is_better
    assert found.order[-1] == bad.run_id
    assert found.within_noise == {good.run_id, alike.run_id}


def test_records_of_before_have_a_mean() -> None:
    metric = make_metric("t/acc", 0.25, n=8, seed=0)
    assert metric.value is None and corpus_value(metric) == 0.25
