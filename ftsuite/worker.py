"""`python -m ftsuite.worker ORDER.json`: compute one stored order, in any directory.

An order is a stage as JSON (store/stage.py); the executor writes it beside the stage's entry, and
its place tells the store. With `--serve`, orders come as lines of stdin:

```
{"id": 7, "do": "compute", "store": "/store", "order": {…}}   or   "do": "check"
```

and each is answered by a line: `{"id": 7, "key": …, "reused": false}`, or with an `error` of kind,
message, and traceback where it is a bug. `--probe` prints what this environment can compute with.
A worker refuses an order whose target it is not.
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
    from collections.abc import Iterator

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
    if computing.lookup(root, stage) is not None:
        return stage
    events = Events(to_file(path_of(root, stage.NAME, stage.key)))
    with _told(events, getattr(getattr(stage, "target", None), "device", "cpu")):
        computing.compute(
            root,
            stage,
            on_wait=lambda _: events.note("another process is computing it; waiting"),
            events=events,
        )
    return stage


def _accepted(order: Any) -> Stage[Any]:
    stage = from_order(stages.KINDS, order)
    environment.check()
    target = getattr(stage, "target", None)
    if target is not None:
        devices.require(target, devices.probe())
    progress.quiet_libraries()
    return stage


@contextmanager
def _told(events: Events, device: str) -> Iterator[None]:
    """Tell that a stage starts and how it ends, and in between how much memory it takes."""
    stop = threading.Event()
    process = psutil.Process()
    process.cpu_percent()

    def tell() -> None:
        while not stop.wait(MEMORY_SECONDS):
            events.send(
                "memory",
                bytes=process.memory_info().rss,
                device_bytes=device_bytes(),
                cpu_percent=process.cpu_percent(),
            )

    thread = threading.Thread(target=tell, daemon=True)
    where = {"host": socket.gethostname(), "pid": os.getpid(), "device": device}
    events.send("state", state="started", **where)
    thread.start()
    try:
        yield
    except BaseException as error:
        events.send("state", state="failed", message=one_line(error))
        raise
    else:
        events.send("state", state="finished")
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
        asked = json.loads(line)
        answers.write(json.dumps({"id": asked["id"], **answer(asked)}) + "\n")
    return 0


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Do what one line asks for; an exception becomes part of the answer."""
    root, order = Path(asked["store"]), asked["order"]
    try:
        if asked["do"] == "check":
            computing.refuse_unworkable(root, _accepted(order))
            return {"key": order["key"]}
        return {"key": compute(root, order).key}
    except Exception as error:
        return {"key": order["key"], "error": error_of(error)}


def error_of(error: Exception) -> dict[str, Any]:
    """An exception as JSON values; what a user can mend needs no traceback."""
    is_bug = not isinstance(error, FtsuiteError)
    return {
        "kind": type(error).__name__,
        "message": redact(one_line(error)),
        "traceback": redact(traceback.format_exc()) if is_bug else "",
    }


def _end_with_parent(parent: int) -> None:
    """End this process when who started it has ended: nobody would read its answers."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
