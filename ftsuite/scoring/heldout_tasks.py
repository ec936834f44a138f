"""The lm-eval tasks that score held-out rows, by what their answers are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from ftsuite.choices import Answers
from ftsuite.scoring import answers

if TYPE_CHECKING:
    from collections.abc import Collection

    from ftsuite.scoring.answers import AnswerFacts

TASK_VERSION = 1.0
MOST_CHOICES = 4_000
"""Choices to score in a task, by default: with 77 labels a document costs as much as 77."""
FEWEST_DOCUMENTS = 50
LONGEST_TEXT = 256
"""Tokens of a generated free text, unless `evals.max_new_tokens` says so."""
BYTES_A_TOKEN = 3
"""Fewer than a tokenizer puts into a token of English, so that answers are not cut short."""

BITS_PER_BYTE = {
    "metric": "bits_per_byte",
    "aggregation": "bits_per_byte",
    "higher_is_better": False,
}


class Function(str):
    """Name of a function that the YAML calls."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Safe YAML with lm-eval's one tag, and a list that is there twice written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Task configurations, and which of their metrics decide."""

    tasks: tuple[dict[str, Any], ...]
    rank_by: str
    headline: str
    limits: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


WORDS = {
    "choice": "choice among the labels by log-likelihood",
    "exact": "exact match of the generated answer",
    "answers": "log-likelihood of the right answer",
    "json": "generated JSON: valid, fits the schema, fields that are right",
    "number": "generated number: equal within data.tolerance",
    "text": "generated text against the right one: ROUGE-L, chrF",
    "prose": "log-likelihood of the whole text",
}
"""What the tasks of a name's last part measure."""


def words(task: str, kind: str) -> str:
    """What a task measures, in words.

    Args:
        task: its name.
        kind: of the answers; prose for plain text.
    """
    return WORDS[kind if kind == "prose" else task.removesuffix("_validation").rpartition("_")[2]]


def yaml_text(task: dict[str, Any]) -> str:
    """A task as lm-eval's YAML."""
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def tasks(
    name: str, facts: AnswerFacts | None, fields: Collection[str], max_new_tokens: int | None
) -> Made:
    """The tasks of a data set.

    Args:
        name: of the data set; begins each task's name.
        facts: what the answers are; None for plain text.
        fields: fields that some document fills.
        max_new_tokens: longest generated answer, tokens; None: from the answers.
    """
    if facts is None:
        return _prose(name, fields)
    match facts.kind:
        case Answers.labels:
            return _labels(name, facts, fields, max_new_tokens)
        case Answers.json:
            return _generated(name, "json", facts, fields, max_new_tokens)
        case Answers.number:
            return _generated(name, "number", facts, fields, max_new_tokens)
        case _:
            return _free_text(name, facts, fields, max_new_tokens)


def _base(name: str, split: str, fields: Collection[str]) -> dict[str, Any]:
    """What all tasks share; the name of the test's task has no split in it."""
    metadata: dict[str, Any] = {"version": TASK_VERSION, "held_out": True}
    if "group" in fields:
        metadata["group"] = "group"
    if "turns" in fields:
        metadata["turns"] = "turns"
    return {
        "task": f"{name}_validation" if split == "validation" else name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: f"{split}.jsonl"}},
        f"{split}_split": split,
        **({"description": "{{system}}"} if "system" in fields else {}),
        "doc_to_text": "prompt",
        # There is no split to draw examples from that training does not use.
        "num_fewshot": 0,
        "metadata": metadata,
    }


def _metric(name: str, *, aggregation: str = "mean", **more: Any) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": True, **more}


def _answers(name: str, split: str, fields: Collection[str]) -> dict[str, Any]:
    """Log-likelihood of the right answer."""
    return {
        **_base(f"{name}_answers", split, fields),
        "output_type": "loglikelihood",
        "doc_to_target": "answer",
        "process_results": Function("scoring.answer_bits"),
        "metric_list": [BITS_PER_BYTE],
    }


def _prose(name: str, fields: Collection[str]) -> Made:
    made = []
    for split in ("validation", "test"):
        task = _base(f"{name}_text", split, set(fields) - {"system", "turns"})
        made.append(
            {
                **task,
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "text",
                "metric_list": [BITS_PER_BYTE],
            }
        )
    return Made(
        tasks=tuple(made),
        rank_by=f"{name}_text_validation/bits_per_byte",
        headline=f"{name}_text/bits_per_byte",
    )


