"""A probe with several system prompts, as a person sees it: report, `ftsuite show`, trackers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from synthetic import make_record, make_study, write_study

from ftsuite import jsonfile
from ftsuite.cli import main
from ftsuite.records import ProbeAnswer, ProbeReport, ProbeResult, ProbeSystem, RunRecord
from ftsuite.reporting.probes import by_system, passed
from ftsuite.reporting.report import render
from ftsuite.tracking import tables, values

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ("Who are you?", "What is the capital of France?")
TEXTS = {"pirate": "You are a pirate.", "polite": "Be polite | and brief."}


def answers(system: str, passes: str, *, with_system: bool = True) -> list[ProbeAnswer]:
    """One answer a prompt; `passes` has a y or n for each."""
    return [
        ProbeAnswer(
            prompt=prompt,
            with_system=with_system,
            answer=f"{system or 'plain'} answer {place}",
            passed=letter == "y",
            failed_checks=() if letter == "y" else ("words",),
            system=system,
        )
        for place, (prompt, letter) in enumerate(zip(PROMPTS, passes, strict=True))
    ]


def tones(pirate: str, polite: str, without: dict[str, str]) -> ProbeReport:
    """A report of one probe; `without` has the baseline's passes by the checks that judged."""
    given = [*answers("pirate", pirate), *answers("polite", polite)]
    for name, passes in without.items():
        given += answers(name, passes, with_system=False)
    result = ProbeResult(
        name="tones",
        description="Two ways to speak",
        system="",
        systems=tuple(ProbeSystem(name=name, text=text) for name, text in TEXTS.items()),
        answers=tuple(given),
        contrasts=(),
    )
    return ProbeReport(probes=(result,), generation={})


def record(label: str, tuned: ProbeReport) -> RunRecord:
    base = tones("yy", "yn", {"pirate": "nn", "polite": "ny"})
    return dataclasses.replace(make_record(label), base_probes=base, tuned_probes=tuned)


@pytest.fixture
def cells() -> list[RunRecord]:
    return [
        record("lora.r=4", tones("nn", "yy", {"pirate": "nn", "polite": "yy"})),
        record("lora.r=8", tones("yn", "yy", {"pirate": "nn", "polite": "yy"})),
    ]


def report_of(folder: Path, cells: list[RunRecord]) -> str:
    with mock.patch("ftsuite.reporting.report.plots.draw", return_value={}):
        return render(make_study(*cells), cells, folder).read_text(encoding="utf-8")


def rows_of(text: str, header: str) -> list[list[str]]:
    """The cells of the Markdown table whose header begins so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} "))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [table[0], *table[2:]]


def test_the_report_has_a_table_of_prompts_by_models(
    cells: list[RunRecord], tmp_path: Path
) -> None:
    text = report_of(tmp_path, cells)
    assert "- **pirate**: *You are a pirate.*\n- **polite**: *Be polite &#124; and brief.*" in text
    header, *rows = rows_of(text, "system prompt")
    assert header[:2] == ["system prompt", "base (`smollm2_135m`)"]
    tuned = {name: place for place, name in enumerate(header)}
    places = [1, tuned["`lora.r=4`"], tuned["`lora.r=8`"]]
    assert [[row[0], *(row[place] for place in places)] for row in rows] == [
        ["pirate", "2 of 2", "0 of 2", "1 of 2"],
        ["polite", "1 of 2", "2 of 2", "2 of 2"],
        ["*no system prompt, by the checks of pirate*", "0 of 2", "0 of 2", "0 of 2"],
        ["*no system prompt, by the checks of polite*", "1 of 2", "2 of 2", "2 of 2"],
    ]
    # Today's table stays, with the sums.
    _, base, *_ = rows_of(text, "model")
    assert base[:3] == ["base (`smollm2_135m`)", "3 of 4", "1 of 4"]
    assert "the answer counts once for each set of checks" in text
    assert "with its 2 system prompts: " in text


def test_the_report_shows_the_answers_to_each_system_prompt(
    cells: list[RunRecord], tmp_path: Path
) -> None:
    text = report_of(tmp_path, cells).partition("Answers with each system prompt, base and `")[2]
    header, *rows = rows_of(text, "system prompt")
    assert header == ["system prompt", "prompt", "base", "tuned"]
    assert [row[:2] for row in rows] == [[name, p] for name in TEXTS for p in PROMPTS]
    assert rows[3][2] == "✗ polite answer 1 *(words)*"
    assert rows[3][3] == "✓ polite answer 1"


def test_checks_for_all_give_one_row_without_a_system_prompt() -> None:
    (probe,) = tones("yy", "yn", {"": "ny"}).probes
    assert by_system([probe, None]) == [
        ("pirate", "pirate", ["2 of 2", "–"]),
        ("polite", "polite", ["1 of 2", "–"]),
        ("", "", ["1 of 2", "–"]),
    ]
    assert passed(probe, with_system=False) == "1 of 2"


def test_the_report_of_a_study_without_tasks_has_its_probes(
    cells: list[RunRecord], tmp_path: Path
) -> None:
    bare = [dataclasses.replace(c, base=None, tuned=None, comparisons=(), gates=()) for c in cells]
    text = report_of(tmp_path, bare)
    assert [row[0] for row in rows_of(text, "system prompt")][1:3] == ["pirate", "polite"]
    assert "Answers with each system prompt, base and `lora.r=4`" in text


def test_show_has_the_table_too(
    cells: list[RunRecord],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    write_study(tmp_path / "studies" / "lora_rank", make_study(*cells), cells)
    assert main(["show", "lora.r=4", "--store", str(tmp_path)]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = said.index("probe tones: answers that pass, by system prompt")
    assert said[start + 1] == "system prompt base tuned"
    assert said[start + 3 : start + 7] == [
        "pirate 2 of 2 0 of 2",
        "polite 1 of 2 2 of 2",
        "(none, by the checks of pirate) 0 of 2 0 of 2",
        "(none, by the checks of polite) 1 of 2 2 of 2",
    ]
    assert "tones 3 of 4 2 of 4 1 of 4 2 of 4" in said


def test_trackers_get_rates_by_system_prompt_with_their_counts(cells: list[RunRecord]) -> None:
    named = values.numbers(cells[0], {})
    assert named["probe/tones/pirate/base/with_system"] == 1
    assert named["probe/tones/pirate/base/with_system/answers"] == 2
    assert named["probe/tones/polite/base/with_system"] == 0.5
    assert named["probe/tones/polite/tuned/without_system"] == 1
    assert named["probe/tones/tuned/with_system"] == 0.5
    assert named["probe/tones/tuned/with_system/answers"] == 4
    table = tables.probes_table(cells[0])
    # A row a prompt, system prompt and set of checks.
    assert len(table.rows) == len(set(table.rows)) == 8
    at = table.columns.index
    row = next(r for r in table.rows if r[at("system")] == "polite" and r[at("with_system")])
    assert row[at("base")] == row[at("tuned")] == "polite answer 0"


def test_records_of_before_load_and_render_the_same(cells: list[RunRecord], tmp_path: Path) -> None:
    """A record without the new fields; the committed studies are the real ones."""
    plain = jsonfile.to_json(make_record())
    for side in ("base_probes", "tuned_probes"):
        for probe in plain[side]["probes"]:
            assert probe.pop("systems") == []
            for part in (*probe["answers"], *probe["contrasts"]):
                assert part.pop("system") == ""
    assert jsonfile.from_json(RunRecord, plain, where="old.json") == make_record()
    again = jsonfile.from_json(RunRecord, jsonfile.to_json(cells[0]), where="new.json")
    assert again == cells[0]
