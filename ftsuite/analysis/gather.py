"""The scores of single tasks as the scores of one model."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from ftsuite.records import Conditions, Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BY_TASK = ("num_fewshot", "generation", "stop", "seeds", "bos")
"""Conditions that may differ between tasks: then each value is named with its tasks."""


def scores_of(parts: Mapping[str, Scores]) -> Scores:
    """Put the scores of several tasks together.

    Args:
        parts: by the task's name, at least one.
    """
    scores = list(parts.values())
    return Scores(
        conditions=_conditions({name: part.conditions for name, part in parts.items()}),
        metrics=tuple(metric for part in scores for metric in part.metrics),
        tokens=sum(part.tokens for part in scores),
        generation_ignored=_distinct([part.generation_ignored for part in scores]),
        left_out={name: n for part in scores for name, n in part.left_out.items()},
    )


def _conditions(parts: Mapping[str, Conditions]) -> Conditions:
    """What held for all tasks; where tasks differ, the values one after another."""
    first = next(iter(parts.values()))
    joined: dict[str, str] = {}
    for field in dataclasses.fields(Conditions):
        values = {name: str(getattr(part, field.name)) for name, part in parts.items()}
        if len(set(values.values())) == 1:
            continue
        if field.name == "system_prompt":
            # A digest of each task's; of all together here.
            text = "\0".join(values[name] for name in sorted(values))
            joined[field.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        elif field.name == "num_fewshot":
            joined[field.name] = _fewshot(list(values.values()))
        else:
            joined[field.name] = _distinct(list(values.values()))
    changed: Conditions = dataclasses.replace(first, **joined)  # type: ignore[arg-type]
    return changed


def _fewshot(values: Sequence[str]) -> str:
    """'a: 0; as turns' and 'b: 5; as turns' as 'a: 0, b: 5; as turns'."""
    ends = {value.rpartition("; ")[2] for value in values}
    heads = [value.rpartition("; ")[0] for value in values]
    return f"{', '.join(heads)}; {', '.join(sorted(ends))}"


def _distinct(values: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
