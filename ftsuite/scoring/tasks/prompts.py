"""The requests that lm-eval will make of our own tasks' documents, without lm-eval.

A light reading of ConfigurableTask (lm_eval.api.task): it finds a broken template, a null text or
a label that is no choice before anything runs, and tells `plan` what scoring will cost. Errors
never show a document's text.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.scoring.tasks import documents
from ftsuite.scoring.tasks.facts import scored_split
from ftsuite.scoring.tasks.schema import GENERATION_TOKENS
from ftsuite.scoring.tasks.yaml_files import FunctionRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ftsuite.scoring.tasks.documents import Document
    from ftsuite.scoring.tasks.yaml_files import TaskFile

RENDERED = ("doc_to_text", "doc_to_target", "doc_to_choice")


@dataclass(frozen=True, slots=True)
class Request:
    """What lm-eval asks of the model for one document, or for one choice of it."""

    context: str
    """The document's user turn; empty for rolling log-likelihoods."""
    continuation: str
    """The scored text; empty for a generated answer."""
    generated: int = 0
    """Longest generated answer, tokens."""


def is_light(task: TaskFile) -> bool:
    """Whether a task's requests can be told without running functions of its own."""
    fields = (*RENDERED, "process_docs", "custom_dataset", "description")
    return "class" not in task.config and not any(
        isinstance(task.config.get(name), FunctionRef) for name in fields
    )


def requests(task: TaskFile, rows: Sequence[Document]) -> Iterator[tuple[Request, ...]]:
    """The requests of each document, in order.

    Args:
        task: one for which `is_light` holds.
        rows: documents of the scored split.

    Raises:
        DataError: names the document by its number and says what is wrong with it.
    """
    columns = frozenset(name for row in rows for name in row)
    for number, row in enumerate(rows, start=1):
        yield tuple(_requests(task, row, columns, f"{task.where}: document {number}"))


def check(task: TaskFile) -> None:
    """Refuse documents of one of our tasks that lm-eval would fail on, or score as wrong.

    Raises:
        DataError: names the YAML, the document and the setting.
    """
    if not documents.is_local(task):
        return
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if split := task.config.get(key):
            documents.read(task, split)
    if is_light(task):
        for _ in requests(task, documents.read(task, scored_split(task))):
            pass


def _requests(
    task: TaskFile, row: Document, columns: frozenset[str], where: str
) -> Iterator[Request]:
    config = task.config
    kind = task.output_type
    text = _field(config, "doc_to_text", row, columns, where)
    if earlier := row.get(task.metadata.get("turns", "")):
        text = "\n".join(message["content"] for message in json.loads(earlier))
    target = _field(config, "doc_to_target", row, columns, where)
    description = config.get("description")
    if isinstance(description, str) and description not in row:
        _render(description, row, f"{where}: description")
    if kind == "multiple_choice":
        yield from _choices(config, row, columns, where, text, target)
        return
    if not isinstance(text, str):
        raise DataError(f"{where}: doc_to_text gives no text; mend the document or doc_to_text")
    if kind == "generate_until":
        settings = config.get("generation_kwargs") or {}
        longest = settings.get("max_gen_toks", settings.get("max_new_tokens", GENERATION_TOKENS))
        yield Request(text, "", int(longest))
        return
    if not isinstance(target, str) or not target:
        raise DataError(f"{where}: doc_to_target gives no text to score; mend the document")
    yield Request("" if kind == "loglikelihood_rolling" else text, target)


def _choices(
    config: dict[str, Any],
    row: Document,
    columns: frozenset[str],
    where: str,
    text: Any,
    target: Any,
) -> Iterator[Request]:
    choices = _field(config, "doc_to_choice", row, columns, where)
    choices = list(choices.values()) if isinstance(choices, dict) else choices
    check_label(where, choices, text if isinstance(text, int) else target)
    if isinstance(text, int):
        # The choices stand in the prompt, and what follows is the same for each (Winogrande).
        yield from (Request(choice, str(target)) for choice in choices)
    else:
        yield from (Request(text, choice) for choice in choices)


