"""Stages and the store: look a result up, or compute it in this process."""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite.errors import StoreError
from ftsuite.events import Events, path_of, to_file
from ftsuite.measure import measure
from ftsuite.store import commit, entries, leases, partials
from ftsuite.store.entries import Entry, StageSpec, folder_of
from ftsuite.store.stage import function_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ftsuite.measure import Usage
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

    return commit.run_stage(root, _spec(stage, work), on_wait=on_wait)


def compute_many(
    root: Path, stages: Sequence[Stage[Any]], events: Mapping[str, Events]
) -> Iterator[tuple[str, Exception | None]]:
    """Compute stages of equal `together` at once; each is stored as soon as it is there.

    Those that are stored already, or that another process is computing, are left out.

    Args:
        root: the store.
        stages: with one MANY.
        events: where each one's events go, by key.

    Returns:
        An iterator of the key of each stage that was computed, and its error or None.
    """
    with ExitStack() as leased:
        works = {}
        for stage in stages:
            if (work := _begun(root, stage, leased)) is not None:
                works[stage.key] = work
        if not works:
            return
        asked = [work.stage for work in works.values()]
        folders = {one.key: folder(root, one) for stage in asked for one in stage.upstreams}
        outs = {key: work.partial for key, work in works.items()}
        started = time.monotonic()
        with measure() as usage:
            for key, result in function_of(asked[0].MANY)(asked, folders, outs, events):
                seconds, started = time.monotonic() - started, time.monotonic()
                yield key, _ended(root, works[key], result, seconds, usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One of several stages while they are computed at once."""

    stage: Stage[Any]
    spec: StageSpec[Any]
    partial: Path
    held: ExitStack
    """Clears the folder up where the work fails, and gives the lease back."""


def _begun(root: Path, stage: Stage[Any], leased: ExitStack) -> _Work | None:
    spec = _spec(stage, _never)
    held = leased.enter_context(ExitStack())
    lease = held.enter_context(leases.held_if_free(entry_folder(root, stage)))
    if lease is None:
        return None
    found = lookup(root, stage)
    if found is not None and not found.pruned:
        held.close()
        return None
    partial = held.enter_context(commit.work(spec, root, lease))
    return _Work(stage=stage, spec=spec, partial=partial, held=held)


def _ended(root: Path, work: _Work, result: Any, seconds: float, usage: Usage) -> Exception | None:
    """Store a result, or give up its work; the lease is given back."""
    try:
        with work.held, partials.full_disk_is_an_error(root):
            if isinstance(result, Exception):
                raise result
            commit.commit(work.spec, root, work.partial, result, seconds, usage)
    except Exception as error:
        return error
    return None


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
