"""Facts about this machine: packages, devices, disks, caches. Never a secret's value."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import devices
from ftsuite.choices import Source
from ftsuite.commands.cached import cached_base
from ftsuite.config import BackendConfig, ModelConfig
from ftsuite.errors import SECRET_VARIABLES, StoreError, one_line
from ftsuite.models import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def packages() -> dict[str, dict[str, str | None]]:
    """Version of every required package, None where it is missing, and what is required.

    Raises:
        metadata.PackageNotFoundError: ftsuite itself is not installed.
    """
    return {
        requirement.name: {"version": _version(requirement.name), "wanted": wanted}
        for requirement, wanted in _requirements()
    }


def unfit(found: dict[str, dict[str, str | None]]) -> list[str]:
    """Packages that are missing or of a version that was not asked for, in words."""
    from packaging.specifiers import SpecifierSet

    words = []
    for name, facts in found.items():
        version, wanted = facts["version"], facts["wanted"]
        if version is None:
            words.append(f"{name} is missing ({wanted})")
        elif not SpecifierSet(wanted or "").contains(version, prereleases=True):
            words.append(f"{name} {version} is not {wanted}")
    return words


def _requirements() -> Iterator[tuple[Any, str]]:
    from packaging.requirements import Requirement

    for line in metadata.requires("ftsuite") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, str(requirement.specifier)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """CPU, cores, memory in bytes, and the GPUs that torch can use."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu": devices.describe("cpu"),
        "cores": os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "gpus": _gpus(),
        "mps": devices.has_mps(),
        "nvidia_driver": NVIDIA_DRIVER.exists(),
    }


def _gpus() -> list[dict[str, Any]]:
    if not devices.has_cuda():
        return []
    import torch

    return [
        {"name": facts.name, "memory_bytes": facts.total_memory}
        for facts in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]


def chosen() -> dict[str, str]:
    """Device and dtype that backend.device=auto and model.dtype=auto stand for."""
    compute = devices.resolve(BackendConfig(), ModelConfig(), devices.probe())
    return {"device": compute.device, "dtype": compute.dtype}


def secrets() -> dict[str, bool]:
    """Which secret variables are set; their values stay where they are."""
    return {name: bool(os.environ.get(name)) for name in SECRET_VARIABLES}


def disk(folder: Path) -> dict[str, Any]:
    """Free bytes of the disk that holds `folder`, or will hold it, and whether one may write."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return {
        "path": str(folder),
        "free_bytes": shutil.disk_usage(there).free,
        "writable": there.is_dir() and os.access(there, os.W_OK),
    }


def caches(root: Path) -> dict[str, Any]:
    """Sizes of the store by stage, the Hub's cache, and which wheels are in the store."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    stages = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    converted, damaged = dict.fromkeys(embedded.MODELS, False), []
    for name in converted:
        try:
            converted[name] = _is_converted(name, root)
        except StoreError as error:
            damaged.append(one_line(error))
    return {
        "store_bytes": {path.name: _size(path) for path in stages},
        "hub": {
            "path": str(hub),
            "models": sorted(
                path.name.removeprefix("models--").replace("--", "/")
                for path in hub.glob("models--*")
            ),
        },
        "embedded": converted,
        "damaged": damaged,
        "standard_suite": any(root.glob("standard-data/*/result.json")),
    }


def _is_converted(name: str, root: Path) -> bool:
    config = ModelConfig(source=Source.embedded, embedded=name)
    return cached_base(config, root) is not None


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # A run may rename or remove what it is working on.
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def installer() -> str | None:
    """The program that fetches wheels: uv, or else pip."""
    if shutil.which("uv"):
        return "uv"
    return "pip" if _version("pip") else None


def python() -> str:
    """Version and platform."""
    return f"{platform.python_version()}, {sys.platform} {platform.machine()}"
