"""Records → `README.md`, plots and, of many cells, a table: what a person picks a model from.

Pure and deterministic: the same records give the same bytes, whenever and wherever they are
rendered, and whether or not a stage was taken from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.errors import redact
from ftsuite.jsonfile import write_text
from ftsuite.reporting import allcells, documents, findings, gates, plots, probes, stories, tables
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.conditions import conditions
from ftsuite.reporting.environment import environment
from ftsuite.reporting.notices import notices
from ftsuite.reporting.study import build, load_study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.records import RunRecord, StudyManifest
    from ftsuite.reporting.study import Study

__all__ = ["load_study", "render"]


def render(manifest: StudyManifest, records: Sequence[RunRecord], out: Path) -> Path:
    """Write `README.md`, its plots and, of many cells, a table of all into the folder `out`.

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
    if allcells.is_wanted(study):
        write_text(out / tables.ALL_CELLS, redact(allcells.text(study)))
    else:
        (out / tables.ALL_CELLS).unlink(missing_ok=True)
    pictures = {name: figure.markdown for name, figure in figures.items()}
    write_text(out / "README.md", redact(_text(study, pictures)))
    return out / "README.md"


def _text(study: Study, pictures: dict[str, str]) -> str:
    sections = [
        ("", _opening(study)),
        ("Recommendation", findings.recommendation(study)),
        ("Before you read on", "\n".join(f"- {note}" for note in notices(study))),
        ("Conditions", conditions(study)),
        ("Ranking", _ranking(study)),
        ("Score over the sweep", pictures.get("sweep", "")),
        ("Quality against cost", _cost(study, pictures.get("cost", ""))),
        ("Base against tuned, metric by metric", _metrics(study)),
        ("Regressions and gates", gates.section(study)),
        ("Documents", documents.section(study)),
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
    cells, done = len(study.manifest.cells), len(study.cells) + len(study.unscored)
    said = [f"{done:,} of {fmt.plural(cells, 'cell')} finished."]
    if study.rank_split not in ("", "validation"):
        said.insert(
            0,
            f"**The cells are ranked on the {study.rank_split} split, not on validation:** the "
            "choice fits these documents, and its score on them is too optimistic.",
        )
    models = dict.fromkeys(
        f"{fmt.code(record.model.id)}{_note(record.model.note)}"
        for record in study.records
        if record.model
    )
    if models:
        noun = "Base model" if len(models) == 1 else "Base models"
        said.append(f"{noun}: {fmt.enumerate_words(list(models))}.")
    return f"# {fmt.escape(study.manifest.study)}\n\n{' '.join(said)}"


def _note(note: str) -> str:
    return f" ({fmt.escape(note)})" if note else ""


def _ranking(study: Study) -> str:
    if not study.cells:
        return ""
    lines = ["Not ranked, in the order of the study."]
    notes = []
    if study.ranking:
        what = f"the {study.rank_split} metric" if study.rank_split else "the metric"
        lines = [f"Ranked by {what} {fmt.code(study.rank_by)}."]
        notes.append(f"≈ within noise of the best on {study.rank_words}.")
        if len(study.cells) > 1:
            notes.append(
                f"The best score on {study.rank_words} is likely a little too high, as luck helps "
                "a cell to come first; the more cells, the more."
            )
    if study.headline and study.headline in study.test_metrics:
        split = study.split_of(study.headline)
        where = f", of the {split} split" if split else ""
        lines.append(
            f"Base, tuned and difference are of the headline {fmt.code(study.headline)}{where}."
        )
    elif study.headline and study.headline == study.rank_by:
        lines.append("Base, tuned and difference are of the same metric, which is not tested.")
    notes.append("Brackets: 95 % intervals.")
    if study.adjusted:
        notes.append(_correction(study))
    return f"{' '.join(lines)}\n\n{tables.ranked(study)}\n\n<sub>{' '.join(notes)}</sub>"


def _correction(study: Study) -> str:
    """How p-values were adjusted, and what the verdicts mean."""
    but = " but the one that ranks" if study.rank_by else ""
    return (
        f"Holm p: adjusted together over {fmt.plural(study.tests, 'comparison')} with the base "
        f"(every metric{but}, every cell with scores); verdicts at {study.alpha:g}. The intervals "
        "are not adjusted, so one may leave out 0 where the verdict is “within noise”. “Within "
        "noise” means that no difference was shown, not that there is none."
    )


def _cost(study: Study, picture: str) -> str:
    if not study.cells:
        return ""
    note = (
        "<sub>Times are of one run each. They include loading, and the first cell of a process "
        "also its start, so small differences in time mean nothing.</sub>"
    )
    parts = [findings.quality_for_cost(study), picture, tables.costs(study, study.cells), note]
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
    command = fmt.block(study.manifest.command, "sh")
    return f"{command}\n\nResults that are in the store are not computed again."
