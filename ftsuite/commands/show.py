"""`ftsuite show`: everything about one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.analysis import ranking
from ftsuite.analysis.compare import verdict
from ftsuite.commands.display import metric_name, one_line, table, write, write_json
from ftsuite.commands.runs import artifacts, entry_folder
from ftsuite.commands.selection import find_run, store_root
from ftsuite.commands.show_documents import show_documents
from ftsuite.config import RunConfig, to_plain
from ftsuite.jsonfile import to_json
from ftsuite.reporting import formats as fmt
from ftsuite.reporting import probes
from ftsuite.store.pruning import pruned
from ftsuite.studies import study

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table

    from ftsuite.records import Comparison, ProbeResult, RunRecord


def show(options: Namespace) -> int:
    """Print one run, for people or as JSON."""
    root = store_root()
    path, record = find_run(root, options.run)
    if options.documents or _narrows(options):
        return show_documents(root, record, options)
    if options.json:
        write_json({**to_json(record), "record": str(path)})
        return 0
    parts: list[RenderableType] = [_summary(root, path, record)]
    parts.append(_settings(record.config))
    if record.data:
        parts.append(_data(record))
    if record.train or record.merge:
        parts.append(_training(record))
    if record.comparisons:
        parts += _scores(root, record)
    if record.base_probes or record.tuned_probes:
        parts += _probes(record)
    if record.stages:
        parts.append(_stages(record))
    if record.failure:
        failure = record.failure
        parts.append(one_line(f"failed in {failure.stage} ({failure.kind}): {failure.message}"))
    write(*parts)
    return 0


def _narrows(options: Namespace) -> bool:
    """Whether an option is given that says which documents to show."""
    flags = options.won, options.lost, options.changed
    return any(flags) or any(
        one is not None for one in (options.task, options.group, options.limit)
    )


def changed_settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that differ from the schema's defaults, with their values."""
    defaults = dict(_flat(to_plain(RunConfig())))
    return [
        (name, str(value))
        for name, value in _flat(config)
        if not name.startswith(("study", "store."))
        and (name not in defaults or defaults[name] != value)
    ]


