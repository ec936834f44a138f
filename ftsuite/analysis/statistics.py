"""Paired statistics for models that were scored on the same items.

Pairing removes the spread of item difficulty (Miller 2024, "Adding Error Bars to Evals").
Intervals are 95 %, tests two-sided. Both take items as independent: clusters make them too sure.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    Scores = Sequence[float]
    Vector = npt.NDArray[np.float64]
    Findings = tuple[float, float, float, str, float | None]  # low, high, p, method, detectable

_Z95 = float(special.ndtri(0.975))
DETECT_SD = _Z95 + float(special.ndtri(0.8))  # standard errors: p < 0.05 in 80 % of runs
FEWEST_TO_DETECT = 6  # items, as neither sign flips nor McNemar go below p = 2 / 2**n
_FLIPS = 10_000
_BATCH = 100  # flips at a time, so that 10,000 items take 8 MB
_ENUMERATE_UP_TO = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """What the same items say about a tuned model against its base, in the unit of the scores."""

    n: int  # items
    base: float  # (weighted) mean
    tuned: float
    difference: float  # tuned - base
    low: float  # 95 % interval of the difference
    high: float
    p_value: float  # two-sided, of "no difference", not adjusted (see `holm`)
    method: str
    # None where no spread was seen, or the items are too few for any difference to reach 5 %.
    minimum_detectable: float | None  # smallest |difference| found with 80 % power at 5 %


class Verdict(enum.StrEnum):
    """A tuned model against its base, after adjustment for the number of comparisons."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"


def paired_difference(
    base: Scores, tuned: Scores, weights: Scores | None = None, *, seed: int = 0
) -> PairedDifference:
    """Compare two models on the same items.

    All 0 or 1, no weights: exact McNemar test (1947, Psychometrika 12) and the interval of
    Agresti & Min 2005 (Statistics in Medicine 24: Wald, 0.5 added to each of the four cells).
    Else: ``sum(w d) / sum(w)``, its variance by linearisation (Cochran 1977, Sampling Techniques,
    ch. 6), Student-t interval (``n - 1`` degrees of freedom; width 0 if all differences are equal)
    and sign-flip permutation test: exact up to 13 non-zero differences, then 10,000 flips with
    the +1 of Phipson & Smyth 2010 (SAGMB 9); near 5 % test and interval may disagree. Detectable
    difference: Card et al. 2020, "With Little Power Comes Great Responsibility"; Miller 2024.

    Args:
        base: Scores of the base, shape ``[n]``, ``n >= 2``.
        tuned: Scores of the tuned model on the same items in the same order, shape ``[n]``.
        weights: Positive weights, shape ``[n]``; None weighs all items 1. With scores in bits
            per byte and weights in bytes the mean is the corpus' bits per byte.
        seed: Seed of the sampled sign flips; the same seed gives the same p-value.

    Raises:
        ValueError: Fewer than 2 items, unequal lengths, a non-finite number, a weight <= 0.
    """
    before = _vector("base", base)
    after = _vector("tuned", tuned, before.size)
    item_weights = _weights(weights, before.size)
    _require(before.size >= 2, "base has 1 item: at least 2 items are needed for an interval")
    binary = weights is None and bool(np.isin([before, after], (0, 1)).all())
    found = _binary(before, after) if binary else _continuous(before, after, item_weights, seed)
    low, high, p_value, method, detectable = found
    return PairedDifference(
        n=before.size,
        base=float(np.average(before, weights=item_weights)),
        tuned=float(np.average(after, weights=item_weights)),
        difference=float(np.average(after - before, weights=item_weights)),
        low=low,
        high=high,
        p_value=p_value,
        method=method,
        minimum_detectable=detectable,
    )


