"""Weights & Biases: a run a cell, a group a study; offline unless the user chose otherwise.

wandb 0.31 by default records host name, user, program path, git remote, installed packages and
system metrics, and stages artifacts in the home folder. All of it is turned off or moved here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import threading
from typing import TYPE_CHECKING, Any

from ftsuite.errors import BackendUnavailable, one_line, redact
from ftsuite.tracking import safe_name, tables, values
from ftsuite.tracking.curve import Point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.tracking.cells import Result, Study, Tracked

_KEY_REMEDY = "set WANDB_API_KEY, or run `wandb login`, or set tracking.mode=offline"
_PACKAGE_REMEDY = (
    "tracking=wandb needs the package wandb: `pip install wandb`, or set tracking=none"
)
_ENVIRONMENT = threading.RLock()
"""Live runs are opened in a thread of their own."""
_PRIVATE = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    # On SageMaker wandb would replace our run id and log the job's environment.
    "sagemaker_disable": True,
    "symlink": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    # Empty texts keep wandb from asking the system.
    "host": "",
    "username": "",
    "email": "",
    "program": "ftsuite",
    "program_relpath": "ftsuite",
    "program_abspath": "ftsuite",
}

_LIVE = {"init_timeout": 30, "finish_timeout": 30, "finish_timeout_raises": True}
"""Seconds that a live run waits for the server: it gives up and says so, where `wandb` retries."""


class WandbTracker:
    """Writes cells as W&B runs under `<store>/tracking/<study>/wandb`, a folder a study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.folder = study.folder / safe_name(study.name) / "wandb"

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise BackendUnavailable without wandb or, in online mode, without a key."""
        if importlib.util.find_spec("wandb") is None:
            raise BackendUnavailable(_PACKAGE_REMEDY)
        if config.mode != "online":
            return  # the import alone takes 2 s
        with _environment({"WANDB_MODE": config.mode}):
            wandb = _import_wandb()
            try:
                # Looks at the environment, netrc and wandb's own settings; asks nobody.
                known = wandb.login(prompt=False, verify=False)
            except wandb.Error as error:  # a key of a wrong form
                raise BackendUnavailable(f"W&B: {one_line(error)}; {_KEY_REMEDY}") from error
        if not known:
            raise BackendUnavailable(f"W&B: tracking.mode=online needs a key: {_KEY_REMEDY}")

    def open(self, cell: Tracked) -> LiveWandb:
        """Begin the run of a cell that trains; its offline run of an earlier content goes."""
        run_id = _run_id(self.study.name, cell.run_id)
        self._remove_offline(run_id)
        with _environment(self._paths(run_id)):
            return LiveWandb(self._init(cell, "running", run_id, **_LIVE))

    def log(self, result: Result) -> None:
        """Write one cell as one run; what W&B has of its id is replaced by a whole new run.

        Without `resume`, a run whose id is known replaces the one before, online as well as when
        an offline run is uploaded. So nothing that a killed command has left is told twice.
        """
        run_id = _run_id(self.study.name, result.cell.run_id)
        shown = _shown(result)
        self._remove_offline(run_id)
        with _environment(self._paths(run_id)):
            run = self._init(result.cell, result.record.status, run_id)
            try:
                _log_values(run, *shown)
                self._log_report(run)
                run.finish(exit_code=0 if result.record.status == "complete" else 1)
            except Exception as error:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    run.finish(exit_code=1)
                raise self._unavailable(error) from error
            except BaseException:
                run.finish(exit_code=1)
                raise

    def lines(self, cells: int) -> list[str]:
        """Say where the runs are, and how an offline one is uploaded."""
        config = self.study.config
        project = f"{config.entity}/{config.project}" if config.entity else config.project
        noun = "run" if cells == 1 else "runs"
        if config.mode == "online":
            return [f"W&B: {cells} {noun} in project {project}, group {self.study.name}"]
        # No other study's run lies in this folder.
        return [
            f"W&B: {cells} offline {noun} in {self.folder}",
            f"W&B: upload with `wandb sync {shlex.quote(str(self.folder))}/offline-run-*`",
        ]

    def live_lines(self) -> list[str]:
        """Say how to look at the curves while cells train."""
        if self.study.config.mode == "online":
            return [f"W&B: curves are sent while cells train, group {self.study.name}"]
        command = f"wandb leet {shlex.quote(str(self.folder))}"
        return [f"W&B: curves are written while cells train; look with `{command}`"]

    def stop(self) -> None:
        """End W&B's service: a run whose start has failed would keep its id in use."""
        _import_wandb().teardown()

    def _init(self, cell: Tracked, status: str, run_id: str, **settings: Any) -> Any:
        wandb = _import_wandb()
        config = self.study.config
        tags = [cell.model, status]
        try:
            return wandb.init(
                mode=config.mode,
                project=config.project,
                entity=config.entity,
                group=self.study.name[:128],
                id=run_id,
                name=(cell.label or cell.run_id)[:128],
                job_type="cell",
                config=cell.config | {f"axes/{name}": value for name, value in cell.axes.items()},
                tags=[tag[:64] for tag in tags if tag],  # W&B takes at most 64 characters
                notes=self.study.command,
                dir=str(self.folder.parent.resolve()),  # wandb adds its own folder `wandb`
                reinit="create_new",
                settings=wandb.Settings(**_PRIVATE, **settings),
            )
        # Not wandb.Error alone: what its service refuses is another exception.
        except Exception as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(
            f"W&B {self.study.config.mode}: {one_line(error)}; run the same command again to track "
            "what is left, or set tracking.mode=offline and upload later"
        )

    def _paths(self, run_id: str) -> dict[str, str]:
        """Environment that keeps wandb's files under our folder, and creates it."""
        folder = self.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return {
            "WANDB_MODE": self.study.config.mode,
            # Staged artifacts; an offline run needs them until it is uploaded.
            "WANDB_DATA_DIR": str(self._staging(run_id).resolve()),
            "WANDB_CACHE_DIR": str(folder / "cache"),
        }

    def _staging(self, run_id: str) -> Path:
        return self.folder / "staging" / run_id

    def _remove_offline(self, run_id: str) -> None:
        """Remove an older offline run of the cell: uploading both would mix their histories."""
        if self.study.config.mode != "offline":
            return
        for path in self.folder.glob("offline-run-*"):
            if re.fullmatch(rf"offline-run-\d+_\d+-{re.escape(run_id)}", path.name):
                shutil.rmtree(path)
        shutil.rmtree(self._staging(run_id), ignore_errors=True)

    def _log_report(self, run: Any) -> None:
        """Add the report's files, redacted, as one artifact; equal ones are one version in W&B."""
        report = self.study.report
        assert report is not None
        files = sorted(path for path in report.rglob("*") if path.is_file())
        if not files:
            return
        artifact = _import_wandb().Artifact(f"report-{_wandb_name(self.study.name)}", type="report")
        for path in files:
            with artifact.new_file(path.relative_to(report).as_posix(), "wb") as file:
                file.write(_redacted_bytes(path.read_bytes()))
        run.log_artifact(artifact)


