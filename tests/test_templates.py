from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import FAMILIES, tiny_llama, tiny_tokenizer

from ftsuite.choices import SystemPlace
from ftsuite.config import TemplateConfig
from ftsuite.errors import ConfigError, DataError, one_line
from ftsuite.models import bounds, templates, turns
from ftsuite.resources import conf_dir

SHIPPED = sorted(path.stem for path in (conf_dir() / "template").glob("*.yaml"))
OWN = [name for name in SHIPPED if name != "model"]
ONE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris is the capital."},
]
SYSTEM = {"role": "system", "content": "Answer like a pirate."}
TWO = [
    *ONE,
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "The lazy dog."},
]


def shipped(name: str) -> TemplateConfig:
    text = (conf_dir() / "template" / f"{name}.yaml").read_text()
    return TemplateConfig(**yaml.safe_load(text))


def with_template(family: str, name: str):
    """A tokenizer with a shipped template, or None where the model has none of its own."""
    tokenizer = tiny_tokenizer(family)
    if name == "model" and tokenizer.chat_template is None:
        return None
    templates.install(tokenizer, shipped(name))
    return tokenizer


def split(tokenizer, messages):
    """The one row of a conversation: ids and mask."""
    (row,) = turns.rows(tokenizer, messages)
    return row.ids, row.mask


def pairs() -> list[tuple[str, str]]:
    return [(f, n) for f in FAMILIES for n in SHIPPED if not (f == "gpt2" and n == "model")]


def test_the_shipped_templates_are_the_ones_promised():
    assert set(SHIPPED) == {"model", "chatml", "llama3", "vicuna", "dolly"}
    for name in SHIPPED:
        assert shipped(name).name == name


def test_vicuna_renders_what_its_recipe_renders():
    tokenizer = with_template("llama3", "vicuna")
    text = templates.render(tokenizer, [SYSTEM, *ONE])
    end = tokenizer.eos_token
    assert text == (
        f"Answer like a pirate.\n\nHuman: What is the capital of France?{end}"
        f"\n\nAssistant: Paris is the capital.{end}"
    )
    prompt = turns.prompt(tokenizer, ONE[:1])
    assert prompt == f"\n\nHuman: What is the capital of France?{end}\n\nAssistant:"


def test_dolly_renders_what_its_recipe_renders():
    tokenizer = with_template("llama3", "dolly")
    user = {"role": "user", "content": "Why?\n\nIt rains.", "instruction": "Why?"}
    messages = [user | {"context": "It rains."}, {"role": "assistant", "content": "Clouds."}]
    text = templates.render(tokenizer, messages)
    assert text == (
        "### Instruction\nWhy?\n\n### Context\nIt rains.\n\n### Answer\nClouds."
        + tokenizer.eos_token
    )
    text = turns.prompt(tokenizer, [SYSTEM, *ONE[:1]])
    assert text == (
        "Answer like a pirate.\n\n### Instruction\nWhat is the capital of France?\n\n### Answer\n"
    )


def test_chatml_and_llama3_equal_the_models_own_where_the_end_token_fits():
    chatml = tiny_tokenizer("chatml")
    own = templates.render(chatml, [SYSTEM, *TWO])
    templates.install(chatml, shipped("chatml"))
    assert templates.render(chatml, [SYSTEM, *TWO]) == own
    llama3 = tiny_tokenizer("llama3")
    llama3.eos_token = "<|eot_id|>"
    own = templates.render(llama3, [SYSTEM, *TWO])
    templates.install(llama3, shipped("llama3"))
    assert templates.render(llama3, [SYSTEM, *TWO]) == own


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_shipped_template_keeps_the_system_message_and_ends_answers_with_eos(family, name):
    tokenizer = with_template(family, name)
    ids, mask = split(tokenizer, [SYSTEM, *TWO])
    assert SYSTEM["content"] in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id
    assert mask[-1] == 1


