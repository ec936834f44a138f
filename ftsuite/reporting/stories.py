"""What each metric's table says, in sentences: chance, power, format failures, noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftsuite.analysis.compare import corpus_value, find_comparison, find_metric
from ftsuite.analysis.statistics import Verdict
from ftsuite.reporting import evidence
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import Comparison, MetricScores, RunRecord
    from ftsuite.reporting.study import Study

FORMAT_FAILURE = 0.05
"""Where generated answers match no more often than this, the format may be what fails."""


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
        split = f" of the {first.split} split" if first.split else ""
        sizes = {(len(metric.doc_ids), metric.available): None for metric in scores}
        counts = [f"{n:,} of {of:,}" if of > n else f"{n:,}" for n, of in sizes]
        one = list(sizes) == [(1, 1)]
        said.append(f"{fmt.either(counts)} document{'' if one else 's'}{split}.")
        said += filter(None, [_nats(study, name)])
    return " ".join([*said, power(study, name)]).rstrip()


def _nats(study: Study, name: str) -> str:
    """Bits per byte of right answers in nats a token too, the unit of training's loss."""
    pairs = [
        (base, tuned)
        for cell in study.cells
        if (base := find_metric(cell.base, name)) and (tuned := find_metric(cell.tuned, name))
    ]
    if not pairs or not all(metric.answer_tokens for pair in pairs for metric in pair):
        return ""
    bases = list(dict.fromkeys(fmt.score(_nats_a_token(base)) for base, _ in pairs))
    after = ", ".join(fmt.score(_nats_a_token(metric)) for _, metric in pairs)
    places = " (the cells in the study's order)" if len(pairs) > 1 else ""
    return f"In nats a token of the right answer: base {fmt.either(bases)}; tuned {after}{places}."


def _nats_a_token(metric: MetricScores) -> float:
    """Texts and tokens are the same for every model of a tokenizer, so this is a change of unit."""
    sizes = math.fsum(metric.weights or ())
    return corpus_value(metric) * math.log(2) * sizes / metric.answer_tokens


def power(study: Study, name: str) -> str:
    """What the documents can show on a metric; empty if nothing was compared."""
    found = [c for cell in study.cells if (c := find_comparison(cell, name)) and not c.refused]
    if not found:
        return ""
    if study.hopeless(name):
        few = fmt.either([f"{n:,}" for n in sorted({c.n for c in found})])
        floor = min(value for (_, metric), value in study.floors.items() if metric == name)
        return (
            f"**Nothing can be shown here:** with {few} documents and "
            f"{fmt.plural(study.tests, 'comparison')} the smallest possible p-value is "
            f"{fmt.p_value(floor)} after Holm's correction, and a verdict needs less than "
            f"{study.alpha:g}."
        )
    seen = [evidence.possible(c.metric, c.minimum_detectable) for c in found]
    known = [number for number in seen if number is not None]
    if not known:
        return ""
    low, high = fmt.score(min(known)), fmt.score(max(known))
    numbers = low if low == high else f"{low} to {high}"
    more = ""
    if study.tests > 1:
        more = f"; after the correction for {study.tests:,} comparisons it must be larger"
    return f"A single test at 5 % finds a difference of {numbers} with 80 % power{more}."


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
    compared = "compared " if decided < len(study.cells) else ""
    if decided and len(words[Verdict.NOISE]) == decided:
        who = f"none of the {decided:,} {compared}cells differs"
        if decided <= 2:
            who = "the score does not differ" if decided == 1 else f"neither {compared}cell differs"
        said.append(f"**Within noise:** {who} from base by more than these documents can tell.")
    elif decided > 1 and len(words[Verdict.BETTER]) == decided:
        both = "Both" if decided == 2 else f"All {decided:,}"
        said.append(f"{both} {compared}cells are better than base.")
    elif decided > 1:
        for word in Verdict:
            if words[word]:
                said.append(f"{str(word).capitalize()}: {fmt.enumerate_words(words[word])}.")
    return " ".join(part for part in said if part)


