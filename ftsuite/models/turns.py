"""Prompts and training rows from conversations: one code for training, evaluation and probes.

A prompt is the text that the template writes before an answer *in the whole conversation*, not
its generation cue. For most templates the two are the same. Where they differ (Qwen 3 writes an
empty thought before an answer, gpt-oss the channel, Llama 2 a space; DeepSeek R1's cue opens a
thought that its conversations drop), generation and scoring from the cue would go on from another
text than the one that was trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.models import templates
from ftsuite.models.bounds import bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.models.templates import Message

ANSWER = "answertextmark"
"""Stands in for an answer, to find out what the template writes around it."""
NEXT = "nextusertextmark"

TREATMENTS: dict[str, Callable[[str], str]] = {
    "unchanged": lambda text: text,
    "white space off both ends": str.strip,
    "white space off the start": str.lstrip,
    "white space off the end": str.rstrip,
    "line ends off both ends": lambda text: text.strip("\n"),
    "line ends off the start": lambda text: text.lstrip("\n"),
    "line ends off the end": lambda text: text.rstrip("\n"),
}
"""What templates do to an answer's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a template does to every answer."""

    opening: str
    """The end of every prompt, from its last special token on; '' where there is none."""
    opening_ids: list[int]
    """Its ids; empty where the tokenizer cannot tell where in a text its tokens stand."""
    lead: str
    """Spaces before an answer, such as Llama 2's behind `[/INST]`.

    They go with the answer: tokenizers make one token of a space and the word behind it.
    """
    suffix: str
    """What it writes behind the last answer of a conversation."""
    plain: str
    """Text between an answer and the token that ends it, such as Llama 2's space."""
    token: str
    """The special token that ends an answer; '' where the tokenizer knows none of its end."""
    tail: str
    """Special tokens right behind it: an end-of-turn token may be followed by the end token."""
    stop_token: int | None
    """The id of `token`."""
    treatment: str
    """What it does to an answer's text, a name of `TREATMENTS`."""

    @property
    def end(self) -> str:
        """What is trained behind an answer."""
        return self.plain + self.token + self.tail

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a generated answer."""
        return tuple(text for text in (self.plain.strip(), self.token) if text)

    def treat(self, answer: str) -> str:
        """Return an answer's text as the template writes it."""
        return TREATMENTS[self.treatment](answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Token ids of a conversation, and the mask of what is trained of it."""

    ids: list[int]
    mask: list[int]
    """1 on every answer with its end of turn, 0 elsewhere."""


def prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return the text after which the model answers the last of `messages`.

    Raises:
        DataError: the template fails, or drops a text.
    """
    return _before(tokenizer, messages).removesuffix(dialect(tokenizer).lead)


def _before(tokenizer: Any, messages: Sequence[Message]) -> str:
    """What the template writes before the answer to `messages`."""
    text = templates.render(tokenizer, [*messages, {"role": "assistant", "content": ANSWER}])
    before, found, _ = text.rpartition(ANSWER)
    if not found:
        raise DataError(
            f"template {templates.name(tokenizer)} leaves out an answer's text; choose another "
            "template, such as template=chatml"
        )
    return before


def rows(tokenizer: Any, messages: Sequence[Message]) -> list[Row]:
    """Return the training rows of a conversation; one, if the template keeps earlier turns.

    Some templates write an earlier turn otherwise than the last one (Qwen 3 drops its empty
    thought, gpt-oss ends it with another token). Each answer is then trained where it is the last,
    which is how generation meets it: such a conversation becomes several rows, and earlier answers
    are the untrained prompt of later ones.

    The ids up to an answer are exactly those of the encoded prompt. An answer is tokenised together
    with its prompt where that leaves the prompt's tokens alone, and by itself where it would not (a
    prompt that ends with a space). White space behind the end-of-turn token is not trained.

    Raises:
        DataError: the template fails, drops a text, or changes an answer.
    """
    made: list[Row] = []
    ids, mask = list[int](), list[int]()
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = prompt(tokenizer, messages[:index])
        answer = _written_answer(tokenizer, messages[: index + 1], before)
        asked, whole = _encoded_at_once(tokenizer, before, answer) or _encoded(
            tokenizer, before, answer
        )
        if asked[: len(ids)] != ids:
            made.append(Row(ids=ids, mask=mask))
            mask = []
        ids = whole
        mask = mask + [0] * (len(asked) - len(mask)) + [1] * (len(ids) - len(asked))
    return [*made, Row(ids=ids, mask=mask)]


def _encoded(tokenizer: Any, before: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt, and of the prompt with an answer and its end."""
    found, asked = dialect(tokenizer), templates.encode(tokenizer, before)
    if not found.plain:
        # No token reaches over the boundary to a special token.
        return asked, _extend(tokenizer, before, asked, answer + found.end)
    ids = _extend(tokenizer, before, asked, answer)
    return asked, _extend(tokenizer, before + answer, ids, found.end)


def _encoded_at_once(
    tokenizer: Any, before: str, answer: str
) -> tuple[list[int], list[int]] | None:
    """Do what `_encoded` does with one encoding instead of two; None where that is not the same.

    A tokenizer cuts text at special tokens first. So what stands before the prompt's last special
    token has the same ids with and without the answer, and the rest of the prompt is the same few
    ids in every row (`Dialect.opening_ids`).
    """
    found = dialect(tokenizer)
    if found.plain or not found.opening_ids or not before.endswith(found.opening):
        return None
    whole = templates.encoding(tokenizer, before + answer + found.end)
    start = whole.char_to_token(len(before) - len(found.opening))
    ids: list[int] = whole["input_ids"]
    if start is None or ids[start : start + len(found.opening_ids)] != found.opening_ids:
        return None
    return ids[: start + len(found.opening_ids)], ids


def encode_pair(
    tokenizer: Any, before: str, answer: str, *, begun: bool = False
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of an answer behind it, as training has them.

    Args:
        tokenizer: with the template installed.
        before: the prompt.
        answer: what the model might answer.
        begun: the prompt holds the answer's beginning, so that white space in front of `answer` is
            inside of the whole answer.

    Raises:
        DataError: the template makes two BOS tokens.
    """
    ids = templates.encode(tokenizer, before)
    found = dialect(tokenizer)
    written = found.treat(f".{answer}")[1:] if begun else found.lead + found.treat(answer)
    return ids, _extend(tokenizer, before, ids, written)[len(ids) :]


def bare_answer(tokenizer: Any, answer: str) -> str:
    """Return a generated answer without what the template writes around every answer.

    Llama 2's template writes a space on both sides: a model that learned them generates them, and
    an exact match would fail on them.
    """
    found = dialect(tokenizer)
    return answer.removeprefix(found.lead).removesuffix(found.plain)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer: of tokenizer, template and the model's generation settings."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    ends = (*listed, tokenizer.eos_token_id, dialect(tokenizer).stop_token)
    return sorted({token for token in ends if token is not None})


def dialect(tokenizer: Any) -> Dialect:
    """Return what the installed template does to every answer; found out once.

    Raises:
        DataError: the template drops or changes answers, or nothing ends them.
    """
    if getattr(tokenizer, "ftsuite_dialect", None) is None:
        with bounded(templates.name(tokenizer)):
            tokenizer.ftsuite_dialect = _dialect(tokenizer)
    found: Dialect = tokenizer.ftsuite_dialect
    return found


def _dialect(tokenizer: Any) -> Dialect:
    asked: list[Message] = [{"role": "user", "content": "Hello."}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": ANSWER}]
    whole = templates.render(tokenizer, answered)
    before, _, suffix = whole.rpartition(ANSWER)
    plain, token, tail = _end(tokenizer, suffix)
    if not (plain + token).strip():
        # GLM 4 writes nothing behind an answer: the next turn's opening token ends it.
        following: list[Message] = [*answered, {"role": "user", "content": NEXT}]
        between = templates.render(tokenizer, following).rpartition(NEXT)[0].rpartition(ANSWER)[2]
        plain, token, tail = _end(tokenizer, between)
    if not (plain + token).strip():
        raise DataError(
            f"template {templates.name(tokenizer)} writes nothing behind an answer, so the model "
            "would never learn to stop; let it write eos_token there"
        )
    lead = " " * (len(before) - len(before.rstrip(" ")))
    opening = _opening(tokenizer, before.removesuffix(lead))
    return Dialect(
        opening=opening,
        opening_ids=templates.encode_text(tokenizer, opening) if tokenizer.is_fast else [],
        lead=lead,
        suffix=suffix,
        plain=plain,
        token=token,
        tail=tail,
        stop_token=tokenizer.convert_tokens_to_ids(token) if token else None,
        treatment=_treatment(tokenizer, before, suffix),
    )


def _special(tokenizer: Any) -> re.Pattern[str]:
    texts = sorted(filter(str.strip, templates.special_texts(tokenizer)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _opening(tokenizer: Any, before: str) -> str:
    places = [match.start() for match in _special(tokenizer).finditer(before)]
    return before[places[-1] :] if places else ""


def _end(tokenizer: Any, suffix: str) -> tuple[str, str, str]:
    """What stands before the first special token of the suffix, the token, and those behind it."""
    special = _special(tokenizer)
    first = special.search(suffix)
    if first is None:
        return suffix.rstrip(), "", ""
    place = first.end()
    while further := special.match(suffix, place):
        place = further.end()
    return suffix[: first.start()], first[0], suffix[first.end() : place]


def _treatment(tokenizer: Any, before: str, suffix: str) -> str:
    samples = (f"\n{ANSWER}\n", f" {ANSWER} ", f" \n{ANSWER}\n ")
    written = []
    for sample in samples:
        answer = {"role": "assistant", "content": sample}
        text = templates.render(tokenizer, [{"role": "user", "content": "Hello."}, answer])
        written.append(text[len(before) : len(text) - len(suffix)])
    for name, treat in TREATMENTS.items():
        if written == [treat(sample) for sample in samples]:
            return name
    raise DataError(
        f"template {templates.name(tokenizer)} changes the text of an answer; choose another "
        "template, such as template=chatml"
    )


def _written_answer(tokenizer: Any, messages: Sequence[Message], before: str) -> str:
    """The last answer as the template writes it, proved on the whole rendering."""
    found = dialect(tokenizer)
    written = found.lead + found.treat(messages[-1]["content"])
    whole = templates.render(tokenizer, messages)
    if whole != before + written + found.suffix:
        raise DataError(
            f"template {templates.name(tokenizer)} changes the text of an answer (a thought "
            "between <think> and </think>, or a text that looks like one of its marks); take such "
            "parts out of the data, or choose another template"
        )
    return written


def _extend(tokenizer: Any, text: str, ids: list[int], piece: str) -> list[int]:
    """Ids of `text + piece` that begin with `ids`, the ids of `text`."""
    whole = templates.encode(tokenizer, text + piece)
    if whole[: len(ids)] == ids:
        return whole
    # Tokenizers of the SentencePiece kind put a space before whatever they are given; behind a
    # newline they do not.
    anchor = tokenizer.encode("\n", add_special_tokens=False)
    anchored = tokenizer.encode("\n" + piece, add_special_tokens=False)
    if anchored[: len(anchor)] == anchor:
        return ids + list(anchored[len(anchor) :])
    return ids + list(tokenizer.encode(piece, add_special_tokens=False))
