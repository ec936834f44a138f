from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite import jsonfile
from ftsuite.config import LoraConfig, RunConfig, StoreConfig, TrackingConfig, TrainConfig
from ftsuite.errors import StoreError
from ftsuite.records import CellEntry, Provenance, RunRecord, StudyManifest
from ftsuite.studies import study

if TYPE_CHECKING:
    from pathlib import Path


def provenance() -> Provenance:
    return Provenance(
        ftsuite="0",
        git_commit="",
        git_dirty=False,
        python="3",
        platform="",
        device="cpu",
        dtype="float32",
        versions={},
        started_at="",
        finished_at="",
        command="",
    )


def record(run_id: str, **fields: Any) -> RunRecord:
    basis: dict[str, Any] = {
        "run_id": run_id,
        "study": "mine",
        "label": run_id,
        "overrides": (),
        "status": "running",
        "config": {},
        "provenance": provenance(),
    }
    return RunRecord(**(basis | fields))


def manifest(*configs: RunConfig) -> StudyManifest:
    entries = [
        CellEntry(run_id=study.run_id(config), label=f"r={config.lora.r}", overrides=())
        for config in configs
    ]
    return StudyManifest(study="mine", command="python -m ftsuite", cells=tuple(entries))


def write(root: Path, cells: StudyManifest) -> None:
    with study.command(root, cells):
        pass


def cell(rank: int, **fields: Any) -> RunConfig:
    return RunConfig(study="mine", lora=LoraConfig(r=rank), **fields)


# --- identity -------------------------------------------------------------------------------


def test_run_id_is_what_can_change_a_result() -> None:
    mine = study.run_id(cell(4))
    assert len(mine) == 12
    assert study.run_id(cell(8)) != mine
    assert study.run_id(cell(4, train=TrainConfig(seed=1))) != mine


def test_run_id_does_not_change_with_where_and_how_it_is_watched() -> None:
    mine = study.run_id(cell(4))
    assert study.run_id(cell(4, store=StoreConfig(root="/elsewhere"))) == mine
    assert study.run_id(cell(4, tracking=TrackingConfig(project="other"))) == mine
    assert study.run_id(cell(4, train=TrainConfig(checkpoint_every_steps=1))) == mine
    assert study.run_id(RunConfig(study="yours", lora=LoraConfig(r=4))) == mine


# --- the manifest ---------------------------------------------------------------------------


def test_cells_have_their_places() -> None:
    _, found = study.cells_of(manifest(cell(2), cell(4)), [cell(2), cell(4)])
    assert found.place == "2/2 r=4"
    assert found.entry.run_id == study.run_id(cell(4))
    assert found.command == "python -m ftsuite"


# --- commands of one study at once ----------------------------------------------------------


def labels(root: Path) -> list[str]:
    return [entry.label for entry in study.read_manifest(root, "mine").cells]


def test_commands_at_once_have_the_union_of_their_cells(tmp_path: Path) -> None:
    first, second = manifest(cell(4), cell(2)), manifest(cell(8), cell(4))
    second = replace(second, command="python -m ftsuite lora.r=8,4")
    with study.command(tmp_path, first) as alone:
        assert alone == first
        with study.command(tmp_path, second) as both:
            assert both == study.read_manifest(tmp_path, "mine")
            assert labels(tmp_path) == ["r=4", "r=2", "r=8"]
            assert both.command == "python -m ftsuite & python -m ftsuite lora.r=8,4"
            # And a third, with the same cells, adds nothing.
            with study.command(tmp_path, second) as again:
                assert again == both
    # The last one's report still shows all; the next command is alone again.
    assert labels(tmp_path) == ["r=4", "r=2", "r=8"]
    write(tmp_path, second)
    assert study.read_manifest(tmp_path, "mine") == second
    assert not list((tmp_path / "studies" / "mine" / "commands").iterdir())


def test_a_command_that_ends_with_an_error_is_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), study.command(tmp_path, manifest(cell(2))):
        raise ValueError("inside")
    write(tmp_path, manifest(cell(4)))
    assert labels(tmp_path) == ["r=4"]


def test_cells_of_one_label_are_told_apart(tmp_path: Path) -> None:
    other = cell(2, train=TrainConfig(seed=1))
    with study.command(tmp_path, manifest(cell(2))):
        write(tmp_path, manifest(other))
        assert labels(tmp_path) == ["r=2", f"r=2 {study.run_id(other)[:6]}"]


