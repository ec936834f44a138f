"""The probe stage: does a model still follow its system prompts, and would it without them?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.models import loading, templates, turns, warm
from ftsuite.models.loglikelihood import mean_log_likelihoods
from ftsuite.records import ProbeAnswer, ProbeContrast, ProbeReport, ProbeResult, ProbeSystem
from ftsuite.scoring import checks, proof
from ftsuite.scoring.probefiles import read_probes
from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.config import ProbesConfig
    from ftsuite.events import Events
    from ftsuite.scoring.probefiles import Contrast
    from ftsuite.scoring.probefiles import Probe as ProbeFile
    from ftsuite.stages import Probe
    from ftsuite.store.stage import Folders

    Verdicts = Sequence[tuple[str, checks.Check]]
    """Checks with their kinds."""


def probe(stage: Probe, folders: Folders, _: Path, events: Events) -> ProbeReport:
    """Ask a model a probe's questions, with each system prompt and without.

    Raises:
        DataError: the template drops a system prompt; nothing would be measured.
        StageError: other tokens would be scored than training trains.
    """
    config = stage.probes
    asked = read_probes(config)
    if [file_digest(Path(name)) for name in config.files] != [stage.sha256]:
        raise DataError(
            f"{config.files[0]}: the probe has changed since the study was planned; run the same "
            "command again"
        )
    tokenizer = loading.load_tokenizer(warm.locate(stage.model, folders), stage.model.settings)
    templates.install(tokenizer, stage.model.template)
    for one in asked:
        _prove(one, tokenizer)
    with warm.model(stage.model, folders, stage.target) as (model, tokenizer):
        ends = turns.end_tokens(model, tokenizer)
        generation, ignored = loading.plain_generation(model, ends, tokenizer.pad_token_id)
        results = [_probe_one(one, model, tokenizer, config, events) for one in asked]
    settings = {
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "model": generation,
        "ignored": ignored,
    }
    return ProbeReport(probes=tuple(results), generation=settings)


def _probe_one(
    one: ProbeFile, model: Any, tokenizer: Any, config: ProbesConfig, events: Events
) -> ProbeResult:
    prompts = one.prompts[: config.limit]
    texts = [*(system.text for system in one.systems), None]
    rendered = [render_prompt(tokenizer, text, prompt) for text in texts for prompt in prompts]
    with events.progress("answers", len(rendered), "answers") as advance:
        said = _generate(model, tokenizer, rendered, config, advance)
    *with_system, without = [
        list(zip(prompts, said[start : start + len(prompts)], strict=True))
        for start in range(0, len(said), len(prompts))
    ]
    shared = _verdicts(one.checks, one.name)
    own = {system.name: _verdicts(system.checks, one.name) for system in one.systems}
    answers = [
        _judged(prompt, answer, [*shared, *own[system.name]], system=system.name, with_system=True)
        for system, given in zip(one.systems, with_system, strict=True)
        for prompt, answer in given
    ]
    # The baseline: asked once, and judged once by each set of checks.
    answers += [
        _judged(prompt, answer, [*shared, *own.get(name, [])], system=name, with_system=False)
        for name in dict.fromkeys(name if own[name] else "" for name in own)
        for prompt, answer in without
    ]
    several = [system for system in one.systems if system.name]
    return ProbeResult(
        name=one.name,
        description=one.description,
        system="" if several else one.systems[0].text,
        systems=tuple(ProbeSystem(name=system.name, text=system.text) for system in several),
        answers=tuple(answers),
        contrasts=_contrasts(one, model, tokenizer, config),
    )


def _verdicts(specs: Sequence[dict[str, Any]], name: str) -> Verdicts:
    return [(spec["kind"], checks.build(spec, f"probe {name}")) for spec in specs]


def _prove(one: ProbeFile, tokenizer: Any) -> None:
    """Prove every prompt of a probe, with each system prompt and without, before any pass."""
    for text in (*(system.text for system in one.systems), None):
        for prompt in one.prompts:
            proof.prove_probe(tokenizer, _messages(text, prompt), [])
    for _, text, contrast in _asked_contrasts(one, None):
        answers = [contrast.wanted, contrast.plain]
        proof.prove_probe(tokenizer, _messages(text, contrast.prompt), answers)


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
    prompt: str, answer: str, verdicts: Verdicts, *, system: str, with_system: bool
) -> ProbeAnswer:
    """Judge an answer; what is no answer at all fails, whatever the checks are."""
    failed = [fault] if (fault := checks.no_answer(answer)) else []
    failed += [kind for kind, check in verdicts if not check(answer)]
    return ProbeAnswer(
        prompt=prompt,
        with_system=with_system,
        answer=answer,
        passed=not failed,
        failed_checks=tuple(failed),
        system=system,
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


def _asked_contrasts(one: ProbeFile, limit: int | None) -> list[tuple[str, str | None, Contrast]]:
    """The contrasts to score: name and text of the system prompt (None without one), contrast."""
    shared = one.contrasts[:limit]
    asked: list[tuple[str, str | None, Contrast]] = []
    for system in one.systems:
        asked += [(system.name, system.text, c) for c in [*shared, *system.contrasts[:limit]]]
    asked += [("", None, contrast) for contrast in shared]
    asked += [(s.name, None, contrast) for s in one.systems for contrast in s.contrasts[:limit]]
    return asked


def _contrasts(
    one: ProbeFile, model: Any, tokenizer: Any, config: ProbesConfig
) -> tuple[ProbeContrast, ...]:
    asked = _asked_contrasts(one, config.limit)
    rows = []
    for _, system, contrast in asked:
        text = render_prompt(tokenizer, system, contrast.prompt)
        for answer in (contrast.wanted, contrast.plain):
            prompt, ids = turns.encode_pair(tokenizer, text, answer)
            rows.append((prompt + ids, [0] * len(prompt) + [1] * len(ids)))
    scores = mean_log_likelihoods(model, rows, batch_size=config.batch_size)
    return tuple(
        ProbeContrast(
            prompt=contrast.prompt,
            with_system=system is not None,
            wanted=scores[2 * i],
            plain=scores[2 * i + 1],
            system=name,
        )
        for i, (name, system, contrast) in enumerate(asked)
    )
