"""`ftsuite watch`: what it says of a study that others compute."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from synthetic import make_failed, make_record, make_study
from test_display import SECRET, in_terminal, progress, state_event, step, visible

from ftsuite import cli, jsonfile
from ftsuite.commands import watched
from ftsuite.events import path_of, to_file
from ftsuite.graphrecords import CellStages, StageRef, StudyGraph
from ftsuite.store import leases
from ftsuite.store.entries import folder_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.events import Event
    from ftsuite.records import RunRecord

LABELS = ("lora.r=2", "lora.r=4", "lora.r=8")
KEYS = {"data": "d" * 64, **{label: str(n) * 64 for n, label in enumerate(LABELS)}}


class Computed:
    """A store with a study of three cells, of which one stage is shared; nothing has run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "studies" / "lora_rank"
        self.records = [make_record(label, seed=n) for n, label in enumerate(LABELS)]
        manifest = make_study(*self.records)
        self.command = manifest.command
        jsonfile.write(self.folder / "study.json", manifest)
        self.plan()

    def plan(self) -> None:
        """Write which stages there are, as a command does when it begins."""
        cells = tuple(
            CellStages(
                run_id=record.run_id,
                label=record.label,
                place=f"{number}/3 {record.label}",
                stages=(
                    StageRef(name="data", stage="data", key=KEYS["data"]),
                    StageRef(name="train", stage="train", key=KEYS[record.label]),
                ),
            )
            for number, record in enumerate(self.records, start=1)
        )
        jsonfile.write(self.folder / "graph.json", StudyGraph(study="lora_rank", cells=cells))

    def record(self, record: RunRecord) -> None:
        """Write a run's record."""
        jsonfile.write(self.folder / f"{record.run_id}.json", record)

    def events(self, label: str, *events: Event) -> Path:
        """Append events of a cell's training, or of the data stage."""
        path = path_of(self.root, self.kind(label), KEYS[label])
        emit = to_file(path)
        for event in events:
            emit(event)
        return path

    def entry(self, label: str) -> Path:
        """Where a stage's result lies."""
        return folder_of(self.root, self.kind(label), KEYS[label])

    @staticmethod
    def kind(label: str) -> str:
        return "data" if label == "data" else "train"


TRAINS = (
    state_event(100.0, "started", host="a-host"),
    progress(101.0, 0),
    progress(102.0, 1024),
    step(102.0, 10, 2.5),
    progress(110.0, 2048),
    step(110.0, 43, 1.234),
    {"time": 111.0, "kind": "memory", "bytes": 1_800_000_000, "device_bytes": 3_000_000_000},
)


@pytest.fixture
def computed(tmp_path: Path) -> Computed:
    return Computed(tmp_path / "store")


