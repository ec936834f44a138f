"""Documents with the answers of two models, as an eval leaves them; no model is asked."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from synthetic import CONDITIONS, make_config, make_record

from ftsuite.analysis.compare import compare_scores
from ftsuite.analysis.doctables import document_tables, group_tables
from ftsuite.config import EvalsConfig
from ftsuite.records import MetricScores, Scores, StageRecord
from ftsuite.scoring import documents
from ftsuite.scoring.aggregation import AGGREGATIONS, tables
from ftsuite.scoring.documents import Choice, Document
from ftsuite.store import entries as store
from ftsuite.store.commit import run_stage

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.records import RunRecord

LABELS = ("billing", "login", "other")
SEEN = {
    # task: (expected, base's answer, tuned's answer) for each document.
    "route": [
        ("billing", "login", "billing"),
        ("billing", "login", "billing"),
        ("billing", "other", "login"),
        ("login", "login", "login"),
        ("login", "login", "other"),
        ("other", "billing", "other"),
    ],
    "write": [
        ("billing", "I would say billing!", "billing"),
        ("billing", "Login.", "Billing"),
        ("billing", "billing", "login"),
        ("login", "no idea", " LOGIN. "),
        ("login", "login", "login"),
        ("other", "", "login"),
    ],
    "story": [("A fox.", "Once upon a time", "A fox | and `a` <b>dog</b>\nsang.")] * 3,
}
"""`route` is chosen, `write` and `story` are generated."""
KINDS = {"route": "multiple_choice", "write": "generate_until", "story": "generate_until"}
METRICS = {"route": "acc", "write": "exact_match", "story": "chrf"}
GROUPS = ("gold", "gold", "silver", "silver", "", "gold")
EVALS = EvalsConfig(
    tasks=list(SEEN), headline="route/acc", rank_by="route/acc", watch=["write/exact_match"]
)


def right(task: str, expected: str, said: str) -> float:
    """Exact match that forgives case, spaces and a full stop."""
    return float(said.strip(" .").casefold() == expected) if task != "story" else 0.0


def make_documents(side: int, **changes: Any) -> list[Document]:
    """All documents with the answers of base (0) or tuned (1); `changes` go over every field."""
    found = []
    for task, rows in SEEN.items():
        for number, (expected, *answers) in enumerate(rows):
            said = answers[side]
            made: dict[str, Any] = {"answers": (said,), "filtered": {"none": said}}
            if KINDS[task] == "multiple_choice":
                # The picked choice by half a nat.
                made = {
                    "choices": tuple(
                        Choice(text=label, log_likelihood=-1.5 - 0.5 * (label != said))
                        for label in LABELS
                    )
                }
            if task == "write":
                made["labels"] = LABELS
            metric = METRICS[task]
            made["values"] = {metric: right(task, expected, said)} if metric != "chrf" else {}
            question = f"Question {number} of {task}?"
            document = Document(
                task=task,
                kind=KINDS[task],
                number=number,
                sha256=f"{7 * number % 10}{number}".rjust(64, "0"),
                group=GROUPS[number] if task != "story" else "",
                system="Route the message.",
                question=question,
                question_characters=len(question),
                expected=(expected,),
                **made,
            )
            found.append(dataclasses.replace(document, **changes))
    return found


def make_scores(side: int) -> Scores:
    """The metrics of these documents."""
    metrics = []
    for task in SEEN:
        mine = [d for d in make_documents(side) if d.task == task]
        groups = tuple(d.group for d in mine)
        metric: dict[str, Any] = {"values": tuple(d.values.get(METRICS[task], 0.0) for d in mine)}
        if task == "story":
            statistics = chrf_statistics(len(mine), side)
            (table,) = tables("chrf", statistics)
            value = float(AGGREGATIONS["chrf"].value(table.sum(axis=0), len(mine)))
            metric = {"values": (), "aggregation": "chrf", "statistics": statistics, "value": value}
        metrics.append(
            MetricScores(
                task=task,
                metric=METRICS[task],
                higher_is_better=True,
                split="test",
                doc_ids=tuple(range(len(mine))),
                docs_sha256=task,
                task_version="1",
                available=len(mine),
                groups=groups if any(groups) else (),
                **metric,
            )
        )
    return Scores(conditions=CONDITIONS, metrics=tuple(metrics), tokens=100)


def chrf_statistics(documents: int, side: int) -> dict[str, tuple[float, ...]]:
    """Counts of character n-grams that differ from one document to the next."""
    return {
        # Hypothesis, reference, and what they share.
        column: tuple(float((20, 25, 5 + number + side)[place % 3]) for number in range(documents))
        for place, column in enumerate(AGGREGATIONS["chrf"].columns)
    }


def make_answered(**changes: Any) -> RunRecord:
    """A complete cell with its tables of documents."""
    base, tuned = make_scores(0), make_scores(1)
    comparisons = compare_scores(base, tuned)
    evals = {"rank_by": "", "headline": EVALS.headline, "watch": EVALS.watch}
    record = make_record(config=make_config(**evals))
    return dataclasses.replace(
        record,
        base=base,
        tuned=tuned,
        comparisons=comparisons,
        gates=(),
        documents=document_tables(EVALS, comparisons, make_documents(0), make_documents(1)),
        groups=group_tables(EVALS, comparisons, base, tuned),
        **changes,
    )


def store_answers(root: Path, record: RunRecord) -> RunRecord:
    """Put the documents into the store, an entry a task; the record names their entries."""
    stages = []
    for (side, name), task in itertools.product(enumerate(("eval-base", "eval-tuned")), SEEN):

        def compute(folder: Path, side: int = side, task: str = task) -> Scores:
            mine = [document for document in make_documents(side) if document.task == task]
            documents.write(folder / documents.FILE, mine)
            scores = make_scores(side)
            metrics = tuple(metric for metric in scores.metrics if metric.task == task)
            return dataclasses.replace(scores, metrics=metrics)

        spec = store.StageSpec(
            name="eval",
            version=1,
            inputs={"side": side, "task": task},
            record=Scores,
            compute=compute,
        )
        entry = run_stage(root, spec)
        stage = StageRecord(stage=f"{name} {task}", key=entry.key, seconds=1.0, reused=False)
        stages.append(stage)
    return dataclasses.replace(record, stages=tuple(stages))
