"""Records → `README.md` and plots: what a person picks a model from.

Pure and deterministic: the same records give the same bytes, whenever and wherever they are
rendered, and whether or not a stage was taken from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.errors import redact
from ftsuite.jsonfile import write_text
from ftsuite.reporting import findings, plots, probes, stories, tables
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.environment import environment
from ftsuite.reporting.notices import notices, selected_on_test
from ftsuite.reporting.study import build, load_study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.records import RunRecord, StudyManifest
    from ftsuite.reporting.study import Study

__all__ = ["load_study", "render"]


def render(manifest: StudyManifest, records: Sequence[RunRecord], out: Path) -> Path:
    """Write `README.md` and its plots into the folder `out`.

    Args:
        manifest: The study's cells, in order; records of other cells are left out.
        records: The records there are; a cell without one is listed as not run.
        out: Folder, made if need be; plots of an earlier rendering are replaced or removed.

    Returns:
        The path of the README.
    """
    study = build(manifest, records)
    figures = plots.draw(study)
    kept = {file for figure in figures.values() for file in figure.files}
    for old in sorted(out.glob("*-light.svg")) + sorted(out.glob("*-dark.svg")):
        if old.name not in kept:
            old.unlink()
    for figure in figures.values():
        for name, text in figure.files.items():
            write_text(out / name, redact(text))
    pictures = {name: figure.markdown for name, figure in figures.items()}
    write_text(out / "README.md", redact(_text(study, pictures)))
    return out / "README.md"


def _text(study: Study, pictures: dict[str, str]) -> str:
    sections = [
        ("", _opening(study)),
        ("Recommendation", findings.recommendation(study)),
        ("Before you read on", "\n".join(f"- {note}" for note in notices(study))),
        ("Ranking", _ranking(study)),
        ("Score over the sweep", pictures.get("sweep", "")),
        ("Quality against cost", _cost(study, pictures.get("cost", ""))),
        ("Base against tuned, metric by metric", _metrics(study)),
        ("Regressions and gates", _regressions(study)),
        ("Probes", probes.section(study)),
        ("Training", pictures.get("training", "")),
        ("Cells that did not finish", _unfinished(study)),
        ("Time and memory", _stages(study)),
        ("Provenance", environment(study)),
        ("Reproduce", _reproduce(study)),
    ]
    return (
        "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections if body)
        + "\n"
    )


def _opening(study: Study) -> str:
    cells = len(study.manifest.cells)
    finished = f"{len(study.cells):,} of {fmt.plural(cells, 'cell')} finished"
    models = dict.fromkeys(
        f"{fmt.code(record.model.id)}{_note(record.model.note)}"
        for record in study.records
        if record.model
    )
    base = f" Base model: {fmt.enumerate_words(list(models))}." if models else ""
    first = "\n\n".join([*selected_on_test(study), f"{finished}.{base}"])
    return f"# {fmt.escape(study.manifest.study)}\n\n{first}"


def _note(note: str) -> str:
    return f" ({fmt.escape(note)})" if note else ""


def _ranking(study: Study) -> str:
    if not study.cells:
        return ""
    ranked_by = f"the validation metric {fmt.code(study.rank_by)}" if study.rank_by else "nothing"
    lines = [
        f"Ranked by {ranked_by}." if study.ranking else "Not ranked, in the order of the study."
    ]
    if study.headline:
        lines.append(
            f"Base, tuned and difference are of the test headline {fmt.code(study.headline)}."
        )
    notes = [
        f"Brackets: 95 % intervals. Holm p: adjusted together over all {len(study.adjusted):,} "
        "test-side comparisons (every metric"
        f"{' but the ranking one' if study.rank_by else ''}, over all complete cells); verdicts at "
        f"{study.alpha:g}. Intervals are not adjusted, so one may leave out 0 where the verdict is "
        "“within noise”. "
        "“Within noise” is no evidence of a difference, which is not evidence of none.",
    ]
    if study.ranking:
        notes.insert(0, "≈ within noise of the best on validation.")
    return f"{' '.join(lines)}\n\n{tables.ranked(study)}\n\n<sub>{' '.join(notes)}</sub>"


def _cost(study: Study, picture: str) -> str:
    if not study.cells:
        return ""
    parts = [findings.quality_for_cost(study), picture, tables.costs(study, study.cells)]
    return "\n\n".join(part for part in parts if part)


def _metrics(study: Study) -> str:
    parts = []
    for name in study.test_metrics:
        role = " (headline)" if name == study.headline else ""
        role += " (watched)" if name in study.watch else ""
        parts += [
            f"### {fmt.code(name)}{role}",
            stories.metric_notes(study, name),
            stories.metric_story(study, name),
            tables.metric(study, name),
        ]
    return "\n\n".join(part for part in parts if part)


def _regressions(study: Study) -> str:
    if not study.cells:
        return ""
    parts = [findings.losses(study), tables.regressions(study)]
    return "\n\n".join(part for part in parts if part)


def _unfinished(study: Study) -> str:
    return tables.unfinished(study) if study.unfinished or study.missing else ""


def _stages(study: Study) -> str:
    if not any(record.stages for record in study.records):
        return ""
    note = (
        "Seconds are those of the computation when it was made. A result that several cells share "
        "is counted once: *computed* is how often it was made, *used by* how many cells read it."
    )
    return f"{tables.stages(study)}\n\n<sub>{note}</sub>"


def _reproduce(study: Study) -> str:
    return (
        f"{fmt.block(study.manifest.command, 'sh')}\n\nWhat is in the store is not computed again."
    )
