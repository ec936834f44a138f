"""Curves while cells train: real offline W&B and real TensorBoard, events played by hand."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from synthetic import HEADLINE, RANK_BY, make_record, make_study
from test_tracking import TENSORBOARD, WANDB, go, offline_runs, python, read_offline

from ftsuite import events
from ftsuite.config import LoraConfig, RunConfig, TrackingConfig
from ftsuite.events import Event, Source
from ftsuite.records import CurvePoint
from ftsuite.tracking.cells import axes
from ftsuite.tracking.curve import from_events, from_record
from ftsuite.tracking.live import live

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ftsuite.events import Listener
    from ftsuite.records import RunRecord, StudyManifest

STEPS = 10
RANKS = (4, 8)
START = 1_790_000_000.0
"""When the first training starts, seconds since 1970; a step takes 2 s and 100 tokens."""


def make_cells() -> list[RunRecord]:
    """Two finished cells whose training had `STEPS` steps."""
    records = []
    for rank in RANKS:
        record = make_record(f"lora.r={rank}", r=rank, seed=rank)
        assert record.train is not None
        curve = tuple(CurvePoint(step=step, loss=loss(step, rank)) for step in steps())
        records.append(
            dataclasses.replace(
                record, train=dataclasses.replace(record.train, steps=STEPS, curve=curve)
            )
        )
    return records


def configs(manifest: StudyManifest) -> dict[str, RunConfig]:
    return {
        cell.run_id: RunConfig(study="lora_rank", lora=LoraConfig(r=rank))
        for cell, rank in zip(manifest.cells, RANKS, strict=True)
    }


def steps() -> range:
    return range(1, STEPS + 1)


def loss(step: int, rank: int) -> float:
    return round(3 / step + 1 / rank, 4)


def source_of(record: RunRecord, *others: RunRecord) -> Source:
    (key,) = (stage.key for stage in record.stages if stage.stage == "train")
    run_ids = tuple(one.run_id for one in (record, *others))
    return Source(stage="train", key=key, name="train", place=record.label, run_ids=run_ids)


def state(name: str, at: float = 0.0) -> Event:
    return {"time": START + at, "kind": "state", "state": name, "host": "a", "pid": 7}


def step_events(rank: int, numbers: Sequence[int], at: float = 0.0) -> Iterator[Event]:
    """What a worker tells of these steps: its memory, then the step; step 5 is evaluated."""
    for step in numbers:
        when = START + at + 2 * step
        memory = {"bytes": 1e9 + step, "device_bytes": 0, "cpu_percent": 150.0}
        yield {"time": when - 1, "kind": "memory", **memory}
        values = {"loss": loss(step, rank), "learning_rate": 1e-4, "grad_norm": 1.0}
        yield {
            "time": when,
            "kind": "step",
            "step": step,
            "steps": STEPS,
            "tokens": 100 * step,
            **values,
        }
        if step == 5:
            yield {"time": when + 0.5, "kind": "step", "step": 5, "steps": STEPS, "eval_loss": 0.5}


class Training:
    """A worker that trains one cell: writes its events to the store and tells the listener."""

    def __init__(self, listener: Listener, source: Source, root: Path) -> None:
        self.listener, self.source = listener, source
        self.path = events.path_of(root, "train", source.key)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def tell(self, *told: Event) -> None:
        for event in told:
            events.to_file(self.path)(event)
            self.listener(self.source, event)


def until(true: Callable[[], Any]) -> Any:
    """Wait for another thread, a minute at most."""
    end = time.monotonic() + 60
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    assert found
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def history(run: dict[str, Any], name: str) -> dict[int, float]:
    rows = [row for row in run["history"] if name in row]
    assert len({row["_step"] for row in rows}) == len(rows)
    return {row["_step"]: row[name] for row in rows}


@pytest.fixture
def two() -> tuple[list[RunRecord], StudyManifest]:
    records = make_cells()
    return records, make_study(*records)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A root where two cells trained at once, tracked live by W&B; and what was said."""
    root = tmp_path_factory.mktemp("live")
    records = make_cells()
    said: list[str] = []
    manifest = make_study(*records)
    with live(WANDB, manifest, configs(manifest), root, said.append) as listener:
        workers = [Training(listener, source_of(record), root) for record in records]
        for worker in workers:
            worker.tell(state("started"))
        for step in steps():
            for worker, rank in zip(workers, RANKS, strict=True):
                worker.tell(*step_events(rank, [step]))
        workers[0].tell(state("finished", 30))
        workers[1].tell(state("failed", 30))
    return root, said


