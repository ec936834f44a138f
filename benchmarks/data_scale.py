"""Measure the data stage on many generated rows: `python benchmarks/data_scale.py` (see README.md).

Each measurement is a fresh process, whose memory is summed over itself and its workers. Prints a
Markdown table and writes `results/data_scale.json`. Units: seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import ROOT, figure, machine, table

from ftsuite import jsonfile
from ftsuite.choices import Loss
from ftsuite.config import DataConfig, ModelConfig, PackingConfig, TemplateConfig
from ftsuite.data import prepare as data
from ftsuite.models import loading, sources, templates

TEXT = (
    "the quick brown fox jumps over a lazy dog while sailors sing on deck and answer every "
    "question about capital cities of France with one word or another"
)
QUESTION_WORDS, ANSWER_WORDS = 39, 28
"""Make rows of about 100 tokens of SmolLM2, its template's own included."""
EMBEDDED = "smollm2-135m-instruct"
SAMPLE_SECONDS = 0.2


def generate(path: Path, rows: int) -> None:
    """Write so many conversations of random words; the same every time."""
    draw, words = random.Random(0), TEXT.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked = f"{number} " + " ".join(draw.choices(words, k=QUESTION_WORDS))
            answered = " ".join(draw.choices(words, k=ANSWER_WORDS))
            row = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
            file.write(json.dumps({"messages": row}) + "\n")


def once(train: Path, processes: int, store: Path) -> None:
    """Prepare the rows in this process and its workers, and print what it took as JSON."""
    config = ModelConfig(embedded=EMBEDDED)
    tokenizer = loading.load_tokenizer(sources.resolve(config, store).folder, config)
    templates.install(tokenizer, TemplateConfig())
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        summary = data.prepare(
            DataConfig(train=str(train), validation_fraction=0.01),
            PackingConfig(),
            Loss.completion,
            tokenizer,
            Path(folder),
            processes=processes,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = {
        "rows": sum(split.rows for split in summary.splits),
        "tokens": sum(split.tokens for split in summary.splits),
        "seconds": wall,
        "cpu_seconds": cpu + workers.ru_utime + workers.ru_stime,
        "sha256": [split.sha256 for split in summary.splits],
    }
    print(json.dumps(measured))


def measure(train: Path, processes: int, store: Path) -> dict[str, Any]:
    """Run `once` in a fresh process and watch the memory of it and its workers."""
    command = [sys.executable, __file__, "--once", str(train), "--processes", str(processes)]
    child = subprocess.Popen(
        [*command, "--store", str(store)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, sum(resident_bytes(pid) for pid in tree(child.pid)))
        time.sleep(SAMPLE_SECONDS)
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"data_scale: {command} exited with {child.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak_bytes": peak}


def tree(pid: int) -> list[int]:
    """Return a process and all that it started, and they.

    A child that has not begun its own program yet still has its parent's memory; it is left out.
    """
    try:
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        begun = [int(child) for child in started if program(int(child)) != program(pid)]
    except OSError:  # it ended a moment ago
        return []
    return [pid, *(found for child in begun for found in tree(child))]


def program(pid: int) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; what it shares with another counts in both."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Generate rows, measure one process and several in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--serial-rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--store", type=Path, default=ROOT / "outputs", help="keeps the model")
    parser.add_argument("--name", default="data_scale", help="name of the results file")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    store = options.store.resolve()
    if options.once:
        once(options.once, options.processes, store)
        return
    before = machine()
    with tempfile.TemporaryDirectory() as scratch:
        few, many = Path(scratch) / "few.jsonl", Path(scratch) / "many.jsonl"
        generate(few, options.serial_rows)
        generate(many, options.rows)
        # In turns, so that a slow moment of the machine falls on both.
        rounds = [
            (measure(few, 1, store), measure(many, options.processes, store))
            for _ in range(options.rounds)
        ]
        same = measure(few, options.processes, store)
    results = {"benchmark": "data_scale", "machine": before, **summary_of(rounds, options)}
    results["identical"] = same["sha256"] == rounds[0][0]["sha256"]
    print(table(results["figures"]), "", sep="\n")
    print(*(f"- {k}: {v}" for k, v in results.items() if k not in ("figures", "machine")), sep="\n")
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    jsonfile.write_text(path, jsonfile.dumps(results))


def summary_of(
    rounds: list[tuple[dict[str, Any], dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of all rounds, and rates from the medians."""
    figures, rates = [], dict[str, float]()
    for place, name in enumerate(("one process", f"{options.processes} processes")):
        found = [one[place] for one in rounds]
        label = f"{found[0]['rows']:,} rows, {name}"
        took = figure(label, "seconds", *(one["seconds"] for one in found))
        cpu = figure(f"{label}: CPU", "seconds", *(one["cpu_seconds"] for one in found))
        peak = figure(f"{label}: peak memory", "bytes", *(one["peak_bytes"] for one in found))
        figures += [took, cpu, peak]
        rates[f"rows_a_second, {name}"] = round(found[0]["rows"] / took["median_seconds"])
        rates[f"rows_a_cpu_second, {name}"] = round(found[0]["rows"] / cpu["median_seconds"])
    one, several = (rates[key] for key in rates if key.startswith("rows_a_second"))
    tokens = rounds[0][1]["tokens"] / rounds[0][1]["rows"]
    return {"tokens_a_row": round(tokens, 1), **rates, "ratio": round(several / one, 2)} | {
        "figures": figures
    }


if __name__ == "__main__":
    main()
