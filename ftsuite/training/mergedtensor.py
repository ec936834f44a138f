"""One tensor of a merged model: base + scale·B·A in float32, rounded once, block by block.

The order of operations is PEFT's (`LoraLayer.merge`), so that the bytes are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError
from ftsuite.training import tensorfile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ftsuite.training.tensorfile import Stored

BLOCK = 1 << 20
"""Values computed at a time: a few MB, which stay in the CPU's caches from read to write."""
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that are computed with; all others are copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What the adapter adds to a weight: scale·B·A, transposed where the weight is stored so."""

    a: Stored
    b: Stored
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTensor:
    """What a tensor is made of, and what it will be."""

    name: str
    source: Stored
    delta: Delta | None
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    """With more rows than `source` has, the rest is the mean of its rows (`load_model`)."""


def scratch(tensors: Iterable[MergedTensor]) -> Any:
    """Room for the largest B·A of some tensors: to be used by one after the other.

    Fresh memory for each would cost more than the product: the system clears every page.
    """
    import torch

    deltas = [tensor.delta for tensor in tensors if tensor.delta is not None]
    return torch.empty(max((part.b.shape[0] * part.a.shape[1] for part in deltas), default=0))


def blocks(tensor: MergedTensor, room: Any) -> Iterator[bytearray | memoryview]:
    """The tensor's bytes.

    Args:
        tensor: what is merged.
        room: from `scratch`.

    Raises:
        StageError: the adapter's part has another shape.
    """
    import torch

    source, delta = tensor.source, tensor.delta
    if source.dtype == tensor.dtype and source.shape == tensor.shape and delta is None:
        yield from tensorfile.blocks(source, BLOCK)
        return
    rounded = getattr(torch, FLOATS[tensor.dtype])
    product = None if delta is None else _product(tensor, delta, room)
    row = 0
    for values in _rows(tensor):
        if product is not None and delta is not None:
            values += product[row : row + len(values)] * delta.scale
        row += len(values)
        yield memoryview(values.to(rounded).view(torch.uint8).numpy()).cast("B")


def _rows(tensor: MergedTensor) -> Iterator[Any]:
    """The base's rows in float32, then those of new tokens: blocks of shape (rows, columns)."""
    source = tensor.source
    columns = max(1, math.prod(tensor.shape[1:]))
    for values in _stored(source, max(1, BLOCK // columns) * columns):
        yield values.view(-1, columns).float()
    if tensor.shape != source.shape:
        yield _mean(source).repeat(tensor.shape[0] - source.shape[0], 1)


def _mean(source: Stored) -> Any:
    """The mean row in float32, of the whole: a sum's last bits depend on how it is cut up."""
    import torch

    whole = torch.empty(source.shape)
    place = 0
    for values in _stored(source, BLOCK):
        whole.view(-1)[place : place + len(values)] = values
        place += len(values)
    return whole.mean(dim=0)


def _product(tensor: MergedTensor, delta: Delta, room: Any) -> Any:
    """B·A in float32, whole: its last bits may depend on the shapes of its factors."""
    import torch

    # Copies: they may depend on where its factors lie, too.
    a, b = (
        next(_stored(part, math.prod(part.shape))).view(part.shape).float().clone()
        for part in (delta.a, delta.b)
    )
    product = torch.mm(b, a, out=room[: len(b) * a.shape[1]].view(len(b), -1))
    product = product.T if delta.transposed else product
    if product.shape != tensor.shape:
        raise StageError(
            f"merge: the adapter adds {tuple(product.shape)} values to {tensor.name}, which has "
            f"{tensor.shape}; it belongs to another base"
        )
    return product


def _stored(source: Stored, values: int) -> Iterator[Any]:
    """A tensor as it is stored, flat, so many values at a time."""
    import torch

    for block in tensorfile.blocks(source, values):
        yield torch.frombuffer(block, dtype=getattr(torch, FLOATS[source.dtype]))
