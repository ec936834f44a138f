"""Experiment tracking: W&B, TensorBoard or nothing.

While cells train, `live.live` writes their curves from the events of the workers. At the end of the
study `track` writes each finished cell once more, whole, from its record: whatever was killed, lost
or told twice before, one right run a cell is left. Both run in the command's process, so cells
cannot race each other. A marker file a cell remembers what was tracked, so that a second identical
command imports no tracker at all.

```
__init__.py         which cells to track; the markers
live.py             curves while cells train
cells.py            what trackers are given: cells, their axes, results
curve.py            events of a training, and its record, as points
values.py           a record as names and numbers
tables.py           a record as tables
to_wandb.py         Weights & Biases, offline unless told otherwise
to_tensorboard.py   TensorBoard event files
```
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from typing import TYPE_CHECKING, Any, cast

from ftsuite.analysis.ranking import adjusted_p_values, is_scored
from ftsuite.choices import Tracker
from ftsuite.errors import ConfigError, redact, redacted
from ftsuite.jsonfile import dumps, from_json, to_json, write_text
from ftsuite.records import RunRecord
from ftsuite.tracking.cells import Result, Study, Tracked, axes
from ftsuite.tracking.curve import from_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.records import StudyManifest
    from ftsuite.tracking.cells import CellTracker, Scalar

MODES = ("offline", "online", "disabled")
_TRACKERS = {
    Tracker.wandb: "ftsuite.tracking.to_wandb:WandbTracker",
    Tracker.tensorboard: "ftsuite.tracking.to_tensorboard:TensorBoardTracker",
}
_FINISHED = ("complete", "failed")


def check(config: TrackingConfig) -> None:
    """Find out before a sweep whether its tracking can work.

    Raises:
        ConfigError: an unknown mode.
        BackendUnavailable: the tracker's package or, in online mode, its key is missing.
    """
    if is_on(config):
        tracker_type(config).check(config)


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
    if not is_on(config):
        return []
    folder, target, pending = root / "tracking", _target(config), []
    adjusted = _adjusted(records)
    places = axes(manifest, {record.run_id: record.config for record in records})
    for record in records:
        path = _marker(folder, manifest.study, record.run_id)
        beside = places[record.run_id], adjusted.get(record.run_id, {})
        content = _content(record, *beside)
        if record.status in _FINISHED and _read_marker(path).get(target) != content:
            pending.append((record, beside, path, content))
    if not pending:
        return []
    tracker_type(config).check(config)
    tracker = tracker_type(config)(
        Study(
            config=config,
            name=manifest.study,
            command=redact(manifest.command),
            report=report,
            folder=folder,
        )
    )
    for record, beside, path, content in pending:
        tracker.log(_result(record, *beside, root))
        write_text(path, dumps({**_read_marker(path), target: content}))
    return tracker.lines(len(pending))


def forget(config: TrackingConfig, manifest: StudyManifest, run_id: str, root: Path) -> None:
    """Let `track` write a cell again, because its run is about to be replaced by a live one."""
    path = _marker(root / "tracking", manifest.study, run_id)
    known = _read_marker(path)
    if known.pop(_target(config), None) is not None:
        write_text(path, dumps(known))


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


def is_on(config: TrackingConfig) -> bool:
    """Say whether anything is tracked.

    Raises:
        ConfigError: an unknown mode.
    """
    if config.mode not in MODES:
        raise ConfigError("tracking.mode", config.mode, f"choose one of {', '.join(MODES)}")
    if config.kind == Tracker.wandb:
        return config.mode != "disabled"
    return config.kind != Tracker.none


def tracker_type(config: TrackingConfig) -> type[CellTracker]:
    """Import the tracker that was chosen."""
    module, _, name = _TRACKERS[config.kind].partition(":")
    return cast("type[CellTracker]", getattr(importlib.import_module(module), name))


def _target(config: TrackingConfig) -> str:
    """Where a cell is tracked: a change of tracker, mode or project tracks it once more."""
    if config.kind == Tracker.wandb:
        return f"wandb:{config.mode}:{config.entity or ''}/{config.project}"
    return str(config.kind)


def _adjusted(records: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """Return run id → metric → Holm p-value, as the report has them."""
    scored = [record for record in records if is_scored(record)]
    if not scored:
        return {}
    adjusted: dict[str, dict[str, float]] = {}
    rank_by = scored[0].config["evals"]["rank_by"]
    for (run_id, metric), p_value in adjusted_p_values(scored, rank_by).items():
        adjusted.setdefault(run_id, {})[metric] = p_value
    return adjusted


def _result(
    record: RunRecord, axes: dict[str, Scalar], adjusted: dict[str, float], root: Path
) -> Result:
    """Return a finished cell as trackers may see it: every text redacted, no machine paths."""
    plain = redacted(to_json(record))
    plain["config"] = public_config(plain["config"])
    clean = from_json(RunRecord, plain, where=record.run_id)
    return Result(
        cell=Tracked(
            run_id=clean.run_id, label=clean.label, config=clean.config, axes=redacted(axes)
        ),
        record=clean,
        adjusted=adjusted,
        points=from_record(record, root),
    )


def _content(record: RunRecord, axes: dict[str, Scalar], adjusted: dict[str, float]) -> str:
    """Sha256 over what a tracker shows of a cell, without what differs between equal runs."""
    plain = to_json(record)
    for stage in plain["stages"]:
        del stage["reused"]
    for name in ("started_at", "finished_at", "command"):
        del plain["provenance"][name]
    for name in ("store", "tracking"):
        plain["config"].pop(name, None)
    shown = json.dumps([plain, axes, adjusted], sort_keys=True)
    return hashlib.sha256(shown.encode()).hexdigest()


def _marker(folder: Path, study: str, run_id: str) -> Path:
    return folder / safe_name(study) / f"{safe_name(run_id)}.json"


def _read_marker(marker: Path) -> dict[str, str]:
    """Return target → content of what was tracked of a cell."""
    try:
        plain = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # a broken marker costs one more tracking, no result
    return plain if isinstance(plain, dict) else {}


def public_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's configuration as trackers may see it: no secrets, no paths of the machine."""
    return {k: redacted(v) for k, v in config.items() if k not in ("store", "tracking")}
