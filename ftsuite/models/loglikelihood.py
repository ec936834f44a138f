"""Log-likelihoods of given continuations, for merge fidelity and the probes' contrasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def mean_log_likelihoods(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], *, batch_size: int
) -> list[float]:
    """Mean log-likelihood a token of each row's scored tokens, in nats.

    Args:
        model: causal language model.
        rows: pairs (token ids, mask); a mask of 1 scores the token at its place. The first token
            of a row has no context and is never scored.
        batch_size: rows a forward pass.

    Raises:
        ValueError: a row scores no token.
    """
    tokens = log_likelihoods(model, [ids for ids, _ in rows], batch_size=batch_size)
    return [masked_mean(row, mask) for row, (_, mask) in zip(tokens, rows, strict=True)]


def masked_mean(tokens: list[float], mask: list[int]) -> float:
    """Mean of the values where the mask is 1, the first place left out.

    Args:
        tokens: what `log_likelihoods` gives for a row: one value less than the row has tokens.
        mask: one number a token of the row.

    Raises:
        ValueError: no value is left.
    """
    import torch

    # In float32, as the log-likelihoods are.
    kept = torch.tensor(mask[1:], dtype=torch.bool)
    if not bool(kept.any()):
        raise ValueError("a row scores no token; its mask must have a 1 after the first place")
    return float((torch.tensor(tokens) * kept).sum() / kept.sum())


def log_likelihoods(model: Any, rows: Sequence[list[int]], *, batch_size: int) -> list[list[float]]:
    """Log-likelihood of every token of every row but the first, which has no context; in nats.

    Args:
        model: causal language model.
        rows: token ids.
        batch_size: rows a forward pass.
    """
    import torch

    results: list[list[float]] = []
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(len(ids) for ids in batch)
        ids_BT = torch.zeros(len(batch), width, dtype=torch.long)
        attended_BT = torch.zeros(len(batch), width, dtype=torch.long)
        for i, ids in enumerate(batch):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            attended_BT[i, : len(ids)] = 1
        with torch.inference_mode():
            logits_BTV = model(
                input_ids=ids_BT.to(model.device), attention_mask=attended_BT.to(model.device)
            ).logits
            picked_BT = _picked(logits_BTV[:, :-1], ids_BT[:, 1:].to(model.device)).cpu()
        results += [picked_BT[i, : len(ids) - 1].tolist() for i, ids in enumerate(batch)]
    return results


def _picked(logits_BTV: Any, ids_BT: Any) -> Any:
    """Log-probability of each id, computed in float32: (B, T)."""
    logits_BTV = logits_BTV.float()
    chosen_BT = logits_BTV.gather(2, ids_BT.unsqueeze(2)).squeeze(2)
    return chosen_BT - logits_BTV.logsumexp(dim=2)