def test_two_cells_at_once_are_two_live_runs(trained: tuple[Path, list[str]]) -> None:
    root, said = trained
    runs = offline_runs(root)
    assert runs.keys() == {"lora.r=4", "lora.r=8"}
    for rank in RANKS:
        run = runs[f"lora.r={rank}"]
        assert history(run, "train/loss") == {step: loss(step, rank) for step in steps()}
        assert history(run, "train/eval_loss") == {5: 0.5}
        assert history(run, "train/tokens") == {step: 100 * step for step in steps()}
        # 100 tokens in 2 s; the evaluation's half second is not training.
        rates = dict.fromkeys(range(2, STEPS + 1), 50.0) | {6: pytest.approx(100 / 1.5)}
        assert history(run, "train/tokens_per_second") == rates
        assert history(run, "worker/memory_bytes") == {step: 1e9 + step for step in steps()}
        assert history(run, "worker/cpu_percent")[3] == 150
        assert history(run, "_timestamp")[3] == START + 6
        assert run["run"]["run_group"] == "lora_rank"
        config = run["run"]["config"]["update"]
        assert config["axes/lora.r"] == config["lora"]["r"] == rank
        assert not config.keys() & {"store", "tracking"}
        # The command's process is not what trains: its own system metrics would mislead.
        assert "stats" not in run["types"]
    assert [runs[f"lora.r={rank}"]["exit_code"] for rank in RANKS] == [0, 1]
    assert [line for line in said if "wandb leet" in line] == said


def test_the_end_of_a_study_completes_the_live_runs(tmp_path: Path, two: Any) -> None:
    records, manifest = two
    with live(WANDB, manifest, configs(manifest), tmp_path) as listener:
        for record, rank in zip(records, RANKS, strict=True):
            worker = Training(listener, source_of(record), tmp_path)
            worker.tell(state("started"), *step_events(rank, steps()), state("finished", 30))
    assert go(WANDB, records, tmp_path)
    runs = offline_runs(tmp_path)
    assert len(list(tmp_path.glob("tracking/*/wandb/offline-run-*"))) == 2
    for record, rank in zip(records, RANKS, strict=True):
        run = runs[record.label]
        assert run["run"]["run_id"] == f"lora_rank-{record.run_id}"
        assert history(run, "train/loss") == {step: loss(step, rank) for step in steps()}
        # What only events know is still there.
        assert history(run, "worker/memory_bytes")[STEPS] == 1e9 + STEPS
        assert history(run, "_timestamp")[3] == START + 6
        assert set(history(run, f"delta/{HEADLINE}")) == {STEPS}
        assert run["exit_code"] == 0
        seconds = sum(stage.seconds for stage in record.stages)
        assert history(run, "runtime_seconds") == {STEPS: pytest.approx(seconds)}
    assert go(WANDB, records, tmp_path) == []


def test_a_killed_training_goes_on_in_one_run(tmp_path: Path, two: Any) -> None:
    """The second command hears of steps 6 to 10 only, from a checkpoint before step 6."""
    records, manifest = two
    record, rank = records[0], RANKS[0]
    source = source_of(record)
    stack = ExitStack()
    listener = stack.enter_context(live(WANDB, manifest, configs(manifest), tmp_path))
    first = Training(listener, source, tmp_path)
    first.tell(state("started"), *step_events(rank, range(1, 8)))
    with pytest.raises(KeyboardInterrupt), stack:
        raise KeyboardInterrupt
    (folder,) = tmp_path.glob("tracking/*/wandb/offline-run-*")
    assert read_offline(folder)["exit_code"] == 1
    with live(WANDB, manifest, configs(manifest), tmp_path) as listener:
        again = Training(listener, source, tmp_path)
        again.tell(state("started", 100), *step_events(rank, range(6, 11), at=100))
        again.tell(state("finished", 130))
    (folder,) = tmp_path.glob("tracking/*/wandb/offline-run-*")
    run = read_offline(folder)
    assert history(run, "train/loss") == {step: loss(step, rank) for step in steps()}
    assert history(run, "_timestamp")[5] < START + 100 < history(run, "_timestamp")[6]


