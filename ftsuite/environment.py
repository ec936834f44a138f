"""Environment variables that change what the libraries compute, behind the configuration's back.

A result's key is made of the configuration. What a variable changes is in no key, so such a
variable is refused, by name, before anything is computed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ftsuite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
"""accelerate takes mixed precision, accumulation, devices and sharding from these."""
NAMES = (
    "DNNL_DEFAULT_FPMATH_MODE",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "XLA_DOWNCAST_BF16",
    "XLA_USE_BF16",
)
"""Variables that make float32 products less exact."""
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Set by torchrun and MPI: the number of processes, over which accelerate would split a batch."""
OFF = ("", "0", "false", "no", "none")


def check(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that would change a result.

    Raises:
        ConfigError: names the first one, its value and what to do.
    """
    for name, value in sorted(variables.items()):
        if name in NAMES and value:
            raise ConfigError(
                name, value, f"the environment variable changes results; unset it: unset {name}"
            )
        if name.startswith(PREFIXES) and value.strip().lower() not in OFF:
            raise ConfigError(
                name,
                value,
                "the environment variable changes how training computes, and no result would "
                f"say so; use the settings of train and model instead, and unset {name} (a start "
                "by `accelerate launch` sets such variables: start with `python -m ftsuite`)",
            )
        if name in SIZES and value.strip() not in ("", "1"):
            raise ConfigError(name, value, _one_process(name))
        if name == "LOCAL_RANK" and value.strip() not in ("", "-1"):
            raise ConfigError(name, value, _one_process(name))


def _one_process(name: str) -> str:
    return (
        "a run is one process on one device; start with `python -m ftsuite`, without torchrun or "
        f"mpirun, and unset {name}"
    )
