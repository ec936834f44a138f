"""Which architectures keep packed documents apart, measured on tiny random models of each."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from bystage import made, recipe_of
from conftest import make_config, shape_columns
from tiny import tiny_tokenizer

from ftsuite.choices import Packing
from ftsuite.data.packing import Sequence, collate, pack, single
from ftsuite.errors import StageError
from ftsuite.training import isolation

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 400
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
MAMBA = {"mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
SOUND: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    # Documents longer than the window.
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_neox": {},
    "gpt2": GPT2,
}
LEAKING: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, **MAMBA},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1], **MAMBA},
    # Attention alone, but the mask is built without position ids.
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}


def build(name: str, **further: Any) -> Any:
    """A random model of a real architecture, as TRL's trainer holds it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    settings = (SOUND | LEAKING)[name]
    common = {"vocab_size": VOCABULARY} if name == "gpt2" else COMMON
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = AutoConfig.for_model(name, **(common | ends | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **further).eval()
    add_fused_lm_head(model)
    return model


def documents(*lengths: int, seed: int = 0) -> list[Sequence]:
    drawn = random.Random(seed)
    rows = [[drawn.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]
    return [single(ids, [1] * len(ids)) for ids in rows]


@pytest.fixture(scope="module")
def packed() -> list[Sequence]:
    """Sequences of unlike lengths, so that one of a batch is padded."""
    sequences = pack(documents(23, 31, 17, 12, 26, 9, 60), Packing.bfd, 64)
    assert sum(len(sequence.lengths) > 1 for sequence in sequences) >= 2
    return sequences


def measured(model: Any, sequences: list[Sequence], micro_batch_size: int = 2) -> Any:
    found = isolation.measure(model, sequences, micro_batch_size=micro_batch_size, pad_token_id=2)
    assert found is not None
    return found


def verdict(found: Any, dtype: str = "float32", kernel: str = "sdpa", batch: int = 2) -> None:
    isolation.require(found, dtype=dtype, kernel=kernel, micro_batch_size=batch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_architectures_pass(name: str, dtype: str, packed: list[Sequence]) -> None:
    import torch

    found = measured(build(name).to(getattr(torch, dtype)), packed)
    assert found.leak == found.noise == 0
    assert found.difference < {"float32": 1e-5, "bfloat16": 0.02, "float16": 2e-3}[dtype]
    verdict(found, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", LEAKING)
def test_leaking_architectures_are_refused(name: str, dtype: str, packed: list[Sequence]) -> None:
    import torch

    found = measured(build(name).to(getattr(torch, dtype)), packed)
    # A thousand times what any sound one shows, in models whose logits are close to uniform.
    assert found.leak > 1e-4
    with pytest.raises(StageError, match=r"packed documents see each other .*; set packing=off$"):
        verdict(found, dtype)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_batch_size(attention: str, batch: int, packed: list[Sequence]) -> None:
    found = measured(build("llama", attn_implementation=attention), packed, batch)
    assert (found.leak, found.noise) == (0, 0)
    assert found.difference < 1e-5


def test_the_difference_is_that_of_the_logits_computed_by_hand(packed: list[Sequence]) -> None:
    """The second document's log-probabilities, from the model's own logits, packed and alone."""
    import torch

    model = build("lfm2")
    chosen = max(packed, key=isolation._shorter_part)
    first, cut = chosen.lengths[0], len(chosen.input_ids) - chosen.lengths[-1]
    parts = [(0, first), (cut, len(chosen.input_ids))]

    def scores(sequence: Sequence, start: int, end: int) -> Any:
        with torch.no_grad():
            logits = model(**collate([sequence], 2), use_cache=False).logits[0, start : end - 1]
        following = torch.tensor(sequence.input_ids[start + 1 : end])
        return logits.log_softmax(-1).gather(1, following[:, None])

    by_hand = max(
        float((scores(chosen, *part) - scores(single(ids, ids), 0, len(ids))).abs().max())
        for part in parts
        for ids in [chosen.input_ids[slice(*part)]]
    )
    assert measured(model, packed, 1).difference == pytest.approx(by_hand, abs=1e-6)
    assert by_hand > 1e-5


def test_positions_that_do_not_restart_are_seen(packed: list[Sequence]) -> None:
    """Kept apart by the mask, but placed wrongly: only packed against alone can tell."""
    model = build("gpt2")
    real = model.transformer.wpe.forward

    def shifted(ids: Any) -> Any:
        import torch

        return real(torch.arange(ids.shape[1]).expand_as(ids))

    model.transformer.wpe.forward = shifted
    found = measured(model, packed)
    assert found.leak == 0 and found.difference > 1e-2
    with pytest.raises(StageError, match="packed differs from alone by up to"):
        verdict(found)


def test_a_kernel_that_sees_packing_at_batch_1_alone(packed: list[Sequence]) -> None:
    """Flash attention's rule in transformers, which needs a GPU; here with sdpa behind it."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def like_flash(module: Any, q: Any, k: Any, v: Any, mask: Any, **named: Any) -> Any:
        positions = named.get("position_ids")
        if q.shape[0] == 1 and positions is not None:
            of_BT = (positions == 0).cumsum(1)
            width = of_BT.shape[1]
            causal = torch.ones(width, width, dtype=torch.bool).tril()
            mask = (causal & (of_BT[:, :, None] == of_BT[:, None, :]))[:, None]
        return sdpa_attention_forward(module, q, k, v, mask, **named)

    AttentionInterface.register("batch_one", like_flash)
    AttentionMaskInterface.register("batch_one", lambda *_, **__: None)
    model = build("llama", attn_implementation="batch_one")
    verdict(measured(model, packed, 1), kernel="batch_one", batch=1)
    remedies = r"set packing=off, or model\.attn_implementation=sdpa, or train\.micro_batch_size=1$"
    with pytest.raises(StageError, match=remedies):
        verdict(measured(model, packed, 2), kernel="batch_one")


def test_rounding_does_not_refuse_a_model() -> None:
    """Experts that get other tokens round differently: what causality rules out is the measure."""
    noisy = isolation.Isolation(difference=0.1, leak=0.05, noise=0.01)
    verdict(noisy, "bfloat16")
    with pytest.raises(StageError):
        verdict(isolation.Isolation(difference=0.1, leak=0.05, noise=0.001), "bfloat16")
    with pytest.raises(StageError):
        verdict(isolation.Isolation(difference=float("nan"), leak=0.0, noise=0.0))


def test_nothing_packed_is_nothing_measured() -> None:
    model = build("llama")
    assert isolation.measure(model, documents(5, 9), micro_batch_size=2, pad_token_id=2) is None


# --- in the train stage ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LFM2 with the tiny tokenizer: convolution and attention layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("lfm2")
    tokenizer = tiny_tokenizer()
    settings = COMMON | LEAKING["lfm2"] | {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "lfm2", **settings, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(model: Path, rows: Path, root: Path, packing: Packing, batch: int) -> Any:
    config = shape_columns(make_config(model, rows, root))
    config.packing.strategy = packing
    config.train.micro_batch_size = batch
    config.train.max_steps = 1
    config.data.train_limit = 14
    return made(root, recipe_of(config).adapter).record


@pytest.mark.parametrize("packing", [Packing.bfd, Packing.wrapped])
def test_training_that_leaks_stops_and_goes_unpacked(
    packing: Packing, lfm2: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"attention sdpa, 2 sequences a batch.*packing=off"):
        trained(lfm2, tiny_rows, tmp_path, packing, 2)
    assert not list(tmp_path.glob("train/*/result.json"))
    assert trained(lfm2, tiny_rows, tmp_path, Packing.off, 2).isolation_difference is None


@pytest.mark.parametrize("packing", [Packing.bfd, Packing.wrapped])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_was_measured_is_recorded(
    packing: Packing, batch: int, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    found = trained(tiny_model, tiny_rows, tmp_path, packing, batch).isolation_difference
    assert found is not None and 0 <= found < 1e-4


def test_measuring_changes_no_loss(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [trained(tiny_model, tiny_rows, tmp_path / "with", Packing.bfd, 2).curve]
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "measure", lambda *_, **__: None)
        curves.append(trained(tiny_model, tiny_rows, tmp_path / "without", Packing.bfd, 2).curve)
    assert curves[0] == curves[1]
