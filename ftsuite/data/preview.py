"""What the model will be trained on, shown before any training: rows, tokens, counts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftsuite.data import prepare as data
from ftsuite.data import shapes
from ftsuite.data.packing import trained_tokens
from ftsuite.models import templates, turns
from ftsuite.training import steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from ftsuite.config import RunConfig
    from ftsuite.data.packing import Sequence
    from ftsuite.records import DataSummary

TRAINED, UNTRAINED, MARK = "bold green", "dim", "reverse"
OPEN, CLOSE = "⟦", "⟧"
"""Signs around trained tokens, for terminals and files without colours."""


def preview(config: RunConfig, tokenizer: Any, console: Console, rows: int = 3) -> None:
    """Print some rendered rows with their trained tokens coloured, and the counts of every split.

    Args:
        config: the cell; its template is installed on the tokenizer.
        tokenizer: the model's.
        console: where to print.
        rows: how many training rows to show.

    Raises:
        ConfigError: the model has no template and none is configured.
        DataError: a file, row or split cannot be used.
    """
    sha256 = templates.install(tokenizer, config.template)
    splits, summary = data.build(config.data, config.packing, config.train.loss, tokenizer)
    train = splits[0]
    for number, row in enumerate(train.rows[:rows], start=1):
        console.rule(
            f"training row {number} of {len(train.rows)}: {len(row.input_ids)} tokens, "
            f"{trained_tokens(row)} trained"
        )
        console.print(row_text(tokenizer, row))
    console.rule()
    legend = Text.assemble((f"{OPEN}trained{CLOSE}", TRAINED), (" not trained\n", UNTRAINED))
    if train.conversations[0][0]["role"] == shapes.TEXT_ROLE:
        legend.append("plain text rows: no template is used")
    else:
        prompt = turns.prompt(tokenizer, train.conversations[0][:-1])
        bos = templates.bos_rule(tokenizer, prompt)
        legend.append(f"template {config.template.name} ({sha256[:12]}), BOS from: {bos}")
    console.print(legend)
    console.print(split_table(summary, config.data.max_length))
    for line in [*notes(tokenizer, summary, train.rows), *steps.notes(config.train, summary)]:
        console.print(Text(line))


def row_text(tokenizer: Any, row: Sequence) -> Text:
    """Return a row as text: trained tokens coloured, special tokens and white space visible."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    text = Text()
    tokens = zip(row.input_ids, row.loss_mask, strict=True)
    for trained, part in itertools.groupby(tokens, lambda token: token[1]):
        style = TRAINED if trained else UNTRAINED
        text.append(OPEN if trained else "", style)
        # Runs of like tokens are decoded together: one character may be several tokens.
        for marked, run in itertools.groupby(part, lambda token: token[0] in special):
            ids = [token for token, _ in run]
            text.append(visible(tokenizer.decode(ids)), f"{style} {MARK}" if marked else style)
        text.append(CLOSE if trained else "", style)
    return text


def visible(text: str) -> str:
    """Return text with its control characters shown as signs, so none reaches the terminal."""
    signs = {code: chr(0x2400 + code) for code in range(32)} | {
        0x7F: "␡",
        ord("\t"): "⇥",
        ord("\r"): "␍",
        ord("\n"): "↵\n",
    }
    # C1 controls: some terminals obey them like escape sequences.
    signs |= dict.fromkeys(range(0x80, 0xA0), "�")
    return text.translate(signs)


def split_table(summary: DataSummary, max_length: int) -> Table:
    """Return the counts of every split.

    Args:
        summary: what the data stage counted.
        max_length: of a sequence, in tokens; for the share that packed sequences fill.
    """
    table = Table(title=f"{summary.source} ({summary.shape}), packing {summary.packing}")
    table.add_column("split")
    for name in ("rows", "of", "tokens", "trained", "truncated", "sequences", "filled"):
        table.add_column(name, justify="right")
    for split in summary.splits:
        filled = split.tokens / (split.sequences * max_length)
        numbers = (split.rows, split.available, split.tokens, split.trained_tokens)
        table.add_row(
            split.name,
            *(f"{number:,}" for number in (*numbers, split.truncated, split.sequences)),
            f"{filled:.0%}",
        )
    return table


def notes(tokenizer: Any, summary: DataSummary, rows: Iterable[Sequence]) -> list[str]:
    """Return what else a reader must know, one line each."""
    lines = [f"dropped {count:,} rows: {reason}" for reason, count in summary.dropped.items()]
    if summary.subset_note:
        lines.append(f"subset: {summary.subset_note}")
    lines += summary.notes
    ends = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if not any(row.input_ids[-1] in ends for row in rows):
        lines.append(
            "warning: no answer ends with a special token, so the model never learns to stop; "
            "let the template write eos_token after an answer"
        )
    return lines
