"""Every scored document with its answers: what the real lm-eval gave, as the store keeps it."""

from __future__ import annotations

import dataclasses
import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from bystage import anew, entries, serve_standard
from test_evaluate import config_of, wheel_of_two_subjects
from tiny import save_tiny_model, write_jsonl

from ftsuite.analysis.gather import scores_of
from ftsuite.choices import EvalData, Source
from ftsuite.config import ModelConfig
from ftsuite.errors import BackendUnavailable, ComparisonError, DataError, StageError, StoreError
from ftsuite.models import embedded, loading, sources, templates, turns
from ftsuite.resources import evals_dir
from ftsuite.scoring import documents, tasks
from ftsuite.scoring.documents import Choice, Document
from ftsuite.scoring.metrics import _values
from ftsuite.scoring.tasks import index
from ftsuite.store import entries as store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.config import RunConfig
    from ftsuite.records import MetricScores, Scores

LABELS = ["delivery", "payment", "return", "fault", "login", "address", "cancel", "stock"]
LABELS += ["hours", "price"]
DOCUMENT = Document(
    task="a",
    kind="multiple_choice",
    number=3,
    sha256="0" * 64,
    question="first\u2028second\r\n\ud800 | \x00 end",
    question_characters=22,
    expected=("yes",),
    choices=(
        Choice(text="yes", log_likelihood=-1.25, alone=-2.0),
        Choice(text="no", log_likelihood=-0.5),
    ),
    values={"acc": 0.0},
)


