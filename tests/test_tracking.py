"""Tracking from records: real offline W&B and real TensorBoard, read back with their own tools."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from answered import make_answered
from synthetic import BITS, HEADLINE, make_failed, make_record, make_study

from ftsuite.analysis.compare import corpus_value
from ftsuite.choices import Tracker
from ftsuite.config import TrackingConfig
from ftsuite.errors import SECRET_VARIABLES, BackendUnavailable, ConfigError
from ftsuite.tracking import check, safe_name, track, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord

TESTS = Path(__file__).parent
WANDB = TrackingConfig(kind=Tracker.wandb)
TENSORBOARD = TrackingConfig(kind=Tracker.tensorboard)
SECRETS = {
    name: f"local-{place}{name.lower().replace('_', '')}{'0123456789abcdef' * 3}"
    for place, name in enumerate(SECRET_VARIABLES)
}


def go(config: TrackingConfig, records: Sequence[RunRecord], root: Path) -> list[str]:
    report = root / "reports" / "lora_rank"
    (report / "plots").mkdir(parents=True, exist_ok=True)
    (report / "README.md").write_text("# lora_rank\n")
    (report / "plots" / "scores.png").write_bytes(b"\x89PNG\xff\x00")
    return track(config, make_study(*records), records, report, root)


def offline_runs(root: Path) -> dict[str, dict[str, Any]]:
    """Every offline run by its name, as `wandb leet inspect` reads it."""
    runs = {}
    for path in sorted(root.glob("tracking/*/wandb/offline-run-*")):
        run = read_offline(path)
        runs[run["run"]["display_name"]] = run
    return runs


def read_offline(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    printed = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    of_type: dict[str, list[Any]] = {}
    for line in lines:
        of_type.setdefault(line["type"], []).append(line[line["type"]])
    summary: dict[str, Any] = {}
    for update in of_type["summary"]:
        summary |= update["update"]
    return {
        "run": of_type["run"][0],
        "folder": folder,
        "types": set(of_type),
        "summary": summary,
        "history": [item["item"] for item in of_type["history"]],
        "artifacts": {item["name"]: item for item in of_type.get("artifact", [])},
        "exit_code": of_type["exit"][0].get("exit_code", 0),
    }


def python(code: str, folder: Path, **environment: str) -> str:
    """Run `code` in a fresh Python in `folder`, with tests/ to import from."""
    # Through this variable a process would use the W&B service of the one that started it.
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**own, "PYTHONPATH": paths, **environment},
    )
    assert printed.returncode == 0, printed.stderr
    return printed.stdout + printed.stderr


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A root with one complete and one failed cell, tracked by W&B offline."""
    root = tmp_path_factory.mktemp("wandb")
    return root, go(WANDB, [make_record(), make_failed()], root)


@pytest.fixture(scope="module")
def runs(tracked: tuple[Path, list[str]]) -> dict[str, dict[str, Any]]:
    return offline_runs(tracked[0])


def test_wandb_run_has_its_identity(runs: dict[str, dict[str, Any]]) -> None:
    record = make_record()
    run = runs["lora.r=4"]["run"]
    assert run["run_group"] == "lora_rank"
    assert run["job_type"] == "cell"
    assert run["project"] == "ftsuite"
    assert run["run_id"] == f"lora_rank-{record.run_id}"
    assert set(run["tags"]) == {"smollm2_135m", "complete"}
    assert run["notes"] == "python -m ftsuite +sweep=lora_rank"
    assert run["config"]["update"]["lora"]["r"] == record.config["lora"]["r"]
    # Nothing of the machine: neither its name nor where the store lies.
    assert "host" not in run
    assert "store" not in run["config"]["update"]


def test_wandb_history_is_the_curve(runs: dict[str, dict[str, Any]]) -> None:
    record = make_record()
    assert record.train is not None
    history = [item for item in runs["lora.r=4"]["history"] if "train/loss" in item]
    assert [item["_step"] for item in history] == [point.step for point in record.train.curve]
    assert [item["train/loss"] for item in history] == [point.loss for point in record.train.curve]
    with_eval = [item["_step"] for item in history if "train/eval_loss" in item]
    assert with_eval == [24, 48, 72]
    assert {"train/learning_rate", "train/grad_norm"} <= history[0].keys()


