"""Measure studies of many cells: `python benchmarks/many_cells.py` (see README.md).

Both ends of a study: composing, validating and planning it, and reading it once it is finished.
Every command is a fresh process. Prints a Markdown table and writes `results/many_cells.json`.
Units: seconds and bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import ROOT, figure, machine, table

from ftsuite import jsonfile

DOCUMENTS, CURVE_POINTS = 180, 86
"""Scored documents a metric and points of a loss curve, as in the records of experiments/."""
METRICS = {
    "intent_choice_validation/acc": "validation",
    "intent_choice/acc": "test",
    "intent_exact/exact_match": "test",
    "intent_answers/bits_per_byte": "test",
    "prose_bpb/bits_per_byte": "test",
    "arc_easy/acc": "test",
    "hellaswag/acc_norm": "test",
    "piqa/acc": "test",
}
ROWS = 10
"""Documents won, and as many lost, that a table of documents lists."""
LIMIT_SECONDS, LIMIT_BYTES = 60, 10**9
STUDY = "many"


def main() -> None:
    """Measure both ends and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--store", type=Path, help="plan with SmolLM2-135M of this store too")
    parser.add_argument("--name", default="many_cells", help="name of the results file")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_study(options.write, options.cells)
        return
    # In this order: the machine's load is that of the moment before.
    results: dict[str, Any] = {"benchmark": "many_cells", "machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        measured = planned(folder, options.cells, options.store)
        # A sweep of many cells on tiny models, run whole, goes here: its wall time, the executor's
        # own share of it, and the peak of each process.
        found, sizes = read(folder / "store", options.cells)
    measured |= found
    results |= {"cells": options.cells, "limit_seconds": LIMIT_SECONDS, "limit_bytes": LIMIT_BYTES}
    results |= {"sizes": sizes, "measured": measured}
    results["figures"] = [
        figure(name, unit, one[unit])
        for name, one in measured.items()
        for unit in ("seconds", "bytes")
    ]
    print(table(results["figures"]))
    print("", *(f"- {name}: {size:,}" for name, size in sizes.items()), sep="\n")
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    jsonfile.write_text(path, jsonfile.dumps(results))
    print(f"- results: {path}")
    over = [
        name
        for name, one in measured.items()
        if one["seconds"] > LIMIT_SECONDS or one["bytes"] > LIMIT_BYTES
    ]
    if over:
        raise SystemExit(f"bench: above {LIMIT_SECONDS} s or {LIMIT_BYTES:,} bytes: {over}")


def planned(folder: Path, cells: int, store: Path | None) -> dict[str, dict[str, float]]:
    """Compose, validate and plan a grid over rank, learning rate and seed."""
    ranks, rates = range(1, 11), [f"{number}e-5" for number in range(1, 11)]
    grid = [
        f"lora.r={','.join(map(str, ranks))}",
        f"train.learning_rate={','.join(rates)}",
        f"train.seed=range(0,{max(1, cells // 100)})",
    ]
    environment = {"FTSUITE_STORE": str(folder / "planned")}
    make_model(folder / "tiny")
    rows = folder / "labels.csv"
    command("example", "labels", str(rows))
    tiny = [f"model.id={folder / 'tiny'}", "model.name=tiny"]
    own = ["data=file", f"data.train={rows}"]
    one_by_one = ["+sweep=lora_rank", f"lora.r=range(1,{cells + 1})"]
    cases = {
        "plan, demo's data, one setting": [*tiny, *one_by_one],
        "plan, demo's data, a grid": [*tiny, *grid],
        "plan, own rows, a grid": [*tiny, *own, *grid],
    }
    found = {}
    for name, overrides in cases.items():
        found[name], said = command("plan", "--json", *overrides, env=environment)
        assert json.loads(said)["totals"]["cells"] == cells, name
    if store:
        name = "plan, demo's data, a grid, SmolLM2-135M"
        environment = {"FTSUITE_STORE": str(store.resolve())}
        found[name], _ = command("plan", "--json", *grid, env=environment)
    return found


def read(store: Path, cells: int) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """List, show, compare and report a finished study; also how large everything is."""
    written = [sys.executable, __file__, "--cells", str(cells), "--write", str(store)]
    subprocess.run(written, check=True)
    records = [p for p in (store / "studies" / STUDY).glob("*.json") if p.name != "study.json"]
    assert len(records) == cells
    runs = sorted(path.stem for path in records)
    sizes = {"bytes of the records": sum(path.stat().st_size for path in records)}
    found, out = {}, store / "report"
    for words in (
        ("runs",),
        ("runs", "--all"),
        ("runs", "--json"),
        ("show", runs[0]),
        ("compare", runs[0], runs[-1]),
        ("report", STUDY, "--out", str(out)),
    ):
        name = " ".join(word for word in words if word not in (*runs, STUDY, "--out", str(out)))
        found[name], said = command(*words, env={"FTSUITE_STORE": str(store)})
        sizes[f"lines of {name}"] = said.count("\n")
    sizes |= {f"bytes of {path.name}": path.stat().st_size for path in sorted(out.iterdir())}
    return found, sizes


def command(*words: str, env: dict[str, str] | None = None) -> tuple[dict[str, float], str]:
    """Run a command of ftsuite; its wall time, the peak of its memory, and what it printed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftsuite.cli", *words],
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            stdout=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        text = said.read().decode()
    if process.returncode:
        raise SystemExit(f"bench: ftsuite {' '.join(words)} exited with {process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(seconds, 3), "bytes": peak}, text


def make_model(folder: Path) -> None:
    """Write a tiny model, in a process of its own: a child's peak starts at its parent's."""
    code = "import sys, pathlib, tiny; tiny.save_tiny_model(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)


def write_study(store: Path, cells: int) -> None:
    """Write a finished study: the schema is the records' own, the numbers are drawn."""
    sys.path.insert(0, str(ROOT / "tests"))
    synthetic: Any = import_module("synthetic")
    folder = store / "studies" / STUDY
    base = _scores(synthetic, 0, 0.3)
    made = []
    for number in range(cells):
        record = _record(synthetic, number, base)
        jsonfile.write(folder / f"{record.run_id}.json", record)
        # The manifest needs no more of it.
        made.append(dataclasses.replace(record, base=None, tuned=None, train=None, documents=()))
    manifest = dataclasses.replace(synthetic.make_study(*made), study=STUDY)
    jsonfile.write(folder / "study.json", manifest)


def _record(synthetic: Any, number: int, base: Any) -> Any:
    from ftsuite import config as cfg
    from ftsuite.analysis.compare import apply_gates, compare_scores

    r, rate, seed = 1 + number % 10, 1 + number // 10 % 10, number // 100
    settings = {"lora.r": r, "train.learning_rate": f"{rate}e-05", "train.seed": seed}
    overrides = tuple(f"{name}={value}" for name, value in settings.items())
    names = list(METRICS)
    plain = synthetic.make_config(
        tasks=[name.partition("/")[0] for name in names],
        limits={},
        rank_by=names[0],
        headline=names[1],
        watch=names[4:6],
    )
    plain |= {"study": STUDY, "gates": {"max_worse": {names[4]: 0.03}, "alpha": 0.05}}
    plain["lora"]["r"] = r
    plain["train"] |= {"learning_rate": rate * 1e-5, "seed": seed}
    # As a sweep would have it: larger ranks and rates help until they do not, and seeds differ.
    mean = 0.5 + 0.02 * r + 0.04 * rate - 0.003 * rate**2 + random.Random(number).gauss(0, 0.03)
    tuned = _scores(synthetic, number + 1, mean)
    comparisons = compare_scores(base, tuned)
    record = synthetic.make_record(
        ", ".join(overrides), r=r, seed=number, seconds=90.0 + number % 7, config=plain
    )
    return dataclasses.replace(
        record,
        study=STUDY,
        overrides=overrides,
        base=base,
        tuned=tuned,
        train=dataclasses.replace(
            record.train, curve=synthetic._curve(CURVE_POINTS, number, 0.2 + 0.3 / r)
        ),
        comparisons=comparisons,
        gates=apply_gates(comparisons, cfg.GatesConfig(**plain["gates"])),
        documents=tuple(_documents(name, number) for name in names if "acc" in name),
    )


def _scores(synthetic: Any, seed: int, mean: float) -> Any:
    metrics = tuple(
        synthetic.make_metric(
            name,
            1.2 - 0.1 * mean if name.endswith("bits_per_byte") else mean,
            n=DOCUMENTS,
            seed=seed * 101 + place,
            split=split,
        )
        for place, (name, split) in enumerate(METRICS.items())
    )
    return dataclasses.replace(synthetic.make_scores({}, seed=seed), metrics=metrics)


def _documents(name: str, seed: int) -> Any:
    from ftsuite.docrecords import ConfusionRow, DocumentRow, DocumentTable, LabelRow

    def rows(first: int) -> tuple[DocumentRow, ...]:
        return tuple(
            DocumentRow(
                number=first + place,
                question=f"Question {first + place}: " + "how do I change my address? " * 3,
                expected="address",
                base=f"answer {seed % 7}",
                tuned="address",
                base_value=0.0,
                tuned_value=1.0,
            )
            for place in range(ROWS)
        )

    task, _, metric = name.partition("/")
    labels = tuple(
        LabelRow(label=f"label {n}", n=18, base_right=5, tuned_right=14, gained=10, lost=1)
        for n in range(10)
    )
    confusions = tuple(
        ConfusionRow(expected=f"label {n}", answered=f"label {n + 1}", base=4, tuned=1)
        for n in range(10)
    )
    return DocumentTable(
        task=task,
        metric=metric,
        n=DOCUMENTS,
        won=90,
        lost=12,
        same=DOCUMENTS - 102,
        won_documents=rows(0),
        lost_documents=rows(90),
        labels=labels,
        confusions=confusions,
    )


if __name__ == "__main__":
    main()
