"""`ftsuite run`: the Hydra entry under another name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace


def run(options: Namespace) -> int:
    """Run a study and return the exit code."""
    from ftsuite.studies import entry

    return entry.run(options.overrides)
