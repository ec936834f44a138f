"""lm-eval's HF backend on our tokens: what training trained is what is scored."""

from __future__ import annotations

from typing import Any

from ftsuite import progress, templates


def build_harness(model: Any, tokenizer: Any, batch_size: int, cell: str, what: str) -> Any:
    """Wrap a loaded model for lm-eval.

    Args:
        model: causal language model.
        tokenizer: with the template installed.
        batch_size: documents a forward pass.
        cell: the cell's place in the sweep, for the display.
        what: 'eval base' or 'eval tuned', for the display.
    """
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    # It runs git, which prints an error where there is no repository. provenance.py asks git too,
    # and what lm-eval found is used nowhere.
    evaluator.get_git_commit_hash = lambda: None

    class Harness(HFLM):  # type: ignore[misc]
        """lm-eval's HF backend with a progress display and a token count."""

        tokens = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, **rest: Any
        ) -> Any:
            # One-token continuations of one context share a forward pass.
            contexts = {tuple(context + answer[:-1]) for _, context, answer in requests}
            total = sum(len(context) for context in contexts)
            with progress.stage(cell, f"{what}, log-likelihood", total, "tokens") as self.advance:
                return super()._loglikelihood_tokens(requests, disable_tqdm=True, **rest)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            # lm-eval splits off the prompt's trailing white space, which generation and training
            # keep: Llama 3's and Vicuna's prompts end in some.
            return templates.encode_pair(self.tokenizer, context, continuation)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with progress.stage(
                cell, f"{what}, generation", len(requests), "answers"
            ) as self.advance:
                return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, **kwargs: Any) -> Any:
            logits = super()._model_call(inps, **kwargs)
            self.tokens += inps.numel()
            self.advance(inps.numel())
            return logits

        def _model_generate(self, context: Any, **kwargs: Any) -> Any:
            generated = super()._model_generate(context, **kwargs)
            self.tokens += generated.numel()
            self.advance(len(context))
            return generated

    # Log-probabilities in float32: bfloat16's 8 bits would round them to about 1 %.
    return Harness(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32"
    )
