"""The whole path through the real entry, on a tiny random Llama and on the embedded model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bystage import anew, probed, scored
from conftest import Command, environment, scores_of

from ftsuite import jsonfile
from ftsuite.choices import Source
from ftsuite.config import EvalsConfig, ModelConfig, ProbesConfig, RunConfig
from ftsuite.errors import BackendUnavailable, DataError
from ftsuite.events import read
from ftsuite.models import loading, sources, warm
from ftsuite.studies import study
from ftsuite.training import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.records import RunRecord

CELLS = "lora.r=2,4"
FOLDERS = ("data", "loss", "eval", "train", "merge", "check")


def copy_of(finished: Command, folder: Path) -> Command:
    shutil.copytree(finished.store, folder / "store")
    return Command(finished.model, finished.rows, folder)


def stages_of(run: RunRecord) -> list[str]:
    """The stages of a cell in the order of its record."""
    tasks = run.config["evals"]["tasks"]
    return [
        *("data", "loss-base", *(f"eval-base {task}" for task in tasks)),
        *("train", "merge", "check"),
        *("loss-tuned", *(f"eval-tuned {task}" for task in tasks)),
    ]


def is_shared(stage: str) -> bool:
    """Whether cells that train differently on the same data have this stage in common."""
    return stage == "data" or stage.partition(" ")[0].endswith("-base")


def stage_table(command: Command) -> dict[str, dict[str, bool]]:
    """Which stages each cell found in the store."""
    return {
        label: {stage.stage: stage.reused for stage in run.stages}
        for label, run in command.runs().items()
    }


# --- a finished study -----------------------------------------------------------------------


def test_records_are_complete(finished: Command) -> None:
    runs = finished.runs()
    assert list(runs) == ["lora.r=2", "lora.r=4"]
    for rank, run in zip((2, 4), runs.values(), strict=True):
        assert run.status == "complete" and run.failure is None
        assert [stage.stage for stage in run.stages] == stages_of(run)
        assert all(stage.seconds >= 0 and stage.peak_memory_bytes > 0 for stage in run.stages)
        assert run.config["lora"]["r"] == rank
        assert "store" not in run.config
        assert run.data and run.model and run.merge and run.train and run.base and run.tuned
        assert run.merge.max_difference <= run.merge.tolerance
        assert not [c.refused for c in run.comparisons if c.refused]
        assert run.provenance.started_at <= run.provenance.finished_at
        assert run.provenance.versions["torch"]
    assert stage_table(finished)["lora.r=4"] == {
        stage: is_shared(stage) for stage in stages_of(run)
    }


def test_artifacts_exist_and_load(finished: Command) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for run in finished.runs().values():
        assert (finished.store / run.artifacts["adapter"] / "adapter_config.json").is_file()
        merged = finished.store / run.artifacts["merged"]
        model = AutoModelForCausalLM.from_pretrained(merged)
        tokenizer = AutoTokenizer.from_pretrained(merged)
        assert tokenizer.chat_template
        ids = tokenizer("Sailor", return_tensors="pt").input_ids
        assert model(ids).logits.isfinite().all()


def test_report_names_the_cells(finished: Command) -> None:
    text = (finished.reports / "tiny" / "README.md").read_text()
    for label in finished.runs():
        assert label in text
    for picture in (finished.reports / "tiny").glob("*.svg"):
        assert picture.stat().st_size > 1000


def test_wandb_writes_offline_below_the_store(finished: Command) -> None:
    folders = list((finished.store / "tracking" / "tiny" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(list(folder.glob("*.wandb")) for folder in folders)
    assert not list(finished.folder.glob("wandb*"))
    assert "report: reports/tiny/README.md" in (finished.folder / "output.txt").read_text()


def test_output_has_no_bars_of_libraries(finished: Command) -> None:
    output = (finished.folder / "output.txt").read_text()
    assert "it/s" not in output and "Warning" not in output and "Traceback" not in output
    # lm-eval asks git, and the command ran in no repository.
    assert "fatal" not in output
    last = ("report: ", "W&B: ", "1 of 2 cells done", "2 of 2 cells done")
    assert all(line.startswith(("[", *last)) for line in output.splitlines()), output


# --- never twice ----------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
from ftsuite.__main__ import main
code = main(sys.argv[1:])
heavy = "torch transformers lm_eval trl peft datasets wandb".split()
print("loaded:", [name for name in heavy if name in sys.modules])
sys.exit(code)
"""