def _flat(plain: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in plain.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _summary(root: Path, path: Path, record: RunRecord) -> Table:
    made = record.provenance
    dirty = " with uncommitted changes" if made.git_dirty else ""
    rows = [
        ("run", record.run_id),
        ("status", record.status),
        ("command", made.command),
        ("made", f"{made.started_at} to {made.finished_at}, {made.device}, {made.dtype}"),
        ("code", f"ftsuite {made.ftsuite}, git {made.git_commit[:12] or 'unknown'}{dirty}"),
        ("record", str(path)),
        *_artifacts(root, record),
    ]
    if record.model:
        note = f" ({record.model.note})" if record.model.note else ""
        source = f"{record.model.source} {record.model.revision[:12]}"
        rows.insert(2, ("base model", f"{record.model.id}{note}, {source}"))
    return table(f"{record.study}/{record.label}", ("", ""), rows)


def _artifacts(root: Path, record: RunRecord) -> list[tuple[str, str]]:
    """Where adapter and merged model lie, or how one that was freed is made again."""
    rows = []
    for name, path in artifacts(root, record).items():
        if path is not None:
            rows.append((name, path))
        elif name in record.artifacts and (gone := pruned(entry_folder(root, record, name))):
            folder = entry_folder(root, record, name)
            again = f"delete {folder} and run: {record.provenance.command} store.keep=all"
            rows.append((name, f"freed ({fmt.size(gone.bytes)}); to make it again, {again}"))
    return rows


def _settings(config: dict[str, Any]) -> RenderableType:
    rows = changed_settings(config)
    if not rows:
        return "settings: the schema's defaults"
    return table("settings that differ from the defaults", ("=setting", "value"), rows)


def _data(record: RunRecord) -> Table:
    assert record.data is not None
    data = record.data
    rows = [
        (
            split.name,
            *(f"{n:,}" for n in (split.rows, split.available, split.tokens)),
            *(f"{n:,}" for n in (split.trained_tokens, split.truncated, split.sequences)),
        )
        for split in data.splits
    ]
    dropped = sum(data.dropped.values())
    notes = f"; {data.subset_note}" if data.subset_note else ""
    title = f"data: {data.source} ({data.shape}), packing {data.packing}, {dropped} dropped{notes}"
    headers = ("=split", ">rows", ">of", ">tokens", ">trained", ">truncated", ">sequences")
    return table(title, headers, rows)


def _training(record: RunRecord) -> Table:
    rows: list[tuple[str, str]] = []
    if train := record.train:
        resumed = (
            f", resumed from step {train.resumed_from_step}" if train.resumed_from_step else ""
        )
        share = train.trainable_parameters / train.total_parameters
        rows += [
            ("steps", f"{train.steps:,} ({train.epochs:g} epochs){resumed}"),
            ("tokens", f"{train.tokens:,}, {train.trained_tokens:,} of them trained"),
            ("parameters", f"{fmt.count(train.trainable_parameters)} trained ({share:.2%})"),
            ("training loss", f"{fmt.score(train.final_loss)} nats/token"),
            ("validation loss", f"{fmt.score(train.eval_loss)} nats/token"),
        ]
    if merge := record.merge:
        rows += [
            (
                "merged model",
                f"{fmt.size(merge.bytes)} {merge.dtype}, {fmt.plural(merge.shards, 'file')}",
            ),
            (
                "merge fidelity",
                f"largest difference {merge.max_difference:.1e} nats/token on "
                f"{merge.fidelity_items} rows; at most {merge.tolerance:.0e} is allowed",
            ),
        ]
    return table("training and merge", ("", ""), rows)


def _scores(root: Path, record: RunRecord) -> list[RenderableType]:
    rank_by = record.config.get("evals", {}).get("rank_by", "")
    alpha = record.config.get("gates", {}).get("alpha", 0.05)
    adjusted = ranking.adjusted_p_values(_family(root, record), rank_by)

    def words(comparison: Comparison) -> tuple[str, str]:
        """Adjusted p and verdict; the metric that ranks the cells is in no family of tests."""
        p_value = adjusted.get((record.run_id, comparison.name))
        if p_value is None:
            return fmt.NONE, "(ranks)" if comparison.name == rank_by else fmt.NONE
        return fmt.p_value(p_value), str(verdict(comparison, p_value, alpha))

    rows = [
        (
            metric_name(c.name),
            str(c.n),
            fmt.score(c.base),
            fmt.score(c.tuned),
            fmt.change(c.difference),
            fmt.interval(c.low, c.high),
            *words(c),
        )
        for c in record.comparisons
        if not c.refused
    ]
    headers = ("=metric", ">n", ">base", ">tuned", ">Δ", ">95 % CI", ">Holm p", "tuned is")
    refused = [one_line(f"refused {c.name}: {c.refused}") for c in record.comparisons if c.refused]
    gates = [
        one_line(f"gate {gate.metric}: {'pass' if gate.passed else 'FAIL'}, {gate.reason}")
        for gate in record.gates
    ]
    note = f"Verdicts at {alpha:g} after Holm's correction over the study's test metrics."
    return [table("scores", headers, rows), note, *refused, *gates]


def _family(root: Path, record: RunRecord) -> list[RunRecord]:
    """The runs whose p-values are adjusted together, as in the report: the study's cells."""
    manifest = study.read_manifest(root, record.study)
    ids = {cell.run_id for cell in manifest.cells}
    if record.run_id not in ids:
        return [record]
    paths = [study.record_path(root, record.study, run_id) for run_id in sorted(ids)]
    return [study.read_run(path) for path in paths if path.exists()]


def _probes(record: RunRecord) -> list[RenderableType]:
    """One table of all probes, and one of each that has several system prompts."""
    reports = (record.base_probes, record.tuned_probes)
    names = dict.fromkeys(p.name for report in reports if report for p in report.probes)
    found = {name: [probes.find(report, name) for report in reports] for name in names}
    rows = [
        (
            name,
            *(probes.passed(one, with_system=True) for one in both),
            *(probes.passed(one, with_system=False) for one in both),
        )
        for name, both in found.items()
    ]
    headers = ("=probe", ">base", ">tuned", ">base, no system", ">tuned, no system")
    title = "probes: answers that pass, with and without system prompt"
    parts: list[RenderableType] = [table(title, headers, rows)]
    for name, both in found.items():
        if any(one and one.systems for one in both):
            parts.append(_by_system(name, both))
    return parts


def _by_system(name: str, both: list[ProbeResult | None]) -> Table:
    rows = [
        (
            system or (f"(none, by the checks of {judge})" if judge else "(none)"),
            *counts,
        )
        for system, judge, counts in probes.by_system(both)
    ]
    title = f"probe {name}: answers that pass, by system prompt"
    return table(title, ("system prompt", ">base", ">tuned"), rows)


def _stages(record: RunRecord) -> Table:
    rows = [
        (
            stage.stage,
            stage.key[:12],
            fmt.seconds(stage.seconds),
            "store" if stage.reused else "computed",
            fmt.size(stage.peak_memory_bytes),
            fmt.size(stage.peak_device_bytes),
        )
        for stage in record.stages
    ]
    headers = ("stage", "=key", ">time", "from", ">memory", ">GPU memory")
    return table("stages", headers, rows)
