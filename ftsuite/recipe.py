"""THE recipe: the stages of a cell and how they are wired, read top to bottom.

```
rows ─ data ─ train ─ merge ─ check
base ────────────────── loss, one eval a task, one probe a file
merged ──────────────── loss, one eval a task, one probe a file
```

Keys depend on keys, never on results, so the whole recipe is known before anything runs: `plan`
reads from it what a sweep will cost, and the cells of a study share the stages of equal keys.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.config import ModelConfig, reset
from ftsuite.data.columnnames import can_be_asked_or_answered
from ftsuite.data.prepare import source_sha256
from ftsuite.data.readers import find_source
from ftsuite.devices import Target, with_libraries
from ftsuite.models import embedded
from ftsuite.scoring import heldout, probefiles, tasks
from ftsuite.stages import (
    BaseModel,
    CheckMerge,
    Evaluate,
    HeldOutLossOf,
    Merge,
    ModelRef,
    PrepareData,
    Probe,
    Train,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftsuite.config import DataConfig, EvalsConfig, LoraConfig, ProbesConfig, RunConfig
    from ftsuite.store.stage import Stage, Upstream

SCORING = (
    *("torch", "transformers", "tokenizers", "lm_eval", "sacrebleu", "scikit-learn", "numpy"),
    *("rouge-score", "jsonschema"),
)
TRAINING = ("accelerate", "peft", "torch", "transformers", "trl")
MERGING = ("peft", "safetensors", "torch", "transformers")
"""Libraries that move a result of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is asked of one model."""

    loss: HeldOutLossOf
    scores: dict[str, Evaluate]
    """By the task's name."""
    probes: dict[str, Probe]
    """By the probe's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The stages of one cell."""

    data: PrepareData
    base: Measured
    adapter: Train
    merged: Merge
    check: CheckMerge
    tuned: Measured

    @staticmethod
    def is_of_tuned(name: str) -> bool:
        """Whether a stage's name is that of one that asks something of the merged model."""
        return name.partition(" ")[0].endswith("-tuned")

    def named(self) -> Iterator[tuple[str, Stage[Any]]]:
        """The stages in order, with the names that records give them."""
        yield "data", self.data
        yield from _named("base", self.base)
        yield "train", self.adapter
        yield "merge", self.merged
        yield "check", self.check
        yield from _named("tuned", self.tuned)


def recipe(config: RunConfig, target: Target, model: BaseModel) -> Recipe:
    """Describe the stages of one cell.

    Args:
        config: the cell's configuration, with its tasks listed (studies/suite.py).
        target: device, dtype and the libraries' versions (`devices.resolve`).
        model: the resolved base model (`models.sources.resolve`).
    """
    base = ModelRef(base=model, settings=_model_settings(config.model), template=config.template)
    batch = config.evals.batch_size

    data = PrepareData(
        base=model,
        settings=reset(base.settings, "attn_implementation"),
        template=config.template,
        source_sha256=source_sha256(config.data),
        data=_whole_paths(reset(config.data, *NOT_PREPARED)),
        group=_deciding_group(config.data),
        packing=config.packing,
        loss=config.train.loss.value,
        target=_on_cpu(target, "float32", "tokenizers", "transformers"),
        processes=config.backend.threads,
    )
    adapter = Train(
        base=model,
        settings=base.settings,
        template=config.template,
        data=data,
        max_length=config.data.max_length,
        lora=_scaled(config.lora),
        train=config.train,
        validation_rows=config.data.validation_limit,
        target=with_libraries(target, *TRAINING),
    )
    merged = Merge(
        base=model,
        settings=base.settings,
        template=config.template,
        adapter=adapter,
        shard_bytes=config.merge.shard_bytes,
        target=_on_cpu(target, target.dtype, *MERGING),
    )
    tuned = dataclasses.replace(base, base=None, merged=merged)
    check = CheckMerge(
        adapter=dataclasses.replace(base, adapter=adapter),
        merged=tuned,
        data=data,
        items=config.merge.fidelity_items,
        batch_size=batch,
        target=with_libraries(target, "peft", "torch", "transformers"),
    )
    return Recipe(
        data=data,
        base=_measured(config, target, base, data),
        adapter=adapter,
        merged=merged,
        check=check,
        tuned=_measured(config, target, tuned, data),
    )


