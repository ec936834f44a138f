"""What `kill -9` costs: real processes, killed while they train and while they evaluate."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bystage import made, recipe_of
from conftest import PATIENCE, Command, make_config, scores_of, shape_columns, wait_for

from ftsuite import jsonfile
from ftsuite.choices import Packing, Scheduler
from ftsuite.errors import StageError
from ftsuite.events import Events, path_of
from ftsuite.graphrecords import StudyGraph
from ftsuite.store.computing import compute
from ftsuite.store.entries import file_digest
from ftsuite.studies import study
from ftsuite.training import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ftsuite.config import RunConfig
    from ftsuite.records import RunRecord, TrainSummary
    from ftsuite.stages import Train

CELLS = "lora.r=2,4"
TASKS = ("intent_choice_validation", "intent_choice", "intent_exact", "prose_bpb")
STAGES = ("data", "loss", "eval", "train", "merge", "check")


def only_record(command: Command) -> RunRecord:
    folder = command.store / "studies/tiny"
    (path,) = [p for p in folder.glob("*.json") if p.stem not in ("study", "graph")]
    return study.read_run(path)


def started(command: Command, name: str) -> bool:
    """Whether the first cell's stage of this name is being computed, or is done."""
    path = command.store / "studies/tiny/graph.json"
    if not path.exists():
        return False
    stages = jsonfile.read(StudyGraph, path).cells[0].stages
    (stage,) = [one for one in stages if one.name == name]
    return path_of(command.store, stage.stage, stage.key).exists()


def weights(command: Command, record: RunRecord) -> dict[str, str]:
    """Digests of the adapter's and the merged model's weights."""
    return {
        name: file_digest(path)
        for name, folder in record.artifacts.items()
        for path in sorted((command.store / folder).glob("*.safetensors"))
    }


def is_same_training(mine: TrainSummary | None, reference: TrainSummary | None) -> bool:
    """Bitwise: JSON keeps every digit of a float."""
    assert mine is not None and reference is not None
    plain, other = jsonfile.to_json(mine), jsonfile.to_json(reference)
    del plain["resumed_from_step"], other["resumed_from_step"]
    return bool(plain == other)


@pytest.fixture(scope="module")
def killed(new_command: Callable[[str], Command]) -> Iterator[Command]:
    """Killed at the first whole checkpoint, then again while it evaluates, then left alone.

    What was seen on the way is kept in files of the command's folder, for the tests below.
    """
    command = new_command("killed")
    try:
        yield command
    finally:
        command.end()


def test_killed_twice_then_finished(killed: Command, finished: Command) -> None:
    # First: at the first whole checkpoint.
    process = killed.start(CELLS)
    wait_for(lambda: list(killed.store.glob("train/*.partial-*/checkpoints/*/complete")), process)
    assert only_record(killed).status == "running"
    killed.kill(process)
    assert only_record(killed).status == "interrupted"
    assert not killed.entries("train")
    (checkpoints,) = killed.store.glob("train/*.partial-*/checkpoints")
    # A checkpoint that a kill cut short is the newest, and has no marker.
    cut_short = checkpoints / "checkpoint-9999"
    shutil.copytree(max(checkpoints.glob("*/complete")).parent, cut_short)
    (cut_short / "complete").unlink()
    (cut_short / "adapter_model.safetensors").write_bytes(b"cut")

    # Second: while the tuned model is evaluated.
    process = killed.start(CELLS)
    wait_for(lambda: started(killed, f"eval-tuned {TASKS[0]}"), process)
    killed.kill(process)
    assert only_record(killed).status == "interrupted"
    before = {stage: killed.entries(stage) for stage in STAGES}
    assert [len(before[stage]) for stage in STAGES] == [1, 2, 4, 1, 1, 1]

    # Third: the same command goes on.
    code, output = killed.run(CELLS)
    assert code == 0, output
    after = {stage: killed.entries(stage) for stage in STAGES}
    for stage in STAGES:
        assert before[stage].items() <= after[stage].items()
    assert [len(after[stage]) for stage in STAGES] == [1, 3, 12, 2, 2, 2]
    mine, reference = killed.runs(), finished.runs()
    reused = {stage.stage: stage.reused for stage in mine["lora.r=2"].stages}
    there = ("data", "loss-base", "train", "merge", "check", "loss-tuned")
    assert reused == {
        **dict.fromkeys(there, True),
        **{f"eval-base {task}": True for task in TASKS},
        **{f"eval-tuned {task}": False for task in TASKS},
    }
    assert {label: run.status for label, run in mine.items()} == {
        "lora.r=2": "complete",
        "lora.r=4": "complete",
    }
    summary = mine["lora.r=2"].train
    assert summary is not None
    assert 0 < summary.resumed_from_step < summary.steps
    assert summary.resumed_from_step % 3 == 0
    assert not list(killed.store.glob("**/checkpoint-*"))
    for label, run in reference.items():
        assert run.train is not None and run.train.resumed_from_step == 0
        assert is_same_training(mine[label].train, run.train)
        assert weights(killed, mine[label]) == weights(finished, run)
        assert len(weights(finished, run)) == 2
        assert scores_of(mine[label]) == scores_of(run)


def test_curve_is_whole_and_learns(finished: Command) -> None:
    summary = finished.runs()["lora.r=2"].train
    assert summary is not None
    points = [point for point in summary.curve if point.loss is not None]
    assert [point.step for point in points] == list(range(1, summary.steps + 1))
    assert points[-1].loss is not None and points[0].loss is not None
    assert points[-1].loss < points[0].loss


