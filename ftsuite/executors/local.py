"""Workers of this machine: processes that stay, so that libraries are imported once.

One worker a GPU where there are several, each seeing its own alone; on a CPU as many as
`executor.workers` says, one by default, which share the cores.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import psutil

from ftsuite import devices, jsonfile
from ftsuite.errors import redact
from ftsuite.events import path_of, read
from ftsuite.executors.schedule import WORKER_DIED, Outcome, Schedule, Task, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ftsuite.config import BackendConfig, ExecutorConfig
    from ftsuite.events import Listener

POLL_SECONDS = 0.2
"""How often the events of running stages are read."""
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Threads that wait give their core away instead of spinning. On two cores, scoring with
SmolLM2-135M took 0.63 times as long so beside another busy process, and 1.12 times as long on a
quiet machine (docs/architecture.md): so it is for busy machines alone."""
LOOK_SECONDS = 0.5
BUSY_CORES = 0.5
"""From so many cores on that others keep busy, when a worker is about to start, the machine counts
as busy."""
LAST_LINES = 5
"""Of what a worker printed before it died."""


@contextmanager
def workers(
    root: Path, executor: ExecutorConfig, backend: BackendConfig, tasks: int
) -> Iterator[Workers]:
    """Workers of this machine, each started when it is first needed and ended with the block.

    Args:
        root: the store.
        executor: how many.
        backend: threads of a worker.
        tasks: that there are: more workers would have nothing to do.
    """
    gpus = devices.gpus() if backend.device.value != "cpu" else ()
    count = min(executor.workers or max(1, len(gpus)), max(1, tasks))
    made = [
        _Worker(root, functools.partial(_variables, place, count, gpus, backend))
        for place in range(count)
    ]
    try:
        yield Workers(made)
    finally:
        for worker in made:
            worker.end()


class Workers:
    """The executor: what it is given is computed by its workers."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers

    def check(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Let a worker refuse what cannot work, before anything is spent."""
        if tasks:
            self._workers[0].begin(tasks, "check")
        while self._workers[0].tasks:
            yield from _answered(self._workers[:1], lambda *_: None)

    def run(self, schedule: Schedule, listen: Listener) -> Iterator[Outcome]:
        """Compute tasks; gives each outcome as soon as it is there.

        Args:
            schedule: what is to be computed; who reads the outcomes may give cells up in it.
            listen: told of every event.
        """
        while schedule.waiting or schedule.running:
            idle = [worker for worker in self._workers if not worker.tasks]
            for place, worker in enumerate(idle):
                if tasks := schedule.next(len(idle) - place):
                    worker.begin(tasks, "compute")
            for outcome in _answered(self._workers, listen):
                schedule.settle(outcome)
                yield outcome


class _Worker:
    """A process that computes one task at a time, or several together."""

    def __init__(self, root: Path, variables: Callable[[], dict[str, str]]) -> None:
        self.root = root
        self.tasks: dict[str, Task] = {}
        """What it is computing, by key."""
        self._offsets: dict[str, int] = {}
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None

    def begin(self, tasks: Sequence[Task], what: str) -> None:
        """Send tasks; the process is started when it is first needed."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self.tasks = {task.stage.key: task for task in tasks}
        for task in tasks:
            path = path_of(self.root, task.stage.NAME, task.stage.key)
            self._offsets[task.stage.key] = path.stat().st_size if path.exists() else 0
            if what == "compute":
                order = json.dumps(task.stage.order(), indent=1)
                jsonfile.write_text(order_path(self.root, task), order)
        orders = [task.stage.order() for task in tasks]
        asked = {"do": what, "store": str(self.root.resolve()), "orders": orders}
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
            # Unbuffered, so that select sees every line that is there.
            bufsize=0,
            env=_without_trackers(os.environ) | self._variables(),
            # Ctrl-C is for the command, which ends its workers.
            start_new_session=True,
        )

    def answers(self) -> IO[bytes] | None:
        """What can be waited for, while a task is running."""
        return self._process.stdout if self._process and self.tasks else None

    def settle(self) -> list[Outcome]:
        """Read one answer, or find that the process has died."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            error = self._died()
            tasks, self.tasks = list(self.tasks.values()), {}
            return [Outcome(task=task, error=error) for task in tasks]
        told = json.loads(line)
        return [Outcome(task=self.tasks.pop(told["key"]), error=told.get("error"))]

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
            "kind": WORKER_DIED,
            "message": f"the worker process ended ({how}){redact(last)}",
            "traceback": text,
        }

    def tell(self, listen: Listener) -> None:
        """Pass on what the running tasks have told since the last look."""
        for key, task in self.tasks.items():
            path = path_of(self.root, task.stage.NAME, key)
            events, self._offsets[key] = read(path, self._offsets[key])
            source = source_of(task)
            for event in events:
                listen(source, event)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        if self.tasks:
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
        yield from worker.settle()


@functools.cache
def _is_busy() -> bool:
    """Whether other processes use the cores; libgomp asks for it once, when it is loaded."""
    return psutil.cpu_percent(LOOK_SECONDS) / 100 * (psutil.cpu_count() or 1) >= BUSY_CORES


def _without_trackers(variables: Mapping[str, str]) -> dict[str, str]:
    """The command alone tracks: a worker that found its W&B service would talk to it as well."""
    return {name: value for name, value in variables.items() if name != "WANDB_SERVICE"}


def _variables(
    place: int, workers: int, gpus: tuple[str, ...], backend: BackendConfig
) -> dict[str, str]:
    """Environment of one worker, beside the command's own."""
    found = {}
    if not gpus and _is_busy():
        found = {name: value for name, value in PASSIVE_THREADS.items() if name not in os.environ}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = backend.threads
    if threads is None and workers > 1:
        threads = max(1, (cores or 1) // workers)
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return found
