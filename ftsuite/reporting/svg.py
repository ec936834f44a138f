"""Plots as SVG files for GitHub's light and dark mode: one drawing, two sets of colours."""

from __future__ import annotations

import html
import io
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

INK, MUTED, GRID = "#1f2328", "#59636e", "#d0d7dd"
ACCENT = "#c84e00"
"""The recommended cell, and nothing else."""
BLUE = "#0068a5"
SERIES = (BLUE, "#00815e", "#a8488a", "#a36a00", "#5b53b4", "#3f7f93", "#7d7d1f")
"""After Okabe & Ito, darkened to a contrast of 4.5 on white, so that labels in them read well."""

_DARK = {
    INK: "#e6edf3",
    MUTED: "#9198a1",
    GRID: "#30363d",
    ACCENT: "#ff9a57",
    BLUE: "#62b6f0",
    "#00815e": "#3fcf9f",
    "#a8488a": "#e79ccb",
    "#a36a00": "#e8b84a",
    "#5b53b4": "#a9a2f5",
    "#3f7f93": "#7fc8dd",
    "#7d7d1f": "#cfcf5d",
}

# The reader's own interface font; the layout is measured in a wider one, so nothing overflows.
_FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"

# Any, as matplotlib 3.10 and 3.11 type their settings differently.
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    # Labels are data: a dollar sign in one is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One plot: its two files and how it is shown."""

    name: str
    alt: str
    caption: str
    light: str
    dark: str

    @property
    def files(self) -> dict[str, str]:
        """File name → SVG text."""
        return {f"{self.name}-light.svg": self.light, f"{self.name}-dark.svg": self.dark}

    @property
    def markdown(self) -> str:
        """The plot, chosen by the reader's colour scheme, and its caption."""
        alt = html.escape(" ".join(self.alt.split()))
        return (
            "<picture>\n"
            f'<source media="(prefers-color-scheme: dark)" srcset="{self.name}-dark.svg">\n'
            f'<img alt="{alt}" src="{self.name}-light.svg">\n'
            f"</picture>\n\n{self.caption}"
        )


@contextmanager
def style() -> Iterator[None]:
    """Draw with these settings only, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def panels(count: int, *, height: float = 3.1) -> tuple[Any, list[Any]]:
    """Return a figure of GitHub's column width and its panels, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8 if count > 1 else 6.4, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, wspace=0.05)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def picture(figure: Any, name: str, *, alt: str, caption: str) -> Picture:
    """Write a figure in both sets of colours; the same figure gives the same bytes."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    # Date and version of the drawing library would change the bytes and tell nothing.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", _FONTS, buffer.getvalue())
    text = re.sub(r"[ \t]+\n", "\n", text)
    return Picture(name=name, alt=alt, caption=caption, light=text, dark=_darken(text))


def spread(positions: list[float], gap: float) -> list[float]:
    """Move labels apart so that neighbours keep `gap`; their order stays."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = [positions[index] for index in order]
    for _ in range(50):
        for low in range(len(moved) - 1):
            short = gap - (moved[low + 1] - moved[low])
            if short > 1e-9:
                moved[low] -= short / 2
                moved[low + 1] += short / 2
    # Labels beyond the panel's foot would run into the axis.
    lift = max(0.0, 0.02 - moved[0]) if moved else 0.0
    moved = [height + lift for height in moved]
    result = list(positions)
    for place, index in enumerate(order):
        result[index] = moved[place]
    return result


def _darken(text: str) -> str:
    # One pass, as a colour of the one set could also be in the other.
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: _DARK.get(match[0], match[0]), text)
