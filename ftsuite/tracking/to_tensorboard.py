"""TensorBoard: an event file a cell, written without TensorFlow, torch or a background thread."""

from __future__ import annotations

import glob
import html
import json
import os
import shlex
import shutil
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from ftsuite.errors import BackendUnavailable
from ftsuite.tracking import safe_name, tables, values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.tracking.cells import Result, Study, Tracked
    from ftsuite.tracking.curve import Point

_REMEDY = "tracking=tensorboard needs the package tensorboard: `pip install 'ftsuite[tensorboard]'`"


class TensorBoardTracker:
    """Writes cells as runs `<store>/tracking/tensorboard/<study>/<label>.<run id>`."""

    def __init__(self, study: Study) -> None:
        self.folder = study.folder / "tensorboard" / safe_name(study.name)

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise BackendUnavailable without tensorboard."""
        _import_protos()

    def open(self, cell: Tracked) -> LiveEvents:
        """Begin the event file of a cell that trains; an earlier content of it goes."""
        return LiveEvents(self._next_file(cell), cell)

    def log(self, result: Result) -> None:
        """Write one cell; an earlier content of it goes, also under another label."""
        path = self._next_file(result.cell)
        partial = path.with_name(f".{path.name}")  # TensorBoard must not see half a file
        with partial.open("wb") as file:
            _write_result(_Writer(file), result)
        os.replace(partial, path)

    def _next_file(self, cell: Tracked) -> Path:
        """Name the next event file of the cell's run, and empty those before it.

        A TensorBoard that is open goes on from the end of one file to the next by name; a file that
        is gone would stop it there.
        """
        run_id = safe_name(cell.run_id)
        # The id keeps cells apart that a study had under one label at different times.
        folder = self.folder / f"{safe_name((cell.label or 'cell').replace(' ', '_'))}.{run_id}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"*.{glob.escape(run_id)}"):
            if old != folder:
                shutil.rmtree(old)
        number = int(time.time())
        for path in sorted(folder.glob("events.out.tfevents.*")):
            number = max(number, int(path.name.split(".")[3]) + 1)
            if path.stat().st_size:
                os.truncate(path, 0)
            else:
                path.unlink()
        return folder / f"events.out.tfevents.{number:010d}.ftsuite"

    def lines(self, cells: int) -> list[str]:
        """Say where the runs are, and how to look at them."""
        noun = "run" if cells == 1 else "runs"
        return [f"TensorBoard: {cells} {noun}; {self._look()}"]

    def live_lines(self) -> list[str]:
        """Say how to look at the curves while cells train."""
        return [f"TensorBoard: curves are written while cells train; {self._look()}"]

    def stop(self) -> None:
        """Nothing is left open: what was logged is on the disk."""

    def _look(self) -> str:
        return f"look with `tensorboard --logdir {shlex.quote(str(self.folder))}`"


class LiveEvents:
    """The event file of a cell that trains; what is logged is on the disk at once."""

    def __init__(self, path: Path, cell: Tracked) -> None:
        self._file = path.open("wb")
        self._writer = _Writer(self._file)
        _write_cell(self._writer, cell)

    def log(self, point: Point) -> None:
        """Add the values of one step."""
        self._writer.scalars(point.step, point.values, point.time)
        self._file.flush()

    def close(self, *, failed: bool) -> None:
        """End the file; TensorBoard knows no failed runs."""
        self._file.close()


class _Writer:
    """Events, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._protos = _import_protos()
        self._records = self._protos["RecordWriter"](file)
        self._write(0, file_version="brain.Event:2")
        # A TensorBoard that still shows an earlier file of this run drops what it read there.
        log = self._protos["SessionLog"]
        self._write(0, session_log=log(status=log.START))

    def summary(self, name: str, *arguments: Any, **more: Any) -> None:
        """Write what one of TensorBoard's functions makes."""
        self._write(0, summary=self._protos[name](*arguments, **more))

    def scalars(self, step: int, point: Mapping[str, float], at: float | None = None) -> None:
        """Write the values of one step; `at` is their time, by default now."""
        kind = self._protos["Summary"]
        for name, value in point.items():
            summary = kind(value=[kind.Value(tag=name, simple_value=value)])
            self._write(step, at, summary=summary)

    def _write(self, step: int, at: float | None = None, **what: Any) -> None:
        event = self._protos["Event"](wall_time=at or time.time(), step=step, **what)
        self._records.write(event.SerializeToString())


def _write_cell(writer: _Writer, cell: Tracked) -> None:
    if cell.axes:
        # Twice the same id is twice the same session to the HParams page.
        writer.summary("hparams_pb", cell.axes, trial_id=cell.run_id)


def _write_result(writer: _Writer, result: Result) -> None:
    _write_cell(writer, result.cell)
    for name, text in _markdown(result).items():
        writer.summary("text_pb", name, text)
    for point in result.points:
        writer.scalars(point.step, point.values, point.time)
    record = result.record
    writer.scalars(values.last_step(record), values.numbers(record, result.adjusted))


def _import_protos() -> dict[str, Any]:
    """Return the parts of tensorboard that write; none of them imports TensorFlow or torch."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise BackendUnavailable(_REMEDY) from error
    return {
        "Event": Event,
        "RecordWriter": RecordWriter,
        "SessionLog": SessionLog,
        "Summary": Summary,
        "hparams_pb": hparams_pb,
        "text_pb": text_pb,
    }


def _markdown(result: Result) -> dict[str, str]:
    """Return the texts of a cell by tag, in Markdown."""
    record = result.record
    facts = [(name, text) for name, text in values.texts(record).items()]
    shown = {
        "facts": _table(tables.Table(columns=("fact", "value"), rows=tuple(facts))),
        "config": f"```json\n{json.dumps(record.config, indent=1, ensure_ascii=False)}\n```",
    }
    found = tables.tables(record, result.adjusted)
    return shown | {name: _table(table) for name, table in found.items()}


def _table(table: tables.Table) -> str:
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(value: tables.Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text, quote=False).replace("|", "&#124;").replace("\n", "<br>")
