"""What a user can get wrong, through the real entry: one clear line, exit code 1, no result kept.

Real runs of a tiny model in this process. A cell that fails is a record that says so; the other
cells of the sweep go on.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny import conversation, save_tiny_model, write_jsonl

from ftsuite.__main__ import main
from ftsuite.studies import study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftsuite.records import RunRecord

ROWS = [conversation(f"question {i}", f"answer {i}") for i in range(12)]
STAGES = ("data", "eval", "probe", "train", "merge")
BARE = ("evals.limits={}", "evals.rank_by=", "evals.headline=", "evals.watch=[]", "gates=none")
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content + eos_token }}{% endfor %}"


@dataclass
class Suite:
    """`python -m ftsuite` on a tiny model, and what it printed and left behind."""

    folder: Path
    model: Path
    capsys: pytest.CaptureFixture[str]
    out: str = ""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def run(self, *overrides: str) -> tuple[int, str]:
        """Exit code, and the text on stderr that is ftsuite's own."""
        code = main(
            [
                f"model.id={self.model}",
                "model.embedded=null",
                "data=file",
                f"data.train={self.folder / 'rows.jsonl'}",
                "data.validation_limit=2",
                "data.train_limit=4",
                "data.shape=messages",
                "data.max_length=512",
                "train.max_steps=1",
                "backend.device=cpu",
                "backend.threads=1",
                # The standard suite, for it has no limits a task to be taken out.
                "evals=none",
                "gates=none",
                "probes=none",
                "tracking=none",
                "packing=off",
                f"store.root={self.store}",
                f"store.reports={self.folder / 'reports'}",
                # Saves the imports of a worker.
                "executor=inline",
                *overrides,
            ]
        )
        printed = self.capsys.readouterr()
        self.out = printed.out
        lines = [line for line in printed.err.splitlines() if line.startswith("ftsuite:")]
        assert "Traceback" not in printed.err
        return code, "\n".join(lines)

    def refused(self, *overrides: str) -> str:
        """The line of a configuration that is refused before anything is written."""
        code, line = self.run(*overrides)
        assert code == 1
        assert line.count("\n") == 0
        assert self.out == ""
        assert not self.store.exists()
        return line.removeprefix("ftsuite: error: ")

    def failed(self, *overrides: str, stage: str, kept: tuple[str, ...] = ()) -> str:
        """The message of the only cell, which fails in `stage` with the stages `kept` done."""
        code, line = self.run(*overrides)
        assert code == 1
        assert line.startswith("ftsuite: error: 1 of 1 cells failed; ")
        assert line.count("\n") == 0
        (record,) = self.records()
        assert record.status == "failed"
        assert record.failure is not None
        assert (record.failure.stage, self.finished()) == (stage, kept)
        assert line.endswith(record.failure.message)
        assert record.failure.kind.endswith("Error")
        assert not record.failure.kind.startswith("ValueError")
        assert "traceback" not in record.failure.message
        report = (self.folder / "reports" / "single" / "README.md").read_text(encoding="utf-8")
        assert "Cells that did not finish" in report
        return record.failure.message

    def records(self, name: str = "single") -> list[RunRecord]:
        manifest = study.read_manifest(self.store, name)
        paths = [study.record_path(self.store, name, cell.run_id) for cell in manifest.cells]
        return [study.read_run(path) for path in paths]

    def finished(self) -> tuple[str, ...]:
        """Stages with an entry that a later run would take for a result."""
        return tuple(s for s in STAGES if any((self.store / s).glob("*[!l]/result.json")))

    def entry(self, stage: str) -> Path:
        (result,) = (self.store / stage).glob("*/result.json")
        return result.parent

    def rows(self, text: str) -> str:
        (self.folder / "bad.jsonl").write_text(text, encoding="utf-8")
        return f"data.train={self.folder / 'bad.jsonl'}"


