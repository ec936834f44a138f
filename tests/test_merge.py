from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import CPU, make_config, shape_columns

from ftsuite import merge, models, stages, templates, turns
from ftsuite.choices import PadToken
from ftsuite.errors import StageError
from ftsuite.store import run_stage

if TYPE_CHECKING:
    from ftsuite.config import RunConfig
    from ftsuite.stages import Chain


def adapter_of(config: RunConfig) -> Chain:
    """Train the cell's adapter in its store."""
    root = Path(config.store.root)
    chain = stages.chain(config, CPU, models.resolve(config.model, root), root, "cell")
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


def merge_again(config: RunConfig, folder: Path) -> Any:
    """Merge the cell's adapter into `folder`, past the store."""
    root = Path(config.store.root)
    chain = stages.chain(config, CPU, models.resolve(config.model, root), root, "cell")
    data, adapter = run_stage(root, chain.data), run_stage(root, chain.train)
    base = models.resolve(config.model, root).folder
    folder.mkdir()
    return merge.merge(config, CPU, base, data.folder, adapter.folder / "adapter", folder, "cell")


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
    tokenizer = models.load_tokenizer(base, cell.model)
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
    tokenizer = models.load_tokenizer(entry.folder, config.model)
    assert tokenizer.pad_token == models.NEW_PAD_TOKEN != tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(entry.folder)
    rows = model.get_input_embeddings().num_embeddings
    assert entry.record.vocabulary == rows == model.config.vocab_size
    old = AutoModelForCausalLM.from_pretrained(tiny_model).get_input_embeddings().num_embeddings
    assert tokenizer.pad_token_id == old
    assert old < rows <= old + 8 and rows % 8 == 0
    assert model.config.pad_token_id == tokenizer.pad_token_id
    # A second load adds no second token.
    assert len(models.load_tokenizer(entry.folder, config.model)) == len(tokenizer) == old + 1
    assert chain.tuned_scores is not None
    scores = run_stage(root, chain.tuned_scores).record
    assert len(scores.metrics[0].values) == 4


# --- a merge gone wrong ---------------------------------------------------------------------


def break_merge(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraModel

    real = LoraModel.merge_and_unload

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        spoil(self)
        return real(self, *arguments, **named)

    monkeypatch.setattr(LoraModel, "merge_and_unload", broken)
    assert PeftModel is not LoraModel


def drop_a_layer(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "layers.1" in name and "lora_B" in name:
            weight.data.zero_()


def double_the_scale(model: Any) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 2 * scale for name, scale in module.scaling.items()}


def flip_a_sign(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "layers.0.self_attn.q_proj" in name and "lora_B" in name:
            weight.data.neg_()


@pytest.mark.parametrize("spoil", [drop_a_layer, double_the_scale, flip_a_sign])
def test_broken_merge_is_an_error(
    spoil: Any, cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_merge(monkeypatch, spoil)
    with pytest.raises(StageError, match=r"adapter and merged model differ by .* nats a token"):
        merge_again(cell, tmp_path / "merged")


def test_a_broken_save_is_an_error(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged model is read back: what counts is what lies on the disk."""
    from transformers import PreTrainedModel

    real = PreTrainedModel.save_pretrained

    def save(self: Any, folder: Path, **named: Any) -> None:
        weight = self.model.layers[0].mlp.down_proj.weight
        kept = weight.data.clone()
        weight.data.mul_(0.5)
        real(self, folder, **named)
        weight.data.copy_(kept)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(StageError, match="differ by"):
        merge_again(cell, tmp_path / "merged")


def test_tolerance_is_configurable(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell.train, "fidelity_tolerance", 1e-12)
    with pytest.raises(StageError, match=r"more than 1e-12 for float32; .*fidelity_tolerance"):
        merge_again(cell, tmp_path / "strict")
    break_merge(monkeypatch, flip_a_sign)
    monkeypatch.setattr(cell.train, "fidelity_tolerance", 100.0)
    summary = merge_again(cell, tmp_path / "lenient")
    assert summary.tolerance == 100.0 and summary.max_difference > 1e-3


def test_failed_merge_leaves_no_result(
    cell: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(cell.store.root)
    chain = adapter_of(cell)
    break_merge(monkeypatch, drop_a_layer)
    with pytest.raises(StageError):
        run_stage(root, chain.merge)
    assert not list(root.glob("merge/*/")) and not list(root.glob("merge/*.partial"))
