"""Every scored document with what the model answered: `documents.jsonl.gz` beside an eval result.

One JSON object a line, a line a task and document, in the order of the scores. The bytes are the
same for the same answers, and the store keeps their sha256 with the result. Secrets are replaced as
everywhere in the store. Log-likelihoods are in nats.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ftsuite.errors import ComparisonError, StoreError, redacted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

FILE = "documents.jsonl.gz"
GENERATED = "generate_until"
"""lm-eval's name of the tasks whose answers are generated."""
LONGEST_QUESTION = 20_000
"""Characters of a question that are kept: documents that are scored whole may be books."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the answers that a model chose between."""

    text: str
    log_likelihood: float
    alone: float | None = None
    """Log-likelihood without the question; None where no metric asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of one task, and what one model made of it."""

    task: str
    """The name in `evals.tasks`."""
    kind: str
    """lm-eval's output type: generate_until, multiple_choice, loglikelihood or
    loglikelihood_rolling."""
    member: str = ""
    """lm-eval's name of the task where `task` is a group."""
    number: int
    """Number of the document, from 0, within its member."""
    sha256: str
    """lm-eval's hash of the document."""
    group: str = ""
    """What the YAML's `metadata: {group: FIELD}` points at, or the member of a group."""
    system: str = ""
    question: str
    """The last user message, or the whole text where a document is scored whole; at most
    `LONGEST_QUESTION` characters of it."""
    question_characters: int
    """Characters of the whole question."""
    expected: tuple[str, ...] = ()
    """The right answers, mostly one; none where a document is scored whole."""
    answers: tuple[str, ...] = ()
    """What was generated, without what the template writes around every answer; several where the
    task repeats its question."""
    filtered: dict[str, str] = field(default_factory=dict)
    """Filter → what it made of the answers, as scored."""
    choices: tuple[Choice, ...] = ()
    choice_characters: tuple[int, ...] = ()
    """Of each choice as the task writes it, by which acc_norm divides; empty in files of before."""
    choice_bytes: tuple[int, ...] = ()
    """Of it in UTF-8, by which acc_bytes divides."""
    log_likelihood: float | None = None
    """Of the expected answer, or of the whole text."""
    tokens: int | None = None
    """Of that answer or text."""
    bytes: int | None = None
    """Of that answer or text, in UTF-8."""
    values: dict[str, float] = field(default_factory=dict)
    """Metric → its value for this document, where it has one."""
    labels: tuple[str, ...] = ()
    """The closed set of right answers, where the YAML's `metadata` lists it."""

    @property
    def name(self) -> str:
        """`mmlu_anatomy 3`, or `3` where the task is no group."""
        return f"{self.member} {self.number}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One document, and what base and tuned made of it."""

    base: Document
    tuned: Document

    def change(self, metric: str, *, higher_is_better: bool) -> float | None:
        """By how much tuned is better than base; negative: worse, None: no value."""
        before, after = self.base.values.get(metric), self.tuned.values.get(metric)
        if before is None or after is None:
            return None
        return after - before if higher_is_better else before - after


def write(path: Path, documents: Iterable[Document]) -> None:
    """Write `documents` to the file `path`."""
    with (
        path.open("wb") as file,
        # Name and time would make the bytes differ from one run to the next.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        for document in documents:
            line = json.dumps(redacted(asdict(document)), ensure_ascii=False, separators=(",", ":"))
            # Half a surrogate pair is no UTF-8; written as JSON escapes it.
            packed.write(f"{line}\n".encode(errors="backslashreplace"))


def read(path: Path, tasks: Collection[str] | None = None) -> list[Document]:
    """Read the documents of `tasks`, or of all, in their order.

    Raises:
        StoreError: there is no such file, or it cannot be read.
    """
    starts = None if tasks is None else tuple(map(_start, tasks))
    try:
        # newline: other line ends than "\n" may stand inside of a text.
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            return [
                _document(json.loads(line))
                for line in file
                if starts is None or line.startswith(starts)
            ]
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file; run the study again to make it") from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path}: cannot be read ({type(error).__name__}); delete its folder and run again"
        ) from error


