"""The suite adds nothing of its own: plain TRL, PEFT and lm-eval give the same bits.

What stands here on the plain side is what a user would write without the suite, on the rows that
its data stage tokenised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from bystage import at, made, recipe_of
from conftest import make_config, shape_columns

from ftsuite.analysis.gather import scores_of
from ftsuite.choices import Packing
from ftsuite.data import prepare as data
from ftsuite.models import loading, sources, templates
from ftsuite.scoring import tasks
from ftsuite.studies.sweeper import compose

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import RunConfig
    from ftsuite.records import Scores, TrainSummary
    from ftsuite.stagerecords import HeldOutLoss


@dataclass(frozen=True)
class Ran:
    """What the suite made of a cell."""

    config: RunConfig
    base: Path
    data: Path
    trained: TrainSummary
    adapter: Path
    merged: Path
    scores: Scores
    loss: HeldOutLoss


def run(config: RunConfig, models: Path, store: Path) -> Ran:
    """Compute the cell in `store`, its base model taken from the store `models`."""
    base = sources.resolve(config.model, models)
    found = recipe_of(at(config, base.folder))
    tuned = found.tuned
    trained = made(store, found.adapter)
    return Ran(
        config=config,
        base=base.folder,
        data=made(store, found.data).folder,
        trained=trained.record,
        adapter=trained.folder / "adapter",
        merged=made(store, found.merged).folder,
        scores=scores_of({name: made(store, one).record for name, one in tuned.scores.items()}),
        loss=made(store, tuned.loss).record,
    )


@pytest.fixture(scope="module", params=[Packing.bfd, Packing.off])
def tiny(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    store = tmp_path_factory.mktemp("store")
    config = shape_columns(make_config(tiny_model, tiny_rows, store))
    config.packing.strategy = request.param
    config.train.warmup_fraction = 0.2
    # A warm-up, a cosine, dropout, accumulated micro-batches; padding where rows are not packed.
    config.train.micro_batch_size = 1 if request.param is Packing.bfd else 3
    config.evals.tasks = ["intent_choice", "intent_exact", "prose_bpb"]
    config.evals.limit = 12
    return run(config, store, store)


@pytest.fixture(scope="module")
def demo(session_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """SmolLM2-135M on the demo's data with its settings: 86 steps and 276 documents."""
    (config,) = compose(["model.source=embedded"]).configs
    return run(config, session_store, tmp_path_factory.mktemp("store"))


def plain_losses(ran: Ran, folder: Path) -> list[float]:
    """TRL's SFTTrainer with PEFT, by hand; writes the adapter to `folder`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    config, train = ran.config, ran.config.train
    packed = config.packing.strategy is Packing.bfd
    rows = []
    for sequence in data.load_split(ran.data, "train"):
        labels = [
            token if kept else -100
            for token, kept in zip(sequence.input_ids, sequence.loss_mask, strict=True)
        ]
        row = {"input_ids": list(sequence.input_ids), "labels": labels}
        if packed:
            row["position_ids"] = [place for n in sequence.lengths for place in range(n)]
        rows.append(row)

    def one_packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
        (row,) = rows
        return {name: torch.tensor([values]) for name, values in row.items()}

    tokenizer = AutoTokenizer.from_pretrained(ran.base)
    tokenizer.pad_token = tokenizer.eos_token
    set_seed(train.seed)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=2 * config.lora.r,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(ran.base, dtype=torch.float32), lora
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "out"),
            max_steps=ran.trained.steps,
            per_device_train_batch_size=train.micro_batch_size,
            gradient_accumulation_steps=train.gradient_accumulation,
            learning_rate=train.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(ran.trained.steps * train.warmup_fraction),
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            gradient_checkpointing=train.gradient_checkpointing,
            bf16=False,
            use_cpu=True,
            seed=train.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            max_length=None,
            remove_unused_columns=not packed,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        data_collator=one_packed if packed else None,
    )
    trainer.train()
    model.save_pretrained(folder / "adapter")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def require_same_weights(one: Path, other: Path) -> None:
    import torch

    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and first
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def plain_merge(ran: Ran, folder: Path) -> Path:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(ran.base, dtype=torch.float32)
    PeftModel.from_pretrained(base, ran.adapter).merge_and_unload().save_pretrained(folder)
    return folder


def plain_scores(ran: Ran) -> dict[str, list[Any]]:
    """lm-eval's own HF backend on the merged model and the same documents, task by task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    evals = ran.config.evals
    ids = {metric.task: list(metric.doc_ids) for metric in ran.scores.metrics}
    model = HFLM(
        pretrained=str(ran.merged), dtype="float32", device="cpu", batch_size=evals.batch_size
    )
    samples: dict[str, Any] = {}
    for item in tasks.load(evals):
        results = simple_evaluate(
            model=model,
            tasks=[item.task],
            samples={item.name: ids[item.name]},
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=True,
        )
        samples |= results["samples"]
    return {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in samples.items()}


