"""The train stage: TRL's SFTTrainer with a PEFT LoRA on tokenised, packed rows."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from typing import TYPE_CHECKING, Any

from ftsuite import environment
from ftsuite.data.packing import trained_tokens
from ftsuite.data.prepare import load_split
from ftsuite.errors import ConfigError, DataError
from ftsuite.models import loading, modelfolder, sources, templates, warm
from ftsuite.records import CurvePoint, TrainSummary
from ftsuite.training import isolation, targets
from ftsuite.training.trainer import (
    COMPLETE_MARKER,
    Watched,
    require_head,
    sft_arguments,
    sft_trainer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ftsuite.config import TrainConfig
    from ftsuite.data.packing import Sequence
    from ftsuite.data.tokenrows import StoredRows
    from ftsuite.devices import Target
    from ftsuite.events import Events
    from ftsuite.stages import Train
    from ftsuite.store.stage import Folders


def check(stage: Train, folders: Folders) -> None:
    """Refuse a training that cannot work, before anything is spent; loads no weights.

    Raises:
        ConfigError: names the field, the value and the remedy.
        BackendUnavailable: the attention kernel is not installed.
    """
    environment.check()
    folder = sources.locate(stage.base, folders)
    context = modelfolder.context_length(folder)
    if context is not None and stage.max_length > context:
        raise ConfigError(
            "data.max_length",
            stage.max_length,
            f"longer than the model's context of {context} tokens; set data.max_length={context} "
            "or less",
        )
    targets.check_names(stage.lora)
    if not stage.settings.trust_remote_code:
        # A repository's own code may do anything when a model is made; it is checked once loaded.
        targets.check(loading.outline(folder, stage.settings), stage.lora)


def train(stage: Train, folders: Folders, out: Path, events: Events) -> TrainSummary:
    """Train a LoRA adapter into `out/adapter`.

    Goes on from the last complete checkpoint in `out/checkpoints`, with the optimiser's,
    scheduler's and random states, so that the losses are those of an undisturbed run.

    Raises:
        ConfigError: the model has no such target modules.
        DataError: a row has a token that the model has no embedding for.
        StageError: the loss is not a number, or packed documents see each other.
    """
    check(stage, folders)
    base = sources.locate(stage.base, folders)
    tokenizer = loading.load_tokenizer(base, stage.settings)
    templates.install(tokenizer, stage.template)
    if stage.train.gradient_checkpointing:
        # It leaves hooks in the model, so this one is not shared with other stages.
        warm.drop()
        model = loading.load_model(
            base, tokenizer, stage.settings, device=stage.target.device, dtype=stage.target.dtype
        )
        return _trained(stage, folders[stage.data.key], out, events, model, tokenizer)
    with warm.plain(base, tokenizer, stage.settings, stage.target) as model:
        return _trained(stage, folders[stage.data.key], out, events, model, tokenizer)


def _trained(
    stage: Train, data: Path, out: Path, events: Events, plain: Any, tokenizer: Any
) -> TrainSummary:
    from peft import get_peft_model
    from transformers import set_seed

    config = stage.train
    # Before the adapter is made: its A matrices are drawn at random.
    set_seed(config.seed)
    targets.check(plain, stage.lora)
    try:
        model = get_peft_model(plain, targets.peft_config(stage.lora))
    except ValueError as error:
        names = stage.lora.target_modules
        raise ConfigError(targets.FIELD, names, f"PEFT refuses them: {error}") from error
    sequences, validation = load_split(data, "train"), load_split(data, "validation")
    _require_embeddings(model, tokenizer, itertools.chain(sequences, validation))
    steps = total_steps(config, len(sequences))
    arguments = sft_arguments(config, stage.target, steps, out / "checkpoints")
    checkpoint = _last_checkpoint(out / "checkpoints")
    tokens = sum(len(s.input_ids) for s in sequences)
    passes = steps / steps_a_pass(config, len(sequences))
    with events.progress("train", round(tokens * passes), "tokens") as advance:
        watch = Watched(
            events=events, advance=advance, steps=steps, tokens_a_step=tokens * passes / steps
        )
        watched_rows = validation.dataset(stage.validation_rows)
        trainer = sft_trainer(model, arguments, tokenizer, sequences, watched_rows, watch)
        isolated = _prove(trainer, sequences, stage.target)
        if checkpoint and _step(checkpoint) >= steps:
            # transformers' Trainer would take one step more.
            _restore(trainer, model, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # PEFT's default stores whole embedding matrices where a pad token was added.
    model.save_pretrained(out / "adapter", save_embedding_layers=False)
    _sort_modules(out / "adapter" / "adapter_config.json")
    tokenizer.save_pretrained(out / "adapter")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    summary = _summary(trainer, model, sequences, passes, checkpoint, isolated)
    model.unload()
    return summary


def _sort_modules(file: Path) -> None:
    """Write the modules' names in order: PEFT keeps them as a set, in another order each time."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def total_steps(config: TrainConfig, sequences: int) -> int:
    """Optimiser steps for so many training sequences."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, math.ceil(steps_a_pass(config, sequences) * config.epochs))


def steps_a_pass(config: TrainConfig, sequences: int) -> int:
    """Optimiser steps of one epoch; the last may be smaller than the others."""
    return math.ceil(sequences / (config.micro_batch_size * config.gradient_accumulation))


def _require_embeddings(model: Any, tokenizer: Any, sequences: Iterable[Sequence]) -> None:
    rows = model.get_input_embeddings().num_embeddings
    largest = max(max(sequence.input_ids) for sequence in sequences)
    if largest >= rows:
        raise DataError(
            f"data: a row has the token {tokenizer.convert_ids_to_tokens(largest)!r}, which the "
            f"model has no embedding for (it has {rows}); take its text out of the data"
        )


def _prove(trainer: Any, sequences: StoredRows, target: Target) -> isolation.Isolation | None:
    """Prove, as this training computes: the loss is the model's, packed documents are apart.

    Draws no random number, so the losses are those of a training without it.
    """
    batch = trainer.args.per_device_train_batch_size
    trainer.model.eval()
    with trainer.accelerator.autocast():
        require_head(trainer, sequences[0], isolation.TOLERANCE[target.dtype])
        found = isolation.measure(
            trainer.model,
            sequences,
            micro_batch_size=batch,
            pad_token_id=trainer.processing_class.pad_token_id,
        )
    if found is not None:
        kernel = trainer.model.config._attn_implementation
        isolation.require(found, dtype=target.dtype, kernel=kernel, micro_batch_size=batch)
    return found


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
    isolated: isolation.Isolation | None,
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
    trainable, total = model.get_nb_trainable_parameters()
    return TrainSummary(
        steps=trainer.state.global_step,
        epochs=round(passes, 4),
        tokens=round(sum(len(s.input_ids) for s in sequences) * passes),
        trained_tokens=round(sum(map(trained_tokens, sequences)) * passes),
        trainable_parameters=trainable,
        total_parameters=total,
        final_loss=sum(tail) / len(tail),
        eval_loss=None,
        curve=curve,
        resumed_from_step=_step(checkpoint) if checkpoint else 0,
        isolation_difference=isolated.difference if isolated else None,
    )
