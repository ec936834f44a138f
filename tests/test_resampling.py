"""Values that are no means: formulas against lm-eval's own functions, tests by brute force."""

from __future__ import annotations

import itertools
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lm_eval.api.registry import get_aggregation
from scipy import stats

from ftsuite.analysis.resampling import (
    Corpus,
    aggregate_interval,
    draws,
    paired_aggregates,
    paired_replicates,
    replicate_interval,
)
from ftsuite.scoring import metrics
from ftsuite.scoring.aggregation import AGGREGATIONS, tables

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["the", "a", "sailor", "sings", "on", "deck", "while", "rope", "lie", "below", ",", "again"]
KINDS = sorted(AGGREGATIONS)


def text(rng: random.Random, most: int = 9) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(most)))


def items_of(kind: str, rng: random.Random, n: int) -> list[Any]:
    """Items as lm-eval gives them to its aggregation."""
    match kind:
        case "perplexity":
            return [-rng.expovariate(0.3) for _ in range(n)]
        case "weighted_perplexity":
            return [(-rng.uniform(5, 90), rng.randrange(1, 40)) for _ in range(n)]
        case "nanmean":
            return [rng.choice([math.nan, rng.random()]) for _ in range(n)] + [0.5]
        case "f1":
            return [(rng.randrange(2), rng.randrange(2)) for _ in range(n)]
        case "matthews_corrcoef":
            return [(rng.randrange(4), np.int64(rng.randrange(5))) for _ in range(n)]
    many = rng.random() < 0.5
    return [
        [[text(rng), text(rng)], [text(rng)]] if many else [text(rng), text(rng)] for _ in range(n)
    ]


def corpus_of(kind: str, *members: int) -> Corpus:
    return Corpus(value=AGGREGATIONS[kind].value, members=members, span=AGGREGATIONS[kind].span)


# --- formulas -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_value_is_that_of_lm_evals_own_function(kind: str) -> None:
    own = get_aggregation(kind)
    assert own is not None
    for seed in range(30):
        rng = random.Random(seed)
        items = items_of(kind, rng, rng.randrange(1, 25))
        stored = metrics._values(kind, own, [items])
        assert stored["aggregation"] == kind
        assert stored["value"] == pytest.approx(own(items), rel=1e-12, abs=1e-12)
        # Also on resamples, which is what intervals are made of.
        (table,) = tables(kind, stored["statistics"])
        for _ in range(5):
            places = [rng.randrange(len(items)) for _ in items]
            drawn = [items[place] for place in places]
            ours = float(AGGREGATIONS[kind].value(table[places].sum(axis=0), len(places)))
            assert ours == pytest.approx(own(drawn), rel=1e-12, abs=1e-12, nan_ok=True)


def test_values_without_any_match_are_those_of_sacrebleu() -> None:
    for kind, items in (
        ("bleu", [["a b c d e", "x y z"], ["a b", ""]]),
        ("bleu", [["a b c d e", "a y"], ["a b", "b"]]),
        ("chrf", [["a", ""], ["", ""]]),
        ("ter", [["", "a b"], ["", ""]]),
    ):
        own = get_aggregation(kind)
        assert own is not None
        assert metrics._values(kind, own, [items])["value"] == pytest.approx(own(items))


def test_classes_are_those_of_both_models() -> None:
    # Base never says class 2: swapped documents must still have a place for it.
    base = {"gold": (0, 1, 2, 0), "predicted": (0, 1, 1, 1)}
    tuned = {"gold": (0, 1, 2, 0), "predicted": (0, 1, 2, 1)}
    before, after = tables("matthews_corrcoef", base, tuned)
    assert before.shape == after.shape == (4, 7)


def test_brier_and_bits_per_byte_are_means() -> None:
    rng = np.random.default_rng(0)
    own = get_aggregation("brier_score")
    items = [(int(rng.integers(3)), rng.dirichlet([1, 1, 1])) for _ in range(11)]
    found = metrics._values("brier_score", own, [items])
    assert found["value"] == pytest.approx(own(items)) and len(found["values"]) == 11
    own = get_aggregation("bits_per_byte")
    pairs = [(-float(rng.uniform(5, 90)), int(rng.integers(1, 40))) for _ in range(11)]
    found = metrics._values("bits_per_byte", own, [pairs])
    assert found["value"] == pytest.approx(own(pairs))
    assert found["weights"] == tuple(float(size) for _, size in pairs)
    # A group: lm-eval's size-weighted mean of the members' values.
    found = metrics._values("bits_per_byte", own, [pairs[:4], pairs[4:]])
    assert found["value"] == pytest.approx((4 * own(pairs[:4]) + 7 * own(pairs[4:])) / 11)