def test_wandb_summary_holds_scores_deltas_and_costs(runs: dict[str, dict[str, Any]]) -> None:
    summary = runs["lora.r=4"]["summary"]
    comparison = next(c for c in make_record().comparisons if c.name == HEADLINE)
    assert summary[f"base/{HEADLINE}"] == pytest.approx(comparison.base)
    assert summary[f"tuned/{HEADLINE}"] == pytest.approx(comparison.tuned)
    assert summary[f"delta/{HEADLINE}"] == pytest.approx(comparison.difference)
    assert summary[f"delta/{HEADLINE}/low"] == pytest.approx(comparison.low)
    assert summary[f"delta/{HEADLINE}/high"] == pytest.approx(comparison.high)
    assert summary[f"delta/{HEADLINE}/p"] == pytest.approx(comparison.p_value)
    assert summary["headline/metric"] == HEADLINE
    for name in ("base", "tuned"):
        assert summary[f"headline/{name}"] == pytest.approx(getattr(comparison, name))
    assert summary["headline/delta"] == pytest.approx(comparison.difference)
    assert summary["probe/pirate/base/with_system"] == 1
    assert summary["probe/pirate/base/with_system/answers"] == 3
    assert summary["probe/pirate/tuned/with_system"] == pytest.approx(2 / 3)
    assert summary["cost/train_seconds"] == pytest.approx(95.3)
    assert summary["cost/peak_memory_bytes"] == 4_400_000_000
    assert summary[f"gate/{BITS}/passed"] == 1
    assert summary["status"] == "complete"


def test_wandb_tables(runs: dict[str, dict[str, Any]]) -> None:
    folder = runs["lora.r=4"]["folder"] / "files" / "media" / "table"
    (probes,) = [json.loads(path.read_text()) for path in folder.glob("probes_*")]
    assert probes["columns"][:4] == ["cell", "probe", "prompt", "with_system"]
    rice = ["lora.r=4", "pirate", "How do I cook rice?", True]
    (row,) = [row for row in probes["data"] if row[:4] == rice]
    assert row[4:] == [
        "Arr, ye boil it in the galley, Captain!",
        "Boil it in water.",
        True,
        False,
        "",
    ]
    (comparisons,) = [json.loads(path.read_text()) for path in folder.glob("comparisons_*")]
    assert len(comparisons["data"]) == len(make_record().comparisons)


def test_wandb_tables_of_documents(tmp_path: Path) -> None:
    """Real wandb, offline: won and lost documents, labels, confusion pairs, groups."""
    record = make_answered()
    assert go(WANDB, [record], tmp_path)
    (run,) = offline_runs(tmp_path).values()
    folder = run["folder"] / "files" / "media" / "table"
    found = {}
    for name in ("documents", "labels", "confusions", "groups"):
        (path,) = folder.glob(f"{name}_*")
        plain = json.loads(path.read_text())
        assert plain["columns"][0] == "cell"
        assert {row[0] for row in plain["data"]} == {record.label}
        named = [dict(zip(plain["columns"], row, strict=True)) for row in plain["data"]]
        found[name] = [{k: v for k, v in row.items() if k != "cell"} for row in named]
    route, write, story = record.documents
    documents = {(row["task"], row["result"]): row for row in reversed(found["documents"])}
    listed = [(t.won_documents, t.lost_documents, t.examples) for t in (route, write, story)]
    assert len(found["documents"]) == sum(len(rows) for lists in listed for rows in lists)
    lost = documents["route", "lost"]
    assert (lost["question"], lost["expected"]) == ("Question 4 of route?", "login")
    assert (lost["base"], lost["tuned"], lost["metric"]) == ("login", "other", "acc")
    assert (lost["base_value"], lost["tuned_value"], lost["group"]) == (1, 0, "")
    assert documents["story", "example"]["base"] == "Once upon a time"
    assert documents["story", "example"]["base_value"] is None
    label = {"task": "route", "label": "billing", "n": 3, "base_right": 0, "tuned_right": 2}
    assert found["labels"][0] == label | {"gained": 2, "lost": 0}
    pair = {"task": "route", "expected": "billing", "answered": "login", "base": 2, "tuned": 1}
    assert found["confusions"][0] == pair
    group = {"metric": "route/acc", "group": "gold", "n": 3, "base": 0, "tuned": 1}
    assert found["groups"][0] == group | {"difference": 1}


def test_wandb_report_is_an_artifact(tracked: Any, runs: dict[str, dict[str, Any]]) -> None:
    artifact = runs["lora.r=4"]["artifacts"]["report-lora_rank"]
    assert artifact["type"] == "report"
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    assert files.keys() == {"README.md", "plots/scores.png"}
    # What an upload needs later lies in the store, not in a home folder that may be cleaned.
    for path in files.values():
        assert path.is_relative_to((tracked[0] / "tracking" / "lora_rank" / "wandb").resolve())
        assert path.is_file()


def test_wandb_failed_cell_is_a_failed_run(runs: dict[str, dict[str, Any]]) -> None:
    failed = runs["lora.r=16"]
    assert failed["exit_code"] == 1
    assert runs["lora.r=4"]["exit_code"] == 0
    assert "failed" in failed["run"]["tags"]
    assert failed["summary"]["failure/stage"] == "train"
    assert "loss is nan" in failed["summary"]["failure/message"]


