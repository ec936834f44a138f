"""What a cell will cost before it runs: tokens from files, speeds from earlier runs.

Every number here is an estimate and is called one where it is shown.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Packing
from ftsuite.config import to_plain
from ftsuite.data import readers, textfile
from ftsuite.data.hubdata import HubSource
from ftsuite.scoring import probefiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftsuite.config import ProbesConfig, RunConfig, TrainConfig
    from ftsuite.data.textfile import TextFormat
    from ftsuite.records import DataSummary, RunRecord

PUBLISHED_TRAIN, PUBLISHED_SCORE = 145.0, 400.0
"""Tokens a second of SmolLM2-135M on 2 CPU cores (docs/architecture.md)."""
CHARACTERS_A_TOKEN = 4
TURN_TOKENS = 6
"""Tokens that a template adds around a message, about."""
GENERATED = 6
"""Scored tokens that take as long as a generated one; measured with SmolLM2-135M on 2 CPU cores."""
DATA_SECONDS, MERGE_SECONDS, CHECK_SECONDS = 5.0, 10.0, 5.0
"""Where no earlier run tells: reading and tokenising a small file; merging a small model; asking it
for the log-likelihoods of a few rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """How fast this machine is with this model."""

    train: float
    """Tokens a second."""
    score: float
    """Tokens a second."""
    seconds: dict[str, float]
    """Mean seconds of earlier stages by kind: data, loss, merge, check, and 'probe NAME'."""
    source: str
    """Where the speeds come from, in words."""


def speeds(runs: Iterable[RunRecord], device: str, config: RunConfig) -> Speeds:
    """Take the speeds from earlier runs of a model on a device, else the published ones.

    Args:
        runs: of the store.
        device: as `devices.describe` says it.
        config: the cell; its model's speed and its probes' duration are wanted.
    """
    alike = [
        run
        for run in runs
        if run.provenance.device == device
        and run.config.get("model", {}).get("id") == config.model.id
    ]
    probes = _asked_of_probes(to_plain(config.probes))
    spent: dict[str, dict[str, float]] = {}
    trained: dict[str, tuple[int, float]] = {}
    scored: dict[tuple[str, ...], tuple[int, float]] = {}
    for run in alike:
        is_other = _asked_of_probes(run.config.get("probes", {})) != probes
        for stage in run.stages:
            kind = _kind(stage.stage)
            if stage.seconds > 0 and not (is_other and kind.startswith("probe")):
                # A shared stage stands in the record of every cell that uses it.
                spent.setdefault(kind, {})[stage.key] = stage.seconds
            # The seconds of a resumed training leave out what went before.
            if kind == "train" and run.train and not run.train.resumed_from_step:
                trained[stage.key] = run.train.tokens, stage.seconds
        for name, scores in (("eval-base", run.base), ("eval-tuned", run.tuned)):
            mine = [s for s in run.stages if s.stage.partition(" ")[0] == name]
            if scores and mine:
                keys = tuple(stage.key for stage in mine)
                scored[keys] = scores.tokens, sum(stage.seconds for stage in mine)
    train, score = _rate(trained.values()), _rate(scored.values())
    return Speeds(
        train=train or PUBLISHED_TRAIN,
        score=score or PUBLISHED_SCORE,
        seconds={kind: sum(found.values()) / len(found) for kind, found in spent.items()},
        source=_source(train, score, device),
    )


def _kind(stage: str) -> str:
    """Which earlier stages tell how long one takes: its kind, and of a probe its name too."""
    kind, _, name = stage.partition(" ")
    kind = kind.partition("-")[0]
    return f"{kind} {name}" if kind == "probe" else kind


def _asked_of_probes(settings: dict[str, Any]) -> dict[str, Any]:
    """How probes are asked, whichever they are."""
    return {name: value for name, value in settings.items() if name != "files"}


def _source(train: float | None, score: float | None, device: str) -> str:
    published = "published for SmolLM2-135M on 2 CPU cores"
    earlier = f"earlier runs in the store on {device}"
    if train and score:
        return earlier
    if train or score:
        return f"{'train' if train else 'score'}: {earlier}; the other: {published}"
    return f"{published}; this machine ({device}) may differ"


def _rate(spent: Iterable[tuple[int, float]]) -> float | None:
    known = [(tokens, seconds) for tokens, seconds in spent if tokens and seconds > 0]
    return sum(t for t, _ in known) / sum(s for _, s in known) if known else None


def passes(train: TrainConfig, sequences: int) -> float:
    """How often training goes over its data."""
    if train.max_steps is None:
        return train.epochs
    batch = train.micro_batch_size * train.gradient_accumulation
    return train.max_steps / max(1, math.ceil(sequences / batch))


def stored_tokens(summary: DataSummary, train: TrainConfig) -> int:
    """Tokens that training goes through, by the stored data stage."""
    split = next(split for split in summary.splits if split.name == "train")
    return round(split.tokens * passes(train, split.sequences))


def held_out_tokens(summary: DataSummary, limit: int | None) -> int:
    """Tokens that one model's held-out loss goes through, by the stored data stage.

    Args:
        summary: of the data.
        limit: `data.validation_limit`, rows.
    """
    split = next(split for split in summary.splits if split.name == "validation")
    kept = split.rows if limit is None else min(limit, split.rows)
    return round(split.tokens * kept / max(1, split.rows))


def train_tokens(tokens: float, sequences: int, train: TrainConfig) -> int:
    """Tokens that training goes through, by those of one pass (`file_size`)."""
    return round(tokens * passes(train, sequences))


def file_size(config: RunConfig) -> tuple[float, int] | None:
    """Tokens and sequences of one pass over the data, from the rows and characters of the file.

    None for a Hub data set, which would have to be downloaded.

    Args:
        config: its data and packing alone are read.
    """
    data = config.data
    if isinstance(readers.find_source(data.train, split="train"), HubSource):
        return None
    system = (len(data.system) / CHARACTERS_A_TOKEN + TURN_TOKENS) if data.system else 0.0
    rows = [
        min(data.max_length, length / CHARACTERS_A_TOKEN + 2 * TURN_TOKENS + system)
        for length in _row_lengths(data.train, textfile.format_of(data))
    ]
    cut = data.validation_fraction if data.validation is None else 0.0
    cut += data.test_fraction if data.test is None else 0.0
    kept = max(1, round(len(rows) * (1 - cut)))
    if data.train_limit is not None:
        kept = min(kept, data.train_limit)
    tokens = kept * sum(rows) / len(rows)
    is_packed = config.packing.strategy is not Packing.off
    return tokens, math.ceil(tokens / data.max_length) if is_packed else kept


@functools.cache
def _row_lengths(source: str, form: TextFormat) -> list[int]:
    return [_characters(row) for row in readers.read_rows(source, form=form)]


def _characters(value: Any) -> int:
    """Characters of all texts in a row, however deep they stand."""
    if isinstance(value, dict):
        return sum(_characters(item) for item in value.values())
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    return len(value) if isinstance(value, str) else 0


def probe_tokens(probes: ProbesConfig, folders: Sequence[str] = ()) -> int:
    """Scored tokens that take as long as one model's probes, with each system prompt and without.

    Args:
        probes: names the files.
        folders: where their names are looked up, `evals.path`.
    """
    total = 0.0
    for one in probefiles.read_probes(probes, folders):
        times, systems = len(one.systems) + 1, sum(len(system.text) for system in one.systems)
        for prompt in one.prompts[: probes.limit]:
            asked = (times * len(prompt) + systems) / CHARACTERS_A_TOKEN
            total += asked + times * GENERATED * probes.max_new_tokens
    return round(total)