@pytest.mark.parametrize("config", [WANDB, TENSORBOARD], ids=["wandb", "tensorboard"])
def test_a_worker_that_starts_again_is_not_told_twice(
    config: TrackingConfig, tmp_path: Path, two: Any
) -> None:
    """Within one command: the worker dies at step 7, and another goes on at step 6."""
    records, manifest = two
    with live(config, manifest, configs(manifest), tmp_path) as listener:
        worker = Training(listener, source_of(records[0]), tmp_path)
        worker.tell(state("started"), *step_events(4, range(1, 8)))
        worker.tell(state("started", 100), *step_events(4, range(6, 11), at=100))
        worker.tell(state("finished", 130))
    expected = {step: pytest.approx(loss(step, 4)) for step in steps()}
    if config is WANDB:
        (run,) = offline_runs(tmp_path).values()
        assert history(run, "train/loss") == expected
    else:
        (folder,) = tmp_path.glob("tracking/tensorboard/lora_rank/*")
        points = scalars(folder, "train/loss")
        assert len(points) == STEPS
        assert dict(points) == expected


def test_tensorboard_has_the_curve_while_the_cell_trains(tmp_path: Path, two: Any) -> None:
    records, manifest = two
    said: list[str] = []
    with live(TENSORBOARD, manifest, configs(manifest), tmp_path, said.append) as listener:
        worker = Training(listener, source_of(records[0]), tmp_path)
        worker.tell(state("started"), *step_events(4, range(1, 4)))
        folder = tmp_path / "tracking" / "tensorboard" / "lora_rank"
        (run,) = until(lambda: list(folder.glob("lora.r=4.*/events.out.*")))
        until(lambda: b"cpu_percent" in run.read_bytes().rpartition(b"train/loss")[2])
        points = until(lambda: scalars(run.parent, "train/loss"))
        assert points == [(step, pytest.approx(loss(step, 4))) for step in (1, 2, 3)]
        worker.tell(*step_events(4, range(4, 11)), state("finished", 30))
    assert "tensorboard --logdir" in said[0]
    assert go(TENSORBOARD, records, tmp_path)
    assert run.stat().st_size == 0
    assert len(scalars(run.parent, "train/loss")) == STEPS
    ((step, value),) = scalars(run.parent, f"delta/{HEADLINE}/low")
    comparison = next(c for c in records[0].comparisons if c.name == HEADLINE)
    assert (step, value) == (STEPS, pytest.approx(comparison.low))


