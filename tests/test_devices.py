"""Device and number format: what is chosen, and what is refused."""

from __future__ import annotations

import pytest

from ftsuite import devices
from ftsuite.choices import Device, Dtype
from ftsuite.config import BackendConfig, ModelConfig
from ftsuite.errors import BackendUnavailable

CUDA, MPS, BOTH, NONE = (True, False), (False, True), (True, True), (False, False)


def machine(monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool]) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: has[0])
    monkeypatch.setattr(devices, "has_mps", lambda: has[1])


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
    found = devices.resolve(BackendConfig(device=asked), ModelConfig())
    assert (found.device, found.dtype) == (device, dtype)


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16, Dtype.float16])
@pytest.mark.parametrize("has", [NONE, CUDA])
def test_a_configured_number_format_is_kept(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool], dtype: Dtype
) -> None:
    machine(monkeypatch, has)
    assert devices.resolve(BackendConfig(), ModelConfig(dtype=dtype)).dtype == dtype.value


@pytest.mark.parametrize(("has", "asked"), [(MPS, Device.cuda), (CUDA, Device.mps)])
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool], asked: Device
) -> None:
    machine(monkeypatch, has)
    with pytest.raises(BackendUnavailable) as caught:
        devices.resolve(BackendConfig(device=asked), ModelConfig())
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
