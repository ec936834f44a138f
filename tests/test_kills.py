"""Commands and workers killed at random moments: the records are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import psutil
from conftest import Command, scores_of

from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

CELLS = ("lora.r=2,4", "train.checkpoint_every_steps=1")
KILLS = 30
LONGEST_SECONDS = 11.0
"""The whole sweep takes about twice as long: a kill can come at any stage of it."""


def victims(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The command and its worker, where it has one."""
    try:
        command = psutil.Process(process.pid)
        children = [one for one in command.children() if "ftsuite.worker" in one.cmdline()]
    except psutil.NoSuchProcess:
        return []
    return [command, *children]


def weights(command: Command) -> dict[str, str]:
    found = {}
    for label, run in command.runs().items():
        for name, file in (
            ("adapter", "adapter_model.safetensors"),
            ("merged", "model.safetensors"),
        ):
            path = command.store / run.artifacts[name] / file
            found[f"{label} {name}"] = file_digest(path)
    return found


def test_thirty_kills_leave_the_records_of_an_undisturbed_run(
    finished: Command, new_command: Callable[[str], Command]
) -> None:
    command, chance = new_command("kills"), random.Random(7)
    killed = {"command": 0, "worker": 0}
    while sum(killed.values()) < KILLS:
        process = command.start(*CELLS)
        time.sleep(chance.uniform(0.3, LONGEST_SECONDS))
        found = victims(process)
        if process.poll() is None and found:
            place = chance.randrange(len(found))
            os.kill(found[place].pid, signal.SIGKILL)
            killed["worker" if place else "command"] += 1
        # After a worker's death the command ends by itself: its cells have failed or gone on.
        process.communicate(timeout=300)
    assert min(killed.values()) >= 5
    code, output = command.run(*CELLS)
    assert code == 0, output
    reference = finished.runs()
    for label, run in command.runs().items():
        assert run.status == "complete"
        assert scores_of(run) == scores_of(reference[label])
        assert run.tuned_loss == reference[label].tuned_loss
    assert weights(command) == weights(finished)
    left = [path.name for path in command.store.rglob("*") if ".partial" in path.name]
    assert left == []
    assert [path.name for path in command.store.rglob("*.lease")] == []
