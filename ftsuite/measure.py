"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_SECONDS = 0.05
"""How often the resident set is read; a shorter spike can be missed."""


@dataclass(slots=True)
class Usage:
    """Highest memory so far, in bytes."""

    memory_bytes: int = 0
    device_bytes: int = 0


@contextmanager
def measure() -> Iterator[Usage]:
    """Sample this process's resident set, and CUDA's own peak where torch is loaded."""
    usage = Usage()
    stop = threading.Event()
    process = psutil.Process()

    def sample() -> None:
        while True:
            usage.memory_bytes = max(usage.memory_bytes, process.memory_info().rss)
            if stop.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=sample, daemon=True)
    _reset_device_peak()
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
        usage.device_bytes = _device_peak()


def _reset_device_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def device_bytes() -> int:
    """Memory allocated on the accelerator now; 0 where torch is not loaded or has none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    now: int = torch.cuda.memory_allocated()
    return now


def _device_peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    peak: int = torch.cuda.max_memory_allocated()
    return peak
