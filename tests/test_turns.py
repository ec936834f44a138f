"""The real chat templates that TRL installs: trained and scored tokens are the same, or refused."""

from __future__ import annotations

import functools
from importlib import resources

import pytest
from tiny import FAMILIES, tiny_tokenizer

from ftsuite.choices import SystemPlace
from ftsuite.config import TemplateConfig
from ftsuite.errors import ConfigError, DataError, FtsuiteError, one_line
from ftsuite.models import templates, turns

SYSTEM = {"role": "system", "content": "Answer like a pirate."}
ONE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris is the capital."},
]
TWO = [
    *ONE,
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "The lazy dog."},
]
CONVERSATIONS = {"one turn": ONE, "system": [SYSTEM, *ONE], "several turns": [SYSTEM, *TWO]}

IMAGE_TEMPLATES = {"idefics3", "llava_next", "smolvlm"}
"""They read a message as a list of parts and drop plain text."""


def trl_templates() -> dict[str, str]:
    """Every template that TRL installs, without its patched twins."""
    folder = resources.files("trl") / "chat_templates"
    return {
        path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
        for path in folder.iterdir()
        if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja")
    }


TEMPLATES = trl_templates()
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "<|return|>",
    "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<|eot_id|>", "<|eot|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|start|>", "<|message|>", "<|channel|>",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>",
    "<|END_RESPONSE|>", "<|START_RESPONSE|>",
)  # fmt: skip
"""Marks of the families, as the special tokens that they are in their own tokenizers."""


@functools.cache
def tokenizers() -> dict[str, object]:
    plain = {family: tiny_tokenizer(family) for family in FAMILIES}
    own = tiny_tokenizer("llama3")
    own.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return plain | {"own marks": own}


def installed(name: str, family: str, **settings: object):
    import copy

    tokenizer = copy.deepcopy(tokenizers()[family])
    config = TemplateConfig(name=name, jinja=TEMPLATES[name], **settings)
    templates.install(tokenizer, config)
    return tokenizer


def refusal(name: str, family: str) -> str:
    """Why a template is refused on a tokenizer; empty where it has to be right."""
    if name in IMAGE_TEMPLATES:
        return "drops or changes|failed"
    writes_bos = name.startswith("lfm2")
    if writes_bos and family == "chatml":
        # SmolLM2's BOS is the mark that opens every turn.
        return "two BOS tokens"
    if family == "gpt2" and name == "llama3":
        return "bos_token"
    return ""


@pytest.mark.parametrize("family", [*FAMILIES, "own marks"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_is_right_or_refused(name, family):
    reason = refusal(name, family)
    for messages in CONVERSATIONS.values():
        if reason:
            with pytest.raises(DataError, match=reason) as caught:
                turns.rows(installed(name, family), messages)
            assert "\n" not in one_line(caught.value)
            continue
        tokenizer = installed(name, family)
        rows = turns.rows(tokenizer, messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for index in answers:
            _check_answer(tokenizer, rows, messages[: index + 1], alone=len(rows) > 1)
        trained = sum(sum(row.mask) for row in rows)
        assert trained < sum(len(row.ids) for row in rows)
        # Never two BOS.
        for row in rows:
            assert row.ids[:2] != [tokenizer.bos_token_id] * 2


@pytest.mark.parametrize("family", [*FAMILIES, "own marks"])
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - IMAGE_TEMPLATES))
def test_one_encoding_gives_what_two_give(name, family, monkeypatch):
    if refusal(name, family):
        return
    tokenizer = installed(name, family)
    answers = ["Paris.", "\nParis", " Paris ", "<|im_end|>", "1", "é"]
    rows = [[ONE[0], {"role": "assistant", "content": answer}] for answer in answers]
    conversations = [*CONVERSATIONS.values(), *rows]
    at_once = [turns.rows(tokenizer, messages) for messages in conversations]
    monkeypatch.setattr(turns, "_encoded_at_once", lambda *_: None)
    assert at_once == [turns.rows(tokenizer, messages) for messages in conversations]


def _check_answer(tokenizer, rows, messages, *, alone: bool) -> None:
    """What is scored behind the prompt is what is trained there, and the end is trained."""
    before = turns.prompt(tokenizer, messages[:-1])
    prompt, answer = turns.encode_pair(tokenizer, before, messages[-1]["content"])
    scored = prompt + answer
    mine = [row for row in rows if row.ids[: len(scored)] == scored]
    assert mine, "no trained row begins with the scored tokens"
    row = mine[0] if alone else rows[0]
    assert row.mask[len(prompt) : len(scored)] == [1] * len(answer)
    assert row.mask[len(prompt) - 1] == 0
    assert answer
    end = turns.dialect(tokenizer).stop_token
    following = [token for token, kept in zip(row.ids, row.mask, strict=True) if kept]
    assert end is None or end in following


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - IMAGE_TEMPLATES))
def test_what_is_trained_is_the_templates_own_text(name):
    """An independent look: the template's own rendering of the whole conversation."""
    tokenizer = installed(name, "own marks")
    switches = templates.installed(tokenizer).switches
    place = templates.installed(tokenizer).place
    messages = [SYSTEM, *TWO] if place is SystemPlace.native else TWO
    whole = tokenizer.apply_chat_template(messages, tokenize=False, **switches)
    last = turns.rows(tokenizer, messages)[-1]
    text = tokenizer.decode(last.ids)
    adds_bos = not whole.startswith(tokenizer.bos_token)
    text = text.removeprefix(tokenizer.bos_token) if adds_bos else text
    end = turns.dialect(tokenizer)
    assert text == whole.removesuffix(end.suffix) + end.end
    # The last trained stretch is the answer and its end, nothing of the prompt.
    start = len(last.mask) - last.mask[::-1].index(0)
    assert tokenizer.decode(last.ids[start:]) == "The lazy dog." + end.end


