from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import conversation, tiny_tokenizer, write_jsonl

from ftsuite.choices import Loss, Packing, Shape
from ftsuite.config import ColumnsConfig, DataConfig, PackingConfig, TemplateConfig
from ftsuite.data import prepare as data
from ftsuite.data import spool, tokenise
from ftsuite.data.packing import Sequence, trained_tokens
from ftsuite.errors import DataError, StageError
from ftsuite.models import templates

ROOT = Path(__file__).parents[1]
DOLLY = ROOT / "../shared/data/dolly_3k/dolly_3k.json"
needs_dolly = pytest.mark.skipif(
    not DOLLY.is_file(), reason="real rows: ../shared/data/dolly_3k is not here"
)


def questions(count, start=0):
    return [conversation(f"Say {n}.", f"{n}") for n in range(start, start + count)]


def prepare(
    folder,
    rows=None,
    *,
    packing=Packing.off,
    loss=Loss.completion,
    tok=None,
    processes=1,
    **config,
):
    """Prepare `rows` (written to train.jsonl) or `config["train"]`."""
    if rows is not None:
        config["train"] = str(write_jsonl(folder / "train.jsonl", rows))
    tokenizer = tok or tiny_tokenizer()
    return data.prepare(
        DataConfig(**config),
        PackingConfig(strategy=packing),
        loss,
        tokenizer,
        folder,
        processes=processes,
    )


def split_of(summary, name):
    return next(split for split in summary.splits if split.name == name)


def texts(folder, name):
    tokenizer = tiny_tokenizer()
    return [tokenizer.decode(row.input_ids) for row in data.load_split(folder, name)]


def test_the_whole_stage(tmp_path):
    summary = prepare(tmp_path, questions(40), packing=Packing.bfd, max_length=128)
    assert [split.name for split in summary.splits] == ["train", "validation"]
    train, validation = summary.splits
    assert (train.rows, train.available, validation.rows) == (36, 36, 4)
    assert train.sequences < train.rows
    assert validation.sequences == validation.rows
    assert summary.shape == "messages"
    assert summary.source == "train.jsonl"
    assert (train.source, validation.source) == ("train.jsonl", "train.jsonl")
    assert summary.dropped == {}
    assert summary.documents_isolated
    assert summary.subset_note == ""
    packed = data.load_split(tmp_path, "train")
    assert sum(len(sequence.input_ids) for sequence in packed) == train.tokens
    assert sum(sum(sequence.loss_mask) for sequence in packed) == train.trained_tokens
    assert sum(len(sequence.lengths) for sequence in packed) == 36
    assert isinstance(packed[0], Sequence)
    assert set(texts(tmp_path, "validation")).isdisjoint(
        {f"<|im_start|>user\nSay {n}.<|im_end|>" for n in range(40)}
    )
    assert data.load_split(tmp_path, "validation")[0].lengths


def test_each_split_says_where_its_rows_came_from(tmp_path):
    held_out = write_jsonl(tmp_path / "held_out.jsonl", questions(14)[10:])
    summary = prepare(tmp_path, questions(10), validation=str(held_out))
    sources = {split.name: split.source for split in summary.splits}
    assert sources == {"train": "train.jsonl", "validation": "held_out.jsonl"}


def test_completion_and_all(tmp_path):
    completion = split_of(prepare(tmp_path, questions(10)), "train")
    whole = split_of(prepare(tmp_path, questions(10), loss=Loss.all), "train")
    assert completion.tokens == whole.tokens == whole.trained_tokens + whole.rows
    assert 0 < completion.trained_tokens < whole.trained_tokens
    assert completion.sha256 != whole.sha256


def test_splits_depend_on_content_and_seed_not_on_order(tmp_path):
    rows = questions(50)
    first = prepare(tmp_path, rows)
    held_out = texts(tmp_path, "validation")
    shuffled = random.Random(1).sample(rows, len(rows))
    again = prepare(tmp_path, shuffled)
    assert texts(tmp_path, "validation") == held_out
    assert first.splits == again.splits
    prepare(tmp_path, rows, split_seed=1)
    assert texts(tmp_path, "validation") != held_out
    prepare(tmp_path, rows, system="Be brief.")
    assert [text.split("user\n")[1] for text in texts(tmp_path, "validation")] == [
        text.split("user\n")[1] for text in held_out
    ]