def _format_failure(study: Study, name: str) -> str:
    """Base fails the answer's format, yet tells the right answer from the wrong ones."""
    cell = study.shown
    found = find_comparison(cell, name) if cell else None
    mine = find_metric(cell.base, name) if cell else None
    if cell is None or found is None or found.base is None or mine is None:
        return ""
    if not found.metric.startswith("exact_match") or found.base > FORMAT_FAILURE:
        return ""
    base = "Base" if _one_base(study, name) else f"The base of {fmt.code(cell.label)}"
    scored = f"{base} scores {fmt.score(found.base)} here ({fmt.plural(found.n, 'document')})"
    choice = _choice_metric(study, cell, name)
    point = evidence.point_of(choice)
    if choice is None or choice.chance is None or point is None:
        return (
            f"{scored}: whether it cannot do the task or only fails the answer's format is not "
            "measured; a task that lets it choose between given answers would tell."
        )
    there = f"{fmt.score(point[0])} on {fmt.code(choice.name)}"
    chance = fmt.score(choice.chance)
    if point[1] <= choice.chance:
        return (
            f"{scored} and {there}, where it only chooses between given answers (chance {chance}): "
            "it is not shown to know the task, whatever the format."
        )
    return (
        f"**The format may be what base fails:** {scored[0].lower()}{scored[1:]}, but {there}, "
        f"where it only chooses between given answers (chance {chance})."
        f"{_without_format(study, choice.name)}"
    )


def _without_format(study: Study, name: str) -> str:
    """The same cells on the metric that does not ask for a format; empty if not compared."""
    found = [c for cell in study.cells if (c := find_comparison(cell, name)) and not c.refused]
    tuned = sorted(c.tuned for c in found if c.tuned is not None)
    if not tuned or len({(c.base, c.n) for c in found}) > 1:
        return ""
    low, high = fmt.score(tuned[0]), fmt.score(tuned[-1])
    return (
        f" Without the format, on the {fmt.plural(found[0].n, 'document')} of that metric, the "
        f"scores go from {fmt.score(found[0].base)} (base) to "
        f"{low if low == high else f'between {low} and {high}'} (tuned)."
    )


def _one_base(study: Study, name: str) -> bool:
    return len(evidence.different(find_metric(cell.base, name) for cell in study.cells)) <= 1


def _choice_metric(study: Study, cell: RunRecord, name: str) -> MetricScores | None:
    """The metric with a chance level of a task of the same family (`intent_…`)."""
    metrics = [m for m in (cell.base.metrics if cell.base else ()) if m.chance is not None]
    metrics = [m for m in metrics if m.name != study.rank_by and len(m.doc_ids) > 1]
    family = name.split("/")[0].split("_")[0]
    related = [m for m in metrics if m.task.split("_")[0] == family]
    return next(iter(related), None)


def _chance(pairs: Sequence[tuple[RunRecord, Comparison]], name: str) -> str:
    """Say so when a model is not shown to be above a random choice."""
    said = []
    bases = evidence.different(find_metric(cell.base, name) for cell, _ in pairs)
    if any(_not_above(metric) for metric in bases):
        of = "Base is" if len(bases) == 1 else "At least one base is"
        said.append(f"{of} not shown to be above chance.")
    tuned = [(cell, find_metric(cell.tuned, name)) for cell, _ in pairs]
    cells = [fmt.code(cell.label) for cell, metric in tuned if metric and _not_above(metric)]
    if cells:
        said.append(f"Not shown to be above chance after tuning: {fmt.enumerate_words(cells)}.")
    return " ".join(said)


def _not_above(metric: MetricScores) -> bool:
    point = evidence.point_of(metric)
    if metric.chance is None or point is None or len(metric.doc_ids) < 2:
        return False
    return point[1] <= metric.chance