@pytest.mark.parametrize(
    ("name", "before", "end"),
    [
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("qwen3_8", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("glm4moe", "<|assistant|>\n<think></think>\n", "<|user|>"),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>", "<|return|>"),
        ("deepseek_r1_distill", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", "<|im_start|>assistant\n<think></think>", "<|im_end|>"),
        ("gemma", "<start_of_turn>model\n", "<end_of_turn>"),
        ("llama3_1", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("phi3_5", "<|assistant|>\n", "<|end|>"),
    ],
)
def test_an_answer_stands_between_the_families_own_marks(name, before, end):
    tokenizer = installed(name, "own marks")
    assert turns.prompt(tokenizer, ONE[:1]).endswith(before)
    assert turns.dialect(tokenizer).end == end
    assert turns.dialect(tokenizer).stop_token == tokenizer.convert_tokens_to_ids(end)


def test_thinking_is_off_by_the_templates_own_switch():
    for name, thought in {"qwen3_8": "Reasoning effort", "glm4moe": ""}.items():
        off, on = (
            installed(name, "own marks"),
            installed(name, "own marks", kwargs={"enable_thinking": True}),
        )
        assert templates.installed(off).switches == {"enable_thinking": False}
        first = turns.prompt(off, ONE[:1])
        assert thought == "" or thought not in first
        assert first != turns.prompt(on, ONE[:1])
    assert "/nothink" in turns.prompt(installed("glm4moe", "own marks"), ONE[:1])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "nemotron_3_nano"])
def test_thinking_that_changes_the_cue_alone_is_refused(name):
    with pytest.raises(ConfigError, match=r"enable_thinking = True: .* the same conversations"):
        installed(name, "own marks", kwargs={"enable_thinking": True})
    off = installed(name, "own marks", kwargs={"enable_thinking": False})
    assert turns.rows(off, ONE) == turns.rows(installed(name, "own marks"), ONE)


def test_a_switch_that_the_template_does_not_read_is_refused():
    # `thinking` is part of a name that it reads.
    for name in ("thinkng", "thinking"):
        with pytest.raises(
            ConfigError, match=rf"template\.kwargs\.{name} = False: .* no such switch"
        ):
            installed("qwen3", "chatml", kwargs={name: False})


def test_an_earlier_turn_that_the_template_rewrites_is_trained_where_it_is_the_last():
    tokenizer = installed("qwen3", "own marks")
    first, second = turns.rows(tokenizer, TWO)
    assert tokenizer.decode(first.ids).count("<think>") == 1
    assert tokenizer.decode(second.ids).count("<think>") == 1
    assert "Paris" in tokenizer.decode(second.ids)
    trained = [t for t, kept in zip(second.ids, second.mask, strict=True) if kept]
    assert tokenizer.decode(trained) == "The lazy dog.<|im_end|>"
    # One that keeps them needs one row.
    assert len(turns.rows(installed("qwen2_5", "own marks"), TWO)) == 1


def test_gemmas_system_text_goes_in_front_of_the_first_user_turn():
    tokenizer = installed("gemma", "gemma")
    assert templates.installed(tokenizer).place is SystemPlace.first_user
    text = turns.prompt(tokenizer, [SYSTEM, *ONE[:1]])
    assert "<start_of_turn>user\nAnswer like a pirate.\n\nWhat is the capital" in text
    # Gemma 3's own template writes the same.
    assert turns.prompt(installed("gemma3", "gemma"), [SYSTEM, *ONE[:1]]) == text


@pytest.mark.parametrize(
    ("place", "message"),
    [(SystemPlace.native, "System role not supported"), (SystemPlace.error, "template.system")],
)
def test_template_system_says_where_the_system_message_goes(place, message):
    tokenizer = installed("gemma", "gemma", system=place)
    assert turns.rows(tokenizer, ONE)
    with pytest.raises(FtsuiteError, match=message):
        turns.prompt(tokenizer, [SYSTEM, *ONE[:1]])


def test_first_user_can_be_asked_for_where_the_template_has_a_system_role():
    tokenizer = installed("qwen2_5", "chatml", system=SystemPlace.first_user)
    text = turns.prompt(tokenizer, [SYSTEM, *ONE[:1]])
    assert "user\nAnswer like a pirate.\n\nWhat is" in text


def test_an_end_that_is_no_token_is_a_stop_string():
    for family in ("chatml", "llama2"):
        dialect = turns.dialect(installed("phi3", family))
        assert dialect.stops[0] == "<|end|>"
        assert dialect.stop_token == tokenizers()[family].eos_token_id
    dialect = turns.dialect(installed("glm4moe", "chatml"))
    assert dialect.stops == ("<|user|>",)
    assert dialect.stop_token is None


def test_a_row_with_a_thought_is_refused():
    tokenizer = installed("qwen3", "own marks")
    thought = {"role": "assistant", "content": "<think>Hm.</think>Paris."}
    with pytest.raises(DataError, match="changes the text of an answer"):
        turns.rows(tokenizer, [ONE[0], thought])


@pytest.mark.parametrize("name", ["gemma", "qwen3", "llama3", "nemotron_3_nano", "qwen2_5"])
@pytest.mark.parametrize("answer", ["\nParis", " Paris ", "Paris\n", "end", "user", "assistant"])
def test_white_space_and_words_of_the_marks_in_an_answer(name, answer):
    tokenizer = installed(name, "own marks")
    rows = turns.rows(tokenizer, [ONE[0], {"role": "assistant", "content": answer}])
    prompt, scored = turns.encode_pair(tokenizer, turns.prompt(tokenizer, ONE[:1]), answer)
    assert rows[0].ids[: len(prompt + scored)] == prompt + scored
    assert tokenizer.decode(scored) == turns.dialect(tokenizer).treat(answer)


def test_spaces_around_every_answer_go_with_the_answer_and_leave_a_generated_one():
    tokenizer = tiny_tokenizer("llama2")
    templates.install(tokenizer, TemplateConfig())
    assert turns.prompt(tokenizer, ONE[:1]).endswith("[/INST]")
    # As lm-eval: a space and the word behind it are tokenised together.
    prompt, answer = turns.encode_pair(tokenizer, turns.prompt(tokenizer, ONE[:1]), "Paris")
    assert prompt + answer == tokenizer.encode(
        "[INST] What is the capital of France? [/INST] Paris"
    )
    assert turns.bare_answer(tokenizer, " delivery ") == "delivery"
    assert turns.dialect(tokenizer).end == " </s>"
    assert turns.bare_answer(tokenizer, "delivery ") == "delivery"
    assert turns.bare_answer(tokenizer, "delivery") == "delivery"


def test_a_template_that_ends_no_answer_is_refused():
    tokenizer = tiny_tokenizer()
    jinja = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    templates.install(tokenizer, TemplateConfig(name="endless", jinja=jinja))
    with pytest.raises(DataError, match="template endless writes nothing behind an answer"):
        turns.dialect(tokenizer)
