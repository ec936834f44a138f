"""lm-eval's backend on our prompts: a model that learned its rows by heart scores full marks."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from tiny import tiny_llama, tiny_tokenizer

from ftsuite.config import ProbesConfig, TemplateConfig
from ftsuite.errors import DataError
from ftsuite.events import silent
from ftsuite.models import loading, templates, turns
from ftsuite.resources import conf_dir
from ftsuite.scoring import probe
from ftsuite.scoring.harness import build_harness

QUESTIONS = {"Where is the fox?": "on the deck", "What is the capital?": "Paris"}


def shipped(name: str) -> TemplateConfig:
    return TemplateConfig(**yaml.safe_load((conf_dir() / "template" / f"{name}.yaml").read_text()))


def learned(tokenizer: Any) -> Any:
    """A tiny model trained on the rows until it knows them by heart."""
    import torch

    torch.manual_seed(0)
    model = tiny_llama(tokenizer).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = []
    for question, answer in QUESTIONS.items():
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        (row,) = turns.rows(tokenizer, messages)
        labels = [t if kept else -100 for t, kept in zip(row.ids, row.mask, strict=True)]
        batch.append((torch.tensor([row.ids]), torch.tensor([labels])))
    for _ in range(80):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.05
    return model.eval()


def asked(harness: Any, question: str, **settings: Any) -> Instance:
    context = harness.apply_chat_template([{"role": "user", "content": question}])
    return Instance(request_type="generate_until", doc={}, arguments=(context, settings), idx=0)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("chatml", "model"),
        ("chatml", "llama3"),  # its end of turn is no token of this tokenizer
        ("gpt2", "chatml"),
        ("llama2", "model"),  # spaces around every answer
        ("llama2", "chatml"),
        ("gemma", "model"),  # ends with another token than the tokenizer's end token
        ("llama3", "vicuna"),
    ],
)
def test_a_perfect_model_is_scored_as_perfect(family: Any, name: str) -> None:
    tokenizer = tiny_tokenizer(family)
    templates.install(tokenizer, shipped(name))
    model = learned(tokenizer)
    loading.plain_generation(model, turns.end_tokens(model, tokenizer), tokenizer.pad_token_id)
    harness = build_harness(model, tokenizer, 2, silent())
    requests = [asked(harness, question, until=["\n"], max_gen_toks=40) for question in QUESTIONS]
    assert harness.generate_until(requests) == list(QUESTIONS.values())
    # And the probes' own generation.
    prompts = [probe.render_prompt(tokenizer, None, question) for question in QUESTIONS]
    settings = ProbesConfig(max_new_tokens=40)
    answers = probe._generate(model, tokenizer, prompts, settings, lambda _: None)
    assert answers == list(QUESTIONS.values())


def test_a_prompt_that_does_not_fit_the_context_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig())
    harness = build_harness(tiny_llama(tokenizer), tokenizer, 2, silent())
    long = asked(harness, "fox " * 600, until=["\n"], max_gen_toks=8)
    with pytest.raises(DataError, match=r"a prompt of [\d,]+ tokens is longer than the 504"):
        harness.generate_until([long])
    pair = Instance(request_type="loglikelihood", doc={}, arguments=(long.args[0], "Yes"), idx=0)
    with pytest.raises(DataError, match="longer than the 512"):
        harness.loglikelihood([pair])
