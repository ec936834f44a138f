"""The numbers in here come from hand calculation, printed tables or brute force, never from
the module under test."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftsuite.analysis import statistics
from ftsuite.analysis.statistics import (
    PairedDifference,
    Verdict,
    detectable_difference,
    holm,
    mean_interval,
    not_worse_than_best,
    paired_difference,
    verdict,
)

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
pairs = st.lists(st.tuples(finite, finite), min_size=2, max_size=11)
binary_pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60)


def table(both: int, lost: int, won: int, neither: int) -> tuple[list[int], list[int]]:
    """Base and tuned scores of a 2 x 2 table of paired answers."""
    base = [1] * both + [1] * lost + [0] * won + [0] * neither
    tuned = [1] * both + [0] * lost + [1] * won + [0] * neither
    return base, tuned


# 0/1 scores


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [
        (1, 9, 0.021484375),  # 2 (1 + 10) / 2**10
        (9, 1, 0.021484375),
        (0, 6, 0.03125),  # 2 / 2**6
        (0, 5, 0.0625),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (2, 8, 0.109375),  # 2 (1 + 10 + 45) / 2**10
    ],
)
def test_mcnemar_exact_p(lost: int, won: int, expected: float) -> None:
    found = paired_difference(*table(10, lost, won, 10))
    assert found.p_value == pytest.approx(expected, abs=1e-12)
    assert found.method == "exact McNemar; Agresti-Min interval"


def test_mcnemar_against_a_published_table() -> None:
    # Agresti, Categorical Data Analysis, approval of the prime minister: 794, 150, 86, 570.
    found = paired_difference(*table(794, 150, 86, 570))
    assert (found.base, found.tuned) == (944 / 1600, 880 / 1600)
    brute = 2 * sum(math.comb(236, k) for k in range(87)) / 2**236
    assert found.p_value == pytest.approx(brute, rel=1e-9)
    # Wald by hand: 64 / 1600 -+ 1.96 sqrt((236 / 1600 - 0.04**2) / 1600); 0.5 a cell moves it
    # little on this many items.
    assert (-found.high, -found.low) == pytest.approx((0.04 - 0.01872, 0.04 + 0.01872), abs=1e-4)


def test_agresti_min_by_hand() -> None:
    # Cells + 0.5: 10.5, 1.5, 9.5, 10.5; n* = 32. Centre 8 / 32 = 0.25.
    # Variance (11 - 64 / 32) / 32**2 = 9 / 1024, so the error is 3 / 32 = 0.09375.
    found = paired_difference(*table(10, 1, 9, 10))
    assert found.difference == pytest.approx(8 / 30)
    assert found.low == pytest.approx(0.25 - 1.959963985 * 0.09375, abs=1e-8)
    assert found.high == pytest.approx(0.25 + 1.959963985 * 0.09375, abs=1e-8)
    # (1.959963985 + 0.841621234) sqrt((11 / 32) / 30)
    assert found.minimum_detectable == pytest.approx(2.801585218 * math.sqrt(11 / 960), abs=1e-8)


def test_no_discordant_pair_keeps_an_interval() -> None:
    # Cells + 0.5: b* = c* = 0.5, n* = 20: error sqrt(1) / 20.
    found = paired_difference([1] * 9 + [0] * 9, [1] * 9 + [0] * 9)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.high == pytest.approx(1.959963985 / 20, abs=1e-8)
    assert found.low == -found.high


def test_interval_is_clipped() -> None:
    found = paired_difference([0, 0], [1, 1])
    assert found.high == 1
    assert found.minimum_detectable is None  # 2 items never reach 5 %
    assert paired_difference([1, 1], [0, 0]).low == -1


def test_booleans_count_as_binary_and_weights_do_not() -> None:
    base, tuned = [True, False, True, False], [True, True, True, False]
    assert "McNemar" in paired_difference(base, tuned).method
    assert "McNemar" not in paired_difference(base, tuned, [1, 1, 1, 1]).method
    assert "McNemar" not in paired_difference([1, 0, 0.5], [1, 1, 1]).method


@quick
@given(binary_pairs)
def test_binary_properties(rows: list[tuple[int, int]]) -> None:
    base, tuned = zip(*rows, strict=True)
    found, swapped = paired_difference(base, tuned), paired_difference(tuned, base)
    assert swapped.p_value == found.p_value
    assert swapped.difference == -found.difference
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert -1 <= found.low < found.high <= 1
    assert found.low <= found.difference <= found.high
    assert 0 < found.p_value <= 1


# Scores on a scale


def brute_force_p(contributions: list[float]) -> float:
    observed = abs(math.fsum(contributions))
    flips = itertools.product((1, -1), repeat=len(contributions))
    sums = [abs(math.fsum(map(math.prod, zip(s, contributions, strict=True)))) for s in flips]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_student_interval_by_hand() -> None:
    # d = 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), error sqrt(0.5); t(.975, 4) = 2.776445 (tables).
    found = paired_difference([0.5] * 5, [1.5, 2.5, 3.5, 4.5, 5.5])
    assert (found.base, found.tuned, found.difference) == (0.5, 3.5, 3)
    assert found.low == pytest.approx(3 - 2.776445105 * math.sqrt(0.5), abs=1e-7)
    assert found.high == pytest.approx(3 + 2.776445105 * math.sqrt(0.5), abs=1e-7)
    assert found.p_value == 2 / 2**5
    assert found.minimum_detectable is None  # 5 items: p is never below 0.0625


def test_minimum_detectable_by_hand() -> None:
    # d = -1, 1 four times each: sd sqrt(8 / 7), n = 8.
    found = paired_difference([0.0] * 8, [-1.0, 1.0] * 4)
    assert found.minimum_detectable == pytest.approx(2.801585218 * math.sqrt(1 / 7), abs=1e-8)


def test_enumeration_against_brute_force() -> None:
    difference = [0.3, -0.1, 0.4, 0.1, -0.2, 0.5, 0.2, 0.1, 0.3]
    weights = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    plain = paired_difference([0.0] * 9, difference)
    assert plain.p_value == brute_force_p(difference)
    assert plain.method == "exact sign-flip permutation; Student-t interval"
    weighted = paired_difference([0.0] * 9, difference, weights)
    expected = brute_force_p([w * d for w, d in zip(weights, difference, strict=True)])
    assert weighted.p_value == expected != plain.p_value


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.7])
def test_sampled_flips_agree_with_enumeration(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = np.random.default_rng(5).normal(shift, 1, 13)
    exact = paired_difference(np.zeros(13), tuned)
    monkeypatch.setattr(statistics, "_ENUMERATE_UP_TO", 0)
    sampled = paired_difference(np.zeros(13), tuned)
    assert "10,000 flips" in sampled.method
    assert "exact" in exact.method
    four_errors = 4 * math.sqrt(exact.p_value * (1 - exact.p_value) / 10_000)
    assert sampled.p_value == pytest.approx(exact.p_value, abs=four_errors)
    assert sampled.p_value != exact.p_value


def test_enumeration_stops_at_13_non_zero_differences() -> None:
    assert "exact" in paired_difference([0.0] * 13, [1.5] * 13).method
    assert "flips" in paired_difference([0.0] * 14, [1.5] * 14).method
    # Ties carry no sign: with 13 of them and 6 others the p-value is that of the 6.
    tied = paired_difference([0.0] * 19, [0.0] * 13 + [1.5] * 6)
    assert (tied.p_value, tied.method[:5]) == (2 / 2**6, "exact")


def test_sampled_p_is_never_zero_and_repeats_with_its_seed() -> None:
    far = paired_difference([0.0] * 40, [1.5] * 40)
    assert far.p_value == 1 / 10_001
    tuned = np.random.default_rng(0).normal(0.2, 1, 40)
    base = np.zeros(40)
    assert paired_difference(base, tuned, seed=3) == paired_difference(base, tuned, seed=3)
    assert paired_difference(base, tuned, seed=3) != paired_difference(base, tuned, seed=4)


def test_equal_sums_count_despite_rounding() -> None:
    # In floats 0.1 + 0.2 - 0.3 is not 0, so sums equal on paper come out apart.
    difference = [0.1, 0.2, -0.3, 0.1, 0.2, 0.3, 0.1]
    thirds = [round(10 * value) for value in difference]
    assert paired_difference([0.0] * 7, difference).p_value == brute_force_p(thirds)


def test_weighted_mean_is_the_corpus_bits_per_byte() -> None:
    rng = np.random.default_rng(1)
    size = rng.integers(10, 5000, 30)
    bits = rng.uniform(0.5, 3, (2, 30)) * size
    found = paired_difference(bits[0] / size, bits[1] / size, size.tolist())
    corpus = bits.sum(axis=1) / size.sum()
    assert (found.base, found.tuned) == pytest.approx(tuple(corpus))
    assert found.difference == pytest.approx(corpus[1] - corpus[0])
    scaled = paired_difference(bits[0] / size, bits[1] / size, (size * 1024).tolist())
    assert (scaled.low, scaled.high) == pytest.approx((found.low, found.high))


def test_weighted_interval_by_hand() -> None:
    # d = 0, 2, 4 with weights 1, 2, 1: mean 2; residuals w (d - 2) = -2, 0, 2.
    # Variance 3 / 2 * 8 / 4**2 = 0.75; t(.975, 2) = 4.302653 (tables).
    found = paired_difference([0.0] * 3, [0.0, 2.0, 4.0], [1, 2, 1])
    half = 4.302652730 * math.sqrt(0.75)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-7)
    assert mean_interval([0.0, 2.0, 4.0], [1, 2, 1]) == pytest.approx((2, 2 - half, 2 + half))


def test_equal_differences_show_no_spread() -> None:
    base = [0.1, 0.2, 0.7, 0.4, 0.55, 0.6, 0.3]
    found = paired_difference(base, [value + 0.1 for value in base])
    assert found.minimum_detectable is None
    assert found.low == found.difference == found.high
    same = paired_difference(base, base)
    assert (same.difference, same.p_value, same.minimum_detectable) == (0, 1, None)


@quick
@given(pairs, st.booleans())
def test_continuous_properties(rows: list[tuple[float, float]], weighted: bool) -> None:
    base, tuned = zip(*rows, strict=True)
    weights = [1 + index % 3 for index in range(len(rows))] if weighted else None
    found = paired_difference(base, tuned, weights)
    swapped = paired_difference(tuned, base, weights)
    assert swapped.difference == -found.difference
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert swapped.p_value == found.p_value
    assert 0 < found.p_value <= 1
    assert found.low <= found.difference <= found.high
    json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))


@quick
@given(st.lists(finite, min_size=14, max_size=30))
def test_sampled_p_is_the_same_for_swapped_models(tuned: list[float]) -> None:
    base = [0.25] * len(tuned)
    assert paired_difference(base, tuned).p_value == paired_difference(tuned, base).p_value


# Long-run behaviour


def test_binary_interval_covers() -> None:
    rng = np.random.default_rng(11)
    cells = np.array([0.5, 0.08, 0.18, 0.24])  # both, lost, won, neither: truth 0.10
    covered = 0
    for both, lost, won, neither in rng.multinomial(60, cells, 400):
        found = paired_difference(*table(both, lost, won, neither))
        covered += found.low <= 0.10 <= found.high
    assert 0.93 <= covered / 400 <= 0.98


def test_continuous_interval_covers_and_test_keeps_its_level() -> None:
    rng = np.random.default_rng(12)
    covered = rejected = 0
    for _ in range(400):
        base = rng.normal(0, 3, 12)
        found = paired_difference(base, base + rng.normal(0, 1, 12))
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    assert 0.93 <= covered / 400 <= 0.98
    assert 0.02 <= rejected / 400 <= 0.07


def test_weighted_interval_covers() -> None:
    rng = np.random.default_rng(13)
    covered = 0
    for _ in range(400):
        size = rng.integers(200, 2000, 40)
        found = paired_difference(np.zeros(40), rng.normal(0.1, 0.3, 40), size.tolist())
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / 400 <= 0.98


def test_mcnemar_keeps_its_level() -> None:
    rng = np.random.default_rng(14)
    draws = rng.multinomial(80, [0.5, 0.15, 0.15, 0.2], 400)
    rejected = sum(paired_difference(*table(*draw)).p_value < 0.05 for draw in draws)
    assert rejected / 400 <= 0.07


def test_detectable_difference_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(15)
    discordance = 0.3
    size = detectable_difference(200, discordance)
    won, lost = (discordance + size) / 2, (discordance - size) / 2
    draws = rng.multinomial(200, [0.5, lost, won, 1 - 0.5 - lost - won], 400)
    detected = sum(paired_difference(*table(*draw)).p_value < 0.05 for draw in draws)
    assert 0.72 <= detected / 400 <= 0.86


# One model


def test_wilson_by_hand() -> None:
    # 8 of 10: (0.8 + z2 / 20 -+ z sqrt(0.016 + z2 / 400)) / (1 + z2 / 10), z2 = 3.841459.
    mean, low, high = mean_interval([1] * 8 + [0] * 2)
    assert mean == 0.8
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize("n", [1, 3, 10, 999])
def test_wilson_at_the_ends(n: int) -> None:
    z2 = 3.841458821
    assert mean_interval([1] * n) == pytest.approx((1, n / (n + z2), 1), abs=1e-9)
    assert mean_interval([0] * n) == pytest.approx((0, 0, z2 / (n + z2)), abs=1e-9)


def test_wilson_holds_its_mean_at_the_ends_despite_rounding() -> None:
    for n in range(1, 200):
        assert mean_interval([0] * n)[1] == 0
        assert mean_interval([1] * n)[2] == 1


def test_mean_interval_student() -> None:
    half = 2.776445105 * math.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-7)


# Many comparisons


def test_holm_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, then 0.04 raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([0.02, 0.02]) == [0.04, 0.04]


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_properties(raw: list[float]) -> None:
    adjusted = holm(raw)
    assert all(p <= q <= 1 for p, q in zip(raw, adjusted, strict=True))
    by_raw = [adjusted[index] for index in np.argsort(raw, kind="stable")]
    assert by_raw == sorted(by_raw)
    assert min(adjusted) == min(1.0, len(raw) * min(raw))


def test_detectable_difference_by_hand() -> None:
    # (1.959963985 + 0.841621234)**2 = 7.848879735
    assert detectable_difference(100, 0.2) == pytest.approx(math.sqrt(7.848879735 * 0.002))
    # A discordance of 0.01 cannot hold the 0.028 that the plain formula would give.
    assert detectable_difference(100, 0.01) == pytest.approx(0.07848879735)
    assert detectable_difference(100, 0) == pytest.approx(0.07848879735)
    assert detectable_difference(6, 1) == 1
    # 1.962 is no difference of accuracies.
    assert detectable_difference(4, 0.2) is None
    assert detectable_difference(5, 1) is None


def made(difference: float) -> PairedDifference:
    return PairedDifference(
        n=9,
        base=0.5,
        tuned=0.5 + difference,
        difference=difference,
        low=-1,
        high=1,
        p_value=0.01,
        method="made up",
        minimum_detectable=None,
    )


@pytest.mark.parametrize(
    ("difference", "adjusted_p", "higher_is_better", "expected"),
    [
        (0.1, 0.01, True, Verdict.BETTER),
        (-0.1, 0.01, True, Verdict.WORSE),
        (0.1, 0.01, False, Verdict.WORSE),
        (-0.1, 0.01, False, Verdict.BETTER),
        (0.1, 0.2, True, Verdict.NOISE),
        (0.1, 0.05, True, Verdict.NOISE),
        (0.0, 0.01, False, Verdict.NOISE),
    ],
)
def test_verdict(
    difference: float, adjusted_p: float, higher_is_better: bool, expected: Verdict
) -> None:
    found = verdict(made(difference), adjusted_p, higher_is_better=higher_is_better)
    assert found is expected
    assert str(Verdict.NOISE) == "within noise"


def test_verdict_takes_alpha() -> None:
    assert verdict(made(0.1), 0.2, higher_is_better=True, alpha=0.3) is Verdict.BETTER


def p_values(**of: float) -> Callable[[str, str], float]:
    """A test whose p-values are given by the name of the other candidate."""
    return lambda best, other: of[other]


def test_not_worse_than_best() -> None:
    values = {"bad": 0.1, "close": 0.69, "best": 0.7, "again": 0.7}
    found = not_worse_than_best(
        values, p_values(bad=0.001, close=0.2, again=1.0), higher_is_better=True
    )
    assert found == ("best", {"best", "close", "again"})
    found = not_worse_than_best(
        values, p_values(close=0.001, best=0.001, again=0.001), higher_is_better=False
    )
    assert found == ("bad", {"bad"})


def test_not_worse_than_best_adjusts_for_its_comparisons() -> None:
    # 6 discordant pairs, all one way: p = 0.03125, which two comparisons double.
    scores = {"a": [0] * 6 + [1] * 6, "b": [1] * 12, "c": [0] * 6 + [1] * 6}

    def found(*names: str, alpha: float = 0.05) -> tuple[str, set[str]]:
        return not_worse_than_best(
            {name: sum(scores[name]) for name in names},
            lambda best, other: paired_difference(scores[best], scores[other]).p_value,
            higher_is_better=True,
            alpha=alpha,
        )

    assert found("a", "b") == ("b", {"b"})
    assert found("a", "b", "c") == ("b", {"a", "b", "c"})
    assert found("a", "b", "c", alpha=0.1) == ("b", {"b"})


def test_not_worse_than_best_with_one_candidate() -> None:
    assert not_worse_than_best({"a": 0.5}, p_values(), higher_is_better=True) == ("a", {"a"})


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1, 2], [1, 2, 3]), "tuned has 3 items, not 2"),
        (lambda: paired_difference([1, 2], [1, 2], [1]), "weights has 1 items, not 2"),
        (lambda: paired_difference([], []), "base is empty"),
        (lambda: paired_difference([0.5], [0.6]), "at least 2 items"),
        (lambda: paired_difference([1], [0]), "at least 2 items"),
        (lambda: paired_difference([1, math.nan], [1, 2]), r"base\[1\] is nan: drop"),
        (lambda: paired_difference([1, 2], [math.inf, 2]), r"tuned\[0\] is inf"),
        (lambda: paired_difference([1, 2], [1, None]), r"tuned\[1\] is nan"),
        (lambda: paired_difference([[1, 2]], [[1, 2]]), r"base has shape \(1, 2\)"),
        (lambda: paired_difference([1, 2], [1, 2], [1, 0]), r"weights\[1\] is 0.0: weights are"),
        (lambda: paired_difference([1, 2], [1, 2], [-1, 3]), r"weights\[0\] is -1.0"),
        (lambda: mean_interval([]), "values is empty"),
        (lambda: mean_interval([0.5]), "at least 2 items"),
        (lambda: mean_interval([0.5, 0.6], [1, 2, 3]), "weights has 3 items"),
        (lambda: holm([]), "p_values is empty"),
        (lambda: holm([0.1, 1.5]), "p_values holds 1.5: give a number from 0 to 1"),
        (lambda: holm([-0.1]), "p_values holds -0.1"),
        (lambda: detectable_difference(0, 0.1), "n is 0"),
        (lambda: detectable_difference(9, 1.1), "discordance holds 1.1"),
        (lambda: detectable_difference(9, math.nan), "discordance holds nan"),
        (lambda: verdict(made(0.1), 2, higher_is_better=True), "adjusted_p holds 2"),
        (lambda: verdict(made(0.1), 0.1, higher_is_better=True, alpha=5), "alpha holds 5"),
        (
            lambda: not_worse_than_best({}, p_values(), higher_is_better=True),
            "values is empty",
        ),
        (
            lambda: not_worse_than_best({"a": 1}, p_values(), higher_is_better=True, alpha=-1),
            "alpha holds -1",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_import_stays_light() -> None:
    script = (
        "import sys, ftsuite.analysis.statistics;"
        "sys.exit(bool({'torch', 'scipy.stats', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
