"""What a reader must know before the numbers: stand-ins, refusals, gaps and caveats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.analysis.compare import find_metric
from ftsuite.reporting import evidence
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.records import RunRecord
    from ftsuite.reporting.study import Study


MOST_NOTICES = 8
"""Notices of one kind; a study over data sets could have one a cell."""


def notices(study: Study) -> list[str]:
    """Return the notices, one Markdown paragraph each; each is said once for all cells."""
    return [
        *_distinct(note for record in study.records for note in _model(record)),
        *_distinct(note for record in study.records for note in _data(record)),
        *_distinct(f"{fmt.escape(note)}." for record in study.records for note in record.notes),
        *_training(study),
        *_ranking(study),
        *_power(study),
        *_refusals(study),
        *_gaps(study),
        *_provenance(study),
    ]


def _distinct(notes: Iterable[str]) -> list[str]:
    distinct = list(dict.fromkeys(notes))
    left_out = len(distinct) - MOST_NOTICES
    if left_out <= 0:
        return distinct
    return [*distinct[:MOST_NOTICES], f"And {left_out:,} more of this kind, in the records."]


def _model(record: RunRecord) -> Iterable[str]:
    if record.model and record.model.note:
        yield (
            f"The base is {fmt.code(record.model.id)}, **{fmt.escape(record.model.note)}**: not "
            "the published weights, so its scores are not those of the published model."
        )


def _data(record: RunRecord) -> Iterable[str]:
    data = record.data
    if data is None:
        return
    for split in data.splits:
        if split.truncated:
            rows = fmt.plural(split.truncated, "row")
            verb = "was" if split.truncated == 1 else "were"
            of = f" of {fmt.code(split.source)}" if split.source else ""
            yield f"{rows}{of} ({split.name}) {verb} cut at the longest length."
    if data.dropped:
        counts = [f"{n:,} {fmt.escape(why)}" for why, n in sorted(data.dropped.items())]
        total = fmt.plural(sum(data.dropped.values()), "row")
        yield f"{total} of the data dropped: {', '.join(counts)}."
    for note in data.notes:
        yield f"Data: {fmt.escape(note)}."
    packed = any(split.sequences < split.rows for split in data.splits)
    if packed and not data.documents_isolated:
        yield (
            f"Packed documents (`{data.packing}`) can see each other in training: attention is not "
            "masked at their borders."
        )


def _training(study: Study) -> list[str]:
    resumed = [
        f"{fmt.code(cell.label)} from step {cell.train.resumed_from_step:,}"
        for cell in study.cells
        if cell.train and cell.train.resumed_from_step
    ]
    if not resumed:
        return []
    return [
        f"Training was stopped and resumed: {fmt.enumerate_words(resumed)}. Its time counts only "
        "the steps after that."
    ]


def _ranking(study: Study) -> list[str]:
    said = []
    if study.ranking and study.ranking.caveats:
        differing = fmt.enumerate_words([fmt.escape(caveat) for caveat in study.ranking.caveats])
        said.append(f"The ranked cells were scored under conditions that differ in: {differing}.")
    metric = find_metric(study.cells[0].tuned, study.rank_by) if study.ranking else None
    if metric and evidence.cannot_rank(len(study.cells), len(metric.doc_ids), study.alpha):
        documents = fmt.plural(len(metric.doc_ids), "document")
        said.append(
            f"{documents} of {fmt.code(study.rank_by)} cannot tell any cell from the best at "
            f"{study.alpha:g}, whatever their scores."
        )
    return said


def _power(study: Study) -> list[str]:
    hopeless = [fmt.code(name) for name in study.test_metrics if study.hopeless(name)]
    if not hopeless:
        return []
    return [
        f"Too few documents: no result on {fmt.enumerate_words(hopeless)} can be significant after "
        f"the correction for {fmt.plural(study.tests, 'comparison')}."
    ]


def _refusals(study: Study) -> list[str]:
    reasons: dict[str, int] = {}
    for cell in study.cells:
        for comparison in cell.comparisons:
            if comparison.refused:
                reasons[comparison.refused] = reasons.get(comparison.refused, 0) + 1
    return _distinct(
        f"{fmt.plural(times, 'difference')} refused: {fmt.escape(reason, limit=400)}."
        for reason, times in reasons.items()
    )


def _gaps(study: Study) -> list[str]:
    said = []
    for cells, what in (
        (study.unfinished, "did not finish"),
        (study.unscored, "finished, but nothing was scored"),
        (study.missing, "was not run" if len(study.missing) == 1 else "were not run"),
    ):
        if cells:
            labels = fmt.enumerate_words([fmt.code(cell.label) for cell in cells])
            said.append(f"{fmt.plural(len(cells), 'cell')} {what}: {labels}.")
    return said


def _provenance(study: Study) -> list[str]:
    said = []
    if any(record.provenance.git_dirty for record in study.records):
        said.append("Made from a working tree with uncommitted changes.")
    commits = {record.provenance.git_commit for record in study.records}
    if len(commits) > 1:
        said.append(f"The cells were made with {len(commits)} different commits of ftsuite.")
    return said