@pytest.mark.parametrize("name", OWN)
def test_context_reaches_every_template(name):
    tokenizer = with_template("chatml", name)
    user = {"role": "user", "content": "Why?\n\nIt rains.", "instruction": "Why?"}
    prompt = turns.prompt(tokenizer, [user | {"context": "It rains."}])
    assert prompt.count("Why?") == prompt.count("It rains.") == 1


@pytest.mark.parametrize(("family", "name"), pairs())
def test_no_double_bos(family, name):
    tokenizer = with_template(family, name)
    adds_bos = FAMILIES[family][3]
    prompt = turns.prompt(tokenizer, ONE[:1])
    ids = templates.encode(tokenizer, prompt)
    rule = templates.bos_rule(tokenizer, prompt)
    if adds_bos:
        assert ids[0] == tokenizer.bos_token_id
        assert rule == ("template" if prompt.startswith(tokenizer.bos_token) else "tokenizer")
        assert ids.count(tokenizer.bos_token_id) == 1
        trained, _ = split(tokenizer, ONE)
        assert trained.count(tokenizer.bos_token_id) == 1
    else:
        assert ids[:2] != [tokenizer.bos_token_id] * 2
        assert rule in ("none", "template")


@pytest.mark.parametrize("start", ["{{ bos_token }}{{ bos_token }}", "\n{{ bos_token }}"])
def test_a_template_that_makes_two_bos_tokens_is_an_error(start):
    tokenizer = tiny_tokenizer("llama3")
    jinja = start + "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    templates.install(tokenizer, TemplateConfig(name="twice", jinja=jinja))
    text = turns.prompt(tokenizer, ONE[:1])
    with pytest.raises(DataError, match="template twice makes two BOS tokens"):
        templates.encode(tokenizer, text)


@pytest.mark.parametrize(("family", "name"), pairs())
@pytest.mark.parametrize("system", [False, True])
def test_training_and_probes_see_the_prompt_that_lm_eval_sees(family, name, system):
    from lm_eval.models.huggingface import HFLM

    tokenizer = with_template(family, name)
    if system and name == "model" and family in ("gemma", "mistral"):
        return  # no system role; see the test of the error
    messages = [SYSTEM, *ONE] if system else ONE
    lm = HFLM(pretrained=tiny_llama(tokenizer), tokenizer=tokenizer, batch_size=1)
    theirs = lm.apply_chat_template(messages[:-1])
    theirs = theirs.rstrip(" ")  # Vicuna's cue ends in one, which goes with the answer
    assert turns.prompt(tokenizer, messages[:-1]) == theirs
    prompt = templates.encode(tokenizer, theirs)
    assert prompt == lm.tok_encode(theirs)
    # What generate_until feeds the model.
    assert prompt == lm.tok_batch_encode([theirs])[0][0].tolist()
    ids, mask = split(tokenizer, messages)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    before, answer = turns.encode_pair(tokenizer, theirs, ONE[-1]["content"])
    assert (before, before + answer) == (prompt, ids[: len(before + answer)])
    # And what log-likelihood tasks score, where the template puts no space before the answer that
    # its cue lacks (Llama 2's own).
    if (family, name) != ("llama2", "model"):
        cued = lm.apply_chat_template(messages[:-1])
        context, continuation = lm._encode_pair(cued, ONE[-1]["content"])
        scored = context + continuation
        assert ids[: len(scored)] == scored


@pytest.mark.parametrize("name", OWN)
def test_a_pair_has_the_tokens_of_training(name):
    tokenizer = with_template("llama2", name)
    prompt = turns.prompt(tokenizer, ONE[:1])
    full = templates.render(tokenizer, ONE).rstrip()
    first, second = turns.encode_pair(tokenizer, prompt, full.removeprefix(prompt).lstrip(" "))
    assert (first + second, [0] * len(first) + [1] * len(second)) == split(tokenizer, ONE)


