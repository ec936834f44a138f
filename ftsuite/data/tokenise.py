"""Conversations to token ids and loss masks, in this process or in several.

Order and result are the same either way: workers get the tokenizer itself, with its template, and
whole chunks of rows, whose answers are taken in the order in which the chunks were sent.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ftsuite.data.packing import Sequence
    from ftsuite.data.shapes import Conversation

    RowsOf = Callable[..., list[Sequence]]

PARALLEL_FROM = 20_000
"""Rows that are worth starting workers for: they take some seconds to import transformers."""
CHUNK = 200
"""Rows that a worker gets at once: about a tenth of a second."""

Tokens = tuple[Any, Any]
"""Token ids (int32) and loss mask (int8) of a row, numpy arrays."""


def tokenise(
    conversations: Iterable[Conversation],
    total: int,
    rows_of: RowsOf,
    tokenizer: Any,
    *,
    processes: int,
    scratch: Path | None = None,
) -> Iterator[Tokens]:
    """Tokenise conversations in their order.

    Args:
        conversations: system messages already in front.
        total: how many there are.
        rows_of: makes the rows of a conversation and the keyword `tokenizer`; it is sent to the
            workers, so it must be a module's function or a partial of one.
        tokenizer: with the template installed.
        processes: at most so many at once; few rows are tokenised in this process.
        scratch: where the tokenizer is put for the workers.

    Raises:
        DataError: the template fails.
        StageError: a worker died.
    """
    if processes < 2 or total < PARALLEL_FROM or not _can_be_sent(tokenizer):
        for messages in conversations:
            yield from map(_arrays, rows_of(messages, tokenizer=tokenizer))
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "tokenizer.pickle"
        path.write_bytes(pickle.dumps((rows_of, tokenizer)))
        for chunk in _chunks_in_order(conversations, str(path), processes):
            yield from _split(*chunk)


def _arrays(row: Sequence) -> Tokens:
    import numpy as np

    return np.array(row.input_ids, np.int32), np.array(row.loss_mask, np.int8)


def _can_be_sent(tokenizer: Any) -> bool:
    """Whether a worker can import the tokenizer's class: not one that the model brings along."""
    return type(tokenizer).__module__.startswith("transformers.")


def _chunks_in_order(
    conversations: Iterable[Conversation], path: str, processes: int
) -> Iterator[tuple[Any, Any, Any]]:
    # A forked process would share torch's and the tokenizer's threads and locks.
    spawn = multiprocessing.get_context("spawn")
    rows, waiting = iter(conversations), deque[Any]()
    with ProcessPoolExecutor(processes, spawn, initializer=_begin_worker) as pool:
        try:
            while chunk := list(itertools.islice(rows, CHUNK)):
                waiting.append(pool.submit(_tokenise_chunk, path, chunk))
                # Two chunks ahead of every worker: none waits, and memory stays bounded.
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise StageError(
                "data: a process that tokenised rows died, perhaps for want of memory; set "
                "backend.threads=1 to tokenise in one process"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C ends the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process a core: threads of the tokenizer's own would get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _tokenise_chunk(path: str, conversations: list[Conversation]) -> tuple[Any, Any, Any]:
    """Lengths, token ids and loss masks of a chunk's rows, each in one array."""
    import numpy as np

    rows_of, tokenizer = _loaded(path)
    rows = [
        _arrays(row) for messages in conversations for row in rows_of(messages, tokenizer=tokenizer)
    ]
    lengths = np.array([len(ids) for ids, _ in rows], np.int32)
    return lengths, np.concatenate([ids for ids, _ in rows]), np.concatenate([m for _, m in rows])


@functools.cache
def _loaded(path: str) -> tuple[RowsOf, Any]:
    # Our own file: written a moment ago by the process that started this one.
    rows_of, tokenizer = pickle.loads(Path(path).read_bytes())
    return rows_of, tokenizer


def _split(lengths: Any, ids: Any, mask: Any) -> Iterator[Tokens]:
    import numpy as np

    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield ids[start:end], mask[start:end]