@pytest.fixture
def once(computed: Computed, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Any:
    """The lines of `ftsuite watch --once`."""
    monkeypatch.setenv("COLUMNS", "110")

    def call() -> list[str]:
        capsys.readouterr()
        code = cli.main(["watch", "lora_rank", "--once", "--store", str(computed.root)])
        said = capsys.readouterr()
        assert (code, said.err) == (0, "")
        return said.out.splitlines()

    return call


def test_one_look_at_a_running_study(computed: Computed, once: Callable[[], list[str]]) -> None:
    computed.entry("data").mkdir(parents=True)
    computed.record(computed.records[0])
    computed.events("lora.r=4", *TRAINS)
    with leases.held(computed.entry("lora.r=4")):
        stage, details, counts = once()
    assert stage.startswith("2/3 lora.r=4 · train  ━")
    assert stage.endswith("50 %  128 tokens/s  loss 1.234  0:16 left")
    assert details == (
        "    loss █▁ 2.50 → 1.23 · step 43 of 86 · memory 1.8 GB, GPU 3.0 GB · learning rate 0.0002"
        " · on a-host"
    )
    assert counts.startswith("1 of 3 cells done · 1 running · 1 waiting · 0:0")


def test_a_stage_that_nobody_holds_is_not_running(
    computed: Computed, once: Callable[[], list[str]]
) -> None:
    computed.events("lora.r=4", *TRAINS)
    (counts,) = once()
    assert counts.startswith("0 of 3 cells done · 0 running · 3 waiting")
    # Between two stages nobody holds one; only a study that is quiet has stopped.
    long_ago = time.time() - 3600
    for path in (*computed.folder.iterdir(), *(computed.root / "train").iterdir()):
        os.utime(path, (long_ago, long_ago))
    assert once()[1:] == ["nothing is running; the same command goes on: " + computed.command]


def test_another_hosts_stage_runs_while_it_tells_something(
    computed: Computed, once: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = computed.events("lora.r=4", *TRAINS)
    with leases.held(computed.entry("lora.r=4")):
        monkeypatch.setattr("ftsuite.store.holders.is_here", lambda _: False)
        assert once()[0].startswith("2/3 lora.r=4 · train")
        os.utime(path, (time.time() - 120,) * 2)
        assert "0 running" in once()[0]


def test_why_cells_failed_is_said_unless_they_wait_to_be_run_again(
    computed: Computed, once: Callable[[], list[str]]
) -> None:
    failed = make_failed("lora.r=4")
    failed = dataclasses.replace(failed, run_id=computed.records[1].run_id)
    computed.record(failed)
    assert failed.failure is not None
    counts, why = once()
    assert "0 of 3 cells done · 0 running · 2 waiting · 1 failed" in counts
    assert why == f"[2/3 lora.r=4] failed: {failed.failure.message}"
    time.sleep(0.02)
    computed.plan()
    assert once()[0].startswith("0 of 3 cells done · 0 running · 3 waiting")


def test_secrets_are_not_shown(
    computed: Computed, once: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed.events("lora.r=4", {"time": 1.0, "kind": "note", "text": f"reads {SECRET}"})
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with leases.held(computed.entry("lora.r=4")):
        assert once()[0] == "2/3 lora.r=4 · train  reads <HF_TOKEN>"


def test_studies_that_cannot_be_watched(
    computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(computed.root)
    assert cli.main(["watch", "nope", "--store", root]) == 1
    assert capsys.readouterr().err == (
        f"ftsuite: error: nope: no such study in {root}; known are: lora_rank\n"
    )
    (computed.folder / "graph.json").unlink()
    assert cli.main(["watch", "lora_rank", "--store", root]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no graph.json" in error and "run it again" in error


def test_a_finished_study_is_told_and_left(
    computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in computed.records:
        computed.record(record)
    assert cli.main(["watch", "lora_rank", "--store", str(computed.root)]) == 0
    assert capsys.readouterr().out.startswith("3 of 3 cells done · 0 running · 0 waiting · 0:0")


def test_it_follows_to_the_end(computed: Computed, capsys: pytest.CaptureFixture[str]) -> None:
    """What was before is not told again, what comes is, and a file made anew is read anew."""
    computed.events("lora.r=2", *TRAINS, {"time": 112.0, "kind": "note", "text": "of the past"})
    watcher = watched.Watched(computed.root, "lora_rank", print)
    with leases.held(computed.entry("lora.r=2")):
        watcher.look()
        assert capsys.readouterr().out == ""
        assert [s.source.place for s in watcher.board.running.values()] == ["1/3 lora.r=2"]

        computed.events("lora.r=2", progress(130.0, 4096), state_event(138.0, "finished"))
        computed.entry("lora.r=2").mkdir()
        computed.record(computed.records[0])
        watcher.look()
    assert capsys.readouterr().out == "[1/3 lora.r=2] train: 4,096 tokens in 38 s, loss 1.234\n"
    assert (watcher.board.counts.done, watcher.board.running) == (1, {})

    # Begun and ended between two looks.
    failed = state_event(2.0, "failed", message="the loss is nan")
    path = computed.events("lora.r=4", state_event(1.0, "started"), failed)
    watcher.look()
    assert capsys.readouterr().out == "[2/3 lora.r=4] train: failed: the loss is nan\n"

    path.unlink()
    computed.events("lora.r=4", {"time": 1.0, "kind": "note", "text": "anew"})
    watcher.look()
    assert capsys.readouterr().out == "[2/3 lora.r=4] anew\n"
    assert not watcher.is_over


def test_without_a_terminal_lines_are_told_until_the_study_ends(
    computed: Computed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftsuite.commands.watch.POLL_SECONDS", 0.02)

    def compute() -> None:
        for record in computed.records:
            computed.events(record.label, *TRAINS, state_event(120.0, "finished"))
            computed.entry(record.label).mkdir()
            computed.record(record)
            time.sleep(0.1)

    thread = threading.Thread(target=compute)
    thread.start()
    code = cli.main(["watch", "lora_rank", "--store", str(computed.root)])
    thread.join()
    *said, last = capsys.readouterr().out.splitlines()
    assert code == 0
    assert "[3/3 lora.r=8] train: 2,048 tokens in 20 s, loss 1.234" in said
    assert last.startswith("3 of 3 cells done")


def test_ctrl_c_ends_it_on_a_terminal(computed: Computed) -> None:
    computed.events("lora.r=4", *TRAINS)
    script = (
        "import os, signal, sys, threading\n"
        "from ftsuite import cli\n"
        f"threading.Timer(3, os.kill, (os.getpid(), {signal.SIGINT.value})).start()\n"
        "code = cli.main(sys.argv[1:])\nprint('code', code)\n"
    )
    with leases.held(computed.entry("lora.r=4")):
        written = in_terminal(
            *("-c", script, "watch", "lora_rank", "--store", str(computed.root)), columns=100
        )
    assert "2/4" not in written and "2/3 lora.r=4 · train" in written
    assert "0 of 3 cells done · 1 running · 2 waiting" in written
    assert visible(written) == ["ftsuite: interrupted", "code 130"]
