"""The rendered report: what it says, that it is safe, and that it is the same every time."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from answered import make_answered
from markdown_it import MarkdownIt
from synthetic import (
    ARC,
    BASE_MEANS,
    BITS,
    EXACT,
    HEADLINE,
    RANK_BY,
    make_config,
    make_failed,
    make_many,
    make_record,
    make_study,
    make_sweep,
    write_study,
)

from ftsuite.errors import StoreError
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.report import load_study, render
from ftsuite.reporting.svg import spread
from ftsuite.reporting.sweep import log_base, numeric_axis, short_labels, wants_log

if TYPE_CHECKING:
    from ftsuite.records import RunRecord, Scores

HOSTILE = (
    "first | second\n</table><script>alert(1)</script> `code` ``two``\n\n# head\n"
    "![x](http://evil.example/a.png) [y](javascript:z) *b* _i_ ~s~ $x$ \\| &lt; @user "
    "www.evil.example \x1b[31m \u202eback"
)


def text_of(folder: Path, *records: RunRecord, plots: bool = False, **study: Any) -> str:
    """Render and read the README; without plots, which take most of the time."""
    manifest = make_study(*records, **study)
    if plots:
        return render(manifest, records, folder).read_text(encoding="utf-8")
    with mock.patch("ftsuite.reporting.report.plots.draw", return_value={}):
        return render(manifest, records, folder).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The part of a report below a heading, up to the next of the same or a higher level."""
    level = re.search(rf"^(#+) {re.escape(title)}", text, re.M)
    assert level, title
    rest = text[level.end() :]
    end = re.search(rf"^#{{2,{len(level[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


class Cells(HTMLParser):
    """Collects tags and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")
            self._inside = True
        elif tag == "br" and self._inside:
            self.cells[-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def html_of(markdown: str) -> Cells:
    parser = Cells()
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
    return parser


# --- documents ------------------------------------------------------------------------------


def test_documents_of_the_cell_are_told(tmp_path: Path) -> None:
    record = make_answered()
    said = section(text_of(tmp_path, record), "Documents")
    assert f"`ftsuite show {record.run_id} --documents`" in said
    route = section(said, "Documents of `route`")
    assert (
        "By `acc` tuned is better than base on 3 of 6 documents, worse on 1, and the same on 2"
        in (route)
    )
    assert re.search(r"^\| billing +\| +3 \| +0 \| +2 \| +2 \| +0 \|$", route, re.M)
    assert re.search(r"^\| billing +\| login +\| +2 \| +1 \|$", route, re.M)
    assert "**Won**, 3 documents:" in route and "**Lost**, 1 document:" in route
    lost = html_of(route.split("**Lost**")[1]).cells
    assert lost == ["4", "Question 4 of route?", "login", "login", "other"]
    write = section(said, "Documents of `write`")
    assert "Median length of an answer, in characters: 6 expected, 6.5 from base, 6 from" in write
    assert re.search(r"^\| billing +\| \(another text\) +\| +1 \| +0 \|$", write, re.M)
    story = section(said, "Documents of `story`")
    assert "3 documents. No metric of the task says of each whether it is won or lost." in story
    groups = section(said, "`route/acc` by group")
    assert re.search(r"^\| gold +\| +3 \| +0\.000 \| +1\.000 \| +\+1\.000 \|$", groups, re.M)
    assert re.search(r"^\| \*\(none\)\* +\| +1 \| +1\.000 \| +0\.000 \| +−1\.000 \|$", groups, re.M)


def test_free_text_stands_side_by_side_and_harms_nothing(tmp_path: Path) -> None:
    record = make_answered()
    story = record.documents[2]
    hostile = dataclasses.replace(
        story.examples[0], question=HOSTILE, expected=HOSTILE, base=HOSTILE, tuned="", group=HOSTILE
    )
    changed = dataclasses.replace(story, examples=(hostile,), n=3000)
    label = dataclasses.replace(record.documents[0].labels[0], label=HOSTILE)
    pair = dataclasses.replace(record.documents[0].confusions[0], expected=HOSTILE)
    route = dataclasses.replace(record.documents[0], labels=(label,), confusions=(pair,))
    table = record.groups[0]
    groups = dataclasses.replace(
        table, rows=(dataclasses.replace(table.rows[0], group=HOSTILE),), left_out=40
    )
    record = dataclasses.replace(record, documents=(route, changed), groups=(groups,))
    text = text_of(tmp_path, record)
    said = section(text, "Documents")
    assert "**Answers**, 3,000 documents; 1 of them (of equal ones the document's" in said
    assert "40 smaller groups left out." in said
    page = html_of(said)
    assert not {"script", "img", "a", "h1"} & set(page.tags)
    # Label, pair, three texts and a group, each in one cell.
    whole = [cell for cell in page.cells if "first | second" in cell]
    assert len(whole) == 7
    assert "(empty)" in page.cells
    assert "\x1b" not in text and "\u202e" not in text


def test_a_word_that_no_column_has_room_for_may_be_broken(tmp_path: Path) -> None:
    record = make_answered()
    story = record.documents[2]
    long = "&<x" * 40
    row = dataclasses.replace(story.examples[0], base=long)
    table = dataclasses.replace(story, examples=(row,))
    said = section(text_of(tmp_path, dataclasses.replace(record, documents=(table,))), "Documents")
    page = html_of(said)
    assert long in page.cells and page.tags.count("wbr") == 2


def test_values_are_shown_where_they_are_not_right_or_wrong(tmp_path: Path) -> None:
    record = make_answered()
    route = record.documents[0]
    rows = tuple(
        dataclasses.replace(row, base_value=1.381, tuned_value=1.372) for row in route.won_documents
    )
    table = dataclasses.replace(route, metric="bits_per_byte", won=12, won_documents=rows)
    said = section(text_of(tmp_path, dataclasses.replace(record, documents=(table,))), "Documents")
    assert "**Won**, 12 documents; those with the largest change (of equal ones" in said
    assert "bits_per_byte, base → tuned" in said and "1.381\u00a0→\u00a01.372" in said


def documents_of(folder: Path, **changes: Any) -> str:
    """The report's section on one task, whose table has these changes."""
    record = make_answered()
    table = dataclasses.replace(record.documents[1], **changes)
    return section(text_of(folder, dataclasses.replace(record, documents=(table,))), "Documents")


def test_answers_that_are_none_of_the_labels_are_one_line(tmp_path: Path) -> None:
    said = documents_of(tmp_path, confusions=(), another_base=5, another_tuned=3)
    assert "Wrong answers: 5 by base and 3 by tuned, each a text that is none of the label" in said
    assert "answered instead" not in said


def test_a_missing_table_by_label_is_explained(tmp_path: Path) -> None:
    changes = {"labels": (), "confusions": ()}
    said = documents_of(tmp_path / "a", **changes, unlabelled=1)
    assert "No table by label: 1 of 6 documents has not exactly one right answer among" in said
    assert "`metadata.labels`" in said
    said = documents_of(tmp_path / "b", **changes, contradicted=2)
    assert "No table by label: of 2 documents the choice with the highest score and" in said
    # The answers do not tell right from wrong then: their values do.
    assert "exact_match, base → tuned" in said
    assert "No table by label" not in documents_of(tmp_path / "c", **changes)


def test_documents_without_a_value_are_told(tmp_path: Path) -> None:
    assert "Of 2 documents it has no value." in documents_of(tmp_path / "a", n=8)
    assert "no value" not in documents_of(tmp_path / "b")


def test_fields_say_what_they_count(tmp_path: Path) -> None:
    rows = make_answered().documents[1].labels
    said = documents_of(tmp_path, labels=(), confusions=(), fields=rows, fields_left_out=4)
    assert "4 rarer fields left out." in said
    assert "A field is right where its whole value equals the expected one as JSON." in said


def test_records_without_documents_have_no_such_section(tmp_path: Path) -> None:
    assert "## Documents" not in text_of(tmp_path, *make_sweep())


# --- the story ------------------------------------------------------------------------------


def test_the_recommendation_comes_first_with_its_numbers(tmp_path: Path) -> None:
    text = text_of(tmp_path, *make_sweep())
    assert re.findall(r"^## (.*)", text, re.M)[0] == "Recommendation"
    said = section(text, "Recommendation")
    assert "**Take `lora.r=4`.**" in said
    assert f"headline `{HEADLINE}` (240 documents) goes from 0.279 (base) to 0.867" in said
    assert "+0.588 [0.52, 0.65], Holm p < 0.001" in said
    assert "on validation (`intent_validation/acc`, 96 documents)" in said
    assert "the best score is 0.906 [0.83, 0.95] (`lora.r=16`)" in said
    assert "Also within noise of the best is `lora.r=8`." in said
    assert (
        f"Not taken: `lora.r=16` fails the gate on {BITS} (0.074 worse, 0.030 is allowed; " in said
    )
    assert (
        "1.2 M trained parameters (0.91 % of the model with its adapter), 95 s of training" in said
    )
    assert f"`{BITS}` 1.168 → 1.173" in said
    assert "probe *pirate* with its system prompt: 2 of 3 answers pass (base: 3 of 3)" in said
    assert f"that `{ARC}` is unchanged: a single test at 5 % finds a difference of 0.145" in said
    assert "another training seed" in said


def test_the_ranked_table_is_in_order_and_marks_the_pick(tmp_path: Path) -> None:
    rows = re.findall(r"^\|\s+(\d.*)", section(text_of(tmp_path, *make_sweep()), "Ranking"), re.M)
    cells = [[cell.strip().replace("\u00a0", " ") for cell in row.split("|")] for row in rows]
    assert [row[0] for row in cells] == ["1 ≈", "2 ≈", "3 ≈", "4"]
    assert [row[1] for row in cells] == [
        "`lora.r=16`",
        "`lora.r=8`",
        "**`lora.r=4`** ← pick",
        "`lora.r=2`",
    ]
    assert cells[2][2:11] == [
        "0.875 [0.79, 0.93]",
        "0.279",
        "0.867",
        "+0.588 [0.52, 0.65]",
        "< 0.001",
        "better",
        "pass",
        "1.2 M",
        "95 s",
    ]
    assert cells[0][8] == "**fails 1 of 1**"


def test_a_metric_says_direction_chance_documents_and_power(tmp_path: Path) -> None:
    text = text_of(tmp_path, *make_sweep())
    arc = section(text, f"`{ARC}` (watched)")
    assert (
        "Accuracy; higher is better. A random choice scores 0.250. 60 of 570 documents of the"
        in arc
    )
    assert "A single test at 5 % finds a difference of 0.131 to 0.159 with 80 % power; after" in arc
    assert "the correction for 16 comparisons it must be larger." in arc
    assert "**Within noise:** none of the 4 cells differs" in arc
    bits = section(text, f"`{BITS}` (watched)")
    assert "Bits per byte; lower is better." in bits
    assert "Worse: `lora.r=16`, `lora.r=8`, `lora.r=4` and `lora.r=2`." in bits
    assert "| +0.074 [0.071, 0.076] |" in bits
    assert "A random choice" not in bits


def test_a_base_that_fails_the_format_gets_the_fair_baseline(tmp_path: Path) -> None:
    exact = section(text_of(tmp_path / "a", *make_sweep()), f"`{EXACT}`")
    assert "**The format may be what base fails:** base scores 0.000 here (240 documents)" in exact
    assert f"but 0.279 on `{HEADLINE}`" in exact
    assert (
        "on the 240 documents of that metric, the scores go from 0.279 (base) to between 0.633 "
        "and 0.896 (tuned)"
    ) in exact
    guess = make_record(base={HEADLINE: 0.125})
    exact = section(text_of(tmp_path / "b", guess), f"`{EXACT}`")
    assert "(chance 0.125): it is not shown to know the task" in exact
    able = make_record(base={EXACT: 0.3})
    assert "format" not in section(text_of(tmp_path / "c", able), f"`{EXACT}`")


def test_models_at_chance_are_called_so(tmp_path: Path) -> None:
    text = text_of(tmp_path, make_record(base={ARC: 0.25}, tuned={ARC: 0.25}))
    said = section(text, f"`{ARC}`")
    assert "Base is not shown to be above chance." in said
    assert "Not shown to be above chance after tuning: `lora.r=4`." in said


def test_without_a_significant_difference_no_gain_is_claimed(tmp_path: Path) -> None:
    cells = [
        make_record(f"lora.r={r}", r=r, seed=r, tuned={**BASE_MEANS, HEADLINE: 0.29})
        for r in (2, 4)
    ]
    text = text_of(tmp_path, *cells)
    said = section(text, "Recommendation")
    assert "**`lora.r=2` is not shown to differ from the base" in said
    assert "keep the base" in said
    assert "within noise; a single test at 5 % finds a difference of 0.066 with 80 % power" in said
    assert "**Take" not in said
    assert (
        "No cell is significantly worse than base on any tested metric. This does not show" in text
    )


def test_if_no_cell_qualifies_the_base_is_kept(tmp_path: Path) -> None:
    bad = make_record(base={HEADLINE: 0.9}, tuned={HEADLINE: 0.3})
    text = text_of(tmp_path, bad)
    assert "**Keep the base model.** No cell qualifies: lora.r=4 is worse than base" in text
    assert "← pick" not in text
    assert "**worse**" in section(text, f"`{HEADLINE}`")


def test_ranking_on_test_is_said_in_the_first_line(tmp_path: Path) -> None:
    cell = make_record()
    assert "are ranked on the" not in text_of(tmp_path / "validation", cell)

    def on_test(scores: Scores) -> Scores:
        ranked = [
            dataclasses.replace(metric, split="test") if metric.name == RANK_BY else metric
            for metric in scores.metrics
        ]
        return dataclasses.replace(scores, metrics=tuple(ranked))

    assert cell.base and cell.tuned
    cell = dataclasses.replace(cell, base=on_test(cell.base), tuned=on_test(cell.tuned))
    first = text_of(tmp_path / "test", cell).splitlines()[2]
    assert first.startswith("**The cells are ranked on the test split, not on validation:**")


def test_without_a_validation_metric_nothing_is_ranked(tmp_path: Path) -> None:
    config = make_config(rank_by="")
    cells = [make_record(f"lora.r={r}", seed=r, config=config) for r in (16, 2)]
    text = text_of(tmp_path, *cells)
    said = section(text, "Recommendation")
    assert "no validation metric was configured (evals.rank_by is empty)" in said
    assert "selection on the test set" in said
    ranking = section(text, "Ranking")
    assert "Not ranked, in the order of the study." in ranking
    assert ranking.index("lora.r=16") < ranking.index("lora.r=2`")
    assert "← pick" not in text
    # Without a ranking metric all comparisons are of the family.
    assert "10 comparisons with the base (every metric, every cell" in ranking


def test_cells_on_other_documents_are_listed_without_an_order(tmp_path: Path) -> None:
    one, two = make_record("a=1"), make_record("a=2")
    metrics = tuple(
        dataclasses.replace(metric, docs_sha256="0" * 64) if metric.name == RANK_BY else metric
        for metric in two.tuned.metrics
    )
    other = dataclasses.replace(two, tuned=dataclasses.replace(two.tuned, metrics=metrics))
    text = text_of(tmp_path, one, other)
    assert "**No recommendation: a=2 and a=1 were not scored on the same documents" in text
    assert "Not ranked" in text


def test_refused_deltas_show_the_reason_and_no_number(tmp_path: Path) -> None:
    text = text_of(tmp_path, make_record(tuned_conditions={"dtype": "bfloat16"}))
    assert "5 differences refused: dtype differs: base 'float32', tuned 'bfloat16'." in text
    headline = section(text, f"`{HEADLINE}`")
    assert "refused: dtype differs: base 'float32', tuned 'bfloat16'" in headline
    assert "+0.5" not in headline
    assert "**No recommendation: no cell was compared with the base on the headline.**" in text
    assert "no delta: dtype differs" in section(text, "Regressions and gates")


def test_notices_name_what_the_numbers_stand_on(tmp_path: Path) -> None:
    cell = make_record(train_limit=160)
    dirty = dataclasses.replace(cell.provenance, git_dirty=True)
    cell = dataclasses.replace(cell, provenance=dirty)
    text = text_of(tmp_path, cell, make_failed("lora.r=8"), missing=("lora.r=64",))
    said = section(text, "Before you read on")
    assert "**dequantised Q4_1**" in said
    assert "Packed documents (`bfd`) can see each other" in said
    assert "2 rows of the data dropped: 2 empty answer." in said
    assert "1 cell did not finish: `lora.r=8`." in said
    assert "1 cell was not run: `lora.r=64`." in said
    assert "uncommitted changes" in said


def test_isolated_documents_need_no_notice(tmp_path: Path) -> None:
    cell = make_record()
    cell = dataclasses.replace(cell, data=dataclasses.replace(cell.data, documents_isolated=True))
    assert "can see each other" not in text_of(tmp_path, cell)


def test_failed_and_missing_cells_are_listed_with_stage_and_message(tmp_path: Path) -> None:
    failed = make_failed("lora.r=32", message="loss is nan | lower\n`lr`")
    running = dataclasses.replace(make_failed("lora.r=8"), status="interrupted", failure=None)
    text = text_of(tmp_path, make_record(), failed, running, missing=("lora.r=64",))
    said = section(text, "Cells that did not finish")
    assert "| `lora.r=32` | failed " in said
    assert "| train | StageError: loss is nan &#124; lower \\`lr\\`" in said
    assert re.search(r"\| `lora.r=8`\s+\| interrupted \| –\s+\| no result yet", said)
    assert re.search(r"\| `lora.r=64` \| not run", said)
    assert "1 of 4 cells finished" in text


@pytest.mark.parametrize("cells", [0, 2])
def test_a_study_without_complete_cells_still_renders(tmp_path: Path, cells: int) -> None:
    failed = [make_failed(f"lora.r={place}") for place in range(cells)]
    text = text_of(tmp_path, *failed, missing=("lora.r=64",), plots=True)
    assert "**No recommendation: no cell finished.**" in text
    assert "not run" in section(text, "Cells that did not finish")
    assert "## Ranking" not in text
    assert list(tmp_path.glob("*.svg")) == []


def test_one_cell_is_no_choice(tmp_path: Path) -> None:
    text = text_of(tmp_path, make_record(), plots=True)
    assert "it is the only cell with scores, so nothing was chosen" in text
    assert not (tmp_path / "cost-light.svg").exists()


def test_a_record_of_no_manifest_cell_is_left_out(tmp_path: Path) -> None:
    mine, other = make_record("a=1"), make_record("stray=1")
    text = render(make_study(mine), [mine, other], tmp_path).read_text(encoding="utf-8")
    assert "stray" not in text


# --- probes and hostile text ----------------------------------------------------------------


def test_probes_show_rates_contrast_and_answers(tmp_path: Path) -> None:
    said = section(text_of(tmp_path, *make_sweep()), "Probe: pirate")
    assert re.search(r"\| base \(`smollm2_135m`\) \|\s+3 of 3 \|\s+0 of 3 \|\s+\+0.500 ", said)
    assert re.search(r"\| `lora.r=4`\s+\|\s+2 of 3 \|\s+0 of 3 \|\s+\+0.100 \|\s+−1.300 \|", said)
    answers = "✓ Arr, ye boil it in the galley, Captain! | ✗ Boil it in water."
    assert answers in " ".join(said.split())
    assert "base and `lora.r=4`" in said
    # Base is scored once for all cells, so it has one row.
    assert said.count("base (") == 1


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    text = text_of(tmp_path, make_record(answer=HOSTILE))
    plain = html_of(text_of(tmp_path, make_record(answer="harmless")))
    parsed = html_of(text)
    assert sorted({*parsed.tags} - {*plain.tags}) in ([], ["br"])
    assert len(parsed.cells) == len(plain.cells)
    shown = next(cell for cell in parsed.cells if "first" in cell)
    assert "first | second\n</table><script>alert(1)</script> `code` ``two``\n# head" in shown
    assert "![x](http://evil.example/a.png) [y](javascript:z) *b* _i_ ~s~ $x$ \\| &lt; @u" in shown
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "://evil" not in text
    assert "www.evil" not in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    label = "a=`x`|</td><script>,b=$y$"
    failed = make_failed(label, message="<img src=x onerror=alert(1)> | `")
    parsed = html_of(text_of(tmp_path, make_record("a=1"), failed))
    assert "script" not in parsed.tags
    assert any(cell == label for cell in parsed.cells)
    manifest = dataclasses.replace(make_study(failed), study="<script>x", command="a\n```\n<b>")
    parsed = html_of(render(manifest, [failed], tmp_path).read_text(encoding="utf-8"))
    assert "script" not in parsed.tags
    assert "b" not in parsed.tags


def test_long_answers_are_cut_and_say_so(tmp_path: Path) -> None:
    text = text_of(tmp_path, make_record(answer="word " * 400))
    assert "… *(300 of 2,000 characters)*" in text
    assert "word " * 61 not in text
    assert "*(empty answer)*" in text_of(tmp_path, make_record(answer=" \n "))


# --- costs and provenance -------------------------------------------------------------------


def test_many_notices_of_one_kind_are_cut(tmp_path: Path) -> None:
    cells = []
    for place in range(12):
        cell = make_record(f"data={place}", train_limit=160)
        data = dataclasses.replace(cell.data, dropped={"too long": place + 1})
        cells.append(dataclasses.replace(cell, data=data))
    said = section(text_of(tmp_path, *cells), "Before you read on")
    assert "7 rows of the data dropped" in said
    assert "8 rows of the data dropped" not in said
    assert said.count("more of this kind, in the records.") == 1


def test_curves_with_gaps_are_drawn(tmp_path: Path) -> None:
    cells = make_sweep()
    gaps = tuple(
        dataclasses.replace(point, loss=float("nan") if point.step == 5 else None)
        for point in cells[1].train.curve
    )
    bare = dataclasses.replace(cells[0].train, curve=(), eval_loss=None)
    broken = dataclasses.replace(cells[1].train, curve=gaps)
    cells[0] = dataclasses.replace(cells[0], train=bare)
    cells[1] = dataclasses.replace(cells[1], train=broken)
    text = text_of(tmp_path, *cells, plots=True)
    assert "training-light.svg" in text
    drawn = (tmp_path / "training-light.svg").read_text(encoding="utf-8")
    assert ">r=8<" in drawn
    assert ">r=2<" not in drawn


def test_shared_stages_count_once(tmp_path: Path) -> None:
    said = section(text_of(tmp_path, *make_sweep()), "Time and memory")
    rows = {row[0]: row[1:] for line in said.splitlines() if (row := line[2:].split())}
    assert rows["eval-base"][1:6:2] == ["4", "4", "31"]
    assert rows["train"][1:4:2] == ["4", "4"]
    assert rows["train"][5:9] == ["6", "min", "28", "s"]
    total = 0.8 + 0.5 + 31 + 12.1 + 388.2 + 4 * (4.2 + 1.9 + 0.6 + 31 + 12.5)
    assert f"**{fmt.seconds(total)}**" in said
    assert "4.4 GB" in said


def test_provenance_and_the_command_that_reproduces(tmp_path: Path) -> None:
    text = text_of(tmp_path, *make_sweep())
    said = section(text, "Provenance")
    for expected in (
        "0123456789abcdef0123456789abcdef01234567",
        "cpu: AMD EPYC, 2 cores",
        "sha256 of the wheel b179c952",
        "lm-eval 0.4.13",
    ):
        assert expected in said
    assert "```sh\npython -m ftsuite +sweep=lora_rank\n```" in section(text, "Reproduce")


def test_the_cost_of_more_quality_is_stated(tmp_path: Path) -> None:
    said = section(text_of(tmp_path, *make_sweep()), "Quality against cost")
    assert (
        "From `lora.r=4` to the best, `lora.r=16`, the score on validation changes by +0.031 ["
        in said
    )
    assert "; the cost is 4.0 times the trained parameters and 8.8 s more." in said


# --- bytes, files, imports ------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    cells = make_sweep()
    volatile = [
        dataclasses.replace(
            cell,
            provenance=dataclasses.replace(cell.provenance, started_at="later", finished_at="on"),
            stages=tuple(dataclasses.replace(s, reused=not s.reused) for s in cell.stages),
        )
        for cell in reversed(cells)
    ]
    manifest = make_study(*cells)
    for folder, records in (("a", cells), ("b", cells), ("c", volatile)):
        render(manifest, records, tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "README.md",
        *(
            f"{plot}-{mode}.svg"
            for plot in ("cost", "sweep", "training")
            for mode in ("dark", "light")
        ),
    ]
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == first, name
        assert (tmp_path / "c" / name).read_bytes() == first, name


def test_another_process_gives_the_same_bytes_and_does_not_import_torch(tmp_path: Path) -> None:
    cells = make_sweep()
    folder = write_study(tmp_path / "study", make_study(*cells), cells)
    render(*load_study(folder), tmp_path / "here")
    script = (
        "import sys; from pathlib import Path\n"
        "from ftsuite.reporting.report import load_study, render\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"render(*load_study(Path({str(folder)!r})), Path({str(tmp_path / 'there')!r}))\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'wandb', 'hydra', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
    for path in (tmp_path / "here").iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes(), path.name


def test_load_study_reads_the_manifest_and_skips_missing_records(tmp_path: Path) -> None:
    cells = make_sweep()
    manifest = make_study(*cells, missing=("lora.r=64",))
    folder = write_study(tmp_path, manifest, cells)
    assert load_study(folder) == (manifest, cells)
    (folder / f"{cells[0].run_id}.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="not valid JSON"):
        load_study(folder)
    with pytest.raises(StoreError, match=r"study\.json"):
        load_study(tmp_path / "nowhere")


def test_secrets_reach_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_abcdefghijklmnop"
    monkeypatch.setenv("HF_TOKEN", secret)
    cell = make_record(f"data={secret}", answer=f"it is {secret}")
    failed = make_failed(message=f"401 with {secret}")
    manifest = dataclasses.replace(make_study(cell, failed), command=f"HF_TOKEN={secret} run")
    render(manifest, [cell, failed], tmp_path)
    for path in tmp_path.iterdir():
        assert secret not in path.read_text(encoding="utf-8"), path.name


def test_plots_are_embedded_for_both_modes_with_alt_text(tmp_path: Path) -> None:
    text = text_of(tmp_path, *make_sweep(), plots=True)
    pictures = re.findall(
        r'<picture>\n<source media="\(prefers-color-scheme: dark\)" srcset="(.*?)">\n'
        r'<img alt="(.*?)" src="(.*?)">\n</picture>',
        text,
    )
    assert [light for _, _, light in pictures] == [
        "sweep-light.svg",
        "cost-light.svg",
        "training-light.svg",
    ]
    for dark, alt, light in pictures:
        assert len(alt) > 60
        bright, dim = ((tmp_path / name).read_text(encoding="utf-8") for name in (light, dark))
        assert "#1f2328" in bright
        assert "#1f2328" not in dim
        assert "#c84e00" in bright or "training" not in light
        assert "DejaVu" not in bright
    assert "r=16 0.906, r=8 0.896, r=4 0.875 and r=2 0.646; base 0.271" in pictures[0][1]


def test_plots_of_an_earlier_rendering_do_not_stay(tmp_path: Path) -> None:
    text_of(tmp_path, *make_sweep(), plots=True)
    assert (tmp_path / "cost-dark.svg").exists()
    text_of(tmp_path, make_failed(), plots=True)
    assert list(tmp_path.glob("*.svg")) == []


def test_the_users_plot_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    cells = make_sweep()
    text_of(tmp_path / "a", *cells, plots=True)
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 9, "svg.fonttype": "path"}):
        text_of(tmp_path / "b", *cells, plots=True)
        assert matplotlib.rcParams["font.size"] == 30
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_a_thousand_cells_stay_readable(tmp_path: Path) -> None:
    cells = make_many(1000)
    text = text_of(tmp_path, *cells, plots=True)
    assert "1,000 of 1,000 cells finished" in text
    assert "950 further cells are in [all-cells.csv](all-cells.csv)." in text
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_000_000
    assert len(text) < 100_000


# --- sweeps and formats ---------------------------------------------------------------------


def cells_of(*labels: str) -> list[RunRecord]:
    template = make_record()
    return [
        dataclasses.replace(
            template, run_id=f"id{place}", label=label, overrides=tuple(label.split(","))
        )
        for place, label in enumerate(labels)
    ]


def test_one_number_is_an_axis() -> None:
    cells = cells_of("+lora.r=2", "+lora.r=16")
    axis = numeric_axis(cells)
    assert axis is not None
    assert (axis.key, axis.other, list(axis.x.values())) == ("lora.r", "", [2.0, 16.0])
    assert short_labels(cells) == {"id0": "r=2", "id1": "r=16"}


def test_two_crossed_keys_are_lines(tmp_path: Path) -> None:
    cells = cells_of("lora.r=2,packing=off", "lora.r=4,packing=off", "lora.r=2,packing=bfd")
    axis = numeric_axis(cells)
    assert axis is not None
    assert (axis.key, axis.other) == ("lora.r", "packing")
    assert list(axis.series.values()) == ["off", "off", "bfd"]
    text = text_of(tmp_path, *cells, plots=True)
    assert "`lora.r=2` `packing=bfd`" in section(text, "Ranking")
    assert ">packing=bfd<" in (tmp_path / "sweep-light.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "labels",
    [
        ("template=a", "template=b"),
        ("lora.r=2", "train.lr=1"),  # not the same key
        ("train.seed=0", "train.seed=1"),  # a number, but no quantity
        ("a=1,b=1,c=1", "a=2,b=2,c=2"),
        ("lora.r=nan", "lora.r=2"),
    ],
)
def test_other_sweeps_are_lists(tmp_path: Path, labels: tuple[str, ...]) -> None:
    cells = cells_of(*labels)
    assert numeric_axis(cells) is None
    text_of(tmp_path, *cells, plots=True)
    assert (tmp_path / "sweep-light.svg").exists()


def test_axes_are_logarithmic_where_it_helps() -> None:
    assert wants_log([2, 4, 8])
    assert log_base([2, 4, 8]) == 2
    assert log_base([1e-4, 1e-3]) == 10
    assert not wants_log([1, 2])
    assert not wants_log([0, 8])


def test_labels_move_apart_in_order() -> None:
    moved = spread([0.5, 0.51, 0.9], 0.1)
    assert moved[1] - moved[0] >= 0.1 - 1e-6
    assert moved[2] == pytest.approx(0.9)
    assert spread([0.0, 0.0], 0.1)[0] > 0


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (fmt.score(0.28123), "0.281"),
        (fmt.score(None), "–"),
        (fmt.score(-1.5), "−1.500"),
        (fmt.change(0.584), "+0.584"),
        (fmt.change(-0.0004), "−0.0004"),
        (fmt.change(0.0), "0.000"),
        (fmt.interval(0.4712, 0.6981), "[0.47, 0.70]"),
        (fmt.interval(-0.0711, -0.0301), "[−0.071, −0.030]"),
        (fmt.interval(-0.001, 0.2), "[−0.001, 0.200]"),
        (fmt.p_value(0.0004), "< 0.001"),
        (fmt.p_words(0.0214), "p = 0.021"),
        (fmt.p_words(0.0), "p < 0.001"),
        (fmt.count(1_221_120), "1.2 M"),
        (fmt.count(610_560), "611 k"),
        (fmt.count(999_999), "1.0 M"),
        (fmt.count(512), "512"),
        (fmt.seconds(95.3), "95 s"),
        (fmt.seconds(192), "3 min 12 s"),
        (fmt.seconds(3599.7), "1 h 0 min"),
        (fmt.seconds(0.81), "0.8 s"),
        (fmt.size(1_400_000_000), "1.4 GB"),
        (fmt.size(538_090_408), "538 MB"),
        (fmt.size(0), "–"),
        (fmt.enumerate_words(["a"]), "a"),
        (fmt.enumerate_words(["a", "b", "c"]), "a, b and c"),
        (fmt.enumerate_words(list("abcd"), most=2), "a, b and 2 more"),
        (fmt.escape("snake_case _em_ 0.1 1. x"), "snake_case \\_em\\_ 0.1 1. x"),
        (fmt.escape("<b>&"), "&lt;b&gt;&amp;"),
        (fmt.escape("1. x"), "1\\. x"),
        (fmt.escape("- x"), "\\- x"),
        (fmt.code("a`b|c"), "`` a`b\\|c ``"),
    ],
)
def test_formats(made: str, expected: str) -> None:
    assert made == expected
