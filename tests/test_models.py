"""Models that are not what they seem: cut short, mixed up, or changed on the disk."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from bystage import made, recipe_of
from conftest import make_config, shape_columns
from tiny import save_tiny_model, tiny_llama, tiny_tokenizer

from ftsuite.choices import Attention, PadToken, Source
from ftsuite.config import ModelConfig
from ftsuite.errors import BackendUnavailable, ConfigError, DataError, StoreError
from ftsuite.models import embedded, loading, modelfolder, sources
from ftsuite.records import ModelIdentity
from ftsuite.training import train

if TYPE_CHECKING:
    from pathlib import Path

HUB_ID = "org/tiny"


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    plain = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in plain.items() if v is not None}))


def load(folder: Path, **settings: Any) -> Any:
    config = ModelConfig(id=str(folder), **settings)
    tokenizer = loading.load_tokenizer(folder, config)
    return loading.load_model(folder, tokenizer, config, device="cpu", dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def save_sharded(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_llama(tokenizer).save_pretrained(folder, max_shard_size=60_000)
    tokenizer.save_pretrained(folder)
    return folder


# --- which model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_id_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.id = ' ?': is empty; name a Hub id or a folder"):
        sources.check(ModelConfig(id=name, embedded=None))


@pytest.mark.parametrize(
    ("taken", "lack"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "a tokenizer (tokenizer.json)"),
        ("model.safetensors.index.json", "model.safetensors, or model.safetensors.index.json"),
        ("model-00002-of-*", "model-00002-of-"),
    ],
)
def test_a_folder_that_lacks_a_file(taken: str, lack: str, tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "model")
    sources.check(ModelConfig(id=str(folder), embedded=None))
    (path,) = folder.glob(taken)
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        sources.check(ModelConfig(id=str(folder), embedded=None))
    assert f"the folder lacks {lack}" in str(caught.value)
    with pytest.raises(ConfigError):
        sources.resolve(ModelConfig(id=str(folder), embedded=None), tmp_path)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in a Hub cache as huggingface_hub lays it out; returns the snapshot's folder."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = cache / "models--org--tiny", "c" * 40
    for name in ("refs", "blobs"):
        (repository / name).mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    return save_sharded(repository / "snapshots" / commit)


def test_a_whole_snapshot_is_taken_without_asking(cached: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    config = ModelConfig(id=HUB_ID, embedded=None)
    base = sources.resolve(config, tmp_path, on_event=asked.append)
    assert base.folder == cached and base.identity.revision == "c" * 40
    assert not asked


@pytest.mark.parametrize("cut", ["model-00003-of-*", "tokenizer.json", "*.index.json"])
def test_a_snapshot_cut_short_is_asked_again(cut: str, cached: Path, tmp_path: Path) -> None:
    (path,) = cached.glob(cut)
    path.unlink()
    asked: list[str] = []
    config = ModelConfig(id=HUB_ID, embedded=None)
    with pytest.raises(BackendUnavailable, match="what is there lacks ") as caught:
        sources.resolve(config, tmp_path, on_event=asked.append)
    assert asked == [f"asking the Hub for {HUB_ID}"]
    assert "\n" not in str(caught.value)


def test_a_half_written_file_is_asked_again(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the chat template, which no other file names."""
    (cached.parents[1] / "blobs" / ("a" * 40 + ".incomplete")).write_text("{%")
    asked: list[str] = []
    sources.resolve(ModelConfig(id=HUB_ID, embedded=None), tmp_path, on_event=asked.append)
    assert asked == [f"asking the Hub for {HUB_ID}"]


# --- the model's own files against each other -----------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_model(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["ahoy", "matey"])
    tokenizer.save_pretrained(folder)
    for pad in PadToken:
        with pytest.raises(ConfigError, match=r"has 2 tokens that the model has no embedding for"):
            loading.load_tokenizer(folder, ModelConfig(id=str(folder), pad_token=pad))