def test_same_command_again_computes_nothing_and_imports_no_torch(
    finished: Command, tmp_path: Path
) -> None:
    command = copy_of(finished, tmp_path)
    before = {stage: command.entries(stage) for stage in FOLDERS}
    records_before = finished.runs()
    arguments = command.arguments(CELLS, "tracking=wandb")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment() | {"FTSUITE_STORE": str(command.store)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert before == {stage: command.entries(stage) for stage in before}
    for label, run in command.runs().items():
        assert run.status == "complete"
        assert all(stage.reused for stage in run.stages)
        # The record still tells of the run that computed.
        assert run.provenance == records_before[label].provenance
        assert scores_of(run) == scores_of(records_before[label])
    report = Path("tiny", "README.md")
    assert (command.reports / report).read_text() == (finished.reports / report).read_text()


def test_a_wider_sweep_costs_its_new_cells_only(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    before = {stage: command.entries(stage) for stage in FOLDERS}
    assert command.here("lora.r=2,4,8") == 0
    after = {stage: command.entries(stage) for stage in before}
    new = {stage: len(after[stage]) - len(before[stage]) for stage in before}
    tasks = len(command.runs()["lora.r=8"].config["evals"]["tasks"])
    assert new == {"data": 0, "loss": 1, "eval": tasks, "train": 1, "merge": 1, "check": 1}
    for stage in before:
        assert before[stage].items() <= after[stage].items()
    table = stage_table(command)
    assert all(table["lora.r=2"].values()) and all(table["lora.r=4"].values())
    assert table["lora.r=8"] == {stage: is_shared(stage) for stage in table["lora.r=8"]}


def test_corrupted_upstream_result_fails_the_cell_with_a_remedy(
    finished: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merged model lost a bit, and another evaluation is asked of it."""
    command = copy_of(finished, tmp_path)
    folder = command.store / command.runs()["lora.r=2"].artifacts["merged"]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert command.here("lora.r=2", "evals.limits.prose_bpb=1") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sha256" in error and str(folder) in error and "delete the folder" in error


# --- several workers ------------------------------------------------------------------------


def test_two_workers_compute_side_by_side_and_the_base_once(
    new_command: Callable[[str], Command], finished: Command
) -> None:
    command = new_command("workers")
    code, output = command.run(CELLS, "executor.workers=2")
    assert code == 0, output
    table = stage_table(command)
    assert sorted(table) == ["lora.r=2", "lora.r=4"]
    tasks = len(next(iter(command.runs().values())).config["evals"]["tasks"])
    assert len(command.entries("eval")) == 3 * tasks
    for stage in table["lora.r=2"]:
        # What both need is computed once, for one of them.
        computed = [not cell[stage] for cell in table.values()]
        assert sum(computed) == (1 if is_shared(stage) else 2), stage
    assert {run.status for run in command.runs().values()} == {"complete"}
    assert len({pid for pid, _, _ in spans(command)}) == 2
    assert any(
        start < other_end and other_start < end
        for pid, start, end in spans(command)
        for other, other_start, other_end in spans(command)
        if pid != other
    )
    for label, run in finished.runs().items():
        assert scores_of(command.runs()[label]) == scores_of(run)


def spans(command: Command) -> list[tuple[int, float, float]]:
    """Each computed stage's process, and when it began and ended."""
    found = []
    for path in command.store.glob("*/*.events.jsonl"):
        started, *_, ended = [e for e in read(path, 0)[0] if e["kind"] == "state"]
        assert (started["state"], ended["state"]) == ("started", "finished")
        found.append((started["pid"], started["time"], ended["time"]))
    return found


def test_a_cell_loads_two_models(
    new_command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base, to train and to check by, and the merged one; the base's scores share the first."""
    real, loaded = loading.load_model, list[str]()

    def load(folder: Path, *rest: Any, **named: Any) -> Any:
        if named["device"] != "meta":
            loaded.append(folder.name)
        return real(folder, *rest, **named)

    warm.drop()
    monkeypatch.setattr(loading, "load_model", load)
    command = new_command("loads")
    assert command.here(CELLS) == 0
    base, merged = (
        "tiny",
        [run.artifacts["merged"].split("/")[1] for run in command.runs().values()],
    )
    assert loaded == [base, merged[0], base, merged[1]]


# --- failures -------------------------------------------------------------------------------


def test_failed_cell_does_not_stop_the_others(
    finished: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = copy_of(finished, tmp_path)
    assert command.here("train.learning_rate=1e30,1e-2") == 1
    failed, complete = command.runs().values()
    assert (failed.status, complete.status) == ("failed", "complete")
    assert failed.failure is not None
    assert failed.failure.stage == "train"
    assert "lower train.learning_rate" in failed.failure.message
    assert "\n" not in failed.failure.message
    # What came before the failure is kept; what the user can mend needs no traceback.
    assert [stage.stage for stage in failed.stages] == [
        stage for stage in stages_of(failed) if is_shared(stage)
    ]
    assert not list(command.store.glob("studies/*/*.traceback.txt"))
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith(f"ftsuite: error: 1 of 2 cells failed; {failed.label}: ")
    text = (command.reports / "tiny" / "README.md").read_text()
    assert failed.label in text and complete.label in text
    assert "Cells that did not finish" in text and "lower train.learning_rate" in text


def test_bug_in_a_cell_leaves_its_traceback(
    finished: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "train", fail)
    command = copy_of(finished, tmp_path)
    assert command.here("lora.r=8,2") == 1
    failed, complete = command.runs().values()
    assert (failed.status, complete.status) == ("failed", "complete")
    assert failed.failure is not None and failed.failure.kind == "RuntimeError"
    trace = command.store / "studies" / "tiny" / f"{failed.run_id}.traceback.txt"
    assert "RuntimeError: a bug" in trace.read_text() and str(trace) in failed.failure.message


@pytest.mark.parametrize("cells", ["lora.r=2", "lora.r=3"])
def test_full_disk_is_one_line_even_for_the_record(
    cells: str,
    finished: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A finished cell stays finished; of a new one not even the record can be written."""
    command = copy_of(finished, tmp_path)
    real = jsonfile._write_text

    def write(path: Path, text: str) -> None:
        if "studies" in path.parts and path.name != "study.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, text)

    monkeypatch.setattr(jsonfile, "_write_text", write)
    assert command.here(cells) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("ftsuite: error: ")
    assert "no space left on the disk; free some" in error[0]
    assert "FTSUITE_STORE" in error[0]
    monkeypatch.undo()
    assert [run.status for run in command.runs().values()] == ["complete"] * (cells == "lora.r=2")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("store.reports={file}/reports", "store.reports: {file}/reports: cannot be written"),
        ("store.root={file}", "store.root: {file}: cannot be written (File exists)"),
        ("tracking=wandb tracking.mode=online", "W&B: tracking.mode=online needs a key"),
    ],
)
def test_what_would_fail_at_the_end_fails_before_the_first_stage(
    override: str,
    said: str,
    finished: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "file").write_text("")
    command = Command(finished.model, finished.rows, tmp_path)
    overrides = override.format(file=tmp_path / "file").split()
    assert command.here("lora.r=2", *overrides) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ftsuite: error: {said.format(file=tmp_path / 'file')}")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/*"))


def test_missing_template_is_one_line(
    tmp_path: Path, finished: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny import save_tiny_model

    model = save_tiny_model(tmp_path / "gpt2", "gpt2")
    command = Command(model, finished.rows, tmp_path)
    capsys.readouterr()
    assert command.here() == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "template=chatml" in error[0]


def test_weights_of_other_shapes_are_named(tmp_path: Path, finished: Command) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished.model, folder)
    facts = json.loads((folder / "config.json").read_text())
    facts["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(facts))
    config = ModelConfig(id=str(folder))
    tokenizer = loading.load_tokenizer(folder, config)
    with pytest.raises(DataError) as caught:
        loading.load_model(folder, tokenizer, config, device="cpu", dtype="float32")
    message = str(caught.value)
    assert "mlp.down_proj.weight has the shape [32, 64] in the weights, and [32, 128]" in message
    assert "config.json" in message and "report" not in message


# --- the embedded model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(session_store: Path) -> sources.Base:
    config = ModelConfig(source=Source.embedded, embedded="smollm2-135m-instruct")
    try:
        return sources.resolve(config, session_store)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.network
def test_embedded_model_is_converted_once(smollm2: sources.Base, session_store: Path) -> None:
    assert smollm2.identity.source == "wheel"
    assert smollm2.identity.note == "dequantised Q4_1"
    assert not (smollm2.folder / "wheel").exists()
    config = ModelConfig(source=Source.embedded, embedded="smollm2-135m-instruct")
    assert sources.resolve(config, session_store) == smollm2
    facts = json.loads((smollm2.folder / "config.json").read_text())
    assert "quantization_config" not in facts


@pytest.mark.network
def test_embedded_model_answers_a_probe_and_scores_items(
    smollm2: sources.Base, tmp_path: Path
) -> None:
    config = RunConfig(
        model=ModelConfig(id=str(smollm2.folder)),
        probes=ProbesConfig(files=["pirate"], limit=1, max_new_tokens=8),
        evals=EvalsConfig(tasks=["intent_choice", "intent_exact", "prose_bpb"], limit=4),
    )
    config = anew(config, tmp_path)
    report = probed(config, smollm2.folder)
    (result,) = report.probes
    assert [answer.with_system for answer in result.answers] == [True, False]
    assert all(answer.answer for answer in result.answers)
    assert len(result.contrasts) == 2
    # A model of English, not noise: under 3 nats a token on plain answers, 2 bits a byte on prose.
    assert all(-3 < contrast.plain < 0 for contrast in result.contrasts)
    scores = scored(config, smollm2.folder)
    values = {metric.name: metric for metric in scores.metrics}
    assert len(values["intent_choice/acc"].values) == 4
    assert set(values["intent_choice/acc"].values) <= {0.0, 1.0}
    assert 0.3 < max(values["prose_bpb/bits_per_byte"].values) < 2


# --- status ---------------------------------------------------------------------------------


def test_all_runs_lists_the_study_in_its_order(finished: Command) -> None:
    found = study.all_runs(finished.store)
    assert [record.label for _, record in found] == ["lora.r=2", "lora.r=4"]


def test_store_holds_no_absolute_path_of_this_machine(finished: Command) -> None:
    """Records and results can be copied elsewhere; config and command are what the user wrote."""
    for run in finished.runs().values():
        assert not any(value.startswith("/") for value in run.artifacts.values())
    inputs: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in finished.store.glob("*/*/inputs.json")
    ]
    assert len(inputs) == sum(len(finished.entries(kind)) for kind in FOLDERS) > 8
    assert not any(str(finished.model.parent) in json.dumps(one) for one in inputs)


def test_a_failure_before_anything_is_computed_leaves_a_complete_record(
    new_command: Callable[[str], Command], capsys: pytest.CaptureFixture[str]
) -> None:
    command = new_command("gone")
    assert command.here("lora.r=2", "train.max_steps=1") == 0
    (before,) = command.runs().values()
    (entry,) = command.store.glob("merge/*/result.json")
    whole = entry.read_text()
    entry.write_text(whole.replace("record", "recrd", 1))
    assert command.here("lora.r=2", "train.max_steps=1") == 1
    assert "failed before anything was computed" in capsys.readouterr().err
    assert list(command.runs().values()) == [before]
    entry.write_text(whole)
    assert command.here("lora.r=2", "train.max_steps=1") == 0