def check_label(where: str, choices: Any, label: Any) -> None:
    """Refuse choices that are no texts, and a label that is none of them.

    lm-eval scores a document with such a label as wrong, whatever the model says.

    Args:
        where: the task and document, for the message.
        choices: what doc_to_choice gave.
        label: number or text of the right choice, or a list of numbers.

    Raises:
        DataError: says which of the two it is.
    """
    is_texts = isinstance(choices, list) and all(isinstance(one, str) and one for one in choices)
    if not is_texts or not choices:
        what = (
            "an empty text" if isinstance(choices, list) and "" in choices else "no list of texts"
        )
        raise DataError(f"{where}: doc_to_choice gives {what}; mend it or the document")
    for one in label if isinstance(label, list) else [label]:
        is_number = isinstance(one, int) and not isinstance(one, bool)
        if is_number and 0 <= one < len(choices):
            continue
        if isinstance(one, str) and not isinstance(label, list) and one in choices:
            continue
        raise DataError(
            f"{where}: doc_to_target is none of the {len(choices)} choices; mend the label, or let "
            "doc_to_target give a choice's text or its number from 0"
        )


def _field(
    config: dict[str, Any], name: str, row: Document, columns: frozenset[str], where: str
) -> Any:
    """What one of lm-eval's doc_to_… settings gives for a document."""
    setting = config.get(name)
    if not isinstance(setting, str):
        if setting is None:
            raise DataError(f"{where}: {name} is not set; write it into the YAML")
        return setting
    if setting in columns:
        if row.get(setting) is None:
            what = "is null" if setting in row else "is missing"
            raise DataError(f"{where}: the field {setting!r} ({name}) {what}; mend the document")
        return row[setting]
    if setting and "{" not in setting and name != "doc_to_choice" and not setting.isdigit():
        raise DataError(
            f"{where}: {name}: {setting!r} is no field, and without {{{{…}}}} it is the same for "
            f"every document; the fields are: {', '.join(sorted(columns))}"
        )
    rendered = _render(setting, row, f"{where}: {name}")
    return _read_back(rendered, name, config, where)


def _read_back(rendered: str, name: str, config: dict[str, Any], where: str) -> Any:
    """lm-eval's own reading of a rendered template: numbers of choices, and lists."""
    if name == "doc_to_choice":
        try:
            return ast.literal_eval(rendered)
        except (ValueError, SyntaxError, MemoryError) as error:
            raise DataError(
                f"{where}: doc_to_choice renders to no list; write [a, b] or a template of a list"
            ) from error
    if rendered.isdigit() and config.get("doc_to_choice") is not None:
        return int(rendered)
    if name == "doc_to_target" and rendered[:1] == "[" and rendered[-1:] == "]":
        try:
            return ast.literal_eval(rendered)
        except (ValueError, SyntaxError):
            return rendered
    return rendered


def _render(template: str, row: Document, where: str) -> str:
    import jinja2

    try:
        return str(compiled(template, where.rpartition(": ")[2]).render(**row))
    except jinja2.UndefinedError as error:
        raise DataError(
            f"{where}: {error.message}; the document has: {', '.join(sorted(row)) or 'no fields'}"
        ) from error
    except (ArithmeticError, LookupError, TypeError, ValueError, jinja2.TemplateError) as error:
        raise DataError(
            f"{where}: the template fails on this document ({type(error).__name__}); mend either"
        ) from error


@functools.lru_cache(maxsize=256)
def compiled(template: str, name: str) -> Any:
    """A template of a task, compiled as lm-eval does (lm_eval.utils.env).

    Raises:
        DataError: it is no Jinja; says `name` and the line.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"{name}: broken Jinja, line {error.lineno} ({error.message}); mend the template"
        ) from error


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)