def test_a_special_token_beyond_the_model_may_stay(folder: Path) -> None:
    """Gemma 3 1B's tokenizer has one for images; no text becomes it, and no row is added."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert load(folder).get_input_embeddings().num_embeddings == rows < len(tokenizer)


@pytest.mark.parametrize("place", ["chat_template", "eos_token"])
def test_a_special_token_that_rows_would_hold(place: str, folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    setattr(tokenizer, place, "<turn>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"no embedding for \(such as '<turn>'; it has"):
        loading.load_tokenizer(folder, ModelConfig(id=str(folder)))


def test_a_row_with_such_a_token_is_refused(folder: Path, tiny_rows: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["fault"]})
    tokenizer.save_pretrained(folder)
    root = tmp_path / "store"
    config = shape_columns(make_config(folder, tiny_rows, root))
    stages = recipe_of(config)
    made(root, stages.data)
    with pytest.raises(DataError, match="a row has the token 'fault', which the model has no"):
        made(root, stages.adapter)


def test_a_new_pad_token_gets_one_row(folder: Path) -> None:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = ModelConfig(id=str(folder), pad_token=PadToken.new)
    assert len(loading.load_tokenizer(folder, config)) == rows + 1
    grown = load(folder, pad_token=PadToken.new).get_input_embeddings().weight
    assert rows < len(grown) <= rows + 8
    assert (grown[rows] - grown[:rows].mean(0)).abs().max() < 1e-6


def test_weights_of_more_layers_than_the_configuration(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1, layer_types=None)
    with pytest.raises(DataError) as caught:
        load(folder)
    line = str(caught.value)
    assert "config.json has no place for model.layers.1.input_layernorm.weight (9 tensors" in line


def test_weights_that_no_text_needs_are_left_out(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    further = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision_tower.patch.weight": torch.ones(2, 2),
        "lm_head.weight": load_file(path)["lm_head.weight"].clone(),
    }
    save_file(load_file(path) | further, path, metadata={"format": "pt"})
    load(folder)


def test_tied_weights_may_be_stored_twice(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    load(folder)


def test_the_attention_kernel_is_the_configured_one(folder: Path) -> None:
    assert load(folder).config._attn_implementation == "sdpa"
    assert load(folder, attn_implementation=Attention.eager).config._attn_implementation == "eager"


def test_a_kernel_that_is_not_there(folder: Path) -> None:
    config = ModelConfig(id=str(folder), attn_implementation=Attention.flash_attention_2)
    said = r"^model\.attn_implementation = 'flash_attention_2': "
    with pytest.raises(BackendUnavailable, match=said + ".*; install what it names, or set"):
        loading.outline(folder, config)
    with pytest.raises(ConfigError, match=said + "works on CUDA GPUs .*not on cpu in float32"):
        load(folder, attn_implementation=Attention.flash_attention_2)


# --- before a training is paid for ----------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "context"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"state_size": 8}, None),
        # Qwen 2.5's way to 128k.
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        # Llama 3.1 names the stretched length itself.
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
    ],
)
def test_context_length(written: dict[str, Any], context: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert modelfolder.context_length(tmp_path) == context


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("data.max_length", 513, "longer than the model's context of 512 tokens"),
        ("lora.r", 33, "above the smaller side of model.layers.0.self_attn.q_proj (32 x 32)"),
        ("lora.target_modules", ["q_proj", "nosuch"], "the model has no layer nosuch"),
    ],
)
def test_refused_before_the_first_stage(
    setting: str, value: Any, said: str, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    config = shape_columns(make_config(tiny_model, tiny_rows, tmp_path))
    config.lora.target_modules = ["q_proj"]
    train.check(recipe_of(config).adapter, {})
    group, _, name = setting.partition(".")
    setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError) as caught:
        train.check(recipe_of(config).adapter, {})
    assert str(caught.value).startswith(f"{setting} = {value!r}: ") and said in str(caught.value)


# --- bytes that change on the disk ----------------------------------------------------------


def test_a_flipped_byte_in_the_converted_base_is_found(
    tmp_path: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion itself needs a download; here a tiny model lies where it would write."""
    root = tmp_path / "store"
    wanted = ModelConfig(source=Source.embedded, embedded="smollm2-135m-instruct")
    identity = ModelIdentity(id="tiny", source="wheel", revision="0")

    def write(_: Any, __: Any, out: Path, ___: Any) -> ModelIdentity:
        save_tiny_model(out)
        return identity

    monkeypatch.setattr(embedded, "convert_model", write)
    base = sources.resolve(wanted, root)
    assert base.identity == identity
    config = shape_columns(make_config(base.folder, tiny_rows, root))
    config.model = wanted
    stages = recipe_of(config)
    assert stages.data.upstreams == (embedded.convert_stage("smollm2-135m-instruct"),)
    weights = base.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for stage in (stages.data, stages.base.scores["intent_choice"]):
        with pytest.raises(StoreError, match=r"model\.safetensors does not have the sha256"):
            made(root, stage)
    assert {path.parent.parent.name for path in root.glob("*/*/result.json")} == {"model"}


def test_a_folder_that_changes_after_the_study_was_planned(
    folder: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    stages = recipe_of(shape_columns(make_config(folder, tiny_rows, root)))
    edit(folder / "config.json", rms_norm_eps=0.5)
    for stage in (stages.data, stages.base.scores["intent_choice"]):
        with pytest.raises(DataError, match="not those that the study was planned with"):
            made(root, stage)
    assert not list(root.glob("*/*/result.json"))


def test_a_folder_with_another_byte_is_another_model(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(id=str(folder), embedded=None)
    before = sources.resolve(config, tmp_path).identity
    copy = shutil.copytree(folder, tmp_path / "copy" / folder.name)
    other = ModelConfig(id=str(copy), embedded=None)
    assert sources.resolve(other, tmp_path).identity == before
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert sources.resolve(other, tmp_path).identity != before
