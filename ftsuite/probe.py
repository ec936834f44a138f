"""The probe stage: does a model still follow a system prompt, and would it without one?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite import checks, models, progress, proof, templates, turns
from ftsuite.loglikelihood import mean_log_likelihoods
from ftsuite.probefiles import read_probes
from ftsuite.records import ProbeAnswer, ProbeContrast, ProbeReport, ProbeResult

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import ProbesConfig, RunConfig
    from ftsuite.devices import Compute
    from ftsuite.probefiles import Probe

VERSION = 2


def probe(config: RunConfig, compute: Compute, folder: Path, cell: str, what: str) -> ProbeReport:
    """Ask the model in `folder` every probe's questions, with and without its system prompt.

    Args:
        config: the cell's configuration.
        compute: device and dtype.
        folder: base or merged model.
        cell: the cell's place in the sweep, for the display.
        what: 'probe base' or 'probe tuned', for the display.

    Raises:
        DataError: the template drops a system prompt; nothing would be measured.
        StageError: other tokens would be scored than training trains.
    """
    tokenizer = models.load_tokenizer(folder, config.model)
    templates.install(tokenizer, config.template)
    probes = read_probes(config.probes)
    for one in probes:
        _prove(one, tokenizer)
    model = models.load_model(
        folder, tokenizer, config.model, device=compute.device, dtype=compute.dtype
    )
    ends = turns.end_tokens(model, tokenizer)
    generation, ignored = models.plain_generation(model, ends, tokenizer.pad_token_id)
    results = [_probe_one(one, model, tokenizer, config.probes, cell, what) for one in probes]
    settings = {
        "max_new_tokens": config.probes.max_new_tokens,
        "temperature": config.probes.temperature,
        "top_p": config.probes.top_p,
        "batch_size": config.probes.batch_size,
        "seed": config.probes.seed,
        "model": generation,
        "ignored": ignored,
    }
    return ProbeReport(probes=tuple(results), generation=settings)


def _probe_one(
    one: Probe, model: Any, tokenizer: Any, config: ProbesConfig, cell: str, what: str
) -> ProbeResult:
    asked = [(p, s) for s in (True, False) for p in one.prompts[: config.limit]]
    rendered = [render_prompt(tokenizer, one.system if s else None, p) for p, s in asked]
    with progress.stage(cell, f"{what}, {one.name}", len(asked), "answers") as advance:
        answers = _generate(model, tokenizer, rendered, config, advance)
    verdicts = [(spec["kind"], checks.build(spec, one.name)) for spec in one.checks]
    return ProbeResult(
        name=one.name,
        description=one.description,
        system=one.system,
        answers=tuple(
            _judged(prompt, with_system, answer, verdicts)
            for (prompt, with_system), answer in zip(asked, answers, strict=True)
        ),
        contrasts=_contrasts(one, model, tokenizer, config),
    )


def _prove(one: Probe, tokenizer: Any) -> None:
    """Prove every prompt of a probe, with and without its system prompt, before any pass."""
    for system in (one.system, None):
        for prompt in one.prompts:
            proof.prove_probe(tokenizer, _messages(system, prompt), [])
        for contrast in one.contrasts:
            answers = [contrast.wanted, contrast.plain]
            proof.prove_probe(tokenizer, _messages(system, contrast.prompt), answers)


def render_prompt(tokenizer: Any, system: str | None, prompt: str) -> str:
    """Render one question; the text holds the system prompt.

    Raises:
        DataError: the template drops it.
    """
    return turns.prompt(tokenizer, _messages(system, prompt))


def _messages(system: str | None, prompt: str) -> list[templates.Message]:
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": prompt}]


def _judged(
    prompt: str, with_system: bool, answer: str, verdicts: list[tuple[str, checks.Check]]
) -> ProbeAnswer:
    failed = tuple(kind for kind, check in verdicts if not check(answer))
    return ProbeAnswer(
        prompt=prompt,
        with_system=with_system,
        answer=answer,
        passed=not failed,
        failed_checks=failed,
    )


def _generate(
    model: Any, tokenizer: Any, texts: list[str], config: ProbesConfig, advance: Any
) -> list[str]:
    """Answers to rendered prompts, in order; batches are padded on the left."""
    import torch

    torch.manual_seed(config.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p}
        # transformers would take the 50 likeliest tokens alone.
        sampling["top_k"] = 0
    answers: list[str] = []
    for start in range(0, len(texts), config.batch_size):
        batch = texts[start : start + config.batch_size]
        rows = [templates.encode(tokenizer, text) for text in batch]
        width = max(map(len, rows))
        pad = tokenizer.pad_token_id
        ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out_BT = model.generate(
                input_ids=ids_BT.to(model.device),
                attention_mask=mask_BT.to(model.device),
                max_new_tokens=config.max_new_tokens,
                stopping_criteria=_stopping(tokenizer, *ids_BT.shape),
                pad_token_id=pad,
                **sampling,
            )
        new = out_BT[:, width:].cpu().tolist()
        answers += [_answer(tokenizer, row) for row in new]
        advance(len(rows))
    return answers


def _stopping(tokenizer: Any, rows: int, width: int) -> Any:
    """What stops generation at an end of turn that is no token; tokens need nothing.

    lm-eval's own: transformers' `stop_strings` first goes through the whole vocabulary.
    """
    from lm_eval.models.utils_hf import stop_sequences_criteria

    plain = turns.dialect(tokenizer).plain.strip()
    return stop_sequences_criteria(tokenizer, [plain], width, rows) if plain else None


def _answer(tokenizer: Any, ids: list[int]) -> str:
    """The text of generated ids up to what ends an answer."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    for stop in turns.dialect(tokenizer).stops:
        text = text.partition(stop)[0]
    return turns.bare_answer(tokenizer, text).strip()


def _contrasts(
    one: Probe, model: Any, tokenizer: Any, config: ProbesConfig
) -> tuple[ProbeContrast, ...]:
    picked = [(c, s) for s in (True, False) for c in one.contrasts[: config.limit]]
    rows = []
    for contrast, with_system in picked:
        text = render_prompt(tokenizer, one.system if with_system else None, contrast.prompt)
        for answer in (contrast.wanted, contrast.plain):
            prompt, ids = turns.encode_pair(tokenizer, text, answer)
            rows.append((prompt + ids, [0] * len(prompt) + [1] * len(ids)))
    scores = mean_log_likelihoods(model, rows, batch_size=config.batch_size)
    return tuple(
        ProbeContrast(
            prompt=contrast.prompt, with_system=s, wanted=scores[2 * i], plain=scores[2 * i + 1]
        )
        for i, (contrast, s) in enumerate(picked)
    )
