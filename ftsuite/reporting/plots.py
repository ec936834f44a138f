"""The report's plots: score over the sweep, quality against cost, training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import plot_cost, plot_sweep, plot_training
from ftsuite.reporting.svg import Picture, style

if TYPE_CHECKING:
    from ftsuite.reporting.study import Study


def draw(study: Study) -> dict[str, Picture]:
    """Return the plots of a study by name; a study without complete cells has none."""
    if not study.cells:
        return {}
    with style():
        made = (plot_sweep.draw(study), plot_cost.draw(study), plot_training.draw(study))
    return {one.name: one for one in made if one is not None}
