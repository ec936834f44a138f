"""Lines about cells, and the libraries kept quiet beside them (display.py shows running stages)."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ftsuite.errors import redact

BAR_SWITCHES = (
    ("huggingface_hub.utils", "disable_progress_bars"),
    ("datasets.utils", "disable_progress_bars"),
    ("transformers.utils.logging", "disable_progress_bar"),
)
"""Module and function that switch a library's bars off."""


def quiet_libraries() -> None:
    """Keep the libraries' own bars and warnings out of the display; their errors still show."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
    # Libraries read these variables when they are imported; some may be there already.
    for module, function in BAR_SWITCHES:
        if module in sys.modules:
            getattr(sys.modules[module], function)()
    for library in ("lm_eval", "transformers", "datasets", "trl", "peft", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)


def note(cell: str, text: str) -> None:
    """Print one line of cell `cell`."""
    print(redact(f"[{cell}] {text}"), flush=True)
