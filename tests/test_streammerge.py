"""The streamed merge writes what PEFT and save_pretrained write, byte by byte."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from bystage import CPU
from tiny import tiny_tokenizer

from ftsuite.choices import Attention, PadToken
from ftsuite.config import ModelConfig, RunConfig
from ftsuite.errors import StageError
from ftsuite.models import loading
from ftsuite.recipe import recipe
from ftsuite.stages import BaseModel
from ftsuite.training import merge, mergecheck, mergedtensor, streammerge, tensorfile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARD_BYTES = 20_000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny tensors are taken in several blocks, the last of them shorter."""
    for module in (mergedtensor, mergecheck):
        monkeypatch.setattr(module, "BLOCK", 300)


def configuration(kind: str, **more: Any) -> Any:
    """Of a tiny model: two layers, 32 wide."""
    import transformers as hf

    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.eos_token_id, **ends}
    llama = {
        **vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    gpt = {**vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    bloom = {**vocabulary, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    opt = {**llama, "ffn_dim": 48, "word_embed_proj_dim": 32}
    moe = {**llama, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {**llama, "head_dim": 8}
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "bloom": (hf.BloomConfig, bloom),
        "cohere": (hf.CohereConfig, llama),
        "falcon": (hf.FalconConfig, llama),
        "gemma2": (hf.Gemma2Config, heads),
        "gemma3": (hf.Gemma3TextConfig, heads),
        "gpt2": (hf.GPT2Config, gpt),
        "gpt_neox": (hf.GPTNeoXConfig, llama),
        "gpt_oss": (hf.GptOssConfig, {**heads, "num_local_experts": 4}),
        "gptj": (hf.GPTJConfig, {**gpt, "rotary_dim": 4}),
        "granite": (hf.GraniteConfig, llama),
        "lfm2": (hf.Lfm2Config, {**llama, "layer_types": ["conv", "full_attention"]}),
        "llama": (hf.LlamaConfig, llama),
        "mistral": (hf.MistralConfig, heads),
        "mpt": (hf.MptConfig, {**vocabulary, "d_model": 32, "n_heads": 4, "n_layers": 2}),
        "olmo2": (hf.Olmo2Config, llama),
        "opt": (hf.OPTConfig, opt),
        "phi": (hf.PhiConfig, llama),
        "phi3": (hf.Phi3Config, llama),
        "qwen2": (hf.Qwen2Config, llama),
        "qwen2_moe": (hf.Qwen2MoeConfig, {**moe, "shared_expert_intermediate_size": 16}),
        "qwen3": (hf.Qwen3Config, heads),
        "smollm3": (hf.SmolLM3Config, llama),
        "stablelm": (hf.StableLmConfig, llama),
        "starcoder2": (hf.Starcoder2Config, llama),
    }
    kind_of, settings = classes[kind]
    return kind_of(**(settings | more))


class Case:
    """A tiny base with a random adapter, to be merged in both ways."""

    def __init__(
        self,
        tmp_path: Path,
        kind: str = "llama",
        *,
        stored: str = "bfloat16",
        base_shard: str = "50GB",
        pad: PadToken = PadToken.eos,
        lora: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        self.tmp_path, self.base, self.adapter = tmp_path, tmp_path / "base", tmp_path / "adapter"
        self.config = ModelConfig(id=str(self.base), pad_token=pad)
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(configuration(kind, **more))
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn_like(weight) * 0.2)
        model.to(getattr(torch, stored)).save_pretrained(self.base, max_shard_size=base_shard)
        tiny_tokenizer().save_pretrained(self.base)
        self.tokenizer = loading.load_tokenizer(self.base, self.config)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | (lora or {})
        model = loading.load_model(
            self.base, self.tokenizer, self.config, device="cpu", dtype=stored
        )
        peft.get_peft_model(
            model, peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
        ).save_pretrained(self.adapter)

    def settings(self, dtype: str, shard_bytes: int) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "config": self.config,
            "dtype": dtype,
            "shard_bytes": shard_bytes,
        }

    def stream(self, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES) -> Path:
        folder = self.tmp_path / f"streamed-{dtype}-{shard_bytes}"
        settings = self.settings(dtype, shard_bytes)
        written: list[int] = []
        streammerge.write(self.base, self.adapter, folder, **settings, advance=written.append)
        data = sum(
            place.size
            for path in folder.glob("*.safetensors")
            for place in tensorfile.tensors(path).values()
        )
        assert sum(written) == data > 0
        return folder

    def merged(self, folder: Path) -> str:
        """Merge as the stage does, and return why not by streaming."""
        base = BaseModel(source="folder", revision="0", path=str(self.base))
        config = dataclasses.replace(RunConfig(), model=self.config)
        stage = recipe(config, dataclasses.replace(CPU, dtype="bfloat16"), base).merged
        return merge._write_merged(
            stage, self.base, self.adapter, self.tokenizer, folder, lambda _: None
        )

    def require_same(self, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES) -> Path:
        """Merge both ways, compare every file, and prove the tensors."""
        folder = self.stream(dtype, shard_bytes)
        expected = self.tmp_path / f"peft-{dtype}-{shard_bytes}"
        merge._merge_in_memory(
            self.base, self.adapter, expected, **self.settings(dtype, shard_bytes)
        )
        assert files(folder) == files(expected)
        mergecheck.prove(self.base, self.adapter, folder, dtype)
        return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# --- the same files as PEFT's ---------------------------------------------------------------

STREAMED = (
    *("bloom", "cohere", "falcon", "gemma2", "gemma3", "gpt2", "gpt_neox", "gpt_oss", "gptj"),
    *("granite", "lfm2", "llama", "mistral", "mpt", "olmo2", "opt", "phi", "phi3", "qwen2"),
    *("qwen3", "smollm3", "stablelm", "starcoder2"),
)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", STREAMED)
def test_every_architecture(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = Case(tmp_path, kind, tie_word_embeddings=tied).require_same()
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= set(
        files(folder)
    )
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_dtype(stored: str, dtype: str, tmp_path: Path) -> None:
    Case(tmp_path, stored=stored).require_same(dtype)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.*": 3}},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
)
@pytest.mark.parametrize("pad", PadToken)
def test_every_adapter(pad: PadToken, lora: dict[str, Any], tmp_path: Path) -> None:
    Case(tmp_path, pad=pad, lora=lora).require_same()


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 10**9])
@pytest.mark.parametrize("base_shard", ["20KB", "50GB"])
def test_every_size_of_shards(base_shard: str, shard_bytes: int, tmp_path: Path) -> None:
    case = Case(tmp_path, base_shard=base_shard)
    assert (len(list(case.base.glob("*.safetensors"))) > 1) == (base_shard == "20KB")
    case.require_same(shard_bytes=shard_bytes)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "phi"])
