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
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.choices import Device, Dtype
from ftsuite.errors import BackendUnavailable

if TYPE_CHECKING:
    from ftsuite.config import BackendConfig, ModelConfig

DTYPES = ("float32", "bfloat16", "float16")
LIBRARIES = (
    *("accelerate", "genson", "jsonschema", "lm_eval", "numpy", "peft", "rensa", "rouge-score"),
    *("sacrebleu", "safetensors", "scikit-learn", "tokenizers", "torch", "transformers", "trl"),
)
"""What stages compute with; each stage's target names those that move its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where, in which number format and with which libraries a stage is computed."""

    device: str
    """cuda, mps or cpu."""
    dtype: str
    """float32, bfloat16 or float16."""
    device_name: str = ""
    """The GPU's name: two kinds of GPU take other kernels and round differently.

    Empty for CPUs: there the default is float32, whose last bits alone differ between models, and
    the nodes of one cluster have many models. Their names would split a store that can be shared.
    """
    quantisation: str = "none"
    """How the base's weights are stored while they are computed with."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that the stage computes with."""
    environment: str = field(default="local", metadata={"identity": False})
    """Name of the environment that computes; what it has installed is in `versions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What an environment that computes tells of itself (`python -m ftsuite.worker --probe`)."""

    name: str
    devices: tuple[str, ...]
    """Devices that its torch can use, the best first."""
    device_name: str
    """The GPU's name; empty without one."""
    versions: dict[str, str]
    """Of the libraries that stages compute with."""


def probe() -> Environment:
    """Tell what this environment can compute with; imports no library."""
    devices = [name for name, there in (("cuda", has_cuda()), ("mps", has_mps())) if there]
    return Environment(
        name="local",
        devices=(*devices, "cpu"),
        device_name=_cuda_name() if "cuda" in devices else "",
        versions={name: metadata.version(name) for name in LIBRARIES},
    )


def resolve(backend: BackendConfig, model: ModelConfig, there: Environment) -> Target:
    """Choose device and dtype: the configured ones, or what the environment is best at.

    bfloat16 on CUDA GPUs, float32 on CPUs and MPS: there bfloat16 is up to three times slower
    without bf16 units, and merging an adapter in it costs accuracy (docs/architecture.md).

    Returns:
        The target with all libraries' versions; `with_libraries` leaves those of one stage.

    Raises:
        BackendUnavailable: a device is asked for that the environment does not have.
    """
    device = backend.device.value
    if backend.device is Device.auto:
        device = there.devices[0]
    elif device not in there.devices:
        raise BackendUnavailable(
            f"backend.device = {device!r}: this machine has no such device that torch "
            f"{there.versions['torch']} can use; set backend.device=auto"
        )
    dtype = model.dtype.value
    if model.dtype is Dtype.auto:
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Target(
        device=device,
        dtype=dtype,
        device_name=there.device_name if device == "cuda" else "",
        versions=there.versions,
        environment=there.name,
    )


def with_libraries(target: Target, *names: str) -> Target:
    """The target with the versions of these libraries alone."""
    return replace(target, versions={name: target.versions[name] for name in names})


def require(target: Target, here: Environment) -> None:
    """Refuse to compute for another target than this environment is.

    Raises:
        BackendUnavailable: names what differs.
    """
    remedy = "plan the study again where it is computed, or compute it in the planned environment"
    wrong = [
        f"{name} is {here.versions.get(name, 'missing')} here, not {version}"
        for name, version in target.versions.items()
        if here.versions.get(name) != version
    ]
    if target.device not in here.devices:
        wrong.append(f"no device {target.device} is here ({', '.join(here.devices)} is)")
    elif target.device == "cuda" and target.device_name != here.device_name:
        wrong.append(f"the GPU is {here.device_name} here, not {target.device_name}")
    if target.dtype not in DTYPES:
        wrong.append(f"dtype {target.dtype} is none of {', '.join(DTYPES)}")
    if target.quantisation != "none":
        wrong.append(f"quantisation {target.quantisation} cannot be computed here")
    if wrong:
        raise BackendUnavailable(f"the order is for another target: {'; '.join(wrong)}; {remedy}")


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


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without."""
    if not has_cuda():
        return ()
    named = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    count = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    return tuple(name for name in named if name) or tuple(map(str, range(count.value)))


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
