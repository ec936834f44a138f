"""Do the tasks ask with the system message that training has?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.data.prepare import digest_of_system
from ftsuite.scoring import tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftsuite.config import EvalsConfig


def differences(trained: Mapping[str, int], evals: EvalsConfig) -> list[str]:
    """Return what to say of tasks whose system message no training row has.

    A task of general ability without a system message is nothing to speak of; the tasks that rank
    and report are, for they ask what was trained.

    Args:
        trained: `DataSummary.systems`; empty for plain text.
        evals: the tasks.
    """
    if not trained:
        return []
    decisive = {name.partition("/")[0] for name in (evals.rank_by, evals.headline)}
    missing, lacking = [], []
    for name in evals.tasks:
        facts = tasks.facts_of(name, evals)
        # One that differs from document to document, or a text that is scored without a prompt.
        if "{{" in facts.description or facts.output_type == "loglikelihood_rolling":
            continue
        mine = digest_of_system(facts.description or None)
        if mine in trained:
            continue
        if mine:
            missing.append(name)
        elif name in decisive:
            lacking.append(name)
    said = []
    if missing:
        said.append(
            f"{_list(missing)}: a system message that no training row has, so the tuned model is "
            "scored on another prompt than it was trained on; set data.system to the task's "
            "description to train on it"
        )
    if lacking:
        said.append(
            f"{_list(lacking)}: no system message, though every training row has one, so the tuned "
            "model is scored on another prompt than it was trained on; give the task a description"
        )
    return said


def _list(names: list[str]) -> str:
    return f"evals.tasks {', '.join(names)}"
