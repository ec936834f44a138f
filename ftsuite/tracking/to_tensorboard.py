"""TensorBoard: an event file a cell, written without TensorFlow, torch or a background thread."""

from __future__ import annotations

import glob
import html
import json
import os
import shlex
import shutil
import time
from typing import TYPE_CHECKING, Any

from ftsuite.errors import BackendUnavailable
from ftsuite.tracking import safe_name, values

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.records import RunRecord
    from ftsuite.tracking import Study

_REMEDY = "tracking=tensorboard needs the package tensorboard: `pip install 'ftsuite[tensorboard]'`"


class TensorBoardTracker:
    """Writes cells as runs `<store>/tracking/tensorboard/<study>/<label>.<run id>`."""

    def __init__(self, study: Study) -> None:
        self.folder = study.folder / "tensorboard" / safe_name(study.name)

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise BackendUnavailable without tensorboard."""
        _import_protos()

    def log(self, record: RunRecord) -> None:
        """Write one cell; an earlier content of it goes, also under another label."""
        run_id = safe_name(record.run_id)
        # The id keeps cells apart that a study had under one label at different times.
        folder = self.folder / f"{safe_name((record.label or 'cell').replace(' ', '_'))}.{run_id}"
        for old in self.folder.glob(f"*.{glob.escape(run_id)}"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        _write_events(folder / f"events.out.tfevents.{int(time.time()):010d}.ftsuite", record)

    def lines(self, cells: int) -> list[str]:
        """Say where the runs are, and how to look at them."""
        noun = "run" if cells == 1 else "runs"
        return [
            f"TensorBoard: {cells} {noun}; look with "
            f"`tensorboard --logdir {shlex.quote(str(self.folder))}`"
        ]


def _write_events(path: Path, record: RunRecord) -> None:
    protos = _import_protos()
    partial = path.parent / f".{path.name}"  # TensorBoard must not see half a file
    with partial.open("wb") as file:
        writer = protos["RecordWriter"](file)

        def add(step: int, summary: Any) -> None:
            event = protos["Event"](wall_time=time.time(), step=step, summary=summary)
            writer.write(event.SerializeToString())

        header = protos["Event"](wall_time=time.time(), file_version="brain.Event:2")
        writer.write(header.SerializeToString())
        if choices := _hyperparameters(record):
            # Twice the same id is twice the same session to the HParams page.
            add(0, protos["hparams_pb"](choices, trial_id=record.run_id))
        for name, text in _markdown(record).items():
            add(0, protos["text_pb"](name, text))
        for step, point in [
            *values.curve(record),
            (values.last_step(record), values.numbers(record)),
        ]:
            for name, value in point.items():
                scalar = protos["Summary"].Value(tag=name, simple_value=value)
                add(step, protos["Summary"](value=[scalar]))
    os.replace(partial, path)


def _import_protos() -> dict[str, Any]:
    """Return the parts of tensorboard that write; none of them imports TensorFlow or torch."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise BackendUnavailable(_REMEDY) from error
    return {
        "Event": Event,
        "RecordWriter": RecordWriter,
        "Summary": Summary,
        "hparams_pb": hparams_pb,
        "text_pb": text_pb,
    }


def _hyperparameters(record: RunRecord) -> dict[str, str | float | bool]:
    """Return the overrides that set the cell apart, as TensorBoard's HParams page takes them."""
    chosen: dict[str, str | float | bool] = {}
    for override in record.overrides:
        name, _, text = override.lstrip("+").partition("=")
        try:
            value = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            value = text
        chosen[name] = value if isinstance(value, (bool, int, float)) else text
    return chosen


def _markdown(record: RunRecord) -> dict[str, str]:
    """Return the texts of a cell by tag, in Markdown."""
    facts = [(name, text) for name, text in values.texts(record).items()]
    shown = {
        "facts": _table(values.Table(columns=("fact", "value"), rows=tuple(facts))),
        "config": f"```json\n{json.dumps(record.config, indent=1, ensure_ascii=False)}\n```",
    }
    return shown | {name: _table(table) for name, table in values.tables(record).items()}


def _table(table: values.Table) -> str:
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(value: values.Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text, quote=False).replace("|", "&#124;").replace("\n", "<br>")