def test_grown_embeddings_from_the_adapter(kind: str, tied: bool, tmp_path: Path) -> None:
    case = Case(tmp_path, kind, pad=PadToken.new, tie_word_embeddings=tied)
    stored = tensorfile.tensors(case.adapter / "adapter_model.safetensors")
    assert len([name for name in stored if name.endswith((".weight",)) and "lora" not in name]) == 2
    folder = case.require_same()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] % 8 == 0


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_grown_embeddings_from_the_base(tied: bool, stored: str, tmp_path: Path) -> None:
    case = Case(tmp_path, stored=stored, pad=PadToken.new, tie_word_embeddings=tied)

    def drop(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".lora_" not in name]:
            del tensors[name]

    edit(case.adapter / "adapter_model.safetensors", drop)
    for dtype in ("float32", "bfloat16"):
        case.require_same(dtype)


def test_a_base_with_other_names_old_buffers_and_both_ends(tmp_path: Path) -> None:
    """GPT-2 on the Hub: no `transformer.` in front, causal masks, a copy of tied weights."""
    import torch

    case = Case(tmp_path, "gpt2")

    def as_on_the_hub(tensors: dict[str, Any]) -> None:
        plain = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors.clear()
        tensors |= plain
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors["lm_head.weight"] = plain["wte.weight"].clone()

    edit(case.base / "model.safetensors", as_on_the_hub)
    case.require_same()


# --- what is not streamed -------------------------------------------------------------------


def test_experts_are_merged_in_memory(tmp_path: Path) -> None:
    case = Case(tmp_path, "qwen2_moe")
    with pytest.raises(streammerge.NotStreamable, match=r"transformers converts .*experts\.0"):
        case.stream()
    assert not (tmp_path / f"streamed-bfloat16-{SHARD_BYTES}").exists()
    folder = tmp_path / "merged"
    reason = case.merged(folder)
    assert "transformers converts model.layers.0.mlp.experts.0" in reason
    assert mergecheck.prove(case.base, case.adapter, folder, "bfloat16").adapted == 16


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"use_dora": True}, r"part for model\.layers\.0\.self_attn\.q_proj is of a kind"),
        ({"bias": "all"}, "made with bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "made with modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "the adapter holds .*trainable_tokens"),
        ({"target_parameters": ["up_proj.weight"]}, "made with target_parameters"),
    ],
)
def test_other_ways_to_train_are_merged_in_memory(
    lora: dict[str, Any], match: str, tmp_path: Path
) -> None:
    case = Case(tmp_path, lora={"target_modules": ["q_proj"], **lora})
    with pytest.raises(streammerge.NotStreamable, match=match):
        case.stream()