def score(config: RunConfig, folder: Path) -> tuple[Scores, dict[str, list[Document]]]:
    """Scores, and the documents by task as they were written."""
    found = entries(anew(config, folder))
    by_task = {name: documents.read(entry.folder / documents.FILE) for name, entry in found.items()}
    assert all({d.task for d in written} == {name} for name, written in by_task.items())
    return scores_of({name: entry.record for name, entry in found.items()}), by_task


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What lm-eval logged of each document, by task."""
    import lm_eval

    seen: dict[str, list[Any]] = {}
    real = lm_eval.simple_evaluate

    def watch(**arguments: Any) -> Any:
        results = real(**arguments)
        seen.update(results["samples"])
        return results

    monkeypatch.setattr(lm_eval, "simple_evaluate", watch)
    return seen


def intent_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (evals_dir() / "intent/test.jsonl").open()]


def write_task(folder: Path, name: str, rows: Sequence[dict[str, Any]], **config: Any) -> None:
    """An own task on own documents, below the copy of evals/."""
    write_jsonl(folder / f"{name}.jsonl", list(rows))
    plain = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))


# --- the file -------------------------------------------------------------------------------


def test_the_same_documents_are_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    other = dataclasses.replace(DOCUMENT, task="ab", kind="generate_until", answers=("x", "y"))
    for name in ("one.gz", "two.gz"):
        documents.write(tmp_path / name, [DOCUMENT, other])
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    # RFC 1952: bytes 4 to 7 are the time, and no flag says that a file name follows.
    assert (tmp_path / "one.gz").read_bytes()[3:8] == bytes(5)
    assert documents.read(tmp_path / "one.gz") == [DOCUMENT, other]
    # A task whose name begins another's.
    assert documents.read(tmp_path / "one.gz", ["a"]) == [DOCUMENT]
    assert documents.read(tmp_path / "one.gz", ["ab"]) == [other]


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    told = dataclasses.replace(DOCUMENT, answers=("my token is hf_0123456789abcdef",))
    documents.write(tmp_path / "file.gz", [told])
    (found,) = documents.read(tmp_path / "file.gz")
    assert found.answers == ("my token is <HF_TOKEN>",)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / documents.FILE
    with pytest.raises(StoreError, match="no such file; run the study again"):
        documents.read(path)
    documents.write(path, [DOCUMENT] * 50)
    whole = path.read_bytes()
    for broken in (whole[:-20], b"no gzip", whole[:30] + b"\0\0" + whole[32:]):
        path.write_bytes(broken)
        with pytest.raises(StoreError, match="cannot be read"):
            documents.read(path)


def test_only_the_same_documents_are_joined() -> None:
    other = dataclasses.replace(DOCUMENT, number=4)
    (pair,) = documents.join([DOCUMENT], [dataclasses.replace(DOCUMENT, values={"acc": 1.0})])
    assert pair.change("acc", higher_is_better=True) == 1
    assert pair.change("acc", higher_is_better=False) == -1
    assert pair.change("f1", higher_is_better=True) is None
    with pytest.raises(ComparisonError, match="base 2, tuned 1, 1 in common"):
        documents.join([DOCUMENT, other], [other])


def test_the_picked_choice_is_the_metric_s() -> None:
    """By hand: −4, −6 and −4.5 nats; a character −2, −1 and −1.5; a byte −2, −1 and −0.75."""
    choices = (
        Choice(text="ab", log_likelihood=-4.0, alone=-4.0),
        Choice(text="cdefgh", log_likelihood=-6.0, alone=-8.0),
        Choice(text="ééé", log_likelihood=-4.5, alone=-5.0),
    )
    sizes: dict[str, Any] = {"choice_characters": (2, 6, 3), "choice_bytes": (2, 6, 6)}
    expected = {
        "acc": ("ab", 0.5),
        "acc_norm": ("cdefgh", 0.5),
        "acc_norm@filter": ("cdefgh", 0.5),
        "acc_bytes": ("ééé", 0.25),
        "acc_mutual_info": ("cdefgh", 1.5),
        "brier_score": ("ab", 0.5),
    }
    # Files of before have no sizes: then those of the texts.
    for more in (sizes, {}):
        document = dataclasses.replace(DOCUMENT, choices=choices, **more)
        found = {
            metric: (documents.answer(document, metric), documents.margin(document, metric))
            for metric in expected
        }
        assert found == expected
    # The task writes a space before a choice: lm-eval counts it.
    spaced = dataclasses.replace(DOCUMENT, choices=choices, choice_characters=(7, 6, 3))
    assert documents.answer(spaced, "acc_norm") == "ab"
    assert [documents.score_unit(m) for m in ("acc_norm", "acc_bytes@x", "acc")] == [
        "nats a character",
        "nats a byte",
        "nats",
    ]


def test_files_of_before_load(tmp_path: Path) -> None:
    plain = dataclasses.asdict(DOCUMENT)
    del plain["choice_characters"], plain["choice_bytes"]
    with gzip.open(tmp_path / "old.gz", "wt") as file:
        file.write(json.dumps(plain) + "\n")
    assert documents.read(tmp_path / "old.gz") == [DOCUMENT]


@pytest.mark.parametrize("name", ["mean", "perplexity"])
def test_an_error_never_shows_a_row_s_text(name: str) -> None:
    from lm_eval.api.registry import get_aggregation

    for value in ("a secret row", np.str_("a secret row")):
        with pytest.raises(StageError, match=r"values of type (float, )?str") as caught:
            _values("own", get_aggregation(name), [[1.0, value]])
        assert "secret" not in str(caught.value)
        # Nor does a cause that would be printed with it.
        assert caught.value.__cause__ is None


def test_answers_in_words() -> None:
    assert documents.answer(DOCUMENT) == "no"
    assert documents.margin(DOCUMENT) == 0.75
    said = dataclasses.replace(
        DOCUMENT,
        kind="generate_until",
        choices=(),
        answers=("It is 7.",),
        filtered={"whole": "It is 7.", "number": "7"},
    )
    assert documents.answer(said, "exact_match@whole") == "It is 7."
    assert documents.answer(said, "exact_match@number") == "It is 7. ⇒ 7"


# --- what is kept ---------------------------------------------------------------------------


def test_choices_answers_and_whole_texts_are_those_of_lm_eval(
    tiny_model: Path, tmp_path: Path, samples: dict[str, list[Any]]
) -> None:
    names = ["intent_choice", "intent_exact", "prose_bpb"]
    scores, found = score(config_of(tiny_model, tasks=names, limit=7), tmp_path / "out")
    metrics = {metric.task: metric for metric in scores.metrics}
    system = yaml.safe_load((evals_dir() / "intent/intent_choice.yaml").read_text())["description"]
    rows = intent_rows()
    for name in names:
        metric, logged = metrics[name], {row["doc_id"]: row for row in samples[name]}
        assert [document.number for document in found[name]] == list(metric.doc_ids)
        assert [d.values[metric.metric] for d in found[name]] == list(metric.values)
        assert [d.sha256 for d in found[name]] == [logged[n]["doc_hash"] for n in metric.doc_ids]
    for name in names[:2]:
        for document in found[name]:
            assert document.question == rows[document.number]["text"]
            assert document.expected == (rows[document.number]["label"],)
            assert document.system == system
            assert (document.member, document.group) == ("", "")
    for document in found["intent_choice"]:
        row = next(r for r in samples["intent_choice"] if r["doc_id"] == document.number)
        assert [c.text for c in document.choices] == LABELS
        assert [c.log_likelihood for c in document.choices] == [r[0][0] for r in row["resps"]]
        right = documents.answer(document) == document.expected[0]
        assert document.values["acc"] == float(right)
    for document in found["intent_exact"]:
        row = next(r for r in samples["intent_exact"] if r["doc_id"] == document.number)
        assert document.answers == tuple(row["resps"][0])
        assert document.filtered == {"none": row["filtered_resps"][0]}
        assert document.answers[0]
    prose = [json.loads(line) for line in (evals_dir() / "prose/prose.jsonl").open()]
    tokenizer = loading.load_tokenizer(tiny_model, config_of(tiny_model).model)
    for document in found["prose_bpb"]:
        text = prose[document.number]["text"]
        assert document.question == text and document.expected == ()
        assert document.bytes == len(text.encode())
        assert document.tokens == len(tokenizer.encode(text))
        assert document.log_likelihood is not None
        bits = -document.log_likelihood / document.bytes / 0.6931471805599453
        assert document.values["bits_per_byte"] == pytest.approx(bits)


def test_long_texts_are_cut_and_say_so(tiny_model: Path, tmp_path: Path, own_evals: Path) -> None:
    text = "The fox sings. " * 2000
    write_task(
        own_evals / "prose",
        "long_text",
        [{"text": text}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    _, found = score(config_of(tiny_model, tasks=["long_text"], limit=None), tmp_path / "out")
    (document,) = found["long_text"]
    assert document.question == text[: documents.LONGEST_QUESTION]
    assert document.question_characters == len(text)
    assert document.bytes == len(text)


def test_documents_of_one_answer_are_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, tasks=["intent_choice", "intent_exact"], limit=3)
    one, two = (
        [(e.folder / documents.FILE).read_bytes() for e in entries(anew(config, tmp_path)).values()]
        for _ in range(2)
    )
    assert len(one) == 2 and one == two


CODE = """
def results(doc, answers):
    ((score, _),) = answers
    return {"bits_per_byte": (score, len(doc["label"].encode()))}
