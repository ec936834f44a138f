"""The report's probe section: pass rates, contrasts, and answers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import formats as fmt
from ftsuite.reporting.tables import MOST_CELLS, beyond

if TYPE_CHECKING:
    from ftsuite.records import ProbeAnswer, ProbeReport, ProbeResult
    from ftsuite.reporting.study import Study

LONGEST_ANSWER = 300
"""Characters of an answer that are shown."""
FEWEST_TO_TEST = 6
"""Prompts that a paired test needs to give p < 0.05: 2 / 2**6 = 0.03."""


def section(study: Study) -> str:
    """All probes of the study; empty if there are none."""
    names = {
        probe.name: probe
        for cell in study.cells
        for report in (cell.base_probes, cell.tuned_probes)
        if report
        for probe in report.probes
    }
    return "\n\n".join(_probe(study, probe) for probe in names.values())


def find(report: ProbeReport | None, name: str) -> ProbeResult | None:
    """Return the probe `name` of a report, None if it is not there."""
    return next((p for p in report.probes if p.name == name), None) if report else None


def passed(probe: ProbeResult, *, with_system: bool) -> str:
    """`2 of 3`."""
    picked = [answer.passed for answer in probe.answers if answer.with_system == with_system]
    return f"{sum(picked)} of {len(picked)}" if picked else fmt.NONE


def contrast(probe: ProbeResult, *, with_system: bool) -> str:
    """Mean of wanted − plain log-likelihood, nats a token."""
    picked = [c.wanted - c.plain for c in probe.contrasts if c.with_system == with_system]
    return fmt.change(sum(picked) / len(picked)) if picked else fmt.NONE


def _probe(study: Study, probe: ProbeResult) -> str:
    parts = [f"### Probe: {fmt.escape(probe.name)}", fmt.escape(probe.description)]
    if probe.system:
        parts.append(f"System prompt: *{fmt.escape(probe.system, limit=LONGEST_ANSWER)}*")
    parts.append(_rates(study, probe.name))
    answers = _answers(study, probe.name)
    return "\n\n".join([part for part in [*parts, answers] if part])


def _rates(study: Study, name: str) -> str:
    rows: list[list[str]] = []
    seen: set[ProbeResult] = set()
    for cell in study.cells[:MOST_CELLS]:
        base, tuned = find(cell.base_probes, name), find(cell.tuned_probes, name)
        if base and base not in seen:
            seen.add(base)
            model = cell.config.get("model", {}).get("name", "")
            rows.insert(len(seen) - 1, _rate_row(f"base ({fmt.code(str(model))})", base))
        if tuned:
            rows.append(_rate_row(fmt.code(cell.label), tuned))
    headers = ["model", ">pass with system", ">pass without"]
    headers += [">contrast with system", ">contrast without"]
    left_out = beyond(len(study.cells), MOST_CELLS)
    return f"{fmt.table(headers, rows)}{left_out}\n\n<sub>{_note(seen)}</sub>"


def _note(bases: set[ProbeResult]) -> str:
    """How to read the counts and contrasts of a probe."""
    said = ["No test is made of these counts."]
    prompts = max((_prompts(probe) for probe in bases), default=0)
    if 0 < prompts < FEWEST_TO_TEST:
        said = [
            f"With {fmt.plural(prompts, 'prompt')} no change in these counts could be significant: "
            "read the answers."
        ]
    if any(probe.contrasts for probe in bases):
        said.append(
            "Contrast: mean log-likelihood a token of the wanted answer minus that of the plain "
            "one, in nats; above 0 the model prefers the wanted answer."
        )
    return " ".join(said)


def _prompts(probe: ProbeResult) -> int:
    return len({answer.prompt for answer in probe.answers})


def _rate_row(label: str, probe: ProbeResult) -> list[str]:
    return [
        label,
        passed(probe, with_system=True),
        passed(probe, with_system=False),
        contrast(probe, with_system=True),
        contrast(probe, with_system=False),
    ]


def _answers(study: Study, name: str) -> str:
    cell = study.shown
    base = find(cell.base_probes, name) if cell else None
    tuned = find(cell.tuned_probes, name) if cell else None
    if cell is None or base is None or tuned is None:
        return ""
    said = {answer.prompt: answer for answer in tuned.answers if answer.with_system}
    rows = [
        [
            fmt.escape(answer.prompt, limit=LONGEST_ANSWER),
            _answer(answer),
            _answer(said[answer.prompt]),
        ]
        for answer in base.answers
        if answer.with_system and answer.prompt in said
    ]
    if not rows:
        return ""
    title = f"Answers with the system prompt, base and {fmt.code(cell.label)}:"
    return f"{title}\n\n" + fmt.table(["prompt", "base", "tuned"], rows)


def _answer(answer: ProbeAnswer) -> str:
    text = fmt.escape(answer.answer, limit=LONGEST_ANSWER) or "*(empty answer)*"
    if answer.passed:
        return f"✓ {text}"
    failed = fmt.escape("; ".join(answer.failed_checks), limit=120)
    return f"✗ {text}" + (f" *({failed})*" if failed else "")
