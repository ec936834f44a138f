"""What the train stage computes and stores, against a computation by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from bystage import made, recipe_of
from conftest import make_config, shape_columns
from tiny import tiny_llama, tiny_tokenizer

from ftsuite.choices import Packing, PadToken
from ftsuite.config import LoraConfig, TrainConfig
from ftsuite.data.prepare import load_split
from ftsuite.devices import Target
from ftsuite.errors import StageError
from ftsuite.events import silent
from ftsuite.store.entries import file_digest
from ftsuite.training import targets, trainer

if TYPE_CHECKING:
    from ftsuite.config import RunConfig
    from ftsuite.data import packing


def trained(config: RunConfig) -> Any:
    """Folder of the rows, and the entry of the adapter that was trained on them."""
    root, stages = Path(config.store.root), recipe_of(config)
    return made(root, stages.data).folder, made(root, stages.adapter)


def negative_log_likelihoods(model: Any, sequence: packing.Sequence) -> list[float]:
    """Of a single document's trained tokens, in float64."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence.input_ids])).logits[0].double()
    scores = logits.log_softmax(-1)
    return [
        -float(scores[place - 1, token])
        for place, (token, kept) in enumerate(
            zip(sequence.input_ids, sequence.loss_mask, strict=True)
        )
        if kept and place
    ]


