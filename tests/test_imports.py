"""What is imported when: a command line is answered, and a sweep refused, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# This checkout, and not one that is installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
HEAVY = {"torch", "transformers", "datasets", "lm_eval", "peft", "trl", "accelerate", "wandb"}


def heavy_after(code: str, folder: Path) -> set[str]:
    """The heavy packages that a fresh Python has imported after `code`."""
    script = f"import sys\n{code}\nsys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return HEAVY & set(done.stderr.splitlines())


def test_no_module_imports_a_heavy_package_before_it_works(tmp_path: Path) -> None:
    """All of them: what needs torch imports it inside the function that does."""
    package = REPOSITORY / "ftsuite"
    paths = sorted(package.rglob("*.py"))
    names = [str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".") for path in paths]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    assert "ftsuite.reporting.report" in names
    assert heavy_after("\n".join(f"import {name}" for name in names), tmp_path) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job", "+sweep=lora_rank"],
        ["+sweep=lora_rank,packing", "lora.r=4,0"],
        ["lora.rr=1"],
    ],
)
def test_the_command_line_is_read_without_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "from ftsuite.__main__ import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit:\n    pass"
    )
    assert heavy_after(code, tmp_path) == set()


def test_help_shows_sweeps_groups_and_examples(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ftsuite", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "sweep: learning_rate, lora_rank, model_size, packing, seed, template" in done.stdout
    assert "template: chatml, dolly, llama3, model, vicuna" in done.stdout
    assert done.stdout.count("python -m ftsuite ") >= 4
    assert "executor.workers=2" in done.stdout
    # Fits a terminal: the configuration is a --cfg job away.
    lines = done.stdout.rstrip().splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_the_configuration_and_writes_nothing(tmp_path: Path) -> None:
    import yaml

    done = subprocess.run(
        [sys.executable, "-m", "ftsuite", "--cfg", "job", "lora.r=3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["lora"]["r"] == 3
    assert list(tmp_path.iterdir()) == []