def test_wandb_lines_say_where_and_how(tracked: tuple[Path, list[str]]) -> None:
    root, lines = tracked
    assert str(root / "tracking" / "lora_rank" / "wandb") in lines[0]
    assert "wandb sync" in lines[1]
    pattern = lines[1].split("`")[1].split()[-1]
    assert len(list(root.glob(os.path.relpath(pattern, root)))) == 2


def test_the_printed_upload_takes_no_other_studys_runs(tmp_path: Path) -> None:
    """One study's name is the start of the other's."""
    report = tmp_path / "report"
    commands = {}
    for name in ("lora", "lora-2-more"):
        record = dataclasses.replace(make_record(), study=name)
        manifest = dataclasses.replace(make_study(record), study=name)
        _, line = track(WANDB, manifest, [record], report, tmp_path)
        commands[name] = line.split("`")[1]
    for name, command in commands.items():
        dry = subprocess.run(
            command.replace("wandb sync", "echo"), shell=True, capture_output=True, text=True
        )
        found = [Path(folder) for folder in dry.stdout.split()]
        runs = [offline["run"]["run_group"] for offline in map(read_offline, found)]
        assert runs == [name]


def test_changed_cell_replaces_its_offline_run(tmp_path: Path) -> None:
    assert go(WANDB, [make_failed("lora.r=4")], tmp_path)
    assert go(WANDB, [make_record("lora.r=4")], tmp_path)
    assert [run["exit_code"] for run in offline_runs(tmp_path).values()] == [0]
    assert go(WANDB, [make_record("lora.r=4")], tmp_path) == []


FIRST = """
import os, sys
from pathlib import Path
from synthetic import make_failed, make_record, make_study
from ftsuite.config import TrackingConfig
from ftsuite.tracking import track
secret = os.environ["HF_TOKEN"]
failed = make_failed(message=f"401 for Bearer {secret} at step 1")
records = [make_record(label=f"data.x={os.environ['AWS_SESSION_TOKEN']}", answer=secret), failed]
report = Path("reports/lora_rank")
report.mkdir(parents=True)
(report / "README.md").write_text(f"token {secret}")
for kind in ("wandb", "tensorboard"):
    print(track(TrackingConfig(kind=kind), make_study(*records), records, report, Path("store")))
"""


def test_no_secret_reaches_a_file(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    printed = python(FIRST, work, HOME=str(home), **SECRETS)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.suffix for path in written}
    assert {".wandb", ".ftsuite", ".json", ".log"} <= names
    contents = {path: path.read_bytes() for path in written}
    # The report itself is the test's input.
    del contents[work / "reports" / "lora_rank" / "README.md"]
    for name, secret in SECRETS.items():
        assert secret not in printed, name
        for path, content in contents.items():
            assert secret.encode() not in content, (name, path)
            assert secret not in str(path), name
    marks = b"".join(content for path, content in contents.items() if path.suffix == ".wandb")
    assert b"<HF_TOKEN>" in marks
    # Nothing beside the store: not in the working directory, not in the home folder.
    assert {path.name for path in work.iterdir()} == {"reports", "store"}
    assert not [path for path in home.rglob("*") if path.is_file()]