def _labels(
    name: str, facts: AnswerFacts, fields: Collection[str], max_new_tokens: int | None
) -> Made:
    labels = list(facts.labels)
    exact = {
        split: _exact(name, split, facts, fields, max_new_tokens)
        for split in ("validation", "test")
    }
    if pair := answers.begins_another(labels):
        note = (
            f"no choice among the labels by log-likelihood: {pair[0]!r} begins {pair[1]!r}, so its "
            "log-likelihood is never the lower one; answers are generated instead"
        )
        return Made(
            tasks=(exact["validation"], exact["test"], _answers(name, "test", fields)),
            rank_by=f"{name}_exact_validation/exact_match",
            headline=f"{name}_exact/exact_match",
            notes=(note,),
        )
    choice = []
    for split in ("validation", "test"):
        task = _base(f"{name}_choice", split, fields)
        task["metadata"]["labels"] = labels
        choice.append(
            {
                **task,
                "output_type": "multiple_choice",
                "doc_to_choice": labels,
                "doc_to_target": "label",
                "metric_list": [_metric("acc")],
            }
        )
    most = max(FEWEST_DOCUMENTS, MOST_CHOICES // len(labels))
    return Made(
        tasks=(*choice, _answers(name, "test", fields), exact["test"]),
        rank_by=f"{name}_choice_validation/acc",
        headline=f"{name}_choice/acc",
        limits={task["task"]: most for task in choice},
    )


def _exact(
    name: str, split: str, facts: AnswerFacts, fields: Collection[str], max_new_tokens: int | None
) -> dict[str, Any]:
    bare = [answers.normalised(label) for label in facts.labels]
    # Where two labels differ in nothing else ("C", "C#"), case and punctuation have to count.
    lenient = len(set(bare)) == len(bare) and all(bare)
    task = _base(f"{name}_exact", split, fields)
    task["metadata"] |= {"labels": list(facts.labels), "whole_answers": True}
    return {
        **task,
        "output_type": "generate_until",
        "doc_to_target": "expected",
        # A byte a token is the most that any label takes.
        "generation_kwargs": _generation(max_new_tokens or facts.longest_bytes + 4, ["\n"]),
        "metric_list": [_metric("exact_match", ignore_case=lenient, ignore_punctuation=lenient)],
    }


SCORES = {
    "json": ("json_fields", "json_valid", "json_schema", "json_equal"),
    "number": ("number_equal", "number_given"),
}
"""Metrics of scoring.py by kind; the first decides."""


def _generated(
    name: str,
    kind: str,
    facts: AnswerFacts,
    fields: Collection[str],
    max_new_tokens: int | None,
) -> Made:
    longest = max_new_tokens or _rounded(facts.longest_bytes // 2 + 16)
    made = []
    for split in ("validation", "test"):
        task = _base(f"{name}_{kind}", split, fields)
        task["metadata"]["whole_answers"] = True
        made.append(
            {
                **task,
                "output_type": "generate_until",
                "doc_to_target": "expected",
                "generation_kwargs": _generation(longest, []),
                "process_results": Function(f"scoring.{kind}_scores"),
                "metric_list": [_metric(metric) for metric in SCORES[kind]],
            }
        )
    metric = SCORES[kind][0]
    return Made(
        tasks=(*made, _answers(name, "test", fields)),
        rank_by=f"{name}_{kind}_validation/{metric}",
        headline=f"{name}_{kind}/{metric}",
    )


def _free_text(
    name: str, facts: AnswerFacts, fields: Collection[str], max_new_tokens: int | None
) -> Made:
    usual = _rounded(facts.usual_bytes // BYTES_A_TOKEN + 1)
    longest = max_new_tokens or min(LONGEST_TEXT, usual)
    notes: tuple[str, ...] = ()
    if longest < usual:
        notes = (
            f"generated texts end after {longest} tokens, which some right answers exceed; "
            "evals.max_new_tokens says otherwise",
        )
    text = {
        **_base(f"{name}_text", "test", fields),
        "output_type": "generate_until",
        "doc_to_target": "expected",
        "generation_kwargs": _generation(longest, []),
        "process_results": Function("scoring.text_scores"),
        "metric_list": [_metric("rouge_l"), _metric("chrf", aggregation="chrf")],
    }
    both = [_answers(name, split, fields) for split in ("validation", "test")]
    return Made(
        tasks=(*both, text),
        rank_by=f"{name}_answers_validation/bits_per_byte",
        headline=f"{name}_answers/bits_per_byte",
        notes=notes,
    )


def _generation(tokens: int, until: list[str]) -> dict[str, Any]:
    return {"until": until, "max_gen_toks": tokens, "do_sample": False}


def _rounded(tokens: int) -> int:
    """Up to a multiple of 16, at least 32: a few tokens more cost little."""
    return max(32, -(-tokens // 16) * 16)
