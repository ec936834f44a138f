"""A study as the report sees it: the manifest's cells, their records and their ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite import records as rec
from ftsuite.analysis.compare import find_comparison, find_metric, verdict
from ftsuite.analysis.ranking import Ranking, adjusted_p_values, is_scored, ranking
from ftsuite.config import RunConfig, to_plain
from ftsuite.errors import ComparisonError
from ftsuite.reporting import evidence
from ftsuite.reporting.sweep import short_labels, swept_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.analysis.statistics import Verdict
    from ftsuite.records import CellEntry, Comparison, RunRecord, StudyManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that the sections and plots read; built once by `build`."""

    manifest: StudyManifest
    records: tuple[RunRecord, ...]
    """Records of the manifest's cells, in its order; cells that never ran have none."""
    cells: tuple[RunRecord, ...]
    """Complete cells, best first where there is a ranking."""
    labels: dict[str, str]
    """run_id → short label of a complete cell, for plots."""
    unscored: tuple[RunRecord, ...]
    """Complete cells that were scored on no task."""
    unfinished: tuple[RunRecord, ...]
    missing: tuple[CellEntry, ...]
    """Cells of the manifest without a record."""
    rank_by: str
    headline: str
    watch: tuple[str, ...]
    alpha: float
    ranking: Ranking | None
    problem: str
    """Why there is no ranking; empty if there is one."""
    adjusted: dict[tuple[str, str], float]
    """(run_id, metric) → Holm p-value over all comparisons with the base but the ranking one's."""
    floors: dict[tuple[str, str], float]
    """The same keys → the smallest Holm p-value that the documents could have given."""

    @property
    def pick(self) -> RunRecord | None:
        """The recommended cell; of cells that differ in their seed alone there is none."""
        if self.only_seeds:
            return None
        wanted = self.ranking.recommended if self.ranking else None
        return next((cell for cell in self.cells if cell.run_id == wanted), None)

    @property
    def only_seeds(self) -> bool:
        """Whether the cells differ in nothing but a seed: repetitions, not candidates."""
        keys = swept_keys(self.cells)
        return bool(keys) and all(key.endswith("seed") for key in keys)

    @property
    def rank_split(self) -> str:
        """Split of the ranking metric's documents; empty if the records do not say."""
        return self.split_of(self.rank_by)

    @property
    def rank_words(self) -> str:
        """What the cells are ranked on, as a noun: `validation` only where it is."""
        if self.rank_split in ("", "validation"):
            return self.rank_split or "the ranking metric"
        return f"the {self.rank_split} split"

    @property
    def tests(self) -> int:
        """How many comparisons with the base are adjusted together."""
        return len(self.adjusted)

    @property
    def near(self) -> frozenset[str]:
        """run_ids within noise of the best; empty without a ranking."""
        return self.ranking.within_noise if self.ranking else frozenset()

    @property
    def shown(self) -> RunRecord | None:
        """The cell that examples are taken from: the recommended, else the first."""
        return self.pick or (self.cells[0] if self.cells else None)

    @property
    def test_metrics(self) -> tuple[str, ...]:
        """Names of all compared metrics but the ranking one: headline, others, watched."""
        names = {c.name: None for cell in self.cells for c in cell.comparisons}
        last = [name for name in names if name in self.watch and name != self.headline]
        middle = [name for name in names if name not in (self.rank_by, self.headline, *last)]
        first = [self.headline] if self.headline in names and self.headline != self.rank_by else []
        return (*first, *middle, *last)

    def hopeless(self, name: str) -> bool:
        """Say whether no result at all could have been significant on a metric."""
        floors = [floor for (_, metric), floor in self.floors.items() if metric == name]
        return bool(floors) and min(floors) >= self.alpha

    def split_of(self, name: str) -> str:
        """Return the split of a metric's documents; empty if the records do not say."""
        found = (find_metric(cell.tuned, name) for cell in self.cells)
        return next((metric.split for metric in found if metric and metric.split), "")

    def adjusted_p(self, cell: RunRecord, name: str) -> float | None:
        """Return the Holm p-value of a cell's metric, None if refused or not in the family."""
        return self.adjusted.get((cell.run_id, name))

    def verdict(self, cell: RunRecord, comparison: Comparison) -> Verdict | None:
        """Return the verdict on one comparison; None if it was refused."""
        p_value = self.adjusted_p(cell, comparison.name)
        return None if p_value is None else verdict(comparison, p_value, self.alpha)

    def headline_verdict(self, cell: RunRecord) -> Verdict | None:
        """Return the verdict on a cell's headline metric; None without one."""
        found = find_comparison(cell, self.headline)
        return self.verdict(cell, found) if found else None


def load_study(folder: Path) -> tuple[StudyManifest, list[RunRecord]]:
    """Read `study.json` and the record of each of its cells that has one.

    Raises:
        StoreError: A file is corrupted or of another schema.
    """
    manifest = jsonfile.read(rec.StudyManifest, folder / "study.json")
    paths = [folder / f"{cell.run_id}.json" for cell in manifest.cells]
    return manifest, [jsonfile.read(rec.RunRecord, path) for path in paths if path.exists()]


def build(manifest: StudyManifest, records: Sequence[RunRecord]) -> Study:
    """Sort the records into cells, rank them and adjust their p-values."""
    by_id = {record.run_id: record for record in records}
    ordered = [by_id[entry.run_id] for entry in manifest.cells if entry.run_id in by_id]
    scored = [record for record in ordered if is_scored(record)]
    settings = (scored or ordered)[0].config if ordered else to_plain(RunConfig())
    evals, alpha = settings["evals"], settings["gates"]["alpha"]
    rank_by = evals["rank_by"]
    complete = any(record.status == "complete" for record in ordered)
    found, problem = _rank(scored, rank_by, alpha)
    if complete and not scored:
        problem = "the finished cells were not scored, as evals.tasks names no task"
    if found:
        place = {run_id: index for index, run_id in enumerate(found.order)}
        scored.sort(key=lambda record: place[record.run_id])
    adjusted = adjusted_p_values(scored, rank_by)
    floors = {
        (record.run_id, found.name): evidence.floor_of(found)
        for record in scored
        for found in record.comparisons
        if (record.run_id, found.name) in adjusted
    }
    return Study(
        manifest=manifest,
        records=tuple(ordered),
        cells=tuple(scored),
        labels=short_labels(scored),
        unscored=tuple(
            record for record in ordered if record.status == "complete" and not is_scored(record)
        ),
        unfinished=tuple(record for record in ordered if record.status != "complete"),
        missing=tuple(entry for entry in manifest.cells if entry.run_id not in by_id),
        rank_by=rank_by,
        headline=evals["headline"],
        watch=tuple(evals["watch"]),
        alpha=alpha,
        ranking=found,
        problem=problem,
        adjusted=adjusted,
        floors=evidence.smallest_adjusted(floors),
    )


def _rank(scored: Sequence[RunRecord], rank_by: str, alpha: float) -> tuple[Ranking | None, str]:
    if not scored:
        return None, "no cell finished"
    if not rank_by:
        return None, "no validation metric was configured (evals.rank_by is empty)"
    try:
        return ranking(scored, rank_by, alpha), ""
    except ComparisonError as error:
        return None, str(error)