@pytest.fixture
def cell(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> RunConfig:
    config = shape_columns(make_config(tiny_model, tiny_rows, tmp_path / "store"))
    config.data.train_limit = 14
    return config


def test_the_held_out_loss_is_a_mean_over_tokens(cell: RunConfig) -> None:
    """Of the trained model, whatever the micro-batch; a mean of batch means is another number."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # One step on one sequence gives the same adapter for each micro-batch.
    cell.train.max_steps, cell.train.gradient_accumulation = 1, 1
    cell.packing.strategy, cell.data.max_length = Packing.bfd, 512
    cell.data.train_limit = 8
    losses, folder, rows = [], None, []
    for batch in (1, 2, 5):
        cell.train.micro_batch_size = batch
        data, entry = trained(cell)
        rows = load_split(data, "validation")
        assert len(load_split(data, "train")) == 1
        tuned = made(Path(cell.store.root), recipe_of(cell).tuned.loss).record
        assert tuned.rows == tuned.available == len(rows)
        losses.append(tuned.loss)
        folder = entry.folder / "adapter"
    assert folder is not None
    assert max(losses) - min(losses) < 1e-6
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(cell.model.id), folder)
    values = [negative_log_likelihoods(model.eval(), row) for row in rows]
    by_hand = statistics.fmean(value for part in values for value in part)
    assert tuned.tokens == sum(map(len, values))
    assert losses[0] == pytest.approx(by_hand, abs=1e-6)
    lengths = {len(part) for part in values}
    assert len(lengths) > 1, "rows of one length could not tell"
    mean_of_means = sum(sum(part) / len(part) for part in values) / len(values)
    assert abs(mean_of_means - by_hand) > 1e-4


def test_the_training_loss_is_a_mean_over_the_tokens_of_the_step(cell: RunConfig) -> None:
    """Three micro-batches with unlike numbers of trained tokens make one step."""
    from transformers import AutoModelForCausalLM

    cell.packing.strategy = Packing.off
    cell.data.train_limit, cell.lora.dropout = 3, 0.0
    cell.train.max_steps, cell.train.gradient_accumulation = 1, 3
    data, entry = trained(cell)
    rows = load_split(data, "train")
    model = AutoModelForCausalLM.from_pretrained(cell.model.id).eval()
    values = [negative_log_likelihoods(model, row) for row in rows]
    assert len(rows) == 3 and len({len(part) for part in values}) > 1
    by_hand = statistics.fmean(value for part in values for value in part)
    assert entry.record.curve[0].loss == pytest.approx(by_hand, abs=1e-5)
    mean_of_means = sum(sum(part) / len(part) for part in values) / len(values)
    assert abs(mean_of_means - by_hand) > 1e-4


def test_losses_on_the_way_change_no_weight(cell: RunConfig) -> None:
    """They are in no key of the adapter, so that they may not touch it, dropout included."""
    digests, curves = [], []
    cell.train.max_steps, store = 5, Path(cell.store.root)
    assert cell.lora.dropout > 0
    for number, (every, rows) in enumerate([(None, None), (1, None), (2, 3)]):
        cell.store.root = str(store.with_name(f"store-{number}"))
        cell.train.eval_every_steps, cell.data.validation_limit = every, rows
        _, entry = trained(cell)
        digests.append(file_digest(entry.folder / "adapter/adapter_model.safetensors"))
        curves.append(entry.record.curve)
    assert len(set(digests)) == 1
    assert [[p.loss for p in curve if p.loss is not None] for curve in curves] == (
        3 * [[p.loss for p in curves[0]]]
    )
    steps = [[p.step for p in curve if p.eval_loss is not None] for curve in curves]
    assert steps == [[], [1, 2, 3, 4, 5], [2, 4, 5]]
    last = [p.eval_loss for p in curves[1] if p.eval_loss is not None][-1]
    cell.store.root, cell.data.validation_limit = str(store.with_name("store-1")), None
    loss = made(Path(cell.store.root), recipe_of(cell).tuned.loss).record.loss
    assert last == pytest.approx(loss, abs=1e-6)


def test_a_seeded_part_of_the_rows_for_the_held_out_loss(cell: RunConfig) -> None:
    root = Path(cell.store.root)
    found = {}
    for cell.data.validation_limit in (None, 3):
        found[cell.data.validation_limit] = made(root, recipe_of(cell).base.loss).record
    assert found[3].rows == 3 < found[None].rows == found[3].available
    assert found[3].tokens < found[None].tokens
    assert found[3].loss != found[None].loss


def test_a_host_with_two_gpus(tmp_path: Path) -> None:
    """Only the number of GPUs is made up; torch finds none, so the model stays on the CPU."""
    from datasets import Dataset
    from peft import get_peft_model

    target = Target(device="cuda", dtype="float32")
    tokenizer = tiny_tokenizer()
    row = {"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 1], "lengths": [4]}
    rows: Any = SimpleNamespace(dataset=lambda: Dataset.from_list([row] * 2))
    watch = trainer.Watched(events=silent(), advance=lambda _: None, steps=1, tokens_a_step=8)
    model = get_peft_model(tiny_llama(tokenizer), targets.peft_config(LoraConfig(r=2)))
    with mock.patch("torch.cuda.device_count", return_value=2):
        arguments = trainer.sft_arguments(TrainConfig(micro_batch_size=2), target, 1, tmp_path)
        assert arguments.n_gpu == 1 and arguments.train_batch_size == 2
        made = trainer.sft_trainer(model, arguments, tokenizer, rows, rows.dataset(), watch)
        assert made.train().global_step == 1
        # Without that line TRL refuses, after the base was scored.
        arguments._n_gpu = 2
        with pytest.raises(ValueError, match=r"does not support `nn\.DataParallel`"):
            trainer.sft_trainer(model, arguments, tokenizer, rows, rows.dataset(), watch)


@pytest.mark.parametrize("pad", list(PadToken))
def test_the_adapter_holds_lora_tensors_alone(pad: PadToken, cell: RunConfig) -> None:
    from safetensors import safe_open

    cell.model.pad_token = pad
    cell.train.max_steps = 2
    _, entry = trained(cell)
    with safe_open(entry.folder / "adapter/adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * 7 * 2
    assert all("lora_A" in name or "lora_B" in name for name in names)


def test_a_loss_that_is_not_the_models_is_refused(cell: RunConfig) -> None:
    """Llama ignores `logit_scale`, which TRL's head takes from any configuration."""
    import json
    import shutil

    folder = shutil.copytree(cell.model.id, Path(cell.store.root).parent / "scaled")
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(plain | {"logit_scale": 0.5}))
    cell.model.id = str(folder)
    with pytest.raises(StageError, match=r"TRL computes log-probabilities that differ .* llama"):
        trained(cell)
