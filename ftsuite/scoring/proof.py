"""Before any forward pass: the tokens that will be scored begin the tokens that training trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError, StageError
from ftsuite.models import templates, turns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROVED_DOCUMENTS = 3
"""Documents of each task that are proved; all their choices, with their few-shot examples."""
ANSWER = "Yes."
"""Stands in for the answer that a generation task waits for."""


def prove(tasks: Mapping[str, Any], harness: Any, samples: Mapping[str, Sequence[int]]) -> str:
    """Prove prompts and choices of every task on real documents, and say how BOS gets in.

    Args:
        tasks: lm-eval's task objects by name.
        harness: of `harness.build_harness`.
        samples: numbers of the documents that will be scored, by task.

    Returns:
        How BOS enters, such as 'template'; 'harness prefix' where documents are scored whole.

    Raises:
        StageError: lm-eval would score other tokens than training trains.
        DataError: the template drops a system or user text, or changes an answer.
    """
    rules: set[str] = set()
    for name, task in tasks.items():
        task.build_all_requests(
            samples=list(samples[name])[:PROVED_DOCUMENTS],
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            chat_template=harness.apply_chat_template,
        )
        for request in task.instances:
            rules.add(_prove_request(name, request, harness))
    return ", ".join(sorted(rules))


def _prove_request(name: str, request: Any, harness: Any) -> str:
    tokenizer = harness.tokenizer
    if request.request_type == "loglikelihood_rolling":
        ids = templates.encode_text(tokenizer, request.args[0])
        _require(ids[:1] != [harness.prefix_token_id], name, "begins with two BOS tokens")
        return "harness prefix"
    context, following = request.args[0], request.args[1]
    if not context:
        # A choice without its question, for metrics that normalise by it.
        return "harness prefix"
    history = harness.histories[context]
    answer = ANSWER if request.request_type == "generate_until" else following
    scored = harness.tok_encode(context)
    if request.request_type == "generate_until":
        fed = harness.tok_batch_encode([context])[0][0].tolist()
        _require(fed == scored, name, "generates from other tokens than it encodes")
    else:
        prompt, choice = harness._encode_pair(context, following)
        scored = prompt + choice
    begun = ""
    if history[-1]["role"] == "assistant":
        *history, prefill = history
        begun = prefill["content"]
    conversation = [*history, {"role": "assistant", "content": begun + answer}]
    trained = turns.rows(tokenizer, conversation)[-1].ids
    _require(trained[: len(scored)] == scored, name, "scores other tokens than training trains")
    return templates.bos_rule(tokenizer, context)


def whole_answers(
    tasks: Mapping[str, Any], tokenizer: Any, samples: Mapping[str, Sequence[int]]
) -> None:
    """Refuse to generate answers that end before the right one could.

    Only for tasks that say `metadata: {whole_answers: true}`: an answer that is cut short is no
    label, no JSON and no number, while a free text may be.

    Args:
        tasks: lm-eval's task objects by name.
        tokenizer: the model's.
        samples: numbers of the documents that will be scored, by task.

    Raises:
        DataError: names the task, the tokens that are needed and the setting.
    """
    for name, task in tasks.items():
        if not (task.config.metadata or {}).get("whole_answers"):
            continue
        documents = task.eval_docs
        targets = (str(task.doc_to_target(documents[number])) for number in samples[name])
        needed = max(len(templates.encode_text(tokenizer, target)) for target in targets)
        longest = task.config.generation_kwargs["max_gen_toks"]
        if needed > longest:
            raise DataError(
                f"evals.tasks: {name}: the right answers have up to {needed} tokens, and generated "
                f"ones end after {longest}; set evals.max_new_tokens={needed + 8} or more"
            )


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise StageError(
            f"eval: {name} {what}; choose another template, and report this with the model's name"
        )


def prove_probe(
    tokenizer: Any, messages: Sequence[templates.Message], answers: Sequence[str]
) -> None:
    """Prove a probe's prompt and the answers that are scored behind it.

    Raises:
        StageError: other tokens would be scored than training trains.
        DataError: the template drops a system or user text, or changes an answer.
    """
    before = turns.prompt(tokenizer, messages)
    for answer in answers or [ANSWER]:
        prompt, ids = turns.encode_pair(tokenizer, before, answer)
        whole = [*messages, {"role": "assistant", "content": answer}]
        trained = turns.rows(tokenizer, whole)[-1].ids
        scored = prompt + ids
        if trained[: len(scored)] != scored:
            raise StageError(
                "probe: other tokens would be scored than training trains; choose another "
                "template, and report this with the model's name"
            )
