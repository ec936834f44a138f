"""Measure what ftsuite itself costs: `python benchmarks/bench.py startup` (see README.md).

Prints a Markdown table and writes `results/<name>.json`. Units: seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ftsuite import devices, jsonfile, provenance, records
from ftsuite.reporting import formats as fmt

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (*provenance.PACKAGES, "matplotlib", "pydantic", "scipy", "wandb")
HEAVY = ("torch", "transformers", "lm_eval", "trl", "wandb", "matplotlib")
STARTUP_REPEATS, RERUN_REPEATS, REPORT_REPEATS = 7, 3, 3
# The same call as `python -m ftsuite`; the last line says which heavy packages it loaded.
WITH_IMPORTS = f"""
import json, sys
from ftsuite.__main__ import main
code = main()
print(json.dumps({{name: name in sys.modules for name in {HEAVY!r}}}))
sys.exit(code)
"""


def startup(_: argparse.Namespace) -> dict[str, Any]:
    """Time fresh processes that compute nothing; `python -c pass` is the floor."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "ftsuite --help": [str(Path(sys.executable).with_name("ftsuite")), "--help"],
        "python -m ftsuite --help": [sys.executable, "-m", "ftsuite", "--help"],
        "python -m ftsuite --cfg job": [sys.executable, "-m", "ftsuite", "--cfg", "job"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    # Commands take turns, so that a slow moment of the machine falls on all of them; the first
    # round warms the disk cache and is not kept.
    for round_number in range(STARTUP_REPEATS + 1):
        for name, command in commands.items():
            seconds = timed(command, ROOT)[0]
            if round_number:
                taken[name].append(seconds)
    return {"figures": [figure(name, "seconds", *values) for name, values in taken.items()]}


def rerun(options: argparse.Namespace) -> dict[str, Any]:
    """Time a sweep command whose results are all in the store.

    The command gets its store from the environment and its reports folder from the working
    directory: as overrides they would become part of the records that it writes again.

    Raises:
        SystemExit: the store lacks results, so that the command would compute.
    """
    store, overrides = options.store.resolve(), options.overrides
    environment = {**os.environ, "FTSUITE_STORE": str(store)}
    with tempfile.TemporaryDirectory() as scratch:
        if options.reports:
            options.reports.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / "reports").symlink_to(options.reports.resolve())
        run = partial(timed, cwd=Path(scratch), env=environment)
        cli = [sys.executable, "-m", "ftsuite.cli"]
        plan = json.loads(run([*cli, "plan", "--json", *overrides])[1])
        if missing := plan["totals"]["to_compute"]:
            lacks = f"lacks {missing} stages of {shlex.join(overrides)} on this machine"
            raise SystemExit(f"bench: {store} {lacks}; finish the sweep first")
        study = store / "studies" / plan["study"]
        before = {path: path.read_text(encoding="utf-8") for path in study.glob("*.json")}
        try:
            # This untimed run is the warm-up as well.
            checked = run([sys.executable, "-c", WITH_IMPORTS, *overrides])[1]
            program = [sys.executable, "-m", "ftsuite", *overrides]
            seconds = [run(program)[0] for _ in range(RERUN_REPEATS)]
        finally:
            for path, text in before.items():
                jsonfile.write_text(path, text)
    return {
        "command": shlex.join(["python", "-m", "ftsuite", *overrides]),
        "cells": plan["totals"]["cells"],
        "imported": json.loads(checked.splitlines()[-1]),
        "figures": [figure("the command again, all stored", "seconds", *seconds)],
    }


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Time loading and rendering a large synthetic study, each repeat in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        study, out = Path(scratch) / "study", Path(scratch) / "report"
        # The peak that a child reports starts at its parent's size, so the parent stays small.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
            fresh.submit(write_synthetic, study, options.cells).result()
            size = sum(path.stat().st_size for path in study.glob("*.json"))
            once = partial(fresh.submit, load_and_render, study, out)
            rounds = [once().result() for _ in range(REPORT_REPEATS)]
    loads, renders, peaks = zip(*rounds, strict=True)
    return {
        "cells": options.cells,
        "records_bytes": size,
        "figures": [
            figure(f"load {options.cells:,} records", "seconds", *loads),
            figure(f"render {options.cells:,} records", "seconds", *renders),
            figure("peak resident memory", "bytes", *peaks),
        ],
    }


def write_synthetic(folder: Path, cells: int) -> None:
    """Write a synthetic study of that many cells."""
    sys.path.insert(0, str(ROOT / "tests"))
    synthetic: Any = import_module("synthetic")
    made = synthetic.make_many(cells)
    synthetic.write_study(folder, synthetic.make_study(*made), made)


