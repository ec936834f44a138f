"""Own tasks as people write them: what works, and one clear line for what cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from conftest import REPOSITORY

from ftsuite.config import EvalsConfig
from ftsuite.errors import DataError, FtsuiteError
from ftsuite.scoring import tasks
from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"q": f"What is {i}?", "a": ("one", "two")[i % 2], "n": i % 2} for i in range(6)]
TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: [one, two]
doc_to_target: a
metric_list: [{metric: acc}]
"""


@pytest.fixture
def mine(own_evals: Path) -> Path:
    """A folder of evals/ with one good task, `mine`, and its rows."""
    folder = own_evals / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TASK)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder: Path, rows: list[Any]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(folder: Path, **settings: str | None) -> None:
    """Replace lines of mine.yaml: a key's new text, or None to leave it out."""
    lines = [line for line in TASK.splitlines() if line.partition(":")[0] not in settings]
    lines += [f"{key}: {text}" for key, text in settings.items() if text is not None]
    (folder / "mine.yaml").write_text("\n".join(lines) + "\n")


def refusal(name: str = "mine", **settings: Any) -> str:
    """What `check` says; it must be one of our errors, on one line, and never a document's text."""
    with pytest.raises(FtsuiteError) as caught:
        tasks.check(EvalsConfig(tasks=[name], **settings))
    line = str(caught.value)
    assert "\n" not in line
    assert "What is" not in line
    return line


def works(name: str = "mine", **settings: Any) -> Any:
    evals = EvalsConfig(tasks=[name], **settings)
    tasks.check(evals)
    loaded = tasks.load(evals)
    tasks.check_documents(
        loaded, {t.task.config.task: list(range(len(t.task.eval_docs))) for t in loaded}
    )
    return loaded