def _measured(config: RunConfig, target: Target, model: ModelRef, data: PrepareData) -> Measured:
    scoring = with_libraries(target, *SCORING)
    held_out = heldout.stage_of(config.data, config.evals) if config.evals.held_out else None
    return Measured(
        loss=HeldOutLossOf(
            model=model,
            data=data,
            rows=config.data.validation_limit,
            batch_size=config.evals.batch_size,
            target=with_libraries(target, "peft", "torch", "transformers"),
        ),
        scores={
            name: Evaluate(
                model=model,
                evals=_one_task(config.evals, name, held_out),
                task=tasks.identity(name, config.evals),
                held_out=held_out,
                standard=embedded.standard_stage()
                if tasks.is_standard(name, config.evals)
                else None,
                target=scoring,
            )
            for name in config.evals.tasks
        },
        probes={
            one.name: Probe(
                model=model,
                probes=_one_probe(config.probes, one.path),
                name=one.name,
                sha256=one.sha256,
                target=scoring,
            )
            for one in probefiles.named(config.probes, config.evals.path)
        },
    )


NOT_PREPARED = ("answers", "labels", "tolerance")
"""Settings of the data that say how answers are scored."""


def _named(which: str, measured: Measured) -> Iterator[tuple[str, Stage[Any]]]:
    yield f"loss-{which}", measured.loss
    for name, score in measured.scores.items():
        yield f"eval-{which} {name}", score
    for name, probe in measured.probes.items():
        yield f"probe-{which} {name}", probe


def _model_settings(model: ModelConfig) -> ModelConfig:
    """What stages read of the model's settings; `BaseModel` and `Target` say the rest."""
    return ModelConfig(
        pad_token=model.pad_token,
        attn_implementation=model.attn_implementation,
        trust_remote_code=model.trust_remote_code,
    )


def _scaled(lora: LoraConfig) -> LoraConfig:
    """With alpha in numbers: 2 r where none is given."""
    return dataclasses.replace(lora, alpha=2 * lora.r if lora.alpha is None else lora.alpha)


def _on_cpu(target: Target, dtype: str, *libraries: str) -> Target:
    """For stages that the device has no part in."""
    return dataclasses.replace(
        with_libraries(target, *libraries), device="cpu", device_name="", dtype=dtype
    )


def _whole_paths(data: DataConfig) -> DataConfig:
    """With whole paths of its files, as they are found from this working directory."""
    whole: Any = {
        name: str(found.resolve()) if isinstance(found, Path) else source
        for name in ("train", "validation", "test")
        if (source := getattr(data, name)) is not None
        for found in [find_source(source, split=name)]
    }
    return dataclasses.replace(data, **whole)


def _deciding_group(data: DataConfig) -> str | None:
    """The column of the groups, where a name like its own could be the question's or answer's."""
    is_one = data.group is not None and can_be_asked_or_answered(data.group)
    return data.group if is_one else None


def _one_task(evals: EvalsConfig, name: str, held_out: Upstream | None) -> EvalsConfig:
    """The settings that the scores of one task depend on."""
    built = held_out.key[:24] if held_out else ""
    mine = reset(
        evals,
        *("held_out", "add", "remove", "generate_limit", "max_new_tokens", "limit"),
        *("rank_by", "rank_on_test", "headline", "watch"),
        *(() if tasks.reads_source(name, evals) else ("source",)),
    )
    limit = evals.limits.get(name, evals.limit)
    return dataclasses.replace(
        mine,
        tasks=[name],
        limits={} if limit is None else {name: limit},
        # The store's own folder of them is found where the stage is computed.
        path=[str(p.expanduser().resolve()) for p in map(Path, evals.path) if p.name != built],
    )


def _one_probe(probes: ProbesConfig, file: Path) -> ProbesConfig:
    return dataclasses.replace(probes, files=[str(file.resolve())])