@pytest.mark.slow
def test_killed_at_random_moments(new_command: Callable[[str], Command], finished: Command) -> None:
    """Whatever the moment, the same command ends with the undisturbed run's results."""
    command = new_command("random")
    moments = random.Random(0)
    try:
        for _ in range(8):
            process = command.start(CELLS, "train.checkpoint_every_steps=1")
            time.sleep(moments.uniform(0.5, 25))
            if process.poll() is not None:
                break
            command.kill(process)
        code, output = command.run(CELLS, "train.checkpoint_every_steps=1")
    finally:
        command.end()
    assert code == 0, output
    for label, run in finished.runs().items():
        mine = command.runs()[label]
        assert is_same_training(mine.train, run.train)
        assert weights(command, mine) == weights(finished, run)
        assert scores_of(mine) == scores_of(run)


# --- the train stage alone, in this process -------------------------------------------------


class Interrupted(BaseException):
    """Stands for Ctrl-C: nothing between here and the store may swallow it."""


def train_stage(config: RunConfig, root: Path) -> Train:
    """The cell's training, its rows prepared."""
    stages = recipe_of(config)
    made(root, stages.data)
    return stages.adapter


def watch_steps(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[int]:
    """Note the tokens of every optimiser step, and raise in the trainer at step `stop_at`."""
    real, steps = Events.progress, list[int]()

    @contextmanager
    def progress(self: Events, name: str, total: int, unit: str) -> Iterator[Any]:
        def count(amount: int) -> None:
            if name == "train":
                steps.append(amount)
                if len(steps) == stop_at:
                    raise Interrupted
            advance(amount)

        with real(self, name, total, unit) as advance:
            yield count

    monkeypatch.setattr(Events, "progress", progress)
    return steps


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"packing": Packing.off, "accumulation": 1, "dropout": 0.0},
    "wrapped with dropout": {"packing": Packing.wrapped, "accumulation": 2, "dropout": 0.2},
    "validation on the way": {"packing": Packing.bfd, "accumulation": 2, "every": 2},
    "checkpointing": {"packing": Packing.bfd, "accumulation": 2, "dropout": 0.1, "gc": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_training_ends_as_the_undisturbed(
    variant: str,
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = VARIANTS[variant]
    results, trained = [], []
    for name in ("undisturbed", "interrupted"):
        root = tmp_path / name
        config = shape_columns(make_config(tiny_model, tiny_rows, root))
        config.packing.strategy = settings["packing"]
        config.lora.dropout = settings.get("dropout", 0.1)
        config.data.train_limit = 14
        config.train.gradient_accumulation = settings["accumulation"]
        config.train.eval_every_steps = settings.get("every")
        config.train.gradient_checkpointing = settings.get("gc", False)
        stage = train_stage(config, root)
        if name == "interrupted":
            with monkeypatch.context() as patch:
                watch_steps(patch, stop_at=5)
                with pytest.raises(Interrupted):
                    compute(root, stage)
        with monkeypatch.context() as patch:
            trained.append(watch_steps(patch))
            results.append(compute(root, stage))
    undisturbed, resumed = results
    assert (undisturbed.record.resumed_from_step, resumed.record.resumed_from_step) == (0, 3)
    assert len(trained[0]) == undisturbed.record.steps == len(trained[1]) + 3
    assert is_same_training(resumed.record, undisturbed.record)
    name = "adapter/adapter_model.safetensors"
    assert file_digest(resumed.folder / name) == file_digest(undisturbed.folder / name)


@pytest.mark.parametrize("settings", [{"max_steps": 5}, {"epochs": 1.0}, {"eval_every_steps": 2}])
def test_interrupted_after_the_last_step(
    settings: dict[str, Any],
    tiny_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last checkpoint is that of the last step: nothing is left to train, not even one step."""
    from peft import PeftModel

    config = shape_columns(tiny_config)
    config.train.scheduler = Scheduler.constant
    config.data.train_limit = 14
    for name, value in settings.items():
        setattr(config.train, name, value)
    reference = compute(tmp_path / "reference", train_stage(config, tmp_path / "reference"))
    stage = train_stage(config, tmp_path / "store")
    real = PeftModel.save_pretrained

    def stop(self: Any, folder: Any, *arguments: Any, **named: Any) -> None:
        if Path(folder).name == "adapter":
            raise Interrupted
        real(self, folder, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", stop)
        with pytest.raises(Interrupted):
            compute(tmp_path / "store", stage)
    steps = watch_steps(monkeypatch)
    entry = compute(tmp_path / "store", stage)
    assert not steps
    assert entry.record.resumed_from_step == reference.record.steps
    assert is_same_training(entry.record, reference.record)
    name = "adapter/adapter_model.safetensors"
    assert file_digest(entry.folder / name) == file_digest(reference.folder / name)


def test_how_often_checkpoints_are_written_is_not_identity(tiny_config: RunConfig) -> None:
    root = Path(tiny_config.store.root)
    config = shape_columns(tiny_config)
    before = train_stage(config, root).key
    config.train.checkpoint_every_steps = 50
    assert train_stage(config, root).key == before
    config.train.seed = 1
    assert train_stage(config, root).key != before


def test_checkpoint_without_marker_is_ignored_and_deleted(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (9, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / train.COMPLETE_MARKER).touch()
    assert train._last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-2",
        "checkpoint-9",
    ]
    assert train._last_checkpoint(tmp_path / "none") is None


def test_nan_loss_is_an_error_with_a_remedy(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = shape_columns(tiny_config)
    config.train.learning_rate = 1e30
    said = r"the (loss|grad_norm) is .* at step \d; lower train\.learning_rate"
    with pytest.raises(StageError, match=said):
        compute(tmp_path / "store", train_stage(config, tmp_path / "store"))


assert PATIENCE < 600, "pytest-timeout would end the test before"
