"""Which device and number format a run uses, found out without importing torch.

A sweep whose results are all stored must not pay torch's import, but device and dtype are part
of every key.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.choices import Device, Dtype
from ftsuite.errors import BackendUnavailable

if TYPE_CHECKING:
    from ftsuite.config import BackendConfig, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Where and in which number format a cell computes."""

    device: str
    """cuda, mps or cpu."""
    dtype: str
    """float32, bfloat16 or float16."""
    device_name: str = ""
    """The GPU's name: two kinds of GPU take other kernels and round differently.

    Empty for CPUs: there the default is float32, whose last bits alone differ between models, and
    the nodes of one cluster have many models. Their names would split a store that can be shared.
    """


def resolve(backend: BackendConfig, model: ModelConfig) -> Compute:
    """Choose device and dtype: the configured ones, or what this machine is best at.

    bfloat16 on CUDA GPUs, float32 on CPUs and MPS: there bfloat16 is up to three times slower
    without bf16 units, and merging an adapter in it costs accuracy (docs/architecture.md).

    Raises:
        BackendUnavailable: a device is asked for that this machine does not have.
    """
    device = backend.device.value
    if backend.device is Device.auto:
        device = "cuda" if has_cuda() else "mps" if has_mps() else "cpu"
    elif (device == "cuda" and not has_cuda()) or (device == "mps" and not has_mps()):
        raise BackendUnavailable(
            f"backend.device = {device!r}: this machine has no such device that torch "
            f"{metadata.version('torch')} can use; set backend.device=auto"
        )
    dtype = model.dtype.value
    if model.dtype is Dtype.auto:
        dtype = "bfloat16" if device == "cuda" else "float32"
    name = _cuda_name() if device == "cuda" else ""
    return Compute(device=device, dtype=dtype, device_name=name)


@functools.cache
def has_cuda() -> bool:
    """Whether the CUDA driver shows a device and torch is not a CPU build."""
    if metadata.version("torch").endswith("+cpu"):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def has_mps() -> bool:
    """Whether this is a Mac with Apple silicon."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


@functools.cache
def describe(device: str) -> str:
    """Device kind and name for people, such as 'cpu: AMD EPYC, 2 cores'."""
    if device == "cuda":
        return f"cuda: {_cuda_name()}"
    cores = f"{os.cpu_count()} cores"
    return f"{device}: {_cpu_name()}, {cores}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _cuda_name() -> str:
    """Name of the first GPU that the driver shows, which is the one that runs take.

    Raises:
        BackendUnavailable: the driver does not tell.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    name = ctypes.create_string_buffer(128)
    handle = ctypes.c_int(0)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), 0)
        or driver.cuDeviceGetName(name, len(name), handle)
    )
    if failed or not name.value:
        raise BackendUnavailable(
            f"backend.device = 'cuda': the driver does not tell the GPU's name (error {failed}); "
            "check the driver, or set backend.device=cpu"
        )
    return name.value.decode()
