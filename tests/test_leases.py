"""Leases: one holder at a time, taken over from whoever has ended, on one host and across hosts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from conftest import REPOSITORY, environment

from ftsuite.store import leases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
from ftsuite.store import leases

leases.HEARTBEAT_SECONDS, leases.LAPSE_SECONDS, leases.POLL_SECONDS = 0.1, 1.0, 0.02
host = os.environ.get("PLAYED_HOST")
if host:
    # Another host: another name, and pids that say nothing here.
    leases._host = lambda: host
    leases._table = lambda: host
root = Path(sys.argv[1])
"""


def start(code: str, *arguments: object, host: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"PYTHONPATH": str(REPOSITORY), "PLAYED_HOST": host},
    )


HOLD = """
with leases.held(root / "x") as lease:
    print("held", flush=True)
    sys.stdin.read()
    for _ in range(1000):
        time.sleep(0.05)
        if lease.lost:
            print("lost", flush=True)
            break
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT", 0.1), ("LAPSE", 1.0), ("POLL", 0.02)):
        monkeypatch.setattr(leases, f"{name}_SECONDS", seconds)


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(HOLD, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lease_is_one_holders(tmp_path: Path, quick: None) -> None:
    with leases.held(tmp_path / "x") as lease:
        assert leases.acquire(tmp_path / "x") is None
        found = leases.holder(tmp_path / "x")
        assert found is not None and (found.pid, found.token) == (os.getpid(), lease.token)
    assert leases.holder(tmp_path / "x") is None
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_is_followed_at_once(
    tmp_path: Path, holding: subprocess.Popen[str]
) -> None:
    """With the real times: nobody waits a minute for a process of the same host."""
    assert leases.acquire(tmp_path / "x") is None
    os.kill(holding.pid, signal.SIGKILL)
    holding.wait()
    assert leases.holder(tmp_path / "x") is None
    lease = leases.acquire(tmp_path / "x")
    assert lease is not None
    lease.release()


def test_a_stopped_holder_lapses_and_finds_out(
    tmp_path: Path, holding: subprocess.Popen[str], quick: None
) -> None:
    holding.send_signal(signal.SIGSTOP)
    waited_for = []
    with leases.held(tmp_path / "x", waited_for.append) as lease:
        assert [found.pid for found in waited_for] == [holding.pid]
        holding.send_signal(signal.SIGCONT)
        out, _ = holding.communicate("", timeout=60)
        assert out == "lost\n"
        assert lease.check()


def test_another_hosts_lease_lapses_by_silence_alone(tmp_path: Path, quick: None) -> None:
    """A pid of another host says nothing; a beating lease stays however long it takes."""
    process = start(HOLD, tmp_path, host="other")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    started = time.monotonic()
    while time.monotonic() - started < 2.5:
        assert leases.acquire(tmp_path / "x") is None
        assert leases.holder(tmp_path / "x") is not None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert leases.acquire(tmp_path / "x") is None, "dead, but that cannot be known yet"
    with leases.held(tmp_path / "x") as lease:
        assert lease.holder.host != "other"


def test_a_look_writes_nothing(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    found = leases.holder(tmp_path / "x")
    assert found is not None and found.pid == holding.pid
    assert [path.name for path in tmp_path.iterdir()] == ["x.lease"]


RACE = """
import random
for _ in range(int(sys.argv[2])):
    with leases.held(root / "x"):
        # Fails where another process is in here.
        handle = os.open(root / "inside", os.O_CREAT | os.O_EXCL)
        time.sleep(random.random() * 0.01)
        os.close(handle)
        os.unlink(root / "inside")
"""


def test_of_many_one_at_a_time(tmp_path: Path) -> None:
    racing = [start(RACE, tmp_path, 25, host=host) for host in ("", "", "a", "a", "b", "c")]
    for process in racing:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert not list(tmp_path.iterdir())


COMPUTE = """
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import StageSpec

def work(number):
    def compute(folder):
        for part in range(5):
            (folder / f"{part}.txt").write_text(f"{number} {part}")
            time.sleep(0.01)
        return str(number * number)
    return compute

for number in range(int(sys.argv[2])):
    spec = StageSpec(name="square", version=1, inputs={"number": number}, record=str,
                     compute=work(number), resumable=number % 2 == 1)
    assert run_stage(root, spec).record == str(number * number)
print("done", flush=True)
"""
KEYS = 12


def test_two_hosts_and_many_kills_leave_whole_results(tmp_path: Path) -> None:
    """Three processes of two hosts compute the same keys and are killed 36 times meanwhile."""
    chance, kills = random.Random(0), 0
    running = {host: start(COMPUTE, tmp_path, KEYS, host=host) for host in ("", "a", "b")}
    while kills < 36:
        time.sleep(chance.uniform(0.2, 0.6))
        host = chance.choice(list(running))
        running[host].kill()
        running[host].communicate()
        kills += 1
        running[host] = start(COMPUTE, tmp_path, KEYS, host=host)
    for process in running.values():
        out, said = process.communicate(timeout=120)
        assert out == "done\n", said
    folders = [path for path in (tmp_path / "square").iterdir() if path.is_dir()]
    assert not [path.name for path in folders if ".partial" in path.name]
    assert len(folders) == KEYS
    for folder in folders:
        number = json.loads((folder / "inputs.json").read_text())["number"]
        assert json.loads((folder / "result.json").read_text())["record"] == str(number**2)
        for part in range(5):
            assert (folder / f"{part}.txt").read_text() == f"{number} {part}"