def _start(task: str) -> str:
    """How the lines of a task begin, so that those of others need not be parsed."""
    return f'{{"task":{json.dumps(task, ensure_ascii=False)},'


def _document(plain: dict[str, Any]) -> Document:
    plain["choices"] = tuple(Choice(**choice) for choice in plain["choices"])
    for name in ("expected", "answers", "labels", "choice_characters", "choice_bytes"):
        # Files of before lack the sizes of the choices.
        plain[name] = tuple(plain.get(name, ()))
    return Document(**plain)


def join(base: Sequence[Document], tuned: Sequence[Document]) -> list[Pair]:
    """Pair the documents of two models, which must be the same ones in the same order.

    Raises:
        ComparisonError: they are not.
    """
    before, after = (
        [(d.task, d.member, d.number, d.sha256) for d in side] for side in (base, tuned)
    )
    if before != after:
        raise ComparisonError(
            f"documents differ: base {len(before)}, tuned {len(after)}, "
            f"{len(set(before) & set(after))} in common; run both on the same documents"
        )
    return [Pair(base=b, tuned=t) for b, t in zip(base, tuned, strict=True)]


def choice_scores(document: Document, metric: str = "") -> list[float]:
    """Of each choice what `metric` takes the highest of.

    As `ConfigurableTask.process_results` of lm-eval 0.4.13 does: for acc_norm nats a character, for
    acc_bytes nats a byte, for acc_mutual_info the nats that the question adds. For any other
    metric, and where no log-likelihoods without the question are kept, the log-likelihood in nats.
    """
    choices = document.choices
    nats = [choice.log_likelihood for choice in choices]
    match metric.partition("@")[0]:
        case "acc_norm":
            sizes = document.choice_characters or tuple(len(choice.text) for choice in choices)
        case "acc_bytes":
            sizes = document.choice_bytes or tuple(_bytes(choice.text) for choice in choices)
        case "acc_mutual_info":
            alone = [choice.alone for choice in choices if choice.alone is not None]
            return [a - b for a, b in zip(nats, alone or [0.0] * len(nats), strict=True)]
        case _:
            return nats
    # An empty choice is never picked, as with numpy.
    return [n / size if size else -math.inf for n, size in zip(nats, sizes, strict=True)]


def score_unit(metric: str) -> str:
    """Unit of `choice_scores`."""
    units = {"acc_norm": "nats a character", "acc_bytes": "nats a byte"}
    return units.get(metric.partition("@")[0], "nats")


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def picked(document: Document, metric: str = "") -> int | None:
    """Place of the choice that `metric` counts, the first of equal ones; None without choices."""
    scores = choice_scores(document, metric)
    return scores.index(max(scores)) if scores else None


def margin(document: Document, metric: str = "") -> float | None:
    """Score of the picked choice less that of the next one, in the metric's `score_unit`."""
    scores = sorted(choice_scores(document, metric), reverse=True)
    return scores[0] - scores[1] if len(scores) > 1 else None


def filtered_answer(document: Document, metric: str) -> str:
    """The generated answer that `metric` is computed from, such as `exact_match@filter`."""
    named = metric.partition("@")[2]
    if not named and len(document.filtered) == 1:
        (named,) = document.filtered
    return document.filtered.get(named, document.answers[0] if document.answers else "")


def answer(document: Document, metric: str = "") -> str:
    """What the model answered, in words: text, choice that `metric` counts, or log-likelihood.

    Where a filter makes something else of a generated answer, both are given.
    """
    place = picked(document, metric)
    if place is not None:
        return document.choices[place].text
    if document.answers:
        said, made = "\n".join(document.answers), filtered_answer(document, metric)
        return said if made.strip() == said.strip() else f"{said} ⇒ {made}"
    if document.log_likelihood is None:
        return ""
    return f"{document.log_likelihood:.2f} nats, {document.tokens} tokens"
