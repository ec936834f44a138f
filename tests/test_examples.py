"""The committed studies: their reports, and the README's numbers, are what their records give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ftsuite.analysis.compare import find_comparison, find_metric
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.probes import find, passed
from ftsuite.reporting.report import load_study, render

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.records import RunRecord

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in ROOT.glob("experiments/*/study.json"))
STUDIES_BY_NAME = {path.name: path for path in STUDIES}
CPU = STUDIES_BY_NAME["lora_rank_cpu"]
PROSE = "prose_bpb/bits_per_byte"


def test_there_are_committed_studies() -> None:
    assert {study.name for study in STUDIES} >= {"lora_rank_cpu", "lora_rank_h100"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_report_is_rendered_from_the_records(study: Path, tmp_path: Path) -> None:
    render(*load_study(study), tmp_path)
    committed = ROOT / "reports" / study.name
    names = {path.name for path in committed.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in sorted(names):
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes(), name


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_records_are_complete_and_name_no_machine_path(study: Path) -> None:
    manifest, records = load_study(study)
    assert [r.status for r in records] == ["complete"] * len(manifest.cells)
    text = "".join(path.read_text("utf-8") for path in study.glob("*.json"))
    assert not re.search(r"/(?:tmp|home|root|Users)/", text)


# --- the README's numbers --------------------------------------------------------------------

README = " ".join((ROOT / "README.md").read_text("utf-8").split())


def by_rank(study: Path) -> dict[int, RunRecord]:
    """LoRA rank → record."""
    _, records = load_study(study)
    return {record.config["lora"]["r"]: record for record in records}


def spread(numbers: Iterable[float | None], digits: int) -> tuple[str, str]:
    known = [number for number in numbers if number is not None]
    return f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"


def test_readme_says_what_the_records_say_of_format_and_knowledge() -> None:
    cells = by_rank(CPU)
    exact = [find_metric(cell.base, "intent_exact/exact_match") for cell in cells.values()]
    right = {(sum(metric.values), len(metric.values)) for metric in exact if metric}
    ((matches, asked),) = right
    assert f"{matches:.0f} of {asked} answers match exactly" in README
    choices = [find_comparison(cell, "intent_choice/acc") for cell in cells.values()]
    found = [choice for choice in choices if choice and not choice.refused]
    assert len(found) == len(cells)
    # One base, and the same documents for base and tuned: that is what makes it comparable.
    ((documents, base),) = {(choice.n, choice.base) for choice in found}
    low, high = spread((choice.tuned for choice in found), 2)
    chance = find_metric(cells[2].base, "intent_choice/acc")
    assert chance and f"(chance {chance.chance:.2f})" in README
    assert (
        f"it gets {base:.2f} of {documents} documents right, and on the same {documents} documents "
        f"the tuned models get {low} to {high}"
    ) in README


def test_readme_says_what_the_records_say_of_the_gate() -> None:
    cells = by_rank(CPU)
    found = {rank: find_comparison(cell, PROSE) for rank, cell in cells.items()}
    assert all(one and one.difference and one.difference > 0 for one in found.values())
    low, high = spread((one.difference for one in found.values() if one), 3)
    documents = {one.n for one in found.values() if one}
    assert f"worse at every rank, by {low} to {high} on {documents.pop()} documents" in README
    assert not documents
    failing = [rank for rank, cell in cells.items() if not all(g.passed for g in cell.gates)]
    (rank,) = failing
    (gate,) = cells[rank].gates
    one = found[rank]
    assert one and one.low and one.high and one.low <= gate.limit < one.high
    assert (
        f"The gate allows {gate.limit:.3f}: `lora.r={rank}` fails it with {gate.observed:.3f}, but "
        f"its 95 % interval, {one.low:.3f} to {one.high:.3f}, holds the limit"
    ) in README


def test_readme_says_what_the_records_say_of_the_pirate() -> None:
    cells = by_rank(CPU).values()
    sides = [[cell.base_probes for cell in cells], [cell.tuned_probes for cell in cells]]
    base, tuned = (
        {passed(probe, with_system=True) for report in side if (probe := find(report, "pirate"))}
        for side in sides
    )
    assert f"the base passes {base.pop()} answers, each tuned model {tuned.pop()}" in README
    assert not base and not tuned


def test_readme_gives_the_times_and_memory_of_the_records() -> None:
    rows: list[list[str]] = [[], [], []]
    for study in (CPU, STUDIES_BY_NAME["lora_rank_h100"]):
        stages = {s.key: s for record in by_rank(study).values() for s in record.stages}.values()
        training = [stage.seconds for stage in stages if stage.stage == "train"]
        rows[0].append(fmt.seconds(sum(stage.seconds for stage in stages)))
        rows[1].append(fmt.seconds(sum(training)))
        device = max(stage.peak_device_bytes for stage in stages)
        gpu = f", and {device / 1e9:.1f} GB on the GPU" if device else ""
        rows[2].append(fmt.size(max(stage.peak_memory_bytes for stage in stages)) + gpu)
    for name, (cpu, gpu) in zip(
        ("the four cells, all stages", "of that training", "highest memory of a stage"),
        rows,
        strict=True,
    ):
        assert f"| {name} | {cpu} | {gpu} |" in README
    rerun = json.loads((ROOT / "benchmarks/results/rerun.json").read_text("utf-8"))
    median = rerun["figures"][0]["median_seconds"]
    assert f"| the same command again, no torch imported | {median:.1f} s |" in README
    assert rerun["imported"]["torch"] is False