def test_the_space_before_an_answer_goes_with_the_answer_as_in_lm_eval():
    from lm_eval.models.huggingface import HFLM

    tokenizer = with_template("chatml", "vicuna")
    lm = HFLM(pretrained=tiny_llama(tokenizer), tokenizer=tokenizer, batch_size=1)
    messages = [ONE[0], {"role": "assistant", "content": "the dog"}]
    ids, mask = split(tokenizer, messages)
    context, continuation = lm._encode_pair(lm.apply_chat_template(messages[:-1]), "the dog")
    assert ids[: len(context + continuation)] == context + continuation
    assert mask.index(1) == len(context)


@pytest.mark.parametrize(("family", "name"), pairs())
def test_every_assistant_turn_and_nothing_else_is_trained(family, name):
    tokenizer = with_template(family, name)
    ids, mask = split(tokenizer, TWO)
    runs, last = [], 0
    for token, kept in zip(ids, mask, strict=True):
        if kept and not last:
            runs.append([])
        if kept:
            runs[-1].append(token)
        last = kept
    texts = [tokenizer.decode(run) for run in runs]
    assert len(texts) == 2
    for text, message in zip(texts, TWO[1::2], strict=True):
        assert text.strip().startswith(message["content"])
        rest = text.strip().removeprefix(message["content"]).strip()
        assert rest.endswith(tuple(templates.special_texts(tokenizer)))  # the end is trained
        assert not text.endswith("\n")
    full = templates.render(tokenizer, TWO)
    # Nothing but white space after the last end token is left out.
    text = tokenizer.decode(ids)
    if not full.startswith(tokenizer.bos_token or "\0") and FAMILIES[family][3]:
        text = text.removeprefix(tokenizer.bos_token)
    # The decoders of the SentencePiece kind put spaces behind special tokens.
    assert "".join(text.split()) == "".join(full.split())


def test_an_answer_gets_no_space_that_the_template_did_not_write():
    # SentencePiece-like tokenizers put a space before every text that they are given.
    tokenizer = with_template("llama2", "vicuna")
    messages = [ONE[0], {"role": "assistant", "content": "hel"}]
    ids, _ = split(tokenizer, messages)
    assert "▁hel" in tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.decode(ids).endswith("\n\nAssistant: hel</s>")


def test_a_new_pad_token_changes_no_row():
    plain, padded = tiny_tokenizer("llama3"), tiny_tokenizer("llama3", new_pad=True)
    assert padded.pad_token_id == len(plain) == len(padded) - 1
    assert split(plain, TWO) == split(padded, TWO)
    assert padded.pad_token_id not in split(padded, TWO)[0]


def test_install_returns_the_hash_of_the_installed_text():
    tokenizer = tiny_tokenizer("gpt2")
    config = shipped("chatml")
    assert templates.install(tokenizer, config) == hashlib.sha256(config.jinja.encode()).hexdigest()
    assert tokenizer.chat_template == config.jinja


def test_the_installed_template_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = with_template("llama3", "dolly")
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert templates.install(loaded, TemplateConfig()) == templates.install(
        tokenizer, shipped("dolly")
    )
    assert split(loaded, TWO) == split(tokenizer, TWO)


def test_a_model_without_a_template_needs_one():
    with pytest.raises(ConfigError, match=r"template\.jinja = None: .*template=chatml"):
        templates.install(tiny_tokenizer("gpt2"), TemplateConfig())


def test_the_default_of_several_templates_is_taken():
    tokenizer = tiny_tokenizer("chatml")
    own = tokenizer.chat_template
    tokenizer.chat_template = {"default": own, "tool_use": "nothing"}
    templates.install(tokenizer, TemplateConfig())
    assert tokenizer.chat_template == own