def load_and_render(study: Path, out: Path) -> tuple[float, float, int]:
    """Return seconds to load and to render, and this process's peak memory in bytes."""
    from ftsuite.reporting.report import load_study, render

    start = time.perf_counter()
    manifest, runs = load_study(study)
    loaded = time.perf_counter()
    render(manifest, runs, out)
    rendered = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return loaded - start, rendered - loaded, peak * (1 if sys.platform == "darwin" else 1024)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """Tabulate a finished study's own stage records; a stage that cells share counts once."""
    from ftsuite.reporting import study, tables

    manifest, runs = study.load_study(options.study)
    made: dict[str, dict[str, records.StageRecord]] = {}
    for run in runs:
        for stage in run.stages:
            made.setdefault(stage.stage, {}).setdefault(stage.key, stage)
    every = [stage for by_key in made.values() for stage in by_key.values()]
    if not every:
        raise SystemExit(f"bench: {options.study}: no stage is recorded; finish the sweep")
    figures, units = [], ("seconds", "peak_memory_bytes", "peak_device_bytes")
    for name, by_key in made.items():
        row: dict[str, Any] = {}
        for unit in units:
            row |= figure(name, unit, *(getattr(s, unit) for s in by_key.values()))
        figures.append({**row, "total_seconds": round(sum(row["seconds"]), 4)})
    return {
        "command": manifest.command,
        "cells": len(manifest.cells),
        "cells_complete": sum(run.status == "complete" for run in runs),
        # The study may come from another machine than the one that reads it here.
        "study_devices": sorted({run.provenance.device for run in runs}),
        "study_provenance": {run.label: jsonfile.to_json(run.provenance) for run in runs},
        "whole_seconds": round(sum(stage.seconds for stage in every), 4),
        **{unit: max(getattr(stage, unit) for stage in every) for unit in units[1:]},
        "figures": figures,
        "table": tables.stages(study.build(manifest, runs)),
    }


def timed(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> tuple[float, str]:
    """Run a command that must succeed; return its wall time in seconds and its output."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"bench: {command} exited with {done.returncode}: {done.stderr[-500:]}")
    return seconds, done.stdout


def figure(name: str, unit: str, *values: float) -> dict[str, Any]:
    """One figure with all its repeats; `unit` names the fields and ends in seconds or bytes."""
    kept = [round(value, 4) for value in values]
    found = {"median": statistics.median(kept), "min": min(kept), "max": max(kept)}
    return {"name": name, unit: kept, **{f"{key}_{unit}": item for key, item in found.items()}}


def machine() -> dict[str, Any]:
    """Describe the machine, the packages and the checkout."""
    return {
        "cpu": devices.describe("cpu").removeprefix("cpu: "),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "date": provenance.now(),
        "git_commit": timed(["git", "rev-parse", "HEAD"], ROOT)[1].strip(),
        "git_dirty": bool(timed(["git", "status", "--porcelain", "-uno"], ROOT)[1]),
    }


def table(figures: list[dict[str, Any]]) -> str:
    """Medians and ranges as a Markdown table."""
    rows = []
    for found in figures:
        unit = "seconds" if "seconds" in found else "bytes"
        values = [found[f"{key}_{unit}"] for key in ("median", "min", "max")]
        shown = [f"{v:.3f} s" if unit == "seconds" else fmt.size(int(v)) for v in values]
        rows.append([fmt.code(found["name"]), *shown, str(len(found[unit]))])
    return fmt.table(["what", ">median", ">min", ">max", ">repeats"], rows)


def main() -> None:
    """Run one benchmark, print its table and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--name", help="name of the results file (default: the benchmark's)")
    added = parser.add_subparsers(dest="benchmark", required=True)
    parsers = {}
    for run in (startup, rerun, report, demo):
        summary = (run.__doc__ or "").splitlines()[0]
        parsers[run] = added.add_parser(run.__name__, parents=[shared], help=summary)
        parsers[run].set_defaults(run=run)
    parsers[rerun].add_argument("--store", type=Path, required=True, help="a finished store")
    parsers[rerun].add_argument("--reports", type=Path, help="default: a temporary folder")
    parsers[rerun].add_argument("overrides", nargs="*", default=["+sweep=lora_rank"])
    parsers[report].add_argument("--cells", type=int, default=1000)
    parsers[demo].add_argument("--study", type=Path, required=True, help="folder with study.json")
    options = parser.parse_args()
    # In this order: the machine's load is that of the moment before.
    results = {"benchmark": options.benchmark, "machine": machine(), **options.run(options)}
    shown = results.pop("table", None) or table(results["figures"])
    details = results.keys() - {"benchmark", "machine", "figures", "study_provenance"}
    print(shown, "", *(f"- {key}: {results[key]}" for key in sorted(details)), sep="\n")
    path = ROOT / "benchmarks" / "results" / f"{options.name or options.benchmark}.json"
    jsonfile.write_text(path, jsonfile.dumps(results))
    print(f"- results: {path}")


if __name__ == "__main__":
    main()
