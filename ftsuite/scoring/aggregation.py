"""How lm-eval makes one number of many documents where that is not a mean, from stored statistics.

Each aggregation is a function of sums over the documents, so that any resample of the documents is
scored by a matrix product, without torch, lm-eval or sacrebleu. Shapes: B resamples, N documents,
K statistics. The eval stage checks every value against lm-eval's own (metrics.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Columns = Mapping[str, Sequence[float]]

BLEU_ORDERS = 4
CHRF_ORDERS = 6
"""sacrebleu's character n-grams; chrF++ adds two orders of word n-grams."""
CHRF_BETA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """One of lm-eval's aggregations, as a function of sums over the documents."""

    columns: tuple[str, ...]
    """Names of the statistics that a record keeps for each document."""
    higher_is_better: bool | None
    """None where it follows from the metric and not from the aggregation."""
    span: float | None
    """Largest change that the value can make; None where it has no bound."""
    value: Callable[[Array, int], Array]
    """(sums of shape [..., K], number of documents) → values of shape [...]."""
    by_class: bool = False
    """Whether the columns are classes (gold, predicted), to be counted before they are summed."""


def tables(name: str, *sides: Columns) -> list[Array]:
    """Return the matrix to sum for each model, shape [N, K]; the same K for all of them.

    Args:
        name: key of `AGGREGATIONS`.
        sides: the statistics of one or more models on the same documents.
    """
    kind = AGGREGATIONS[name]
    raw = [np.array([side[c] for c in kind.columns], dtype=np.float64).T for side in sides]
    if not kind.by_class:
        return raw
    classes = np.unique(np.concatenate(raw))
    return [_counted(matrix, classes) for matrix in raw]


def _counted(pairs: Array, classes: Array) -> Array:
    """(gold, predicted) → right or not, gold is class k, predicted is class k."""
    gold, predicted = pairs[:, :1], pairs[:, 1:]
    return np.hstack([gold == predicted, gold == classes, predicted == classes]).astype(np.float64)


def _perplexity(sums: Array, n: int) -> Array:
    return np.asarray(np.exp(-sums[..., 0] / n))


def _weighted_perplexity(sums: Array, n: int) -> Array:
    return np.asarray(np.exp(-sums[..., 0] / sums[..., 1]))


def _nanmean(sums: Array, n: int) -> Array:
    return _ratio(sums[..., 0], sums[..., 1], otherwise=np.nan)


def _f1(sums: Array, n: int) -> Array:
    """F1 of class 1; 0 where no document is or is said to be of it, as scikit-learn has it."""
    return _ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2], otherwise=0.0)


def _matthews(sums: Array, n: int) -> Array:
    """R_K of Gorodkin 2004 (Comput. Biol. Chem. 28), as scikit-learn computes it; 0 for 0/0."""
    k = (sums.shape[-1] - 1) // 2
    right, gold, predicted = sums[..., 0], sums[..., 1 : k + 1], sums[..., k + 1 :]
    shared = right * n - np.sum(gold * predicted, axis=-1)
    spread = (n**2 - np.sum(gold**2, axis=-1)) * (n**2 - np.sum(predicted**2, axis=-1))
    return _ratio(shared, np.sqrt(spread), otherwise=0.0)


def _bleu(sums: Array, n: int) -> Array:
    """Papineni et al. 2002 with sacrebleu's 'exp' smoothing of orders without a match."""
    hypothesis, reference = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + BLEU_ORDERS], sums[..., 2 + BLEU_ORDERS :]
    # The k-th order without a match counts 1 / 2**k matches.
    missed = (correct == 0) & (total > 0)
    matches = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), correct)
    precision = 100 * _ratio(matches, total, otherwise=0.0)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.mean(np.log(precision), axis=-1))
    brevity = np.exp(np.minimum(0.0, 1 - _ratio(reference, hypothesis, otherwise=np.inf)))
    return np.where(np.any(correct > 0, axis=-1), brevity * mean, 0.0)


def _chrf(sums: Array, n: int) -> Array:
    """Popović 2015: F-score of the mean precision and recall over the orders that both have."""
    hypothesis, reference, match = (sums[..., place::3] for place in range(3))
    both = (hypothesis > 0) & (reference > 0)
    orders = np.sum(both, axis=-1)
    means = []
    for count in (hypothesis, reference):
        share = np.where(both, _ratio(match, count, otherwise=0.0), 0.0)
        means.append(_ratio(np.sum(share, axis=-1), orders, otherwise=0.0))
    precision, recall = means
    factor = CHRF_BETA**2
    return 100 * _ratio(
        (1 + factor) * precision * recall, factor * precision + recall, otherwise=0.0
    )


def _ter(sums: Array, n: int) -> Array:
    edits, length = sums[..., 0], sums[..., 1]
    return 100 * np.where(length > 0, _ratio(edits, length, otherwise=0.0), edits > 0)


def _ratio(top: Array, bottom: Array, *, otherwise: float) -> Array:
    out = np.full(np.broadcast(top, bottom).shape, otherwise)
    np.divide(top, bottom, out=out, where=bottom != 0)
    return out


def _chrf_columns(orders: int) -> tuple[str, ...]:
    kinds = ("hypothesis", "reference", "match")
    return tuple(f"{kind}_{order}" for order in range(1, orders + 1) for kind in kinds)


AGGREGATIONS: dict[str, Aggregation] = {
    "perplexity": Aggregation(
        columns=("log_likelihood",), higher_is_better=False, span=None, value=_perplexity
    ),
    "weighted_perplexity": Aggregation(
        columns=("log_likelihood", "size"),
        higher_is_better=False,
        span=None,
        value=_weighted_perplexity,
    ),
    # Documents that are not a number are left out, each model's own.
    "nanmean": Aggregation(
        columns=("value", "counted"), higher_is_better=None, span=None, value=_nanmean
    ),
    "f1": Aggregation(
        columns=("true_positive", "false_positive", "false_negative"),
        higher_is_better=True,
        span=1.0,
        value=_f1,
    ),
    "matthews_corrcoef": Aggregation(
        columns=("gold", "predicted"),
        higher_is_better=True,
        span=2.0,
        value=_matthews,
        by_class=True,
    ),
    "bleu": Aggregation(
        columns=(
            "hypothesis_length",
            "reference_length",
            *(f"correct_{order}" for order in range(1, BLEU_ORDERS + 1)),
            *(f"total_{order}" for order in range(1, BLEU_ORDERS + 1)),
        ),
        higher_is_better=True,
        span=100.0,
        value=_bleu,
    ),
    "chrf": Aggregation(
        columns=_chrf_columns(CHRF_ORDERS), higher_is_better=True, span=100.0, value=_chrf
    ),
    "chrf++": Aggregation(
        columns=_chrf_columns(CHRF_ORDERS + 2), higher_is_better=True, span=100.0, value=_chrf
    ),
    "ter": Aggregation(
        columns=("edits", "reference_length"), higher_is_better=False, span=None, value=_ter
    ),
}
"""lm-eval's aggregations that are not a mean, by its names."""
