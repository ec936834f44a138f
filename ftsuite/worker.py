"""`python -m ftsuite.worker ORDER.json`: compute one stored order, in any directory.

An order is a stage as JSON (store/stage.py); the executor writes it beside the stage's entry, and
its place tells the store. With `--serve`, orders come as lines of stdin:

```
{"do": "compute", "store": "/store", "orders": [{…}, …]}   or   "do": "check"
```

and each order is answered by a line `{"key": …}`, with an `error` of kind, message, and traceback
where it is a bug. Several orders in a line are of equal `together`, and computed at once. `--probe`
prints what this environment can compute with. A worker refuses an order whose target it is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ftsuite import devices, environment, progress, stages
from ftsuite.errors import FtsuiteError, one_line, redact
from ftsuite.events import Events, path_of, to_file
from ftsuite.measure import device_bytes
from ftsuite.store import computing
from ftsuite.store.stage import from_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ftsuite.store.stage import Stage

MEMORY_SECONDS = 2.0
"""How often a worker tells how much memory it takes."""
PARENT_SECONDS = 1.0
"""How often a worker looks whether who started it is still there."""


def main(arguments: list[str] | None = None) -> int:
    """Compute one order, serve a stream of them, or tell what can be computed here."""
    parser = argparse.ArgumentParser(prog="python -m ftsuite.worker", description=__doc__)
    parser.add_argument("order", nargs="?", type=Path, help="file of one order")
    parser.add_argument("--store", type=Path, help="the store; by default where the order lies")
    parser.add_argument("--serve", action="store_true", help="take orders from stdin")
    parser.add_argument("--probe", action="store_true", help="print the environment as JSON")
    options = parser.parse_args(arguments)
    if options.probe:
        print(json.dumps(dataclasses.asdict(devices.probe())))
        return 0
    if options.serve:
        return _serve()
    if options.order is None:
        parser.error("give an order's file, --serve or --probe")
    try:
        order = json.loads(options.order.read_text(encoding="utf-8"))
        root = options.store or options.order.resolve().parents[1]
        done = compute(root, order)
    except (FtsuiteError, OSError, ValueError) as error:
        print(f"ftsuite: error: {one_line(error)}", file=sys.stderr)
        return 1
    print(computing.entry_folder(root, done))
    return 0


def compute(root: Path, order: Any) -> Stage[Any]:
    """Compute an order into the store, unless its result is there.

    Raises:
        BackendUnavailable: the order is for another target than this environment is.
        FtsuiteError: whatever the stage's function refuses.
    """
    stage = _accepted(order)
    found = computing.lookup(root, stage)
    if found is not None and not found.pruned:
        return stage
    events = _events(root, stage)
    with _told({stage.key: events}) as ended:
        computing.compute(
            root,
            stage,
            on_wait=lambda _: events.note("another process is computing it; waiting"),
            events=events,
        )
        ended(stage.key, None)
    return stage


def compute_many(root: Path, orders: list[Any]) -> Iterator[tuple[str, Exception | None]]:
    """Compute orders of equal `together` at once; gives each one's key and error, or None.

    Those that another process is computing come last, one by one.
    """
    left: dict[str, Any] = {}
    stages: list[Stage[Any]] = []
    for order in orders:
        try:
            stages.append(_accepted(order))
            left[order["key"]] = order
        except Exception as reason:
            yield order["key"], reason
    if len(stages) > 1 and stages[0].MANY:
        events = {stage.key: _events(root, stage) for stage in stages}
        try:
            with _told(events) as ended:
                for key, error in computing.compute_many(root, stages, events):
                    ended(key, error)
                    del left[key]
                    yield key, error
        except Exception as reason:
            # What keeps all of them: their model does not load.
            for key in left:
                yield key, reason
            return
    for key, order in left.items():
        try:
            compute(root, order)
        except Exception as reason:
            yield key, reason
        else:
            yield key, None


def _events(root: Path, stage: Stage[Any]) -> Events:
    device = getattr(getattr(stage, "target", None), "device", "cpu")
    where = {"host": socket.gethostname(), "pid": os.getpid(), "device": device}
    return Events(to_file(path_of(root, stage.NAME, stage.key)), opening=where)


def _accepted(order: Any) -> Stage[Any]:
    stage = from_order(stages.KINDS, order)
    environment.check()
    target = getattr(stage, "target", None)
    if target is not None:
        devices.require(target, devices.probe())
    progress.quiet_libraries()
    return stage


@contextmanager
def _told(events: dict[str, Events]) -> Iterator[Callable[[str, Exception | None], None]]:
    """Tell how stages end, and before that how much memory they take.

    The value is called with the key and the error of each that has ended. Where the block fails,
    those fail that have begun and not ended.
    """
    running = dict(events)
    stop = threading.Event()
    process = psutil.Process()
    process.cpu_percent()

    def tell_memory() -> None:
        while not stop.wait(MEMORY_SECONDS):
            for one in [one for one in running.values() if one.has_begun]:
                one.send(
                    "memory",
                    bytes=process.memory_info().rss,
                    device_bytes=device_bytes(),
                    cpu_percent=process.cpu_percent(),
                )

    def ended(key: str, error: BaseException | None) -> None:
        one = running.pop(key)
        if error is None:
            one.send("state", state="finished")
        else:
            one.send("state", state="failed", message=one_line(error))

    thread = threading.Thread(target=tell_memory, daemon=True)
    next(iter(running.values())).open()
    thread.start()
    try:
        yield ended
    except BaseException as error:
        for key in [key for key, one in running.items() if one.has_begun]:
            ended(key, error)
        raise
    finally:
        stop.set()
        thread.join()


def _serve() -> int:
    """Answer orders until stdin ends."""
    # Whatever a library prints goes to stderr, never among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        for told in answers_to(json.loads(line)):
            answers.write(json.dumps(told) + "\n")
    return 0


def answers_to(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Do what one line asks for; an exception becomes part of the answer."""
    root, orders = Path(asked["store"]), asked["orders"]
    done = _checked(root, orders) if asked["do"] == "check" else compute_many(root, orders)
    for key, error in done:
        yield {"key": key, **({} if error is None else {"error": error_of(error)})}


def _checked(root: Path, orders: list[Any]) -> Iterator[tuple[str, Exception | None]]:
    for order in orders:
        try:
            computing.refuse_unworkable(root, _accepted(order))
        except Exception as error:
            yield order["key"], error
        else:
            yield order["key"], None


def error_of(error: Exception) -> dict[str, Any]:
    """An exception as JSON values; what a user can mend needs no traceback."""
    is_bug = not isinstance(error, FtsuiteError)
    return {
        "kind": type(error).__name__,
        "message": redact(one_line(error)),
        "traceback": redact("".join(traceback.format_exception(error))) if is_bug else "",
    }


def _end_with_parent(parent: int) -> None:
    """End this process when who started it has ended: nobody would read its answers."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
