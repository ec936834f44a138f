"""Tokenizer and model of a folder, fitted to each other; refused where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.choices import Attention, PadToken
from ftsuite.errors import BackendUnavailable, ConfigError, DataError
from ftsuite.models import modelfolder

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import ModelConfig

NEW_PAD_TOKEN = "<|pad|>"


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Load the tokenizer in `folder` with a pad token as the configuration says.

    Raises:
        ConfigError: there is no tokenizer, it has no end token to pad with, or it has tokens that
            the model in `folder` has no embedding for.
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
    modelfolder.require_embeddings(folder, tokenizer, config.pad_token)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer with its template, the same bytes whatever the environment.

    transformers keeps what it was loaded with among the settings, such as `local_files_only`, which
    is set where the Hub is switched off.
    """
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)


def load_model(
    folder: Path, tokenizer: Any, config: ModelConfig, *, device: str, dtype: str
) -> Any:
    """Load the causal language model in `folder` onto `device`, embeddings fitted to `tokenizer`.

    On torch's meta device it has names, shapes and configuration, checked as ever, and no weights.

    Raises:
        BackendUnavailable: torch cannot use `device`, or the attention kernel is not installed.
        ConfigError: the attention kernel is not for `device` or `dtype`.
        DataError: the weights cannot be read as safetensors, or are not those of config.json.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"backend.device = 'cuda': torch {torch.__version__} cannot use this machine's GPU; "
            "install a matching torch, or set backend.device=cpu"
        )
    if attention(config) == "flash_attention_2" and (device != "cuda" or dtype == "float32"):
        raise ConfigError(
            "model.attn_implementation",
            "flash_attention_2",
            f"works on CUDA GPUs in bfloat16 or float16, not on {device} in {dtype}; set sdpa",
        )
    try:
        model: Any
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=attention(config),
            output_loading_info=True,
            # Weights are not read onto it at all.
            device_map="meta" if device == "meta" else None,
            # transformers' own error only points at a report that it logs.
            ignore_mismatched_sizes=True,
        )
    except ImportError as error:
        raise attention_missing(config, error) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model does not load: {error}") from error
    if wrong := sorted(found["mismatched_keys"]):
        name, stored, wanted = wrong[0]
        raise DataError(
            f"{folder}: {name} has the shape {list(stored)} in the weights, and {list(wanted)} by "
            f"config.json ({len(wrong)} differ); put the weights' own config.json there"
        )
    if missing := sorted(found["missing_keys"]):
        # transformers only warns, and draws such weights at random.
        raise DataError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} are missing); save the model "
            "again"
        )
    spare = modelfolder.NOT_NEEDED
    if unused := sorted(key for key in found["unexpected_keys"] if not spare.search(key)):
        # Here too: with fewer layers in config.json, the rest of the weights would be left out.
        raise DataError(
            f"{folder}: config.json has no place for {unused[0]} ({len(unused)} tensors of the "
            "weights are left over), so it describes another model; put the weights' own "
            "config.json there"
        )
    if config.pad_token is PadToken.new:
        _make_room(model, tokenizer.pad_token_id)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device)


def outline(folder: Path, config: ModelConfig) -> Any:
    """The model in `folder` with shapes and no weights (torch's meta device).

    Raises:
        BackendUnavailable: the attention kernel is not installed.
        DataError: config.json describes no model that transformers has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder), attn_implementation=attention(config)
            )
    except ImportError as error:
        raise attention_missing(config, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: the model does not load: {error}") from error


def attention(config: ModelConfig) -> str | None:
    """The attention kernel by the name that transformers gives it; None lets it choose."""
    kernel = config.attn_implementation
    return None if kernel is Attention.auto else kernel.value


def attention_missing(config: ModelConfig, error: ImportError) -> BackendUnavailable:
    """The error for a package that loading the model asked for in vain."""
    reason = str(error).strip().splitlines()[0]
    return BackendUnavailable(
        f"model.attn_implementation = {config.attn_implementation.value!r}: {reason}; install what "
        "it names, or set model.attn_implementation=sdpa"
    )


def plain_generation(model: Any, ends: list[int], pad_token_id: int) -> tuple[str, str]:
    """Make `model` answer greedily, whatever its own generation_config says.

    Settings such as repetition_penalty or suppress_tokens would change answers that tasks and
    probes call greedy, and a template or tuning is not what changed them.

    Args:
        model: causal language model.
        ends: ids of the tokens that end an answer (`turns.end_tokens`).
        pad_token_id: what pads the rows of a batch that have ended.

    Returns:
        What is used, and what of the model's own is not, in words.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    plain = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=pad_token_id
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


def _make_room(model: Any, token: int) -> None:
    """Add a row for a new pad token, the mean of the old ones.

    transformers draws such rows at random; a fixed rule gives every stage the same model.
    """
    import torch

    old = model.get_input_embeddings().num_embeddings
    if token < old:
        return
    # A multiple of 8 keeps the matrix products on the tensor cores.
    model.resize_token_embeddings(token + 1, pad_to_multiple_of=8, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[old:] = layer.weight[:old].mean(dim=0)