"""


def test_answer_tokens_are_counted_as_they_are_scored(tmp_path: Path, own_evals: Path) -> None:
    """A tokenizer that puts a space before every text, and a template that writes one."""
    folder = own_evals / "intent"
    rows = [{"text": row["text"], "label": f"{row['label']} é."} for row in intent_rows()[:6]]
    (folder / "code.py").write_text(CODE)
    write_task(
        folder,
        "answer_bits",
        rows,
        output_type="loglikelihood",
        doc_to_text="{{text}}",
        doc_to_target="{{label}}",
    )
    with (folder / "answer_bits.yaml").open("a") as file:
        file.write("process_results: !function code.results\n")
        file.write("metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, ")
        file.write("higher_is_better: false}]\n")
    model = save_tiny_model(tmp_path / "llama2", "llama2")
    config = config_of(model, tasks=["answer_bits"], limit=None)
    scores, found = score(config, tmp_path / "out")
    (metric,) = scores.metrics
    tokenizer = loading.load_tokenizer(model, config.model)
    templates.install(tokenizer, config.template)
    expected = []
    for row in rows:
        before = turns.prompt(tokenizer, [{"role": "user", "content": row["text"]}])
        expected.append(len(turns.encode_pair(tokenizer, before, row["label"])[1]))
    assert [document.tokens for document in found["answer_bits"]] == expected
    assert metric.answer_tokens == sum(expected)
    for row, document in zip(rows, found["answer_bits"], strict=True):
        assert document.bytes == len(row["label"].encode())
        assert document.expected == (row["label"],)
    # Of other metrics none are counted.
    (prose,) = score(config_of(model, tasks=["prose_bpb"], limit=1), tmp_path / "prose")[0].metrics
    assert prose.metric == "bits_per_byte" and prose.answer_tokens == 0


def test_choices_that_stand_in_the_question(
    tiny_model: Path, tmp_path: Path, own_evals: Path
) -> None:
    """As WinoGrande has them: one ending behind two questions."""
    folder = own_evals / "intent"
    (folder / "code.py").write_text(
        "def text(doc):\n    return doc['label']\n"
        "def choices(doc):\n    return [doc['text'] + name for name in doc['names']]\n"
    )
    row = {"text": "The fox met ", "names": ["Maria", "Mark"], "end": "on deck.", "label": 1}
    write_task(folder, "who", [row, row | {"label": 0}], output_type="multiple_choice")
    with (folder / "who.yaml").open("a") as file:
        file.write("doc_to_text: !function code.text\ndoc_to_choice: !function code.choices\n")
        file.write("doc_to_target: '{{end}}'\nmetric_list: [{metric: acc}]\n")
    _, found = score(config_of(tiny_model, tasks=["who"], limit=None), tmp_path / "out")
    for document, right in zip(found["who"], ("Mark on deck.", "Maria on deck."), strict=True):
        assert document.question == "The fox met"
        assert [c.text for c in document.choices] == ["Maria on deck.", "Mark on deck."]
        assert document.expected == (right,)
        assert document.values["acc"] == float(documents.answer(document) == right)


def test_the_question_is_the_last_one_where_there_are_examples(
    tiny_model: Path, tmp_path: Path, own_evals: Path
) -> None:
    folder, rows = own_evals / "intent", intent_rows()
    own = yaml.safe_load((folder / "intent_exact.yaml").read_text())
    own = {k: v for k, v in own.items() if k not in ("task", "dataset_path")}
    shots = {"test": "shown.jsonl", "shots": "train.jsonl"}
    own |= {"dataset_kwargs": {"data_files": shots}, "fewshot_split": "shots", "num_fewshot": 2}
    write_task(folder, "shown", rows[:3], **own)
    _, found = score(config_of(tiny_model, tasks=["shown"], limit=None), tmp_path / "out")
    assert [document.question for document in found["shown"]] == [r["text"] for r in rows[:3]]
    assert {document.system for document in found["shown"]} == {own["description"]}


def test_mutual_information_keeps_both_log_likelihoods(
    tiny_model: Path, tmp_path: Path, own_evals: Path
) -> None:
    path = own_evals / "intent/intent_choice.yaml"
    plain = yaml.safe_load(path.read_text())
    plain["metric_list"] = [{"metric": "acc"}, {"metric": "acc_mutual_info"}]
    path.write_text(yaml.safe_dump(plain))
    _, found = score(config_of(tiny_model, tasks=["intent_choice"], limit=3), tmp_path / "out")
    for document in found["intent_choice"]:
        assert [choice.text for choice in document.choices] == LABELS
        gains = [c.log_likelihood - (c.alone or 0.0) for c in document.choices]
        assert all(choice.alone for choice in document.choices)
        best = LABELS[gains.index(max(gains))]
        assert document.values["acc_mutual_info"] == float(best == document.expected[0])


def test_every_accuracy_of_lm_eval_is_that_of_its_picked_choice(
    tiny_model: Path, tmp_path: Path, own_evals: Path
) -> None:
    names = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
    choices = [" no", "a much longer answer than others", "éééé ééé", "日本語の答え", "q"]
    rows = [
        {"text": row["text"], "label": n % len(choices), "choices": choices}
        for n, row in enumerate(intent_rows()[:30])
    ]
    write_task(
        own_evals / "intent",
        "lengths",
        rows,
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice="choices",
        doc_to_target="label",
        metric_list=[{"metric": name} for name in names],
    )
    _, found = score(config_of(tiny_model, tasks=["lengths"], limit=None), tmp_path / "out")
    picks = set()
    for document in found["lengths"]:
        assert document.choice_characters == tuple(map(len, choices))
        assert document.choice_bytes == tuple(len(text.encode()) for text in choices)
        said = [documents.answer(document, name) for name in names]
        for name, one in zip(names, said, strict=True):
            assert document.values[name] == float(one == document.expected[0])
        picks.add(tuple(said))
    # The metrics do not agree, or else this would prove nothing.
    assert any(len(set(said)) > 1 for said in picks)


def test_two_filters_are_both_kept(tiny_model: Path, tmp_path: Path, own_evals: Path) -> None:
    path = own_evals / "intent/intent_exact.yaml"
    plain = yaml.safe_load(path.read_text())
    first = {"function": "take_first"}
    letter = {"function": "regex", "regex_pattern": "([a-zA-Z])"}
    plain["filter_list"] = [
        {"name": "whole", "filter": [first]},
        {"name": "letter", "filter": [letter, first]},
    ]
    path.write_text(yaml.safe_dump(plain))
    _, found = score(config_of(tiny_model, tasks=["intent_exact"], limit=4), tmp_path / "out")
    for document in found["intent_exact"]:
        assert document.filtered["whole"] == document.answers[0]
        letters = [sign for sign in document.answers[0] if sign.isascii() and sign.isalpha()]
        assert document.filtered["letter"] == (letters or ["[invalid]"])[0]
        assert set(document.values) == {"exact_match@whole", "exact_match@letter"}


# --- groups ---------------------------------------------------------------------------------


def grouped(folder: Path, field: str = "tier") -> None:
    rows = [row | {"tier": ["gold", 7, None][i % 3]} for i, row in enumerate(intent_rows()[:9])]
    rows = [row | {"tier": str(row["tier"]) if row["tier"] else None} for row in rows]
    own = yaml.safe_load((folder / "intent_exact.yaml").read_text())
    own = {k: v for k, v in own.items() if k not in ("task", "dataset_path", "dataset_kwargs")}
    own["metadata"] = {"version": 1.0, "group": field, "labels": LABELS}
    write_task(folder, "by_tier", rows, **own)


def test_groups_are_the_field_that_the_task_names(
    tiny_model: Path, tmp_path: Path, own_evals: Path
) -> None:
    grouped(own_evals / "intent")
    config = config_of(tiny_model, tasks=["by_tier", "intent_exact"], limit=6)
    scores, found = score(config, tmp_path / "out")
    metrics = {metric.task: metric for metric in scores.metrics}
    expected = tuple(["gold", "7", ""][number % 3] for number in metrics["by_tier"].doc_ids)
    assert metrics["by_tier"].groups == expected
    assert tuple(document.group for document in found["by_tier"]) == expected
    assert found["by_tier"][0].labels == tuple(LABELS)
    assert metrics["intent_exact"].groups == () and found["intent_exact"][0].labels == ()


def test_a_group_that_no_document_has_is_refused_before_a_model_is_asked(
    tiny_model: Path, tmp_path: Path, own_evals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(own_evals / "intent", field="team")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_model", load)
    with pytest.raises(
        DataError, match=r"by_tier: metadata: group: document . has no field 'team'"
    ):
        score(config_of(tiny_model, tasks=["by_tier"]), tmp_path / "out")


def test_groups_of_a_group_are_its_members(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_standard(wheel_of_two_subjects(tmp_path / "wheel"), monkeypatch)
    config = config_of(tiny_model, tasks=["mmlu"], source=EvalData.wheel, limit=3)
    known = index.leaves("mmlu", config.evals)
    subjects = tuple(t for t in known if t.name in ("mmlu_anatomy", "mmlu_virology"))
    monkeypatch.setattr(tasks, "leaves", lambda *_: subjects)
    scores, found = score(config, tmp_path / "out")
    (metric,) = scores.metrics
    assert metric.groups == ("mmlu_anatomy",) * 3 + ("mmlu_virology",) * 3
    assert tuple(document.member for document in found["mmlu"]) == metric.groups
    assert [document.number for document in found["mmlu"]] == list(metric.doc_ids)
    assert [document.values["acc"] for document in found["mmlu"]] == list(metric.values)
    first = found["mmlu"][0]
    assert "What is" in first.question and "in anatomy?" in first.question
    assert [choice.text for choice in first.choices] == ["A", "B", "C", "D"]


# --- the store ------------------------------------------------------------------------------


def test_the_store_keeps_the_file_and_its_digest(tiny_config: RunConfig, tmp_path: Path) -> None:
    (entry,) = entries(anew(tiny_config, tmp_path)).values()
    path = store.checked_file(entry.folder, documents.FILE)
    (metric,) = entry.record.metrics
    assert [document.number for document in documents.read(path)] == list(metric.doc_ids)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match=r"documents\.jsonl\.gz does not have the sha256"):
        store.verify(entry.folder)
    with pytest.raises(StoreError, match="does not have the sha256"):
        store.checked_file(entry.folder, documents.FILE)
    with pytest.raises(StoreError, match=r"holds no answers\.txt"):
        store.checked_file(entry.folder, "answers.txt")
    with pytest.raises(StoreError, match="no such entry"):
        store.checked_file(tmp_path / "nowhere", documents.FILE)


# --- the real model -------------------------------------------------------------------------


@pytest.mark.network
def test_real_model_on_own_tasks_a_standard_task_and_subjects(
    session_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelConfig(source=Source.embedded, embedded="smollm2-135m-instruct")
    try:
        base = sources.resolve(settings, session_store)
        standard = embedded.standard_data(session_store)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    names = ["intent_choice", "intent_exact", "winogrande", "mmlu"]
    config = config_of(base.folder, tasks=names, source=EvalData.wheel, limits={"mmlu": 1}, limit=4)
    serve_standard(standard, monkeypatch)
    scores, found = score(config, tmp_path)
    metrics: dict[str, MetricScores] = {metric.task: metric for metric in scores.metrics}
    assert list(found) == names
    for name in ("intent_choice", "winogrande", "mmlu"):
        for document, value in zip(found[name], metrics[name].values, strict=True):
            right = documents.answer(document) == document.expected[0]
            assert value == document.values["acc"] == float(right)
    assert len(set(metrics["mmlu"].groups)) == len(found["mmlu"]) == 57
    for document in found["winogrande"]:
        one, two = document.choices
        assert one.text != two.text and document.expected[0] in (one.text, two.text)
        assert document.question and len(document.question) > 10
    assert all(document.answers[0] for document in found["intent_exact"])
    # A model of English: none of its choices is as unlikely as noise.
    assert all(choice.log_likelihood > -40 for d in found["mmlu"] for choice in d.choices)
