"""From what lm-eval logs of each document to the document that the store keeps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError, StageError
from ftsuite.models import templates
from ftsuite.scoring import documents
from ftsuite.scoring.documents import Choice, Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ftsuite.records import MetricScores
    from ftsuite.scoring.tasks import LoadedTask

    Kept = dict[tuple[str, int], Document]
    """(lm-eval's name of the task, number of the document) → the document."""


def check_groups(loaded: Sequence[LoadedTask], picked: Mapping[str, Sequence[int]]) -> None:
    """Refuse `metadata: {group: FIELD}` of which a document has no such field.

    Raises:
        DataError: names the task, the field and those that there are.
    """
    for item in loaded:
        name, wanted = item.task.config.task, _metadata(item.task).get("group")
        if wanted is None:
            continue
        for number in picked[name]:
            document = item.task.eval_docs[number]
            if not isinstance(wanted, str) or wanted not in document:
                raise DataError(
                    f"{name}: metadata: group: document {number} has no field {wanted!r}; name one "
                    f"of {', '.join(map(str, document))}"
                )


def collect(loaded: Sequence[LoadedTask], results: dict[str, Any], harness: Any) -> dict[str, Kept]:
    """Every document by the name of its task, in the order of `loaded` and of its numbers.

    Args:
        loaded: the tasks, of which several may share a name.
        results: what `simple_evaluate` returned.
        harness: of `harness.build_harness`, which knows the conversations behind the prompts.

    Raises:
        StageError: a log-likelihood is not a number.
    """
    kept: dict[str, Kept] = {}
    for item in loaded:
        found = kept.setdefault(item.name, {})
        name = item.task.config.task
        # lm-eval logs a document once for each filter.
        for row in sorted(results["samples"][name], key=lambda row: row["doc_id"]):
            key = (name, row["doc_id"])
            if key not in found:
                found[key] = _document(item, row, harness)
            if found[key].kind == documents.GENERATED:
                found[key].filtered[row["filter"]] = _text(row["filtered_resps"][0])
    return kept


def with_values(kept: Kept, metrics: Iterable[MetricScores]) -> list[Document]:
    """The documents of one task, with the values that its metrics have for them."""
    values: dict[tuple[str, int], dict[str, float]] = {key: {} for key in kept}
    for metric in metrics:
        if not metric.values:
            continue
        sizes = metric.members or {next(iter(kept))[0]: len(metric.doc_ids)}
        members = [name for name, count in sizes.items() for _ in range(count)]
        for key, value in zip(
            zip(members, metric.doc_ids, strict=True), metric.values, strict=True
        ):
            values[key][metric.metric] = value
    return [dataclasses.replace(d, values=values[key]) for key, d in kept.items()]


def _document(item: LoadedTask, row: dict[str, Any], harness: Any) -> Document:
    task, kind = item.task, str(item.task.OUTPUT_TYPE)
    name, arguments = task.config.task, row["arguments"]
    history = harness.histories.get(arguments[0][0], [])
    question = _question(history, arguments[0][0])
    made: dict[str, Any] = {}
    if kind == "multiple_choice":
        choices = _choices(name, row)
        if getattr(task, "multiple_input", None):
            question, choices = _several_questions(row, choices, harness)
        made["choices"] = choices
        # lm-eval's own lengths: of the texts as the task writes them, without the delimiter.
        written = [str(choice) for choice in task.doc_to_choice(row["doc"])]
        made["choice_characters"] = tuple(map(len, written))
        made["choice_bytes"] = tuple(len(text.encode(errors="surrogatepass")) for text in written)
    elif kind == documents.GENERATED:
        made["answers"] = tuple(map(str, row["resps"][0]))
    else:
        made |= _scored_text(name, kind, row, harness)
    labels = _metadata(task).get("labels")
    return Document(
        task=item.name,
        kind=kind,
        member=name if name != item.name else "",
        number=row["doc_id"],
        sha256=row["doc_hash"],
        group=_group(item, row["doc"]),
        system=history[0]["content"] if history and history[0]["role"] == "system" else "",
        question=question[: documents.LONGEST_QUESTION],
        question_characters=len(question),
        expected=() if kind == "loglikelihood_rolling" else _expected(task, row, made),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        **made,
    )


def _metadata(task: Any) -> dict[str, Any]:
    found = getattr(task.config, "metadata", None)
    return found if isinstance(found, dict) else {}


def _group(item: LoadedTask, document: Mapping[str, Any]) -> str:
    """The field's value that the YAML names; else the member, where the task is a group."""
    field = _metadata(item.task).get("group")
    if field is not None:
        value = document[field]
        return "" if value is None else str(value)
    name = str(item.task.config.task)
    return name if name != item.name else ""


def _question(history: Sequence[Mapping[str, str]], prompt: str) -> str:
    """The last user message; the prompt itself where a document is scored whole."""
    asked = [turn["content"] for turn in history if turn["role"] == "user"]
    return asked[-1] if asked else prompt


def _choices(name: str, row: dict[str, Any]) -> tuple[Choice, ...]:
    """The choices in their order, scored behind the question, and alone if that was asked too."""
    scored = [
        (context, text.strip() or text, _number(name, responses[0][0]))
        for (context, text, *_), responses in zip(row["arguments"], row["resps"], strict=True)
    ]
    half = len(scored) // 2
    # acc_mutual_info has each choice scored a second time, behind an empty context.
    twice = half and all(not context for context, _, _ in scored[half:]) and bool(scored[0][0])
    alone = [score for _, _, score in scored[half:]] if twice else [None] * len(scored)
    asked = scored[:half] if twice else scored
    return tuple(
        Choice(text=text, log_likelihood=score, alone=other)
        for (_, text, score), other in zip(asked, alone, strict=True)
    )


def _several_questions(
    row: dict[str, Any], choices: Sequence[Choice], harness: Any
) -> tuple[str, tuple[Choice, ...]]:
    """Question and choices of a task whose choices stand in the question, such as WinoGrande.

    What all the questions begin with is the question; the rest, with the text that is scored
    behind it, are the choices.
    """
    contexts = [context for context, *_ in row["arguments"][: len(choices)]]
    asked = [_question(harness.histories.get(text, []), text) for text in contexts]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*asked, strict=False))
    shared = "".join(letters[0] for letters in same)
    # Whole words: "Mar" may begin both names.
    shared = shared[: shared.rfind(" ") + 1]
    return shared.strip(), tuple(
        dataclasses.replace(choice, text=f"{text[len(shared) :]} {choice.text}")
        for text, choice in zip(asked, choices, strict=True)
    )


