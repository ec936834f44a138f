"""Are packed documents kept apart? Measured on the loaded model, by the way that training takes.

Whether they are is the architecture's and the attention kernel's doing: recurrent and convolution
layers carry on from the document before, some models (gpt-oss, OPT, Falcon in transformers 5.23)
build their mask without position ids, and flash attention sees packing at batch 1 only.

The measure is the log-probability of each token after the first of its document, from the trainer's
own forward pass (the trainer's head builds no logits of a whole batch; neither does this), in eval
mode: dropout would drown what is measured.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.data.packing import Sequence, collate, single
from ftsuite.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.2}
"""Largest |Δ log-probability| of a token, nats, between a packed document and the same alone.

Two attention kernels round differently. Measured on SmolLM2-135M, 60 to 250 tokens a document, CPU:
2.5e-5 in float32, 0.24 in bfloat16, 0.035 in float16; documents that see each other: 9 to 13.
"""
NOISE_FACTOR = 10
LEAST_LEAK = 1e-6
"""Nats. Other tokens in one document change no bit of another that cannot see it: exactly 0 on 28
tiny random architectures, and at least 2.6e-4 on the 15 that leak (float32, on a CPU)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What was measured, in nats a token."""

    difference: float
    """Largest |Δ log-probability| between packed and alone."""
    leak: float
    """Largest change of the last document when those before it are changed."""
    noise: float
    """Largest change of those before it when the last document is changed: none, by causality,
    but for rounding (experts that get other tokens, sums in no fixed order on a GPU)."""


def measure(
    model: Any, sequences: Rows[Sequence], *, micro_batch_size: int, pad_token_id: int
) -> Isolation | None:
    """Compare documents of a packed sequence with themselves alone.

    Args:
        model: as TRL's trainer holds it, with its fused head.
        sequences: the training sequences; one of them that is packed is measured, in a batch with
            the longest others, so that it is padded where training pads.
        micro_batch_size: sequences a forward pass in training.
        pad_token_id: as training pads.

    Returns:
        None where no sequence holds a document before another of two tokens or more.
    """
    # By number: the sequences may lie in a file, and be read one at a time.
    parts = [_shorter_part(sequence) for sequence in sequences]
    chosen = parts.index(max(parts))
    if parts[chosen] == 0:
        return None
    packed = sequences[chosen]
    cut, end = len(packed.input_ids) - packed.lengths[-1], len(packed.input_ids)
    sizes = [len(sequence.input_ids) for sequence in sequences]
    rest = (number for number in range(len(sizes)) if number != chosen)
    longest = heapq.nlargest(micro_batch_size - 1, rest, key=sizes.__getitem__)
    others = [sequences[number] for number in longest]

    def score(ids: list[int]) -> Any:
        row = Sequence(input_ids=ids, loss_mask=[1] * end, lengths=packed.lengths)
        return _log_probs(model, [row, *others], pad_token_id)

    ids = packed.input_ids
    together = score(ids)
    earlier_changed = score([*map(_another, ids[:cut]), *ids[cut:]])
    last_changed = score([*ids[:cut], *map(_another, ids[cut:])])
    first = packed.lengths[0]
    alone_first = _log_probs(model, [_whole(ids[:first])], pad_token_id)
    alone_last = _log_probs(model, [_whole(ids[cut:])], pad_token_id)
    # Place i holds token i + 1; the last document's first token is not predicted.
    last, before = slice(cut, end - 1), slice(0, cut - 1)
    return Isolation(
        difference=max(
            _largest(together[: first - 1] - alone_first[: first - 1]),
            _largest(together[last] - alone_last[: end - cut - 1]),
        ),
        leak=_largest(together[last] - earlier_changed[last]),
        noise=_largest(together[before] - last_changed[before]),
    )


def require(found: Isolation, *, dtype: str, kernel: str, micro_batch_size: int) -> None:
    """Refuse a model that lets packed documents see each other.

    Args:
        found: what `measure` gave.
        dtype: of the weights, a key of TOLERANCE.
        kernel: the attention kernel in use, by transformers' name.
        micro_batch_size: sequences a forward pass.

    Raises:
        StageError: with the remedy.
    """
    limit = max(NOISE_FACTOR * found.noise, LEAST_LEAK)
    # Written so that NaN fails too.
    if found.leak <= limit and found.difference <= TOLERANCE[dtype]:
        return
    remedy = "set packing=off"
    if kernel not in ("sdpa", "eager"):
        remedy += ", or model.attn_implementation=sdpa"
        remedy += ", or train.micro_batch_size=1" if micro_batch_size > 1 else ""
    raise StageError(
        f"train: packed documents see each other in this model (attention {kernel}, "
        f"{micro_batch_size} sequences a batch): the documents before it change a token's "
        f"log-probability by up to {found.leak:.2g} nats, and packed differs from alone by up to "
        f"{found.difference:.2g}; {remedy}"
    )


def _shorter_part(sequence: Sequence) -> int:
    """Tokens of the last document, or of all before it; 0 where there is nothing to measure."""
    last, before = sequence.lengths[-1], len(sequence.input_ids) - sequence.lengths[-1]
    return min(before, last) if last > 1 else 0


def _another(token: int) -> int:
    return token - 1 if token else 1


def _whole(ids: list[int]) -> Sequence:
    return single(ids, [1] * len(ids))


def _log_probs(model: Any, rows: list[Sequence], pad_token_id: int) -> Any:
    """Log-probabilities of the first row's labels, in float32: (width - 1,)."""
    import torch

    batch = {name: ids.to(model.device) for name, ids in collate(rows, pad_token_id).items()}
    with torch.no_grad():
        return model(**batch, fused_lm_head=True).log_probs[0].float()


def _largest(differences: Any) -> float:
    return float(differences.abs().max()) if differences.numel() else 0.0
