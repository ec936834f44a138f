"""Tiny tokenizers and a tiny random Llama, made in-process: tests need no download.

The tokenizers have the shapes of real families: which token is BOS, and whether the tokenizer's
post-processor adds it. The texts are our own.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

Family = Literal["chatml", "llama3", "llama2", "mistral", "gemma", "gpt2"]

TEXTS = [
    "The quick brown fox jumps over the lazy dog while the sailors sing on the deck.",
    "Instruction, context and answer: what is the capital of France? Paris is the capital.",
    "Human: hello there! Assistant: hello, how can I help you today?",
    "system user assistant\nYou are a helpful assistant who answers with one word.",
    "Numbers 0 1 2 3 4 5 6 7 8 9, signs # ## ### and (brackets) are in the text as well.",
    "### Instruction\n### Context\n### Answer\n",
]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set loop_messages = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (head if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('Only user and assistant roles') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# bos, eos, further special tokens, does the tokenizer add BOS itself, the model's own template
FAMILIES: dict[str, tuple[str | None, str, list[str], bool, str | None]] = {
    # Like SmolLM2-Instruct: BOS is the token that opens every turn, and nothing adds it.
    "chatml": ("<|im_start|>", "<|im_end|>", ["<|endoftext|>"], False, CHATML),
    "llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        True,
        LLAMA3,
    ),
    "llama2": ("<s>", "</s>", ["<unk>"], True, LLAMA2),
    "mistral": ("<s>", "</s>", ["<unk>"], True, MISTRAL),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], True, GEMMA),
    # A base model without BOS and without a chat template.
    "gpt2": (None, "<|endoftext|>", [], False, None),
}


SENTENCEPIECE = {"llama2": True, "mistral": True, "gemma": False}
"""Families whose BPE is not byte-level: "▁" for a space, single bytes for rare characters. The
value says whether a space is put before the text."""


@functools.cache
def _trained(family: str) -> str:
    """The trained BPE of a family, as JSON, so that each caller gets a fresh copy."""
    from tokenizers import Tokenizer, models, processors, trainers

    bos, eos, further, adds_bos, _ = FAMILIES[family]
    backend = Tokenizer(models.BPE(unk_token="<unk>" if "<unk>" in further else None))
    alphabet = _like_sentencepiece(backend, family) if family in SENTENCEPIECE else None
    if alphabet is None:
        alphabet = _byte_level(backend)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[token for token in (eos, bos, *further) if token],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    plain = json.loads(backend.to_str())
    if family in SENTENCEPIECE:
        vocabulary = plain["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        plain["model"]["byte_fallback"] = True
        plain["pre_tokenizer"] = None
    return json.dumps(plain)


def _byte_level(backend: Any) -> list[str]:
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet: list[str] = pre_tokenizers.ByteLevel.alphabet()
    return alphabet


def _like_sentencepiece(backend: Any, family: str) -> list[str]:
    from tokenizers import decoders, normalizers, pre_tokenizers

    # For the training alone: real vocabularies have no tokens across words or lines.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("\n", "isolated"),
        ]
    )
    prepends = SENTENCEPIECE[family]
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepends else replace
    )
    strip = [decoders.Strip(" ", 1, 0)] if prepends else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return ["▁"]


def tiny_tokenizer(
    family: Family = "chatml", *, template: bool = True, new_pad: bool = False
) -> Any:
    """A fast BPE tokenizer of 400 to 700 tokens.

    Args:
        family: whose special tokens, BOS habit and chat template it has.
        template: give it the family's own chat template (gpt2 has none).
        new_pad: add `<|pad|>` as a token of its own; otherwise the end token pads.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bos, eos, _, _, jinja = FAMILIES[family]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(family)),
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
    if template:
        tokenizer.chat_template = jinja
    if new_pad:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def tiny_llama(tokenizer: Any, *, seed: int = 0, attention: str = "sdpa", **config: Any) -> Any:
    """A random Llama (hidden 32, 2 layers, fp32, eval mode) for `tokenizer`'s vocabulary.

    The same seed gives the same weights; `config` overrides fields of LlamaConfig.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "attn_implementation": attention,
        # Larger than usual, so that random logits tell tokens apart.
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
    return model.to(torch.float32).eval()


def save_tiny_model(
    folder: Path, family: Family = "chatml", *, seed: int = 0, template: bool = True, **config: Any
) -> Path:
    """Write a tiny model and its tokenizer (safetensors) to `folder` and return it."""
    tokenizer = tiny_tokenizer(family, template=template)
    model = tiny_llama(tokenizer, seed=seed, **config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` to `path`, one JSON object a line, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def conversation(user: str, answer: str, system: str | None = None) -> dict[str, Any]:
    """A `messages` row with one question and one answer."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}
