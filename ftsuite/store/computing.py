"""Stages and the store: look a result up, or compute it in this process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite.errors import StoreError
from ftsuite.events import Events, path_of, to_file
from ftsuite.store import entries
from ftsuite.store.entries import Entry, StageSpec, folder_of
from ftsuite.store.stage import function_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.store.stage import Stage, Upstream

T = TypeVar("T")


def lookup(root: Path, stage: Stage[T]) -> Entry[T] | None:
    """Return the stored result of a stage, or None where there is none.

    Raises:
        StoreError: the entry is corrupted, or was made from other inputs.
    """
    return entries.lookup(root, _spec(stage, _never))


def compute(
    root: Path,
    stage: Stage[T],
    *,
    on_wait: Callable[[str], None] = lambda _: None,
    events: Events | None = None,
) -> Entry[T]:
    """Return the result of a stage, from the store or by computing it once.

    Args:
        root: the store.
        stage: what to compute.
        on_wait: told the stage's kind when another process computes the same result.
        events: where the function's events go; None: beside the entry.

    Raises:
        StoreError: an upstream or the entry itself is missing or corrupted.
        StageError: the disk is full.
    """
    sink = events or Events(to_file(path_of(root, stage.NAME, stage.key)))

    def work(out: Path) -> T:
        folders = {one.key: folder(root, one) for one in stage.upstreams}
        record: T = function_of(stage.FUNCTION)(stage, folders, out, sink)
        return record

    return entries.run_stage(root, _spec(stage, work), on_wait=on_wait)


def entry_folder(root: Path, stage: Upstream) -> Path:
    """Where the result of a stage lies, whether it is there or not."""
    return folder_of(root, stage.stage, stage.key)


def refuse_unworkable(root: Path, stage: Stage[Any]) -> None:
    """Refuse a stage that cannot work, before anything is spent on it (`Stage.CHECK`).

    Upstreams that are not there yet have no folder.
    """
    if stage.CHECK:
        folders = {
            one.key: folder_of(root, one.stage, one.key)
            for one in stage.upstreams
            if folder_of(root, one.stage, one.key).exists()
        }
        function_of(stage.CHECK)(stage, folders)


def folder(root: Path, upstream: Upstream) -> Path:
    """Folder of a result to build on, its files checked against their sha256, once a process.

    Raises:
        StoreError: there is none, or a file's bytes are not those that were stored.
    """
    found = folder_of(root, upstream.stage, upstream.key)
    if not found.exists():
        raise StoreError(f"{upstream.stage} {upstream.key[:12]}: not in the store; run again")
    files = sorted(path for path in found.rglob("*") if path.is_file())
    _verify_once(found, tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files))
    return found


@functools.cache
def _verify_once(folder: Path, _stats: tuple[tuple[str, int, int], ...]) -> None:
    entries.verify(folder)


def _spec(stage: Stage[T], work: Callable[[Path], T]) -> StageSpec[T]:
    return StageSpec(
        name=stage.NAME,
        version=stage.VERSION,
        inputs=stage.inputs,
        record=stage.RECORD,
        compute=work,
        resumable=stage.RESUMABLE,
    )


def _never(_: Path) -> Any:
    raise AssertionError("only looked up")
