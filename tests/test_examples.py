"""The committed studies: their reports are what their records render to, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ftsuite.report import load_study, render

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in ROOT.glob("experiments/*/study.json"))


def test_there_are_committed_studies() -> None:
    assert {study.name for study in STUDIES} >= {"lora_rank_cpu", "lora_rank_h200"}


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
