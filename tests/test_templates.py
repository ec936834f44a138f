from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import FAMILIES, tiny_llama, tiny_tokenizer

from ftsuite import templates
from ftsuite.config import TemplateConfig
from ftsuite.errors import ConfigError, DataError, one_line
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


def pairs() -> list[tuple[str, str]]:
    return [(f, n) for f in FAMILIES for n in SHIPPED if not (f == "gpt2" and n == "model")]


def test_the_shipped_templates_are_the_ones_promised():
    assert set(SHIPPED) == {"model", "chatml", "llama3", "vicuna", "dolly"}
    for name in SHIPPED:
        assert shipped(name).name == name


def test_vicuna_renders_what_its_recipe_renders():
    tokenizer = with_template("llama3", "vicuna")
    text = templates.render(tokenizer, [SYSTEM, *ONE], add_generation_prompt=False)
    end = tokenizer.eos_token
    assert text == (
        f"Answer like a pirate.\n\nHuman: What is the capital of France?{end}"
        f"\n\nAssistant: Paris is the capital.{end}"
    )
    prompt = templates.render(tokenizer, ONE[:1], add_generation_prompt=True)
    assert prompt == f"\n\nHuman: What is the capital of France?{end}\n\nAssistant: "


def test_dolly_renders_what_its_recipe_renders():
    tokenizer = with_template("llama3", "dolly")
    user = {"role": "user", "content": "Why?\n\nIt rains.", "instruction": "Why?"}
    messages = [user | {"context": "It rains."}, {"role": "assistant", "content": "Clouds."}]
    text = templates.render(tokenizer, messages, add_generation_prompt=False)
    assert text == (
        "### Instruction\nWhy?\n\n### Context\nIt rains.\n\n### Answer\nClouds."
        + tokenizer.eos_token
    )
    text = templates.render(tokenizer, [SYSTEM, *ONE[:1]], add_generation_prompt=True)
    assert text == (
        "Answer like a pirate.\n\n### Instruction\nWhat is the capital of France?\n\n### Answer\n"
    )


def test_chatml_and_llama3_equal_the_models_own_where_the_end_token_fits():
    chatml = tiny_tokenizer("chatml")
    own = templates.render(chatml, [SYSTEM, *TWO], add_generation_prompt=False)
    templates.install(chatml, shipped("chatml"))
    assert templates.render(chatml, [SYSTEM, *TWO], add_generation_prompt=False) == own
    llama3 = tiny_tokenizer("llama3")
    llama3.eos_token = "<|eot_id|>"
    own = templates.render(llama3, [SYSTEM, *TWO], add_generation_prompt=False)
    templates.install(llama3, shipped("llama3"))
    assert templates.render(llama3, [SYSTEM, *TWO], add_generation_prompt=False) == own


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_shipped_template_keeps_the_system_message_and_ends_answers_with_eos(family, name):
    tokenizer = with_template(family, name)
    ids, mask = templates.render_split(tokenizer, [SYSTEM, *TWO])
    assert SYSTEM["content"] in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id
    assert mask[-1] == 1


@pytest.mark.parametrize("name", OWN)
def test_context_reaches_every_template(name):
    tokenizer = with_template("chatml", name)
    user = {"role": "user", "content": "Why?\n\nIt rains.", "instruction": "Why?"}
    prompt = templates.render(
        tokenizer, [user | {"context": "It rains."}], add_generation_prompt=True
    )
    assert prompt.count("Why?") == prompt.count("It rains.") == 1


@pytest.mark.parametrize(("family", "name"), pairs())
def test_no_double_bos(family, name):
    tokenizer = with_template(family, name)
    adds_bos = FAMILIES[family][3]
    prompt = templates.render(tokenizer, ONE[:1], add_generation_prompt=True)
    ids = templates.encode(tokenizer, prompt)
    rule = templates.bos_rule(tokenizer, prompt)
    if adds_bos:
        assert ids[0] == tokenizer.bos_token_id
        assert rule == ("template" if prompt.startswith(tokenizer.bos_token) else "tokenizer")
        assert ids.count(tokenizer.bos_token_id) == 1
        split, _ = templates.render_split(tokenizer, ONE)
        assert split.count(tokenizer.bos_token_id) == 1
    else:
        assert ids[:2] != [tokenizer.bos_token_id] * 2
        assert rule in ("none", "template")


@pytest.mark.parametrize("jinja", ["{{ bos_token }}{{ bos_token }}hi", "\n{{ bos_token }}hi"])
def test_a_template_that_makes_two_bos_tokens_is_an_error(jinja):
    tokenizer = tiny_tokenizer("llama3")
    templates.install(tokenizer, TemplateConfig(name="twice", jinja=jinja))
    text = templates.render(tokenizer, ONE[:1], add_generation_prompt=True)
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
    assert templates.render(tokenizer, messages[:-1], add_generation_prompt=True) == theirs
    prompt = templates.encode(tokenizer, theirs)
    assert prompt == lm.tok_encode(theirs)
    # What generate_until feeds the model.
    assert prompt == lm.tok_batch_encode([theirs])[0][0].tolist()
    ids, mask = templates.render_split(tokenizer, messages)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    pair = turns.encode_pair(tokenizer, theirs, tokenizer.decode(ids[len(prompt) :]))
    if family not in ("llama2", "mistral"):  # their decoders do not give the text back exactly
        assert pair == (prompt, ids[len(prompt) :])
    # And what log-likelihood tasks score: where the cue does not end with a space (vicuna) and the
    # template puts none before the answer (Llama 2's own).
    if not (name == "vicuna" or (family, name) == ("llama2", "model")):
        context, continuation = lm._encode_pair(theirs, ONE[-1]["content"])
        scored = context + continuation
        assert ids[: len(scored)] == scored


