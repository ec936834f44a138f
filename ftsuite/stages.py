"""The stages of a cell as store entries: what each one's key is made of, and what computes it.

Keys depend on keys, never on results, so the whole chain is known before anything runs; `plan`
reads from it what a sweep will cost.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite import provenance
from ftsuite.config import identity
from ftsuite.data import prepare as data_module
from ftsuite.errors import StoreError
from ftsuite.models import loading, sources
from ftsuite.records import DataSummary, MergeSummary, ProbeReport, Scores, TrainSummary
from ftsuite.scoring import evaluate, probe, probefiles, tasks
from ftsuite.store.entries import StageSpec, lookup, verify
from ftsuite.training import merge, train

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import RunConfig
    from ftsuite.devices import Compute
    from ftsuite.models.sources import Base

DATA_VERSION = 3
ORIGIN = ("name", "id", "revision", "source", "embedded", "dtype")
"""Fields of the model that the resolved identity and dtype stand for."""
MERGE_FIELDS = ("shard_bytes", "fidelity_items", "fidelity_tolerance")
COMPARED_BY = (
    *("tasks", "held_out", "add", "remove", "generate_limit", "max_new_tokens"),
    *("rank_by", "rank_on_test", "headline", "watch"),
)
"""Fields of the evals that tasks.identity stands for, or that are read after the last stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The stages of one cell, in order."""

    data: StageSpec[DataSummary]
    base_scores: StageSpec[Scores] | None
    base_probes: StageSpec[ProbeReport] | None
    train: StageSpec[TrainSummary]
    merge: StageSpec[MergeSummary]
    tuned_scores: StageSpec[Scores] | None
    tuned_probes: StageSpec[ProbeReport] | None

    def named(self) -> list[tuple[str, StageSpec[Any]]]:
        """The stages that there are, with the names that records give them."""
        stages: list[tuple[str, StageSpec[Any] | None]] = [
            ("data", self.data),
            ("eval-base", self.base_scores),
            ("probe-base", self.base_probes),
            ("train", self.train),
            ("merge", self.merge),
            ("eval-tuned", self.tuned_scores),
            ("probe-tuned", self.tuned_probes),
        ]
        return [(name, spec) for name, spec in stages if spec is not None]


def chain(config: RunConfig, compute: Compute, base: Base, root: Path, cell: str) -> Chain:
    """Describe the stages of one cell.

    Args:
        config: the cell's configuration.
        compute: device and dtype.
        base: the resolved base model.
        root: the store.
        cell: the cell's place in the sweep, for the display.
    """
    origin = {"source": base.identity.source, "revision": base.identity.revision}
    if base.identity.source == "hub":
        origin["id"] = base.identity.id
    elif base.identity.source == "wheel":
        origin["converter"] = str(sources.CONVERT_VERSION)
    model = {"base": origin, **identity(config.model, without=ORIGIN)}
    model["template"] = identity(config.template, without=("name",))
    place = dataclasses.asdict(compute)

    data = _data(config, base, model, cell)
    trained = StageSpec(
        name="train",
        version=train.VERSION,
        inputs={
            "model": model,
            "data": data.key,
            "lora": identity(config.lora),
            "train": identity(config.train, without=MERGE_FIELDS),
            "compute": place,
            "engine": provenance.versions("accelerate", "peft", "torch", "transformers", "trl"),
        },
        record=TrainSummary,
        compute=lambda folder: train.train(
            config, compute, sources.checked(base), _checked(root, data), folder, cell
        ),
        resumable=True,
    )
    merged = StageSpec(
        name="merge",
        version=merge.VERSION,
        inputs={
            "adapter": trained.key,
            "train": {name: identity(config.train)[name] for name in MERGE_FIELDS},
            "batch_size": config.evals.batch_size,
            "engine": provenance.versions("peft", "torch", "transformers"),
        },
        record=MergeSummary,
        compute=lambda folder: merge.merge(
            config,
            compute,
            sources.checked(base),
            _checked(root, data),
            _checked(root, trained) / "adapter",
            folder,
            cell,
        ),
    )
    return Chain(
        data=data,
        base_scores=_scores(config, compute, root, cell, model, None, base),
        base_probes=_probes(config, compute, root, cell, model, None, base),
        train=trained,
        merge=merged,
        tuned_scores=_scores(config, compute, root, cell, model, merged, base),
        tuned_probes=_probes(config, compute, root, cell, model, merged, base),
    )


def _data(
    config: RunConfig, base: Base, model: dict[str, Any], cell: str
) -> StageSpec[DataSummary]:
    def compute(folder: Path) -> DataSummary:
        from ftsuite.models import sources, templates

        tokenizer = loading.load_tokenizer(sources.checked(base), config.model)
        templates.install(tokenizer, config.template)
        return data_module.prepare(
            config.data,
            config.packing,
            config.train.loss,
            tokenizer,
            folder,
            cell=cell,
            processes=config.backend.threads,
        )

    # The source's content stands for its path; the answers' kind is the scores' matter.
    without = ("name", "train", "validation", "test", "answers", "labels", "tolerance")
    return StageSpec(
        name="data",
        version=DATA_VERSION,
        inputs={
            "model": model,
            "source": data_module.source_sha256(config.data),
            "data": identity(config.data, without=without),
            "packing": identity(config.packing),
            "loss": config.train.loss.value,
            "engine": provenance.versions("tokenizers", "transformers"),
        },
        record=DataSummary,
        compute=compute,
    )


def _scores(
    config: RunConfig,
    compute: Compute,
    root: Path,
    cell: str,
    model: dict[str, Any],
    merged: StageSpec[MergeSummary] | None,
    base: Base,
) -> StageSpec[Scores] | None:
    if not config.evals.tasks:
        return None
    return StageSpec(
        name="eval",
        version=evaluate.VERSION,
        inputs={
            # Base scores are shared by every cell whose base, template and evals agree.
            "model": model if merged is None else merged.key,
            "evals": identity(config.evals, without=COMPARED_BY),
            "tasks": tasks.identity(config.evals),
            "engine": evaluate.engine(),
            "compute": dataclasses.asdict(compute),
        },
        record=Scores,
        compute=lambda folder: evaluate.evaluate(
            config,
            compute,
            sources.checked(base) if merged is None else _checked(root, merged),
            root,
            cell,
            "eval base" if merged is None else "eval tuned",
            into=folder,
        ),
    )


def _probes(
    config: RunConfig,
    compute: Compute,
    root: Path,
    cell: str,
    model: dict[str, Any],
    merged: StageSpec[MergeSummary] | None,
    base: Base,
) -> StageSpec[ProbeReport] | None:
    if not config.probes.files:
        return None
    return StageSpec(
        name="probe",
        version=probe.VERSION,
        inputs={
            "model": model if merged is None else merged.key,
            "probes": identity(config.probes, without=("files",)),
            "files": probefiles.identity(config.probes, config.evals.path),
            "engine": evaluate.engine(),
            "compute": dataclasses.asdict(compute),
        },
        record=ProbeReport,
        compute=lambda _: probe.probe(
            config,
            compute,
            sources.checked(base) if merged is None else _checked(root, merged),
            cell,
            "probe base" if merged is None else "probe tuned",
        ),
    )


def _checked(root: Path, spec: StageSpec[Any]) -> Path:
    """Folder of an upstream result, its files checked against their sha256."""
    entry = lookup(root, spec)
    if entry is None:
        raise StoreError(f"{spec.name} {spec.key[:12]}: vanished from the store; run again")
    verify(entry)
    return entry.folder
