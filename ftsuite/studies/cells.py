"""One cell from stored results to its record: comparison, documents, gates, or why it failed."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import jsonfile
from ftsuite.analysis.compare import apply_gates, compare_scores
from ftsuite.analysis.doctables import document_tables, group_tables
from ftsuite.analysis.gather import scores_of
from ftsuite.config import to_plain
from ftsuite.errors import StoreError
from ftsuite.provenance import now, provenance
from ftsuite.records import CurvePoint, Failure, RunRecord, StageRecord
from ftsuite.scoring import documents, fitting, heldout, systems
from ftsuite.store.computing import lookup
from ftsuite.store.entries import checked_file
from ftsuite.training import fidelity, steps

if TYPE_CHECKING:
    from collections.abc import Collection

    from ftsuite.config import RunConfig
    from ftsuite.devices import Target
    from ftsuite.models.sources import Base
    from ftsuite.recipe import Measured, Recipe
    from ftsuite.records import DataSummary, ProbeReport, Provenance, TrainSummary
    from ftsuite.scoring.documents import Document
    from ftsuite.store.entries import Entry
    from ftsuite.studies.study import Cell


def begun(cell: Cell, target: Target) -> RunRecord:
    """The record of a cell whose stages are being computed."""
    return RunRecord(
        run_id=cell.entry.run_id,
        study=cell.study,
        label=cell.entry.label,
        overrides=cell.entry.overrides,
        status="running",
        config=_public(to_plain(cell.config)),
        provenance=provenance(target, started_at=now(), command=cell.command),
    )


def complete(
    record: RunRecord,
    config: RunConfig,
    base: Base,
    recipe: Recipe,
    root: Path,
    computed: Collection[str],
) -> RunRecord:
    """The record of a cell all of whose results are in the store.

    Args:
        record: as `begun` made it.
        config: the cell's.
        base: the resolved base model.
        recipe: the cell's stages.
        root: the store.
        computed: keys of the stages that were computed for this very cell.

    Raises:
        StoreError: a result is missing or corrupted.
        StageError: adapter and merged model differ by more than the tolerance.
    """
    found = {key: entry for key, entry in _entries(root, recipe)}
    data: Entry[DataSummary] = found[recipe.data.key]
    check = found[recipe.check.key].record
    merge = fidelity.summary(found[recipe.merged.key].record, check, config.merge)
    fidelity.require_fidelity(merge)
    adapter, merged = found[recipe.adapter.key], found[recipe.merged.key]
    before, after = (_gathered(one, found) for one in (recipe.base, recipe.tuned))
    record = _compared(record, config, found, recipe)
    base_loss, tuned_loss = (found[one.loss.key].record for one in (recipe.base, recipe.tuned))
    return dataclasses.replace(
        record,
        status="complete",
        provenance=dataclasses.replace(record.provenance, finished_at=now()),
        stages=tuple(
            _stage_record(name, found[stage.key], stage.key not in computed)
            for name, stage in recipe.named()
        ),
        artifacts={
            "adapter": str(adapter.folder.relative_to(root) / "adapter"),
            "merged": str(merged.folder.relative_to(root)),
        },
        model=base.identity,
        data=data.record,
        train=_with_loss(adapter.record, tuned_loss.loss),
        merge=merge,
        base=before,
        tuned=after,
        base_loss=base_loss,
        tuned_loss=tuned_loss,
        base_probes=_probes(recipe.base, found),
        tuned_probes=_probes(recipe.tuned, found),
        gates=apply_gates(record.comparisons, config.gates),
        notes=(
            *notes(config, data.record),
            *heldout.notes(config),
            *(fitting.notes(before.left_out) if before else ()),
        ),
    )


def _with_loss(train: TrainSummary, loss: float) -> TrainSummary:
    """The training with its held-out loss at the end, also as the curve's last point."""
    last = CurvePoint(step=train.steps, eval_loss=loss)
    # Where training looked at its last step too, at rows and by batches of its own.
    curve = [one for one in train.curve if one.step != last.step or one.eval_loss is None]
    return dataclasses.replace(train, eval_loss=loss, curve=(*curve, last))


def notes(config: RunConfig, data: DataSummary) -> list[str]:
    """What is said of a cell's settings once its data are known."""
    return systems.differences(data.systems, config.evals) + steps.notes(config.train, data)


def _entries(root: Path, recipe: Recipe) -> list[tuple[str, Entry[Any]]]:
    entries = []
    for name, stage in recipe.named():
        entry = lookup(root, stage)
        if entry is None:
            raise StoreError(f"{name} {stage.key[:12]}: vanished from the store; run again")
        entries.append((stage.key, entry))
    return entries


