"""lm-eval's HF backend on our prompts and tokens: what training trained is what is scored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.models import templates, turns

if TYPE_CHECKING:
    from ftsuite.events import Events


def build_harness(model: Any, tokenizer: Any, batch_size: int, events: Events) -> Any:
    """Wrap a loaded model for lm-eval.

    Args:
        model: causal language model, its generation made plain (`models.plain_generation`). A
            row that has ended must be padded while its batch goes on: lm-eval decodes without
            special tokens, so an end token that is only a stop string could not be found again.
        tokenizer: with the template installed.
        batch_size: documents a forward pass.
        events: told how far scoring is.
    """
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    # What they find is used nowhere, and provenance.py asks for the same. The one runs git, which
    # prints an error where there is no repository; the other a dozen programs, for one to two
    # seconds a task.
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = lambda _: None

    class Harness(HFLM):  # type: ignore[misc]
        """lm-eval's HF backend with our prompts, a progress display and a token count."""

        tokens = 0
        rolling = False
        """Whether documents are scored whole, which lm-eval puts a prefix token in front of."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.histories: dict[str, list[dict[str, str]]] = {}
            """The conversation behind each rendered prompt, for the proof."""

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            # lm-eval's own drops the system message with a warning where a template refuses it
            # (its issue 2069), and starts from the cue (see turns.py).
            asked = chat_history if add_generation_prompt else chat_history[:-1]
            begun = "" if add_generation_prompt else chat_history[-1]["content"]
            if begun:
                found = turns.dialect(self.tokenizer)
                begun = found.lead + found.treat(f"{begun}.")[:-1]
            text = turns.prompt(self.tokenizer, asked) + begun
            self.histories[text] = chat_history
            return text

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **_: Any,
        ) -> list[int]:
            if self.rolling or add_special_tokens is False:
                return templates.encode_text(self.tokenizer, string)
            return templates.encode(self.tokenizer, string)

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Any, Any]:
            rows = [self.tok_encode(text) for text in strings]
            longest = max(map(len, rows))
            if left_truncate_len is not None and longest > left_truncate_len:
                raise _too_long(longest, left_truncate_len)
            padded = self.tokenizer.pad(
                {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
            )
            return padded["input_ids"], padded["attention_mask"]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.rolling = True
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm=True)
            finally:
                self.rolling = False

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, **rest: Any
        ) -> Any:
            longest = max(len(context) + len(answer) for _, context, answer in requests)
            # The last token is predicted and never read.
            if longest - 1 > self.max_length:
                raise _too_long(longest, self.max_length)
            # One-token continuations of one context share a forward pass.
            contexts = {tuple(context + answer[:-1]) for _, context, answer in requests}
            total = sum(len(context) for context in contexts)
            with events.progress("log-likelihood", total, "tokens") as self.advance:
                return super()._loglikelihood_tokens(requests, disable_tqdm=True, **rest)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            # lm-eval splits off the prompt's trailing white space, which generation and training
            # keep: Llama 3's and Vicuna's prompts end in some.
            history = self.histories.get(context, [])
            begun = bool(history) and history[-1]["role"] == "assistant"
            return turns.encode_pair(self.tokenizer, context, continuation, begun=begun)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            stopped = [_stopped(request, self.tokenizer) for request in requests]
            with events.progress("generation", len(requests), "answers") as self.advance:
                answers = super().generate_until(stopped, disable_tqdm=True)
            return [turns.bare_answer(self.tokenizer, answer) for answer in answers]

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


def _stopped(request: Any, tokenizer: Any) -> Any:
    """The generation request with what ends an answer among its stop strings."""
    context, settings, *rest = request.arguments
    until = settings.get("until") or []
    own = [until] if isinstance(until, str) else list(until)
    settings = settings | {
        "until": own + [s for s in turns.dialect(tokenizer).stops if s not in own]
    }
    return dataclasses.replace(request, arguments=(context, settings, *rest))


def _too_long(tokens: int, limit: int) -> DataError:
    return DataError(
        f"evals.tasks: a prompt of {tokens:,} tokens is longer than the {limit:,} that the model's "
        "context leaves for it; leave the document or the task out, or choose another model"
    )