def mean_interval(values: Scores, weights: Scores | None = None) -> tuple[float, float, float]:
    """Give ``(mean, low, high)``: the (weighted) mean of one model and its 95 % interval.

    Wilson 1927 (JASA 22) for unweighted scores that are all 0 or 1; else Student-t as in
    `paired_difference`. Overlap of two such intervals is no test: use `paired_difference`.

    Args:
        values: Scores, shape ``[n]``; ``n >= 1`` for 0/1 scores, else ``n >= 2``.
        weights: Positive weights, shape ``[n]``, or None for equal weights.

    Raises:
        ValueError: Too few items, unequal lengths, a non-finite number, a weight <= 0.
    """
    scores = _vector("values", values)
    item_weights, n = _weights(weights, scores.size), scores.size
    mean = float(np.average(scores, weights=item_weights))
    if weights is None and np.isin(scores, (0, 1)).all():
        shrink = 1 + _Z95**2 / n
        centre = (mean + _Z95**2 / (2 * n)) / shrink
        half = _Z95 / shrink * math.sqrt(mean * (1 - mean) / n + (_Z95 / (2 * n)) ** 2)
        # At 0/n and n/n rounding could leave the mean outside its own interval.
        return mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
    _require(n >= 2, f"values holds only {values[0]}: at least 2 items are needed for an interval")
    half = float(special.stdtrit(n - 1, 0.975)) * _standard_error(scores, item_weights)
    return mean, mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons (Holm 1979, Scand. J. Statist. 6).

    Rejecting where the result is below alpha keeps the chance of any false rejection <= alpha.

    Args:
        p_values: Raw p-values in [0, 1], shape ``[m]``, any order; the result has the same order.

    Raises:
        ValueError: No p-values, or one outside [0, 1].
    """
    raw = _vector("p_values", p_values)
    _require_probability("p_values", *raw.tolist())
    order = np.argsort(raw, kind="stable")
    adjusted = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    return [min(1.0, float(p_value)) for p_value in adjusted[np.argsort(order)]]


def detectable_difference(n: int, discordance: float) -> float | None:
    """Give the smallest accuracy difference (a share) ``n`` items detect: 80 % power at 5 %.

    The larger of ``z sqrt(discordance / n)``, ``z = z.975 + z.8`` (Card et al. 2020; Miller 2024)
    and ``z**2 / n``: models cannot differ by more than their discordance, and the second is where
    a difference that is all of it is detected. The exact test then has 77 to 86 % power (n >= 20).
    None with fewer than 6 items: not even a difference of 1 is detected then.

    Args:
        n: Number of items planned, at least 1.
        discordance: Share of items, in [0, 1], that exactly one of the two models gets right.

    Raises:
        ValueError: ``n`` below 1 or ``discordance`` outside [0, 1].
    """
    _require(n >= 1, f"n is {n}: give the number of items, at least 1")
    _require_probability("discordance", discordance)
    if n < FEWEST_TO_DETECT:
        return None
    # A difference of 1 shows on every item, which 6 items always detect.
    return min(1.0, max(DETECT_SD * math.sqrt(discordance / n), DETECT_SD**2 / n))


def verdict(
    difference: PairedDifference, adjusted_p: float, *, higher_is_better: bool, alpha: float = 0.05
) -> Verdict:
    """Put a comparison into a word; NOISE means no evidence, which is not equality.

    Args:
        difference: The comparison; its sign gives the direction.
        adjusted_p: Its p-value after `holm` over all comparisons that are reported together.
        higher_is_better: False for losses such as bits per byte.
        alpha: Level of the test, in [0, 1]; ``adjusted_p < alpha`` is significant.

    Raises:
        ValueError: ``adjusted_p`` or ``alpha`` outside [0, 1].
    """
    _require_probability("adjusted_p", adjusted_p)
    _require_probability("alpha", alpha)
    if adjusted_p >= alpha or difference.difference == 0:
        return Verdict.NOISE
    return Verdict.BETTER if (difference.difference > 0) == higher_is_better else Verdict.WORSE


def not_worse_than_best(
    values: Mapping[str, float],
    p_value: Callable[[str, str], float],
    *,
    higher_is_better: bool,
    alpha: float = 0.05,
) -> tuple[str, set[str]]:
    """Give the best candidate, and the set of it and all that are not significantly worse.

    Each other candidate is set against the best, with `holm` over these comparisons; the fewer the
    items, the larger the set.

    Args:
        values: Value of each candidate; of equals the first is the best.
        p_value: Paired test of two candidates, by name.
        higher_is_better: False for losses such as bits per byte.
        alpha: Level of the test, in [0, 1].

    Raises:
        ValueError: No candidates, or alpha outside [0, 1].
    """
    _require_probability("alpha", alpha)
    _require(len(values) > 0, "values is empty: give the value of at least one candidate")
    best = (max if higher_is_better else min)(values, key=lambda name: values[name])
    others = [name for name in values if name != best]
    if not others:
        return best, {best}
    adjusted = holm([p_value(best, name) for name in others])
    return best, {best} | {name for name, p in zip(others, adjusted, strict=True) if p >= alpha}


def _binary(base: Vector, tuned: Vector) -> Findings:
    n, lost, won = base.size, int(np.sum(base > tuned)), int(np.sum(tuned > base))
    # 0.5 in each cell keeps the interval from width 0 when no pair is discordant.
    centre, discordance = (won - lost) / (n + 2), (won + lost + 1) / (n + 2)
    half = _Z95 * math.sqrt((discordance - centre**2) / (n + 2))
    p_value = min(1.0, 2 * float(special.bdtr(min(won, lost), won + lost, 0.5)))
    method = "exact McNemar; Agresti-Min interval"
    detectable = detectable_difference(n, discordance)
    return max(-1.0, centre - half), min(1.0, centre + half), p_value, method, detectable


def _continuous(base: Vector, tuned: Vector, weights: Vector, seed: int) -> Findings:
    n, difference = base.size, float(np.average(tuned - base, weights=weights))
    error = _standard_error(tuned - base, weights)
    # Equal differences (0.3 - 0.2, 0.4 - 0.3) leave rounding only, which is no spread.
    if error <= 1e-13 * float(max(np.abs(base).max(), np.abs(tuned).max())):
        error = 0.0
    half = float(special.stdtrit(n - 1, 0.975)) * error
    p_value, test = _sign_flip_test(weights * (tuned - base), seed)
    detectable = DETECT_SD * error if error and n >= FEWEST_TO_DETECT else None
    return difference - half, difference + half, p_value, f"{test}; Student-t interval", detectable


def _sign_flip_test(contributions: Vector, seed: int) -> tuple[float, str]:
    # A zero stays zero under either sign, so dropping it leaves the distribution as it is.
    terms = contributions[contributions != 0]
    # Sums that are equal on paper differ by rounding; counting them keeps the test valid.
    threshold = abs(float(terms.sum())) - 1e-12 * float(np.abs(terms).sum())
    exact, batches = swaps(terms.size, seed)
    extreme = total = 0
    for batch in batches:
        extreme += int(np.sum(np.abs((1.0 - 2.0 * batch) @ terms) >= threshold))
        total += len(batch)
    if exact:
        return extreme / total, "exact sign-flip permutation"
    return (extreme + 1) / (total + 1), f"sign-flip permutation ({total:,} flips)"


def swaps(items: int, seed: int) -> tuple[bool, Iterable[npt.NDArray[np.int64]]]:
    """Give the ways to swap two models on each item, in batches of shape ``[ways, items]``.

    All of them for up to 13 items, else 10,000 that are drawn; then the ways that are observed
    count as one more: without it p could be 0 (Phipson & Smyth 2010).

    Args:
        items: Number of items on which the models differ.
        seed: Seed of the drawn ways.

    Returns:
        Whether these are all the ways there are, and the batches of 0 (keep) and 1 (swap).
    """
    if items <= _ENUMERATE_UP_TO:
        return True, [np.arange(2**items)[:, None] >> np.arange(items) & 1]
    rng = np.random.default_rng(seed)
    size = (_BATCH, items)
    return False, (
        rng.integers(0, 2, size=size, dtype=np.int8).astype(np.int64)
        for _ in range(_FLIPS // _BATCH)
    )


def _standard_error(values: Vector, weights: Vector) -> float:
    # Linearised ratio sum(w x) / sum(w); with equal weights this is sd / sqrt(n).
    residuals = weights * (values - float(np.average(values, weights=weights)))
    spread = math.sqrt(values.size / (values.size - 1)) * float(np.linalg.norm(residuals))
    return spread / float(np.sum(weights))


def _vector(name: str, values: Scores, n: int | None = None) -> Vector:
    vector = np.asarray(values, dtype=np.float64)
    _require(vector.ndim == 1, f"{name} has shape {vector.shape}: give one number per item")
    _require(vector.size > 0, f"{name} is empty: give one number per item")
    _require(n in (None, vector.size), f"{name} has {vector.size} items, not {n}: score them all")
    finite = np.isfinite(vector)
    at = int(np.argmin(finite))
    _require(bool(finite.all()), f"{name}[{at}] is {vector[at]}: drop the item or mend its score")
    return vector


def _weights(weights: Scores | None, n: int) -> Vector:
    vector = np.ones(n) if weights is None else _vector("weights", weights, n)
    at = int(np.argmin(vector))
    _require(vector[at] > 0, f"weights[{at}] is {vector[at]}: weights are > 0; drop the item")
    return vector


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _require_probability(name: str, *values: float) -> None:
    for value in values:
        _require(0 <= value <= 1, f"{name} holds {value}: give a number from 0 to 1")
