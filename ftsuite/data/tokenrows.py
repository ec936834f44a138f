"""Tokenised rows and packed sequences outside of the memory: in a spool, and as Arrow files.

All are read like lists of `packing.Sequence`; one is made when it is asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Any, overload

from ftsuite.data import packing
from ftsuite.data.packing import Sequence
from ftsuite.data.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ftsuite.choices import Packing

BATCH = 1_000
"""Sequences of one Arrow record batch."""
COLUMNS = ("input_ids", "loss_mask", "lengths")


class _Lazy(Rows[Sequence]):
    """Sequences by number; a slice is a list."""

    def _one(self, number: int) -> Sequence:
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> Sequence: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sequence]: ...
    def __getitem__(self, number: int | slice) -> Sequence | list[Sequence]:
        places = range(len(self))[number]
        return (
            [self._one(place) for place in places]
            if isinstance(places, range)
            else (self._one(places))
        )


class TokenRows(_Lazy):
    """Tokenised rows of one document each, in the order in which they were appended."""

    def __init__(self, folder: Path | None = None) -> None:
        """Make it empty; its file lies in `folder`."""
        self._spool = Spool(folder)
        self._digest = hashlib.sha256()
        self.lengths = array("q")
        """Tokens of each row."""
        self.trained = array("q")
        """Trained tokens of each row."""

    def append(self, ids: Any, mask: Any) -> bool:
        """Add a row, unless it has no token to train on; say whether it was added.

        Args:
            ids: int32 array of token ids.
            mask: int8 array, 1 where the token enters the loss.
        """
        # Nothing stands before the first token to predict it from.
        trained = int(mask[1:].sum())
        if not trained:
            return False
        self._spool.append(ids.tobytes() + mask.tobytes())
        self._digest.update(len(ids).to_bytes(8, "little"))
        self._digest.update(ids.astype("<i8").tobytes())
        self._digest.update(mask.astype("<i8").tobytes())
        self.lengths.append(len(ids))
        self.trained.append(trained)
        return True

    def sha256(self) -> str:
        """Hash of every row's length, token ids and loss mask, as 64-bit integers."""
        return self._digest.hexdigest()

    def arrays(self, number: int) -> tuple[Any, Any]:
        """Token ids (int32) and loss mask (int8) of a row."""
        import numpy as np

        record, length = self._spool[number], self.lengths[number]
        ids = np.frombuffer(record, np.int32, length)
        return ids, np.frombuffer(record, np.int8, length, offset=4 * length)

    def __len__(self) -> int:
        return len(self.lengths)

    def _one(self, number: int) -> Sequence:
        ids, mask = self.arrays(number)
        return packing.single(ids.tolist(), mask.tolist())


class PackedRows(_Lazy):
    """Sequences of a split: a plan of which pieces of which rows each one holds."""

    def __init__(self, rows: TokenRows, strategy: Packing, max_length: int) -> None:
        """Plan the sequences of at most `max_length` tokens; none is without a trained token."""
        self._rows = rows
        self._plan = packing.Plan()
        self.trained = array("q")
        """Trained tokens of each sequence."""
        for pieces in packing.plan(rows.lengths, strategy, max_length):
            # Wrapping may leave a piece of a long prompt alone in a sequence.
            if trained := sum(self._trained(*piece) for piece in pieces):
                self._plan.append(pieces)
                self.trained.append(trained)

    def _trained(self, row: int, start: int, end: int) -> int:
        if end - start == self._rows.lengths[row]:
            return self._rows.trained[row]
        return int(self._rows.arrays(row)[1][start + 1 : end].sum())

    def arrays(self, number: int) -> tuple[Any, Any, Any]:
        """Token ids, loss mask and documents' lengths of a sequence."""
        import numpy as np

        pieces = self._plan[number]
        found = [(*self._rows.arrays(row), start, end) for row, start, end in pieces]
        ids = np.concatenate([ids[start:end] for ids, _, start, end in found])
        mask = np.concatenate([mask[start:end] for _, mask, start, end in found])
        return ids, mask, np.array([end - start for _, start, end in pieces], np.int32)

    def __len__(self) -> int:
        return len(self._plan)

    def _one(self, number: int) -> Sequence:
        ids, mask, lengths = (part.tolist() for part in self.arrays(number))
        return Sequence(input_ids=ids, loss_mask=mask, lengths=lengths)


class StoredRows(_Lazy):
    """Sequences of an Arrow file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Open what `write` wrote."""
        import pyarrow

        self._path = path
        self._table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()

    def dataset(self, rows: int | None = None) -> Any:
        """The first so many, or all, as a memory-mapped `datasets.Dataset`."""
        from datasets import Dataset

        whole = Dataset.from_file(str(self._path))
        return whole if rows is None or rows >= len(whole) else whole.select(range(rows))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def _one(self, number: int) -> Sequence:
        return Sequence(**{name: self._table[name][number].as_py() for name in COLUMNS})


def write(path: Path, sequences: PackedRows) -> None:
    """Write sequences as an Arrow stream, the form that `datasets.Dataset.from_file` maps."""
    import pyarrow

    kinds = (pyarrow.int32(), pyarrow.int8(), pyarrow.int32())
    schema = pyarrow.schema(
        [(name, pyarrow.list_(kind)) for name, kind in zip(COLUMNS, kinds, strict=True)]
    )
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(sequences), BATCH):
            numbers = range(start, min(start + BATCH, len(sequences)))
            parts = zip(*(sequences.arrays(number) for number in numbers), strict=True)
            columns = [_lists(part) for part in parts]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _lists(arrays: Iterable[Any]) -> Any:
    """An Arrow column with one list for each numpy array."""
    import numpy as np
    import pyarrow

    rows = list(arrays)
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(ends, np.concatenate(rows))
