"""The report's probe section: pass rates, contrasts, and answers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.reporting import formats as fmt
from ftsuite.reporting.tables import MOST_CELLS, beyond, first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import ProbeAnswer, ProbeReport, ProbeResult, RunRecord
    from ftsuite.reporting.study import Study

LONGEST_ANSWER = 300
"""Characters of an answer that are shown."""
FEWEST_TO_TEST = 6
"""Prompts that a paired test needs to give p < 0.05: 2 / 2**6 = 0.03."""


def section(study: Study) -> str:
    """All probes of the study; empty if there are none."""
    names = {
        probe.name: probe
        for cell in _cells(study)
        for report in (cell.base_probes, cell.tuned_probes)
        if report
        for probe in report.probes
    }
    return "\n\n".join(_probe(study, probe) for probe in names.values())


def _cells(study: Study) -> Sequence[RunRecord]:
    """The scored cells; those without scores where none has any: a probe needs no task."""
    return study.cells or study.unscored


def find(report: ProbeReport | None, name: str) -> ProbeResult | None:
    """Return the probe `name` of a report, None if it is not there."""
    return next((p for p in report.probes if p.name == name), None) if report else None


def passed(probe: ProbeResult | None, *, with_system: bool, system: str | None = None) -> str:
    """`2 of 3`; with a name, of the answers that belong to that system prompt alone."""
    picked = probe.picked(with_system=with_system, system=system) if probe else ()
    return f"{sum(a.passed for a in picked)} of {len(picked)}" if picked else fmt.NONE


def with_words(probe: ProbeResult) -> str:
    """`with its system prompt`, or `with its 3 system prompts`."""
    few = len(probe.systems) < 2
    return "with its system prompt" if few else f"with its {len(probe.systems)} system prompts"


def by_system(probes: Sequence[ProbeResult | None]) -> list[tuple[str, str, list[str]]]:
    """How many answers pass, by system prompt and model, for a probe with several.

    Args:
        probes: one probe's result for each model; None for a model without one.

    Returns:
        A row for each system prompt, then one for each set of checks that judged the answers
        without one: the system prompt's name ('' for none), the name of that whose checks judged
        ('' for those that hold for all), and `2 of 3` for each model.
    """
    known = [probe for probe in probes if probe]
    names = dict.fromkeys(system.name for probe in known for system in probe.systems)
    judges = dict.fromkeys(
        answer.system for probe in known for answer in probe.picked(with_system=False)
    )
    rows = [
        (name, name, [passed(p, with_system=True, system=name) for p in probes]) for name in names
    ]
    rows += [
        ("", name, [passed(p, with_system=False, system=name) for p in probes]) for name in judges
    ]
    return rows


def contrast(probe: ProbeResult, *, with_system: bool) -> str:
    """Mean of wanted − plain log-likelihood, nats a token."""
    picked = [c.wanted - c.plain for c in probe.contrasts if c.with_system == with_system]
    return fmt.change(sum(picked) / len(picked)) if picked else fmt.NONE


def _probe(study: Study, probe: ProbeResult) -> str:
    parts = [f"### Probe: {fmt.escape(probe.name)}", fmt.escape(probe.description)]
    if probe.system:
        parts.append(f"System prompt: *{fmt.escape(probe.system, limit=LONGEST_ANSWER)}*")
    if probe.systems:
        parts += [_systems(probe), _by_system(study, probe.name)]
    parts.append(_rates(study, probe.name))
    answers = _answers(study, probe.name)
    return "\n\n".join([part for part in [*parts, answers] if part])


def _systems(probe: ProbeResult) -> str:
    said = [
        f"- **{fmt.escape(system.name)}**: *{fmt.escape(system.text, limit=LONGEST_ANSWER)}*"
        for system in probe.systems
    ]
    return "\n".join(["System prompts:\n", *said])


def _by_system(study: Study, name: str) -> str:
    """The table of system prompts by models."""
    bases, tuned = _models(study, name)
    models = [*bases, *tuned]
    rows = []
    for system, judge, counts in by_system([probe for _, probe in models]):
        # In italics, as a system prompt may have any name.
        by = f", by the checks of {fmt.escape(judge)}" if judge else ""
        rows.append([fmt.escape(system) or f"*no system prompt{by}*", *counts])
    drawn = fmt.table(["system prompt", *(f">{label}" for label, _ in models)], rows)
    left_out = _left_out(study)
    return f"Answers that pass, of those given:\n\n{drawn}{left_out}"


def _models(
    study: Study, name: str
) -> tuple[list[tuple[str, ProbeResult]], list[tuple[str, ProbeResult]]]:
    """A probe's results with the models' labels: distinct bases, and the tuned of each cell."""
    bases: dict[ProbeResult, str] = {}
    tuned = []
    for cell in first(study, _cells(study), MOST_CELLS):
        before, after = find(cell.base_probes, name), find(cell.tuned_probes, name)
        if before and before not in bases:
            model = cell.config.get("model", {}).get("name", "")
            bases[before] = f"base ({fmt.code(str(model))})"
        if after:
            tuned.append((fmt.code(cell.label), after))
    return [(label, probe) for probe, label in bases.items()], tuned


def _left_out(study: Study) -> str:
    cells = _cells(study)
    shown = len(first(study, cells, MOST_CELLS))
    return beyond(len(cells), shown, "the study's records")


def _rates(study: Study, name: str) -> str:
    bases, tuned = _models(study, name)
    rows = [_rate_row(label, probe) for label, probe in [*bases, *tuned]]
    headers = ["model", ">pass with system", ">pass without"]
    headers += [">contrast with system", ">contrast without"]
    left_out = _left_out(study)
    note = _note([probe for _, probe in bases])
    return f"{fmt.table(headers, rows)}{left_out}\n\n<sub>{note}</sub>"


def _note(bases: Sequence[ProbeResult]) -> str:
    """How to read the counts and contrasts of a probe."""
    said = ["No test is made of these counts."]
    prompts = max((_prompts(probe) for probe in bases), default=0)
    if 0 < prompts < FEWEST_TO_TEST:
        said = [
            f"With {fmt.plural(prompts, 'prompt')} no change in these counts could be significant: "
            "read the answers."
        ]
    if any(probe.systems for probe in bases):
        said.append("With system: over all system prompts.")
    if any(answer.system for probe in bases for answer in probe.picked(with_system=False)):
        said.append(
            "Without: a prompt is answered once, and the answer counts once for each set of checks."
        )
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
    cell = next(iter([study.shown] if study.shown else _cells(study)), None)
    base = find(cell.base_probes, name) if cell else None
    tuned = find(cell.tuned_probes, name) if cell else None
    if cell is None or base is None or tuned is None:
        return ""
    said = {(a.system, a.prompt): a for a in tuned.picked(with_system=True)}
    rows = [
        [
            fmt.escape(answer.system),
            fmt.escape(answer.prompt, limit=LONGEST_ANSWER),
            _answer(answer),
            _answer(said[answer.system, answer.prompt]),
        ]
        for answer in base.picked(with_system=True)
        if (answer.system, answer.prompt) in said
    ]
    if not rows:
        return ""
    headers = ["system prompt", "prompt", "base", "tuned"]
    if not base.systems:
        headers, rows = headers[1:], [row[1:] for row in rows]
    which = "each system prompt" if base.systems else "the system prompt"
    title = f"Answers with {which}, base and {fmt.code(cell.label)}:"
    return f"{title}\n\n" + fmt.table(headers, rows)


def _answer(answer: ProbeAnswer) -> str:
    text = fmt.escape(answer.answer, limit=LONGEST_ANSWER) or "*(empty answer)*"
    if answer.passed:
        return f"✓ {text}"
    failed = fmt.escape("; ".join(answer.failed_checks), limit=120)
    return f"✗ {text}" + (f" *({failed})*" if failed else "")
