"""Numbers and text for the report: fixed formats, and escapes that keep hostile text harmless."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE = "–"
"""What stands in a table where there is no number."""

METRIC_WORDS = {
    "acc": "accuracy",
    "acc_norm": "length-normalised accuracy",
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "byte perplexity",
    "exact_match": "exact match",
    "word_perplexity": "word perplexity",
}


def metric_words(metric: str) -> str:
    """`exact_match` → `exact match`."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def score(value: float | None) -> str:
    """0.2812 → `0.281`."""
    if value is None:
        return NONE
    return _minus(f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}")


def change(value: float | None) -> str:
    """0.584 → `+0.584`; a tiny change gets more digits, so that it does not read as none."""
    if value is None:
        return NONE
    digits = 3
    while value and abs(value) < 10**-digits and digits < 6:
        digits += 1
    text = f"{value:+.{digits}f}"
    return _minus(text) if float(text) else f"{0:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """(0.472, 0.698) → `[0.47, 0.70]`, as many digits as the width deserves.

    A bound near 0 gets more, so that a reader sees on which side of 0 it lies.
    """
    if low is None or high is None:
        return NONE
    width = high - low
    digits = 2 if width >= 0.05 else 3 if width >= 0.002 else 4
    nearest = min((abs(bound) for bound in (low, high) if bound), default=1.0)
    while digits < 4 and nearest < 0.5 * 10**-digits:
        digits += 1
    bounds = (f"{0.0 if round(bound, digits) == 0 else bound:.{digits}f}" for bound in (low, high))
    return _minus(f"[{', '.join(bounds)}]")


def p_value(p: float | None) -> str:
    """0.0004 → `< 0.001`."""
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_words(p: float) -> str:
    """0.0004 → `p < 0.001`; 0.021 → `p = 0.021`."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def count(number: float) -> str:
    """1_221_120 → `1.2 M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return (
                f"{number / size:.1f} {unit}"
                if number < 100 * size
                else f"{number / size:.0f} {unit}"
            )
    return f"{number:.0f}"


def size(number: int) -> str:
    """1_400_000_000 bytes → `1.4 GB`; 0, which means not measured, → `–`."""
    if not number:
        return NONE
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit_size * 0.9995:
            scaled = number / unit_size
            return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{number} B"


def seconds(number: float) -> str:
    """95.3 → `95 s`; 192 → `3 min 12 s`; 5000 → `1 h 23 min`."""
    if number < 9.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(number: int, noun: str) -> str:
    """(1, 'cell') → `1 cell`; (1200, 'cell') → `1,200 cells`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def enumerate_words(items: Sequence[str], *, most: int = 8) -> str:
    """Join as in a sentence: `a, b and c`; of many only the first, and says how many more."""
    shown = list(items[:most])
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most:,} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def either(items: Sequence[str]) -> str:
    """Join alternatives: `a`, `a or b`, `a, b or c`."""
    joined = list(items)
    return joined[0] if len(joined) == 1 else f"{', '.join(joined[:-1])} or {joined[-1]}"


def escape(text: str, *, limit: int | None = None) -> str:
    """Make any text harmless on one line of Markdown, inside a table or outside.

    Args:
        text: Untrusted text, such as a model's answer.
        limit: Characters to keep; a cut is marked and says what the whole length was.
    """
    cut = ""
    if limit is not None and len(text) > limit:
        cut = f" … *({limit:,} of {len(text):,} characters)*"
        text = text[:limit]
    lines = [_escape_line(line) for line in re.split(r"[\r\n\v\f\x85\u2028\u2029]+", text.strip())]
    return "<br>".join(line for line in lines if line) + cut


def _escape_line(line: str) -> str:
    # Control and format characters can hide or reorder what a reader sees (bidi, ANSI, NUL).
    line = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in line)
    line = " ".join(line.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]~$])", r"\\\1", line)
    # Inside a word an underscore is only an underscore.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    # An entity, as renderers disagree about a backslash before a pipe in a table; the rest keeps
    # links and mentions in an answer from coming alive.
    line = line.replace("|", "&#124;").replace("://", "&#58;//").replace("www.", "www&#46;")
    line = line.replace("@", "&#64;")
    # A leading marker would start a heading, a list or a rule.
    return re.sub(r"^([-+#=]|\d+[.)](?= |$))", lambda m: f"{m[0][:-1]}\\{m[0][-1]}", line)


def code(text: str) -> str:
    """Put one line of trusted-length text, such as a label, into a code span."""
    text = " ".join(text.split()) or " "
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def block(text: str, language: str = "") -> str:
    """Put text into a fenced block that it cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def unbroken(text: str) -> str:
    """Keep a table cell's number, unit and interval on one line; a break comes before `[`."""
    return text.replace(" ", "\u00a0").replace("\u00a0[", " [")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a header that starts with `>` sets its column right.

    Columns are padded so that the raw text reads well, up to a width of 44 characters.
    """
    right = [header.startswith(">") for header in headers]
    grid = [[header.removeprefix(">") for header in headers], *[list(row) for row in rows]]
    widths = [
        max(3, max(min(len(row[place]), 44) for row in grid)) for place in range(len(headers))
    ]

    def line(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        f" {'-' * (width - 1)}: " if is_right else f" {'-' * width} "
        for width, is_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(grid[0]), f"|{rule}|", *(line(row) for row in grid[1:])])


def _minus(text: str) -> str:
    return text.replace("-", "−")
