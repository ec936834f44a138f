"""The report's tables: each takes a study and returns Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ftsuite.analysis.compare import corpus_value, find_comparison, find_metric
from ftsuite.analysis.ranking import cost
from ftsuite.reporting import evidence
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import Comparison, MetricScores, RunRecord, StageRecord
    from ftsuite.reporting.study import Study

MOST_RANKED = 50
"""Rows of the ranked table; GitHub does not render files over 512 kB."""
MOST_CELLS = 20
"""Rows of the other tables; the recommended cell always has one as well."""
ALL_CELLS = "all-cells.csv"
"""Every cell with every metric (allcells.py), where tables leave some out."""


def ranked(study: Study) -> str:
    """The table to pick from: one row a cell, best first."""
    order, rows = study.ranking, []
    ranks, cells, pick = places(study), first(study, study.cells, MOST_RANKED), study.pick
    for cell in cells:
        # One span an override, so that a long label can break and the table fits the page.
        name = " ".join(fmt.code(part) for part in re.split(r",(?=[\w.+/@]+=)", cell.label))
        if cell is pick:
            name = f"**{name}** ← pick"
        near = " ≈" if order and cell.run_id in order.within_noise else ""
        found = find_comparison(cell, study.headline)
        parameters, _ = cost(cell)
        rows.append(
            [
                f"{ranks[cell.run_id]}{near}" if order else fmt.NONE,
                name,
                fmt.unbroken(interval_of(find_metric(cell.tuned, study.rank_by))),
                *(fmt.unbroken(text) for text in _headline(study, cell, found)),
                gates_words(cell),
                fmt.unbroken(fmt.count(parameters)),
                fmt.unbroken(fmt.seconds(train_seconds(cell))),
            ]
        )
    headers = [
        ">rank",
        "cell",
        f">{study.rank_words.removeprefix('the ')} [95 %]",
        ">base",
        ">tuned",
        ">difference [95 %]",
    ]
    headers += [">Holm p", "verdict", "gates", ">parameters", ">training"]
    return fmt.table(headers, rows) + beyond(len(study.cells), len(cells))


def first(study: Study, cells: Sequence[RunRecord], most: int) -> list[RunRecord]:
    """The first of many cells, and the recommended one wherever it stands."""
    pick = study.pick
    return [cell for place, cell in enumerate(cells) if place < most or cell is pick]


def places(study: Study) -> dict[str, int]:
    """run_id → rank; cells of the same score share one."""
    ranks: dict[str, int] = {}
    first_with: dict[float | None, int] = {}
    for place, cell in enumerate(study.cells, start=1):
        metric = find_metric(cell.tuned, study.rank_by)
        score = corpus_value(metric) if metric and metric.doc_ids else None
        ranks[cell.run_id] = first_with.setdefault(score, place)
    return ranks


def interval_of(metric: MetricScores | None) -> str:
    """`0.875 [0.79, 0.93]`: the mean of one model and its 95 % interval."""
    point = evidence.point_of(metric)
    if metric is None or point is None:
        return fmt.NONE
    value, low, high = point
    if len(metric.doc_ids) == 1:
        return f"{fmt.score(value)} (1 document)"
    return f"{fmt.score(value)} {fmt.interval(low, high)}"


def difference_of(comparison: Comparison) -> str:
    """`+0.584 [0.47, 0.70]`."""
    low, high = evidence.inside(comparison.metric, comparison.low, comparison.high)
    return f"{fmt.change(comparison.difference)} {fmt.interval(low, high)}"


def train_seconds(cell: RunRecord) -> float:
    """Seconds of the train stage."""
    return sum(stage.seconds for stage in cell.stages if stage.stage == "train")


def gates_words(cell: RunRecord) -> str:
    """`pass`, or how many gates fail; the section on regressions says which."""
    failed = sum(not gate.passed for gate in cell.gates)
    if failed:
        return f"**fails {failed} of {len(cell.gates)}**"
    return "pass" if cell.gates else fmt.NONE


def beyond(total: int, shown: int, where: str = f"[{ALL_CELLS}]({ALL_CELLS})") -> str:
    """Say how many cells a table leaves out, and where they are."""
    if total <= shown:
        return ""
    verb = "is" if total - shown == 1 else "are"
    return f"\n\n{fmt.plural(total - shown, 'further cell')} {verb} in {where}."


def _headline(study: Study, cell: RunRecord, found: Comparison | None) -> list[str]:
    if found is None:
        return [fmt.NONE] * 5
    if found.refused:
        return [fmt.NONE, fmt.NONE, "refused", fmt.NONE, fmt.NONE]
    return [
        fmt.score(found.base),
        fmt.score(found.tuned),
        difference_of(found),
        fmt.p_value(study.adjusted_p(cell, found.name)),
        verdict_words(study, cell, found),
    ]


def verdict_words(study: Study, cell: RunRecord, comparison: Comparison) -> str:
    """`better`, `worse` or `within noise`; what needs attention is bold."""
    word = study.verdict(cell, comparison)
    if word is None:
        return fmt.NONE
    return f"**{word}**" if word == "worse" else str(word)


def metric(study: Study, name: str) -> str:
    """One metric: a row a cell, base against tuned."""
    rows = []
    for cell in first(study, study.cells, MOST_CELLS):
        found = find_comparison(cell, name)
        if found is None:
            rows.append([fmt.code(cell.label), *[fmt.NONE] * 6, "not scored"])
        elif found.refused:
            reason = f"refused: {fmt.escape(found.refused)}"
            rows.append([fmt.code(cell.label), *[fmt.NONE] * 6, reason])
        else:
            rows.append(
                [
                    fmt.code(cell.label),
                    fmt.score(found.base),
                    fmt.score(found.tuned),
                    difference_of(found),
                    fmt.p_value(found.p_value),
                    fmt.p_value(study.adjusted_p(cell, name)),
                    _detectable(study, found),
                    verdict_words(study, cell, found),
                ]
            )
    headers = ["cell", ">base", ">tuned", ">difference [95 %]", ">p", ">Holm p"]
    table = fmt.table([*headers, ">detectable", "verdict"], rows)
    return table + beyond(len(study.cells), len(rows))


def _detectable(study: Study, comparison: Comparison) -> str:
    if study.hopeless(comparison.name):
        return fmt.NONE
    found = evidence.possible(comparison.metric, comparison.minimum_detectable)
    return fmt.NONE if found is None else fmt.change(found).removeprefix("+")


def unfinished(study: Study) -> str:
    """Cells that did not finish: failed, interrupted, running, or never run."""
    rows = []
    for cell in study.unfinished:
        stage, message = fmt.NONE, "no result yet; it is still running"
        if cell.failure:
            stage = cell.failure.stage
            message = fmt.escape(" ".join(cell.failure.message.split()), limit=300)
            message = f"{fmt.escape(cell.failure.kind)}: {message}"
        elif cell.status != "running":
            message = "no result yet; run the same command again to go on where it stopped"
        rows.append([fmt.code(cell.label), cell.status, stage, message])
    rows += [[fmt.code(entry.label), "not run", fmt.NONE, ""] for entry in study.missing]
    table = fmt.table(["cell", "status", "stage", "message"], rows[:MOST_RANKED])
    return table + beyond(len(rows), MOST_RANKED)


def stages(study: Study) -> str:
    """Time and memory a stage; a result that several cells share is counted once.

    The stages of several tasks or probes stand in one row; `ftsuite show` lists them.
    """
    seen: dict[str, dict[str, StageRecord]] = {}
    uses: dict[str, set[str]] = {}
    for record in study.records:
        for stage in record.stages:
            kind = stage.stage.partition(" ")[0]
            seen.setdefault(kind, {}).setdefault(stage.key, stage)
            uses.setdefault(kind, set()).add(record.run_id)
    rows = []
    for name, by_key in seen.items():
        made = list(by_key.values())
        rows.append(
            [
                name,
                f"{len(made):,}",
                f"{len(uses[name]):,}",
                fmt.seconds(sum(stage.seconds for stage in made)),
                fmt.seconds(max(stage.seconds for stage in made)),
                fmt.size(max(stage.peak_memory_bytes for stage in made)),
                fmt.size(max(stage.peak_device_bytes for stage in made)),
            ]
        )
    total = sum(stage.seconds for by_key in seen.values() for stage in by_key.values())
    rows.append(["**all**", "", "", f"**{fmt.seconds(total)}**", "", "", ""])
    headers = [
        "stage",
        ">computed",
        ">used by",
        ">time",
        ">longest",
        ">peak memory",
        ">peak device",
    ]
    return fmt.table(headers, rows)


def costs(study: Study, cells: Sequence[RunRecord]) -> str:
    """What each cell costs of its own, and the quality it buys."""
    rows = []
    for cell in first(study, cells, MOST_CELLS):
        parameters, own = cost(cell)
        share = (
            f"{100 * parameters / cell.train.total_parameters:.2g} %" if cell.train else fmt.NONE
        )
        # Seconds of a resumed training leave out the steps before.
        whole = cell.train if cell.train and not cell.train.resumed_from_step else None
        spent = train_seconds(cell)
        rows.append(
            [
                fmt.code(cell.label),
                interval_of(find_metric(cell.tuned, study.rank_by or study.headline)),
                f"{fmt.count(parameters)} ({share})",
                fmt.seconds(spent),
                f"{whole.tokens / spent:,.0f}" if whole and spent else fmt.NONE,
                fmt.seconds(own),
                fmt.score(cell.train.final_loss) if cell.train else fmt.NONE,
                fmt.score(cell.train.eval_loss) if cell.train else fmt.NONE,
            ]
        )
    ranked = study.rank_words.removeprefix("the ")
    headers = ["cell", f">{ranked if study.rank_by else 'headline'} [95 %]"]
    headers += [">trained parameters", ">training", ">tokens/s", ">train + merge + eval"]
    headers += [">training loss", ">validation loss"]
    return fmt.table(headers, rows) + beyond(len(cells), len(rows))
