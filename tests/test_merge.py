from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import synthetic
from conftest import CPU, make_config, shape_columns
from tiny import tiny_llama, tiny_tokenizer

from ftsuite import stages
from ftsuite.choices import PadToken
from ftsuite.config import RunConfig
from ftsuite.devices import Compute
from ftsuite.errors import StageError
from ftsuite.models import loading, sources, templates, turns
from ftsuite.store.entries import run_stage
from ftsuite.training import merge, mergecheck

if TYPE_CHECKING:
    from ftsuite.stages import Chain

BFLOAT16 = Compute(device="cpu", dtype="bfloat16")


def adapter_of(config: RunConfig) -> Chain:
    """Train the cell's adapter in its store."""
    root = Path(config.store.root)
    chain = stages.chain(config, CPU, sources.resolve(config.model, root), root, "cell")
    run_stage(root, chain.data)
    run_stage(root, chain.train)
    return chain


@pytest.fixture(scope="module")
def cell(tiny_model: Path, tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A cell whose adapter is trained far from zero."""
    config = shape_columns(make_config(tiny_model, tiny_rows, tmp_path_factory.mktemp("merge")))
    config.train.learning_rate = 3e-2
    adapter_of(config)
    return config


def merge_again(config: RunConfig, folder: Path, compute: Compute = CPU) -> Any:
    """Merge the cell's adapter into `folder`, past the store."""
    root = Path(config.store.root)
    chain = stages.chain(config, CPU, sources.resolve(config.model, root), root, "cell")
    data, adapter = run_stage(root, chain.data), run_stage(root, chain.train)
    base = sources.resolve(config.model, root).folder
    folder.mkdir()
    return merge.merge(
        config, compute, base, data.folder, adapter.folder / "adapter", folder, "cell"
    )


def logits(model: Any, tokenizer: Any) -> Any:
    import torch

    text = turns.prompt(tokenizer, [{"role": "user", "content": "Sailor 3 asks about fault"}])
    with torch.inference_mode():
        return model(torch.tensor([templates.encode(tokenizer, text)])).logits


def test_merged_model_is_the_adapter(cell: RunConfig, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = merge_again(cell, tmp_path / "merged")
    adapter = run_stage(Path(cell.store.root), adapter_of(cell).train).folder / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(cell.model.id).eval()
    before = logits(base, tokenizer)
    expected = logits(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), tokenizer)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    # The adapter does something, so that the two sameness checks say something.
    assert (merged - before).abs().max() > 0.5
    assert 0 < summary.max_difference < 1e-4
    assert summary.mean_difference <= summary.max_difference
    assert summary.tolerance == merge.TOLERANCE["float32"] == 1e-3
    assert summary.fidelity_items == 10  # all that the validation split has
    assert summary.dtype == "float32"
    # 7 projections in each of 2 layers; the other tensors are norms and embeddings.
    assert (summary.adapted_tensors, summary.proved_tensors) == (14, 21)
    assert 0 < summary.max_trained_difference < 1e-4
    assert summary.trained_tolerance == merge.TRAINED_TOLERANCE["float32"]


def test_tokenizer_and_template_are_saved(cell: RunConfig, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    merge_again(cell, tmp_path / "merged")
    base = AutoTokenizer.from_pretrained(cell.model.id)
    saved = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert saved.chat_template == base.chat_template
    assert saved.get_vocab() == base.get_vocab()
    assert (saved.bos_token, saved.eos_token) == (base.bos_token, base.eos_token)


def test_configured_template_goes_along(cell: RunConfig, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    jinja = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    base = Path(cell.model.id)
    tokenizer = loading.load_tokenizer(base, cell.model)
    cell.template.jinja = jinja
    try:
        merge_again(cell, tmp_path / "merged")
    finally:
        cell.template.jinja = None
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == jinja
    assert tokenizer.chat_template != jinja


def test_shards_are_no_larger_than_asked(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(cell.train, "shard_bytes", 60_000)
    summary = merge_again(cell, tmp_path / "merged")
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert summary.shards == len(shards) >= 3
    assert summary.bytes == sum(path.stat().st_size for path in shards)
    # The limit is on tensors; a header comes on top.
    assert max(path.stat().st_size for path in shards) < 60_000 + 5_000
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_new_pad_token_resizes_the_embeddings(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config = shape_columns(make_config(tiny_model, tiny_rows, tmp_path / "store"))
    config.model.pad_token = PadToken.new
    config.data.train_limit = 8
    root = tmp_path / "store"
    chain = adapter_of(config)
    entry = run_stage(root, chain.merge)
    tokenizer = loading.load_tokenizer(entry.folder, config.model)
    assert tokenizer.pad_token == loading.NEW_PAD_TOKEN != tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(entry.folder)
    rows = model.get_input_embeddings().num_embeddings
    assert entry.record.vocabulary == rows == model.config.vocab_size
    old = AutoModelForCausalLM.from_pretrained(tiny_model).get_input_embeddings().num_embeddings
    assert tokenizer.pad_token_id == old
    assert old < rows <= old + 8 and rows % 8 == 0
    assert model.config.pad_token_id == tokenizer.pad_token_id
    # A second load adds no second token.
    assert len(loading.load_tokenizer(entry.folder, config.model)) == len(tokenizer) == old + 1
    assert chain.tuned_scores is not None
    scores = run_stage(root, chain.tuned_scores).record
    assert len(scores.metrics[0].values) == 4


# --- a merge gone wrong ---------------------------------------------------------------------


def break_merge(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    from peft.tuners.lora import LoraModel

    real = LoraModel.merge_and_unload

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        spoil(self)
        return real(self, *arguments, **named)

    monkeypatch.setattr(LoraModel, "merge_and_unload", broken)


def drop_a_layer(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "layers.1" in name and "lora_B" in name:
            weight.data.zero_()


def scale_by_1_1(model: Any) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 1.1 * scale for name, scale in module.scaling.items()}


def flip_a_sign(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "layers.0.self_attn.q_proj" in name and "lora_B" in name:
            weight.data.neg_()


def transpose_a_product(model: Any) -> None:
    """Swap B and A of a square module: (B·A)ᵀ = Aᵀ·Bᵀ."""
    for name, module in model.named_modules():
        if name.endswith("layers.0.self_attn.q_proj"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.data, b.data = b.data.T.contiguous(), a.data.T.contiguous()


def add_in_bfloat16(model: Any) -> None:
    """Round base and product before they are added, and their sum once more."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("layers.0.self_attn.q_proj"):
            delta = module.get_delta_weight("default").to(torch.bfloat16)
            weight = module.get_base_layer().weight
            weight.data = (weight.data.to(torch.bfloat16) + delta).float()
            module.lora_B["default"].weight.data.zero_()


SPOILS = [drop_a_layer, scale_by_1_1, flip_a_sign, transpose_a_product, add_in_bfloat16]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_broken_merge_is_an_error_in_bfloat16(
    spoil: Any, cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_merge(monkeypatch, spoil)
    # However lenient about behaviour: weights have no tolerance.
    monkeypatch.setattr(cell.train, "fidelity_tolerance", 100.0)
    with pytest.raises(StageError, match=r"is not base \+ scale·B·A rounded once to bfloat16"):
        merge_again(cell, tmp_path / "merged", BFLOAT16)


@pytest.mark.parametrize("spoil", SPOILS[:-1])
def test_a_broken_merge_is_an_error_in_float32(
    spoil: Any, cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_merge(monkeypatch, spoil)
    with pytest.raises(StageError, match=r"rounded once to float32: [\d,]+ of [\d,]+ values"):
        merge_again(cell, tmp_path / "merged")


@pytest.fixture(scope="module")
def merged(cell: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cell's model merged in bfloat16, in several shards; to be copied before it is broken."""
    folder = tmp_path_factory.mktemp("bfloat16") / "merged"
    cell.train.shard_bytes = 30_000
    try:
        summary = merge_again(cell, folder, BFLOAT16)
    finally:
        cell.train.shard_bytes = 2_000_000_000
    assert summary.dtype == "bfloat16" and summary.shards >= 3
    return folder


def adapter_folder(config: RunConfig) -> Path:
    return run_stage(Path(config.store.root), adapter_of(config).train).folder / "adapter"


def edit(folder: Path, change: Any) -> None:
    """Rewrite the shards of `folder` with each one's tensors changed in place."""
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def swap_two(folder: Path) -> None:
    from safetensors.torch import load_file

    names = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1)]
    found = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    other = dict(zip(names, [found[name] for name in reversed(names)], strict=True))
    edit(folder, lambda tensors: tensors.update({n: other[n] for n in names if n in tensors}))


def rename_one(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if "model.norm.weight" in tensors:
            tensors["model.norm.bias"] = tensors.pop("model.norm.weight")

    edit(folder, change)


def flip_a_byte(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def damage_a_header(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


def cut_a_shard_short(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])


def lose_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (swap_two, r"o_proj\.weight is not base \+ scale·B·A"),
        (flip_a_byte, r"is not base \+ scale·B·A .* 1 of [\d,]+ values differ"),
        (rename_one, r"its index disagree on model\.norm\."),
        (damage_a_header, r"00002-of-.*safetensors is missing or damaged"),
        (cut_a_shard_short, r"00002-of-.*safetensors is missing or damaged"),
        (lose_a_shard, r"00002-of-.*safetensors is missing or damaged"),
    ],
)
def test_a_damaged_model_is_an_error(
    damage: Any, match: str, cell: RunConfig, merged: Path, tmp_path: Path
) -> None:
    base, adapter, folder = Path(cell.model.id), adapter_folder(cell), tmp_path / "merged"
    shutil.copytree(merged, folder)
    proof = mergecheck.prove(base, adapter, folder, "bfloat16")
    assert (proof.tensors, proof.adapted) == (21, 14)
    damage(folder)
    with pytest.raises(StageError, match=match):
        mergecheck.prove(base, adapter, folder, "bfloat16")


def test_a_tensor_more_or_less_is_an_error(tmp_path: Path) -> None:
    base, adapter, folder = family(tmp_path, "llama", "bfloat16", target_modules=["q_proj"])
    original = (folder / "model.safetensors").read_bytes()
    for change, match in (
        (lambda tensors: tensors.pop("model.norm.weight"), r"norm\.weight of the base is not"),
        (
            lambda tensors: tensors.update(more=tensors["lm_head.weight"].clone()),
            "more .* not in the base",
        ),
    ):
        edit(folder, change)
        with pytest.raises(StageError, match=match):
            mergecheck.prove(base, adapter, folder, "bfloat16")
        (folder / "model.safetensors").write_bytes(original)
    mergecheck.prove(base, adapter, folder, "bfloat16")


def test_every_tensor_of_the_adapter_must_be_found(tmp_path: Path) -> None:
    base, adapter, folder = family(tmp_path, "llama", "bfloat16", target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    original = path.read_bytes()

    def change(tensors: dict[str, Any]) -> None:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        for kind in "AB":
            part = tensors[name.replace("lora_A", f"lora_{kind}")].clone()
            tensors[name.replace("0.self_attn.q_proj.lora_A", f"7.mlp.up_proj.lora_{kind}")] = part

    edit(adapter, change)
    with pytest.raises(StageError, match=r"layers\.7\.mlp\.up_proj.* is in no tensor .*2 of 6"):
        mergecheck.prove(base, adapter, folder, "bfloat16")
    path.write_bytes(original)
    settings = adapter / "adapter_config.json"
    plain = settings.read_text()
    for name, value in (("use_dora", True), ("bias", "all"), ("something_new", {"a": 1})):
        settings.write_text(json.dumps(json.loads(plain) | {name: value}))
        with pytest.raises(StageError, match=f"made with {name} = .* cannot be proved"):
            mergecheck.prove(base, adapter, folder, "bfloat16")


def test_an_adapter_of_another_run_is_an_error(
    cell: RunConfig, merged: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    other = shape_columns(make_config(Path(cell.model.id), tiny_rows, tmp_path / "store"))
    other.train.seed, other.train.max_steps = 1, 2
    with pytest.raises(StageError, match=r"is not base \+ scale·B·A"):
        mergecheck.prove(Path(cell.model.id), adapter_folder(other), merged, "bfloat16")


def test_a_broken_load_is_an_error_of_behaviour(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right weights under a wrong configuration: only behaviour can tell."""
    from transformers import PreTrainedModel

    real = PreTrainedModel.save_pretrained

    def save(self: Any, folder: Path, **named: Any) -> None:
        real(self, folder, **named)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["rms_norm_eps"] = 0.5
        path.write_text(json.dumps(config))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    for compute in (CPU, BFLOAT16):
        with pytest.raises(StageError, match=r"differ by .* nats a token over the (whole|trained)"):
            merge_again(cell, tmp_path / compute.dtype, compute)


def test_tolerance_is_configurable(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell.train, "fidelity_tolerance", 1e-12)
    with pytest.raises(StageError, match=r"more than 1e-12 for float32; .*fidelity_tolerance"):
        merge_again(cell, tmp_path / "strict")


def test_trained_tokens_have_a_tolerance_of_their_own() -> None:
    summary = synthetic.make_record().merge
    assert summary is not None
    good = dataclasses.replace(
        summary, max_trained_difference=0.3, tolerance=0.25, trained_tolerance=0.4
    )
    merge.require_fidelity(good)
    for trained in (0.41, float("nan")):
        bad = dataclasses.replace(good, max_trained_difference=trained)
        with pytest.raises(StageError, match=r"over the trained tokens of 16 rows, more than 0\.4"):
            merge.require_fidelity(bad)


def test_failed_merge_leaves_no_result(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(cell.store.root)
    chain = adapter_of(cell)
    break_merge(monkeypatch, drop_a_layer)
    with pytest.raises(StageError):
        run_stage(root, chain.merge)
    assert not list(root.glob("merge/*/")) and not list(root.glob("merge/*.partial-*"))


# --- other architectures and adapters -------------------------------------------------------


def family(tmp_path: Path, kind: str, dtype: str, **lora: Any) -> tuple[Path, Path, Path]:
    """A tiny base, a random adapter and the merged model: their folders."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        MixtralConfig,
        MixtralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer = tiny_tokenizer()
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    sizes = {
        **tokens,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model: Any
    match kind:
        case "llama":
            model = tiny_llama(tokenizer)
        case "tied":
            model = tiny_llama(tokenizer, tie_word_embeddings=True)
        case "qwen2":  # biases in attention, tied
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
        case "gpt2":  # Conv1D, tied
            model = GPT2LMHeadModel(GPT2Config(**tokens, n_embd=32, n_layer=2, n_head=4))
        case "mixtral":  # experts are one tensor in memory and many on the disk
            model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4))
    base, adapter, folder = (tmp_path / name for name in ("base", "adapter", "merged"))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    peft = get_peft_model(
        model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    )
    peft.save_pretrained(adapter)
    config = RunConfig()
    config.model.id = str(base)
    merge._write_merged(
        config, Compute(device="cpu", dtype=dtype), base, adapter, tokenizer, folder
    )
    return base, adapter, folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "lora", "adapted"),
    [
        ("llama", {"use_rslora": True}, 14),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.*": 3}}, 14),
        ("llama", {"target_modules": ["lm_head", "q_proj"]}, 3),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 3),
        ("tied", {}, 14),
        ("tied", {"target_modules": ["lm_head", "q_proj"]}, 3),
        ("tied", {"target_modules": ["embed_tokens", "q_proj"]}, 3),
        ("qwen2", {}, 14),
        ("gpt2", {}, 8),
        ("gpt2", {"target_modules": ["c_proj"]}, 4),
        ("mixtral", {"target_modules": ["q_proj", "v_proj"]}, 4),
    ],
)
def test_other_architectures_and_adapters(
    kind: str, lora: dict[str, Any], adapted: int, dtype: str, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter, folder = family(tmp_path, kind, dtype, **lora)
    proof = mergecheck.prove(base, adapter, folder, dtype)
    assert proof.adapted == adapted
    if dtype == "float32":
        ids = torch.tensor([[5, 17, 40, 8, 99, 3]])
        plain = AutoModelForCausalLM.from_pretrained(base)
        with torch.inference_mode():
            expected = PeftModel.from_pretrained(plain, adapter)(ids).logits
            found = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)

    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith("lora_B.weight"))
        tensors[name] = tensors[name] * 1.1

    edit(adapter, change)
    with pytest.raises(StageError, match=r"is not base \+ scale·B·A"):
        mergecheck.prove(base, adapter, folder, dtype)


def test_a_base_with_other_names_and_old_buffers(tmp_path: Path) -> None:
    """GPT-2 on the Hub has no `transformer.` in front and its causal masks beside the weights."""
    import torch

    base, adapter, folder = family(tmp_path, "gpt2", "bfloat16")

    def as_on_the_hub(tensors: dict[str, Any]) -> None:
        plain = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors.clear()
        tensors |= plain
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors["lm_head.weight"] = plain["wte.weight"].clone()

    edit(base, as_on_the_hub)
    assert mergecheck.prove(base, adapter, folder, "bfloat16").adapted == 8
    edit(base, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(StageError, match=r"lm_head\.weight is not"):
        mergecheck.prove(base, adapter, folder, "bfloat16")