# --- refused by name --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"doc_to_txt": "x"},
            "doc_to_txt: lm-eval's tasks have no such key; did you mean doc_to_t",
        ),
        ({"doc_to_text": '"{{q"'}, "doc_to_text: broken Jinja, line 1"),
        ({"doc_to_target": '"{% if %}"'}, "doc_to_target: broken Jinja, line 1"),
        ({"doc_to_text": '"{{w}}"'}, "document 1: doc_to_text: 'w' is undefined; the document has"),
        ({"doc_to_text": "question"}, "doc_to_text: 'question' is no field"),
        ({"doc_to_text": "!function f.text"}, "!function f.text: evals/mine/f.py is not there"),
        ({"test_split": "dev"}, "test_split: 'dev' has no data file; data_files has: test, train"),
        ({"test_split": None}, "no split to score; write test_split: or validation_split:"),
        ({"fewshot_split": "few"}, "fewshot_split: 'few' has no data file"),
        ({"metric_list": "[]"}, "metric_list: it is empty; list metrics, or leave it out"),
        ({"metric_list": "[{metric: acurracy}]"}, "say how it is aggregated"),
        (
            {"metric_list": "[{metric: goodness, aggregation: mean, higher_is_better: true}]"},
            "metric 'goodness': lm-eval has no such metric; choose from acc, acc_bytes",
        ),
        ({"metric_list": "[{metric: bleu}]"}, "lm-eval computes none for multiple_choice"),
        ({"metric_list": "[{metric: acc, aggregation: average}]"}, "lm-eval has no 'average'"),
        ({"metric_list": "[acc]"}, "'acc' has no `metric:`; name one"),
        ({"output_type": "choice"}, "output_type: 'choice' is not one of loglikelihood"),
        ({"dataset_path": None}, "dataset_path: write one of json, csv, parquet, text, arrow"),
        ({"dataset_kwargs": "{}"}, "dataset_path: json without files"),
        ({"dataset_kwargs": "{data_files: {test: 3}}"}, "data_files: test: 3 is no file name"),
        (
            {"dataset_kwargs": "{data_files: {test: rows.jsonl}, field: data}"},
            "dataset_kwargs: field: not supported for files",
        ),
        ({"dataset_kwargs": "{data_files: {test: no.jsonl}}"}, "evals/mine/no.jsonl: missing"),
        ({"num_fewshot": "-1"}, "num_fewshot: -1 is not a number of 0 or more"),
        ({"num_fewshot": "2"}, "mine asks for 2 examples and would draw its"),
        ({"num_fewshot": "9", "fewshot_split": "train"}, "its splits train and test are one file"),
        ({"include": "base.yaml"}, "include: base.yaml: no such file"),
        ({"include": "mine.yaml"}, "includes itself"),
        ({"class": "!function f.Task"}, "tasks written in Python are not supported here"),
        ({"description": "[a]"}, "description: ['a'] is a list; write a str"),
        ({"filter_list": "[{filter: [{function: take_first}]}]"}, "a filter has no `name:`"),
        (
            {"filter_list": "[{name: x, filter: [{function: upper}]}]"},
            "lm-eval has no step 'upper'",
        ),
        ({"doc_to_choice": None}, "doc_to_choice is not set"),
        ({"doc_to_choice": '"{{q}}"'}, "doc_to_choice renders to no list"),
        ({"task": "a/b"}, "a name holds no '/'"),
    ],
)
def test_a_yaml_that_cannot_work(mine: Path, settings: dict[str, str | None], said: str) -> None:
    change(mine, **settings)
    line = refusal("a/b" if settings.get("task") else "mine")
    assert said in line
    assert "evals/mine/" in line or line.startswith("evals.num_fewshot")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "evals/mine/rows.jsonl: the file is empty"),
        ("\n \n", "no documents in it"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        ("[1, 2]", "row 1: a JSON int, not an object"),
        ('"text"', "line 1: a JSON str, not an object"),
        ('{"q": "x", "a": "one"}\n{"q": ', "line 2: malformed JSON"),
        (
            "q,a\nx,one\n",
            "line 1: malformed JSON (Expecting value: line 1 column 1 (char 0)); it loo",
        ),
        ("q\ta\nx\tone\n", "it looks like tab-separated CSV: write dataset_path: csv"),
        ("[" * 100_000, "nested too deeply"),
        ('{"q": "x", "a": "one"}\n{"a": "one"}', "document 2: doc_to_text: 'q' is undefined"),
        ('{"q": "x", "a": "one"}\n{"q": "x"}', "document 2: the field 'a' (doc_to_target) is miss"),
        ('{"q": "x", "a": null}', "document 1: the field 'a' (doc_to_target) is null"),
        ('{"q": "x", "a": "one"}\n{"q": 3, "a": "two"}', "`q` is a number, in document 1 it is"),
        ('{"q": "x", "a": "three"}', "doc_to_target is none of the 2 choices; mend the label"),
        ('{"q": "x", "a": 2}', "doc_to_target is none of the 2 choices"),
        ('{"q": "x", "a": -1}', "doc_to_target is none of the 2 choices"),
        ('{"q": "x", "a": true}', "doc_to_target is none of the 2 choices"),
    ],
)
def test_documents_that_cannot_be_scored(mine: Path, rows: str | bytes, said: str) -> None:
    (mine / "rows.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    assert said in refusal()


def test_a_null_text_is_found(mine: Path) -> None:
    change(mine, doc_to_text="q")
    write_rows(mine, [*ROWS, {"q": None, "a": "one"}])
    assert "document 7: the field 'q' (doc_to_text) is null; mend the document" in refusal()


@pytest.mark.parametrize("output_type", ["loglikelihood", "loglikelihood_rolling"])
def test_an_empty_text_to_score_is_found(mine: Path, output_type: str) -> None:
    change(mine, output_type=output_type, metric_list=None, doc_to_choice=None)
    write_rows(mine, [{"q": "x", "a": ""}])
    assert "document 1: doc_to_target gives no text to score" in refusal()


def test_labels_that_only_a_function_knows_are_checked_before_a_model_is_asked(mine: Path) -> None:
    change(mine, doc_to_target="!function f.label")
    (mine / "f.py").write_text("def label(doc):\n    return doc['n'] + 1\n")
    tasks.check(EvalsConfig(tasks=["mine"]))
    with pytest.raises(DataError, match=r"mine: document 2: doc_to_target is none of the 2 choi"):
        works()
    (mine / "f.py").write_text("def label(doc):\n    return doc['no']\n")
    with pytest.raises(DataError, match=r"KeyError: 'no'"):
        works()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def other(doc): ...\n", "evals/mine/f.py defines no 'text'"),
        ("def text(doc:\n", "not Python"),
    ],
)
def test_functions_that_are_not_there(mine: Path, text: str, said: str) -> None:
    change(mine, doc_to_text="!function f.text")
    (mine / "f.py").write_text(text)
    assert said in refusal()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"task: mine\na: [", "not YAML"),
        (b"task: mine\ntask: mine\n", "line 2: not YAML (the key 'task' is there twice)"),
        (b"task: mine\n\xff", "not UTF-8 text"),
        (b"task: mine\na: " + b"[" * 5000, "not YAML|nested too deeply"),
        (b"dataset_path: json\n", "gives no name; write `task: mine` into it"),
        (b"- task: mine\n", "no mapping of settings"),
    ],
)
def test_a_broken_yaml_stops_only_who_uses_it(mine: Path, text: bytes, said: str) -> None:
    (mine / "mine.yaml").write_bytes(text)
    tasks.check(EvalsConfig(tasks=["intent_choice"]))
    tasks.identity("intent_choice", EvalsConfig(tasks=["intent_choice"]))
    line = refusal()
    assert any(one in line for one in said.split("|"))


