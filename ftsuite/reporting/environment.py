"""The report's provenance: with what, on what and from what the cells were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.records import MergeSummary, RunRecord
    from ftsuite.reporting.study import Study


def environment(study: Study) -> str:
    """A table of what a rerun needs to match; values that differ between cells stand together."""
    records = study.records
    if not records:
        return ""
    made = [record.provenance for record in records]
    versions = {name: None for one in made for name in sorted(one.versions)}
    rows = [
        ["ftsuite", _join(one.ftsuite for one in made)],
        ["git commit", _join(f"{one.git_commit}{_dirty(one.git_dirty)}" for one in made)],
        *([name, _join(one.versions.get(name, "") for one in made)] for name in sorted(versions)),
        ["Python, platform", _join(f"{one.python}, {one.platform}" for one in made)],
        ["device", _join(one.device for one in made)],
        ["dtype", _join(one.dtype for one in made)],
        ["base model", _join(_model(record) for record in records)],
        ["data", _join(_data(record) for record in records)],
        ["splits", _join(_splits(record) for record in records)],
        ["chat template", _join(_template(record) for record in records)],
        ["evaluation", _join(_evaluation(record) for record in records)],
        ["merge fidelity", _fidelity(records)],
    ]
    return fmt.table(["what", "value"], [row for row in rows if row[1]])


def _join(values: Iterable[str], *, most: int = 4) -> str:
    distinct = [fmt.escape(value) for value in dict.fromkeys(values) if value]
    return fmt.enumerate_words(distinct, most=most) if distinct else ""


def _dirty(dirty: bool) -> str:
    return " (uncommitted changes)" if dirty else ""


def _model(record: RunRecord) -> str:
    model = record.model
    if model is None:
        return ""
    kind = {"hub": "Hub commit", "wheel": "sha256 of the wheel"}.get(model.source, "sha256")
    return f"{model.id}, {model.source}, {kind} {model.revision}"


def _data(record: RunRecord) -> str:
    data = record.data
    return f"{data.source} ({data.shape}), sha256 {data.source_sha256}" if data else ""


def _splits(record: RunRecord) -> str:
    splits = record.data.splits if record.data else ()
    return "; ".join(
        f"{split.name}: {split.rows:,} rows, {fmt.count(split.tokens)} tokens, "
        f"{fmt.count(split.trained_tokens)} trained, {split.sequences:,} sequences, "
        f"sha256 {split.sha256[:12]}"
        for split in splits
    )


def _template(record: RunRecord) -> str:
    scores = record.tuned or record.base
    return f"sha256 {scores.conditions.template_sha256}" if scores else ""


def _evaluation(record: RunRecord) -> str:
    scores = record.tuned or record.base
    if scores is None:
        return ""
    at = scores.conditions
    return (
        f"lm-eval {at.harness}, {at.engine}, {at.device}, {at.dtype}, batch size {at.batch_size}, "
        f"BOS by {at.bos}, few-shot: {at.num_fewshot}, seeds: {at.seeds}"
    )


def _fidelity(records: Iterable[RunRecord]) -> str:
    merges = [record.merge for record in records if record.merge]
    if not merges:
        return ""
    worst = max(merges, key=lambda merge: merge.max_difference)
    return (
        f"adapter and merged model differ by at most {worst.max_difference:.1e} nats a token "
        f"(tolerance {worst.tolerance:.1e}) on {worst.fidelity_items} items, in the worst of "
        f"{fmt.plural(len(merges), 'merge')}{_proved(merges)}; {fmt.size(worst.bytes)} a merged "
        f"model "
        f"({worst.dtype})"
    )


def _proved(merges: list[MergeSummary]) -> str:
    """What was shown beside the log-likelihoods; records of before have nothing to say."""
    if not all(merge.proved_tensors for merge in merges):
        return ""
    trained = max(merge.max_trained_difference for merge in merges)
    return (
        f", by at most {trained:.1e} over trained tokens; every tensor is base + scale·B·A, byte "
        "by byte"
    )