def test_an_open_tensorboard_drops_the_live_file_for_the_whole_one(
    tmp_path: Path, two: Any
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records, manifest = two
    with live(TENSORBOARD, manifest, configs(manifest), tmp_path) as listener:
        worker = Training(listener, source_of(records[0]), tmp_path)
        worker.tell(state("started"), *step_events(4, steps()), state("finished", 30))
    (run,) = tmp_path.glob("tracking/tensorboard/lora_rank/*")
    opened = EventAccumulator(str(run))
    opened.Reload()
    assert len(opened.Scalars("train/loss")) == STEPS
    assert go(TENSORBOARD, records, tmp_path)
    opened.Reload()
    assert len(opened.Scalars("train/loss")) == STEPS
    assert f"delta/{HEADLINE}" in opened.Tags()["scalars"]


@pytest.mark.parametrize("config", [WANDB, TENSORBOARD], ids=["wandb", "tensorboard"])
def test_no_secret_reaches_a_live_file(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_0123456789abcdef0123456789abcdef"
    monkeypatch.setenv("HF_TOKEN", secret)
    record = make_record(f"data.train=/x/{secret}.jsonl")
    run_config = RunConfig(study="lora_rank")
    run_config.data.train = f"/x/{secret}.jsonl"
    manifest = dataclasses.replace(make_study(record), command=f"ftsuite {secret}")
    with live(config, manifest, {record.run_id: run_config}, tmp_path) as listener:
        source = source_of(record)
        for event in (state("started"), *step_events(4, steps()), state("finished", 30)):
            listener(source, event)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in written)
    assert b"train/loss" in content
    assert b"<HF_TOKEN>" in content
    assert secret.encode() not in content
    assert not [path for path in written if secret in str(path)]


def test_a_training_that_two_cells_share_shows_in_both(tmp_path: Path, two: Any) -> None:
    records, manifest = two
    with live(TENSORBOARD, manifest, configs(manifest), tmp_path) as listener:
        stranger = dataclasses.replace(records[0], run_id="of-another-command")
        worker = Training(listener, source_of(*records, stranger), tmp_path)
        worker.tell(state("started"), *step_events(4, steps()), state("finished", 30))
    folders = list(tmp_path.glob("tracking/tensorboard/lora_rank/*"))
    assert len(folders) == 2
    assert [len(scalars(folder, "train/loss")) for folder in folders] == [STEPS, STEPS]


def test_a_cell_that_trains_again_is_tracked_again(tmp_path: Path, two: Any) -> None:
    """Its training went from the store: the live run replaces the whole one, which must return."""
    records, manifest = two
    assert go(TENSORBOARD, records, tmp_path)
    with live(TENSORBOARD, manifest, configs(manifest), tmp_path) as listener:
        worker = Training(listener, source_of(records[0]), tmp_path)
        worker.tell(state("started"), *step_events(4, steps()), state("finished", 30))
    (line,) = go(TENSORBOARD, records, tmp_path)
    assert line.startswith("TensorBoard: 1 run;")
    (run,) = tmp_path.glob("tracking/tensorboard/lora_rank/lora.r=4.*")
    assert scalars(run, f"delta/{HEADLINE}")


def test_a_tracker_that_fails_is_said_once_and_tried_again(tmp_path: Path, two: Any) -> None:
    records, manifest = two
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "tensorboard").write_text("a file where the folder should be")
    said: list[str] = []
    with live(TENSORBOARD, manifest, configs(manifest), tmp_path, said.append) as listener:
        worker = Training(listener, source_of(records[0]), tmp_path)
        worker.tell(state("started"), *step_events(4, range(1, 6)))
        until(lambda: [worker.tell(state("note")), said][1])
        worker.tell(*step_events(4, range(6, 11)), state("finished", 30))
    loud = [line for line in said if "LIVE CURVES HAVE STOPPED" in line]
    assert len(loud) == 1
    assert "tensorboard" in loud[0]
    assert "the end of the study tracks every cell again" in loud[0]
    (tmp_path / "tracking" / "tensorboard").unlink()
    assert go(TENSORBOARD, records, tmp_path)[0].startswith("TensorBoard: 2 runs;")


def test_a_server_that_does_not_answer_ends_no_training(tmp_path: Path) -> None:
    """W&B online, nobody listens at its address: training goes on, and the end tries again."""
    code = f"""
import dataclasses
from pathlib import Path
import ftsuite.tracking.to_wandb as to_wandb
from test_live_tracking import *
to_wandb._LIVE["init_timeout"] = 2
records = make_cells()
manifest = make_study(*records)
config = dataclasses.replace(WANDB, mode="online")
root = Path({str(tmp_path)!r})
slowest = 0.0
with live(config, manifest, configs(manifest), root, lambda line: print("SAID", line)) as listener:
    worker = Training(listener, source_of(records[0]), root)
    for event in [state("started"), *step_events(4, steps()), state("finished", 30)]:
        before = time.monotonic()
        worker.tell(event)
        slowest = max(slowest, time.monotonic() - before)
print("trained", slowest < 1)
# The network is back, or the user has chosen this: nothing of the failure stands in the way.
print(go(WANDB, records, root)[0])
"""
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    printed = python(code, tmp_path, **environment, HOME=str(tmp_path))
    assert printed.count("LIVE CURVES HAVE STOPPED: BackendUnavailable: W&B online") == 1
    assert "trained True" in printed
    assert "W&B: 2 offline runs" in printed


