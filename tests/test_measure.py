from __future__ import annotations

import threading
import time

import pytest

from ftsuite.measure import SAMPLE_SECONDS, measure

MEGABYTE = 1_000_000


def test_peak_is_that_of_the_block_even_after_memory_is_freed() -> None:
    with measure() as before:
        time.sleep(2 * SAMPLE_SECONDS)
    with measure() as usage:
        # Written to, or else the kernel gives no pages.
        held = bytearray(b"x" * (200 * MEGABYTE))
        time.sleep(3 * SAMPLE_SECONDS)
        del held
    assert usage.memory_bytes - before.memory_bytes > 150 * MEGABYTE
    with measure() as after:
        time.sleep(2 * SAMPLE_SECONDS)
    assert after.memory_bytes < usage.memory_bytes - 150 * MEGABYTE


def test_short_block_is_measured_too() -> None:
    with measure() as usage:
        pass
    assert usage.memory_bytes > MEGABYTE


def test_error_passes_through_and_the_thread_ends() -> None:
    threads = threading.active_count()
    with pytest.raises(ValueError, match="inside"), measure() as usage:
        raise ValueError("inside")
    assert threading.active_count() == threads
    assert usage.memory_bytes > MEGABYTE


def test_no_device_memory_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with measure() as usage:
        torch.ones(1000)
    assert usage.device_bytes == 0