def test_todays_date_is_frozen():
    jinja = (
        "\n{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] + eos_token }}"
        "{% endfor %}"
    )
    tokenizer = tiny_tokenizer()
    first = templates.install(tokenizer, TemplateConfig(name="dated", jinja=jinja))
    text = turns.prompt(tokenizer, ONE[:1])
    assert text == "\n26 Jul 2024What is the capital of France?<|im_end|>"
    # Installed again as the model's own, it is the same template.
    assert templates.install(tokenizer, TemplateConfig()) == first


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_an_untrusted_template_cannot_run_code(jinja):
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="evil", jinja=jinja))
    with pytest.raises(DataError, match="template evil failed"):
        turns.prompt(tokenizer, ONE)


@pytest.mark.parametrize(
    ("jinja", "why"),
    [
        ("{% for message in messages %}", "Unexpected end"),
        ("{{ messages[0]['content'] + missing }}", "missing"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "concatenate"),
    ],
)
def test_a_template_that_fails_is_one_line(jinja, why):
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="broken", jinja=jinja))
    with pytest.raises(DataError, match="template broken failed") as caught:
        turns.prompt(tokenizer, ONE)
    assert why in one_line(caught.value)
    assert "\n" not in one_line(caught.value)


def test_a_template_that_drops_the_system_message_puts_it_into_the_first_user_turn():
    jinja = "{% for m in messages if m.role != 'system' %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="deaf", jinja=jinja))
    text = templates.render(tokenizer, [SYSTEM, *ONE])
    assert text.startswith("Answer like a pirate.\n\nWhat is the capital of France?")
    config = TemplateConfig(name="deaf", jinja=jinja, system=SystemPlace.native)
    templates.install(tokenizer, config)
    with pytest.raises(DataError, match="template deaf drops or changes the system message"):
        templates.render(tokenizer, [SYSTEM, *ONE])


def test_a_conversation_that_keeps_only_its_last_turns_is_an_error():
    # It forgets the question of the first turn, which training and scoring would need.
    jinja = "{% for m in messages[-2:] %}{{ m.role + m.content + eos_token }}{% endfor %}"
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="shifty", jinja=jinja))
    with pytest.raises(DataError, match="template shifty drops or changes the user's text"):
        turns.rows(tokenizer, TWO)


def test_the_cue_plays_no_part_where_it_is_not_what_conversations_hold():
    jinja = (
        "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    )
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="other cue", jinja=jinja))
    assert turns.prompt(tokenizer, ONE[:1]).endswith("<|im_end|>assistant")


def test_a_template_without_end_token_ends_an_answer_with_the_next_turns_opening():
    jinja = (
        "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="endless", jinja=jinja))
    ids, mask = split(tokenizer, ONE)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert tokenizer.decode(trained) == "Paris is the capital.\nuser:"
    assert turns.dialect(tokenizer).stops == ("user:",)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}"


@pytest.mark.parametrize(
    "jinja",
    [
        ENDLESS + "{% set c = a + b %}{% endfor %}{% endfor %}",
        ENDLESS + "{{ messages[0].content * 1000 }}{% endfor %}{% endfor %}",
        "{{ messages[0].content * 1000000000 }}",
    ],
)
def test_a_template_without_end_is_stopped(jinja, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"template\.jinja = 'endless': takes .* mend its loops"):
        templates.install(tiny_tokenizer(), TemplateConfig(name="endless", jinja=jinja))
    # The process can go on as before.
    assert len("x" * 10_000_000) == 10_000_000
    templates.install(tiny_tokenizer(), TemplateConfig())


def test_a_branch_without_end_is_stopped_where_the_first_rendering_does_not_take_it(monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    plain = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    jinja = (
        "{% if messages[0].role != 'system' %}" + ENDLESS + "{% set c = a %}{% endfor %}"
        "{% endfor %}{% endif %}" + plain
    )
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="endless", jinja=jinja))
    with pytest.raises(ConfigError, match="mend its loops"):
        turns.dialect(tokenizer)


def test_data_modules_import_neither_torch_nor_transformers():
    code = (
        "import sys; from ftsuite.data import packing, prepare, preview, readers, shapes;"
        "from ftsuite.models import templates;"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
