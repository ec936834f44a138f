"""Workers of this machine: processes that stay, so that libraries are imported once.

One worker a GPU where there are several, each seeing its own alone; on a CPU as many as
`executor.workers` says, one by default, which share the cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from ftsuite import devices, jsonfile
from ftsuite.errors import redact
from ftsuite.events import path_of, read
from ftsuite.executors.schedule import Outcome, Schedule, Task, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ftsuite.config import BackendConfig, ExecutorConfig
    from ftsuite.events import Listener

POLL_SECONDS = 0.2
"""How often the events of running stages are read."""
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Threads that wait give their core away instead of spinning: training beside another busy process
is about three times as fast, and no slower on a quiet machine (docs/architecture.md)."""
LAST_LINES = 5
"""Of what a worker printed before it died."""


def run(
    schedule: Schedule,
    root: Path,
    executor: ExecutorConfig,
    backend: BackendConfig,
    listen: Listener,
) -> Iterator[Outcome]:
    """Compute tasks; gives each outcome as soon as it is there.

    Args:
        schedule: what is to be computed; who reads the outcomes may give cells up in it.
        root: the store.
        executor: how many workers.
        backend: threads of a worker.
        listen: told of every event.
    """
    with _workers(executor, backend, root, len(schedule.waiting)) as workers:
        while schedule.waiting or schedule.running:
            for worker in workers:
                if worker.task is None and (task := schedule.next()):
                    worker.begin(task, "compute")
            for outcome in _answered(workers, listen):
                schedule.settle(outcome)
                yield outcome


def check(
    tasks: Sequence[Task], root: Path, backend: BackendConfig, listen: Listener
) -> Iterator[Outcome]:
    """Let a worker refuse what cannot work, before anything is spent.

    Args:
        tasks: whose stages have a CHECK.
        root: the store.
        backend: threads of a worker.
        listen: told of every event.
    """
    from ftsuite.config import ExecutorConfig

    with _workers(ExecutorConfig(workers=1), backend, root, 1) as (worker,):
        for task in tasks:
            worker.begin(task, "check")
            while worker.task is not None:
                yield from _answered([worker], listen)


class _Worker:
    """A process that computes one task at a time."""

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        self.root = root
        self.task: Task | None = None
        self.asked = 0
        self._offset = 0
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None

    def begin(self, task: Task, what: str) -> None:
        """Send a task; the process is started when it is first needed."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self.task, self.asked = task, self.asked + 1
        path = path_of(self.root, task.stage.NAME, task.stage.key)
        self._offset = path.stat().st_size if path.exists() else 0
        order = task.stage.order()
        if what == "compute":
            jsonfile.write_text(order_path(self.root, task), json.dumps(order, indent=1))
        asked = {"id": self.asked, "do": what, "store": str(self.root.resolve()), "order": order}
        # A worker that has just died is found when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()

    def _start(self) -> None:
        # Read when the process has died, so it lives as long as the process.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftsuite.worker", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=os.environ | self._variables,
            # Ctrl-C is for the command, which ends its workers.
            start_new_session=True,
        )

    def answers(self) -> IO[bytes] | None:
        """What can be waited for, while a task is running."""
        return self._process.stdout if self._process and self.task else None

    def settle(self) -> Outcome:
        """Read the answer of the running task, or find that the process has died."""
        assert self.task is not None and self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        task, self.task = self.task, None
        if not line:
            return Outcome(task=task, error=self._died())
        return Outcome(task=task, error=json.loads(line).get("error"))

    def _died(self) -> dict[str, Any]:
        assert self._process is not None and self._printed is not None
        code = self._process.wait()
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace").strip().splitlines()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code}, {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += "; the system may have had no memory left"
        last = f": {printed[-1]}" if printed else ""
        text = redact("\n".join(printed[-LAST_LINES:]))
        return {
            "kind": "WorkerDied",
            "message": f"the worker process ended ({how}){redact(last)}",
            "traceback": text,
        }

    def tell(self, listen: Listener) -> None:
        """Pass on what the running task has told since the last look."""
        if self.task is None:
            return
        stage = self.task.stage
        events, self._offset = read(path_of(self.root, stage.NAME, stage.key), self._offset)
        source = source_of(self.task)
        for event in events:
            listen(source, event)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        if self.task is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def order_path(root: Path, task: Task) -> Path:
    """Where a task's order lies in the store, beside its entry."""
    return root / task.stage.NAME / f"{task.stage.key[:24]}.order.json"


def _answered(workers: Sequence[_Worker], listen: Listener) -> Iterator[Outcome]:
    """Wait a little for answers, passing events on meanwhile."""
    busy = {pipe: worker for worker in workers if (pipe := worker.answers()) is not None}
    ready, _, _ = select.select(list(busy), [], [], POLL_SECONDS)
    for worker in workers:
        worker.tell(listen)
    for pipe in ready:
        worker = busy[pipe]
        # What it told right before it answered.
        worker.tell(listen)
        yield worker.settle()


@contextmanager
def _workers(
    executor: ExecutorConfig, backend: BackendConfig, root: Path, most: int
) -> Iterator[list[_Worker]]:
    """Workers that have not been started, ended at the end."""
    gpus = devices.gpus() if backend.device.value != "cpu" else ()
    count = min(executor.workers or max(1, len(gpus)), max(1, most))
    workers = [_Worker(root, _variables(place, count, gpus, backend)) for place in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _variables(
    place: int, workers: int, gpus: tuple[str, ...], backend: BackendConfig
) -> dict[str, str]:
    """Environment of one worker, beside the command's own."""
    found = {name: value for name, value in QUIET_THREADS.items() if name not in os.environ}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = backend.threads
    if threads is None and workers > 1:
        threads = max(1, (cores or 1) // workers)
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return found