def test_equal_rows_stay_on_one_side_of_the_cut(tmp_path):
    rows = questions(10) * 10
    prepare(tmp_path, rows, validation_fraction=0.25, test_fraction=0.25)
    names = ("train", "validation", "test")
    sides = [set(texts(tmp_path, name)) for name in names]
    assert sum(len(side) for side in sides) == len(set.union(*sides)) == 10


def test_given_files_and_a_cut_test_split(tmp_path):
    validation = write_jsonl(tmp_path / "validation.jsonl", questions(5, start=100))
    summary = prepare(tmp_path, questions(20), validation=str(validation), test_fraction=0.2)
    assert {split.name: split.rows for split in summary.splits} == {
        "train": 16,
        "validation": 5,
        "test": 4,
    }
    assert len(data.load_split(tmp_path, "test")) == 4


def test_no_validation_split_at_all(tmp_path):
    summary = prepare(tmp_path, questions(5), validation_fraction=0.0)
    assert [split.name for split in summary.splits] == ["train"]
    with pytest.raises(DataError, match="no validation split was prepared"):
        data.load_split(tmp_path, "validation")


def test_subsets_are_seeded_nested_and_noted(tmp_path):
    rows = questions(100)
    small = prepare(tmp_path, rows, train_limit=20)
    few = set(texts(tmp_path, "train"))
    large = prepare(tmp_path, rows, train_limit=40, validation_limit=5)
    assert few < set(texts(tmp_path, "train"))
    assert small.subset_note == "20 of 90 training rows (seed 0)"
    assert large.subset_note == "40 of 90 training rows (seed 0)"
    assert split_of(large, "train").available == 90
    # Who scores the validation rows takes the first so many of them: all are there.
    assert split_of(large, "validation").rows == len(data.load_split(tmp_path, "validation")) == 10


def test_the_first_validation_rows_are_a_seeded_subset(tmp_path):
    rows = questions(100)
    prepare(tmp_path, rows)
    in_order = texts(tmp_path, "validation")
    assert len(in_order) == 10
    prepare(tmp_path, rows[::-1])
    # The order is that of the seed, whatever the file's.
    assert texts(tmp_path, "validation") == in_order
    prepare(tmp_path, rows, split_seed=1)
    assert texts(tmp_path, "validation") != in_order


def test_wrong_turns_are_dropped_and_counted(tmp_path):
    odd = {"messages": [{"role": "user", "content": "Hello?"}]}
    summary = prepare(tmp_path, [*questions(20), odd, odd])
    assert summary.dropped == {"turns do not alternate user and assistant": 2}
    assert sum(split.rows for split in summary.splits) == 20


def test_truncation(tmp_path):
    rows = [*questions(20), conversation("Tell.", "word " * 100), conversation("w " * 200, "x")]
    cut = prepare(tmp_path, rows, max_length=64, validation_fraction=0)
    assert split_of(cut, "train").truncated == 1
    assert split_of(cut, "train").rows == 21
    assert cut.dropped == {"no token to train on within data.max_length": 1}
    assert max(len(row.input_ids) for row in data.load_split(tmp_path, "train")) == 64
    left_out = prepare(tmp_path, rows, max_length=64, validation_fraction=0, truncate=False)
    assert left_out.dropped == {"longer than data.max_length": 2}
    assert split_of(left_out, "train").truncated == 0
    wrapped = prepare(tmp_path, rows, max_length=64, validation_fraction=0, packing=Packing.wrapped)
    assert wrapped.dropped == {}
    assert split_of(wrapped, "train").truncated == 0
    assert split_of(wrapped, "train").rows == 22