@pytest.fixture
def suite(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Suite:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FTSUITE_TRACEBACK", raising=False)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return Suite(folder=tmp_path, model=tiny_model, capsys=capsys)


def text_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# Found when the command is read


def test_a_missing_file(suite: Suite) -> None:
    line = suite.refused("data.train=nowhere.jsonl")
    assert line.startswith("data.train = 'nowhere.jsonl': no such file")
    assert "check the path" in line


def test_a_file_of_another_kind(suite: Suite) -> None:
    (suite.folder / "rows.xlsx").write_bytes(b"PK")
    line = suite.refused("data.train=rows.xlsx")
    assert "unknown kind of file; use one of .json, .jsonl, .csv, .tsv, .tab, .parquet" in line


@pytest.mark.parametrize(
    ("file", "lack"),
    [
        ("tokenizer.json", "a tokenizer (tokenizer.json)"),
        ("model.safetensors", "model.safetensors, or model.safetensors.index.json with its shards"),
        ("config.json", "config.json"),
    ],
)
def test_a_model_folder_that_lacks_a_file(suite: Suite, file: str, lack: str) -> None:
    folder = shutil.copytree(suite.model, suite.folder / "model")
    (folder / file).unlink()
    # Pickled weights run code when they are read; they are no way out.
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert suite.refused(f"model.id={folder}") == (
        f"model.id = '{folder}': the folder lacks {lack}; save model and tokenizer there, as "
        "safetensors"
    )


def test_rank_zero(suite: Suite) -> None:
    assert suite.refused("lora.r=0") == "lora.r = 0: must be at least 1"


def test_an_unknown_task(suite: Suite) -> None:
    where = (
        "no such task: neither a `task:` of evals/*/*.yaml or evals.path, nor a task, group or tag "
        "of lm-eval"
    )
    line = suite.refused("evals.tasks=[hellaswga]")
    assert line.startswith(f"evals.tasks = 'hellaswga': {where}; did you mean hellaswag")
    line = suite.refused("evals.tasks=[prose_bbp]")
    assert line.startswith(f"evals.tasks = 'prose_bbp': {where}; did you mean prose_bpb")


def test_a_ranking_metric_that_there_is_not(suite: Suite) -> None:
    line = suite.refused("evals.tasks=[gsm8k]", "evals.rank_by=gsm8k/exact_match")
    assert line == (
        "evals.rank_by = 'gsm8k/exact_match': gsm8k has no such metric; it has: "
        "exact_match@strict-match, exact_match@flexible-extract"
    )


def test_an_unknown_probe(suite: Suite) -> None:
    line = suite.refused("probes.files=[parrot]")
    assert line.startswith("probes.files = 'parrot': no such probe; known are json_only")


@pytest.mark.parametrize("name", ["a/b", "../x", "/tmp/x"])
def test_a_study_name_with_path_separators(suite: Suite, name: str) -> None:
    line = suite.refused(f"study={name}")
    assert line.startswith(f"study = '{name}': a name is letters, digits")
    assert sorted(path.name for path in suite.folder.iterdir()) == ["rows.jsonl"]


def test_a_probe_whose_pattern_never_ends(suite: Suite) -> None:
    probe = {"name": "p", "system": "s", "prompts": ["a"]}
    probe["checks"] = [{"kind": "regex", "pattern": "(a|aa)+$"}]
    # JSON is YAML.
    (suite.folder / "slow.yaml").write_text(json.dumps(probe))
    line = suite.refused("probes=default", "probes.files=[slow.yaml]")
    assert line.startswith("probe p: the pattern '(a|aa)+$' takes more than 1 s on an answer of ")
    assert line.endswith("write it without repeats inside repeats")


def test_columns_that_the_shape_does_not_read(suite: Suite) -> None:
    """The default's columns under a shape of one's own: take data=file."""
    line = suite.refused(
        "data=intent", f"data.train={suite.folder}/rows.jsonl", "data.shape=messages"
    )
    assert line.startswith("data.columns.prompt = 'text': data.shape=messages does not read it")
    line = suite.refused("data.shape=prompt_completion", "data.columns.prompt=completion")
    assert line == "data.columns = 'completion': one column for two things; name two"


@pytest.mark.parametrize("name", ["study", "data.name", "model.name"])
def test_a_very_long_name(suite: Suite, name: str) -> None:
    assert len(suite.refused(f"{name}={'x' * 100_000}")) < 500


def test_what_keeps_a_cell_from_starting_is_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would print "Error executing job with overrides" about what a cell raises."""

    def gone(*_: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(suite.store))

    monkeypatch.setattr("ftsuite.studies.running.prepare", gone)
    assert main(["evals.tasks=[]", "tracking=none", f"store.root={suite.store}", *BARE]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("ftsuite: error: [Errno 13] Permission denied: ")


# Found when the rows are read


def test_an_empty_file(suite: Suite) -> None:
    message = suite.failed(suite.rows(""), stage="data")
    assert message.endswith("bad.jsonl: the file is empty; check how it was written")


def test_a_malformed_line_is_named(suite: Suite) -> None:
    lines = text_of(ROWS[:2]) + '{"messages": [\n' + text_of(ROWS[2:])
    message = suite.failed(suite.rows(lines), stage="data")
    assert "bad.jsonl, line 3: malformed JSON" in message
    assert "mend or remove the line" in message


def test_a_missing_column(suite: Suite) -> None:
    message = suite.failed("data.columns.messages=turns", stage="data")
    assert "data.columns.messages = 'turns': no such column; there are 'messages'" in message


def test_a_label_beside_a_text_is_not_left_out(suite: Suite) -> None:
    """With two texts, it is not plain which of them is the question."""
    (suite.folder / "rows.csv").write_text("text,title,label\nhello,x,a\nbye,y,b\n")
    message = suite.failed("data.train=rows.csv", "data.shape=auto", stage="data")
    assert message.startswith(f"{suite.folder}/rows.csv: the column 'label' looks like an answer")


def test_a_column_that_is_there_twice(suite: Suite) -> None:
    (suite.folder / "rows.csv").write_text("prompt,prompt,completion\na,b,c\n")
    message = suite.failed("data.train=rows.csv", "data.shape=auto", stage="data")
    assert (
        message
        == f"{suite.folder}/rows.csv: the column 'prompt' is there twice; rename or remove one"
    )


def test_a_character_that_is_no_text(suite: Suite) -> None:
    rows = [*ROWS, conversation("a\x00b", "answer")]
    message = suite.failed(suite.rows(text_of(rows)), stage="data")
    assert "row 13, message 1: column 'content' holds a NUL character" in message


@pytest.mark.parametrize("content", [None, 7, ["a"], {"a": 1}])
def test_a_row_whose_content_is_not_text(suite: Suite, content: Any) -> None:
    rows = [*ROWS[:4], {"messages": [{"role": "user", "content": content}]}, *ROWS[4:]]
    message = suite.failed(suite.rows(text_of(rows)), stage="data")
    assert "bad.jsonl, row 5" in message
    assert "content" in message


def test_a_split_that_ends_empty(suite: Suite) -> None:
    message = suite.failed("data.validation_fraction=0.01", stage="data")
    assert "the validation split is empty (0.01 of 12 rows)" in message
    assert "raise data.validation_fraction" in message


def test_rows_that_are_all_too_long(suite: Suite) -> None:
    message = suite.failed("data.max_length=3", stage="data")
    assert "longer than data.max_length = 3 tokens" in message
    assert "raise data.max_length" in message


def test_a_template_that_fails(suite: Suite) -> None:
    message = suite.failed("template.jinja='{{ 1 // 0 }}'", "template.name=broken", stage="data")
    assert message.startswith("template broken failed: ")


def test_a_template_that_drops_the_system_message(suite: Suite) -> None:
    deaf = (f'template.jinja="{NO_SYSTEM}"', "template.name=deaf", "data.system=Be kind.")
    message = suite.failed(*deaf, "template.system=native", stage="data")
    assert message.startswith("template deaf drops or changes the system message; choose another")
    assert "template.system=first_user" in message


def test_a_model_without_a_template(suite: Suite) -> None:
    folder = shutil.copytree(suite.model, suite.folder / "model")
    (folder / "chat_template.jinja").unlink()
    message = suite.failed(f"model.id={folder}", stage="data")
    assert "the model brings no chat template; choose one, such as template=chatml" in message


# Found when the model is loaded or trained


def test_weights_that_are_cut_short(suite: Suite) -> None:
    folder = shutil.copytree(suite.model, suite.folder / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = suite.failed(f"model.id={folder}", stage="loss-base", kept=("data",))
    assert "the model does not load" in message


def test_weights_that_are_missing_are_not_drawn_at_random(suite: Suite) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(suite.model, suite.folder / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = suite.failed(f"model.id={folder}", stage="loss-base", kept=("data",))
    assert "the weights lack model.layers.1.mlp.up_proj.weight (1 are missing)" in message


def test_a_broken_tokenizer(suite: Suite) -> None:
    folder = shutil.copytree(suite.model, suite.folder / "model")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    message = suite.failed(f"model.id={folder}", stage="data")
    assert "its tokenizer does not load" in message


def test_a_loss_that_is_not_a_number(suite: Suite) -> None:
    """The sweep's other cell is trained and reported; the failed one keeps no result."""
    code, line = suite.run("train.learning_rate=1e-3,1e30", "train.max_steps=3", "study=nan")
    assert code == 1
    assert line.startswith("ftsuite: error: 1 of 2 cells failed; train.learning_rate=1e+30: train:")
    assert "the loss is nan at step" in line
    assert "lower train.learning_rate" in line
    good, bad = suite.records("nan")
    assert (good.status, bad.status) == ("complete", "failed")
    assert bad.failure is not None
    assert (bad.failure.stage, bad.failure.kind) == ("train", "StageError")
    assert len(list((suite.store / "train").glob("*/result.json"))) == 1
    report = (suite.folder / "reports" / "nan" / "README.md").read_text(encoding="utf-8")
    unfinished = report.partition("Cells that did not finish")[2]
    assert "train.learning_rate=1e+30" in unfinished
    assert "the loss is nan at step" in unfinished


def test_weights_that_are_not_numbers(suite: Suite) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(suite.model, suite.folder / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = suite.failed(f"model.id={folder}", stage="loss-base", kept=("data",))
    assert "held-out loss is nan before training; its weights hold NaN" in message


def test_a_validation_loss_that_is_not_a_number(suite: Suite) -> None:
    """One step: the training loss is from before the weights were ruined."""
    kept = ("data", "train", "merge")
    message = suite.failed("train.learning_rate=1e30", stage="check", kept=kept)
    assert "lower train.learning_rate" in message


def test_an_unknown_module(suite: Suite) -> None:
    message = suite.failed("lora.target_modules=[q_proj,nosuch]", stage="preparation")
    assert message.startswith(
        "lora.target_modules = ['q_proj', 'nosuch']: the model has no layer nosuch; its linear "
        "layers: down_proj, "
    )


def test_a_sequence_longer_than_the_context(suite: Suite) -> None:
    assert suite.failed("data.max_length=513", stage="preparation") == (
        "data.max_length = 513: longer than the model's context of 512 tokens; set "
        "data.max_length=512 or less"
    )


def test_every_layer_and_one_by_name(suite: Suite) -> None:
    line = suite.refused("lora.target_modules=[all-linear,q_proj]")
    assert line.startswith("lora.target_modules = ['all-linear', 'q_proj']: [all-linear] stands ")


# A store that cannot be relied on


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run's folder, to be copied and corrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_jsonl(folder / "rows.jsonl", ROWS)
    before = Path.cwd()
    os.chdir(folder)
    try:
        code, _ = Suite(folder=folder, model=tiny_model, capsys=Silent()).run()  # type: ignore[arg-type]
    finally:
        os.chdir(before)
    assert code == 0
    return folder


class Silent:
    """Stands in for capsys, which a module's fixture cannot have."""

    class Read:
        out = err = ""

    def readouterr(self) -> Read:
        return self.Read()


@pytest.mark.parametrize(
    ("stage", "file", "place", "what"),
    [
        ("data", "train.arrow", None, "train.arrow is missing or not"),
        ("data", "result.json", 40, "result.json "),
        ("train", "inputs.json", None, "inputs.json "),
        ("train", "adapter/adapter_model.safetensors", -1, "does not have the sha256"),
    ],
)
def test_a_corrupted_entry(
    suite: Suite, whole: Path, stage: str, file: str, place: int | None, what: str
) -> None:
    shutil.copytree(whole / "store", suite.store)
    # What reads the entry has to be done again.
    shutil.rmtree(suite.store / "merge")
    path = suite.entry(stage) / file
    if place is None:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path, place)
    code, line = suite.run()
    assert code == 1
    assert f"store entry {suite.entry(stage)} is corrupted: " in line
    assert what in line
    assert line.endswith("delete the folder and run again")
    (record,) = suite.records()
    assert record.status == "failed"
    assert record.failure is not None
    assert record.failure.kind == "StoreError"
    # What a changed adapter would be merged into does not come to be.
    assert bool(list((suite.store / "merge").glob("*/result.json"))) == (file == "inputs.json")
    # The advice works.
    shutil.rmtree(suite.entry(stage))
    assert suite.run() == (0, "")


def test_inputs_that_are_not_the_keys(suite: Suite, whole: Path) -> None:
    shutil.copytree(whole / "store", suite.store)
    path = suite.entry("train") / "inputs.json"
    inputs = json.loads(path.read_text())
    inputs["lora"]["r"] += 1
    path.write_text(json.dumps(inputs))
    code, line = suite.run()
    assert code == 1
    assert "inputs.json differs from the key's in lora" in line


@pytest.fixture(params=["48k", "200k", "320k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system with no room for the data, the checkpoint, or the merged model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    yield folder
    # Lazily, because a failed writer may still hold its file.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(suite: Suite, small_disk: Path) -> None:
    code, line = suite.run(f"store.root={small_disk / 'store'}")
    assert code == 1
    assert line.startswith("ftsuite: error: ")
    assert line.count("\n") == 0
    assert "no space left on the disk" in line
    assert "free some, or set store.root or FTSUITE_STORE" in line
    assert not list(small_disk.glob("store/merge/*[!l]/result.json"))


def test_a_disk_that_fills_up_while_a_result_is_written(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no disk can be mounted: fsync says so."""
    real = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("result.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr("ftsuite.store.partials.os.fsync", full)
    message = suite.failed(stage="data")
    assert message.startswith(f"no space left on the disk of {suite.store}; free some")


# Code from a model's folder


def test_code_in_a_models_folder_is_not_run_unless_that_is_said(suite: Suite) -> None:
    folder = save_tiny_model(suite.folder / "model")
    marker = suite.folder / "ran"
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "marked"
    config["auto_map"] = {
        "AutoConfig": "marked.MarkedConfig",
        "AutoModelForCausalLM": "marked.MarkedModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "marked.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MarkedConfig(LlamaConfig):\n    model_type = 'marked'\n"
        "class MarkedModel(LlamaForCausalLM):\n    config_class = MarkedConfig\n"
    )
    code, line = suite.run(f"model.id={folder}")
    assert code == 1
    assert "trust_remote_code" in line
    assert not marker.exists()
    suite.run(f"model.id={folder}", "model.trust_remote_code=true")
    assert marker.exists()


def test_a_study_is_not_failed_by_the_runs_of_earlier_commands(suite: Suite, whole: Path) -> None:
    shutil.copytree(whole / "store", suite.store)
    assert suite.run(suite.rows(""))[0] == 1
    assert suite.run() == (0, "")
