"""lm-eval's own command line, for comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from conftest import PATIENCE, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The standard errors of f1 and mcc alone take the command line minutes; they are not compared.
COMMAND_LINE = """
import lm_eval.evaluator_utils
lm_eval.evaluator_utils.stderr_for_metric = lambda **_: None
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def results(model: Path, folder: Path, names: Sequence[str], out: Path) -> dict[str, Any]:
    """What `lm_eval run` reports of the tasks in a folder: task → "metric,filter" → value."""
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    arguments += ["--tasks", ",".join(names), "--include_path", str(folder), "--device", "cpu"]
    arguments += ["--batch_size", "4", "--apply_chat_template", "--output_path", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=PATIENCE,
        env=environment() | {"HF_DATASETS_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(path.read_text())["results"]
    return found
