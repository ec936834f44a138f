"""What test files share: a tiny model with data, and the command that runs a study on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: tiny models gain nothing from threads, and other tests' processes run
# beside this one.
os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import pytest
from tiny import save_tiny_model, write_jsonl

from ftsuite import jsonfile, resources
from ftsuite.__main__ import main
from ftsuite.choices import Device, Shape
from ftsuite.config import (
    BackendConfig,
    DataConfig,
    EvalsConfig,
    LoraConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    StoreConfig,
    TrainConfig,
)
from ftsuite.scoring.tasks import TaskFacts, index, own_files, yaml_files
from ftsuite.studies import study

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.records import RunRecord, StudyManifest


def pytest_configure(config: pytest.Config) -> None:
    # The libraries' own talk about their coming versions; ftsuite silences it too.
    for rule in ("FutureWarning:transformers", "UserWarning:peft", "DeprecationWarning:datasets"):
        config.addinivalue_line("filterwarnings", f"ignore::{rule}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless they are asked for by -m or by name."""
    asked = config.option.markexpr or any("::" in name for name in config.args)
    for item in items:
        if item.get_closest_marker("slow") and not asked:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))


REPOSITORY = Path(__file__).resolve().parents[1]
LABELS = ("delivery", "payment", "return", "fault", "login", "address")
FACTS = TaskFacts(
    name="x",
    split="test",
    role="test",
    output_type="multiple_choice",
    metrics=(),
    filters=("none",),
    is_open=False,
    description="",
)
"""Of a task that a test makes itself."""
PATIENCE = 300.0
"""Seconds to wait for a process that imports torch while others use the cores."""


@pytest.fixture(scope="session")
def session_store() -> Path:
    """The store that keeps the embedded model between sessions; git ignores it."""
    root = REPOSITORY / "outputs" / "test-store"
    root.mkdir(parents=True, exist_ok=True)
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"text": f"Sailor {i} asks about {LABELS[i % 6]} on the deck.", "label": LABELS[i % 6]}
        for i in range(48)
    ]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


@pytest.fixture
def own_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of evals/ that a test may change."""
    folder = tmp_path / "evals"
    shutil.copytree(resources.evals_dir(), folder)
    for module in (index, own_files, yaml_files):
        monkeypatch.setattr(module, "evals_dir", lambda: folder)
    return folder


@pytest.fixture
def tiny_config(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> RunConfig:
    """A cell on the tiny model, to be run stage by stage in this process."""
    return make_config(tiny_model, tiny_rows, tmp_path / "store")


def make_config(model: Path, rows: Path, store: Path) -> RunConfig:
    """Dropout, packing and gradient accumulation on: what a resumed run has to get right."""
    return RunConfig(
        study="tiny",
        model=ModelConfig(name="tiny", id=str(model)),
        data=DataConfig(
            train=str(rows),
            shape=Shape.prompt_completion,
            max_length=128,
            validation_fraction=0.2,
        ),
        packing=PackingConfig(),
        lora=LoraConfig(r=4, dropout=0.1),
        train=TrainConfig(
            epochs=2.0,
            micro_batch_size=1,
            gradient_accumulation=2,
            learning_rate=1e-2,
            checkpoint_every_steps=3,
        ),
        backend=BackendConfig(device=Device.cpu),
        evals=EvalsConfig(tasks=["intent_choice"], limit=4),
        store=StoreConfig(root=str(store)),
    )


def shape_columns(config: RunConfig) -> RunConfig:
    config.data.columns.prompt, config.data.columns.completion = "text", "label"
    return config


@dataclass
class Command:
    """`python -m ftsuite` on the tiny model with a store of its own."""

    model: Path
    rows: Path
    folder: Path
    study: str = "tiny"
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    def arguments(self, *overrides: str) -> list[str]:
        return [
            f"study={self.study}",
            "model.name=tiny",
            f"model.id={self.model}",
            "model.embedded=null",
            f"data.train={self.rows}",
            "data.validation=null",
            "data.validation_fraction=0.2",
            "data.train_limit=null",
            "data.max_length=320",
            "lora.dropout=0.1",
            "train.epochs=2",
            "train.micro_batch_size=1",
            "train.gradient_accumulation=2",
            "train.learning_rate=1e-2",
            "train.checkpoint_every_steps=3",
            "backend.device=cpu",
            "backend.threads=1",
            "evals.limits={intent_choice_validation: 4, intent_choice: 4, intent_exact: 4}",
            "evals.limits.prose_bpb=2",
            "probes=none",
            "tracking=none",
            *overrides,
        ]

    def here(self, *overrides: str) -> int:
        """Exit code of the command in this process: saves the imports."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FTSUITE_STORE", str(self.store))
            patch.chdir(self.folder)
            # Saves the imports of a worker; `start` and `run` have one.
            return main(self.arguments("executor=inline", *overrides))

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        """A real process; read its output line by line."""
        process = subprocess.Popen(
            [sys.executable, "-m", "ftsuite", *self.arguments(*overrides)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=environment() | {"FTSUITE_STORE": str(self.store)},
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *overrides: str) -> tuple[int, str]:
        """Exit code and output of a real process that is left alone."""
        process = self.start(*overrides)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def manifest(self) -> StudyManifest:
        return study.read_manifest(self.store, self.study)

    def runs(self) -> dict[str, RunRecord]:
        """Records of the latest command's cells, by label."""
        found = {}
        for cell in self.manifest().cells:
            path = study.record_path(self.store, self.study, cell.run_id)
            if path.exists():
                found[cell.label] = study.read_run(path)
        return found

    def entries(self, stage: str) -> dict[str, int]:
        """Names of a stage's finished results, with the time of their folder's last change."""
        return {
            path.parent.name: path.parent.stat().st_mtime_ns
            for path in (self.store / stage).glob("*/result.json")
            if "." not in path.parent.name
        }

    def kill(self, process: subprocess.Popen[str]) -> None:
        """`kill -9` of it and its workers; waits until the kernel has released their locks."""
        workers = psutil.Process(process.pid).children(recursive=True)
        for pid in (process.pid, *(worker.pid for worker in workers)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)
        psutil.wait_procs(workers, timeout=30)
        assert process.stdout is not None
        process.stdout.close()

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)


def environment() -> dict[str, str]:
    """This process's environment without what a developer's shell may say of stores and hubs."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("FTSUITE_", "WANDB_"))}
    return own | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Poll until `condition` is true; the process must not end before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def new_command(
    tiny_model: Path, tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Command]:
    """Make commands with a store of their own; what they started ends with the session."""

    def make(name: str) -> Command:
        return Command(tiny_model, tiny_rows, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def finished(new_command: Callable[[str], Command]) -> Command:
    """A study of two cells from a real process that nobody disturbed; do not change its store."""
    command = new_command("finished")
    code, output = command.run("lora.r=2,4", "tracking=wandb")
    assert code == 0, output
    (command.folder / "output.txt").write_text(output)
    return command


def scores_of(record: RunRecord) -> list[dict[str, object]]:
    """Both models' scores as plain values, to compare runs of different stores."""
    assert record.base is not None
    assert record.tuned is not None
    return [jsonfile.to_json(record.base), jsonfile.to_json(record.tuned)]
