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
    import torch

    results: list[float] = []
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(len(ids) for ids, _ in batch)
        ids_BT = torch.zeros(len(batch), width, dtype=torch.long)
        scored_BT = torch.zeros(len(batch), width, dtype=torch.bool)
        attended_BT = torch.zeros(len(batch), width, dtype=torch.long)
        for i, (ids, mask) in enumerate(batch):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            scored_BT[i, : len(ids)] = torch.tensor(mask, dtype=torch.bool)
            attended_BT[i, : len(ids)] = 1
        scored_BT[:, 0] = False
        if not bool(scored_BT.any(dim=1).all()):
            raise ValueError("a row scores no token; its mask must have a 1 after the first place")
        with torch.inference_mode():
            logits_BTV = model(
                input_ids=ids_BT.to(model.device), attention_mask=attended_BT.to(model.device)
            ).logits
            picked_BT = _picked(logits_BTV[:, :-1], ids_BT[:, 1:].to(model.device)).cpu()
        scored = scored_BT[:, 1:]
        sums = (picked_BT * scored).sum(dim=1) / scored.sum(dim=1)
        results.extend(sums.tolist())
    return results


def _picked(logits_BTV: Any, ids_BT: Any) -> Any:
    """Log-probability of each id, computed in float32: (B, T)."""
    logits_BTV = logits_BTV.float()
    chosen_BT = logits_BTV.gather(2, ids_BT.unsqueeze(2)).squeeze(2)
    return chosen_BT - logits_BTV.logsumexp(dim=2)
