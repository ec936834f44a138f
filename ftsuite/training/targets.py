"""Which layers the adapter changes: named ones are there, and are what LoRA can change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.errors import ConfigError

if TYPE_CHECKING:
    from ftsuite.config import LoraConfig

ALL = "all-linear"
FIELD = "lora.target_modules"
GATE_RATIO = 16
"""A layer this many times wider than high is a gate or a router (Qwen's shared_expert_gate has one
output). Under all-linear it does not limit the rank: whatever it is, the gate is trained whole."""


def check_names(config: LoraConfig) -> None:
    """Refuse `all-linear` beside names; needs no model.

    Raises:
        ConfigError: PEFT would take `all-linear` for the name of a layer, and leave it out.
    """
    names = list(config.target_modules)
    if ALL in names and len(names) > 1:
        raise ConfigError(
            FIELD, names, f"[{ALL}] stands alone: it takes every linear layer; leave out the rest"
        )


def check(model: Any, config: LoraConfig) -> None:
    """Refuse names that match no layer, layers that LoRA cannot change, and too high a rank.

    Args:
        model: causal language model, on any device; only its layers' names and shapes are read.
        config: the adapter.

    Raises:
        ConfigError: names the field, the value and the layer.
    """
    check_names(config)
    names = list(config.target_modules)
    modules = dict(model.named_modules())
    head = _names_of(modules, model.get_output_embeddings())
    embedding = _names_of(modules, model.get_input_embeddings())
    linear = {path: module for path, module in modules.items() if _is_linear(module)}
    if names == [ALL]:
        chosen = [path for path in linear if path not in head]
    else:
        chosen = []
        for name in names:
            # PEFT's own rule for a list of names.
            found = [p for p in modules if p == name or p.endswith(f".{name}")]
            _require_linear(names, name, found, linear, head | embedding, modules)
            chosen += found
    for path in chosen:
        rows, columns = sorted(linear[path].weight.shape)
        is_gate = names == [ALL] and rows * GATE_RATIO < columns
        if config.r > rows and not is_gate:
            raise ConfigError(
                "lora.r",
                config.r,
                f"above the smaller side of {path} ({rows} x {columns}), so it is no low rank; set "
                f"lora.r={rows} or less, or name other layers in {FIELD}",
            )


def _require_linear(
    names: list[str],
    name: str,
    found: list[str],
    linear: dict[str, Any],
    ends: set[str],
    modules: dict[str, Any],
) -> None:
    if not found:
        known = sorted({path.rpartition(".")[2] for path in linear if path not in ends})
        known = [leaf for leaf in known if not leaf.isdigit()]
        raise ConfigError(
            FIELD, names, f"the model has no layer {name}; its linear layers: {', '.join(known)}"
        )
    if wrong := [path for path in found if path in ends]:
        # TRL's trainer computes the loss from the head's own weight, past any adapter on it, and
        # tied weights would take one end's change to the other.
        raise ConfigError(
            FIELD,
            names,
            f"{wrong[0]} is the model's embedding or output head, which an adapter cannot train "
            "here; name linear layers between them",
        )
    if wrong := [path for path in found if path not in linear]:
        kind = type(modules[wrong[0]]).__name__
        raise ConfigError(
            FIELD, names, f"{wrong[0]} is a {kind}; name linear layers, such as its parts"
        )


def _is_linear(module: Any) -> bool:
    """What PEFT's all-linear takes, quantised layers apart."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _names_of(modules: dict[str, Any], wanted: Any) -> set[str]:
    return {path for path, module in modules.items() if wanted is not None and module is wanted}


def peft_config(config: LoraConfig) -> Any:
    """The PEFT configuration of `config`; alpha defaults to twice the rank."""
    import peft

    targets = config.target_modules
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=2 * config.r if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        target_modules=ALL if targets == [ALL] else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
