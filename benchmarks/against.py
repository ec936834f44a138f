"""Compare a study's wall time with that of an earlier checkout (see README.md).

`python benchmarks/against.py --before CHECKOUT --store STORE [OVERRIDE ...]` runs the same command
in both, one after another, each from an empty store that has the base model alone. Start to report:
imports, loading and scoring included. With `--busy`, another process uses one core all the while.
Prints the ratios and writes `results/<name>.json`. Units: seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT, machine

from ftsuite import jsonfile

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of the caller's that would decide what is measured."""


def main() -> None:
    """Run the rounds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--store", type=Path, required=True, help="a store with the base model")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="beside a process that uses one core")
    parser.add_argument("--name", default="against", help="name of the results file")
    parser.add_argument("overrides", nargs="*", default=["+sweep=lora_rank"])
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "now": ROOT}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    results: dict[str, Any] = {"benchmark": "against", "machine": machine()}
    for number in range(options.rounds):
        # The order turns, so that a machine that warms up or slows down is nobody's gain.
        names = list(checkouts)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            with beside_load(options.busy):
                spent = run(checkouts[name], options.store, options.overrides)
            seconds[name].append(round(spent, 1))
            print(f"round {number + 1}, {name}: {spent:.1f} s", flush=True)
    ratios = [now / then for now, then in zip(seconds["now"], seconds["before"], strict=True)]
    results |= {
        "before": commit_of(checkouts["before"]),
        "now": commit_of(ROOT),
        "overrides": options.overrides,
        "busy": options.busy,
        "seconds": seconds,
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(f"now / before: {statistics.median(ratios):.2f} ({len(ratios)} rounds)")
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    jsonfile.write_text(path, jsonfile.dumps(results))
    print(f"results: {path}")


def run(checkout: Path, store: Path, overrides: list[str]) -> float:
    """Seconds of one command, start to end, with a store that has the base model alone."""
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch, "store")
        shutil.copytree(store / "model", own / "model")
        variables = {k: v for k, v in os.environ.items() if k not in THREADS}
        variables |= {"PYTHONPATH": str(checkout), "FTSUITE_STORE": str(own)}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "ftsuite", *overrides, "tracking=none"],
            cwd=scratch,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{checkout}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return time.monotonic() - started


@contextmanager
def beside_load(busy: bool) -> Iterator[None]:
    """Keep one core busy, if asked to."""
    process = multiprocessing.Process(target=_spin, daemon=True)
    if busy:
        process.start()
    try:
        yield
    finally:
        if busy:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


def commit_of(checkout: Path) -> str:
    """The commit that a checkout is at."""
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
