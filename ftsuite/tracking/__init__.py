"""Experiment tracking from finished records: W&B, TensorBoard or nothing.

A tracker reads records after the sweep, in the main process: cells cannot race each other, and a
killed command goes on with the cells that are left. A marker file a cell remembers what was
tracked, so that a second identical command imports no tracker at all.

```
__init__.py         which cells to track; the markers
values.py           a record as names and numbers, and as tables
to_wandb.py         Weights & Biases, offline unless told otherwise
to_tensorboard.py   TensorBoard event files
```
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from ftsuite.choices import Tracker
from ftsuite.errors import ConfigError, redact, redacted
from ftsuite.jsonfile import dumps, from_json, to_json, write_text
from ftsuite.records import RunRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.records import StudyManifest

MODES = ("offline", "online", "disabled")
_TRACKERS = {
    Tracker.wandb: "ftsuite.tracking.to_wandb:WandbTracker",
    Tracker.tensorboard: "ftsuite.tracking.to_tensorboard:TensorBoardTracker",
}
_FINISHED = ("complete", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What a tracker needs besides the records."""

    config: TrackingConfig
    name: str
    command: str
    """The command that reproduces the study, without secrets."""
    report: Path
    """Folder of the rendered report; need not exist."""
    folder: Path
    """Where trackers write: `<store>/tracking`."""


class CellTracker(Protocol):
    """Where cells are tracked."""

    def __init__(self, study: Study) -> None: ...

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise BackendUnavailable, with a remedy, where this tracker cannot work."""

    def log(self, record: RunRecord) -> None:
        """Write one cell; what was there of the same cell is replaced."""

    def lines(self, cells: int) -> list[str]:
        """Say where the `cells` cells just tracked lie, one line a fact."""


def check(config: TrackingConfig) -> None:
    """Find out before a sweep whether its tracking can work.

    Raises:
        ConfigError: an unknown mode.
        BackendUnavailable: the tracker's package or, in online mode, its key is missing.
    """
    if _is_on(config):
        _tracker(config).check(config)


def track(
    config: TrackingConfig,
    manifest: StudyManifest,
    records: Sequence[RunRecord],
    report: Path,
    root: Path,
) -> list[str]:
    """Track every finished cell that has not been tracked yet with this content.

    Args:
        config: which tracker, and how.
        manifest: the study that the records belong to.
        records: its cells; only complete and failed ones are tracked.
        report: folder of the rendered report, goes along as an artifact (W&B only).
        root: folder of the store; everything is written under `root/tracking`.

    Returns:
        Lines for the user; empty if there was nothing to do.

    Raises:
        ConfigError: an unknown mode.
        BackendUnavailable: the tracker's package, key or server is missing.
    """
    if not _is_on(config):
        return []
    folder = root / "tracking"
    target, pending = _target(config), []
    for record in records:
        marker = folder / safe_name(manifest.study) / f"{safe_name(record.run_id)}.json"
        content = _content(record)
        if record.status in _FINISHED and _read_marker(marker).get(target) != content:
            pending.append((record, marker, content))
    if not pending:
        return []
    tracker_type = _tracker(config)
    tracker_type.check(config)
    tracker = tracker_type(
        Study(
            config=config,
            name=manifest.study,
            command=redact(manifest.command),
            report=report,
            folder=folder,
        )
    )
    for record, marker, content in pending:
        tracker.log(_without_secrets(record))
        write_text(marker, dumps({**_read_marker(marker), target: content}))
    return tracker.lines(len(pending))


def safe_name(text: str, *, longest: int = 100, also: str = "=,+") -> str:
    """Return `text` as a name for files and ids, the same for the same text.

    Args:
        text: any text.
        longest: most characters that the name may have.
        also: characters that stay, besides letters, digits and `_.-`.
    """
    name = re.sub(rf"[^\w.\-{re.escape(also)}]+", "-", text, flags=re.ASCII).strip("-.")
    if name and name == text and len(name) <= longest:
        return name
    # Texts that differ only in what a name cannot hold must not share one.
    return f"{name[: longest - 9] or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _is_on(config: TrackingConfig) -> bool:
    if config.mode not in MODES:
        raise ConfigError("tracking.mode", config.mode, f"choose one of {', '.join(MODES)}")
    if config.kind == Tracker.wandb:
        return config.mode != "disabled"
    return config.kind != Tracker.none


def _tracker(config: TrackingConfig) -> type[CellTracker]:
    module, _, name = _TRACKERS[config.kind].partition(":")
    return cast("type[CellTracker]", getattr(importlib.import_module(module), name))


def _target(config: TrackingConfig) -> str:
    """Where a cell is tracked: a change of tracker, mode or project tracks it once more."""
    if config.kind == Tracker.wandb:
        return f"wandb:{config.mode}:{config.entity or ''}/{config.project}"
    return str(config.kind)


def _content(record: RunRecord) -> str:
    """Sha256 over what a tracker shows of a record, without what differs between equal runs."""
    plain = to_json(record)
    for stage in plain["stages"]:
        del stage["reused"]
    for name in ("started_at", "finished_at", "command"):
        del plain["provenance"][name]
    for name in ("store", "tracking"):
        plain["config"].pop(name, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_marker(marker: Path) -> dict[str, str]:
    """Return target → content of what was tracked of a cell."""
    try:
        plain = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # a broken marker costs one more tracking, no result
    return plain if isinstance(plain, dict) else {}


def _without_secrets(record: RunRecord) -> RunRecord:
    """Return `record` as trackers may see it: every text redacted, no section of machine paths."""
    plain = redacted(to_json(record))
    for name in ("store", "tracking"):
        plain["config"].pop(name, None)
    return from_json(RunRecord, plain, where=record.run_id)