BEGUN = """
import sys, time
from pathlib import Path
from ftsuite import jsonfile
from ftsuite.records import StudyManifest
from ftsuite.studies import study
with study.command(Path(sys.argv[1]), jsonfile.read(StudyManifest, Path(sys.argv[2]))):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_of_a_killed_command_only_what_is_complete_stays(tmp_path: Path) -> None:
    cells = tmp_path / "cells.json"
    jsonfile.write(cells, manifest(cell(4), cell(2)))
    with study.command(tmp_path, manifest(cell(8))):
        killed = subprocess.Popen(
            [sys.executable, "-c", BEGUN, str(tmp_path), str(cells)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert killed.stdout is not None and killed.stdout.readline() == "begun\n"
        assert labels(tmp_path) == ["r=8", "r=4", "r=2"]
        run = study.run_id(cell(2))
        jsonfile.write(study.record_path(tmp_path, "mine", run), record(run, status="complete"))
        killed.kill()
        killed.communicate(timeout=30)
        with study.command(tmp_path, manifest(cell(16))):
            assert labels(tmp_path) == ["r=8", "r=2", "r=16"]
            assert len(list((tmp_path / "studies/mine/commands").glob("*.json"))) == 2


def test_each_command_is_told_what_the_others_have_done(tmp_path: Path) -> None:
    first, second = manifest(cell(2)), manifest(cell(4), cell(8))
    done = study.run_id(cell(4))
    with study.command(tmp_path, first), study.command(tmp_path, second):
        jsonfile.write(study.record_path(tmp_path, "mine", done), record(done, status="complete"))
        whole, others = study.together(tmp_path, first)
        assert [entry.label for entry in whole.cells] == ["r=2", "r=4", "r=8"]
        assert [other.run_id for other in others] == [done]
        assert study.together(tmp_path, second)[1] == []


def test_unknown_study_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="known are: none"):
        study.read_manifest(tmp_path, "yours")
    write(tmp_path, manifest(cell(2)))
    with pytest.raises(StoreError, match=r"yours: no such study in .* known are: mine"):
        study.read_manifest(tmp_path, "yours")


# --- status ---------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from ftsuite.studies.study import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_running_means_running_and_interrupted_after_a_kill(tmp_path: Path) -> None:
    path = study.record_path(tmp_path, "mine", "a")
    jsonfile.write(path, record("a"))
    assert study.read_run(path).status == "interrupted"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert study.read_run(path).status == "running"
        # Reading takes nothing from whoever runs.
        assert study.read_run(path).status == "running"
    finally:
        holder.kill()
        holder.communicate(timeout=30)
    assert study.read_run(path).status == "interrupted"
    # The file itself is left as it was.
    assert jsonfile.read(RunRecord, path).status == "running"


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_other_states_are_read_as_written(tmp_path: Path, status: str) -> None:
    path = study.record_path(tmp_path, "mine", "a")
    jsonfile.write(path, record("a", status=status))
    assert study.read_run(path).status == status


def test_claim_is_released_by_an_error(tmp_path: Path) -> None:
    path = study.record_path(tmp_path, "mine", "a")
    jsonfile.write(path, record("a"))
    with pytest.raises(ValueError, match="inside"), study.claimed(path):
        assert study.read_run(path).status == "running"
        raise ValueError("inside")
    assert study.read_run(path).status == "interrupted"


def test_all_runs_puts_earlier_commands_last(tmp_path: Path) -> None:
    latest = manifest(cell(4), cell(2))
    write(tmp_path, latest)
    for run_id in ("zz", "aa", *(entry.run_id for entry in latest.cells)):
        jsonfile.write(study.record_path(tmp_path, "mine", run_id), record(run_id, status="failed"))
    found = [found.run_id for _, found in study.all_runs(tmp_path)]
    assert found == [latest.cells[0].run_id, latest.cells[1].run_id, "aa", "zz"]


def test_damaged_record_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = study.record_path(tmp_path, "mine", "a")
    jsonfile.write(path, record("a"))
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreError, match="delete it and run again"):
        study.read_run(path)
    with pytest.raises(StoreError, match="no such record"):
        study.read_run(path.with_name("b.json"))