def _scored_text(name: str, kind: str, row: dict[str, Any], harness: Any) -> dict[str, Any]:
    """Log-likelihood, tokens and bytes of the answer or of the whole document."""
    response = row["resps"][0][0]
    if kind == "loglikelihood_rolling":
        (text, *_) = row["arguments"][0]
        score, tokens = response, len(templates.encode_text(harness.tokenizer, text))
    else:
        (context, text, *_), score = row["arguments"][0], response[0]
        tokens = answer_tokens(harness, context, text)
    return {
        "log_likelihood": _number(name, score),
        "tokens": tokens,
        "bytes": len(text.encode(errors="surrogatepass")),
    }


def answer_tokens(harness: Any, context: str, text: str) -> int:
    """Tokens of `text` behind `context`, as lm-eval scores them with this harness."""
    if context:
        _, following = harness._encode_pair(context, text)
        return len(following)
    ids: list[int] = harness.tok_encode(text, add_special_tokens=False)
    # lm-eval scores a text behind nothing from the prefix token on, which may be its own first.
    return len(ids) - (ids[:1] == [harness.prefix_token_id])


def _expected(task: Any, row: dict[str, Any], made: dict[str, Any]) -> tuple[str, ...]:
    """The right answers in words: of choices their texts."""
    in_question = getattr(task, "multiple_input", None)
    target = task.doc_to_text(row["doc"]) if in_question else row["target"]
    texts: list[str] = [choice.text for choice in made.get("choices", ())]
    if not texts and getattr(task.config, "doc_to_choice", None) is not None:
        texts = list(map(str, task.doc_to_choice(row["doc"])))

    def words(one: Any) -> str:
        if isinstance(one, Integral) and 0 <= int(one) < len(texts):
            return texts[int(one)]
        return str(one).strip() if "choices" in made else str(one)

    return tuple(map(words, target if isinstance(target, list | tuple) else [target]))


def _text(value: Any) -> str:
    """What a filter gives: a text, or a list of them where it takes no one of the answers."""
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _number(name: str, value: Any) -> float:
    if math.isnan(number := float(value)):
        raise StageError(
            f"eval: {name}: a log-likelihood is not a number; the model's weights hold NaN, or "
            "model.dtype is too narrow for them"
        )
    return number
