"""Conversations as text and tokens: one code for training, evaluation and probes.

A template is a Jinja chat template that is installed on the tokenizer. Everything renders through
`tokenizer.apply_chat_template` (transformers' sandboxed Jinja), as lm-eval's HFLM does, and
`encode` has HFLM's BOS rule. Training sees the prompts that evaluation sees, token by token.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from ftsuite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.config import TemplateConfig

Message = dict[str, Any]
"""`role` and `content`; dolly rows carry `instruction` and `context` beside their content."""

BosRule = Literal["template", "tokenizer", "none"]

# Llama 3.2's template writes today's date into every prompt: a base scored yesterday and a tuned
# model scored today would answer different prompts. This macro shadows the function; the date is
# the one Llama's template falls back on. The empty expression keeps `trim_blocks` from eating a
# newline that the template begins with.
FIXED_DATE = "26 Jul 2024"
FREEZE_DATE = f"{{% macro strftime_now(format) %}}{FIXED_DATE}{{% endmacro %}}{{{{ '' }}}}"


def install(tokenizer: Any, config: TemplateConfig) -> str:
    """Put the template on the tokenizer, so that everyone who renders with it uses the same.

    A template that asks for today's date gets `FIXED_DATE`.

    Returns:
        sha256 of the installed Jinja text, hexadecimal.

    Raises:
        ConfigError: no template is configured and the model brings none.
    """
    jinja = config.jinja if config.jinja is not None else _own_template(tokenizer)
    if "strftime_now" in jinja and not jinja.startswith(FREEZE_DATE):
        jinja = FREEZE_DATE + jinja
    tokenizer.chat_template = jinja
    # Only for messages; tokenizers do not save attributes that they do not know.
    tokenizer.ftsuite_template_name = config.name
    return hashlib.sha256(jinja.encode()).hexdigest()


def _own_template(tokenizer: Any) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not isinstance(own, str) or not own.strip():
        raise ConfigError(
            "template.jinja",
            None,
            "the model brings no chat template; choose one, such as template=chatml",
        )
    return own


def render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """Return the conversation as text.

    Args:
        tokenizer: with a template installed.
        messages: the conversation.
        add_generation_prompt: end with the cue after which the model writes its answer.

    Raises:
        DataError: the template fails on these messages, or leaves their system message out.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is a program and can raise anything
        raise DataError(f"template {_name(tokenizer)} failed: {error}") from error
    for message in messages:
        # lm-eval itself only warns when a template has no place for the system role; a probe that
        # depends on it would then measure nothing.
        if message["role"] == "system" and message["content"].strip() not in text:
            raise DataError(
                f"template {_name(tokenizer)} drops the system message; "
                "choose another template or leave data.system and system prompts out"
            )
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of rendered text, with at most one BOS at the start.

    The tokenizer's own special tokens are left out when the text already begins with BOS: the rule
    of lm-eval's `HFLM.tok_encode`.

    Raises:
        DataError: the template makes two BOS tokens of it all the same.
    """
    own = {"add_special_tokens": False} if _begins_with_bos(tokenizer, text) else {}
    ids: list[int] = list(tokenizer.encode(text, **own))
    bos = tokenizer.bos_token
    if bos and text.lstrip().startswith(bos):
        rest = text.lstrip().removeprefix(bos)
        if rest.startswith(bos) or (not own and ids[:1] == [tokenizer.bos_token_id]):
            raise DataError(
                f"template {_name(tokenizer)} makes two BOS tokens ({bos}): write it once, "
                "at the very start, or leave it to the tokenizer"
            )
    return ids


def _begins_with_bos(tokenizer: Any, text: str) -> bool:
    # HFLM falls back on EOS for tokenizers without BOS.
    prefix = tokenizer.bos_token_id
    if prefix is None:
        prefix = tokenizer.eos_token_id
    return prefix is not None and text.startswith(tokenizer.decode(prefix))


def bos_rule(tokenizer: Any, rendered: str) -> BosRule:
    """Say how BOS enters: written by the template, added by the tokenizer, or not at all."""
    bos = tokenizer.bos_token
    if not bos:
        return "none"
    if rendered.startswith(bos):
        return "template"
    return "tokenizer" if encode(tokenizer, rendered)[:1] == [tokenizer.bos_token_id] else "none"


def render_split(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation and the mask of its assistant's tokens.

    The mask is 1 on every assistant turn with its end-of-turn token, 0 elsewhere. The ids up to the
    first answer are exactly those of the rendered and encoded prompt, which generation starts from.
    An answer is tokenised together with its prompt where that leaves the prompt's tokens alone, and
    by itself where it would not (a prompt that ends with a space). White space that a template
    writes after the end-of-turn token is not trained; after the last turn it is left out, since
    generation stops before it.

    Raises:
        DataError: the template fails, or a longer conversation does not begin like a shorter one.
    """
    text, ids, mask = "", list[int](), list[int]()
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
        full = render(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(text) and full.startswith(prompt)):
            raise DataError(
                f"template {_name(tokenizer)} does not keep the text of earlier turns or writes "
                "another cue before an answer than it generates from; choose another template"
            )
        answer = _without_trailing_space(tokenizer, full[len(prompt) :])
        ids = _extend(tokenizer, text, ids, prompt[len(text) :])
        mask += [0] * (len(ids) - len(mask))
        ids = _extend(tokenizer, prompt, ids, answer)
        mask += [1] * (len(ids) - len(mask))
        text = prompt + answer
    return ids, mask


def encode_pair(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the ids of a rendered prompt and of the answer behind it, as training has them.

    Raises:
        DataError: the template makes two BOS tokens.
    """
    ids = encode(tokenizer, prompt)
    return ids, _extend(tokenizer, prompt, ids, answer)[len(ids) :]


def ends_with_token(tokenizer: Any, text: str) -> bool:
    """Say whether the text ends with a special or added token, such as an end-of-turn token."""
    eos = tokenizer.eos_token
    if eos and text.endswith(eos):
        return True
    return text.endswith(tuple(tokenizer.get_added_vocab()))


def _without_trailing_space(tokenizer: Any, answer: str) -> str:
    body = answer.rstrip()
    return body if ends_with_token(tokenizer, body) else answer


def _extend(tokenizer: Any, text: str, ids: list[int], piece: str) -> list[int]:
    """Ids of `text + piece` that begin with `ids`, the ids of `text`."""
    whole = encode(tokenizer, text + piece)
    if whole[: len(ids)] == ids:
        return whole
    # Tokenizers of the SentencePiece kind put a space before whatever they are given; behind a
    # newline they do not.
    anchor = tokenizer.encode("\n", add_special_tokens=False)
    anchored = tokenizer.encode("\n" + piece, add_special_tokens=False)
    if anchored[: len(anchor)] == anchor:
        return ids + list(anchored[len(anchor) :])
    return ids + list(tokenizer.encode(piece, add_special_tokens=False))


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "ftsuite_template_name", "of the model"))
