"""Device and number format: what is chosen, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from bystage import CPU, recipe_of

from ftsuite import devices
from ftsuite.choices import Device, Dtype
from ftsuite.config import BackendConfig, ModelConfig
from ftsuite.errors import BackendUnavailable

if TYPE_CHECKING:
    from ftsuite.config import RunConfig

CUDA, MPS, BOTH, NONE = (True, False), (False, True), (True, True), (False, False)


def machine(monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool]) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: has[0])
    monkeypatch.setattr(devices, "has_mps", lambda: has[1])
    monkeypatch.setattr(devices, "_cuda_name", lambda: "NVIDIA H100")


def resolved(backend: BackendConfig, model: ModelConfig | None = None) -> devices.Target:
    return devices.resolve(backend, model or ModelConfig(), devices.probe())


@pytest.mark.parametrize(
    ("has", "asked", "device", "dtype"),
    [
        (NONE, Device.auto, "cpu", "float32"),
        (CUDA, Device.auto, "cuda", "bfloat16"),
        (MPS, Device.auto, "mps", "float32"),
        (BOTH, Device.auto, "cuda", "bfloat16"),
        (BOTH, Device.cpu, "cpu", "float32"),
        (BOTH, Device.mps, "mps", "float32"),
        (CUDA, Device.cuda, "cuda", "bfloat16"),
    ],
)
def test_the_machines_best_or_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool], asked: Device, device: str, dtype: str
) -> None:
    machine(monkeypatch, has)
    found = resolved(BackendConfig(device=asked))
    assert (found.device, found.dtype) == (device, dtype)
    # Names of CPUs would split the store.
    assert found.device_name == ("NVIDIA H100" if device == "cuda" else "")


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16, Dtype.float16])
@pytest.mark.parametrize("has", [NONE, CUDA])
def test_a_configured_number_format_is_kept(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool], dtype: Dtype
) -> None:
    machine(monkeypatch, has)
    assert resolved(BackendConfig(), ModelConfig(dtype=dtype)).dtype == dtype.value


@pytest.mark.parametrize(("has", "asked"), [(MPS, Device.cuda), (CUDA, Device.mps)])
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool], asked: Device
) -> None:
    machine(monkeypatch, has)
    with pytest.raises(BackendUnavailable) as caught:
        resolved(BackendConfig(device=asked))
    line = str(caught.value)
    assert line.startswith(f"backend.device = '{asked.value}': this machine has no such device")
    assert line.endswith("set backend.device=auto")


@pytest.fixture
def uncached() -> None:
    devices.has_cuda.cache_clear()


class Driver:
    """libcuda as ctypes shows it: calls return 0 for success."""

    def __init__(self, init: int, count: int) -> None:
        self.init, self.count = init, count

    def cuInit(self, _flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, pointer: object) -> int:
        pointer._obj.value = self.count  # type: ignore[attr-defined]
        return 0

    def cuDeviceGet(self, _pointer: object, _ordinal: int) -> int:
        return 0 if self.count else 101

    def cuDeviceGetName(self, name: object, _length: int, _handle: object) -> int:
        name.value = b"NVIDIA A100-SXM4-40GB"  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(
    ("torch", "driver", "expected"),
    [
        ("2.13.0+cu130", Driver(init=0, count=1), True),
        ("2.13.0", Driver(init=0, count=8), True),
        # A GPU that this torch cannot use.
        ("2.13.0+cpu", Driver(init=0, count=1), False),
        # A driver without a device: CUDA_VISIBLE_DEVICES="" or a broken installation.
        ("2.13.0", Driver(init=0, count=0), False),
        ("2.13.0", Driver(init=100, count=1), False),
        ("2.13.0", None, False),
    ],
)
@pytest.mark.usefixtures("uncached")
def test_cuda_needs_a_driver_a_device_and_a_torch_for_it(
    monkeypatch: pytest.MonkeyPatch, torch: str, driver: Driver | None, expected: bool
) -> None:
    def load(name: str) -> Driver:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(devices.metadata, "version", lambda _: torch)
    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    try:
        assert devices.has_cuda() is expected
    finally:
        devices.has_cuda.cache_clear()


def test_the_answer_is_torchs_own() -> None:
    import torch

    devices.has_cuda.cache_clear()
    assert devices.has_cuda() == torch.cuda.is_available()
    assert devices.has_mps() == torch.backends.mps.is_available()


def test_a_device_is_described_for_people() -> None:
    assert devices.describe("cpu").startswith("cpu: ")
    assert devices.describe("cpu").endswith(" cores")


def test_the_driver_names_the_gpu_or_says_that_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for driver, name in ((Driver(init=0, count=1), "A100"), (Driver(init=0, count=0), None)):
        devices._cuda_name.cache_clear()
        monkeypatch.setattr(devices.ctypes, "CDLL", lambda _, driver=driver: driver)
        try:
            if name:
                assert name in devices._cuda_name()
            else:
                with pytest.raises(BackendUnavailable, match="does not tell the GPU's name"):
                    devices._cuda_name()
        finally:
            devices._cuda_name.cache_clear()


def test_another_gpu_is_another_result_of_what_computes_on_it(tiny_config: RunConfig) -> None:
    keys = []
    for name in ("NVIDIA A100", "NVIDIA H100"):
        target = dataclasses.replace(CPU, device="cuda", dtype="bfloat16", device_name=name)
        keys.append({n: stage.key for n, stage in recipe_of(tiny_config, target).named()})
    shared = {stage for stage in keys[0] if keys[0][stage] == keys[1][stage]}
    assert shared == {"data"}
    assert len(keys[0]) == 8


def test_an_adapter_of_another_gpu_is_merged_alike(tiny_config: RunConfig) -> None:
    """The merge is computed on the CPU: beside its adapter, the GPU has no part in it."""
    adapter = recipe_of(tiny_config).adapter
    keys = {
        dataclasses.replace(recipe_of(tiny_config, target).merged, adapter=adapter).key
        for device in ("cpu", "cuda")
        for target in [dataclasses.replace(CPU, device=device, device_name=f"name of {device}")]
    }
    assert len(keys) == 1


def test_a_stage_is_computed_for_its_own_target_alone() -> None:
    here = devices.probe()
    there = dataclasses.replace(CPU, versions={"torch": here.versions["torch"]})
    devices.require(there, here)
    for change, said in (
        ({"versions": {"torch": "0.1"}}, "torch is .* here, not 0.1"),
        ({"versions": {"no-such-library": "1"}}, "no-such-library is missing here, not 1"),
        ({"device": "tpu"}, "no device tpu is here"),
        ({"dtype": "int8"}, "dtype int8 is none of float32, bfloat16, float16"),
        ({"quantisation": "nf4"}, "quantisation nf4 cannot be computed here"),
    ):
        with pytest.raises(BackendUnavailable, match=said):
            devices.require(dataclasses.replace(there, **change), here)


def test_a_stage_of_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, CUDA)
    here = devices.probe()
    target = resolved(BackendConfig())
    devices.require(target, here)
    with pytest.raises(BackendUnavailable, match="the GPU is NVIDIA H100 here, not NVIDIA A100"):
        devices.require(dataclasses.replace(target, device_name="NVIDIA A100"), here)