def require_same_scores(ran: Ran) -> None:
    samples = plain_scores(ran)
    assert len(ran.scores.metrics) == len(ran.config.evals.tasks)
    for metric in ran.scores.metrics:
        rows = samples[metric.task]
        assert [row["doc_id"] for row in rows] == list(metric.doc_ids)
        theirs = [row[metric.metric] for row in rows]
        if metric.metric == "bits_per_byte":
            theirs = [-score / math.log(2) / size for score, size in theirs]
        assert list(metric.values) == theirs


def plain_loss(ran: Ran) -> tuple[float, int]:
    """transformers on the merged model: the loss of each row alone, weighed by its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ran.merged, dtype=torch.float32).eval()
    sums, tokens = list[float](), 0
    for row in data.load_split(ran.data, "validation"):
        labels = [
            token if kept else -100
            for token, kept in zip(row.input_ids, row.loss_mask, strict=True)
        ]
        # The first token has no context to be predicted from.
        count = sum(label != -100 for label in labels[1:])
        with torch.inference_mode():
            loss = model(
                input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([labels])
            ).loss
        sums.append(float(loss) * count)
        tokens += count
    return math.fsum(sums) / tokens, tokens


def require_same_loss(ran: Ran) -> None:
    """To rounding: transformers adds a row's tokens up in float32."""
    loss, tokens = plain_loss(ran)
    assert ran.loss.tokens == tokens
    assert ran.loss.loss == pytest.approx(loss, rel=1e-6)


def test_losses_and_adapter_are_plain_trls(tiny: Ran, tmp_path: Path) -> None:
    losses = plain_losses(tiny, tmp_path)
    ours = [point.loss for point in tiny.trained.curve if point.loss is not None]
    assert len(losses) == tiny.trained.steps >= 10
    assert ours == losses
    assert ours[-1] < ours[0]
    require_same_weights(tiny.adapter, tmp_path / "adapter")


def test_merged_weights_are_plain_pefts(tiny: Ran, tmp_path: Path) -> None:
    require_same_weights(tiny.merged, plain_merge(tiny, tmp_path / "merged"))


def test_scores_are_plain_lm_evals(tiny: Ran) -> None:
    require_same_scores(tiny)


def test_the_held_out_loss_is_plain_transformers(tiny: Ran) -> None:
    require_same_loss(tiny)


def test_a_template_without_a_default_is_the_models_own(tiny: Ran) -> None:
    """Plain lm-eval takes the template from the merged folder: it must be the one of training."""
    tokenizer = loading.load_tokenizer(tiny.merged, tiny.config.model)
    before = tokenizer.chat_template
    templates.install(tokenizer, tiny.config.template)
    assert tokenizer.chat_template == before


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_the_demo_is_plain_too(demo: Ran, tmp_path: Path) -> None:
    losses = plain_losses(demo, tmp_path)
    assert [point.loss for point in demo.trained.curve if point.loss is not None] == losses
    require_same_weights(demo.adapter, tmp_path / "adapter")
    require_same_weights(demo.merged, plain_merge(demo, tmp_path / "merged"))
    require_same_scores(demo)
    require_same_loss(demo)
