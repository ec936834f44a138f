"""What a model's folder says of itself: which files it lacks, its vocabulary, its context.

Reads JSON alone, no weights, and needs no torch: a model that cannot work is refused at once.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ftsuite.choices import PadToken
from ftsuite.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The two names that transformers loads safetensors by: one file, or an index of shards."""
NOT_NEEDED = re.compile(
    # Buffers that old checkpoints kept and the model computes itself.
    r"(rotary_emb|rotary)\.inv_freq$|(attn|attention)\.(masked_)?bias$"
    # Parts that text alone does not pass through: image and sound, prediction of several tokens.
    r"|(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|mtp)\."
)
"""Weights that a checkpoint may hold and the model need not take."""
CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "n_ctx",
)
STRETCHED = ("yarn", "linear", "dynamic")
"""Kinds of rotary scaling that reach beyond the number in the configuration, by `factor`.

Llama 3's and longrope's configurations hold the stretched number already.
"""


def lacking(folder: Path) -> str | None:
    """Say what the folder lacks to be a whole model, or None where it is one."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return "a tokenizer (tokenizer.json)"
    if (folder / WEIGHTS).is_file():
        return None
    if not (folder / INDEX).is_file():
        return f"{WEIGHTS}, or {INDEX} with its shards"
    shards = sorted(set(_read(folder / INDEX).get("weight_map", {}).values()))
    if not shards:
        return f"the weight_map of {INDEX}"
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} ({len(missing)} of the {len(shards)} files that {INDEX} names)"
    return None


def context_length(folder: Path) -> int | None:
    """Longest sequence the model was made for, in tokens; None where it names no limit."""
    config = _text_config(folder)
    named: list[int] = [n for f in CONTEXT_FIELDS if isinstance(n := config.get(f), int) and n > 0]
    if not named:
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in STRETCHED:
        return named[0]
    original = rope.get("original_max_position_embeddings") or named[0]
    return max(named[0], int(original * float(rope.get("factor") or 1)))


def vocabulary(folder: Path) -> int | None:
    """Rows of the model's embedding, None where config.json does not say."""
    if not (folder / "config.json").is_file():
        return None
    found = _text_config(folder).get("vocab_size")
    return found if isinstance(found, int) else None


def require_embeddings(folder: Path, tokenizer: Any, pad: PadToken) -> None:
    """Refuse a tokenizer whose texts need more embeddings than config.json's `vocab_size`.

    A special token beyond them may stay where the template has no use for it, as Gemma 3 1B's for
    images; training refuses rows that hold its text. `pad_token=new` adds one that
    `models.load_model` gives a row.

    Args:
        folder: of the model.
        tokenizer: with its pad token.
        pad: whether that is the end token or a new one.

    Raises:
        ConfigError: names such a token.
    """
    if (rows := vocabulary(folder)) is None:
        return
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = f"{tokenizer.chat_template} {tokenizer.bos_token} {tokenizer.eos_token}"
    beyond = [
        token
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and (i not in special or token in used)
    ]
    if beyond:
        raise ConfigError(
            "model.id",
            str(folder),
            f"the tokenizer has {len(beyond)} tokens that the model has no embedding for (such as "
            f"{beyond[0]!r}; it has {rows} embeddings); put the model's own tokenizer there",
        )
    if pad is PadToken.eos and tokenizer.pad_token_id >= rows:
        raise ConfigError(
            "model.pad_token", "eos", f"the model has no embedding for {tokenizer.pad_token!r}"
        )


def _text_config(folder: Path) -> dict[str, Any]:
    """The part of config.json that describes the language model."""
    config = _read(folder / "config.json")
    inner = config.get("text_config")
    return config | inner if isinstance(inner, dict) else config


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{path.name} cannot be read ({error}); save the model again"
        raise ConfigError("model.id", str(path.parent), reason) from error
    if not isinstance(found, dict):
        reason = f"{path.name} holds no JSON object; save the model again"
        raise ConfigError("model.id", str(path.parent), reason)
    return found