def test_two_tasks_of_one_name(mine: Path) -> None:
    (mine / "other.yaml").write_text(TASK)
    assert "two files have that name, evals/mine/mine.yaml and evals/mine/other.yaml" in refusal()
    tasks.check(EvalsConfig(tasks=["intent_choice"]))


# --- what works -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "array", "csv", "tsv", "parquet", "arrow"])
def test_every_kind_of_data_file(mine: Path, kind: str) -> None:
    import pandas
    from datasets import Dataset

    table, name = pandas.DataFrame(ROWS), f"data.{kind}"
    if kind == "json":
        table.to_json(mine / name, orient="records", lines=True)
    elif kind == "array":
        table.to_json(mine / name, orient="records")
    elif kind in ("csv", "tsv"):
        table.to_csv(mine / name, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "parquet":
        table.to_parquet(mine / name)
    else:
        Dataset.from_list(ROWS).save_to_disk(mine / "saved")
        (mine / "saved" / "data-00000-of-00001.arrow").rename(mine / name)
    sep = ", sep: '\\t'" if kind == "tsv" else ""
    change(
        mine,
        dataset_path={"array": "json", "tsv": "csv"}.get(kind, kind),
        dataset_kwargs=f"{{data_files: {{test: {name}}}{sep.replace(chr(39), chr(34))}}}",
        doc_to_target="n",
    )
    (loaded,) = works()
    assert [dict(row) for row in loaded.task.eval_docs] == ROWS
    assert tasks.scored_documents("mine", EvalsConfig(tasks=["mine"]))


@pytest.mark.parametrize("files", ["rows.txt", "[rows.txt]", "{train: rows.txt}"])
def test_text_and_the_forms_of_data_files(mine: Path, files: str) -> None:
    (mine / "rows.txt").write_text("first line\nsecond\u2028line\n")
    change(
        mine,
        dataset_path="text",
        dataset_kwargs=f"{{data_files: {files}}}",
        test_split="train",
        output_type="loglikelihood_rolling",
        doc_to_text='""',
        doc_to_target="text",
        doc_to_choice=None,
        metric_list=None,
    )
    (loaded,) = works()
    assert loaded.task.eval_docs["text"] == ["first line", "second\u2028line"]
    assert loaded.facts.names == ("word_perplexity", "byte_perplexity", "bits_per_byte")


def test_fields_that_the_first_document_lacks_are_kept(mine: Path) -> None:
    write_rows(mine, [*ROWS, {"q": "x", "a": "one", "extra": "here"}])
    (loaded,) = works()
    assert loaded.task.eval_docs[6]["extra"] == "here"


def test_examples_come_from_the_split_that_is_named(mine: Path) -> None:
    write_rows(mine, ROWS)
    (mine / "more.jsonl").write_text('{"q": "Which?", "a": "two"}\n')
    change(
        mine,
        dataset_kwargs="{data_files: {test: rows.jsonl, train: more.jsonl}}",
        fewshot_split="train",
    )
    (loaded,) = works(num_fewshot=1)
    assert [row["q"] for row in loaded.task.sampler.df] == ["Which?"]


def test_includes_and_functions_are_in_the_key(mine: Path) -> None:
    (mine / "base").write_text("output_type: multiple_choice\ninclude: deeper\n")
    (mine / "deeper").write_text("doc_to_choice: [one, two]\n")
    (mine / "f.py").write_text("import g\ndef text(doc):\n    return doc['q']\n")
    (mine / "g.py").write_text("x = 1\n")
    change(
        mine,
        include="base",
        output_type=None,
        doc_to_choice=None,
        doc_to_text="!function f.text",
    )
    evals = EvalsConfig(tasks=["mine"])
    keys = [json.dumps(tasks.identity("mine", evals))]
    for name in ("base", "deeper", "f.py", "g.py", "rows.jsonl", "mine.yaml"):
        path = mine / name
        path.write_text(path.read_text() + "\n")
        keys.append(json.dumps(tasks.identity("mine", evals)))
    assert len(set(keys)) == 7
    assert tasks.facts_of("mine", evals).output_type == "multiple_choice"
    (mine / "f.py").write_text("def text(doc):\n    return 'Q: ' + doc['q']\n")
    (loaded,) = works()
    assert loaded.task.doc_to_text(loaded.task.eval_docs[0]) == "Q: What is 0?"


def test_a_group_of_our_own(mine: Path) -> None:
    group = """
    group: both
    group_alias: Both of them
    num_fewshot: 0
    task:
      - mine
      - {task: intent_choice, task_alias: intent, description: "Say a word."}
      - group: inner
        task:
          - task: inline
            dataset_path: json
            dataset_kwargs: {data_files: {validation: rows.jsonl}}
            validation_split: validation
            output_type: multiple_choice
            doc_to_text: "{{q}}"
            doc_to_choice: [one, two]
            doc_to_target: a
            metric_list: [{metric: acc}]
    """
    (mine / "both.yaml").write_text(textwrap.dedent(group))
    loaded = works("both")
    assert [item.name for item in loaded] == ["both"] * 3
    members = ["mine", "intent_choice", "both::inner::inline"]
    assert [item.task.config.task for item in loaded] == members
    assert [item.task.config.num_fewshot for item in loaded] == [0, 0, 0]
    assert loaded[1].facts.description == "Say a word."
    assert tasks.roles(loaded) == {"both": "test"}
    first = tasks.identity("both", EvalsConfig())
    assert list(first) == members
    (mine / "both.yaml").write_text(textwrap.dedent(group).replace("a word", "one word"))
    assert tasks.identity("both", EvalsConfig()) != first


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("[mine, intent_exact]", "report different metrics"),
        ("[mine, no_such]", "'no_such': no such task"),
        ("[mine, mine]", "mine is in it twice"),
        ("[]", "a group without tasks"),
        ("[both]", "the group both holds itself"),
        ("[3]", "task: 3 is no task"),
    ],
)
def test_a_group_that_cannot_be_scored(mine: Path, members: str, said: str) -> None:
    (mine / "both.yaml").write_text(f"group: both\ntask: {members}\n")
    assert said in refusal("both")
    tasks.check(EvalsConfig(tasks=["mine"]))