class LiveWandb:
    """The run of a cell that trains."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._step = 0

    def log(self, point: Point) -> None:
        """Add the values of one step; W&B writes them when the next step comes."""
        self._step = point.step
        self._run.log(_row(point.values, point.time), step=point.step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


def _row(row: Mapping[str, Any], at: float | None) -> dict[str, Any]:
    # wandb takes the time of a row from here; without one it takes the present.
    return {**row} if at is None else {**row, "_timestamp": at}


def _shown(result: Result) -> tuple[list[Point], dict[str, tables.Table], dict[str, str]]:
    """Return the curve, ended by a point of all numbers; the tables; the texts."""
    record = result.record
    numbers = values.numbers(record, result.adjusted)
    at = result.points[-1].time if result.points else None
    end = Point(step=values.last_step(record), time=at, values=numbers)
    return [*result.points, end], tables.tables(record, result.adjusted), values.texts(record)


def _log_values(
    run: Any, rows: list[Point], shown: dict[str, tables.Table], texts: dict[str, str]
) -> None:
    """Log numbers and tables as metrics: panels are made of what was logged, not of summaries."""
    wandb, end = _import_wandb(), rows[-1]
    for row in rows:
        run.log(_row(row.values, row.time), step=row.step)
    logged = {
        name: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        for name, table in shown.items()
    }
    if logged:
        run.log(_row(logged, end.time), step=end.step)
    run.summary.update(end.values | texts)


def _redacted_bytes(content: bytes) -> bytes:
    try:
        return redact(content.decode()).encode()
    except UnicodeDecodeError:
        return content  # an image


def _run_id(study: str, run_id: str) -> str:
    """Return the same W&B id for the same cell, so that a second upload replaces the first."""
    return f"{_wandb_name(study)}-{_wandb_name(run_id)}"


def _wandb_name(text: str) -> str:
    """Return `text` with the characters that W&B takes in ids and names of artifacts."""
    return safe_name(text, longest=60, also="")  # an id of two takes at most 128


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise BackendUnavailable(_PACKAGE_REMEDY) from error
    return wandb


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set what wandb reads from nowhere else than the environment, and put it back afterwards."""
    ours = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", **variables}
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