# --- interval and test ----------------------------------------------------------------------


def two(kind: str, n: int, seed: int = 0) -> tuple[Any, Any]:
    rng = random.Random(seed)
    sides = []
    for _ in range(2):
        own = get_aggregation(kind)
        assert own is not None
        sides.append(metrics._values(kind, own, [items_of(kind, rng, n)])["statistics"])
    return tuple(tables(kind, *sides))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nanmean"])
def test_p_is_the_share_of_all_swaps_that_are_as_far_apart(kind: str) -> None:
    base, tuned = two(kind, 8)
    corpus = corpus_of(kind, 8)
    observed = abs(corpus.of(tuned) - corpus.of(base))
    extreme = 0
    for swap in itertools.product([False, True], repeat=8):
        one, other = base.copy(), tuned.copy()
        one[list(swap)], other[list(swap)] = tuned[list(swap)], base[list(swap)]
        extreme += abs(corpus.of(other) - corpus.of(one)) >= observed - 1e-9
    found = paired_aggregates(base, tuned, corpus)
    assert found.p_value == pytest.approx(extreme / 2**8)
    assert found.method.startswith("exact swap permutation")
    assert found.difference == pytest.approx(corpus.of(tuned) - corpus.of(base))
    assert found.low <= found.difference <= found.high


def test_a_better_model_is_found_and_the_sign_is_right() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(-3, 1, (60, 1))
    tuned = base + 0.5 + rng.normal(0, 0.1, (60, 1))
    found = paired_aggregates(base, tuned, corpus_of("perplexity", 60))
    assert found.tuned < found.base and found.difference < 0
    assert found.low < found.high < 0 and found.p_value == 1 / 10_001
    assert found.base == pytest.approx(math.exp(-base.mean()))
    assert "10,000 swaps" in found.method and "10,000 resamples" in found.method


def test_interval_is_the_bootstraps() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(-1, 0.1, (200, 1))
    tuned = base + rng.normal(0, 0.1, (200, 1))
    corpus = corpus_of("perplexity", 200)
    found = paired_aggregates(base, tuned, corpus)
    # The delta method for exp(-mean), nearly linear here.
    change = -math.exp(-base.mean()) * (tuned - base)
    half = 1.97 * float(change.std(ddof=1)) / math.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    assert found.minimum_detectable == pytest.approx(2.8016 * half / 1.97, rel=0.05)
    low, high = aggregate_interval(base, corpus)[1:]
    half = 1.97 * math.exp(1) * float(base.std(ddof=1)) / math.sqrt(200)
    assert high - low == pytest.approx(2 * half, rel=0.05)


def test_the_same_call_gives_the_same_numbers() -> None:
    base, tuned = two("bleu", 40)
    corpus = corpus_of("bleu", 40)
    assert paired_aggregates(base, tuned, corpus) == paired_aggregates(base, tuned, corpus)
    other = paired_aggregates(base, tuned, corpus, seed=1)
    assert other != paired_aggregates(base, tuned, corpus)
    assert other.p_value == pytest.approx(paired_aggregates(base, tuned, corpus).p_value, abs=0.03)


def test_equal_models_do_not_differ() -> None:
    base, _ = two("chrf", 20)
    found = paired_aggregates(base, base, corpus_of("chrf", 20))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.minimum_detectable is None


def test_a_group_is_the_mean_of_its_members_by_size() -> None:
    base, tuned = two("f1", 30)
    corpus = corpus_of("f1", 10, 20)

    def by_hand(table: Any) -> float:
        parts = (table[:10], table[10:])
        return sum(
            len(p) * float(AGGREGATIONS["f1"].value(p.sum(axis=0), len(p))) for p in parts
        ) / len(table)

    found = paired_aggregates(base, tuned, corpus)
    assert found.base == pytest.approx(by_hand(base)) != corpus_of("f1", 30).of(base)
    assert found.tuned == pytest.approx(by_hand(tuned))
    # Drawn within its members: a member of one document never changes.
    alone = corpus_of("perplexity", 1, 1)
    values = np.array([[-1.0], [-2.0]])
    assert aggregate_interval(values, alone)[1:] == (alone.of(values),) * 2


