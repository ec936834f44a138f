"""`ftsuite show RUN --documents`: what base and tuned answered, document by document."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ftsuite.analysis.doctables import judge
from ftsuite.commands.display import table, write, write_json
from ftsuite.errors import ConfigError, StoreError
from ftsuite.reporting import formats as fmt
from ftsuite.scoring import documents
from ftsuite.store.entries import checked_file, folder_of

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from rich.console import RenderableType

    from ftsuite.records import Comparison, RunRecord
    from ftsuite.scoring.documents import Document, Pair

SHOWN = 20
"""Documents that are printed where no other number is asked for; JSON has all."""
LONGEST_TEXT = 600
"""Characters of a text that are printed; JSON has all."""
SIDE_BY_SIDE = 150
"""Characters of a line from which on a document is one row of a table."""
MOST_NAMED = 30


def show_documents(root: Path, record: RunRecord, options: Namespace) -> int:
    """Print the documents of one task of a run, for people or as JSON.

    Raises:
        ConfigError: no such task or group, or no metric tells won from lost.
        StoreError: the run has no documents, or their file is damaged.
    """
    task = _task(record, options.task)
    base, tuned = (documents.read(path, [task]) for path in _files(root, record, task))
    pairs = documents.join(base, tuned)
    headline = record.config.get("evals", {}).get("headline", "")
    by = judge(task, headline, record.comparisons, pairs)
    found = _picked(_of_group(pairs, task, options.group), by, options, task)
    limit = options.limit or (len(found) if options.json else SHOWN)
    if options.json:
        write_json(_plain(record, task, pairs, by, found, limit))
        return 0
    shown, said = found[:limit], _summary(task, pairs, by)
    if shown and Console().width >= SIDE_BY_SIDE:
        parts: list[RenderableType] = [_table(said, shown, by)]
    else:
        parts = [said, *(_block(pair, by) for pair in shown)]
    write(*parts, *_rest(len(found), len(shown)))
    return 0


def _task(record: RunRecord, asked: str | None) -> str:
    """The task that is asked for; else the headline's, else the first."""
    metrics = record.base.metrics if record.base and record.tuned else ()
    known = list(dict.fromkeys(metric.task for metric in metrics))
    if not known:
        raise StoreError(f"{record.run_id}: base and tuned were not both scored; run it to its end")
    if asked is not None:
        if asked not in known:
            raise ConfigError("--task", asked, f"the run scored {', '.join(known)}")
        return asked
    headline = record.config.get("evals", {}).get("headline", "").rpartition("/")[0]
    return headline if headline in known else known[0]


def _files(root: Path, record: RunRecord, task: str) -> list[Path]:
    keys = {stage.stage: stage.key for stage in record.stages}
    return [
        checked_file(folder_of(root, "eval", keys[f"{kind} {task}"]), documents.FILE)
        for kind in ("eval-base", "eval-tuned")
    ]


def _of_group(pairs: list[Pair], task: str, group: str | None) -> list[Pair]:
    if group is None:
        return pairs
    known = dict.fromkeys(pair.base.group for pair in pairs)
    if not any(known):
        raise ConfigError("--group", group, f"the documents of {task} have no groups; leave it out")
    if group not in known:
        more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
        named = ", ".join(map(repr, sorted(known)[:MOST_NAMED]))
        raise ConfigError("--group", group, f"the documents of {task} have {named}{more}")
    return [pair for pair in pairs if pair.base.group == group]


def _picked(pairs: list[Pair], by: Comparison | None, options: Namespace, task: str) -> list[Pair]:
    """The documents that are asked for; won and lost ones by the size of their change."""
    if options.changed:
        return [pair for pair in pairs if _answers_differ(pair, by) or _change(pair, by)]
    if not (options.won or options.lost):
        return pairs
    if by is None:
        raise ConfigError(
            "--won" if options.won else "--lost",
            task,
            "none of its metrics has a value for each document by which one is won or lost; "
            "leave the option out, or take --changed",
        )
    sign = 1 if options.won else -1
    changed = [(change * sign, pair) for pair in pairs if (change := _change(pair, by))]
    changed.sort(key=lambda one: -one[0])
    return [pair for change, pair in changed if change > 0]


def _change(pair: Pair, by: Comparison | None) -> float | None:
    return pair.change(by.metric, higher_is_better=by.higher_is_better) if by else None


def _answers_differ(pair: Pair, by: Comparison | None) -> bool:
    metric = by.metric if by else ""
    return documents.answer(pair.base, metric) != documents.answer(pair.tuned, metric)


def _result(pair: Pair, by: Comparison | None) -> str:
    change = _change(pair, by)
    if change is None:
        return ""
    return "won" if change > 0 else "lost" if change < 0 else "same"


