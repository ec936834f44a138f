"""The report's provenance: with what, on what and from what the cells were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.records import RunRecord
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
        ["merged models", _merged(records)],
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
        f"{split.name}{f' ({split.source})' if split.source else ''}: {split.rows:,} rows, "
        f"{fmt.count(split.tokens)} tokens, {fmt.count(split.trained_tokens)} trained, "
        f"{split.sequences:,} sequences, sha256 {split.sha256[:12]}"
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
        f"{f', system messages: {at.system_place}' if at.system_place else ''}"
        f"{f', stop strings: {at.stop}' if at.stop else ''}"
    )


def _merged(records: Iterable[RunRecord]) -> str:
    merges = [record.merge for record in records if record.merge]
    return _join(f"{fmt.size(merge.bytes)} each, {merge.dtype}" for merge in merges)
