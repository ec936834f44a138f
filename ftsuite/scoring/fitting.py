"""Held-out rows that are longer than the model's context: left out and counted, not an error.

Nobody can take a row out of a held-out split but by changing the file, which changes the cut; and
training drops or cuts such rows too. A task of somebody's own is left alone: there it is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def fitting(
    tasks: Mapping[str, Any], harness: Any, samples: Mapping[str, Sequence[int]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Leave out documents that do not fit.

    Args:
        tasks: lm-eval's task objects by name.
        harness: of `harness.build_harness`.
        samples: numbers of the documents to be scored, by task.

    Returns:
        The numbers that are left, and how many were left out of each task that loses some.

    Raises:
        DataError: no document of a task fits.
    """
    kept, left_out = dict[str, list[int]](), dict[str, int]()
    for name, task in tasks.items():
        wanted = list(samples[name])
        kept[name] = wanted
        if not (task.config.metadata or {}).get("held_out"):
            continue
        task.build_all_requests(
            samples=wanted,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            chat_template=harness.apply_chat_template,
        )
        long = {one.doc_id for one in task.instances if _is_long(one, harness)}
        # lm-eval numbers the documents of a subset anew.
        kept[name] = [number for place, number in enumerate(wanted) if place not in long]
        if not kept[name]:
            raise DataError(
                f"evals.tasks: {name}: no document fits into the {harness.max_length:,} tokens of "
                "the model's context; remove the task by evals.remove, or choose another model"
            )
        if long:
            left_out[name] = len(long)
    return kept, left_out


def _is_long(request: Any, harness: Any) -> bool:
    if request.request_type == "loglikelihood_rolling":
        # Scored in windows.
        return False
    if request.request_type == "generate_until":
        context, settings = request.args
        room: int = harness.max_length - settings["max_gen_toks"]
        return len(harness.tok_encode(context)) > room
    prompt, answer = harness._encode_pair(*request.args[:2])
    # The last token is predicted and never read.
    return bool(len(prompt) + len(answer) - 1 > harness.max_length)


def notes(left_out: Mapping[str, int]) -> list[str]:
    """Say what was left out."""
    return [
        f"{name}: {count:,} document{'' if count == 1 else 's'} longer than the model's context "
        "left out"
        for name, count in left_out.items()
    ]
