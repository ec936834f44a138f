"""A chat template on a tokenizer, and rendered text as tokens.

A template is a Jinja chat template that is installed on the tokenizer. Everything renders through
`tokenizer.apply_chat_template` (transformers' sandboxed Jinja), with the switches and the place of
the system message that the configuration chooses. `turns.py` builds prompts and training rows on
it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ftsuite.choices import SystemPlace
from ftsuite.errors import ConfigError, DataError
from ftsuite.models.bounds import bounded

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

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
"""Names that transformers sets itself."""
THINKING_SWITCH = "enable_thinking"
"""Qwen 3, GLM 4, Nemotron 3 and others write or expect a thought unless this is false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What `install` has put on a tokenizer, beside the Jinja text."""

    name: str
    switches: dict[str, Any] = field(default_factory=dict)
    place: SystemPlace = SystemPlace.native


def install(tokenizer: Any, config: TemplateConfig) -> str:
    """Put the template on the tokenizer, so that everyone who renders with it uses the same.

    A template that asks for today's date gets `FIXED_DATE`. A thinking switch that the template
    has and the configuration does not set is turned off: a row's answer holds no thought, and a
    choice is scored right behind the prompt.

    Returns:
        sha256 of the installed Jinja text, hexadecimal.

    Raises:
        ConfigError: no template is configured and the model brings none, or the template has no
            such switch.
    """
    jinja = config.jinja if config.jinja is not None else _own_template(tokenizer)
    if "strftime_now" in jinja and not jinja.startswith(FREEZE_DATE):
        jinja = FREEZE_DATE + jinja
    read = _switches_of(jinja)
    for switch in config.kwargs:
        if switch in RESERVED or (read is not None and switch not in read):
            raise ConfigError(
                f"template.kwargs.{switch}",
                config.kwargs[switch],
                f"the template {config.name} reads no such switch; take it out",
            )
    tokenizer.chat_template = jinja
    switches = dict(config.kwargs)
    if read is not None and THINKING_SWITCH in read:
        switches.setdefault(THINKING_SWITCH, False)
    # Only for this process; tokenizers do not save attributes that they do not know.
    tokenizer.ftsuite_template = Installed(name=config.name, switches=switches)
    tokenizer.ftsuite_dialect = None
    with bounded(config.name):
        place = _system_place(tokenizer, config.system)
        _check_effect(tokenizer, config)
    tokenizer.ftsuite_template = Installed(name=config.name, switches=switches, place=place)
    return hashlib.sha256(jinja.encode()).hexdigest()


def _check_effect(tokenizer: Any, config: TemplateConfig) -> None:
    """Refuse thinking where it only changes the cue, which prompts do not come from (turns.py)."""
    if not config.kwargs.get(THINKING_SWITCH):
        return
    asked = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    written = []
    for thinking in (config.kwargs[THINKING_SWITCH], False):
        switches = config.kwargs | {THINKING_SWITCH: thinking}
        try:
            written.append(tokenizer.apply_chat_template(asked, tokenize=False, **switches))
        except Exception as error:  # a template is a program and can raise anything
            raise DataError(f"template {config.name} failed: {error}") from error
    if written[0] == written[1]:
        raise ConfigError(
            f"template.kwargs.{THINKING_SWITCH}",
            config.kwargs[THINKING_SWITCH],
            f"the template {config.name} writes the same conversations with and without it, and "
            "prompts are taken from conversations; leave it out",
        )


def _switches_of(jinja: str) -> set[str] | None:
    """The names that a template reads and does not set; None where it does not parse.

    A template that does not parse fails when it is rendered, with the reason.
    """
    from jinja2 import Environment, TemplateError, ext, meta

    environment = Environment(extensions=[ext.loopcontrols])
    # transformers' own tag for the assistant's tokens.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", jinja)
    try:
        return meta.find_undeclared_variables(environment.parse(plain))
    except TemplateError:
        return None


def installed(tokenizer: Any) -> Installed:
    """Return what `install` has put on the tokenizer."""
    found: Installed = getattr(tokenizer, "ftsuite_template", Installed(name="of the model"))
    return found


def digest(tokenizer: Any) -> str:
    """Sha256 of the installed Jinja text, as 64 hex digits."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def switches_text(tokenizer: Any) -> str:
    """The template's switches as they are set, such as '{"enable_thinking": false}'."""
    return json.dumps(installed(tokenizer).switches, sort_keys=True)


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