def _stage_record(name: str, entry: Entry[Any], reused: bool) -> StageRecord:
    return StageRecord(
        stage=name,
        key=entry.key,
        seconds=entry.seconds,
        reused=reused,
        peak_memory_bytes=entry.peak_memory_bytes,
        peak_device_bytes=entry.peak_device_bytes,
    )


def _gathered(measured: Measured, found: dict[str, Entry[Any]]) -> Any:
    parts = {name: found[stage.key].record for name, stage in measured.scores.items()}
    return scores_of(parts) if parts else None


def _probes(measured: Measured, found: dict[str, Entry[Any]]) -> ProbeReport | None:
    parts = [found[stage.key].record for stage in measured.probes.values()]
    if not parts:
        return None
    probes = tuple(probe for part in parts for probe in part.probes)
    whole: ProbeReport = dataclasses.replace(parts[0], probes=probes)
    return whole


def _compared(
    record: RunRecord, config: RunConfig, found: dict[str, Entry[Any]], recipe: Recipe
) -> RunRecord:
    """Base against tuned: metric by metric, document by document, group by group."""
    evals = config.evals
    pairs = [
        (found[recipe.base.scores[name].key], found[recipe.tuned.scores[name].key])
        for name in evals.tasks
    ]
    if not pairs:
        return record
    comparisons = tuple(
        one for base, tuned in pairs for one in compare_scores(base.record, tuned.record)
    )
    before, after = (
        [document for pair in pairs for document in _documents(pair[side])] for side in (0, 1)
    )
    base, tuned = _gathered(recipe.base, found), _gathered(recipe.tuned, found)
    return dataclasses.replace(
        record,
        comparisons=comparisons,
        documents=document_tables(evals, comparisons, before, after),
        groups=group_tables(evals, comparisons, base, tuned),
    )


def _documents(entry: Entry[Any]) -> list[Document]:
    return documents.read(checked_file(entry.folder, documents.FILE))


def failed(record: RunRecord, stage: str, error: dict[str, Any], path: Path) -> RunRecord:
    """The record of a cell that did not finish; a bug's traceback goes beside it.

    Args:
        record: as `begun` made it.
        stage: the stage's name in records, or 'preparation'.
        error: kind, message and traceback (empty for what the user can mend).
        path: of the record.
    """
    message = error["message"]
    if error["traceback"]:
        details = path.with_suffix(".traceback.txt")
        jsonfile.write_text(details, error["traceback"])
        message = f"{error['kind']}: {message} (traceback in {details})"
        if os.environ.get("FTSUITE_TRACEBACK") == "1":
            print(error["traceback"], file=sys.stderr)
    failure = Failure(stage=stage, kind=error["kind"], message=message)
    ended = dataclasses.replace(record.provenance, finished_at=now())
    return dataclasses.replace(record, status="failed", failure=failure, provenance=ended)


def stages_there(recipe: Recipe, root: Path, computed: Collection[str]) -> tuple[StageRecord, ...]:
    """The stages of a failed cell whose results are there, up to the first that is not."""
    records = []
    for name, stage in recipe.named():
        try:
            entry = lookup(root, stage)
        except StoreError:
            break
        if entry is None:
            break
        records.append(_stage_record(name, entry, stage.key not in computed))
    return tuple(records)


def with_stages(record: RunRecord, stages: tuple[StageRecord, ...]) -> RunRecord:
    """The record with these stages."""
    return dataclasses.replace(record, stages=stages)


def with_provenance(record: RunRecord, provenance: Provenance) -> RunRecord:
    """The record with the provenance of another run of the same cell."""
    return dataclasses.replace(record, provenance=provenance)


def previous(path: Path) -> RunRecord | None:
    """The run's earlier record; one that cannot be read is replaced, and lends nothing."""
    try:
        return jsonfile.read(RunRecord, path)
    except StoreError:
        return None


def same_results(earlier: RunRecord, record: RunRecord) -> bool:
    """Whether nothing was computed: then the earlier record still tells of the run that did."""
    return (
        earlier.status == record.status == "complete"
        and all(stage.reused for stage in record.stages)
        and [s.key for s in earlier.stages] == [s.key for s in record.stages]
    )


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the store lies: it says nothing of the result and names the machine."""
    root = config["store"]["root"]
    path = [folder for folder in config["evals"]["path"] if not Path(folder).is_relative_to(root)]
    evals = {**config["evals"], "path": path}
    kept = {**config, "evals": evals}
    return {name: value for name, value in kept.items() if name not in ("store", "executor")}
