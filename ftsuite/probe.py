"""The probe stage: does a model still follow a system prompt, and would it without one?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from ftsuite import checks, models, progress, proof, templates, turns
from ftsuite.errors import ConfigError
from ftsuite.loglikelihood import mean_log_likelihoods
from ftsuite.records import ProbeAnswer, ProbeContrast, ProbeReport, ProbeResult
from ftsuite.resources import evals_dir
from ftsuite.store import file_digest

if TYPE_CHECKING:
    from ftsuite.config import ProbesConfig, RunConfig
    from ftsuite.devices import Compute

VERSION = 2
STRICT = {"extra": "forbid"}
"""A misspelt key of a probe file is an error, not a key that is never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A wanted and a plain answer to the same prompt."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    prompt: str
    wanted: str
    plain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe file: a system prompt, questions, checks and contrasts."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    system: str
    prompts: list[str]
    description: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)


def read_probes(config: ProbesConfig) -> list[Probe]:
    """Read and check the configured probe files.

    Raises:
        ConfigError: a file is missing, malformed, or has an unknown check.
    """
    from pydantic import TypeAdapter, ValidationError

    found: list[Probe] = []
    for name in config.files:
        path = probe_file(name)
        try:
            probe = TypeAdapter(Probe).validate_python(yaml.safe_load(path.read_text("utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            reason = f"{path.name} is not a probe: {error}"
            raise ConfigError("probes.files", name, reason) from error
        if not probe.prompts:
            raise ConfigError("probes.files", name, "the probe has no prompts")
        for spec in probe.checks:
            checks.build(spec, f"probe {probe.name}")
        found.append(probe)
    return found


def probe_file(name: str) -> Path:
    """Return the YAML file of a probe: a path, or a name below evals/probes.

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(name), evals_dir() / "probes" / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in (evals_dir() / "probes").glob("*.yaml")))
    raise ConfigError("probes.files", name, f"no such probe; known are {known}, or give a path")


def identity(config: ProbesConfig) -> dict[str, str]:
    """What the answers depend on besides the settings: the probe files' contents."""
    return {name: file_digest(probe_file(name)) for name in config.files}


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
                stop_strings=list(turns.dialect(tokenizer).stops),
                tokenizer=tokenizer,
                pad_token_id=pad,
                **sampling,
            )
        new = out_BT[:, width:].cpu().tolist()
        answers += [_answer(tokenizer, row) for row in new]
        advance(len(rows))
    return answers


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