def test_no_sequence_is_without_a_label(tmp_path):
    """A batch of such sequences would make the loss NaN."""
    rows = [conversation("w " * 500, "x"), conversation("Tell.", "word " * 10)]
    for packing in Packing:
        config = {"max_length": 64, "validation_fraction": 0, "packing": packing}
        summary = prepare(tmp_path, rows, **config)
        sequences = data.load_split(tmp_path, "train")
        assert all(trained_tokens(sequence) for sequence in sequences)
        train = split_of(summary, "train")
        assert train.trained_tokens == sum(map(trained_tokens, sequences))
        assert train.sequences == len(sequences)


def test_text_rows_need_no_template_and_end_with_eos(tmp_path):
    tokenizer = tiny_tokenizer("gpt2")
    rows = [{"text": f"Once there were {n} foxes."} for n in range(10)]
    summary = prepare(tmp_path, rows, tok=tokenizer)
    assert summary.shape == "text"
    for row in data.load_split(tmp_path, "train"):
        assert row.input_ids[-1] == tokenizer.eos_token_id
        assert row.input_ids.count(tokenizer.eos_token_id) == 1
        assert row.loss_mask == [0] + [1] * (len(row.input_ids) - 1)


def test_a_system_message_is_injected_in_every_split(tmp_path):
    own = conversation("Hello", "Ahoy", system="Talk like a sailor.")
    prepare(tmp_path, [*questions(19), own], system="Be brief.")
    seen = texts(tmp_path, "train") + texts(tmp_path, "validation")
    assert sum("Be brief." in text for text in seen) == 19
    assert sum("Talk like a sailor." in text for text in seen) == 1