@pytest.mark.parametrize("name", OWN)
def test_a_pair_has_the_tokens_of_training(name):
    tokenizer = with_template("llama2", name)
    prompt = templates.render(tokenizer, ONE[:1], add_generation_prompt=True)
    full = templates.render(tokenizer, ONE, add_generation_prompt=False).rstrip()
    first, second = turns.encode_pair(tokenizer, prompt, full.removeprefix(prompt))
    assert (first + second, [0] * len(first) + [1] * len(second)) == templates.render_split(
        tokenizer, ONE
    )


def test_vicunas_cue_is_kept_for_generation_though_log_likelihoods_join_it():
    from lm_eval.models.huggingface import HFLM

    tokenizer = with_template("chatml", "vicuna")
    lm = HFLM(pretrained=tiny_llama(tokenizer), tokenizer=tokenizer, batch_size=1)
    messages = [ONE[0], {"role": "assistant", "content": "the dog"}]
    prompt = lm.tok_encode(lm.apply_chat_template(messages[:-1]))
    ids, _ = templates.render_split(tokenizer, messages)
    assert ids[: len(prompt)] == prompt
    context, continuation = lm._encode_pair(lm.apply_chat_template(messages[:-1]), "the dog")
    assert (context + continuation)[: len(prompt)] != prompt


@pytest.mark.parametrize(("family", "name"), pairs())
def test_every_assistant_turn_and_nothing_else_is_trained(family, name):
    tokenizer = with_template(family, name)
    ids, mask = templates.render_split(tokenizer, TWO)
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
        assert rest  # the end-of-turn token is trained
        assert templates.ends_with_token(tokenizer, rest)
        assert not text.endswith("\n")
    full = templates.render(tokenizer, TWO, add_generation_prompt=False)
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
    ids, mask = templates.render_split(tokenizer, messages)
    prompt = tokenizer.convert_ids_to_tokens(ids[: mask.index(1)])
    # Together they would be the one token "▁hel", which generation cannot reach from here.
    assert prompt[-1] == "▁"
    assert "▁hel" not in tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.decode(ids).endswith("\n\nAssistant: hel</s>")


def test_a_new_pad_token_changes_no_row():
    plain, padded = tiny_tokenizer("llama3"), tiny_tokenizer("llama3", new_pad=True)
    assert padded.pad_token_id == len(plain) == len(padded) - 1
    assert templates.render_split(plain, TWO) == templates.render_split(padded, TWO)
    assert padded.pad_token_id not in templates.render_split(padded, TWO)[0]


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
    assert templates.render_split(loaded, TWO) == templates.render_split(tokenizer, TWO)


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
    jinja = "\n{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}"
    tokenizer = tiny_tokenizer()
    first = templates.install(tokenizer, TemplateConfig(name="dated", jinja=jinja))
    text = templates.render(tokenizer, ONE[:1], add_generation_prompt=True)
    assert text == "\n26 Jul 2024What is the capital of France?"
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
        templates.render(tokenizer, ONE, add_generation_prompt=True)


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
        templates.render(tokenizer, ONE, add_generation_prompt=True)
    assert why in one_line(caught.value)
    assert "\n" not in one_line(caught.value)


def test_a_template_that_drops_the_system_message_is_an_error():
    jinja = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="deaf", jinja=jinja))
    assert templates.render(tokenizer, ONE, add_generation_prompt=False)
    with pytest.raises(DataError, match="template deaf drops the system message"):
        templates.render(tokenizer, [SYSTEM, *ONE], add_generation_prompt=False)


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_model_without_a_system_role_says_so(family):
    with pytest.raises(DataError, match=r"template of the model failed: .*(ystem|roles)"):
        templates.render(tiny_tokenizer(family), [SYSTEM, *ONE], add_generation_prompt=True)


@pytest.mark.parametrize(
    "jinja",
    [
        # Forgets all turns but the last, as templates that strip old reasoning do.
        "{% for m in messages[-2:] %}{{ m.role + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}",
        # Generates from another cue than the one before an answer.
        "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}",
    ],
)
def test_a_template_that_does_not_keep_its_prefix_is_an_error(jinja):
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="shifty", jinja=jinja))
    with pytest.raises(DataError, match="template shifty does not keep"):
        templates.render_split(tokenizer, TWO)


def test_a_template_without_end_token_trains_the_whole_answer():
    jinja = (
        "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="endless", jinja=jinja))
    ids, mask = templates.render_split(tokenizer, ONE)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert tokenizer.decode(trained) == "Paris is the capital.\n"


def test_data_modules_import_neither_torch_nor_transformers():
    code = (
        "import sys; from ftsuite import data, packing, preview, readers, shapes, templates;"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