def test_stored_trainings_import_no_tracker(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from ftsuite.config import TrackingConfig
from ftsuite.choices import Tracker
from synthetic import make_record, make_study
from ftsuite.events import Source
from ftsuite.tracking.live import live
record = make_record()
for kind in Tracker:
    with live(TrackingConfig(kind=kind), make_study(record), {{}}, Path({str(tmp_path)!r})) as tell:
        for stage in ("data", "train"):
            source = Source(stage=stage, key="k", name=stage, place="", run_ids=(record.run_id,))
            for state in ("started", "finished"):
                tell(source, {{"time": 1.0, "kind": "state", "state": state}})
heavy = {{"wandb", "tensorboard", "torch"}} & set(sys.modules)
assert not heavy, heavy
"""
    python(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_record_without_events_keeps_its_curve(tmp_path: Path) -> None:
    (record, _) = make_cells()
    points = from_record(record, tmp_path)
    assert [(point.step, point.time) for point in points] == [(step, None) for step in steps()]
    assert points[0].values == {"train/loss": loss(1, 4)}


def test_the_record_decides_over_its_events(tmp_path: Path) -> None:
    """A step beyond its last, or another loss, is of another attempt."""
    (record, _) = make_cells()
    path = events.path_of(tmp_path, "train", source_of(record).key)
    path.parent.mkdir(parents=True)
    for event in step_events(16, range(1, STEPS + 4)):
        events.to_file(path)(event)
    points = from_record(record, tmp_path)
    assert [point.values["train/loss"] for point in points] == [loss(s, 4) for s in steps()]
    assert points[4].values["train/eval_loss"] == 0.5


def test_steps_told_again_replace_those_before() -> None:
    curve = from_events([*step_events(4, range(1, 9)), *step_events(8, range(3, 6), at=100)])
    assert list(curve.points) == [1, 2, 3, 4, 5]
    assert [point.values["train/loss"] for point in curve.points.values()] == [
        *(loss(step, 4) for step in (1, 2)),
        *(loss(step, 8) for step in (3, 4, 5)),
    ]


def test_axes_are_what_differs() -> None:
    base = make_record("lora.r=4,packing=off,train.epochs=2,tracking=none")
    other = make_record("lora.r=8,packing=bfd,train.epochs=2,tracking=wandb")
    plain = {
        base.run_id: {"lora": {"r": 4}, "packing": {"mode": "off"}, "train": {"epochs": 2.0}},
        other.run_id: {"lora": {"r": 8}, "packing": {"mode": "bfd"}, "train": {"epochs": 2.0}},
    }
    assert axes(make_study(base, other), plain) == {
        base.run_id: {"lora.r": 4, "packing": "off"},
        other.run_id: {"lora.r": 8, "packing": "bfd"},
    }
    alone = {"lora.r": 4, "packing": "off", "train.epochs": 2.0}
    assert axes(make_study(base), {base.run_id: plain[base.run_id]}) == {base.run_id: alone}


def test_scores_are_metrics_and_one_table_of_the_study(tmp_path: Path) -> None:
    """What W&B plots and joins without hand work."""
    records = make_cells()
    assert go(WANDB, records, tmp_path)
    runs = offline_runs(tmp_path)
    rows: list[dict[str, Any]] = []
    for record in records:
        run = runs[record.label]
        comparison = next(c for c in record.comparisons if c.name == HEADLINE)
        (last,) = [row for row in run["history"] if f"delta/{HEADLINE}" in row]
        assert last[f"base/{HEADLINE}"] == pytest.approx(comparison.base)
        assert last[f"tuned/{HEADLINE}"] == pytest.approx(comparison.tuned)
        assert last[f"delta/{HEADLINE}/low"] == pytest.approx(comparison.low)
        assert last[f"delta/{HEADLINE}/high"] == pytest.approx(comparison.high)
        assert last[f"delta/{HEADLINE}/p_adjusted"] >= last[f"delta/{HEADLINE}/p"]
        assert last["comparisons._type"] == "table-file"
        (path,) = (run["folder"] / "files" / "media" / "table").glob("comparisons_*")
        table = json.loads(path.read_text())
        rows += [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    found = {(row["cell"], f"{row['task']}/{row['metric']}"): row for row in rows}
    assert len(found) == sum(len(record.comparisons) for record in records)
    row = found["lora.r=4", HEADLINE]
    assert row["verdict"] == "better"
    # Four test metrics of two cells are adjusted together; the ranking metric is not.
    assert row["p_adjusted"] == pytest.approx(min(1, 8 * row["p_value"]), rel=0.9)
    assert found["lora.r=4", RANK_BY]["verdict"] == ""
    assert found["lora.r=4", RANK_BY]["p_adjusted"] is None


def test_another_cell_adjusts_the_first_ones_p_values(tmp_path: Path) -> None:
    """So the first is tracked again, with the p-values that the report shows."""
    first, second = make_cells()
    assert go(TENSORBOARD, [first], tmp_path)[0].startswith("TensorBoard: 1 run;")
    assert go(TENSORBOARD, [first, second], tmp_path)[0].startswith("TensorBoard: 2 runs;")
