"""Rows whose text holds a special token's text: the tokenizer reads it as that token.

`<s>` struck through in HTML, `<|im_end|>` in a page about chat templates: the model would be taught
that a turn ends there. Nobody can tell what was meant, so such rows are counted and said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator

    from ftsuite.data.shapes import Conversation

MOST_NAMED = 3
"""Tokens that a note names."""


def counted(
    conversations: Iterable[Conversation], tokenizer: Any, found: Counter[str]
) -> Iterator[Conversation]:
    """Pass conversations on and count, for each special token, those that hold its text."""
    pattern = _pattern(tokenizer)
    for messages in conversations:
        if pattern is not None:
            texts = (message["content"] for message in messages)
            found.update({match for text in texts for match in pattern.findall(text)})
        yield messages


def notes(found: Counter[str]) -> list[str]:
    """Say which special tokens' texts stand in the rows, the most frequent first."""
    if not found:
        return []
    named = ", ".join(f"{text!r} in {rows:,}" for text, rows in found.most_common(MOST_NAMED))
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return [
        f"the text of a special token stands in rows ({named}{more}) and is read as that token; "
        "take it out of the rows unless it is meant"
    ]


def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    added = tokenizer.added_tokens_decoder.values()
    texts = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    ordered = sorted(filter(str.strip, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
