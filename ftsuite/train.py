"""The train stage: TRL's SFTTrainer with a PEFT LoRA on tokenised, packed rows."""

from __future__ import annotations

import logging
import math
import shutil
from typing import TYPE_CHECKING, Any

from ftsuite import models, packing, progress, templates
from ftsuite.data import load_split
from ftsuite.errors import ConfigError, StageError
from ftsuite.records import CurvePoint, TrainSummary

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import LoraConfig, RunConfig, TrainConfig
    from ftsuite.devices import Compute
    from ftsuite.tokenrows import StoredRows

VERSION = 1
COMPLETE_MARKER = "complete"
"""Written into a checkpoint after everything else: one without it was cut short by a kill."""


def train(
    config: RunConfig, compute: Compute, base: Path, data: Path, folder: Path, cell: str
) -> TrainSummary:
    """Train a LoRA adapter into `folder/adapter`.

    Goes on from the last complete checkpoint in `folder/checkpoints`, with the optimiser's,
    scheduler's and random states, so that the losses are those of an undisturbed run.

    Args:
        config: the cell's configuration.
        compute: device and dtype.
        base: folder of the base model.
        data: folder of the data stage.
        folder: where to write.
        cell: the cell's place in the sweep, for the display.

    Raises:
        ConfigError: the model has no such target modules.
        StageError: the loss is not a number.
    """
    from peft import get_peft_model
    from transformers import set_seed

    tokenizer = models.load_tokenizer(base, config.model)
    templates.install(tokenizer, config.template)
    # Before the adapter is made: its A matrices are drawn at random.
    set_seed(config.train.seed)
    model = models.load_model(
        base, tokenizer, config.model, device=compute.device, dtype=compute.dtype
    )
    try:
        model = get_peft_model(model, peft_config(config.lora))
    except ValueError as error:
        targets = config.lora.target_modules
        raise ConfigError("lora.target_modules", targets, f"PEFT refuses them: {error}") from error
    sequences, validation = load_split(data, "train"), load_split(data, "validation")
    steps = total_steps(config.train, len(sequences))
    arguments = _arguments(config.train, compute, steps, folder / "checkpoints")
    checkpoint = _last_checkpoint(folder / "checkpoints")
    tokens = sum(len(s.input_ids) for s in sequences)
    passes = steps / steps_a_pass(config.train, len(sequences))
    with progress.stage(cell, "train", round(tokens * passes), "tokens") as advance:
        trainer = _trainer(
            model, arguments, tokenizer, sequences, validation, advance, tokens * passes / steps
        )
        if checkpoint and _step(checkpoint) >= steps:
            # transformers' Trainer would take one step more.
            _restore(trainer, model, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        every = config.train.eval_every_steps
        if every is None or steps % every:
            trainer.evaluate()
    model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return _summary(trainer, model, sequences, passes, checkpoint)


def total_steps(config: TrainConfig, sequences: int) -> int:
    """Optimiser steps for so many training sequences."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, math.ceil(steps_a_pass(config, sequences) * config.epochs))


def steps_a_pass(config: TrainConfig, sequences: int) -> int:
    """Optimiser steps of one epoch; the last may be smaller than the others."""
    return math.ceil(sequences / (config.micro_batch_size * config.gradient_accumulation))


def peft_config(config: LoraConfig) -> Any:
    """The PEFT configuration of `config`; alpha defaults to twice the rank."""
    import peft

    targets = config.target_modules
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=2 * config.r if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        target_modules="all-linear" if targets == ["all-linear"] else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _arguments(config: TrainConfig, compute: Compute, steps: int, folder: Path) -> Any:
    from trl import SFTConfig

    evaluates = config.eval_every_steps is not None
    return SFTConfig(
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
        bf16=compute.dtype == "bfloat16",
        fp16=compute.dtype == "float16",
        use_cpu=compute.device == "cpu",
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
        dataloader_pin_memory=compute.device == "cuda",
        # Rows arrive tokenised, templated and packed; TRL must not touch them again.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        packing=False,
    )


def _trainer(
    model: Any,
    arguments: Any,
    tokenizer: Any,
    sequences: StoredRows,
    validation: StoredRows,
    advance: Any,
    tokens_a_step: float,
) -> Any:
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTTrainer

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Shows progress, stops at NaN, and marks checkpoints that are whole."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(round(tokens_a_step))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for name in ("loss", "eval_loss", "grad_norm"):
                value = (logs or {}).get(name)
                if value is not None and not math.isfinite(value):
                    raise StageError(
                        f"train: the {name} is {value} at step {state.global_step}; lower "
                        "train.learning_rate, or set model.dtype=float32"
                    )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            from pathlib import Path

            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / COMPLETE_MARKER).touch()

    logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=sequences.dataset(),
        eval_dataset=validation.dataset(),
        data_collator=lambda rows: packing.collate(
            [packing.Sequence(**row) for row in rows], tokenizer.pad_token_id
        ),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; those that a kill cut short are deleted."""
    whole: list[Path] = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE_MARKER).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _restore(trainer: Any, model: Any, checkpoint: Path) -> None:
    """Put a finished training back: its adapter and its log."""
    from transformers import TrainerState

    model.load_adapter(str(checkpoint), model.active_adapter)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _summary(
    trainer: Any,
    model: Any,
    sequences: StoredRows,
    passes: float,
    checkpoint: Path | None,
) -> TrainSummary:
    history = [entry for entry in trainer.state.log_history if "step" in entry]
    curve = tuple(
        CurvePoint(
            step=entry["step"],
            loss=entry.get("loss"),
            eval_loss=entry.get("eval_loss"),
            learning_rate=entry.get("learning_rate"),
            grad_norm=entry.get("grad_norm"),
        )
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    )
    losses = [point.loss for point in curve if point.loss is not None]
    tail = losses[-max(1, len(losses) // 10) :]
    eval_losses = [point.eval_loss for point in curve if point.eval_loss is not None]
    trainable, total = model.get_nb_trainable_parameters()
    return TrainSummary(
        steps=trainer.state.global_step,
        epochs=round(passes, 4),
        tokens=round(sum(len(s.input_ids) for s in sequences) * passes),
        trained_tokens=round(sum(sum(s.loss_mask) for s in sequences) * passes),
        trainable_parameters=trainable,
        total_parameters=total,
        final_loss=sum(tail) / len(tail),
        eval_loss=eval_losses[-1] if eval_losses else None,
        curve=curve,
        resumed_from_step=_step(checkpoint) if checkpoint else 0,
    )
