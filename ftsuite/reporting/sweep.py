"""How the cells of a study lie on the axes of its sweep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord

MOST_SERIES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where a numeric sweep puts its cells."""

    key: str
    """The swept key on the x axis, such as `lora.r`."""
    other: str
    """The crossed key, one line a value; empty if there is none."""
    x: dict[str, float]
    """run_id → value of `key`."""
    series: dict[str, str]
    """run_id → value of `other`."""


def values(cell: RunRecord) -> dict[str, str]:
    """Return the overrides of a cell as key → value."""
    pairs = (entry.lstrip("+").partition("=") for entry in cell.overrides)
    return {key: value for key, found, value in pairs if found}


def swept_keys(cells: Sequence[RunRecord]) -> list[str]:
    """Return the keys that every cell overrides and whose values differ."""
    all_values = [values(cell) for cell in cells]
    keys = all_values[0] if all_values else {}
    return [
        key
        for key in keys
        if all(key in one for one in all_values) and len({one[key] for one in all_values}) > 1
    ]


def numeric_axis(cells: Sequence[RunRecord]) -> Axis | None:
    """Return the axis of a sweep over one number, or over two keys of which one is a number."""
    keys = swept_keys(cells)
    picked = {cell.run_id: values(cell) for cell in cells}
    # A seed is a number, but no quantity: a line over seeds would show a trend that is none.
    numeric = [
        key
        for key in keys
        if "seed" not in key and all(_number(v[key]) is not None for v in picked.values())
    ]
    if not numeric or len(keys) > 2:
        return None
    key = max(numeric, key=lambda name: len({v[name] for v in picked.values()}))
    other = next((name for name in keys if name != key), "")
    if other and len({v[other] for v in picked.values()}) > MOST_SERIES:
        return None
    places = {(v[key], v.get(other, "")) for v in picked.values()}
    if len(places) < len(cells):
        return None
    return Axis(
        key=key,
        other=other,
        x={run_id: float(v[key]) for run_id, v in picked.items()},
        series={run_id: v[other] if other else "" for run_id, v in picked.items()},
    )


def short_labels(cells: Sequence[RunRecord]) -> dict[str, str]:
    """Return a label a run_id for plots: `r=4` for `lora.r=4`, else the whole label."""
    keys, labels = swept_keys(cells), {}
    for cell in cells:
        picked = values(cell)
        text = ", ".join(f"{key.rsplit('.', 1)[-1]}={picked[key]}" for key in keys) or cell.label
        labels[cell.run_id] = text if len(text) <= 40 else f"{text[:39]}…"
    return labels


def wants_log(numbers: Sequence[float]) -> bool:
    """Say whether an axis over these numbers reads better on a logarithmic scale."""
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= 4


def log_base(numbers: Sequence[float]) -> int:
    """2 for ranks and other powers of two, else 10."""
    return 2 if all(number >= 1 and math.log2(number).is_integer() for number in numbers) else 10


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
