"""What the numbers say, in sentences: the recommendation and each metric's story.

Nothing is claimed that no test supports: what is within noise is called so, and what the items
could not have shown is said next to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.compare import find_comparison, find_metric, paired
from ftsuite.ranking import cost
from ftsuite.reporting import formats as fmt
from ftsuite.reporting import probes
from ftsuite.reporting.tables import difference_of, interval_of, train_seconds
from ftsuite.statistics import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord
    from ftsuite.reporting.study import Study


def recommendation(study: Study) -> str:
    """Which cell to take and why, in a lead sentence and a few short points."""
    cell = study.pick
    if study.ranking is None:
        lead = f"**No recommendation: {study.problem}.**"
        if not study.cells:
            return f"{lead} What went wrong is listed under *Cells that did not finish*."
        if study.rank_by:
            return lead
        return (
            f"{lead} The cells stand in the order of the study. To choose by the test table would "
            "be selection on the test set; a validation metric decides, the test split reports."
        )
    if cell is None:
        return (
            f"**Keep the base model.** {fmt.escape(study.ranking.reason)} See *Regressions and "
            "gates*."
        )
    points = [_why(study, cell), _cost(study, cell), _watched(study, cell), _not_shown(study, cell)]
    return "\n".join([_lead(study, cell), "", *(f"- {point}" for point in points if point)])


def _lead(study: Study, cell: RunRecord) -> str:
    label, found = fmt.code(cell.label), find_comparison(cell, study.headline)
    outcome = study.headline_verdict(cell)
    if found is None or outcome is None:
        return (
            f"**Of the cells, take {label}.** No headline metric was compared with the base, so "
            "this says nothing about base against tuned."
        )
    p_value = study.adjusted_p(cell, found.name)
    numbers = (
        f"{fmt.metric_words(found.metric)} on the headline {fmt.code(found.name)} "
        f"({fmt.plural(found.n, 'document')}) goes from {fmt.score(found.base)} (base) to "
        f"{fmt.score(found.tuned)}, a difference of {difference_of(found)}"
        f"{'' if p_value is None else f', Holm {fmt.p_words(p_value)}'}"
    )
    if outcome is Verdict.BETTER:
        return f"**Take {label}.** Its {numbers}."
    detectable = found.minimum_detectable
    power = f"; {fmt.score(detectable)} is what they detect" if detectable is not None else ""
    return (
        "**No reliable difference from the base was found; unless there is another reason to tune, "
        f"keep the base.** Of the cells {label} would be the one to take: its {numbers}, which is "
        f"within noise of these documents{power}."
    )


def _why(study: Study, cell: RunRecord) -> str:
    order = study.ranking
    assert order is not None  # there is no pick without a ranking
    mine = find_metric(cell.tuned, study.rank_by)
    text = (
        f"**Why this one.** It scores {interval_of(mine)} on validation ({fmt.code(study.rank_by)}"
    )
    text += f", {fmt.plural(len(mine.doc_ids), 'document')})" if mine else ")"
    if len(study.cells) == 1:
        return f"{text}; it is the only cell that finished, so nothing was chosen."
    best = next(other for other in study.cells if other.run_id == order.best)
    if best is not cell:
        theirs = interval_of(find_metric(best.tuned, study.rank_by))
        text += f"; the best is {fmt.code(best.label)} with {theirs}"
    text += f". {order.reason}"
    others = [c for c in study.cells if c.run_id in order.within_noise - {best.run_id, cell.run_id}]
    if others:
        names = fmt.enumerate_words([fmt.code(c.label) for c in others])
        verb = "is" if len(others) == 1 else "are"
        text += f" {names[0].upper()}{names[1:]} {verb} also within noise of the best."
    place = order.order.index(cell.run_id)
    passed_over = [
        f"{fmt.code(c.label)} {fmt.escape(order.excluded[c.run_id])}"
        for c in study.cells
        if c.run_id in order.excluded
        and (c.run_id in order.within_noise or c.run_id in order.order[:place])
    ]
    return text + (
        f" Passed over: {fmt.enumerate_words(passed_over, most=4)}." if passed_over else ""
    )


def _cost(study: Study, cell: RunRecord) -> str:
    if cell.train is None:
        return ""
    parameters, own = cost(cell)
    share = f"{100 * parameters / cell.train.total_parameters:.2g} %"
    return (
        f"**Cost.** {fmt.count(parameters)} trained parameters ({share} of the model), "
        f"{fmt.seconds(train_seconds(cell))} of training, {fmt.seconds(own)} with merge and "
        "evaluation."
    )


def _watched(study: Study, cell: RunRecord) -> str:
    said = []
    for name in study.watch:
        found = find_comparison(cell, name)
        if found is None or found.refused:
            said.append(f"{fmt.code(name)} has no delta")
            continue
        word = study.verdict(cell, found)
        said.append(
            f"{fmt.code(name)} {fmt.score(found.base)} → {fmt.score(found.tuned)} "
            f"({difference_of(found)}, {f'**{word}**' if word is Verdict.WORSE else word})"
        )
    said += _probe_changes(cell)
    return f"**Watched.** {'; '.join(said)}." if said else ""


def _probe_changes(cell: RunRecord) -> list[str]:
    changes = []
    for base in cell.base_probes.probes if cell.base_probes else ():
        tuned = probes.find(cell.tuned_probes, base.name)
        if tuned:
            before, after = (probes.passed(one, with_system=True) for one in (base, tuned))
            changes.append(
                f"probe *{fmt.escape(base.name)}* with its system prompt passes {after} answers, "
                f"base {before}"
            )
    return changes


def _not_shown(study: Study, cell: RunRecord) -> str:
    said, order = [], study.ranking
    best = next((c for c in study.cells if order and c.run_id == order.best), None)
    if best is not None and best is not cell and cell.run_id in study.near:
        seen = _between(best, cell, study.rank_by)
        limit = f" (they detect a difference of {fmt.score(seen)})" if seen is not None else ""
        said.append(
            f"that it is as good as {fmt.code(best.label)}, only that these validation "
            f"documents do not tell the two apart{limit}"
        )
    for name in study.watch:
        found = find_comparison(cell, name)
        if found and study.verdict(cell, found) is Verdict.NOISE and found.minimum_detectable:
            said.append(
                f"that {fmt.code(name)} is unchanged: {fmt.plural(found.n, 'document')} detect "
                f"a difference of {fmt.score(found.minimum_detectable)}"
            )
    if not any("train.seed" in entry for c in study.records for entry in c.overrides):
        said.append("how much another training seed would change, as each cell was trained once")
    return f"**Not shown.** {_sentence(said)}" if said else ""


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _between(best: RunRecord, other: RunRecord, name: str) -> float | None:
    one, two = find_metric(best.tuned, name), find_metric(other.tuned, name)
    if one is None or two is None or len(one.doc_ids) < 2:
        return None
    return paired(one, two).minimum_detectable


def losses(study: Study) -> str:
    """One sentence over all cells: what got worse, or what could not have been seen."""
    lost = {
        cell.label: names
        for cell in study.cells
        if (names := [c.name for c in cell.comparisons if study.verdict(cell, c) == "worse"])
    }
    failing = [fmt.code(c.label) for c in study.cells if not all(g.passed for g in c.gates)]
    said = []
    if lost:
        said.append(
            f"Significantly worse than base on at least one metric: "
            f"{fmt.enumerate_words([fmt.code(label) for label in lost])}."
        )
    else:
        said.append(
            "No metric got significantly worse, which is no proof that nothing was lost: see what "
            "each table can detect."
        )
    if failing:
        said.append(f"A gate fails for {fmt.enumerate_words(failing)}.")
    elif any(cell.gates for cell in study.cells):
        said.append("Every gate passes.")
    else:
        said.append("No gates were configured (`gates.max_worse`).")
    return " ".join(said)


def quality_for_cost(study: Study) -> str:
    """What more parameters and time buy, from the recommended cell to the best."""
    cell, order = study.pick, study.ranking
    if cell is None or order is None or len(study.cells) < 2:
        return ""
    best = next(other for other in study.cells if other.run_id == order.best)
    if best is cell:
        cheaper = [c for c in study.cells if cost(c) < cost(cell)]
        if not cheaper:
            return f"{fmt.code(cell.label)} is the best and the cheapest."
        names = fmt.enumerate_words([fmt.code(c.label) for c in cheaper])
        qualifier = "significantly worse on validation or passed over"
        return f"The cheaper {names} {'is' if len(cheaper) == 1 else 'are'} {qualifier}."
    one, two = find_metric(cell.tuned, study.rank_by), find_metric(best.tuned, study.rank_by)
    assert one is not None and two is not None  # both were ranked by it
    apart = paired(one, two) if len(one.doc_ids) > 1 else None
    gain = f"{fmt.change(apart.difference)} {fmt.interval(apart.low, apart.high)}" if apart else "–"
    times = cost(best)[0] / cost(cell)[0] if cost(cell)[0] else 0.0
    longer = cost(best)[1] - cost(cell)[1]
    extra = f" and {fmt.seconds(longer)} more" if longer >= 0.5 else ""
    return (
        f"From {fmt.code(cell.label)} to the best, {fmt.code(best.label)}, validation changes by "
        f"{gain} for {times:.1f} times the trained parameters{extra}."
    )