def _system_place(tokenizer: Any, wanted: SystemPlace) -> SystemPlace:
    """Settle where system messages go: auto means the template's own place where it has one."""
    marks = ("systemtextmark", "usertextmark", "answertextmark")
    roles = ("system", "user", "assistant")
    messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
    try:
        text = _apply(tokenizer, messages)
    except MemoryError:
        raise
    except Exception:  # "System role not supported": a template is a program and can raise anything
        text = ""
    if wanted is not SystemPlace.auto:
        return wanted
    return SystemPlace.native if marks[0] in text else SystemPlace.first_user


def placed(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the system message where `template.system` wants it.

    first_user is what the field does for Gemma and other families without a system role: the
    system text, an empty line, and the text of the first user turn.

    Raises:
        DataError: there is a system message and `template.system` is `error`.
    """
    place = installed(tokenizer).place
    if not messages or messages[0]["role"] != "system" or place is SystemPlace.native:
        return list(messages)
    if place is SystemPlace.error:
        raise DataError(
            "template.system = 'error': a conversation has a system message; set "
            "template.system=first_user or native, or leave system messages out"
        )
    system, first, *rest = messages
    if first["role"] != "user":
        raise DataError(
            f"template {name(tokenizer)}: a system message is not followed by a user turn to hold "
            "it; set template.system=native, or mend the row"
        )
    joined = f"{system['content'].strip()}\n\n{first['content']}"
    return [{"role": "user", "content": joined}, *rest]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return a whole conversation as text, as the template writes it.

    Raises:
        DataError: the template fails on these messages, or leaves a system or user text out.
    """
    try:
        text = _apply(tokenizer, placed(tokenizer, messages))
    except DataError:
        raise
    except Exception as error:  # a template is a program and can raise anything
        raise DataError(f"template {name(tokenizer)} failed: {error}") from error
    for message in messages:
        # A dolly row's parts are written apart from each other.
        if message["role"] not in ("system", "user") or "instruction" in message:
            continue
        # lm-eval itself only warns when a template has no place for the system role; a probe that
        # depends on it would then measure nothing. Templates of image models drop plain text.
        if message["content"].strip() not in text:
            if message["role"] == "system":
                what, or_else = "the system message", ", or set template.system=first_user"
            else:
                what, or_else = "the user's text", ""
            raise DataError(
                f"template {name(tokenizer)} drops or changes {what}; choose another template, "
                f"such as template=chatml{or_else}"
            )
    return text


def _apply(tokenizer: Any, messages: Sequence[Message]) -> str:
    switches = installed(tokenizer).switches
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **switches)
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of rendered text, with at most one BOS at the start.

    The tokenizer's own special tokens are left out when the text already begins with BOS: the rule
    of lm-eval's `HFLM.tok_encode`.

    Raises:
        DataError: the template makes two BOS tokens of it all the same.
    """
    ids: list[int] = encoding(tokenizer, text)["input_ids"]
    return ids


def encoding(tokenizer: Any, text: str) -> Any:
    """Do what `encode` does; the `BatchEncoding` also knows where in the text its tokens stand.

    Raises:
        DataError: the template makes two BOS tokens of it.
    """
    own = {"add_special_tokens": False} if _begins_with_bos(tokenizer, text) else {}
    found = tokenizer(text, return_attention_mask=False, **own)
    ids = found["input_ids"]
    bos = tokenizer.bos_token
    if bos and text.lstrip().startswith(bos):
        rest = text.lstrip().removeprefix(bos)
        if rest.startswith(bos) or (not own and ids[:1] == [tokenizer.bos_token_id]):
            raise DataError(
                f"template {name(tokenizer)} makes two BOS tokens ({bos}): write it once, "
                "at the very start, or leave it to the tokenizer"
            )
    return found


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of plain text without BOS or EOS, for a caller that puts its own first.

    lm-eval's rolling log-likelihood puts a prefix token in front of every document; a tokenizer
    that adds BOS (Llama 3, Gemma) would make it two.
    """
    ids: list[int] = list(tokenizer.encode(text, add_special_tokens=False))
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


def special_texts(tokenizer: Any) -> set[str]:
    """Texts that are one token each: special tokens and added ones."""
    return {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def name(tokenizer: Any) -> str:
    """The template's name, for messages."""
    return installed(tokenizer).name
