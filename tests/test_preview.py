from __future__ import annotations

import io

import pytest
from rich.console import Console
from tiny import conversation, tiny_tokenizer, write_jsonl

from ftsuite.config import DataConfig, RunConfig, TemplateConfig
from ftsuite.data.packing import single
from ftsuite.data.preview import preview, row_text, visible
from ftsuite.errors import ConfigError, DataError


def shown(rows, tmp_path, *, tokenizer=None, count=2, template=None, **config):
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    run = RunConfig(
        data=DataConfig(train=str(path), **config), template=template or TemplateConfig()
    )
    console = Console(file=io.StringIO(), width=120)
    preview(run, tokenizer or tiny_tokenizer(), console, count)
    return console.file.getvalue()


def questions(count):
    return [conversation(f"Say {n}.", f"It is {n}.") for n in range(count)]


def test_rows_counts_and_splits_are_shown(tmp_path):
    odd = {"messages": [{"role": "user", "content": "Hello?"}]}
    text = shown([*questions(40), odd], tmp_path, train_limit=30)
    assert text.count("training row ") == 2
    assert "⟦It is " in text
    assert ".<|im_end|>⟧" in text
    assert "<|im_start|>user↵" in text
    assert "template model (" in text
    assert "BOS from: template" in text
    for part in ("train.jsonl (messages), packing bfd", "train", "validation", "filled"):
        assert part in text
    assert "dropped 1 rows: turns do not alternate user and assistant" in text
    assert "subset: 30 of 36 training rows (seed 0)" in text
    assert "warning" not in text


def test_trained_tokens_have_another_style():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("Hello[/bold] café")
    text = row_text(tokenizer, single(ids, [0] * 2 + [1] * (len(ids) - 2)))
    assert text.plain.replace("⟦", "").replace("⟧", "") == "Hello[/bold] café"
    assert {str(span.style) for span in text.spans} == {"dim", "bold green"}


def test_control_characters_do_not_reach_the_terminal():
    shown_text = visible("a\x1b[2Jb\tc\r\nd\x7f\x9b")
    assert shown_text == "a␛[2Jb⇥c␍↵\nd␡�"


def test_text_rows(tmp_path):
    rows = [{"text": f"Once {n}."} for n in range(20)]
    text = shown(rows, tmp_path, template=TemplateConfig(name="plain", jinja="{{ messages }}"))
    assert "plain text rows: no template is used" in text


def test_a_template_without_end_token_is_warned_of(tmp_path):
    jinja = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    jinja += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    text = shown(questions(20), tmp_path, template=TemplateConfig(name="endless", jinja=jinja))
    assert "warning: no answer ends with a special token" in text


def test_errors_come_through(tmp_path):
    with pytest.raises(ConfigError, match=r"template\.jinja"):
        shown(questions(20), tmp_path, tokenizer=tiny_tokenizer("gpt2"))
    with pytest.raises(DataError, match="split is empty"):
        shown(questions(2), tmp_path)
