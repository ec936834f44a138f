"""TRL's trainer as this suite uses it: its arguments, its held-out loss, its callbacks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.data import packing
from ftsuite.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.config import TrainConfig
    from ftsuite.data.tokenrows import StoredRows
    from ftsuite.devices import Target
    from ftsuite.events import Events

COMPLETE_MARKER = "complete"
"""Written into a checkpoint after everything else: one without it was cut short by a kill."""
HEAD_TOKENS = 64
"""Compared with the model's own logits; those of a whole batch could fill the memory."""


LOGGED = ("loss", "eval_loss", "learning_rate", "grad_norm")
"""What the trainer logs of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Who is told of a training's steps."""

    events: Events
    advance: Callable[[int], None]
    """Told of every step, in tokens."""
    steps: int
    tokens_a_step: float
    """On average."""


def sft_arguments(config: TrainConfig, target: Target, steps: int, folder: Path) -> Any:
    """TRL's arguments for `config`.

    Args:
        config: how to train.
        target: device and dtype.
        steps: optimiser steps.
        folder: where checkpoints go.
    """
    from trl import SFTConfig

    evaluates = config.eval_every_steps is not None
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler.value,
        warmup_steps=round(steps * config.warmup_fraction),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # Said explicitly: TRL turns autocast on by default, also over float32 weights.
        bf16=target.dtype == "bfloat16",
        fp16=target.dtype == "float16",
        use_cpu=target.device == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_every_steps,
        save_strategy="steps",
        save_steps=config.checkpoint_every_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=target.device == "cuda",
        # Rows arrive tokenised, templated and packed; TRL must not touch them again.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        packing=False,
    )
    # transformers would spread a batch over every GPU of the host by nn.DataParallel, which TRL
    # refuses; the model lies on the first one that CUDA_VISIBLE_DEVICES leaves.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def sft_trainer(
    model: Any,
    arguments: Any,
    tokenizer: Any,
    sequences: StoredRows,
    validation: Any,
    watched: Watched,
) -> Any:
    """TRL's trainer for a model with its adapter.

    The training loss of a step is a mean over the trained tokens of all its micro-batches: TRL
    divides their sum by the number of the step's labels.

    Args:
        model: a PEFT model.
        arguments: from `sft_arguments`.
        tokenizer: whose pad token pads.
        sequences: of the training split.
        validation: of the validation split, a data set, for the losses while training goes on.
        watched: told of every step.
    """
    from transformers import PrinterCallback

    logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
    trainer = _token_mean()(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=sequences.dataset(),
        eval_dataset=validation,
        data_collator=lambda rows: packing.collate(
            [packing.Sequence(**row) for row in rows], tokenizer.pad_token_id
        ),
        callbacks=[_watch(watched)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def require_head(trainer: Any, sequence: packing.Sequence, tolerance: float) -> None:
    """Refuse a model whose loss TRL computes otherwise than the model does.

    TRL computes log-probabilities past the model's own head, by what it knows of each
    architecture's scaling.

    Args:
        trainer: from `sft_trainer`, with the model in eval mode.
        sequence: whose first tokens are compared.
        tolerance: of a token's log-probability, nats.

    Raises:
        StageError: a token's log-probability differs by more, or is not a number.
    """
    import torch

    ids = sequence.input_ids[: min(sequence.lengths[0], HEAD_TOKENS)]
    batch = {"input_ids": torch.tensor([ids], device=trainer.model.device)}
    labels_T = batch["input_ids"][0, 1:]
    with torch.no_grad():
        own_TV = trainer.model(**batch, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        trained = trainer.model(**batch, labels=batch["input_ids"], fused_lm_head=True)
    own_T = own_TV.gather(1, labels_T[:, None])[:, 0]
    if not bool(own_T.isfinite().all()):
        raise StageError(
            "train: the model's log-probabilities are not numbers before training; its weights "
            "hold NaN, or model.dtype is too narrow for them"
        )
    differences_T = own_T - trained.log_probs[0]
    largest = float(differences_T.abs().max()) if len(ids) > 1 else 0.0
    # Written so that NaN fails too.
    if not largest <= tolerance:
        raise StageError(
            f"train: TRL computes log-probabilities that differ from the model's own by up to "
            f"{largest:.2g} nats a token, so it would train another loss; this "
            f"{trainer.model.config.model_type} model cannot be trained with this version of TRL"
        )


def _token_mean() -> Any:
    from trl import SFTTrainer

    class TokenMean(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer whose held-out loss is a mean over tokens.

        transformers averages the means of batches: a token in a batch of few counts more.
        """

        def prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            found = super().prediction_step(model, inputs, *rest, **named)
            labels = int((inputs["labels"][:, 1:] != packing.IGNORED).sum())
            self.held_out.append((float(found[0]) * labels, labels))
            return found

        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            import torch

            # Each pass of a data loader draws a seed, which would move the dropout of later steps.
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*arguments, **named)

        def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
            self.held_out: list[tuple[float, int]] = []
            output = super().evaluation_loop(*arguments, **named)
            sums, labels = zip(*self.held_out, strict=True)
            output.metrics["eval_loss"] = math.fsum(sums) / sum(labels)
            return output

    return TokenMean


def _watch(watched: Watched) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Tells of each step, stops at NaN, and marks checkpoints that are whole."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watched.advance(round(watched.tokens_a_step))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for name in ("loss", "eval_loss", "grad_norm"):
                value = (logs or {}).get(name)
                if value is not None and not math.isfinite(value):
                    raise StageError(
                        f"train: the {name} is {value} at step {state.global_step}; lower "
                        "train.learning_rate, or set model.dtype=float32"
                    )
            values = {name: logs[name] for name in LOGGED if name in (logs or {})}
            if values:
                done = round(state.global_step * watched.tokens_a_step)
                watched.events.step(state.global_step, watched.steps, tokens=done, **values)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            from pathlib import Path

            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / COMPLETE_MARKER).touch()

    return Watch()
