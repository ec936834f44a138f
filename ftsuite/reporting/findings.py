"""What the numbers say, in sentences: the recommendation, and what more cost buys.

Nothing is claimed that no test supports: what is within noise is called so, and what the items
could not have shown is said next to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.analysis.compare import corpus_value, find_comparison, find_metric
from ftsuite.analysis.ranking import cost
from ftsuite.analysis.statistics import Verdict
from ftsuite.reporting import evidence, gates, probes
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.sweep import swept_keys
from ftsuite.reporting.tables import difference_of, interval_of, train_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.records import Comparison, RunRecord
    from ftsuite.reporting.study import Study


def recommendation(study: Study) -> str:
    """Which cell to take and why, in a lead sentence and a few short points."""
    cell = study.pick
    if study.ranking is None:
        lead = f"**No recommendation: {fmt.escape(study.problem)}.**"
        if study.unfinished and not study.cells:
            return f"{lead} What went wrong is listed under *Cells that did not finish*."
        if study.rank_by or not study.cells:
            return lead
        return (
            f"{lead} The cells stand in the order of the study. To choose by the test table would "
            "be selection on the test set: choose on a validation metric, and report on the test "
            "split."
        )
    if study.only_seeds:
        return _seeds(study)
    if cell is None:
        lead = "Keep the base model"
        if study.headline and all(study.headline_verdict(c) is None for c in study.cells):
            lead = "No recommendation: no cell was compared with the base on the headline"
        return f"**{lead}.** {fmt.escape(study.ranking.reason)} See *Regressions and gates*."
    points = [_why(study, cell), _cost(cell), _watched(study, cell), _not_shown(study, cell)]
    return "\n".join([_lead(study, cell), "", *(f"- {point}" for point in points if point)])


def _seeds(study: Study) -> str:
    """Of repetitions none is to be chosen; how many of them agree is what they tell."""
    count = len(study.cells)
    better = sum(study.headline_verdict(cell) is Verdict.BETTER for cell in study.cells)
    headline = ""
    if study.headline in study.test_metrics:
        headline = f" On the headline {fmt.code(study.headline)}, {better} of {count} are better "
        headline += "than base."
    return (
        "**The cells differ in nothing but their seed, so there is nothing to choose.** What "
        f"separates them is chance, and shows how much the numbers vary.{headline}"
    )


def _lead(study: Study, cell: RunRecord) -> str:
    label, found = fmt.code(cell.label), find_comparison(cell, study.headline)
    outcome = study.headline_verdict(cell)
    chosen = study.rank_words if study.rank_split not in ("", "validation") else ""
    if found is None or found.refused or outcome is None:
        why = "No headline metric was compared with the base"
        if found and not found.refused:
            why = "The headline is the metric that ranks the cells, so it is not tested here"
        return f"**Of the cells, take {label}.** {why}: this says nothing about base against tuned."
    numbers = _headline_numbers(study, cell, found)
    if outcome is Verdict.BETTER:
        return f"**Take {label}{f' (chosen on {chosen})' if chosen else ''}.** Its {numbers}."
    if outcome is Verdict.WORSE:
        return f"**Keep the base.** {label} is worse on the headline: its {numbers}."
    better = [
        fmt.code(other.label)
        for other in study.cells
        if study.headline_verdict(other) is Verdict.BETTER
    ]
    verb = "is" if len(better) == 1 else "are"
    others = (
        f" {fmt.enumerate_words(better)} {verb} better than base on the headline, but to choose by "
        "that would be selection on the test set."
        if better
        else ""
    )
    return (
        f"**{label} is not shown to differ from the base; unless there is another reason to tune, "
        f"keep the base.** Of the cells it would be the one to take: its {numbers}, which is "
        f"within noise{_power(study, found)}.{others}"
    )


def _headline_numbers(study: Study, cell: RunRecord, found: Comparison) -> str:
    p_value = study.adjusted_p(cell, found.name)
    return (
        f"{fmt.metric_words(found.metric)} on the headline {fmt.code(found.name)} "
        f"({fmt.plural(found.n, 'document')}) goes from {fmt.score(found.base)} (base) to "
        f"{fmt.score(found.tuned)}, a difference of {difference_of(found)}"
        f"{'' if p_value is None else f', Holm {fmt.p_words(p_value)}'}"
    )


def _power(study: Study, found: Comparison) -> str:
    if study.hopeless(found.name):
        return (
            f"; with {fmt.plural(found.n, 'document')} and "
            f"{fmt.plural(study.tests, 'comparison')} no result could have been significant"
        )
    detectable = evidence.possible(found.metric, found.minimum_detectable)
    if detectable is None:
        return ""
    return f"; a single test at 5 % finds a difference of {fmt.score(detectable)} with 80 % power"


def _why(study: Study, cell: RunRecord) -> str:
    order = study.ranking
    assert order is not None  # there is no pick without a ranking
    mine = find_metric(cell.tuned, study.rank_by)
    documents = f", {fmt.plural(len(mine.doc_ids), 'document')}" if mine else ""
    text = (
        f"**Why this one.** It scores {interval_of(mine)} on {study.rank_words} "
        f"({fmt.code(study.rank_by)}{documents})"
    )
    if len(study.cells) == 1:
        return f"{text}; it is the only cell with scores, so nothing was chosen."
    ties = _best_cells(study)
    if cell not in ties:
        theirs = interval_of(find_metric(ties[0].tuned, study.rank_by))
        text += f"; the best score is {theirs} ({_names(ties)})"
    elif len(ties) > 1:
        text += f"; {_names(c for c in ties if c is not cell)} scored the same"
    text += f". {fmt.escape(order.reason)}"
    if mine and evidence.cannot_rank(len(study.cells), len(mine.doc_ids), study.alpha):
        text += " With so few documents no two cells can be told apart: cost alone decided."
    others = [
        c for c in study.cells if c.run_id in order.within_noise and c is not cell and c not in ties
    ]
    if others:
        verb = "is" if len(others) == 1 else "are"
        text += f" Also within noise of the best {verb} {_names(others)}."
    return text + _not_taken(study, cell)


def _not_taken(study: Study, cell: RunRecord) -> str:
    """Cells that would have gone before the recommended one, and what they fail."""
    order = study.ranking
    assert order is not None
    place = order.order.index(cell.run_id)
    said = []
    for other in study.cells:
        ahead = other.run_id in order.within_noise or other.run_id in order.order[:place]
        if other.run_id in order.excluded and ahead:
            numbers = gates.failing(other)
            said.append(
                f"{fmt.code(other.label)} {fmt.escape(order.excluded[other.run_id])}"
                f"{f' ({numbers})' if numbers else ''}"
            )
    return f" Not taken: {fmt.enumerate_words(said, most=4)}." if said else ""


def _best_cells(study: Study) -> list[RunRecord]:
    """The cells with the best ranking score; several in a tie."""
    scores = {
        cell.run_id: corpus_value(metric)
        for cell in study.cells
        if (metric := find_metric(cell.tuned, study.rank_by))
    }
    best = next(c for c in study.cells if study.ranking and c.run_id == study.ranking.best)
    return [c for c in study.cells if scores.get(c.run_id) == scores[best.run_id]]


def _names(cells: Iterable[RunRecord]) -> str:
    return fmt.enumerate_words([fmt.code(cell.label) for cell in cells])


def _cost(cell: RunRecord) -> str:
    if cell.train is None:
        return ""
    parameters, own = cost(cell)
    share = f"{100 * parameters / cell.train.total_parameters:.2g} %"
    since = cell.train.resumed_from_step
    resumed = f" after step {since:,}, where it was resumed" if since else ""
    return (
        f"**Cost.** {fmt.count(parameters)} trained parameters ({share} of the model with its "
        f"adapter), {fmt.seconds(train_seconds(cell))} of training{resumed}, {fmt.seconds(own)} "
        "with merge and evaluation."
    )


def _watched(study: Study, cell: RunRecord) -> str:
    said = []
    for name in study.watch:
        found = find_comparison(cell, name)
        if found is None or found.refused:
            said.append(f"{fmt.code(name)} was not compared with the base")
            continue
        word = study.verdict(cell, found) or "not tested, as it ranks the cells"
        said.append(
            f"{fmt.code(name)} {fmt.score(found.base)} → {fmt.score(found.tuned)} "
            f"({difference_of(found)}, {f'**{word}**' if word == Verdict.WORSE else word})"
        )
    said += _probe_changes(cell)
    text = "; ".join(said)
    return f"**Watched.** {text[0].upper()}{text[1:]}." if said else ""


def _probe_changes(cell: RunRecord) -> list[str]:
    changes = []
    for base in cell.base_probes.probes if cell.base_probes else ():
        tuned = probes.find(cell.tuned_probes, base.name)
        if tuned and any(answer.with_system for answer in (*base.answers, *tuned.answers)):
            before, after = (probes.passed(one, with_system=True) for one in (base, tuned))
            changes.append(
                f"probe *{fmt.escape(base.name)}* {probes.with_words(base)}: {after} answers pass "
                f"(base: {before})"
            )
    return changes


def _not_shown(study: Study, cell: RunRecord) -> str:
    said = [*_not_shown_on_validation(study, cell), *_not_shown_of_watched(study, cell)]
    for gate in cell.gates:
        if gate.passed and gates.undecided(gate, find_comparison(cell, gate.metric)):
            said.append(
                f"that the loss on {fmt.code(gate.metric)} is within the gate: the limit lies "
                "inside the interval of what was observed"
            )
    if not any(key.endswith("seed") for key in swept_keys(study.cells)):
        said.append("how much another training seed would change, as each cell was trained once")
    if not said:
        return ""
    text = "; ".join(said)
    return f"**Not shown.** {text[0].upper()}{text[1:]}."


def _not_shown_on_validation(study: Study, cell: RunRecord) -> list[str]:
    best = _best_cells(study)[0]
    if best is cell or cell.run_id not in study.near:
        return []
    apart = evidence.between(best, cell, study.rank_by)
    seen = apart and evidence.possible(study.rank_by, apart.minimum_detectable)
    limit = f" (a single test at 5 % finds a difference of {fmt.score(seen)})" if seen else ""
    return [
        f"that it is as good as {fmt.code(best.label)}: these documents do not tell the two "
        f"apart{limit}"
    ]


def _not_shown_of_watched(study: Study, cell: RunRecord) -> list[str]:
    said = []
    for name in study.watch:
        found = find_comparison(cell, name)
        if found is None or study.verdict(cell, found) is not Verdict.NOISE:
            continue
        said.append(
            f"that {fmt.code(name)} is unchanged{_power(study, found).replace(';', ':', 1)}"
        )
    return said


def quality_for_cost(study: Study) -> str:
    """What more parameters and time buy, from the recommended cell to the best."""
    cell = study.pick
    if cell is None or len(study.cells) < 2:
        return ""
    ties = _best_cells(study)
    if cell in ties:
        cheaper = [c for c in study.cells if cost(c) < cost(cell)]
        best = f"{fmt.code(cell.label)} has the best score on {study.rank_words}"
        if not cheaper:
            return f"{best} and the lowest cost."
        verb = "is" if len(cheaper) == 1 else "are"
        return f"{best}. {_names(cheaper)} {verb} cheaper, but significantly worse or not eligible."
    best_cell = ties[0]
    apart = evidence.between(cell, best_cell, study.rank_by)
    gain = f"{fmt.change(apart.difference)} {fmt.interval(apart.low, apart.high)}" if apart else "–"
    noise = ", which is within noise" if cell.run_id in study.near else ""
    return (
        f"From {fmt.code(cell.label)} to the best, {fmt.code(best_cell.label)}, the score on "
        f"{study.rank_words} changes by {gain}{noise}; the cost is {_extra(cell, best_cell)}."
    )


def _extra(cell: RunRecord, best: RunRecord) -> str:
    (less, own), (more, longer) = cost(cell), cost(best)
    times = "the same number of trained parameters"
    if less and more != less:
        times = f"{more / less:.1f} times the trained parameters"
    apart = longer - own
    if abs(apart) < 0.5:
        return f"{times} and the same time"
    return f"{times} and {fmt.seconds(abs(apart))} {'more' if apart > 0 else 'less'}"