def test_groups_whose_tasks_count_alike_are_refused(mine: Path) -> None:
    text = (
        "group: both\ntask: [mine]\naggregate_metric_list: [{metric: acc, weight_by_size: false}]"
    )
    (mine / "both.yaml").write_text(text)
    assert "weight_by_size: false" in refusal("both")


# --- real data --------------------------------------------------------------------------------


def test_real_data_sets_as_own_tasks(mine: Path) -> None:
    data = REPOSITORY.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs ../shared/data")
    change(
        mine,
        dataset_kwargs=f"{{data_files: {{test: {data}/gsm8k/test.jsonl}}}}",
        output_type="generate_until",
        doc_to_text='"Question: {{question}}\\nAnswer:"',
        doc_to_target="answer",
        doc_to_choice=None,
        metric_list="[{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    )
    (loaded,) = works()
    assert len(loaded.task.eval_docs) == 1319
    (mine / "f.py").write_text(
        "def choices(doc):\n"
        "    return [doc['Best Answer'], *doc['Incorrect Answers'].split('; ')]\n"
    )
    # One row ends in '; ', which makes an empty choice.
    change(
        mine,
        dataset_path="csv",
        dataset_kwargs=f"{{data_files: {data}/truthfulqa/TruthfulQA.csv}}",
        test_split=None,
        validation_split="train",
        doc_to_text='"Q: {{Question}}"',
        doc_to_choice="!function f.choices",
        doc_to_target="0",
    )
    with pytest.raises(DataError, match="document 319: doc_to_choice gives an empty text"):
        works()
    (mine / "f.py").write_text(
        "def choices(doc):\n"
        "    wrong = [text for text in doc['Incorrect Answers'].split('; ') if text]\n"
        "    return [doc['Best Answer'], *wrong]\n"
    )
    (loaded,) = works()
    assert (len(loaded.task.eval_docs), loaded.facts.role) == (817, "validation")


# --- what is printed --------------------------------------------------------------------------


@pytest.mark.slow
def test_lm_eval_prints_nothing_between_our_lines(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ftsuite",
            f"model.id={tiny_model}",
            "model.embedded=null",
            f"data.train={tiny_rows}",
            "data.validation=null",
            "data.system=null",
            "data.shape=prompt_completion",
            "data.columns.prompt=text",
            "data.columns.completion=label",
            "train.max_steps=1",
            "backend.device=cpu",
            "evals=intent_full",
            "evals.limit=2",
            "gates=none",
            "probes=none",
            "tracking=none",
            f"store.root={tmp_path}/store",
            f"store.reports={tmp_path}/reports",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""


def test_what_a_group_of_ours_overrides_is_in_the_key(own_evals: Path) -> None:
    """The task is lm-eval's, and so is its YAML; the number of examples is ours."""
    (own_evals / "mine").mkdir()
    found = []
    for count in (5, 0):
        (own_evals / "mine" / "grp.yaml").write_text(
            f"group: mygrp\ntask:\n  - {{task: arc_easy, num_fewshot: {count}}}\n"
        )
        found.append(tasks.identity("mygrp", EvalsConfig()))
    assert found[0] != found[1]


def test_files_of_one_name_in_two_folders_are_both_in_the_key(own_evals: Path) -> None:
    (own_evals / "mine").mkdir()
    (own_evals / "shared").mkdir()
    (own_evals / "shared" / "utils.py").write_text("def text(doc):\n    return doc['text']\n")
    (own_evals / "mine" / "utils.py").write_text("def docs(data):\n    return data\n")
    (own_evals / "shared" / "base.yaml").write_text("doc_to_text: !function utils.text\n")
    prose = (own_evals / "prose" / "prose_bpb.yaml").read_text().replace('doc_to_text: ""\n', "")
    (own_evals / "mine" / "mine.yaml").write_text(
        prose.replace("task: prose_bpb", "task: mine").replace(
            "prose.jsonl", "../prose/prose.jsonl"
        )
        + "include: ../shared/base.yaml\nprocess_docs: !function utils.docs\n"
    )
    keys = [tasks.identity("mine", EvalsConfig())]
    for folder in ("shared", "mine"):
        with (own_evals / folder / "utils.py").open("a") as file:
            file.write("# changed\n")
        keys.append(tasks.identity("mine", EvalsConfig()))
    assert len({str(key) for key in keys}) == 3


def test_a_task_that_scores_the_training_file_is_refused(own_evals: Path) -> None:
    digest = file_digest(own_evals / "intent" / "test.jsonl")
    config = EvalsConfig(tasks=["intent_choice"])
    with pytest.raises(FtsuiteError, match=r"data\.train = 'my\.jsonl': the task intent_choice"):
        tasks.check_training_file("my.jsonl", digest, config)
    other = file_digest(own_evals / "intent" / "train.jsonl")
    tasks.check_training_file("my.jsonl", other, config)


def test_one_file_under_two_split_names_gives_no_examples(own_evals: Path) -> None:
    prose = (own_evals / "intent" / "intent_choice.yaml").read_text()
    leaking = prose.replace("task: intent_choice", "task: leak").replace(
        "{ test: test.jsonl }", "{ test: test.jsonl, train: test.jsonl }"
    )
    path = own_evals / "intent" / "leak.yaml"
    path.write_text(leaking + "training_split: train\nnum_fewshot: 2\n")
    with pytest.raises(FtsuiteError, match="its splits train and test are one file"):
        tasks.check(EvalsConfig(tasks=["leak"]))
