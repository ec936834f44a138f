"""Variables that would change results without a setting saying so."""

from __future__ import annotations

import pytest

from ftsuite import environment
from ftsuite.errors import ConfigError

REFUSED = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "1",
    "FSDP_OFFLOAD_PARAMS": "true",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "4",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        environment.check({"PATH": "/bin", name: REFUSED[name]})
    line = str(caught.value)
    assert line.startswith(f"{name} = {REFUSED[name]!r}: ")
    assert f"unset {name}" in line and "\n" not in line


def test_what_changes_nothing_is_let_through() -> None:
    environment.check(
        {
            "ACCELERATE_MIXED_PRECISION": "no",
            "ACCELERATE_USE_CPU": "False",
            "FSDP_VERSION": "",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "-1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "1",
            "HF_HUB_OFFLINE": "1",
        }
    )


def test_the_sweep_is_refused_before_anything_runs(
    new_command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = new_command("environment")  # type: ignore[operator]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert command.here() != 0
    assert "ACCELERATE_MIXED_PRECISION = 'bf16'" in capsys.readouterr().err
    assert not list(command.store.glob("*/*/result.json"))
    assert not list(command.store.glob("studies/*/*.json"))
