"""The eval stage: lm-eval as a library, every document's score kept."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError, StageError
from ftsuite.models import embedded, loading, templates, turns, warm
from ftsuite.records import Conditions, MetricScores, Scores
from ftsuite.scoring import documents, fitting, metric_checks, metrics, proof, samples, tasks
from ftsuite.scoring.harness import build_harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ftsuite.config import EvalsConfig
    from ftsuite.devices import Target
    from ftsuite.events import Events
    from ftsuite.scoring.documents import Document
    from ftsuite.stages import Evaluate
    from ftsuite.store.stage import Folders


def evaluate(stage: Evaluate, folders: Folders, out: Path, events: Events) -> Scores:
    """Score a model on one task, or on one group of tasks, and keep every document.

    Raises:
        ConfigError: a task has a metric that cannot be scored.
        DataError: a task's documents are missing, or its system prompt gets lost in the template.
        StageError: lm-eval would score other tokens than training trains.
    """
    ((_, result),) = evaluate_many([stage], folders, {stage.key: out}, {stage.key: events})
    if isinstance(result, Exception):
        raise result
    return result


def evaluate_many(
    stages: Sequence[Evaluate],
    folders: Folders,
    outs: Mapping[str, Path],
    events: Mapping[str, Events],
) -> Iterator[tuple[str, Scores | Exception]]:
    """Score one model on several tasks, one after another; one that fails does not keep the others.

    What is wrong with a task is found before the model is loaded.
    """
    asked: dict[str, _Asked] = {}
    for stage in stages:
        try:
            asked[stage.key] = _loaded(stage, folders)
        except Exception as error:
            yield stage.key, error
    if not asked:
        return
    first = stages[0]
    with warm.model(first.model, folders, first.target) as (model, tokenizer):
        own = model.generation_config
        for key, tasks_of in asked.items():
            try:
                yield (
                    key,
                    _scored(tasks_of, first.target, model, tokenizer, outs[key], events[key]),
                )
            except Exception as error:
                yield key, error
            finally:
                model.generation_config = own


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Tasks with the numbers of the documents to score."""

    evals: EvalsConfig
    loaded: list[tasks.LoadedTask]
    picked: dict[str, list[int]]


def _loaded(stage: Evaluate, folders: Folders) -> _Asked:
    evals = _with_folders(stage, folders)
    standard = embedded.standard_folder(folders[stage.standard.key]) if stage.standard else None
    loaded = tasks.load(evals, standard)
    metric_checks.check(loaded)
    picked = {t.task.config.task: _subset(t, evals) for t in loaded}
    tasks.check_documents(loaded, picked)
    samples.check_groups(loaded, picked)
    return _Asked(evals=evals, loaded=loaded, picked=picked)


def _with_folders(stage: Evaluate, folders: Folders) -> EvalsConfig:
    """The settings, with the folder that has the held-out rows' tasks among those searched."""
    if stage.held_out is None:
        return stage.evals
    path = [str(folders[stage.held_out.key]), *stage.evals.path]
    return dataclasses.replace(stage.evals, path=path)


def _scored(
    asked: _Asked, target: Target, model: Any, tokenizer: Any, out: Path, events: Events
) -> Scores:
    from lm_eval.tasks import TaskManager

    evals, loaded = asked.evals, asked.loaded
    ends = turns.end_tokens(model, tokenizer)
    generation, ignored = loading.plain_generation(model, ends, tokenizer.pad_token_id)
    harness = build_harness(model, tokenizer, evals.batch_size, events)
    by_name = {t.task.config.task: t.task for t in loaded}
    picked, left_out = fitting.fitting(by_name, harness, asked.picked)
    proof.whole_answers(by_name, tokenizer, picked)
    bos = proof.prove(by_name, harness, picked)
    results = _simple_evaluate(
        model=harness,
        tasks=[t.task for t in loaded],
        num_fewshot=evals.num_fewshot,
        samples=picked,
        # The tasks are built already: no need to index lm-eval's 14,000 YAML files again.
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        fewshot_random_seed=evals.fewshot_seed,
    )
    conditions = Conditions(
        harness=metadata.version("lm_eval"),
        engine=", ".join(f"{name} {version}" for name, version in target.versions.items()),
        device=target.device,
        device_name=target.device_name,
        dtype=target.dtype,
        batch_size=evals.batch_size,
        template_sha256=templates.digest(tokenizer),
        system_prompt=_digest(*(t.task.config.description or "" for t in loaded)),
        template_switches=templates.switches_text(tokenizer),
        system_place=templates.installed(tokenizer).place.value,
        stop=", ".join(map(repr, turns.dialect(tokenizer).stops)),
        bos=bos,
        num_fewshot=", ".join(f"{t.task.config.task}: {t.task.config.num_fewshot}" for t in loaded)
        + "; as turns",
        seeds=f"fewshot {evals.fewshot_seed}, subset {evals.subset_seed}",
        attention=str(model.config._attn_implementation),
        generation="; ".join([generation, *_sampled(loaded)]),
    )
    scored, kept = _grouped(loaded, results, harness)
    documents.write(out / documents.FILE, kept)
    return Scores(
        conditions=conditions,
        metrics=scored,
        tokens=harness.tokens,
        generation_ignored=ignored,
        left_out=left_out,
    )


def _simple_evaluate(**arguments: Any) -> Any:
    import lm_eval

    try:
        return lm_eval.simple_evaluate(**arguments)
    except OverflowError as error:
        raise StageError(
            "eval: a perplexity is beyond the largest number, as of texts without spaces, which "
            "count as one word; leave word_perplexity out of the task's metric_list"
        ) from error


def _sampled(loaded: list[tasks.LoadedTask]) -> list[str]:
    """The tasks whose own settings say how answers are generated, and how."""
    said = []
    for item in loaded:
        settings = getattr(item.task.config, "generation_kwargs", None) or {}
        own = {k: v for k, v in settings.items() if k not in ("until", "max_gen_toks")}
        if own.get("do_sample") or own.get("temperature"):
            shown = ", ".join(f"{key}={value}" for key, value in sorted(own.items()))
            said.append(f"{item.task.config.task}: sampled, {shown}")
    return said


def _subset(loaded: tasks.LoadedTask, config: EvalsConfig) -> list[int]:
    """Numbers of the documents to score."""
    total = len(loaded.task.eval_docs)
    if total == 0:
        raise DataError(f"evals.tasks: {loaded.name} has no documents; check its data file")
    return tasks.picked(loaded.name, total, config)


def _grouped(
    loaded: list[tasks.LoadedTask], results: dict[str, Any], harness: Any
) -> tuple[tuple[MetricScores, ...], list[Document]]:
    """Metrics and documents, task by task; the tasks of a group are taken together."""
    groups: dict[str, list[Any]] = {}
    roles = tasks.roles(loaded)
    for item in loaded:
        groups.setdefault(item.name, []).append(item.task)
    scored: list[MetricScores] = []
    written: list[Document] = []
    for name, kept in samples.collect(loaded, results, harness).items():
        found = metrics.collect(name, groups[name], results, kept, split=roles[name])
        scored += found
        written += samples.with_values(kept, found)
    return tuple(scored), written


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