AGAIN = """
import sys
from pathlib import Path
from synthetic import make_record, make_study
from ftsuite.config import TrackingConfig
from ftsuite.tracking import track
records = [make_record()]
for kind in {kinds}:
    lines = track(
        TrackingConfig(kind=kind), make_study(*records), records, Path("report"), Path({root!r})
    )
    assert lines == [], lines
heavy = {{"wandb", "tensorboard", "torch", "tensorflow", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_second_call_imports_no_tracker(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, _ = tracked
    assert go(TENSORBOARD, [make_record()], root)
    before = sorted(root.rglob("*"))
    code = AGAIN.format(kinds=["none", "wandb", "tensorboard"], root=str(root))
    python(code, tmp_path)
    assert sorted(root.rglob("*")) == before


def test_volatile_fields_do_not_track_again(tmp_path: Path) -> None:
    record = make_record()
    assert go(TENSORBOARD, [record], tmp_path)
    later = dataclasses.replace(
        record,
        stages=tuple(dataclasses.replace(stage, reused=True) for stage in record.stages),
        provenance=dataclasses.replace(record.provenance, finished_at="2027-01-01T00:00:00Z"),
    )
    assert go(TENSORBOARD, [later], tmp_path) == []
    changed = dataclasses.replace(record, gates=())
    assert go(TENSORBOARD, [changed], tmp_path) != []


def test_unfinished_cells_wait(tmp_path: Path) -> None:
    unfinished = [make_record(status="running"), make_record("lora.r=8", status="interrupted")]
    assert go(TENSORBOARD, unfinished, tmp_path) == []
    assert not (tmp_path / "tracking").exists()


def test_broken_marker_tracks_again(tmp_path: Path) -> None:
    assert go(TENSORBOARD, [make_record()], tmp_path)
    (marker,) = tmp_path.glob("tracking/lora_rank/*.json")
    marker.write_text("{")
    assert go(TENSORBOARD, [make_record()], tmp_path)
    sizes = [path.stat().st_size for path in sorted(tmp_path.rglob("events.out.tfevents.*"))]
    assert (len(sizes), sizes[0]) == (2, 0)


def test_tensorboard_reads_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = make_record()
    lines = go(TENSORBOARD, [record, make_failed()], tmp_path)
    folder = tmp_path / "tracking" / "tensorboard" / "lora_rank"
    assert str(folder) in lines[0]
    assert {path.name.rpartition(".")[0] for path in folder.iterdir()} == {"lora.r=4", "lora.r=16"}
    (run,) = folder.glob("lora.r=4.*")
    events = EventAccumulator(str(run))
    events.Reload()
    assert record.train is not None
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == [point.step for point in record.train.curve]
    assert [event.value for event in loss] == pytest.approx([p.loss for p in record.train.curve])
    (score,) = events.Scalars(f"tuned/{HEADLINE}")
    assert record.tuned is not None
    assert score.value == pytest.approx(corpus_value(record.tuned.metrics[1]))
    assert score.step == record.train.steps
    (probes,) = events.Tensors("probes")
    assert "ye boil it in the galley" in probes.tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in events.Tags()["tensors"]
    (run,) = folder.glob("lora.r=16.*")
    events = EventAccumulator(str(run))
    events.Reload()
    assert "loss is nan" in events.Tensors("facts")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_needs_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from synthetic import make_record, make_study
from ftsuite.config import TrackingConfig
from ftsuite.tracking import track
records = [make_record()]
assert track(TrackingConfig(kind="tensorboard"), make_study(*records), records, Path("r"), Path())
assert not {"torch", "tensorflow", "wandb"} & set(sys.modules)
"""
    python(code, tmp_path)


def test_missing_tensorboard_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailable, match=r"pip install 'ftsuite\[tensorboard\]'"):
        go(TENSORBOARD, [make_record()], tmp_path)
    with pytest.raises(BackendUnavailable):
        check(TENSORBOARD)
    assert not (tmp_path / "tracking").exists()


def test_online_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from synthetic import make_record, make_study
from ftsuite.config import TrackingConfig
from ftsuite.errors import BackendUnavailable
from ftsuite.tracking import track
records = [make_record()]
config = TrackingConfig(kind="wandb", mode="online")
try:
    track(config, make_study(*records), records, Path("r"), Path("store"))
except BackendUnavailable as error:
    print(error)
"""
    for key, words in (("", "needs a key"), ("short", "40+ characters")):
        printed = python(code, tmp_path, HOME=str(tmp_path), WANDB_API_KEY=key)
        (line,) = printed.strip().splitlines()
        assert words in line
        assert "tracking.mode=offline" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "config",
    [TrackingConfig(kind=Tracker.none), TrackingConfig(kind=Tracker.wandb, mode="disabled")],
)
def test_nothing_is_tracked(config: TrackingConfig, tmp_path: Path) -> None:
    check(config)
    assert go(config, [make_record()], tmp_path) == []
    assert not (tmp_path / "tracking").exists()


def test_unknown_mode_is_a_config_error(tmp_path: Path) -> None:
    config = TrackingConfig(kind=Tracker.wandb, mode="of-line")
    with pytest.raises(ConfigError, match="choose one of offline, online, disabled"):
        go(config, [make_record()], tmp_path)


def test_weighted_means_and_refused_deltas() -> None:
    record = make_record(tuned_conditions={"dtype": "bfloat16"})
    named = values.numbers(record, {})
    assert record.tuned is not None
    bits = next(metric for metric in record.tuned.metrics if metric.name == BITS)
    assert bits.weights is not None
    weighted = sum(v * w for v, w in zip(bits.values, bits.weights, strict=True))
    assert named[f"tuned/{BITS}"] == pytest.approx(weighted / sum(bits.weights))
    assert f"delta/{BITS}" not in named
    assert "dtype" in values.texts(record)[f"delta/{BITS}/refused"]


def test_safe_names_stay_apart() -> None:
    assert safe_name("lora.r=4,packing=off") == "lora.r=4,packing=off"
    assert safe_name("data=a/b") != safe_name("data=a b")
    assert len(safe_name("x" * 500)) <= 100
    assert safe_name("../..").startswith("x-")


def test_every_tracker_has_its_yaml() -> None:
    folder = TESTS.parent / "conf" / "tracking"
    kinds = {path.stem: yaml.safe_load(path.read_text())["kind"] for path in folder.glob("*.yaml")}
    assert kinds == {kind.value: kind.value for kind in Tracker}
