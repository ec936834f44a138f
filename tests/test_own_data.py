"""One's own file to a recommendation, each kind of it, by the command itself on a tiny model."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from test_heldout import example_file

from ftsuite import jsonfile
from ftsuite.__main__ import main
from ftsuite.cli import main as commands
from ftsuite.scoring import documents
from ftsuite.store import entries as store
from ftsuite.studies import study

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.records import RunRecord

SETTINGS = [
    "study=mine",
    "model.name=tiny",
    "model.embedded=null",
    "data=file",
    "data.max_length=320",
    "train.max_steps=6",
    "train.micro_batch_size=2",
    "train.learning_rate=1e-2",
    "backend.device=cpu",
    "backend.threads=1",
    "evals.limit=12",
    "evals.generate_limit=6",
    "evals.limits.prose_bpb=2",
    "evals.max_new_tokens=120",
    "probes=none",
    "tracking=none",
    # Saves the imports of a worker.
    "executor=inline",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(place: Path, model: Path, *overrides: str) -> list[RunRecord]:
    assert main([f"model.id={model}", *SETTINGS, *overrides]) == 0
    manifest = study.read_manifest(place / "store", "mine")
    paths = [study.record_path(place / "store", "mine", cell.run_id) for cell in manifest.cells]
    return [study.read_run(path) for path in paths]


def report(place: Path) -> str:
    return (place / "reports" / "mine" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["labels", "text", "json", "numbers", "chat"])
def test_every_kind_of_file_ends_in_a_decision_on_its_held_out_rows(
    kind: str, place: Path, tiny_model: Path
) -> None:
    path = example_file(kind, place)
    more = ["data.group=department"] if kind == "chat" else []
    (record,) = ran(place, tiny_model, f"data.train={path}", *more)
    assert record.status == "complete", record.failure
    assert {c.name for c in record.comparisons} >= {
        record.config["evals"]["headline"],
        record.config["evals"]["rank_by"],
        f"{kind}_answers/bits_per_byte",
        "prose_bpb/bits_per_byte",
    }
    assert all(not comparison.refused for comparison in record.comparisons)
    text = report(place)
    assert any(lead in text for lead in ("**Take `", "is not shown to", "Keep the base"))
    assert "## Documents" in text
    assert record.tuned is not None
    bits = next(m for m in record.tuned.metrics if m.name == f"{kind}_answers/bits_per_byte")
    assert bits.answer_tokens > 0
    if kind == "chat":
        assert set(bits.groups) <= {"lighting", "kitchen", "outdoors", "home"}
        assert "kitchen" in text


def test_every_answer_is_kept_and_shown(
    place: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = example_file("labels", place)
    (record,) = ran(place, tiny_model, f"data.train={path}")
    keys = {stage.stage: stage.key for stage in record.stages}
    for kind in ("eval-base", "eval-tuned"):
        chosen, exact = (
            documents.read(
                store.folder_of(place / "store", "eval", keys[f"{kind} {task}"]) / documents.FILE
            )
            for task in ("labels_choice", "labels_exact")
        )
        assert chosen and all(len(d.choices) == 8 for d in chosen)
        assert len(exact) == 6 and all(len(d.answers) == 1 for d in exact)
    capsys.readouterr()
    assert commands(["show", record.run_id, "--documents", "--json"]) == 0
    shown: Any = json.loads(capsys.readouterr().out)
    assert "labels_choice" in json.dumps(shown)


def test_a_validation_file_and_a_test_file_of_ones_own(place: Path, tiny_model: Path) -> None:
    whole = example_file("labels", place).read_text().splitlines()
    for name, rows in (("a", whole[1:80]), ("b", whole[80:100]), ("c", whole[100:])):
        with gzip.open(place / f"{name}.csv.gz", "wt") as file:
            file.write("\n".join([whole[0], *rows]) + "\n")
    files = ["data.train=a.csv.gz", "data.validation=b.csv.gz", "data.test=c.csv.gz"]
    (record,) = ran(place, tiny_model, *files)
    assert record.data is not None
    counts = {split.name: split.rows for split in record.data.splits}
    assert counts == {"train": 79, "validation": 20, "test": 21}
    assert record.config["data"]["name"] == "a"


def test_the_record_names_no_folder_of_this_machine(place: Path, tiny_model: Path) -> None:
    path = example_file("json", place)
    (record,) = ran(place, tiny_model, f"data.train={path.name}")
    plain = json.dumps(jsonfile.to_json(record) | {"config": {}, "provenance": {}})
    assert str(place) not in plain
    assert record.config["evals"]["path"] == []


def test_nothing_to_evaluate_is_said_before_anything_is_trained(
    place: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = example_file("labels", place)
    overrides = [f"model.id={tiny_model}", *SETTINGS[:10], "probes=none", "tracking=none"]
    assert main([*overrides, f"data.train={path}", "evals=none", "train.max_steps=1"]) == 0
    out = capsys.readouterr().out
    assert out.index("nothing will be evaluated") < out.index("] data: ")
    assert main([*overrides, f"data.train={path}", "data.test_fraction=0"]) == 1
    assert "data.test_fraction = 0: no test rows" in capsys.readouterr().err