def test_the_summary_tells_no_folder_and_the_log_no_text(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        summary = prepare(tmp_path, [conversation("SECRET", "SECRET")] * 2, validation_fraction=0)
    assert str(tmp_path) not in str(summary)
    assert "SECRET" not in caplog.text


def test_source_identity_is_the_content(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", questions(3))
    second = write_jsonl(tmp_path / "b.jsonl", questions(3))
    third = write_jsonl(tmp_path / "c.jsonl", questions(4))

    def identity(**files):
        return data.source_sha256(DataConfig(**{k: str(v) for k, v in files.items()}))

    assert identity(train=first) == identity(train=second)
    assert identity(train=first) != identity(train=third)
    assert identity(train=first) != identity(train=first, validation=third)
    assert identity(train=first, validation=third) != identity(train=first, test=third)
    assert prepare(tmp_path, train=str(first), validation_fraction=0).source_sha256 == identity(
        train=first
    )
    with pytest.raises(DataError, match="no such file"):
        identity(train=tmp_path / "gone.jsonl")


def test_source_identity_needs_no_torch(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", questions(3))
    code = (
        "import sys; from ftsuite.config import DataConfig;"
        "from ftsuite.data.prepare import source_sha256;"
        f"source_sha256(DataConfig(train={str(path)!r}));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("fraction", [0.01, 1.0])
def test_a_split_that_ends_empty(tmp_path, fraction):
    with pytest.raises(DataError, match=r"train\.jsonl: the (validation|train) split is empty.*;"):
        prepare(tmp_path, questions(5), validation_fraction=fraction)


def test_all_rows_of_a_split_dropped(tmp_path):
    odd = {"messages": [{"role": "user", "content": "Hello?"}]}
    with pytest.raises(DataError, match="the train split is empty, since all 2 rows were dropped"):
        prepare(tmp_path, [odd, odd])
    path = write_jsonl(tmp_path / "validation.jsonl", [odd])
    with pytest.raises(DataError, match="the validation split is empty, since all 1 rows"):
        prepare(tmp_path, questions(5), validation=str(path))


@pytest.mark.parametrize("truncate", [True, False])
def test_every_row_longer_than_the_maximum(tmp_path, truncate):
    with pytest.raises(DataError, match=r"every row of the train split is longer than data\.max"):
        prepare(tmp_path, questions(20), max_length=8, truncate=truncate)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing(tmp_path, limit):
    with pytest.raises(DataError, match="the train split is empty"):
        prepare(tmp_path, questions(1), train_limit=limit, validation_fraction=0)


@pytest.mark.parametrize(
    ("row", "shape", "match"),
    [
        ({"question": "Q", "reply": "A"}, Shape.question_answer, "row 3: no column 'answer', only"),
        ({"question": "Q", "answer": None}, Shape.auto, "row 3: column 'answer' holds null"),
        ({"question": True, "answer": "A"}, Shape.auto, "row 3: column 'question' holds a value"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, shape, match):
    good = {"question": "Q", "answer": "A"}
    with pytest.raises(DataError, match=rf"train\.jsonl, {match}"):
        prepare(tmp_path, [good, good, row], shape=shape)


def test_template_errors_come_through(tmp_path):
    tokenizer = tiny_tokenizer()
    for jinja, match in [
        ("{{ missing.field }}", "template bad failed"),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", "drops or changes"),
    ]:
        templates.install(tokenizer, TemplateConfig(name="bad", jinja=jinja))
        with pytest.raises(DataError, match=match):
            prepare(tmp_path, questions(20), tok=tokenizer, system="Be brief.")


# --- many rows ------------------------------------------------------------------------------


def mixed_rows(count):
    """Rows of many lengths with system messages, several turns and some that are dropped."""
    draw = random.Random(3)
    rows = []
    for n in range(count):
        row = conversation(f"Say {n}. " + "word " * draw.randrange(40), "fox " * draw.randrange(9))
        if n % 5 == 0:
            row["messages"] += conversation("And now?", f"Now {n}.")["messages"]
        if n % 7 == 0:
            row["messages"].insert(0, {"role": "system", "content": "Be brief."})
        rows.append(row)
    return rows


def stored(folder, summary):
    return [data.load_split(folder, split.name)[:] for split in summary.splits]


@pytest.mark.parametrize("packing", list(Packing))
def test_several_processes_give_what_one_gives(tmp_path, monkeypatch, packing):
    rows = mixed_rows(300)
    config = {"packing": packing, "max_length": 64, "test_fraction": 0.1, "system": "Sing."}
    one = prepare(tmp_path, rows, **config)
    expected = stored(tmp_path, one)
    assert one.dropped and one.splits[0].rows > 90
    monkeypatch.setattr(tokenise, "PARALLEL_FROM", 10)
    monkeypatch.setattr(tokenise, "CHUNK", 7)
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(tokenise, "_arrays", None)  # this process tokenises no row itself
    several = prepare(tmp_path, rows, processes=2, **config)
    assert several == one
    assert stored(tmp_path, several) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.arrow",
        "train.arrow",
        "train.jsonl",
        "validation.arrow",
    ]


def test_an_error_in_another_process_is_the_same_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "PARALLEL_FROM", 10)
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="bad", jinja="{{ missing.field }}"))
    with pytest.raises(DataError, match="template bad failed"):
        prepare(tmp_path, questions(40), tok=tokenizer, processes=2)


def die(*_):
    os._exit(1)


def test_a_process_that_dies_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "PARALLEL_FROM", 10)
    monkeypatch.setattr(tokenise, "_begin_worker", die)
    with pytest.raises(StageError, match=r"data: a process .* died.*; set backend\.threads=1"):
        prepare(tmp_path, questions(40), processes=2)


def test_few_rows_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "ProcessPoolExecutor", None)
    assert prepare(tmp_path, questions(40), processes=8).splits[0].rows == 36


def test_training_maps_the_file(tmp_path):
    prepare(tmp_path, mixed_rows(100), packing=Packing.bfd, max_length=64)
    sequences = data.load_split(tmp_path, "train")
    dataset = sequences.dataset()
    assert dataset.cache_files
    assert [Sequence(**row) for row in dataset] == list(sequences) == sequences[:]
    assert sequences[-1] == sequences[len(sequences) - 1]
    with pytest.raises(IndexError):
        sequences[len(sequences)]


