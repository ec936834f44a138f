"""What each metric's table says, in sentences: chance, power, format failures, noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.compare import find_comparison, find_metric, value_interval
from ftsuite.reporting import formats as fmt
from ftsuite.statistics import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import Comparison, MetricScores, RunRecord
    from ftsuite.reporting.study import Study

FORMAT_FAILURE = 0.05
"""A generated answer that matches less often than this is a failure of format, if the same
model tells the right answer from the wrong ones."""


def metric_notes(study: Study, name: str) -> str:
    """What to know before reading a metric's table: direction, chance, documents, power."""
    pairs = [(cell, found) for cell in study.cells if (found := find_comparison(cell, name))]
    found = pairs[0][1]
    scores = [metric for cell, _ in pairs if (metric := find_metric(cell.tuned, name))]
    kind = fmt.metric_words(found.metric)
    direction = "higher" if found.higher_is_better else "lower"
    said = [f"{kind[0].upper()}{kind[1:]}; {direction} is better."]
    if scores:
        first = scores[0]
        if first.chance is not None:
            said.append(f"A random choice scores {fmt.score(first.chance)}.")
        of = f" of {first.available:,}" if first.available > len(first.doc_ids) else ""
        said.append(f"{len(first.doc_ids):,}{of} documents.")
    detectable = [c.minimum_detectable for _, c in pairs if c.minimum_detectable is not None]
    if detectable:
        low, high = fmt.score(min(detectable)), fmt.score(max(detectable))
        spread = low if low == high else f"{low} to {high}"
        said.append(f"They detect a difference of {spread} (80 % power at 5 %).")
    return " ".join(said)


def metric_story(study: Study, name: str) -> str:
    """What a metric's table says, in a few sentences; empty if the table says it all."""
    pairs = [(cell, found) for cell in study.cells if (found := find_comparison(cell, name))]
    words: dict[Verdict, list[str]] = {word: [] for word in Verdict}
    for cell, found in pairs:
        word = study.verdict(cell, found)
        if word is not None:
            words[word].append(fmt.code(cell.label))
    said = [_format_failure(study, name), _chance(pairs, name)]
    decided = sum(len(labels) for labels in words.values())
    if decided and len(words[Verdict.NOISE]) == decided:
        who = "the cell's score" if decided == 1 else f"none of the {decided:,} cells' scores"
        does = "does not differ" if decided == 1 else "differs"
        said.append(
            f"**Within noise:** {who} {does} from base by more than these documents can tell."
        )
    elif decided > 1 and len(words[Verdict.BETTER]) == decided:
        said.append(f"All {decided:,} cells are better than base.")
    else:
        for word in Verdict:
            if words[word] and decided > 1:
                said.append(f"{str(word).capitalize()}: {fmt.enumerate_words(words[word])}.")
    return " ".join(part for part in said if part)


def _format_failure(study: Study, name: str) -> str:
    """Base fails the answer's format, yet tells the right answer from the wrong ones."""
    cell = study.shown
    found = find_comparison(cell, name) if cell else None
    mine = find_metric(cell.base, name) if cell else None
    if cell is None or found is None or found.base is None or mine is None:
        return ""
    if mine.chance is not None or not found.higher_is_better or found.base > FORMAT_FAILURE:
        return ""
    choice = _choice_metric(study, cell, name)
    if choice is None:
        return (
            f"Base scores {fmt.score(found.base)}: whether it cannot do the task or only fails the "
            "answer's format is not measured here; a label choice by log-likelihood would tell."
        )
    mean, low, _ = value_interval(choice)
    chance = fmt.score(choice.chance)
    if choice.chance is not None and low > choice.chance:
        return (
            f"**Part of this delta is format:** base scores {fmt.score(found.base)} here, yet "
            f"{fmt.score(mean)} on {fmt.code(choice.name)}, where it only has to prefer the right "
            f"label (chance {chance}). It knows some of the task but does not answer in the form "
            f"that is asked for; the fair baseline is {fmt.score(mean)}."
        )
    return (
        f"Base scores {fmt.score(found.base)} here and {fmt.score(mean)} on "
        f"{fmt.code(choice.name)}, which is not above chance ({chance}): it can do neither the "
        "format nor the task."
    )


def _choice_metric(study: Study, cell: RunRecord, name: str) -> MetricScores | None:
    """The metric with a chance level that shares the task's family (`intent_…`), else headline."""
    metrics = [m for m in (cell.base.metrics if cell.base else ()) if m.chance is not None]
    metrics = [m for m in metrics if m.name != study.rank_by and len(m.doc_ids) > 1]
    family = name.split("/")[0].split("_")[0]
    related = [m for m in metrics if m.task.split("_")[0] == family]
    return next(iter(related), None)


def _chance(pairs: Sequence[tuple[RunRecord, Comparison]], name: str) -> str:
    """Say so when a model is not above a random choice."""
    base = find_metric(pairs[0][0].base, name)
    if base is None or base.chance is None or len(base.doc_ids) < 2:
        return ""
    said = []
    if _not_above(base):
        said.append("Base is not above chance.")
    tuned = [(cell, find_metric(cell.tuned, name)) for cell, _ in pairs]
    low = [fmt.code(cell.label) for cell, metric in tuned if metric and _not_above(metric)]
    if low:
        said.append(f"Not above chance after tuning: {fmt.enumerate_words(low)}.")
    return " ".join(said)


def _not_above(metric: MetricScores) -> bool:
    if metric.chance is None or len(metric.doc_ids) < 2:
        return False
    return value_interval(metric)[1] <= metric.chance
