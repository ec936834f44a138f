"""Whether the Hub and the package registry answer; asked only where the user says so."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from typing import Any

from ftsuite.errors import redact

SECONDS = 15
"""How long to wait for an answer."""


def hub() -> dict[str, Any]:
    """Ask the Hub for one small answer."""
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/api/models/HuggingFaceTB/SmolLM2-135M-Instruct"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS):
            return {"reachable": True, "reason": ""}
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        return {"reachable": False, "reason": redact(str(error))}


def registry(installer: str | None, requirement: str) -> dict[str, Any]:
    """Let the installer look up a wheel, with its own settings, without installing anything."""
    if installer is None:
        return {"reachable": False, "reason": "neither uv nor pip is there"}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["install", "--quiet", "--dry-run", "--no-deps", "--target", scratch]
        command = [sys.executable, "-m", "pip", *arguments, requirement]
        if installer == "uv":
            command = ["uv", "pip", *arguments, "--python", sys.executable, requirement]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=4 * SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"reachable": False, "reason": f"no answer within {4 * SECONDS} s"}
    # An index URL may hold a password, so the installer's own words are not repeated.
    reason = "" if done.returncode == 0 else f"{installer} did not find {requirement}"
    return {"reachable": done.returncode == 0, "reason": reason}