def test_an_initialisation_that_changes_the_base_is_merged_in_memory(tmp_path: Path) -> None:
    case = Case(tmp_path)
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(streammerge.NotStreamable, match="begun with pissa"):
        case.stream()


def test_a_quantised_base_is_merged_in_memory(tmp_path: Path) -> None:
    case = Case(tmp_path)
    path = case.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {}}))
    with pytest.raises(streammerge.NotStreamable, match="quantised"):
        case.stream()


def test_tied_weights_that_differ_are_merged_in_memory(tmp_path: Path) -> None:
    case = Case(tmp_path, tie_word_embeddings=True)

    def add(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    edit(case.base / "model.safetensors", add)
    with pytest.raises(streammerge.NotStreamable, match=r"lm_head.* are tied .* and differ"):
        case.stream()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_embeddings_is_an_error(target: str, tmp_path: Path) -> None:
    case = Case(tmp_path, tie_word_embeddings=True, lora={"target_modules": [target, "q_proj"]})
    with pytest.raises(StageError, match=rf"changes (model\.)?{target}, .*would change both"):
        case.stream()


def test_an_attention_kernel_of_a_gpu_is_no_hindrance(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.config.attn_implementation = Attention.flash_attention_2
    assert case.merged(tmp_path / "merged") == ""


# --- a merge gone wrong ---------------------------------------------------------------------


def test_a_wrong_number_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    real = mergedtensor._product

    def lesser(tensor: Any, delta: Any, room: Any) -> Any:
        product = real(tensor, delta, room)
        if "layers.1.mlp.up_proj" in tensor.name:
            product[-1, -1] += 1
        return product

    monkeypatch.setattr(mergedtensor, "_product", lesser)
    with pytest.raises(StageError, match=r"1\.mlp\.up_proj.* 1 of 1,536 values differ"):
        mergecheck.prove(case.base, case.adapter, case.stream(), "bfloat16")


def test_a_wrong_mean_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, pad=PadToken.new)
    edit(
        case.adapter / "adapter_model.safetensors",
        lambda tensors: [tensors.pop(n) for n in list(tensors) if ".lora_" not in n].clear(),
    )
    real = mergedtensor._mean
    monkeypatch.setattr(mergedtensor, "_mean", lambda source: real(source) * 1.1)
    with pytest.raises(StageError, match=r"embed_tokens|lm_head"):
        mergecheck.prove(case.base, case.adapter, case.stream(), "bfloat16")


def test_tied_embeddings_of_an_adapter_that_differ_fail(tmp_path: Path) -> None:
    case = Case(tmp_path, pad=PadToken.new, tie_word_embeddings=True)
    folder = case.require_same()
    path = case.adapter / "adapter_model.safetensors"
    edit(path, lambda tensors: tensors["base_model.model.lm_head.weight"].add_(1))
    with pytest.raises(streammerge.NotStreamable, match="differ in the file"):
        case.stream(dtype="float32")
    with pytest.raises(StageError, match=r"lm_head\.weight is not base"):
        mergecheck.prove(case.base, case.adapter, folder, "bfloat16")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_missing_part_of_the_adapter_is_an_error(part: str, tmp_path: Path) -> None:
    case = Case(tmp_path)
    name = f"base_model.model.model.layers.1.mlp.up_proj.{part}.weight"
    edit(case.adapter / "adapter_model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(StageError, match=r"no A and B for model\.layers\.1\.mlp\.up_proj"):
        case.stream()


def test_an_adapter_of_another_rank_than_its_base_is_an_error(tmp_path: Path) -> None:
    case = Case(tmp_path)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def shorten(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name][:-1].contiguous()

    edit(case.adapter / "adapter_model.safetensors", shorten)
    with pytest.raises(StageError, match=r"up_proj.*\(48, 32\); it belongs to another base"):
        case.stream()


# --- the files ------------------------------------------------------------------------------


def test_a_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.arange(7),
        "ä": torch.randn(4).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    places = tensorfile.tensors(tmp_path / "theirs.safetensors")
    entries = [
        tensorfile.Entry(
            name=name,
            dtype=place.dtype,
            shape=place.shape,
            blocks=lambda place=place: tensorfile.blocks(place, 2),
        )
        for name, place in places.items()
    ]
    tensorfile.write(tmp_path / "ours.safetensors", entries, lambda _: None)
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    place = tensorfile.tensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StageError, match=r"file\.safetensors is missing or damaged"):
        tensorfile.tensors(path)
    with pytest.raises(StageError, match="ends early"):
        list(tensorfile.blocks(place, 30))