# --- for people -----------------------------------------------------------------------------


def _summary(task: str, pairs: list[Pair], by: Comparison | None) -> str:
    head = f"{task}: {fmt.plural(len(pairs), 'document')}"
    if by is None:
        return f"{head}; none of its metrics says which of them are won or lost."
    results = [_result(pair, by) for pair in pairs]
    better, worse, same = (results.count(name) for name in ("won", "lost", "same"))
    without = results.count("")
    rest = f", {without:,} have no value" if without else ""
    return (
        f"{head}; by {by.metric} tuned won {better:,} and lost {worse:,}, {same:,} are the same"
        f"{rest}."
    )


def _rest(found: int, shown: int) -> list[str]:
    if not found:
        return ["No document is like that."]
    if shown < found:
        return [f"\n{shown:,} of {found:,} shown; --limit {found} shows all."]
    return []


def _table(title: str, pairs: list[Pair], by: Comparison | None) -> RenderableType:
    grouped = any(pair.base.group and pair.base.group != pair.base.member for pair in pairs)
    rows = []
    for pair in pairs:
        cells = dict(_cells(pair, by))
        group = [cells["group"]] if grouped else []
        texts = [cells[name] for name in ("question", "expected", "base", "tuned")]
        rows.append((pair.base.name, *group, *texts, cells["values"], _result(pair, by)))
    headers = ["=document", *(["group"] if grouped else []), "question", "expected"]
    return table(title, [*headers, "base", "tuned", "=base → tuned", "=result"], rows)


def _block(pair: Pair, by: Comparison | None) -> RenderableType:
    title = f"document {pair.base.name}"
    result = _result(pair, by)
    rows = [(name, text) for name, text in _cells(pair, by) if text]
    return table(f"{title}: {result}" if result else title, ("", ""), rows)


def _cells(pair: Pair, by: Comparison | None) -> list[tuple[str, str]]:
    base, tuned, metric = pair.base, pair.tuned, by.metric if by else ""
    values = [
        f"{name} {_value(base.values.get(name))} → {_value(tuned.values.get(name))}"
        for name in {**base.values, **tuned.values}
    ]
    return [
        ("group", base.group if base.group != base.member else ""),
        ("question", _short(base.question, base.question_characters)),
        ("expected", _short(" / ".join(base.expected))),
        ("base", _answer(base, metric)),
        ("tuned", _answer(tuned, metric)),
        ("values", "\n".join(values)),
    ]


def _answer(document: Document, metric: str) -> str:
    text = _short(documents.answer(document, metric)) or "(empty answer)"
    ahead, unit = documents.margin(document, metric), documents.score_unit(metric)
    return text if ahead is None else f"{text} (by {_ahead(ahead)} {unit})"


def _ahead(margin: float) -> str:
    """Two decimals, or two digits of less: nats a character are small."""
    return f"{margin:.2f}" if margin >= 0.1 or not margin else f"{margin:.2g}"


def _value(value: float | None) -> str:
    return fmt.NONE if value is None else f"{value:.4g}"


def _short(text: str, characters: int | None = None) -> str:
    whole = characters or len(text)
    if whole <= LONGEST_TEXT:
        return text.strip()
    return f"{text[:LONGEST_TEXT].strip()} … ({LONGEST_TEXT:,} of {whole:,} characters)"


# --- for programs ---------------------------------------------------------------------------


def _plain(
    record: RunRecord,
    task: str,
    pairs: list[Pair],
    by: Comparison | None,
    found: list[Pair],
    limit: int,
) -> dict[str, Any]:
    results = [_result(pair, by) for pair in pairs]
    return {
        "run_id": record.run_id,
        "study": record.study,
        "label": record.label,
        "task": task,
        "metric": by.metric if by else None,
        "n": len(pairs),
        **{name: results.count(name) if by else None for name in ("won", "lost", "same")},
        "matching": len(found),
        "documents": [_plain_pair(pair, by) for pair in found[:limit]],
    }


def _plain_pair(pair: Pair, by: Comparison | None) -> dict[str, Any]:
    base, metric = pair.base, by.metric if by else ""
    shared = ("member", "number", "sha256", "group", "system", "question", "question_characters")
    own = ("answers", "filtered", "choices", "log_likelihood", "tokens", "bytes", "values")
    sides = {}
    for side, document in (("base", base), ("tuned", pair.tuned)):
        plain = asdict(document)
        sides[side] = {
            "answer": documents.answer(document, metric),
            "margin": documents.margin(document, metric),
            **{name: plain[name] for name in own},
        }
    return {
        **{name: getattr(base, name) for name in shared},
        "expected": list(base.expected),
        "result": _result(pair, by) or None,
        **sides,
    }
