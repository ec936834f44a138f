"""Where and with what a run was made: versions, git state, machine. Imports nothing heavy."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from importlib import metadata

from ftsuite import __version__, devices
from ftsuite.records import Provenance

PACKAGES = (
    "accelerate",
    "datasets",
    "hydra-core",
    "lm_eval",
    "numpy",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def provenance(target: devices.Target, *, started_at: str, command: str) -> Provenance:
    """Describe this machine and this checkout.

    Args:
        target: device and dtype of the run.
        started_at: UTC, ISO 8601.
        command: the command that the study was started with.
    """
    return Provenance(
        ftsuite=__version__,
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
        python=platform.python_version(),
        platform=f"{sys.platform} {platform.machine()}",
        device=devices.describe(target.device),
        dtype=target.dtype,
        versions=versions(*PACKAGES),
        started_at=started_at,
        finished_at=now(),
        command=command,
    )


def versions(*names: str) -> dict[str, str]:
    """Installed versions of packages, without importing them."""
    return {name: metadata.version(name) for name in names}


def _git(*arguments: str) -> str:
    """Output of a git command in the working directory; empty where there is no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
