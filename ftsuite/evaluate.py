"""The eval stage: lm-eval as a library, one score a document kept."""

from __future__ import annotations

import hashlib
import math
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ftsuite import models, tasks, templates
from ftsuite.errors import DataError, StageError
from ftsuite.harness import build_harness
from ftsuite.records import Conditions, MetricScores, Scores

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import EvalsConfig, RunConfig
    from ftsuite.devices import Compute

VERSION = 1


def evaluate(
    config: RunConfig, compute: Compute, folder: Path, root: Path, cell: str, what: str
) -> Scores:
    """Score the model in `folder` on the configured tasks.

    Args:
        config: the cell's configuration.
        compute: device and dtype.
        folder: base or merged model.
        root: the store, where the standard suite's documents are kept.
        cell: the cell's place in the sweep, for the display.
        what: 'eval base' or 'eval tuned', for the display.

    Raises:
        DataError: a task's documents are missing, or its system prompt gets lost in the template.
        StageError: lm-eval tokenises prompts differently from training.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    loaded = tasks.load(config.evals, root)
    picked = {t.task.config.task: _subset(t, config.evals) for t in loaded}
    tasks.check_documents(loaded, picked)
    tokenizer = models.load_tokenizer(folder, config.model)
    template = templates.install(tokenizer, config.template)
    model = models.load_model(
        folder, tokenizer, config.model, device=compute.device, dtype=compute.dtype
    )
    harness = build_harness(model, tokenizer, config.evals.batch_size, cell, what)
    results = simple_evaluate(
        model=harness,
        tasks=[t.task for t in loaded],
        num_fewshot=config.evals.num_fewshot,
        samples=picked,
        # The tasks are built already: no need to index lm-eval's 14,000 YAML files again.
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        fewshot_random_seed=config.evals.fewshot_seed,
    )
    samples = {name: results["samples"][name] for name in picked}
    bos = _check_prompts(loaded, samples, harness, tokenizer)
    conditions = Conditions(
        harness=metadata.version("lm_eval"),
        engine=engine(),
        device=compute.device,
        dtype=compute.dtype,
        batch_size=config.evals.batch_size,
        template_sha256=template,
        system_prompt=_digest(*(t.task.config.description or "" for t in loaded)),
        bos=bos,
        num_fewshot=", ".join(f"{t.task.config.task}: {t.task.config.num_fewshot}" for t in loaded)
        + "; as turns",
        seeds=f"fewshot {config.evals.fewshot_seed}, subset {config.evals.subset_seed}",
    )
    metrics = _grouped(loaded, samples)
    return Scores(conditions=conditions, metrics=metrics, tokens=harness.tokens)


def engine() -> str:
    """Versions of the libraries that compute the scores; imports none of them."""
    names = ("torch", "transformers", "tokenizers")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _subset(loaded: tasks.LoadedTask, config: EvalsConfig) -> list[int]:
    """Numbers of the documents to score."""
    total = len(loaded.task.eval_docs)
    if total == 0:
        raise DataError(f"evals.tasks: {loaded.name} has no documents; check its data file")
    return tasks.picked(loaded.name, total, config)


def _check_prompts(
    loaded: list[tasks.LoadedTask], samples: dict[str, Any], harness: Any, tokenizer: Any
) -> str:
    """Check what lm-eval fed the model, and say how BOS got in.

    lm-eval drops a system message with only a warning when a template refuses it (its issue 2069).
    """
    rules: set[str] = set()
    for item in loaded:
        if item.task.OUTPUT_TYPE == "loglikelihood_rolling":
            continue
        name = item.task.config.task
        prompt = samples[name][0]["arguments"][0][0]
        description = (item.task.config.description or "").strip()
        if description not in prompt:
            raise DataError(
                f"evals.tasks: {name}: the template drops the task's system prompt; choose another "
                "template, or move the description into doc_to_text"
            )
        if list(harness.tok_encode(prompt)) != templates.encode(tokenizer, prompt):
            raise StageError(
                f"eval: lm-eval tokenises the prompts of {name} differently from training; "
                "report this with the tokenizer's name"
            )
        rules.add(templates.bos_rule(tokenizer, prompt))
    return ", ".join(sorted(rules)) or "harness prefix"


def _grouped(loaded: list[tasks.LoadedTask], samples: dict[str, Any]) -> tuple[MetricScores, ...]:
    groups: dict[str, list[Any]] = {}
    roles = tasks.roles(loaded)
    for item in loaded:
        groups.setdefault(item.name, []).append(item.task)
    return tuple(
        metric
        for name, members in groups.items()
        for metric in _metrics(
            name, members, roles, [samples[task.config.task] for task in members]
        )
    )


def _metrics(
    name: str, members: list[Any], roles: dict[str, str], logs: list[list[Any]]
) -> list[MetricScores]:
    """The metrics of one task, or of a group whose documents are taken together."""
    rows = [row for log in logs for row in sorted(log, key=lambda row: row["doc_id"])]
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    better = members[0].higher_is_better()
    found: list[MetricScores] = []
    for filter_name in filters:
        mine = [row for row in rows if row["filter"] == filter_name]
        for metric in mine[0]["metrics"]:
            values, weights = _values(metric, [row[metric] for row in mine])
            if values is None:
                continue
            suffix = "" if len(filters) == 1 else f"@{filter_name}"
            found.append(
                MetricScores(
                    task=name,
                    metric=metric + suffix,
                    higher_is_better=bool(better[metric]),
                    split=roles[name],
                    values=tuple(values),
                    weights=tuple(weights) if weights else None,
                    doc_ids=_doc_ids(mine, grouped=len(members) > 1),
                    docs_sha256=tasks.documents_digest([row["doc_hash"] for row in mine]),
                    task_version=str(members[0].VERSION),
                    chance=_chance(members[0], mine),
                    available=sum(len(task.eval_docs) for task in members),
                )
            )
    return found


def _doc_ids(rows: list[Any], *, grouped: bool) -> tuple[int, ...]:
    # The members of a group number their documents from 0 each.
    return tuple(range(len(rows))) if grouped else tuple(row["doc_id"] for row in rows)


def _values(metric: str, raw: list[Any]) -> tuple[list[float] | None, list[float] | None]:
    """Values a document, with weights where the mean is weighted.

    Bits per byte comes as (log-likelihood in nats, bytes): the corpus value is the mean of the
    documents' values weighted by their bytes.
    """
    if metric == "bits_per_byte":
        values = [-ll / math.log(2) / size for ll, size in raw]
        _require_finite(metric, values)
        return values, [float(size) for _, size in raw]
    if all(isinstance(value, (bool, int, float)) or hasattr(value, "item") for value in raw):
        values = [round(float(value), 6) for value in raw]
        _require_finite(metric, values)
        return values, None
    # Perplexities repeat bits per byte; list-valued metrics have no value a document.
    return None, None


def _require_finite(metric: str, values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise StageError(
            f"eval: {metric} is not a number for {sum(not math.isfinite(v) for v in values)} "
            "documents; the model's weights hold NaN, or model.dtype is too narrow for them"
        )


def _chance(task: Any, rows: list[Any]) -> float | None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    return sum(1 / len(row["arguments"]) for row in rows) / len(rows)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
