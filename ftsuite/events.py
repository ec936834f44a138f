"""What a stage tells while it works: events, one JSON line each, beside its entry in the store.

```
{"time": 1764355000.1, "kind": "state", "state": "started", "host": "a", "pid": 7, "device": "cpu"}
{"time": …, "kind": "note", "text": "…"}
{"time": …, "kind": "progress", "name": "train", "done": 512, "total": 4096, "unit": "tokens"}
{"time": …, "kind": "step", "step": 3, "steps": 86, "loss": 1.9, "learning_rate": 0.0002, …}
{"time": …, "kind": "memory", "bytes": 1800000000, "device_bytes": 0, "cpu_percent": 180.0}
{"time": …, "kind": "state", "state": "finished"}
```

To its listeners alone, a command also tells how its cells end:
`{"kind": "cell", "run_id": …, "status": "complete"}`, or `"failed"`.

The display, live tracking and `ftsuite watch` read them alike, whichever machine computes.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Event = dict[str, Any]
"""A kind, the time in seconds since 1970, and what else the kind has (see above)."""
PROGRESS_SECONDS = 0.5
"""How often a long loop tells how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The stage that an event comes from, as one study sees it."""

    stage: str
    """Kind of the stage: data, train, merge, …"""
    key: str
    name: str
    """What the study calls it, such as 'score tuned intent_test'."""
    place: str
    """The first cell that needs it, such as '2/4 lora.r=4'."""
    run_ids: tuple[str, ...]
    """All cells that need it."""


if TYPE_CHECKING:
    Listener = Callable[[Source, Event], None]
    """Told of every event of every stage that a command runs."""


class Events:
    """Where a stage's function sends its events."""

    def __init__(
        self, emit: Callable[[Event], None], opening: dict[str, Any] | None = None
    ) -> None:
        """Send to `emit`.

        Args:
            emit: takes one event.
            opening: facts of who computes: 'started' is sent with them before the first event.
        """
        self._emit = emit
        self._opening = opening

    @property
    def has_begun(self) -> bool:
        """Whether 'started' has been sent, where it is to be sent."""
        return self._opening is None

    def open(self) -> None:
        """Say that the stage has started, once."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self.send("state", state="started", **opening)

    def send(self, kind: str, **facts: Any) -> None:
        """Send one event, secrets taken out of its texts."""
        self.open()
        clean = {k: redact(v) if isinstance(v, str) else v for k, v in facts.items()}
        self._emit({"time": round(time.time(), 3), "kind": kind, **clean})

    def note(self, text: str) -> None:
        """Say one line for people."""
        self.send("note", text=text)

    def step(self, step: int, steps: int, **values: float | None) -> None:
        """Tell of one optimiser step, or of an evaluation after it.

        Args:
            step: its number, from 1.
            steps: how many there will be.
            values: loss and eval_loss (nats a token), learning_rate, grad_norm, tokens (so far).
        """
        self.send("step", step=step, steps=steps, **values)

    @contextmanager
    def progress(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Tell how far a loop is; call the value with what was done since the last call.

        Args:
            name: of the loop.
            total: how much there is to do, in `unit`.
            unit: tokens, rows, bytes, …
        """
        done, told = 0, 0.0

        def tell() -> None:
            self.send("progress", name=name, done=done, total=total, unit=unit)

        def advance(amount: int) -> None:
            nonlocal done, told
            done += amount
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                tell()

        tell()
        yield advance
        tell()


def silent() -> Events:
    """A sink that nobody listens to."""
    return Events(lambda _: None)


def path_of(root: Path, stage: str, key: str) -> Path:
    """Where the events of a stage lie, whether it is done or not."""
    return root / stage / f"{key[:24]}.events.jsonl"


def to_file(path: Path) -> Callable[[Event], None]:
    """An `emit` that appends to `path`, a line an event, each written at once."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def emit(event: Event) -> None:
        # One write of one line: readers never see half of it, and a kill loses none before.
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    return emit


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Read the events behind `offset` (bytes), and say where to go on; none where no file is."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    # The last line may be half there, on a network file system.
    whole = data[: data.rfind(b"\n") + 1]
    return [event for line in whole.split(b"\n") if (event := _parsed(line))], offset + len(whole)


def _parsed(line: bytes) -> Event | None:
    """An event; None for a line that a crash or a full disk cut short."""
    try:
        event: Event = json.loads(line)
    except ValueError:
        return None
    return event
