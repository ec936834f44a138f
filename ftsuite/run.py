"""THE recipe: one cell of a study, from base model to comparison, read top to bottom."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import devices, jsonfile, progress
from ftsuite.analysis.compare import apply_gates, compare_scores
from ftsuite.analysis.doctables import document_tables, group_tables
from ftsuite.config import to_plain
from ftsuite.errors import FtsuiteError, StoreError, one_line, redact
from ftsuite.models import sources
from ftsuite.provenance import now, provenance
from ftsuite.records import Failure, RunRecord, StageRecord
from ftsuite.scoring import documents, fitting, heldout, systems
from ftsuite.stages import chain
from ftsuite.store.entries import Entry, StageSpec, checked_file, lookup, run_stage
from ftsuite.studies.study import Cell, claimed, record_path
from ftsuite.training import steps, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import EvalsConfig
    from ftsuite.records import Scores


def run(cell: Cell) -> RunRecord:
    """Run one cell and leave its record; a failure becomes a record too.

    A complete record stays in its place until a stage has to be computed: to run a finished cell
    again changes nothing, whenever it is killed. Only what the user or the kernel interrupts is
    left with the status 'running', which readers see as 'interrupted'.
    """
    root = Path(cell.config.store.root)
    path = record_path(root, cell.study, cell.entry.run_id)
    with claimed(path):
        previous = _previous(path)
        compute = devices.resolve(cell.config.backend, cell.config.model)
        record = RunRecord(
            run_id=cell.entry.run_id,
            study=cell.study,
            label=cell.entry.label,
            overrides=cell.entry.overrides,
            status="running",
            config=_public(to_plain(cell.config)),
            provenance=provenance(compute, started_at=now(), command=cell.command),
        )
        begun: list[RunRecord] = []

        def begin(running: RunRecord = record) -> None:
            jsonfile.write(path, running)
            begun.append(running)

        if previous is None or previous.status != "complete":
            begin()
        trail: list[StageRecord] = []
        try:
            record = _recipe(cell, root, compute, record, trail, begin)
        except Exception as error:
            record = _failed(record, error, trail, path)
            progress.note(cell.place, f"failed: {record.failure.message if record.failure else ''}")
        if previous and _same_results(previous, record):
            # Nothing was computed, so the record still tells of the run that did.
            record = dataclasses.replace(record, provenance=previous.provenance)
        if begun or record.status == "complete":
            jsonfile.write(path, record)
        # Else nothing was computed and the run failed: what was complete before still is.
    return record


def _previous(path: Path) -> RunRecord | None:
    """The run's earlier record; one that cannot be read is replaced, and lends nothing."""
    try:
        return jsonfile.read(RunRecord, path)
    except StoreError:
        return None


def _same_results(previous: RunRecord, record: RunRecord) -> bool:
    return (
        previous.status == record.status == "complete"
        and all(stage.reused for stage in record.stages)
        and [s.key for s in previous.stages] == [s.key for s in record.stages]
    )