def test_a_detectable_difference_is_not_above_what_the_metric_can_move() -> None:
    base, tuned = two("f1", 7, seed=5)
    found = paired_aggregates(base, tuned, corpus_of("f1", 7))
    assert found.minimum_detectable is None
    wide = paired_aggregates(base, tuned, Corpus(value=AGGREGATIONS["f1"].value, members=(7,)))
    assert wide.minimum_detectable is not None and wide.minimum_detectable > 1


# --- a task's own function ------------------------------------------------------------------


def median(items: list[float]) -> float:
    return sorted(items)[len(items) // 2]


def test_own_functions_share_their_resamples() -> None:
    rng = np.random.default_rng(1)
    base = [float(v) for v in rng.normal(0, 1, 50)]
    tuned = [value + 0.3 for value in base]
    sides = [metrics._values("median", median, [items]) for items in (base, tuned)]
    one, other = [(side["value"], side["replicates"]) for side in sides]
    assert sides[0]["aggregation"] == "test_resampling.median"
    assert one[0] == median(base) and len(one[1]) == metrics.REPLICATES
    # Every resample of the tuned model is of the same documents: always 0.3 better. Nothing to
    # judge by: two documents would give p = 0 else, where swapping them gives 0.5.
    assert np.subtract(other[1], one[1]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="the resamples do not vary"):
        paired_replicates(one, other, 50)


def test_own_functions_cannot_say_more_than_their_documents() -> None:
    one, other = (0.0, [0.0, 0.001] * 500), (1.0, [1.0, 1.0] * 500)
    assert paired_replicates(one, other, 4).p_value == 2.0**-3
    assert paired_replicates(one, other, 50).p_value == 1 / 1001


def test_own_functions_interval_is_students() -> None:
    rng = np.random.default_rng(1)
    base, tuned = ([float(v) for v in rng.normal(m, 1, 80)] for m in (0, 0.3))

    def mean(items: list[float]) -> float:
        return sum(items) / len(items)

    sides = [metrics._values("own", mean, [items]) for items in (base, tuned)]
    one, other = [(side["value"], side["replicates"]) for side in sides]
    found = paired_replicates(one, other, 80)
    error = float(np.std(np.array(tuned) - base, ddof=1)) / math.sqrt(80)
    assert found.high - found.low == pytest.approx(2 * 1.9905 * error, rel=0.08)
    expected = 2 * stats.t.sf(found.difference / error, 79)
    assert found.p_value == pytest.approx(expected, rel=0.3) and 0.01 < expected < 0.9
    value, low, high = replicate_interval(*one, 80)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.9905 * np.std(base, ddof=1) / math.sqrt(80), rel=0.08)


def test_own_functions_without_a_value_on_some_resample_have_no_interval() -> None:
    def needs_both(items: list[int]) -> float:
        if len(set(items)) < 2:
            raise ValueError("only one class present")
        return sum(items) / len(items)

    found = metrics._values("auc", needs_both, [[0, 1, 1]])
    assert found["value"] == pytest.approx(2 / 3) and found["replicates"] == ()
    found = metrics._values("auc", lambda items: math.nan if 9 not in items else 1.0, [[9, 1]])
    assert found["value"] == 1.0 and found["replicates"] == ()


def test_resamples_depend_on_the_number_of_documents_alone() -> None:
    assert list(draws([5, 2], 3)) == list(draws([5, 2], 3)) != list(draws([5, 2], 3, seed=1))
    for drawn in draws([5, 2], 20):
        assert [len(places) for places in drawn] == [5, 2]
        assert max(drawn[0]) < 5 and max(drawn[1]) < 2


# --- what cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_aggregates(
                np.zeros((1, 1)), np.zeros((1, 1)), corpus_of("perplexity", 1)
            ),
            "at least 2 items",
        ),
        (
            lambda: paired_aggregates(
                np.zeros((3, 1)), np.zeros((2, 1)), corpus_of("perplexity", 3)
            ),
            "not 3 documents",
        ),
        (
            lambda: paired_aggregates(
                np.full((3, 1), -1e4), np.zeros((3, 1)), corpus_of("perplexity", 3)
            ),
            "the value of base is inf",
        ),
        (
            lambda: paired_replicates((1.0, (1.0, 2.0)), (1.0, (1.0,)), 5),
            "2 and 1 resamples: score both",
        ),
        (lambda: paired_replicates((1.0, ()), (1.0, ()), 5), "takes too long for resamples"),
        (lambda: replicate_interval(1.0, (1.0,), 1), "at least 2 items"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
