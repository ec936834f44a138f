"""Metrics that would give no value or a wrong one: refused when their task is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.errors import ConfigError
from ftsuite.scoring.aggregation import AGGREGATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.scoring.tasks import LoadedTask

PER_OUTPUT = {
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("bits_per_byte", "byte_perplexity", "word_perplexity"),
    "multiple_choice": (
        *("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
        *("exact_match", "f1", "mcc", "brier_score"),
    ),
}
"""What lm-eval computes for each output type; a task with its own process_results gives others."""


def check(loaded: Sequence[LoadedTask]) -> None:
    """Refuse metrics that would give no value, a wrong one, or a failure after the forward passes.

    Raises:
        ConfigError: names the task, the metric and the remedy.
    """
    for item in loaded:
        names = list(item.task.aggregation())
        if not computes_its_own(item.task):
            names = list(dict.fromkeys((*item.task._metric_fn_list, *names)))
        if not names:
            raise _refusal(item, "it has no metric; name one in its metric_list")
        for metric in names:
            if why := _why_not(item.task, metric):
                raise _refusal(item, f"metric {metric}: {why}")


def computes_its_own(task: Any) -> bool:
    """Whether a task's own Python makes the documents' values, and not lm-eval."""
    from lm_eval.api.task import ConfigurableTask

    given = getattr(type(task), "process_results", None)
    return callable(task.config.process_results) or given is not ConfigurableTask.process_results


def _refusal(item: LoadedTask, why: str) -> ConfigError:
    member = item.task.config.task
    return ConfigError("evals.tasks", item.name, why if member == item.name else f"{member}: {why}")


def _why_not(task: Any, metric: str) -> str:
    """Say why a metric of a task cannot be scored; empty if it can."""
    own = computes_its_own(task)
    kind, computed = task.OUTPUT_TYPE, PER_OUTPUT.get(task.OUTPUT_TYPE)
    if not own and computed is not None and metric not in computed:
        return f"lm-eval does not compute it for {kind}; choose of {', '.join(computed)}"
    if not own and computed is None and task._metric_fn_list.get(metric) is None:
        return "lm-eval does not know it; check its name"
    function = task.aggregation().get(metric)
    if function is None:
        return "it has no aggregation that lm-eval knows; write aggregation: mean, or another"
    name = aggregation_name(function)
    if name == "bypass":
        return "it scores nothing; choose a metric that does"
    better = task.higher_is_better().get(metric)
    if not isinstance(better, bool):
        return "whether higher is better is not said; write higher_is_better: true or false"
    natural = AGGREGATIONS[name].higher_is_better if name in AGGREGATIONS else None
    if name in ("bits_per_byte", "brier_score"):
        natural = False
    if natural is not None and better != natural:
        return f"by {name} {'higher' if natural else 'lower'} is better; mend higher_is_better"
    return "" if own else _why_no_classes(task, name)


def _why_no_classes(task: Any, name: str) -> str:
    """lm-eval's own functions fail on such classes only after everything was scored."""
    if name not in ("f1", "matthews_corrcoef", "brier_score"):
        return ""
    if task.OUTPUT_TYPE != "multiple_choice":
        if name == "matthews_corrcoef":
            return ""
        return f"aggregation {name} needs classes; use it in a multiple_choice task"
    numbers = {len(task.doc_to_choice(doc)) for doc in task.eval_docs}
    if name == "f1" and numbers != {2}:
        return f"lm-eval's f1 is for two choices, and documents have {_span(numbers)}; use mcc"
    if name == "brier_score" and len(numbers) > 1:
        return f"brier_score needs as many choices in every document, not {_span(numbers)}"
    return ""


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def aggregation_name(function: Callable[[Any], Any]) -> str:
    """lm-eval's name of an aggregation; `module.function` for one of a task's own."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, known in AGGREGATION_REGISTRY.items():
        if known is function:
            return str(name)
    # A partial has no name of its own.
    inner = getattr(function, "func", function)
    return f"{inner.__module__}.{getattr(inner, '__name__', type(inner).__name__)}"