# --- what would make a result untrue ----------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize("copied", [True, False])
def test_a_split_that_is_in_the_training_rows(tmp_path, name, copied):
    train = write_jsonl(tmp_path / "train.jsonl", questions(20))
    other = write_jsonl(tmp_path / "other.jsonl", questions(9)) if copied else train
    count = 9 if copied else 20
    with pytest.raises(
        DataError, match=rf"data\.{name} = .*: all its {count} rows are in data.train"
    ):
        prepare(tmp_path, train=str(train), **{"validation_fraction": 0, name: str(other)})


def test_the_training_file_as_validation_although_a_test_split_is_cut_from_it(tmp_path):
    train = str(write_jsonl(tmp_path / "train.jsonl", questions(20)))
    with pytest.raises(DataError, match=r"data\.validation = .*: all its 20 rows"):
        prepare(tmp_path, train=train, validation=train, test_fraction=0.2)


def test_a_test_split_that_is_the_validation_split(tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", questions(9, start=100))
    with pytest.raises(DataError, match=r"data\.test = .*: all its 9 rows are in data.val"):
        prepare(tmp_path, questions(20), validation=str(other), test=str(other))


def test_rows_that_two_splits_share_are_counted(tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", [*questions(3), *questions(7, start=100)])
    summary = prepare(tmp_path, questions(20), validation=str(other), max_overlap=0.3)
    assert summary.notes == ("3 of 10 validation rows are in data.train as well, word for word",)
    clean = write_jsonl(tmp_path / "other.jsonl", questions(7, start=100))
    assert prepare(tmp_path, questions(20), validation=str(clean)).notes == ()


LONG = "Why has order {} that I placed on Monday not been delivered to my house in Leeds yet?"


@pytest.mark.parametrize("copied", [0, 1])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_too_many_shared_rows_are_refused(tmp_path, name, copied):
    """Copies, and questions that are nearly the same whatever their answers."""
    train = [*questions(20), conversation(LONG.format(4411), "yes")]
    near = conversation(LONG.format(4412), "no")
    rows = [*questions(copied), near, *questions(8 - copied, start=100)]
    given = {name: str(write_jsonl(tmp_path / "other.jsonl", rows))}
    given["validation_fraction"] = 0.1 if name == "test" else 0
    how = "with equal or nearly equal questions"
    how = f"1 word for word, 1 {how}" if copied else how
    percent = "22.2" if copied else "11.1"
    with pytest.raises(
        DataError,
        match=rf"data\.{name} = .*: {1 + copied} of its 9 rows \({percent} %\) are in data\.train "
        rf"as well \({how}\), more than data\.max_overlap = 0\.1; remove them, or raise",
    ):
        prepare(tmp_path, train, **given)
    summary = prepare(tmp_path, train, **given, max_overlap=0.25)
    verb = f"{1 + copied} of 9 {name} rows are in data.train as well, {how}"
    assert summary.notes == (verb,)
    assert prepare(tmp_path, train, **given, near_duplicate=1, max_overlap=0.25).notes == (
        (f"1 of 9 {name} rows are in data.train as well, word for word",) if copied else ()
    )


def test_rows_that_validation_and_test_share(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", questions(10, start=100))
    other = write_jsonl(tmp_path / "two.jsonl", questions(10, start=108))
    given = {"validation": str(one), "test": str(other)}
    with pytest.raises(
        DataError, match=r"data\.test = .*: 2 of its 10 rows .* in data\.validation"
    ):
        prepare(tmp_path, questions(20), **given)
    summary = prepare(tmp_path, questions(20), **given, max_overlap=0.2)
    assert summary.notes == ("2 of 10 test rows are in data.validation as well, word for word",)


def test_nearly_equal_rows_stay_on_one_side_of_the_cut(tmp_path):
    families = [LONG.format(4411), "Do you sell blue teapots with a lid made of {} in your shop?"]
    rows = [conversation(f.format(n), str(n)) for f in families for n in ("clay", "Clay!", "clays")]
    for seed in range(20):
        summary = prepare(
            tmp_path, [*rows, *questions(24)], validation_fraction=0.5, split_seed=seed
        )
        sides = texts(tmp_path, "train"), texts(tmp_path, "validation")
        for word in ("Leeds", "teapots"):
            assert sorted(sum(word in text for text in side) for side in sides) == [0, 3]
        held = sum("Leeds" in text or "teapots" in text for text in sides[1])
        alike = f"{held} validation rows are nearly equal to others of the split, so intervals are "
        assert summary.notes == (
            "6 rows in 2 groups of equal or nearly equal questions were kept on one side of the "
            "cut",
            *([f"{alike}narrower than they should be"] if held else []),
        )
        assert len(sides[1]) == 15


def test_a_cut_without_duplicates_is_the_first_rows_of_the_seeded_order(tmp_path):
    """As it was before rows were compared, so that results stay."""
    rows = questions(50)
    prepare(tmp_path, rows, test_fraction=0.2, validation_fraction=0.1)

    def digest(row):
        return hashlib.sha256(f"0 {json.dumps(row['messages'], sort_keys=True)}".encode()).digest()

    order = [f"{row['messages'][0]['content']}" for row in sorted(rows, key=digest)]
    for name, expected in (("validation", order[:5]), ("test", order[5:15]), ("train", order[15:])):
        found = texts(tmp_path, name)
        assert len(found) == len(expected)
        assert all(one in text for one, text in zip(expected, found, strict=True))


def test_a_group_that_is_larger_than_the_part_stays_in_train(tmp_path):
    rows = [*questions(1) * 8, *questions(12, start=100)]
    summary = prepare(tmp_path, rows, validation_fraction=0.2)
    assert split_of(summary, "validation").rows == 4
    assert sum("Say 0." in text for text in texts(tmp_path, "train")) == 8
    with pytest.raises(DataError, match=r"validation split is empty \(0\.2 of 12 rows, and each"):
        prepare(tmp_path, questions(3) * 4, validation_fraction=0.2)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_few_rows_are_refused_with_the_remedy(tmp_path, count):
    with pytest.raises(
        DataError,
        match=rf"validation split is empty \(0\.1 of {count} rows\); raise "
        "data.validation_fraction or give data.validation",
    ):
        prepare(tmp_path, questions(count))
    assert prepare(tmp_path, questions(10)).splits[1].rows == 1


def test_a_constant_question_is_said(tmp_path):
    draw = random.Random(0)
    answers = ["".join(draw.choices("abcdefgh ", k=60)).strip() for _ in range(20)]
    rows = [conversation("Write a message.", answer) for answer in answers]
    summary = prepare(tmp_path, [*rows, rows[0]])
    assert summary.notes == (
        "2 rows in 1 group of equal system messages, questions and answers were kept on one side "
        "of the cut",
        "the questions are mostly the same, with the system messages too, so only rows equal in "
        "system message, question and answer were looked for, not nearly equal ones",
    )


def cut(folder, rows, **config):
    config = {"validation_fraction": 0.2, "test_fraction": 0.2} | config
    path = write_jsonl(folder / "train.jsonl", rows)
    found = data.cut_rows(DataConfig(train=str(path), **config))
    return {name: list(split) for name, split in found.splits.items()}, found.notes


def intents():
    lines = (ROOT / "evals/intent/train.jsonl").read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(json.loads(line)["text"] for line in lines))


def test_a_text_in_the_system_column_does_not_part_the_labels(tmp_path):
    rows = [
        {"system": text, "prompt": "Classify the text above.", "completion": f"label {n % 25}"}
        for n, text in enumerate(intents()[:400])
    ]
    splits, notes = cut(tmp_path, rows)
    labels = {name: {row[-1]["content"] for row in found} for name, found in splits.items()}
    assert len(labels["train"]) == 25 and labels["test"] <= labels["train"]
    assert len(labels["test"]) > 20
    assert any("system messages and questions together were compared" in note for note in notes)


def logged(chats):
    """Conversations of three turns, stored after each of them."""
    texts = intents()
    turns = [
        [conversation(texts[3 * chat + n], f"{chat} {n}")["messages"] for n in range(3)]
        for chat in range(chats)
    ]
    chain = itertools.chain.from_iterable
    return [{"messages": list(chain(chat[:n]))} for chat in turns for n in (1, 2, 3)]


def test_no_test_row_stands_in_a_training_row(tmp_path):
    splits, notes = cut(tmp_path, logged(60))
    begun = [row[:k] for row in splits["train"] for k in (2, 4, 6)]
    assert len(splits["test"]) == 36
    assert not [row for row in splits["test"] if row in begun]
    assert sum(map(len, splits.values())) == 180
    assert any("or of which one is the beginning of the other were kept" in note for note in notes)
    assert any("36 test rows are nearly equal to others of the split, or begin" in n for n in notes)


@pytest.mark.parametrize("longer", ["train", "test"])
def test_beginnings_are_counted_between_given_files(tmp_path, longer):
    rows = logged(20)
    parts = {"test": rows[0:9:3], "train": rows[2::3]}
    if longer == "train":
        parts = {"test": [*rows[0:9:3], *questions(7)], "train": rows[2::3]}
    else:
        parts = {"test": [*rows[2:9:3], *questions(7)], "train": rows[0::3]}
    test = write_jsonl(tmp_path / "test.jsonl", parts["test"])
    given = {"test": str(test), "validation_fraction": 0, "test_fraction": 0}
    with pytest.raises(
        DataError, match=r"data\.test = .*: 3 of its 10 rows .* of which one is the"
    ):
        cut(tmp_path, parts["train"], **given)
    _, notes = cut(tmp_path, parts["train"], **given, max_overlap=0.3)
    assert notes == (
        "3 of 10 test rows are in data.train as well, with equal or nearly equal questions, or of "
        "which one is the beginning of the other",
    )


def test_held_out_rows_are_different_and_training_rows_keep_their_copies(tmp_path):
    splits, notes = cut(tmp_path, questions(60) * 8)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 288,
        "validation": 12,
        "test": 12,
    }
    sets = [{row[0]["content"] for row in rows} for rows in splits.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 60
    for name in ("validation", "test"):
        assert (
            f"84 of 96 {name} rows are copies of others and were left out: documents must be "
            "independent"
        ) in notes
    assert not any("nearly equal to others" in note for note in notes)


def test_copies_in_given_files_are_left_out_and_near_ones_said(tmp_path):
    near = [conversation(LONG.format(n), "yes") for n in (4411, 4412)]
    test = write_jsonl(tmp_path / "test.jsonl", [*near, *questions(3, start=100) * 2, near[0]])
    given = {"test": str(test), "validation_fraction": 0, "test_fraction": 0}
    splits, notes = cut(tmp_path, questions(20) * 2, **given)
    assert (len(splits["train"]), len(splits["test"])) == (40, 5)
    assert notes == (
        "4 of 9 test rows are copies of others and were left out: documents must be independent",
        "2 test rows are nearly equal to others of the split, so intervals are narrower than they "
        "should be",
    )


def test_the_copy_that_is_kept_does_not_depend_on_the_order(tmp_path):
    rows = [row | {"part": part} for row in questions(20) for part in ("b", "", "a")]
    for number in range(5):
        path = write_jsonl(tmp_path / f"{number}.jsonl", random.Random(number).sample(rows, 60))
        config = DataConfig(train=str(path), group="part", test_fraction=0.3)
        test = data.cut_rows(config).splits["test"]
        assert [test.group(n) for n in range(len(test))] == ["a"] * 6


def test_rows_under_a_long_common_text_are_said(tmp_path):
    around = "Say in one word what the customer wants, which is all that the shop has to know: {}"
    summary = prepare(tmp_path, [conversation(around.format(n), "yes") for n in range(20)])
    assert summary.notes == (
        "20 rows of 20 were compared for equality alone, since all but a few characters of each "
        "are in many rows",
    )


def test_the_cut_without_tokenising_is_that_of_the_stage(tmp_path):
    config = {"test_fraction": 0.2, "system": "Be brief.", "train_limit": 10}
    summary = prepare(tmp_path, [*questions(40), {"messages": []} | questions(1)[0]], **config)
    rows = data.cut_rows(DataConfig(train=str(tmp_path / "train.jsonl"), **config))
    assert {name: len(split) for name, split in rows.splits.items()} == {
        split.name: split.available for split in summary.splits
    }
    assert rows.notes and rows.notes == summary.notes
    assert rows.splits["test"][0][0] == {"role": "system", "content": "Be brief."}
    asked = [row[1]["content"] for row in rows.splits["test"]]
    assert all(one in text for one, text in zip(asked, texts(tmp_path, "test"), strict=True))


def test_many_rows_cut_short_are_said(tmp_path):
    rows = [*questions(18), *[conversation(f"{n}", "word " * 99 + "word") for n in range(2)]]
    summary = prepare(tmp_path, rows, max_length=64, validation_fraction=0)
    assert summary.notes == (
        "2 of 20 train rows were cut to data.max_length: their answers have no end",
    )
    few = prepare(tmp_path, [*questions(99), rows[-1]], max_length=64, validation_fraction=0)
    assert split_of(few, "train").truncated == 1 and few.notes == ()


def test_empty_answers_are_dropped_and_counted(tmp_path):
    twice = conversation("Hello", "Hi")
    twice["messages"] += conversation("More?", " ")["messages"]
    rows = [*questions(20), conversation("Hello", ""), conversation("Hello", "\n \t"), twice]
    summary = prepare(tmp_path, rows)
    assert summary.dropped == {"an answer, or the text, is empty or white space": 3}
    texts = [{"text": text} for n in range(5) for text in (f"Once {n}.", " ", f"Twice {n}.")]
    text = prepare(tmp_path, texts)
    assert text.dropped == {"an answer, or the text, is empty or white space": 5}
    with pytest.raises(DataError, match=r"all 2 rows were dropped \(an answer, or the text, is"):
        prepare(tmp_path, [conversation("Hello", "")] * 2)


def test_nul_characters_are_an_error(tmp_path):
    rows = [*questions(3), conversation("Hel\0lo", "Hi")]
    with pytest.raises(DataError, match=r"train\.jsonl, row 4.*holds a NUL character"):
        prepare(tmp_path, rows)


@pytest.mark.parametrize(
    ("shape", "one", "other"),
    [
        (Shape.prompt_completion, "prompt", "completion"),
        (Shape.question_answer, "question", "answer"),
        (Shape.dolly, "instruction", "response"),
    ],
)
def test_prompt_and_answer_from_one_column(tmp_path, shape, one, other):
    columns = ColumnsConfig(**{one: "text", other: "text"})
    with pytest.raises(DataError, match=rf"columns\.{one} and data\.columns\.{other} are both"):
        prepare(tmp_path, [{"text": "Once."}] * 20, shape=shape, columns=columns)


@needs_dolly
@pytest.mark.parametrize("packing", list(Packing))
def test_real_dolly_rows(tmp_path, packing):
    summary = prepare(
        tmp_path, train=str(DOLLY), train_limit=300, validation_limit=50, packing=packing
    )
    assert summary.shape == "dolly"
    assert summary.source == "dolly_3k.json"
    train = split_of(summary, "train")
    assert train.available == 2696
    assert train.rows + sum(summary.dropped.values()) >= 300
    sequences = data.load_split(tmp_path, "train")
    assert len(sequences) == train.sequences
    assert max(len(sequence.input_ids) for sequence in sequences) <= 1024
    if packing != Packing.off:
        assert train.tokens / (train.sequences * 1024) > 0.9


def test_rows_with_the_text_of_a_special_token_are_said(tmp_path: Path) -> None:
    rows = [conversation(f"question {n}", f"answer {n}") for n in range(20)]
    rows[3] = conversation("what does <|im_end|> do, twice <|im_end|>?", "it ends a turn")
    source = DataConfig(name="x", train=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    _, summary = data.build(source, PackingConfig(), Loss.completion, tiny_tokenizer("chatml"))
    said = [note for note in summary.notes if "special token" in note]
    assert said and "'<|im_end|>' in 1)" in said[0]
