"""The conditions that every number of the report rests on, on its first page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ftsuite.records import Conditions, MergeSummary, MetricScores, RunRecord, SplitSummary
    from ftsuite.reporting.study import Study

MOST_TASKS = 8
"""Tasks that are listed with their documents; MMLU has 57 subjects."""
PLACES = {
    "native": "in the template's own place",
    "first_user": "in front of the first user turn",
    "none": "there are none",
}
"""Values of `Conditions.system_place` in words."""


def conditions(study: Study) -> str:
    """A short table; where cells differ, their values stand together."""
    records = study.records
    rows = [
        ["base model", _join(_model(record) for record in records)],
        ["device and number format", _join(_device(record) for record in records)],
        ["chat template", _join(_template(record) for record in records)],
        ["system messages", _join(_scores(records, _system))],
        ["few-shot examples", _join(_scores(records, lambda at: at.num_fewshot), limit=300)],
        ["ranked on", _ranked_on(study)],
        ["scored on", _documents(study)],
        ["trained on", _join(_split(record, "train") for record in records)],
        ["validation loss on", _join(_split(record, "validation") for record in records)],
        ["packed documents", _isolation(records)],
        ["merge check", _merge_check(records)],
    ]
    known = [row for row in rows if row[1]]
    return fmt.table(["what", "value"], known) if known else ""


def _join(values: Iterable[str], *, limit: int | None = None) -> str:
    distinct = [fmt.escape(value, limit=limit) for value in dict.fromkeys(values) if value]
    return fmt.enumerate_words(distinct, most=4) if distinct else ""


def _model(record: RunRecord) -> str:
    if record.model is None:
        return ""
    return f"{record.model.id}{f' ({record.model.note})' if record.model.note else ''}"


def _device(record: RunRecord) -> str:
    return f"{record.provenance.device}; {record.provenance.dtype}"


def _template(record: RunRecord) -> str:
    scores = record.tuned or record.base
    name = record.config["template"]["name"]
    words = "the model's own" if name == "model" else name
    return f"{words}, sha256 {scores.conditions.template_sha256[:12]}" if scores else words


def _scores(records: Iterable[RunRecord], words: Callable[[Conditions], str]) -> list[str]:
    found = [record.tuned or record.base for record in records]
    return [words(scores.conditions) for scores in found if scores]


def _system(at: Conditions) -> str:
    return PLACES.get(at.system_place, at.system_place)


def _ranked_on(study: Study) -> str:
    if not study.rank_by:
        return "nothing: `evals.rank_by` is empty"
    if study.rank_split:
        return f"{fmt.code(study.rank_by)}, of the {study.rank_split} split"
    return f"{fmt.code(study.rank_by)}; the records do not say of which split"


def _documents(study: Study) -> str:
    """Each task's documents, once for each number of them."""
    found: dict[str, None] = {}
    for metric in _metrics(study):
        split = f" ({metric.split} split)" if metric.split else ""
        n, of = len(metric.doc_ids), metric.available
        amount = f"{n:,} of {of:,} documents, a seeded subset" if n < of else f"all {n:,} documents"
        found[f"{fmt.code(metric.task)}{split}: {amount}"] = None
    left_out = f"; and {len(found) - MOST_TASKS:,} more" if len(found) > MOST_TASKS else ""
    return "; ".join(list(found)[:MOST_TASKS]) + left_out


def _metrics(study: Study) -> list[MetricScores]:
    return [metric for cell in study.cells if cell.tuned for metric in cell.tuned.metrics]


def _split(record: RunRecord, name: str) -> str:
    data = record.data
    split = next((one for one in data.splits if one.name == name), None) if data else None
    if split is None:
        return ""
    source = f" of {split.source}" if split.source else ""
    return f"{_rows(record, split)}{source}{_cut_short(record, split)}"


def _cut_short(record: RunRecord, split: SplitSummary) -> str:
    """How little of the rows was trained on where `train.max_steps` ended training early."""
    steps = record.config["train"].get("max_steps")
    if split.name != "train" or steps is None or record.train is None or record.train.epochs >= 1:
        return ""
    share = f"{record.train.epochs:.0%}"
    return f", of which the {fmt.plural(steps, 'step')} of train.max_steps saw {share}"


def _rows(record: RunRecord, split: SplitSummary) -> str:
    """`160 of 640 rows, a seeded subset`; dropped rows are told apart from those not taken."""
    limit = record.config["data"].get(f"{split.name}_limit")
    taken = split.available if limit is None else min(limit, split.available)
    if split.conversations:
        of = f" of {split.available:,}" if split.conversations < split.available else ""
        return f"{split.rows:,} rows made of {split.conversations:,}{of} conversations"
    if split.rows == split.available:
        return fmt.plural(split.rows, "row") if split.rows < 2 else f"all {split.rows:,} rows"
    text = f"{split.rows:,} of {split.available:,} rows"
    dropped = f"{taken - split.rows:,} dropped" if split.rows < taken else ""
    subset = "a seeded subset" if taken < split.available else ""
    return ", ".join(part for part in (text, subset, dropped) if part)


def _isolation(records: Iterable[RunRecord]) -> str:
    """What the isolation of packed documents was measured to be, in the worst cell."""
    packed = [
        record
        for record in records
        if record.data and any(split.sequences < split.rows for split in record.data.splits)
    ]
    if not packed:
        return ""
    measured = [
        record.train.isolation_difference
        for record in packed
        if record.train and record.train.isolation_difference is not None
    ]
    apart = all(record.data.documents_isolated for record in packed if record.data)
    claim = "cannot see each other" if apart else "can see each other in at least one cell"
    if not measured:
        return f"{claim}; not measured in these runs"
    return (
        f"{claim}; measured before {fmt.plural(len(measured), 'training')}: the log-probability of "
        f"a token differs from that of its document alone by at most {max(measured):.1e} nats"
    )


def _merge_check(records: Iterable[RunRecord]) -> str:
    merges = [record.merge for record in records if record.merge]
    return fidelity(merges) if merges else ""


def fidelity(merges: list[MergeSummary]) -> str:
    """How far merged models are from their adapters, in the worst of them."""
    whole = max(merge.max_difference for merge in merges)
    trained = max(merge.max_trained_difference for merge in merges)
    allowed = fmt.either(sorted({f"{merge.tolerance:.1e}" for merge in merges}))
    limits = [merge.trained_tolerance for merge in merges if merge.trained_tolerance is not None]
    judged = fmt.either(sorted({f"{limit:.1e}" for limit in limits})) if limits else ""
    items = fmt.either(sorted({f"{merge.fidelity_items:,}" for merge in merges}))
    of = "" if len(merges) == 1 else f", in the worst of {len(merges):,} merges"
    tokens = f", over the trained tokens alone by at most {trained:.1e}" if trained else ""
    tokens += f" (tolerance {judged})" if tokens and judged else ""
    return (
        f"{_proved(merges)}adapter and merged model differ by at most {whole:.1e} nats a token "
        f"over whole rows (tolerance {allowed}){tokens}; {items} rows{of}"
    )


def _proved(merges: list[MergeSummary]) -> str:
    """The check of the weights; nothing where one of the merges was made before it."""
    counts = {(merge.proved_tensors, merge.adapted_tensors) for merge in merges}
    if any(proved == 0 for proved, _ in counts):
        return ""
    said = fmt.either(
        [f"{proved:,} tensors ({adapted:,} adapted)" for proved, adapted in sorted(counts)]
    )
    return f"all {said} are base + scale·B·A byte by byte; "
