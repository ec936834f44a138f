"""Studies of many cells: what is equal is found out once, and every cell is accounted for."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from synthetic import RANK_BY, make_failed, make_many, make_record, make_study, write_study

from ftsuite import cli, devices, jsonfile
from ftsuite.commands import estimate, power, score_estimate, selection
from ftsuite.commands import planned as planned_cells
from ftsuite.errors import ConfigError
from ftsuite.reporting import allcells
from ftsuite.reporting import study as report_study
from ftsuite.reporting.report import render
from ftsuite.scoring import heldout, probefiles
from ftsuite.scoring.tasks.own_files import own_tasks
from ftsuite.studies import suite, sweeper

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.records import RunRecord

GRID = ["lora.r=range(1,11)", "train.learning_rate=1e-5,2e-5,3e-5", "train.seed=0,1"]
CELLS = 60


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def labels(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Overrides for a CSV of one's own."""
    assert cli.main(["example", "labels", str(elsewhere / "labels.csv")]) == 0
    capsys.readouterr()
    return ["data=file", f"data.train={elsewhere / 'labels.csv'}"]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Count the calls of a function: one item a call."""
    calls: list[Any] = []
    whole = getattr(owner, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return whole(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- composing and planning ----------------------------------------------------------------------


def test_equal_cells_are_looked_into_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], labels: list[str]
) -> None:
    once = {
        "tasks are listed": counted(monkeypatch, suite, "resolve"),
        "rows are cut": counted(monkeypatch, heldout, "_write"),
        "rows are measured": counted(monkeypatch, estimate, "file_size"),
        "speeds are looked up": counted(monkeypatch, estimate, "speeds"),
        "the model is looked for": counted(monkeypatch, planned_cells, "cached_base"),
        "the machine is looked at": counted(monkeypatch, devices, "probe"),
        "metrics are counted": counted(monkeypatch, power, "_metrics"),
    }
    tried = counted(monkeypatch, probefiles, "_try_patterns")
    scored = counted(monkeypatch, score_estimate, "score_tokens")
    found = planned(capsys, *labels, *GRID)
    assert len({cell["run_id"] for cell in found["cells"]}) == CELLS
    assert {what: len(calls) for what, calls in once.items()} == dict.fromkeys(once, 1)
    tasks = [
        stage for stage in found["cells"][0]["stages"] if stage["stage"].startswith("eval-base")
    ]
    assert sorted(name for name, *_ in scored) == sorted(
        stage["stage"].removeprefix("eval-base ") for stage in tasks
    )
    # Three probes, three times: checked without and with the folder of the held-out rows' tasks,
    # and measured.
    assert len(tried) == 9


def test_a_cell_of_a_sweep_is_planned_as_it_is_alone(
    capsys: pytest.CaptureFixture[str], labels: list[str]
) -> None:
    sweep = ["lora.r=1,2", "evals.limit=5,10", "data.train_limit=20,40", "probes=default,none"]
    cells = planned(capsys, *labels, *sweep)["cells"]
    assert len(cells) == 16
    for cell in cells:
        (alone,) = planned(capsys, *labels, *cell["label"].split(", "))["cells"]
        assert {**alone, "label": cell["label"]} == cell


def test_cells_of_equal_settings_do_not_share_them(labels: list[str]) -> None:
    sweep = ["lora.r=1,2", "evals.limit=5,10"]
    one, other, *_ = configs = sweeper.compose([*labels, *sweep]).configs
    assert [config.evals.limit for config in configs] == [5, 10, 5, 10]
    same = configs[2]
    assert one.evals == same.evals != other.evals
    one.evals.tasks.clear()
    one.gates.max_worse.clear()
    assert len(same.evals.tasks) > 1


def test_a_secret_in_a_later_cell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    with pytest.raises(ConfigError, match=r"model\.name = .*HF_TOKEN"):
        sweeper.compose(["model.name=a,b,hf_abcdefghijkl"])


def test_what_is_said_of_evals_keeps_its_order(labels: list[str]) -> None:
    alone = [
        sweeper.said_of_evals(sweeper.compose([*labels, f"evals.limit={limit}"]))
        for limit in (5, 10)
    ]
    both = sweeper.said_of_evals(sweeper.compose([*labels, "evals.limit=5,10", "lora.r=1,2"]))
    assert both == list(dict.fromkeys([*alone[0], *alone[1]]))


def test_tasks_that_come_go_and_change_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()

    def mine() -> dict[str, str]:
        return {
            name: files[0].name
            for name, files in own_tasks([str(folder)]).items()
            if files[0].parent == folder
        }

    assert mine() == {}
    (folder / "one.yaml").write_text("task: first\n")
    assert mine() == {"first": "one.yaml"}
    (folder / "two.yaml").write_text("task: second\n")
    assert mine() == {"first": "one.yaml", "second": "two.yaml"}
    (folder / "one.yaml").write_text("task: renamed\n")
    assert mine() == {"renamed": "one.yaml", "second": "two.yaml"}
    (folder / "two.yaml").unlink()
    (folder / "inner").mkdir()
    (folder / "inner" / "three.yml").write_text("task: third\n")
    assert mine() == {"renamed": "one.yaml"}
    assert own_tasks([str(folder)])["third"] == ((folder / "inner" / "three.yml").resolve(),)


def test_plan_prints_the_first_cells_and_says_so(
    capsys: pytest.CaptureFixture[str], labels: list[str]
) -> None:
    def printed(*options: str) -> tuple[int, str]:
        assert cli.main(["plan", *options, *labels, "probes=none", *GRID]) == 0
        said = capsys.readouterr().out
        return sum(line.startswith("lora.r=") for line in said.splitlines()), said

    rows, said = printed()
    assert rows == 40
    assert "The first 40 of 60 cells; --all prints all, --json too." in said
    rows, said = printed("--all")
    assert rows == CELLS
    assert "The first" not in said
    # What is to be computed is named once a kind, whatever the number of tasks.
    assert said.count("eval-tuned") == CELLS


# --- runs and show -------------------------------------------------------------------------------


@pytest.fixture
def finished(elsewhere: Path) -> list[RunRecord]:
    """A store with a study of 99 finished cells and a failed one."""
    records = [*make_many(99), make_failed()]
    folder = elsewhere / "store" / "studies" / "lora_rank"
    write_study(folder, make_study(*records), records)
    return records


def test_runs_prints_the_head_of_each_study(
    finished: list[RunRecord], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(make_record("lora.r=3"), study="other")
    manifest = dataclasses.replace(make_study(other), study="other")
    write_study(elsewhere / "store" / "studies" / "other", manifest, [other])

    def printed(*options: str) -> tuple[set[str], str]:
        assert cli.main(["runs", *options]) == 0
        said = capsys.readouterr().out
        return {one.run_id for one in [*finished, other] if one.run_id in said}, said

    shown, said = printed()
    assert shown == {one.run_id for one in [*finished[:40], other]}
    assert "lora_rank: the first 40 of 100 runs (99 complete, 1 failed); --all prints all" in said
    shown, said = printed("--all")
    assert len(shown) == 101
    assert "the first" not in said
    assert f"{finished[-1].run_id} failed in train" in said
    assert printed("--status", "failed")[0] == {finished[-1].run_id}
    assert len(json.loads(printed("--json")[1])) == 101


def test_a_whole_id_reads_one_record(
    finished: list[RunRecord], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, wanted = elsewhere / "store", finished[50]
    read = counted(monkeypatch, jsonfile, "read")
    for reference in (wanted.run_id, f"lora_rank/{wanted.run_id}"):
        path, record = selection.find_run(root, reference)
        assert (record.run_id, path.stem) == (wanted.run_id, wanted.run_id)
    assert len(read) == 2
    # The start of one, or a label, may mean several: all are read.
    assert selection.find_run(root, wanted.label)[1].run_id == wanted.run_id
    assert len(read) > len(finished)


def test_an_id_in_two_studies_is_not_taken_from_either(
    finished: list[RunRecord], elsewhere: Path
) -> None:
    root = elsewhere / "store"
    twin = dataclasses.replace(finished[0], study="twins")
    manifest = dataclasses.replace(make_study(twin), study="twins")
    write_study(root / "studies" / "twins", manifest, [twin])
    with pytest.raises(Exception, match="2 runs match"):
        selection.find_run(root, twin.run_id)
    assert selection.find_run(root, f"twins/{twin.run_id}")[1].study == "twins"


# --- the report ----------------------------------------------------------------------------------


def graded(cells: int) -> list[RunRecord]:
    """Cells of two ranks that rise slowly: the cheapest within noise stands far from the best."""
    made = []
    for place in range(cells):
        label = f"lora.r={2 if place == cells - 1 else 8},train.seed={place}"
        record = make_record(label, r=2 if place == cells - 1 else 8, tuned={RANK_BY: 0.9})
        made.append(record)
    worse = make_record(made[-1].label, r=2, tuned={RANK_BY: 0.89})
    return [*made[:-1], worse]


@pytest.fixture(scope="module")
def sixty() -> list[RunRecord]:
    """Sixty cells of which the last in the ranking is recommended."""
    return graded(60)


def table_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "all-cells.csv").read_text())))


def test_every_cell_is_in_the_table_of_all(sixty: list[RunRecord], tmp_path: Path) -> None:
    failed = make_failed("lora.r=99")
    manifest = make_study(*sixty, failed, missing=("lora.r=100",))
    render(manifest, [*sixty, failed], tmp_path)
    rows = table_of(tmp_path)
    assert sorted(row["run_id"] for row in rows) == sorted(c.run_id for c in manifest.cells)
    assert len(rows) == 62
    assert [row["status"] for row in rows[-2:]] == ["failed", "not run"]
    study = report_study.build(manifest, [*sixty, failed])
    for cell, row in zip(study.cells, rows, strict=False):
        assert row["run_id"] == cell.run_id
        for (run_id, name), p_value in study.adjusted.items():
            if run_id == cell.run_id:
                assert float(row[f"{name} holm_p"]) == pytest.approx(p_value, rel=1e-5)
        for found in cell.comparisons:
            assert float(row[f"{found.name} tuned"]) == pytest.approx(found.tuned, rel=1e-5)
    assert {row["run_id"] for row in rows if row["recommended"]} == {
        study.pick and study.pick.run_id
    }


def test_the_recommended_cell_is_in_every_table(sixty: list[RunRecord], tmp_path: Path) -> None:
    study = report_study.build(make_study(*sixty), sixty)
    assert study.pick is study.cells[-1]
    text = render(make_study(*sixty), sixty, tmp_path).read_text()
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    for title in ("Ranking", "Quality against cost", "Regressions and gates", "Probes"):
        drawn = [line for line in sections[title].splitlines() if line.startswith("| ")]
        assert any("lora.r=2" in line for line in drawn), title
    assert "9 further cells are in [all-cells.csv](all-cells.csv)." in sections["Ranking"]
    assert "39 further cells are in [all-cells.csv]" in sections["Quality against cost"]
    assert "39 further cells are in the study's records." in sections["Probes"]
    assert "The best 25 and the recommended one of 60 cells." in text
    assert "r=2, seed=59 (pick)" in (tmp_path / "sweep-light.svg").read_text()


def test_few_cells_need_no_table_of_all(sixty: list[RunRecord], tmp_path: Path) -> None:
    few = sixty[:20]
    render(make_study(*sixty), sixty, tmp_path)
    assert (tmp_path / "all-cells.csv").exists()
    render(make_study(*few), few, tmp_path)
    assert not (tmp_path / "all-cells.csv").exists()
    assert "all-cells" not in (tmp_path / "README.md").read_text()


def test_the_table_of_all_holds_no_secret(
    sixty: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_abcdefghijkl"
    labelled = [dataclasses.replace(sixty[0], label=f"model.id={secret}"), *sixty[1:]]
    monkeypatch.setenv("HF_TOKEN", secret)
    render(make_study(*labelled), labelled, tmp_path)
    assert secret not in (tmp_path / "all-cells.csv").read_text()
    assert allcells.is_wanted(report_study.build(make_study(*labelled), labelled))
    assert os.environ["HF_TOKEN"] == secret
