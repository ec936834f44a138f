"""Which layers an adapter may name, on tiny models of real shapes."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_llama, tiny_tokenizer

from ftsuite.config import LoraConfig
from ftsuite.errors import ConfigError
from ftsuite.training import targets


def llama(**config: Any) -> Any:
    return tiny_llama(tiny_tokenizer(), **config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2))


def test_what_passes_is_what_peft_adapts() -> None:
    from peft import get_peft_model

    for names in (["all-linear"], ["q_proj", "v_proj"], ["self_attn.q_proj"], ["mlp.down_proj"]):
        config = LoraConfig(r=4, target_modules=names)
        model = llama()
        targets.check(model, config)
        adapted = get_peft_model(model, targets.peft_config(config))
        found = {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if "lora_A" in n}
        assert len(found) == (14 if names == ["all-linear"] else 2 * len(names))
    targets.check(gpt2(), LoraConfig(r=4, target_modules=["c_attn"]))
    targets.check(gpt2(), LoraConfig(r=4))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["all-linear", "q_proj"], "[all-linear] stands alone"),
        (
            ["q_proj", "nosuch"],
            "the model has no layer nosuch; its linear layers: down_proj, gate_",
        ),
        (["proj"], "no layer proj"),
        (["q_proj", "lm_head"], "lm_head is the model's embedding or output head"),
        (["embed_tokens"], "model.embed_tokens is the model's embedding or output head"),
        (["input_layernorm"], "model.layers.0.input_layernorm is a LlamaRMSNorm"),
        (["self_attn"], "model.layers.0.self_attn is a LlamaAttention"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_refused(names: list[str], said: str, tied: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        targets.check(llama(tie_word_embeddings=tied), LoraConfig(target_modules=names))
    assert str(caught.value).startswith(f"lora.target_modules = {names!r}: ")
    assert said in str(caught.value)


def test_an_adapter_on_the_head_would_not_be_trained() -> None:
    """Why lm_head is refused: TRL's loss takes the head's weight, not its adapter."""
    import torch
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    model = llama()
    add_fused_lm_head(model)
    adapted = get_peft_model(
        model, targets.peft_config(LoraConfig(r=4, target_modules=["lm_head"]))
    )
    ids = torch.arange(5, 15)[None]
    loss = adapted(input_ids=ids, labels=ids, fused_lm_head=True).loss
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()


@pytest.mark.parametrize("names", [["all-linear"], ["q_proj", "k_proj"]])
def test_a_rank_above_the_smaller_side(names: list[str]) -> None:
    # k_proj is 16 x 32.
    targets.check(llama(), LoraConfig(r=16, target_modules=names))
    with pytest.raises(ConfigError) as caught:
        targets.check(llama(), LoraConfig(r=17, target_modules=names))
    assert str(caught.value).startswith(
        "lora.r = 17: above the smaller side of model.layers.0.self_attn.k_proj (16 x 32)"
    )


def test_a_gate_does_not_limit_the_rank_of_all_linear() -> None:
    from torch import nn

    model = llama()
    model.model.layers[0].mlp.shared_expert_gate = nn.Linear(32, 1, bias=False)
    targets.check(model, LoraConfig(r=8))
    with pytest.raises(ConfigError, match=r"shared_expert_gate \(1 x 32\)"):
        targets.check(model, LoraConfig(r=8, target_modules=["shared_expert_gate"]))
