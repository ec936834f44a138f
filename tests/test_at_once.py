"""A finished study stays finished: identical commands at once, and kills of a command run again.

Real processes on the finished study's store; nothing is computed, so each takes seconds.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, Command, environment, wait_for

from ftsuite import jsonfile
from ftsuite.records import RunRecord
from ftsuite.studies import finish, study

if TYPE_CHECKING:
    from pathlib import Path

CELLS = ("lora.r=2,4", "tracking=wandb")
"""As the finished study was made."""


@pytest.fixture
def command(finished: Command, tmp_path: Path) -> Command:
    shutil.copytree(finished.store, tmp_path / "store")
    return Command(finished.model, finished.rows, tmp_path)


def contents(command: Command) -> dict[str, dict[str, object]]:
    """The records as they lie there, without which results were found in the store."""
    found = {}
    for path in command.store.glob("studies/tiny/*.json"):
        plain = json.loads(path.read_text())
        del plain["sha256"]
        for stage in plain.get("stages", ()):
            del stage["reused"]
        found[path.name] = plain
    return found


def test_identical_commands_at_once_all_succeed(command: Command) -> None:
    before = contents(command)
    processes = [command.start(*CELLS) for _ in range(4)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        command.end()
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert all("report: reports/tiny/README.md" in output for output in outputs)
    assert not any("Traceback" in output for output in outputs)
    assert contents(command) == before


def test_a_command_beside_another_reports_both_and_answers_for_its_own(command: Command) -> None:
    """The other one has yet to run a cell, which is none of this one's failures."""
    first, second = command.manifest().cells
    to_do = replace(second, run_id="0" * 12, label="lora.r=9")
    other = replace(command.manifest(), command="python -m ftsuite other", cells=(to_do, second))
    with study.command(command.store, other):
        code, output = command.run("lora.r=2", "tracking=wandb")
        assert code == 0, output
        cells = command.manifest().cells
        assert [cell.run_id for cell in cells] == [to_do.run_id, second.run_id, first.run_id]
        report = (command.folder / "reports" / "tiny" / "README.md").read_text()
        assert all(cell.label in report for cell in cells)
    assert "will not show them" not in output


def test_a_command_that_another_joins_goes_on(command: Command) -> None:
    first, second = command.manifest().cells
    process = command.start(*CELLS)
    assert process.stdout is not None
    for line in process.stdout:
        if "are in the store" in line:
            break
    later = replace(second, run_id="0" * 12, label="lora.r=9")
    with study.command(command.store, replace(command.manifest(), cells=(later,))):
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert command.manifest().cells == (first, second, later)


def test_killed_while_it_is_run_again_the_study_stays_finished(command: Command) -> None:
    before = contents(command)
    moments = random.Random(0)
    try:
        for _ in range(6):
            process = command.start(*CELLS)
            assert process.stdout is not None
            # Kill somewhere between the first cell's first stage and the report.
            for _ in range(moments.randrange(1, 9)):
                process.stdout.readline()
            command.kill(process)
            assert {run.status for run in command.runs().values()} == {"complete"}
    finally:
        command.end()
    assert contents(command) == before


def test_a_record_says_running_only_once_something_has_to_be_computed(command: Command) -> None:
    """The tuned model's scores are gone: the finished record no longer holds."""
    finished = command.runs()["lora.r=2"]
    path = study.record_path(command.store, "tiny", finished.run_id)
    for stage in finished.stages:
        if stage.stage.startswith("eval-tuned "):
            shutil.rmtree(command.store / "eval" / stage.key[:24])
    process = command.start("lora.r=2")
    try:
        wait_for(lambda: study.read_run(path).status == "running", process)
        command.kill(process)
    finally:
        command.end()
    (run,) = command.runs().values()
    assert run.status == "interrupted"


SLOW_CELL = """
import sys, time
from dataclasses import replace
from pathlib import Path
from ftsuite import jsonfile
from ftsuite.records import RunRecord
from ftsuite.studies.study import claimed
path = Path(sys.argv[1])
record = jsonfile.read(RunRecord, path)
with claimed(path):
    jsonfile.write(path, replace(record, status="running"))
    print("running", flush=True)
    time.sleep(2)
    jsonfile.write(path, record)
"""


def test_the_end_waits_for_a_cell_that_another_process_runs(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(command.folder)
    manifest = command.manifest()
    path = study.record_path(command.store, "tiny", manifest.cells[0].run_id)
    other = subprocess.Popen(
        [sys.executable, "-c", SLOW_CELL, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert other.stdout is not None and other.stdout.readline() == "running\n"
    assert study.read_run(path).status == "running"
    from ftsuite.studies import sweeper

    monkeypatch.setenv("FTSUITE_STORE", str(command.store))
    config = sweeper.compose(command.arguments("lora.r=2,4")).configs[0]
    started = time.monotonic()
    finish.finish(config, manifest, command.store)
    assert time.monotonic() - started > 1
    said = capsys.readouterr().out
    assert f"{path.stem}: another process is running this cell (" in said
    assert said.endswith("report: reports/tiny/README.md\n")
    assert other.wait(timeout=30) == 0
    assert jsonfile.read(RunRecord, path).status == "complete"
