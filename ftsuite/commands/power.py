"""What the planned numbers of documents can show, before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.commands import score_estimate
from ftsuite.reporting import evidence
from ftsuite.reporting import formats as fmt
from ftsuite.scoring import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.config import RunConfig

DISCORDANCE = 0.3
"""Share of items that exactly one of the two models gets right, assumed."""
SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics that are right or wrong on each document."""


def detectable(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """What can be shown on the headline and on the metric that ranks the cells.

    Args:
        configs: All cells of the sweep; the metrics are those of the first.
    """
    evals, alpha = configs[0].evals, configs[0].gates.alpha
    family = _family(configs)
    floors = evidence.smallest_adjusted(
        {key: 0.0 if n is None else evidence.smallest_p(n) for key, n in family.items()}
    )
    found = []
    for name in dict.fromkeys((evals.headline, evals.rank_by)):
        task, _, metric = name.partition("/")
        if not name or metric not in SHARES:
            continue
        ranks = name == evals.rank_by
        items = score_estimate.documents(task, evals, Path(configs[0].store.root))
        comparisons = len(configs) - 1 if ranks else len(family)
        mine = [floor for (_, one), floor in floors.items() if one == name]
        smallest = min(mine, default=None)
        if ranks:
            smallest = min(1.0, comparisons * evidence.smallest_p(items)) if items else None
        found.append(
            {
                "metric": name,
                "items": items,
                "discordance": DISCORDANCE,
                "difference": _difference(items),
                "comparisons": comparisons,
                "smallest_p": None if items is None or not comparisons else smallest,
                "alpha": alpha,
                "ranks": ranks,
            }
        )
    return found


def words(found: dict[str, Any]) -> str:
    """One entry of `detectable` in a sentence."""
    name, items = found["metric"], found["items"]
    if items is None:
        return f"detectable on {name}: not known, its documents are not counted yet"
    what = "between cells" if found["ranks"] else "with the base"
    among = f"{fmt.plural(found['comparisons'], 'comparison')} {what}"
    smallest = found["smallest_p"]
    if smallest is not None and smallest >= found["alpha"]:
        return (
            f"detectable on {name}: nothing; with {fmt.plural(items, 'item')} and {among} the "
            f"smallest possible p-value is {fmt.p_value(smallest)} after Holm's correction, and "
            f"{found['alpha']:g} is the limit; score more documents"
        )
    if found["difference"] is None:
        return f"detectable on {name}: nothing can be detected with {fmt.plural(items, 'item')}"
    more = f"; the correction for {among} needs a larger one" if found["comparisons"] > 1 else ""
    return (
        f"detectable on {name}: a difference of {found['difference']:.3f} with "
        f"{fmt.plural(items, 'item')} (estimate: one test at 5 %, 80 % power, "
        f"the two models disagree on {found['discordance']:.0%} of the items{more})"
    )


def _difference(items: int | None) -> float | None:
    from ftsuite.analysis.statistics import detectable_difference

    if not items:
        return None
    difference = detectable_difference(items, DISCORDANCE)
    # At 1 every answer would have to change: that is no difference to plan with.
    return None if difference is None or difference >= 1 else round(difference, 4)


def _family(configs: Sequence[RunConfig]) -> dict[tuple[int, str], int | None]:
    """(cell, metric) → documents of every comparison with the base that the report will adjust.

    Tasks of lm-eval count as one metric, and their documents as unknown, where only lm-eval knows.
    """
    # Most cells are scored alike.
    known: dict[str, dict[str, int | None]] = {}
    for config in configs:
        if (mark := _mark(config)) not in known:
            known[mark] = _metrics(config)
    return {
        (place, name): items
        for place, config in enumerate(configs)
        for name, items in known[_mark(config)].items()
        if name != config.evals.rank_by
    }


def _mark(config: RunConfig) -> str:
    return repr((config.evals, config.store.root))


def _metrics(config: RunConfig) -> dict[str, int | None]:
    evals, root = config.evals, Path(config.store.root)
    named = [name for name in (evals.headline, *evals.watch) if name]
    found: dict[str, int | None] = {}
    for task in evals.tasks:
        known = [name for name in named if name.startswith(f"{task}/")]
        facts = tasks.facts_of(task, evals)
        names = [f"{task}/{metric.name}" for metric in facts.metrics] or known or [f"{task}/"]
        found |= dict.fromkeys(names, score_estimate.documents(task, evals, root))
    return found
