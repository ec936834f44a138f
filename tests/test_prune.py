"""Freeing the disk: what goes, what stays, and what a store is afterwards."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from synthetic import make_failed, make_study, make_sweep, write_study
from test_cli import documented, fields
from test_run import CELLS, copy_of

from ftsuite import cli, jsonfile
from ftsuite.choices import Keep
from ftsuite.config import StoreConfig
from ftsuite.errors import StoreError
from ftsuite.graphrecords import CellStages, StageRef, StudyGraph
from ftsuite.records import StageRecord
from ftsuite.store import leases, pruning
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import (
    StageSpec,
    checked_file,
    file_digest,
    folder_of,
    lookup,
    verify,
)
from ftsuite.studies import keep, study

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Command

    from ftsuite.records import RunRecord

WEIGHTS = 50_000
"""Bytes of a merged model below."""
RECOMMENDED = "lora.r=4"
"""Of the synthetic sweep, as the report says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    value: int


def spec(stage: str, name: str, size: int = WEIGHTS) -> StageSpec[Answer]:
    """A stage that writes `size` bytes into one file and some into another."""

    def compute(folder: Path) -> Answer:
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "config.json").write_text(name)
        file = "documents.jsonl.gz" if stage == "eval" else "model.safetensors"
        (folder / file).write_bytes(name.encode() * (size // len(name)))
        return Answer(value=42)

    inputs = {"name": name}
    return StageSpec(name=stage, version=1, inputs=inputs, record=Answer, compute=compute)


def made(root: Path, record: RunRecord) -> RunRecord:
    """Give a record entries of its own: an adapter, a merged model and scores, and shared rows."""
    chain = [
        spec("data", "rows", 3_000),
        spec("train", f"adapter {record.label}", 1_000),
        spec("merge", f"merged {record.label}"),
        spec("eval", f"scores {record.label}", 2_000),
    ]
    names = ("data", "train", "merge", "eval-tuned")
    stages = tuple(
        StageRecord(stage=name, key=run_stage(root, one).key, seconds=1.0, reused=False)
        for name, one in zip(names, chain, strict=True)
    )
    paths = [str(folder_of(Path(), one.name, one.key)) for one in chain[1:3]]
    artifacts = dict(zip(("adapter", "merged"), paths, strict=True))
    return dataclasses.replace(record, stages=stages, artifacts=artifacts)


def add(root: Path, name: str, records: list[RunRecord], **changes: Any) -> list[RunRecord]:
    """Write a study of these records, as its runs do."""
    mine = [dataclasses.replace(record, study=name, **changes) for record in records]
    manifest = dataclasses.replace(make_study(*mine), study=name)
    write_study(root / "studies" / name, manifest, mine)
    return mine


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("FTSUITE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sweep(root: Path) -> list[RunRecord]:
    """A finished study of four cells, of which r=4 is recommended."""
    return add(root, "ranks", [made(root, record) for record in make_sweep()])


@pytest.fixture
def ask(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*arguments, "--store", str(root)])
        return code, *capsys.readouterr()

    return call


def merged(root: Path, label: str) -> Path:
    return folder_of(root, "merge", spec("merge", f"merged {label}").key)


def whole(root: Path, stage: str = "merge") -> set[str]:
    """Names of a stage's entries whose files are there."""
    return {path.name for path in (root / stage).iterdir() if pruning.bytes_of(path)}


def tree(folder: Path) -> dict[str, str]:
    """Each file below `folder` with its sha256, but for locks."""
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lease"
    }


def du(folder: Path) -> int:
    done = subprocess.run(
        ["du", "--summarize", "--bytes", str(folder)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


# --- an entry -------------------------------------------------------------------------------


def test_a_pruned_entry_keeps_its_record_and_gives_no_file(root: Path) -> None:
    one = spec("merge", "x")
    folder = run_stage(root, one).folder
    before, names = tree(folder), list(tree(folder))
    freed = pruning.prune(folder, ["deep/config.json", "model.safetensors"])
    assert freed == WEIGHTS + 1 and pruning.bytes_of(folder) == 0
    assert {path.name for path in folder.iterdir()} == {"inputs.json", "result.json", "pruned.json"}
    for name in ("inputs.json", "result.json"):
        assert tree(folder)[name] == before[name]
    marker = pruning.pruned(folder)
    assert marker and (marker.bytes, len(marker.files)) == (freed, len(names) - 2)
    found = lookup(root, one)
    assert found and found.pruned and found.record == Answer(value=42)
    for check in (lambda: checked_file(folder, "model.safetensors"), lambda: verify(found.folder)):
        with pytest.raises(StoreError, match=r"was pruned .*delete this folder and run its study"):
            check()
    assert pruning.prune(folder, []) == 0


def test_files_that_were_not_freed_are_still_checked(root: Path) -> None:
    one = spec("eval", "x")
    folder = run_stage(root, one).folder
    pruning.prune(folder, ["documents.jsonl.gz"])
    assert checked_file(folder, "deep/config.json").read_text() == "x"
    (folder / "deep" / "config.json").unlink()
    with pytest.raises(StoreError, match=r"deep/config.json is missing"):
        lookup(root, one)


def test_a_kill_before_the_deletion_leaves_a_pruned_entry_that_is_finished_later(
    root: Path,
) -> None:
    one = spec("merge", "x")
    folder = run_stage(root, one).folder
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom ftsuite.store import pruning\n"
        "real = Path.unlink\n"
        "def unlink(path, **more):\n"
        "    os.kill(os.getpid(), 9) if path.name == 'config.json' else real(path, **more)\n"
        "Path.unlink = unlink\n"
        "pruning.prune(Path(sys.argv[1]), ['deep/config.json', 'model.safetensors'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert killed.returncode == -9
    assert (folder / "model.safetensors").is_file() and pruning.is_pruned(folder)
    found = lookup(root, one)
    assert found and found.pruned
    with pytest.raises(StoreError, match="was pruned"):
        verify(found.folder)
    assert pruning.prune(folder, []) == WEIGHTS + 1
    assert pruning.bytes_of(folder) == 0


def test_an_entry_that_somebody_has_in_hand_is_left_alone(root: Path) -> None:
    folder = run_stage(root, spec("merge", "x")).folder
    with leases.held(folder):
        for free in (lambda: pruning.prune(folder, []), lambda: pruning.remove(folder)):
            with pytest.raises(StoreError, match="another process"):
                free()
    assert pruning.bytes_of(folder) == WEIGHTS + 1


def test_a_restored_entry_is_what_it_was(root: Path) -> None:
    one = spec("merge", "x")
    folder = run_stage(root, one).folder
    before = tree(folder)
    pruning.prune(folder, ["deep/config.json", "model.safetensors"])
    again = folder.with_name(folder.name + ".partial")
    again.mkdir()
    one.compute(again)
    pruning.restore(folder, again)
    assert tree(folder) == before and not again.exists()
    found = lookup(root, one)
    assert found and not found.pruned
    verify(found.folder)


def test_other_bytes_do_not_take_a_freed_file_s_place(root: Path) -> None:
    folder = run_stage(root, spec("merge", "x")).folder
    pruning.prune(folder, ["deep/config.json", "model.safetensors"])
    again = folder.with_name(folder.name + ".partial")
    again.mkdir()
    spec("merge", "y").compute(again)
    with pytest.raises(StoreError, match=r"config.json, computed again, is not what it was"):
        pruning.restore(folder, again)
    assert pruning.is_pruned(folder) and pruning.bytes_of(folder) == 0


def test_a_damaged_marker_is_named(root: Path) -> None:
    one = spec("merge", "x")
    folder = run_stage(root, one).folder
    (folder / "pruned.json").write_text("[]")
    with pytest.raises(StoreError, match=r"pruned.json cannot be read"):
        lookup(root, one)


# --- the command ----------------------------------------------------------------------------


def test_models_of_cells_that_are_not_recommended_go_first(
    root: Path, sweep: list[RunRecord], ask: Any
) -> None:
    before = tree(root)
    size = du(root)
    code, said, error = ask("prune", "--yes", "--json")
    assert (code, error) == (0, "")
    told = json.loads(said)
    whats = [(item["what"], *item["cells"]) for item in told["items"]]
    assert whats[:3] == [("merged model", f"lora.r={r}") for r in (2, 8, 16)]
    assert whats[3:] == [("tokenised rows", *(record.label for record in sweep))]
    assert told["bytes"] == told["freed"] == sum(item["bytes"] for item in told["items"])
    assert told["notes"] == [
        "ranks: keeps the merged model of lora.r=4, which is recommended: 50 kB; --all-cells "
        "frees that too"
    ]
    # du counts markers and folders as well.
    assert abs(told["freed"] - (size - du(root))) < 20_000
    assert whole(root) == {merged(root, RECOMMENDED).name}
    after = tree(root)
    gone = {name for name in before if name not in after}
    assert gone and all(name.startswith(("merge/", "data/")) for name in gone)
    assert all(after[name] == digest for name, digest in before.items() if name not in gone)
    assert ask("prune", "--yes")[1].startswith("nothing to free in")


def test_it_says_what_and_asks(
    root: Path, sweep: list[RunRecord], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(root)
    code, said, _ = ask("prune", "--dry-run")
    assert code == 0 and "153 kB" in said.splitlines()[0]
    for words in ("ranks +lora.r=2 +merged model +50 kB", "lora.r=2 and 3 more +tokenised rows"):
        assert re.search(words, said), said
    assert "lora.r=4, which is recommended" in said
    code, _, error = ask("prune")
    assert code == 1 and "without a terminal it needs --yes" in error
    code, _, error = ask("prune", "--json")
    assert code == 1 and "give --yes to free, or --dry-run" in error
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "")
    assert ask("prune")[0] == 0
    assert asked == ["free 153 kB? [y/N] "] and tree(root) == before
    monkeypatch.setattr("builtins.input", lambda _: "y")
    code, said, _ = ask("prune")
    assert code == 0 and said.endswith("freed 153 kB\n") and tree(root) != before


def test_what_begins_while_the_question_stands_is_left_alone(
    root: Path, sweep: list[RunRecord], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = study.claimed(study.record_path(root, "ranks", sweep[0].run_id))

    def begin(_: str) -> str:
        held.__enter__()
        jsonfile.write(
            study.record_path(root, "ranks", sweep[0].run_id),
            dataclasses.replace(sweep[0], status="running", stages=()),
        )
        return "y"

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", begin)
    code, said, _ = ask("prune")
    held.__exit__(None, None, None)
    assert code == 0 and said.endswith("freed nothing\n")
    assert len(whole(root)) == 4


def test_more_goes_only_when_it_is_told(root: Path, sweep: list[RunRecord], ask: Any) -> None:
    studies = tree(root / "studies")
    assert ask("prune", "ranks", "--yes", "--adapters", "--documents")[0] == 0
    assert whole(root, "train") == {sweep[1].artifacts["adapter"].rpartition("/")[2]}
    assert len(whole(root, "eval")) == 4
    assert not list(root.glob("eval/*/documents.jsonl.gz"))
    assert ask("prune", "--yes", "--all-cells", "--adapters")[0] == 0
    assert whole(root, "train") == whole(root, "merge") == set()
    assert tree(root / "studies") == studies


def test_a_study_that_recommends_none_keeps_its_models(root: Path, ask: Any) -> None:
    seeds = [
        dataclasses.replace(
            record, config={**record.config, "train": {**record.config["train"], "seed": seed}}
        )
        for seed, record in enumerate(make_sweep()[1:3])
    ]
    plain = {**seeds[0].config, "evals": {**seeds[0].config["evals"], "rank_by": ""}}
    add(root, "unranked", [made(root, record) for record in seeds], config=plain)
    told = json.loads(ask("prune", "--yes", "--json")[1])
    assert [item["what"] for item in told["items"]] == ["tokenised rows"]
    assert "keeps all merged models, for it recommends no cell (no validation" in told["notes"][0]
    assert len(whole(root)) == 2
    assert ask("prune", "--yes", "--all-cells")[0] == 0
    assert whole(root) == set()


def test_runs_without_a_sweep_keep_their_models(root: Path, ask: Any) -> None:
    add(root, study.UNNAMED, [made(root, record) for record in make_sweep()])
    said = ask("prune", "--yes")[1]
    assert len(whole(root)) == 4 and "its runs are no sweep" in said


def test_a_running_study_is_left_alone(root: Path, sweep: list[RunRecord], ask: Any) -> None:
    """Also what its graph names, though records of another study mention it."""
    path = study.record_path(root, "busy", sweep[0].run_id)
    add(root, "busy", [sweep[0]], status="running", stages=())
    taken = spec("merge", "merged lora.r=2").key
    stages = (StageRef(name="merge", stage="merge", key=taken),)
    cell = CellStages(run_id="x", label="x", place="1/1", stages=stages)
    graph = StudyGraph(study="busy", cells=(cell,))
    (path.parent / "graph.json").write_text(json.dumps(jsonfile.to_json(graph)))
    orphan = run_stage(root, spec("merge", "alone")).folder
    with study.claimed(path):
        said = ask("prune", "--yes", "--orphans")[1]
    assert "busy: is running, left alone" in said
    assert "that no record mentions: left alone while a study runs" in said
    assert whole(root) == {merged(root, label).name for label in ("lora.r=2", RECOMMENDED)} | {
        orphan.name
    }


def test_orphans_stay_while_a_cell_runs_that_may_have_made_them(root: Path, ask: Any) -> None:
    (busy,) = add(root, "busy", make_sweep()[:1], status="running", stages=())
    orphan = run_stage(root, spec("merge", "alone")).folder
    with study.claimed(study.record_path(root, "busy", busy.run_id)):
        assert ask("prune", "--yes", "--orphans", "--models")[0] == 0
    assert orphan.exists()
    assert ask("prune", "--yes", "--orphans")[0] == 0
    assert not orphan.exists()


def test_what_an_unfinished_cell_will_read_stays(root: Path, ask: Any) -> None:
    cells = [made(root, record) for record in make_sweep()]
    cells[3] = dataclasses.replace(make_failed(), stages=cells[3].stages[:3])
    add(root, "ranks", cells)
    assert ask("prune", "--yes", "--all-cells")[0] == 0
    assert whole(root) == {merged(root, "lora.r=16").name}
    assert len(whole(root, "data")) == 1


def test_a_model_that_another_study_recommends_stays(
    root: Path, sweep: list[RunRecord], ask: Any
) -> None:
    """In the study `one` of a single cell this cell is recommended."""
    add(root, "one", [sweep[2]])
    assert ask("prune", "ranks", "--yes", "--all-cells", "--adapters")[0] == 0
    assert whole(root) == {merged(root, "lora.r=8").name}
    assert len(whole(root, "train")) == 1
    assert ask("prune", "--yes", "--all-cells")[0] == 0
    assert whole(root) == set()


def test_orphans_and_broken_off_work(root: Path, sweep: list[RunRecord], ask: Any) -> None:
    orphan = run_stage(root, spec("merge", "alone")).folder
    kept = run_stage(root, spec("held-out", "tasks")).folder
    model = run_stage(root, spec("model", "base")).folder
    cut, training = (root / stage / ("0" * 24 + ".partial") for stage in ("merge", "train"))
    busy = root / "merge" / ("1" * 24 + ".partial")
    odd = root / "studies" / ("2" * 24 + ".partial")
    for folder in (cut, training, busy, odd):
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(1_000))
    with leases.held(busy.with_suffix("")):
        said = ask("prune", "--yes")[1]
        assert not cut.exists() and busy.exists() and training.exists() and orphan.exists()
        assert "2 folders (51 kB) that no record mentions: --orphans frees them" in said
        code, _, error = ask("prune", "ranks", "--orphans")
        assert code == 1 and "belongs to no study" in error
        assert ask("prune", "--yes", "--orphans")[0] == 0
    assert not training.exists() and not orphan.exists()
    assert busy.exists() and odd.exists() and kept.exists() and model.exists()
    assert ask("prune", "--yes", "--models")[0] == 0
    assert not model.exists() and kept.exists()
    assert lookup(root, spec("model", "base")) is None


def test_a_record_that_cannot_be_read_protects_what_it_may_mention(
    root: Path, sweep: list[RunRecord], ask: Any
) -> None:
    study.record_path(root, "ranks", sweep[1].run_id).write_text("{")
    _, said, error = ask("prune", "--yes", "--orphans")
    assert "left out" in error and "1 record cannot be read" in said
    assert len(whole(root)) == 4


def test_a_corrupted_entry_does_not_keep_the_others(
    root: Path, sweep: list[RunRecord], ask: Any
) -> None:
    (merged(root, "lora.r=2") / "result.json").write_text("{}")
    code, _, error = ask("prune", "--yes")
    assert code == 1 and error.count("\n") == 1 and "is corrupted" in error
    assert whole(root) == {merged(root, label).name for label in ("lora.r=2", RECOMMENDED)}


def test_runs_and_show_tell_of_bytes(root: Path, sweep: list[RunRecord], ask: Any) -> None:
    assert ask("prune", "--yes")[0] == 0
    said = ask("runs")[1]
    assert "1.0 kB + freed" in said and "1.0 kB + 50 kB" in said
    runs = {run["label"]: run for run in json.loads(ask("runs", "--json")[1])}
    assert runs["lora.r=2"]["bytes"]["merged"] == 0
    assert runs["lora.r=2"]["artifacts"]["merged"] is None
    assert runs[RECOMMENDED]["bytes"]["merged"] == pruning.bytes_of(merged(root, RECOMMENDED))
    assert runs["lora.r=2"]["bytes"]["adapter"] > 1_000 - len("adapter lora.r=2")
    shown = " ".join(ask("show", "lora.r=2")[1].split())
    folder = merged(root, "lora.r=2")
    assert f"merged freed (50 kB); to make it again, delete {folder} and run:" in shown
    assert f"merged {merged(root, RECOMMENDED)}" in " ".join(ask("show", RECOMMENDED)[1].split())


def test_the_documented_fields_are_printed(root: Path, sweep: list[RunRecord], ask: Any) -> None:
    told = {name for name in documented("prune") if not name.startswith("--")}
    assert told == fields(json.loads(ask("prune", "--dry-run", "--json")[1]))


# --- store.keep -----------------------------------------------------------------------------


def kept_by(root: Path, records: list[RunRecord], how: Keep, *, name: str = "ranks") -> list[str]:
    manifest = dataclasses.replace(make_study(*records), study=name)
    return keep.keep(StoreConfig(keep=how), root, manifest, records)


def test_keep_at_the_end_of_a_study(root: Path, sweep: list[RunRecord]) -> None:
    assert kept_by(root, sweep, Keep.all) == [] and len(whole(root)) == 4
    (said,) = kept_by(root, sweep, Keep.recommended)
    assert said.startswith("store.keep=recommended: freed 3 merged models (150 kB)")
    assert whole(root) == {merged(root, RECOMMENDED).name}
    (said,) = kept_by(root, sweep, Keep.adapters)
    assert said.startswith("store.keep=adapters: freed 1 merged model (50 kB)")
    assert whole(root) == set() and len(whole(root, "train")) == 4
    # Another setting cannot bring it back.
    (said,) = kept_by(root, sweep, Keep.recommended)
    assert (
        f"lora.r=4 was freed before; to make it again, delete {merged(root, RECOMMENDED)}" in said
    )


def test_keep_spares_what_others_need(root: Path, sweep: list[RunRecord]) -> None:
    add(root, "one", [sweep[2]])
    failed = dataclasses.replace(make_failed(), stages=sweep[0].stages)
    said = kept_by(root, [*sweep[1:], failed], Keep.adapters)
    assert said[1] == "store.keep=adapters: another study keeps 1 merged model of this one"
    assert whole(root) == {merged(root, label).name for label in ("lora.r=2", "lora.r=8")}


def test_keep_recommended_without_a_recommendation_frees_nothing(
    root: Path, sweep: list[RunRecord]
) -> None:
    plain = {**sweep[0].config, "evals": {**sweep[0].config["evals"], "rank_by": ""}}
    (said,) = kept_by(
        root, [dataclasses.replace(one, config=plain) for one in sweep], Keep.recommended
    )
    assert "no cell is, so all merged models stay (no validation metric" in said
    assert len(whole(root)) == 4


@pytest.mark.parametrize(
    ("how", "most"), [(Keep.adapters, 1), (Keep.recommended, 2), (Keep.all, 4)]
)
def test_the_disk_does_not_fill_during_a_sweep(root: Path, how: Keep, most: int) -> None:
    """Models there at once: the one in hand, and with `recommended` the best so far."""
    records = make_sweep()
    manifest = dataclasses.replace(make_study(*records), study="ranks")
    done: list[RunRecord] = []
    seen = []
    for record in records:
        done.append(made(root, record))
        seen.append(len(whole(root)))
        keep.after_cell(StoreConfig(keep=how), root, manifest, done, needed=(), others=())
    assert max(seen) == most
    if how is Keep.recommended:
        assert whole(root) == {merged(root, RECOMMENDED).name}


def test_after_a_cell_what_is_still_needed_stays(root: Path, sweep: list[RunRecord]) -> None:
    manifest = make_study(*sweep)
    needed, others = (keep.merged_keys(sweep[place])[0] for place in (0, 2))
    keep.after_cell(
        StoreConfig(keep=Keep.adapters), root, manifest, sweep, needed={needed}, others={others}
    )
    assert whole(root) == {needed[:24], others[:24]}


# --- a real study ---------------------------------------------------------------------------


def test_a_real_study_after_pruning(finished: Command, tmp_path: Path, ask: Any) -> None:
    command = copy_of(finished, tmp_path)
    before, size = tree(command.store), du(command.store)
    report = (finished.reports / "tiny" / "README.md").read_text()
    report = report.replace(" tracking=wandb", "")
    code, said, _ = ask("prune", "tiny", "--yes", "--all-cells", "--json")
    told = json.loads(said)
    assert code == 0 and len(told["items"]) == 3
    assert abs(told["freed"] - (size - du(command.store))) < 20_000 < told["freed"]
    after = tree(command.store)
    gone = before.keys() - after.keys()
    assert {name.partition("/")[0] for name in gone} == {"merge", "data"}
    assert all(after[name] == before[name] for name in before.keys() - gone)
    assert sum(name.endswith("adapter_model.safetensors") for name in after) == 2
    # Nothing is computed again, and the report says the same.
    assert command.here(CELLS) == 0
    assert all(stage.reused for run in command.runs().values() for stage in run.stages)
    again = (command.reports / "tiny" / "README.md").read_text()
    assert again.replace("executor=inline ", "") == report.replace("executor=inline ", "")
    again = tree(command.store)
    assert again.keys() == after.keys()
    # The records' account of the run is new: the command, and what it found stored.
    assert {n for n in after if again[n] != after[n]} <= {n for n in after if "studies/" in n}
    # What needs the files makes them again.
    assert command.here("lora.r=2", "study=more", "evals.limits.prose_bpb=1") == 0
    back = {name: digest for name, digest in tree(command.store).items() if name in gone}
    assert back == {name: before[name] for name in back}
    assert {name.partition("/")[0] for name in back} == {"merge"}


def test_a_freed_model_is_made_again_with_the_same_bytes(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    assert command.here(CELLS, "store.keep=adapters") == 0
    folder = command.store / command.runs()["lora.r=2"].artifacts["merged"]
    assert pruning.is_pruned(folder) and pruning.bytes_of(folder) == 0
    assert len(list(command.store.glob("merge/*/pruned.json"))) == 2
    for path in sorted(folder.iterdir()):
        path.unlink()
    folder.rmdir()
    # In a process as the first time: the tokenizer's file says whether the Hub was to be asked.
    code, output = command.run(CELLS, "store.keep=all")
    assert code == 0, output
    first = finished.store / folder.relative_to(command.store)
    made_again = {name: digest for name, digest in tree(folder).items() if name != "result.json"}
    assert made_again == {n: d for n, d in tree(first).items() if n != "result.json"}
    assert len(list(command.store.glob("merge/*/pruned.json"))) == 1
