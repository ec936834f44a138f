"""Rows of the given sources as conversations, each one usable or counted as dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.data import readers, shapes, textfile
from ftsuite.data.columnnames import listed
from ftsuite.data.columns import find_layout, with_row
from ftsuite.data.splits import Pool, SplitName
from ftsuite.errors import ConfigError, DataError, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ftsuite.config import DataConfig
    from ftsuite.data.columns import Layout
    from ftsuite.data.shapes import Conversation
    from ftsuite.events import Events

WRONG_TURNS = "turns do not alternate user and assistant"
EMPTY = "an answer, or the text, is empty or white space"
NO_QUESTION = "a question is empty or white space"
"""Reasons for dropping a row."""
LONGEST_GROUP = 200
"""Most characters of a value of `data.group`, which stands in every record and table as it is."""
READ_NOTE_ROWS = 200_000
"""How often reading says how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The conversations of all given sources."""

    pools: dict[SplitName, Pool]
    layout: Layout
    """Shape and columns, the same in every source."""
    notes: tuple[str, ...]
    """What a reader must know: columns that are not used, values that became text."""


def sources(data: DataConfig) -> list[tuple[SplitName, str]]:
    """Return the sources that are given, with the splits that they are for."""
    named: list[tuple[SplitName, str | None]] = [
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
    ]
    return [(name, source) for name, source in named if source is not None]


def read(
    data: DataConfig, dropped: Counter[str], scratch: Path | None, events: Events
) -> SourceRows:
    """Return the conversations of each given source, and how they were read.

    Args:
        data: where rows come from and which columns hold what.
        dropped: counts the rows that are left out, by reason.
        scratch: folder for temporary files.
        events: told how far reading is.

    Raises:
        ConfigError: there is no column `data.group`.
        DataError: a file or a row cannot be used, or no row is left.
    """
    pools, layout, seen = dict[SplitName, Pool](), None, _Seen()
    for name, source in sources(data):
        pool, reasons = Pool(data.split_seed, scratch), Counter[str]()
        rows = readers.iter_rows(
            source, split=name, form=textfile.format_of(data), notes=seen.notes
        )
        for number, row in enumerate(rows, start=1):
            where = f"{source}, row {number}"
            if layout is None:
                layout = find_layout(row, data.shape, data.columns, source, group=data.group)
            elif number == 1 or not row.keys() <= seen.columns.keys():
                layout = with_row(layout, row, data.shape, source if number == 1 else where)
            if number == 1:
                require_group(row, data, name, source)
            seen.columns.update(dict.fromkeys(row))
            messages = shapes.to_messages(row, layout, where, seen.said)
            group = _group(row, data.group, where, seen)
            if reason := _unusable(messages):
                reasons[reason] += 1
            else:
                pool.append(messages, group)
            if number % READ_NOTE_ROWS == 0:
                events.note(f"read {number:,} rows of {public_name(source)}")
        if not pool:
            raise DataError(
                f"{source}: the {name} split is empty, since all {sum(reasons.values())} rows were "
                f"dropped ({'; '.join(reasons)}); check data.shape and data.columns"
            )
        dropped += reasons
        pools[name] = pool
    assert layout is not None
    return SourceRows(pools=pools, layout=layout, notes=tuple(_notes(layout, seen, data.group)))


@dataclass(slots=True)
class _Seen:
    """What was met while rows were read."""

    notes: list[str] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    """Their names, in order."""
    said: Counter[str] = field(default_factory=Counter)
    """How often a value was read otherwise than it is written."""
    groupless: int = 0
    """Rows without a value in the column of the groups."""


def require_group(names: Collection[str], data: DataConfig, split: SplitName, source: str) -> None:
    """Refuse a `data.group` that the rows of a split do not have, though they are held out.

    Rows that are only trained on need no group.

    Raises:
        ConfigError: names the columns that there are.
    """
    is_cut = (data.validation is None and data.validation_fraction > 0) or (
        data.test is None and data.test_fraction > 0
    )
    if data.group is None or data.group in names or (split == "train" and not is_cut):
        return
    raise ConfigError(
        "data.group",
        data.group,
        f"{source} has no such column, only {listed(names)}; name one of them, or null",
    )


def _group(row: Mapping[str, Any], name: str | None, where: str, seen: _Seen) -> str:
    """The value of the groups' column as text; nothing where it is null or blank.

    Raises:
        DataError: it is no text or number, or longer than `LONGEST_GROUP`.
    """
    if name is None:
        return ""
    value = row.get(name)
    text = value if isinstance(value, str) else shapes.plain_text(value)
    if text is None or isinstance(value, dict | list):
        raise DataError(
            f"{where}: data.group = {shorten(name)!r} holds a value of type "
            f"{type(value).__name__}; a group is a text or a number"
        )
    text = "" if value is None else text.strip()
    if len(text) > LONGEST_GROUP:
        raise DataError(
            f"{where}: data.group = {shorten(name)!r} holds a value of {len(text):,} characters, "
            f"more than {LONGEST_GROUP}; name another column, or give shorter values"
        )
    seen.groupless += not text
    return text


def _notes(layout: Layout, seen: _Seen, group: str | None) -> list[str]:
    used = {*layout.used(seen.columns), group}
    ignored = [name for name in seen.columns if name not in used]
    return [
        *dict.fromkeys(seen.notes),
        *layout.notes,
        *([f"columns not used: {listed(ignored)}"] if ignored else []),
        *(f"{what} ({_counted(count, 'value')})" for what, count in seen.said.items()),
        *(
            [f"no value in {group!r}, so in no group: {_counted(seen.groupless, 'row')}"]
            if seen.groupless
            else []
        ),
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _unusable(messages: Conversation) -> str | None:
    """The reason to drop a row, or None."""
    if not shapes.alternates(messages):
        return WRONG_TURNS
    spoken = ("assistant", shapes.TEXT_ROLE)
    if any(m["role"] in spoken and not m["content"].strip() for m in messages):
        return EMPTY
    if any(m["role"] == "user" and not m["content"].strip() for m in messages):
        return NO_QUESTION
    return None


def public_name(source: str) -> str:
    """Return the source without a folder that would tell where on this machine it lies."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or ".." in path.parts else source
