"""Rows of data sets on the Hub, of the commit that is in the store's keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A data set on the Hub: `org/name`, `org/name:config`, `org/name:config@split`."""

    id: str
    config: str | None
    split: str


def read(source: HubSource) -> Iterator[dict[str, Any]]:
    """Give the rows of a data set, as of one commit.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    commit = commit_of(source)
    try:
        loaded = datasets.load_dataset(
            source.id, source.config, split=source.split, revision=commit
        )
        yield from (dict(row) for row in loaded)
    except Exception as error:  # the Hub client raises a dozen unrelated kinds
        raise _unreachable(source, error) from error


def commit_of(source: HubSource) -> str:
    """Return the commit that the data set's main branch points to; offline, as it is in the cache.

    Raises:
        DataError: it cannot be found out.
    """
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().dataset_info(source.id, timeout=30).sha)
    except Exception as error:  # offline, unknown, gated: as many kinds of exception
        folder = f"datasets--{source.id.replace('/', '--')}"
        cached = Path(constants.HF_HUB_CACHE, folder, "refs", "main")
        if cached.is_file() and not _is_answer(error):
            return cached.read_text(encoding="ascii").strip()
        raise _unreachable(source, error) from error


def _is_answer(error: Exception) -> bool:
    # The Hub was there and said no: an old cache must not hide that.
    return getattr(error, "response", None) is not None


def _unreachable(source: HubSource, error: Exception) -> DataError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(
        f"{source.id}: no such file here, and it cannot be loaded from the Hub "
        f"({type(error).__name__}: {first}); check the name and split, the network and HF_TOKEN, "
        "or give a local file"
    )