def _recipe(
    cell: Cell,
    root: Path,
    compute: devices.Compute,
    record: RunRecord,
    trail: list[StageRecord],
    begin: Callable[[], None],
) -> RunRecord:
    config = cell.config

    def do(name: str, spec: StageSpec[Any]) -> Entry[Any]:
        return _do(name, spec, root, cell.place, trail, begin)

    if config.backend.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.backend.threads)
    progress.quiet_libraries()
    base = sources.resolve(
        config.model, root, on_event=lambda text: progress.note(cell.place, text)
    )
    stages = chain(config, compute, base, root, cell.place)
    if lookup(root, stages.train) is None:
        train.check(config, base.folder)

    data = do("data", stages.data)
    notes = systems.differences(data.record.systems, config.evals)
    notes += steps.notes(config.train, data.record)
    for said in notes:
        progress.note(cell.place, f"note: {said}")
    base_scores = do("eval-base", stages.base_scores) if stages.base_scores else None
    base_probes = do("probe-base", stages.base_probes) if stages.base_probes else None
    adapter = do("train", stages.train)
    merged = do("merge", stages.merge)
    tuned_scores = do("eval-tuned", stages.tuned_scores) if stages.tuned_scores else None
    tuned_probes = do("probe-tuned", stages.tuned_probes) if stages.tuned_probes else None

    if base_scores and tuned_scores:
        record = _compared(record, config.evals, base_scores, tuned_scores)
    return dataclasses.replace(
        record,
        status="complete",
        provenance=dataclasses.replace(record.provenance, finished_at=now()),
        stages=tuple(trail),
        artifacts={
            "adapter": str(adapter.folder.relative_to(root) / "adapter"),
            "merged": str(merged.folder.relative_to(root)),
        },
        model=base.identity,
        data=data.record,
        train=adapter.record,
        merge=merged.record,
        base=base_scores.record if base_scores else None,
        tuned=tuned_scores.record if tuned_scores else None,
        base_probes=base_probes.record if base_probes else None,
        tuned_probes=tuned_probes.record if tuned_probes else None,
        gates=apply_gates(record.comparisons, config.gates),
        notes=(
            *notes,
            *heldout.notes(config),
            *(fitting.notes(base_scores.record.left_out) if base_scores else ()),
        ),
    )


def _compared(
    record: RunRecord, evals: EvalsConfig, base: Entry[Scores], tuned: Entry[Scores]
) -> RunRecord:
    """Base against tuned: metric by metric, document by document, group by group."""
    comparisons = compare_scores(base.record, tuned.record)
    before, after = (
        documents.read(checked_file(entry.folder, documents.FILE)) for entry in (base, tuned)
    )
    return dataclasses.replace(
        record,
        comparisons=comparisons,
        documents=document_tables(evals, comparisons, before, after),
        groups=group_tables(evals, comparisons, base.record, tuned.record),
    )


def _do(
    name: str,
    spec: StageSpec[Any],
    root: Path,
    place: str,
    trail: list[StageRecord],
    begin: Callable[[], None],
) -> Entry[Any]:
    """Run one stage, or find it done, and add it to the trail; `begin` is called if it is not."""

    def waiting(stage: str) -> None:
        progress.note(place, f"{stage}: another process is computing it; waiting")

    try:
        entry = run_stage(root, spec, on_miss=begin, on_wait=waiting)
    except Exception as error:
        error.add_note(name)
        raise
    if entry.reused:
        progress.note(place, f"{name}: in the store")
    else:
        _release_memory()
    trail.append(
        StageRecord(
            stage=name,
            key=entry.key,
            seconds=entry.seconds,
            reused=entry.reused,
            peak_memory_bytes=entry.peak_memory_bytes,
            peak_device_bytes=entry.peak_device_bytes,
        )
    )
    return entry


def _failed(record: RunRecord, error: Exception, trail: list[StageRecord], path: Path) -> RunRecord:
    """The record of a cell that did not finish; a bug's traceback goes beside it."""
    stage = ["preparation", *getattr(error, "__notes__", [])][-1]
    message = one_line(error)
    if not isinstance(error, FtsuiteError):
        details = path.with_suffix(".traceback.txt")
        jsonfile.write_text(details, redact(traceback.format_exc()))
        message = f"{type(error).__name__}: {message} (traceback in {details})"
    if os.environ.get("FTSUITE_TRACEBACK") == "1":
        traceback.print_exc()
    failure = Failure(stage=stage, kind=type(error).__name__, message=message)
    ended = dataclasses.replace(record.provenance, finished_at=now())
    return dataclasses.replace(
        record, status="failed", failure=failure, stages=tuple(trail), provenance=ended
    )


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the store lies: it says nothing of the result and names the machine."""
    root = config["store"]["root"]
    path = [folder for folder in config["evals"]["path"] if not Path(folder).is_relative_to(root)]
    evals = {**config["evals"], "path": path}
    return {name: value for name, value in {**config, "evals": evals}.items() if name != "store"}


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
