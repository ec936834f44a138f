"""Checks of the data files that a configuration names, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.config import DataConfig
from ftsuite.data import conversations, readers, textfile
from ftsuite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ftsuite.data.hubdata import HubSource
    from ftsuite.data.splits import SplitName


def check(data: DataConfig) -> None:
    """Refuse sources that are missing or of an unknown kind, and settings without effect on them.

    Reads no rows, but for the first of each file where `data.group` has to be one of its columns.

    Raises:
        ConfigError: names the field.
        DataError: a file's first row cannot be read.
    """
    form = textfile.format_of(data)
    found = {name: _find(name, source) for name, source in conversations.sources(data)}
    suffixes = {
        readers.suffix_of(path) if isinstance(path, Path) else "Hub" for path in found.values()
    }
    if data.header is not None and suffixes.isdisjoint(readers.DELIMITED_SUFFIXES):
        raise ConfigError("data.header", data.header, "no file of data is CSV or TSV; leave it out")
    default = DataConfig().encoding
    if data.encoding != default and suffixes.isdisjoint(readers.TEXT_SUFFIXES):
        raise ConfigError(
            "data.encoding", data.encoding, "no file of data is a text file; leave it out"
        )
    if data.group is not None:
        for name, source in conversations.sources(data):
            if isinstance(found[name], Path):
                rows = readers.iter_rows(source, form=form)
                conversations.require_group(next(iter(rows)), data, name, source)


def _find(name: SplitName, source: str) -> Path | HubSource:
    field = f"data.{name}"
    if not source:
        raise ConfigError(field, source, "name a file or a Hub id")
    try:
        found = readers.find_source(source, split=name)
    except DataError as error:
        raise ConfigError(field, source, str(error).partition(": ")[2]) from error
    if isinstance(found, Path) and (remedy := readers.unknown_kind(found)):
        raise ConfigError(field, source, remedy)
    return found
