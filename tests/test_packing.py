from __future__ import annotations

import random

import pytest
from tiny import tiny_llama, tiny_tokenizer

from ftsuite.choices import Packing
from ftsuite.data.packing import IGNORED, Sequence, collate, pack, single, trained_tokens


def rows_of(lengths, seed=0, vocabulary=400):
    rng = random.Random(seed)
    return [
        single(
            [rng.randrange(5, vocabulary) for _ in range(n)], [int(i > n // 3) for i in range(n)]
        )
        for n in lengths
    ]


def random_rows(seed, count=200, longest=64):
    rng = random.Random(seed)
    return rows_of([rng.randint(1, longest) for _ in range(count)], seed)


def documents(sequences):
    """Every document of the sequences as (ids, mask) pairs."""
    found = []
    for sequence in sequences:
        start = 0
        for length in sequence.lengths:
            part = slice(start, start + length)
            found.append((tuple(sequence.input_ids[part]), tuple(sequence.loss_mask[part])))
            start += length
        assert start == len(sequence.input_ids) == len(sequence.loss_mask)
    return found


def test_off_changes_nothing():
    rows = random_rows(1)
    assert pack(rows, Packing.off, 64) == rows


@pytest.mark.parametrize("seed", range(5))
def test_bfd_keeps_every_row_whole_and_no_sequence_too_long(seed):
    rows = random_rows(seed)
    packed = pack(rows, Packing.bfd, 64)
    assert sorted(documents(packed)) == sorted(documents(rows))
    assert max(len(sequence.input_ids) for sequence in packed) <= 64
    assert packed == pack(rows, Packing.bfd, 64)
    tokens = sum(len(row.input_ids) for row in rows)
    # Best-fit decreasing needs at most 11/9 of the optimum and one bin more.
    assert len(packed) <= 11 / 9 * -(-tokens // 64) + 2


def test_bfd_takes_the_fullest_place():
    packed = pack(rows_of([6, 4, 5, 3, 2]), Packing.bfd, 10)
    assert [sequence.lengths for sequence in packed] == [[6, 4], [5, 3, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_bfd_needs_as_many_sequences_as_trls(seed):
    from datasets import Dataset
    from trl import pack_dataset

    rows = random_rows(seed, count=100)
    theirs = pack_dataset(
        Dataset.from_dict({"input_ids": [row.input_ids for row in rows]}), seq_length=64
    )
    assert len(pack(rows, Packing.bfd, 64)) == len(theirs)


def test_wrapped_keeps_the_stream_and_fills_all_but_the_last():
    rows = [*random_rows(2, count=40), *rows_of([500], seed=9)]
    packed = pack(rows, Packing.wrapped, 64)
    for name in ("input_ids", "loss_mask"):
        ours = [value for sequence in packed for value in getattr(sequence, name)]
        assert ours == [value for row in rows for value in getattr(row, name)]
    assert {len(sequence.input_ids) for sequence in packed[:-1]} == {64}
    assert all(sum(sequence.lengths) == len(sequence.input_ids) for sequence in packed)
    assert all(min(sequence.lengths) > 0 for sequence in packed)


def test_collate_by_hand():
    two = Sequence(input_ids=[5, 6, 7, 8, 9], loss_mask=[0, 1, 1, 1, 1], lengths=[2, 3])
    batch = collate([two, single([4, 3, 2], [1, 1, 1])], pad_token_id=0)
    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]]
    # 7 begins a document: nothing before it may predict it.
    assert batch["labels"].tolist() == [
        [IGNORED, 6, IGNORED, 8, 9],
        [IGNORED, 3, 2, IGNORED, IGNORED],
    ]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]


@pytest.mark.parametrize("strategy", list(Packing))
def test_trained_tokens_are_the_labels(strategy):
    for sequence in pack(random_rows(3), strategy, 64):
        labels = collate([sequence], 0)["labels"]
        assert trained_tokens(sequence) == int((labels != IGNORED).sum())


def test_an_end_token_that_also_pads_is_still_trained():
    tokenizer = tiny_tokenizer("llama3")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    end = tokenizer.eos_token_id
    batch = collate([single([7, 8, end], [0, 1, 1]), single([5] * 5, [1] * 5)], end)
    assert batch["labels"][0].tolist() == [IGNORED, 8, end, IGNORED, IGNORED]
    new = tiny_tokenizer("llama3", new_pad=True).pad_token_id
    other = collate([single([7, 8, end], [0, 1, 1]), single([5] * 5, [1] * 5)], new)
    assert other["labels"].tolist() == batch["labels"].tolist()
    assert other["input_ids"][0].tolist() == [7, 8, end, new, new]


@pytest.fixture(scope="module")
def batch_and_documents():
    """Two packed sequences of unlike lengths (so one is padded), and their documents."""
    tokenizer = tiny_tokenizer()
    packed = pack(
        rows_of([11, 7, 5, 9, 1, 8, 3], vocabulary=len(tokenizer)), Packing.bfd, max_length=24
    )
    assert len(packed) == 2
    assert all(len(sequence.lengths) > 1 for sequence in packed)
    assert len({len(sequence.input_ids) for sequence in packed}) == 2
    return collate(packed, tokenizer.pad_token_id), packed


def alone(model, packed):
    """Logits of each document by itself, laid where the packed batch has them."""
    import torch

    for number, sequence in enumerate(packed):
        start = 0
        for length in sequence.lengths:
            ids = torch.tensor([sequence.input_ids[start : start + length]])
            yield number, slice(start, start + length), model(input_ids=ids).logits[0]
            start += length


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_cannot_see_each_other(batch_and_documents, attention):
    import torch

    batch, packed = batch_and_documents
    model = tiny_llama(tiny_tokenizer(), attention=attention)
    without = {name: value for name, value in batch.items() if name == "input_ids"}
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        leaking = model(**without, use_cache=False).logits
        differs = 0
        for number, place, expected in alone(model, packed):
            torch.testing.assert_close(logits[number, place], expected, rtol=1e-4, atol=1e-5)
            if place.start > 0:
                differs += 1
                assert (leaking[number, place] - expected).abs().max() > 1e-2
    assert differs >= 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_packed_loss_and_gradient_are_those_of_the_documents(batch_and_documents, attention):
    import torch

    batch, packed = batch_and_documents
    tokenizer = tiny_tokenizer()
    singles = collate(
        [single(list(ids), list(mask)) for ids, mask in documents(packed)], tokenizer.pad_token_id
    )
    results = []
    for inputs in (batch, singles):
        model = tiny_llama(tokenizer, attention=attention)
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        results.append((loss, model.model.embed_tokens.weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing(batch_and_documents):
    import torch

    _, packed = batch_and_documents
    model, pad = tiny_llama(tiny_tokenizer()), tiny_tokenizer().pad_token_id
    short = min(packed, key=lambda sequence: len(sequence.input_ids))
    with torch.no_grad():
        both = model(**collate(packed, pad), use_cache=False).logits[packed.index(short)]
        one = model(**collate([short], pad), use_cache=False).logits[0]
    torch.testing.assert_close(both[: len(one)], one, rtol=1e-4, atol=1e-5)


def test_a_batch_of_single_documents_gives_the_loss_that_an_attention_mask_gives():
    import torch

    tokenizer = tiny_tokenizer()
    rows = rows_of([4, 9, 6])
    batch = collate(rows, tokenizer.pad_token_id)
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in (4, 9, 6)])
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        ours = model(**batch, use_cache=False).loss
        theirs = model(
            input_ids=batch["input_ids"], labels=batch["labels"], attention_mask=mask
        ).loss
    torch.testing.assert_close(ours, theirs)


def test_with_a_cache_transformers_does_not_isolate(batch_and_documents):
    """The trap that the module names: should this fail, the warning there can go."""
    import torch

    batch, _ = batch_and_documents
    model = tiny_llama(tiny_tokenizer())
    with torch.no_grad():
        isolated = model(**batch, use_cache=False).logits
        cached = model(**batch, use_cache=True).logits
    assert (isolated - cached).abs().max() > 1e-2


def test_trls_trainer_takes_the_batches(batch_and_documents, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    _, packed = batch_and_documents
    tokenizer = tiny_tokenizer()
    trainer = SFTTrainer(
        model=tiny_llama(tokenizer),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [s.input_ids for s in packed],
                "loss_mask": [s.loss_mask for s in packed],
                "lengths": [s.lengths for s in packed],
            }
        ),
        processing_class=tokenizer,
        data_collator=lambda rows: collate(
            [Sequence(**row) for row in rows], tokenizer.pad_token_id
        ),
    )
    before = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    import torch

    with torch.no_grad():
        batch = collate(packed, tokenizer.pad_token_id)
        expected = trainer.model(**batch, use_cache=False).loss.item()
    assert before == pytest.approx(expected, rel=1e-4)
    assert trainer.train().global_step == 2
