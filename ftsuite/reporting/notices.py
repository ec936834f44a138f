"""What a reader must know before the numbers: subsets, stand-ins, gaps and caveats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.compare import find_metric
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
        *_documents(study),
        *_ranking(study),
        *_refusals(study),
        *_gaps(study),
        *_provenance(study),
    ]


def selected_on_test(study: Study) -> list[str]:
    """The report's first line, where the cell was chosen by documents that report it too."""
    for cell in study.cells:
        ranking = find_metric(cell.tuned, study.rank_by)
        headline = find_metric(cell.tuned, study.headline)
        if ranking is None:
            continue
        name = fmt.code(ranking.name)
        if ranking.split == "test":
            return [
                f"**The cells were ranked on a test split ({name}).** The chosen cell's score "
                "on it is too good, for it was chosen by it; other data must confirm it."
            ]
        if headline is not None and headline.docs_sha256 == ranking.docs_sha256:
            return [
                f"**The cells were ranked on the documents of the headline ({name}).** The chosen "
                "cell's score on them is too good; other data must confirm it."
            ]
    return []


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
    source = fmt.code(data.source)
    for split in data.splits:
        verb = {"train": "Trained", "validation": "Validation loss", "test": "Tested"}[split.name]
        if split.rows < split.available:
            yield (
                f"{verb} on {split.rows:,} of {split.available:,} {split.name} rows of {source} "
                "(seeded subset)."
            )
        if split.truncated:
            rows = fmt.plural(split.truncated, "row")
            yield f"{rows} of {source} ({split.name}) were cut at the longest length."
    if data.dropped:
        counts = [f"{n:,} {fmt.escape(why)}" for why, n in sorted(data.dropped.items())]
        total = fmt.plural(sum(data.dropped.values()), "row")
        yield f"{total} of {source} dropped: {', '.join(counts)}."
    packed = any(split.sequences < split.rows for split in data.splits)
    if packed and not data.documents_isolated:
        yield (
            f"Packed documents (`{data.packing}`) can see each other in training: attention is not "
            "masked at their borders."
        )


def _documents(study: Study) -> list[str]:
    subsets = {
        metric.task: (len(metric.values), metric.available)
        for cell in study.cells
        if cell.tuned
        for metric in cell.tuned.metrics
        if len(metric.values) < metric.available
    }
    return _distinct(
        f"{fmt.code(task)} was scored on {n:,} of {available:,} documents (seeded subset)."
        for task, (n, available) in sorted(subsets.items())
    )


def _ranking(study: Study) -> list[str]:
    if study.problem and study.rank_by and study.cells:
        return [f"The cells are not ranked: {fmt.escape(study.problem)}."]
    if study.ranking and study.ranking.caveats:
        differing = fmt.enumerate_words(study.ranking.caveats)
        return [f"The ranked cells were scored under conditions that differ in: {differing}."]
    return []


def _refusals(study: Study) -> list[str]:
    reasons: dict[str, int] = {}
    for cell in study.cells:
        for comparison in cell.comparisons:
            if comparison.refused:
                reasons[comparison.refused] = reasons.get(comparison.refused, 0) + 1
    return _distinct(
        f"{fmt.plural(times, 'delta')} refused: {fmt.escape(reason, limit=400)}."
        for reason, times in reasons.items()
    )


def _gaps(study: Study) -> list[str]:
    said = []
    if study.unfinished:
        labels = fmt.enumerate_words([fmt.code(cell.label) for cell in study.unfinished])
        said.append(f"{fmt.plural(len(study.unfinished), 'cell')} did not finish: {labels}.")
    if study.missing:
        labels = fmt.enumerate_words([fmt.code(entry.label) for entry in study.missing])
        said.append(f"{fmt.plural(len(study.missing), 'cell')} never ran: {labels}.")
    return said


def _provenance(study: Study) -> list[str]:
    said = []
    if any(record.provenance.git_dirty for record in study.records):
        said.append("Made from a working tree with uncommitted changes.")
    commits = {record.provenance.git_commit for record in study.records}
    if len(commits) > 1:
        said.append(f"The cells were made with {len(commits)} different commits of ftsuite.")
    return said
